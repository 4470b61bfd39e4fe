/*
 * BlockDriver - what a storage driver implements; BlockNode - one opened image, device or filter
 *
 * Layer:     block/ (may use io/)
 * Threading: open, close and all that changes a node or the graph run in the main thread. The co_
 *            callbacks are called from any context, many at once, in the calling coroutine; a
 *            driver must not keep state that two contexts write without saying how that is safe.
 * Lifetime:  bdrv_open() gives a node with one reference; an edge to it (block-graph.h) is another;
 *            bdrv_unref() of the last closes it.
 *
 * What block-io.c guarantees to a driver: lengths are not 0; offset and length lie within the
 * length of the node, rounded up to limits.request_alignment (writes never extend it), and are
 * multiples of limits.request_alignment; each segment's address is a multiple of
 * limits.buffer_alignment and its length of limits.request_alignment; no request is longer than
 * limits.max_transfer_bytes or has more than limits.max_iov segments; discard and write-zeroes
 * obey their own limits. A read-only node gets reads alone. Bouncing, splitting, read-modify-write
 * of unaligned edges, and falling back from write-zeroes to writing a zero buffer when a driver
 * returns -EOPNOTSUPP are block-io.c's work.
 *
 * A filter is a driver with one child, "file", that passes requests on. It starts with the child's
 * length, limits and switches, but takes requests of any alignment; it follows the child's length,
 * and may be put into a graph and taken out of it while requests run. README.md says how one is written.
 */
#ifndef BLOCK_BLOCK_DRIVER_H
#define BLOCK_BLOCK_DRIVER_H

#include <sys/uio.h>

#include "block/block-drain.h"
#include "block/block-graph.h"
#include "io/aio/aio.h"
#include "io/base/opts.h"

typedef struct BlockNodeIo BlockNodeIo;

/* Request flags */
typedef enum BlkFlags {
    BLK_FUA = 1 << 0,       /* on stable storage before it completes */
    BLK_MAY_UNMAP = 1 << 1, /* write-zeroes may deallocate */
    BLK_NO_FALLBACK = 1 << 2, /* write-zeroes: -EOPNOTSUPP rather than write zeroes as data */
} BlkFlags;

/* What co_block_status says of a range. */
typedef enum BlkStatus {
    BLK_STATUS_DATA = 1 << 0, /* storage is allocated for it */
    BLK_STATUS_ZERO = 1 << 1, /* it reads as zeroes */
} BlkStatus;

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

#define BDRV_CHILDREN_MAX 4
#define BDRV_ID_BYTES_MAX 31

typedef struct BlockDriver {
    const char *name;      /* "file", "null" */
    size_t instance_bytes; /* zeroed memory at node->state */
    BlkFlags write_flags;  /* BLK_FUA when co_pwritev honours it; else a flush follows */
    bool is_filter;        /* see above; its children are { "file" } without saying so */
    /* Names of its children, opened before open() from the options NAME=NODE or NAME.key=value. */
    const char *children[BDRV_CHILDREN_MAX];

    /* --- main thread --- */

    /* Take what it knows from @opts, fill node->name, node->limits, node->length_bytes; settle
     * node->cache. A filter finds all these filled. When it fails, close is not called. */
    int (*open)(BlockNode *node, Opts *opts, Error *err);
    /* No request comes any more, nothing that it counted is going on; drained_end may be
     * missing. */
    void (*close)(BlockNode *node);
    /* New values for options that may change while the node is in use; it is drained just now.
     * Reads what it knows, calls opts_check_all_used(), and only then changes anything. NULL =
     * there are none. */
    int (*reconfigure)(BlockNode *node, Opts *opts, Error *err);
    /* What the node needs of @child when its own parents need @perm of it and share @shared with
     * others. NULL = the same. */
    void (*child_perm)(const BlockNode *node, const BdrvChild *child, BlkPerm *perm,
                       BlkPerm *shared);
    /* A drained section covers the node from now on, or no longer: see block-drain.h. Let go what
     * is held back, start nothing; must not wait or change the graph. NULL = nothing to do. */
    void (*drained_begin)(BlockNode *node);
    void (*drained_end)(BlockNode *node);

    /* --- requests; any context --- */

    /* 0 or -errno, never short: the driver itself continues short transfers; a read of what is not
     * there any more, for the storage has become smaller, is -EIO. */
    int (*co_preadv)(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                     const struct iovec *iov, int niov, BlkFlags flags) co_fn_ptr;
    int (*co_pwritev)(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                      const struct iovec *iov, int niov, BlkFlags flags) co_fn_ptr;
    /* Everything completed before the call is on stable storage. NULL = nothing to flush. */
    int (*co_flush)(BlockNode *node) co_fn_ptr;
    /* Advice; contents undefined afterwards. NULL or -EOPNOTSUPP: ignored. */
    int (*co_pdiscard)(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes) co_fn_ptr;
    /* Reads zeroes afterwards. NULL or -EOPNOTSUPP: block-io.c writes zeroes, but not with
     * BLK_NO_FALLBACK. @flags: that and BLK_MAY_UNMAP at most; for BLK_FUA a flush follows. */
    int (*co_pwrite_zeroes)(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                            BlkFlags flags) co_fn_ptr;
    /* Advice: it will be read soon. NULL or -EOPNOTSUPP: nothing can be done about that here. */
    int (*co_prefetch)(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes) co_fn_ptr;
    /* BlkStatus of the bytes at @offset_bytes; *ret_len_bytes, 1 .. @len_bytes, for how many it
     * holds. No alignment is promised. NULL = all is data. */
    int (*co_block_status)(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                           uint64_t *ret_len_bytes) co_fn_ptr;

    /* --- the length; coroutine in the main thread, the node is drained --- */

    /* Make it @length_bytes, a multiple of 512; what is new reads as zeroes. NULL = cannot. */
    int (*co_truncate)(BlockNode *node, uint64_t length_bytes, Error *err) co_fn_ptr;
    /* What it is now, when somebody else may have changed it. NULL = nobody can. */
    int (*co_get_length)(BlockNode *node, uint64_t *ret_length_bytes) co_fn_ptr;
} BlockDriver;

struct BlockNode {
    const BlockDriver *driver;
    char *name;      /* for messages: the path or the driver's own word */
    void *state;     /* driver->instance_bytes */
    BlockNodeIo *io; /* block-io.c's own */
    bool read_only;
    bool write_cache;    /* false: every write is made stable (cache=writethrough) */
    bool discard_unmaps; /* discard=unmap (default); false: discards succeed and do nothing */
    BlkCache cache;      /* not AUTO once open */
    BlockLimits limits;
    /* Written by the main thread, with the node drained: bdrv_set_length(). A multiple of
     * limits.request_alignment unless read-only. */
    _Atomic uint64_t length_bytes;
    /* In the order of driver->children; fixed once open, but for where they lead (invariants of
     * block-graph.h). */
    BdrvChild children[BDRV_CHILDREN_MAX];

    /* The rest is the graph's; main thread. */
    char *id;         /* node-name=, or given by us; unique */
    unsigned refs;
    bool is_open;     /* driver->open has succeeded, close has not been called */
    List parents;     /* BdrvChild.parents_link */
    ListNode nodes_link;
    /* Counts the node's own activity, as against requests that pass: block-drain.h. */
    DrainPoint drain;
};

/* The node that a filter passes requests to. Main thread, or in a request or counted activity. */
static inline GRAPH_RD BlockNode *bdrv_filtered(const BlockNode *node)
{
    return node->children[0].node;
}

/* bdrv_find_driver - the one that `driver=` names; when there is `path=` alone, file, or nbd for a
 * URI. Others who have to know what a list of options will open ask here, too. -EINVAL */
const BlockDriver *bdrv_find_driver(Opts *opts, Error *err) NONNULL(1) WARN_UNUSED;
/*
 * bdrv_open - by `driver=` (default "file" when there is `path=`)
 * Common options (node-name, readonly, cache, discard) are taken here, children are opened, the
 * rest is the driver's. Keys that nobody knows are left for the caller, but for those of children,
 * which are refused.
 * Errors: as blk_open().
 */
BlockNode *bdrv_open(Opts *opts, Error *err) NONNULL(1) WARN_UNUSED;
/* bdrv_open_driver - the same with a driver that is already chosen; borrowed */
BlockNode *bdrv_open_driver(const BlockDriver *driver, Opts *opts, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
BlockNode *bdrv_ref(BlockNode *node) NONNULL(1);
/* The last one closes the node; activity of its own is waited for. Main, in a coroutine or not. */
void bdrv_unref(BlockNode *node);

/* bdrv_reconfigure - change options while the node is in use, in a drained section of its own.
 * Errors: -EOPNOTSUPP the driver has none; -EINVAL a wrong or unknown one: nothing has changed. */
int bdrv_reconfigure(BlockNode *node, Opts *opts, Error *err) NONNULL(1, 2) WARN_UNUSED;

/*
 * The request path: splits, aligns, bounces, calls the driver. The range lies within the node, @iov
 * holds exactly @len_bytes, and nothing but reads and flushes goes to a read-only node. For a
 * BlockBackend's requests and for the drivers of parents.
 */
co_fn GRAPH_RD int bdrv_co_preadv(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                         const struct iovec *iov, int niov, BlkFlags flags) WARN_UNUSED;
co_fn GRAPH_RD int bdrv_co_pwritev(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                          const struct iovec *iov, int niov, BlkFlags flags) WARN_UNUSED;
co_fn GRAPH_RD int bdrv_co_flush(BlockNode *node) WARN_UNUSED;
co_fn GRAPH_RD int bdrv_co_pdiscard(BlockNode *node, uint64_t offset_bytes,
                                    uint64_t len_bytes) WARN_UNUSED;
co_fn GRAPH_RD int bdrv_co_pwrite_zeroes(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                BlkFlags flags) WARN_UNUSED;
/* As the driver's; -EOPNOTSUPP: reading it would be the way. Filters that do not say otherwise have
 * it read, so that they see it. */
co_fn GRAPH_RD int bdrv_co_prefetch(BlockNode *node, uint64_t offset_bytes,
                                    uint64_t len_bytes) WARN_UNUSED;
/* As the driver's, with a range that is not empty. */
co_fn GRAPH_RD int bdrv_co_block_status(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                               uint64_t *ret_len_bytes) NONNULL(1, 4) WARN_UNUSED;
/* As the driver's, coroutine in main; the node is drained. They tell all parents of a new length.
 * Errors: -EOPNOTSUPP the driver cannot; -EINVAL no multiple of what the node needs; -EMEDIUMTYPE
 * it has become empty, and no disk is. */
co_fn GRAPH_RD int bdrv_co_truncate(BlockNode *node, uint64_t length_bytes, Error *err) WARN_UNUSED;
co_fn GRAPH_RD int bdrv_co_refresh_length(BlockNode *node, Error *err) WARN_UNUSED;

/* What a filter puts into its table for what it does not change. */
co_fn GRAPH_RD int bdrv_pass_co_preadv(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                              const struct iovec *iov, int niov, BlkFlags flags);
co_fn GRAPH_RD int bdrv_pass_co_pwritev(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                               const struct iovec *iov, int niov, BlkFlags flags);
co_fn GRAPH_RD int bdrv_pass_co_flush(BlockNode *node);
co_fn GRAPH_RD int bdrv_pass_co_pdiscard(BlockNode *node, uint64_t offset_bytes,
                                         uint64_t len_bytes);
co_fn GRAPH_RD int bdrv_pass_co_pwrite_zeroes(BlockNode *node, uint64_t offset_bytes,
                                              uint64_t len_bytes, BlkFlags flags);

extern const BlockDriver bdrv_faulty;
extern const BlockDriver bdrv_file;
extern const BlockDriver bdrv_nbd;
extern const BlockDriver bdrv_log_writes;
extern const BlockDriver bdrv_null;
extern const BlockDriver bdrv_throttle;

#endif
