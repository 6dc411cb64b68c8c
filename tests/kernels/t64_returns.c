/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Returns that go elsewhere than to behind their call, returns and jumps to what is not there any more: for engines
 * that guess where a RET goes, and that link a jump with its target.
 */
#include "tk.h"

#define PAGE 4096
#define VA 0x8000000000ul
#define APIC(reg) (*(volatile uint32_t *)(0xfee00000ul + (reg)))

extern uint64_t tk_pml4[512];
static uint64_t pdpt[512] __attribute__((aligned(PAGE))), pd[512] __attribute__((aligned(PAGE)));
static uint64_t pt[512] __attribute__((aligned(PAGE)));
static uint8_t page[4][PAGE] __attribute__((aligned(PAGE)));
static uint8_t deep_stack[4 << 20] __attribute__((aligned(16)));
static uint8_t user_stack[PAGE] __attribute__((aligned(16)));

static void deep(void)
{
    tk_word sum = 0, left = 200000, keep;
    /* Each level adds one before its call and one after it. */
    __asm__ volatile("mov %%rsp, %2\n mov %3, %%rsp\n call 1f\n jmp 3f\n"
                     "1: inc %0\n dec %1\n jz 2f\n call 1b\n inc %0\n 2: ret\n 3: mov %2, %%rsp"
                     : "+r"(sum), "+r"(left), "=&r"(keep) : "r"(deep_stack + sizeof(deep_stack)) : "cc", "memory");
    EQUAL(sum, 399999, "recursion-200000-deep");
    sum = 0;
    for (unsigned i = 0; i < 20; i++) { /* about as deep as any table is large */
        left = 3000 + i * 131;
        __asm__ volatile("mov %%rsp, %2\n mov %3, %%rsp\n call 1f\n jmp 3f\n"
                         "1: inc %0\n dec %1\n jz 2f\n call 1b\n inc %0\n 2: ret\n 3: mov %2, %%rsp"
                         : "+r"(sum), "+r"(left), "=&r"(keep) : "r"(deep_stack + sizeof(deep_stack)) : "cc", "memory");
    }
    EQUAL(sum, 2 * (20 * 3000 + 131 * 190) - 20, "recursion-at-the-edge");
}

static void never_returning(void)
{
    tk_word n = 300000, got = 0;
    __asm__ volatile("1: call 3f\n ud2\n 2: ud2\n 3: lea 8(%%rsp), %%rsp\n inc %1\n dec %0\n jnz 1b" : "+r"(n), "+r"(got) : : "cc", "memory");
    EQUAL(got, 300000, "calls-without-returns");
    n = 300000, got = 0;
    __asm__ volatile("1: lea 2f(%%rip), %%rdx\n push %%rdx\n ret\n ud2\n 2: inc %1\n dec %0\n jnz 1b"
                     : "+r"(n), "+r"(got) : : "rdx", "cc", "memory");
    EQUAL(got, 300000, "returns-without-calls");
}

static void elsewhere(void)
{
    tk_word a = 0, b = 0, n = 3000;
    /* The callee returns behind the call, or, every third time, to 2. */
    __asm__ volatile("1: call 4f\n inc %0\n jmp 3f\n 2: inc %1\n 3: dec %2\n jnz 1b\n jmp 5f\n"
                     "4: mov %2, %%rax\n xor %%edx, %%edx\n mov $3, %%ecx\n div %%rcx\n test %%edx, %%edx\n jnz 6f\n"
                     "lea 2b(%%rip), %%rax\n mov %%rax, (%%rsp)\n 6: ret\n 5:"
                     : "+r"(a), "+r"(b), "+r"(n) : : "rax", "rcx", "rdx", "cc", "memory");
    EQUAL(a, 2000, "return-behind-the-call");
    EQUAL(b, 1000, "return-to-a-changed-address");
    /* A retpoline with three targets. */
    a = b = 0, n = 3000;
    tk_word x = 0;
    __asm__ volatile("1: lea 5f(%%rip), %%rax\n test $1, %b2\n jz 2f\n lea 6f(%%rip), %%rax\n 2: test $4, %b2\n jz 2f\n lea 7f(%%rip), %%rax\n"
                     "2: call 3f\n 8: dec %2\n jnz 1b\n jmp 9f\n"
                     "3: call 4f\n 2: pause\n lfence\n jmp 2b\n .p2align 4\n 4: mov %%rax, (%%rsp)\n ret\n"
                     "5: inc %0\n ret\n 6: inc %1\n ret\n 7: inc %3\n ret\n 9:"
                     : "+r"(a), "+r"(b), "+r"(n), "+r"(x) : : "rax", "cc", "memory");
    EQUAL(a, 750, "retpoline-first-target");
    EQUAL(b, 750, "retpoline-second-target");
    EQUAL(x, 1500, "retpoline-third-target");
    /* RET n, and flags that live across a return. */
    a = 0, n = 1000;
    __asm__ volatile("1: push %2\n push %2\n call 2f\n jnc 3f\n adc $0, %0\n 3: dec %1\n jnz 1b\n jmp 4f\n"
                     "2: bt $0, %1\n ret $16\n 4:" : "+r"(a), "+r"(n) : "r"(5ul) : "cc", "memory");
    EQUAL(a, 500, "flags-across-ret-n");
}

/* Cuts the stack back over many frames, as longjmp() does, then goes on returning. */
static void cut_back(void)
{
    tk_word good = 0, n, keep;
    for (unsigned depth = 1; depth < 200; depth++) {
        n = depth;
        __asm__ volatile("call 1f\n inc %0\n jmp 9f\n"
                         "1: call 2f\n inc %0\n ret\n"
                         "2: mov %%rsp, %2\n call 3f\n 8: ud2\n"
                         "3: dec %1\n jz 4f\n call 3b\n ud2\n"
                         "4: mov %2, %%rsp\n ret\n 9:" : "+r"(good), "+r"(n), "=&r"(keep) : : "cc", "memory");
    }
    EQUAL(good, 2 * 199, "return-after-the-stack-is-cut-back");
}

static tk_word fib(tk_word n)
{
    __asm__ volatile("");
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

/* Coroutines: each return is to the other one's frames. */
extern tk_word other_sp;
tk_word other_sp;
static tk_word co_sum[2];
static uint8_t co_stack[16384] __attribute__((aligned(16)));
void co_switch(void);
__asm__(".globl co_switch\nco_switch: push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n xchg %rsp, other_sp\n"
        " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret");
static void __attribute__((noinline)) co_deep(unsigned self, unsigned n)
{
    if (n)
        co_deep(self, n - 1);
    if (n % 3 == self)
        co_switch();
    __asm__ volatile("");
    co_sum[self] += n;
}
static void co_main(void)
{
    for (unsigned i = 0;; i++)
        co_deep(1, i % 17);
}
static void coroutines(void)
{
    tk_word *sp = (tk_word *)(co_stack + sizeof(co_stack) - 16);
    *--sp = (tk_word)co_main;
    sp -= 6;
    other_sp = (tk_word)sp;
    for (unsigned i = 0; i < 2000; i++)
        co_deep(0, 20);
    EQUAL(co_sum[0], 2000 * 210, "returns-on-two-stacks");
    CHECK(co_sum[1] > 1000, "the-other-stack-ran-too");
}

/* Interrupts switch between two stacks in the middle of recursion. */
static volatile uint64_t ticks;
static struct tk_frame parked;
static volatile bool preempt;
static volatile tk_word background;
static uint8_t bg_stack[16384] __attribute__((aligned(16)));
static void on_tick(struct tk_frame *f)
{
    ticks++;
    if (preempt) {
        struct tk_frame x = *f;
        *f = parked;
        parked = x;
    }
    APIC(0xb0) = 0;
}
static void bg_main(void)
{
    for (;;) {
        if (fib(12) != 144)
            background = 1ul << 40;
        background++;
    }
}
static void preempted(void)
{
    tk_on(0x40, on_tick);
    APIC(0xf0) = 0x1ff;
    APIC(0x3e0) = 0xb;
    APIC(0x320) = 0x40 | 1 << 17;
    APIC(0x380) = 20011;
    __asm__ volatile("sti");
    bool good = true;
    while (ticks < 300)
        good &= fib(15) == 610;
    CHECK(good, "recursion-under-interrupts");
    __asm__ volatile("cli");
    parked.ip = (tk_word)bg_main;
    parked.cs = TK_CODE;
    parked.ss = TK_DATA;
    parked.flags = 0x202;
    parked.sp = (tk_word)(bg_stack + sizeof(bg_stack) - 8);
    preempt = true;
    __asm__ volatile("sti");
    uint64_t end = ticks + 1000;
    good = true;
    while (ticks < end || !background)
        good &= fib(15) == 610;
    preempt = false;
    __asm__ volatile("cli");
    APIC(0x320) = 1 << 16;
    CHECK(good, "recursion-while-stacks-are-switched");
    CHECK(background > 0 && background < 1ul << 40, "recursion-on-the-other-stack");
}

/* One place that calls, and one that jumps, to targets by a pattern; each target needs the flags from before it. */
static tk_word pattern(unsigned kind, tk_word n)
{
    switch (kind) {
    case 0: return 3;
    case 1: return n / 1000 % 8; /* each for a while */
    case 2: return n & 1;
    case 3: return n % 8;
    case 4: return n % 500 == 0; /* rarely another */
    default: return n * 2654435761u >> 7 & 7;
    }
}
static tk_word __attribute__((noinline)) go_round(unsigned kind, bool jump, tk_word rounds)
{
    tk_word sum = 0;
    for (tk_word n = rounds; n; n--) {
        tk_word i = pattern(kind, n);
        if (jump)
            __asm__ volatile("lea 1f(%%rip), %%rax\n lea (%%rax,%1,8), %%rax\n bt $0, %2\n jmp *%%rax\n"
                             ".p2align 4\n 1:\n .set k, 1\n .rept 8\n adc $k, %0\n jmp 2f\n .p2align 4\n .set k, k + k\n .endr\n 2:"
                             : "+b"(sum) : "c"(2 * i), "d"(n) : "rax", "cc");
        else
            __asm__ volatile("lea 1f(%%rip), %%rax\n lea (%%rax,%1,8), %%rax\n bt $0, %2\n call *%%rax\n adc $0, %0\n jmp 2f\n"
                             ".p2align 4\n 1:\n .set k, 1\n .rept 8\n adc $k, %0\n bt $1, %2\n ret\n .p2align 4\n .set k, k + k\n .endr\n 2:"
                             : "+b"(sum) : "c"(2 * i), "d"(n) : "rax", "cc", "memory");
    }
    return sum;
}
static void targets(void)
{
    static const char *const names[] = {"one-target", "another-target-now-and-then", "two-targets-in-turn", "eight-targets",
                                        "a-target-seldom", "targets-without-order"};
    const tk_word rounds = 20000;
    APIC(0x320) = 0x40 | 1 << 17;
    APIC(0x380) = 9973;
    __asm__ volatile("sti");
    for (unsigned kind = 0; kind < 6; kind++) {
        tk_word want = 0, carry = 0;
        for (tk_word n = rounds; n; n--) {
            want += (1ul << pattern(kind, n)) + (n & 1);
            carry += n >> 1 & 1;
        }
        bool good = true;
        for (unsigned i = 0; i < 3; i++)
            good &= go_round(kind, true, rounds) == want && go_round(kind, false, rounds) == want + carry;
        CHECK(good, names[kind]);
    }
    __asm__ volatile("cli");
    APIC(0x320) = 1 << 16;
}

/* --- what it returns to changes ------------------------------------------------------- */
static unsigned emit_call(uint8_t *p, const void *to)
{
    int32_t d = (int32_t)((const uint8_t *)to - (p + 5));
    p[0] = 0xe8;
    memcpy(p + 1, &d, 4);
    return 5;
}
static void emit_mov_ret(uint8_t *p, uint32_t v)
{
    p[0] = 0xb8;
    memcpy(p + 1, &v, 4);
    p[5] = 0xc3;
}

static uint32_t new_value;
static uint8_t *patch_at;
static void __attribute__((noinline)) patch(void) { memcpy(patch_at, &new_value, 4); }
static void __attribute__((noinline)) patch_self_and_caller(void) { patch(); }

static void rewritten(void)
{
    uint8_t *p = page[0] + 32;
    bool good = true;
    patch_at = p + 6;
    emit_mov_ret(p + emit_call(p, patch), 0);
    for (new_value = 1; new_value < 300; new_value++)
        good &= ((uint32_t(*)(void))(tk_word)p)() == new_value;
    CHECK(good, "continuation-rewritten-by-the-callee");
    emit_mov_ret(p + emit_call(p, patch_self_and_caller), 0);
    good = true;
    for (new_value = 1; new_value < 300; new_value++)
        good &= ((uint32_t(*)(void))(tk_word)p)() == new_value;
    CHECK(good, "continuation-rewritten-by-the-callee's-callee");
    /* The callee rewrites what is left of itself, in its own page. */
    uint8_t *q = page[0] + 512;
    static const uint8_t body[] = {0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x89, 0x04, 0x25, 0, 0, 0, 0};
    memcpy(q, body, sizeof(body)); /* mov eax, [new_value]; mov [q + 15], eax; mov eax, imm; ret */
    uint32_t a = (uint32_t)(tk_word)&new_value, b = (uint32_t)(tk_word)(q + 15);
    memcpy(q + 3, &a, 4);
    memcpy(q + 10, &b, 4);
    emit_mov_ret(q + 14, 0);
    p[emit_call(p, q)] = 0xc3;
    good = true;
    for (new_value = 1; new_value < 300; new_value++)
        good &= ((uint32_t(*)(void))(tk_word)p)() == new_value;
    CHECK(good, "callee-rewrites-itself");
}

static void map(unsigned n, const void *to) { pt[n] = (tk_word)to | 7; }
static unsigned remaps;
static bool by_cr3;
static void remap(void)
{
    map(0, page[++remaps & 1]);
    if (by_cr3)
        WRITE_REG("cr3", READ_REG("cr3"));
    else
        __asm__ volatile("invlpg (%0)" : : "r"(VA) : "memory");
}
static void on_break(struct tk_frame *f)
{
    (void)f;
    remap();
}

/* Two pages of the same code but for a constant; the callee exchanges them. */
static void remapped(void)
{
    tk_pml4[1] = (tk_word)pdpt | 7;
    pdpt[0] = (tk_word)pd | 7;
    pd[0] = (tk_word)pt | 7;
    for (unsigned how = 0; how < 2; how++) {
        by_cr3 = how;
        for (unsigned i = 0; i < 2; i++) { /* mov rax, remap; call rax; mov eax, imm; ret */
            uint8_t *p = page[i];
            tk_word to = (tk_word)remap;
            p[0] = 0x48, p[1] = 0xb8;
            memcpy(p + 2, &to, 8);
            p[10] = 0xff, p[11] = 0xd0;
            emit_mov_ret(p + 12, 100 + i);
        }
        map(0, page[remaps & 1]);
        __asm__ volatile("invlpg (%0)" : : "r"(VA) : "memory");
        bool good = true;
        for (unsigned i = 0; i < 200; i++)
            good &= ((uint32_t(*)(void))VA)() == 100 + (remaps & 1);
        CHECK(good, how ? "continuation-remapped-cr3" : "continuation-remapped-invlpg");

        /* The same for a program: its callee asks the kernel. call VA + 0x1000; mov eax, imm; int 0x80 */
        for (unsigned i = 0; i < 2; i++) {
            uint8_t *p = page[i];
            uint32_t v = 200 + i;
            emit_call(p, p + PAGE);
            p[5] = 0xb8;
            memcpy(p + 6, &v, 4);
            p[10] = 0xcd, p[11] = 0x80;
        }
        page[2][0] = 0xcc, page[2][1] = 0xc3;
        map(1, page[2]);
        map(0, page[remaps & 1]);
        WRITE_REG("cr3", READ_REG("cr3"));
        tk_on(3, on_break);
        good = true;
        for (unsigned i = 0; i < 200; i++) {
            tk_run_user(VA, (tk_word)user_stack + sizeof(user_stack), 0x202, TK_USER_CODE);
            good &= tk_got.vector == 0x80 && (uint32_t)tk_user_frame.ax == 200 + (remaps & 1);
        }
        CHECK(good, how ? "program's-continuation-remapped-cr3" : "program's-continuation-remapped-invlpg");
        tk_on(3, NULL);
    }
}

/* The kernel calls, and a program returns to behind that call: it must not get there with the kernel's rights. */
extern char kernel_after[];
static tk_word user_ret_ip, after_cr0;
void __attribute__((noinline)) enter_user(void);
void enter_user(void) { tk_run_user(user_ret_ip, (tk_word)user_stack + sizeof(user_stack), 0x202, TK_USER_CODE); }
static void rights(void)
{
    uint8_t *p = page[3]; /* push kernel_after; ret */
    uint32_t a = (uint32_t)(tk_word)kernel_after;
    p[0] = 0x68;
    memcpy(p + 1, &a, 4);
    p[5] = 0xc3;
    map(3, p);
    user_ret_ip = VA + 3 * PAGE;
    bool good = true;
    for (unsigned i = 0; i < 50; i++) {
        after_cr0 = 0;
        __asm__ volatile("call enter_user\n .globl kernel_after\n kernel_after: mov %%cr0, %%rax\n mov %%rax, %0"
                         : "=m"(after_cr0) : : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "cc", "memory");
        good &= tk_got.vector == 13 && tk_got.ip == (tk_word)kernel_after && (after_cr0 & 1);
    }
    CHECK(good, "program-returns-to-the-kernel's-call");
}

/* --- jumps from page to page: the first page is the same, the second is another in each space, or from now on ------- */
static uint64_t pml4_b[512] __attribute__((aligned(PAGE))), pdpt_b[512] __attribute__((aligned(PAGE)));
static uint64_t pd_b[512] __attribute__((aligned(PAGE))), pt_b[512] __attribute__((aligned(PAGE)));

static bool runs(uint32_t want)
{
    tk_run_user(VA, (tk_word)user_stack + sizeof(user_stack), 0x202, TK_USER_CODE);
    return tk_got.vector == 0x80 && (uint32_t)tk_user_frame.ax == want;
}

static void other_pages(void)
{
    uint32_t r[4];
    memset(page, 0, sizeof(page));
    uint8_t *a = page[0], *b;
    /* xor eax, eax; call next page; test eax, eax; jnz next page + 16; ud2 */
    a[0] = 0x31, a[1] = 0xc0, a[2] = 0xe8;
    int32_t d = PAGE - 7;
    memcpy(a + 3, &d, 4);
    a[7] = 0x85, a[8] = 0xc0, a[9] = 0x0f, a[10] = 0x85;
    d = PAGE + 16 - 15;
    memcpy(a + 11, &d, 4);
    a[15] = 0x0f, a[16] = 0x0b;
    for (unsigned i = 1; i < 3; i++) { /* mov eax, 1000 i; ret; at 16: add eax, i; int 0x80 */
        b = page[i];
        emit_mov_ret(b, 1000 * i);
        b[16] = 0x83, b[17] = 0xc0, b[18] = (uint8_t)i, b[19] = 0xcd, b[20] = 0x80;
    }
    map(0, a);
    map(1, page[1]);
    memcpy(pml4_b, tk_pml4, sizeof(pml4_b));
    pml4_b[1] = (tk_word)pdpt_b | 7;
    pdpt_b[0] = (tk_word)pd_b | 7;
    pd_b[0] = (tk_word)pt_b | 7;
    pt_b[0] = (tk_word)a | 7;
    pt_b[1] = (tk_word)page[2] | 7;
    WRITE_REG("cr3", tk_pml4);
    bool good = true;
    for (unsigned i = 0; i < 100; i++) {
        map(1, page[1 + i % 2]);
        __asm__ volatile("invlpg (%0)" : : "r"(VA + PAGE) : "memory");
        for (unsigned j = 0; j < i % 5; j++)
            good &= runs(1001 * (1 + i % 2));
    }
    CHECK(good, "second-page-remapped-invlpg");
    good = true;
    for (unsigned i = 0; i < 100; i++) {
        map(1, page[1 + i % 2]);
        WRITE_REG("cr3", tk_pml4);
        for (unsigned j = 0; j < i % 5; j++)
            good &= runs(1001 * (1 + i % 2));
    }
    CHECK(good, "second-page-remapped-cr3");
    map(1, page[1]);
    good = true;
    for (unsigned i = 0; i < 100; i++) {
        WRITE_REG("cr3", i & 1 ? pml4_b : tk_pml4);
        for (unsigned j = 0; j < i % 7; j++)
            good &= runs(1001 * (1 + (i & 1)));
    }
    CHECK(good, "another-second-page-in-each-space");
    /* Not there at all: a page fault, and afterwards the page. */
    WRITE_REG("cr3", tk_pml4);
    good = true;
    for (unsigned i = 0; i < 20; i++) {
        pt[1] = 0;
        __asm__ volatile("invlpg (%0)" : : "r"(VA + PAGE) : "memory");
        tk_run_user(VA, (tk_word)user_stack + sizeof(user_stack), 0x202, TK_USER_CODE);
        good &= tk_got.vector == 14 && tk_got.cr2 == VA + PAGE && tk_got.ip == VA + PAGE;
        map(1, page[1]);
        good &= runs(1001) && runs(1001);
    }
    CHECK(good, "second-page-unmapped");
    cpuid(1, 0, r);
    if (!(r[2] & 1 << 17)) {
        tk_skip("another-second-page-in-each-pcid", "no PCIDs");
        return;
    }
    WRITE_REG("cr3", tk_pml4);
    WRITE_REG("cr4", READ_REG("cr4") | 1 << 17);
    good = true;
    for (unsigned i = 0; i < 200; i++) {
        WRITE_REG("cr3", (i & 1 ? (tk_word)pml4_b | 2 : (tk_word)tk_pml4 | 1) | 1ul << 63);
        for (unsigned j = 0; j < i % 7; j++)
            good &= runs(1001 * (1 + (i & 1)));
    }
    CHECK(good, "another-second-page-in-each-pcid");
    /* One of them gets the other's page while it does not run; its next load flushes. */
    good = true;
    for (unsigned i = 0; i < 100; i++) {
        pt_b[1] = (tk_word)page[1 + (i >> 1 & 1)] | 7;
        WRITE_REG("cr3", (tk_word)pml4_b | 2);
        good &= runs(1001 * (1 + (i >> 1 & 1)));
        WRITE_REG("cr3", (tk_word)tk_pml4 | 1 | 1ul << 63);
        good &= runs(1001) && runs(1001);
    }
    CHECK(good, "second-page-remapped-in-another-pcid");
    WRITE_REG("cr3", tk_pml4);
    WRITE_REG("cr4", READ_REG("cr4") & ~(tk_word)(1 << 17));
}

/* Paths over taken branches, jumps and calls get hot under a fast timer, change direction, and are then rewritten. */
extern uint8_t hot_a[], hot_b[], hot_c[];
static void hot_paths(void)
{
    bool good = true, turned = true, rewritten = true;
    APIC(0x320) = 0x40 | 1 << 17;
    APIC(0x380) = 9973;
    for (uint32_t round = 1; round < 40; round++) {
        uint32_t want = 0;
        uint64_t sum = 0, n = 40000, mask = round & 8 ? 0 : 4; /* which way the branch mostly goes */
        uint32_t a = 3 * round, b = 5 * round, c = 7 * round;
        memcpy(hot_a + 1, &a, 4);
        memcpy(hot_b + 1, &b, 4);
        memcpy(hot_c + 1, &c, 4);
        for (uint64_t i = n; i; i--)
            want += ((i & 63 ? mask : 4 - mask) ? a : b) + c + 2; /* one by INC or by ADC */
        __asm__ volatile("sti\n 1: mov %2, %%rdx\n test $63, %b1\n jnz 2f\n xor $4, %%rdx\n 2: test $4, %%dl\n jnz 4f\n"
                         ".globl hot_b\n hot_b: mov $0, %%eax\n jmp 5f\n ud2\n"
                         ".globl hot_a\n 4: hot_a: mov $0, %%eax\n"
                         "5: push %%rax\n mov %1, %%rax\n xor %%edx, %%edx\n mov $3, %%ecx\n div %%rcx\n pop %%rax\n cmp $1, %%edx\n"
                         "call 7f\n add %%rax, %0\n dec %1\n jnz 1b\n jmp 9f\n"
                         "7: jnc 8f\n inc %%eax\n 8: cmc\n adc $0, %%eax\n sbb $0, %%eax\n inc %%eax\n"
                         ".globl hot_c\n hot_c: mov $0, %%ecx\n add %%ecx, %%eax\n ret\n 9: cli"
                         : "+r"(sum), "+r"(n) : "r"(mask) : "rax", "rcx", "rdx", "cc", "memory");
        bool ok = (uint32_t)sum == want;
        good &= ok || round >= 8;
        turned &= ok || (round & 7);
        rewritten &= ok;
    }
    APIC(0x320) = 1 << 16;
    CHECK(good, "hot-paths");
    CHECK(turned, "hot-paths-that-turn");
    CHECK(rewritten, "hot-paths-rewritten");
}

void tk_main(void)
{
    deep();
    never_returning();
    elsewhere();
    cut_back();
    coroutines();
    preempted();
    targets();
    hot_paths();
    rewritten();
    remapped();
    other_pages();
    rights();
}
