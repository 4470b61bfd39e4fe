/*
 * bench-aio - what a pass of the loop, a wake-up and a request cost, beside other people's
 *
 *     bench-aio [CASE [ITERATIONS]]
 *
 * Prints the median and the fastest of several rounds of each case in nanoseconds. A round runs
 * every case, so that what is compared was measured close together. With one CASE and a number it
 * runs that many iterations once, for counting instructions under callgrind. The cases in
 * parentheses are the same work done by a condition variable and by libuv (bench-peers.h).
 */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "io/aio/aio-file.h"
#include "io/aio/iothread.h"
#include "io/base/thread.h"
#include "io/aio/tests/bench-peers.h"

#define ROUNDS     9
#define ITERATIONS 20000
#define DEPTH      32

static AioContext *ctx;

/* --- a source that is always ready: the loop's own cost of a pass that finds work --- */

static uint64_t served;

static bool always_poll(void *opaque)
{
    return true;
}

static void serve(void *opaque)
{
    served++;
}

static void null_pass(unsigned n)
{
    static const AioHandlerOps ops = { .read = serve, .poll = always_poll, .poll_ready = serve };
    EventNotifier en;

    if (event_notifier_open(&en, NULL) < 0) {
        abort();
    }
    aio_set_event_notifier(ctx, &en, &ops, NULL);
    event_notifier_set(&en); /* until the window is open */
    for (uint64_t end = served + n; served < end;) {
        aio_poll(ctx, true);
    }
    aio_set_event_notifier(ctx, &en, NULL, NULL);
    event_notifier_close(&en);
}

/* --- bottom halves, timers, coroutines within one context --- */

static AioBh *self_bh;
static unsigned bh_left;

static void self_scheduling_bh(void *opaque)
{
    if (--bh_left > 0) {
        aio_bh_schedule(self_bh);
    }
}

static void bh_in_own_context(unsigned n)
{
    self_bh = aio_bh_create(ctx, self_scheduling_bh, NULL);
    bh_left = n;
    aio_bh_schedule(self_bh);
    while (bh_left > 0) {
        aio_poll(ctx, true);
    }
    aio_bh_destroy(self_bh);
}

static void timer_cb(void *opaque)
{
    served++;
}

static void timer_arm_and_disarm(unsigned n)
{
    AioTimer timers[16];

    for (unsigned i = 0; i < ARRAY_SIZE(timers); i++) {
        aio_timer_init(&timers[i], ctx, timer_cb, NULL);
    }
    for (unsigned i = 0; i < n; i++) {
        aio_timer_arm(&timers[i % ARRAY_SIZE(timers)], INT64_MAX - (i * 7919) % 1000);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(timers); i++) {
        aio_timer_disarm(&timers[i]);
    }
}

static void timer_fire(unsigned n)
{
    AioTimer timers[16];

    for (unsigned i = 0; i < ARRAY_SIZE(timers); i++) {
        aio_timer_init(&timers[i], ctx, timer_cb, NULL);
    }
    for (uint64_t end = served + n; served < end;) {
        for (unsigned i = 0; i < ARRAY_SIZE(timers); i++) {
            aio_timer_arm(&timers[i], 0);
        }
        aio_poll(ctx, false);
    }
}

static co_fn void yielding_entry(void *opaque)
{
    for (unsigned *left = opaque; *left > 0; --*left) {
        co_yield();
    }
}

static void wake_own_coroutine(unsigned n)
{
    unsigned left = n;
    Coroutine *co = co_create(yielding_entry, &left);

    co_enter(co);
    while (left > 0) {
        aio_co_wake(co);
    }
}

/* --- between threads --- */

static IOThread *other;

static co_fn void commuter_entry(void *opaque)
{
    AioContext *there = iothread_context(other);

    for (unsigned *left = opaque; *left > 0; --*left) {
        aio_co_reschedule_self(there);
        aio_co_reschedule_self(ctx);
    }
}

static void round_trip(unsigned n)
{
    unsigned left = n;

    co_enter(co_create(commuter_entry, &left));
    AIO_WAIT_WHILE(ctx, left > 0);
}

/* What libuv's uv_async_send() does, with bottom halves. */
static AioBh *home_bh, *away_bh;

static void away_cb(void *opaque)
{
    aio_bh_schedule(home_bh);
}

static void home_cb(void *opaque)
{
    if (--bh_left > 0) {
        aio_bh_schedule(away_bh);
    }
}

static void away_destroy(void *opaque)
{
    aio_bh_destroy(away_bh);
}

static void bh_round_trip(unsigned n)
{
    bh_left = n;
    home_bh = aio_bh_create(ctx, home_cb, NULL);
    away_bh = aio_bh_create(iothread_context(other), away_cb, NULL);
    aio_bh_schedule(away_bh);
    AIO_WAIT_WHILE(ctx, bh_left > 0);
    aio_run_sync(iothread_context(other), away_destroy, NULL);
    aio_bh_destroy(home_bh);
}

static void notify_busy(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        aio_notify(ctx);
    }
    aio_poll(ctx, false);
}

/* --- requests from the page cache --- */

static AioFile file;
static unsigned requests_left;

static co_fn void reader_entry(void *opaque)
{
    char buf[4096];
    struct iovec iov = { buf, sizeof(buf) };

    while (requests_left > 0) {
        requests_left--;
        if (aio_co_preadv(&file, &iov, 1, 0, 0) != sizeof(buf)) {
            abort();
        }
    }
    served++;
}

static void read_at_depth(unsigned n, unsigned depth)
{
    uint64_t end = served + depth;

    requests_left = n;
    for (unsigned i = 0; i < depth; i++) {
        co_enter(co_create(reader_entry, NULL));
    }
    AIO_WAIT_WHILE(ctx, served < end);
}

static void read_one(unsigned n)
{
    read_at_depth(n, 1);
}

static void read_deep(unsigned n)
{
    read_at_depth(n, DEPTH);
}

/* --- running them --- */

typedef struct Case {
    const char *name;
    void (*run)(unsigned n);
    bool polling;
    bool two_threads; /* valgrind runs one at a time and holds on while one sleeps in the ring */
} Case;

static const Case cases[] = {
    { "null-pass", null_pass, true },
    { "bh", bh_in_own_context, false },
#ifdef HAVE_LIBUV
    { "  (libuv)", peer_uv_own_loop, false },
#endif
    { "timer-arm", timer_arm_and_disarm, false },
#ifdef HAVE_LIBUV
    { "  (libuv)", peer_uv_timer_arm, false },
#endif
    { "timer-fire", timer_fire, false },
#ifdef HAVE_LIBUV
    { "  (libuv)", peer_uv_timer_fire, false },
#endif
    { "co-wake", wake_own_coroutine, false },
    { "notify-busy", notify_busy, false },
#ifdef HAVE_LIBUV
    { "  (libuv)", peer_uv_notify_busy, false },
#endif
    { "bh-round-trip-asleep", bh_round_trip, false, true },
    { "co-round-trip-asleep", round_trip, false, true },
#ifdef HAVE_LIBUV
    { "  (libuv)", peer_uv_round_trip, false },
#endif
    { "  (condition variable)", peer_condvar_round_trip, false },
    { "bh-round-trip-polling", bh_round_trip, true, true },
    { "co-round-trip-polling", round_trip, true, true },
    { "read-4k-depth-1", read_one, true },
    { "read-4k-depth-32", read_deep, true },
};

static double results_ns[ARRAY_SIZE(cases)][ROUNDS];

static main_fn void set_up(const Case *c)
{
    AioParams params = AIO_PARAMS_POLLING;
    Error err;

    params.poll_max_ns = c->polling ? AIO_POLL_MAX_NS_DEFAULT : 0;
    ctx = aio_context_create("bench", &params, &err);
    if (!ctx) {
        fprintf(stderr, "%s\n", err.msg);
        exit(77);
    }
    aio_context_enter(ctx);
    other = c->two_threads ? iothread_create("other", &params, &err) : NULL;
    if (c->two_threads && !other) {
        fprintf(stderr, "%s\n", err.msg);
        exit(77);
    }
}

static main_fn void tear_down(void)
{
    iothread_unref(other);
    aio_context_destroy(ctx);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static main_fn void measure(unsigned i, unsigned round)
{
    set_up(&cases[i]);
    int64_t start_ns = aio_now_ns();

    cases[i].run(ITERATIONS);
    results_ns[i][round] = (double)(aio_now_ns() - start_ns) / ITERATIONS;
    tear_down();
}

static bool wanted(unsigned i, int argc, char **argv)
{
    return argc < 2 || strcmp(argv[1], cases[i].name) == 0;
}

static main_fn void measure_all(int argc, char **argv)
{
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
            if (wanted(i, argc, argv)) {
                measure(i, round);
            }
        }
    }
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        if (wanted(i, argc, argv)) {
            qsort(results_ns[i], ROUNDS, sizeof(results_ns[i][0]), compare);
            printf("%-24s median %9.1f ns   fastest %9.1f ns\n", cases[i].name,
                   results_ns[i][ROUNDS / 2], results_ns[i][0]);
        }
    }
}

static main_fn void run_once(const char *name, unsigned n)
{
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        if (strcmp(name, cases[i].name) == 0) {
            set_up(&cases[i]);
            cases[i].run(n);
            tear_down();
        }
    }
}

int main(int argc, char **argv)
{
    char path[] = "/tmp/bench-aio-XXXXXX";
    int fd = mkstemp(path);

    assert_main();
    if (fd < 0 || unlink(path) < 0 || ftruncate(fd, 1 << 20) < 0) {
        return 1;
    }
    aio_file_init(&file, fd);
    if (argc == 3) {
        run_once(argv[1], (unsigned)strtoul(argv[2], NULL, 10));
    } else {
        measure_all(argc, argv);
    }
    aio_file_finish(&file);
    close(fd);
    return 0;
}
