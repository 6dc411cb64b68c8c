/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/op_seg.c - segment register moves, descriptor inspection,
 * descriptor-table registers. Far control transfers are in op_far.c.
 */
#include "sys.h"

void bt_op_mov_sreg_rm(struct bt_vcpu *c, const struct bt_op *op)
{
    if (op->reg == BT_CS || op->reg >= BT_NSEG)
        bt_raise(c, BT_EX_UD);
    sys_load_seg(c, op->reg, (uint32_t)sys_get_rm(c, op, 2));
    if (op->reg == BT_SS)
        c->shadow = 2;
}

void bt_op_push_sreg(struct bt_vcpu *c, const struct bt_op *op)
{
    struct sys_stack k;
    sys_stack_current(c, &k, 0);
    if (op->opsize == 4 && !c->vm->amd) { /* Intel's write the low half only: SDM volume 2, PUSH; AMD's zeros above */
        k.sp = (k.sp - 2) & k.mask;
        sys_push(c, &k, 2, c->seg[op->reg].selector);
    } else {
        sys_push(c, &k, op->opsize, c->seg[op->reg].selector);
    }
    sys_stack_commit(c, &k);
}

void bt_op_pop_sreg(struct bt_vcpu *c, const struct bt_op *op)
{
    struct sys_stack k;
    sys_stack_current(c, &k, 0);
    /* Only the selector is read: the rest of the slot may lie past the limit on
     * real processors too, but a plain pop is what the manual describes. */
    uint32_t sel = (uint32_t)sys_pop(c, &k, op->opsize);
    sys_load_seg(c, op->reg, sel);
    sys_stack_commit(c, &k);
    if (op->reg == BT_SS)
        c->shadow = 2;
}

void bt_op_load_far(struct bt_vcpu *c, const struct bt_op *op)
{
    if (!op->is_mem)
        bt_raise(c, BT_EX_UD);
    uint64_t lin = sys_mem_lin(c, op, op->opsize + 2u, false);
    uint64_t off = bt_read(c, lin, op->opsize, bt_acc(c));
    uint32_t sel = (uint32_t)bt_read(c, lin + op->opsize, 2, bt_acc(c));
    sys_load_seg(c, op->imm2, sel);
    bt_reg_set(c, op->reg, op->opsize, 0, off);
}

/* --- LDTR and TR ------------------------------------------------------------------ */
static void check_umip(struct bt_vcpu *c)
{
    if (c->cpl && (c->cr4 & BT_CR4_UMIP))
        sys_gp0(c);
}

static void store_sel(struct bt_vcpu *c, const struct bt_op *op, uint32_t sel)
{
    sys_need_protected(c);
    check_umip(c);
    sys_set_rm(c, op, op->is_mem ? 2 : op->opsize, sel);
}

void bt_op_sldt(struct bt_vcpu *c, const struct bt_op *op) { store_sel(c, op, c->ldtr.selector); }
void bt_op_str(struct bt_vcpu *c, const struct bt_op *op) { store_sel(c, op, c->tr.selector); }

/* The descriptor of a system segment, both halves in long mode. */
static uint64_t read_system(struct bt_vcpu *c, uint32_t sel, uint64_t *lin, uint32_t *base_hi)
{
    unsigned n = bt_long_mode(c) ? 16 : 8;
    if ((sel & 4) || !sys_desc_addr(c, sel, n, lin))
        bt_raise_err(c, BT_EX_GP, sel & 0xfffc);
    uint64_t d = bt_read(c, *lin, 8, 0), hi = n == 16 ? bt_read(c, *lin + 8, 8, 0) : 0;
    if (hi >> 40 & 0x1f) /* type bits of the upper half must be zero */
        bt_raise_err(c, BT_EX_GP, sel & 0xfffc);
    *base_hi = (uint32_t)hi;
    return d;
}

static void load_system(struct bt_vcpu *c, struct hvx_segment *s, uint32_t sel, uint64_t d, uint32_t base_hi)
{
    uint64_t base = (uint64_t)base_hi << 32 | sys_desc_base(d);
    if (!sys_canonical(base))
        bt_raise_err(c, BT_EX_GP, sel & 0xfffc);
    sys_seg_cache(s, sel, d);
    s->base = base;
}

void bt_op_lldt(struct bt_vcpu *c, const struct bt_op *op)
{
    uint64_t lin;
    uint32_t hi;

    sys_need_protected(c);
    sys_need_cpl0(c);
    uint32_t sel = (uint32_t)sys_get_rm(c, op, 2);
    if (sys_null(sel)) {
        c->ldtr = (struct hvx_segment){.selector = (uint16_t)sel, .attr = SYS_UNUSABLE};
        return;
    }
    uint64_t d = read_system(c, sel, &lin, &hi);
    if (sys_desc_s(d) || sys_desc_type(d) != SYS_LDT)
        bt_raise_err(c, BT_EX_GP, sel & 0xfffc);
    if (!sys_desc_p(d))
        bt_raise_err(c, BT_EX_NP, sel & 0xfffc);
    load_system(c, &c->ldtr, sel, d, hi);
}

void bt_op_ltr(struct bt_vcpu *c, const struct bt_op *op)
{
    uint64_t lin;
    uint32_t hi;

    sys_need_protected(c);
    sys_need_cpl0(c);
    uint32_t sel = (uint32_t)sys_get_rm(c, op, 2);
    if (sys_null(sel))
        sys_gp0(c);
    uint64_t d = read_system(c, sel, &lin, &hi);
    unsigned type = sys_desc_type(d);
    if (sys_desc_s(d) || !(type == SYS_TSS32 || (type == SYS_TSS16 && !bt_long_mode(c))))
        bt_raise_err(c, BT_EX_GP, sel & 0xfffc);
    if (!sys_desc_p(d))
        bt_raise_err(c, BT_EX_NP, sel & 0xfffc);
    uint64_t base = (uint64_t)hi << 32 | sys_desc_base(d);
    if (!sys_canonical(base))
        bt_raise_err(c, BT_EX_GP, sel & 0xfffc);
    d |= 2ull << 40; /* busy */
    bt_write(c, lin + 5, 1, d >> 40 & 0xff, BT_ACC_WRITE);
    load_system(c, &c->tr, sel, d, hi);
}

/* --- LAR LSL VERR VERW ARPL ---------------------------------------------------------------- */
/* Is the descriptor visible to CPL and the selector's RPL? */
static bool visible(const struct bt_vcpu *c, uint32_t sel, uint64_t d)
{
    if (sys_desc_conforming(d))
        return true;
    unsigned dpl = sys_desc_dpl(d);
    return c->cpl <= dpl && (sel & 3) <= dpl;
}

static bool fetch_quiet(struct bt_vcpu *c, uint32_t sel, uint64_t *d)
{
    uint64_t lin;
    if (sys_null(sel) || !sys_desc_addr(c, sel, 8, &lin))
        return false;
    *d = bt_read(c, lin, 8, 0);
    return true;
}

static void set_zf(struct bt_vcpu *c, bool z) { sys_set_flags(c, BT_ZF, z ? BT_ZF : 0); }

static void verify(struct bt_vcpu *c, const struct bt_op *op, bool write)
{
    uint64_t d;
    sys_need_protected(c);
    uint32_t sel = (uint32_t)sys_get_rm(c, op, 2);
    bool ok = fetch_quiet(c, sel, &d) && sys_desc_s(d) && visible(c, sel, d);
    if (ok)
        ok = write ? sys_desc_wdata(d) : !sys_desc_code(d) || (d >> 41 & 1);
    set_zf(c, ok);
}

void bt_op_verr(struct bt_vcpu *c, const struct bt_op *op) { verify(c, op, false); }
void bt_op_verw(struct bt_vcpu *c, const struct bt_op *op) { verify(c, op, true); }

void bt_op_lar(struct bt_vcpu *c, const struct bt_op *op)
{
    /* System types LAR accepts: legacy, then long mode (SDM volume 2, LAR). */
    const uint32_t types = bt_long_mode(c)
                               ? 1u << 2 | 1u << 9 | 1u << 11 | 1u << 12
                               : 1u << 1 | 1u << 2 | 1u << 3 | 1u << 4 | 1u << 5 | 1u << 9 | 1u << 11 | 1u << 12;
    uint64_t d;
    sys_need_protected(c);
    uint32_t sel = (uint32_t)sys_get_rm(c, op, 2);
    bool ok = fetch_quiet(c, sel, &d) && (sys_desc_s(d) || (types >> sys_desc_type(d) & 1)) && visible(c, sel, d);
    if (ok)
        bt_reg_set(c, op->reg, op->opsize, 0, d >> 32 & (op->opsize == 2 ? 0xff00u : 0x00f0ff00u));
    set_zf(c, ok);
}

void bt_op_lsl(struct bt_vcpu *c, const struct bt_op *op)
{
    const uint32_t types = bt_long_mode(c) ? 1u << 2 | 1u << 9 | 1u << 11
                                           : 1u << 1 | 1u << 2 | 1u << 3 | 1u << 9 | 1u << 11;
    uint64_t d;
    sys_need_protected(c);
    uint32_t sel = (uint32_t)sys_get_rm(c, op, 2);
    bool ok = fetch_quiet(c, sel, &d) && (sys_desc_s(d) || (types >> sys_desc_type(d) & 1)) && visible(c, sel, d);
    if (ok)
        bt_reg_set(c, op->reg, op->opsize, 0, sys_desc_limit(d));
    set_zf(c, ok);
}

void bt_op_arpl(struct bt_vcpu *c, const struct bt_op *op)
{
    sys_need_protected(c);
    uint32_t dst = (uint32_t)sys_get_rm(c, op, 2), src = c->gpr[op->reg] & 3;
    bool raise = (dst & 3) < src;
    if (raise)
        sys_set_rm(c, op, 2, (dst & ~3u) | src);
    set_zf(c, raise);
}

/* --- GDTR and IDTR -------------------------------------------------------------------------- */
static void store_table(struct bt_vcpu *c, const struct bt_op *op, uint32_t limit, uint64_t base)
{
    unsigned n = bt_code64(c) ? 8 : 4;
    check_umip(c);
    uint64_t lin = sys_mem_lin(c, op, n + 2, true);
    bt_probe(c, lin, n + 2, bt_acc(c) | BT_ACC_WRITE);
    bt_write(c, lin, 2, limit, bt_acc(c) | BT_ACC_WRITE);
    bt_write(c, lin + 2, n, base, bt_acc(c) | BT_ACC_WRITE);
}

void bt_op_sgdt(struct bt_vcpu *c, const struct bt_op *op) { store_table(c, op, c->gdt_limit, c->gdt_base); }
void bt_op_sidt(struct bt_vcpu *c, const struct bt_op *op) { store_table(c, op, c->idt_limit, c->idt_base); }

static void load_table(struct bt_vcpu *c, const struct bt_op *op, uint32_t *limit, uint64_t *base)
{
    unsigned n = bt_code64(c) ? 8 : 4;
    sys_need_cpl0(c);
    uint64_t lin = sys_mem_lin(c, op, n + 2, false);
    uint32_t l = (uint32_t)bt_read(c, lin, 2, bt_acc(c));
    uint64_t b = bt_read(c, lin + 2, n, bt_acc(c));
    if (n == 4 && op->opsize == 2)
        b &= 0xffffff;
    if (!sys_canonical(b))
        sys_gp0(c);
    *limit = l;
    *base = b;
}

void bt_op_lgdt(struct bt_vcpu *c, const struct bt_op *op) { load_table(c, op, &c->gdt_limit, &c->gdt_base); }
void bt_op_lidt(struct bt_vcpu *c, const struct bt_op *op) { load_table(c, op, &c->idt_limit, &c->idt_base); }
