/*
 * pvpanic.c - the port through which a guest says that it panicked
 *
 * A read tells which events the device understands: panicked, bit 0. Stateless.
 */
#include "devices/legacy.h"

#define PVPANIC_PANICKED 0x01

struct Pvpanic {
    Platform *platform;
    uint16_t port;
    bool on_bus;
};

static uint64_t pvpanic_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    return PVPANIC_PANICKED;
}

static void pvpanic_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    Pvpanic *pvpanic = opaque;

    if (value & PVPANIC_PANICKED) {
        pvpanic->platform->ops->event(pvpanic->platform->opaque, PLATFORM_PANIC);
    }
}

static const BusOps pvpanic_ops = { .read = pvpanic_read, .write = pvpanic_write };

Pvpanic *pvpanic_create(Platform *platform, uint16_t port, Error *err)
{
    Pvpanic *pvpanic = calloc(1, sizeof(*pvpanic));
    BusRange range = { .base = port, .len_bytes = 1, .ops = &pvpanic_ops, .opaque = pvpanic,
                       .name = "pvpanic" };

    if (!pvpanic) {
        error_set(err, -ENOMEM, "no memory for the panic port");
        return NULL;
    }
    pvpanic->platform = platform;
    pvpanic->port = port;
    if (bus_add(platform->pio, &range, err) < 0) {
        pvpanic_destroy(pvpanic);
        return NULL;
    }
    pvpanic->on_bus = true;
    return pvpanic;
}

void pvpanic_destroy(Pvpanic *pvpanic)
{
    if (pvpanic && pvpanic->on_bus) {
        bus_remove(pvpanic->platform->pio, pvpanic->port);
    }
    free(pvpanic);
}
