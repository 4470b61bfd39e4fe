/*
 * BlockDriver - what a storage driver implements; BlockNode - one opened image or device
 *
 * Layer:     block/ (may use io/)
 * Threading: open and close run in the main thread, outside any request. The co_ callbacks are
 *            called from any context, many at once, in the calling coroutine; a driver must not
 *            keep state that two contexts write without saying how that is safe.
 * Lifetime:  bdrv_open() gives a node with one reference; bdrv_unref() of the last closes it.
 *
 * What block-io.c guarantees to a driver: lengths are not 0; offset and length lie within the
 * length of the node, rounded up to limits.request_alignment (writes never extend it), and are
 * multiples of limits.request_alignment; each segment's address is a multiple of
 * limits.buffer_alignment and its length of limits.request_alignment; no request is longer than
 * limits.max_transfer_bytes or has more than limits.max_iov segments; discard and write-zeroes
 * obey their own limits. A read-only node gets reads alone. Bouncing, splitting, read-modify-write
 * of unaligned edges, and falling back from write-zeroes to writing a zero buffer when a driver
 * returns -EOPNOTSUPP are block-io.c's work.
 */
#ifndef BLOCK_BLOCK_DRIVER_H
#define BLOCK_BLOCK_DRIVER_H

#include <sys/uio.h>

#include "io/aio/aio.h"
#include "io/base/opts.h"

typedef struct BlockNode BlockNode;
typedef struct BlockNodeIo BlockNodeIo;

/* Request flags */
typedef enum BlkFlags {
    BLK_FUA = 1 << 0,       /* on stable storage before it completes */
    BLK_MAY_UNMAP = 1 << 1, /* write-zeroes may deallocate */
} BlkFlags;

typedef enum BlkCache {
    BLK_CACHE_AUTO, /* not said: none where the storage can, else writeback */
    BLK_CACHE_NONE, /* past the host's page cache */
    BLK_CACHE_WRITEBACK,
    BLK_CACHE_WRITETHROUGH, /* page cache, every write stable before it completes */
} BlkCache;

typedef struct BlockLimits {
    uint32_t request_alignment;  /* bytes, power of 2, >= 1: granularity of offset and length */
    uint32_t buffer_alignment;   /* bytes, power of 2: memory alignment the driver needs */
    uint32_t optimal_io_bytes;   /* 0 = unknown */
    uint32_t max_transfer_bytes; /* longest read or write */
    uint32_t max_iov;            /* most segments */
    uint32_t discard_alignment;  /* bytes; discards are shrunk to it */
    uint64_t max_discard_bytes;
    uint64_t max_write_zeroes_bytes;
    uint32_t logical_block_bytes;  /* what a guest should be told: 512 or 4096 */
    uint32_t physical_block_bytes; /* likewise, >= logical */
} BlockLimits;

typedef struct BlockDriver {
    const char *name;      /* "file", "null" */
    size_t instance_bytes; /* zeroed memory at node->state */
    BlkFlags write_flags;  /* BLK_FUA when co_pwritev honours it; else a flush follows */

    /* Take what it knows from @opts, fill node->name, node->limits, node->length_bytes; settle
     * node->cache. When it fails, close is not called. Main thread. */
    int (*open)(BlockNode *node, Opts *opts, Error *err);
    void (*close)(BlockNode *node);

    /* 0 or -errno, never short: the driver itself continues short transfers; a read past the end
     * of a file that shrank gives zeroes. */
    int (*co_preadv)(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                     const struct iovec *iov, int niov, BlkFlags flags);
    int (*co_pwritev)(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                      const struct iovec *iov, int niov, BlkFlags flags);
    /* Everything completed before the call is on stable storage. NULL = nothing to flush. */
    int (*co_flush)(BlockNode *node);
    /* Advice; contents undefined afterwards. NULL or -EOPNOTSUPP: ignored. */
    int (*co_pdiscard)(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes);
    /* Reads zeroes afterwards. NULL or -EOPNOTSUPP: block-io.c writes zeroes. @flags: BLK_MAY_UNMAP
     * at most; for BLK_FUA a flush follows. */
    int (*co_pwrite_zeroes)(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                            BlkFlags flags);
} BlockDriver;

struct BlockNode {
    const BlockDriver *driver;
    char *name;      /* for messages: the path or the driver's own word */
    void *state;     /* driver->instance_bytes */
    BlockNodeIo *io; /* block-io.c's own */
    unsigned refs;   /* main thread */
    bool read_only;
    bool write_cache;    /* false: every write is made stable (cache=writethrough) */
    bool discard_unmaps; /* discard=unmap (default); false: discards succeed and do nothing */
    BlkCache cache;      /* not AUTO once open */
    BlockLimits limits;
    /* Written by the main thread. A multiple of limits.request_alignment unless read-only. */
    _Atomic uint64_t length_bytes;
};

/* bdrv_open - by `driver=` (default "file" when there is `path=`); common options (readonly, cache,
 * discard) are taken here, the rest by the driver. Unknown keys are left for the caller. */
BlockNode *bdrv_open(Opts *opts, Error *err) NONNULL(1) WARN_UNUSED;
/* bdrv_open_driver - the same with a driver that is already chosen; borrowed */
BlockNode *bdrv_open_driver(const BlockDriver *driver, Opts *opts, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
BlockNode *bdrv_ref(BlockNode *node) NONNULL(1);
void bdrv_unref(BlockNode *node);

/* The request path: splits, aligns, bounces, calls the driver. The range lies within the node, @iov
 * holds exactly @len_bytes, and nothing but reads and flushes goes to a read-only node. */
co_fn int bdrv_co_preadv(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                         const struct iovec *iov, int niov, BlkFlags flags) WARN_UNUSED;
co_fn int bdrv_co_pwritev(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                          const struct iovec *iov, int niov, BlkFlags flags) WARN_UNUSED;
co_fn int bdrv_co_flush(BlockNode *node) WARN_UNUSED;
co_fn int bdrv_co_pdiscard(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes) WARN_UNUSED;
co_fn int bdrv_co_pwrite_zeroes(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                BlkFlags flags) WARN_UNUSED;

extern const BlockDriver bdrv_file;
extern const BlockDriver bdrv_null;

#endif
