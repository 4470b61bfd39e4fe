/*
 * aio-timer.c - timers: a binary heap, the earliest deadline on top
 *
 * Invariants:
 *   (1) timer_heap[i] is not later than timer_heap[2i + 1] and timer_heap[2i + 2].
 *   (2) timer_heap[i]->heap_index == i + 1; a timer that is not armed has heap_index 0.
 *   (3) A timer is disarmed before its callback runs, which may arm it or any other anew. One call
 *       of timer_run() makes at most as many calls as timers were armed when it began, so a timer
 *       that is always armed in the past cannot hold the loop up.
 */
#include "io/aio/aio-int.h"

#include <time.h>

#define NS_PER_S 1000000000

int64_t aio_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

void aio_timer_init(AioTimer *timer, AioContext *ctx, AioCallback *cb, void *opaque)
{
    *timer = (AioTimer){ .ctx = ctx, .cb = cb, .opaque = opaque };
}

static void heap_place(AioContext *ctx, unsigned i, AioTimer *timer)
{
    ctx->timer_heap[i] = timer;
    timer->heap_index = i + 1;
}

static void heap_sift_up(AioContext *ctx, unsigned i, AioTimer *timer)
{
    while (i > 0) {
        unsigned parent = (i - 1) / 2;

        if (ctx->timer_heap[parent]->deadline_ns <= timer->deadline_ns) {
            break;
        }
        heap_place(ctx, i, ctx->timer_heap[parent]);
        i = parent;
    }
    heap_place(ctx, i, timer);
}

static void heap_sift_down(AioContext *ctx, unsigned i, AioTimer *timer)
{
    AioTimer **heap = ctx->timer_heap;

    for (;;) {
        unsigned child = 2 * i + 1;

        if (child >= ctx->nb_timers) {
            break;
        }
        if (child + 1 < ctx->nb_timers &&
            heap[child + 1]->deadline_ns < heap[child]->deadline_ns) {
            child++;
        }
        if (timer->deadline_ns <= heap[child]->deadline_ns) {
            break;
        }
        heap_place(ctx, i, heap[child]);
        i = child;
    }
    heap_place(ctx, i, timer);
}

void aio_timer_arm(AioTimer *timer, int64_t deadline_ns)
{
    AioContext *ctx = timer->ctx;

    assert(aio_current() == ctx);
    aio_timer_disarm(timer);
    timer->deadline_ns = MAX(deadline_ns, 0); /* -1 would read as "none" */
    if (ctx->nb_timers == ctx->timer_capacity) {
        unsigned capacity = MAX(2 * ctx->timer_capacity, 8u);
        AioTimer **heap = realloc(ctx->timer_heap, capacity * sizeof(*heap));

        if (!heap) {
            abort();
        }
        ctx->timer_heap = heap;
        ctx->timer_capacity = capacity;
    }
    heap_sift_up(ctx, ctx->nb_timers++, timer);
}

void aio_timer_disarm(AioTimer *timer)
{
    AioContext *ctx = timer->ctx;
    unsigned i = timer->heap_index;

    if (i == 0) {
        return;
    }
    assert(aio_current() == ctx);
    timer->heap_index = 0;
    AioTimer *last = ctx->timer_heap[--ctx->nb_timers];

    if (last == timer) {
        return;
    }
    i--;
    if (i > 0 && last->deadline_ns < ctx->timer_heap[(i - 1) / 2]->deadline_ns) {
        heap_sift_up(ctx, i, last);
    } else {
        heap_sift_down(ctx, i, last);
    }
}

bool timer_run(AioContext *ctx)
{
    int64_t now_ns = aio_now_ns();
    bool progress = false;

    for (unsigned budget = ctx->nb_timers; budget > 0 && ctx->nb_timers > 0; budget--) {
        AioTimer *timer = ctx->timer_heap[0];

        if (timer->deadline_ns > now_ns) {
            break;
        }
        aio_timer_disarm(timer);
        progress = true;
        timer->cb(timer->opaque);
    }
    return progress;
}
