/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/kdirect.c - the kernel-direct tier: what comes into the window
 * when an access has faulted; instructions that are not for it. See kdirect.h.
 */
#include "kdirect_window.h"
#include <sys/mman.h>

#define MAX_MAPS 24000u  /* of the host's usual 65530 */
#define MAX_CODE_STORES 6u

bool bt_kd_on(const struct bt_vm *vm) { return vm->kd && atomic_load_explicit(&vm->kd->active, memory_order_relaxed); }

/* --- soft instructions ------------------------------------------------------------ */
static inline uint32_t soft_bit(uint64_t pa) { return (uint32_t)((pa * 0x9e3779b97f4a7c15ull) >> 43); }

bool bt_kd_is_soft(const struct bt_vm *vm, uint64_t pa)
{
    uint32_t b = soft_bit(pa);
    return atomic_load_explicit(&vm->kd->soft[b >> 6], memory_order_relaxed) >> (b & 63) & 1;
}
void bt_kd_mark_soft(struct bt_vm *vm, uint64_t pa)
{
    uint32_t b = soft_bit(pa);
    atomic_fetch_or_explicit(&vm->kd->soft[b >> 6], 1ull << (b & 63), memory_order_relaxed);
}

/* --- placing ------------------------------------------------------------------------ */
static inline bool has_code(const struct bt_vm *vm, uint64_t pa)
{
    struct bt_page_chunk *ch = bt_chunk(vm, pa);
    return !ch || atomic_load_explicit(&ch->code[bt_chunk_page(pa)], memory_order_relaxed);
}
/* `written` first, then look at `code`: see mmu_fill_walked(). What a translator marks after our look, it protects
 * after us: it waits for the lock. */
static void set_written(const struct bt_vm *vm, uint64_t pa, unsigned n)
{
    for (unsigned i = 0; i < n; i++, pa += 4096) {
        struct bt_page_chunk *ch = bt_chunk(vm, pa);
        if (ch && !(atomic_load_explicit(&ch->written[bt_chunk_page(pa)], memory_order_relaxed) & BT_WRITTEN_WINDOW))
            atomic_fetch_or_explicit(&ch->written[bt_chunk_page(pa)], BT_WRITTEN_WINDOW, memory_order_relaxed);
    }
}

/* The run of pages around pa, inside [lo, hi), without translations. False: pa itself has some. */
static bool clean_run(const struct bt_vm *vm, uint64_t pa, uint64_t *lo, uint64_t *hi)
{
    uint64_t from = pa, to = pa + 4096;
    if (has_code(vm, pa))
        return false;
    while (from > *lo && !has_code(vm, from - 4096))
        from -= 4096;
    while (to < *hi && !has_code(vm, to))
        to += 4096;
    set_written(vm, from, (unsigned)((to - from) >> 12));
    atomic_thread_fence(memory_order_seq_cst);
    for (uint64_t p = pa; p < to; p += 4096)
        if (has_code(vm, p))
            to = p;
    if (to <= pa)
        return false;
    for (uint64_t p = pa; p > from; p -= 4096)
        if (has_code(vm, p - 4096))
            from = p;
    *lo = from;
    *hi = to;
    return true;
}

static enum bt_kd_verdict place_large(struct bt_vcpu *c, struct kdirect *kd, struct kd_region *r,
                                      const struct kd_leaf *l, bool write)
{
    uint64_t pa0 = l->pa & ~(KD_REGION - 1), base = kd_window(r->va);
    if (r->shift && (r->shift != l->shift || r->pa != pa0 || !r->n_local != l->global))
        kd_region_out(c, kd, r);
    const struct hvx_mem_slot *s = kd_slot_of(kd, l->pa);
    if (!s)
        return KD_SOFT;
    if (!r->shift) {
        if (kd_is_own(kd, base, KD_REGION) || !kd_large_map(kd, r, pa0))
            return KD_SOFT;
        c->st.kd_maps++;
        r->shift = l->shift;
        r->pa = pa0;
        r->rw = false;
        uint32_t id = (uint32_t)(r - kd->regions);
        r->next_pa = kd->large_hash[kd_hash(pa0 >> 21)];
        kd->large_hash[kd_hash(pa0 >> 21)] = id;
        if (l->shift == 30)
            kd_gib_of(kd, r->va, false)->n_1g++;
        kd_set_local(kd, r, !l->global);
    }
    if (!l->rw || (s->flags & HVX_SLOT_READONLY))
        return write ? KD_SOFT : KD_RETRY;
    uint64_t lo, hi;
    kd_part(s, pa0, &lo, &hi);
    if (!clean_run(c->vm, l->pa, &lo, &hi))
        return write ? KD_SOFT : KD_RETRY;
    r->rw = true;
    return kd_protect(kd, r, base + (lo - pa0), hi - lo, true) ? KD_RETRY : KD_SOFT;
}

/* Can page i of the region's guest table go along with l's, d pages further? */
static bool goes_along(const struct bt_vcpu *c, const struct kd_leaf *l, const uint64_t *table, bool wr, unsigned i,
                       int d, const struct hvx_mem_slot *s)
{
    struct kd_leaf n = {.shift = 12};
    uint64_t e = kd_entry(table + i), pa = l->pa + (uint64_t)((int64_t)d << 12);
    if (!(e & PTE_P) || !(e & PTE_A) || pa - s->gpa >= s->bytes)
        return false;
    kd_leaf_of(c, 0, e, wr, &n);
    return n.pa == pa && n.rw == l->rw && n.global == l->global;
}

static enum bt_kd_verdict place_page(struct bt_vcpu *c, struct kdirect *kd, struct kd_region *r, uint64_t a,
                                     const struct kd_leaf *l, bool write)
{
    unsigned i = a >> 12 & 511;
    if (r->shift > 12)
        kd_region_out(c, kd, r);
    if (!r->table) {
        if (kd->n_tables == KD_TABLES)
            return KD_SOFT;
        r->table = kd->n_tables++;
        kd->table_region[r->table] = (uint32_t)(r - kd->regions);
    }
    const struct hvx_mem_slot *s = kd_slot_of(kd, l->pa);
    if (!s)
        return KD_SOFT;
    uint64_t *pte = kd->tables[r->table].pte;
    uint64_t base = kd_window(r->va);
    bool rw = l->rw && !(s->flags & HVX_SLOT_READONLY);
    if (pte[i] && ((pte[i] & PTE_PAGE) != l->pa || !(pte[i] & KD_GLOBAL) == l->global)) {
        kd_unmap(base + i * 4096ull, 4096);
        kd_page_out(kd, r, i);
    }
    uint64_t lo = l->pa, hi = l->pa + 4096;
    if (pte[i]) {
        if (!rw)
            return write ? KD_SOFT : KD_RETRY;
        if (pte[i] & KD_RW)
            return KD_RETRY;
        if (!clean_run(c->vm, l->pa, &lo, &hi))
            return write ? KD_SOFT : KD_RETRY;
        if (!kd_protect(kd, r, base + i * 4096ull, 4096, true))
            return KD_SOFT;
        pte[i] |= KD_RW;
        return KD_RETRY;
    }
    const uint64_t *table = l->slot - i;
    bool wr = l->rw; /* of the levels above it is all the same, where it matters */
    unsigned first = i, last = i;
    while (first > 0 && !pte[first - 1] && goes_along(c, l, table, wr, first - 1, (int)(first - 1) - (int)i, s))
        first--;
    while (last < 511 && !pte[last + 1] && goes_along(c, l, table, wr, last + 1, (int)(last + 1) - (int)i, s))
        last++;
    lo = l->pa - (uint64_t)(i - first) * 4096;
    hi = l->pa + (uint64_t)(last - i + 1) * 4096;
    if (rw && !clean_run(c->vm, l->pa, &lo, &hi)) {
        if (write)
            return KD_SOFT;
        rw = false;
        lo = l->pa;
        hi = lo + 4096;
    }
    first = i - (unsigned)((l->pa - lo) >> 12);
    last = i + (unsigned)((hi - l->pa) >> 12) - 1;
    if (write && !rw)
        return KD_SOFT;
    if (kd_is_own(kd, base + first * 4096ull, hi - lo) || !kd_map(kd, r, base + first * 4096ull, hi - lo, rw, s, lo))
        return KD_SOFT;
    c->st.kd_maps++;
    r->shift = 12;
    r->drops = 0;
    for (unsigned j = first; j <= last; j++) {
        uint64_t pa = lo + (uint64_t)(j - first) * 4096;
        uint32_t h = kd_hash(pa >> 12), id = r->table << 9 | j;
        pte[j] = pa | KD_PLACED | (rw ? KD_RW : 0) | (l->global ? KD_GLOBAL : 0);
        kd->tables[r->table].next[j] = kd->page_hash[h];
        kd->page_hash[h] = id;
    }
    r->n += last - first + 1;
    if (!l->global)
        kd_set_local(kd, r, r->n_local + last - first + 1);
    return KD_RETRY;
}

/* The first byte that the access cannot reach is at `host`. */
static enum bt_kd_verdict code_page(struct bt_vcpu *c, struct kdirect *kd, const struct bt_block *b, uint64_t pa)
{
    struct bt_page_chunk *ch = bt_chunk(c->vm, pa);
    uint64_t own = 1ull << c->index, mask = ch ? atomic_load(&ch->code[bt_chunk_page(pa)]) : 0;
    pa &= ~0xfffull;
    if (!mask)
        return KD_SOFT;
    if ((b->pa & ~0xfffull) == pa || b->pa2 == pa)
        return KD_SOFT;
    /* A page that is used for something else now: its translations go. One that has both code and data, and is stored
     * to again and again, is for the look-up, which goes by bytes. */
    struct kd_stores *s = &kd->stores[kd_hash(pa >> 12)];
    uint32_t now = (uint32_t)(bt_host_tsc() >> 24);
    if (now - s->last > 1) {
        s->last = now;
        s->n = 0;
    }
    if (++s->n > MAX_CODE_STORES)
        return KD_SOFT;
    if (mask & own) {
        bt_invalidate_local(c, pa, 4096, NULL);
        struct bt_codepage *p = bt_codepage_get(c, pa, false);
        if (!p || !p->blocks)
            atomic_fetch_and(&ch->code[bt_chunk_page(pa)], ~own);
    }
    if (mask & ~own)
        bt_sync_request(c->vm, c, mask & ~own, BT_SYNC_INVALIDATE, pa, 4096, true);
    return atomic_load(&ch->code[bt_chunk_page(pa)]) ? KD_SOFT : KD_RETRY;
}

/* May a page that is not global be placed? Its part of the address space is looked at whenever a root is loaded: first
 * say so, then look at the others' roots, as they load theirs first and look at `n_local` then. */
static bool local_may(const struct bt_vcpu *c, struct kdirect *kd, uint64_t a)
{
    unsigned i = a >> 39 & 255;
    uint64_t e = kd_pml4e(c, a);
    if ((kd->local_regions[i] && kd->local_pml4e[i] != e))
        return false;
    kd->local_pml4e[i] = e;
    atomic_fetch_add(&kd->n_local, 1);
    bool may = kd_roots_agree(c, a);
    if (!may)
        atomic_fetch_sub(&kd->n_local, 1);
    return may;
}

enum bt_kd_verdict bt_kd_fault(struct bt_vcpu *c, const struct bt_block *b, uint64_t host, bool write, uint32_t *error)
{
    struct kdirect *kd = c->vm->kd;
    uint64_t a = host - KD_BASE;
    unsigned acc = write ? BT_ACC_WRITE : 0;
    struct bt_walk w;
    struct kd_leaf l;
    c->st.kd_faults++;
    if (host >> 47 || !kd_reachable(a) || !bt_long_mode(c) || !atomic_load(&kd->active))
        return KD_SOFT;
    int rc = mmu_walk(c, a, acc, &w, false);
    if (rc != BT_WALKED) {
        c->cr2 = a;
        *error = (uint32_t)rc | (write ? PF_W : 0);
        c->st.page_faults++;
        return KD_FAULT;
    }
    enum bt_kd_verdict v = KD_RETRY;
    bool off = false, code = false, local = false;
    kd_lock(kd);
    if (kd->n_maps > MAX_MAPS)
        kd_all_out(c, kd);
    struct kd_region *r = kd_region_of(kd, a, true);
    if (kd_conflict(c, kd, true))
        off = true;
    else if (!r)
        v = KD_SOFT;
    else if (!kd_descend(c, a, &l) || (write && !(l.e & PTE_D)))
        v = KD_RETRY; /* changed since the walk */
    else if (write && !l.rw)
        v = KD_SOFT; /* allowed for CR0.WP is clear */
    else if (!l.global && !local_may(c, kd, a))
        v = KD_SOFT;
    else
        v = (local = !l.global, l.shift > 12) ? place_large(c, kd, r, &l, write) : place_page(c, kd, r, a, &l, write);
    if (local)
        atomic_fetch_sub(&kd->n_local, 1); /* local_may()'s */
    code = v == KD_SOFT && write && r && kd_descend(c, a, &l) && l.rw && has_code(c->vm, l.pa);
    kd_unlock(kd);
    if (off) {
        kd_conflict_off(c, kd);
        return KD_SOFT;
    }
    return code ? code_page(c, kd, b, l.pa) : v;
}

