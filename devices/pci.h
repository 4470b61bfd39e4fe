/*
 * PciDevice - a function on bus 0: configuration space, BARs, INTx; PciHost - CF8/CFC and ECAM
 *
 * Layer:     devices/
 * Threading: configuration accesses come from vCPU threads and are serialised by the host's lock,
 *            under which a device's config_write hook runs too. Devices are added by the main
 *            thread before the guest runs.
 * Lifetime:  PciHost borrows devices; a device is removed before it is finished.
 * Spec:      PCI 3.0 chapter 6, PCIe ECAM
 *
 * BARs are assigned by pci_host_assign_bars() before the guest starts; a guest may size and move
 * them. A BAR range is on the bus while COMMAND.MEMORY is set; a move happens by taking it off
 * and putting it on again. A BAR moved onto something else, or out of the host's windows, stays off
 * the bus until it is moved again or what was in its way has left.
 */
#ifndef DEVICES_PCI_H
#define DEVICES_PCI_H

#include "devices/platform.h"

#define PCI_CONFIG_BYTES 4096
#define PCI_BARS         6
#define PCI_DEVICES_MAX  32

typedef struct PciHost PciHost;
typedef struct PciDevice PciDevice;

typedef struct PciDeviceOps {
    /* After the common part has taken a configuration write / before a read: capability hooks
     * (MSI-X control, virtio PCI_CFG access). vCPU thread, host lock held. NULL = none. */
    void (*config_written)(PciDevice *dev, unsigned offset, unsigned len_bytes);
    void (*config_reading)(PciDevice *dev, unsigned offset, unsigned len_bytes);
    /* A BAR came on the bus at @gpa (enabled) or is about to leave it. vCPU or main, host lock
     * held. NULL = not interested. */
    void (*bar_mapped)(PciDevice *dev, unsigned bar, uint64_t gpa, bool enabled);
} PciDeviceOps;

typedef struct PciBar {
    uint64_t len_bytes; /* power of 2; 0 = absent */
    bool is_64bit;      /* takes two slots */
    bool prefetchable;
    const BusOps *ops;
    void *opaque;
    uint64_t mapped_gpa; /* valid while mapped */
    bool mapped;
} PciBar;

struct PciDevice {
    const PciDeviceOps *ops;
    char name[32];
    PciHost *host; /* NULL until added */
    unsigned slot;
    uint8_t config[PCI_CONFIG_BYTES];
    uint8_t writable[PCI_CONFIG_BYTES];    /* mask of the bits that the guest may write */
    uint8_t write_1_clear[PCI_CONFIG_BYTES];
    unsigned cap_end;                      /* where the next capability goes */
    PciBar bars[PCI_BARS];
    bool intx_level;    /* what the device asks for; host's intx_lock */
    bool intx_disabled; /* COMMAND.INTX_DISABLE; host's intx_lock */
};

typedef struct PciDeviceIds {
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint8_t revision;
    uint32_t class_code; /* 24 bits */
} PciDeviceIds;

void pci_device_init(PciDevice *dev, const PciDeviceOps *ops, const PciDeviceIds *ids,
                     const char *name) NONNULL(1, 3, 4);
void pci_device_finish(PciDevice *dev);

/* pci_add_capability - returns its offset in configuration space; the body is zero, not writable */
unsigned pci_add_capability(PciDevice *dev, uint8_t id, unsigned len_bytes) NONNULL(1);
void pci_set_bar(PciDevice *dev, unsigned bar, uint64_t len_bytes, bool is_64bit,
                 bool prefetchable, const BusOps *ops, void *opaque) NONNULL(1, 6);
/* Tell the guest (INTERRUPT_PIN) that the function may raise INTA#. Before it is added. */
void pci_use_intx(PciDevice *dev) NONNULL(1);
/* INTA#; shown in STATUS, but not on the wire while COMMAND.INTX_DISABLE. Functions that share a
 * GSI are wired together. Any thread; takes the host's intx_lock only, never the configuration
 * lock. */
void pci_set_intx(PciDevice *dev, bool level) NONNULL(1);

typedef struct PciHostParams {
    uint64_t ecam_gpa;         /* 1 MiB a bus; bus 0 only is populated */
    uint64_t mmio32_gpa, mmio32_bytes; /* window for 32-bit BARs */
    uint64_t mmio64_gpa, mmio64_bytes; /* window for 64-bit BARs, may be 0 bytes */
    unsigned (*intx_gsi)(unsigned slot, unsigned pin); /* pin 0 = INTA */
} PciHostParams;

PciHost *pci_host_create(Platform *platform, const PciHostParams *params, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
void pci_host_destroy(PciHost *host);
/* Slot 0 is the host bridge's. Errors: -ENOSPC no slot left, -EEXIST slot taken, -EINVAL no slot */
#define PCI_SLOT_ANY (~0u)
int pci_host_add(PciHost *host, PciDevice *dev, unsigned slot, Error *err) NONNULL(1, 2)
    WARN_UNUSED;
void pci_host_remove(PciHost *host, PciDevice *dev) NONNULL(1, 2);
/* Places every BAR and switches memory decoding on. Main, before the guest runs. */
int pci_host_assign_bars(PciHost *host, Error *err) NONNULL(1) WARN_UNUSED;
/* All devices' configuration back to power-on, then BARs assigned again. Main, vCPUs stopped. */
void pci_host_reset(PciHost *host) NONNULL(1);

#endif
