/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/system/case.c - the world that a case runs in.
 * Every writable segment lies within AREA and its surroundings, so that no case
 * can hurt the monitor.
 */
#include "system.h"

uint8_t gdt[N_GDT * 8] __attribute__((aligned(16)));
uint8_t ldt[64] __attribute__((aligned(16)));
uint8_t tss[256] __attribute__((aligned(256))), tss2[256] __attribute__((aligned(256)));
uint8_t idt[N_VECTORS * 16] __attribute__((aligned(16)));
uint8_t r0_stack[512] __attribute__((aligned(16)));
uint8_t page_tables[9][4096] __attribute__((aligned(4096)));
static uint8_t df_tss[128] __attribute__((aligned(128))), df_stack[512];

uint32_t rnd(struct test *t)
{
    uint64_t z = t->rng += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (uint32_t)(z ^ (z >> 31));
}

/* Where limits, pages and 16 bits end. */
uint32_t hot_offset(struct test *t)
{
    static const uint32_t edge[] = {64, 0x1000, 0x1000, 0x2000, 0x8000, 0x10000};
    bool small = !t->pe || t->vm86; /* limits of 64 KiB, which QEMU does not check */
    uint32_t off = edge[below(t, small ? 5 : 6)] + below(t, 48) - 24;
    if (one_in(t, 2))
        off &= ~7u;
    return off;
}

void poke(struct test *t, uint32_t off, const void *p, unsigned n)
{
    (void)t;
    for (unsigned i = 0; i < n; i++)
        ((uint8_t *)AREA)[off + i < 0x10080 ? off + i : (off + i) & 0xffff] = ((const uint8_t *)p)[i];
}

void poke_stack(struct test *t, unsigned slot, unsigned size, uint32_t v)
{
    uint32_t sp = (uint32_t)state_in.gpr[4];
    (void)t;
    for (unsigned i = 0; i < size; i++)
        ((uint8_t *)STACK)[(sp + slot * size + i) & 0xffff] = (uint8_t)(i < 4 ? v >> i * 8 : 0);
}

/* --- descriptors ------------------------------------------------------------------- */

static void descriptor(uint8_t *table, unsigned sel, uint32_t base, uint32_t limit, unsigned attr)
{
    uint8_t *p = table + (sel & ~7u);
    p[0] = (uint8_t)limit, p[1] = (uint8_t)(limit >> 8);
    p[2] = (uint8_t)base, p[3] = (uint8_t)(base >> 8), p[4] = (uint8_t)(base >> 16), p[7] = (uint8_t)(base >> 24);
    p[5] = (uint8_t)attr;
    p[6] = (uint8_t)((attr >> 8 & 0xf0) | (limit >> 16 & 15));
}

static void gate(uint8_t *p, unsigned sel, uint32_t off, unsigned attr, unsigned count)
{
    p[0] = (uint8_t)off, p[1] = (uint8_t)(off >> 8), p[2] = (uint8_t)sel, p[3] = (uint8_t)(sel >> 8);
    p[4] = (uint8_t)count, p[5] = (uint8_t)attr, p[6] = (uint8_t)(off >> 16), p[7] = (uint8_t)(off >> 24);
}

#define B32 0x4000u
#define G 0x8000u
#define L 0x2000u

static unsigned dpl_present(struct test *t)
{
    return below(t, 4) << 5 | (one_in(t, 8) ? 0 : 0x80);
}

/* Data within the area; what is valid of an expand-down segment lies there too.
 * QEMU's TCG checks no segment limits, so limits do not cut into what cases reach. */
static void data_descriptor(struct test *t, uint8_t *table, unsigned sel, unsigned attr)
{
    if (attr & 4) {
        descriptor(table, sel, t->area, 0, attr | B32);
    } else if (one_in(t, 4)) {
        descriptor(table, sel, t->area, 0x1f + below(t, 3), attr | G);
    } else {
        descriptor(table, sel, t->area + (one_in(t, 4) ? below(t, 64) : 0), 0x1ffff, attr);
    }
}

static void random_descriptor(struct test *t, uint8_t *table, unsigned sel)
{
    unsigned k = below(t, 16), p = dpl_present(t);
    if (table == ldt && (k == 13 || k == 15)) /* a TSS in the LDT is #GP (SDM volume 3, 7.2.2), #TS in QEMU */
        k = 12;
    uint8_t *d = table + (sel & ~7u);
    static const uint16_t targets[] = {SEL_CODE_0, SEL_CODE_0, SEL_CODE_3, SEL_LONG_3, SEL_DATA_0, 0, SEL_RANDOM, SEL_RANDOM + 8, 0xfff8};
    unsigned target = targets[below(t, 9)] | below(t, 4);
    if (k < 6) { /* data */
        data_descriptor(t, table, sel, 0x10 | below(t, 8) | p | (one_in(t, 2) ? B32 : 0));
    } else if (k < 9) { /* code */
        unsigned attr = 0x19 | (below(t, 4) << 1) | p | (t->lm && one_in(t, 2) ? L : one_in(t, 2) ? B32 : 0) | (t->lm && one_in(t, 16) ? L : 0);
        unsigned limit = one_in(t, 4) ? 0xfff : 0xffff;
        if (attr & L) /* no limit then, except for far calls in QEMU */
            limit = 0xfffff, attr |= G;
        descriptor(table, sel, CODE, limit, attr);
    } else if (k < 12) { /* call gates: 16 and 32 bits */
        uint32_t off = 0x800 + below(t, 16) * 2 + (t->lm ? CODE : one_in(t, 16) ? 0x20000 : 0);
        unsigned type = one_in(t, 3) ? 4 : 12;
        if (type == 12) /* beyond the limit: QEMU's CALL does not look */
            off &= ~0x20000u;
        gate(d, target, off, type | p, one_in(t, 8) ? below(t, 32) : below(t, 4));
    } else if (k == 12) {
        gate(d, one_in(t, 2) ? SEL_TSS2 : target, 0, 5 | p, 0);
    } else if (k == 13) {
        descriptor(table, sel, one_in(t, 2) ? (uint32_t)tss2 : (uint32_t)tss, one_in(t, 4) ? below(t, 110) : 0x67 + below(t, 40),
                   (one_in(t, 3) ? 1 : 9) | (one_in(t, 4) ? 2 : 0) | p);
    } else if (k == 14) {
        descriptor(table, sel, (uint32_t)ldt, one_in(t, 2) ? 63 : below(t, 64), 2 | p);
    } else { /* any system type */
        descriptor(table, sel, (uint32_t)tss2, 0x67, below(t, 16) | p);
    }
}

uint32_t any_selector(struct test *t)
{
    if (!t->pe || t->vm86) { /* real-mode segments that stay within the area */
        static const uint16_t segs[] = {AREA >> 4, AREA >> 4, (AREA >> 4) + 1, (AREA >> 4) + 0x100, (AREA >> 4) - 0x100, STACK >> 4};
        return segs[below(t, 6)];
    }
    switch (below(t, 12)) {
    case 0: return t->lm && !t->cpl ? 0 : below(t, 4); /* QEMU loads SS with null of another RPL */
    case 1: return (N_GDT + below(t, 40)) * 8 + below(t, 8);
    case 2: case 3: return below(t, 9) * 8 + 4 + below(t, 4);
    case 4: return (SEL_DATA_0 + below(t, 4) * 8) | below(t, 4);
    case 5: return (SEL_TSS + below(t, 4) * 8) | below(t, 4);
    case 6: return (SEL_CODE_0 + below(t, 7) * 8) | t->cpl;
    default: return (SEL_RANDOM + below(t, N_GDT - SEL_RANDOM / 8) * 8) | (one_in(t, 2) ? t->cpl : below(t, 4));
    }
}

static void build_tss(struct test *t)
{
    uint32_t *w = (uint32_t *)tss, *v = (uint32_t *)tss2;
    memset(tss, 0, sizeof(tss));
    memset(tss2, 0, sizeof(tss2));
    uint32_t top = (uint32_t)(r0_stack + sizeof(r0_stack) - 64);
    if (t->lm) {
        for (unsigned i = 0; i < 3; i++)
            w[1 + 2 * i] = top - i * 128;
        w[9] = (uint32_t)(df_stack + sizeof(df_stack) - 16);  /* IST1 */
        w[11] = top - 0x40 - (one_in(t, 2) ? 3 : 0);           /* IST2 */
        tss[0x66] = 0x68;
    } else {
        for (unsigned i = 0; i < 3; i++) {
            w[1 + 2 * i] = top - i * 128;
            w[2 + 2 * i] = SEL_DATA | (i == 1 ? 1 : i == 2 ? 2 : 0);
        }
        w[2 + 2] = SEL_STACK_3; /* rings 1 and 2 have no stack of their own: #TS */
        w[7] = (uint32_t)page_tables[0];
        tss[0x66] = 0x68;
        w[0] = one_in(t, 2) ? SEL_TSS2 : any_selector(t);
    }
    tss[0x68 - 1] = 0;
    for (unsigned i = 0; i < 32; i++) /* I/O permissions: ports 0x200.. */
        tss[0x68 + 0x40 + i] = (uint8_t)rnd(t);
    tss[0x68 + 0x20] = 0xff;
    /* A 32-bit task to switch to. */
    v[7] = (uint32_t)page_tables[0];
    v[8] = 0x900;
    v[9] = 2 | (rnd(t) & 0xcd5);
    for (unsigned i = 10; i < 18; i++)
        v[i] = rnd(t);
    v[14] = 0x1000;
    bool user = one_in(t, 2);
    v[18] = any_selector(t);
    v[19] = user ? SEL_CODE_3 | 3 : SEL_CODE_0;
    v[20] = user ? SEL_STACK_3 | 3 : SEL_STACK_0;
    v[21] = one_in(t, 2) ? SEL_DATA_3 : any_selector(t);
    v[22] = v[23] = SEL_DATA_3;
    v[24] = one_in(t, 4) ? any_selector(t) : SEL_LDT;
    v[25] = 0x680000; /* no T: QEMU has no such trap */
    v[1] = top, v[2] = SEL_DATA;
    if (one_in(t, 8))
        v[18 + below(t, 6)] = any_selector(t);
}

static void build_tables(struct test *t)
{
    unsigned d = t->bits == 16 ? 0 : B32, s = t->stack32 ? B32 : 0, i;
    memcpy(gdt, monitor_gdt, 0x38);
    memset(gdt + 0x38, 0, sizeof(gdt) - 0x38);
    descriptor(gdt, SEL_DFTSS, (uint32_t)df_tss, 0x67, 0x89);
    descriptor(gdt, SEL_TSS, (uint32_t)tss, one_in(t, 4) ? 0x67 : 0x68 + 0x60, 0x89);
    if (!t->lm)
        descriptor(gdt, SEL_TSS2, (uint32_t)tss2, 0x67, 0x89 | below(t, 4) << 5);
    descriptor(gdt, SEL_LDT, (uint32_t)ldt, sizeof(ldt) - 1, 0x82);
    /* Rings 1 and 3 have the "_3" selectors; rings 0 the others. In 64-bit mode L. */
    unsigned dpl = t->cpl ? t->cpl << 5 : 3 << 5;
    descriptor(gdt, SEL_CODE_0, t->lm ? 0 : CODE, t->lm ? 0xfffff : 0xffff, t->lm ? 0x9b | L | G : 0x9b | d | (one_in(t, 8) && !t->cpl ? 4 : 0)); /* QEMU: RPL 0 by a gate to a conforming segment */
    descriptor(gdt, SEL_CODE_3, CODE, 0xffff, 0x9b | dpl | d);
    descriptor(gdt, SEL_LONG_3, t->lm ? 0 : CODE, t->lm ? 0xfffff : 0xffff, 0xfb | (t->lm ? L | G : d));
    for (i = 0; i < 2; i++) {
        descriptor(gdt, i ? SEL_STACK_3 : SEL_STACK_0, t->bits == 64 ? 0 : STACK, 0x1ffff, 0x93 | (i ? dpl : 0) | s);
    }
    if (one_in(t, 2))
        data_descriptor(t, gdt, SEL_DATA_0, 0x92 | (one_in(t, 8) ? 4 : 0) | (one_in(t, 2) ? B32 : 0));
    else
        descriptor(gdt, SEL_DATA_0, t->area, 0x1ffff, 0x92);
    descriptor(gdt, SEL_DATA_3, t->area, 0x1ffff, 0xf2);
    for (unsigned sel = SEL_RANDOM; sel < N_GDT * 8; sel += 8)
        random_descriptor(t, gdt, sel);
    for (unsigned sel = 0; sel < sizeof(ldt); sel += 8)
        random_descriptor(t, ldt, sel);
}

/* Most vectors lead to the monitor; 0x30 to 0x3f through gates of all sorts. */
static void build_idt(struct test *t)
{
    memset(idt, 0, sizeof(idt));
    for (unsigned v = 0; v < N_VECTORS; v++) {
        bool odd = v >= 0x30;
        unsigned dpl = odd ? below(t, 4) : v == 3 || v == 4 || v == 5 ? 3 : one_in(t, 4) ? 3 : 0;
        unsigned type = odd && one_in(t, 8) ? below(t, 16) : one_in(t, 2) ? 14 : 15;
        unsigned attr = type | dpl << 5 | (odd && one_in(t, 8) ? 0 : 0x80);
        /* In compatibility mode a gate to CPL 3 would push where ESP has the monitor's upper
         * half, as the user; QEMU pushes as the supervisor. */
        unsigned sel = odd && one_in(t, 4) && !(t->lm && t->bits != 64) ? any_selector(t) : SEL_CODE;
        if (t->lm) {
            gate(idt + v * 16, sel == SEL_CODE ? SEL_LONG : sel, (uint32_t)stubs64 + v * 16, attr, v == 8);
        } else {
            if (odd && (type == 6 || type == 7) && sel == SEL_CODE)
                sel = SEL_CODE_0; /* 16-bit offsets do not reach the monitor */
            bool inner = sel == SEL_CODE;
            gate(idt + v * 8, sel, inner ? (uint32_t)stubs32 + v * 16 : 0x900 + v * 4, attr, 0);
            if (v == 8)
                gate(idt + v * 8, SEL_DFTSS, 0, 0x85, 0);
            else if (odd && one_in(t, 8))
                gate(idt + v * 8, SEL_TSS2, 0, 0x85 | dpl << 5, 0);
        }
    }
    for (unsigned v = 0; v < 256; v++) {
        uint16_t *p = (uint16_t *)(TEST_IVT + v * 4);
        p[0] = (uint16_t)(LOW_CODE + (low_stubs - low_begin) + (v % N_VECTORS) * 16);
        p[1] = 0;
    }
    uint32_t *w = (uint32_t *)df_tss;
    memset(df_tss, 0, sizeof(df_tss));
    w[7] = (uint32_t)page_tables[0];
    w[8] = (uint32_t)df_entry;
    w[9] = 2;
    w[14] = (uint32_t)(df_stack + sizeof(df_stack) - 16);
    w[19] = SEL_CODE;
    w[18] = w[20] = w[21] = w[22] = w[23] = SEL_DATA;
    w[25] = 0x680000;
}

/* --- paging -------------------------------------------------------------------------- */

#define P_P 1u
#define P_W 2u
#define P_U 4u
#define P_A 0x20u
#define P_D 0x40u
#define P_PS 0x80u

static void set_entry(struct test *t, uint8_t *table, unsigned i, uint32_t lo, uint32_t hi)
{
    uint32_t *w = (uint32_t *)table;
    if (t->pae)
        w[2 * i] = lo, w[2 * i + 1] = hi;
    else
        w[i] = lo;
}

/* Flags for a page of the area; *hi: NX and reserved bits of long entries. */
static uint32_t odd_flags(struct test *t, uint32_t *hi)
{
    uint32_t f = P_P | P_W | P_U | (rnd(t) & (P_A | P_D));
    *hi = 0;
    if (one_in(t, 2))
        return f;
    switch (below(t, 8)) {
    case 0: return f & ~P_P;
    case 1: case 2: return f & ~P_W;
    case 3: return f & ~P_U;
    case 4: *hi = 0x80000000; return f;
    case 5: *hi = one_in(t, 2) ? 0x00080000 : 0; return f;
    default: return (rnd(t) & 0x67) | (one_in(t, 4) ? 0 : P_P);
    }
}

/* 4 MiB seen three times: at 0 by small pages; at 4 MiB by small pages whose
 * directory entries are odd; at 8 MiB by large pages. */
static void build_paging(struct test *t)
{
    uint32_t hi, user = t->cpl == 3 || t->vm86 ? P_U : one_in(t, 12) ? P_U : 0;
    uint8_t *pd = t->pae ? page_tables[2] : page_tables[0];
    unsigned per = t->pae ? 512 : 1024;
    memset(page_tables, 0, sizeof(page_tables));
    if (t->lm) {
        set_entry(t, page_tables[0], 0, (uint32_t)page_tables[1] | 7, 0);
        set_entry(t, page_tables[1], 0, (uint32_t)page_tables[2] | 7, 0);
    } else if (t->pae) {
        set_entry(t, page_tables[0], 0, (uint32_t)page_tables[2] | 1, 0);
    }
    for (unsigned k = 0; k < 2; k++)
        for (unsigned i = 0; i < 1024; i++) {
            uint8_t *table = page_tables[3 + 2 * k + i / per];
            uint32_t a = i << 12, f = P_P | P_W | P_A | P_D;
            hi = 0;
            if (a < 0x8000)
                f = 0;
            else if (a >= AREA && a < AREA + 0x10000)
                f = odd_flags(t, &hi);
            else if (a >= STACK && a < STACK + 0x10000)
                f = one_in(t, 64) ? (rnd(t) & 0x67) | P_U : f | P_U; /* QEMU pops as supervisor */
            else if (a >= CODE && a < CODE + 0x10000)
                f |= one_in(t, 64) ? 0 : user, hi = one_in(t, 64) ? 0x80000000 : 0;
            set_entry(t, table, i % per, a | f, hi);
        }
    for (unsigned i = 0; i < 4; i++) {
        unsigned last = t->pae ? 2 : 1;
        if (i < last)
            set_entry(t, pd, i, (uint32_t)page_tables[3 + i] | 7, 0);
        if (i < last) {
            uint32_t f = odd_flags(t, &hi) & ~P_PS;
            set_entry(t, pd, last + i, (uint32_t)page_tables[5 + i] | f, hi);
            f = odd_flags(t, &hi) | P_PS;
            if (one_in(t, 16))
                f |= t->pae ? 0x2000 : 0x200000; /* reserved in large pages */
            set_entry(t, pd, 2 * last + i, (t->pae ? i << 21 : 0) | f, hi);
        }
    }
}

/* --- modes ------------------------------------------------------------------------------- */

static void mode_facts(struct test *t)
{
    static const uint8_t bits[] = {16, 16, 16, 16, 32, 16, 32, 32, 64, 64, 32, 16};
    static const uint8_t cpl[] = {0, 0, 3, 0, 0, 3, 3, 1, 0, 3, 3, 3};
    t->bits = bits[t->mode];
    t->cpl = cpl[t->mode];
    t->pe = t->mode >= M_VM86;
    t->vm86 = t->mode == M_VM86;
    t->lm = t->mode >= M_LONG_0;
    t->stack32 = t->pe && !t->vm86 && (t->bits == 32 ? !one_in(t, 4) : one_in(t, 4));
    t->paging = t->lm || (t->pe && one_in(t, 2));
    t->pae = t->lm || (t->paging && one_in(t, 2));
    t->area = AREA;
    if (t->paging && !t->vm86 && one_in(t, 2))
        t->area += one_in(t, 2) ? 0x400000 : 0x800000;
}

static void control_registers(struct test *t)
{
    struct state *s = &state_in;
    s->cr0 = 0x11 | (t->paging ? 0x80000000 : 0) | (one_in(t, 2) ? 0x10000 : 0) | (one_in(t, 8) ? rnd(t) & 0xe : 0) |
             (one_in(t, 2) ? 0x20 : 0); /* no AM: QEMU has no alignment check */
    s->cr3 = (uint32_t)page_tables[0];
    s->cr4 = (rnd(t) & 0x10c) | /* no VME and PVI: not in the engine */ (t->pae ? 0x20 : 0) | (one_in(t, 4) ? 0 : 0x10) | (one_in(t, 2) ? 0x200 : 0) |
             (one_in(t, 4) ? 0x800 : 0) | (one_in(t, 3) ? 0x10000 : 0) | (one_in(t, 3) ? 0x100000 : 0);
    s->cr4 &= cr4_features | 0x30;
    if (t->area >= 0x800000)
        s->cr4 |= 0x10; /* large pages */
    s->efer = (t->lm ? 0x100 : 0) | (one_in(t, 2) ? 0x800 : 0) | (one_in(t, 4) ? 0 : 1);
    s->gdtr = (struct table_pointer){sizeof(gdt) - 1 - (one_in(t, 8) ? 8 : 0), (uint32_t)gdt};
    s->idtr = (struct table_pointer){(uint16_t)((t->lm ? 16 : 8) * (N_VECTORS - (one_in(t, 2) ? 8 : 0)) - 1), (uint32_t)idt};
    if (!t->pe)
        s->idtr = (struct table_pointer){0x3ff, TEST_IVT};
    s->ldt = one_in(t, 8) ? 0 : SEL_LDT;
    s->tr = SEL_TSS;
    s->limits = t->mode == M_UNREAL ? SEL_UNREAL : SEL_DATA16;
}

static void segments(struct test *t)
{
    struct state *s = &state_in;
    static const uint16_t stack_edge[] = {0x1000, 0x1000, 0x800, 0x2000, 0x1000};
    uint32_t sp = stack_edge[below(t, 5)] + 2 * below(t, 24) - 24;
    if (!t->pe || t->vm86) {
        s->ss = STACK >> 4, s->cs = s->cs16 = CODE >> 4;
        s->ds = one_in(t, 4) ? any_selector(t) : AREA >> 4;
        s->es = any_selector(t), s->fs = any_selector(t), s->gs = any_selector(t);
        sp &= 0xfffe;
    } else {
        bool user = t->cpl != 0;
        s->cs = t->mode == M_LONG_0 ? SEL_CODE_0 : t->mode == M_LONG_3 ? SEL_LONG_3 | 3 : user ? SEL_CODE_3 | t->cpl : SEL_CODE_0;
        s->ss = user ? SEL_STACK_3 | t->cpl : SEL_STACK_0;
        s->ds = user || one_in(t, 2) ? SEL_DATA_3 | 3 : SEL_DATA_0;
        s->es = one_in(t, 2) ? SEL_DATA_3 | 3 : s->ds;
        s->fs = t->bits == 64 && one_in(t, 4) ? 0 : SEL_DATA_3; /* QEMU accesses through null selectors */
        s->gs = t->bits == 64 && one_in(t, 4) ? 0 : SEL_DATA_3 | 3;
        if (t->stack32)
            sp = sp & 0x8000 ? sp & 0xffff : sp;
        else
            sp = (sp & 0xffff) | (rnd(t) & 0x7fff0000);
    }
    s->gpr[4] = sp;
    if (t->lm && t->bits == 64) {
        s->gpr[4] = STACK + 0x1000 + below(t, 8) * 8 - 32 + (one_in(t, 4) ? below(t, 8) : 0);
        if (one_in(t, 32))
            s->gpr[4] = 0x8000000000000000ull + rnd(t);
    }
    s->esp = (uint32_t)s->gpr[4];
}

static void registers(struct test *t)
{
    struct state *s = &state_in;
    static const uint32_t odd[] = {0, 1, 0x7f, 0x80, 0xff, 0x8000, 0xffff, 0x80000000, 0xffffffff};
    for (unsigned i = 0; i < 16; i++) {
        if (i == 4)
            continue;
        s->gpr[i] = one_in(t, 3) ? odd[below(t, 9)] : 0x80000000u | rnd(t);
        if (t->bits == 64)
            s->gpr[i] |= one_in(t, 2) ? (uint64_t)rnd(t) << 32 | 0x8000000000000000ull : 0xffff000000000000ull;
    }
    /* Pointers: EBX, EBP, ESI, EDI, in 64-bit code linear addresses. */
    static const uint8_t pointer[] = {3, 5, 6, 7};
    for (unsigned i = 0; i < 4; i++) {
        uint64_t v = hot_offset(t);
        if (t->bits == 64) {
            v = t->area + (v & 0xffff);
            if (one_in(t, 24))
                v = 0x800000000040ull + below(t, 16);
        } else if (t->bits == 16) {
            v |= one_in(t, 8) ? (uint64_t)rnd(t) & 0xffff0000u : 0;
        }
        s->gpr[pointer[i]] = v;
    }
    for (unsigned i = 0; i < 3; i++)
        s->bases[i] = below(t, 64) + (one_in(t, 8) ? 0xffff800000000000ull : 0);
    s->eflags = 2 | (rnd(t) & 0x8d5) | (one_in(t, 4) ? 0x400 : 0) | (one_in(t, 2) ? 0x200 : 0) | below(t, 4) << 12;
    if (one_in(t, 2) && t->cpl)
        s->eflags |= 0x3000;
    if (one_in(t, 4) && t->pe)
        s->eflags |= rnd(t) & 0x44000; /* NT AC */
    if (t->vm86)
        s->eflags |= 0x20000;
    if (one_in(t, 16) && (t->cpl || t->lm))
        s->eflags |= 0x100;
}

static void memory(struct test *t)
{
    static const uint32_t windows[] = {0, 0xfc0, 0x1fc0, 0x7fc0, 0xff80};
    memset((void *)STACK, 0, 0x10000); /* nothing of an earlier case */
    memset((void *)AREA, 0, 0x11000);
    for (unsigned k = 0; k < 5; k++)
        for (unsigned i = 0; i < 0x80; i += 4) {
            *(uint32_t *)(AREA + windows[k] + i) = rnd(t);
            *(uint32_t *)(STACK + windows[k] + i) = rnd(t);
        }
    for (unsigned i = 0; i < 0x80; i += 4) {
        *(uint32_t *)(AREA + 0x10000 + i) = rnd(t);
        *(uint32_t *)(STACK + 0x7c0 + i) = rnd(t);
    }
    memset(r0_stack, 0, sizeof(r0_stack));
}

void case_begin(struct test *t)
{
    struct state *s = &state_in;
    memset(s, 0, offsetof(struct state, bases) + sizeof(s->bases));
    mode_facts(t);
    build_tss(t);
    build_tables(t);
    build_idt(t);
    if (t->paging)
        build_paging(t);
    control_registers(t);
    segments(t);
    registers(t);
    memory(t);
    s->kind = t->lm ? KIND_LONG : !t->pe ? KIND_REAL : t->vm86 ? KIND_VM86 : t->cpl ? KIND_OUTER : KIND_PM;
    t->code_at = one_in(t, 4) ? 0x1000 - below(t, 12) : 0x100 + below(t, 16);
    if (t->form->early && t->cpl && t->paging)
        t->code_at = 0x100 + t->code_at % 16;
    t->code = (uint8_t *)CODE + t->code_at;
    s->eip = t->code_at;
    s->eip16 = (uint16_t)t->code_at;
    s->rip = t->code_at + (t->bits == 64 ? CODE : 0);
    t->compare_after = t->pusha = false;
}

void case_finish(struct test *t)
{
    if (t->compare_after) { /* cmp al, imm: defines the flags */
        *t->code++ = 0x3c;
        *t->code++ = 0x55;
    }
    *t->code++ = 0x0f;
    *t->code++ = 0x0b;
}
