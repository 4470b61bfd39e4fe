/*
 * VirtioMmio - a VirtioDevice behind the virtio-mmio (version 2) register window
 *
 * Layer:     devices/
 * Threading: as virtio-pci: InterruptStatus is atomic, other registers run in the main context.
 * Lifetime:  virtio_mmio_create() .. virtio_mmio_destroy(); borrows the VirtioDevice.
 * Spec:      VIRTIO 1.2 section 4.2
 */
#ifndef DEVICES_VIRTIO_MMIO_H
#define DEVICES_VIRTIO_MMIO_H

#include "devices/platform.h"
#include "virtio/virtio-device.h"

#define VIRTIO_MMIO_BYTES 0x200

typedef struct VirtioMmio VirtioMmio;

/* @gsi is edge-triggered. */
VirtioMmio *virtio_mmio_create(Platform *platform, uint64_t gpa, unsigned gsi, VirtioDevice *vdev,
                               Error *err) NONNULL(1, 4) WARN_UNUSED;
void virtio_mmio_destroy(VirtioMmio *vmmio);
co_fn void virtio_mmio_co_reset(VirtioMmio *vmmio) NONNULL(1);

#endif
