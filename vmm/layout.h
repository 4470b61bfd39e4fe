/*
 * layout.h - every address, I/O port and interrupt number of the x86-64 machine
 *
 * Layer:     vmm (constants; no dependency beyond io/base)
 * Threading: constants only.
 * Lifetime:  none.
 *
 * Guest physical addresses:
 *
 *     0x00000000  tables of the loader: GDT, hvm_start_info, boot_params, page tables, command line
 *     0x0009fc00  reserved (EBDA, VGA, BIOS areas; the ACPI tables are at 0xe0000)
 *     0x00100000  RAM: kernel from its own address on, initrd at the top
 *     0xc0000000  RAM ends here at the latest; 32-bit window of PCI BARs, 512 MiB
 *     0xe0000000  ECAM, 256 MiB (buses 0 to 255)
 *     0xfeb00000  virtio-mmio windows, a page each
 *     0xfec00000  IOAPIC
 *     0xfee00000  local APICs
 *     0xfeffc000  identity map page and TSS that KVM asks for
 *    0x100000000  the rest of RAM
 *           high  64-bit window of PCI BARs: the upper half of the address space, see
 *                 layout_mmio64_window()
 */
#ifndef VMM_LAYOUT_H
#define VMM_LAYOUT_H

#include "io/base/compiler.h"

/* --- below 1 MiB: what the loader writes; kernels and payloads start at 1 MiB or above --- */

#define LAYOUT_GDT_GPA         0x1000u
#define LAYOUT_START_INFO_GPA  0x2000u  /* hvm_start_info, its module and its memory map: a page */
#define LAYOUT_ZERO_PAGE_GPA   0x3000u  /* struct boot_params */
#define LAYOUT_PAGE_TABLES_GPA 0x10000u /* PML4, PDPT, 4 page directories */
#define LAYOUT_CMDLINE_GPA     0x20000u
#define LAYOUT_CMDLINE_BYTES   0x10000u
#define LAYOUT_LOW_RAM_END_GPA 0x9fc00u /* conventional memory ends, reserved to 1 MiB */
#define LAYOUT_ACPI_GPA        0xe0000u /* the RSDP is its first structure */
#define LAYOUT_ACPI_BYTES      0x20000u
#define LAYOUT_KERNEL_MIN_GPA  0x100000u

/* --- the hole below 4 GiB --- */

#define LAYOUT_RAM_LOW_MAX_BYTES 0xc0000000ull
#define LAYOUT_RAM_HIGH_GPA      0x100000000ull

#define LAYOUT_PCI_MMIO32_GPA   0xc0000000u
#define LAYOUT_PCI_MMIO32_BYTES 0x20000000u
#define LAYOUT_ECAM_GPA         0xe0000000u
#define LAYOUT_ECAM_BYTES       0x10000000u

#define LAYOUT_VIRTIO_MMIO_GPA   0xfeb00000u
#define LAYOUT_VIRTIO_MMIO_BYTES 0x1000u /* one window */
#define LAYOUT_VIRTIO_MMIO_MAX   12

#define LAYOUT_IOAPIC_GPA         0xfec00000u
#define LAYOUT_LAPIC_GPA          0xfee00000u
#define LAYOUT_KVM_IDENTITY_GPA   0xfeffc000u /* one page */
#define LAYOUT_KVM_TSS_GPA        0xfeffd000u /* three pages */
#define LAYOUT_KVM_RESERVED_GPA   LAYOUT_KVM_IDENTITY_GPA
#define LAYOUT_KVM_RESERVED_BYTES 0x4000u

/* --- I/O ports --- */

#define LAYOUT_RTC_PORT     0x70u
#define LAYOUT_COM1_PORT    0x3f8u
#define LAYOUT_PVPANIC_PORT 0x505u
#define LAYOUT_PM1_EVT_PORT 0x600u /* 4 bytes: status, enable */
#define LAYOUT_PM1_CNT_PORT 0x604u /* 2 bytes */
#define LAYOUT_PM_TMR_PORT  0x608u /* 4 bytes, 24 of them bits that count at 3.579545 MHz */
#define LAYOUT_PCI_CF8_PORT 0xcf8u
#define LAYOUT_RESET_PORT   0xcf9u

#define LAYOUT_RESET_VALUE   0x06u /* what the guest writes to LAYOUT_RESET_PORT */
#define LAYOUT_S5_SLEEP_TYPE 5u    /* SLP_TYP of soft-off in PM1_CNT */

/* --- interrupts (GSIs 0 to 23 are the IOAPIC's pins) --- */

#define LAYOUT_COM1_GSI      4u
#define LAYOUT_SCI_GSI       9u /* level, active high */
#define LAYOUT_NB_GSIS       24u
#define LAYOUT_PCI_GSI_FIRST 16u
#define LAYOUT_PCI_NB_GSIS   4u
#define LAYOUT_PCI_SLOTS     32u

/*
 * layout_pci_gsi - GSI of an INTx pin (level, active high in the IOAPIC; 0 is INTA#) of a function
 * on bus 0: 16 to 19, neighbours apart. The DSDT's _PRT says the same.
 */
static inline uint32_t layout_pci_gsi(uint32_t device, uint32_t pin)
{
    return LAYOUT_PCI_GSI_FIRST + (device + pin) % LAYOUT_PCI_NB_GSIS;
}

/* layout_virtio_mmio_gpa - window of virtio-mmio device @index (< LAYOUT_VIRTIO_MMIO_MAX) */
static inline uint64_t layout_virtio_mmio_gpa(unsigned index)
{
    assert(index < LAYOUT_VIRTIO_MMIO_MAX);
    return LAYOUT_VIRTIO_MMIO_GPA + (uint64_t)index * LAYOUT_VIRTIO_MMIO_BYTES;
}

/*
 * layout_virtio_mmio_gsi - its interrupt (edge, not shared): the IOAPIC pins that PCI leaves, then
 * ISA lines that no device of this machine has
 */
static inline uint32_t layout_virtio_mmio_gsi(unsigned index)
{
    static const uint8_t gsi[LAYOUT_VIRTIO_MMIO_MAX] = {
        20, 21, 22, 23, 5, 6, 7, 10, 11, 12, 14, 15
    };

    assert(index < LAYOUT_VIRTIO_MMIO_MAX);
    return gsi[index];
}

/*
 * layout_mmio64_window - where 64-bit BARs go: the upper half of the guest physical address space
 * @phys_bits   width that the guest's CPUID states
 * Returns false, and an empty window, where RAM reaches into that half or the half lies below 4
 * GiB.
 */
static inline bool layout_mmio64_window(uint64_t ram_high_bytes, unsigned phys_bits,
                                        uint64_t *ret_gpa, uint64_t *ret_bytes)
{
    uint64_t half = phys_bits >= 32 && phys_bits <= 52 ? 1ull << (phys_bits - 1) : 0;
    bool fits = half > LAYOUT_RAM_HIGH_GPA && ram_high_bytes <= half - LAYOUT_RAM_HIGH_GPA;

    *ret_gpa = fits ? half : 0;
    *ret_bytes = fits ? half : 0;
    return fits;
}

#endif
