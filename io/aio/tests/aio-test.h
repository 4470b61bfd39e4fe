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

/*
 * A context whose home is the calling thread, on the monitor that test-monitor.c has chosen; the
 * test is skipped where that is refused.
 */
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

/* For tests that look at the ring itself or at what only a ring can do. */
static inline AioContext *test_ring_context(const AioParams *params)
{
    AioParams on_ring = params ? *params : (AioParams){ 0 };

    if (monitor_auto == AIO_MONITOR_EPOLL) {
        TEST_SKIP("is about io_uring");
    }
    on_ring.monitor = AIO_MONITOR_IO_URING;
    return test_context(&on_ring);
}

/* Have the contexts of this test use older kinds of ring, from @level on. */
static inline void test_ring_level(unsigned level)
{
    if (monitor_auto == AIO_MONITOR_EPOLL) {
        TEST_SKIP("is about io_uring");
    }
    monitor_auto = AIO_MONITOR_IO_URING;
    uring_first_level = level;
}

static inline AioStats test_stats(AioContext *ctx)
{
    AioStats stats;

    aio_context_stats(ctx, &stats);
    return stats;
}

/* aio_notify() as a source whose window is that long. */
static inline void test_open_window(AioContext *ctx, int64_t window_ns)
{
    AioPollSource *source = &ctx->poll.notified;

    source->window_ns = window_ns;
    source->missed = 0;
    if (!list_linked(&source->node)) {
        list_push_back(&ctx->poll.sources, &source->node);
    }
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
        test_ring_level(1);                                                                        \
        body_##group##_##sentence();                                                               \
    }                                                                                              \
    TEST(group, sentence##_on_a_plain_ring)                                                        \
    {                                                                                              \
        test_ring_level(2);                                                                        \
        body_##group##_##sentence();                                                               \
    }                                                                                              \
    static void body_##group##_##sentence(void)

#endif
