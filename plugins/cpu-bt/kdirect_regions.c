/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/kdirect_regions.c - what is in the kernel-direct tier's window: see
 * kdirect.h. Like all of kdirect*.c but kdirect_own.c it runs in signal handlers
 * and in the middle of translated code: no libc.
 */
#include "kdirect_window.h"
#include <sys/mman.h>

void kd_lock(struct kdirect *kd)
{
    unsigned spins = 0;
    while (atomic_exchange_explicit(&kd->lock, 1, memory_order_acquire))
        do {
            __builtin_ia32_pause();
            if (++spins % 512 == 0)
                kd_sys(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
        } while (atomic_load_explicit(&kd->lock, memory_order_relaxed));
}
void kd_unlock(struct kdirect *kd) { atomic_store_explicit(&kd->lock, 0, memory_order_release); }

/* --- the guest's page tables ------------------------------------------------------ */

const uint64_t *kd_table_at(const struct bt_vcpu *c, uint64_t pa)
{
    return (const uint64_t *)(bt_phys_page(c->vm, pa & PTE_PAGE) & ~0xfffull);
}

void kd_leaf_of(const struct bt_vcpu *c, uint64_t a, uint64_t e, bool wr, struct kd_leaf *l)
{
    uint64_t mask = (1ull << l->shift) - 1;
    l->e = e;
    l->pa = ((e & PTE_PAGE & ~mask) | (a & mask)) & ~0xfffull;
    l->rw = wr && (e & PTE_W) && (e & PTE_D);
    l->global = (e & PTE_G) && (c->cr4 & BT_CR4_PGE);
}

/* False: not mapped, or not accessed yet. */
bool kd_descend(const struct bt_vcpu *c, uint64_t a, struct kd_leaf *l)
{
    uint64_t next = c->cr3;
    bool wr = true;
    for (int level = 3;; level--) {
        const uint64_t *t = kd_table_at(c, next);
        l->shift = (uint8_t)(12 + 9 * level);
        if (!t)
            return false;
        l->slot = t + (a >> l->shift & 511);
        uint64_t e = kd_entry(l->slot);
        if (level == 3)
            l->pml4e = e;
        if (!(e & PTE_P))
            return false;
        if (level == 0 || (level < 3 && (e & PTE_PS))) {
            kd_leaf_of(c, a, e, wr, l);
            return (e & PTE_A) != 0;
        }
        wr &= (e & PTE_W) != 0;
        next = e;
    }
}

uint64_t kd_pml4e(const struct bt_vcpu *c, uint64_t a)
{
    const uint64_t *t = kd_table_at(c, c->cr3);
    return t ? kd_entry(t + (a >> 39 & 511)) & ~(PTE_A | PTE_D) : 0;
}

/* Do all vCPUs map what is at a through the same tables? */
bool kd_roots_agree(const struct bt_vcpu *c, uint64_t a)
{
    uint64_t mine = kd_pml4e(c, a);
    for (unsigned i = 0; i < c->vm->n_vcpus; i++) {
        const struct bt_vcpu *v = c->vm->vcpu[i];
        if (v && v != c && bt_long_mode(v) && !v->wait_sipi && kd_pml4e(v, a) != mine)
            return false;
    }
    return true;
}

/* --- regions ------------------------------------------------------------------------ */
struct kd_gib *kd_gib_of(struct kdirect *kd, uint64_t a, bool create)
{
    uint16_t *t = &kd->top[a >> 30 & 0x1ffff];
    if (!*t && create && kd->n_gibs < KD_GIBS)
        *t = (uint16_t)kd->n_gibs++;
    return *t ? &kd->gibs[*t] : NULL;
}
struct kd_region *kd_region_of(struct kdirect *kd, uint64_t a, bool create)
{
    struct kd_gib *g = kd_gib_of(kd, a, create);
    if (!g)
        return NULL;
    uint32_t *i = &g->region[a >> 21 & 511];
    if (!*i && create && kd->n_regions < KD_REGIONS) {
        *i = kd->n_regions++;
        kd->regions[*i].va = a & ~(KD_REGION - 1);
    }
    return *i ? &kd->regions[*i] : NULL;
}

void kd_unmap(uint64_t host, uint64_t n) { kd_sys(SYS_munmap, (long)host, (long)n, 0, 0, 0, 0); }
void kd_count(struct kdirect *kd, struct kd_region *r, int n)
{
    kd->n_maps += (uint32_t)n;
    r->pieces += (uint32_t)n;
}
bool kd_protect(struct kdirect *kd, struct kd_region *r, uint64_t host, uint64_t n, bool rw)
{
    kd_count(kd, r, 2);
    return kd_sys(SYS_mprotect, (long)host, (long)n, rw ? PROT_READ | PROT_WRITE : PROT_READ, 0, 0, 0) == 0;
}
/* Where something else is, nothing is placed. */
bool kd_map(struct kdirect *kd, struct kd_region *r, uint64_t host, uint64_t n, bool rw,
            const struct hvx_mem_slot *s, uint64_t pa)
{
    long at = kd_sys(SYS_mmap, (long)host, (long)n, rw ? PROT_READ | PROT_WRITE : PROT_READ,
                  MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_NORESERVE, s->fd, (long)(s->fd_offset + (pa - s->gpa)));
    if (at < 0 && at > -4096)
        return false;
    if ((uint64_t)at != host) { /* a kernel before 4.17 takes the address for a hint */
        kd_unmap((uint64_t)at, n);
        return false;
    }
    /* As of guest RAM's own mapping. */
    kd_sys(SYS_madvise, at, (long)n, MADV_DONTDUMP, 0, 0, 0);
    kd_sys(SYS_madvise, at, (long)n, MADV_DONTFORK, 0, 0, 0);
    kd_count(kd, r, 1);
    return true;
}

const struct hvx_mem_slot *kd_slot_of(const struct kdirect *kd, uint64_t pa)
{
    for (unsigned i = 0; i < kd->n_slots; i++)
        if (pa - kd->slots[i].gpa < kd->slots[i].bytes)
            return kd->slots[i].fd >= 0 ? &kd->slots[i] : NULL;
    return NULL;
}

bool kd_is_own(const struct kdirect *kd, uint64_t host, uint64_t n)
{
    for (unsigned i = 0; i < kd->n_own; i++)
        if (host < kd->own[i].hi && kd->own[i].lo < host + n)
            return true;
    return false;
}

void kd_set_local(struct kdirect *kd, struct kd_region *r, uint32_t n)
{
    if (!r->n_local != !n) {
        kd->local_regions[r->va >> 39 & 255] += n ? 1u : -1u;
        atomic_fetch_add(&kd->n_local, n ? 1u : -1u);
    }
    r->n_local = n;
}

static void chain_remove(uint32_t *head, uint32_t id, uint32_t *(*next)(struct kdirect *, uint32_t), struct kdirect *kd)
{
    while (*head && *head != id)
        head = next(kd, *head);
    if (*head)
        *head = *next(kd, id);
}
static uint32_t *next_large(struct kdirect *kd, uint32_t id) { return &kd->regions[id].next_pa; }
static uint32_t *next_page(struct kdirect *kd, uint32_t id) { return &kd->tables[id >> 9].next[id & 511]; }

void kd_page_out(struct kdirect *kd, struct kd_region *r, unsigned i)
{
    uint64_t *p = &kd->tables[r->table].pte[i];
    chain_remove(&kd->page_hash[kd_hash(*p >> 12)], r->table << 9 | i, next_page, kd);
    r->n--;
    if (r->pieces)
        kd_count(kd, r, -1);
    if (!(*p & KD_GLOBAL))
        kd_set_local(kd, r, r->n_local - 1);
    *p = 0;
}

/* The part of a slot that a large page's region shows; false: none. */
bool kd_part(const struct hvx_mem_slot *s, uint64_t pa, uint64_t *lo, uint64_t *hi)
{
    *lo = s->gpa > pa ? s->gpa : pa;
    *hi = s->gpa + s->bytes < pa + KD_REGION ? s->gpa + s->bytes : pa + KD_REGION;
    return s->fd >= 0 && *lo < *hi;
}
/* Not what lies between slots: it may be somebody else's. The slots have not changed since. */
static void large_unmap(struct kdirect *kd, const struct kd_region *r)
{
    uint64_t lo, hi;
    for (unsigned i = 0; i < kd->n_slots; i++)
        if (kd_part(&kd->slots[i], r->pa, &lo, &hi))
            kd_unmap(kd_window(r->va) + (lo - r->pa), hi - lo);
}
bool kd_large_map(struct kdirect *kd, struct kd_region *r, uint64_t pa)
{
    uint64_t lo, hi, base = kd_window(r->va);
    for (unsigned i = 0; i < kd->n_slots; i++) {
        if (!kd_part(&kd->slots[i], pa, &lo, &hi))
            continue;
        if (!kd_map(kd, r, base + (lo - pa), hi - lo, false, &kd->slots[i], lo)) {
            while (i--)
                if (kd_part(&kd->slots[i], pa, &lo, &hi))
                    kd_unmap(base + (lo - pa), hi - lo);
            return false;
        }
        if (hi - lo == KD_REGION) /* a wish */
            kd_sys(SYS_madvise, (long)base, KD_REGION, MADV_HUGEPAGE, 0, 0, 0);
    }
    return true;
}

/* All of a region goes. */
void kd_region_out(struct bt_vcpu *c, struct kdirect *kd, struct kd_region *r)
{
    if (!r->shift)
        return;
    if (c)
        c->st.kd_unmaps++;
    if (r->shift > 12) {
        large_unmap(kd, r);
        chain_remove(&kd->large_hash[kd_hash(r->pa >> 21)], (uint32_t)(r - kd->regions), next_large, kd);
        if (r->shift == 30)
            kd_gib_of(kd, r->va, false)->n_1g--;
    } else {
        for (unsigned i = 0, n; i < 512 && r->n; i += n + 1) {
            for (n = 0; i + n < 512 && kd->tables[r->table].pte[i + n]; n++)
                kd_page_out(kd, r, i + n);
            if (n)
                kd_unmap(kd_window(r->va) + i * 4096ull, n * 4096ull);
        }
    }
    kd_set_local(kd, r, 0);
    kd_count(kd, r, -(int)r->pieces);
    r->shift = 0;
    r->rw = false;
}

void kd_all_out(struct bt_vcpu *c, struct kdirect *kd)
{
    for (uint32_t i = 1; i < kd->n_regions; i++)
        kd_region_out(c, kd, &kd->regions[i]);
}

/* --- translations, slots ------------------------------------------------------------- */
void bt_kd_protect(struct bt_vm *vm, uint64_t pa)
{
    struct kdirect *kd = vm->kd;
    bool fine = true;
    if (!kd || !atomic_load(&kd->active))
        return;
    pa &= ~0xfffull;
    kd_lock(kd);
    for (uint32_t i = kd->large_hash[kd_hash(pa >> 21)]; i; i = kd->regions[i].next_pa) {
        struct kd_region *r = &kd->regions[i];
        if (r->pa == (pa & ~(KD_REGION - 1)) && r->rw)
            fine &= kd_protect(kd, r, kd_window(r->va) + (pa - r->pa), 4096, false);
    }
    for (uint32_t id = kd->page_hash[kd_hash(pa >> 12)]; id; id = kd->tables[id >> 9].next[id & 511]) {
        uint64_t *p = &kd->tables[id >> 9].pte[id & 511];
        if ((*p & PTE_PAGE) != pa || !(*p & KD_RW))
            continue;
        struct kd_region *r = &kd->regions[kd->table_region[id >> 9]];
        fine &= kd_protect(kd, r, kd_window(r->va) + (id & 511) * 4096ull, 4096, false);
        *p &= ~KD_RW;
    }
    if (!fine) /* too many mappings */
        kd_all_out(NULL, kd);
    kd_unlock(kd);
}

void bt_kd_drop(struct kdirect *kd)
{
    kd_lock(kd);
    kd_all_out(NULL, kd);
    kd_unlock(kd);
}

void bt_kd_slots(struct bt_vm *vm)
{
    struct kdirect *kd = vm->kd;
    if (!kd)
        return;
    kd_lock(kd);
    kd_all_out(NULL, kd); /* by the old slots */
    kd->n_slots = vm->n_slots;
    for (unsigned i = 0; i < vm->n_slots; i++)
        kd->slots[i] = vm->slots[i];
    kd_unlock(kd);
}

