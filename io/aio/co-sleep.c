/*
 * co-sleep.c - a sleep that can be ended early
 *
 * One word says what there is:
 *
 *     AWAKE = 0    WOKEN = 1    otherwise the address of the coroutine that sleeps
 *
 *     AWAKE -> co     the sleeper     compare-exchange, release
 *     WOKEN -> AWAKE  the sleeper     exchange, acquire; it does not sleep, or no longer
 *     co -> WOKEN     co_sleep_wake   exchange, acquire and release; then wakes co
 *     AWAKE -> WOKEN  co_sleep_wake   the same; nobody to wake
 *     co -> AWAKE     the timer       compare-exchange; then wakes co
 *
 * Who takes the address out wakes the coroutine, so it is woken once. The sleeper puts it in only
 * where nobody woke it before (the compare-exchange), so no wake-up falls between looking and
 * sleeping. co_sleep_wake() does not touch the CoSleep after its exchange.
 *
 * Barriers: the exchange in co_sleep_wake() pairs with the sleeper's exchange, which therefore sees
 * what the waker wrote before; and with the sleeper's compare-exchange, as the waker goes on to
 * look at the coroutine.
 */
#include "io/aio/co-sleep.h"

#define AWAKE ((uintptr_t)0)
#define WOKEN ((uintptr_t)1)

typedef struct Alarm {
    AioTimer timer;
    CoSleep *sleep;
    Coroutine *co;
} Alarm;

void co_sleep_init(CoSleep *sleep)
{
    atomic_init(&sleep->state, AWAKE);
}

static void alarm_cb(void *opaque)
{
    Alarm *alarm = opaque;
    uintptr_t sleeping = (uintptr_t)alarm->co;

    /* relaxed: the coroutine put it there in this thread */
    if (atomic_compare_exchange_strong_explicit(&alarm->sleep->state, &sleeping, AWAKE,
                                                memory_order_relaxed, memory_order_relaxed)) {
        aio_co_wake(alarm->co);
    }
}

bool co_sleep_until(CoSleep *sleep, int64_t deadline_ns)
{
    Alarm alarm = { .sleep = sleep, .co = co_self() };
    uintptr_t state = AWAKE;

    /* release: pairs with co_sleep_wake() */
    if (atomic_compare_exchange_strong_explicit(&sleep->state, &state, (uintptr_t)alarm.co,
                                                memory_order_release, memory_order_relaxed)) {
        aio_timer_init(&alarm.timer, aio_current(), alarm_cb, &alarm);
        aio_timer_arm(&alarm.timer, deadline_ns);
        co_yield();
        aio_timer_disarm(&alarm.timer);
    } else {
        assert(state == WOKEN); /* one coroutine at a time */
    }
    /* acquire: pairs with co_sleep_wake() */
    state = atomic_exchange_explicit(&sleep->state, AWAKE, memory_order_acquire);
    assert(state == AWAKE || state == WOKEN); /* who else has woken us? */
    return state == AWAKE;
}

bool co_sleep_ns(CoSleep *sleep, int64_t duration_ns)
{
    return co_sleep_until(sleep, aio_now_ns() + MAX(duration_ns, 0));
}

void co_sleep_wake(CoSleep *sleep)
{
    /* pairs with co_sleep_until(), both ways */
    uintptr_t state = atomic_exchange_explicit(&sleep->state, WOKEN, memory_order_acq_rel);

    if (state != AWAKE && state != WOKEN) {
        aio_co_wake((Coroutine *)state);
    }
}
