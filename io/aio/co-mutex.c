/*
 * co-mutex.c - a lock that coroutines of any contexts may hold across a yield
 *
 * One word says who has the lock and who has come for it since its holder last looked:
 *
 *     FREE = 0    HELD = 1    HELD | w   w the newest of a stack of waiters, linked by `next`
 *
 *     FREE     -> HELD      lock, trylock     compare-exchange, acquire
 *     HELD | v -> HELD | w  lock: w waits     compare-exchange, release (v may be none)
 *     HELD     -> FREE      unlock            compare-exchange, release; only with `line` empty
 *     HELD | w -> HELD      unlock            exchange, acquire; the stack, turned over, is `line`
 *
 * `line` belongs to the holder: the waiters that some holder has taken off the word, oldest first.
 * Unlocking hands the lock to the first of the line, filling the line from the word when it is
 * empty. Handing over leaves the word alone: it stays HELD, only the holder changes.
 *
 * Invariants:
 *   (1) Only the holder takes waiters off the word or touches the line. So no waiter is taken
 *       twice, and the compare-exchanges need no care for addresses that come again: a push does
 *       not mind what it is pushed upon, and nothing else compares an address.
 *   (2) Whoever waits is in the word or in the line. The word goes from HELD to FREE in one step
 *       that fails when a waiter has come, and is taken only when the line is empty. So the lock is
 *       never free while somebody waits: no wake-up is lost.
 *   (3) The line is older than what is in the word, and the lock goes to the head of the line:
 *       first come, first served. A coroutine that comes while the lock is on its way to the next
 *       holder finds it HELD.
 *   (4) A waiter is woken once, when it has become the holder; there is nothing for it to check.
 *   (5) After the step that gives the lock away (the release to FREE, the wake) the unlocker
 *       touches neither the mutex nor the waiter.
 *
 * Barriers: FREE -> HELD (acquire) pairs with HELD -> FREE (release): the new holder sees what the
 * last one wrote, `line` and `owner` included. The push (release) pairs with the exchange
 * (acquire): the holder sees what the waiters wrote into their frames. Handing over needs no
 * barrier here: what the caller of aio_co_wake() wrote before it is seen by the coroutine that it
 * wakes.
 *
 * A waiter may be woken before it has reached its co_yield(). From another thread aio_co_wake()
 * schedules it in its home, which is the thread it is still running in; from the same thread it
 * cannot come so early.
 *
 * io/models/co-mutex.pml is this as a model.
 */
#include "io/aio/co-mutex.h"

#define FREE ((uintptr_t)0)
#define HELD ((uintptr_t)1) /* a bit that no waiter's address has */

struct CoMutexWaiter {
    CoMutexWaiter *next; /* older in the word's stack, younger in the line */
    Coroutine *co;
};

static_assert(_Alignof(CoMutexWaiter) > HELD, "HELD must fit beside an address");

void co_mutex_init(CoMutex *mutex)
{
    atomic_init(&mutex->word, FREE);
    atomic_init(&mutex->owner, NULL);
    mutex->line = NULL;
}

void co_mutex_finish(CoMutex *mutex)
{
    if (mutex) {
        assert(atomic_load_explicit(&mutex->word, memory_order_relaxed) == FREE);
    }
}

/* Relaxed: only the coroutine itself ever finds itself there, by what it or its waker stored. */
static Coroutine *owner_of(CoMutex *mutex)
{
    return atomic_load_explicit(&mutex->owner, memory_order_relaxed);
}

static void set_owner(CoMutex *mutex, Coroutine *co)
{
    atomic_store_explicit(&mutex->owner, co, memory_order_relaxed);
}

/* Take the free lock; false, with the word in *word, when it is held. */
static bool take(CoMutex *mutex, uintptr_t *word)
{
    *word = FREE;
    /* acquire: pairs with co_mutex_unlock() */
    return atomic_compare_exchange_strong_explicit(&mutex->word, word, HELD, memory_order_acquire,
                                                   memory_order_relaxed);
}

/* Be the newest waiter, and return when the lock is ours; or take it if it became free. */
static NOINLINE co_fn void wait(CoMutex *mutex, Coroutine *self, uintptr_t word)
{
    CoMutexWaiter waiter = { .co = self };

    assert(owner_of(mutex) != self); /* it would wait for itself */
    do {
        while (word == FREE) {
            if (take(mutex, &word)) {
                set_owner(mutex, self);
                return;
            }
        }
        waiter.next = (CoMutexWaiter *)(word & ~HELD);
        /* release: pairs with fill_line() */
    } while (!atomic_compare_exchange_weak_explicit(&mutex->word, &word, (uintptr_t)&waiter | HELD,
                                                    memory_order_release, memory_order_relaxed));
    co_yield();
    assert(owner_of(mutex) == self); /* who else has woken us? */
}

NO_TSA void co_mutex_lock(CoMutex *mutex)
{
    Coroutine *self = co_self();
    uintptr_t word;

    if (likely(take(mutex, &word))) {
        set_owner(mutex, self);
    } else {
        wait(mutex, self, word);
    }
}

NO_TSA bool co_mutex_trylock(CoMutex *mutex)
{
    uintptr_t word;

    if (!take(mutex, &word)) {
        return false;
    }
    set_owner(mutex, co_self());
    return true;
}

/* Turn the word's stack over: the oldest waiter comes first. There is one. */
static void fill_line(CoMutex *mutex)
{
    /* acquire: pairs with wait() */
    uintptr_t word = atomic_exchange_explicit(&mutex->word, HELD, memory_order_acquire);
    CoMutexWaiter *waiter = (CoMutexWaiter *)(word & ~HELD);

    assert(waiter);
    while (waiter) {
        CoMutexWaiter *older = waiter->next;

        waiter->next = mutex->line;
        mutex->line = waiter;
        waiter = older;
    }
}

NO_TSA void co_mutex_unlock(CoMutex *mutex)
{
    assert(owner_of(mutex) == co_self());
    if (!mutex->line) {
        uintptr_t word = HELD;

        set_owner(mutex, NULL);
        /* release: pairs with take() */
        if (likely(atomic_compare_exchange_strong_explicit(
                &mutex->word, &word, FREE, memory_order_release, memory_order_relaxed))) {
            return;
        }
        fill_line(mutex);
    }
    CoMutexWaiter *next = mutex->line;

    mutex->line = next->next;
    set_owner(mutex, next->co);
    aio_co_wake(next->co);
}
