/*
 * acpi-dsdt - the DSDT's AML: what a guest cannot find out by asking the hardware
 *
 * Layer:     vmm, pure half; for acpi.c only
 * Threading: pure.
 * Lifetime:  writes into the caller's buffer; nothing is kept.
 * Spec:      ACPI 6.3 (chapters 5.6, 6, 19)
 */
#ifndef VMM_ACPI_DSDT_H
#define VMM_ACPI_DSDT_H

#include "vmm/acpi.h"

#define ACPI_BUS_BYTES (1u << 20) /* of ECAM for one bus */

/*
 * acpi_write_dsdt - the AML behind the table's header; @params have been checked
 * Returns its length, 0 when it does not fit.
 */
size_t acpi_write_dsdt(const AcpiParams *params, void *buf, size_t capacity_bytes) NONNULL(1, 2);

#endif
