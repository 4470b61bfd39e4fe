/*
 * blk-smoke: resets, second lives, and what comes before DRIVER_OK
 */
#include "guest-tests/lib/str.h"
#include "guest-tests/lib/tsc.h"
#include "guest-tests/payload/blk-smoke.h"

#define SECTOR      VIRTIO_BLK_SECTOR_BYTES
#define ROUNDS      20
#define QUIET_MS    5
#define CHUNK_BYTES 4096
#define MARK        0x5a
#define READY_EXCEPT_OK                                                                            \
    (VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK)

static void offer_everywhere(uint32_t type)
{
    uint32_t at = 0;

    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        VblkQueue *q = &smoke.disk.queues[i];

        for (uint16_t slot = 0; slot < q->nb_slots; slot++) {
            vblk_offer(q, slot, type, at / SECTOR, smoke.in + at, CHUNK_BYTES);
            at = (at + CHUNK_BYTES) % SMOKE_BUFFER_BYTES;
        }
        vring_publish(&q->ring);
    }
}

static void mark_ring(Vring *r)
{
    memset((void *)(uintptr_t)r->desc, MARK, r->size * sizeof(*r->desc));
    r->used->flags = MARK;
    r->used->idx = MARK;
}

static bool is_marked(Vring *r)
{
    return r->used->flags == MARK && r->used->idx == MARK &&
           smoke_is_all((const uint8_t *)(uintptr_t)r->desc, r->size * (uint32_t)sizeof(*r->desc),
                        MARK);
}

/* VIRTIO 1.2, 2.4: once the reset reads back, memory is the driver's again. */
TEST(reset, nothing_is_written_after_a_reset_in_flight)
{
    for (int round = 0; round < ROUNDS; round++) {
        ASSERT_TRUE(smoke_start(0));
        offer_everywhere(VIRTIO_BLK_T_IN);
        tsc_wait_ms(round % 4 == 3 ? 1 : 0);
        ASSERT_TRUE(vdev_reset(&smoke.disk.dev));
        memset(smoke.in, MARK, SMOKE_BUFFER_BYTES);
        for (uint16_t i = 0; i < smoke.nb_queues; i++) {
            mark_ring(&smoke.disk.queues[i].ring);
        }
        tsc_wait_ms(QUIET_MS);
        ASSERT_TRUE(smoke_is_all(smoke.in, SMOKE_BUFFER_BYTES, MARK));
        for (uint16_t i = 0; i < smoke.nb_queues; i++) {
            ASSERT_TRUE(is_marked(&smoke.disk.queues[i].ring));
        }
    }
    ASSERT_TRUE(smoke_works());
}

TEST(reset, resets_with_writes_in_flight_leave_a_working_device)
{
    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    for (int round = 0; round < ROUNDS; round++) {
        ASSERT_TRUE(smoke_start(0));
        memset(smoke.in, MARK, SMOKE_BUFFER_BYTES);
        offer_everywhere(VIRTIO_BLK_T_OUT);
        ASSERT_TRUE(vdev_reset(&smoke.disk.dev));
    }
    ASSERT_TRUE(smoke_works());
}

TEST(reset, a_second_life_has_fewer_and_smaller_queues)
{
    const VblkSetup small = {
        .features = VIRTIO_F_EVENT_IDX,
        .nb_queues = 1,
        .queue_size = 8,
    };

    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    ASSERT_TRUE(smoke_works());
    ASSERT_TRUE(smoke_start_with(&small));
    ASSERT_EQ(smoke.disk.queues[0].ring.size, 8);
    for (uint32_t i = 0; i < 20; i++) {
        ASSERT_TRUE(smoke_round_trip(&smoke.disk.queues[0], i, 4096, i));
    }
    ASSERT_TRUE(smoke_works());
}

TEST(reset, the_device_can_be_reset_many_times)
{
    for (int i = 0; i < ROUNDS; i++) {
        ASSERT_TRUE(smoke_works());
        ASSERT_TRUE(vdev_reset(&smoke.disk.dev));
        ASSERT_TRUE(vdev_reset(&smoke.disk.dev));
    }
}

TEST(reset, queues_are_disabled_and_unmapped_by_a_reset)
{
    Vdev *d = &smoke.disk.dev;

    ASSERT_TRUE(smoke_start(0));
    ASSERT_TRUE(vdev_reset(d));
    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        ASSERT_FALSE(vdev_queue_is_enabled(d, i));
        if (d->transport == VDEV_PCI) {
            ASSERT_EQ(mmio_read16(d->pci.common + VIRTIO_PCI_QUEUE_VECTOR), VIRTIO_NO_VECTOR);
        }
    }
}

/* The kick comes too early; the request must wait, and then not be lost. */
TEST(reset, a_kick_before_driver_ok_waits_for_it)
{
    VblkQueue *q = &smoke.disk.queues[0];
    Vdev *d = &smoke.disk.dev;
    uint16_t slot;

    TEST_SKIP_IF(smoke.qemu, "QEMU starts the device at the first kick");
    ASSERT_TRUE(smoke_start(0));
    ASSERT_TRUE(vdev_reset(d));
    q->ring.interrupts = false; /* the reset took the vectors away */
    vring_rewind(&q->ring);
    vdev_set_status(d, VIRTIO_STATUS_ACKNOWLEDGE);
    vdev_set_status(d, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
    vdev_set_features(d, smoke.disk.features);
    vdev_set_status(d, READY_EXCEPT_OK);
    vdev_setup_queue(d, 0, q->ring.size, mem_gpa(q->ring.desc), mem_gpa(q->ring.avail),
                     mem_gpa(q->ring.used));
    vblk_offer(q, 0, VIRTIO_BLK_T_IN, 0, smoke.in, CHUNK_BYTES);
    vring_publish(&q->ring);
    ASSERT_EQ(q->ring.kicks, 1);
    tsc_wait_ms(QUIET_MS);
    ASSERT_FALSE(vblk_take(q, &slot));
    vdev_set_status(d, READY_EXCEPT_OK | VIRTIO_STATUS_DRIVER_OK);
    ASSERT_TRUE(vblk_wait(q, SMOKE_WAIT_MS, &slot));
    ASSERT_EQ(q->slots[0].status, VIRTIO_BLK_S_OK);
}
