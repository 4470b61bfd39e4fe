/*
 * bounce.c - a bounded pool of aligned buffers
 *
 * Invariant: when somebody waits, no buffer is free. A buffer that is put goes to the first waiter
 * directly, so nobody who came later can take it.
 */
#include "block/bounce.h"

typedef struct BounceWaiter {
    ListNode node;
    Coroutine *co;
    void *buffer; /* what it is given */
} BounceWaiter;

void bounce_pool_init(BouncePool *pool)
{
    *pool = (BouncePool){ 0 };
    pthread_mutex_init(&pool->lock, NULL);
    list_init(&pool->waiters);
}

void bounce_pool_finish(BouncePool *pool)
{
    assert(pool->nb_free == pool->nb_buffers);
    while (pool->nb_free > 0) {
        free(pool->free[--pool->nb_free]);
    }
    pool->nb_buffers = 0;
    pthread_mutex_destroy(&pool->lock);
}

/* Under the lock: a free or a new buffer, NULL when there is none. */
static void *take(BouncePool *pool)
{
    void *buffer;

    if (pool->nb_free > 0) {
        return pool->free[--pool->nb_free];
    }
    if (pool->nb_buffers == BOUNCE_BUFFERS_MAX ||
        posix_memalign(&buffer, BOUNCE_BYTES, BOUNCE_BYTES) != 0) {
        return NULL;
    }
    pool->nb_buffers++;
    return buffer;
}

co_fn void *bounce_co_get(BouncePool *pool)
{
    BounceWaiter waiter = { .co = co_self() };
    bool wait;

    pthread_mutex_lock(&pool->lock);
    waiter.buffer = take(pool);
    wait = !waiter.buffer && pool->nb_buffers > 0; /* else nobody would ever put one */
    if (wait) {
        list_push_back(&pool->waiters, &waiter.node);
    }
    pthread_mutex_unlock(&pool->lock);

    if (wait) {
        co_yield();
        assert(waiter.buffer);
    }
    return waiter.buffer;
}

void bounce_put(BouncePool *pool, void *buffer)
{
    ListNode *node;

    pthread_mutex_lock(&pool->lock);
    node = list_pop_front(&pool->waiters);
    if (!node) {
        pool->free[pool->nb_free++] = buffer;
    }
    pthread_mutex_unlock(&pool->lock);

    if (node) {
        BounceWaiter *waiter = list_entry(node, BounceWaiter, node);

        waiter->buffer = buffer;
        aio_co_wake(waiter->co);
    }
}
