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
 * Learning: a wait that would have ended inside max_ns but outlasted the window makes it grow by
 * a factor; a wait longer than max_ns, which no window could have covered, makes it shrink.
 */
#include "io/aio/aio-int.h"

#define WINDOW_START_NS 4000
#define GROW_DEFAULT    2

/* Reading the clock costs as much as a few rounds, so it is read only once in so many. */
#define ROUNDS_PER_CLOCK_READ 8

void poll_init(AioPoll *poll, const AioParams *params)
{
    list_init(&poll->handlers);
    poll->max_ns = MAX(params->poll_max_ns, 0);
    poll->grow = params->poll_grow > 1 ? params->poll_grow : GROW_DEFAULT;
    poll->shrink = MAX(params->poll_shrink, 0);
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

        if (!h->deleted && h->ops.poll(h->opaque)) {
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

        if (unlikely(h->deleted)) {
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
            handler_poll_ready(h);
            ready = true;
        }
    }
    return ready;
}

PollResult poll_spin(AioContext *ctx, int64_t start_ns, int64_t deadline_ns)
{
    int64_t end_ns = start_ns + ctx->poll.window.ns;

    if (deadline_ns >= 0) {
        end_ns = MIN(end_ns, deadline_ns);
    }
    do {
        for (unsigned i = 0; i < ROUNDS_PER_CLOCK_READ; i++) {
            if (uring_has_work(ctx) || context_notified(ctx)) {
                return POLL_LOOK;
            }
            if (poll_probe(ctx)) {
                return POLL_RAN;
            }
            cpu_relax();
        }
    } while (aio_now_ns() < end_ns);
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

void poll_handler_removed(AioHandler *h)
{
    handler_poll_end(h);
}

void poll_adjust(AioPoll *poll, AioPollWindow *window, int64_t block_ns)
{
    if (block_ns <= window->ns) {
        return;
    }
    if (block_ns > poll->max_ns) {
        window->ns = poll->shrink ? window->ns / poll->shrink : 0;
    } else if (window->ns < poll->max_ns) {
        window->ns = window->ns ? MIN(window->ns * poll->grow, poll->max_ns)
                                : MIN(WINDOW_START_NS, poll->max_ns);
    }
}
