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

/* Bits of page table entries. */
#define PTE_P      0x01
#define PTE_W      0x02
#define PTE_U      0x04
#define PTE_PWT    0x08
#define PTE_PCD    0x10
#define PTE_LARGE  0x80
#define PTE_TABLE  (PTE_P | PTE_W | PTE_U)
#define PTE_RAM    (PTE_TABLE | PTE_LARGE)
#define PTE_DEVICE (PTE_RAM | PTE_PWT | PTE_PCD)

/* The virtual address that device_directory maps: 512 pages of 2 MiB. */
#define DEVICE_WINDOW       0x100000000
#define DEVICE_WINDOW_PAGES 512

/* Conventional memory that the start-up IPI can name (page 8). */
#define AP_TRAMPOLINE_GPA 0x8000

/* The exceptions of the architecture, vectors 0 to 31. */
#define TRAP_COUNT       32
#define TRAP_STUB_STRIDE 16

/* What comes after them: interrupts, to vector 255. */
#define IRQ_STUB_FIRST TRAP_COUNT

#endif
