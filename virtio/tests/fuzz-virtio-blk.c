/*
 * fuzz-virtio-blk.c - a driver that asks a block device for anything, in any order
 *
 * The input is two bytes that choose the disk and the features, and a list of actions, 16 bytes
 * each: what, options, two numbers and a value. The actions are requests of any type, range, length
 * and framing, chains put together piece by piece, configuration and register accesses, status
 * bytes, resets; and what may happen behind the device: errors, delays, another length, a drained
 * section. The rings themselves are in order, which is what the checks below stand on;
 * fuzz-virtqueue.c is for rings that are not.
 *
 * What has to hold, whatever the input:
 * 1. Of guest memory only the writable buffers of a chain are written.
 * 2. Each request of a running queue comes back once, with a status that there is and a used length
 *    of at least its status byte and at most what was writable.
 * 3. The disk gets nothing that block-driver.h rules out, and nothing beyond its end.
 * 4. Afterwards an honest driver reads what it wrote.
 *
 * With libFuzzer:
 *     clang -fsanitize=fuzzer,address,undefined -g -D_GNU_SOURCE -I. -o fuzz-virtio-blk \
 *         virtio/tests/{fuzz-virtio-blk,ring-driver,ring-packed}.c \
 *         block/tests/mem-driver.c guest-tests/harness/harness.c \
 *         $(find virtio block io -maxdepth 2 -name '*.[cS]' ! -path '*tests*' \
 *         ! -name '*aarch64*') -luring -lpthread
 *     ./fuzz-virtio-blk -max_len=4096 virtio/tests/corpus-virtio-blk
 *
 * With FUZZ_CORPUS_DIR defined it is an ordinary test: it replays that corpus and a few inputs of
 * its own making; FUZZ_ROUNDS in the environment asks for more of these, TEST_RING=packed for
 * packed rings.
 */
#include <stdio.h>

#include "block/tests/mem-driver.h"
#include "io/base/test.h"
#include "virtio/tests/ring-driver.h"
#include "virtio/virtio-blk.h"

#define QUEUES     2
#define QUEUE_SIZE 64
#define SECTOR     512
#define DISK_BYTES (256u << 10)

#define AREA_BYTES   16384u
#define CANARY       0xc5
#define CHAIN_MAX    24
#define HEADER_BYTES sizeof(struct virtio_blk_outhdr)

#define ACTION_BYTES 16
#define ACTIONS_MAX  512

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes);

typedef struct Action {
    unsigned what, how, options;
    uint16_t a;
    uint32_t b;
    uint64_t c;
} Action;

/* A chain that the device has, by its head. */
typedef struct Sent {
    bool out;
    bool own_status; /* in status_gpa[]; else it lies in the data */
    uint64_t writable_bytes;
} Sent;

typedef struct Queue {
    RingDriver ring;
    bool live; /* the device was told of it and not reset since */
    Sent sent[QUEUE_SIZE];
    unsigned nb_sent;
    RingBuf chain[CHAIN_MAX];
    unsigned nb_chain;
} Queue;

static Guest guest;
static MemDisk disk;
static VirtioBlk *vblk;
static VirtioDevice *vdev;
static GuestTransport transport;
static Queue queues[QUEUES];
static uint64_t features;

/* Device-readable data; what the driver wrote there is in out_copy, too. */
static uint64_t out_gpa;
static uint8_t out_copy[AREA_BYTES];
/* Device-writable data; a status byte and a table for each head, canaries around all. */
static uint64_t in_gpa, status_gpa, table_gpa;

/* --- guest memory --- */

static void write_out(uint32_t offset, const void *data, size_t len_bytes)
{
    offset %= AREA_BYTES;
    len_bytes = MIN(len_bytes, (size_t)(AREA_BYTES - offset));
    memcpy(guest_ptr(&guest, out_gpa + offset), data, len_bytes);
    memcpy(out_copy + offset, data, len_bytes);
}

static uint64_t status_gpa_of(const Queue *queue, unsigned head)
{
    return status_gpa + ((queue - queues) * QUEUE_SIZE + head) * 2u;
}

static void check_canaries(void)
{
    const uint8_t *in = guest_ptr(&guest, in_gpa), *status = guest_ptr(&guest, status_gpa);

    ASSERT_EQ(memcmp(guest_ptr(&guest, out_gpa), out_copy, AREA_BYTES), 0);
    for (unsigned i = 1; i <= 64; i++) {
        ASSERT_EQ(*(in - i), CANARY);
        ASSERT_EQ(in[AREA_BYTES + i - 1], CANARY);
    }
    for (unsigned i = 0; i < QUEUES * QUEUE_SIZE; i++) {
        ASSERT_EQ(status[2 * i + 1], CANARY);
    }
}

static uint64_t alloc_canaries(uint64_t len_bytes)
{
    uint64_t gpa = guest_alloc(&guest, len_bytes + 128, 64);

    memset(guest_ptr(&guest, gpa), CANARY, len_bytes + 128);
    return gpa + 64;
}

static void memory_init(void)
{
    guest_rewind(&guest);
    out_gpa = guest_alloc(&guest, AREA_BYTES, 4096);
    in_gpa = alloc_canaries(AREA_BYTES);
    status_gpa = alloc_canaries(QUEUES * QUEUE_SIZE * 2);
    table_gpa = guest_alloc(&guest, QUEUES * QUEUE_SIZE * CHAIN_MAX * 16, 16);
    memset(out_copy, 0, sizeof(out_copy));
    write_out(0, out_copy, AREA_BYTES);
}

/* --- requests that the disk keeps --- */

#define RELEASE_PASSES 3

static unsigned nb_passes;

static void release_bh(void *opaque)
{
    if (++nb_passes < RELEASE_PASSES) {
        aio_bh_schedule_oneshot(aio_main(), release_bh, NULL);
        return;
    }
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    mem_release_all(&disk);
}

/* Before anything that may wait for them: they go on when that has begun to wait. */
static void release_later(void)
{
    nb_passes = 0;
    aio_bh_schedule_oneshot(aio_main(), release_bh, NULL);
}

/* --- control --- */

static void start(void)
{
    release_later();
    ASSERT_TRUE(dev_negotiate(vdev, vdev_features_offered(vdev) & features));
    memory_init();
    for (unsigned q = 0; q < QUEUES; q++) {
        ring_finish(&queues[q].ring);
        memset(&queues[q], 0, sizeof(queues[q]));
        ring_init(&queues[q].ring, &guest, vdev, q, QUEUE_SIZE);
        dev_enable_queue(vdev, q);
        queues[q].live = true;
    }
    dev_driver_ok(vdev);
}

static void set_status(uint8_t status)
{
    release_later();
    dev_set_status(vdev, status);
    if (status == 0) {
        queues[0].live = queues[1].live = false;
    }
}

static void touch_queue(const Action *action)
{
    VirtQueue *vq = vdev_queue(vdev, action->a); /* mostly there is none */
    unsigned index = action->a % QUEUES;

    switch (action->how) {
    case 0:
        dev_enable_queue(vdev, index);
        break;
    case 1:
        release_later();
        dev_reset_queue(vdev, index);
        queues[index].live &= vdev->queues[index].started;
        break;
    default:
        if (vq) {
            vdev_queue_set_size(vdev, vq, (uint16_t)action->b);
            vdev_queue_set_address(vdev, vq, action->options % 3, action->options & 4, action->b);
        }
        break;
    }
}

static void touch_config(const Action *action)
{
    uint8_t config[64];
    size_t offset = action->a % (sizeof(struct virtio_blk_config) + 8);

    if (action->how & 1) {
        release_later();
        dev_write_config(vdev, offset, &action->c, action->b % sizeof(action->c) + 1);
    } else {
        vdev_config_read(vdev, offset, config, action->b % sizeof(config) + 1);
    }
}

/* --- chains --- */

static void chain_add(Queue *queue, uint32_t offset, uint32_t len, bool writable)
{
    offset %= AREA_BYTES;
    len = MIN(len, AREA_BYTES - offset);
    if (queue->nb_chain < CHAIN_MAX) {
        queue->chain[queue->nb_chain++] =
            (RingBuf){ (writable ? in_gpa : out_gpa) + offset, len, writable };
    }
}

static void chain_send(Queue *queue, bool own_status, bool indirect)
{
    RingDriver *ring = &queue->ring;
    unsigned nb = queue->nb_chain;
    uint16_t head = ring->free_head;

    queue->nb_chain = 0;
    if (!queue->live || nb == 0 || ring->nb_free < nb + 1) {
        return;
    }
    Sent sent = { .out = true, .own_status = own_status };

    if (own_status) {
        uint64_t gpa = status_gpa_of(queue, head);

        nb = MIN(nb, CHAIN_MAX - 1u);
        queue->chain[nb++] = (RingBuf){ gpa, 1, true };
        *(uint8_t *)guest_ptr(&guest, gpa) = CANARY;
    }
    for (unsigned i = 0; i < nb; i++) {
        sent.writable_bytes += queue->chain[i].writable ? queue->chain[i].len : 0;
    }
    if (indirect && vdev_has_feature(vdev, VIRTIO_RING_F_INDIRECT_DESC)) {
        uint64_t table = ((queue - queues) * QUEUE_SIZE + head) * CHAIN_MAX * 16u;

        ring_add_indirect(ring, table_gpa + table, queue->chain, nb);
    } else {
        ring_add(ring, queue->chain, nb);
    }
    queue->sent[head] = sent;
    queue->nb_sent++;
}

static void chain_add_data(Queue *queue, const Action *action, uint32_t len, bool writable)
{
    unsigned nb_pieces = action->options % 4 + 1;
    uint32_t offset = action->b % (AREA_BYTES / 2), piece = MAX(len / nb_pieces, 1u);

    while (len > 0 && queue->nb_chain < CHAIN_MAX - 1) {
        uint32_t now = MIN(queue->nb_chain < CHAIN_MAX - 3 ? piece : len, len);

        now = MIN(now, AREA_BYTES / 2);
        chain_add(queue, offset, now, writable);
        len -= now;
    }
}

/* Ranges of a discard or write-zeroes that may be good. */
static void write_ranges(const Action *action, unsigned nb)
{
    for (unsigned i = 0; i < nb; i++) {
        struct virtio_blk_discard_write_zeroes range = {
            .sector = htole64((action->c + i * 8) % (DISK_BYTES / SECTOR)),
            .num_sectors = htole32((uint16_t)(action->c >> 16) % 128),
            .flags = htole32((uint8_t)(action->c >> 32) % 4),
        };

        write_out(action->b % (AREA_BYTES / 2) + i * sizeof(range), &range, sizeof(range));
    }
}

/* A request as drivers make them, or nearly. */
static void send_request(Queue *queue, const Action *action)
{
    static const uint32_t types[] = { VIRTIO_BLK_T_IN,      VIRTIO_BLK_T_OUT,
                                      VIRTIO_BLK_T_FLUSH,   VIRTIO_BLK_T_GET_ID,
                                      VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES };
    uint32_t type = action->what < ARRAY_SIZE(types) ? types[action->what] : action->b;
    uint64_t sector = action->options & 0x10 ? action->c : action->c % (DISK_BYTES / SECTOR + 2);
    uint32_t len = action->options & 0x20 ? action->a : action->a % 96 * SECTOR;
    uint32_t at = AREA_BYTES - HEADER_BYTES * (1 + queue->ring.free_head);
    struct virtio_blk_outhdr header = { .type = htole32(type), .sector = htole64(sector) };
    bool writable = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
    bool own_status = !(action->how & 2);

    if (type == VIRTIO_BLK_T_DISCARD || type == VIRTIO_BLK_T_WRITE_ZEROES) {
        len = action->options & 0x20 ? action->a : (action->a % 34) * 16u;
        write_ranges(action, action->options & 0x40 ? 0 : action->a % 34);
    }
    queue->nb_chain = 0;
    write_out(at, &header, sizeof(header));
    if (action->how & 8) {
        chain_add(queue, at, 1, false);
        chain_add(queue, at + 1, HEADER_BYTES - 1, false);
    } else {
        chain_add(queue, at, HEADER_BYTES, false);
    }
    chain_add_data(queue, action, len, writable);
    if (!own_status && !writable) {
        chain_add(queue, action->b, 1 + action->options / 64, true);
    }
    chain_send(queue, own_status, action->how & 1);
}

static void take_used(Queue *queue)
{
    uint32_t head, len;

    while (queue->live && ring_next_used(&queue->ring, &head, &len)) {
        ASSERT_LT(head, QUEUE_SIZE);
        Sent *sent = &queue->sent[head];

        ASSERT_TRUE(sent->out);
        ASSERT_GE(len, 1);
        ASSERT_LE(len, sent->writable_bytes);
        if (sent->own_status) {
            const uint8_t *status = guest_ptr(&guest, status_gpa_of(queue, head));

            ASSERT_LE(*status, VIRTIO_BLK_S_UNSUPP);
        }
        sent->out = false;
        queue->nb_sent--;
        ring_free(&queue->ring, (uint16_t)head);
    }
}

static void kick(Queue *queue)
{
    if (queue->live) {
        ring_publish(&queue->ring);
        ring_kick(&queue->ring);
    }
}

static void settle(void)
{
    for (unsigned q = 0; q < QUEUES; q++) {
        kick(&queues[q]);
    }
    release_later();
    dev_settle();
    for (unsigned q = 0; q < QUEUES; q++) {
        take_used(&queues[q]);
        if (queues[q].live && vdev->queues[q].active) {
            ASSERT_EQ(queues[q].nb_sent, 0);
        }
        ASSERT_EQ(vdev->queues[q].in_flight, 0);
    }
    check_canaries();
}

/* --- behind the device --- */

static void set_length(uint64_t length_bytes)
{
    release_later();
    blk_drained_begin(disk.blk);
    bdrv_set_length(disk.node, length_bytes);
    blk_drained_end(disk.blk);
}

static void touch_disk(const Action *action)
{
    static const MemYield yields[] = { MEM_YIELD_NEVER, MEM_YIELD_TWICE, MEM_YIELD_PARK };
    static const int codes[] = { -EIO, -ENOSPC, -ENOMEM, -EAGAIN, -EOPNOTSUPP, -EINTR };

    switch (action->how % 4) {
    case 0:
        atomic_store(&disk.yield, yields[action->a % ARRAY_SIZE(yields)]);
        break;
    case 1:
        disk.fail_code = codes[action->b % ARRAY_SIZE(codes)];
        atomic_store(&disk.fail_nth, action->a % 8);
        break;
    case 2:
        set_length(action->a % (DISK_BYTES / 4096 + 1) * 4096);
        break;
    default:
        release_later();
        blk_drained_begin(disk.blk);
        kick(&queues[action->a % QUEUES]);
        dev_settle();
        blk_drained_end(disk.blk);
        break;
    }
}

static void act(const Action *action)
{
    Queue *queue = &queues[action->options >> 3 & 1];

    switch (action->what) {
    case 0 ... 6:
        send_request(queue, action);
        break;
    case 7:
        chain_add(queue, action->b, action->a, action->how & 1);
        break;
    case 8:
        chain_send(queue, action->how & 2, action->how & 1);
        break;
    case 9:
        write_out(action->b, &action->c, sizeof(action->c));
        break;
    case 10:
        touch_config(action);
        break;
    case 11:
        set_status((uint8_t)action->a);
        break;
    case 12:
        touch_queue(action);
        break;
    case 13:
        touch_disk(action);
        break;
    case 14:
        if (action->how == 0) {
            start();
        } else if (action->how == 1) {
            dev_write_features(vdev, action->c);
        } else {
            kick(queue);
            aio_poll(aio_main(), false);
            take_used(queue);
        }
        break;
    default:
        settle();
        break;
    }
}

/* --- one input --- */

static void world_init(uint8_t choice, uint8_t more)
{
    static const uint32_t alignments[] = { 1, 512, 4096, 512 };
    VirtioBlkParams params = {
        .id = "fuzz", .nb_queues = QUEUES, .queue_size = QUEUE_SIZE, .packed = guest_wants_packed()
    };
    MemConfig config = { .length_bytes = DISK_BYTES };
    Error err = { 0 };

    if (!guest_main_context(&err)) {
        TEST_SKIP("%s", err.msg);
    }
    log_set_level(LOG_LEVEL_ERROR);
    config.limits.request_alignment = alignments[choice & 3];
    config.limits.buffer_alignment = choice & 4 ? 512 : 1;
    config.limits.max_transfer_bytes = choice & 8 ? 8192 : 0;
    config.limits.discard_alignment = choice & 16 ? 4096 : 0;
    config.honours_fua = choice & 32;
    config.no_zeroes = config.no_discard = choice & 64;
    config.options = choice & 128 ? "readonly=on" : "discard=unmap";
    params.block_bytes = more & 1 ? 4096 : 512;
    params.read_only = more & 2;
    features = ~(uint64_t)0;
    features &= ~(more & 4 ? FEATURE(VIRTIO_RING_F_EVENT_IDX) : 0);
    features &= ~(more & 8 ? FEATURE(VIRTIO_BLK_F_FLUSH) : 0);
    features &= ~(more & 16 ? FEATURE(VIRTIO_BLK_F_CONFIG_WCE) : 0);
    features &= ~(more & 32 ? FEATURE(VIRTIO_BLK_F_DISCARD) : 0);
    features &= ~(more & 64 ? FEATURE(VIRTIO_BLK_F_WRITE_ZEROES) : 0);
    features &= ~(more & 128 ? FEATURE(VIRTIO_RING_F_INDIRECT_DESC) : 0);

    guest_init(&guest, 512 << 10);
    mem_open(&disk, &config);
    vblk = virtio_blk_create(&params, disk.blk, &guest.gm, &err);
    ASSERT_TRUE(vblk != NULL);
    vdev = virtio_blk_device(vblk);
    guest_transport_init(&transport, vdev);
    memset(queues, 0, sizeof(queues));
    start();
}

static void world_finish(void)
{
    AioContext *ctx = aio_main();

    dev_set_status(vdev, 0);
    ASSERT_EQ(transport.nb_attached, 0);
    virtio_blk_destroy(vblk);
    for (unsigned q = 0; q < QUEUES; q++) {
        ring_finish(&queues[q].ring);
    }
    ASSERT_EQ(atomic_load(&disk.stats.violations), 0);
    mem_close(&disk);
    guest_finish(&guest);
    aio_context_destroy(ctx);
}

static unsigned run_honest(unsigned type, bool readable, bool writable)
{
    Queue *queue = &queues[1];
    struct virtio_blk_outhdr header = { .type = htole32(type), .sector = htole64(8) };
    uint16_t head = queue->ring.free_head;

    write_out(0, &header, sizeof(header));
    chain_add(queue, 0, HEADER_BYTES, false);
    if (readable || writable) {
        chain_add(queue, 512, 4096, writable);
    }
    chain_send(queue, true, true);
    settle();
    return *(uint8_t *)guest_ptr(&guest, status_gpa_of(queue, head));
}

/* After all that: an honest driver. */
static void expect_service(void)
{
    uint8_t pattern[4096];
    bool read_only = vdev_features_offered(vdev) & FEATURE(VIRTIO_BLK_F_RO);

    settle();
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    atomic_store(&disk.fail_nth, 0);
    set_length(DISK_BYTES);
    start();
    memset(pattern, 0x5a, sizeof(pattern));
    write_out(512, pattern, sizeof(pattern));
    if (read_only) {
        memcpy(pattern, disk.data + 8 * SECTOR, sizeof(pattern));
    } else {
        ASSERT_EQ(run_honest(VIRTIO_BLK_T_OUT, true, false), VIRTIO_BLK_S_OK);
    }
    ASSERT_EQ(run_honest(VIRTIO_BLK_T_FLUSH, false, false), VIRTIO_BLK_S_OK);
    ASSERT_EQ(run_honest(VIRTIO_BLK_T_IN, false, true), VIRTIO_BLK_S_OK);
    ASSERT_EQ(memcmp(guest_ptr(&guest, in_gpa + 512), pattern, sizeof(pattern)), 0);
    ASSERT_FALSE(vdev_status(vdev) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
    if (len_bytes < 2) {
        return 0;
    }
    world_init(data[0], data[1]);
    data += 2;
    len_bytes -= 2;
    for (size_t n = 0; n < ACTIONS_MAX && (n + 1) * ACTION_BYTES <= len_bytes; n++) {
        const uint8_t *bytes = data + n * ACTION_BYTES;
        Action action = { .what = bytes[0] & 15, .how = bytes[0] >> 4, .options = bytes[1] };

        memcpy(&action.a, bytes + 2, 2);
        memcpy(&action.b, bytes + 4, 4);
        memcpy(&action.c, bytes + 8, 8);
        act(&action);
    }
    expect_service();
    world_finish();
    return 0;
}

#ifdef FUZZ_CORPUS_DIR /* the ordinary test */

#include "io/base/tests/fuzz-replay.h"

TEST(fuzz_virtio_blk, corpus_breaks_nothing)
{
    fuzz_replay_corpus(LLVMFuzzerTestOneInput, FUZZ_CORPUS_DIR, 10);
}

TEST(fuzz_virtio_blk, random_requests_break_nothing)
{
    fuzz_replay_random(LLVMFuzzerTestOneInput, ACTION_BYTES, 100);
}

TEST_MAIN()

#endif
