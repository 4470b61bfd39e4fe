/*
 * Acpi - the tables, as far as a payload looks into them
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: any processor.
 * Lifetime:  tables stay where firmware or the VMM put them.
 * Spec:      ACPI 6.4, 5.2; 6.4.3 and 20.2 for what is searched in the DSDT
 */
#ifndef GUEST_TESTS_LIB_ACPI_H
#define GUEST_TESTS_LIB_ACPI_H

#include <stdbool.h>
#include <stdint.h>

/* A device of _HID LNRO0005, as Linux finds it. */
typedef struct {
    uint64_t gpa;
    uint32_t size_bytes;
    uint32_t gsi;
    bool level; /* else edge-triggered */
} AcpiVirtioMmio;

/* The fixed hardware, as far as it lies in I/O ports. */
typedef struct {
    uint16_t status_port; /* PM1a; 2 bytes each */
    uint16_t enable_port;
    uint16_t control_port;
    bool power_button; /* a fixed one */
    uint32_t sci_gsi;
    bool sci_level; /* else edge-triggered */
} AcpiFixed;

/* acpi_is_sound - whether root pointer, XSDT and FADT are there and sum to 0 */
bool acpi_is_sound(void);

/* acpi_reset_machine - write the reset register that the FADT names, if any */
void acpi_reset_machine(void);

/* acpi_find_fixed - false if there is none, or too little of it */
bool acpi_find_fixed(AcpiFixed *ret_fixed);

/* acpi_enable - have events raise the SCI, where firmware has left them to SMIs;
 * returns whether they do */
bool acpi_enable(const AcpiFixed *fixed);

/* acpi_find_virtio_mmio - the @nth device; false if there are fewer */
bool acpi_find_virtio_mmio(unsigned nth, AcpiVirtioMmio *ret_device);

#endif
