/*
 * nbd-handshake - what client and server agree on before the first request, from the client's side
 *
 * Layer:     block/nbd (may use io/)
 * Threading: one coroutine, in any context.
 * Lifetime:  nothing outlives the call.
 *
 * Tried in this order, and done without where a server lacks it: extended headers, structured
 * replies, base:allocation, GO with block sizes; EXPORT_NAME where there is no GO. Before all that
 * TLS, which is not done without when it is asked for.
 */
#ifndef BLOCK_NBD_NBD_HANDSHAKE_H
#define BLOCK_NBD_NBD_HANDSHAKE_H

#include "block/nbd/nbd-proto.h"
#include "block/nbd/nbd-uri.h"
#include "io/channel/channel.h"

/* What was agreed on. */
typedef struct NbdExport {
    NbdHeaders headers;
    uint64_t length_bytes;
    uint16_t flags;      /* NBD_FLAG_... */
    NbdBlockSizes sizes; /* the protocol's defaults when the server did not say */
    bool has_status;     /* block status of base:allocation may be asked for */
    uint32_t status_context;
} NbdExport;

/*
 * nbd_co_handshake - from the first byte of a connection to where requests may be sent
 * @ch     replaced by a channel over it when TLS is started; the caller's, on failure, too
 * @creds  NULL unless uri->tls
 * @deadline_ns  of aio_now_ns()
 * Errors: -EPROTO the server broke the protocol; -ENOENT no such export; -EACCES policy or TLS;
 *         -ENOTSUP it can too little; those of the channel
 */
co_fn int nbd_co_handshake(Channel **ch, const NbdUri *uri, TlsCreds *creds, int64_t deadline_ns,
                           NbdExport *ret_export, Error *err) NONNULL(1, 2, 5) WARN_UNUSED;

#endif
