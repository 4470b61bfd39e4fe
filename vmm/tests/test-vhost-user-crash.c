/*
 * test-vhost-user-crash.c - SIGKILL for the server, at any moment, again and again
 *
 * One client goes on through all the lives of the server. It writes and reads few blocks through
 * many requests in flight, so that they overlap, and holds each answer against a model of every
 * block (block-model.h). What must not happen, and how it shows:
 *
 *   lost     a request that no server answers any more: a drain with a time limit; a block with an
 *            older stamp
 *   stale    a read that finds what a later, answered write has replaced
 *   doubled  a request that is carried out after it was answered. Its memory is turned into a trap
 *            then: another carrying out writes poison into a block of its own, whose arrival there
 *            is looked for; another answer is for a chain that is not out, or changes a status byte
 *            that was laid down.
 *
 * Rounds: 200, or VHOST_USER_CRASH_ROUNDS in the environment; with VHOST_USER_CRASH_SEED others.
 */
#include <poll.h>
#include <stdio.h>

#include "vmm/tests/block-model.h"
#include "vmm/tests/vhost-user-fixture.h"

#define ROUNDS_DEFAULT (HAVE_ASAN || HAVE_TSAN ? 40 : 200)
#define DEPTH          (QUEUE_SIZE / 3) /* requests of a queue */
#define NB_BLOCKS      48
#define TRAP_BLOCK     NB_BLOCKS /* where requests go that were answered already */
#define POISON         0xbad00000u
#define DRAIN_MS       30000
#define STATUS_ASLEEP  0xdd

typedef struct Request {
    VfeSlot slot;
    bool busy, write;
    unsigned block;
    uint32_t stamp; /* of what is written */
    ModelSet set;   /* of what may be read */
    bool set_is_full;
} Request;

static BlockModel model;
static Request requests[NB_QUEUES][DEPTH];
static Request *by_head[NB_QUEUES][QUEUE_SIZE];
static uint64_t seed;
static unsigned nb_answers, nb_lives;

static uint32_t next_random(uint32_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % below;
}

/* --- requests --- */

/* Other reads of this block that are in flight may find the new stamp. */
static void tell_readers(unsigned block, uint32_t stamp)
{
    for (unsigned q = 0; q < NB_QUEUES; q++) {
        for (unsigned i = 0; i < DEPTH; i++) {
            Request *r = &requests[q][i];

            if (r->busy && !r->write && r->block == block && !model_set_add(&r->set, stamp)) {
                r->set_is_full = true;
            }
        }
    }
}

static void submit(unsigned q, Request *r)
{
    r->block = next_random(NB_BLOCKS);
    r->write = next_random(2) && model_may_write(&model, r->block);
    EXPECT_EQ(*(uint8_t *)guest_ptr(&client.guest, r->slot.status_gpa), STATUS_ASLEEP);
    if (r->write) {
        r->stamp = model_write_begin(&model, r->block);
        tell_readers(r->block, r->stamp);
        model_fill(vfe_slot_data(&r->slot, &client.guest), BLOCK_BYTES, r->stamp);
    } else {
        r->set = model_read(&model, r->block);
        r->set_is_full = false;
        model_fill(vfe_slot_data(&r->slot, &client.guest), BLOCK_BYTES, POISON);
    }
    r->busy = true;
    vfe_slot_add(&r->slot, &client.queues[q].ring, r->write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN,
                 (uint64_t)r->block * (BLOCK_BYTES / 512), BLOCK_BYTES, next_random(2));
    ASSERT_TRUE(by_head[q][r->slot.head] == NULL);
    by_head[q][r->slot.head] = r;
}

/* The descriptors still lead here: whoever follows them again writes poison where it shows. */
static void set_trap(Request *r)
{
    struct virtio_blk_outhdr *header = guest_ptr(&client.guest, r->slot.header_gpa);

    header->type = htole32(VIRTIO_BLK_T_OUT);
    header->sector = htole64((uint64_t)TRAP_BLOCK * (BLOCK_BYTES / 512));
    model_fill(vfe_slot_data(&r->slot, &client.guest), BLOCK_BYTES, POISON);
    *(uint8_t *)guest_ptr(&client.guest, r->slot.status_gpa) = STATUS_ASLEEP;
}

static void check_data(const Request *r)
{
    uint32_t found = 0;

    if (!r->set_is_full &&
        !model_check(&r->set, vfe_slot_data(&r->slot, &client.guest), BLOCK_BYTES, &found)) {
        test_fail(__FILE__, __LINE__, "life %u: block %u holds stamp %u, not %u (of %u)", nb_lives,
                  r->block, found, r->set.stamps[r->set.nb_stamps - 1], r->set.nb_stamps);
    }
}

static void take_answer(unsigned q, uint32_t head)
{
    Request *r = head < QUEUE_SIZE ? by_head[q][head] : NULL;

    if (!r) {
        test_fail_abort(__FILE__, __LINE__, "life %u: queue %u: an answer for head %u, not out",
                        nb_lives, q, head);
    }
    by_head[q][head] = NULL;
    ring_free(&client.queues[q].ring, (uint16_t)head);
    EXPECT_EQ(vfe_slot_status(&r->slot, &client.guest), VIRTIO_BLK_S_OK);
    if (r->write) {
        model_write_end(&model, r->block, r->stamp);
    } else {
        check_data(r);
    }
    r->busy = false;
    set_trap(r);
    nb_answers++;
}

static bool take_answers(unsigned q)
{
    uint32_t head, len;
    bool any = false;

    while (ring_next_used(&client.queues[q].ring, &head, &len)) {
        take_answer(q, head);
        any = true;
    }
    return any;
}

static unsigned count_busy(unsigned q)
{
    unsigned nb = 0;

    for (unsigned i = 0; i < DEPTH; i++) {
        nb += requests[q][i].busy;
    }
    return nb;
}

/* One round of the driver: take what there is, offer some more. */
static void work(void)
{
    for (unsigned q = 0; q < NB_QUEUES; q++) {
        take_answers(q);
        for (unsigned i = 0; i < DEPTH; i++) {
            if (!requests[q][i].busy && next_random(4) > 0) {
                submit(q, &requests[q][i]);
            }
        }
        vfe_queue_submit(&client.queues[q]);
    }
}

/* All that is in flight is answered, and an interrupt tells of it. */
static void drain(void)
{
    for (unsigned q = 0; q < NB_QUEUES; q++) {
        while (count_busy(q) > 0) {
            int ret = vfe_queue_await(&client.queues[q], DRAIN_MS);

            if (ret < 0) {
                AUTO_FREE char *log = server_log(&server);

                test_fail_abort(__FILE__, __LINE__,
                                "life %u: queue %u: %u requests are lost (error %d, used %u, "
                                "seen %u); the server's log: %s",
                                nb_lives, q, count_busy(q), ret,
                                ring_used_index(&client.queues[q].ring),
                                client.queues[q].ring.used_seen, log);
            }
            take_answers(q);
        }
    }
}

/* With nothing in flight, each block holds one of what the model has; the trap nothing. */
static void verify_disk(void)
{
    for (unsigned block = 0; block <= TRAP_BLOCK; block++) {
        uint32_t found = 0;
        ModelSet set = { .nb_stamps = 1 };

        if (block < NB_BLOCKS) {
            set = model_read(&model, block);
        }
        ASSERT_EQ(vfe_do_block(&client, block % NB_QUEUES, &slot, VIRTIO_BLK_T_IN,
                               (uint64_t)block * (BLOCK_BYTES / 512), BLOCK_BYTES),
                  VIRTIO_BLK_S_OK);
        if (!model_check(&set, vfe_slot_data(&slot, &client.guest), BLOCK_BYTES, &found)) {
            test_fail(__FILE__, __LINE__, "life %u: %s %u holds stamp %u", nb_lives,
                      block < NB_BLOCKS ? "block" : "a request was done twice: block", block,
                      found);
        }
    }
}

/* --- lives --- */

/* Some requests take longer than others, so that they overtake each other. */
static const char slow_disk[] = "driver=faulty,file.path=IMAGE,file.cache=writeback,"
                                "rule0.delay-ns=1500000,rule0.probability=0.05,"
                                "rule1.delay-ns=100000,rule1.probability=0.3";

static const char *disk; /* --disk of each life */
static int steps_left;   /* until a kill: messages begun or sent; -1 = none */

static void kill_at_step(void *opaque, uint32_t request, bool sent)
{
    if (steps_left > 0 && --steps_left == 0) {
        server_kill(&server);
        steps_left = -1;
    }
}

/* A new life of the server, to which the client connects; false when it was killed meanwhile. */
static bool live_again(int kill_after_steps)
{
    vfe_client_disconnect(&client);
    server_start(&server, NB_QUEUES, disk, NULL);
    nb_lives++;
    steps_left = kill_after_steps;
    int ret = vfe_client_connect(&client, server.socket_path);

    ASSERT_EQ(ret, 0);
    ret = vfe_client_start(&client);
    if (!server.pid) {
        return false;
    }
    if (ret < 0) {
        AUTO_FREE char *log = server_log(&server);

        test_fail_abort(__FILE__, __LINE__, "life %u: the client cannot start: %s; %s", nb_lives,
                        strerror(-ret), log);
    }
    steps_left = -1;
    return true;
}

static void begin(const char *disk_options, bool packed)
{
    VfeClientParams params = { .nb_queues = NB_QUEUES,
                               .queue_size = QUEUE_SIZE,
                               .ram_bytes = 4 * MIB,
                               .packed = packed,
                               .protocol_features = UINT64_MAX };
    const char *asked = getenv("VHOST_USER_CRASH_SEED");

    disk = disk_options;
    seed = asked ? strtoull(asked, NULL, 0) : 1;
    server_init(&server, SERVER_PENSTOCK, DISK_BYTES);
    model_init(&model, NB_BLOCKS);
    vfe_client_init(&client, &params);
    vfe_slot_init(&slot, &client.guest, BLOCK_BYTES);
    for (unsigned q = 0; q < NB_QUEUES; q++) {
        for (unsigned i = 0; i < DEPTH; i++) {
            vfe_slot_init(&requests[q][i].slot, &client.guest, BLOCK_BYTES);
            set_trap(&requests[q][i]);
        }
    }
    client.on_message = kill_at_step;
    ASSERT_TRUE(live_again(-1));
    ASSERT_TRUE(client.inflight_map != NULL);
    ASSERT_EQ(client.queues[0].ring.is_packed, packed);
}

static void end(void)
{
    if (!server.pid) {
        ASSERT_TRUE(live_again(-1));
    }
    drain();
    verify_disk();
    EXPECT_EQ(vfe_client_stop(&client), 0);
    vfe_client_finish(&client);
    EXPECT_EQ(server_stop(&server), 0);
    server_finish(&server);
    model_finish(&model);
}

/* A quarter of them for each of the tests below that have rounds. */
static unsigned nb_rounds(void)
{
    const char *asked = getenv("VHOST_USER_CRASH_ROUNDS");

    return (asked ? (unsigned)strtoul(asked, NULL, 0) : ROUNDS_DEFAULT) / 4;
}

static void crash_at_random(const char *disk_options, bool packed)
{
    begin(disk_options, packed);
    for (unsigned round = 0, rounds = nb_rounds(); round < rounds; round++) {
        for (unsigned passes = next_random(300); passes > 0; passes--) {
            work();
        }
        if (round % 8 == 7) {
            drain();
            verify_disk();
            work();
        }
        server_kill(&server);
        /* each fourth time not even the new one gets to its work */
        for (int steps = next_random(4) ? -1 : 1 + (int)next_random(120); !live_again(steps);
             steps = -1) {
        }
    }
    end();
    fprintf(stderr, "# %u lives, %u requests\n", nb_lives, nb_answers);
}

TEST(crash, at_random_instants)
{
    crash_at_random(NULL, false);
}

TEST(crash, at_random_instants_of_a_disk_with_delays)
{
    crash_at_random(slow_disk, false);
}

TEST(crash, at_random_instants_with_packed_rings)
{
    crash_at_random(NULL, true);
}

TEST(crash, at_random_instants_with_packed_rings_of_a_disk_with_delays)
{
    crash_at_random(slow_disk, true);
}

/* Some requests end only when something makes them, and fail then. */
static const char stuck_disk[] =
    "driver=faulty,file.path=IMAGE,file.cache=writeback,"
    "rule0.op=write,rule0.delay-ns=3600000000000,rule0.error=EIO,rule0.probability=0.01,"
    "rule1.op=read,rule1.delay-ns=3600000000000,rule1.error=EIO,rule1.probability=0.01,"
    "rule2.delay-ns=100000,rule2.probability=0.3";

/* Stop each queue; now and then disable it first. @resume: and go on with it. */
static void suspend(bool resume)
{
    uint32_t base;

    for (unsigned q = 0; q < NB_QUEUES; q++) {
        if (next_random(2) > 0) {
            ASSERT_EQ(vfe_set_vring_state(&client, VHOST_USER_SET_VRING_ENABLE, q, 0), 0);
        }
        ASSERT_EQ(vfe_get_vring_base(&client, q, &base), 0);
        if (resume) {
            ASSERT_EQ(vfe_start_queue(&client, q, base), 0);
        }
        work();
    }
}

static void stop_server(void)
{
    int status = server_stop(&server);

    if (status != 0) {
        AUTO_FREE char *log = server_log(&server);

        test_fail(__FILE__, __LINE__, "life %u ended with status %d: %s", nb_lives, status, log);
    }
}

static void reconnect(void)
{
    vfe_client_disconnect(&client);
    ASSERT_EQ(vfe_client_connect(&client, server.socket_path), 0);
    ASSERT_EQ(vfe_client_start(&client), 0);
}

/*
 * What is stuck at the end of one life, or when its queue stops, goes on in the next one, until the
 * last one has a disk that is in order.
 */
static void suspend_at_random(bool packed)
{
    begin(stuck_disk, packed);
    for (unsigned round = 0, rounds = nb_rounds(); round < rounds; round++) {
        for (unsigned passes = next_random(100); passes > 0; passes--) {
            work();
        }
        switch (next_random(5)) {
        case 0:
            suspend(true);
            break;
        case 1:
            suspend(false);
            reconnect();
            break;
        case 2:
            stop_server();
            break;
        case 3:
            suspend(false);
            server_kill(&server);
            break;
        default:
            server_kill(&server);
            break;
        }
        if (!server.pid) {
            ASSERT_TRUE(live_again(-1));
        }
    }
    stop_server();
    disk = NULL;
    ASSERT_TRUE(live_again(-1));
    end();
    fprintf(stderr, "# %u lives, %u requests\n", nb_lives, nb_answers);
}

TEST(crash, suspended_at_random_instants)
{
    suspend_at_random(false);
}

TEST(crash, suspended_at_random_instants_with_packed_rings)
{
    suspend_at_random(true);
}

/* Before and after each message of a connection, with requests in flight. */
static void crash_at_each_step(bool packed)
{
    int stride = HAVE_ASAN || HAVE_TSAN ? 7 : 1, nb_steps = 0;

    begin(slow_disk, packed);
    for (int step = 1;; step += stride) {
        for (unsigned passes = 20; passes > 0; passes--) {
            work();
        }
        server_kill(&server);
        if (live_again(step)) {
            break; /* there are no so many steps */
        }
        nb_steps++;
        while (!live_again(-1)) {
        }
        if (step % 8 == 0) {
            drain();
            verify_disk();
        }
    }
    EXPECT_GE(nb_steps * stride, 60);
    end();
    fprintf(stderr, "# %d steps, %u lives, %u requests\n", nb_steps, nb_lives, nb_answers);
}

TEST(crash, at_each_step_of_the_protocol)
{
    crash_at_each_step(false);
}

TEST(crash, at_each_step_of_the_protocol_with_packed_rings)
{
    crash_at_each_step(true);
}

TEST_MAIN()
