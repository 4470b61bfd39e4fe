/*
 * aio-timer.c - timers: for each clock a binary heap, the earliest deadline on top; and the clocks
 *
 * Almost all timers stand on the real clock, whose heap is part of the context; the context gets
 * another one for each other clock that a timer of it is armed on. A clock whose time was changed
 * notifies all contexts, whose sleeps may be too long by then.
 *
 * Invariants:
 *   (1) heap[i] is not later than heap[2i + 1] and heap[2i + 2].
 *   (2) heap[i]->heap_index == i + 1; a timer that is not armed has heap_index 0.
 *   (3) A timer is disarmed before its callback runs, which may arm it or any other anew. One call
 *       of timer_run() makes at most as many calls for a clock as timers were armed on it when it
 *       began, so a timer that is always armed in the past cannot hold the loop up.
 *   (4) A clock is one word: twice its time while it stands, twice its lead over the real clock and
 *       one while it runs. Its changes are made by one thread, and a reader sees one or the other.
 *       [store with release, then aio_notify(); pairs with the load in clock_now_ns()]
 */
#include "io/aio/aio-int.h"

#include <time.h>

#define NS_PER_S 1000000000

/* --- clocks --- */

int64_t aio_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

static int64_t clock_load(const AioClock *clock, bool *ret_runs)
{
    /* acquire: pairs with clock_store() */
    int64_t word = atomic_load_explicit(&clock->word, memory_order_acquire);

    *ret_runs = word & 1;
    return (word - *ret_runs) / 2;
}

static void clock_store(AioClock *clock, int64_t ns, bool runs)
{
    /* release: pairs with clock_load() */
    atomic_store_explicit(&clock->word, 2 * ns + runs, memory_order_release);
    context_notify_all();
}

static int64_t clock_now_ns(const AioClock *clock, int64_t real_now_ns)
{
    bool runs;
    int64_t ns = clock_load(clock, &runs);

    return runs ? real_now_ns + ns : ns;
}

int64_t aio_clock_now_ns(const AioClock *clock)
{
    return clock_now_ns(clock, aio_now_ns());
}

void aio_clock_init(AioClock *clock)
{
    atomic_init(&clock->word, 0);
}

void aio_clock_start(AioClock *clock)
{
    bool runs;
    int64_t ns = clock_load(clock, &runs);

    if (!runs) {
        clock_store(clock, ns - aio_now_ns(), true);
    }
}

void aio_clock_stop(AioClock *clock)
{
    bool runs;
    int64_t ns = clock_load(clock, &runs);

    if (runs) {
        clock_store(clock, ns + aio_now_ns(), false);
    }
}

void aio_clock_step(AioClock *clock, int64_t step_ns)
{
    bool runs;
    int64_t ns = clock_load(clock, &runs);

    assert(step_ns >= 0);
    clock_store(clock, ns + step_ns, runs);
}

/* --- heaps --- */

static void heap_place(AioTimerHeap *h, unsigned i, AioTimer *timer)
{
    h->heap[i] = timer;
    timer->heap_index = i + 1;
}

static void heap_sift_up(AioTimerHeap *h, unsigned i, AioTimer *timer)
{
    while (i > 0) {
        unsigned parent = (i - 1) / 2;

        if (h->heap[parent]->deadline_ns <= timer->deadline_ns) {
            break;
        }
        heap_place(h, i, h->heap[parent]);
        i = parent;
    }
    heap_place(h, i, timer);
}

static void heap_sift_down(AioTimerHeap *h, unsigned i, AioTimer *timer)
{
    AioTimer **heap = h->heap;

    for (;;) {
        unsigned child = 2 * i + 1;

        if (child >= h->nb_timers) {
            break;
        }
        if (child + 1 < h->nb_timers && heap[child + 1]->deadline_ns < heap[child]->deadline_ns) {
            child++;
        }
        if (timer->deadline_ns <= heap[child]->deadline_ns) {
            break;
        }
        heap_place(h, i, heap[child]);
        i = child;
    }
    heap_place(h, i, timer);
}

static void heap_grow(AioTimerHeap *h)
{
    unsigned capacity = MAX(2 * h->capacity, 8u);
    AioTimer **heap = realloc(h->heap, capacity * sizeof(*heap));

    if (!heap) {
        abort();
    }
    h->heap = heap;
    h->capacity = capacity;
}

static NOINLINE AioTimerHeap *heap_of_clock(AioContext *ctx, const AioClock *clock)
{
    AioTimerHeap *h = ctx->timers.next;

    while (h && h->clock != clock) {
        h = h->next;
    }
    if (!h) {
        h = calloc(1, sizeof(*h));
        if (!h) {
            abort();
        }
        h->clock = clock;
        h->next = ctx->timers.next;
        ctx->timers.next = h;
    }
    return h;
}

static inline AioTimerHeap *heap_of(const AioTimer *timer)
{
    return likely(!timer->clock) ? &timer->ctx->timers : heap_of_clock(timer->ctx, timer->clock);
}

/* --- timers --- */

void aio_timer_init(AioTimer *timer, AioContext *ctx, AioCallback *cb, void *opaque)
{
    *timer = (AioTimer){ .ctx = ctx, .cb = cb, .opaque = opaque };
}

void aio_timer_init_on(AioTimer *timer, AioContext *ctx, const AioClock *clock, AioCallback *cb,
                       void *opaque)
{
    *timer = (AioTimer){ .ctx = ctx, .clock = clock, .cb = cb, .opaque = opaque };
}

void aio_timer_arm(AioTimer *timer, int64_t deadline_ns)
{
    AioContext *ctx = timer->ctx;
    AioTimerHeap *h = heap_of(timer);

    assert(aio_current() == ctx);
    aio_timer_disarm(timer);
    timer->deadline_ns = MAX(deadline_ns, 0); /* -1 would read as "none" */
    if (h->nb_timers == h->capacity) {
        heap_grow(h);
    }
    ctx->nb_timers++;
    heap_sift_up(h, h->nb_timers++, timer);
}

void aio_timer_disarm(AioTimer *timer)
{
    AioContext *ctx = timer->ctx;
    unsigned i = timer->heap_index;

    if (i == 0) {
        return;
    }
    assert(aio_current() == ctx);
    AioTimerHeap *h = heap_of(timer);

    timer->heap_index = 0;
    ctx->nb_timers--;
    AioTimer *last = h->heap[--h->nb_timers];

    if (last == timer) {
        return;
    }
    i--;
    if (i > 0 && last->deadline_ns < h->heap[(i - 1) / 2]->deadline_ns) {
        heap_sift_up(h, i, last);
    } else {
        heap_sift_down(h, i, last);
    }
}

int64_t timer_next_on_clocks_ns(const AioContext *ctx)
{
    int64_t next_ns = ctx->timers.nb_timers ? ctx->timers.heap[0]->deadline_ns : -1;
    int64_t real_now_ns = aio_now_ns();

    for (const AioTimerHeap *h = ctx->timers.next; h; h = h->next) {
        if (h->nb_timers == 0) {
            continue;
        }
        bool runs;
        int64_t ns = clock_load(h->clock, &runs);
        int64_t left_ns = h->heap[0]->deadline_ns - (runs ? real_now_ns + ns : ns);

        if (runs || left_ns <= 0) { /* else it stands before that time */
            int64_t deadline_ns;

            if (!checked_add(real_now_ns, MAX(left_ns, 0), &deadline_ns)) {
                deadline_ns = INT64_MAX;
            }
            next_ns = next_ns < 0 ? deadline_ns : MIN(next_ns, deadline_ns);
        }
    }
    return next_ns;
}

static bool heap_run(AioTimerHeap *h, int64_t now_ns)
{
    bool progress = false;

    for (unsigned budget = h->nb_timers; budget > 0 && h->nb_timers > 0; budget--) {
        AioTimer *timer = h->heap[0];

        if (timer->deadline_ns > now_ns) {
            break;
        }
        aio_timer_disarm(timer);
        progress = true;
        timer->cb(timer->opaque);
    }
    return progress;
}

bool timer_run(AioContext *ctx)
{
    int64_t real_now_ns = aio_now_ns();
    bool progress = heap_run(&ctx->timers, real_now_ns);

    for (AioTimerHeap *h = ctx->timers.next; h; h = h->next) { /* new ones come in front */
        if (h->nb_timers > 0) {
            progress |= heap_run(h, clock_now_ns(h->clock, real_now_ns));
        }
    }
    return progress;
}

void timer_finish(AioContext *ctx)
{
    AioTimerHeap *h = ctx->timers.next;

    assert(ctx->nb_timers == 0);
    free(ctx->timers.heap);
    while (h) {
        AioTimerHeap *next = h->next;

        free(h->heap);
        free(h);
        h = next;
    }
}
