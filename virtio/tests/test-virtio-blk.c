/*
 * test-virtio-blk.c - the block device, request by request
 */
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "block/tests/mem-driver.h"
#include "io/aio/iothread.h"
#include "io/base/test.h"
#include "virtio/tests/ring-driver.h"
#include "virtio/virtio-blk.h"
#include "virtio/virtqueue-track.h"

#define QUEUE_SIZE 128
#define SECTOR     512
#define DISK_BYTES (1u << 20)
#define NB_SECTORS (DISK_BYTES / SECTOR)
#define DATA_BYTES 65536
#define NO_STATUS  0xee

static MemDisk disk;
static BlockBackend *blk;
static VirtioBlk *vblk;
static VirtioDevice *vdev;
static GuestTransport transport;
static Guest guest;
static RingDriver ring;
static uint64_t header_gpa, data_gpa, status_gpa, ranges_gpa;
static uint32_t used_len;

/* --- set-up --- */

static void context_begin(void)
{
    Error err;

    if (!guest_main_context(&err)) {
        TEST_SKIP("%s", err.msg);
    }
    guest_init(&guest, 8 << 20);
}

static void device_create(const VirtioBlkParams *params)
{
    VirtioBlkParams own = *params;
    Error err;

    own.packed = guest_wants_packed();
    vblk = virtio_blk_create(&own, blk, &guest.gm, &err);
    if (!vblk) {
        test_fail_abort(__FILE__, __LINE__, "%s", err.msg);
    }
    vdev = virtio_blk_device(vblk);
    guest_transport_init(&transport, vdev);
}

static void driver_begin(uint64_t features)
{
    ASSERT_TRUE(dev_negotiate(vdev, features));
    ring_init(&ring, &guest, vdev, 0, (uint16_t)vdev->queues[0].max_size);
    header_gpa = guest_alloc(&guest, sizeof(struct virtio_blk_outhdr), 16);
    status_gpa = guest_alloc(&guest, 1, 1);
    ranges_gpa = guest_alloc(&guest, 4096, 16);
    data_gpa = guest_alloc(&guest, DATA_BYTES, 4096);
    dev_enable_queue(vdev, 0);
    dev_driver_ok(vdev);
    dev_settle();
}

static void begin_with(const MemConfig *config, const VirtioBlkParams *params, uint64_t without)
{
    context_begin();
    mem_open(&disk, config);
    blk = disk.blk;
    device_create(params);
    driver_begin(vdev_features_offered(vdev) & ~without);
}

static const VirtioBlkParams default_params = {
    .id = "disk0", .serial = "serial-1", .nb_queues = 2, .queue_size = QUEUE_SIZE
};

static void begin(void)
{
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES, .honours_fua = true }, &default_params, 0);
}

static void device_end(void)
{
    AioContext *ctx = aio_main();

    dev_set_status(vdev, 0);
    EXPECT_EQ(transport.nb_attached, 0);
    virtio_blk_destroy(vblk);
    ring_finish(&ring);
    guest_finish(&guest);
    if (disk.blk) {
        EXPECT_EQ(atomic_load(&disk.stats.violations), 0);
        mem_close(&disk);
    } else {
        blk_close(blk);
    }
    aio_context_destroy(ctx);
}

static bool broken(void)
{
    return vdev_status(vdev) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

/* --- requests --- */

static uint8_t *status_byte(void)
{
    return guest_ptr(&guest, status_gpa);
}

static uint8_t *data(void)
{
    return guest_ptr(&guest, data_gpa);
}

static void write_header(uint32_t type, uint64_t sector)
{
    struct virtio_blk_outhdr *header = guest_ptr(&guest, header_gpa);

    *header = (struct virtio_blk_outhdr){ .type = htole32(type), .sector = htole64(sector) };
    *status_byte() = NO_STATUS;
}

/* Hand a chain over and wait until it comes back; the status byte. */
static uint8_t run_chain(const RingBuf *bufs, unsigned nb_bufs)
{
    uint16_t added = ring_add(&ring, bufs, nb_bufs);
    uint32_t head;

    ring_publish(&ring);
    ring_kick(&ring);
    while (!ring_next_used(&ring, &head, &used_len)) {
        ASSERT_FALSE(broken());
        aio_poll(aio_main(), true);
    }
    EXPECT_EQ(head, added);
    ring_free(&ring, added);
    return *status_byte();
}

/* Header, @out_bytes readable at data_gpa, @in_bytes writable there, status. */
static uint8_t run(uint32_t type, uint64_t sector, uint32_t out_bytes, uint32_t in_bytes)
{
    RingBuf bufs[4];
    unsigned nb = 0;

    write_header(type, sector);
    bufs[nb++] = (RingBuf){ header_gpa, 16, false };
    if (out_bytes > 0) {
        bufs[nb++] = (RingBuf){ data_gpa, out_bytes, false };
    }
    if (in_bytes > 0) {
        bufs[nb++] = (RingBuf){ data_gpa, in_bytes, true };
    }
    bufs[nb++] = (RingBuf){ status_gpa, 1, true };
    return run_chain(bufs, nb);
}

static uint8_t run_write(uint64_t sector, uint32_t bytes)
{
    return run(VIRTIO_BLK_T_OUT, sector, bytes, 0);
}

static uint8_t run_read(uint64_t sector, uint32_t bytes)
{
    return run(VIRTIO_BLK_T_IN, sector, 0, bytes);
}

typedef struct Range {
    uint64_t sector;
    uint32_t nb_sectors, flags;
} Range;

static uint8_t run_ranges_bytes(uint32_t type, const Range *ranges, unsigned nb, uint32_t bytes)
{
    struct virtio_blk_discard_write_zeroes *wire = guest_ptr(&guest, ranges_gpa);

    for (unsigned i = 0; i < nb; i++) {
        wire[i] =
            (struct virtio_blk_discard_write_zeroes){ .sector = htole64(ranges[i].sector),
                                                      .num_sectors = htole32(ranges[i].nb_sectors),
                                                      .flags = htole32(ranges[i].flags) };
    }
    write_header(type, 0);
    return run_chain((RingBuf[]){ { header_gpa, 16, false },
                                  { ranges_gpa, bytes, false },
                                  { status_gpa, 1, true } },
                     3);
}

static uint8_t run_ranges(uint32_t type, const Range *ranges, unsigned nb)
{
    return run_ranges_bytes(type, ranges, nb, nb * 16);
}

static uint8_t run_range(uint32_t type, uint64_t sector, uint32_t nb_sectors, uint32_t flags)
{
    return run_ranges(type, &(Range){ sector, nb_sectors, flags }, 1);
}

static void fill(uint8_t *p, size_t len, unsigned seed)
{
    for (size_t i = 0; i < len; i++) {
        p[i] = (uint8_t)(i * 7 + i / 251 + seed);
    }
}

static struct virtio_blk_config read_config(void)
{
    struct virtio_blk_config config;

    vdev_config_read(vdev, 0, &config, sizeof(config));
    return config;
}

/* --- configuration and features --- */

TEST(vblk, configuration_tells_the_backend_s_limits)
{
    MemConfig config = { .length_bytes = DISK_BYTES,
                         .limits = { .request_alignment = 512,
                                     .optimal_io_bytes = 65536,
                                     .max_transfer_bytes = 1 << 20,
                                     .discard_alignment = 8192,
                                     .max_discard_bytes = 1 << 16,
                                     .max_write_zeroes_bytes = (uint64_t)1 << 40 } };

    begin_with(&config, &default_params, 0);
    disk.node->limits.physical_block_bytes = 4096;
    struct virtio_blk_config c = read_config();

    EXPECT_EQ(le64toh(c.capacity), NB_SECTORS);
    EXPECT_EQ(le32toh(c.size_max), 1 << 20);
    EXPECT_EQ(le32toh(c.seg_max), 126);
    EXPECT_EQ(le32toh(c.blk_size), 512);
    EXPECT_EQ(c.physical_block_exp, 3);
    EXPECT_EQ(c.alignment_offset, 0);
    EXPECT_EQ(le16toh(c.min_io_size), 8);
    EXPECT_EQ(le32toh(c.opt_io_size), 128);
    EXPECT_EQ(c.wce, 1);
    EXPECT_EQ(le16toh(c.num_queues), 2);
    EXPECT_EQ(le32toh(c.max_discard_sectors), 128);
    EXPECT_EQ(le32toh(c.max_discard_seg), VIRTIO_BLK_RANGES_MAX);
    EXPECT_EQ(le32toh(c.discard_sector_alignment), 16);
    EXPECT_EQ(le32toh(c.max_write_zeroes_sectors), VIRTIO_BLK_RANGE_SECTORS_MAX);
    EXPECT_EQ(le32toh(c.max_write_zeroes_seg), VIRTIO_BLK_RANGES_MAX);
    EXPECT_EQ(c.write_zeroes_may_unmap, 1);
    device_end();
}

TEST(vblk, features_follow_what_the_device_is)
{
    const uint64_t writable = FEATURE(VIRTIO_BLK_F_CONFIG_WCE) | FEATURE(VIRTIO_BLK_F_DISCARD) |
                              FEATURE(VIRTIO_BLK_F_WRITE_ZEROES);
    const uint64_t always = FEATURE(VIRTIO_BLK_F_SEG_MAX) | FEATURE(VIRTIO_BLK_F_SIZE_MAX) |
                            FEATURE(VIRTIO_BLK_F_BLK_SIZE) | FEATURE(VIRTIO_BLK_F_TOPOLOGY) |
                            FEATURE(VIRTIO_BLK_F_FLUSH);
    const uint64_t blk_bits = 0xffffff;

    begin();
    EXPECT_EQ(vdev_features_offered(vdev) & blk_bits, always | writable | FEATURE(VIRTIO_BLK_F_MQ));
    device_end();

    VirtioBlkParams params = default_params;

    params.read_only = true;
    params.nb_queues = 1;
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES }, &params, 0);
    EXPECT_EQ(vdev_features_offered(vdev) & blk_bits, always | FEATURE(VIRTIO_BLK_F_RO));
    EXPECT_EQ(read_config().max_discard_sectors, 0);
    device_end();

    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES, .options = "discard=ignore" },
               &default_params, 0);
    EXPECT_FALSE(vdev_features_offered(vdev) & FEATURE(VIRTIO_BLK_F_DISCARD));
    EXPECT_EQ(read_config().write_zeroes_may_unmap, 0);
    device_end();
}

TEST(vblk, parameters_out_of_range_are_refused_with_the_reason)
{
    static const struct {
        VirtioBlkParams params;
        const char *word;
    } bad[] = {
        { { .id = "d", .nb_queues = 0 }, "queues" },
        { { .id = "d", .nb_queues = 65 }, "queues" },
        { { .id = "d", .nb_queues = 1, .queue_size = 100 }, "queue-size" },
        { { .id = "d", .nb_queues = 1, .queue_size = 2048 }, "queue-size" },
        { { .id = "d", .nb_queues = 1, .queue_size = 1 }, "queue-size" },
        { { .id = "d", .nb_queues = 1, .queue_size = 2 }, "queue-size" },
        { { .id = "d", .nb_queues = 1, .queue_size = 64, .seg_max = 63 }, "seg-max" },
        { { .id = "d", .nb_queues = 1, .block_bytes = 1000 }, "block size" },
        { { .id = "d", .nb_queues = 1, .block_bytes = 65536 }, "block size" },
        { { .id = "d", .nb_queues = 1, .serial = "twenty-one-bytes-long" }, "serial" },
    };
    Error err;

    begin();
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        EXPECT_TRUE(virtio_blk_create(&bad[i].params, blk, &guest.gm, &err) == NULL);
        EXPECT_EQ(err.code, -EINVAL);
        EXPECT_TRUE(strstr(err.msg, bad[i].word) != NULL);
    }
    device_end();
}

TEST(vblk, the_smallest_queue_carries_a_request_of_one_segment)
{
    VirtioBlkParams params = default_params;

    params.queue_size = 4;
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES }, &params, 0);
    EXPECT_EQ(le32toh(read_config().seg_max), 2);
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_OK);
    EXPECT_EQ(run_read(0, SECTOR), VIRTIO_BLK_S_OK);
    device_end();
}

TEST(vblk, a_segment_may_always_be_a_block_long)
{
    VirtioBlkParams params = default_params;

    params.block_bytes = 4096;
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES, .limits = { .max_transfer_bytes = 512 } },
               &params, 0);
    EXPECT_EQ(le32toh(read_config().size_max), 4096);
    EXPECT_EQ(run_write(0, 4096), VIRTIO_BLK_S_OK);
    device_end();
}

TEST(vblk, capacity_is_whole_logical_blocks)
{
    VirtioBlkParams params = default_params;

    params.block_bytes = 4096;
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES + 1536 }, &params, 0);
    EXPECT_EQ(le64toh(read_config().capacity), NB_SECTORS);
    EXPECT_EQ(le32toh(read_config().blk_size), 4096);
    EXPECT_EQ(run_read(NB_SECTORS, SECTOR), VIRTIO_BLK_S_IOERR);
    device_end();
}

/* --- reads and writes --- */

TEST(vblk, what_was_written_is_read_back)
{
    uint8_t expected[4096];

    begin();
    fill(expected, sizeof(expected), 1);
    memcpy(data(), expected, sizeof(expected));
    EXPECT_EQ(run_write(8, 4096), VIRTIO_BLK_S_OK);
    EXPECT_EQ(used_len, 1);
    EXPECT_EQ(memcmp(disk.data + 8 * SECTOR, expected, 4096), 0);
    memset(data(), 0, 4096);
    EXPECT_EQ(run_read(8, 4096), VIRTIO_BLK_S_OK);
    EXPECT_EQ(used_len, 4097);
    EXPECT_EQ(memcmp(data(), expected, 4096), 0);
    EXPECT_EQ(vdev->queues[0].stats.requests, 2);
    device_end();
}

TEST(vblk, data_may_be_in_many_pieces)
{
    RingBuf bufs[QUEUE_SIZE];
    unsigned nb = 0;

    begin();
    fill(data(), DATA_BYTES, 2);
    write_header(VIRTIO_BLK_T_OUT, 16);
    bufs[nb++] = (RingBuf){ header_gpa, 16, false };
    for (unsigned i = 0; i < 126; i++) {
        bufs[nb++] = (RingBuf){ data_gpa + 512 * (125 - i), 512, false };
    }
    bufs[nb++] = (RingBuf){ status_gpa, 1, true };
    EXPECT_EQ(run_chain(bufs, nb), VIRTIO_BLK_S_OK);
    for (unsigned i = 0; i < 126; i++) {
        ASSERT_EQ(memcmp(disk.data + (16 + i) * SECTOR, data() + 512 * (125 - i), 512), 0);
    }
    device_end();
}

TEST(vblk, the_header_may_be_split_into_single_bytes)
{
    RingBuf bufs[18];

    begin();
    fill(data(), 512, 3);
    write_header(VIRTIO_BLK_T_OUT, 5);
    for (unsigned i = 0; i < 16; i++) {
        bufs[i] = (RingBuf){ header_gpa + i, 1, false };
    }
    bufs[16] = (RingBuf){ data_gpa, 512, false };
    bufs[17] = (RingBuf){ status_gpa, 1, true };
    EXPECT_EQ(run_chain(bufs, 18), VIRTIO_BLK_S_OK);
    EXPECT_EQ(memcmp(disk.data + 5 * SECTOR, data(), 512), 0);
    device_end();
}

TEST(vblk, the_header_may_be_merged_with_the_data)
{
    begin();
    write_header(VIRTIO_BLK_T_OUT, 7);
    memcpy(data(), guest_ptr(&guest, header_gpa), 16);
    fill(data() + 16, 1024, 4);
    EXPECT_EQ(run_chain((RingBuf[]){ { data_gpa, 10, false },
                                     { data_gpa + 10, 506, false },
                                     { data_gpa + 516, 524, false },
                                     { status_gpa, 1, true } },
                        4),
              VIRTIO_BLK_S_OK);
    EXPECT_EQ(memcmp(disk.data + 7 * SECTOR, data() + 16, 1024), 0);
    device_end();
}

TEST(vblk, the_status_is_the_last_byte_of_a_writable_buffer_merged_with_data)
{
    begin();
    fill((uint8_t *)disk.data, 1024, 5);
    write_header(VIRTIO_BLK_T_IN, 0);
    memset(data(), NO_STATUS, 2048);
    run_chain((RingBuf[]){ { header_gpa, 16, false },
                           { data_gpa, 100, true },
                           { data_gpa + 100, 925, true } },
              3);
    EXPECT_EQ(memcmp(data(), disk.data, 1024), 0);
    EXPECT_EQ(data()[1024], VIRTIO_BLK_S_OK);
    EXPECT_EQ(data()[1025], NO_STATUS);
    EXPECT_EQ(used_len, 1025);
    device_end();
}

TEST(vblk, a_status_byte_inside_the_data_is_written_last)
{
    begin();
    memset(disk.data, 0x5a, SECTOR);
    write_header(VIRTIO_BLK_T_IN, 0);
    run_chain((RingBuf[]){ { header_gpa, 16, false },
                           { data_gpa, SECTOR, true },
                           { data_gpa + 7, 1, true } },
              3);
    EXPECT_EQ(used_len, SECTOR + 1);
    EXPECT_EQ(data()[6], 0x5a);
    EXPECT_EQ(data()[7], VIRTIO_BLK_S_OK);
    EXPECT_EQ(data()[8], 0x5a);
    device_end();
}

TEST(vblk, a_header_that_is_too_short_is_an_io_error)
{
    begin();
    write_header(VIRTIO_BLK_T_IN, 0);
    EXPECT_EQ(run_chain((RingBuf[]){ { header_gpa, 15, false }, { status_gpa, 1, true } }, 2),
              VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(used_len, 1);
    write_header(VIRTIO_BLK_T_IN, 0);
    EXPECT_EQ(run_chain((RingBuf[]){ { status_gpa, 1, true } }, 1), VIRTIO_BLK_S_IOERR);
    EXPECT_FALSE(broken());
    device_end();
}

TEST(vblk, a_request_without_a_status_byte_needs_a_reset)
{
    begin();
    write_header(VIRTIO_BLK_T_FLUSH, 0);
    ring_add(&ring, (RingBuf[]){ { header_gpa, 16, false } }, 1);
    ring_publish(&ring);
    ring_kick(&ring);
    dev_settle();
    EXPECT_TRUE(broken());
    EXPECT_EQ(ring_used_index(&ring), 0);
    EXPECT_EQ(atomic_load(&disk.stats.ops[MEM_FLUSH]), 0);
    EXPECT_EQ(vdev->queues[0].in_flight, 0);
    device_end();
}

TEST(vblk, ranges_beyond_the_capacity_are_io_errors)
{
    static const struct {
        uint64_t sector;
        uint32_t bytes;
    } bad[] = {
        { NB_SECTORS, SECTOR },
        { NB_SECTORS - 1, 2 * SECTOR },
        { NB_SECTORS + 1, SECTOR },
        { UINT64_MAX, SECTOR },
        { UINT64_MAX / SECTOR, SECTOR },
        { UINT64_MAX / SECTOR + 1, SECTOR },      /* times 512 is 0 */
        { (UINT64_MAX / SECTOR) + 9, 8 * SECTOR } /* times 512 is 4096 */
    };

    begin();
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        EXPECT_EQ(run_read(bad[i].sector, bad[i].bytes), VIRTIO_BLK_S_IOERR);
        EXPECT_EQ(used_len, 1);
        EXPECT_EQ(run_write(bad[i].sector, bad[i].bytes), VIRTIO_BLK_S_IOERR);
    }
    EXPECT_EQ(atomic_load(&disk.stats.ops[MEM_READ]), 0);
    EXPECT_EQ(atomic_load(&disk.stats.ops[MEM_WRITE]), 0);
    EXPECT_EQ(run_read(NB_SECTORS - 1, SECTOR), VIRTIO_BLK_S_OK);
    EXPECT_EQ(run_write(NB_SECTORS - 1, SECTOR), VIRTIO_BLK_S_OK);
    EXPECT_FALSE(broken());
    device_end();
}

TEST(vblk, lengths_that_are_no_sectors_are_io_errors)
{
    begin();
    EXPECT_EQ(run_read(0, 511), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(run_read(0, 513), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(run_write(0, 1), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(run_write(0, 1023), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(atomic_load(&disk.stats.ops[MEM_WRITE]), 0);
    EXPECT_EQ(run_read(0, 0), VIRTIO_BLK_S_OK);
    device_end();
}

TEST(vblk, an_error_of_the_backend_is_an_io_error)
{
    static const int codes[] = { -EIO, -ENOSPC, -ENOMEM, -EAGAIN };

    begin();
    for (unsigned i = 0; i < ARRAY_SIZE(codes); i++) {
        disk.fail_code = codes[i];
        atomic_store(&disk.fail_nth, 1);
        EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_IOERR);
        atomic_store(&disk.fail_nth, 1);
        EXPECT_EQ(run_read(0, SECTOR), VIRTIO_BLK_S_IOERR);
        EXPECT_EQ(used_len, 1);
        atomic_store(&disk.fail_nth, 1);
        EXPECT_EQ(run(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_IOERR);
    }
    EXPECT_EQ(run_read(0, SECTOR), VIRTIO_BLK_S_OK);
    device_end();
}

TEST(vblk, requests_beyond_the_end_of_a_disk_that_shrank_are_io_errors)
{
    begin();
    EXPECT_EQ(run_read(NB_SECTORS - 1, SECTOR), VIRTIO_BLK_S_OK);
    blk_drained_begin(disk.blk);
    bdrv_set_length(disk.node, DISK_BYTES / 2);
    blk_drained_end(disk.blk);
    EXPECT_EQ(run_read(NB_SECTORS - 1, SECTOR), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(run_read(NB_SECTORS / 2 - 1, SECTOR), VIRTIO_BLK_S_OK);
    EXPECT_EQ(transport.config_interrupts, 1);
    EXPECT_EQ(le64toh(read_config().capacity), NB_SECTORS / 2);
    device_end();
}

TEST(vblk, a_disk_may_shrink_while_a_request_is_in_flight)
{
    uint32_t head;

    begin();
    atomic_store(&disk.yield, MEM_YIELD_PARK);
    write_header(VIRTIO_BLK_T_OUT, NB_SECTORS - 1);
    ring_add(&ring,
             (RingBuf[]){
                 { header_gpa, 16, false }, { data_gpa, SECTOR, false }, { status_gpa, 1, true } },
             3);
    ring_publish(&ring);
    ring_kick(&ring);
    while (mem_nb_parked(&disk) < 1) {
        aio_poll(aio_main(), true);
    }
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    disk.fail_code = -EIO; /* as a file does that ends before */
    atomic_store(&disk.fail_nth, 1);
    mem_release_all(&disk);
    blk_drained_begin(disk.blk); /* the block layer takes notice; it waits for the request */
    bdrv_set_length(disk.node, DISK_BYTES / 2);
    blk_drained_end(disk.blk);
    dev_settle();
    EXPECT_EQ(transport.config_interrupts, 1);
    ASSERT_TRUE(ring_next_used(&ring, &head, &used_len));
    EXPECT_EQ(*status_byte(), VIRTIO_BLK_S_IOERR);
    ring_free(&ring, (uint16_t)head);
    EXPECT_EQ(run_write(NB_SECTORS - 1, SECTOR), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_OK);
    device_end();
}

/* --- read-only --- */

TEST(vblk, writes_to_a_read_only_disk_fail_whatever_was_negotiated)
{
    VirtioBlkParams params = default_params;

    params.read_only = true;
    for (int negotiated = 0; negotiated <= 1; negotiated++) {
        begin_with(&(MemConfig){ .length_bytes = DISK_BYTES }, &params,
                   negotiated ? 0 : FEATURE(VIRTIO_BLK_F_RO));
        EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_IOERR);
        EXPECT_EQ(run_range(VIRTIO_BLK_T_DISCARD, 0, 8, 0), VIRTIO_BLK_S_IOERR);
        EXPECT_EQ(run_range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 0), VIRTIO_BLK_S_IOERR);
        EXPECT_EQ(atomic_load(&disk.stats.ops[MEM_WRITE]), 0);
        EXPECT_EQ(atomic_load(&disk.stats.ops[MEM_ZEROES]), 0);
        EXPECT_EQ(run_read(0, SECTOR), VIRTIO_BLK_S_OK);
        EXPECT_EQ(run(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
        device_end();
    }
}

/* --- other types --- */

TEST(vblk, unknown_types_are_unsupported_and_complete)
{
    /* 14 erases, 15 to 26 are about zones, the highest bit was a barrier once */
    static const uint32_t types[] = { 2,  3,  5,   6,          7,          9,         14,
                                      15, 16, 17,  18,         20,         22,        24,
                                      26, 64, 255, 0x80000000, 0x80000001, UINT32_MAX };

    begin();
    for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
        EXPECT_EQ(run(types[i], 0, 512, 512), VIRTIO_BLK_S_UNSUPP);
        EXPECT_EQ(used_len, 1);
    }
    device_end();
}

TEST(vblk, get_id_gives_the_serial_padded_to_20_bytes)
{
    begin();
    memset(data(), 0xff, 64);
    EXPECT_EQ(run(VIRTIO_BLK_T_GET_ID, 0, 0, 20), VIRTIO_BLK_S_OK);
    EXPECT_EQ(memcmp(data(), "serial-1\0\0\0\0\0\0\0\0\0\0\0\0", 20), 0);
    EXPECT_EQ(used_len, 21);
    EXPECT_EQ(data()[20], 0xff);
    device_end();
}

TEST(vblk, get_id_into_a_short_or_a_long_buffer)
{
    VirtioBlkParams params = default_params;

    params.serial = "exactly-twenty-bytes";
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES }, &params, 0);
    memset(data(), 0xff, 64);
    EXPECT_EQ(run(VIRTIO_BLK_T_GET_ID, 0, 0, 7), VIRTIO_BLK_S_OK);
    EXPECT_EQ(memcmp(data(), "exactly\xff", 8), 0);
    EXPECT_EQ(used_len, 8);
    EXPECT_EQ(run(VIRTIO_BLK_T_GET_ID, 0, 0, 64), VIRTIO_BLK_S_OK);
    EXPECT_EQ(memcmp(data(), "exactly-twenty-bytes\xff", 21), 0);
    EXPECT_EQ(run(VIRTIO_BLK_T_GET_ID, 0, 0, 0), VIRTIO_BLK_S_OK);
    EXPECT_EQ(used_len, 1);
    device_end();
}

TEST(vblk, without_a_serial_the_id_stands_in)
{
    VirtioBlkParams params = default_params;

    params.serial = NULL;
    params.id = "a-name-of-more-than-twenty-bytes";
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES }, &params, 0);
    EXPECT_EQ(run(VIRTIO_BLK_T_GET_ID, 0, 0, 20), VIRTIO_BLK_S_OK);
    EXPECT_EQ(memcmp(data(), "a-name-of-more-than-", 20), 0);
    device_end();
}

/* --- write cache --- */

static unsigned fua(void)
{
    return atomic_load(&disk.stats.fua);
}

static unsigned flushes(void)
{
    return atomic_load(&disk.stats.ops[MEM_FLUSH]);
}

TEST(vblk, writes_are_cached_while_the_driver_can_flush)
{
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES, .honours_fua = true }, &default_params,
               FEATURE(VIRTIO_BLK_F_CONFIG_WCE));
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_OK);
    EXPECT_EQ(fua(), 0);
    EXPECT_EQ(run(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
    EXPECT_EQ(flushes(), 1);
    device_end();
}

TEST(vblk, neither_flush_nor_config_wce_negotiated_means_write_through)
{
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES, .honours_fua = true }, &default_params,
               FEATURE(VIRTIO_BLK_F_CONFIG_WCE) | FEATURE(VIRTIO_BLK_F_FLUSH));
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_OK);
    EXPECT_EQ(fua(), 1);
    EXPECT_EQ(run(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
    device_end();
}

TEST(vblk, config_wce_without_flush_starts_write_through)
{
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES, .honours_fua = true }, &default_params,
               FEATURE(VIRTIO_BLK_F_FLUSH));
    EXPECT_EQ(read_config().wce, 0);
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_OK);
    EXPECT_EQ(fua(), 1);
    device_end();
}

static void write_wce(uint8_t wce)
{
    dev_write_config(vdev, offsetof(struct virtio_blk_config, wce), &wce, 1);
}

TEST(vblk, the_driver_switches_the_write_cache_off_and_on)
{
    begin();
    EXPECT_EQ(read_config().wce, 1);
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_OK);
    EXPECT_EQ(fua(), 0);
    write_wce(0);
    EXPECT_EQ(read_config().wce, 0);
    EXPECT_EQ(flushes(), 1); /* what was cached before */
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_OK);
    EXPECT_EQ(fua(), 1);
    write_wce(0);
    EXPECT_EQ(flushes(), 1);
    write_wce(1);
    EXPECT_EQ(read_config().wce, 1);
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_OK);
    EXPECT_EQ(fua(), 1);
    device_end();
}

TEST(vblk, the_write_cache_is_switched_with_writes_in_flight)
{
    uint32_t head;

    begin();
    atomic_store(&disk.yield, MEM_YIELD_TWICE);
    for (unsigned i = 0; i < 8; i++) {
        write_header(VIRTIO_BLK_T_OUT, 0);
        ring_add(&ring,
                 (RingBuf[]){
                     { header_gpa, 16, false }, { data_gpa, 512, false }, { status_gpa, 1, true } },
                 3);
    }
    ring_publish(&ring);
    ring_kick(&ring);
    for (unsigned i = 0; i < 8; i++) {
        write_wce(i % 2);
    }
    dev_settle();
    for (unsigned i = 0; i < 8; i++) {
        EXPECT_TRUE(ring_next_used(&ring, &head, &used_len));
    }
    EXPECT_EQ(*status_byte(), VIRTIO_BLK_S_OK);
    EXPECT_EQ(blk_write_cache(blk), true);
    device_end();
}

TEST(vblk, config_writes_that_miss_the_write_cache_change_nothing)
{
    struct virtio_blk_config before, ones;

    begin();
    before = read_config();
    memset(&ones, 0, sizeof(ones));
    dev_write_config(vdev, 0, &ones, offsetof(struct virtio_blk_config, wce));
    dev_write_config(vdev, offsetof(struct virtio_blk_config, wce) + 1, &ones, 8);
    struct virtio_blk_config after = read_config();

    EXPECT_EQ(memcmp(&before, &after, sizeof(before)), 0);
    dev_write_config(vdev, 0, &ones, sizeof(ones)); /* this one covers it */
    EXPECT_EQ(read_config().wce, 0);
    EXPECT_EQ(le64toh(read_config().capacity), NB_SECTORS);
    device_end();
}

TEST(vblk, the_write_cache_is_not_writable_unless_negotiated)
{
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES, .honours_fua = true }, &default_params,
               FEATURE(VIRTIO_BLK_F_CONFIG_WCE));
    write_wce(0);
    EXPECT_EQ(read_config().wce, 1);
    device_end();
}

TEST(vblk, a_reset_gives_the_write_cache_back_as_it_was)
{
    begin();
    write_wce(0);
    dev_set_status(vdev, 0);
    EXPECT_EQ(read_config().wce, 1);
    device_end();
}

TEST(vblk, a_write_through_backend_stays_so)
{
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES,
                             .honours_fua = true,
                             .options = "cache=writethrough" },
               &default_params, 0);
    EXPECT_EQ(read_config().wce, 0);
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_OK);
    EXPECT_EQ(fua(), 1);
    device_end();
}

/* --- discard and write-zeroes --- */

TEST(vblk, write_zeroes_reads_zero_with_and_without_unmap)
{
    begin();
    for (uint32_t flags = 0; flags <= VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP; flags++) {
        memset(disk.data, 0xaa, DISK_BYTES);
        EXPECT_EQ(run_range(VIRTIO_BLK_T_WRITE_ZEROES, 3, 5, flags), VIRTIO_BLK_S_OK);
        EXPECT_EQ(used_len, 1);
        EXPECT_EQ(atomic_load(&disk.stats.unmap), flags);
        for (unsigned i = 0; i < 16 * SECTOR; i++) {
            bool zero = i / SECTOR >= 3 && i / SECTOR < 8;

            ASSERT_EQ((uint8_t)disk.data[i], zero ? 0 : 0xaa);
        }
    }
    device_end();
}

TEST(vblk, several_ranges_in_one_request)
{
    Range ranges[VIRTIO_BLK_RANGES_MAX];

    begin();
    memset(disk.data, 0xaa, DISK_BYTES);
    for (unsigned i = 0; i < VIRTIO_BLK_RANGES_MAX; i++) {
        ranges[i] = (Range){ i * 4, i % 4, 0 }; /* some are empty */
    }
    EXPECT_EQ(run_ranges(VIRTIO_BLK_T_WRITE_ZEROES, ranges, VIRTIO_BLK_RANGES_MAX),
              VIRTIO_BLK_S_OK);
    for (unsigned s = 0; s < VIRTIO_BLK_RANGES_MAX * 4; s++) {
        bool zero = s % 4 < (s / 4) % 4;

        ASSERT_EQ((uint8_t)disk.data[s * SECTOR], zero ? 0 : 0xaa);
    }
    /* overlapping ones are the driver's own affair */
    EXPECT_EQ(run_ranges(VIRTIO_BLK_T_WRITE_ZEROES, (Range[]){ { 0, 8, 0 }, { 4, 8, 0 } }, 2),
              VIRTIO_BLK_S_OK);
    EXPECT_EQ((uint8_t)disk.data[11 * SECTOR], 0);
    device_end();
}

TEST(vblk, discard_reaches_the_backend)
{
    begin();
    EXPECT_EQ(run_ranges(VIRTIO_BLK_T_DISCARD, (Range[]){ { 0, 8, 0 }, { 1024, 16, 0 } }, 2),
              VIRTIO_BLK_S_OK);
    EXPECT_EQ(atomic_load(&disk.stats.ops[MEM_DISCARD]), 2);
    /* misaligned to the backend's granularity: advice that may be dropped */
    EXPECT_EQ(run_range(VIRTIO_BLK_T_DISCARD, 3, 1, 0), VIRTIO_BLK_S_OK);
    device_end();
}

TEST(vblk, flags_that_are_not_known_are_unsupported)
{
    begin();
    EXPECT_EQ(run_range(VIRTIO_BLK_T_DISCARD, 0, 8, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP),
              VIRTIO_BLK_S_UNSUPP);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_DISCARD, 0, 8, 2), VIRTIO_BLK_S_UNSUPP);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 2), VIRTIO_BLK_S_UNSUPP);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 0x80000001), VIRTIO_BLK_S_UNSUPP);
    /* in the second range, and although the first is out of range: nothing is carried out */
    EXPECT_EQ(
        run_ranges(VIRTIO_BLK_T_WRITE_ZEROES, (Range[]){ { NB_SECTORS, 8, 0 }, { 0, 8, 2 } }, 2),
        VIRTIO_BLK_S_UNSUPP);
    EXPECT_EQ(atomic_load(&disk.stats.ops[MEM_DISCARD]), 0);
    EXPECT_EQ(atomic_load(&disk.stats.ops[MEM_ZEROES]), 0);
    device_end();
}

TEST(vblk, ranges_that_are_out_of_range_are_io_errors)
{
    static const uint32_t types[] = { VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES };
    static const Range bad[] = {
        { NB_SECTORS, 1, 0 }, { NB_SECTORS - 1, 2, 0 },
        { UINT64_MAX, 1, 0 }, { UINT64_MAX / SECTOR + 1, 8, 0 },
        { 0, UINT32_MAX, 0 }, { NB_SECTORS + 1, 0, 0 },
    };

    begin();
    for (unsigned t = 0; t < ARRAY_SIZE(types); t++) {
        for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
            EXPECT_EQ(run_ranges(types[t], &bad[i], 1), VIRTIO_BLK_S_IOERR);
            /* also behind a good one, which then is not carried out */
            EXPECT_EQ(run_ranges(types[t], (Range[]){ { 0, 8, 0 }, bad[i] }, 2),
                      VIRTIO_BLK_S_IOERR);
        }
    }
    EXPECT_EQ(atomic_load(&disk.stats.ops[MEM_DISCARD]), 0);
    EXPECT_EQ(atomic_load(&disk.stats.ops[MEM_ZEROES]), 0);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_DISCARD, NB_SECTORS, 0, 0), VIRTIO_BLK_S_OK);
    device_end();
}

TEST(vblk, a_range_longer_than_the_limit_is_an_io_error)
{
    MemConfig config = { .length_bytes = DISK_BYTES,
                         .limits = { .max_discard_bytes = 8192, .max_write_zeroes_bytes = 4096 } };

    begin_with(&config, &default_params, 0);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_DISCARD, 0, 16, 0), VIRTIO_BLK_S_OK);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_DISCARD, 0, 17, 0), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 0), VIRTIO_BLK_S_OK);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 9, 0), VIRTIO_BLK_S_IOERR);
    device_end();
}

TEST(vblk, ranges_of_a_wrong_number_or_length_are_io_errors)
{
    Range ranges[VIRTIO_BLK_RANGES_MAX + 1] = { 0 };

    begin();
    EXPECT_EQ(run_ranges_bytes(VIRTIO_BLK_T_DISCARD, ranges, 1, 15), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(run_ranges_bytes(VIRTIO_BLK_T_DISCARD, ranges, 2, 24), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(run_ranges(VIRTIO_BLK_T_DISCARD, ranges, VIRTIO_BLK_RANGES_MAX + 1),
              VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(run(VIRTIO_BLK_T_DISCARD, 0, 0, 0), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(run_ranges(VIRTIO_BLK_T_DISCARD, ranges, VIRTIO_BLK_RANGES_MAX), VIRTIO_BLK_S_OK);
    device_end();
}

TEST(vblk, a_failure_in_the_second_of_three_ranges_ends_the_request)
{
    begin();
    memset(disk.data, 0xaa, DISK_BYTES);
    disk.fail_code = -EIO;
    atomic_store(&disk.fail_nth, 2);
    EXPECT_EQ(run_ranges(VIRTIO_BLK_T_WRITE_ZEROES,
                         (Range[]){ { 0, 8, 0 }, { 16, 8, 0 }, { 32, 8, 0 } }, 3),
              VIRTIO_BLK_S_IOERR);
    EXPECT_EQ((uint8_t)disk.data[0], 0);
    EXPECT_EQ((uint8_t)disk.data[32 * SECTOR], 0xaa);
    device_end();
}

TEST(vblk, commands_that_were_not_negotiated_are_unsupported)
{
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES }, &default_params,
               FEATURE(VIRTIO_BLK_F_DISCARD) | FEATURE(VIRTIO_BLK_F_WRITE_ZEROES));
    EXPECT_EQ(run_range(VIRTIO_BLK_T_DISCARD, 0, 8, 0), VIRTIO_BLK_S_UNSUPP);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 0), VIRTIO_BLK_S_UNSUPP);
    EXPECT_EQ(atomic_load(&disk.stats.ops[MEM_DISCARD]), 0);
    device_end();
}

TEST(vblk, a_backend_without_these_commands_zeroes_by_writing)
{
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES, .no_zeroes = true, .no_discard = true },
               &default_params, 0);
    memset(disk.data, 0xaa, DISK_BYTES);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_WRITE_ZEROES, 2, 2, 0), VIRTIO_BLK_S_OK);
    EXPECT_EQ((uint8_t)disk.data[3 * SECTOR], 0);
    EXPECT_EQ((uint8_t)disk.data[4 * SECTOR], 0xaa);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_DISCARD, 0, 8, 0), VIRTIO_BLK_S_OK);
    device_end();
}

/* --- flush ordering, many requests, reset --- */

TEST(vblk, a_flush_covers_a_write_completed_before_it_was_submitted)
{
    begin();
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_OK);
    unsigned writes = atomic_load(&disk.stats.ops[MEM_WRITE]);

    EXPECT_EQ(writes, 1);
    EXPECT_EQ(flushes(), 0);
    EXPECT_EQ(run(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
    EXPECT_EQ(flushes(), 1); /* it was not answered from what came before */
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_OK);
    EXPECT_EQ(run(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
    EXPECT_EQ(flushes(), 2);
    device_end();
}

/* A second queue, whose requests have their headers and status bytes behind the first one's. */
static RingDriver other;

static void other_begin(void)
{
    ring_init(&other, &guest, vdev, 1, QUEUE_SIZE);
    dev_enable_queue(vdev, 1);
}

/* Hand it over and go on until it is parked or done. */
static void other_submit(uint32_t type, unsigned slot)
{
    uint64_t gpa = ranges_gpa + slot * 32;

    *(struct virtio_blk_outhdr *)guest_ptr(&guest, gpa) =
        (struct virtio_blk_outhdr){ .type = htole32(type) };
    ring_add(&other, (RingBuf[]){ { gpa, 16, false }, { gpa + 16, 1, true } }, 2);
    ring_publish(&other);
    ring_kick(&other);
    dev_settle();
}

TEST(vblk, a_flush_covers_a_write_completed_on_another_queue)
{
    begin();
    other_begin();
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_OK);
    atomic_store(&disk.yield, MEM_YIELD_PARK);
    other_submit(VIRTIO_BLK_T_FLUSH, 0);
    ASSERT_EQ(mem_nb_parked(&disk), 1); /* it goes to the disk, */
    EXPECT_EQ(mem_parked(&disk, 0).op, MEM_FLUSH);
    EXPECT_EQ(ring_used_index(&other), 0); /* and waits for it */
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    mem_release_all(&disk);
    dev_settle();
    EXPECT_EQ(ring_used_index(&other), 1);
    ring_finish(&other);
    device_end();
}

TEST(vblk, a_flush_is_not_answered_by_one_that_began_before_the_write)
{
    begin();
    other_begin();
    atomic_store(&disk.yield, MEM_YIELD_PARK);
    other_submit(VIRTIO_BLK_T_FLUSH, 0);
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_OK);
    atomic_store(&disk.yield, MEM_YIELD_PARK);
    other_submit(VIRTIO_BLK_T_FLUSH, 1);
    ASSERT_EQ(mem_nb_parked(&disk), 2);
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    mem_release(&disk, 0);
    dev_settle();
    EXPECT_EQ(ring_used_index(&other), 1);
    mem_release(&disk, 0);
    dev_settle();
    EXPECT_EQ(ring_used_index(&other), 2);
    EXPECT_EQ(flushes(), 2);
    ring_finish(&other);
    device_end();
}

static void add_reads(unsigned nb)
{
    for (unsigned i = 0; i < nb; i++) {
        write_header(VIRTIO_BLK_T_IN, 0);
        ring_add(&ring,
                 (RingBuf[]){ { header_gpa, 16, false },
                              { data_gpa + i * 1024, 512, true },
                              { status_gpa, 1, true } },
                 3);
    }
    ring_publish(&ring);
    ring_kick(&ring);
}

static void null_begin(const char *options)
{
    Error err;
    Opts opts;

    context_begin();
    ASSERT_EQ(opts_parse(&opts, "--disk", options, NULL, &err), 0);
    disk.blk = NULL;
    blk = blk_open("null", &opts, &err);
    ASSERT_TRUE(blk != NULL);
    opts_finish(&opts);
    device_create(&default_params);
    driver_begin(vdev_features_offered(vdev));
}

TEST(vblk, a_null_backend_completes_within_the_pass_of_the_kick)
{
    null_begin("driver=null,size=1M");
    add_reads(40);
    aio_poll(aio_main(), true);
    EXPECT_EQ(ring_used_index(&ring), 40);
    EXPECT_EQ(vdev->queues[0].stats.notifications, 1);
    device_end();
}

TEST(vblk, a_reset_waits_for_requests_in_flight)
{
    null_begin("driver=null,size=1M,latency-ns=200000000");
    add_reads(20);
    while (vdev->queues[0].stats.requests < 20) {
        aio_poll(aio_main(), true);
    }
    EXPECT_GT(vdev->queues[0].in_flight, 0);
    EXPECT_LT(ring_used_index(&ring), 20);
    dev_set_status(vdev, 0);
    EXPECT_EQ(ring_used_index(&ring), 20);
    EXPECT_EQ(blk_in_flight(blk), 0);

    ring_finish(&ring);
    driver_begin(vdev_features_offered(vdev));
    EXPECT_EQ(run_read(0, SECTOR), VIRTIO_BLK_S_OK);
    device_end();
}

TEST(vblk, a_reset_waits_for_a_write_that_is_parked_in_the_backend)
{
    begin();
    atomic_store(&disk.yield, MEM_YIELD_PARK);
    add_reads(3);
    while (mem_nb_parked(&disk) < 3) {
        aio_poll(aio_main(), true);
    }
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    mem_release(&disk, 2);
    dev_settle();
    EXPECT_EQ(ring_used_index(&ring), 1);
    mem_release(&disk, 0);
    mem_release(&disk, 0);
    dev_set_status(vdev, 0);
    EXPECT_EQ(ring_used_index(&ring), 3);
    device_end();
}

/* Forty seconds by itself. */
TEST(vblk, a_reset_does_not_wait_for_what_a_limit_holds_back)
{
    null_begin("driver=throttle,file.driver=null,file.size=1M,iops-total=1");
    add_reads(40);
    while (vdev->queues[0].in_flight < 38) {
        aio_poll(aio_main(), true);
    }
    dev_set_status(vdev, 0);
    EXPECT_EQ(vdev->queues[0].in_flight, 0);
    EXPECT_EQ(blk_in_flight(blk), 0);
    EXPECT_EQ(ring_used_index(&ring), 40);
    device_end();
}

/* What the first reset has let go is paid for in forty seconds; in the ring requests need not be let
 * go. Other limits forgive. */
TEST(vblk, what_a_reset_lets_go_is_paid_before_the_device_takes_more)
{
    Opts opts;
    Error err;

    null_begin("driver=throttle,file.driver=null,file.size=1M,iops-total=1");
    add_reads(40);
    while (vdev->queues[0].in_flight < 38) {
        aio_poll(aio_main(), true);
    }
    dev_set_status(vdev, 0);
    EXPECT_EQ(ring_used_index(&ring), 40);
    for (unsigned i = 0; i < 5; i++) {
        ring_finish(&ring);
        driver_begin(vdev_features_offered(vdev));
        add_reads(40);
        dev_settle();
        if (i < 4) {
            dev_set_status(vdev, 0);
            EXPECT_EQ(ring_used_index(&ring), 0);
        }
    }
    ASSERT_EQ(opts_parse(&opts, "blk", "iops-total=0", "x", &err), 0);
    ASSERT_EQ(bdrv_reconfigure(blk_node(blk), &opts, &err), 0);
    opts_finish(&opts);
    dev_settle(); /* nobody kicks again */
    EXPECT_EQ(ring_used_index(&ring), 40);
    device_end();
}

TEST(vblk, requests_wait_in_the_ring_for_the_end_of_a_drained_section)
{
    begin();
    blk_drained_begin(blk);
    add_reads(5);
    dev_settle();
    EXPECT_EQ(ring_used_index(&ring), 0);
    EXPECT_EQ(vdev->queues[0].in_flight, 0);
    blk_drained_end(blk); /* nobody kicks again */
    dev_settle();
    EXPECT_EQ(ring_used_index(&ring), 5);
    device_end();
}

TEST(vblk, what_was_popped_before_a_drained_section_is_waited_for)
{
    begin();
    atomic_store(&disk.yield, MEM_YIELD_TWICE);
    add_reads(3);
    aio_poll(aio_main(), false);
    EXPECT_EQ(vdev->queues[0].in_flight, 3);
    blk_drained_begin(blk);
    EXPECT_EQ(vdev->queues[0].in_flight, 0);
    EXPECT_EQ(disk.stats.active, 0);
    add_reads(2);
    dev_settle();
    EXPECT_EQ(vdev->queues[0].in_flight, 0);
    blk_drained_end(blk);
    dev_settle();
    EXPECT_EQ(ring_used_index(&ring), 5);
    device_end();
}

TEST(vblk, a_queue_started_in_a_drained_section_waits_for_its_end)
{
    begin();
    dev_set_status(vdev, 0);
    ring_finish(&ring);
    blk_drained_begin(blk);
    driver_begin(vdev_features_offered(vdev));
    add_reads(4);
    dev_settle();
    EXPECT_EQ(ring_used_index(&ring), 0);
    dev_set_status(vdev, 0); /* and one that is stopped in it does not wait */
    ring_finish(&ring);
    driver_begin(vdev_features_offered(vdev));
    add_reads(4);
    dev_settle();
    EXPECT_EQ(vdev->queues[0].in_flight, 0);
    blk_drained_end(blk);
    dev_settle();
    EXPECT_EQ(ring_used_index(&ring), 4);
    device_end();
}

/* --- no more coroutines --- */

/* Nothing in flight would tell of better times: the queue has to look for itself. */
TEST(vblk, without_memory_for_coroutines_requests_wait_in_the_ring)
{
    struct rlimit old, none;

    if (HAVE_ASAN || HAVE_TSAN) {
        TEST_SKIP("a sanitizer needs the address space");
    }
    begin();
    atomic_store(&disk.yield, MEM_YIELD_PARK);
    co_pool_drain();
    ASSERT_EQ(getrlimit(RLIMIT_AS, &old), 0);
    none = (struct rlimit){ .rlim_cur = 1 << 20, .rlim_max = old.rlim_max };
    ASSERT_EQ(setrlimit(RLIMIT_AS, &none), 0);
    add_reads(40);
    dev_settle();
    EXPECT_EQ(mem_nb_parked(&disk), 0);
    EXPECT_EQ(vdev->queues[0].in_flight, 0);
    uint64_t tried = vdev->queues[0].stats.self_kicks;

    while (vdev->queues[0].stats.self_kicks == tried) {
        aio_poll(aio_main(), true); /* it tries, and waits on */
    }
    EXPECT_EQ(vdev->queues[0].in_flight, 0);
    ASSERT_EQ(setrlimit(RLIMIT_AS, &old), 0);
    while (mem_nb_parked(&disk) < 40) {
        aio_poll(aio_main(), true); /* nobody kicks */
    }
    EXPECT_EQ(ring_used_index(&ring), 0);
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    mem_release_all(&disk);
    dev_settle();
    EXPECT_EQ(ring_used_index(&ring), 40);
    EXPECT_EQ(*status_byte(), VIRTIO_BLK_S_OK);
    EXPECT_FALSE(broken());
    device_end();
}

static co_fn void yield_entry(void *opaque)
{
    co_yield();
}

/* What another disk does to this one: it has all the coroutines that there are for requests. */
#define OTHERS 50

static Coroutine *others[OTHERS];

static void others_take_all(void)
{
    co_pool_drain();
    co_set_stacks_max(OTHERS);
    for (unsigned i = 0; i < OTHERS; i++) {
        others[i] = co_create(yield_entry, NULL);
        co_enter(others[i]);
    }
}

static void others_end(void)
{
    for (unsigned i = 0; i < OTHERS; i++) {
        co_enter(others[i]);
    }
}

/* A disk that parks what it gets, and forty requests for it, of which it gets its few. */
static void starved_begin(void)
{
    begin();
    others_take_all();
    atomic_store(&disk.yield, MEM_YIELD_PARK);
    add_reads(40);
    dev_settle();
    ASSERT_EQ(mem_nb_parked(&disk), CO_REQUESTS_GUARANTEED);
    ASSERT_EQ(vdev->queues[0].in_flight, CO_REQUESTS_GUARANTEED);
}

static void take_used(void)
{
    uint32_t head;

    while (ring_next_used(&ring, &head, &used_len)) {
        ring_free(&ring, (uint16_t)head);
    }
}

static void starved_end(void)
{
    others_end();
    EXPECT_FALSE(broken());
    device_end();
}

TEST(vblk, a_queue_without_more_coroutines_goes_on_as_its_own_requests_end)
{
    starved_begin();
    for (unsigned done = 1; done <= 40; done++) {
        mem_release(&disk, 0);
        dev_settle();
        ASSERT_EQ(ring_used_index(&ring), done);
        ASSERT_EQ(mem_nb_parked(&disk), MIN(40 - done, (unsigned)CO_REQUESTS_GUARANTEED));
    }
    EXPECT_EQ(*status_byte(), VIRTIO_BLK_S_OK);
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    take_used();
    EXPECT_EQ(run_read(0, SECTOR), VIRTIO_BLK_S_OK); /* it asks for kicks again */
    starved_end();
}

TEST(vblk, a_starved_queue_lets_the_loop_sleep)
{
    AioStats before, after;

    starved_begin();
    dev_settle();
    aio_context_stats(aio_main(), &before);
    for (unsigned i = 0; i < 100; i++) {
        aio_poll(aio_main(), false);
    }
    aio_context_stats(aio_main(), &after);
    EXPECT_EQ(after.bhs, before.bhs);
    EXPECT_FALSE(vq_has_work(&vdev->queues[0])); /* nor does it make it spin */
    EXPECT_FALSE(ring_wants_kick(&ring));
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    mem_release_all(&disk);
    dev_settle();
    EXPECT_EQ(ring_used_index(&ring), 40);
    starved_end();
}

TEST(vblk, a_kick_makes_a_starved_queue_try_again)
{
    starved_begin();
    others_end();
    ring_kick(&ring);
    dev_settle();
    EXPECT_EQ(mem_nb_parked(&disk), 40);
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    mem_release_all(&disk);
    others_take_all();
    starved_end();
}

TEST(vblk, a_drained_section_of_a_starved_queue_delays_and_loses_nothing)
{
    starved_begin();
    vdev_pause(vdev);
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    mem_release_all(&disk);
    dev_settle();
    EXPECT_EQ(ring_used_index(&ring), CO_REQUESTS_GUARANTEED);
    EXPECT_EQ(vdev->queues[0].in_flight, 0);
    vdev_resume(vdev);
    dev_settle();
    EXPECT_EQ(ring_used_index(&ring), 40);

    /* And one that is over before a request ends. */
    take_used();
    atomic_store(&disk.yield, MEM_YIELD_PARK);
    add_reads(20);
    dev_settle();
    EXPECT_EQ(mem_nb_parked(&disk), CO_REQUESTS_GUARANTEED);
    vdev_pause(vdev);
    dev_settle();
    vdev_resume(vdev);
    dev_settle();
    EXPECT_EQ(mem_nb_parked(&disk), CO_REQUESTS_GUARANTEED);
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    mem_release_all(&disk);
    dev_settle();
    EXPECT_EQ(ring_used_index(&ring), 60);
    starved_end();
}

TEST(vblk, a_starved_queue_is_stopped_and_begins_anew)
{
    starved_begin();
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    mem_release_all(&disk);
    dev_set_status(vdev, 0);
    EXPECT_GE(ring_used_index(&ring), CO_REQUESTS_GUARANTEED);
    EXPECT_EQ(blk_in_flight(blk), 0);
    ring_finish(&ring);
    driver_begin(vdev_features_offered(vdev));
    EXPECT_EQ(run_read(0, SECTOR), VIRTIO_BLK_S_OK);
    starved_end();
}

/* All of the guest's chains, as if another process had taken them before it died. */
static void leave_all(VqTracker *tracker, VhostUserQueueSplit *region, unsigned nb, VqBase *base)
{
    Error err;

    *region =
        (VhostUserQueueSplit){ .version = VHOST_USER_INFLIGHT_VERSION, .desc_num = QUEUE_SIZE };
    for (unsigned i = 0; i < nb; i++) {
        region->desc[le16toh(ring.avail->ring[i])] =
            (VhostUserDescSplit){ .inflight = 1, .counter = i };
    }
    ASSERT_EQ(vq_tracker_init(tracker, QUEUE_SIZE, &err), 0);
    ASSERT_EQ(vq_tracker_resume_split(tracker, region, QUEUE_SIZE, QUEUE_SIZE, 0, base, &err), 0);
}

static co_fn void stop_entry(void *opaque)
{
    vdev_co_queue_stop(vdev, opaque);
}

static co_fn void start_and_stop_entry(void *opaque)
{
    VirtQueue *vq = opaque;

    ASSERT_EQ(vdev_co_queue_start(vdev, vq, NULL), 0);
    vdev_co_queue_stop(vdev, vq);
}

/* Nobody would do them otherwise. */
TEST(vblk, a_queue_that_stops_takes_what_was_left_to_it_though_others_have_all_coroutines)
{
    AUTO_FREE VhostUserQueueSplit *region =
        calloc(1, sizeof(*region) + QUEUE_SIZE * sizeof(region->desc[0]));
    VirtQueue *vq;
    VqTracker tracker;
    VqBase base;

    if (guest_wants_packed()) {
        TEST_SKIP("the format of the ring makes no difference");
    }
    begin();
    vdev_pause(vdev);
    add_reads(40);
    vq = &vdev->queues[0];
    aio_co_run_sync(aio_main(), stop_entry, vq);
    leave_all(&tracker, region, 40, &base);
    vq_set_base(vq, base);
    vq->tracker = &tracker;
    vdev_resume(vdev);
    others_take_all();
    atomic_store(&disk.yield, MEM_YIELD_TWICE);
    aio_co_run_sync(aio_main(), start_and_stop_entry, vq);
    EXPECT_EQ(ring_used_index(&ring), 40);
    EXPECT_FALSE(vq_tracker_keeps(&tracker));
    vq->tracker = NULL;
    vq_tracker_finish(&tracker);
    starved_end();
}

TEST(vblk, a_starved_queue_takes_what_it_has_left_to_another_thread)
{
    IOThread *iothread;
    Error err;

    starved_begin();
    iothread = iothread_create("io0", NULL, &err);
    ASSERT_TRUE(iothread != NULL);
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    mem_release_all(&disk);
    EXPECT_EQ(dev_move_queue(vdev, 0, iothread_context(iothread)), 0);
    while (ring_used_index(&ring) < 40) {
        sched_yield();
    }
    EXPECT_EQ(dev_move_queue(vdev, 0, aio_main()), 0);
    take_used();
    EXPECT_EQ(run_read(0, SECTOR), VIRTIO_BLK_S_OK);
    iothread_unref(iothread);
    starved_end();
}

/* A disk of zeroes in a file without a name; its descriptor. */
static int file_begin(void)
{
    char path[] = "/var/tmp/penstock-test-XXXXXX", options[64];
    Error err;
    Opts opts;

    context_begin();
    int fd = mkstemp(path);

    ASSERT_GE(fd, 0);
    ASSERT_EQ(ftruncate(fd, DISK_BYTES), 0);
    snprintf(options, sizeof(options), "path=%s", path);
    ASSERT_EQ(opts_parse(&opts, "--disk", options, NULL, &err), 0);
    disk.blk = NULL;
    blk = blk_open("file", &opts, &err);
    unlink(path);
    ASSERT_TRUE(blk != NULL);
    opts_finish(&opts);
    device_create(&default_params);
    driver_begin(vdev_features_offered(vdev));
    return fd;
}

TEST(vblk, a_file_holds_what_the_guest_wrote)
{
    uint8_t expected[DATA_BYTES], on_disk[DATA_BYTES];
    AUTO_FD int fd = file_begin();

    fill(expected, sizeof(expected), 9);
    memcpy(data(), expected, sizeof(expected));
    EXPECT_EQ(run_write(100, DATA_BYTES), VIRTIO_BLK_S_OK);
    EXPECT_EQ(run(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_WRITE_ZEROES, 101, 2, 1), VIRTIO_BLK_S_OK);
    memset(expected + SECTOR, 0, 2 * SECTOR);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_DISCARD, 1024, 256, 0), VIRTIO_BLK_S_OK);
    memset(data(), 0xff, DATA_BYTES);
    EXPECT_EQ(run_read(100, DATA_BYTES), VIRTIO_BLK_S_OK);
    EXPECT_EQ(memcmp(data(), expected, DATA_BYTES), 0);
    ASSERT_EQ(pread(fd, on_disk, DATA_BYTES, 100 * SECTOR), DATA_BYTES);
    EXPECT_EQ(memcmp(on_disk, expected, DATA_BYTES), 0);
    device_end();
}

TEST(vblk, a_disk_with_nothing_to_do_gets_its_first_request_without_the_others)
{
    AUTO_FD int fd UNUSED = file_begin();

    if (strcmp(aio_context_monitor(aio_main()), "io_uring") != 0) {
        TEST_SKIP("worker threads take each request as it comes");
    }
    add_reads(20);
    while (vdev->queues[0].stats.requests == 0) {
        aio_poll(aio_main(), true);
    }
    EXPECT_EQ(vdev->queues[0].stats.requests, 1);
    while (ring_used_index(&ring) < 20) {
        aio_poll(aio_main(), true);
    }
    device_end();
}

/* --- accounting --- */

TEST(vblk, requests_are_counted_by_kind_with_bytes_and_errors)
{
    BlkAcctTotals totals = { 0 };

    begin();
    EXPECT_EQ(run_write(0, 4096), VIRTIO_BLK_S_OK);
    EXPECT_EQ(run_read(0, 1024), VIRTIO_BLK_S_OK);
    EXPECT_EQ(run_read(8, 512), VIRTIO_BLK_S_OK);
    EXPECT_EQ(run(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
    EXPECT_EQ(run(VIRTIO_BLK_T_GET_ID, 0, 0, 20), VIRTIO_BLK_S_OK);
    EXPECT_EQ(run(77, 0, 0, 0), VIRTIO_BLK_S_UNSUPP);
    EXPECT_EQ(run_ranges(VIRTIO_BLK_T_WRITE_ZEROES, (Range[]){ { 0, 3, 0 }, { 8, 2, 0 } }, 2),
              VIRTIO_BLK_S_OK);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_DISCARD, 0, 8, 0), VIRTIO_BLK_S_OK);
    disk.fail_code = -EIO;
    atomic_store(&disk.fail_nth, 1);
    EXPECT_EQ(run_read(0, 512), VIRTIO_BLK_S_IOERR);
    blk_acct_add(virtio_blk_acct(vblk, 0), &totals);
    EXPECT_EQ(totals.op[BLK_ACCT_READ].requests, 3);
    EXPECT_EQ(totals.op[BLK_ACCT_READ].bytes, 1536);
    EXPECT_EQ(totals.op[BLK_ACCT_READ].errors, 1);
    EXPECT_TRUE(blk_acct_percentile_ns(&totals.op[BLK_ACCT_READ], 9999) > 0);
    EXPECT_EQ(totals.op[BLK_ACCT_WRITE].requests, 1);
    EXPECT_EQ(totals.op[BLK_ACCT_WRITE].bytes, 4096);
    EXPECT_EQ(totals.op[BLK_ACCT_WRITE].errors, 0);
    EXPECT_EQ(totals.op[BLK_ACCT_FLUSH].requests, 1);
    EXPECT_EQ(totals.op[BLK_ACCT_WRITE_ZEROES].requests, 1);
    EXPECT_EQ(totals.op[BLK_ACCT_WRITE_ZEROES].bytes, 5 * SECTOR);
    EXPECT_EQ(totals.op[BLK_ACCT_DISCARD].bytes, 8 * SECTOR);
    device_end();
}

/* --- errors of the storage --- */

static unsigned nb_stops;
static int stop_error;
static bool stop_is_write;

static unsigned nb_reported, nb_ignored;

static void failed_cb(void *opaque, bool is_write, bool ignored, int error)
{
    EXPECT_LT(error, 0);
    nb_ignored += ignored;
    nb_reported += !ignored;
}

static void stop_cb(void *opaque, bool is_write, int error)
{
    nb_stops++;
    stop_is_write = is_write;
    stop_error = error;
}

static void begin_with_policy(VirtioBlkOnError on_read, VirtioBlkOnError on_write)
{
    static const VirtioBlkStopOps ops = { .stop = stop_cb, .failed = failed_cb };
    VirtioBlkParams params = default_params;

    params.on_read_error = on_read;
    params.on_write_error = on_write;
    params.stop_ops = &ops;
    nb_stops = nb_reported = nb_ignored = 0;
    begin_with(&(MemConfig){ .length_bytes = DISK_BYTES, .honours_fua = true }, &params, 0);
}

static void fail_next(int code)
{
    disk.fail_code = code;
    atomic_store(&disk.fail_nth, 1);
}

/* Hand a write of a sector over, do not wait for it. */
static void start_write(uint64_t sector)
{
    write_header(VIRTIO_BLK_T_OUT, sector);
    ring_add(&ring,
             (RingBuf[]){
                 { header_gpa, 16, false }, { data_gpa, SECTOR, false }, { status_gpa, 1, true } },
             3);
    ring_publish(&ring);
    ring_kick(&ring);
    dev_settle();
}

static bool next_is_done(void)
{
    uint32_t head;

    if (!ring_next_used(&ring, &head, &used_len)) {
        return false;
    }
    ring_free(&ring, (uint16_t)head);
    return true;
}

TEST(vblk_errors, what_is_ignored_is_a_success_to_the_guest)
{
    begin_with_policy(VIRTIO_BLK_IGNORE, VIRTIO_BLK_REPORT);
    fail_next(-EIO);
    EXPECT_EQ(run_read(0, SECTOR), VIRTIO_BLK_S_OK);
    EXPECT_EQ(used_len, SECTOR + 1);
    fail_next(-EIO);
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(nb_ignored, 1);
    EXPECT_EQ(nb_reported, 1);
    EXPECT_EQ(run_read(NB_SECTORS, SECTOR), VIRTIO_BLK_S_IOERR); /* the guest's own mistake */
    EXPECT_EQ(nb_reported, 1);
    device_end();

    begin_with_policy(VIRTIO_BLK_REPORT, VIRTIO_BLK_IGNORE);
    fail_next(-ENOSPC);
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_OK);
    fail_next(-EIO);
    EXPECT_EQ(run(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
    fail_next(-EIO);
    EXPECT_EQ(run_range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 1, 0), VIRTIO_BLK_S_OK);
    fail_next(-EIO);
    EXPECT_EQ(run_read(0, SECTOR), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(nb_stops, 0);
    device_end();
}

TEST(vblk_errors, a_held_request_is_made_again_until_it_succeeds)
{
    begin_with_policy(VIRTIO_BLK_REPORT, VIRTIO_BLK_STOP);
    memset(data(), 0x77, SECTOR);
    fail_next(-EIO);
    start_write(3);
    EXPECT_EQ(nb_stops, 1);
    EXPECT_EQ(stop_error, -EIO);
    EXPECT_TRUE(stop_is_write);
    EXPECT_TRUE(virtio_blk_holds_requests(vblk));
    EXPECT_FALSE(next_is_done());
    /* The disk is not in use meanwhile. */
    blk_drained_begin(disk.blk);
    blk_drained_end(disk.blk);
    fail_next(-ENOSPC);
    virtio_blk_retry(vblk);
    dev_settle();
    EXPECT_EQ(nb_stops, 2);
    EXPECT_EQ(stop_error, -ENOSPC);
    EXPECT_FALSE(next_is_done());
    virtio_blk_retry(vblk);
    dev_settle();
    ASSERT_TRUE(next_is_done());
    EXPECT_EQ(*status_byte(), VIRTIO_BLK_S_OK);
    EXPECT_EQ(disk.data[3 * SECTOR], 0x77);
    EXPECT_FALSE(virtio_blk_holds_requests(vblk));
    fail_next(-EIO);
    EXPECT_EQ(run_read(0, SECTOR), VIRTIO_BLK_S_IOERR);
    device_end();
}

TEST(vblk_errors, only_a_full_disk_stops_where_that_is_said)
{
    begin_with_policy(VIRTIO_BLK_REPORT, VIRTIO_BLK_STOP_ENOSPC);
    fail_next(-EIO);
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(nb_stops, 0);
    fail_next(-ENOSPC);
    start_write(0);
    EXPECT_EQ(nb_stops, 1);
    virtio_blk_retry(vblk);
    dev_settle();
    ASSERT_TRUE(next_is_done());
    EXPECT_EQ(*status_byte(), VIRTIO_BLK_S_OK);
    device_end();

    /* What would fail again and again stops nobody. */
    begin_with_policy(VIRTIO_BLK_STOP, VIRTIO_BLK_STOP);
    fail_next(-EINVAL);
    EXPECT_EQ(run_write(0, SECTOR), VIRTIO_BLK_S_IOERR);
    fail_next(-EOPNOTSUPP);
    EXPECT_EQ(run_read(0, SECTOR), VIRTIO_BLK_S_UNSUPP);
    device_end();
}

static main_fn IOThread *elsewhere(void)
{
    Error err;
    IOThread *iothread = iothread_create("elsewhere", NULL, &err);

    ASSERT_TRUE(iothread != NULL);
    return iothread;
}

TEST(vblk_errors, a_queue_that_holds_a_request_does_not_move)
{
    IOThread *iothread;

    begin_with_policy(VIRTIO_BLK_STOP, VIRTIO_BLK_STOP);
    iothread = elsewhere();
    fail_next(-EIO);
    start_write(0);
    EXPECT_EQ(nb_stops, 1);
    EXPECT_EQ(dev_move_queue(vdev, 0, iothread_context(iothread)), -EBUSY);
    EXPECT_EQ(dev_move_queue(vdev, 1, iothread_context(iothread)), 0); /* it holds none */
    virtio_blk_retry(vblk);
    dev_settle();
    EXPECT_TRUE(next_is_done());
    EXPECT_EQ(run_write(1, SECTOR), VIRTIO_BLK_S_OK); /* it still listens */
    EXPECT_EQ(dev_move_queue(vdev, 0, iothread_context(iothread)), 0);
    EXPECT_EQ(dev_move_queue(vdev, 0, aio_main()), 0);
    EXPECT_EQ(dev_move_queue(vdev, 1, aio_main()), 0);
    iothread_unref(iothread);
    device_end();
}

typedef struct MoveCall {
    AioContext *ctx;
    int ret; /* 1 = has not returned */
} MoveCall;

static void move_entry(void *opaque)
{
    MoveCall *call = opaque;

    assert_in_coroutine();
    call->ret = vdev_co_move_queue(vdev, 0, call->ctx);
}

TEST(vblk_errors, a_move_does_not_wait_for_a_request_that_fails_meanwhile)
{
    MoveCall call = { .ret = 1 };
    IOThread *iothread;

    begin_with_policy(VIRTIO_BLK_STOP, VIRTIO_BLK_STOP);
    iothread = elsewhere();
    call.ctx = iothread_context(iothread);
    atomic_store(&disk.yield, MEM_YIELD_PARK);
    start_write(0);
    ASSERT_EQ(mem_nb_parked(&disk), 1);
    aio_co_enter(aio_main(), co_create(move_entry, &call)); /* with the request at the disk */
    dev_settle();
    EXPECT_EQ(call.ret, 1);
    fail_next(-EIO);
    mem_release_all(&disk);
    dev_settle();
    EXPECT_EQ(nb_stops, 1);
    EXPECT_EQ(call.ret, -EBUSY);
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    virtio_blk_retry(vblk);
    dev_settle();
    EXPECT_TRUE(next_is_done());
    EXPECT_EQ(*status_byte(), VIRTIO_BLK_S_OK);
    iothread_unref(iothread);
    device_end();
}

TEST(vblk_errors, a_reset_does_not_wait_for_held_requests)
{
    begin_with_policy(VIRTIO_BLK_STOP, VIRTIO_BLK_STOP);
    fail_next(-EIO);
    start_write(0);
    EXPECT_EQ(nb_stops, 1);
    dev_set_status(vdev, 0);
    EXPECT_EQ(disk.stats.ops[MEM_WRITE], 1); /* nor make them again */
    device_end();
}

static void reset_entry(void *opaque)
{
    assert_in_coroutine();
    vdev_co_reset(vdev);
}

TEST(vblk_errors, a_request_that_fails_while_its_queue_is_halted_is_not_held)
{
    begin_with_policy(VIRTIO_BLK_STOP, VIRTIO_BLK_STOP);
    atomic_store(&disk.yield, MEM_YIELD_PARK);
    start_write(0);
    ASSERT_EQ(mem_nb_parked(&disk), 1);
    aio_co_enter(aio_main(), co_create(reset_entry, NULL)); /* with the request at the disk */
    fail_next(-EIO);
    mem_release_all(&disk);
    dev_settle();
    EXPECT_EQ(nb_stops, 0);
    EXPECT_EQ(vdev_status(vdev), 0);
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    device_end();
}

TEST_MAIN()
