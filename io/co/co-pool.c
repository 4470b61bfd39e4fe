/*
 * co-pool.c - how many ended coroutines the threads of this process may keep, and how many stacks
 * there may be for requests
 *
 * Invariants:
 *  1. nb_pooled <= nb_reserved in every pool, and the sum of nb_reserved over all pools is
 *     nb_reserved_total <= nb_max().
 *  2. stacks_max is a quarter of vm.max_map_count, unless somebody sets it. nb_max() is half of
 *     that: a stack takes two mappings, so that pools never take more than a quarter of what the
 *     process may have, however many threads there are: while all pools are full, 64 queues with
 *     256 requests each, which take half, still find room.
 *  3. co_stacks_left is stacks_max less the stacks that are mapped, once stacks_max is known; before
 *     that, 0 less them.
 *  4. A request beyond its queue's guarantee never makes co_stacks_left negative (but by one for
 *     each thread that decides at the same time), nor runs on a stack while it is: what guaranteed
 *     ones have taken beyond the bound, and returned to a pool, is not a way past it.
 * A pool reserves in steps, so that the shared count is no part of creating or ending a coroutine.
 */
#include "io/co/co-pool.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>

#define RESERVE_STEP          64
#define MAX_MAP_COUNT_DEFAULT 65530 /* of the kernel, when /proc cannot be read */

static _Atomic unsigned nb_reserved_total;
static pthread_once_t limit_once = PTHREAD_ONCE_INIT;
static _Atomic unsigned stacks_max;

/* Read for each request: nothing that is written as often is beside it. */
_Atomic int co_stacks_left CACHE_ALIGNED;

static void read_limit(void)
{
    unsigned max_map_count = MAX_MAP_COUNT_DEFAULT;
    FILE *file = fopen("/proc/sys/vm/max_map_count", "re");

    if (file) {
        if (fscanf(file, "%u", &max_map_count) != 1) {
            max_map_count = MAX_MAP_COUNT_DEFAULT;
        }
        fclose(file);
    }
    max_map_count = MIN(max_map_count, (unsigned)INT_MAX);
    atomic_store(&stacks_max, max_map_count / 4);
    atomic_fetch_add(&co_stacks_left, (int)(max_map_count / 4));
}

static unsigned nb_stacks_max(void)
{
    pthread_once(&limit_once, read_limit);
    return atomic_load_explicit(&stacks_max, memory_order_relaxed);
}

void co_set_stacks_max(unsigned nb_stacks)
{
    int more = (int)nb_stacks - (int)nb_stacks_max();

    atomic_store(&stacks_max, nb_stacks);
    atomic_fetch_add(&co_stacks_left, more);
}

/* Relaxed, here and below: the count itself is all that is shared. */
void co_stacks_take(void)
{
    atomic_fetch_sub_explicit(&co_stacks_left, 1, memory_order_relaxed);
}

void co_stacks_give(void)
{
    atomic_fetch_add_explicit(&co_stacks_left, 1, memory_order_relaxed);
}

bool co_stacks_allow_request(const CoPool *pool, unsigned nb_others)
{
    int max = (int)nb_stacks_max();
    int left = atomic_load_explicit(&co_stacks_left, memory_order_relaxed);

    if (left > 0 || (left == 0 && pool->first)) {
        return true;
    }
    return nb_others == 0 || (nb_others < CO_REQUESTS_GUARANTEED && left > -(max / 2));
}

static unsigned nb_max(void)
{
    return nb_stacks_max() / 2;
}

static unsigned limit_of(const CoPool *pool)
{
    return pool->limit_set ? pool->limit : CO_POOL_LIMIT_DEFAULT;
}

bool co_pool_reserve(CoPool *pool)
{
    unsigned limit = limit_of(pool);
    unsigned total = atomic_load_explicit(&nb_reserved_total, memory_order_relaxed);
    unsigned step;

    do {
        if (pool->nb_reserved >= limit || total >= nb_max()) {
            return false;
        }
        step = MIN(MIN((unsigned)RESERVE_STEP, limit - pool->nb_reserved), nb_max() - total);
    } while (!atomic_compare_exchange_weak_explicit(&nb_reserved_total, &total, total + step,
                                                    memory_order_relaxed, memory_order_relaxed));
    pool->nb_reserved += step;
    return true;
}

static void shrink(CoPool *pool, unsigned nb_kept)
{
    while (pool->nb_pooled > nb_kept) {
        co_free(co_pool_take(pool));
    }
    if (pool->nb_reserved > nb_kept) {
        atomic_fetch_sub_explicit(&nb_reserved_total, pool->nb_reserved - nb_kept,
                                  memory_order_relaxed);
        pool->nb_reserved = nb_kept;
    }
}

void co_pool_limit(CoPool *pool, unsigned limit)
{
    pool->limit = limit;
    pool->limit_set = true;
    shrink(pool, limit);
}

void co_pool_empty(CoPool *pool)
{
    shrink(pool, 0);
}
