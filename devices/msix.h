/*
 * Msix - the MSI-X capability, table and pending bits of a PCI function
 *
 * Layer:     devices/
 * Threading: the table is read and written by vCPU threads under `lock`; signalling a vector is a
 *            write to its eventfd from any thread and takes no lock.
 * Lifetime:  embedded in the device; msix_init() .. msix_finish().
 * Spec:      PCI 3.0 section 6.8.2
 *
 * Each vector owns an eventfd and a route for its whole life, so whoever signals never sees a stale
 * descriptor. While a vector is enabled and unmasked the eventfd is attached to its route (KVM
 * injects without user space). While it is masked it is detached: signals stay in the eventfd,
 * which is what the pending bit shows, and attaching delivers them. msix_clear_pending() takes them
 * back when their cause is gone.
 */
#ifndef DEVICES_MSIX_H
#define DEVICES_MSIX_H

#include <pthread.h>

#include "devices/pci.h"

#define MSIX_VECTORS_MAX 128

typedef struct MsixVector {
    EventNotifier notifier;
    int route;
    bool attached;
    uint64_t address;
    uint32_t data;
    uint32_t control;
} MsixVector;

typedef struct Msix {
    pthread_mutex_t lock; /* protects the vectors' registers, `attached` and changes of `control` */
    _Atomic uint16_t control; /* enable and function mask; any thread may look */
    PciDevice *dev; /* NULL until initialised */
    Platform *platform;
    unsigned cap_offset;
    unsigned nb_vectors;
    MsixVector *vectors;
} Msix;

/* msix_init - add the capability; table and PBA live in @bar (whose range the caller dispatches to
 * msix_bar_ops with @msix as opaque) at offset 0 and MSIX_PBA_OFFSET. Before the device is
 * added. */
#define MSIX_PBA_OFFSET 2048
#define MSIX_BAR_BYTES  4096
int msix_init(Msix *msix, PciDevice *dev, Platform *platform, unsigned nb_vectors, unsigned bar,
              Error *err) NONNULL(1, 2, 3) WARN_UNUSED;
void msix_finish(Msix *msix);
void msix_reset(Msix *msix) NONNULL(1);
extern const BusOps msix_bar_ops;

/* From the device's config_written hook: enable and function mask may have changed. Returns true
 * when enable did. */
bool msix_config_written(Msix *msix, unsigned offset, unsigned len_bytes) NONNULL(1);
/* Any thread. */
bool msix_enabled(const Msix *msix) NONNULL(1);
/* The eventfd of @vector; -1 when out of range. Any thread. */
int msix_vector_fd(const Msix *msix, unsigned vector) NONNULL(1);
/* Send @vector's message, or set its pending bit; nothing when out of range. Any thread. */
void msix_signal(Msix *msix, unsigned vector) NONNULL(1);
/* What was signalled while masked and has not been sent is forgotten (the device was reset). */
void msix_clear_pending(Msix *msix) NONNULL(1);

#endif
