/*
 * boot-reset - reset the machine with the first two guest instructions
 *
 * What a VMM costs from exec to the first guest instruction, and nothing else.
 */
    .section .note.pvh, "a", @note
    .balign 4
    .long 4
    .long 8
    .long 18                        /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_entry

    .text
    .code32
    .globl pvh_entry
pvh_entry:
    movb    $0xfe, %al
    outb    %al, $0x64
    jmp     pvh_entry

    .section .note.GNU-stack, "", @progbits
