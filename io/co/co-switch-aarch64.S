/*
 * co-switch-aarch64.S - leave one stack for another
 *
 *     int co_switch(void **ret_sp, void *sp, int message);
 *
 * Saves what AAPCS64 says a called function preserves (x19-x29, the link register, d8-d15, FPCR) on
 * the present stack, stores the stack pointer in *ret_sp and continues at @sp, which such a call
 * saved earlier: that earlier call returns @message. A saved stack looks like this, from its stack
 * pointer up (co_stack_prepare() builds the first one):
 *
 *      0  FPCR, unused
 *     16  x19 .. x28
 *     96  x29, x30 (address to go on at)
 *    112  d8 .. d15
 *
 * The jumps back are `br`, not `ret`, for the reason that co-switch-x86_64.S gives. FPCR is written
 * only when it differs: the write may synchronize the pipeline.
 *
 * Control-flow protection: "bti c" (hint 34) at both entry points, a nop elsewhere. The object has
 * no GNU property note; a guarded control stack is not switched, so the program must not be marked
 * for one (see co-switch-x86_64.S).
 */
    .text

    .globl  co_switch
    .hidden co_switch
    .type   co_switch, %function
    .p2align 4
co_switch:
    .cfi_startproc
    hint    #34
    sub     sp, sp, #176
    .cfi_adjust_cfa_offset 176
    mrs     x9, fpcr
    str     x9, [sp]
    stp     x19, x20, [sp, #16]
    .cfi_rel_offset x19, 16
    .cfi_rel_offset x20, 24
    stp     x21, x22, [sp, #32]
    .cfi_rel_offset x21, 32
    .cfi_rel_offset x22, 40
    stp     x23, x24, [sp, #48]
    .cfi_rel_offset x23, 48
    .cfi_rel_offset x24, 56
    stp     x25, x26, [sp, #64]
    .cfi_rel_offset x25, 64
    .cfi_rel_offset x26, 72
    stp     x27, x28, [sp, #80]
    .cfi_rel_offset x27, 80
    .cfi_rel_offset x28, 88
    stp     x29, x30, [sp, #96]
    .cfi_rel_offset x29, 96
    .cfi_rel_offset x30, 104
    stp     d8, d9, [sp, #112]
    stp     d10, d11, [sp, #128]
    stp     d12, d13, [sp, #144]
    stp     d14, d15, [sp, #160]

    mov     x10, sp
    str     x10, [x0]
    mov     sp, x1              /* the unwind rules hold on this stack as well */
    mov     w0, w2

    ldr     x10, [sp]
    cmp     x9, x10
    b.eq    1f
    msr     fpcr, x10
1:
    ldp     d8, d9, [sp, #112]
    ldp     d10, d11, [sp, #128]
    ldp     d12, d13, [sp, #144]
    ldp     d14, d15, [sp, #160]
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp, #96]
    add     sp, sp, #176
    .cfi_def_cfa_offset 0
    .cfi_restore x19
    .cfi_restore x20
    .cfi_restore x21
    .cfi_restore x22
    .cfi_restore x23
    .cfi_restore x24
    .cfi_restore x25
    .cfi_restore x26
    .cfi_restore x27
    .cfi_restore x28
    .cfi_restore x29
    .cfi_restore x30
    br      x30
    .cfi_endproc
    .size   co_switch, . - co_switch

/* co_jump_back - return by a jump; see co-stack.h */
    .globl  co_jump_back
    .hidden co_jump_back
    .type   co_jump_back, %function
    .p2align 4
co_jump_back:
    .cfi_startproc
    hint    #34
    br      x30
    .cfi_endproc
    .size   co_jump_back, . - co_jump_back

/*
 * Where a new coroutine begins, with itself in x19. The undefined return address tells debuggers
 * and unwinders that this is the outermost frame.
 */
    .globl  co_switch_first
    .hidden co_switch_first
    .hidden co_main
    .type   co_switch_first, %function
    .p2align 4
co_switch_first:
    .cfi_startproc
    .cfi_undefined x30
    hint    #36                 /* "bti j": reached by the jump above */
    mov     x0, x19
    bl      co_main
    brk     #1
    .cfi_endproc
    .size   co_switch_first, . - co_switch_first

    .section .note.GNU-stack, "", %progbits
