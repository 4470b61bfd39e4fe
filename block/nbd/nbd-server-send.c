/*
 * nbd-server-send.c - answers on their way out: those of one pass go together
 *
 * Requests that came together mostly end together, in one pass of the event loop. So an answer
 * waits for the end of the pass, unless it is the only one that is due, and goes out with those
 * that joined it, in one system call. One of the coroutines that wait sends:
 *
 *     outgoing: [first: the sender] [waits] [waits] ...
 *               `--- as many as fit, sent ---' woken; the next one is the first, and sends
 *
 * All of a connection is in one context, so none of this needs a lock.
 *
 * Invariants:
 *   (1) conn->sender is the coroutine of the first answer in conn->outgoing, NULL when that is
 *       empty. It alone writes to the channel.
 *   (2) A coroutine that waits is woken once: because its answer is out, or because it is the
 *       sender now. The first sender waits for the end of the pass, the others do not: what they
 *       send has waited for the socket.
 *   (3) What cannot be sent is dropped, with all that follows; both directions are shut down, so
 *       that the receiver ends, too.
 */
#include "block/nbd/nbd-server-int.h"

#include <string.h>

#define BATCH_IOV_MAX   64
#define BATCH_BYTES_MAX (256u << 10) /* those that are out can end before more are written */

typedef struct Outgoing {
    ListNode link;
    const struct iovec *iov;
    int niov;
    Coroutine *co;
    bool done;
} Outgoing;

/* The first answer and those that fit behind it, from conn->outgoing to @batch. */
static int take_batch(NbdConn *conn, List *batch, struct iovec iov[BATCH_IOV_MAX])
{
    size_t len_bytes = 0;
    int niov = 0;
    Outgoing *out;

    while ((out = list_first_entry(&conn->outgoing, Outgoing, link)) &&
           out->niov <= BATCH_IOV_MAX - niov && len_bytes < BATCH_BYTES_MAX) {
        for (int i = 0; i < out->niov; i++) {
            iov[niov++] = out->iov[i];
            len_bytes += out->iov[i].iov_len;
        }
        list_remove(&out->link);
        list_push_back(batch, &out->link);
    }
    return niov;
}

/* The caller is the sender, and its answer the first. */
static co_fn void send_batch(NbdConn *conn)
{
    struct iovec iov[BATCH_IOV_MAX];
    List batch = LIST_INIT(batch);
    int niov = take_batch(conn, &batch, iov);
    ListNode *node;

    if (!conn->broken && channel_co_writev_full(conn->ch, iov, niov, NULL) < 0) {
        conn->broken = true;
        channel_shutdown(conn->ch, CHANNEL_READ | CHANNEL_WRITE);
    }
    while ((node = list_pop_front(&batch))) {
        Outgoing *out = list_entry(node, Outgoing, link);

        out->done = true;
        if (out->co != conn->sender) {
            aio_co_wake(out->co);
        }
    }
    Outgoing *next = list_first_entry(&conn->outgoing, Outgoing, link);

    conn->sender = next ? next->co : NULL;
    if (next) {
        aio_co_wake(next->co);
    }
}

static void pass_ends_cb(void *opaque)
{
    NbdConn *conn = opaque;

    aio_co_wake(conn->sender);
}

void nbd_conn_init_sending(NbdConn *conn)
{
    list_init(&conn->outgoing);
    aio_defer_init(&conn->pass_ends, pass_ends_cb, conn);
}

void nbd_conn_co_send(NbdConn *conn, const struct iovec *iov, int niov)
{
    Outgoing out = { .iov = iov, .niov = niov, .co = co_self() };

    assert(niov > 0 && niov <= BATCH_IOV_MAX);
    list_push_back(&conn->outgoing, &out.link);
    if (conn->sender) {
        co_yield();
    } else {
        conn->sender = out.co;
        if (atomic_load_explicit(&conn->nb_in_flight, memory_order_relaxed) > 1) {
            aio_defer(conn->ctx, &conn->pass_ends);
            co_yield();
        }
    }
    if (!out.done) {
        send_batch(conn);
    }
}
