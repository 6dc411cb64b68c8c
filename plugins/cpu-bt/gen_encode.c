/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/gen_encode.c - an instruction re-encoded with another memory operand
 * and other registers. Ordinary C.
 */
#include "trans.h"

/* --- re-encoding -------------------------------------------------------------
 * Any instruction is taken apart into prefixes, opcode, register fields,
 * memory operand and trailing immediate bytes, and put together again for
 * 64-bit mode with [r14] as its memory operand. */
struct enc {
    const ZydisDecodedOperand *mem;
    unsigned mem_size;
    bool mem_rd, mem_wr;
    int reg, rm, vvvv, opc;  /* guest register in that field, or -1 */
    bool reg_gpr, rm_gpr, v_gpr, opc_gpr;
    unsigned reg_no, rm_no, v_no; /* host numbers, 0..31 */
    uint8_t opcode;
    bool has_modrm;
    uint32_t guest_rd, guest_wr; /* memory-resident guest registers read, written */
    int swap; /* high-byte register swapped with its low byte, or -1 */
};

static bool operand_is(const ZydisDecodedOperand *o, unsigned actions) { return (o->actions & actions) != 0; }

unsigned insn_memory_size(const struct bt_vm *vm, const struct insn *x, const ZydisDecodedOperand *o)
{
    unsigned bits = o->size;
    if (x->d.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && x->d.avx.broadcast.mode && x->d.raw.evex.b)
        bits = o->element_size;
    if (x->d.mnemonic == ZYDIS_MNEMONIC_MOVSXD && x->d.operand_width == 16 && !vm->host_amd)
        bits = 16; /* SDM: r16, r/m16; APM, and Zydis: 32. It is the host that will read them. */
    return bits ? bits / 8 : 1;
}

/* May elements be masked off? Zydis calls the VEX stores plain writes. */
bool insn_is_masked(const ZydisDecodedInstruction *d)
{
    switch (d->mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS: case ZYDIS_MNEMONIC_VMASKMOVPD: case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
        return true;
    default:
        return d->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && d->raw.evex.aaa;
    }
}

static void take_apart(const struct bt_vm *vm, struct insn *x, struct enc *n)
{
    const ZydisDecodedInstruction *d = &x->d;
    memset(n, 0, sizeof(*n));
    n->reg = n->rm = n->vvvv = n->opc = -1;
    n->swap = -1;
    n->opcode = d->opcode;
    n->has_modrm = (d->attributes & ZYDIS_ATTRIB_HAS_MODRM) != 0;
    n->reg_no = d->raw.modrm.reg;
    n->rm_no = d->raw.modrm.rm;
    bool masked = insn_is_masked(d);
    for (unsigned i = 0; i < d->operand_count; i++) {
        const ZydisDecodedOperand *o = &x->op[i];
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            if (o->mem.type == ZYDIS_MEMOP_TYPE_AGEN || n->mem)
                continue;
            n->mem = o;
            n->mem_size = insn_memory_size(vm, x, o);
            n->mem_wr = operand_is(o, ACT_WR);
            /* conditional and masked stores leave bytes alone: the bounce buffer must hold them */
            n->mem_rd = operand_is(o, ACT_RD) || operand_is(o, ZYDIS_OPERAND_ACTION_CONDWRITE) || masked;
            continue;
        }
        if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        ZydisRegisterClass k = ZydisRegisterGetClass(o->reg.value);
        bool gpr = k >= ZYDIS_REGCLASS_GPR8 && k <= ZYDIS_REGCLASS_GPR64, high;
        bool vec = k == ZYDIS_REGCLASS_XMM || k == ZYDIS_REGCLASS_YMM || k == ZYDIS_REGCLASS_ZMM ||
                   k == ZYDIS_REGCLASS_MASK;
        if (!gpr && !vec)
            continue;
        unsigned g = reg_number(o->reg.value, &high);
        bool wr = operand_is(o, ACT_WR), rd = operand_is(o, ACT_RD);
        if (wr && (operand_is(o, ZYDIS_OPERAND_ACTION_CONDWRITE) || o->size < 32 || d->mnemonic == ZYDIS_MNEMONIC_BSF ||
                   d->mnemonic == ZYDIS_MNEMONIC_BSR)) /* those leave it alone for a source of 0 */
            rd = true; /* merges with the old value */
        unsigned no = g;
        if (gpr && !high) {
            if (g >= 13) {
                if (rd)
                    n->guest_rd |= 1u << g;
                if (wr)
                    n->guest_wr |= 1u << g;
            } else {
                no = (unsigned)host_reg(g);
            }
        }
        switch (o->encoding) {
        case ZYDIS_OPERAND_ENCODING_MODRM_REG:
            n->reg = (int)g;
            n->reg_gpr = gpr;
            n->reg_no = no;
            if (high)
                n->swap = -2; /* candidate */
            break;
        case ZYDIS_OPERAND_ENCODING_MODRM_RM:
            n->rm = (int)g;
            n->rm_gpr = gpr;
            n->rm_no = no;
            if (high)
                n->swap = -2;
            break;
        case ZYDIS_OPERAND_ENCODING_NDSNDD:
            n->vvvv = (int)g;
            n->v_gpr = gpr;
            n->v_no = no;
            break;
        case ZYDIS_OPERAND_ENCODING_OPCODE:
            n->opc = (int)g;
            n->opc_gpr = gpr;
            n->rm_no = no;
            if (high)
                n->swap = -2;
            break;
        default: /* implicit: RAX, RCX, ... stay where they are */
            break;
        }
    }
}

/* Memory-resident registers get r15, then r14 where the address allows it. A
 * register that is only written may share with a source. */
static void assign_scratch(struct enc *n, uint8_t scratch[3])
{
    bool r15 = false, r14 = n->mem != NULL, w15 = false, w14 = false;
    for (unsigned g = 13; g < 16; g++)
        if (n->guest_rd >> g & 1) {
            if (!r15) {
                scratch[g - 13] = H_R15;
                r15 = true;
                w15 = n->guest_wr >> g & 1;
            } else {
                scratch[g - 13] = H_R14;
                r14 = true;
                w14 = n->guest_wr >> g & 1;
            }
        }
    for (unsigned g = 13; g < 16; g++)
        if ((n->guest_wr & ~n->guest_rd) >> g & 1) {
            if (!r14 && !w14) {
                scratch[g - 13] = H_R14;
                w14 = r14 = true;
            } else if (!w15) {
                scratch[g - 13] = H_R15;
                w15 = r15 = true;
            } else {
                scratch[g - 13] = H_R14;
                w14 = true;
            }
        }
}

static unsigned with_scratch(const uint8_t scratch[3], int g, unsigned no, bool gpr)
{
    return gpr && g >= 13 && g < 16 ? scratch[g - 13] : no;
}

static bool sixteen_bit_prefix(const struct trans *t, const struct insn *x)
{
    const ZydisDecodedInstruction *d = &x->d;
    if (t->code64 || t->code32) {
        for (unsigned i = 0; i < d->raw.prefix_count; i++)
            if (d->raw.prefixes[i].value == 0x66 && d->raw.prefixes[i].type != ZYDIS_PREFIX_TYPE_MANDATORY)
                return d->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_EFFECTIVE || d->operand_width == 16;
        return false;
    }
    if (d->operand_width != 16)
        return false;
    switch (d->meta.isa_ext) {
    case ZYDIS_ISA_EXT_BASE: case ZYDIS_ISA_EXT_LONGMODE: case ZYDIS_ISA_EXT_BMI1: case ZYDIS_ISA_EXT_LZCNT:
    case ZYDIS_ISA_EXT_MOVBE:
        return true;
    default:
        return d->mnemonic == ZYDIS_MNEMONIC_POPCNT || d->mnemonic == ZYDIS_MNEMONIC_CRC32;
    }
}

/* Of an operand without a base the field is 0. */
static unsigned host_base(const struct host_mem *m) { return m->base < 0 ? 0 : (unsigned)m->base; }

static void emit_legacy(struct trans *t, struct insn *x, struct enc *n)
{
    struct bt_emit *e = &t->e;
    const ZydisDecodedInstruction *d = &x->d;
    bool p66 = sixteen_bit_prefix(t, x);
    unsigned rep = 0;
    for (unsigned i = 0; i < d->raw.prefix_count; i++)
        if (d->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY) {
            if (d->raw.prefixes[i].value == 0x66)
                p66 = true;
            else
                rep = d->raw.prefixes[i].value;
        }
    if (d->attributes & ZYDIS_ATTRIB_HAS_LOCK)
        e8(e, 0xf0);
    if (p66)
        e8(e, 0x66);
    if (rep)
        e8(e, rep);
    unsigned w = (d->attributes & ZYDIS_ATTRIB_HAS_REX) ? d->raw.rex.W : 0;
    unsigned op = n->opcode, reg = n->reg_no, rm = n->mem ? host_base(&t->m) : n->rm_no;
    unsigned index = n->mem && t->m.index >= 0 ? (unsigned)t->m.index : 0;
    if (!n->has_modrm) {
        reg = 0;
        if (n->opc < 0)
            rm = 0;
    }
    /* SPL..DIL need a REX prefix; without one 4..7 name high bytes */
    bool force = false;
    for (unsigned i = 0; i < d->operand_count; i++)
        if (x->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && x->op[i].size == 8 && is_gpr(x->op[i].reg.value)) {
            unsigned id = (unsigned)ZydisRegisterGetId(x->op[i].reg.value);
            force |= id >= 8 && id < 12;
        }
    if (d->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && !t->code64 && op >= 0x40 && op <= 0x4f) { /* INC, DEC r */
        e_rex(e, 0, 0, 0, rm, false);
        e8(e, 0xff);
        e_mod_rr(e, op >> 3 & 1, rm);
        return;
    }
    e_rex(e, w, reg, index, rm, force);
    switch (d->opcode_map) {
    case ZYDIS_OPCODE_MAP_0F: e8(e, 0x0f); break;
    case ZYDIS_OPCODE_MAP_0F38: e8(e, 0x0f); e8(e, 0x38); break;
    case ZYDIS_OPCODE_MAP_0F3A: e8(e, 0x0f); e8(e, 0x3a); break;
    default: break;
    }
    if (d->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && op == 0x82)
        op = 0x80;
    if (n->opc >= 0)
        op = (op & ~7u) | (rm & 7);
    e8(e, op);
    if (n->has_modrm) {
        if (n->mem)
            e_mod_host(e, reg, &t->m);
        else
            e_mod_rr(e, reg, rm);
    }
}

static void emit_vex(struct trans *t, struct insn *x, struct enc *n)
{
    struct bt_emit *e = &t->e;
    const ZydisDecodedInstruction *d = &x->d;
    unsigned rm = n->mem ? host_base(&t->m) : n->rm_no, v = n->vvvv >= 0 ? n->v_no : 0;
    unsigned index = n->mem && t->m.index >= 0 ? (unsigned)t->m.index : 0;
    unsigned mmm = d->raw.vex.m_mmmm, w = d->raw.vex.W;
    e8(e, 0xc4);
    e8(e, (n->reg_no & 8 ? 0 : 0x80) | (index & 8 ? 0 : 0x40) | (rm & 8 ? 0 : 0x20) | (mmm ? mmm : 1));
    e8(e, w << 7 | (~v & 15) << 3 | d->raw.vex.L << 2 | d->raw.vex.pp);
    e8(e, n->opcode);
    if (n->has_modrm) {
        if (n->mem)
            e_mod_host(e, n->reg_no, &t->m);
        else
            e_mod_rr(e, n->reg_no, rm);
    }
}

/* As e_mod_host(), without disp8: EVEX counts those in operands. */
static void mod_disp32(struct bt_emit *e, unsigned reg, const struct host_mem *m)
{
    if (!m->disp && (m->base & 7) != 5) {
        e_mod_host(e, reg, m);
        return;
    }
    bool sib = m->index >= 0 || (m->base & 7) == 4;
    e8(e, 0x80 | (reg & 7) << 3 | (sib ? 4 : (unsigned)m->base & 7));
    if (sib)
        e8(e, m->scale << 6 | (m->index < 0 ? 4 : (unsigned)m->index & 7) << 3 | ((unsigned)m->base & 7));
    e32(e, (uint32_t)m->disp);
}

static void emit_evex(struct trans *t, struct insn *x, struct enc *n)
{
    struct bt_emit *e = &t->e;
    const ZydisDecodedInstruction *d = &x->d;
    unsigned rm = n->mem ? host_base(&t->m) : n->rm_no, v = n->vvvv >= 0 ? n->v_no : 0, r = n->reg_no;
    unsigned index = n->mem && t->m.index >= 0 ? (unsigned)t->m.index : 0;
    e8(e, 0x62);
    e8(e, (r & 8 ? 0 : 0x80) | ((n->mem ? index & 8 : rm & 16) ? 0 : 0x40) | (rm & 8 ? 0 : 0x20) | (r & 16 ? 0 : 0x10) |
              d->raw.evex.mmm);
    e8(e, d->raw.evex.W << 7 | (~v & 15) << 3 | 4 | d->raw.evex.pp);
    e8(e, d->raw.evex.z << 7 | d->raw.evex.L2 << 6 | d->raw.evex.L << 5 | d->raw.evex.b << 4 | (v & 16 ? 0 : 8) |
              d->raw.evex.aaa);
    e8(e, n->opcode);
    if (n->mem)
        mod_disp32(e, r, &t->m);
    else
        e_mod_rr(e, r, rm);
}

static void emit_tail(struct trans *t, struct insn *x)
{
    const ZydisDecodedInstruction *d = &x->d;
    unsigned at = d->length;
    if (d->raw.disp.size)
        at = d->raw.disp.offset + d->raw.disp.size / 8u;
    else if (d->raw.sib.offset)
        at = d->raw.sib.offset + 1u;
    else if (d->attributes & ZYDIS_ATTRIB_HAS_MODRM)
        at = d->raw.modrm.offset + 1u;
    else if (d->raw.imm[0].size)
        at = d->raw.imm[0].offset;
    for (; at < d->length; at++)
        e8(&t->e, x->bytes[at]);
    if (!t->code64 && d->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
        for (unsigned i = 0; i < d->operand_count; i++)
            if (x->op[i].encoding == ZYDIS_OPERAND_ENCODING_IS4)
                t->e.p[-1] &= 0x7f; /* the register's bit 3 does not count outside 64-bit code */
}

/* VZEROUPPER and VZEROALL outside 64-bit code: registers 8..15 stay. */
void gen_vzero(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    bool all = x->d.raw.vex.L;
    for (unsigned i = 0; i < 8; i++) {
        e8(e, 0xc5); /* vmovaps xmm, xmm or vpxor xmm, xmm, xmm: both clear the rest */
        e8(e, all ? 0x80 | (~i & 15) << 3 | 1 : 0xf8);
        e8(e, all ? 0xef : 0x28);
        e8(e, 0xc0 | i << 3 | i);
    }
}

static void swap_high(struct bt_emit *e, unsigned low) /* xchg al, ah and so on */
{
    e8(e, 0x86);
    e_mod_rr(e, low + 4, low);
}

/* Operands whose misalignment is #GP: the host finds it for those done in place,
 * the slow path must for those that cross pages. BT_DESC_ALIGNED, with
 * BT_DESC_RELAXED where AMD's MXCSR.MM lifts it; 0: may lie anywhere. */
static uint32_t must_be_aligned(const struct bt_vm *vm, const ZydisDecodedInstruction *d, unsigned size)
{
    switch (d->mnemonic) {
    case ZYDIS_MNEMONIC_MOVUPS: case ZYDIS_MNEMONIC_MOVUPD: case ZYDIS_MNEMONIC_MOVDQU: case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI: case ZYDIS_MNEMONIC_PCMPESTRM: case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
        return 0;
    case ZYDIS_MNEMONIC_VMOVAPS: case ZYDIS_MNEMONIC_VMOVAPD: case ZYDIS_MNEMONIC_VMOVDQA:
    case ZYDIS_MNEMONIC_VMOVDQA32: case ZYDIS_MNEMONIC_VMOVDQA64: case ZYDIS_MNEMONIC_VMOVNTPS:
    case ZYDIS_MNEMONIC_VMOVNTPD: case ZYDIS_MNEMONIC_VMOVNTDQ:
    case ZYDIS_MNEMONIC_VMOVNTDQA: case ZYDIS_MNEMONIC_MOVAPS: case ZYDIS_MNEMONIC_MOVAPD: case ZYDIS_MNEMONIC_MOVDQA:
    case ZYDIS_MNEMONIC_MOVNTPS: case ZYDIS_MNEMONIC_MOVNTPD: case ZYDIS_MNEMONIC_MOVNTDQ: case ZYDIS_MNEMONIC_MOVNTDQA:
    case ZYDIS_MNEMONIC_CMPXCHG16B:
        return BT_DESC_ALIGNED;
    default:
        /* SHA: tried, AMD's processors take its operands from anywhere */
        if (size != 16 || d->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY ||
            (vm->host_amd && d->meta.isa_set == ZYDIS_ISA_SET_SHA))
            return 0;
        return BT_DESC_ALIGNED | BT_DESC_RELAXED;
    }
}

void gen_generic(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    const ZydisDecodedInstruction *d = &x->d;
    struct enc n;
    uint8_t scratch[3] = {0, 0, 0};
    take_apart(t->c->vm, x, &n);
    if (n.mem) {
        t->desc_extra |= must_be_aligned(t->c->vm, d, n.mem_size);
        if (insn_is_masked(d))
            t->desc_extra |= BT_DESC_MASKED;
        gen_lookup(t, n.mem, n.mem_size, n.mem_rd, n.mem_wr);
        /* r13..r15 and flags in the slot need r15 */
        if ((n.guest_rd || n.guest_wr || n.swap != -1 ||
             (!t->in_reg && !t->again.kind && (t->in_slot || t->in_fn))) &&
            (!t->m.direct || host_mem_uses(&t->m, H_R15)))
            gen_mem_in_r14(t);
    }
    if (n.guest_rd || n.guest_wr || n.swap != -1)
        t->r15_group = 0;
    gen_flags_for(t, x);
    assign_scratch(&n, scratch);
    n.reg_no = with_scratch(scratch, n.reg, n.reg_no, n.reg_gpr);
    if (n.rm >= 0)
        n.rm_no = with_scratch(scratch, n.rm, n.rm_no, n.rm_gpr);
    if (n.opc >= 0)
        n.rm_no = with_scratch(scratch, n.opc, n.rm_no, n.opc_gpr);
    n.v_no = with_scratch(scratch, n.vvvv, n.v_no, n.v_gpr);
    for (unsigned g = 13; g < 16; g++)
        if (n.guest_rd >> g & 1)
            e_load(e, scratch[g - 13], &t->c->gpr[g]);
    /* A high-byte register cannot be named beside one that needs REX. */
    int swapped = -1;
    if (n.swap == -2 && (n.mem || n.reg_no > 7 || n.rm_no > 7)) {
        bool rm_high = !n.mem && n.rm >= 4 && x->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER && n.rm_no < 8 &&
                       n.reg_no > 7;
        if (d->mnemonic == ZYDIS_MNEMONIC_CMPXCHG && !rm_high && n.reg_no == 4) {
            /* AL is an operand as well: a copy of AH instead. All flags are written anyway. */
            e_mov_rr(e, H_R15, H_RAX);
            e_rex(e, 0, 0, 0, H_R15, false); /* shr r15d, 8 */
            e8(e, 0xc1);
            e_mod_rr(e, 5, H_R15);
            e8(e, 8);
            n.reg_no = H_R15;
        } else if (rm_high) {
            swapped = (int)n.rm_no - 4;
            n.rm_no -= 4;
        } else {
            swapped = (int)n.reg_no - 4;
            n.reg_no -= 4;
        }
        if (swapped >= 0)
            swap_high(e, (unsigned)swapped);
    }
    if (t->in_slot && !t->in_reg) { /* for a fault of the instruction itself */
        struct bt_map_entry *m = &t->map[t->n_map++];
        trans_map(t, m, e_here(e), (unsigned)(x->rip - t->rip));
        m->slot = BT_MAP_SLOT;
    }
    if (n.mem)
        gen_direct_site(t);
    switch (d->encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_VEX: emit_vex(t, x, &n); break;
    case ZYDIS_INSTRUCTION_ENCODING_EVEX: emit_evex(t, x, &n); break;
    default: emit_legacy(t, x, &n); break;
    }
    emit_tail(t, x);
    if (swapped >= 0)
        swap_high(e, (unsigned)swapped);
    for (unsigned g = 13; g < 16; g++)
        if (n.guest_wr >> g & 1)
            e_store(e, scratch[g - 13], &t->c->gpr[g]);
    gen_flags_done(t, x);
    if (n.mem && n.mem_wr)
        gen_commit(t);
}
