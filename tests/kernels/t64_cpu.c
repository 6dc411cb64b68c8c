/* SPDX-License-Identifier: Apache-2.0 */
/* Long mode: system calls, interrupt stacks, segment bases, single step, MSRs, CPUID, faults of addresses. */
#include "tk.h"

#define EFER 0xc0000080
#define STAR 0xc0000081
#define LSTAR 0xc0000082
#define CSTAR 0xc0000083
#define SFMASK 0xc0000084
#define FS_BASE 0xc0000100
#define GS_BASE 0xc0000101
#define KERNEL_GS_BASE 0xc0000102

static uint8_t user_stack[1024] __attribute__((aligned(16)));
static uint8_t syscall_stack[4096] __attribute__((aligned(16)));
tk_word sys_rcx, sys_r11, sys_flags, sys_rax, sys_cs, sys_ss, sys_user_rsp;
tk_word sys_stack_top, sys_count;

/* System call entry: notes what the CPU did, returns rax + 1 by sysret. */
__attribute__((naked)) static void syscall_entry(void)
{
    __asm__("mov %rsp, sys_user_rsp; mov sys_stack_top, %rsp; mov %rcx, sys_rcx; mov %r11, sys_r11; mov %rax, sys_rax\n"
            "pushf; popq sys_flags; mov %cs, %rax; mov %rax, sys_cs; mov %ss, %rax; mov %rax, sys_ss; incq sys_count\n"
            "mov sys_rax, %rax; inc %rax; mov sys_user_rsp, %rsp; sysretq");
}

__attribute__((naked)) static void user_syscall(void)
{
    __asm__("mov $41, %eax; std; syscall; mov %cs, %ebx; mov %ss, %edi; pushf; pop %rsi; int $0x80");
}
__attribute__((naked)) static void user_syscall_loop(void)
{
    __asm__("mov $1000, %ebx; 1: mov %ebx, %eax; syscall; dec %ebx; cmp $1, %ebx; jne 1b; int $0x80");
}
__attribute__((naked)) static void user_int(void)
{
    __asm__("mov $7, %eax; mov %rsp, %rbx; int $0x80");
}
__attribute__((naked)) static void user_hlt(void)
{
    __asm__("hlt");
}
__attribute__((naked)) static void user_rdmsr(void)
{
    __asm__("mov $0xc0000080, %ecx; rdmsr");
}
__attribute__((naked)) static void user_swapgs(void)
{
    __asm__("swapgs");
}
__attribute__((naked)) static void user_noncanonical(void)
{
    __asm__("mov $0x8000000000000000, %rax; mov (%rax), %rax");
}
__attribute__((naked)) static void user_noncanonical_stack(void)
{
    __asm__("mov $0x8000000000000000, %rsp; push %rax");
}
__attribute__((naked)) static void user_compat(void)
{
    __asm__(".code32; mov $0x12345678, %eax; push %eax; pop %ebx; inc %ebx; mov %esp, %ecx; int $0x80; .code64");
}
__attribute__((naked)) static void user_popf_tf(void)
{
    __asm__("pushf; orl $0x100, (%rsp); popf; nop; nop");
}

static void user_cs(void (*code)(void), tk_word flags, tk_word cs)
{
    tk_got.vector = -1;
    memset(&tk_user_frame, 0, sizeof(tk_user_frame));
    tk_run_user((tk_word)code, (tk_word)(user_stack + sizeof(user_stack)), flags, cs);
}

static void user(void (*code)(void))
{
    user_cs(code, 2, TK_USER_CODE);
}

static void system_calls(void)
{
    uint32_t r[4];

    sys_stack_top = (tk_word)(syscall_stack + sizeof(syscall_stack));
    wrmsr(STAR, (uint64_t)0x18 << 48 | (uint64_t)TK_CODE << 32);
    wrmsr(LSTAR, (tk_word)syscall_entry);
    wrmsr(SFMASK, 0x400 | 0x200 | 0x100);
    EQUAL(rdmsr(LSTAR), (tk_word)syscall_entry, "lstar-reads-back");
    user(user_syscall);
    CHECK(tk_got.vector == 0x80 && tk_user_frame.ax == 42, "syscall-and-sysret");
    EQUAL(sys_cs, TK_CODE, "syscall-cs");
    EQUAL(sys_ss, TK_DATA, "syscall-ss");
    CHECK(!(sys_flags & 0x400) && (sys_r11 & 0x400), "syscall-masks-flags");
    CHECK(tk_user_frame.cx == sys_rcx && tk_user_frame.bx == TK_USER_CODE && tk_user_frame.di == TK_USER_DATA, "sysret-selectors");
    CHECK(tk_user_frame.si & 0x400, "sysret-restores-flags");
    CHECK(sys_user_rsp == (tk_word)(user_stack + sizeof(user_stack)), "syscall-keeps-rsp");
    sys_count = 0;
    user(user_syscall_loop);
    EQUAL(sys_count, 999, "999-system-calls");
    wrmsr(EFER, rdmsr(EFER) & ~1ull);
    user(user_syscall);
    CHECK(tk_got.vector == 6 && tk_got.ip == (tk_word)user_syscall + 6, "syscall-without-sce");
    wrmsr(EFER, rdmsr(EFER) | 1);
    TRY("wrmsr", : : "c"(LSTAR), "a"(0), "d"(0x80000000));
    UNLESS_TCG("lstar-noncanonical-gp")
    CHECK(FAULTED(13, 0), "lstar-noncanonical-gp");
    wrmsr(LSTAR, (tk_word)syscall_entry);
    cpuid(0x80000001, 0, r);
    CHECK(r[3] & (1u << 29), "cpuid-long-mode");
    CHECK(r[3] & (1u << 11), "cpuid-syscall");
}

static void user_mode(void)
{
    user(user_int);
    CHECK(tk_got.vector == 0x80 && tk_user_frame.ax == 7 && tk_user_frame.sp == tk_user_frame.bx, "user-and-back");
    user(user_hlt);
    CHECK(tk_got.vector == 13 && tk_got.error == 0 && tk_got.ip == (tk_word)user_hlt, "user-hlt");
    user(user_rdmsr);
    CHECK(tk_got.vector == 13 && tk_got.ip == (tk_word)user_rdmsr + 5, "user-rdmsr");
    user(user_swapgs);
    CHECK(tk_got.vector == 13, "user-swapgs");
    user(user_noncanonical);
    CHECK(tk_got.vector == 13 && tk_got.error == 0, "noncanonical-load-gp");
    user(user_noncanonical_stack);
    UNLESS_TCG("noncanonical-push-ss")
    CHECK(tk_got.vector == 12 && tk_got.error == 0, "noncanonical-push-ss");
    user_cs(user_compat, 2, TK_USER_CODE32);
    CHECK(tk_got.vector == 0x80 && tk_user_frame.ax == 0x12345678 && tk_user_frame.bx == 0x12345679, "compatibility-mode");
    EQUAL(tk_user_frame.cs, TK_USER_CODE32, "compatibility-cs");
    user(user_popf_tf);
    CHECK(tk_got.vector == 1 && tk_got.ip == (tk_word)user_popf_tf + 10, "user-single-step-after-popf");
}

static volatile tk_word ist_sp, ist_ss;

static void on_ist(struct tk_frame *f)
{
    (void)f;
    ist_sp = (tk_word)__builtin_frame_address(0);
    ist_ss = f->sp;
    f->ip += 2;
}

extern char ist1_top[], ist2_top[];

static void interrupt_stacks(void)
{
    extern char tk_stubs[];
    tk_word sp;

    tk_on(6, on_ist);
    tk_gate(6, (void (*)(void))(tk_stubs + 16 * 6), TK_CODE, 0x8e, 1);
    __asm__ volatile("mov %%rsp, %0; ud2" : "=r"(sp) : : "memory");
    CHECK(ist_sp < (tk_word)ist1_top && ist_sp > (tk_word)ist1_top - 4096, "ist-switches-in-ring-0");
    EQUAL(ist_ss, sp, "ist-frame-has-old-rsp");
    tk_gate(6, (void (*)(void))(tk_stubs + 16 * 6), TK_CODE, 0x8e, 0);
    __asm__ volatile("mov %%rsp, %%rbx; add $-8, %%rsp; and $-16, %%rsp; add $5, %%rsp; mov %%rsp, %0; ud2; mov %%rbx, %%rsp"
                     : "=r"(sp) : : "rbx", "memory", "cc");
    EQUAL(ist_ss, sp, "frame-keeps-odd-rsp");
    tk_on(6, NULL);
}

static void bases(void)
{
    static tk_word area[4] = {0x1111, 0x2222, 0x3333, 0x4444};
    tk_word v = 0;

    wrmsr(FS_BASE, (tk_word)area);
    __asm__ volatile("mov %%fs:8, %0" : "=r"(v));
    EQUAL(v, 0x2222, "fs-base");
    wrmsr(GS_BASE, (tk_word)area + 16);
    wrmsr(KERNEL_GS_BASE, (tk_word)area + 8);
    __asm__ volatile("mov %%gs:0, %0" : "=r"(v));
    EQUAL(v, 0x3333, "gs-base");
    __asm__ volatile("swapgs; mov %%gs:0, %0; swapgs" : "=r"(v) : : "memory");
    EQUAL(v, 0x2222, "swapgs");
    __asm__ volatile("swapgs");
    EQUAL(rdmsr(GS_BASE), (tk_word)area + 8, "swapgs-msr");
    __asm__ volatile("swapgs");
    /* Wraps modulo 2^64. */
    wrmsr(GS_BASE, (tk_word)area + 0x1000);
    __asm__ volatile("mov %%gs:-0x1000, %0" : "=r"(v));
    EQUAL(v, 0x1111, "gs-negative-offset");
    __asm__ volatile("mov %0, %%gs" : : "r"(TK_DATA));
    EQUAL(rdmsr(GS_BASE), 0, "gs-load-sets-base");
    TRY("wrmsr", : : "c"(GS_BASE), "a"(0), "d"(0x00800000));
    UNLESS_TCG("gs-base-noncanonical-gp")
    CHECK(FAULTED(13, 0), "gs-base-noncanonical-gp");
    wrmsr(GS_BASE, 0);
    uint32_t r[4];
    cpuid(7, 0, r);
    if (r[1] & 1) {
        WRITE_REG("cr4", READ_REG("cr4") | 1 << 16);
        __asm__ volatile("wrgsbase %1; mov %%gs:8, %0" : "=r"(v) : "r"(area) : "memory");
        EQUAL(v, 0x2222, "wrgsbase");
        __asm__ volatile("rdgsbase %0" : "=r"(v));
        EQUAL(v, (tk_word)area, "rdgsbase");
        WRITE_REG("cr4", READ_REG("cr4") & ~(1ul << 16));
        TRY("rdgsbase %0", : "=r"(v) : :);
        CHECK(FAULTED(6, 0), "rdgsbase-without-cr4");
    } else {
        tk_skip("wrgsbase", "CPUID shows no FSGSBASE");
    }
    wrmsr(GS_BASE, 0);
    wrmsr(FS_BASE, 0);
}

static volatile int steps;
static volatile tk_word stepped[16];

static void on_step(struct tk_frame *f)
{
    if (steps < 16)
        stepped[steps] = f->ip;
    steps++;
    WRITE_REG("dr6", 0);
}

static void single_step(void)
{
    extern char step_first[], step_last[];
    tk_word saved = 0;

    tk_on(1, on_step);
    steps = 0;
    __asm__ volatile("pushf; orl $0x100, (%%rsp); popf\n step_first: nop\n xor %%eax, %%eax\n inc %%eax\n jmp 1f\n nop\n"
                     "1: mov $3, %%ecx; 2: loop 2b\n pushf; andl $~0x100, (%%rsp); popf\n step_last: nop"
                     : "=&b"(saved) : : "rax", "rcx", "cc", "memory");
    /* nop, xor, inc, jmp, mov, loop x3, pushf, and, popf: the step of popf still comes. */
    EQUAL(steps, 11, "single-step-count");
    EQUAL(stepped[0], (tk_word)step_first + 1, "single-step-first");
    EQUAL(stepped[10], (tk_word)step_last, "single-step-last");
    /* MOV SS holds the step back by one instruction. */
    steps = 0;
    __asm__ volatile("mov %%ss, %%ecx; pushf; orl $0x100, (%%rsp); popf; mov %%ecx, %%ss; nop; nop; pushf; andl $~0x100, (%%rsp); popf"
                     : : : "rcx", "cc", "memory");
    EQUAL(steps, 5, "single-step-mov-ss-shadow");
    /* A repeated string instruction steps once per iteration. */
    steps = 0;
    static uint8_t from[4] = "abc", to[4];
    void *d = to;
    const void *s = from;
    tk_word n = 3;
    __asm__ volatile("pushf; orl $0x100, (%%rsp); popf; rep movsb; pushf; andl $~0x100, (%%rsp); popf"
                     : "+D"(d), "+S"(s), "+c"(n) : : "cc", "memory");
    CHECK(steps == 6 && to[2] == 'c', "single-step-rep");
    tk_on(1, NULL);
}

static void addresses(void)
{
    tk_word v = 0;

    TRY("mov (%1), %0", : "=r"(v) : "r"(0x0000800000000000ul));
    CHECK(FAULTED(13, 0), "kernel-noncanonical-gp");
    TRY("mov (%1), %0", : "=r"(v) : "r"(0xffff800000000000ul));
    CHECK(FAULTED(14, 0) && tk_got.cr2 == 0xffff800000000000ul, "kernel-upper-half-pf");
    TRY("mov %0, 0x7ffffffc", : : "a"(0));
    CHECK(tk_got.vector == -1 || tk_got.vector == 14, "disp32");
    __asm__ volatile("movabs 1f, %%rax; jmp 2f; 1: .quad 0x1122334455667788; 2:" : "=a"(v));
    EQUAL(v, 0x1122334455667788ul, "movabs-load");
    __asm__ volatile("lea 1f(%%rip), %0; mov 1f(%%rip), %%rcx; jmp 2f; 1: .quad 77; 2:" : "=r"(v) : : "rcx");
    __asm__ volatile("mov $-1, %%rax; mov $5, %%eax" : "=a"(v));
    EQUAL(v, 5, "32-bit-result-zero-extends");
    __asm__ volatile("mov $-1, %%rax; mov $5, %%ax" : "=a"(v));
    EQUAL(v, 0xffffffffffff0005ul, "16-bit-result-merges");
    __asm__ volatile("mov $0x100000001, %%rcx; xor %%eax, %%eax; .byte 0x67; jecxz 1f; inc %%eax; 1:" : "=a"(v) : : "rcx", "cc");
    EQUAL(v, 1, "jecxz-uses-ecx");
    static uint8_t bytes[16];
    uint64_t bits = 0;
    __asm__ volatile("bts %2, %1" : "+m"(bits), "+m"(*(uint64_t *)bytes) : "r"(70ul) : "cc", "memory");
    CHECK(bytes[8] == 0x40, "bts-memory-bit-offset");
    uint64_t pair[2] __attribute__((aligned(16))) = {1, 2}, a = 1, d = 2;
    bool z;
    __asm__ volatile("lock cmpxchg16b %0; setz %1" : "+m"(pair), "=q"(z), "+a"(a), "+d"(d) : "b"(3ul), "c"(4ul) : "cc", "memory");
    CHECK(z && pair[0] == 3 && pair[1] == 4, "cmpxchg16b");
    TRY("cmpxchg16b (%0)", : : "r"((char *)pair + 1), "a"(0), "d"(0), "b"(0), "c"(0) : "memory", "cc");
    UNLESS_TCG("cmpxchg16b-alignment-gp")
    CHECK(FAULTED(13, 0), "cmpxchg16b-alignment-gp");
    TRY(".byte 0x06", : : :); /* push es does not exist here */
    CHECK(FAULTED(6, 0), "ud-push-es");
    TRY(".byte 0x27", : : :);
    CHECK(FAULTED(6, 0), "ud-daa");
    TRY(".byte 0x9a, 0, 0, 0, 0, 0, 0", : : :);
    CHECK(FAULTED(6, 0), "ud-far-call");
    TRY(".byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90", : : :);
    CHECK(FAULTED(13, 0), "gp-instruction-too-long");
}

static void identification(void)
{
    uint32_t r[4], s[4];

    cpuid(0, 0, r);
    CHECK(r[0] >= 1 && r[1], "cpuid-vendor");
    cpuid(1, 0, r);
    CHECK((r[3] & 0x07808171) == 0x07808171, "cpuid-base-features");
    CHECK((r[2] >> 27 & 1) == (READ_REG("cr4") >> 18 & 1), "cpuid-osxsave-follows-cr4");
    if (r[2] & 1u << 26) {
        WRITE_REG("cr4", READ_REG("cr4") | 1ul << 18 | 0x600);
        cpuid(1, 0, r);
        CHECK(r[2] & 1u << 27, "cpuid-osxsave-set");
        cpuid(0xd, 0, r);
        CHECK(r[1] >= 576 && r[2] >= r[1], "cpuid-xsave-sizes");
        uint32_t lo, hi;
        __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
        CHECK(lo & 1, "xcr0-has-x87");
        TRY("xsetbv", : : "a"(0), "d"(0), "c"(0));
        CHECK(FAULTED(13, 0), "xsetbv-without-x87-gp");
        TRY("xsetbv", : : "a"(5), "d"(0), "c"(0));
        CHECK(FAULTED(13, 0), "xsetbv-avx-without-sse-gp");
        cpuid(1, 0, s);
        if (s[2] & 1u << 28) {
            __asm__ volatile("xsetbv" : : "a"(7), "d"(0), "c"(0));
            cpuid(0xd, 0, r);
            CHECK(r[1] >= 832, "cpuid-xsave-size-with-avx");
        }
        __asm__ volatile("xsetbv" : : "a"(1), "d"(0), "c"(0));
    } else {
        tk_skip("xsave", "CPUID shows none");
    }
    CHECK((rdmsr(EFER) & 0xd01) == 0xd01, "efer");
    uint64_t t = rdtsc(), u = rdtsc();
    CHECK(u > t, "tsc-grows");
    cpuid(0x80000001, 0, r);
    if (r[3] & 1u << 27) {
        uint32_t aux;
        wrmsr(0xc0000103, 0x1234);
        __asm__ volatile("rdtscp" : "=c"(aux) : : "rax", "rdx");
        EQUAL(aux, 0x1234, "rdtscp-aux");
    }
    TRY("rdmsr", : : "c"(0x12345) : "rax", "rdx");
    UNLESS_TCG("rdmsr-unknown-gp")
    CHECK(FAULTED(13, 0), "rdmsr-unknown-gp");
    WRITE_REG("cr8", 5);
    EQUAL(READ_REG("cr8"), 5, "cr8");
    WRITE_REG("cr8", 0);
}

void tk_main(void)
{
    CHECK(tk_multiboot_magic == 0x2badb002, "multiboot-magic");
    user_mode();
    system_calls();
    interrupt_stacks();
    bases();
    single_step();
    addresses();
    identification();
}
