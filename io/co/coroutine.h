/*
 * Coroutine - a function with a stack of its own that can stop and be continued, in any thread
 *
 * Layer:     io/co (may use io/base; knows nothing of event loops)
 * Threading: a coroutine runs in one thread at a time; it may be continued in another thread than
 *            the one it stopped in. Never keep errno or the address of a thread-local variable
 *            across co_yield(). Creating and ending use pools of the current thread, no lock.
 * Lifetime:  co_create() gives a coroutine that has not run; it is freed (returned to the pool of
 *            the thread in which it ends) when its entry function returns. Every coroutine that
 *            was entered must be allowed to end.
 *
 * States and who performs each change:
 *
 *     CREATED --co_enter--> RUNNING --co_yield--> YIELDED --co_enter--> RUNNING --return--> ended
 *                                                    |                     ^
 *                                                    +--aio_co_schedule--> SCHEDULED --its context--+
 *
 * Entering a coroutine that is RUNNING or SCHEDULED is a bug of the caller and aborts with a line
 * that says which coroutine (its entry's address), its state and who scheduled it.
 */
#ifndef IO_CO_COROUTINE_H
#define IO_CO_COROUTINE_H

#include "io/base/compiler.h"
#include "io/base/tsa.h"

typedef struct Coroutine Coroutine;
struct AioContext;

typedef void CoroutineEntry(void *opaque);

/*
 * co_create - take a coroutine from the current thread's pool, or map a new stack
 * Returns NULL only when no stack could be mapped (-ENOMEM in effect: memory or vm.max_map_count).
 * Context: any thread. Its home is the current thread's AioContext (may be none) until moved.
 */
Coroutine *co_create(CoroutineEntry *entry, void *opaque) NONNULL(1) WARN_UNUSED;

/*
 * co_enter - run @co until it yields or ends
 * Context: a thread without a coroutine, or inside another coroutine (nested).
 */
void co_enter(Coroutine *co) NONNULL(1);

/* co_yield - stop here and continue whoever entered. Context: coroutine. */
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
 * Pool of the current thread. A pool keeps at most its limit of ended coroutines; the sum over all
 * threads is bounded by a quarter of vm.max_map_count because each stack takes two mappings.
 */
void co_pool_set_limit(unsigned nb_coroutines);
/* co_pool_drain - free the current thread's pool; called when a thread that used coroutines ends */
void co_pool_drain(void);

typedef struct CoroutineStats {
    uint64_t created;    /* co_create() calls in this thread */
    uint64_t pool_hits;  /* of these, served from the pool */
    unsigned pooled;     /* in the pool now */
} CoroutineStats;
void co_stats(CoroutineStats *ret_stats) NONNULL(1);

#endif
