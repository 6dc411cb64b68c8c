/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/gen_group.c - one look-up for several accesses. Ordinary C.
 *
 * Accesses of a block off the same registers (stack frames, structures,
 * arrays in unrolled loops) mostly lie in one page. The first of a group looks
 * up the page for all of them and keeps the difference between host and guest
 * address in c->group_delta[]; each access is then one host instruction,
 * [r15 + base + displacement], with that difference in r15.
 *
 * A group that crosses a page, or whose page cannot be entered into the TLB
 * without a fault or another visible effect, leaves the block for its plain
 * twin: the same instructions from there on, each with a look-up of its own
 * (BT_MODE_PLAIN). What another vCPU may ask of this one in the middle of a
 * block - to drop translations of pages - restarts the block: see slow.c.
 */
#include "trans.h"

_Static_assert(sizeof(((struct bt_vcpu *)0)->group_delta) == BT_MAX_GROUPS * 8, "one place for each group");

#define SPAN_MAX 1024
#define DISP_MAX (1 << 30)

static void close_group(struct group *g) { g->open = false; }

static void close_all(struct trans *t)
{
    for (unsigned i = 0; i < t->n_groups; i++)
        close_group(&t->group[i]);
}

/* Add an access of n bytes at `at` off the registers of `key`; the group's number + 1. */
static uint8_t add(struct trans *t, unsigned insn, const struct group *key, int64_t at, unsigned n, bool wr)
{
    for (unsigned i = 0; i < t->n_groups; i++) {
        struct group *g = &t->group[i];
        if (!g->open || g->base != key->base || g->index != key->index || g->scale != key->scale || g->seg != key->seg)
            continue;
        int64_t lo = at + g->bias, hi = lo + n;
        if (lo > g->lo)
            lo = g->lo;
        if (hi < g->hi)
            hi = g->hi;
        if (hi - lo > SPAN_MAX) {
            if (key->base == BT_BASE_RIP)
                continue; /* several constant areas may be open */
            close_group(g);
            break;
        }
        g->lo = lo;
        g->hi = hi;
        g->wr |= wr;
        g->uses++;
        return (uint8_t)(i + 1);
    }
    if (t->n_groups == BT_MAX_GROUPS)
        return 0;
    struct group *g = &t->group[t->n_groups++];
    *g = *key;
    g->open = true;
    g->first = g->at = insn;
    g->wr = wr;
    g->uses = 1;
    g->bias = 0;
    g->lo = at;
    g->hi = at + n;
    return (uint8_t)t->n_groups;
}

static uint8_t add_stack(struct trans *t, unsigned insn, unsigned base, int at, unsigned n, bool wr)
{
    struct group key = {.base = (int8_t)base, .index = -1, .seg = BT_NSEG, .stack = base == BT_RSP};
    return add(t, insn, &key, at, n, wr);
}

static uint8_t add_operand(struct trans *t, unsigned insn, const struct insn *x, const ZydisDecodedOperand *o,
                           unsigned n, bool wr)
{
    const ZydisDecodedOperandMem *m = &o->mem;
    struct group key = {.base = -1, .index = -1, .seg = BT_NSEG};
    int64_t disp = m->disp.has_displacement ? m->disp.value : 0;
    if (m->type != ZYDIS_MEMOP_TYPE_MEM || o->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM || x->d.address_width != 64 ||
        disp > DISP_MAX || disp < -DISP_MAX)
        return 0;
    if (m->segment == ZYDIS_REGISTER_FS)
        key.seg = BT_FS;
    else if (m->segment == ZYDIS_REGISTER_GS)
        key.seg = BT_GS;
    if (m->base == ZYDIS_REGISTER_RIP) {
        if (key.seg != BT_NSEG)
            return 0;
        key.base = BT_BASE_RIP;
        disp += (int64_t)(x->rip + x->d.length);
    } else if (m->base != ZYDIS_REGISTER_NONE) {
        key.base = (int8_t)ZydisRegisterGetId(m->base);
    }
    if (m->index != ZYDIS_REGISTER_NONE) {
        key.index = (int8_t)ZydisRegisterGetId(m->index);
        key.scale = m->scale == 8 ? 3 : m->scale == 4 ? 2 : m->scale == 2 ? 1 : 0;
    }
    if (key.base < 0 && key.index < 0 && key.seg == BT_NSEG)
        return 0;
    key.stack = key.base == BT_RSP && key.index < 0 && key.seg == BT_NSEG;
    return add(t, insn, &key, disp, n, wr);
}

static const ZydisDecodedOperand *memory_operand(const struct insn *x)
{
    for (unsigned i = 0; i < x->d.operand_count; i++)
        if (x->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
            return x->op[i].mem.type == ZYDIS_MEMOP_TYPE_AGEN ? NULL : &x->op[i];
    return NULL;
}

static void accesses(struct trans *t, unsigned i)
{
    struct insn *x = &t->insn[i];
    const ZydisDecodedOperand *o = memory_operand(x);
    int size = x->d.operand_width / 8;
    bool high;
    switch (x->kind) {
    case K_GENERIC:
        if (o && !insn_is_masked(&x->d))
            x->group = add_operand(t, i, x, o, insn_memory_size(t->c->vm, x, o), (o->actions & ACT_WR) != 0);
        break;
    case K_PUSH:
        if (x->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
            x->group = add_operand(t, i, x, &x->op[0], (unsigned)size, false);
        x->stack_group = add_stack(t, i, BT_RSP, -size, (unsigned)size, true);
        break;
    case K_POP:
        if (x->op[0].type != ZYDIS_OPERAND_TYPE_MEMORY && reg_number(x->op[0].reg.value, &high) != BT_RSP)
            x->stack_group = add_stack(t, i, BT_RSP, 0, (unsigned)size, false);
        break;
    case K_LEAVE: x->stack_group = add_stack(t, i, BT_RBP, 0, (unsigned)size, false); break;
    case K_JMP_IND: case K_CALL_IND:
        if (x->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
            x->group = add_operand(t, i, x, &x->op[0], 8, false);
        if (x->kind == K_CALL_IND)
            x->stack_group = add_stack(t, i, BT_RSP, -8, 8, true);
        break;
    case K_CALL: x->stack_group = add_stack(t, i, BT_RSP, -8, 8, true); break;
    case K_RET: x->stack_group = add_stack(t, i, BT_RSP, 0, 8, false); break;
    default: break;
    }
}

/* What x adds to register g, where it is a constant; false: something else. */
static bool constant_step(const struct insn *x, unsigned g, int64_t *step)
{
    const ZydisDecodedInstruction *d = &x->d;
    bool high;
    if (g == BT_RSP) {
        int size = d->operand_width / 8;
        if (x->kind == K_PUSH || (x->kind == K_POP && x->stack_group)) {
            *step = x->kind == K_PUSH ? -size : size;
            return true;
        }
    }
    if (d->operand_width != 64 || x->op[0].type != ZYDIS_OPERAND_TYPE_REGISTER || !is_gpr(x->op[0].reg.value) ||
        x->op[0].size != 64 || reg_number(x->op[0].reg.value, &high) != g)
        return false;
    switch (d->mnemonic) {
    case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_SUB:
        if (x->op[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
            return false;
        *step = (int32_t)x->op[1].imm.value.s;
        if (d->mnemonic == ZYDIS_MNEMONIC_SUB)
            *step = -*step;
        return true;
    case ZYDIS_MNEMONIC_INC: *step = 1; return true;
    case ZYDIS_MNEMONIC_DEC: *step = -1; return true;
    case ZYDIS_MNEMONIC_LEA: {
        const ZydisDecodedOperandMem *m = &x->op[1].mem;
        if (d->address_width != 64 || m->index != ZYDIS_REGISTER_NONE || m->base == ZYDIS_REGISTER_NONE ||
            m->base == ZYDIS_REGISTER_RIP || (unsigned)ZydisRegisterGetId(m->base) != g)
            return false;
        *step = m->disp.has_displacement ? m->disp.value : 0;
        return true;
    }
    default: return false;
    }
}

static void writes(struct trans *t, const struct insn *x)
{
    for (uint32_t regs = x->gpr_wr; regs && t->n_groups; regs &= regs - 1) {
        unsigned g = (unsigned)__builtin_ctz(regs);
        int64_t step;
        bool constant = constant_step(x, g, &step) && step < DISP_MAX && step > -DISP_MAX;
        for (unsigned i = 0; i < t->n_groups; i++) {
            struct group *p = &t->group[i];
            if (!p->open || (p->base != (int)g && p->index != (int)g))
                continue;
            if (constant && p->index != (int)g)
                p->bias += step;
            else
                close_group(p);
            if (p->bias > DISP_MAX || p->bias < -DISP_MAX)
                close_group(p);
        }
    }
}

bool group_live(const struct trans *t)
{
    for (unsigned i = 0; i < t->n_groups; i++)
        if (t->group[i].ready && t->group[i].left)
            return true;
    return false;
}

static int in_host(struct trans *t, int g, unsigned scratch)
{
    if (g < 0)
        return -1;
    int h = host_reg((unsigned)g);
    if (h >= 0)
        return h;
    e_load(&t->e, scratch, &t->c->gpr[g]);
    return (int)scratch;
}

/* r14 = linear address of the group's first byte; the registers are as at its first access */
static void first_byte(struct trans *t, const struct group *g)
{
    struct bt_emit *e = &t->e;
    if (g->base == BT_BASE_RIP || (g->base < 0 && g->index < 0)) {
        if (g->base == BT_BASE_RIP)
            e_mov_rip(e, H_R14, (uint64_t)g->lo);
        else
            e_mov_imm(e, H_R14, (uint64_t)g->lo);
    } else {
        int b = in_host(t, g->base, H_R14), i = in_host(t, g->index, H_R15);
        e_lea(e, 1, H_R14, b, i, i < 0 ? 0 : g->scale, (int32_t)g->lo);
    }
    if (g->seg != BT_NSEG) {
        e_load(e, H_R15, &t->c->seg_base[g->seg]);
        e_lea(e, 1, H_R14, H_R14, H_R15, 0, 0);
    }
}

static void look_up(struct trans *t, struct group *g, unsigned number)
{
    struct bt_emit *e = &t->e;
    struct bt_vcpu *c = t->c;
    unsigned s = t->cpl3, span = (unsigned)(g->hi - g->lo);
    gen_flags_before_mem(t);
    uint32_t again = e_here(e), tag;
    first_byte(t, g);
    gen_flags_clobbered(t);
    if (g->stack) {
        tag = e_abs(g->wr ? &c->stk_tag[s] : &c->stk_rtag[s]);
        e_r_abs(e, 1, 0x33, H_R14, tag); /* xor */
    } else {
        tag = e_abs(c->tlb[s]) + (uint32_t)(g->wr ? offsetof(struct bt_tlb_entry, tag_w)
                                                  : offsetof(struct bt_tlb_entry, tag_r));
        gen_tlb_index(t);
        e_r_base_at(e, 1, 0x33, H_R14, H_R15, tag);
    }
    e_alu_ri(e, 1, 7, H_R14, (int32_t)(4096 - span));
    struct cold *x = trans_cold(t, COLD_GUARD, e_jcc(e, CC_A, 0));
    x->tag_abs = tag;
    x->indexed = !g->stack;
    x->desc = span | (g->wr ? BT_DESC_WRITE : 0) | (s ? BT_DESC_USER : 0) | (g->stack ? BT_DESC_STACK : 0);
    x->rejoin = again;
    x->exit = trans_exit_plain(t);
    if (g->stack) {
        e_load(e, H_R15, &c->stk_host[s]);
        e_r_abs(e, 1, 0x2b, H_R15, tag); /* sub */
    } else {
        uint32_t host = e_abs(c->tlb[s]) + (uint32_t)offsetof(struct bt_tlb_entry, host);
        if (g->base == BT_BASE_RIP) { /* here it is the host address itself */
            e_r_base_at(e, 1, 0x03, H_R14, H_R15, host);
        } else {
            e_r_base_at(e, 1, 0x8b, H_R14, H_R15, host);
            e_r_base_at(e, 1, 0x2b, H_R14, H_R15, tag);
        }
        if (g->seg != BT_NSEG)
            e_r_abs(e, 1, 0x03, H_R14, e_abs(&c->seg_base[g->seg]));
        e_mov_rr(e, H_R15, H_R14);
    }
    e_store(e, H_R15, &c->group_delta[number]);
    t->r15_group = (uint8_t)(number + 1);
    g->ready = true;
}

bool gen_group(struct trans *t, uint8_t number, const ZydisDecodedOperand *o, int stack_delta)
{
    struct bt_emit *e = &t->e;
    if (!number || t->group[number - 1].uses < 2)
        return false;
    struct group *g = &t->group[number - 1];
    if (!g->ready)
        look_up(t, g, number - 1u);
    g->left--;
    int64_t disp = o ? (o->mem.disp.has_displacement ? o->mem.disp.value : 0) : stack_delta;
    int b = g->base < 0 || g->base == BT_BASE_RIP ? -1 : host_reg((unsigned)g->base);
    int i = g->index < 0 ? -1 : host_reg((unsigned)g->index);
    if (g->base == BT_BASE_RIP)
        t->m = (struct host_mem){.base = H_R15, .index = -1,
                                 .disp = (int32_t)((int64_t)(t->cur->rip + t->cur->d.length) + disp - g->lo)};
    else if (g->index < 0 && (g->base < 0 || b >= 0))
        t->m = (struct host_mem){.base = H_R15, .index = b, .disp = (int32_t)disp};
    else if (g->base < 0 && i >= 0)
        t->m = (struct host_mem){.base = H_R15, .index = i, .scale = g->scale, .disp = (int32_t)disp};
    else {
        if (g->index >= 0 && i < 0)
            t->r15_group = 0; /* it goes through r15 */
        gen_offset(t, o, 64);
        t->m = (struct host_mem){.base = H_R15, .index = H_R14};
    }
    if (t->r15_group != number)
        e_load(e, H_R15, &t->c->group_delta[number - 1]);
    t->r15_group = number;
    t->desc_extra = 0;
    return true;
}

/* A look-up clobbers flags. Where some are live at a group's first access (carry chains), and the registers are there
 * already, it is made before the instruction that makes those flags. */
static unsigned earlier(const struct trans *t, const struct group *g)
{
    unsigned best = g->first;
    if (!live_before(&t->insn[best]))
        return best;
    uint32_t regs = (g->base >= 0 && g->base < 16 ? 1u << g->base : 0) | (g->index >= 0 ? 1u << g->index : 0);
    for (unsigned i = g->first; i-- > 0;) {
        const struct insn *x = &t->insn[i];
        if (x->kind == K_OP || x->kind == K_SWAPGS || x->kind == K_JCC || x->kind == K_CALL || x->kind == K_CALL_IND ||
            (x->gpr_wr & regs))
            break;
        if (!live_before(x))
            return i;
    }
    return best;
}

void group_plan(struct trans *t)
{
    t->n_groups = 0;
    t->r15_group = 0;
    for (unsigned i = 0; i < t->n; i++)
        t->insn[i].group = t->insn[i].stack_group = 0;
    if (!t->code64 || t->careful || t->plain || t->direct || t->n < 2)
        return;
    for (unsigned i = 0; i < t->n; i++) {
        struct insn *x = &t->insn[i];
        if (x->kind == K_OP || x->kind == K_SWAPGS) {
            close_all(t);
            continue;
        }
        accesses(t, i);
        writes(t, x);
        if (x->kind == K_CALL || x->kind == K_CALL_IND) /* other blocks have their own look-ups */
            close_all(t);
    }
    for (unsigned i = 0; i < t->n_groups; i++) {
        struct group *g = &t->group[i];
        g->left = g->uses;
        g->ready = false;
        if (g->uses > 1)
            g->at = earlier(t, g);
    }
}

void group_before(struct trans *t, unsigned i)
{
    for (unsigned j = 0; j < t->n_groups; j++) {
        struct group *g = &t->group[j];
        if (g->uses > 1 && g->at == i && g->first != i && !g->ready)
            look_up(t, g, j);
    }
}

