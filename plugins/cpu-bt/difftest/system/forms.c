/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/system/forms.c - the instructions.
 */
#include "system.h"

/* --- encoding ------------------------------------------------------------------------ */

static void e8(struct test *t, unsigned v) { *t->code++ = (uint8_t)v; }
static void e16(struct test *t, unsigned v) { e8(t, v), e8(t, v >> 8); }
static void e32(struct test *t, uint32_t v) { e16(t, v), e16(t, v >> 16); }
static void eo(struct test *t, unsigned op) /* 0x0fxx or xx */
{
    if (op >> 8)
        e8(t, op >> 8);
    e8(t, op);
}

static bool op32(const struct test *t) { return (t->bits != 16) != (t->prefix66 != 0); }
static unsigned opsize(const struct test *t) { return op32(t) ? 4 : 2; }
static unsigned addr_bits(const struct test *t)
{
    if (t->bits == 64)
        return t->prefix67 ? 32 : 64;
    return (t->bits == 16) != (t->prefix67 != 0) ? 16 : 32;
}

static void segment_prefix(struct test *t)
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
static void prefix66(struct test *t)
{
    if (one_in(t, 3))
        e8(t, 0x66), t->prefix66 = 1;
}
static void prefix67(struct test *t)
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
static void lock(struct test *t, unsigned n)
{
    if (t->form->rmw && n <= 3 && one_in(t, n))
        e8(t, 0xf0);
}
/* All that an instruction with a memory operand may carry. */
static void prefixes(struct test *t)
{
    prefix66(t);
    prefix67(t);
    segment_prefix(t);
}
static void rexw(struct test *t, unsigned n)
{
    if (t->bits == 64 && one_in(t, n))
        e8(t, 0x48);
}

/* ModRM for memory; *off is what the operand's offset will be, when it is known. */
static uint32_t memory(struct test *t, unsigned reg)
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
static void put(struct test *t, uint32_t off, const void *p, unsigned n)
{
    poke(t, t->bits == 64 ? off - t->area : off, p, n);
    for (unsigned i = 0; i < n && t->bits != 64; i++) /* through BP */
        ((uint8_t *)STACK)[(off + i) & 0xffff] = ((const uint8_t *)p)[i];
}

static void reg_reg(struct test *t, unsigned reg, unsigned rm) { e8(t, 0xc0 | (reg & 7) << 3 | (rm & 7)); }
static unsigned any_reg(struct test *t)
{
    unsigned r;
    do
        r = below(t, 8);
    while (r == 4);
    return r;
}
static void set(unsigned reg, uint64_t v) { state_in.gpr[reg] = v; }

/* Register or memory, a 16-bit value in it. */
static void rm_value(struct test *t, unsigned reg, unsigned v)
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
static void no_trap(struct test *t)
{
    (void)t;
    state_in.eflags &= ~0x100u;
}

/* --- segments ------------------------------------------------------------------------- */

static void f_mov_sreg(struct test *t)
{
    prefixes(t);
    lock(t, 40);
    rexw(t, 8);
    e8(t, 0x8e);
    rm_value(t, one_in(t, 16) ? below(t, 8) : (unsigned[]){0, 2, 3, 4, 5}[below(t, 5)], any_selector(t));
}
/* Load, then use what was loaded: limits and types are in the hidden part. */
static void f_sreg_use(struct test *t)
{
    static const uint8_t over[] = {0x26, 0, 0x36, 0x3e, 0x64, 0x65};
    unsigned s = t->bits == 64 ? 4 + below(t, 2) : (unsigned[]){0, 3, 4, 5}[below(t, 4)], r; /* see segment_prefix() */
    do
        r = any_reg(t);
    while (r == 3 || r == 5 || r == 6 || r == 7);
    uint32_t sel = any_selector(t);
    const uint8_t *d = (sel & 4 ? ldt : gdt) + (sel & 0xfff8) % (sel & 4 ? sizeof(ldt) : sizeof(gdt));
    set(r, sel);
    e8(t, 0x8e);
    reg_reg(t, s, r);
    if (t->bits == 64 && s >= 4) /* the descriptor's base counts: pointers without one, not into devices */
        for (unsigned i = 3; i < 8; i++)
            if (i != 4)
                state_in.gpr[i] -= t->area;
    /* QEMU checks neither null nor type at the access. */
    bool usable = !t->pe || t->vm86 || t->bits == 64 || (sel > 3 && (d[5] & 0x1a) == 0x12);
    for (unsigned i = usable ? 1 + below(t, 2) : 0; i--;) {
        t->prefix66 = t->prefix67 = 0;
        prefix66(t);
        prefix67(t);
        e8(t, over[s]);
        e8(t, 0x88 | below(t, 4)); /* mov to or from */
        memory(t, any_reg(t));
    }
}
static void f_mov_from_sreg(struct test *t)
{
    prefixes(t);
    lock(t, 40);
    rexw(t, 8);
    e8(t, 0x8c);
    unsigned s = below(t, one_in(t, 16) ? 8 : 6);
    if (one_in(t, 2))
        reg_reg(t, s, any_reg(t));
    else
        memory(t, s);
}
static void f_push_sreg(struct test *t)
{
    static const uint16_t ops[] = {0x06, 0x0e, 0x16, 0x1e, 0x0fa0, 0x0fa8};
    if (t->bits == 32) /* 32 bits: two of the bytes, or four, as the processor likes */
        e8(t, 0x66);
    eo(t, ops[below(t, 6)]);
}
static void f_pop_sreg(struct test *t)
{
    static const uint16_t ops[] = {0x07, 0x17, 0x1f, 0x0fa1, 0x0fa9};
    prefix66(t);
    lock(t, 40);
    poke_stack(t, 0, t->bits == 64 ? 8 : opsize(t), any_selector(t) | rnd(t) << 16);
    eo(t, ops[below(t, 5)]);
}
static void f_load_far(struct test *t)
{
    static const uint16_t ops[] = {0xc4, 0xc5, 0x0fb2, 0x0fb4, 0x0fb5};
    unsigned k = below(t, 5);
    if (t->bits == 64 && k < 2)
        k = 3;
    prefixes(t);
    lock(t, 40);
    eo(t, ops[k]);
    if (k == 2) /* LSS holds nothing off; in QEMU it does, like MOV SS */
        no_trap(t);
    if (one_in(t, 16) && k >= 2) {
        reg_reg(t, any_reg(t), any_reg(t)); /* #UD */
        return;
    }
    uint8_t p[6];
    uint32_t off = memory(t, any_reg(t)), v = hot_offset(t), sel = any_selector(t);
    memcpy(p, &v, opsize(t));
    memcpy(p + opsize(t), &sel, 2);
    put(t, off, p, opsize(t) + 2);
}
static void f_descriptor_ops(struct test *t) /* sldt str lldt ltr verr verw */
{
    unsigned k = below(t, 6), sel = any_selector(t);
    prefixes(t);
    lock(t, 40);
    rexw(t, 8);
    if ((k == 2 || k == 3) && (one_in(t, 2) || sel < 4)) /* QEMU loads TR with null */
        sel = k == 2 ? SEL_LDT : one_in(t, 2) ? SEL_TSS2 : SEL_TSS;
    eo(t, 0x0f00);
    if (k < 2 && one_in(t, 2)) {
        memory(t, k);
    } else if (k == 3) { /* never from a place that might hold null */
        unsigned r = any_reg(t);
        reg_reg(t, k, r);
        set(r, sel);
    }
    else
        rm_value(t, k, sel);
}
static void f_lar_lsl(struct test *t)
{
    prefixes(t);
    lock(t, 40);
    rexw(t, 8);
    eo(t, 0x0f02 + below(t, 2));
    uint32_t sel = any_selector(t);
    const uint8_t *d = (sel & 4 ? ldt : gdt) + (sel & 0xfff8) % (sel & 4 ? sizeof(ldt) : sizeof(gdt));
    if (t->lm && !(d[5] & 0x10)) /* QEMU accepts types that long mode does not have */
        sel = SEL_CODE_3;
    rm_value(t, any_reg(t), sel);
}
static void f_arpl(struct test *t)
{
    prefixes(t);
    lock(t, 40);
    e8(t, 0x63);
    unsigned r = below(t, 3);
    set(r, any_selector(t));
    if (t->paging) { /* QEMU stores even what does not change */
        reg_reg(t, r, 3);
        set(3, any_selector(t));
    } else {
        rm_value(t, r, any_selector(t));
    }
}

/* --- tables and control registers ---------------------------------------------------------- */

static void f_store_table(struct test *t) /* sgdt sidt smsw */
{
    static const uint8_t which[] = {0, 1, 4, 4};
    unsigned k = which[below(t, 4)];
    prefixes(t);
    lock(t, 40);
    eo(t, 0x0f01);
    if (k == 4 && one_in(t, 2))
        reg_reg(t, 4, any_reg(t));
    else
        memory(t, k);
}
static void f_load_table(struct test *t) /* lgdt lidt: the same tables, other limits */
{
    unsigned k = below(t, 2);
    struct table_pointer p = k ? state_in.idtr : (struct table_pointer){sizeof(gdt) - 1 - below(t, 3) * 8, (uint32_t)gdt};
    if (!t->pe && !k)
        p = (struct table_pointer){(uint16_t)rnd(t), rnd(t)};
    if (!t->pe && k)
        p.limit = (uint16_t)(0xff + below(t, 0x300));
    /* What is loaded must be what was put there: no other segment, no odd base, no limit. */
    for (unsigned i = 3; i < 8; i++)
        if (i != 4)
            state_in.gpr[i] = (t->bits == 64 ? t->area : 0) + 0x1000 + below(t, 48) - 24;
    if (t->pe && !t->vm86)
        state_in.ds = SEL_DATA_3 | 3;
    else
        state_in.ds = AREA >> 4;
    prefix66(t);
    prefix67(t);
    lock(t, 40);
    eo(t, 0x0f01);
    uint32_t off = memory(t, 2 + k);
    put(t, off, &p, t->bits == 64 ? 10 : 6);
}
static void f_lmsw(struct test *t)
{
    prefixes(t);
    lock(t, 40);
    eo(t, 0x0f01);
    if (t->pe) {
        rm_value(t, 6, rnd(t) & 0xffff);
    } else { /* must not set PE */
        reg_reg(t, 6, 0);
        set(0, rnd(t) & ~1u);
    }
}
/* Registers that do not exist only at CPL 0: elsewhere it is #UD (tried on the host), but
 * #GP in QEMU. */
static void f_mov_from_cr(struct test *t)
{
    if (one_in(t, 8))
        prefixes(t);
    lock(t, 40);
    eo(t, 0x0f20);
    e8(t, (one_in(t, 4) ? below(t, 4) << 6 : 0xc0) | (unsigned[]){0, 2, 3, 4, 0, 1, 5, 7}[below(t, t->cpl ? 5 : 8)] << 3 | any_reg(t));
}
static void f_mov_to_cr(struct test *t)
{
    static const uint8_t crs[] = {0, 0, 0, 2, 3, 4, 4, 1, 6};
    unsigned cr = crs[below(t, t->cpl ? 7 : 9)], r = below(t, 3);
    uint64_t v = rnd(t);
    if (cr == 0) { /* PE and PG as they are, or together what must not be */
        v = state_in.cr0 ^ (one_in(t, 2) ? 1u << (unsigned[]){1, 2, 3, 5, 16, 30}[below(t, 6)] : 0);
        if (!t->pe) /* PG without PE is not tried: QEMU takes it */
            v &= ~1ull;
    } else if (cr == 3) {
        v = state_in.cr3 | (rnd(t) & 0x18);
        if (t->lm && one_in(t, 8))
            v |= 0x8000000000000000ull;
    } else if (cr == 4) {
        v = state_in.cr4 ^ 1u << (unsigned[]){2, 2, 2, 3, 4, 6, 7, 8, 9, 11, 16, 20, 2, 3, 6, 7}[below(t, 16)]; /* no reserved bits: QEMU takes them */
    }
    if (t->bits == 64 && cr == 2 && one_in(t, 4)) /* of the others they are reserved: QEMU takes them */
        v |= 1ull << (32 + below(t, 31));
    set(r, v);
    lock(t, 40);
    eo(t, 0x0f22);
    e8(t, 0xc0 | cr << 3 | r);
    if (one_in(t, 4) && cr == 3) /* after a flush: the pages are walked again */
        e8(t, 0x88), memory(t, any_reg(t));
}
static void f_mov_dr(struct test *t)
{
    static const uint8_t drs[] = {3, 3, 6, 7, 4, 5, 6, 7};
    unsigned dr = drs[below(t, 8) & (t->cpl ? 3 : 7)], r = any_reg(t);
    uint64_t v = dr == 7 ? 0x400 | (rnd(t) & 0xffff0300) : rnd(t) & ~0x1000u; /* QEMU keeps DR6's bit 12 */
    if (dr == 5)
        v &= 0xffff0700;
    if (t->bits == 64 && one_in(t, 8))
        v |= 1ull << (32 + below(t, 31));
    set(r, v);
    lock(t, 40);
    eo(t, one_in(t, 2) ? 0x0f21 : 0x0f23);
    e8(t, 0xc0 | dr << 3 | r);
}
static void f_clts_etc(struct test *t)
{
    static const uint16_t ops[] = {0x0f06, 0x0f09, 0x0f08, 0xf4, 0x0f09, 0x0f06};
    unsigned op = ops[below(t, 6)];
    if (op == 0xf4 && t->cpl == 0) /* would wait for an interrupt that never comes */
        op = 0x0f06;
    prefix66(t);
    lock(t, 30);
    eo(t, op);
}
static void f_invlpg(struct test *t)
{
    prefixes(t);
    lock(t, 40);
    eo(t, 0x0f01);
    memory(t, 7);
    t->prefix67 = t->prefix66 = 0;
    if (one_in(t, 2))
        e8(t, 0x8b), memory(t, any_reg(t));
}
static void f_msr(struct test *t)
{
    static const uint32_t msrs[] = {0x174, 0x175, 0x176, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101,
                                    0xc0000102, 0xc0000103, 0x277}; /* QEMU has no unknown ones */
    unsigned k = below(t, 12);
    set(1, msrs[k]);
    if (k == 11) {
        set(0, 0x07040600), set(2, 0x00010605); /* no bad types: QEMU takes them */
    } else if (k >= 4 && k <= 9 && k != 6) { /* addresses: canonical */
        set(0, rnd(t)), set(2, one_in(t, 2) ? 0xffffffff : 0x7fff);
    } else {
        set(0, k ? rnd(t) : rnd(t) & 0xffff), set(2, k == 3 ? rnd(t) : 0); /* QEMU takes any address and reserved bit */
    }
    lock(t, 40);
    if (one_in(t, 2)) {
        eo(t, 0x0f30);
        if (one_in(t, 2))
            eo(t, 0x0f32);
    } else {
        eo(t, 0x0f32);
    }
}
static void f_fsgsbase(struct test *t)
{
    unsigned r = any_reg(t);
    uint64_t v = t->area + hot_offset(t);
    if (one_in(t, 4)) /* canonical: QEMU takes anything */
        v |= 0xffff800000000000ull;
    set(r, v);
    e8(t, 0xf3);
    rexw(t, 2);
    eo(t, 0x0fae);
    e8(t, 0xc0 | below(t, 4) << 3 | r);
}
static void f_swapgs(struct test *t)
{
    lock(t, 40);
    eo(t, 0x0f01);
    e8(t, 0xf8);
    if (t->bits == 64 && one_in(t, 2)) {
        e8(t, 0x65);
        e8(t, 0x8b);
        e8(t, 0x04);
        e8(t, 0x25);
        e32(t, t->area + below(t, 64));
    }
}

/* --- flags and I/O ---------------------------------------------------------------------------- */

static void f_flags(struct test *t)
{
    static const uint8_t ops[] = {0x9c, 0x9d, 0x9d, 0x9d, 0xfa, 0xfb};
    unsigned op = ops[below(t, 6)];
    prefix66(t);
    lock(t, 40);
    if (op == 0xfb)
        no_trap(t);
    if (op == 0x9d)
        poke_stack(t, 0, t->bits == 64 && !t->prefix66 ? 8 : opsize(t), rnd(t) & 0x24fed5 & ~(t->pe ? 0u : 0x100u)); /* neither VIF nor VIP, which QEMU leaves out */
    e8(t, op);
    if (one_in(t, 2))
        e8(t, 0x9c);
}
static unsigned port(struct test *t) { return 0x240 + below(t, 0x20); } /* nothing answers there */
static void f_in_out(struct test *t)
{
    static const uint8_t ops[] = {0xe4, 0xe5, 0xe6, 0xe7, 0xec, 0xed, 0xee, 0xef};
    unsigned op = ops[below(t, 8)];
    prefix66(t);
    lock(t, 40);
    op &= op & 2 ? 0xff : 0xfe; /* wide reads of nothing: QEMU gives 0 */
    set(2, port(t));
    e8(t, op);
    if (op < 0xe8)
        e8(t, 0xe4 + below(t, 4));
}
static void f_ins_outs(struct test *t)
{
    prefixes(t);
    if (one_in(t, 2))
        e8(t, one_in(t, 2) ? 0xf2 : 0xf3);
    lock(t, 40);
    set(2, port(t));
    set(1, below(t, 12));
    e8(t, (unsigned[]){0x6c, 0x6e, 0x6f}[below(t, 3)]);
}

/* --- control transfers -------------------------------------------------------------------------- */

/* Offset of somewhere in the test code for a far pointer with this selector. */
static uint32_t code_offset(struct test *t, unsigned sel)
{
    unsigned index = sel >> 3;
    uint32_t off = 0x800 + below(t, 64) * 2;
    if (t->pe && !t->vm86 && t->lm && index < N_GDT && !(sel & 4) && (gdt[index * 8 + 6] & 0x20))
        off += CODE; /* long code segments are flat */
    if (one_in(t, 16) && (!t->pe || t->vm86)) /* no farther: QEMU has no limit, or another error code */
        off = 0xfff8 - (sel * 16 - CODE);
    return off;
}
static unsigned code_selector(struct test *t)
{
    if (!t->pe || t->vm86)
        return (CODE >> 4) + below(t, 2) * 0x10;
    switch (below(t, 4)) {
    case 0: return SEL_CODE_0 | below(t, 4);
    case 1: return (SEL_CODE_3 + (one_in(t, 2) ? SEL_LONG_3 - SEL_CODE_3 : 0)) | (one_in(t, 2) ? t->cpl : below(t, 4));
    default: return any_selector(t);
    }
}
static void f_far_direct(struct test *t)
{
    unsigned sel = code_selector(t);
    prefix66(t);
    lock(t, 40);
    e8(t, one_in(t, 2) ? 0xea : 0x9a);
    if (op32(t))
        e32(t, code_offset(t, sel));
    else
        e16(t, code_offset(t, sel));
    e16(t, sel);
}
static void f_far_memory(struct test *t)
{
    unsigned sel = code_selector(t), n;
    uint64_t off = code_offset(t, sel);
    uint8_t p[10];
    prefix66(t);
    prefix67(t);
    if (!t->pe || t->vm86)
        state_in.ds = AREA >> 4; /* where the pointer is */
    else
        segment_prefix(t);
    bool w = t->bits == 64 && one_in(t, 4);
    if (w)
        e8(t, 0x48);
    e8(t, 0xff);
    if (one_in(t, 20)) {
        reg_reg(t, 3 + 2 * below(t, 2), any_reg(t));
        return;
    }
    uint32_t at = memory(t, one_in(t, 2) && (t->bits != 64 || w) ? 3 : 5); /* call: QEMU takes SP for RSP */
    n = w ? 8 : opsize(t);
    memcpy(p, &off, n);
    memcpy(p + n, &sel, 2);
    put(t, at, p, n + 2);
}
static void stack_values(struct test *t, unsigned size, const uint32_t *v, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        poke_stack(t, i, size, v[i]);
}
static unsigned stack_selector(struct test *t)
{
    if (!t->pe || t->vm86)
        return STACK >> 4;
    switch (below(t, 4)) {
    case 0: return SEL_STACK_0;
    case 1: case 2: return SEL_STACK_3 | 3;
    default: return any_selector(t);
    }
}
static void f_ret_far(struct test *t)
{
    unsigned sel = code_selector(t), n = 0;
    bool w = t->bits == 64, imm /* other sizes: QEMU takes SP for RSP */ = one_in(t, 2);
    if (!w)
        prefix66(t);
    lock(t, 40);
    if (w)
        e8(t, 0x48);
    if (imm)
        n = below(t, 5) * 2;
    uint32_t v[5] = {code_offset(t, sel), sel | (one_in(t, 4) ? rnd(t) << 16 : 0), 0x1000, stack_selector(t), rnd(t)};
    stack_values(t, w ? 8 : opsize(t), v, 4);
    e8(t, imm ? 0xca : 0xcb);
    if (imm)
        e16(t, n);
}
static void f_iret(struct test *t)
{
    unsigned sel = code_selector(t);
    bool w = t->bits == 64;
    if (!w && t->pe && !t->vm86)
        prefix66(t);
    lock(t, 40);
    if (w)
        e8(t, 0x48);
    uint32_t flags = rnd(t) & 0x4fed5 & ~0x100u; /* no TF: a handler of the next step would see it */
    uint32_t v[9] = {code_offset(t, sel), sel | (one_in(t, 4) ? rnd(t) << 16 : 0), flags, 0x1000, stack_selector(t)};
    if (t->pe && !t->lm && op32(t) && t->cpl == 0 && one_in(t, 3)) { /* to virtual-8086 mode */
        v[0] = 0x800, v[1] = CODE >> 4, v[2] |= 0x20000, v[4] = STACK >> 4;
        for (unsigned i = 5; i < 9; i++)
            v[i] = AREA >> 4;
        state_in.eflags &= ~0x4000u;
    }
    if (t->lm && w)
        v[3] = STACK + 0x1000;
    stack_values(t, w ? 8 : opsize(t), v, 9);
    e8(t, 0xcf);
}
static void f_int(struct test *t)
{
    static const uint8_t ops[] = {0xcd, 0xcd, 0xcd, 0xcd, 0xcc, 0xce, 0xcd}; /* INT1 ends QEMU's run */
    unsigned op = ops[below(t, 7)];
    prefix66(t);
    lock(t, 40);
    e8(t, op);
    if (op == 0xcd)
        e8(t, one_in(t, 3) ? below(t, 0x20) : 0x2c + below(t, 0x20));
}
static void f_bound(struct test *t)
{
    prefixes(t);
    lock(t, 40);
    e8(t, 0x62);
    unsigned r = any_reg(t);
    uint32_t off = memory(t, r), v[2] = {below(t, 4), 0x7fffffff};
    uint16_t s[2] = {(uint16_t)below(t, 4), 0x7fff};
    put(t, off, op32(t) ? (void *)v : (void *)s, op32(t) ? 8 : 4);
}
static void f_task(struct test *t) /* to TSS2, or to what claims to be one */
{
    unsigned sel = one_in(t, 2) ? SEL_TSS2 | below(t, 4) : any_selector(t);
    if (one_in(t, 4)) { /* iret with NT */
        state_in.eflags |= 0x4000;
        e8(t, 0xcf);
        return;
    }
    e8(t, one_in(t, 2) ? 0xea : 0x9a);
    if (t->bits == 16)
        e16(t, 0);
    else
        e32(t, 0);
    e16(t, sel);
}
static void f_syscall(struct test *t)
{
    static const uint16_t ops[] = {0x0f05, 0x0f07, 0x0f34, 0x0f35};
    unsigned k = t->bits == 64 ? below(t, 4) : 2 + below(t, 2); /* QEMU has SYSCALL everywhere, as AMD does */
    if (k == 1 || k == 3) {
        uint32_t at = CODE + 0x800 + below(t, 16) * 2;
        set(1, k == 1 ? at : STACK + 0x1000);
        set(2, k == 3 ? at : rnd(t));
        set(11, rnd(t) & 0x247ed5); /* neither VIF nor VIP, as above */
        rexw(t, 2);
    }
    eo(t, ops[k]);
}
static void f_near_odd(struct test *t) /* near transfers with the other operand size, beyond limits */
{
    unsigned k = below(t, 5);
    if (t->bits != 64) /* there Intel ignores it, AMD does not */
        prefix66(t);
    switch (k) {
    case 0:
        poke_stack(t, 0, t->bits == 64 ? 8 : opsize(t), 0x800 + below(t, 8) + (t->bits == 64 ? CODE : 0)); /* QEMU: no limits here either */
        e8(t, 0xc3);
        break;
    case 1:
        poke_stack(t, 0, t->bits == 64 ? 8 : opsize(t), 0x800 + below(t, 8) + (t->bits == 64 ? CODE : 0));
        e8(t, 0xc2);
        e16(t, below(t, 32));
        break;
    case 2: case 3:
        e8(t, k == 2 ? 0xe8 : 0xe9);
        if (op32(t) || t->bits == 64)
            e32(t, 0x200);
        else
            e16(t, rnd(t) & 0xefff);
        break;
    default: {
        unsigned r = any_reg(t);
        set(r, 0x800 + below(t, 8) + (t->bits == 64 ? CODE : 0));
        e8(t, 0xff);
        reg_reg(t, one_in(t, 2) ? 2 : 4, r);
    }
    }
}
static void f_loop(struct test *t)
{
    prefix66(t);
    prefix67(t);
    if (t->bits == 64)
        t->prefix66 = 0;
    set(1, one_in(t, 2) ? below(t, 3) | (one_in(t, 2) ? 0x10000 : 0) : state_in.gpr[1]);
    e8(t, 0xe0 + below(t, 4));
    e8(t, 0x20);
}

/* --- memory ---------------------------------------------------------------------------------------- */

static void f_mov(struct test *t)
{
    prefixes(t);
    lock(t, 40);
    rexw(t, 4);
    e8(t, 0x88 + below(t, 4));
    memory(t, any_reg(t));
}
static void f_moffs(struct test *t)
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
static void f_alu(struct test *t)
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
static void f_locked(struct test *t)
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
static void f_bt_string(struct test *t)
{
    unsigned r = below(t, 3);
    prefixes(t);
    set(r, below(t, 0x200));
    eo(t, 0x0fa3 + 8 * below(t, 4));
    memory(t, r);
    t->compare_after = true;
}
static void f_cmpxchg8b(struct test *t)
{
    prefixes(t);
    lock(t, 2);
    rexw(t, 3);
    eo(t, 0x0fc7);
    memory(t, 1);
}
static void f_string(struct test *t)
{
    static const uint8_t ops[] = {0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf};
    unsigned op = ops[below(t, 10)];
    bool rep = one_in(t, 2);
    prefixes(t);
    if (rep)
        e8(t, one_in(t, 2) ? 0xf2 : 0xf3);
    lock(t, 40);
    rexw(t, 4);
    set(1, below(t, 20) | (addr_bits(t) == 16 ? rnd(t) << 16 : 0));
    if ((uint32_t)(state_in.gpr[6] - t->area * (t->bits == 64)) < 0x100 || (uint32_t)(state_in.gpr[7] - t->area * (t->bits == 64)) < 0x100)
        state_in.eflags &= ~0x400u; /* not down through 0, beyond limits */
    /* A fault leaves the flags as they were before the first compare (SDM volume 2, REP); in QEMU the last one's. */
    t->compare_after = rep && ((op & 0xfe) == 0xa6 || (op & 0xfe) == 0xae);
    e8(t, op);
}
static void f_xlat(struct test *t)
{
    prefixes(t);
    lock(t, 40);
    set(0, (state_in.gpr[0] & ~0xffull) | below(t, 64));
    e8(t, 0xd7);
}
static void f_push_pop(struct test *t)
{
    unsigned k = below(t, 7);
    prefixes(t);
    lock(t, 40);
    switch (k) {
    case 0: e8(t, 0x50 + below(t, 8)); break;
    case 1: e8(t, 0x58 + below(t, 8)); break;
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
static void f_frame(struct test *t)
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
        e16(t, below(t, 64));
        e8(t, one_in(t, 2) ? below(t, 6) : 0);
    }
}
static void f_adjust(struct test *t)
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
static void f_mul_div(struct test *t)
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
static void f_shift(struct test *t)
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

static void f_undefined(struct test *t)
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
static void f_too_long(struct test *t)
{
    static const uint8_t prefix[] = {0x66, 0x66, 0x64, 0x65, 0x3e, 0x36};
    for (unsigned n = 10 + below(t, 6); n--;)
        e8(t, prefix[below(t, t->bits == 64 ? 4 : 6)]);
    t->prefix66 = 1;
    e8(t, 0x8a);
    memory(t, 0);
}
static void f_mov_ss_shadow(struct test *t) /* mov ss, then something that faults or does not; sti likewise */
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

#define F(name_, modes_, fn) {.name = name_, .modes = modes_, .make = fn}
#define RMW(name_, modes_, fn) {.name = name_, .modes = modes_, .make = fn, .rmw = true}
#define PARTIAL RMW /* QEMU has stored half when the other half faults */
#define TASK(name_, modes_, fn) {.name = name_, .modes = modes_, .make = fn, .task = true}
#define EARLY(name_, modes_, fn) {.name = name_, .modes = modes_, .make = fn, .early = true}
#define FAR(name_, modes_, fn) {.name = name_, .modes = modes_, .make = fn, .task = true, .far = true}
struct form forms[] = {
    F("mov sreg", MODES_ALL, f_mov_sreg), F("mov sreg, use", MODES_ALL, f_sreg_use), F("mov from sreg", MODES_ALL, f_mov_from_sreg),
    F("push sreg", MODES_ALL, f_push_sreg), F("pop sreg", MODES_ALL, f_pop_sreg), F("lds les lfs lgs lss", MODES_ALL, f_load_far),
    EARLY("sldt str lldt ltr verr verw", MODES_ALL, f_descriptor_ops), F("lar lsl", MODES_ALL, f_lar_lsl), F("arpl", MODES_NOT64, f_arpl),
    PARTIAL("sgdt sidt smsw", MODES_ALL, f_store_table), EARLY("lgdt lidt", MODES_ALL, f_load_table), EARLY("lmsw", MODES_ALL, f_lmsw),
    EARLY("mov from cr", MODES_ALL, f_mov_from_cr), EARLY("mov to cr", MODES_ALL, f_mov_to_cr), EARLY("mov dr", MODES_ALL, f_mov_dr),
    EARLY("clts invd wbinvd hlt", MODES_ALL, f_clts_etc), EARLY("invlpg", MODES_ALL, f_invlpg), EARLY("rdmsr wrmsr", MODES_ALL, f_msr),
    F("rdfsbase..wrgsbase", MODES_ALL, f_fsgsbase), F("swapgs", MODES_ALL, f_swapgs), F("pushf popf cli sti", MODES_ALL, f_flags),
    EARLY("in out", MODES_ALL, f_in_out), EARLY("ins outs", MODES_ALL, f_ins_outs), FAR("jmp call far", MODES_NOT64, f_far_direct),
    FAR("jmp call far m", MODES_ALL, f_far_memory), {.name = "ret far", .modes = MODES_ALL, .make = f_ret_far, .far = true}, FAR("iret", MODES_ALL, f_iret),
    TASK("int n int3 into", MODES_ALL, f_int), F("bound", MODES_NOT64, f_bound), TASK("task switch", MODES_PROT & ~MODES_LONG64, f_task),
    F("syscall sysret sysenter sysexit", MODES_ALL, f_syscall), F("jmp call ret near", MODES_ALL, f_near_odd),
    F("loop jcxz", MODES_ALL, f_loop), F("mov", MODES_ALL, f_mov), F("mov moffs", MODES_ALL, f_moffs), RMW("alu", MODES_ALL, f_alu),
    RMW("lock", MODES_ALL, f_locked), RMW("bt m, r", MODES_ALL, f_bt_string), RMW("cmpxchg8b 16b", MODES_ALL, f_cmpxchg8b),
    F("strings", MODES_ALL, f_string), F("xlat", MODES_ALL, f_xlat), F("push pop pusha popa", MODES_ALL, f_push_pop),
    F("enter leave", MODES_ALL, f_frame), F("aaa..daa cbw cwd", MODES_ALL, f_adjust), RMW("mul div", MODES_ALL, f_mul_div),
    RMW("shifts", MODES_ALL, f_shift), F("undefined", MODES_ALL, f_undefined), F("too long", MODES_ALL, f_too_long),
    F("mov ss, sti: shadow", MODES_ALL, f_mov_ss_shadow),
};
const unsigned n_forms = sizeof(forms) / sizeof(forms[0]);
