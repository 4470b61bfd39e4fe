/*
 * aio-epoll.c - the monitor for hosts that refuse io_uring: epoll for descriptors, worker threads
 * for disk requests
 *
 * A descriptor is in the epoll set from arm to forget, level-triggered. The set cannot be looked at
 * without a system call, so a pass that does not sleep makes one as long as there are descriptors
 * that nothing else sees; a spinning pass makes one in so many rounds. With nothing but handlers
 * whose probes are asked, and requests, there is none: a worker hands a completed request back with
 * the wait-free push and the notification of aio_co_wake(), which the spin sees in memory.
 *
 * Invariants:
 *   (1) An event is taken off the array before its handler is called, so that an inner pass goes on
 *       with the next one; the array is filled anew only when it is empty.
 *   (2) The array is empty when no pass runs: a handler that was forgotten may then be freed. Until
 *       then its events are passed over, because it is marked deleted.
 *   (3) The wake-up eventfd is in the set all the time. A sleep that it ended clears it.
 *   (4) Descriptors that epoll refuses because they are always ready (files, /dev/null) are in
 *       `always`, and then has_work() is true: they are called in each pass.
 */
#include "io/aio/aio-file-int.h"

#include <poll.h>
#include <sys/epoll.h>

#include "io/aio/aio-worker.h"
#include "io/base/log.h"

#define ROUNDS_PER_LOOK 64 /* of a spin: a look costs about as much as ten rounds */
#define NS_PER_S        1000000000
#define NS_PER_MS       1000000

static_assert(POLLIN == EPOLLIN && POLLOUT == EPOLLOUT && POLLERR == EPOLLERR &&
                  POLLHUP == EPOLLHUP && POLLRDHUP == EPOLLRDHUP,
              "a handler's events can be handed to either interface");

/* --- set-up --- */

static int epoll_init(AioContext *ctx, unsigned entries, Error *err)
{
    AioEpoll *e = &ctx->epoll;
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL };

    list_init(&e->always);
    e->fd = epoll_create1(EPOLL_CLOEXEC);
    if (e->fd >= 0 && epoll_ctl(e->fd, EPOLL_CTL_ADD, ctx->wake_fd, &event) == 0) {
        return 0;
    }
    int ret = -errno;

    if (e->fd >= 0) {
        close(e->fd);
    }
    return error_set(err, ret, "context '%s': epoll: %s", ctx->name, error_strerror(ret));
}

static void epoll_finish(AioContext *ctx)
{
    assert(ctx->inflight == 0);
    close(ctx->epoll.fd);
}

static void epoll_enable(AioContext *ctx)
{
}

/* --- looking --- */

static bool has_events(const AioEpoll *e)
{
    return e->next_event < e->nb_events;
}

static int wait_for_events(AioEpoll *e, int64_t timeout_ns)
{
    struct timespec ts = { timeout_ns / NS_PER_S, timeout_ns % NS_PER_S };

    if (likely(!e->no_pwait2)) {
        int n = epoll_pwait2(e->fd, e->events, EPOLL_EVENTS_MAX, timeout_ns < 0 ? NULL : &ts, NULL);

        if (n >= 0 || (errno != ENOSYS && errno != EPERM)) {
            return n;
        }
        e->no_pwait2 = true; /* an older kernel, or a seccomp filter that does not know it */
    }
    int64_t timeout_ms = MIN((timeout_ns + NS_PER_MS - 1) / NS_PER_MS, INT32_MAX);

    return epoll_wait(e->fd, e->events, EPOLL_EVENTS_MAX, timeout_ns < 0 ? -1 : (int)timeout_ms);
}

/* Fill the array, which is empty. Reports a signal and the end of the timeout by leaving it so. */
static void look(AioContext *ctx, int64_t timeout_ns)
{
    AioEpoll *e = &ctx->epoll;

    assert(!has_events(e));
    counter_add(&ctx->counters.enters, 1);
    int n = wait_for_events(e, timeout_ns);

    if (n < 0 && errno != EINTR) {
        log_error("aio", "context '%s': epoll_wait: %s", ctx->name, error_strerror(errno));
        abort();
    }
    e->rounds = 0;
    e->next_event = 0;
    e->nb_events = MAX(n, 0);
}

static bool epoll_has_work(AioContext *ctx)
{
    AioEpoll *e = &ctx->epoll;

    if (has_events(e) || !list_empty(&e->always)) {
        return true;
    }
    if (e->nb_plain > 0 && ++e->rounds >= ROUNDS_PER_LOOK) {
        look(ctx, 0);
    }
    return has_events(e);
}

static bool epoll_has_queued(const AioContext *ctx, bool arm_polled)
{
    return false;
}

static bool epoll_needs_enter(AioContext *ctx, bool arm_polled)
{
    return ctx->epoll.nb_plain > 0 || (arm_polled && ctx->epoll.nb_polled > 0);
}

/* The worker threads have everything already. */
static bool epoll_should_submit(const AioContext *ctx UNUSED)
{
    return false;
}

static void epoll_enter(AioContext *ctx, bool wait, bool arm_polled, int64_t timeout_ns)
{
    if (!has_events(&ctx->epoll)) { /* else an inner pass has come upon the outer one's rest */
        look(ctx, wait ? timeout_ns : 0);
    }
}

/* --- calling --- */

static void clear_wake_fd(AioContext *ctx)
{
    uint64_t count;
    ssize_t ret;

    do {
        ret = read(ctx->wake_fd, &count, sizeof(count)); /* nobody else reads it */
    } while (ret < 0 && errno == EINTR);
    assert(ret == sizeof(count));
}

static bool call_handler(AioContext *ctx, AioHandler *h, uint32_t revents)
{
    if (h->deleted || h->off) {
        return false;
    }
    poll_fired(ctx, &h->poll_source);
    handler_ready(h, revents);
    return true;
}

/* Each one that stands in the list now at most once: what is called may change the list. */
static bool call_always_ready(AioContext *ctx)
{
    AioEpoll *e = &ctx->epoll;
    bool progress = false;

    for (unsigned budget = e->nb_always; budget > 0 && !list_empty(&e->always); budget--) {
        AioHandler *h = list_entry(list_pop_front(&e->always), AioHandler, arm_node);

        list_push_back(&e->always, &h->arm_node);
        progress |= call_handler(ctx, h, h->events & (POLLIN | POLLOUT));
    }
    return progress;
}

static bool epoll_reap(AioContext *ctx)
{
    AioEpoll *e = &ctx->epoll;
    bool progress = false;

    while (has_events(e)) {
        const struct epoll_event *event = &e->events[e->next_event++];

        if (!event->data.ptr) {
            clear_wake_fd(ctx);
        } else {
            progress |= call_handler(ctx, event->data.ptr, event->events);
        }
    }
    if (unlikely(!list_empty(&e->always))) {
        progress |= call_always_ready(ctx);
    }
    return progress;
}

/* --- handlers --- */

static unsigned *count_of(AioEpoll *e, const AioHandler *h)
{
    return h->ops.poll ? &e->nb_polled : &e->nb_plain;
}

static void epoll_handler_arm(AioContext *ctx, AioHandler *h)
{
    AioEpoll *e = &ctx->epoll;
    struct epoll_event event = { .events = h->events, .data.ptr = h };

    if (epoll_ctl(e->fd, EPOLL_CTL_ADD, h->fd, &event) == 0) {
        h->armed = true;
        ++*count_of(e, h);
    } else if (errno == EPERM) {
        list_push_back(&e->always, &h->arm_node);
        e->nb_always++;
    } else {
        /* out of memory or of fs.epoll.max_user_watches, or not an open descriptor */
        log_error("aio", "context '%s': watching descriptor %d: %s", ctx->name, h->fd,
                  error_strerror(errno));
        abort();
    }
}

static void epoll_handler_forget(AioContext *ctx, AioHandler *h)
{
    AioEpoll *e = &ctx->epoll;

    if (list_linked(&h->arm_node)) {
        list_remove(&h->arm_node);
        e->nb_always--;
    }
    if (h->armed) {
        int ret = epoll_ctl(e->fd, EPOLL_CTL_DEL, h->fd, NULL);

        assert(ret == 0); /* else closed without aio_set_fd_handler(NULL) */
        h->armed = false;
        --*count_of(e, h);
    }
}

/* --- requests --- */

typedef struct FileCall {
    const AioFile *file;
    const AioFileOp *op;
} FileCall;

static ssize_t call_once(int fd, const AioFileOp *op)
{
    switch (op->kind) {
    case FILE_READ:
        return preadv2(fd, op->iov, op->niov, (off_t)op->offset_bytes, op->flags);
    case FILE_WRITE:
        return pwritev2(fd, op->iov, op->niov, (off_t)op->offset_bytes, op->flags);
    case FILE_DATASYNC:
        return fdatasync(fd);
    default:
        return fallocate(fd, op->flags, (off_t)op->offset_bytes, (off_t)op->len_bytes);
    }
}

/* In a worker thread. */
static int file_call_blocking(void *opaque)
{
    const FileCall *call = opaque;
    ssize_t ret;

    do {
        ret = call_once(call->file->fd, call->op);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : (int)ret;
}

static co_fn int epoll_co_file_op(AioContext *ctx, const AioFile *file, const AioFileOp *op)
{
    FileCall call = { file, op };
    AioJob job;

    ctx->inflight++;
    counter_add(&ctx->counters.requests, 1);
    aio_job_init(&job, file_call_blocking, &call);
    int ret = aio_co_run_job(&job);

    ctx->inflight--;
    poll_fired(ctx, &ctx->poll.requests);
    return ret;
}

const AioMonitor epoll_monitor = {
    .name = "epoll",
    .init = epoll_init,
    .finish = epoll_finish,
    .enable = epoll_enable,
    .has_work = epoll_has_work,
    .has_queued = epoll_has_queued,
    .needs_enter = epoll_needs_enter,
    .should_submit = epoll_should_submit,
    .enter = epoll_enter,
    .reap = epoll_reap,
    .handler_arm = epoll_handler_arm,
    .handler_forget = epoll_handler_forget,
    .handler_pause = epoll_handler_forget,
    .handler_resume = epoll_handler_arm,
    .co_file_op = epoll_co_file_op,
};
