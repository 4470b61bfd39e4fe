/*
 * aio-co.c - coroutines in contexts
 *
 * A coroutine is entered only by the thread whose context is its home, at once or from that
 * context's queue of scheduled coroutines (base/mpsc.h, like that of the bottom halves in
 * aio-bh.c). What stands behind a gap waits there, as mpsc.h says, until the producer's
 * aio_notify() brings the next pass.
 *
 * Invariants:
 *   (1) Who puts a coroutine into a queue has claimed it with co_mark_scheduled() first, so it is
 *       in at most one; a second claim is a bug and aborts there.
 *   (2) The claimant's writes are seen by the coroutine. [push pairs with co_run()]
 *   (3) A coroutine that moves is put into the other context's queue only after it has left its own
 *       stack [co_yield_then]; waking needs no such care, because its home is the thread it runs
 *       in.
 *   (4) Its home changes in the thread that is about to enter it, after the claim was cleared.
 */
#include "io/aio/aio-int.h"

#include <semaphore.h>

#include "io/aio/co-sleep.h"
#include "io/co/coroutine-int.h"

void aio_co_schedule(AioContext *ctx, Coroutine *co)
{
    co_mark_scheduled(co, "aio_co_schedule");
    door_enter(ctx);
    mpsc_push(&ctx->co_incoming, &co->schedule_node); /* release: pairs with co_run() */
    aio_notify(ctx);
    door_leave(ctx);
}

static void set_home(Coroutine *co, AioContext *ctx)
{
    if (co_home(co) != ctx) {
        co_set_home(co, ctx);
    }
}

static bool run_ready(AioContext *ctx)
{
    MpscNode *node;
    bool progress = false;

    while ((node = mpsc_pop(&ctx->co_ready))) { /* acquire: pairs with aio_co_schedule() */
        Coroutine *co = container_of(node, Coroutine, schedule_node);

        co_clear_scheduled(co);
        set_home(co, ctx);
        counter_add(&ctx->counters.bhs, 1);
        progress = true;
        co_enter(co);
    }
    return progress;
}

bool co_run(AioContext *ctx)
{
    mpsc_collect(&ctx->co_incoming, &ctx->co_ready);
    return ctx->co_ready.head && run_ready(ctx);
}

void aio_co_enter(AioContext *ctx, Coroutine *co)
{
    if (aio_current() != ctx) {
        aio_co_schedule(ctx, co);
        return;
    }
    set_home(co, ctx);
    if (in_coroutine()) {
        co_queue_wakeup(co);
    } else {
        co_enter(co);
    }
}

void aio_co_wake(Coroutine *co)
{
    AioContext *ctx = co_home(co);

    assert(ctx);
    aio_co_enter(ctx, co);
}

static void move_to(Coroutine *co, void *opaque)
{
    aio_co_schedule(opaque, co);
}

void aio_co_reschedule_self(AioContext *ctx)
{
    if (aio_current() != ctx) {
        co_yield_then(move_to, ctx);
    }
}

void aio_co_sleep_ns(int64_t duration_ns)
{
    CoSleep sleep; /* that nobody else knows of */

    co_sleep_init(&sleep);
    (void)co_sleep_ns(&sleep, duration_ns);
}

/* --- calls into another context, waited for --- */

typedef struct SyncCall {
    AioCallback *cb; /* or the entry of a coroutine */
    void *opaque;
    AioContext *waiter; /* polls meanwhile; NULL = the semaphore is waited for */
    sem_t sem;
    atomic_bool done;
} SyncCall;

/* The last thing the called side does with @call. */
static void sync_call_done(SyncCall *call)
{
    AioContext *waiter = call->waiter;

    if (waiter) {
        door_enter(waiter);
        /* release: pairs with aio_co_run_sync(); the frame may be gone after this */
        atomic_store_explicit(&call->done, true, memory_order_release);
        aio_notify(waiter);
        door_leave(waiter);
    } else {
        sem_post(&call->sem);
    }
}

static void sync_call_wait(SyncCall *call)
{
    while (sem_wait(&call->sem) < 0) {
        assert(errno == EINTR);
    }
    sem_destroy(&call->sem);
}

static void run_sync_bh(void *opaque)
{
    SyncCall *call = opaque;

    call->cb(call->opaque);
    sync_call_done(call);
}

void aio_run_sync(AioContext *ctx, AioCallback *cb, void *opaque)
{
    SyncCall call = { .cb = cb, .opaque = opaque };

    assert(!in_coroutine());
    if (aio_current() == ctx) {
        cb(opaque);
        return;
    }
    sem_init(&call.sem, 0, 0);
    aio_bh_schedule_oneshot(ctx, run_sync_bh, &call);
    sync_call_wait(&call);
}

static void run_sync_entry(void *opaque)
{
    SyncCall *call = opaque;

    call->cb(call->opaque);
    sync_call_done(call);
}

void aio_co_run_sync(AioContext *ctx, CoroutineEntry *entry, void *opaque)
{
    SyncCall call = { .cb = entry, .opaque = opaque, .waiter = aio_current() };
    Coroutine *co;

    assert(!in_coroutine());
    if (!call.waiter) {
        sem_init(&call.sem, 0, 0);
    }
    co = co_create(run_sync_entry, &call);
    if (!co) {
        abort();
    }
    aio_co_enter(ctx, co);
    if (call.waiter) {
        /* acquire: pairs with sync_call_done() */
        AIO_WAIT_WHILE(call.waiter,
                       !atomic_load_explicit(&call.done, memory_order_acquire));
    } else {
        sync_call_wait(&call);
    }
}
