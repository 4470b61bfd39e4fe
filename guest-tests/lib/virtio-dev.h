/*
 * Vdev - a virtio device, whatever the transport
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: the first processor; the doorbells that vdev_setup_queue() gives
 *            may be rung from any.
 * Lifetime:  vdev_open() once; reset and set up again as often as wanted.
 * Spec:      VIRTIO 1.2, 2.1, 2.4, 3.1, 4.1 and 4.2
 */
#ifndef GUEST_TESTS_LIB_VIRTIO_DEV_H
#define GUEST_TESTS_LIB_VIRTIO_DEV_H

#include "guest-tests/lib/virtio-mmio.h"
#include "guest-tests/lib/virtio-pci.h"
#include "guest-tests/lib/virtio.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum {
    VDEV_PCI,
    VDEV_MMIO,
} VdevTransport;

typedef struct {
    VdevTransport transport;
    VpciDevice pci;   /* one of the two */
    VmmioDevice mmio;
    volatile uint8_t *config; /* device-specific configuration */
    uint32_t config_bytes;
} Vdev;

/*
 * vdev_open - find the @nth virtio-blk device of a transport
 * @reassign  PCI: move its BARs first
 * Returns false if there are fewer.
 */
bool vdev_open(Vdev *d, VdevTransport transport, unsigned nth, bool reassign);

uint8_t vdev_get_status(Vdev *d);
void vdev_set_status(Vdev *d, uint8_t status);
/* vdev_reset - write 0 and wait until it reads back; false if it never does */
bool vdev_reset(Vdev *d);

uint64_t vdev_get_features(Vdev *d);
void vdev_set_features(Vdev *d, uint64_t features);

/* vdev_get_queue_size - the largest the device takes; 0 if no such queue */
uint16_t vdev_get_queue_size(Vdev *d, uint16_t index);

/*
 * vdev_setup_queue - tell the device where a queue's three areas are, enable it
 * Returns the doorbell: write the queue's index to it, vdev_doorbell_bytes() wide.
 */
volatile void *vdev_setup_queue(Vdev *d, uint16_t index, uint16_t size, uint64_t desc_gpa,
                                uint64_t driver_gpa, uint64_t device_gpa);
unsigned vdev_doorbell_bytes(const Vdev *d);
bool vdev_queue_is_enabled(Vdev *d, uint16_t index);

/* vdev_reset_queue - with VIRTIO_F_RING_RESET; false if it is never done */
bool vdev_reset_queue(Vdev *d, uint16_t index);

/*
 * vdev_enable_interrupts - have queue i raise vector vdev_vector(d, i), and the
 * configuration vdev_vector(d, nb_queues); the first processor takes them
 *
 * Devices of virtio-mmio have one vector for all.  Returns false if there are
 * not enough.
 */
bool vdev_enable_interrupts(Vdev *d, uint16_t nb_queues);
/* vdev_disable_interrupts - the ISR alone tells */
void vdev_disable_interrupts(Vdev *d);
uint8_t vdev_vector(const Vdev *d, uint16_t index);

/* vdev_take_isr - VDEV_ISR_..., which reading (mmio: acknowledging) clears */
#define VDEV_ISR_QUEUE  1
#define VDEV_ISR_CONFIG 2
uint8_t vdev_take_isr(Vdev *d);

/* vdev_registers_gpa - an address that is device memory for sure */
uint64_t vdev_registers_gpa(const Vdev *d);

uint32_t vdev_config_generation(Vdev *d);
uint8_t vdev_config8(Vdev *d, uint32_t offset);
uint16_t vdev_config16(Vdev *d, uint32_t offset);
uint32_t vdev_config32(Vdev *d, uint32_t offset);
uint64_t vdev_config64(Vdev *d, uint32_t offset); /* of one generation */

#endif
