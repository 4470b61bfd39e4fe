/*
 * test-aio-co.c - coroutines in contexts: waking, moving, sleeping, blocking calls, the lock
 */
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "io/aio/aio-file.h"
#include "io/aio/co-mutex.h"
#include "io/aio/iothread.h"
#include "io/aio/tests/aio-test.h"
#include "io/co/coroutine-int.h"

#define MS 1000000LL

static main_fn IOThread *test_iothread(const char *id)
{
    Error err = { 0 };
    IOThread *iot = iothread_create(id, NULL, &err);

    if (!iot) {
        TEST_SKIP("%s", err.msg);
    }
    return iot;
}

static char trace[64];

/* --- waking --- */

static Coroutine *sleeper;

static void sleeper_entry(void *opaque)
{
    assert_in_coroutine();
    strcat(trace, "s");
    sleeper = co_self();
    co_yield();
    strcat(trace, "w");
    sleeper = NULL;
}

TEST(aio_co, wake_outside_a_coroutine_enters_at_once)
{
    AioContext *ctx = test_context(NULL);

    co_enter(co_create(sleeper_entry, NULL));
    EXPECT_STREQ(trace, "s");
    aio_co_wake(sleeper);
    EXPECT_STREQ(trace, "sw");
    EXPECT_EQ(test_stats(ctx).enters, 0);
    aio_context_destroy(ctx);
}

static void waker_entry(void *opaque)
{
    strcat(trace, "[");
    aio_co_wake(sleeper);
    strcat(trace, "]");
}

TEST(aio_co, wake_inside_a_coroutine_enters_after_it)
{
    AioContext *ctx = test_context(NULL);

    co_enter(co_create(sleeper_entry, NULL));
    co_enter(co_create(waker_entry, NULL));
    EXPECT_STREQ(trace, "s[]w");
    aio_context_destroy(ctx);
}

TEST(aio_co, scheduled_one_runs_in_the_next_pass)
{
    AioContext *ctx = test_context(NULL);

    aio_co_schedule(ctx, co_create(sleeper_entry, NULL));
    EXPECT_STREQ(trace, "");
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_STREQ(trace, "s");
    aio_co_schedule(ctx, sleeper);
    EXPECT_STREQ(trace, "s");
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_STREQ(trace, "sw");
    EXPECT_FALSE(aio_poll(ctx, false));
    aio_context_destroy(ctx);
}

static char mark_a[] = "a", mark_b[] = "b", mark_c[] = "c", mark_t[] = "t";

static void append_entry(void *opaque)
{
    strcat(trace, opaque);
}

TEST(aio_co, scheduled_ones_run_in_order)
{
    AioContext *ctx = test_context(NULL);

    aio_co_schedule(ctx, co_create(append_entry, mark_a));
    aio_co_schedule(ctx, co_create(append_entry, mark_b));
    aio_co_schedule(ctx, co_create(append_entry, mark_c));
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_STREQ(trace, "abc");
    aio_context_destroy(ctx);
}

/* A thread that stopped in the middle of its aio_co_schedule() holds up what it must, not the
 * home. */
TEST(aio_co, pass_goes_on_and_may_sleep_while_somebody_is_about_to_schedule)
{
    AioContext *ctx = test_context(NULL);
    Coroutine *late = co_create(append_entry, mark_b);
    AioTimer timer;

    aio_co_schedule(ctx, co_create(append_entry, mark_a));
    co_mark_scheduled(late, "the test");
    MpscLink *place = mpsc_reserve(&ctx->co_incoming, &late->schedule_node);

    aio_co_schedule(ctx, co_create(append_entry, mark_c));
    EXPECT_FALSE(aio_poll(ctx, true)); /* took the notification */
    aio_timer_init(&timer, ctx, append_entry, mark_t);
    aio_timer_arm(&timer, aio_now_ns() + MS);
    while (!trace[0]) {
        aio_poll(ctx, true);
    }
    EXPECT_LT(test_stats(ctx).passes, 20); /* it slept, did not spin */
    EXPECT_STREQ(trace, "t");
    mpsc_link(place, &late->schedule_node);
    aio_notify(ctx);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_STREQ(trace, "tabc");
    EXPECT_FALSE(aio_poll(ctx, false));
    aio_context_destroy(ctx);
}

/* The child's exit status when it schedules a coroutine twice. */
static int schedule_twice(AioContext *ctx)
{
    pid_t pid = fork();
    int status;

    if (pid == 0) {
        fclose(stderr);
        signal(SIGABRT, SIG_DFL);
        Coroutine *co = co_create(append_entry, mark_a);

        aio_co_schedule(ctx, co);
        aio_co_schedule(ctx, co);
        _exit(0);
    }
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    return status;
}

TEST(aio_co, scheduling_twice_is_caught)
{
    AioContext *ctx = test_context(NULL);
    int status = schedule_twice(ctx);

    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    aio_context_destroy(ctx);
}

/* --- moving --- */

typedef struct Tour {
    AioContext *stops[3];
    unsigned rounds;
    unsigned done;
} Tour;

static void tour_entry(void *opaque)
{
    Tour *tour = opaque;

    assert_in_coroutine();
    for (unsigned i = 0; i < tour->rounds; i++) {
        AioContext *ctx = tour->stops[i % ARRAY_SIZE(tour->stops)];

        aio_co_reschedule_self(ctx);
        ASSERT_TRUE(aio_current() == ctx);
        ASSERT_TRUE(co_home(co_self()) == ctx);
        tour->done++; /* plain: each move must carry it over */
    }
}

TEST(aio_co, moves_between_threads_and_takes_its_data_along)
{
    AioContext *ctx = test_context(NULL);
    IOThread *a = test_iothread("a");
    IOThread *b = test_iothread("b");
    Tour tour = {
        .stops = { iothread_context(a), iothread_context(b), ctx },
        .rounds = 3000,
    };

    aio_co_run_sync(ctx, tour_entry, &tour);
    EXPECT_EQ(tour.done, 3000);
    iothread_unref(a);
    iothread_unref(b);
    aio_context_destroy(ctx);
}

static void stay_entry(void *opaque)
{
    assert_in_coroutine();
    aio_co_reschedule_self(aio_current());
    strcat(trace, "h");
}

TEST(aio_co, move_to_where_it_is_does_not_yield)
{
    AioContext *ctx = test_context(NULL);

    co_enter(co_create(stay_entry, NULL));
    EXPECT_STREQ(trace, "h");
    aio_context_destroy(ctx);
}

TEST(aio_co, enter_elsewhere_schedules_there)
{
    IOThread *a = test_iothread("a");
    AioContext *ctx = test_context(NULL);
    Tour tour = { .stops = { ctx, ctx, ctx }, .rounds = 1 };

    aio_co_enter(iothread_context(a), co_create(tour_entry, &tour));
    AIO_WAIT_WHILE(ctx, tour.done == 0); /* it comes here from there */
    iothread_unref(a);
    aio_context_destroy(ctx);
}

/* Wakes from another thread race with the yield of the coroutine; none may be lost or come
 * twice. */
#define WAKES 20000

typedef struct Racer {
    AioContext *ctx;
    Coroutine *_Atomic waiting; /* published just before the yield */
    int rounds;
    atomic_bool done;
} Racer;

static void racer_entry(void *opaque)
{
    Racer *racer = opaque;

    assert_in_coroutine();
    for (racer->rounds = 0; racer->rounds < WAKES; racer->rounds++) {
        atomic_store(&racer->waiting, co_self());
        co_yield();
    }
    atomic_store(&racer->done, true);
}

static void *racer_thread(void *opaque)
{
    Racer *racer = opaque;

    while (!atomic_load(&racer->done)) {
        Coroutine *co = atomic_exchange(&racer->waiting, NULL);

        if (co) {
            aio_co_wake(co);
        } else {
            sched_yield();
        }
    }
    return NULL;
}

TEST(aio_co, wake_by_another_thread_while_it_is_about_to_yield)
{
    AioContext *ctx = test_context(NULL);
    Racer racer = { .ctx = ctx };
    pthread_t thread;

    ASSERT_EQ(pthread_create(&thread, NULL, racer_thread, &racer), 0);
    aio_co_run_sync(ctx, racer_entry, &racer);
    pthread_join(thread, NULL);
    EXPECT_EQ(racer.rounds, WAKES);
    aio_context_destroy(ctx);
}

/* --- sleeping --- */

static void sleep_entry(void *opaque)
{
    int64_t start_ns = aio_now_ns();

    assert_in_coroutine();
    aio_co_sleep_ns(3 * MS);
    EXPECT_GE(aio_now_ns() - start_ns, 3 * MS);
    aio_co_sleep_ns(0);
    strcat(trace, "z");
}

TEST(aio_co, sleeps_as_long_as_asked)
{
    AioContext *ctx = test_context(NULL);

    aio_co_run_sync(ctx, sleep_entry, NULL);
    EXPECT_STREQ(trace, "z");
    EXPECT_EQ(ctx->nb_timers, 0);
    aio_context_destroy(ctx);
}

static void long_sleep_entry(void *opaque)
{
    assert_in_coroutine();
    sleeper = co_self();
    aio_co_sleep_ns(3600LL * 1000 * MS);
}

static void wake_a_sleeper(void *opaque)
{
    co_enter(co_create(long_sleep_entry, NULL));
    aio_co_wake(sleeper);
}

TEST(aio_co, waking_a_coroutine_that_sleeps_aborts)
{
    AioContext *ctx = test_context(NULL);

    EXPECT_DEATH(wake_a_sleeper, NULL, SIGABRT, "co_sleep_until");
    aio_context_destroy(ctx);
}

/* --- the lock --- */

typedef struct Holder {
    CoMutex *mutex;
    const char *name;
} Holder;

static void holder_entry(void *opaque)
{
    Holder *holder = opaque;

    assert_in_coroutine();
    co_mutex_lock(holder->mutex);
    strcat(trace, holder->name);
    aio_co_sleep_ns(MS);
    strcat(trace, ".");
    co_mutex_unlock(holder->mutex);
}

TEST(aio_co, lock_is_granted_in_order_of_arrival)
{
    AioContext *ctx = test_context(NULL);
    CoMutex mutex;
    Holder holders[] = { { &mutex, mark_a }, { &mutex, mark_b }, { &mutex, mark_c } };

    co_mutex_init(&mutex);
    for (unsigned i = 0; i < ARRAY_SIZE(holders); i++) {
        co_enter(co_create(holder_entry, &holders[i]));
    }
    AIO_WAIT_WHILE(ctx, strlen(trace) < 6);
    EXPECT_STREQ(trace, "a.b.c.");
    co_mutex_finish(&mutex);
    aio_context_destroy(ctx);
}

#define LOCKS 3000

typedef struct Account {
    CoMutex mutex;
    int inside;
    int balance; /* plain: the lock must carry it over */
} Account;

static void deposit_entry(void *opaque)
{
    Account *account = opaque;

    assert_in_coroutine();
    for (int i = 0; i < LOCKS; i++) {
        co_mutex_lock(&account->mutex);
        ASSERT_EQ(account->inside++, 0);
        account->balance++;
        if (i % 50 == 0) {
            aio_co_sleep_ns(1000); /* held across a yield */
        }
        account->inside--;
        co_mutex_unlock(&account->mutex);
    }
}

static void *deposit_thread(void *opaque)
{
    void **args = opaque;

    aio_co_run_sync(args[0], deposit_entry, args[1]);
    return NULL;
}

TEST(aio_co, lock_excludes_coroutines_of_different_threads)
{
    IOThread *iot[3];
    pthread_t threads[ARRAY_SIZE(iot)];
    void *args[ARRAY_SIZE(iot)][2];
    Account account = { .balance = 0 };

    co_mutex_init(&account.mutex);
    for (unsigned i = 0; i < ARRAY_SIZE(iot); i++) {
        iot[i] = test_iothread("lock");
        args[i][0] = iothread_context(iot[i]);
        args[i][1] = &account;
        ASSERT_EQ(pthread_create(&threads[i], NULL, deposit_thread, args[i]), 0);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(iot); i++) {
        pthread_join(threads[i], NULL);
    }
    EXPECT_EQ(account.balance, (int)ARRAY_SIZE(iot) * LOCKS);
    co_mutex_finish(&account.mutex);
    for (unsigned i = 0; i < ARRAY_SIZE(iot); i++) {
        iothread_unref(iot[i]);
    }
}

TEST_MAIN()
