/*
 * aio-int.h - what the files of this folder share: the context's insides and the ring's functions
 *
 * Layer:     io/aio, private
 * Threading: home thread only, except what stands under "doors" in AioContext.
 *
 * The files and their parts of the context:
 *   aio-context.c  the pass, the wake-up protocol, deferred calls, the list of all contexts
 *   aio-bh.c       bottom halves            aio-co.c       coroutines in contexts
 *   aio-timer.c    the heaps                aio-handler.c  fd handlers
 *   aio-poll.c     the polling windows      aio-file.c     disk requests
 *   aio-monitor.c  the choice of these two:
 *   aio-uring.c    the ring; aio-uring-file.c: requests, fixed files and buffers there
 *   aio-epoll.c    epoll, and requests in worker threads
 *
 * What waits for descriptors and disks is an AioMonitor. Nothing outside aio-uring*.c and the
 * section of the ring below knows that there is an io_uring.
 */
#ifndef IO_AIO_AIO_INT_H
#define IO_AIO_AIO_INT_H

#include <liburing.h>
#include <pthread.h>
#include <sys/epoll.h>

#include "io/aio/aio.h"
#include "io/base/mpsc.h"

/* --- what may end a wait (aio-poll.c) --- */

/* What has been learnt of one thing that ends waits. All zero is a fresh one. */
typedef struct AioPollSource {
    ListNode node;       /* in AioPoll.sources while window_ns > 0 */
    int64_t window_ns;   /* how long it is worth polling for */
    int64_t interval_ns; /* weighted mean of the waits that it ended */
    bool seen;           /* interval_ns holds something */
    unsigned pass;       /* AioPoll.pass when it last learnt */
    unsigned missed;     /* sleeps that others ended since it last ended a wait */
} AioPollSource;

typedef struct AioPoll {
    List handlers; /* AioHandler.poll_node; deleted ones stay until no pass runs */
    List sources;  /* AioPollSource.node */
    AioPollSource requests; /* disk requests, all together */
    AioPollSource notified; /* aio_notify() */
    int64_t max_ns;
    int64_t grow;
    int64_t shrink;
    unsigned weight;
    unsigned pass;     /* counts passes, so that a source learns once in one */
    int64_t waited_ns; /* how long this pass has waited, -1 = not at all */
    bool slept;        /* the end of that wait was a sleep */
    bool open;         /* handlers' poll_begin has been called */
} AioPoll;

/* --- fd handlers (aio-handler.c) --- */

typedef struct AioHandler {
    AioHandlerOps ops;
    void *opaque;
    AioContext *ctx;
    AioPollSource poll_source;
    int fd;
    uint32_t events;    /* POLL* mask wanted; 0 when there is only a poll probe */
    bool deleted;       /* removed; never called again, freed once disarmed and no pass runs */
    bool armed;         /* the monitor may still name us: see its file */
    bool off;           /* an external one, switched off: neither called nor asked */
    bool poll_begun;    /* poll_begin was called and poll_end not yet */
    ListNode arm_node;  /* in one of the monitor's lists, or in none */
    ListNode poll_node; /* in ctx->poll.handlers when ops.poll is set */
    ListNode dead_node; /* in ctx->dead_handlers when deleted */
} AioHandler;

/* --- monitors --- */

struct AioFile;
struct AioFileOp;

/*
 * AioMonitor - how a context learns that descriptors are ready and requests have completed, and
 * how it sleeps until then. Chosen when the context is created. All slots are called in the home
 * thread, except init and finish.
 *
 * A handler is armed once, when it is added, and stays watched until it is forgotten; the monitor
 * calls handler_ready() while the descriptor is ready. What it may still name after forget has
 * handler.armed set, until it cannot come any more: then the handler may be freed.
 */
typedef struct AioMonitor {
    const char *name;
    /* @entries  AioParams.ring_entries */
    int (*init)(AioContext *ctx, unsigned entries, Error *err);
    /* The home thread polls no more; no request is in flight; handlers may still be armed. */
    void (*finish)(AioContext *ctx);
    /* Tie it to the calling thread, which is home from now on; once. */
    void (*enable)(AioContext *ctx);

    /* Is there anything for reap() to do, or for an enter() that makes it so? Asked in every round
     * of the polling window: a few loads. */
    bool (*has_work)(AioContext *ctx);
    /*
     * Is there something that was put off until the next enter()? A pass that is about to spin
     * enters first.
     * @arm_polled  count handlers that also have a poll probe
     */
    bool (*has_queued)(const AioContext *ctx, bool arm_polled);
    /* Must a pass that does not wait enter() all the same, lest something is not seen? */
    bool (*needs_enter)(AioContext *ctx, bool arm_polled);
    /* aio_should_submit() */
    bool (*should_submit)(const AioContext *ctx);
    /*
     * One system call at most: hand over what is queued; if @wait, sleep until there is something
     * for reap() or the wake-up eventfd was written
     * @arm_polled  also look at handlers that have a poll probe; always so when @wait
     * @timeout_ns  longest sleep, -1 = no limit
     * May return early with nothing ready, as when a signal was caught.
     */
    void (*enter)(AioContext *ctx, bool wait, bool arm_polled, int64_t timeout_ns);
    /* Call the handlers and enter the coroutines of what is ready now, not of what becomes so
     * meanwhile; what is called may run an inner pass. May leave some to the next pass, so that
     * what has been queued goes out first. True when anything was called. */
    bool (*reap)(AioContext *ctx);

    void (*handler_arm)(AioContext *ctx, AioHandler *h);
    void (*handler_forget)(AioContext *ctx, AioHandler *h);
    /* Stop watching it for a while (handler.off is set meanwhile), and go on. */
    void (*handler_pause)(AioContext *ctx, AioHandler *h);
    void (*handler_resume)(AioContext *ctx, AioHandler *h);

    /* Do @op on @file and yield until it is done. Bytes or 0, or -errno; not -EINTR. */
    int (*co_file_op)(AioContext *ctx, const struct AioFile *file,
                      const struct AioFileOp *op) co_fn_ptr;
} AioMonitor;

extern const AioMonitor uring_monitor;
extern const AioMonitor epoll_monitor;

/* monitor_init - choose by @params and set up (aio-monitor.c) */
int monitor_init(AioContext *ctx, const AioParams *params, Error *err) NONNULL(1, 2) WARN_UNUSED;

/* What AIO_MONITOR_AUTO means to monitor_init(). Tests set it, to be run on either. */
extern AioMonitorKind monitor_auto;

/* --- the ring (aio-uring.c) --- */

/* What the low bits of a completion's user data say about the pointer above them. */
enum {
    URING_TAG_REQUEST = 0, /* AioRequest */
    URING_TAG_HANDLER = 1, /* AioHandler */
    URING_TAG_WAKE = 2,    /* the read of the wake-up eventfd */
    URING_TAG_IGNORE = 3,  /* the completion of a cancellation */
    URING_TAG_MASK = 7,
};

/* A request in flight; lives in the frame of the coroutine that waits for it. */
typedef struct AioRequest {
    Coroutine *co;
    int res;
    bool done;
} AioRequest;

/* A coroutine that waits for a free submission entry; lives in its frame. */
typedef struct UringWaiter {
    ListNode node;
    Coroutine *co;
} UringWaiter;

typedef struct AioUring {
    struct io_uring ring;
    int enter_fd;          /* descriptor for io_uring_enter, or index of the registered one */
    unsigned enter_flags;  /* IORING_ENTER_REGISTERED_RING when it is an index */
    unsigned stale_flags;  /* IORING_SQ_TASKRUN if the last io_uring_enter left it set */
    unsigned stale_passes; /* that did not wait, since then */
    unsigned nb_completed; /* requests among the completions that reap() has seen and not taken */
    bool just_submitted;   /* the last io_uring_enter handed something over and did not sleep */
    bool at_once;          /* that is how the latest requests completed: while being handed over */
    bool enabled;
    bool wake_armed;     /* the read of the eventfd is in the kernel */
    uint64_t wake_count; /* where that read puts its eight bytes */
    List arm;            /* handlers to arm at the next io_uring_enter */
    List arm_polled;     /* the same, but not needed while their probe is asked */
    List cancel;         /* deleted handlers whose POLL_ADD is to be cancelled */
    List waiters;        /* UringWaiter: the submission queue was full */
} AioUring;

/* Which set-up flags to try first: 0 = everything (6.1), 1 = without DEFER_TASKRUN (5.19),
 * 2 = plain (5.11). Tests raise it to run on each; read when a context is created. */
extern unsigned uring_first_level;

/* uring_co_file_op - AioMonitor.co_file_op (aio-uring-file.c) */
co_fn int uring_co_file_op(AioContext *ctx, const struct AioFile *file,
                           const struct AioFileOp *op);
/* uring_co_get_sqe - a cleared submission entry; yields while the queue is full */
co_fn struct io_uring_sqe *uring_co_get_sqe(AioContext *ctx);
/* uring_co_wait - queue @sqe, just got and filled in, and yield until it has completed */
co_fn int uring_co_wait(AioContext *ctx, struct io_uring_sqe *sqe);

/* --- epoll (aio-epoll.c) --- */

#define EPOLL_EVENTS_MAX 64 /* taken with one system call */

typedef struct AioEpoll {
    int fd;
    bool no_pwait2;      /* epoll_pwait2() is refused: timeouts are rounded up to milliseconds */
    unsigned nb_plain;   /* handlers in the set without a poll probe */
    unsigned nb_polled;  /* and with one */
    unsigned rounds;     /* has_work() since the last look */
    unsigned next_event, nb_events;
    unsigned nb_always;
    List always;         /* AioHandler.arm_node: epoll does not watch what is always ready */
    struct epoll_event events[EPOLL_EVENTS_MAX]; /* next_event..nb_events are to be called */
} AioEpoll;

/* --- adaptive polling (aio-poll.c) --- */

void poll_init(AioPoll *poll, const AioParams *params);
static inline void poll_pass_begin(AioPoll *poll)
{
    poll->pass++;
    poll->waited_ns = -1;
    poll->slept = false;
}
/* poll_window_ns - how long the loop polls before it sleeps: the longest window of all sources
 * that can end the wait */
int64_t poll_window_ns(const AioContext *ctx);
/* poll_probe - ask each handler once and run those that are ready; true when any was */
bool poll_probe(AioContext *ctx);
typedef enum PollResult {
    POLL_NOTHING, /* the window has ended */
    POLL_LOOK,    /* a completion, a notification or a timer is there to be looked at */
    POLL_RAN,     /* handlers were ready and have been run */
} PollResult;

/* poll_spin - ask until something is ready, @deadline_ns (-1 = none) or the window's end */
PollResult poll_spin(AioContext *ctx, int64_t start_ns, int64_t window_ns, int64_t deadline_ns);
/* poll_close - end the window: call poll_end, then ask once more; true when any was ready */
bool poll_close(AioContext *ctx);
/* poll_kick - ask @h once, outside a window, and run it if it is ready */
void poll_kick(AioHandler *h);
/* poll_handler_removed - pair its poll_begin; it is gone or switched off */
void poll_handler_removed(AioHandler *h);
/* poll_slept - the pass has slept: its wait, now at its end, began at @start_ns */
void poll_slept(AioContext *ctx, int64_t start_ns);
/* poll_learn - @source was ready after the wait of this pass; once in a pass: see poll_fired() */
void poll_learn(AioContext *ctx, AioPollSource *source);

/* poll_source_finish - @source is about to be freed */
void poll_source_finish(AioPollSource *source);

/* --- the ring's fixed files and buffers (aio-uring-file.c) --- */

#define AIO_FILES_MAX 64 /* slots of the fixed-file table of each ring */

typedef struct AioFixed {
    bool files_tried;
    bool files_on;
    unsigned file_generation[AIO_FILES_MAX]; /* of the AioFile in the slot; 0 = empty */
    unsigned buffers_generation;             /* of the set that was tried */
    bool buffers_on;
} AioFixed;

/* --- counters: written by the home thread, read by any --- */

typedef _Atomic uint64_t AioCounter;

static inline void counter_add(AioCounter *counter, uint64_t n)
{
    /* one writer: no locked instruction is needed */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

typedef struct AioCounters {
    AioCounter passes;
    AioCounter enters;
    AioCounter sqes;
    AioCounter requests;
    AioCounter bhs;
    AioCounter polls;
    AioCounter polls_paid;
    _Atomic int64_t poll_ns;
} AioCounters;

/* --- timers (aio-timer.c) --- */

typedef struct AioTimerHeap {
    struct AioTimerHeap *next;
    const AioClock *clock; /* NULL = the real one; may be gone when there is no timer */
    AioTimer **heap;
    unsigned nb_timers, capacity;
} AioTimerHeap;

/* --- the context --- */

struct AioContext {
    /* doors: written by other threads; see aio-context.c for the protocol */
    _Atomic unsigned wake_state CACHE_ALIGNED; /* WakeState */
    MpscQueue bh_incoming;                     /* AioBh.node */
    MpscQueue co_incoming;                     /* Coroutine.schedule_node */
    _Atomic unsigned callers;                  /* threads inside a door; see door_enter() */
    AioCounter notifies;                       /* added to by any thread */
    int wake_fd;                               /* eventfd; constant */

    /* home thread only */
    const AioMonitor *monitor CACHE_ALIGNED; /* constant */
    AioUring uring;
    AioEpoll epoll;
    unsigned inflight; /* disk requests handed to the monitor, not completed */
    unsigned depth; /* passes running: > 1 when nested */
    MpscList bh_ready; /* AioBh.node */
    MpscList co_ready; /* Coroutine.schedule_node */
    List bh_idle;     /* AioBh.idle_node */
    unsigned nb_idle; /* in that list */
    AioPoll poll;
    AioDefer *defer_head, **defer_tail;
    AioTimerHeap timers; /* on the real clock; then those on others */
    unsigned nb_timers;  /* armed, on all clocks */
    AioHandler **handlers; /* by fd */
    unsigned nb_handlers;  /* size of that table */
    List dead_handlers;
    unsigned external_off; /* aio_external_off() without its aio_external_on() */
    AioFixed fixed;
    AioCounters counters;

    /* constant after creation */
    unsigned index;
    pid_t home_tid; /* set at the first aio_context_enter() */
    char name[32];
};

/* poll_fired - @source is ready; it learns from that if the pass has waited */
static inline void poll_fired(AioContext *ctx, AioPollSource *source)
{
    if (ctx->poll.waited_ns >= 0 && source->pass != ctx->poll.pass) {
        poll_learn(ctx, source);
    }
}

/*
 * door_enter, door_leave - around publishing something that may lead to the end of the context
 * before the publisher has finished its aio_notify(): aio_context_destroy() waits for publishers.
 * The count is raised before what is published can be seen, so who has seen it sees the count.
 */
static inline void door_enter(AioContext *ctx)
{
    atomic_fetch_add_explicit(&ctx->callers, 1, memory_order_relaxed);
}

static inline void door_leave(AioContext *ctx)
{
    /* release: pairs with aio_context_destroy(); the last access to ctx */
    atomic_fetch_sub_explicit(&ctx->callers, 1, memory_order_release);
}

/* --- bottom halves and coroutines (aio-bh.c, aio-co.c) --- */

/* Move what has come in to the ready lists and run all of these. Returns true when anything ran. */
bool bh_run(AioContext *ctx);
/* Run those that waited for a pass with nothing else to do. */
bool bh_run_idle(AioContext *ctx);
void bh_finish(AioContext *ctx);
bool co_run(AioContext *ctx);

/* --- timers (aio-timer.c) --- */

int64_t timer_next_on_clocks_ns(const AioContext *ctx);
/* timer_next_ns - when the first one is due on the real clock, -1 when none will be */
static inline int64_t timer_next_ns(const AioContext *ctx)
{
    if (unlikely(ctx->timers.next)) {
        return timer_next_on_clocks_ns(ctx);
    }
    return ctx->nb_timers ? ctx->timers.heap[0]->deadline_ns : -1;
}
/* timer_run - call what is due; true when anything was */
bool timer_run(AioContext *ctx);
void timer_finish(AioContext *ctx);

/* --- handlers (aio-handler.c) --- */

/* handler_ready - the kernel says so (POLL* in @revents) */
void handler_ready(AioHandler *h, uint32_t revents);
/* handler_sweep - free the dead ones that nothing refers to; no pass may be running */
void handler_sweep(AioContext *ctx);
void handler_finish(AioContext *ctx);

/* --- all contexts (aio-context.c) --- */

/* context_notified - aio_notify() was called and not yet looked at; one load */
bool context_notified(const AioContext *ctx);
/* context_notify_all - aio_notify() each live context */
void context_notify_all(void);
/* context_bh_everywhere - schedule cb(context) once in the home of each live context */
void context_bh_everywhere(AioCallback *cb);

#endif
