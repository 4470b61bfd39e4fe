/*
 * NbdClient - the connections to one export, and requests over them
 *
 * Layer:     block/nbd (may use io/, and iov.h of block/)
 * Threading: nbd_client_co_request() from any context, any number at once. Create, destroy, and
 *            what is for drained sections: main thread.
 * Lifetime:  nbd_client_create() .. nbd_client_destroy(), when no request is left.
 *
 * There is no coroutine or thread but those of the requests. Of the requests that wait for replies
 * on a connection one reads, for all of them, until its own reply has come; then another one goes
 * on. When a connection is lost, one of the requests makes a new one. So a client without requests
 * does nothing at all, and a drained section has nothing but requests to wait for.
 *
 * Each context that sends requests keeps to one connection, the next in turn when it sends its
 * first.
 *
 * Losing a connection. Requests on it wait for a new one until reconnect_delay_ns after the loss,
 * and are then sent again; with 0, or when the time is up, they fail with -EIO. Requests that come
 * later try again, at most once in the pause that grows from attempt to attempt. What a server had
 * acknowledged and not flushed when it died is lost if the server loses it.
 */
#ifndef BLOCK_NBD_NBD_CLIENT_H
#define BLOCK_NBD_NBD_CLIENT_H

#include "block/nbd/nbd-handshake.h"

typedef struct NbdClient NbdClient;

#define NBD_CONNECTIONS_MAX 64
#define NBD_IOV_MAX         64 /* segments of one request */

typedef struct NbdClientParams {
    const NbdUri *uri;       /* borrowed for the client's life */
    TlsCreds *creds;         /* likewise; NULL without TLS */
    const char *name;        /* likewise; for messages */
    unsigned nb_connections; /* at most; one unless the server says that several are coherent */
    int64_t reconnect_delay_ns;
    int64_t open_timeout_ns; /* try for so long at first; 0 = once */
    /* A new connection has told another length, nbd_client_length(). Called by a request, in any
     * context, before it goes on. */
    void (*resized)(void *opaque);
    void *opaque;
} NbdClientParams;

/*
 * nbd_client_create - connect
 * Errors: those of channel_co_connect() and nbd_co_handshake(); -ENOMEM. Context: main; waits.
 */
NbdClient *nbd_client_create(const NbdClientParams *params, Error *err) NONNULL(1) WARN_UNUSED;
/* nbd_client_destroy - takes leave of the server, for a second at most. Main; NULL is allowed. */
void nbd_client_destroy(NbdClient *client);

/* nbd_client_export - as it was when we first connected; each new connection has to offer as
 * much, but for the length, and for what can be done without: block status, CACHE, FAST_ZERO */
const NbdExport *nbd_client_export(const NbdClient *client) NONNULL(1);
/* nbd_client_length - in bytes, as the latest connection was told. Any thread. */
uint64_t nbd_client_length(const NbdClient *client) NONNULL(1);
/* nbd_client_co_probe - ask for the length again, by a connection of its own. Any context. */
co_fn int nbd_client_co_probe(NbdClient *client, Error *err) NONNULL(1) WARN_UNUSED;

typedef struct NbdOp {
    NbdCommand command;
    uint16_t flags; /* NBD_CMD_FLAG_... */
    uint64_t offset_bytes, len_bytes;
    const struct iovec *iov; /* READ, WRITE: holds len_bytes */
    int niov;
    /* BLOCK_STATUS: of the first extent, which is at most len_bytes long */
    uint64_t extent_bytes;
    uint64_t extent_flags;
} NbdOp;

/*
 * nbd_client_co_request - send @op and wait for its reply
 * The caller sees to it that the server takes such a command, with such a length.
 * Errors: what the server said; -EIO when it is not reached, or breaks the protocol; -EOPNOTSUPP it
 *         has come back without what @op needs; -ENOMEM
 */
co_fn int nbd_client_co_request(NbdClient *client, NbdOp *op) NONNULL(1, 2) WARN_UNUSED;

/* nbd_client_nb_replies - how many have come; who sees no more of them may give up. Main. */
uint64_t nbd_client_nb_replies(NbdClient *client) NONNULL(1);
/* nbd_client_give_up - requests in flight fail soon, and are not tried again, until go_on. Main. */
void nbd_client_give_up(NbdClient *client) NONNULL(1);
void nbd_client_go_on(NbdClient *client) NONNULL(1);

#endif
