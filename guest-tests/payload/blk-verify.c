/*
 * blk-verify - writes, reads back and compares until the disk changes its size
 *
 * Command line (all optional):
 *   queues=N      use N queues (default 1)
 *   cpus=N        drive them from N processors (default 1), queue i by
 *                 processor i modulo N
 *   depth=N       requests in flight for each queue (default 8)
 *   event_idx=off do without the event index
 *   packed=on     packed rings, which the device must offer
 *   end=panic     then report a panic, in place of a reset
 *
 * For what is done to the machine from outside meanwhile: stopped and continued,
 * queues moved, filters put in.  Whoever does that grows the disk at the end.
 *
 * Each slot of a queue has blocks of its own on the disk.  It writes one, with
 * words that no other write has, then reads one of its blocks, any, and compares
 * it with what was written there last: a write that is lost, done twice in the
 * wrong order, or done elsewhere shows up, as does a read that brings nothing.
 * At the very end all blocks are read once more.
 *
 * Prints "verify-begin" when requests flow, and one line at the end:
 *   verify-done requests=N errors=0 capacity=BEFORE-AFTER isr=N
 * where isr is what the ISR byte said when the size had changed (2: the
 * configuration).  A problem is a line that starts with "Bail out!".
 */
#include "guest-tests/lib/args.h"
#include "guest-tests/lib/boot.h"
#include "guest-tests/lib/console.h"
#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/layout.h"
#include "guest-tests/lib/smp.h"
#include "guest-tests/lib/tsc.h"
#include "guest-tests/lib/virtio-blk.h"

#define BLOCK_BYTES     4096u
#define BLOCK_WORDS     (BLOCK_BYTES / 8)
#define BLOCK_SECTORS   (BLOCK_BYTES / VIRTIO_BLK_SECTOR_BYTES)
#define BLOCKS_A_SLOT   16u
#define MAX_DEPTH       64u
#define STUCK_MS        20000
#define LOOK_MS         20 /* between two looks at the capacity */
#define SEED            0x9e3779b97f4a7c15ull
#define PVPANIC_PORT     0x505
#define PVPANIC_PANICKED 1

typedef struct {
    uint64_t *data;                     /* BLOCK_BYTES */
    uint64_t written[BLOCKS_A_SLOT];    /* which write was the last; 0: none */
    uint64_t pending;                   /* the write that is under way; 0: a read */
    uint32_t block;                     /* of the request under way */
    bool busy;
} Slot;

typedef struct {
    VblkDevice *disk;
    uint16_t first_queue;
    uint16_t queue_step;
    uint16_t depth;
    uint64_t random;
    uint64_t requests;
    const char *problem; /* NULL: none */
    uint64_t problem_sector, problem_word;
} __attribute__((aligned(128))) Worker;

static VblkDevice disk;
static Worker workers[MAX_CPUS];
static Slot *slots[VBLK_MAX_QUEUES]; /* depth each */
static volatile bool stop;

static uint32_t random_below(Worker *w, uint32_t limit)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return (uint32_t)((w->random >> 32) % limit);
}

static uint64_t sector_of(const Worker *w, uint16_t queue, uint16_t slot, uint32_t block)
{
    return (((uint64_t)queue * w->depth + slot) * BLOCKS_A_SLOT + block) * BLOCK_SECTORS;
}

static uint64_t word_of(uint64_t sector, uint64_t write, uint32_t i)
{
    return (sector << 40) ^ (write * SEED) ^ i;
}

static void submit(Worker *w, uint16_t queue, uint16_t slot, bool write)
{
    Slot *s = &slots[queue][slot];
    uint64_t sector;

    s->block = random_below(w, BLOCKS_A_SLOT);
    sector = sector_of(w, queue, slot, s->block);
    s->pending = write ? s->written[s->block] + 1 : 0;
    for (uint32_t i = 0; i < BLOCK_WORDS; i++) {
        s->data[i] = write ? word_of(sector, s->pending, i) : ~0ull;
    }
    s->busy = true;
    vblk_offer(&w->disk->queues[queue], slot, write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN, sector,
               s->data, BLOCK_BYTES);
}

static void complain(Worker *w, const char *problem, uint64_t sector, uint64_t word)
{
    if (!w->problem) {
        w->problem = problem;
        w->problem_sector = sector;
        w->problem_word = word;
    }
}

static void compare(Worker *w, const Slot *s, uint64_t sector)
{
    uint64_t write = s->written[s->block];

    for (uint32_t i = 0; write && i < BLOCK_WORDS; i++) {
        if (s->data[i] != word_of(sector, write, i)) {
            complain(w, "a block is not what was written", sector, s->data[i]);
            return;
        }
    }
}

/* A request has ended: look at it. Returns whether it was a write. */
static bool finish(Worker *w, uint16_t queue, uint16_t slot)
{
    Slot *s = &slots[queue][slot];
    uint64_t sector = sector_of(w, queue, slot, s->block);
    bool was_write = s->pending != 0;

    w->requests++;
    if (!s->busy) {
        complain(w, "a request has ended twice", sector, 0);
        return false;
    }
    s->busy = false;
    if (w->disk->queues[queue].slots[slot].status != VIRTIO_BLK_S_OK) {
        complain(w, "a request has failed", sector,
                 w->disk->queues[queue].slots[slot].status);
    } else if (was_write) {
        s->written[s->block] = s->pending;
    } else {
        compare(w, s, sector);
    }
    return was_write;
}

/* Take what is done on one queue; put new requests in its place unless it is
 * over.  Returns how many were taken. */
static uint32_t turn_queue(Worker *w, uint16_t queue, bool again)
{
    VblkQueue *q = &w->disk->queues[queue];
    uint32_t n = 0;
    uint16_t slot;

    while (vblk_take(q, &slot)) {
        if (slot >= w->depth) {
            complain(w, "a request has ended that was not made", 0, slot);
            return 0;
        }
        bool was_write = finish(w, queue, slot);

        n++;
        if (again && !w->problem) {
            submit(w, queue, slot, !was_write);
        }
    }
    if (n > 0) {
        vring_taken_all(&q->ring);
        vring_publish(&q->ring);
    }
    return n;
}

static uint32_t count_busy(const Worker *w)
{
    uint32_t n = 0;

    for (uint16_t i = w->first_queue; i < w->disk->nb_queues; i = (uint16_t)(i + w->queue_step)) {
        for (uint16_t slot = 0; slot < w->depth; slot++) {
            n += slots[i][slot].busy;
        }
    }
    return n;
}

static void worker_run(void *arg)
{
    Worker *w = arg;
    uint64_t moved = cpu_rdtsc();

    for (uint16_t i = w->first_queue; i < w->disk->nb_queues; i = (uint16_t)(i + w->queue_step)) {
        for (uint16_t slot = 0; slot < w->depth; slot++) {
            submit(w, i, slot, true);
        }
        vring_publish(&w->disk->queues[i].ring);
    }
    while (!w->problem && (!stop || count_busy(w) > 0)) {
        uint32_t n = 0;

        for (uint16_t i = w->first_queue; i < w->disk->nb_queues;
             i = (uint16_t)(i + w->queue_step)) {
            n += turn_queue(w, i, !stop);
        }
        if (n > 0) {
            moved = cpu_rdtsc();
        } else if (cpu_rdtsc() - moved > tsc_from_ms(STUCK_MS)) {
            complain(w, "no request completes any more", 0, count_busy(w));
        }
        /* The first processor watches the capacity. */
        if (w->first_queue == 0) {
            static uint64_t looked;

            if (cpu_rdtsc() - looked > tsc_from_ms(LOOK_MS)) {
                looked = cpu_rdtsc();
                stop = vdev_config64(&w->disk->dev, 0) != w->disk->capacity_sectors;
            }
        }
    }
    stop = stop || w->problem;
}

static void __attribute__((noreturn)) bail_out(const char *why, uint64_t sector, uint64_t word)
{
    con_printf("Bail out! %s (sector %lu, %lx)\n", why, sector, word);
    con_reset_machine();
}

static void read_all(Worker *w)
{
    for (uint16_t q = 0; q < disk.nb_queues; q++) {
        for (uint16_t slot = 0; slot < w->depth; slot++) {
            for (uint32_t block = 0; block < BLOCKS_A_SLOT && !w->problem; block++) {
                Slot *s = &slots[q][slot];
                uint64_t sector = sector_of(w, q, slot, block);

                s->block = block;
                if (vblk_do(&disk.queues[0], VIRTIO_BLK_T_IN, sector, s->data, BLOCK_BYTES) !=
                    VIRTIO_BLK_S_OK) {
                    complain(w, "a block cannot be read", sector, 0);
                } else {
                    compare(w, s, sector);
                }
            }
        }
    }
}

static void start_disk(void)
{
    const VblkSetup setup = {
        .features = (arg_is("event_idx", "off") ? 0 : VIRTIO_F_EVENT_IDX) | VIRTIO_BLK_F_MQ |
                    (arg_is("packed", "on") ? VIRTIO_F_RING_PACKED : 0) | VIRTIO_BLK_F_FLUSH,
        .nb_queues = (uint16_t)arg_u64("queues", 1, 1, VBLK_MAX_QUEUES),
    };
    const char *problem;

    if (!vblk_open(&disk, VDEV_PCI, 0, false)) {
        bail_out("no virtio-blk device on PCI bus 0", 0, 0);
    }
    problem = vblk_start(&disk, &setup);
    if (problem) {
        bail_out(problem, 0, 0);
    }
}

static void set_workers(uint32_t nb_cpus, uint16_t depth)
{
    for (uint16_t q = 0; q < disk.nb_queues; q++) {
        slots[q] = mem_alloc(depth * sizeof(Slot), 64);
        for (uint16_t slot = 0; slot < depth; slot++) {
            slots[q][slot].data = mem_alloc(BLOCK_BYTES, BLOCK_BYTES);
        }
    }
    for (uint32_t i = 0; i < nb_cpus; i++) {
        workers[i].disk = &disk;
        workers[i].first_queue = (uint16_t)i;
        workers[i].queue_step = (uint16_t)nb_cpus;
        workers[i].depth = depth;
        workers[i].random = SEED * (i + 1);
    }
}

static void check_workers(uint32_t nb_cpus)
{
    for (uint32_t i = 0; i < nb_cpus; i++) {
        if (workers[i].problem) {
            bail_out(workers[i].problem, workers[i].problem_sector, workers[i].problem_word);
        }
    }
}

void payload_main(void)
{
    uint32_t nb_cpus = (uint32_t)arg_u64("cpus", 1, 1, MAX_CPUS);
    uint16_t depth = (uint16_t)arg_u64("depth", 8, 1, MAX_DEPTH);
    uint64_t requests = 0;

    start_disk();
    if (depth > disk.queues[0].nb_slots ||
        disk.capacity_sectors <
            (uint64_t)disk.nb_queues * depth * BLOCKS_A_SLOT * BLOCK_SECTORS) {
        bail_out("the queues or the disk are too small for depth=", disk.capacity_sectors, 0);
    }
    if (nb_cpus > disk.nb_queues || smp_start(nb_cpus) != nb_cpus) {
        bail_out("not that many processors, or more than queues", 0, 0);
    }
    set_workers(nb_cpus, depth);
    con_printf("verify-begin\n");
    for (uint32_t i = 1; i < nb_cpus; i++) {
        smp_call(i, worker_run, &workers[i]);
    }
    worker_run(&workers[0]);
    for (uint32_t i = 1; i < nb_cpus; i++) {
        while (!smp_is_idle(i)) {
            cpu_pause();
        }
    }

    uint8_t isr = vdev_take_isr(&disk.dev);

    check_workers(nb_cpus);
    read_all(&workers[0]);
    check_workers(nb_cpus);
    for (uint32_t i = 0; i < nb_cpus; i++) {
        requests += workers[i].requests;
    }
    con_printf("verify-done requests=%lu errors=0 capacity=%lu-%lu isr=%u\n", requests,
               disk.capacity_sectors, vdev_config64(&disk.dev, 0), isr & VDEV_ISR_CONFIG);
    if (arg_is("end", "panic")) {
        cpu_outb(PVPANIC_PORT, PVPANIC_PANICKED);
        tsc_wait_ms(STUCK_MS);
    }
}
