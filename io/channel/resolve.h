/*
 * resolve - from a name to addresses, without blocking the loop
 *
 * Layer:     io/channel, private
 * Threading: co_resolve() in any context.
 */
#ifndef IO_CHANNEL_RESOLVE_H
#define IO_CHANNEL_RESOLVE_H

#include <netdb.h>

#include "io/channel/cancel.h"
#include "io/channel/socket-address.h"

/*
 * resolve_blocking - getaddrinfo() with an errno
 * @flags  AI_*; AI_PASSIVE to listen
 * @ret_list  freeaddrinfo() it
 * Errors: -ENOENT (no such host or service), -EHOSTUNREACH (no answer now), -ENOMEM, -EIO
 */
int resolve_blocking(const SocketAddress *addr, int flags, struct addrinfo **ret_list, Error *err)
    NONNULL(1, 3) WARN_UNUSED;

/*
 * resolve_co - the same to connect, in a worker thread unless the address is a number
 * Also: -ETIMEDOUT at @deadline_ns (-1 = none), -ECANCELED. The look-up itself cannot be stopped;
 * it is left to end alone.
 */
co_fn int resolve_co(const SocketAddress *addr, int64_t deadline_ns, ChannelCancel *cancel,
                     struct addrinfo **ret_list, Error *err) NONNULL(1, 3, 4) WARN_UNUSED;

#endif
