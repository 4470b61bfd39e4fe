/*
 * CoSleep - a coroutine's sleep that another thread can end early
 *
 * Layer:     io/aio
 * Threading: one coroutine sleeps, in any context; any thread, in a coroutine or not, wakes it.
 * Lifetime:  embedded or in the sleeper's frame, co_sleep_init(); it outlives the last
 *            co_sleep_wake(). Nothing to finish.
 *
 * A wake-up is never lost: one that comes while nobody sleeps ends the next sleep at once. Several
 * of them are one.
 */
#ifndef IO_AIO_CO_SLEEP_H
#define IO_AIO_CO_SLEEP_H

#include "io/aio/aio.h"

typedef struct CoSleep {
    _Atomic uintptr_t state; /* co-sleep.c */
} CoSleep;

void co_sleep_init(CoSleep *sleep) NONNULL(1);
/* co_sleep_ns - true when it lasted that long, false when it was ended early */
co_fn bool co_sleep_ns(CoSleep *sleep, int64_t duration_ns) NONNULL(1);
/* co_sleep_until - the same with an absolute end */
co_fn bool co_sleep_until(CoSleep *sleep, int64_t deadline_ns) NONNULL(1);
/* co_sleep_wake - end the sleep, or the next one. Any thread. */
void co_sleep_wake(CoSleep *sleep) NONNULL(1);

#endif
