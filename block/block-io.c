/*
 * block-io.c - from a request as a guest makes it to requests as a driver takes them
 *
 * A request that fits the driver's limits goes straight to it: a few comparisons, no allocation,
 * no lock. All else takes the long way, piece by piece:
 *
 *   direct piece   starts at a multiple of request_alignment, its segments are aligned in memory;
 *                  at most SPLIT_IOV of them, so that their list fits into the coroutine's frame
 *   bounced piece  anything else: goes through one buffer of the pool, at most BOUNCE_BYTES
 *
 * A bounced write whose edge lies inside a block reads that block first. write-tracker.c keeps
 * other writes to the same blocks away meanwhile, for the whole request.
 *
 * Invariants:
 *   (1) What reaches a driver is what block-driver.h guarantees.
 *   (2) Pieces of a request go in order, one at a time; the first error ends it. Whatever was
 *       written before the error stays written, as with a disk.
 *   (3) A write that must be stable (BLK_FUA, or a node without write cache) carries BLK_FUA in all
 *       its pieces when the driver honours it, else one flush follows the last piece.
 *   (4) A request holds one bounce buffer at a time, and none while it waits in the tracker.
 *   (5) On a node with request_alignment 1 no write can be a read-modify-write: nothing is tracked.
 *
 * A node's length need not be a multiple of request_alignment when it is read-only: the block at
 * its end is then read as a whole, and the driver gives zeroes past the end.
 */
#include "block/block-io.h"

#include <string.h>

#include "block/bounce.h"
#include "block/iov.h"
#include "block/write-tracker.h"

#define SPLIT_IOV    64
#define ZEROES_BYTES 65536 /* of the shared zero buffer */
#define ZEROES_IOV   16    /* times that in one write */

struct BlockNodeIo {
    WriteTracker tracker;
    BouncePool bounce;
};

/* A request on the long way: what is left of it. */
typedef struct Rest {
    BlockNode *node;
    uint64_t offset_bytes;
    uint64_t len_bytes;
    IovCursor cur;
    BlkFlags flags;
} Rest;

/* Never written; aligned for every driver that bdrv_io_attach() lets through. */
static char zeroes[ZEROES_BYTES] __attribute__((aligned(BOUNCE_BYTES)));

/* --- attaching --- */

static void check_limits(const BlockNode *node)
{
    const BlockLimits *l = &node->limits;

    assert(IS_POWER_OF_2(l->request_alignment) && l->request_alignment <= BOUNCE_BYTES);
    assert(IS_POWER_OF_2(l->buffer_alignment) && l->buffer_alignment <= BOUNCE_BYTES);
    assert(l->max_transfer_bytes >= l->request_alignment);
    assert(l->max_iov > 0);
    assert(l->discard_alignment > 0 && l->discard_alignment % l->request_alignment == 0);
    assert(l->max_discard_bytes >= l->discard_alignment);
    assert(l->max_write_zeroes_bytes >= l->request_alignment);
    assert(l->physical_block_bytes >= l->logical_block_bytes);
    assert(node->read_only || atomic_load(&node->length_bytes) % l->request_alignment == 0);
}

int bdrv_io_attach(BlockNode *node)
{
    BlockNodeIo *io;

    check_limits(node);
    if (posix_memalign((void **)&io, _Alignof(BlockNodeIo), sizeof(*io)) != 0) {
        return -ENOMEM;
    }
    if (write_tracker_init(&io->tracker) < 0) {
        write_tracker_finish(&io->tracker);
        free(io);
        return -ENOMEM;
    }
    bounce_pool_init(&io->bounce);
    node->io = io;
    return 0;
}

void bdrv_io_detach(BlockNode *node)
{
    bounce_pool_finish(&node->io->bounce);
    write_tracker_finish(&node->io->tracker);
    free(node->io);
    node->io = NULL;
}

/* --- what fits --- */

static inline bool is_aligned(const BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes)
{
    return ((offset_bytes | len_bytes) & (node->limits.request_alignment - 1)) == 0;
}

static inline bool fits(const BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                        const struct iovec *iov, int niov)
{
    const BlockLimits *l = &node->limits;

    if (!is_aligned(node, offset_bytes, len_bytes) || len_bytes > l->max_transfer_bytes ||
        niov > l->max_iov || len_bytes == 0) {
        return false;
    }
    if ((l->request_alignment | l->buffer_alignment) > 1) {
        uintptr_t base_bits = 0;
        size_t len_bits = 0;

        for (int i = 0; i < niov; i++) {
            base_bits |= (uintptr_t)iov[i].iov_base;
            len_bits |= iov[i].iov_len;
        }
        return (base_bits & (l->buffer_alignment - 1)) == 0 &&
               (len_bits & (l->request_alignment - 1)) == 0;
    }
    return true;
}

/* The longest direct piece at the front of @rest, 0 when there is none. */
static uint64_t take_direct(const Rest *rest, struct iovec *ret_iov, int *ret_niov)
{
    const BlockLimits *l = &rest->node->limits;
    uint64_t left = MIN(rest->len_bytes, (uint64_t)l->max_transfer_bytes);
    uint64_t taken = 0;
    IovCursor cur = rest->cur;
    int niov = 0;

    if ((rest->offset_bytes & (l->request_alignment - 1)) != 0) {
        return 0;
    }
    while (niov < MIN((int)l->max_iov, SPLIT_IOV) && left > 0) {
        struct iovec seg;
        int one;
        uint64_t len_bytes = iov_cursor_slice(&cur, left, &seg, 1, &one);
        uint64_t usable_bytes = ALIGN_DOWN(len_bytes, l->request_alignment);

        if (usable_bytes == 0 || ((uintptr_t)seg.iov_base & (l->buffer_alignment - 1)) != 0) {
            break;
        }
        seg.iov_len = usable_bytes;
        ret_iov[niov++] = seg;
        taken += usable_bytes;
        left -= usable_bytes;
        if (usable_bytes != len_bytes) {
            break;
        }
        iov_cursor_advance(&cur, usable_bytes);
    }
    *ret_niov = niov;
    return taken;
}

/* The whole blocks of the next bounced piece. */
typedef struct Blocks {
    uint64_t start_bytes, end_bytes;
    uint64_t len_bytes; /* of the request in them */
} Blocks;

static Blocks take_blocks(const Rest *rest)
{
    const BlockLimits *l = &rest->node->limits;
    uint64_t max_bytes = ALIGN_DOWN(MIN(l->max_transfer_bytes, BOUNCE_BYTES), l->request_alignment);
    uint64_t request_end_bytes = rest->offset_bytes + rest->len_bytes;
    Blocks b = { .start_bytes = ALIGN_DOWN(rest->offset_bytes, l->request_alignment) };

    b.end_bytes = MIN(ALIGN_UP(request_end_bytes, l->request_alignment), b.start_bytes + max_bytes);
    b.len_bytes = MIN(request_end_bytes, b.end_bytes) - rest->offset_bytes;
    return b;
}

static void step(Rest *rest, uint64_t len_bytes)
{
    rest->offset_bytes += len_bytes;
    rest->len_bytes -= len_bytes;
}

/* --- the one place that calls each driver function --- */

static inline co_fn int driver_read(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                    const struct iovec *iov, int niov, BlkFlags flags)
{
    return node->driver->co_preadv(node, offset_bytes, len_bytes, iov, niov, flags);
}

static inline co_fn int driver_write(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                     const struct iovec *iov, int niov, BlkFlags flags)
{
    return node->driver->co_pwritev(node, offset_bytes, len_bytes, iov, niov,
                                    flags & node->driver->write_flags);
}

static co_fn int driver_read_buffer(BlockNode *node, uint64_t offset_bytes, void *buffer,
                                    uint64_t len_bytes)
{
    struct iovec iov = { .iov_base = buffer, .iov_len = len_bytes };

    return driver_read(node, offset_bytes, len_bytes, &iov, 1, 0);
}

/* --- reads --- */

static co_fn int read_bounced(Rest *rest)
{
    Blocks b = take_blocks(rest);
    char *buffer = bounce_co_get(&rest->node->io->bounce);
    int ret;

    if (!buffer) {
        return -ENOMEM;
    }
    ret = driver_read_buffer(rest->node, b.start_bytes, buffer, b.end_bytes - b.start_bytes);
    if (ret == 0) {
        iov_cursor_write(&rest->cur, buffer + (rest->offset_bytes - b.start_bytes), b.len_bytes);
        step(rest, b.len_bytes);
    }
    bounce_put(&rest->node->io->bounce, buffer);
    return ret;
}

static NOINLINE co_fn int read_long_way(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                        const struct iovec *iov, int niov, BlkFlags flags)
{
    Rest rest = { .node = node, .offset_bytes = offset_bytes, .len_bytes = len_bytes };
    struct iovec piece[SPLIT_IOV];
    int ret = 0;

    iov_cursor_init(&rest.cur, iov, niov);
    while (ret == 0 && rest.len_bytes > 0) {
        int piece_niov;
        uint64_t piece_bytes = take_direct(&rest, piece, &piece_niov);

        if (piece_bytes == 0) {
            ret = read_bounced(&rest);
            continue;
        }
        ret = driver_read(node, rest.offset_bytes, piece_bytes, piece, piece_niov, flags);
        iov_cursor_advance(&rest.cur, piece_bytes);
        step(&rest, piece_bytes);
    }
    return ret;
}

co_fn GRAPH_RD int bdrv_co_preadv(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                         const struct iovec *iov, int niov, BlkFlags flags)
{
    if (likely(fits(node, offset_bytes, len_bytes, iov, niov))) {
        return driver_read(node, offset_bytes, len_bytes, iov, niov, flags);
    }
    return read_long_way(node, offset_bytes, len_bytes, iov, niov, flags);
}

/* --- writes --- */

/* Read the blocks at the edges of @b that the request covers in part only; the last one from as far
 * before it as its place in the buffer must be aligned. */
static co_fn int read_edges(const Rest *rest, const Blocks *b, char *buffer)
{
    const BlockLimits *l = &rest->node->limits;
    uint64_t len_bytes = b->end_bytes - b->start_bytes;
    uint64_t last_bytes = ALIGN_DOWN(len_bytes - l->request_alignment, l->buffer_alignment);
    bool head = rest->offset_bytes != b->start_bytes;
    bool tail = rest->offset_bytes + b->len_bytes != b->end_bytes;
    int ret = 0;

    if (tail) {
        ret = driver_read_buffer(rest->node, b->start_bytes + last_bytes, buffer + last_bytes,
                                 len_bytes - last_bytes);
    }
    if (ret == 0 && head && !(tail && last_bytes == 0)) {
        ret = driver_read_buffer(rest->node, b->start_bytes, buffer, l->request_alignment);
    }
    return ret;
}

static co_fn int write_bounced(Rest *rest)
{
    BlockNode *node = rest->node;
    Blocks b = take_blocks(rest);
    struct iovec iov = { .iov_len = b.end_bytes - b.start_bytes };
    char *buffer = bounce_co_get(&node->io->bounce);
    int ret;

    if (!buffer) {
        return -ENOMEM;
    }
    iov.iov_base = buffer;
    ret = read_edges(rest, &b, buffer);
    if (ret == 0) {
        iov_cursor_read(&rest->cur, buffer + (rest->offset_bytes - b.start_bytes), b.len_bytes);
        ret = driver_write(node, b.start_bytes, iov.iov_len, &iov, 1, rest->flags);
        step(rest, b.len_bytes);
    }
    bounce_put(&node->io->bounce, buffer);
    return ret;
}

/* Whoever calls this has seen to the tracker. */
static co_fn int write_pieces(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                              const struct iovec *iov, int niov, BlkFlags flags)
{
    Rest rest = {
        .node = node, .offset_bytes = offset_bytes, .len_bytes = len_bytes, .flags = flags
    };
    struct iovec piece[SPLIT_IOV];
    int ret = 0;

    iov_cursor_init(&rest.cur, iov, niov);
    while (ret == 0 && rest.len_bytes > 0) {
        int piece_niov;
        uint64_t piece_bytes = take_direct(&rest, piece, &piece_niov);

        if (piece_bytes == 0) {
            ret = write_bounced(&rest);
            continue;
        }
        ret = driver_write(node, rest.offset_bytes, piece_bytes, piece, piece_niov, flags);
        iov_cursor_advance(&rest.cur, piece_bytes);
        step(&rest, piece_bytes);
    }
    return ret;
}

/* Enter a write in the tracker, in the list when it is a read-modify-write or when there has been
 * one before. */
typedef struct Entry {
    bool counted, listed;
    TrackedWrite write;
} Entry;

static co_fn void tracker_enter(BlockNode *node, Entry *entry, uint64_t offset_bytes,
                                uint64_t len_bytes)
{
    uint32_t block_bytes = node->limits.request_alignment;
    bool aligned = is_aligned(node, offset_bytes, len_bytes);

    entry->counted = entry->listed = false;
    if (block_bytes == 1) {
        return;
    }
    entry->counted = aligned && write_tracker_enter(&node->io->tracker);
    entry->listed = !entry->counted;
    if (entry->listed) {
        write_tracker_co_begin(&node->io->tracker, &entry->write,
                               ALIGN_DOWN(offset_bytes, block_bytes),
                               ALIGN_UP(offset_bytes + len_bytes, block_bytes), !aligned);
    }
}

static void tracker_leave(BlockNode *node, Entry *entry)
{
    if (entry->counted) {
        write_tracker_leave(&node->io->tracker);
    } else if (entry->listed) {
        write_tracker_end(&node->io->tracker, &entry->write);
    }
}

/* Last step of a write: make it stable when that was asked for and the driver has not done it. */
static inline co_fn GRAPH_RD int finish_write(BlockNode *node, int ret, BlkFlags flags,
                                              BlkFlags honoured)
{
    if (unlikely((flags & ~honoured & BLK_FUA) != 0) && ret == 0) {
        return bdrv_co_flush(node);
    }
    return ret;
}

static NOINLINE co_fn GRAPH_RD int write_long_way(BlockNode *node, uint64_t offset_bytes,
                                                  uint64_t len_bytes, const struct iovec *iov,
                                                  int niov, BlkFlags flags)
{
    Entry entry;
    int ret;

    tracker_enter(node, &entry, offset_bytes, len_bytes);
    ret = write_pieces(node, offset_bytes, len_bytes, iov, niov, flags);
    tracker_leave(node, &entry);
    return finish_write(node, ret, flags, node->driver->write_flags);
}

co_fn GRAPH_RD int bdrv_co_pwritev(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                          const struct iovec *iov, int niov, BlkFlags flags)
{
    bool counted;
    int ret;

    if (unlikely(!node->write_cache)) {
        flags |= BLK_FUA;
    }
    if (unlikely(!fits(node, offset_bytes, len_bytes, iov, niov))) {
        return write_long_way(node, offset_bytes, len_bytes, iov, niov, flags);
    }
    counted = node->limits.request_alignment > 1;
    if (counted && unlikely(!write_tracker_enter(&node->io->tracker))) {
        return write_long_way(node, offset_bytes, len_bytes, iov, niov, flags);
    }
    ret = driver_write(node, offset_bytes, len_bytes, iov, niov, flags);
    if (counted) {
        write_tracker_leave(&node->io->tracker);
    }
    return finish_write(node, ret, flags, node->driver->write_flags);
}

/* --- flush, discard, write-zeroes --- */

co_fn GRAPH_RD int bdrv_co_flush(BlockNode *node)
{
    if (node->read_only || !node->driver->co_flush) {
        return 0;
    }
    return node->driver->co_flush(node);
}

co_fn GRAPH_RD int bdrv_co_pdiscard(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes)
{
    uint32_t alignment = node->limits.discard_alignment;
    uint64_t max_bytes = node->limits.max_discard_bytes;
    uint64_t end_bytes = offset_bytes + len_bytes;
    uint64_t at_bytes = offset_bytes + (alignment - offset_bytes % alignment) % alignment;

    if (!node->discard_unmaps || !node->driver->co_pdiscard) {
        return 0;
    }
    end_bytes -= end_bytes % alignment;
    max_bytes -= max_bytes % alignment;
    while (at_bytes < end_bytes) {
        uint64_t piece_bytes = MIN(end_bytes - at_bytes, max_bytes);
        int ret = node->driver->co_pdiscard(node, at_bytes, piece_bytes);

        if (ret < 0) {
            return ret == -EOPNOTSUPP ? 0 : ret;
        }
        at_bytes += piece_bytes;
    }
    return 0;
}

co_fn GRAPH_RD int bdrv_co_prefetch(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes)
{
    uint32_t alignment = node->limits.request_alignment;
    uint64_t max_bytes = ALIGN_DOWN(node->limits.max_write_zeroes_bytes, alignment);
    uint64_t at_bytes = ALIGN_DOWN(offset_bytes, alignment);
    uint64_t end_bytes = ALIGN_UP(offset_bytes + len_bytes, alignment);
    int ret = node->driver->co_prefetch ? 0 : -EOPNOTSUPP;

    while (ret == 0 && at_bytes < end_bytes) {
        uint64_t piece_bytes = MIN(end_bytes - at_bytes, max_bytes);

        ret = node->driver->co_prefetch(node, at_bytes, piece_bytes);
        at_bytes += piece_bytes;
    }
    return ret;
}

/* Zeroes as ordinary data. */
static co_fn int write_zero_data(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                 BlkFlags flags)
{
    int ret = 0;

    while (ret == 0 && len_bytes > 0) {
        struct iovec iov[ZEROES_IOV];
        uint64_t piece_bytes = 0;
        int niov = 0;

        while (niov < ZEROES_IOV && piece_bytes < len_bytes) {
            iov[niov].iov_base = zeroes;
            iov[niov].iov_len = MIN(len_bytes - piece_bytes, (uint64_t)ZEROES_BYTES);
            piece_bytes += iov[niov++].iov_len;
        }
        ret = write_pieces(node, offset_bytes, piece_bytes, iov, niov, flags);
        offset_bytes += piece_bytes;
        len_bytes -= piece_bytes;
    }
    return ret;
}

/* Whole blocks: by the driver where it can. */
static co_fn int zero_blocks(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                             BlkFlags flags)
{
    const BlockDriver *driver = node->driver;
    uint64_t max_bytes =
        ALIGN_DOWN(node->limits.max_write_zeroes_bytes, node->limits.request_alignment);
    int ret = 0;

    while (ret == 0 && len_bytes > 0) {
        uint64_t piece_bytes = MIN(len_bytes, max_bytes);

        ret = driver->co_pwrite_zeroes
                  ? driver->co_pwrite_zeroes(node, offset_bytes, piece_bytes, flags)
                  : -EOPNOTSUPP;
        if (ret == -EOPNOTSUPP && !(flags & BLK_NO_FALLBACK)) {
            ret = write_zero_data(node, offset_bytes, piece_bytes, 0);
        }
        offset_bytes += piece_bytes;
        len_bytes -= piece_bytes;
    }
    return ret;
}

static co_fn int zero_pieces(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                             BlkFlags flags)
{
    uint32_t block_bytes = node->limits.request_alignment;
    uint64_t end_bytes = offset_bytes + len_bytes;
    uint64_t first_bytes = MIN(ALIGN_UP(offset_bytes, block_bytes), end_bytes);
    uint64_t last_bytes = MAX(ALIGN_DOWN(end_bytes, block_bytes), first_bytes);
    int ret = write_zero_data(node, offset_bytes, first_bytes - offset_bytes, 0);

    if (ret == 0) {
        ret = zero_blocks(node, first_bytes, last_bytes - first_bytes, flags);
    }
    if (ret == 0) {
        ret = write_zero_data(node, last_bytes, end_bytes - last_bytes, 0);
    }
    return ret;
}

co_fn GRAPH_RD int bdrv_co_pwrite_zeroes(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                BlkFlags flags)
{
    Entry entry;
    int ret;

    if (!node->write_cache) {
        flags |= BLK_FUA;
    }
    if (!node->discard_unmaps) {
        flags &= ~BLK_MAY_UNMAP;
    }
    tracker_enter(node, &entry, offset_bytes, len_bytes);
    ret = zero_pieces(node, offset_bytes, len_bytes, flags & ~BLK_FUA);
    tracker_leave(node, &entry);
    return finish_write(node, ret, flags, 0);
}
