/*
 * test-reset-ports.c - i8042 and its neighbours, pvpanic
 */
#include "devices/legacy.h"
#include "devices/tests/fake-platform.h"

typedef struct World {
    FakePlatform fake;
    I8042 *kbd;
    Pvpanic *pvpanic;
} World;

static void world_init(World *world)
{
    fake_init(&world->fake);
    world->kbd = i8042_create(&world->fake.platform, NULL);
    world->pvpanic = pvpanic_create(&world->fake.platform, 0x505, NULL);
    ASSERT_TRUE(world->kbd && world->pvpanic);
}

static void world_finish(World *world)
{
    i8042_destroy(world->kbd);
    pvpanic_destroy(world->pvpanic);
    fake_finish(&world->fake);
}

static unsigned resets(const World *world)
{
    return world->fake.events[PLATFORM_RESET];
}

/* The answer to a command, -1 when there is none. */
static int command(World *world, uint8_t cmd)
{
    fake_out(&world->fake, 0x64, 1, cmd);
    return fake_in(&world->fake, 0x64, 1) & 1 ? (int)fake_in(&world->fake, 0x60, 1) : -1;
}

static int data(World *world, uint8_t byte)
{
    fake_out(&world->fake, 0x60, 1, byte);
    return fake_in(&world->fake, 0x64, 1) & 1 ? (int)fake_in(&world->fake, 0x60, 1) : -1;
}

TEST(i8042, command_fe_resets_as_do_output_port_and_port_92)
{
    World world;

    world_init(&world);
    EXPECT_EQ(fake_in(&world.fake, 0x64, 1) & 3, 0); /* idle: Linux waits for that first */
    fake_out(&world.fake, 0x64, 1, 0xfe);
    EXPECT_EQ(resets(&world), 1);
    fake_out(&world.fake, 0x64, 1, 0xff); /* pulses nothing */
    EXPECT_EQ(resets(&world), 1);
    fake_out(&world.fake, 0x64, 1, 0xd1);
    fake_out(&world.fake, 0x60, 1, 0xdf); /* A20 on, as boot loaders do */
    EXPECT_EQ(resets(&world), 1);
    fake_out(&world.fake, 0x64, 1, 0xd1);
    fake_out(&world.fake, 0x60, 1, 0xfe);
    EXPECT_EQ(resets(&world), 2);
    fake_out(&world.fake, 0x92, 1, 0x02);
    EXPECT_EQ(fake_in(&world.fake, 0x92, 1), 0x02);
    EXPECT_EQ(resets(&world), 2);
    fake_out(&world.fake, 0x92, 1, 0x01);
    EXPECT_EQ(resets(&world), 3);
    fake_out(&world.fake, 0x60, 1, 0xfe); /* data, not a command */
    EXPECT_EQ(resets(&world), 3);
    world_finish(&world);
}

TEST(i8042, a_probe_gets_every_answer_at_once_and_finds_nothing_attached)
{
    World world;

    world_init(&world);
    EXPECT_EQ(command(&world, 0xaa), 0x55);
    EXPECT_EQ(data(&world, 0x00), 0xfe);
    fake_out(&world.fake, 0x64, 1, 0x60);
    EXPECT_EQ(data(&world, 0x47), -1);
    EXPECT_EQ(command(&world, 0x20), 0x47);
    EXPECT_EQ(command(&world, 0xab), 1); /* keyboard port: stuck */
    EXPECT_EQ(command(&world, 0xa9), 1); /* auxiliary port: stuck */
    EXPECT_EQ(command(&world, 0xad), -1);
    EXPECT_EQ(command(&world, 0xd0) & 3, 3);

    fake_out(&world.fake, 0x64, 1, 0xd3);
    fake_out(&world.fake, 0x60, 1, 0x5a);
    EXPECT_EQ(fake_in(&world.fake, 0x64, 1) & 0x21, 0x01); /* not from an auxiliary device */
    EXPECT_EQ(fake_in(&world.fake, 0x60, 1), 0x5a);
    EXPECT_EQ(fake_in(&world.fake, 0x64, 1) & 0x01, 0);

    fake_out(&world.fake, 0x60, 1, 0xf2); /* identify */
    EXPECT_EQ(fake_in(&world.fake, 0x64, 1) & 0x41, 0x41); /* time-out */
    EXPECT_EQ(fake_in(&world.fake, 0x60, 1), 0xfe);
    EXPECT_EQ(fake_in(&world.fake, 0x64, 1) & 0x41, 0);
    EXPECT_EQ(resets(&world), 0);
    world_finish(&world);
}

TEST(i8042, reset_forgets_a_command_that_waits_its_config_and_its_answer)
{
    World world;
    uint8_t config;

    world_init(&world);
    config = command(&world, 0x20);
    fake_out(&world.fake, 0x64, 1, 0x60);
    fake_out(&world.fake, 0x60, 1, config ^ 0x41);
    fake_out(&world.fake, 0x61, 1, 3);
    fake_out(&world.fake, 0x64, 1, 0xaa); /* the answer is not read */
    fake_out(&world.fake, 0x64, 1, 0x60); /* its parameter does not come */
    i8042_reset(world.kbd);
    EXPECT_EQ(fake_in(&world.fake, 0x64, 1) & 3, 0);
    EXPECT_EQ(fake_in(&world.fake, 0x61, 1) & 3, 0);
    EXPECT_EQ(command(&world, 0x20), config);
    fake_out(&world.fake, 0x60, 1, 0x55); /* for the keyboard, not for the config */
    EXPECT_EQ(fake_in(&world.fake, 0x60, 1), 0xfe);
    EXPECT_EQ(command(&world, 0x20), config);
    world_finish(&world);
}

TEST(i8042, port_61_toggles_refresh_and_does_not_let_timer_loops_hang)
{
    World world;
    uint64_t first, second;

    world_init(&world);
    fake_out(&world.fake, 0x61, 1, 0xf3);
    first = fake_in(&world.fake, 0x61, 1);
    second = fake_in(&world.fake, 0x61, 1);
    EXPECT_EQ((first ^ second) & 0x10, 0x10);
    EXPECT_EQ(first & 0x2f, 0x23);
    world_finish(&world);
}

TEST(pvpanic, bit_0_is_offered_and_reports_a_panic)
{
    World world;

    world_init(&world);
    EXPECT_EQ(fake_in(&world.fake, 0x505, 1), 1);
    fake_out(&world.fake, 0x505, 1, 0x02);
    EXPECT_EQ(world.fake.events[PLATFORM_PANIC], 0);
    fake_out(&world.fake, 0x505, 1, 0x01);
    EXPECT_EQ(world.fake.events[PLATFORM_PANIC], 1);
    world_finish(&world);
}

TEST(i8042, a_taken_port_is_an_error_that_leaves_nothing)
{
    World world;
    Error err = { 0 };

    world_init(&world);
    EXPECT_FALSE(i8042_create(&world.fake.platform, &err));
    EXPECT_EQ(err.code, -EEXIST);
    EXPECT_FALSE(pvpanic_create(&world.fake.platform, 0x505, &err));
    EXPECT_EQ(world.fake.pio.nb_ranges, 5);
    world_finish(&world);
}

TEST_MAIN()
