/*
 * tsa.h - clang thread-safety annotations, with "in a coroutine" and "main thread" as capabilities
 *
 * Layer:     io/base
 * gcc ignores all of it. clang -Wthread-safety then reports plain code that calls a co_fn and data
 * path code that calls a main_fn. A coroutine's entry function and the few places that know better
 * say so with assert_in_coroutine() or assert_main_thread(), which also check at run time.
 */
#ifndef IO_BASE_TSA_H
#define IO_BASE_TSA_H

#if defined(__clang__)
#define TSA(x) __attribute__((x))
#else
#define TSA(x)
#endif

typedef struct TSA(capability("role")) TsaRole {
    char unused;
} TsaRole;

extern TsaRole tsa_role_coroutine;

/* A function that may yield: only from coroutine context. */
#define co_fn TSA(requires_capability(tsa_role_coroutine))
/* A function that must not be called from a coroutine (it blocks the thread). */
#define no_co_fn TSA(locks_excluded(tsa_role_coroutine))

#endif
