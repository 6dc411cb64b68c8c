/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/seg.c - segment caches, descriptors and stacks.
 *
 * SDM volume 3, chapters 3 (segmentation), 5 (protection) and 20 (real mode
 * and virtual-8086).
 */
#include "kdirect.h"
#include "sys.h"

/* --- copies for translated code ---------------------------------------------- */
static bool seg_allows(const struct bt_vcpu *c, const struct hvx_segment *s, bool write)
{
    if (!sys_protected(c))
        return true; /* real mode and v86 check the limit only */
    if (s->attr & SYS_CODE)
        return !write && (s->attr & SYS_WR);
    return !write || (s->attr & SYS_WR);
}

static bool seg_expand_down(const struct hvx_segment *s) { return (s->attr & (SYS_CODE | SYS_EC)) == SYS_EC; }

void bt_seg_update(struct bt_vcpu *c, unsigned seg)
{
    const struct hvx_segment *s = &c->seg[seg];

    if (seg == BT_GS)
        c->gs_window = s->base + KD_BASE;
    if (bt_code64(c)) {
        c->seg_base[seg] = seg >= BT_FS ? s->base : 0;
        c->seg_rlimit[seg] = c->seg_wlimit[seg] = 0;
        return;
    }
    c->seg_base[seg] = (uint32_t)s->base;
    bool plain = !(s->attr & SYS_UNUSABLE) && !seg_expand_down(s);
    c->seg_rlimit[seg] = plain && seg_allows(c, s, false) ? s->limit : 0;
    c->seg_wlimit[seg] = plain && seg_allows(c, s, true) ? s->limit : 0;
}

static bool seg_flat_data(const struct bt_vcpu *c, unsigned seg)
{
    return c->seg_base[seg] == 0 && c->seg_rlimit[seg] == 0xffffffff && c->seg_wlimit[seg] == 0xffffffff;
}

static uint32_t mode_features(const struct bt_vcpu *c)
{
    uint32_t m = 0;
    if (c->cr0 & (BT_CR0_EM | BT_CR0_TS))
        m |= BT_MODE_NOFPU;
    if (c->cr0 & BT_CR0_EM)
        m |= BT_MODE_EM;
    if ((c->cr0 & (BT_CR0_MP | BT_CR0_TS)) == (BT_CR0_MP | BT_CR0_TS))
        m |= BT_MODE_MPTS;
    if (!(c->cr4 & BT_CR4_OSFXSR))
        m |= BT_MODE_NOSSE;
    /* VEX and EVEX do not exist outside protected mode. */
    if (!(c->cr4 & BT_CR4_OSXSAVE) || (c->xcr0 & 6) != 6 || !sys_protected(c))
        m |= BT_MODE_NOAVX | BT_MODE_NOAVX512;
    else if ((c->xcr0 & 0xe6) != 0xe6)
        m |= BT_MODE_NOAVX512;
    if (c->cr4 & BT_CR4_FSGSBASE)
        m |= BT_MODE_FSGSBASE;
    return m;
}

void bt_mode_update(struct bt_vcpu *c)
{
    const uint32_t redo = BT_MODE_CODE | BT_MODE_PE | BT_MODE_VM86;
    uint32_t m = c->cpl | mode_features(c), old = c->mode;

    if ((c->cr4 & BT_CR4_TSD) && c->cpl)
        m |= BT_MODE_TSD;
    if (bt_pe(c))
        m |= BT_MODE_PE;
    if (bt_vm86(c))
        m |= BT_MODE_VM86;
    bt_debug_update(c);
    if (bt_stepping(c))
        m |= BT_MODE_TF;
    if (bt_long_mode(c) && (c->seg[BT_CS].attr & SYS_L))
        m |= BT_MODE_CODE64;
    else if (c->seg[BT_CS].attr & SYS_DB)
        m |= BT_MODE_CODE32;

    c->mode = m;
    /* What the copies hold depends on the kind of code (64-bit code ignores
     * most bases) and on whether types are checked. */
    if ((m ^ old) & redo)
        for (unsigned i = 0; i < BT_NSEG; i++)
            bt_seg_update(c, i);

    if (c->seg_base[BT_CS] == 0)
        m |= BT_MODE_CS0;
    if (!bt_code64(c)) {
        if (c->seg[BT_SS].attr & SYS_DB)
            m |= BT_MODE_SS32;
        if (c->seg_base[BT_CS] == 0 && c->seg[BT_CS].limit == 0xffffffff && seg_flat_data(c, BT_ES) &&
            seg_flat_data(c, BT_SS) && seg_flat_data(c, BT_DS))
            m |= BT_MODE_FLAT;
    }
    c->mode = m;
}

/* --- segmented address to linear -------------------------------------------------- */
/* Is [off, off+n) inside the segment's limit? */
static bool seg_in_limit(const struct hvx_segment *s, uint64_t off, size_t n)
{
    uint64_t last = off + n - 1;
    if (seg_expand_down(s))
        return off > s->limit && last <= ((s->attr & SYS_DB) ? 0xffffffffull : 0xffffull);
    return last <= s->limit;
}

uint64_t bt_seg_lin(struct bt_vcpu *c, unsigned seg, uint64_t off, size_t n, bool write)
{
    const struct hvx_segment *s = &c->seg[seg];
    unsigned vector = seg == BT_SS ? BT_EX_SS : BT_EX_GP;

    if (bt_code64(c)) {
        uint64_t lin = off + (seg >= BT_FS ? s->base : 0);
        if (!sys_canonical(lin) || (n > 1 && !sys_canonical(lin + n - 1)))
            bt_raise_err(c, vector, 0);
        return lin;
    }
    if ((s->attr & SYS_UNUSABLE) || !seg_allows(c, s, write) || !seg_in_limit(s, off, n))
        bt_raise_err(c, vector, 0);
    return (uint32_t)(s->base + off);
}

/* --- descriptors ------------------------------------------------------------------- */
bool sys_desc_addr(struct bt_vcpu *c, uint32_t sel, unsigned n, uint64_t *lin)
{
    uint64_t base = c->gdt_base;
    uint32_t limit = c->gdt_limit, off = sel & 0xfff8;

    if (sel & 4) {
        if (c->ldtr.attr & SYS_UNUSABLE)
            return false;
        base = c->ldtr.base;
        limit = c->ldtr.limit;
    }
    if (off + n - 1 > limit)
        return false;
    *lin = bt_long_mode(c) ? base + off : (uint32_t)(base + off);
    return true;
}

uint64_t sys_desc_read(struct bt_vcpu *c, uint32_t sel, unsigned vector, uint32_t ext)
{
    uint64_t lin;
    if (!sys_desc_addr(c, sel, 8, &lin))
        bt_raise_err(c, vector, (sel & 0xfffc) | ext);
    return bt_read(c, lin, 8, 0);
}

void sys_seg_cache(struct hvx_segment *s, uint32_t sel, uint64_t d)
{
    s->base = sys_desc_base(d);
    s->limit = sys_desc_limit(d);
    s->selector = (uint16_t)sel;
    s->attr = sys_desc_attr(d);
}

void sys_set_accessed(struct bt_vcpu *c, uint32_t sel, uint64_t d)
{
    uint64_t lin;
    if ((d >> 40 & 1) || !sys_desc_addr(c, sel, 8, &lin))
        return;
    bt_write(c, lin + 5, 1, (d >> 40 & 0xff) | 1, BT_ACC_WRITE);
}

/* --- loading data segments ------------------------------------------------------------ */
void sys_null_seg(struct bt_vcpu *c, unsigned seg, uint32_t sel)
{
    /* Intel keeps the base of FS and GS visible through the MSRs at 0. */
    c->seg[seg] = (struct hvx_segment){.selector = (uint16_t)sel, .attr = SYS_UNUSABLE};
    if (seg == BT_SS) /* long mode: a null SS is a usable stack; DPL follows CPL */
        c->seg[seg].attr = (uint16_t)(SYS_UNUSABLE | SYS_P | SYS_DB | SYS_S | 3 | (sel & 3) << 5);
    bt_seg_update(c, seg);
}

void sys_real_seg(struct bt_vcpu *c, unsigned seg, uint32_t sel)
{
    struct hvx_segment *s = &c->seg[seg];
    s->selector = (uint16_t)sel;
    s->base = (uint64_t)(sel & 0xffff) << 4;
    /* Limit, D/B and G stay: "unreal" mode lives on them. */
    s->attr = (uint16_t)((s->attr & (SYS_DB | SYS_G)) | SYS_P | SYS_S | SYS_WR | SYS_ACCESSED |
                         (seg == BT_CS ? SYS_CODE : 0));
    bt_seg_update(c, seg);
}

void sys_v86_seg(struct bt_vcpu *c, unsigned seg, uint32_t sel)
{
    c->seg[seg] = (struct hvx_segment){.base = (uint64_t)(sel & 0xffff) << 4, .limit = 0xffff,
                                       .selector = (uint16_t)sel, .attr = 0xf3};
    bt_seg_update(c, seg);
}

uint64_t sys_check_ss(struct bt_vcpu *c, uint32_t sel, unsigned dpl, unsigned vector, uint32_t ext)
{
    uint32_t error = (sel & 0xfffc) | ext;
    if (sys_null(sel))
        bt_raise_err(c, vector, vector == BT_EX_TS ? error : ext);
    uint64_t d = sys_desc_read(c, sel, vector, ext);
    if ((sel & 3) != dpl || !sys_desc_wdata(d) || sys_desc_dpl(d) != dpl)
        bt_raise_err(c, vector, error);
    if (!sys_desc_p(d))
        bt_raise_err(c, BT_EX_SS, error);
    return d;
}

static void load_ss(struct bt_vcpu *c, uint32_t sel)
{
    if (sys_null(sel)) {
        /* 64-bit code below CPL 3 may run on a null SS with matching RPL. */
        if (!bt_code64(c) || c->cpl == 3 || (sel & 3) != c->cpl)
            sys_gp0(c);
        sys_null_seg(c, BT_SS, sel);
        return;
    }
    uint64_t d = sys_check_ss(c, sel, c->cpl, BT_EX_GP, 0);
    sys_set_accessed(c, sel, d);
    sys_seg_cache(&c->seg[BT_SS], sel, d | 1ull << 40);
    bt_seg_update(c, BT_SS);
}

void sys_load_seg(struct bt_vcpu *c, unsigned seg, uint32_t sel)
{
    sel &= 0xffff;
    if (!bt_pe(c)) {
        sys_real_seg(c, seg, sel);
    } else if (bt_vm86(c)) {
        sys_v86_seg(c, seg, sel);
    } else if (seg == BT_SS) {
        load_ss(c, sel);
    } else if (sys_null(sel)) {
        sys_null_seg(c, seg, sel);
    } else {
        uint64_t d = sys_desc_read(c, sel, BT_EX_GP, 0);
        bool readable = sys_desc_s(d) && (!sys_desc_code(d) || (d >> 41 & 1));
        unsigned rpl = sel & 3, dpl = sys_desc_dpl(d);
        if (!readable || (!sys_desc_conforming(d) && (rpl > dpl || c->cpl > dpl)))
            bt_raise_err(c, BT_EX_GP, sel & 0xfffc);
        if (!sys_desc_p(d))
            bt_raise_err(c, BT_EX_NP, sel & 0xfffc);
        sys_set_accessed(c, sel, d);
        sys_seg_cache(&c->seg[seg], sel, d | 1ull << 40);
        bt_seg_update(c, seg);
    }
    /* MODE_FLAT, MODE_SS32 */
    bt_mode_update(c);
}

/* --- code segments --------------------------------------------------------------------- */
void sys_check_rip(struct bt_vcpu *c, uint64_t d, uint64_t rip, uint32_t ext)
{
    if (bt_long_mode(c) && sys_desc_l(d) ? !sys_canonical(rip) : rip > sys_desc_limit(d))
        bt_raise_err(c, BT_EX_GP, ext);
}

void sys_commit_cs(struct bt_vcpu *c, uint32_t sel, uint64_t d, unsigned cpl)
{
    sys_seg_cache(&c->seg[BT_CS], (sel & 0xfffc) | cpl, d | 1ull << 40);
    c->cpl = (uint8_t)cpl;
    if (!bt_code64(c))
        bt_seg_update(c, BT_CS);
}

void sys_drop_segs(struct bt_vcpu *c)
{
    static const uint8_t segs[] = {BT_ES, BT_DS, BT_FS, BT_GS};
    for (unsigned i = 0; i < sizeof(segs); i++) {
        struct hvx_segment *s = &c->seg[segs[i]];
        if (s->attr & SYS_UNUSABLE)
            continue;
        bool conforming = (s->attr & (SYS_CODE | SYS_EC)) == (SYS_CODE | SYS_EC);
        if (!conforming && SYS_DPL(s->attr) < c->cpl)
            sys_null_seg(c, segs[i], 0);
    }
}

/* --- stacks ------------------------------------------------------------------------------- */
static uint64_t stack_mask(const struct hvx_segment *ss, bool flat64)
{
    return flat64 ? ~0ull : (ss->attr & SYS_DB) ? 0xffffffffull : 0xffffull;
}

void sys_stack_current(struct bt_vcpu *c, struct sys_stack *k, uint32_t ext)
{
    k->ss = c->seg[BT_SS];
    k->flat64 = bt_code64(c);
    k->mask = stack_mask(&k->ss, k->flat64);
    k->sp = c->gpr[BT_RSP] & k->mask;
    k->acc = bt_acc(c);
    k->error = ext;
}

void sys_stack_inner(struct bt_vcpu *c, struct sys_stack *k, unsigned dpl, uint32_t ext, uint64_t *ss_desc)
{
    uint32_t ts = (c->tr.selector & 0xfffc) | ext;

    k->acc = sys_acc_cpl(dpl);
    if (bt_long_mode(c)) {
        uint32_t off = 4 + 8 * dpl;
        if (off + 7 > c->tr.limit)
            bt_raise_err(c, BT_EX_TS, ts);
        *k = (struct sys_stack){.sp = bt_read(c, c->tr.base + off, 8, 0), .mask = ~0ull, .flat64 = true, .error = ext,
                                .acc = sys_acc_cpl(dpl)};
        k->ss.selector = (uint16_t)dpl;
        *ss_desc = 0;
        return;
    }
    bool tss32 = (c->tr.attr & 8) != 0;
    uint32_t off = tss32 ? 4 + 8 * dpl : 2 + 4 * dpl, n = tss32 ? 4 : 2;
    if (off + n + 1 > c->tr.limit)
        bt_raise_err(c, BT_EX_TS, ts);
    uint64_t sp = bt_read(c, (uint32_t)(c->tr.base + off), n, 0);
    uint32_t sel = (uint32_t)bt_read(c, (uint32_t)(c->tr.base + off + n), 2, 0);
    uint64_t d = sys_check_ss(c, sel, dpl, BT_EX_TS, ext);
    sys_seg_cache(&k->ss, sel, d | 1ull << 40);
    k->flat64 = false;
    k->mask = stack_mask(&k->ss, false);
    k->sp = sp & k->mask;
    k->error = (sel & 0xfffc) | ext;
    *ss_desc = d;
}

static uint64_t stack_lin(struct bt_vcpu *c, const struct sys_stack *k, uint64_t off, unsigned size)
{
    if (k->flat64) {
        if (!sys_canonical(off) || !sys_canonical(off + size - 1))
            bt_raise_err(c, BT_EX_SS, k->error);
        return off;
    }
    if ((k->ss.attr & SYS_UNUSABLE) || !seg_in_limit(&k->ss, off, size))
        bt_raise_err(c, BT_EX_SS, k->error);
    return (uint32_t)(k->ss.base + off);
}

void sys_push(struct bt_vcpu *c, struct sys_stack *k, unsigned size, uint64_t v)
{
    uint64_t sp = (k->sp - size) & k->mask;
    bt_write(c, stack_lin(c, k, sp, size), size, v, k->acc | BT_ACC_WRITE);
    k->sp = sp;
}

uint64_t sys_peek(struct bt_vcpu *c, struct sys_stack *k, uint64_t offset, unsigned size)
{
    return bt_read(c, stack_lin(c, k, (k->sp + offset) & k->mask, size), size, k->acc);
}

uint64_t sys_pop(struct bt_vcpu *c, struct sys_stack *k, unsigned size)
{
    uint64_t v = sys_peek(c, k, 0, size);
    k->sp = (k->sp + size) & k->mask;
    return v;
}
