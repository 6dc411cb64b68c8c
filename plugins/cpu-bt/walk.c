/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/walk.c - the guest's page tables: SDM volume 3, chapter 4.
 */
#include "cpu_model.h"
#include "mmu.h"

#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_PS 0x80ull
#define PTE_G 0x100ull
#define PTE_NX (1ull << 63)
#define PA_MASK 0x000ffffffffff000ull

static inline void *pte_ptr(struct bt_vcpu *c, uint64_t pa)
{
    uintptr_t p = bt_phys_page(c->vm, pa);
    return p ? (void *)((p & ~0xfffull) | (pa & 0xfff)) : NULL;
}

/* 64-bit entries; sets A (and D) in the guest's tables as the walk needs. */
static int walk64(struct bt_vcpu *c, uint64_t lin, unsigned acc, struct bt_walk *w, bool peek)
{
    bool nxe = (c->efer & BT_EFER_NXE) != 0, lm = bt_long_mode(c);
    uint64_t rsvd = 0x000fffffffffffffull & ~((1ull << bt_cpuid_phys_bits(c->vm)) - 1);
    uint64_t table, entry = 0, *slot[4];
    int level, n = 0;
    bool wr = true, us = true, nx = false;
    uint64_t e[4];
    if (lm) {
        table = c->cr3 & PA_MASK;
        level = 3;
    } else {
        entry = c->pdpte[(lin >> 30) & 3];
        if (!(entry & PTE_P))
            return 0;
        table = entry & PA_MASK;
        level = 1;
    }
    unsigned shift;
    for (;; level--) {
        shift = 12 + 9 * (unsigned)level;
        uint64_t *s = pte_ptr(c, table + ((lin >> shift) & 511) * 8);
        if (!s)
            return 0;
        entry = __atomic_load_n(s, __ATOMIC_RELAXED);
        if (!(entry & PTE_P))
            return 0;
        if (((entry & PTE_NX) && !nxe) || (entry & rsvd))
            return PF_P | PF_RSVD;
        wr &= (entry & PTE_W) != 0;
        us &= (entry & PTE_U) != 0;
        nx |= (entry & PTE_NX) != 0;
        slot[n] = s;
        e[n++] = entry;
        if (level == 0 || (level < 3 && (entry & PTE_PS))) {
            if (level == 0)
                break;
            if (level == 2 && !lm)
                return PF_P | PF_RSVD;
            if ((entry & PA_MASK) & ((1ull << shift) - 1) & ~0x1000ull) /* bit 12 is PAT */
                return PF_P | PF_RSVD;
            break;
        }
        if (level == 3 && (entry & PTE_PS))
            return PF_P | PF_RSVD;
        table = entry & PA_MASK;
    }
    if (acc & BT_ACC_USER) {
        if (!us || ((acc & BT_ACC_WRITE) && !wr))
            return PF_P;
    } else if ((acc & BT_ACC_WRITE) && !wr && (c->cr0 & BT_CR0_WP)) {
        return PF_P;
    }
    if (acc & BT_ACC_FETCH) {
        if (nx || (!(acc & BT_ACC_USER) && us && (c->cr4 & BT_CR4_SMEP)))
            return PF_P;
    }
    if (!peek)
        for (int i = 0; i < n; i++) {
            uint64_t want = e[i] | PTE_A | (i == n - 1 && (acc & BT_ACC_WRITE) ? PTE_D : 0);
            if (want != e[i]) {
                if (!__atomic_compare_exchange_n(slot[i], &e[i], want, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
                    return -1; /* changed under us: walk again */
                e[i] = want;
            }
        }
    entry = e[n - 1];
    uint64_t mask = (1ull << shift) - 1;
    w->pa = ((entry & PA_MASK & ~mask) | (lin & mask)) & ~0xfffull;
    w->writable = wr || (!(acc & BT_ACC_USER) && !(c->cr0 & BT_CR0_WP));
    w->user = us;
    w->exec = !nx;
    w->large = shift > 12;
    w->global = (entry & PTE_G) && (c->cr4 & BT_CR4_PGE);
    w->dirty = (entry & PTE_D) != 0;
    return BT_WALKED;
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
    w->pa = large ? ((uint64_t)(pde & 0xffc00000u) | (uint64_t)(pde >> 13 & 0xff) << 32 | (lin & 0x3ff000)) : pte & 0xfffff000u;
    w->writable = wr || (!(acc & BT_ACC_USER) && !(c->cr0 & BT_CR0_WP));
    w->user = us;
    w->exec = true;
    w->large = large;
    w->global = (last & PTE_G) && (c->cr4 & BT_CR4_PGE);
    w->dirty = (last & PTE_D) != 0;
    return BT_WALKED;
}

int mmu_walk(struct bt_vcpu *c, uint64_t lin, unsigned acc, struct bt_walk *w, bool peek)
{
    if (!(c->cr0 & BT_CR0_PG)) {
        w->pa = lin & 0xfffff000u;
        w->writable = w->user = w->exec = w->dirty = true;
        w->global = w->large = false;
        return BT_WALKED;
    }
    int rc;
    do
        rc = (c->cr4 & BT_CR4_PAE) ? walk64(c, lin, acc, w, peek) : walk32(c, lin, acc, w, peek);
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
