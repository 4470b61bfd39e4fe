/*
 * co-stack.h - memory that a coroutine runs on, and the switch to it
 *
 * Layer:     io/co (private)
 * Threading: any thread.
 * Lifetime:  co_stack_map() .. co_stack_unmap()
 */
#ifndef IO_CO_CO_STACK_H
#define IO_CO_CO_STACK_H

#include "io/base/compiler.h"

typedef struct CoStack {
    void *base; /* lowest usable byte; the guard lies below */
    size_t size_bytes;
    unsigned valgrind_id;
} CoStack;

/* co_stack_map - -ENOMEM when memory or vm.max_map_count does not allow another */
int co_stack_map(CoStack *ret_stack) NONNULL(1) WARN_UNUSED;
void co_stack_unmap(const CoStack *stack) NONNULL(1);

/*
 * co_stack_used - bytes from the top down to the lowest one that was ever written other than zero.
 * Under valgrind, which minds reads below the stack pointer, down to the lowest touched page.
 */
size_t co_stack_used(const CoStack *stack) NONNULL(1);

/*
 * co_stack_prepare - a saved stack below @top (16-byte aligned) from which co_switch() enters
 * co_main(@co) with the default floating point modes; returns its stack pointer
 */
void *co_stack_prepare(void *top, void *co) NONNULL(1, 2);

/*
 * co_switch - save this stack in *ret_sp and continue on @sp, where the co_switch() that saved it
 * returns @message. See co-switch-x86_64.S.
 */
int co_switch(void **ret_sp, void *sp, int message) NONNULL(1, 2);

/*
 * co_jump_back - the last statement of a function that has been through co_switch(): goes on behind
 * the function's own call, like its `return`, which the processor would predict wrongly
 */
void co_jump_back(void);

#endif
