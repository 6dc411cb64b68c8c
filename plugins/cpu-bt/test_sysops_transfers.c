/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_sysops_transfers.c - segments, far transfers, delivery,
 * returns and task switches.
 */
#include "test_sysops.h"

#define C (&B.c)

/* --- segments ---------------------------------------------------------------------------- */
static void load_to(unsigned seg, uint32_t sel)
{
    B.op.reg = (uint8_t)seg;
    B.op.rm = BT_RAX;
    C->gpr[BT_RAX] = sel;
    bt_op_mov_sreg_rm(C, &B.op);
}

static void segment_loads_check_the_descriptor(void **s)
{
    (void)s;
    bench_prot(0);
    OK(load_to(BT_DS, 0));
    assert_true(C->seg[BT_DS].attr & SYS_UNUSABLE);
    RAISES(BT_EX_GP, 0, bt_seg_lin(C, BT_DS, 0, 1, false));
    RAISES(BT_EX_GP, 0, load_to(BT_SS, 0));
    RAISES(BT_EX_GP, S_END, load_to(BT_DS, S_END));
    RAISES(BT_EX_GP, 4, load_to(BT_DS, 7)); /* LDT is null */
    RAISES(BT_EX_NP, S_ABSENT, load_to(BT_DS, S_ABSENT));
    RAISES(BT_EX_SS, S_ABSENT, load_to(BT_SS, S_ABSENT));
    RAISES(BT_EX_GP, S_XONLY, load_to(BT_ES, S_XONLY));
    RAISES(BT_EX_GP, S_RODATA, load_to(BT_SS, S_RODATA | 0));
    RAISES(BT_EX_GP, S_DATA3 & ~3, load_to(BT_SS, S_DATA3));
    RAISES(BT_EX_GP, S_DATA0, load_to(BT_DS, S_DATA0 | 3));
    RAISES(BT_EX_UD, 0, load_to(BT_CS, S_CODE0));
    OK(load_to(BT_FS, S_RODATA | 3));
    assert_int_equal(C->seg[BT_FS].base, DATA);
    assert_int_equal(C->seg[BT_FS].attr, 0x40f1);
    assert_int_equal(get(GDT + S_RODATA + 5, 1), 0xf1); /* accessed */
    assert_int_equal(C->seg_rlimit[BT_FS], 0xff);
    assert_int_equal(C->seg_wlimit[BT_FS], 0);
    assert_int_equal(C->shadow, 0);
    OK(load_to(BT_SS, S_DATA0));
    assert_int_equal(C->shadow, 2);
    /* code conforms: any privilege may read it */
    bench_prot(3);
    OK(load_to(BT_DS, S_CONFORM | 3));
    RAISES(BT_EX_GP, S_DATA0, load_to(BT_DS, S_DATA0));
}

static void null_stack_segment_needs_64_bit_code(void **s)
{
    (void)s;
    bench_long(0);
    OK(load_to(BT_SS, 0));
    assert_int_equal(C->cpl, 0);
    RAISES(BT_EX_GP, 0, load_to(BT_SS, 3));
    bench_long(3);
    RAISES(BT_EX_GP, 0, load_to(BT_SS, 3));
}

static void real_mode_keeps_limits(void **s)
{
    (void)s;
    bench_real();
    C->seg[BT_DS].limit = 0xffffffff; /* unreal */
    OK(load_to(BT_DS, 0x1234));
    assert_int_equal(C->seg[BT_DS].base, 0x12340);
    assert_int_equal(C->seg_rlimit[BT_DS], 0xffffffff);
    assert_false(C->mode & BT_MODE_FLAT);
    RAISES(BT_EX_SS, 0, bt_seg_lin(C, BT_SS, 0xffff, 2, false));
    bench_v86();
    OK(load_to(BT_DS, 0x1234));
    assert_int_equal(C->seg[BT_DS].limit, 0xffff);
    assert_int_equal(C->seg[BT_DS].attr, 0xf3);
}

static void segmented_addresses_are_checked(void **s)
{
    (void)s;
    bench_prot(0);
    assert_true(C->mode & BT_MODE_FLAT);
    assert_true(C->mode & BT_MODE_SS32);
    OK(load_to(BT_ES, S_DOWN));
    assert_false(C->mode & BT_MODE_FLAT);
    RAISES(BT_EX_GP, 0, bt_seg_lin(C, BT_ES, 0x1fff, 1, false));
    OK(assert_int_equal(bt_seg_lin(C, BT_ES, 0x2000, 4, true), DATA + 0x2000));
    RAISES(BT_EX_GP, 0, bt_seg_lin(C, BT_ES, 0xfffffffe, 4, true));
    assert_int_equal(C->seg_rlimit[BT_ES], 0);
    OK(load_to(BT_ES, S_RODATA));
    OK(bt_seg_lin(C, BT_ES, 0xff, 1, false));
    RAISES(BT_EX_GP, 0, bt_seg_lin(C, BT_ES, 0xff, 2, false));
    RAISES(BT_EX_GP, 0, bt_seg_lin(C, BT_ES, 0, 1, true));
    RAISES(BT_EX_GP, 0, bt_seg_lin(C, BT_CS, 0, 1, true));
    bench_long(0);
    assert_false(C->mode & (BT_MODE_FLAT | BT_MODE_SS32));
    OK(assert_int_equal(bt_seg_lin(C, BT_CS, 0x1000, 8, true), 0x1000));
    RAISES(BT_EX_GP, 0, bt_seg_lin(C, BT_DS, 0x800000000000, 1, false));
    RAISES(BT_EX_SS, 0, bt_seg_lin(C, BT_SS, 0x7fffffffffff, 2, false));
    C->seg[BT_GS].base = 0xffff888000000000;
    bt_seg_update(C, BT_GS);
    OK(assert_int_equal(bt_seg_lin(C, BT_GS, 0x10, 8, false), 0xffff888000000010));
}

static void inspection_instructions(void **s)
{
    (void)s;
    bench_prot(3);
    B.op.reg = BT_RBX;
    B.op.rm = BT_RAX;
    C->gpr[BT_RAX] = S_DATA3;
    OK(bt_op_lar(C, &B.op));
    assert_true(bt_rflags(C) & BT_ZF);
    assert_int_equal(C->gpr[BT_RBX], 0xc0f200);
    OK(bt_op_lsl(C, &B.op));
    assert_int_equal(C->gpr[BT_RBX], 0xffffffff);
    OK(bt_op_verw(C, &B.op));
    assert_true(bt_rflags(C) & BT_ZF);
    C->gpr[BT_RAX] = S_DATA0; /* not visible to level 3 */
    C->gpr[BT_RBX] = 5;
    OK(bt_op_lsl(C, &B.op));
    assert_false(bt_rflags(C) & BT_ZF);
    assert_int_equal(C->gpr[BT_RBX], 5);
    OK(bt_op_verr(C, &B.op));
    assert_false(bt_rflags(C) & BT_ZF);
    C->gpr[BT_RBX] = 3;
    C->gpr[BT_RAX] = 0x20;
    OK(bt_op_arpl(C, &B.op));
    assert_int_equal(C->gpr[BT_RAX], 0x23);
    assert_true(bt_rflags(C) & BT_ZF);
    bench_real();
    RAISES(BT_EX_UD, 0, bt_op_lar(C, &B.op));
}

static void table_registers(void **s)
{
    (void)s;
    bench_prot(0);
    B.op.is_mem = 1;
    C->op_ea = DATA;
    put(DATA, 2, 0x1ff);
    put(DATA + 2, 4, 0x87654321);
    OK(bt_op_lidt(C, &B.op));
    assert_int_equal(C->idt_limit, 0x1ff);
    assert_int_equal(C->idt_base, 0x87654321);
    B.op.opsize = 2; /* 24-bit base */
    OK(bt_op_lidt(C, &B.op));
    assert_int_equal(C->idt_base, 0x654321);
    B.op.is_mem = 0;
    B.op.rm = BT_RAX;
    C->gpr[BT_RAX] = S_LDT;
    OK(bt_op_lldt(C, &B.op));
    assert_int_equal(C->ldtr.base, LDT);
    C->gpr[BT_RAX] = S_TSS;
    RAISES(BT_EX_GP, S_TSS, bt_op_ltr(C, &B.op)); /* busy */
    C->gpr[BT_RAX] = S_TSS2;
    OK(bt_op_ltr(C, &B.op));
    assert_int_equal(get(GDT + S_TSS2 + 5, 1), 0x8b);
    bench_prot(3);
    RAISES(BT_EX_GP, 0, bt_op_lgdt(C, &B.op));
    bench_long(0);
    B.op.is_mem = 1;
    C->op_ea = DATA;
    put(DATA + 2, 8, 0x800000000000);
    RAISES(BT_EX_GP, 0, bt_op_lgdt(C, &B.op)); /* not canonical */
}

/* --- far transfers ---------------------------------------------------------------------------- */
static void far_to(uint32_t sel, uint64_t off, bool call)
{
    B.op.imm = off;
    B.op.imm2 = sel;
    if (call)
        bt_op_call_far_imm(C, &B.op);
    else
        bt_op_jmp_far_imm(C, &B.op);
}

static void far_jumps_check_privilege(void **s)
{
    (void)s;
    bench_prot(0);
    OK(far_to(S_CODE16, 0x123, false));
    assert_int_equal(C->rip, 0x123);
    assert_int_equal(C->mode & BT_MODE_CODE, BT_MODE_CODE16);
    assert_int_equal(C->seg_base[BT_CS], CODE);
    bench_prot(0);
    RAISES(BT_EX_GP, 0, far_to(0, 0, false));
    RAISES(BT_EX_GP, S_DATA0, far_to(S_DATA0, 0, false));
    RAISES(BT_EX_GP, S_CODE3 & ~3, far_to(S_CODE3, 0, false));
    RAISES(BT_EX_GP, 0, far_to(S_CODE16, 0x10000, false)); /* past the limit */
    assert_int_equal(C->rip, 0x1000);
    assert_int_equal(C->seg[BT_CS].selector, S_CODE0);
    bench_prot(3);
    RAISES(BT_EX_GP, S_CODE0, far_to(S_CODE0, 0, false));
    OK(far_to(S_CONFORM, 0x55, false));
    assert_int_equal(C->seg[BT_CS].selector, S_CONFORM | 3);
    assert_int_equal(C->cpl, 3);
    bench_real();
    OK(far_to(0x1234, 0x5678, true));
    assert_int_equal(C->seg[BT_CS].base, 0x12340);
    assert_int_equal(C->gpr[BT_RSP], 0xffc);
    assert_int_equal(stack(0, 2), 0x1002);
    assert_int_equal(stack(1, 2), CODE >> 4);
}

static void call_and_return_at_one_level(void **s)
{
    (void)s;
    bench_prot(0);
    uint64_t sp = C->gpr[BT_RSP];
    OK(far_to(S_CODE16, 0x10, true));
    assert_int_equal(C->gpr[BT_RSP], sp - 8);
    B.op.opsize = 4;
    B.op.imm = 4;
    OK(bt_op_ret_far(C, &B.op));
    assert_int_equal(C->rip, 0x1002);
    assert_int_equal(C->gpr[BT_RSP], sp + 4);
    assert_int_equal(C->seg[BT_CS].selector, S_CODE0);
}

static void call_gate_switches_stacks_and_copies(void **s)
{
    (void)s;
    bench_prot(3);
    put(GDT + S_GATE, 8, gate(S_CODE0, 0x4444, SYS_CALL32, 3) | 2ull << 32);
    C->gpr[BT_RSP] -= 8;
    put(C->gpr[BT_RSP], 4, 0xaaaa);
    put(C->gpr[BT_RSP] + 4, 4, 0xbbbb);
    uint64_t user = C->gpr[BT_RSP];
    OK(far_to(S_GATE | 3, 0, true));
    assert_int_equal(C->cpl, 0);
    assert_int_equal(C->rip, 0x4444);
    assert_int_equal(C->gpr[BT_RSP], STACK0 - 24);
    assert_int_equal(stack(0, 4), 0x1002);
    assert_int_equal(stack(1, 4), S_CODE3);
    assert_int_equal(stack(2, 4), 0xaaaa);
    assert_int_equal(stack(3, 4), 0xbbbb);
    assert_int_equal(stack(4, 4), user);
    assert_int_equal(stack(5, 4), S_DATA3);
    assert_int_equal(C->seg[BT_SS].selector, S_DATA0);
    /* Back out: level-0 data segments are lost, both stacks lose the parameters. */
    load_to(BT_GS, S_DATA0);
    B.op.imm = 8;
    OK(bt_op_ret_far(C, &B.op));
    assert_int_equal(C->cpl, 3);
    assert_int_equal(C->gpr[BT_RSP], user + 8);
    assert_int_equal(C->seg[BT_GS].selector, 0);
    assert_int_equal(C->seg[BT_DS].selector, S_DATA3);
    /* Gate beyond reach, absent, and JMP to an inner level */
    put(GDT + S_GATE, 8, gate(S_CODE0, 0x4444, SYS_CALL32, 0));
    RAISES(BT_EX_GP, S_GATE, far_to(S_GATE | 3, 0, true));
    put(GDT + S_GATE, 8, gate(S_CODE0, 0x4444, SYS_CALL32, 3) & ~(1ull << 47));
    RAISES(BT_EX_NP, S_GATE, far_to(S_GATE | 3, 0, true));
    put(GDT + S_GATE, 8, gate(S_CODE0, 0x4444, SYS_CALL32, 3));
    RAISES(BT_EX_GP, S_CODE0, far_to(S_GATE | 3, 0, false));
    put(TSS + 8, 2, S_DATA3);
    RAISES(BT_EX_TS, S_DATA3 & ~3, far_to(S_GATE | 3, 0, true));
    assert_int_equal(C->cpl, 3);
}

static void call_gate_in_long_mode(void **s)
{
    (void)s;
    bench_long(3);
    put(GDT + S_GATE, 8, gate(S_CODE64, 0x5000, SYS_CALL32, 3));
    put(GDT + S_GATE + 8, 8, 0);
    B.op.opsize = 4;
    OK(far_to(S_GATE | 3, 0, true));
    assert_int_equal(C->cpl, 0);
    assert_int_equal(C->gpr[BT_RSP], STACK0 - 32);
    assert_int_equal(stack(3, 8), S_DATA3);
    assert_int_equal(stack(2, 8), STACK3);
    assert_int_equal(C->seg[BT_SS].selector, 0);
    B.op.opsize = 8;
    B.op.imm = 0;
    OK(bt_op_ret_far(C, &B.op));
    assert_int_equal(C->cpl, 3);
    assert_int_equal(C->gpr[BT_RSP], STACK3);
}

/* --- delivery ---------------------------------------------------------------------------------------- */
static void real_mode_delivery(void **s)
{
    (void)s;
    bench_real();
    put(0x21 * 4, 4, 0x12345678);
    C->iflag = 1;
    C->sysflags |= BT_TF;
    B.op.imm = 0x21;
    OK(bt_op_int_n(C, &B.op));
    assert_int_equal(C->rip, 0x5678);
    assert_int_equal(C->seg[BT_CS].base, 0x12340);
    assert_int_equal(stack(0, 2), 0x1002);
    assert_int_equal(stack(1, 2), CODE >> 4);
    assert_int_equal(stack(2, 2), BT_IF | BT_TF | 2);
    assert_int_equal(C->iflag, 0);
    assert_false(C->sysflags & BT_TF);
    OK(bt_op_iret(C, &B.op));
    assert_int_equal(C->rip, 0x1002);
    assert_int_equal(C->iflag, 1);
    assert_int_equal(C->gpr[BT_RSP], 0x1000);
    C->idt_limit = 0x21 * 4 + 2;
    RUN(bt_op_int_n(C, &B.op));
    assert_int_equal(B.vector, BT_EX_GP);
    assert_int_equal(C->rip, 0x1002);
}

static void protected_delivery_at_one_level(void **s)
{
    (void)s;
    bench_prot(0);
    idt32(14, gate(S_CODE0, 0x7000, SYS_INT32, 0));
    idt32(0x80, gate(S_CODE0, 0x7100, SYS_TRAP32, 3));
    idt32(0x81, gate(S_CODE0, 0x7200, SYS_INT16, 0));
    C->iflag = 1;
    uint64_t sp = C->gpr[BT_RSP];
    OK(bt_deliver(C, 14, false, true, 0x55));
    assert_int_equal(C->gpr[BT_RSP], sp - 16);
    assert_int_equal(stack(0, 4), 0x55);
    assert_int_equal(stack(1, 4), 0x1000);
    assert_int_equal(stack(2, 4), S_CODE0);
    assert_int_equal(stack(3, 4), BT_RF | BT_IF | 2); /* a fault */
    assert_int_equal(C->iflag, 0);
    bench_prot(0);
    idt32(0x80, gate(S_CODE0, 0x7100, SYS_TRAP32, 3));
    C->iflag = 1;
    B.op.imm = 0x80;
    OK(bt_op_int_n(C, &B.op));
    assert_int_equal(C->iflag, 1); /* trap gate */
    assert_int_equal(stack(0, 4), 0x1002);
    assert_int_equal(stack(2, 4), BT_IF | 2);
    bench_prot(0);
    idt32(0x81, gate(S_CODE0, 0x7200, SYS_INT16, 0));
    sp = C->gpr[BT_RSP];
    OK(bt_deliver(C, 0x81, false, false, 0));
    assert_int_equal(C->gpr[BT_RSP], sp - 6);
    assert_int_equal(C->rip, 0x7200);
}

static void delivery_failures_carry_exact_codes(void **s)
{
    (void)s;
    bench_prot(3);
    idt32(0x30, gate(S_CODE0, 0x7000, SYS_INT32, 0));
    idt32(0x31, gate(S_CODE0, 0x7000, SYS_INT32, 3) & ~(1ull << 47));
    idt32(0x32, gate(0, 0x7000, SYS_INT32, 3));
    idt32(0x33, gate(S_DATA0, 0x7000, SYS_INT32, 3));
    idt32(0x34, gate(S_END, 0x7000, SYS_INT32, 3));
    idt32(0x35, gate(S_CODE0, 0x7000, SYS_LDT, 3));
    idt32(0x36, gate(S_CODE0, 0x7000, SYS_INT32, 3));
#define SOFT(v) (B.op.imm = (v), bt_op_int_n(C, &B.op))
    RAISES(BT_EX_GP, 0x30 * 8 + 2, SOFT(0x30)); /* DPL */
    assert_int_equal(C->rip, 0x1000);           /* at the instruction */
    RAISES(BT_EX_NP, 0x31 * 8 + 2, SOFT(0x31));
    RAISES(BT_EX_GP, 0, SOFT(0x32));
    RAISES(BT_EX_GP, S_DATA0, SOFT(0x33));
    RAISES(BT_EX_GP, S_END, SOFT(0x34));
    RAISES(BT_EX_GP, 0x35 * 8 + 2, SOFT(0x35));
    RAISES(BT_EX_GP, 0x30 * 8 + 3, bt_deliver((C->idt_limit = 0x30 * 8 + 6, C), 0x30, false, false, 0));
    C->idt_limit = 0xfff;
    RAISES(BT_EX_NP, 0x31 * 8 + 3, bt_deliver(C, 0x31, false, false, 0));
    C->tr.limit = 8;
    RAISES(BT_EX_TS, S_TSS | 1, bt_deliver(C, 0x30, false, false, 0));
    RAISES(BT_EX_TS, S_TSS, SOFT(0x36));
    C->tr.limit = 0x67;
    put(TSS + 8, 2, S_ABSENT);
    RAISES(BT_EX_SS, S_ABSENT | 1, bt_deliver(C, 0x30, false, false, 0));
    put(TSS + 8, 2, 0);
    RAISES(BT_EX_TS, 1, bt_deliver(C, 0x30, false, false, 0));
    put(TSS + 8, 2, S_DATA0);
    B.pf_page = STACK0 - 0x1000;
    RAISES(BT_EX_PF, 2, bt_deliver(C, 0x30, false, false, 0)); /* supervisor write */
    assert_int_equal(C->cpl, 3);
    assert_int_equal(C->gpr[BT_RSP], STACK3);
    assert_int_equal(C->rip, 0x1000);
}

static void inner_delivery_and_iret(void **s)
{
    (void)s;
    bench_prot(3);
    idt32(13, gate(S_CODE0, 0x7000, SYS_INT32, 0));
    C->iflag = 1;
    C->sysflags |= BT_AC | BT_NT;
    OK(bt_deliver(C, 13, false, true, 0x18));
    assert_int_equal(C->cpl, 0);
    assert_int_equal(C->gpr[BT_RSP], STACK0 - 24);
    assert_int_equal(stack(4, 4), STACK3);
    assert_int_equal(stack(5, 4), S_DATA3);
    assert_false(C->sysflags & BT_NT);
    assert_true(C->sysflags & BT_AC);
    assert_int_equal(get(GDT + S_DATA0 + 5, 1), 0x93);
    C->gpr[BT_RSP] += 4;
    OK(load_to(BT_FS, S_DATA0));
    put(C->gpr[BT_RSP] + 8, 4, BT_IF | BT_CF | BT_IOPL | 2);
    OK(bt_op_iret(C, &B.op));
    assert_int_equal(C->cpl, 3);
    assert_int_equal(C->rip, 0x1000);
    assert_int_equal(C->gpr[BT_RSP], STACK3);
    assert_int_equal(C->seg[BT_FS].selector, 0);
    assert_int_equal(bt_rflags(C), BT_IF | BT_CF | BT_IOPL | 2);
}

static void iret_refuses_bad_frames(void **s)
{
    (void)s;
    bench_prot(0);
    C->gpr[BT_RSP] -= 20;
    uint64_t sp = C->gpr[BT_RSP];
#define FRAME(ip, cs, fl, esp, ss)                                                                                 \
    (put(sp, 4, ip), put(sp + 4, 4, cs), put(sp + 8, 4, fl), put(sp + 12, 4, esp), put(sp + 16, 4, ss),            \
     bt_op_iret(C, &B.op))
    RAISES(BT_EX_GP, 0, FRAME(0, 0, 2, 0, 0));
    RAISES(BT_EX_GP, S_DATA0, FRAME(0, S_DATA0, 2, 0, 0));
    RAISES(BT_EX_GP, S_CODE3 & ~3, FRAME(0, S_CODE3 & ~3, 2, 0, 0)); /* RPL != DPL */
    RAISES(BT_EX_GP, 0, FRAME(0, S_CODE3, 2, 0, 0));
    RAISES(BT_EX_GP, S_DATA0, FRAME(0, S_CODE3, 2, 0, S_DATA0));
    RAISES(BT_EX_GP, S_CODE3 & ~3, FRAME(0, S_CODE3, 2, 0, S_CODE3));
    RAISES(BT_EX_GP, 0, FRAME(0x10000, S_CODE16, 2, 0, 0));
    assert_int_equal(C->gpr[BT_RSP], sp);
    assert_int_equal(C->cpl, 0);
    bench_prot(3);
    sp = C->gpr[BT_RSP] -= 12;
    RAISES(BT_EX_GP, S_CODE0, FRAME(0, S_CODE0, 2, 0, 0)); /* inward */
    /* IOPL and IF stay at level 3 */
    C->iflag = 1;
    OK(FRAME(0x99, S_CODE3, BT_IOPL | 2, 0, 0));
    assert_int_equal(bt_rflags(C), BT_IF | 2);
    assert_int_equal(C->gpr[BT_RSP], STACK3);
}

static void v86_delivery_and_return(void **s)
{
    (void)s;
    bench_v86();
    idt32(0x21, gate(S_CODE0, 0x7000, SYS_INT32, 3));
    B.op.imm = 0x21;
    RAISES(BT_EX_GP, 0, bt_op_int_n(C, &B.op)); /* IOPL 0 */
    RAISES(BT_EX_GP, 0, bt_op_pushf(C, &B.op));
    RAISES(BT_EX_GP, 0, bt_op_cli(C, &B.op));
    RAISES(BT_EX_GP, 0, bt_op_iret(C, &B.op));
    C->sysflags |= BT_IOPL;
    OK(bt_op_int_n(C, &B.op));
    assert_int_equal(C->cpl, 0);
    assert_false(bt_vm86(C));
    assert_int_equal(C->gpr[BT_RSP], STACK0 - 36);
    assert_int_equal(stack(1, 4), 0x3000 + BT_CS * 0x100);
    assert_int_equal(stack(2, 4), BT_VM | BT_IOPL | 2);
    assert_int_equal(stack(4, 4), 0x3000 + BT_SS * 0x100);
    assert_int_equal(stack(5, 4), 0x3000 + BT_ES * 0x100);
    assert_int_equal(stack(8, 4), 0x3000 + BT_GS * 0x100);
    assert_int_equal(C->seg[BT_DS].selector, 0);
    B.op.opsize = 4;
    OK(bt_op_iret(C, &B.op));
    assert_true(bt_vm86(C));
    assert_int_equal(C->cpl, 3);
    assert_int_equal(C->rip, 0x1002);
    assert_int_equal(C->gpr[BT_RSP], 0x1000);
    assert_int_equal(C->seg[BT_GS].base, (0x3000 + BT_GS * 0x100) << 4);
    assert_int_equal(C->seg_base[BT_CS], (0x3000 + BT_CS * 0x100) << 4);
    /* A handler that is not level 0 */
    idt32(0x22, gate(S_CODE3 & ~3, 0x7000, SYS_INT32, 3));
    RAISES(BT_EX_GP, (S_CODE3 & ~3) | 1, bt_deliver(C, 0x22, false, false, 0));
}

static void long_mode_delivery(void **s)
{
    (void)s;
    for (unsigned split = 0; split < 2; split++) { /* the frame in one page of memory, or not */
        bench_long(3);
        if (split)
            B.no_ptr_page = STACK0 - 0x1000;
        idt64(14, S_CODE64, 0x12345678, SYS_INT32, 0, 0);
        C->gpr[BT_RSP] = STACK3 - 3;
        OK(bt_deliver(C, 14, false, true, 7));
        assert_int_equal(C->gpr[BT_RSP], STACK0 - 48);
        assert_int_equal(stack(0, 8), 7);
        assert_int_equal(stack(1, 8), 0x1000);
        assert_int_equal(stack(2, 8), S_CODE64_3);
        assert_int_equal(stack(3, 8), BT_RF | 2);
        assert_int_equal(stack(4, 8), STACK3 - 3);
        assert_int_equal(stack(5, 8), S_DATA3);
        assert_int_equal(C->seg[BT_SS].selector, 0);
        C->gpr[BT_RSP] += 8;
        OK(bt_op_iret(C, &B.op));
        assert_int_equal(C->gpr[BT_RSP], STACK3 - 3);
        assert_int_equal(C->cpl, 3);
        assert_int_equal(C->seg[BT_SS].selector, S_DATA3);
    }
    /* IST from level 0: aligned, SS stays */
    bench_long(0);
    idt64(2, S_CODE64, 0x9000, SYS_INT32, 0, 1);
    uint64_t sp = C->gpr[BT_RSP];
    OK(bt_deliver(C, 2, false, false, 0));
    assert_int_equal(C->gpr[BT_RSP], STACK0 + 0x5000 - 40);
    assert_int_equal(stack(3, 8), sp);
    assert_int_equal(C->seg[BT_SS].selector, S_DATA0);
    OK(bt_op_iret(C, &B.op));
    assert_int_equal(C->gpr[BT_RSP], sp);
}

static void long_mode_delivery_failures(void **s)
{
    (void)s;
    bench_long(3);
    idt64(0x40, S_CODE0, 0x9000, SYS_INT32, 3, 0);
    RAISES(BT_EX_GP, S_CODE0 | 1, bt_deliver(C, 0x40, false, false, 0)); /* not 64-bit code */
    idt64(0x40, S_CODE64, 0x800000000000, SYS_INT32, 3, 0);
    RAISES(BT_EX_GP, 1, bt_deliver(C, 0x40, false, false, 0));
    idt64(0x40, S_CODE64, 0x9000, SYS_INT16, 3, 0);
    RAISES(BT_EX_GP, 0x40 * 8 + 3, bt_deliver(C, 0x40, false, false, 0));
    idt64(0x40, S_CODE64, 0x9000, SYS_INT32, 3, 0);
    put(TSS + 4, 8, 0x800000000000);
    RAISES(BT_EX_SS, 1, bt_deliver(C, 0x40, false, false, 0));
    put(TSS + 4, 8, STACK0);
    C->idt_limit = 0x40 * 16 + 14;
    RAISES(BT_EX_GP, 0x40 * 8 + 3, bt_deliver(C, 0x40, false, false, 0));
    C->idt_limit = 0xfff;
    C->tr.limit = 0x20;
    idt64(0x40, S_CODE64, 0x9000, SYS_INT32, 3, 1);
    RAISES(BT_EX_TS, S_TSS | 1, bt_deliver(C, 0x40, false, false, 0));
    assert_int_equal(C->cpl, 3);
    bench_long(0);
    C->sysflags |= BT_NT;
    RAISES(BT_EX_GP, 0, bt_op_iret(C, &B.op));
}

static void long_mode_iret_to_compatibility_code(void **s)
{
    (void)s;
    bench_long(0);
    uint64_t sp = C->gpr[BT_RSP] -= 40;
    put(sp, 8, 0x1234);
    put(sp + 8, 8, S_CODE32C_3);
    put(sp + 16, 8, BT_IF | 2);
    put(sp + 24, 8, 0x1000ffff0);
    put(sp + 32, 8, S_DATA3);
    OK(bt_op_iret(C, &B.op));
    assert_int_equal(C->mode & BT_MODE_CODE, BT_MODE_CODE32);
    assert_int_equal(C->gpr[BT_RSP], 0xffff0);
    assert_true(C->mode & BT_MODE_SS32);
    /* interrupt from there, and back */
    idt64(0x40, S_CODE64, 0x9000, SYS_INT32, 3, 0);
    OK(bt_deliver(C, 0x40, false, false, 0));
    assert_true(bt_code64(C));
    assert_int_equal(stack(3, 8), 0xffff0);
    OK(bt_op_iret(C, &B.op));
    assert_false(bt_code64(C));
    assert_int_equal(C->rip, 0x1234);
    /* SS may be null for 64-bit code below level 3 only */
    bench_long(0);
    sp = C->gpr[BT_RSP] -= 40;
    put(sp + 8, 8, S_CODE64);
    put(sp + 16, 8, 2);
    put(sp + 24, 8, 0x50000);
    put(sp + 32, 8, 0);
    put(sp, 8, 0x800000000000);
    RAISES(BT_EX_GP, 0, bt_op_iret(C, &B.op));
    put(sp, 8, 0x1234);
    OK(bt_op_iret(C, &B.op));
    assert_int_equal(C->gpr[BT_RSP], 0x50000);
    assert_true(C->seg[BT_SS].attr & SYS_UNUSABLE);
}

/* --- tasks ------------------------------------------------------------------------------------------------ */
static void make_task(void)
{
    put(TSS2 + 32, 4, 0x4321);
    put(TSS2 + 36, 4, BT_IF | 2);
    for (unsigned i = 0; i < 8; i++)
        put(TSS2 + 40 + 4 * i, 4, 0x100 + i);
    put(TSS2 + 40 + 4 * BT_RSP, 4, STACK3);
    for (unsigned i = 0; i < 6; i++)
        put(TSS2 + 72 + 4 * i, 4, i == BT_CS ? S_CODE3 : S_DATA3);
    put(TSS2 + 96, 4, S_LDT);
}

static void task_call_and_return(void **s)
{
    (void)s;
    bench_prot(0);
    make_task();
    C->gpr[BT_RAX] = 0xabcdef;
    uint64_t sp = C->gpr[BT_RSP];
    OK(far_to(S_TSS2, 0, true));
    assert_int_equal(C->rip, 0x4321);
    assert_int_equal(C->cpl, 3);
    assert_int_equal(C->gpr[BT_RAX], 0x100);
    assert_int_equal(C->gpr[BT_RSP], STACK3);
    assert_int_equal(C->tr.selector, S_TSS2);
    assert_int_equal(C->ldtr.selector, S_LDT);
    assert_int_equal(bt_rflags(C), BT_NT | BT_IF | 2);
    assert_int_equal(get(TSS2, 2), S_TSS);
    assert_int_equal(get(GDT + S_TSS2 + 5, 1), 0x8b);
    assert_int_equal(get(GDT + S_TSS + 5, 1), 0x8b); /* stays busy */
    assert_int_equal(get(TSS + 32, 4), 0x1002);
    assert_int_equal(get(TSS + 40, 4), 0xabcdef);
    assert_true(C->cr0 & BT_CR0_TS);
    B.op.next_rip = 0x4323;
    OK(bt_op_iret(C, &B.op));
    assert_int_equal(C->tr.selector, S_TSS);
    assert_int_equal(C->cpl, 0);
    assert_int_equal(C->rip, 0x1002);
    assert_int_equal(C->gpr[BT_RAX], 0xabcdef);
    assert_int_equal(C->gpr[BT_RSP], sp);
    assert_int_equal(get(GDT + S_TSS2 + 5, 1), 0x89);
    assert_int_equal(get(TSS2 + 32, 4), 0x4323);
    assert_false(get(TSS2 + 36, 4) & BT_NT);
}

static void task_jump_and_refusals(void **s)
{
    (void)s;
    bench_prot(0);
    make_task();
    RAISES(BT_EX_GP, S_TSS, far_to(S_TSS, 0, false)); /* busy */
    put(GDT + S_TSS2, 8, desc(TSS2, 0x60, 0x89));
    RAISES(BT_EX_TS, S_TSS2, far_to(S_TSS2, 0, false));
    put(GDT + S_TSS2, 8, desc(TSS2, 0x67, 0x09));
    RAISES(BT_EX_NP, S_TSS2, far_to(S_TSS2, 0, false));
    put(GDT + S_TSS2, 8, desc(TSS2, 0x67, 0x89));
    assert_int_equal(C->tr.selector, S_TSS);
    OK(far_to(S_TSS2, 0, false));
    assert_int_equal(get(GDT + S_TSS + 5, 1), 0x89); /* free again */
    assert_false(C->sysflags & BT_NT);
    /* A bad segment in the image faults in the new task */
    bench_prot(0);
    make_task();
    put(TSS2 + 72 + 4 * BT_CS, 4, S_CODE0);
    put(TSS2 + 72 + 4 * BT_SS, 4, S_DATA0);
    put(TSS2 + 72 + 4 * BT_DS, 4, S_ABSENT);
    RAISES(BT_EX_NP, S_ABSENT, far_to(S_TSS2, 0, false));
    assert_int_equal(C->tr.selector, S_TSS2);
    assert_int_equal(C->rip, 0x4321);
}

static void task_gate_pushes_the_error_code(void **s)
{
    (void)s;
    bench_prot(3);
    make_task();
    idt32(8, gate(S_TSS2, 0, SYS_TASK_GATE, 0));
    OK(bt_deliver(C, 8, false, true, 0));
    assert_int_equal(C->gpr[BT_RSP], STACK3 - 4);
    assert_int_equal(C->tr.selector, S_TSS2);
    assert_true(C->sysflags & BT_NT);
    assert_int_equal(get(TSS + 32, 4), 0x1000);
}

static void task_switch_between_widths(void **s)
{
    (void)s;
    bench_prot(0);
    put(GDT + S_TSS2, 8, desc(TSS2, 0x2b, 0x81)); /* 16-bit */
    put(TSS2 + 14, 2, 0x4321);
    put(TSS2 + 16, 2, 2);
    for (unsigned i = 0; i < 8; i++)
        put(TSS2 + 18 + 2 * i, 2, 0x100 + i);
    for (unsigned i = 0; i < 4; i++)
        put(TSS2 + 34 + 2 * i, 2, i == BT_CS ? S_CODE0 : S_DATA0);
    OK(far_to(S_TSS2, 0, true));
    assert_int_equal(C->rip, 0x4321);
    assert_int_equal(C->gpr[BT_RBX] & 0xffff, 0x103);
    assert_true(C->seg[BT_FS].attr & SYS_UNUSABLE);
    OK(bt_op_iret(C, &B.op));
    assert_int_equal(C->tr.selector, S_TSS);
    assert_int_equal(get(GDT + S_TSS2 + 5, 1), 0x81);
}

int test_transfers(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(segment_loads_check_the_descriptor),
        cmocka_unit_test(null_stack_segment_needs_64_bit_code),
        cmocka_unit_test(real_mode_keeps_limits),
        cmocka_unit_test(segmented_addresses_are_checked),
        cmocka_unit_test(inspection_instructions),
        cmocka_unit_test(table_registers),
        cmocka_unit_test(far_jumps_check_privilege),
        cmocka_unit_test(call_and_return_at_one_level),
        cmocka_unit_test(call_gate_switches_stacks_and_copies),
        cmocka_unit_test(call_gate_in_long_mode),
        cmocka_unit_test(real_mode_delivery),
        cmocka_unit_test(protected_delivery_at_one_level),
        cmocka_unit_test(delivery_failures_carry_exact_codes),
        cmocka_unit_test(inner_delivery_and_iret),
        cmocka_unit_test(iret_refuses_bad_frames),
        cmocka_unit_test(v86_delivery_and_return),
        cmocka_unit_test(long_mode_delivery),
        cmocka_unit_test(long_mode_delivery_failures),
        cmocka_unit_test(long_mode_iret_to_compatibility_code),
        cmocka_unit_test(task_call_and_return),
        cmocka_unit_test(task_jump_and_refusals),
        cmocka_unit_test(task_gate_pushes_the_error_code),
        cmocka_unit_test(task_switch_between_widths),
    };
    return cmocka_run_group_tests_name("segments, transfers, delivery, tasks", tests, NULL, NULL);
}
