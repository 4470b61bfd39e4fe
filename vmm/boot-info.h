/*
 * boot-info - the tables below 1 MiB that a kernel finds when it starts
 *
 * Layer:     vmm, pure half (io/base only; no KVM)
 * Threading: the main thread, before the first vCPU runs.
 * Lifetime:  everything is written into guest RAM at the addresses of layout.h; nothing is kept.
 * Spec:      Linux Documentation/arch/x86/boot.rst, zero-page.rst; Xen start_info.h version 1
 *
 * The caller has made sure that the guest has RAM up to LAYOUT_KERNEL_MIN_GPA at least.
 */
#ifndef VMM_BOOT_INFO_H
#define VMM_BOOT_INFO_H

#include "vmm/guest-image.h"
#include "vmm/loader.h"

/* The setup header lies at this offset of the kernel file and of boot_params, and ends before. */
#define BOOT_HEADER_OFFSET    0x1f1
#define BOOT_HEADER_MAX_BYTES (0x290 - BOOT_HEADER_OFFSET)

typedef struct BootHeader {
    uint8_t bytes[BOOT_HEADER_MAX_BYTES];
} BootHeader;

/* Types of the e820 map; the PVH memory map uses the same numbers. */
#define MEMMAP_RAM      1
#define MEMMAP_RESERVED 2

#define MEMMAP_MAX 8

typedef struct MemmapEntry {
    uint64_t gpa;
    uint64_t len_bytes;
    uint32_t type;
} MemmapEntry;

/* What is told to the kernel besides the memory map. */
typedef struct BootInfo {
    uint64_t initrd_gpa;
    uint64_t initrd_bytes; /* 0: none */
    uint64_t rsdp_gpa;     /* 0: none */
} BootInfo;

/* boot_build_memmap - ascending, without overlaps; returns the number of entries */
unsigned boot_build_memmap(const GuestImage *image, MemmapEntry memmap[MEMMAP_MAX]) NONNULL(1, 2);

/* boot_write_params - the "zero page" for both 64-bit entries; the command line is in place */
void boot_write_params(const GuestImage *image, const BootHeader *header, const BootInfo *info)
    NONNULL(1, 2, 3);

/* boot_write_start_info - hvm_start_info, its module list and its memory map, for the PVH entry */
void boot_write_start_info(const GuestImage *image, const BootInfo *info) NONNULL(1, 2);

/* boot_write_cpu_tables - GDT and, for long mode, page tables; fills all of @ret_entry but rip */
void boot_write_cpu_tables(const GuestImage *image, BootMode mode, BootEntry *ret_entry)
    NONNULL(1, 3);

#endif
