/*
 * test-block-acct.c - counting, in virtual time
 */
#include "block/block-acct.h"
#include "block/tests/virtual-clock.h"

static BlkAcct counted;

static void end_one(Env *env, BlkAcctOp op, int64_t start_ns, int64_t end_ns)
{
    virtual_clock_advance_to(env, end_ns);
    blk_acct_end(&counted, op, start_ns, 512, false);
    aio_defer_flush(env->main);
}

static BlkAcctTotals totals(void)
{
    BlkAcctTotals t = { 0 };

    blk_acct_add(&counted, &t);
    return t;
}

static void begin(Env *env)
{
    env_init(env, 0);
    blk_acct_init(&counted);
}

static void end(Env *env)
{
    blk_acct_finish(&counted);
    env_finish(env);
}

TEST(block_acct, a_latency_is_told_to_the_next_sixteenth)
{
    Env env;
    Random random = { 5 };
    int64_t now_ns = 0;

    begin(&env);
    for (unsigned i = 0; i < 3000; i++) {
        int64_t ns = (int64_t)(((uint64_t)random_below(&random, UINT32_MAX) << 12) >>
                               random_below(&random, 44));
        BlkAcctTotals t;

        blk_acct_init(&counted);
        end_one(&env, BLK_ACCT_READ, now_ns, now_ns + ns);
        now_ns += ns;
        t = totals();
        int64_t told = blk_acct_percentile_ns(&t.op[BLK_ACCT_READ], 5000);

        ASSERT_TRUE(told >= ns && told <= ns + ns / 16);
    }
    end(&env);
}

TEST(block_acct, what_is_longer_than_all_buckets_counts_as_the_longest)
{
    Env env;
    BlkAcctTotals t;

    begin(&env);
    end_one(&env, BLK_ACCT_FLUSH, 0, INT64_MAX);
    t = totals();
    EXPECT_EQ(blk_acct_percentile_ns(&t.op[BLK_ACCT_FLUSH], 1), BLK_ACCT_NS_MAX);
    EXPECT_EQ(blk_acct_percentile_ns(&t.op[BLK_ACCT_READ], 5000), 0);
    end(&env);
}

TEST(block_acct, percentiles_are_what_that_many_did_not_exceed)
{
    Env env;
    BlkAcctTotals t;

    begin(&env);
    virtual_clock_advance_to(&env, 1000);
    /* 9980 of 1 ns, 15 of 5, 4 of 9, 1 of 15 */
    for (unsigned i = 0; i < 10000; i++) {
        blk_acct_end(&counted, BLK_ACCT_WRITE,
                     i < 9980   ? 999
                     : i < 9995 ? 995
                     : i < 9999 ? 991
                                : 985,
                     1, false);
    }
    aio_defer_flush(env.main);
    t = totals();
    const BlkAcctOpTotals *op = &t.op[BLK_ACCT_WRITE];

    EXPECT_EQ(op->requests, 10000);
    EXPECT_EQ(op->bytes, 10000);
    EXPECT_EQ(op->sum_ns, 9980 + 15 * 5 + 4 * 9 + 15);
    EXPECT_EQ(blk_acct_percentile_ns(op, 5000), 1);
    EXPECT_EQ(blk_acct_percentile_ns(op, 9980), 1);
    EXPECT_EQ(blk_acct_percentile_ns(op, 9981), 5);
    EXPECT_EQ(blk_acct_percentile_ns(op, 9995), 5);
    EXPECT_EQ(blk_acct_percentile_ns(op, 9999), 9);
    EXPECT_EQ(blk_acct_percentile_ns(op, 10000), 15);
    end(&env);
}

TEST(block_acct, requests_of_a_pass_are_told_at_its_end_each_as_what_it_was)
{
    Env env;
    BlkAcctTotals t;

    begin(&env);
    virtual_clock_advance_to(&env, 50);
    blk_acct_begin_batch(&counted);
    EXPECT_EQ(blk_acct_batch_ns(&counted), 50);
    for (unsigned i = 0; i < 1000; i++) {
        blk_acct_end(&counted, (BlkAcctOp)(i % BLK_ACCT_NB_OPS), i / 20, i, i % 10 == 0);
    }
    aio_defer_flush(env.main);
    t = totals();
    for (unsigned i = 0; i < BLK_ACCT_NB_OPS; i++) {
        EXPECT_EQ(t.op[i].requests, 200);
    }
    EXPECT_EQ(t.op[BLK_ACCT_READ].errors, 100);
    EXPECT_EQ(t.op[BLK_ACCT_READ].bytes, 100 * 500); /* 5, 15, ... 995 */
    EXPECT_EQ(t.op[BLK_ACCT_WRITE].errors, 0);
    end(&env);
}

TEST_MAIN()
