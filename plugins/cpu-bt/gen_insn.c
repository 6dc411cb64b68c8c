/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/gen_insn.c - one guest instruction into host instructions.
 * Ordinary C.
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
#define ACT_RD (ZYDIS_OPERAND_ACTION_READ | ZYDIS_OPERAND_ACTION_CONDREAD)
#define ACT_WR (ZYDIS_OPERAND_ACTION_WRITE | ZYDIS_OPERAND_ACTION_CONDWRITE)

static unsigned memory_size(const struct insn *x, const ZydisDecodedOperand *o)
{
    unsigned bits = o->size;
    if (x->d.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && x->d.avx.broadcast.mode && x->d.raw.evex.b)
        bits = o->element_size;
    if (x->d.mnemonic == ZYDIS_MNEMONIC_MOVSXD && x->d.operand_width == 16)
        bits = 16; /* SDM: r16, r/m16; Zydis says 32 */
    return bits ? bits / 8 : 1;
}

/* May elements be masked off? Zydis calls the VEX stores plain writes. */
static bool is_masked(const ZydisDecodedInstruction *d)
{
    switch (d->mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS: case ZYDIS_MNEMONIC_VMASKMOVPD: case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
        return true;
    default:
        return d->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && d->raw.evex.aaa;
    }
}

static void take_apart(struct insn *x, struct enc *n)
{
    const ZydisDecodedInstruction *d = &x->d;
    memset(n, 0, sizeof(*n));
    n->reg = n->rm = n->vvvv = n->opc = -1;
    n->swap = -1;
    n->opcode = d->opcode;
    n->has_modrm = (d->attributes & ZYDIS_ATTRIB_HAS_MODRM) != 0;
    n->reg_no = d->raw.modrm.reg;
    n->rm_no = d->raw.modrm.rm;
    bool masked = is_masked(d);
    for (unsigned i = 0; i < d->operand_count; i++) {
        const ZydisDecodedOperand *o = &x->op[i];
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            if (o->mem.type == ZYDIS_MEMOP_TYPE_AGEN || n->mem)
                continue;
            n->mem = o;
            n->mem_size = memory_size(x, o);
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
    unsigned op = n->opcode, reg = n->reg_no, rm = n->mem ? H_R14 : n->rm_no;
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
    e_rex(e, w, reg, 0, rm, force);
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
            e_mod_base(e, reg, H_R14, 0);
        else
            e_mod_rr(e, reg, rm);
    }
}

static void emit_vex(struct trans *t, struct insn *x, struct enc *n)
{
    struct bt_emit *e = &t->e;
    const ZydisDecodedInstruction *d = &x->d;
    unsigned rm = n->mem ? H_R14 : n->rm_no, v = n->vvvv >= 0 ? n->v_no : 0;
    unsigned mmm = d->raw.vex.m_mmmm, w = d->raw.vex.W;
    e8(e, 0xc4);
    e8(e, (n->reg_no & 8 ? 0 : 0x80) | 0x40 | (rm & 8 ? 0 : 0x20) | (mmm ? mmm : 1));
    e8(e, w << 7 | (~v & 15) << 3 | d->raw.vex.L << 2 | d->raw.vex.pp);
    e8(e, n->opcode);
    if (n->has_modrm) {
        if (n->mem)
            e_mod_base(e, n->reg_no, H_R14, 0);
        else
            e_mod_rr(e, n->reg_no, rm);
    }
}

static void emit_evex(struct trans *t, struct insn *x, struct enc *n)
{
    struct bt_emit *e = &t->e;
    const ZydisDecodedInstruction *d = &x->d;
    unsigned rm = n->mem ? H_R14 : n->rm_no, v = n->vvvv >= 0 ? n->v_no : 0, r = n->reg_no;
    e8(e, 0x62);
    e8(e, (r & 8 ? 0 : 0x80) | (!n->mem && (rm & 16) ? 0 : 0x40) | (rm & 8 ? 0 : 0x20) | (r & 16 ? 0 : 0x10) |
              d->raw.evex.mmm);
    e8(e, d->raw.evex.W << 7 | (~v & 15) << 3 | 4 | d->raw.evex.pp);
    e8(e, d->raw.evex.z << 7 | d->raw.evex.L2 << 6 | d->raw.evex.L << 5 | d->raw.evex.b << 4 | (v & 16 ? 0 : 8) |
              d->raw.evex.aaa);
    e8(e, n->opcode);
    if (n->mem)
        e_mod_base(e, r, H_R14, 0);
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
static void gen_vzero(struct trans *t, struct insn *x)
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

static void flags_for(struct trans *t, struct insn *x)
{
    if (x->f_read || (x->f_write && (x->live_after & ~x->f_kill)))
        gen_flags_restore(t);
}
static void flags_done(struct trans *t, struct insn *x)
{
    if (x->f_write) {
        t->in_reg = true;
        t->in_slot = false;
    }
}

/* Operands whose misalignment is #GP: the host finds it for those done in place,
 * the slow path must for those that cross pages. */
static bool must_be_aligned(const ZydisDecodedInstruction *d, unsigned size)
{
    switch (d->mnemonic) {
    case ZYDIS_MNEMONIC_MOVUPS: case ZYDIS_MNEMONIC_MOVUPD: case ZYDIS_MNEMONIC_MOVDQU: case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI: case ZYDIS_MNEMONIC_PCMPESTRM: case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
        return false;
    case ZYDIS_MNEMONIC_VMOVAPS: case ZYDIS_MNEMONIC_VMOVAPD: case ZYDIS_MNEMONIC_VMOVDQA: case ZYDIS_MNEMONIC_VMOVDQA32:
    case ZYDIS_MNEMONIC_VMOVDQA64: case ZYDIS_MNEMONIC_VMOVNTPS: case ZYDIS_MNEMONIC_VMOVNTPD: case ZYDIS_MNEMONIC_VMOVNTDQ:
    case ZYDIS_MNEMONIC_VMOVNTDQA:
        return true;
    default:
        return size == 16 && d->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY;
    }
}

static void gen_generic(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    const ZydisDecodedInstruction *d = &x->d;
    struct enc n;
    uint8_t scratch[3] = {0, 0, 0};
    take_apart(x, &n);
    if (n.mem) {
        if (must_be_aligned(d, n.mem_size))
            t->desc_extra |= BT_DESC_ALIGNED;
        if (is_masked(d))
            t->desc_extra |= BT_DESC_MASKED;
        gen_lookup(t, n.mem, n.mem_size, n.mem_rd, n.mem_wr);
    }
    flags_for(t, x);
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
        bool rm_high = !n.mem && n.rm >= 4 && x->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER && n.rm_no < 8 && n.reg_no > 7;
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
        m->slot = 1;
    }
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
    flags_done(t, x);
    if (n.mem && n.mem_wr)
        gen_commit(t);
}

/* --- guest registers as values ---------------------------------------------------- */
/* h = guest register g (64 bits) */
static void load_gpr(struct trans *t, unsigned h, unsigned g)
{
    int s = host_reg(g);
    if (s < 0)
        e_load(&t->e, h, &t->c->gpr[g]);
    else if ((unsigned)s != h)
        e_mov_rr(&t->e, h, (unsigned)s);
}
/* guest register g = host register h with x86 rules for the size; h may be clobbered */
static void store_gpr(struct trans *t, unsigned g, unsigned h, unsigned size)
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
/* h = [r14], size bytes, zero-extended */
static void load_at_r14(struct trans *t, unsigned h, unsigned size)
{
    struct bt_emit *e = &t->e;
    if (size == 2) {
        e_rex(e, 0, h, 0, H_R14, false);
        e8(e, 0x0f);
        e8(e, 0xb7);
        e_mod_base(e, h, H_R14, 0);
    } else {
        e_r_base(e, size == 8, 0x8b, h, H_R14, 0);
    }
}
static void store_at_r14(struct trans *t, unsigned h, unsigned size)
{
    if (size == 2)
        e8(&t->e, 0x66);
    e_r_base(&t->e, size == 8, 0x89, h, H_R14, 0);
}
static void store_imm_at_r14(struct trans *t, uint64_t v, unsigned size)
{
    struct bt_emit *e = &t->e;
    if (size == 8 && (int64_t)v != (int32_t)v) {
        e_mov_imm(e, H_R15, v);
        store_at_r14(t, H_R15, 8);
        return;
    }
    if (size == 2)
        e8(e, 0x66);
    e_rex(e, size == 8, 0, 0, H_R14, false);
    e8(e, 0xc7);
    e_mod_base(e, 0, H_R14, 0);
    if (size == 2)
        e16(e, (uint16_t)v);
    else
        e32(e, (uint32_t)v);
}

/* --- stack -------------------------------------------------------------------------- */
static void gen_push(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    const ZydisDecodedOperand *o = &x->op[0];
    unsigned size = x->d.operand_width / 8u;
    if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        gen_lookup(t, o, size, true, false);
        load_at_r14(t, H_R14, size);
        e_store(e, H_R14, &t->c->tmp[0]);
        gen_stack(t, -(int)size, size, true);
        e_load(e, H_R15, &t->c->tmp[0]);
        store_at_r14(t, H_R15, size);
    } else if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        gen_stack(t, -(int)size, size, true);
        store_imm_at_r14(t, o->imm.value.u, size);
    } else {
        bool high;
        unsigned g = reg_number(o->reg.value, &high);
        gen_stack(t, -(int)size, size, true);
        int h = host_reg(g);
        if (h < 0) {
            e_load(e, H_R15, &t->c->gpr[g]);
            h = H_R15;
        }
        store_at_r14(t, (unsigned)h, size);
    }
    gen_commit(t);
    gen_sp_add(t, -(int)size);
}

static void gen_pop(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    const ZydisDecodedOperand *o = &x->op[0];
    unsigned size = x->d.operand_width / 8u;
    gen_stack(t, 0, size, false);
    if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        load_at_r14(t, H_R14, size);
        e_store(e, H_R14, &t->c->tmp[0]);
        t->rsp_bias = (int)size;
        gen_lookup(t, o, size, false, true);
        t->rsp_bias = 0;
        e_load(e, H_R15, &t->c->tmp[0]);
        store_at_r14(t, H_R15, size);
        gen_commit(t);
        gen_sp_add(t, (int)size);
        return;
    }
    bool high;
    unsigned g = reg_number(o->reg.value, &high);
    load_at_r14(t, H_R15, size);
    gen_sp_add(t, (int)size);
    store_gpr(t, g, H_R15, size);
}

static void gen_leave(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    unsigned size = x->d.operand_width / 8u;
    gen_stack_at_rbp(t, size);
    load_at_r14(t, H_R15, size);
    if (t->code64) {
        e_mov_rr(e, H_R13, H_RBP);
    } else if (t->mode & BT_MODE_SS32) {
        e_mov32_rr(e, H_R13, H_RBP);
    } else {
        e8(e, 0x66);
        e_rr(e, 0, 0x8b, H_R13, H_RBP);
    }
    gen_sp_add(t, (int)size);
    store_gpr(t, BT_RBP, H_R15, size);
}

/* --- LEA, BT with a register offset ------------------------------------------------------ */
static void gen_lea(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    bool high;
    unsigned g = reg_number(x->op[0].reg.value, &high), size = x->op[0].size / 8u;
    const ZydisDecodedOperandMem *m = &x->op[1].mem;
    int d = host_reg(g);
    int b = m->base == ZYDIS_REGISTER_NONE ? -1 : m->base == ZYDIS_REGISTER_RIP || m->base == ZYDIS_REGISTER_EIP ? -2 :
            host_reg((unsigned)ZydisRegisterGetId(m->base));
    int i = m->index == ZYDIS_REGISTER_NONE ? -1 : host_reg((unsigned)ZydisRegisterGetId(m->index));
    bool direct = d >= 0 && size >= 4 && b != -2 && x->d.address_width >= 32 && (m->base == ZYDIS_REGISTER_NONE || b >= 0) &&
                  (m->index == ZYDIS_REGISTER_NONE || i >= 0) && (b >= 0 || i >= 0) &&
                  (x->d.address_width == 64 || size == 4);
    if (direct) {
        unsigned s = m->scale == 8 ? 3 : m->scale == 4 ? 2 : m->scale == 2 ? 1 : 0;
        e_lea(e, size == 8, (unsigned)d, b, i, i < 0 ? 0 : s, m->disp.has_displacement ? (int32_t)m->disp.value : 0);
        return;
    }
    gen_offset(t, &x->op[1], x->d.address_width);
    store_gpr(t, g, H_R14, size);
}

static void gen_bt(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    bool high;
    unsigned g = reg_number(x->op[1].reg.value, &high), size = x->op[1].size / 8u;
    unsigned shift = size == 8 ? 6 : size == 4 ? 5 : 4;
    bool wr = x->d.mnemonic != ZYDIS_MNEMONIC_BT;
    gen_flags_before_mem(t);
    gen_offset(t, &x->op[0], x->d.address_width);
    /* r14 += (bit offset >> log2 width) * size, signed */
    load_gpr(t, H_R15, g);
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
    ZydisRegister s = x->op[0].mem.segment;
    unsigned seg = s == ZYDIS_REGISTER_ES ? BT_ES : s == ZYDIS_REGISTER_CS ? BT_CS : s == ZYDIS_REGISTER_SS ? BT_SS :
                   s == ZYDIS_REGISTER_FS ? BT_FS : s == ZYDIS_REGISTER_GS ? BT_GS : BT_DS;
    gen_lookup_at(t, seg, size, true, wr);
    load_gpr(t, H_R15, g);
    e_alu_ri(e, 0, 4, H_R15, (int32_t)(size * 8 - 1));
    if (x->live_after & ~x->f_kill)
        gen_flags_restore_tmp(t);
    if (x->d.attributes & ZYDIS_ATTRIB_HAS_LOCK)
        e8(e, 0xf0);
    if (size == 2)
        e8(e, 0x66);
    e_rex(e, size == 8, H_R15, 0, H_R14, false);
    e8(e, 0x0f);
    e8(e, x->d.mnemonic == ZYDIS_MNEMONIC_BT ? 0xa3 : x->d.mnemonic == ZYDIS_MNEMONIC_BTS ? 0xab :
          x->d.mnemonic == ZYDIS_MNEMONIC_BTR ? 0xb3 : 0xbb);
    e_mod_base(e, H_R15, H_R14, 0);
    flags_done(t, x);
    if (wr)
        gen_commit(t);
}

static void gen_mov_from_sreg(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    unsigned s = (unsigned)ZydisRegisterGetId(x->op[1].reg.value);
    const void *sel = &t->c->seg[s].selector;
    if (x->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
        gen_lookup(t, &x->op[0], 2, false, true);
    e_rex(e, 0, H_R15, 0, 0, false); /* movzx r15d, word [sel] */
    e8(e, 0x0f);
    e8(e, 0xb7);
    e_mod_abs(e, H_R15, e_abs(sel));
    if (x->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY) {
        store_at_r14(t, H_R15, 2);
        gen_commit(t);
    } else {
        bool high;
        store_gpr(t, reg_number(x->op[0].reg.value, &high), H_R15, x->op[0].size / 8u);
    }
}

/* MOV between the accumulator and an absolute address (A0..A3) */
static void gen_moffs(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    bool store = x->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
    const ZydisDecodedOperand *o = store ? &x->op[0] : &x->op[1];
    unsigned size = o->size / 8u;
    gen_flags_before_mem(t);
    uint64_t a = (uint64_t)o->mem.disp.value;
    e_mov_imm(e, H_R14, x->d.address_width == 64 ? a : x->d.address_width == 32 ? (uint32_t)a : (uint16_t)a);
    ZydisRegister s = o->mem.segment;
    unsigned seg = s == ZYDIS_REGISTER_ES ? BT_ES : s == ZYDIS_REGISTER_CS ? BT_CS : s == ZYDIS_REGISTER_SS ? BT_SS :
                   s == ZYDIS_REGISTER_FS ? BT_FS : s == ZYDIS_REGISTER_GS ? BT_GS : BT_DS;
    gen_lookup_at(t, seg, size, !store, store);
    if (size == 2)
        e8(e, 0x66);
    e_r_base(e, size == 8, (store ? 0x88 : 0x8a) | (size > 1), H_RAX, H_R14, 0);
    if (store)
        gen_commit(t);
}

/* --- control --------------------------------------------------------------------------------- */
static uint64_t branch_target(struct trans *t, struct insn *x)
{
    uint64_t a = x->rip + x->d.length + (uint64_t)x->d.raw.imm[0].value.s;
    if (t->code64)
        return a;
    return x->d.operand_width == 16 ? (uint16_t)a : (uint32_t)a;
}

/* r14 = target of JMP/CALL r/m */
static void load_target(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    unsigned size = t->code64 ? 8 : x->d.operand_width / 8u;
    if (x->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY) {
        gen_lookup(t, &x->op[0], size, true, false);
        load_at_r14(t, H_R14, size);
        return;
    }
    load_gpr(t, H_R14, (unsigned)ZydisRegisterGetId(x->op[0].reg.value));
    if (size == 2)
        e_movzx16(e, H_R14, H_R14);
    else if (size == 4)
        e_mov32_rr(e, H_R14, H_R14);
}

static void push_return(struct trans *t, struct insn *x)
{
    unsigned size = t->code64 ? 8 : x->d.operand_width / 8u;
    gen_stack(t, -(int)size, size, true);
    store_imm_at_r14(t, next_rip(t, x), size);
    gen_commit(t);
    gen_sp_add(t, -(int)size);
}

static void gen_ret(struct trans *t, struct insn *x)
{
    unsigned size = t->code64 ? 8 : x->d.operand_width / 8u;
    int extra = x->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? (int)(uint16_t)x->op[0].imm.value.u : 0;
    gen_stack(t, 0, size, false);
    load_at_r14(t, H_R14, size);
    gen_sp_add(t, (int)size + extra);
    gen_exit_indirect(t);
}

static void gen_loop(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    unsigned aw = x->d.address_width;
    uint64_t target = branch_target(t, x), next = next_rip(t, x);
    bool loop = x->d.mnemonic == ZYDIS_MNEMONIC_LOOP || x->d.mnemonic == ZYDIS_MNEMONIC_LOOPE ||
                x->d.mnemonic == ZYDIS_MNEMONIC_LOOPNE;
    bool zf = x->d.mnemonic == ZYDIS_MNEMONIC_LOOPE || x->d.mnemonic == ZYDIS_MNEMONIC_LOOPNE;
    if (zf)
        gen_flags_restore(t);
    if (loop) {
        if (aw == 16)
            e8(e, 0x66);
        e_lea(e, aw == 64, H_RCX, H_RCX, -1, 0, -1);
    }
    if (aw == 16) {
        e_mov_rr(e, H_R15, H_RCX);
        e_movzx16(e, H_RCX, H_RCX);
    } else if (aw == 32) {
        e8(e, 0x67);
    }
    e8(e, 0xe3);
    uint8_t *zero = e->p;
    e8(e, 0);
    bool in_reg = t->in_reg, in_slot = t->in_slot;
    if (aw == 16)
        e_mov_rr(e, H_RCX, H_R15);
    if (zf) {
        gen_exit_jcc(t, x->d.mnemonic == ZYDIS_MNEMONIC_LOOPE ? CC_E : CC_NE, target);
        gen_exit(t, next);
    } else {
        gen_exit(t, loop ? target : next);
    }
    *zero = (uint8_t)(e->p - zero - 1);
    t->in_reg = in_reg;
    t->in_slot = in_slot;
    if (aw == 16)
        e_mov_rr(e, H_RCX, H_R15);
    gen_exit(t, loop ? next : target);
}

static unsigned jcc_code(const struct insn *x) { return x->d.opcode & 15; }

/* --- C ops ------------------------------------------------------------------------------------- */
static void fill_op(struct trans *t, struct insn *x, struct bt_op *op)
{
    const ZydisDecodedInstruction *d = &x->d;
    memset(op, 0, sizeof(*op));
    op->id = x->op_id;
    op->opsize = (uint8_t)(d->operand_width / 8);
    op->addrsize = (uint8_t)(d->address_width / 8);
    op->seg = BT_DS;
    op->len = d->length;
    op->next_rip = next_rip(t, x);
    memcpy(op->bytes, x->bytes, sizeof(op->bytes));
    if (d->attributes & ZYDIS_ATTRIB_HAS_REPNE)
        op->rep = 0xf2;
    else if (d->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE))
        op->rep = 0xf3;
    op->lock = (d->attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0;
    bool mem_seen = false;
    for (unsigned i = 0; i < d->operand_count; i++) {
        const ZydisDecodedOperand *o = &x->op[i];
        bool high = false;
        switch (o->type) {
        case ZYDIS_OPERAND_TYPE_MEMORY: {
            ZydisRegister s = o->mem.segment;
            /* of MOVS and CMPS the DS one can be overridden, ES cannot */
            if (mem_seen && (s == ZYDIS_REGISTER_ES || op->is_mem)) /* nor is the stack's the ModRM operand */
                break;
            mem_seen = true;
            op->is_mem = o->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT && o->encoding != ZYDIS_OPERAND_ENCODING_NONE;
            op->seg = s == ZYDIS_REGISTER_ES ? BT_ES : s == ZYDIS_REGISTER_CS ? BT_CS : s == ZYDIS_REGISTER_SS ? BT_SS :
                      s == ZYDIS_REGISTER_FS ? BT_FS : s == ZYDIS_REGISTER_GS ? BT_GS : BT_DS;
            break;
        }
        case ZYDIS_OPERAND_TYPE_POINTER:
            op->imm = o->ptr.offset;
            op->imm2 = o->ptr.segment;
            break;
        case ZYDIS_OPERAND_TYPE_IMMEDIATE:
            if (o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
                break;
            if (i == 1 && x->op_id == BT_OP_enter)
                op->imm2 = (uint32_t)o->imm.value.u;
            else
                op->imm = o->imm.value.u;
            break;
        case ZYDIS_OPERAND_TYPE_REGISTER:
            if (o->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT && o->encoding == ZYDIS_OPERAND_ENCODING_NONE &&
                x->op_id != BT_OP_push_sreg && x->op_id != BT_OP_pop_sreg && x->op_id != BT_OP_load_far)
                break;
            switch (ZydisRegisterGetClass(o->reg.value)) {
            case ZYDIS_REGCLASS_SEGMENT:
                if (x->op_id == BT_OP_load_far)
                    op->imm2 = (uint32_t)ZydisRegisterGetId(o->reg.value);
                else if (o->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN)
                    op->reg = (uint8_t)ZydisRegisterGetId(o->reg.value);
                break;
            case ZYDIS_REGCLASS_CONTROL:
            case ZYDIS_REGCLASS_DEBUG:
                op->reg = (uint8_t)ZydisRegisterGetId(o->reg.value);
                break;
            default:
                if (!is_gpr(o->reg.value))
                    break;
                unsigned g = reg_number(o->reg.value, &high);
                op->high8 |= high;
                if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG && !(x->op_id == BT_OP_mov_cr_r || x->op_id == BT_OP_mov_r_cr ||
                                                                           x->op_id == BT_OP_mov_dr_r || x->op_id == BT_OP_mov_r_dr))
                    op->reg = (uint8_t)g;
                else if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
                    op->rm = (uint8_t)g;
            }
            break;
        default:
            break;
        }
    }
    switch (x->op_id) {
    case BT_OP_movs: case BT_OP_stos: case BT_OP_lods: case BT_OP_scas: case BT_OP_cmps: case BT_OP_ins: case BT_OP_outs: {
        static const uint8_t sizes[] = {1, 2, 4, 8};
        op->opsize = d->opcode & 1 ? sizes[d->operand_width == 64 ? 3 : d->operand_width == 32 ? 2 : 1] : 1;
        if ((x->op_id == BT_OP_ins || x->op_id == BT_OP_outs) && op->opsize == 8)
            op->opsize = 4;
        op->is_mem = 0;
        break;
    }
    case BT_OP_in:
    case BT_OP_out:
        op->opsize = !(d->opcode & 1) ? 1 : d->operand_width == 16 ? 2 : 4;
        op->reg = d->opcode >= 0xec;
        op->is_mem = 0;
        break;
    case BT_OP_fxsave: case BT_OP_fxrstor: case BT_OP_xsave: case BT_OP_xsaveopt: case BT_OP_xsavec: case BT_OP_xsaves:
    case BT_OP_xrstor: case BT_OP_xrstors:
        op->opsize = (d->attributes & ZYDIS_ATTRIB_HAS_REX) && d->raw.rex.W ? 8 : 4;
        break;
    case BT_OP_mov_cr_r: case BT_OP_mov_r_cr: case BT_OP_mov_dr_r: case BT_OP_mov_r_dr:
        op->is_mem = 0;
        op->opsize = t->code64 ? 8 : 4;
        break;
    case BT_OP_push_sreg: case BT_OP_pop_sreg:
        op->is_mem = 0;
        break;
    default:
        break;
    }
}

static void gen_op(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    struct bt_cache *k = t->k;
    struct bt_op *op = (struct bt_op *)(((uintptr_t)k->cold_p + 15) & ~15ull);
    k->cold_p = (uint8_t *)(op + 1);
    fill_op(t, x, op);
    gen_flags_save(t);
    const ZydisDecodedOperand *mem = NULL;
    for (unsigned i = 0; i < x->d.operand_count_visible; i++)
        if (x->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && x->op[i].mem.type != ZYDIS_MEMOP_TYPE_VSIB &&
            (x->d.attributes & ZYDIS_ATTRIB_HAS_MODRM))
            mem = &x->op[i];
    if (mem) {
        gen_offset(t, mem, x->d.address_width);
        e_store(e, H_R14, &t->c->op_ea);
    }
    e_store_imm(e, &t->c->rip, x->rip);
    e_mov_imm(e, H_R14, (uintptr_t)op);
    if (x->op_kind == KIND_NEXT)
        e_call(e, k->stub_op);
    else
        e_jmp(e, k->stub_op_end);
    t->in_reg = false;
    t->in_slot = true;
}

void gen_insn(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    struct bt_vcpu *c = t->c;
    switch (x->kind) {
    case K_GENERIC:
        if (!t->code64 && (x->d.mnemonic == ZYDIS_MNEMONIC_VZEROUPPER || x->d.mnemonic == ZYDIS_MNEMONIC_VZEROALL))
            gen_vzero(t, x);
        else
            gen_generic(t, x);
        break;
    case K_NOP:
        /* Cache-line flushes do nothing here but fault like loads of a byte. */
        if (x->d.mnemonic == ZYDIS_MNEMONIC_CLFLUSH || x->d.mnemonic == ZYDIS_MNEMONIC_CLFLUSHOPT ||
            x->d.mnemonic == ZYDIS_MNEMONIC_CLWB)
            gen_lookup(t, &x->op[0], 1, true, false);
        break;
    case K_OP: gen_op(t, x); break;
    case K_PUSH: gen_push(t, x); break;
    case K_POP: gen_pop(t, x); break;
    case K_LEAVE: gen_leave(t, x); break;
    case K_LEA: gen_lea(t, x); break;
    case K_BT: gen_bt(t, x); break;
    case K_MOV_FROM_SREG: gen_mov_from_sreg(t, x); break;
    case K_MOFFS: gen_moffs(t, x); break;
    case K_CLI: e_store8_imm(e, &c->iflag, 0); break;
    case K_STD: e_store8_imm(e, &c->dflag, 1); break;
    case K_CLD: e_store8_imm(e, &c->dflag, 0); break;
    case K_RDTSC: /* RDX:RAX = host TSC + offset */
        gen_flags_before_mem(t);
        e8(e, 0x0f);
        e8(e, 0x31);
        e_rex(e, 1, 0, 0, H_RDX, false); /* shl rdx, 32 */
        e8(e, 0xc1);
        e_mod_rr(e, 4, H_RDX);
        e8(e, 32);
        e_rr(e, 1, 0x0b, H_RDX, H_RAX); /* or rdx, rax */
        e_r_abs(e, 1, 0x03, H_RDX, e_abs(&c->tsc_offset));
        e_mov32_rr(e, H_RAX, H_RDX);
        e_rex(e, 1, 0, 0, H_RDX, false); /* shr rdx, 32 */
        e8(e, 0xc1);
        e_mod_rr(e, 5, H_RDX);
        e8(e, 32);
        t->in_reg = false;
        break;
    case K_SWAPGS:
        e_load(e, H_R14, &c->seg[BT_GS].base);
        e_load(e, H_R15, &c->kernel_gs_base);
        e_store(e, H_R14, &c->kernel_gs_base);
        e_store(e, H_R15, &c->seg[BT_GS].base);
        e_store(e, H_R15, &c->seg_base[BT_GS]);
        break;
    case K_STI: {
        gen_flags_before_mem(t);
        e_store8_imm(e, &c->iflag, 1);
        e_cmp_abs8(e, &c->irq_wait, 0);
        t->in_reg = false;
        struct cold *k = trans_cold(t, COLD_IRQ, e_jcc(e, CC_NE, 0));
        k->rejoin = e_here(e);
        break;
    }
    case K_JCC: {
        gen_flags_restore(t);
        gen_exit_jcc(t, jcc_code(x), branch_target(t, x));
        gen_exit(t, next_rip(t, x));
        break;
    }
    case K_JMP: gen_exit(t, branch_target(t, x)); break;
    case K_CALL:
        push_return(t, x);
        gen_exit(t, branch_target(t, x));
        break;
    case K_RET: gen_ret(t, x); break;
    case K_JMP_IND:
        load_target(t, x);
        gen_exit_indirect(t);
        break;
    case K_CALL_IND:
        load_target(t, x);
        e_store(e, H_R14, &c->tmp[3]);
        push_return(t, x);
        e_load(e, H_R14, &c->tmp[3]);
        gen_exit_indirect(t);
        break;
    case K_LOOP: gen_loop(t, x); break;
    }
}
