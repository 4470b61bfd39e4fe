/*
 * VirtioBlk - virtio-blk on a BlockBackend, for any transport
 *
 * Layer:     virtio/ (may use block/, io/)
 * Threading: created and destroyed in the main thread; requests run as coroutines in the home
 *            context of the queue they came from.
 * Lifetime:  virtio_blk_create() .. virtio_blk_destroy() (the device must have been reset). Borrows
 *            the BlockBackend and the GuestMemory.
 * Spec:      VIRTIO 1.2 section 5.2
 *
 * virtio-blk.c: features, configuration space, queue handler. virtio-blk-req.c: one request.
 * virtio-blk-error.c: one that the storage has failed.
 */
#ifndef VIRTIO_VIRTIO_BLK_H
#define VIRTIO_VIRTIO_BLK_H

#include "block/block-acct.h"
#include "block/block-backend.h"
#include "virtio/virtio-device.h"

typedef struct VirtioBlk VirtioBlk;

/* What becomes of a request that the storage has failed. */
typedef enum VirtioBlkOnError {
    VIRTIO_BLK_REPORT,      /* the guest gets the error */
    VIRTIO_BLK_IGNORE,      /* the guest is told that all is well */
    VIRTIO_BLK_STOP,        /* the guest is stopped, the request made again when it goes on */
    VIRTIO_BLK_STOP_ENOSPC, /* that where there is no space left; else report */
} VirtioBlkOnError;

typedef struct VirtioBlkStopOps {
    /* A request is held because of @error (-errno): stop the guest, and call virtio_blk_retry()
     * some time. Home of the queue; must not call the device nor wait. */
    void (*stop)(void *opaque, bool is_write, int error);
    /* One has failed, and the guest has been told, or has not (@ignored). As above. NULL = nobody
     * wants to know. */
    void (*failed)(void *opaque, bool is_write, bool ignored, int error);
} VirtioBlkStopOps;

typedef struct VirtioBlkParams {
    const char *id;       /* name; copied */
    const char *serial;   /* up to 20 bytes for GET_ID; NULL = the id */
    unsigned nb_queues;   /* 1 .. VIRTIO_QUEUES_MAX */
    unsigned queue_size;  /* power of 2, 4 .. VQ_SIZE_MAX; 0 = 256 */
    uint32_t seg_max;     /* data segments a request; 0 = min(queue_size - 2, 126) */
    uint32_t block_bytes; /* logical block size; 0 = the backend's */
    bool read_only;
    bool packed; /* offer packed rings, which the driver may choose */
    VirtioBlkOnError on_read_error;
    VirtioBlkOnError on_write_error;  /* write, flush, discard, write-zeroes */
    const VirtioBlkStopOps *stop_ops; /* needed where one of these stops; borrowed */
    void *stop_opaque;
} VirtioBlkParams;

VirtioBlk *virtio_blk_create(const VirtioBlkParams *params, BlockBackend *blk,
                             const GuestMemory *gm, Error *err) NONNULL(1, 2, 3) WARN_UNUSED;
void virtio_blk_destroy(VirtioBlk *vblk);

VirtioDevice *virtio_blk_device(VirtioBlk *vblk) NONNULL(1);

/* virtio_blk_retry - make the requests again that are held because of an error. Main. */
void virtio_blk_retry(VirtioBlk *vblk) NONNULL(1);
bool virtio_blk_holds_requests(VirtioBlk *vblk) NONNULL(1);

/* virtio_blk_acct - what a queue's requests have been, since the device was created */
const BlkAcct *virtio_blk_acct(const VirtioBlk *vblk, unsigned queue) NONNULL(1);

#endif
