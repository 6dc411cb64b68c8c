/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jumps, calls and returns whose target is mapped elsewhere or rewritten after they have run once: for engines that
 * link a jump with its target, or remember where a call returns to. Each case has pages at addresses of its own, for
 * such an engine may give up on an address that changes often. Where `indirect` is set the jump to the other page is
 * through a register, to one target, as a guess would have it. Needs 2 vCPUs.
 */
#include "tk.h"

#define PAGE 4096ul
#define VA 0x8000000000ul
#define BIG 0x4000000ul /* physical memory that nobody uses */
#define SPACES 12
#define ROUNDS 6
#define G 0x100
#define APIC(reg) (*(volatile uint32_t *)(0xfee00000ul + (reg)))

extern uint8_t tk_ap_code[], tk_ap_code_end[];
extern tk_word tk_ap_stack;
extern void (*tk_ap_entry)(void);
extern uint64_t tk_pml4[512];

/* Space 0 is that of the boot; pages differ in VA's 2 MiB alone. */
struct space {
    uint64_t pml4[512], pdpt[512], pd[512], pt[512];
};
static struct space space[SPACES] __attribute__((aligned(PAGE)));
static uint64_t big_pt[512] __attribute__((aligned(PAGE)));
static uint8_t frame[4][PAGE] __attribute__((aligned(PAGE)));
static uint8_t user_stack[PAGE] __attribute__((aligned(16)));
static uint8_t ap_stack[16384] __attribute__((aligned(16)));
static unsigned next_page;

/* A pair of pages that has not been used. */
static tk_word fresh(void)
{
    next_page += 2;
    return VA + (next_page - 2) * PAGE;
}
static void map(unsigned s, tk_word va, const void *to) { space[s].pt[va / PAGE % 512] = (tk_word)to | 7; }
static void invlpg(tk_word va) { __asm__ volatile("invlpg (%0)" : : "r"(va) : "memory"); }
static void load(unsigned s) { WRITE_REG("cr3", space[s].pml4); }
static void load_pcid(unsigned s, bool flush) { WRITE_REG("cr3", (tk_word)space[s].pml4 | (s + 1) | (flush ? 0 : 1ul << 63)); }

static void emit_jmp(uint8_t *p, unsigned opcode, long distance)
{
    int32_t d = (int32_t)(distance - 5);
    p[0] = (uint8_t)opcode;
    memcpy(p + 1, &d, 4);
}
static bool indirect;
static const char *named(const char *name) /* until the next one */
{
    static char with[96];
    unsigned n = 0;
    for (const char *p = indirect ? "indirect-" : ""; *p; p++)
        with[n++] = *p;
    for (; *name && n + 1 < sizeof(with); name++)
        with[n++] = *name;
    with[n] = 0;
    return with;
}
/* To `distance` from p: jmp, or lea rax, [there]; jmp rax */
static void emit_go(uint8_t *p, long distance)
{
    if (!indirect) {
        emit_jmp(p, 0xe9, distance);
        return;
    }
    p[0] = 0x48;
    int32_t d = (int32_t)(distance - 7);
    p[1] = 0x8d, p[2] = 0x05;
    memcpy(p + 3, &d, 4);
    p[7] = 0xff, p[8] = 0xe0;
}
static void emit_end(uint8_t *p, uint32_t v) /* mov eax, v; int 0x80 */
{
    p[0] = 0xb8;
    memcpy(p + 1, &v, 4);
    p[5] = 0xcd, p[6] = 0x80;
}
static bool runs(tk_word va, uint32_t want)
{
    tk_run_user(va, (tk_word)user_stack + sizeof(user_stack), 0x202, TK_USER_CODE);
    return tk_got.vector == 0x80 && (uint32_t)tk_user_frame.ax == want;
}
/* frame[0] jumps to the next page; frames 1 to 3 there end with their number. */
static void emit_pages(void)
{
    emit_go(frame[0], PAGE);
    for (unsigned i = 1; i < 4; i++)
        emit_end(frame[i], i);
}

static void setup(void)
{
    for (unsigned s = 0; s < SPACES; s++) {
        memcpy(space[s].pml4, tk_pml4, PAGE);
        space[s].pml4[1] = (tk_word)space[s].pdpt | 7;
        space[s].pdpt[0] = (tk_word)space[s].pd | 7;
        space[s].pd[0] = (tk_word)space[s].pt | 7;
    }
    load(0);
}

static void second_page(void)
{
    bool by_invlpg = true, by_cr3 = true, by_other = true, gone = true;
    for (unsigned r = 0; r < ROUNDS; r++) {
        tk_word va = fresh();
        emit_pages();
        map(0, va, frame[0]);
        map(0, va + PAGE, frame[1]);
        by_invlpg &= runs(va, 1) && runs(va, 1);
        map(0, va + PAGE, frame[2]);
        invlpg(va + PAGE);
        by_invlpg &= runs(va, 2) && runs(va, 2);
        map(0, va + PAGE, frame[3]);
        load(0);
        by_cr3 &= runs(va, 3) && runs(va, 3);
        map(1, va, frame[0]);
        map(1, va + PAGE, frame[2]);
        load(1);
        by_other &= runs(va, 2) && runs(va, 2);
        load(0);
        by_other &= runs(va, 3) && runs(va, 3);
        space[0].pt[va / PAGE % 512 + 1] = 0;
        invlpg(va + PAGE);
        tk_run_user(va, (tk_word)user_stack + sizeof(user_stack), 0x202, TK_USER_CODE);
        gone &= tk_got.vector == 14 && tk_got.cr2 == va + PAGE && tk_got.ip == va + PAGE;
        map(0, va + PAGE, frame[1]);
        gone &= runs(va, 1);
    }
    CHECK(by_invlpg, named("second-page-invlpg"));
    CHECK(by_cr3, named("second-page-cr3"));
    CHECK(by_other, named("second-page-other-space"));
    CHECK(gone, named("second-page-gone"));
}

/* The chain is verified while the second page lies in 4 KiB; then it is part of 2 MiB, which move. */
static void large(void)
{
    bool good = true;
    tk_word big_va = VA + (2ul << 20), jump = VA + 511 * PAGE;
    for (unsigned i = 0; i < 2; i++)
        emit_end((uint8_t *)BIG + i * (2ul << 20), 10 + i);
    emit_go(frame[0] + 16, (long)(big_va - (jump + 16)));
    map(0, jump, frame[0]);
    for (unsigned i = 0; i < 512; i++)
        big_pt[i] = (BIG + i * PAGE) | 7;
    space[0].pd[1] = (tk_word)big_pt | 7;
    load(0);
    good &= runs(jump + 16, 10) && runs(jump + 16, 10);
    space[0].pd[1] = BIG | 0x87;
    load(0);
    good &= runs(jump + 16, 10);
    space[0].pd[1] = (BIG + (2ul << 20)) | 0x87;
    invlpg(big_va + 100 * PAGE);
    good &= runs(jump + 16, 11);
    space[0].pd[1] = 0;
    load(0);
    UNLESS_TCG(named("second-page-becomes-large")) CHECK(good, named("second-page-becomes-large"));
}

/* An instruction reaches into the second page, and nothing else does. */
static void straddling(void)
{
    bool good = true, by_cr3 = true;
    for (unsigned r = 0; r < ROUNDS; r++) {
        tk_word va = fresh();
        uint8_t *p = frame[0];
        memset(frame, 0, sizeof(frame));
        emit_go(p, 4094);
        emit_end(p + 0x100, 1);
        emit_end(p + 0x200, 2);
        for (unsigned i = 1; i < 3; i++) { /* at 4094: jmp to 0x100 or to 0x200 */
            uint8_t insn[5];
            emit_jmp(insn, 0xe9, (long)i * 0x100 - 4094);
            memcpy(p + 4094, insn, 2);
            memcpy(frame[i], insn + 2, 3);
        }
        map(0, va, p);
        map(0, va + PAGE, frame[1]);
        good &= runs(va, 1) && runs(va, 1);
        map(0, va + PAGE, frame[2]);
        invlpg(va + PAGE);
        good &= runs(va, 2) && runs(va, 2);
        map(0, va + PAGE, frame[1]);
        load(0);
        by_cr3 &= runs(va, 1) && runs(va, 1);
    }
    CHECK(good, named("straddling-jump-invlpg"));
    CHECK(by_cr3, named("straddling-jump-cr3"));
}

/* What a call returns to is another page meanwhile. Calls and returns alone lead to it, as from the second time on. */
static tk_word remap_va;
static unsigned remap_how;
static void on_break(struct tk_frame *f)
{
    (void)f;
    map(0, remap_va, frame[2]);
    if (remap_how)
        load(0);
    else
        invlpg(remap_va);
}
static void continuation(void)
{
    tk_on(3, on_break);
    for (remap_how = 0; remap_how < 2; remap_how++) {
        bool good = true;
        for (unsigned r = 0; r < ROUNDS; r++) {
            tk_word va = fresh(), to = va + PAGE;
            memset(frame, 0, sizeof(frame));
            /* mov rax, second page; mov ecx, 3; 15: call rax; dec ecx; jnz 15 */
            static const uint8_t loop[] = {0xb9, 3, 0, 0, 0, 0xff, 0xd0, 0xff, 0xc9, 0x75, 0xfa};
            /* cmp ecx, 1; jne 6; int3; 6: ret */
            static const uint8_t callee[] = {0x83, 0xf9, 1, 0x75, 1, 0xcc, 0xc3};
            for (unsigned i = 1; i < 3; i++) {
                frame[i][0] = 0x48, frame[i][1] = 0xb8;
                memcpy(frame[i] + 2, &to, 8);
                memcpy(frame[i] + 10, loop, sizeof(loop));
                emit_end(frame[i] + 21, i);
            }
            memcpy(frame[0], callee, sizeof(callee));
            map(0, va, frame[1]);
            map(0, to, frame[0]);
            remap_va = va;
            good &= runs(va, 2);
        }
        CHECK(good, remap_how ? "continuation-remapped-cr3" : "continuation-remapped-invlpg");
    }
    tk_on(3, NULL);
}

/* The first page is common to two spaces, and goes on by `way`: 0 to the second, common too; 1 to the third, of each
 * space its own; 2 nowhere. In the one space it first goes another way than in the other. */
static volatile uint32_t way;
static bool ways(tk_word va, unsigned s, uint32_t w, uint32_t want)
{
    load_pcid(s, false);
    way = w;
    return runs(va, want) && runs(va, want);
}
static void common_page(void)
{
    bool in_page = true, in_second = true;
    for (unsigned r = 0; r < 2 * ROUNDS; r++) {
        static const uint8_t cmp[] = {0x83, 0x3c, 0x25, 0, 0, 0, 0, 1, 0x0f}; /* cmp dword [way], 1; je; jb */
        tk_word va = fresh();
        uint8_t *p = frame[0];
        uint32_t at = (uint32_t)(tk_word)&way;
        fresh();
        memcpy(p, cmp, sizeof(cmp));
        memcpy(p + 3, &at, 4);
        emit_jmp(p + 9, 0x84, 2 * PAGE - 9);
        p[14] = 0x0f;
        emit_jmp(p + 15, 0x82, PAGE - 15);
        emit_end(p + 20, 9);
        for (unsigned i = 1; i < 4; i++)
            emit_end(frame[i], i);
        for (unsigned s = 0; s < 2; s++) {
            map(s, va, p);
            map(s, va + PAGE, frame[1]);
            map(s, va + 2 * PAGE, frame[2 + s]);
        }
        if (r & 1)
            in_page &= ways(va, 0, 2, 9) && ways(va, 1, 1, 3) && ways(va, 0, 1, 2);
        else
            in_second &= ways(va, 0, 0, 1) && ways(va, 1, 0, 1) && ways(va, 1, 1, 3) && ways(va, 0, 1, 2);
    }
    CHECK(in_page, named("another-way-in-another-pcid"));
    CHECK(in_second, named("another-way-in-another-pcid-after-a-common-one"));
}

static void invpcid(unsigned type, unsigned pcid, tk_word va)
{
    uint64_t d[2] = {pcid, va};
    __asm__ volatile("invpcid %0, %1" : : "m"(d), "r"((uint64_t)type) : "memory");
}

static void pcids(void)
{
    static const char *const names[] = {"second-page-pcids", "second-page-many-pcids", "second-page-other-pcid-loaded",
                                        "second-page-invpcid-address", "second-page-invpcid-context", "second-page-invpcid-all",
                                        "second-page-global", "another-way-in-another-pcid",
                                        "another-way-in-another-pcid-after-a-common-one"};
    uint32_t r[4], r7[4];
    cpuid(1, 0, r);
    cpuid(7, 0, r7);
    if (!(r[2] & 1 << 17)) {
        for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
            tk_skip(named(names[i]), "no PCIDs");
        return;
    }
    load(0);
    WRITE_REG("cr4", READ_REG("cr4") | 1 << 17 | 1 << 7);
    bool good = true;
    emit_pages();
    for (unsigned i = 0; i < ROUNDS; i++) { /* two spaces; only one has the chain, then both */
        tk_word va = fresh();
        for (unsigned s = 0; s < 2; s++) {
            map(s, va, frame[0]);
            map(s, va + PAGE, frame[1 + s]);
        }
        for (unsigned j = 0; j < 4; j++)
            for (unsigned s = 0; s < 2; s++) {
                load_pcid(s, false);
                good &= runs(va, 1 + s) && runs(va, 1 + s);
            }
    }
    CHECK(good, named(names[0]));
    good = true;
    for (unsigned i = 0; i < 2; i++) {
        tk_word va = fresh();
        for (unsigned s = 0; s < SPACES; s++) {
            map(s, va, frame[0]);
            map(s, va + PAGE, frame[1 + (s + i) % 3]);
        }
        for (unsigned j = 0; j < 4; j++)
            for (unsigned s = 0; s < SPACES; s++) {
                load_pcid(s, false);
                good &= runs(va, 1 + (s + i) % 3) && runs(va, 1 + (s + i) % 3);
            }
    }
    CHECK(good, named(names[1]));
    for (unsigned how = 0; how < 5; how++) { /* it changes while the other space is the current one */
        if (how >= 1 && how <= 3 && !(r7[1] & 1 << 10)) {
            tk_skip(named(names[2 + how]), "no INVPCID");
            continue;
        }
        good = true;
        for (unsigned i = 0; i < ROUNDS; i++) {
            tk_word va = fresh();
            uint64_t *e = &space[0].pt[va / PAGE % 512];
            map(0, va, frame[0]);
            map(0, va + PAGE, frame[1]);
            if (how == 4)
                e[0] |= G, e[1] |= G;
            load_pcid(0, false);
            good &= runs(va, 1) && runs(va, 1);
            load_pcid(1, false);
            map(0, va + PAGE, frame[2]);
            switch (how) {
            case 1: invpcid(0, 1, va + PAGE); break;
            case 2: invpcid(1, 1, 0); break;
            case 3: invpcid(2, 0, 0); break;
            case 4: e[1] |= G; invlpg(va + PAGE); break;
            }
            load_pcid(0, how == 0);
            good &= runs(va, 2) && runs(va, 2);
        }
        CHECK(good, named(names[2 + how]));
    }
    common_page();
    load(0);
    WRITE_REG("cr4", READ_REG("cr4") & ~(tk_word)(1 << 17 | 1 << 7));
}

/* A path that gets hot under a fast timer, over a branch and a call. What stands behind the call is rewritten by the
 * callee, or by the other CPU while the callee waits. */
extern uint8_t chains_hot[];
static volatile uint32_t new_value, patched;
static volatile uint32_t ap_alive, ask;
static volatile bool by_ap;
void chains_callee(void);
void chains_callee(void)
{
    new_value = new_value * 5 + 1;
    patched++;
    if (by_ap) {
        uint32_t r[4];
        ask = 1;
        while (ask)
            __asm__ volatile("pause");
        cpuid(0, 0, r);
    } else {
        memcpy(chains_hot + 1, (const void *)&new_value, 4);
    }
}
static void on_tick(struct tk_frame *f)
{
    (void)f;
    APIC(0xb0) = 0;
}
static void ap_main(void)
{
    ap_alive = 1;
    for (;;) {
        while (!ask)
            __asm__ volatile("pause");
        memcpy(chains_hot + 1, (const void *)&new_value, 4);
        ask = 0;
    }
}
static void __attribute__((noinline)) hot_path(void) /* it has a label for all to see */
{
    bool good = true;
    uint32_t v = new_value, want = 0;
    uint64_t sum = 0, n = 400000;
    memcpy(chains_hot + 1, &v, 4);
    for (uint64_t i = n; i; i--) {
        v = i % 20000 ? v : v * 5 + 1;
        want += v;
    }
    APIC(0x320) = 0x40 | 1 << 17;
    APIC(0x380) = 9973;
    __asm__ volatile("sti\n"
                     "1: mov %1, %%rax\n xor %%edx, %%edx\n mov $20000, %%ecx\n div %%rcx\n"
                     "mov %1, %%rax\n mov %%rdx, %%rsi\n xor %%edx, %%edx\n div %%rcx\n test %1, %1\n jnz 2f\n ud2\n"
                     "2: call 7f\n .globl chains_hot\n chains_hot: mov $0, %%eax\n add %%rax, %0\n dec %1\n jnz 1b\n jmp 9f\n"
                     "7: test %%rsi, %%rsi\n jnz 8f\n call chains_callee\n 8: ret\n 9: cli"
                     : "+b"(sum), "+r"(n) : : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "cc", "memory");
    APIC(0x320) = 1 << 16;
    good &= (uint32_t)sum == want && patched == 20;
    patched = 0;
    CHECK(good, by_ap ? "hot-continuation-rewritten-by-another-cpu" : "hot-continuation-rewritten-by-the-callee");
}
static bool start_ap(void)
{
    memcpy((void *)0x8000, tk_ap_code, (size_t)(tk_ap_code_end - tk_ap_code));
    tk_ap_stack = (tk_word)(ap_stack + sizeof(ap_stack));
    tk_ap_entry = ap_main;
    APIC(0x300) = 0xc4500;
    tk_delay_us(10000);
    APIC(0x300) = 0xc4608;
    for (int i = 0; i < 20 && !ap_alive; i++)
        tk_delay_us(10000);
    if (!ap_alive)
        APIC(0x300) = 0xc4608;
    for (int i = 0; i < 50 && !ap_alive; i++)
        tk_delay_us(10000);
    return ap_alive;
}

void tk_main(void)
{
    setup();
    for (unsigned i = 0; i < 2; i++) {
        indirect = i;
        second_page();
        large();
        straddling();
        if (!i)
            continuation();
        pcids();
        next_page = 0x100; /* large() has taken the last one of the first 512 */
    }
    WRITE_REG("cr3", tk_pml4);
    tk_on(0x40, on_tick);
    APIC(0xf0) = 0x1ff;
    APIC(0x3e0) = 0xb;
    hot_path();
    CHECK(start_ap(), "the-other-cpu-starts");
    by_ap = true;
    hot_path();
}
