/*
 * blk-chaos - random nonsense in the rings of one disk, while another is used properly
 *
 * Command line (all optional):
 *   seed=N     what all randomness comes from (default: the clock); it is printed
 *   descs=N    how many descriptors to write before the end (default 1M; 0: never end)
 *   round=N    begin with that round, to see again what a failure told of
 *   transport=pci|mmio, packed=on, irq=on, vmm=qemu   as for blk-smoke
 *
 * A round starts the device with some set-up, spoils its rings, rings doorbells, pokes registers,
 * and resets it. Whatever the device made of it,
 *
 *   1. it has sent back every chain that it was given, or says NEEDS_RESET (unless what it was
 *      given lay over the ring, or was no chain),
 *   2. queue 0, which is used properly, answers (on penstock; QEMU stops a broken device), unless
 *      registers were poked in this round,
 *   3. the second disk answers, and has kept its data,
 *   4. the status reads 0 after the reset,
 *   5. and every WORKS_ROUNDS rounds, all queues of the device move data.
 *
 * How often something is wrong differs from round to round, down to never.
 *
 * What the device may be told to write to is an arena at the end of RAM and the rings themselves.
 * What it reads from the disk there was never written to, so no table of descriptors ever consists
 * of another table's bytes, shifted, which could name the payload's own memory.
 */
#include "guest-tests/lib/args.h"
#include "guest-tests/lib/boot.h"
#include "guest-tests/lib/console.h"
#include "guest-tests/lib/harness-serial.h"
#include "guest-tests/lib/str.h"
#include "guest-tests/lib/tsc.h"
#include "guest-tests/lib/virtio-blk.h"

#define SECTOR           VIRTIO_BLK_SECTOR_BYTES
#define ARENA_BYTES      (1u << 20)
#define LAPIC_GPA        0xfee00000ull
#define WORKS_ROUNDS     32
#define ANSWER_MS        10000
#define TABLE_BYTES      512
#define UNACCOUNTABLE_MS 2
#define PROGRESS_DESCS   (16u << 20)
#define MAX_SIZE         256
#define NB_BATCHES       4

/* Sectors: what chaos reads, what it writes, what is kept for the checks. */
#define READ_SECTOR  0u
#define WRITE_SECTOR 4096u
#define CHECK_SECTOR 16384u
#define NB_SECTORS   4096u

typedef struct {
    VblkDevice disk;
    VblkDevice other;
    uint64_t arena_gpa;
    uint8_t *buffer;
    uint64_t random;
    uint32_t next_table;
    uint64_t descs; /* written so far */
    uint64_t rounds;
    uint64_t broken;    /* rounds that ended with NEEDS_RESET */
    uint32_t temper;    /* of this round: mischief is that much rarer; 0: never done */
    bool poked;         /* registers, in this round */
    bool unaccountable; /* in this round: what comes back says nothing */
    bool packed, irq, qemu;
} Chaos;

static Chaos chaos;

/* --- chance --- */

static uint64_t next_random(void)
{
    uint64_t z = (chaos.random += 0x9e3779b97f4a7c15ull);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static uint32_t below(uint32_t n)
{
    return (uint32_t)(next_random() >> 32) % n;
}

static bool once_in(uint32_t n)
{
    return below(n) == 0;
}

/* Something that can break a ring. */
static bool mischief(uint32_t n)
{
    return chaos.temper && once_in(n * chaos.temper);
}

static uint64_t some_gpa(void)
{
    uint64_t in_arena = chaos.arena_gpa + below(ARENA_BYTES);

    switch (below(64)) {
    case 0:
        return mem_hole_gpa() + below(4096);
    case 1:
        return UINT64_MAX - below(4096);
    case 2:
        return LAPIC_GPA + below(4096);
    case 3:
        return vdev_registers_gpa(&chaos.disk.dev) + below(256);
    case 4:
        return mem_ram_end_gpa() - below(64);
    case 5:
        return next_random();
    case 6:
        chaos.unaccountable = true;
        return mem_gpa(chaos.disk.queues[below(chaos.disk.nb_queues)].ring.desc) + below(8192);
    default:
        return in_arena & ~(uint64_t)15;
    }
}

static uint32_t some_len(void)
{
    switch (below(64)) {
    case 0:
        return 0;
    case 1:
        return (uint32_t)next_random();
    case 2:
        return UINT32_MAX - below(16);
    case 3:
        return below(ARENA_BYTES);
    default:
        return 1 + below(4096);
    }
}

static uint16_t some_flags(void)
{
    return once_in(16) ? (uint16_t)next_random() : (uint16_t)below(8);
}

/* --- requests that are almost right --- */

static void write_header(uint64_t gpa)
{
    static const uint32_t types[] = { VIRTIO_BLK_T_IN,      VIRTIO_BLK_T_OUT,
                                      VIRTIO_BLK_T_FLUSH,   VIRTIO_BLK_T_GET_ID,
                                      VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES };
    VirtioBlkHeader *header = (VirtioBlkHeader *)(uintptr_t)gpa;

    header->type = once_in(16) ? (uint32_t)next_random() | 0x100 : types[below(6)];
    header->reserved = (uint32_t)next_random();
    header->sector = header->type == VIRTIO_BLK_T_IN ? READ_SECTOR + below(NB_SECTORS)
                                                     : WRITE_SECTOR + below(NB_SECTORS);
    if (once_in(32)) {
        header->sector |= next_random() << 40;
    }
}

/* Header, data, status; two of them ranges in the arena that a discard would take for its own. */
static unsigned make_chain(VringDesc *descs)
{
    uint64_t header_gpa = chaos.arena_gpa + below(ARENA_BYTES / 2 / 64) * 64;
    uint64_t data_gpa = chaos.arena_gpa + ARENA_BYTES / 2 + below(ARENA_BYTES / 4 / 512 - 8) * 512;
    uint16_t data_flags = (uint16_t)(below(2) * VRING_DESC_F_WRITE);
    VirtioBlkRange range = { WRITE_SECTOR + below(NB_SECTORS), below(64), below(2) };
    unsigned n = 0;

    write_header(header_gpa);
    memcpy((void *)(uintptr_t)data_gpa, &range, sizeof(range));
    descs[n++] = (VringDesc){ header_gpa, sizeof(VirtioBlkHeader), 0, 0 };
    for (unsigned i = below(3); i > 0; i--) {
        descs[n++] = (VringDesc){ data_gpa, once_in(4) ? 16 : SECTOR << below(4), data_flags, 0 };
    }
    descs[n++] = (VringDesc){ header_gpa + 32, 1, VRING_DESC_F_WRITE, 0 };
    for (unsigned i = 0; i < n; i++) {
        descs[i].flags |= i + 1 < n ? VRING_DESC_F_NEXT : 0;
    }
    if (mischief(8)) {
        VringDesc *spoiled = &descs[below(n)];

        switch (below(3)) {
        case 0:
            spoiled->addr = some_gpa();
            break;
        case 1:
            spoiled->len = some_len();
            break;
        default:
            spoiled->flags ^= (uint16_t)(1u << below(3));
            chaos.unaccountable |= chaos.packed; /* the chain may end elsewhere now */
            break;
        }
    }
    return n;
}

/* A chain in an indirect table, whose entries are laid out as the ring's format has it. */
static VringDesc make_indirect(void)
{
    /* One behind the other, so that none in use is written over. */
    uint64_t gpa = chaos.arena_gpa + ARENA_BYTES * 3 / 4 +
                   chaos.next_table++ % (ARENA_BYTES / 4 / TABLE_BYTES) * TABLE_BYTES;
    VringDesc descs[8];
    unsigned n = make_chain(descs);

    for (unsigned i = 0; i < n; i++) {
        if (chaos.packed) {
            ((VringPackedDesc *)(uintptr_t)gpa)[i] =
                (VringPackedDesc){ .addr = descs[i].addr,
                                   .len = descs[i].len,
                                   .flags = descs[i].flags & VRING_DESC_F_WRITE };
        } else {
            descs[i].next = mischief(64) ? (uint16_t)next_random() : (uint16_t)(i + 1);
            ((VringDesc *)(uintptr_t)gpa)[i] = descs[i];
        }
    }
    chaos.descs += n;
    uint16_t flags = VRING_DESC_F_INDIRECT;
    if (mischief(32)) {
        flags |= some_flags();
        chaos.unaccountable |= chaos.packed;
    }
    return (VringDesc){ gpa, mischief(32) ? some_len() : n * (uint32_t)sizeof(VringDesc), flags,
                        0 };
}

/* --- one queue --- */

/* Each returns how many chains it has offered. */
static unsigned offer_split(VblkQueue *q)
{
    Vring *r = &q->ring;
    uint16_t at = 0;
    unsigned nb_heads = 0;

    while (at + 8u <= r->size) {
        VringDesc descs[8];
        unsigned n = 1;

        if (q->indirect && once_in(2)) {
            descs[0] = make_indirect();
        } else {
            n = make_chain(descs);
        }
        for (unsigned i = 0; i < n; i++) {
            uint16_t next = mischief(64) ? (uint16_t)next_random() : (uint16_t)(at + i + 1);

            vring_set_desc(r, (uint16_t)(at + i), descs[i].addr, descs[i].len, descs[i].flags,
                           next);
        }
        vring_offer(r, mischief(64) ? (uint16_t)next_random() : at);
        nb_heads++;
        at = (uint16_t)(at + n);
        chaos.descs += n;
    }
    *vring_used_event(r) = (uint16_t)next_random();
    if (mischief(32)) {
        r->avail_next = (uint16_t)(r->avail_next + below(0x10000));
        chaos.unaccountable = true;
    }
    return nb_heads;
}

static unsigned offer_packed(VblkQueue *q)
{
    VringPacked *p = &q->ring.packed;
    uint16_t left = p->size;
    unsigned nb_chains = 0;

    while (left >= 8) {
        VringDesc descs[8];
        uint16_t id = mischief(64) ? (uint16_t)next_random() : (uint16_t)(left - 1);
        unsigned n = 1;

        if (q->indirect && once_in(2)) {
            descs[0] = make_indirect();
        } else {
            n = make_chain(descs);
        }
        for (unsigned i = 0; i < n; i++) {
            uint16_t owner = mischief(256) ? (uint16_t)next_random() : 0;

            vring_packed_put(p, descs[i].addr, descs[i].len, descs[i].flags ^ owner, id);
            chaos.unaccountable |= owner;
        }
        vring_packed_chain(p, id, (uint16_t)n);
        chaos.unaccountable |= id >= p->size; /* its length is not known any more */
        left = (uint16_t)(left - n);
        nb_chains++;
        chaos.descs += n;
    }
    *p->driver_event = (uint32_t)next_random();
    return nb_chains;
}

static bool is_broken(void)
{
    return vdev_get_status(&chaos.disk.dev) & VIRTIO_STATUS_NEEDS_RESET;
}

/* Wait for @nb chains; false if the device is broken, or nothing can be said. */
static bool take_back(VblkQueue *q, unsigned nb)
{
    uint64_t start = cpu_rdtsc();
    uint64_t limit = tsc_from_ms(chaos.unaccountable ? UNACCOUNTABLE_MS : ANSWER_MS);
    unsigned nb_taken = 0;
    uint32_t id, len_bytes;

    while (nb_taken < nb) {
        if (vring_take(&q->ring, &id, &len_bytes)) {
            nb_taken++;
        } else if (cpu_rdtsc() - start > tsc_from_ms(1) && is_broken()) {
            return false;
        } else if (cpu_rdtsc() - start > limit) {
            if (!chaos.unaccountable) {
                TEST_FAIL("queue %u: %u of %u chains came back, and no NEEDS_RESET", q->ring.index,
                          nb_taken, nb);
            }
            return false;
        }
    }
    return true;
}

static void spoil_queue(VblkQueue *q)
{
    bool goes_on = true;

    for (unsigned i = 0; i < NB_BATCHES && goes_on; i++) {
        unsigned nb = chaos.packed ? offer_packed(q) : offer_split(q);

        vring_publish(&q->ring);
        if (once_in(2)) {
            vring_kick(&q->ring);
        }
        goes_on = take_back(q, nb);
    }
}

/* --- registers --- */

static void poke_registers(void)
{
    Vdev *d = &chaos.disk.dev;
    uint16_t index = once_in(4) ? (uint16_t)next_random() : (uint16_t)below(chaos.disk.nb_queues);

    chaos.poked = true;
    switch (below(6)) {
    case 0:
        vdev_set_status(d, (uint8_t)(next_random() | 1));
        break;
    case 1:
        vdev_set_features(d, next_random());
        break;
    case 2:
        vdev_setup_queue(d, index, (uint16_t)next_random(), some_gpa() & ~15ull,
                         some_gpa() & ~15ull, some_gpa() & ~15ull);
        break;
    case 3:
        for (int i = 0; i < 8; i++) {
            mmio_write8(d->config + below(64), (uint8_t)next_random());
        }
        break;
    case 4:
        if (!chaos.qemu && (chaos.disk.features & VIRTIO_F_RING_RESET)) {
            vdev_reset_queue(d, (uint16_t)below(chaos.disk.nb_queues));
        }
        break;
    default:
        vdev_get_queue_size(d, index);
        break;
    }
}

/* --- one round --- */

static void check_other(void)
{
    VblkQueue *q = &chaos.other.queues[0];
    uint64_t sector = CHECK_SECTOR / 2 + below(1024) * 8;
    uint64_t *words = (uint64_t *)chaos.buffer;

    words[0] = sector;
    words[SECTOR / 8 - 1] = chaos.rounds;
    ASSERT_EQ(vblk_do(q, VIRTIO_BLK_T_OUT, sector, chaos.buffer, SECTOR), VIRTIO_BLK_S_OK);
    words[0] = words[SECTOR / 8 - 1] = 0;
    ASSERT_EQ(vblk_do(q, VIRTIO_BLK_T_IN, sector, chaos.buffer, SECTOR), VIRTIO_BLK_S_OK);
    ASSERT_EQ(words[0], sector);
    ASSERT_EQ(words[SECTOR / 8 - 1], chaos.rounds);
}

static void check_queue(VblkQueue *q)
{
    uint64_t *words = (uint64_t *)chaos.buffer;
    uint64_t mark = next_random();

    words[0] = words[SECTOR / 8 - 1] = mark;
    ASSERT_EQ(vblk_do(q, VIRTIO_BLK_T_OUT, CHECK_SECTOR, chaos.buffer, SECTOR), VIRTIO_BLK_S_OK);
    words[0] = words[SECTOR / 8 - 1] = 0;
    ASSERT_EQ(vblk_do(q, VIRTIO_BLK_T_IN, CHECK_SECTOR, chaos.buffer, SECTOR), VIRTIO_BLK_S_OK);
    ASSERT_EQ(words[0], mark);
    ASSERT_EQ(words[SECTOR / 8 - 1], mark);
}

static void start_disk(uint64_t features, uint16_t nb_queues, uint16_t size)
{
    const VblkSetup setup = {
        .features = features | (chaos.packed ? VIRTIO_F_RING_PACKED : 0),
        .nb_queues = nb_queues,
        .queue_size = size,
        .interrupts = chaos.irq,
    };
    const char *problem = vblk_start(&chaos.disk, &setup);

    if (problem) {
        TEST_FAIL("%s", problem);
    }
}

static const uint64_t every_feature =
    VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_RING_RESET | VIRTIO_BLK_F_MQ |
    VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_CONFIG_WCE | VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES;

static void run_round(void)
{
    static const uint32_t tempers[] = { 0, 1, 4, 16, 64 };
    uint16_t nb_queues = (uint16_t)(1 + below(chaos.disk.max_queues));
    bool has_honest = nb_queues > 1;

    chaos.poked = chaos.unaccountable = false;
    chaos.temper = tempers[below(5)];
    start_disk(every_feature & ~(next_random() & (VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX)),
               nb_queues, MAX_SIZE);
    for (uint16_t i = has_honest; i < nb_queues; i++) {
        spoil_queue(&chaos.disk.queues[i]);
    }
    if (mischief(1)) {
        poke_registers();
    }
    chaos.broken += is_broken();
    /* QEMU declares the device broken for a discard without a range as well. */
    ASSERT_TRUE(chaos.temper || chaos.qemu || !is_broken());
    if (has_honest && !chaos.poked && !(chaos.qemu && is_broken())) {
        check_queue(&chaos.disk.queues[0]);
    }
    check_other();
    ASSERT_TRUE(vdev_reset(&chaos.disk.dev));
    if (chaos.rounds % WORKS_ROUNDS == 0) {
        start_disk(every_feature, chaos.disk.max_queues, MAX_SIZE);
        for (uint16_t i = 0; i < chaos.disk.max_queues; i++) {
            check_queue(&chaos.disk.queues[i]);
        }
    }
}

static uint64_t seed(void)
{
    static uint64_t value;

    if (!value && !arg_get_u64("seed", &value)) {
        value = cpu_rdtsc() % 1000000000;
    }
    return value;
}

FIXTURE(chaos)
{
    uint64_t max_descs;
};

FIXTURE_SETUP(chaos)
{
    TEST_SKIP_IF(chaos.qemu && chaos.packed,
                 "QEMU spins on a packed ring that it has found broken");
    self->max_descs = 1u << 20;
    arg_get_u64("descs", &self->max_descs);
    arg_get_u64("round", &chaos.rounds);
}

/* Also after a failure: this is what brings it back. */
FIXTURE_TEARDOWN(chaos)
{
    harness_note("seed=%lu round=%lu: %lu descriptors, %lu rounds broke the device", seed(),
                 chaos.rounds, chaos.descs, chaos.broken);
}

TEST_F_TIMEOUT(chaos, random_rings_do_no_harm, 3600)
{
    uint64_t told = 0;

    do {
        chaos.random = seed() ^ chaos.rounds << 32;
        run_round();
        chaos.rounds++;
        if (chaos.descs - told >= PROGRESS_DESCS) {
            told = chaos.descs;
            harness_note("%lu rounds, %lu descriptors", chaos.rounds, chaos.descs);
        }
    } while (self->max_descs == 0 || chaos.descs < self->max_descs);
    EXPECT_GT(chaos.broken, 0); /* or it was no nonsense */
}

static void bail_out(const char *why)
{
    con_printf("Bail out! %s\n", why);
    con_reset_machine();
}

static void prepare(void)
{
    const VblkSetup plain = { .nb_queues = 1, .features = VIRTIO_F_EVENT_IDX };
    VdevTransport transport = arg_is("transport", "mmio") ? VDEV_MMIO : VDEV_PCI;
    const char *problem;

    chaos.packed = arg_is("packed", "on");
    chaos.irq = arg_is("irq", "on");
    chaos.qemu = arg_is("vmm", "qemu");
    chaos.arena_gpa = mem_ram_end_gpa() - ARENA_BYTES;
    chaos.buffer = mem_alloc(SECTOR, 4096);
    harness_note("seed=%lu", seed());
    if (!vblk_open(&chaos.disk, transport, 0, false) ||
        !vblk_open(&chaos.other, transport, 1, false)) {
        bail_out("there are not two virtio-blk devices");
    }
    problem = vblk_start(&chaos.other, &plain);
    if (problem) {
        bail_out(problem);
    }
}

void payload_main(void)
{
    harness_run(prepare);
}
