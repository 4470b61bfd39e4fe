/*
 * test-aio-timer.c - timers: order, moving, disarming, and that a sleep ends for them
 */
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#include "io/aio/tests/aio-test.h"

#define MS 1000000LL

typedef struct Shot {
    AioTimer timer;
    int64_t fired_ns;
    int calls;
    int rearm;           /* times it still arms itself, in the past */
    struct Shot *victim; /* disarmed by the callback */
} Shot;

static int64_t last_deadline_ns;

static void shot_cb(void *opaque)
{
    Shot *shot = opaque;

    shot->fired_ns = aio_now_ns();
    shot->calls++;
    EXPECT_EQ(shot->timer.heap_index, 0);
    EXPECT_GE(shot->fired_ns, shot->timer.deadline_ns);
    EXPECT_GE(shot->timer.deadline_ns, last_deadline_ns);
    last_deadline_ns = shot->timer.deadline_ns;
    if (shot->victim) {
        aio_timer_disarm(&shot->victim->timer);
    }
    if (shot->rearm > 0) {
        shot->rearm--;
        last_deadline_ns = 0;
        aio_timer_arm(&shot->timer, 1);
    }
}

TEST_ON_EACH_RING(aio_timer, ends_a_sleep_when_it_is_due)
{
    AioContext *ctx = test_context(NULL);
    Shot shot = { .calls = 0 };
    int64_t start_ns = aio_now_ns();

    aio_timer_init(&shot.timer, ctx, shot_cb, &shot);
    aio_timer_arm(&shot.timer, start_ns + 5 * MS);
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(shot.calls, 0);
    AIO_WAIT_WHILE(ctx, shot.calls == 0);
    EXPECT_GE(shot.fired_ns - start_ns, 5 * MS);
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(shot.calls, 1);
    /* it slept rather than span */
    EXPECT_LE(test_stats(ctx).passes, 6);
    aio_context_destroy(ctx);
}

static void timerfd_cb(void *opaque)
{
    *(bool *)opaque = true;
}

/* On a clock of its own that runs, too. */
TEST_ON_EACH_RING(aio_timer, a_deadline_at_the_end_of_time_keeps_nobody_awake)
{
    static const AioHandlerOps ops = { .read = timerfd_cb };
    const struct itimerspec soon = { .it_value.tv_nsec = 5 * MS };
    AioContext *ctx = test_context(NULL);
    Shot last = { .calls = 0 }, on_clock = { .calls = 0 };
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    bool ready = false;
    AioClock clock;

    aio_clock_init(&clock);
    aio_clock_start(&clock);
    aio_timer_init(&last.timer, ctx, shot_cb, &last);
    aio_timer_arm(&last.timer, INT64_MAX);
    aio_timer_init_on(&on_clock.timer, ctx, &clock, shot_cb, &on_clock);
    aio_timer_arm(&on_clock.timer, INT64_MAX);
    aio_set_fd_handler(ctx, fd, &ops, &ready);
    ASSERT_EQ(timerfd_settime(fd, 0, &soon, NULL), 0);
    AIO_WAIT_WHILE(ctx, !ready);
    EXPECT_EQ(last.calls + on_clock.calls, 0);
    EXPECT_LE(test_stats(ctx).passes, 6);
    aio_set_fd_handler(ctx, fd, NULL, NULL);
    aio_timer_disarm(&last.timer);
    aio_timer_disarm(&on_clock.timer);
    close(fd);
    aio_context_destroy(ctx);
}

#define MANY 1000

static unsigned next_random(unsigned *state)
{
    *state = *state * 1103515245 + 12345;
    return *state >> 16;
}

TEST(aio_timer, thousand_fire_in_order_after_moves_and_disarms)
{
    static Shot shots[MANY];
    AioContext *ctx = test_context(NULL);
    unsigned seed = 1;
    unsigned armed = 0, fired = 0;

    for (unsigned i = 0; i < MANY; i++) {
        aio_timer_init(&shots[i].timer, ctx, shot_cb, &shots[i]);
    }
    for (unsigned i = 0; i < 20 * MANY; i++) {
        Shot *shot = &shots[next_random(&seed) % MANY];

        if (next_random(&seed) % 4) {
            aio_timer_arm(&shot->timer, 1 + next_random(&seed) % 500);
        } else {
            aio_timer_disarm(&shot->timer);
        }
        for (unsigned k = 1; k < ctx->nb_timers; k++) { /* the heap's own invariants */
            ASSERT_EQ(ctx->timers.heap[k]->heap_index, k + 1);
            ASSERT_LE(ctx->timers.heap[(k - 1) / 2]->deadline_ns, ctx->timers.heap[k]->deadline_ns);
        }
        if (i > MANY) {
            i += 20; /* checking all of it is slow */
        }
    }
    for (unsigned i = 0; i < MANY; i++) {
        armed += shots[i].timer.heap_index != 0;
    }
    EXPECT_GT(armed, MANY / 4);
    EXPECT_EQ(ctx->nb_timers, armed);
    EXPECT_TRUE(aio_poll(ctx, false)); /* all deadlines are past: one pass */
    for (unsigned i = 0; i < MANY; i++) {
        EXPECT_LE(shots[i].calls, 1);
        fired += shots[i].calls;
    }
    EXPECT_EQ(fired, armed);
    EXPECT_EQ(ctx->nb_timers, 0);
    aio_context_destroy(ctx);
}

TEST(aio_timer, always_armed_in_the_past_does_not_hold_the_pass_up)
{
    AioContext *ctx = test_context(NULL);
    Shot shot = { .rearm = 3 };

    aio_timer_init(&shot.timer, ctx, shot_cb, &shot);
    aio_timer_arm(&shot.timer, 1);
    for (int i = 1; i <= 4; i++) {
        EXPECT_TRUE(aio_poll(ctx, true));
        EXPECT_EQ(shot.calls, i);
    }
    aio_context_destroy(ctx);
}

TEST(aio_timer, callback_may_disarm_another_that_is_due)
{
    AioContext *ctx = test_context(NULL);
    Shot second = { .calls = 0 };
    Shot first = { .victim = &second };

    aio_timer_init(&first.timer, ctx, shot_cb, &first);
    aio_timer_init(&second.timer, ctx, shot_cb, &second);
    aio_timer_arm(&second.timer, 2);
    aio_timer_arm(&first.timer, 1);
    EXPECT_TRUE(aio_poll(ctx, false));
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(first.calls, 1);
    EXPECT_EQ(second.calls, 0);
    aio_context_destroy(ctx);
}

/*
 * The longest sleep must reach the kernel by value: here the frames that held it are overwritten
 * before the kernel can have looked at it a second time.
 */
static NOINLINE void scribble(void)
{
    volatile uint8_t junk[16384];

    for (size_t i = 0; i < sizeof(junk); i++) {
        junk[i] = 0xff;
    }
}

TEST_ON_EACH_RING(aio_timer, sleeps_the_right_time_whatever_the_stack_holds_later)
{
    AioContext *ctx = test_context(NULL);
    Shot shot = { .calls = 0 };

    aio_timer_init(&shot.timer, ctx, shot_cb, &shot);
    for (int i = 1; i <= 5; i++) {
        int64_t start_ns = aio_now_ns();

        aio_timer_arm(&shot.timer, start_ns + 2 * MS);
        aio_poll(ctx, false); /* would queue a timeout, if there were such requests */
        scribble();
        AIO_WAIT_WHILE(ctx, shot.calls < i);
        EXPECT_GE(shot.fired_ns - start_ns, 2 * MS);
        EXPECT_LT(shot.fired_ns - start_ns, 5000 * MS);
    }
    aio_context_destroy(ctx);
}

static void ignore_signal(int signo)
{
}

TEST_ON_EACH_RING(aio_timer, signals_neither_shorten_nor_lose_it)
{
    struct sigaction action = { .sa_handler = ignore_signal };
    struct itimerval every = { { 0, 700 }, { 0, 700 } };
    AioContext *ctx = test_context(NULL);
    Shot shot = { .calls = 0 };
    int64_t start_ns = aio_now_ns();

    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &every, NULL);
    aio_timer_init(&shot.timer, ctx, shot_cb, &shot);
    aio_timer_arm(&shot.timer, start_ns + 20 * MS);
    AIO_WAIT_WHILE(ctx, shot.calls == 0);
    EXPECT_GE(shot.fired_ns - start_ns, 20 * MS);
    EXPECT_GT(test_stats(ctx).enters, 2); /* it was interrupted */
    aio_context_destroy(ctx);
}

TEST(aio_timer, due_one_is_not_starved_by_a_bottom_half_that_always_runs)
{
    AioContext *ctx = test_context(NULL);
    Shot shot = { .calls = 0 };

    aio_timer_init(&shot.timer, ctx, shot_cb, &shot);
    aio_timer_arm(&shot.timer, aio_now_ns() + MS);
    while (!shot.calls) {
        aio_notify(ctx); /* as a bottom half that schedules itself does */
        aio_poll(ctx, true);
    }
    aio_context_destroy(ctx);
}

/* --- clocks --- */

typedef struct Ring {
    AioTimer timer;
    AioClock *clock;
    int calls;
    int64_t rung_ns;
} Ring;

static void ring_cb(void *opaque)
{
    Ring *ring = opaque;

    ring->calls++;
    ring->rung_ns = aio_clock_now_ns(ring->clock);
}

static void ring_init(Ring *ring, AioContext *ctx, AioClock *clock)
{
    *ring = (Ring){ .clock = clock };
    aio_timer_init_on(&ring->timer, ctx, clock, ring_cb, ring);
}

TEST(aio_timer, clock_stands_until_it_is_started_or_stepped)
{
    AioClock clock;

    aio_clock_init(&clock);
    EXPECT_EQ(aio_clock_now_ns(&clock), 0);
    aio_clock_step(&clock, 5);
    EXPECT_EQ(aio_clock_now_ns(&clock), 5);
    aio_clock_stop(&clock); /* it stands already */
    EXPECT_EQ(aio_clock_now_ns(&clock), 5);

    int64_t before_ns = aio_now_ns();

    aio_clock_start(&clock);
    aio_clock_start(&clock);
    aio_clock_step(&clock, 3600 * 1000 * MS);
    int64_t now_ns = aio_clock_now_ns(&clock);

    EXPECT_GE(now_ns, 3600 * 1000 * MS + 5);
    EXPECT_LE(now_ns, 3600 * 1000 * MS + 5 + aio_now_ns() - before_ns);
    EXPECT_LE(now_ns, aio_clock_now_ns(&clock));
    aio_clock_stop(&clock);
    now_ns = aio_clock_now_ns(&clock);
    EXPECT_EQ(aio_clock_now_ns(&clock), now_ns);
}

TEST(aio_timer, stepped_clock_fires_what_is_due_and_nothing_else)
{
    AioContext *ctx = test_context(NULL);
    AioClock clock, other;
    Ring early, late, elsewhere;

    aio_clock_init(&clock);
    aio_clock_init(&other);
    ring_init(&early, ctx, &clock);
    ring_init(&late, ctx, &clock);
    ring_init(&elsewhere, ctx, &other);
    aio_timer_arm(&late.timer, 200);
    aio_timer_arm(&early.timer, 100);
    aio_timer_arm(&elsewhere.timer, 1);
    EXPECT_FALSE(aio_poll(ctx, false));
    aio_clock_step(&clock, 99);
    aio_poll(ctx, false);
    EXPECT_EQ(early.calls, 0);
    aio_clock_step(&clock, 1);
    EXPECT_TRUE(aio_poll(ctx, true)); /* due though the clock stands: does not sleep */
    EXPECT_EQ(early.calls, 1);
    EXPECT_EQ(early.rung_ns, 100);
    aio_timer_arm(&early.timer, 50);
    EXPECT_TRUE(aio_poll(ctx, true)); /* likewise, with nobody to notify us */
    EXPECT_EQ(early.calls, 2);
    aio_timer_arm(&early.timer, 150); /* past by then, and before the other one */
    aio_clock_step(&clock, 1000);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(early.calls, 3);
    EXPECT_EQ(late.calls, 1);
    EXPECT_EQ(elsewhere.calls, 0);
    EXPECT_EQ(ctx->nb_timers, 1);
    aio_timer_disarm(&elsewhere.timer);
    EXPECT_EQ(ctx->nb_timers, 0);
    aio_context_destroy(ctx);
}

/* A guest that stands: its timers wait, those of the host do not. */
TEST(aio_timer, stopped_clock_wakes_nobody_and_the_real_one_goes_on)
{
    AioContext *ctx = test_context(NULL);
    AioClock clock;
    Shot real = { .calls = 0 };
    Ring guest;

    aio_clock_init(&clock);
    ring_init(&guest, ctx, &clock);
    aio_timer_init(&real.timer, ctx, shot_cb, &real);
    aio_clock_start(&clock);
    aio_clock_stop(&clock);
    aio_timer_arm(&guest.timer, aio_clock_now_ns(&clock) + 1);
    aio_timer_arm(&real.timer, aio_now_ns() + 3 * MS);
    AIO_WAIT_WHILE(ctx, real.calls == 0);
    EXPECT_EQ(guest.calls, 0);
    EXPECT_LE(test_stats(ctx).passes, 10); /* it slept */
    aio_clock_start(&clock);
    AIO_WAIT_WHILE(ctx, guest.calls == 0);
    EXPECT_GE(guest.rung_ns, guest.timer.deadline_ns);
    aio_context_destroy(ctx);
}

static void *start_clock_thread(void *opaque)
{
    aio_clock_start(opaque);
    return NULL;
}

static void *step_clock_thread(void *opaque)
{
    aio_clock_step(opaque, 1000 * MS);
    return NULL;
}

TEST(aio_timer, clock_that_is_changed_by_another_thread_ends_the_sleep)
{
    static void *(*const changes[])(void *) = { start_clock_thread, step_clock_thread };
    AioContext *ctx = test_context(NULL);

    for (int i = 0; i < 200; i++) {
        AioClock clock;
        Ring ring;
        pthread_t thread;

        aio_clock_init(&clock);
        ring_init(&ring, ctx, &clock);
        aio_timer_arm(&ring.timer, 1000);
        ASSERT_EQ(pthread_create(&thread, NULL, changes[i % 2], &clock), 0);
        AIO_WAIT_WHILE(ctx, ring.calls == 0); /* with nothing else to wake it */
        pthread_join(thread, NULL);
    }
    aio_context_destroy(ctx);
}

TEST_MAIN()
