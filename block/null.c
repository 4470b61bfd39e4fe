/*
 * null.c - a disk that keeps nothing, for measuring everything else
 *
 * driver=null,size=SIZE[,latency-ns=N][,read-zeroes=on|off]
 *
 * A request is done at once without a yield, or after latency-ns. Reads leave the buffers as they
 * are unless read-zeroes=on. Both options may be changed while the disk is in use.
 */
#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include "block/block-driver.h"
#include "block/iov.h"

#define SECTOR_BYTES       512
#define LENGTH_BYTES_MAX   ((uint64_t)1 << 62)
#define LATENCY_NS_MAX     60000000000u
#define TRANSFER_BYTES_MAX (1u << 30)

typedef struct NullState {
    int64_t latency_ns;
    bool read_zeroes;
} NullState;

static int take_options(NullState *s, Opts *opts, Error *err)
{
    uint64_t latency_ns = (uint64_t)s->latency_ns;
    int ret = opts_get_u64(opts, "latency-ns", 0, LATENCY_NS_MAX, &latency_ns, err);

    s->latency_ns = (int64_t)latency_ns;
    return ret < 0 ? ret : opts_get_bool(opts, "read-zeroes", &s->read_zeroes, err);
}

static int null_open(BlockNode *node, Opts *opts, Error *err)
{
    uint64_t length_bytes = 0;
    int ret = opts_get_size(opts, "size", SECTOR_BYTES, LENGTH_BYTES_MAX, &length_bytes, err);

    if (ret == 0) {
        ret = take_options(node->state, opts, err);
    }
    if (ret < 0) {
        return ret;
    }
    if (length_bytes == 0) {
        return error_set(err, -EINVAL, "%s: driver=null needs size=SIZE", opts->what);
    }
    if (length_bytes % SECTOR_BYTES != 0) {
        return error_set(err, -EINVAL, "%s: size: %" PRIu64 " is not a multiple of %d", opts->what,
                         length_bytes, SECTOR_BYTES);
    }
    node->name = strdup("null");
    if (!node->name) {
        return error_set(err, -ENOMEM, "%s: out of memory", opts->what);
    }
    if (node->cache == BLK_CACHE_AUTO) {
        node->cache = BLK_CACHE_NONE;
    }
    atomic_store(&node->length_bytes, length_bytes);
    node->limits = (BlockLimits){
        .request_alignment = 1,
        .buffer_alignment = 1,
        .max_transfer_bytes = TRANSFER_BYTES_MAX,
        .max_iov = IOV_MAX,
        .discard_alignment = SECTOR_BYTES,
        .max_discard_bytes = LENGTH_BYTES_MAX,
        .max_write_zeroes_bytes = LENGTH_BYTES_MAX,
        .logical_block_bytes = SECTOR_BYTES,
        .physical_block_bytes = SECTOR_BYTES,
    };
    return 0;
}

static void null_close(BlockNode *node)
{
}

static int null_reconfigure(BlockNode *node, Opts *opts, Error *err)
{
    NullState *s = node->state;
    NullState changed = *s;
    int ret = take_options(&changed, opts, err);

    if (ret == 0) {
        ret = opts_check_all_used(opts, err);
    }
    if (ret == 0) {
        *s = changed;
    }
    return ret;
}

static ALWAYS_INLINE co_fn int answer(const BlockNode *node)
{
    const NullState *s = node->state;

    if (unlikely(s->latency_ns > 0)) {
        aio_co_sleep_ns(s->latency_ns);
    }
    return 0;
}

static co_fn int null_co_preadv(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                const struct iovec *iov, int niov, BlkFlags flags)
{
    const NullState *s = node->state;

    if (unlikely(s->read_zeroes)) {
        iov_zero(iov, niov, 0);
    }
    return answer(node);
}

static co_fn int null_co_pwritev(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                 const struct iovec *iov, int niov, BlkFlags flags)
{
    return answer(node);
}

static co_fn int null_co_flush(BlockNode *node)
{
    return answer(node);
}

static co_fn int null_co_pdiscard(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes)
{
    return answer(node);
}

static co_fn int null_co_pwrite_zeroes(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                       BlkFlags flags)
{
    return answer(node);
}

static co_fn int null_co_block_status(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                      uint64_t *ret_len_bytes)
{
    const NullState *s = node->state;

    *ret_len_bytes = len_bytes;
    return s->read_zeroes ? BLK_STATUS_ZERO : BLK_STATUS_DATA;
}

static co_fn int null_co_truncate(BlockNode *node, uint64_t length_bytes, Error *err)
{
    return 0;
}

const BlockDriver bdrv_null = {
    .name = "null",
    .instance_bytes = sizeof(NullState),
    .write_flags = BLK_FUA,
    .open = null_open,
    .close = null_close,
    .reconfigure = null_reconfigure,
    .co_preadv = null_co_preadv,
    .co_pwritev = null_co_pwritev,
    .co_flush = null_co_flush,
    .co_pdiscard = null_co_pdiscard,
    .co_pwrite_zeroes = null_co_pwrite_zeroes,
    .co_block_status = null_co_block_status,
    .co_truncate = null_co_truncate,
};
