/*
 * BlockBackend - a user's (a device's, a server's) handle on the block graph
 *
 * Layer:     block/ (may use io/)
 * Threading: requests come from any context and run in the caller's; nothing ties a backend to
 *            one. Opening, closing, drained sections and changes of length: main thread.
 * Lifetime:  blk_open() .. blk_close(); close waits for requests in flight.
 *
 * In-flight requests are counted in one cache line per context, written by that context only. That
 * count is also what keeps the graph still below a request (block-graph.h) and what a drained
 * section waits for (block-drain.h).
 */
#ifndef BLOCK_BLOCK_BACKEND_H
#define BLOCK_BLOCK_BACKEND_H

#include "block/block-driver.h"

/* What the user of a backend is told; main thread; each may be NULL. They must neither wait nor
 * begin or end a section. */
typedef struct BlkUserOps {
    /* Make no requests until the end: in a drained section they would be queued, and after it the
     * storage may still want none (bdrv_want_peace()). Those in flight are being waited for, so
     * what they need to end must go on. */
    void (*drained_begin)(void *opaque);
    /* Go on. What arrived meanwhile is yours to look for. */
    void (*drained_end)(void *opaque);
    /* blk_length() gives another value than before. No request is in flight. */
    void (*resized)(void *opaque);
} BlkUserOps;

/*
 * blk_open - open the node that @opts describes
 * @id  name for messages and statistics; copied
 * It may do all that the node allows, and shares it with readers that let it write.
 * Keys that neither the block layer nor the driver knows are left in @opts for the caller.
 * Errors: -EINVAL the options are wrong; -EMEDIUMTYPE the image cannot be a disk, or not in the way
 *         that was asked for; -ENOENT, -EACCES ... it cannot be opened; -EBUSY another user does
 *         not share it; -ENOMEM
 * Context: main.
 */
BlockBackend *blk_open(const char *id, Opts *opts, Error *err) NONNULL(1, 2) WARN_UNUSED;
/*
 * blk_create - the same for a node that is open already; takes a reference of its own
 * @perm    what it is for; without BLK_PERM_WRITE it is read-only
 * @shared  what others may do meanwhile
 * Errors: -EBUSY, -EPERM, -ENOMEM. Context: main.
 */
BlockBackend *blk_create(const char *id, BlockNode *node, BlkPerm perm, BlkPerm shared, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
/* blk_default_perm - what blk_open() asks for: all that the node allows */
BlkPerm blk_default_perm(const BlockNode *node) NONNULL(1);
/* Waits for requests in flight, flushes when writable, frees. Nobody may start a request by then.
 * Context: main, in a coroutine or not; NULL is allowed. Returns the flush's result. */
int blk_close(BlockBackend *blk);
/* blk_set_user - whom to tell; NULL = nobody any more. Between drained_begin and drained_end the one
 * is called here for the user that comes, the other one for the user that goes. Main. */
void blk_set_user(BlockBackend *blk, const BlkUserOps *ops, void *opaque) NONNULL(1);

const char *blk_id(const BlockBackend *blk) NONNULL(1);
/* Any thread. A request's range is checked against it once the request is counted. */
uint64_t blk_length(const BlockBackend *blk) NONNULL(1);
bool blk_read_only(const BlockBackend *blk) NONNULL(1);
/* Of the node it has now; main, valid until the graph changes. */
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
 *         read-only (all but read, flush and status); -EIO, -ENOSPC ... from the storage; -ENOMEM
 *         no bounce buffer for a misaligned request.
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
/* Advice: it will be read soon. -EOPNOTSUPP: reading it is all that can be done. */
co_fn int blk_co_prefetch(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes) NONNULL(1)
    WARN_UNUSED;
/* BlkStatus of what is at @offset_bytes, and for how many bytes it holds: 1 .. @len_bytes, 0 when
 * that is 0. Or -errno. */
co_fn int blk_co_block_status(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                              uint64_t *ret_len_bytes) NONNULL(1, 4) WARN_UNUSED;

/*
 * Length; in a drained section of their own.
 * blk_truncate         make it @length_bytes; what is new reads as zeroes, what is cut off is lost
 * blk_refresh_length   look how long it is now, after somebody else has changed it
 * Errors: -EPERM read-only; -EOPNOTSUPP the storage has no such thing; -EINVAL not a multiple of
 *         what it needs; -EMEDIUMTYPE it is empty now; from the storage.
 * Context: main, in a coroutine or not.
 */
int blk_truncate(BlockBackend *blk, uint64_t length_bytes, Error *err) NONNULL(1) WARN_UNUSED;
int blk_refresh_length(BlockBackend *blk, Error *err) NONNULL(1) WARN_UNUSED;

/* Drained section over what is below; see block-drain.h. No request of this backend is in flight
 * when begin returns; none starts until the end, when those that arrived meanwhile go on in order
 * of arrival. Nests. Context: main, in a coroutine or not. */
void blk_drained_begin(BlockBackend *blk) NONNULL(1);
void blk_drained_end(BlockBackend *blk) NONNULL(1);
/* blk_in_flight - requests that were started and have not ended, those queued by a drained section
 * not counted. A hint while requests come and go. Any thread. */
unsigned blk_in_flight(BlockBackend *blk) NONNULL(1);

#endif
