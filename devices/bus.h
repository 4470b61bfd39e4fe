/*
 * Bus - what a guest's port and memory accesses reach
 *
 * Layer:     devices/ (may use virtio/, block/, io/; never KVM)
 * Threading: accesses come from vCPU threads, many at once; ranges are added and removed by the
 *            main thread, or by a vCPU thread that moves a BAR. An access holds `lock` for reading
 *            only while it looks the range up, not while the device answers, so that a device may
 *            change the bus from its callback (ECAM write -> BAR moves).
 * Lifetime:  the bus borrows the ranges' ops and opaque. A range that was removed may still see
 *            an access that had been looked up before: devices are freed only once the
 *            vCPUs have stopped.
 */
#ifndef DEVICES_BUS_H
#define DEVICES_BUS_H

#include <pthread.h>

#include "io/base/error.h"

/*
 * A device's answer to accesses of 1, 2, 4 or 8 bytes. The value is little-endian in the low bytes.
 * @offset is relative to the range. Any vCPU thread; the device does its own locking.
 */
typedef struct BusOps {
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned len_bytes);
    void (*write)(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value);
} BusOps;

typedef struct BusRange {
    uint64_t base;
    uint64_t len_bytes;
    const BusOps *ops;
    void *opaque;
    const char *name; /* for messages; borrowed */
    bool overlay;     /* may lie inside another range (not at its base) and then takes the accesses
                         that fit into it: the reset register at 0xcf9 within 0xcf8 */
} BusRange;

typedef struct Bus {
    pthread_rwlock_t lock; /* protects the fields below */
    BusRange *ranges;      /* sorted by base, disjoint but for overlays */
    unsigned nb_ranges;
    const char *name;
} Bus;

int bus_init(Bus *bus, const char *name) NONNULL(1, 2) WARN_UNUSED;
void bus_finish(Bus *bus);

/* bus_add - Errors: -EEXIST overlaps (the message names both), -EINVAL wraps, -ENOMEM */
int bus_add(Bus *bus, const BusRange *range, Error *err) NONNULL(1, 2) WARN_UNUSED;
/* bus_remove - the range that starts at @base; nothing when there is none */
void bus_remove(Bus *bus, uint64_t base) NONNULL(1);

/* Accesses outside every range read all ones and write nothing; so do one that straddles the end of
 * a range and one whose length is not 1, 2, 4 or 8 (at most 8 bytes are read into @ret_data). Any
 * thread. Returns true when a range answered. */
bool bus_read(Bus *bus, uint64_t addr, void *ret_data, unsigned len_bytes) NONNULL(1, 3);
bool bus_write(Bus *bus, uint64_t addr, const void *data, unsigned len_bytes) NONNULL(1, 3);

#endif
