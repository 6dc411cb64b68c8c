/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/op_fpu.c - FXSAVE, FXRSTOR, the XSAVE family, FNSAVE,
 * FRSTOR, FNSTENV, FLDENV (SDM volume 1, chapters 8, 10.5 and 13).
 *
 * The guest's x87 and vector registers are the host's own while these run, so
 * the host's instruction does the work, on a bounce buffer that is then copied
 * to or from the guest. Images that are loaded are checked first under the
 * guest's XCR0: the host instruction must never fault. Instruction and data
 * pointers of the x87 are stored as 0: the host's ones speak of translated
 * code.
 */
#include "sys.h"

#define XSTATE_HEADER 512u
#define XSTATE_LEGACY 576u
#define XCOMP_COMPACT (1ull << 63)
#define XFEATURE_X87 1ull
#define XFEATURE_SSE 2ull
#define XFEATURE_AVX 4ull
#define XFEATURE_MAX 10u
/* What the engine keeps: x87, SSE, AVX, AVX-512 and, where shown, PKRU. */
#define XFEATURES 0x2e7ull

/* Large enough for every component the engine keeps. */
struct image {
    __attribute__((aligned(64))) uint8_t b[HVX_XSAVE_MAX];
};

static void need_fpu(struct bt_vcpu *c)
{
    if (c->cr0 & (BT_CR0_EM | BT_CR0_TS))
        bt_raise(c, BT_EX_NM);
}

static uint64_t area_lin(struct bt_vcpu *c, const struct bt_op *op, size_t n, unsigned align, bool write)
{
    if (!op->is_mem)
        bt_raise(c, BT_EX_UD);
    uint64_t lin = sys_mem_lin(c, op, n, write);
    if (lin & (align - 1))
        sys_gp0(c);
    return lin;
}

/* --- FXSAVE and FXRSTOR ------------------------------------------------------------- */
void bt_op_fxsave(struct bt_vcpu *c, const struct bt_op *op)
{
    struct image m;
    /* Outside 64-bit code only XMM0..7 exist. */
    const unsigned used = bt_code64(c) ? 416 : 288;

    need_fpu(c);
    uint64_t lin = area_lin(c, op, 512, 16, true);
    bt_probe(c, lin, 512, bt_acc(c) | BT_ACC_WRITE);
    sys_fp_live(c);
    __asm__ volatile("fxsave64 %0" : "=m"(m));
    sys_put16(m.b + 6, 0);
    sys_put64(m.b + 8, 0);
    sys_put64(m.b + 16, 0);
    bt_write_bytes(c, lin, m.b, used, bt_acc(c) | BT_ACC_WRITE);
}

void bt_op_fxrstor(struct bt_vcpu *c, const struct bt_op *op)
{
    struct image m;

    need_fpu(c);
    uint64_t lin = area_lin(c, op, 512, 16, false);
    bt_read_bytes(c, lin, m.b, 512, bt_acc(c));
    if (sys_get32(m.b + 24) & ~c->vm->mxcsr_mask)
        sys_gp0(c);
    sys_put16(m.b + 6, 0);
    sys_put64(m.b + 8, 0);
    sys_put64(m.b + 16, 0);
    sys_fp_live(c);
    if (!bt_code64(c)) { /* XMM8..15 stay */
        struct image now;
        __asm__ volatile("fxsave64 %0" : "=m"(now));
        sys_copy(m.b + 288, now.b + 288, 128);
    }
    __asm__ volatile("fxrstor64 %0" ::"m"(m));
}

/* --- layout of extended components ------------------------------------------------------ */
void sys_xstate_layout(struct bt_vcpu *c)
{
    if (c->xcomp[0].size)
        return;
    for (unsigned i = 2; i < XFEATURE_MAX; i++) {
        uint32_t r[4];
        bt_cpuid(c, 0xd, i, r);
        if (!(XFEATURES >> i & 1) || r[0] + r[1] > HVX_XSAVE_MAX)
            continue;
        c->xcomp[i].size = (uint16_t)r[0];
        c->xcomp[i].off = (uint16_t)r[1];
        c->xcomp[i].align = r[2] & 2;
    }
    c->xcomp[0].size = 1;
}

/* Offset of component i in an image whose XCOMP_BV is xcomp (standard form: 0). */
static unsigned comp_offset(const struct bt_vcpu *c, uint64_t xcomp, unsigned i)
{
    unsigned off = XSTATE_LEGACY;

    if (!(xcomp & XCOMP_COMPACT))
        return c->xcomp[i].off;
    for (unsigned k = 2; k <= i; k++) {
        if (!(xcomp >> k & 1))
            continue;
        if (c->xcomp[k].align)
            off = (off + 63) & ~63u;
        if (k < i)
            off += c->xcomp[k].size;
    }
    return off;
}

/* Bytes that an image with these components takes. */
static unsigned image_size(const struct bt_vcpu *c, uint64_t features, uint64_t xcomp)
{
    unsigned size = XSTATE_LEGACY;
    for (unsigned i = 2; i < XFEATURE_MAX; i++) {
        unsigned end = comp_offset(c, xcomp, i) + c->xcomp[i].size;
        if ((features >> i & 1) && end > size)
            size = end;
    }
    return size;
}

/* --- XSAVE family ---------------------------------------------------------------------------- */
static void need_xsave(struct bt_vcpu *c)
{
    if (!(c->cr4 & BT_CR4_OSXSAVE))
        bt_raise(c, BT_EX_UD);
    if (c->cr0 & BT_CR0_TS)
        bt_raise(c, BT_EX_NM);
    sys_xstate_layout(c);
}

static uint64_t requested(const struct bt_vcpu *c)
{
    return ((uint32_t)c->gpr[BT_RAX] | c->gpr[BT_RDX] << 32) & c->xcr0 & XFEATURES;
}

/* How much of a component exists outside 64-bit code: registers 0..7. */
static unsigned comp_size32(const struct bt_vcpu *c, unsigned i)
{
    unsigned n = c->xcomp[i].size;
    return i == 2 || i == 6 ? n / 2 : i == 7 ? 0 : n;
}

static void copy_out(struct bt_vcpu *c, uint64_t lin, const struct image *m, unsigned off, unsigned n)
{
    if (n)
        bt_write_bytes(c, lin + off, m->b + off, n, bt_acc(c) | BT_ACC_WRITE);
}

/* Store the components in `write` of the image m. The legacy region's parts
 * belong to different components (SDM volume 1, 13.4.1). */
static void store_image(struct bt_vcpu *c, uint64_t lin, const struct image *m, uint64_t rfbm, uint64_t write,
                        uint64_t xcomp)
{
    if (write & XFEATURE_X87) {
        copy_out(c, lin, m, 0, 24);
        copy_out(c, lin, m, 32, 128);
    }
    /* MXCSR goes with SSE or AVX: always in the standard form, with SSE's
     * state in the compacted one. */
    if (xcomp ? write & XFEATURE_SSE : rfbm & (XFEATURE_SSE | XFEATURE_AVX))
        copy_out(c, lin, m, 24, 8);
    if (write & XFEATURE_SSE)
        copy_out(c, lin, m, 160, bt_code64(c) ? 256 : 128);
    for (unsigned i = 2; i < XFEATURE_MAX; i++)
        if (write >> i & 1)
            copy_out(c, lin, m, comp_offset(c, xcomp, i), bt_code64(c) ? c->xcomp[i].size : comp_size32(c, i));
}

/* XSAVE and XSAVEOPT: standard form. */
static void save_standard(struct bt_vcpu *c, const struct bt_op *op, bool skip_init)
{
    struct image m;

    need_xsave(c);
    uint64_t rfbm = requested(c);
    unsigned size = image_size(c, rfbm, 0);
    uint64_t lin = area_lin(c, op, size, 64, true);
    bt_probe(c, lin, size, bt_acc(c) | BT_ACC_WRITE);
    uint64_t old = bt_read(c, lin + XSTATE_HEADER, 8, bt_acc(c));
    sys_zero(m.b + XSTATE_HEADER, 64);
    sys_fp_live(c);
    __asm__ volatile("xsave64 %0" : "+m"(m) : "a"((uint32_t)rfbm), "d"((uint32_t)(rfbm >> 32)));
    sys_put16(m.b + 6, 0);
    sys_put64(m.b + 8, 0);
    sys_put64(m.b + 16, 0);
    uint64_t inuse = sys_get64(m.b + XSTATE_HEADER) & rfbm;
    store_image(c, lin, &m, rfbm, skip_init ? inuse : rfbm, 0);
    bt_write(c, lin + XSTATE_HEADER, 8, (old & ~rfbm) | inuse, bt_acc(c) | BT_ACC_WRITE);
}

/* XSAVEC and XSAVES: compacted form, components in use only. */
static void save_compacted(struct bt_vcpu *c, const struct bt_op *op)
{
    struct image m;

    need_xsave(c);
    uint64_t rfbm = requested(c), xcomp = rfbm | XCOMP_COMPACT;
    unsigned size = image_size(c, rfbm, xcomp);
    uint64_t lin = area_lin(c, op, size, 64, true);
    void *host = (lin & 0xfff) + size <= 4096 && bt_code64(c)
                     ? bt_host_ptr(c, lin, size, bt_acc(c) | BT_ACC_WRITE) : NULL;
    if (host) {
        uint8_t *p = host;
        sys_fp_live(c);
        __asm__ volatile("xsavec64 (%0)" ::"r"(p), "a"((uint32_t)rfbm), "d"((uint32_t)(rfbm >> 32)) : "memory");
        if (sys_get64(p + XSTATE_HEADER) & XFEATURE_X87) {
            sys_put16(p + 6, 0);
            sys_put64(p + 8, 0);
            sys_put64(p + 16, 0);
        }
        return;
    }
    bt_probe(c, lin, size, bt_acc(c) | BT_ACC_WRITE);
    sys_fp_live(c);
    __asm__ volatile("xsavec64 %0" : "=m"(m) : "a"((uint32_t)rfbm), "d"((uint32_t)(rfbm >> 32)));
    sys_put16(m.b + 6, 0);
    sys_put64(m.b + 8, 0);
    sys_put64(m.b + 16, 0);
    store_image(c, lin, &m, rfbm, sys_get64(m.b + XSTATE_HEADER) & rfbm, xcomp);
    bt_write_bytes(c, lin + XSTATE_HEADER, m.b + XSTATE_HEADER, 16, bt_acc(c) | BT_ACC_WRITE);
}

void bt_op_xsave(struct bt_vcpu *c, const struct bt_op *op) { save_standard(c, op, false); }
void bt_op_xsaveopt(struct bt_vcpu *c, const struct bt_op *op) { save_standard(c, op, true); }
void bt_op_xsavec(struct bt_vcpu *c, const struct bt_op *op) { save_compacted(c, op); }

/* No supervisor component is offered (IA32_XSS stays 0), so XSAVES is XSAVEC
 * for level 0. */
void bt_op_xsaves(struct bt_vcpu *c, const struct bt_op *op)
{
    if (!(c->cr4 & BT_CR4_OSXSAVE))
        bt_raise(c, BT_EX_UD);
    sys_need_cpl0(c);
    save_compacted(c, op);
}

/* Is the header one that XRSTOR accepts? */
static bool header_ok(const struct bt_vcpu *c, const uint8_t *h, bool supervisor)
{
    uint64_t bv = sys_get64(h), xcomp = sys_get64(h + 8), reserved = 0, valid = c->xcr0 & XFEATURES;

    for (unsigned i = xcomp & XCOMP_COMPACT ? 16 : 8; i < (xcomp & XCOMP_COMPACT ? 64 : 24); i += 8)
        reserved |= sys_get64(h + i);
    if (reserved)
        return false;
    if (!(xcomp & XCOMP_COMPACT))
        return !supervisor && !(bv & ~valid);
    uint64_t comps = xcomp & ~XCOMP_COMPACT;
    return !(comps & ~valid) && !(bv & ~comps);
}

static void restore(struct bt_vcpu *c, const struct bt_op *op, bool supervisor)
{
    struct image m;

    need_xsave(c);
    uint64_t rfbm = requested(c);
    uint64_t lin = area_lin(c, op, XSTATE_LEGACY, 64, false);
    bt_read_bytes(c, lin, m.b, XSTATE_LEGACY, bt_acc(c));
    if (!header_ok(c, m.b + XSTATE_HEADER, supervisor))
        sys_gp0(c);
    uint64_t bv = sys_get64(m.b + XSTATE_HEADER), xcomp = sys_get64(m.b + XSTATE_HEADER + 8);
    bool compact = (xcomp & XCOMP_COMPACT) != 0;
    /* Compacted images carry MXCSR only with SSE's state. */
    bool mxcsr = compact ? (bv & rfbm & XFEATURE_SSE) != 0 : (rfbm & (XFEATURE_SSE | XFEATURE_AVX)) != 0;
    if (mxcsr && (sys_get32(m.b + 24) & ~c->vm->mxcsr_mask))
        sys_gp0(c);
    unsigned size = image_size(c, bv & rfbm, xcomp);
    if (size > XSTATE_LEGACY) {
        area_lin(c, op, size, 64, false);
        bt_read_bytes(c, lin + XSTATE_LEGACY, m.b + XSTATE_LEGACY, size - XSTATE_LEGACY, bt_acc(c));
    }
    sys_put16(m.b + 6, 0);
    sys_put64(m.b + 8, 0);
    sys_put64(m.b + 16, 0);
    sys_fp_live(c);
    __asm__ volatile("xrstor64 %0" ::"m"(m), "a"((uint32_t)rfbm), "d"((uint32_t)(rfbm >> 32)));
}

void bt_op_xrstor(struct bt_vcpu *c, const struct bt_op *op) { restore(c, op, false); }

void bt_op_xrstors(struct bt_vcpu *c, const struct bt_op *op)
{
    if (!(c->cr4 & BT_CR4_OSXSAVE))
        bt_raise(c, BT_EX_UD);
    sys_need_cpl0(c);
    restore(c, op, true);
}

/* --- FNSTENV and friends --------------------------------------------------------------------------
 * The host writes the 32-bit protected-mode form of 28 bytes. With pointers
 * and opcode 0 the four guest forms differ only in the width of their words:
 * control, status, tag, then four words of pointers. */
#define ENV32 28u
#define ENV16 14u

static void env_out(uint8_t *out, const uint8_t *env, unsigned opsize)
{
    for (unsigned i = 0; i < 7; i++) {
        uint16_t v = i < 3 ? sys_get16(env + i * 4) : 0;
        if (opsize == 2) {
            sys_put16(out + i * 2, v);
        } else {
            sys_put16(out + i * 4, v);
            sys_put16(out + i * 4 + 2, i < 3 || i == 6 ? 0xffff : 0);
        }
    }
}

static void env_in(uint8_t *env, const uint8_t *in, unsigned opsize)
{
    sys_zero(env, ENV32);
    for (unsigned i = 0; i < 3; i++)
        sys_put16(env + i * 4, sys_get16(in + i * (opsize == 2 ? 2 : 4)));
}

/* A pending unmasked exception shows up before these instructions. */
static void check_pending(struct bt_vcpu *c)
{
    uint16_t sw;
    sys_fp_live(c);
    __asm__ volatile("fnstsw %0" : "=a"(sw));
    if (!(sw & 0x80))
        return;
    if (c->cr0 & BT_CR0_NE)
        bt_raise(c, BT_EX_MF);
    c->ferr = 1;
    bt_restart(c);
}

void bt_op_fnstenv(struct bt_vcpu *c, const struct bt_op *op)
{
    uint8_t env[ENV32] __attribute__((aligned(16))), out[ENV32];
    const unsigned n = op->opsize == 2 ? ENV16 : ENV32;

    need_fpu(c);
    uint64_t lin = area_lin(c, op, n, 1, true);
    bt_probe(c, lin, n, bt_acc(c) | BT_ACC_WRITE);
    sys_fp_live(c);
    __asm__ volatile("fnstenv %0" : "=m"(env));
    env_out(out, env, op->opsize);
    bt_write_bytes(c, lin, out, n, bt_acc(c) | BT_ACC_WRITE);
}

void bt_op_fldenv(struct bt_vcpu *c, const struct bt_op *op)
{
    uint8_t env[ENV32] __attribute__((aligned(16))), in[ENV32];
    const unsigned n = op->opsize == 2 ? ENV16 : ENV32;

    need_fpu(c);
    check_pending(c);
    bt_read_bytes(c, area_lin(c, op, n, 1, false), in, n, bt_acc(c));
    env_in(env, in, op->opsize);
    sys_fp_live(c);
    __asm__ volatile("fldenv %0" ::"m"(env));
}

void bt_op_fnsave(struct bt_vcpu *c, const struct bt_op *op)
{
    uint8_t m[ENV32 + 80] __attribute__((aligned(16))), out[ENV32 + 80];
    const unsigned n = op->opsize == 2 ? ENV16 : ENV32;

    need_fpu(c);
    uint64_t lin = area_lin(c, op, n + 80, 1, true);
    bt_probe(c, lin, n + 80, bt_acc(c) | BT_ACC_WRITE);
    sys_fp_live(c);
    __asm__ volatile("fnsave %0" : "=m"(m));
    env_out(out, m, op->opsize);
    sys_copy(out + n, m + ENV32, 80);
    bt_write_bytes(c, lin, out, n + 80, bt_acc(c) | BT_ACC_WRITE);
}

void bt_op_frstor(struct bt_vcpu *c, const struct bt_op *op)
{
    uint8_t m[ENV32 + 80] __attribute__((aligned(16))), in[ENV32 + 80];
    const unsigned n = op->opsize == 2 ? ENV16 : ENV32;

    need_fpu(c);
    check_pending(c);
    bt_read_bytes(c, area_lin(c, op, n + 80, 1, false), in, n + 80, bt_acc(c));
    env_in(m, in, op->opsize);
    sys_copy(m + ENV32, in + n, 80);
    sys_fp_live(c);
    __asm__ volatile("frstor %0" ::"m"(m));
}
