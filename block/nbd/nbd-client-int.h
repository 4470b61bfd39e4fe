/*
 * nbd-client-int.h - one connection of an NbdClient; see nbd-client.c for the theory
 *
 * Layer: block/nbd, for nbd-client*.c only
 */
#ifndef BLOCK_NBD_NBD_CLIENT_INT_H
#define BLOCK_NBD_NBD_CLIENT_INT_H

#include <pthread.h>

#include "block/nbd/nbd-client.h"
#include "io/aio/co-mutex.h"
#include "io/aio/co-sleep.h"
#include "io/base/log.h"
#include "io/channel/channel-socket.h"

#define READ_BUFFER_BYTES 16384 /* replies that came together are taken together */
#define FRAGMENTS_MAX     32    /* parts of a read, not next to each other, that have come */
#define ERROR_CHUNKS_MAX  64    /* in one reply */
#define CHUNK_ERROR_BYTES_MAX                                                                      \
    (NBD_CHUNK_ERROR_BYTES + NBD_STRING_BYTES + NBD_CHUNK_ERROR_OFFSET_BYTES)

/* In the frame of the coroutine that made it; in a slot of its connection from before it is sent
 * until it has ended. */
typedef struct NbdPending {
    ListNode waiters_node;
    Coroutine *co;
    AioContext *ctx;
    NbdOp *op;
    uint64_t cookie;
    uint32_t slot;

    /* lock */
    bool sending; /* its first byte may have gone out: there can be a reply */
    bool waiting; /* it has yielded, or is about to */
    bool done;    /* ret is final */
    int ret;      /* NBD_LOST: the connection was lost first */

    /* the reader's, until done */
    int error; /* the first one in a structured reply */
    unsigned nb_error_chunks;
    bool has_extent;
    unsigned nb_fragments; /* sorted, apart from each other; ends exclusive */
    struct {
        uint64_t start_bytes, end_bytes;
    } fragment[FRAGMENTS_MAX];
} NbdPending;

#define NBD_LOST 1

typedef enum NbdConnState {
    NBD_CONN_DOWN, /* no channel, or one that nobody is to use any more */
    NBD_CONN_UP,
    NBD_CONN_LEAVING, /* the server shuts down: requests in flight end, no more are sent */
} NbdConnState;

typedef struct NbdSlot {
    NbdPending *pending; /* NULL: free */
    uint32_t next_free;  /* index + 1 */
} NbdSlot;

typedef struct NbdConn {
    NbdClient *client;
    unsigned index;

    /* Coroutine locks; connect_lock before send_lock. */
    CoMutex connect_lock; /* who holds it makes a new connection; see nbd-client-connect.c */
    CoMutex send_lock;    /* one request at a time is written */

    pthread_mutex_t lock; /* a leaf, held for a few instructions; protects the following */
    NbdConnState state;
    bool reading; /* somebody reads */
    Channel *ch;  /* changes only with connect_lock held and nothing in flight */
    NbdSlot *slots;
    uint32_t nb_slots, nb_in_flight, first_free;
    uint32_t serial; /* makes cookies differ */
    List waiters;    /* NbdPending.waiters_node; first come first */
    uint64_t nb_replies;
    int64_t lost_at_ns; /* when it was lost; meaningless while it is up */
    int64_t pause_ns;   /* before the next attempt; 0 once a reply has come */
    LogLimit log_limit;
    ChannelCancel cancel;

    CoSleep idle;            /* woken when nothing is in flight any more */
    CoSleep backoff;         /* woken to give up */
    int64_t next_attempt_ns; /* connect_lock */

    /* Of who reads; nobody reads while the channel is exchanged. */
    NbdExport export; /* read by any who has a slot */
    size_t buf_first, buf_end;
    uint8_t *buf;
} NbdConn;

struct NbdClient {
    NbdClientParams params;
    NbdExport export;
    _Atomic uint64_t length_bytes; /* of the export, as was told last */
    unsigned nb_conns;
    NbdConn *conns[NBD_CONNECTIONS_MAX];
    _Atomic bool given_up; /* seq_cst: set before conns are woken, looked at before they sleep */
    /* 0, or 1 + the connection of the context with that index. Written by that context. */
    _Atomic uint8_t conn_of_context[AIO_CONTEXTS_MAX];
    _Atomic unsigned next_conn;
};

/* --- nbd-client.c --- */

/* conn_break - the connection is of no more use: say why, end its channel, let its requests go.
 * Any thread, in a coroutine or not; not with conn->lock held. */
void conn_break(NbdConn *conn, const char *reason) NONNULL(1, 2);

/* --- nbd-client-reply.c --- */

/* conn_co_read_reply - one message from the server; the caller is the reader
 * @ret_ended  set to the request that it ends, with its result in ->error, or NULL
 * Returns 0; < 0: the connection is to be broken, *ret_reason says why. */
co_fn int conn_co_read_reply(NbdConn *conn, NbdPending **ret_ended, const char **ret_reason)
    NONNULL(1, 2, 3);
/* conn_find - the request of @cookie that has no result yet, NULL when there is none. Reader. */
NbdPending *conn_find(NbdConn *conn, uint64_t cookie);

/* --- nbd-client-connect.c --- */

/* conn_co_open - the first connection. @deadline_ns: until then try again; once at least */
co_fn int conn_co_open(NbdConn *conn, int64_t deadline_ns, Error *err);
/* conn_co_reopen - see that there is a connection; 0 or -EIO when the time is up */
co_fn int conn_co_reopen(NbdConn *conn) WARN_UNUSED;
/* conn_co_leave - say good-bye and close; nothing is in flight, nobody connects */
co_fn void conn_co_leave(NbdConn *conn);

#endif
