/* SPDX-License-Identifier: Apache-2.0 */
/* Into a state and back (system.h). A handler may find no usable stack and any
 * data segment, so it keeps EAX and DS in debug registers first. */
#include "system.h"
#define LOW(x) (LOW_CODE + ((x) - low_begin))

    .section .multiboot, "a"
    .align 4
    .long 0x1badb002, 0, -0x1badb002

    .text
    .code32
    .globl _start
_start:
    cli
    cld
    mov $stack_top, %esp
    push %ebx
    lgdt gdtr
    ljmp $SEL_CODE, $1f
1:  mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    mov $gdtr, %esi
    mov $M_GDTR, %edi
    mov $10, %ecx
    rep movsb
    mov $low_begin, %esi
    mov $LOW_CODE, %edi
    mov $low_end - low_begin, %ecx
    rep movsb
    call kernel_main
1:  hlt
    jmp 1b

    .data
gdtr:
    .word 8 * 8 - 1
    .long monitor_gdt, 0
    .balign 8
    .globl monitor_gdt
monitor_gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff, 0x00009b000000ffff, 0x000093000000ffff
    .quad 0x0001930500007fff /* unreal: base AREA, limit 0x17fff */
monitor_tss:
    .quad 0x0000890000000067 /* SEL_DFTSS of a case's own table */
    .text

    .macro load_rest
    mov S_GPR + 0x00, %eax
    mov S_GPR + 0x08, %ecx
    mov S_GPR + 0x10, %edx
    mov S_GPR + 0x18, %ebx
    mov S_GPR + 0x28, %ebp
    mov S_GPR + 0x30, %esi
    mov S_GPR + 0x38, %edi
    .endm

    .globl enter
enter:
    push %ebp
    push %ebx
    push %esi
    push %edi
    mov %esp, M_ESP
    mov S_KIND, %eax
    cmp $KIND_REAL, %eax
    je enter_real
    cmp $KIND_LONG, %eax
    je enter_long
    lgdt S_GDTR
    lidt S_IDTR
    mov S_CR4, %ecx
    mov %ecx, %cr4
    mov S_CR3, %ecx
    mov %ecx, %cr3
    mov S_LDT, %ecx
    lldt %cx
    mov S_TR, %ecx
    ltr %cx
    mov S_CR0, %ecx
    mov %ecx, %cr0
    jmp 1f
1:  cmp $KIND_OUTER, %eax
    je enter_outer
    cmp $KIND_VM86, %eax
    je enter_vm86
    pushl S_EFLAGS
    popf
    lss S_ESP, %esp
    mov S_ES, %es
    mov S_FS, %fs
    mov S_GS, %gs
    load_rest
    mov S_DS, %ds
    ljmp *%cs:S_EIP
enter_outer:
    pushl S_SS
    pushl S_ESP
    pushl S_EFLAGS
    pushl S_CS
    pushl S_EIP
    mov S_ES, %es
    mov S_FS, %fs
    mov S_GS, %gs
    load_rest
    mov S_DS, %ds
    iret
enter_vm86:
    pushl S_GS
    pushl S_FS
    pushl S_DS
    pushl S_ES
    pushl S_SS
    pushl S_ESP
    pushl S_EFLAGS
    pushl S_CS
    pushl S_EIP
    load_rest
    iret
enter_real:
    lgdt M_GDTR
    lidt S_IDTR
    mov S_LIMITS, %ecx
    mov %ecx, %es
    mov %ecx, %fs
    mov %ecx, %gs
    mov $SEL_DATA16, %eax
    mov %eax, %ss
    mov %ecx, %ds
    ljmp $SEL_CODE16, $LOW(real_1)

enter_long:
    mov S_CR4, %eax
    mov %eax, %cr4
    mov S_CR3, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    mov S_EFER, %eax
    xor %edx, %edx
    wrmsr
    lgdt S_GDTR
    mov S_CR0, %eax
    mov %eax, %cr0
    ljmp $SEL_LONG, $1f
    .code64
1:  lidt S_IDTR
    mov S_LDT, %eax
    lldt %ax
    mov S_TR, %eax
    ltr %ax
    mov S_DS, %eax
    mov %eax, %ds
    mov S_ES, %eax
    mov %eax, %es
    mov S_FS, %eax
    mov %eax, %fs
    mov S_GS, %eax
    mov %eax, %gs
    mov $0xc0000100, %ecx
    mov S_BASES, %eax
    mov S_BASES + 4, %edx
    wrmsr
    inc %ecx
    mov S_BASES + 8, %eax
    mov S_BASES + 12, %edx
    wrmsr
    inc %ecx
    mov S_BASES + 16, %eax
    mov S_BASES + 20, %edx
    wrmsr
    mov M_ESP, %esp
    pushq S_SS
    pushq S_GPR + 0x20
    pushq S_EFLAGS
    pushq S_CS
    pushq S_RIP
    mov S_GPR + 0x00, %rax
    mov S_GPR + 0x08, %rcx
    mov S_GPR + 0x10, %rdx
    mov S_GPR + 0x18, %rbx
    mov S_GPR + 0x28, %rbp
    mov S_GPR + 0x30, %rsi
    mov S_GPR + 0x38, %rdi
    mov S_GPR + 0x40, %r8
    mov S_GPR + 0x48, %r9
    mov S_GPR + 0x50, %r10
    mov S_GPR + 0x58, %r11
    mov S_GPR + 0x60, %r12
    mov S_GPR + 0x68, %r13
    mov S_GPR + 0x70, %r14
    mov S_GPR + 0x78, %r15
    iretq

/* --- 64-bit handlers --- */
    .balign 16
    .globl stubs64
stubs64:
    .set vector, 0
    .rept N_VECTORS
    .balign 16
    mov %rax, %dr0
    mov $vector, %eax
    jmp exit64
    .set vector, vector + 1
    .endr
exit64:
    mov %eax, R_VECTOR
    mov %dr0, %rax
    mov %rax, R_GPR + 0x00
    mov %rcx, R_GPR + 0x08
    mov %rdx, R_GPR + 0x10
    mov %rbx, R_GPR + 0x18
    mov %rsp, R_SP
    mov %rbp, R_GPR + 0x28
    mov %rsi, R_GPR + 0x30
    mov %rdi, R_GPR + 0x38
    mov %r8, R_GPR + 0x40
    mov %r9, R_GPR + 0x48
    mov %r10, R_GPR + 0x50
    mov %r11, R_GPR + 0x58
    mov %r12, R_GPR + 0x60
    mov %r13, R_GPR + 0x68
    mov %r14, R_GPR + 0x70
    mov %r15, R_GPR + 0x78
    mov %ss, %eax
    mov %eax, R_SS
    mov %ds, %eax
    mov %eax, R_DS
    mov %es, %eax
    mov %eax, R_ES
    mov %fs, %eax
    mov %eax, R_FS
    mov %gs, %eax
    mov %eax, R_GS
    mov M_ESP, %esp
    pushfq
    pop %rax
    mov %eax, R_EFLAGS
    cld
    mov %cr0, %rax
    mov %eax, R_CR0
    mov %cr2, %rax
    mov %rax, R_CR2
    mov %cr3, %rax
    mov %eax, R_CR3
    mov %cr4, %rax
    mov %eax, R_CR4
    mov %dr6, %rax
    mov %eax, R_DR6
    mov %dr7, %rax
    mov %eax, R_DR7
    sgdt R_GDTR
    sidt R_IDTR
    sldt %eax
    mov %eax, R_LDT
    str %eax
    mov %eax, R_TR
    mov $0xc0000100, %ecx
    rdmsr
    mov %eax, R_BASES
    mov %edx, R_BASES + 4
    inc %ecx
    rdmsr
    mov %eax, R_BASES + 8
    mov %edx, R_BASES + 12
    inc %ecx
    rdmsr
    mov %eax, R_BASES + 16
    mov %edx, R_BASES + 20
    lgdt M_GDTR
    pushq $SEL_CODE
    mov $back_long, %eax
    push %rax
    lretq
    .code32
back_long:
    mov $SEL_DATA, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov $0xc0000080, %ecx
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    jmp back

/* --- 32-bit handlers --- */
    .balign 16
    .globl stubs32
stubs32:
    .set vector, 0
    .rept N_VECTORS
    .balign 16
    mov %eax, %dr0
    mov $vector, %eax
    jmp exit32
    .set vector, vector + 1
    .endr
exit32:
    mov %eax, %dr2
    mov %ds, %eax
    mov %eax, %dr1
    mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %ecx, R_GPR + 0x08
    mov %edx, R_GPR + 0x10
    mov %ebx, R_GPR + 0x18
    mov %esp, R_SP
    mov %ebp, R_GPR + 0x28
    mov %esi, R_GPR + 0x30
    mov %edi, R_GPR + 0x38
    mov %ss, %eax
    mov %eax, R_SS
    mov %es, %eax
    mov %eax, R_ES
    mov %fs, %eax
    mov %eax, R_FS
    mov %gs, %eax
    mov %eax, R_GS
    mov %dr0, %eax
    mov %eax, R_GPR
    mov %dr1, %eax
    mov %eax, R_DS
    mov %dr2, %eax
    mov %eax, R_VECTOR
    mov $SEL_DATA, %eax
    mov %eax, %ss
    mov M_ESP, %esp
    pushf
    popl R_EFLAGS
save_system:
    mov %cr0, %eax
    mov %eax, R_CR0
    sgdt R_GDTR
    sidt R_IDTR
    sldt %eax
    mov %eax, R_LDT
    str %eax
    mov %eax, R_TR
save_debug:
    mov %cr2, %eax
    mov %eax, R_CR2
    mov %cr3, %eax
    mov %eax, R_CR3
    mov %cr4, %eax
    mov %eax, R_CR4
    mov %dr6, %eax
    mov %eax, R_DR6
    mov %dr7, %eax
    mov %eax, R_DR7
back:
    mov $0x11, %eax
    mov %eax, %cr0
    jmp 1f
1:  xor %eax, %eax
    mov %eax, %cr4
    mov %eax, %cr3
    lgdt M_GDTR
    ljmp $SEL_CODE, $1f
1:  mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    mov M_ESP, %esp
    push $2
    popf
    xor %eax, %eax
    lldt %ax
    movb $0x89, monitor_tss + 5 /* not busy */
    mov $SEL_DFTSS, %eax /* a 16-bit TSS that a case loaded would keep the next one out of long mode: #GP */
    ltr %ax
    mov $0x400, %eax
    mov %eax, %dr7
    mov $0xffff0ff0, %eax
    mov %eax, %dr6
    pop %edi
    pop %esi
    pop %ebx
    pop %ebp
    ret

/* A double fault arrives by task switch: the registers are in the TSS. */
    .globl df_entry
df_entry:
    movl $8, R_VECTOR
    jmp save_system

/* --- below 1 MiB --- */
    .balign 16
    .globl low_begin, low_end, low_stubs
low_begin:
    .code16
real_1:
    mov %cr0, %eax
    and $0xfffffffe, %eax
    mov %eax, %cr0
    ljmp $0, $LOW(real_2)
real_2:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7f00, %sp
    pushl S_EFLAGS
    popfl
    mov S_SS, %ss
    mov S_ESP, %esp
    mov S_ES, %es
    mov S_FS, %fs
    mov S_GS, %gs
    load_rest
    mov S_DS, %ds
    ljmp *%cs:S_EIP16

    .balign 16
low_stubs:
    .set vector, 0
    .rept N_VECTORS
    .balign 16
    mov %eax, %dr0
    mov $vector, %ax
    jmp exit16
    .set vector, vector + 1
    .endr
exit16:
    movzwl %ax, %eax
    mov %eax, %dr2
    xor %eax, %eax
    mov %ds, %ax
    mov %eax, %dr1
    xor %eax, %eax
    mov %ax, %ds
    mov %ecx, R_GPR + 0x08
    mov %edx, R_GPR + 0x10
    mov %ebx, R_GPR + 0x18
    mov %esp, R_SP
    mov %ebp, R_GPR + 0x28
    mov %esi, R_GPR + 0x30
    mov %edi, R_GPR + 0x38
    mov %ss, %ax
    mov %eax, R_SS
    mov %es, %ax
    mov %eax, R_ES
    mov %fs, %ax
    mov %eax, R_FS
    mov %gs, %ax
    mov %eax, R_GS
    mov %dr0, %eax
    mov %eax, R_GPR
    mov %dr1, %eax
    mov %eax, R_DS
    mov %dr2, %eax
    mov %eax, R_VECTOR
    mov %cr0, %eax
    mov %eax, R_CR0
    sgdtl R_GDTR
    sidtl R_IDTR
    lgdtl M_GDTR
    or $1, %eax
    mov %eax, %cr0
    ljmpl $SEL_CODE, $back_real
low_end:
    .code32
back_real:
    mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %ss
    jmp save_debug

    .bss
    .balign 16
    .space 16384
stack_top:
    .section .note.GNU-stack, "", @progbits
