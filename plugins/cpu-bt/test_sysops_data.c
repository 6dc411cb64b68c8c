/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_sysops_data.c - strings, FPU and extended state images,
 * gathers, decimal adjustment and other odd instructions.
 */
#include "test_sysops.h"

#define C (&B.c)

/* --- strings --------------------------------------------------------------------------- */
static void str_setup(unsigned size, uint8_t rep, uint64_t si, uint64_t di, uint64_t n)
{
    B.op.opsize = (uint8_t)size;
    B.op.rep = rep;
    C->gpr[BT_RSI] = si;
    C->gpr[BT_RDI] = di;
    C->gpr[BT_RCX] = n;
    C->rip = 0x1000;
}

/* Element by element, the definition. */
static void movs_model(uint8_t *m, unsigned size, uint64_t si, uint64_t di, uint64_t n, bool back)
{
    for (; n; n--) {
        uint64_t v = 0;
        sys_copy(&v, m + si, size);
        sys_copy(m + di, &v, size);
        si += back ? -(uint64_t)size : size;
        di += back ? -(uint64_t)size : size;
    }
}

static uint64_t rnd(void)
{
    static uint64_t x = 88172645463325252ull;
    x ^= x << 13;
    x ^= x >> 7;
    return x ^= x << 17;
}

static void moves_match_the_definition(void **s)
{
    static uint8_t want[0x8000];
    (void)s;
    for (unsigned round = 0; round < 3000; round++) {
        bench_long(0);
        unsigned size = 1u << (rnd() & 3);
        uint64_t si = 0x2000 + rnd() % 0x3000, di = rnd() & 1 ? si + rnd() % 64 - 32 : 0x2000 + rnd() % 0x3000;
        uint64_t n = rnd() % (rnd() & 1 ? 20 : 0x1000 / size);
        for (unsigned i = 0; i < sizeof(want); i++)
            B.ram[DATA + i] = want[i] = (uint8_t)rnd();
        C->dflag = rnd() & 1;
        if (rnd() % 4 == 0)
            B.no_ptr_page = DATA + 0x3000;
        str_setup(size, 0xf3, DATA + si, DATA + di, n);
        movs_model(want, size, si, di, n, C->dflag);
        OK(bt_op_movs(C, &B.op));
        assert_memory_equal(want, B.ram + DATA, sizeof(want));
        uint64_t d = (C->dflag ? -n : n) * size;
        assert_int_equal(C->gpr[BT_RSI], DATA + si + d);
        assert_int_equal(C->gpr[BT_RDI], DATA + di + d);
        assert_int_equal(C->gpr[BT_RCX], 0);
        assert_int_equal(C->rip, 0x1002);
    }
}

static void fills_match_the_definition(void **s)
{
    (void)s;
    for (unsigned round = 0; round < 1000; round++) {
        bench_long(0);
        unsigned size = 1u << (rnd() & 3);
        uint64_t di = DATA + 0x2000 + rnd() % 0x1000, n = rnd() % 0x200, v = rnd();
        C->dflag = rnd() & 1;
        C->gpr[BT_RAX] = v;
        str_setup(size, 0xf3, 0, di, n);
        OK(bt_op_stos(C, &B.op));
        for (uint64_t i = 0; i < n; i++)
            assert_int_equal(get(di + (C->dflag ? -i : i) * size, size), v & sys_mask(size));
        uint64_t past = di + (C->dflag ? -n : n) * size;
        assert_int_equal(get(past, 1) & (n ? 0xff : 0), 0);
    }
}

static void repeated_strings_stop_in_the_middle(void **s)
{
    (void)s;
    bench_prot(3);
    /* at a fault */
    str_setup(4, 0xf3, DATA, DATA + 0x5ffe, 100);
    B.pf_page = DATA + 0x7000;
    C->gpr[BT_RCX] = 2000;
    RAISES(BT_EX_PF, 6, bt_op_movs(C, &B.op));
    assert_int_equal(C->rip, 0x1000);
    assert_int_equal(C->gpr[BT_RDI], DATA + 0x6ffe); /* the element that crosses into the page */
    assert_int_equal(C->gpr[BT_RCX], 2000 - 0x400);
    assert_int_equal(C->gpr[BT_RSI], DATA + 0x1000);
    B.pf_page = ~0ull;
    OK(bt_op_movs(C, &B.op));
    assert_int_equal(C->gpr[BT_RCX], 0);
    /* for an interrupt */
    str_setup(1, 0xf3, 0, DATA, 0x3000);
    atomic_store(&C->pending, BT_PEND_IRQ);
    OK(bt_op_stos(C, &B.op));
    assert_int_equal(C->rip, 0x1000);
    assert_int_equal(C->gpr[BT_RCX], 0x2000);
    atomic_store(&C->pending, 0);
    /* for a single step */
    C->mode |= BT_MODE_TF;
    OK(bt_op_stos(C, &B.op));
    assert_int_equal(C->rip, 0x1000);
    assert_int_equal(C->gpr[BT_RCX], 0x1fff);
    str_setup(1, 0xf3, 0, DATA, 1);
    OK(bt_op_stos(C, &B.op));
    assert_int_equal(C->rip, 0x1002);
    /* nothing to do */
    str_setup(1, 0xf3, 0, 0xfffffff0, 0);
    OK(bt_op_stos(C, &B.op));
    assert_int_equal(C->rip, 0x1002);
}

static void sixteen_bit_indices_wrap(void **s)
{
    (void)s;
    bench_real();
    C->gpr[BT_RDI] = 0;
    str_setup(1, 0xf3, 0, 0xabc0fff8, 0x12340010);
    C->gpr[BT_RAX] = 0x5a;
    sys_real_seg(C, BT_ES, DATA >> 4);
    OK(bt_op_stos(C, &B.op));
    assert_int_equal(C->gpr[BT_RDI], 0xabc00008);
    assert_int_equal(C->gpr[BT_RCX], 0x12340000);
    assert_int_equal(get(DATA + 0xffff, 1), 0x5a);
    assert_int_equal(get(DATA + 7, 1), 0x5a);
    assert_int_equal(get(DATA + 8, 1), 0);
    /* a word at the very end does not fit */
    str_setup(2, 0, 0, 0xffff, 0);
    RAISES(BT_EX_GP, 0, bt_op_stos(C, &B.op));
}

static uint32_t host_cmp(uint64_t a, uint64_t b, unsigned size)
{
    uint64_t x = a << (64 - 8 * size), y = b << (64 - 8 * size), r = x - y;
    uint32_t f = (x < y ? BT_CF : 0) | (r == 0 ? BT_ZF : 0) | (r >> 63 ? BT_SF : 0);
    f |= ((x ^ y) & (x ^ r)) >> 63 ? BT_OF : 0;
    f |= ((a & 15) < (b & 15) ? BT_AF : 0) | (__builtin_parity((uint8_t)(a - b)) ? 0 : BT_PF);
    return f;
}

static void compares_match_the_definition(void **s)
{
    (void)s;
    for (unsigned round = 0; round < 2000; round++) {
        bench_long(0);
        unsigned size = 1u << (rnd() & 3);
        bool until_equal = rnd() & 1, cmps = rnd() & 1;
        uint64_t n = 1 + rnd() % 300, si = DATA + 0x2000 + rnd() % 0x1000, di = DATA + 0x6000 + rnd() % 0x1000;
        uint64_t stop = rnd() % (n + 3), i;
        C->dflag = rnd() & 1;
        C->gpr[BT_RAX] = rnd();
        if (rnd() % 4 == 0)
            B.no_ptr_page = DATA + 0x6000;
        int64_t step = C->dflag ? -(int64_t)size : (int64_t)size;
        for (i = 0; i < n; i++) {
            uint64_t v = cmps ? rnd() : C->gpr[BT_RAX];
            bool equal = (i == stop) == until_equal;
            if (cmps)
                put(si + i * step, size, v);
            put(di + i * step, size, equal ? v : v + 1 + (rnd() & 0x7f));
        }
        str_setup(size, until_equal ? 0xf2 : 0xf3, si, di, n);
        OK(cmps ? bt_op_cmps(C, &B.op) : bt_op_scas(C, &B.op));
        uint64_t done = stop < n ? stop + 1 : n, last = done - 1;
        assert_int_equal(C->gpr[BT_RCX], n - done);
        assert_int_equal(C->gpr[BT_RDI], di + done * step);
        uint64_t a = cmps ? get(si + last * step, size) : C->gpr[BT_RAX] & sys_mask(size);
        assert_int_equal(bt_rflags(C) & BT_ARITH, host_cmp(a, get(di + last * step, size), size));
        assert_int_equal(C->rip, 0x1002);
    }
}

/* --- images ------------------------------------------------------------------------------- */
#define IMG DATA
static void load_known_state(void)
{
    static const uint64_t x[2] = {0x1122334455667788, 0x99aabbccddeeff00};
    uint32_t mxcsr = 0x1f80;
    uint16_t cw = 0x27f;
    __asm__ volatile("fninit\n\tfldcw %2\n\tfldpi\n\tfld1\n\tmovups %0, %%xmm3\n\tmovups %0, %%xmm9\n\tldmxcsr %1"
                     ::"m"(x), "m"(mxcsr), "m"(cw));
}
static uint64_t xmm3_low(void)
{
    uint64_t v;
    __asm__ volatile("movq %%xmm3, %0" : "=r"(v));
    return v;
}
static void clobber_state(void) { __asm__ volatile("fninit\n\tpxor %xmm3, %xmm3\n\tpxor %xmm9, %xmm9"); }
static void image_op(void (*fn)(struct bt_vcpu *, const struct bt_op *), uint64_t ea, uint64_t features)
{
    B.op.is_mem = 1;
    C->op_ea = ea;
    C->gpr[BT_RAX] = (uint32_t)features;
    C->gpr[BT_RDX] = features >> 32;
    fn(C, &B.op);
}

static void fxsave_images(void **s)
{
    (void)s;
    bench_long(0);
    memset(B.ram + IMG, 0xee, 512);
    OK(load_known_state(); image_op(bt_op_fxsave, IMG, 0));
    assert_int_equal(get(IMG, 2), 0x27f);
    assert_int_equal(get(IMG + 4, 1), 0xc0);
    assert_int_equal(get(IMG + 8, 8), 0); /* no host addresses */
    assert_int_equal(get(IMG + 16, 8), 0);
    assert_int_equal(get(IMG + 160 + 3 * 16, 8), 0x1122334455667788);
    assert_int_equal(get(IMG + 416, 8), 0xeeeeeeeeeeeeeeee);
    OK(clobber_state(); image_op(bt_op_fxrstor, IMG, 0); assert_int_equal(xmm3_low(), 0x1122334455667788));
    RAISES(BT_EX_GP, 0, image_op(bt_op_fxsave, IMG + 8, 0));
    put(IMG + 24, 4, 0x10000); /* reserved MXCSR bit */
    RAISES(BT_EX_GP, 0, image_op(bt_op_fxrstor, IMG, 0));
    C->cr0 |= BT_CR0_TS;
    RAISES(BT_EX_NM, 0, image_op(bt_op_fxsave, IMG, 0));
    /* 32-bit code has eight registers */
    bench_prot(0);
    memset(B.ram + IMG, 0xee, 512);
    OK(load_known_state(); image_op(bt_op_fxsave, IMG, 0));
    assert_int_equal(get(IMG + 160 + 9 * 16, 8), 0xeeeeeeeeeeeeeeee);
}

static void xsave_images(void **s)
{
    (void)s;
    bench_long(0);
    memset(B.ram + IMG, 0xee, 4096);
    put(IMG + 512, 8, 0x8000000000000004); /* bits outside the request stay */
    OK(load_known_state(); image_op(bt_op_xsave, IMG, 3));
    assert_int_equal(get(IMG + 512, 8), 0x8000000000000007);
    assert_int_equal(get(IMG + 520, 8), 0xeeeeeeeeeeeeeeee);
    assert_int_equal(get(IMG + 576, 8), 0xeeeeeeeeeeeeeeee);
    assert_int_equal(get(IMG + 160 + 48, 8), 0x1122334455667788);
    /* only what is asked for: x87 alone leaves SSE's bytes */
    memset(B.ram + IMG, 0xee, 4096);
    OK(load_known_state(); image_op(bt_op_xsaveopt, IMG, 1));
    assert_int_equal(get(IMG + 160 + 48, 8), 0xeeeeeeeeeeeeeeee);
    assert_int_equal(get(IMG, 2), 0x27f);
    RAISES(BT_EX_GP, 0, image_op(bt_op_xsave, IMG + 32, 3));
    RAISES(BT_EX_GP, 0, (C->cpl = 3, image_op(bt_op_xsaves, IMG, 3)));
}

static void compacted_images(void **s)
{
    (void)s;
    for (unsigned bounce = 0; bounce < 2; bounce++) {
        bench_long(0);
        memset(B.ram + IMG, 0xee, 4096);
        memset(B.ram + IMG + 528, 0, 48); /* XSAVEC leaves the rest of the header alone */
        if (bounce)
            B.no_ptr_page = IMG;
        OK(load_known_state(); image_op(bt_op_xsavec, IMG, ~0ull));
        assert_int_equal(get(IMG + 520, 8), B.vm.host_xcr0 | 1ull << 63);
        assert_int_equal(get(IMG + 512, 8) & 3, 3);
        assert_int_equal(get(IMG + 8, 8), 0);
        OK(clobber_state(); image_op(bt_op_xrstors, IMG, ~0ull); assert_int_equal(xmm3_low(), 0x1122334455667788));
        OK(clobber_state(); image_op(bt_op_xrstor, IMG, 1); assert_int_equal(xmm3_low(), 0));
        /* init: components not in XSTATE_BV */
        put(IMG + 512, 8, 1);
        OK(load_known_state(); image_op(bt_op_xrstor, IMG, 7); assert_int_equal(xmm3_low(), 0));
    }
}

static void bad_headers_are_refused(void **s)
{
    static const struct {
        uint64_t bv, xcomp, tail;
        bool s;
    } bad[] = {
        {1ull << 8, 0, 0, false},                      /* not in XCR0 */
        {1ull << 18, 0, 0, false},                     /* AMX: the host may have it */
        {3, 3, 0, false},                              /* XCOMP_BV in the standard form */
        {3, 0, 1, false},                              /* reserved bytes */
        {3, 0, 0, true},                               /* XRSTORS wants the compacted form */
        {3, 1ull << 63 | 1, 0, false},                 /* component without a place */
        {3, 1ull << 63 | 3 | 1ull << 18, 0, false},    /* place for a component not in XCR0 */
        {3, 1ull << 63 | 3, 1, false},
    };
    (void)s;
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        bench_long(0);
        put(IMG + 24, 4, 0x1f80);
        put(IMG + 512, 8, bad[i].bv);
        put(IMG + 520, 8, bad[i].xcomp);
        put(IMG + 528, 8, bad[i].tail);
        RAISES(BT_EX_GP, 0, image_op(bad[i].s ? bt_op_xrstors : bt_op_xrstor, IMG, ~0ull));
    }
    put(IMG + 512, 8, 0);
    put(IMG + 520, 8, 0);
    put(IMG + 528, 8, 0);
    put(IMG + 24, 4, 0x80000000);
    RAISES(BT_EX_GP, 0, image_op(bt_op_xrstor, IMG, 2)); /* MXCSR is loaded even for initial state */
    OK(image_op(bt_op_xrstor, IMG, 1));
}

static void environments_by_operand_size(void **s)
{
    (void)s;
    bench_prot(0);
    B.op.opsize = 2;
    memset(B.ram + IMG, 0xee, 256);
    OK(load_known_state(); image_op(bt_op_fnsave, IMG, 0));
    assert_int_equal(get(IMG, 2), 0x27f);
    assert_int_equal(get(IMG + 2, 2) >> 11 & 7, 6);
    assert_int_equal(get(IMG + 4, 2), 0x0fff);
    assert_int_equal(get(IMG + 14, 8), 0x8000000000000000); /* 1.0 */
    assert_int_equal(get(IMG + 22, 2), 0x3fff);
    assert_int_equal(get(IMG + 94, 1), 0xee);
    uint16_t cw;
    __asm__ volatile("fnstcw %0" : "=m"(cw));
    assert_int_equal(cw, 0x37f); /* FNSAVE initialises */
    OK(image_op(bt_op_frstor, IMG, 0));
    B.op.opsize = 4;
    OK(image_op(bt_op_fnstenv, IMG + 0x100, 0));
    assert_int_equal(get(IMG + 0x100, 4), 0xffff027f);
    assert_int_equal(get(IMG + 0x108, 4), 0xffff0fff);
    assert_int_equal(get(IMG + 0x10c, 8), 0);
    __asm__ volatile("fninit");
    OK(image_op(bt_op_fldenv, IMG + 0x100, 0));
    __asm__ volatile("fnstcw %0" : "=m"(cw));
    assert_int_equal(cw, 0x27f);
    /* An unmasked exception pending in the registers */
    put(IMG + 0x100, 2, 0x27e);
    put(IMG + 0x104, 2, 0x8081);
    OK(image_op(bt_op_fldenv, IMG + 0x100, 0));
    RAISES(BT_EX_MF, 0, image_op(bt_op_fldenv, IMG + 0x100, 0));
    C->cr0 &= ~(uint64_t)BT_CR0_NE;
    put(IMG + 0x104, 2, 0);
    RUN(image_op(bt_op_fldenv, IMG + 0x100, 0)); /* the dispatcher sees to it, then the instruction starts again */
    assert_true(B.vector == -2 && C->ferr);
    __asm__ volatile("fninit");
    OK(image_op(bt_op_fldenv, IMG + 0x100, 0));
    __asm__ volatile("fninit");
}

/* --- gathers ---------------------------------------------------------------------------------- */
static void set_bytes(const char *hex)
{
    unsigned n = 0;
    for (; hex[0] && hex[1]; hex += 2) {
        unsigned v = 0;
        for (unsigned i = 0; i < 2; i++)
            v = v << 4 | (unsigned)(hex[i] <= '9' ? hex[i] - '0' : hex[i] - 'a' + 10);
        B.op.bytes[n++] = (uint8_t)v;
    }
    B.op.len = (uint8_t)n;
}

/* Vector registers in the image, with everything in use. */
static uint32_t *xmm(unsigned n) { return (uint32_t *)(C->xsave + 160 + 16 * n); }
static uint32_t *ymm_high(unsigned n) { return (uint32_t *)(C->xsave + C->xcomp[2].off + 16 * n); }
static void in_image(void)
{
    C->fp_live = 0;
    sys_xstate_layout(C);
    memset(C->xsave, 0, sizeof(C->xsave));
    C->xsave[1] = 3, C->xsave[0] = 0x7f, C->xsave[25] = 0x1f, C->xsave[24] = 0x80;
    sys_put64(C->xsave + 512, C->xcr0);
}

static void vex_gather(void **s)
{
    (void)s;
    bench_long(0);
    if (!(C->xcr0 & 4))
        skip();
    in_image();
    C->xcr0 = 7;
    set_bytes("c4e26d9004bb"); /* vpgatherdd ymm0, [rbx + ymm7*4], ymm2 */
    B.op.seg = BT_DS;
    C->gpr[BT_RBX] = DATA;
    for (unsigned i = 0; i < 8; i++) {
        uint32_t *idx = i < 4 ? xmm(7) : ymm_high(7), *mask = i < 4 ? xmm(2) : ymm_high(2);
        uint32_t *dst = i < 4 ? xmm(0) : ymm_high(0);
        idx[i & 3] = i == 1 ? (uint32_t)-4 : i * 3;
        mask[i & 3] = i == 2 ? 0x7fffffff : 0x80000000;
        dst[i & 3] = 0xd0 + i;
        put(DATA + (i == 1 ? -16 : (int)(i * 12)), 4, 0xa00 + i);
    }
    OK(bt_op_gather(C, &B.op));
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal((i < 4 ? xmm(0) : ymm_high(0))[i & 3], i == 2 ? 0xd2 : 0xa00 + i);
        assert_int_equal((i < 4 ? xmm(2) : ymm_high(2))[i & 3], 0);
    }
    /* A fault at element 3 keeps 0..2 and the masks of the rest */
    for (unsigned i = 0; i < 4; i++)
        xmm(2)[i] = ymm_high(2)[i] = 0x80000000, xmm(0)[i] = 0;
    xmm(7)[3] = 0x400;
    B.pf_page = DATA + 0x1000;
    RAISES(BT_EX_PF, 0, bt_op_gather(C, &B.op));
    assert_int_equal(xmm(0)[0], 0xa00);
    assert_int_equal(xmm(2)[0], 0);
    assert_int_equal(xmm(2)[3], 0x80000000);
    set_bytes("c4e26d9004bb");
    B.op.bytes[4] = 0x3c; /* destination equals index */
    RAISES(BT_EX_UD, 0, bt_op_gather(C, &B.op));
    /* Quad-word indices with double words: half the elements, upper part zeroed */
    B.pf_page = ~0ull;
    set_bytes("c4e2699104bb"); /* vpgatherqd xmm0, [rbx + xmm7*4], xmm2 */
    xmm(7)[0] = 0, xmm(7)[1] = 0, xmm(7)[2] = 3, xmm(7)[3] = 0;
    xmm(2)[0] = xmm(2)[1] = 0x80000000;
    for (unsigned i = 0; i < 4; i++)
        xmm(0)[i] = 0x55;
    put(DATA + 12, 4, 0x77);
    OK(bt_op_gather(C, &B.op));
    assert_int_equal(xmm(0)[1], 0x77);
    assert_int_equal(xmm(0)[2], 0);
}

static void evex_gather_and_scatter(void **s)
{
    (void)s;
    bench_long(0);
    if ((C->xcr0 & 0xe0) != 0xe0)
        skip();
    in_image();
    uint64_t *k1 = (uint64_t *)(C->xsave + C->xcomp[5].off + 8);
    set_bytes("62f27d49a0448b02"); /* vpscatterdd [rbx + zmm1*4 + 8]{k1}, zmm0 */
    C->gpr[BT_RBX] = DATA;
    for (unsigned i = 0; i < 4; i++)
        xmm(1)[i] = i * 2, xmm(0)[i] = 0xb0 + i;
    *k1 = 0xb;
    OK(bt_op_scatter(C, &B.op));
    assert_int_equal(*k1, 0);
    assert_int_equal(get(DATA + 8, 4), 0xb0);
    assert_int_equal(get(DATA + 16, 4), 0xb1);
    assert_int_equal(get(DATA + 24, 4), 0); /* masked */
    assert_int_equal(get(DATA + 32, 4), 0xb3);
    set_bytes("62e27d4990448b02"); /* vpgatherdd zmm16{k1}, [rbx + zmm1*4 + 8] */
    *k1 = 9;
    uint32_t *z16 = (uint32_t *)(C->xsave + C->xcomp[7].off);
    z16[1] = 0x99;
    OK(bt_op_gather(C, &B.op));
    assert_int_equal(z16[0], 0xb0);
    assert_int_equal(z16[1], 0x99);
    assert_int_equal(z16[3], 0xb3);
    assert_int_equal(*k1, 0);
}

static void masked_byte_stores(void **s)
{
    (void)s;
    bench_long(0);
    in_image();
    set_bytes("660ff7ca"); /* maskmovdqu xmm1, xmm2 */
    for (unsigned i = 0; i < 16; i++) {
        C->xsave[160 + 16 + i] = (uint8_t)(0x10 + i);
        C->xsave[160 + 32 + i] = i & 1 ? 0x80 : 0;
    }
    C->gpr[BT_RDI] = DATA + 0xff8;
    OK(bt_op_maskmovdqu(C, &B.op));
    assert_int_equal(get(DATA + 0xff8, 8), 0x1700150013001100);
    /* No byte selected below the page's end: the next page is not touched */
    memset(C->xsave + 160 + 32 + 8, 0, 8);
    B.pf_page = DATA + 0x1000;
    OK(bt_op_maskmovdqu(C, &B.op));
    C->xsave[160 + 32 + 15] = 0x80;
    RAISES(BT_EX_PF, 2, bt_op_maskmovdqu(C, &B.op));
    B.pf_page = ~0ull;
    set_bytes("0ff7ca");
    C->xsave[32 + 16] = 0x42;
    C->xsave[32 + 32] = 0x80;
    C->gpr[BT_RDI] = DATA;
    OK(bt_op_maskmovq(C, &B.op));
    assert_int_equal(get(DATA, 8), 0x42);
}

/* --- odds and ends ----------------------------------------------------------------------------------- */
static void bcd(void (*fn)(struct bt_vcpu *, const struct bt_op *), uint32_t ax, uint32_t flags, uint32_t want,
                uint32_t want_flags)
{
    C->gpr[BT_RAX] = ax;
    sys_set_flags(C, BT_ARITH, flags);
    OK(fn(C, &B.op));
    assert_int_equal(C->gpr[BT_RAX], want);
    assert_int_equal(bt_rflags(C) & BT_ARITH, want_flags);
}

static void decimal_adjustment(void **s)
{
    (void)s;
    bench_prot(0);
    bcd(bt_op_daa, 0x3c, 0, 0x42, BT_AF | BT_PF);                       /* 15 + 27 */
    bcd(bt_op_daa, 0xae, 0, 0x14, BT_AF | BT_CF | BT_PF);               /* manual's example: 79h + 35h */
    bcd(bt_op_daa, 0x9a, 0, 0x00, BT_AF | BT_CF | BT_ZF | BT_PF);
    bcd(bt_op_das, 0x12, BT_AF, 0x0c, BT_AF | BT_PF);
    bcd(bt_op_das, 0xee, BT_AF | BT_CF, 0x88, BT_AF | BT_CF | BT_SF | BT_PF); /* 35h - 47h */
    bcd(bt_op_aaa, 0x000b, 0, 0x0101, BT_AF | BT_CF);
    bcd(bt_op_aas, 0x02fe, BT_AF, 0x0108, BT_AF | BT_CF);
    B.vm.amd = true; /* other undefined flags, as found on a processor of family 25 */
    bcd(bt_op_daa, 0x1a, BT_CF, 0x80, BT_OF | BT_SF | BT_AF | BT_CF);
    bcd(bt_op_das, 0x80, BT_AF, 0x7a, BT_OF | BT_AF);
    bcd(bt_op_aaa, 0x000a, 0, 0x0100, BT_AF | BT_CF);
    bcd(bt_op_aaa, 0x0010, 0, 0x0000, 0);
    bcd(bt_op_aas, 0x0000, BT_AF, 0xfe0a, BT_SF | BT_PF | BT_AF | BT_CF);
    B.vm.amd = false;
    B.op.imm = 10;
    bcd(bt_op_aam, 0x3f, 0, 0x0603, BT_PF);
    bcd(bt_op_aad, 0x0603, 0, 0x003f, BT_PF);
    B.op.imm = 0;
    RAISES(BT_EX_DE, 0, bt_op_aam(C, &B.op));
}

static void frames(void **s)
{
    (void)s;
    bench_prot(0);
    uint64_t sp = C->gpr[BT_RSP];
    for (unsigned i = 0; i < 8; i++)
        if (i != BT_RSP)
            C->gpr[i] = 0x100 + i;
    OK(bt_op_pusha(C, &B.op));
    assert_int_equal(C->gpr[BT_RSP], sp - 32);
    assert_int_equal(stack(7, 4), 0x100);
    assert_int_equal(stack(3, 4), sp);
    for (unsigned i = 0; i < 8; i++)
        if (i != BT_RSP)
            C->gpr[i] = 0;
    OK(bt_op_popa(C, &B.op));
    assert_int_equal(C->gpr[BT_RSP], sp);
    assert_int_equal(C->gpr[BT_RDI], 0x107);
    C->gpr[BT_RBP] = DATA + 0x100;
    put(DATA + 0xfc, 4, 0x1111);
    put(DATA + 0xf8, 4, 0x2222);
    B.op.imm = 0x20;
    B.op.imm2 = 3;
    OK(bt_op_enter(C, &B.op));
    assert_int_equal(C->gpr[BT_RBP], sp - 4);
    assert_int_equal(C->gpr[BT_RSP], sp - 16 - 0x20);
    assert_int_equal(get(sp - 4, 4), DATA + 0x100);
    assert_int_equal(get(sp - 8, 4), 0x1111);
    assert_int_equal(get(sp - 12, 4), 0x2222);
    assert_int_equal(get(sp - 16, 4), sp - 4);
}

static void bound_and_xlat(void **s)
{
    (void)s;
    bench_prot(0);
    B.op.is_mem = 1;
    B.op.reg = BT_RCX;
    C->op_ea = DATA;
    put(DATA, 4, (uint32_t)-5);
    put(DATA + 4, 4, 5);
    C->gpr[BT_RCX] = (uint32_t)-5;
    OK(bt_op_bound(C, &B.op));
    C->gpr[BT_RCX] = 6;
    RAISES(BT_EX_BR, 0, bt_op_bound(C, &B.op));
    C->gpr[BT_RBX] = DATA;
    C->gpr[BT_RAX] = 0xff04;
    OK(bt_op_xlat(C, &B.op));
    assert_int_equal(C->gpr[BT_RAX], 0xff05);
}

static void wide_atomics(void **s)
{
    (void)s;
    for (unsigned mmio = 0; mmio < 2; mmio++) {
        bench_long(0);
        if (mmio)
            B.no_ptr_page = DATA;
        B.op.is_mem = 1;
        C->op_ea = DATA;
        put(DATA, 8, 11);
        put(DATA + 8, 8, 22);
        C->gpr[BT_RAX] = 11;
        C->gpr[BT_RDX] = 22;
        C->gpr[BT_RBX] = 33;
        C->gpr[BT_RCX] = 44;
        OK(bt_op_cmpxchg16b(C, &B.op));
        assert_true(bt_rflags(C) & BT_ZF);
        assert_int_equal(get(DATA + 8, 8), 44);
        OK(bt_op_cmpxchg16b(C, &B.op));
        assert_false(bt_rflags(C) & BT_ZF);
        assert_int_equal(C->gpr[BT_RAX], 33);
        assert_int_equal(C->gpr[BT_RDX], 44);
        C->op_ea = DATA + 8;
        RAISES(BT_EX_GP, 0, bt_op_cmpxchg16b(C, &B.op));
    }
    C->op_ea = DATA + 3;
    B.op.reg = BT_RDI;
    C->gpr[BT_RDI] = DATA + 0x40;
    OK(bt_op_movdir64b(C, &B.op));
    assert_memory_equal(B.ram + DATA + 0x40, B.ram + DATA + 3, 61);
    C->gpr[BT_RDI] = DATA + 0x48;
    RAISES(BT_EX_GP, 0, bt_op_movdir64b(C, &B.op));
}

int test_data(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(moves_match_the_definition),
        cmocka_unit_test(fills_match_the_definition),
        cmocka_unit_test(repeated_strings_stop_in_the_middle),
        cmocka_unit_test(sixteen_bit_indices_wrap),
        cmocka_unit_test(compares_match_the_definition),
        cmocka_unit_test(fxsave_images),
        cmocka_unit_test(xsave_images),
        cmocka_unit_test(compacted_images),
        cmocka_unit_test(bad_headers_are_refused),
        cmocka_unit_test(environments_by_operand_size),
        cmocka_unit_test(vex_gather),
        cmocka_unit_test(evex_gather_and_scatter),
        cmocka_unit_test(masked_byte_stores),
        cmocka_unit_test(decimal_adjustment),
        cmocka_unit_test(frames),
        cmocka_unit_test(bound_and_xlat),
        cmocka_unit_test(wide_atomics),
    };
    return cmocka_run_group_tests_name("strings, images, odd instructions", tests, NULL, NULL);
}
