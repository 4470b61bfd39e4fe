/*
 * NbdServer - serves BlockBackends to NBD clients over unix sockets and TCP, with or without TLS
 *
 * Layer:     block/nbd (may use block/, io/)
 * Threading: create, add, listen, start, stop and destroy in the main thread. A connection lives in
 *            one of the contexts that the server was given, which take turns; its requests run
 *            there, each as a coroutine, many at once.
 * Lifetime:  nbd_server_create() .. nbd_server_destroy(), which needs a server that was stopped.
 *            The backends are borrowed and stay until then.
 * Spec:      NetworkBlockDevice/nbd doc/proto.md (fixed newstyle), and its extension-ext-header
 *            branch
 *
 * What a client can take, whatever it sends: a connection's place, for handshake_ns until it has
 * chosen an export; requests_max requests at once with memory_bytes of data, and
 * NBD_SERVER_KEEP_BYTES for each request on top (buffers that are kept for the next one). A request
 * beyond that waits in the socket; only this connection's do. What is no NBD ends the connection,
 * with the reason in the log.
 *
 * A flush covers what has been answered on every connection, as they share the backend; so
 * CAN_MULTI_CONN is offered whenever a second connection is possible.
 */
#ifndef BLOCK_NBD_NBD_SERVER_H
#define BLOCK_NBD_NBD_SERVER_H

#include "block/block-backend.h"
#include "io/channel/channel-listener.h"
#include "io/channel/tls-creds.h"

#define NBD_SERVER_CONNECTIONS_DEFAULT 64
#define NBD_SERVER_REQUESTS_DEFAULT    64
#define NBD_SERVER_REQUESTS_LIMIT      1024
#define NBD_SERVER_MEMORY_DEFAULT      (64ull << 20)
#define NBD_SERVER_MEMORY_MIN          (1ull << 20)
#define NBD_SERVER_HANDSHAKE_NS        10000000000ll
#define NBD_SERVER_KEEP_BYTES          (256u << 10)
#define NBD_SERVER_EXPORTS_MAX         64
#define NBD_SERVER_LISTENERS_MAX       16

typedef struct NbdServer NbdServer;

typedef struct NbdServerParams {
    TlsCreds *tls;               /* of a server; NULL = no TLS */
    bool tls_required;           /* nothing is told or served without */
    AioContext *const *contexts; /* where connections live; copied */
    unsigned nb_contexts;        /* 0 = each in the context in which it began */
    unsigned connections_max;    /* 0 = default, likewise the following */
    unsigned requests_max;       /* of one connection at once */
    uint64_t memory_bytes; /* of data of one connection's requests at once; a request of more is
                                    refused, and clients that ask are told */
    int64_t handshake_ns;  /* from accepting to the choice of an export */
} NbdServerParams;

typedef struct NbdExportParams {
    const char *name;        /* "" is what a client gets that names none; copied, likewise: */
    const char *description; /* NULL = none */
    BlockBackend *blk;
    bool read_only; /* whatever the backend allows */
} NbdExportParams;

/* nbd_server_create - Errors: -EINVAL a limit, -ENOMEM */
main_fn NbdServer *nbd_server_create(const NbdServerParams *params, Error *err)
    NONNULL(1) WARN_UNUSED;
/*
 * nbd_server_add_export - before the start
 * A client that names no export gets the one called "", or the only one that there is.
 * Errors: -EINVAL the name or description is longer than the protocol allows; -EEXIST; -ENOSPC more
 *         than NBD_SERVER_EXPORTS_MAX; -ENOMEM
 */
main_fn int nbd_server_add_export(NbdServer *server, const NbdExportParams *params, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
/* nbd_server_listen - Errors: those of channel_listener_create(); -ENOSPC too many */
main_fn int nbd_server_listen(NbdServer *server, const SocketAddress *addr, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
/* nbd_server_adopt - the same on a socket that listens already. Owns: @fd, on failure, too. */
main_fn int nbd_server_adopt(NbdServer *server, int fd, Error *err) NONNULL(1) WARN_UNUSED;
/* nbd_server_listener_name - of listener @index, as it is bound; NULL when there is none */
const char *nbd_server_listener_name(const NbdServer *server, unsigned index) NONNULL(1);

/* nbd_server_start - accept connections */
main_fn void nbd_server_start(NbdServer *server) NONNULL(1);

/*
 * nbd_server_co_serve - serve one connection that came another way, until it ends
 * Owns: the reference to @ch. Context: coroutine, any context; ends in the one it was given.
 */
co_fn void nbd_server_co_serve(NbdServer *server, Channel *ch) NONNULL(1, 2);

/*
 * nbd_server_co_stop - accept no more; finish what has been received, answer what still comes with
 * ESHUTDOWN, then close each connection
 * @deadline_ns  of aio_now_ns(), -1 = none: then connections are closed though their clients have
 *               not taken all answers. Requests to the storage are waited for in any case.
 * Returns 0, or -ETIMEDOUT when the deadline has passed. Context: coroutine, main; once.
 */
main_fn co_fn int nbd_server_co_stop(NbdServer *server, int64_t deadline_ns) NONNULL(1);
/* nbd_server_abort - end that wait now */
main_fn void nbd_server_abort(NbdServer *server) NONNULL(1);
main_fn void nbd_server_destroy(NbdServer *server);

/* nbd_server_nb_connections - being served, in the handshake or later. Any thread. */
unsigned nbd_server_nb_connections(const NbdServer *server) NONNULL(1);

#endif
