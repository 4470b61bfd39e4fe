/*
 * aio-poll.c - adaptive polling: look for a while before sleeping, as long as that pays
 *
 * While the window is open, every handler with a probe has had its poll_begin (the source sends no
 * notifications) and is asked in user space; what has no probe is seen through the completion ring
 * and its flag word, which cost two loads. The window stays open over passes that find work and
 * closes when the loop is about to sleep or a pass does not block.
 *
 *     CLOSED --[poll_probe, first round]--> OPEN --[poll_close]--> CLOSED
 *
 * Invariants:
 *   (1) A handler's poll_begin comes before its first probe in a window, also when it is added
 *       while the window is open; its poll_end comes when the window closes or the handler goes.
 *   (2) Between poll_end and sleep every probe is asked once more: what arrived before
 *       notifications were on again is found.
 *   (3) A window is at most max_ns and ends early for a timer.
 *
 * Learning. A source is what may end a wait: a handler, the requests in flight (all together) or
 * aio_notify(). Each has a window of its own and keeps a mean of the waits that it ended, the
 * latest of which counts for 1/2^weight; the loop polls as long as the longest window of those that
 * can end this wait. So a slow source neither closes nor keeps open the window of a fast one.
 *   - While the mean is at most max_ns, a wait that outlasted the window makes the window grow by a
 *     factor; once the mean is longer, no window could cover it and the window shrinks.
 *   - After a sleep nobody knows when the source had become ready, only that it was after the
 *     window and before now: falling asleep and waking up take a share, which may be the larger
 *     part. The middle is taken for the moment.
 *   - A source that others have outrun in MISSED_MAX sleeps shrinks too: it has gone quiet.
 */
#include "io/aio/aio-int.h"

#define WINDOW_START_NS 4000
/* A window that the reading of the clock would fill is none. */
#define WINDOW_MIN_NS 1000
#define MISSED_MAX    16
#define WEIGHT_MAX    16

/* Reading the clock costs as much as a few rounds, so it is read only once in so many. */
#define ROUNDS_PER_CLOCK_READ 8

static void set_params(AioPoll *poll, const AioParams *params)
{
    poll->max_ns = MAX(params->poll_max_ns, 0);
    poll->grow = params->poll_grow > 1 ? params->poll_grow : AIO_POLL_GROW_DEFAULT;
    poll->shrink = MAX(params->poll_shrink, 0);
    poll->weight = MIN(MAX(params->poll_weight, 0), WEIGHT_MAX);
}

void poll_init(AioPoll *poll, const AioParams *params)
{
    list_init(&poll->handlers);
    list_init(&poll->sources);
    poll->waited_ns = -1;
    set_params(poll, params);
}

static void handler_poll_ready(AioHandler *h)
{
    if (h->ops.poll_ready) {
        h->ops.poll_ready(h->opaque);
    } else if (h->ops.read) {
        h->ops.read(h->opaque);
    }
}

static bool probe_all(AioContext *ctx)
{
    bool ready = false;

    list_for_each(node, &ctx->poll.handlers) {
        AioHandler *h = list_entry(node, AioHandler, poll_node);

        if (!h->deleted && !h->off && h->ops.poll(h->opaque)) {
            poll_fired(ctx, &h->poll_source);
            handler_poll_ready(h);
            ready = true;
        }
    }
    return ready;
}

bool poll_probe(AioContext *ctx)
{
    bool ready = false;

    ctx->poll.open = true;
    list_for_each(node, &ctx->poll.handlers) {
        AioHandler *h = list_entry(node, AioHandler, poll_node);

        if (unlikely(h->deleted || h->off)) {
            continue;
        }
        if (unlikely(!h->poll_begun)) {
            ctx->poll.open = true; /* an inner pass may have closed it */
            h->poll_begun = true;
            if (h->ops.poll_begin) {
                h->ops.poll_begin(h->opaque);
            }
        }
        if (h->ops.poll(h->opaque)) {
            poll_fired(ctx, &h->poll_source);
            handler_poll_ready(h);
            ready = true;
        }
    }
    return ready;
}

PollResult poll_spin(AioContext *ctx, int64_t start_ns, int64_t window_ns, int64_t deadline_ns)
{
    int64_t end_ns = start_ns + window_ns;
    int64_t now_ns = start_ns;

    if (deadline_ns >= 0) {
        end_ns = MIN(end_ns, deadline_ns);
    }
    do {
        ctx->poll.waited_ns = now_ns - start_ns;
        for (unsigned i = 0; i < ROUNDS_PER_CLOCK_READ; i++) {
            if (ctx->monitor->has_work(ctx) || context_notified(ctx)) {
                return POLL_LOOK;
            }
            if (poll_probe(ctx)) {
                return POLL_RAN;
            }
            cpu_relax();
        }
        now_ns = aio_now_ns();
    } while (now_ns < end_ns);
    return end_ns == deadline_ns ? POLL_LOOK : POLL_NOTHING;
}

static void handler_poll_end(AioHandler *h)
{
    if (h->poll_begun) {
        h->poll_begun = false;
        if (h->ops.poll_end) {
            h->ops.poll_end(h->opaque);
        }
    }
}

bool poll_close(AioContext *ctx)
{
    if (!ctx->poll.open) {
        return false;
    }
    ctx->poll.open = false;
    list_for_each(node, &ctx->poll.handlers) {
        handler_poll_end(list_entry(node, AioHandler, poll_node));
    }
    return probe_all(ctx);
}

void poll_kick(AioHandler *h)
{
    if (!h->deleted && !h->off && h->ops.poll && h->ops.poll(h->opaque)) {
        handler_poll_ready(h);
    }
}

void poll_handler_removed(AioHandler *h)
{
    handler_poll_end(h);
}

/* --- learning --- */

int64_t poll_window_ns(const AioContext *ctx)
{
    const AioPoll *poll = &ctx->poll;
    int64_t window_ns = 0;

    list_for_each(node, &poll->sources) {
        const AioPollSource *source = list_entry(node, AioPollSource, node);

        if (source != &poll->requests || ctx->inflight > 0) {
            window_ns = MAX(window_ns, source->window_ns);
        }
    }
    return MIN(window_ns, poll->max_ns);
}

static void set_window(AioPoll *poll, AioPollSource *source, int64_t window_ns)
{
    source->window_ns = window_ns < WINDOW_MIN_NS ? 0 : MIN(window_ns, poll->max_ns);
    if (source->window_ns == 0 && list_linked(&source->node)) {
        list_remove(&source->node);
    } else if (source->window_ns > 0 && !list_linked(&source->node)) {
        list_push_back(&poll->sources, &source->node);
    }
}

static void shrink_window(AioPoll *poll, AioPollSource *source)
{
    if (source->window_ns > 0) {
        set_window(poll, source, poll->shrink ? source->window_ns / poll->shrink : 0);
    }
}

static void publish_window(AioContext *ctx)
{
    int64_t longest_ns = 0;

    list_for_each(node, &ctx->poll.sources) {
        longest_ns = MAX(longest_ns, list_entry(node, AioPollSource, node)->window_ns);
    }
    atomic_store_explicit(&ctx->counters.poll_ns, longest_ns, memory_order_relaxed);
}

void poll_slept(AioContext *ctx, int64_t start_ns)
{
    AioPoll *poll = &ctx->poll;

    poll->waited_ns = MAX(aio_now_ns() - start_ns, 0);
    poll->slept = true;
    list_for_each_safe(node, &poll->sources) {
        AioPollSource *source = list_entry(node, AioPollSource, node);

        /* Taken back by poll_learn() when it was this one. */
        if (++source->missed > MISSED_MAX) {
            shrink_window(poll, source);
            source->missed = 0;
        }
    }
    publish_window(ctx);
}

void poll_learn(AioContext *ctx, AioPollSource *source)
{
    AioPoll *poll = &ctx->poll;
    int64_t wait_ns = poll->waited_ns;

    source->pass = poll->pass;
    source->missed = 0;
    if (poll->slept) {
        wait_ns = MIN((wait_ns + MIN(source->window_ns, wait_ns)) / 2, 2 * poll->max_ns);
    }
    source->interval_ns = source->seen
                              ? source->interval_ns +
                                    (wait_ns - source->interval_ns) / ((int64_t)1 << poll->weight)
                              : wait_ns;
    source->seen = true;
    if (source->interval_ns > poll->max_ns) {
        shrink_window(poll, source);
    } else if (poll->slept && source->window_ns < poll->max_ns) {
        set_window(poll, source,
                   source->window_ns ? source->window_ns * poll->grow
                                     : MIN(WINDOW_START_NS, poll->max_ns));
    }
    if (poll->slept) {
        publish_window(ctx);
    }
}

void poll_source_finish(AioPollSource *source)
{
    if (list_linked(&source->node)) {
        list_remove(&source->node);
    }
}

void aio_context_set_polling(AioContext *ctx, const AioParams *params)
{
    AioPoll *poll = &ctx->poll;

    assert(aio_current() == ctx);
    set_params(poll, params);
    list_for_each_safe(node, &poll->sources) {
        AioPollSource *source = list_entry(node, AioPollSource, node);

        set_window(poll, source, source->window_ns);
    }
    publish_window(ctx);
}
