/*
 * virtio-blk-int.h - what virtio-blk.c and virtio-blk-req.c share
 *
 * Layer:     virtio/, private
 * Threading: the limits are constant; features and flags change only while no queue runs.
 */
#ifndef VIRTIO_VIRTIO_BLK_INT_H
#define VIRTIO_VIRTIO_BLK_INT_H

#include <linux/virtio_blk.h>
#include <pthread.h>

#include "block/block-acct.h"
#include "virtio/virtio-blk.h"

#define SECTOR_BYTES 512

/* The result of a request that is left to who starts the queue next. */
#define VIRTIO_BLK_SUSPENDED (-ECANCELED)

struct VirtioBlk {
    VirtioDevice vdev;

    /* read by every request */
    BlockBackend *blk;
    BlkAcct *acct;     /* one a queue, of its home context */
    uint64_t features; /* negotiated; 0 while no driver is there */
    bool read_only;
    bool may_unmap; /* write-zeroes may deallocate */
    uint32_t max_discard_sectors;
    uint32_t max_write_zeroes_sectors;
    char serial[VIRTIO_BLK_ID_BYTES]; /* padded with NUL, which may be missing */

    /* virtio-blk-error.c */
    VirtioBlkOnError on_read_error, on_write_error; /* fixed */
    const VirtioBlkStopOps *stop_ops;
    void *stop_opaque;
    pthread_mutex_t held_lock; /* protects held, halting, nb_suspending */
    List held;                 /* requests that wait to be made again */
    bool *halting;             /* one a queue */
    int nb_suspending;         /* of them */

    uint32_t block_bytes;
    uint32_t seg_max;
    bool host_write_cache; /* as the backend was opened; what a reset goes back to */
};

/* The sectors a driver may use: whole logical blocks. */
static inline uint64_t virtio_blk_capacity_sectors(const VirtioBlk *vblk)
{
    return ALIGN_DOWN(blk_length(vblk->blk), (uint64_t)vblk->block_bytes) / SECTOR_BYTES;
}

static inline bool virtio_blk_has_feature(const VirtioBlk *vblk, unsigned bit)
{
    return vblk->features >> bit & 1;
}

/* virtio_blk_req_entry - coroutine entry: carry out the request in the VqElem that *@opaque points
 * to, which is read at once, and push it */
void virtio_blk_req_entry(void *opaque);

int virtio_blk_errors_init(VirtioBlk *vblk, unsigned nb_queues)
    NONNULL(1) WARN_UNUSED; /* -ENOMEM */
void virtio_blk_errors_finish(VirtioBlk *vblk) NONNULL(1);
/* virtio_blk_co_again - the storage has failed a request with @ret: true when it is to be made
 * again; false when *ret is its result, perhaps VIRTIO_BLK_SUSPENDED. Home of the queue. */
co_fn bool virtio_blk_co_again(VirtioBlk *vblk, unsigned queue, bool is_write, int *ret)
    NONNULL(1, 4);
/* VirtioDeviceOps.halting, .holds */
void virtio_blk_halting(VirtioDevice *vdev, VirtQueue *vq, bool on) NONNULL(1, 2);
bool virtio_blk_holds(VirtioDevice *vdev, VirtQueue *vq) NONNULL(1, 2);

#endif
