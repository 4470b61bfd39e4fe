/*
 * aio-context.c - the pass of the event loop and how it is woken
 *
 * Wake-up. The consumer is the home thread in aio_poll(); a producer is any thread that has
 * published something (pushed a bottom half or a coroutine, made the condition of an
 * AIO_WAIT_WHILE() false) and then calls aio_notify(). One word, wake_state, carries it:
 *
 *     AWAKE --consumer, about to sleep [sleep_begin: compare-exchange]--> SLEEPING
 *     SLEEPING --consumer, woken by something else [sleep_end: compare-exchange]--> AWAKE
 *     any --producer [aio_notify: exchange]--> NOTIFIED
 *     NOTIFIED --consumer, about to look [incoming_run: exchange]--> AWAKE
 *
 * Invariants:
 *   (1) Every change of wake_state is a read-modify-write, so all changes stand in one order that
 *       all threads agree on, and the producers' exchanges form an unbroken release sequence.
 *   (2) A producer publishes before its exchange (release); the consumer looks after its exchange
 *       in incoming_run() (acquire). So what was published before any NOTIFIED that this exchange
 *       took away is seen. [aio_notify() pairs with incoming_run()]
 *   (3) The consumer sleeps only after its compare-exchange AWAKE -> SLEEPING succeeded. An
 *       exchange to NOTIFIED either stands before it, then the compare-exchange fails and the
 *       consumer looks again; or after it, then the producer has read SLEEPING and writes the
 *       eventfd, whose read in the ring ends the sleep. [aio_notify() pairs with sleep_begin()]
 *   (4) The eventfd is written at most once a sleep, and never when nobody sleeps: the cheap path
 *       is one exchange.
 *   (5) NOTIFIED sticks: a call that comes between two passes, when the condition it is about has
 *       been looked at already, keeps the next pass from sleeping.
 * A write may come late, when the consumer has been woken by something else and sleeps again; that
 * costs one empty pass.
 *
 * Nesting. A callback may call aio_poll(). Everything a pass works on is taken out of its list
 * before it is run (bottom halves, coroutines, completions, timers) or stays linked until no pass
 * runs (handlers), so an inner pass may do the rest of the outer one's work and the outer one finds
 * its lists empty.
 */
#include "io/aio/aio-int.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "io/base/thread.h"
#include "io/co/coroutine-int.h"

typedef enum WakeState {
    WAKE_AWAKE,
    WAKE_SLEEPING,
    WAKE_NOTIFIED,
} WakeState;

static pthread_mutex_t contexts_lock = PTHREAD_MUTEX_INITIALIZER; /* protects contexts[] */
static AioContext *contexts[AIO_CONTEXTS_MAX];

static AioContext *_Atomic main_context;

THREAD_LOCAL(AioContext *, current_slot);

/* --- creation --- */

static int context_publish(AioContext *ctx, Error *err)
{
    int ret = -ENOSPC;

    pthread_mutex_lock(&contexts_lock);
    for (unsigned i = 0; i < AIO_CONTEXTS_MAX; i++) {
        if (!contexts[i]) {
            contexts[i] = ctx;
            ctx->index = i;
            ret = 0;
            break;
        }
    }
    pthread_mutex_unlock(&contexts_lock);
    if (ret < 0) {
        error_set(err, ret, "context '%s': all %d contexts are in use", ctx->name,
                  AIO_CONTEXTS_MAX);
    }
    return ret;
}

static void context_unpublish(AioContext *ctx)
{
    pthread_mutex_lock(&contexts_lock);
    if (contexts[ctx->index] == ctx) {
        contexts[ctx->index] = NULL;
    }
    pthread_mutex_unlock(&contexts_lock);
}

void context_notify_all(void)
{
    pthread_mutex_lock(&contexts_lock);
    for (unsigned i = 0; i < AIO_CONTEXTS_MAX; i++) {
        if (contexts[i]) {
            aio_notify(contexts[i]);
        }
    }
    pthread_mutex_unlock(&contexts_lock);
}

void context_bh_everywhere(AioCallback *cb)
{
    pthread_mutex_lock(&contexts_lock);
    for (unsigned i = 0; i < AIO_CONTEXTS_MAX; i++) {
        if (contexts[i]) {
            aio_bh_schedule_oneshot(contexts[i], cb, contexts[i]);
        }
    }
    pthread_mutex_unlock(&contexts_lock);
}

AioContext *aio_context_create(const char *name, const AioParams *params, Error *err)
{
    static const AioParams no_polling;
    AioContext *ctx;

    params = params ? params : &no_polling;

    if (posix_memalign((void **)&ctx, _Alignof(AioContext), sizeof(*ctx)) != 0) {
        error_set(err, -ENOMEM, "context '%s': out of memory", name);
        return NULL;
    }
    memset(ctx, 0, sizeof(*ctx));
    snprintf(ctx->name, sizeof(ctx->name), "%s", name);
    mpsc_init(&ctx->bh_incoming);
    mpsc_init(&ctx->co_incoming);
    ctx->defer_tail = &ctx->defer_head;
    list_init(&ctx->dead_handlers);
    list_init(&ctx->bh_idle);
    co_name_homes_by(aio_context_name);
    poll_init(&ctx->poll, params);

    /* Blocking on purpose: a read of it through the ring then waits instead of failing. */
    ctx->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (ctx->wake_fd < 0) {
        error_set(err, -errno, "context '%s': eventfd: %s", name, error_strerror(errno));
        free(ctx);
        return NULL;
    }
    if (monitor_init(ctx, params, err) < 0) {
        close(ctx->wake_fd);
        free(ctx);
        return NULL;
    }
    if (context_publish(ctx, err) < 0) {
        ctx->monitor->finish(ctx);
        close(ctx->wake_fd);
        free(ctx);
        return NULL;
    }
    return ctx;
}

void aio_context_destroy(AioContext *ctx)
{
    if (!ctx) {
        return;
    }
    assert(ctx->depth == 0);
    assert(!ctx->defer_head);
    context_unpublish(ctx);
    /* Others may be between having published what we saw and the end of their aio_notify(). */
    while (atomic_load_explicit(&ctx->callers, memory_order_acquire) > 0) {
        sched_yield();
    }
    if (aio_current() == ctx) {
        aio_context_enter(NULL);
    }
    if (atomic_load(&main_context) == ctx) {
        aio_context_set_main(NULL);
    }
    ctx->monitor->finish(ctx);
    bh_finish(ctx);
    handler_finish(ctx);
    close(ctx->wake_fd);
    timer_finish(ctx);
    free(ctx);
}

const char *aio_context_monitor(const AioContext *ctx)
{
    return ctx->monitor->name;
}

const char *aio_context_name(const AioContext *ctx)
{
    return ctx->name;
}

unsigned aio_context_index(const AioContext *ctx)
{
    return ctx->index;
}

AioContext *aio_current(void)
{
    return *current_slot();
}

AioContext *aio_main(void)
{
    return atomic_load_explicit(&main_context, memory_order_acquire);
}

void aio_context_set_main(AioContext *ctx)
{
    atomic_store_explicit(&main_context, ctx, memory_order_release);
}

void aio_context_enter(AioContext *ctx)
{
    if (ctx) {
        if (!ctx->home_tid) {
            ctx->home_tid = gettid();
            ctx->monitor->enable(ctx);
        }
        assert(ctx->home_tid == gettid());
    }
    *current_slot() = ctx;
    co_thread_set_home(ctx);
}

/* --- wake-up --- */

void aio_notify(AioContext *ctx)
{
    /* release: what the caller published; pairs with incoming_run() and sleep_begin() */
    unsigned old =
        atomic_exchange_explicit(&ctx->wake_state, WAKE_NOTIFIED, memory_order_acq_rel);

    if (old == WAKE_SLEEPING) {
        static const uint64_t one = 1;
        int saved = errno; /* we may be in a signal handler */
        ssize_t written;

        atomic_fetch_add_explicit(&ctx->notifies, 1, memory_order_relaxed);
        do {
            written = write(ctx->wake_fd, &one, sizeof(one));
        } while (written < 0 && errno == EINTR);
        assert(written == sizeof(one));
        errno = saved;
    }
}

bool context_notified(const AioContext *ctx)
{
    return atomic_load_explicit(&ctx->wake_state, memory_order_relaxed) == WAKE_NOTIFIED;
}

/*
 * Run what other threads (or we ourselves) have scheduled; nothing to do is one load. *wait becomes
 * false when a notification was taken away: even with nothing to run here it may be about something
 * that the caller of aio_poll() looked at before, so this pass must not sleep (invariant 5).
 */
static bool incoming_run(AioContext *ctx, bool *wait)
{
    if (likely(!context_notified(ctx)) && !mpsc_can_pop(&ctx->bh_ready)) {
        return false;
    }
    /* acquire: pairs with aio_notify(); the lists are looked at after this */
    if (atomic_exchange_explicit(&ctx->wake_state, WAKE_AWAKE, memory_order_acq_rel) ==
        WAKE_NOTIFIED) {
        poll_fired(ctx, &ctx->poll.notified);
    }
    *wait = false;

    bool progress = bh_run(ctx);

    return co_run(ctx) || progress;
}

/* False when there is something to look at instead of sleeping. */
static bool sleep_begin(AioContext *ctx)
{
    unsigned expected = WAKE_AWAKE;

    /* pairs with aio_notify(): one of the two sees the other */
    return atomic_compare_exchange_strong_explicit(&ctx->wake_state, &expected, WAKE_SLEEPING,
                                                   memory_order_acq_rel, memory_order_relaxed);
}

static void sleep_end(AioContext *ctx)
{
    unsigned expected = WAKE_SLEEPING;

    /* fails when a producer was here: NOTIFIED stays for incoming_run() */
    atomic_compare_exchange_strong_explicit(&ctx->wake_state, &expected, WAKE_AWAKE,
                                            memory_order_acq_rel, memory_order_relaxed);
}

/* --- the pass --- */

static int64_t until_ns(int64_t deadline_ns)
{
    if (deadline_ns < 0) {
        return -1;
    }
    return MAX(deadline_ns - aio_now_ns(), 0);
}

/* Nothing is ready: submit and sleep until something is. */
static bool pass_sleep(AioContext *ctx, int64_t start_ns)
{
    int64_t timeout_ns = until_ns(timer_next_ns(ctx));
    bool wait = timeout_ns != 0 && sleep_begin(ctx);

    if (wait) {
        ctx->monitor->enter(ctx, true, true, timeout_ns);
        sleep_end(ctx);
        if (ctx->poll.max_ns) {
            poll_slept(ctx, start_ns);
        }
    } else if (ctx->monitor->needs_enter(ctx, true)) {
        ctx->monitor->enter(ctx, false, true, 0);
    }
    /* Nothing has been run in this pass, so what came in while we slept belongs to it. */
    return incoming_run(ctx, &wait);
}

/*
 * The polling part of a pass. Returns true when handlers were run; *wait becomes false when the
 * pass must not sleep. *start_ns is when the wait began, if that was measured.
 */
static bool pass_poll(AioContext *ctx, bool blocking, bool *wait, int64_t *start_ns)
{
    AioPoll *poll = &ctx->poll;
    int64_t window_ns = *wait ? poll_window_ns(ctx) : 0;

    if (!blocking) {
        /* The caller does not spin: leave everything to the fds. */
        return poll->open && poll_close(ctx);
    }
    if (!poll->open && window_ns == 0) {
        return false;
    }
    counter_add(&ctx->counters.polls, 1);
    bool ready = poll_probe(ctx);

    if (!ready && *wait) {
        if (window_ns > 0) {
            if (ctx->monitor->has_queued(ctx, false)) {
                /* Submit first. The next pass spins: one io_uring_enter a pass. */
                *wait = false;
                return false;
            }
            *start_ns = aio_now_ns();
            PollResult result = poll_spin(ctx, *start_ns, window_ns, timer_next_ns(ctx));

            if (result == POLL_LOOK) {
                counter_add(&ctx->counters.polls_paid, 1);
                *wait = false;
                return incoming_run(ctx, wait);
            }
            ready = result == POLL_RAN;
        }
        if (!ready) {
            ready = poll_close(ctx);
            *wait = !ready;
            return ready;
        }
    }
    if (ready) {
        counter_add(&ctx->counters.polls_paid, 1);
        *wait = false;
    }
    return ready;
}

bool aio_poll(AioContext *ctx, bool blocking)
{
    assert(aio_current() == ctx);
    assert(!in_coroutine());
    ctx->depth++;
    counter_add(&ctx->counters.passes, 1);
    poll_pass_begin(&ctx->poll);

    bool wait = blocking;
    bool progress = incoming_run(ctx, &wait);
    int64_t start_ns = 0;

    wait = wait && !progress && !ctx->defer_head && !ctx->nb_idle &&
           !ctx->monitor->has_work(ctx);
    if (ctx->poll.max_ns || ctx->poll.open) {
        progress |= pass_poll(ctx, blocking, &wait, &start_ns);
    }
    if (wait) {
        if (ctx->poll.max_ns && !start_ns) {
            start_ns = aio_now_ns();
        }
        progress |= pass_sleep(ctx, start_ns);
    } else {
        /* While no probe is asked, a handler that always has work must not keep others waiting. */
        bool arm_polled = !blocking || !ctx->poll.open;

        if (ctx->monitor->needs_enter(ctx, arm_polled)) {
            ctx->monitor->enter(ctx, false, arm_polled, 0);
        }
    }
    progress |= ctx->monitor->reap(ctx);
    if (ctx->nb_timers) {
        progress |= timer_run(ctx);
    }
    if (unlikely(ctx->nb_idle) && !progress && !ctx->defer_head) {
        progress = bh_run_idle(ctx);
    }
    if (ctx->defer_head) {
        aio_defer_flush(ctx);
        progress = true;
    }
    if (--ctx->depth == 0 && unlikely(!list_empty(&ctx->dead_handlers))) {
        handler_sweep(ctx);
    }
    return progress;
}

/* --- deferred calls --- */

void aio_defer_init(AioDefer *defer, AioCallback *cb, void *opaque)
{
    *defer = (AioDefer){ .cb = cb, .opaque = opaque };
}

void aio_defer(AioContext *ctx, AioDefer *defer)
{
    if (defer->queued) {
        return;
    }
    defer->queued = true;
    defer->next = NULL;
    *ctx->defer_tail = defer;
    ctx->defer_tail = &defer->next;
}

void aio_defer_flush(AioContext *ctx)
{
    /* A call may queue itself or another again: that one waits for the next time. */
    AioDefer *last = ctx->defer_head ? container_of(ctx->defer_tail, AioDefer, next) : NULL;
    AioDefer *defer = NULL;

    while (defer != last && ctx->defer_head) {
        defer = ctx->defer_head;
        ctx->defer_head = defer->next;
        if (!ctx->defer_head) {
            ctx->defer_tail = &ctx->defer_head;
        }
        defer->queued = false;
        defer->cb(defer->opaque);
    }
}

/* --- statistics --- */

static uint64_t counter_read(const AioCounter *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

void aio_context_stats(const AioContext *ctx, AioStats *ret_stats)
{
    const AioCounters *c = &ctx->counters;

    *ret_stats = (AioStats){
        .passes = counter_read(&c->passes),
        .enters = counter_read(&c->enters),
        .sqes = counter_read(&c->sqes),
        .requests = counter_read(&c->requests),
        .notifies = counter_read(&ctx->notifies),
        .bhs = counter_read(&c->bhs),
        .polls = counter_read(&c->polls),
        .polls_paid = counter_read(&c->polls_paid),
        .poll_ns = atomic_load_explicit(&c->poll_ns, memory_order_relaxed),
    };
}
