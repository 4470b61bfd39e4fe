/*
 * test-aio-worker.c - calls that block: who does them, how many at once, and which never begin
 */
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>

#include "io/aio/aio-worker.h"
#include "io/aio/tests/aio-test.h"
#include "io/aio/tests/refuse.h"

typedef struct Blocking {
    sem_t gate;
    int ret;
    bool ended;
} Blocking;

static int wait_at_gate(void *opaque)
{
    Blocking *b = opaque;

    while (sem_wait(&b->gate) < 0) {
        EXPECT_EQ(errno, EINTR);
    }
    return 7;
}

static co_fn void blocking_entry(void *opaque)
{
    Blocking *b = opaque;

    b->ret = aio_co_run_blocking(wait_at_gate, b);
    b->ended = true;
}

TEST(aio_worker, job_does_not_wait_behind_one_that_hangs)
{
    AioContext *ctx = test_context(NULL);
    Blocking first = { .ret = 0 }, hanging = { .ret = 0 }, last = { .ret = 0 };
    cpu_set_t one;

    /* On one processor, so that a worker runs when we let it. */
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof(one), &one);
    sem_init(&first.gate, 0, 1);
    sem_init(&hanging.gate, 0, 0);
    sem_init(&last.gate, 0, 1);
    co_enter(co_create(blocking_entry, &first));
    AIO_WAIT_WHILE(ctx, !first.ended);
    EXPECT_EQ(first.ret, 7);
    for (int i = 0; i < 100; i++) {
        sched_yield(); /* the one worker becomes idle... */
    }
    /* ...and still counts as such when it has been woken for the job that hangs. */
    co_enter(co_create(blocking_entry, &hanging));
    co_enter(co_create(blocking_entry, &last));
    AIO_WAIT_WHILE(ctx, !last.ended);
    EXPECT_FALSE(hanging.ended);
    sem_post(&hanging.gate);
    AIO_WAIT_WHILE(ctx, !hanging.ended);
    aio_context_destroy(ctx);
}

static int post_gate(void *opaque)
{
    Blocking *b = opaque;

    sem_post(&b->gate);
    return 0;
}

TEST(aio_worker, detached_job_is_run_without_anybody_waiting)
{
    static Blocking b;

    sem_init(&b.gate, 0, 0);
    ASSERT_EQ(aio_run_detached(post_gate, &b), 0);
    EXPECT_EQ(wait_at_gate(&b), 7);
}

/* --- the limit --- */

#define ALLOWED 3
#define CROWD   10

static struct {
    AioContext *ctx;
    sem_t gate;
    atomic_int entered, left, most;
    unsigned ended;
} crowd;

static int enter_crowd(void *opaque)
{
    int running = atomic_fetch_add(&crowd.entered, 1) + 1 - atomic_load(&crowd.left);

    if (running > atomic_load(&crowd.most)) {
        atomic_store(&crowd.most, running); /* near enough: what comes later is not less */
    }
    aio_notify(crowd.ctx);
    while (sem_wait(&crowd.gate) < 0) {
        EXPECT_EQ(errno, EINTR);
    }
    atomic_fetch_add(&crowd.left, 1);
    return -(int)(intptr_t)opaque;
}

static co_fn void crowd_entry(void *opaque)
{
    EXPECT_EQ(aio_co_run_blocking(enter_crowd, opaque), -(int)(intptr_t)opaque);
    EXPECT_TRUE(aio_current() == crowd.ctx);
    crowd.ended++;
}

TEST(aio_worker, no_more_threads_than_allowed_and_as_many_as_of_use)
{
    crowd.ctx = test_context(NULL);
    sem_init(&crowd.gate, 0, 0);
    aio_workers_set_max(ALLOWED);
    for (uintptr_t i = 0; i < CROWD; i++) {
        co_enter(co_create(crowd_entry, (void *)i));
    }
    for (int i = 0; i < CROWD; i++) {
        AIO_WAIT_WHILE(crowd.ctx, atomic_load(&crowd.entered) < MIN(CROWD, ALLOWED + i));
        EXPECT_EQ(crowd.ended, i);
        sem_post(&crowd.gate);
        AIO_WAIT_WHILE(crowd.ctx, crowd.ended <= i);
    }
    EXPECT_EQ(atomic_load(&crowd.most), ALLOWED);
    aio_context_destroy(crowd.ctx);
}

/* --- cancelling --- */

static unsigned calls;
static AioContext *home;

static int count_call(void *opaque)
{
    calls++;
    return 0;
}

typedef struct Job {
    AioJob job;
    int ret;
    bool ended;
} Job;

static co_fn void job_entry(void *opaque)
{
    Job *j = opaque;

    j->ret = aio_co_run_job(&j->job);
    j->ended = true;
}

static void job_start(Job *j)
{
    *j = (Job){ .ret = 1 };
    aio_job_init(&j->job, count_call, NULL);
    co_enter(co_create(job_entry, j));
}

static void *cancel_thread(void *opaque)
{
    EXPECT_TRUE(aio_job_cancel(opaque));
    return NULL;
}

TEST(aio_worker, cancelled_job_is_not_begun_and_its_coroutine_goes_on)
{
    AioContext *ctx = test_context(NULL);
    Blocking holder = { .ret = 0 };
    Job first, second, third;
    pthread_t thread;

    aio_workers_set_max(1);
    sem_init(&holder.gate, 0, 0);
    co_enter(co_create(blocking_entry, &holder)); /* has the only thread */
    job_start(&first);
    job_start(&second);
    job_start(&third);
    EXPECT_TRUE(aio_job_cancel(&second.job)); /* here: goes on at once */
    EXPECT_TRUE(second.ended);
    EXPECT_EQ(second.ret, -ECANCELED);
    EXPECT_TRUE(aio_job_cancel(&second.job)); /* as it was */

    ASSERT_EQ(pthread_create(&thread, NULL, cancel_thread, &first.job), 0);
    AIO_WAIT_WHILE(ctx, !first.ended);
    pthread_join(thread, NULL);
    EXPECT_EQ(first.ret, -ECANCELED);

    EXPECT_FALSE(holder.ended);
    sem_post(&holder.gate);
    AIO_WAIT_WHILE(ctx, !holder.ended || !third.ended);
    EXPECT_EQ(third.ret, 0);
    EXPECT_EQ(calls, 1);
    aio_context_destroy(ctx);
}

TEST(aio_worker, job_cancelled_before_it_is_handed_in_is_refused)
{
    AioContext *ctx = test_context(NULL);
    Job j = { .ret = 1 };

    aio_job_init(&j.job, count_call, NULL);
    EXPECT_TRUE(aio_job_cancel(&j.job));
    co_enter(co_create(job_entry, &j));
    EXPECT_TRUE(j.ended);
    EXPECT_EQ(j.ret, -ECANCELED);
    EXPECT_EQ(calls, 0);
    aio_context_destroy(ctx);
}

static atomic_bool begun;

static int begin_and_wait(void *opaque)
{
    atomic_store(&begun, true);
    aio_notify(home);
    return wait_at_gate(opaque);
}

TEST(aio_worker, job_that_has_begun_is_not_cancelled)
{
    Blocking b = { .ret = 0 };
    Job j = { .ret = 1 };

    home = test_context(NULL);
    sem_init(&b.gate, 0, 0);
    aio_job_init(&j.job, begin_and_wait, &b);
    co_enter(co_create(job_entry, &j));
    AIO_WAIT_WHILE(home, !atomic_load(&begun));
    EXPECT_FALSE(aio_job_cancel(&j.job));
    EXPECT_FALSE(j.ended);
    sem_post(&b.gate);
    AIO_WAIT_WHILE(home, !j.ended);
    EXPECT_EQ(j.ret, 7);
    aio_context_destroy(home);
}

#define RACES 2000

/* Whichever comes first, the coroutine goes on once and is told the truth. */
TEST(aio_worker, cancelling_races_with_beginning)
{
    AioContext *ctx = test_context(NULL);
    unsigned cancelled = 0;

    aio_workers_set_max(1);
    for (int i = 0; i < RACES; i++) {
        Job j = { .ret = 1 };
        unsigned before = calls;

        aio_job_init(&j.job, count_call, NULL);
        co_enter(co_create(job_entry, &j));
        for (int spins = i % 64 * 64; spins > 0; spins--) {
            cpu_relax();
        }
        bool was = aio_job_cancel(&j.job);

        AIO_WAIT_WHILE(ctx, !j.ended);
        EXPECT_EQ(j.ret, was ? -ECANCELED : 0);
        EXPECT_EQ(calls, before + !was);
        cancelled += was;
    }
    EXPECT_LE(cancelled, RACES);
    aio_context_destroy(ctx);
}

/* --- no thread to be had --- */

static int here(void *opaque)
{
    *(pthread_t *)opaque = pthread_self();
    return 5;
}

static co_fn void here_entry(void *opaque)
{
    EXPECT_EQ(aio_co_run_blocking(here, opaque), 5);
}

TEST(aio_worker, call_is_made_by_the_caller_when_no_thread_can_be_started)
{
    AioContext *ctx = test_context(NULL);
    pthread_t who;

    if (HAVE_TSAN || HAVE_ASAN) {
        TEST_SKIP("the sanitizer reports the failure of pthread_create() itself");
    }
    refuse(SYS_clone, EAGAIN);
    refuse(SYS_clone3, EAGAIN);
    co_enter(co_create(here_entry, &who));
    EXPECT_TRUE(pthread_equal(who, pthread_self()));
    EXPECT_EQ(aio_run_detached(here, &who), -EAGAIN);
    aio_context_destroy(ctx);
}

TEST_MAIN()
