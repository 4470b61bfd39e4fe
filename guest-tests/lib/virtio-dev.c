/*
 * Vdev - a virtio device, whatever the transport
 */
#include "guest-tests/lib/virtio-dev.h"

#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/irq.h"
#include "guest-tests/lib/tsc.h"

#define RESET_WAIT_MS 10000

static bool is_mmio(const Vdev *d)
{
    return d->transport == VDEV_MMIO;
}

bool vdev_open(Vdev *d, VdevTransport transport, unsigned nth, bool reassign)
{
    static uint8_t next_vector = IRQ_VECTOR_FIRST;

    *d = (Vdev){ .transport = transport };
    if (is_mmio(d)) {
        if (!vmmio_open(&d->mmio, nth)) {
            return false;
        }
        d->config = d->mmio.regs + VMMIO_CONFIG;
        d->config_bytes = d->mmio.where.size_bytes - VMMIO_CONFIG;
        d->mmio.vector = next_vector++;
        return true;
    }
    if (!vpci_open(&d->pci, nth, reassign)) {
        return false;
    }
    d->config = d->pci.config;
    d->config_bytes = d->pci.config_bytes;
    d->pci.first_vector = next_vector;
    next_vector = (uint8_t)(next_vector + d->pci.nb_vectors);
    return next_vector <= IRQ_VECTOR_LAST;
}

/* --- status and features --- */

uint8_t vdev_get_status(Vdev *d)
{
    return is_mmio(d) ? (uint8_t)vmmio_read(&d->mmio, VMMIO_STATUS)
                      : mmio_read8(d->pci.common + VIRTIO_PCI_STATUS);
}

void vdev_set_status(Vdev *d, uint8_t status)
{
    if (is_mmio(d)) {
        vmmio_write(&d->mmio, VMMIO_STATUS, status);
    } else {
        mmio_write8(d->pci.common + VIRTIO_PCI_STATUS, status);
    }
}

bool vdev_reset(Vdev *d)
{
    uint64_t start = cpu_rdtsc();

    vdev_set_status(d, 0);
    while (vdev_get_status(d) != 0) {
        if (cpu_rdtsc() - start > tsc_from_ms(RESET_WAIT_MS)) {
            return false;
        }
        cpu_pause();
    }
    return true;
}

static uint32_t get_features(Vdev *d, uint32_t select)
{
    if (is_mmio(d)) {
        vmmio_write(&d->mmio, VMMIO_DEVICE_FEATURE_SEL, select);
        return vmmio_read(&d->mmio, VMMIO_DEVICE_FEATURE);
    }
    mmio_write32(d->pci.common + VIRTIO_PCI_DEVICE_FEATURE_SELECT, select);
    return mmio_read32(d->pci.common + VIRTIO_PCI_DEVICE_FEATURE);
}

uint64_t vdev_get_features(Vdev *d)
{
    return get_features(d, 0) | (uint64_t)get_features(d, 1) << 32;
}

static void set_features(Vdev *d, uint32_t select, uint32_t value)
{
    if (is_mmio(d)) {
        vmmio_write(&d->mmio, VMMIO_DRIVER_FEATURE_SEL, select);
        vmmio_write(&d->mmio, VMMIO_DRIVER_FEATURE, value);
    } else {
        mmio_write32(d->pci.common + VIRTIO_PCI_DRIVER_FEATURE_SELECT, select);
        mmio_write32(d->pci.common + VIRTIO_PCI_DRIVER_FEATURE, value);
    }
}

void vdev_set_features(Vdev *d, uint64_t features)
{
    set_features(d, 0, (uint32_t)features);
    set_features(d, 1, (uint32_t)(features >> 32));
}

/* --- queues --- */

static void select_queue(Vdev *d, uint16_t index)
{
    if (is_mmio(d)) {
        vmmio_write(&d->mmio, VMMIO_QUEUE_SEL, index);
    } else {
        mmio_write16(d->pci.common + VIRTIO_PCI_QUEUE_SELECT, index);
    }
}

uint16_t vdev_get_queue_size(Vdev *d, uint16_t index)
{
    select_queue(d, index);
    return is_mmio(d) ? (uint16_t)vmmio_read(&d->mmio, VMMIO_QUEUE_NUM_MAX)
                      : mmio_read16(d->pci.common + VIRTIO_PCI_QUEUE_SIZE);
}

volatile void *vdev_setup_queue(Vdev *d, uint16_t index, uint16_t size, uint64_t desc_gpa,
                                uint64_t driver_gpa, uint64_t device_gpa)
{
    if (!is_mmio(d)) {
        return vpci_setup_queue(&d->pci, index, size, desc_gpa, driver_gpa, device_gpa);
    }
    select_queue(d, index);
    vmmio_write(&d->mmio, VMMIO_QUEUE_NUM, size);
    vmmio_write_gpa(&d->mmio, VMMIO_QUEUE_DESC, desc_gpa);
    vmmio_write_gpa(&d->mmio, VMMIO_QUEUE_DRIVER, driver_gpa);
    vmmio_write_gpa(&d->mmio, VMMIO_QUEUE_DEVICE, device_gpa);
    vmmio_write(&d->mmio, VMMIO_QUEUE_READY, 1);
    return d->mmio.regs + VMMIO_QUEUE_NOTIFY;
}

unsigned vdev_doorbell_bytes(const Vdev *d)
{
    return is_mmio(d) ? 4 : 2;
}

bool vdev_queue_is_enabled(Vdev *d, uint16_t index)
{
    select_queue(d, index);
    return is_mmio(d) ? vmmio_read(&d->mmio, VMMIO_QUEUE_READY)
                      : mmio_read16(d->pci.common + VIRTIO_PCI_QUEUE_ENABLE);
}

bool vdev_reset_queue(Vdev *d, uint16_t index)
{
    uint64_t start = cpu_rdtsc();

    select_queue(d, index);
    if (is_mmio(d)) {
        vmmio_write(&d->mmio, VMMIO_QUEUE_RESET, 1);
    } else {
        mmio_write16(d->pci.common + VIRTIO_PCI_QUEUE_RESET, 1);
    }
    while (is_mmio(d) ? vmmio_read(&d->mmio, VMMIO_QUEUE_RESET)
                      : mmio_read16(d->pci.common + VIRTIO_PCI_QUEUE_RESET)) {
        if (cpu_rdtsc() - start > tsc_from_ms(RESET_WAIT_MS)) {
            return false;
        }
        cpu_pause();
    }
    return true;
}

/* --- interrupts --- */

bool vdev_enable_interrupts(Vdev *d, uint16_t nb_queues)
{
    if (is_mmio(d)) {
        vmmio_enable_interrupts(&d->mmio, d->mmio.vector);
        return true;
    }
    return vpci_enable_interrupts(&d->pci, nb_queues);
}

void vdev_disable_interrupts(Vdev *d)
{
    if (is_mmio(d)) {
        vmmio_disable_interrupts(&d->mmio);
    } else {
        vpci_disable_interrupts(&d->pci);
    }
}

uint8_t vdev_vector(const Vdev *d, uint16_t index)
{
    return is_mmio(d) ? d->mmio.vector : (uint8_t)(d->pci.first_vector + index);
}

uint8_t vdev_take_isr(Vdev *d)
{
    uint32_t isr;

    if (!is_mmio(d)) {
        return mmio_read8(d->pci.isr);
    }
    isr = vmmio_read(&d->mmio, VMMIO_INTERRUPT_STATUS);
    vmmio_write(&d->mmio, VMMIO_INTERRUPT_ACK, isr);
    return (uint8_t)isr;
}

/* --- configuration --- */

uint64_t vdev_registers_gpa(const Vdev *d)
{
    return is_mmio(d) ? d->mmio.where.gpa : d->pci.common_gpa;
}

uint32_t vdev_config_generation(Vdev *d)
{
    return is_mmio(d) ? vmmio_read(&d->mmio, VMMIO_CONFIG_GENERATION)
                      : mmio_read8(d->pci.common + VIRTIO_PCI_CONFIG_GENERATION);
}

uint8_t vdev_config8(Vdev *d, uint32_t offset)
{
    return mmio_read8(d->config + offset);
}

uint16_t vdev_config16(Vdev *d, uint32_t offset)
{
    return mmio_read16(d->config + offset);
}

uint32_t vdev_config32(Vdev *d, uint32_t offset)
{
    return mmio_read32(d->config + offset);
}

uint64_t vdev_config64(Vdev *d, uint32_t offset)
{
    uint32_t before;
    uint64_t value;

    do {
        before = vdev_config_generation(d);
        value = mmio_read32(d->config + offset) |
                (uint64_t)mmio_read32(d->config + offset + 4) << 32;
    } while (vdev_config_generation(d) != before);
    return value;
}
