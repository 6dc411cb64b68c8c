/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/system/forms_data.c - accesses to memory, and what is
 * no instruction.
 */
#include "forms.h"

/* --- memory ---------------------------------------------------------------------------------------- */

void f_mov(struct test *t)
{
    prefixes(t);
    lock(t, 40);
    rexw(t, 4);
    e8(t, 0x88 + below(t, 4));
    memory(t, any_reg(t));
}
void f_moffs(struct test *t)
{
    uint32_t v = hot_offset(t) + (t->bits == 64 ? t->area : 0);
    prefixes(t);
    lock(t, 40);
    e8(t, 0xa0 + below(t, 4));
    if (addr_bits(t) == 16)
        e16(t, v);
    else
        e32(t, v);
    if (addr_bits(t) == 64)
        e32(t, one_in(t, 16) ? rnd(t) : 0);
}
void f_alu(struct test *t)
{
    unsigned op = below(t, 8) << 3, kind = below(t, 4);
    bool reg = one_in(t, 4);
    prefixes(t);
    if (kind < 2 && !reg) /* to a register it is #UD: QEMU executes some */
        lock(t, 3);
    rexw(t, 4);
    e8(t, op | kind);
    if (reg)
        reg_reg(t, any_reg(t), any_reg(t));
    else
        memory(t, any_reg(t));
    t->compare_after = op == 0x08 || op == 0x20 || op == 0x30; /* AF */
}
void f_locked(struct test *t)
{
    static const uint16_t ops[] = {0x0fb0, 0x0fb1, 0x0fc0, 0x0fc1, 0x86, 0x87, 0xfe, 0xff, 0xf6, 0xf7, 0x0fab, 0x0fb3, 0x0fbb, 0x0fa3};
    unsigned k = below(t, 14), reg = any_reg(t);
    if (k >= 6 && k <= 7)
        reg = below(t, 2);
    if (k >= 8 && k <= 9)
        reg = 2 + below(t, 2);
    if (k >= 10) {
        reg = below(t, 3); /* no pointer, as everywhere where limits could be left */
        set(reg, below(t, 64)), t->compare_after = true;
    }
    bool to_reg = k < 10 && one_in(t, 8);
    prefixes(t);
    if (k != 13 && !to_reg)
        lock(t, 2);
    eo(t, ops[k]);
    if (to_reg)
        reg_reg(t, reg, any_reg(t));
    else
        memory(t, reg);
}
void f_bt_string(struct test *t)
{
    unsigned r = below(t, 3);
    prefixes(t);
    set(r, below(t, 0x200));
    eo(t, 0x0fa3 + 8 * below(t, 4));
    memory(t, r);
    t->compare_after = true;
}
void f_cmpxchg8b(struct test *t)
{
    prefixes(t);
    lock(t, 2);
    rexw(t, 3);
    eo(t, 0x0fc7);
    memory(t, 1);
}
void f_string(struct test *t)
{
    static const uint8_t ops[] = {0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf};
    unsigned op = ops[below(t, 10)];
    bool rep = one_in(t, 2);
    prefixes(t);
    if (rep)
        e8(t, one_in(t, 2) || (amd && op == 0xa6) ? 0xf2 : 0xf3); /* AMD's REPE CMPSB reads [rSI] first, not QEMU's */
    lock(t, 40);
    rexw(t, 4);
    set(1, below(t, 20) | (addr_bits(t) == 16 ? rnd(t) << 16 : 0));
    if ((uint32_t)(state_in.gpr[6] - t->area * (t->bits == 64)) < 0x100 || (uint32_t)(state_in.gpr[7] - t->area * (t->bits == 64)) < 0x100)
        state_in.eflags &= ~0x400u; /* not down through 0, beyond limits */
    /* A fault leaves the flags as they were before the first compare (SDM volume 2, REP); in QEMU the last one's. */
    t->compare_after = rep && ((op & 0xfe) == 0xa6 || (op & 0xfe) == 0xae);
    e8(t, op);
}
void f_xlat(struct test *t)
{
    prefixes(t);
    lock(t, 40);
    set(0, (state_in.gpr[0] & ~0xffull) | below(t, 64));
    e8(t, 0xd7);
}
void f_push_pop(struct test *t)
{
    unsigned k = below(t, 7);
    prefixes(t);
    lock(t, 40);
    switch (k) {
    case 0: e8(t, 0x50 + below(t, 8)); break;
    case 1: e8(t, 0x58 + (t->stack32 ? any_reg(t) : below(t, 8))); break; /* ESP within limits */
    case 2: e8(t, 0x6a), e8(t, rnd(t)); break;
    case 3:
        e8(t, 0x68);
        if (op32(t) || t->bits == 64)
            e32(t, rnd(t));
        else
            e16(t, rnd(t));
        break;
    case 4: e8(t, 0xff), memory(t, 6); break;
    case 5: e8(t, 0x8f), memory(t, 0); break;
    default: t->pusha = true, e8(t, 0x60 + below(t, 2)); break;
    }
    if (k == 3 && t->bits == 64 && t->prefix66)
        t->code -= 2;
}
void f_frame(struct test *t)
{
    if (t->stack32 || t->bits == 64)
        prefix66(t);
    else if (t->bits == 32) /* upper halves of EBP and ESP with a 16-bit stack: everybody differs */
        e8(t, 0x66), t->prefix66 = 1;
    prefix67(t);
    set(5, (one_in(t, 2) ? state_in.gpr[4] : state_in.gpr[5]));
    if (t->stack32)
        state_in.gpr[5] = (state_in.gpr[5] & 0xffff) | 0x100; /* within limits, and room for a frame below */
    if (one_in(t, 2)) {
        e8(t, 0xc9);
    } else {
        e8(t, 0xc8);
        e16(t, t->paging ? 0 : below(t, 64)); /* a write at the last ESP may fault (SDM volume 2, ENTER); not in QEMU */
        e8(t, one_in(t, 2) ? below(t, 6) : 0);
    }
}
void f_adjust(struct test *t)
{
    static const uint8_t ops[] = {0x27, 0x2f, 0x37, 0x3f, 0xd4, 0xd5, 0xd6, 0x98, 0x99};
    unsigned op = ops[below(t, 9)];
    prefix66(t);
    lock(t, 40);
    e8(t, op);
    if (op == 0xd4 || op == 0xd5)
        e8(t, one_in(t, 8) ? 0 : rnd(t));
    t->compare_after = op != 0x98 && op != 0x99 && op != 0xd6;
}
void f_mul_div(struct test *t)
{
    prefixes(t);
    lock(t, 40);
    if (one_in(t, 2))
        set(2, below(t, 4)), set(0, rnd(t) >> 16);
    e8(t, 0xf6 + below(t, 2));
    if (one_in(t, 2))
        reg_reg(t, 4 + below(t, 4), any_reg(t));
    else
        memory(t, 4 + below(t, 4));
    t->compare_after = true;
}
void f_shift(struct test *t)
{
    static const uint8_t ops[] = {0xc0, 0xc1, 0xd0, 0xd1, 0xd2, 0xd3};
    unsigned op = ops[below(t, 6)];
    prefixes(t);
    lock(t, 40);
    set(1, below(t, 7));
    e8(t, op);
    if (one_in(t, 2))
        reg_reg(t, (unsigned[]){0, 1, 2, 3, 4, 5, 7}[below(t, 7)], (unsigned[]){0, 2, 3, 5}[below(t, 4)]);
    else
        memory(t, (unsigned[]){0, 1, 2, 3, 4, 5, 7}[below(t, 7)]);
    if (op < 0xd0)
        e8(t, below(t, 8));
    t->compare_after = true;
}

/* --- what is not an instruction ------------------------------------------------------------------- */

void f_undefined(struct test *t)
{
    static const uint16_t ops[] = {0x0f0b, 0x0f0b, 0x0fb9, 0x0f04, 0x0f0a, 0x0f0c, 0x0f24, 0x0f26, 0x0f36, 0x0f39, 0x0fa6, 0x0fa7, 0x0f3b};
    prefix66(t);
    lock(t, 8);
    unsigned k = below(t, 17);
    if (k < 13) {
        eo(t, ops[k]);
        reg_reg(t, rnd(t), rnd(t));
    } else if (k == 13) {
        e8(t, 0xff), reg_reg(t, 7, rnd(t));
    } else if (k == 14) {
        e8(t, 0xfe), reg_reg(t, 2 + below(t, 6), rnd(t));
    } else if (k == 15) {
        e8(t, 0x8e), reg_reg(t, 1, rnd(t)); /* mov cs */
    } else {
        eo(t, 0x0fc7), reg_reg(t, 1, rnd(t)); /* /0 hangs QEMU now and then */
    }
}
void f_too_long(struct test *t)
{
    static const uint8_t prefix[] = {0x66, 0x66, 0x64, 0x65, 0x3e, 0x36};
    for (unsigned n = 10 + below(t, 6); n--;)
        e8(t, prefix[below(t, t->bits == 64 ? 4 : 6)]);
    t->prefix66 = 1;
    e8(t, 0x8a);
    memory(t, 0);
}
void f_mov_ss_shadow(struct test *t) /* mov ss, then something that faults or does not; sti likewise */
{
    unsigned r = any_reg(t);
    if (one_in(t, 2)) {
        set(r, state_in.ss);
        e8(t, 0x8e);
        reg_reg(t, 2, r);
    } else {
        no_trap(t);
        e8(t, 0xfb);
    }
    f_mov(t);
}
