/*
 * aio-bh.c - bottom halves: calls that are asked for from anywhere and made in the home thread
 *
 * A bottom half is pushed onto its context's stack of incoming ones (any thread, lock-free, one
 * compare-exchange unless others push in the same nanoseconds) and then the context is notified.
 * A pass takes the whole stack with one exchange, turns it over, appends it to the ready list and
 * runs that list to its end.
 *
 * Invariants:
 *   (1) BH_QUEUED is set exactly while the bottom half is on its way to a list or in one; who sets
 *       it pushes, so nobody is pushed twice. The home thread clears it when it takes it off.
 *   (2) Clearing BH_QUEUED and reading the other flags is one exchange (acquire). A schedule whose
 *       fetch-or (release) comes before it has what it wrote seen by the callback; one that comes
 *       after it finds BH_QUEUED clear and pushes anew. [aio_bh_schedule() pairs with bh_take()]
 *   (3) What is scheduled while a pass runs bottom halves goes to the stack and waits for the next
 *       pass. An inner pass appends to the ready list and runs all of it, the outer one's rest
 *       first: order is kept, and the outer pass finds the list empty.
 *   (4) A bottom half is freed only when it is in no list, by the home thread.
 *   (5) One that waits for an idle pass travels through the stack like the others, and when it is
 *       taken off the ready list it is put into the list of idle ones, BH_QUEUED cleared: it may be
 *       scheduled for real meanwhile, and then runs once. While that list is not empty the thread
 *       does not sleep.
 */
#include "io/aio/aio-int.h"

enum {
    BH_QUEUED = 1,    /* in the stack or the ready list */
    BH_SCHEDULED = 2, /* call it */
    BH_ONESHOT = 4,   /* free it after the call */
    BH_DELETED = 8,   /* free it without a call */
    BH_IDLE = 16,     /* call it when a pass has found nothing else to do */
};

struct AioBh {
    AioContext *ctx;
    AioCallback *cb;
    void *opaque;
    AioBh *next;        /* in the stack (written before the push) or the ready list */
    ListNode idle_node; /* in ctx->bh_idle */
    _Atomic unsigned flags;
};

AioBh *aio_bh_create(AioContext *ctx, AioCallback *cb, void *opaque)
{
    AioBh *bh = calloc(1, sizeof(*bh));

    if (!bh) {
        abort();
    }
    bh->ctx = ctx;
    bh->cb = cb;
    bh->opaque = opaque;
    return bh;
}

/* Set @flags and see to it that the home thread looks at @bh, which may be gone after this. */
static void bh_enqueue(AioBh *bh, unsigned flags)
{
    AioContext *ctx = bh->ctx;
    /* release: pairs with bh_take() */
    unsigned old = atomic_fetch_or_explicit(&bh->flags, flags | BH_QUEUED, memory_order_acq_rel);

    if (old & BH_QUEUED) {
        return; /* who queued it notifies after that */
    }
    door_enter(ctx);
    AioBh *first = atomic_load_explicit(&ctx->bh_incoming, memory_order_relaxed);

    do {
        bh->next = first;
    } while (!atomic_compare_exchange_weak_explicit(&ctx->bh_incoming, &first, bh,
                                                    memory_order_release, memory_order_relaxed));
    aio_notify(ctx);
    door_leave(ctx);
}

void aio_bh_schedule(AioBh *bh)
{
    bh_enqueue(bh, BH_SCHEDULED);
}

void aio_bh_schedule_idle(AioBh *bh)
{
    bh_enqueue(bh, BH_IDLE);
}

static void bh_leave_idle(AioBh *bh)
{
    if (unlikely(list_linked(&bh->idle_node))) {
        list_remove(&bh->idle_node);
        bh->ctx->nb_idle--;
    }
}

void aio_bh_cancel(AioBh *bh)
{
    atomic_fetch_and_explicit(&bh->flags, ~(BH_SCHEDULED | BH_IDLE), memory_order_relaxed);
    bh_leave_idle(bh);
}

void aio_bh_destroy(AioBh *bh)
{
    if (bh) {
        bh_enqueue(bh, BH_DELETED);
    }
}

void aio_bh_schedule_oneshot(AioContext *ctx, AioCallback *cb, void *opaque)
{
    bh_enqueue(aio_bh_create(ctx, cb, opaque), BH_SCHEDULED | BH_ONESHOT);
}

/* Move the stack, turned over, to the end of the ready list. */
static void bh_collect(AioContext *ctx)
{
    /* acquire: pairs with the push in bh_enqueue() */
    AioBh *bh = atomic_exchange_explicit(&ctx->bh_incoming, NULL, memory_order_acquire);
    AioBh *oldest_first = NULL;
    AioBh *newest = bh;

    while (bh) {
        AioBh *next = bh->next;

        bh->next = oldest_first;
        oldest_first = bh;
        bh = next;
    }
    if (oldest_first) {
        *ctx->bh_ready_tail = oldest_first;
        ctx->bh_ready_tail = &newest->next;
    }
}

/* Take the first off the ready list; returns the flags it had. */
static unsigned bh_take(AioContext *ctx, AioBh **ret_bh)
{
    AioBh *bh = ctx->bh_ready_head;

    ctx->bh_ready_head = bh->next;
    if (!ctx->bh_ready_head) {
        ctx->bh_ready_tail = &ctx->bh_ready_head;
    }
    *ret_bh = bh;
    /* acquire: pairs with bh_enqueue() */
    return atomic_exchange_explicit(&bh->flags, 0, memory_order_acq_rel);
}

bool bh_run(AioContext *ctx)
{
    bool progress = false;

    bh_collect(ctx);
    while (ctx->bh_ready_head) {
        AioBh *bh;
        unsigned flags = bh_take(ctx, &bh);

        if ((flags & BH_SCHEDULED) && !(flags & BH_DELETED)) {
            AioCallback *cb = bh->cb;
            void *opaque = bh->opaque;

            bh_leave_idle(bh);
            if (flags & BH_ONESHOT) {
                free(bh);
            }
            counter_add(&ctx->counters.bhs, 1);
            progress = true;
            cb(opaque); /* may destroy bh */
        } else if (flags & (BH_DELETED | BH_ONESHOT)) {
            bh_leave_idle(bh);
            free(bh);
        } else if ((flags & BH_IDLE) && !list_linked(&bh->idle_node)) {
            list_push_back(&ctx->bh_idle, &bh->idle_node);
            ctx->nb_idle++;
        }
    }
    return progress;
}

bool bh_run_idle(AioContext *ctx)
{
    bool progress = ctx->nb_idle > 0;

    /* Those that are there now; an inner pass may take them from us. */
    for (unsigned budget = ctx->nb_idle; budget > 0 && ctx->nb_idle > 0; budget--) {
        AioBh *bh = list_entry(ctx->bh_idle.head.next, AioBh, idle_node);

        bh_leave_idle(bh);
        counter_add(&ctx->counters.bhs, 1);
        bh->cb(bh->opaque); /* may destroy bh */
    }
    return progress;
}

void bh_finish(AioContext *ctx)
{
    bh_collect(ctx);
    while (ctx->bh_ready_head) {
        AioBh *bh;

        if (bh_take(ctx, &bh) & (BH_DELETED | BH_ONESHOT)) {
            bh_leave_idle(bh);
            free(bh);
        }
    }
}
