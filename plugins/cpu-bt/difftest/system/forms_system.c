/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/system/forms_system.c - segments, tables, control
 * registers, flags, I/O.
 */
#include "forms.h"

/* --- segments ------------------------------------------------------------------------- */

void f_mov_sreg(struct test *t)
{
    small_sp(t);
    prefixes(t);
    lock(t, 40);
    rexw(t, 8);
    e8(t, 0x8e);
    rm_value(t, one_in(t, 16) ? below(t, 8) : (unsigned[]){0, 2, 3, 4, 5}[below(t, 5)], any_selector(t));
}
/* Load, then use what was loaded: limits and types are in the hidden part. */
void f_sreg_use(struct test *t)
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
    if (usable && t->pe && !t->vm86 && t->bits == 16 && (d[5] & 0x1c) == 0x14) /* 16-bit addresses may wrap to what is below it */
        usable = false;
    for (unsigned i = usable ? 1 + below(t, 2) : 0; i--;) {
        t->prefix66 = t->prefix67 = 0;
        prefix66(t);
        prefix67(t);
        e8(t, over[s]);
        e8(t, 0x88 | below(t, 4)); /* mov to or from */
        memory(t, below(t, 3)); /* no pointer: the next address would be anything */
    }
}
void f_mov_from_sreg(struct test *t)
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
void f_push_sreg(struct test *t)
{
    static const uint16_t ops[] = {0x06, 0x0e, 0x16, 0x1e, 0x0fa0, 0x0fa8};
    if (t->bits == 32) /* 32 bits: two of the bytes, or four, as the processor likes */
        e8(t, 0x66);
    eo(t, ops[below(t, 6)]);
}
void f_pop_sreg(struct test *t)
{
    small_sp(t);
    static const uint16_t ops[] = {0x07, 0x17, 0x1f, 0x0fa1, 0x0fa9};
    prefix66(t);
    lock(t, 40);
    poke_stack(t, 0, t->bits == 64 ? 8 : opsize(t), any_selector(t) | rnd(t) << 16);
    eo(t, ops[below(t, 5)]);
}
void f_load_far(struct test *t)
{
    small_sp(t);
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
void f_descriptor_ops(struct test *t) /* sldt str lldt ltr verr verw */
{
    unsigned k = below(t, 6), sel = any_selector(t);
    prefixes(t);
    lock(t, 40);
    rexw(t, 8);
    if ((k == 2 || k == 3) && (one_in(t, 2) || sel < 4)) /* QEMU loads TR with null */
        sel = k == 2 ? SEL_LDT : one_in(t, 2) ? SEL_TSS2 : SEL_TSS;
    const uint8_t *d = (sel & 4 ? ldt : gdt) + (sel & 0xfff8) % (sel & 4 ? sizeof(ldt) : sizeof(gdt));
    if (k == 3 && t->lm && (d[5] & 0x1f) == 1) /* no type of long mode's: QEMU looks at P first */
        sel = SEL_TSS;
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
void f_lar_lsl(struct test *t)
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
void f_arpl(struct test *t)
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

void f_store_table(struct test *t) /* sgdt sidt smsw */
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
void f_load_table(struct test *t) /* lgdt lidt: the same tables, other limits */
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
void f_lmsw(struct test *t)
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
void f_mov_from_cr(struct test *t)
{
    if (one_in(t, 8))
        prefixes(t);
    lock(t, 40);
    eo(t, 0x0f20);
    e8(t, (one_in(t, 4) ? below(t, 4) << 6 : 0xc0) | (unsigned[]){0, 2, 3, 4, 0, 1, 5, 7}[below(t, t->cpl ? 5 : 8)] << 3 | any_reg(t));
}
void f_mov_to_cr(struct test *t)
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
void f_mov_dr(struct test *t)
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
void f_clts_etc(struct test *t)
{
    static const uint16_t ops[] = {0x0f06, 0x0f09, 0x0f08, 0xf4, 0x0f09, 0x0f06};
    unsigned op = ops[below(t, 6)];
    if (op == 0xf4 && t->cpl == 0) /* would wait for an interrupt that never comes */
        op = 0x0f06;
    prefix66(t);
    lock(t, 30);
    eo(t, op);
}
void f_invlpg(struct test *t)
{
    prefixes(t);
    lock(t, 40);
    eo(t, 0x0f01);
    memory(t, 7);
    t->prefix67 = t->prefix66 = 0;
    if (one_in(t, 2))
        e8(t, 0x8b), memory(t, any_reg(t));
}
void f_msr(struct test *t)
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
void f_fsgsbase(struct test *t)
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
void f_swapgs(struct test *t)
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

void f_flags(struct test *t)
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
void f_in_out(struct test *t)
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
void f_ins_outs(struct test *t)
{
    prefixes(t);
    if (one_in(t, 2))
        e8(t, one_in(t, 2) ? 0xf2 : 0xf3);
    lock(t, 40);
    set(2, port(t));
    set(1, below(t, 12));
    e8(t, (unsigned[]){0x6c, 0x6e, 0x6f}[below(t, 3)]);
}
