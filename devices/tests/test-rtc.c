/*
 * test-rtc.c - time in every format, setting it, kept bytes
 */
#include <time.h>

#include "devices/legacy.h"
#include "devices/tests/fake-platform.h"

enum { SECONDS = 0, MINUTES = 2, HOURS = 4, WEEKDAY = 6, DAY = 7, MONTH = 8, YEAR = 9 };
enum { REG_A = 0x0a, REG_B = 0x0b, REG_C = 0x0c, REG_D = 0x0d, CENTURY = 0x32 };
enum { B_24H = 0x02, B_BINARY = 0x04, B_SET = 0x80 };

typedef struct World {
    FakePlatform fake;
    Rtc *rtc;
} World;

static void world_init(World *world)
{
    fake_init(&world->fake);
    world->rtc = rtc_create(&world->fake.platform, NULL);
    ASSERT_TRUE(world->rtc);
}

static void world_finish(World *world)
{
    rtc_destroy(world->rtc);
    fake_finish(&world->fake);
}

static uint8_t get(World *world, uint8_t reg)
{
    fake_out(&world->fake, 0x70, 1, reg);
    return (uint8_t)fake_in(&world->fake, 0x71, 1);
}

static void set(World *world, uint8_t reg, uint8_t value)
{
    fake_out(&world->fake, 0x70, 1, reg);
    fake_out(&world->fake, 0x71, 1, value);
}

static int from_bcd(uint8_t byte)
{
    return (byte >> 4) * 10 + (byte & 0xf);
}

/* The clock as a driver reads it, in binary 24-hour mode. */
static time_t read_time(World *world)
{
    struct tm tm = {
        .tm_sec = get(world, SECONDS), .tm_min = get(world, MINUTES), .tm_hour = get(world, HOURS),
        .tm_mday = get(world, DAY), .tm_mon = get(world, MONTH) - 1,
        .tm_year = get(world, CENTURY) * 100 + get(world, YEAR) - 1900,
    };

    return timegm(&tm);
}

static void write_time(World *world, int year, int month, int day, int hour, int min, int sec)
{
    set(world, REG_B, B_SET | B_24H | B_BINARY);
    set(world, CENTURY, (uint8_t)(year / 100));
    set(world, YEAR, (uint8_t)(year % 100));
    set(world, MONTH, (uint8_t)month);
    set(world, DAY, (uint8_t)day);
    set(world, HOURS, (uint8_t)hour);
    set(world, MINUTES, (uint8_t)min);
    set(world, SECONDS, (uint8_t)sec);
    set(world, REG_B, B_24H | B_BINARY);
}

/* Read before and after: the second may change in between. */
static void expect_time(World *world, time_t expected, time_t slack_s)
{
    time_t now = read_time(world);

    if (now < expected) {
        now = read_time(world);
    }
    EXPECT_GE(now, expected);
    EXPECT_LE(now, expected + slack_s);
}

TEST(rtc, starts_valid_in_24_hour_bcd_with_the_hosts_time)
{
    World world;
    time_t now = time(NULL);
    struct tm tm;

    world_init(&world);
    EXPECT_EQ(get(&world, REG_D), 0x80);
    EXPECT_EQ(get(&world, REG_B), B_24H);
    EXPECT_EQ(get(&world, REG_A) & 0x7f, 0x26);
    gmtime_r(&now, &tm);
    EXPECT_EQ(from_bcd(get(&world, CENTURY)) * 100 + from_bcd(get(&world, YEAR)),
              tm.tm_year + 1900);
    set(&world, REG_B, B_24H | B_BINARY);
    expect_time(&world, now, 5);
    EXPECT_EQ(fake_in(&world.fake, 0x70, 1), 0xff); /* the index is write-only */
    world_finish(&world);
}

TEST(rtc, time_set_under_set_is_frozen_then_runs_on)
{
    World world;
    struct tm tm = { .tm_year = 99, .tm_mon = 11, .tm_mday = 31, .tm_hour = 23, .tm_min = 59,
                     .tm_sec = 30 };

    world_init(&world);
    write_time(&world, 1999, 12, 31, 23, 59, 30);
    expect_time(&world, timegm(&tm), 5);
    EXPECT_EQ(get(&world, WEEKDAY), 6); /* a Friday */
    set(&world, REG_B, B_SET | B_24H | B_BINARY);
    set(&world, SECONDS, 61); /* kept as written while SET */
    EXPECT_EQ(get(&world, SECONDS), 61);
    EXPECT_EQ(get(&world, REG_A) & 0x80, 0); /* no update in progress */
    world_finish(&world);
}

TEST(rtc, hours_follow_the_12_hour_and_bcd_bits)
{
    static const struct {
        int hour;
        uint8_t bcd, binary;
    } cases[] = { { 0, 0x12, 12 }, { 1, 0x01, 1 }, { 11, 0x11, 11 }, { 12, 0x92, 0x8c },
                  { 13, 0x81, 0x81 }, { 23, 0x91, 0x8b } };
    World world;

    world_init(&world);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        write_time(&world, 2024, 2, 28, cases[i].hour, 10, 10);
        set(&world, REG_B, 0);
        EXPECT_EQ(get(&world, HOURS), cases[i].bcd);
        EXPECT_EQ(get(&world, MINUTES), 0x10);
        set(&world, REG_B, B_BINARY);
        EXPECT_EQ(get(&world, HOURS), cases[i].binary);

        set(&world, HOURS, cases[i].binary); /* without SET: at once, nothing else moves */
        set(&world, REG_B, B_24H | B_BINARY);
        EXPECT_EQ(get(&world, HOURS), cases[i].hour);
        EXPECT_EQ(get(&world, DAY), 28);
    }
    world_finish(&world);
}

TEST(rtc, a_leap_day_follows_the_28th)
{
    World world;

    world_init(&world);
    write_time(&world, 2024, 2, 28, 23, 59, 59);
    for (int64_t end_ns = aio_now_ns() + 3000000000; get(&world, DAY) == 28;) {
        ASSERT_LT(aio_now_ns(), end_ns);
    }
    EXPECT_EQ(get(&world, DAY), 29);
    EXPECT_EQ(get(&world, MONTH), 2);
    EXPECT_EQ(get(&world, REG_C) & 0x10, 0x10); /* updated since it was read last */
    EXPECT_EQ(get(&world, REG_C) & 0x10, 0);
    world_finish(&world);
}

TEST(rtc, other_bytes_are_kept_and_status_c_and_d_are_not_written)
{
    World world;

    world_init(&world);
    for (unsigned reg = 0x0e; reg < 0x80; reg++) {
        if (reg != CENTURY) {
            set(&world, (uint8_t)reg, (uint8_t)(reg ^ 0x5a));
        }
    }
    for (unsigned reg = 0x0e; reg < 0x80; reg++) {
        if (reg != CENTURY) {
            EXPECT_EQ(get(&world, (uint8_t)(reg | 0x80)), reg ^ 0x5a); /* bit 7: NMI mask */
        }
    }
    set(&world, REG_D, 0);
    EXPECT_EQ(get(&world, REG_D), 0x80);
    set(&world, REG_A, 0xff);
    EXPECT_EQ(get(&world, REG_A) & 0x7f, 0x7f);
    set(&world, 1, 0x42); /* alarm */
    EXPECT_EQ(get(&world, 1), 0x42);
    world_finish(&world);
}

/* Whatever bytes are in the registers, in whatever mode, they make some time. */
TEST(rtc, nonsense_is_survived)
{
    World world;
    unsigned seed = 1;

    world_init(&world);
    for (int i = 0; i < 20000; i++) {
        seed = seed * 1103515245 + 12345;
        fake_out(&world.fake, 0x70, 2, seed >> 8);
        fake_out(&world.fake, 0x71, 1, seed >> 16);
        fake_in(&world.fake, 0x70, 2);
    }
    write_time(&world, 2030, 1, 2, 3, 4, 5);
    EXPECT_EQ(get(&world, YEAR), 30);
    EXPECT_EQ(get(&world, HOURS), 3);
    world_finish(&world);
}

TEST_MAIN()
