/*
 * acpi-pm.c - ACPI fixed hardware: PM1a event and control, power button, PM timer; and the reset
 * register
 *
 * 1. The machine is always in ACPI mode: SCI_EN reads set, there is no SMI command port.
 * 2. The power button is the only event: no other status is ever set. Enable bits keep what is
 *    written, those of other events, too.
 * 3. The SCI line is up exactly while a status and its enable bit are set. sci_update(), under the
 *    lock that the registers change under, is the only place that sets it, so the last level is that
 *    of the last change: vCPU threads make them by the registers, main by the button and the reset.
 * 4. The timer is a 24-bit count of the guest's time that the guest may only read; its overflow
 *    sets no status, which no guest with a working clock waits for.
 */
#include "devices/legacy.h"

#include <pthread.h>

#define PM1_POWER_BUTTON (1u << 8) /* in status and enable */
#define PM1_ENABLE_MASK  0x0721u /* timer, global, power button, sleep button, RTC */
#define PM1_SCI_ENABLED  (1u << 0)
#define PM1_SLEEP_TYPE(control) ((control) >> 10 & 7)
#define PM1_SLEEP_ENABLE (1u << 13)
#define PM1_CONTROL_MASK (7u << 10)
#define SLEEP_TYPE_S5    5
#define PM_TIMER_HZ      3579545
#define PM_TIMER_MASK    0xffffffu
#define NS_PER_S         1000000000
#define RESET_CPU        0x04u
#define RESET_MASK       0x0eu

/* One of the four ranges; the ops are told which by it. */
typedef enum PmBlock { PM_EVENT, PM_CONTROL, PM_TIMER, PM_RESET, PM_BLOCKS } PmBlock;

typedef struct PmRange {
    AcpiPm *pm;
    uint16_t port;
    bool on_bus;
} PmRange;

struct AcpiPm {
    pthread_mutex_t lock; /* protects the fields down to sci_level */
    uint16_t status, enable, control;
    uint8_t reset;
    bool sci_level;

    Platform *platform;
    unsigned sci_gsi;
    PmRange ranges[PM_BLOCKS];
};

/* Bytes [offset, offset + len) of a little-endian register block. */
static uint64_t slice(uint64_t block, uint64_t offset, unsigned len_bytes)
{
    return block >> 8 * offset & UINT64_MAX >> (64 - 8 * len_bytes);
}

static uint64_t slice_mask(uint64_t offset, unsigned len_bytes)
{
    return (UINT64_MAX >> (64 - 8 * len_bytes)) << 8 * offset;
}

/* --- PM1a event: status and enable --- */

/* Locked. */
static void sci_update(AcpiPm *pm)
{
    bool level = pm->status & pm->enable;

    if (level != pm->sci_level) {
        pm->sci_level = level;
        pm->platform->ops->irq_set_level(pm->platform->opaque, pm->sci_gsi, level);
    }
}

static uint64_t event_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    AcpiPm *pm = ((PmRange *)opaque)->pm;
    uint64_t block;

    pthread_mutex_lock(&pm->lock);
    block = (uint64_t)pm->enable << 16 | pm->status;
    pthread_mutex_unlock(&pm->lock);
    return slice(block, offset, len_bytes);
}

static void event_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    AcpiPm *pm = ((PmRange *)opaque)->pm;
    uint64_t mask = slice_mask(offset, len_bytes);
    uint64_t block = value << 8 * offset;

    pthread_mutex_lock(&pm->lock);
    pm->status &= ~(uint16_t)(block & mask);
    pm->enable &= ~(uint16_t)(mask >> 16);
    pm->enable |= (uint16_t)((block & mask) >> 16) & PM1_ENABLE_MASK;
    sci_update(pm);
    pthread_mutex_unlock(&pm->lock);
}

/* --- PM1a control --- */

static uint64_t control_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    AcpiPm *pm = ((PmRange *)opaque)->pm;
    uint64_t block;

    pthread_mutex_lock(&pm->lock);
    block = pm->control | PM1_SCI_ENABLED;
    pthread_mutex_unlock(&pm->lock);
    return slice(block, offset, len_bytes);
}

static void control_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    AcpiPm *pm = ((PmRange *)opaque)->pm;
    uint64_t mask = slice_mask(offset, len_bytes);
    uint64_t block = value << 8 * offset & mask;
    bool power_off;

    pthread_mutex_lock(&pm->lock);
    pm->control = (pm->control & ~(uint16_t)mask) | (block & PM1_CONTROL_MASK);
    power_off = block & PM1_SLEEP_ENABLE && PM1_SLEEP_TYPE(pm->control) == SLEEP_TYPE_S5;
    pthread_mutex_unlock(&pm->lock);
    if (power_off) {
        pm->platform->ops->event(pm->platform->opaque, PLATFORM_POWER_OFF);
    }
}

/* --- PM timer --- */

static uint64_t timer_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    const AcpiPm *pm = ((PmRange *)opaque)->pm;
    uint64_t now_ns = (uint64_t)aio_clock_now_ns(pm->platform->clock);
    uint64_t ticks = now_ns / NS_PER_S * PM_TIMER_HZ + now_ns % NS_PER_S * PM_TIMER_HZ / NS_PER_S;

    return slice(ticks & PM_TIMER_MASK, offset, len_bytes);
}

static void timer_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
}

/* --- reset register --- */

static uint64_t reset_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    AcpiPm *pm = ((PmRange *)opaque)->pm;
    uint8_t value;

    pthread_mutex_lock(&pm->lock);
    value = pm->reset;
    pthread_mutex_unlock(&pm->lock);
    return value;
}

static void reset_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    AcpiPm *pm = ((PmRange *)opaque)->pm;

    pthread_mutex_lock(&pm->lock);
    pm->reset = (uint8_t)value & RESET_MASK & ~RESET_CPU;
    pthread_mutex_unlock(&pm->lock);
    if (value & RESET_CPU) {
        pm->platform->ops->event(pm->platform->opaque, PLATFORM_RESET);
    }
}

/* --- life --- */

static const struct {
    const char *name;
    unsigned len_bytes;
    BusOps ops;
} blocks[PM_BLOCKS] = {
    [PM_EVENT] = { "acpi-pm1-event", 4, { event_read, event_write } },
    [PM_CONTROL] = { "acpi-pm1-control", 2, { control_read, control_write } },
    [PM_TIMER] = { "acpi-pm-timer", 4, { timer_read, timer_write } },
    [PM_RESET] = { "reset-register", 1, { reset_read, reset_write } },
};

static int add_range(AcpiPm *pm, PmBlock block, uint16_t port, Error *err)
{
    PmRange *pm_range = &pm->ranges[block];
    BusRange range = { .base = port, .len_bytes = blocks[block].len_bytes,
                       .ops = &blocks[block].ops, .opaque = pm_range,
                       .name = blocks[block].name, .overlay = block == PM_RESET };
    int ret = bus_add(pm->platform->pio, &range, err);

    *pm_range = (PmRange){ .pm = pm, .port = port, .on_bus = ret == 0 };
    return ret;
}

AcpiPm *acpi_pm_create(Platform *platform, const AcpiPmParams *params, Error *err)
{
    const uint16_t ports[PM_BLOCKS] = {
        [PM_EVENT] = params->pm1a_event_port,
        [PM_CONTROL] = params->pm1a_control_port,
        [PM_TIMER] = params->pm_timer_port,
        [PM_RESET] = params->reset_port,
    };
    AcpiPm *pm = calloc(1, sizeof(*pm));

    if (!pm) {
        error_set(err, -ENOMEM, "no memory for ACPI power management");
        return NULL;
    }
    pthread_mutex_init(&pm->lock, NULL);
    pm->platform = platform;
    pm->sci_gsi = params->sci_gsi;
    for (PmBlock block = 0; block < PM_BLOCKS; block++) {
        if (add_range(pm, block, ports[block], err) < 0) {
            acpi_pm_destroy(pm);
            return NULL;
        }
    }
    return pm;
}

void acpi_pm_destroy(AcpiPm *pm)
{
    if (!pm) {
        return;
    }
    for (PmBlock block = 0; block < PM_BLOCKS; block++) {
        if (pm->ranges[block].on_bus) {
            bus_remove(pm->platform->pio, pm->ranges[block].port);
        }
    }
    pthread_mutex_destroy(&pm->lock);
    free(pm);
}

void acpi_pm_reset(AcpiPm *pm)
{
    pthread_mutex_lock(&pm->lock);
    pm->status = 0;
    pm->enable = 0;
    pm->control = 0;
    pm->reset = 0;
    sci_update(pm);
    pthread_mutex_unlock(&pm->lock);
}

void acpi_pm_press_power_button(AcpiPm *pm)
{
    pthread_mutex_lock(&pm->lock);
    pm->status |= PM1_POWER_BUTTON;
    sci_update(pm);
    pthread_mutex_unlock(&pm->lock);
}
