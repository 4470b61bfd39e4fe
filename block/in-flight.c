/*
 * in-flight.c - counting requests without a shared cache line
 *
 * Each context has a slot with two counters that only it writes: requests begun, requests ended.
 * A request counts itself first and looks at the gate second; who closes the gate does it in the
 * other order: closes first, looks at the counters second. One of the two must see the other. That
 * takes a full barrier between the two steps on both sides. membarrier(2) makes every thread of the
 * process pass one on behalf of the rare side, so that the frequent side only has to keep the
 * compiler from swapping the two. Where membarrier(2) is refused, both sides use sequentially
 * consistent accesses instead.
 *
 * Invariants:
 *   (1) After inflight_close() has returned, each request either has its `begun` visible to
 *       inflight_count(), or will find the gate closed. [inflight_enter() pairs with
 *       barrier_everywhere() in inflight_close()]
 *   (2) inflight_count() sums `ended` of all slots first, `begun` second. An end that it saw brings
 *       its begin along (release/acquire), so the difference is never negative; when it is 0 and
 *       the gate is closed, every request that ever entered has left, and what it wrote is visible.
 *       This holds when a request leaves in another context than it entered in.
 *   (3) A waiter announces itself in inflight_waiters, then passes barrier_everywhere(), then looks
 *       at the counters. A leaving request writes `ended`, then looks at inflight_waiters. So
 *       either the waiter saw the end, or the leaving request sees the waiter.
 *   (4) A waiter is linked in `waiters` until its wait is over; whoever unlinks it, itself, a
 *       leaving request or who opens the gate, ends the wait, so it is woken exactly once.
 */
#include "block/in-flight.h"

#include <linux/membarrier.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>

#include "io/base/log.h"

typedef struct InFlightWaiter {
    ListNode node;
    const InFlight *in_flight;
    Coroutine *co;
} InFlightWaiter;

/* Read by every leaving request: not in a line with anything that is written often. */
_Atomic unsigned inflight_waiters CACHE_ALIGNED;

static pthread_mutex_t waiters_lock CACHE_ALIGNED = PTHREAD_MUTEX_INITIALIZER;
static List waiters = LIST_INIT(waiters); /* protected by waiters_lock */

static pthread_once_t membarrier_once = PTHREAD_ONCE_INIT;
static bool membarrier_usable;

static int membarrier(int command)
{
    return (int)syscall(SYS_membarrier, command, 0, 0);
}

static void membarrier_register(void)
{
    membarrier_usable = membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0 &&
                        membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0;
    if (!membarrier_usable) {
        log_info("block", "membarrier(2) is refused: %s; each request pays for two barriers",
                 error_strerror(errno));
    }
}

/* Every thread passes a full memory barrier before this returns. Pairs with the signal fences in
 * inflight_enter() and inflight_leave(). */
static void barrier_everywhere(const InFlight *f)
{
    if (!f->fenced) {
        int ret = membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);

        assert(ret == 0); /* it worked when it was registered */
    }
}

int inflight_init(InFlight *f)
{
    size_t bytes = AIO_CONTEXTS_MAX * sizeof(InFlightSlot);
    void *slots;

    *f = (InFlight){ 0 };
    pthread_once(&membarrier_once, membarrier_register);
    if (posix_memalign(&slots, CACHE_LINE_BYTES, bytes) != 0) {
        return -ENOMEM;
    }
    memset(slots, 0, bytes);
    *f = (InFlight){ .slots = slots, .fenced = !membarrier_usable };
    return 0;
}

void inflight_finish(InFlight *f)
{
    if (f->slots) {
        assert(inflight_count(f) == 0);
        free(f->slots);
        f->slots = NULL;
    }
}

void inflight_add(InFlight *f, unsigned nb)
{
    InFlightSlot *slot = inflight_slot(f);

    atomic_store(&slot->begun, atomic_load_explicit(&slot->begun, memory_order_relaxed) + nb);
}

uint64_t inflight_count(const InFlight *f)
{
    uint64_t begun = 0, ended = 0;

    for (unsigned i = 0; i < AIO_CONTEXTS_MAX; i++) {
        ended += atomic_load(&f->slots[i].ended);
    }
    for (unsigned i = 0; i < AIO_CONTEXTS_MAX; i++) {
        begun += atomic_load(&f->slots[i].begun);
    }
    return begun - ended;
}

void inflight_close(InFlight *f)
{
    atomic_store(&f->closed, true);
    barrier_everywhere(f);
}

bool inflight_is_closed(const InFlight *f)
{
    return atomic_load(&f->closed);
}

/* Unlink and wake the waiters whose wait is over, or all of those that wait for @all. Under the
 * lock to the end: a waiter that finds itself linked takes it that nobody is about to wake it.
 * Scheduled, not entered: whoever calls this is in the middle of something. */
static void wake_waiters(const InFlight *all)
{
    pthread_mutex_lock(&waiters_lock);
    list_for_each_safe(it, &waiters) {
        InFlightWaiter *w = list_entry(it, InFlightWaiter, node);

        if (w->in_flight == all || inflight_count(w->in_flight) == 0) {
            Coroutine *co = w->co;

            list_remove(it);
            aio_co_schedule(co_home(co), co); /* its frame may be gone from here on */
        }
    }
    pthread_mutex_unlock(&waiters_lock);
}

void inflight_wake_waiters(void)
{
    wake_waiters(NULL);
}

void inflight_open(InFlight *f)
{
    atomic_store(&f->closed, false);
    if (atomic_load(&inflight_waiters) != 0) {
        wake_waiters(f);
    }
}

/* True when @w is still linked and its wait is over: it is then unlinked and will not be woken. */
static bool waiter_done(InFlightWaiter *w)
{
    bool done;

    pthread_mutex_lock(&waiters_lock);
    done = list_linked(&w->node) && inflight_count(w->in_flight) == 0;
    if (done) {
        list_remove(&w->node);
    }
    pthread_mutex_unlock(&waiters_lock);
    return done;
}

co_fn void inflight_co_wait(InFlight *f)
{
    InFlightWaiter w = { .in_flight = f, .co = co_self() };

    assert(inflight_is_closed(f));
    if (inflight_count(f) == 0) {
        return;
    }
    pthread_mutex_lock(&waiters_lock);
    list_push_back(&waiters, &w.node);
    pthread_mutex_unlock(&waiters_lock);
    atomic_fetch_add(&inflight_waiters, 1);
    barrier_everywhere(f); /* pairs with inflight_leave() */

    if (!waiter_done(&w)) {
        co_yield();
    }
    atomic_fetch_sub(&inflight_waiters, 1);
}
