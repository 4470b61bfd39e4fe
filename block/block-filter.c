/*
 * block-filter.c - what goes through a filter unchanged: requests, and the length
 */
#include <inttypes.h>

#include "block/block-driver.h"

#define SECTOR_BYTES 512

/* --- requests --- */

co_fn GRAPH_RD int bdrv_pass_co_preadv(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                              const struct iovec *iov, int niov, BlkFlags flags)
{
    return bdrv_co_preadv(bdrv_filtered(node), offset_bytes, len_bytes, iov, niov, flags);
}

co_fn GRAPH_RD int bdrv_pass_co_pwritev(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                               const struct iovec *iov, int niov, BlkFlags flags)
{
    return bdrv_co_pwritev(bdrv_filtered(node), offset_bytes, len_bytes, iov, niov, flags);
}

co_fn GRAPH_RD int bdrv_pass_co_flush(BlockNode *node)
{
    return bdrv_co_flush(bdrv_filtered(node));
}

co_fn GRAPH_RD int bdrv_pass_co_pdiscard(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes)
{
    return bdrv_co_pdiscard(bdrv_filtered(node), offset_bytes, len_bytes);
}

co_fn GRAPH_RD int bdrv_pass_co_pwrite_zeroes(BlockNode *node, uint64_t offset_bytes,
                                              uint64_t len_bytes, BlkFlags flags)
{
    return bdrv_co_pwrite_zeroes(bdrv_filtered(node), offset_bytes, len_bytes, flags);
}

co_fn GRAPH_RD int bdrv_co_block_status(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                               uint64_t *ret_len_bytes)
{
    int ret;

    while (node->driver->is_filter && !node->driver->co_block_status) {
        node = bdrv_filtered(node);
    }
    if (!node->driver->co_block_status) {
        *ret_len_bytes = len_bytes;
        return BLK_STATUS_DATA;
    }
    ret = node->driver->co_block_status(node, offset_bytes, len_bytes, ret_len_bytes);
    assert(ret < 0 || (*ret_len_bytes > 0 && *ret_len_bytes <= len_bytes));
    return ret;
}

/* --- the length --- */

/* Whose length it is: a filter has its child's. */
static GRAPH_RD BlockNode *length_owner(BlockNode *node)
{
    assert(node->drain.covered);
    while (node->driver->is_filter) {
        node = bdrv_filtered(node);
    }
    return node;
}

co_fn GRAPH_RD int bdrv_co_truncate(BlockNode *node, uint64_t length_bytes, Error *err)
{
    BlockNode *owner = length_owner(node);
    uint64_t unit_bytes = MAX(owner->limits.request_alignment, (uint32_t)SECTOR_BYTES);
    int ret;

    if (!owner->driver->co_truncate) {
        return error_set(err, -EOPNOTSUPP, "'%s': its length cannot be changed", owner->name);
    }
    if (length_bytes == 0) {
        return error_set(err, -EINVAL, "'%s': a disk cannot be empty", owner->name);
    }
    if (length_bytes % unit_bytes != 0) {
        return error_set(err, -EINVAL, "'%s': a length of %" PRIu64 " is no multiple of %" PRIu64,
                         owner->name, length_bytes, unit_bytes);
    }
    ret = owner->driver->co_truncate(owner, length_bytes, err);
    if (ret == 0) {
        bdrv_set_length(owner, length_bytes);
    }
    return ret;
}

co_fn GRAPH_RD int bdrv_co_refresh_length(BlockNode *node, Error *err)
{
    BlockNode *owner = length_owner(node);
    uint32_t unit_bytes = owner->limits.request_alignment;
    uint64_t length_bytes;
    int ret;

    if (!owner->driver->co_get_length) {
        return 0;
    }
    ret = owner->driver->co_get_length(owner, &length_bytes);
    if (ret < 0) {
        return error_set(err, ret, "'%s': cannot get its length: %s", owner->name,
                         error_strerror(ret));
    }
    if (!owner->read_only) {
        length_bytes = ALIGN_DOWN(length_bytes, unit_bytes);
    }
    if (length_bytes == 0) {
        return error_set(err, -EMEDIUMTYPE, "'%s': nothing is left of it", owner->name);
    }
    bdrv_set_length(owner, length_bytes);
    return 0;
}
