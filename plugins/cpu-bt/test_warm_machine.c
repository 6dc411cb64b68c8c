/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_warm_machine.c - see test_warm.h. The engine is reached
 * through its public ABI.
 */
#include "test_warm.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RAM_SIZE 0x800000u
#define TABLES 0x100000u
#define CODE 0x200000u /* 2 MiB, mapped at all the places */

/* RIP-relative operands, calls direct and indirect, a C op, a loop, a jump to another page. Nothing of its place is in
 * the result. */
__asm__(".section .rodata\n"
        ".p2align 12\n"
        "warm_code:\n"
        "lea 4096*16(%rip), %rsp\n"
        "xor %ebx, %ebx\n"
        "mov $40, %r12d\n"
        "warm_code_constant: mov $0x11223344, %r13d\n"
        "1: mov warm_code_data(%rip), %rax\n"
        "add %r13, %rax\n"
        "lea warm_code_add(%rip), %rdx\n"
        "call *%rdx\n"
        "call warm_code_far\n"
        "mov %rbx, warm_code_data+8(%rip)\n"
        "dec %r12d\n"
        "jne 1b\n"
        "xor %eax, %eax\n"
        "cpuid\n"
        "mov warm_code_data+8(%rip), %rax\n"
        "jmp warm_code_end\n"
        "warm_code_add: add %rax, %rbx\n"
        "rol $7, %rbx\n"
        "ret\n"
        ".p2align 6\n"
        "warm_code_data: .quad 0x123456789abcdef1, 0\n"
        ".p2align 12\n"
        "warm_code_far: xor %rax, %rbx\n"
        "ret\n"
        "warm_code_end: out %al, $0xf4\n"
        "jmp warm_code_end\n"
        "warm_code_stop:\n"
        ".previous\n");
extern const uint8_t warm_code[], warm_code_constant[], warm_code_stop[];

uint64_t warm_expect(uint32_t constant)
{
    uint64_t b = 0;
    for (unsigned i = 0; i < 40; i++) {
        uint64_t a = 0x123456789abcdef1ull + constant;
        b += a;
        b = b << 7 | b >> 57;
        b ^= a;
    }
    return b;
}

static void put64(struct warm_machine *m, uint64_t gpa, uint64_t v) { memcpy(m->h.ram + gpa, &v, 8); }

static void map(struct warm_machine *m, uint64_t va, unsigned n)
{
    uint64_t pdpt = TABLES + 0x1000 + n * 0x2000, pd = pdpt + 0x1000, old;
    memcpy(&old, m->h.ram + TABLES + (va >> 39 & 511) * 8, 8);
    if (old) /* the kernel's places */
        pdpt = old & ~0xfffull;
    put64(m, TABLES + (va >> 39 & 511) * 8, pdpt | 7);
    memcpy(&old, m->h.ram + pdpt + (va >> 30 & 511) * 8, 8);
    if (old)
        pd = old & ~0xfffull;
    put64(m, pdpt + (va >> 30 & 511) * 8, pd | 7);
    put64(m, pd + (va >> 21 & 511) * 8, CODE | 0xe7); /* large, accessed, dirty */
}

bool warm_start(struct warm_machine *m, const char *path)
{
    static const uint64_t places[] = {WARM_USER_A, WARM_USER_B, WARM_KERNEL_A, WARM_KERNEL_B, WARM_LOW};
    memset(m, 0, sizeof(*m));
    m->h = (struct test_host){.translation_cache = path, .tsc_hz = 2000000000, .quiet = true};
    if (!test_host_ram(&m->h, RAM_SIZE, false))
        return false;
    for (unsigned i = 0; i < 5; i++)
        map(m, places[i] & ~0x1fffffull, i);
    return test_host_start(&m->h);
}

static void count(void *opaque, const char *group, const char *name, uint64_t value, const char *unit)
{
    struct warm_machine *m = opaque;
    (void)group, (void)unit;
    if (!strcmp(name, "warm_loaded"))
        m->loaded = value;
    else if (!strcmp(name, "warm_kept"))
        m->kept = value;
    else if (!strcmp(name, "warm_lost"))
        m->lost = value;
    else if (!strcmp(name, "blocks"))
        m->blocks = value;
}

void warm_run(struct warm_machine *m, uint64_t at, uint32_t constant)
{
    bool user = !(at >> 63);
    unsigned off = (unsigned)(at & 0x1fffff);
    memcpy(m->h.ram + CODE + off, warm_code, (size_t)(warm_code_stop - warm_code));
    memcpy(m->h.ram + CODE + off + (warm_code_constant - warm_code) + 2, &constant, 4);
    struct hvx_vcpu_regs *r = test_host_get(&m->h);
    r->rip = at;
    r->rflags = 0x3002; /* programs may use ports */
    test_segment(&r->seg[HVX_CS], user ? 0x33 : 0x10, user ? 0xa0fb : 0xa09b);
    test_segment(&r->seg[HVX_SS], user ? 0x2b : 0x18, user ? 0xc0f3 : 0xc093);
    r->cr3 = TABLES;
    if (!test_host_set(&m->h, r)) {
        fprintf(stderr, "test_warm: %s\n", m->h.log);
        abort();
    }
    for (m->h.stopped = false; !m->h.stopped;)
        if (!test_host_run(&m->h))
            abort();
    r = test_host_get(&m->h);
    m->result = r->gpr[0];
    free(r);
    m->h.ops->stats(m->h.vm, count, m);
}

void warm_end(struct warm_machine *m) { test_host_end(&m->h); }
