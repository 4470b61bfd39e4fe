/*
 * test-co-rwlock.c - readers and writers: who gets it when, upgrade and downgrade, threads
 */
#include "io/aio/co-rwlock.h"
#include "io/aio/tests/co-test.h"

#define ACTORS 24
#define ROUNDS (HAVE_TSAN ? 300 : 3000)

static CoRwlock lock;

static void begin(void)
{
    co_test_begin();
    co_rwlock_init(&lock);
}

static void end(void)
{
    co_rwlock_finish(&lock);
    co_test_end();
}

/* A coroutine that does one step of its script each time it is woken while it has what it wants. */
typedef struct Holder {
    const char *script; /* r, w = lock; R, W = unlock; u = upgrade; d = downgrade */
    Coroutine *co;
    unsigned nb_steps; /* done */
    bool upgraded_at_once;
} Holder;

static NO_TSA void holder_entry(void *opaque)
{
    Holder *h = opaque;

    assert_in_coroutine();
    h->co = co_self();
    for (; h->script[h->nb_steps]; h->nb_steps++) {
        if (h->nb_steps > 0) {
            co_yield();
        }
        switch (h->script[h->nb_steps]) {
        case 'r':
            co_rwlock_rdlock(&lock);
            break;
        case 'w':
            co_rwlock_wrlock(&lock);
            break;
        case 'R':
            co_rwlock_rdunlock(&lock);
            break;
        case 'W':
            co_rwlock_wrunlock(&lock);
            break;
        case 'u':
            h->upgraded_at_once = co_rwlock_upgrade(&lock);
            break;
        case 'd':
            co_rwlock_downgrade(&lock);
            break;
        }
    }
}

static void start(unsigned ctx, Holder *h, const char *script)
{
    *h = (Holder){ .script = script };
    co_test_start(ctx, holder_entry, h);
}

/* Let it do its next step, and everybody what follows from that. */
static void step(Holder *h)
{
    co_test_wake(h->co);
    co_test_settle();
}

TEST(co_rwlock, readers_share_it_and_a_writer_has_it_alone)
{
    Holder r1, r2, w1, w2;

    begin();
    start(0, &r1, "rR");
    start(1, &r2, "rR");
    EXPECT_EQ(r1.nb_steps, 1);
    EXPECT_EQ(r2.nb_steps, 1);
    start(2, &w1, "wW");
    start(0, &w2, "wW");
    step(&r1);
    EXPECT_EQ(w1.nb_steps, 0);
    step(&r2);
    EXPECT_EQ(w1.nb_steps, 1);
    EXPECT_EQ(w2.nb_steps, 0);
    step(&w1);
    EXPECT_EQ(w2.nb_steps, 1);
    step(&w2);
    end();
}

TEST(co_rwlock, readers_that_keep_coming_do_not_starve_a_writer)
{
    Holder r1, r2, w, late[3];

    begin();
    start(0, &r1, "rR");
    start(1, &w, "wW");
    start(0, &r2, "rR"); /* could share it with r1, but stands behind the writer */
    EXPECT_EQ(r2.nb_steps, 0);
    step(&r1);
    EXPECT_EQ(w.nb_steps, 1);
    EXPECT_EQ(r2.nb_steps, 0);
    for (unsigned i = 0; i < 3; i++) {
        start(i, &late[i], "rR");
    }
    step(&w); /* readers next to each other in line get it together */
    EXPECT_EQ(r2.nb_steps, 1);
    for (unsigned i = 0; i < 3; i++) {
        EXPECT_EQ(late[i].nb_steps, 1);
        step(&late[i]);
    }
    step(&r2);
    end();
}

TEST(co_rwlock, writers_that_keep_coming_do_not_starve_a_reader)
{
    Holder w1, w2, r;

    begin();
    start(0, &w1, "wW");
    start(1, &r, "rR");
    start(2, &w2, "wW");
    step(&w1);
    EXPECT_EQ(r.nb_steps, 1);
    EXPECT_EQ(w2.nb_steps, 0);
    step(&r);
    EXPECT_EQ(w2.nb_steps, 1);
    step(&w2);
    end();
}

TEST(co_rwlock, lock_on_its_way_to_a_waiter_is_not_free)
{
    Holder w1, w2, thief;

    begin();
    start(0, &w1, "wW");
    start(1, &w2, "wW");
    co_test_wake(w1.co); /* unlocks; w2's context has not run */
    start(0, &thief, "rR");
    EXPECT_EQ(thief.nb_steps, 0);
    co_test_settle();
    EXPECT_EQ(w2.nb_steps, 1);
    step(&w2);
    EXPECT_EQ(thief.nb_steps, 1);
    step(&thief);
    end();
}

TEST(co_rwlock, downgrade_lets_the_readers_in_that_are_first_in_line)
{
    Holder w, r1, r2, w2, r3;

    begin();
    start(0, &w, "wdR");
    start(1, &r1, "rR");
    start(2, &r2, "rR");
    start(0, &w2, "wW");
    start(1, &r3, "rR");
    step(&w);
    EXPECT_EQ(w.nb_steps, 2);
    EXPECT_EQ(r1.nb_steps, 1);
    EXPECT_EQ(r2.nb_steps, 1);
    EXPECT_EQ(w2.nb_steps, 0);
    EXPECT_EQ(r3.nb_steps, 0);
    step(&w);
    step(&r1);
    EXPECT_EQ(w2.nb_steps, 0);
    step(&r2);
    EXPECT_EQ(w2.nb_steps, 1);
    step(&w2);
    step(&r3);
    end();
}

TEST(co_rwlock, only_reader_upgrades_at_once_before_writers_in_line)
{
    Holder u, w;

    begin();
    start(0, &u, "ruW");
    start(1, &w, "wW");
    step(&u);
    EXPECT_EQ(u.nb_steps, 2);
    EXPECT_TRUE(u.upgraded_at_once);
    EXPECT_EQ(w.nb_steps, 0);
    step(&u);
    EXPECT_EQ(w.nb_steps, 1);
    step(&w);
    end();
}

TEST(co_rwlock, upgrade_waits_for_the_other_readers_and_goes_first)
{
    Holder u, r, w, late;

    begin();
    start(0, &u, "ruW");
    start(1, &r, "rR");
    start(2, &w, "wW");
    step(&u);
    EXPECT_EQ(u.nb_steps, 1);
    start(1, &late, "rR"); /* no more readers now */
    EXPECT_EQ(late.nb_steps, 0);
    step(&r);
    EXPECT_EQ(u.nb_steps, 2);
    EXPECT_TRUE(u.upgraded_at_once);
    EXPECT_EQ(w.nb_steps, 0);
    step(&u);
    EXPECT_EQ(w.nb_steps, 1);
    step(&w);
    EXPECT_EQ(late.nb_steps, 1);
    step(&late);
    end();
}

TEST(co_rwlock, second_of_two_upgraders_lets_go_and_says_so)
{
    Holder u1, u2;

    begin();
    start(0, &u1, "ruW");
    start(1, &u2, "ruW");
    step(&u1);
    EXPECT_EQ(u1.nb_steps, 1);
    step(&u2); /* neither could have it while the other reads */
    EXPECT_EQ(u1.nb_steps, 2);
    EXPECT_TRUE(u1.upgraded_at_once);
    EXPECT_EQ(u2.nb_steps, 1);
    step(&u1);
    EXPECT_EQ(u2.nb_steps, 2);
    EXPECT_FALSE(u2.upgraded_at_once);
    step(&u2);
    end();
}

/* In a process of their own, where contexts are not changed: a script, to its second step. */
static void play_alone(void *opaque)
{
    Holder h = { .script = opaque };

    co_enter(co_create(holder_entry, &h));
    aio_co_wake(h.co);
}

/* ... while somebody else writes. */
static void play(void *opaque)
{
    Holder writer = { .script = "wW" };

    co_enter(co_create(holder_entry, &writer));
    play_alone(opaque);
}

TEST(co_rwlock, wrong_use_aborts)
{
    begin();
    EXPECT_DEATH(play, (char[]){ "W" }, SIGABRT, "lock->writer == co_self()");
    EXPECT_DEATH(play, (char[]){ "R" }, SIGABRT, "nb_readers > 0");
    EXPECT_DEATH(play_alone, (char[]){ "u" }, SIGABRT, "nb_readers > 0");
    EXPECT_DEATH(play_alone, (char[]){ "ww" }, SIGABRT, "lock->writer != co_self()");
    EXPECT_DEATH(play_alone, (char[]){ "rW" }, SIGABRT, "nb_readers == -1");
    end();
}

/* --- threads --- */

typedef struct Actor {
    unsigned seed;
    unsigned nb_rounds;
    unsigned nb_writes;
} Actor;

static unsigned values[2]; /* always the same; no atomics, the lock protects them */

static co_fn void linger(Actor *a)
{
    if (a->nb_rounds % 16 == 0) {
        aio_co_sleep_ns(0);
    }
}

static co_fn void write_it(Actor *a) REQUIRES(lock)
{
    values[0]++;
    linger(a);
    values[1]++;
    a->nb_writes++;
}

static co_fn void read_it(Actor *a) REQUIRES_SHARED(lock)
{
    unsigned seen = values[0];

    linger(a);
    EXPECT_EQ(values[1], seen);
}

static co_fn void upgrade_it(Actor *a)
{
    co_rwlock_rdlock(&lock);
    unsigned seen = values[0];

    if (co_rwlock_upgrade(&lock)) {
        EXPECT_EQ(values[0], seen); /* nobody wrote in between */
    }
    write_it(a);
    co_rwlock_downgrade(&lock);
    read_it(a);
    co_rwlock_rdunlock(&lock);
}

static void actor_entry(void *opaque)
{
    Actor *a = opaque;

    assert_in_coroutine();
    for (; a->nb_rounds < ROUNDS; a->nb_rounds++) {
        a->seed = a->seed * 1103515245 + 12345;
        switch (a->seed >> 29) {
        case 0:
            upgrade_it(a);
            break;
        case 1:
            co_rwlock_wrlock(&lock);
            write_it(a);
            co_rwlock_wrunlock(&lock);
            break;
        default:
            co_rwlock_rdlock(&lock);
            read_it(a);
            co_rwlock_rdunlock(&lock);
            break;
        }
    }
    co_test_actor_ends();
}

TEST(co_rwlock, eight_threads_of_readers_writers_and_upgraders_lose_nothing)
{
    static Actor actors[ACTORS];
    unsigned nb_writes = 0;

    co_rwlock_init(&lock);
    for (unsigned i = 0; i < ACTORS; i++) {
        actors[i].seed = i;
    }
    co_test_run_actors(actor_entry, ACTORS, actors, sizeof(actors[0]));
    for (unsigned i = 0; i < ACTORS; i++) {
        EXPECT_EQ(actors[i].nb_rounds, ROUNDS);
        nb_writes += actors[i].nb_writes;
    }
    EXPECT_EQ(values[0], nb_writes);
    EXPECT_EQ(values[1], nb_writes);
    co_rwlock_finish(&lock);
}

TEST_MAIN()
