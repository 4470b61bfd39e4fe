/*
 * co-sanitizer.h - telling AddressSanitizer and ThreadSanitizer of every change of stacks
 *
 * Layer:     io/co (private)
 * Without a sanitizer all of this is nothing.
 *
 * The order at each switch, "enterer" being the stack that co_enter() runs on:
 *
 *     enterer:   co_sanitizer_leave_enterer()  -> co_switch -> coroutine: co_sanitizer_arrive()
 *     coroutine: co_sanitizer_leave()          -> co_switch -> enterer: co_sanitizer_return()
 *
 * ThreadSanitizer's fiber lives as long as the stack, so a pooled coroutine keeps it: its entry
 * functions return before it is used again, which leaves the fiber's call stack balanced. Every
 * switch orders the two sides (flag 0), as the switch itself does in a single thread.
 */
#ifndef IO_CO_CO_SANITIZER_H
#define IO_CO_CO_SANITIZER_H

#include "io/co/co-stack.h"

#if HAVE_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if HAVE_TSAN
#include <sanitizer/tsan_interface.h>
#endif

typedef struct CoSanitizer {
#if HAVE_ASAN
    void *fake_stack; /* the coroutine's own, while it is away */
    const void *enterer_base;
    size_t enterer_bytes;
#endif
#if HAVE_TSAN
    void *fiber;
    void *enterer_fiber;
#endif
    char none[0];
} CoSanitizer;

static inline void co_sanitizer_init(CoSanitizer *san)
{
#if HAVE_TSAN
    san->fiber = __tsan_create_fiber(0);
#endif
}

static inline void co_sanitizer_finish(CoSanitizer *san, const CoStack *stack)
{
#if HAVE_TSAN
    __tsan_destroy_fiber(san->fiber);
#endif
#if HAVE_ASAN
    __asan_unpoison_memory_region(stack->base, stack->size_bytes);
#endif
}

static inline void co_sanitizer_leave_enterer(CoSanitizer *san, const CoStack *stack,
                                              void **ret_fake_stack)
{
#if HAVE_ASAN
    __sanitizer_start_switch_fiber(ret_fake_stack, stack->base, stack->size_bytes);
#endif
#if HAVE_TSAN
    san->enterer_fiber = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(san->fiber, 0);
#endif
}

static inline void co_sanitizer_arrive(CoSanitizer *san)
{
#if HAVE_ASAN
    __sanitizer_finish_switch_fiber(san->fake_stack, &san->enterer_base, &san->enterer_bytes);
#endif
}

/* @for_good: the coroutine's entry has returned, nothing of its stack is needed any more */
static inline void co_sanitizer_leave(CoSanitizer *san, bool for_good)
{
#if HAVE_ASAN
    san->fake_stack = NULL;
    __sanitizer_start_switch_fiber(for_good ? NULL : &san->fake_stack, san->enterer_base,
                                   san->enterer_bytes);
#endif
#if HAVE_TSAN
    __tsan_switch_to_fiber(san->enterer_fiber, 0);
#endif
}

static inline void co_sanitizer_return(void *fake_stack)
{
#if HAVE_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, NULL, NULL);
#endif
}

#endif
