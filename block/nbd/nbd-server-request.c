/*
 * nbd-server-request.c - one request: checked, carried out, answered
 *
 * Reads are answered with holes where the map of the disk has some. Looking at the map costs; so
 * each connection remembers one range that is known to be data, and reads in there do not look.
 * What is remembered may be wrong by now: then zeroes are sent as data, which is right as well.
 */
#include "block/nbd/nbd-server-int.h"

#include <string.h>

#define HOLES_MIN_BYTES      (32u << 10) /* shorter reads are not looked at for holes */
#define MAP_AHEAD_BYTES      (64u << 20) /* how far is looked for the end of the data */
#define PIECES_MAX           16          /* holes and data of one read */
#define EXTENTS_MAX          512         /* of one answer to BLOCK_STATUS */
#define CACHE_PIECE_BYTES    NBD_SERVER_KEEP_BYTES
#define PREFETCH_PIECE_BYTES (1u << 30)

/* --- what is a valid request --- */

static const uint16_t known_flags[] = {
    [NBD_CMD_READ] = NBD_CMD_FLAG_DF,
    [NBD_CMD_WRITE] = 0,
    [NBD_CMD_FLUSH] = 0,
    [NBD_CMD_TRIM] = 0,
    [NBD_CMD_CACHE] = 0,
    [NBD_CMD_WRITE_ZEROES] = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
    [NBD_CMD_BLOCK_STATUS] = NBD_CMD_FLAG_REQ_ONE,
};

static int check_flags(const NbdConn *conn, const NbdRequest *req)
{
    uint16_t known = known_flags[req->type] | NBD_CMD_FLAG_FUA; /* FUA goes with everything */
    bool extended = conn->headers == NBD_HEADERS_EXTENDED;

    if (conn->headers == NBD_HEADERS_SIMPLE) {
        known &= ~NBD_CMD_FLAG_DF;
    }
    if (extended && req->type == NBD_CMD_WRITE) {
        known |= NBD_CMD_FLAG_PAYLOAD_LEN;
        if (!(req->flags & NBD_CMD_FLAG_PAYLOAD_LEN)) {
            return -EINVAL;
        }
    }
    return req->flags & ~known ? -EINVAL : 0;
}

static bool is_write(const NbdRequest *req)
{
    return req->type == NBD_CMD_WRITE || req->type == NBD_CMD_TRIM ||
           req->type == NBD_CMD_WRITE_ZEROES;
}

static int check_range(const NbdConn *conn, const NbdRequest *req)
{
    uint64_t length_bytes = blk_length(conn->export->blk);

    if (req->offset_bytes <= length_bytes && req->len_bytes <= length_bytes - req->offset_bytes) {
        return 0;
    }
    return req->type == NBD_CMD_WRITE || req->type == NBD_CMD_WRITE_ZEROES ? -ENOSPC : -EINVAL;
}

int nbd_request_check(const NbdConn *conn, const NbdRequest *req)
{
    int ret;

    if (req->type >= ARRAY_SIZE(known_flags) || (ret = check_flags(conn, req)) < 0) {
        return -EINVAL;
    }
    if (is_write(req) && conn->export->read_only) {
        return -EPERM;
    }
    if (req->type == NBD_CMD_FLUSH) {
        return 0;
    }
    if (req->type == NBD_CMD_BLOCK_STATUS && (!conn->allocation_of || req->len_bytes == 0)) {
        return -EINVAL;
    }
    if ((ret = check_range(conn, req)) < 0) {
        return ret;
    }
    if (req->type == NBD_CMD_READ && req->len_bytes > conn->export->sizes.max_payload_bytes) {
        return -EOVERFLOW;
    }
    return 0;
}

size_t nbd_request_buffer_bytes(const NbdRequest *req)
{
    switch (req->type) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return req->len_bytes;
    case NBD_CMD_CACHE:
        return MIN(req->len_bytes, (uint64_t)CACHE_PIECE_BYTES);
    case NBD_CMD_BLOCK_STATUS:
        return NBD_STATUS_EXT_BYTES + EXTENTS_MAX * NBD_EXTENT_EXT_BYTES;
    default:
        return 0;
    }
}

/* --- answers --- */

static size_t encode_chunk(const NbdSlot *slot, uint8_t *buf, bool done, uint16_t type,
                           uint64_t len_bytes)
{
    NbdReply reply = {
        .flags = done ? NBD_REPLY_FLAG_DONE : 0,
        .type = type,
        .cookie = slot->req.cookie,
        .offset_bytes = slot->req.offset_bytes,
        .payload_bytes = len_bytes,
    };

    return nbd_reply_encode(buf, slot->conn->headers, &reply);
}

static size_t encode_simple(const NbdSlot *slot, uint8_t *buf, int ret)
{
    NbdReply reply = {
        .simple = true,
        .error = ret < 0 ? nbd_errno_from_host(ret) : 0,
        .cookie = slot->req.cookie,
    };

    return nbd_reply_encode(buf, NBD_HEADERS_SIMPLE, &reply);
}

static co_fn void answer_error_chunk(NbdSlot *slot, int ret)
{
    const char *text = error_strerror(ret);
    size_t text_bytes = strlen(text);
    uint8_t head[NBD_REPLY_BYTES_MAX + NBD_CHUNK_ERROR_BYTES];
    size_t head_bytes =
        encode_chunk(slot, head, true, NBD_REPLY_TYPE_ERROR, NBD_CHUNK_ERROR_BYTES + text_bytes);

    nbd_put_be32(head + head_bytes, nbd_errno_from_host(ret));
    nbd_put_be16(head + head_bytes + 4, text_bytes);
    struct iovec iov[] = { { head, head_bytes + NBD_CHUNK_ERROR_BYTES },
                           { (void *)text, text_bytes } };

    nbd_conn_co_send(slot->conn, iov, ARRAY_SIZE(iov));
}

/* An answer without data. */
static co_fn void answer(NbdSlot *slot, int ret)
{
    NbdHeaders headers = slot->conn->headers;
    bool needs_chunk = headers == NBD_HEADERS_EXTENDED ||
                       (headers == NBD_HEADERS_STRUCTURED &&
                        (slot->req.type == NBD_CMD_READ || slot->req.type == NBD_CMD_BLOCK_STATUS));
    uint8_t buf[NBD_REPLY_BYTES_MAX];
    struct iovec iov = { buf, 0 };

    if (needs_chunk && ret < 0) {
        answer_error_chunk(slot, ret);
        return;
    }
    iov.iov_len = needs_chunk ? encode_chunk(slot, buf, true, NBD_REPLY_TYPE_NONE, 0)
                              : encode_simple(slot, buf, ret);
    nbd_conn_co_send(slot->conn, &iov, 1);
}

/* --- read --- */

typedef struct Piece {
    uint64_t offset_bytes;
    uint64_t len_bytes;
    bool hole;
} Piece;

typedef struct Pieces {
    Piece piece[PIECES_MAX];
    unsigned nb;
} Pieces;

static void pieces_add(Pieces *pieces, uint64_t offset_bytes, uint64_t len_bytes, bool hole)
{
    Piece *last = pieces->nb > 0 ? &pieces->piece[pieces->nb - 1] : NULL;

    if (last && last->hole == hole) {
        last->len_bytes += len_bytes;
    } else {
        pieces->piece[pieces->nb++] = (Piece){ offset_bytes, len_bytes, hole };
    }
}

/* Is it zeroes, and for how many bytes of @len_bytes does that hold? */
static co_fn bool look_at_map(NbdConn *conn, uint64_t offset_bytes, uint64_t len_bytes,
                              uint64_t *ret_len_bytes)
{
    BlockBackend *blk = conn->export->blk;
    uint64_t length_bytes = blk_length(blk);
    uint64_t ahead_bytes, status_bytes = 0;

    *ret_len_bytes = len_bytes;
    if (offset_bytes >= conn->data_offset_bytes && offset_bytes < conn->data_end_bytes) {
        *ret_len_bytes = MIN(len_bytes, conn->data_end_bytes - offset_bytes);
        return false;
    }
    if (offset_bytes >= length_bytes) {
        return false; /* it has become shorter; the read will say so */
    }
    ahead_bytes = MIN(MAX(len_bytes, (uint64_t)MAP_AHEAD_BYTES), length_bytes - offset_bytes);
    int status = blk_co_block_status(blk, offset_bytes, ahead_bytes, &status_bytes);

    if (status < 0 || status_bytes == 0) {
        return false;
    }
    *ret_len_bytes = MIN(len_bytes, status_bytes);
    if (status & BLK_STATUS_ZERO) {
        return true;
    }
    conn->data_offset_bytes = offset_bytes;
    conn->data_end_bytes = offset_bytes + status_bytes;
    return false;
}

static co_fn void find_pieces(NbdSlot *slot, Pieces *pieces)
{
    NbdConn *conn = slot->conn;
    uint64_t offset_bytes = slot->req.offset_bytes, left_bytes = slot->req.len_bytes;
    bool look = conn->headers != NBD_HEADERS_SIMPLE && !(slot->req.flags & NBD_CMD_FLAG_DF) &&
                left_bytes >= HOLES_MIN_BYTES;

    while (left_bytes > 0) {
        uint64_t len_bytes = left_bytes;
        bool hole = look && pieces->nb < PIECES_MAX - 1 &&
                    look_at_map(conn, offset_bytes, left_bytes, &len_bytes);

        pieces_add(pieces, offset_bytes, len_bytes, hole);
        offset_bytes += len_bytes;
        left_bytes -= len_bytes;
    }
}

static co_fn int read_pieces(NbdSlot *slot, const Pieces *pieces)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < pieces->nb; i++) {
        const Piece *piece = &pieces->piece[i];
        struct iovec iov = { slot->buf + (piece->offset_bytes - slot->req.offset_bytes),
                             piece->len_bytes };

        if (!piece->hole) {
            ret = blk_co_preadv(slot->conn->export->blk, piece->offset_bytes, piece->len_bytes,
                                &iov, 1, 0);
        }
    }
    return ret;
}

static co_fn void send_simple_data(NbdSlot *slot)
{
    uint8_t head[NBD_REPLY_BYTES_MAX];
    struct iovec iov[] = { { head, encode_simple(slot, head, 0) },
                           { slot->buf, slot->req.len_bytes } };

    nbd_conn_co_send(slot->conn, iov, ARRAY_SIZE(iov));
}

static co_fn void send_pieces(NbdSlot *slot, const Pieces *pieces)
{
    uint8_t heads[PIECES_MAX][NBD_REPLY_BYTES_MAX + NBD_OFFSET_HOLE_BYTES];
    struct iovec iov[2 * PIECES_MAX];
    int niov = 0;

    for (unsigned i = 0; i < pieces->nb; i++) {
        const Piece *piece = &pieces->piece[i];
        bool done = i + 1 == pieces->nb;
        size_t bytes = piece->hole ? encode_chunk(slot, heads[i], done, NBD_REPLY_TYPE_OFFSET_HOLE,
                                                  NBD_OFFSET_HOLE_BYTES)
                                   : encode_chunk(slot, heads[i], done, NBD_REPLY_TYPE_OFFSET_DATA,
                                                  NBD_OFFSET_DATA_BYTES + piece->len_bytes);

        nbd_put_be64(heads[i] + bytes, piece->offset_bytes);
        if (piece->hole) {
            nbd_put_be32(heads[i] + bytes + 8, piece->len_bytes);
            iov[niov++] = (struct iovec){ heads[i], bytes + NBD_OFFSET_HOLE_BYTES };
        } else {
            iov[niov++] = (struct iovec){ heads[i], bytes + NBD_OFFSET_DATA_BYTES };
            iov[niov++] =
                (struct iovec){ slot->buf + (piece->offset_bytes - slot->req.offset_bytes),
                                piece->len_bytes };
        }
    }
    nbd_conn_co_send(slot->conn, iov, niov);
}

static co_fn void run_read(NbdSlot *slot)
{
    Pieces pieces = { .nb = 0 };

    find_pieces(slot, &pieces);
    int ret = read_pieces(slot, &pieces);

    if (ret < 0 || slot->req.len_bytes == 0) {
        answer(slot, ret);
    } else if (slot->conn->headers == NBD_HEADERS_SIMPLE) {
        send_simple_data(slot);
    } else {
        send_pieces(slot, &pieces);
    }
}

/* --- block status --- */

typedef struct Extents {
    bool extended;
    unsigned nb, max;
    uint64_t len_bytes; /* of the last one */
    uint32_t flags;
    uint8_t *next; /* where the last one is written to */
} Extents;

static void extents_write_last(Extents *extents)
{
    if (extents->nb == 0) {
        return;
    }
    if (extents->extended) {
        nbd_put_be64(extents->next, extents->len_bytes);
        nbd_put_be64(extents->next + 8, extents->flags);
    } else {
        nbd_put_be32(extents->next, extents->len_bytes);
        nbd_put_be32(extents->next + 4, extents->flags);
    }
    extents->next += extents->extended ? NBD_EXTENT_EXT_BYTES : NBD_EXTENT_BYTES;
}

/* False: there are as many as may be. */
static bool extents_add(Extents *extents, uint64_t len_bytes, uint32_t flags)
{
    if (extents->nb > 0 && extents->flags == flags) {
        extents->len_bytes += len_bytes;
        return true;
    }
    if (extents->nb == extents->max) {
        return false;
    }
    extents_write_last(extents);
    extents->nb++;
    extents->len_bytes = len_bytes;
    extents->flags = flags;
    return true;
}

/* 0 when at least one extent is known, or -errno. */
static co_fn int find_extents(NbdSlot *slot, Extents *extents)
{
    uint64_t offset_bytes = slot->req.offset_bytes, left_bytes = slot->req.len_bytes;
    bool more = true;

    for (unsigned i = 0; more && left_bytes > 0 && i < EXTENTS_MAX; i++) {
        uint64_t len_bytes = 0;
        int status =
            blk_co_block_status(slot->conn->export->blk, offset_bytes, left_bytes, &len_bytes);

        if (status < 0 || len_bytes == 0) {
            return extents->nb > 0 ? 0 : status < 0 ? status : -EIO;
        }
        more = extents_add(extents, len_bytes,
                           (status & BLK_STATUS_DATA ? 0 : NBD_STATE_HOLE) |
                               (status & BLK_STATUS_ZERO ? NBD_STATE_ZERO : 0));
        offset_bytes += len_bytes;
        left_bytes -= len_bytes;
    }
    return 0;
}

static co_fn void run_block_status(NbdSlot *slot)
{
    bool extended = slot->conn->headers == NBD_HEADERS_EXTENDED;
    size_t head_bytes = extended ? NBD_STATUS_EXT_BYTES : NBD_STATUS_BYTES;
    Extents extents = {
        .extended = extended,
        .max = slot->req.flags & NBD_CMD_FLAG_REQ_ONE ? 1 : EXTENTS_MAX,
        .next = slot->buf + head_bytes,
    };
    uint8_t head[NBD_REPLY_BYTES_MAX];
    int ret = find_extents(slot, &extents);

    if (ret < 0) {
        answer(slot, ret);
        return;
    }
    extents_write_last(&extents);
    nbd_put_be32(slot->buf, 1); /* base:allocation */
    if (extended) {
        nbd_put_be32(slot->buf + 4, extents.nb);
    }
    size_t payload_bytes = (size_t)(extents.next - slot->buf);
    uint16_t type = extended ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS;
    struct iovec iov[] = { { head, encode_chunk(slot, head, true, type, payload_bytes) },
                           { slot->buf, payload_bytes } };

    nbd_conn_co_send(slot->conn, iov, ARRAY_SIZE(iov));
}

/* --- the others --- */

static co_fn int run_trim(BlockBackend *blk, const NbdRequest *req)
{
    int ret = blk_co_pdiscard(blk, req->offset_bytes, req->len_bytes);

    return ret == 0 && (req->flags & NBD_CMD_FLAG_FUA) ? blk_co_flush(blk) : ret;
}

static co_fn int run_write_zeroes(BlockBackend *blk, const NbdRequest *req)
{
    BlkFlags flags = (req->flags & NBD_CMD_FLAG_FUA ? BLK_FUA : 0) |
                     (req->flags & NBD_CMD_FLAG_NO_HOLE ? 0 : BLK_MAY_UNMAP) |
                     (req->flags & NBD_CMD_FLAG_FAST_ZERO ? BLK_NO_FALLBACK : 0);

    return blk_co_pwrite_zeroes(blk, req->offset_bytes, req->len_bytes, flags);
}

/* What is at its beginning, in the cheapest way; how much that was. */
static co_fn int cache_piece(NbdSlot *slot, uint64_t offset_bytes, uint64_t len_bytes,
                             uint64_t *ret_len_bytes)
{
    BlockBackend *blk = slot->conn->export->blk;
    struct iovec iov = { slot->buf, MIN(len_bytes, (uint64_t)CACHE_PIECE_BYTES) };
    int ret;

    *ret_len_bytes = MIN(len_bytes, (uint64_t)PREFETCH_PIECE_BYTES);
    ret = blk_co_prefetch(blk, offset_bytes, *ret_len_bytes);
    if (ret == -EOPNOTSUPP) {
        *ret_len_bytes = iov.iov_len;
        ret = blk_co_preadv(blk, offset_bytes, iov.iov_len, &iov, 1, 0);
    }
    return ret;
}

/* Where the disk is behind the host's page cache, that has it afterwards; where it is another
 * server's, that is told. It may be all of the disk, and is of no use to a client that has gone. */
static co_fn int run_cache(NbdSlot *slot)
{
    const NbdConn *conn = slot->conn;
    uint64_t offset_bytes = slot->req.offset_bytes, left_bytes = slot->req.len_bytes;
    uint64_t done_bytes;
    int ret = 0;

    while (ret == 0 && left_bytes > 0) {
        if (conn->ended || conn->broken || atomic_load(&conn->server->stopping)) {
            return -ESHUTDOWN;
        }
        ret = cache_piece(slot, offset_bytes, left_bytes, &done_bytes);
        offset_bytes += done_bytes;
        left_bytes -= done_bytes;
    }
    return ret;
}

static co_fn int run_simple(NbdSlot *slot)
{
    const NbdRequest *req = &slot->req;
    BlockBackend *blk = slot->conn->export->blk;
    struct iovec iov = { slot->buf, req->len_bytes };

    switch (req->type) {
    case NBD_CMD_WRITE:
        return blk_co_pwritev(blk, req->offset_bytes, req->len_bytes, &iov, 1,
                              req->flags & NBD_CMD_FLAG_FUA ? BLK_FUA : 0);
    case NBD_CMD_FLUSH:
        return blk_co_flush(blk);
    case NBD_CMD_TRIM:
        return run_trim(blk, req);
    case NBD_CMD_WRITE_ZEROES:
        return run_write_zeroes(blk, req);
    default:
        return run_cache(slot);
    }
}

void nbd_request_co_run(NbdSlot *slot)
{
    if (slot->error < 0) {
        answer(slot, slot->error);
    } else if (slot->req.type == NBD_CMD_READ) {
        run_read(slot);
    } else if (slot->req.type == NBD_CMD_BLOCK_STATUS) {
        run_block_status(slot);
    } else {
        answer(slot, run_simple(slot));
    }
}
