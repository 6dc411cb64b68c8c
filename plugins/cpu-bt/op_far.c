/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/op_far.c - far JMP and CALL: direct, through call gates, to
 * tasks (SDM volume 2, JMP and CALL; volume 3, 5.8). RETF is in op_iret.c.
 */
#include "sys.h"

struct far {
    uint32_t sel;
    uint64_t off;
    uint64_t next; /* address after the instruction */
    unsigned opsize;
    bool call;
};

static void check_code_bits(struct bt_vcpu *c, uint32_t sel, uint64_t d)
{
    if (bt_long_mode(c) && sys_desc_l(d) && sys_desc_d(d))
        bt_raise_err(c, BT_EX_GP, sel & 0xfffc);
}

static void far_real(struct bt_vcpu *c, const struct far *f)
{
    struct sys_stack k;
    uint64_t off = f->off & sys_mask(f->opsize);

    if (off > (bt_vm86(c) ? 0xffff : c->seg[BT_CS].limit))
        sys_gp0(c);
    if (f->call) {
        sys_stack_current(c, &k, 0);
        sys_push(c, &k, f->opsize, c->seg[BT_CS].selector);
        sys_push(c, &k, f->opsize, f->next);
        sys_stack_commit(c, &k);
    }
    if (bt_vm86(c))
        sys_v86_seg(c, BT_CS, f->sel);
    else
        sys_real_seg(c, BT_CS, f->sel);
    c->rip = off;
    bt_mode_update(c);
}

static void far_code(struct bt_vcpu *c, const struct far *f, uint64_t d)
{
    unsigned dpl = sys_desc_dpl(d), rpl = f->sel & 3;
    uint64_t off = f->off & sys_mask(f->opsize);
    struct sys_stack k;

    check_code_bits(c, f->sel, d);
    if (sys_desc_conforming(d) ? dpl > c->cpl : rpl > c->cpl || dpl != c->cpl)
        bt_raise_err(c, BT_EX_GP, f->sel & 0xfffc);
    if (!sys_desc_p(d))
        bt_raise_err(c, BT_EX_NP, f->sel & 0xfffc);
    if (f->call) {
        sys_stack_current(c, &k, 0);
        sys_push(c, &k, f->opsize, c->seg[BT_CS].selector);
        sys_push(c, &k, f->opsize, f->next);
    }
    sys_check_rip(c, d, off, 0);
    sys_set_accessed(c, f->sel, d);
    if (f->call)
        sys_stack_commit(c, &k);
    sys_commit_cs(c, f->sel, d, c->cpl);
    c->rip = off;
    bt_mode_update(c);
}

/* --- call gates -------------------------------------------------------------------- */
struct gate {
    uint32_t sel;
    uint64_t off;
    uint64_t d; /* descriptor of the target */
    unsigned size, params;
};

static void read_gate(struct bt_vcpu *c, const struct far *f, uint64_t gd, struct gate *g)
{
    uint32_t error = f->sel & 0xfffc;
    uint64_t lin, hi = 0;
    unsigned dpl = sys_desc_dpl(gd);

    if (dpl < c->cpl || dpl < (f->sel & 3))
        bt_raise_err(c, BT_EX_GP, error);
    if (!sys_desc_p(gd))
        bt_raise_err(c, BT_EX_NP, error);
    if (bt_long_mode(c)) {
        if (!sys_desc_addr(c, f->sel, 16, &lin))
            bt_raise_err(c, BT_EX_GP, error);
        hi = bt_read(c, lin + 8, 8, 0);
        if (hi >> 40 & 0x1f)
            bt_raise_err(c, BT_EX_GP, error);
    }
    g->size = bt_long_mode(c) ? 8 : sys_desc_type(gd) == SYS_CALL32 ? 4 : 2;
    g->sel = sys_gate_sel(gd);
    g->off = (g->size == 2 ? gd & 0xffff : sys_gate_offset(gd)) | hi << 32;
    g->params = bt_long_mode(c) ? 0 : (gd >> 32) & 31;
    if (sys_null(g->sel))
        sys_gp0(c);
    error = g->sel & 0xfffc;
    g->d = sys_desc_read(c, g->sel, BT_EX_GP, 0);
    if (!sys_desc_code(g->d) || sys_desc_dpl(g->d) > c->cpl)
        bt_raise_err(c, BT_EX_GP, error);
    if (!f->call && !sys_desc_conforming(g->d) && sys_desc_dpl(g->d) != c->cpl)
        bt_raise_err(c, BT_EX_GP, error);
    if (bt_long_mode(c) && (!sys_desc_l(g->d) || sys_desc_d(g->d)))
        bt_raise_err(c, BT_EX_GP, error);
    if (!sys_desc_p(g->d))
        bt_raise_err(c, BT_EX_NP, error);
}

static void gate_inner(struct bt_vcpu *c, const struct far *f, const struct gate *g)
{
    unsigned dpl = sys_desc_dpl(g->d);
    struct sys_stack old, k;
    uint64_t ssd;
    uint32_t param[32];

    sys_stack_current(c, &old, 0);
    for (unsigned i = 0; i < g->params; i++)
        param[i] = (uint32_t)sys_peek(c, &old, (uint64_t)i * g->size, g->size);
    sys_stack_inner(c, &k, dpl, 0, &ssd);
    sys_push(c, &k, g->size, c->seg[BT_SS].selector);
    sys_push(c, &k, g->size, c->gpr[BT_RSP]);
    for (unsigned i = g->params; i-- > 0;)
        sys_push(c, &k, g->size, param[i]);
    sys_push(c, &k, g->size, c->seg[BT_CS].selector);
    sys_push(c, &k, g->size, f->next);
    sys_check_rip(c, g->d, g->off, 0);
    sys_set_accessed(c, g->sel, g->d);
    if (bt_long_mode(c)) {
        sys_null_seg(c, BT_SS, dpl);
    } else {
        sys_set_accessed(c, k.ss.selector, ssd);
        c->seg[BT_SS] = k.ss;
    }
    sys_stack_commit(c, &k);
    sys_commit_cs(c, g->sel, g->d, dpl);
    bt_seg_update(c, BT_SS);
}

static void far_gate(struct bt_vcpu *c, const struct far *f, uint64_t gd)
{
    struct gate g;
    struct sys_stack k;

    read_gate(c, f, gd, &g);
    if (f->call && !sys_desc_conforming(g.d) && sys_desc_dpl(g.d) < c->cpl) {
        gate_inner(c, f, &g);
    } else {
        if (f->call) {
            sys_stack_current(c, &k, 0);
            if (bt_long_mode(c) && !k.flat64) { /* compatibility code calling into 64-bit code */
                k.flat64 = true;
                k.mask = ~0ull;
                k.sp = c->gpr[BT_RSP];
            }
            sys_push(c, &k, g.size, c->seg[BT_CS].selector);
            sys_push(c, &k, g.size, f->next);
        }
        sys_check_rip(c, g.d, g.off, 0);
        sys_set_accessed(c, g.sel, g.d);
        if (f->call)
            sys_stack_commit(c, &k);
        sys_commit_cs(c, g.sel, g.d, c->cpl);
    }
    c->rip = g.off;
    bt_mode_update(c);
}

/* --- dispatch on what the selector names ------------------------------------------------ */
static void far_task(struct bt_vcpu *c, const struct far *f, uint64_t d, bool gate)
{
    unsigned dpl = sys_desc_dpl(d);
    uint32_t sel = f->sel;

    if (dpl < c->cpl || dpl < (sel & 3))
        bt_raise_err(c, BT_EX_GP, sel & 0xfffc);
    if (gate) {
        if (!sys_desc_p(d))
            bt_raise_err(c, BT_EX_NP, sel & 0xfffc);
        sel = sys_gate_sel(d);
    }
    sys_task_switch(c, sel, f->call ? SYS_TASK_CALL : SYS_TASK_JMP, f->next, false, 0, 0);
}

static void far_transfer(struct bt_vcpu *c, const struct far *f)
{
    if (!sys_protected(c)) {
        far_real(c, f);
        return;
    }
    if (sys_null(f->sel))
        sys_gp0(c);
    uint64_t d = sys_desc_read(c, f->sel, BT_EX_GP, 0);
    unsigned type = sys_desc_type(d);
    if (sys_desc_code(d))
        far_code(c, f, d);
    else if (!sys_desc_s(d) && type == SYS_CALL32)
        far_gate(c, f, d);
    else if (!sys_desc_s(d) && type == SYS_CALL16 && !bt_long_mode(c))
        far_gate(c, f, d);
    else if (!sys_desc_s(d) && (type == SYS_TSS16 || type == SYS_TSS32) && !bt_long_mode(c))
        far_task(c, f, d, false);
    else if (!sys_desc_s(d) && type == SYS_TASK_GATE && !bt_long_mode(c))
        far_task(c, f, d, true);
    else
        bt_raise_err(c, BT_EX_GP, f->sel & 0xfffc);
}

static void far_imm(struct bt_vcpu *c, const struct bt_op *op, bool call)
{
    struct far f = {.sel = op->imm2 & 0xffff, .off = op->imm, .next = op->next_rip, .opsize = op->opsize, .call = call};
    far_transfer(c, &f);
}

static void far_mem(struct bt_vcpu *c, const struct bt_op *op, bool call)
{
    if (!op->is_mem)
        bt_raise(c, BT_EX_UD);
    uint64_t lin = sys_mem_lin(c, op, op->opsize + 2u, false);
    struct far f = {.next = op->next_rip, .opsize = op->opsize, .call = call};
    f.off = bt_read(c, lin, op->opsize, bt_acc(c));
    f.sel = (uint32_t)bt_read(c, lin + op->opsize, 2, bt_acc(c));
    far_transfer(c, &f);
}

void bt_op_jmp_far_imm(struct bt_vcpu *c, const struct bt_op *op) { far_imm(c, op, false); }
void bt_op_call_far_imm(struct bt_vcpu *c, const struct bt_op *op) { far_imm(c, op, true); }
void bt_op_jmp_far_mem(struct bt_vcpu *c, const struct bt_op *op) { far_mem(c, op, false); }
void bt_op_call_far_mem(struct bt_vcpu *c, const struct bt_op *op) { far_mem(c, op, true); }
