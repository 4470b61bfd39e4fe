/*
 * aio-uring.c - the context's io_uring: fd polls, the wake-up, disk requests, and the sleep
 *
 * All that a pass has to tell the kernel goes into the submission queue and out with one
 * io_uring_enter, which also sleeps when there is nothing else to do. With DEFER_TASKRUN the kernel
 * completes requests only when this thread enters it; it raises IORING_SQ_TASKRUN in the flag word
 * when it wants to be entered, so that a polling loop need not ask. The kernel queues its work
 * first and raises the flag second; when we have done the work in between, the flag stays up with
 * nothing behind it until more work comes. So a flag that is up right after io_uring_enter counts
 * for nothing: if there is new work behind it, the next call does it, at the latest the one that
 * sleeps or, where no pass sleeps, that of the STALE_PASSES_MAX-th.
 *
 * A device that interrupts once for all it has done completes the whole depth together. Were all of
 * that reaped and what follows, from coroutines here or from a guest's ring, submitted together, it
 * would have nothing to do in the meantime, and after that we would not. So both reaping and taking
 * a queue's requests (who takes them asks aio_should_submit()) end early when as many are queued as
 * the device still has, at least one: the pass submits them and the next goes on. An idle device
 * gets one request, then one, two, four ...; one with enough to do makes no difference. What
 * completes while it is submitted, as reads from the page cache do, gains nothing from that.
 *
 * Handlers are watched with one-shot polls: multishot ones report edges, and a handler that leaves
 * data behind would wait for ever. When one completes, the handler is put down for arming again
 * *before* it is called, so that an inner pass sees the descriptor, too; the poll itself is
 * submitted at the next io_uring_enter, after the call.
 *
 * Invariants:
 *   (1) The memory that a completion names is alive until the completion has been reaped: a
 *       request's record because its coroutine does not leave uring_co_wait() before, a handler
 *       because it is not freed while armed.
 *   (2) No submitted entry points at memory of a frame that may be left before submission, except
 *       through a request that waits. The longest sleep is an argument of the system call, not a
 *       timeout request, so there is no timespec to keep alive.
 *   (3) handler.armed is true from the moment when its POLL_ADD stands in the queue until the one
 *       completion of that POLL_ADD has been reaped.
 *   (4) The thread sleeps only with the read of the wake-up eventfd submitted.
 *   (5) A completion is taken off the ring before what it is for is called, so that an inner pass
 *       goes on with the next one.
 * io_uring_enter may return early, without an error, when a signal was caught: nothing relies on
 * a completion being there afterwards. Completions that found the ring full are kept by the kernel,
 * which says so in the flag word; entering it moves them into the ring.
 */
#include "io/aio/aio-int.h"

#include <signal.h>
#include <string.h>

#include "io/base/log.h"
#include "io/co/coroutine-int.h"

#define ENTRIES_DEFAULT      256
#define CQ_ENTRIES_PER_SQ    4
#define FEATURES_NEEDED      (IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_EXT_ARG)
#define KERNEL_SIGMASK_BYTES (_NSIG / 8)
#define NS_PER_S             1000000000
#define STALE_PASSES_MAX     64

unsigned uring_first_level;

static const unsigned level_flags[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN |
        IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
    0,
};

/* --- set-up --- */

static int setup_error(const AioContext *ctx, int code, Error *err)
{
    const char *hint = "";

    if (code == -EPERM) {
        hint = " (see sysctl kernel.io_uring_disabled, or a seccomp filter refuses it)";
    } else if (code == -ENOSYS) {
        hint = " (the kernel lacks it or a seccomp filter refuses it)";
    } else if (code == -ENOMEM) {
        hint = " (memory, or RLIMIT_MEMLOCK on kernels before 5.12)";
    }
    return error_set(err, code, "context '%s': io_uring: %s%s", ctx->name, error_strerror(code),
                     hint);
}

/* A seccomp filter may let io_uring_setup(2) pass and refuse the other two calls. */
static int try_other_calls(struct io_uring *ring)
{
    struct io_uring_probe nothing = { 0 };
    int ret = io_uring_register(ring->ring_fd, IORING_REGISTER_PROBE, &nothing, 0);

    if (ret == 0) {
        ret = io_uring_enter(ring->ring_fd, 0, 0, 0, NULL);
    }
    return ret == -EBADFD ? 0 : ret; /* that is because it is not enabled yet */
}

static int uring_init(AioContext *ctx, unsigned entries, Error *err)
{
    AioUring *u = &ctx->uring;
    struct io_uring_params params;
    int ret = -EINVAL;

    if (entries == 0) {
        entries = ENTRIES_DEFAULT;
    }
    for (unsigned level = uring_first_level; level < ARRAY_SIZE(level_flags); level++) {
        memset(&params, 0, sizeof(params));
        params.flags = level_flags[level] | IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE |
                       IORING_SETUP_CLAMP;
        params.cq_entries = entries * CQ_ENTRIES_PER_SQ;
        ret = io_uring_queue_init_params(entries, &u->ring, &params);
        if (ret != -EINVAL) {
            break;
        }
    }
    bool too_old = ret == -EINVAL;

    if (ret == 0 && (params.features & FEATURES_NEEDED) != FEATURES_NEEDED) {
        io_uring_queue_exit(&u->ring);
        too_old = true;
    }
    if (too_old) {
        return error_set(err, -ENOSYS, "context '%s': io_uring of kernel 5.11 or later is needed",
                         ctx->name);
    }
    if (ret == 0 && (ret = try_other_calls(&u->ring)) < 0) {
        io_uring_queue_exit(&u->ring);
    }
    if (ret < 0) {
        return setup_error(ctx, ret, err);
    }
    for (unsigned i = 0; i < u->ring.sq.ring_entries; i++) {
        u->ring.sq.array[i] = i;
    }
    u->enter_fd = u->ring.ring_fd;
    list_init(&u->arm);
    list_init(&u->arm_polled);
    list_init(&u->cancel);
    list_init(&u->waiters);
    return 0;
}

static void uring_enable(AioContext *ctx)
{
    AioUring *u = &ctx->uring;
    struct io_uring_rsrc_update update = { .offset = -1U, .data = (uint64_t)u->ring.ring_fd };
    /* io_uring_enable_rings() is missing from the shared library of liburing 2.3 */
    int ret = io_uring_register(u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);

    assert(ret == 0);
    u->enabled = true;
    /* Spares the look-up of the descriptor in each call; a thread has room for 16 of these. */
    if (io_uring_register(u->ring.ring_fd, IORING_REGISTER_RING_FDS, &update, 1) == 1) {
        u->enter_fd = (int)update.offset;
        u->enter_flags = IORING_ENTER_REGISTERED_RING;
    }
}

static void uring_finish(AioContext *ctx)
{
    AioUring *u = &ctx->uring;

    assert(ctx->inflight == 0);
    assert(list_empty(&u->waiters));
    if (u->enter_flags && ctx->home_tid == gettid()) {
        /* The table is the thread's; when that has ended, its end did this. */
        struct io_uring_rsrc_update update = { .offset = (uint32_t)u->enter_fd };

        io_uring_register(u->ring.ring_fd, IORING_UNREGISTER_RING_FDS, &update, 1);
    }
    io_uring_queue_exit(&u->ring);
}

/* --- what the two rings hold --- */

static unsigned sq_queued(const AioUring *u)
{
    return u->ring.sq.sqe_tail - __atomic_load_n(u->ring.sq.khead, __ATOMIC_ACQUIRE);
}

static unsigned cq_ready(const AioUring *u)
{
    return __atomic_load_n(u->ring.cq.ktail, __ATOMIC_ACQUIRE) - *u->ring.cq.khead;
}

/* Requests among the completions up to @end. */
static unsigned count_completed(const AioUring *u, unsigned end)
{
    unsigned nb = 0;

    for (unsigned at = *u->ring.cq.khead; at != end; at++) {
        nb += (u->ring.cq.cqes[at & u->ring.cq.ring_mask].user_data & URING_TAG_MASK) ==
              URING_TAG_REQUEST;
    }
    return nb;
}

/* Requests that the kernel has and has not completed, as far as has been looked. */
static unsigned nb_under_way(const AioContext *ctx)
{
    unsigned ours = sq_queued(&ctx->uring) + ctx->uring.nb_completed;

    return ctx->inflight > ours ? ctx->inflight - ours : 0;
}

static bool wants_enter(const AioContext *ctx)
{
    return __atomic_load_n(ctx->uring.ring.sq.kflags, __ATOMIC_RELAXED) &
           (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW) & ~ctx->uring.stale_flags;
}

static bool uring_has_work(AioContext *ctx)
{
    return cq_ready(&ctx->uring) || wants_enter(ctx);
}

static bool uring_has_queued(const AioContext *ctx, bool arm_polled)
{
    const AioUring *u = &ctx->uring;

    return sq_queued(u) || !list_empty(&u->arm) || !list_empty(&u->cancel) ||
           (arm_polled && !list_empty(&u->arm_polled));
}

static bool uring_needs_enter(AioContext *ctx, bool arm_polled)
{
    AioUring *u = &ctx->uring;

    if (u->stale_flags && ++u->stale_passes == STALE_PASSES_MAX) {
        u->stale_flags = 0;
    }
    return uring_has_queued(ctx, arm_polled) || wants_enter(ctx);
}

/* --- entering the kernel --- */

/* One io_uring_enter. Reports a signal, the end of the timeout and passing shortages by doing
 * nothing more; any other error means that this program has broken its ring. */
static void enter(AioContext *ctx, bool wait, int64_t timeout_ns)
{
    AioUring *u = &ctx->uring;
    struct __kernel_timespec ts = { timeout_ns / NS_PER_S, timeout_ns % NS_PER_S };
    struct io_uring_getevents_arg arg = {
        .sigmask_sz = KERNEL_SIGMASK_BYTES,
        .ts = (uintptr_t)&ts,
    };
    bool limited = wait && timeout_ns >= 0;
    unsigned flags =
        u->enter_flags | IORING_ENTER_GETEVENTS | (limited ? IORING_ENTER_EXT_ARG : 0);

    __atomic_store_n(u->ring.sq.ktail, u->ring.sq.sqe_tail, __ATOMIC_RELEASE);
    counter_add(&ctx->counters.enters, 1);
    int ret = io_uring_enter2(u->enter_fd, sq_queued(u), wait, flags,
                              limited ? (sigset_t *)&arg : NULL,
                              limited ? sizeof(arg) : KERNEL_SIGMASK_BYTES);

    u->stale_flags = __atomic_load_n(u->ring.sq.kflags, __ATOMIC_RELAXED) & IORING_SQ_TASKRUN;
    u->stale_passes = 0;
    u->just_submitted = ret > 0 && !wait;
    if (ret > 0) {
        counter_add(&ctx->counters.sqes, ret);
    } else if (ret < 0 && ret != -ETIME && ret != -EINTR && ret != -EAGAIN && ret != -EBUSY) {
        log_error("aio", "context '%s': io_uring_enter: %s", ctx->name, error_strerror(ret));
        abort();
    }
}

/* A free entry, if need be by submitting the queue; NULL when the kernel takes nothing now. */
static struct io_uring_sqe *get_sqe(AioContext *ctx)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ctx->uring.ring);

    if (unlikely(!sqe)) {
        enter(ctx, false, 0);
        sqe = io_uring_get_sqe(&ctx->uring.ring);
    }
    return sqe;
}

static void set_user_data(struct io_uring_sqe *sqe, const void *ptr, unsigned tag)
{
    assert(((uintptr_t)ptr & URING_TAG_MASK) == 0);
    io_uring_sqe_set_data64(sqe, (uintptr_t)ptr | tag);
}

static void queue_arms(AioContext *ctx, List *list)
{
    while (!list_empty(list)) {
        struct io_uring_sqe *sqe = get_sqe(ctx);

        if (!sqe) {
            return;
        }
        AioHandler *h = list_entry(list_pop_front(list), AioHandler, arm_node);

        io_uring_prep_poll_add(sqe, h->fd, h->events);
        set_user_data(sqe, h, URING_TAG_HANDLER);
        h->armed = true;
    }
}

static void queue_cancels(AioContext *ctx)
{
    while (!list_empty(&ctx->uring.cancel)) {
        struct io_uring_sqe *sqe = get_sqe(ctx);

        if (!sqe) {
            return;
        }
        AioHandler *h = list_entry(list_pop_front(&ctx->uring.cancel), AioHandler, arm_node);

        io_uring_prep_poll_remove(sqe, (uintptr_t)h | URING_TAG_HANDLER);
        set_user_data(sqe, NULL, URING_TAG_IGNORE);
    }
}

static void queue_wake_read(AioContext *ctx)
{
    AioUring *u = &ctx->uring;
    struct io_uring_sqe *sqe = u->wake_armed ? NULL : get_sqe(ctx);

    if (sqe) {
        io_uring_prep_read(sqe, ctx->wake_fd, &u->wake_count, sizeof(u->wake_count), 0);
        set_user_data(sqe, NULL, URING_TAG_WAKE);
        u->wake_armed = true;
    }
}

static void uring_enter(AioContext *ctx, bool wait, bool arm_polled, int64_t timeout_ns)
{
    queue_cancels(ctx);
    queue_arms(ctx, &ctx->uring.arm);
    if (arm_polled) {
        queue_arms(ctx, &ctx->uring.arm_polled);
    }
    if (wait) {
        queue_wake_read(ctx);
    }
    enter(ctx, wait && ctx->uring.wake_armed, timeout_ns);
}

/* --- handlers --- */

static void uring_handler_arm(AioContext *ctx, AioHandler *h)
{
    list_push_back(h->ops.poll ? &ctx->uring.arm_polled : &ctx->uring.arm, &h->arm_node);
}

static void uring_handler_forget(AioContext *ctx, AioHandler *h)
{
    if (list_linked(&h->arm_node)) {
        list_remove(&h->arm_node);
    }
    if (h->armed) {
        list_push_back(&ctx->uring.cancel, &h->arm_node);
    }
}

/* The poll that the kernel has stays there; when it completes it is not asked for again. */
static void uring_handler_pause(AioContext *ctx, AioHandler *h)
{
    if (list_linked(&h->arm_node)) {
        list_remove(&h->arm_node);
    }
}

static void uring_handler_resume(AioContext *ctx, AioHandler *h)
{
    if (!h->armed) {
        uring_handler_arm(ctx, h);
    }
}

/* --- reaping --- */

static bool handler_completed(AioContext *ctx, AioHandler *h, int res)
{
    h->armed = false;
    if (h->deleted) {
        if (list_linked(&h->arm_node)) {
            list_remove(&h->arm_node); /* nothing left to cancel */
        }
        return false;
    }
    assert(res != -EBADF); /* closed without aio_set_fd_handler(NULL) */
    if (h->off) {
        return false;
    }
    uring_handler_arm(ctx, h);
    if (res <= 0) {
        return false; /* the kernel was short of something: armed again */
    }
    poll_fired(ctx, &h->poll_source);
    handler_ready(h, res);
    return true;
}

static void request_completed(AioContext *ctx, AioRequest *req, int res)
{
    poll_fired(ctx, &ctx->poll.requests);
    ctx->inflight--;
    ctx->uring.nb_completed -= ctx->uring.nb_completed > 0;
    req->res = res;
    req->done = true;
    co_enter(req->co);
}

/* Returns true when somebody was called. */
static bool cqe_dispatch(AioContext *ctx, uint64_t user_data, int res)
{
    void *ptr = (void *)(uintptr_t)(user_data & ~(uint64_t)URING_TAG_MASK);

    switch (user_data & URING_TAG_MASK) {
    case URING_TAG_REQUEST:
        request_completed(ctx, ptr, res);
        return true;
    case URING_TAG_HANDLER:
        return handler_completed(ctx, ptr, res);
    case URING_TAG_WAKE:
        ctx->uring.wake_armed = false;
        return false;
    default:
        return false;
    }
}

static void waiters_wake(AioContext *ctx)
{
    AioUring *u = &ctx->uring;

    while (!list_empty(&u->waiters) && io_uring_sq_space_left(&u->ring) > 0) {
        UringWaiter *waiter = list_entry(list_pop_front(&u->waiters), UringWaiter, node);

        co_enter(waiter->co);
    }
}

static bool uring_should_submit(const AioContext *ctx)
{
    unsigned queued = sq_queued(&ctx->uring);

    return queued > 0 && !ctx->uring.at_once && queued >= nb_under_way(ctx);
}

static bool uring_reap(AioContext *ctx)
{
    AioUring *u = &ctx->uring;
    unsigned *khead = u->ring.cq.khead;
    unsigned end = *khead + cq_ready(u); /* what comes later is for the next pass */
    bool progress = false;

    u->nb_completed = count_completed(u, end);
    if (u->nb_completed > 0) {
        u->at_once = u->just_submitted && nb_under_way(ctx) == 0;
    }
    u->just_submitted = false;
    while ((int)(end - *khead) > 0) {
        const struct io_uring_cqe *cqe = &u->ring.cq.cqes[*khead & u->ring.cq.ring_mask];
        uint64_t user_data = cqe->user_data;
        int res = cqe->res;

        __atomic_store_n(khead, *khead + 1, __ATOMIC_RELEASE);
        progress |= cqe_dispatch(ctx, user_data, res);
        if (uring_should_submit(ctx)) {
            break;
        }
    }
    if (unlikely(!list_empty(&u->waiters))) {
        waiters_wake(ctx);
    }
    return progress;
}

/* --- requests --- */

struct io_uring_sqe *uring_co_get_sqe(AioContext *ctx)
{
    struct io_uring_sqe *sqe;

    while (unlikely(!(sqe = get_sqe(ctx)))) {
        UringWaiter waiter = { .co = co_self() };

        list_push_back(&ctx->uring.waiters, &waiter.node);
        while (list_linked(&waiter.node)) {
            co_yield();
        }
    }
    return sqe;
}

int uring_co_wait(AioContext *ctx, struct io_uring_sqe *sqe)
{
    AioRequest req = { .co = co_self() };

    set_user_data(sqe, &req, URING_TAG_REQUEST);
    ctx->inflight++;
    counter_add(&ctx->counters.requests, 1);
    do {
        co_yield();
    } while (!req.done);
    return req.res;
}

const AioMonitor uring_monitor = {
    .name = "io_uring",
    .init = uring_init,
    .finish = uring_finish,
    .enable = uring_enable,
    .has_work = uring_has_work,
    .has_queued = uring_has_queued,
    .needs_enter = uring_needs_enter,
    .should_submit = uring_should_submit,
    .enter = uring_enter,
    .reap = uring_reap,
    .handler_arm = uring_handler_arm,
    .handler_forget = uring_handler_forget,
    .handler_pause = uring_handler_pause,
    .handler_resume = uring_handler_resume,
    .co_file_op = uring_co_file_op,
};
