/*
 * aio-handler.c - fd handlers: who is called when a descriptor is ready
 *
 * A handler is level-triggered: it is called while its descriptor is ready, by an inner pass, too.
 * The context's monitor does the watching.
 *
 * Life: [aio_set_fd_handler] -> live -> [aio_set_fd_handler with NULL] -> dead -> [handler_sweep]
 *
 * Invariants:
 *   (1) ctx->handlers[fd] is the one live handler of fd.
 *   (2) A dead handler is never called.
 *   (3) A handler is freed only when it is dead, not armed (no completion that names it can come)
 *       and no pass runs (no list walk and no caller stands on it).
 *   (4) poll_begin and poll_end of a handler alternate; a handler that goes away, is switched off
 *       or loses its probe gets the poll_end it is owed first.
 *   (5) handler.off is set exactly while external handlers are off and this is one. Then it is not
 *       called, and the monitor does not watch it.
 */
#include "io/aio/aio-int.h"

#include <poll.h>
#include <string.h>

static uint32_t events_of(const AioHandlerOps *ops)
{
    return (ops->read ? POLLIN | POLLRDHUP : 0) | (ops->write ? POLLOUT : 0);
}

static AioHandler **handler_slot(AioContext *ctx, int fd)
{
    if ((unsigned)fd >= ctx->nb_handlers) {
        unsigned size = MAX(ctx->nb_handlers, 16u);

        while (size <= (unsigned)fd) {
            size *= 2;
        }
        AioHandler **table = realloc(ctx->handlers, size * sizeof(*table));

        if (!table) {
            abort();
        }
        memset(table + ctx->nb_handlers, 0, (size - ctx->nb_handlers) * sizeof(*table));
        ctx->handlers = table;
        ctx->nb_handlers = size;
    }
    return &ctx->handlers[fd];
}

static void handler_remove(AioContext *ctx, AioHandler **slot)
{
    AioHandler *h = *slot;

    *slot = NULL;
    h->deleted = true;
    list_push_back(&ctx->dead_handlers, &h->dead_node);
    ctx->monitor->handler_forget(ctx, h);
    poll_source_finish(&h->poll_source);
    poll_handler_removed(h); /* calls out: everything is in order by now */
}

static void handler_add(AioContext *ctx, AioHandler **slot, int fd, const AioHandlerOps *ops,
                        void *opaque)
{
    AioHandler *h = calloc(1, sizeof(*h));

    if (!h) {
        abort();
    }
    assert(!*slot);
    h->ops = *ops;
    h->opaque = opaque;
    h->ctx = ctx;
    h->fd = fd;
    h->events = events_of(ops);
    *slot = h;
    if (ops->poll) {
        list_push_back(&ctx->poll.handlers, &h->poll_node);
    }
    h->off = ops->external && ctx->external_off > 0;
    if (h->events && !h->off) {
        ctx->monitor->handler_arm(ctx, h);
    }
}

void aio_set_fd_handler(AioContext *ctx, int fd, const AioHandlerOps *ops, void *opaque)
{
    assert(aio_current() == ctx);
    assert(fd >= 0);
    AioHandler **slot = handler_slot(ctx, fd);

    if (*slot) {
        handler_remove(ctx, slot);
        slot = handler_slot(ctx, fd); /* poll_end may have changed the table */
    }
    if (ops) {
        handler_add(ctx, slot, fd, ops, opaque);
    }
    if (ctx->depth == 0) {
        handler_sweep(ctx);
    }
}

void handler_ready(AioHandler *h, uint32_t revents)
{
    if ((revents & (POLLIN | POLLRDHUP | POLLHUP | POLLERR)) && h->ops.read) {
        h->ops.read(h->opaque);
    }
    if ((revents & (POLLOUT | POLLHUP | POLLERR)) && h->ops.write && !h->deleted && !h->off) {
        h->ops.write(h->opaque);
    }
}

/* --- external ones --- */

static void handler_off(AioHandler *h)
{
    h->off = true;
    if (h->events) {
        h->ctx->monitor->handler_pause(h->ctx, h);
    }
    poll_handler_removed(h);
}

static void handler_on(AioHandler *h)
{
    h->off = false;
    if (h->events) {
        h->ctx->monitor->handler_resume(h->ctx, h);
    }
}

void aio_external_off(AioContext *ctx)
{
    assert(aio_current() == ctx);
    if (ctx->external_off++ > 0) {
        return;
    }
    for (unsigned fd = 0; fd < ctx->nb_handlers; fd++) { /* poll_end may change the table */
        AioHandler *h = ctx->handlers[fd];

        if (h && h->ops.external && !h->off) {
            handler_off(h);
        }
    }
}

/* The second look: at what came when notifications were off, before poll_end. */
static void external_kick_bh(void *opaque)
{
    AioContext *ctx = opaque;

    for (unsigned fd = 0; fd < ctx->nb_handlers; fd++) {
        AioHandler *h = ctx->handlers[fd];

        if (h && h->ops.external) {
            poll_kick(h);
        }
    }
}

void aio_external_on(AioContext *ctx)
{
    assert(aio_current() == ctx);
    assert(ctx->external_off > 0);
    if (--ctx->external_off > 0) {
        return;
    }
    for (unsigned fd = 0; fd < ctx->nb_handlers; fd++) {
        AioHandler *h = ctx->handlers[fd];

        if (h && h->off) {
            handler_on(h);
        }
    }
    aio_bh_schedule_oneshot(ctx, external_kick_bh, ctx);
}

static void handler_free(AioHandler *h)
{
    list_remove(&h->dead_node);
    poll_source_finish(&h->poll_source);
    if (list_linked(&h->poll_node)) {
        list_remove(&h->poll_node);
    }
    if (list_linked(&h->arm_node)) {
        list_remove(&h->arm_node);
    }
    free(h);
}

void handler_sweep(AioContext *ctx)
{
    assert(ctx->depth == 0);
    list_for_each_safe(node, &ctx->dead_handlers) {
        AioHandler *h = list_entry(node, AioHandler, dead_node);

        if (!h->armed) {
            handler_free(h);
        }
    }
}

void handler_finish(AioContext *ctx)
{
    /* The ring is gone: no completion will come any more. */
    list_for_each_safe(node, &ctx->dead_handlers) {
        handler_free(list_entry(node, AioHandler, dead_node));
    }
    for (unsigned fd = 0; fd < ctx->nb_handlers; fd++) {
        assert(!ctx->handlers[fd]);
    }
    free(ctx->handlers);
}
