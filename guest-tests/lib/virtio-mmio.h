/*
 * VmmioDevice - a virtio device behind a window of registers
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: the first processor.
 * Lifetime:  vmmio_open() once.  Drivers come here through virtio-dev.h.
 * Spec:      VIRTIO 1.2, 4.2
 */
#ifndef GUEST_TESTS_LIB_VIRTIO_MMIO_H
#define GUEST_TESTS_LIB_VIRTIO_MMIO_H

#include "guest-tests/lib/acpi.h"

#include <stdbool.h>
#include <stdint.h>

#define VMMIO_MAGIC              0x000
#define VMMIO_VERSION            0x004
#define VMMIO_DEVICE_ID          0x008
#define VMMIO_DEVICE_FEATURE     0x010
#define VMMIO_DEVICE_FEATURE_SEL 0x014
#define VMMIO_DRIVER_FEATURE     0x020
#define VMMIO_DRIVER_FEATURE_SEL 0x024
#define VMMIO_QUEUE_SEL          0x030
#define VMMIO_QUEUE_NUM_MAX      0x034
#define VMMIO_QUEUE_NUM          0x038
#define VMMIO_QUEUE_READY        0x044
#define VMMIO_QUEUE_NOTIFY       0x050
#define VMMIO_INTERRUPT_STATUS   0x060
#define VMMIO_INTERRUPT_ACK      0x064
#define VMMIO_STATUS             0x070
#define VMMIO_QUEUE_DESC         0x080
#define VMMIO_QUEUE_DRIVER       0x090
#define VMMIO_QUEUE_DEVICE       0x0a0
#define VMMIO_QUEUE_RESET        0x0c0
#define VMMIO_CONFIG_GENERATION  0x0fc
#define VMMIO_CONFIG             0x100

typedef struct {
    AcpiVirtioMmio where;
    volatile uint8_t *regs;
    uint8_t vector;
} VmmioDevice;

/* vmmio_open - the @nth block device that ACPI names; false if there are fewer */
bool vmmio_open(VmmioDevice *d, unsigned nth);

uint32_t vmmio_read(VmmioDevice *d, uint32_t offset);
void vmmio_write(VmmioDevice *d, uint32_t offset, uint32_t value);
void vmmio_write_gpa(VmmioDevice *d, uint32_t offset, uint64_t gpa);

/* vmmio_enable_interrupts - its line raises @vector; the handler acknowledges */
void vmmio_enable_interrupts(VmmioDevice *d, uint8_t vector);
void vmmio_disable_interrupts(VmmioDevice *d);

#endif
