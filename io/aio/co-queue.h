/*
 * CoQueue - coroutines that wait for a condition, woken one by one or all together
 *
 * Layer:     io/aio
 * Threading: coroutines of any contexts wait; any thread, in a coroutine or not, restarts them,
 *            each in its home. First come, first restarted.
 * Lifetime:  embedded, co_queue_init() .. co_queue_finish(), when nobody waits any more.
 *
 * A wake-up is not lost when the condition cannot change between the waiter's last look at it and
 * co_queue_wait(). There are two ways to see to that:
 *   - a CoMutex: the waiter looks and waits with it held, and who makes the condition true does
 *     that with it held, too. Restarting may come before or after the unlock. The wait lets go of
 *     the CoMutex when the waiter stands in line and has it again when it returns.
 *   - no lock (NULL): who makes the condition true does so in the waiter's thread.
 * A condition that is a count of things has a CoSemaphore instead, which needs neither.
 *
 * Who was restarted looks at the condition again: another may have come in between.
 */
#ifndef IO_AIO_CO_QUEUE_H
#define IO_AIO_CO_QUEUE_H

#include "io/aio/co-mutex.h"
#include "io/aio/co-wait.h"

typedef struct CoQueue {
    CoLine line;
} CoQueue;

void co_queue_init(CoQueue *queue) NONNULL(1);
void co_queue_finish(CoQueue *queue);

/* co_queue_wait - until restarted; always yields. @mutex may be NULL. */
co_fn void co_queue_wait(CoQueue *queue, CoMutex *mutex) NONNULL(1) REQUIRES(mutex);
/*
 * co_queue_wait_until - the same with a deadline
 * Returns 0 when restarted, -ETIMEDOUT when @deadline_ns passed first: never both, who is restarted
 * has not timed out. @mutex is held again either way, however long that takes.
 */
co_fn int co_queue_wait_until(CoQueue *queue, CoMutex *mutex, int64_t deadline_ns) NONNULL(1)
    REQUIRES(mutex);

/* co_queue_restart_one - false when nobody waits. Any thread. */
bool co_queue_restart_one(CoQueue *queue) NONNULL(1);
/* co_queue_restart_all - those that wait now, not those that come meanwhile. Any thread. */
void co_queue_restart_all(CoQueue *queue) NONNULL(1);
/* co_queue_empty - nobody waits now */
bool co_queue_empty(CoQueue *queue) NONNULL(1);

#endif
