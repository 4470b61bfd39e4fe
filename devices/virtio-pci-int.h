/*
 * virtio-pci-int.h - what the halves of virtio-pci share
 *
 * Layer:     devices/, private
 */
#ifndef DEVICES_VIRTIO_PCI_INT_H
#define DEVICES_VIRTIO_PCI_INT_H

#include "devices/virtio-pci.h"

struct VirtioPci {
    pthread_mutex_t irq_lock; /* protects the three fields below and every queue's interrupt.fd;
                                 taken from any thread, before the host's intx_lock */
    uint8_t isr;              /* VIRTIO_PCI_ISR_*: queue 1, config 2 */
    uint16_t config_vector;
    uint16_t queue_vector[VIRTIO_QUEUES_MAX];

    /* registers of the common configuration; main context */
    uint32_t device_feature_select;
    uint32_t driver_feature_select;
    uint16_t queue_select;
    uint64_t queues_in_reset; /* a bit a queue: queue_reset reads 1 */

    /* doorbells; main context */
    uint64_t notify_gpa;                      /* where the notify structure is; 0 = nowhere */
    int doorbell_fd[VIRTIO_QUEUES_MAX];       /* what the queue wants signalled; -1 = nothing */
    bool doorbell_attached[VIRTIO_QUEUES_MAX];

    /* set up */
    PciDevice pci;
    Msix msix;
    Platform *platform;
    PciHost *host;
    VirtioDevice *vdev;
    unsigned cfg_cap; /* offset of the PCI_CFG capability */
};

#define COMMON_BYTES 60 /* up to and including queue_reset */

/* --- virtio-pci-common.c; coroutine in main --- */

/* Any offset and length of 1, 2, 4 or 8; what lies outside reads 0. */
uint64_t virtio_pci_common_read(VirtioPci *vpci, uint64_t offset, unsigned len_bytes) NONNULL(1);
/* Fields take writes of their own size; 64-bit fields also of 8 bytes. Others are ignored. */
co_fn void virtio_pci_common_co_write(VirtioPci *vpci, uint64_t offset, unsigned len_bytes,
                                      uint64_t value) NONNULL(1);
/* Selectors, vectors, ISR and pending bits as after a device reset. */
void virtio_pci_common_reset(VirtioPci *vpci) NONNULL(1);

/* --- virtio-pci-irq.c --- */

void virtio_pci_irq_init(VirtioPci *vpci) NONNULL(1);
/* All vectors NO_VECTOR, ISR 0, INTx down, nothing pending. Main. */
void virtio_pci_irq_reset(VirtioPci *vpci) NONNULL(1);
/* Map or unmap (VIRTIO_MSI_NO_VECTOR); a vector that does not exist becomes NO_VECTOR. Main. */
void virtio_pci_irq_set_queue_vector(VirtioPci *vpci, unsigned index, uint16_t vector) NONNULL(1);
void virtio_pci_irq_set_config_vector(VirtioPci *vpci, uint16_t vector) NONNULL(1);
uint16_t virtio_pci_irq_queue_vector(VirtioPci *vpci, unsigned index) NONNULL(1);
uint16_t virtio_pci_irq_config_vector(VirtioPci *vpci) NONNULL(1);
/* MSI-X was enabled or disabled. vCPU. */
void virtio_pci_irq_msix_changed(VirtioPci *vpci) NONNULL(1);
/* Read and clear the ISR byte, INTx down. vCPU. */
uint8_t virtio_pci_irq_take_isr(VirtioPci *vpci) NONNULL(1);
/* VirtioTransportOps; any thread and main */
void virtio_pci_irq_notify_queue(void *opaque, unsigned index);
void virtio_pci_irq_notify_config(void *opaque);

#endif
