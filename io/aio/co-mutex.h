/*
 * CoMutex - a lock that a coroutine may hold across a yield; waiting yields, it does not block
 *
 * Layer:     io/aio
 * Threading: any coroutine in any context; granted in order of arrival (no overtaking), handed over
 *            directly so that a waiter that was woken already owns it.
 * Lifetime:  embedded, co_mutex_init(); must be unlocked and without waiters when it goes away.
 */
#ifndef IO_AIO_CO_MUTEX_H
#define IO_AIO_CO_MUTEX_H

#include <pthread.h>

#include "io/aio/aio.h"

typedef struct CoMutex {
    pthread_mutex_t lock; /* protects the fields below; held for a few instructions only */
    bool locked;
    List waiters;
} CoMutex;

void co_mutex_init(CoMutex *mutex) NONNULL(1);
void co_mutex_finish(CoMutex *mutex);
co_fn void co_mutex_lock(CoMutex *mutex) NONNULL(1);
co_fn void co_mutex_unlock(CoMutex *mutex) NONNULL(1);

#endif
