/*
 * InFlight - how many requests are in flight, counted at no shared cache line, behind a gate
 *
 * Layer:     block/ (may use io/)
 * Threading: enter and leave in any context, in coroutines; each context writes only its own cache
 *            line. The gate is closed and opened, and emptiness awaited, as each function says.
 * Lifetime:  embedded; init() .. finish(), when nothing is in flight.
 *
 * A request enters, works, and leaves. When the gate is closed it cannot enter; whoever closed it
 * can wait until all have left. A request may leave in another context than it entered in.
 * in-flight.c has the theory.
 */
#ifndef BLOCK_IN_FLIGHT_H
#define BLOCK_IN_FLIGHT_H

#include "io/aio/aio.h"

/* Written by one context only; both only grow, their difference may be negative in one slot. */
typedef struct InFlightSlot {
    _Atomic uint64_t begun;
    _Atomic uint64_t ended;
} CACHE_ALIGNED InFlightSlot;

typedef struct InFlight {
    InFlightSlot *slots; /* by aio_context_index() */
    _Atomic bool closed; /* the gate; read by every request, written when it is moved */
    bool fenced;         /* membarrier(2) was refused: requests order their own accesses */
} InFlight;

/* How many wait for something to become empty, in the whole process; see inflight_leave(). */
extern _Atomic unsigned inflight_waiters;

/* -ENOMEM; finish accepts what init has left */
int inflight_init(InFlight *f) NONNULL(1) WARN_UNUSED;
void inflight_finish(InFlight *f);

/* For inflight_leave() alone: wake those whose wait is over. */
void inflight_wake_waiters(void);

static inline InFlightSlot *inflight_slot(const InFlight *f)
{
    return &f->slots[aio_context_index(aio_current())];
}

/* inflight_leave - the other side of inflight_enter(). @f may be gone when it returns: the store to
 * `ended` is the last access to it, which is why the waiters' count is a variable of its own. */
static inline void inflight_leave(InFlight *f)
{
    InFlightSlot *slot = inflight_slot(f);
    uint64_t ended = atomic_load_explicit(&slot->ended, memory_order_relaxed) + 1;

    if (unlikely(f->fenced)) {
        atomic_store(&slot->ended, ended);
    } else {
        atomic_store_explicit(&slot->ended, ended, memory_order_release);
        atomic_signal_fence(memory_order_seq_cst); /* pairs with barrier_everywhere() */
    }
    if (unlikely(atomic_load(&inflight_waiters) != 0)) {
        inflight_wake_waiters();
    }
}

/* inflight_enter - true: counted, go on, and leave afterwards. False: the gate is closed. */
static inline bool inflight_enter(InFlight *f)
{
    InFlightSlot *slot = inflight_slot(f);
    uint64_t begun = atomic_load_explicit(&slot->begun, memory_order_relaxed) + 1;

    if (unlikely(f->fenced)) {
        atomic_store(&slot->begun, begun);
    } else {
        atomic_store_explicit(&slot->begun, begun, memory_order_relaxed);
        atomic_signal_fence(memory_order_seq_cst); /* pairs with barrier_everywhere() */
    }
    if (likely(!atomic_load(&f->closed))) {
        return true;
    }
    inflight_leave(f);
    return false;
}

/* inflight_add - let @nb requests in past the gate that other contexts will continue and leave */
void inflight_add(InFlight *f, unsigned nb) NONNULL(1);

/* inflight_count - requests in flight; exact when the gate is closed and for the context's own,
 * else a number that was true a moment ago for each context. Any thread. */
uint64_t inflight_count(const InFlight *f) NONNULL(1);

/* inflight_close - nobody enters any more. Whoever entered before is counted from now on.
 * Idempotent; any thread. */
void inflight_close(InFlight *f) NONNULL(1);
void inflight_open(InFlight *f) NONNULL(1);
bool inflight_is_closed(const InFlight *f) NONNULL(1);

/* inflight_co_wait - until nothing is in flight, or the gate has been opened, which is closed now.
 * Context: coroutine, any. */
co_fn void inflight_co_wait(InFlight *f) NONNULL(1);

#endif
