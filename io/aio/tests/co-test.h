/*
 * co-test.h - what the tests of coroutine locks share: contexts stepped by hand, or in threads
 *
 * Layer: io/aio tests
 */
#ifndef IO_AIO_TESTS_CO_TEST_H
#define IO_AIO_TESTS_CO_TEST_H

#include "io/aio/iothread.h"
#include "io/aio/tests/aio-test.h"

#define CO_TEST_CONTEXTS 3
#define CO_TEST_THREADS  8

/* The test's thread is the home of all of these, and in the first one unless it steps. */
static AioContext *test_ctx[CO_TEST_CONTEXTS];

static inline void co_test_begin(void)
{
    for (unsigned i = CO_TEST_CONTEXTS; i-- > 0;) {
        test_ctx[i] = test_context(NULL);
    }
    aio_context_set_main(test_ctx[0]);
}

static inline void co_test_end(void)
{
    for (unsigned i = CO_TEST_CONTEXTS; i-- > 0;) {
        EXPECT_EQ(test_ctx[i]->nb_timers, 0);
        aio_context_enter(test_ctx[i]);
        aio_context_destroy(test_ctx[i]);
    }
}

/* Passes of one context until it has nothing to do; how many coroutines were continued. */
static inline unsigned co_test_step(unsigned i)
{
    uint64_t before = test_stats(test_ctx[i]).bhs;

    aio_context_enter(test_ctx[i]);
    while (aio_poll(test_ctx[i], false)) {
    }
    aio_context_enter(test_ctx[0]);
    return test_stats(test_ctx[i]).bhs - before;
}

/* All contexts, until none has anything to do. */
static inline unsigned co_test_settle(void)
{
    unsigned total = 0, ran;

    do {
        ran = 0;
        for (unsigned i = 0; i < CO_TEST_CONTEXTS; i++) {
            ran += co_test_step(i);
        }
        total += ran;
    } while (ran);
    return total;
}

/* Start a coroutine in a context and run it to its first yield. */
static inline void co_test_start(unsigned i, CoroutineEntry *entry, void *opaque)
{
    aio_context_enter(test_ctx[i]);
    co_enter(co_create(entry, opaque));
    aio_context_enter(test_ctx[0]);
}

/* Wake a coroutine in its home, from outside of any. */
static inline void co_test_wake(Coroutine *co)
{
    aio_context_enter(co_home(co));
    aio_co_wake(co);
    aio_context_enter(test_ctx[0]);
}

/* --- threads --- */

static _Atomic unsigned nb_actors_left;
static AioContext *actors_home;

/* The last thing an actor does. */
static inline void co_test_actor_ends(void)
{
    if (atomic_fetch_sub(&nb_actors_left, 1) == 1) {
        aio_notify(actors_home);
    }
}

/* Run nb_actors coroutines entry(&opaques[i]), spread over eight threads, to their ends. */
static inline main_fn void co_test_run_actors(CoroutineEntry *entry, unsigned nb_actors,
                                              void *opaques, size_t opaque_bytes)
{
    IOThread *threads[CO_TEST_THREADS];

    actors_home = test_context(NULL);
    atomic_store(&nb_actors_left, nb_actors);
    for (unsigned t = 0; t < CO_TEST_THREADS; t++) {
        AioParams params = { .poll_max_ns = t % 4 == 3 ? 0 : 50000 }; /* asleep, awake */
        Error err;

        threads[t] = iothread_create("test", &params, &err);
        if (!threads[t]) {
            TEST_SKIP("%s", err.msg);
        }
    }
    for (unsigned i = 0; i < nb_actors; i++) {
        Coroutine *co = co_create(entry, (char *)opaques + i * opaque_bytes);

        aio_co_schedule(iothread_context(threads[i % CO_TEST_THREADS]), co);
    }
    AIO_WAIT_WHILE(actors_home, atomic_load(&nb_actors_left) > 0);
    for (unsigned t = 0; t < CO_TEST_THREADS; t++) {
        iothread_unref(threads[t]);
    }
    aio_context_destroy(actors_home);
}

#endif
