/*
 * block-aio.h - requests to a BlockBackend with a callback, for code that is no coroutine
 *
 * Layer:     block/ (may use io/)
 * Threading: any thread that is the home of a context; the callback is called in that context,
 *            never before the function that started the request has returned. It runs as a
 *            coroutine and may yield, and start further requests.
 * Lifetime:  the BlkAio is the caller's and must stay until its callback begins; so must what @iov
 *            points to. The request is in flight until the callback has returned, so a drained
 *            section waits for that, too, and the callback must not begin one.
 */
#ifndef BLOCK_BLOCK_AIO_H
#define BLOCK_BLOCK_AIO_H

#include "block/block-backend.h"

typedef void BlkAioCallback(void *opaque, int ret);

/* Filled by the functions below; nothing in it is for the caller. */
typedef struct BlkAio {
    BlockBackend *blk;
    int (*perform)(struct BlkAio *aio); /* in its coroutine */
    uint64_t offset_bytes, len_bytes;
    const struct iovec *iov;
    int niov;
    BlkFlags flags;
    uint64_t *ret_len_bytes;
    BlkAioCallback *cb;
    void *opaque;
    bool starting; /* the starting function has not returned */
} BlkAio;

/* The result is what the function of the same name in block-backend.h returns. Errors of these:
 * -ENOMEM, the callback will not be called. */
int blk_aio_preadv(BlkAio *aio, BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                   const struct iovec *iov, int niov, BlkFlags flags, BlkAioCallback *cb,
                   void *opaque) NONNULL(1, 2, 8) WARN_UNUSED;
int blk_aio_pwritev(BlkAio *aio, BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                    const struct iovec *iov, int niov, BlkFlags flags, BlkAioCallback *cb,
                    void *opaque) NONNULL(1, 2, 8) WARN_UNUSED;
int blk_aio_flush(BlkAio *aio, BlockBackend *blk, BlkAioCallback *cb, void *opaque)
    NONNULL(1, 2, 3) WARN_UNUSED;
int blk_aio_pdiscard(BlkAio *aio, BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                     BlkAioCallback *cb, void *opaque) NONNULL(1, 2, 5) WARN_UNUSED;
int blk_aio_pwrite_zeroes(BlkAio *aio, BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                          BlkFlags flags, BlkAioCallback *cb, void *opaque)
    NONNULL(1, 2, 6) WARN_UNUSED;
int blk_aio_block_status(BlkAio *aio, BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                         uint64_t *ret_len_bytes, BlkAioCallback *cb, void *opaque)
    NONNULL(1, 2, 5, 6) WARN_UNUSED;

#endif
