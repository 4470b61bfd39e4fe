/*
 * tsa.h - clang thread-safety annotations, with "in a coroutine" as a capability
 *
 * Layer:     io/base
 * gcc ignores all of it. clang -Wthread-safety reports plain code that calls a co_fn and a co_fn
 * that calls a no_co_fn. The entry function of a coroutine is a co_fn itself; the few functions
 * that are called both ways say assert_in_coroutine() (io/co/coroutine.h), which also checks at
 * run time.
 */
#ifndef IO_BASE_TSA_H
#define IO_BASE_TSA_H

#if defined(__clang__)
#define TSA(x) __attribute__((x))
#else
#define TSA(x)
#endif

/* The body of a lock's own function, which does what the analysis cannot see. */
#define NO_TSA TSA(no_thread_safety_analysis)

typedef struct TSA(capability("role")) TsaRole {
    char unused;
} TsaRole;

extern TsaRole tsa_role_coroutine;

/* A function that may yield: only from coroutine context. */
#define co_fn TSA(requires_capability(tsa_role_coroutine))
/* A function that must not be called from a coroutine (it blocks the thread). */
#define no_co_fn TSA(locks_excluded(tsa_role_coroutine))

#endif
