/*
 * tsa.h - clang thread-safety annotations: locks, and three roles as capabilities
 *
 * Layer:     io/base
 * gcc ignores all of it; clang checks it when it compiles, and what it finds is an error. Nothing
 * is left of it at run time. io/co/tests/co-fn-analysis.c and io/aio/tests/tsa-analysis.c show what
 * passes and what does not; they are tests.
 *
 * Three capabilities are tokens, no object stands behind them:
 *
 *   tsa_role_coroutine  A co_fn may yield: only a coroutine calls it. An entry function of a
 *                       coroutine is a co_fn itself; the few functions that are called both ways
 *                       begin with assert_in_coroutine() (io/co/coroutine.h), which also checks at
 *                       run time. A no_co_fn blocks its thread, so no coroutine calls it.
 *   tsa_role_main       A main_fn is called in the main thread only. It is called by other
 *                       main_fns; what the compiler cannot follow (callbacks, main() itself) begins
 *                       with assert_main() (io/base/thread.h), which also checks at run time.
 *   tsa_graph_lock      The lock of the block layer's graph of nodes: a GRAPH_RD reads its edges, a
 *                       GRAPH_WR changes them. block/ takes and releases it.
 *
 * What clang 14 can do in C, and what follows from it:
 *   - A field cannot be guarded by another field of its struct (that is for C++ only), but by
 *     something global: one of the tokens, or a static lock. A function can name the lock of its
 *     argument, REQUIRES(dev->lock), and callers are checked against that very object.
 *   - Attributes are no part of a function's type. A slot in a table of functions is therefore
 *     guarded itself: reading a co_fn_ptr slot, which is what calling it begins with, needs the
 *     role. An initialiser needs nothing, and tables of functions are constant.
 *   - Locking and unlocking has to balance in each function, unless its declaration says otherwise.
 */
#ifndef IO_BASE_TSA_H
#define IO_BASE_TSA_H

#if defined(__clang__)
#define TSA(x) __attribute__((x))
#else
#define TSA(x)
#endif

/* --- locks, and what their own functions do --- */

#define CAPABILITY(name)          TSA(capability(name))
#define ACQUIRES(lock)            TSA(acquire_capability(lock))
#define ACQUIRES_SHARED(lock)     TSA(acquire_shared_capability(lock))
#define TRY_ACQUIRES(value, lock) TSA(try_acquire_capability(value, lock))
#define RELEASES(lock)            TSA(release_capability(lock))
#define RELEASES_SHARED(lock)     TSA(release_shared_capability(lock))
/* The body of such a function, which does what the analysis cannot see. */
#define NO_TSA TSA(no_thread_safety_analysis)

/* --- what needs a lock --- */

#define REQUIRES(lock)        TSA(requires_capability(lock))
#define REQUIRES_SHARED(lock) TSA(requires_shared_capability(lock))
#define EXCLUDES(lock)        TSA(locks_excluded(lock))
#define GUARDED_BY(lock)      TSA(guarded_by(lock))

/* --- roles --- */

typedef struct CAPABILITY("role") TsaRole {
    char unused;
} TsaRole;

/* Nowhere defined: only the compiler's analysis speaks of them. */
extern TsaRole tsa_role_coroutine, tsa_role_main, tsa_graph_lock;

/* A function that may yield: only from coroutine context. */
#define co_fn REQUIRES(tsa_role_coroutine)
/* A function that must not be called from a coroutine (it blocks the thread). */
#define no_co_fn EXCLUDES(tsa_role_coroutine)
/* A slot for a co_fn in a table of functions. */
#define co_fn_ptr GUARDED_BY(tsa_role_coroutine)

/* A function for the main thread. GUARDED_BY(tsa_role_main) suits its variables. */
#define main_fn REQUIRES(tsa_role_main)

/* A function that is called with the graph locked for reading (or writing), or for writing. A slot
 * for one, or a field that is such an edge, is GUARDED_BY(tsa_graph_lock). */
#define GRAPH_RD REQUIRES_SHARED(tsa_graph_lock)
#define GRAPH_WR REQUIRES(tsa_graph_lock)

#endif
