/*
 * co-pool.h - ended coroutines of one thread, kept for its next ones
 *
 * Layer:     io/co (private)
 * Threading: a CoPool belongs to one thread. What all threads together may keep is bounded by a
 *            shared count, which a thread touches only to raise or to give back its own part. The
 *            count of all stacks is written when one is mapped or unmapped, and read for requests.
 * Lifetime:  zero-initialised is ready; co_pool_empty() before its thread ends.
 */
#ifndef IO_CO_CO_POOL_H
#define IO_CO_CO_POOL_H

#include "io/co/coroutine-int.h"

typedef struct CoPool {
    Coroutine *first; /* the one that ended last: its stack is still in the cache */
    unsigned nb_pooled;
    unsigned nb_reserved; /* part of the shared bound; nb_pooled <= nb_reserved */
    unsigned limit;       /* valid when limit_set, else CO_POOL_LIMIT_DEFAULT */
    bool limit_set;
} CoPool;

/* How many stacks there may still be before requests wait; negative: there are more. */
extern _Atomic int co_stacks_left;

/* A stack is about to be mapped, or has been unmapped (or was not mapped after all). */
void co_stacks_take(void);
void co_stacks_give(void);
/* co_stacks_allow_request - the whole decision, see co_create_request() */
bool co_stacks_allow_request(const CoPool *pool, unsigned nb_others) NONNULL(1) WARN_UNUSED;

/* co_pool_take - a coroutine that has ended, NULL when there is none */
static inline Coroutine *co_pool_take(CoPool *pool)
{
    Coroutine *co = pool->first;

    if (likely(co)) {
        pool->first = co->next;
        pool->nb_pooled--;
    }
    return co;
}

/* co_pool_reserve - raise this pool's part of the bound; false when it may not grow */
bool co_pool_reserve(CoPool *pool) NONNULL(1) WARN_UNUSED;

/* co_pool_give - keep @co for the next co_pool_take(); false when the pool is full */
static inline WARN_UNUSED bool co_pool_give(CoPool *pool, Coroutine *co)
{
    if (unlikely(pool->nb_pooled == pool->nb_reserved) && !co_pool_reserve(pool)) {
        return false;
    }
    co->next = pool->first;
    pool->first = co;
    pool->nb_pooled++;
    return true;
}

/* co_pool_limit - keep at most @limit from now on; frees what is above */
void co_pool_limit(CoPool *pool, unsigned limit) NONNULL(1);
/* co_pool_empty - free all and give back this pool's part of the bound; the limit stays */
void co_pool_empty(CoPool *pool) NONNULL(1);

#endif
