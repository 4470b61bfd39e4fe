/*
 * pci-host.c - the host bridge: bus 0, its two ways into configuration space, and where BARs go
 *
 * 1. config_lock is held for every configuration access, hooks included. A hook may wait for the
 *    main context, so code that runs there while vCPUs run must not take config_lock; what does
 *    take it in the main thread (add, remove, assign, reset) runs while no vCPU does.
 * 2. Functions other than 0, buses other than 0 and empty slots read all ones.
 */
#include "devices/pci.h"

#include <inttypes.h>

#include "devices/pci-int.h"

#define CONFIG_ADDRESS_PORT 0xcf8
#define CONFIG_DATA_PORT    0xcfc
#define CONFIG_ENABLE       (1u << 31)
#define ECAM_BUS_BYTES      (1u << 20)
#define BAR_GRANULE_BYTES   4096u /* BARs share no page */

static const PciDeviceIds bridge_ids = {
    .vendor = 0x8086, .device = 0x0d57, .class_code = 0x060000,
};

static uint64_t all_ones(unsigned len_bytes)
{
    return UINT64_MAX >> (64 - 8 * len_bytes);
}

/* The function at @devfn (slot << 3 | function), NULL when there is none; config_lock held. */
static PciDevice *device_at(PciHost *host, unsigned bus, unsigned devfn)
{
    return bus == 0 && (devfn & 7) == 0 ? host->devices[devfn >> 3 & 31] : NULL;
}

static uint64_t host_read(PciHost *host, unsigned bus, unsigned devfn, unsigned offset,
                          unsigned len_bytes)
{
    PciDevice *dev = device_at(host, bus, devfn);

    return dev && offset + len_bytes <= PCI_CONFIG_BYTES ?
               pci_config_read(dev, offset, len_bytes) : all_ones(len_bytes);
}

static void host_write(PciHost *host, unsigned bus, unsigned devfn, unsigned offset,
                       unsigned len_bytes, uint64_t value)
{
    PciDevice *dev = device_at(host, bus, devfn);

    if (dev && offset + len_bytes <= PCI_CONFIG_BYTES) {
        pci_config_write(dev, offset, len_bytes, value);
    }
}

/* --- ECAM --- */

static uint64_t ecam_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    PciHost *host = opaque;
    uint64_t value;

    pthread_mutex_lock(&host->config_lock);
    value = host_read(host, offset >> 20, offset >> 12 & 0xff, offset & 0xfff, len_bytes);
    pthread_mutex_unlock(&host->config_lock);
    return value;
}

static void ecam_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    PciHost *host = opaque;

    pthread_mutex_lock(&host->config_lock);
    host_write(host, offset >> 20, offset >> 12 & 0xff, offset & 0xfff, len_bytes, value);
    pthread_mutex_unlock(&host->config_lock);
}

static const BusOps ecam_ops = { .read = ecam_read, .write = ecam_write };

/* --- ports 0xcf8 and 0xcfc --- */

static uint64_t address_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    PciHost *host = opaque;
    uint32_t address;

    if (len_bytes != 4) {
        return all_ones(len_bytes);
    }
    pthread_mutex_lock(&host->config_lock);
    address = host->config_address;
    pthread_mutex_unlock(&host->config_lock);
    return address;
}

static void address_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    PciHost *host = opaque;

    if (len_bytes == 4) {
        pthread_mutex_lock(&host->config_lock);
        host->config_address = (uint32_t)value & ~3u;
        pthread_mutex_unlock(&host->config_lock);
    }
}

static uint64_t data_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    PciHost *host = opaque;
    uint64_t value = all_ones(len_bytes);

    pthread_mutex_lock(&host->config_lock);
    uint32_t address = host->config_address;

    if (address & CONFIG_ENABLE) {
        value = host_read(host, address >> 16 & 0xff, address >> 8 & 0xff,
                          (address & 0xfc) + (unsigned)offset, len_bytes);
    }
    pthread_mutex_unlock(&host->config_lock);
    return value;
}

static void data_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    PciHost *host = opaque;

    pthread_mutex_lock(&host->config_lock);
    uint32_t address = host->config_address;

    if (address & CONFIG_ENABLE) {
        host_write(host, address >> 16 & 0xff, address >> 8 & 0xff,
                   (address & 0xfc) + (unsigned)offset, len_bytes, value);
    }
    pthread_mutex_unlock(&host->config_lock);
}

static const BusOps address_ops = { .read = address_read, .write = address_write };
static const BusOps data_ops = { .read = data_read, .write = data_write };

/* --- BARs --- */

void pci_host_remap(PciHost *host, PciDevice *dev)
{
    bool any_left = pci_unmap_bars(dev);

    pci_map_bars(dev);
    for (unsigned slot = 0; any_left && slot < PCI_DEVICES_MAX; slot++) {
        if (host->devices[slot] && host->devices[slot] != dev) {
            pci_map_bars(host->devices[slot]);
        }
    }
}

typedef struct Window {
    uint64_t next_gpa;
    uint64_t end_gpa;
} Window;

static bool window_take(Window *window, uint64_t len_bytes, uint64_t *ret_gpa)
{
    uint64_t size = MAX(len_bytes, (uint64_t)BAR_GRANULE_BYTES);
    uint64_t gpa;

    if (!checked_add(window->next_gpa, size - 1, &gpa)) {
        return false;
    }
    gpa = ALIGN_DOWN(gpa, size);
    if (gpa >= window->end_gpa || size > window->end_gpa - gpa) {
        return false;
    }
    window->next_gpa = gpa + size;
    *ret_gpa = gpa;
    return true;
}

/* Low addresses first, for 64-bit BARs too: small guests map no more than 4 GiB. */
static int assign_device(PciDevice *dev, Window *low, Window *high, Error *err)
{
    for (unsigned i = 0; i < PCI_BARS; i++) {
        const PciBar *bar = &dev->bars[i];
        uint64_t gpa;

        if (!bar->len_bytes) {
            continue;
        }
        if (!window_take(low, bar->len_bytes, &gpa) &&
            !(bar->is_64bit && window_take(high, bar->len_bytes, &gpa))) {
            return error_set(err, -ENOSPC, "%s: no room for BAR %u of %" PRIu64 " bytes",
                             dev->name, i, bar->len_bytes);
        }
        pci_bar_set_address(dev, i, gpa);
    }
    return 0;
}

static int assign_locked(PciHost *host, Error *err)
{
    const PciHostParams *params = &host->params;
    Window low = { params->mmio32_gpa, params->mmio32_gpa + params->mmio32_bytes };
    Window high = { params->mmio64_gpa, params->mmio64_gpa + params->mmio64_bytes };

    for (unsigned slot = 0; slot < PCI_DEVICES_MAX; slot++) {
        PciDevice *dev = host->devices[slot];
        int ret;

        if (!dev || dev == &host->bridge) {
            continue;
        }
        ret = assign_device(dev, &low, &high, err);
        if (ret < 0) {
            return ret;
        }
        dev->config[PCI_COMMAND] |= PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
        dev->config[PCI_INTERRUPT_LINE] =
            dev->config[PCI_INTERRUPT_PIN] ? (uint8_t)params->intx_gsi(slot, 0) : 0;
    }
    for (unsigned slot = 0; slot < PCI_DEVICES_MAX; slot++) {
        if (host->devices[slot]) {
            pci_host_remap(host, host->devices[slot]);
        }
    }
    return 0;
}

int pci_host_assign_bars(PciHost *host, Error *err)
{
    int ret;

    pthread_mutex_lock(&host->config_lock);
    ret = assign_locked(host, err);
    pthread_mutex_unlock(&host->config_lock);
    return ret;
}

void pci_host_reset(PciHost *host)
{
    pthread_mutex_lock(&host->config_lock);
    host->config_address = 0;
    for (unsigned slot = 0; slot < PCI_DEVICES_MAX; slot++) {
        if (host->devices[slot]) {
            pci_device_reset(host->devices[slot]);
        }
    }
    int ret = assign_locked(host, NULL);
    pthread_mutex_unlock(&host->config_lock);
    assert(ret == 0); /* the same BARs fitted before */
}

/* --- devices --- */

static int free_slot(const PciHost *host)
{
    for (int slot = 0; slot < PCI_DEVICES_MAX; slot++) {
        if (!host->devices[slot]) {
            return slot;
        }
    }
    return -ENOSPC;
}

static int add_locked(PciHost *host, PciDevice *dev, unsigned slot, Error *err)
{
    if (slot == PCI_SLOT_ANY) {
        int found = free_slot(host);

        if (found < 0) {
            return error_set(err, found, "%s: all %d PCI slots are taken", dev->name,
                             PCI_DEVICES_MAX);
        }
        slot = (unsigned)found;
    }
    if (slot >= PCI_DEVICES_MAX) {
        return error_set(err, -EINVAL, "%s: PCI slot %u does not exist", dev->name, slot);
    }
    if (host->devices[slot]) {
        return error_set(err, -EEXIST, "%s: PCI slot %u is taken by %s", dev->name, slot,
                         host->devices[slot]->name);
    }
    host->devices[slot] = dev;
    dev->host = host;
    dev->slot = slot;
    return 0;
}

int pci_host_add(PciHost *host, PciDevice *dev, unsigned slot, Error *err)
{
    int ret;

    assert(!dev->host);
    pthread_mutex_lock(&host->config_lock);
    ret = add_locked(host, dev, slot, err);
    pthread_mutex_unlock(&host->config_lock);
    return ret;
}

void pci_host_remove(PciHost *host, PciDevice *dev)
{
    assert(dev->host == host && host->devices[dev->slot] == dev);
    pci_set_intx(dev, false);
    pthread_mutex_lock(&host->config_lock);
    dev->config[PCI_COMMAND] &= ~PCI_COMMAND_MEMORY;
    pci_host_remap(host, dev);
    host->devices[dev->slot] = NULL;
    dev->host = NULL;
    pthread_mutex_unlock(&host->config_lock);
}

/* --- life --- */

static int add_ranges(PciHost *host, Error *err)
{
    BusRange address = { .base = CONFIG_ADDRESS_PORT, .len_bytes = 4, .ops = &address_ops,
                         .opaque = host, .name = "pci-address" };
    BusRange data = { .base = CONFIG_DATA_PORT, .len_bytes = 4, .ops = &data_ops, .opaque = host,
                      .name = "pci-data" };
    BusRange ecam = { .base = host->params.ecam_gpa, .len_bytes = ECAM_BUS_BYTES,
                      .ops = &ecam_ops, .opaque = host, .name = "pci-ecam" };
    int ret = bus_add(host->platform->pio, &address, err);

    host->address_on_bus = ret == 0;
    if (ret == 0) {
        ret = bus_add(host->platform->pio, &data, err);
        host->data_on_bus = ret == 0;
    }
    if (ret == 0) {
        ret = bus_add(host->platform->mmio, &ecam, err);
        host->ecam_on_bus = ret == 0;
    }
    return ret;
}

PciHost *pci_host_create(Platform *platform, const PciHostParams *params, Error *err)
{
    PciHost *host = calloc(1, sizeof(*host));

    assert(params->intx_gsi);
    if (!host) {
        error_set(err, -ENOMEM, "no memory for the PCI host");
        return NULL;
    }
    pthread_mutex_init(&host->config_lock, NULL);
    pthread_mutex_init(&host->intx_lock, NULL);
    host->platform = platform;
    host->params = *params;
    pci_device_init(&host->bridge, NULL, &bridge_ids, "pci-host-bridge");
    if (add_locked(host, &host->bridge, 0, err) < 0 || add_ranges(host, err) < 0) {
        pci_host_destroy(host);
        return NULL;
    }
    return host;
}

void pci_host_destroy(PciHost *host)
{
    if (!host) {
        return;
    }
    for (unsigned slot = 1; slot < PCI_DEVICES_MAX; slot++) {
        assert(!host->devices[slot]);
    }
    if (host->address_on_bus) {
        bus_remove(host->platform->pio, CONFIG_ADDRESS_PORT);
    }
    if (host->data_on_bus) {
        bus_remove(host->platform->pio, CONFIG_DATA_PORT);
    }
    if (host->ecam_on_bus) {
        bus_remove(host->platform->mmio, host->params.ecam_gpa);
    }
    pthread_mutex_destroy(&host->config_lock);
    pthread_mutex_destroy(&host->intx_lock);
    free(host);
}
