/*
 * BouncePool - aligned buffers for requests that cannot go to the driver as they are
 *
 * Layer:     block/, private to block-io.c
 * Threading: get and put in any context, in coroutines; init and finish where the node is opened
 *            and closed.
 * Lifetime:  embedded in a node's request state; init() .. finish(), when all buffers are back.
 *
 * A guest chooses how its buffers are aligned, so it must not choose how much memory that takes: a
 * pool has at most BOUNCE_BUFFERS_MAX buffers; who finds none waits, in order of arrival. To keep
 * that free of deadlock a request holds one buffer at a time and gives it back before it waits for
 * anything but the driver.
 */
#ifndef BLOCK_BOUNCE_H
#define BLOCK_BOUNCE_H

#include <pthread.h>

#include "io/aio/aio.h"

#define BOUNCE_BYTES       65536 /* of one buffer, and its alignment's limit */
#define BOUNCE_BUFFERS_MAX 64    /* of one node */

typedef struct BouncePool {
    pthread_mutex_t lock; /* protects the fields below */
    unsigned nb_buffers;  /* allocated, free or handed out */
    unsigned nb_free;
    void *free[BOUNCE_BUFFERS_MAX];
    List waiters;
} BouncePool;

void bounce_pool_init(BouncePool *pool) NONNULL(1);
void bounce_pool_finish(BouncePool *pool);

/* bounce_co_get - a buffer of BOUNCE_BYTES aligned to as much; NULL when there is no memory for
 * even one */
co_fn void *bounce_co_get(BouncePool *pool) NONNULL(1) WARN_UNUSED;
void bounce_put(BouncePool *pool, void *buffer) NONNULL(1, 2);

#endif
