/*
 * virtio-pci-irq.c - how a virtio-pci function interrupts: MSI-X vectors, or ISR byte and INTx
 *
 * 1. With MSI-X enabled, a queue with a vector is signalled through the vector's eventfd by whoever
 *    pushed to it (vq->interrupt.fd), without coming here. Without a vector: no interrupt.
 * 2. With MSI-X disabled interrupt.fd is -1; the ISR bit is set and INTA# raised. Reading the ISR
 *    clears it and lowers INTA#. Both are done under irq_lock, or a read between the two halves of
 *    a notification would leave the bit set and the line down.
 * 3. interrupt.fd follows from (enabled, vector): both changes recompute it under irq_lock, so the
 *    later one sees the other's value.
 * 4. A queue that saw fd -1 just before it got a vector is sent its interrupt from here.
 */
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>

#include "devices/virtio-pci-int.h"

#define ISR_QUEUE  0x1
#define ISR_CONFIG VIRTIO_PCI_ISR_CONFIG

/* irq_lock held */
static void update_queue_fd(VirtioPci *vpci, unsigned index)
{
    int fd = -1;

    if (msix_enabled(&vpci->msix)) {
        fd = msix_vector_fd(&vpci->msix, vpci->queue_vector[index]);
    }
    atomic_store(&vpci->vdev->queues[index].interrupt.fd, fd);
}

/* irq_lock held */
static void raise_intx(VirtioPci *vpci, uint8_t isr_bit)
{
    vpci->isr |= isr_bit;
    pci_set_intx(&vpci->pci, true);
}

static uint16_t existing_vector(const VirtioPci *vpci, uint16_t vector)
{
    return msix_vector_fd(&vpci->msix, vector) >= 0 ? vector : VIRTIO_MSI_NO_VECTOR;
}

void virtio_pci_irq_init(VirtioPci *vpci)
{
    pthread_mutex_init(&vpci->irq_lock, NULL);
    vpci->config_vector = VIRTIO_MSI_NO_VECTOR;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        vpci->queue_vector[i] = VIRTIO_MSI_NO_VECTOR;
    }
}

void virtio_pci_irq_reset(VirtioPci *vpci)
{
    pthread_mutex_lock(&vpci->irq_lock);
    vpci->config_vector = VIRTIO_MSI_NO_VECTOR;
    for (unsigned i = 0; i < vpci->vdev->nb_queues; i++) {
        vpci->queue_vector[i] = VIRTIO_MSI_NO_VECTOR;
        update_queue_fd(vpci, i);
    }
    vpci->isr = 0;
    pci_set_intx(&vpci->pci, false);
    pthread_mutex_unlock(&vpci->irq_lock);
    msix_clear_pending(&vpci->msix);
}

void virtio_pci_irq_set_queue_vector(VirtioPci *vpci, unsigned index, uint16_t vector)
{
    pthread_mutex_lock(&vpci->irq_lock);
    vpci->queue_vector[index] = existing_vector(vpci, vector);
    update_queue_fd(vpci, index);
    pthread_mutex_unlock(&vpci->irq_lock);
}

void virtio_pci_irq_set_config_vector(VirtioPci *vpci, uint16_t vector)
{
    pthread_mutex_lock(&vpci->irq_lock);
    vpci->config_vector = existing_vector(vpci, vector);
    pthread_mutex_unlock(&vpci->irq_lock);
}

uint16_t virtio_pci_irq_queue_vector(VirtioPci *vpci, unsigned index)
{
    uint16_t vector;

    pthread_mutex_lock(&vpci->irq_lock);
    vector = vpci->queue_vector[index];
    pthread_mutex_unlock(&vpci->irq_lock);
    return vector;
}

uint16_t virtio_pci_irq_config_vector(VirtioPci *vpci)
{
    uint16_t vector;

    pthread_mutex_lock(&vpci->irq_lock);
    vector = vpci->config_vector;
    pthread_mutex_unlock(&vpci->irq_lock);
    return vector;
}

void virtio_pci_irq_msix_changed(VirtioPci *vpci)
{
    pthread_mutex_lock(&vpci->irq_lock);
    for (unsigned i = 0; i < vpci->vdev->nb_queues; i++) {
        update_queue_fd(vpci, i);
    }
    if (msix_enabled(&vpci->msix)) {
        pci_set_intx(&vpci->pci, false);
    } else if (vpci->isr) {
        pci_set_intx(&vpci->pci, true);
    }
    pthread_mutex_unlock(&vpci->irq_lock);
}

uint8_t virtio_pci_irq_take_isr(VirtioPci *vpci)
{
    uint8_t isr;

    pthread_mutex_lock(&vpci->irq_lock);
    isr = vpci->isr;
    vpci->isr = 0;
    pci_set_intx(&vpci->pci, false);
    pthread_mutex_unlock(&vpci->irq_lock);
    return isr;
}

void virtio_pci_irq_notify_queue(void *opaque, unsigned index)
{
    VirtioPci *vpci = opaque;

    pthread_mutex_lock(&vpci->irq_lock);
    if (msix_enabled(&vpci->msix)) {
        msix_signal(&vpci->msix, vpci->queue_vector[index]);
    } else {
        raise_intx(vpci, ISR_QUEUE);
    }
    pthread_mutex_unlock(&vpci->irq_lock);
}

void virtio_pci_irq_notify_config(void *opaque)
{
    VirtioPci *vpci = opaque;

    pthread_mutex_lock(&vpci->irq_lock);
    if (msix_enabled(&vpci->msix)) {
        vpci->isr |= ISR_CONFIG; /* with MSI-X, too, and before the notification (4.1.4.5.1) */
        msix_signal(&vpci->msix, vpci->config_vector);
    } else {
        raise_intx(vpci, ISR_CONFIG);
    }
    pthread_mutex_unlock(&vpci->irq_lock);
}
