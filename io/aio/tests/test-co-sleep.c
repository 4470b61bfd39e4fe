/*
 * test-co-sleep.c - sleeps that end early, that do not, and wake-ups that come at bad moments
 */
#include "io/aio/co-sleep.h"
#include "io/aio/tests/co-test.h"

#define MS      1000000LL
#define FOREVER (3600 * 1000 * MS)
#define WAKES   (HAVE_TSAN ? 2000 : 5000)

typedef struct Sleeper {
    CoSleep sleep;
    int64_t duration_ns;
    unsigned nb_ends;
    bool lasted;
} Sleeper;

static void sleeper_entry(void *opaque)
{
    Sleeper *s = opaque;

    assert_in_coroutine();
    s->lasted = co_sleep_ns(&s->sleep, s->duration_ns);
    s->nb_ends++;
}

static void sleeper_start(unsigned ctx, Sleeper *s, int64_t duration_ns)
{
    *s = (Sleeper){ .duration_ns = duration_ns };
    co_sleep_init(&s->sleep);
    co_test_start(ctx, sleeper_entry, s);
}

TEST(co_sleep, lasts_as_long_as_asked_when_nobody_wakes_it)
{
    int64_t start_ns = aio_now_ns();
    Sleeper s;

    co_test_begin();
    sleeper_start(0, &s, 2 * MS);
    EXPECT_EQ(s.nb_ends, 0);
    AIO_WAIT_WHILE(test_ctx[0], s.nb_ends == 0);
    EXPECT_TRUE(s.lasted);
    EXPECT_GE(aio_now_ns() - start_ns, 2 * MS);
    sleeper_start(0, &s, -1); /* not at all, but later */
    EXPECT_EQ(s.nb_ends, 0);
    co_test_settle();
    EXPECT_EQ(s.nb_ends, 1);
    co_test_end();
}

TEST(co_sleep, ends_early_in_its_home_when_woken_and_leaves_no_timer)
{
    Sleeper here, there;

    co_test_begin();
    sleeper_start(0, &here, FOREVER);
    sleeper_start(1, &there, FOREVER);
    co_test_settle();
    co_sleep_wake(&there.sleep);
    EXPECT_EQ(there.nb_ends, 0); /* not in our thread of work */
    EXPECT_EQ(co_test_step(1), 1);
    EXPECT_EQ(there.nb_ends, 1);
    EXPECT_FALSE(there.lasted);
    EXPECT_EQ(here.nb_ends, 0);
    co_sleep_wake(&here.sleep);
    EXPECT_EQ(here.nb_ends, 1);
    EXPECT_FALSE(here.lasted);
    co_test_end();
}

static void sleep_twice_entry(void *opaque)
{
    Sleeper *s = opaque;

    assert_in_coroutine();
    EXPECT_FALSE(co_sleep_ns(&s->sleep, FOREVER));
    s->nb_ends++;
    s->lasted = co_sleep_ns(&s->sleep, FOREVER);
    s->nb_ends++;
}

TEST(co_sleep, wake_before_the_sleep_is_remembered_and_several_are_one)
{
    Sleeper s = { .nb_ends = 0 };

    co_test_begin();
    co_sleep_init(&s.sleep);
    co_sleep_wake(&s.sleep);
    co_sleep_wake(&s.sleep);
    co_test_start(0, sleep_twice_entry, &s);
    EXPECT_EQ(s.nb_ends, 1);
    co_sleep_wake(&s.sleep);
    EXPECT_EQ(s.nb_ends, 2);
    EXPECT_FALSE(s.lasted);
    co_test_end();
}

TEST(co_sleep, wake_and_timer_together_wake_once)
{
    Sleeper s;

    co_test_begin();
    sleeper_start(1, &s, 0); /* over already, and its context has not looked */
    co_sleep_wake(&s.sleep);
    co_sleep_wake(&s.sleep);
    co_test_settle();
    EXPECT_EQ(s.nb_ends, 1);
    EXPECT_FALSE(s.lasted);
    co_test_end();
}

/* In ctx 1, before the sleeper's own timer of the same pass: a wake from elsewhere. */
static void wake_from_elsewhere_cb(void *opaque)
{
    Sleeper *s = opaque;

    aio_context_enter(test_ctx[0]);
    co_sleep_wake(&s->sleep);
    aio_context_enter(test_ctx[1]);
}

TEST(co_sleep, timer_of_a_coroutine_that_was_woken_and_has_not_run_is_ignored)
{
    AioTimer timer;
    Sleeper s;

    co_test_begin();
    aio_context_enter(test_ctx[1]);
    aio_timer_init(&timer, test_ctx[1], wake_from_elsewhere_cb, &s);
    aio_timer_arm(&timer, 0); /* comes first */
    sleeper_start(1, &s, 0);
    co_test_settle();
    EXPECT_EQ(s.nb_ends, 1);
    EXPECT_FALSE(s.lasted);
    co_test_end();
}

/* --- threads: each wakes the next in a ring that sleeps for ever --- */

typedef struct Link {
    CoSleep sleep;
    struct Link *next;
    unsigned nb_woken;
} Link;

static Link links[CO_TEST_THREADS];

static void link_entry(void *opaque)
{
    Link *l = opaque;

    assert_in_coroutine();
    for (l->nb_woken = 0; l->nb_woken < WAKES; l->nb_woken++) {
        if (l == &links[0]) {
            co_sleep_wake(&l->next->sleep);
        }
        EXPECT_FALSE(co_sleep_ns(&l->sleep, FOREVER));
        if (l != &links[0]) {
            co_sleep_wake(&l->next->sleep);
        }
    }
    co_test_actor_ends();
}

TEST(co_sleep, no_wake_up_is_lost_in_a_ring_of_eight_threads)
{
    for (unsigned i = 0; i < ARRAY_SIZE(links); i++) {
        co_sleep_init(&links[i].sleep);
        links[i].next = &links[(i + 1) % ARRAY_SIZE(links)];
    }
    co_test_run_actors(link_entry, ARRAY_SIZE(links), links, sizeof(links[0]));
    for (unsigned i = 0; i < ARRAY_SIZE(links); i++) {
        EXPECT_EQ(links[i].nb_woken, WAKES);
    }
}

TEST_MAIN()
