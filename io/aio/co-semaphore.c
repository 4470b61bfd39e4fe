/*
 * co-semaphore.c - units that coroutines take and give back
 *
 * Invariant: nb_free > 0 only while the line is empty. A release finds somebody waiting, who gets
 * the unit, or makes nb_free larger; an acquire looks at nb_free and stands in line in one critical
 * section. What was granted to a waiter is its own even when its deadline passes at that moment
 * (co-wait.c, 1), so no unit is lost.
 */
#include "io/aio/co-semaphore.h"

#include <limits.h>

void co_semaphore_init(CoSemaphore *sem, unsigned nb_free)
{
    co_line_init(&sem->line);
    sem->nb_free = nb_free;
}

void co_semaphore_finish(CoSemaphore *sem)
{
    co_line_finish(sem ? &sem->line : NULL);
}

/* Locked. */
static bool take_free(CoSemaphore *sem)
{
    if (sem->nb_free == 0) {
        return false;
    }
    assert(list_empty(&sem->line.waiters));
    sem->nb_free--;
    return true;
}

int co_semaphore_acquire_until(CoSemaphore *sem, int64_t deadline_ns)
{
    CoWaiter waiter;

    co_line_lock(&sem->line);
    bool taken = take_free(sem);

    if (!taken) {
        co_line_append(&sem->line, &waiter, 0);
    }
    co_line_unlock(&sem->line);
    return taken ? 0 : co_line_wait(&waiter, deadline_ns);
}

void co_semaphore_acquire(CoSemaphore *sem)
{
    int ret = co_semaphore_acquire_until(sem, CO_NO_DEADLINE);

    assert(ret == 0);
}

bool co_semaphore_try_acquire(CoSemaphore *sem)
{
    co_line_lock(&sem->line);
    bool taken = take_free(sem);

    co_line_unlock(&sem->line);
    return taken;
}

void co_semaphore_release(CoSemaphore *sem)
{
    CoGrants grants = { NULL };

    co_line_lock(&sem->line);
    CoWaiter *first = co_line_first(&sem->line);

    if (first) {
        co_line_grant(first, &grants);
    } else {
        assert(sem->nb_free < UINT_MAX);
        sem->nb_free++;
    }
    co_line_unlock(&sem->line);
    co_grants_wake(&grants);
}
