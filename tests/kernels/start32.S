/* SPDX-License-Identifier: Apache-2.0 */
/* Entry of the protected-mode test kernels: multiboot, flat segments, trap stubs, the way to ring 3 and back. */
    .section .multiboot, "a"
    .align 4
    .long 0x1badb002, 0, -0x1badb002

    .text
    .globl _start
_start:
    cli
    mov $stack_top, %esp
    mov %eax, tk_multiboot_magic
    mov %ebx, tk_multiboot_info
    call tk_load_gdt
    ljmp $0x08, $1f
1:  mov $0x10, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %fs
    mov %ax, %gs
    mov %ax, %ss
    /* The TSS descriptor gets its base here: an assembler cannot split an address. */
    mov $tk_tss, %eax
    mov %ax, tk_gdt + 0x2a
    shr $16, %eax
    mov %al, tk_gdt + 0x2c
    mov %ah, tk_gdt + 0x2f
    mov $0x28, %ax
    ltr %ax
    xor %eax, %eax
    lldt %ax                    /* after reset the LDT is not empty */
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
    mov 4(%esp), %eax
    mov %eax, tk_tss + 4
    ret

    /* void tk_run_user(ip, sp, flags, cs) */
    .globl tk_run_user
tk_run_user:
    push %ebp
    push %ebx
    push %esi
    push %edi
    mov %esp, saved_esp
    mov 20(%esp), %eax
    mov 24(%esp), %ecx
    mov 28(%esp), %edx
    mov 32(%esp), %ebx
    push $0x23
    push %ecx
    push %edx
    push %ebx
    push %eax
    mov $0x23, %ax
    mov %ax, %ds
    mov %ax, %es
    iret

    .globl tk_user_exit
tk_user_exit:
    mov $0x10, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov saved_esp, %esp
    pop %edi
    pop %esi
    pop %ebx
    pop %ebp
    ret

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
    pusha
    push %ds
    push %es
    push %fs
    push %gs
    cld
    mov $0x10, %eax
    mov %ax, %ds
    mov %ax, %es
    push %esp
    call tk_trap
    add $4, %esp
    pop %gs
    pop %fs
    pop %es
    pop %ds
    popa
    add $8, %esp
    iret

    .data
    .balign 8
gdtr:
    .word 64 * 8 - 1
    .long tk_gdt
    .balign 8
    .globl tk_gdt
tk_gdt:
    .quad 0
    .quad 0x00cf9a000000ffff    /* 08 code */
    .quad 0x00cf92000000ffff    /* 10 data */
    .quad 0x00cffa000000ffff    /* 18 user code */
    .quad 0x00cff2000000ffff    /* 20 user data */
    .quad 0x0000890000000067    /* 28 TSS */
    .skip 8 * 58

    .globl tk_tss
tk_tss:
    .long 0, trap_stack_top, 0x10
    .skip 104 - 12 - 2
    .word 104                   /* no I/O bitmap */
    .globl saved_esp
saved_esp:
    .long 0
    .globl tk_multiboot_magic, tk_multiboot_info
tk_multiboot_magic:
    .long 0
tk_multiboot_info:
    .long 0

    .bss
    .balign 16
    .skip 16384
stack_top:
    .skip 16384
    .globl trap_stack_top
trap_stack_top:
    .section .note.GNU-stack,"",@progbits
