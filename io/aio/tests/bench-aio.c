/*
 * bench-aio - what a pass of the loop, a wake-up and a request cost
 *
 *     bench-aio [CASE [ITERATIONS]]
 *
 * Prints the median and the fastest of several rounds of each case in nanoseconds. With one CASE
 * and a number it runs that many iterations once, for counting instructions under callgrind.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "io/aio/aio-file.h"
#include "io/aio/iothread.h"

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
    { "timer-arm", timer_arm_and_disarm, false },
    { "co-wake", wake_own_coroutine, false },
    { "notify-busy", notify_busy, false },
    { "round-trip-asleep", round_trip, false, true },
    { "round-trip-polling", round_trip, true, true },
    { "read-4k-depth-1", read_one, true },
    { "read-4k-depth-32", read_deep, true },
};

static void set_up(const Case *c)
{
    AioParams params = { .poll_max_ns = c->polling ? AIO_POLL_MAX_NS_DEFAULT : 0 };
    Error err;

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

static void tear_down(void)
{
    iothread_unref(other);
    aio_context_destroy(ctx);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void measure(const Case *c)
{
    double ns[ROUNDS];

    set_up(c);
    for (unsigned i = 0; i < ROUNDS; i++) {
        int64_t start_ns = aio_now_ns();

        c->run(ITERATIONS);
        ns[i] = (double)(aio_now_ns() - start_ns) / ITERATIONS;
    }
    tear_down();
    qsort(ns, ROUNDS, sizeof(ns[0]), compare);
    printf("%-20s median %9.1f ns   fastest %9.1f ns\n", c->name, ns[ROUNDS / 2], ns[0]);
}

int main(int argc, char **argv)
{
    char path[] = "/tmp/bench-aio-XXXXXX";
    int fd = mkstemp(path);

    if (fd < 0 || unlink(path) < 0 || ftruncate(fd, 1 << 20) < 0) {
        return 1;
    }
    aio_file_init(&file, fd);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        if (argc < 2) {
            measure(&cases[i]);
        } else if (strcmp(argv[1], cases[i].name) == 0) {
            if (argc < 3) {
                measure(&cases[i]);
            } else {
                set_up(&cases[i]);
                cases[i].run((unsigned)strtoul(argv[2], NULL, 10));
                tear_down();
            }
        }
    }
    aio_file_finish(&file);
    close(fd);
    return 0;
}
