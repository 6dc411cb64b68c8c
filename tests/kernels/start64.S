/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entry of the long-mode test kernels. Multiboot leaves us in protected mode; the first 4 GiB get identity mapped by
 * 2 MiB pages (tk_pml4, tk_pdpt, tk_pd), then long mode with NX, WP and system calls enabled. Other CPUs come in
 * through the trampoline that tk_start_ap() copies to 0x8000.
 */
    .section .multiboot, "a"
    .align 4
    .long 0x1badb002, 0, -0x1badb002

    .text
    .code32
    .globl _start
_start:
    cli
    mov $stack_top, %esp
    mov %eax, tk_multiboot_magic
    mov %ebx, tk_multiboot_info
    /* Page directories: 2048 entries of 2 MiB, present, writable, user. */
    mov $tk_pd, %edi
    mov $0x87, %eax
    xor %ecx, %ecx
1:  mov %eax, (%edi, %ecx, 8)
    add $0x200000, %eax
    inc %ecx
    cmp $2048, %ecx
    jne 1b
    mov $tk_pd + 7, %eax
    xor %ecx, %ecx
1:  mov %eax, tk_pdpt(, %ecx, 8)
    add $4096, %eax
    inc %ecx
    cmp $4, %ecx
    jne 1b
    movl $tk_pdpt + 7, tk_pml4
    call enter_long
    lgdt gdtr
    ljmp $0x08, $start64

/* Turns long mode on (compatibility mode is the result) with the tables above. */
enter_long:
    mov %cr4, %eax
    or $0x20, %eax              /* PAE */
    mov %eax, %cr4
    mov $tk_pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x901, %eax             /* SCE, LME, NXE */
    wrmsr
    mov %cr0, %eax
    and $~0x60000000, %eax      /* CD, NW off */
    or $0x80010000, %eax        /* PG, WP */
    mov %eax, %cr0
    ret

    .code64
start64:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov $stack_top, %rsp
    mov $tk_tss, %rax
    mov %ax, tk_gdt + 0x32
    shr $16, %rax
    mov %al, tk_gdt + 0x34
    mov %ah, tk_gdt + 0x37
    mov $0x30, %eax
    ltr %ax
    xor %eax, %eax
    lldt %ax
    fninit
    call tk_init
1:  hlt
    jmp 1b

    .globl tk_load_gdt
tk_load_gdt:
    lgdt gdtr
    ret

    .globl tk_set_trap_stack
tk_set_trap_stack:
    mov %rdi, tk_tss + 4
    ret

    /* void tk_run_user(ip, sp, flags, cs) */
    .globl tk_run_user
tk_run_user:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, saved_rsp
    push $0x23
    push %rsi
    push %rdx
    push %rcx
    push %rdi
    iretq

    .globl tk_user_exit
tk_user_exit:
    mov $0x10, %eax
    mov %eax, %ss
    mov saved_rsp, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret

    /* Page-fault-like precision needs the frame as the CPU pushed it: stubs of 16 bytes, one per vector. */
    .balign 16
    .globl tk_stubs
tk_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17)
    .else
    push $0
    .endif
    push $vector
    jmp trap
    .set vector, vector + 1
    .endr

trap:
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    cld
    mov %rsp, %rdi
    mov %rsp, %rbp
    and $-16, %rsp
    call tk_trap
    mov %rbp, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq

/* Where another CPU starts, copied to 0x8000: real mode, then like above, with its own stack and entry function. */
    .globl tk_ap_code, tk_ap_code_end
    .code16
tk_ap_code:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl gdtr_low - tk_ap_code + 0x8000
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x40, $ap32
gdtr_low:
    .word 64 * 8 - 1
    .long tk_gdt
tk_ap_code_end:
    .code32
ap32:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov tk_ap_stack, %esp
    call enter_long
    ljmp $0x08, $ap64
    .code64
ap64:
    mov tk_ap_stack, %rsp
    mov $0x10, %eax
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    lidt tk_idtr
    fninit
    call *tk_ap_entry
1:  cli
    hlt
    jmp 1b

    .data
    .balign 8
gdtr:
    .word 64 * 8 - 1
    .quad tk_gdt
    .balign 8
    .globl tk_gdt
tk_gdt:
    .quad 0
    .quad 0x00af9a000000ffff    /* 08 code */
    .quad 0x00cf92000000ffff    /* 10 data */
    .quad 0x00cffa000000ffff    /* 18 user code, 32-bit */
    .quad 0x00cff2000000ffff    /* 20 user data */
    .quad 0x00affa000000ffff    /* 28 user code */
    .quad 0x0000890000000067    /* 30 TSS */
    .quad 0
    .quad 0x00cf9a000000ffff    /* 40 code, 32-bit */
    .skip 8 * 55

    .globl tk_tss
    .balign 8
    .long 0                     /* so that the 64-bit fields are aligned */
tk_tss:
    .long 0
    .quad trap_stack_top, 0, 0
    .quad 0
    .quad ist1_top, ist2_top, 0, 0, 0, 0, 0
    .quad 0
    .word 0, 104
    .balign 8
saved_rsp:
    .quad 0
    .globl tk_multiboot_magic, tk_multiboot_info, tk_ap_stack, tk_ap_entry
tk_multiboot_magic:
    .long 0
tk_multiboot_info:
    .long 0
tk_ap_stack:
    .quad 0
tk_ap_entry:
    .quad 0

    .bss
    .balign 4096
    .globl tk_pml4, tk_pdpt, tk_pd, ist1_top, ist2_top, trap_stack_top
tk_pml4:
    .skip 4096
tk_pdpt:
    .skip 4096
tk_pd:
    .skip 16384
    .skip 16384
stack_top:
    .skip 16384
trap_stack_top:
    .skip 8192
ist1_top:
    .skip 8192
ist2_top:
    .section .note.GNU-stack,"",@progbits
