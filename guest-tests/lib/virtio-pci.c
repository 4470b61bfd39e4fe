/*
 * VpciDevice - a modern virtio device on PCI
 */
#include "guest-tests/lib/virtio-pci.h"

#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/mem.h"
#include "guest-tests/lib/tsc.h"

#include <stddef.h>

#define VIRTIO_VENDOR           0x1af4
#define VIRTIO_BLK_TRANSITIONAL 0x1001
#define VIRTIO_MODERN_BASE      0x1040

#define MSIX_CONTROL        2
#define MSIX_TABLE          4
#define MSIX_CONTROL_ENABLE 0x8000
#define MSIX_CONTROL_MASK   0x4000
#define MSIX_BIR_MASK       7
#define MSIX_ENTRY_BYTES    16
#define MSI_ADDRESS         0xfee00000u
#define MSI_VECTOR          0x40

#define RESET_WAIT_MS 10000

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

        d->msix_table = map(d->pci, table & MSIX_BIR_MASK,
                            table & ~(uint32_t)MSIX_BIR_MASK);
    }
    return d->common && d->notify && d->isr && d->config;
}

uint8_t vpci_get_status(VpciDevice *d)
{
    return mmio_read8(d->common + VIRTIO_PCI_STATUS);
}

void vpci_set_status(VpciDevice *d, uint8_t status)
{
    mmio_write8(d->common + VIRTIO_PCI_STATUS, status);
}

bool vpci_reset(VpciDevice *d)
{
    uint64_t start = cpu_rdtsc();

    vpci_set_status(d, 0);
    while (vpci_get_status(d) != 0) {
        if (cpu_rdtsc() - start > tsc_from_ms(RESET_WAIT_MS)) {
            return false;
        }
        cpu_pause();
    }
    return true;
}

uint64_t vpci_get_features(VpciDevice *d)
{
    uint64_t low, high;

    mmio_write32(d->common + VIRTIO_PCI_DEVICE_FEATURE_SELECT, 0);
    low = mmio_read32(d->common + VIRTIO_PCI_DEVICE_FEATURE);
    mmio_write32(d->common + VIRTIO_PCI_DEVICE_FEATURE_SELECT, 1);
    high = mmio_read32(d->common + VIRTIO_PCI_DEVICE_FEATURE);
    return high << 32 | low;
}

void vpci_set_features(VpciDevice *d, uint64_t features)
{
    mmio_write32(d->common + VIRTIO_PCI_DRIVER_FEATURE_SELECT, 0);
    mmio_write32(d->common + VIRTIO_PCI_DRIVER_FEATURE, (uint32_t)features);
    mmio_write32(d->common + VIRTIO_PCI_DRIVER_FEATURE_SELECT, 1);
    mmio_write32(d->common + VIRTIO_PCI_DRIVER_FEATURE,
                 (uint32_t)(features >> 32));
}

uint16_t vpci_get_nb_queues(VpciDevice *d)
{
    return mmio_read16(d->common + VIRTIO_PCI_NUM_QUEUES);
}

uint16_t vpci_get_queue_size(VpciDevice *d, uint16_t index)
{
    mmio_write16(d->common + VIRTIO_PCI_QUEUE_SELECT, index);
    return mmio_read16(d->common + VIRTIO_PCI_QUEUE_SIZE);
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

bool vpci_enable_interrupts(VpciDevice *d, uint16_t nb_queues)
{
    unsigned cap = pci_find_cap(d->pci, PCI_CAP_MSIX, 0);
    uint16_t control;

    if (!cap || !d->msix_table) {
        return false;
    }
    control = pci_read16(d->pci, cap + MSIX_CONTROL);
    pci_write16(d->pci, cap + MSIX_CONTROL,
                (control | MSIX_CONTROL_ENABLE) &
                    (uint16_t)~MSIX_CONTROL_MASK);
    for (uint16_t i = 0; i < nb_queues; i++) {
        volatile uint8_t *entry = d->msix_table + i * MSIX_ENTRY_BYTES;

        mmio_write32(entry, MSI_ADDRESS);
        mmio_write32(entry + 4, 0);
        mmio_write32(entry + 8, MSI_VECTOR + i);
        mmio_write32(entry + 12, 0);
        mmio_write16(d->common + VIRTIO_PCI_QUEUE_SELECT, i);
        mmio_write16(d->common + VIRTIO_PCI_QUEUE_VECTOR, i);
        if (mmio_read16(d->common + VIRTIO_PCI_QUEUE_VECTOR) != i) {
            return false;
        }
    }
    return true;
}

void vpci_disable_interrupts(VpciDevice *d)
{
    unsigned cap = pci_find_cap(d->pci, PCI_CAP_MSIX, 0);

    if (cap) {
        pci_write16(d->pci, cap + MSIX_CONTROL,
                    pci_read16(d->pci, cap + MSIX_CONTROL) &
                        (uint16_t)~MSIX_CONTROL_ENABLE);
    }
}

uint8_t vpci_config8(VpciDevice *d, uint32_t offset)
{
    return mmio_read8(d->config + offset);
}

uint16_t vpci_config16(VpciDevice *d, uint32_t offset)
{
    return mmio_read16(d->config + offset);
}

uint32_t vpci_config32(VpciDevice *d, uint32_t offset)
{
    return mmio_read32(d->config + offset);
}

uint64_t vpci_config64(VpciDevice *d, uint32_t offset)
{
    uint8_t before;
    uint64_t value;

    do {
        before = mmio_read8(d->common + VIRTIO_PCI_CONFIG_GENERATION);
        value = mmio_read32(d->config + offset) |
                (uint64_t)mmio_read32(d->config + offset + 4) << 32;
    } while (mmio_read8(d->common + VIRTIO_PCI_CONFIG_GENERATION) != before);
    return value;
}
