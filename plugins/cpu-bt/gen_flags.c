/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/gen_flags.c - where the guest's arithmetic flags are while a
 * block is made. Ordinary C.
 *
 * A look-up clobbers RFLAGS. Saving and restoring them costs eleven
 * instructions, running a TEST or CMP a second time costs one: so the last
 * instruction that made them is remembered for as long as the registers that
 * it needs are unchanged, and the slot is filled only when none is.
 *
 * Across indirect exits nobody knows whether flags are needed; mostly not.
 * There c->flags_fn tells how to make them, from operands kept in
 * c->flags_of[] or from the slot, and a block that neither reads nor writes
 * flags leaves it alone.
 */
#include "trans.h"

void flags_to_slot(struct bt_emit *e, struct bt_vcpu *c)
{
    e_mov_rr(e, H_R15, H_RAX);
    e8(e, 0x9f); /* lahf */
    e8(e, 0x0f); /* seto al */
    e8(e, 0x90);
    e8(e, 0xc0);
    e_store32(e, H_RAX, &c->flags_slot);
    e_mov_rr(e, H_RAX, H_R15);
}

static void load_slot(struct bt_emit *e, struct bt_vcpu *c)
{
    e_load32(e, H_RAX, &c->flags_slot);
    e8(e, 0x04); /* add al, 0x7f: OF again */
    e8(e, 0x7f);
    e8(e, 0x9e); /* sahf */
}

void flags_from_slot(struct bt_emit *e, struct bt_vcpu *c)
{
    e_mov_rr(e, H_R15, H_RAX);
    load_slot(e, c);
    e_mov_rr(e, H_RAX, H_R15);
}

/* --- once more ------------------------------------------------------------------ */
/* alu as for e_alu_ri; operands of 1, 2, 4 or 8 bytes */
static void alu_rr(struct bt_emit *e, unsigned size, unsigned alu, unsigned dst, unsigned src)
{
    if (size == 2)
        e8(e, 0x66);
    e_rex(e, size == 8, src, 0, dst, size == 1);
    e8(e, alu << 3 | (size > 1));
    e_mod_rr(e, src, dst);
}
static void imm_tail(struct bt_emit *e, unsigned size, int32_t imm)
{
    if (size == 1)
        e8(e, (uint8_t)imm);
    else if (size == 2)
        e16(e, (uint16_t)imm);
    else
        e32(e, (uint32_t)imm);
}
static void alu_ri(struct bt_emit *e, unsigned size, unsigned alu, unsigned dst, int32_t imm)
{
    if (size == 2)
        e8(e, 0x66);
    e_rex(e, size == 8, 0, 0, dst, size == 1);
    e8(e, size == 1 ? 0x80 : 0x81);
    e_mod_rr(e, alu, dst);
    imm_tail(e, size, imm);
}
static void alu(struct bt_emit *e, const struct again *a, unsigned op)
{
    if (a->has_imm)
        alu_ri(e, a->size, op, a->dst, a->imm);
    else
        alu_rr(e, a->size, op, a->dst, a->src);
}

void flags_again(struct bt_emit *e, const struct again *a)
{
    if (a->kind == AGAIN_FN) { /* call [flags_fn] */
        e8(e, 0xff);
        e_mod_abs(e, 2, (uint32_t)a->imm);
        return;
    }
    if (a->bias)
        e_lea(e, 1, a->dst, (int)a->dst, -1, 0, -a->bias);
    switch (a->kind) {
    case AGAIN_TEST:
        if (a->size == 2)
            e8(e, 0x66);
        e_rex(e, a->size == 8, a->has_imm ? 0 : a->src, 0, a->dst, a->size == 1);
        if (a->has_imm) {
            e8(e, a->size == 1 ? 0xf6 : 0xf7);
            e_mod_rr(e, 0, a->dst);
            imm_tail(e, a->size, a->imm);
        } else {
            e8(e, a->size == 1 ? 0x84 : 0x85);
            e_mod_rr(e, a->src, a->dst);
        }
        break;
    case AGAIN_CMP: alu(e, a, 7); break;
    case AGAIN_ADD: alu(e, a, 5); alu(e, a, 0); break; /* take it back, do it again */
    case AGAIN_SUB: alu(e, a, 0); alu(e, a, 5); break;
    case AGAIN_NEG:
        for (unsigned i = 0; i < 2; i++) {
            if (a->size == 2)
                e8(e, 0x66);
            e_rex(e, a->size == 8, 0, 0, a->dst, a->size == 1);
            e8(e, a->size == 1 ? 0xf6 : 0xf7);
            e_mod_rr(e, 3, a->dst);
        }
        break;
    default: break;
    }
    if (a->bias)
        e_lea(e, 1, a->dst, (int)a->dst, -1, 0, a->bias);
}

/* Operand i as a host register that holds all of it; false: not so simple. */
static bool plain_reg(const struct insn *x, unsigned i, uint8_t *host, uint32_t *regs)
{
    const ZydisDecodedOperand *o = &x->op[i];
    bool high;
    if (o->type != ZYDIS_OPERAND_TYPE_REGISTER || !is_gpr(o->reg.value))
        return false;
    unsigned g = reg_number(o->reg.value, &high);
    int h = host_reg(g);
    if (high || h < 0)
        return false;
    *host = (uint8_t)h;
    *regs |= 1u << g;
    return true;
}

/* After x: can its flags be made again, as long as some registers stay? */
static bool find_again(const struct trans *t, const struct insn *x, struct again *a)
{
    const ZydisDecodedInstruction *d = &x->d;
    memset(a, 0, sizeof(*a));
    if (x->kind != K_GENERIC || d->operand_count_visible < 1 || (x->f_write & ALL_FLAGS) != ALL_FLAGS ||
        (d->meta.isa_ext != ZYDIS_ISA_EXT_BASE && d->meta.isa_ext != ZYDIS_ISA_EXT_LONGMODE) || t->careful)
        return false;
    a->size = (uint8_t)(x->op[0].size / 8);
    if (!plain_reg(x, 0, &a->dst, &a->regs))
        return false;
    bool logic = false;
    switch (d->mnemonic) {
    case ZYDIS_MNEMONIC_TEST: a->kind = AGAIN_TEST; break;
    case ZYDIS_MNEMONIC_CMP: a->kind = AGAIN_CMP; break;
    case ZYDIS_MNEMONIC_ADD: a->kind = AGAIN_ADD; break;
    case ZYDIS_MNEMONIC_SUB: a->kind = AGAIN_SUB; break;
    case ZYDIS_MNEMONIC_NEG: a->kind = AGAIN_NEG; return true;
    case ZYDIS_MNEMONIC_AND: case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_XOR: logic = true; break;
    default: return false;
    }
    if (d->operand_count_visible != 2)
        return false;
    if (logic) { /* all in the result */
        a->kind = AGAIN_TEST;
        a->src = a->dst;
        return true;
    }
    if (x->op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        int64_t v = x->op[1].imm.is_signed ? x->op[1].imm.value.s : (int64_t)x->op[1].imm.value.u;
        a->has_imm = true;
        a->imm = (int32_t)v;
        return true;
    }
    uint32_t src = 0;
    if (!plain_reg(x, 1, &a->src, &src))
        return false;
    /* the source must not have been changed by the instruction */
    if ((a->kind == AGAIN_ADD || a->kind == AGAIN_SUB) && (src & a->regs))
        return false;
    a->regs |= src;
    return true;
}

bool gen_flags_are_again(const struct trans *t) { return !t->in_reg && !t->in_slot && !t->in_fn && t->again.kind; }

static struct again call_fn(struct bt_vcpu *c)
{
    return (struct again){.kind = AGAIN_FN, .imm = (int32_t)e_abs(&c->flags_fn)};
}

/* How a cold path makes flags that are neither in RFLAGS nor in the slot. */
struct again gen_flags_recipe(const struct trans *t)
{
    if (t->in_reg || t->in_slot)
        return (struct again){0};
    return t->in_fn ? call_fn(t->c) : t->again;
}

void flags_fn_slot(struct bt_emit *e, struct bt_vcpu *c)
{
    e8(e, 0xc7); /* mov dword [flags_fn], stub_flags_slot */
    e_mod_abs(e, 0, e_abs(&c->flags_fn));
    e32_at(e, c->cache->stub_flags_slot);
}

/* The flags_fn of captured operands: c->flags_of[] hold what flags_again() takes from registers. */
void flags_stubs_emit(struct bt_emit *e, struct bt_vcpu *c)
{
    struct bt_cache *k = c->cache;
    for (unsigned kind = AGAIN_TEST; kind <= AGAIN_SELF; kind++)
        for (unsigned i = 0; i < 4; i++) {
            struct again a = {.kind = (uint8_t)kind, .size = (uint8_t)(1u << i), .dst = H_R15, .src = H_R15};
            k->stub_flags[kind][i] = e_here(e);
            e_load(e, H_R15, &c->flags_of[0]);
            if (kind == AGAIN_SELF || kind == AGAIN_NEG) {
                a.kind = kind == AGAIN_SELF ? AGAIN_TEST : AGAIN_NEG;
                flags_again(e, &a);
                e8(e, 0xc3);
                continue;
            }
            static const uint8_t undo[] = {[AGAIN_ADD] = 5, [AGAIN_SUB] = 0};
            static const uint8_t op[] = {[AGAIN_CMP] = 7, [AGAIN_ADD] = 0, [AGAIN_SUB] = 5};
            for (unsigned n = kind == AGAIN_ADD || kind == AGAIN_SUB ? 0 : 1; n < 2; n++) {
                if (a.size == 2)
                    e8(e, 0x66);
                unsigned code = kind == AGAIN_TEST ? 0x84 : (unsigned)(n ? op[kind] : undo[kind]) << 3 | 2;
                e_rex(e, a.size == 8, H_R15, 0, 0, a.size == 1);
                e8(e, code | (a.size > 1));
                e_mod_abs(e, H_R15, e_abs(&c->flags_of[1]));
            }
            e8(e, 0xc3);
        }
}

/* --- to and fro -------------------------------------------------------------------- */
void gen_flags_save(struct trans *t)
{
    if (t->in_slot || !(t->in_reg || t->in_fn || t->again.kind))
        return;
    gen_flags_restore(t);
    flags_to_slot(&t->e, t->c);
    t->r15_group = 0;
    t->in_slot = true;
}

void gen_flags_restore(struct trans *t)
{
    struct again fn;
    if (t->in_reg || !(t->in_slot || t->in_fn || t->again.kind))
        return;
    if (t->again.kind) {
        flags_again(&t->e, &t->again);
    } else {
        if (t->in_slot) {
            flags_from_slot(&t->e, t->c);
        } else {
            fn = call_fn(t->c);
            flags_again(&t->e, &fn);
        }
        t->r15_group = 0;
    }
    t->in_reg = true;
}

void gen_flags_restore_tmp(struct trans *t)
{
    if (t->in_reg || !(t->in_slot || t->in_fn || t->again.kind))
        return;
    if (t->again.kind) {
        flags_again(&t->e, &t->again);
        t->in_reg = true;
    } else {
        e_store(&t->e, H_R15, &t->c->tmp[1]);
        gen_flags_restore(t);
        e_load(&t->e, H_R15, &t->c->tmp[1]);
    }
}

void gen_flags_before_mem(struct trans *t)
{
    if (live_before(t->cur) && !t->again.kind && !t->in_fn)
        gen_flags_save(t);
}

void gen_flags_clobbered(struct trans *t) { t->in_reg = false; }

/* Run natively, could it fault on the host? Then a signal handler must find the flags. */
static bool may_fault(const struct insn *x)
{
    switch (x->d.meta.isa_ext) {
    case ZYDIS_ISA_EXT_BASE: case ZYDIS_ISA_EXT_LONGMODE: case ZYDIS_ISA_EXT_BMI1: case ZYDIS_ISA_EXT_BMI2:
    case ZYDIS_ISA_EXT_LZCNT: case ZYDIS_ISA_EXT_MOVBE: case ZYDIS_ISA_EXT_ADOX_ADCX:
        return x->d.mnemonic == ZYDIS_MNEMONIC_DIV || x->d.mnemonic == ZYDIS_MNEMONIC_IDIV;
    default:
        return true;
    }
}

void gen_flags_done(struct trans *t, struct insn *x)
{
    if (!x->f_write)
        return;
    t->in_reg = true;
    t->in_slot = t->in_fn = false;
    if (!find_again(t, x, &t->again))
        t->again.kind = AGAIN_NONE;
}

/* Does x move RSP by a constant and nothing else that `again` needs? gen_sp_add() keeps count then. */
static bool only_steps(const struct trans *t, const struct insn *x)
{
    const struct again *a = &t->again;
    bool high;
    if (!t->code64 || a->dst != H_R13 || a->size != 8 || (x->gpr_wr & a->regs) != 1u << BT_RSP)
        return false;
    if (x->kind == K_POP)
        return x->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY || reg_number(x->op[0].reg.value, &high) != BT_RSP;
    return x->kind == K_PUSH || x->kind == K_CALL || x->kind == K_CALL_IND || x->kind == K_RET;
}

static bool spoils(const struct trans *t, const struct insn *x)
{
    return t->again.kind && (x->gpr_wr & t->again.regs) && !only_steps(t, x);
}

void gen_flags_for(struct trans *t, struct insn *x)
{
    if (x->f_read || (x->f_write && (x->live_after & ~x->f_kill)) ||
        (gen_flags_are_again(t) && !x->f_write && x->live_after && spoils(t, x)) ||
        (!t->in_reg && !t->in_slot && may_fault(x)))
        gen_flags_restore(t);
}

void gen_flags_before_write(struct trans *t, struct insn *x)
{
    if (gen_flags_are_again(t) && (x->live_after | x->f_read) && spoils(t, x))
        gen_flags_restore(t);
    if (spoils(t, x))
        t->again.kind = AGAIN_NONE;
}

void gen_flags_after(struct trans *t, struct insn *x)
{
    if (!x->f_write && spoils(t, x))
        t->again.kind = AGAIN_NONE;
}

/* Operands into c->flags_of[], so that flags_fn can make the flags whatever becomes of the registers. */
static void capture(struct trans *t)
{
    struct bt_emit *e = &t->e;
    const struct again *a = &t->again;
    struct bt_vcpu *c = t->c;
    unsigned kind = a->kind, dst = a->dst;
    if (kind == AGAIN_TEST && !a->has_imm && a->src == a->dst)
        kind = AGAIN_SELF;
    if (a->bias) {
        dst = H_R15;
        e_lea(e, 1, H_R15, (int)a->dst, -1, 0, -a->bias);
    }
    e_store(e, dst, &c->flags_of[0]);
    if (kind != AGAIN_SELF && kind != AGAIN_NEG) {
        if (a->has_imm)
            e_store_imm(e, &c->flags_of[1], (uint64_t)(int64_t)a->imm);
        else
            e_store(e, a->src == a->dst ? dst : a->src, &c->flags_of[1]);
    }
    e8(e, 0xc7); /* mov dword [flags_fn], routine */
    e_mod_abs(e, 0, e_abs(&c->flags_fn));
    e32_at(e, t->k->stub_flags[kind][a->size == 8 ? 3 : a->size == 4 ? 2 : a->size == 2 ? 1 : 0]);
}

void gen_flags_lazy(struct trans *t)
{
    if (t->in_fn)
        return;
    if (!t->in_slot && t->again.kind) {
        capture(t);
    } else {
        gen_flags_save(t);
        flags_fn_slot(&t->e, t->c);
    }
    t->r15_group = 0;
    t->in_fn = true;
}
