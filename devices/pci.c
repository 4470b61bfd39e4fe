/*
 * pci.c - configuration space of one function: registers, capabilities, BARs, INTx
 *
 * 1. `config` holds what a read returns, except for STATUS.INTERRUPT, which is put in at the read.
 *    A write changes the bits that `writable` allows and clears those in `write_1_clear`.
 * 2. The mask of a BAR register is the complement of its size, so sizing needs no special case.
 * 3. A BAR is mapped exactly when COMMAND.MEMORY is set, its address lies in a window of the host
 *    and the bus has room there. mapped_gpa is where it is on the bus, whatever the register says.
 * 4. bar_mapped(true) comes after the range is on the bus, bar_mapped(false) before it leaves.
 */
#include "devices/pci.h"

#include <stdio.h>

#include "devices/pci-int.h"
#include "io/base/log.h"

#define PCI_CAPS_FIRST 0x40
#define PCI_BAR_OFFSET(bar) (PCI_BASE_ADDRESS_0 + 4 * (bar))

void pci_device_init(PciDevice *dev, const PciDeviceOps *ops, const PciDeviceIds *ids,
                     const char *name)
{
    *dev = (PciDevice){ .ops = ops, .cap_end = PCI_CAPS_FIRST };
    snprintf(dev->name, sizeof(dev->name), "%s", name);

    pci_config_set16(dev->config, PCI_VENDOR_ID, ids->vendor);
    pci_config_set16(dev->config, PCI_DEVICE_ID, ids->device);
    pci_config_set32(dev->config, PCI_CLASS_REVISION, ids->class_code << 8 | ids->revision);
    pci_config_set16(dev->config, PCI_SUBSYSTEM_VENDOR_ID, ids->subsystem_vendor);
    pci_config_set16(dev->config, PCI_SUBSYSTEM_ID, ids->subsystem);

    pci_config_set16(dev->writable, PCI_COMMAND,
                     PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_PARITY |
                         PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE);
    dev->writable[PCI_CACHE_LINE_SIZE] = 0xff;
    dev->writable[PCI_LATENCY_TIMER] = 0xff;
    dev->writable[PCI_INTERRUPT_LINE] = 0xff;
}

void pci_device_finish(PciDevice *dev)
{
    if (dev) {
        assert(!dev->host);
    }
}

unsigned pci_add_capability(PciDevice *dev, uint8_t id, unsigned len_bytes)
{
    unsigned offset = dev->cap_end;

    assert(!dev->host && len_bytes >= 2 && offset + len_bytes <= 256);
    dev->config[offset] = id;
    dev->config[offset + 1] = dev->config[PCI_CAPABILITY_LIST];
    dev->config[PCI_CAPABILITY_LIST] = (uint8_t)offset;
    dev->config[PCI_STATUS] |= PCI_STATUS_CAP_LIST;
    dev->cap_end = ALIGN_UP(offset + len_bytes, 4);
    return offset;
}

void pci_set_bar(PciDevice *dev, unsigned bar, uint64_t len_bytes, bool is_64bit,
                 bool prefetchable, const BusOps *ops, void *opaque)
{
    unsigned reg = PCI_BAR_OFFSET(bar);
    uint64_t mask = ~(len_bytes - 1);

    assert(!dev->host && bar + is_64bit < PCI_BARS && !dev->bars[bar].len_bytes);
    assert(IS_POWER_OF_2(len_bytes) && len_bytes >= 16 && (is_64bit || len_bytes <= 1ull << 31));
    dev->bars[bar] = (PciBar){ .len_bytes = len_bytes, .is_64bit = is_64bit,
                               .prefetchable = prefetchable, .ops = ops, .opaque = opaque };
    dev->config[reg] = (is_64bit ? PCI_BASE_ADDRESS_MEM_TYPE_64 : 0) |
                       (prefetchable ? PCI_BASE_ADDRESS_MEM_PREFETCH : 0);
    pci_config_set32(dev->writable, reg, (uint32_t)mask);
    if (is_64bit) {
        pci_config_set32(dev->writable, reg + 4, (uint32_t)(mask >> 32));
    }
}

void pci_use_intx(PciDevice *dev)
{
    assert(!dev->host);
    dev->config[PCI_INTERRUPT_PIN] = 1;
}

/* --- INTx --- */

static bool line_is_up(PciHost *host, unsigned gsi)
{
    for (unsigned slot = 0; slot < PCI_DEVICES_MAX; slot++) {
        if (host->intx_asserted & 1u << slot && host->params.intx_gsi(slot, 0) == gsi) {
            return true;
        }
    }
    return false;
}

/* The device's level or its INTX_DISABLE changed; intx_lock held. */
static void intx_update(PciDevice *dev)
{
    PciHost *host = dev->host;
    unsigned gsi = host->params.intx_gsi(dev->slot, 0);
    uint32_t bit = 1u << dev->slot;
    bool was_up = line_is_up(host, gsi);

    if (dev->intx_level && !dev->intx_disabled) {
        host->intx_asserted |= bit;
    } else {
        host->intx_asserted &= ~bit;
    }
    if (line_is_up(host, gsi) != was_up) {
        host->platform->ops->irq_set_level(host->platform->opaque, gsi, !was_up);
    }
}

void pci_set_intx(PciDevice *dev, bool level)
{
    PciHost *host = dev->host;

    assert(host);
    pthread_mutex_lock(&host->intx_lock);
    if (dev->intx_level != level) {
        dev->intx_level = level;
        intx_update(dev);
    }
    pthread_mutex_unlock(&host->intx_lock);
}

void pci_command_changed(PciDevice *dev)
{
    PciHost *host = dev->host;
    bool disabled = pci_config_get16(dev, PCI_COMMAND) & PCI_COMMAND_INTX_DISABLE;

    pthread_mutex_lock(&host->intx_lock);
    if (dev->intx_disabled != disabled) {
        dev->intx_disabled = disabled;
        intx_update(dev);
    }
    pthread_mutex_unlock(&host->intx_lock);
}

static bool intx_level(PciDevice *dev)
{
    bool level;

    pthread_mutex_lock(&dev->host->intx_lock);
    level = dev->intx_level;
    pthread_mutex_unlock(&dev->host->intx_lock);
    return level;
}

/* --- BARs --- */

static uint64_t bar_address(const PciDevice *dev, unsigned bar)
{
    uint64_t gpa = pci_config_get32(dev, PCI_BAR_OFFSET(bar)) & PCI_BASE_ADDRESS_MEM_MASK;

    if (dev->bars[bar].is_64bit) {
        gpa |= (uint64_t)pci_config_get32(dev, PCI_BAR_OFFSET(bar) + 4) << 32;
    }
    return gpa;
}

void pci_bar_set_address(PciDevice *dev, unsigned bar, uint64_t gpa)
{
    unsigned reg = PCI_BAR_OFFSET(bar);
    uint32_t flags = dev->config[reg] & 0xf;

    assert((gpa & (dev->bars[bar].len_bytes - 1)) == 0);
    pci_config_set32(dev->config, reg, (uint32_t)gpa | flags);
    if (dev->bars[bar].is_64bit) {
        pci_config_set32(dev->config, reg + 4, (uint32_t)(gpa >> 32));
    }
}

static bool in_window(uint64_t gpa, uint64_t len_bytes, uint64_t window_gpa, uint64_t window_bytes)
{
    return gpa >= window_gpa && gpa - window_gpa < window_bytes &&
           len_bytes <= window_bytes - (gpa - window_gpa);
}

static bool bar_wanted(const PciDevice *dev, unsigned bar)
{
    const PciHostParams *params = &dev->host->params;
    uint64_t len_bytes = dev->bars[bar].len_bytes;
    uint64_t gpa = bar_address(dev, bar);

    return len_bytes && pci_config_get16(dev, PCI_COMMAND) & PCI_COMMAND_MEMORY &&
           (in_window(gpa, len_bytes, params->mmio32_gpa, params->mmio32_bytes) ||
            in_window(gpa, len_bytes, params->mmio64_gpa, params->mmio64_bytes));
}

static void bar_tell(PciDevice *dev, unsigned bar, bool enabled)
{
    if (dev->ops && dev->ops->bar_mapped) {
        dev->ops->bar_mapped(dev, bar, dev->bars[bar].mapped_gpa, enabled);
    }
}

bool pci_unmap_bars(PciDevice *dev)
{
    bool any_left = false;

    for (unsigned i = 0; i < PCI_BARS; i++) {
        PciBar *bar = &dev->bars[i];

        if (bar->mapped && !(bar_wanted(dev, i) && bar_address(dev, i) == bar->mapped_gpa)) {
            bar_tell(dev, i, false);
            bus_remove(dev->host->platform->mmio, bar->mapped_gpa);
            bar->mapped = false;
            any_left = true;
        }
    }
    return any_left;
}

void pci_map_bars(PciDevice *dev)
{
    for (unsigned i = 0; i < PCI_BARS; i++) {
        PciBar *bar = &dev->bars[i];
        BusRange range = { .len_bytes = bar->len_bytes, .ops = bar->ops, .opaque = bar->opaque,
                           .name = dev->name };
        Error err;

        if (bar->mapped || !bar_wanted(dev, i)) {
            continue;
        }
        range.base = bar_address(dev, i);
        if (bus_add(dev->host->platform->mmio, &range, &err) < 0) {
            log_debug("pci", "%s: BAR %u stays off: %s", dev->name, i, err.msg);
            continue;
        }
        bar->mapped = true;
        bar->mapped_gpa = range.base;
        bar_tell(dev, i, true);
    }
}

/* --- accesses --- */

uint64_t pci_config_read(PciDevice *dev, unsigned offset, unsigned len_bytes)
{
    le64 value = le64_make(0);

    assert(len_bytes <= 8 && offset + len_bytes <= PCI_CONFIG_BYTES);
    if (dev->ops && dev->ops->config_reading) {
        dev->ops->config_reading(dev, offset, len_bytes);
    }
    if (pci_range_touches(offset, len_bytes, PCI_STATUS, 1)) {
        dev->config[PCI_STATUS] &= ~PCI_STATUS_INTERRUPT;
        dev->config[PCI_STATUS] |= intx_level(dev) ? PCI_STATUS_INTERRUPT : 0;
    }
    memcpy(&value, &dev->config[offset], len_bytes);
    return le64_get(value);
}

void pci_config_write(PciDevice *dev, unsigned offset, unsigned len_bytes, uint64_t value)
{
    assert(len_bytes <= 8 && offset + len_bytes <= PCI_CONFIG_BYTES);
    for (unsigned i = 0; i < len_bytes; i++) {
        uint8_t byte = (uint8_t)(value >> 8 * i);
        uint8_t writable = dev->writable[offset + i];
        uint8_t *config = &dev->config[offset + i];

        *config = (*config & ~writable) | (byte & writable);
        *config &= ~(byte & dev->write_1_clear[offset + i]);
    }
    if (pci_range_touches(offset, len_bytes, PCI_COMMAND, 2)) {
        pci_command_changed(dev);
    }
    if (pci_range_touches(offset, len_bytes, PCI_COMMAND, 2) ||
        pci_range_touches(offset, len_bytes, PCI_BASE_ADDRESS_0, 4 * PCI_BARS)) {
        pci_host_remap(dev->host, dev);
    }
    if (dev->ops && dev->ops->config_written) {
        dev->ops->config_written(dev, offset, len_bytes);
    }
}

void pci_device_reset(PciDevice *dev)
{
    for (unsigned i = 0; i < PCI_CONFIG_BYTES; i++) {
        dev->config[i] &= ~dev->writable[i];
    }
    pci_unmap_bars(dev);
    pci_command_changed(dev);
}
