/*
 * Loader - puts a kernel, its initrd and its command line into guest RAM
 *
 * Layer:     vmm, pure half (io/base only; no KVM)
 * Threading: the main thread, before the first vCPU runs.
 * Lifetime:  loader_load() opens the files read-only, copies and closes them; nothing is kept.
 * Spec:      Linux Documentation/arch/x86/boot.rst (bzImage, 64-bit entry);
 *            Xen docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h (PVH);
 *            System V ABI, ELF-64.
 *
 * Files are untrusted: whatever they hold, the result is a loaded kernel or one Error line that
 * names the file. Time and memory are bounded by the size of the file and of guest RAM.
 */
#ifndef VMM_LOADER_H
#define VMM_LOADER_H

#include "io/base/error.h"
#include "vmm/guest-image.h"

/* Selectors in the GDT at BootEntry.gdt_gpa; the first two are those of the Linux boot protocol. */
#define BOOT_CS_SELECTOR 0x10 /* 64-bit or 32-bit code, by the mode; base 0, limit 4 GiB */
#define BOOT_DS_SELECTOR 0x18 /* read/write data for DS, ES, SS (FS, GS); base 0, limit 4 GiB */
#define BOOT_TR_SELECTOR 0x20 /* busy TSS, base 0, limit 0x67 */

typedef enum BootMode {
    BOOT_LONG_MODE,      /* paging on, CS.L; RSI = boot_params */
    BOOT_PROTECTED_MODE, /* PVH: flat 32-bit segments, paging off; EBX = hvm_start_info */
} BootMode;

/*
 * BootEntry - register state of the first vCPU. Everything not named is as after reset, with
 * RFLAGS = 2 (interrupts off), an IDT of limit 0 and flat segments from the selectors above.
 */
typedef struct BootEntry {
    BootMode mode;
    uint64_t rip;
    uint64_t rsi; /* gpa of boot_params, 0 in protected mode */
    uint64_t rbx; /* gpa of hvm_start_info, 0 in long mode */
    uint64_t cr0;
    uint64_t cr3; /* identity map of the first 4 GiB, 0 in protected mode */
    uint64_t cr4;
    uint64_t efer;
    uint64_t gdt_gpa;
    uint16_t gdt_limit;
} BootEntry;

typedef struct LoaderParams {
    const char *kernel_path; /* bzImage, 64-bit ELF vmlinux, or any 64-bit ELF with a PVH note */
    const char *initrd_path; /* NULL: none */
    const char *cmdline;     /* NULL: empty */
    uint64_t rsdp_gpa;       /* 0: no ACPI tables */
} LoaderParams;

/*
 * loader_load - fill guest RAM from the files and say how the first vCPU starts
 * Errors: -EINVAL not a kernel this machine can boot, or malformed; -E2BIG does not fit in RAM or
 *         the command line is too long; otherwise what open or read gave.
 */
int loader_load(const LoaderParams *params, const GuestImage *image, BootEntry *ret_entry,
                Error *err) NONNULL(1, 2, 3) WARN_UNUSED;

#endif
