/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/system/forms_flow.c - control transfers.
 */
#include "forms.h"

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
void f_far_direct(struct test *t)
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
void f_far_memory(struct test *t)
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
    default: {
        unsigned sel = any_selector(t);
        return t->bits == 64 && sel < 4 ? SEL_STACK_3 | 3 : sel; /* null of another RPL than CS's: QEMU takes it */
    }
    }
}
void f_ret_far(struct test *t)
{
    unsigned sel = code_selector(t), n = 0;
    bool w = t->bits == 64, imm /* other sizes: QEMU takes SP for RSP */ = one_in(t, 2);
    if (!w)
        prefix66(t);
    lock(t, 40);
    if (w)
        e8(t, 0x48);
    if (imm)
        n = below(t, 3);
    uint32_t v[6] = {code_offset(t, sel), sel | (one_in(t, 4) ? rnd(t) << 16 : 0)};
    v[2 + n] = 0x1000, v[3 + n] = stack_selector(t); /* behind the parameters */
    stack_values(t, w ? 8 : opsize(t), v, 4 + n);
    e8(t, imm ? 0xca : 0xcb);
    if (imm)
        e16(t, n * (w ? 8 : opsize(t)));
}
void f_iret(struct test *t)
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
void f_int(struct test *t)
{
    static const uint8_t ops[] = {0xcd, 0xcd, 0xcd, 0xcd, 0xcc, 0xce, 0xcd}; /* INT1 ends QEMU's run */
    unsigned op = ops[below(t, 7)];
    prefix66(t);
    lock(t, 40);
    e8(t, op);
    if (op == 0xcd)
        e8(t, one_in(t, 3) ? below(t, 0x20) : 0x2c + below(t, 0x20));
}
void f_bound(struct test *t)
{
    prefixes(t);
    lock(t, 40);
    e8(t, 0x62);
    unsigned r = any_reg(t);
    uint32_t off = memory(t, r), v[2] = {below(t, 4), 0x7fffffff};
    uint16_t s[2] = {(uint16_t)below(t, 4), 0x7fff};
    put(t, off, op32(t) ? (void *)v : (void *)s, op32(t) ? 8 : 4);
}
void f_task(struct test *t) /* to TSS2, or to what claims to be one */
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
void f_syscall(struct test *t)
{
    static const uint16_t ops[] = {0x0f05, 0x0f07, 0x0f34, 0x0f35};
    unsigned k = t->bits == 64 ? below(t, 4) : 2 + below(t, 2); /* QEMU has SYSCALL everywhere, as AMD does */
    if (amd && (t->mode == M_COMPAT32 || t->mode == M_COMPAT16))
        k = 1; /* SYSENTER is #UD there as in 64-bit code, but not in QEMU */
    if (k == 1 || k == 3) {
        uint32_t at = CODE + 0x800 + below(t, 16) * 2;
        set(1, k == 1 ? at : STACK + 0x1000);
        set(2, k == 3 ? at : rnd(t));
        set(11, rnd(t) & 0x247ed5); /* neither VIF nor VIP, as above */
        rexw(t, 2);
    }
    eo(t, ops[k]);
}
void f_near_odd(struct test *t) /* near transfers with the other operand size, beyond limits */
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
void f_loop(struct test *t)
{
    prefix66(t);
    prefix67(t);
    if (t->bits == 64)
        t->prefix66 = 0;
    set(1, one_in(t, 2) ? below(t, 3) | (one_in(t, 2) ? 0x10000 : 0) : state_in.gpr[1]);
    e8(t, 0xe0 + below(t, 4));
    e8(t, 0x20);
}
