/*
 * virtual-clock.h - time that passes when a test says so
 *
 * Layer:     block/tests; the test is linked with virtual_clock_args, which put this between
 *            block/ and io/aio: aio_now_ns(), aio_timer_arm(), aio_timer_disarm()
 * Threading: main thread, contexts stepped by hand
 */
#ifndef BLOCK_TESTS_VIRTUAL_CLOCK_H
#define BLOCK_TESTS_VIRTUAL_CLOCK_H

#include "block/tests/block-test.h"

#define VIRTUAL_TIMERS_MAX 64

/* Armed timers. */
unsigned virtual_nb_timers(void);
/* Let the time pass, each timer being called when it is due, until @now_ns; then settle. */
void virtual_clock_advance_to(Env *env, int64_t now_ns);

#endif
