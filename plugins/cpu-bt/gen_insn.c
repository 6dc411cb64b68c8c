/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/gen_insn.c - control transfers; which generator an instruction goes to.
 * Ordinary C.
 */
#include "kdirect.h"
#include "trans.h"

/* --- control --------------------------------------------------------------------------------- */
uint64_t insn_target(const struct trans *t, const struct insn *x)
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
        gen_load_mem(t, H_R14, size);
        return;
    }
    gen_load_gpr(t, H_R14, (unsigned)ZydisRegisterGetId(x->op[0].reg.value));
    if (size == 2)
        e_movzx16(e, H_R14, H_R14);
    else if (size == 4)
        e_mov32_rr(e, H_R14, H_R14);
}

static void push_return(struct trans *t, struct insn *x)
{
    unsigned size = t->code64 ? 8 : x->d.operand_width / 8u;
    gen_stack(t, -(int)size, size, true);
    gen_store_rip_mem(t, next_rip(t, x), size);
    gen_commit(t);
    gen_sp_add(t, -(int)size);
}

/* A retpoline: its CALL is for the sake of its RET, which goes elsewhere: MOV [RSP], target; RET. */
static bool is_thunk(const uint8_t *p)
{
    return (p[0] & 0xfb) == 0x48 && p[1] == 0x89 && (p[2] & 0xc7) == 4 && p[3] == 0x24;
}
static bool in_thunk(const struct trans *t, const struct insn *x)
{
    return t->code64 && x > t->insn && x[-1].d.length == 4 && is_thunk(x[-1].bytes);
}
bool insn_calls_thunk(const struct trans *t, const struct insn *x)
{
    uint64_t target = insn_target(t, x), lin = target + t->cs_base, here = t->rip + t->cs_base;
    if (target == next_rip(t, x)) /* it wants to know where it is */
        return true;
    return t->code64 && !((lin ^ here) >> 12) && (lin & 0xfff) <= 4096 - 4 && is_thunk(t->host + (int64_t)(lin - here));
}

static void gen_ret(struct trans *t, struct insn *x)
{
    unsigned size = t->code64 ? 8 : x->d.operand_width / 8u;
    int extra = x->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? (int)(uint16_t)x->op[0].imm.value.u : 0;
    gen_stack(t, 0, size, false);
    gen_load_mem(t, H_R14, size);
    gen_sp_add(t, (int)size + extra);
    if (in_thunk(t, x))
        gen_exit_indirect(t, 0, false, true);
    else
        gen_exit_ret(t);
}

static void gen_loop(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    unsigned aw = x->d.address_width;
    uint64_t target = insn_target(t, x), next = next_rip(t, x);
    bool loop = x->d.mnemonic == ZYDIS_MNEMONIC_LOOP || x->d.mnemonic == ZYDIS_MNEMONIC_LOOPE ||
                x->d.mnemonic == ZYDIS_MNEMONIC_LOOPNE;
    bool zf = x->d.mnemonic == ZYDIS_MNEMONIC_LOOPE || x->d.mnemonic == ZYDIS_MNEMONIC_LOOPNE;
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
    bool in_reg = t->in_reg, in_slot = t->in_slot, in_fn = t->in_fn;
    if (aw == 16)
        e_mov_rr(e, H_RCX, H_R15);
    if (zf) {
        gen_exit_jcc(t, x->d.mnemonic == ZYDIS_MNEMONIC_LOOPE ? CC_E : CC_NE, target, NULL);
        gen_exit(t, next);
    } else {
        gen_exit(t, loop ? target : next);
    }
    *zero = (uint8_t)(e->p - zero - 1);
    t->in_reg = in_reg;
    t->in_slot = in_slot;
    t->in_fn = in_fn;
    if (aw == 16)
        e_mov_rr(e, H_RCX, H_R15);
    gen_exit(t, loop ? next : target);
}

static unsigned jcc_code(const struct insn *x) { return x->d.opcode & 15; }

void gen_insn(struct trans *t, struct insn *x)
{
    struct bt_emit *e = &t->e;
    struct bt_vcpu *c = t->c;
    if (x->kind != K_GENERIC)
        gen_flags_before_write(t, x);
    switch (x->kind) { /* others use r15 */
    case K_GENERIC: case K_PUSH: case K_POP: case K_LEA: case K_JCC: case K_NOP: case K_CALL: case K_RET: break;
    default: t->r15_group = 0;
    }
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
    case K_PUSHF: gen_pushf(t); break;
    case K_POP: gen_pop(t, x); break;
    case K_LEAVE: gen_leave(t, x); break;
    case K_LEA: gen_lea(t, x); break;
    case K_BT: gen_bt(t, x); break;
    case K_MOV_FROM_SREG: gen_mov_from_sreg(t, x); break;
    case K_MOFFS: gen_moffs(t, x); break;
    case K_STRING: gen_string(t, x); break;
    case K_REP: gen_rep(t, x); break;
    case K_CLI: e_store8_imm(e, &c->iflag, 0); break;
    case K_STD: e_store8_imm(e, &c->dflag, 1); break;
    case K_CLD: e_store8_imm(e, &c->dflag, 0); break;
    case K_RDTSC: /* RDX:RAX = host TSC + offset */
        gen_flags_before_mem(t);
        if (x->d.mnemonic == ZYDIS_MNEMONIC_RDTSCP) { /* after LFENCE it is RDTSC and a constant */
            e8(e, 0x0f);
            e8(e, 0xae);
            e8(e, 0xe8);
            e_load32(e, H_RCX, &c->tsc_aux);
        }
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
        if (c->vm->kd) {
            e_mov_imm(e, H_R14, KD_BASE);
            e_load(e, H_R15, &c->kernel_gs_base);
            e_lea(e, 1, H_R14, H_R14, H_R15, 0, 0);
            e_store(e, H_R14, &c->gs_window);
        }
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
        if (x->follow)
            gen_exit_jcc(t, jcc_code(x) ^ 1, next_rip(t, x), NULL);
        else
            gen_exit_jcc(t, jcc_code(x), insn_target(t, x), x->count ? x : NULL);
        break;
    }
    case K_JMP:
        if (!x->goes_on)
            gen_exit(t, insn_target(t, x));
        break;
    case K_CALL:
        push_return(t, x);
        if (insn_calls_thunk(t, x))
            gen_exit(t, insn_target(t, x));
        else
            gen_exit_call(t, insn_target(t, x), next_rip(t, x), x->goes_on);
        break;
    case K_RET: gen_ret(t, x); break;
    case K_JMP_IND:
        load_target(t, x);
        gen_exit_indirect(t, 0, false, false);
        break;
    case K_CALL_IND:
        load_target(t, x);
        e_store(e, H_R14, &c->tmp[3]);
        push_return(t, x);
        e_load(e, H_R14, &c->tmp[3]);
        gen_exit_indirect(t, next_rip(t, x), x->goes_on, false);
        break;
    case K_LOOP: gen_loop(t, x); break;
    }
    gen_flags_after(t, x);
}
