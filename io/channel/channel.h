/*
 * Channel - a stream of bytes to a peer, read and written by coroutines of any context
 *
 * Layer:     io/channel (may use io/base, io/co, io/aio)
 * Threading: a channel has two directions, reading and writing, and belongs to no thread. At most
 *            one coroutine at a time is in each direction (asserted: who shares a direction brings
 *            a CoMutex), and the two may run in different contexts. A wait happens in the context
 *            in which the calling coroutine runs at that moment and leaves nothing behind there
 *            when it returns. Functions marked "any thread" need no coroutine.
 * Lifetime:  reference counted; the last channel_unref() closes it, in whichever thread. Each
 *            coroutine that is in a function of a channel needs a reference that lasts meanwhile.
 *
 * Kinds, each with a header of its own: sockets (channel-socket.h; made by connecting, by a
 * ChannelListener or from a descriptor), TLS over another channel (channel-tls.h), a child
 * process's standard input and output (channel-command.h), pipes and files (channel-file.h), a pair
 * in memory (channel-buffer.h).
 *
 * An operation first tries; only what would block waits, with a one-shot poll that rides along with
 * the context's next io_uring_enter: a wait costs no system call of its own. A channel never reads
 * ahead of what was asked for (TLS does, inside its session), so that bytes which came before TLS
 * was started over it cannot turn up afterwards, and so that passed descriptors stay with their
 * bytes.
 *
 * The end of a direction. The peer's end of writing is a read of 0 bytes. channel_shutdown(), from
 * any thread, ends this side at once: who waits there wakes up, and that and every later operation
 * gives -ESHUTDOWN. channel_co_half_close() ends writing in order.
 *
 * Errors of reading and writing are of the stream; after one, that direction is of no more use:
 *   -ESHUTDOWN     channel_shutdown() was called on this side
 *   -ETIMEDOUT     the deadline of channel_set_deadline() has passed (or TCP gave up)
 *   -EPIPE, -ECONNRESET  the peer is gone; _full: it ended in the middle
 *   -EMSGSIZE      more descriptors came than CHANNEL_FDS_MAX; they have been closed
 *   -EMFILE        more descriptors came than this process may have; they have been closed
 *   -EPROTO        TLS: the peer broke the protocol; -ECONNABORTED: its stream was cut off without
 *                  the closing message, by the peer or by somebody in between
 *   any other -errno of the system call
 * There is no -EAGAIN and no -EINTR.
 */
#ifndef IO_CHANNEL_CHANNEL_H
#define IO_CHANNEL_CHANNEL_H

#include <sys/types.h>

#include "io/aio/aio.h"

typedef struct Channel Channel;

typedef enum ChannelCondition {
    CHANNEL_READ = 1,
    CHANNEL_WRITE = 2,
} ChannelCondition;

/* channel_ref - one more owner; returns @ch. Any thread. */
Channel *channel_ref(Channel *ch) NONNULL(1);
/* channel_unref - one owner less; the last one closes abruptly (what was written is still
 * delivered). NULL is allowed. Any thread. */
void channel_unref(Channel *ch);

/* channel_name - the peer or what it is, for messages: "unix:/run/nbd.sock", "tls over
 * [::1]:10809". Lives as long as the channel. Any thread. */
const char *channel_name(const Channel *ch) NONNULL(1);

/* --- passed descriptors (unix sockets only) --- */

#define CHANNEL_FDS_MAX 16 /* that come with one read, or go with one write */

/* { 0 } is empty. */
typedef struct ChannelFds {
    unsigned nb;
    int fds[CHANNEL_FDS_MAX];
} ChannelFds;

/* channel_fds_close - close those that are left (>= 0), by fd_close_foreign(), and make it empty.
 * Take one over by take_fd(&fds->fds[i]). */
void channel_fds_close(ChannelFds *fds) NONNULL(1);

/* --- reading and writing --- */

/*
 * channel_co_readv - read what is there, at least one byte
 * @fds  may be NULL: descriptors that come are closed. Else those that came with
 *       these bytes are added to it, close-on-exec; the caller owns them, after an error, too.
 * Returns bytes read, 0 = the peer ended its writing (or @iov is empty), or an error as above.
 */
co_fn ssize_t channel_co_readv(Channel *ch, const struct iovec *iov, int niov, ChannelFds *fds)
    NONNULL(1) WARN_UNUSED;
/*
 * channel_co_readv_full - read all of @iov
 * Returns 1, or 0 when the peer had ended before the first byte; -ECONNRESET when it ended later.
 * @fds as above: what came with any of the bytes.
 */
co_fn int channel_co_readv_full(Channel *ch, const struct iovec *iov, int niov, ChannelFds *fds)
    NONNULL(1) WARN_UNUSED;
/*
 * channel_co_writev_full - write all of @iov
 * @fds  may be NULL; sent with the first byte (-EINVAL when there is no byte, or the channel cannot
 *       carry them). They stay the caller's.
 * Returns 0 or an error as above; how much went out before it is not known.
 */
co_fn int channel_co_writev_full(Channel *ch, const struct iovec *iov, int niov,
                                 const ChannelFds *fds) NONNULL(1) WARN_UNUSED;

static inline co_fn WARN_UNUSED ssize_t channel_co_read(Channel *ch, void *buf, size_t len_bytes)
{
    struct iovec iov = { buf, len_bytes };

    return channel_co_readv(ch, &iov, 1, NULL);
}

static inline co_fn WARN_UNUSED int channel_co_read_full(Channel *ch, void *buf, size_t len_bytes)
{
    struct iovec iov = { buf, len_bytes };

    return channel_co_readv_full(ch, &iov, 1, NULL);
}

static inline co_fn WARN_UNUSED int channel_co_write_full(Channel *ch, const void *buf,
                                                          size_t len_bytes)
{
    struct iovec iov = { (void *)buf, len_bytes };

    return channel_co_writev_full(ch, &iov, 1, NULL);
}

/*
 * channel_yield - wait in the caller's context until @condition (one of the two) may hold
 * The caller counts as that direction's one coroutine meanwhile. A return does not promise that the
 * next try succeeds: spurious wake-ups happen.
 * Returns 0, -ESHUTDOWN or -ETIMEDOUT.
 */
co_fn int channel_yield(Channel *ch, ChannelCondition condition) NONNULL(1) WARN_UNUSED;

/*
 * channel_set_deadline - from now on operations in these directions fail with -ETIMEDOUT rather
 * than wait beyond @deadline_ns (of aio_now_ns(); -1 = no limit, as at first)
 * @directions  CHANNEL_READ | CHANNEL_WRITE
 * Context: nobody is in these directions, or the caller is the one that will be next.
 */
void channel_set_deadline(Channel *ch, unsigned directions, int64_t deadline_ns) NONNULL(1);

/* --- ending --- */

/*
 * channel_shutdown - end these directions of this side at once, see above; idempotent
 * @directions  CHANNEL_READ | CHANNEL_WRITE
 * Any thread, in a coroutine or not; never blocks.
 */
void channel_shutdown(Channel *ch, unsigned directions) NONNULL(1);

/*
 * channel_co_half_close - end writing in order: the peer reads all that was written, then the end
 * TLS sends its closing message first. Reading goes on.
 * The caller is the writing direction's one coroutine. Returns 0 or an error as above; the writing
 * direction is shut down in either case.
 */
co_fn int channel_co_half_close(Channel *ch) NONNULL(1);

#endif
