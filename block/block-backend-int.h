/*
 * block-backend-int.h - what a BlockBackend consists of; the beginning and the end of a request
 *
 * Layer:     block/, private to block-backend.c, block-aio.c and the graph
 * Threading: as noted at the fields.
 */
#ifndef BLOCK_BLOCK_BACKEND_INT_H
#define BLOCK_BLOCK_BACKEND_INT_H

#include <pthread.h>

#include "block/block-backend.h"

struct BlockBackend {
    /* Read by every request, written in the main thread. */
    BdrvChild root;
    DrainPoint drain;
    _Atomic uint64_t length_bytes; /* of the root's node */
    _Atomic bool write_cache;
    bool read_only; /* of the backend; fixed */

    char *id;
    unsigned refs;          /* main */
    ListNode backends_link; /* main */
    const BlkUserOps *user; /* main */
    void *user_opaque;
    bool user_paused;       /* main: it has been told so, or would have been */
    pthread_mutex_t lock;   /* protects queued */
    List queued;            /* QueuedRequest, in order of arrival */
};

/* A request that waits for the end of a drained section; in its coroutine's frame. */
typedef struct QueuedRequest {
    ListNode node;
    Coroutine *co;
} QueuedRequest;

/* All backends; main thread. */
extern List blk_backends;

void blk_ref(BlockBackend *blk) NONNULL(1);
void blk_unref(BlockBackend *blk) NONNULL(1);

/* The node's length or write cache is another one: take it over, tell the user. Main. */
void blk_node_resized(BlockBackend *blk) NONNULL(1);

/* The gate is closed: wait for the end of the drained section; counted when it returns. */
co_fn void blk_co_wait_counted(BlockBackend *blk) NONNULL(1);

/* To be counted is to hold the graph lock for reading. */
static inline co_fn void blk_co_request_begin(BlockBackend *blk) ACQUIRES_SHARED(tsa_graph_lock);
static inline void blk_request_end(BlockBackend *blk) RELEASES_SHARED(tsa_graph_lock);

NO_TSA static inline co_fn void blk_co_request_begin(BlockBackend *blk)
{
    if (unlikely(!inflight_enter(&blk->drain.in_flight))) {
        blk_co_wait_counted(blk);
    }
}

NO_TSA static inline void blk_request_end(BlockBackend *blk)
{
    inflight_leave(&blk->drain.in_flight);
}

/* The requests of block-backend.h between these two. */
co_fn GRAPH_RD int blk_co_do_preadv(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                           const struct iovec *iov, int niov, BlkFlags flags);
co_fn GRAPH_RD int blk_co_do_pwritev(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                            const struct iovec *iov, int niov, BlkFlags flags);
co_fn GRAPH_RD int blk_co_do_flush(BlockBackend *blk);
co_fn GRAPH_RD int blk_co_do_pdiscard(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes);
co_fn GRAPH_RD int blk_co_do_pwrite_zeroes(BlockBackend *blk, uint64_t offset_bytes,
                                           uint64_t len_bytes, BlkFlags flags);
co_fn GRAPH_RD int blk_co_do_block_status(BlockBackend *blk, uint64_t offset_bytes,
                                          uint64_t len_bytes, uint64_t *ret_len_bytes);

#endif
