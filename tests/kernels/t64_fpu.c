/* SPDX-License-Identifier: Apache-2.0 */
/* x87, SSE and AVX: state, control words, exceptions, saving and restoring, TS and EM. */
#include "tk.h"

static uint8_t area[4096] __attribute__((aligned(64)));
static uint8_t area2[4096] __attribute__((aligned(64)));

static void x87(void)
{
    uint16_t cw, sw;
    uint64_t bits = 0;
    uint32_t r = 0;

    __asm__ volatile("fninit; fnstcw %0; fnstsw %1" : "=m"(cw), "=m"(sw));
    CHECK(cw == 0x37f && sw == 0, "fninit");
    __asm__ volatile("fld1; fldpi; fmulp; fstpl %0" : "=m"(bits));
    EQUAL(bits, 0x400921fb54442d18ul, "fldpi-times-one");
    /* Rounding control: 1/3 down and up in double precision. */
    uint64_t down = 0, up = 0;
    cw = 0x67f; /* down, 53 bits */
    uint16_t three = 3;
    __asm__ volatile("fldcw %2; fld1; fidivs %3; fstpl %0; movw $0x0a7f, %1" : "=m"(down), "=m"(cw) : "m"(cw), "m"(three));
    __asm__ volatile("fldcw %1; fld1; fidivs %2; fstpl %0; fninit" : "=m"(up) : "m"(cw), "m"(three));
    CHECK(down == 0x3fd5555555555555ul && up == 0x3fd5555555555556ul, "x87-rounding-control");
    /* An unmasked zero divide is reported by the next waiting instruction. */
    WRITE_REG("cr0", READ_REG("cr0") | 0x20); /* NE */
    cw = 0x37b;
    __asm__ volatile("fninit; fldcw %0; fld1; fldz; fdivrp" : : "m"(cw));
    TRY("fwait", : : :);
    CHECK(FAULTED(16, 0), "mf-by-fwait");
    __asm__ volatile("fnstsw %0; fnclex" : "=a"(sw));
    CHECK((sw & 0x84) == 0x84, "mf-status");
    __asm__ volatile("fninit");
    /* The stack overflows with C1 and IS. */
    __asm__ volatile("fld1;fld1;fld1;fld1;fld1;fld1;fld1;fld1;fld1; fnstsw %0; fninit" : "=a"(sw));
    UNLESS_TCG("x87-stack-overflow")
    CHECK((sw & 0x241) == 0x241, "x87-stack-overflow");
    __asm__ volatile("fldz; fld1; fcomip; setc %b0; fstp %%st(0)" : "=q"(r) : : "cc");
    CHECK(!(r & 1), "fcomip");
    __asm__ volatile("fld1; fld1; faddp; fistpl %0" : "=m"(r));
    EQUAL(r, 2, "fistp");
    /* TS and EM */
    WRITE_REG("cr0", READ_REG("cr0") | 8);
    TRY("fld1", : : :);
    CHECK(FAULTED(7, 0), "nm-x87-with-ts");
    TRY("movaps %%xmm0, %%xmm1", : : :);
    CHECK(FAULTED(7, 0), "nm-sse-with-ts");
    TRY("fwait", : : :);
    CHECK(FAULTED(7, 0) || tk_got.vector == -1, "fwait-with-ts-without-mp");
    __asm__ volatile("clts");
    WRITE_REG("cr0", READ_REG("cr0") | 4);
    TRY("fld1", : : :);
    CHECK(FAULTED(7, 0), "nm-x87-with-em");
    TRY("movaps %%xmm0, %%xmm1", : : :);
    CHECK(FAULTED(6, 0), "ud-sse-with-em");
    WRITE_REG("cr0", READ_REG("cr0") & ~4ul);
    WRITE_REG("cr4", READ_REG("cr4") & ~0x200ul);
    TRY("movaps %%xmm0, %%xmm1", : : :);
    CHECK(FAULTED(6, 0), "ud-sse-without-osfxsr");
    WRITE_REG("cr4", READ_REG("cr4") | 0x600);
}

static void sse(void)
{
    uint32_t mxcsr = 0, r = 0;
    static uint32_t four[4] __attribute__((aligned(16))) = {0x3f800000, 0x40000000, 0x40400000, 0x40800000};
    static uint32_t out[4] __attribute__((aligned(16))); /* floats 1 to 4: this file has no floating point of its own */
    static uint32_t zero[4] __attribute__((aligned(16)));

    mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    __asm__ volatile("movaps %1, %%xmm3; addps %%xmm3, %%xmm3; movaps %%xmm3, %0" : "=m"(out) : "m"(four));
    CHECK(out[0] == 0x40000000 && out[3] == 0x41000000, "addps");
    TRY("movaps (%0), %%xmm0", : : "r"((char *)four + 4));
    CHECK(FAULTED(13, 0), "movaps-misaligned-gp");
    TRY("addps (%0), %%xmm0", : : "r"((char *)four + 4));
    UNLESS_TCG("addps-misaligned-gp")
    CHECK(FAULTED(13, 0), "addps-misaligned-gp");
    mxcsr = 0x1d80; /* zero divide unmasked */
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    __asm__ volatile("movaps %0, %%xmm1; movaps %1, %%xmm2" : : "m"(four), "m"(zero));
    TRY("divps %%xmm2, %%xmm1", : : :);
    UNLESS_TCG("xm-divide")
    CHECK(FAULTED(19, 0), "xm-divide");
    __asm__ volatile("stmxcsr %0" : "=m"(r));
    CHECK(r & 4, "mxcsr-flag");
    mxcsr = 0xffff0000;
    TRY("ldmxcsr %0", : : "m"(mxcsr));
    UNLESS_TCG("ldmxcsr-reserved-gp")
    CHECK(FAULTED(13, 0), "ldmxcsr-reserved-gp");
    mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    __asm__ volatile("cvttss2si %1, %0" : "=r"(r) : "m"(four[2]));
    EQUAL(r, 3, "cvttss2si");
}

static void save_restore(void)
{
    uint64_t v = 0;

    __asm__ volatile("fninit; fldpi; pcmpeqd %%xmm5, %%xmm5; fxsave64 %0" : "=m"(area));
    __asm__ volatile("fninit; pxor %%xmm5, %%xmm5; fxrstor64 %0" : : "m"(area));
    __asm__ volatile("movq %%xmm5, %0" : "=r"(v));
    EQUAL(v, ~0ul, "fxrstor-xmm");
    __asm__ volatile("fstpl %0" : "=m"(v));
    EQUAL(v, 0x400921fb54442d18ul, "fxrstor-x87");
    CHECK(area[4] == 0x80 && *(uint16_t *)area == 0x37f, "fxsave-tags-and-control");
    TRY("fxsave64 (%0)", : : "r"(area + 8) : "memory");
    CHECK(FAULTED(13, 0), "fxsave-misaligned-gp");
    uint32_t r[4];
    cpuid(1, 0, r);
    if (!(r[2] & 1u << 26)) {
        tk_skip("xsave", "CPUID shows none");
        return;
    }
    WRITE_REG("cr4", READ_REG("cr4") | 1 << 18);
    bool avx = r[2] & 1u << 28;
    uint32_t mask = avx ? 7 : 3;
    __asm__ volatile("xsetbv" : : "a"(mask), "d"(0), "c"(0));
    memset(area, 0, sizeof(area));
    __asm__ volatile("fninit; pcmpeqd %%xmm5, %%xmm5; xsave64 %0" : "=m"(area) : "a"(mask), "d"(0));
    CHECK((*(uint64_t *)(area + 512) & 2) == 2, "xsave-bv");
    __asm__ volatile("pxor %%xmm5, %%xmm5; xrstor64 %0" : : "m"(area), "a"(mask), "d"(0));
    __asm__ volatile("movq %%xmm5, %0" : "=r"(v));
    EQUAL(v, ~0ul, "xrstor-xmm");
    /* A component that is not in XSTATE_BV is initialised. */
    *(uint64_t *)(area + 512) = 0;
    __asm__ volatile("pcmpeqd %%xmm5, %%xmm5; xrstor64 %0" : : "m"(area), "a"(mask), "d"(0));
    __asm__ volatile("movq %%xmm5, %0" : "=r"(v));
    EQUAL(v, 0, "xrstor-initialises");
    *(uint64_t *)(area + 512) = 1ul << 60;
    TRY("xrstor64 (%0)", : : "r"(area), "a"(mask), "d"(0));
    CHECK(FAULTED(13, 0), "xrstor-bad-header-gp");
    WRITE_REG("cr0", READ_REG("cr0") | 8);
    TRY("xsave64 (%0)", : : "r"(area), "a"(mask), "d"(0) : "memory");
    UNLESS_TCG("nm-xsave-with-ts")
    CHECK(FAULTED(7, 0), "nm-xsave-with-ts");
    __asm__ volatile("clts");
    if (!avx) {
        tk_skip("avx", "CPUID shows none");
        return;
    }
    static uint64_t four[4] __attribute__((aligned(32))) = {1, 2, 3, 4}, out[4] __attribute__((aligned(32)));
    __asm__ volatile("vmovdqa %1, %%ymm6; vmovdqu %%ymm6, %0" : "=m"(out) : "m"(four));
    CHECK(out[0] == 1 && out[3] == 4, "vmovdqu-ymm");
    memset(area2, 0, sizeof(area2));
    __asm__ volatile("xsave64 %0" : "=m"(area2) : "a"(7), "d"(0));
    CHECK((*(uint64_t *)(area2 + 512) & 4) && *(uint64_t *)(area2 + 576 + 6 * 16) == 3, "xsave-ymm-upper");
    __asm__ volatile("vpxor %%xmm6, %%xmm6, %%xmm6; vmovdqu %%ymm6, %0" : "=m"(out));
    CHECK(out[0] == 0 && out[3] == 0, "vex128-zeroes-upper");
    __asm__ volatile("xrstor64 %1; vmovdqu %%ymm6, %0" : "=m"(out) : "m"(area2), "a"(7), "d"(0));
    CHECK(out[0] == 1 && out[3] == 4, "xrstor-ymm");
    __asm__ volatile("pxor %%xmm6, %%xmm6; vmovdqu %%ymm6, %0" : "=m"(out));
    CHECK(out[0] == 0 && out[2] == 3, "sse-keeps-upper");
    __asm__ volatile("vzeroupper; vmovdqu %%ymm6, %0" : "=m"(out));
    CHECK(out[2] == 0, "vzeroupper");
    __asm__ volatile("xsetbv" : : "a"(3), "d"(0), "c"(0));
    TRY("vpxor %%ymm0, %%ymm0, %%ymm0", : : :);
    CHECK(FAULTED(6, 0), "ud-avx-without-xcr0");
    __asm__ volatile("xsetbv" : : "a"(7), "d"(0), "c"(0));
}

static volatile uint32_t ticks;

/* The handler dirties what the loop keeps; the loop's own state must come back because the handler saves it, and the
 * engine must not lose any of it on the way in and out. */
static void on_tick(struct tk_frame *f)
{
    static uint8_t saved[1024] __attribute__((aligned(64)));

    (void)f;
    __asm__ volatile("fxsave64 %0; fninit; pcmpeqd %%xmm0, %%xmm0; pcmpeqd %%xmm15, %%xmm15; fld1; fxrstor64 %0" : "+m"(saved));
    ticks++;
    outb(0x20, 0x20);
}

static void interrupted(void)
{
    uint64_t sum = 0;
    bool good = true;

    tk_pic_setup(0x20, 0xfffe);
    tk_on(0x20, on_tick);
    outb(0x43, 0x34);
    outb(0x40, 0x50);
    outb(0x40, 0x02); /* 2 kHz */
    __asm__ volatile("sti");
    while (ticks < 200) {
        uint64_t n = 5000;

        __asm__ volatile("pxor %%xmm0, %%xmm0; mov $1, %%eax; movd %%eax, %%xmm15\n"
                         "fninit; fldz; 1: paddq %%xmm15, %%xmm0; fld1; faddp; decq %1; jnz 1b\n"
                         "movq %%xmm0, %0; fistpll %1"
                         : "=r"(sum), "+m"(n) : : "rax", "cc");
        good &= sum == 5000 && n == 5000;
    }
    __asm__ volatile("cli");
    CHECK(good, "vectors-survive-interrupts");
}

void tk_main(void)
{
    WRITE_REG("cr0", (READ_REG("cr0") & ~0xcul) | 2);
    WRITE_REG("cr4", READ_REG("cr4") | 0x600);
    x87();
    sse();
    save_restore();
    interrupted();
}
