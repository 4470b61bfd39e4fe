/*
 * VirtioPci - a VirtioDevice as a modern (VIRTIO 1.x) PCI function
 *
 * Layer:     devices/
 * Threading: register accesses come from vCPU threads. The ISR byte is atomic and answered there;
 *            everything else runs as a coroutine in the main context (aio_co_run_sync), which
 *            serialises it with all other control. Data-path kicks never come here: each queue
 *            has a doorbell (ioeventfd) of its own while the device runs.
 * Lifetime:  virtio_pci_create() .. virtio_pci_destroy(); borrows the VirtioDevice, which must have
 *            been reset before the destroy.
 * Spec:      VIRTIO 1.2 section 4.1
 */
#ifndef DEVICES_VIRTIO_PCI_H
#define DEVICES_VIRTIO_PCI_H

#include "devices/msix.h"
#include "virtio/virtio-device.h"

typedef struct VirtioPci VirtioPci;

VirtioPci *virtio_pci_create(Platform *platform, PciHost *host, unsigned slot, VirtioDevice *vdev,
                             Error *err) NONNULL(1, 2, 4) WARN_UNUSED;
void virtio_pci_destroy(VirtioPci *vpci);
/* Device, MSI-X and registers back to power-on. Coroutine in main, vCPUs stopped. */
co_fn void virtio_pci_co_reset(VirtioPci *vpci) NONNULL(1);

#endif
