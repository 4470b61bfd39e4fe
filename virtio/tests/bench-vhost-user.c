/*
 * bench-vhost-user.c - how fast a vhost-user-blk server answers a client that polls
 *
 * usage: bench-vhost-user SOCKET [KEY=VALUE]...
 *
 *   queues=N  depth=N  bytes=N  ms=N  warmup-ms=N  op=read|write
 *   disk-bytes=N   part of the disk that is used (default 256 MiB)
 *   pid=N          the server, to know its processor time
 *   sleep=1        wait for an interrupt when there is nothing to take
 *   cpus=A:B       where the clients' threads run, a queue each
 *
 * A queue has a thread of its own, with a ring of 256 and requests of three descriptors, which stay
 * what they are: a slot that is free again is offered with another sector. In each round the thread
 * takes every answer there is, fills the free slots, publishes once, and kicks if it is asked to:
 * what a driver that polls does, and what guest-tests/payload/blk-perf.c does in a guest. One line
 * says what was measured.
 */
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "virtio/tests/server-process.h"
#include "virtio/tests/vhost-user-client.h"

#define QUEUE_SIZE 256
#define DEPTH_MAX  (QUEUE_SIZE / 3)

enum Key { QUEUES, DEPTH, BYTES, MS, WARMUP_MS, OP, DISK_BYTES, PID, SLEEP, CPUS, NB_KEYS };

static const char *const keys[NB_KEYS] = {
    [QUEUES] = "queues", [DEPTH] = "depth",         [BYTES] = "bytes",           [MS] = "ms",
    [OP] = "op",         [WARMUP_MS] = "warmup-ms", [DISK_BYTES] = "disk-bytes", [PID] = "pid",
    [SLEEP] = "sleep",   [CPUS] = "cpus",
};

typedef struct Settings {
    unsigned queues, depth, bytes, ms, warmup_ms;
    bool write, sleep;
    uint64_t disk_bytes;
    int pid;
    int cpus[VFE_QUEUES_MAX]; /* -1 = anywhere */
} Settings;

typedef struct Worker {
    pthread_t thread;
    VfeQueue *queue;
    VfeSlot slots[DEPTH_MAX];
    VfeSlot *by_head[QUEUE_SIZE];
    VfeSlot *free_slots[DEPTH_MAX];
    unsigned nb_free;
    uint64_t random;
    _Atomic uint64_t nb_requests; /* answered; read by the main thread */
    uint64_t nb_errors, nb_kicks;
    int cpu;
} CACHE_ALIGNED Worker;

static Settings settings = {
    .queues = 1, .depth = 32, .bytes = 4096, .ms = 1000, .warmup_ms = 200, .disk_bytes = 256 << 20
};
static VfeClient client;
static Worker workers[VFE_QUEUES_MAX];
static _Atomic bool stop;

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t next_sector(Worker *w)
{
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (w->random >> 33) % (settings.disk_bytes / settings.bytes) * (settings.bytes / 512);
}

static void submit(Worker *w)
{
    VfeSlot *slot = w->free_slots[--w->nb_free];
    struct virtio_blk_outhdr *header = guest_ptr(&client.guest, slot->header_gpa);

    header->sector = htole64(next_sector(w));
    ring_offer(&w->queue->ring, slot->head);
}

static unsigned take_answers(Worker *w)
{
    uint32_t head, len;
    unsigned nb = 0;

    while (ring_next_used(&w->queue->ring, &head, &len)) {
        VfeSlot *slot = w->by_head[head];

        w->nb_errors += vfe_slot_status(slot, &client.guest) != VIRTIO_BLK_S_OK;
        w->free_slots[w->nb_free++] = slot;
        nb++;
    }
    return nb;
}

static void run_round(Worker *w)
{
    unsigned nb = take_answers(w);

    if (nb == 0 && w->nb_free < settings.depth) {
        if (settings.sleep && vfe_queue_await(w->queue, 1000) < 0) {
            w->nb_errors++;
        }
        return;
    }
    atomic_store_explicit(&w->nb_requests, w->nb_requests + nb, memory_order_relaxed);
    while (w->nb_free > 0) {
        submit(w);
    }
    ring_publish(&w->queue->ring);
    if (!settings.sleep) {
        ring_want_interrupt(&w->queue->ring, false);
    }
    if (ring_wants_kick(&w->queue->ring)) {
        eventfd_write(w->queue->kick_fd, 1);
        w->nb_kicks++;
    }
}

static void *worker_thread(void *opaque)
{
    Worker *w = opaque;
    cpu_set_t set;

    if (w->cpu >= 0) {
        CPU_ZERO(&set);
        CPU_SET(w->cpu, &set);
        sched_setaffinity(0, sizeof(set), &set);
    }
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        run_round(w);
    }
    while (w->nb_free < settings.depth) {
        take_answers(w);
    }
    return NULL;
}

static void start_worker(unsigned index)
{
    Worker *w = &workers[index];

    w->queue = &client.queues[index];
    w->random = index + 1;
    w->cpu = settings.cpus[index];
    guest_alloc(&client.guest, 1, 4096); /* no cache line with another's requests */
    for (unsigned i = 0; i < settings.depth; i++) {
        vfe_slot_init(&w->slots[i], &client.guest, settings.bytes);
        vfe_slot_add(&w->slots[i], &w->queue->ring,
                     settings.write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN, next_sector(w),
                     settings.bytes, false);
        w->by_head[w->slots[i].head] = &w->slots[i];
    }
    vfe_queue_submit(w->queue);
    if (pthread_create(&w->thread, NULL, worker_thread, w) != 0) {
        abort();
    }
}

typedef struct Moment {
    uint64_t ns, requests, server_cpu_ns;
} Moment;

static Moment look(void)
{
    const ServerProcess server = { .pid = settings.pid };
    Moment moment = { .ns = now_ns() };

    for (unsigned i = 0; i < settings.queues; i++) {
        moment.requests += atomic_load_explicit(&workers[i].nb_requests, memory_order_relaxed);
    }
    moment.server_cpu_ns = settings.pid ? server_cpu_ns(&server) : 0;
    return moment;
}

static void sleep_ms(unsigned ms)
{
    struct timespec ts = { ms / 1000, (long)(ms % 1000) * 1000000 };

    nanosleep(&ts, NULL);
}

static int report(const Moment *begin, const Moment *end)
{
    uint64_t requests = end->requests - begin->requests, errors = 0, kicks = 0;

    for (unsigned i = 0; i < settings.queues; i++) {
        errors += workers[i].nb_errors;
        kicks += workers[i].nb_kicks;
    }
    printf("queues=%u depth=%u requests=%" PRIu64 " ns=%" PRIu64 " server_cpu_ns=%" PRIu64
           " kicks=%" PRIu64 " errors=%" PRIu64 "\n",
           settings.queues, settings.depth, requests, end->ns - begin->ns,
           end->server_cpu_ns - begin->server_cpu_ns, kicks, errors);
    return errors || !requests;
}

static int run(const char *path)
{
    VfeClientParams params = { .nb_queues = settings.queues, .queue_size = QUEUE_SIZE };

    params.ram_bytes =
        settings.queues * (settings.depth * (settings.bytes + 8192ull) + (64u << 10)) + (1u << 20);
    vfe_client_init(&client, &params);
    int ret = vfe_client_connect(&client, path);

    ret = ret < 0 ? ret : vfe_client_start(&client);
    if (ret < 0) {
        fprintf(stderr, "bench-vhost-user: %s: %s\n", path, strerror(-ret));
        return 1;
    }
    for (unsigned i = 0; i < settings.queues; i++) {
        start_worker(i);
    }
    sleep_ms(settings.warmup_ms);
    Moment begin = look();

    sleep_ms(settings.ms);
    Moment end = look();

    atomic_store(&stop, true);
    for (unsigned i = 0; i < settings.queues; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    vfe_client_finish(&client);
    return report(&begin, &end);
}

static bool take_cpus(char *text)
{
    for (unsigned i = 0; i < VFE_QUEUES_MAX; i++) {
        char *word = strsep(&text, ":");

        settings.cpus[i] = word ? atoi(word) : -1;
    }
    return !text;
}

static bool take(enum Key key, char *value)
{
    unsigned number = (unsigned)strtoul(value, NULL, 0);

    switch (key) {
    case QUEUES:
        settings.queues = number;
        return number >= 1 && number <= VFE_QUEUES_MAX;
    case DEPTH:
        settings.depth = number;
        return number >= 1 && number <= DEPTH_MAX;
    case BYTES:
        settings.bytes = number;
        return number >= 512 && number % 512 == 0 && number <= 1u << 20;
    case MS:
        settings.ms = number;
        return number > 0;
    case WARMUP_MS:
        settings.warmup_ms = number;
        return true;
    case OP:
        settings.write = strcmp(value, "write") == 0;
        return settings.write || strcmp(value, "read") == 0;
    case DISK_BYTES:
        settings.disk_bytes = strtoull(value, NULL, 0);
        return settings.disk_bytes >= 1u << 20;
    case PID:
        settings.pid = (int)number;
        return true;
    case SLEEP:
        settings.sleep = number != 0;
        return true;
    case CPUS:
        return take_cpus(value);
    case NB_KEYS:
        break;
    }
    return false;
}

static bool take_word(char *word)
{
    char *value = word, *key = strsep(&value, "=");

    for (int i = 0; value && i < NB_KEYS; i++) {
        if (strcmp(key, keys[i]) == 0) {
            return take((enum Key)i, value);
        }
    }
    return false;
}

int main(int argc, char **argv)
{
    memset(settings.cpus, 0xff, sizeof(settings.cpus));
    for (int i = 2; i < argc; i++) {
        if (!take_word(argv[i])) {
            fprintf(stderr, "bench-vhost-user: '%s' is no setting, or out of range\n", argv[i]);
            return 2;
        }
    }
    if (argc < 2) {
        fprintf(stderr, "usage: bench-vhost-user SOCKET [KEY=VALUE]...\n");
        return 2;
    }
    return run(argv[1]);
}
