/*
 * acpi - the ACPI tables that tell the guest what machine this is
 *
 * Layer:     vmm, pure half (io/base only; no KVM)
 * Threading: the main thread, before the first vCPU runs.
 * Lifetime:  acpi_build() writes into guest RAM; nothing is kept.
 * Spec:      ACPI 6.3 (chapters 5, 6, 19, 20); PCI Firmware 3.2 section 4.1 (MCFG)
 *
 * What the machine must emulate to match: PM1_CNT reads with SCI_EN set (there is no SMI_CMD, the
 * machine is always in ACPI mode), a fixed power button that raises the SCI at LAYOUT_SCI_GSI, no
 * sleep button, a PM timer of which 24 bits count, no GPE block, 8259 interrupt controllers besides
 * the IOAPIC.
 */
#ifndef VMM_ACPI_H
#define VMM_ACPI_H

#include "io/base/error.h"
#include "vmm/guest-image.h"

#define ACPI_MAX_CPUS 64

/* A virtio-mmio device: \_SB.VRnn, LNRO0005, edge-triggered interrupt */
typedef struct AcpiMmioDevice {
    uint32_t gpa;
    uint32_t window_bytes;
    uint32_t gsi;
} AcpiMmioDevice;

typedef struct AcpiParams {
    unsigned nb_cpus; /* 1 to ACPI_MAX_CPUS; APIC id = index */
    uint32_t ecam_gpa;
    uint32_t ecam_bytes; /* 1 MiB a bus, from bus 0 on; at most 256 MiB */
    uint32_t mmio32_gpa; /* windows for PCI BARs */
    uint32_t mmio32_bytes;
    uint64_t mmio64_gpa;
    uint64_t mmio64_bytes;              /* 0: no 64-bit window */
    const AcpiMmioDevice *mmio_devices; /* borrowed for the call */
    unsigned nb_mmio_devices;           /* at most LAYOUT_VIRTIO_MMIO_MAX */
} AcpiParams;

/* acpi_params_init - the windows of layout.h, no 64-bit window, no virtio-mmio device */
void acpi_params_init(AcpiParams *params, unsigned nb_cpus) NONNULL(1);

/*
 * acpi_build - write all tables to LAYOUT_ACPI_GPA
 * @ret_rsdp_gpa  for LoaderParams.rsdp_gpa
 * Errors: -EINVAL a parameter out of range; -ENOSPC the tables do not fit in their area.
 */
int acpi_build(const AcpiParams *params, const GuestImage *image, uint64_t *ret_rsdp_gpa,
               Error *err) NONNULL(1, 2, 3) WARN_UNUSED;

#endif
