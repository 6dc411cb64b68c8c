/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The smallest user space: says three lines on the console and powers off. No libc, no stack use beyond one call, so
 * that a new engine meets as little as possible on its first way through a kernel.
 */
#include <asm/unistd_64.h>

    .globl _start
    .text
_start:
    mov $first, %esi
    mov $first_len, %edx
    call say
    mov $__NR_getpid, %eax
    syscall
    cmp $1, %eax
    jne off
    mov $second, %esi
    mov $second_len, %edx
    call say
    /* A page of the bss is not there before its first touch. */
    incq page
    mov $third, %esi
    mov $third_len, %edx
    call say
off:
    mov $__NR_sync, %eax
    syscall
    mov $0xfee1dead, %edi
    mov $672274793, %esi
    mov $0x4321fedc, %edx       /* LINUX_REBOOT_CMD_POWER_OFF */
    mov $__NR_reboot, %eax
    syscall
1:  mov $__NR_pause, %eax
    syscall
    jmp 1b

say:
    mov $__NR_write, %eax
    mov $1, %edi
    syscall
    ret

    .section .rodata
first:
    .ascii "HVX-MARK user-space\n"
    .set first_len, . - first
second:
    .ascii "HVX-MARK getpid-is-1\n"
    .set second_len, . - second
third:
    .ascii "HVX-MARK page-fault-done\n"
    .set third_len, . - third

    .bss
    .align 4096
page:
    .skip 4096
    .section .note.GNU-stack,"",@progbits
