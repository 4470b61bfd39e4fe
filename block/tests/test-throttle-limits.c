/*
 * test-throttle-limits.c - rates, counted
 */
#include <string.h>

#include "block/throttle-limits.h"
#include "io/base/test.h"

#define S  1000000000
#define MS 1000000

static int take(const char *text, ThrottleConfig *config, Error *err)
{
    Opts opts;
    bool given;
    int ret;

    ASSERT_EQ(opts_parse(&opts, "--disk", text, "x", err), 0);
    ret = throttle_config_take(config, &opts, &given, err);
    opts_finish(&opts);
    return ret;
}

static ThrottleLimits limits_of(const char *text)
{
    ThrottleConfig config = { 0 };
    ThrottleLimits limits;
    Error err = { 0 };

    ASSERT_EQ(take(text, &config, &err), 0);
    throttle_limits_set(&limits, &config);
    return limits;
}

/* Requests as early as they may go, from @*now_ns up to @end_ns; how many. The caller looks only
 * every @late_ns. */
static uint64_t run_until(ThrottleLimits *limits, ThrottleDir dir, uint64_t len_bytes,
                          int64_t *now_ns, int64_t end_ns, int64_t late_ns)
{
    uint64_t nb = 0;

    while (*now_ns < end_ns) {
        int64_t due_ns = throttle_limits_due_ns(limits, dir);

        if (due_ns > *now_ns) {
            *now_ns = MAX(due_ns, *now_ns + late_ns);
            continue;
        }
        throttle_limits_charge(limits, dir, len_bytes, *now_ns);
        nb++;
    }
    return nb;
}

TEST(throttle_limits, bad_options_are_refused_with_the_reason)
{
    static const struct {
        const char *options, *word;
    } cases[] = {
        { "iops-total=-1", "iops-total" },
        { "iops-total=x", "iops-total" },
        { "bps-read=1P", "bps-read" },
        { "iops-read=10000000000000000", "iops-read" },
        { "iops-write-max=5", "needs iops-write" },
        { "bps-total=10M,bps-total-max=9M", "is below bps-total" },
        { "bps-total=10M,bps-total-max-length=2", "needs bps-total-max" },
        { "bps-total=10M,bps-total-max=20M,bps-total-max-length=0", "bps-total-max-length" },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        ThrottleConfig config = { 0 };
        Error err = { 0 };

        EXPECT_EQ(take(cases[i].options, &config, &err), -EINVAL);
        if (!strstr(err.msg, cases[i].word) || strncmp(err.msg, "--disk: ", 8) != 0) {
            test_fail(__FILE__, __LINE__, "%s: the message is: %s", cases[i].options, err.msg);
        }
    }
}

TEST(throttle_limits, options_change_what_they_name_and_zero_takes_a_limit_away)
{
    ThrottleConfig config = { 0 }, before;
    Error err = { 0 };

    ASSERT_EQ(take("iops-total=100,iops-total-max=200,iops-total-max-length=3,bps-read=4k", &config,
                   &err),
              0);
    EXPECT_EQ(config.kind[THROTTLE_BPS_READ].rate, 4096);
    before = config;
    ASSERT_EQ(take("bps-read=8k", &config, &err), 0);
    EXPECT_EQ(config.kind[THROTTLE_BPS_READ].rate, 8192);
    EXPECT_EQ(config.kind[THROTTLE_IOPS_TOTAL].max_seconds, 3);
    EXPECT_TRUE(!throttle_config_equal(&before, &config));
    ASSERT_EQ(take("iops-total=0", &config, &err), 0);
    EXPECT_EQ(config.kind[THROTTLE_IOPS_TOTAL].max, 0);
    EXPECT_EQ(config.kind[THROTTLE_IOPS_TOTAL].max_seconds, 1);
}

TEST(throttle_limits, rates_are_exact_however_they_divide_a_second)
{
    static const uint64_t rates[] = { 1, 3, 7, 10, 1000, 99999, 100000, 999999937 };

    for (unsigned i = 0; i < ARRAY_SIZE(rates); i++) {
        ThrottleConfig config = { 0 };
        ThrottleLimits limits;
        int64_t last_ns = 0;
        uint64_t nb = 30 * MIN(rates[i], (uint64_t)10000);

        config.kind[THROTTLE_IOPS_TOTAL] = (ThrottleRate){ .rate = rates[i], .max_seconds = 1 };
        throttle_limits_set(&limits, &config);
        throttle_limits_charge(&limits, THROTTLE_READ, 0, 0);
        for (uint64_t n = 1; n <= nb; n++) {
            last_ns = MAX(throttle_limits_due_ns(&limits, THROTTLE_READ), 0);
            throttle_limits_charge(&limits, THROTTLE_READ, 0, last_ns);
        }
        /* Request n may go at n / rate, less the slack, to the nanosecond. */
        EXPECT_EQ(last_ns, MAX((int64_t)((unsigned __int128)nb * S / rates[i]) - 20 * MS, 0));
    }
}

TEST(throttle_limits, a_late_caller_loses_nothing_of_the_rate)
{
    ThrottleLimits limits = limits_of("iops-total=1000");
    int64_t now_ns = 0;
    uint64_t nb = run_until(&limits, THROTTLE_WRITE, 4096, &now_ns, 5 * (int64_t)S, 15 * MS);

    EXPECT_TRUE(nb >= 4980 && nb <= 5021);
}

TEST(throttle_limits, a_pause_saves_up_no_more_than_the_slack)
{
    ThrottleLimits limits = limits_of("iops-total=1000");
    int64_t now_ns = 100 * (int64_t)S;
    uint64_t nb = run_until(&limits, THROTTLE_READ, 512, &now_ns, now_ns + 1, 0);

    EXPECT_EQ(nb, 21); /* those of 20 ms, and the one that is late by then */
}

TEST(throttle_limits, a_large_request_goes_whole_and_the_next_one_waits_for_it)
{
    ThrottleLimits limits = limits_of("bps-write=1M");

    throttle_limits_charge(&limits, THROTTLE_WRITE, 8 << 20, 0);
    EXPECT_EQ(throttle_limits_due_ns(&limits, THROTTLE_WRITE), 8 * (int64_t)S - 20 * MS);
    EXPECT_EQ(throttle_limits_due_ns(&limits, THROTTLE_READ), 0);
}

TEST(throttle_limits, a_total_counts_both_directions_and_others_one)
{
    ThrottleLimits total = limits_of("iops-total=10"), read = limits_of("iops-read=10");

    throttle_limits_charge(&total, THROTTLE_WRITE, 512, 0);
    EXPECT_EQ(throttle_limits_due_ns(&total, THROTTLE_READ), 80 * MS);
    throttle_limits_charge(&read, THROTTLE_READ, 512, 0);
    EXPECT_EQ(throttle_limits_due_ns(&read, THROTTLE_READ), 80 * MS);
    EXPECT_EQ(throttle_limits_due_ns(&read, THROTTLE_WRITE), 0);
}

TEST(throttle_limits, a_burst_has_its_rate_its_length_and_an_end)
{
    ThrottleLimits limits = limits_of("iops-total=100,iops-total-max=1000,iops-total-max-length=3");
    int64_t now_ns = 50 * (int64_t)S, start_ns = now_ns;
    uint64_t first = run_until(&limits, THROTTLE_READ, 0, &now_ns, start_ns + S, 0);
    uint64_t rest = run_until(&limits, THROTTLE_READ, 0, &now_ns, start_ns + 10 * (int64_t)S, 0);
    uint64_t later = run_until(&limits, THROTTLE_READ, 0, &now_ns, start_ns + 20 * (int64_t)S, 0);

    EXPECT_TRUE(first >= 1000 && first <= 1021);
    /* 3000 units beyond what flows at 100 a second */
    EXPECT_TRUE(first + rest >= 3000 + 10 * 100 - 1 && first + rest <= 3000 + 10 * 100 + 2);
    EXPECT_TRUE(later >= 999 && later <= 1001);
}

TEST(throttle_limits, charges_without_end_do_not_overflow)
{
    ThrottleLimits limits = limits_of("bps-total=1");

    for (unsigned i = 0; i < 1000; i++) {
        throttle_limits_charge(&limits, THROTTLE_READ, THROTTLE_UNITS_MAX, 7);
        EXPECT_TRUE(throttle_limits_due_ns(&limits, THROTTLE_READ) > 0);
    }
}

TEST_MAIN()
