/*
 * co-wait.c - coroutines in line
 *
 * A waiter's state changes once, under the line's lock, and who changes it owns the waking:
 *
 *     CO_WAITING -> CO_GRANTED    by whoever has something for it   [co_line_grant]
 *     CO_WAITING -> CO_TIMED_OUT  by the timer in the waiter's home [deadline_cb]
 *
 * Invariants:
 *   (1) A waiter is in the line's list exactly while it is CO_WAITING. So it is taken out by one of
 *       the two, woken once, and what was granted is never lost to a deadline that passes
 *       meanwhile.
 *   (2) The condition that a coroutine waits for and its place in line are changed and looked at in
 *       one critical section (of the line's lock, or for a CoQueue of the caller's CoMutex, which
 *       is released after it stands in line). So no wake-up falls between looking and waiting.
 *   (3) Between the change of state and the wake the waiter's frame lives: its coroutine does not
 *       continue before it is woken. Each is read, its link first, before it is woken and not
 *       touched after.
 *   (4) A waiter may be granted before it has reached its co_yield(): see co-mutex.c.
 *   (5) The timer is armed and disarmed in the same context, the waiter's home, because who waits
 *       is woken there.
 *
 * Barriers: the line's lock orders everything but the waiter's last look at its state, which
 * comes after aio_co_wake(), and sees what was written before that.
 */
#include "io/aio/co-wait.h"

void co_line_init(CoLine *line)
{
    pthread_mutex_init(&line->lock, NULL);
    list_init(&line->waiters);
}

void co_line_finish(CoLine *line)
{
    if (line) {
        assert(list_empty(&line->waiters));
        pthread_mutex_destroy(&line->lock);
    }
}

static void waiter_init(CoLine *line, CoWaiter *waiter, int kind)
{
    *waiter = (CoWaiter){ .line = line, .co = co_self(), .kind = kind };
}

void co_line_append(CoLine *line, CoWaiter *waiter, int kind)
{
    waiter_init(line, waiter, kind);
    list_push_back(&line->waiters, &waiter->node);
}

void co_line_push_front(CoLine *line, CoWaiter *waiter, int kind)
{
    waiter_init(line, waiter, kind);
    list_push_front(&line->waiters, &waiter->node);
}

static void deadline_cb(void *opaque)
{
    CoWaiter *waiter = opaque;
    CoLine *line = waiter->line;

    co_line_lock(line);
    bool timed_out = waiter->state == CO_WAITING;

    if (timed_out) {
        list_remove(&waiter->node);
        waiter->state = CO_TIMED_OUT;
    }
    co_line_unlock(line);
    if (timed_out) {
        aio_co_wake(waiter->co);
    }
}

int co_line_wait(CoWaiter *waiter, int64_t deadline_ns)
{
    if (deadline_ns == CO_NO_DEADLINE) {
        co_yield();
    } else {
        AioTimer timer;

        aio_timer_init(&timer, aio_current(), deadline_cb, waiter);
        aio_timer_arm(&timer, deadline_ns);
        co_yield();
        aio_timer_disarm(&timer);
    }
    assert(waiter->state != CO_WAITING); /* who else has woken us? */
    return waiter->state == CO_GRANTED ? 0 : -ETIMEDOUT;
}

void co_line_grant(CoWaiter *waiter, CoGrants *grants)
{
    assert(waiter->state == CO_WAITING);
    list_remove(&waiter->node);
    waiter->state = CO_GRANTED;
    if (grants->last) {
        grants->last->next_granted = waiter;
    } else {
        grants->first = waiter;
    }
    grants->last = waiter;
}

void co_grants_wake(CoGrants *grants)
{
    CoWaiter *waiter = grants->first;

    while (waiter) {
        CoWaiter *next = waiter->next_granted;

        aio_co_wake(waiter->co);
        waiter = next;
    }
}
