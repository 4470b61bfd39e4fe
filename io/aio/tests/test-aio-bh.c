/*
 * test-aio-bh.c - bottom halves: order, slices, cancelling, destroying, and other threads
 */
#include <pthread.h>
#include <signal.h>

#include "io/aio/tests/aio-test.h"
#include "io/base/test.h"

typedef struct Counted {
    AioBh *bh;
    int runs;
    int stop_after; /* schedules itself until then */
} Counted;

static void counted_bh(void *opaque)
{
    Counted *c = opaque;

    c->runs++;
    if (c->runs < c->stop_after) {
        aio_bh_schedule(c->bh);
    }
}

TEST(aio_bh, runs_once_however_often_it_was_scheduled)
{
    AioContext *ctx = test_context(NULL);
    Counted c = { .bh = aio_bh_create(ctx, counted_bh, &c) };

    EXPECT_FALSE(aio_poll(ctx, false));
    for (int i = 0; i < 3; i++) {
        aio_bh_schedule(c.bh);
    }
    EXPECT_EQ(c.runs, 0);
    EXPECT_TRUE(aio_poll(ctx, false));
    EXPECT_EQ(c.runs, 1);
    EXPECT_FALSE(aio_poll(ctx, false));
    aio_bh_schedule(c.bh);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(c.runs, 2);
    aio_bh_destroy(c.bh);
    aio_context_destroy(ctx);
}

TEST(aio_bh, scheduled_during_a_pass_waits_for_the_next)
{
    AioContext *ctx = test_context(NULL);
    Counted c = { .bh = aio_bh_create(ctx, counted_bh, &c), .stop_after = 5 };

    aio_bh_schedule(c.bh);
    for (int i = 1; i <= 5; i++) {
        EXPECT_TRUE(aio_poll(ctx, true));
        EXPECT_EQ(c.runs, i);
    }
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(c.runs, 5);
    aio_bh_destroy(c.bh);
    aio_context_destroy(ctx);
}

TEST(aio_bh, cancelled_does_not_run_until_scheduled_again)
{
    AioContext *ctx = test_context(NULL);
    Counted c = { .bh = aio_bh_create(ctx, counted_bh, &c) };

    aio_bh_schedule(c.bh);
    aio_bh_cancel(c.bh);
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(c.runs, 0);

    aio_bh_schedule(c.bh);
    aio_bh_cancel(c.bh);
    aio_bh_schedule(c.bh);
    EXPECT_TRUE(aio_poll(ctx, false));
    EXPECT_EQ(c.runs, 1);
    aio_bh_destroy(c.bh);
    aio_context_destroy(ctx);
}

static char order[16];
static char mark_a[] = "a", mark_b[] = "b", mark_c[] = "c", mark_n[] = "n";

static void append_bh(void *opaque)
{
    strcat(order, opaque);
}

TEST(aio_bh, run_in_the_order_in_which_they_were_scheduled)
{
    AioContext *ctx = test_context(NULL);

    aio_bh_schedule_oneshot(ctx, append_bh, mark_a);
    aio_bh_schedule_oneshot(ctx, append_bh, mark_b);
    aio_bh_schedule_oneshot(ctx, append_bh, mark_c);
    EXPECT_TRUE(aio_poll(ctx, false));
    EXPECT_STREQ(order, "abc");
    aio_context_destroy(ctx);
}

static void nesting_bh(void *opaque)
{
    AioContext *ctx = opaque;

    strcat(order, "[");
    aio_bh_schedule_oneshot(ctx, append_bh, mark_n);
    EXPECT_TRUE(aio_poll(ctx, false));
    strcat(order, "]");
}

TEST(aio_bh, inner_pass_runs_the_rest_of_the_outer_slice_first)
{
    AioContext *ctx = test_context(NULL);

    aio_bh_schedule_oneshot(ctx, append_bh, mark_a);
    aio_bh_schedule_oneshot(ctx, nesting_bh, ctx);
    aio_bh_schedule_oneshot(ctx, append_bh, mark_b);
    EXPECT_TRUE(aio_poll(ctx, false));
    EXPECT_STREQ(order, "a[bn]");
    EXPECT_FALSE(aio_poll(ctx, false));
    aio_context_destroy(ctx);
}

static void destroying_bh(void *opaque)
{
    Counted *c = opaque;

    c->runs++;
    aio_bh_destroy(c->bh);
}

TEST(aio_bh, may_destroy_itself_and_others_that_are_scheduled)
{
    AioContext *ctx = test_context(NULL);
    Counted other = { .bh = aio_bh_create(ctx, counted_bh, &other) };
    Counted self = { .bh = aio_bh_create(ctx, destroying_bh, &self) };
    Counted killer = { .bh = other.bh };

    aio_bh_schedule(self.bh);
    aio_bh_schedule_oneshot(ctx, destroying_bh, &killer);
    aio_bh_schedule(other.bh);
    EXPECT_TRUE(aio_poll(ctx, false));
    EXPECT_EQ(self.runs, 1);
    EXPECT_EQ(killer.runs, 1);
    EXPECT_EQ(other.runs, 0);
    while (aio_poll(ctx, false)) {
    }
    aio_bh_destroy(NULL);
    aio_context_destroy(ctx);
}

/* --- idle ones --- */

TEST(aio_bh, idle_one_waits_for_a_pass_with_nothing_else_to_do)
{
    AioContext *ctx = test_context(NULL);
    Counted idle = { .bh = aio_bh_create(ctx, counted_bh, &idle) };
    Counted busy = { .bh = aio_bh_create(ctx, counted_bh, &busy), .stop_after = 5 };

    aio_bh_schedule_idle(idle.bh);
    aio_bh_schedule_idle(idle.bh);
    aio_bh_schedule(busy.bh);
    for (int i = 1; i <= 5; i++) {
        EXPECT_TRUE(aio_poll(ctx, true));
        EXPECT_EQ(busy.runs, i);
        EXPECT_EQ(idle.runs, 0);
    }
    EXPECT_TRUE(aio_poll(ctx, true)); /* does not sleep over it */
    EXPECT_EQ(idle.runs, 1);
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(idle.runs, 1);
    aio_bh_destroy(idle.bh);
    aio_bh_destroy(busy.bh);
    aio_context_destroy(ctx);
}

TEST(aio_bh, idle_one_is_overtaken_cancelled_and_destroyed)
{
    AioContext *ctx = test_context(NULL);
    Counted idle = { .bh = aio_bh_create(ctx, counted_bh, &idle) };
    Counted busy = { .bh = aio_bh_create(ctx, counted_bh, &busy), .stop_after = 100 };

    aio_bh_schedule(busy.bh);
    aio_bh_schedule_idle(idle.bh);
    EXPECT_TRUE(aio_poll(ctx, false)); /* it is in the list by now */
    EXPECT_EQ(idle.runs, 0);
    aio_bh_schedule(idle.bh);
    EXPECT_TRUE(aio_poll(ctx, false));
    EXPECT_EQ(idle.runs, 1);
    aio_bh_cancel(busy.bh);
    EXPECT_FALSE(aio_poll(ctx, false)); /* once for both */
    EXPECT_EQ(idle.runs, 1);

    aio_bh_schedule(busy.bh);
    aio_bh_schedule_idle(idle.bh);
    EXPECT_TRUE(aio_poll(ctx, false));
    aio_bh_cancel(idle.bh);
    aio_bh_schedule_idle(idle.bh);
    aio_bh_cancel(idle.bh); /* on its way */
    aio_bh_cancel(busy.bh);
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(idle.runs, 1);

    aio_bh_schedule(busy.bh);
    aio_bh_schedule_idle(idle.bh);
    EXPECT_TRUE(aio_poll(ctx, false));
    aio_bh_destroy(idle.bh);
    aio_bh_cancel(busy.bh);
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(idle.runs, 1);
    aio_bh_destroy(busy.bh);
    aio_context_destroy(ctx);
}

typedef struct IdleNest {
    AioContext *ctx;
    Counted *other;
    int runs;
} IdleNest;

static void idle_nesting_bh(void *opaque)
{
    IdleNest *nest = opaque;

    nest->runs++;
    AIO_WAIT_WHILE(nest->ctx, nest->other->runs == 0);
}

TEST(aio_bh, inner_pass_runs_the_rest_of_the_idle_ones_and_a_new_one_waits)
{
    AioContext *ctx = test_context(NULL);
    Counted other = { .bh = aio_bh_create(ctx, counted_bh, &other) };
    IdleNest nest = { .ctx = ctx, .other = &other };
    AioBh *nesting = aio_bh_create(ctx, idle_nesting_bh, &nest);

    aio_bh_schedule_idle(nesting);
    aio_bh_schedule_idle(other.bh);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(nest.runs, 1);
    EXPECT_EQ(other.runs, 1);
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(nest.runs, 1);
    EXPECT_EQ(other.runs, 1);
    aio_bh_destroy(nesting);
    aio_bh_destroy(other.bh);
    aio_context_destroy(ctx);
}

static void *idle_thread(void *opaque)
{
    aio_bh_schedule_idle(opaque);
    return NULL;
}

TEST(aio_bh, idle_one_scheduled_by_another_thread_ends_the_sleep)
{
    AioContext *ctx = test_context(NULL);
    Counted idle = { .bh = aio_bh_create(ctx, counted_bh, &idle) };

    for (int i = 1; i <= 100; i++) {
        pthread_t thread;

        ASSERT_EQ(pthread_create(&thread, NULL, idle_thread, idle.bh), 0);
        AIO_WAIT_WHILE(ctx, idle.runs < i);
        pthread_join(thread, NULL);
    }
    aio_bh_destroy(idle.bh);
    aio_context_destroy(ctx);
}

/* --- other threads --- */

#define PRODUCERS 3
#define ROUNDS    5000

typedef struct Shared {
    AioContext *ctx;
    AioBh *bh;
    int published[PRODUCERS]; /* plain: the bottom half's ordering must cover it */
    int seen[PRODUCERS];
    atomic_int finished;
} Shared;

typedef struct Producer {
    Shared *shared;
    unsigned index;
    pthread_t thread;
    atomic_int acknowledged;
} Producer;

static Producer producers[PRODUCERS];

static void consume_bh(void *opaque)
{
    Shared *s = opaque;

    for (unsigned i = 0; i < PRODUCERS; i++) {
        atomic_store_explicit(&producers[i].acknowledged, 1, memory_order_release);
    }
    s->seen[0]++;
}

static void *producer_thread(void *opaque)
{
    Producer *p = opaque;

    for (int i = 0; i < ROUNDS; i++) {
        /* Each schedule must be followed by a run that begins after it: wait for that run. */
        atomic_store_explicit(&p->acknowledged, 0, memory_order_seq_cst);
        aio_bh_schedule(p->shared->bh);
        while (!atomic_load_explicit(&p->acknowledged, memory_order_acquire)) {
            sched_yield();
        }
    }
    atomic_fetch_add(&p->shared->finished, 1);
    aio_notify(p->shared->ctx);
    return NULL;
}

TEST(aio_bh, no_schedule_from_another_thread_is_lost)
{
    AioContext *ctx = test_context(NULL);
    Shared s = { .ctx = ctx, .bh = aio_bh_create(ctx, consume_bh, &s) };

    for (unsigned i = 0; i < PRODUCERS; i++) {
        producers[i] = (Producer){ .shared = &s, .index = i };
        ASSERT_EQ(pthread_create(&producers[i].thread, NULL, producer_thread, &producers[i]), 0);
    }
    AIO_WAIT_WHILE(ctx, atomic_load(&s.finished) < PRODUCERS);
    for (unsigned i = 0; i < PRODUCERS; i++) {
        pthread_join(producers[i].thread, NULL);
    }
    EXPECT_GE(s.seen[0], ROUNDS);
    aio_bh_destroy(s.bh);
    aio_context_destroy(ctx);
}

static int oneshot_sum;

static void oneshot_bh(void *opaque)
{
    int *value = opaque;

    oneshot_sum += *value;
    free(value);
}

static void *oneshot_thread(void *opaque)
{
    for (int i = 0; i < ROUNDS; i++) {
        int *value = malloc(sizeof(*value));

        *value = 1;
        aio_bh_schedule_oneshot(opaque, oneshot_bh, value);
    }
    return NULL;
}

TEST(aio_bh, every_oneshot_of_every_thread_runs_once_and_sees_its_data)
{
    AioContext *ctx = test_context(NULL);
    pthread_t threads[PRODUCERS];

    for (unsigned i = 0; i < PRODUCERS; i++) {
        ASSERT_EQ(pthread_create(&threads[i], NULL, oneshot_thread, ctx), 0);
    }
    AIO_WAIT_WHILE(ctx, oneshot_sum < PRODUCERS * ROUNDS);
    for (unsigned i = 0; i < PRODUCERS; i++) {
        pthread_join(threads[i], NULL);
    }
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(oneshot_sum, PRODUCERS * ROUNDS);
    aio_context_destroy(ctx);
}

/* --- the cheap path --- */

TEST(aio_bh, nobody_asleep_means_no_write_to_the_eventfd)
{
    AioContext *ctx = test_context(NULL);
    Counted c = { .bh = aio_bh_create(ctx, counted_bh, &c), .stop_after = 100 };
    AioStats stats;

    aio_bh_schedule(c.bh);
    while (c.runs < 100) {
        aio_poll(ctx, true);
    }
    aio_context_stats(ctx, &stats);
    EXPECT_EQ(stats.notifies, 0);
    EXPECT_EQ(stats.enters, 0);
    EXPECT_EQ(stats.bhs, 100);
    aio_bh_destroy(c.bh);
    aio_context_destroy(ctx);
}

/* The condition that AIO_WAIT_WHILE() looks at becomes false just after it was looked at. */
TEST(aio_bh, notification_between_the_look_and_the_pass_keeps_it_from_sleeping)
{
    AioContext *ctx = test_context(NULL);
    AioContext *polling = test_context(&(AioParams){ .poll_max_ns = AIO_POLL_MAX_NS_DEFAULT });

    aio_notify(polling);
    EXPECT_FALSE(aio_poll(polling, true)); /* nothing was run, and it has returned */
    aio_context_destroy(polling);

    aio_context_enter(ctx);
    aio_notify(ctx);
    EXPECT_FALSE(aio_poll(ctx, true));
    EXPECT_EQ(test_stats(ctx).enters, 0);
    aio_context_destroy(ctx);
}

static AioBh *signal_target;

static void schedule_on_signal(int signo)
{
    aio_bh_schedule(signal_target);
}

TEST(aio_bh, scheduled_by_a_signal_handler_ends_the_sleep)
{
    AioContext *ctx = test_context(NULL);
    Counted c = { .bh = aio_bh_create(ctx, counted_bh, &c) };
    struct sigaction action = { .sa_handler = schedule_on_signal };

    signal_target = c.bh;
    sigaction(SIGALRM, &action, NULL);
    for (int i = 1; i <= 20; i++) {
        ualarm(2000, 0);
        AIO_WAIT_WHILE(ctx, c.runs < i);
    }
    aio_bh_destroy(c.bh);
    aio_context_destroy(ctx);
}

TEST_MAIN()
