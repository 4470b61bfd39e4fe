/*
 * test-bus.c - lookup, straddling, overlays, ranges that change under an access
 */
#include "devices/bus.h"
#include "io/base/test.h"

typedef struct Probe {
    uint64_t offset;
    unsigned len_bytes;
    uint64_t written;
    unsigned reads, writes;
} Probe;

static uint64_t probe_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    Probe *probe = opaque;

    probe->offset = offset;
    probe->len_bytes = len_bytes;
    probe->reads++;
    return 0x1122334455667788;
}

static void probe_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    Probe *probe = opaque;

    probe->offset = offset;
    probe->len_bytes = len_bytes;
    probe->written = value;
    probe->writes++;
}

static const BusOps probe_ops = { probe_read, probe_write };

static int add(Bus *bus, uint64_t base, uint64_t len_bytes, Probe *probe, bool overlay)
{
    BusRange range = { .base = base, .len_bytes = len_bytes, .ops = &probe_ops, .opaque = probe,
                       .name = "probe", .overlay = overlay };
    Error err = { 0 };
    int ret = bus_add(bus, &range, &err);

    EXPECT_EQ(err.code, ret);
    return ret;
}

TEST(bus, access_reaches_the_range_with_offset_length_and_little_endian_value)
{
    Bus bus;
    Probe low = { 0 }, high = { 0 };
    uint32_t read = 0;
    uint16_t write = 0xbeef;

    ASSERT_EQ(bus_init(&bus, "memory"), 0);
    ASSERT_EQ(add(&bus, 0x2000, 0x10, &high, false), 0);
    ASSERT_EQ(add(&bus, 0x1000, 0x10, &low, false), 0);
    EXPECT_TRUE(bus_read(&bus, 0x1004, &read, 4));
    EXPECT_EQ(read, 0x55667788u);
    EXPECT_EQ(low.offset, 4);
    EXPECT_EQ(low.len_bytes, 4);
    EXPECT_TRUE(bus_write(&bus, 0x200e, &write, 2));
    EXPECT_EQ(high.offset, 14);
    EXPECT_EQ(high.written, 0xbeef);
    EXPECT_EQ(high.writes, 1);
    EXPECT_EQ(low.writes, 0);
    bus_finish(&bus);
}

TEST(bus, outside_straddling_and_odd_lengths_read_all_ones_and_write_nothing)
{
    Bus bus;
    Probe probe = { 0 };
    uint8_t data[8];

    ASSERT_EQ(bus_init(&bus, "memory"), 0);
    ASSERT_EQ(add(&bus, 0x1000, 0x10, &probe, false), 0);
    static const struct {
        uint64_t addr;
        unsigned len_bytes;
    } bad[] = { { 0xfff, 1 }, { 0xfff, 2 }, { 0x100f, 2 }, { 0x100c, 8 }, { 0x1010, 1 },
                { 0x1000, 3 }, { 0x1000, 5 }, { 0x1000, 0 }, { UINT64_MAX, 1 },
                { UINT64_MAX - 3, 8 } };

    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        memset(data, 0, sizeof(data));
        EXPECT_FALSE(bus_read(&bus, bad[i].addr, data, bad[i].len_bytes));
        for (unsigned b = 0; b < sizeof(data); b++) {
            EXPECT_EQ(data[b], b < bad[i].len_bytes ? 0xff : 0);
        }
        EXPECT_FALSE(bus_write(&bus, bad[i].addr, data, bad[i].len_bytes));
    }
    EXPECT_EQ(probe.reads, 0);
    EXPECT_EQ(probe.writes, 0);
    EXPECT_TRUE(bus_read(&bus, 0x1008, data, 8));
    bus_finish(&bus);
}

TEST(bus, overlap_wrap_and_empty_are_refused_and_the_top_of_the_space_is_not)
{
    Bus bus;
    Probe probe = { 0 };
    uint8_t byte;

    ASSERT_EQ(bus_init(&bus, "memory"), 0);
    ASSERT_EQ(add(&bus, 0x1000, 0x1000, &probe, false), 0);
    EXPECT_EQ(add(&bus, 0x1000, 0x1000, &probe, false), -EEXIST);
    EXPECT_EQ(add(&bus, 0x1fff, 1, &probe, false), -EEXIST);
    EXPECT_EQ(add(&bus, 0x800, 0x801, &probe, false), -EEXIST);
    EXPECT_EQ(add(&bus, 0, UINT64_MAX, &probe, false), -EEXIST);
    EXPECT_EQ(add(&bus, 0x5000, 0, &probe, false), -EINVAL);
    EXPECT_EQ(add(&bus, UINT64_MAX, 2, &probe, false), -EINVAL);
    EXPECT_EQ(add(&bus, 0x800, 0x800, &probe, false), 0);
    EXPECT_EQ(add(&bus, 0x2000, 1, &probe, false), 0);
    EXPECT_EQ(add(&bus, UINT64_MAX - 15, 16, &probe, false), 0);
    EXPECT_TRUE(bus_read(&bus, UINT64_MAX, &byte, 1));
    EXPECT_EQ(bus.nb_ranges, 4);
    bus_finish(&bus);
}

/* The reset register at 0xcf9 inside the 32-bit PCI address port, whichever came first. */
TEST(bus, overlay_takes_what_fits_into_it_and_leaves_the_rest)
{
    for (int order = 0; order < 2; order++) {
        Bus bus;
        Probe outer = { 0 }, inner = { 0 };
        uint32_t value = 0;

        ASSERT_EQ(bus_init(&bus, "port"), 0);
        ASSERT_EQ(add(&bus, order ? 0xcf8 : 0xcf9, order ? 4 : 1, order ? &outer : &inner, !order),
                  0);
        ASSERT_EQ(add(&bus, order ? 0xcf9 : 0xcf8, order ? 1 : 4, order ? &inner : &outer, order),
                  0);
        EXPECT_EQ(add(&bus, 0xcf9, 1, &inner, true), -EEXIST);
        EXPECT_EQ(add(&bus, 0xcfb, 2, &inner, true), -EEXIST);
        EXPECT_EQ(add(&bus, 0xcfa, 1, &inner, false), -EEXIST);

        EXPECT_TRUE(bus_write(&bus, 0xcf8, &value, 4));
        EXPECT_TRUE(bus_write(&bus, 0xcf9, &value, 2));
        EXPECT_TRUE(bus_write(&bus, 0xcfa, &value, 1));
        EXPECT_EQ(outer.writes, 3);
        EXPECT_EQ(inner.writes, 0);
        EXPECT_TRUE(bus_write(&bus, 0xcf9, &value, 1));
        EXPECT_EQ(inner.writes, 1);
        EXPECT_FALSE(bus_write(&bus, 0xcfc, &value, 1));

        bus_remove(&bus, 0xcf9);
        EXPECT_TRUE(bus_write(&bus, 0xcf9, &value, 1));
        EXPECT_EQ(outer.writes, 4);
        bus_finish(&bus);
    }
}

TEST(bus, removed_range_is_gone_and_removing_nothing_is_harmless)
{
    Bus bus;
    Probe probe = { 0 };
    uint8_t byte = 0;

    ASSERT_EQ(bus_init(&bus, "memory"), 0);
    ASSERT_EQ(add(&bus, 0x1000, 0x10, &probe, false), 0);
    bus_remove(&bus, 0x1001);
    bus_remove(&bus, 0x5000);
    EXPECT_TRUE(bus_read(&bus, 0x1000, &byte, 1));
    bus_remove(&bus, 0x1000);
    EXPECT_FALSE(bus_read(&bus, 0x1000, &byte, 1));
    EXPECT_EQ(bus.nb_ranges, 0);
    bus_finish(&bus);
}

/* A device that moves itself from its own callback, as a BAR move through ECAM does. */
static Bus moving_bus;
static Probe moved;

static void moving_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    bus_remove(&moving_bus, 0x1000);
    ASSERT_EQ(add(&moving_bus, value, 0x10, &moved, false), 0);
}

TEST(bus, a_callback_may_change_the_bus)
{
    static const BusOps ops = { probe_read, moving_write };
    BusRange range = { .base = 0x1000, .len_bytes = 0x10, .ops = &ops, .name = "moving" };
    uint64_t to = 0x9000;

    ASSERT_EQ(bus_init(&moving_bus, "memory"), 0);
    ASSERT_EQ(bus_add(&moving_bus, &range, NULL), 0);
    EXPECT_TRUE(bus_write(&moving_bus, 0x1000, &to, 8));
    EXPECT_FALSE(bus_write(&moving_bus, 0x1000, &to, 8));
    EXPECT_TRUE(bus_write(&moving_bus, 0x9000, &to, 8));
    bus_finish(&moving_bus);
}

static void *hammer_thread(void *opaque)
{
    Bus *bus = opaque;
    uint32_t value;

    for (int i = 0; i < 20000; i++) {
        bus_read(bus, 0x1000 + (unsigned)i % 0x40 * 0x100, &value, 4);
    }
    return NULL;
}

TEST(bus, accesses_of_other_threads_go_on_while_ranges_come_and_go)
{
    static const uint64_t bases[] = { 0x1000, 0x2000, 0x3000, 0x4000 };
    Probe probe[ARRAY_SIZE(bases)] = { 0 };
    pthread_t thread;
    Bus bus;

    ASSERT_EQ(bus_init(&bus, "memory"), 0);
    ASSERT_EQ(pthread_create(&thread, NULL, hammer_thread, &bus), 0);
    for (int i = 0; i < 2000; i++) {
        unsigned which = (unsigned)i % ARRAY_SIZE(bases);

        ASSERT_EQ(add(&bus, bases[which], 0x1000, &probe[which], false), 0);
        if (i % 3 == 2) {
            for (unsigned k = 0; k < ARRAY_SIZE(bases); k++) {
                bus_remove(&bus, bases[k]);
            }
        }
    }
    pthread_join(thread, NULL);
    bus_finish(&bus);
}

TEST_MAIN()
