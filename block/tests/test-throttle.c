/*
 * test-throttle.c - disks that share a rate, in virtual time
 */
#include "block/tests/virtual-clock.h"

#include <stdio.h>
#include <string.h>

#define S  ((int64_t)1000000000)
#define MS 1000000

#define REQUESTS_MAX 64

typedef struct Load {
    Request reqs[REQUESTS_MAX];
    unsigned order;
} Load;

static char buf[65536];

static BlockBackend *open_disk(const char *id, const char *text)
{
    Opts opts;
    Error err = { 0 };
    BlockBackend *blk;

    ASSERT_EQ(opts_parse(&opts, "--disk", text, "path", &err), 0);
    blk = blk_open(id, &opts, &err);
    if (!blk) {
        test_fail(__FILE__, __LINE__, "%s", err.msg);
    }
    ASSERT_TRUE(blk != NULL);
    ASSERT_EQ(opts_check_all_used(&opts, &err), 0);
    opts_finish(&opts);
    return blk;
}

#define DISK "driver=throttle,file.driver=null,file.size=1M,"

static int reconfigure(BlockBackend *blk, const char *text)
{
    Opts opts;
    Error err = { 0 };
    int ret;

    ASSERT_EQ(opts_parse(&opts, "blk", text, "x", &err), 0);
    ret = bdrv_reconfigure(blk_node(blk), &opts, &err);
    opts_finish(&opts);
    return ret;
}

static void start(Load *load, unsigned index, BlockBackend *blk, AioContext *ctx, RequestKind kind,
                  uint64_t len_bytes)
{
    load->reqs[index] = (Request){
        .blk = blk, .kind = kind, .len_bytes = len_bytes, .buf = buf, .order = &load->order
    };
    request_start(&load->reqs[index], ctx);
}

static bool done(const Load *load, unsigned index)
{
    return atomic_load(&load->reqs[index].done);
}

TEST(throttle, bad_options_are_refused_with_the_reason)
{
    static const struct {
        const char *options, *word;
    } cases[] = {
        { DISK "group=", "group" },
        { DISK "group=a,iops-read-max=5", "iops-read-max" },
        { DISK "group=g,iops-total=7", "'g' has other limits" },
        { "driver=throttle,iops-total=7", "file" },
    };
    Env env;

    env_init(&env, 0);
    BlockBackend *blk = open_disk("d0", DISK "group=g,iops-total=6");

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        Opts opts;
        Error err = { 0 };

        ASSERT_EQ(opts_parse(&opts, "--disk", cases[i].options, "path", &err), 0);
        EXPECT_TRUE(blk_open("d1", &opts, &err) == NULL);
        EXPECT_EQ(err.code, -EINVAL);
        if (!strstr(err.msg, cases[i].word)) {
            test_fail(__FILE__, __LINE__, "%s: the message is: %s", cases[i].options, err.msg);
        }
        opts_finish(&opts);
    }
    blk_close(blk);
    env_finish(&env);
}

TEST(throttle, requests_go_at_the_rate_in_order_of_arrival)
{
    Env env;
    Load load = { 0 };

    env_init(&env, 1);
    BlockBackend *blk = open_disk("d0", DISK "iops-total=10");

    for (unsigned i = 0; i < 5; i++) {
        start(&load, i, blk, env.ctx[0], i % 2 ? REQ_READ : REQ_WRITE, 512);
    }
    for (unsigned i = 0; i < 5; i++) {
        int64_t due_ns = i == 0 ? 0 : i * 100 * MS - 20 * MS;

        if (i > 0) {
            virtual_clock_advance_to(&env, due_ns - 1);
            EXPECT_TRUE(!done(&load, i));
        }
        virtual_clock_advance_to(&env, due_ns);
        EXPECT_TRUE(done(&load, i));
        EXPECT_EQ(load.reqs[i].rank, i + 1);
        EXPECT_TRUE(virtual_nb_timers() <= 1);
    }
    EXPECT_EQ(virtual_nb_timers(), 0);
    blk_close(blk);
    env_finish(&env);
}

TEST(throttle, disks_on_several_threads_share_their_groups_rate_and_take_turns)
{
    Env env;
    Load load = { 0 };
    BlockBackend *blk[3];
    unsigned nb_done[3] = { 0 };

    env_init(&env, 3);
    blk[0] = open_disk("d0", DISK "group=g,iops-total=10");
    blk[1] = open_disk("d1", DISK "group=g");
    blk[2] = open_disk("d2", DISK "group=g,iops-total=10");
    /* The first has filled its line before the others come. */
    for (unsigned i = 0; i < 30; i++) {
        start(&load, i, blk[i / 10], env.ctx[i / 10], REQ_WRITE, 512);
        if (i == 9) {
            env_settle(&env);
        }
    }
    virtual_clock_advance_to(&env, 0);
    virtual_clock_advance_to(&env, 1200 * MS - 20 * MS);
    for (unsigned i = 0; i < 30; i++) {
        nb_done[i / 10] += done(&load, i);
    }
    EXPECT_EQ(nb_done[0], 5); /* it had one before there were others */
    EXPECT_EQ(nb_done[1], 4);
    EXPECT_EQ(nb_done[2], 4);
    virtual_clock_advance_to(&env, 10 * S);
    EXPECT_EQ(load.order, 30);
    for (unsigned i = 0; i < 3; i++) {
        blk_close(blk[i]);
    }
    env_finish(&env);
}

TEST(throttle, a_group_shares_a_burst_of_its_length_and_then_the_rate)
{
    static const struct {
        int64_t at_ns;
        unsigned nb_min, nb_max;
    } expected[] = {
        { 1 * S, 10, 11 },  /* 10 a second ... */
        { 2 * S, 20, 21 },
        { 3 * S, 22, 24 },  /* ... for 2 s, beside the 1 a second that flows all the time */
        { 13 * S, 32, 34 },
        { 23 * S, 42, 44 },
    };
    Env env;
    Load load = { 0 };
    BlockBackend *blk[2];
    unsigned nb_done[2] = { 0 };

    env_init(&env, 2);
    blk[0] = open_disk("d0", DISK "group=g,iops-total=1,iops-total-max=10,iops-total-max-length=2");
    blk[1] = open_disk("d1", DISK "group=g");
    for (unsigned i = 0; i < 60; i++) {
        start(&load, i, blk[i % 2], env.ctx[i % 2], REQ_READ, 512);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(expected); i++) {
        virtual_clock_advance_to(&env, expected[i].at_ns);
        EXPECT_GE(load.order, expected[i].nb_min);
        EXPECT_LE(load.order, expected[i].nb_max);
    }
    for (unsigned i = 0; i < 60; i++) {
        nb_done[i % 2] += done(&load, i);
    }
    EXPECT_LE(nb_done[0], nb_done[1] + 2); /* it had one before there were others */
    EXPECT_LE(nb_done[1], nb_done[0] + 1);
    virtual_clock_advance_to(&env, 60 * S);
    EXPECT_EQ(load.order, 60);
    blk_close(blk[0]);
    blk_close(blk[1]);
    env_finish(&env);
}

/* The turn is by requests: who asks for little waits for one request of who asks for much. */
TEST(throttle, a_member_with_a_long_line_of_large_requests_holds_no_other_up)
{
    Env env;
    Load load = { 0 };
    BlockBackend *blk[2];
    int64_t now_ns = 500 * MS, turn_ns = (int64_t)sizeof(buf) * S / 1000000;

    env_init(&env, 2);
    blk[0] = open_disk("d0", DISK "group=g,bps-total=1000000");
    blk[1] = open_disk("d1", DISK "group=g");
    for (unsigned i = 0; i < 40; i++) {
        start(&load, i, blk[0], env.ctx[0], REQ_WRITE, sizeof(buf));
    }
    for (unsigned i = 40; i < 50; i++) {
        virtual_clock_advance_to(&env, now_ns);
        start(&load, i, blk[1], env.ctx[1], REQ_WRITE, 512);
        now_ns += turn_ns + MS;
        virtual_clock_advance_to(&env, now_ns);
        EXPECT_TRUE(done(&load, i));
    }
    EXPECT_TRUE(!done(&load, 39)); /* the line is long enough for all of this */
    virtual_clock_advance_to(&env, 10 * S);
    EXPECT_EQ(load.order, 50);
    blk_close(blk[0]);
    blk_close(blk[1]);
    env_finish(&env);
}

TEST(throttle, a_direction_that_must_wait_does_not_hold_the_other_up)
{
    Env env;
    Load load = { 0 };

    env_init(&env, 1);
    BlockBackend *blk = open_disk("d0", DISK "bps-write=64k,iops-read=1000");

    start(&load, 0, blk, env.ctx[0], REQ_WRITE, 65536);
    start(&load, 1, blk, env.ctx[0], REQ_WRITE, 65536);
    for (unsigned i = 2; i < 42; i++) {
        start(&load, i, blk, env.ctx[0], REQ_READ, 4096);
    }
    virtual_clock_advance_to(&env, 0);
    virtual_clock_advance_to(&env, 40 * MS);
    EXPECT_TRUE(!done(&load, 1));
    EXPECT_EQ(load.order, 41);
    virtual_clock_advance_to(&env, 979 * MS);
    EXPECT_TRUE(!done(&load, 1));
    virtual_clock_advance_to(&env, 980 * MS);
    EXPECT_TRUE(done(&load, 1));
    blk_close(blk);
    env_finish(&env);
}

TEST(throttle, zeroes_count_their_bytes_discards_and_flushes_none)
{
    Env env;
    Load load = { 0 };

    env_init(&env, 1);
    BlockBackend *blk = open_disk("d0", DISK "bps-total=64k");

    start(&load, 0, blk, env.ctx[0], REQ_DISCARD, 1 << 20);
    start(&load, 1, blk, env.ctx[0], REQ_ZEROES, 65536);
    start(&load, 2, blk, env.ctx[0], REQ_READ, 512);
    start(&load, 3, blk, env.ctx[0], REQ_FLUSH, 0);
    env_settle(&env);
    EXPECT_TRUE(done(&load, 0) && done(&load, 1) && !done(&load, 2) && done(&load, 3));
    virtual_clock_advance_to(&env, 980 * MS - 1);
    EXPECT_TRUE(!done(&load, 2));
    virtual_clock_advance_to(&env, 980 * MS);
    EXPECT_TRUE(done(&load, 2));
    blk_close(blk);
    env_finish(&env);
}

TEST(throttle, a_drained_section_lets_its_disk_go_and_leaves_the_others_waiting)
{
    Env env;
    Load load = { 0 };
    BlockBackend *blk[2];

    env_init(&env, 2);
    blk[0] = open_disk("d0", DISK "group=g,iops-total=1");
    blk[1] = open_disk("d1", DISK "group=g");
    for (unsigned i = 0; i < 8; i++) {
        start(&load, i, blk[i % 2], env.ctx[i % 2], i < 4 ? REQ_READ : REQ_WRITE, 512);
    }
    env_settle(&env);
    EXPECT_EQ(load.order, 1);
    /* What waits in the first disk, the one with the timer among it, ends while begin waits. */
    env_step_along(&env, true);
    blk_drained_begin(blk[0]);
    EXPECT_EQ(load.order, 4);
    blk_drained_end(blk[0]);
    env_step_along(&env, false);
    env_settle(&env);
    EXPECT_EQ(virtual_nb_timers(), 2); /* who leads, and the first disk's debt */
    /* They were charged: the fifth is due after four seconds. */
    virtual_clock_advance_to(&env, 4 * S - 20 * MS - 1);
    EXPECT_EQ(load.order, 4);
    virtual_clock_advance_to(&env, 4 * S - 20 * MS);
    EXPECT_EQ(load.order, 5);
    virtual_clock_advance_to(&env, 8 * S);
    EXPECT_EQ(load.order, 8);
    /* After the section it is held back again. */
    start(&load, 8, blk[0], env.ctx[0], REQ_READ, 512);
    start(&load, 9, blk[0], env.ctx[0], REQ_READ, 512);
    env_settle(&env);
    EXPECT_EQ(load.order, 9);
    virtual_clock_advance_to(&env, 20 * S);
    EXPECT_EQ(load.order, 10);
    blk_close(blk[0]);
    blk_close(blk[1]);
    env_finish(&env);
}

/* --- users that begin drained sections as often as they can --- */

/* A device with a queue: it keeps DEPTH requests in flight, and makes none while told so. */
#define DEPTH 16

typedef struct Device {
    BlockBackend *blk;
    AioContext *ctx;
    RequestKind kind;
    Request reqs[DEPTH];
    bool paused;
    unsigned nb_begun, nb_done;
} Device;

static void device_pause(void *opaque)
{
    Device *dev = opaque;

    ASSERT_TRUE(!dev->paused);
    dev->paused = true;
}

static void device_resume(void *opaque)
{
    Device *dev = opaque;

    ASSERT_TRUE(dev->paused);
    dev->paused = false;
}

static const BlkUserOps device_ops = { .drained_begin = device_pause,
                                       .drained_end = device_resume };

static void device_init(Device *dev, BlockBackend *blk, AioContext *ctx)
{
    *dev = (Device){ .blk = blk, .ctx = ctx, .kind = REQ_READ };
    blk_set_user(blk, &device_ops, dev);
}

static void device_work(Device *dev)
{
    dev->nb_done = dev->nb_begun;
    for (unsigned i = 0; i < DEPTH; i++) {
        Request *req = &dev->reqs[i];
        bool is_free = !req->blk || atomic_load(&req->done);

        if (is_free && !dev->paused) {
            *req = (Request){ .blk = dev->blk, .kind = dev->kind, .len_bytes = 512, .buf = buf };
            request_start(req, dev->ctx);
            dev->nb_begun++;
            is_free = false;
        }
        dev->nb_done -= !is_free;
    }
}

static void device_close(Env *env, Device *dev)
{
    blk_set_user(dev->blk, NULL, NULL);
    env_settle(env);
    env_step_along(env, true);
    EXPECT_EQ(blk_close(dev->blk), 0);
    env_step_along(env, false);
}

/* As when a queue is stopped and started again. */
static void device_drain(Env *env, Device *dev)
{
    env_settle(env);
    env_step_along(env, true);
    blk_drained_begin(dev->blk);
    ASSERT_EQ(blk_in_flight(dev->blk), 0);
    blk_drained_end(dev->blk);
    env_step_along(env, false);
}

TEST(throttle, drained_sections_without_end_let_nobody_exceed_the_rate)
{
    static const char *const limits[] = { "iops-total=100", "iops-read=100", "bps-total=51200",
                                          "iops-total=100,iops-total-max=200" };

    for (unsigned i = 0; i < ARRAY_SIZE(limits); i++) {
        Env env;
        Device dev;
        unsigned burst = i == 3 ? 200 : 0;
        char text[128];

        env_init(&env, 1);
        snprintf(text, sizeof(text), DISK "%s", limits[i]);
        device_init(&dev, open_disk("d0", text), env.ctx[0]);
        for (int64_t ms = 0; ms < 4000; ms += 5) {
            virtual_clock_advance_to(&env, ms * MS);
            device_work(&dev);
            device_drain(&env, &dev);
        }
        device_work(&dev);
        /* The limit, what may be in flight beyond it, and the slack; and no less than the limit. */
        EXPECT_LE(dev.nb_done, 400 + burst + DEPTH + 3);
        EXPECT_GE(dev.nb_done, 380);
        device_close(&env, &dev);
        EXPECT_EQ(virtual_nb_timers(), 0);
        env_finish(&env);
    }
}

TEST(throttle, who_drains_without_end_takes_nothing_from_the_others_of_its_group)
{
    Env env;
    Device dev[3];
    unsigned all;

    env_init(&env, 3);
    device_init(&dev[0], open_disk("d0", DISK "group=g,iops-total=100"), env.ctx[0]);
    device_init(&dev[1], open_disk("d1", DISK "group=g"), env.ctx[1]);
    device_init(&dev[2], open_disk("d2", DISK "group=g"), env.ctx[2]);
    for (int64_t ms = 0; ms < 12000; ms += 5) {
        virtual_clock_advance_to(&env, ms * MS);
        for (unsigned d = 0; d < 3; d++) {
            device_work(&dev[d]);
        }
        device_drain(&env, &dev[0]);
        EXPECT_TRUE(!dev[1].paused && !dev[2].paused);
    }
    all = dev[0].nb_done + dev[1].nb_done + dev[2].nb_done;
    EXPECT_LE(all, 1200 + DEPTH + 3);
    EXPECT_GE(all, 1150);
    EXPECT_LE(dev[0].nb_done, 400 + DEPTH);
    EXPECT_GE(dev[0].nb_done, 300);
    EXPECT_LE(dev[1].nb_done, dev[2].nb_done + 2);
    EXPECT_LE(dev[2].nb_done, dev[1].nb_done + 2);
    for (unsigned d = 0; d < 3; d++) {
        device_close(&env, &dev[d]);
    }
    env_finish(&env);
}

/* The first has DEPTH requests let go at a rate of 1. */
static void run_into_debt(Env *env, Device *dev)
{
    unsigned before = dev->nb_done;

    device_work(dev);
    device_drain(env, dev);
    device_work(dev);
    EXPECT_EQ(dev->nb_done, before + DEPTH);
    EXPECT_TRUE(dev->paused);
}

TEST(throttle, a_debt_is_paid_at_the_rate_and_then_the_user_goes_on)
{
    Env env;
    Device dev;

    env_init(&env, 1);
    device_init(&dev, open_disk("d0", DISK "iops-total=1"), env.ctx[0]);
    run_into_debt(&env, &dev);
    virtual_clock_advance_to(&env, DEPTH * S - 20 * MS - 1);
    EXPECT_TRUE(dev.paused);
    /* A section in between has nothing to let go, and neither adds to it nor ends it. */
    device_drain(&env, &dev);
    EXPECT_TRUE(dev.paused);
    virtual_clock_advance_to(&env, DEPTH * S - 20 * MS);
    EXPECT_TRUE(!dev.paused);
    /* Without a debt a section is without consequences. */
    device_drain(&env, &dev);
    EXPECT_TRUE(!dev.paused);
    EXPECT_EQ(virtual_nb_timers(), 0);
    device_close(&env, &dev);
    env_finish(&env);
}

TEST(throttle, who_is_alone_in_a_group_pays_for_itself_and_shared_debts_wait_for_the_others)
{
    Env env;
    Device dev;
    Load load = { 0 };
    BlockBackend *other;

    env_init(&env, 2);
    device_init(&dev, open_disk("d0", DISK "group=g,iops-total=1"), env.ctx[0]);
    other = open_disk("d1", DISK "group=g");
    run_into_debt(&env, &dev);
    virtual_clock_advance_to(&env, DEPTH * S - 20 * MS);
    EXPECT_TRUE(!dev.paused);
    run_into_debt(&env, &dev);
    /* Another one has waited meanwhile: it is to have as much. */
    for (unsigned i = 0; i < 2 * DEPTH; i++) {
        start(&load, i, other, env.ctx[1], REQ_READ, 512);
    }
    virtual_clock_advance_to(&env, 2 * DEPTH * S);
    EXPECT_TRUE(dev.paused);
    EXPECT_LE(load.order, 2);
    virtual_clock_advance_to(&env, 3 * DEPTH * S);
    EXPECT_TRUE(!dev.paused);
    EXPECT_GE(load.order, DEPTH);
    virtual_clock_advance_to(&env, 5 * DEPTH * S);
    EXPECT_EQ(load.order, 2 * DEPTH);
    EXPECT_EQ(virtual_nb_timers(), 0);
    device_close(&env, &dev);
    blk_close(other);
    env_finish(&env);
}

TEST(throttle, new_limits_forget_the_debts_of_all_in_the_group)
{
    Env env;
    Device dev[2];

    env_init(&env, 2);
    device_init(&dev[0], open_disk("d0", DISK "group=g,iops-total=1"), env.ctx[0]);
    device_init(&dev[1], open_disk("d1", DISK "group=g"), env.ctx[1]);
    run_into_debt(&env, &dev[0]);
    run_into_debt(&env, &dev[1]);
    EXPECT_EQ(reconfigure(dev[1].blk, "iops-total=10"), 0);
    EXPECT_TRUE(!dev[0].paused && !dev[1].paused);
    EXPECT_EQ(virtual_nb_timers(), 0);
    device_close(&env, &dev[0]);
    device_close(&env, &dev[1]);
    env_finish(&env);
}

TEST(throttle, a_debt_ends_with_its_filter_and_passes_to_a_new_user)
{
    Env env;
    Device dev, next;
    Opts opts;
    Error err = { 0 };
    BlockNode *filter;

    env_init(&env, 1);
    device_init(&dev, open_disk("d0", "driver=null,size=1M"), env.ctx[0]);
    ASSERT_EQ(opts_parse(&opts, "filter", "driver=throttle,iops-total=1", "x", &err), 0);
    filter = bdrv_insert_filter(blk_node(dev.blk), &opts, &err);
    opts_finish(&opts);
    ASSERT_TRUE(filter != NULL);
    run_into_debt(&env, &dev);
    device_init(&next, dev.blk, env.ctx[0]);
    EXPECT_TRUE(!dev.paused && next.paused);
    ASSERT_EQ(bdrv_remove_filter(filter, &err), 0);
    EXPECT_TRUE(!next.paused);
    EXPECT_EQ(virtual_nb_timers(), 0);
    device_close(&env, &next);
    env_finish(&env);
}

/* 300 years of it: the level must neither overflow nor be forgotten. */
TEST(throttle, users_that_do_not_pause_cannot_make_a_debt_overflow)
{
    enum { NB_ROUNDS = 140, YEAR_S = 365 * 24 * 3600 };
    Env env;
    Load load = { 0 };

    env_init(&env, 1);
    BlockBackend *blk = open_disk("d0", DISK "bps-total=1");

    for (unsigned round = 0; round < NB_ROUNDS; round++) {
        for (unsigned i = 0; i < REQUESTS_MAX; i++) {
            start(&load, i, blk, env.ctx[0], REQ_ZEROES, 1 << 20);
        }
        env_settle(&env);
        ASSERT_EQ(load.order, round * REQUESTS_MAX + (round == 0));
        env_step_along(&env, true);
        blk_drained_begin(blk);
        blk_drained_end(blk);
        env_step_along(&env, false);
    }
    EXPECT_EQ(load.order, NB_ROUNDS * REQUESTS_MAX);
    start(&load, 0, blk, env.ctx[0], REQ_READ, 512);
    virtual_clock_advance_to(&env, 30 * YEAR_S * S);
    EXPECT_TRUE(!done(&load, 0));
    env_step_along(&env, true);
    EXPECT_EQ(reconfigure(blk, "bps-total=0"), 0);
    EXPECT_TRUE(done(&load, 0));
    blk_close(blk);
    env_step_along(&env, false);
    env_finish(&env);
}

TEST(throttle, new_limits_hold_at_once_for_all_that_wait)
{
    Env env;
    Load load = { 0 };
    BlockBackend *blk[2];

    env_init(&env, 2);
    blk[0] = open_disk("d0", DISK "group=g,iops-total=1");
    blk[1] = open_disk("d1", DISK "group=g");
    for (unsigned i = 0; i < 12; i++) {
        start(&load, i, blk[1], env.ctx[1], REQ_READ, 512);
    }
    env_settle(&env);
    EXPECT_EQ(load.order, 1);
    EXPECT_EQ(reconfigure(blk[0], "iops-total=10,unknown=1"), -EINVAL);
    EXPECT_EQ(reconfigure(blk[0], "iops-total-max=0,iops-total-max-length=7"), -EINVAL);
    env_settle(&env);
    EXPECT_EQ(load.order, 1);
    EXPECT_EQ(reconfigure(blk[0], "iops-total=10"), 0);
    env_settle(&env);
    EXPECT_EQ(load.order, 2);
    virtual_clock_advance_to(&env, 480 * MS);
    EXPECT_EQ(load.order, 7);
    EXPECT_EQ(reconfigure(blk[0], "iops-total=0"), 0);
    env_settle(&env);
    EXPECT_EQ(load.order, 12);
    EXPECT_EQ(virtual_nb_timers(), 0);
    blk_close(blk[0]);
    blk_close(blk[1]);
    env_finish(&env);
}

TEST(throttle, a_filter_put_in_throttles_and_taken_out_lets_go)
{
    Env env;
    Load load = { 0 };
    Opts opts;
    Error err = { 0 };
    BlockNode *filter;

    env_init(&env, 1);
    BlockBackend *blk = open_disk("d0", "driver=null,size=1M");

    ASSERT_EQ(opts_parse(&opts, "filter", "driver=throttle,iops-total=1", "x", &err), 0);
    filter = bdrv_insert_filter(blk_node(blk), &opts, &err);
    opts_finish(&opts);
    ASSERT_TRUE(filter != NULL);
    for (unsigned i = 0; i < 5; i++) {
        start(&load, i, blk, env.ctx[0], REQ_READ, 512);
    }
    env_settle(&env);
    EXPECT_EQ(load.order, 1);
    env_step_along(&env, true);
    ASSERT_EQ(bdrv_remove_filter(filter, &err), 0);
    env_step_along(&env, false);
    env_settle(&env);
    EXPECT_EQ(load.order, 5);
    blk_close(blk);
    env_finish(&env);
}

TEST(throttle, random_arrivals_drains_and_limits_leave_nobody_waiting)
{
    Env env;
    Load load;
    BlockBackend *blk[3];
    Random random = { 7 };
    int64_t now_ns = 0;

    env_init(&env, 3);
    for (unsigned i = 0; i < 3; i++) {
        char id[8];

        snprintf(id, sizeof(id), "d%u", i);
        blk[i] = open_disk(id, DISK "group=g");
    }
    ASSERT_EQ(reconfigure(blk[0], "iops-total=100,bps-read=1M,iops-write=70,iops-write-max=90"), 0);
    for (unsigned round = 0; round < 200; round++) {
        unsigned nb = 1 + random_below(&random, REQUESTS_MAX - 1);

        load.order = 0;
        for (unsigned i = 0; i < nb; i++) {
            start(&load, i, blk[random_below(&random, 3)], env.ctx[random_below(&random, 3)],
                  (RequestKind)random_below(&random, 5), 512 * (1 + random_below(&random, 100)));
            if (random_below(&random, 4) == 0) {
                now_ns += random_below(&random, 30 * MS);
                virtual_clock_advance_to(&env, now_ns);
            }
        }
        env_step_along(&env, true);
        if (random_below(&random, 3) == 0) {
            unsigned d = random_below(&random, 3);

            blk_drained_begin(blk[d]);
            blk_drained_end(blk[d]);
        }
        if (random_below(&random, 3) == 0) {
            ASSERT_EQ(reconfigure(blk[random_below(&random, 3)],
                                  random_below(&random, 2) ? "iops-total=50" : "iops-total=500"),
                      0);
        }
        env_step_along(&env, false);
        now_ns += 20 * S;
        virtual_clock_advance_to(&env, now_ns);
        ASSERT_EQ(load.order, nb);
        ASSERT_EQ(virtual_nb_timers(), 0);
    }
    for (unsigned i = 0; i < 3; i++) {
        blk_close(blk[i]);
    }
    env_finish(&env);
}

TEST_MAIN()
