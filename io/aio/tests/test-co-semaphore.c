/*
 * test-co-semaphore.c - units: taken, handed on in order, kept when a deadline passes
 */
#include "io/aio/co-semaphore.h"
#include "io/aio/tests/co-test.h"

#define UNITS     3
#define ACTORS    24
#define ROUNDS    (HAVE_TSAN ? 300 : 3000)
#define NB_RUSHES (HAVE_TSAN ? 2000 : 20000)

static CoSemaphore sem;
static unsigned order[8], nb_order;

static void begin(unsigned nb_free)
{
    co_test_begin();
    co_semaphore_init(&sem, nb_free);
}

static void end(unsigned nb_free)
{
    for (; nb_free > 0; nb_free--) {
        EXPECT_TRUE(co_semaphore_try_acquire(&sem));
    }
    EXPECT_FALSE(co_semaphore_try_acquire(&sem)); /* none came into being */
    co_semaphore_finish(&sem);
    co_test_end();
}

typedef struct Taker {
    unsigned number;
    int64_t deadline_ns;
    bool done;
    int ret;
} Taker;

static void taker_entry(void *opaque)
{
    Taker *t = opaque;

    assert_in_coroutine();
    t->ret = co_semaphore_acquire_until(&sem, t->deadline_ns);
    if (t->ret == 0) {
        order[nb_order++] = t->number;
    }
    t->done = true;
}

static void taker_start(unsigned ctx, Taker *t, unsigned number, int64_t deadline_ns)
{
    *t = (Taker){ .number = number, .deadline_ns = deadline_ns };
    co_test_start(ctx, taker_entry, t);
}

TEST(co_semaphore, takes_what_is_free_without_a_yield_and_no_more)
{
    Taker t[3];

    begin(2);
    for (unsigned i = 0; i < 3; i++) {
        taker_start(0, &t[i], i, CO_NO_DEADLINE);
        EXPECT_EQ(t[i].done, i < 2);
    }
    EXPECT_FALSE(co_semaphore_try_acquire(&sem));
    co_semaphore_release(&sem);
    EXPECT_TRUE(t[2].done);
    co_semaphore_release(&sem);
    EXPECT_TRUE(co_semaphore_try_acquire(&sem));
    co_semaphore_release(&sem);
    end(1);
}

TEST(co_semaphore, unit_goes_to_the_first_in_line_and_nobody_overtakes)
{
    Taker t[3], late;

    begin(0);
    for (unsigned i = 0; i < 3; i++) {
        taker_start(i, &t[i], i, CO_NO_DEADLINE); /* a context each */
    }
    co_semaphore_release(&sem); /* wakes t[0] at once, we are in its home */
    co_semaphore_release(&sem);
    EXPECT_FALSE(t[1].done);
    EXPECT_FALSE(co_semaphore_try_acquire(&sem)); /* on its way to t[1] */
    taker_start(0, &late, 9, CO_NO_DEADLINE);
    EXPECT_FALSE(late.done);
    EXPECT_EQ(co_test_step(2), 0); /* only the one was woken */
    EXPECT_EQ(co_test_step(1), 1);
    co_semaphore_release(&sem);
    co_semaphore_release(&sem);
    co_test_settle();
    ASSERT_EQ(nb_order, 4);
    EXPECT_EQ(order[0], 0);
    EXPECT_EQ(order[1], 1);
    EXPECT_EQ(order[2], 9); /* both were granted; t[2] runs in another context, later */
    EXPECT_EQ(order[3], 2);
    end(0);
}

TEST(co_semaphore, deadline_ends_the_wait_and_the_place_in_line)
{
    Taker t[3];

    begin(0);
    taker_start(1, &t[0], 0, 0);
    taker_start(1, &t[1], 1, INT64_MAX - 1);
    taker_start(1, &t[2], 2, aio_now_ns());
    EXPECT_FALSE(t[0].done);
    co_test_settle();
    EXPECT_TRUE(t[0].done && t[2].done);
    EXPECT_EQ(t[0].ret, -ETIMEDOUT);
    EXPECT_EQ(t[2].ret, -ETIMEDOUT);
    EXPECT_FALSE(t[1].done);
    co_semaphore_release(&sem);
    co_test_settle();
    EXPECT_TRUE(t[1].done);
    EXPECT_EQ(t[1].ret, 0);
    end(0);
}

/* In ctx 1, before the waiter's own timer of the same pass: a unit from elsewhere. */
static void release_from_elsewhere_cb(void *opaque)
{
    aio_context_enter(test_ctx[0]);
    co_semaphore_release(&sem);
    aio_context_enter(test_ctx[1]);
}

TEST(co_semaphore, unit_that_was_granted_is_not_lost_to_a_deadline_that_passes_meanwhile)
{
    AioTimer timer;
    Taker t;

    begin(0);
    aio_context_enter(test_ctx[1]);
    aio_timer_init(&timer, test_ctx[1], release_from_elsewhere_cb, NULL);
    aio_timer_arm(&timer, 0);
    taker_start(1, &t, 0, 1);
    co_test_settle();
    EXPECT_TRUE(t.done);
    EXPECT_EQ(t.ret, 0);
    end(0);
}

static void wake_a_waiter(void *opaque)
{
    Taker t = { .deadline_ns = CO_NO_DEADLINE };
    Coroutine *co = co_create(taker_entry, &t);

    co_enter(co);
    aio_co_wake(co);
}

TEST(co_semaphore, waking_a_waiter_by_other_means_aborts)
{
    begin(0);
    EXPECT_DEATH(wake_a_waiter, NULL, SIGABRT, "co_line_wait");
    end(0);
}

/* --- threads --- */

typedef struct Actor {
    unsigned seed;
    unsigned nb_taken, nb_late;
} Actor;

static _Atomic int nb_inside;

static void actor_entry(void *opaque)
{
    Actor *a = opaque;

    assert_in_coroutine();
    for (unsigned i = 0; i < ROUNDS; i++) {
        a->seed = a->seed * 1103515245 + 12345;
        if (a->seed >> 30) { /* three of four */
            co_semaphore_acquire(&sem);
        } else if (co_semaphore_acquire_until(&sem, aio_now_ns() + (a->seed >> 16) % 20000) < 0) {
            a->nb_late++;
            continue;
        }
        EXPECT_LE(atomic_fetch_add(&nb_inside, 1), UNITS - 1);
        if (i % 8 == 0) {
            aio_co_sleep_ns(0);
        }
        a->nb_taken++;
        atomic_fetch_sub(&nb_inside, 1);
        co_semaphore_release(&sem);
    }
    co_test_actor_ends();
}

TEST(co_semaphore, eight_threads_with_deadlines_lose_neither_units_nor_wake_ups)
{
    static Actor actors[ACTORS];

    co_semaphore_init(&sem, UNITS);
    for (unsigned i = 0; i < ACTORS; i++) {
        actors[i].seed = i;
    }
    co_test_run_actors(actor_entry, ACTORS, actors, sizeof(actors[0]));
    for (unsigned i = 0; i < ACTORS; i++) {
        EXPECT_EQ(actors[i].nb_taken + actors[i].nb_late, ROUNDS);
    }
    EXPECT_EQ(sem.nb_free, UNITS);
    co_semaphore_finish(&sem);
}

/* --- two threads: a unit comes the moment it is asked for --- */

static _Atomic unsigned nb_asked;

static void rushing_entry(void *opaque)
{
    unsigned *number = opaque;

    assert_in_coroutine();
    for (unsigned i = 0; i < NB_RUSHES; i++) {
        if (*number == 0) {
            atomic_fetch_add(&nb_asked, 1);
            co_semaphore_acquire(&sem);
            continue;
        }
        while (atomic_load(&nb_asked) <= i) {
            cpu_relax();
        }
        for (unsigned pause = i % 48; pause > 0; pause--) {
            cpu_relax(); /* so that it meets every step of the other */
        }
        co_semaphore_release(&sem);
    }
    co_test_actor_ends();
}

TEST(co_semaphore, unit_that_comes_the_moment_it_is_asked_for_is_not_lost)
{
    unsigned numbers[2] = { 0, 1 };

    co_semaphore_init(&sem, 0);
    co_test_run_actors(rushing_entry, 2, numbers, sizeof(numbers[0]));
    EXPECT_EQ(sem.nb_free, 0);
    co_semaphore_finish(&sem);
}

TEST_MAIN()
