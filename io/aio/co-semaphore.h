/*
 * CoSemaphore - a number of units that coroutines take and give back
 *
 * Layer:     io/aio
 * Threading: coroutines of any contexts acquire, in order of arrival; any thread, in a coroutine or
 *            not, releases. A unit that is released while somebody waits goes to the first in line
 *            directly: nobody overtakes, and no wake-up is for nothing.
 * Lifetime:  embedded, co_semaphore_init() .. co_semaphore_finish(), when nobody waits any more.
 */
#ifndef IO_AIO_CO_SEMAPHORE_H
#define IO_AIO_CO_SEMAPHORE_H

#include "io/aio/co-wait.h"

typedef struct CoSemaphore {
    CoLine line;
    unsigned nb_free; /* under line.lock; > 0 only while nobody waits */
} CoSemaphore;

void co_semaphore_init(CoSemaphore *sem, unsigned nb_free) NONNULL(1);
void co_semaphore_finish(CoSemaphore *sem);

/* co_semaphore_acquire - yields only while there is no unit for us */
co_fn void co_semaphore_acquire(CoSemaphore *sem) NONNULL(1);
/* co_semaphore_acquire_until - 0, or -ETIMEDOUT when @deadline_ns passed first */
co_fn int co_semaphore_acquire_until(CoSemaphore *sem, int64_t deadline_ns) NONNULL(1) WARN_UNUSED;
/* co_semaphore_try_acquire - true when there was a free one. Any thread. */
bool co_semaphore_try_acquire(CoSemaphore *sem) NONNULL(1) WARN_UNUSED;
/* co_semaphore_release - give one (back). Any thread. */
void co_semaphore_release(CoSemaphore *sem) NONNULL(1);

#endif
