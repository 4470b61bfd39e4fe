/*
 * test-aio-external.c - external handlers switched off for a while: none is called, none is lost
 */
#include "io/aio/tests/aio-test.h"

#define US 1000LL

/* Like a virtqueue: a counter in memory, and an eventfd when notifications are on. */
typedef struct Queue {
    AioContext *ctx;
    EventNotifier en;
    int available, consumed;
    bool notify;
    bool internal;
    int begun, ended, reads, probes;
    bool switch_off; /* when it is called */
} Queue;

static bool queue_poll(void *opaque)
{
    Queue *q = opaque;

    q->probes++;
    return q->available != q->consumed;
}

static void queue_take(void *opaque)
{
    Queue *q = opaque;

    EXPECT_TRUE(q->internal || q->ctx->external_off == 0);
    q->consumed = q->available;
    if (q->switch_off) {
        q->switch_off = false;
        aio_external_off(q->ctx);
    }
}

static void queue_read(void *opaque)
{
    Queue *q = opaque;

    q->reads++;
    event_notifier_test_and_clear(&q->en);
    queue_take(q);
}

static void queue_begin(void *opaque)
{
    Queue *q = opaque;

    EXPECT_EQ(q->begun++, q->ended);
    q->notify = false;
}

static void queue_end(void *opaque)
{
    Queue *q = opaque;

    EXPECT_EQ(q->begun, ++q->ended);
    q->notify = true;
}

static const AioHandlerOps queue_ops = {
    .read = queue_read,
    .poll = queue_poll,
    .poll_ready = queue_take,
    .poll_begin = queue_begin,
    .poll_end = queue_end,
    .external = true,
};
static const AioHandlerOps plain_ops = { .read = queue_read, .external = true };
static const AioHandlerOps internal_ops = { .read = queue_read };

static void queue_produce(Queue *q)
{
    q->available++;
    if (q->notify) {
        event_notifier_set(&q->en);
    }
}

static void queue_init(Queue *q, AioContext *ctx, const AioHandlerOps *ops)
{
    *q = (Queue){ .ctx = ctx, .notify = true };
    ASSERT_EQ(event_notifier_open(&q->en, NULL), 0);
    aio_set_event_notifier(ctx, &q->en, ops, q);
}

static void queue_finish(Queue *q)
{
    aio_set_event_notifier(q->ctx, &q->en, NULL, NULL);
    event_notifier_close(&q->en);
}

static void passes(AioContext *ctx, int n)
{
    for (int i = 0; i < n; i++) {
        aio_poll(ctx, false);
    }
}

static void timer_cb(void *opaque)
{
    ++*(int *)opaque;
}

TEST_ON_EACH_RING(aio_external, nothing_is_called_while_off_and_nothing_is_lost)
{
    AioContext *ctx = test_context(NULL);
    Queue plain, probed, internal;
    AioTimer timer;
    int fired = 0;

    queue_init(&plain, ctx, &plain_ops);
    queue_init(&probed, ctx, &queue_ops);
    queue_init(&internal, ctx, &internal_ops);
    internal.internal = true;
    aio_timer_init(&timer, ctx, timer_cb, &fired);
    for (int i = 1; i <= 5; i++) {
        if (i % 2) {
            aio_poll(ctx, false); /* they are armed when they are switched off, or are not */
        }
        aio_external_off(ctx);
        aio_external_off(ctx);
        queue_produce(&plain);
        queue_produce(&probed);
        passes(ctx, 3);
        aio_external_on(ctx);
        passes(ctx, 3);
        EXPECT_EQ(plain.consumed, i - 1);
        EXPECT_EQ(probed.consumed, i - 1);
        uint64_t before = test_stats(ctx).passes;

        aio_timer_arm(&timer, aio_now_ns() + 2000 * US);
        AIO_WAIT_WHILE(ctx, fired < i);
        EXPECT_LE(test_stats(ctx).passes - before, 20); /* what is held back keeps nobody awake */
        queue_produce(&internal);
        AIO_WAIT_WHILE(ctx, internal.reads < i);
        aio_external_on(ctx);
        AIO_WAIT_WHILE(ctx, plain.consumed < i || probed.consumed < i);
    }
    queue_finish(&plain);
    queue_finish(&probed);
    queue_finish(&internal);
    aio_context_destroy(ctx);
}

/* Notifications were off, so nothing but the second look finds it. */
TEST(aio_external, what_came_before_the_window_was_closed_is_found_when_on_again)
{
    AioParams params = { .poll_max_ns = 1000 * 1000 * US, .poll_shrink = 2 };
    AioContext *ctx = test_context(&params);
    Queue q;

    queue_init(&q, ctx, &queue_ops);
    test_open_window(ctx, 100 * US);
    queue_produce(&q);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(q.begun, 1);
    EXPECT_FALSE(q.notify);
    event_notifier_test_and_clear(&q.en);
    queue_produce(&q); /* without a notification */
    aio_external_off(ctx);
    EXPECT_EQ(q.ended, 1);
    EXPECT_TRUE(q.notify);
    int probes = q.probes, fired = 0;
    AioTimer timer;

    aio_timer_init(&timer, ctx, timer_cb, &fired);
    aio_timer_arm(&timer, aio_now_ns() + 200 * US);
    AIO_WAIT_WHILE(ctx, !fired); /* with a window for the others */
    EXPECT_GT(test_stats(ctx).polls, 1);
    EXPECT_EQ(q.probes, probes);
    EXPECT_EQ(q.begun, 1);
    EXPECT_EQ(q.consumed, 1);
    aio_external_on(ctx);
    passes(ctx, 1); /* which asks no probe by itself */
    EXPECT_EQ(q.consumed, 2);
    queue_finish(&q);
    EXPECT_EQ(q.begun, q.ended);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_RING(aio_external, switched_off_and_on_with_nothing_in_between)
{
    AioContext *ctx = test_context(NULL);
    Queue q;

    queue_init(&q, ctx, &plain_ops);
    for (int i = 1; i <= 3; i++) {
        for (int n = 0; n < i; n++) {
            aio_external_off(ctx);
            aio_external_on(ctx); /* at first before the kernel knows of it, then while it does */
        }
        passes(ctx, 2);
        queue_produce(&q);
        passes(ctx, 5);
        EXPECT_EQ(q.reads, i); /* one event, one call */
    }
    queue_finish(&q);
    aio_context_destroy(ctx);
}

TEST(aio_external, handler_that_switches_all_off_is_the_last_to_be_called)
{
    AioContext *ctx = test_context(NULL);
    Queue a, b;

    queue_init(&a, ctx, &plain_ops);
    queue_init(&b, ctx, &plain_ops);
    aio_poll(ctx, false);
    queue_produce(&a);
    queue_produce(&b);
    a.switch_off = b.switch_off = true;
    AIO_WAIT_WHILE(ctx, ctx->external_off == 0);
    passes(ctx, 5);
    EXPECT_EQ(a.reads + b.reads, 1);
    a.switch_off = b.switch_off = false;
    aio_external_on(ctx);
    AIO_WAIT_WHILE(ctx, a.consumed + b.consumed < 2);
    queue_finish(&a);
    queue_finish(&b);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_RING(aio_external, handler_may_come_and_go_while_off)
{
    AioContext *ctx = test_context(NULL);
    Queue old, new;

    queue_init(&old, ctx, &queue_ops);
    aio_poll(ctx, false);
    aio_external_off(ctx);
    queue_produce(&old);
    passes(ctx, 3);
    queue_finish(&old);
    queue_init(&new, ctx, &queue_ops); /* the same number, most likely */
    queue_produce(&new);
    passes(ctx, 3);
    EXPECT_EQ(old.consumed, 0);
    EXPECT_EQ(new.consumed, 0);
    aio_external_on(ctx);
    AIO_WAIT_WHILE(ctx, new.consumed < 1);
    aio_external_off(ctx);
    queue_finish(&new);
    aio_external_on(ctx);
    passes(ctx, 3);
    EXPECT_TRUE(list_empty(&ctx->dead_handlers));
    aio_context_destroy(ctx);
}

TEST_MAIN()
