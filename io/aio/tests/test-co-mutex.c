/*
 * test-co-mutex.c - the coroutine lock: exclusion, order, hand-over, and threads
 */
#include "io/aio/co-mutex.h"
#include "io/aio/iothread.h"
#include "io/aio/tests/aio-test.h"

#define NB_THREADS    3
#define NB_COROUTINES 8 /* in each thread */
#define NB_ROUNDS     (HAVE_TSAN ? 100 : 500)

static CoMutex mutex;
static AioContext *main_ctx;

static void begin(void)
{
    main_ctx = test_context(NULL);
    aio_context_set_main(main_ctx);
    co_mutex_init(&mutex);
}

static void end(void)
{
    co_mutex_finish(&mutex);
    aio_context_destroy(main_ctx);
}

static void settle(void)
{
    while (aio_poll(main_ctx, false)) {
    }
}

/* A coroutine that takes the lock, notes its number, yields, and lets go when it is woken. */
typedef struct Holder {
    unsigned number;
    Coroutine *co;
    bool holds, done;
} Holder;

static unsigned order[8];
static unsigned nb_order;

static void holder_entry(void *opaque)
{
    Holder *h = opaque;

    assert_in_coroutine();
    h->co = co_self();
    co_mutex_lock(&mutex);
    order[nb_order++] = h->number;
    h->holds = true;
    co_yield();
    h->holds = false;
    co_mutex_unlock(&mutex);
    h->done = true;
}

static void holder_start(Holder *h, unsigned number)
{
    *h = (Holder){ .number = number };
    co_enter(co_create(holder_entry, h));
}

TEST(co_mutex, a_free_lock_is_taken_without_a_yield)
{
    Holder a;

    begin();
    holder_start(&a, 0);
    EXPECT_TRUE(a.holds);
    aio_co_wake(a.co);
    EXPECT_TRUE(a.done);
    holder_start(&a, 1);
    EXPECT_TRUE(a.holds);
    aio_co_wake(a.co);
    EXPECT_TRUE(a.done);
    end();
}

TEST(co_mutex, the_lock_stays_held_across_a_yield)
{
    Holder a, b;

    begin();
    holder_start(&a, 0);
    holder_start(&b, 1);
    settle();
    EXPECT_TRUE(a.holds);
    EXPECT_FALSE(b.holds);
    aio_co_wake(a.co);
    settle();
    EXPECT_TRUE(b.holds);
    aio_co_wake(b.co);
    EXPECT_TRUE(b.done);
    end();
}

TEST(co_mutex, waiters_get_it_in_order_of_arrival)
{
    Holder h[6];

    begin();
    for (unsigned i = 0; i < 6; i++) {
        holder_start(&h[i], i);
    }
    for (unsigned i = 0; i < 6; i++) {
        settle();
        ASSERT_TRUE(h[i].holds);
        aio_co_wake(h[i].co);
    }
    settle();
    for (unsigned i = 0; i < 6; i++) {
        EXPECT_EQ(order[i], i);
        EXPECT_TRUE(h[i].done);
    }
    end();
}

static Holder overtaker;

/* Unlocks with somebody waiting, and at once asks for the lock again. */
static void greedy_entry(void *opaque)
{
    Holder *h = opaque;

    assert_in_coroutine();
    h->co = co_self();
    co_mutex_lock(&mutex);
    co_yield();
    co_mutex_unlock(&mutex);
    holder_start(&overtaker, 9);
    co_mutex_lock(&mutex);
    order[nb_order++] = h->number;
    co_mutex_unlock(&mutex);
    h->done = true;
}

TEST(co_mutex, nobody_overtakes_a_waiter_that_was_woken_and_has_not_run)
{
    Holder greedy = { .number = 7 }, waiter;

    begin();
    co_enter(co_create(greedy_entry, &greedy));
    holder_start(&waiter, 1);
    aio_co_wake(greedy.co);
    settle();
    EXPECT_TRUE(waiter.holds);
    EXPECT_FALSE(overtaker.holds);
    EXPECT_FALSE(greedy.done);
    aio_co_wake(waiter.co);
    settle();
    aio_co_wake(overtaker.co);
    settle();
    EXPECT_TRUE(greedy.done);
    ASSERT_EQ(nb_order, 3);
    EXPECT_EQ(order[0], 1);
    EXPECT_EQ(order[1], 9);
    EXPECT_EQ(order[2], 7);
    end();
}

/* --- threads --- */

static unsigned counter; /* no atomic: the lock protects it */
static _Atomic int inside;
static _Atomic unsigned nb_overlaps;
static _Atomic unsigned nb_left;

static void wake_bh(void *opaque)
{
    aio_co_wake(opaque);
}

static void counting_entry(void *opaque)
{
    assert_in_coroutine();
    for (unsigned i = 0; i < NB_ROUNDS; i++) {
        co_mutex_lock(&mutex);
        unsigned seen = counter;

        if (atomic_fetch_add(&inside, 1) != 0) {
            atomic_fetch_add(&nb_overlaps, 1);
        }
        if (i % 4 == 0) {
            aio_bh_schedule_oneshot(aio_current(), wake_bh, co_self());
            co_yield();
        }
        atomic_fetch_sub(&inside, 1);
        counter = seen + 1;
        co_mutex_unlock(&mutex);
    }
    atomic_fetch_sub(&nb_left, 1);
    aio_notify(main_ctx);
}

TEST(co_mutex, coroutines_of_several_threads_exclude_each_other)
{
    IOThread *threads[NB_THREADS];
    Error err;

    begin();
    atomic_store(&nb_left, NB_THREADS * NB_COROUTINES);
    for (unsigned t = 0; t < NB_THREADS; t++) {
        threads[t] = iothread_create("test", NULL, &err);
        ASSERT_TRUE(threads[t] != NULL);
        for (unsigned c = 0; c < NB_COROUTINES; c++) {
            aio_co_schedule(iothread_context(threads[t]), co_create(counting_entry, NULL));
        }
    }
    AIO_WAIT_WHILE(main_ctx, atomic_load(&nb_left) > 0);
    EXPECT_EQ(counter, NB_THREADS * NB_COROUTINES * NB_ROUNDS);
    EXPECT_EQ(atomic_load(&nb_overlaps), 0);
    for (unsigned t = 0; t < NB_THREADS; t++) {
        iothread_unref(threads[t]);
    }
    end();
}

TEST_MAIN()
