/*
 * test-co-queue.c - waiting for a condition: with and without a lock, deadlines, threads
 */
#include "io/aio/co-queue.h"
#include "io/aio/tests/co-test.h"

#define CAPACITY  4
#define ACTORS    16 /* half of them produce */
#define ROUNDS    (HAVE_TSAN ? 500 : 5000)
#define NB_RUSHES (HAVE_TSAN ? 2000 : 20000)

static CoQueue queue;
static CoMutex mutex;
static bool ready GUARDED_BY(mutex);
static unsigned order[8], nb_order;

static void begin(void)
{
    co_test_begin();
    co_queue_init(&queue);
    co_mutex_init(&mutex);
}

static void end(void)
{
    EXPECT_TRUE(co_queue_empty(&queue));
    co_queue_finish(&queue);
    co_mutex_finish(&mutex);
    co_test_end();
}

typedef struct Waiter {
    unsigned number;
    int64_t deadline_ns;
    bool done;
    int ret;
} Waiter;

/* Without a lock. */
static void waiter_entry(void *opaque)
{
    Waiter *w = opaque;

    assert_in_coroutine();
    w->ret = co_queue_wait_until(&queue, NULL, w->deadline_ns);
    order[nb_order++] = w->number;
    w->done = true;
}

static void waiter_start(unsigned ctx, Waiter *w, unsigned number, int64_t deadline_ns)
{
    *w = (Waiter){ .number = number, .deadline_ns = deadline_ns };
    co_test_start(ctx, waiter_entry, w);
}

TEST(co_queue, restarts_one_by_one_in_order_and_each_in_its_home)
{
    Waiter w[3];

    begin();
    EXPECT_FALSE(co_queue_restart_one(&queue));
    for (unsigned i = 0; i < 3; i++) {
        waiter_start(i, &w[i], i, CO_NO_DEADLINE);
    }
    EXPECT_FALSE(co_queue_empty(&queue));
    co_test_settle();
    EXPECT_EQ(nb_order, 0);
    EXPECT_TRUE(co_queue_restart_one(&queue));
    EXPECT_TRUE(w[0].done); /* our own context: at once */
    EXPECT_TRUE(co_queue_restart_one(&queue));
    EXPECT_FALSE(w[1].done);
    EXPECT_EQ(co_test_step(2), 0);
    EXPECT_EQ(co_test_step(1), 1);
    EXPECT_TRUE(w[1].done);
    EXPECT_TRUE(co_queue_restart_one(&queue));
    EXPECT_FALSE(co_queue_restart_one(&queue));
    co_test_settle();
    EXPECT_TRUE(w[2].done);
    end();
}

/* Waits again as soon as it is restarted. */
static void again_entry(void *opaque)
{
    unsigned *nb_restarts = opaque;

    assert_in_coroutine();
    for (; *nb_restarts < 2; ++*nb_restarts) {
        co_queue_wait(&queue, NULL);
    }
}

TEST(co_queue, restart_all_takes_those_that_wait_and_not_those_that_wait_again)
{
    unsigned nb_restarts[4] = { 0 };

    begin();
    for (unsigned i = 0; i < 4; i++) {
        co_test_start(i % CO_TEST_CONTEXTS, again_entry, &nb_restarts[i]);
    }
    for (unsigned round = 1; round <= 2; round++) {
        co_queue_restart_all(&queue);
        EXPECT_EQ(nb_restarts[0], round);
        co_test_settle();
        for (unsigned i = 0; i < 4; i++) {
            EXPECT_EQ(nb_restarts[i], round);
        }
    }
    co_queue_restart_all(&queue);
    end();
}

/* --- with a lock --- */

static void locked_waiter_entry(void *opaque)
{
    Waiter *w = opaque;

    assert_in_coroutine();
    co_mutex_lock(&mutex);
    while (!ready && w->ret == 0) {
        w->ret = co_queue_wait_until(&queue, &mutex, w->deadline_ns);
    }
    order[nb_order++] = w->number;
    co_mutex_unlock(&mutex);
    w->done = true;
}

static void setter_entry(void *opaque)
{
    Waiter *w = opaque;

    assert_in_coroutine();
    co_mutex_lock(&mutex);
    ready = true;
    co_queue_restart_all(&queue);
    EXPECT_FALSE(w->done); /* it wants the lock first */
    co_mutex_unlock(&mutex);
}

TEST(co_queue, waiter_lets_go_of_the_lock_while_it_waits_and_has_it_again_after)
{
    Waiter w[2] = { { .number = 0, .deadline_ns = CO_NO_DEADLINE },
                    { .number = 1, .deadline_ns = CO_NO_DEADLINE } };

    begin();
    co_test_start(1, locked_waiter_entry, &w[0]);
    co_test_start(2, locked_waiter_entry, &w[1]); /* gets the lock, so w[0] has let go */
    co_test_settle();
    EXPECT_FALSE(w[0].done || w[1].done);
    co_test_start(0, setter_entry, &w[0]);
    co_test_settle();
    EXPECT_TRUE(w[0].done && w[1].done);
    EXPECT_EQ(order[0], 0);
    EXPECT_EQ(order[1], 1);
    end();
}

TEST(co_queue, waiter_stands_in_line_before_the_lock_is_free)
{
    Waiter w = { .deadline_ns = CO_NO_DEADLINE };

    begin();
    /* The setter is let in by the very unlock of the wait: it must find the waiter in line. */
    co_test_start(0, locked_waiter_entry, &w);
    co_test_start(1, setter_entry, &w);
    co_test_settle();
    EXPECT_TRUE(w.done);
    end();
}

static void lock_holder_entry(void *opaque)
{
    assert_in_coroutine();
    co_mutex_lock(&mutex);
    *(Coroutine **)opaque = co_self();
    co_yield();
    co_mutex_unlock(&mutex);
}

TEST(co_queue, deadline_ends_the_wait_but_not_without_the_lock)
{
    Waiter w = { .deadline_ns = 0 };
    Coroutine *holder;

    begin();
    co_test_start(1, locked_waiter_entry, &w);
    co_test_start(0, lock_holder_entry, &holder);
    co_test_settle();
    EXPECT_TRUE(co_queue_empty(&queue));
    EXPECT_FALSE(w.done); /* timed out, and waits for the lock */
    co_test_wake(holder);
    co_test_settle();
    EXPECT_TRUE(w.done);
    EXPECT_EQ(w.ret, -ETIMEDOUT);
    end();
}

/* In ctx 1, before the waiter's own timer of the same pass: a restart from elsewhere. */
static void restart_from_elsewhere_cb(void *opaque)
{
    aio_context_enter(test_ctx[0]);
    EXPECT_TRUE(co_queue_restart_one(&queue));
    aio_context_enter(test_ctx[1]);
}

TEST(co_queue, who_was_restarted_has_not_timed_out_even_when_both_come_together)
{
    AioTimer timer;
    Waiter w, later;

    begin();
    aio_context_enter(test_ctx[1]);
    aio_timer_init(&timer, test_ctx[1], restart_from_elsewhere_cb, NULL);
    aio_timer_arm(&timer, 0);
    waiter_start(1, &w, 0, 1);
    co_test_settle();
    EXPECT_TRUE(w.done);
    EXPECT_EQ(w.ret, 0);
    /* ... and who has timed out does not use up a restart, even before it has run. */
    waiter_start(1, &w, 1, 0);
    waiter_start(2, &later, 2, CO_NO_DEADLINE);
    co_test_settle();
    EXPECT_EQ(w.ret, -ETIMEDOUT);
    EXPECT_TRUE(co_queue_restart_one(&queue));
    co_test_settle();
    EXPECT_TRUE(later.done);
    EXPECT_EQ(later.ret, 0);
    end();
}

static void wake_a_waiter(void *opaque)
{
    Waiter w = { .deadline_ns = CO_NO_DEADLINE };
    Coroutine *co = co_create(waiter_entry, &w);

    co_enter(co);
    aio_co_wake(co);
}

static NO_TSA void wait_without_its_lock_entry(void *opaque)
{
    assert_in_coroutine();
    co_queue_wait(&queue, &mutex);
}

static void wait_without_its_lock(void *opaque)
{
    co_enter(co_create(wait_without_its_lock_entry, NULL));
}

TEST(co_queue, wrong_use_aborts)
{
    begin();
    EXPECT_DEATH(wake_a_waiter, NULL, SIGABRT, "co_line_wait");
    EXPECT_DEATH(wait_without_its_lock, NULL, SIGABRT, "co_mutex_unlock");
    end();
}

/* --- threads: a buffer of a few places, its producers and consumers --- */

typedef struct Actor {
    unsigned number;
    unsigned nb_rounds, nb_late;
    uint64_t sum;
} Actor;

static CoQueue not_empty, not_full;
static unsigned nb_items GUARDED_BY(mutex);
static uint64_t items[CAPACITY] GUARDED_BY(mutex);

static co_fn void produce(Actor *a)
{
    co_mutex_lock(&mutex);
    while (nb_items == CAPACITY) {
        co_queue_wait(&not_full, &mutex);
    }
    items[nb_items++] = a->nb_rounds;
    a->sum += a->nb_rounds;
    co_queue_restart_one(&not_empty);
    co_mutex_unlock(&mutex);
}

static co_fn void consume(Actor *a)
{
    co_mutex_lock(&mutex);
    while (nb_items == 0) {
        int64_t deadline_ns = a->nb_rounds % 2 ? CO_NO_DEADLINE : aio_now_ns() + 10000;

        a->nb_late += co_queue_wait_until(&not_empty, &mutex, deadline_ns) < 0;
    }
    a->sum += items[--nb_items];
    co_mutex_unlock(&mutex);
    co_queue_restart_one(&not_full); /* or after the unlock */
}

static void actor_entry(void *opaque)
{
    Actor *a = opaque;

    assert_in_coroutine();
    for (a->nb_rounds = 0; a->nb_rounds < ROUNDS; a->nb_rounds++) {
        if (a->number % 2) {
            produce(a);
        } else {
            consume(a);
        }
    }
    co_test_actor_ends();
}

TEST(co_queue, no_wake_up_is_lost_between_producers_and_consumers_in_eight_threads)
{
    static Actor actors[ACTORS];
    uint64_t produced = 0, consumed = 0;

    co_queue_init(&not_empty);
    co_queue_init(&not_full);
    co_mutex_init(&mutex);
    for (unsigned i = 0; i < ACTORS; i++) {
        actors[i].number = i + i / CO_TEST_THREADS; /* both kinds in each thread */
    }
    co_test_run_actors(actor_entry, ACTORS, actors, sizeof(actors[0]));
    for (unsigned i = 0; i < ACTORS; i++) {
        EXPECT_EQ(actors[i].nb_rounds, ROUNDS);
        *(actors[i].number % 2 ? &produced : &consumed) += actors[i].sum;
    }
    EXPECT_EQ(produced, consumed);
    co_queue_finish(&not_empty);
    co_queue_finish(&not_full);
    co_mutex_finish(&mutex);
}

/* --- two threads: one waits, the other is at the lock the moment it becomes free --- */

static bool wanted GUARDED_BY(mutex);

static co_fn void rushing_waiter(void)
{
    for (unsigned i = 0; i < NB_RUSHES; i++) {
        co_mutex_lock(&mutex);
        wanted = true;
        while (wanted) {
            co_queue_wait(&queue, &mutex);
        }
        co_mutex_unlock(&mutex);
    }
}

static co_fn bool rushing_restart(void)
{
    while (!co_mutex_trylock(&mutex)) {
        cpu_relax(); /* does not stand in line, so that it has the lock at once */
    }
    bool was_wanted = wanted;

    if (was_wanted) {
        wanted = false;
        co_queue_restart_one(&queue);
    }
    co_mutex_unlock(&mutex);
    return was_wanted;
}

static void rushing_entry(void *opaque)
{
    unsigned *number = opaque;

    assert_in_coroutine();
    if (*number == 0) {
        rushing_waiter();
    } else {
        for (unsigned i = 0; i < NB_RUSHES; i += rushing_restart()) {
            cpu_relax();
        }
    }
    co_test_actor_ends();
}

TEST(co_queue, restart_in_the_moment_the_waiter_lets_go_of_the_lock_is_not_lost)
{
    unsigned numbers[2] = { 0, 1 };

    co_queue_init(&queue);
    co_mutex_init(&mutex);
    co_test_run_actors(rushing_entry, 2, numbers, sizeof(numbers[0]));
    EXPECT_TRUE(co_queue_empty(&queue));
    co_queue_finish(&queue);
    co_mutex_finish(&mutex);
}

TEST_MAIN()
