/*
 * AioContext - an event loop: fd handlers, event notifiers, bottom halves, timers, coroutines,
 * adaptive polling and disk requests, on one io_uring or, where there is none, on epoll
 *
 * Layer:     io/aio (may use io/base and io/co)
 * Threading: a context belongs to one thread, its home: the one that calls aio_poll(). Functions
 *            marked "any thread" are the only doors from outside; all other functions are called
 *            in the home thread. There is no lock around a context.
 * Lifetime:  aio_context_create() .. aio_context_destroy() in the home thread, or in another thread
 *            once the home thread no longer polls. Handlers, timers and bottom halves must be gone
 *            by then; requests must have completed.
 *
 * One pass of aio_poll():
 *   1. run the bottom halves and coroutines that were scheduled before the pass began;
 *   2. if nothing was run and polling is on: spin over the poll callbacks and the completion
 *      ring until something is ready or the window ends (no system call);
 *   3. one io_uring_enter: submits everything queued since the last pass (requests, fd polls) and,
 *      if blocking and nothing is ready, waits. No call when there is nothing to submit and
 *      something is ready. (Or one epoll_wait: aio-epoll.c says when.)
 *   4. reap completions: wake their coroutines, call ready handlers, then due timers;
 *   5. end-of-pass calls (aio_defer): one interrupt a queue, however many requests completed.
 *
 * Wake-up (aio-context.c has the theory and the pairing of barriers): if a producer finished
 * publishing before the consumer's last look, the consumer sees it; otherwise the eventfd is set.
 */
#ifndef IO_AIO_AIO_H
#define IO_AIO_AIO_H

#include <stdatomic.h>
#include <sys/uio.h>

#include "io/base/compiler.h"
#include "io/base/error.h"
#include "io/base/list.h"
#include "io/base/tsa.h"
#include "io/co/coroutine.h"

typedef struct AioContext AioContext;

typedef void AioCallback(void *opaque);
/* A probe: true when the source is ready. Costs a few loads, no system call. */
typedef bool AioPollProbe(void *opaque);

/* --- context --- */

#define AIO_POLL_MAX_NS_DEFAULT 32768
#define AIO_POLL_GROW_DEFAULT   2
#define AIO_POLL_SHRINK_DEFAULT 2
#define AIO_POLL_WEIGHT_DEFAULT 3

/* Polling as it is unless somebody asks for something else. */
#define AIO_PARAMS_POLLING                                                                         \
    {                                                                                              \
        .poll_max_ns = AIO_POLL_MAX_NS_DEFAULT, .poll_grow = AIO_POLL_GROW_DEFAULT,                \
        .poll_shrink = AIO_POLL_SHRINK_DEFAULT, .poll_weight = AIO_POLL_WEIGHT_DEFAULT,            \
    }

typedef enum AioMonitorKind {
    AIO_MONITOR_AUTO,     /* io_uring; where the host refuses it, epoll, with one warning */
    AIO_MONITOR_IO_URING,
    AIO_MONITOR_EPOLL,    /* and worker threads for disk requests */
} AioMonitorKind;

typedef struct AioParams {
    int64_t poll_max_ns;  /* 0 = no polling */
    int64_t poll_grow;    /* factor a window grows by; 0 = AIO_POLL_GROW_DEFAULT */
    int64_t poll_shrink;  /* divisor a window shrinks by; 0 = straight to nothing */
    int64_t poll_weight;  /* the latest wait counts for 1/2^weight of the mean; 0 = for all */
    unsigned ring_entries; /* submission entries of the io_uring; 0 = 256 */
    AioMonitorKind monitor;
} AioParams;

/*
 * aio_context_create - a new context, not yet tied to a thread
 * @name    for messages and statistics; copied
 * @params  NULL = defaults with polling off
 * Errors:  -ENOMEM, -EMFILE; -ENOSYS, -EPERM or -EACCES when io_uring is asked for and refused
 */
AioContext *aio_context_create(const char *name, const AioParams *params, Error *err) NONNULL(1)
    WARN_UNUSED;
void aio_context_destroy(AioContext *ctx);

/* aio_context_monitor - "io_uring" or "epoll" */
const char *aio_context_monitor(const AioContext *ctx) NONNULL(1);
const char *aio_context_name(const AioContext *ctx) NONNULL(1);

/* A small number that is unique among live contexts, < AIO_CONTEXTS_MAX: for per-context slots. */
#define AIO_CONTEXTS_MAX 256
unsigned aio_context_index(const AioContext *ctx) NONNULL(1);

/* aio_current - the context whose home is this thread; NULL in a thread without. Any thread. */
AioContext *aio_current(void);

/* aio_main - the context of the main thread; the first one that aio_context_set_main() was told. */
AioContext *aio_main(void);
void aio_context_set_main(AioContext *ctx);

/* aio_context_enter - make the calling thread the home of @ctx (NULL: of none) */
void aio_context_enter(AioContext *ctx);

/* aio_context_set_polling - take the poll_* of @params from now on; what was learnt stays. Home. */
void aio_context_set_polling(AioContext *ctx, const AioParams *params) NONNULL(1, 2);

/*
 * aio_poll - one pass
 * Returns true when anything was run. Context: home, not in a coroutine. May be nested (a callback
 * may call it); a nested pass runs what is scheduled, too.
 */
no_co_fn bool aio_poll(AioContext *ctx, bool blocking) NONNULL(1);

/* aio_notify - make a sleeping or about to sleep aio_poll() return. Any thread, signal handler. */
void aio_notify(AioContext *ctx) NONNULL(1);

/*
 * AIO_WAIT_WHILE - run @ctx (the caller's own) until @cond is false. Whoever makes @cond false in
 * another thread calls aio_notify(ctx) afterwards. Context: home, not in a coroutine.
 */
#define AIO_WAIT_WHILE(ctx, cond)                                                                  \
    do {                                                                                           \
        while (cond) {                                                                             \
            aio_poll(ctx, true);                                                                   \
        }                                                                                          \
    } while (0)

/* --- bottom halves --- */

typedef struct AioBh AioBh;

/* aio_bh_create - a reusable bottom half. Any thread. Never fails (aborts when out of memory). */
AioBh *aio_bh_create(AioContext *ctx, AioCallback *cb, void *opaque) NONNULL(1, 2);
/* aio_bh_schedule - run it in the home thread in the next pass; idempotent until it has begun to
 * run. Wait-free: nothing is tried again whatever others do; no system call unless the home thread
 * sleeps. Any thread, signal handler (which must not wait for it: it may have interrupted another
 * schedule that stands before this one). What the caller wrote before is visible to it. */
void aio_bh_schedule(AioBh *bh) NONNULL(1);
/* aio_bh_schedule_idle - run it in the first pass that finds nothing else to do, instead of
 * sleeping; as long as there is always something else it does not run. aio_bh_schedule() overtakes
 * it. One that always schedules itself so keeps the loop awake. Else like aio_bh_schedule(). */
void aio_bh_schedule_idle(AioBh *bh) NONNULL(1);
/* aio_bh_cancel - it will not run unless scheduled again. Home. */
void aio_bh_cancel(AioBh *bh) NONNULL(1);
/* aio_bh_destroy - frees it after the current pass at the latest. Home; NULL is allowed. */
void aio_bh_destroy(AioBh *bh);
/* aio_bh_schedule_oneshot - create, schedule, destroy. Any thread. */
void aio_bh_schedule_oneshot(AioContext *ctx, AioCallback *cb, void *opaque) NONNULL(1, 2);

/*
 * aio_run_sync - run cb(opaque) in @ctx's home thread and wait for it
 * Context: a thread that is not @ctx's home (from there: calls directly); not in a coroutine.
 */
no_co_fn void aio_run_sync(AioContext *ctx, AioCallback *cb, void *opaque) NONNULL(1, 2);
/* aio_co_run_sync - the same with cb run as a coroutine in @ctx, waiting until it has ended.
 * Called in the home thread itself it polls @ctx meanwhile. */
no_co_fn void aio_co_run_sync(AioContext *ctx, CoroutineEntry *entry, void *opaque) NONNULL(1, 2);

/* --- end-of-pass calls --- */

/*
 * AioDefer - a call to make once at the end of the pass, however often it was asked for
 * Embedded by its owner; zero-initialised plus aio_defer_init() is ready. Home thread only.
 */
typedef struct AioDefer {
    struct AioDefer *next;
    bool queued;
    AioCallback *cb;
    void *opaque;
} AioDefer;

void aio_defer_init(AioDefer *defer, AioCallback *cb, void *opaque) NONNULL(1, 2);
void aio_defer(AioContext *ctx, AioDefer *defer) NONNULL(1, 2);
/* aio_defer_flush - run all queued calls now (before the home of their owner changes) */
void aio_defer_flush(AioContext *ctx) NONNULL(1);

/* --- clocks and timers --- */

/* aio_now_ns - the real clock, CLOCK_MONOTONIC. Any thread. */
int64_t aio_now_ns(void);

/*
 * AioClock - a clock that can be stopped, such as that of a guest, and stepped by hand, as in tests
 * Set by one thread at a time; read in any. It must outlive the timers that are armed on it. A
 * timer whose time has come is due though the clock has been stopped since.
 */
typedef struct AioClock {
    _Atomic int64_t word; /* aio-timer.c */
} AioClock;

/* aio_clock_init - stopped at 0 */
void aio_clock_init(AioClock *clock) NONNULL(1);
void aio_clock_start(AioClock *clock) NONNULL(1);
void aio_clock_stop(AioClock *clock) NONNULL(1);
/* aio_clock_step - move it on by that much at once, running or not */
void aio_clock_step(AioClock *clock, int64_t step_ns) NONNULL(1);
int64_t aio_clock_now_ns(const AioClock *clock) NONNULL(1);

typedef struct AioTimer {
    AioContext *ctx;
    const AioClock *clock; /* NULL = the real one */
    AioCallback *cb;
    void *opaque;
    int64_t deadline_ns; /* valid while armed */
    unsigned heap_index; /* position + 1 in the context's heap, 0 = not armed */
} AioTimer;

/* aio_timer_init - a timer on the real clock */
void aio_timer_init(AioTimer *timer, AioContext *ctx, AioCallback *cb, void *opaque)
    NONNULL(1, 2, 3);
void aio_timer_init_on(AioTimer *timer, AioContext *ctx, const AioClock *clock, AioCallback *cb,
                       void *opaque) NONNULL(1, 2, 3, 4);
/* aio_timer_arm - call cb once at @deadline_ns of its clock; re-arming moves it. Home. */
void aio_timer_arm(AioTimer *timer, int64_t deadline_ns) NONNULL(1);
void aio_timer_disarm(AioTimer *timer) NONNULL(1);

/* --- fd handlers --- */

typedef struct AioHandlerOps {
    AioCallback *read;       /* readable, hung up or in error; NULL = not interested */
    AioCallback *write;      /* writable; NULL = not interested */
    AioPollProbe *poll;      /* NULL = this handler cannot be polled for */
    AioCallback *poll_ready; /* called instead of read when poll() said true */
    AioCallback *poll_begin; /* before the first poll() of a window: notifications off */
    AioCallback *poll_end;   /* before the loop may sleep: notifications on; the loop then asks
                                poll() once more, so nothing is lost in between */
    bool external;           /* it brings work from outside: aio_external_off() applies */
} AioHandlerOps;

/*
 * aio_set_fd_handler - watch @fd; @ops NULL removes it (its poll_end is called first when a window
 * was open). A removed handler is not called any more, even in the pass that removes it.
 * Handlers are level-triggered: they are called while the fd is ready. While a window is open the
 * fds of handlers without a poll probe are seen through the monitor, which the window also asks.
 * Context: home. Errors: none; running out of memory aborts.
 */
void aio_set_fd_handler(AioContext *ctx, int fd, const AioHandlerOps *ops, void *opaque)
    NONNULL(1);

/*
 * aio_external_off, aio_external_on - switch the external handlers of @ctx off and on again
 * Off, they are neither called nor asked, also in the pass that switches them off; one in a window
 * gets its poll_end, so that what comes is noted in its descriptor. When they are on again the loop
 * looks at them once more, at the probes, too: what came meanwhile is served. Calls nest.
 * Context: home. Who drains several contexts does so in the home of each.
 */
void aio_external_off(AioContext *ctx) NONNULL(1);
void aio_external_on(AioContext *ctx) NONNULL(1);

/* --- event notifiers (eventfd) --- */

typedef struct EventNotifier {
    int fd; /* -1 when not open */
} EventNotifier;

int event_notifier_open(EventNotifier *en, Error *err) NONNULL(1) WARN_UNUSED;
void event_notifier_close(EventNotifier *en);
/* Any thread. */
void event_notifier_set(EventNotifier *en) NONNULL(1);
/* True when it had been set; it no longer is. Any thread. */
bool event_notifier_test_and_clear(EventNotifier *en) NONNULL(1);
/* The handler's read callback must clear the notifier itself. Context: home. */
void aio_set_event_notifier(AioContext *ctx, EventNotifier *en, const AioHandlerOps *ops,
                            void *opaque) NONNULL(1, 2);

/* --- coroutines in contexts --- */

/* aio_co_wake - continue a yielded coroutine in its home context: entered at once when the caller
 * is that thread outside a coroutine, else after the current coroutine has yielded or, from another
 * thread, scheduled there. Any thread. */
void aio_co_wake(Coroutine *co) NONNULL(1);
/* aio_co_schedule - start or move a coroutine that is not running: it goes on in @ctx. Any thread;
 * wait-free. The coroutine must have yielded or be just about to, by its own doing. */
void aio_co_schedule(AioContext *ctx, Coroutine *co) NONNULL(1, 2);
/* aio_co_enter - run @co now if the caller is in @ctx, else schedule it there. Any thread. */
void aio_co_enter(AioContext *ctx, Coroutine *co) NONNULL(1, 2);
/* aio_co_reschedule_self - go on in @ctx (at once when already there). */
co_fn void aio_co_reschedule_self(AioContext *ctx) NONNULL(1);
/* aio_co_sleep_ns - yield for that long in the current context. Nobody wakes the coroutine
 * meanwhile (that aborts): a sleep that may end early is a CoSleep, co-sleep.h. */
co_fn void aio_co_sleep_ns(int64_t duration_ns);

/* --- statistics --- */

typedef struct AioStats {
    uint64_t passes;       /* aio_poll() calls */
    uint64_t enters;       /* io_uring_enter or epoll_wait system calls */
    uint64_t sqes;         /* submission entries submitted to the io_uring */
    uint64_t requests;     /* disk requests */
    uint64_t notifies;     /* writes to the context's own eventfd */
    uint64_t bhs;          /* bottom halves and scheduled coroutines run */
    uint64_t polls;        /* polling windows begun */
    uint64_t polls_paid;   /* of these, ended by something ready */
    int64_t poll_ns;       /* the longest window now */
} AioStats;

/* Any thread: single words that the home thread writes, not a consistent snapshot. */
void aio_context_stats(const AioContext *ctx, AioStats *ret_stats) NONNULL(1, 2);

#endif
