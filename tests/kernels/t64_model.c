/* SPDX-License-Identifier: Apache-2.0 */
/* The CPU model: what CPUID does not show faults, what it shows works, XSAVE's sizes agree with it, the TSC counts as fast
 * as is told, KVM's clock agrees with it. kernels.py runs this with several models. */
#include "tk.h"

static uint32_t l1[4], l7[4], l71[4], le1[4];

/* An instruction, the register and bit of CPUID that shows it. None of them touches memory or matters. */
#define INSN(name, text, reg, bit)                                                                                     \
    do {                                                                                                               \
        bool shown_ = (reg) >> (bit) & 1;                                                                              \
        TRY(text, : : "a"(0), "d"(0), "c"(0), "b"(0) : "cc");                                                          \
        CHECK(shown_ ? tk_got.vector == -1 : FAULTED(6, 0), name);                                                     \
        shown += shown_;                                                                                               \
    } while (0)

static void instructions(void)
{
    int shown = 0;
    uint32_t a;

    INSN("sse3", "haddps %%xmm0, %%xmm0", l1[2], 0);
    INSN("pclmulqdq", "pclmulqdq $0, %%xmm0, %%xmm0", l1[2], 1);
    INSN("ssse3", "pabsb %%xmm0, %%xmm0", l1[2], 9);
    INSN("sse4.1", "pmuldq %%xmm0, %%xmm0", l1[2], 19);
    INSN("sse4.2", "pcmpgtq %%xmm0, %%xmm0", l1[2], 20);
    INSN("crc32", "crc32 %%eax, %%eax", l1[2], 20);
    INSN("popcnt", "popcnt %%eax, %%eax", l1[2], 23);
    INSN("aes", "aesenc %%xmm0, %%xmm0", l1[2], 25);
    INSN("lahf", "lahf", le1[2], 0);
    INSN("sha", "sha1msg1 %%xmm0, %%xmm0", l7[1], 29);
    INSN("gfni", "gf2p8mulb %%xmm0, %%xmm0", l7[2], 8);
    INSN("adx", "adox %%eax, %%eax", l7[1], 19);
    INSN("bmi1", "andn %%eax, %%eax, %%eax", l7[1], 3);
    INSN("bmi2", "rorx $1, %%eax, %%eax", l7[1], 8);
    INSN("movbe", "movbe %%rsp, -16(%%rsp); nop", l1[2], 22);
    INSN("rdtscp", "rdtscp", le1[3], 27);
    INSN("avx", "vaddps %%xmm0, %%xmm0, %%xmm0", l1[2], 28);
    INSN("f16c", "vcvtph2ps %%xmm0, %%xmm0", l1[2], 29);
    INSN("fma", "vfmadd132ps %%xmm0, %%xmm0, %%xmm0", l1[2], 12);
    INSN("avx2", "vpaddb %%ymm0, %%ymm0, %%ymm0", l7[1], 5);
    INSN("vaes", "vaesenc %%ymm0, %%ymm0, %%ymm0", l7[2], 9);
    INSN("avx-vnni", ".byte 0xc4, 0xe2, 0x7d, 0x50, 0xc0" /* vpdpbusd */, l71[0], 4);
    INSN("avx512f", "vpxorq %%zmm0, %%zmm0, %%zmm0", l7[1], 16);
    INSN("avx512vl", "vpxorq %%xmm16, %%xmm16, %%xmm16", l7[1], 31);
    INSN("avx512bw", "vpaddb %%zmm0, %%zmm0, %%zmm0", l7[1], 30);
    INSN("avx512dq", "kmovb %%k0, %%k0", l7[1], 17);
    INSN("avx512cd", "vpconflictd %%zmm0, %%zmm0", l7[1], 28);
    INSN("avx512vnni", "vpdpbusd %%zmm0, %%zmm0, %%zmm0", l7[2], 11);
    INSN("rdrand", "rdrand %%eax", l1[2], 30);
    INSN("serialize", "serialize", l7[3], 14);
    tk_say("%d of the instructions are shown", shown);
    /* LZCNT and TZCNT are BSR and BSF where they are not known. */
    __asm__ volatile("lzcnt %1, %0" : "=r"(a) : "r"(1) : "cc");
    EQUAL(a, le1[2] >> 5 & 1 ? 31 : 0, "lzcnt-or-bsr");
    a = 77;
    __asm__ volatile("tzcnt %1, %0" : "+r"(a) : "r"(0) : "cc");
    EQUAL(a, l7[1] >> 3 & 1 ? 32 : 77, "tzcnt-or-bsf");
}

static void extended_state(void)
{
    uint32_t d[4], want = 3;

    if (!(l1[2] >> 26 & 1)) {
        cpuid(0xd, 0, d);
        CHECK(!d[0] && !d[2], "no-xsave-no-leaf");
        TRY("mov %0, %%cr4", : : "r"(READ_REG("cr4") | 1ul << 18));
        UNLESS_TCG("no-xsave-no-cr4-bit")
        CHECK(FAULTED(13, 0), "no-xsave-no-cr4-bit");
        return;
    }
    want |= l1[2] >> 28 & 1 ? 4 : 0;
    want |= l7[1] >> 16 & 1 ? 0xe0 : 0;
    cpuid(0xd, 0, d);
    if (tk_tcg())
        tk_skip("xcr0-as-the-features", "QEMU TCG has protection keys");
    else
        EQUAL(d[0], want, "xcr0-as-the-features");
    EQUAL(d[2] >= (want & 0xe0 ? 2432 : want & 4 ? 832 : 576), 1, "xsave-size-as-the-features");
    WRITE_REG("cr4", READ_REG("cr4") | 1ul << 18);
    TRY("xsetbv", : : "a"(want | 0x100), "d"(0), "c"(0));
    CHECK(FAULTED(13, 0), "xsetbv-more-than-shown");
    if (!(want & 4)) {
        TRY("xsetbv", : : "a"(7), "d"(0), "c"(0));
        CHECK(FAULTED(13, 0), "xsetbv-hidden-avx");
    }
    __asm__ volatile("xsetbv" : : "a"(want), "d"(0), "c"(0));
}

/* --- time -------------------------------------------------------------------------------------------- */
static volatile struct { uint32_t version, pad; uint64_t tsc, ns; uint32_t mul; int8_t shift; uint8_t flags, pad2[2]; }
    page __attribute__((aligned(64)));
static volatile struct { uint32_t version, sec, nsec; } wall __attribute__((aligned(16)));

static uint64_t clock_ns(uint64_t tsc)
{
    uint64_t d = tsc - page.tsc;

    d = page.shift < 0 ? d >> -page.shift : d << page.shift;
    return page.ns + (uint64_t)((unsigned __int128)d * page.mul >> 32);
}

/* The machine may take the CPU away at any moment: the shortest of some tries. */
static uint64_t ticks_in(uint32_t us)
{
    uint64_t best = ~0ull;

    for (int i = 0; i < 25; i++) {
        uint64_t t = rdtsc();
        tk_delay_us(us);
        t = rdtsc() - t;
        best = t < best ? t : best;
    }
    return best;
}

static void clocks(void)
{
    uint32_t r[4], h[4];
    uint64_t khz = 0, measured = ticks_in(2000) / 2;

    cpuid(0x40000000, 0, h);
    if ((l1[2] >> 31 & 1) && h[0] >= 0x40000010) {
        cpuid(0x40000010, 0, r);
        khz = r[0];
    } else {
        cpuid(0, 0, r);
        if (r[0] >= 0x15) {
            cpuid(0x15, 0, r);
            khz = r[0] ? (uint64_t)r[2] / 1000 * r[1] / r[0] : 0;
        }
    }
    if (khz) {
        tk_say("TSC: %u kHz told, %u measured", (unsigned)khz, (unsigned)measured);
        CHECK(measured > khz - khz / 20 && measured < khz + khz / 5, "tsc-as-fast-as-told");
    } else {
        tk_skip("tsc-as-fast-as-told", "CPUID does not say how fast");
    }
    wrmsr(0x10, 1000);
    CHECK(rdtsc() < 1ull << 32, "tsc-written");
    if (l7[1] & 2) {
        wrmsr(0x3b, 1ull << 40);
        uint64_t t = rdtsc();
        wrmsr(0x3b, 0);
        CHECK(t > 1ull << 40 && rdtsc() < t, "tsc-adjust");
    }
    if (!(l1[2] >> 31 & 1) || h[1] != 0x4b4d564b) {
        tk_skip("kvm-clock", "CPUID shows no KVM");
        TRY("vmcall", : : "a"(5), "b"(0), "c"(0) : "memory");
        UNLESS_TCG("vmcall-ud")
        CHECK(tk_got.vector == 6, "vmcall-ud");
        return;
    }
    cpuid(0x40000001, 0, r);
    CHECK((r[0] & 0x01000008) == 0x01000008, "kvm-clock-shown");
    wrmsr(0x4b564d01, (uint64_t)(tk_word)&page | 1);
    CHECK(!(page.version & 1) && (page.flags & 1) && page.mul, "kvm-clock-page");
    uint64_t t0 = rdtsc(), a = clock_ns(t0), t1, b;
    tk_delay_us(10000);
    t1 = rdtsc();
    b = clock_ns(t1);
    int64_t off = (int64_t)(b - a) - (int64_t)((t1 - t0) * 1000000 / khz);
    CHECK(b - a >= 9900000 && off < 1000 && off > -1000, "kvm-clock-counts-nanoseconds");
    wrmsr(0x10, rdtsc() + khz * 3600000); /* an hour of TSC is no hour */
    uint64_t c = clock_ns(rdtsc());
    CHECK(c >= b && c - b < 10000000000ull, "kvm-clock-does-not-jump-with-the-tsc");
    wrmsr(0x4b564d00, (tk_word)&wall);
    CHECK(wall.sec > 1700000000u && wall.nsec < 1000000000u, "kvm-wall-clock");
    EQUAL(rdmsr(0x4b564d01), (tk_word)&page | 1, "kvm-clock-msr-reads-back");
    uint64_t answer;
    __asm__ volatile("vmcall" : "=a"(answer) : "a"(12345ul), "b"(0), "c"(0), "d"(0), "S"(0) : "memory");
    EQUAL(answer, (uint64_t)-1000, "unknown-hypercall");
    wrmsr(0x4b564d01, 0);
}

void tk_main(void)
{
    uint32_t max[4];

    cpuid(0, 0, max);
    cpuid(1, 0, l1);
    if (max[0] >= 7) {
        cpuid(7, 0, l7);
        cpuid(7, 1, l71);
    }
    cpuid(0x80000001, 0, le1);
    WRITE_REG("cr0", READ_REG("cr0") & ~0xcul);
    WRITE_REG("cr4", READ_REG("cr4") | 0x600);
    extended_state();
    instructions();
    clocks();
}
