/*
 * Coroutine - a function with a stack of its own that can stop and be continued, in any thread
 *
 * Layer:     io/co (may use io/base; knows nothing of event loops)
 * Threading: a coroutine runs in one thread at a time; it may be continued in another thread than
 *            the one it stopped in. Never keep errno or the address of a thread-local variable
 *            across co_yield(). Creating and ending use pools of the current thread, no lock.
 * Lifetime:  co_create() gives a coroutine that has not run; it is freed (returned to the pool of
 *            the thread in which it ends) when its entry function returns. So every coroutine
 *            has to be entered, and to be allowed to end, or to be discarded before that.
 *
 * States and who performs each change:
 *
 *     CREATED --co_enter--> RUNNING --return--> ended
 *                            |   ^
 *                     co_yield   co_enter, or by way of SCHEDULED:
 *                            v   |     aio_co_schedule --> SCHEDULED --> entered by its context
 *                           YIELDED
 *
 * Entering a coroutine that is RUNNING or SCHEDULED is a bug of the caller and aborts with a line
 * that says which coroutine (its entry, its home), its state and who scheduled it, what was tried,
 * by which code and in which thread. SCHEDULED is a mark beside the state: a coroutine can also be
 * scheduled while it is still RUNNING, on its way to co_yield(). coroutine-int.h, for io/aio, says
 * what makes that safe.
 *
 * A coroutine has registers and floating point modes of its own (it starts with the default modes;
 * its entry function leaves them, like any function, as it found them), and CO_STACK_BYTES of stack
 * with a guard below, so that an overflow is a SIGSEGV: no large arrays, no deep recursion.
 *
 * Shadow stacks and branch tracking: the switch changes no shadow stack, so the program must not
 * run with one. The switch's object carries no mark for them, so the linker leaves the mark off the
 * program, and nothing switches them on for a program without it.
 *
 * Stacks for requests. A stack takes two of the mappings that the process may have
 * (vm.max_map_count); were they all taken, everybody's mmap() and accept() would fail. So what peers
 * can ask for in numbers of their own choice gets its coroutines from co_create_request(), which
 * keeps the stacks of the process, those in pools included, to a quarter of vm.max_map_count: half
 * the mappings. Who has come first may have taken all of these. Therefore each queue (or
 * connection) is guaranteed a few, from another eighth, and one whatever others do. A request that
 * gets none waits where it is; it does not fail.
 *
 * Annotations: an entry function that yields is a co_fn; passing one to co_create() is how plain
 * code gets it called. tests/co-fn-analysis.c shows what the compiler accepts.
 */
#ifndef IO_CO_COROUTINE_H
#define IO_CO_COROUTINE_H

#include "io/base/compiler.h"
#include "io/base/tsa.h"

typedef struct Coroutine Coroutine;
struct AioContext;

typedef void CoroutineEntry(void *opaque);

/* Code built with a sanitizer has larger frames. */
#if HAVE_ASAN || HAVE_TSAN
#define CO_STACK_BYTES (256 * 1024)
#else
#define CO_STACK_BYTES (64 * 1024)
#endif

/*
 * co_create - take a coroutine from the current thread's pool, or map a new stack
 * Returns NULL only when no stack could be mapped (-ENOMEM in effect: memory or vm.max_map_count).
 * Context: any thread. Its home is the current thread's AioContext (may be none) until moved.
 */
Coroutine *co_create(CoroutineEntry *entry, void *opaque) NONNULL(1) WARN_UNUSED;

#define CO_REQUESTS_GUARANTEED 16 /* of a queue or connection */

/*
 * co_create_request - as co_create(), for a request of a queue or connection
 * @nb_others  requests of the same that have a coroutine now: fewer than CO_REQUESTS_GUARANTEED
 *             have a right to one more
 * Returns NULL, too, when there are as many stacks as requests may have: try again when one of the
 * others has ended or, if there are none, after some time.
 * Context: as co_create(). Costs no more: what is counted is stacks, when they are mapped.
 */
Coroutine *co_create_request(CoroutineEntry *entry, void *opaque, unsigned nb_others)
    NONNULL(1) WARN_UNUSED;

/* co_discard - give back a coroutine that has not been entered. Context: the thread that made it. */
void co_discard(Coroutine *co) NONNULL(1);

/*
 * co_enter - run @co until it yields or ends
 * Coroutines that were woken meanwhile run next, before this returns, unless this is nested: then
 * they run when the outermost co_enter() of the thread has control again.
 * Context: a thread without a coroutine, or inside another coroutine (nested).
 */
void co_enter(Coroutine *co) NONNULL(1);

/*
 * co_yield - stop here and continue whoever entered
 * May return in another thread. Callers that wait for something look again whether it is so.
 * Context: coroutine.
 */
co_fn void co_yield(void);

/* co_self - the running coroutine, NULL outside. Context: any thread; re-read after a yield. */
Coroutine *co_self(void);
static inline bool in_coroutine(void)
{
    return co_self() != NULL;
}

/*
 * assert_in_coroutine - abort outside of a coroutine; from here on the compiler's thread safety
 * analysis takes the function to be in one. For the few that are entered both ways.
 */
void assert_in_coroutine(void) TSA(assert_capability(tsa_role_coroutine));

/*
 * Home AioContext: where aio_co_wake() resumes the coroutine. Set by io/aio only; owned by
 * the coroutine while it runs, by its scheduler while it is SCHEDULED.
 */
struct AioContext *co_home(const Coroutine *co) NONNULL(1);
void co_set_home(Coroutine *co, struct AioContext *ctx) NONNULL(1);

/*
 * Pool of the current thread. A pool keeps at most its limit of ended coroutines (at first
 * CO_POOL_LIMIT_DEFAULT); the sum over all threads is bounded by half the stacks that requests may
 * have, so that what one thread keeps leaves others as much. Creating from the pool and ending into it makes no system
 * call and allocates nothing.
 */
#define CO_POOL_LIMIT_DEFAULT 1024

void co_pool_set_limit(unsigned nb_coroutines);
/* co_set_stacks_max - how many stacks there may be before requests wait for one, instead of a quarter
 * of vm.max_map_count. Any thread. */
void co_set_stacks_max(unsigned nb_stacks);
/* co_pool_drain - free the current thread's pool; called when a thread that used coroutines ends */
void co_pool_drain(void);

/*
 * co_stack_use_bytes - how deep @co's stack has been since it was mapped, through all its uses from
 * the pool. Reads the stack, which nothing prepares for that: entering costs nothing, this some
 * microseconds. Context: @co itself, or whoever may enter it.
 */
size_t co_stack_use_bytes(const Coroutine *co) NONNULL(1);
/* co_max_stack_use_bytes - the deepest of all stacks unmapped so far (co_pool_drain()); any
 * thread */
size_t co_max_stack_use_bytes(void);

typedef struct CoroutineStats {
    uint64_t created;    /* co_create() calls in this thread */
    uint64_t pool_hits;  /* of these, served from the pool */
    unsigned pooled;     /* in the pool now */
} CoroutineStats;
void co_stats(CoroutineStats *ret_stats) NONNULL(1);

#endif
