/*
 * VpciDevice - a modern virtio device on PCI
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: the first processor; the doorbell addresses that
 *            vpci_setup_queue() returns may be written from any.
 * Lifetime:  vpci_open() once; reset and set up again as often as wanted.
 * Spec:      VIRTIO 1.2, 3.1 and 4.1
 */
#ifndef GUEST_TESTS_LIB_VIRTIO_PCI_H
#define GUEST_TESTS_LIB_VIRTIO_PCI_H

#include "guest-tests/lib/pci.h"
#include "guest-tests/lib/virtio.h"

#include <stdbool.h>
#include <stdint.h>

#define VIRTIO_ID_BLOCK 2

typedef struct {
    PciFunction pci;
    uint64_t common_gpa;
    volatile uint8_t *common;
    volatile uint8_t *notify;
    volatile uint8_t *isr;
    volatile uint8_t *config;
    volatile uint8_t *msix_table; /* NULL if there is no MSI-X */
    uint32_t notify_multiplier;
    uint32_t config_bytes;
} VpciDevice;

/*
 * vpci_open - find the @nth virtio block function and map its structures
 * @reassign  move its BARs first
 * Returns false if there is none with the modern interface.
 */
bool vpci_open(VpciDevice *d, unsigned nth, bool reassign);

uint8_t vpci_get_status(VpciDevice *d);
void vpci_set_status(VpciDevice *d, uint8_t status);

/* vpci_reset - write 0 and wait until it reads back; false if it never does */
bool vpci_reset(VpciDevice *d);

uint64_t vpci_get_features(VpciDevice *d);
void vpci_set_features(VpciDevice *d, uint64_t features);
uint16_t vpci_get_nb_queues(VpciDevice *d);

/* vpci_get_queue_size - the largest the device takes; 0 if no such queue */
uint16_t vpci_get_queue_size(VpciDevice *d, uint16_t index);

/*
 * vpci_setup_queue - tell the device where a queue is and enable it
 * Returns the doorbell: write the queue's index to it, 16 bits wide.
 */
volatile void *vpci_setup_queue(VpciDevice *d, uint16_t index, uint16_t size,
                                uint64_t desc_gpa, uint64_t avail_gpa,
                                uint64_t used_gpa);

/*
 * vpci_enable_interrupts - give each queue an MSI-X vector of its own
 *
 * The messages go to the local APIC of the first processor, which is not
 * switched on and drops them: all but the last step of an interrupt is done.
 * Returns false if there is no MSI-X or a vector is refused.
 */
bool vpci_enable_interrupts(VpciDevice *d, uint16_t nb_queues);

/* vpci_disable_interrupts - switch MSI-X off; the ISR byte tells instead */
void vpci_disable_interrupts(VpciDevice *d);

uint8_t vpci_config8(VpciDevice *d, uint32_t offset);
uint16_t vpci_config16(VpciDevice *d, uint32_t offset);
uint32_t vpci_config32(VpciDevice *d, uint32_t offset);
uint64_t vpci_config64(VpciDevice *d, uint32_t offset);

#endif
