/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/tlb.c - the software TLB: filling and flushing it; where
 * code lies.
 */
#include "mmu.h"

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

uint64_t mmu_fill(struct bt_vcpu *c, uint64_t lin, unsigned acc, uint64_t *pa)
{
    struct bt_walk w;
    unsigned t = (acc & BT_ACC_USER) != 0;
    int rc = mmu_walk(c, lin, acc, &w, false);
    if (rc != BT_WALKED)
        mmu_fault(c, lin, acc, rc);
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
    c->tlb_drops++;
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
    c->tlb_drops++;
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
    c->tlb_drops++;
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
    c->tlb_drops++;
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
        struct bt_walk w;
        if (bt_code64(c) && (uint64_t)((int64_t)(lin << 16) >> 16) != lin)
            bt_raise_err(c, BT_EX_GP, 0);
        unsigned acc = BT_ACC_FETCH | (t ? BT_ACC_USER : 0);
        int rc = mmu_walk(c, lin, acc, &w, false);
        if (rc != BT_WALKED)
            mmu_fault(c, lin, acc, rc);
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
    struct bt_walk w;
    if (mmu_walk(c, lin, BT_ACC_FETCH, &w, true) != BT_WALKED)
        return false;
    *pa = w.pa;
    return true;
}
