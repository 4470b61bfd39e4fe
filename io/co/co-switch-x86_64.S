/*
 * co-switch-x86_64.S - leave one stack for another
 *
 *     int co_switch(void **ret_sp, void *sp, int message);
 *
 * Saves what the System V ABI says a called function preserves (rbx, rbp, r12-r15, the control bits
 * of MXCSR, the x87 control word) on the present stack, stores the stack pointer in *ret_sp and
 * continues at @sp, which such a call saved earlier: that earlier call returns @message. A saved
 * stack looks like this, from its stack pointer up (co_stack_prepare() builds the first one):
 *
 *      0  MXCSR (4 bytes), x87 control word (2), unused (2)
 *      8  r15, r14, r13, r12, rbx, rbp
 *     56  address to go on at
 *
 * The jump at the end is not a `ret`: the return stack of the branch predictor has never seen the
 * call that this would be the return of, while an indirect jump is predicted by its history. For
 * the same reason co_enter() leaves through co_jump_back(). Both together halve the cost of a pair
 * of switches. Comparing the control words to load them only when they differ was no faster.
 *
 * Control-flow protection: both entry points begin with endbr64. There is no GNU property note in
 * this object, so the linker leaves the note off the whole program and neither user-mode shadow
 * stacks nor branch tracking is switched on for it: a shadow stack would have to be allocated for
 * each coroutine and switched here (rstorssp, saveprevssp), which no supported system needs yet.
 * tests/test-coroutine.c sees to it that the note stays off.
 */
    .text

    .globl  co_switch
    .hidden co_switch
    .type   co_switch, @function
    .p2align 4
co_switch:
    .cfi_startproc
    endbr64
    pushq   %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbp, 0
    pushq   %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbx, 0
    pushq   %r12
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r12, 0
    pushq   %r13
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r13, 0
    pushq   %r14
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r14, 0
    pushq   %r15
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r15, 0
    subq    $8, %rsp
    .cfi_adjust_cfa_offset 8
    stmxcsr (%rsp)
    fnstcw  4(%rsp)

    movq    %rsp, (%rdi)
    movq    %rsi, %rsp          /* the unwind rules hold on this stack as well */
    movl    %edx, %eax

    ldmxcsr (%rsp)
    fldcw   4(%rsp)
    addq    $8, %rsp
    .cfi_adjust_cfa_offset -8
    popq    %r15
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r15
    popq    %r14
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r14
    popq    %r13
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r13
    popq    %r12
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r12
    popq    %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbx
    popq    %rbp
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbp
    popq    %rcx
    .cfi_adjust_cfa_offset -8
    .cfi_register %rip, %rcx
    notrack jmp *%rcx
    .cfi_endproc
    .size   co_switch, . - co_switch

/* co_jump_back - return by a jump; see co-stack.h */
    .globl  co_jump_back
    .hidden co_jump_back
    .type   co_jump_back, @function
    .p2align 4
co_jump_back:
    .cfi_startproc
    endbr64
    popq    %rcx
    .cfi_adjust_cfa_offset -8
    .cfi_register %rip, %rcx
    notrack jmp *%rcx
    .cfi_endproc
    .size   co_jump_back, . - co_jump_back

/*
 * Where a new coroutine begins, with itself in rbx. The undefined return address tells debuggers
 * and unwinders that this is the outermost frame.
 */
    .globl  co_switch_first
    .hidden co_switch_first
    .hidden co_main
    .type   co_switch_first, @function
    .p2align 4
co_switch_first:
    .cfi_startproc
    .cfi_undefined %rip
    endbr64
    movq    %rbx, %rdi
    call    co_main
    ud2
    .cfi_endproc
    .size   co_switch_first, . - co_switch_first

    .section .note.GNU-stack, "", @progbits
