/*
 * nbd-server-conn.c - the transmission phase: receives requests and starts a coroutine for each
 *
 * One coroutine, the receiver, reads. It takes a slot and memory before it reads a payload, and
 * waits when there is none: then the client's next requests stay in the socket. Each request has a
 * coroutine of its own; it answers (nbd-server-send.c) and gives slot and memory back. When there is
 * no coroutine to be had the receiver carries it out, and reads no further until it is done. All of
 * a connection is in one context, so slots and memory need no lock.
 *
 * Invariants:
 *   (1) nb_in_flight counts a request from its header until its answer is out. The receiver counts
 *       it, then looks at `stopping`; who stops sets `stopping`, then looks at the count; the end
 *       of a request lowers the count, then looks at `stopping`. So either the request is refused
 *       with ESHUTDOWN, or it is carried out and answered; and whoever is the last to know shuts
 *       the reading direction down.
 *   (2) Memory is waited for only while other requests of this connection have some; one alone
 *       always fits (memory_bytes is not less than sizes.max_payload_bytes).
 *   (3) The receiver ends only when nothing is in flight.
 */
#include "block/nbd/nbd-server-int.h"

#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

/* --- slots and memory --- */

static void buffer_free(NbdSlot *slot)
{
    if (slot->buf) {
        munmap(slot->buf, slot->buf_bytes);
        slot->buf = NULL;
        slot->buf_bytes = 0;
    }
}

/* New memory is zeroes: a driver that leaves a buffer as it is shows nothing of ours. */
static int buffer_reserve(NbdSlot *slot, size_t len_bytes)
{
    if (len_bytes <= slot->buf_bytes) {
        return 0;
    }
    buffer_free(slot);
    len_bytes = ALIGN_UP(len_bytes, 4096);
    void *buf = mmap(NULL, len_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (buf == MAP_FAILED) {
        return -ENOMEM;
    }
    slot->buf = buf;
    slot->buf_bytes = len_bytes;
    return 0;
}

static int slots_init(NbdConn *conn)
{
    unsigned nb = conn->server->requests_max;

    conn->slots = calloc(nb, sizeof(*conn->slots));
    if (!conn->slots) {
        return -ENOMEM;
    }
    for (unsigned i = nb; i-- > 0;) {
        conn->slots[i].conn = conn;
        conn->slots[i].next_free = conn->free_slots;
        conn->free_slots = &conn->slots[i];
    }
    return 0;
}

static void slots_finish(NbdConn *conn)
{
    for (unsigned i = 0; conn->slots && i < conn->server->requests_max; i++) {
        buffer_free(&conn->slots[i]);
    }
    free(conn->slots);
}

/* Until some request of this connection ends. */
static co_fn void wait_for_an_end(NbdConn *conn)
{
    conn->receiver = co_self();
    co_yield();
}

static co_fn NbdSlot *slot_take(NbdConn *conn)
{
    while (!conn->free_slots) {
        wait_for_an_end(conn);
    }
    NbdSlot *slot = conn->free_slots;

    conn->free_slots = slot->next_free;
    return slot;
}

static void slot_give(NbdSlot *slot)
{
    NbdConn *conn = slot->conn;

    conn->memory_bytes -= slot->data_bytes;
    slot->data_bytes = 0;
    if (slot->buf_bytes > NBD_SERVER_KEEP_BYTES) {
        buffer_free(slot);
    }
    slot->next_free = conn->free_slots;
    conn->free_slots = slot;
}

static co_fn int slot_take_memory(NbdSlot *slot, size_t len_bytes)
{
    NbdConn *conn = slot->conn;

    while (conn->memory_bytes > 0 && conn->memory_bytes + len_bytes > conn->server->memory_bytes) {
        wait_for_an_end(conn);
    }
    conn->memory_bytes += len_bytes;
    slot->data_bytes = len_bytes;
    return buffer_reserve(slot, len_bytes);
}

/* The header is there. */
static void slot_begin(NbdSlot *slot)
{
    /* seq_cst: pairs with shut_down_connections() */
    atomic_fetch_add(&slot->conn->nb_in_flight, 1);
    slot->error = atomic_load(&slot->conn->server->stopping) ? -ESHUTDOWN : 0;
}

/* It is answered, or cannot be. */
static void slot_end(NbdSlot *slot)
{
    NbdConn *conn = slot->conn;

    slot_give(slot);
    /* seq_cst: pairs with shut_down_connections() */
    if (atomic_fetch_sub(&conn->nb_in_flight, 1) == 1 && atomic_load(&conn->server->stopping)) {
        channel_shutdown(conn->ch, CHANNEL_READ);
    }
    if (conn->receiver) {
        Coroutine *receiver = take_ptr(&conn->receiver);

        aio_co_wake(receiver);
    }
}

static co_fn void request_entry(void *opaque)
{
    nbd_request_co_run(opaque);
    slot_end(opaque);
}

/* --- receiving --- */

static size_t take_ahead(NbdConn *conn, uint8_t *buf, size_t len_bytes)
{
    size_t part_bytes = MIN(len_bytes, (size_t)(conn->ahead_end - conn->ahead_begin));

    memcpy(buf, conn->ahead + conn->ahead_begin, part_bytes);
    conn->ahead_begin += part_bytes;
    return part_bytes;
}

/* 1, 0 = the client ended before the first byte, or -errno. Small pieces are read ahead of. */
static co_fn int receive(NbdConn *conn, void *buf, size_t len_bytes)
{
    size_t done_bytes = take_ahead(conn, buf, len_bytes);

    while (done_bytes < len_bytes) {
        uint8_t *to = (uint8_t *)buf + done_bytes;
        bool direct = len_bytes - done_bytes >= sizeof(conn->ahead);
        ssize_t ret = direct ? channel_co_read(conn->ch, to, len_bytes - done_bytes)
                             : channel_co_read(conn->ch, conn->ahead, sizeof(conn->ahead));

        if (ret <= 0) {
            conn->ended = true;
            return ret < 0 ? (int)ret : done_bytes > 0 ? -ECONNRESET : 0;
        }
        if (!direct) {
            conn->ahead_begin = 0;
            conn->ahead_end = (unsigned)ret;
            ret = (ssize_t)take_ahead(conn, to, len_bytes - done_bytes);
        }
        done_bytes += (size_t)ret;
    }
    return 1;
}

static co_fn int skip(NbdConn *conn, uint64_t len_bytes)
{
    uint8_t scratch[1024];
    int ret = 1;

    while (ret > 0 && len_bytes > 0) {
        size_t part_bytes = MIN(len_bytes, (uint64_t)sizeof(scratch));

        ret = receive(conn, scratch, part_bytes);
        len_bytes -= part_bytes;
    }
    return ret == 0 ? -ECONNRESET : ret;
}

static uint64_t payload_bytes(const NbdConn *conn, const NbdRequest *req)
{
    bool has_payload = conn->headers == NBD_HEADERS_EXTENDED ? req->flags & NBD_CMD_FLAG_PAYLOAD_LEN
                                                             : req->type == NBD_CMD_WRITE;

    return has_payload ? req->len_bytes : 0;
}

/* What belongs to the header in slot->req: 1, or -errno. */
static co_fn int receive_rest(NbdSlot *slot)
{
    NbdConn *conn = slot->conn;
    uint64_t len_bytes = payload_bytes(conn, &slot->req);
    int ret = 1;

    if (len_bytes > conn->export->sizes.max_payload_bytes) {
        return nbd_conn_broke_rules(
            conn, "a request with %" PRIu64 " bytes, more than the %" PRIu32 " that are allowed",
            len_bytes, conn->export->sizes.max_payload_bytes);
    }
    if (slot->error == 0) {
        slot->error = nbd_request_check(conn, &slot->req);
    }
    if (slot->error == 0) {
        slot->error = slot_take_memory(slot, nbd_request_buffer_bytes(&slot->req));
    }
    if (len_bytes > 0) {
        ret = slot->error < 0 ? skip(conn, len_bytes) : receive(conn, slot->buf, len_bytes);
    }
    return ret == 0 ? -ECONNRESET : ret;
}

/* 1 = a request is there, 0 = the client has left in order, or -errno. */
static co_fn int receive_header(NbdSlot *slot)
{
    NbdConn *conn = slot->conn;
    uint8_t buf[NBD_EXTENDED_REQUEST_BYTES]; /* the longer one */
    int ret = receive(conn, buf, nbd_request_bytes(conn->headers));

    if (ret <= 0) {
        return ret;
    }
    if (nbd_request_decode(buf, conn->headers, &slot->req) < 0) {
        return nbd_conn_broke_rules(conn, "what it sent is no request");
    }
    return slot->req.type != NBD_CMD_DISC;
}

/* One more request; as receive_header(). */
static co_fn int serve_next(NbdConn *conn)
{
    NbdSlot *slot = slot_take(conn);
    int ret = receive_header(slot);

    if (ret <= 0) {
        slot_give(slot);
        return ret;
    }
    slot_begin(slot);
    ret = receive_rest(slot);
    if (ret < 0) {
        slot_end(slot);
        return ret;
    }
    unsigned nb_others = atomic_load_explicit(&conn->nb_in_flight, memory_order_relaxed) - 1;
    Coroutine *co = co_create_request(request_entry, slot, nb_others);

    if (likely(co)) {
        co_enter(co);
    } else {
        request_entry(slot);
    }
    return 1;
}

int nbd_conn_co_transmit(NbdConn *conn)
{
    int ret = slots_init(conn);

    nbd_conn_init_sending(conn);
    if (ret == 0) {
        do {
            ret = serve_next(conn);
        } while (ret > 0);
    }
    while (atomic_load(&conn->nb_in_flight) > 0) {
        wait_for_an_end(conn);
    }
    slots_finish(conn);
    return ret == -ESHUTDOWN && atomic_load(&conn->server->stopping) ? 0 : ret;
}
