/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/deliver.c - delivery of interrupts and exceptions (SDM volume
 * 3, chapter 6; volume 2, INT n).
 *
 * c->rip stays at the faulting instruction until everything has been checked
 * and pushed, so that an exception during delivery finds a whole vCPU.
 */
#include "sys.h"

struct event {
    unsigned vector;
    bool soft, has_error;
    uint32_t error, ext; /* ext: the EXT bit of error codes raised on the way */
    uint64_t ret;
    uint32_t flags; /* as pushed */
};

/* Faults push RF set, so that the instruction restarts past a breakpoint. */
static bool is_fault(unsigned vector)
{
    const uint32_t faults = 1u << BT_EX_DE | 1u << BT_EX_BR | 1u << BT_EX_UD | 1u << BT_EX_NM | 1u << BT_EX_TS |
                            1u << BT_EX_NP | 1u << BT_EX_SS | 1u << BT_EX_GP | 1u << BT_EX_PF | 1u << BT_EX_MF |
                            1u << BT_EX_AC | 1u << BT_EX_XM;
    return vector < 32 && (faults >> vector & 1);
}

static void deliver_real(struct bt_vcpu *c, const struct event *e)
{
    struct sys_stack k;
    uint32_t off = e->vector * 4;

    if (off + 3 > c->idt_limit)
        bt_raise_err(c, BT_EX_GP, off + 2 + e->ext);
    uint64_t v = bt_read(c, (uint32_t)(c->idt_base + off), 4, 0);
    sys_stack_current(c, &k, 0);
    sys_push(c, &k, 2, e->flags);
    sys_push(c, &k, 2, c->seg[BT_CS].selector);
    sys_push(c, &k, 2, e->ret);
    sys_stack_commit(c, &k);
    sys_real_seg(c, BT_CS, (uint32_t)(v >> 16));
    c->rip = v & 0xffff;
    c->iflag = 0;
    c->sysflags &= ~(BT_TF | BT_AC | BT_RF);
    bt_mode_update(c);
}

/* --- gates -------------------------------------------------------------------- */
struct gate {
    uint64_t lo, off;
    uint32_t sel;
    unsigned type, size; /* size of a pushed word */
    unsigned ist;
    uint64_t d; /* code segment */
};

static void deliver_task(struct bt_vcpu *c, const struct event *e, uint64_t gd)
{
    sys_task_switch(c, sys_gate_sel(gd), SYS_TASK_INT, e->ret, e->has_error, e->error, e->ext);
}

/* Read and check the IDT entry; true: a task gate, all done. */
static bool read_gate(struct bt_vcpu *c, const struct event *e, struct gate *g)
{
    const bool lm = bt_long_mode(c);
    const unsigned n = lm ? 16 : 8;
    const uint32_t error = e->vector * 8 + 2 + e->ext;

    if (e->vector * n + n - 1 > c->idt_limit)
        bt_raise_err(c, BT_EX_GP, error);
    uint64_t lin = c->idt_base + e->vector * n;
    if (!lm)
        lin = (uint32_t)lin;
    g->lo = bt_read(c, lin, 8, 0);
    g->type = sys_desc_type(g->lo);
    uint32_t types = 1u << SYS_INT32 | 1u << SYS_TRAP32;
    if (!lm)
        types |= 1u << SYS_TASK_GATE | 1u << SYS_INT16 | 1u << SYS_TRAP16;
    if (sys_desc_s(g->lo) || !(types >> g->type & 1))
        bt_raise_err(c, BT_EX_GP, error);
    if (e->soft && sys_desc_dpl(g->lo) < c->cpl)
        bt_raise_err(c, BT_EX_GP, error);
    if (!sys_desc_p(g->lo))
        bt_raise_err(c, BT_EX_NP, error);
    if (g->type == SYS_TASK_GATE) {
        deliver_task(c, e, g->lo);
        return true;
    }
    g->sel = sys_gate_sel(g->lo);
    g->size = lm ? 8 : g->type & 8 ? 4 : 2;
    g->off = g->size == 2 ? g->lo & 0xffff : sys_gate_offset(g->lo);
    g->ist = 0;
    if (lm) {
        g->off |= bt_read(c, lin + 8, 8, 0) << 32;
        g->ist = (g->lo >> 32) & 7;
    }
    return false;
}

static void read_target(struct bt_vcpu *c, const struct event *e, struct gate *g)
{
    uint32_t error = (g->sel & 0xfffc) | e->ext;

    if (sys_null(g->sel))
        bt_raise_err(c, BT_EX_GP, e->ext);
    g->d = sys_desc_read(c, g->sel, BT_EX_GP, e->ext);
    if (!sys_desc_code(g->d) || sys_desc_dpl(g->d) > c->cpl)
        bt_raise_err(c, BT_EX_GP, error);
    if (bt_long_mode(c) && (!sys_desc_l(g->d) || sys_desc_d(g->d)))
        bt_raise_err(c, BT_EX_GP, error);
    if (!sys_desc_p(g->d))
        bt_raise_err(c, BT_EX_NP, error);
}

static void commit(struct bt_vcpu *c, const struct gate *g, unsigned cpl)
{
    bool was64 = bt_code64(c);
    sys_commit_cs(c, g->sel, g->d, cpl);
    c->rip = g->off;
    if (!(g->type & 1))
        c->iflag = 0;
    c->sysflags &= ~(BT_TF | BT_NT | BT_RF | BT_VM);
    sys_mode_cs(c, was64);
}

/* v[0] is pushed first. A kernel stack is plain memory and the frame lies in
 * one page nearly always: one look-up instead of six. */
static void push_frame(struct bt_vcpu *c, struct sys_stack *k, const uint64_t *v, unsigned n)
{
    uint64_t lin = k->sp - 8 * n, *p = NULL;
    if ((lin & 0xfff) + 8 * n <= 4096 && sys_canonical(lin) && sys_canonical(k->sp - 1))
        p = bt_host_ptr(c, lin, 8 * n, k->acc | BT_ACC_WRITE);
    if (!p) {
        for (unsigned i = 0; i < n; i++)
            sys_push(c, k, 8, v[i]);
        return;
    }
    for (unsigned i = 0; i < n; i++)
        p[n - 1 - i] = v[i];
    k->sp = lin;
}

/* Long mode always pushes SS:RSP on a 16-byte aligned frame. */
static void deliver_long(struct bt_vcpu *c, const struct event *e, struct gate *g)
{
    unsigned dpl = sys_desc_dpl(g->d);
    bool inner = !sys_desc_conforming(g->d) && dpl < c->cpl;
    unsigned cpl = inner ? dpl : c->cpl;
    struct sys_stack k = {
        .sp = c->gpr[BT_RSP], .mask = ~0ull, .flat64 = true, .error = e->ext, .acc = sys_acc_cpl(cpl)};

    if (inner || g->ist) {
        uint32_t off = g->ist ? 0x24 + 8 * (g->ist - 1) : 4 + 8 * dpl;
        if (off + 7 > c->tr.limit)
            bt_raise_err(c, BT_EX_TS, (c->tr.selector & 0xfffc) | e->ext);
        k.sp = bt_read(c, c->tr.base + off, 8, 0);
        if (!sys_canonical(k.sp))
            bt_raise_err(c, BT_EX_SS, e->ext);
    }
    sys_check_rip(c, g->d, g->off, e->ext);
    k.sp &= ~15ull;
    const uint64_t frame[6] = {c->seg[BT_SS].selector, c->gpr[BT_RSP], e->flags, c->seg[BT_CS].selector, e->ret,
                               e->error};
    push_frame(c, &k, frame, e->has_error ? 6 : 5);
    sys_set_accessed(c, g->sel, g->d);
    c->gpr[BT_RSP] = k.sp;
    if (inner)
        sys_null_seg(c, BT_SS, dpl);
    commit(c, g, cpl);
}

static void deliver_inner(struct bt_vcpu *c, const struct event *e, struct gate *g)
{
    unsigned dpl = sys_desc_dpl(g->d);
    bool v86 = bt_vm86(c);
    struct sys_stack k;
    uint64_t ssd;

    if (v86 && dpl != 0)
        bt_raise_err(c, BT_EX_GP, (g->sel & 0xfffc) | e->ext);
    sys_stack_inner(c, &k, dpl, e->ext, &ssd);
    sys_check_rip(c, g->d, g->off, e->ext);
    if (v86) {
        sys_push(c, &k, g->size, c->seg[BT_GS].selector);
        sys_push(c, &k, g->size, c->seg[BT_FS].selector);
        sys_push(c, &k, g->size, c->seg[BT_DS].selector);
        sys_push(c, &k, g->size, c->seg[BT_ES].selector);
    }
    sys_push(c, &k, g->size, c->seg[BT_SS].selector);
    sys_push(c, &k, g->size, c->gpr[BT_RSP]);
    sys_push(c, &k, g->size, e->flags);
    sys_push(c, &k, g->size, c->seg[BT_CS].selector);
    sys_push(c, &k, g->size, e->ret);
    if (e->has_error)
        sys_push(c, &k, g->size, e->error);
    sys_set_accessed(c, g->sel, g->d);
    sys_set_accessed(c, k.ss.selector, ssd);
    c->seg[BT_SS] = k.ss;
    sys_stack_commit(c, &k);
    commit(c, g, dpl);
    bt_seg_update(c, BT_SS);
    if (v86) {
        sys_null_seg(c, BT_GS, 0);
        sys_null_seg(c, BT_FS, 0);
        sys_null_seg(c, BT_DS, 0);
        sys_null_seg(c, BT_ES, 0);
    }
    bt_mode_update(c);
}

static void deliver_same(struct bt_vcpu *c, const struct event *e, struct gate *g)
{
    struct sys_stack k;

    sys_stack_current(c, &k, e->ext);
    sys_check_rip(c, g->d, g->off, e->ext);
    sys_push(c, &k, g->size, e->flags);
    sys_push(c, &k, g->size, c->seg[BT_CS].selector);
    sys_push(c, &k, g->size, e->ret);
    if (e->has_error)
        sys_push(c, &k, g->size, e->error);
    sys_set_accessed(c, g->sel, g->d);
    sys_stack_commit(c, &k);
    commit(c, g, c->cpl);
}

void sys_deliver(struct bt_vcpu *c, unsigned vector, bool soft, bool has_error, uint32_t error, uint64_t ret)
{
    struct event e = {.vector = vector, .soft = soft, .has_error = has_error, .error = error, .ext = !soft, .ret = ret};
    struct gate g;

    e.flags = bt_rflags(c);
    if (!soft && is_fault(vector))
        e.flags |= BT_RF;
    c->bp_hit = 0;
    if (!bt_pe(c)) {
        deliver_real(c, &e);
    } else if (!read_gate(c, &e, &g)) {
        read_target(c, &e, &g);
        if (bt_long_mode(c))
            deliver_long(c, &e, &g);
        else if (!sys_desc_conforming(g.d) && sys_desc_dpl(g.d) < c->cpl)
            deliver_inner(c, &e, &g);
        else if (bt_vm86(c)) /* a handler for v86 code must run at level 0 */
            bt_raise_err(c, BT_EX_GP, (g.sel & 0xfffc) | e.ext);
        else
            deliver_same(c, &e, &g);
    }
    /* General detect is switched off for the handler (SDM volume 3, 17.2.4). */
    if (vector == BT_EX_DB && !soft)
        c->dr[7] &= ~0x2000ull;
    c->shadow = 0;
    c->int_done = soft;
}

void bt_deliver(struct bt_vcpu *c, unsigned vector, bool soft, bool has_error, uint32_t error)
{
    sys_deliver(c, vector, soft, has_error, error, c->rip);
}

/* --- the instructions -------------------------------------------------------------------- */
void bt_op_int_n(struct bt_vcpu *c, const struct bt_op *op)
{
    if (bt_vm86(c) && bt_iopl(c) < 3)
        sys_gp0(c);
    bt_user_left(c);
    sys_deliver(c, op->imm & 0xff, true, false, 0, op->next_rip);
}

void bt_op_int3(struct bt_vcpu *c, const struct bt_op *op) { sys_deliver(c, BT_EX_BP, true, false, 0, op->next_rip); }

void bt_op_into(struct bt_vcpu *c, const struct bt_op *op)
{
    if (bt_rflags(c) & BT_OF)
        sys_deliver(c, BT_EX_OF, true, false, 0, op->next_rip);
    else
        c->rip = op->next_rip;
}

/* ICEBP is a trap-class #DB: no check of the gate's DPL. */
void bt_op_int1(struct bt_vcpu *c, const struct bt_op *op) { sys_deliver(c, BT_EX_DB, false, false, 0, op->next_rip); }

void bt_op_ud(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    bt_raise(c, BT_EX_UD);
}

void bt_op_nm(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    bt_raise(c, BT_EX_NM);
}

void bt_op_gp0(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    sys_gp0(c);
}
