/*
 * test-vhost-user-features.c - what a client may agree on with `penstock export --vhost-user`: the
 * log of written pages, notices, rings without enabling, queues that nobody kicks
 */
#include <linux/virtio_blk.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "vmm/tests/vhost-user-fixture.h"

#define RAM_BYTES (4 * MIB)
#define LOG_BYTES ((unsigned)((GUEST_BASE_GPA + RAM_BYTES) / VHOST_USER_LOG_PAGE_BYTES / 8))

static uint8_t *log_bits;
static int log_fd;

static bool is_logged(uint64_t gpa)
{
    uint64_t page = gpa / VHOST_USER_LOG_PAGE_BYTES;

    return __atomic_load_n(&log_bits[page / 8], __ATOMIC_SEQ_CST) >> page % 8 & 1;
}

static unsigned nb_logged(void)
{
    unsigned nb = 0;

    for (unsigned i = 0; i < LOG_BYTES; i++) {
        nb += (unsigned)__builtin_popcount(log_bits[i]);
    }
    return nb;
}

static void log_clear(void)
{
    memset(log_bits, 0, LOG_BYTES);
}

static void log_open(void)
{
    log_fd = memfd_create("log", MFD_CLOEXEC);
    ASSERT_EQ(ftruncate(log_fd, LOG_BYTES), 0);
    log_bits = mmap(NULL, LOG_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, log_fd, 0);
    ASSERT_TRUE(log_bits != MAP_FAILED);
    ASSERT_EQ(vfe_set_log_base(&client, log_fd, LOG_BYTES, 0), 0);
}

static void log_close(void)
{
    munmap(log_bits, LOG_BYTES);
    close(log_fd);
}

static void set_log(bool on)
{
    uint64_t features = client.features | (on ? 1ull << VHOST_F_LOG_ALL : 0);

    ASSERT_EQ(vfe_set_u64(&client, VHOST_USER_SET_FEATURES, features), 0);
}

static void log_written_pages(const VfeClientParams *params)
{
    const RingDriver *ring = &client.queues[0].ring;

    fixture_start(SERVER_PENSTOCK, NULL, NULL);
    fixture_connect(params);
    log_open();
    fixture_write(0, 3, 7);
    EXPECT_EQ(nb_logged(), 0); /* the log alone is not enough */

    set_log(true);
    ASSERT_EQ(vfe_set_vring_addr(&client, 0, 1u << VHOST_VRING_F_LOG), 0);
    fixture_write(0, 3, 8);
    EXPECT_FALSE(is_logged(slot.data_gpa));
    EXPECT_TRUE(is_logged(slot.status_gpa));
    EXPECT_TRUE(is_logged(ring->is_packed ? ring->desc_gpa : ring->used_gpa));
    log_clear();
    fixture_expect(0, 3, 8);
    EXPECT_TRUE(is_logged(slot.data_gpa));
    EXPECT_FALSE(is_logged(slot.data_gpa + VHOST_USER_LOG_PAGE_BYTES));

    ASSERT_EQ(vfe_set_vring_addr(&client, 0, 0), 0);
    log_clear();
    fixture_expect(0, 3, 8);
    EXPECT_TRUE(is_logged(slot.data_gpa));
    EXPECT_FALSE(is_logged(ring->is_packed ? ring->desc_gpa : ring->used_gpa));

    set_log(false);
    log_clear();
    fixture_expect(0, 3, 8);
    EXPECT_EQ(nb_logged(), 0);
    log_close();
    fixture_finish();
}

TEST(vhost_user_features, the_log_tells_of_written_pages_while_it_is_on)
{
    log_written_pages(NULL);
}

TEST(vhost_user_features, the_log_tells_of_packed_rings_too)
{
    log_written_pages(&(VfeClientParams){ .packed = true });
}

/* A read that fails may have come half of the way. */
TEST(vhost_user_features, the_log_tells_of_pages_that_a_suspended_request_may_have_written)
{
    RingDriver *ring = &client.queues[0].ring;
    uint32_t base;

    fixture_start(SERVER_PENSTOCK,
                  "driver=faulty,file.path=IMAGE,rule0.op=read,rule0.delay-ns=3600000000000,"
                  "rule0.error=EIO",
                  NULL);
    fixture_connect(&(VfeClientParams){ .protocol_features = UINT64_MAX });
    log_open();
    set_log(true);
    vfe_slot_add(&slot, ring, VIRTIO_BLK_T_IN, 0, BLOCK_BYTES, false);
    vfe_queue_submit(&client.queues[0]);
    while (!__atomic_load_n(&vfe_inflight_split(&client, 0)->desc[slot.head].inflight,
                            __ATOMIC_ACQUIRE)) {
        sched_yield();
    }
    log_clear();
    ASSERT_EQ(vfe_get_vring_base(&client, 0, &base), 0);
    EXPECT_EQ(ring_used_index(ring), 0);
    EXPECT_TRUE(is_logged(slot.data_gpa));
    EXPECT_FALSE(is_logged(ring->used_gpa));
    log_close();
    fixture_finish();
}

TEST(vhost_user_features, a_log_that_is_too_short_loses_bits_and_nothing_else)
{
    int fd = memfd_create("log", MFD_CLOEXEC);

    ASSERT_EQ(ftruncate(fd, 1), 0);
    fixture_start(SERVER_PENSTOCK, NULL, NULL);
    fixture_connect(NULL);
    ASSERT_EQ(vfe_set_log_base(&client, fd, 1, 0), 0);
    set_log(true);
    ASSERT_EQ(vfe_set_vring_addr(&client, 0, 1u << VHOST_VRING_F_LOG), 0);
    fixture_write(0, 3, 7);
    fixture_expect(0, 3, 7);
    close(fd);
    fixture_finish();
}

static uint64_t capacity_sectors(void)
{
    uint64_t sectors = 0;

    EXPECT_EQ(vfe_get_config(&client, 0, &sectors, sizeof(sectors)), 0);
    return le64toh(sectors);
}

TEST(vhost_user_features, a_new_size_is_told_to_the_client)
{
    char folder[] = "/tmp/penstock-ctl-XXXXXX", options[80], command[256];
    struct pollfd pfd = { .events = POLLIN };
    VhostUserHeader hdr;

    ASSERT_TRUE(mkdtemp(folder));
    snprintf(options, sizeof(options), "--control %s/ctl", folder);
    fixture_start(SERVER_PENSTOCK, NULL, options);
    fixture_connect(NULL);
    ASSERT_EQ(capacity_sectors(), DISK_BYTES / 512);
    ASSERT_GE(client.backend_sock, 0);
    snprintf(command, sizeof(command), "%s ctl %s/ctl block_resize device=d0 size=%u >/dev/null",
             getenv("PENSTOCK"), folder, 2 * DISK_BYTES);
    ASSERT_EQ(system(command), 0);
    pfd.fd = client.backend_sock;
    ASSERT_EQ(poll(&pfd, 1, VFE_ANSWER_MS), 1);
    ASSERT_EQ(recv(client.backend_sock, &hdr, sizeof(hdr), 0), (ssize_t)sizeof(hdr));
    EXPECT_EQ(hdr.request, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
    EXPECT_EQ(hdr.flags, VHOST_USER_VERSION);
    EXPECT_EQ(hdr.size, 0);
    EXPECT_EQ(capacity_sectors(), 2 * DISK_BYTES / 512);
    fixture_write(0, DISK_BYTES / BLOCK_BYTES, 5);
    fixture_expect(0, DISK_BYTES / BLOCK_BYTES, 5);
    fixture_finish();
    ASSERT_EQ(rmdir(folder), 0);
}

TEST(vhost_user_features, a_queue_that_nobody_kicks_is_looked_at)
{
    fixture_start(SERVER_PENSTOCK, NULL, NULL);
    fixture_connect(NULL);
    ASSERT_EQ(vfe_set_vring_fd(&client, VHOST_USER_SET_VRING_KICK, 1, -1), 0);
    for (unsigned i = 0; i < 20; i++) {
        fixture_write(1, i, i);
        fixture_expect(1, i, i);
    }
    ASSERT_EQ(vfe_set_vring_fd(&client, VHOST_USER_SET_VRING_KICK, 1, client.queues[1].kick_fd), 0);
    fixture_expect(1, 5, 5);
    fixture_finish();
}

TEST(vhost_user_features, rings_without_protocol_features_need_no_enabling)
{
    VfeClientParams params = { .features = 1ull << VIRTIO_F_VERSION_1 };

    fixture_start(SERVER_PENSTOCK, NULL, NULL);
    fixture_connect(&params);
    ASSERT_FALSE(client.features >> VHOST_USER_F_PROTOCOL_FEATURES & 1);
    fixture_write(0, 1, 1);
    fixture_expect(3, 1, 1);
    fixture_finish();
}

/* Deprecated; what the client said of its rings is kept. */
TEST(vhost_user_features, reset_owner_disables_rings_and_no_more)
{
    VfeSlot late;

    fixture_start(SERVER_PENSTOCK, NULL, NULL);
    fixture_connect(NULL);
    fixture_write(1, 3, 3);
    ASSERT_EQ(vfe_request(&client, VHOST_USER_RESET_OWNER), 0);
    vfe_slot_init(&late, &client.guest, BLOCK_BYTES);
    vfe_slot_add(&late, &client.queues[1].ring, VIRTIO_BLK_T_IN, 3 * 8, BLOCK_BYTES, false);
    vfe_queue_submit(&client.queues[1]);
    ASSERT_EQ(vfe_set_vring_state(&client, VHOST_USER_SET_VRING_ENABLE, 0, 1), 0);
    fixture_expect(0, 3, 3);
    EXPECT_EQ(ring_used_index(&client.queues[1].ring), 1);
    ASSERT_EQ(vfe_set_vring_state(&client, VHOST_USER_SET_VRING_ENABLE, 1, 1), 0);
    ASSERT_EQ(vfe_queue_await(&client.queues[1], VFE_ANSWER_MS), 0);
    EXPECT_EQ(ring_used_index(&client.queues[1].ring), 2);
    fixture_finish();
}

static void begin_without_a_base(bool packed)
{
    fixture_start(SERVER_PENSTOCK, NULL, NULL);
    fixture_connect(&(VfeClientParams){ .packed = packed, .without_base = true });
    ASSERT_EQ(client.queues[1].ring.is_packed, packed);
    fixture_write(1, 3, 3);
    fixture_expect(1, 3, 3);
    fixture_finish();
}

TEST(vhost_user_features, a_ring_without_a_base_begins_at_its_beginning)
{
    begin_without_a_base(false);
}

TEST(vhost_user_features, a_packed_ring_without_a_base_begins_at_its_beginning)
{
    begin_without_a_base(true);
}

/* As QEMU 7 stops a device: the base is asked for when all has been reset. */
static void ask_for_bases_after_a_reset(bool packed)
{
    uint32_t base = 0;

    fixture_start(SERVER_PENSTOCK, NULL, NULL);
    fixture_connect(&(VfeClientParams){ .packed = packed });
    for (unsigned i = 0; i < 10; i++) {
        fixture_write(2, i, i);
    }
    ASSERT_EQ(vfe_set_u64(&client, VHOST_USER_SET_STATUS, 0), 0);
    ASSERT_EQ(vfe_get_vring_base(&client, 2, &base), 0);
    if (packed) { /* the used one in the upper half, the wrap counter in the highest bit of each */
        EXPECT_EQ(base >> 16, base & 0xffff);
        EXPECT_GE(base & 0x7fff, 10);
    } else {
        EXPECT_EQ(base, 10);
    }
    ASSERT_EQ(vfe_client_start(&client), 0);
    fixture_expect(2, 9, 9);
    fixture_finish();
}

TEST(vhost_user_features, a_base_outlives_the_status)
{
    ask_for_bases_after_a_reset(false);
}

TEST(vhost_user_features, a_base_of_a_packed_ring_outlives_the_status)
{
    ask_for_bases_after_a_reset(true);
}

TEST(vhost_user_features, a_disabled_ring_waits_and_loses_nothing)
{
    RingDriver *ring = &client.queues[0].ring;
    uint32_t head, len;
    VfeSlot waits;

    fixture_start(SERVER_PENSTOCK, NULL, NULL);
    fixture_connect(NULL);
    fixture_write(0, 1, 1);
    vfe_slot_init(&waits, &client.guest, BLOCK_BYTES);
    ASSERT_EQ(vfe_set_vring_state(&client, VHOST_USER_SET_VRING_ENABLE, 0, 0), 0);
    vfe_slot_add(&waits, ring, VIRTIO_BLK_T_IN, BLOCK_BYTES / 512, BLOCK_BYTES, false);
    vfe_queue_submit(&client.queues[0]);
    fixture_expect(1, 1, 1); /* whatever the server had to do, it has done by now */
    EXPECT_FALSE(ring_next_used(ring, &head, &len));
    ASSERT_EQ(vfe_set_vring_state(&client, VHOST_USER_SET_VRING_ENABLE, 0, 1), 0);
    while (!ring_next_used(ring, &head, &len)) {
        ASSERT_EQ(vfe_queue_await(&client.queues[0], VFE_ANSWER_MS), 0);
    }
    EXPECT_EQ(head, waits.head);
    EXPECT_TRUE(block_is(vfe_slot_data(&waits, &client.guest), 1));
    fixture_finish();
}

TEST_MAIN()
