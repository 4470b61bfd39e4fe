/*
 * From the PVH entry, Linux's 64-bit entry or a start-up IPI to long mode
 *
 * Everything here runs at CPL0, where a KVM without hardware virtualization
 * emulates one instruction at a time and knows only the plain ones.  So the
 * page tables and descriptors are data made by the assembler, not by code.
 *
 * 1. The first 4 GiB are mapped one to one in 2 MiB pages, for CPL3 too, and
 *    uncached from 3 GiB up, where the devices are.  What lies above may be
 *    beyond any address that is its own: mem_map_device() maps it into the
 *    empty page directory at DEVICE_WINDOW.
 * 2. Processor N has index N, the stack cpu_stacks[N] while at CPL0, and its
 *    own TSS at selector SEL_TSS + 16 * N.
 */
#include "guest-tests/lib/layout.h"

#define CR0_PE   0x00000001
#define CR0_MP   0x00000002
#define CR0_NE   0x00000020
#define CR0_PG   0x80000000
#define CR4_PAE  0x00000020
#define MSR_EFER 0xc0000080
#define EFER_LME 0x00000100

/* Where an ELF loader finds the 32-bit entry: XEN_ELFNOTE_PHYS32_ENTRY. */
    .section .note.pvh, "a", @note
    .balign 4
    .long 4
    .long 8
    .long 18
    .asciz "Xen"
    .quad pvh_entry

    .text
    .code32
    .globl pvh_entry
pvh_entry:
    cli
    cld
    movl    %ebx, boot_start_info_gpa
    xorl    %edi, %edi
    lgdt    gdt_pointer

/* Protected mode, flat segments, processor index in edi. */
enter_long_mode:
    movl    $pml4, %eax
    movl    %eax, %cr3
    movl    $CR4_PAE, %eax
    movl    %eax, %cr4
    movl    $MSR_EFER, %ecx
    rdmsr
    orl     $EFER_LME, %eax
    wrmsr
    movl    $(CR0_PG | CR0_NE | CR0_MP | CR0_PE), %eax
    movl    %eax, %cr0
    ljmp    $SEL_KERNEL_CODE64, $long_mode

/*
 * Linux's 64-bit entry: long mode with the loader's tables, which map all of
 * this one to one; the address of struct boot_params in rsi.
 */
    .code64
    .globl linux64_entry
linux64_entry:
    cli
    cld
    movl    %esi, boot_params_gpa
    xorl    %edi, %edi
    lgdt    gdt_pointer
    movl    $cpu_stacks + (1 << CPU_STACK_SHIFT), %esp
    pushq   $SEL_KERNEL_CODE64
    pushq   $linux64_reloaded
    lretq
linux64_reloaded:
    movl    $pml4, %eax
    movq    %rax, %cr3

long_mode:
    movl    $SEL_KERNEL_DATA, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    xorl    %eax, %eax
    movl    %eax, %fs
    movl    %eax, %gs
    movl    %edi, %eax
    incl    %eax
    shll    $CPU_STACK_SHIFT, %eax
    leaq    cpu_stacks(%rax), %rsp
    xorl    %ebp, %ebp
    call    boot_enter_user
    ud2

/*
 * Copied to AP_TRAMPOLINE_GPA before the start-up IPI.  A processor takes the
 * next index; one that nobody asked for sleeps.
 */
    .code16
    .globl ap_trampoline
ap_trampoline:
    cli
    cld
    xorw    %ax, %ax
    movw    %ax, %ds
    lgdtl   AP_TRAMPOLINE_GPA + (ap_gdt_pointer - ap_trampoline)
    movl    %cr0, %eax
    orl     $CR0_PE, %eax
    movl    %eax, %cr0
    ljmpl   $SEL_KERNEL_CODE32, $ap_protected
    .balign 4
ap_gdt_pointer:
    .word   gdt_end - gdt - 1
    .long   gdt
    .globl ap_trampoline_end
ap_trampoline_end:

    .code32
ap_protected:
    movl    $SEL_KERNEL_DATA, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    movl    $1, %edi
    lock xaddl %edi, smp_next_index
    cmpl    smp_limit, %edi
    jb      enter_long_mode
1:  cli
    hlt
    jmp     1b

/*
 * Exceptions: each stub leaves (vector, error code) above the frame that the
 * processor pushed, for boot_report_trap(), which does not return.
 */
    .code64
    .balign 16
    .globl trap_stubs
trap_stubs:
    .irp vector, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, \
                 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    .balign TRAP_STUB_STRIDE
    .if (\vector != 8) && ((\vector < 10) || (\vector > 14)) && (\vector != 17)
    pushq   $0
    .endif
    pushq   $\vector
    jmp     trap_common
    .endr

trap_common:
    movq    %rsp, %rdi
    andq    $-16, %rsp
    call    boot_report_trap
    ud2

/*
 * Interrupts: each stub leaves its vector above the frame that the processor
 * pushed, for irq_dispatch(vector, frame).  They come from CPL3 only, where the
 * stack of the task state was taken: it is 8 off a multiple of 16 here.
 */
    .balign 16
    .globl irq_stubs
irq_stubs:
    .set vector, IRQ_STUB_FIRST
    .rept 256 - IRQ_STUB_FIRST
    .balign TRAP_STUB_STRIDE
    pushq   $vector
    jmp     irq_common
    .set vector, vector + 1
    .endr

irq_common:
    pushq   %rax
    pushq   %rcx
    pushq   %rdx
    pushq   %rsi
    pushq   %rdi
    pushq   %r8
    pushq   %r9
    pushq   %r10
    pushq   %r11
    subq    $8, %rsp
    cld
    movq    80(%rsp), %rdi
    leaq    88(%rsp), %rsi
    call    irq_dispatch
    addq    $8, %rsp
    popq    %r11
    popq    %r10
    popq    %r9
    popq    %r8
    popq    %rdi
    popq    %rsi
    popq    %rdx
    popq    %rcx
    popq    %rax
    addq    $8, %rsp
    iretq

    .data
    .balign 16
    .globl gdt
gdt:
    .quad   0
    .quad   0x00cf9b000000ffff      /* SEL_KERNEL_CODE32 */
    .quad   0x00af9b000000ffff      /* SEL_KERNEL_CODE64 */
    .quad   0x00cf93000000ffff      /* SEL_KERNEL_DATA */
    .quad   0x00cffb000000ffff      /* 32-bit user code, unused */
    .quad   0x00cff3000000ffff      /* SEL_USER_DATA */
    .quad   0x00affb000000ffff      /* SEL_USER_CODE64 */
    .quad   0
    .fill   2 * MAX_CPUS, 8, 0      /* SEL_TSS + 16 * index */
gdt_end:
gdt_pointer:
    .word   gdt_end - gdt - 1
    .long   gdt
    .long   0

    .balign 4096
pml4:
    .quad   pdpt + PTE_TABLE
    .fill   511, 8, 0

pdpt:
    .set i, 0
    .rept 4
    .quad   page_directories + i * 4096 + PTE_TABLE
    .set i, i + 1
    .endr
    .quad   device_directory + PTE_TABLE
    .fill   507, 8, 0

page_directories:
    .set i, 0
    .rept 1536
    .quad   i * 0x200000 + PTE_RAM
    .set i, i + 1
    .endr
    .rept 512
    .quad   i * 0x200000 + PTE_DEVICE
    .set i, i + 1
    .endr

    .bss
    .balign 4096
    .globl device_directory
device_directory:
    .skip   4096
cpu_stacks:
    .skip   MAX_CPUS << CPU_STACK_SHIFT

    .section .note.GNU-stack, "", @progbits
