/*
 * virtio-pci-common.c - the common configuration structure (VIRTIO 1.2 section 4.1.4.3)
 *
 * 1. Reads have no side effect, so they are answered from an image of the whole structure, whatever
 *    their offset and length.
 * 2. The fields of a queue that does not exist read 0 (its vector: NO_VECTOR) and are not written.
 * 3. queue_reset reads 1 until the ring is no longer used, then 0, as queue_enable does.
 */
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>

#include "devices/pci-int.h"
#include "devices/virtio-pci-int.h"

/* Size of the field that starts at each offset, 0 = none starts there. */
static const uint8_t field_bytes[COMMON_BYTES] = {
    [VIRTIO_PCI_COMMON_DFSELECT] = 4,  [VIRTIO_PCI_COMMON_DF] = 4,
    [VIRTIO_PCI_COMMON_GFSELECT] = 4,  [VIRTIO_PCI_COMMON_GF] = 4,
    [VIRTIO_PCI_COMMON_MSIX] = 2,      [VIRTIO_PCI_COMMON_NUMQ] = 2,
    [VIRTIO_PCI_COMMON_STATUS] = 1,    [VIRTIO_PCI_COMMON_CFGGENERATION] = 1,
    [VIRTIO_PCI_COMMON_Q_SELECT] = 2,  [VIRTIO_PCI_COMMON_Q_SIZE] = 2,
    [VIRTIO_PCI_COMMON_Q_MSIX] = 2,    [VIRTIO_PCI_COMMON_Q_ENABLE] = 2,
    [VIRTIO_PCI_COMMON_Q_NOFF] = 2,    [VIRTIO_PCI_COMMON_Q_DESCLO] = 4,
    [VIRTIO_PCI_COMMON_Q_DESCHI] = 4,  [VIRTIO_PCI_COMMON_Q_AVAILLO] = 4,
    [VIRTIO_PCI_COMMON_Q_AVAILHI] = 4, [VIRTIO_PCI_COMMON_Q_USEDLO] = 4,
    [VIRTIO_PCI_COMMON_Q_USEDHI] = 4,  [VIRTIO_PCI_COMMON_Q_NDATA] = 2,
    [VIRTIO_PCI_COMMON_Q_RESET] = 2,
};

/* --- reads --- */

static void image_queue(VirtioPci *vpci, uint8_t *image)
{
    VirtQueue *vq = vdev_queue(vpci->vdev, vpci->queue_select);

    if (!vq) {
        pci_config_set16(image, VIRTIO_PCI_COMMON_Q_MSIX, VIRTIO_MSI_NO_VECTOR);
        return;
    }
    pci_config_set16(image, VIRTIO_PCI_COMMON_Q_SIZE, vq->cfg_size);
    pci_config_set16(image, VIRTIO_PCI_COMMON_Q_MSIX, virtio_pci_irq_queue_vector(vpci, vq->index));
    pci_config_set16(image, VIRTIO_PCI_COMMON_Q_ENABLE, vq->cfg_enabled);
    pci_config_set16(image, VIRTIO_PCI_COMMON_Q_NOFF, (uint16_t)vq->index);
    for (VqRingPart part = VQ_RING_DESC; part <= VQ_RING_USED; part++) {
        unsigned offset = VIRTIO_PCI_COMMON_Q_DESCLO + 8 * part;

        pci_config_set32(image, offset, vdev_queue_address(vq, part, false));
        pci_config_set32(image, offset + 4, vdev_queue_address(vq, part, true));
    }
    pci_config_set16(image, VIRTIO_PCI_COMMON_Q_NDATA, (uint16_t)vq->index);
    pci_config_set16(image, VIRTIO_PCI_COMMON_Q_RESET, vpci->queues_in_reset >> vq->index & 1);
}

static void image_device(VirtioPci *vpci, uint8_t *image)
{
    VirtioDevice *vdev = vpci->vdev;

    pci_config_set32(image, VIRTIO_PCI_COMMON_DFSELECT, vpci->device_feature_select);
    pci_config_set32(image, VIRTIO_PCI_COMMON_DF,
                     vdev_features_read(vdev, vpci->device_feature_select));
    pci_config_set32(image, VIRTIO_PCI_COMMON_GFSELECT, vpci->driver_feature_select);
    pci_config_set32(image, VIRTIO_PCI_COMMON_GF,
                     vdev_driver_features_read(vdev, vpci->driver_feature_select));
    pci_config_set16(image, VIRTIO_PCI_COMMON_MSIX, virtio_pci_irq_config_vector(vpci));
    pci_config_set16(image, VIRTIO_PCI_COMMON_NUMQ, (uint16_t)vdev->nb_queues);
    image[VIRTIO_PCI_COMMON_STATUS] = vdev_status(vdev);
    image[VIRTIO_PCI_COMMON_CFGGENERATION] = (uint8_t)vdev->config_generation;
    pci_config_set16(image, VIRTIO_PCI_COMMON_Q_SELECT, vpci->queue_select);
}

uint64_t virtio_pci_common_read(VirtioPci *vpci, uint64_t offset, unsigned len_bytes)
{
    uint8_t image[COMMON_BYTES + 8] = { 0 };
    le64 value = le64_make(0);

    if (offset >= COMMON_BYTES) {
        return 0;
    }
    image_device(vpci, image);
    image_queue(vpci, image);
    memcpy(&value, &image[offset], len_bytes);
    return le64_get(value);
}

/* --- writes --- */

static co_fn void reset_queue(VirtioPci *vpci, VirtQueue *vq)
{
    uint64_t bit = 1ull << vq->index;

    if (!vdev_has_feature(vpci->vdev, VIRTIO_F_RING_RESET)) {
        return;
    }
    vpci->queues_in_reset |= bit;
    vdev_co_queue_reset(vpci->vdev, vq);
    vpci->queues_in_reset &= ~bit;
    virtio_pci_irq_set_queue_vector(vpci, vq->index, VIRTIO_MSI_NO_VECTOR);
}

static co_fn void write_queue_field(VirtioPci *vpci, unsigned offset, uint32_t value)
{
    VirtioDevice *vdev = vpci->vdev;
    VirtQueue *vq = vdev_queue(vdev, vpci->queue_select);

    if (!vq) {
        return;
    }
    switch (offset) {
    case VIRTIO_PCI_COMMON_Q_SIZE:
        vdev_queue_set_size(vdev, vq, (uint16_t)value);
        break;
    case VIRTIO_PCI_COMMON_Q_MSIX:
        virtio_pci_irq_set_queue_vector(vpci, vq->index, (uint16_t)value);
        break;
    case VIRTIO_PCI_COMMON_Q_ENABLE:
        if (value == 1) {
            vdev_co_queue_enable(vdev, vq);
        }
        break;
    case VIRTIO_PCI_COMMON_Q_RESET:
        if (value == 1) {
            reset_queue(vpci, vq);
        }
        break;
    case VIRTIO_PCI_COMMON_Q_DESCLO ... VIRTIO_PCI_COMMON_Q_USEDHI:
        vdev_queue_set_address(vdev, vq, (offset - VIRTIO_PCI_COMMON_Q_DESCLO) / 8, offset & 4,
                               value);
        break;
    }
}

static co_fn void write_status(VirtioPci *vpci, uint8_t status)
{
    vdev_co_set_status(vpci->vdev, status);
    if (status == 0) {
        virtio_pci_common_reset(vpci);
    }
}

static co_fn void write_field(VirtioPci *vpci, unsigned offset, uint32_t value)
{
    switch (offset) {
    case VIRTIO_PCI_COMMON_DFSELECT:
        vpci->device_feature_select = value;
        break;
    case VIRTIO_PCI_COMMON_GFSELECT:
        vpci->driver_feature_select = value;
        break;
    case VIRTIO_PCI_COMMON_GF:
        vdev_co_driver_features_write(vpci->vdev, vpci->driver_feature_select, value);
        break;
    case VIRTIO_PCI_COMMON_MSIX:
        virtio_pci_irq_set_config_vector(vpci, (uint16_t)value);
        break;
    case VIRTIO_PCI_COMMON_STATUS:
        write_status(vpci, (uint8_t)value);
        break;
    case VIRTIO_PCI_COMMON_Q_SELECT:
        vpci->queue_select = (uint16_t)value;
        break;
    default:
        write_queue_field(vpci, offset, value);
        break;
    }
}

static bool is_wide_field(uint64_t offset)
{
    return offset >= VIRTIO_PCI_COMMON_Q_DESCLO && offset <= VIRTIO_PCI_COMMON_Q_USEDLO &&
           offset % 8 == 0;
}

void virtio_pci_common_co_write(VirtioPci *vpci, uint64_t offset, unsigned len_bytes,
                                uint64_t value)
{
    if (len_bytes == 8 && is_wide_field(offset)) {
        write_field(vpci, (unsigned)offset, (uint32_t)value);
        write_field(vpci, (unsigned)offset + 4, (uint32_t)(value >> 32));
    } else if (offset < COMMON_BYTES && field_bytes[offset] == len_bytes) {
        write_field(vpci, (unsigned)offset, (uint32_t)value);
    }
}

void virtio_pci_common_reset(VirtioPci *vpci)
{
    vpci->device_feature_select = 0;
    vpci->driver_feature_select = 0;
    vpci->queue_select = 0;
    virtio_pci_irq_reset(vpci);
}
