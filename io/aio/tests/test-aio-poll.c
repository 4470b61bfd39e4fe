/*
 * test-aio-poll.c - adaptive polling: pairing of begin and end, nothing lost at its end, the
 * window's size, and that busy passes make no system call
 */
#include <pthread.h>

#include "io/aio/aio-file.h"
#include "io/aio/iothread.h"
#include "io/aio/tests/aio-test.h"

#define US 1000LL

/* A source like a virtqueue: a counter in memory, and an eventfd when notifications are on. */
typedef struct Source {
    AioContext *ctx;
    EventNotifier en;
    atomic_int available;  /* produced */
    atomic_bool notify;    /* the consumer wants the eventfd */
    int consumed;
    int begun, ended;
    int probes;
    int reads;
    int probes_after_end;
    bool produce_at_end;   /* something arrives just before notifications are on again */
    bool remove_in_ready;
    bool nest_in_ready;
    bool probe_always;
} Source;

static bool source_poll(void *opaque)
{
    Source *s = opaque;

    s->probes++;
    s->probes_after_end += s->ended == s->begun;
    return s->probe_always ||
           atomic_load_explicit(&s->available, memory_order_acquire) != s->consumed;
}

static void source_take(Source *s)
{
    s->consumed = atomic_load_explicit(&s->available, memory_order_acquire);
}

static void source_poll_ready(void *opaque)
{
    Source *s = opaque;

    source_take(s);
    if (s->remove_in_ready) {
        aio_set_event_notifier(s->ctx, &s->en, NULL, NULL);
    }
    if (s->nest_in_ready) {
        s->nest_in_ready = false;
        aio_poll(s->ctx, false);
    }
}

static void source_read(void *opaque)
{
    Source *s = opaque;

    s->reads++;
    event_notifier_test_and_clear(&s->en);
    source_take(s);
}

static void source_begin(void *opaque)
{
    Source *s = opaque;

    EXPECT_EQ(s->begun, s->ended);
    s->begun++;
    atomic_store(&s->notify, false);
}

static void source_end(void *opaque)
{
    Source *s = opaque;

    s->ended++;
    EXPECT_EQ(s->begun, s->ended);
    if (s->produce_at_end) {
        s->produce_at_end = false;
        atomic_fetch_add(&s->available, 1);
    }
    atomic_store(&s->notify, true);
}

static const AioHandlerOps source_ops = {
    .read = source_read,
    .poll = source_poll,
    .poll_ready = source_poll_ready,
    .poll_begin = source_begin,
    .poll_end = source_end,
};

/* Produce one, as a guest does: publish, then look whether a notification is wanted. */
static void source_produce(Source *s)
{
    atomic_fetch_add(&s->available, 1);
    if (atomic_load(&s->notify)) {
        event_notifier_set(&s->en);
    }
}

static void source_init(Source *s, AioContext *ctx)
{
    *s = (Source){ .ctx = ctx, .notify = true };
    ASSERT_EQ(event_notifier_open(&s->en, NULL), 0);
    aio_set_event_notifier(ctx, &s->en, &source_ops, s);
}

static void source_finish(Source *s)
{
    aio_set_event_notifier(s->ctx, &s->en, NULL, NULL);
    event_notifier_close(&s->en);
}

/* A context whose window is open from the start. */
static AioContext *polling_context(int64_t window_ns)
{
    AioParams params = { .poll_max_ns = 1000 * 1000 * US, .poll_shrink = 2 };
    AioContext *ctx = test_context(&params);

    test_open_window(ctx, window_ns);
    return ctx;
}

static void wake_timer_cb(void *opaque)
{
    ++*(int *)opaque;
}

/* --- pairing --- */

TEST(aio_poll, window_stays_open_over_passes_that_find_work_with_no_system_call)
{
    AioContext *ctx = polling_context(100 * US);
    Source s;

    source_init(&s, ctx);
    for (int i = 1; i <= 100; i++) {
        source_produce(&s);
        EXPECT_TRUE(aio_poll(ctx, true));
        EXPECT_EQ(s.consumed, i);
    }
    EXPECT_EQ(s.begun, 1);
    EXPECT_EQ(s.ended, 0);
    EXPECT_EQ(test_stats(ctx).enters, 0);
    EXPECT_EQ(test_stats(ctx).polls, 100);
    EXPECT_EQ(test_stats(ctx).polls_paid, 100);
    source_finish(&s);
    EXPECT_EQ(s.ended, 1);
    EXPECT_LE(s.reads, 1);
    aio_context_destroy(ctx);
}

TEST(aio_poll, window_closes_before_the_sleep_and_notifications_work_again)
{
    AioContext *ctx = polling_context(50 * US);
    AioTimer timer;
    int woken = 0;
    Source s;

    source_init(&s, ctx);
    aio_timer_init(&timer, ctx, wake_timer_cb, &woken);
    for (int i = 1; i <= 5; i++) {
        aio_timer_arm(&timer, aio_now_ns() + 2000 * US);
        AIO_WAIT_WHILE(ctx, woken < i);
        EXPECT_EQ(s.begun, i);
        EXPECT_EQ(s.ended, i);
        test_open_window(ctx, 50 * US);
    }
    EXPECT_TRUE(atomic_load(&s.notify));
    source_produce(&s); /* through the eventfd */
    AIO_WAIT_WHILE(ctx, s.consumed < 1);
    source_finish(&s);
    EXPECT_EQ(s.begun, s.ended);
    aio_context_destroy(ctx);
}

TEST(aio_poll, arrival_before_notifications_are_on_is_found_by_one_more_probe)
{
    AioContext *ctx = polling_context(20 * US);
    Source s;

    source_init(&s, ctx);
    s.produce_at_end = true; /* without a notification */
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(s.consumed, 1);
    EXPECT_EQ(s.ended, 1);
    EXPECT_EQ(s.probes_after_end, 1);
    source_finish(&s);
    aio_context_destroy(ctx);
}

TEST(aio_poll, handler_that_goes_away_in_a_window_gets_its_end)
{
    AioContext *ctx = polling_context(100 * US);
    Source a, b;

    source_init(&a, ctx);
    source_init(&b, ctx);
    source_produce(&a);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(a.begun, 1);
    EXPECT_EQ(b.begun, 1);
    aio_set_event_notifier(ctx, &b.en, NULL, NULL); /* between passes */
    EXPECT_EQ(b.ended, 1);
    EXPECT_TRUE(atomic_load(&b.notify));

    a.remove_in_ready = true; /* inside one, by itself */
    source_produce(&a);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(a.ended, 1);

    /* attached again: begins anew, and what arrived in between is found */
    a.remove_in_ready = false;
    atomic_fetch_add(&a.available, 1);
    aio_set_event_notifier(ctx, &a.en, &source_ops, &a);
    AIO_WAIT_WHILE(ctx, a.consumed < 3);
    EXPECT_EQ(a.begun, 2);
    source_finish(&a);
    EXPECT_EQ(a.ended, 2);
    event_notifier_close(&b.en);
    aio_context_destroy(ctx);
}

TEST(aio_poll, handler_added_in_a_window_begins_before_its_first_probe)
{
    AioContext *ctx = polling_context(100 * US);
    Source a, b;

    source_init(&a, ctx);
    source_produce(&a);
    EXPECT_TRUE(aio_poll(ctx, true));
    source_init(&b, ctx);
    source_produce(&b);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(b.begun, 1);
    EXPECT_EQ(b.probes_after_end, 0);
    EXPECT_EQ(b.consumed, 1);
    source_finish(&a);
    source_finish(&b);
    aio_context_destroy(ctx);
}

TEST(aio_poll, inner_pass_closes_the_window_and_the_pairing_holds)
{
    AioContext *ctx = polling_context(100 * US);
    Source a, b;

    source_init(&a, ctx);
    source_init(&b, ctx);
    a.nest_in_ready = true;
    source_produce(&a);
    EXPECT_TRUE(aio_poll(ctx, true)); /* b is asked after the inner pass has closed it */
    AioTimer timer;
    int woken = 0;

    aio_timer_init(&timer, ctx, wake_timer_cb, &woken);
    aio_timer_arm(&timer, aio_now_ns() + 1000 * US);
    AIO_WAIT_WHILE(ctx, woken < 1);
    EXPECT_EQ(a.begun, a.ended); /* it has slept, so all are at rest */
    EXPECT_EQ(b.begun, b.ended);
    source_finish(&a);
    source_finish(&b);
    aio_context_destroy(ctx);
}

TEST(aio_poll, pass_that_must_not_block_leaves_the_window_closed)
{
    AioContext *ctx = polling_context(100 * US);
    Source s;

    source_init(&s, ctx);
    source_produce(&s);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(s.begun, 1);
    aio_poll(ctx, false);
    EXPECT_EQ(s.ended, 1);
    source_produce(&s);
    EXPECT_TRUE(aio_poll(ctx, false)); /* seen through the eventfd */
    EXPECT_EQ(s.consumed, 2);
    EXPECT_EQ(s.begun, 1);
    source_finish(&s);
    aio_context_destroy(ctx);
}

/* --- fairness --- */

typedef struct Plain {
    EventNotifier en;
    int calls;
} Plain;

static void plain_read(void *opaque)
{
    Plain *plain = opaque;

    plain->calls += event_notifier_test_and_clear(&plain->en);
}

TEST_ON_EACH_RING(aio_poll, source_that_is_always_ready_starves_neither_fds_nor_timers)
{
    static const AioHandlerOps plain_ops = { .read = plain_read };
    AioContext *ctx = polling_context(100 * US);
    Plain plain = { .calls = 0 };
    AioTimer timer;
    int woken = 0;
    Source s;

    source_init(&s, ctx);
    s.probe_always = true;
    ASSERT_EQ(event_notifier_open(&plain.en, NULL), 0);
    aio_set_event_notifier(ctx, &plain.en, &plain_ops, &plain);
    aio_timer_init(&timer, ctx, wake_timer_cb, &woken);
    aio_timer_arm(&timer, aio_now_ns() + 500 * US);
    for (int i = 0; i < 10; i++) {
        EXPECT_TRUE(aio_poll(ctx, true));
    }
    event_notifier_set(&plain.en);
    AIO_WAIT_WHILE(ctx, plain.calls < 1 || !woken);
    EXPECT_EQ(s.ended, 0);
    aio_set_event_notifier(ctx, &plain.en, NULL, NULL);
    event_notifier_close(&plain.en);
    source_finish(&s);
    aio_context_destroy(ctx);
}

/* --- counts with requests --- */

static AioFile file;
static int reads_done;

static void read_entry(void *opaque)
{
    char buf[512];
    struct iovec iov = { buf, sizeof(buf) };

    assert_in_coroutine();
    EXPECT_EQ(aio_co_preadv(&file, &iov, 1, 0, 0), 512);
    reads_done++;
}

static void start_read_ready(void *opaque)
{
    source_take(opaque);
    for (int i = 0; i < 8; i++) {
        co_enter(co_create(read_entry, NULL));
    }
}

TEST_ON_EACH_RING(aio_poll, each_pass_enters_the_kernel_at_most_once)
{
    AioHandlerOps ops = source_ops;
    AioContext *ctx = polling_context(100 * US);
    char path[] = "/tmp/test-aio-poll-XXXXXX";
    int fd = mkstemp(path);
    Source s;

    ASSERT_GE(fd, 0);
    unlink(path);
    ASSERT_EQ(ftruncate(fd, 4096), 0);
    aio_file_init(&file, fd);
    source_init(&s, ctx);
    ops.poll_ready = start_read_ready;
    aio_set_event_notifier(ctx, &s.en, &ops, &s);
    for (int i = 1; i <= 50; i++) {
        source_produce(&s);
        while (reads_done < 8 * i) {
            AioStats before = test_stats(ctx);
            aio_poll(ctx, true);
            AioStats after = test_stats(ctx);

            EXPECT_LE(after.enters - before.enters, 1);
            if (after.requests > before.requests && ctx->monitor == &uring_monitor) {
                /* found by polling: submitted at once */
                EXPECT_EQ(after.enters - before.enters, 1);
                EXPECT_GE(after.sqes - before.sqes, 8);
            }
        }
    }
    source_finish(&s);
    aio_file_finish(&file);
    close(fd);
    aio_context_destroy(ctx);
}

/* --- the windows' sizes --- */

/* One wait of @wait_ns that @source ended, found by polling or after a sleep. */
static void wait_ended(AioContext *ctx, AioPollSource *source, int64_t wait_ns, bool slept)
{
    poll_pass_begin(&ctx->poll);
    if (slept) {
        poll_slept(ctx, aio_now_ns());
    }
    ctx->poll.waited_ns = wait_ns;
    poll_fired(ctx, source);
}

static AioContext *learning_context(int64_t max_ns, int64_t shrink, int64_t weight)
{
    AioParams params = {
        .poll_max_ns = max_ns, .poll_grow = 2, .poll_shrink = shrink, .poll_weight = weight
    };

    return test_context(&params);
}

TEST(aio_poll, window_grows_while_it_pays_and_shrinks_when_it_does_not)
{
    AioContext *ctx = learning_context(32 * US, 2, 0);
    AioPollSource *a = &ctx->poll.notified;

    wait_ended(ctx, a, 10 * US, true);
    EXPECT_EQ(a->window_ns, 4 * US);
    EXPECT_EQ(test_stats(ctx).poll_ns, 4 * US);
    wait_ended(ctx, a, 10 * US, true);
    EXPECT_EQ(a->window_ns, 8 * US);
    wait_ended(ctx, a, 10 * US, true);
    EXPECT_EQ(a->window_ns, 16 * US);
    wait_ended(ctx, a, 10 * US, false); /* long enough */
    EXPECT_EQ(a->window_ns, 16 * US);
    wait_ended(ctx, a, 31 * US, true);
    wait_ended(ctx, a, 31 * US, true);
    EXPECT_EQ(a->window_ns, 32 * US); /* the limit */
    EXPECT_EQ(poll_window_ns(ctx), 32 * US);
    wait_ended(ctx, a, 1000 * US, true);
    EXPECT_EQ(a->window_ns, 16 * US);
    for (int i = 0; i < 5; i++) {
        wait_ended(ctx, a, 1000 * US, true);
    }
    EXPECT_EQ(a->window_ns, 0); /* not 500 ns */
    EXPECT_EQ(poll_window_ns(ctx), 0);
    aio_context_destroy(ctx);
}

TEST(aio_poll, shrink_0_closes_the_window_at_once)
{
    AioContext *ctx = learning_context(32 * US, 0, 0);
    AioPollSource *a = &ctx->poll.notified;

    test_open_window(ctx, 32 * US);
    wait_ended(ctx, a, 1000 * US, true);
    EXPECT_EQ(a->window_ns, 0);
    aio_context_destroy(ctx);
}

/* Falling asleep and waking up may take longer than what was waited for. */
TEST(aio_poll, cost_of_a_sleep_does_not_keep_the_window_closed)
{
    AioContext *ctx = learning_context(32 * US, 2, 3);
    AioPollSource *a = &ctx->poll.notified;

    wait_ended(ctx, a, 60 * US, true); /* ready after 30, awake after 60 */
    EXPECT_GT(a->window_ns, 0);
    wait_ended(ctx, a, 60 * US, true);
    wait_ended(ctx, a, 60 * US, true);
    wait_ended(ctx, a, 60 * US, true);
    EXPECT_EQ(a->window_ns, 32 * US);
    for (int i = 0; i < 20; i++) {
        wait_ended(ctx, a, 30 * US, false);
    }
    EXPECT_EQ(a->window_ns, 32 * US);
    aio_context_destroy(ctx);
}

TEST(aio_poll, one_long_wait_among_short_ones_takes_little)
{
    AioContext *ctx = learning_context(32 * US, 2, 3);
    AioPollSource *a = &ctx->poll.notified;

    for (int i = 0; i < 20; i++) {
        wait_ended(ctx, a, 5 * US, i < 5);
    }
    EXPECT_EQ(a->window_ns, 32 * US);
    wait_ended(ctx, a, 1000 * 1000 * US, true);
    EXPECT_EQ(a->window_ns, 32 * US);
    aio_context_destroy(ctx);
}

TEST(aio_poll, slow_source_neither_closes_nor_opens_the_window_of_a_fast_one)
{
    AioContext *ctx = learning_context(32 * US, 2, 0);
    AioPollSource *fast = &ctx->poll.notified;
    AioPollSource *slow = &ctx->poll.requests;

    for (int i = 0; i < 4; i++) {
        wait_ended(ctx, fast, 5 * US, true);
    }
    EXPECT_EQ(fast->window_ns, 32 * US);
    for (int i = 0; i < 100; i++) {
        wait_ended(ctx, slow, 500 * US, true);
        wait_ended(ctx, fast, 5 * US, false);
    }
    EXPECT_EQ(fast->window_ns, 32 * US);
    EXPECT_EQ(slow->window_ns, 0);
    aio_context_destroy(ctx);
}

TEST(aio_poll, source_that_goes_quiet_stops_holding_the_window_open)
{
    AioContext *ctx = learning_context(32 * US, 2, 0);
    AioPollSource *quiet = &ctx->poll.notified;
    AioPollSource *slow = &ctx->poll.requests;

    test_open_window(ctx, 32 * US);
    wait_ended(ctx, slow, 500 * US, true);
    EXPECT_EQ(quiet->window_ns, 32 * US); /* not at the first */
    for (int i = 0; i < 150; i++) {
        wait_ended(ctx, slow, 500 * US, true);
    }
    EXPECT_EQ(quiet->window_ns, 0);
    aio_context_destroy(ctx);
}

TEST(aio_poll, requests_hold_the_window_open_only_while_one_is_in_flight)
{
    AioContext *ctx = learning_context(32 * US, 2, 0);

    for (int i = 0; i < 4; i++) {
        wait_ended(ctx, &ctx->poll.requests, 10 * US, true);
    }
    EXPECT_EQ(poll_window_ns(ctx), 0);
    ctx->inflight = 1;
    EXPECT_EQ(poll_window_ns(ctx), 32 * US);
    ctx->inflight = 0;
    aio_context_destroy(ctx);
}

TEST(aio_poll, many_completions_in_a_pass_are_one_wait)
{
    AioContext *ctx = learning_context(32 * US, 2, 0);

    wait_ended(ctx, &ctx->poll.requests, 10 * US, true);
    poll_fired(ctx, &ctx->poll.requests);
    poll_fired(ctx, &ctx->poll.requests);
    EXPECT_EQ(ctx->poll.requests.window_ns, 4 * US);
    aio_context_destroy(ctx);
}

TEST(aio_poll, parameters_may_change_while_it_runs)
{
    AioContext *ctx = polling_context(100 * US);
    AioParams params = { .poll_max_ns = 8 * US, .poll_shrink = 2 };
    AioTimer timer;
    int woken = 0;
    Source s;

    source_init(&s, ctx);
    aio_context_set_polling(ctx, &params);
    EXPECT_EQ(test_stats(ctx).poll_ns, 8 * US);
    source_produce(&s);
    EXPECT_TRUE(aio_poll(ctx, true)); /* the window is open */
    EXPECT_EQ(s.begun, 1);

    params.poll_max_ns = 0;
    aio_context_set_polling(ctx, &params);
    EXPECT_EQ(test_stats(ctx).poll_ns, 0);
    source_produce(&s); /* without a notification: nobody has switched them on again */
    AIO_WAIT_WHILE(ctx, s.consumed < 2);
    aio_timer_init(&timer, ctx, wake_timer_cb, &woken);
    aio_timer_arm(&timer, aio_now_ns() + 200 * US);
    AIO_WAIT_WHILE(ctx, !woken); /* it has slept: they are on */
    source_produce(&s);
    AIO_WAIT_WHILE(ctx, s.consumed < 3);
    EXPECT_EQ(s.begun, 1);
    EXPECT_EQ(s.ended, 1);
    EXPECT_TRUE(atomic_load(&s.notify));
    source_finish(&s);
    aio_context_destroy(ctx);
}

TEST(aio_poll, idle_context_stops_polling)
{
    AioParams params = { .poll_max_ns = 32 * US };
    AioContext *ctx = test_context(&params);
    AioTimer timer;
    int woken = 0;
    Source s;

    test_open_window(ctx, 32 * US);
    source_init(&s, ctx);
    aio_timer_init(&timer, ctx, wake_timer_cb, &woken);
    for (int i = 1; i <= 30; i++) {
        aio_timer_arm(&timer, aio_now_ns() + 200 * US);
        AIO_WAIT_WHILE(ctx, woken < i);
    }
    EXPECT_EQ(test_stats(ctx).poll_ns, 0);
    EXPECT_LE(s.begun, 20);
    EXPECT_EQ(s.begun, s.ended);
    source_finish(&s);
    aio_context_destroy(ctx);
}

TEST(aio_poll, off_means_no_probe_at_all)
{
    AioContext *ctx = test_context(NULL);
    Source s;

    source_init(&s, ctx);
    for (int i = 1; i <= 10; i++) {
        source_produce(&s);
        AIO_WAIT_WHILE(ctx, s.consumed < i);
    }
    EXPECT_EQ(s.probes, 0);
    EXPECT_EQ(s.begun, 0);
    EXPECT_EQ(test_stats(ctx).polls, 0);
    source_finish(&s);
    aio_context_destroy(ctx);
}

static void busy_bh(void *opaque)
{
    aio_bh_schedule(*(AioBh **)opaque);
}

/* With no window open nobody asks the probe, so the fd has to be watched. */
TEST(aio_poll, bottom_half_that_never_rests_starves_no_handler)
{
    AioContext *ctx = test_context(NULL);
    AioBh *bh = NULL;
    Source s;

    source_init(&s, ctx);
    bh = aio_bh_create(ctx, busy_bh, &bh);
    aio_bh_schedule(bh);
    for (int i = 1; i <= 10; i++) {
        source_produce(&s);
        for (int pass = 0; pass < 100 && s.consumed < i; pass++) {
            aio_poll(ctx, true);
        }
        EXPECT_EQ(s.consumed, i);
    }
    aio_bh_destroy(bh);
    source_finish(&s);
    aio_context_destroy(ctx);
}

/* The kernel can leave the flag up with no work behind it, see aio-uring.c. */
TEST(aio_poll, task_work_flag_that_stays_up_keeps_nobody_awake)
{
    AioContext *ctx = test_ring_context(NULL);
    unsigned flags = IORING_SQ_TASKRUN;
    unsigned *real_flags = ctx->uring.ring.sq.kflags;
    AioTimer timer;
    int woken = 0;

    aio_timer_init(&timer, ctx, wake_timer_cb, &woken);
    ctx->uring.ring.sq.kflags = &flags;
    for (int i = 1; i <= 3; i++) {
        aio_timer_arm(&timer, aio_now_ns() + 3000 * US);
        AIO_WAIT_WHILE(ctx, woken < i);
    }
    EXPECT_LE(test_stats(ctx).passes, 20);
    ctx->uring.ring.sq.kflags = real_flags;
    aio_context_destroy(ctx);
}

static void close_cb(void *opaque)
{
    EventNotifier *en = opaque;

    EXPECT_TRUE(event_notifier_test_and_clear(en));
    event_notifier_close(en);
}

/* New work behind such a flag cannot be told from none. */
TEST(aio_poll, task_work_flag_that_stays_up_hides_nothing_from_passes_that_do_not_wait)
{
    static const AioHandlerOps ops = { .read = close_cb };
    AioContext *ctx = test_ring_context(NULL);
    unsigned flags = IORING_SQ_TASKRUN;
    unsigned *real_flags = ctx->uring.ring.sq.kflags;
    EventNotifier en;
    Error err;

    ASSERT_EQ(event_notifier_open(&en, &err), 0);
    int fd = en.fd;

    aio_set_event_notifier(ctx, &en, &ops, &en);
    ctx->uring.ring.sq.kflags = &flags;
    aio_poll(ctx, false); /* submits the poll; from now on nothing is queued */
    event_notifier_set(&en);
    for (int pass = 0; pass < 1000 && en.fd >= 0; pass++) {
        aio_poll(ctx, false);
    }
    EXPECT_EQ(en.fd, -1);
    EXPECT_LE(test_stats(ctx).enters, 1000 / 64 + 3);
    aio_set_fd_handler(ctx, fd, NULL, NULL);
    ctx->uring.ring.sq.kflags = real_flags;
    aio_context_destroy(ctx);
}

/* --- a producer in another thread, with the window opening and closing all the time --- */

#define ROUNDS 20000

static void *produce_thread(void *opaque)
{
    Source *s = opaque;

    for (int i = 0; i < ROUNDS; i++) {
        source_produce(s);
        if (i % 64 == 0) {
            usleep(1);
        }
    }
    return NULL;
}

TEST(aio_poll, nothing_is_lost_between_polling_and_sleeping)
{
    AioParams params = { .poll_max_ns = 20 * US, .poll_shrink = 2 };
    AioContext *ctx = test_context(&params);
    pthread_t thread;
    Source s;

    source_init(&s, ctx);
    ASSERT_EQ(pthread_create(&thread, NULL, produce_thread, &s), 0);
    AIO_WAIT_WHILE(ctx, s.consumed < ROUNDS);
    pthread_join(thread, NULL);
    EXPECT_EQ(s.consumed, ROUNDS);
    source_finish(&s);
    EXPECT_EQ(s.begun, s.ended);
    aio_context_destroy(ctx);
}

TEST_MAIN()
