/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/tlb.c - the software TLB: filling and flushing it; where
 * code lies.
 */
#include "direct.h"
#include "kdirect.h"
#include "mmu.h"

static inline void forget(struct bt_vcpu *c, unsigned t, unsigned i)
{
    c->tlb[t][i].tag_r = c->tlb[t][i].tag_w = tag_never(i);
}

static void clear_table(struct bt_vcpu *c, unsigned t)
{
    for (unsigned i = 0; i < BT_TLB_SIZE; i++) {
        forget(c, t, i);
        c->tlb[t][i].pa = 0;
    }
    c->mmu->n_listed[t] = 0;
    c->stk_tag[t] = c->stk_rtag[t] = STK_NEVER;
}

/* --- large pages: entries are for 4 KiB, an invalidation is for the page -------- */
static inline uint32_t large_slot(uint64_t lin) { return ((uint32_t)(lin >> 21) * 0x9e3779b1u >> 16) % BT_LARGE_SLOTS; }

static void large_note(struct bt_mmu *m, uint64_t lin, unsigned shift)
{
    if (shift == 30) {
        uint32_t i;
        for (i = 0; i < m->n_huge && i < BT_HUGE_MAX && m->huge[i] != lin >> 30; i++)
            ;
        if (i == m->n_huge && i < BT_HUGE_MAX)
            m->huge[m->n_huge++] = lin >> 30;
        else if (i == BT_HUGE_MAX)
            m->n_huge = BT_HUGE_MAX + 1; /* any */
        return;
    }
    for (unsigned i = 0; i < (shift == 22 ? 2u : 1u); i++) {
        uint64_t part = shift == 22 ? (lin & ~0x3fffffull) + ((uint64_t)i << 21) : lin;
        uint32_t *s = &m->large[large_slot(part)], n = (uint32_t)(part >> 21) + 1;
        *s = !*s || *s == n ? n : BT_LARGE_MANY;
    }
    m->n_large = 1;
}

static void large_forget(struct bt_mmu *m)
{
    if (m->n_large)
        for (unsigned i = 0; i < BT_LARGE_SLOTS; i++)
            m->large[i] = 0;
    m->n_large = m->n_huge = 0;
}

/* True when lin lies in one. */
static bool large_invalidate(struct bt_vcpu *c, uint64_t lin)
{
    struct bt_mmu *m = c->mmu;
    bool huge = m->n_huge > BT_HUGE_MAX;
    for (uint32_t i = 0; i < m->n_huge && i < BT_HUGE_MAX; i++)
        huge |= m->huge[i] == lin >> 30;
    bool hit = huge;
    if (huge)
        for (unsigned t = 0; t < 2; t++)
            for (unsigned i = 0; i < BT_TLB_SIZE; i++)
                if (c->tlb[t][i].tag_r >> 30 == lin >> 30)
                    forget(c, t, i);
    for (unsigned half = 0; half < 2; half++) { /* without PAE a large page has 4 MiB */
        uint64_t part = lin ^ (uint64_t)half << 21;
        uint32_t s = m->large[large_slot(part)];
        if (half && (c->cr4 & BT_CR4_PAE))
            break;
        if (s != (uint32_t)(part >> 21) + 1 && s != BT_LARGE_MANY)
            continue;
        hit = true;
        unsigned first = tlb_index(part & ~0x1fffffull);
        for (unsigned t = 0; t < 2; t++)
            for (unsigned i = first; i < first + 512; i++)
                if (c->tlb[t][i].tag_r >> 21 == part >> 21)
                    forget(c, t, i);
    }
    return hit;
}
_Static_assert(BT_TLB_SIZE >= 512, "2 MiB must not wrap in the TLB");

/* --- filling ------------------------------------------------------------------------ */
uint64_t mmu_fill(struct bt_vcpu *c, uint64_t lin, unsigned acc, uint64_t *pa)
{
    struct bt_walk w;
    int rc = mmu_walk(c, lin, acc, &w, false);
    if (rc != BT_WALKED)
        mmu_fault(c, lin, acc, rc);
    *pa = w.pa;
    return mmu_fill_walked(c, lin, acc, &w);
}

uint64_t mmu_fill_walked(struct bt_vcpu *c, uint64_t lin, unsigned acc, const struct bt_walk *w)
{
    unsigned t = (acc & BT_ACC_USER) != 0;
    c->st.tlb_miss[t]++;
    if (lin >> 63 && c->vm->kd)
        bt_kd_mapped(c, lin);
    struct bt_page_chunk *ch = bt_chunk(c->vm, w->pa);
    uintptr_t h = ch ? atomic_load_explicit(&ch->hva[bt_chunk_page(w->pa)], memory_order_relaxed) : 0;
    if (!h)
        return 0;
    uint64_t page = lin & ~0xfffull;
    unsigned i = tlb_index(lin);
    struct bt_tlb_entry *e = mmu_enter(c, t, i, page, w->pa, h & ~0xfffull, w->global);
    if (w->writable && w->dirty && !(h & BT_HVA_RO)) {
        /* `written` first, then look: a translator marks `code` first, then
         * looks at `written` (both seq_cst). Was it set already, that one finds
         * it and tells us to drop the entry, after this. */
        if (!(atomic_load_explicit(&ch->written[bt_chunk_page(w->pa)], memory_order_acquire) & BT_WRITTEN_TLB))
            atomic_fetch_or(&ch->written[bt_chunk_page(w->pa)], BT_WRITTEN_TLB);
        if (!atomic_load(&ch->code[bt_chunk_page(w->pa)]))
            e->tag_w = page;
    }
    if (w->shift > 12)
        large_note(c->mmu, lin, w->shift);
    return e->host;
}

/* --- flushing ------------------------------------------------------------------------- */
void bt_tlb_flush_all(struct bt_vcpu *c)
{
    struct bt_mmu *m = c->mmu;
    c->tlb_drops++;
    c->st.tlb_flush_global++;
    clear_table(c, 0);
    clear_table(c, 1);
    large_forget(m);
    mmu_spaces_reset(c);
    m->kgen = mmu_new_gen(m);
    bt_jc_flush(c, 1);
    mmu_kcode_check(c);
    bt_kd_flush(c, true);
}

void bt_tlb_flush_nonglobal(struct bt_vcpu *c)
{
    struct bt_mmu *m = c->mmu;
    c->tlb_drops++;
    c->st.tlb_flush++;
    for (unsigned t = 0; t < 2; t++) {
        for (uint32_t j = 0; j < m->n_listed[t]; j++) {
            unsigned i = m->listed[t][j];
            if (!(c->tlb[t][i].pa & BT_TLB_GLOBAL))
                forget(c, t, i);
            c->tlb[t][i].pa &= ~(uint64_t)BT_TLB_LISTED;
        }
        m->n_listed[t] = 0;
        c->stk_tag[t] = c->stk_rtag[t] = STK_NEVER;
    }
    m->space->gen = mmu_new_gen(m);
    m->space->psc_gen = mmu_new_gen(m);
    bt_jc_flush(c, 1);
    if (m->kcode_local) {
        m->kgen = mmu_new_gen(m);
        mmu_kcode_check(c);
    }
    bt_kd_flush(c, false);
}

/* --- supervisor code -------------------------------------------------------------------- */
static inline uint32_t kcode_hash(uint64_t key) { return ((uint32_t)key * 0x9e3779b1u >> 16) % BT_KCODE_HASH; }

static struct bt_kcode *kcode_find(struct bt_mmu *m, uint64_t key)
{
    for (uint32_t i = m->kcode_head[kcode_hash(key)]; i; i = m->kcode[i].next)
        if (m->kcode[i].key == key)
            return &m->kcode[i];
    return NULL;
}

static void kcode_forget(struct bt_vcpu *c)
{
    struct bt_mmu *m = c->mmu;
    m->n_kcode = 1;
    m->kcode_local = false;
    m->kgen = mmu_new_gen(m);
    for (unsigned i = 0; i < BT_KCODE_HASH; i++)
        m->kcode_head[i] = 0;
    bt_xpage_unchain(c); /* and the jump cache */
}

/* The part of supervisor code that CR3 loads may move. In the upper half that
 * is for kernels that do without global pages alone: those that map their own
 * code under some roots only do not put anything else there. */
static bool local_code(const struct bt_vcpu *c, uint64_t lin, const struct bt_walk *w)
{
    return !w->global && (!(c->cr4 & BT_CR4_PGE) || !(lin >> 47));
}

static uint64_t kcode_key(uint64_t lin, bool large) { return large ? (lin >> 21) << 1 | 1 : (lin >> 12) << 1; }

static void kcode_note(struct bt_vcpu *c, uint64_t lin, const struct bt_walk *w)
{
    struct bt_mmu *m = c->mmu;
    bool large = w->shift > 12;
    uint64_t key = kcode_key(lin, large), pa = large ? w->pa - (lin & 0x1ff000) : w->pa;
    struct bt_kcode *x = kcode_find(m, key);
    if (x && x->pa == pa) {
        m->kcode_local |= local_code(c, lin, w);
        return;
    }
    if (x || m->n_kcode == BT_KCODE_MAX)
        kcode_forget(c);
    x = &m->kcode[m->n_kcode];
    x->key = key;
    x->pa = pa;
    x->next = m->kcode_head[kcode_hash(key)];
    m->kcode_head[kcode_hash(key)] = m->n_kcode++;
    m->kcode_local |= local_code(c, lin, w);
}

static bool kcode_holds(struct bt_vcpu *c, const struct bt_kcode *x, bool *local)
{
    struct bt_walk w;
    bool large = x->key & 1;
    uint64_t lin = large ? x->key >> 1 << 21 : x->key >> 1 << 12;
    if (mmu_walk(c, lin, BT_ACC_FETCH, &w, true) != BT_WALKED || w.pa != x->pa || (large && w.shift == 12))
        return false;
    *local |= local_code(c, lin, &w);
    return true;
}

void mmu_kcode_check(struct bt_vcpu *c)
{
    struct bt_mmu *m = c->mmu;
    bool local = false;
    for (uint32_t i = 1; i < m->n_kcode; i++)
        if (!kcode_holds(c, &m->kcode[i], &local)) {
            kcode_forget(c);
            return;
        }
    m->kcode_local = local;
}

/* --- one page ------------------------------------------------------------------------------ */
void bt_tlb_invlpg(struct bt_vcpu *c, uint64_t lin)
{
    struct bt_mmu *m = c->mmu;
    c->tlb_drops++;
    uint64_t page = lin & ~0xfffull;
    unsigned i = tlb_index(lin), j = (lin >> 12) % BT_ITLB_SIZE;
    bool local = false;
    c->st.invlpg++;
    if (c->direct)
        bt_direct_invlpg(c, lin);
    for (unsigned t = 0; t < 2; t++) {
        if (c->tlb[t][i].tag_r == page)
            forget(c, t, i);
        c->stk_tag[t] = c->stk_rtag[t] = STK_NEVER;
        if (m->itlb[t][j].vpage == page)
            m->itlb[t][j].vpage = ~0ull;
    }
    m->space->psc_gen = mmu_new_gen(m);
    bt_ret_empty(c, 1); /* the filter knows where jumps lead, not where calls return to */
    bool large = large_invalidate(c, lin);
    if (large)
        m->space->gen = mmu_new_gen(m), m->kgen = mmu_new_gen(m);
    uint32_t h = bt_code_filter_hash(lin);
    if (bt_ucode_has(c, lin))
        m->space->gen = mmu_new_gen(m), bt_jc_flush(c, 1);
    else if (large)
        bt_jc_flush(c, 1);
    else if (c->cache->code_filter[1][h >> 6] >> (h & 63) & 1)
        bt_jc_drop_page(c, 1, lin);
    struct bt_kcode *x = kcode_find(m, kcode_key(lin, false));
    if (x && !kcode_holds(c, x, &local))
        kcode_forget(c);
    for (unsigned half = 0; half < (c->cr4 & BT_CR4_PAE ? 1u : 2u); half++) {
        x = kcode_find(m, kcode_key(lin ^ (uint64_t)half << 21, true));
        if (x && !kcode_holds(c, x, &local))
            kcode_forget(c);
    }
    /* a global page goes in all spaces; what is kept of the others' TLBs has none, their code may */
    if (m->global_ucode)
        mmu_spaces_drop_others(c);
    bt_kd_invlpg(c, lin);
}

void bt_tlb_drop_write(struct bt_vcpu *c, uint64_t pa)
{
    c->tlb_drops++;
    pa &= ~0xfffull;
    c->mmu->drop_gen++;
    if (c->direct)
        bt_direct_drop_write(c, pa);
    for (unsigned t = 0; t < 2; t++) {
        struct bt_tlb_entry *e = c->tlb[t];
        for (unsigned i = 0; i < BT_TLB_SIZE; i++)
            if ((e[i].pa & ~0xfffull) == pa)
                e[i].tag_w = tag_never(i);
        c->stk_tag[t] = STK_NEVER;
    }
}

/* --- code ------------------------------------------------------------------------ */
void mmu_code_found(struct bt_vcpu *c, uint64_t lin, const struct bt_walk *w)
{
    if (w->shift > 12)
        large_note(c->mmu, lin, w->shift);
    c->mmu->global_ucode |= w->global && c->cpl == 3;
}

const uint8_t *bt_code_page(struct bt_vcpu *c, uint64_t lin, uint64_t *pa)
{
    struct bt_mmu *m = c->mmu;
    unsigned t = c->cpl == 3, i = (lin >> 12) % BT_ITLB_SIZE;
    uint64_t page = lin & ~0xfffull;
    if (m->itlb[t][i].vpage != page || m->itlb[t][i].gen != (t ? m->space->gen : m->kgen)) {
        struct bt_walk w;
        if (bt_code64(c) && !mmu_canonical(lin))
            bt_raise_err(c, BT_EX_GP, 0);
        unsigned acc = BT_ACC_FETCH | (t ? BT_ACC_USER : 0);
        int rc = mmu_walk(c, lin, acc, &w, false);
        if (rc != BT_WALKED)
            mmu_fault(c, lin, acc, rc);
        uintptr_t h = bt_phys_page(c->vm, w.pa);
        if (!h)
            bt_fatal(c, "the guest runs code outside RAM and ROM");
        if (!t)
            kcode_note(c, page, &w);
        mmu_code_found(c, lin, &w);
        m->itlb[t][i].vpage = page;
        m->itlb[t][i].gen = t ? m->space->gen : m->kgen;
        m->itlb[t][i].pa = w.pa;
        m->itlb[t][i].host = (const uint8_t *)(h & ~0xfffull);
    }
    *pa = m->itlb[t][i].pa | (lin & 0xfff);
    return m->itlb[t][i].host + (lin & 0xfff);
}
