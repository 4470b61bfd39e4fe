/*
 * Irq - interrupts: handlers, the local APICs, the I/O APIC, a timer
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: set up on the first processor.  A handler runs at CPL0 on the
 *            processor that was interrupted, with interrupts off.
 * Lifetime:  irq_init() once; a handler stays until another is set.
 * Spec:      Intel SDM volume 3, 6.14 and 10; 82093AA I/O APIC
 *
 * A KVM that emulates CPL0 takes about a microsecond for each instruction of a
 * handler, so what can be done outside is: a handler counts, and the code at
 * CPL3 looks at the count.
 */
#ifndef GUEST_TESTS_LIB_IRQ_H
#define GUEST_TESTS_LIB_IRQ_H

#include <stdbool.h>
#include <stdint.h>

#define IRQ_MSI_ADDRESS  0xfee00000u
#define IRQ_VECTOR_FIRST 0x30 /* free for payloads, one for each queue or so */
#define IRQ_VECTOR_LAST  0xcf
#define IRQ_VECTOR_TIMER 0xd0
#define IRQ_VECTOR_SELF  0xd1

/* What the processor pushed; a handler may change where to go back to. */
typedef struct {
    uint64_t rip;
    uint64_t cs;
    uint64_t rflags;
    uint64_t rsp;
    uint64_t ss;
} IrqFrame;

typedef void (*IrqHandler)(void *opaque, IrqFrame *frame);

/* irq_init - switch the local APIC of the first processor on, and of further
 * ones as they start; without it messages reach a dead end */
void irq_init(void);

/* irq_works - whether an interrupt that the processor sends itself arrives */
bool irq_works(void);

/* irq_set_handler - call @handler beside counting; NULL: count only */
void irq_set_handler(uint8_t vector, IrqHandler handler, void *opaque);

/* irq_count - how many interrupts of @vector were taken, on any processor */
uint64_t irq_count(uint8_t vector);

/* irq_processor_of_last - which processor took the last of @vector */
uint32_t irq_processor_of_last(uint8_t vector);

/* irq_msi_address - the address of a message for processor @cpu */
uint32_t irq_msi_address(uint32_t cpu);

/* irq_route_gsi - have input @gsi of the I/O APIC raise @vector on the first
 * processor; edge-triggered, or level-triggered if @level */
void irq_route_gsi(uint32_t gsi, uint8_t vector, bool level);
void irq_mask_gsi(uint32_t gsi);

/* irq_start_timer - IRQ_VECTOR_TIMER on the first processor about every
 * @period_ms from now on; 0 stops it */
void irq_start_timer(uint32_t period_ms);

/* irq_start_processor - what smp.c calls on each further processor */
void irq_start_processor(uint32_t cpu);

#endif
