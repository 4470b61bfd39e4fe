/*
 * test-serial.c - what 8250 drivers probe for and rely on
 */
#include <linux/serial_reg.h>

#include "devices/serial.h"
#include "devices/tests/fake-platform.h"

#define PORT 0x3f8
#define GSI  4

typedef struct World {
    FakePlatform fake;
    Serial *serial;
    uint8_t sent[64];
    unsigned nb_sent;
    unsigned rooms;
} World;

static void transmit(void *opaque, const uint8_t *data, size_t len_bytes)
{
    World *world = opaque;

    for (size_t i = 0; i < len_bytes; i++) {
        world->sent[world->nb_sent++ % sizeof(world->sent)] = data[i];
    }
}

static void room(void *opaque)
{
    World *world = opaque;

    world->rooms++;
}

static void world_init(World *world)
{
    Error err;

    *world = (World){ .serial = NULL };
    fake_init(&world->fake);
    world->serial = serial_create(&world->fake.platform, PORT, GSI, transmit, room, world, &err);
    ASSERT_TRUE(world->serial);
}

static void world_finish(World *world)
{
    fake_out(&world->fake, PORT + UART_LCR, 1, UART_LCR_WLEN8);
    fake_out(&world->fake, PORT + UART_IER, 1, 0);
    serial_destroy(world->serial);
    fake_finish(&world->fake);
}

static uint8_t in(World *world, unsigned reg)
{
    return (uint8_t)fake_in(&world->fake, PORT + reg, 1);
}

static void out(World *world, unsigned reg, uint8_t value)
{
    fake_out(&world->fake, PORT + reg, 1, value);
}

static size_t receive(World *world, const char *text)
{
    return serial_receive(world->serial, (const uint8_t *)text, strlen(text));
}

/* The order of Linux's autoconfig(): IER is 4 bits wide, loopback shows in MSR, the FIFO in IIR. */
TEST(serial, linux_autoconfig_finds_a_16550a)
{
    World world;

    world_init(&world);
    out(&world, UART_IER, 0);
    EXPECT_EQ(in(&world, UART_IER) & 0x0f, 0);
    out(&world, UART_IER, 0xff);
    EXPECT_EQ(in(&world, UART_IER), 0x0f); /* no bit 6: not an XScale */
    out(&world, UART_IER, 0);

    out(&world, UART_MCR, UART_MCR_LOOP | 0x0a);
    EXPECT_EQ(in(&world, UART_MSR) & 0xf0, 0x90);
    out(&world, UART_MCR, 0);
    EXPECT_EQ(in(&world, UART_MSR) & 0xf0, 0xb0);

    out(&world, UART_LCR, 0);
    EXPECT_EQ(in(&world, UART_IIR) >> 6, 0);
    out(&world, UART_FCR, UART_FCR_ENABLE_FIFO);
    EXPECT_EQ(in(&world, UART_IIR) >> 6, 3);
    out(&world, UART_LCR, UART_LCR_CONF_MODE_A); /* no extended features register */
    EXPECT_NE(in(&world, UART_EFR), 0);
    out(&world, UART_LCR, UART_LCR_CONF_MODE_B);
    EXPECT_NE(in(&world, UART_EFR), 0);
    out(&world, UART_LCR, UART_LCR_CONF_MODE_A);
    out(&world, UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR7_64BYTE);
    EXPECT_EQ(in(&world, UART_IIR) & 0x20, 0); /* not a 16750 */
    out(&world, UART_LCR, 0);
    out(&world, UART_SCR, 0xa5);
    EXPECT_EQ(in(&world, UART_SCR), 0xa5);
    world_finish(&world);
}

/* Linux's start-up test: the interrupt comes again each time it is enabled with the transmitter
 * empty, and reading IIR takes it back. */
TEST(serial, transmitter_empty_interrupt_comes_at_each_enable)
{
    World world;

    world_init(&world);
    for (int i = 0; i < 2; i++) {
        out(&world, UART_IER, UART_IER_THRI);
        EXPECT_TRUE(world.fake.level[GSI]);
        EXPECT_EQ(in(&world, UART_LSR) & UART_LSR_TEMT, UART_LSR_TEMT);
        EXPECT_EQ(in(&world, UART_IIR) & 0x0f, UART_IIR_THRI);
        EXPECT_FALSE(world.fake.level[GSI]);
        EXPECT_EQ(in(&world, UART_IIR) & 0x0f, UART_IIR_NO_INT);
        out(&world, UART_IER, UART_IER_THRI); /* already enabled: nothing new */
        EXPECT_FALSE(world.fake.level[GSI]);
        out(&world, UART_IER, 0);
    }
    out(&world, UART_IER, UART_IER_THRI);
    in(&world, UART_IIR);
    out(&world, UART_TX, 'x'); /* sent at once: empty again */
    EXPECT_TRUE(world.fake.level[GSI]);
    EXPECT_EQ(world.nb_sent, 1);
    EXPECT_EQ(world.sent[0], 'x');
    out(&world, UART_IER, 0);
    EXPECT_FALSE(world.fake.level[GSI]);
    world_finish(&world);
}

TEST(serial, divisor_latch_hides_data_and_interrupt_enable)
{
    World world;

    world_init(&world);
    out(&world, UART_IER, UART_IER_RLSI);
    out(&world, UART_LCR, UART_LCR_DLAB | UART_LCR_WLEN8);
    out(&world, UART_DLL, 1);
    out(&world, UART_DLM, 2);
    EXPECT_EQ(in(&world, UART_DLL), 1);
    EXPECT_EQ(in(&world, UART_DLM), 2);
    EXPECT_EQ(world.nb_sent, 0);
    out(&world, UART_LCR, UART_LCR_SBC | UART_LCR_WLEN8); /* break: ignored */
    EXPECT_EQ(in(&world, UART_LCR), UART_LCR_SBC | UART_LCR_WLEN8);
    EXPECT_EQ(in(&world, UART_IER), UART_IER_RLSI);
    world_finish(&world);
}

TEST(serial, received_bytes_interrupt_by_trigger_level_or_time_out_and_make_room)
{
    World world;

    world_init(&world);
    out(&world, UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_TRIGGER_4);
    out(&world, UART_IER, UART_IER_RDI | UART_IER_THRI);
    in(&world, UART_IIR);
    EXPECT_EQ(receive(&world, "abc"), 3);
    EXPECT_TRUE(world.fake.level[GSI]);
    EXPECT_EQ(in(&world, UART_IIR) & 0x0f, UART_IIR_RX_TIMEOUT);
    EXPECT_EQ(receive(&world, "d"), 1);
    EXPECT_EQ(in(&world, UART_IIR) & 0x0f, UART_IIR_RDI);
    EXPECT_TRUE(in(&world, UART_LSR) & UART_LSR_DR);
    world.rooms = 0;
    EXPECT_EQ(in(&world, UART_RX), 'a');
    EXPECT_EQ(in(&world, UART_RX), 'b');
    EXPECT_EQ(in(&world, UART_RX), 'c');
    EXPECT_EQ(world.rooms, 0);
    EXPECT_EQ(in(&world, UART_RX), 'd');
    EXPECT_EQ(world.rooms, 1);
    EXPECT_FALSE(world.fake.level[GSI]);
    EXPECT_FALSE(in(&world, UART_LSR) & UART_LSR_DR);
    EXPECT_EQ(in(&world, UART_RX), 0);
    world_finish(&world);
}

TEST(serial, a_full_fifo_takes_no_more_and_a_16450_takes_one)
{
    World world;
    uint8_t many[200] = { 0 };
    size_t taken;

    world_init(&world);
    EXPECT_EQ(receive(&world, "xyz"), 1); /* FIFOs are off at power-on */
    EXPECT_EQ(in(&world, UART_RX), 'x');
    out(&world, UART_FCR, UART_FCR_ENABLE_FIFO);
    taken = serial_receive(world.serial, many, sizeof(many));
    EXPECT_GE(taken, 16);
    EXPECT_LT(taken, sizeof(many));
    EXPECT_EQ(receive(&world, "z"), 0);
    EXPECT_EQ(in(&world, UART_LSR) & UART_LSR_OE, 0); /* the sender waits: no overrun */
    world.rooms = 0;
    out(&world, UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR);
    EXPECT_EQ(world.rooms, 1);
    EXPECT_FALSE(in(&world, UART_LSR) & UART_LSR_DR);
    EXPECT_EQ(receive(&world, "z"), 1);
    world_finish(&world);
}

TEST(serial, loopback_returns_bytes_and_modem_lines_and_keeps_them_from_the_line)
{
    World world;

    world_init(&world);
    out(&world, UART_FCR, UART_FCR_ENABLE_FIFO);
    in(&world, UART_MSR);
    out(&world, UART_MCR, UART_MCR_LOOP | UART_MCR_OUT1);
    EXPECT_EQ(in(&world, UART_MSR), UART_MSR_RI | UART_MSR_DDCD | UART_MSR_DDSR | UART_MSR_DCTS);
    EXPECT_EQ(in(&world, UART_MSR), UART_MSR_RI); /* reading takes the changes back */
    out(&world, UART_IER, UART_IER_MSI);
    EXPECT_FALSE(world.fake.level[GSI]);
    out(&world, UART_MCR, UART_MCR_LOOP | UART_MCR_RTS);
    EXPECT_TRUE(world.fake.level[GSI]);
    EXPECT_EQ(in(&world, UART_IIR) & 0x0f, UART_IIR_MSI);
    EXPECT_EQ(in(&world, UART_MSR), UART_MSR_CTS | UART_MSR_DCTS | UART_MSR_TERI);
    EXPECT_FALSE(world.fake.level[GSI]);

    EXPECT_EQ(receive(&world, "line"), 0);
    for (int i = 0; i < 100; i++) {
        out(&world, UART_TX, (uint8_t)i);
    }
    EXPECT_EQ(world.nb_sent, 0);
    EXPECT_EQ(in(&world, UART_RX), 0);
    EXPECT_EQ(in(&world, UART_RX), 1);
    out(&world, UART_IER, UART_IER_RLSI);
    EXPECT_EQ(in(&world, UART_IIR) & 0x0f, UART_IIR_RLSI);
    EXPECT_TRUE(in(&world, UART_LSR) & UART_LSR_OE);
    EXPECT_FALSE(in(&world, UART_LSR) & UART_LSR_OE);
    world.rooms = 0;
    out(&world, UART_MCR, 0);
    EXPECT_EQ(world.rooms, 1); /* input may flow again */
    world_finish(&world);
}

TEST(serial, wide_accesses_are_bytes_and_reset_is_power_on)
{
    World world;

    world_init(&world);
    fake_out(&world.fake, PORT + UART_MCR, 4, 0x5a000000 | UART_MCR_LOOP); /* MCR LSR MSR SCR */
    EXPECT_EQ(in(&world, UART_SCR), 0x5a);
    EXPECT_EQ(fake_in(&world.fake, PORT + UART_LCR, 2), UART_LCR_WLEN8 | UART_MCR_LOOP << 8);
    out(&world, UART_MCR, 0);
    out(&world, UART_FCR, UART_FCR_ENABLE_FIFO);
    out(&world, UART_IER, UART_IER_RDI);
    receive(&world, "abc");
    EXPECT_TRUE(world.fake.level[GSI]);
    serial_reset(world.serial);
    EXPECT_FALSE(world.fake.level[GSI]);
    EXPECT_EQ(in(&world, UART_IER), 0);
    EXPECT_EQ(in(&world, UART_IIR), UART_IIR_NO_INT);
    EXPECT_EQ(in(&world, UART_SCR), 0);
    EXPECT_FALSE(in(&world, UART_LSR) & UART_LSR_DR);
    world_finish(&world);
}

TEST(serial, a_taken_port_is_an_error)
{
    World world;
    Error err = { 0 };

    world_init(&world);
    EXPECT_FALSE(serial_create(&world.fake.platform, PORT + 7, 3, transmit, NULL, NULL, &err));
    EXPECT_EQ(err.code, -EEXIST);
    world_finish(&world);
}

TEST_MAIN()
