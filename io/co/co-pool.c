/*
 * co-pool.c - how many ended coroutines the threads of this process may keep
 *
 * Invariants:
 *  1. nb_pooled <= nb_reserved in every pool, and the sum of nb_reserved over all pools is
 *     nb_reserved_total <= nb_max().
 *  2. nb_max() is an eighth of vm.max_map_count. A stack takes two mappings, so that pools never
 *     take more than a quarter of what the process may have, however many threads there are: while
 *     all pools are full, 64 queues with 256 requests each, which take half, still find room.
 * A pool reserves in steps, so that the shared count is no part of creating or ending a coroutine.
 */
#include "io/co/co-pool.h"

#include <pthread.h>
#include <stdio.h>

#define RESERVE_STEP          64
#define MAX_MAP_COUNT_DEFAULT 65530 /* of the kernel, when /proc cannot be read */

static _Atomic unsigned nb_reserved_total;
static pthread_once_t limit_once = PTHREAD_ONCE_INIT;
static unsigned limit_total;

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
    limit_total = max_map_count / 8;
}

static unsigned nb_max(void)
{
    pthread_once(&limit_once, read_limit);
    return limit_total;
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

    /* Relaxed: the count itself is all that is shared. */
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
