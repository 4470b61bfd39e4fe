/*
 * pci-int.h - what pci.c, pci-host.c and the functions' own files share
 *
 * Layer:     devices/, private
 * Threading: everything here is called with the host's config_lock held, or before the device has
 *            been added, or with the vCPUs stopped.
 */
#ifndef DEVICES_PCI_INT_H
#define DEVICES_PCI_INT_H

#include <linux/pci_regs.h>
#include <pthread.h>

#include "devices/pci.h"
#include "io/base/endian.h"

struct PciHost {
    pthread_mutex_t config_lock; /* protects the fields down to intx_lock and all devices' config
                                    and bars; held while hooks run */
    uint32_t config_address;     /* port 0xcf8 */
    PciDevice *devices[PCI_DEVICES_MAX];

    pthread_mutex_t intx_lock; /* protects the fields below and all devices' intx_*; a leaf but for
                                  the platform's own lock */
    uint32_t intx_asserted;    /* a bit a slot: pulls its line */

    /* set up */
    Platform *platform;
    PciHostParams params;
    PciDevice bridge; /* slot 0: guests look for a host bridge before they believe in PCI */
    bool address_on_bus, data_on_bus, ecam_on_bus;
};

static inline uint16_t pci_config_get16(const PciDevice *dev, unsigned offset)
{
    le16 value;

    memcpy(&value, &dev->config[offset], sizeof(value));
    return le16_get(value);
}

static inline uint32_t pci_config_get32(const PciDevice *dev, unsigned offset)
{
    le32 value;

    memcpy(&value, &dev->config[offset], sizeof(value));
    return le32_get(value);
}

static inline void pci_config_set16(uint8_t *bytes, unsigned offset, uint16_t value)
{
    le16 wire = le16_make(value);

    memcpy(&bytes[offset], &wire, sizeof(wire));
}

static inline void pci_config_set32(uint8_t *bytes, unsigned offset, uint32_t value)
{
    le32 wire = le32_make(value);

    memcpy(&bytes[offset], &wire, sizeof(wire));
}

/* pci_range_touches - whether two ranges of configuration space have a byte in common */
static inline bool pci_range_touches(unsigned a, unsigned a_bytes, unsigned b, unsigned b_bytes)
{
    return a < b + b_bytes && b < a + a_bytes;
}

/* Accesses of 1 to 8 bytes at any alignment that end within the configuration space. */
uint64_t pci_config_read(PciDevice *dev, unsigned offset, unsigned len_bytes) NONNULL(1);
void pci_config_write(PciDevice *dev, unsigned offset, unsigned len_bytes, uint64_t value)
    NONNULL(1);

/* pci_bar_set_address - what firmware does */
void pci_bar_set_address(PciDevice *dev, unsigned bar, uint64_t gpa) NONNULL(1);
/* pci_unmap_bars - take off the bus what is no longer where it was; returns whether any left.
 * pci_map_bars - put on the bus what should be and can be. */
bool pci_unmap_bars(PciDevice *dev) NONNULL(1);
void pci_map_bars(PciDevice *dev) NONNULL(1);
/* pci_command_changed - INTX_DISABLE takes effect */
void pci_command_changed(PciDevice *dev) NONNULL(1);
/* pci_device_reset - configuration as at power-on: writable bits 0, BARs off the bus */
void pci_device_reset(PciDevice *dev) NONNULL(1);

/* pci_host_remap - after a device's BARs or COMMAND changed */
void pci_host_remap(PciHost *host, PciDevice *dev) NONNULL(1, 2);

#endif
