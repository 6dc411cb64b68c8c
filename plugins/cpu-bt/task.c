/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/task.c - hardware task switches, 16- and 32-bit TSSs (SDM
 * volume 3, chapter 7). Long mode has none.
 *
 * Order: everything that can fault in the old task's context is checked and
 * probed first; then the old state is saved and the new one loaded; faults
 * found while loading the new task's segments are raised in the new task.
 */
#include "sys.h"

struct tss {
    uint32_t sel;
    uint64_t lin_desc, d;
    uint32_t base, limit;
    bool wide; /* 32-bit */
};

/* What the image of a task holds. */
struct image {
    uint32_t cr3, eip, eflags, gpr[8], sel[6], ldt, trap;
};

static unsigned tss_size(const struct tss *t) { return t->wide ? 104 : 44; }

static void open_tss(struct bt_vcpu *c, struct tss *t, uint32_t sel, enum sys_task_cause cause, uint32_t ext)
{
    uint32_t error = (sel & 0xfffc) | ext, bad = cause == SYS_TASK_IRET ? BT_EX_TS : BT_EX_GP;
    const unsigned want_busy = cause == SYS_TASK_IRET ? 2 : 0;

    t->sel = sel;
    if (sys_null(sel) || (sel & 4) || !sys_desc_addr(c, sel, 8, &t->lin_desc))
        bt_raise_err(c, bad, error);
    t->d = bt_read(c, t->lin_desc, 8, 0);
    unsigned type = sys_desc_type(t->d);
    if (sys_desc_s(t->d) || (type & 5) != 1 || (type & 2) != want_busy)
        bt_raise_err(c, bad, error);
    if (!sys_desc_p(t->d))
        bt_raise_err(c, BT_EX_NP, error);
    t->wide = type & 8;
    t->base = sys_desc_base(t->d);
    t->limit = sys_desc_limit(t->d);
    if (t->limit < tss_size(t) - 1)
        bt_raise_err(c, BT_EX_TS, error);
}

static uint32_t rd(struct bt_vcpu *c, uint32_t base, unsigned off, unsigned n)
{
    return (uint32_t)bt_read(c, base + off, n, 0);
}

static void wr(struct bt_vcpu *c, uint32_t base, unsigned off, unsigned n, uint32_t v)
{
    bt_write(c, base + off, n, v, BT_ACC_WRITE);
}

/* Offsets: 16-bit: IP 14, FLAGS 16, AX.. 18, ES CS SS DS 34, LDT 42;
 * 32-bit: CR3 28, EIP 32, EFLAGS 36, EAX.. 40, ES.. 72, LDT 96, T 100. */
static void read_image(struct bt_vcpu *c, const struct tss *t, struct image *m)
{
    const unsigned n = t->wide ? 4 : 2;
    const uint32_t b = t->base;

    m->cr3 = t->wide ? rd(c, b, 28, 4) : 0;
    m->eip = rd(c, b, t->wide ? 32 : 14, n);
    m->eflags = rd(c, b, t->wide ? 36 : 16, n);
    for (unsigned i = 0; i < 8; i++)
        m->gpr[i] = rd(c, b, t->wide ? 40 + 4 * i : 18 + 2 * i, n) | (t->wide ? 0 : 0xffff0000u);
    for (unsigned i = 0; i < 6; i++)
        m->sel[i] = t->wide ? rd(c, b, 72 + 4 * i, 2) : i < 4 ? rd(c, b, 34 + 2 * i, 2) : 0;
    m->ldt = rd(c, b, t->wide ? 96 : 42, 2);
    m->trap = t->wide ? rd(c, b, 100, 2) & 1 : 0;
}

static void save_image(struct bt_vcpu *c, uint32_t b, bool wide, uint32_t eip, uint32_t eflags)
{
    const unsigned n = wide ? 4 : 2;

    wr(c, b, wide ? 32 : 14, n, eip);
    wr(c, b, wide ? 36 : 16, n, eflags);
    for (unsigned i = 0; i < 8; i++)
        wr(c, b, wide ? 40 + 4 * i : 18 + 2 * i, n, (uint32_t)c->gpr[i]);
    for (unsigned i = 0; i < (wide ? 6u : 4u); i++)
        wr(c, b, wide ? 72 + 4 * i : 34 + 2 * i, 2, c->seg[i].selector);
}

static void set_busy(struct bt_vcpu *c, uint32_t sel, bool busy)
{
    uint64_t lin;
    if (!sys_desc_addr(c, sel, 8, &lin))
        return;
    uint32_t type = (uint32_t)bt_read(c, lin + 5, 1, 0);
    bt_write(c, lin + 5, 1, busy ? type | 2 : type & ~2u, BT_ACC_WRITE);
}

/* --- the new task's segments: faults belong to the new task ------------------------- */
static void load_ldt(struct bt_vcpu *c, uint32_t sel, uint32_t ext)
{
    uint64_t lin;

    c->ldtr = (struct hvx_segment){.selector = (uint16_t)sel, .attr = SYS_UNUSABLE};
    if (sys_null(sel))
        return;
    if ((sel & 4) || !sys_desc_addr(c, sel, 8, &lin))
        bt_raise_err(c, BT_EX_TS, (sel & 0xfffc) | ext);
    uint64_t d = bt_read(c, lin, 8, 0);
    if (sys_desc_s(d) || sys_desc_type(d) != SYS_LDT || !sys_desc_p(d))
        bt_raise_err(c, BT_EX_TS, (sel & 0xfffc) | ext);
    sys_seg_cache(&c->ldtr, sel, d);
}

static void load_cs(struct bt_vcpu *c, uint32_t sel, uint32_t ext)
{
    uint32_t error = (sel & 0xfffc) | ext;
    unsigned rpl = sel & 3;

    if (sys_null(sel))
        bt_raise_err(c, BT_EX_TS, error);
    uint64_t d = sys_desc_read(c, sel, BT_EX_TS, ext);
    if (!sys_desc_code(d) || (sys_desc_conforming(d) ? sys_desc_dpl(d) > rpl : sys_desc_dpl(d) != rpl))
        bt_raise_err(c, BT_EX_TS, error);
    if (!sys_desc_p(d))
        bt_raise_err(c, BT_EX_NP, error);
    sys_set_accessed(c, sel, d);
    sys_commit_cs(c, sel, d, rpl);
}

static void load_data(struct bt_vcpu *c, unsigned seg, uint32_t sel, uint32_t ext)
{
    uint32_t error = (sel & 0xfffc) | ext;

    if (sys_null(sel))
        return;
    uint64_t d = sys_desc_read(c, sel, BT_EX_TS, ext);
    bool readable = sys_desc_s(d) && (!sys_desc_code(d) || (d >> 41 & 1));
    unsigned dpl = sys_desc_dpl(d);
    if (!readable || (!sys_desc_conforming(d) && ((sel & 3) > dpl || c->cpl > dpl)))
        bt_raise_err(c, BT_EX_TS, error);
    if (!sys_desc_p(d))
        bt_raise_err(c, BT_EX_NP, error);
    sys_set_accessed(c, sel, d);
    sys_seg_cache(&c->seg[seg], sel, d | 1ull << 40);
    bt_seg_update(c, seg);
}

static void load_segments(struct bt_vcpu *c, const struct image *m, uint32_t ext)
{
    static const uint8_t data[] = {BT_ES, BT_DS, BT_FS, BT_GS};

    /* Until a register is loaded it holds the selector and is unusable. */
    for (unsigned i = 0; i < BT_NSEG; i++) {
        c->seg[i] = (struct hvx_segment){.selector = (uint16_t)m->sel[i], .attr = SYS_UNUSABLE};
        bt_seg_update(c, i);
    }
    if (m->eflags & BT_VM) {
        c->ldtr.attr |= SYS_UNUSABLE;
        load_ldt(c, m->ldt, ext);
        c->cpl = 3;
        for (unsigned i = 0; i < BT_NSEG; i++)
            sys_v86_seg(c, i, m->sel[i]);
        return;
    }
    c->cpl = m->sel[BT_CS] & 3;
    load_ldt(c, m->ldt, ext);
    load_cs(c, m->sel[BT_CS], ext);
    uint64_t d = sys_check_ss(c, m->sel[BT_SS], c->cpl, BT_EX_TS, ext);
    sys_set_accessed(c, m->sel[BT_SS], d);
    sys_seg_cache(&c->seg[BT_SS], m->sel[BT_SS], d | 1ull << 40);
    bt_seg_update(c, BT_SS);
    for (unsigned i = 0; i < sizeof(data); i++)
        load_data(c, data[i], m->sel[data[i]], ext);
}

static void load_state(struct bt_vcpu *c, const struct tss *t, const struct image *m, uint32_t flags)
{
    sys_seg_cache(&c->tr, t->sel, t->d | 2ull << 40);
    c->cr0 |= BT_CR0_TS;
    if (t->wide && (c->cr0 & BT_CR0_PG) && m->cr3 != c->cr3) {
        if ((c->cr4 & BT_CR4_PAE) && !sys_load_pdptes(c, m->cr3))
            bt_raise_err(c, BT_EX_TS, t->sel & 0xfffc);
        c->cr3 = m->cr3;
        c->st.cr3_loads++;
        bt_tlb_flush_nonglobal(c);
    }
    for (unsigned i = 0; i < 8; i++)
        c->gpr[i] = m->gpr[i];
    c->rip = m->eip;
    bt_set_rflags(c, flags);
    c->dr[7] &= ~0x155ull; /* local breakpoints belong to the old task */
}

void sys_task_switch(struct bt_vcpu *c, uint32_t sel, enum sys_task_cause cause, uint64_t ret, bool has_error,
                     uint32_t error, uint32_t ext)
{
    struct tss t;
    struct image m;
    const bool old_wide = (c->tr.attr & 8) != 0, nested = cause == SYS_TASK_CALL || cause == SYS_TASK_INT;
    const uint32_t old_sel = c->tr.selector, old_base = (uint32_t)c->tr.base;

    open_tss(c, &t, sel, cause, ext);
    bt_probe(c, old_base, old_wide ? 104 : 44, BT_ACC_WRITE);
    bt_probe(c, t.base, tss_size(&t), nested ? BT_ACC_WRITE : 0);
    read_image(c, &t, &m);

    /* The old task goes to memory. */
    uint32_t flags = bt_rflags(c);
    if (cause == SYS_TASK_IRET)
        flags &= ~BT_NT;
    save_image(c, old_base, old_wide, (uint32_t)ret, flags);
    if (!nested)
        set_busy(c, old_sel, false);
    if (nested)
        wr(c, t.base, 0, 2, old_sel);
    if (cause != SYS_TASK_IRET)
        set_busy(c, t.sel, true);

    /* From here on faults are the new task's. */
    uint32_t new_flags = (m.eflags & 0x3f7fd5u & ~BT_RF) | 2 | (nested ? BT_NT : 0);
    if (!t.wide)
        new_flags = (new_flags & 0xffff) | 2;
    m.eflags = new_flags;
    load_state(c, &t, &m, new_flags);
    bt_mode_update(c);
    load_segments(c, &m, ext);
    bt_mode_update(c);
    if (m.eip > c->seg[BT_CS].limit)
        bt_raise_err(c, BT_EX_GP, ext);
    if (has_error) {
        struct sys_stack k;
        sys_stack_current(c, &k, ext);
        sys_push(c, &k, t.wide ? 4 : 2, error);
        sys_stack_commit(c, &k);
    }
    if (m.trap) {
        c->dr[6] |= 0x8000;
        bt_raise(c, BT_EX_DB);
    }
}
