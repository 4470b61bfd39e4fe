/*
 * Boot - the C half of getting from a kernel's entry to CPL3
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: boot_enter_user() and boot_report_trap() run at CPL0 on their
 *            processor; everything else on the first processor at CPL3.
 * Lifetime:  what boot_info points to is copied out of the loader's memory
 *            before payload_main() runs, and stays.
 * Spec:      x86/HVM direct boot ABI (PVH), struct hvm_start_info version 1;
 *            Linux Documentation/arch/x86/boot.rst, the 64-bit boot protocol
 */
#ifndef GUEST_TESTS_LIB_BOOT_H
#define GUEST_TESTS_LIB_BOOT_H

#include <stdint.h>

#define BOOT_CMDLINE_BYTES   1024
#define BOOT_MAX_RAM_REGIONS 32

typedef struct {
    uint64_t start_gpa;
    uint64_t end_gpa;
} BootRegion;

typedef enum {
    BOOT_ENTRY_PVH,
    BOOT_ENTRY_LINUX64,
} BootEntry;

typedef struct {
    BootEntry entry;
    char cmdline[BOOT_CMDLINE_BYTES];
    BootRegion ram[BOOT_MAX_RAM_REGIONS];
    unsigned nb_ram;
    uint64_t rsdp_gpa; /* ACPI's root pointer; 0 if there is none */
    uint64_t tsc_khz; /* 0 if the hypervisor does not say */
} BootInfo;

extern BootInfo boot_info;

/*
 * payload_main - what a payload defines
 *
 * Context:   first processor, CPL3, every I/O port open, interrupts on (but none
 *            routed), 64 KiB stack.
 *            When it returns the machine is reset.
 */
void payload_main(void);

#endif
