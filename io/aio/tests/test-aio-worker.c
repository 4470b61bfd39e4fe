/*
 * test-aio-worker.c - calls that block: who does them, and that none waits behind another
 */
#include <semaphore.h>

#include "io/aio/aio-file.h"
#include "io/aio/tests/aio-test.h"

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

/* Let the worker that has just been of service become idle; if it does not, the test is weaker. */
static void give_way(void)
{
    usleep(20000);
}

TEST(aio_worker, job_does_not_wait_behind_one_that_hangs)
{
    AioContext *ctx = test_context(NULL);
    Blocking first = { .ret = 0 }, hanging = { .ret = 0 }, last = { .ret = 0 };

    sem_init(&first.gate, 0, 1);
    sem_init(&hanging.gate, 0, 0);
    sem_init(&last.gate, 0, 1);
    co_enter(co_create(blocking_entry, &first));
    AIO_WAIT_WHILE(ctx, !first.ended);
    EXPECT_EQ(first.ret, 7);
    Coroutine *one = co_create(blocking_entry, &hanging);
    Coroutine *other = co_create(blocking_entry, &last);

    give_way();
    /* One worker is idle, and counts as such until it has woken up for the job that hangs. */
    co_enter(one);
    co_enter(other);
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

TEST_MAIN()
