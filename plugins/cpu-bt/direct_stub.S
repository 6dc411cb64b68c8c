/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/direct_stub.S - the code in a helper's zone: see direct.h.
 * Copied to the start of the zone; the data lies at fixed distances behind it.
 */
#include <asm/unistd_64.h>

#define ORDERS 4096
#define REPORT (4096 + 32768)
#define ONE ORDERS
#define N_OPS (ORDERS + 8)
#define RESUME (ORDERS + 16)
#define FRAME (ORDERS + 24)
#define FS (ORDERS + 32)
#define GS (ORDERS + 40)
#define CLOCK (ORDERS + 48)
#define SEGS (ORDERS + 56)
#define OPS (ORDERS + 64)
#define R_COOKIE REPORT
#define R_FS (REPORT + 8)
#define R_GS (REPORT + 16)
#define R_FRAME (REPORT + 24)
#define R_SIGNAL (REPORT + 32)
#define R_FAILED (REPORT + 40)
#define R_FAILED_OP (REPORT + 48)
#define R_IN (REPORT + 56)
#define R_OUT (REPORT + 64)
#define R_SEGS (REPORT + 72)
#define R_TOKEN (REPORT + 80)
#define RIP_IN_FRAME 176
#define BAD_TOKEN 3
#define AT(x) (direct_stub + (x))(%rip)

    .section .rodata
    .balign 16
    .globl direct_stub, direct_stub_handler, direct_stub_init, direct_stub_end
    .hidden direct_stub, direct_stub_handler, direct_stub_init, direct_stub_end
direct_stub:
/* The handler of every signal: rdi = signal, rsp = frame. All signals are blocked. */
direct_stub_handler:
    mov RIP_IN_FRAME(%rsp), %rax
    lea direct_stub(%rip), %rcx
    sub %rcx, %rax
    cmp $(direct_stub_init - direct_stub), %rax
    jb meddled
    movw %ds, AT(R_SEGS)
    movw %es, AT(R_SEGS + 2)
    movw %fs, AT(R_SEGS + 4)
    movw %gs, AT(R_SEGS + 6)
    rdfsbase %rax
    mov %rax, AT(R_FS)
    rdgsbase %rax
    mov %rax, AT(R_GS)
    mov %rdi, AT(R_SIGNAL)
    mov %rsp, AT(R_FRAME)
    cmpq $0, AT(CLOCK)
    je notify
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, AT(R_OUT)
notify: /* the eventfd would not take any token, and the vCPU wait */
    mov AT(R_TOKEN), %rax
    cmp AT(ONE), %rax
    je 1f
    movq $BAD_TOKEN, AT(R_TOKEN)
1:  mov $__NR_write, %eax
    mov $4, %edi
    lea AT(R_TOKEN), %rsi
    mov $8, %edx
    syscall
wait:
    xor %eax, %eax /* read */
    mov $3, %edi
    lea AT(R_COOKIE), %rsi
    mov $8, %edx
    syscall
    cmp $8, %rax
    jne wait
    mov AT(R_COOKIE), %rbx
    movq $0, AT(R_COOKIE)
    mov AT(ONE), %rax /* from now on; who tells of something before tells what was valid then */
    mov %rax, AT(R_TOKEN)
    /* the cookie's halves, as the upper halves of the 4th and 5th argument */
    mov %rbx, %rbp
    shl $32, %rbp
    shr $32, %rbx
    shl $32, %rbx
    xor %r12d, %r12d
next: /* where an order lies is found out each time: whoever jumps in here has one call of his own, not a list */
    cmp AT(N_OPS), %r12
    jae done
    mov %r12d, %eax
    and $511, %eax
    shl $6, %eax
    lea AT(OPS), %r13
    add %rax, %r13
    mov (%r13), %rax
    cmpl $0, 56(%r13)
    jne compat
    mov 8(%r13), %rdi
    mov 16(%r13), %rsi
    mov 24(%r13), %rdx
    mov 32(%r13), %r10
    mov 40(%r13), %r8
    mov 48(%r13), %r9
    or %rbx, %r10
    or %rbp, %r8
    syscall
    cmp $-4095, %rax
    jae failed
    inc %r12
    jmp next
compat: /* a call that only 32-bit programs have: the cookie's halves are the 4th and 5th argument */
    mov %rbx, %r14
    mov %rbx, %rsi
    shr $32, %rsi
    mov %rbp, %rdi
    shr $32, %rdi
    mov 8(%r13), %rbx
    int $0x80
    mov %r14, %rbx
    xor %esi, %esi
    xor %edi, %edi
    xor %r14d, %r14d
    movslq %eax, %rax
    cmp $-4095, %rax
    jae failed
    inc %r12
    jmp next
failed:
    mov %rax, AT(R_FAILED)
    mov %r12, AT(R_FAILED_OP)
    xor %ebx, %ebx
    xor %ebp, %ebp
    xor %r8d, %r8d
    xor %r10d, %r10d
    jmp notify
done:
    cmpq $0, AT(RESUME)
    jne resume
    xor %ebx, %ebx
    xor %ebp, %ebp
    xor %r8d, %r8d
    xor %r10d, %r10d
    jmp notify
resume:
    movw AT(SEGS), %ds
    movw AT(SEGS + 2), %es
    movw AT(SEGS + 4), %fs
    movw AT(SEGS + 6), %gs
    mov AT(FS), %rax
    wrfsbase %rax
    mov AT(GS), %rax
    wrgsbase %rax
    mov AT(FRAME), %rsp
    cmpq $0, AT(CLOCK)
    je 1f
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, AT(R_IN)
1:
    mov %rbx, %r10
    mov %rbp, %r8
    mov $__NR_rt_sigreturn, %eax
    syscall
    hlt
meddled: /* somebody has jumped in here: no exit has this token */
    movq $BAD_TOKEN, AT(R_TOKEN)
    jmp notify
/* Once, with no filter yet: the orders are carried out as they are - they take away everything but the zone, and load
 * the filter - and the first signal makes the first frame. Then this is overwritten: nobody shall have a use for it. */
direct_stub_init:
    mov AT(N_OPS), %r12
    lea AT(OPS), %r13
1:  test %r12, %r12
    jz 2f
    mov (%r13), %rax
    mov 8(%r13), %rdi
    mov 16(%r13), %rsi
    mov 24(%r13), %rdx
    mov 32(%r13), %r10
    mov 40(%r13), %r8
    mov 48(%r13), %r9
    syscall
    cmp $-4095, %rax
    jae 3f
    add $64, %r13
    dec %r12
    jmp 1b
3:  mov %rax, AT(R_FAILED)
    mov %r12, AT(R_FAILED_OP)
2:  int3
    hlt
direct_stub_end:
    .section .note.GNU-stack, "", @progbits
