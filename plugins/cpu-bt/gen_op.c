/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/gen_op.c - calls of C functions for what is not worth re-encoding.
 * Ordinary C.
 */
#include "trans.h"

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
    memcpy(op->bytes, x->bytes, x->d.length);
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
            op->is_mem = o->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT &&
                         o->encoding != ZYDIS_OPERAND_ENCODING_NONE;
            op->seg = (uint8_t)gen_seg_number(s);
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
                if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG &&
                    !(x->op_id == BT_OP_mov_cr_r || x->op_id == BT_OP_mov_r_cr || x->op_id == BT_OP_mov_dr_r ||
                      x->op_id == BT_OP_mov_r_dr))
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
    case BT_OP_movs: case BT_OP_stos: case BT_OP_lods: case BT_OP_scas: case BT_OP_cmps: case BT_OP_ins:
    case BT_OP_outs: {
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

void gen_op(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    struct bt_cache *k = t->k;
    struct bt_op *op = (struct bt_op *)(((uintptr_t)k->cold_p + 15) & ~15ull);
    while (k->cold_p < (uint8_t *)op)
        *k->cold_p++ = 0;
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
    if ((int64_t)x->rip == (int32_t)x->rip) {
        e_store_imm(e, &t->c->rip, x->rip);
        e_rip_field(e, x->rip, 4);
    } else {
        e_mov_rip(e, H_R15, x->rip);
        e_store(e, H_R15, &t->c->rip);
    }
    e_mov_imm(e, H_R14, (uintptr_t)op);
    e->p -= 4;
    e_reloc(e, BT_RELOC_OP);
    e->p += 4;
    if (x->op_kind == KIND_NEXT)
        e_call(e, k->stub_op);
    else
        e_jmp(e, k->stub_op_end);
    t->in_reg = false;
    t->in_slot = true;
    t->in_fn = false;
    t->again.kind = AGAIN_NONE;
}
