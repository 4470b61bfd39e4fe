/*
 * VhuMemory - the memory that a vhost-user client shares, by guest-physical and by its own
 * addresses
 *
 * Layer:     virtio/ (may use io/)
 * Threading: changed in the main thread while no queue runs; lookups in any thread.
 * Lifetime:  vhu_memory_init() .. vhu_memory_finish().
 *
 * Regions do not overlap as guest-physical addresses. As addresses of the client they may: the
 * first one counts, which can hurt the client only.
 */
#ifndef VIRTIO_VHOST_USER_MEMORY_H
#define VIRTIO_VHOST_USER_MEMORY_H

#include "virtio/guest-memory.h"
#include "virtio/limits.h"
#include "virtio/shared-map.h"
#include "virtio/vhost-user-proto.h"

typedef struct VhuRegion {
    uint64_t gpa;
    uint64_t user_addr;
    SharedMap map;
} VhuRegion;

typedef struct VhuMemory {
    GuestMemory gm;
    VhuRegion *regions; /* GUEST_MEMORY_REGIONS_MAX */
    unsigned nb_regions;
    /* borrowed; when some of a region has gone */
    AioBh *lost_bh;     /* is scheduled, */
    _Atomic bool *lost; /* and this set before anybody can see it */
} VhuMemory;

/* vhu_memory_init - Errors: -ENOMEM */
main_fn int vhu_memory_init(VhuMemory *mem, AioBh *lost_bh, _Atomic bool *lost, Error *err)
    NONNULL(1, 2, 3) WARN_UNUSED;
main_fn void vhu_memory_finish(VhuMemory *mem) NONNULL(1);

/* vhu_memory_add - Errors: -EINVAL, -ENOSPC as gm_add(); those of shared_map_open(). @fd stays the
 * caller's. */
main_fn int vhu_memory_add(VhuMemory *mem, const VhostUserRegion *region, int fd, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
/* vhu_memory_find - the region of exactly these addresses and this length; -ENOENT */
int vhu_memory_find(const VhuMemory *mem, const VhostUserRegion *region, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
/* vhu_memory_remove - the region of this number; numbers above it become one less */
main_fn void vhu_memory_remove(VhuMemory *mem, unsigned index) NONNULL(1);
main_fn void vhu_memory_clear(VhuMemory *mem) NONNULL(1);
/* vhu_memory_swap - @mem holds what @other held, and the other way round; the GuestMemory stays
 * where it is */
void vhu_memory_swap(VhuMemory *mem, VhuMemory *other) NONNULL(1, 2);

/* vhu_memory_gpa_of_user - where the client's own address is in guest memory; -EFAULT */
int vhu_memory_gpa_of_user(const VhuMemory *mem, uint64_t user_addr, Gpa *ret_gpa)
    NONNULL(1, 3) WARN_UNUSED;

#endif
