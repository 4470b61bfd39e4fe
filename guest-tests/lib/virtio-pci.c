/*
 * VpciDevice - a modern virtio device on PCI
 */
#include "guest-tests/lib/virtio-pci.h"

#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/irq.h"
#include "guest-tests/lib/mem.h"

#include <stddef.h>

#define VIRTIO_VENDOR           0x1af4
#define VIRTIO_BLK_TRANSITIONAL 0x1001
#define VIRTIO_MODERN_BASE      0x1040

#define MSIX_CONTROL        2
#define MSIX_TABLE          4
#define MSIX_PBA            8
#define MSIX_CONTROL_ENABLE 0x8000
#define MSIX_CONTROL_MASK   0x4000
#define MSIX_SIZE_MASK      0x07ff
#define MSIX_BIR_MASK       7
#define MSIX_ENTRY_BYTES    16
#define MSIX_ENTRY_DATA     8
#define MSIX_ENTRY_CONTROL  12
#define MSIX_ENTRY_MASKED   1

static bool is_block(PciFunction f)
{
    uint16_t id = pci_read16(f, PCI_DEVICE_ID);

    return pci_read16(f, PCI_VENDOR_ID) == VIRTIO_VENDOR &&
           (id == VIRTIO_BLK_TRANSITIONAL ||
            id == VIRTIO_MODERN_BASE + VIRTIO_ID_BLOCK);
}

static volatile uint8_t *map(PciFunction f, uint8_t bar, uint32_t offset)
{
    uint64_t gpa = bar < PCI_NB_BARS ? pci_bar_gpa(f, bar) : 0;

    return gpa ? mem_map_device(gpa + offset) : NULL;
}

static void use_cap(VpciDevice *d, unsigned cap)
{
    uint8_t bar = pci_read8(d->pci, cap + VIRTIO_PCI_CAP_BAR);
    uint32_t offset = pci_read32(d->pci, cap + VIRTIO_PCI_CAP_OFFSET);
    volatile uint8_t *at = map(d->pci, bar, offset);

    switch (pci_read8(d->pci, cap + VIRTIO_PCI_CAP_TYPE)) {
    case VIRTIO_PCI_CAP_COMMON_CFG:
        d->common = at;
        d->common_bar = bar;
        d->common_offset = offset;
        d->common_gpa = pci_bar_gpa(d->pci, bar) + offset;
        break;
    case VIRTIO_PCI_CAP_NOTIFY_CFG:
        d->notify = at;
        d->notify_multiplier =
            pci_read32(d->pci, cap + VIRTIO_PCI_CAP_NOTIFY_MULT);
        break;
    case VIRTIO_PCI_CAP_ISR_CFG:
        d->isr = at;
        break;
    case VIRTIO_PCI_CAP_DEVICE_CFG:
        d->config = at;
        d->config_bytes = pci_read32(d->pci, cap + VIRTIO_PCI_CAP_LENGTH);
        break;
    default:
        break;
    }
}

bool vpci_open(VpciDevice *d, unsigned nth, bool reassign)
{
    *d = (VpciDevice){ 0 };
    if (!pci_find(is_block, nth, &d->pci)) {
        return false;
    }
    pci_enable(d->pci, reassign);
    for (unsigned cap = pci_find_cap(d->pci, PCI_CAP_VENDOR, 0); cap;
         cap = pci_find_cap(d->pci, PCI_CAP_VENDOR, cap)) {
        use_cap(d, cap);
    }

    unsigned msix = pci_find_cap(d->pci, PCI_CAP_MSIX, 0);
    if (msix) {
        uint32_t table = pci_read32(d->pci, msix + MSIX_TABLE);

        uint32_t pba = pci_read32(d->pci, msix + MSIX_PBA);

        d->msix_table = map(d->pci, table & MSIX_BIR_MASK,
                            table & ~(uint32_t)MSIX_BIR_MASK);
        d->msix_pba = map(d->pci, pba & MSIX_BIR_MASK, pba & ~(uint32_t)MSIX_BIR_MASK);
        d->nb_vectors =
            (uint16_t)((pci_read16(d->pci, msix + MSIX_CONTROL) & MSIX_SIZE_MASK) + 1);
    }
    return d->common && d->notify && d->isr && d->config;
}

uint16_t vpci_get_nb_queues(VpciDevice *d)
{
    return mmio_read16(d->common + VIRTIO_PCI_NUM_QUEUES);
}

static void write_gpa(VpciDevice *d, unsigned offset, uint64_t gpa)
{
    mmio_write32(d->common + offset, (uint32_t)gpa);
    mmio_write32(d->common + offset + 4, (uint32_t)(gpa >> 32));
}

volatile void *vpci_setup_queue(VpciDevice *d, uint16_t index, uint16_t size,
                                uint64_t desc_gpa, uint64_t avail_gpa,
                                uint64_t used_gpa)
{
    uint16_t notify_off;

    mmio_write16(d->common + VIRTIO_PCI_QUEUE_SELECT, index);
    mmio_write16(d->common + VIRTIO_PCI_QUEUE_SIZE, size);
    write_gpa(d, VIRTIO_PCI_QUEUE_DESC, desc_gpa);
    write_gpa(d, VIRTIO_PCI_QUEUE_DRIVER, avail_gpa);
    write_gpa(d, VIRTIO_PCI_QUEUE_DEVICE, used_gpa);
    notify_off = mmio_read16(d->common + VIRTIO_PCI_QUEUE_NOTIFY_OFF);
    mmio_write16(d->common + VIRTIO_PCI_QUEUE_ENABLE, 1);
    return d->notify + (uint64_t)notify_off * d->notify_multiplier;
}

void vpci_set_message(VpciDevice *d, unsigned i, uint32_t address, uint32_t data, bool masked)
{
    volatile uint8_t *entry = d->msix_table + i * MSIX_ENTRY_BYTES;

    mmio_write32(entry + MSIX_ENTRY_CONTROL, MSIX_ENTRY_MASKED);
    mmio_write32(entry, address);
    mmio_write32(entry + 4, 0);
    mmio_write32(entry + MSIX_ENTRY_DATA, data);
    mmio_write32(entry + MSIX_ENTRY_CONTROL, masked ? MSIX_ENTRY_MASKED : 0);
}

bool vpci_is_pending(VpciDevice *d, unsigned i)
{
    return mmio_read32(d->msix_pba + i / 32 * 4) >> i % 32 & 1;
}

void vpci_set_msix(VpciDevice *d, bool on, bool mask_all)
{
    unsigned cap = pci_find_cap(d->pci, PCI_CAP_MSIX, 0);

    if (cap) {
        pci_write16(d->pci, cap + MSIX_CONTROL,
                    (uint16_t)((on ? MSIX_CONTROL_ENABLE : 0) |
                               (mask_all ? MSIX_CONTROL_MASK : 0)));
    }
}

void vpci_disable_interrupts(VpciDevice *d)
{
    vpci_set_msix(d, false, false);
}

bool vpci_enable_interrupts(VpciDevice *d, uint16_t nb_queues)
{
    if (!d->msix_table || nb_queues >= d->nb_vectors) {
        return false;
    }
    vpci_set_msix(d, true, false);
    for (uint16_t i = 0; i <= nb_queues; i++) {
        vpci_set_message(d, i, IRQ_MSI_ADDRESS, d->first_vector + i, false);
    }
    for (uint16_t i = 0; i < nb_queues; i++) {
        mmio_write16(d->common + VIRTIO_PCI_QUEUE_SELECT, i);
        mmio_write16(d->common + VIRTIO_PCI_QUEUE_VECTOR, i);
        if (mmio_read16(d->common + VIRTIO_PCI_QUEUE_VECTOR) != i) {
            return false;
        }
    }
    mmio_write16(d->common + VIRTIO_PCI_CONFIG_VECTOR, nb_queues);
    return mmio_read16(d->common + VIRTIO_PCI_CONFIG_VECTOR) == nb_queues;
}
