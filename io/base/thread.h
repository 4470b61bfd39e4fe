/*
 * thread.h - what belongs to one thread: its name, and variables of its own
 *
 * Layer:     io/base
 * Threading: everything here concerns the calling thread.
 *
 * A coroutine may continue in another thread than the one it yielded in, while the compiler may
 * compute the address of a thread-local variable once and keep it. So a thread-local variable is
 * only reached through an accessor that cannot be inlined or taken for a constant function, and
 * whose result is not kept across a yield. THREAD_LOCAL() defines the pair.
 */
#ifndef IO_BASE_THREAD_H
#define IO_BASE_THREAD_H

#include <signal.h>

#include "io/base/compiler.h"
#include "io/base/tsa.h"

/* thread_is_main - the process began with this thread */
bool thread_is_main(void);
/* assert_main - abort in another thread; the analysis takes it from here that this is the main
 * one */
void assert_main(void) TSA(assert_capability(tsa_role_main));

/* thread_use_main_cpus - run where the main thread may, not where the creator of this thread may:
 * for threads that are started by one that is bound to CPUs, but work for all */
void thread_use_main_cpus(void);

/*
 * thread_block_signals - what a thread about to be created is to inherit: nothing interrupts it but
 * what it causes itself (SIGBUS, SIGSEGV ...), for which there may be a handler, and which would end
 * the process if it were blocked. The caller puts @ret_saved back by pthread_sigmask().
 */
void thread_block_signals(sigset_t *ret_saved) NONNULL(1);

/* thread_strerror - why a thread could not be started, -errno, with what to do about it */
const char *thread_strerror(int code);

/* thread_set_name - what `top -H` shows; the first 15 bytes are kept */
void thread_set_name(const char *fmt, ...) PRINTF(1, 2);

#if defined(__clang__)
#define THREAD_NOCLONE
#else
#define THREAD_NOCLONE __attribute__((noclone))
#endif

/*
 * THREAD_LOCAL(Type, accessor) - a zero-initialised Type in each thread, and in this file
 * `static Type *accessor(void)`. The empty volatile assembly keeps the call from being merged with
 * an earlier one; initial-exec makes it one load relative to the thread pointer.
 */
#define THREAD_LOCAL(Type, accessor)                                                               \
    static __thread Type accessor##_storage __attribute__((tls_model("initial-exec")));            \
    static NOINLINE THREAD_NOCLONE Type *accessor(void)                                            \
    {                                                                                              \
        Type *storage = &accessor##_storage;                                                       \
                                                                                                   \
        __asm__ __volatile__("" : "+r"(storage));                                                  \
        return storage;                                                                            \
    }                                                                                              \
    static Type *accessor(void)

#endif
