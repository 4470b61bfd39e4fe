/*
 * BlockBackend - a user's (a device's, a server's) handle on a block node
 *
 * Layer:     block/ (may use io/)
 * Threading: requests come from any context and run in the caller's; nothing ties a backend to
 *            one. Opening, closing and drained sections: main thread.
 * Lifetime:  blk_open() .. blk_close(); close waits for requests in flight.
 *
 * In-flight requests are counted in one cache line per context, written by that context only. A
 * drained section is entered as follows: the main thread raises `quiesce`, makes every thread pass
 * a memory barrier (membarrier(2), so that the request path pays none), and waits until all
 * counters are zero. A request counts itself first and looks at `quiesce` second: either it sees
 * the section and steps back to wait, or the section sees its count.
 */
#ifndef BLOCK_BLOCK_BACKEND_H
#define BLOCK_BLOCK_BACKEND_H

#include "block/block-driver.h"

typedef struct BlockBackend BlockBackend;

/*
 * blk_open - open the node that @opts describes
 * @id  name for messages and statistics; copied
 * Keys that neither the block layer nor the driver knows are left in @opts for the caller.
 * Errors: -EINVAL the options are wrong; -EMEDIUMTYPE the image cannot be a disk, or not in the way
 *         that was asked for; -ENOENT, -EACCES ... it cannot be opened; -ENOMEM
 * Context: main.
 */
BlockBackend *blk_open(const char *id, Opts *opts, Error *err) NONNULL(1, 2) WARN_UNUSED;
/* blk_create - the same for a node that is open already; takes a reference of its own. NULL when out
 * of memory. Context: main. */
BlockBackend *blk_create(const char *id, BlockNode *node) NONNULL(1, 2) WARN_UNUSED;
/* Waits for requests in flight, flushes when writable, frees. Nobody may start a request by then.
 * Context: main, not in a coroutine; NULL is allowed. Returns the flush's result. */
no_co_fn int blk_close(BlockBackend *blk);

const char *blk_id(const BlockBackend *blk) NONNULL(1);
uint64_t blk_length(const BlockBackend *blk) NONNULL(1);
bool blk_read_only(const BlockBackend *blk) NONNULL(1);
const BlockLimits *blk_limits(const BlockBackend *blk) NONNULL(1);
BlockNode *blk_node(const BlockBackend *blk) NONNULL(1);

/* blk_write_cache - whether writes may stay in a volatile cache until a flush; a device with
 * CONFIG_WCE may switch it while requests run. Switching off takes effect for writes issued
 * afterwards; the caller then flushes. Switching on does not make a node that was opened with
 * cache=writethrough less careful. Any thread. */
bool blk_write_cache(const BlockBackend *blk) NONNULL(1);
void blk_set_write_cache(BlockBackend *blk, bool on) NONNULL(1);

/*
 * Requests. 0 or -errno, never short. @len_bytes is what @iov holds in all.
 * Errors: -EINVAL range outside the device, or @iov holds more or less than @len_bytes; -EPERM
 *         read-only (all but read and flush); -EIO, -ENOSPC ... from the storage; -ENOMEM no bounce
 *         buffer for a misaligned request.
 * Context: coroutine, any context; yields unless the driver answers at once.
 */
co_fn int blk_co_preadv(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                        const struct iovec *iov, int niov, BlkFlags flags) NONNULL(1) WARN_UNUSED;
co_fn int blk_co_pwritev(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                         const struct iovec *iov, int niov, BlkFlags flags) NONNULL(1) WARN_UNUSED;
co_fn int blk_co_flush(BlockBackend *blk) NONNULL(1) WARN_UNUSED;
co_fn int blk_co_pdiscard(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes)
    NONNULL(1) WARN_UNUSED;
co_fn int blk_co_pwrite_zeroes(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                               BlkFlags flags) NONNULL(1) WARN_UNUSED;

/* Drained section: returns when no request is in flight; none starts until the end, when those that
 * arrived meanwhile go on in order of arrival. Nests. Context: main, not in a coroutine. */
no_co_fn void blk_drained_begin(BlockBackend *blk) NONNULL(1);
no_co_fn void blk_drained_end(BlockBackend *blk) NONNULL(1);
/* blk_in_flight - requests that were started and have not ended, those queued by a drained section
 * not counted. A hint while requests come and go. Any thread. */
unsigned blk_in_flight(BlockBackend *blk) NONNULL(1);

#endif
