/*
 * nbd-client-connect.c - making connections, again and again if need be, and taking leave
 *
 * Who holds connect_lock makes the connection; the other requests that need it wait for that lock
 * and then look again. All of them give up at the same moment, reconnect_delay_ns after the loss,
 * so nobody waits for longer than he wants to because of somebody else.
 *
 * A new connection is of use only if the export is what it was: requests were split and flagged
 * according to what the first connection said. Its length may be another one: whoever uses the
 * client is told, and what lies behind the end is for the server to refuse meanwhile. And it may
 * lack what can be done without: may_send() of nbd-client.c.
 *
 * Attempts follow each other after a pause that doubles; a reply to a request sets it back. So a
 * server that takes connections and breaks them is not asked without end. Nor is all the time there
 * is spent on one that hangs, as with a machine that is gone in the middle of a handshake: the
 * first one has ATTEMPT_FIRST_NS, each later one twice as long, for servers that are only slow.
 */
#include "block/nbd/nbd-client-int.h"

#define PAUSE_FIRST_NS   (50 * (int64_t)1000000)
#define PAUSE_MAX_NS     (1000 * (int64_t)1000000)
#define ATTEMPT_NS       (30 * (int64_t)1000000000) /* of one when nothing else limits it */
#define ATTEMPT_FIRST_NS (2 * (int64_t)1000000000)  /* of the first one when others may follow */
#define LATE_ATTEMPT_NS  (2 * (int64_t)1000000000)  /* of one after the time for waiting is up */
#define MORE_NS          (2 * (int64_t)1000000000)  /* of the second one and those after it */
#define PROBE_NS         (5 * (int64_t)1000000000)  /* requests may be waiting for what it finds */
#define LEAVE_NS         ((int64_t)1000000000)

/* --- one attempt --- */

/* Flags of an export that requests may have relied upon. */
#define RELIED_FLAGS                                                                               \
    (NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES)

/* Why @now does not do where @first did, NULL when it does. */
static const char *changed(const NbdExport *first, const NbdExport *now, bool several)
{
    if ((first->flags & RELIED_FLAGS) & ~now->flags) {
        return "the export lacks what it had";
    }
    if ((now->flags & NBD_FLAG_READ_ONLY) && !(first->flags & NBD_FLAG_READ_ONLY)) {
        return "the export is read-only now";
    }
    if (several && !(now->flags & NBD_FLAG_CAN_MULTI_CONN)) {
        return "several connections are not coherent any more";
    }
    if (now->sizes.min_bytes > first->sizes.min_bytes ||
        now->sizes.max_payload_bytes < first->sizes.max_payload_bytes) {
        return "the export has other block sizes than it had";
    }
    if (first->headers == NBD_HEADERS_EXTENDED && now->headers != NBD_HEADERS_EXTENDED) {
        return "the server does not take long requests any more";
    }
    return NULL;
}

/* A channel through its handshake. @conn NULL: for nobody to cancel. */
static co_fn Channel *connect_once(NbdClient *client, NbdConn *conn, int64_t deadline_ns,
                                   NbdExport *ret_export, Error *err)
{
    const NbdUri *uri = client->params.uri;
    Channel *ch = channel_co_connect(&uri->addr, deadline_ns, conn ? &conn->cancel : NULL, err);
    int ret;

    if (!ch) {
        return NULL;
    }
    if (conn) {
        /* For nbd_client_give_up(), which looks at it with the lock held. A reference of its own:
         * the handshake may put TLS over it. */
        pthread_mutex_lock(&conn->lock);
        conn->ch = channel_ref(ch);
        pthread_mutex_unlock(&conn->lock);
        if (atomic_load(&client->given_up)) {
            channel_shutdown(ch, CHANNEL_READ | CHANNEL_WRITE);
        }
    }
    ret = nbd_co_handshake(&ch, uri, client->params.creds, deadline_ns, ret_export, err);
    if (conn) {
        Channel *plain;

        pthread_mutex_lock(&conn->lock);
        plain = take_ptr(&conn->ch);
        pthread_mutex_unlock(&conn->lock);
        channel_unref(plain);
    }
    if (ret < 0) {
        channel_unref(ch);
        return NULL;
    }
    return ch;
}

/* connect_lock is held or nobody else knows the connection; nothing is in flight, there is no
 * channel. */
static co_fn int attempt(NbdConn *conn, bool first, int64_t deadline_ns, Error *err)
{
    NbdClient *client = conn->client;
    NbdExport export;
    Channel *ch;
    const char *reason;

    ch = connect_once(client, conn, deadline_ns, &export, err);
    if (!ch) {
        return -EIO;
    }
    reason = first ? NULL : changed(&client->export, &export, client->nb_conns > 1);
    if (reason) {
        channel_unref(ch);
        return error_set(err, -EIO, "%s", reason);
    }
    if (first) {
        client->export = export;
    }
    atomic_store(&client->length_bytes, export.length_bytes);
    conn->export = export;
    conn->buf_first = conn->buf_end = 0;
    pthread_mutex_lock(&conn->lock);
    conn->ch = ch;
    conn->state = NBD_CONN_UP;
    pthread_mutex_unlock(&conn->lock);
    return 0;
}

/* Until when an attempt may take that begins now, while there is time for more than one before
 * @deadline_ns. *attempt_ns is how long it may take, and then the next one. */
static int64_t attempt_limit_ns(int64_t deadline_ns, int64_t *attempt_ns)
{
    int64_t limit_ns = MIN(deadline_ns, aio_now_ns() + *attempt_ns);

    *attempt_ns = MIN(*attempt_ns * 2, ATTEMPT_NS);
    return limit_ns;
}

/* --- the first time --- */

int conn_co_open(NbdConn *conn, int64_t deadline_ns, Error *err)
{
    bool first = conn->index == 0;
    int64_t pause_ns = PAUSE_FIRST_NS, attempt_ns = ATTEMPT_FIRST_NS;

    for (;;) {
        int64_t now_ns = aio_now_ns();
        int64_t limit_ns = deadline_ns > now_ns ? attempt_limit_ns(deadline_ns, &attempt_ns)
                                                : now_ns + (first ? ATTEMPT_NS : MORE_NS);
        Error reason;

        if (attempt(conn, first, limit_ns, &reason) == 0) {
            return 0;
        }
        if (aio_now_ns() + pause_ns >= deadline_ns) {
            return error_set(err, reason.code, "%s", reason.msg);
        }
        aio_co_sleep_ns(pause_ns);
        pause_ns = MIN(pause_ns * 2, PAUSE_MAX_NS);
    }
}

/* --- again --- */

/* Nothing in flight any more, the old channel dropped. */
static co_fn void clear_away(NbdConn *conn, int64_t deadline_ns)
{
    for (;;) {
        NbdConnState state;
        bool idle;
        Channel *ch = NULL;

        pthread_mutex_lock(&conn->lock);
        idle = conn->nb_in_flight == 0;
        state = conn->state;
        if (idle && state == NBD_CONN_DOWN) {
            ch = take_ptr(&conn->ch);
        }
        pthread_mutex_unlock(&conn->lock);
        if (idle && state == NBD_CONN_DOWN) {
            channel_unref(ch);
            return;
        }
        if (idle) {
            conn_co_leave(conn);
        } else if (state == NBD_CONN_LEAVING && aio_now_ns() >= deadline_ns) {
            conn_break(conn, "the server shuts down and does not answer what it had");
        } else {
            /* When DOWN they are on their way out already. */
            co_sleep_until(&conn->idle,
                           state == NBD_CONN_LEAVING ? deadline_ns : aio_now_ns() + LEAVE_NS);
        }
    }
}

/* Wait until the next attempt is due; false when there is none before @deadline_ns. */
static co_fn bool pause_before_attempt(NbdConn *conn, int64_t deadline_ns)
{
    while (aio_now_ns() < conn->next_attempt_ns) {
        if (conn->next_attempt_ns >= deadline_ns || atomic_load(&conn->client->given_up)) {
            return false;
        }
        co_sleep_until(&conn->backoff, conn->next_attempt_ns);
    }
    return !atomic_load(&conn->client->given_up);
}

static void grow_pause(NbdConn *conn)
{
    pthread_mutex_lock(&conn->lock);
    conn->pause_ns = conn->pause_ns ? MIN(conn->pause_ns * 2, PAUSE_MAX_NS) : PAUSE_FIRST_NS;
    pthread_mutex_unlock(&conn->lock);
}

/* From the end of this attempt on: those who waited for it meanwhile need none of their own. */
static void plan_next_attempt(NbdConn *conn)
{
    pthread_mutex_lock(&conn->lock);
    conn->next_attempt_ns = aio_now_ns() + conn->pause_ns;
    pthread_mutex_unlock(&conn->lock);
}

static void tell(NbdConn *conn, const char *reason)
{
    pthread_mutex_lock(&conn->lock);
    log_limited(&conn->log_limit, LOG_LEVEL_WARN, "nbd", "'%s': %s%s", conn->client->params.name,
                reason ? "cannot connect: " : "connected again", reason ? reason : "");
    pthread_mutex_unlock(&conn->lock);
}

static co_fn int reconnect(NbdConn *conn)
{
    int64_t deadline_ns, attempt_ns = ATTEMPT_FIRST_NS;
    Error err;

    pthread_mutex_lock(&conn->lock);
    deadline_ns = conn->lost_at_ns + conn->client->params.reconnect_delay_ns;
    if (conn->pause_ns == 0) {
        conn->next_attempt_ns = 0;
    }
    pthread_mutex_unlock(&conn->lock);
    clear_away(conn, deadline_ns);
    for (;;) {
        uint64_t length_bytes = nbd_client_length(conn->client);
        int64_t limit_ns;
        int ret;

        if (!pause_before_attempt(conn, deadline_ns)) {
            return -EIO;
        }
        grow_pause(conn);
        limit_ns = MAX(attempt_limit_ns(deadline_ns, &attempt_ns),
                       aio_now_ns() + LATE_ATTEMPT_NS);
        pthread_mutex_lock(&conn->lock);
        if (!atomic_load(&conn->client->given_up)) {
            channel_cancel_init(&conn->cancel);
        }
        pthread_mutex_unlock(&conn->lock);
        ret = attempt(conn, false, limit_ns, &err);
        plan_next_attempt(conn);
        if (ret == 0) {
            tell(conn, NULL);
            if (nbd_client_length(conn->client) != length_bytes) {
                conn->client->params.resized(conn->client->params.opaque);
            }
            return 0;
        }
        tell(conn, err.msg);
        if (aio_now_ns() >= deadline_ns) {
            return -EIO;
        }
    }
}

int conn_co_reopen(NbdConn *conn)
{
    bool up;
    int ret = 0;

    co_mutex_lock(&conn->connect_lock);
    pthread_mutex_lock(&conn->lock);
    up = conn->state == NBD_CONN_UP;
    pthread_mutex_unlock(&conn->lock);
    if (!up) {
        ret = reconnect(conn);
    }
    co_mutex_unlock(&conn->connect_lock);
    return ret;
}

/* --- the end --- */

void conn_co_leave(NbdConn *conn)
{
    uint8_t buf[NBD_EXTENDED_REQUEST_BYTES];
    NbdRequest req = { .type = NBD_CMD_DISC };
    size_t len_bytes = nbd_request_encode(buf, conn->export.headers, &req);
    NbdConnState state;

    pthread_mutex_lock(&conn->lock);
    assert(conn->nb_in_flight == 0);
    state = conn->state;
    conn->state = NBD_CONN_DOWN;
    pthread_mutex_unlock(&conn->lock);
    if (state == NBD_CONN_DOWN) {
        return;
    }
    channel_set_deadline(conn->ch, CHANNEL_WRITE, aio_now_ns() + LEAVE_NS);
    if (channel_co_write_full(conn->ch, buf, len_bytes) == 0) {
        (void)channel_co_half_close(conn->ch);
    }
}

int nbd_client_co_probe(NbdClient *client, Error *err)
{
    uint8_t buf[NBD_EXTENDED_REQUEST_BYTES];
    NbdRequest req = { .type = NBD_CMD_DISC };
    NbdExport export;
    Channel *ch = connect_once(client, NULL, aio_now_ns() + PROBE_NS, &export, err);

    if (!ch) {
        return err && err->code < 0 ? err->code : -EIO;
    }
    atomic_store(&client->length_bytes, export.length_bytes);
    channel_set_deadline(ch, CHANNEL_WRITE, aio_now_ns() + LEAVE_NS);
    if (channel_co_write_full(ch, buf, nbd_request_encode(buf, export.headers, &req)) == 0) {
        (void)channel_co_half_close(ch);
    }
    channel_unref(ch);
    return 0;
}
