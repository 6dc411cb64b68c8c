/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/op_misc.c - PUSHA POPA ENTER BOUND XLAT, decimal adjustment,
 * CMPXCHG16B, MOVDIR64B.
 */
#include "sys.h"

/* --- stack oddities ---------------------------------------------------------------- */
void bt_op_pusha(struct bt_vcpu *c, const struct bt_op *op)
{
    struct sys_stack k;
    sys_stack_current(c, &k, 0);
    for (unsigned i = 0; i < 8; i++) /* RSP is pushed as it was: k.sp moves, gpr does not */
        sys_push(c, &k, op->opsize, c->gpr[i]);
    sys_stack_commit(c, &k);
}

void bt_op_popa(struct bt_vcpu *c, const struct bt_op *op)
{
    struct sys_stack k;
    uint64_t v[8];
    sys_stack_current(c, &k, 0);
    for (unsigned i = 8; i-- > 0;)
        v[i] = sys_pop(c, &k, op->opsize);
    for (unsigned i = 0; i < 8; i++)
        if (i != BT_RSP)
            bt_reg_set(c, i, op->opsize, 0, v[i]);
    sys_stack_commit(c, &k);
}

void bt_op_enter(struct bt_vcpu *c, const struct bt_op *op)
{
    struct sys_stack k, b;
    unsigned level = op->imm2 & 31;

    sys_stack_current(c, &k, 0);
    sys_push(c, &k, op->opsize, c->gpr[BT_RBP]);
    uint64_t frame = k.sp;
    b = k;
    b.sp = c->gpr[BT_RBP] & k.mask;
    for (unsigned i = 1; i < level; i++) {
        b.sp = (b.sp - op->opsize) & k.mask;
        sys_push(c, &k, op->opsize, sys_peek(c, &b, 0, op->opsize));
    }
    if (level)
        sys_push(c, &k, op->opsize, frame);
    k.sp = (k.sp - (op->imm & 0xffff)) & k.mask;
    /* The manual wants a fault when the new frame's end is not writable. */
    bt_probe(c, bt_seg_lin(c, BT_SS, k.sp, op->opsize, true), op->opsize, k.acc | BT_ACC_WRITE);
    bt_reg_set(c, BT_RBP, op->opsize, 0, frame);
    sys_stack_commit(c, &k);
}

/* --- BOUND XLAT SALC ------------------------------------------------------------------- */
static int64_t sign(uint64_t v, unsigned size) { return size == 2 ? (int16_t)v : (int32_t)v; }

void bt_op_bound(struct bt_vcpu *c, const struct bt_op *op)
{
    if (!op->is_mem)
        bt_raise(c, BT_EX_UD);
    unsigned n = op->opsize;
    uint64_t lin = sys_mem_lin(c, op, 2 * n, false);
    int64_t low = sign(bt_read(c, lin, n, bt_acc(c)), n), high = sign(bt_read(c, lin + n, n, bt_acc(c)), n);
    int64_t v = sign(bt_reg_get(c, op->reg, n, 0), n);
    if (v < low || v > high)
        bt_raise(c, BT_EX_BR);
}

void bt_op_xlat(struct bt_vcpu *c, const struct bt_op *op)
{
    uint64_t off = (c->gpr[BT_RBX] + (c->gpr[BT_RAX] & 0xff)) & sys_mask(op->addrsize);
    uint64_t v = bt_read(c, bt_seg_lin(c, op->seg, off, 1, false), 1, bt_acc(c));
    bt_reg_set(c, BT_RAX, 1, 0, v);
}

void bt_op_salc(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    bt_reg_set(c, BT_RAX, 1, 0, bt_rflags(c) & BT_CF ? 0xff : 0);
}

/* --- decimal adjustment ------------------------------------------------------------------- */
/* SF ZF PF of a byte, with CF, AF and OF given. */
static void set_bcd_flags(struct bt_vcpu *c, uint8_t v, uint32_t extra)
{
    uint32_t f = extra | (v & 0x80 ? BT_SF : 0) | (v ? 0 : BT_ZF) | (__builtin_parity(v) ? 0 : BT_PF);
    sys_set_flags(c, BT_ARITH, f);
}

/* OF of old + by = sum, or old - by = sum; `sign_bit` is that of their width. */
static uint32_t overflow(uint32_t old, uint32_t by, uint32_t sum, bool subtract, uint32_t sign_bit)
{
    return (subtract ? (old ^ by) & (old ^ sum) : (old ^ sum) & (by ^ sum)) & sign_bit ? BT_OF : 0;
}

/* What is undefined of the flags, as found on processors: Intel's have those of AL
 * as it becomes, AMD's (family 25) those of the 16-bit addition. */
static void adjust_ascii(struct bt_vcpu *c, bool subtract)
{
    uint32_t ax = c->gpr[BT_RAX] & 0xffff, old = ax, by = 0, f = 0;
    if ((ax & 15) > 9 || (bt_rflags(c) & BT_AF)) {
        by = 0x106;
        f = BT_AF | BT_CF;
    }
    ax = (subtract ? ax - by : ax + by) & 0xffff;
    bt_reg_set(c, BT_RAX, 2, 0, ax & 0xff0f);
    if (!c->vm->amd)
        set_bcd_flags(c, ax & 0x0f, f);
    else
        sys_set_flags(c, BT_ARITH,
                      f | (ax & 0x8000 ? BT_SF : 0) | (ax ? 0 : BT_ZF) | (__builtin_parity(ax & 0xff) ? 0 : BT_PF) |
                          overflow(old, by, ax, subtract, 0x8000));
}

void bt_op_aaa(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    adjust_ascii(c, false);
}

void bt_op_aas(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    adjust_ascii(c, true);
}

void bt_op_aam(struct bt_vcpu *c, const struct bt_op *op)
{
    uint8_t base = (uint8_t)op->imm, al = (uint8_t)c->gpr[BT_RAX];
    if (!base)
        bt_raise(c, BT_EX_DE);
    uint32_t ax = (uint32_t)(al / base) << 8 | al % base;
    bt_reg_set(c, BT_RAX, 2, 0, ax);
    set_bcd_flags(c, (uint8_t)ax, 0);
}

void bt_op_aad(struct bt_vcpu *c, const struct bt_op *op)
{
    uint8_t al = (uint8_t)c->gpr[BT_RAX], ah = (uint8_t)(c->gpr[BT_RAX] >> 8);
    unsigned product = (uint8_t)(ah * (uint8_t)op->imm), sum = al + product;
    /* AF, CF and OF are undefined; as found on processors, those of the addition. */
    uint32_t f = ((al ^ product ^ sum) & BT_AF) | (sum >> 8 ? BT_CF : 0) |
                 ((al ^ sum) & (product ^ sum) & 0x80 ? BT_OF : 0);
    bt_reg_set(c, BT_RAX, 2, 0, sum & 0xff);
    set_bcd_flags(c, (uint8_t)sum, f);
}

static void adjust_decimal(struct bt_vcpu *c, bool subtract)
{
    uint8_t al = (uint8_t)c->gpr[BT_RAX], old = al;
    uint32_t in = bt_rflags(c), f = 0;

    if ((al & 15) > 9 || (in & BT_AF)) {
        /* The carry out of this step counts, too. */
        if (subtract ? al < 6 : al > 0xf9)
            f |= BT_CF;
        al = (uint8_t)(subtract ? al - 6 : al + 6);
        f |= BT_AF | (in & BT_CF);
    }
    if (old > 0x99 || (in & BT_CF)) {
        al = (uint8_t)(subtract ? al - 0x60 : al + 0x60);
        f |= BT_CF;
    } else if (!subtract) {
        f &= ~BT_CF;
    }
    bt_reg_set(c, BT_RAX, 1, 0, al);
    if (c->vm->amd) /* undefined; as found, that of the whole addition */
        f |= overflow(old, (uint8_t)(subtract ? old - al : al - old), al, subtract, 0x80);
    set_bcd_flags(c, al, f);
}

void bt_op_daa(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    adjust_decimal(c, false);
}

void bt_op_das(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    adjust_decimal(c, true);
}

/* --- CMPXCHG16B and MOVDIR64B --------------------------------------------------------------- */
void bt_op_cmpxchg16b(struct bt_vcpu *c, const struct bt_op *op)
{
    if (!op->is_mem)
        bt_raise(c, BT_EX_UD);
    uint64_t lin = sys_mem_lin(c, op, 16, true), lo = c->gpr[BT_RAX], hi = c->gpr[BT_RDX];
    unsigned acc = bt_acc(c) | BT_ACC_WRITE;
    bool equal;

    if (lin & 15)
        sys_gp0(c);
    void *p = bt_host_ptr(c, lin, 16, acc);
    if (p) {
        __asm__ volatile("lock cmpxchg16b (%3)"
                         : "+a"(lo), "+d"(hi), "=@ccz"(equal)
                         : "r"(p), "b"(c->gpr[BT_RBX]), "c"(c->gpr[BT_RCX])
                         : "memory");
    } else {
        uint64_t m0 = bt_read(c, lin, 8, bt_acc(c)), m1 = bt_read(c, lin + 8, 8, bt_acc(c));
        equal = m0 == lo && m1 == hi;
        bt_write(c, lin, 8, equal ? c->gpr[BT_RBX] : m0, acc);
        bt_write(c, lin + 8, 8, equal ? c->gpr[BT_RCX] : m1, acc);
        lo = m0;
        hi = m1;
    }
    if (!equal) {
        c->gpr[BT_RAX] = lo;
        c->gpr[BT_RDX] = hi;
    }
    sys_set_flags(c, BT_ZF, equal ? BT_ZF : 0);
}

void bt_op_movdir64b(struct bt_vcpu *c, const struct bt_op *op)
{
    uint8_t buf[64];
    if (!op->is_mem)
        bt_raise(c, BT_EX_UD);
    uint64_t src = sys_mem_lin(c, op, 64, false);
    uint64_t dst = bt_seg_lin(c, BT_ES, bt_reg_get(c, op->reg, op->addrsize, 0), 64, true);
    bt_probe(c, src, 64, bt_acc(c));
    if (dst & 63)
        sys_gp0(c);
    bt_probe(c, dst, 64, bt_acc(c) | BT_ACC_WRITE);
    bt_read_bytes(c, src, buf, 64, bt_acc(c));
    bt_write_bytes(c, dst, buf, 64, bt_acc(c) | BT_ACC_WRITE);
}
