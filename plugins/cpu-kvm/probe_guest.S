/* SPDX-License-Identifier: Apache-2.0
 *
 * probe_guest.S - what kvm.c runs to learn whether this KVM can run a 64-bit
 * guest. Loaded at 0x1000 and entered there in long mode; pages from 0 to 2 MiB
 * are mapped one to one for user mode too, nothing else is. The step that was
 * reached is written to 0x8000; the end is a triple fault on purpose.
 */
#define AT(label) (label - kvm_probe_guest + 0x1000)
#define STEP 0x8000

    .section .rodata
    .globl kvm_probe_guest, kvm_probe_guest_end
    .hidden kvm_probe_guest, kvm_probe_guest_end
    .code64
kvm_probe_guest:
    mov $0x7000, %esp
    lgdt AT(gdtr)
    lidt AT(idtr)
    mov $0x28, %eax
    ltr %ax
    movl $1, STEP
    /* SYSCALL: STAR, LSTAR, SFMASK */
    mov $0xc0000081, %ecx
    xor %eax, %eax
    mov $0x00100008, %edx       /* ring 0 CS 8, SYSRET base 0x10: SS 0x18, CS 0x20 */
    wrmsr
    inc %ecx
    mov $AT(on_syscall), %eax
    xor %edx, %edx
    wrmsr
    mov $0xc0000084, %ecx
    mov $0x200, %eax
    wrmsr
    movl $2, STEP
    pushq $0x1b
    pushq $0x7f00
    pushq $2
    pushq $0x23
    pushq $AT(user)
    iretq
user:
    movl $3, STEP
    int $0x80
    movl $5, STEP
    syscall
    movl $7, STEP
    movl $0, 0x400000           /* not mapped: page fault */
    ud2
on_int:
    cmpl $3, STEP
    jne fail
    movl $4, STEP
    iretq
on_syscall:
    cmpl $5, STEP
    jne fail
    movl $6, STEP
    sysretq
on_fault:
    cmpl $7, STEP
    jne fail
    mov %cr2, %rax
    cmp $0x400000, %rax
    jne fail
    mov %cr0, %rax              /* as every kernel does early on */
    xor $0x10000, %rax
    mov %rax, %cr0
    mov %cr4, %rax
    xor $0x80, %rax             /* PGE */
    mov %rax, %cr4
    invlpg 0x400000
    movl $8, STEP
fail:
    lidt AT(no_idt)
    ud2

    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 0x08 ring 0 code, 64 bit */
    .quad 0x00cf93000000ffff    /* 0x10 ring 0 data */
    .quad 0x00cff3000000ffff    /* 0x18 ring 3 data */
    .quad 0x00affb000000ffff    /* 0x20 ring 3 code, 64 bit */
    .quad 0x0000890030000067    /* 0x28 TSS at 0x3000 */
    .quad 0
gdt_end:
gdtr:
    .word gdt_end - gdt - 1
    .quad AT(gdt)
idtr:
    .word 0x810 - 1
    .quad 0x4000
no_idt:
    .word 0
    .quad 0
    /* Where kvm.c finds the handlers for the IDT: #PF, int 0x80. */
    .globl kvm_probe_entries
    .hidden kvm_probe_entries
    .balign 8
kvm_probe_entries:
    .quad AT(on_fault)
    .quad AT(on_int)
kvm_probe_guest_end:
    .section .note.GNU-stack, "", @progbits
