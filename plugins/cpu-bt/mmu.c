/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/mmu.c - guest page tables, the software TLB, and every
 * access that translated code cannot do inline. Paging: SDM volume 3, chapter 4.
 */
#include "cache.h"
#include "cpu_model.h"
#include "phys.h"

#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_PS 0x80ull
#define PTE_G 0x100ull
#define PTE_NX (1ull << 63)
#define PA_MASK 0x000ffffffffff000ull

#define PF_P 1u
#define PF_W 2u
#define PF_U 4u
#define PF_RSVD 8u
#define PF_I 16u

static inline unsigned tlb_index(uint64_t lin) { return (lin >> 12) & (BT_TLB_SIZE - 1); }
static inline uint64_t tag_never(unsigned i) { return (uint64_t)(i ^ 1) << 12; }
#define STK_NEVER 0x8000000000000000ull

struct walk {
    uint64_t pa; /* of the page */
    bool writable, user, global, dirty, exec, large;
};

static inline void *pte_ptr(struct bt_vcpu *c, uint64_t pa)
{
    uintptr_t p = bt_phys_page(c->vm, pa);
    return p ? (void *)((p & ~0xfffull) | (pa & 0xfff)) : NULL;
}

/* 64-bit entries; sets A (and D) in the guest's tables as the walk needs. */
static int walk64(struct bt_vcpu *c, uint64_t lin, unsigned acc, struct walk *w, bool peek)
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
    return 1 << 8;
}

static int walk32(struct bt_vcpu *c, uint64_t lin, unsigned acc, struct walk *w, bool peek)
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
    return 1 << 8;
}

/* 0x100: done. Else the page-fault error code's P and RSVD bits. */
static int walk(struct bt_vcpu *c, uint64_t lin, unsigned acc, struct walk *w, bool peek)
{
    if (!(c->cr0 & BT_CR0_PG)) {
        w->pa = lin & 0xfffff000u;
        w->writable = w->user = w->exec = w->dirty = true;
        w->global = w->large = false;
        return 1 << 8;
    }
    int rc;
    do
        rc = (c->cr4 & BT_CR4_PAE) ? walk64(c, lin, acc, w, peek) : walk32(c, lin, acc, w, peek);
    while (rc < 0);
    return rc;
}

static _Noreturn void fault(struct bt_vcpu *c, uint64_t lin, unsigned acc, int rc)
{
    uint32_t e = (uint32_t)rc | (acc & BT_ACC_WRITE ? PF_W : 0) | (acc & BT_ACC_USER ? PF_U : 0);
    if ((acc & BT_ACC_FETCH) && ((c->cr4 & BT_CR4_SMEP) || ((c->cr4 & BT_CR4_PAE) && (c->efer & BT_EFER_NXE))))
        e |= PF_I;
    c->st.page_faults++;
    bt_raise_pf(c, lin, e);
}

static void touched(struct bt_vcpu *c, unsigned t, unsigned g, unsigned i)
{
    struct bt_cache *k = c->cache;
    if (k->n_tlb_touched[t][g] == BT_TLB_SIZE * 2) { /* many duplicates: start over with an empty table */
        for (unsigned j = 0; j < BT_TLB_SIZE; j++)
            c->tlb[t][j].tag_r = c->tlb[t][j].tag_w = tag_never(j);
        c->stk_tag[t] = c->stk_rtag[t] = STK_NEVER;
        k->n_tlb_touched[t][0] = k->n_tlb_touched[t][1] = 0;
    }
    k->tlb_touched[t][g][k->n_tlb_touched[t][g]++] = (uint16_t)i;
}

/* Walk and enter lin's page; raises #PF. Returns hva of the page or 0 (not RAM,
 * pa in *pa). */
static uint64_t fill(struct bt_vcpu *c, uint64_t lin, unsigned acc, uint64_t *pa)
{
    struct walk w;
    unsigned t = (acc & BT_ACC_USER) != 0;
    int rc = walk(c, lin, acc, &w, false);
    if (rc != 1 << 8)
        fault(c, lin, acc, rc);
    c->st.tlb_miss[t]++;
    *pa = w.pa;
    struct bt_page_chunk *ch = bt_chunk(c->vm, w.pa);
    uintptr_t h = ch ? atomic_load_explicit(&ch->hva[bt_chunk_page(w.pa)], memory_order_relaxed) : 0;
    if (!h)
        return 0;
    uint64_t page = lin & ~0xfffull;
    unsigned i = tlb_index(lin);
    struct bt_tlb_entry *e = &c->tlb[t][i];
    e->tag_r = page;
    e->tag_w = tag_never(i);
    e->host = h & ~0xfffull;
    e->pa = w.pa | (w.global ? BT_TLB_GLOBAL : 0);
    if (w.writable && w.dirty && !(h & BT_HVA_RO)) {
        atomic_store(&ch->written[bt_chunk_page(w.pa)], 1);
        /* `written` first, then look: a translator marks `code` first, then
         * looks at `written` (both seq_cst). */
        if (!atomic_load(&ch->code[bt_chunk_page(w.pa)]))
            e->tag_w = page;
    }
    if (w.large) {
        uint32_t r = (uint32_t)(lin >> 21) * 0x9e3779b1u >> 23;
        c->cache->large_filter[r >> 6] |= 1ull << (r & 63);
    }
    touched(c, t, w.global, i);
    return e->host;
}

void bt_tlb_flush_all(struct bt_vcpu *c)
{
    struct bt_cache *k = c->cache;
    c->st.tlb_flush_global++;
    for (unsigned t = 0; t < 2; t++) {
        for (unsigned i = 0; i < BT_TLB_SIZE; i++)
            c->tlb[t][i].tag_r = c->tlb[t][i].tag_w = tag_never(i);
        k->n_tlb_touched[t][0] = k->n_tlb_touched[t][1] = 0;
        c->stk_tag[t] = c->stk_rtag[t] = STK_NEVER;
        for (unsigned i = 0; i < 256; i++)
            k->itlb[t][i].vpage = ~0ull;
    }
    for (unsigned i = 0; i < 8; i++)
        k->large_filter[i] = 0;
    bt_jc_flush(c, 1);
    bt_jc_flush(c, 0);
    bt_kpages_check(c);
}

void bt_tlb_flush_nonglobal(struct bt_vcpu *c)
{
    struct bt_cache *k = c->cache;
    c->st.tlb_flush++;
    for (unsigned t = 0; t < 2; t++) {
        uint32_t n = k->n_tlb_touched[t][0];
        for (uint32_t j = 0; j < n; j++) {
            unsigned i = k->tlb_touched[t][0][j];
            if (!(c->tlb[t][i].pa & BT_TLB_GLOBAL))
                c->tlb[t][i].tag_r = c->tlb[t][i].tag_w = tag_never(i);
        }
        k->n_tlb_touched[t][0] = 0;
        c->stk_tag[t] = c->stk_rtag[t] = STK_NEVER;
    }
    for (unsigned i = 0; i < 256; i++)
        k->itlb[1][i].vpage = ~0ull;
    if (!(c->cr4 & BT_CR4_PGE)) {
        for (unsigned i = 0; i < 256; i++)
            k->itlb[0][i].vpage = ~0ull;
        bt_jc_flush(c, 0);
        bt_kpages_check(c);
    } else if (k->n_kpage > 1) {
        /* supervisor code in the lower half (boot) is not global */
        for (uint32_t i = 1; i < k->n_kpage; i++)
            if (!(k->kpage[i].vpage >> 35)) {
                for (unsigned j = 0; j < 256; j++)
                    k->itlb[0][j].vpage = ~0ull;
                bt_jc_flush(c, 0);
                bt_kpages_check(c);
                break;
            }
    }
    bt_jc_flush(c, 1);
}

void bt_tlb_invlpg(struct bt_vcpu *c, uint64_t lin)
{
    struct bt_cache *k = c->cache;
    uint64_t page = lin & ~0xfffull;
    unsigned i = tlb_index(lin);
    c->st.invlpg++;
    for (unsigned t = 0; t < 2; t++) {
        if (c->tlb[t][i].tag_r == page)
            c->tlb[t][i].tag_r = c->tlb[t][i].tag_w = tag_never(i);
        c->stk_tag[t] = c->stk_rtag[t] = STK_NEVER;
        if (k->itlb[t][(lin >> 12) & 255].vpage == page)
            k->itlb[t][(lin >> 12) & 255].vpage = ~0ull;
    }
    uint32_t r = (uint32_t)(lin >> 21) * 0x9e3779b1u >> 23;
    if (k->large_filter[r >> 6] >> (r & 63) & 1)
        for (unsigned t = 0; t < 2; t++)
            for (unsigned j = 0; j < BT_TLB_SIZE; j++)
                if (c->tlb[t][j].tag_r >> 21 == lin >> 21)
                    c->tlb[t][j].tag_r = c->tlb[t][j].tag_w = tag_never(j);
    uint32_t h = (uint32_t)(lin >> 12) * 0x9e3779b1u >> 20;
    for (unsigned t = 0; t < 2; t++)
        if (k->code_filter[t][h >> 6] >> (h & 63) & 1)
            bt_jc_flush(c, t);
    for (uint32_t j = 1; j < k->n_kpage; j++)
        if (k->kpage[j].vpage == lin >> 12) {
            bt_kpages_check(c);
            return;
        }
}

void bt_tlb_drop_write(struct bt_vcpu *c, uint64_t pa)
{
    pa &= ~0xfffull;
    for (unsigned t = 0; t < 2; t++) {
        for (unsigned i = 0; i < BT_TLB_SIZE; i++)
            if ((c->tlb[t][i].pa & ~0xfffull) == pa)
                c->tlb[t][i].tag_w = tag_never(i);
        c->stk_tag[t] = STK_NEVER;
    }
}

/* --- code ------------------------------------------------------------------------ */
const uint8_t *bt_code_page(struct bt_vcpu *c, uint64_t lin, uint64_t *pa)
{
    struct bt_cache *k = c->cache;
    unsigned t = c->cpl == 3, i = (lin >> 12) & 255;
    uint64_t page = lin & ~0xfffull;
    if (k->itlb[t][i].vpage != page) {
        struct walk w;
        if (bt_code64(c) && (uint64_t)((int64_t)(lin << 16) >> 16) != lin)
            bt_raise_err(c, BT_EX_GP, 0);
        unsigned acc = BT_ACC_FETCH | (t ? BT_ACC_USER : 0);
        int rc = walk(c, lin, acc, &w, false);
        if (rc != 1 << 8)
            fault(c, lin, acc, rc);
        uintptr_t h = bt_phys_page(c->vm, w.pa);
        if (!h)
            bt_fatal(c, "the guest runs code outside RAM and ROM");
        k->itlb[t][i].vpage = page;
        k->itlb[t][i].pa = w.pa;
        k->itlb[t][i].host = (const uint8_t *)(h & ~0xfffull);
    }
    *pa = k->itlb[t][i].pa | (lin & 0xfff);
    return k->itlb[t][i].host + (lin & 0xfff);
}

bool bt_peek_code(struct bt_vcpu *c, uint64_t lin, uint64_t *pa)
{
    struct walk w;
    if (walk(c, lin, BT_ACC_FETCH, &w, true) != 1 << 8)
        return false;
    *pa = w.pa;
    return true;
}

/* --- devices ------------------------------------------------------------------------ */
uint64_t bt_mmio_read(struct bt_vcpu *c, uint64_t pa, unsigned size)
{
    uint64_t v = 0;
    if (bt_irqchip_mmio(c, pa, size, false, &v))
        return v;
    c->st.mmio++;
    bt_fp_save(c);
    bt_quiescent_enter(c);
    c->host->io_read(c->vm->hvm, HVX_SPACE_MMIO, pa, size, &v);
    bt_quiescent_leave(c);
    return v;
}

void bt_mmio_write(struct bt_vcpu *c, uint64_t pa, unsigned size, uint64_t v)
{
    if (bt_irqchip_mmio(c, pa, size, true, &v))
        return;
    c->st.mmio++;
    bt_fp_save(c);
    bt_quiescent_enter(c);
    c->host->io_write(c->vm->hvm, HVX_SPACE_MMIO, pa, size, &v);
    bt_quiescent_leave(c);
}

/* --- stores to pages with translations ------------------------------------------------
 * Our own translations of the bytes go before the store, the other vCPUs' after
 * it: they could make them again from the old bytes. */
static bool translated(struct bt_vcpu *v, uint64_t pa, uint64_t n)
{
    struct bt_codepage *p = v ? bt_codepage_get(v, pa, false) : NULL;
    if (p)
        for (uint64_t b = pa & 0xfff; b < (pa & 0xfff) + n && b < 4096; b++)
            if (atomic_load_explicit(&p->bytes[b >> 6], memory_order_relaxed) >> (b & 63) & 1)
                return true;
    return false;
}
static uint64_t code_mask(struct bt_vcpu *c, uint64_t pa)
{
    struct bt_page_chunk *ch = bt_chunk(c->vm, pa);
    return ch ? atomic_load_explicit(&ch->code[bt_chunk_page(pa)], memory_order_relaxed) : 0;
}

/* True when the block that runs now was hit. */
static bool code_store(struct bt_vcpu *c, uint64_t pa, uint64_t n)
{
    bool hit = false;
    uint64_t own = 1ull << c->index;
    if (!(code_mask(c, pa) & own))
        return false;
    if (translated(c, pa, n)) {
        struct bt_block *cur = c->cache->last_ret ? bt_block_at(c, c->cache->last_ret) : NULL;
        hit = bt_invalidate_local(c, pa, n, cur);
        c->cache->smc_hit |= hit;
    }
    /* No translations left on the page: let stores go fast again. */
    struct bt_codepage *p = bt_codepage_get(c, pa, false);
    if ((!p || !p->blocks) && !hit)
        atomic_fetch_and(&bt_chunk(c->vm, pa)->code[bt_chunk_page(pa)], ~own);
    return hit;
}

static uint64_t remote_hits(struct bt_vcpu *c, uint64_t pa, uint64_t n)
{
    uint64_t hits = 0;
    for (uint64_t m = code_mask(c, pa) & ~(1ull << c->index); m; m &= m - 1)
        if (translated(c->vm->vcpu[__builtin_ctzll(m)], pa, n))
            hits |= m & -m;
    return hits;
}
static void code_stored(struct bt_vcpu *c, uint64_t pa, uint64_t n)
{
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t hits = remote_hits(c, pa, n);
    if (hits)
        bt_sync_request(c->vm, c, hits, BT_SYNC_INVALIDATE, pa, n, true);
}

/* --- one access by linear address ---------------------------------------------------- */
static inline uint64_t load_n(const void *p, unsigned size)
{
    switch (size) {
    case 1: return *(const volatile uint8_t *)p;
    case 2: return *(const volatile uint16_t *)p;
    case 4: return *(const volatile uint32_t *)p;
    default: return *(const volatile uint64_t *)p;
    }
}
static inline void store_n(void *p, unsigned size, uint64_t v)
{
    switch (size) {
    case 1: *(volatile uint8_t *)p = (uint8_t)v; break;
    case 2: *(volatile uint16_t *)p = (uint16_t)v; break;
    case 4: *(volatile uint32_t *)p = (uint32_t)v; break;
    default: *(volatile uint64_t *)p = v;
    }
}
static inline void check_canonical(struct bt_vcpu *c, uint64_t lin, uint64_t n, bool stack)
{
    if (bt_long_mode(c) &&
        ((uint64_t)((int64_t)(lin << 16) >> 16) != lin || (uint64_t)((int64_t)((lin + n - 1) << 16) >> 16) != lin + n - 1))
        bt_raise_err(c, stack ? BT_EX_SS : BT_EX_GP, 0);
}

/* hva for an access inside one page, 0 when it is not RAM (pa in *pa). A write
 * to ROM counts as not RAM. */
static uint64_t page_access(struct bt_vcpu *c, uint64_t lin, unsigned size, unsigned acc, uint64_t *pa)
{
    unsigned t = (acc & BT_ACC_USER) != 0;
    struct bt_tlb_entry *e = &c->tlb[t][tlb_index(lin)];
    uint64_t page = lin & ~0xfffull, h;
    if (__builtin_expect(c->bp_data, 0))
        bt_debug_data(c, lin, size, (acc & BT_ACC_WRITE) != 0);
    if (acc & BT_ACC_WRITE) {
        if (e->tag_w == page) {
            *pa = (e->pa & ~0xfffull) | (lin & 0xfff);
            return e->host | (lin & 0xfff);
        }
        h = fill(c, lin, acc, pa);
        *pa |= lin & 0xfff;
        if (!h || (bt_phys_page(c->vm, *pa) & BT_HVA_RO))
            return 0;
        if (e->tag_w != page)
            code_store(c, *pa, size);
        return h | (lin & 0xfff);
    }
    if (e->tag_r == page) {
        *pa = (e->pa & ~0xfffull) | (lin & 0xfff);
        return e->host | (lin & 0xfff);
    }
    h = fill(c, lin, acc, pa);
    *pa |= lin & 0xfff;
    return h ? h | (lin & 0xfff) : 0;
}

void bt_probe(struct bt_vcpu *c, uint64_t lin, size_t n, unsigned acc)
{
    if (!n)
        return;
    check_canonical(c, lin, n, false);
    struct walk w;
    for (uint64_t p = lin & ~0xfffull; p <= ((lin + n - 1) & ~0xfffull); p += 4096) {
        uint64_t at = p < lin ? lin : p;
        int rc = walk(c, at, acc, &w, false);
        if (rc != 1 << 8)
            fault(c, at, acc, rc);
    }
}

uint64_t bt_read(struct bt_vcpu *c, uint64_t lin, unsigned size, unsigned acc)
{
    uint64_t pa, v = 0;
    if (!bt_long_mode(c))
        lin = (uint32_t)lin;
    if ((lin & 0xfff) + size <= 4096) {
        check_canonical(c, lin, size, false);
        uint64_t h = page_access(c, lin, size, acc & ~BT_ACC_WRITE, &pa);
        return h ? load_n((void *)h, size) : bt_mmio_read(c, pa, size);
    }
    bt_read_bytes(c, lin, &v, size, acc);
    return v;
}

void bt_write(struct bt_vcpu *c, uint64_t lin, unsigned size, uint64_t v, unsigned acc)
{
    uint64_t pa;
    if (!bt_long_mode(c))
        lin = (uint32_t)lin;
    if ((lin & 0xfff) + size <= 4096) {
        check_canonical(c, lin, size, false);
        uint64_t h = page_access(c, lin, size, acc | BT_ACC_WRITE, &pa);
        if (h) {
            store_n((void *)h, size, v);
            if (code_mask(c, pa))
                code_stored(c, pa, size);
        } else {
            bt_mmio_write(c, pa, size, v);
        }
        return;
    }
    bt_write_bytes(c, lin, &v, size, acc);
}

static unsigned mmio_step(uint64_t pa, size_t n)
{
    unsigned s = n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1;
    while (pa & (s - 1))
        s >>= 1;
    return s;
}

void bt_read_bytes(struct bt_vcpu *c, uint64_t lin, void *buf, size_t n, unsigned acc)
{
    uint8_t *d = buf;
    check_canonical(c, lin, n ? n : 1, false);
    while (n) {
        uint64_t pa;
        size_t k = 4096 - (lin & 0xfff);
        if (k > n)
            k = n;
        uint64_t h = page_access(c, lin, (unsigned)k, acc & ~BT_ACC_WRITE, &pa);
        if (h) {
            void *dd = d;
            const void *ss = (void *)h;
            size_t cnt = k;
            __asm__ volatile("rep movsb" : "+D"(dd), "+S"(ss), "+c"(cnt) : : "memory");
        } else {
            for (size_t i = 0; i < k;) {
                unsigned s = mmio_step(pa + i, k - i);
                store_n(d + i, s, bt_mmio_read(c, pa + i, s));
                i += s;
            }
        }
        d += k;
        lin += k;
        n -= k;
        if (!bt_long_mode(c))
            lin = (uint32_t)lin;
    }
}

void bt_write_bytes(struct bt_vcpu *c, uint64_t lin, const void *buf, size_t n, unsigned acc)
{
    const uint8_t *s = buf;
    if (n && (lin & 0xfff) + n > 4096)
        bt_probe(c, lin, n, acc | BT_ACC_WRITE);
    check_canonical(c, lin, n ? n : 1, false);
    while (n) {
        uint64_t pa;
        size_t k = 4096 - (lin & 0xfff);
        if (k > n)
            k = n;
        uint64_t h = page_access(c, lin, (unsigned)k, acc | BT_ACC_WRITE, &pa);
        if (h) {
            void *dd = (void *)h;
            const void *ss = s;
            size_t cnt = k;
            __asm__ volatile("rep movsb" : "+D"(dd), "+S"(ss), "+c"(cnt) : : "memory");
            if (code_mask(c, pa))
                code_stored(c, pa, k);
        } else {
            for (size_t i = 0; i < k;) {
                unsigned w = mmio_step(pa + i, k - i);
                bt_mmio_write(c, pa + i, w, load_n(s + i, w));
                i += w;
            }
        }
        s += k;
        lin += k;
        n -= k;
        if (!bt_long_mode(c))
            lin = (uint32_t)lin;
    }
}

void *bt_host_ptr(struct bt_vcpu *c, uint64_t lin, size_t n, unsigned acc)
{
    uint64_t pa;
    if (!bt_long_mode(c))
        lin = (uint32_t)lin;
    check_canonical(c, lin, n ? n : 1, false);
    uint64_t h = page_access(c, lin, (unsigned)n, acc, &pa);
    /* whoever stores through the pointer does not tell the others afterwards */
    return (acc & BT_ACC_WRITE) && h && remote_hits(c, pa, n) ? NULL : (void *)h;
}

/* --- from translated code ---------------------------------------------------------------- */
/* The instruction cannot be done in place: run it alone, through the bounce buffer. */
static _Noreturn void careful(struct bt_vcpu *c)
{
    c->st.careful++;
    c->force_careful = 1;
    bt_restart(c);
}

/* Would an access fault here? The vector, or 0 when it would not. */
static unsigned would_fault(struct bt_vcpu *c, uint64_t lin, unsigned acc, bool ss, uint32_t *error)
{
    struct walk w;
    *error = 0;
    if (bt_long_mode(c) && (uint64_t)((int64_t)(lin << 16) >> 16) != lin)
        return ss ? BT_EX_SS : BT_EX_GP;
    int rc = walk(c, lin, acc, &w, true);
    if (rc == 1 << 8)
        return 0;
    *error = (uint32_t)rc | (acc & BT_ACC_WRITE ? PF_W : 0) | (acc & BT_ACC_USER ? PF_U : 0);
    return BT_EX_PF;
}

/* A masked operand with a page that would fault: lay it out in the window so
 * that bad pages are bad on the host too. 0: no such page. */
static uint64_t masked_window(struct bt_vcpu *c, uint64_t ea, unsigned size, uint32_t desc, unsigned acc)
{
    unsigned off = ea & 0xfff, first = off + size > 4096 ? 4096 - off : size;
    bool ss = (desc & BT_DESC_SS) != 0, two = first < size;
    uint32_t error[2] = {0, 0};
    unsigned v0 = would_fault(c, ea, acc, ss, &error[0]);
    unsigned v1 = two ? would_fault(c, ea + first, acc, ss, &error[1]) : 0;
    if (!v0 && !v1)
        return 0;
    if ((desc & BT_DESC_WRITE) && !(desc & BT_DESC_CAREFUL))
        careful(c);
    c->window.lin = ea;
    c->window.split = first;
    c->window.vector[0] = (uint8_t)v0;
    c->window.vector[1] = (uint8_t)v1;
    c->window.error[0] = error[0];
    c->window.error[1] = error[1];
    unsigned page = v0 && (v1 || !two) ? 2 : v0 ? 0 : 1, good = v0 ? size - first : first;
    c->window.host = (uintptr_t)c->window.base + page * 4096 + off;
    c->bounce.active = 0;
    if (page != 2) {
        uint8_t *part = c->window.base + 4096 + (v0 ? 0 : off);
        uint64_t lin = v0 ? ea + first : ea;
        bt_read_bytes(c, lin, part, good, acc & ~BT_ACC_WRITE);
        if (desc & BT_DESC_WRITE) {
            c->window.from = part;
            c->window.commit = 1;
            c->bounce.lin = lin;
            c->bounce.size = good;
            c->bounce.active = 1;
        }
    }
    c->st.bounces++;
    return c->window.host;
}

uint64_t bt_slow_c(struct bt_vcpu *c, uint64_t ea, uint32_t desc)
{
    unsigned size = desc & BT_DESC_SIZE;
    unsigned t = (desc & BT_DESC_USER) != 0;
    unsigned acc = (t ? BT_ACC_USER : 0) | (desc & BT_DESC_WRITE ? BT_ACC_WRITE : 0);
    uint64_t pa = 0, page = ea & ~0xfffull;
    c->st.slow_accesses++;
    if (!bt_long_mode(c))
        ea = (uint32_t)ea, page = (uint32_t)page;
    bool misaligned = (desc & BT_DESC_ALIGNED) && (ea & (size - 1));
    if (misaligned && !(desc & BT_DESC_MASKED))
        bt_raise_err(c, BT_EX_GP, 0);
    if (desc & BT_DESC_MASKED) {
        uint64_t h = masked_window(c, ea, size, desc, acc);
        if (h)
            return h;
        if (misaligned && ((desc & BT_DESC_CAREFUL) || (ea & 0xfff) + size > 4096)) {
            /* #GP, or nothing at all when no element is active: the host knows */
            c->bounce.active = 0;
            return (uint64_t)c->bounce.buf + (ea & 63);
        }
    }
    check_canonical(c, ea, size, (desc & (BT_DESC_STACK | BT_DESC_SS)) != 0);
    if (desc & BT_DESC_CAREFUL) {
        c->window.commit = 0;
        c->st.bounces++;
        if (desc & BT_DESC_WRITE) {
            bt_probe(c, ea, size, acc);
            if (desc & BT_DESC_READ)
                bt_read_bytes(c, ea, c->bounce.buf, size, acc & ~BT_ACC_WRITE);
            c->bounce.lin = ea;
            c->bounce.size = size;
            c->bounce.active = 1;
        } else {
            bt_read_bytes(c, ea, c->bounce.buf, size, acc);
        }
        return (uint64_t)c->bounce.buf;
    }
    if ((ea & 0xfff) + size > 4096) {
        if (desc & BT_DESC_WRITE)
            careful(c);
        c->st.bounces++;
        bt_read_bytes(c, ea, c->bounce.buf, size, acc);
        return (uint64_t)c->bounce.buf;
    }
    struct bt_tlb_entry *e = &c->tlb[t][tlb_index(ea)];
    uint64_t want = desc & BT_DESC_WRITE ? e->tag_w : e->tag_r, h;
    if (want == page) {
        h = e->host;
    } else {
        h = fill(c, ea, acc, &pa);
        if (!h || ((desc & BT_DESC_WRITE) && (bt_phys_page(c->vm, pa) & BT_HVA_RO))) {
            if (desc & BT_DESC_WRITE)
                careful(c);
            c->st.bounces++;
            bt_read_bytes(c, ea, c->bounce.buf, size, acc);
            return (uint64_t)c->bounce.buf;
        }
        if ((desc & BT_DESC_WRITE) && e->tag_w != page) {
            if (code_store(c, pa | (ea & 0xfff), size)) {
                c->cache->smc_hit = false;
                careful(c);
            }
            if (remote_hits(c, pa | (ea & 0xfff), size))
                careful(c);
        }
    }
    if (desc & BT_DESC_STACK) {
        c->stk_rtag[t] = page;
        c->stk_tag[t] = e->tag_w == page ? page : STK_NEVER;
        c->stk_host[t] = e->host;
    }
    return h | (ea & 0xfff);
}

void bt_commit_c(struct bt_vcpu *c)
{
    if (!c->bounce.active)
        return;
    c->bounce.active = 0;
    uint64_t lin = c->bounce.lin;
    unsigned n = c->bounce.size, acc = BT_ACC_WRITE | bt_acc(c);
    if (c->window.commit) {
        void *d = c->bounce.buf;
        const void *s = c->window.from;
        size_t cnt = n;
        __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(cnt) : : "memory");
        c->window.commit = 0;
    }
    if (n <= 8 && !(n & (n - 1)))
        bt_write(c, lin, n, load_n(c->bounce.buf, n), acc);
    else
        bt_write_bytes(c, lin, c->bounce.buf, n, acc);
}
