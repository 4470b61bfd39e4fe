/*
 * test-faulty.c - faults by rule
 */
#include "block/faulty.h"
#include "block/tests/mem-driver.h"
#include "block/tests/virtual-clock.h"

#include <string.h>

static MemDisk disk;
static BlockNode *filter;
static Env env;
static char buf[65536];

static BlockNode *insert(const char *text, Error *err)
{
    char all[256];
    Opts opts;
    BlockNode *node;

    snprintf(all, sizeof(all), "driver=faulty,%s", text);
    ASSERT_EQ(opts_parse(&opts, "filter", all, "x", err), 0);
    node = bdrv_insert_filter(disk.node, &opts, err);
    opts_finish(&opts);
    return node;
}

static void begin(const char *rules)
{
    static const MemConfig config = { .length_bytes = 65536, .honours_fua = true };
    Error err = { 0 };

    env_init(&env, 1);
    mem_open(&disk, &config);
    filter = insert(rules, &err);
    if (!filter) {
        test_fail(__FILE__, __LINE__, "%s", err.msg);
    }
    ASSERT_TRUE(filter != NULL);
    memset(buf, 'x', sizeof(buf));
}

static void end(void)
{
    EXPECT_EQ(disk.stats.violations, 0);
    mem_close(&disk);
    env_finish(&env);
}

static int set_rules(const char *text)
{
    Opts opts;
    Error err = { 0 };
    int ret;

    ASSERT_EQ(opts_parse(&opts, "filter", text, "x", &err), 0);
    ret = bdrv_reconfigure(filter, &opts, &err);
    opts_finish(&opts);
    return ret;
}

/* Which of 64 flushes fail, as bits. */
static uint64_t pattern(void)
{
    uint64_t bits = 0;

    for (unsigned i = 0; i < 64; i++) {
        bits |= (uint64_t)(run_flush(disk.blk) < 0) << i;
    }
    return bits;
}

TEST(faulty, bad_rules_are_refused_with_the_reason)
{
    static const struct {
        const char *options, *word;
    } cases[] = {
        { "rule0.op=write", "rule0: error, short, torn or delay-ns" },
        { "rule3.op=erase,rule3.error=EIO", "rule3: op" },
        { "rule0.error=EWHAT", "error" },
        { "rule0.error=EIO,rule0.probability=0", "probability" },
        { "rule0.error=EIO,rule0.probability=1.01", "probability" },
        { "rule0.error=EIO,rule0.probability=nan", "probability" },
        { "rule0.error=EIO,rule0.probability=0.5x", "probability" },
        { "rule0.error=EIO,rule0.every=0", "every" },
        { "rule0.op=flush,rule0.short=512", "short needs" },
        { "rule0.op=read,rule0.torn=512", "torn needs" },
        { "rule0.op=write,rule0.torn=512,rule0.error=EIO", "torn needs" },
        { "rule0.op=write,rule0.torn=512,rule0.short=512", "exclude" },
        { "rule0.error=EIO,rule0.often=1", "often" },
        { "rule10.error=EIO", "rule10" },
        { "seed=x", "seed" },
    };
    Error none = { 0 };

    begin("seed=1");
    ASSERT_EQ(bdrv_remove_filter(filter, &none), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        Error err = { 0 };

        EXPECT_TRUE(insert(cases[i].options, &err) == NULL);
        EXPECT_EQ(err.code, -EINVAL);
        if (!strstr(err.msg, cases[i].word)) {
            test_fail(__FILE__, __LINE__, "%s: the message is: %s", cases[i].options, err.msg);
        }
    }
    end();
}

TEST(faulty, each_operation_fails_by_its_own_rule_and_does_not_reach_the_disk)
{
    begin("rule0.op=read,rule0.error=EIO,rule1.op=write,rule1.error=ENOSPC,rule2.op=flush,"
          "rule2.error=ENOMEM,rule3.op=discard,rule3.error=EBUSY,rule4.op=write-zeroes,"
          "rule4.error=EROFS");
    EXPECT_EQ(run_read(disk.blk, 0, 512, buf), -EIO);
    EXPECT_EQ(run_write(disk.blk, 0, 512, buf, 0), -ENOSPC);
    EXPECT_EQ(run_flush(disk.blk), -ENOMEM);
    EXPECT_EQ(run_discard(disk.blk, 0, 512), -EBUSY);
    EXPECT_EQ(run_zeroes(disk.blk, 0, 512, 0), -EROFS);
    for (unsigned i = 0; i < MEM_NB_OPS; i++) {
        EXPECT_EQ(disk.stats.ops[i], 0);
    }
    EXPECT_EQ(set_rules("rule0.error=EPERM"), 0);
    EXPECT_EQ(run_read(disk.blk, 0, 512, buf), -EPERM);
    EXPECT_EQ(run_zeroes(disk.blk, 0, 512, 0), -EPERM);
    EXPECT_EQ(set_rules("seed=1"), 0);
    EXPECT_EQ(run_write(disk.blk, 0, 512, buf, 0), 0);
    EXPECT_EQ(disk.stats.ops[MEM_WRITE], 1);
    end();
}

static int add_rule(BlockNode *node, const char *text)
{
    Opts opts;
    Error err = { 0 };
    int ret;

    ASSERT_EQ(opts_parse(&opts, "rule", text, NULL, &err), 0);
    ret = faulty_add_rule(node, &opts, &err);
    EXPECT_EQ(ret < 0, err.code < 0);
    opts_finish(&opts);
    return ret;
}

TEST(faulty, rules_come_and_go_one_by_one_and_the_others_keep_their_counts)
{
    FaultyCounts counts;
    Error err;

    begin("rule0.op=read,rule0.count=1,rule0.error=EIO");
    EXPECT_EQ(run_read(disk.blk, 0, 512, buf), -EIO);
    EXPECT_EQ(add_rule(filter, "op=write,error=ENOSPC"), 1);
    EXPECT_EQ(run_read(disk.blk, 0, 512, buf), 0); /* it has struck once */
    EXPECT_EQ(run_write(disk.blk, 0, 512, buf, 0), -ENOSPC);
    EXPECT_EQ(run_write(disk.blk, 0, 512, buf, 0), -ENOSPC);
    ASSERT_TRUE(faulty_query(filter, 1, &counts));
    EXPECT_EQ(counts.matched, 2);
    EXPECT_EQ(counts.struck, 2);
    ASSERT_TRUE(faulty_query(filter, 0, &counts));
    EXPECT_EQ(counts.matched, 2);
    EXPECT_EQ(counts.struck, 1);
    EXPECT_EQ(faulty_remove_rule(filter, 1, &err), 0);
    EXPECT_FALSE(faulty_query(filter, 1, &counts));
    EXPECT_EQ(run_write(disk.blk, 0, 512, buf, 0), 0);
    EXPECT_EQ(faulty_remove_rule(filter, 1, &err), -EINVAL);
    EXPECT_EQ(faulty_remove_rule(filter, FAULTY_RULES_MAX, &err), -EINVAL);
    for (int i = 1; i < FAULTY_RULES_MAX; i++) {
        EXPECT_EQ(add_rule(filter, "op=discard,error=EIO"), i);
    }
    EXPECT_EQ(add_rule(filter, "error=EIO"), -ENOSPC);
    EXPECT_EQ(faulty_remove_rule(filter, 4, &err), 0);
    EXPECT_EQ(add_rule(filter, "op=discard"), -EINVAL);
    EXPECT_EQ(add_rule(filter, "op=discard,error=EIO,often=1"), -EINVAL);
    EXPECT_EQ(add_rule(disk.node, "error=EIO"), -EINVAL);
    EXPECT_EQ(faulty_remove_rule(disk.node, 0, &err), -EINVAL);
    EXPECT_FALSE(faulty_query(disk.node, 0, &counts));
    EXPECT_EQ(run_write(disk.blk, 0, 512, buf, 0), 0); /* what was refused has left nothing */
    end();
}

TEST(faulty, a_rule_is_for_requests_that_touch_its_range)
{
    begin("rule0.offset=4096,rule0.len=1024,rule0.error=EIO");
    EXPECT_EQ(run_write(disk.blk, 3584, 512, buf, 0), 0);
    EXPECT_EQ(run_write(disk.blk, 3584, 513, buf, 0), -EIO);
    EXPECT_EQ(run_read(disk.blk, 4608, 512, buf), -EIO);
    EXPECT_EQ(run_read(disk.blk, 5120, 512, buf), 0);
    EXPECT_EQ(run_read(disk.blk, 0, 65536, buf), -EIO);
    EXPECT_EQ(run_discard(disk.blk, 5119, 2), -EIO);
    EXPECT_EQ(set_rules("rule0.op=read,rule0.offset=8k,rule0.error=EIO"), 0);
    EXPECT_EQ(run_read(disk.blk, 60000, 512, buf), -EIO);
    EXPECT_EQ(run_read(disk.blk, 0, 8192, buf), 0);
    end();
}

TEST(faulty, rules_count)
{
    begin("rule0.after=3,rule0.every=5,rule0.count=2,rule0.error=EIO");
    EXPECT_EQ(pattern(), 1u << 3 | 1u << 8);
    EXPECT_EQ(set_rules("rule0.every=7,rule0.error=EIO"), 0);
    EXPECT_EQ(pattern(), 0x8102040810204081u);
    /* The second is asked only when the first does not strike. */
    EXPECT_EQ(set_rules("rule0.after=1,rule0.count=1,rule0.error=EIO,rule1.after=2,rule1.count=1,"
                        "rule1.error=EIO"),
              0);
    EXPECT_EQ(pattern(), 1u << 1 | 1u << 3);
    end();
}

TEST(faulty, a_probability_is_drawn_from_the_seed)
{
    uint64_t first, second;
    unsigned nb = 0;

    begin("seed=42,rule0.probability=0.25,rule0.error=EIO");
    first = pattern();
    second = pattern();
    EXPECT_TRUE(first != second);
    EXPECT_EQ(set_rules("seed=42,rule0.probability=0.25,rule0.error=EIO"), 0);
    EXPECT_EQ(pattern(), first);
    EXPECT_EQ(pattern(), second);
    for (unsigned i = 0; i < 64; i++) {
        nb += (unsigned)__builtin_popcountll(pattern());
    }
    EXPECT_TRUE(nb > 900 && nb < 1150); /* of 4096 */
    end();
}

TEST(faulty, short_and_torn_requests_do_their_first_part)
{
    static const char zeroes[4096];
    struct iovec iov[] = { { buf, 512 }, { buf + 1000, 1024 }, { buf + 5000, 2560 } };
    Request req = { .kind = REQ_WRITE, .len_bytes = 4096, .iov = iov, .niov = 3 };

    begin("rule0.op=write,rule0.torn=1024");
    req.blk = disk.blk;
    EXPECT_EQ(request_run(&req), 0);
    EXPECT_EQ(memcmp(disk.data, buf, 512) + memcmp(disk.data + 512, buf + 1000, 512), 0);
    EXPECT_EQ(memcmp(disk.data + 1024, zeroes, 3072), 0);
    EXPECT_EQ(
        set_rules("rule0.op=write,rule0.short=0,rule0.error=ENOSPC,rule1.op=read,rule1.short=4"
                  "k"),
        0);
    EXPECT_EQ(run_write(disk.blk, 8192, 4096, buf, BLK_FUA), -ENOSPC);
    EXPECT_EQ(memcmp(disk.data + 8192, zeroes, 4096), 0);
    memset(disk.data, 'd', 65536);
    EXPECT_EQ(run_read(disk.blk, 0, 8192, buf), -EIO);
    EXPECT_EQ(buf[4095], 'd');
    EXPECT_EQ(buf[4096], 'x');
    /* An error of the part itself comes first. */
    disk.fail_code = -EBUSY;
    atomic_store(&disk.fail_nth, 1);
    EXPECT_EQ(run_read(disk.blk, 0, 8192, buf), -EBUSY);
    end();
}

TEST(faulty, delays_last_and_end_early_in_a_drained_section)
{
    unsigned order = 0;
    Request reqs[3];

    begin("rule0.op=write,rule0.delay-ns=1000,rule1.op=read,rule1.delay-ns=2000,rule1.error=EIO");
    for (unsigned i = 0; i < 3; i++) {
        reqs[i] = (Request){ .blk = disk.blk,
                             .kind = i ? REQ_READ : REQ_WRITE,
                             .len_bytes = 512,
                             .buf = buf,
                             .order = &order };
        request_start(&reqs[i], i < 2 ? env.ctx[0] : env.main);
    }
    virtual_clock_advance_to(&env, 999);
    EXPECT_EQ(order, 0);
    virtual_clock_advance_to(&env, 1000);
    virtual_clock_advance_to(&env, 1999);
    EXPECT_EQ(order, 1);
    EXPECT_EQ(disk.stats.ops[MEM_WRITE], 1);
    env_step_along(&env, true);
    blk_drained_begin(disk.blk);
    EXPECT_EQ(order, 3);
    EXPECT_EQ(reqs[1].ret, -EIO);
    EXPECT_EQ(disk.stats.ops[MEM_READ], 0);
    blk_drained_end(disk.blk);
    env_step_along(&env, false);
    EXPECT_EQ(virtual_nb_timers(), 0);
    request_start(&reqs[0], env.ctx[0]);
    env_settle(&env);
    EXPECT_EQ(order, 3);
    virtual_clock_advance_to(&env, 5000);
    EXPECT_EQ(order, 4);
    end();
}

TEST_MAIN()
