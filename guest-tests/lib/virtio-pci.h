/*
 * VpciDevice - a modern virtio device on PCI
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: the first processor.
 * Lifetime:  vpci_open() once.  Drivers come here through virtio-dev.h.
 * Spec:      VIRTIO 1.2, 4.1; PCI Local Bus 3.0, 6.8.2 (MSI-X)
 */
#ifndef GUEST_TESTS_LIB_VIRTIO_PCI_H
#define GUEST_TESTS_LIB_VIRTIO_PCI_H

#include "guest-tests/lib/pci.h"
#include "guest-tests/lib/virtio.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    PciFunction pci;
    uint64_t common_gpa;
    uint32_t common_bar, common_offset;
    volatile uint8_t *common;
    volatile uint8_t *notify;
    volatile uint8_t *isr;
    volatile uint8_t *config;
    volatile uint8_t *msix_table; /* NULL if there is no MSI-X */
    volatile uint8_t *msix_pba;
    uint16_t nb_vectors;
    uint8_t first_vector; /* of the processor; entry i raises first_vector + i */
    uint32_t notify_multiplier;
    uint32_t config_bytes;
} VpciDevice;

/*
 * vpci_open - find the @nth virtio block function and map its structures
 * @reassign  move its BARs first
 * Returns false if there is none with the modern interface.
 */
bool vpci_open(VpciDevice *d, unsigned nth, bool reassign);

/*
 * vpci_setup_queue - tell the device where a queue is and enable it
 * Returns the doorbell: write the queue's index to it, 16 bits wide.
 */
volatile void *vpci_setup_queue(VpciDevice *d, uint16_t index, uint16_t size,
                                uint64_t desc_gpa, uint64_t avail_gpa,
                                uint64_t used_gpa);

/*
 * vpci_enable_interrupts - queue i raises vector first_vector + i, and the
 * configuration first_vector + nb_queues, on the first processor
 * Returns false if there is no MSI-X or a vector is refused.
 */
bool vpci_enable_interrupts(VpciDevice *d, uint16_t nb_queues);

/* vpci_disable_interrupts - switch MSI-X off; the ISR byte tells instead */
void vpci_disable_interrupts(VpciDevice *d);

/* vpci_set_message - fill entry @i of the MSI-X table, masked or not */
void vpci_set_message(VpciDevice *d, unsigned i, uint32_t address, uint32_t data, bool masked);
/* vpci_is_pending - the pending bit of entry @i */
bool vpci_is_pending(VpciDevice *d, unsigned i);
/* vpci_set_msix - MSI-X on or off, all entries masked or not */
void vpci_set_msix(VpciDevice *d, bool on, bool mask_all);
uint16_t vpci_get_nb_queues(VpciDevice *d);

#endif
