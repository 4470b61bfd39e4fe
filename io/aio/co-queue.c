/*
 * co-queue.c - coroutines that wait for a condition
 *
 * Nothing but a line (co-wait.c). The waiter stands in it before it unlocks the caller's CoMutex:
 * who takes that next, makes the condition true and restarts, finds it there.
 */
#include "io/aio/co-queue.h"

void co_queue_init(CoQueue *queue)
{
    co_line_init(&queue->line);
}

void co_queue_finish(CoQueue *queue)
{
    co_line_finish(queue ? &queue->line : NULL);
}

void co_queue_wait(CoQueue *queue, CoMutex *mutex)
{
    (void)co_queue_wait_until(queue, mutex, CO_NO_DEADLINE);
}

NO_TSA int co_queue_wait_until(CoQueue *queue, CoMutex *mutex, int64_t deadline_ns)
{
    CoWaiter waiter;

    co_line_lock(&queue->line);
    co_line_append(&queue->line, &waiter, 0);
    co_line_unlock(&queue->line);
    if (mutex) {
        co_mutex_unlock(mutex);
    }
    int ret = co_line_wait(&waiter, deadline_ns);

    if (mutex) {
        co_mutex_lock(mutex);
    }
    return ret;
}

bool co_queue_restart_one(CoQueue *queue)
{
    CoGrants grants = { NULL };

    co_line_lock(&queue->line);
    CoWaiter *first = co_line_first(&queue->line);

    if (first) {
        co_line_grant(first, &grants);
    }
    co_line_unlock(&queue->line);
    co_grants_wake(&grants);
    return first;
}

void co_queue_restart_all(CoQueue *queue)
{
    CoGrants grants = { NULL };

    co_line_lock(&queue->line);
    for (CoWaiter *first; (first = co_line_first(&queue->line));) {
        co_line_grant(first, &grants);
    }
    co_line_unlock(&queue->line);
    co_grants_wake(&grants);
}

bool co_queue_empty(CoQueue *queue)
{
    co_line_lock(&queue->line);
    bool empty = list_empty(&queue->line.waiters);

    co_line_unlock(&queue->line);
    return empty;
}
