/*
 * block-graph.h - nodes, the edges between them, and who may do what
 *
 * Layer:     block/ (may use io/)
 * Threading: main thread. Requests follow edges downwards in any context, see the lock below.
 * Lifetime:  an edge is embedded in its parent: a node's children[], a BlockBackend's root. It
 *            holds a reference on the node it leads to.
 *
 *     BlockBackend --root--> [filter] --file--> [filter] --file--> [file]
 *                                                                    ^
 *     BlockBackend --root--------------------------------------------+
 *
 * No cycles, no path longer than BDRV_DEPTH_MAX nodes.
 *
 * The graph lock. A request that is counted in its BlockBackend's DrainPoint is a reader of all
 * edges below; so is activity counted in a node's. That costs a reader one store to a cache line of
 * its own context and one load of a line that is written when somebody drains (in-flight.h). Who
 * writes an edge is in the main thread, in a drained section that covers the edge's parent: there
 * is then no reader that could meet the edge, and none appears before the end. The main thread
 * itself reads at any time. So there is no other lock, and disks that share no node do not wait for
 * each other's changes.
 *
 * For clang's analysis the lock is tsa_graph_lock (io/base/tsa.h): blk_co_request_begin() takes it
 * for reading, what is called in a request is GRAPH_RD, and block-graph.c alone takes it for
 * writing.
 *
 * Invariants:
 *   (1) edge->node is written while the edge's parent is quiet (block-drain.h), or before the first
 *       request can reach the parent.
 *   (2) A parent is covered whenever one of its children is (block-drain.c), so covering a node is
 *       enough to change the edges that lead to it.
 *   (3) For any two edges to a node, what one needs (`perm`) the other shares (`shared`).
 *   (4) Nobody has BLK_PERM_WRITE or BLK_PERM_RESIZE of a read-only node.
 */
#ifndef BLOCK_BLOCK_GRAPH_H
#define BLOCK_BLOCK_GRAPH_H

#include "io/base/compiler.h"
#include "io/base/error.h"
#include "io/base/list.h"
#include "io/base/opts.h"
#include "io/base/tsa.h"

#define BDRV_DEPTH_MAX 8 /* a request's coroutine has a stack of limited size */

typedef struct BlockNode BlockNode;
typedef struct BlockBackend BlockBackend;
struct BlockDriver;

/* What an edge's parent does to the node, or lets others do to it. */
typedef enum BlkPerm {
    BLK_PERM_READ = 1 << 0,
    BLK_PERM_WRITE = 1 << 1,  /* write, discard, write-zeroes */
    BLK_PERM_RESIZE = 1 << 2, /* change the length */
    BLK_PERM_ALL = BLK_PERM_READ | BLK_PERM_WRITE | BLK_PERM_RESIZE,
} BlkPerm;

typedef struct BdrvChild {
    BlockNode *node GUARDED_BY(tsa_graph_lock); /* where it leads; NULL = nowhere yet */
    const char *name;      /* "root", "file"; borrowed */
    BlockNode *parent;     /* whose child it is; NULL when a backend's */
    BlockBackend *blk;     /* whose root it is; NULL when a node's */
    BlkPerm perm, shared;
    BlkPerm saved_perm;    /* before the change that is being tried */
    bool moved;            /* by that change */
    ListNode parents_link; /* in node->parents */
} BdrvChild;

/* graph_assert_main - abort outside of the main thread, which reads the graph at any time */
void graph_assert_main(void) TSA(assert_shared_capability(tsa_graph_lock));

/* bdrv_find - by its id (node-name=); borrowed; NULL when there is none */
BlockNode *bdrv_find(const char *id) NONNULL(1);
const char *bdrv_id(const BlockNode *node) NONNULL(1);
/* bdrv_next - all nodes in order of opening: the first when @node is NULL; NULL after the last */
BlockNode *bdrv_next(const BlockNode *node);

/*
 * bdrv_insert_filter - open a filter on @node and lead all of @node's parents to it
 * In a drained section; requests that wait go through the filter afterwards.
 * @opts  driver=NAME and what it takes; "file" is @node
 * Returns the filter, borrowed: it belongs to the parents now.
 * Errors: -EINVAL no filter, wrong or unknown options, too deep, no parents; -EBUSY and -EPERM
 *         permissions; -ENOMEM
 * Context: main, in a coroutine or not.
 */
BlockNode *bdrv_insert_filter(BlockNode *node, Opts *opts, Error *err) NONNULL(1, 2) WARN_UNUSED;
/* bdrv_insert_filter_driver - the same with a driver that is already chosen; borrowed */
BlockNode *bdrv_insert_filter_driver(const struct BlockDriver *driver, BlockNode *node, Opts *opts,
                                     Error *err) NONNULL(1, 2, 3) WARN_UNUSED;
/* bdrv_remove_filter - lead its parents to its child; frees it unless somebody else refers to it.
 * Errors: -EINVAL it is no filter, or has no parents; -EBUSY and -EPERM permissions. Context: as
 * above. */
int bdrv_remove_filter(BlockNode *filter, Error *err) NONNULL(1) WARN_UNUSED;

/* --- for block-node.c and block-backend.c --- */

/*
 * bdrv_attach - lead a new edge to @node and take the permissions that it has been given
 * The edge is filled but for node; takes a reference. Permissions below are worked out anew.
 * Errors: -EBUSY somebody does not share what is wanted, or holds what would not be shared: the
 *         message says who; -EPERM the node is read-only; -EINVAL too deep.
 */
int bdrv_attach(BdrvChild *edge, BlockNode *node, Error *err) NONNULL(1, 2) WARN_UNUSED;
/* bdrv_detach - undo it and give the reference back; nothing when it leads nowhere */
void bdrv_detach(BdrvChild *edge) NONNULL(1);
/* bdrv_set_length - with the node covered; tells its parents, and those of filters */
void bdrv_set_length(BlockNode *node, uint64_t length_bytes) NONNULL(1);
void bdrv_register(BlockNode *node) NONNULL(1);
void bdrv_unregister(BlockNode *node) NONNULL(1);

#endif
