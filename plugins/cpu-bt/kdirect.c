/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/kdirect.c - the kernel-direct tier's window: see kdirect.h.
 * Runs in signal handlers and in the middle of translated code: no libc.
 */
#include "kdirect_window.h"
#include "mmu.h"
#include <sys/mman.h>
#include <sys/syscall.h>

#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_PS 0x80ull
#define PTE_G 0x100ull
#define PA_MASK 0x000ffffffffff000ull
#define REGION (2ull << 20)
#define MAX_MAPS 24000u  /* of the host's usual 65530 */
#define MAX_LOCAL_DROPS 2000u
#define MAX_CODE_STORES 6u
#define MAX_DROPS 4u

static inline long sys6(long nr, long a, long b, long c, long d, long e, long f)
{
    long ret;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return ret;
}

static void lock(struct kdirect *kd)
{
    unsigned spins = 0;
    while (atomic_exchange_explicit(&kd->lock, 1, memory_order_acquire))
        do {
            __builtin_ia32_pause();
            if (++spins % 512 == 0)
                sys6(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
        } while (atomic_load_explicit(&kd->lock, memory_order_relaxed));
}
static void unlock(struct kdirect *kd) { atomic_store_explicit(&kd->lock, 0, memory_order_release); }

static inline uint64_t window(uint64_t a) { return a + KD_BASE; }
/* In the window's reach: the upper half without its lowest 2 MiB. */
static inline bool reachable(uint64_t a) { return a >= 0ull - KD_BASE; }

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

/* --- the guest's page tables ------------------------------------------------------ */
struct leaf {
    uint64_t e, pml4e, pa; /* pa: of the 4 KiB page */
    const uint64_t *slot;
    uint8_t shift;
    bool rw, global; /* rw: a store needs to set nothing and is allowed even with CR0.WP */
};

static const uint64_t *table_at(const struct bt_vcpu *c, uint64_t pa)
{
    return (const uint64_t *)(bt_phys_page(c->vm, pa & PA_MASK) & ~0xfffull);
}
static inline uint64_t entry(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }

static void leaf_of(const struct bt_vcpu *c, uint64_t a, uint64_t e, bool wr, struct leaf *l)
{
    uint64_t mask = (1ull << l->shift) - 1;
    l->e = e;
    l->pa = ((e & PA_MASK & ~mask) | (a & mask)) & ~0xfffull;
    l->rw = wr && (e & PTE_W) && (e & PTE_D);
    l->global = (e & PTE_G) && (c->cr4 & BT_CR4_PGE);
}

/* False: not mapped, or not accessed yet. */
static bool descend(const struct bt_vcpu *c, uint64_t a, struct leaf *l)
{
    uint64_t next = c->cr3;
    bool wr = true;
    for (int level = 3;; level--) {
        const uint64_t *t = table_at(c, next);
        l->shift = (uint8_t)(12 + 9 * level);
        if (!t)
            return false;
        l->slot = t + (a >> l->shift & 511);
        uint64_t e = entry(l->slot);
        if (level == 3)
            l->pml4e = e;
        if (!(e & PTE_P))
            return false;
        if (level == 0 || (level < 3 && (e & PTE_PS))) {
            leaf_of(c, a, e, wr, l);
            return (e & PTE_A) != 0;
        }
        wr &= (e & PTE_W) != 0;
        next = e;
    }
}

static uint64_t pml4e_of(const struct bt_vcpu *c, uint64_t a)
{
    const uint64_t *t = table_at(c, c->cr3);
    return t ? entry(t + (a >> 39 & 511)) & ~(PTE_A | PTE_D) : 0;
}

/* Do all vCPUs map what is at a through the same tables? */
static bool roots_agree(const struct bt_vcpu *c, uint64_t a)
{
    uint64_t mine = pml4e_of(c, a);
    for (unsigned i = 0; i < c->vm->n_vcpus; i++) {
        const struct bt_vcpu *v = c->vm->vcpu[i];
        if (v && v != c && bt_long_mode(v) && !v->wait_sipi && pml4e_of(v, a) != mine)
            return false;
    }
    return true;
}

/* --- regions ------------------------------------------------------------------------ */
static inline uint32_t hash(uint64_t x) { return (uint32_t)((x * 0x9e3779b97f4a7c15ull) >> 50); }
_Static_assert(KD_HASH == 1u << 14, "as hash() has it");

static struct kd_gib *gib_of(struct kdirect *kd, uint64_t a, bool create)
{
    uint16_t *t = &kd->top[a >> 30 & 0x1ffff];
    if (!*t && create && kd->n_gibs < KD_GIBS)
        *t = (uint16_t)kd->n_gibs++;
    return *t ? &kd->gibs[*t] : NULL;
}
static struct kd_region *region_of(struct kdirect *kd, uint64_t a, bool create)
{
    struct kd_gib *g = gib_of(kd, a, create);
    if (!g)
        return NULL;
    uint32_t *i = &g->region[a >> 21 & 511];
    if (!*i && create && kd->n_regions < KD_REGIONS) {
        *i = kd->n_regions++;
        kd->regions[*i].va = a & ~(REGION - 1);
    }
    return *i ? &kd->regions[*i] : NULL;
}

static void unmap(uint64_t host, uint64_t n) { sys6(SYS_munmap, (long)host, (long)n, 0, 0, 0, 0); }
static void count(struct kdirect *kd, struct kd_region *r, int n)
{
    kd->n_maps += (uint32_t)n;
    r->pieces += (uint32_t)n;
}
static bool protect(struct kdirect *kd, struct kd_region *r, uint64_t host, uint64_t n, bool rw)
{
    count(kd, r, 2);
    return sys6(SYS_mprotect, (long)host, (long)n, rw ? PROT_READ | PROT_WRITE : PROT_READ, 0, 0, 0) == 0;
}
/* Where something else is, nothing is placed. */
static bool map(struct kdirect *kd, struct kd_region *r, uint64_t host, uint64_t n, bool rw, const struct hvx_mem_slot *s, uint64_t pa)
{
    long at = sys6(SYS_mmap, (long)host, (long)n, rw ? PROT_READ | PROT_WRITE : PROT_READ,
                  MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_NORESERVE, s->fd, (long)(s->fd_offset + (pa - s->gpa)));
    if (at < 0 && at > -4096)
        return false;
    if ((uint64_t)at != host) { /* a kernel before 4.17 takes the address for a hint */
        unmap((uint64_t)at, n);
        return false;
    }
    /* As of guest RAM's own mapping. */
    sys6(SYS_madvise, at, (long)n, MADV_DONTDUMP, 0, 0, 0);
    sys6(SYS_madvise, at, (long)n, MADV_DONTFORK, 0, 0, 0);
    count(kd, r, 1);
    return true;
}

static const struct hvx_mem_slot *slot_of(const struct kdirect *kd, uint64_t pa)
{
    for (unsigned i = 0; i < kd->n_slots; i++)
        if (pa - kd->slots[i].gpa < kd->slots[i].bytes)
            return kd->slots[i].fd >= 0 ? &kd->slots[i] : NULL;
    return NULL;
}

static bool is_own(const struct kdirect *kd, uint64_t host, uint64_t n)
{
    for (unsigned i = 0; i < kd->n_own; i++)
        if (host < kd->own[i].hi && kd->own[i].lo < host + n)
            return true;
    return false;
}

static void set_local(struct kdirect *kd, struct kd_region *r, uint32_t n)
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

static void page_out(struct kdirect *kd, struct kd_region *r, unsigned i)
{
    uint64_t *p = &kd->tables[r->table].pte[i];
    chain_remove(&kd->page_hash[hash(*p >> 12)], r->table << 9 | i, next_page, kd);
    r->n--;
    if (r->pieces)
        count(kd, r, -1);
    if (!(*p & KD_GLOBAL))
        set_local(kd, r, r->n_local - 1);
    *p = 0;
}

/* The part of a slot that a large page's region shows; false: none. */
static bool part(const struct hvx_mem_slot *s, uint64_t pa, uint64_t *lo, uint64_t *hi)
{
    *lo = s->gpa > pa ? s->gpa : pa;
    *hi = s->gpa + s->bytes < pa + REGION ? s->gpa + s->bytes : pa + REGION;
    return s->fd >= 0 && *lo < *hi;
}
/* Not what lies between slots: it may be somebody else's. The slots have not changed since. */
static void large_unmap(struct kdirect *kd, const struct kd_region *r)
{
    uint64_t lo, hi;
    for (unsigned i = 0; i < kd->n_slots; i++)
        if (part(&kd->slots[i], r->pa, &lo, &hi))
            unmap(window(r->va) + (lo - r->pa), hi - lo);
}
static bool large_map(struct kdirect *kd, struct kd_region *r, uint64_t pa)
{
    uint64_t lo, hi, base = window(r->va);
    for (unsigned i = 0; i < kd->n_slots; i++) {
        if (!part(&kd->slots[i], pa, &lo, &hi))
            continue;
        if (!map(kd, r, base + (lo - pa), hi - lo, false, &kd->slots[i], lo)) {
            while (i--)
                if (part(&kd->slots[i], pa, &lo, &hi))
                    unmap(base + (lo - pa), hi - lo);
            return false;
        }
        if (hi - lo == REGION) /* a wish */
            sys6(SYS_madvise, (long)base, REGION, MADV_HUGEPAGE, 0, 0, 0);
    }
    return true;
}

/* All of a region goes. */
static void region_out(struct bt_vcpu *c, struct kdirect *kd, struct kd_region *r)
{
    if (!r->shift)
        return;
    if (c)
        c->st.kd_unmaps++;
    if (r->shift > 12) {
        large_unmap(kd, r);
        chain_remove(&kd->large_hash[hash(r->pa >> 21)], (uint32_t)(r - kd->regions), next_large, kd);
        if (r->shift == 30)
            gib_of(kd, r->va, false)->n_1g--;
    } else {
        for (unsigned i = 0, n; i < 512 && r->n; i += n + 1) {
            for (n = 0; i + n < 512 && kd->tables[r->table].pte[i + n]; n++)
                page_out(kd, r, i + n);
            if (n)
                unmap(window(r->va) + i * 4096ull, n * 4096ull);
        }
    }
    set_local(kd, r, 0);
    count(kd, r, -(int)r->pieces);
    r->shift = 0;
    r->rw = false;
}

static void all_out(struct bt_vcpu *c, struct kdirect *kd)
{
    for (uint32_t i = 1; i < kd->n_regions; i++)
        region_out(c, kd, &kd->regions[i]);
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
        if (ch)
            atomic_store_explicit(&ch->written[bt_chunk_page(pa)], 1, memory_order_relaxed);
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

static enum bt_kd_verdict place_large(struct bt_vcpu *c, struct kdirect *kd, struct kd_region *r, const struct leaf *l,
                                      bool write)
{
    uint64_t pa0 = l->pa & ~(REGION - 1), base = window(r->va);
    if (r->shift && (r->shift != l->shift || r->pa != pa0 || !r->n_local != l->global))
        region_out(c, kd, r);
    const struct hvx_mem_slot *s = slot_of(kd, l->pa);
    if (!s)
        return KD_SOFT;
    if (!r->shift) {
        if (is_own(kd, base, REGION) || !large_map(kd, r, pa0))
            return KD_SOFT;
        c->st.kd_maps++;
        r->shift = l->shift;
        r->pa = pa0;
        r->rw = false;
        uint32_t id = (uint32_t)(r - kd->regions);
        r->next_pa = kd->large_hash[hash(pa0 >> 21)];
        kd->large_hash[hash(pa0 >> 21)] = id;
        if (l->shift == 30)
            gib_of(kd, r->va, false)->n_1g++;
        set_local(kd, r, !l->global);
    }
    if (!l->rw || (s->flags & HVX_SLOT_READONLY))
        return write ? KD_SOFT : KD_RETRY;
    uint64_t lo, hi;
    part(s, pa0, &lo, &hi);
    if (!clean_run(c->vm, l->pa, &lo, &hi))
        return write ? KD_SOFT : KD_RETRY;
    r->rw = true;
    return protect(kd, r, base + (lo - pa0), hi - lo, true) ? KD_RETRY : KD_SOFT;
}

/* Can page i of the region's guest table go along with l's, d pages further? */
static bool goes_along(const struct bt_vcpu *c, const struct leaf *l, const uint64_t *table, bool wr, unsigned i, int d,
                       const struct hvx_mem_slot *s)
{
    struct leaf n = {.shift = 12};
    uint64_t e = entry(table + i), pa = l->pa + (uint64_t)((int64_t)d << 12);
    if (!(e & PTE_P) || !(e & PTE_A) || pa - s->gpa >= s->bytes)
        return false;
    leaf_of(c, 0, e, wr, &n);
    return n.pa == pa && n.rw == l->rw && n.global == l->global;
}

static enum bt_kd_verdict place_page(struct bt_vcpu *c, struct kdirect *kd, struct kd_region *r, uint64_t a,
                                     const struct leaf *l, bool write)
{
    unsigned i = a >> 12 & 511;
    if (r->shift > 12)
        region_out(c, kd, r);
    if (!r->table) {
        if (kd->n_tables == KD_TABLES)
            return KD_SOFT;
        r->table = kd->n_tables++;
        kd->table_region[r->table] = (uint32_t)(r - kd->regions);
    }
    const struct hvx_mem_slot *s = slot_of(kd, l->pa);
    if (!s)
        return KD_SOFT;
    uint64_t *pte = kd->tables[r->table].pte;
    uint64_t base = window(r->va);
    bool rw = l->rw && !(s->flags & HVX_SLOT_READONLY);
    if (pte[i] && ((pte[i] & PA_MASK) != l->pa || !(pte[i] & KD_GLOBAL) == l->global)) {
        unmap(base + i * 4096ull, 4096);
        page_out(kd, r, i);
    }
    uint64_t lo = l->pa, hi = l->pa + 4096;
    if (pte[i]) {
        if (!rw)
            return write ? KD_SOFT : KD_RETRY;
        if (pte[i] & KD_RW)
            return KD_RETRY;
        if (!clean_run(c->vm, l->pa, &lo, &hi))
            return write ? KD_SOFT : KD_RETRY;
        if (!protect(kd, r, base + i * 4096ull, 4096, true))
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
    if (is_own(kd, base + first * 4096ull, hi - lo) || !map(kd, r, base + first * 4096ull, hi - lo, rw, s, lo))
        return KD_SOFT;
    c->st.kd_maps++;
    r->shift = 12;
    r->drops = 0;
    for (unsigned j = first; j <= last; j++) {
        uint64_t pa = lo + (uint64_t)(j - first) * 4096;
        uint32_t h = hash(pa >> 12), id = r->table << 9 | j;
        pte[j] = pa | KD_PLACED | (rw ? KD_RW : 0) | (l->global ? KD_GLOBAL : 0);
        kd->tables[r->table].next[j] = kd->page_hash[h];
        kd->page_hash[h] = id;
    }
    r->n += last - first + 1;
    if (!l->global)
        set_local(kd, r, r->n_local + last - first + 1);
    return KD_RETRY;
}

/* Does the guest map something where the process has memory? To 2 MiB: a page table there is enough. */
static bool guest_at(const struct bt_vcpu *c, uint64_t lo, uint64_t hi)
{
    for (uint64_t a = lo & ~(REGION - 1); a < hi;) {
        const uint64_t *t = table_at(c, c->cr3);
        unsigned shift = 39;
        for (; t; shift -= 9) {
            uint64_t e = entry(t + (a >> shift & 511));
            if (!(e & PTE_P))
                break;
            if (shift == 21 || (shift == 30 && (e & PTE_PS)))
                return true;
            t = table_at(c, e);
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

static void conflict_off(struct bt_vcpu *c, struct kdirect *kd)
{
    tier_off(c, kd, "the guest's kernel maps addresses where this process has memory");
}
/* What it costs to take pages out for each program, which do not see the kernel's, is more than the tier gains. */
static void isolated_off(struct bt_vcpu *c, struct kdirect *kd)
{
    if (kd->local_drops > MAX_LOCAL_DROPS)
        tier_off(c, kd, "the guest's kernel hides its memory from programs by page tables of their own");
}

static bool conflict(const struct bt_vcpu *c, struct kdirect *kd, bool deep)
{
    for (unsigned i = 0; i < kd->n_own; i++) {
        uint64_t lo = kd->own[i].lo - KD_BASE, hi = kd->own[i].hi - KD_BASE, e = pml4e_of(c, lo);
        if (!deep && e == kd->own_pml4e[i] && !((lo ^ (hi - 1)) >> 39))
            continue;
        kd->own_pml4e[i] = e;
        if (guest_at(c, lo, hi))
            return true;
    }
    return false;
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
    struct kd_stores *s = &kd->stores[hash(pa >> 12)];
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
    uint64_t e = pml4e_of(c, a);
    if ((kd->local_regions[i] && kd->local_pml4e[i] != e))
        return false;
    kd->local_pml4e[i] = e;
    atomic_fetch_add(&kd->n_local, 1);
    bool may = roots_agree(c, a);
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
    struct leaf l;
    c->st.kd_faults++;
    if (host >> 47 || !reachable(a) || !bt_long_mode(c) || !atomic_load(&kd->active))
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
    lock(kd);
    if (kd->n_maps > MAX_MAPS)
        all_out(c, kd);
    struct kd_region *r = region_of(kd, a, true);
    if (conflict(c, kd, true))
        off = true;
    else if (!r)
        v = KD_SOFT;
    else if (!descend(c, a, &l) || (write && !(l.e & PTE_D)))
        v = KD_RETRY; /* changed since the walk */
    else if (write && !l.rw)
        v = KD_SOFT; /* allowed for CR0.WP is clear */
    else if (!l.global && !local_may(c, kd, a))
        v = KD_SOFT;
    else
        v = (local = !l.global, l.shift > 12) ? place_large(c, kd, r, &l, write) : place_page(c, kd, r, a, &l, write);
    if (local)
        atomic_fetch_sub(&kd->n_local, 1); /* local_may()'s */
    code = v == KD_SOFT && write && r && descend(c, a, &l) && l.rw && has_code(c->vm, l.pa);
    unlock(kd);
    if (off) {
        conflict_off(c, kd);
        return KD_SOFT;
    }
    return code ? code_page(c, kd, b, l.pa) : v;
}

/* --- translations, slots ------------------------------------------------------------- */
void bt_kd_protect(struct bt_vm *vm, uint64_t pa)
{
    struct kdirect *kd = vm->kd;
    bool fine = true;
    if (!kd || !atomic_load(&kd->active))
        return;
    pa &= ~0xfffull;
    lock(kd);
    for (uint32_t i = kd->large_hash[hash(pa >> 21)]; i; i = kd->regions[i].next_pa) {
        struct kd_region *r = &kd->regions[i];
        if (r->pa == (pa & ~(REGION - 1)) && r->rw)
            fine &= protect(kd, r, window(r->va) + (pa - r->pa), 4096, false);
    }
    for (uint32_t id = kd->page_hash[hash(pa >> 12)]; id; id = kd->tables[id >> 9].next[id & 511]) {
        uint64_t *p = &kd->tables[id >> 9].pte[id & 511];
        if ((*p & PA_MASK) != pa || !(*p & KD_RW))
            continue;
        struct kd_region *r = &kd->regions[kd->table_region[id >> 9]];
        fine &= protect(kd, r, window(r->va) + (id & 511) * 4096ull, 4096, false);
        *p &= ~KD_RW;
    }
    if (!fine) /* too many mappings */
        all_out(NULL, kd);
    unlock(kd);
}

void bt_kd_drop(struct kdirect *kd)
{
    lock(kd);
    all_out(NULL, kd);
    unlock(kd);
}

void bt_kd_slots(struct bt_vm *vm)
{
    struct kdirect *kd = vm->kd;
    if (!kd)
        return;
    lock(kd);
    all_out(NULL, kd); /* by the old slots */
    kd->n_slots = vm->n_slots;
    for (unsigned i = 0; i < vm->n_slots; i++)
        kd->slots[i] = vm->slots[i];
    unlock(kd);
}

/* --- invalidations ---------------------------------------------------------------------- */
static bool page_holds(uint64_t placed, const struct leaf *l)
{
    return (placed & PA_MASK) == l->pa && (!(placed & KD_RW) || l->rw) && !(placed & KD_GLOBAL) == !l->global;
}

/* Page i of a region that has a table, -1: all. */
static void table_check(struct bt_vcpu *c, struct kdirect *kd, struct kd_region *r, int only, bool local_only)
{
    uint64_t *pte = kd->tables[r->table].pte;
    struct leaf l;
    const uint64_t *t = table_at(c, c->cr3);
    bool wr = true;
    for (unsigned shift = 39; shift > 12 && t; shift -= 9) {
        uint64_t e = entry(t + (r->va >> shift & 511));
        wr &= (e & PTE_W) != 0;
        t = (e & PTE_P) && !(shift < 39 && (e & PTE_PS)) ? table_at(c, e) : NULL;
    }
    unsigned n = r->n;
    for (unsigned i = only < 0 ? 0 : (unsigned)only; n && i < (only < 0 ? 512u : (unsigned)only + 1); i++) {
        if (!pte[i])
            continue;
        n--;
        if (local_only && (pte[i] & KD_GLOBAL))
            continue;
        uint64_t e = t ? entry(t + i) : 0;
        l.shift = 12;
        leaf_of(c, 0, e, wr, &l);
        if ((e & PTE_P) && (e & PTE_A) && page_holds(pte[i], &l))
            continue;
        /* A guest that goes through a region page by page is soon told that nothing is there. */
        if (++r->drops > MAX_DROPS) {
            region_out(c, kd, r);
            return;
        }
        c->st.kd_unmaps++;
        unmap(window(r->va) + i * 4096ull, 4096);
        page_out(kd, r, i);
    }
    if (!r->n)
        r->shift = 0;
}

static void region_check(struct bt_vcpu *c, struct kdirect *kd, struct kd_region *r, bool local_only)
{
    struct leaf l;
    if (!r->shift || (local_only && !r->n_local))
        return;
    c->st.kd_checks++;
    if (r->shift == 12) {
        table_check(c, kd, r, -1, local_only);
        return;
    }
    if (!descend(c, r->va, &l) || l.shift != r->shift || l.pa != r->pa || (r->rw && !l.rw) || !r->n_local != l.global)
        region_out(c, kd, r);
}

void bt_kd_mapped(struct bt_vcpu *c, uint64_t lin)
{
    struct kdirect *kd = c->vm->kd;
    if (atomic_load_explicit(&kd->active, memory_order_relaxed) && reachable(lin) && bt_long_mode(c) && is_own(kd, window(lin), 4096))
        conflict_off(c, kd);
}

void bt_kd_invlpg(struct bt_vcpu *c, uint64_t lin)
{
    struct kdirect *kd = c->vm->kd;
    if (!kd || !reachable(lin) || !atomic_load(&kd->active) || !bt_long_mode(c))
        return;
    if (is_own(kd, window(lin), 4096) && conflict(c, kd, true)) {
        conflict_off(c, kd);
        return;
    }
    lock(kd);
    struct kd_gib *g = gib_of(kd, lin, false);
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
    unlock(kd);
}

/* Other tables are behind an entry of the root: does what is there agree with the new ones? */
static void part_check(struct bt_vcpu *c, struct kdirect *kd, unsigned part)
{
    uint64_t before = c->st.kd_unmaps;
    for (uint32_t i = 1; i < kd->n_regions && kd->local_regions[part]; i++)
        if ((kd->regions[i].va >> 39 & 255) == part)
            region_check(c, kd, &kd->regions[i], true);
    if (kd->local_regions[part] && !roots_agree(c, (uint64_t)(part + 256) << 39)) /* another vCPU's tables may change alone */
        for (uint32_t i = 1; i < kd->n_regions; i++)
            if ((kd->regions[i].va >> 39 & 255) == part && kd->regions[i].n_local)
                region_out(c, kd, &kd->regions[i]);
    kd->local_pml4e[part] = pml4e_of(c, (uint64_t)(part + 256) << 39);
    kd->local_drops += (uint32_t)(c->st.kd_unmaps - before);
}

static void parts_check(struct bt_vcpu *c, struct kdirect *kd)
{
    for (unsigned i = 0; i < 256; i++)
        if (kd->local_regions[i] && kd->local_pml4e[i] != pml4e_of(c, (uint64_t)(i + 256) << 39))
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
            lock(kd);
            all_out(c, kd);
            unlock(kd);
        }
        return;
    }
    atomic_thread_fence(memory_order_seq_cst); /* CR3 is out: see roots_agree() */
    bool off = false;
    if (global || atomic_load(&kd->n_local)) {
        lock(kd);
        parts_check(c, kd);
        for (uint32_t i = 1; i < kd->n_regions; i++)
            region_check(c, kd, &kd->regions[i], !global);
        off = global && conflict(c, kd, true);
        unlock(kd);
    }
    isolated_off(c, kd);
    if (off || conflict(c, kd, false))
        conflict_off(c, kd);
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
        lock(kd);
        parts_check(c, kd);
        unlock(kd);
        isolated_off(c, kd);
    }
    if (conflict(c, kd, false))
        conflict_off(c, kd);
}
