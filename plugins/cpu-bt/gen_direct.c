/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/gen_direct.c - operands that need no look-up: the kernel-direct
 * tier (kdirect.h) in the translator. Ordinary C.
 *
 * t->m names the operand as the guest does, and gen_direct_site() goes before
 * the host instruction that accesses it. That may fault. Until then nothing of
 * the guest's state has changed in this instruction, and the map tells where
 * its flags are: in RFLAGS, in the slot, behind flags_fn, or made again from
 * registers by a recipe that the signal handler follows.
 */
#include "kdirect.h"
#include "trans.h"

void gen_direct_start(struct trans *t)
{
    const struct bt_vm *vm = t->c->vm;
    /* What runs in the lower half - firmware, loaders - has its memory there. */
    t->direct = t->code64 && !(t->mode & BT_MODE_CPL) && !t->careful && (int64_t)t->rip < 0 && bt_kd_on(vm);
}

/* May this instruction's operands be direct? Known once for all of them. */
bool gen_direct_insn(struct trans *t, const struct insn *x)
{
    if (!t->direct || x->d.address_width != 64)
        return false;
    switch (x->kind) {
    case K_GENERIC:
        if (x->d.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX || insn_is_masked(&x->d))
            return false;
        /* High-byte registers are swapped with their low ones first. */
        for (unsigned i = 0; i < x->d.operand_count; i++) {
            bool high = false;
            if (x->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && is_gpr(x->op[i].reg.value))
                reg_number(x->op[i].reg.value, &high);
            if (high)
                return false;
        }
        break;
    case K_PUSH: case K_PUSHF: case K_POP: case K_LEAVE: case K_CALL: case K_CALL_IND: case K_JMP_IND: case K_RET: case K_BT:
        break;
    default:
        return false;
    }
    return !bt_kd_is_soft(t->c->vm, t->b->pa + (x->rip - t->rip));
}

static void direct(struct trans *t, int base, int index, unsigned scale, int32_t disp, bool gs)
{
    t->m = (struct host_mem){.base = base, .index = index, .scale = scale, .disp = disp, .gs = gs, .direct = true};
    t->desc_extra = 0;
}

static int loaded(struct trans *t, ZydisRegister r, unsigned scratch)
{
    if (r == ZYDIS_REGISTER_NONE)
        return -1;
    unsigned g = (unsigned)ZydisRegisterGetId(r);
    int h = host_reg(g);
    if (h >= 0)
        return h;
    e_load(&t->e, scratch, &t->c->gpr[g]);
    return (int)scratch;
}

bool gen_direct(struct trans *t, const ZydisDecodedOperand *o)
{
    struct bt_emit *e = &t->e;
    const ZydisDecodedOperandMem *m = &o->mem;
    bool percpu = m->segment == ZYDIS_REGISTER_GS;
    int64_t disp = m->disp.has_displacement ? m->disp.value : 0;
    if (!t->cur->direct || m->segment == ZYDIS_REGISTER_FS || m->type != ZYDIS_MEMOP_TYPE_MEM)
        return false;
    if (m->base == ZYDIS_REGISTER_RIP) {
        uint64_t a = t->cur->rip + t->cur->d.length + (uint64_t)disp;
        if (percpu) {
            e_load(e, H_R15, &t->c->gs_window);
            if ((int64_t)a == (int32_t)a) {
                if (e->relocs) /* the field's length depends on it */
                    e->relocs->fixed = true;
                direct(t, H_R15, -1, 0, (int32_t)a, false);
            } else {
                e_mov_rip(e, H_R14, a);
                direct(t, H_R15, H_R14, 0, 0, false);
            }
        } else if ((int64_t)a == (int32_t)a) {
            direct(t, -1, -1, 0, (int32_t)a, true);
            t->m.by_rip = true;
        } else {
            e_mov_rip(e, H_R14, a);
            direct(t, H_R14, -1, 0, 0, true);
        }
        return true;
    }
    if (m->base != ZYDIS_REGISTER_NONE && t->rsp_bias && ZydisRegisterGetId(m->base) == 4)
        disp += t->rsp_bias;
    unsigned scale = m->scale == 8 ? 3 : m->scale == 4 ? 2 : m->scale == 2 ? 1 : 0;
    if (m->index == ZYDIS_REGISTER_NONE)
        scale = 0;
    int b = loaded(t, m->base, H_R14), i = loaded(t, m->index, H_R15);
    if (!percpu) {
        direct(t, b, i, scale, (int32_t)disp, true);
        return true;
    }
    if (b >= 0 && i >= 0) {
        e_lea(e, 1, H_R14, b, i, scale, 0);
        b = H_R14;
        i = -1;
    } else if (i == H_R15) {
        e_mov_rr(e, H_R14, H_R15);
        i = H_R14;
    }
    e_load(e, H_R15, &t->c->gs_window);
    if (i >= 0)
        direct(t, H_R15, i, scale, (int32_t)disp, false);
    else
        direct(t, H_R15, b, 0, (int32_t)disp, false);
    return true;
}

/* [host register + delta] of the stack */
bool gen_direct_at(struct trans *t, unsigned base, int delta)
{
    if (!t->cur->direct)
        return false;
    direct(t, (int)base, -1, 0, delta, true);
    return true;
}

void gen_direct_site(struct trans *t)
{
    struct bt_cache *k = t->k;
    if (!t->m.direct)
        return;
    struct bt_map_entry *m = &t->map[t->n_map++];
    trans_map(t, m, e_here(&t->e), (unsigned)(t->cur->rip - t->rip));
    m->slot = BT_MAP_DIRECT;
    if (live_before(t->cur)) {
        if (t->in_reg)
            ;
        else if (t->in_slot)
            m->slot |= BT_MAP_SLOT;
        else if (t->in_fn)
            m->slot |= BT_MAP_FN;
        else if (t->again.kind) {
            m->slot = (uint16_t)(m->slot | (BT_MAP_RECIPE + (k->n_recipes - t->b->recipes)));
            k->recipes[k->n_recipes++] = t->again;
        }
    }
    if (t->m.gs)
        e8(&t->e, 0x65);
}
