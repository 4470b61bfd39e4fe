/*
 * Irq - interrupts: handlers, the local APICs, the I/O APIC, a timer
 *
 * The registers of both kinds of APIC are mapped for CPL3 (boot.S), so only
 * the handlers themselves run at CPL0.  boot.c has masked the two 8259s and
 * lets every processor run with interrupts on: what is not routed never comes.
 */
#include "guest-tests/lib/irq.h"

#include "guest-tests/lib/boot.h"
#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/layout.h"
#include "guest-tests/lib/tsc.h"

#include <stddef.h>

#define LAPIC_GPA            0xfee00000ul
#define LAPIC_ID             0x020
#define LAPIC_EOI            0x0b0
#define LAPIC_SPURIOUS       0x0f0
#define LAPIC_ICR_LOW        0x300
#define LAPIC_LVT_TIMER      0x320
#define LAPIC_TIMER_INITIAL  0x380
#define LAPIC_TIMER_DIVIDE   0x3e0
#define LAPIC_ON             0x100
#define LAPIC_DIVIDE_BY_1    0xb
#define LVT_MASKED           0x10000
#define LVT_PERIODIC         0x20000
#define ICR_SELF             0x40000
#define SPURIOUS_VECTOR      0xff
#define SELF_WAIT_MS         100
/* KVM's local APICs count at 1 GHz; nothing here needs it exactly. */
#define LAPIC_TICKS_PER_MS   1000000u

#define IOAPIC_SELECT   0xfec00000ul
#define IOAPIC_WINDOW   0xfec00010ul
#define IOAPIC_ENTRY    0x10
#define ENTRY_LEVEL     0x8000u
#define ENTRY_MASKED    0x10000u

typedef struct {
    IrqHandler handler;
    void *opaque;
    uint64_t count;
    uint32_t last_cpu;
} Vector;

static Vector vectors[256];
static bool irq_on;
static uint8_t apic_ids[MAX_CPUS];

static volatile void *lapic(uint32_t offset)
{
    return (volatile void *)(LAPIC_GPA + offset);
}

static uint8_t own_apic_id(void)
{
    return (uint8_t)(mmio_read32(lapic(LAPIC_ID)) >> 24);
}

static uint32_t own_index(void)
{
    uint8_t id = own_apic_id();
    uint32_t cpu = 0;

    while (cpu < MAX_CPUS - 1 && apic_ids[cpu] != id) {
        cpu++;
    }
    return cpu;
}

/* From boot.S, at CPL0. */
void irq_dispatch(uint64_t number, IrqFrame *frame);

void irq_dispatch(uint64_t number, IrqFrame *frame)
{
    Vector *v = &vectors[number];

    if (number == SPURIOUS_VECTOR) {
        return;
    }
    v->last_cpu = own_index();
    __atomic_fetch_add(&v->count, 1, __ATOMIC_SEQ_CST);
    if (v->handler) {
        v->handler(v->opaque, frame);
    }
    mmio_write32(lapic(LAPIC_EOI), 0);
}

void irq_start_processor(uint32_t cpu)
{
    if (irq_on) {
        apic_ids[cpu] = own_apic_id();
        mmio_write32(lapic(LAPIC_SPURIOUS), LAPIC_ON | SPURIOUS_VECTOR);
    }
}

void irq_init(void)
{
    irq_on = true;
    irq_start_processor(0);
}

bool irq_works(void)
{
    uint64_t before = irq_count(IRQ_VECTOR_SELF);
    uint64_t start = cpu_rdtsc();

    mmio_write32(lapic(LAPIC_ICR_LOW), ICR_SELF | IRQ_VECTOR_SELF);
    while (irq_count(IRQ_VECTOR_SELF) == before) {
        if (cpu_rdtsc() - start > tsc_from_ms(SELF_WAIT_MS)) {
            return false;
        }
        cpu_pause();
    }
    return true;
}

void irq_set_handler(uint8_t vector, IrqHandler handler, void *opaque)
{
    vectors[vector].handler = NULL;
    cpu_barrier();
    vectors[vector].opaque = opaque;
    cpu_barrier();
    vectors[vector].handler = handler;
}

uint64_t irq_count(uint8_t vector)
{
    return __atomic_load_n(&vectors[vector].count, __ATOMIC_SEQ_CST);
}

uint32_t irq_processor_of_last(uint8_t vector)
{
    return vectors[vector].last_cpu;
}

uint32_t irq_msi_address(uint32_t cpu)
{
    return IRQ_MSI_ADDRESS | (uint32_t)apic_ids[cpu] << 12;
}

static void write_ioapic(uint32_t reg, uint32_t value)
{
    mmio_write32((volatile void *)IOAPIC_SELECT, reg);
    mmio_write32((volatile void *)IOAPIC_WINDOW, value);
}

void irq_mask_gsi(uint32_t gsi)
{
    write_ioapic(IOAPIC_ENTRY + 2 * gsi, ENTRY_MASKED);
}

void irq_route_gsi(uint32_t gsi, uint8_t vector, bool level)
{
    irq_mask_gsi(gsi);
    write_ioapic(IOAPIC_ENTRY + 2 * gsi + 1, (uint32_t)apic_ids[0] << 24);
    write_ioapic(IOAPIC_ENTRY + 2 * gsi, vector | (level ? ENTRY_LEVEL : 0));
}

void irq_start_timer(uint32_t period_ms)
{
    mmio_write32(lapic(LAPIC_LVT_TIMER),
                 IRQ_VECTOR_TIMER | (period_ms ? LVT_PERIODIC : LVT_MASKED));
    mmio_write32(lapic(LAPIC_TIMER_DIVIDE), LAPIC_DIVIDE_BY_1);
    mmio_write32(lapic(LAPIC_TIMER_INITIAL), period_ms * LAPIC_TICKS_PER_MS);
}
