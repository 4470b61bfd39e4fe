/*
 * aio-bh.c - bottom halves: calls that are asked for from anywhere and made in the home thread
 *
 * A bottom half is pushed into its context's queue (base/mpsc.h, wait-free) and then the context is
 * notified. A pass moves the whole queue to the end of the ready list and runs that to its end, or
 * up to a gap: what is behind it is brought by the aio_notify() of the producer that closes it.
 *
 * What a bottom half has been asked for is one word, 0 while it is in no list. Each change of it
 * is one exchange or addition, never a loop, so that scheduling is wait-free altogether:
 *
 *     schedule: exchange SCHEDULED    cancel: exchange CANCELLED, unless it is 0
 *     idle:     add 1                 destroy: exchange DELETED     taken: exchange 0
 *
 * Invariants:
 *   (1) The word is not 0 exactly while the bottom half is on its way to a list or in one; who
 *       changes it from 0 pushes, so nobody is pushed twice. Only the home thread makes it 0, when
 *       it takes it off. An addition never does: it would take 2^61 of them.
 *   (2) All changes are read-modify-writes. A schedule whose exchange (release) comes before the
 *       taking one (acquire) has what it wrote seen by the callback; one that comes after it finds
 *       0 and pushes anew. [bh_ask(), aio_bh_schedule_idle() pair with bh_take()]
 *   (3) A schedule covers the idle ones before it. An addition leaves SCHEDULED as it is.
 *   (4) What is scheduled while a pass runs bottom halves goes to the queue and waits for the next
 *       pass. An inner pass appends to the ready list and runs all of it, the outer one's rest
 *       first: order is kept, and the outer pass finds the list empty.
 *   (5) A bottom half is freed only when it is in no list, by the home thread. A producer does not
 *       touch it after the push, or after the exchange when that found it queued.
 *   (6) One that waits for an idle pass travels through the queue like the others, and when it is
 *       taken off the ready list it is put into the list of idle ones, the word 0: it may be
 *       scheduled for real meanwhile, and then runs once. While that list is not empty the thread
 *       does not sleep.
 */
#include "io/aio/aio-int.h"

#define BH_SCHEDULED (1ULL << 63) /* call it */
#define BH_DELETED   (1ULL << 62) /* free it without a call */
#define BH_CANCELLED (1ULL << 61) /* on its way, for nothing; the rest counts the idle asks */
#define BH_IDLE      1ULL         /* call it when a pass has found nothing else to do */
#define BH_IDLE_MASK (BH_CANCELLED - 1)

struct AioBh {
    AioContext *ctx;
    AioCallback *cb;
    void *opaque;
    MpscNode node;      /* in ctx->bh_incoming or bh_ready */
    ListNode idle_node; /* in ctx->bh_idle */
    bool oneshot;       /* free it after the call; constant once it is scheduled */
    _Atomic uint64_t asked;
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

/* @bh was not queued before it was asked for something: do that. It may be gone after this. */
static void bh_push(AioContext *ctx, AioBh *bh)
{
    door_enter(ctx);
    mpsc_push(&ctx->bh_incoming, &bh->node);
    aio_notify(ctx);
    door_leave(ctx);
}

/* @asked covers what @bh was asked for before. */
static void bh_ask(AioBh *bh, uint64_t asked)
{
    AioContext *ctx = bh->ctx;
    /* release: pairs with bh_take() */
    uint64_t old = atomic_exchange_explicit(&bh->asked, asked, memory_order_acq_rel);

    if (old) {
        assert(!(old & BH_DELETED));
        return; /* who queued it notifies after that; it may be gone */
    }
    bh_push(ctx, bh);
}

void aio_bh_schedule(AioBh *bh)
{
    bh_ask(bh, BH_SCHEDULED);
}

void aio_bh_schedule_idle(AioBh *bh)
{
    AioContext *ctx = bh->ctx;

    /* release: pairs with bh_take() */
    if (atomic_fetch_add_explicit(&bh->asked, BH_IDLE, memory_order_acq_rel) == 0) {
        bh_push(ctx, bh);
    }
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
    /* Only we make it 0 again, so it is still queued when we exchange it. */
    if (atomic_load_explicit(&bh->asked, memory_order_relaxed) != 0) {
        atomic_exchange_explicit(&bh->asked, BH_CANCELLED, memory_order_acq_rel);
    }
    bh_leave_idle(bh);
}

void aio_bh_destroy(AioBh *bh)
{
    if (bh) {
        bh_ask(bh, BH_DELETED);
    }
}

void aio_bh_schedule_oneshot(AioContext *ctx, AioCallback *cb, void *opaque)
{
    AioBh *bh = aio_bh_create(ctx, cb, opaque);

    bh->oneshot = true;
    bh_ask(bh, BH_SCHEDULED);
}

/* Take the first off the ready list; NULL when there is none, or not yet. *asked is what for. */
static ALWAYS_INLINE AioBh *bh_take(AioContext *ctx, uint64_t *asked)
{
    MpscNode *node = mpsc_pop(&ctx->bh_ready);

    if (!node) {
        return NULL;
    }
    AioBh *bh = container_of(node, AioBh, node);

    /* acquire: pairs with bh_ask(), aio_bh_schedule_idle() */
    *asked = atomic_exchange_explicit(&bh->asked, 0, memory_order_acq_rel);
    return bh;
}

bool bh_run(AioContext *ctx)
{
    bool progress = false;
    uint64_t asked;
    AioBh *bh;

    mpsc_collect(&ctx->bh_incoming, &ctx->bh_ready);
    while ((bh = bh_take(ctx, &asked))) {
        if (asked & BH_SCHEDULED) {
            AioCallback *cb = bh->cb;
            void *opaque = bh->opaque;

            bh_leave_idle(bh);
            if (bh->oneshot) {
                free(bh);
            }
            counter_add(&ctx->counters.bhs, 1);
            progress = true;
            cb(opaque); /* may destroy bh */
        } else if (asked & BH_DELETED) {
            bh_leave_idle(bh);
            free(bh);
        } else if ((asked & BH_IDLE_MASK) && !list_linked(&bh->idle_node)) {
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
    uint64_t asked;
    AioBh *bh;

    mpsc_collect(&ctx->bh_incoming, &ctx->bh_ready);
    while ((bh = bh_take(ctx, &asked))) {
        if (bh->oneshot || (asked & BH_DELETED)) {
            bh_leave_idle(bh);
            free(bh);
        }
    }
}
