/*
 * GuestMemory - from guest-physical addresses to pointers
 *
 * Layer:     virtio/ (may use block/, io/)
 * Threading: built by the main thread before devices start; immutable while any queue runs (whoever
 *            changes it stops the queues first), so lookups need no lock. Any thread. What `lost`
 *            points to may be set by any thread at any time, in a signal handler, too.
 * Lifetime:  borrows the mappings; gm_finish() does not unmap.
 * Spec:      VIRTIO 1.2 section 2.6 (addresses in descriptors are guest-physical)
 */
#ifndef VIRTIO_GUEST_MEMORY_H
#define VIRTIO_GUEST_MEMORY_H

#include <stdatomic.h>
#include <sys/uio.h>

#include "io/base/error.h"

/* A guest-physical address; never to be mixed up with a pointer. */
typedef struct Gpa {
    uint64_t addr;
} Gpa;

#define GPA(x) ((Gpa){ (x) })

typedef struct GuestMemoryRegion {
    uint64_t gpa;
    uint64_t len_bytes;
    uint8_t *hva;
} GuestMemoryRegion;

#define GUEST_MEMORY_REGIONS_MAX 509 /* what vhost-user CONFIGURE_MEM_SLOTS offers elsewhere */

typedef struct GuestMemory {
    GuestMemoryRegion *regions; /* sorted by gpa, disjoint */
    unsigned nb_regions;
    const _Atomic bool *lost; /* borrowed; some of it has gone, for good. NULL: that cannot be */
} GuestMemory;

void gm_init(GuestMemory *gm) NONNULL(1);
void gm_finish(GuestMemory *gm);

/* gm_is_lost - what was read of it until now may be zeroes instead, and what was written be nowhere.
 * Whoever has read zeroes so finds it true. */
static inline bool gm_is_lost(const GuestMemory *gm)
{
    if (likely(!gm->lost)) {
        return false;
    }
    /* A handler sets it in the middle of an access of this very thread. */
    atomic_signal_fence(memory_order_seq_cst);
    return atomic_load_explicit(gm->lost, memory_order_relaxed);
}

/* gm_add - Errors: -EINVAL empty, wraps around or overlaps; -ENOSPC too many regions */
int gm_add(GuestMemory *gm, uint64_t gpa, uint64_t len_bytes, void *hva, Error *err)
    NONNULL(1, 4) WARN_UNUSED;

/* gm_remove - the region that begins at @gpa, which there is */
void gm_remove(GuestMemory *gm, uint64_t gpa) NONNULL(1);

/* gm_find - the region that holds @gpa, NULL when it is no memory */
const GuestMemoryRegion *gm_find(const GuestMemory *gm, Gpa gpa) NONNULL(1);

/* gm_region_translate - pointer to [gpa, gpa + len) if all of it lies in @region, else NULL; cannot
 * be fooled by a range that wraps around */
static inline void *gm_region_translate(const GuestMemoryRegion *region, Gpa gpa,
                                        uint64_t len_bytes)
{
    uint64_t offset = gpa.addr - region->gpa;

    return offset < region->len_bytes && len_bytes <= region->len_bytes - offset
               ? region->hva + offset
               : NULL;
}

/* gm_translate - pointer to [gpa, gpa + len), NULL unless all of it lies in one region; len > 0 */
void *gm_translate(const GuestMemory *gm, Gpa gpa, uint64_t len_bytes) NONNULL(1);

/*
 * gm_map - append the pieces of [gpa, gpa + len) to @iov, one a region it touches; adjacent pieces
 * are not merged
 * Returns the number of entries added, -EFAULT when part of the range is no memory, -E2BIG when
 * more than @max entries would be needed.
 */
int gm_map(const GuestMemory *gm, Gpa gpa, uint64_t len_bytes, struct iovec *iov, unsigned max)
    NONNULL(1, 4) WARN_UNUSED;

#endif
