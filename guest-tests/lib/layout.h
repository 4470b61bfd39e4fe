/*
 * Numbers that the assembly and the C of the payload library share
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: constants only.
 * Lifetime:  none.
 */
#ifndef GUEST_TESTS_LIB_LAYOUT_H
#define GUEST_TESTS_LIB_LAYOUT_H

#define MAX_CPUS        16
#define CPU_STACK_SHIFT 14

/* Selectors as in boot.S; the user ones carry RPL 3 when loaded. */
#define SEL_KERNEL_CODE32 0x08
#define SEL_KERNEL_CODE64 0x10
#define SEL_KERNEL_DATA   0x18
#define SEL_USER_DATA     0x28
#define SEL_USER_CODE64   0x30
#define SEL_TSS           0x40

/* Conventional memory that the start-up IPI can name (page 8). */
#define AP_TRAMPOLINE_GPA 0x8000

/* The exceptions of the architecture, vectors 0 to 31. */
#define TRAP_COUNT       32
#define TRAP_STUB_STRIDE 16

#endif
