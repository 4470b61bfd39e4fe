/*
 * nbd-client.c - requests over connections
 *
 * A request takes a slot of its connection, is written under send_lock in one system call, and
 * waits:
 *
 *     [slot taken] --send_lock--> [sending] --written--> [waiting] --its reply was read--> [done]
 *                                                           | nobody reads
 *                                                           v
 *                                                        [reading] for all, until it is done itself
 *
 * Who reads is a role, conn->reading. The reader marks requests done and wakes them, each in its
 * own context. When it is done itself it leaves the role to one that waits, of its own context if
 * there is one: nothing then crosses a thread that need not.
 *
 * Invariants (lock = conn->lock):
 *   (1) A request is in its slot from before the first byte of it is written until its coroutine
 *       leaves conn_co_exchange(). Its cookie is the slot and a serial number: a reply that comes
 *       twice, or belongs to an earlier request, finds none.
 *   (2) `done` is set by the reader; by somebody else only when nobody reads and nobody will: that
 *       is when the connection is not UP or LEAVING. So the reader may use what conn_find() gave it
 *       until it marks it done, though the lock is not held meanwhile.
 *   (3) Whoever waits is woken by exactly one: `waiting` goes from true to false under the lock, by
 *       who then wakes it.
 *   (4) When somebody waits and the connection is up, somebody reads or has been woken to read.
 *   (5) When the state becomes DOWN the channel is shut down next, so that reader and writer come
 *       back; it is dropped when no slot is taken (nbd-client-connect.c).
 *   (6) nbd_client_give_up() says so before it looks, under the lock, who is in flight; a request
 *       looks, under the lock, whether it was said before it takes a slot. So none is left behind.
 */
#include "block/nbd/nbd-client.h"

#include <string.h>

#include "block/nbd/nbd-client-int.h"

#define SLOTS_FIRST   64
#define SLOTS_MAX     (1u << 20)
#define HANDOVER_SCAN 32 /* how many that wait are looked at for one of the own context */

/* --- slots; all with the lock held --- */

static bool grow_slots(NbdConn *conn)
{
    uint32_t nb = conn->nb_slots ? conn->nb_slots * 2 : SLOTS_FIRST;
    NbdSlot *slots = nb > SLOTS_MAX ? NULL : realloc(conn->slots, nb * sizeof(*slots));

    if (!slots) {
        return false;
    }
    for (uint32_t i = conn->nb_slots; i < nb; i++) {
        slots[i] = (NbdSlot){ .next_free = i + 1 < nb ? i + 2 : 0 };
    }
    conn->first_free = conn->nb_slots + 1;
    conn->slots = slots;
    conn->nb_slots = nb;
    return true;
}

static bool take_slot(NbdConn *conn, NbdPending *p)
{
    if (conn->first_free == 0 && !grow_slots(conn)) {
        return false;
    }
    p->slot = conn->first_free - 1;
    conn->first_free = conn->slots[p->slot].next_free;
    conn->slots[p->slot].pending = p;
    conn->nb_in_flight++;
    p->cookie = (uint64_t)++conn->serial << 32 | p->slot;
    return true;
}

static void free_slot(NbdConn *conn, NbdPending *p)
{
    bool idle;

    pthread_mutex_lock(&conn->lock);
    conn->slots[p->slot] = (NbdSlot){ .next_free = conn->first_free };
    conn->first_free = p->slot + 1;
    idle = --conn->nb_in_flight == 0 && conn->state != NBD_CONN_UP;
    if (idle) {
        co_sleep_wake(&conn->idle); /* under the lock: who waits for it may free all this */
    }
    pthread_mutex_unlock(&conn->lock);
}

NbdPending *conn_find(NbdConn *conn, uint64_t cookie)
{
    uint32_t slot = (uint32_t)cookie;
    NbdPending *p = NULL;

    pthread_mutex_lock(&conn->lock);
    if (slot < conn->nb_slots) {
        p = conn->slots[slot].pending;
    }
    if (p && (p->cookie != cookie || !p->sending || p->done)) {
        p = NULL;
    }
    pthread_mutex_unlock(&conn->lock);
    return p;
}

/* --- waking; see invariant 3 --- */

/* Lock held: take @p out of those that wait, for wake_all(). */
static void stop_waiting(NbdPending *p, List *woken)
{
    if (p->waiting) {
        p->waiting = false;
        list_remove(&p->waiters_node);
        list_push_back(woken, &p->waiters_node);
    }
}

/* Lock not held. A request may be gone as soon as it is woken. */
static void wake_all(List *woken)
{
    ListNode *node;

    while ((node = list_pop_front(woken))) {
        aio_co_wake(list_entry(node, NbdPending, waiters_node)->co);
    }
}

/* Lock held: somebody who waits is to read on. */
static void hand_over(NbdConn *conn, List *woken)
{
    AioContext *here = aio_current();
    NbdPending *next = list_first_entry(&conn->waiters, NbdPending, waiters_node);
    unsigned nb = 0;

    list_for_each(node, &conn->waiters) {
        NbdPending *p = list_entry(node, NbdPending, waiters_node);

        if (p->ctx == here) {
            next = p;
            break;
        }
        if (++nb == HANDOVER_SCAN) {
            break;
        }
    }
    if (next) {
        stop_waiting(next, woken);
    }
}

/* Lock held, the state is DOWN and nobody reads: all that are left lose their connection. */
static void fail_all(NbdConn *conn, List *woken)
{
    for (uint32_t i = 0; i < conn->nb_slots; i++) {
        NbdPending *p = conn->slots[i].pending;

        if (p && !p->done) {
            p->done = true;
            p->ret = NBD_LOST;
            stop_waiting(p, woken);
        }
    }
}

/* --- the end of a connection --- */

void conn_break(NbdConn *conn, const char *reason)
{
    List woken = LIST_INIT(woken);
    Channel *ch;

    pthread_mutex_lock(&conn->lock);
    if (conn->state == NBD_CONN_DOWN) {
        pthread_mutex_unlock(&conn->lock);
        return;
    }
    conn->state = NBD_CONN_DOWN;
    conn->lost_at_ns = aio_now_ns();
    log_limited(&conn->log_limit, LOG_LEVEL_WARN, "nbd", "'%s': connection closed: %s",
                conn->client->params.name, reason);
    ch = channel_ref(conn->ch);
    pthread_mutex_unlock(&conn->lock);

    /* Not with the lock held: outside of coroutines this may enter the one that reads. */
    channel_shutdown(ch, CHANNEL_READ | CHANNEL_WRITE);
    channel_unref(ch);
    pthread_mutex_lock(&conn->lock);
    if (conn->state == NBD_CONN_DOWN && !conn->reading) {
        fail_all(conn, &woken);
    }
    pthread_mutex_unlock(&conn->lock);
    wake_all(&woken);
}

/* Lock held: the server goes away. What is in flight is still answered. */
static void start_leaving(NbdConn *conn)
{
    if (conn->state == NBD_CONN_UP) {
        conn->state = NBD_CONN_LEAVING;
        conn->lost_at_ns = aio_now_ns();
        log_limited(&conn->log_limit, LOG_LEVEL_WARN, "nbd", "'%s': the server is shutting down",
                    conn->client->params.name);
    }
}

/* --- reading --- */

/* @p has its reply. */
static void finish(NbdConn *conn, NbdPending *p)
{
    List woken = LIST_INIT(woken);

    pthread_mutex_lock(&conn->lock);
    if (p->error == -ESHUTDOWN) {
        start_leaving(conn);
        p->ret = NBD_LOST;
    } else {
        conn->pause_ns = 0; /* a server that answers */
        p->ret = p->error;
    }
    conn->nb_replies++;
    p->done = true;
    stop_waiting(p, &woken);
    pthread_mutex_unlock(&conn->lock);
    wake_all(&woken);
}

/* The caller has the role; read until @own is done. */
static co_fn void read_for_all(NbdConn *conn, NbdPending *own)
{
    while (!own->done) {
        NbdPending *ended;
        const char *reason;
        int ret = conn_co_read_reply(conn, &ended, &reason);

        if (ret < 0) {
            conn_break(conn, reason               ? reason
                             : ret == -ECONNRESET ? "the server closed it"
                                                  : error_strerror(ret));
            return;
        }
        if (ended) {
            finish(conn, ended);
        }
    }
}

static co_fn void wait_until_done(NbdConn *conn, NbdPending *p)
{
    List woken = LIST_INIT(woken);

    pthread_mutex_lock(&conn->lock);
    while (!p->done) {
        if (conn->state == NBD_CONN_DOWN && !conn->reading) {
            fail_all(conn, &woken);
            continue;
        }
        if (conn->reading) {
            p->waiting = true;
            list_push_back(&conn->waiters, &p->waiters_node);
            pthread_mutex_unlock(&conn->lock);
            co_yield();
            pthread_mutex_lock(&conn->lock);
            continue;
        }
        conn->reading = true;
        pthread_mutex_unlock(&conn->lock);
        read_for_all(conn, p);
        pthread_mutex_lock(&conn->lock);
        conn->reading = false;
    }
    if (conn->state == NBD_CONN_DOWN && !conn->reading) {
        fail_all(conn, &woken);
    } else if (!conn->reading) {
        hand_over(conn, &woken);
    }
    pthread_mutex_unlock(&conn->lock);
    wake_all(&woken);
}

/* --- writing --- */

/* 0, or < 0 when the stream is spoilt */
static co_fn int write_request(NbdConn *conn, const NbdPending *p)
{
    const NbdOp *op = p->op;
    uint8_t header[NBD_EXTENDED_REQUEST_BYTES];
    struct iovec iov[1 + NBD_IOV_MAX];
    bool payload = op->command == NBD_CMD_WRITE;
    NbdRequest req = {
        .flags = op->flags,
        .type = (uint16_t)op->command,
        .cookie = p->cookie,
        .offset_bytes = op->offset_bytes,
        .len_bytes = op->len_bytes,
    };
    int niov = 0;

    if (payload && conn->export.headers == NBD_HEADERS_EXTENDED) {
        req.flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
    }
    iov[0].iov_base = header;
    iov[0].iov_len = nbd_request_encode(header, conn->export.headers, &req);
    if (payload) {
        niov = op->niov;
        assert(niov <= NBD_IOV_MAX);
        memcpy(iov + 1, op->iov, (size_t)niov * sizeof(*iov));
    }
    return channel_co_writev_full(conn->ch, iov, niov + 1, NULL);
}

static co_fn void send_request(NbdConn *conn, NbdPending *p)
{
    int ret = 0;
    bool go;

    co_mutex_lock(&conn->send_lock);
    pthread_mutex_lock(&conn->lock);
    go = conn->state == NBD_CONN_UP;
    p->sending = go;
    if (!go && !p->done) {
        p->done = true; /* nothing of it has gone out, nobody else does anything about it */
        p->ret = NBD_LOST;
    }
    pthread_mutex_unlock(&conn->lock);
    if (go) {
        ret = write_request(conn, p);
    }
    co_mutex_unlock(&conn->send_lock);
    if (ret < 0) {
        conn_break(conn, error_strerror(ret));
    }
}

/* What the server does not have to offer any more when it is connected to again. */
static bool may_send(const NbdConn *conn, const NbdOp *op)
{
    switch (op->command) {
    case NBD_CMD_BLOCK_STATUS:
        return conn->export.has_status;
    case NBD_CMD_CACHE:
        return conn->export.flags & NBD_FLAG_SEND_CACHE;
    case NBD_CMD_WRITE_ZEROES:
        return !(op->flags & NBD_CMD_FLAG_FAST_ZERO) ||
               (conn->export.flags & NBD_FLAG_SEND_FAST_ZERO);
    default:
        return true;
    }
}

/* @p has a slot. */
static co_fn int conn_co_exchange(NbdConn *conn, NbdPending *p)
{
    if (may_send(conn, p->op)) {
        send_request(conn, p);
        wait_until_done(conn, p);
    } else {
        p->ret = -EOPNOTSUPP;
    }
    free_slot(conn, p);
    return p->ret;
}

/* --- requests --- */

static NbdConn *choose_conn(NbdClient *client)
{
    _Atomic uint8_t *mine;

    if (client->nb_conns == 1) {
        return client->conns[0];
    }
    mine = &client->conn_of_context[aio_context_index(aio_current())];
    if (atomic_load_explicit(mine, memory_order_relaxed) == 0) {
        unsigned turn = atomic_fetch_add(&client->next_conn, 1);

        atomic_store_explicit(mine, (uint8_t)(turn % client->nb_conns + 1), memory_order_relaxed);
    }
    return client->conns[atomic_load_explicit(mine, memory_order_relaxed) - 1];
}

/* A slot on a connection that is up. */
static co_fn int acquire(NbdConn *conn, NbdPending *p)
{
    for (;;) {
        int ret = -ENOTCONN;

        pthread_mutex_lock(&conn->lock);
        if (atomic_load(&conn->client->given_up)) {
            ret = -EIO; /* it may have looked already who is in flight here: invariant (6) */
        } else if (conn->state == NBD_CONN_UP) {
            ret = take_slot(conn, p) ? 0 : -ENOMEM;
        }
        pthread_mutex_unlock(&conn->lock);
        if (ret == -ENOTCONN) {
            ret = conn_co_reopen(conn);
            if (ret == 0) {
                continue;
            }
        }
        return ret;
    }
}

int nbd_client_co_request(NbdClient *client, NbdOp *op)
{
    NbdConn *conn = choose_conn(client);
    int64_t give_up_at_ns = -1;

    for (;;) {
        NbdPending p = { .co = co_self(), .ctx = aio_current(), .op = op };
        int ret = acquire(conn, &p);

        if (ret == 0) {
            ret = conn_co_exchange(conn, &p);
        }
        if (ret != NBD_LOST) {
            return ret;
        }
        if (give_up_at_ns < 0) {
            give_up_at_ns = aio_now_ns() + client->params.reconnect_delay_ns;
        }
        if (atomic_load(&client->given_up) || aio_now_ns() >= give_up_at_ns) {
            return -EIO;
        }
    }
}

/* --- the client --- */

static NbdConn *conn_create(NbdClient *client, unsigned index)
{
    NbdConn *conn = calloc(1, sizeof(*conn));

    if (!conn) {
        return NULL;
    }
    conn->buf = malloc(READ_BUFFER_BYTES);
    if (!conn->buf) {
        free(conn);
        return NULL;
    }
    conn->client = client;
    conn->index = index;
    co_mutex_init(&conn->connect_lock);
    co_mutex_init(&conn->send_lock);
    pthread_mutex_init(&conn->lock, NULL);
    list_init(&conn->waiters);
    channel_cancel_init(&conn->cancel);
    co_sleep_init(&conn->idle);
    co_sleep_init(&conn->backoff);
    return conn;
}

static void conn_destroy(NbdConn *conn)
{
    assert(conn->nb_in_flight == 0 && !conn->reading);
    channel_unref(conn->ch);
    co_mutex_finish(&conn->send_lock);
    co_mutex_finish(&conn->connect_lock);
    pthread_mutex_destroy(&conn->lock);
    free(conn->slots);
    free(conn->buf);
    free(conn);
}

typedef struct OpenCall {
    NbdClient *client;
    Error *err;
    int ret;
} OpenCall;

/* One more connection; without the first one there is no client. */
static co_fn int add_conn(NbdClient *client, int64_t deadline_ns, Error *err)
{
    NbdConn *conn = conn_create(client, client->nb_conns);
    int ret;

    if (!conn) {
        return error_set(err, -ENOMEM, "out of memory");
    }
    client->conns[client->nb_conns++] = conn;
    ret = conn_co_open(conn, deadline_ns, err);
    if (ret < 0) {
        client->nb_conns--;
        conn_destroy(conn);
    }
    return ret;
}

static void open_entry(void *opaque)
{
    OpenCall *call = opaque;
    NbdClient *client = call->client;
    unsigned nb = client->params.nb_connections;
    Error reason;

    assert_in_coroutine();
    call->ret = add_conn(client, aio_now_ns() + client->params.open_timeout_ns, call->err);
    if (call->ret < 0) {
        return;
    }
    if (nb > 1 && !(client->export.flags & NBD_FLAG_CAN_MULTI_CONN)) {
        log_info("nbd", "'%s': one connection: the server does not say that several are coherent",
                 client->params.name);
        nb = 1;
    }
    while (client->nb_conns < nb && add_conn(client, 0, &reason) == 0) {
    }
    if (client->nb_conns < nb) {
        log_info("nbd", "'%s': %u connections instead of %u: %s", client->params.name,
                 client->nb_conns, nb, reason.msg);
    }
}

static void leave_entry(void *opaque)
{
    NbdClient *client = opaque;

    assert_in_coroutine();
    for (unsigned i = 0; i < client->nb_conns; i++) {
        conn_co_leave(client->conns[i]);
    }
}

/* Run a coroutine in the main context, wherever in the main thread this is. */
static void run_here(CoroutineEntry *entry, void *opaque)
{
    if (in_coroutine()) {
        entry(opaque);
    } else {
        aio_co_run_sync(aio_main(), entry, opaque);
    }
}

NbdClient *nbd_client_create(const NbdClientParams *params, Error *err)
{
    NbdClient *client = calloc(1, sizeof(*client));
    OpenCall call = { .client = client, .err = err };

    assert(params->nb_connections >= 1 && params->nb_connections <= NBD_CONNECTIONS_MAX);
    if (!client) {
        error_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    client->params = *params;
    run_here(open_entry, &call);
    if (call.ret < 0) {
        free(client);
        return NULL;
    }
    return client;
}

void nbd_client_destroy(NbdClient *client)
{
    if (!client) {
        return;
    }
    run_here(leave_entry, client);
    for (unsigned i = 0; i < client->nb_conns; i++) {
        conn_destroy(client->conns[i]);
    }
    free(client);
}

const NbdExport *nbd_client_export(const NbdClient *client)
{
    return &client->export;
}

uint64_t nbd_client_length(const NbdClient *client)
{
    return atomic_load(&client->length_bytes);
}

/* --- drained sections --- */

uint64_t nbd_client_nb_replies(NbdClient *client)
{
    uint64_t nb = 0;

    for (unsigned i = 0; i < client->nb_conns; i++) {
        NbdConn *conn = client->conns[i];

        pthread_mutex_lock(&conn->lock);
        nb += conn->nb_replies;
        pthread_mutex_unlock(&conn->lock);
    }
    return nb;
}

void nbd_client_give_up(NbdClient *client)
{
    atomic_store(&client->given_up, true);
    for (unsigned i = 0; i < client->nb_conns; i++) {
        NbdConn *conn = client->conns[i];
        Channel *handshake = NULL;
        bool busy;

        pthread_mutex_lock(&conn->lock);
        busy = conn->nb_in_flight > 0;
        if (conn->state == NBD_CONN_DOWN && conn->ch) {
            handshake = channel_ref(conn->ch);
        }
        pthread_mutex_unlock(&conn->lock);
        if (handshake) {
            channel_shutdown(handshake, CHANNEL_READ | CHANNEL_WRITE);
            channel_unref(handshake);
        }
        channel_cancel(&conn->cancel);
        co_sleep_wake(&conn->backoff);
        if (busy) {
            conn_break(conn, "the server does not answer, and requests had to end");
        }
    }
}

void nbd_client_go_on(NbdClient *client)
{
    atomic_store(&client->given_up, false);
}
