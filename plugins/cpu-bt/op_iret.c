/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/op_iret.c - RETF and IRET in every mode (SDM volume 2, RET
 * and IRET).
 */
#include "sys.h"

/* Flags that IRET in protected mode loads at the current level. */
static uint32_t iret_flags_mask(const struct bt_vcpu *c, unsigned opsize)
{
    uint32_t m = BT_ARITH | BT_TF | BT_DF | BT_NT;
    if (opsize > 2)
        m |= BT_RF | BT_AC | BT_ID;
    if (c->cpl <= bt_iopl(c))
        m |= BT_IF;
    if (c->cpl == 0) {
        m |= BT_IOPL;
        if (opsize > 2)
            m |= BT_VIF | BT_VIP;
    }
    return m;
}

static void merge_flags(struct bt_vcpu *c, uint32_t mask, uint32_t v)
{
    /* RF holds off an instruction breakpoint for one instruction: without one
     * it may go at once. */
    bt_set_rflags(c, ((bt_rflags(c) & ~mask) | (v & mask)) & ~(c->bp_exec ? 0 : BT_RF));
}

/* --- real mode and virtual-8086 ----------------------------------------------- */
static void return_real(struct bt_vcpu *c, unsigned opsize, uint32_t pop, bool iret)
{
    struct sys_stack k;
    uint32_t flags = 0;

    if (iret && bt_vm86(c) && bt_iopl(c) < 3)
        sys_gp0(c);
    sys_stack_current(c, &k, 0);
    uint64_t ip = sys_pop(c, &k, opsize);
    uint32_t sel = (uint32_t)sys_pop(c, &k, opsize) & 0xffff;
    if (iret)
        flags = (uint32_t)sys_pop(c, &k, opsize);
    if (ip > (bt_vm86(c) ? 0xffff : c->seg[BT_CS].limit))
        sys_gp0(c);
    k.sp = (k.sp + pop) & k.mask;
    sys_stack_commit(c, &k);
    if (iret) {
        uint32_t mask = BT_ARITH | BT_TF | BT_IF | BT_DF | BT_NT | (bt_vm86(c) ? 0 : BT_IOPL);
        if (opsize > 2)
            mask |= BT_RF | BT_AC | BT_ID;
        merge_flags(c, mask, flags);
    }
    if (bt_vm86(c))
        sys_v86_seg(c, BT_CS, sel);
    else
        sys_real_seg(c, BT_CS, sel);
    c->rip = ip;
    bt_mode_update(c);
}

/* IRETD at level 0 with VM set in the image: the frame goes on with ESP, SS,
 * ES, DS, FS, GS. Flags are taken whole. */
static void return_to_v86(struct bt_vcpu *c, struct sys_stack *k, uint32_t eip, uint32_t cs, uint32_t flags)
{
    static const uint8_t order[] = {BT_SS, BT_ES, BT_DS, BT_FS, BT_GS};
    uint32_t sel[sizeof(order)];
    uint32_t esp = (uint32_t)sys_pop(c, k, 4);

    for (unsigned i = 0; i < sizeof(order); i++)
        sel[i] = (uint32_t)sys_pop(c, k, 4) & 0xffff;
    if (eip > 0xffff)
        sys_gp0(c);
    bt_set_rflags(c, (flags & ~BT_RF) | BT_VM);
    c->cpl = 3;
    sys_v86_seg(c, BT_CS, cs);
    for (unsigned i = 0; i < sizeof(order); i++)
        sys_v86_seg(c, order[i], sel[i]);
    c->gpr[BT_RSP] = esp;
    c->rip = eip;
    bt_mode_update(c);
}

/* --- protected mode -------------------------------------------------------------- */
static uint64_t check_return_cs(struct bt_vcpu *c, uint32_t sel)
{
    uint32_t error = sel & 0xfffc;
    unsigned rpl = sel & 3;

    if (sys_null(sel))
        sys_gp0(c);
    uint64_t d = sys_desc_read(c, sel, BT_EX_GP, 0);
    if (!sys_desc_code(d) || rpl < c->cpl)
        bt_raise_err(c, BT_EX_GP, error);
    if (sys_desc_conforming(d) ? sys_desc_dpl(d) > rpl : sys_desc_dpl(d) != rpl)
        bt_raise_err(c, BT_EX_GP, error);
    if (bt_long_mode(c) && sys_desc_l(d) && sys_desc_d(d))
        bt_raise_err(c, BT_EX_GP, error);
    if (!sys_desc_p(d))
        bt_raise_err(c, BT_EX_NP, error);
    return d;
}

/* SS of the level returned to; *d = 0 for a permitted null selector. */
static uint64_t check_return_ss(struct bt_vcpu *c, uint32_t ss, uint64_t csd, unsigned rpl)
{
    if (sys_null(ss)) {
        if (!bt_long_mode(c) || !sys_desc_l(csd) || rpl == 3 || (ss & 3) != rpl)
            sys_gp0(c);
        return 0;
    }
    return sys_check_ss(c, ss, rpl, BT_EX_GP, 0);
}

static void commit_ss(struct bt_vcpu *c, uint32_t ss, uint64_t d)
{
    if (sys_null(ss)) {
        sys_null_seg(c, BT_SS, ss);
        return;
    }
    sys_seg_cache(&c->seg[BT_SS], ss, d | 1ull << 40);
    bt_seg_update(c, BT_SS);
}

static void commit_rsp(struct bt_vcpu *c, uint64_t sp, uint32_t pop)
{
    /* Width by the new stack segment; 64-bit code uses all of RSP. */
    if (bt_long_mode(c) && (c->seg[BT_CS].attr & SYS_L))
        c->gpr[BT_RSP] = sp + pop;
    else if (c->seg[BT_SS].attr & SYS_DB)
        c->gpr[BT_RSP] = (uint32_t)(sp + pop);
    else
        c->gpr[BT_RSP] = (c->gpr[BT_RSP] & ~0xffffull) | ((sp + pop) & 0xffff);
}

/* IRETQ's frame in one look-up when it lies in one page of plain memory. */
static bool read_frame64(struct bt_vcpu *c, const struct sys_stack *k, uint64_t v[5])
{
    if ((k->sp & 0xfff) + 40 > 4096 || !sys_canonical(k->sp) || !sys_canonical(k->sp + 39))
        return false;
    const uint8_t *p = bt_host_ptr(c, k->sp, 40, k->acc);
    for (unsigned i = 0; p && i < 5; i++)
        v[i] = sys_get64(p + 8 * i);
    return p != NULL;
}

void sys_return_protected(struct bt_vcpu *c, unsigned opsize, uint32_t pop, bool iret)
{
    struct sys_stack k;
    uint32_t flags = 0, ss = 0, mask = iret ? iret_flags_mask(c, opsize) : 0;
    uint64_t sp = 0, ssd = 0;

    sys_stack_current(c, &k, 0);
    uint64_t frame[5] = {0};
    bool whole = iret && opsize == 8 && k.flat64 && read_frame64(c, &k, frame);
    uint64_t ip = whole ? frame[0] : sys_pop(c, &k, opsize);
    uint32_t cs = (uint32_t)(whole ? frame[1] : sys_pop(c, &k, opsize)) & 0xffff;
    if (iret) {
        flags = (uint32_t)(whole ? frame[2] : sys_pop(c, &k, opsize));
        if (opsize == 4 && (flags & BT_VM) && c->cpl == 0 && !bt_long_mode(c)) {
            return_to_v86(c, &k, (uint32_t)ip, cs, flags);
            return;
        }
    }
    uint64_t d = check_return_cs(c, cs);
    unsigned rpl = cs & 3;
    bool outer = rpl != c->cpl, stack = outer || (iret && bt_code64(c));
    k.sp = (k.sp + pop) & k.mask;
    if (stack) {
        sp = whole ? frame[3] : sys_pop(c, &k, opsize);
        ss = (uint32_t)(whole ? frame[4] : sys_pop(c, &k, opsize)) & 0xffff;
        ssd = check_return_ss(c, ss, d, rpl);
    }
    sys_check_rip(c, d, ip, 0);
    sys_set_accessed(c, cs, d);
    if (ssd)
        sys_set_accessed(c, ss, ssd);

    bool was64 = bt_code64(c);
    if (iret)
        merge_flags(c, mask, flags);
    if (!stack)
        sys_stack_commit(c, &k);
    sys_commit_cs(c, cs, d, rpl);
    if (stack) {
        commit_ss(c, ss, ssd);
        commit_rsp(c, sp, pop);
    }
    if (outer)
        sys_drop_segs(c);
    c->rip = ip;
    sys_mode_cs(c, was64);
}

void bt_op_ret_far(struct bt_vcpu *c, const struct bt_op *op)
{
    if (sys_protected(c))
        sys_return_protected(c, op->opsize, (uint32_t)op->imm & 0xffff, false);
    else
        return_real(c, op->opsize, (uint32_t)op->imm & 0xffff, false);
}

void bt_op_iret(struct bt_vcpu *c, const struct bt_op *op)
{
    c->nmi_masked = 0; /* even when IRET faults */
    if (!sys_protected(c)) {
        return_real(c, op->opsize, 0, true);
    } else if (c->sysflags & BT_NT) {
        if (bt_long_mode(c))
            sys_gp0(c);
        /* Back link of the current TSS. */
        uint32_t link = (uint32_t)bt_read(c, (uint32_t)c->tr.base, 2, 0);
        sys_task_switch(c, link, SYS_TASK_IRET, op->next_rip, false, 0, 0);
    } else {
        sys_return_protected(c, op->opsize, 0, true);
    }
}
