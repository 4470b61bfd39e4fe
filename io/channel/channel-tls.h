/*
 * channel-tls - TLS 1.2 and 1.3 over another channel
 *
 * Layer:     io/channel
 * Threading: as any channel: a reader and a writer, each in its own context. They share the
 *            session under a mutex that is held while records are made or opened, never while
 *            waiting: waiting is the lower channel's business, in the caller's context.
 * Lifetime:  holds a reference to the lower channel and to the credentials.
 *
 * The handshake's arithmetic, and its appetite for stack, are a worker thread's.
 * Key updates of the peer are followed. Renegotiation (TLS 1.2) is refused. channel_shutdown() ends
 * without the closing message; channel_co_half_close() sends it.
 */
#ifndef IO_CHANNEL_CHANNEL_TLS_H
#define IO_CHANNEL_CHANNEL_TLS_H

#include "io/channel/channel.h"
#include "io/channel/tls-creds.h"

/*
 * channel_tls_co_handshake - start TLS on @lower, on which nobody else reads or writes any more
 * @hostname     client with certificates: the name or address that the server's must be for; NULL:
 *               none is asked for. Otherwise unused.
 * @deadline_ns  of aio_now_ns(), -1 = none. channel_shutdown(@lower) ends the wait, too.
 * Owns: takes a reference to @lower of its own; the caller keeps his.
 * Errors: -EACCES (a certificate or key was not accepted, by us or by the peer), -EPROTO (no TLS,
 *         or nothing in common), -ETIMEDOUT, -ESHUTDOWN, -ECONNABORTED, or the lower channel's
 */
co_fn Channel *channel_tls_co_handshake(Channel *lower, TlsCreds *creds, const char *hostname,
                                        int64_t deadline_ns, Error *err) NONNULL(1, 2) WARN_UNUSED;

#endif
