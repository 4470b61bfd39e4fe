/*
 * test-acpi-pm.c - power-off, event registers, power button, PM timer, reset register
 */
#include "devices/legacy.h"
#include "devices/pci.h"
#include "devices/tests/fake-platform.h"

#define EVENT   0x600
#define CONTROL 0x604
#define TIMER   0x608
#define RESET   0xcf9
#define SCI     9
#define BUTTON  0x0100 /* of status and enable */

typedef struct World {
    FakePlatform fake;
    AcpiPm *pm;
} World;

static void world_init(World *world)
{
    static const AcpiPmParams params = { EVENT, CONTROL, TIMER, RESET, SCI };

    fake_init(&world->fake);
    world->pm = acpi_pm_create(&world->fake.platform, &params, NULL);
    ASSERT_TRUE(world->pm);
}

static void world_finish(World *world)
{
    acpi_pm_reset(world->pm);
    acpi_pm_destroy(world->pm);
    fake_finish(&world->fake);
}

TEST(acpi_pm, sleep_type_5_with_sleep_enable_powers_off_and_others_do_not)
{
    World world;
    FakePlatform *fake = &world.fake;

    world_init(&world);
    EXPECT_EQ(fake_in(fake, CONTROL, 2), 1); /* always in ACPI mode */
    fake_out(fake, CONTROL, 2, 0);
    EXPECT_EQ(fake_in(fake, CONTROL, 2), 1);
    for (unsigned type = 0; type < 8; type++) {
        fake_out(fake, CONTROL, 2, type << 10);
        EXPECT_EQ(fake_in(fake, CONTROL, 2), type << 10 | 1);
        EXPECT_EQ(fake->events[PLATFORM_POWER_OFF], 0);
        if (type != 5) {
            fake_out(fake, CONTROL, 2, type << 10 | 1 << 13);
            EXPECT_EQ(fake_in(fake, CONTROL, 2), type << 10 | 1); /* SLP_EN reads 0 */
        }
    }
    EXPECT_EQ(fake->events[PLATFORM_POWER_OFF], 0);
    fake_out(fake, CONTROL, 2, 5 << 10 | 1 << 13);
    EXPECT_EQ(fake->events[PLATFORM_POWER_OFF], 1);
    fake_out(fake, CONTROL + 1, 1, (5 << 10 | 1 << 13) >> 8); /* by the byte, too */
    EXPECT_EQ(fake->events[PLATFORM_POWER_OFF], 2);
    EXPECT_EQ(fake->events[PLATFORM_RESET], 0);
    world_finish(&world);
}

TEST(acpi_pm, event_block_has_no_status_by_itself_and_keeps_what_may_be_enabled)
{
    World world;
    FakePlatform *fake = &world.fake;

    world_init(&world);
    EXPECT_EQ(fake_in(fake, EVENT, 4), 0);
    fake_out(fake, EVENT, 4, 0xffffffff);
    EXPECT_EQ(fake_in(fake, EVENT, 4), 0x07210000);
    fake_out(fake, EVENT + 3, 1, 0); /* by the byte */
    EXPECT_EQ(fake_in(fake, EVENT + 2, 2), 0x0021);
    EXPECT_EQ(fake_in(fake, EVENT, 2), 0);
    acpi_pm_reset(world.pm);
    EXPECT_EQ(fake_in(fake, EVENT, 4), 0);
    world_finish(&world);
}

TEST(acpi_pm, power_button_raises_the_sci_while_status_and_enable_are_set)
{
    World world;
    FakePlatform *fake = &world.fake;

    world_init(&world);
    fake_out(fake, EVENT + 2, 2, BUTTON);
    EXPECT_FALSE(fake_level(fake, SCI));
    acpi_pm_press_power_button(world.pm);
    EXPECT_TRUE(fake_level(fake, SCI));
    EXPECT_EQ(fake_in(fake, EVENT, 4), BUTTON << 16 | BUTTON);
    acpi_pm_press_power_button(world.pm); /* an event that the guest has not looked at yet */
    EXPECT_EQ(fake->level_changes[SCI], 1);

    /* zeroes clear nothing, ones what they stand at */
    fake_out(fake, EVENT, 2, 0);
    fake_out(fake, EVENT, 2, 0xffff & ~BUTTON);
    fake_out(fake, EVENT, 1, 0xff);
    EXPECT_TRUE(fake_level(fake, SCI));
    fake_out(fake, EVENT + 2, 2, 0x0621); /* the enable bits of all other events */
    EXPECT_FALSE(fake_level(fake, SCI));
    EXPECT_EQ(fake_in(fake, EVENT, 2), BUTTON);
    fake_out(fake, EVENT + 3, 1, BUTTON >> 8);
    EXPECT_TRUE(fake_level(fake, SCI));
    fake_out(fake, EVENT, 2, BUTTON);
    EXPECT_FALSE(fake_level(fake, SCI));
    EXPECT_EQ(fake_in(fake, EVENT, 4), 0x0121u << 16);
    EXPECT_EQ(fake->level_changes[SCI], 4);

    acpi_pm_press_power_button(world.pm);
    EXPECT_TRUE(fake_level(fake, SCI));
    fake_out(fake, EVENT, 4, BUTTON << 16 | BUTTON); /* both halves at once */
    EXPECT_FALSE(fake_level(fake, SCI));
    EXPECT_EQ(fake_in(fake, EVENT, 4), BUTTON << 16);
    EXPECT_EQ(fake->events[PLATFORM_POWER_OFF] + fake->events[PLATFORM_RESET], 0);
    world_finish(&world);
}

TEST(acpi_pm, power_button_pressed_while_disabled_waits_until_it_is_enabled)
{
    World world;
    FakePlatform *fake = &world.fake;

    world_init(&world);
    acpi_pm_press_power_button(world.pm);
    EXPECT_EQ(fake_in(fake, EVENT, 4), BUTTON);
    EXPECT_EQ(fake->level_changes[SCI], 0);
    fake_out(fake, EVENT + 2, 2, BUTTON);
    EXPECT_TRUE(fake_level(fake, SCI));
    fake_out(fake, EVENT + 1, 1, BUTTON >> 8); /* by the byte */
    EXPECT_FALSE(fake_level(fake, SCI));
    acpi_pm_press_power_button(world.pm);
    EXPECT_TRUE(fake_level(fake, SCI));
    world_finish(&world);
}

TEST(acpi_pm, reset_forgets_the_power_button)
{
    World world;
    FakePlatform *fake = &world.fake;

    world_init(&world);
    fake_out(fake, EVENT + 2, 2, BUTTON);
    acpi_pm_press_power_button(world.pm);
    EXPECT_TRUE(fake_level(fake, SCI));
    acpi_pm_reset(world.pm);
    EXPECT_FALSE(fake_level(fake, SCI));
    EXPECT_EQ(fake_in(fake, EVENT, 4), 0);
    fake_out(fake, EVENT + 2, 2, BUTTON);
    EXPECT_FALSE(fake_level(fake, SCI));
    acpi_pm_press_power_button(world.pm);
    EXPECT_TRUE(fake_level(fake, SCI));
    world_finish(&world);
}

#define PRESSES 2000

static void *presser_thread(void *opaque)
{
    for (unsigned i = 0; i < PRESSES; i++) {
        acpi_pm_press_power_button(opaque);
    }
    return NULL;
}

/* The last level is the one of the last change, whoever made it. */
TEST(acpi_pm, line_follows_the_registers_when_threads_race)
{
    World world;
    FakePlatform *fake = &world.fake;
    pthread_t presser;

    world_init(&world);
    fake_out(fake, EVENT + 2, 2, BUTTON);
    ASSERT_EQ(pthread_create(&presser, NULL, presser_thread, world.pm), 0);
    for (unsigned i = 0; i < PRESSES; i++) {
        fake_out(fake, EVENT, 2, BUTTON);
    }
    pthread_join(presser, NULL);
    EXPECT_EQ(fake_level(fake, SCI), (fake_in(fake, EVENT, 2) & BUTTON) != 0);
    fake_out(fake, EVENT, 2, BUTTON);
    EXPECT_FALSE(fake_level(fake, SCI));
    world_finish(&world);
}

TEST(acpi_pm, timer_counts_24_bits_at_3_579545_mhz)
{
    World world;
    int64_t begin_ns, end_ns;
    uint32_t begin, ticks;

    world_init(&world);
    begin_ns = aio_now_ns();
    begin = (uint32_t)fake_in(&world.fake, TIMER, 4);
    EXPECT_EQ(begin >> 24, 0);
    while (aio_now_ns() - begin_ns < 20000000) {
    }
    ticks = (uint32_t)(fake_in(&world.fake, TIMER, 4) - begin) & 0xffffff;
    end_ns = aio_now_ns();
    EXPECT_GE(ticks, 20 * 3579);
    EXPECT_LE(ticks, (end_ns - begin_ns) * 3.579545 / 1000 + 2);
    fake_out(&world.fake, TIMER, 4, 0); /* read-only */
    world_finish(&world);
}

TEST(acpi_pm, timer_stands_while_the_guest_is_stopped)
{
    World world;
    uint32_t begin;

    world_init(&world);
    aio_clock_stop(&world.fake.clock);
    begin = (uint32_t)fake_in(&world.fake, TIMER, 4);
    for (int64_t now_ns = aio_now_ns(); aio_now_ns() - now_ns < 2000000;) {
        EXPECT_EQ(fake_in(&world.fake, TIMER, 4), begin);
    }
    aio_clock_step(&world.fake.clock, 1000000000);
    EXPECT_EQ((fake_in(&world.fake, TIMER, 4) - begin) & 0xffffff, 3579545);
    world_finish(&world);
}

TEST(acpi_pm, writing_the_cpu_reset_bit_resets)
{
    static const struct {
        uint8_t value;
        unsigned resets;
    } cases[] = { { 0x02, 0 }, { 0x0a, 0 }, { 0x06, 1 }, { 0x0e, 1 } };
    World world;

    world_init(&world);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        unsigned before = world.fake.events[PLATFORM_RESET];

        fake_out(&world.fake, RESET, 1, cases[i].value);
        EXPECT_EQ(world.fake.events[PLATFORM_RESET] - before, cases[i].resets);
        EXPECT_EQ(fake_in(&world.fake, RESET, 1), cases[i].value & 0x0a);
    }
    world_finish(&world);
}

static unsigned intx_gsi(unsigned slot, unsigned pin)
{
    return 16;
}

TEST(acpi_pm, reset_register_and_pci_address_port_share_0xcf8)
{
    static const PciHostParams params = { 0xe0000000, 0xc0000000, 0x10000, 0, 0, intx_gsi };
    World world;
    PciHost *host;

    world_init(&world);
    host = pci_host_create(&world.fake.platform, &params, NULL);
    ASSERT_TRUE(host);
    fake_out(&world.fake, 0xcf8, 4, 0x80000600); /* bit 2 of byte 1 is set: no reset */
    EXPECT_EQ(world.fake.events[PLATFORM_RESET], 0);
    EXPECT_EQ(fake_in(&world.fake, 0xcf8, 4), 0x80000600);
    fake_out(&world.fake, 0xcf9, 1, 0x06);
    EXPECT_EQ(world.fake.events[PLATFORM_RESET], 1);
    EXPECT_EQ(fake_in(&world.fake, 0xcf8, 4), 0x80000600);
    pci_host_destroy(host);
    world_finish(&world);
}

TEST(acpi_pm, a_taken_port_is_an_error_that_leaves_nothing)
{
    static const AcpiPmParams params = { 0x700, CONTROL, 0x720, 0x730, SCI };
    World world;
    Error err = { 0 };

    world_init(&world);
    EXPECT_FALSE(acpi_pm_create(&world.fake.platform, &params, &err));
    EXPECT_EQ(err.code, -EEXIST);
    EXPECT_EQ(world.fake.pio.nb_ranges, 4);
    world_finish(&world);
}

TEST_MAIN()
