/*
 * CoMutex - a lock that a coroutine may hold across a yield; waiting yields, it does not block
 *
 * Layer:     io/aio
 * Threading: coroutines of any contexts. Granted in order of arrival, nobody overtakes; who unlocks
 *            makes the next in line the holder and wakes just that one, in its home. Locking a free
 *            lock and unlocking one that nobody waits for take one atomic operation each. The
 *            holder may move to another context; it alone unlocks.
 * Lifetime:  embedded, co_mutex_init() or all zeros; free when it goes away. co_mutex_unlock()
 *            touches nothing of it once somebody else can have the lock, so the next holder may
 *            free what the lock is part of. Waiting allocates nothing.
 */
#ifndef IO_AIO_CO_MUTEX_H
#define IO_AIO_CO_MUTEX_H

#include "io/aio/aio.h"

typedef struct CoMutexWaiter CoMutexWaiter;

typedef struct CAPABILITY("CoMutex") CoMutex {
    _Atomic uintptr_t word;     /* 0, or held, with the waiters that came last: co-mutex.c */
    CoMutexWaiter *line;        /* of the holder: other waiters, all older, first come first */
    _Atomic(Coroutine *) owner; /* written by the holder or, to hand over, for the next one */
} CoMutex;

void co_mutex_init(CoMutex *mutex) NONNULL(1);
void co_mutex_finish(CoMutex *mutex);

/* co_mutex_lock - locking what the caller has locked itself is a bug and aborts */
co_fn void co_mutex_lock(CoMutex *mutex) NONNULL(1) ACQUIRES(mutex);
/* co_mutex_trylock - true when it was free and is now the caller's; never yields */
co_fn bool co_mutex_trylock(CoMutex *mutex) NONNULL(1) WARN_UNUSED
    TRY_ACQUIRES(true, mutex);
/* co_mutex_unlock - by who holds it, anything else aborts; never yields */
co_fn void co_mutex_unlock(CoMutex *mutex) NONNULL(1) RELEASES(mutex);

#endif
