/* SPDX-License-Identifier: Apache-2.0
 *
 * A guest of 32 bits that drives the adder: a multiboot kernel without a
 * libc. It adds 40 and 2, waits for the interrupt with the processor halted,
 * prints a line on the first serial port, and leaves through the debug-exit
 * port: hvx ends with status 33 (16 << 1 | 1) when the sum was right, else 35.
 */
#define ADDER 0xa00
#define SERIAL 0x3f8
#define DEBUG_EXIT 0x501

/* Multiboot 1 header, section 3.1 of its specification. */
    .section .text
    .align 4
    .long 0x1badb002, 0, -0x1badb002

    .globl _start
_start:
    cli
    mov $stack_top, %esp
    lgdt gdt_pointer
    ljmp $8, $1f
1:  mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss

    /* One interrupt gate: IRQ 5 of the first 8259, remapped to vector 0x25. */
    mov $on_irq, %eax
    mov %ax, idt + 0x25 * 8
    movw $8, idt + 0x25 * 8 + 2
    movw $0x8e00, idt + 0x25 * 8 + 4
    shr $16, %eax
    mov %ax, idt + 0x25 * 8 + 6
    lidt idt_pointer
    mov $0x11, %al /* ICW1: edge, cascade, ICW4 follows */
    out %al, $0x20
    mov $0x20, %al /* ICW2: vectors from 0x20 */
    out %al, $0x21
    mov $4, %al /* ICW3: the second 8259 is at line 2 */
    out %al, $0x21
    mov $1, %al /* ICW4: 8086 mode */
    out %al, $0x21
    mov $0xdf, %al /* only line 5 */
    out %al, $0x21

    mov $ADDER, %dx
    mov $40, %eax
    out %eax, %dx
    add $4, %dx
    mov $2, %eax
    out %eax, %dx
    add $8, %dx
    mov $5, %eax /* go, with interrupt */
    out %eax, %dx
2:  cli
    cmpl $0, seen
    jne 3f
    sti
    hlt
    jmp 2b

3:  mov $ADDER + 8, %dx
    in %dx, %eax
    mov $wrong, %esi
    mov $17, %ebx
    cmp $42, %eax
    jne 4f
    mov $right, %esi
    mov $16, %ebx
4:  lodsb
    test %al, %al
    jz 6f
    mov %al, %ah
    mov $SERIAL + 5, %dx
5:  in %dx, %al
    test $0x20, %al /* transmitter empty */
    jz 5b
    mov %ah, %al
    mov $SERIAL, %dx
    out %al, %dx
    jmp 4b
6:  mov %ebx, %eax
    mov $DEBUG_EXIT, %dx
    out %al, %dx
7:  hlt
    jmp 7b

on_irq:
    push %eax
    push %edx
    mov $ADDER + 12, %dx
    mov $2, %eax /* acknowledge */
    out %eax, %dx
    movl $1, seen
    mov $0x20, %al /* end of interrupt */
    out %al, $0x20
    pop %edx
    pop %eax
    iret

right: .asciz "adder: 40 + 2 = 42\n"
wrong: .asciz "adder: the sum is wrong\n"
    .align 8
gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdt_pointer: .word . - gdt - 1
    .long gdt
idt_pointer: .word 64 * 8 - 1
    .long idt

    .section .data
    .align 8
seen: .long 0
idt: .fill 64, 8, 0
    .fill 4096, 1, 0
stack_top:
    .section .note.GNU-stack, "", @progbits
