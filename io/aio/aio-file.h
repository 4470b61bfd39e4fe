/*
 * AioFile - disk requests on a file descriptor, in whichever context the calling coroutine runs
 *
 * Layer:     io/aio
 * Threading: every co_ function may be called from any context; the request goes through the
 *            calling coroutine's current context and wakes it there. An AioFile may be used by many
 *            contexts at once. Opening and closing happen in the main thread.
 * Lifetime:  aio_file_init() borrows the descriptor; aio_file_finish() when no request is in
 *            flight.
 *
 * In a context on epoll a request is a call in a worker thread (aio-worker.h), and neither fixed
 * files nor fixed buffers mean anything. On io_uring:
 * Fixed files: each ring gets the descriptor registered on first use, at the same slot in every
 * ring, where the kernel has sparse tables; else plain descriptors are used. Fixed buffers: guest
 * RAM is registered once for all contexts by aio_buffers_register(); a request with a
 * single segment inside a registered range uses READ_FIXED/WRITE_FIXED.
 * No request allocates: the completion record lives in the coroutine's frame.
 */
#ifndef IO_AIO_AIO_FILE_H
#define IO_AIO_AIO_FILE_H

#include "io/aio/aio.h"

typedef struct AioFile {
    int fd;
    int slot;            /* in the fixed-file tables, -1 = none */
    unsigned generation; /* of the slot's use */
} AioFile;

void aio_file_init(AioFile *file, int fd) NONNULL(1);
/*
 * aio_file_finish - give the slot back
 * Rings that had the descriptor registered hold a reference to the open file until their next pass,
 * so a lock or an unlinked file's space may outlive the caller's close() by that much.
 */
void aio_file_finish(AioFile *file) NONNULL(1);

/* Bytes transferred (may be short, 0 at end of file) or -errno; -EINTR and -EAGAIN are retried
 * inside. @iov must stay valid until the return. @offset_bytes: at most INT64_MAX. @rw_flags: RWF_*
 * (RWF_DSYNC for FUA). */
co_fn int64_t aio_co_preadv(AioFile *file, const struct iovec *iov, int niov, uint64_t offset_bytes,
                            int rw_flags) NONNULL(1, 2) WARN_UNUSED;
co_fn int64_t aio_co_pwritev(AioFile *file, const struct iovec *iov, int niov,
                             uint64_t offset_bytes, int rw_flags) NONNULL(1, 2) WARN_UNUSED;
co_fn int aio_co_fdatasync(AioFile *file) NONNULL(1) WARN_UNUSED;
/* @mode: FALLOC_FL_* */
co_fn int aio_co_fallocate(AioFile *file, int mode, uint64_t offset_bytes, uint64_t len_bytes)
    NONNULL(1) WARN_UNUSED;

/*
 * aio_should_submit - disks have no more left to do than is queued for them in @ctx
 * They get what is queued at the end of the pass. So whoever has many requests to start does well
 * to leave the rest to the next pass, which does not wait for this. Context: home.
 */
bool aio_should_submit(const AioContext *ctx) NONNULL(1);

/*
 * Fixed buffers, main thread, at start-up before the ranges are used for I/O. Contexts register
 * them lazily, each in its own home thread. Ranges larger than 1 GiB are split.
 * Errors: -ENOMEM when RLIMIT_MEMLOCK does not allow it: the caller goes on without.
 */
int aio_buffers_register(const struct iovec *ranges, unsigned nb_ranges, Error *err) NONNULL(1)
    WARN_UNUSED;
void aio_buffers_unregister(void);

#endif
