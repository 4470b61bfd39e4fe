/*
 * aio-file.c - disk requests, and what the process offers to register with the kernel for them
 *
 * A request goes to the monitor of the context that the coroutine is in.
 *
 * Fixed files. A slot number belongs to an AioFile from init to finish; the same number is used in
 * every ring. What a ring has registered in a slot is its own business (aio-uring-file.c); when a
 * file is finished, a bottom half in every context sees to it.
 *
 *     slot: free, even generation --[aio_file_init]--> used, odd --[aio_file_finish]--> free, even
 *
 * Fixed buffers. The set of ranges is set up once, by the main thread, before they are used.
 */
#include "io/aio/aio-file.h"

#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "io/aio/aio-file-int.h"

/* --- fixed files --- */

_Atomic unsigned aio_file_generation[AIO_FILES_MAX];
static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER; /* serialises its changes */

void aio_file_init(AioFile *file, int fd)
{
    *file = (AioFile){ .fd = fd, .slot = -1 };
    pthread_mutex_lock(&slots_lock);
    for (int i = 0; i < AIO_FILES_MAX; i++) {
        unsigned generation = atomic_load_explicit(&aio_file_generation[i], memory_order_relaxed);

        if (!(generation & 1)) {
            file->slot = i;
            file->generation = generation + 1;
            atomic_store_explicit(&aio_file_generation[i], generation + 1, memory_order_release);
            break;
        }
    }
    pthread_mutex_unlock(&slots_lock);
}

void aio_file_finish(AioFile *file)
{
    if (file->slot < 0) {
        return;
    }
    pthread_mutex_lock(&slots_lock);
    atomic_store_explicit(&aio_file_generation[file->slot], file->generation + 1,
                          memory_order_release);
    pthread_mutex_unlock(&slots_lock);
    file->slot = -1;
    context_bh_everywhere(uring_files_sync_bh);
}

/* --- fixed buffers --- */

#define BUFFER_BYTES_MAX (1ULL << 30) /* the kernel's limit for one */

AioBuffers aio_buffers;

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

        if (*nb == AIO_BUFFERS_MAX) {
            return error_set(err, -E2BIG, "fixed buffers: more than %d GiB", AIO_BUFFERS_MAX);
        }
        aio_buffers.range[(*nb)++] = (struct iovec){ base, len };
        base += len;
        left -= len;
    }
    return 0;
}

int aio_buffers_register(const struct iovec *ranges, unsigned nb_ranges, Error *err)
{
    uint64_t bytes = 0;
    unsigned nb = 0;

    if (atomic_load_explicit(&aio_buffers.nb_ranges, memory_order_relaxed) > 0) {
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
    atomic_store_explicit(&aio_buffers.nb_ranges, nb, memory_order_release);
    atomic_fetch_add_explicit(&aio_buffers.generation, 1, memory_order_release);
    return 0;
}

void aio_buffers_unregister(void)
{
    atomic_store_explicit(&aio_buffers.nb_ranges, 0, memory_order_release);
    atomic_fetch_add_explicit(&aio_buffers.generation, 1, memory_order_release);
    context_bh_everywhere(uring_buffers_sync_bh);
}

/* --- requests --- */

bool aio_should_submit(const AioContext *ctx)
{
    return ctx->inflight > 0 && ctx->monitor->should_submit(ctx);
}

static co_fn int submit(AioFile *file, const AioFileOp *op)
{
    AioContext *ctx = aio_current();

    return ctx->monitor->co_file_op(ctx, file, op);
}

int64_t aio_co_preadv(AioFile *file, const struct iovec *iov, int niov, uint64_t offset_bytes,
                      int rw_flags)
{
    AioFileOp op = { FILE_READ, rw_flags, iov, niov, offset_bytes, 0 };

    return submit(file, &op);
}

int64_t aio_co_pwritev(AioFile *file, const struct iovec *iov, int niov, uint64_t offset_bytes,
                       int rw_flags)
{
    AioFileOp op = { FILE_WRITE, rw_flags, iov, niov, offset_bytes, 0 };

    return submit(file, &op);
}

int aio_co_fdatasync(AioFile *file)
{
    AioFileOp op = { .kind = FILE_DATASYNC };

    return submit(file, &op);
}

int aio_co_fallocate(AioFile *file, int mode, uint64_t offset_bytes, uint64_t len_bytes)
{
    AioFileOp op = { FILE_ALLOCATE, mode, NULL, 0, offset_bytes, len_bytes };

    return submit(file, &op);
}
