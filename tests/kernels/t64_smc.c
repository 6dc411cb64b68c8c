/* SPDX-License-Identifier: Apache-2.0 */
/* Self-modifying code on one CPU. x86 promises that a jump suffices before the new code runs. */
#include "tk.h"

#define PAGE 4096
static uint8_t code[4 * PAGE] __attribute__((aligned(PAGE)));
extern uint64_t tk_pml4[512];

/* mov eax, imm32; ret */
static void put(volatile uint8_t *p, uint32_t value)
{
    p[0] = 0xb8;
    p[1] = (uint8_t)value;
    p[2] = (uint8_t)(value >> 8);
    p[3] = (uint8_t)(value >> 16);
    p[4] = (uint8_t)(value >> 24);
    p[5] = 0xc3;
}

static uint32_t run(volatile void *p)
{
    return ((uint32_t(*)(void))(tk_word)p)();
}

static void rewritten(void)
{
    static const unsigned places[] = {0, 100, PAGE - 6, PAGE - 3, PAGE - 1, 2 * PAGE - 5};
    bool good = true;

    for (unsigned p = 0; p < sizeof(places) / sizeof(places[0]); p++)
        for (uint32_t i = 0; i < 300; i++) {
            put(code + places[p], i * 77777 + p);
            good &= run(code + places[p]) == i * 77777 + p;
        }
    CHECK(good, "rewrite-and-call");
    /* Only the byte on the second page changes. */
    put(code + PAGE - 3, 0x11223344);
    run(code + PAGE - 3);
    good = true;
    for (uint32_t i = 0; i < 200; i++) {
        ((volatile uint8_t *)code)[PAGE + 1] = (uint8_t)i;
        good &= run(code + PAGE - 3) == (0x00223344u | i << 24);
    }
    CHECK(good, "rewrite-second-page-of-an-instruction");
    /* Every width of store, and string stores. */
    put(code, 0);
    run(code);
    *(volatile uint16_t *)(code + 1) = 0x2222;
    EQUAL(run(code), 0x2222, "store-16");
    *(volatile uint32_t *)(code + 1) = 0x33333333;
    EQUAL(run(code), 0x33333333, "store-32");
    *(volatile uint64_t *)code = 0xc344444444b8ul;
    EQUAL(run(code), 0x44444444, "store-64");
    void *to = code + 1;
    tk_word n = 4;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(0x55) : "memory");
    EQUAL(run(code), 0x55555555, "rep-stosb");
    static uint8_t source[6];
    const void *from = source;
    put(source, 0x66666666);
    to = code, n = 6;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    EQUAL(run(code), 0x66666666, "rep-movsb");
    __asm__ volatile("lock; addl $0x11111111, %0" : "+m"(*(uint32_t *)(code + 1)) : : "cc", "memory");
    EQUAL(run(code), 0x77777777, "locked-add");
    __asm__ volatile("lock; cmpxchgl %2, %0" : "+m"(*(uint32_t *)(code + 1)) : "a"(0x77777777), "r"(0x88888888) : "cc", "memory");
    EQUAL(run(code), 0x88888888, "cmpxchg");
    __asm__ volatile("xchgl %1, %0" : "+m"(*(uint32_t *)(code + 1)) : "r"(0x99999999) : "memory");
    EQUAL(run(code), 0x99999999, "xchg");
    tk_word sp;
    __asm__ volatile("mov %%rsp, %0; lea 8(%1), %%rsp; push %2; mov %0, %%rsp" : "=&r"(sp) : "r"(code), "r"(0xc3aabbccddb8ul) : "memory");
    EQUAL(run(code), 0xaabbccdd, "push");
}

/* The instruction behind the store, in the same block, must be the new one. */
static void same_block(void)
{
    uint32_t v;

    for (int i = 0; i < 3; i++) {
        __asm__ volatile("movl $0x1111, 1f + 1(%%rip)\n jmp 1f\n 1: mov $0, %%eax" : "=a"(v) : : "memory");
        if (v != 0x1111)
            break;
        __asm__ volatile("movb $0x90, 2f(%%rip); xor %%eax, %%eax; jmp 2f; 2: .byte 0x90; inc %%eax" : "=a"(v) : : "memory", "cc");
        v = 0x1111;
    }
    EQUAL(v, 0x1111, "patch-ahead-with-jump");
    /* Without a jump: real CPUs of the last decades snoop this too. */
    v = 0;
    for (uint32_t i = 1; i < 50; i++) {
        uint32_t got;

        __asm__ volatile("movl %1, 1f + 1(%%rip)\n 1: mov $0, %%eax" : "=a"(got) : "r"(i * 3) : "memory");
        v += got == i * 3;
    }
    EQUAL(v, 49, "patch-next-instruction");
    /* A loop that patches its own immediate each time round. */
    uint32_t sum = 0;
    __asm__ volatile("mov $100, %%ecx\n 2: movb %%cl, 3f + 1(%%rip)\n nop\n 3: mov $0, %%eax\n movzbl %%al, %%eax\n add %%eax, %0\n"
                     "dec %%ecx\n jnz 2b" : "+r"(sum) : : "eax", "ecx", "cc", "memory");
    EQUAL(sum, 5050, "loop-patches-itself");
}

/* Data beside code: stores to the same page that hit no code must work and not be slow to the point of a hang. */
static void mixed_page(void)
{
    volatile uint32_t *data = (uint32_t *)(code + 2048);
    uint64_t sum = 0;

    put(code, 1);
    for (uint32_t i = 0; i < 20000; i++) {
        data[i & 63] = i;
        sum += run(code) + data[i & 63];
    }
    EQUAL(sum, 20000ul + 20000ul * 19999 / 2, "data-on-a-code-page");
}

/* Through another virtual address of the same physical page. */
static void alias(void)
{
    static uint64_t pdpt[512] __attribute__((aligned(PAGE))), pd[512] __attribute__((aligned(PAGE)));
    bool good = true;
    tk_word window = 0x8000000000ul;

    tk_pml4[1] = (tk_word)pdpt | 7;
    pdpt[0] = (tk_word)pd | 7;
    for (unsigned i = 0; i < 16; i++)
        pd[i] = i * 0x200000ul | 0x87;
    for (uint32_t i = 0; i < 100; i++) {
        put(code + 16, i);
        good &= run(code + 16) == i && run((void *)(window + (tk_word)code + 16)) == i;
        put((uint8_t *)(window + (tk_word)code + 16), i + 1000);
        good &= run(code + 16) == i + 1000 && run((void *)(window + (tk_word)code + 16)) == i + 1000;
    }
    CHECK(good, "code-changed-through-alias");
}

/* Calls patched like a kernel patches its call sites: e8 rel32 to one of two functions, by an atomic 8-byte store. */
static void patched_calls(void)
{
    volatile uint8_t *p = code + PAGE;
    bool good = true;

    put(code + 512, 0xd0);
    put(code + 640, 0xd1);
    p[0] = 0xe8, p[5] = 0xff, p[6] = 0xc0, p[7] = 0xc3; /* call X; inc eax; ret */
    for (uint32_t i = 0; i < 200; i++) {
        int32_t to = (int32_t)((i & 1 ? code + 640 : code + 512) - (code + PAGE + 5));

        *(volatile uint32_t *)(p + 1) = (uint32_t)to;
        good &= run(p) == (i & 1 ? 0xd2u : 0xd1u);
    }
    CHECK(good, "patched-call-target");
    /* nop <-> jmp, as static keys do: 5 bytes. */
    good = true;
    p[5] = 0xb8, p[6] = 1, p[7] = p[8] = p[9] = 0, p[10] = 0xc3;  /* not jumped: 1 */
    p[16] = 0xb8, p[17] = 2, p[18] = p[19] = p[20] = 0, p[21] = 0xc3; /* jumped: 2 */
    for (uint32_t i = 0; i < 200; i++) {
        static const uint8_t nop[5] = {0x0f, 0x1f, 0x44, 0, 0}, jump[5] = {0xe9, 11, 0, 0, 0};

        memcpy((void *)(tk_word)p, i & 1 ? jump : nop, 5);
        good &= run(p) == 1 + (i & 1);
    }
    CHECK(good, "static-key");
}

void tk_main(void)
{
    rewritten();
    same_block();
    mixed_page();
    alias();
    patched_calls();
}
