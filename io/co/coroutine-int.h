/*
 * coroutine-int.h - what the event loop needs to know of a coroutine
 *
 * Layer:     io/co; includable by io/co and io/aio only
 * Threading: see each function. A Coroutine's plain fields belong to the thread that runs it or,
 *            while it is not running, to whoever is allowed to enter it next.
 *
 * Two facts say what a coroutine does: its state, changed only by the thread that enters it, and
 * the mark that it has been scheduled, which any thread may set once. The mark is apart from the
 * state because a waker may come while the coroutine is still RUNNING, on its way to co_yield().
 *
 * That is the hazard to know: such a coroutine must not be entered before it has left its stack.
 *  - Waking is safe because it goes to the coroutine's home: the list of scheduled coroutines is
 *    run by the very thread that the coroutine is still running in, so not before it has left.
 *  - Moving is not: the other thread could be there first. So a coroutine that moves itself, or
 *    hands itself to somebody who enters it in another thread, does so from co_yield_then(), whose
 *    function runs when the stack has been left and the state says YIELDED.
 * No side ever waits for the other.
 */
#ifndef IO_CO_COROUTINE_INT_H
#define IO_CO_COROUTINE_INT_H

#include <stdatomic.h>

#include "io/base/mpsc.h"
#include "io/co/co-sanitizer.h"
#include "io/co/co-stack.h"
#include "io/co/coroutine.h"

typedef enum CoState {
    CO_CREATED,
    CO_YIELDED,
    CO_RUNNING,
    CO_ENDED,
} CoState;

/* Runs once the coroutine has left its stack, and decides who continues it, and where. */
typedef void CoAfterYield(Coroutine *co, void *opaque);

struct Coroutine {
    void *sp;         /* of its own stack while it is away */
    void *enterer_sp; /* of the stack that co_enter() runs on, while it is RUNNING */
    /*
     * Written by the thread that enters it: RUNNING before the switch; after it, with release, what
     * co_switch() brought. Loaded with acquire by co_enter(), so that who sees YIELDED sees all
     * that the coroutine left behind.
     */
    _Atomic int state;
    /* Who scheduled it, or NULL. Set by co_mark_scheduled(), reset by co_clear_scheduled(). */
    _Atomic(const char *) scheduled_by;
    CoroutineEntry *entry;
    void *opaque;
    CoAfterYield *after; /* set by co_yield_then(), taken by who regains control */
    void *after_opaque;

    /* In the one list it is in: of coroutines to wake, or the pool. */
    Coroutine *next;
    /* For the list of a context; owned by who marked it scheduled until its home clears that. */
    MpscNode schedule_node;
    struct AioContext *home;
    CoStack stack;
    CoSanitizer sanitizer;
};

/*
 * co_yield_then - yield, and have after(self, opaque) called by the thread that regains control,
 * on its stack, once this coroutine can be entered again. @after may enter or schedule it, in any
 * thread, and must not touch it any more after that.
 */
co_fn void co_yield_then(CoAfterYield *after, void *opaque) NONNULL(1);

/*
 * co_mark_scheduled - claim the right to have @co entered; any thread
 * @by  a string literal: names the claimant when there is a second one, which aborts. The claimant
 *      owns schedule_node and home until co_clear_scheduled().
 */
void co_mark_scheduled(Coroutine *co, const char *by) NONNULL(1, 2);
/* co_clear_scheduled - the one that will enter it now takes over; aborts when it was not marked */
void co_clear_scheduled(Coroutine *co) NONNULL(1);

/*
 * co_queue_wakeup - have @co entered in this thread after the running coroutine, and those that
 * entered it, have yielded or ended: by the outermost co_enter(), one after the other, so that
 * coroutines that wake each other do not pile up on a stack. @co counts as scheduled until then.
 * Context: in a coroutine; @co may be any whose home is this thread, running ones included.
 */
void co_queue_wakeup(Coroutine *co) NONNULL(1);

/* co_thread_set_home - the home that co_create() gives to coroutines made in this thread */
void co_thread_set_home(struct AioContext *ctx);

/* co_name_homes_by - how messages name a home: the same for all threads */
typedef const char *CoHomeName(const struct AioContext *ctx);
void co_name_homes_by(CoHomeName *name);

/* co_free - unmap a coroutine that has ended; io/co only */
void co_free(Coroutine *co) NONNULL(1);

#endif
