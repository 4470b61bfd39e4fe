/*
 * test-aio-torture.c - several contexts in threads of their own, everything at once, fixed counts
 *
 * Made for ThreadSanitizer and AddressSanitizer as much as for the counts: the data that is handed
 * from thread to thread is plain, so a missing barrier or a wrong lifetime shows. A lost wake-up
 * shows as a time-out.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>

#include "io/aio/aio-file.h"
#include "io/aio/co-mutex.h"
#include "io/aio/iothread.h"
#include "io/aio/aio-worker.h"
#include "io/aio/tests/aio-test.h"

#define CONTEXTS      8
#define TOKENS        8
#define TOKEN_HOPS    2000
#define TRAVELLERS    16
#define TRAVELS       1000
#define TIMERS        8
#define TIMER_SHOTS   100
#define CHURNERS      3
#define CHURNS        200
#define READERS       4
#define READS         300
#define PAIRS         4
#define RALLIES       2000
#define TOGGLERS      3
#define TOGGLES       300
#define CLOCK_CHANGES 300

static IOThread *threads[CONTEXTS];
static AioContext *contexts[CONTEXTS];
static AioContext *home;       /* of the test's thread */
static atomic_int actors_left; /* each ends once */

static void actor_ended(void)
{
    if (atomic_fetch_sub(&actors_left, 1) == 1) {
        aio_notify(home);
    }
}

static AioContext *random_context(unsigned *seed)
{
    *seed = *seed * 1103515245 + 12345;
    return contexts[(*seed >> 16) % CONTEXTS];
}

/* --- tokens: a bottom half schedules the next in another context --- */

typedef struct Token {
    unsigned seed;
    int hops; /* plain */
} Token;

static void token_bh(void *opaque)
{
    Token *token = opaque;

    if (++token->hops == TOKEN_HOPS) {
        actor_ended();
        return;
    }
    aio_bh_schedule_oneshot(random_context(&token->seed), token_bh, token);
}

/* --- travellers: coroutines that move, sleep and take a lock --- */

typedef struct Traveller {
    unsigned seed;
    int travels;
} Traveller;

static CoMutex shared_mutex;
static int shared_sum; /* under shared_mutex */

static void traveller_entry(void *opaque)
{
    Traveller *t = opaque;

    assert_in_coroutine();
    for (t->travels = 0; t->travels < TRAVELS; t->travels++) {
        AioContext *ctx = random_context(&t->seed);

        aio_co_reschedule_self(ctx);
        ASSERT_TRUE(aio_current() == ctx);
        if (t->travels % 8 == 0) {
            co_mutex_lock(&shared_mutex);
            shared_sum++;
            if (t->travels % 64 == 0) {
                aio_co_reschedule_self(random_context(&t->seed)); /* with the lock */
            }
            co_mutex_unlock(&shared_mutex);
        }
        if (t->travels % 100 == 0) {
            aio_co_sleep_ns(20000);
        }
    }
    actor_ended();
}

/* --- timers --- */

static AioClock guest_clock; /* of every second one; stopped, stepped and started all the time */

typedef struct Shooter {
    AioTimer timer;
    AioContext *ctx;
    unsigned seed;
    int shots;
} Shooter;

static int64_t shooter_now_ns(const Shooter *s)
{
    return s->timer.clock ? aio_clock_now_ns(s->timer.clock) : aio_now_ns();
}

static void shooter_cb(void *opaque)
{
    Shooter *s = opaque;

    if (++s->shots == TIMER_SHOTS) {
        actor_ended();
        return;
    }
    s->seed = s->seed * 1103515245 + 12345;
    aio_timer_arm(&s->timer, shooter_now_ns(s) + (s->seed >> 16) % 200000);
}

static void shooter_start_bh(void *opaque)
{
    Shooter *s = opaque;

    if (s->seed % 2) {
        aio_timer_init_on(&s->timer, s->ctx, &guest_clock, shooter_cb, s);
    } else {
        aio_timer_init(&s->timer, s->ctx, shooter_cb, s);
    }
    aio_timer_arm(&s->timer, shooter_now_ns(s));
}

/* One coroutine, so one thread at a time, changes the clock. */
static co_fn void clock_entry(void *opaque)
{
    unsigned seed = 99;

    for (int i = 0; i < CLOCK_CHANGES; i++) {
        aio_co_reschedule_self(random_context(&seed));
        aio_clock_stop(&guest_clock);
        aio_clock_step(&guest_clock, 50000);
        aio_co_reschedule_self(random_context(&seed));
        aio_clock_start(&guest_clock);
    }
    actor_ended();
}

/* --- churners: a handler for a new pair of sockets each time, written to from elsewhere --- */

typedef struct Churner {
    unsigned seed;
    int fds[2];
    Coroutine *co;
    int churns;
} Churner;

static void churner_read(void *opaque)
{
    Churner *c = opaque;
    char byte;

    EXPECT_EQ(read(c->fds[0], &byte, 1), 1);
    aio_set_fd_handler(aio_current(), c->fds[0], NULL, NULL);
    aio_co_wake(c->co);
}

static void churner_write_bh(void *opaque)
{
    Churner *c = opaque;

    EXPECT_EQ(write(c->fds[1], "x", 1), 1);
}

static void churner_entry(void *opaque)
{
    static const AioHandlerOps ops = { .read = churner_read, .external = true };
    Churner *c = opaque;

    assert_in_coroutine();
    c->co = co_self();
    for (c->churns = 0; c->churns < CHURNS; c->churns++) {
        aio_co_reschedule_self(random_context(&c->seed));
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, c->fds), 0);
        aio_set_fd_handler(aio_current(), c->fds[0], &ops, c);
        if (c->churns % 3 == 0) { /* think again while it is armed */
            aio_co_sleep_ns(1000);
            aio_set_fd_handler(aio_current(), c->fds[0], NULL, NULL);
            aio_set_fd_handler(aio_current(), c->fds[0], &ops, c);
        }
        aio_bh_schedule_oneshot(random_context(&c->seed), churner_write_bh, c);
        co_yield();
        close(c->fds[0]);
        close(c->fds[1]);
    }
    actor_ended();
}

/* --- togglers: switch the churners' handlers off and on, here and there --- */

typedef struct Toggler {
    unsigned seed;
    AioContext *ctx; /* where they are off now */
    int toggles;
} Toggler;

static void toggle_off_bh(void *opaque);

static void toggle_on_bh(void *opaque)
{
    Toggler *t = opaque;

    aio_external_on(t->ctx);
    if (++t->toggles == TOGGLES) {
        actor_ended();
        return;
    }
    aio_bh_schedule_oneshot(random_context(&t->seed), toggle_off_bh, t);
}

static void toggle_off_bh(void *opaque)
{
    Toggler *t = opaque;

    t->ctx = aio_current();
    aio_external_off(t->ctx);
    aio_bh_schedule_oneshot(t->ctx, toggle_on_bh, t);
}

/* --- pairs: two coroutines in different contexts that wake each other --- */

typedef struct Pair {
    AioContext *ctx[2];
    Coroutine *co[2];
    int rallies; /* plain: whoever is awake has it */
} Pair;

static co_fn void second_player_entry(void *opaque)
{
    Pair *p = opaque;

    p->co[1] = co_self();
    while (p->rallies < RALLIES) {
        p->rallies++;
        aio_co_wake(p->co[0]);
        co_yield();
    }
    p->rallies++;
    aio_co_wake(p->co[0]);
}

static co_fn void first_player_entry(void *opaque)
{
    Pair *p = opaque;

    p->co[0] = co_self();
    aio_co_schedule(p->ctx[1], co_create(second_player_entry, p));
    co_yield();
    while (p->rallies <= RALLIES) {
        aio_co_wake(p->co[1]);
        co_yield();
    }
    actor_ended();
}

/* --- readers: disk requests and blocking calls from wherever they are --- */

typedef struct Reader {
    unsigned seed;
    int reads;
} Reader;

static AioFile file;

static int blocking_call(void *opaque)
{
    return ++((Reader *)opaque)->reads;
}

static void reader_entry(void *opaque)
{
    Reader *r = opaque;
    int buf[128];
    struct iovec iov = { buf, sizeof(buf) };

    assert_in_coroutine();
    while (r->reads < READS) {
        int block = r->reads % 64;

        aio_co_reschedule_self(random_context(&r->seed));
        ASSERT_EQ(aio_co_preadv(&file, &iov, 1, block * sizeof(buf), 0), sizeof(buf));
        ASSERT_EQ(buf[5], block);
        int before = r->reads;

        ASSERT_EQ(aio_co_run_blocking(blocking_call, r), before + 1);
    }
    actor_ended();
}

/* --- all of it --- */

static main_fn void start_threads(void)
{
    for (unsigned i = 0; i < CONTEXTS; i++) {
        /* some poll, some sleep at once */
        AioParams params = { .poll_max_ns = i % 2 ? 10000 : 0, .ring_entries = i % 3 ? 8 : 0 };

        if (i >= CONTEXTS - 2) {
            params.monitor = AIO_MONITOR_EPOLL; /* side by side with the others */
        }
        Error err;

        threads[i] = iothread_create("torture", &params, &err);
        if (!threads[i]) {
            TEST_SKIP("%s", err.msg);
        }
        contexts[i] = iothread_context(threads[i]);
    }
}

static int open_blocks(void)
{
    char path[] = "/tmp/test-aio-torture-XXXXXX";
    int fd = mkstemp(path);

    ASSERT_GE(fd, 0);
    unlink(path);
    for (int block = 0; block < 64; block++) {
        int buf[128];

        for (unsigned i = 0; i < ARRAY_SIZE(buf); i++) {
            buf[i] = block;
        }
        ASSERT_EQ(write(fd, buf, sizeof(buf)), sizeof(buf));
    }
    return fd;
}

TEST_ON_EACH_RING(aio_torture, all_actors_come_to_their_ends)
{
    static Token tokens[TOKENS];
    static Traveller travellers[TRAVELLERS];
    static Shooter shooters[TIMERS];
    static Churner churners[CHURNERS];
    static Reader readers[READERS];
    static Toggler togglers[TOGGLERS];
    static Pair pairs[PAIRS];
    unsigned seed = 42;
    int fd = open_blocks();

    home = test_context(NULL);
    start_threads();
    co_mutex_init(&shared_mutex);
    aio_file_init(&file, fd);
    aio_clock_init(&guest_clock);
    aio_clock_start(&guest_clock);
    atomic_store(&actors_left, TOKENS + TRAVELLERS + TIMERS + 1 + CHURNERS + READERS + TOGGLERS +
                                   PAIRS);
    for (unsigned i = 0; i < TOKENS; i++) {
        tokens[i].seed = seed++;
        aio_bh_schedule_oneshot(random_context(&seed), token_bh, &tokens[i]);
    }
    for (unsigned i = 0; i < TRAVELLERS; i++) {
        travellers[i].seed = seed++;
        aio_co_schedule(random_context(&seed), co_create(traveller_entry, &travellers[i]));
    }
    for (unsigned i = 0; i < TIMERS; i++) {
        shooters[i].seed = seed++;
        shooters[i].ctx = random_context(&seed);
        aio_bh_schedule_oneshot(shooters[i].ctx, shooter_start_bh, &shooters[i]);
    }
    for (unsigned i = 0; i < CHURNERS; i++) {
        churners[i].seed = seed++;
        aio_co_schedule(random_context(&seed), co_create(churner_entry, &churners[i]));
    }
    for (unsigned i = 0; i < READERS; i++) {
        readers[i].seed = seed++;
        aio_co_schedule(random_context(&seed), co_create(reader_entry, &readers[i]));
    }
    for (unsigned i = 0; i < TOGGLERS; i++) {
        togglers[i].seed = seed++;
        aio_bh_schedule_oneshot(random_context(&seed), toggle_off_bh, &togglers[i]);
    }
    for (unsigned i = 0; i < PAIRS; i++) {
        pairs[i].ctx[0] = contexts[i];
        pairs[i].ctx[1] = contexts[CONTEXTS - 1 - i];
        aio_co_schedule(pairs[i].ctx[0], co_create(first_player_entry, &pairs[i]));
    }
    aio_co_schedule(contexts[0], co_create(clock_entry, NULL));
    AIO_WAIT_WHILE(home, atomic_load(&actors_left) > 0);
    aio_file_finish(&file);
    close(fd);
    for (unsigned i = 0; i < CONTEXTS; i++) {
        iothread_unref(threads[i]);
    }
    EXPECT_EQ(shared_sum, TRAVELLERS * ((TRAVELS + 7) / 8));
    for (unsigned i = 0; i < TOKENS; i++) {
        EXPECT_EQ(tokens[i].hops, TOKEN_HOPS);
    }
    for (unsigned i = 0; i < PAIRS; i++) {
        EXPECT_EQ(pairs[i].rallies, RALLIES + 1);
    }
    co_mutex_finish(&shared_mutex);
    aio_context_destroy(home);
}

TEST_MAIN()
