/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Supervisor code in the upper half, as kernels are, and its data there: what an engine may do to make such accesses
 * fast must not show. Remapping, rights, large pages, address spaces, devices, user memory, code that is written to,
 * flags and faults in between, per-CPU data, two CPUs.
 *
 * The image is mapped at HIGH as well; the small routines below run there.
 */
#include "tk.h"

#define HIGH 0xffffffff80000000ul
#define VA 0xffffc90000000000ul
#define BIG 0xffff888040000000ul
#define P 1ul
#define W 2ul
#define U 4ul
#define A 0x20ul
#define D 0x40ul
#define PS 0x80ul
#define G 0x100ul
#define APIC(reg) (*(volatile uint32_t *)(0xfee00000ul + (reg)))

extern uint64_t tk_pml4[512], tk_pd[2048];
extern uint8_t tk_ap_code[], tk_ap_code_end[];
extern tk_word tk_ap_stack;
extern void (*tk_ap_entry)(void);

#define PAGE __attribute__((aligned(4096)))
static uint64_t high_pdpt[512] PAGE, va_pdpt[512] PAGE, va_pd[512] PAGE, va_pt[512] PAGE;
static uint64_t big_pdpt[512] PAGE, big_pd[512] PAGE;
static uint64_t big_pt[512] PAGE, other_root[512] PAGE, other_pdpt[512] PAGE, other_pd[512] PAGE, other_pt[512] PAGE;
static uint64_t page_a[512] PAGE, page_b[512] PAGE, page_c[512] PAGE, code[512] PAGE, high_stack[1024] PAGE;
static uint8_t ap_stack[16384] __attribute__((aligned(16)));
static uint64_t g; /* G, or not */
static char name[64];

/* A few accesses each; a fault goes on at d_ret. rdi: address, rsi: value. */
__asm__(".text\n.balign 64\n.globl d_start, d_end, d_ret, d_load, d_load32, d_store, d_add, d_xadd, d_cmpxchg, d_bts, d_gs,"
        " d_gs_store, d_push, d_pop, d_pushm, d_leave, d_calls, d_sum, d_swapgs, d_copy, d_fn, d_r13\n"
        "d_start:\n"
        "d_load: mov (%rdi), %rax\nret\n"
        "d_load32: mov (%rdi), %eax\nret\n"
        "d_store: mov %rsi, (%rdi)\nxor %eax, %eax\nret\n"
        "d_add: addq %rsi, (%rdi)\nxor %eax, %eax\nret\n"
        "d_xadd: lock xaddq %rsi, (%rdi)\nmov %rsi, %rax\nret\n"
        "d_cmpxchg: mov %rsi, %rax\nlock cmpxchgq %rdx, (%rdi)\nsetz %al\nmovzbl %al, %eax\nret\n"
        "d_bts: lock btsq %rsi, (%rdi)\nsetc %al\nmovzbl %al, %eax\nret\n"
        "d_gs: mov %gs:(%rdi), %rax\nret\n"
        "d_gs_store: mov %rsi, %gs:8(%rdi)\nxor %eax, %eax\nret\n"
        "d_swapgs: swapgs\nmov %gs:(%rdi), %rax\nswapgs\nret\n"
        "d_push: mov %rsp, %rdx\nmov %rdi, %rsp\npush %rsi\nmov %rsp, %rax\nmov %rdx, %rsp\nret\n"
        "d_pop: mov %rsp, %rdx\nmov %rdi, %rsp\npop %rax\nadd %rsp, %rax\nmov %rdx, %rsp\nret\n"
        "d_pushm: mov %rsp, %rdx\nmov %rsi, %rsp\npushq (%rdi)\npopq 8(%rdi)\nmov %rdx, %rsp\nxor %eax, %eax\nret\n"
        "d_leave: mov %rsp, %rdx\nmov %rbp, %rcx\nmov %rdi, %rbp\nleave\nmov %rbp, %rax\nsub %rsp, %rax\nmov %rdx, %rsp\n"
        "mov %rcx, %rbp\nret\n"
        "d_calls: mov %rsp, %rdx\nmov %rdi, %rsp\ncall 1f\ncall 1f\nlea 1f(%rip), %rcx\ncall *%rcx\nmov %rdx, %rsp\nret\n"
        "1: lea (%rsi, %rsi), %rsi\nmov %rsi, %rax\nret $0\n"
        "d_sum: xor %eax, %eax\n1: add (%rdi), %rax\nadd $8, %rdi\ndec %rsi\njnz 1b\nret\n"
        "d_copy: mov %rdx, %rcx\nrep movsb\nxor %eax, %eax\nret\n"
        "d_r13: push %r13\npush %r14\nmov %rdi, %r13\nmov $8, %r14d\nmov %rsi, (%r13)\nmov %rsi, 8(%r13, %r14)\n"
        "addq $1, (%r13, %r14, 2)\nmov (%r13), %r14\nmov %r14, %rax\npop %r14\npop %r13\nret\n"
        "d_fn: mov $7, %eax\nret\n"
        "d_ret: ret\n"
        "d_end:\n");
typedef uint64_t (*routine)(uint64_t, uint64_t, uint64_t);
#define X(n) extern uint8_t n[];
X(d_start) X(d_end) X(d_ret) X(d_load) X(d_load32) X(d_store) X(d_add) X(d_xadd) X(d_cmpxchg) X(d_bts) X(d_gs) X(d_gs_store)
X(d_push) X(d_pop) X(d_pushm) X(d_leave) X(d_calls) X(d_sum) X(d_swapgs) X(d_copy) X(d_fn) X(d_r13)
#undef X

static volatile struct { uint64_t n, error, cr2, flags; int vector; } fault;

static uint64_t run(void *at, uint64_t a, uint64_t b, uint64_t c)
{
    fault.n = 0;
    return ((routine)(HIGH + (tk_word)at))(a, b, c);
}
static uint64_t load(uint64_t a) { return run(d_load, a, 0, 0); }
static uint64_t store(uint64_t a, uint64_t v) { return run(d_store, a, v, 0); }

static void on_fault(struct tk_frame *f)
{
    fault.n++;
    fault.vector = (int)f->vector;
    fault.error = f->error;
    fault.cr2 = f->vector == 14 ? READ_REG("cr2") : 0;
    fault.flags = f->flags;
    if (f->ip - HIGH < (tk_word)d_start || f->ip - HIGH >= (tk_word)d_end || fault.n > 4) {
        tk_say("unexpected trap %d at %p, error %p, cr2 %p", fault.vector, f->ip, f->error, fault.cr2);
        tk_result(false, "no-unexpected-trap");
        tk_exit();
    }
    f->ip = HIGH + (tk_word)d_ret;
}
static bool faulted(int vector, uint64_t error, uint64_t cr2)
{
    bool good = fault.n == 1 && fault.vector == vector && fault.error == error && (vector != 14 || fault.cr2 == cr2);
    if (!good)
        tk_say("%u faults; vector %d error %p cr2 %p", (unsigned)fault.n, fault.vector, fault.error, fault.cr2);
    return good;
}

static void invlpg(uint64_t a) { __asm__ volatile("invlpg (%0)" : : "r"(a) : "memory"); }
static void point(unsigned i, const void *page, uint64_t rights)
{
    va_pt[i] = page ? (tk_word)page | rights | g : 0;
    invlpg(VA + i * 4096ul);
}

static const char *named(const char *what)
{
    unsigned n = 0;
    for (const char *p = g ? "global-" : "local-"; *p;)
        name[n++] = *p++;
    while (*what && n < sizeof(name) - 1)
        name[n++] = *what++;
    name[n] = 0;
    return name;
}
#define OK(cond, what) CHECK(cond, named(what))

static void remaps(void)
{
    page_a[0] = 0xa, page_b[0] = 0xb, page_c[0] = 0xc;
    point(0, page_a, P | W);
    OK(load(VA) == 0xa && !fault.n, "load");
    OK((va_pt[0] & (A | D)) == A, "accessed");
    store(VA, 0xaa);
    OK(page_a[0] == 0xaa && (va_pt[0] & D) && !fault.n, "store-and-dirty");
    bool good = true;
    for (unsigned i = 0; i < 200; i++) {
        uint64_t *p = i & 1 ? page_a : page_b;
        p[0] = i;
        point(0, p, P | W);
        good &= load(VA) == i && !fault.n;
        store(VA, i + 1000);
        good &= p[0] == i + 1000;
    }
    OK(good, "remap-and-invlpg");
    point(0, page_a, P);
    page_a[0] = 5;
    OK(load(VA) == 5, "read-only-load");
    store(VA, 6);
    OK(faulted(14, 3, VA) && page_a[0] == 5 && !(va_pt[0] & D), "read-only-store");
    WRITE_REG("cr0", READ_REG("cr0") & ~0x10000ul);
    store(VA, 7);
    OK(!fault.n && page_a[0] == 7, "write-protection-off");
    WRITE_REG("cr0", READ_REG("cr0") | 0x10000ul);
    store(VA, 8);
    OK(faulted(14, 3, VA) && page_a[0] == 7, "write-protection-on");
    va_pt[0] |= W;
    invlpg(VA);
    store(VA, 9);
    OK(!fault.n && page_a[0] == 9, "writable-again");
    va_pd[0] &= ~W;
    invlpg(VA);
    store(VA, 10);
    OK(faulted(14, 3, VA), "directory-read-only");
    va_pd[0] |= W;
    invlpg(VA);
    va_pt[0] &= ~(A | D);
    invlpg(VA);
    load(VA);
    OK((va_pt[0] & (A | D)) == A, "accessed-again");
    run(d_add, VA, 1, 0);
    OK((va_pt[0] & (A | D)) == (A | D) && page_a[0] == 10, "dirty-again");
    point(0, NULL, 0);
    load(VA);
    OK(faulted(14, 0, VA), "absent-load");
    store(VA + 8, 0);
    OK(faulted(14, 2, VA + 8), "absent-store");
    va_pt[0] = (tk_word)page_b | P | W | g; /* present: nothing to flush */
    page_b[0] = 3;
    OK(load(VA) == 3 && !fault.n, "present-again");
}

static void crossings(void)
{
    point(0, page_c, P | W);
    point(1, page_a, P | W);
    page_c[511] = 0x1122334455667788;
    page_a[0] = 0x99aabbccddeeff00;
    OK(load(VA + 4092) == 0xddeeff0011223344, "load-across");
    store(VA + 4092, 0x0102030405060708);
    OK(page_c[511] == 0x0506070855667788 && page_a[0] == 0x99aabbcc01020304, "store-across");
    point(1, NULL, 0);
    store(VA + 4092, 0);
    OK(faulted(14, 2, VA + 4096) && page_c[511] == 0x0506070855667788, "store-across-faults-whole");
    load(VA + 4092);
    OK(faulted(14, 0, VA + 4096), "load-across-cr2");
    point(1, page_a, P);
    run(d_add, VA + 4092, 1, 0);
    OK(faulted(14, 3, VA + 4096) && page_c[511] == 0x0506070855667788, "add-across-to-read-only");
    point(1, page_a, P | W);
}

static void large(void)
{
    uint64_t *one = (uint64_t *)0x2000000, *two = (uint64_t *)0x2200000; /* 32 MiB: free */
    one[0] = 1, two[0] = 2, one[0x3ff00] = 11, two[0x3ff00] = 22;
    big_pd[0] = 0x2000000 | P | W | PS | g;
    big_pd[1] = 0x2200000 | P | W | PS | g;
    invlpg(BIG), invlpg(BIG + 0x200000);
    OK(load(BIG) == 1 && load(BIG + 0x200000) == 2 && load(BIG + 8 * 0x3ff00) == 11, "large-load");
    store(BIG + 64, 77);
    OK(one[8] == 77 && (big_pd[0] & D), "large-store");
    big_pd[0] = 0x2200000 | P | W | PS | g;
    invlpg(BIG + 0x1ff000); /* any address in it */
    OK(load(BIG) == 2 && load(BIG + 8 * 0x3ff00) == 22, "large-remap");
    for (unsigned i = 0; i < 512; i++)
        big_pt[i] = (0x2000000 + i * 4096ul) | P | W | g;
    big_pt[3] = (tk_word)page_a | P | g;
    page_a[0] = 0x333;
    big_pd[0] = (tk_word)big_pt | P | W;
    invlpg(BIG);
    invlpg(BIG + 0x3000);
    OK(load(BIG + 0x3000) == 0x333 && load(BIG) == 1, "large-split");
    store(BIG + 0x3000, 1);
    OK(faulted(14, 3, BIG + 0x3000), "large-split-read-only");
    big_pd[0] = 0x2000000 | P | W | PS | g;
    for (unsigned i = 0; i < 512; i++)
        invlpg(BIG + i * 4096ul);
    one[0x600] = 0x444;
    OK(load(BIG + 0x3000) == 0x444, "large-joined");
}

static void spaces(void)
{
    point(0, page_a, P | W);
    page_a[0] = 0xa, page_b[0] = 0xb;
    load(VA);
    store(VA + 8, 1);
    if (g) {
        /* A page that is global may stay; what drops it is a toggle of CR4.PGE. */
        va_pt[0] = (tk_word)page_b | P | W | g;
        WRITE_REG("cr4", READ_REG("cr4") ^ 0x80);
        WRITE_REG("cr4", READ_REG("cr4") ^ 0x80);
        OK(load(VA) == 0xb, "page-global-enable-toggled");
        return;
    }
    for (unsigned i = 0; i < 512; i++)
        other_root[i] = tk_pml4[i];
    other_root[VA >> 39 & 511] = (tk_word)other_pdpt | P | W;
    other_pdpt[0] = (tk_word)other_pd | P | W;
    other_pd[0] = (tk_word)other_pt | P | W;
    other_pt[0] = (tk_word)page_b | P | W;
    other_pt[1] = 0;
    bool good = true;
    uint64_t root = READ_REG("cr3");
    for (unsigned i = 0; i < 50; i++) {
        WRITE_REG("cr3", other_root);
        good &= load(VA) == 0xb;
        store(VA + 8, i);
        good &= page_b[1] == i;
        load(VA + 4096);
        good &= fault.n == 1 && fault.error == 0;
        WRITE_REG("cr3", root);
        good &= load(VA) == 0xa;
        store(VA + 8, i + 1);
        good &= page_a[1] == i + 1 && page_b[1] == i;
        load(VA + 4096);
        good &= fault.n == 0;
    }
    OK(good, "two-roots");
    other_root[VA >> 39 & 511] = 0;
    WRITE_REG("cr3", other_root);
    load(VA);
    OK(faulted(14, 0, VA), "absent-under-the-other-root");
    WRITE_REG("cr3", root);
    va_pt[0] = (tk_word)page_b | P | W;
    WRITE_REG("cr3", root);
    OK(load(VA) == 0xb, "load-of-cr3-flushes");
    uint32_t r[4];
    cpuid(1, 0, r);
    if (!(r[2] >> 17 & 1)) {
        tk_skip(named("tagged-roots"), "no PCID");
        return;
    }
    WRITE_REG("cr4", READ_REG("cr4") | 0x20000);
    other_root[VA >> 39 & 511] = (tk_word)other_pdpt | P | W;
    other_pt[0] = (tk_word)page_c | P | W;
    page_c[0] = 0xc;
    WRITE_REG("cr3", (tk_word)other_root | 1);
    good = true;
    for (unsigned i = 0; i < 50; i++) {
        WRITE_REG("cr3", (tk_word)other_root | 1 | 1ul << 63);
        good &= load(VA) == 0xc;
        store(VA + 8, i);
        good &= page_c[1] == i;
        WRITE_REG("cr3", root | 2 | 1ul << 63);
        good &= load(VA) == 0xb;
    }
    OK(good, "tagged-roots");
    struct { uint64_t pcid, address; } what = {1, VA};
    cpuid(7, 0, r);
    if (r[1] >> 10 & 1) {
        other_pt[0] = (tk_word)page_a | P | W;
        __asm__ volatile("invpcid %0, %1" : : "m"(what), "r"(0ul) : "memory");
        WRITE_REG("cr3", (tk_word)other_root | 1 | 1ul << 63);
        OK(load(VA) == 0xa, "invpcid-of-one-address");
        WRITE_REG("cr3", root | 2 | 1ul << 63);
        va_pt[0] = (tk_word)page_c | P | W;
        __asm__ volatile("invpcid %0, %1" : : "m"(what), "r"(2ul) : "memory");
        OK(load(VA) == 0xc, "invpcid-of-everything");
    } else {
        tk_skip(named("invpcid"), "no INVPCID");
    }
    WRITE_REG("cr3", root);
    WRITE_REG("cr4", READ_REG("cr4") & ~0x20000ul);
}

/* One instruction meets RAM, a device, a program's address, and what is no address. */
static void kinds(void)
{
    point(0, page_a, P | W);
    page_a[0] = 0xa;
    OK((uint32_t)run(d_load32, VA, 0, 0) == 0xa, "ram");
    point(0, (void *)0xfee00000, P | W);
    OK((uint32_t)run(d_load32, VA + 0x20, 0, 0) == APIC(0x20), "device-in-its-place");
    point(0, page_a, P | W);
    OK((uint32_t)run(d_load32, VA, 0, 0) == 0xa, "ram-again");
    page_b[5] = 55;
    OK(run(d_xadd, (tk_word)&page_b[5], 2, 0) == 55 && run(d_xadd, (tk_word)&page_b[5], 0, 0) == 57, "lower-half");
    OK(run(d_sum, (tk_word)page_b, 1, 0) == page_b[0] && run(d_sum, VA, 1, 0) == 0xa, "both-halves");
    load(0x7ffffffff000);
    OK(faulted(14, 0, 0x7ffffffff000), "lower-half-absent");
    store(0x800000000000, 1);
    OK(faulted(13, 0, 0), "not-canonical");
    store(0xffff7fffffffffff, 1);
    OK(faulted(13, 0, 0), "not-canonical-high");
    load(0xffff800000000000);
    OK(faulted(14, 0, 0xffff800000000000), "lowest-of-the-upper-half");
    load(0xfffffffffffffff8);
    OK(faulted(14, 0, 0xfffffffffffffff8), "highest-of-the-upper-half");
    OK(run(d_copy, VA + 2048, VA, 256) == 0 && page_a[256] == 0xa, "rep-movs");
}

static void stack(void)
{
    tk_word top = HIGH + (tk_word)(high_stack + 512);
    OK(run(d_push, top, 0x1234, 0) == top - 8 && high_stack[511] == 0x1234, "push");
    OK(run(d_pop, top - 8, 0, 0) == 0x1234 + top, "pop");
    high_stack[100] = 0x5678;
    run(d_pushm, HIGH + (tk_word)&high_stack[100], top, 0);
    OK(high_stack[101] == 0x5678 && high_stack[511] == 0x5678, "push-and-pop-of-memory");
    high_stack[200] = top;
    OK(run(d_leave, HIGH + (tk_word)&high_stack[200], 0, 0) == top - (HIGH + (tk_word)&high_stack[201]), "leave");
    OK(run(d_calls, top, 3, 0) == 24, "calls");
    point(0, page_a, P);
    fault.n = 0;
    page_a[511] = 0;
    load(VA);
    store(VA + 4088, 1);
    OK(faulted(14, 3, VA + 4088) && page_a[511] == 0, "stack-page-read-only");
    point(0, page_a, P | W);
    OK(run(d_r13, VA, 0x4141, 0) == 0x4141 && page_a[0] == 0x4141 && page_a[2] == 0x4142, "registers-13-and-14");
    page_a[0] = 5;
    OK(run(d_cmpxchg, VA, 5, 6) == 1 && run(d_cmpxchg, VA, 5, 7) == 0 && page_a[0] == 6, "cmpxchg");
    page_a[1] = 0;
    OK(run(d_bts, VA, 64 + 3, 0) == 0 && page_a[1] == 8 && run(d_bts, VA, 64 + 3, 0) == 1, "bts-beyond-the-word");
    page_b[511] = 0;
    point(1, page_b, P | W);
    OK(run(d_bts, VA + 8192, -1ul, 0) == 0 && page_b[511] == 1ul << 63, "bts-before-the-word");
}

static void per_cpu(void)
{
    point(0, page_a, P | W);
    point(1, page_b, P | W);
    page_a[2] = 0x2a, page_b[2] = 0x2b;
    wrmsr(0xc0000101, VA);
    wrmsr(0xc0000102, VA + 4096);
    OK(run(d_gs, 16, 0, 0) == 0x2a, "gs");
    run(d_gs_store, 16, 0x99, 0);
    OK(page_a[3] == 0x99, "gs-store");
    OK(run(d_swapgs, 16, 0, 0) == 0x2b && run(d_gs, 16, 0, 0) == 0x2a, "swapgs");
    wrmsr(0xc0000101, VA + 4096);
    OK(run(d_gs, 16, 0, 0) == 0x2b, "gs-base-written");
    point(1, page_a, P | W);
    OK(run(d_gs, 16, 0, 0) == 0x2a, "gs-page-remapped");
    wrmsr(0xc0000101, (tk_word)page_b);
    OK(run(d_gs, 16, 0, 0) == 0x2b, "gs-in-the-lower-half");
    wrmsr(0xc0000101, 0);
    OK(run(d_gs, VA + 16, 0, 0) == 0x2a, "gs-base-0");
    run(d_gs, 0x800000000000, 0, 0);
    OK(faulted(13, 0, 0), "gs-not-canonical");
}

/* A page that holds code is stored to through another address. */
static void self_modifying(void)
{
    bool good = true;
    point(0, code, P | W);
    for (unsigned i = 1; i <= 100; i++) {
        store(VA + 64, 0xc300000000b8ul | (uint64_t)i << 8); /* mov eax, i; ret */
        good &= run((uint8_t *)code + 64, 0, 0, 0) == i;
    }
    OK(good, "code-written-through-an-alias");
    store(VA + 2048, 17);
    OK(run((uint8_t *)code + 64, 0, 0, 0) == 100 && code[256] == 17, "data-beside-code");
    good = true;
    for (unsigned i = 0; i < 100; i++) {
        store(VA + 2048, i);
        good &= run((uint8_t *)code + 64, 0, 0, 0) == 100 && code[256] == i;
    }
    OK(good, "data-beside-code-often");
    good = true;
    for (unsigned i = 1; i <= 20; i++) { /* code in a page that was written before it was code */
        page_c[64] = 0;
        point(1, page_c, P | W);
        store(VA + 4096 + 512, 0xc300000000b8ul | (uint64_t)i << 8);
        good &= run((uint8_t *)page_c + 512, 0, 0, 0) == i;
    }
    OK(good, "code-in-a-page-that-was-data");
}

/* Flags that an instruction made must be there after an access that was first made possible, or faults. */
#define FLAGS_MASK 0x8d5ul
#define FLAGS(n, make)                                                                                                 \
    extern uint8_t f_##n[];                                                                                            \
    __asm__(".text\n.globl f_" #n "\nf_" #n ":\nmov %rsi, %rax\nmov %rdx, %rcx\n" make                                 \
            "\nmov (%rdi), %r8\nmov 8(%rdi), %r9\npushfq\npop %rax\nret\n")
__asm__(".globl f_start\nf_start:");
extern uint8_t f_start[], f_end[];
FLAGS(add, "add %rcx, %rax"); FLAGS(sub, "sub %rcx, %rax"); FLAGS(cmp, "cmp %rcx, %rax"); FLAGS(test, "test %rcx, %rax");
FLAGS(cmpb, "cmp %cl, %al"); FLAGS(cmpw, "cmp $-3, %ax"); FLAGS(subl, "sub $77, %eax"); FLAGS(neg, "neg %rax");
FLAGS(addw, "add %cx, %ax"); FLAGS(and, "and %rcx, %rax"); FLAGS(adc, "add %rax, %rax\nadc %rcx, %rax"); FLAGS(inc, "inc %rax");
FLAGS(negb, "neg %al"); FLAGS(testb, "test $0x41, %al"); FLAGS(imul, "imul %rcx, %rax"); FLAGS(shl, "shl $3, %rax");
FLAGS(subsp, "mov %rsp, %r10\nmov %rax, %rsp\nsub $24, %rsp\nmov %r10, %rsp");
__asm__(".globl f_end\nf_end:");

static volatile uint64_t flags_seen;
static void on_flags_fault(struct tk_frame *f)
{
    flags_seen = f->flags;
    va_pt[0] |= P;
    invlpg(VA);
}

static void flags(void)
{
    static uint8_t *const which[] = {f_add, f_sub, f_cmp, f_test, f_cmpb, f_cmpw, f_subl, f_neg, f_addw, f_and, f_adc, f_inc,
                                     f_negb, f_testb, f_imul, f_shl, f_subsp};
    static const uint64_t value[] = {0, 1, 0x7f, 0x80, 0x7fff, 0x8000, 0x7fffffff, 0x80000000, 0x7fffffffffffffff,
                                     0x8000000000000000, -1ul, -3ul, 77, 0x123456789abcdef0};
    unsigned bad = 0;
    for (unsigned w = 0; w < sizeof(which) / sizeof(which[0]); w++) {
        uint64_t defined = which[w] == f_test || which[w] == f_testb || which[w] == f_and ? FLAGS_MASK & ~0x10ul
                         : which[w] == f_imul ? 0x801 : which[w] == f_shl ? FLAGS_MASK & ~0x810ul : FLAGS_MASK;
        for (unsigned i = 0; i < 14; i++)
            for (unsigned j = 0; j < 14; j++) {
                /* the lower half: an honest look-up, or the first time a change to it */
                uint64_t want, got;
                point(0, (i + j) & 1 ? page_a : page_b, P | W);
                got = run(which[w], VA, value[i], value[j]);
                want = run(which[w], VA, value[i], value[j]);
                bad += ((got ^ want) & defined) != 0;
                va_pt[0] &= ~P;
                invlpg(VA);
                flags_seen = want;
                tk_on(14, on_flags_fault);
                got = run(which[w], VA, value[i], value[j]);
                tk_on(14, on_fault);
                bad += ((got ^ want) & defined) != 0 || ((flags_seen ^ want) & defined) != 0;
            }
        /* to the lower half, in the end */
        uint64_t want = run(which[w], VA, value[w % 14], 3), got = run(which[w], (tk_word)page_a, value[w % 14], 3);
        bad += ((got ^ want) & defined) != 0;
    }
    if (bad)
        tk_say("%u wrong", bad);
    OK(!bad, "flags-around-faults");
}

/* --- two CPUs ------------------------------------------------------------------------------ */
static volatile uint32_t alive, job, acked, wrong, rounds;
static volatile uint64_t expected;

static void on_flush(struct tk_frame *f)
{
    (void)f;
    invlpg(VA);
    acked++;
    APIC(0xb0) = 0;
}

static uint64_t ap_run(void *at, uint64_t a, uint64_t b) { return ((routine)(HIGH + (tk_word)at))(a, b, 0); }

static void ap_main(void)
{
    APIC(0xf0) = 0x1ff;
    WRITE_REG("cr4", READ_REG("cr4") | 0x80);
    alive = 1;
    __asm__ volatile("sti");
    while (job != 99) {
        uint64_t before = expected, got;
        switch (job) {
        case 1:
            got = ap_run(d_load, VA, 0);
            if (before == expected && got != before && (before & 1)) /* even: it is being changed */
                wrong++;
            rounds++;
            break;
        case 2:
            got = ap_run((uint8_t *)code + 128, 0, 0);
            if (before == expected && got != before && (before & 1))
                wrong++;
            rounds++;
            break;
        default:
            __asm__ volatile("pause");
        }
    }
    job = 100;
    for (;;)
        __asm__ volatile("cli; hlt");
}

static void flush_ap(void)
{
    uint32_t n = acked;
    APIC(0x310) = 1u << 24;
    APIC(0x300) = 0x4091;
    while (acked == n)
        __asm__ volatile("pause");
}

static void two_cpus(void)
{
    memcpy((void *)0x8000, tk_ap_code, (size_t)(tk_ap_code_end - tk_ap_code));
    tk_ap_stack = (tk_word)(ap_stack + sizeof(ap_stack));
    tk_ap_entry = ap_main;
    tk_on(0x91, on_flush);
    APIC(0xf0) = 0x1ff;
    APIC(0x300) = 0xc4500;
    tk_delay_us(10000);
    APIC(0x300) = 0xc4608;
    for (int i = 0; i < 100 && !alive; i++)
        tk_delay_us(10000);
    if (!alive) {
        tk_skip("two-cpus", "there is one");
        return;
    }
    page_a[0] = 1;
    point(0, page_a, P | W);
    expected = 1;
    job = 1;
    for (uint64_t i = 0; i < 1000; i++) {
        uint64_t *p = i & 1 ? page_a : page_b;
        p[0] = 2 * i + 3;
        expected = 2 * i + 2;
        point(0, p, P | W);
        flush_ap();
        expected = 2 * i + 3;
        for (uint32_t n = rounds; rounds - n < 4;)
            __asm__ volatile("pause");
    }
    OK(!wrong, "the-other-cpu-sees-remaps");
    wrong = 0;
    expected = 0;
    job = 0;
    for (uint32_t n = acked; acked == n;)
        flush_ap();
    point(0, code, P | W);
    point(1, code, P | W);
    store(VA + 4096 + 128, 0xc300000000b8ul | 1 << 8);
    flush_ap();
    expected = 1;
    job = 2;
    for (uint64_t i = 1; i < 500; i++) {
        expected = 2 * i;
        store(VA + 4096 + 128, 0xc300000000b8ul | (2 * i + 1) << 8);
        flush_ap(); /* an interrupt serialises */
        expected = 2 * i + 1;
        for (uint32_t n = rounds; rounds - n < 4;)
            __asm__ volatile("pause");
    }
    UNLESS_TCG(named("the-other-cpu-runs-new-code")) /* a race of its threads, as in t64_smp */
    OK(!wrong, "the-other-cpu-runs-new-code");
    expected = 0;
    job = 99;
    while (job != 100)
        __asm__ volatile("pause");
}

/* Lowest in the upper half, where kernels have nothing. An engine may have things of its own in the way there. */
static void lowest(void)
{
    static uint64_t low_pdpt[512] PAGE, low_pd[512] PAGE, low_pt[512] PAGE;
    bool good = true;
    for (unsigned i = 0; i < 512; i++) {
        low_pdpt[i] = (tk_word)low_pd | P | W;
        low_pd[i] = (tk_word)low_pt | P | W;
        low_pt[i] = (tk_word)(i & 1 ? page_a : page_b) | P | W;
    }
    tk_pml4[256] = (tk_word)low_pdpt | P | W;
    WRITE_REG("cr3", READ_REG("cr3"));
    for (uint64_t i = 0; i < 1ul << 33; i += 0x1357000) {
        uint64_t *p = i >> 12 & 1 ? page_a : page_b;
        p[3] = i;
        good &= load(0xffff800000000018 + i) == i && !fault.n;
        store(0xffff800000000020 + i, i + 1);
        good &= p[4] == i + 1 && !fault.n;
    }
    OK(good, "lowest-of-the-upper-half-mapped");
    remaps();
}

void tk_main(void)
{
    tk_pic_setup(0x20, 0xffff);
    high_pdpt[510] = (tk_word)tk_pd | P | W;
    tk_pml4[511] = (tk_word)high_pdpt | P | W;
    tk_pml4[VA >> 39 & 511] = (tk_word)va_pdpt | P | W;
    va_pdpt[0] = (tk_word)va_pd | P | W;
    va_pd[0] = (tk_word)va_pt | P | W;
    tk_pml4[BIG >> 39 & 511] = (tk_word)big_pdpt | P | W;
    big_pdpt[BIG >> 30 & 511] = (tk_word)big_pd | P | W;
    tk_on(14, on_fault);
    tk_on(13, on_fault);
    tk_on(12, on_fault);
    WRITE_REG("cr4", READ_REG("cr4") | 0x80);
    for (unsigned round = 0; round < 2; round++) {
        g = round ? G : 0;
        remaps();
        crossings();
        large();
        spaces();
        kinds();
        stack();
        per_cpu();
        self_modifying();
        flags();
    }
    two_cpus();
    lowest();
}
