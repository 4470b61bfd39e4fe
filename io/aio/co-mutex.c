/*
 * co-mutex.c - a lock that coroutines of any contexts may hold across a yield
 *
 * States: free (locked false, no waiters) -> held -> held with waiters. Unlocking with waiters does
 * not pass through free: the first waiter becomes the holder before it is woken, so nobody
 * overtakes and a woken waiter has nothing to check. The thread mutex inside is held for a few
 * instructions and never while a coroutine is woken or yields. A waiter that is granted the lock
 * before it has reached its co_yield() is safe: aio_co_wake() from another thread schedules it in
 * its home, which is the thread it is still running in.
 */
#include "io/aio/co-mutex.h"

typedef struct CoMutexWaiter {
    ListNode node;
    Coroutine *co;
} CoMutexWaiter;

void co_mutex_init(CoMutex *mutex)
{
    pthread_mutex_init(&mutex->lock, NULL);
    mutex->locked = false;
    list_init(&mutex->waiters);
}

void co_mutex_finish(CoMutex *mutex)
{
    if (mutex) {
        assert(!mutex->locked && list_empty(&mutex->waiters));
        pthread_mutex_destroy(&mutex->lock);
    }
}

void co_mutex_lock(CoMutex *mutex)
{
    CoMutexWaiter waiter = { .co = co_self() };

    pthread_mutex_lock(&mutex->lock);
    bool wait = mutex->locked;

    if (wait) {
        list_push_back(&mutex->waiters, &waiter.node);
    } else {
        mutex->locked = true;
    }
    pthread_mutex_unlock(&mutex->lock);
    if (wait) {
        co_yield();
    }
}

void co_mutex_unlock(CoMutex *mutex)
{
    CoMutexWaiter *next = NULL;

    pthread_mutex_lock(&mutex->lock);
    assert(mutex->locked);
    if (list_empty(&mutex->waiters)) {
        mutex->locked = false;
    } else {
        next = list_entry(list_pop_front(&mutex->waiters), CoMutexWaiter, node);
    }
    pthread_mutex_unlock(&mutex->lock);
    if (next) {
        aio_co_wake(next->co);
    }
}
