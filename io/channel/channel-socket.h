/*
 * channel-socket - channels on connected stream sockets, unix and TCP
 *
 * Layer:     io/channel
 * Threading: any thread; co_ functions in the caller's context. See channel.h.
 *
 * TCP sockets get TCP_NODELAY and keepalive. Only unix sockets carry descriptors.
 * Zero-copy sending is left out: see the README.
 */
#ifndef IO_CHANNEL_CHANNEL_SOCKET_H
#define IO_CHANNEL_CHANNEL_SOCKET_H

#include "io/channel/cancel.h"
#include "io/channel/channel.h"
#include "io/channel/socket-address.h"

/*
 * channel_socket_adopt - a channel on a connected stream socket
 * Owns: @fd, on failure, too (it is closed). It is made non-blocking and close-on-exec.
 * Errors: -ENOTSOCK, -EPROTOTYPE (no stream socket), -ENOTCONN, -ENOMEM
 */
Channel *channel_socket_adopt(int fd, Error *err) WARN_UNUSED;

/*
 * channel_co_connect - connect to @addr
 * A name is resolved in a worker thread, and its addresses are tried one after the other, each for
 * a few seconds at most while others are left.
 * @deadline_ns  of aio_now_ns(), -1 = no limit but the kernel's
 * @cancel       may be NULL; channel_cancel() makes it return -ECANCELED soon
 * Errors: -ENOENT (name not known), -ECONNREFUSED, -ETIMEDOUT, -ECANCELED, ...; that of the last
 *         address that was tried.
 */
co_fn Channel *channel_co_connect(const SocketAddress *addr, int64_t deadline_ns,
                                  ChannelCancel *cancel, Error *err) NONNULL(1) WARN_UNUSED;

#endif
