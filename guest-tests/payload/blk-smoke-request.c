/*
 * blk-smoke: requests, good and refused
 */
#include "guest-tests/lib/args.h"
#include "guest-tests/lib/layout.h"
#include "guest-tests/lib/smp.h"
#include "guest-tests/lib/str.h"
#include "guest-tests/lib/tsc.h"
#include "guest-tests/payload/blk-smoke.h"

#define SECTOR VIRTIO_BLK_SECTOR_BYTES
#define IN     VRING_DESC_F_WRITE

static VirtioBlkHeader header;
static volatile uint8_t status;

static VblkQueue *first_queue(void)
{
    return &smoke.disk.queues[0];
}

/* A chain of the case's own over queue 0; the header and status above. */
static bool completes(const VringDesc *descs, uint16_t nb_descs, uint32_t type, uint64_t sector,
                      uint32_t *ret_used_len_bytes)
{
    header = (VirtioBlkHeader){ .type = type, .sector = sector };
    status = VBLK_STATUS_PENDING;
    smoke_offer_chain(first_queue(), descs, nb_descs);
    return smoke_outcome(first_queue(), ret_used_len_bytes) == OUTCOME_COMPLETED;
}

static int do_range(uint32_t type, const VirtioBlkRange *ranges, uint32_t n)
{
    memcpy(smoke.out, ranges, n * sizeof(*ranges));
    return vblk_do(first_queue(), type, 0, smoke.out, n * (uint32_t)sizeof(*ranges));
}

TEST(request, what_is_written_is_read_back_on_every_queue)
{
    static const uint32_t lens_bytes[] = { 512, 4096, 65536, SMOKE_BUFFER_BYTES };

    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    ASSERT_TRUE(smoke_start(0));
    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        for (size_t k = 0; k < sizeof(lens_bytes) / sizeof(lens_bytes[0]); k++) {
            ASSERT_TRUE(smoke_round_trip(&smoke.disk.queues[i], 3u + i, lens_bytes[k],
                                         (uint32_t)(i * 10 + k)));
        }
    }
}

TEST(request, what_one_queue_writes_another_reads)
{
    VblkQueue *last = &smoke.disk.queues[smoke.nb_queues - 1];

    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    TEST_SKIP_IF(smoke.nb_queues < 2, "the device has one queue");
    ASSERT_TRUE(smoke_start(0));
    smoke_fill(smoke.out, 4096, 5);
    ASSERT_EQ(vblk_do(first_queue(), VIRTIO_BLK_T_OUT, 40, smoke.out, 4096), VIRTIO_BLK_S_OK);
    ASSERT_EQ(vblk_do(last, VIRTIO_BLK_T_IN, 40, smoke.in, 4096), VIRTIO_BLK_S_OK);
    ASSERT_TRUE(smoke_is_filled(smoke.in, 4096, 5));
}

/* Fill every slot of every queue, then take everything back. */
static bool fill_all_queues(uint32_t type, uint8_t *buffer)
{
    uint32_t k = 0;

    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        VblkQueue *q = &smoke.disk.queues[i];

        for (uint16_t slot = 0; slot < q->nb_slots; slot++, k++) {
            uint32_t at = k * SECTOR % SMOKE_BUFFER_BYTES;

            vblk_offer(q, slot, type, at / SECTOR, buffer + at, SECTOR);
        }
        vring_publish(&q->ring);
    }
    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        VblkQueue *q = &smoke.disk.queues[i];

        for (uint16_t n = 0; n < q->nb_slots; n++) {
            uint16_t slot;

            if (!vblk_wait(q, SMOKE_WAIT_MS, &slot) || slot >= q->nb_slots ||
                q->slots[slot].status) {
                harness_note("queue %u: request %u of %u is lost or failed", i, n, q->nb_slots);
                return false;
            }
        }
    }
    return true;
}

static void check_full_queues(uint64_t without)
{
    uint32_t total_bytes = 0;

    ASSERT_TRUE(smoke_start(without));
    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        total_bytes += smoke.disk.queues[i].nb_slots * (uint32_t)SECTOR;
    }
    if (total_bytes > SMOKE_BUFFER_BYTES) {
        total_bytes = SMOKE_BUFFER_BYTES;
    }
    smoke_fill(smoke.out, total_bytes, 6);
    memset(smoke.in, 0, total_bytes);
    if (!smoke.read_only) {
        ASSERT_TRUE(fill_all_queues(VIRTIO_BLK_T_OUT, smoke.out));
    }
    ASSERT_TRUE(fill_all_queues(VIRTIO_BLK_T_IN, smoke.in));
    if (!smoke.read_only) {
        ASSERT_TRUE(smoke_is_filled(smoke.in, total_bytes, 6));
    }
}

TEST(request, every_slot_of_every_queue_can_be_in_flight)
{
    check_full_queues(VIRTIO_F_INDIRECT_DESC);
}

TEST(request, every_slot_works_with_indirect_descriptors)
{
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_F_INDIRECT_DESC), "not offered");
    check_full_queues(0);
}

TEST(request, every_slot_works_without_the_event_index)
{
    check_full_queues(VIRTIO_F_EVENT_IDX);
}

/* Take what is there, at least one; offer each again while *left. Returns how many stayed. */
static uint32_t turn_batch(VblkQueue *q, uint32_t *left)
{
    uint32_t nb_done = 0;
    uint16_t slot;

    ASSERT_TRUE(vblk_wait(q, SMOKE_WAIT_MS, &slot));
    do {
        ASSERT_LT(slot, q->nb_slots);
        ASSERT_EQ(q->slots[slot].status, VIRTIO_BLK_S_OK);
        if (*left > 0) {
            --*left;
            vblk_offer(q, slot, VIRTIO_BLK_T_IN, slot, smoke.in, SECTOR);
        } else {
            nb_done++;
        }
    } while (vblk_take(q, &slot));
    vring_taken_all(&q->ring);
    vring_publish(&q->ring);
    return nb_done;
}

TEST(request, indexes_pass_65536_and_go_on)
{
    VblkQueue *q = first_queue();
    uint32_t left = 70000;

    TEST_SKIP_IF(smoke.irq || smoke.nb_queues > 1 || smoke.disk.dev.transport != VDEV_PCI,
                 "takes long; once for each kind of ring is enough");
    ASSERT_TRUE(smoke_start(VIRTIO_F_INDIRECT_DESC));
    for (uint16_t slot = 0; slot < q->nb_slots; slot++, left--) {
        vblk_offer(q, slot, VIRTIO_BLK_T_IN, slot, smoke.in, SECTOR);
    }
    vring_publish(&q->ring);
    for (uint32_t waiting = q->nb_slots; waiting > 0;) {
        waiting -= turn_batch(q, &left);
    }
    ASSERT_TRUE(smoke.packed || q->ring.used->idx == q->ring.avail->idx);
}

TEST(request, used_length_counts_data_and_status)
{
    const VringDesc read[] = {
        { mem_gpa(&header), 16, 0, 0 },
        { mem_gpa(smoke.in), 4096, IN, 0 },
        { mem_gpa(&status), 1, IN, 0 },
    };
    const VringDesc write[] = {
        { mem_gpa(&header), 16, 0, 0 },
        { mem_gpa(smoke.in), 4096, 0, 0 },
        { mem_gpa(&status), 1, IN, 0 },
    };
    uint32_t used_len;

    ASSERT_TRUE(smoke_start(0));
    ASSERT_TRUE(completes(read, 3, VIRTIO_BLK_T_IN, 0, &used_len));
    ASSERT_TRUE(status == VIRTIO_BLK_S_OK && used_len == 4097);
    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    ASSERT_TRUE(completes(write, 3, VIRTIO_BLK_T_OUT, 0, &used_len));
    ASSERT_TRUE(status == VIRTIO_BLK_S_OK && used_len == 1);
}

/* VIRTIO 1.2, 2.7.4: where descriptors are cut means nothing. */
TEST(request, descriptors_may_be_cut_anywhere)
{
    const VringDesc write[] = {
        { mem_gpa(&header), 7, 0, 0 },     { mem_gpa(&header) + 7, 9, 0, 0 },
        { mem_gpa(smoke.out), 100, 0, 0 }, { mem_gpa(smoke.out) + 100, 1948, 0, 0 },
        { mem_gpa(&status), 1, IN, 0 },
    };
    const VringDesc read[] = {
        { mem_gpa(&header), 16, 0, 0 },
        { mem_gpa(smoke.in), 1, IN, 0 },
        { mem_gpa(smoke.in) + 1, 1000, IN, 0 },
        { mem_gpa(smoke.in) + 1001, 1048, IN, 0 },
    };
    uint32_t used_len;

    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    ASSERT_TRUE(smoke_start(0));
    smoke_fill(smoke.out, 2048, 9);
    memset(smoke.in, 0xee, 4096);
    ASSERT_TRUE(completes(write, 5, VIRTIO_BLK_T_OUT, 8, &used_len));
    ASSERT_EQ(status, VIRTIO_BLK_S_OK);

    /* The status is the last byte of the last descriptor, after the data. */
    ASSERT_TRUE(completes(read, 4, VIRTIO_BLK_T_IN, 8, &used_len));
    ASSERT_TRUE(smoke.in[2048] == VIRTIO_BLK_S_OK && used_len == 2049);
    ASSERT_TRUE(smoke_is_filled(smoke.in, 2048, 9));
    ASSERT_TRUE(smoke_is_all(smoke.in + 2049, 2047, 0xee));
}

TEST(request, header_and_data_may_share_a_descriptor)
{
    VirtioBlkHeader *joined = (VirtioBlkHeader *)smoke.out;
    const VringDesc write[] = {
        { mem_gpa(joined), 16 + 512, 0, 0 },
        { mem_gpa(&status), 1, IN, 0 },
    };
    uint32_t used_len;

    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    ASSERT_TRUE(smoke_start(0));
    smoke_fill(smoke.out + 16, 512, 10);
    *joined = (VirtioBlkHeader){ .type = VIRTIO_BLK_T_OUT, .sector = 21 };
    ASSERT_TRUE(completes(write, 2, 0, 0, &used_len));
    ASSERT_EQ(status, VIRTIO_BLK_S_OK);
    ASSERT_EQ(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 21, smoke.in, 512), VIRTIO_BLK_S_OK);
    ASSERT_TRUE(smoke_is_filled(smoke.in, 512, 10));
}

TEST(request, flush_succeeds_on_every_queue)
{
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_FLUSH), "not offered");
    ASSERT_TRUE(smoke_start(0));
    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        ASSERT_EQ(vblk_do(&smoke.disk.queues[i], VIRTIO_BLK_T_FLUSH, 0, NULL, 0), VIRTIO_BLK_S_OK);
    }
}

TEST(request, the_cache_mode_can_be_changed_while_running)
{
    Vdev *d = &smoke.disk.dev;

    TEST_SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_CONFIG_WCE), "not offered");
    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    ASSERT_TRUE(smoke_start(0));
    for (uint8_t mode = 0; mode < 2; mode++) {
        mmio_write8(d->config + VIRTIO_BLK_CFG_WRITEBACK, mode);
        ASSERT_EQ(vdev_config8(d, VIRTIO_BLK_CFG_WRITEBACK), mode);
        ASSERT_TRUE(smoke_round_trip(first_queue(), 50, 4096, mode + 1u));
    }
}

TEST(request, discard_succeeds)
{
    const VirtioBlkRange range = { .sector = 128, .nb_sectors = 128 };

    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_DISCARD), "not offered");
    ASSERT_TRUE(smoke_start(0));
    ASSERT_EQ(do_range(VIRTIO_BLK_T_DISCARD, &range, 1), VIRTIO_BLK_S_OK);
    ASSERT_TRUE(smoke_round_trip(first_queue(), 128, 65536, 11));
}

TEST(request, write_zeroes_leaves_zeroes_and_nothing_else)
{
    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_WRITE_ZEROES), "not offered");
    for (uint32_t flags = 0; flags <= VIRTIO_BLK_WZ_F_UNMAP; flags++) {
        const VirtioBlkRange range = { 130, 100, flags };

        ASSERT_TRUE(smoke_start(0));
        ASSERT_TRUE(smoke_round_trip(first_queue(), 128, 65536, 12));
        ASSERT_EQ(do_range(VIRTIO_BLK_T_WRITE_ZEROES, &range, 1), VIRTIO_BLK_S_OK);
        ASSERT_EQ(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 128, smoke.in, 65536), VIRTIO_BLK_S_OK);
        smoke_fill(smoke.out, 65536, 12);
        ASSERT_EQ(memcmp(smoke.in, smoke.out, 2 * SECTOR), 0);
        ASSERT_TRUE(smoke_is_all(smoke.in + 2 * SECTOR, 100 * SECTOR, 0));
        ASSERT_EQ(memcmp(smoke.in + 102 * SECTOR, smoke.out + 102 * SECTOR, 26 * SECTOR), 0);
    }
}

TEST(request, write_zeroes_takes_several_ranges)
{
    const VirtioBlkRange ranges[] = { { 200, 1, 0 }, { 203, 2, 0 } };

    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_WRITE_ZEROES), "not offered");
    TEST_SKIP_IF(vdev_config32(&smoke.disk.dev, VIRTIO_BLK_CFG_MAX_WZ_SEG) < 2,
                 "the device takes one range a request");
    ASSERT_TRUE(smoke_start(0));
    ASSERT_TRUE(smoke_round_trip(first_queue(), 200, 6 * SECTOR, 13));
    ASSERT_EQ(do_range(VIRTIO_BLK_T_WRITE_ZEROES, ranges, 2), VIRTIO_BLK_S_OK);
    ASSERT_EQ(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 200, smoke.in, 6 * SECTOR), VIRTIO_BLK_S_OK);
    smoke_fill(smoke.out, 6 * SECTOR, 13);
    memset(smoke.out, 0, SECTOR);
    memset(smoke.out + 3 * SECTOR, 0, 2 * SECTOR);
    ASSERT_EQ(memcmp(smoke.in, smoke.out, 6 * SECTOR), 0);
}

TEST(request, bad_discards_and_zeroings_are_refused)
{
    const uint64_t end = smoke.disk.capacity_sectors;
    const VirtioBlkRange past_end = { end - 1, 2, 0 };
    const VirtioBlkRange wraps = { UINT64_MAX, 2, 0 };
    const VirtioBlkRange unknown_flag = { 0, 8, 0x80 };
    const VirtioBlkRange discard_unmap = { 0, 8, VIRTIO_BLK_WZ_F_UNMAP };

    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_DISCARD) ||
                     !(smoke.offered & VIRTIO_BLK_F_WRITE_ZEROES),
                 "not offered");
    ASSERT_TRUE(smoke_start(0));
    ASSERT_EQ(do_range(VIRTIO_BLK_T_DISCARD, &past_end, 1), VIRTIO_BLK_S_IOERR);
    ASSERT_EQ(do_range(VIRTIO_BLK_T_WRITE_ZEROES, &past_end, 1), VIRTIO_BLK_S_IOERR);
    ASSERT_EQ(do_range(VIRTIO_BLK_T_WRITE_ZEROES, &wraps, 1), VIRTIO_BLK_S_IOERR);
    ASSERT_EQ(do_range(VIRTIO_BLK_T_WRITE_ZEROES, &unknown_flag, 1), VIRTIO_BLK_S_UNSUPP);
    ASSERT_EQ(do_range(VIRTIO_BLK_T_DISCARD, &unknown_flag, 1), VIRTIO_BLK_S_UNSUPP);
    ASSERT_EQ(do_range(VIRTIO_BLK_T_DISCARD, &discard_unmap, 1), VIRTIO_BLK_S_UNSUPP);
}

TEST(request, discards_and_zeroings_of_every_shape_get_their_answer)
{
    const uint64_t end = smoke.disk.capacity_sectors;
    const VirtioBlkRange nothing = { 8, 0, 0 };
    const VirtioBlkRange misaligned = { 3, 5, 0 };
    const VirtioBlkRange overlap[] = { { 200, 4, 0 }, { 202, 4, 0 } };
    const VirtioBlkRange second_is_bad[] = { { 200, 1, 0 }, { end, 1, 0 }, { 202, 1, 0 } };
    uint32_t max_sectors = vdev_config32(&smoke.disk.dev, VIRTIO_BLK_CFG_MAX_WZ_SECTORS);
    uint32_t max_seg = vdev_config32(&smoke.disk.dev, VIRTIO_BLK_CFG_MAX_WZ_SEG);
    const VirtioBlkRange too_long = { 0, max_sectors + 1, 0 };

    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_DISCARD) ||
                     !(smoke.offered & VIRTIO_BLK_F_WRITE_ZEROES),
                 "not offered");
    ASSERT_TRUE(smoke_start(0));
    EXPECT_EQ(do_range(VIRTIO_BLK_T_WRITE_ZEROES, &nothing, 1), VIRTIO_BLK_S_OK);
    EXPECT_EQ(do_range(VIRTIO_BLK_T_DISCARD, &nothing, 1), VIRTIO_BLK_S_OK);
    EXPECT_EQ(do_range(VIRTIO_BLK_T_DISCARD, &misaligned, 1), VIRTIO_BLK_S_OK);
    EXPECT_EQ(do_range(VIRTIO_BLK_T_WRITE_ZEROES, &misaligned, 1), VIRTIO_BLK_S_OK);
    if (max_sectors < UINT32_MAX && max_sectors >= end) {
        EXPECT_NE(do_range(VIRTIO_BLK_T_WRITE_ZEROES, &too_long, 1), VIRTIO_BLK_S_OK);
    }
    TEST_SKIP_IF(max_seg < 3, "the device takes one range a request");
    EXPECT_EQ(do_range(VIRTIO_BLK_T_WRITE_ZEROES, overlap, 2), VIRTIO_BLK_S_OK);
    ASSERT_TRUE(smoke_round_trip(first_queue(), 200, SECTOR, 15));
    EXPECT_EQ(do_range(VIRTIO_BLK_T_WRITE_ZEROES, second_is_bad, 3), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(do_range(VIRTIO_BLK_T_DISCARD, second_is_bad, 3), VIRTIO_BLK_S_IOERR);
    /* All are looked at before one is carried out. */
    ASSERT_EQ(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 200, smoke.in, SECTOR), VIRTIO_BLK_S_OK);
    smoke_fill(smoke.out, SECTOR, 15);
    EXPECT_EQ(memcmp(smoke.in, smoke.out, SECTOR), 0);
}

static int do_raw(uint32_t type, uint32_t len_bytes)
{
    memset(smoke.out, 0, len_bytes);
    return vblk_do(first_queue(), type, 0, smoke.out, len_bytes);
}

TEST(request, a_payload_of_ranges_is_a_multiple_of_16_and_not_too_long)
{
    static const uint32_t types[] = { VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES };
    const uint32_t max_seg = vdev_config32(&smoke.disk.dev, VIRTIO_BLK_CFG_MAX_WZ_SEG);

    TEST_SKIP_IF(smoke.qemu, "QEMU declares the device broken instead");
    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_DISCARD) ||
                     !(smoke.offered & VIRTIO_BLK_F_WRITE_ZEROES),
                 "not offered");
    ASSERT_TRUE(smoke_start(0));
    for (int i = 0; i < 2; i++) {
        EXPECT_NE(do_raw(types[i], 0), VIRTIO_BLK_S_OK);
        EXPECT_NE(do_raw(types[i], 15), VIRTIO_BLK_S_OK);
        EXPECT_NE(do_raw(types[i], 17), VIRTIO_BLK_S_OK);
        EXPECT_NE(do_raw(types[i], (max_seg + 1) * (uint32_t)sizeof(VirtioBlkRange)),
                  VIRTIO_BLK_S_OK);
    }
    EXPECT_TRUE(smoke_works());
}

TEST(request, limits_in_the_configuration_make_sense)
{
    Vdev *d = &smoke.disk.dev;

    if (smoke.offered & VIRTIO_BLK_F_DISCARD) {
        EXPECT_GE(vdev_config32(d, VIRTIO_BLK_CFG_MAX_DISCARD_SECTORS), 1);
        EXPECT_GE(vdev_config32(d, VIRTIO_BLK_CFG_MAX_DISCARD_SEG), 1);
        EXPECT_GE(vdev_config32(d, VIRTIO_BLK_CFG_DISCARD_ALIGN_SECTORS), 1);
    }
    if (smoke.offered & VIRTIO_BLK_F_WRITE_ZEROES) {
        EXPECT_GE(vdev_config32(d, VIRTIO_BLK_CFG_MAX_WZ_SECTORS), 1);
        EXPECT_GE(vdev_config32(d, VIRTIO_BLK_CFG_MAX_WZ_SEG), 1);
    }
    if (smoke.offered & VIRTIO_BLK_F_SEG_MAX) {
        EXPECT_GE(vdev_config32(d, VIRTIO_BLK_CFG_SEG_MAX), 1);
        EXPECT_LE(vdev_config32(d, VIRTIO_BLK_CFG_SEG_MAX), vdev_get_queue_size(d, 0) - 2);
    }
    if (smoke.offered & VIRTIO_BLK_F_BLK_SIZE) {
        uint32_t size = vdev_config32(d, VIRTIO_BLK_CFG_BLK_SIZE);

        EXPECT_GE(size, SECTOR);
        EXPECT_EQ(size & (size - 1), 0);
    }
}

TEST(request, what_was_not_negotiated_gets_an_answer_all_the_same)
{
    static const uint64_t features[] = { VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_DISCARD,
                                         VIRTIO_BLK_F_WRITE_ZEROES };
    static const uint32_t types[] = { VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_DISCARD,
                                      VIRTIO_BLK_T_WRITE_ZEROES };
    const VirtioBlkRange range = { 8, 8, 0 };

    for (int i = 0; i < 3; i++) {
        ASSERT_TRUE(smoke_start(features[i]));
        if (types[i] == VIRTIO_BLK_T_FLUSH) {
            EXPECT_GE(vblk_do(first_queue(), types[i], 0, NULL, 0), 0);
        } else {
            EXPECT_GE(do_range(types[i], &range, 1), 0);
        }
        EXPECT_EQ(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 0, smoke.in, 512), VIRTIO_BLK_S_OK);
    }
}

/* VIRTIO 1.2, 5.2.5.2: who cannot flush has a cache that writes through. */
TEST(request, the_cache_writes_through_for_a_driver_that_cannot_flush)
{
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_CONFIG_WCE), "not offered");
    TEST_SKIP_IF(smoke.qemu, "QEMU leaves it at 1 where CONFIG_WCE is negotiated");
    ASSERT_TRUE(smoke_start(VIRTIO_BLK_F_FLUSH));
    EXPECT_EQ(vdev_config8(&smoke.disk.dev, VIRTIO_BLK_CFG_WRITEBACK), 0);
}

TEST(request, the_cache_mode_changes_with_writes_in_flight)
{
    VblkQueue *q = first_queue();
    uint16_t nb = 32, slot;

    TEST_SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_CONFIG_WCE), "not offered");
    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    ASSERT_TRUE(smoke_start(0));
    smoke_fill(smoke.out, nb * SECTOR, 14);
    for (slot = 0; slot < nb; slot++) {
        vblk_offer(q, slot, VIRTIO_BLK_T_OUT, slot, smoke.out + slot * SECTOR, SECTOR);
    }
    vring_publish(&q->ring);
    for (uint8_t i = 0; i < 8; i++) {
        mmio_write8(smoke.disk.dev.config + VIRTIO_BLK_CFG_WRITEBACK, i & 1);
    }
    for (uint16_t i = 0; i < nb; i++) {
        ASSERT_TRUE(vblk_wait(q, SMOKE_WAIT_MS, &slot));
        ASSERT_EQ(q->slots[slot].status, VIRTIO_BLK_S_OK);
    }
    ASSERT_EQ(vblk_do(q, VIRTIO_BLK_T_IN, 0, smoke.in, nb * SECTOR), VIRTIO_BLK_S_OK);
    EXPECT_TRUE(smoke_is_filled(smoke.in, nb * SECTOR, 14));
}

/* VIRTIO 1.2, 5.2.6.2: a flush covers what was completed before it, whichever queue that was. */
TEST(request, a_flush_after_writes_of_every_queue_succeeds_and_they_are_there)
{
    TEST_SKIP_IF(smoke.read_only, "the disk is read-only");
    TEST_SKIP_IF(!(smoke.offered & VIRTIO_BLK_F_FLUSH), "not offered");
    ASSERT_TRUE(smoke_start(0));
    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        smoke_fill(smoke.out, SECTOR, 50u + i);
        ASSERT_EQ(vblk_do(&smoke.disk.queues[i], VIRTIO_BLK_T_OUT, 300u + i, smoke.out, SECTOR),
                  VIRTIO_BLK_S_OK);
    }
    ASSERT_EQ(vblk_do(&smoke.disk.queues[smoke.nb_queues - 1], VIRTIO_BLK_T_FLUSH, 0, NULL, 0),
              VIRTIO_BLK_S_OK);
    ASSERT_TRUE(vdev_reset(&smoke.disk.dev));
    ASSERT_TRUE(smoke_start(0));
    for (uint16_t i = 0; i < smoke.nb_queues; i++) {
        ASSERT_EQ(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 300u + i, smoke.in, SECTOR),
                  VIRTIO_BLK_S_OK);
        EXPECT_TRUE(smoke_is_filled(smoke.in, SECTOR, 50u + i));
    }
}

TEST(request, requests_past_the_end_get_an_error)
{
    static const uint32_t types[] = { VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT };
    const uint64_t end = smoke.disk.capacity_sectors;
    VblkQueue *q = first_queue();

    ASSERT_TRUE(smoke_start(0));
    for (int i = 0; i < (smoke.read_only ? 1 : 2); i++) {
        ASSERT_EQ(vblk_do(q, types[i], end, smoke.in, 512), VIRTIO_BLK_S_IOERR);
        ASSERT_EQ(vblk_do(q, types[i], end - 1, smoke.in, 1024), VIRTIO_BLK_S_IOERR);
        ASSERT_EQ(vblk_do(q, types[i], UINT64_MAX, smoke.in, 512), VIRTIO_BLK_S_IOERR);
        ASSERT_EQ(vblk_do(q, types[i], UINT64_MAX / 512, smoke.in, 1024), VIRTIO_BLK_S_IOERR);
        ASSERT_EQ(vblk_do(q, types[i], UINT64_MAX / 512 + 1, smoke.in, 512), VIRTIO_BLK_S_IOERR);
    }
    ASSERT_EQ(vblk_do(q, VIRTIO_BLK_T_IN, end - 1, smoke.in, 512), VIRTIO_BLK_S_OK);
}

TEST(request, a_length_that_is_no_multiple_of_512_gets_an_error)
{
    ASSERT_TRUE(smoke_start(0));
    ASSERT_EQ(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 0, smoke.in, 513), VIRTIO_BLK_S_IOERR);
    ASSERT_EQ(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 0, smoke.in, 100), VIRTIO_BLK_S_IOERR);
}

TEST(request, an_unknown_request_type_is_unsupported)
{
    /* 15 to 26 are those of zoned devices, which this one is not. */
    static const uint32_t types[] = { 6, 15, 16, 18, 20, 22, 24, 26, 100, 0x12345678, 0x7ffffffe };

    ASSERT_TRUE(smoke_start(0));
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        ASSERT_EQ(vblk_do(first_queue(), types[i], 0, smoke.out, 512), VIRTIO_BLK_S_UNSUPP);
    }
}

TEST(request, a_read_only_disk_refuses_writes_but_flushes)
{
    const VirtioBlkRange range = { 0, 8, 0 };

    TEST_SKIP_IF(!smoke.read_only, "the disk is writable");
    for (int i = 0; i < 2; i++) {
        ASSERT_TRUE(smoke_start(i ? VIRTIO_BLK_F_RO : 0));
        ASSERT_EQ(vblk_do(first_queue(), VIRTIO_BLK_T_OUT, 0, smoke.out, 512), VIRTIO_BLK_S_IOERR);
        ASSERT_NE(do_range(VIRTIO_BLK_T_WRITE_ZEROES, &range, 1), VIRTIO_BLK_S_OK);
        ASSERT_NE(do_range(VIRTIO_BLK_T_DISCARD, &range, 1), VIRTIO_BLK_S_OK);
        ASSERT_EQ(vblk_do(first_queue(), VIRTIO_BLK_T_IN, 0, smoke.in, 512), VIRTIO_BLK_S_OK);
        if (smoke.offered & VIRTIO_BLK_F_FLUSH) {
            ASSERT_EQ(vblk_do(first_queue(), VIRTIO_BLK_T_FLUSH, 0, NULL, 0), VIRTIO_BLK_S_OK);
        }
    }
}

TEST(request, queues_work_with_a_vector_each)
{
    const VblkSetup setup = {
        .features = VIRTIO_F_EVENT_IDX | VIRTIO_BLK_F_MQ,
        .nb_queues = smoke.nb_queues,
        .interrupts = true,
    };

    ASSERT_TRUE(smoke_start_with(&setup));
    for (uint32_t i = 0; i < 50u * smoke.nb_queues; i++) {
        ASSERT_EQ(
            vblk_do(&smoke.disk.queues[i % smoke.nb_queues], VIRTIO_BLK_T_IN, i, smoke.in, 4096),
            VIRTIO_BLK_S_OK);
    }
}

/* One processor for each queue; what they count is checked afterwards. */
typedef struct {
    VblkQueue *queue;
    uint8_t *buffer;
    uint32_t nb_ok;
} Driver;

#define DRIVER_REQUESTS 300

static void drive(void *arg)
{
    Driver *d = arg;

    while (d->nb_ok < DRIVER_REQUESTS && vblk_do(d->queue, VIRTIO_BLK_T_IN, d->nb_ok % 1000,
                                                 d->buffer, 4096) == VIRTIO_BLK_S_OK) {
        d->nb_ok++;
    }
}

TEST(request, queues_are_driven_by_several_processors)
{
    static Driver drivers[MAX_CPUS];
    uint32_t nb_cpus = (uint32_t)arg_u64("cpus", 1, 1, MAX_CPUS);
    uint64_t start;

    nb_cpus = nb_cpus > smoke.nb_queues ? smoke.nb_queues : nb_cpus;
    TEST_SKIP_IF(nb_cpus < 2, "one processor (cpus=) or one queue");
    ASSERT_TRUE(smoke_start(0));
    ASSERT_EQ(smp_start(nb_cpus), nb_cpus);
    for (uint32_t i = 0; i < nb_cpus; i++) {
        drivers[i] = (Driver){ .queue = &smoke.disk.queues[i], .buffer = smoke.in + i * 4096 };
        if (i > 0) {
            smp_call(i, drive, &drivers[i]);
        }
    }
    drive(&drivers[0]);
    start = cpu_rdtsc();
    for (uint32_t i = 0; i < nb_cpus; i++) {
        while (i > 0 && !smp_is_idle(i)) {
            ASSERT_TRUE(cpu_rdtsc() - start < tsc_from_ms(20000));
            cpu_pause();
        }
        ASSERT_EQ(drivers[i].nb_ok, DRIVER_REQUESTS);
    }
}
