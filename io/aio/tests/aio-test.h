/*
 * aio-test.h - what the tests of this folder share
 *
 * Layer: io/aio tests
 */
#ifndef IO_AIO_TESTS_AIO_TEST_H
#define IO_AIO_TESTS_AIO_TEST_H

#include <stdio.h>

#include "io/aio/aio.h"
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

#endif
