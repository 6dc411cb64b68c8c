/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/gen_string.c - MOVS, STOS and LODS. Ordinary C.
 *
 * One element is two accesses and a step. A repeated MOVS or STOS is the host's
 * own on the host's addresses, where what it touches is plain memory that the
 * TLB has, within a page on each side, forwards: nearly always. Else op_str.c
 * does it from where it stands.
 */
#include "trans.h"

/* Jumps of a few bytes, forwards. */
static uint8_t *jump8(struct bt_emit *e, unsigned op)
{
    e8(e, op);
    e8(e, 0);
    return e->p;
}
static void land8(struct bt_emit *e, uint8_t *from) { from[-1] = (uint8_t)(e->p - from); }

/* --- one element --------------------------------------------------------------------- */
/* r14 = an index register as an address */
static void string_offset(struct trans *t, unsigned h, unsigned addr_bits)
{
    if (addr_bits == 64)
        e_mov_rr(&t->e, H_R14, h);
    else if (addr_bits == 32)
        e_mov32_rr(&t->e, H_R14, h);
    else
        e_movzx16(&t->e, H_R14, h);
}

static void string_step(struct trans *t, bool rsi, bool rdi, unsigned addr_bits, int step)
{
    for (unsigned h = rsi ? H_RSI : H_RDI; h <= (rdi ? H_RDI : H_RSI); h++) {
        if (addr_bits == 16)
            e8(&t->e, 0x66);
        e_lea(&t->e, addr_bits == 64, h, (int)h, -1, 0, step);
    }
}

/* Compilers use them as "copy and advance". Both operands are looked up before anything changes; what is not plain
 * memory goes to C, in a careful block. */
void gen_string(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    unsigned bits = x->d.address_width, size = x->d.opcode & 1 ? x->d.operand_width / 8u : 1;
    unsigned w = size == 8, wide = size > 1;
    bool load = x->op_id != BT_OP_stos, store = x->op_id != BT_OP_lods;
    gen_flags_before_mem(t);
    if (load) {
        unsigned seg = BT_DS;
        for (unsigned i = 0; i < x->d.operand_count; i++) /* the one that can be overridden */
            if (x->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && x->op[i].mem.base != ZYDIS_REGISTER_NONE &&
                ZydisRegisterGetId(x->op[i].mem.base) == BT_RSI)
                seg = gen_seg_number(x->op[i].mem.segment);
        string_offset(t, H_RSI, bits);
        gen_lookup_at(t, seg, size, true, false);
        if (size == 2)
            e8(e, 0x66);
        e_r_base(e, w, 0x8a | wide, store ? H_R15 : H_RAX, H_R14, 0);
        if (store)
            e_store(e, H_R15, &t->c->tmp[0]);
    }
    if (store) {
        string_offset(t, H_RDI, bits);
        gen_lookup_at(t, BT_ES, size, false, true);
        if (load)
            e_load(e, H_R15, &t->c->tmp[0]);
        if (size == 2)
            e8(e, 0x66);
        e_r_base(e, w, 0x88 | wide, load ? H_R15 : H_RAX, H_R14, 0);
    }
    e_cmp_abs8(e, &t->c->dflag, 0);
    uint8_t *back = jump8(e, 0x70 | CC_NE);
    string_step(t, load, store, bits, (int)size);
    uint8_t *end = jump8(e, 0xeb);
    land8(e, back);
    string_step(t, load, store, bits, -(int)size);
    land8(e, end);
}

/* --- repeated -------------------------------------------------------------------------- */
struct slow {
    uint8_t *site[8];
    unsigned n;
};

/* cmp r, v; to C if it is so */
static void to_c(struct bt_emit *e, struct slow *s, unsigned r, int32_t v, unsigned cc)
{
    e_alu_ri(e, 1, 7, r, v);
    s->site[s->n++] = e_jcc(e, cc, 0);
}

/* r14 = host address of what h points to; all elements lie in its page */
static void rep_address(struct trans *t, struct slow *s, unsigned h, unsigned size, bool wr)
{
    struct bt_emit *e = &t->e;
    uint32_t tlb = e_abs(t->c->tlb[t->cpl3]);
    uint32_t tag = tlb + (uint32_t)(wr ? offsetof(struct bt_tlb_entry, tag_w) : offsetof(struct bt_tlb_entry, tag_r));
    e_mov_rr(e, H_R14, h);
    e_lea(e, 1, H_R15, (int)h, H_RCX, (unsigned)__builtin_ctz(size), -1); /* its last byte */
    e_rr(e, 1, 0x33, H_R15, H_R14);
    to_c(e, s, H_R15, 4096, CC_AE);
    gen_tlb_index(t);
    e_r_base_at(e, 1, 0x33, H_R14, H_R15, tag);
    to_c(e, s, H_R14, 4096, CC_AE);
    e_r_base_at(e, 1, 0x03, H_R14, H_R15, tlb + (uint32_t)offsetof(struct bt_tlb_entry, host));
}

static void rep(struct bt_emit *e, unsigned op, unsigned size)
{
    e8(e, 0xf3);
    if (size == 2)
        e8(e, 0x66);
    e_rex(e, size == 8, 0, 0, 0, false);
    e8(e, op | (size > 1));
}

/* rdi is r14's host address now */
static void rep_stos(struct bt_emit *e, unsigned size)
{
    if (size < 8) {
        rep(e, 0xaa, size);
        return;
    }
    e_alu_ri(e, 1, 7, H_RCX, 16); /* the host's takes longer to start */
    uint8_t *many = jump8(e, 0x70 | CC_A);
    uint8_t *none = jump8(e, 0xe3); /* jrcxz */
    uint8_t *again = e->p;
    e_r_base(e, 1, 0x89, H_RAX, H_RDI, 0);
    e_lea(e, 1, H_RDI, H_RDI, -1, 0, 8);
    e_alu_ri(e, 1, 5, H_RCX, 1);
    uint8_t *more = jump8(e, 0x70 | CC_NE);
    more[-1] = (uint8_t)(again - more);
    uint8_t *done = jump8(e, 0xeb);
    land8(e, many);
    rep(e, 0xaa, 8);
    land8(e, none);
    land8(e, done);
}

void gen_rep(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    struct bt_vcpu *c = t->c;
    struct slow s = {.n = 0};
    unsigned size = x->d.opcode & 1 ? x->d.operand_width / 8u : 1;
    bool by_fn = t->in_fn && !t->in_slot; /* left alone: to make them costs a jump that is often foretold wrongly */
    if (!by_fn)
        gen_flags_save(t);
    gen_flags_clobbered(t);
    e_cmp_abs8(e, &c->dflag, 0);
    s.site[s.n++] = e_jcc(e, CC_NE, 0);
    to_c(e, &s, H_RCX, 4096, CC_A);
    if (x->op_id == BT_OP_stos) {
        rep_address(t, &s, H_RDI, size, true);
        e_mov_rr(e, H_R15, H_RDI);
        e_rr(e, 1, 0x2b, H_R15, H_R14);
        e_mov_rr(e, H_RDI, H_R14);
        rep_stos(e, size);
        e_rr(e, 1, 0x03, H_RDI, H_R15);
    } else {
        rep_address(t, &s, H_RSI, size, false);
        e_store(e, H_R14, &c->tmp[0]);
        rep_address(t, &s, H_RDI, size, true);
        e_store(e, H_RSI, &c->tmp[1]);
        e_store(e, H_RDI, &c->tmp[2]);
        e_load(e, H_RSI, &c->tmp[0]);
        e_mov_rr(e, H_RDI, H_R14);
        rep(e, 0xa4, size);
        e_rr(e, 1, 0x2b, H_RDI, H_R14); /* so many bytes */
        e_load(e, H_RSI, &c->tmp[1]);
        e_rr(e, 1, 0x03, H_RSI, H_RDI);
        e_r_abs(e, 1, 0x03, H_RDI, e_abs(&c->tmp[2]));
    }
    e8(e, 0xe9);
    e32(e, 0);
    uint8_t *over = e->p;
    for (unsigned i = 0; i < s.n; i++)
        e_patch32(s.site[i], e_here(e));
    gen_op(t, x); /* the block ends there */
    t->in_fn = by_fn;
    t->in_slot = !by_fn;
    e_patch32(over - 4, e_here(e));
}
