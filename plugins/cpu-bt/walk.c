/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/walk.c - the guest's page tables: SDM volume 3, chapter 4.
 */
#include "cpu_model.h"
#include "mmu.h"

static inline void *pte_ptr(struct bt_vcpu *c, uint64_t pa)
{
    uintptr_t p = bt_phys_page(c->vm, pa);
    return p ? (void *)((p & ~0xfffull) | (pa & 0xfff)) : NULL;
}

static uint64_t reserved_bits(const struct bt_vcpu *c)
{
    uint64_t high = 0x000fffffffffffffull & ~((1ull << bt_cpuid_phys_bits(c->vm)) - 1);
    return c->efer & BT_EFER_NXE ? high : high | PTE_NX;
}

/* 64-bit entries on the way to a page. */
struct path {
    uint64_t *slot; /* of the entry that maps it */
    uint8_t shift;
    bool wr, us, nx; /* of the levels above */
    unsigned n;
    uint64_t *up[3], entry[3]; /* those levels */
};

/* BT_WALKED: found, not looked into. */
static int descend(struct bt_vcpu *c, uint64_t lin, struct path *p)
{
    bool lm = bt_long_mode(c);
    uint64_t table = c->cr3 & PTE_PAGE, reserved = reserved_bits(c);
    int level = 3;
    p->wr = p->us = true;
    p->nx = false;
    p->n = 0;
    if (!lm) {
        uint64_t e = c->pdpte[(lin >> 30) & 3];
        if (!(e & PTE_P))
            return 0;
        table = e & PTE_PAGE;
        level = 1;
    }
    for (;; level--) {
        p->shift = (uint8_t)(12 + 9 * level);
        p->slot = pte_ptr(c, table + ((lin >> p->shift) & 511) * 8);
        if (!p->slot)
            return 0;
        if (level == 0)
            return BT_WALKED;
        uint64_t e = __atomic_load_n(p->slot, __ATOMIC_RELAXED);
        if (!(e & PTE_P))
            return 0;
        if ((e & reserved) || (level == 3 && (e & PTE_PS)))
            return PF_P | PF_RSVD;
        if (e & PTE_PS)
            return BT_WALKED;
        p->wr &= (e & PTE_W) != 0;
        p->us &= (e & PTE_U) != 0;
        p->nx |= (e & PTE_NX) != 0;
        p->up[p->n] = p->slot;
        p->entry[p->n++] = e;
        table = e & PTE_PAGE;
    }
}

static bool set_bits(uint64_t *slot, uint64_t e, uint64_t bits)
{
    return (e & bits) == bits ||
           __atomic_compare_exchange_n(slot, &e, e | bits, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/* The entry that maps the page: rights, then A in all entries and D. -1: they
 * have changed under us. */
static int arrive(struct bt_vcpu *c, uint64_t lin, unsigned acc, const struct path *p, struct bt_walk *w, bool peek)
{
    uint64_t e = __atomic_load_n(p->slot, __ATOMIC_RELAXED), mask = (1ull << p->shift) - 1;
    if (!(e & PTE_P))
        return 0;
    if (e & reserved_bits(c))
        return PF_P | PF_RSVD;
    if (p->shift > 12) {
        if (!(e & PTE_PS))
            return -1;
        if ((e & PTE_PAGE) & mask & ~0x1000ull) /* bit 12 is PAT */
            return PF_P | PF_RSVD;
    }
    bool wr = p->wr && (e & PTE_W), us = p->us && (e & PTE_U), nx = p->nx || (e & PTE_NX);
    if (acc & BT_ACC_USER) {
        if (!us || ((acc & BT_ACC_WRITE) && !wr))
            return PF_P;
    } else if ((acc & BT_ACC_WRITE) && !wr && (c->cr0 & BT_CR0_WP)) {
        return PF_P;
    }
    if ((acc & BT_ACC_FETCH) && (nx || (!(acc & BT_ACC_USER) && us && (c->cr4 & BT_CR4_SMEP))))
        return PF_P;
    uint64_t bits = PTE_A | (acc & BT_ACC_WRITE ? PTE_D : 0);
    if (!peek) {
        for (unsigned i = 0; i < p->n; i++)
            if (!set_bits(p->up[i], p->entry[i], PTE_A))
                return -1;
        if (!set_bits(p->slot, e, bits))
            return -1;
        e |= bits;
    }
    w->pa = ((e & PTE_PAGE & ~mask) | (lin & mask)) & ~0xfffull;
    w->writable = wr || (!(acc & BT_ACC_USER) && !(c->cr0 & BT_CR0_WP));
    w->user = us;
    w->exec = !nx;
    w->shift = p->shift;
    w->global = (e & PTE_G) && (c->cr4 & BT_CR4_PGE);
    w->dirty = (e & PTE_D) != 0;
    return BT_WALKED;
}

static int walk64(struct bt_vcpu *c, uint64_t lin, unsigned acc, struct bt_walk *w, bool peek)
{
    struct bt_mmu *m = c->mmu;
    uint64_t region = lin >> 21 & 0x7ffffff, key = region | m->space->psc_gen << 27;
    struct bt_psc *s = &m->psc[(region ^ region >> 9 ^ region >> 18) % BT_PSC_SIZE];
    struct path p;
    int rc;
    if (s->key == key) {
        p.slot = s->shift == 12 ? s->slot + (lin >> 12 & 511) : s->slot;
        p.shift = s->shift;
        p.wr = s->wr;
        p.us = s->us;
        p.nx = s->nx;
        p.n = 0;
        rc = arrive(c, lin, acc, &p, w, peek);
        if (rc == BT_WALKED)
            return rc;
        s->key = 0; /* a fault is told by the tables themselves */
    }
    do {
        rc = descend(c, lin, &p);
        if (rc != BT_WALKED)
            return rc;
        rc = arrive(c, lin, acc, &p, w, peek);
    } while (rc < 0);
    if (rc == BT_WALKED && !peek) {
        s->key = key;
        s->slot = p.shift == 12 ? p.slot - (lin >> 12 & 511) : p.slot;
        s->shift = p.shift;
        s->wr = p.wr;
        s->us = p.us;
        s->nx = p.nx;
    }
    return rc;
}

static int walk32(struct bt_vcpu *c, uint64_t lin, unsigned acc, struct bt_walk *w, bool peek)
{
    uint32_t *s = pte_ptr(c, (c->cr3 & 0xfffff000u) + ((lin >> 22) & 1023) * 4);
    if (!s)
        return 0;
    uint32_t pde = __atomic_load_n(s, __ATOMIC_RELAXED), pte = 0, *t = NULL;
    if (!(pde & PTE_P))
        return 0;
    bool large = (pde & PTE_PS) && (c->cr4 & BT_CR4_PSE);
    if (large && (pde & 1u << 21)) /* reserved in a 4 MiB page's entry: SDM volume 3, 4.3 */
        return PF_P | PF_RSVD;
    bool wr = (pde & PTE_W) != 0, us = (pde & PTE_U) != 0;
    if (!large) {
        t = pte_ptr(c, (pde & 0xfffff000u) + ((lin >> 12) & 1023) * 4);
        if (!t)
            return 0;
        pte = __atomic_load_n(t, __ATOMIC_RELAXED);
        if (!(pte & PTE_P))
            return 0;
        wr &= (pte & PTE_W) != 0;
        us &= (pte & PTE_U) != 0;
    }
    if (acc & BT_ACC_USER) {
        if (!us || ((acc & BT_ACC_WRITE) && !wr))
            return PF_P;
    } else if ((acc & BT_ACC_WRITE) && !wr && (c->cr0 & BT_CR0_WP)) {
        return PF_P;
    }
    if ((acc & BT_ACC_FETCH) && !(acc & BT_ACC_USER) && us && (c->cr4 & BT_CR4_SMEP))
        return PF_P;
    uint32_t d = (acc & BT_ACC_WRITE) ? (uint32_t)PTE_D : 0;
    if (!peek) {
        uint32_t want = pde | (uint32_t)PTE_A | (large ? d : 0);
        if (want != pde && !__atomic_compare_exchange_n(s, &pde, want, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
            return -1;
        if (!large) {
            want = pte | (uint32_t)PTE_A | d;
            if (want != pte && !__atomic_compare_exchange_n(t, &pte, want, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
                return -1;
            pte = want;
        } else {
            pde = want;
        }
    }
    uint32_t last = large ? pde : pte;
    w->pa = large ? ((uint64_t)(pde & 0xffc00000u) | (uint64_t)(pde >> 13 & 0xff) << 32 | (lin & 0x3ff000))
                  : pte & 0xfffff000u;
    w->writable = wr || (!(acc & BT_ACC_USER) && !(c->cr0 & BT_CR0_WP));
    w->user = us;
    w->exec = true;
    w->shift = large ? 22 : 12;
    w->global = (last & PTE_G) && (c->cr4 & BT_CR4_PGE);
    w->dirty = (last & PTE_D) != 0;
    return BT_WALKED;
}

int mmu_walk(struct bt_vcpu *c, uint64_t lin, unsigned acc, struct bt_walk *w, bool peek)
{
    if (!(c->cr0 & BT_CR0_PG)) {
        w->pa = lin & 0xfffff000u;
        w->writable = w->user = w->exec = w->dirty = true;
        w->global = false;
        w->shift = 12;
        return BT_WALKED;
    }
    if (c->cr4 & BT_CR4_PAE)
        return walk64(c, lin, acc, w, peek);
    int rc;
    do
        rc = walk32(c, lin, acc, w, peek);
    while (rc < 0);
    return rc;
}

_Noreturn void mmu_fault(struct bt_vcpu *c, uint64_t lin, unsigned acc, int rc)
{
    uint32_t e = (uint32_t)rc | (acc & BT_ACC_WRITE ? PF_W : 0) | (acc & BT_ACC_USER ? PF_U : 0);
    if ((acc & BT_ACC_FETCH) && ((c->cr4 & BT_CR4_SMEP) || ((c->cr4 & BT_CR4_PAE) && (c->efer & BT_EFER_NXE))))
        e |= PF_I;
    c->st.page_faults++;
    bt_raise_pf(c, lin, e);
}
