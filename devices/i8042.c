/*
 * i8042.c - a keyboard controller with nothing attached, its reset line, and its neighbours at
 * ports 0x61 and 0x92
 *
 * Every command that a driver waits for is answered at once, so that probing does not run into
 * time-outs: the self-test passes, the keyboard and auxiliary port tests fail, bytes sent to a
 * device come back as "no answer". No interrupt is raised.
 */
#include "devices/legacy.h"

#include <pthread.h>

#define DATA_PORT   0x60
#define SYSTEM_PORT 0x61
#define STATUS_PORT 0x64
#define FAST_PORT   0x92

#define STATUS_OUTPUT_FULL 0x01
#define STATUS_SYSTEM      0x04 /* self-test passed */
#define STATUS_COMMAND     0x08 /* the last write went to the command port */
#define STATUS_UNLOCKED    0x10
#define STATUS_TIMEOUT     0x40

#define OUTPUT_NOT_RESET 0x01
#define OUTPUT_A20       0x02
#define PORT_TEST_FAILED 0x01 /* clock line stuck low: nobody there */
#define DEVICE_NO_ANSWER 0xfe

#define SYSTEM_SPEAKER_MASK 0x0f
#define SYSTEM_REFRESH      0x10 /* toggles */
#define SYSTEM_TIMER2       0x20
#define FAST_RESET          0x01
#define FAST_A20            0x02

enum {
    CMD_READ_CONFIG = 0x20,
    CMD_WRITE_CONFIG = 0x60,
    CMD_TEST_AUX = 0xa9,
    CMD_SELF_TEST = 0xaa,
    CMD_TEST_KEYBOARD = 0xab,
    CMD_READ_OUTPUT = 0xd0,
    CMD_WRITE_OUTPUT = 0xd1,
    CMD_LOOP_KEYBOARD = 0xd2,
    CMD_LOOP_AUX = 0xd3,
    CMD_WRITE_AUX = 0xd4,
    CMD_PULSE_FIRST = 0xf0, /* bit n clear: pulse output line n; line 0 is reset */
};

typedef struct I8042Port {
    I8042 *kbd;
    uint16_t port;
    bool on_bus;
} I8042Port;

struct I8042 {
    pthread_mutex_t lock; /* protects the fields down to system */
    uint8_t status;
    uint8_t config;
    uint8_t output;  /* what the data port reads */
    uint8_t command; /* waits for its parameter, 0 = none */
    uint8_t system;  /* port 0x61 */

    Platform *platform;
    I8042Port ports[4];
};

static void answer(I8042 *kbd, uint8_t byte, uint8_t status)
{
    kbd->output = byte;
    kbd->status = (kbd->status & ~STATUS_TIMEOUT) | STATUS_OUTPUT_FULL | status;
}

static uint64_t data_read(I8042 *kbd)
{
    kbd->status &= ~(STATUS_OUTPUT_FULL | STATUS_TIMEOUT);
    return kbd->output;
}

/* Returns true when the machine must be reset. */
static bool data_write(I8042 *kbd, uint8_t value)
{
    uint8_t command = kbd->command;

    kbd->command = 0;
    kbd->status &= ~STATUS_COMMAND;
    switch (command) {
    case CMD_WRITE_CONFIG:
        kbd->config = value;
        break;
    case CMD_WRITE_OUTPUT:
        return !(value & OUTPUT_NOT_RESET);
    case CMD_LOOP_KEYBOARD:
    case CMD_LOOP_AUX:
        answer(kbd, value, 0); /* without the aux bit: no aux port */
        break;
    default:
        answer(kbd, DEVICE_NO_ANSWER, STATUS_TIMEOUT);
        break;
    }
    return false;
}

static bool command_write(I8042 *kbd, uint8_t command)
{
    kbd->command = 0;
    kbd->status |= STATUS_COMMAND;
    switch (command) {
    case CMD_READ_CONFIG:
        answer(kbd, kbd->config, 0);
        break;
    case CMD_SELF_TEST:
        kbd->status |= STATUS_SYSTEM;
        answer(kbd, 0x55, 0);
        break;
    case CMD_TEST_AUX:
    case CMD_TEST_KEYBOARD:
        answer(kbd, PORT_TEST_FAILED, 0);
        break;
    case CMD_READ_OUTPUT:
        answer(kbd, OUTPUT_NOT_RESET | OUTPUT_A20, 0);
        break;
    case CMD_WRITE_CONFIG:
    case CMD_WRITE_OUTPUT:
    case CMD_LOOP_KEYBOARD:
    case CMD_LOOP_AUX:
    case CMD_WRITE_AUX:
        kbd->command = command;
        break;
    }
    return command >= CMD_PULSE_FIRST && !(command & 1);
}

static uint8_t system_read(I8042 *kbd)
{
    kbd->system ^= SYSTEM_REFRESH;
    return kbd->system | SYSTEM_TIMER2; /* set, or calibration loops would wait for ever */
}

/* --- bus: single bytes --- */

static uint64_t port_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    const I8042Port *port = opaque;
    I8042 *kbd = port->kbd;
    uint64_t value;

    pthread_mutex_lock(&kbd->lock);
    switch (port->port) {
    case DATA_PORT:
        value = data_read(kbd);
        break;
    case SYSTEM_PORT:
        value = system_read(kbd);
        break;
    case STATUS_PORT:
        value = kbd->status;
        break;
    default:
        value = FAST_A20;
        break;
    }
    pthread_mutex_unlock(&kbd->lock);
    return value;
}

static void port_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    const I8042Port *port = opaque;
    I8042 *kbd = port->kbd;
    bool reset = false;

    pthread_mutex_lock(&kbd->lock);
    switch (port->port) {
    case DATA_PORT:
        reset = data_write(kbd, (uint8_t)value);
        break;
    case SYSTEM_PORT:
        kbd->system = (kbd->system & SYSTEM_REFRESH) | (value & SYSTEM_SPEAKER_MASK);
        break;
    case STATUS_PORT:
        reset = command_write(kbd, (uint8_t)value);
        break;
    default:
        reset = value & FAST_RESET;
        break;
    }
    pthread_mutex_unlock(&kbd->lock);
    if (reset) {
        kbd->platform->ops->event(kbd->platform->opaque, PLATFORM_RESET);
    }
}

static const BusOps port_ops = { .read = port_read, .write = port_write };

void i8042_reset(I8042 *kbd)
{
    pthread_mutex_lock(&kbd->lock);
    kbd->status = STATUS_UNLOCKED | STATUS_SYSTEM;
    kbd->config = kbd->output = kbd->command = kbd->system = 0;
    pthread_mutex_unlock(&kbd->lock);
}

I8042 *i8042_create(Platform *platform, Error *err)
{
    static const uint16_t ports[] = { DATA_PORT, SYSTEM_PORT, STATUS_PORT, FAST_PORT };
    I8042 *kbd = calloc(1, sizeof(*kbd));

    if (!kbd) {
        error_set(err, -ENOMEM, "no memory for the keyboard controller");
        return NULL;
    }
    static_assert(ARRAY_SIZE(ports) == ARRAY_SIZE(kbd->ports), "one range a port");
    pthread_mutex_init(&kbd->lock, NULL);
    kbd->platform = platform;
    i8042_reset(kbd);
    for (unsigned i = 0; i < ARRAY_SIZE(ports); i++) {
        I8042Port *port = &kbd->ports[i];
        BusRange range = { .base = ports[i], .len_bytes = 1, .ops = &port_ops, .opaque = port,
                           .name = "i8042" };

        *port = (I8042Port){ .kbd = kbd, .port = ports[i] };
        if (bus_add(platform->pio, &range, err) < 0) {
            i8042_destroy(kbd);
            return NULL;
        }
        port->on_bus = true;
    }
    return kbd;
}

void i8042_destroy(I8042 *kbd)
{
    if (!kbd) {
        return;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(kbd->ports); i++) {
        if (kbd->ports[i].on_bus) {
            bus_remove(kbd->platform->pio, kbd->ports[i].port);
        }
    }
    pthread_mutex_destroy(&kbd->lock);
    free(kbd);
}
