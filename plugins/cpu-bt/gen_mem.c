/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/gen_mem.c - addresses, look-ups in the software TLB. Ordinary C.
 *
 * A look-up, with the linear address in r14 (flags are dead or in the slot):
 *     rorx r15d, r14d, 7 ; and r15d, index mask     entry of the page
 *     xor  r14, [r15 + tag]                         page offset when it hits
 *     cmp  r14, 4096 - size ; ja cold               miss, or crosses the page
 *     add  r14, [r15 + host]                        r14 = hva
 * Stack accesses use a one-entry TLB at fixed addresses instead.
 */
#include "trans.h"
#include <assert.h>

/* Put a guest register into a host register that can be used in an address;
 * memory-resident ones are loaded into `scratch`. */
static int addr_reg(struct trans *t, ZydisRegister r, unsigned scratch)
{
    unsigned g = (unsigned)ZydisRegisterGetId(r);
    int h = host_reg(g);
    if (h >= 0)
        return h;
    e_load(&t->e, scratch, &t->c->gpr[g]);
    return (int)scratch;
}

static unsigned scale_log2(unsigned s) { return s == 8 ? 3 : s == 4 ? 2 : s == 2 ? 1 : 0; }

void gen_offset(struct trans *t, const ZydisDecodedOperand *o, unsigned addr_bits)
{
    struct bt_emit *e = &t->e;
    const ZydisDecodedOperandMem *m = &o->mem;
    int64_t disp = m->disp.has_displacement ? m->disp.value : 0;
    if (m->base == ZYDIS_REGISTER_RIP || m->base == ZYDIS_REGISTER_EIP) {
        uint64_t a = t->cur->rip + t->cur->d.length + (uint64_t)disp;
        if (m->base == ZYDIS_REGISTER_EIP || addr_bits == 32)
            a = (uint32_t)a;
        e_mov_rip(e, H_R14, a);
        return;
    }
    unsigned w = addr_bits == 64;
    if (m->base == ZYDIS_REGISTER_NONE && m->index == ZYDIS_REGISTER_NONE) {
        e_mov_imm(e, H_R14, addr_bits == 64 ? (uint64_t)disp : addr_bits == 32 ? (uint32_t)disp : (uint16_t)disp);
        return;
    }
    int base = -1, index = -1;
    if (m->base != ZYDIS_REGISTER_NONE) {
        base = addr_reg(t, m->base, H_R14);
        if (t->rsp_bias && ZydisRegisterGetId(m->base) == 4)
            disp += t->rsp_bias;
    }
    if (m->index != ZYDIS_REGISTER_NONE)
        index = addr_reg(t, m->index, H_R15);
    if (disp != (int32_t)disp) /* cannot be: displacements are 32 bits */
        disp = (int32_t)disp;
    e_lea(e, w, H_R14, base, index, index < 0 ? 0 : scale_log2(m->scale), (int32_t)disp);
    if (addr_bits == 16)
        e_movzx16(e, H_R14, H_R14);
}

void trans_map(struct trans *t, struct bt_map_entry *m, uint32_t host, unsigned off)
{
    (void)t;
    m->host = host;
    m->off = (uint16_t)off;
    m->slot = 0;
}

struct cold *trans_cold(struct trans *t, unsigned type, uint8_t *site)
{
    assert(t->n_cold < BT_MAX_COLD);
    struct cold *x = &t->cold[t->n_cold++];
    memset(x, 0, sizeof(*x));
    x->type = (uint8_t)type;
    x->site = site;
    x->off = (uint16_t)(t->cur ? t->cur->rip - t->rip : 0);
    x->again = gen_flags_recipe(t);
    x->fn_slot = t->in_slot && !t->in_fn;
    return x;
}

static void mem_is_r14(struct trans *t) { t->m = (struct host_mem){.base = H_R14, .index = -1}; }
void gen_mem_in_r14(struct trans *t)
{
    if (t->m.base == H_R14 && t->m.index < 0 && !t->m.disp)
        return;
    e_lea(&t->e, 1, H_R14, t->m.base, t->m.index, t->m.scale, t->m.disp);
    t->m.base = H_R14;
    t->m.index = -1;
    t->m.disp = 0;
}
unsigned gen_scratch(struct trans *t)
{
    if (t->m.base == H_R15 && t->m.index != H_R14)
        return H_R14;
    if (t->m.direct && !host_mem_uses(&t->m, H_R15))
        return H_R15;
    gen_mem_in_r14(t);
    t->r15_group = 0;
    return H_R15;
}

void gen_tlb_index(struct trans *t)
{
    struct bt_emit *e = &t->e;
    if (t->c->vm->have_bmi2) {
        e_rorx32(e, H_R15, H_R14, 7);
    } else {
        e_mov32_rr(e, H_R15, H_R14);
        e_rex(e, 0, 0, 0, H_R15, false); /* shr r15d, 7 */
        e8(e, 0xc1);
        e_mod_rr(e, 5, H_R15);
        e8(e, 7);
    }
    e_alu_ri(e, 0, 4, H_R15, (BT_TLB_SIZE - 1) << 5);
}

/* r14 linear -> hva */
static void lookup(struct trans *t, unsigned size, bool rd, bool wr, bool stack)
{
    struct bt_emit *e = &t->e;
    struct bt_vcpu *c = t->c;
    unsigned s = t->cpl3;
    uint32_t desc = size | (wr ? BT_DESC_WRITE : 0) | (rd ? BT_DESC_READ : 0) | (s ? BT_DESC_USER : 0) |
                    (stack ? BT_DESC_STACK : 0) | (group_live(t) ? BT_DESC_GROUPS : 0) | t->desc_extra;
    t->desc_extra = 0;
    t->r15_group = 0;
    mem_is_r14(t);
    gen_flags_clobbered(t);
    if (t->careful) {
        e_mov_imm(e, H_R15, desc | BT_DESC_CAREFUL);
        e_call(e, t->k->stub_slow[BT_FLAGS_SLOT]);
        return;
    }
    struct cold *x;
    if (stack) {
        uint64_t *tag = wr ? &c->stk_tag[s] : &c->stk_rtag[s];
        e_r_abs(e, 1, 0x33, H_R14, e_abs(tag)); /* xor */
        e_alu_ri(e, 1, 7, H_R14, (int32_t)(4096 - size));
        x = trans_cold(t, COLD_SLOW, e_jcc(e, CC_A, 0));
        e_r_abs(e, 1, 0x03, H_R14, e_abs(&c->stk_host[s])); /* add */
        x->tag_abs = e_abs(tag);
        x->indexed = false;
        x->stack = true;
    } else {
        uint32_t tlb = e_abs(c->tlb[s]);
        uint32_t tag = tlb + (uint32_t)(wr ? offsetof(struct bt_tlb_entry, tag_w)
                                           : offsetof(struct bt_tlb_entry, tag_r));
        gen_tlb_index(t);
        e_r_base_at(e, 1, 0x33, H_R14, H_R15, tag);
        e_alu_ri(e, 1, 7, H_R14, (int32_t)(4096 - size));
        x = trans_cold(t, COLD_SLOW, e_jcc(e, CC_A, 0));
        e_r_base_at(e, 1, 0x03, H_R14, H_R15, tlb + (uint32_t)offsetof(struct bt_tlb_entry, host));
        x->tag_abs = tag;
        x->indexed = true;
    }
    x->desc = desc;
    x->rejoin = e_here(e);
}

/* r14 = offset in `seg` -> linear. 64-bit code: FS and GS only. Flat code: the
 * same. Else limit and type are checked against the copies in the state; what
 * does not pass goes to C in a careful block. */
static void segment(struct trans *t, unsigned seg, unsigned size, bool wr)
{
    struct bt_emit *e = &t->e;
    struct bt_vcpu *c = t->c;
    if (t->code64) {
        if (seg >= BT_FS) {
            e_load(e, H_R15, &c->seg_base[seg]);
            e_lea(e, 1, H_R14, H_R14, H_R15, 0, 0);
        }
        return;
    }
    if (t->flat && seg < BT_FS && !(wr && seg == BT_CS)) /* code segments cannot be written: C raises #GP */
        return;
    if (t->careful) {
        e_mov_imm(e, H_R15, seg | size << 8 | (wr ? 1u << 30 : 0));
        e_call(e, t->k->stub_segfault);
        gen_flags_clobbered(t);
        return;
    }
    e_lea(e, 1, H_R15, H_R14, -1, 0, (int32_t)size - 1);
    e_r_abs(e, 1, 0x89, H_R15, e_abs(&c->tmp[2]));
    e_load32(e, H_R15, wr ? &c->seg_wlimit[seg] : &c->seg_rlimit[seg]);
    e_r_abs(e, 1, 0x3b, H_R15, e_abs(&c->tmp[2])); /* cmp limit, last */
    gen_flags_clobbered(t);
    /* "last == limit" may go to C too: a limit of 0 stands for "always C" */
    trans_cold(t, COLD_CAREFUL, e_jcc(e, CC_BE, 0));
    e_load(e, H_R15, &c->seg_base[seg]);
    e_lea(e, 0, H_R14, H_R14, H_R15, 0, 0);
}

unsigned gen_seg_number(ZydisRegister r)
{
    switch (r) {
    case ZYDIS_REGISTER_ES: return BT_ES;
    case ZYDIS_REGISTER_CS: return BT_CS;
    case ZYDIS_REGISTER_SS: return BT_SS;
    case ZYDIS_REGISTER_FS: return BT_FS;
    case ZYDIS_REGISTER_GS: return BT_GS;
    default: return BT_DS;
    }
}

void gen_lookup(struct trans *t, const ZydisDecodedOperand *o, unsigned size, bool rd, bool wr)
{
    if (gen_group(t, t->cur->group, o, 0) || gen_direct(t, o))
        return;
    gen_flags_before_mem(t);
    gen_offset(t, o, t->cur->d.address_width);
    if (t->code64 && o->mem.segment == ZYDIS_REGISTER_SS)
        t->desc_extra |= BT_DESC_SS;
    segment(t, gen_seg_number(o->mem.segment), size, wr);
    lookup(t, size, rd, wr, false);
}

void gen_lookup_at(struct trans *t, unsigned seg, unsigned size, bool rd, bool wr)
{
    gen_flags_before_mem(t);
    if (t->code64 && seg == BT_SS)
        t->desc_extra |= BT_DESC_SS;
    segment(t, seg, size, wr);
    lookup(t, size, rd, wr, false);
}

static bool stack64(const struct trans *t) { return t->code64; }
static bool stack32(const struct trans *t) { return !t->code64 && (t->mode & BT_MODE_SS32); }

void gen_stack(struct trans *t, int delta, unsigned size, bool wr)
{
    struct bt_emit *e = &t->e;
    if (gen_group(t, t->cur->stack_group, NULL, delta) || gen_direct_at(t, H_R13, delta))
        return;
    gen_flags_before_mem(t);
    if (stack64(t)) {
        if (delta)
            e_lea(e, 1, H_R14, H_R13, -1, 0, delta);
        else
            e_mov_rr(e, H_R14, H_R13);
    } else {
        e_lea(e, 0, H_R14, H_R13, -1, 0, delta);
        if (!stack32(t))
            e_movzx16(e, H_R14, H_R14);
        segment(t, BT_SS, size, wr);
    }
    lookup(t, size, false, wr, true);
}

/* LEAVE: [rBP] with the stack's address size */
void gen_stack_at_rbp(struct trans *t, unsigned size)
{
    struct bt_emit *e = &t->e;
    if (gen_group(t, t->cur->stack_group, NULL, 0) || gen_direct_at(t, H_RBP, 0))
        return;
    gen_flags_before_mem(t);
    if (stack64(t)) {
        e_mov_rr(e, H_R14, H_RBP);
    } else {
        if (stack32(t))
            e_mov32_rr(e, H_R14, H_RBP);
        else
            e_movzx16(e, H_R14, H_RBP);
        segment(t, BT_SS, size, false);
    }
    lookup(t, size, false, false, true);
}

/* SP += delta; keeps flags. `again` still stands if RSP was its operand: see only_steps(). */
void gen_sp_add(struct trans *t, int delta)
{
    struct bt_emit *e = &t->e;
    if (!stack64(t) && !stack32(t))
        e8(e, 0x66);
    e_lea(e, stack64(t), H_R13, H_R13, -1, 0, delta);
    if (t->again.regs & 1u << BT_RSP)
        t->again.bias += delta;
}

void gen_commit(struct trans *t)
{
    if (!t->careful)
        return;
    gen_flags_save(t);
    e_call(&t->e, t->k->stub_commit);
    gen_flags_clobbered(t);
}
