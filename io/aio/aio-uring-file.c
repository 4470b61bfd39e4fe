/*
 * aio-uring-file.c - disk requests through the ring: one submission entry each, completed into the
 * coroutine's frame
 *
 * Fixed files. Each ring remembers the generation of what it has registered in a slot and registers
 * on first use, in its home thread, because nobody else may. A bottom half empties the slots whose
 * generation has passed.
 *
 *     ring's slot: empty --[first request]--> holds generation g --[uring_files_sync_bh, or the
 *                  first request of the slot's next file]--> empty or holding that one
 *
 * Fixed buffers. Each ring registers the whole set on first use. One that is refused goes on
 * without.
 *
 * Requests that fail with EINTR are sent again; those that fail with EAGAIN (a full queue below,
 * which older kernels report) once more, for the kernel's worker threads, which wait instead.
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>

#include "io/aio/aio-file-int.h"
#include "io/base/log.h"

/* --- fixed files --- */

void uring_files_sync_bh(void *opaque)
{
    AioContext *ctx = opaque;
    AioFixed *fixed = &ctx->fixed;

    for (unsigned i = 0; fixed->files_on && i < AIO_FILES_MAX; i++) {
        /* acquire: pairs with aio_file_finish() */
        unsigned now = atomic_load_explicit(&aio_file_generation[i], memory_order_acquire);

        if (fixed->file_generation[i] && fixed->file_generation[i] != now) {
            int none = -1;

            fixed->file_generation[i] = 0;
            if (io_uring_register_files_update(&ctx->uring.ring, i, &none, 1) < 0) {
                log_debug("aio", "context '%s': emptying file slot %u failed", ctx->name, i);
            }
        }
    }
}

/* False when this ring has to do with plain descriptors. */
static NOINLINE bool file_register(AioContext *ctx, const AioFile *file)
{
    AioFixed *fixed = &ctx->fixed;
    int fd = file->fd;

    if (!fixed->files_tried) {
        int none[AIO_FILES_MAX];

        memset(none, -1, sizeof(none));
        fixed->files_tried = true;
        fixed->files_on = io_uring_register_files(&ctx->uring.ring, none, AIO_FILES_MAX) == 0;
    }
    if (!fixed->files_on) {
        return false;
    }
    if (io_uring_register_files_update(&ctx->uring.ring, file->slot, &fd, 1) != 1) {
        fixed->files_on = false;
        log_debug("aio", "context '%s': no fixed file for descriptor %d", ctx->name, fd);
        return false;
    }
    fixed->file_generation[file->slot] = file->generation;
    return true;
}

static inline bool file_is_fixed(AioContext *ctx, const AioFile *file)
{
    if (unlikely(file->slot < 0)) {
        return false;
    }
    return likely(ctx->fixed.file_generation[file->slot] == file->generation) ||
           file_register(ctx, file);
}

/* --- fixed buffers --- */

/* Make this ring's registration what the set is now. */
static NOINLINE void buffers_sync(AioContext *ctx)
{
    AioFixed *fixed = &ctx->fixed;
    /* acquire: pair with aio_buffers_register() */
    unsigned generation = atomic_load_explicit(&aio_buffers.generation, memory_order_acquire);
    unsigned nb = atomic_load_explicit(&aio_buffers.nb_ranges, memory_order_acquire);

    if (fixed->buffers_on) {
        io_uring_unregister_buffers(&ctx->uring.ring);
    }
    fixed->buffers_on = false;
    fixed->buffers_generation = generation;
    if (nb > 0) {
        int ret = io_uring_register_buffers(&ctx->uring.ring, aio_buffers.range, nb);

        fixed->buffers_on = ret == 0;
        if (ret < 0) {
            log_info("aio", "context '%s': goes on without fixed buffers: %s", ctx->name,
                     error_strerror(ret));
        }
    }
}

void uring_buffers_sync_bh(void *opaque)
{
    AioContext *ctx = opaque;

    if (ctx->fixed.buffers_on) {
        buffers_sync(ctx);
    }
}

/* The registered range that holds all of @iov, -1 when none does. */
static inline int buffer_index(AioContext *ctx, const struct iovec *iov)
{
    if (unlikely(ctx->fixed.buffers_generation !=
                 atomic_load_explicit(&aio_buffers.generation, memory_order_relaxed))) {
        buffers_sync(ctx);
    }
    if (!ctx->fixed.buffers_on) {
        return -1;
    }
    unsigned nb = atomic_load_explicit(&aio_buffers.nb_ranges, memory_order_acquire);

    for (unsigned i = 0; i < nb; i++) {
        const struct iovec *range = &aio_buffers.range[i];
        size_t offset = (char *)iov->iov_base - (char *)range->iov_base;

        if (offset < range->iov_len && iov->iov_len <= range->iov_len - offset) {
            return i;
        }
    }
    return -1;
}

/* --- requests --- */

/* The kernel transfers no more at once; a longer segment becomes a short read or write. */
#define SEGMENT_BYTES_MAX 0x7ffff000

static void prep_rw(AioContext *ctx, struct io_uring_sqe *sqe, int fd, const AioFileOp *op)
{
    bool write = op->kind == FILE_WRITE;
    const struct iovec *iov = op->iov;

    if (op->niov == 1) {
        unsigned len = MIN(iov->iov_len, SEGMENT_BYTES_MAX);
        int index = buffer_index(ctx, iov);

        if (index >= 0) {
            io_uring_prep_rw(write ? IORING_OP_WRITE_FIXED : IORING_OP_READ_FIXED, sqe, fd,
                             iov->iov_base, len, op->offset_bytes);
            sqe->buf_index = (uint16_t)index;
        } else {
            io_uring_prep_rw(write ? IORING_OP_WRITE : IORING_OP_READ, sqe, fd, iov->iov_base,
                             len, op->offset_bytes);
        }
    } else {
        io_uring_prep_rw(write ? IORING_OP_WRITEV : IORING_OP_READV, sqe, fd, iov,
                         (unsigned)op->niov, op->offset_bytes);
    }
    sqe->rw_flags = op->flags;
}

static void prep(AioContext *ctx, struct io_uring_sqe *sqe, const AioFile *file,
                 const AioFileOp *op)
{
    bool fixed = file_is_fixed(ctx, file);
    int fd = fixed ? file->slot : file->fd;

    switch (op->kind) {
    case FILE_READ:
    case FILE_WRITE:
        prep_rw(ctx, sqe, fd, op);
        break;
    case FILE_DATASYNC:
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
        break;
    case FILE_ALLOCATE:
        io_uring_prep_fallocate(sqe, fd, op->flags, op->offset_bytes, op->len_bytes);
        break;
    }
    if (fixed) {
        sqe->flags |= IOSQE_FIXED_FILE;
    }
}

static bool must_not_wait(const AioFileOp *op)
{
    return op->kind <= FILE_WRITE && (op->flags & RWF_NOWAIT);
}

int uring_co_file_op(AioContext *ctx, const AioFile *file, const AioFileOp *op)
{
    unsigned extra_flags = 0;

    for (;;) {
        struct io_uring_sqe *sqe = uring_co_get_sqe(ctx);

        prep(ctx, sqe, file, op);
        sqe->flags |= extra_flags;
        int res = uring_co_wait(ctx, sqe);

        if (unlikely(res == -EAGAIN) && !extra_flags && !must_not_wait(op)) {
            extra_flags = IOSQE_ASYNC;
        } else if (res != -EINTR) {
            return res;
        }
    }
}
