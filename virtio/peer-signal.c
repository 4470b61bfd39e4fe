/*
 * peer-signal.c - see peer-signal.h
 *
 * Each event loop has an AIO context of its own, made when its thread signals first, and given to
 * whichever loop gets the same index later. Nobody wants to know of completions: before each
 * submission they are taken off the ring that the kernel shares with us, as its header allows.
 */
#include "virtio/peer-signal.h"

#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io/aio/aio.h"

#define EVENTS     8
#define RING_MAGIC 0xa10a10a1u

/* Where an aio_context_t points; Linux fs/aio.c, as user space has relied on it since. */
typedef struct AioRing {
    uint32_t id, nr;
    uint32_t head, tail;
    uint32_t magic;
} AioRing;

typedef struct Signaller {
    bool tried;
    aio_context_t ctx; /* 0 = none to be had */
} Signaller;

static Signaller signallers[AIO_CONTEXTS_MAX];

static aio_context_t find_ctx(void)
{
    const AioContext *home = aio_current();
    Signaller *signaller = home ? &signallers[aio_context_index(home)] : NULL;

    if (!signaller) {
        return 0;
    }
    if (!signaller->tried) {
        signaller->tried = true;
        if (syscall(SYS_io_setup, EVENTS, &signaller->ctx) < 0) {
            signaller->ctx = 0;
        }
    }
    return signaller->ctx;
}

static bool signal_by_kernel(int fd)
{
    aio_context_t ctx = find_ctx();
    AioRing *ring = (AioRing *)(uintptr_t)ctx;
    struct iocb read_nothing = {
        .aio_lio_opcode = IOCB_CMD_PREAD,
        .aio_fildes = (uint32_t)fd,
        .aio_flags = IOCB_FLAG_RESFD,
        .aio_resfd = (uint32_t)fd,
    };
    struct iocb *iocbs[] = { &read_nothing };

    if (!ctx || ring->magic != RING_MAGIC) {
        return false;
    }
    __atomic_store_n(&ring->head, __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE),
                     __ATOMIC_RELEASE);
    return syscall(SYS_io_submit, ctx, 1, iocbs) == 1;
}

static void look_and_write(int fd)
{
    static const uint64_t one = 1;
    struct pollfd poller = { .fd = fd, .events = POLLOUT };

    if (poll(&poller, 1, 0) == 1 && (poller.revents & POLLOUT)) {
        ssize_t written UNUSED = write(fd, &one, sizeof(one));
    }
}

void peer_signal(int fd)
{
    if (!signal_by_kernel(fd)) {
        look_and_write(fd);
    }
}
