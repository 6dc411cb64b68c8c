/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/system/encode.c - bytes, prefixes, operands.
 */
#include "forms.h"

/* --- encoding ------------------------------------------------------------------------ */

void e8(struct test *t, unsigned v) { *t->code++ = (uint8_t)v; }
void e16(struct test *t, unsigned v) { e8(t, v), e8(t, v >> 8); }
void e32(struct test *t, uint32_t v) { e16(t, v), e16(t, v >> 16); }
void eo(struct test *t, unsigned op) /* 0x0fxx or xx */
{
    if (op >> 8)
        e8(t, op >> 8);
    e8(t, op);
}

bool op32(const struct test *t) { return (t->bits != 16) != (t->prefix66 != 0); }
unsigned opsize(const struct test *t) { return op32(t) ? 4 : 2; }
unsigned addr_bits(const struct test *t)
{
    if (t->bits == 64)
        return t->prefix67 ? 32 : 64;
    return (t->bits == 16) != (t->prefix67 != 0) ? 16 : 32;
}

void segment_prefix(struct test *t)
{
    static const uint8_t seg[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};
    unsigned k = below(t, 6);
    if (k == 1 && t->pe && t->bits != 64 && !t->vm86)
        k = 0; /* QEMU does not mind stores to code segments */
    if (t->bits == 64 && k < 4)
        k = 4; /* QEMU adds the bases of the others */
    if (one_in(t, 4))
        e8(t, seg[k]);
}
void prefix66(struct test *t)
{
    if (one_in(t, 3))
        e8(t, 0x66), t->prefix66 = 1;
}
void prefix67(struct test *t)
{
    if (!one_in(t, 5))
        return;
    e8(t, 0x67);
    t->prefix67 = 1;
    for (unsigned i = 3; i < 8 && t->bits == 16; i++) /* not beyond limits, which QEMU does not check */
        if (i != 4)
            state_in.gpr[i] = (state_in.gpr[i] & 0x7fff) | 64;
}
/* Only where the form may be locked: QEMU ignores most other LOCK prefixes, which the
 * host part tries (lock_wrongly() in ../main.c). */
void lock(struct test *t, unsigned n)
{
    if (t->form->rmw && n <= 3 && one_in(t, n))
        e8(t, 0xf0);
}
/* All that an instruction with a memory operand may carry. */
void prefixes(struct test *t)
{
    prefix66(t);
    prefix67(t);
    segment_prefix(t);
}
void rexw(struct test *t, unsigned n)
{
    if (t->bits == 64 && one_in(t, n))
        e8(t, 0x48);
}

/* ModRM for memory; *off is what the operand's offset will be, when it is known. */
uint32_t memory(struct test *t, unsigned reg)
{
    const uint64_t *g = state_in.gpr;
    uint32_t base;
    reg = (reg & 7) << 3;
    if (addr_bits(t) == 16) {
        static const uint8_t rm[] = {4, 5, 6, 7};
        static const uint8_t which[] = {6, 7, 5, 3}; /* si di bp bx */
        unsigned k = below(t, 4), mod = 1 + below(t, 2);
        int disp = (int)below(t, 32) - 16;
        e8(t, mod << 6 | reg | rm[k]);
        if (mod == 1)
            e8(t, (unsigned)disp);
        else
            e16(t, (unsigned)disp);
        return ((uint32_t)g[which[k]] + (uint32_t)disp) & 0xffff;
    }
    static const uint8_t which[] = {3, 6, 7, 5};
    unsigned k = below(t, 4), mod = 1 + below(t, 2);
    int disp = (int)below(t, 32) - 16;
    base = (uint32_t)g[which[k]];
    if (one_in(t, 8)) { /* through a SIB byte */
        e8(t, mod << 6 | reg | 4);
        e8(t, 0x20 | which[k]);
    } else {
        e8(t, mod << 6 | reg | which[k]);
    }
    if (mod == 1)
        e8(t, (unsigned)disp);
    else
        e32(t, (uint32_t)disp);
    return base + (uint32_t)disp;
}

/* Where such an operand lies in AREA. */
void put(struct test *t, uint32_t off, const void *p, unsigned n)
{
    poke(t, t->bits == 64 ? off - t->area : off, p, n);
    for (unsigned i = 0; i < n && t->bits != 64; i++) /* through BP */
        ((uint8_t *)STACK)[(off + i) & 0xffff] = ((const uint8_t *)p)[i];
}

void reg_reg(struct test *t, unsigned reg, unsigned rm) { e8(t, 0xc0 | (reg & 7) << 3 | (rm & 7)); }
unsigned any_reg(struct test *t)
{
    unsigned r;
    do
        r = below(t, 8);
    while (r == 4);
    return r;
}
void set(unsigned reg, uint64_t v) { state_in.gpr[reg] = v; }

/* Where SS may become a segment whose stack pointer is all of ESP: within limits. */
void small_sp(struct test *t)
{
    if (t->bits == 64)
        return;
    state_in.gpr[4] &= 0xffff;
    state_in.esp = (uint32_t)state_in.gpr[4];
}

/* Register or memory, a 16-bit value in it. */
void rm_value(struct test *t, unsigned reg, unsigned v)
{
    if (one_in(t, 2)) {
        unsigned r = any_reg(t);
        reg_reg(t, reg, r);
        set(r, (state_in.gpr[r] & 0xffff0000) | v);
    } else {
        uint16_t w = (uint16_t)v;
        put(t, memory(t, reg), &w, 2);
    }
}

/* STI holds interrupts off for one instruction, not the trap of TF (SDM volume 3, 6.8.3 and
 * 17.3.1.4 know only MOV SS and POP SS); QEMU holds both off. */
void no_trap(struct test *t)
{
    (void)t;
    state_in.eflags &= ~0x100u;
}
