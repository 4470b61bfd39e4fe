/*
 * test-co-mutex.c - the coroutine lock: exclusion, order, hand-over, and threads
 */
#include "io/aio/co-mutex.h"
#include "io/aio/iothread.h"
#include "io/aio/tests/aio-test.h"

#define NB_THREADS    8
#define NB_COROUTINES 4 /* in each thread */
#define NB_ROUNDS     (HAVE_TSAN ? 200 : 3000)
#define NB_RUSHES     (HAVE_TSAN ? 5000 : 100000)

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

/* --- several contexts, stepped by hand in one thread --- */

static unsigned steps_run(AioContext *ctx)
{
    uint64_t before = test_stats(ctx).bhs;

    aio_context_enter(ctx);
    while (aio_poll(ctx, false)) {
    }
    aio_context_enter(main_ctx);
    return test_stats(ctx).bhs - before;
}

static void holder_start_in(AioContext *ctx, Holder *h, unsigned number)
{
    aio_context_enter(ctx);
    holder_start(h, number);
    aio_context_enter(main_ctx);
}

TEST(co_mutex, unlocking_wakes_one_waiter_in_its_home_and_leaves_the_herd_asleep)
{
    AioContext *ctx[3];
    Holder holder, waiter[6];

    begin();
    for (unsigned i = 0; i < 3; i++) {
        ctx[i] = test_context(NULL);
    }
    aio_context_enter(main_ctx);
    holder_start(&holder, 100);
    for (unsigned i = 0; i < 6; i++) {
        holder_start_in(ctx[i % 3], &waiter[i], i);
    }
    aio_co_wake(holder.co);
    EXPECT_TRUE(holder.done);
    for (unsigned i = 0; i < 6; i++) {
        EXPECT_FALSE(waiter[i].holds); /* not in the unlocker's thread of work */
        for (unsigned c = 0; c < 3; c++) {
            EXPECT_EQ(steps_run(ctx[c]), c == i % 3 ? 1 : 0);
        }
        ASSERT_TRUE(waiter[i].holds);
        aio_context_enter(ctx[i % 3]);
        aio_co_wake(waiter[i].co);
        aio_context_enter(main_ctx);
        EXPECT_TRUE(waiter[i].done);
    }
    for (unsigned i = 0; i < 3; i++) {
        aio_context_enter(ctx[i]);
        aio_context_destroy(ctx[i]);
    }
    aio_context_enter(main_ctx);
    end();
}

/* --- trylock, the owner, the end of the lock --- */

static void trylock_entry(void *opaque)
{
    bool *got = opaque;

    assert_in_coroutine();
    *got = false;
    if (co_mutex_trylock(&mutex)) {
        *got = true;
        co_mutex_unlock(&mutex);
    }
}

TEST(co_mutex, trylock_takes_a_free_lock_and_never_waits)
{
    Holder a, b;
    bool got;

    begin();
    co_enter(co_create(trylock_entry, &got));
    EXPECT_TRUE(got);
    holder_start(&a, 0);
    co_enter(co_create(trylock_entry, &got));
    EXPECT_FALSE(got);
    holder_start(&b, 1);
    aio_co_wake(a.co);
    co_enter(co_create(trylock_entry, &got)); /* on its way to b, or there: not free */
    EXPECT_FALSE(got);
    settle();
    aio_co_wake(b.co);
    co_enter(co_create(trylock_entry, &got));
    EXPECT_TRUE(got);
    end();
}

static NO_TSA void strangers_unlock_entry(void *opaque)
{
    assert_in_coroutine();
    co_mutex_unlock(&mutex);
}

static void unlock_by_stranger(void *opaque)
{
    Holder a;

    holder_start(&a, 0);
    co_enter(co_create(strangers_unlock_entry, NULL));
}

static void unlock_of_free_lock(void *opaque)
{
    co_enter(co_create(strangers_unlock_entry, NULL));
}

static NO_TSA void lock_twice_entry(void *opaque)
{
    assert_in_coroutine();
    co_mutex_lock(&mutex);
    co_mutex_lock(&mutex);
}

static void lock_twice(void *opaque)
{
    co_enter(co_create(lock_twice_entry, NULL));
}

static void wake_a_waiter(void *opaque)
{
    Holder a, b;

    holder_start(&a, 0);
    Coroutine *waiter = co_create(holder_entry, &b);

    co_enter(waiter);
    aio_co_wake(waiter);
}

TEST(co_mutex, wrong_use_aborts)
{
    begin();
    EXPECT_DEATH(unlock_by_stranger, NULL, SIGABRT, "co_mutex_unlock");
    EXPECT_DEATH(unlock_of_free_lock, NULL, SIGABRT, "co_mutex_unlock");
    EXPECT_DEATH(lock_twice, NULL, SIGABRT, "owner_of(mutex) != self");
    EXPECT_DEATH(wake_a_waiter, NULL, SIGABRT, "owner_of(mutex) == self");
    end();
}

/* An object that is freed by the last of its users, under its own lock. */
typedef struct Shared {
    CoMutex lock;
    unsigned users;
} Shared;

static Shared *shared;

static void shared_user_entry(void *opaque)
{
    Coroutine **co = opaque;

    assert_in_coroutine();
    *co = co_self();
    co_mutex_lock(&shared->lock);
    co_yield();
    bool last = --shared->users == 0;

    co_mutex_unlock(&shared->lock);
    if (last) {
        co_mutex_finish(&shared->lock);
        free(shared);
        shared = NULL;
    }
}

TEST(co_mutex, next_holder_may_free_what_the_lock_is_in)
{
    Coroutine *co[3];

    begin();
    shared = calloc(1, sizeof(*shared)); /* zeros are a free lock */
    shared->users = ARRAY_SIZE(co);
    for (unsigned i = 0; i < ARRAY_SIZE(co); i++) {
        co_enter(co_create(shared_user_entry, &co[i]));
    }
    for (unsigned i = 0; i < ARRAY_SIZE(co); i++) {
        ASSERT_TRUE(shared != NULL);
        aio_co_wake(co[i]);
        settle();
    }
    EXPECT_TRUE(shared == NULL);
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
        if (i % 16 == 0) {
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

TEST(co_mutex, no_wake_up_is_lost_and_nobody_overlaps_in_eight_threads)
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

/* --- two threads that want it at the same time, again and again --- */

static _Atomic unsigned nb_ready;

static void rushing_entry(void *opaque)
{
    assert_in_coroutine();
    atomic_fetch_add(&nb_ready, 1);
    while (atomic_load(&nb_ready) < 2) {
        cpu_relax();
    }
    for (unsigned i = 0; i < NB_RUSHES; i++) {
        co_mutex_lock(&mutex);
        counter++;
        co_mutex_unlock(&mutex);
        for (unsigned pause = i % 32; pause > 0; pause--) {
            cpu_relax(); /* so that each meets every step of the other */
        }
    }
    atomic_fetch_sub(&nb_left, 1);
    aio_notify(main_ctx);
}

TEST(co_mutex, waiter_that_comes_in_the_middle_of_an_unlock_is_not_forgotten)
{
    AioParams params = { .poll_max_ns = 1000000 }; /* awake, so that they meet more often */
    IOThread *threads[2];
    Error err;

    begin();
    atomic_store(&nb_left, 2);
    for (unsigned t = 0; t < 2; t++) {
        threads[t] = iothread_create("rush", &params, &err);
        ASSERT_TRUE(threads[t] != NULL);
        aio_co_schedule(iothread_context(threads[t]), co_create(rushing_entry, NULL));
    }
    AIO_WAIT_WHILE(main_ctx, atomic_load(&nb_left) > 0);
    EXPECT_EQ(counter, 2 * NB_RUSHES);
    for (unsigned t = 0; t < 2; t++) {
        iothread_unref(threads[t]);
    }
    end();
}

TEST_MAIN()
