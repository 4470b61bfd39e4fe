/*
 * blk-perf - how fast a virtio-blk device answers a driver that polls
 *
 * Command line (all optional):
 *   queues=N      use N queues (default 1)
 *   cpus=N        drive them from N processors (default 1), queue i by
 *                 processor i modulo N
 *   depth=A,B,..  requests in flight for each queue (default 1,8,32,64)
 *   op=read|write|flush, bs=BYTES (default read, 4096)
 *   pattern=rand|seq (default rand)
 *   seconds=S     or ms=M: length of one run (default 1 s)
 *   warmup_ms=M   before each run, not counted (default 100)
 *   event_idx=on|off, indirect=on|off (default on, off)
 *   packed=on     packed rings, which the device must offer
 *   irq=on        have the device raise an interrupt for each batch
 *   queue_size=N  (default: what the device offers)
 *   disk=N        the Nth virtio-blk device (default 0)
 *   bars=reassign move its BARs first
 *   tsc_khz=N     if the hypervisor does not tell
 *
 * The driver is an ordinary one that polls.  In each round it takes every
 * completion there is, fills the freed slots with new requests, publishes the
 * available index once, and rings the doorbell only if the device asks for it
 * (event index, or the flag): a device that polls gets no kick.
 *
 * A request's latency is the time between the round that offered it and the
 * round that took it; one reading of the clock a round serves all queues.
 *
 * For each depth it prints "perf-begin ..." when the run starts, and then one
 * line "perf key=value ..."; at the very end "perf-done".  A problem is a line
 * that starts with "Bail out!".
 */
#include "guest-tests/lib/args.h"
#include "guest-tests/lib/boot.h"
#include "guest-tests/lib/console.h"
#include "guest-tests/lib/layout.h"
#include "guest-tests/lib/smp.h"
#include "guest-tests/lib/str.h"
#include "guest-tests/lib/tsc.h"
#include "guest-tests/lib/virtio-blk.h"

#define MAX_DEPTHS      16
#define MAX_BS_BYTES    (1u << 20)
#define PAGE_BYTES      4096
#define STUCK_MS        20000
#define KICK_WAIT_MS    100
#define SEED            0x9e3779b97f4a7c15ull

/* Latencies are counted in buckets 1/16 of an octave wide, so to 6 %. */
#define BUCKET_BITS     4
#define NB_BUCKETS      ((64 - BUCKET_BITS + 1) << BUCKET_BITS)

typedef struct {
    uint32_t type;
    uint32_t bs_bytes;
    uint64_t nb_blocks;
    bool sequential;
    uint64_t warmup_cycles;
    uint64_t run_cycles;
} Job;

/* One processor's share: some of the queues, and what it counted. */
typedef struct {
    const Job *job;
    VblkDevice *disk;
    uint8_t *buffers[VBLK_MAX_QUEUES];
    uint64_t *offered[VBLK_MAX_QUEUES]; /* when, by slot */
    uint16_t first_queue;
    uint16_t queue_step;
    uint16_t depth;
    uint64_t random;
    uint64_t next_block;
    uint64_t requests;
    uint64_t batches;
    uint64_t kicks;
    uint64_t errors;
    uint64_t cycles;
    uint64_t now; /* when this round began */
    uint32_t latencies[NB_BUCKETS];
    bool stuck;
} __attribute__((aligned(128))) Worker;

static VblkDevice disk;
static Worker workers[MAX_CPUS];
static volatile uint32_t nb_ready;
static volatile uint32_t nb_expected;

static uint64_t next_sector(Worker *w)
{
    uint64_t block;

    if (w->job->sequential) {
        block = w->next_block++;
        if (w->next_block >= w->job->nb_blocks) {
            w->next_block = 0;
        }
    } else {
        w->random ^= w->random << 13;
        w->random ^= w->random >> 7;
        w->random ^= w->random << 17;
        block = (uint64_t)((unsigned __int128)w->random * w->job->nb_blocks >>
                           64);
    }
    return block * (w->job->bs_bytes / VIRTIO_BLK_SECTOR_BYTES);
}

static uint32_t bucket_of(uint64_t cycles)
{
    uint32_t top;

    if (cycles < 1u << BUCKET_BITS) {
        return (uint32_t)cycles;
    }
    top = 63 - (uint32_t)__builtin_clzll(cycles);
    return (top - BUCKET_BITS + 1) << BUCKET_BITS |
           (uint32_t)(cycles >> (top - BUCKET_BITS) &
                      ((1u << BUCKET_BITS) - 1));
}

/* The first number of cycles that falls into the bucket. */
static uint64_t bucket_cycles(uint32_t bucket)
{
    uint32_t octave = bucket >> BUCKET_BITS;
    uint64_t part = bucket & ((1u << BUCKET_BITS) - 1);

    return octave == 0 ? part
                       : ((1ull << BUCKET_BITS) | part) << (octave - 1);
}

static void submit(Worker *w, uint16_t queue, uint16_t slot)
{
    const Job *job = w->job;
    bool has_data = job->type != VIRTIO_BLK_T_FLUSH;

    w->offered[queue][slot] = w->now;
    vblk_offer(&w->disk->queues[queue], slot, job->type,
               has_data ? next_sector(w) : 0,
               w->buffers[queue] + (uint64_t)slot * job->bs_bytes,
               has_data ? job->bs_bytes : 0);
}

/* Take what is done on one queue; with @again, put new requests in its place.
 * Returns how many were taken. */
static uint32_t turn_queue(Worker *w, uint16_t queue, bool again)
{
    VblkQueue *q = &w->disk->queues[queue];
    uint32_t n = 0;
    uint16_t slot;

    while (vblk_take(q, &slot)) {
        w->errors += q->slots[slot].status != VIRTIO_BLK_S_OK;
        w->latencies[bucket_of(w->now - w->offered[queue][slot])]++;
        n++;
        if (again) {
            submit(w, queue, slot);
        }
    }
    if (n > 0) {
        vring_taken_all(&q->ring);
        if (again) {
            vring_publish(&q->ring);
        }
        w->batches++;
    }
    return n;
}

/* Keep all queues of the worker full for @cycles; false if nothing moves. */
static bool keep_busy(Worker *w, uint64_t cycles)
{
    uint64_t start = cpu_rdtsc();
    uint64_t moved = start;

    w->now = start;
    w->requests = 0;
    w->batches = 0;
    memset(w->latencies, 0, sizeof(w->latencies));
    do {
        uint32_t n = 0;

        for (uint16_t i = w->first_queue; i < w->disk->nb_queues;
             i = (uint16_t)(i + w->queue_step)) {
            n += turn_queue(w, i, true);
        }
        w->now = cpu_rdtsc();
        w->requests += n;
        if (n > 0) {
            moved = w->now;
        } else if (w->now - moved > tsc_from_ms(STUCK_MS)) {
            return false;
        } else {
            cpu_pause();
        }
    } while (w->now - start < cycles);
    w->cycles = w->now - start;
    return true;
}

static bool drain(Worker *w)
{
    uint64_t start = cpu_rdtsc();

    for (uint16_t i = w->first_queue; i < w->disk->nb_queues;
         i = (uint16_t)(i + w->queue_step)) {
        uint32_t left = w->depth;

        while (left > 0) {
            left -= turn_queue(w, i, false);
            if (cpu_rdtsc() - start > tsc_from_ms(STUCK_MS)) {
                return false;
            }
            cpu_pause();
        }
    }
    return true;
}

static uint64_t count_kicks(const Worker *w)
{
    uint64_t n = 0;

    for (uint16_t i = w->first_queue; i < w->disk->nb_queues;
         i = (uint16_t)(i + w->queue_step)) {
        n += w->disk->queues[i].ring.kicks;
    }
    return n;
}

static void worker_run(void *arg)
{
    Worker *w = arg;

    w->now = cpu_rdtsc();
    for (uint16_t i = w->first_queue; i < w->disk->nb_queues;
         i = (uint16_t)(i + w->queue_step)) {
        for (uint16_t slot = 0; slot < w->depth; slot++) {
            submit(w, i, slot);
        }
        vring_publish(&w->disk->queues[i].ring);
    }
    w->stuck = !keep_busy(w, w->job->warmup_cycles);

    /* All processors measure the same stretch of time. */
    __atomic_fetch_add(&nb_ready, 1, __ATOMIC_SEQ_CST);
    while (nb_ready < nb_expected && !w->stuck) {
        w->stuck = !keep_busy(w, 0);
    }
    if (!w->stuck) {
        uint64_t kicks_before = count_kicks(w);

        w->errors = 0;
        w->stuck = !keep_busy(w, w->job->run_cycles);
        w->kicks = count_kicks(w) - kicks_before;
    }
    w->stuck = w->stuck || !drain(w);
}

static void __attribute__((noreturn)) bail_out(const char *why)
{
    con_printf("Bail out! %s\n", why);
    con_reset_machine();
}

static void print_stuck_packed(uint16_t i, Vring *r)
{
    VringPacked *p = &r->packed;
    uint16_t slot = p->used_slot;

    con_printf("# queue %u: next available slot %u, taken to slot %u, which has flags %04x, "
               "device event %08x, status %02x\n",
               i, p->avail_slot, slot, p->desc[slot].flags, *p->device_event,
               vdev_get_status(&disk.dev));
    vring_kick(r);
    tsc_wait_ms(KICK_WAIT_MS);
    con_printf("# queue %u: after one more kick flags %04x\n", i, p->desc[slot].flags);
}

/* What the rings look like when nothing moves, and whether a kick helps. */
static void print_stuck_queues(void)
{
    for (uint16_t i = 0; i < disk.nb_queues; i++) {
        Vring *r = &disk.queues[i].ring;

        if (r->is_packed) {
            print_stuck_packed(i, r);
            continue;
        }
        con_printf("# queue %u: available %u, used %u, taken %u, "
                   "avail_event %u, used flags %u, status %02x\n",
                   i, r->avail->idx, r->used->idx, r->used_next,
                   vring_avail_event(r), r->used->flags,
                   vdev_get_status(&disk.dev));
        if (r->avail->idx != r->used->idx) {
            vring_kick(r);
            tsc_wait_ms(KICK_WAIT_MS);
            con_printf("# queue %u: after one more kick used %u\n", i,
                       r->used->idx);
        }
    }
}

/* Of all processors' requests, the latency that @permille of them did not pass. */
static uint64_t latency_cycles(uint32_t nb_cpus, uint64_t requests,
                               uint32_t permille)
{
    uint64_t left = (requests * permille + 999) / 1000;

    for (uint32_t bucket = 0; bucket < NB_BUCKETS; bucket++) {
        for (uint32_t i = 0; i < nb_cpus; i++) {
            uint64_t here = workers[i].latencies[bucket];

            if (left <= here) {
                return bucket_cycles(bucket);
            }
            left -= here;
        }
    }
    return 0;
}

static void print_result(const Job *job, uint32_t nb_cpus, uint64_t depth)
{
    uint64_t requests = 0, batches = 0, kicks = 0, errors = 0, cycles = 0;

    for (uint32_t i = 0; i < nb_cpus; i++) {
        requests += workers[i].requests;
        batches += workers[i].batches;
        kicks += workers[i].kicks;
        errors += workers[i].errors;
        cycles += workers[i].cycles / nb_cpus;
    }
    con_printf("perf queues=%u cpus=%u depth=%lu op=%s bs=%u requests=%lu "
               "cycles=%lu kicks=%lu batches=%lu errors=%lu",
               disk.nb_queues, nb_cpus, depth,
               job->type == VIRTIO_BLK_T_IN    ? "read"
               : job->type == VIRTIO_BLK_T_OUT ? "write"
                                               : "flush",
               job->bs_bytes, requests, cycles, kicks, batches, errors);
    if (tsc_known() && requests) {
        uint64_t ps = tsc_to_ns(cycles) * 1000 / requests;

        con_printf(" ns=%lu ns_per_req=%lu.%03lu p50_ns=%lu p99_ns=%lu",
                   tsc_to_ns(cycles), ps / 1000, ps % 1000,
                   tsc_to_ns(latency_cycles(nb_cpus, requests, 500)),
                   tsc_to_ns(latency_cycles(nb_cpus, requests, 990)));
    }
    con_printf("\n");
}

static void run_depth(const Job *job, uint32_t nb_cpus, uint64_t depth)
{
    con_printf("perf-begin depth=%lu\n", depth);
    nb_ready = 0;
    nb_expected = nb_cpus;
    for (uint32_t i = 0; i < nb_cpus; i++) {
        workers[i].depth = (uint16_t)depth;
    }
    for (uint32_t i = 1; i < nb_cpus; i++) {
        smp_call(i, worker_run, &workers[i]);
    }
    worker_run(&workers[0]);
    for (uint32_t i = 0; i < nb_cpus; i++) {
        while (i > 0 && !smp_is_idle(i)) {
            cpu_pause();
        }
        if (workers[i].stuck) {
            print_stuck_queues();
            bail_out("no request completes any more");
        }
    }
    print_result(job, nb_cpus, depth);
}

static void start_disk(void)
{
    const VblkSetup setup = {
        .features = (arg_is("event_idx", "off") ? 0 : VIRTIO_F_EVENT_IDX) |
                    (arg_is("indirect", "on") ? VIRTIO_F_INDIRECT_DESC : 0) |
                    (arg_is("packed", "on") ? VIRTIO_F_RING_PACKED : 0) |
                    VIRTIO_BLK_F_MQ | VIRTIO_BLK_F_FLUSH |
                    VIRTIO_BLK_F_BLK_SIZE,
        .nb_queues = (uint16_t)arg_u64("queues", 1, 1, VBLK_MAX_QUEUES),
        .queue_size = (uint16_t)arg_u64("queue_size", 0, 0, VRING_MAX_SIZE),
        .interrupts = arg_is("irq", "on"),
    };
    const char *problem;

    if (!vblk_open(&disk, VDEV_PCI, (unsigned)arg_u64("disk", 0, 0, 255),
                   arg_is("bars", "reassign"))) {
        bail_out("no virtio-blk device on PCI bus 0");
    }
    problem = vblk_start(&disk, &setup);
    if (problem) {
        bail_out(problem);
    }
    if (setup.features & ~disk.features & VIRTIO_F_RING_PACKED) {
        bail_out("packed=on: the device does not offer packed rings");
    }
}

static void set_job(Job *job)
{
    job->type = arg_is("op", "write")   ? VIRTIO_BLK_T_OUT
                : arg_is("op", "flush") ? VIRTIO_BLK_T_FLUSH
                                        : VIRTIO_BLK_T_IN;
    job->bs_bytes = (uint32_t)arg_u64("bs", 4096, VIRTIO_BLK_SECTOR_BYTES,
                                      MAX_BS_BYTES);
    job->nb_blocks = disk.capacity_sectors /
                     (job->bs_bytes / VIRTIO_BLK_SECTOR_BYTES);
    job->sequential = arg_is("pattern", "seq");
    job->run_cycles = tsc_from_ms(
        arg_u64("ms", arg_u64("seconds", 1, 1, 600) * 1000, 1, 600000));
    job->warmup_cycles = tsc_from_ms(arg_u64("warmup_ms", 100, 0, 60000));
    if (job->bs_bytes % VIRTIO_BLK_SECTOR_BYTES || job->nb_blocks == 0) {
        bail_out("bs= is no multiple of 512 or larger than the disk");
    }
}

static void set_workers(const Job *job, uint32_t nb_cpus, uint64_t max_depth)
{
    for (uint32_t i = 0; i < nb_cpus; i++) {
        Worker *w = &workers[i];

        w->job = job;
        w->disk = &disk;
        w->first_queue = (uint16_t)i;
        w->queue_step = (uint16_t)nb_cpus;
        w->random = SEED * (i + 1);
        w->next_block = job->nb_blocks / nb_cpus * i;
        for (uint16_t k = w->first_queue; k < disk.nb_queues;
             k = (uint16_t)(k + w->queue_step)) {
            w->buffers[k] = mem_alloc(max_depth * job->bs_bytes, PAGE_BYTES);
            w->offered[k] = mem_alloc(max_depth * sizeof(uint64_t), 64);
        }
    }
}

void payload_main(void)
{
    uint64_t depths[MAX_DEPTHS] = { 1, 8, 32, 64 };
    size_t nb_depths = arg_get_list("depth", depths, MAX_DEPTHS);
    uint64_t max_depth = 0;
    uint32_t nb_cpus = (uint32_t)arg_u64("cpus", 1, 1, MAX_CPUS);
    Job job;

    nb_depths = nb_depths ? nb_depths : 4;
    con_printf("blk-perf: tsc %lu kHz\n", boot_info.tsc_khz);
    start_disk();
    set_job(&job);
    for (size_t i = 0; i < nb_depths; i++) {
        max_depth = depths[i] > max_depth ? depths[i] : max_depth;
        if (depths[i] == 0 || depths[i] > disk.queues[0].nb_slots) {
            bail_out("a depth is 0 or larger than the queue allows "
                     "(indirect=on allows 3 times as much)");
        }
    }
    if (nb_cpus > disk.nb_queues || smp_start(nb_cpus) != nb_cpus) {
        bail_out("not that many processors, or more than queues");
    }
    set_workers(&job, nb_cpus, max_depth);
    for (size_t i = 0; i < nb_depths; i++) {
        run_depth(&job, nb_cpus, depths[i]);
    }
    con_printf("perf-done\n");
}
