/*
 * channel-int.h - what a kind of channel implements, and what it embeds
 *
 * Layer:     io/channel, private
 * Threading: see each slot.
 */
#ifndef IO_CHANNEL_CHANNEL_INT_H
#define IO_CHANNEL_CHANNEL_INT_H

#include "io/channel/channel.h"
#include "io/channel/socket-address.h"
#include "io/channel/wait-slot.h"

#define CHANNEL_NAME_BYTES (SOCKET_ADDRESS_TEXT_BYTES + 16)

typedef struct ChannelOps {
    /*
     * One attempt to read or write at least a byte; @niov > 0 and the total > 0. Called by the one
     * coroutine of that direction, which has not been shut down. -EAGAIN when it would have to
     * wait. @fds may be NULL; a co_writev that cannot send them gives -EINVAL.
     */
    ssize_t (*co_readv)(Channel *ch, const struct iovec *iov, int niov, ChannelFds *fds) co_fn_ptr;
    ssize_t (*co_writev)(Channel *ch, const struct iovec *iov, int niov,
                         const ChannelFds *fds) co_fn_ptr;
    /*
     * Wait until a try may succeed: either co_wait does it all (0 or -errno; deadlines are its own
     * business), or it is NULL and the base waits at the slot of the direction, which the kind has
     * wait_slot_wake() called for: by what watch() switches on and off in the waiter's context
     * (channel_watch_fd()), or by whoever makes it ready. In the latter case ready() is asked once
     * more after the coroutine has been published.
     */
    int (*co_wait)(Channel *ch, ChannelCondition condition) co_fn_ptr;
    void (*watch)(Channel *ch, ChannelCondition condition, bool on);
    bool (*ready)(Channel *ch, ChannelCondition condition);
    /* End writing in order; NULL = nothing to do before shutting down. Called as co_writev. */
    int (*co_half_close)(Channel *ch) co_fn_ptr;
    /* @directions have just been shut down; called once for each, any thread. NULL = nothing to
     * do. */
    void (*shutdown)(Channel *ch, unsigned directions);
    /* That direction has been shut down and nobody is in it any more, nor will be; called at most
     * once, any thread. NULL = nothing to do. */
    void (*vacated)(Channel *ch, ChannelCondition direction);
    /* A deadline was set for these directions. NULL = nothing to do. */
    void (*set_deadline)(Channel *ch, unsigned directions, int64_t deadline_ns);
    /* The last reference is gone: close and free. Any thread. */
    void (*destroy)(Channel *ch);
} ChannelOps;

/* One direction. The reader's and the writer's thread do not share a cache line. */
typedef struct ChannelSide {
    _Atomic unsigned state CACHE_ALIGNED; /* SIDE_* of channel.c */
    unsigned burst;                       /* operations since the last wait; its coroutine only */
    int64_t deadline_ns;                  /* likewise */
    WaitSlot slot;
    AioContext *_Atomic watched_in; /* whose handler waits for this direction; see channel.c */
} ChannelSide;

struct Channel {
    const ChannelOps *ops;
    _Atomic unsigned refs;
    char name[CHANNEL_NAME_BYTES];
    ChannelSide read, write;
};

static inline ChannelSide *channel_side(Channel *ch, ChannelCondition direction)
{
    return direction == CHANNEL_READ ? &ch->read : &ch->write;
}

/* channel_alloc - zeroed memory for a kind whose first member is its Channel; free() it. NULL when
 * there is none. */
void *channel_alloc(size_t size_bytes) WARN_UNUSED;
/* channel_init - with one reference */
void channel_init(Channel *ch, const ChannelOps *ops, const char *fmt, ...) NONNULL(1, 2, 3)
    PRINTF(3, 4);
/* channel_is_shut - channel_shutdown() was called for @direction. Any thread. */
bool channel_is_shut(Channel *ch, ChannelCondition direction) NONNULL(1);
/* channel_wake - continue the one that waits in @direction, if any. Any thread. */
void channel_wake(Channel *ch, ChannelCondition direction) NONNULL(1);
/*
 * channel_co_try_readv, channel_co_try_writev - one attempt on a channel that another one stands
 * on; -EAGAIN when it would have to wait (then channel_yield() is the thing to do), else as
 * co_readv
 */
co_fn ssize_t channel_co_try_readv(Channel *ch, const struct iovec *iov, int niov, ChannelFds *fds)
    NONNULL(1, 2) WARN_UNUSED;
co_fn ssize_t channel_co_try_writev(Channel *ch, const struct iovec *iov, int niov,
                                    const ChannelFds *fds) NONNULL(1, 2) WARN_UNUSED;
/*
 * channel_watch_fd - a watch() on descriptors
 * @shared  both directions wait for this @fd, which has one handler in a context
 */
void channel_watch_fd(Channel *ch, ChannelCondition condition, int fd, bool shared, bool on)
    NONNULL(1);

/* fd_prepare - make @fd non-blocking and close-on-exec */
int fd_prepare(int fd) WARN_UNUSED;

/*
 * IovWindow - walks an iovec list of any length without changing it
 * window_get() gives the part that has not been taken yet, at most IOV_WINDOW segments of it.
 */
#define IOV_WINDOW 32

typedef struct IovWindow {
    const struct iovec *iov;
    int niov;
    size_t skip_bytes; /* of iov[0], < its length unless niov == 0 */
    struct iovec part[IOV_WINDOW];
} IovWindow;

void window_init(IovWindow *window, const struct iovec *iov, int niov) NONNULL(1);
/* window_get - fill part[]; returns how many, 0 when nothing is left */
int window_get(IovWindow *window) NONNULL(1);
void window_advance(IovWindow *window, size_t len_bytes) NONNULL(1);

#endif
