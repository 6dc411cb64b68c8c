/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/driver.S - the loop that runs a batch of cases: load a
 * whole state, jump to the instruction, save the whole state. It is copied to
 * DRIVER and runs there both natively and as guest code in ring 3.
 *
 * Everything is addressed absolutely, so no register is needed to save the
 * others.
 */
#include "layout.h"

    .section .rodata
    .globl driver_begin, driver_end, driver_start, driver_native_exit, driver_guest_exit, driver_save, driver_taken
    .globl driver_native_entry, driver_guest_stubs, driver_guest_stop, driver_enter64, driver_enter32
    .balign 64
driver_begin:

/* Called from C. */
driver_native_entry:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, V_RSP
    stmxcsr V_SAVED
    fnstcw V_SAVED + 8
    mov V_SEL, %eax                 /* 32-bit code needs them; 64-bit code does not look */
    mov %eax, %ds
    mov %eax, %es

driver_start:
    mov V_IN, %r15
    mov B_TARGET(%r15), %rax
    mov %rax, V_TARGET
    movl $0, V_TAKEN
    movq $-1, V_VECTOR
    movq $0, V_ERROR
    movq $0, V_CR2
    movq $0, V_RIP
    movq $0, V_FIXED
    mov V_LOG, %rax
    mov %rax, V_LOG_AT
    lea B_WIN(%r15), %rsi
    mov $WIN1, %edi
    mov $WIN1_SIZE / 8, %ecx
    rep movsq
    mov $WIN2, %edi
    mov $WIN2_SIZE / 8, %ecx
    rep movsq
    mov V_MASK, %eax
    mov V_MASK + 4, %edx
    xrstor64 B_XSAVE(%r15)
    mov $STACK_TOP, %esp
    push B_FLAGS(%r15)
    popfq
    mov 0x00(%r15), %rax
    mov 0x08(%r15), %rcx
    mov 0x10(%r15), %rdx
    mov 0x18(%r15), %rbx
    mov 0x20(%r15), %rsp
    mov 0x28(%r15), %rbp
    mov 0x30(%r15), %rsi
    mov 0x38(%r15), %rdi
    mov 0x40(%r15), %r8
    mov 0x48(%r15), %r9
    mov 0x50(%r15), %r10
    mov 0x58(%r15), %r11
    mov 0x60(%r15), %r12
    mov 0x68(%r15), %r13
    mov 0x70(%r15), %r14
    mov 0x78(%r15), %r15
    jmp *V_ENTER
driver_enter64:
    jmp *V_TARGET
driver_enter32:
    ljmpl *V_TARGET                 /* offset, selector */

driver_taken:
    movl $1, V_TAKEN
driver_save:
    mov %r15, V_R15
    mov V_OUT, %r15
    mov %rax, 0x00(%r15)
    mov %rcx, 0x08(%r15)
    mov %rdx, 0x10(%r15)
    mov %rbx, 0x18(%r15)
    mov %rsp, 0x20(%r15)
    mov %rbp, 0x28(%r15)
    mov %rsi, 0x30(%r15)
    mov %rdi, 0x38(%r15)
    mov %r8, 0x40(%r15)
    mov %r9, 0x48(%r15)
    mov %r10, 0x50(%r15)
    mov %r11, 0x58(%r15)
    mov %r12, 0x60(%r15)
    mov %r13, 0x68(%r15)
    mov %r14, 0x70(%r15)
    mov $STACK_TOP, %esp
    pushfq
    pop B_FLAGS(%r15)
    cld
    mov V_R15, %rax
    mov %rax, 0x78(%r15)
    mov V_MASK, %eax
    mov V_MASK + 4, %edx
    xsave64 B_XSAVE(%r15)
    mov V_TAKEN, %eax
    mov %rax, B_TARGET(%r15)
    mov V_VECTOR, %rax
    mov %rax, B_VECTOR(%r15)
    mov V_ERROR, %rax
    mov %rax, B_ERROR(%r15)
    mov V_CR2, %rax
    mov %rax, B_CR2(%r15)
    mov V_RIP, %rax
    mov %rax, B_RIP(%r15)
    mov V_FIXED, %rax
    mov %rax, B_FIXED(%r15)
    addq $LOG, V_LOG
    lea B_WIN(%r15), %rdi
    mov $WIN1, %esi
    mov $WIN1_SIZE / 8, %ecx
    rep movsq
    mov $WIN2, %esi
    mov $WIN2_SIZE / 8, %ecx
    rep movsq
    addq $BLOCK, V_IN
    addq $BLOCK, V_OUT
    decq V_LEFT
    jnz driver_start
    jmp *V_EXIT

driver_native_exit:
    mov V_RSP, %rsp
    fninit
    fldcw V_SAVED + 8
    ldmxcsr V_SAVED
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

driver_guest_exit:
    int $0x81
    jmp driver_start

/* The guest's ring 0: one stub of 16 bytes per exception. */
    .balign 16
driver_guest_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
    .else
    push $0
    .endif
    push $vector
    jmp guest_exception
    .set vector, vector + 1
    .endr

    .balign 16
guest_exception:
    push %rax
    mov 0x08(%rsp), %rax
    mov %rax, V_VECTOR
    mov 0x10(%rsp), %rax
    mov %rax, V_ERROR
    mov %cr2, %rax
    mov %rax, V_CR2
    mov 0x18(%rsp), %rax
    mov %rax, V_RIP
    cmpl $14, V_VECTOR
    jne guest_give_up
    sub $CODE, %rax
    cmp $FIXES_SIZE, %rax
    jae guest_give_up
    movzbl FIXES(%rax), %eax
    test %eax, %eax
    jz guest_give_up
    cmpl $MAX_FIXES, V_FIXED
    jae guest_give_up
    jmp guest_fix
guest_give_up:
    movabs $DRIVER + (driver_save - driver_begin), %rax
    mov %rax, 0x18(%rsp)
    movq $SEL_CODE64, 0x20(%rsp)
    andq $~0x100, 0x28(%rsp)    /* TF */
    pop %rax
    add $16, %rsp
    iretq

/* Note the state, point the base register (number + 1 in rax) to a good place, go on. */
guest_fix:
    mov %rcx, V_REGS + 0x08
    mov %rdx, V_REGS + 0x10
    mov %rbx, V_REGS + 0x18
    mov %rbp, V_REGS + 0x28
    mov %rsi, V_REGS + 0x30
    mov %rdi, V_REGS + 0x38
    mov %r8, V_REGS + 0x40
    mov %r9, V_REGS + 0x48
    mov %r10, V_REGS + 0x50
    mov %r11, V_REGS + 0x58
    mov %r12, V_REGS + 0x60
    mov %r13, V_REGS + 0x68
    mov %r14, V_REGS + 0x70
    mov %r15, V_REGS + 0x78
    mov 0x00(%rsp), %rcx
    mov %rcx, V_REGS + 0x00
    mov 0x30(%rsp), %rcx
    mov %rcx, V_REGS + 0x20
    mov V_RIP, %rcx
    mov %rcx, V_REGS + 0x80
    mov V_ERROR, %rcx
    mov %rcx, V_REGS + 0x88
    mov V_CR2, %rcx
    mov %rcx, V_REGS + 0x90
    mov 0x28(%rsp), %rcx
    mov %rcx, V_REGS + 0x98
    cld
    mov $V_REGS, %esi
    mov V_LOG_AT, %rdi
    mov $20, %ecx
    rep movsq
    addq $LOG_ENTRY, V_LOG_AT
    incq V_FIXED
    movq $-1, V_VECTOR
    movq $0, V_ERROR
    movq $0, V_CR2
    movq $0, V_RIP
    mov $SAFE, %ecx
    mov %rcx, V_REGS - 8(, %rax, 8)
    mov V_REGS + 0x08, %rcx
    mov V_REGS + 0x10, %rdx
    mov V_REGS + 0x18, %rbx
    mov V_REGS + 0x28, %rbp
    mov V_REGS + 0x30, %rsi
    mov V_REGS + 0x38, %rdi
    mov V_REGS + 0x40, %r8
    mov V_REGS + 0x48, %r9
    mov V_REGS + 0x50, %r10
    mov V_REGS + 0x58, %r11
    mov V_REGS + 0x60, %r12
    mov V_REGS + 0x68, %r13
    mov V_REGS + 0x70, %r14
    mov V_REGS + 0x78, %r15
    mov V_REGS + 0x00, %rax
    add $24, %rsp
    iretq

/* End of a batch: tell the host, go on when it runs us again. */
    .balign 16
driver_guest_stop:
    push %rax
    mov $1, %al
    out %al, $0xf4
    pop %rax
    iretq
driver_end:
    .section .note.GNU-stack, "", @progbits
