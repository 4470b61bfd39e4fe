/*
 * aio-file.c - disk requests: one submission entry each, completed into the coroutine's frame
 *
 * Fixed files. A slot number belongs to an AioFile from init to finish; the same number is used in
 * every ring. Each ring remembers the generation of what it has registered in a slot and registers
 * on first use, in its home thread, because nobody else may. When a file is finished, a bottom half
 * in every context empties the slots whose generation has passed.
 *
 *     slot: free, even generation --[aio_file_init]--> used, odd --[aio_file_finish]--> free, even
 *     ring: empty --[first request]--> holds generation g --[files_sync_bh, or the first request
 *           of the slot's next file]--> empty or holding that one
 *
 * Fixed buffers. The set of ranges is set up once, by the main thread, before they are used; each
 * ring registers it whole on first use. A ring that is refused goes on without.
 *
 * Requests that fail with EINTR are sent again; those that fail with EAGAIN (a full queue below,
 * which older kernels report) once more, for the kernel's worker threads, which wait instead.
 */
#include "io/aio/aio-file.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "io/aio/aio-int.h"
#include "io/base/log.h"

/* --- fixed files --- */

static struct {
    pthread_mutex_t lock; /* serialises changes */
    /* Odd while in use. Written with release, read by any thread: pairs with files_sync_bh(). */
    _Atomic unsigned generation[AIO_FILES_MAX];
} slots = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
};

void aio_file_init(AioFile *file, int fd)
{
    *file = (AioFile){ .fd = fd, .slot = -1 };
    pthread_mutex_lock(&slots.lock);
    for (int i = 0; i < AIO_FILES_MAX; i++) {
        unsigned generation = atomic_load_explicit(&slots.generation[i], memory_order_relaxed);

        if (!(generation & 1)) {
            file->slot = i;
            file->generation = generation + 1;
            atomic_store_explicit(&slots.generation[i], generation + 1, memory_order_release);
            break;
        }
    }
    pthread_mutex_unlock(&slots.lock);
}

/* Empty the slots of files that are gone. */
static void files_sync_bh(void *opaque)
{
    AioContext *ctx = opaque;
    AioFixed *fixed = &ctx->fixed;

    for (unsigned i = 0; fixed->files_on && i < AIO_FILES_MAX; i++) {
        /* acquire: pairs with aio_file_finish() */
        unsigned now = atomic_load_explicit(&slots.generation[i], memory_order_acquire);

        if (fixed->file_generation[i] && fixed->file_generation[i] != now) {
            int none = -1;

            fixed->file_generation[i] = 0;
            if (io_uring_register_files_update(&ctx->uring.ring, i, &none, 1) < 0) {
                log_debug("aio", "context '%s': emptying file slot %u failed", ctx->name, i);
            }
        }
    }
}

void aio_file_finish(AioFile *file)
{
    if (file->slot < 0) {
        return;
    }
    pthread_mutex_lock(&slots.lock);
    atomic_store_explicit(&slots.generation[file->slot], file->generation + 1,
                          memory_order_release);
    pthread_mutex_unlock(&slots.lock);
    file->slot = -1;
    context_bh_everywhere(files_sync_bh);
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

#define BUFFER_BYTES_MAX (1ULL << 30) /* the kernel's limit for one */
#define BUFFERS_MAX      256

static struct {
    struct iovec range[BUFFERS_MAX];
    /* Both are stored with release by the main thread when range[] stands: pair with
     * buffers_sync() and buffer_index(). */
    _Atomic unsigned nb_ranges;
    _Atomic unsigned generation;
} buffers;

static bool may_lock(uint64_t bytes)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = { 0 };
    struct rlimit limit;

    if (syscall(SYS_capget, &header, data) == 0 &&
        (data[CAP_TO_INDEX(CAP_IPC_LOCK)].effective & CAP_TO_MASK(CAP_IPC_LOCK))) {
        return true;
    }
    return getrlimit(RLIMIT_MEMLOCK, &limit) == 0 &&
           (limit.rlim_cur == RLIM_INFINITY || bytes <= limit.rlim_cur);
}

static int buffers_add(const struct iovec *range, unsigned *nb, Error *err)
{
    char *base = range->iov_base;
    size_t left = range->iov_len;

    while (left > 0) {
        size_t len = MIN(left, BUFFER_BYTES_MAX);

        if (*nb == BUFFERS_MAX) {
            return error_set(err, -E2BIG, "fixed buffers: more than %d GiB", BUFFERS_MAX);
        }
        buffers.range[(*nb)++] = (struct iovec){ base, len };
        base += len;
        left -= len;
    }
    return 0;
}

int aio_buffers_register(const struct iovec *ranges, unsigned nb_ranges, Error *err)
{
    uint64_t bytes = 0;
    unsigned nb = 0;

    if (atomic_load_explicit(&buffers.nb_ranges, memory_order_relaxed) > 0) {
        return error_set(err, -EBUSY, "fixed buffers are registered already");
    }
    for (unsigned i = 0; i < nb_ranges; i++) {
        bytes += ranges[i].iov_len;
        int ret = buffers_add(&ranges[i], &nb, err);

        if (ret < 0) {
            return ret;
        }
    }
    if (!may_lock(bytes)) {
        return error_set(err, -ENOMEM,
                         "fixed buffers: %llu MiB is more than the memory-lock limit (ulimit -l)",
                         (unsigned long long)bytes >> 20);
    }
    atomic_store_explicit(&buffers.nb_ranges, nb, memory_order_release);
    atomic_fetch_add_explicit(&buffers.generation, 1, memory_order_release);
    return 0;
}

/* Make this ring's registration what the set is now. */
static NOINLINE void buffers_sync(AioContext *ctx)
{
    AioFixed *fixed = &ctx->fixed;
    /* acquire: pair with aio_buffers_register() */
    unsigned generation = atomic_load_explicit(&buffers.generation, memory_order_acquire);
    unsigned nb = atomic_load_explicit(&buffers.nb_ranges, memory_order_acquire);

    if (fixed->buffers_on) {
        io_uring_unregister_buffers(&ctx->uring.ring);
    }
    fixed->buffers_on = false;
    fixed->buffers_generation = generation;
    if (nb > 0) {
        int ret = io_uring_register_buffers(&ctx->uring.ring, buffers.range, nb);

        fixed->buffers_on = ret == 0;
        if (ret < 0) {
            log_info("aio", "context '%s': goes on without fixed buffers: %s", ctx->name,
                     error_strerror(ret));
        }
    }
}

static void buffers_sync_bh(void *opaque)
{
    AioContext *ctx = opaque;

    if (ctx->fixed.buffers_on) {
        buffers_sync(ctx);
    }
}

void aio_buffers_unregister(void)
{
    atomic_store_explicit(&buffers.nb_ranges, 0, memory_order_release);
    atomic_fetch_add_explicit(&buffers.generation, 1, memory_order_release);
    context_bh_everywhere(buffers_sync_bh);
}

/* The registered range that holds all of @iov, -1 when none does. */
static inline int buffer_index(AioContext *ctx, const struct iovec *iov)
{
    if (unlikely(ctx->fixed.buffers_generation !=
                 atomic_load_explicit(&buffers.generation, memory_order_relaxed))) {
        buffers_sync(ctx);
    }
    if (!ctx->fixed.buffers_on) {
        return -1;
    }
    unsigned nb = atomic_load_explicit(&buffers.nb_ranges, memory_order_acquire);

    for (unsigned i = 0; i < nb; i++) {
        const struct iovec *range = &buffers.range[i];
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

typedef enum FileOpKind {
    FILE_READ,
    FILE_WRITE,
    FILE_DATASYNC,
    FILE_ALLOCATE,
} FileOpKind;

typedef struct FileOp {
    FileOpKind kind;
    int flags; /* RWF_* or FALLOC_FL_* */
    const struct iovec *iov;
    int niov;
    uint64_t offset_bytes;
    uint64_t len_bytes;
} FileOp;

static void prep_rw(AioContext *ctx, struct io_uring_sqe *sqe, int fd, const FileOp *op)
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

static void prep(AioContext *ctx, struct io_uring_sqe *sqe, const AioFile *file, const FileOp *op)
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

static co_fn int submit(AioFile *file, const FileOp *op)
{
    AioContext *ctx = aio_current(); /* woken where it waits: the same after the yield */
    bool nowait = op->kind <= FILE_WRITE && (op->flags & RWF_NOWAIT);
    unsigned extra_flags = 0;

    for (;;) {
        struct io_uring_sqe *sqe = uring_co_get_sqe(ctx);

        prep(ctx, sqe, file, op);
        sqe->flags |= extra_flags;
        int res = uring_co_wait(ctx, sqe);

        if (res == -EAGAIN && !extra_flags && !nowait) {
            extra_flags = IOSQE_ASYNC;
        } else if (res != -EINTR) {
            return res;
        }
    }
}

int64_t aio_co_preadv(AioFile *file, const struct iovec *iov, int niov, uint64_t offset_bytes,
                      int rw_flags)
{
    FileOp op = { FILE_READ, rw_flags, iov, niov, offset_bytes, 0 };

    return submit(file, &op);
}

int64_t aio_co_pwritev(AioFile *file, const struct iovec *iov, int niov, uint64_t offset_bytes,
                       int rw_flags)
{
    FileOp op = { FILE_WRITE, rw_flags, iov, niov, offset_bytes, 0 };

    return submit(file, &op);
}

int aio_co_fdatasync(AioFile *file)
{
    FileOp op = { .kind = FILE_DATASYNC };

    return submit(file, &op);
}

int aio_co_fallocate(AioFile *file, int mode, uint64_t offset_bytes, uint64_t len_bytes)
{
    FileOp op = { FILE_ALLOCATE, mode, NULL, 0, offset_bytes, len_bytes };

    return submit(file, &op);
}
