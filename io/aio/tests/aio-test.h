/*
 * aio-test.h - what the tests of this folder share
 *
 * Layer: io/aio tests
 */
#ifndef IO_AIO_TESTS_AIO_TEST_H
#define IO_AIO_TESTS_AIO_TEST_H

#include <stdio.h>

#include "io/aio/aio-int.h"
#include "io/base/test.h"

/* A context whose home is the calling thread; the test is skipped where io_uring is refused. */
static inline AioContext *test_context(const AioParams *params)
{
    Error err = { 0 };
    AioContext *ctx = aio_context_create("test", params, &err);

    if (!ctx) {
        TEST_SKIP("%s", err.msg);
    }
    aio_context_enter(ctx);
    return ctx;
}

static inline AioStats test_stats(AioContext *ctx)
{
    AioStats stats;

    aio_context_stats(ctx, &stats);
    return stats;
}

/* A test that is run with each set of ring flags: that of 6.1, of 5.19 and of 5.11. */
#define TEST_ON_EACH_RING(group, sentence)                                                         \
    static main_fn void body_##group##_##sentence(void);                                           \
    TEST(group, sentence)                                                                          \
    {                                                                                              \
        body_##group##_##sentence();                                                               \
    }                                                                                              \
    TEST(group, sentence##_without_deferred_task_work)                                             \
    {                                                                                              \
        uring_first_level = 1;                                                                     \
        body_##group##_##sentence();                                                               \
    }                                                                                              \
    TEST(group, sentence##_on_a_plain_ring)                                                        \
    {                                                                                              \
        uring_first_level = 2;                                                                     \
        body_##group##_##sentence();                                                               \
    }                                                                                              \
    static void body_##group##_##sentence(void)

#endif
