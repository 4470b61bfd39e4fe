/*
 * WaitSlot - where one coroutine waits until anybody, in any thread, wakes it
 *
 * Layer:     io/channel
 * Threading: one coroutine at a time waits, in whatever context it runs in; wait_slot_wake() any
 *            thread, any number of times.
 * Lifetime:  embedded, zero-initialised; nobody waits when it goes away, and who wakes it must have
 *            a reference to what it is embedded in.
 *
 * The waiter publishes itself, then looks at what it waits for once more; a waker changes that
 * first, then takes whoever is published. Both are sequentially consistent, so one of the two sees
 * the other. A pointer is taken by an exchange with NULL: exactly one waker gets it and schedules
 * the coroutine, or the waiter itself, which then need not yield.
 *
 *     wait_slot_prepare(&slot);
 *     if (what_we_wait_for()) {
 *         wait_slot_abandon(&slot);
 *     } else {
 *         wait_slot_yield(&slot, deadline_ns);
 *     }
 */
#ifndef IO_CHANNEL_WAIT_SLOT_H
#define IO_CHANNEL_WAIT_SLOT_H

#include "io/aio/aio.h"

typedef struct WaitSlot {
    Coroutine *_Atomic co; /* who waits and has not been taken */
} WaitSlot;

co_fn void wait_slot_prepare(WaitSlot *slot) NONNULL(1);
/* wait_slot_abandon - do not wait after all; yields for a moment if a waker was faster */
co_fn void wait_slot_abandon(WaitSlot *slot) NONNULL(1);
/* wait_slot_yield - Returns false when it was the deadline (-1 = none) that woke us */
co_fn bool wait_slot_yield(WaitSlot *slot, int64_t deadline_ns) NONNULL(1);
/*
 * wait_slot_yield_fd - the same, and @fd being ready wakes us, too
 * @events  POLLIN or POLLOUT. Nobody else watches @fd in this context meanwhile.
 */
co_fn bool wait_slot_yield_fd(WaitSlot *slot, int fd, short events, int64_t deadline_ns) NONNULL(1);
/* wait_slot_wake - continue the one that waits, if any. Any thread, in a coroutine or not. */
void wait_slot_wake(WaitSlot *slot) NONNULL(1);

#endif
