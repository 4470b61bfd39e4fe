/*
 * test-vhost-user.c - honest clients: each message, on penstock and, to know that the client itself
 * is right, on QEMU's storage daemon where that does the same
 */
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "io/aio/aio.h"
#include "vmm/tests/vhost-user-fixture.h"

/* Up to the limits of write-zeroes: what every server knows. */
#define CONFIG_BYTES offsetof(struct virtio_blk_config, max_secure_erase_sectors)

/* --- what any server does --- */

static void keeps_what_was_written(ServerProgram program)
{
    fixture_start(program, NULL, NULL);
    fixture_connect(NULL);
    for (unsigned i = 0; i < 64; i++) {
        fixture_write(i % NB_QUEUES, i, i + 1);
    }
    ASSERT_EQ(vfe_do_block(&client, 0, &slot, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
    for (unsigned i = 0; i < 64; i++) {
        fixture_expect((i + 1) % NB_QUEUES, i, i + 1);
    }
    AUTO_FD int fd = open(server.image_path, O_RDONLY | O_CLOEXEC);
    uint8_t block[BLOCK_BYTES];

    ASSERT_EQ(pread(fd, block, sizeof(block), 63 * BLOCK_BYTES), BLOCK_BYTES);
    EXPECT_TRUE(block_is(block, 64));
    EXPECT_EQ(vfe_client_stop(&client), 0);
    fixture_finish();
}

static void has_a_configuration(ServerProgram program)
{
    struct virtio_blk_config config;

    fixture_start(program, NULL, NULL);
    fixture_connect(NULL);
    ASSERT_TRUE(vfe_has_protocol(&client, VHOST_USER_PROTOCOL_F_CONFIG));
    ASSERT_EQ(vfe_get_config(&client, 0, &config, CONFIG_BYTES), 0);
    EXPECT_EQ(le64toh(config.capacity), DISK_BYTES / 512);
    EXPECT_EQ(le16toh(config.num_queues), NB_QUEUES);
    fixture_finish();
}

/* Data that lies in two regions, and rings in one of many. */
static void follows_addresses_through_regions(ServerProgram program)
{
    VfeClientParams params = { .nb_regions = VHOST_USER_TABLE_REGIONS_MAX };

    fixture_start(program, NULL, NULL);
    fixture_connect(&params);
    /* 4 MiB in 8 pieces: wherever the slot is, a buffer across the middle one straddles two */
    slot.data_gpa = client.memory.regions[4].gpa - BLOCK_BYTES / 2;
    for (unsigned i = 0; i < 8; i++) {
        fixture_write(i % NB_QUEUES, i, i + 100);
    }
    for (unsigned i = 0; i < 8; i++) {
        fixture_expect(i % NB_QUEUES, i, i + 100);
    }
    fixture_finish();
}

/* Offer @depth requests at once on each queue, direct and indirect, and take them as they come. */
static void serves_many_at_once(ServerProgram program)
{
    enum { DEPTH = 16, NB_BATCHES = 40 };
    VfeSlot slots[NB_QUEUES][DEPTH];
    uint32_t head, len;

    fixture_start(program, NULL, NULL);
    fixture_connect(NULL);
    for (unsigned q = 0; q < NB_QUEUES; q++) {
        for (unsigned i = 0; i < DEPTH; i++) {
            vfe_slot_init(&slots[q][i], &client.guest, BLOCK_BYTES);
        }
    }
    for (unsigned batch = 0; batch < NB_BATCHES; batch++) {
        bool writes = batch % 2 == 0;

        for (unsigned q = 0; q < NB_QUEUES; q++) {
            for (unsigned i = 0; i < DEPTH; i++) {
                VfeSlot *s = &slots[q][i];

                fill_block(vfe_slot_data(s, &client.guest), writes ? batch * 100 + i : 0);
                vfe_slot_add(s, &client.queues[q].ring, writes ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN,
                             (q * DEPTH + i) * 8, BLOCK_BYTES, i % 2);
            }
            vfe_queue_submit(&client.queues[q]);
        }
        for (unsigned q = 0; q < NB_QUEUES; q++) {
            RingDriver *ring = &client.queues[q].ring;
            bool seen[QUEUE_SIZE] = { false };

            for (unsigned i = 0; i < DEPTH; i++) {
                ASSERT_EQ(vfe_queue_await(&client.queues[q], VFE_ANSWER_MS), 0);
                ASSERT_TRUE(ring_next_used(ring, &head, &len));
                ASSERT_LT(head, QUEUE_SIZE);
                ASSERT_FALSE(seen[head]);
                seen[head] = true;
                ring_free(ring, (uint16_t)head);
            }
            for (unsigned i = 0; i < DEPTH; i++) {
                VfeSlot *s = &slots[q][i];

                ASSERT_TRUE(seen[s->head]);
                ASSERT_EQ(vfe_slot_status(s, &client.guest), VIRTIO_BLK_S_OK);
                ASSERT_TRUE(block_is(vfe_slot_data(s, &client.guest),
                                     (writes ? batch : batch - 1) * 100 + i));
            }
        }
    }
    fixture_finish();
}

/* GET_VRING_BASE, offers while nobody looks, and a start from where it was. */
static void stops_and_goes_on(ServerProgram program)
{
    RingDriver *ring = &client.queues[1].ring;
    VfeSlot late;
    uint32_t base, head, len;

    fixture_start(program, NULL, NULL);
    fixture_connect(NULL);
    fixture_write(1, 7, 70);
    fixture_write(1, 8, 80);
    ASSERT_EQ(vfe_get_vring_base(&client, 1, &base), 0);
    EXPECT_EQ(base, 2);
    vfe_slot_init(&late, &client.guest, BLOCK_BYTES);
    vfe_slot_add(&late, ring, VIRTIO_BLK_T_IN, 7 * 8, BLOCK_BYTES, false);
    vfe_queue_submit(&client.queues[1]);
    fixture_expect(0, 8, 80); /* another queue goes on */
    EXPECT_EQ(ring_used_index(ring), 2);
    ASSERT_EQ(vfe_start_queue(&client, 1, base), 0);
    eventfd_write(client.queues[1].kick_fd, 1);
    ASSERT_EQ(vfe_queue_await(&client.queues[1], VFE_ANSWER_MS), 0);
    ASSERT_TRUE(ring_next_used(ring, &head, &len));
    EXPECT_EQ(head, late.head);
    EXPECT_TRUE(block_is(vfe_slot_data(&late, &client.guest), 70));
    ring_free(ring, (uint16_t)head);
    fixture_write(1, 9, 90);
    fixture_finish();
}

static void serves_one_client_after_the_other(ServerProgram program)
{
    fixture_start(program, NULL, NULL);
    for (unsigned i = 0; i < 5; i++) {
        fixture_connect(NULL);
        for (unsigned j = 0; j < i; j++) {
            fixture_expect(j % NB_QUEUES, j, j + 1);
        }
        fixture_write(i % NB_QUEUES, i, i + 1);
        if (i < 4) {
            vfe_client_finish(&client);
        }
    }
    fixture_finish();
}

#define ON_BOTH(sentence)                                                                          \
    TEST(vhost_user, sentence)                                                                     \
    {                                                                                              \
        sentence(SERVER_PENSTOCK);                                                                 \
    }                                                                                              \
    TEST(vhost_user_qemu, sentence)                                                                \
    {                                                                                              \
        sentence(SERVER_QEMU);                                                                     \
    }

ON_BOTH(keeps_what_was_written)
ON_BOTH(has_a_configuration)
ON_BOTH(follows_addresses_through_regions)
ON_BOTH(serves_many_at_once)
ON_BOTH(stops_and_goes_on)
ON_BOTH(serves_one_client_after_the_other)

/* --- what penstock does --- */

TEST(vhost_user, serves_clients_without_call_descriptors)
{
    VfeClientParams params = { .polls = true };
    RingDriver *ring = &client.queues[0].ring;
    uint32_t head, len;

    fixture_start(SERVER_PENSTOCK, NULL, NULL);
    fixture_connect(&params);
    for (unsigned i = 0; i < 200; i++) {
        fill_block(vfe_slot_data(&slot, &client.guest), i);
        vfe_slot_add(&slot, ring, VIRTIO_BLK_T_OUT, i * 8, BLOCK_BYTES, false);
        vfe_queue_submit(&client.queues[0]);
        while (!ring_next_used(ring, &head, &len)) {
            sched_yield();
        }
        ASSERT_EQ(head, slot.head);
        ASSERT_EQ(vfe_slot_status(&slot, &client.guest), VIRTIO_BLK_S_OK);
        ring_free(ring, (uint16_t)head);
    }
    fixture_finish();
}

/* --- one message at a time --- */

static void start_penstock(void)
{
    fixture_start(SERVER_PENSTOCK, NULL, NULL);
    fixture_connect(NULL);
}

/* A socket may give any piece of a message at a time, and several messages at once. */
TEST(vhost_user, takes_messages_byte_by_byte_and_several_at_once)
{
    VhostUserHeader get = { VHOST_USER_GET_FEATURES, VHOST_USER_VERSION, 0 };
    VhostUserHeader many[16];
    VfeReply reply;

    start_penstock();
    for (unsigned i = 0; i < ARRAY_SIZE(many); i++) {
        many[i] = get;
    }
    for (unsigned i = 0; i < sizeof(get); i++) {
        ASSERT_EQ(vfe_send_bytes(client.sock, (uint8_t *)&get + i, 1, NULL, 0), 0);
    }
    ASSERT_EQ(vfe_send_bytes(client.sock, many, sizeof(many), NULL, 0), 0);
    for (unsigned i = 0; i < 1 + ARRAY_SIZE(many); i++) {
        ASSERT_EQ(vfe_receive(client.sock, &reply), 0);
        EXPECT_EQ(reply.hdr.request, VHOST_USER_GET_FEATURES);
        EXPECT_EQ(reply.payload.u64, client.features_offered);
    }
    fixture_finish();
}

TEST(vhost_user, refuses_what_the_configuration_does_not_allow)
{
    uint8_t before[CONFIG_BYTES], after[CONFIG_BYTES], noise[16];

    start_penstock();
    memset(noise, 0xa5, sizeof(noise));
    ASSERT_EQ(vfe_get_config(&client, 0, before, sizeof(before)), 0);
    EXPECT_EQ(vfe_get_config(&client, 250, noise, 16), -EREMOTEIO);
    EXPECT_EQ(vfe_get_config(&client, UINT32_MAX - 3, noise, 8), -EREMOTEIO);
    EXPECT_EQ(vfe_set_config(&client, 0, noise, 8, VHOST_USER_CONFIG_WRITABLE), -EREMOTEIO);
    EXPECT_EQ(vfe_set_config(&client, 28, noise, 8, VHOST_USER_CONFIG_WRITABLE), -EREMOTEIO);
    EXPECT_EQ(vfe_set_config(&client, UINT32_MAX - 3, noise, 8, VHOST_USER_CONFIG_WRITABLE),
              -EREMOTEIO);
    EXPECT_EQ(vfe_set_config(&client, 32, noise, 1, 7), -EREMOTEIO);
    ASSERT_EQ(vfe_get_config(&client, 0, after, sizeof(after)), 0);
    EXPECT_EQ(memcmp(before, after, sizeof(before)), 0);
    fixture_write(0, 1, 1);
    fixture_finish();
}

TEST(vhost_user, sets_the_write_cache_bit)
{
    uint32_t at = offsetof(struct virtio_blk_config, wce);
    uint8_t wce = 9;

    start_penstock();
    ASSERT_TRUE(client.features & FEATURE(VIRTIO_BLK_F_CONFIG_WCE));
    for (uint8_t on = 0; on < 2; on++) {
        ASSERT_EQ(vfe_set_config(&client, at, &on, 1, VHOST_USER_CONFIG_WRITABLE), 0);
        ASSERT_EQ(vfe_get_config(&client, at, &wce, 1), 0);
        EXPECT_EQ(wce, on);
        fixture_write(on, on, on);
    }
    fixture_finish();
}

/* Offered and kicked while the ring is disabled: served when it is enabled, not before. */
TEST(vhost_user, keeps_a_kick_that_comes_before_the_enable)
{
    VfeQueue *queue = &client.queues[2];
    uint32_t head, len;

    start_penstock();
    ASSERT_EQ(vfe_set_vring_state(&client, VHOST_USER_SET_VRING_ENABLE, 2, 0), 0);
    vfe_slot_add(&slot, &queue->ring, VIRTIO_BLK_T_IN, 0, BLOCK_BYTES, false);
    ring_publish(&queue->ring);
    eventfd_write(queue->kick_fd, 1);
    VfeSlot mine = slot;

    vfe_slot_init(&slot, &client.guest, BLOCK_BYTES);
    for (unsigned i = 0; i < 4; i++) {
        fixture_write(3, i, i);
    }
    EXPECT_EQ(ring_used_index(&queue->ring), 0);
    ASSERT_EQ(vfe_set_vring_state(&client, VHOST_USER_SET_VRING_ENABLE, 2, 1), 0);
    ASSERT_EQ(vfe_queue_await(queue, VFE_ANSWER_MS), 0);
    ASSERT_TRUE(ring_next_used(&queue->ring, &head, &len));
    EXPECT_EQ(head, mine.head);
    fixture_finish();
}

/* What waits for an interrupt is told once when a server takes over, since the one before may have
 * ended between the used index and the signal. */
TEST(vhost_user, signals_a_driver_that_sleeps_when_it_takes_over)
{
    eventfd_t count;

    start_penstock();
    for (unsigned i = 0; i < NB_QUEUES; i++) {
        EXPECT_EQ(eventfd_read(client.queues[i].call_fd, &count), 0);
    }
    fixture_finish();
}

TEST(vhost_user, resets_the_device_and_begins_anew)
{
    uint64_t status = 0;

    start_penstock();
    fixture_write(0, 5, 50);
    ASSERT_EQ(vfe_get_u64(&client, VHOST_USER_GET_STATUS, &status), 0);
    EXPECT_EQ(status & VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_DRIVER_OK);
    for (unsigned i = 0; i < 2; i++) {
        if (i == 0) {
            ASSERT_EQ(vfe_request(&client, VHOST_USER_RESET_DEVICE), 0);
        } else {
            ASSERT_EQ(vfe_set_u64(&client, VHOST_USER_SET_STATUS, 0), 0);
        }
        ASSERT_EQ(vfe_get_u64(&client, VHOST_USER_GET_STATUS, &status), 0);
        EXPECT_EQ(status, 0);
        ASSERT_EQ(vfe_client_start(&client), 0);
        fixture_expect(1, 5, 50);
    }
    fixture_finish();
}

/* A driver that breaks the rules of a ring hears of it in three ways; its other queues go on. */
TEST(vhost_user, tells_of_a_broken_ring)
{
    RingDriver *ring = &client.queues[1].ring;
    struct pollfd poller = { .events = POLLIN };
    uint64_t status = 0;

    start_penstock();
    ring_offer(ring, QUEUE_SIZE + 7); /* no such descriptor */
    vfe_queue_submit(&client.queues[1]);
    poller.fd = client.queues[1].err_fd;
    ASSERT_EQ(poll(&poller, 1, VFE_ANSWER_MS), 1);
    ASSERT_EQ(vfe_get_u64(&client, VHOST_USER_GET_STATUS, &status), 0);
    EXPECT_TRUE(status & VIRTIO_CONFIG_S_NEEDS_RESET);
    AUTO_FREE char *log = server_log(&server);

    EXPECT_TRUE(strstr(log, "queue 1") != NULL);
    fixture_write(0, 3, 3);
    fixture_write(2, 4, 4);
    fixture_finish();
}

/* It waits for its clients' requests, but not against the will of whoever signals again. */
TEST(vhost_user, a_later_signal_ends_it_while_a_disk_does_not_answer)
{
    int status = 0;

    fixture_start(SERVER_PENSTOCK, "driver=null,size=16M,latency-ns=60000000000", NULL);
    fixture_connect(NULL);
    vfe_slot_add(&slot, &client.queues[0].ring, VIRTIO_BLK_T_IN, 0, BLOCK_BYTES, false);
    vfe_queue_submit(&client.queues[0]);
    VhostUserQueueSplit *region = vfe_inflight_split(&client, 0);

    ASSERT_TRUE(region != NULL);
    while (!__atomic_load_n(&region->desc[slot.head].inflight, __ATOMIC_RELAXED)) {
        poll(NULL, 0, 1); /* until it has been taken */
    }
    for (unsigned i = 0; i < 1000 && !server_has_ended(&server, &status); i++) {
        kill(server.pid, SIGTERM);
        poll(NULL, 0, 10);
    }
    EXPECT_EQ(status, 128 + SIGTERM);
    vfe_client_finish(&client);
    server_finish(&server);
}

/* --- memory --- */

/* Requests that are always in flight on a queue while something else happens. */
typedef struct Load {
    VfeSlot slots[8];
    VfeSlot *by_head[QUEUE_SIZE];
    unsigned queue, nb_done;
} Load;

static void load_submit(Load *load, VfeSlot *s)
{
    RingDriver *ring = &client.queues[load->queue].ring;

    vfe_slot_add(s, ring, VIRTIO_BLK_T_IN, (load->nb_done % 64) * 8, BLOCK_BYTES,
                 load->nb_done % 2);
    load->by_head[s->head] = s;
}

static void load_start(Load *load, unsigned queue)
{
    load->queue = queue;
    load->nb_done = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(load->slots); i++) {
        vfe_slot_init(&load->slots[i], &client.guest, BLOCK_BYTES);
        load_submit(load, &load->slots[i]);
    }
    vfe_queue_submit(&client.queues[queue]);
}

/* Take what is done; @again: and offer as many. */
static void load_work(Load *load, bool again)
{
    RingDriver *ring = &client.queues[load->queue].ring;
    uint32_t head, len;

    while (ring_next_used(ring, &head, &len)) {
        VfeSlot *s = head < QUEUE_SIZE ? load->by_head[head] : NULL;

        ASSERT_TRUE(s != NULL);
        load->by_head[head] = NULL;
        ring_free(ring, (uint16_t)head);
        ASSERT_EQ(vfe_slot_status(s, &client.guest), VIRTIO_BLK_S_OK);
        load->nb_done++;
        if (again) {
            load_submit(load, s);
        }
    }
    vfe_queue_submit(&client.queues[load->queue]);
}

static void load_stop(Load *load)
{
    unsigned nb_out = 0;

    load_work(load, false);
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        nb_out += load->by_head[i] != NULL;
    }
    for (unsigned before = load->nb_done; load->nb_done < before + nb_out;) {
        ASSERT_EQ(vfe_queue_await(&client.queues[load->queue], VFE_ANSWER_MS), 0);
        load_work(load, false);
    }
}

#define NB_CHANGES (HAVE_TSAN || HAVE_ASAN ? 20 : 100)

/* Memory comes and goes beside the one that is in use. */
TEST(vhost_user, adds_and_removes_memory_under_load)
{
    AUTO_FD int fd = memfd_create("more", MFD_CLOEXEC);
    VhostUserRegion region = { .gpa = 1ull << 40, .len_bytes = MIB };
    uint64_t nb_slots = 0;
    Load load = { 0 };

    start_penstock();
    ASSERT_EQ(ftruncate(fd, 2 * MIB), 0);
    ASSERT_EQ(vfe_get_u64(&client, VHOST_USER_GET_MAX_MEM_SLOTS, &nb_slots), 0);
    EXPECT_GE(nb_slots, 32);
    void *more = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    ASSERT_TRUE(more != MAP_FAILED);
    region.user_addr = (uint64_t)(uintptr_t)more + MIB;
    region.mmap_offset = MIB;
    load_start(&load, 3);
    uint64_t own_gpa = slot.data_gpa;

    for (unsigned i = 0; i < NB_CHANGES; i++) {
        ASSERT_EQ(vfe_add_region(&client, &region, fd), 0);
        fixture_write(0, 100, i);
        /* read into the other memory what was written from the first */
        slot.data_gpa = region.gpa + (i % 16) * 65536;
        memset((char *)more + MIB, 0, MIB);
        ASSERT_EQ(vfe_do_block(&client, 1, &slot, VIRTIO_BLK_T_IN, 100 * 8, BLOCK_BYTES),
                  VIRTIO_BLK_S_OK);
        EXPECT_TRUE(block_is((char *)more + MIB + (i % 16) * 65536, i));
        slot.data_gpa = own_gpa;
        ASSERT_EQ(vfe_remove_region(&client, &region), 0);
        load_work(&load, true);
    }
    load_stop(&load);
    EXPECT_GE(load.nb_done, 8);
    munmap(more, 2 * MIB);
    fixture_finish();
}

/* The whole table is replaced by the same memory in other pieces. */
TEST(vhost_user, takes_a_new_memory_table_under_load)
{
    VfeClientParams params = { .nb_regions = 4 };
    Load load = { 0 };

    fixture_start(SERVER_PENSTOCK, NULL, NULL);
    fixture_connect(&params);
    VhostUserMemory pieces = client.memory, whole = { .nb_regions = 1 };

    whole.regions[0] = pieces.regions[0];
    whole.regions[0].len_bytes = client.guest.ram_bytes;
    load_start(&load, 2);
    for (unsigned i = 0; i < NB_CHANGES; i++) {
        client.memory = i % 2 ? pieces : whole;
        ASSERT_EQ(vfe_set_mem_table(&client), 0);
        fixture_write(i % 2, 64 + i % 64, i);
        fixture_expect((i + 1) % 2, 64 + i % 64, i);
        load_work(&load, true);
    }
    load_stop(&load);
    fixture_finish();
}

/* Kick and call descriptors are replaced while requests are under way. */
TEST(vhost_user, takes_new_descriptors_under_load)
{
    Load load = { 0 };

    start_penstock();
    load_start(&load, 1);
    for (unsigned i = 0; i < NB_CHANGES; i++) {
        VfeQueue *queue = &client.queues[1];
        int kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        int call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

        ASSERT_EQ(vfe_set_vring_fd(&client, VHOST_USER_SET_VRING_KICK, 1, kick_fd), 0);
        ASSERT_EQ(vfe_set_vring_fd(&client, VHOST_USER_SET_VRING_CALL, 1, call_fd), 0);
        close(queue->kick_fd);
        close(queue->call_fd);
        queue->kick_fd = kick_fd;
        queue->call_fd = call_fd;
        eventfd_write(kick_fd, 1); /* one that was for the old one may be lost */
        load_work(&load, true);
    }
    load_stop(&load);
    fixture_finish();
}

/* --- clients --- */

/* The second one is connected, and hears nothing until the first has gone. */
TEST(vhost_user, serves_one_client_at_a_time)
{
    VfeReply reply;
    struct pollfd poller = { .events = POLLIN };

    start_penstock();
    AUTO_FD int second = vfe_connect(server.socket_path);

    ASSERT_GE(second, 0);
    ASSERT_EQ(vfe_send(second, VHOST_USER_GET_FEATURES, 0, NULL, 0, NULL, 0), 0);
    for (unsigned i = 0; i < 20; i++) {
        fixture_write(i % NB_QUEUES, i, i);
    }
    poller.fd = second;
    EXPECT_EQ(poll(&poller, 1, 0), 0);
    vfe_client_disconnect(&client);
    ASSERT_EQ(vfe_receive(second, &reply), 0);
    EXPECT_EQ(reply.hdr.request, VHOST_USER_GET_FEATURES);
    close(take_fd(&second));
    fixture_finish();
}

static const char slow_disk[] = "driver=faulty,file.path=IMAGE,file.cache=writeback,"
                                "rule0.delay-ns=20000000";

/* GET_VRING_BASE answers when nothing is in flight any more. */
TEST(vhost_user, drains_a_ring_before_it_says_where_it_stands)
{
    Load load = { 0 };
    uint32_t base = 0;

    fixture_start(SERVER_PENSTOCK, slow_disk, NULL);
    fixture_connect(NULL);
    load_start(&load, 0);
    ASSERT_EQ(vfe_get_vring_base(&client, 0, &base), 0);
    EXPECT_EQ(base, ring_used_index(&client.queues[0].ring));
    ASSERT_EQ(vfe_start_queue(&client, 0, base), 0);
    load_stop(&load);
    EXPECT_EQ(load.nb_done, ARRAY_SIZE(load.slots));
    fixture_finish();
}

/* Memory changes when nothing is in flight any more, and nothing waits for its turn then. */
TEST(vhost_user, changes_memory_while_requests_are_held_back)
{
    Load load = { 0 };
    AUTO_FD int fd = memfd_create("more", MFD_CLOEXEC);
    VhostUserRegion more = { 1ull << 32, MIB, 0x7f0000000000, 0 };

    fixture_start(SERVER_PENSTOCK,
                  "driver=faulty,file.path=IMAGE,rule0.op=read,rule0.delay-ns=3600000000000", NULL);
    fixture_connect(NULL);
    ASSERT_EQ(ftruncate(fd, MIB), 0);
    load_start(&load, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(load.slots); i++) {
        const VhostUserQueueSplit *inflight = vfe_inflight_split(&client, 0);

        while (!__atomic_load_n(&inflight->desc[load.slots[i].head].inflight, __ATOMIC_ACQUIRE)) {
            sched_yield(); /* until the server has taken it */
        }
    }
    ASSERT_EQ(vfe_add_region(&client, &more, fd), 0);
    load_stop(&load);
    EXPECT_EQ(load.nb_done, ARRAY_SIZE(load.slots));
    fixture_finish();
}

/* SIGTERM finishes what is in flight and tells the client, whose connection ends then. */
TEST(vhost_user, finishes_what_is_in_flight_when_it_is_told_to_end)
{
    Load load = { 0 };

    fixture_start(SERVER_PENSTOCK, slow_disk, NULL);
    fixture_connect(NULL);
    load_start(&load, 0);
    while (ring_used_index(&client.queues[0].ring) == 0) {
        sched_yield(); /* the first one is done, so all were taken */
    }
    EXPECT_EQ(server_stop(&server), 0);
    EXPECT_EQ(vfe_await_close(client.sock), 0);
    EXPECT_EQ(ring_used_index(&client.queues[0].ring), ARRAY_SIZE(load.slots));
    vfe_client_finish(&client);
    server_finish(&server);
}

/* A client that is gone in the midst of it: its memory stays until the storage is done with it. */
TEST(vhost_user, outlives_clients_that_leave_in_the_midst_of_requests)
{
    fixture_start(SERVER_PENSTOCK, slow_disk, NULL);
    for (unsigned i = 0; i < 10; i++) {
        Load load = { 0 };

        fixture_connect(NULL);
        load_start(&load, i % NB_QUEUES);
        vfe_client_finish(&client);
        fixture_await_idle();
    }
    fixture_connect(NULL);
    fixture_write(0, 0, 1);
    fixture_finish();
}

#define LIMIT_IOPS 100

/* A ring that is stopped is drained, and what a limit holds back goes then. It has to be paid for:
 * who does that all the time gets no more than the limit. */
TEST(vhost_user, stopping_a_ring_again_and_again_gets_around_no_limit)
{
    static const char disk[] = "driver=throttle,iops-total=100,file.driver=null,file.size=16M";
    int64_t start_ns, ran_ns = 0;
    Load load = { 0 };

    fixture_start(SERVER_PENSTOCK, disk, NULL);
    fixture_connect(NULL);
    load_start(&load, 0);
    start_ns = aio_now_ns();
    for (unsigned round = 0; round < 10 || ran_ns < 1500000000; round++) {
        ASSERT_EQ(vfe_set_vring_state(&client, VHOST_USER_SET_VRING_ENABLE, 0, 0), 0);
        ASSERT_EQ(vfe_set_vring_state(&client, VHOST_USER_SET_VRING_ENABLE, 0, 1), 0);
        load_work(&load, true);
        poll(NULL, 0, 1);
        ran_ns = aio_now_ns() - start_ns;
    }
    /* Those of the time, of the slack, and those in flight; of the limit, a half at least. */
    EXPECT_LE(load.nb_done, LIMIT_IOPS * ran_ns / 1000000000 + 4 + 2 * ARRAY_SIZE(load.slots));
    EXPECT_GE(load.nb_done, LIMIT_IOPS * ran_ns / 1000000000 / 2);
    load_stop(&load);
    fixture_finish();
}

/* Two disks, two sockets, one process. */
TEST(vhost_user, serves_several_disks)
{
    char options[3 * SERVER_PATH_BYTES];
    char path[SERVER_PATH_BYTES + 8];
    struct virtio_blk_config config;

    server_init(&server, SERVER_PENSTOCK, DISK_BYTES);
    snprintf(path, sizeof(path), "%s2", server.socket_path);
    snprintf(options, sizeof(options),
             "--disk driver=null,size=1M,id=other --vhost-user disk=other,socket-path=%s", path);
    server_start(&server, NB_QUEUES, "path=IMAGE,id=first", options);
    fixture_connect(NULL);
    fixture_write(0, 0, 1);
    VfeClient other;
    VfeClientParams params = { .nb_queues = 1, .queue_size = 16, .ram_bytes = MIB };

    vfe_client_init(&other, &params);
    ASSERT_EQ(vfe_client_connect(&other, path), 0);
    ASSERT_EQ(vfe_client_start(&other), 0);
    ASSERT_EQ(vfe_get_config(&other, 0, &config, CONFIG_BYTES), 0);
    EXPECT_EQ(le64toh(config.capacity), MIB / 512);
    ASSERT_EQ(vfe_get_config(&client, 0, &config, CONFIG_BYTES), 0);
    EXPECT_EQ(le64toh(config.capacity), DISK_BYTES / 512);
    vfe_client_finish(&other);
    fixture_expect(1, 0, 1);
    vfe_client_finish(&client);
    EXPECT_EQ(server_stop(&server), 0);
    server_finish(&server);
}

/* --- more requests than there can be coroutines --- */

#define FLOOD_QUEUES     16
#define FLOOD_QUEUE_SIZE 1024
#define FLOOD_DISKS      3

static unsigned max_map_count(void)
{
    unsigned nb = 0;
    FILE *file = fopen("/proc/sys/vm/max_map_count", "re");

    if (!file || fscanf(file, "%u", &nb) != 1) {
        TEST_SKIP("/proc/sys/vm/max_map_count cannot be read");
    }
    fclose(file);
    return nb;
}

/* All the requests that its queues hold, for a disk that does one a second. */
static void flood(VfeClient *other, const char *path)
{
    VfeClientParams params = { .nb_queues = FLOOD_QUEUES,
                               .queue_size = FLOOD_QUEUE_SIZE,
                               .ram_bytes = 4 * MIB,
                               .polls = true };
    VfeSlot slots[FLOOD_QUEUES];

    vfe_client_init(other, &params);
    ASSERT_EQ(vfe_client_connect(other, path), 0);
    ASSERT_EQ(vfe_client_start(other), 0);
    for (unsigned q = 0; q < FLOOD_QUEUES; q++) {
        vfe_slot_init(&slots[q], &other->guest, 512);
        for (unsigned i = 0; i < FLOOD_QUEUE_SIZE; i++) {
            vfe_slot_add(&slots[q], &other->queues[q].ring, VIRTIO_BLK_T_IN, 0, 512, true);
        }
        vfe_queue_submit(&other->queues[q]);
    }
}

TEST(vhost_user, slow_disks_leave_coroutines_and_mappings_to_others)
{
    enum { DEPTH = 80, QUEUE_DESCS = 256 };
    VfeClientParams params = { .queue_size = QUEUE_DESCS };
    VfeClient others[FLOOD_DISKS];
    VfeSlot slots[DEPTH];
    char options[1024], paths[FLOOD_DISKS][SERVER_PATH_BYTES + 8];
    unsigned nb_flood = 2 * FLOOD_DISKS * FLOOD_QUEUES * FLOOD_QUEUE_SIZE;
    unsigned nb_most = MIN(max_map_count() / 2, nb_flood);
    size_t len = 0;
    uint32_t head, used_len;

    if (HAVE_TSAN) {
        TEST_SKIP("ThreadSanitizer has too few fibers");
    }
    server_init(&server, SERVER_PENSTOCK, DISK_BYTES);
    for (unsigned i = 0; i < FLOOD_DISKS; i++) {
        snprintf(paths[i], sizeof(paths[i]), "%s%u", server.socket_path, i);
        len += (size_t)snprintf(options + len, sizeof(options) - len,
                                "--disk driver=throttle,file.driver=null,file.size=1M,iops-total=1,"
                                "id=slow%u --vhost-user disk=slow%u,queues=%u,socket-path=%s ",
                                i, i, FLOOD_QUEUES, paths[i]);
    }
    server_start(&server, NB_QUEUES, "path=IMAGE,id=first", options);
    fixture_connect(&params);
    fixture_write(0, 0, 1);
    for (unsigned i = 0; i < FLOOD_DISKS; i++) {
        flood(&others[i], paths[i]);
    }
    for (unsigned nb = 0, before = 1; nb < nb_most || nb != before;) {
        fixture_expect(0, 0, 1); /* until the slow ones have all that they get */
        before = nb;
        nb = server_count_maps(&server);
    }
    RingDriver *ring = &client.queues[1].ring;

    for (unsigned i = 0; i < DEPTH; i++) {
        vfe_slot_init(&slots[i], &client.guest, BLOCK_BYTES);
        vfe_slot_add(&slots[i], ring, VIRTIO_BLK_T_IN, 0, BLOCK_BYTES, false);
    }
    vfe_queue_submit(&client.queues[1]);
    for (unsigned i = 0; i < DEPTH; i++) {
        ASSERT_EQ(vfe_queue_await(&client.queues[1], VFE_ANSWER_MS), 0);
        ASSERT_TRUE(ring_next_used(ring, &head, &used_len));
    }
    for (unsigned i = 0; i < DEPTH; i++) {
        EXPECT_EQ(vfe_slot_status(&slots[i], &client.guest), VIRTIO_BLK_S_OK);
    }
    /* And there is room for a client with its memory. */
    vfe_client_finish(&client);
    fixture_connect(NULL);
    fixture_expect(3, 0, 1);
    EXPECT_LE(server_count_maps(&server), max_map_count() / 4 * 3);

    for (unsigned i = 0; i < FLOOD_DISKS; i++) {
        vfe_client_finish(&others[i]);
    }
    vfe_client_finish(&client);
    EXPECT_EQ(server_stop(&server), 0);
    server_finish(&server);
}

TEST_MAIN()
