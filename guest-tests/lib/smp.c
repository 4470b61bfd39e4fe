/*
 * Smp - the second and further processors
 *
 * INIT and start-up go to "all but self", so no APIC id needs to be known.
 * Processors number themselves in the order they arrive (boot.S); those beyond
 * smp_limit sleep.  The local APIC page is mapped for CPL3, and the memory
 * mapped interface is what every x86 machine starts with.
 *
 * A mailbox holds one call: the first processor stores arg, then fn; the other
 * runs it and stores NULL to fn.  x86 keeps those stores in order.
 */
#include "guest-tests/lib/smp.h"

#include "guest-tests/lib/boot.h"
#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/irq.h"
#include "guest-tests/lib/layout.h"
#include "guest-tests/lib/str.h"
#include "guest-tests/lib/tsc.h"

#include <stddef.h>

#define LAPIC_ICR_LOW       0xfee00300ul
#define ICR_OTHERS          0x000c0000
#define ICR_ASSERT          0x00004000
#define ICR_INIT            0x00000500
#define ICR_STARTUP         0x00000600
#define START_WAIT_MS       1000
#define INIT_TO_STARTUP_MS  10
#define STARTUP_REPEAT_MS   20

extern const uint8_t ap_trampoline[];
extern const uint8_t ap_trampoline_end[];
uint32_t smp_next_index = 1;
uint32_t smp_limit = 1;

typedef struct {
    SmpFunc volatile fn;
    void *volatile arg;
    volatile uint32_t running;
} __attribute__((aligned(64))) Mailbox;

static Mailbox mailboxes[MAX_CPUS];

static uint32_t count_running(uint32_t nb_cpus)
{
    uint32_t n = 1;

    while (n < nb_cpus && mailboxes[n].running) {
        n++;
    }
    return n;
}

uint32_t smp_start(uint32_t nb_cpus)
{
    volatile void *icr = (volatile void *)LAPIC_ICR_LOW;

    if (nb_cpus > MAX_CPUS) {
        nb_cpus = MAX_CPUS;
    }
    if (nb_cpus <= smp_limit) {
        return count_running(nb_cpus);
    }
    smp_limit = nb_cpus;
    memcpy((void *)(uintptr_t)AP_TRAMPOLINE_GPA, ap_trampoline,
           (size_t)(ap_trampoline_end - ap_trampoline));

    mmio_write32(icr, ICR_OTHERS | ICR_ASSERT | ICR_INIT);
    tsc_wait_ms(INIT_TO_STARTUP_MS);
    for (int i = 0; i < START_WAIT_MS / STARTUP_REPEAT_MS; i++) {
        if (i < 2) {
            mmio_write32(icr, ICR_OTHERS | ICR_ASSERT | ICR_STARTUP |
                                  AP_TRAMPOLINE_GPA >> 12);
        }
        tsc_wait_ms(STARTUP_REPEAT_MS);
        if (count_running(nb_cpus) == nb_cpus) {
            break;
        }
    }
    return count_running(nb_cpus);
}

void smp_call(uint32_t cpu, SmpFunc fn, void *arg)
{
    mailboxes[cpu].arg = arg;
    cpu_barrier();
    mailboxes[cpu].fn = fn;
}

bool smp_is_idle(uint32_t cpu)
{
    return mailboxes[cpu].fn == NULL;
}

void smp_run_processor(uint32_t cpu)
{
    Mailbox *box = &mailboxes[cpu];

    irq_start_processor(cpu);
    box->running = 1;
    for (;;) {
        SmpFunc fn = box->fn;

        if (fn) {
            fn(box->arg);
            cpu_barrier();
            box->fn = NULL;
        }
        cpu_pause();
    }
}
