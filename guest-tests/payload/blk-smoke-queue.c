/*
 * blk-smoke: queues by themselves - sizes, resets of one, what one's trouble is to others
 */
#include "guest-tests/lib/args.h"
#include "guest-tests/lib/layout.h"
#include "guest-tests/lib/smp.h"
#include "guest-tests/lib/str.h"
#include "guest-tests/lib/tsc.h"
#include "guest-tests/payload/blk-smoke.h"

#define SECTOR        VIRTIO_BLK_SECTOR_BYTES
#define QUIET_MS      5
#define MARK          0x5a
#define CHUNK_BYTES   4096
#define NB_ROUNDS     4
#define BUSY_REQUESTS 200

static void read_on(VblkQueue *q)
{
    ASSERT_EQ(vblk_do(q, VIRTIO_BLK_T_IN, 0, smoke.in, SECTOR), VIRTIO_BLK_S_OK);
}

/* --- sizes --- */

TEST(queue, the_smallest_ring_works)
{
    const VblkSetup setup = {
        .features = VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX,
        .nb_queues = 1,
        .queue_size = 1,
        .interrupts = smoke.irq,
    };

    TEST_SKIP_IF(!(smoke.offered & VIRTIO_F_INDIRECT_DESC), "not offered");
    ASSERT_TRUE(smoke_start_with(&setup));
    ASSERT_EQ(smoke.disk.queues[0].ring.size, 1);
    for (int i = 0; i < 20; i++) {
        read_on(&smoke.disk.queues[0]);
    }
}

TEST(queue, a_packed_ring_need_not_have_a_power_of_2)
{
    const VblkSetup setup = {
        .features = VIRTIO_F_EVENT_IDX,
        .nb_queues = 1,
        .queue_size = 13,
        .interrupts = smoke.irq,
    };

    smoke_need_packed();
    ASSERT_TRUE(smoke_start_with(&setup));
    ASSERT_EQ(smoke.disk.queues[0].ring.size, 13);
    for (int i = 0; i < 40; i++) {
        read_on(&smoke.disk.queues[0]);
    }
}

/* --- one queue is reset, VIRTIO 1.2 section 2.6.1 --- */

static void start_resettable(void)
{
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_F_RING_RESET), "not offered");
    TEST_SKIP_IF(smoke.qemu && smoke.disk.dev.transport == VDEV_MMIO,
                 "QEMU offers it over MMIO, but has no register for it");
    ASSERT_TRUE(smoke_start_plus(VIRTIO_F_RING_RESET));
}

/* Set the queue up anew over the memory that it has. */
static void enable_again(VblkQueue *q, uint16_t size)
{
    Vring *r = &q->ring;

    ASSERT_LE(size, r->size);
    r->interrupts = false; /* a reset takes the vector away */
    r->size = size;
    r->packed.size = size;
    q->nb_slots = q->indirect ? size : size / VBLK_SLOT_DESCS;
    vring_rewind(r);
    r->doorbell = vdev_setup_queue(&smoke.disk.dev, r->index, size, mem_gpa(r->desc),
                                   mem_gpa(r->avail), mem_gpa(r->used));
}

TEST(queue, one_is_reset_and_comes_back_smaller_while_others_go_on)
{
    VblkQueue *q = &smoke.disk.queues[0];
    uint16_t old_size;

    start_resettable();
    old_size = q->ring.size;
    read_on(q);
    ASSERT_TRUE(vdev_reset_queue(&smoke.disk.dev, 0));
    EXPECT_FALSE(vdev_queue_is_enabled(&smoke.disk.dev, 0));
    for (uint16_t i = 1; i < smoke.nb_queues; i++) {
        read_on(&smoke.disk.queues[i]);
    }
    enable_again(q, 16);
    EXPECT_TRUE(vdev_queue_is_enabled(&smoke.disk.dev, 0));
    for (int i = 0; i < 40; i++) {
        read_on(q);
    }
    q->ring.size = q->ring.packed.size = old_size; /* as it was allocated */
    EXPECT_TRUE(smoke_works());
}

TEST(queue, nothing_is_written_after_the_reset_of_one_in_flight)
{
    VblkQueue *q = &smoke.disk.queues[0];

    TEST_SKIP_IF(smoke.qemu, "QEMU does not wait for what is in flight, and writes afterwards");
    for (int round = 0; round < NB_ROUNDS; round++) {
        start_resettable();
        for (uint16_t slot = 0; slot < q->nb_slots; slot++) {
            vblk_offer(q, slot, VIRTIO_BLK_T_IN, 0,
                       smoke.in + slot * CHUNK_BYTES % SMOKE_BUFFER_BYTES, CHUNK_BYTES);
        }
        vring_publish(&q->ring);
        ASSERT_TRUE(vdev_reset_queue(&smoke.disk.dev, 0));
        memset(smoke.in, MARK, SMOKE_BUFFER_BYTES);
        tsc_wait_ms(QUIET_MS);
        EXPECT_TRUE(smoke_is_all(smoke.in, SMOKE_BUFFER_BYTES, MARK));
        enable_again(q, q->ring.size);
        read_on(q);
    }
    EXPECT_TRUE(smoke_works());
}

/* --- others go on --- */

TEST(queue, others_go_on_when_one_is_broken)
{
    const VringDesc empty[] = { { mem_gpa(smoke.in), 0, 0, 0 } };
    uint32_t used_len;

    TEST_SKIP_IF(smoke.nb_queues < 2, "the device has one queue");
    TEST_SKIP_IF(smoke.qemu, "QEMU stops the whole device");
    ASSERT_TRUE(smoke_start(0));
    smoke_offer_chain(&smoke.disk.queues[0], empty, 1);
    ASSERT_EQ(smoke_outcome(&smoke.disk.queues[0], &used_len), OUTCOME_NEEDS_RESET);
    for (uint16_t i = 1; i < smoke.nb_queues; i++) {
        read_on(&smoke.disk.queues[i]);
    }
    EXPECT_TRUE(smoke_works());
}

static volatile bool stop_busy;

/* Never let the ring be empty: each completion is a new request at once. */
static void keep_busy(void *opaque)
{
    VblkQueue *q = opaque;
    uint16_t slot;

    for (slot = 0; slot < q->nb_slots; slot++) {
        vblk_offer(q, slot, VIRTIO_BLK_T_IN, slot, smoke.out, SECTOR);
    }
    vring_publish(&q->ring);
    while (!stop_busy) {
        while (vblk_take(q, &slot)) {
            vblk_offer(q, slot, VIRTIO_BLK_T_IN, slot, smoke.out, SECTOR);
        }
        vring_taken_all(&q->ring);
        vring_publish(&q->ring);
    }
}

TEST(queue, one_that_is_never_empty_does_not_starve_another)
{
    uint64_t begin;

    TEST_SKIP_IF(smoke.nb_queues < 2, "the device has one queue");
    TEST_SKIP_IF(arg_u64("cpus", 1, 1, MAX_CPUS) < 2, "one processor (cpus=)");
    ASSERT_EQ(smp_start(2), 2);
    ASSERT_TRUE(smoke_start(0));
    stop_busy = false;
    smp_call(1, keep_busy, &smoke.disk.queues[1]);
    for (int i = 0; i < BUSY_REQUESTS && !test_has_failed(); i++) {
        EXPECT_EQ(vblk_do(&smoke.disk.queues[0], VIRTIO_BLK_T_IN, 0, smoke.in, SECTOR),
                  VIRTIO_BLK_S_OK);
    }
    stop_busy = true;
    begin = cpu_rdtsc();
    while (!smp_is_idle(1)) {
        ASSERT_LT(cpu_rdtsc() - begin, tsc_from_ms(SMOKE_WAIT_MS));
        cpu_pause();
    }
    EXPECT_TRUE(smoke_works());
}

/* --- memory that no processor here can reach, but a device can --- */

TEST(queue, memory_above_4_gib_is_a_buffer_like_any)
{
    VblkQueue *q = &smoke.disk.queues[0];
    uint64_t high_gpa = mem_high_gpa();

    TEST_SKIP_IF(!high_gpa, "no memory above 4 GiB (memory=)");
    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    ASSERT_TRUE(smoke_start(0));
    smoke_fill(smoke.out, CHUNK_BYTES, 31);
    ASSERT_EQ(vblk_do(q, VIRTIO_BLK_T_OUT, 8, smoke.out, CHUNK_BYTES), VIRTIO_BLK_S_OK);
    ASSERT_EQ(vblk_do(q, VIRTIO_BLK_T_IN, 8, (void *)(uintptr_t)high_gpa, CHUNK_BYTES),
              VIRTIO_BLK_S_OK);
    ASSERT_EQ(vblk_do(q, VIRTIO_BLK_T_OUT, 64, (void *)(uintptr_t)high_gpa, CHUNK_BYTES),
              VIRTIO_BLK_S_OK);
    ASSERT_EQ(vblk_do(q, VIRTIO_BLK_T_IN, 64, smoke.in, CHUNK_BYTES), VIRTIO_BLK_S_OK);
    EXPECT_TRUE(smoke_is_filled(smoke.in, CHUNK_BYTES, 31));
}
