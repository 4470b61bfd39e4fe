/*
 * nbd-client-reply.c - what a server sends: believed only as far as it fits a request
 *
 * Bytes come through a buffer, so that many small replies cost one system call; the payload of
 * reads that is not in the buffer yet goes straight to where it belongs.
 *
 * Anything that the protocol forbids ends the connection, because what follows cannot be told from
 * rubbish: an unknown cookie, a wrong magic, a payload that its chunk cannot have, a part outside
 * of the request or one that has come before, a reply to a read that leaves something out. Nothing
 * is allocated here, whatever lengths the server claims, and each loop ends with the bytes that it
 * moves: a reply has at most as many parts as its read has bytes, and ERROR_CHUNKS_MAX errors.
 */
#include <string.h>

#include "block/iov.h"
#include "block/nbd/nbd-client-int.h"

#define SLICE_IOV 64

/* --- bytes --- */

static size_t buffered(const NbdConn *conn)
{
    return conn->buf_end - conn->buf_first;
}

/* At least @len_bytes, <= READ_BUFFER_BYTES, into the buffer. */
static co_fn int fill(NbdConn *conn, size_t len_bytes)
{
    while (buffered(conn) < len_bytes) {
        ssize_t n;

        if (conn->buf_first > 0) {
            memmove(conn->buf, conn->buf + conn->buf_first, buffered(conn));
            conn->buf_end -= conn->buf_first;
            conn->buf_first = 0;
        }
        n = channel_co_read(conn->ch, conn->buf + conn->buf_end, READ_BUFFER_BYTES - conn->buf_end);
        if (n <= 0) {
            return n == 0 ? -ECONNRESET : (int)n;
        }
        conn->buf_end += (size_t)n;
    }
    return 0;
}

/* The next @len_bytes, which fill() has got; valid until the next fill(). */
static const uint8_t *take(NbdConn *conn, size_t len_bytes)
{
    const uint8_t *at = conn->buf + conn->buf_first;

    conn->buf_first += len_bytes;
    return at;
}

/* The next @len_bytes to where the cursor stands. */
static co_fn int read_payload(NbdConn *conn, IovCursor *cur, uint64_t len_bytes)
{
    size_t first = MIN((uint64_t)buffered(conn), len_bytes);

    iov_cursor_write(cur, take(conn, first), first);
    len_bytes -= first;
    while (len_bytes > 0) {
        struct iovec iov[SLICE_IOV];
        int niov;
        uint64_t slice = iov_cursor_slice(cur, len_bytes, iov, SLICE_IOV, &niov);
        int ret = channel_co_readv_full(conn->ch, iov, niov, NULL);

        if (ret <= 0) {
            return ret == 0 ? -ECONNRESET : ret;
        }
        iov_cursor_advance(cur, slice);
        len_bytes -= slice;
    }
    return 0;
}

static int broken(const char **ret_reason, const char *reason)
{
    *ret_reason = reason;
    return -EPROTO;
}

/* --- reads in parts --- */

/* Remember that a part of a read has come; false when it is not what the request left open. */
static bool add_fragment(NbdPending *p, uint64_t start_bytes, uint64_t end_bytes)
{
    unsigned i = 0;

    while (i < p->nb_fragments && p->fragment[i].end_bytes < start_bytes) {
        i++;
    }
    /* i: the first one that ends where this one begins, or later */
    bool joins_left = i < p->nb_fragments && p->fragment[i].end_bytes == start_bytes;
    unsigned next = joins_left ? i + 1 : i;

    if (next < p->nb_fragments && p->fragment[next].start_bytes < end_bytes) {
        return false;
    }
    bool joins_right = next < p->nb_fragments && p->fragment[next].start_bytes == end_bytes;

    if (joins_left && joins_right) {
        p->fragment[i].end_bytes = p->fragment[next].end_bytes;
        p->nb_fragments--;
        memmove(&p->fragment[next], &p->fragment[next + 1],
                (p->nb_fragments - next) * sizeof(p->fragment[0]));
    } else if (joins_left) {
        p->fragment[i].end_bytes = end_bytes;
    } else if (joins_right) {
        p->fragment[next].start_bytes = start_bytes;
    } else {
        if (p->nb_fragments == FRAGMENTS_MAX) {
            return false;
        }
        memmove(&p->fragment[i + 1], &p->fragment[i],
                (p->nb_fragments - i) * sizeof(p->fragment[0]));
        p->fragment[i].start_bytes = start_bytes;
        p->fragment[i].end_bytes = end_bytes;
        p->nb_fragments++;
    }
    return true;
}

static bool is_complete(const NbdPending *p)
{
    return p->nb_fragments == 1 && p->fragment[0].start_bytes == p->op->offset_bytes &&
           p->fragment[0].end_bytes == p->op->offset_bytes + p->op->len_bytes;
}

/* A part of @len_bytes at @offset_bytes: where it goes. */
static bool take_part(NbdPending *p, uint64_t offset_bytes, uint64_t len_bytes, IovCursor *ret_cur)
{
    const NbdOp *op = p->op;

    if (op->command != NBD_CMD_READ || offset_bytes < op->offset_bytes || len_bytes == 0 ||
        len_bytes > op->len_bytes || offset_bytes - op->offset_bytes > op->len_bytes - len_bytes ||
        !add_fragment(p, offset_bytes, offset_bytes + len_bytes)) {
        return false;
    }
    iov_cursor_init(ret_cur, op->iov, op->niov);
    iov_cursor_advance(ret_cur, offset_bytes - op->offset_bytes);
    return true;
}

/* --- chunks --- */

static co_fn int read_data(NbdConn *conn, NbdPending *p, const NbdReply *reply,
                           const char **ret_reason)
{
    IovCursor cur;
    uint64_t offset_bytes;
    int ret;

    if (reply->payload_bytes <= NBD_OFFSET_DATA_BYTES) {
        return broken(ret_reason, "a part of a read without data");
    }
    ret = fill(conn, NBD_OFFSET_DATA_BYTES);
    if (ret < 0) {
        return ret;
    }
    offset_bytes = nbd_get_be64(take(conn, NBD_OFFSET_DATA_BYTES));
    if (!take_part(p, offset_bytes, reply->payload_bytes - NBD_OFFSET_DATA_BYTES, &cur)) {
        return broken(ret_reason, "a part of a read that was not asked for");
    }
    return read_payload(conn, &cur, reply->payload_bytes - NBD_OFFSET_DATA_BYTES);
}

static co_fn int read_hole(NbdConn *conn, NbdPending *p, const NbdReply *reply,
                           const char **ret_reason)
{
    IovCursor cur;
    const uint8_t *at;
    uint32_t len_bytes;
    int ret;

    if (reply->payload_bytes != NBD_OFFSET_HOLE_BYTES) {
        return broken(ret_reason, "a hole of a wrong length");
    }
    ret = fill(conn, NBD_OFFSET_HOLE_BYTES);
    if (ret < 0) {
        return ret;
    }
    at = take(conn, NBD_OFFSET_HOLE_BYTES);
    len_bytes = nbd_get_be32(at + 8);
    if (!take_part(p, nbd_get_be64(at), len_bytes, &cur)) {
        return broken(ret_reason, "a hole that was not asked for");
    }
    iov_cursor_zero(&cur, len_bytes);
    return 0;
}

/* One extent: it was asked for with REQ_ONE. */
static co_fn int read_status(NbdConn *conn, NbdPending *p, const NbdReply *reply,
                             const char **ret_reason)
{
    bool ext = reply->type == NBD_REPLY_TYPE_BLOCK_STATUS_EXT;
    size_t head = ext ? NBD_STATUS_EXT_BYTES : NBD_STATUS_BYTES;
    size_t want = head + (ext ? NBD_EXTENT_EXT_BYTES : NBD_EXTENT_BYTES);
    const uint8_t *at;
    NbdOp *op = p->op;
    int ret;

    if (op->command != NBD_CMD_BLOCK_STATUS || p->has_extent ||
        (ext && conn->export.headers != NBD_HEADERS_EXTENDED)) {
        return broken(ret_reason, "a block status that was not asked for");
    }
    if (reply->payload_bytes != want) {
        return broken(ret_reason, "a block status that is not of one extent");
    }
    ret = fill(conn, want);
    if (ret < 0) {
        return ret;
    }
    at = take(conn, want);
    if (nbd_get_be32(at) != conn->export.status_context || (ext && nbd_get_be32(at + 4) != 1)) {
        return broken(ret_reason, "a block status of another context");
    }
    op->extent_bytes = ext ? nbd_get_be64(at + head) : nbd_get_be32(at + head);
    op->extent_flags = ext ? nbd_get_be64(at + head + 8) : nbd_get_be32(at + head + 4);
    if (op->extent_bytes == 0) {
        return broken(ret_reason, "a block status of an empty extent");
    }
    op->extent_bytes = MIN(op->extent_bytes, op->len_bytes);
    p->has_extent = true;
    return 0;
}

static co_fn int read_error(NbdConn *conn, NbdPending *p, const NbdReply *reply,
                            const char **ret_reason)
{
    const uint8_t *at;
    uint32_t error;
    int ret;

    if (reply->payload_bytes < NBD_CHUNK_ERROR_BYTES ||
        reply->payload_bytes > CHUNK_ERROR_BYTES_MAX || ++p->nb_error_chunks > ERROR_CHUNKS_MAX) {
        return broken(ret_reason, "an error of a wrong length, or too many of them");
    }
    ret = fill(conn, (size_t)reply->payload_bytes);
    if (ret < 0) {
        return ret;
    }
    at = take(conn, (size_t)reply->payload_bytes);
    error = nbd_get_be32(at);
    if (error == 0 || nbd_get_be16(at + 4) > reply->payload_bytes - NBD_CHUNK_ERROR_BYTES) {
        return broken(ret_reason, "an error that makes no sense");
    }
    if (p->error == 0) {
        p->error = nbd_errno_to_host(error);
    }
    return 0;
}

static co_fn int read_chunk(NbdConn *conn, NbdPending *p, const NbdReply *reply,
                            const char **ret_reason)
{
    if (conn->export.headers == NBD_HEADERS_EXTENDED &&
        reply->offset_bytes != p->op->offset_bytes) {
        return broken(ret_reason, "a reply with another offset than its request");
    }
    if (reply->type & NBD_REPLY_TYPE_ERROR_BIT) {
        return read_error(conn, p, reply, ret_reason);
    }
    switch (reply->type) {
    case NBD_REPLY_TYPE_NONE:
        if (reply->payload_bytes != 0 || !(reply->flags & NBD_REPLY_FLAG_DONE)) {
            return broken(ret_reason, "an empty part that does not end its reply");
        }
        return 0;
    case NBD_REPLY_TYPE_OFFSET_DATA:
        return read_data(conn, p, reply, ret_reason);
    case NBD_REPLY_TYPE_OFFSET_HOLE:
        return read_hole(conn, p, reply, ret_reason);
    case NBD_REPLY_TYPE_BLOCK_STATUS:
    case NBD_REPLY_TYPE_BLOCK_STATUS_EXT:
        return read_status(conn, p, reply, ret_reason);
    default:
        return broken(ret_reason, "a part of an unknown type");
    }
}

/* All parts have come: is that all of the reply? */
static int check_whole(NbdPending *p, const char **ret_reason)
{
    if (p->error != 0) {
        return 0;
    }
    if (p->op->command == NBD_CMD_READ && !is_complete(p)) {
        return broken(ret_reason, "a read with something left out");
    }
    if (p->op->command == NBD_CMD_BLOCK_STATUS && !p->has_extent) {
        return broken(ret_reason, "a block status without any");
    }
    return 0;
}

/* --- replies --- */

static co_fn int read_simple(NbdConn *conn, NbdPending *p, const NbdReply *reply,
                             const char **ret_reason)
{
    NbdCommand command = p->op->command;
    IovCursor cur;

    if (conn->export.headers != NBD_HEADERS_SIMPLE &&
        (command == NBD_CMD_READ || (command == NBD_CMD_BLOCK_STATUS && reply->error == 0))) {
        return broken(ret_reason, "a simple reply to what needs a structured one");
    }
    if (p->nb_fragments > 0 || p->nb_error_chunks > 0 || p->has_extent) {
        return broken(ret_reason, "a simple reply behind parts of a structured one");
    }
    if (reply->error != 0) {
        p->error = nbd_errno_to_host(reply->error);
        return 0;
    }
    if (command != NBD_CMD_READ) {
        return 0;
    }
    iov_cursor_init(&cur, p->op->iov, p->op->niov);
    return read_payload(conn, &cur, p->op->len_bytes);
}

int conn_co_read_reply(NbdConn *conn, NbdPending **ret_ended, const char **ret_reason)
{
    NbdReply reply;
    NbdPending *p;
    size_t len_bytes;
    int ret;

    *ret_ended = NULL;
    *ret_reason = NULL;
    ret = fill(conn, NBD_SIMPLE_REPLY_BYTES);
    if (ret < 0) {
        return ret;
    }
    len_bytes = nbd_reply_bytes(conn->buf + conn->buf_first, conn->export.headers);
    if (len_bytes == 0) {
        return broken(ret_reason, "a reply with a wrong magic");
    }
    ret = fill(conn, len_bytes);
    if (ret < 0) {
        return ret;
    }
    nbd_reply_decode(take(conn, len_bytes), &reply);
    p = conn_find(conn, reply.cookie);
    if (!p) {
        return broken(ret_reason, "a reply to no request");
    }
    if (reply.simple) {
        ret = read_simple(conn, p, &reply, ret_reason);
    } else {
        ret = read_chunk(conn, p, &reply, ret_reason);
        if (ret == 0 && !(reply.flags & NBD_REPLY_FLAG_DONE)) {
            return 0;
        }
        if (ret == 0) {
            ret = check_whole(p, ret_reason);
        }
    }
    *ret_ended = ret == 0 ? p : NULL;
    return ret;
}
