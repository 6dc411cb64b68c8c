/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A boot sector and 16 sectors behind it, read through the BIOS: real-mode arithmetic and segments, software
 * interrupts, exceptions by the vector table, A20, protected mode and back, big real mode, a timer tick. Says TAP on
 * COM1, ends through isa-debug-exit like the other kernels.
 */
    .code16
    .text
    .globl _start
_start:
    ljmp $0, $1f
1:  xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    mov %dl, drive
    mov $packet, %si
    mov $0x42, %ah              /* EDD read */
    int $0x13
    jc 2f
    jmp main
2:  mov $read_failed, %si
    call print
    jmp leave_bad

/* Prints the string at si on COM1. */
print:
    mov $0x3fd, %dx
1:  in %dx, %al
    test $0x20, %al
    jz 1b
    lodsb
    or %al, %al
    jz 2f
    mov $0x3f8, %dx
    out %al, %dx
    jmp print
2:  ret

leave_bad:
    mov $0x11, %al
leave:
    mov $0x501, %dx
    out %al, %dx
1:  hlt
    jmp 1b

    .balign 4
packet:
    .byte 16, 0
    .word 16                    /* sectors */
    .word 0x7e00, 0             /* to 0:7e00 */
    .long 1, 0                  /* from sector 1 */
drive:
    .byte 0
read_failed:
    .asciz "not ok 1 read-by-bios\n1..1\n"
    .org 446
    .byte 0x80, 0, 2, 0, 0x7f, 0, 17, 0
    .long 1, 16
    .org 510
    .word 0xaa55

/* --- sector 1 on ---------------------------------------------------------------- */

/* check NAME: carry clear means good. */
    .macro check name
    mov $\name, %si
    call result
    .endm
    .macro good_if condition
    j\condition 77f
    stc
    jmp 78f
77: clc
78:
    .endm

result:
    pushf
    incw count
    popf
    jnc 1f
    movb $1, any_bad
    push %si
    mov $text_not_ok, %si
    call print
    jmp 2f
1:  push %si
    mov $text_ok, %si
    call print
2:  mov count, %ax
    mov $10, %bl
    div %bl
    or %al, %al
    mov %ah, %bh
    jz 3f
    add $'0', %al
    mov %al, digits
    mov $digits, %si
    call print
3:  mov %bh, %al
    add $'0', %al
    mov %al, digits
    mov $digits, %si
    call print
    mov $text_space, %si
    call print
    pop %si
    call print
    mov $text_newline, %si
    jmp print

main:
    clc
    check name_read

    /* Segments: the same byte by two addresses; offsets wrap at 64 KiB for words made of bytes. */
    mov $0x1000, %ax
    mov %ax, %es
    movw $0x1234, %es:0x10
    mov $0x1001, %ax
    mov %ax, %fs
    cmpw $0x1234, %fs:0
    good_if e
    check name_segments
    xor %ax, %ax
    mov %ax, %es

    /* 16-bit addressing: bp uses ss, bx+si wraps. */
    movw $0x4321, 0x600
    mov $0x8000, %bx
    mov $0x8600, %si
    cmpw $0x4321, (%bx, %si)
    good_if e
    check name_wrap

    mov $0xffff, %ax
    add $1, %ax
    good_if c
    check name_carry
    mov $0x12345678, %eax
    ror $16, %eax
    cmp $0x56781234, %eax
    good_if e
    check name_opsize

    /* A software interrupt through the vector table, flags on its stack. */
    movw $handler_60, 0x60 * 4
    movw $0, 0x60 * 4 + 2
    mov $0x11, %ax
    stc
    int $0x60
    good_if nc
    pushf
    cmp $0x33, %ax
    je 1f
    popf
    stc
    jmp 2f
1:  popf
2:  check name_int

    /* Divide error: vector 0, return address is the div itself. */
    movw $handler_0, 0
    movw $0, 2
    mov $1, %ax
    xor %cx, %cx
div_here:
    div %cx
    nop
    cmpw $div_here, fault_ip
    good_if e
    check name_divide

    /* Invalid opcode */
    movw $handler_6, 6 * 4
    movw $0, 6 * 4 + 2
ud_here:
    ud2
    cmpw $ud_here, fault_ip
    good_if e
    check name_ud

    /* A timer tick by the BIOS's handler: the count at 0x46c moves. */
    sti
    mov 0x46c, %eax
    mov $0x7fffffff, %ecx
1:  cmp 0x46c, %eax
    jne 2f
    hlt
    dec %ecx
    jnz 1b
2:  good_if ne
    cli
    check name_tick

    /* A20 on (port 0x92): 0xffff:0x510 is not 0:0x500. */
    in $0x92, %al
    or $2, %al
    and $0xfe, %al
    out %al, $0x92
    movw $0x1111, 0x500
    mov $0xffff, %ax
    mov %ax, %gs
    movw $0x2222, %gs:0x510
    cmpw $0x1111, 0x500
    good_if e
    check name_a20

    /* Protected mode and back; the segment limit stays big: "unreal" mode. */
    cli
    lgdtl gdtr
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmp $0x08, $1f
1:  mov $0x10, %bx
    mov %bx, %ds
    mov %bx, %es
    mov $0x200000, %esi
    movl $0xcafebabe, (%esi)
    ljmpl $0x18, $in_32
    .code32
in_32:
    mov $0x12345678, %ebx
    mov %ebx, 0x200004
    ljmp $0x08, $1f
    .code16
1:  mov %cr0, %eax
    and $0xfe, %al
    mov %eax, %cr0
    ljmp $0, $1f
1:  xor %ax, %ax
    mov %ax, %ss
    mov %ax, %ds
    mov %ax, %es
    mov $0x200000, %esi
    cmpl $0x12345678, 4(%esi)
    good_if e
    check name_protected
    mov $0x200000, %esi
    mov (%esi), %eax
    cmp $0xcafebabe, %eax
    good_if e
    check name_unreal

    /* smsw says PE is off; the BIOS still works. */
    smsw %ax
    test $1, %al
    good_if z
    check name_pe
    mov $0x41, %ah
    mov $0x55aa, %bx
    mov drive, %dl
    int $0x13
    jc 1f
    cmp $0xaa55, %bx
    good_if e
1:  check name_bios
    mov $0xe820, %eax
    xor %ebx, %ebx
    mov $0x534d4150, %edx
    mov $24, %ecx
    mov $0x1400, %di
    int $0x15
    jc 1f
    cmp $0x534d4150, %eax
    good_if e
1:  check name_e820

    /* Strings with 16-bit counters, over the end of the segment. */
    mov $0x3000, %ax
    mov %ax, %es
    mov $0xfffc, %di
    mov $8, %cx
    mov $0x5a, %al
    rep stosb
    cmp $4, %di
    jne 1f
    cmpb $0x5a, %es:0xffff
    jne 1f
    cmpb $0x5a, %es:3
1:  good_if e
    check name_strings
    xor %ax, %ax
    mov %ax, %es

    /* Self-modified code. */
    movw $0x5555, 1f + 1
    jmp 1f
1:  mov $0, %ax
    cmp $0x5555, %ax
    good_if e
    check name_smc

    /* Far call and return with a count. */
    push $7
    lcall $0, $far_target
    cmp $7, %ax
    good_if e
    check name_far
    /* enter, leave, pusha, popa */
    mov %sp, %bx
    enter $16, $1
    pusha
    xor %bp, %bp
    popa
    leave
    cmp %sp, %bx
    good_if e
    check name_frames
    /* A long run of pushes from memory: two checked accesses in each instruction. */
    mov $0x10, %ax /* a base, so that nothing is flat */
    mov %ax, %ds
    mov $word_pushed - 0x100, %bx
    mov %sp, %bp
    .rept 130
    pushw (%bx)
    .endr
    pop %ax
    xor %bx, %bx
    mov %bx, %ds
    add $258, %sp
    cmp %sp, %bp
    jne 1f
    cmp $0x1234, %ax
1:  good_if e
    check name_pushes

    mov $text_plan, %si
    call print
    mov count, %ax
    mov $10, %bl
    div %bl
    add $0x3030, %ax
    mov %ax, digits2
    mov $digits2, %si
    call print
    mov $text_newline, %si
    call print
    mov $0x10, %al
    add any_bad, %al
    jmp leave

far_target:
    push %bp
    mov %sp, %bp
    mov 6(%bp), %ax
    pop %bp
    lret $2

handler_60:
    add $0x22, %ax
    push %bp
    mov %sp, %bp
    testw $1, 6(%bp)            /* the caller's carry was set */
    jz 1f
    andw $~1, 6(%bp)
1:  pop %bp
    iret

handler_0:
    push %bp
    mov %sp, %bp
    push %ax
    mov 2(%bp), %ax
    mov %ax, fault_ip
    add $2, %ax
    mov %ax, 2(%bp)
    pop %ax
    pop %bp
    iret

handler_6:
    push %bp
    mov %sp, %bp
    push %ax
    mov 2(%bp), %ax
    mov %ax, fault_ip
    add $2, %ax
    mov %ax, 2(%bp)
    pop %ax
    pop %bp
    iret

    .balign 8
gdt:
    .quad 0
    .quad 0x008f9a000000ffff    /* 08: 16-bit code */
    .quad 0x00cf92000000ffff    /* 10: data, 4 GiB */
    .quad 0x00cf9a000000ffff    /* 18: 32-bit code */
gdtr:
    .word 31
    .long gdt
count:
    .word 0
fault_ip:
    .word 0
any_bad:
    .byte 0
digits:
    .asciz "0"
digits2:
    .asciz "00"
text_ok:
    .asciz "ok "
text_not_ok:
    .asciz "not ok "
text_space:
    .asciz " "
text_newline:
    .asciz "\n"
text_plan:
    .asciz "1.."
name_read:
    .asciz "read-by-bios"
name_segments:
    .asciz "segments-overlap"
name_wrap:
    .asciz "offset-wraps"
name_carry:
    .asciz "carry"
name_opsize:
    .asciz "operand-size-prefix"
name_int:
    .asciz "software-interrupt"
name_divide:
    .asciz "divide-error"
name_ud:
    .asciz "invalid-opcode"
name_tick:
    .asciz "bios-tick"
name_a20:
    .asciz "a20"
name_protected:
    .asciz "protected-and-back"
name_unreal:
    .asciz "big-real-mode"
name_pe:
    .asciz "pe-is-off"
name_bios:
    .asciz "bios-after-switch"
name_e820:
    .asciz "bios-e820"
name_strings:
    .asciz "strings-wrap"
name_smc:
    .asciz "self-modified"
name_far:
    .asciz "far-call"
name_frames:
    .asciz "enter-leave"
name_pushes:
    .asciz "pushes-from-memory"
word_pushed:
    .word 0x1234
    .org 17 * 512
    .section .note.GNU-stack,"",@progbits
