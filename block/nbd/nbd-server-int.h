/*
 * nbd-server-int.h - a connection of the NBD server, between the files that serve it
 *
 * Layer:     block/nbd, private to nbd-server*.c
 * Threading: a connection's fields belong to its context, except those that say otherwise. Taken in
 *            this order: nothing else is taken under NbdServer.lock but a channel's own lock.
 * Lifetime:  a connection is made and freed by nbd_server_co_serve(); its slots end before it does.
 */
#ifndef BLOCK_NBD_NBD_SERVER_INT_H
#define BLOCK_NBD_NBD_SERVER_INT_H

#include <pthread.h>

#include "block/nbd/nbd-proto.h"
#include "block/nbd/nbd-server.h"
#include "io/base/log.h"

typedef struct NbdConn NbdConn;

typedef struct NbdExport {
    char *name;
    char *description; /* "" = none */
    BlockBackend *blk;
    bool read_only;
    bool multi_conn;
    NbdBlockSizes sizes;
} NbdExport;

struct NbdServer {
    pthread_mutex_t lock; /* protects connections, next_context, log_limit, each NbdConn.ch against
                             being replaced, NbdConn.transmits */
    List connections;     /* NbdConn.link */
    unsigned next_context;
    LogLimit log_limit;

    _Atomic unsigned nb_connections; /* raised under lock; lowered as a connection's last act */
    atomic_bool stopping;            /* written under lock; see nbd-server-conn.c */

    /* Immutable once started. */
    TlsCreds *tls;
    bool tls_required;
    AioContext **contexts;
    unsigned nb_contexts, connections_max, requests_max;
    uint64_t memory_bytes;
    int64_t handshake_ns;
    NbdExport exports[NBD_SERVER_EXPORTS_MAX];
    unsigned nb_exports;

    /* Main. */
    ChannelListener *listeners[NBD_SERVER_LISTENERS_MAX];
    unsigned nb_listeners;
};

/* A request, from its header's arrival until its answer has been sent. */
typedef struct NbdSlot {
    NbdConn *conn;
    struct NbdSlot *next_free;
    NbdRequest req;
    int error;         /* -errno: not to be carried out */
    uint8_t *buf;      /* pages; zeroes when they are new */
    size_t buf_bytes;  /* that there are */
    size_t data_bytes; /* that count as memory in flight */
} NbdSlot;

#define NBD_AHEAD_BYTES 8192

struct NbdConn {
    NbdServer *server;
    ListNode link;
    Channel *ch;
    AioContext *ctx;
    bool transmits; /* under server->lock: the handshake is over */

    /* What was agreed on. */
    bool tls, no_zeroes;
    NbdHeaders headers;
    const NbdExport *export;
    const NbdExport *allocation_of; /* base:allocation was chosen for; NULL = not */

    /* Transmission. */
    List outgoing;      /* answers, first come first; see nbd-server-send.c */
    Coroutine *sender;  /* of the first of them; NULL = there is none */
    AioDefer pass_ends; /* continues the sender */
    bool broken;        /* an answer could not be sent: no more of them */
    NbdSlot *slots, *free_slots;
    bool ended;                    /* nothing more comes from the client, and it did not say why */
    uint64_t memory_bytes;         /* of requests in flight */
    Coroutine *receiver;           /* waits for a slot, for memory or for the last request to end */
    _Atomic unsigned nb_in_flight; /* written here, read by who stops: see nbd-server-conn.c */
    uint64_t data_offset_bytes, data_end_bytes; /* read without a look at the map: see request.c */
    unsigned ahead_begin, ahead_end;
    uint8_t ahead[NBD_AHEAD_BYTES]; /* received and not yet looked at */
};

/* nbd_conn_broke_rules - log what the client did wrong; returns -EPROTO */
int nbd_conn_broke_rules(NbdConn *conn, const char *fmt, ...) PRINTF(2, 3) NONNULL(1, 2);
/* nbd_conn_set_channel - serve @ch, whose reference is taken over, from now on. False: the server
 * is being stopped, @ch has been shut down. */
void nbd_conn_set_channel(NbdConn *conn, Channel *ch) NONNULL(1, 2);
/* nbd_conn_set_transmits - the handshake is over. False: the server is being stopped. */
bool nbd_conn_set_transmits(NbdConn *conn) NONNULL(1) WARN_UNUSED;

/* nbd_export_flags - transmission flags for a client that uses @headers */
uint16_t nbd_export_flags(const NbdExport *export, NbdHeaders headers) NONNULL(1);

/* nbd_conn_co_handshake - 1: an export was chosen; 0: the client left in order; or -errno */
co_fn int nbd_conn_co_handshake(NbdConn *conn) NONNULL(1) WARN_UNUSED;

/* nbd_conn_co_transmit - serve requests until the client, an error or the server ends it; no
 * request is in flight then. Returns 0 (the client left in order, or the server stops) or
 * -errno. */
co_fn int nbd_conn_co_transmit(NbdConn *conn) NONNULL(1) WARN_UNUSED;

/* nbd_conn_init_sending - before the first answer */
void nbd_conn_init_sending(NbdConn *conn) NONNULL(1);
/* nbd_conn_co_send - an answer, @iov at most 64 long: return when it is out or never will be. The
 * request is still counted in nb_in_flight. */
co_fn void nbd_conn_co_send(NbdConn *conn, const struct iovec *iov, int niov) NONNULL(1, 2);

/* nbd_request_check - can @req be carried out? 0 or -errno for the answer. */
int nbd_request_check(const NbdConn *conn, const NbdRequest *req) NONNULL(1, 2) WARN_UNUSED;
/* nbd_request_buffer_bytes - memory that it takes */
size_t nbd_request_buffer_bytes(const NbdRequest *req) NONNULL(1);
/* nbd_request_co_run - carry out slot->req, or answer slot->error */
co_fn void nbd_request_co_run(NbdSlot *slot) NONNULL(1);

#endif
