/*
 * ChannelListener - accepts connections and runs a coroutine for each
 *
 * Layer:     io/channel
 * Threading: create, start, stop, unref and wait in one context, the listener's home, which is that
 *            of the thread that creates it. Connection coroutines begin there and may go elsewhere
 *            (aio_co_reschedule_self()); they may end in any context.
 * Lifetime:  reference counted by its creator and by each connection's coroutine.
 *            channel_listener_stop() ends accepting and closes the sockets; connections go on. The
 *            home context outlives them all: see channel_listener_co_wait_idle().
 *
 * At most `connections_max` coroutines at a time; further peers wait in the kernel's queue. When
 * accept() fails for want of descriptors or memory, the listener pauses for ACCEPT_PAUSE_NS instead
 * of asking again at once.
 *
 * A unix socket's file that nobody listens on any more is replaced; one on which somebody does is
 * -EADDRINUSE, and what is no socket is left alone. At the end the file is removed if it still is
 * the one that this listener made.
 */
#ifndef IO_CHANNEL_CHANNEL_LISTENER_H
#define IO_CHANNEL_CHANNEL_LISTENER_H

#include "io/channel/channel-socket.h"

typedef struct ChannelListener ChannelListener;

/* Runs as a coroutine; the reference to @ch is its own to drop. */
typedef void ChannelConnectionFn(Channel *ch, void *opaque);

#define CHANNEL_CONNECTIONS_MAX_DEFAULT 1024

typedef struct ChannelListenerParams {
    ChannelConnectionFn *connection co_fn_ptr;
    void *opaque;
    unsigned connections_max; /* 0 = CHANNEL_CONNECTIONS_MAX_DEFAULT */
} ChannelListenerParams;

/*
 * channel_listener_create - bind and listen; accepts from channel_listener_start() on
 * A host name is resolved here and now, so this may block: start-up only. All addresses that it has
 * are listened on, but for those that this machine does not have; another that cannot be bound
 * fails the whole.
 * Errors: -EADDRINUSE, -EADDRNOTAVAIL, -EACCES, -ENOENT (host, or folder of the path), ...
 */
ChannelListener *channel_listener_create(const SocketAddress *addr,
                                         const ChannelListenerParams *params, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
/*
 * channel_listener_adopt - the same on a socket that listens already (socket activation)
 * Owns: @fd, on failure, too. Its file is not removed at the end.
 */
ChannelListener *channel_listener_adopt(int fd, const ChannelListenerParams *params, Error *err)
    NONNULL(2) WARN_UNUSED;

void channel_listener_start(ChannelListener *listener) NONNULL(1);
/* channel_listener_stop - accept no more; idempotent */
void channel_listener_stop(ChannelListener *listener) NONNULL(1);
/* channel_listener_co_wait_idle - after stopping: wait until all connection coroutines have ended
 * Returns 0, or -ETIMEDOUT at @deadline_ns (-1 = none). One at a time. */
co_fn int channel_listener_co_wait_idle(ChannelListener *listener, int64_t deadline_ns) NONNULL(1)
    WARN_UNUSED;
/* channel_listener_unref - the creator's; stops it. NULL is allowed. */
void channel_listener_unref(ChannelListener *listener);

/* channel_listener_nb_connections - running coroutines. Any thread. */
unsigned channel_listener_nb_connections(const ChannelListener *listener) NONNULL(1);
/* channel_listener_name - of its first socket, with the port that the kernel chose */
const char *channel_listener_name(const ChannelListener *listener) NONNULL(1);

#endif
