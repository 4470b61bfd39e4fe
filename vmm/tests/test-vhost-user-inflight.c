/*
 * test-vhost-user-inflight.c - what a server may have left behind, step by step
 *
 * Here nobody is killed: the tests write into the rings and the in-flight region what a server that
 * ended between any two steps of the protocol would have left there, and look which requests the
 * next one makes, in which order, and which it answers. The order is in the trace of a log-writes
 * filter.
 */
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "block/write-log.h"
#include "vmm/tests/vhost-user-fixture.h"

#define NB_OFFERED 8
#define NB_BEFORE  5 /* requests of the life before, all answered */

static VfeSlot offered[NB_OFFERED]; /* of queue 0, in order of the available ring; block i each */
static VhostUserQueueSplit *region;
static RingDriver *ring;
static bool done[NB_OFFERED];

/* --- a life, and what it has left --- */

/* Free descriptors in an order that says nothing. */
static void shuffle_free_descriptors(void)
{
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        ring->next_free[i] = (uint16_t)((i * 37 + 11) % QUEUE_SIZE);
    }
    ring->free_head = 5;
    ring->nb_free = QUEUE_SIZE;
}

/* A server that ended in peace, and requests that were offered since. */
static void leave(void)
{
    fixture_start(SERVER_PENSTOCK, "driver=log-writes,log=IMAGE.1,file.path=IMAGE", NULL);
    fixture_connect(NULL);
    ring = &client.queues[0].ring;
    for (unsigned i = 0; i < NB_BEFORE; i++) {
        fixture_write(0, 100 + i, i);
    }
    vfe_client_disconnect(&client);
    fixture_await_idle();
    EXPECT_EQ(server_stop(&server), 0);
    region = vfe_inflight_split(&client, 0);
    ASSERT_TRUE(region != NULL);
    EXPECT_EQ(region->version, VHOST_USER_INFLIGHT_VERSION);
    EXPECT_EQ(region->desc_num, QUEUE_SIZE);
    EXPECT_EQ(region->used_idx, NB_BEFORE);
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        EXPECT_EQ(region->desc[i].inflight, 0);
    }
    shuffle_free_descriptors();
    for (unsigned i = 0; i < NB_OFFERED; i++) {
        vfe_slot_init(&offered[i], &client.guest, BLOCK_BYTES);
        fill_block(vfe_slot_data(&offered[i], &client.guest), 1000 + i);
        vfe_slot_add(&offered[i], ring, VIRTIO_BLK_T_OUT, i * (BLOCK_BYTES / 512), BLOCK_BYTES,
                     i % 2);
    }
    ring_publish(ring);
    memset(done, 0, sizeof(done));
}

/* The server had taken offered[i] as its @counter-th. */
static void take(unsigned i, uint64_t counter)
{
    region->desc[offered[i].head].counter = counter;
    region->desc[offered[i].head].inflight = 1;
}

/* It had put offered[i] into the list of those that are used next. */
static void list(unsigned i)
{
    region->desc[offered[i].head].next = region->last_batch_head;
    region->last_batch_head = offered[i].head;
}

/* It had filled the used entry of offered[i], @nth of its batch. */
static void fill_used(unsigned i, unsigned nth)
{
    struct vring_used_elem *entry =
        &ring->used->ring[(le16toh(ring->used->idx) + nth) % QUEUE_SIZE];

    entry->id = htole32(offered[i].head);
    entry->len = htole32(1);
    *(uint8_t *)guest_ptr(&client.guest, offered[i].status_gpa) = VIRTIO_BLK_S_OK;
}

static void publish_used(unsigned nb)
{
    ring->used->idx = htole16((uint16_t)(le16toh(ring->used->idx) + nb));
}

/* --- the next life --- */

static void go_on(void)
{
    server_start(&server, NB_QUEUES, "driver=log-writes,log=IMAGE.2,file.path=IMAGE", NULL);
    ASSERT_EQ(vfe_client_connect(&client, server.socket_path), 0);
    ASSERT_EQ(vfe_client_start(&client), 0);
}

static void take_answer(void)
{
    uint32_t head, len;

    ASSERT_EQ(vfe_queue_await(&client.queues[0], VFE_ANSWER_MS), 0);
    ASSERT_TRUE(ring_next_used(ring, &head, &len));
    for (unsigned i = 0; i < NB_OFFERED; i++) {
        if (offered[i].head == head) {
            EXPECT_FALSE(done[i]);
            EXPECT_EQ(vfe_slot_status(&offered[i], &client.guest), VIRTIO_BLK_S_OK);
            done[i] = true;
            return;
        }
    }
    test_fail_abort(__FILE__, __LINE__, "an answer for head %u, which was not offered", head);
}

/* Every request is answered once, and nothing else is. */
static void expect_all_answered(void)
{
    for (unsigned i = 0; i < NB_OFFERED; i++) {
        take_answer();
    }
    ring_free(ring, offered[0].head);
    fixture_write(0, 200, 1);
    EXPECT_EQ(ring_used_index(ring), NB_BEFORE + NB_OFFERED + 1);
}

/* The writes of the second life: @blocks in this order, then that of expect_all_answered(). */
static void expect_writes(const unsigned *blocks, unsigned nb_blocks)
{
    char path[SERVER_PATH_BYTES + 2];
    unsigned nb = 0;
    WriteLog log;
    Error err;

    snprintf(path, sizeof(path), "%s.2", server.image_path);
    AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);

    ASSERT_GE(fd, 0);
    ASSERT_EQ(write_log_read(&log, fd, UINT64_MAX, &err), 0);
    for (unsigned i = 0; i < log.nb_requests; i++) {
        const WriteLogEntry *entry = &log.requests[i];

        if (entry->type == WRITE_LOG_WRITE && nb++ < nb_blocks) {
            EXPECT_EQ(entry->offset_bytes / BLOCK_BYTES, blocks[nb - 1]);
        }
    }
    EXPECT_EQ(nb, nb_blocks + 1);
    write_log_finish(&log);
}

static void finish(void)
{
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        EXPECT_EQ(region->desc[i].inflight, 0);
    }
    fixture_finish();
}

#define EXPECT_WRITES(...)                                                                         \
    expect_writes((const unsigned[]){ __VA_ARGS__ },                                               \
                  sizeof((const unsigned[]){ __VA_ARGS__ }) / sizeof(unsigned))

/* --- each step --- */

TEST(inflight, nothing_taken)
{
    leave();
    go_on();
    expect_all_answered();
    EXPECT_WRITES(0, 1, 2, 3, 4, 5, 6, 7);
    finish();
}

/* Taken in another order than the ring has them now, as when entries were taken out of order long
 * ago. */
TEST(inflight, taken_requests_are_made_in_their_order_before_new_ones)
{
    leave();
    take(0, 104);
    take(1, 101);
    take(2, 103);
    take(3, 100);
    take(4, 102);
    go_on();
    expect_all_answered();
    EXPECT_WRITES(3, 1, 4, 2, 0, 5, 6, 7);
    finish();
}

TEST(inflight, a_counter_without_its_flag_is_a_request_not_taken)
{
    leave();
    take(0, 100);
    region->desc[offered[1].head].counter = 101;
    go_on();
    expect_all_answered();
    EXPECT_WRITES(0, 1, 2, 3, 4, 5, 6, 7);
    finish();
}

static void take_five(void)
{
    for (unsigned i = 0; i < 5; i++) {
        take(i, 100 + i);
    }
}

TEST(inflight, a_batch_in_the_list_but_not_published_is_made_again)
{
    leave();
    take_five();
    list(1);
    list(3);
    fill_used(1, 0);
    fill_used(3, 1);
    go_on();
    expect_all_answered();
    EXPECT_WRITES(0, 1, 2, 3, 4, 5, 6, 7);
    finish();
}

TEST(inflight, a_batch_that_was_published_is_not_made_again)
{
    leave();
    take_five();
    list(1);
    list(3);
    fill_used(1, 0);
    fill_used(3, 1);
    publish_used(2);
    go_on();
    expect_all_answered();
    EXPECT_WRITES(0, 2, 4, 5, 6, 7);
    finish();
}

TEST(inflight, a_batch_with_some_flags_cleared_is_not_made_again)
{
    leave();
    take_five();
    list(1);
    list(3);
    fill_used(1, 0);
    fill_used(3, 1);
    publish_used(2);
    region->desc[offered[3].head].inflight = 0;
    go_on();
    expect_all_answered();
    EXPECT_WRITES(0, 2, 4, 5, 6, 7);
    finish();
}

TEST(inflight, a_batch_with_all_flags_cleared_is_not_made_again)
{
    leave();
    take_five();
    list(1);
    list(3);
    fill_used(1, 0);
    fill_used(3, 1);
    publish_used(2);
    region->desc[offered[1].head].inflight = 0;
    region->desc[offered[3].head].inflight = 0;
    go_on();
    expect_all_answered();
    EXPECT_WRITES(0, 2, 4, 5, 6, 7);
    finish();
}

TEST(inflight, a_batch_that_was_finished_is_not_made_again)
{
    leave();
    take_five();
    list(1);
    list(3);
    fill_used(1, 0);
    fill_used(3, 1);
    publish_used(2);
    region->desc[offered[1].head].inflight = 0;
    region->desc[offered[3].head].inflight = 0;
    region->used_idx += 2;
    go_on();
    expect_all_answered();
    EXPECT_WRITES(0, 2, 4, 5, 6, 7);
    finish();
}

/* The list goes on into batches of long ago; only the last one counts. */
TEST(inflight, an_old_batch_in_the_list_is_left_alone)
{
    leave();
    take_five();
    list(0); /* was answered long ago, and its descriptor is in flight again */
    list(2);
    list(1);
    list(3);
    fill_used(1, 0);
    fill_used(3, 1);
    publish_used(2);
    go_on();
    expect_all_answered();
    EXPECT_WRITES(0, 2, 4, 5, 6, 7);
    finish();
}

TEST(inflight, new_requests_are_counted_on)
{
    uint64_t highest = 0;

    leave();
    take_five();
    go_on();
    expect_all_answered();
    for (unsigned i = 5; i < NB_OFFERED; i++) {
        EXPECT_GE(region->desc[offered[i].head].counter, 105);
        highest = MAX(highest, region->desc[offered[i].head].counter);
    }
    EXPECT_LT(highest, 105 + 2 * QUEUE_SIZE);
    finish();
}

/* The used index was published, and the one who had to signal it was killed. */
TEST(inflight, a_driver_that_sleeps_is_woken_for_what_was_published)
{
    struct pollfd poller = { .events = POLLIN };
    eventfd_t count;

    leave();
    take(0, 100);
    list(0);
    fill_used(0, 0);
    publish_used(1);
    while (eventfd_read(client.queues[0].call_fd, &count) == 0) {
        /* of the life before */
    }
    poller.fd = client.queues[0].call_fd;
    EXPECT_EQ(poll(&poller, 1, 0), 0);
    go_on();
    EXPECT_EQ(poll(&poller, 1, VFE_ANSWER_MS), 1);
    expect_all_answered();
    finish();
}

/* --- a queue that stops again at once --- */

#define MANY 1000

static int order_at_enable; /* 0: none yet */

/* The server is about to read SET_VRING_ENABLE 1: it has these two before it gets far. */
static void disable_and_enable(void *opaque, uint32_t request, bool sent)
{
    struct vhost_vring_state states[2] = { { .num = 0 }, { .num = 1 } };

    if (request != VHOST_USER_SET_VRING_ENABLE || !sent || order_at_enable++ > 0) {
        return;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(states); i++) {
        EXPECT_EQ(vfe_send(client.sock, VHOST_USER_SET_VRING_ENABLE, 0, &states[i],
                           sizeof(states[i]), NULL, 0), 0);
    }
}

/* What was left behind is more than a queue takes in one go. */
TEST(inflight, a_queue_that_stops_at_once_forgets_nothing)
{
    VfeSlot *slots = calloc(MANY, sizeof(*slots));
    uint32_t head, len;
    unsigned nb = 0;

    fixture_start(SERVER_PENSTOCK, NULL, NULL);
    fixture_connect(&(VfeClientParams){ .nb_queues = 1, .queue_size = 1024, .ram_bytes = 8 * MIB });
    ring = &client.queues[0].ring;
    vfe_client_disconnect(&client);
    fixture_await_idle();
    region = vfe_inflight_split(&client, 0);
    for (unsigned i = 0; i < MANY; i++) {
        vfe_slot_init(&slots[i], &client.guest, 512);
        vfe_slot_add(&slots[i], ring, VIRTIO_BLK_T_OUT, i, 512, true);
        region->desc[slots[i].head].counter = i;
        region->desc[slots[i].head].inflight = 1;
    }
    ring_publish(ring);
    client.on_message = disable_and_enable;
    ASSERT_EQ(vfe_client_connect(&client, server.socket_path), 0);
    ASSERT_EQ(vfe_client_start(&client), 0);
    while (nb < MANY) {
        ASSERT_EQ(vfe_queue_await(&client.queues[0], VFE_ANSWER_MS), 0);
        while (ring_next_used(ring, &head, &len)) {
            nb++;
        }
    }
    EXPECT_EQ(ring_used_index(ring), MANY);
    free(slots);
    fixture_finish();
}

/* --- a ring that is suspended --- */

#define NB_SUSPENDED 5

static const uint64_t all_protocol_features = UINT64_MAX;
static const uint64_t no_suspending = ~(1ull << VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT);

/* Its first writes end only when something makes them, and then fail. */
static const char stuck_disk[] = "driver=faulty,file.path=IMAGE,rule0.op=write,rule0.count=5,"
                                 "rule0.delay-ns=3600000000000,rule0.error=EIO";

static unsigned nb_marked(void)
{
    const VhostUserQueueSplit *split = client.inflight_map;
    const VhostUserQueuePacked *packed = client.inflight_map;
    unsigned nb = 0;

    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        const uint8_t *mark = client.queues[0].ring.is_packed ? &packed->desc[i].inflight
                                                              : &split->desc[i].inflight;

        nb += __atomic_load_n(mark, __ATOMIC_ACQUIRE) != 0;
    }
    return nb;
}

/* NB_SUSPENDED writes that the server has taken and that are stuck. */
static void suspend_begin(uint64_t protocol_features, bool is_packed)
{
    fixture_start(SERVER_PENSTOCK, stuck_disk, NULL);
    fixture_connect(
        &(VfeClientParams){ .protocol_features = protocol_features, .packed = is_packed });
    ring = &client.queues[0].ring;
    ASSERT_EQ(ring->is_packed, is_packed);
    for (unsigned i = 0; i < NB_SUSPENDED; i++) {
        vfe_slot_init(&offered[i], &client.guest, BLOCK_BYTES);
        fill_block(vfe_slot_data(&offered[i], &client.guest), 1000 + i);
        *(uint8_t *)guest_ptr(&client.guest, offered[i].status_gpa) = 0xee;
        vfe_slot_add(&offered[i], ring, VIRTIO_BLK_T_OUT, i * (BLOCK_BYTES / 512), BLOCK_BYTES,
                     i % 2);
    }
    vfe_queue_submit(&client.queues[0]);
    while (nb_marked() < NB_SUSPENDED) {
        sched_yield();
    }
}

static void expect_nothing_answered(void)
{
    uint32_t head, len;

    EXPECT_FALSE(ring_next_used(ring, &head, &len));
    EXPECT_EQ(nb_marked(), NB_SUSPENDED);
    for (unsigned i = 0; i < NB_SUSPENDED; i++) {
        EXPECT_EQ(vfe_slot_status(&offered[i], &client.guest), 0xee);
    }
}

static void expect_answers(uint8_t status)
{
    bool seen[NB_SUSPENDED] = { false };
    uint32_t head, len;

    for (unsigned i = 0; i < NB_SUSPENDED; i++) {
        ASSERT_EQ(vfe_queue_await(&client.queues[0], VFE_ANSWER_MS), 0);
        ASSERT_TRUE(ring_next_used(ring, &head, &len));
        for (unsigned j = 0; j < NB_SUSPENDED; j++) {
            if (offered[j].head == head) {
                EXPECT_FALSE(seen[j]);
                seen[j] = true;
            }
        }
        ring_free(ring, (uint16_t)head);
    }
    for (unsigned i = 0; i < NB_SUSPENDED; i++) {
        EXPECT_TRUE(seen[i]);
        EXPECT_EQ(vfe_slot_status(&offered[i], &client.guest), status);
    }
    EXPECT_FALSE(ring_next_used(ring, &head, &len));
}

static void expect_done_at_last(void)
{
    expect_answers(VIRTIO_BLK_S_OK);
    for (unsigned i = 0; i < NB_SUSPENDED; i++) {
        fixture_expect(0, i, 1000 + i);
    }
    ASSERT_EQ(vfe_client_stop(&client), 0);
    EXPECT_EQ(nb_marked(), 0);
    fixture_finish();
}

/* Another process goes on, with a disk in order. */
static void take_over(void)
{
    server_start(&server, NB_QUEUES, "path=IMAGE", NULL);
    ASSERT_EQ(vfe_client_connect(&client, server.socket_path), 0);
    ASSERT_EQ(vfe_client_start(&client), 0);
}

static void goes_on_where_it_was_suspended(bool is_packed)
{
    uint32_t base;

    suspend_begin(all_protocol_features, is_packed);
    ASSERT_EQ(vfe_get_vring_base(&client, 0, &base), 0);
    if (!is_packed) {
        EXPECT_EQ(base, NB_SUSPENDED);
    }
    expect_nothing_answered();
    ASSERT_EQ(vfe_start_queue(&client, 0, base), 0);
    expect_done_at_last();
}

static void another_process_goes_on_where_it_was_suspended(bool is_packed)
{
    uint32_t base;

    suspend_begin(all_protocol_features, is_packed);
    ASSERT_EQ(vfe_get_vring_base(&client, 0, &base), 0);
    server_kill(&server);
    vfe_client_disconnect(&client);
    expect_nothing_answered();
    take_over();
    expect_done_at_last();
}

/* As clients do it that stop all of a device. */
static void disabling_suspends_too(bool is_packed)
{
    uint32_t base;

    suspend_begin(all_protocol_features, is_packed);
    ASSERT_EQ(vfe_set_vring_state(&client, VHOST_USER_SET_VRING_ENABLE, 0, 0), 0);
    expect_nothing_answered();
    ASSERT_EQ(vfe_get_vring_base(&client, 0, &base), 0);
    expect_nothing_answered();
    ASSERT_EQ(vfe_start_queue(&client, 0, base), 0);
    expect_done_at_last();
}

/* Whatever the client has agreed to. */
static void what_fails_while_the_server_ends_is_left(bool is_packed)
{
    suspend_begin(no_suspending, is_packed);
    EXPECT_EQ(server_stop(&server), 0);
    vfe_client_disconnect(&client);
    expect_nothing_answered();
    take_over();
    expect_done_at_last();
}

static void without_suspending_a_ring_is_drained(bool is_packed)
{
    uint32_t base;

    suspend_begin(no_suspending, is_packed);
    ASSERT_EQ(vfe_get_vring_base(&client, 0, &base), 0);
    EXPECT_EQ(nb_marked(), 0);
    expect_answers(VIRTIO_BLK_S_IOERR);
    fixture_finish();
}

static void a_reset_of_the_device_leaves_nothing(bool is_packed)
{
    suspend_begin(all_protocol_features, is_packed);
    ASSERT_EQ(vfe_request(&client, VHOST_USER_RESET_DEVICE), 0);
    expect_answers(VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(nb_marked(), 0);
    fixture_finish();
}

#define ON_BOTH_RINGS(sentence)                                                                    \
    TEST(inflight, sentence)                                                                       \
    {                                                                                              \
        sentence(false);                                                                           \
    }                                                                                              \
    TEST(inflight_packed, sentence)                                                                \
    {                                                                                              \
        sentence(true);                                                                            \
    }

ON_BOTH_RINGS(goes_on_where_it_was_suspended)
ON_BOTH_RINGS(another_process_goes_on_where_it_was_suspended)
ON_BOTH_RINGS(disabling_suspends_too)
ON_BOTH_RINGS(what_fails_while_the_server_ends_is_left)
ON_BOTH_RINGS(without_suspending_a_ring_is_drained)
ON_BOTH_RINGS(a_reset_of_the_device_leaves_nothing)

/* --- memory that does not fit --- */

static uint64_t server_address_space_bytes(void)
{
    char path[64];
    unsigned long pages = 0;

    snprintf(path, sizeof(path), "/proc/%d/statm", (int)server.pid);
    FILE *statm = fopen(path, "re");

    ASSERT_TRUE(statm != NULL);
    ASSERT_EQ(fscanf(statm, "%lu", &pages), 1);
    fclose(statm);
    return pages * 4096ull;
}

TEST(inflight, no_more_is_mapped_than_is_needed)
{
    uint64_t before_bytes, huge_bytes = 1ull << 40;

    fixture_start(SERVER_PENSTOCK, NULL, NULL);
    fixture_connect(NULL);
    vfe_client_disconnect(&client);
    fixture_await_idle();
    before_bytes = server_address_space_bytes();
    ASSERT_EQ(ftruncate(client.inflight_fd, (off_t)huge_bytes), -1); /* it is sealed */
    close(client.inflight_fd);
    client.inflight_fd = memfd_create("huge", MFD_CLOEXEC);
    ASSERT_EQ(ftruncate(client.inflight_fd, (off_t)huge_bytes), 0);
    client.inflight.mmap_size = huge_bytes;
    ASSERT_EQ(vfe_client_connect(&client, server.socket_path), 0);
    ASSERT_EQ(vfe_client_start(&client), 0);
    fixture_write(0, 1, 1);
    EXPECT_LT(server_address_space_bytes() - before_bytes, huge_bytes);
    client.inflight.mmap_size = 4096; /* so much is mapped here */
    fixture_finish();
}

static const uint64_t no_inflight = ~(1ull << VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD);

/* Without SET_VRING_NUM a ring is as large as it may be, and no head beyond that is believed. */
TEST(inflight, a_head_beyond_a_queue_without_a_size_is_refused)
{
    char options[3 * SERVER_PATH_BYTES], path[SERVER_PATH_BYTES + 8];

    server_init(&server, SERVER_PENSTOCK, DISK_BYTES);
    snprintf(path, sizeof(path), "%s2", server.socket_path);
    snprintf(options, sizeof(options),
             "--disk driver=null,size=1M,id=other --vhost-user "
             "disk=other,socket-path=%s,queues=1,queue-size=16",
             path);
    server_start(&server, NB_QUEUES, "path=IMAGE,id=first", options);
    vfe_client_init(&client, &(VfeClientParams){ .nb_queues = 1,
                                                 .queue_size = 1024,
                                                 .ram_bytes = MIB,
                                                 .protocol_features = no_inflight,
                                                 .without_size = true });
    ASSERT_EQ(vfe_client_connect(&client, path), 0);
    client.params.nb_queues = 0; /* up to the rings */
    ASSERT_EQ(vfe_client_start(&client), 0);
    client.params.nb_queues = 1;
    ASSERT_EQ(vfe_get_inflight(&client), 0);
    region = vfe_inflight_split(&client, 0);
    *region = (VhostUserQueueSplit){ .version = VHOST_USER_INFLIGHT_VERSION, .desc_num = 1024 };
    region->desc[1000].inflight = 1;
    ASSERT_EQ(vfe_set_inflight(&client), 0);
    int ret = vfe_start_queue(&client, 0, 0);

    EXPECT_TRUE(ret == -ECONNRESET || ret == -EPIPE || ret == -EREMOTEIO);
    vfe_client_finish(&client);
    EXPECT_EQ(server_stop(&server), 0);
    AUTO_FREE char *log = server_log(&server);

    EXPECT_TRUE(strstr(log, "head 1000 of a queue of 16") != NULL);
    server_finish(&server);
}

/* --- what no server has left there --- */

static uint64_t seed = 1;

static uint8_t next_byte(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint8_t)(seed >> 56);
}

static void list_that_loops(void)
{
    take_five();
    region->desc[offered[0].head].next = offered[1].head;
    region->desc[offered[1].head].next = offered[0].head;
    region->last_batch_head = offered[0].head;
    publish_used(40);
}

static void list_that_leaves(void)
{
    take_five();
    region->last_batch_head = UINT16_MAX;
    publish_used(2);
}

static void used_index_that_jumps(void)
{
    region->used_idx = (uint16_t)(region->used_idx - 5000);
}

static void all_in_flight(void)
{
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        region->desc[i].inflight = 0xff;
        region->desc[i].counter = UINT64_MAX;
    }
}

static void another_version(void)
{
    region->version = 7;
}

static void another_size(void)
{
    region->desc_num = UINT16_MAX;
}

static void noise(void)
{
    for (size_t i = 0; i < client.inflight.mmap_size; i++) {
        ((uint8_t *)client.inflight_map)[i] = next_byte();
    }
}

static void noise_behind_the_head(void)
{
    for (size_t i = sizeof(*region); i < client.inflight.mmap_size; i++) {
        ((uint8_t *)client.inflight_map)[i] = next_byte() & next_byte() & next_byte();
    }
}

/* Whatever stands there, the server neither falls nor gets stuck, and serves the next client. */
static void expect_survival(void (*spoil)(void))
{
    VfeReply reply;
    int status;

    leave();
    spoil();
    server_start(&server, NB_QUEUES, "path=IMAGE", NULL);
    ASSERT_EQ(vfe_client_connect(&client, server.socket_path), 0);
    /* some are refused, others make requests of what is in descriptors that were once used */
    int ret = vfe_client_start(&client);

    EXPECT_TRUE(ret == 0 || ret == -ECONNRESET || ret == -EPIPE || ret == -EREMOTEIO);
    vfe_client_finish(&client);
    AUTO_FD int next = vfe_connect(server.socket_path);

    ASSERT_GE(next, 0);
    ASSERT_EQ(vfe_send(next, VHOST_USER_GET_FEATURES, 0, NULL, 0, NULL, 0), 0);
    ASSERT_EQ(vfe_receive(next, &reply), 0);
    status = server_stop(&server);
    EXPECT_EQ(status, 0);
    server_finish(&server);
}

TEST(inflight, survives_a_list_that_loops)
{
    expect_survival(list_that_loops);
}

TEST(inflight, survives_a_list_that_leaves_the_table)
{
    expect_survival(list_that_leaves);
}

TEST(inflight, survives_a_used_index_that_jumps)
{
    expect_survival(used_index_that_jumps);
}

TEST(inflight, survives_more_in_flight_than_were_offered)
{
    expect_survival(all_in_flight);
}

TEST(inflight, survives_another_version)
{
    expect_survival(another_version);
}

TEST(inflight, survives_another_size)
{
    expect_survival(another_size);
}

TEST(inflight, survives_noise)
{
    for (unsigned i = 0; i < 10; i++) {
        expect_survival(i % 2 ? noise : noise_behind_the_head);
    }
}

TEST_MAIN()
