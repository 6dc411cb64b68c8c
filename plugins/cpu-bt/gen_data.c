/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/gen_data.c - stack instructions, LEA, bit tests and other moves that are
 * not plain re-encodings. Ordinary C.
 */
#include "trans.h"

void gen_load_gpr(struct trans *t, unsigned h, unsigned g)
{
    int s = host_reg(g);
    if (s < 0)
        e_load(&t->e, h, &t->c->gpr[g]);
    else if ((unsigned)s != h)
        e_mov_rr(&t->e, h, (unsigned)s);
}
void gen_store_gpr(struct trans *t, unsigned g, unsigned h, unsigned size)
{
    struct bt_emit *e = &t->e;
    int s = host_reg(g);
    if (s < 0) {
        if (size == 2) {
            e8(e, 0x66);
            e_r_abs(e, 0, 0x89, h, e_abs(&t->c->gpr[g]));
            return;
        }
        if (size == 4)
            e_mov32_rr(e, h, h);
        e_store(e, h, &t->c->gpr[g]);
        return;
    }
    if (size == 2)
        e8(e, 0x66);
    e_rr(e, size == 8, 0x8b, (unsigned)s, h);
}
static void op_mem(struct trans *t, unsigned w, unsigned op, unsigned reg)
{
    struct bt_emit *e = &t->e;
    e_rex(e, w, reg, t->m.index < 0 ? 0 : (unsigned)t->m.index, t->m.base < 0 ? 0 : (unsigned)t->m.base, false);
    if (op > 0xff)
        e8(e, op >> 8);
    e8(e, op & 0xff);
    e_mod_host(e, reg, &t->m);
}
void gen_load_mem(struct trans *t, unsigned h, unsigned size)
{
    gen_direct_site(t);
    if (size == 2)
        op_mem(t, 0, 0x0fb7, h);
    else
        op_mem(t, size == 8, 0x8b, h);
}
void gen_store_mem(struct trans *t, unsigned h, unsigned size)
{
    gen_direct_site(t);
    if (size == 2)
        e8(&t->e, 0x66);
    op_mem(t, size == 8, 0x89, h);
}
void gen_store_rip_mem(struct trans *t, uint64_t v, unsigned size)
{
    if (size == 8 && (int64_t)v != (int32_t)v) {
        unsigned h = gen_scratch(t);
        e_mov_rip(&t->e, h, v);
        gen_store_mem(t, h, 8);
        return;
    }
    gen_store_imm_mem(t, v, size);
    if (size == 8)
        e_rip_field(&t->e, v, 4);
    else if (t->e.relocs)
        t->e.relocs->fixed = true;
}
void gen_store_imm_mem(struct trans *t, uint64_t v, unsigned size)
{
    struct bt_emit *e = &t->e;
    if (size == 8 && (int64_t)v != (int32_t)v) {
        unsigned h = gen_scratch(t);
        e_mov_imm(e, h, v);
        gen_store_mem(t, h, 8);
        return;
    }
    gen_direct_site(t);
    if (size == 2)
        e8(e, 0x66);
    op_mem(t, size == 8, 0xc7, 0);
    if (size == 2)
        e16(e, (uint16_t)v);
    else
        e32(e, (uint32_t)v);
}

/* --- stack -------------------------------------------------------------------------- */
/* What r14 holds; RSP is moved by the caller. */
static void push_r14(struct trans *t, unsigned size)
{
    e_store(&t->e, H_R14, &t->c->tmp[0]);
    gen_stack(t, -(int)size, size, true);
    unsigned h = gen_scratch(t);
    e_load(&t->e, h, &t->c->tmp[0]);
    gen_store_mem(t, h, size);
}

void gen_push(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    const ZydisDecodedOperand *o = &x->op[0];
    unsigned size = x->d.operand_width / 8u;
    if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        gen_lookup(t, o, size, true, false);
        gen_load_mem(t, H_R14, size);
        push_r14(t, size);
    } else if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        gen_stack(t, -(int)size, size, true);
        gen_store_imm_mem(t, o->imm.value.u, size);
    } else {
        bool high;
        unsigned g = reg_number(o->reg.value, &high);
        gen_stack(t, -(int)size, size, true);
        int h = host_reg(g);
        if (h < 0) {
            h = (int)gen_scratch(t);
            e_load(e, (unsigned)h, &t->c->gpr[g]);
        }
        gen_store_mem(t, (unsigned)h, size);
    }
    gen_commit(t);
    gen_sp_add(t, -(int)size);
}

static void or_flag(struct bt_emit *e, const uint8_t *flag, unsigned bit)
{
    e_rex(e, 0, H_R15, 0, 0, false); /* movzx r15d, byte [flag] */
    e8(e, 0x0f);
    e8(e, 0xb6);
    e_mod_abs(e, H_R15, e_abs(flag));
    e_rex(e, 0, 0, 0, H_R15, false); /* shl r15d, bit */
    e8(e, 0xc1);
    e_mod_rr(e, 4, H_R15);
    e8(e, bit);
    e_rr(e, 0, 0x0b, H_R14, H_R15);
}

/* What bt_rflags() puts together. */
void gen_pushf(struct trans *t)
{
    struct bt_emit *e = &t->e;
    struct bt_vcpu *c = t->c;
    const uint8_t *slot = (const uint8_t *)&c->flags_slot;
    gen_flags_save(t);
    e_load32(e, H_R14, &c->flags_slot);
    e_rex(e, 0, 0, 0, H_R14, false); /* shr r14d, 8 */
    e8(e, 0xc1);
    e_mod_rr(e, 5, H_R14);
    e8(e, 8);
    e_alu_ri(e, 0, 4, H_R14, BT_ARITH & 0xff);
    or_flag(e, slot, 11);
    or_flag(e, &c->iflag, 9);
    or_flag(e, &c->dflag, 10);
    e_load32(e, H_R15, &c->sysflags);
    e_alu_ri(e, 0, 4, H_R15, (int32_t)~(BT_VM | BT_RF));
    e_rr(e, 0, 0x0b, H_R14, H_R15);
    gen_flags_clobbered(t);
    push_r14(t, 8);
    gen_sp_add(t, -8);
}

void gen_pop(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    const ZydisDecodedOperand *o = &x->op[0];
    unsigned size = x->d.operand_width / 8u;
    gen_stack(t, 0, size, false);
    if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        gen_load_mem(t, H_R14, size);
        e_store(e, H_R14, &t->c->tmp[0]);
        t->rsp_bias = (int)size;
        gen_lookup(t, o, size, false, true);
        t->rsp_bias = 0;
        unsigned h = gen_scratch(t);
        e_load(e, h, &t->c->tmp[0]);
        gen_store_mem(t, h, size);
        gen_commit(t);
        gen_sp_add(t, (int)size);
        return;
    }
    bool high;
    unsigned g = reg_number(o->reg.value, &high);
    int h = host_reg(g);
    if (size == 8 && h >= 0 && g != BT_RSP) {
        gen_load_mem(t, (unsigned)h, 8);
        gen_sp_add(t, 8);
        return;
    }
    unsigned r = gen_scratch(t);
    gen_load_mem(t, r, size);
    gen_sp_add(t, (int)size);
    gen_store_gpr(t, g, r, size);
}

void gen_leave(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    unsigned size = x->d.operand_width / 8u;
    gen_stack_at_rbp(t, size);
    unsigned r = gen_scratch(t);
    gen_load_mem(t, r, size);
    if (t->code64) {
        e_mov_rr(e, H_R13, H_RBP);
    } else if (t->mode & BT_MODE_SS32) {
        e_mov32_rr(e, H_R13, H_RBP);
    } else {
        e8(e, 0x66);
        e_rr(e, 0, 0x8b, H_R13, H_RBP);
    }
    gen_sp_add(t, (int)size);
    gen_store_gpr(t, BT_RBP, r, size);
}

/* --- LEA, BT with a register offset ------------------------------------------------------ */
void gen_lea(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    bool high;
    unsigned g = reg_number(x->op[0].reg.value, &high), size = x->op[0].size / 8u;
    const ZydisDecodedOperandMem *m = &x->op[1].mem;
    int d = host_reg(g);
    int b = m->base == ZYDIS_REGISTER_NONE ? -1 : m->base == ZYDIS_REGISTER_RIP || m->base == ZYDIS_REGISTER_EIP ? -2 :
            host_reg((unsigned)ZydisRegisterGetId(m->base));
    int i = m->index == ZYDIS_REGISTER_NONE ? -1 : host_reg((unsigned)ZydisRegisterGetId(m->index));
    bool direct = d >= 0 && size >= 4 && b != -2 && x->d.address_width >= 32 &&
                  (m->base == ZYDIS_REGISTER_NONE || b >= 0) && (m->index == ZYDIS_REGISTER_NONE || i >= 0) &&
                  (b >= 0 || i >= 0) &&
                  (x->d.address_width == 64 || size == 4);
    if (direct) {
        unsigned s = m->scale == 8 ? 3 : m->scale == 4 ? 2 : m->scale == 2 ? 1 : 0;
        e_lea(e, size == 8, (unsigned)d, b, i, i < 0 ? 0 : s, m->disp.has_displacement ? (int32_t)m->disp.value : 0);
        return;
    }
    t->r15_group = 0; /* an index may go through r15 */
    gen_offset(t, &x->op[1], x->d.address_width);
    gen_store_gpr(t, g, H_R14, size);
}

void gen_bt(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    bool high;
    unsigned g = reg_number(x->op[1].reg.value, &high), size = x->op[1].size / 8u;
    unsigned shift = size == 8 ? 6 : size == 4 ? 5 : 4;
    bool wr = x->d.mnemonic != ZYDIS_MNEMONIC_BT;
    gen_flags_before_mem(t);
    gen_offset(t, &x->op[0], x->d.address_width);
    /* r14 += (bit offset >> log2 width) * size, signed */
    gen_load_gpr(t, H_R15, g);
    if (size == 4) {
        e_rr(e, 1, 0x63, H_R15, H_R15); /* movsxd */
    } else if (size == 2) {
        e_rex(e, 1, H_R15, 0, H_R15, false); /* movsx r15, r15w */
        e8(e, 0x0f);
        e8(e, 0xbf);
        e_mod_rr(e, H_R15, H_R15);
    }
    e_rex(e, 1, 0, 0, H_R15, false); /* sar r15, shift */
    e8(e, 0xc1);
    e_mod_rr(e, 7, H_R15);
    e8(e, shift);
    t->in_reg = false;
    e_lea(e, x->d.address_width == 64, H_R14, H_R14, H_R15, size == 8 ? 3 : size == 4 ? 2 : 1, 0);
    if (x->d.address_width == 16)
        e_movzx16(e, H_R14, H_R14);
    unsigned seg = gen_seg_number(x->op[0].mem.segment);
    if (seg >= BT_FS || !gen_direct_at(t, H_R14, 0))
        gen_lookup_at(t, seg, size, true, wr);
    gen_load_gpr(t, H_R15, g);
    e_alu_ri(e, 0, 4, H_R15, (int32_t)(size * 8 - 1));
    if (x->live_after & ~x->f_kill)
        gen_flags_restore_tmp(t);
    gen_direct_site(t);
    if (x->d.attributes & ZYDIS_ATTRIB_HAS_LOCK)
        e8(e, 0xf0);
    if (size == 2)
        e8(e, 0x66);
    e_rex(e, size == 8, H_R15, 0, H_R14, false);
    e8(e, 0x0f);
    e8(e, x->d.mnemonic == ZYDIS_MNEMONIC_BT ? 0xa3 : x->d.mnemonic == ZYDIS_MNEMONIC_BTS ? 0xab :
          x->d.mnemonic == ZYDIS_MNEMONIC_BTR ? 0xb3 : 0xbb);
    e_mod_base(e, H_R15, H_R14, 0);
    gen_flags_done(t, x);
    if (wr)
        gen_commit(t);
}

void gen_mov_from_sreg(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    unsigned s = (unsigned)ZydisRegisterGetId(x->op[1].reg.value);
    const void *sel = &t->c->seg[s].selector;
    if (x->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
        gen_lookup(t, &x->op[0], 2, false, true); /* never grouped: [r14] */
    e_rex(e, 0, H_R15, 0, 0, false); /* movzx r15d, word [sel] */
    e8(e, 0x0f);
    e8(e, 0xb7);
    e_mod_abs(e, H_R15, e_abs(sel));
    if (x->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY) {
        gen_store_mem(t, H_R15, 2);
        gen_commit(t);
    } else {
        bool high;
        gen_store_gpr(t, reg_number(x->op[0].reg.value, &high), H_R15, x->op[0].size / 8u);
    }
}

/* MOV between the accumulator and an absolute address (A0..A3) */
void gen_moffs(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    bool store = x->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
    const ZydisDecodedOperand *o = store ? &x->op[0] : &x->op[1];
    unsigned size = o->size / 8u;
    gen_flags_before_mem(t);
    uint64_t a = (uint64_t)o->mem.disp.value;
    e_mov_imm(e, H_R14, x->d.address_width == 64 ? a : x->d.address_width == 32 ? (uint32_t)a : (uint16_t)a);
    unsigned seg = gen_seg_number(o->mem.segment);
    gen_lookup_at(t, seg, size, !store, store);
    if (size == 2)
        e8(e, 0x66);
    e_r_base(e, size == 8, (store ? 0x88 : 0x8a) | (size > 1), H_RAX, H_R14, 0);
    if (store)
        gen_commit(t);
}
