/*
 * nbd.c - a disk that an NBD server has
 *
 * driver=nbd, with uri=URI or host=, port=, socket=, export=, tls=on, tls-...= (nbd-uri.h);
 * path=URI alone chooses this driver, too. connections=N, reconnect-delay=S, open-timeout=S,
 * drain-timeout=S.
 *
 * Limits. Requests are multiples of the server's minimum block size and no longer than its payload
 * may be; block-io.c splits and bounces accordingly. What changes or tells of ranges without
 * carrying them is limited by the protocol's 32 bits alone, and not even by these with extended
 * headers.
 *
 * Length. A disk has sectors of 512 bytes. When the export ends in the middle of one, that sector
 * reads as zeroes behind the end; there only zeroes can be written, anything else is -ENOSPC. A
 * tail that is shorter than the server's minimum block size cannot be addressed by any request and
 * is left out.
 *
 * The protocol has no notice of a new length: a connection is told it at its beginning. When that
 * was another one than before, the main thread drains the node, sets the length, and whoever uses
 * the disk is told. Until then the server refuses what lies behind the end.
 *
 * Drained sections wait for the requests in flight. Those that wait for a connection end by
 * reconnect-delay; when the server stays connected, but has said nothing for drain-timeout seconds,
 * they are given up.
 */
#include <inttypes.h>
#include <string.h>

#include "block/block-driver.h"
#include "block/iov.h"
#include "block/nbd/nbd-client.h"
#include "io/base/log.h"

#define SECTOR_BYTES          512
#define LENGTH_BYTES_MAX      ALIGN_DOWN((uint64_t)INT64_MAX, SECTOR_BYTES) /* of a disk */
#define PAGE_BYTES            4096
#define TRANSFER_BYTES_MAX    NBD_PAYLOAD_BYTES_DEFAULT
#define EFFECT_BYTES_MAX      ALIGN_DOWN(UINT32_MAX, 65536u)
#define EXTENDED_BYTES_MAX    ((uint64_t)1 << 62)
#define SECONDS_MAX           86400
#define DRAIN_TIMEOUT_SECONDS 30
#define NS_PER_SECOND         1000000000

typedef struct NbdState {
    NbdUri uri;
    TlsCreds *creds;
    NbdClient *client;
    uint64_t export_bytes; /* that requests may touch; read by any context, changes drained */
    int64_t drain_timeout_ns;
    AioTimer drain_timer; /* main */
    uint64_t drain_replies;
    _Atomic bool resized; /* the length is to be looked at */
} NbdState;

/* --- a new length --- */

/* Of the disk, from that of the export; like that a multiple of the request's alignment. */
static uint64_t disk_bytes(const NbdState *s)
{
    return ALIGN_UP(MIN(s->export_bytes, LENGTH_BYTES_MAX), (uint64_t)SECTOR_BYTES);
}

/* What the client knows; -EMEDIUMTYPE and unchanged when that cannot be a disk's. */
static int take_length(BlockNode *node)
{
    NbdState *s = node->state;
    uint64_t export_bytes =
        ALIGN_DOWN(nbd_client_length(s->client), (uint64_t)node->limits.request_alignment);

    if (export_bytes == 0) {
        return -EMEDIUMTYPE;
    }
    s->export_bytes = export_bytes;
    return 0;
}

static void resize_entry(void *opaque)
{
    BlockNode *node = opaque;
    NbdState *s = node->state;

    assert_in_coroutine();
    bdrv_drained_begin(node);
    atomic_store(&s->resized, false);
    if (take_length(node) == 0) {
        bdrv_set_length(node, disk_bytes(s));
        log_info("nbd", "'%s': the length is %" PRIu64 " bytes now", node->name, disk_bytes(s));
    } else {
        log_warn("nbd", "'%s': the server says that nothing is left of the disk", node->name);
    }
    bdrv_drained_end(node);
    bdrv_unref(node);
}

/* Main. The coroutine has a reference instead of being counted: it waits for what is counted. */
static void resize_bh(void *opaque)
{
    BlockNode *node = opaque;
    Coroutine *co = co_create(resize_entry, node);

    if (co) {
        bdrv_ref(node);
        co_enter(co);
    }
    bdrv_activity_end(node);
}

/* Any context; in a request, so that the node is not closed. */
static void look_at_length(void *opaque)
{
    BlockNode *node = opaque;
    NbdState *s = node->state;

    atomic_store(&s->resized, true);
    if (bdrv_activity_begin(node)) {
        aio_bh_schedule_oneshot(aio_main(), resize_bh, node);
    } /* else nbd_drained_end() comes here again: that section waits for the request */
}

/* --- open --- */

static int take_seconds(Opts *opts, const char *key, int64_t *ret_ns, Error *err)
{
    uint64_t seconds = (uint64_t)*ret_ns / NS_PER_SECOND;
    int ret = opts_get_u64(opts, key, 0, SECONDS_MAX, &seconds, err);

    *ret_ns = (int64_t)seconds * NS_PER_SECOND;
    return ret;
}

static int take_params(NbdState *s, Opts *opts, NbdClientParams *params, Error *err)
{
    uint64_t nb_connections = 1;
    int ret;

    s->drain_timeout_ns = (int64_t)DRAIN_TIMEOUT_SECONDS * NS_PER_SECOND;
    if ((ret = opts_get_u64(opts, "connections", 1, NBD_CONNECTIONS_MAX, &nb_connections, err)) <
            0 ||
        (ret = take_seconds(opts, "reconnect-delay", &params->reconnect_delay_ns, err)) < 0 ||
        (ret = take_seconds(opts, "open-timeout", &params->open_timeout_ns, err)) < 0 ||
        (ret = take_seconds(opts, "drain-timeout", &s->drain_timeout_ns, err)) < 0) {
        return ret;
    }
    params->nb_connections = (unsigned)nb_connections;
    return nbd_uri_from_opts(opts, &s->uri, err);
}

static void fill_limits(BlockNode *node, const NbdExport *export)
{
    uint32_t alignment = export->sizes.min_bytes;
    uint64_t effect_bytes =
        export->headers == NBD_HEADERS_EXTENDED ? EXTENDED_BYTES_MAX : EFFECT_BYTES_MAX;

    node->limits = (BlockLimits){
        .request_alignment = alignment,
        .buffer_alignment = 1,
        .optimal_io_bytes =
            export->sizes.preferred_bytes > PAGE_BYTES ? export->sizes.preferred_bytes : 0,
        .max_transfer_bytes =
            ALIGN_DOWN(MIN(export->sizes.max_payload_bytes, TRANSFER_BYTES_MAX), alignment),
        .max_iov = NBD_IOV_MAX,
        .discard_alignment = MAX(alignment, (uint32_t)SECTOR_BYTES),
        .max_discard_bytes = effect_bytes,
        .max_write_zeroes_bytes = effect_bytes,
        .logical_block_bytes = SECTOR_BYTES,
        .physical_block_bytes = MAX(MIN(alignment, (uint32_t)PAGE_BYTES), (uint32_t)SECTOR_BYTES),
    };
}

static int settle(BlockNode *node, NbdState *s, const char *what, Error *err)
{
    const NbdExport *export = nbd_client_export(s->client);

    if ((export->flags & NBD_FLAG_READ_ONLY) && !node->read_only) {
        return error_set(err, -EROFS, "%s: '%s' is read-only; readonly=on would do", what,
                         node->name);
    }
    fill_limits(node, export);
    if (take_length(node) < 0) {
        return error_set(err, -EMEDIUMTYPE, "%s: '%s' has %" PRIu64 " bytes: too few for a disk",
                         what, node->name, nbd_client_length(s->client));
    }
    if (s->export_bytes != nbd_client_length(s->client)) {
        log_info("nbd", "'%s': the last %" PRIu64 " bytes are less than a block and left out",
                 node->name, nbd_client_length(s->client) - s->export_bytes);
    }
    atomic_store(&node->length_bytes, disk_bytes(s));
    if (node->cache == BLK_CACHE_AUTO) {
        node->cache = BLK_CACHE_WRITEBACK;
    }
    return 0;
}

static void release(NbdState *s)
{
    nbd_client_destroy(s->client);
    tls_creds_unref(s->creds);
    nbd_uri_finish(&s->uri);
}

static int start_client(BlockNode *node, NbdState *s, NbdClientParams *params, const char *what,
                        Error *err)
{
    Error reason;

    if (s->uri.tls) {
        s->creds = nbd_uri_load_creds(&s->uri, TLS_CLIENT, &reason);
        if (!s->creds) {
            return error_set(err, reason.code, "%s: %s", what, reason.msg);
        }
    }
    params->uri = &s->uri;
    params->creds = s->creds;
    params->name = node->name;
    params->resized = look_at_length;
    params->opaque = node;
    s->client = nbd_client_create(params, &reason);
    if (!s->client) {
        /* -EINVAL is for options that are wrong. */
        return error_set(err, reason.code == -EINVAL ? -EIO : reason.code,
                         "%s: cannot open '%s': %s", what, node->name, reason.msg);
    }
    return settle(node, s, what, err);
}

static void drain_timer_cb(void *opaque)
{
    NbdState *s = opaque;
    uint64_t replies = nbd_client_nb_replies(s->client);

    if (replies != s->drain_replies) { /* slow, but alive */
        s->drain_replies = replies;
        aio_timer_arm(&s->drain_timer, aio_now_ns() + s->drain_timeout_ns);
    } else {
        nbd_client_give_up(s->client);
    }
}

static int nbd_open(BlockNode *node, Opts *opts, Error *err)
{
    NbdState *s = node->state;
    NbdClientParams params = { 0 };
    int ret = take_params(s, opts, &params, err);

    if (ret < 0) {
        return ret;
    }
    node->name = nbd_uri_describe(&s->uri);
    ret = node->name ? start_client(node, s, &params, opts->what, err)
                     : error_set(err, -ENOMEM, "%s: out of memory", opts->what);
    if (ret < 0) {
        release(s);
        return ret;
    }
    aio_timer_init(&s->drain_timer, aio_main(), drain_timer_cb, s);
    return 0;
}

static void nbd_close(BlockNode *node)
{
    NbdState *s = node->state;

    aio_timer_disarm(&s->drain_timer);
    release(s);
}

/* --- drained sections --- */

static void nbd_drained_begin(BlockNode *node)
{
    NbdState *s = node->state;

    s->drain_replies = nbd_client_nb_replies(s->client);
    aio_timer_arm(&s->drain_timer, aio_now_ns() + s->drain_timeout_ns);
}

static void nbd_drained_end(BlockNode *node)
{
    NbdState *s = node->state;

    aio_timer_disarm(&s->drain_timer);
    nbd_client_go_on(s->client);
    if (atomic_load(&s->resized)) {
        look_at_length(node);
    }
}

/* --- requests --- */

static bool can(const NbdState *s, uint16_t flag)
{
    return (nbd_client_export(s->client)->flags & flag) != 0;
}

/* The part of a list that belongs to the first @len_bytes; the rest of it into @ret_tail. */
typedef struct Head {
    struct iovec iov[NBD_IOV_MAX];
    int niov;
} Head;

static void take_head(const struct iovec *iov, int niov, uint64_t len_bytes, Head *ret_head,
                      IovCursor *ret_tail)
{
    iov_cursor_init(ret_tail, iov, niov);
    iov_cursor_slice(ret_tail, len_bytes, ret_head->iov, NBD_IOV_MAX, &ret_head->niov);
    iov_cursor_advance(ret_tail, len_bytes);
}

static bool rest_is_zero(IovCursor cur)
{
    uint8_t byte;

    while (iov_cursor_read(&cur, &byte, 1) == 1) { /* less than a sector */
        if (byte != 0) {
            return false;
        }
    }
    return true;
}

/* A transfer of which the export has the first @have_bytes alone. */
static co_fn int transfer_tail(NbdState *s, NbdOp *op, uint64_t have_bytes)
{
    IovCursor tail;
    Head head;
    uint64_t beyond_bytes = op->len_bytes - have_bytes;
    int ret;

    take_head(op->iov, op->niov, have_bytes, &head, &tail);
    if (op->command == NBD_CMD_WRITE && !rest_is_zero(tail)) {
        return -ENOSPC;
    }
    op->iov = head.iov;
    op->niov = head.niov;
    op->len_bytes = have_bytes;
    ret = have_bytes ? nbd_client_co_request(s->client, op) : 0;
    if (ret == 0 && op->command == NBD_CMD_READ) {
        iov_cursor_zero(&tail, beyond_bytes);
    }
    return ret;
}

static co_fn int transfer(BlockNode *node, NbdOp *op)
{
    NbdState *s = node->state;

    if (unlikely(op->offset_bytes + op->len_bytes > s->export_bytes)) {
        return transfer_tail(s, op, s->export_bytes - MIN(op->offset_bytes, s->export_bytes));
    }
    return nbd_client_co_request(s->client, op);
}

static co_fn int nbd_co_preadv(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                               const struct iovec *iov, int niov, BlkFlags flags)
{
    NbdOp op = { .command = NBD_CMD_READ,
                 .offset_bytes = offset_bytes,
                 .len_bytes = len_bytes,
                 .iov = iov,
                 .niov = niov };

    return transfer(node, &op);
}

static co_fn int nbd_co_flush(BlockNode *node)
{
    NbdState *s = node->state;
    NbdOp op = { .command = NBD_CMD_FLUSH };

    return can(s, NBD_FLAG_SEND_FLUSH) ? nbd_client_co_request(s->client, &op) : 0;
}

static co_fn int nbd_co_pwritev(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                const struct iovec *iov, int niov, BlkFlags flags)
{
    bool by_flag = (flags & BLK_FUA) && can(node->state, NBD_FLAG_SEND_FUA);
    NbdOp op = { .command = NBD_CMD_WRITE,
                 .flags = by_flag ? NBD_CMD_FLAG_FUA : 0,
                 .offset_bytes = offset_bytes,
                 .len_bytes = len_bytes,
                 .iov = iov,
                 .niov = niov };
    int ret = transfer(node, &op);

    return ret == 0 && (flags & BLK_FUA) && !by_flag ? nbd_co_flush(node) : ret;
}

/* What is about a range without carrying it; the part behind the export's end is zeroes anyway. */
static co_fn int tell(BlockNode *node, NbdOp *op)
{
    NbdState *s = node->state;

    op->len_bytes = MIN(op->len_bytes, s->export_bytes - MIN(op->offset_bytes, s->export_bytes));
    return op->len_bytes ? nbd_client_co_request(s->client, op) : 0;
}

static co_fn int nbd_co_pdiscard(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes)
{
    NbdOp op = { .command = NBD_CMD_TRIM, .offset_bytes = offset_bytes, .len_bytes = len_bytes };

    return can(node->state, NBD_FLAG_SEND_TRIM) ? tell(node, &op) : -EOPNOTSUPP;
}

static co_fn int nbd_co_pwrite_zeroes(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                      BlkFlags flags)
{
    bool fast = (flags & BLK_NO_FALLBACK) != 0;
    NbdOp op = { .command = NBD_CMD_WRITE_ZEROES,
                 .flags = (flags & BLK_MAY_UNMAP ? 0 : NBD_CMD_FLAG_NO_HOLE) |
                          (fast ? NBD_CMD_FLAG_FAST_ZERO : 0),
                 .offset_bytes = offset_bytes,
                 .len_bytes = len_bytes };

    if (!can(node->state, NBD_FLAG_SEND_WRITE_ZEROES) ||
        (fast && !can(node->state, NBD_FLAG_SEND_FAST_ZERO))) {
        return -EOPNOTSUPP;
    }
    return tell(node, &op);
}

static co_fn int nbd_co_prefetch(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes)
{
    NbdOp op = { .command = NBD_CMD_CACHE, .offset_bytes = offset_bytes, .len_bytes = len_bytes };

    return can(node->state, NBD_FLAG_SEND_CACHE) ? tell(node, &op) : -EOPNOTSUPP;
}

static co_fn int nbd_co_block_status(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                     uint64_t *ret_len_bytes)
{
    NbdState *s = node->state;
    const NbdExport *export = nbd_client_export(s->client);
    uint64_t alignment = export->sizes.min_bytes;
    uint64_t start_bytes = ALIGN_DOWN(offset_bytes, alignment);
    uint64_t max_bytes = node->limits.max_write_zeroes_bytes;
    NbdOp op = { .command = NBD_CMD_BLOCK_STATUS,
                 .flags = NBD_CMD_FLAG_REQ_ONE,
                 .offset_bytes = start_bytes };
    int ret;

    if (offset_bytes >= s->export_bytes) {
        *ret_len_bytes = len_bytes;
        return BLK_STATUS_ZERO;
    }
    op.len_bytes =
        MIN(MIN(ALIGN_UP(offset_bytes + len_bytes, alignment), s->export_bytes) - start_bytes,
            max_bytes);
    ret = export->has_status ? nbd_client_co_request(s->client, &op) : -EOPNOTSUPP;
    if (ret == -EOPNOTSUPP) {
        *ret_len_bytes = MIN(len_bytes, s->export_bytes - offset_bytes);
        return BLK_STATUS_DATA;
    }
    if (ret < 0) {
        return ret;
    }
    if (op.extent_bytes <= offset_bytes - start_bytes) { /* it ends within the block */
        *ret_len_bytes = MIN(len_bytes, alignment - (offset_bytes - start_bytes));
        return BLK_STATUS_DATA;
    }
    *ret_len_bytes = MIN(len_bytes, op.extent_bytes - (offset_bytes - start_bytes));
    return (op.extent_flags & NBD_STATE_HOLE ? 0 : BLK_STATUS_DATA) |
           (op.extent_flags & NBD_STATE_ZERO ? BLK_STATUS_ZERO : 0);
}

/* --- length --- */

static co_fn int nbd_co_get_length(BlockNode *node, uint64_t *ret_length_bytes)
{
    NbdState *s = node->state;
    Error reason;
    int ret = nbd_client_co_probe(s->client, &reason);

    if (ret < 0) {
        log_warn("nbd", "'%s': cannot ask for the length: %s", node->name, reason.msg);
    } else {
        ret = take_length(node);
    }
    if (ret == 0) {
        *ret_length_bytes = disk_bytes(s);
    }
    return ret;
}

const BlockDriver bdrv_nbd = {
    .name = "nbd",
    .instance_bytes = sizeof(NbdState),
    .write_flags = BLK_FUA,
    .open = nbd_open,
    .close = nbd_close,
    .drained_begin = nbd_drained_begin,
    .drained_end = nbd_drained_end,
    .co_preadv = nbd_co_preadv,
    .co_pwritev = nbd_co_pwritev,
    .co_flush = nbd_co_flush,
    .co_pdiscard = nbd_co_pdiscard,
    .co_pwrite_zeroes = nbd_co_pwrite_zeroes,
    .co_prefetch = nbd_co_prefetch,
    .co_block_status = nbd_co_block_status,
    .co_get_length = nbd_co_get_length,
};
