/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/op_vec.c - gathers, scatters and byte-masked stores: vector
 * instructions with more than one memory access.
 *
 * They are decoded here once more from the instruction's bytes, and work on
 * the image that bt_fp_save() leaves in c->xsave (standard form).
 */
#include "sys.h"

#define XSTATE_BV 512u
#define LEGACY_ST 32u
#define LEGACY_XMM 160u
enum { X_X87, X_SSE, X_AVX, X_OPMASK = 5, X_ZMM_HI256, X_HI16_ZMM };

/* --- registers in the image --------------------------------------------------------- */
static uint64_t *header(struct bt_vcpu *c) { return (uint64_t *)(c->xsave + XSTATE_BV); }

/* Component i's bytes, valid: set to zero if it was in its initial state. */
static uint8_t *component(struct bt_vcpu *c, unsigned i)
{
    uint64_t *bv = header(c);
    uint8_t *p = i == X_SSE ? c->xsave + LEGACY_XMM : c->xsave + c->xcomp[i].off;
    if (!(*bv >> i & 1)) {
        sys_zero(p, i == X_SSE ? 256 : c->xcomp[i].size);
        *bv |= 1ull << i;
    }
    return p;
}

/* Bytes [16*part ..) of vector register n: 16 bytes for parts 0 and 1, 32 for 2. */
static uint8_t *vec_part(struct bt_vcpu *c, unsigned n, unsigned part)
{
    if (n >= 16)
        return component(c, X_HI16_ZMM) + (n - 16) * 64 + part * 16;
    switch (part) {
    case 0: return component(c, X_SSE) + n * 16;
    case 1: return component(c, X_AVX) + n * 16;
    default: return component(c, X_ZMM_HI256) + n * 32;
    }
}

/* How many bytes of a vector register does the guest's XCR0 give? */
static unsigned vec_width(const struct bt_vcpu *c) { return (c->xcr0 & 0xe0) == 0xe0 ? 64 : c->xcr0 & 4 ? 32 : 16; }

static void vec_get(struct bt_vcpu *c, unsigned n, uint8_t v[64])
{
    unsigned w = vec_width(c);
    sys_zero(v, 64);
    sys_copy(v, vec_part(c, n, 0), 16);
    if (w > 16)
        sys_copy(v + 16, vec_part(c, n, 1), 16);
    if (w > 32)
        sys_copy(v + 32, vec_part(c, n, 2), 32);
}

static void vec_set(struct bt_vcpu *c, unsigned n, const uint8_t v[64])
{
    unsigned w = vec_width(c);
    sys_copy(vec_part(c, n, 0), v, 16);
    if (w > 16)
        sys_copy(vec_part(c, n, 1), v + 16, 16);
    if (w > 32)
        sys_copy(vec_part(c, n, 2), v + 32, 32);
}

static uint64_t *opmask(struct bt_vcpu *c, unsigned n) { return (uint64_t *)(component(c, X_OPMASK) + n * 8); }

/* --- decoding --------------------------------------------------------------------------- */
struct vinsn {
    bool evex, w, no_base;
    uint8_t opcode, modrm, vvvv, aaa, width; /* width: vector length in bytes */
    uint8_t reg, rm, base, index, scale;
    int64_t disp;
};

static bool is_prefix(uint8_t b)
{
    return b == 0x66 || b == 0x67 || b == 0xf2 || b == 0xf3 || b == 0x2e || b == 0x36 || b == 0x3e || b == 0x26 ||
           b == 0x64 || b == 0x65 || b == 0xf0;
}

/* Fills v from a VEX, EVEX or legacy 0F F7 encoding. The translator has decoded
 * the same bytes before: they are whole and valid. */
static void decode(const struct bt_vcpu *c, const struct bt_op *op, struct vinsn *v)
{
    const uint8_t *p = op->bytes;
    unsigned r = 0, x = 0, b = 0, r2 = 0, v2 = 0;

    *v = (struct vinsn){.width = 16};
    while (is_prefix(*p))
        p++;
    if (*p == 0xc5) {
        r = !(p[1] >> 7);
        v->vvvv = ~p[1] >> 3 & 15;
        v->width = p[1] & 4 ? 32 : 16;
        p += 2;
    } else if (*p == 0xc4) {
        r = !(p[1] >> 7), x = !(p[1] >> 6 & 1), b = !(p[1] >> 5 & 1);
        v->w = p[2] >> 7;
        v->vvvv = ~p[2] >> 3 & 15;
        v->width = p[2] & 4 ? 32 : 16;
        p += 3;
    } else if (*p == 0x62) {
        v->evex = true;
        r = !(p[1] >> 7), x = !(p[1] >> 6 & 1), b = !(p[1] >> 5 & 1), r2 = !(p[1] >> 4 & 1);
        v->w = p[2] >> 7;
        v->width = (uint8_t)(16u << (p[3] >> 5 & 3));
        v2 = !(p[3] >> 3 & 1);
        v->aaa = p[3] & 7;
        p += 4;
    } else {
        if (bt_code64(c) && (*p & 0xf0) == 0x40) {
            r = *p >> 2 & 1, b = *p & 1;
            p++;
        }
        p++; /* 0f */
    }
    if (!bt_code64(c))
        r = x = b = r2 = v2 = 0;
    v->opcode = *p++;
    v->modrm = *p++;
    v->reg = (uint8_t)((v->modrm >> 3 & 7) | r << 3 | r2 << 4);
    v->rm = (uint8_t)((v->modrm & 7) | b << 3);
    if (v->modrm >> 6 == 3)
        return;
    uint8_t sib = *p++; /* VSIB is required */
    v->scale = sib >> 6;
    v->index = (uint8_t)((sib >> 3 & 7) | x << 3 | v2 << 4);
    v->base = (uint8_t)((sib & 7) | b << 3);
    unsigned mod = v->modrm >> 6;
    if (mod == 1) {
        v->disp = (int8_t)*p * (v->evex ? (v->w ? 8 : 4) : 1);
    } else if (mod == 2 || (sib & 7) == 5) {
        v->disp = (int32_t)sys_get32(p);
        v->no_base = mod == 0;
    }
}

/* --- gather and scatter -------------------------------------------------------------------- */
struct vsib {
    struct vinsn v;
    unsigned n, elem, idx; /* elements, bytes of data and of an index */
    uint8_t index[64];
};

static void vsib_open(struct bt_vcpu *c, const struct bt_op *op, struct vsib *g)
{
    bt_fp_save(c);
    sys_xstate_layout(c);
    decode(c, op, &g->v);
    g->elem = g->v.w ? 8 : 4;
    g->idx = g->v.opcode & 1 ? 8 : 4;
    g->n = g->v.width / (g->elem > g->idx ? g->elem : g->idx);
    if (g->v.width > vec_width(c) || (g->v.evex && !g->v.aaa))
        bt_raise(c, BT_EX_UD);
    vec_get(c, g->v.index, g->index);
}

static uint64_t vsib_lin(struct bt_vcpu *c, const struct bt_op *op, const struct vsib *g, unsigned i, bool write)
{
    const uint8_t *p = g->index + i * g->idx;
    int64_t idx = g->idx == 8 ? (int64_t)sys_get64(p) : (int32_t)sys_get32(p);
    uint64_t off = (g->v.no_base ? 0 : c->gpr[g->v.base]) + (uint64_t)g->v.disp + ((uint64_t)idx << g->v.scale);
    return bt_seg_lin(c, op->seg, off & sys_mask(op->addrsize), g->elem, write);
}

static void gather_vex(struct bt_vcpu *c, const struct bt_op *op, struct vsib *g)
{
    uint8_t dst[64], mask[64];
    const unsigned data = g->n * g->elem;

    if (g->v.reg == g->v.index || g->v.reg == g->v.vvvv || g->v.index == g->v.vvvv)
        bt_raise(c, BT_EX_UD);
    vec_get(c, g->v.reg, dst);
    vec_get(c, g->v.vvvv, mask);
    for (unsigned i = 0; i < g->n; i++) {
        uint8_t *m = mask + i * g->elem;
        if (m[g->elem - 1] & 0x80) {
            uint64_t v = bt_read(c, vsib_lin(c, op, g, i, false), g->elem, bt_acc(c));
            sys_copy(dst + i * g->elem, &v, g->elem);
        }
        /* Keep what is done: a fault at the next element restarts there. */
        sys_zero(m, g->elem);
        vec_set(c, g->v.reg, dst);
        vec_set(c, g->v.vvvv, mask);
    }
    sys_zero(dst + data, 64 - data);
    sys_zero(mask, 64);
    vec_set(c, g->v.reg, dst);
    vec_set(c, g->v.vvvv, mask);
}

static void gather_evex(struct bt_vcpu *c, const struct bt_op *op, struct vsib *g)
{
    uint8_t dst[64];
    uint64_t *k = opmask(c, g->v.aaa);
    const unsigned data = g->n * g->elem;

    if (g->v.reg == g->v.index)
        bt_raise(c, BT_EX_UD);
    vec_get(c, g->v.reg, dst);
    for (unsigned i = 0; i < g->n; i++) {
        if (!(*k >> i & 1))
            continue;
        uint64_t v = bt_read(c, vsib_lin(c, op, g, i, false), g->elem, bt_acc(c));
        sys_copy(dst + i * g->elem, &v, g->elem);
        vec_set(c, g->v.reg, dst);
        *k &= ~(1ull << i);
    }
    sys_zero(dst + data, 64 - data);
    vec_set(c, g->v.reg, dst);
    *k = 0;
}

void bt_op_gather(struct bt_vcpu *c, const struct bt_op *op)
{
    struct vsib g;
    vsib_open(c, op, &g);
    if (g.v.evex)
        gather_evex(c, op, &g);
    else
        gather_vex(c, op, &g);
}

void bt_op_scatter(struct bt_vcpu *c, const struct bt_op *op)
{
    struct vsib g;
    uint8_t src[64];

    vsib_open(c, op, &g);
    uint64_t *k = opmask(c, g.v.aaa);
    vec_get(c, g.v.reg, src);
    for (unsigned i = 0; i < g.n; i++) {
        uint64_t v = 0;
        if (!(*k >> i & 1))
            continue;
        sys_copy(&v, src + i * g.elem, g.elem);
        bt_write(c, vsib_lin(c, op, &g, i, true), g.elem, v, bt_acc(c) | BT_ACC_WRITE);
        *k &= ~(1ull << i);
    }
    *k = 0;
}

/* --- MASKMOVDQU and MASKMOVQ ------------------------------------------------------------------ */
static void store_masked(struct bt_vcpu *c, const struct bt_op *op, const uint8_t *src, const uint8_t *mask, unsigned n)
{
    uint64_t off = bt_reg_get(c, BT_RDI, op->addrsize, 0);
    unsigned first = n, last = 0;

    for (unsigned i = 0; i < n; i++)
        if (mask[i] & 0x80) {
            first = i < first ? i : first;
            last = i;
        }
    if (first == n)
        return;
    /* All or nothing: check both ends before the first byte goes out. */
    uint64_t lin = bt_seg_lin(c, op->seg, off, n, true);
    bt_probe(c, lin + first, last - first + 1, bt_acc(c) | BT_ACC_WRITE);
    for (unsigned i = first; i <= last; i++)
        if (mask[i] & 0x80)
            bt_write(c, lin + i, 1, src[i], bt_acc(c) | BT_ACC_WRITE);
}

void bt_op_maskmovdqu(struct bt_vcpu *c, const struct bt_op *op)
{
    struct vinsn v;
    bt_fp_save(c);
    decode(c, op, &v);
    store_masked(c, op, vec_part(c, v.reg, 0), vec_part(c, v.rm, 0), 16);
}

void bt_op_maskmovq(struct bt_vcpu *c, const struct bt_op *op)
{
    struct vinsn v;
    uint8_t src[8], mask[8];

    bt_fp_save(c);
    decode(c, op, &v);
    if (!(*header(c) & 1)) { /* x87 in its initial state */
        sys_zero(c->xsave, 24);
        sys_zero(c->xsave + LEGACY_ST, 128);
        c->xsave[0] = 0x7f;
        c->xsave[1] = 0x03;
        *header(c) |= 1;
    }
    /* The image holds ST(i); MMi is the register under it. */
    unsigned top = c->xsave[3] >> 3 & 7;
    sys_copy(src, c->xsave + LEGACY_ST + 16 * ((v.reg - top) & 7), 8);
    sys_copy(mask, c->xsave + LEGACY_ST + 16 * (((v.rm & 7) - top) & 7), 8);
    store_masked(c, op, src, mask, 8);
    /* As every MMX instruction: TOP becomes 0 and all registers valid. */
    sys_fp_live(c);
    uint32_t any;
    __asm__ volatile("movd %%mm0, %0" : "=r"(any));
}
