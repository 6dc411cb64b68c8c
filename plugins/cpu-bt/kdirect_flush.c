/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/kdirect_flush.c - the kernel-direct tier: the guest invalidates
 * translations; its page tables and the process's own memory. See kdirect.h.
 */
#include "kdirect_window.h"

#define MAX_LOCAL_DROPS 2000u
#define MAX_DROPS 4u

/* --- when the tier goes off ----------------------------------------------------------- */
/* Does the guest map something where the process has memory? To 2 MiB: a page table there is enough. */
static bool guest_at(const struct bt_vcpu *c, uint64_t lo, uint64_t hi)
{
    for (uint64_t a = lo & ~(KD_REGION - 1); a < hi;) {
        const uint64_t *t = kd_table_at(c, c->cr3);
        unsigned shift = 39;
        for (; t; shift -= 9) {
            uint64_t e = kd_entry(t + (a >> shift & 511));
            if (!(e & PTE_P))
                break;
            if (shift == 21 || (shift == 30 && (e & PTE_PS)))
                return true;
            t = kd_table_at(c, e);
        }
        uint64_t next = (a | ((1ull << shift) - 1)) + 1;
        if (next <= a)
            break;
        a = next;
    }
    return false;
}

static void tier_off(struct bt_vcpu *c, struct kdirect *kd, const char *why)
{
    if (!atomic_exchange(&kd->active, false))
        return;
    uint64_t all = c->vm->n_vcpus == 64 ? ~0ull : (1ull << c->vm->n_vcpus) - 1;
    kd->why_off = why;
    atomic_store(&kd->say, true);
    bt_kick(c, BT_PEND_KICK); /* to where it can be said: bt_kd_start() */
    /* The window stays where it is until the last block that uses it is left. */
    bt_sync_request(c->vm, NULL, all, BT_SYNC_FLUSH, 0, 0, false);
}

void kd_conflict_off(struct bt_vcpu *c, struct kdirect *kd)
{
    tier_off(c, kd, "the guest's kernel maps addresses where this process has memory");
}
/* What it costs to take pages out for each program, which do not see the kernel's, is more than the tier gains. */
static void isolated_off(struct bt_vcpu *c, struct kdirect *kd)
{
    if (kd->local_drops > MAX_LOCAL_DROPS)
        tier_off(c, kd, "the guest's kernel hides its memory from programs by page tables of their own");
}

bool kd_conflict(const struct bt_vcpu *c, struct kdirect *kd, bool deep)
{
    for (unsigned i = 0; i < kd->n_own; i++) {
        uint64_t lo = kd->own[i].lo - KD_BASE, hi = kd->own[i].hi - KD_BASE, e = kd_pml4e(c, lo);
        if (!deep && e == kd->own_pml4e[i] && !((lo ^ (hi - 1)) >> 39))
            continue;
        kd->own_pml4e[i] = e;
        if (guest_at(c, lo, hi))
            return true;
    }
    return false;
}

/* --- invalidations ---------------------------------------------------------------------- */
static bool page_holds(uint64_t placed, const struct kd_leaf *l)
{
    return (placed & PTE_PAGE) == l->pa && (!(placed & KD_RW) || l->rw) && !(placed & KD_GLOBAL) == !l->global;
}

/* Page i of a region that has a table, -1: all. */
static void table_check(struct bt_vcpu *c, struct kdirect *kd, struct kd_region *r, int only, bool local_only)
{
    uint64_t *pte = kd->tables[r->table].pte;
    struct kd_leaf l;
    const uint64_t *t = kd_table_at(c, c->cr3);
    bool wr = true;
    for (unsigned shift = 39; shift > 12 && t; shift -= 9) {
        uint64_t e = kd_entry(t + (r->va >> shift & 511));
        wr &= (e & PTE_W) != 0;
        t = (e & PTE_P) && !(shift < 39 && (e & PTE_PS)) ? kd_table_at(c, e) : NULL;
    }
    unsigned n = r->n;
    for (unsigned i = only < 0 ? 0 : (unsigned)only; n && i < (only < 0 ? 512u : (unsigned)only + 1); i++) {
        if (!pte[i])
            continue;
        n--;
        if (local_only && (pte[i] & KD_GLOBAL))
            continue;
        uint64_t e = t ? kd_entry(t + i) : 0;
        l.shift = 12;
        kd_leaf_of(c, 0, e, wr, &l);
        if ((e & PTE_P) && (e & PTE_A) && page_holds(pte[i], &l))
            continue;
        /* A guest that goes through a region page by page is soon told that nothing is there. */
        if (++r->drops > MAX_DROPS) {
            kd_region_out(c, kd, r);
            return;
        }
        c->st.kd_unmaps++;
        kd_unmap(kd_window(r->va) + i * 4096ull, 4096);
        kd_page_out(kd, r, i);
    }
    if (!r->n)
        r->shift = 0;
}

static void region_check(struct bt_vcpu *c, struct kdirect *kd, struct kd_region *r, bool local_only)
{
    struct kd_leaf l;
    if (!r->shift || (local_only && !r->n_local))
        return;
    c->st.kd_checks++;
    if (r->shift == 12) {
        table_check(c, kd, r, -1, local_only);
        return;
    }
    if (!kd_descend(c, r->va, &l) || l.shift != r->shift || l.pa != r->pa || (r->rw && !l.rw) ||
        !r->n_local != l.global)
        kd_region_out(c, kd, r);
}

void bt_kd_mapped(struct bt_vcpu *c, uint64_t lin)
{
    struct kdirect *kd = c->vm->kd;
    if (atomic_load_explicit(&kd->active, memory_order_relaxed) && kd_reachable(lin) && bt_long_mode(c) &&
        kd_is_own(kd, kd_window(lin), 4096))
        kd_conflict_off(c, kd);
}

void bt_kd_invlpg(struct bt_vcpu *c, uint64_t lin)
{
    struct kdirect *kd = c->vm->kd;
    if (!kd || !kd_reachable(lin) || !atomic_load(&kd->active) || !bt_long_mode(c))
        return;
    if (kd_is_own(kd, kd_window(lin), 4096) && kd_conflict(c, kd, true)) {
        kd_conflict_off(c, kd);
        return;
    }
    kd_lock(kd);
    struct kd_gib *g = kd_gib_of(kd, lin, false);
    if (g && g->n_1g) {
        for (unsigned i = 0; i < 512; i++)
            if (g->region[i])
                region_check(c, kd, &kd->regions[g->region[i]], false);
    } else if (g && g->region[lin >> 21 & 511]) {
        struct kd_region *r = &kd->regions[g->region[lin >> 21 & 511]];
        if (r->shift == 12 && kd->tables[r->table].pte[lin >> 12 & 511]) {
            c->st.kd_checks++;
            table_check(c, kd, r, (int)(lin >> 12 & 511), false);
        } else if (r->shift > 12) {
            region_check(c, kd, r, false);
        }
    }
    kd_unlock(kd);
}

/* Other tables are behind an entry of the root: does what is there agree with the new ones? */
static void part_check(struct bt_vcpu *c, struct kdirect *kd, unsigned part)
{
    uint64_t before = c->st.kd_unmaps;
    for (uint32_t i = 1; i < kd->n_regions && kd->local_regions[part]; i++)
        if ((kd->regions[i].va >> 39 & 255) == part)
            region_check(c, kd, &kd->regions[i], true);
    /* Do they not, another vCPU's tables may change alone. */
    if (kd->local_regions[part] && !kd_roots_agree(c, (uint64_t)(part + 256) << 39))
        for (uint32_t i = 1; i < kd->n_regions; i++)
            if ((kd->regions[i].va >> 39 & 255) == part && kd->regions[i].n_local)
                kd_region_out(c, kd, &kd->regions[i]);
    kd->local_pml4e[part] = kd_pml4e(c, (uint64_t)(part + 256) << 39);
    kd->local_drops += (uint32_t)(c->st.kd_unmaps - before);
}

static void parts_check(struct bt_vcpu *c, struct kdirect *kd)
{
    for (unsigned i = 0; i < 256; i++)
        if (kd->local_regions[i] && kd->local_pml4e[i] != kd_pml4e(c, (uint64_t)(i + 256) << 39))
            part_check(c, kd, i);
}

void bt_kd_flush(struct bt_vcpu *c, bool global)
{
    struct kdirect *kd = c->vm->kd;
    if (!kd || !atomic_load(&kd->active))
        return;
    if (!bt_long_mode(c)) {
        /* Global pages may outlive the paging mode, where they cannot be used; there is nothing to compare with. */
        if (global && kd->n_regions > 1 && c->vm->n_vcpus == 1) {
            kd_lock(kd);
            kd_all_out(c, kd);
            kd_unlock(kd);
        }
        return;
    }
    atomic_thread_fence(memory_order_seq_cst); /* CR3 is out: see kd_roots_agree() */
    bool off = false;
    if (global || atomic_load(&kd->n_local)) {
        kd_lock(kd);
        parts_check(c, kd);
        for (uint32_t i = 1; i < kd->n_regions; i++)
            region_check(c, kd, &kd->regions[i], !global);
        off = global && kd_conflict(c, kd, true);
        kd_unlock(kd);
    }
    isolated_off(c, kd);
    if (off || kd_conflict(c, kd, false))
        kd_conflict_off(c, kd);
}

void bt_kd_switch(struct bt_vcpu *c, bool keep)
{
    struct kdirect *kd = c->vm->kd;
    if (!kd || !atomic_load(&kd->active) || !bt_long_mode(c))
        return;
    if (!keep) {
        bt_kd_flush(c, false);
        return;
    }
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&kd->n_local)) {
        kd_lock(kd);
        parts_check(c, kd);
        kd_unlock(kd);
        isolated_off(c, kd);
    }
    if (kd_conflict(c, kd, false))
        kd_conflict_off(c, kd);
}
