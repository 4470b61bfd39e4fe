/*
 * wait-slot.c - one coroutine that waits, and whoever wakes it
 *
 *     empty --waiter [wait_slot_prepare]--> published
 *     published --waker [wait_slot_wake: exchange]--> empty, and the coroutine is scheduled
 *     published --waiter [wait_slot_abandon: exchange]--> empty, and it runs on
 *
 * Invariants:
 *   (1) Who takes the pointer out wakes the coroutine exactly once; nobody else does. So a
 *       coroutine that finds itself taken yields once and is sure to be continued.
 *   (2) A waker may come between the publishing and the yield: waking goes to the coroutine's home,
 *       which is the thread that it is still running in.
 *   (3) The timer and the fd handler are gone when wait_slot_yield() returns.
 */
#include "io/channel/wait-slot.h"

#include <poll.h>

typedef struct Alarm {
    AioTimer timer;
    WaitSlot *slot;
    bool rang; /* it was the one that took the coroutine */
} Alarm;

static Coroutine *slot_take(WaitSlot *slot)
{
    return atomic_exchange(&slot->co, NULL);
}

void wait_slot_prepare(WaitSlot *slot)
{
    Coroutine *before = atomic_exchange(&slot->co, co_self());

    assert(!before); /* one at a time */
}

void wait_slot_abandon(WaitSlot *slot)
{
    if (!slot_take(slot)) {
        co_yield();
    }
}

void wait_slot_wake(WaitSlot *slot)
{
    Coroutine *co = slot_take(slot);

    if (co) {
        aio_co_wake(co);
    }
}

static void alarm_cb(void *opaque)
{
    Alarm *alarm = opaque;
    Coroutine *co = slot_take(alarm->slot);

    if (co) {
        alarm->rang = true;
        aio_co_wake(co);
    }
}

bool wait_slot_yield(WaitSlot *slot, int64_t deadline_ns)
{
    Alarm alarm = { .slot = slot };

    if (deadline_ns >= 0) {
        aio_timer_init(&alarm.timer, aio_current(), alarm_cb, &alarm);
        aio_timer_arm(&alarm.timer, deadline_ns);
    }
    co_yield();
    if (deadline_ns >= 0) {
        aio_timer_disarm(&alarm.timer);
    }
    return !alarm.rang;
}

static void slot_ready_cb(void *opaque)
{
    wait_slot_wake(opaque);
}

bool wait_slot_yield_fd(WaitSlot *slot, int fd, short events, int64_t deadline_ns)
{
    static const AioHandlerOps in_ops = { .read = slot_ready_cb };
    static const AioHandlerOps out_ops = { .write = slot_ready_cb };
    AioContext *ctx = aio_current();

    aio_set_fd_handler(ctx, fd, events == POLLIN ? &in_ops : &out_ops, slot);
    bool woken = wait_slot_yield(slot, deadline_ns);

    aio_set_fd_handler(ctx, fd, NULL, NULL);
    return woken;
}
