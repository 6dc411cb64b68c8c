/* SPDX-License-Identifier: Apache-2.0 */
/* Long mode, the less travelled parts: memory types and machine-check registers, what is not there, single step through
 * system calls, 32-bit programs' ways into a 64-bit kernel, RDTSC by permission, AVX-512 state. */
#include "tk.h"

#define EFER 0xc0000080
#define STAR 0xc0000081
#define LSTAR 0xc0000082
#define CSTAR 0xc0000083
#define SFMASK 0xc0000084

static uint8_t user_stack[1024] __attribute__((aligned(16)));
static uint8_t call_stack[4096] __attribute__((aligned(16)));
tk_word call_stack_top, call_rsp, call_rax, call_rcx, call_r11;

static bool amd_cpu(void)
{
    uint32_t r[4];

    cpuid(0, 0, r);
    return r[2] == 0x444d4163;
}

static void user_cs(void (*code)(void), tk_word flags, tk_word cs)
{
    tk_got.vector = -1;
    tk_run_user((tk_word)code, (tk_word)(user_stack + sizeof(user_stack)), flags, cs);
}

static bool write_fails(uint32_t msr, uint64_t v)
{
    TRY("wrmsr", : : "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)));
    return FAULTED(13, 0);
}
static bool read_fails(uint32_t msr)
{
    uint32_t lo, hi;

    TRY("rdmsr", : "=a"(lo), "=d"(hi) : "c"(msr));
    return FAULTED(13, 0);
}

static void memory_types(void)
{
    uint32_t r[4];

    cpuid(1, 0, r);
    CHECK((r[3] & (1 << 12 | 1 << 16)) == (1 << 12 | 1 << 16), "cpuid-mtrr-and-pat");
    EQUAL(rdmsr(0x277), 0x0007040600070406ul, "pat-at-reset");
    wrmsr(0x277, 0x0007040600070106ul);
    EQUAL(rdmsr(0x277), 0x0007040600070106ul, "pat-keeps-wc");
    UNLESS_TCG("pat-reserved-type-gp")
    CHECK(write_fails(0x277, 0x0002040600070406ul) && rdmsr(0x277) == 0x0007040600070106ul, "pat-reserved-type-gp");
    wrmsr(0x277, 0x0007040600070406ul);
    uint64_t cap = rdmsr(0xfe);
    CHECK((cap & 0xff) >= 2 && (cap & 0x500) == 0x500, "mtrr-cap");
    uint64_t old = rdmsr(0x200);
    wrmsr(0x200, 0xc0000001);
    EQUAL(rdmsr(0x200), 0xc0000001, "mtrr-variable");
    UNLESS_TCG("mtrr-reserved-type-gp")
    CHECK(write_fails(0x200, 0xc0000002) && write_fails(0x250, 0x0202020202020202ul), "mtrr-reserved-type-gp");
    UNLESS_TCG("mtrr-beyond-the-address-width-gp")
    CHECK(write_fails(0x201, 0xff00000000000800ul), "mtrr-beyond-the-address-width-gp");
    UNLESS_TCG("mtrr-cap-read-only")
    CHECK(write_fails(0xfe, 0), "mtrr-cap-read-only");
    UNLESS_TCG("mtrr-default-reserved-gp")
    CHECK(write_fails(0x2ff, 0x1002) && write_fails(0x2ff, 0x10c06), "mtrr-default-reserved-gp");
    wrmsr(0x200, old);
}

static void what_is_not_there(void)
{
    uint32_t r[4];

    cpuid(1, 0, r);
    CHECK((r[3] & (1 << 7 | 1 << 14)) == (1 << 7 | 1 << 14), "cpuid-mce-and-mca");
    uint64_t cap = rdmsr(0x179);
    EQUAL(rdmsr(0x17a), 0, "mcg-status-clear");
    for (unsigned i = 0; i < (cap & 0xff); i++) /* no errors in any bank */
        cap = rdmsr(0x401 + 4 * i) >> 63 ? 0xffff : cap;
    CHECK((cap & 0xff) != 0xff, "no-machine-check-pending");
    UNLESS_TCG("bank-beyond-the-last-gp")
    CHECK(read_fails(0x400 + 4 * (uint32_t)(cap & 0xff)), "bank-beyond-the-last-gp");
    WRITE_REG("cr4", READ_REG("cr4") | 0x40);
    CHECK(READ_REG("cr4") & 0x40, "cr4-mce");
    cpuid(0, 0, r);
    if (r[0] >= 10) {
        cpuid(10, 0, r);
        CHECK(r[0] == 0 && r[1] == 0 && r[3] == 0, "cpuid-no-performance-counters");
    }
    UNLESS_TCG("performance-msrs-gp")
    CHECK(read_fails(0xc1) && read_fails(0x186) && read_fails(0x38d) && write_fails(0x38f, 0), "performance-msrs-gp");
    UNLESS_TCG("rdpmc-gp") {
        uint32_t lo, hi;
        TRY("rdpmc", : "=a"(lo), "=d"(hi) : "c"(0));
        CHECK(FAULTED(13, 0), "rdpmc-gp");
    }
    UNLESS_TCG("vmx-is-locked-off")
    CHECK(amd_cpu() || (rdmsr(0x3a) & 5) == 1, "vmx-is-locked-off");
    TRY("vmxoff", : : : "cc");
    CHECK(tk_got.vector == 6, "vmxoff-ud");
}

/* --- system calls with TF, and from 32-bit code --------------------------------------------------- */
__attribute__((naked)) static void call_entry(void)
{
    __asm__("mov %rsp, call_rsp; mov call_stack_top, %rsp; mov %rax, call_rax; mov %rcx, call_rcx; mov %r11, call_r11\n"
            "cmp $99, %eax; je 1f; mov call_rsp, %rsp; sysretq\n"
            "1: mov call_rsp, %rsp; sysretl");
}
__attribute__((naked)) static void user_steps(void)
{
    __asm__("pushf; orl $0x100, (%rsp); popf; mov $41, %eax; syscall; nop; pushf; andl $~0x100, (%rsp); popf; int $0x80");
}
__attribute__((naked)) static void compat_syscall(void)
{
    __asm__(".code32; mov $99, %eax; nop; syscall; mov %cs, %ebx; int $0x80; .code64");
}
__attribute__((naked)) static void compat_sysenter(void)
{
    __asm__(".code32; nop; sysenter; .code64");
}
__attribute__((naked)) static void sysenter_entry(void)
{
    __asm__("mov %cs, %eax; mov %ss, %ebx; mov %rsp, %rsi; lea sysexit_here(%rip), %rdx; mov call_stack_top, %rcx; sysexitl\n"
            ".code32; sysexit_here: mov %cs, %ecx; mov %ss, %edx; int $0x80; .code64");
}

static volatile int steps, kernel_steps;

static void on_step(struct tk_frame *f)
{
    steps++;
    kernel_steps += (f->cs & 3) == 0;
    WRITE_REG("dr6", 0);
}

static void system_calls(void)
{
    call_stack_top = (tk_word)(call_stack + sizeof(call_stack));
    wrmsr(STAR, (uint64_t)0x18 << 48 | (uint64_t)TK_CODE << 32);
    wrmsr(LSTAR, (tk_word)call_entry);
    wrmsr(CSTAR, (tk_word)call_entry);
    wrmsr(SFMASK, 0x700);
    tk_on(1, on_step);
    user_cs(user_steps, 2, TK_USER_CODE);
    tk_on(1, NULL);
    CHECK(tk_got.vector == 0x80 && (call_r11 & 0x100), "syscall-with-tf");
    EQUAL(kernel_steps, 0, "syscall-mask-takes-tf-away");
    /* mov, SYSRET at once (for SYSCALL), nop, pushf, and, popf */
    EQUAL(steps, 6, "sysret-brings-tf-back");
    user_cs(compat_syscall, 2, TK_USER_CODE32);
    if (amd_cpu())
        CHECK(tk_got.vector == 0x80 && (tk_user_frame.bx & 0xffff) == TK_USER_CODE32, "compat-syscall-amd");
    else
        UNLESS_TCG("compat-syscall-ud")
        CHECK(tk_got.vector == 6 && tk_got.ip == (tk_word)compat_syscall + 6, "compat-syscall-ud");
    wrmsr(0x174, TK_CODE);
    wrmsr(0x175, call_stack_top - 64);
    wrmsr(0x176, (tk_word)sysenter_entry);
    if (amd_cpu() && tk_tcg()) { /* it has SYSENTER then, but no SYSEXIT */
        tk_skip("compat-sysenter", "QEMU TCG does not check this");
        return;
    }
    user_cs(compat_sysenter, 2, TK_USER_CODE32);
    if (amd_cpu()) {
        CHECK(tk_got.vector == 6 && tk_got.ip == (tk_word)compat_sysenter + 1, "compat-sysenter-ud");
    } else {
        CHECK(tk_got.vector == 0x80 && tk_user_frame.ax == TK_CODE && tk_user_frame.bx == TK_DATA, "compat-sysenter");
        CHECK(tk_user_frame.si == call_stack_top - 64, "compat-sysenter-stack");
        CHECK(tk_user_frame.cx == 0x1b && tk_user_frame.dx == 0x23, "sysexit-to-compat");
    }
}

/* --- RDTSC by permission --------------------------------------------------------------------------- */
__attribute__((naked)) static void user_rdtsc(void)
{
    __asm__("mov $41, %eax; syscall; rdtsc; int $0x80");
}

static void tsc_permission(void)
{
    WRITE_REG("cr4", READ_REG("cr4") | 4);
    user_cs(user_rdtsc, 2, TK_USER_CODE);
    CHECK(tk_got.vector == 13 && tk_got.ip == (tk_word)user_rdtsc + 7, "rdtsc-with-tsd-gp");
    TRY("rdtsc", : : : "rax", "rdx");
    CHECK(tk_got.vector == -1, "rdtsc-with-tsd-in-ring-0");
    WRITE_REG("cr4", READ_REG("cr4") & ~4ul);
    user_cs(user_rdtsc, 2, TK_USER_CODE);
    CHECK(tk_got.vector == 0x80, "rdtsc-without-tsd");
}

/* --- AVX-512 state ----------------------------------------------------------------------------------- */
static uint8_t image[4096] __attribute__((aligned(64))), wide[64] __attribute__((aligned(64)));

static void avx512(void)
{
    uint32_t r[4], s[4], d[4];

    cpuid(1, 0, r);
    cpuid(7, 0, s);
    if (!(r[2] & 1u << 26) || !(s[1] & 1u << 16)) {
        tk_skip("avx512", "CPUID shows none");
        return;
    }
    WRITE_REG("cr0", READ_REG("cr0") & ~0xcul);
    WRITE_REG("cr4", READ_REG("cr4") | 1ul << 18 | 0x600);
    TRY("xsetbv", : : "a"(0x27), "d"(0), "c"(0));
    CHECK(FAULTED(13, 0), "xsetbv-part-of-avx512-gp");
    __asm__ volatile("xsetbv" : : "a"(7), "d"(0), "c"(0));
    TRY("vpxorq %%zmm1, %%zmm1, %%zmm1", : : :);
    CHECK(FAULTED(6, 0), "ud-avx512-without-xcr0");
    __asm__ volatile("xsetbv" : : "a"(0xe7), "d"(0), "c"(0));
    cpuid(0xd, 0, d);
    CHECK(d[1] == d[2] && d[1] >= 2432, "cpuid-xsave-size-with-avx512");
    for (unsigned i = 0; i < 64; i++)
        wide[i] = (uint8_t)(i * 3 + 1);
    uint32_t k = 0, good = 0;
    __asm__ volatile("vmovdqu64 (%%rcx), %%zmm20; mov $0x5a5a, %%eax; kmovw %%eax, %%k3\n"
                     "mov $0xe7, %%eax; xor %%edx, %%edx; xsave64 (%%rdi)\n"
                     "vpxorq %%zmm20, %%zmm20, %%zmm20; kxorw %%k3, %%k3, %%k3\n"
                     "mov $0xe7, %%eax; xor %%edx, %%edx; xrstor64 (%%rdi)\n"
                     "kmovw %%k3, %%eax; vmovdqu64 %%zmm20, (%%rsi)"
                     : "=&a"(k) : "c"(wide), "D"(image), "S"(image + 3584) : "rdx", "memory");
    good = !memcmp(image + 3584, wide, 64);
    EQUAL(k, 0x5a5a, "xrstor-opmask");
    CHECK(good, "xrstor-zmm20");
    CHECK((*(uint64_t *)(image + 512) & 0xa0) == 0xa0, "xsave-bv-avx512");
    cpuid(0xd, 5, d);
    EQUAL(*(uint16_t *)(image + d[1] + 3 * 8), 0x5a5a, "xsave-opmask-where-cpuid-says");
    cpuid(0xd, 7, d);
    CHECK(!memcmp(image + d[1] + 4 * 64, wide, 64), "xsave-zmm20-where-cpuid-says");
    __asm__ volatile("xsetbv" : : "a"(1), "d"(0), "c"(0));
}

void tk_main(void)
{
    memory_types();
    what_is_not_there();
    system_calls();
    tsc_permission();
    avx512();
}
