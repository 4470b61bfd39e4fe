/*
 * blk-smoke: what no driver should do
 *
 * Whatever it is, the device answers within SMOKE_WAIT_MS, with NEEDS_RESET or
 * by completing the request, and works again after a reset.  Where only one
 * answer is right the case says so.  A piece of nonsense is a function that
 * puts it in queue 0 of a freshly started device and rings the doorbell.
 */
#include "guest-tests/lib/str.h"
#include "guest-tests/lib/tsc.h"
#include "guest-tests/payload/blk-smoke.h"

#define IN        VRING_DESC_F_WRITE
#define INDIRECT  VRING_DESC_F_INDIRECT
#define NEXT      VRING_DESC_F_NEXT
#define LAPIC_GPA 0xfee00000ull

/* What the device may answer. */
typedef enum {
    EXPECT_NEEDS_RESET,
    EXPECT_REFUSAL, /* or completion with an error status */
    EXPECT_ANSWER,  /* or completion with any */
} Expect;

static VirtioBlkHeader header;
static volatile uint8_t status;
static VringDesc *table; /* SMOKE_BUFFER_BYTES of smoke.out, for indirect */

static VblkQueue *queue(void)
{
    return &smoke.disk.queues[0];
}

static Vring *ring(void)
{
    return &queue()->ring;
}

static bool begin(uint64_t without)
{
    TEST_SKIP_IF(smoke.qemu && smoke.packed,
                 "QEMU spins on a packed ring that it has found broken");
    TEST_SKIP_IF(smoke.qemu && smoke.irq && smoke.disk.dev.transport == VDEV_MMIO,
                 "QEMU interrupts without end over MMIO once a ring is broken");
    table = (VringDesc *)smoke.out;
    header = (VirtioBlkHeader){ .type = VIRTIO_BLK_T_IN };
    status = VBLK_STATUS_PENDING;
    return smoke_start(without);
}

static bool is_expected(Outcome outcome, Expect expect)
{
    switch (outcome) {
    case OUTCOME_NEEDS_RESET:
        return true;
    case OUTCOME_COMPLETED:
        if (expect == EXPECT_REFUSAL) {
            return status != VIRTIO_BLK_S_OK;
        }
        return expect == EXPECT_ANSWER;
    default:
        return false;
    }
}

/* See how the device takes it, and that it lives on after a reset. */
static bool survives(Expect expect)
{
    uint32_t used_len;
    Outcome outcome = smoke_outcome(queue(), &used_len);

    if (!is_expected(outcome, expect)) {
        harness_note("%s, status byte %02x", outcome == OUTCOME_SILENCE ? "no answer" : "completed",
                     status);
        return false;
    }
    return smoke_works();
}

/* Where the specification leaves it open, and QEMU goes on, penstock promises a refusal. */
static Expect promised(void)
{
    return smoke.qemu ? EXPECT_ANSWER : EXPECT_NEEDS_RESET;
}

static bool succeeds(void)
{
    uint32_t used_len;

    return smoke_outcome(queue(), &used_len) == OUTCOME_COMPLETED && status == VIRTIO_BLK_S_OK;
}

/* A chain of three, or what is left of it after one field was spoiled. */
static void offer_read(uint64_t header_gpa, uint64_t data_gpa, uint32_t len_bytes,
                       uint64_t status_gpa)
{
    const VringDesc descs[] = {
        { header_gpa, sizeof(header), 0, 0 },
        { data_gpa, len_bytes, IN, 0 },
        { status_gpa, 1, IN, 0 },
    };

    smoke_offer_chain(queue(), descs, 3);
}

/* Of a split ring. */
static void offer_head(uint16_t head)
{
    vring_offer(ring(), head);
    vring_publish(ring());
}

static void offer_table(uint64_t gpa, uint32_t len_bytes, uint16_t flags)
{
    if (smoke.packed) {
        vring_packed_put(&ring()->packed, gpa, len_bytes, INDIRECT | flags, 0);
        vring_packed_chain(&ring()->packed, 0, 1);
        vring_publish(ring());
        return;
    }
    vring_set_desc(ring(), 0, gpa, len_bytes, INDIRECT | flags, 1);
    vring_set_desc(ring(), 1, mem_gpa(&status), 1, IN, 0);
    offer_head(0);
}

/* An entry of an indirect table; in a packed ring it has no next, and of flags only WRITE. */
static void set_entry(uint32_t i, uint64_t gpa, uint32_t len_bytes, uint16_t flags, uint16_t next)
{
    if (smoke.packed) {
        ((VringPackedDesc *)table)[i] =
            (VringPackedDesc){ .addr = gpa, .len = len_bytes, .flags = flags & IN };
    } else {
        table[i] = (VringDesc){ gpa, len_bytes, flags, next };
    }
}

/* A sound table of three, to be spoiled. */
static void fill_table(void)
{
    set_entry(0, mem_gpa(&header), sizeof(header), NEXT, 1);
    set_entry(1, mem_gpa(smoke.in), 512, IN | NEXT, 2);
    set_entry(2, mem_gpa(&status), 1, IN, 0);
}

TEST(hostile, a_chain_that_loops_needs_a_reset)
{
    smoke_need_split("links");
    ASSERT_TRUE(begin(0));
    vring_set_desc(ring(), 0, mem_gpa(&header), 16, NEXT, 1);
    vring_set_desc(ring(), 1, mem_gpa(smoke.in), 512, IN | NEXT, 1);
    offer_head(0);
    ASSERT_TRUE(survives(EXPECT_NEEDS_RESET));
}

/* The ISR byte says so with MSI-X as well (VIRTIO 1.2, 4.1.4.5.1). */
static void check_configuration_interrupt(bool interrupts)
{
    const VblkSetup setup = { .nb_queues = 1, .interrupts = interrupts };
    uint32_t used_len;

    TEST_SKIP_IF(interrupts && smoke.disk.dev.transport == VDEV_MMIO,
                 "the handler has acknowledged it already");
    ASSERT_TRUE(begin(0));
    ASSERT_TRUE(smoke_start_with(&setup));
    vdev_take_isr(&smoke.disk.dev);
    offer_read(mem_gpa(&header), mem_gpa(smoke.in), 0, mem_gpa(&status));
    ASSERT_EQ(smoke_outcome(queue(), &used_len), OUTCOME_NEEDS_RESET);
    for (int i = 0; i < 10000; i++) {
        if (vdev_take_isr(&smoke.disk.dev) & 2) {
            ASSERT_TRUE(smoke_works());
            return;
        }
    }
    TEST_FAIL("the configuration bit never came up");
}

TEST(hostile, needs_reset_raises_the_configuration_interrupt)
{
    check_configuration_interrupt(false);
}

TEST(hostile, needs_reset_sets_the_isr_with_a_vector_each_too)
{
    check_configuration_interrupt(true);
}

TEST(hostile, a_head_outside_the_table_needs_a_reset)
{
    smoke_need_split("heads");
    ASSERT_TRUE(begin(0));
    offer_head(ring()->size);
    ASSERT_TRUE(survives(EXPECT_NEEDS_RESET));
    ASSERT_TRUE(begin(0));
    offer_head(0xffff);
    ASSERT_TRUE(survives(EXPECT_NEEDS_RESET));
}

TEST(hostile, a_next_outside_the_table_needs_a_reset)
{
    smoke_need_split("links");
    ASSERT_TRUE(begin(0));
    vring_set_desc(ring(), 0, mem_gpa(&header), 16, NEXT, ring()->size);
    offer_head(0);
    ASSERT_TRUE(survives(EXPECT_NEEDS_RESET));
    ASSERT_TRUE(begin(0));
    vring_set_desc(ring(), 0, mem_gpa(&header), 16, NEXT, 0xffff);
    offer_head(0);
    ASSERT_TRUE(survives(EXPECT_NEEDS_RESET));
}

TEST(hostile, an_index_that_jumps_needs_a_reset)
{
    static const uint16_t jumps[] = { 1, 100, 0x7fff };

    smoke_need_split("index");
    for (size_t i = 0; i < sizeof(jumps) / sizeof(jumps[0]); i++) {
        ASSERT_TRUE(begin(0));
        ring()->avail->idx = (uint16_t)(ring()->size + jumps[i]);
        vring_kick(ring());
        ASSERT_TRUE(survives(EXPECT_NEEDS_RESET));
    }
}

TEST(hostile, an_index_that_goes_backwards_needs_a_reset)
{
    smoke_need_split("index");
    ASSERT_TRUE(begin(0));
    ASSERT_EQ(vblk_do(queue(), VIRTIO_BLK_T_IN, 0, smoke.in, 512), VIRTIO_BLK_S_OK);
    ring()->avail->idx = 0;
    vring_kick(ring());
    ASSERT_TRUE(survives(EXPECT_NEEDS_RESET));
}

/* QEMU copies through a bounce buffer: the hole reads as 0 and takes writes. */
static Expect refusal_of_bad_address(void)
{
    return smoke.qemu ? EXPECT_ANSWER : EXPECT_REFUSAL;
}

TEST(hostile, an_address_outside_memory_is_refused)
{
    const uint64_t hole = mem_hole_gpa();
    const uint64_t good = mem_gpa(smoke.in);

    ASSERT_TRUE(begin(0));
    offer_read(hole, good, 512, mem_gpa(&status));
    ASSERT_TRUE(survives(refusal_of_bad_address()));
    ASSERT_TRUE(begin(0));
    offer_read(mem_gpa(&header), hole, 512, mem_gpa(&status));
    ASSERT_TRUE(survives(refusal_of_bad_address()));
    ASSERT_TRUE(begin(0));
    offer_read(mem_gpa(&header), good, 512, hole);
    ASSERT_TRUE(survives(refusal_of_bad_address()));
}

TEST(hostile, an_address_that_wraps_is_refused)
{
    ASSERT_TRUE(begin(0));
    offer_read(mem_gpa(&header), UINT64_MAX - 4095, 8192, mem_gpa(&status));
    ASSERT_TRUE(survives(refusal_of_bad_address()));
    ASSERT_TRUE(begin(0));
    offer_read(UINT64_MAX - 7, mem_gpa(smoke.in), 512, mem_gpa(&status));
    ASSERT_TRUE(survives(refusal_of_bad_address()));
}

TEST(hostile, a_buffer_that_leaves_memory_is_refused)
{
    const uint64_t end = mem_ram_end_gpa();

    ASSERT_TRUE(begin(0));
    offer_read(mem_gpa(&header), end - 512, 1u << 30, mem_gpa(&status));
    ASSERT_TRUE(survives(EXPECT_REFUSAL));
    ASSERT_TRUE(begin(0));
    offer_read(mem_gpa(&header), mem_gpa(smoke.in), 0xfffffe00u, mem_gpa(&status));
    ASSERT_TRUE(survives(EXPECT_REFUSAL));
}

TEST(hostile, device_memory_is_no_buffer)
{
    TEST_SKIP_IF(smoke.qemu, "QEMU lets the device write to itself, and hangs");
    ASSERT_TRUE(begin(0));
    offer_read(mem_gpa(&header), LAPIC_GPA, 512, mem_gpa(&status));
    ASSERT_TRUE(survives(EXPECT_REFUSAL));
    ASSERT_TRUE(begin(0));
    offer_read(mem_gpa(&header), vdev_registers_gpa(&smoke.disk.dev), 512, mem_gpa(&status));
    ASSERT_TRUE(survives(EXPECT_REFUSAL));
}

TEST(hostile, a_chain_without_a_status_byte_is_refused)
{
    const VringDesc descs[] = {
        { mem_gpa(&header), sizeof(header), 0, 0 },
        { mem_gpa(smoke.in), 512, 0, 0 },
    };

    ASSERT_TRUE(begin(0));
    smoke_offer_chain(queue(), descs, 2);
    ASSERT_TRUE(survives(EXPECT_REFUSAL));
}

TEST(hostile, a_chain_without_a_header_is_refused)
{
    const VringDesc no_header[] = {
        { mem_gpa(smoke.in), 512, IN, 0 },
        { mem_gpa(&status), 1, IN, 0 },
    };
    const VringDesc short_header[] = {
        { mem_gpa(&header), 15, 0, 0 },
        { mem_gpa(&status), 1, IN, 0 },
    };

    ASSERT_TRUE(begin(0));
    smoke_offer_chain(queue(), no_header, 2);
    ASSERT_TRUE(survives(EXPECT_REFUSAL));
    ASSERT_TRUE(begin(0));
    smoke_offer_chain(queue(), short_header, 2);
    ASSERT_TRUE(survives(EXPECT_REFUSAL));
}

TEST(hostile, a_readable_descriptor_after_a_writable_one_is_refused)
{
    const VringDesc descs[] = {
        { mem_gpa(smoke.in), 512, IN, 0 },
        { mem_gpa(&header), sizeof(header), 0, 0 },
        { mem_gpa(&status), 1, IN, 0 },
    };

    ASSERT_TRUE(begin(0));
    smoke_offer_chain(queue(), descs, 3);
    ASSERT_TRUE(survives(EXPECT_REFUSAL));
}

TEST(hostile, an_empty_descriptor_gets_an_answer)
{
    ASSERT_TRUE(begin(0));
    offer_read(mem_gpa(&header), mem_gpa(smoke.in), 0, mem_gpa(&status));
    ASSERT_TRUE(survives(EXPECT_ANSWER));
}

TEST(hostile, data_over_the_ring_or_the_status_gets_an_answer)
{
    ASSERT_TRUE(begin(0));
    offer_read(mem_gpa(&header), mem_gpa(ring()->desc), 4096, mem_gpa(&status));
    ASSERT_TRUE(survives(EXPECT_ANSWER));
    ASSERT_TRUE(begin(0));
    offer_read(mem_gpa(&header), mem_gpa(smoke.in), 512, mem_gpa(smoke.in) + 100);
    ASSERT_TRUE(survives(EXPECT_ANSWER));
}

TEST(hostile, the_same_head_twice_gets_an_answer)
{
    smoke_need_split("heads");
    ASSERT_TRUE(begin(0));
    vring_set_desc(ring(), 0, mem_gpa(&header), 16, NEXT, 1);
    vring_set_desc(ring(), 1, mem_gpa(smoke.in), 4096, IN | NEXT, 2);
    vring_set_desc(ring(), 2, mem_gpa(&status), 1, IN, 0);
    for (uint16_t i = 0; i < ring()->size; i++) {
        vring_offer(ring(), 0);
    }
    vring_publish(ring());
    ASSERT_TRUE(survives(promised()));
}

TEST(hostile, an_indirect_table_of_a_bad_length_is_refused)
{
    static const uint32_t lens_bytes[] = { 0, 8, 17, 0xffffffff };

    TEST_SKIP_IF(!(smoke.offered & VIRTIO_F_INDIRECT_DESC), "not offered");
    for (size_t i = 0; i < sizeof(lens_bytes) / sizeof(lens_bytes[0]); i++) {
        ASSERT_TRUE(begin(0));
        fill_table();
        offer_table(mem_gpa(table), lens_bytes[i], 0);
        ASSERT_TRUE(survives(EXPECT_REFUSAL));
    }
}

TEST(hostile, an_indirect_table_outside_memory_is_refused)
{
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_F_INDIRECT_DESC), "not offered");
    ASSERT_TRUE(begin(0));
    offer_table(mem_hole_gpa(), 48, 0);
    ASSERT_TRUE(survives(EXPECT_REFUSAL));
    ASSERT_TRUE(begin(0));
    offer_table(UINT64_MAX - 15, 48, 0);
    ASSERT_TRUE(survives(EXPECT_REFUSAL));
    ASSERT_TRUE(begin(0));
    offer_table(LAPIC_GPA, 48, 0);
    ASSERT_TRUE(survives(EXPECT_REFUSAL));
}

TEST(hostile, an_indirect_table_that_nests_or_loops_is_refused)
{
    smoke_need_split("links");
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_F_INDIRECT_DESC), "not offered");
    ASSERT_TRUE(begin(0));
    fill_table();
    table[1] = (VringDesc){ mem_gpa(table), 48, INDIRECT, 0 };
    offer_table(mem_gpa(table), 48, 0);
    ASSERT_TRUE(survives(EXPECT_REFUSAL));
    /* The rest of a sound chain stands in a second table. */
    ASSERT_TRUE(begin(0));
    fill_table();
    table[1] = (VringDesc){ mem_gpa(&table[8]), 32, INDIRECT, 0 };
    table[8] = (VringDesc){ mem_gpa(smoke.in), 512, IN | NEXT, 1 };
    table[9] = (VringDesc){ mem_gpa(&status), 1, IN, 0 };
    offer_table(mem_gpa(table), 48, 0);
    ASSERT_TRUE(survives(EXPECT_REFUSAL));
    ASSERT_TRUE(begin(0));
    fill_table();
    table[1].next = 1;
    offer_table(mem_gpa(table), 48, 0);
    ASSERT_TRUE(survives(EXPECT_NEEDS_RESET));
    ASSERT_TRUE(begin(0));
    fill_table();
    table[1].next = 3;
    offer_table(mem_gpa(table), 48, 0);
    ASSERT_TRUE(survives(EXPECT_NEEDS_RESET));
}

TEST(hostile, an_indirect_table_with_a_next_gets_an_answer)
{
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_F_INDIRECT_DESC), "not offered");
    ASSERT_TRUE(begin(0));
    fill_table();
    offer_table(mem_gpa(table), 48, NEXT);
    ASSERT_TRUE(survives(promised()));
}

TEST(hostile, an_indirect_table_longer_than_the_queue_gets_an_answer)
{
    const uint32_t n = SMOKE_BUFFER_BYTES / 2 / (uint32_t)sizeof(VringDesc);

    TEST_SKIP_IF(!(smoke.offered & VIRTIO_F_INDIRECT_DESC), "not offered");
    ASSERT_TRUE(begin(0));
    set_entry(0, mem_gpa(&header), sizeof(header), NEXT, 1);
    for (uint32_t i = 1; i < n - 1; i++) {
        set_entry(i, mem_gpa(smoke.in), 512, IN | NEXT, (uint16_t)(i + 1));
    }
    set_entry(n - 1, mem_gpa(&status), 1, IN, 0);
    offer_table(mem_gpa(table), n * (uint32_t)sizeof(VringDesc), 0);
    ASSERT_TRUE(survives(EXPECT_ANSWER));
}

/* VIRTIO 1.2, 2.7.5.3.1: a chain may end with one. */
TEST(hostile, an_indirect_table_may_end_a_chain_of_others)
{
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_F_INDIRECT_DESC), "not offered");
    smoke_need_split("chain before a table");
    TEST_SKIP_IF(smoke.qemu, "QEMU takes a table at the head of a chain alone");
    ASSERT_TRUE(begin(0));
    fill_table();
    vring_set_desc(ring(), 0, mem_gpa(&header), sizeof(header), NEXT, 1);
    vring_set_desc(ring(), 1, mem_gpa(table + 1), 32, INDIRECT, 0);
    set_entry(1, mem_gpa(smoke.in), 512, IN | NEXT, 1);
    offer_head(0);
    EXPECT_TRUE(succeeds());
}

TEST(hostile, the_write_flag_of_an_indirect_descriptor_is_ignored)
{
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_F_INDIRECT_DESC), "not offered");
    ASSERT_TRUE(begin(0));
    fill_table();
    offer_table(mem_gpa(table), 48, IN);
    EXPECT_TRUE(succeeds());
}

TEST(hostile, indirect_descriptors_need_to_be_negotiated)
{
    TEST_SKIP_IF(smoke.qemu, "QEMU takes them all the same");
    ASSERT_TRUE(begin(VIRTIO_F_INDIRECT_DESC));
    fill_table();
    offer_table(mem_gpa(table), 48, 0);
    ASSERT_TRUE(survives(EXPECT_REFUSAL));
}

/* --- packed rings --- */

static void put(uint64_t gpa, uint32_t len_bytes, uint16_t flags, uint16_t id)
{
    vring_packed_put(&ring()->packed, gpa, len_bytes, flags, id);
}

TEST(packed, the_same_id_twice_is_refused)
{
    smoke_need_packed();
    ASSERT_TRUE(begin(0));
    for (int i = 0; i < 8; i++) {
        put(mem_gpa(&header), sizeof(header), NEXT, 0);
        put(mem_gpa(smoke.in), 4096, IN | NEXT, 0);
        put(mem_gpa(&status), 1, IN, 0);
    }
    vring_packed_chain(&ring()->packed, 0, 3);
    vring_publish(ring());
    EXPECT_TRUE(survives(promised()));
}

TEST(packed, a_chain_that_never_ends_needs_a_reset)
{
    smoke_need_packed();
    ASSERT_TRUE(begin(0));
    for (uint16_t i = 0; i < ring()->size; i++) {
        put(mem_gpa(smoke.in), 512, IN | NEXT, 0);
    }
    vring_publish(ring());
    EXPECT_TRUE(survives(EXPECT_NEEDS_RESET));
}

/* Its second descriptor still belongs to the driver. */
TEST(packed, a_chain_that_goes_on_where_nothing_is_available_needs_a_reset)
{
    smoke_need_packed();
    ASSERT_TRUE(begin(0));
    put(mem_gpa(&header), sizeof(header), NEXT, 0);
    vring_publish(ring());
    EXPECT_TRUE(survives(EXPECT_NEEDS_RESET));
}

TEST(packed, any_id_is_as_good_as_another)
{
    static const uint16_t ids[] = { 0, 255, 256, 0x7fff, 0xffff };

    smoke_need_packed();
    for (int i = 0; i < 5; i++) {
        uint32_t id, used_len;
        uint64_t start = cpu_rdtsc();

        ASSERT_TRUE(begin(VIRTIO_F_INDIRECT_DESC));
        put(mem_gpa(&header), sizeof(header), NEXT, ids[i]);
        put(mem_gpa(smoke.in), 512, IN | NEXT, ids[i]);
        put(mem_gpa(&status), 1, IN, ids[i]);
        vring_publish(ring());
        while (!vring_packed_take(&ring()->packed, &id, &used_len)) {
            ASSERT_LT(cpu_rdtsc() - start, tsc_from_ms(SMOKE_WAIT_MS));
        }
        EXPECT_EQ(id, ids[i]);
        EXPECT_EQ(used_len, 513);
        EXPECT_EQ(status, VIRTIO_BLK_S_OK);
    }
}

/* The device's own mark on a slot that it has not used, and every other combination of flags. */
TEST(packed, flags_of_a_descriptor_can_be_anything)
{
    smoke_need_packed();
    for (uint32_t flags = 0; flags < 0x10000; flags += 0x111) {
        ASSERT_TRUE(flags % 0x1110 || begin(0));
        put(mem_gpa(smoke.in), 512, (uint16_t)flags, (uint16_t)flags);
        ring()->packed.first_flags = (uint16_t)flags;
        vring_publish(ring());
        vring_kick(ring());
    }
    EXPECT_TRUE(smoke_works());
}

TEST(packed, event_words_of_any_content_do_no_harm)
{
    uint32_t used_len;

    smoke_need_packed();
    for (uint32_t i = 0; i < 32; i++) {
        ASSERT_TRUE(begin(0));
        *ring()->packed.driver_event = i * 0x08210843u;
        offer_read(mem_gpa(&header), mem_gpa(smoke.in), 512, mem_gpa(&status));
        EXPECT_EQ(smoke_outcome(queue(), &used_len), OUTCOME_COMPLETED);
    }
    EXPECT_TRUE(smoke_works());
}

/* The device need not notice before it is asked for something, or ever. */
static bool rings_do_no_harm(uint16_t size, uint64_t desc_gpa, uint64_t avail_gpa,
                             uint64_t used_gpa)
{
    Vdev *d = &smoke.disk.dev;
    volatile void *doorbell;

    if (!begin(0) || !vdev_reset(d)) {
        return false;
    }
    vdev_set_status(d, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
    vdev_set_features(d, smoke.disk.features);
    vdev_set_status(d,
                    VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK);
    doorbell = vdev_setup_queue(d, 0, size, desc_gpa, avail_gpa, used_gpa);
    vdev_set_status(d, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER |
                           VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK);
    mmio_write16(doorbell, 0);
    tsc_wait_ms(5);
    return smoke_works();
}

TEST(hostile, rings_in_impossible_places_do_no_harm)
{
    const uint64_t desc = mem_gpa(smoke.in);
    const uint64_t avail = desc + 65536;
    const uint64_t used = avail + 65536;
    const uint64_t hole = mem_hole_gpa();

    memset(smoke.in, 0, 4 * 65536);
    ASSERT_TRUE(rings_do_no_harm(16, hole, avail, used));
    ASSERT_TRUE(rings_do_no_harm(16, desc, hole, used));
    ASSERT_TRUE(rings_do_no_harm(16, desc, avail, hole));
    ASSERT_TRUE(rings_do_no_harm(16, UINT64_MAX - 15, UINT64_MAX - 1, UINT64_MAX));
    ASSERT_TRUE(rings_do_no_harm(16, LAPIC_GPA, LAPIC_GPA, LAPIC_GPA));
    ASSERT_TRUE(rings_do_no_harm(16, desc, avail, mem_ram_end_gpa() - 8));
}

TEST(hostile, queue_sizes_out_of_range_do_no_harm)
{
    const uint64_t desc = mem_gpa(smoke.in);
    const uint64_t avail = desc + 65536;
    const uint64_t used = avail + 65536;
    static const uint16_t sizes[] = { 0, 3, 4096, 32768, 32769, 0xffff };

    memset(smoke.in, 0, SMOKE_BUFFER_BYTES);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        ASSERT_TRUE(rings_do_no_harm(sizes[i], desc, avail, used));
    }
}

TEST(hostile, doorbells_of_no_queue_do_no_harm)
{
    Vdev *d = &smoke.disk.dev;

    ASSERT_TRUE(begin(0));
    mmio_write16(ring()->doorbell, 0xffff);
    mmio_write16(ring()->doorbell, smoke.nb_queues);
    mmio_write32(ring()->doorbell, 0xffffffff);
    mmio_write8(ring()->doorbell, 0);
    if (d->transport == VDEV_PCI) {
        mmio_write16(d->pci.notify + (uint32_t)smoke.nb_queues * d->pci.notify_multiplier,
                     smoke.nb_queues);
    }
    ASSERT_TRUE(smoke_works());
}

TEST(hostile, a_storm_of_doorbells_does_no_harm)
{
    ASSERT_TRUE(begin(0));
    for (int i = 0; i < 2000; i++) {
        vring_kick(&smoke.disk.queues[i % smoke.nb_queues].ring);
    }
    ASSERT_EQ(vblk_do(queue(), VIRTIO_BLK_T_IN, 0, smoke.in, 512), VIRTIO_BLK_S_OK);
    ASSERT_TRUE(smoke_works());
}
