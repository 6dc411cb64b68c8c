/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/mmu.c - accesses to guest memory from C, by linear address.
 */
#include "mmu.h"

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

/* --- stores to pages with translations ------------------------------------------------ */
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

bool mmu_code_store(struct bt_vcpu *c, uint64_t pa, uint64_t n)
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

uint64_t mmu_remote_hits(struct bt_vcpu *c, uint64_t pa, uint64_t n)
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
    uint64_t hits = mmu_remote_hits(c, pa, n);
    if (hits)
        bt_sync_request(c->vm, c, hits, BT_SYNC_INVALIDATE, pa, n, true);
}

/* --- one access by linear address ---------------------------------------------------- */
/* The entry of lin's page when it allows the access. */
static inline struct bt_tlb_entry *entry_of(struct bt_vcpu *c, uint64_t lin, unsigned acc)
{
    struct bt_tlb_entry *e = &c->tlb[(acc & BT_ACC_USER) != 0][tlb_index(lin)];
    return (acc & BT_ACC_WRITE ? e->tag_w : e->tag_r) == (lin & ~0xfffull) ? e : NULL;
}

/* hva for an access inside one page, 0 when it is not RAM (pa in *pa). A write
 * to ROM counts as not RAM. *code: whoever stores must look for translations of
 * the bytes afterwards. An entry that allows stores stands for a page without any. */
static uint64_t page_access(struct bt_vcpu *c, uint64_t lin, unsigned size, unsigned acc, uint64_t *pa, bool *code)
{
    struct bt_tlb_entry *e = entry_of(c, lin, acc);
    *code = false;
    if (__builtin_expect(c->bp_data, 0))
        bt_debug_data(c, lin, size, acc);
    if (e) {
        *pa = (e->pa & ~0xfffull) | (lin & 0xfff);
        return e->host | (lin & 0xfff);
    }
    uint64_t h = mmu_fill(c, lin, acc, pa);
    *pa |= lin & 0xfff;
    if (!h)
        return 0;
    if ((acc & BT_ACC_WRITE) && !entry_of(c, lin, acc)) {
        if (bt_phys_page(c->vm, *pa) & BT_HVA_RO)
            return 0;
        mmu_code_store(c, *pa, size);
        *code = true;
    }
    return h | (lin & 0xfff);
}

void bt_probe(struct bt_vcpu *c, uint64_t lin, size_t n, unsigned acc)
{
    if (!n)
        return;
    mmu_check_canonical(c, lin, n, false);
    struct bt_walk w;
    for (uint64_t p = lin & ~0xfffull; p <= ((lin + n - 1) & ~0xfffull); p += 4096) {
        uint64_t at = p < lin ? lin : p;
        int rc = mmu_walk(c, at, acc, &w, false);
        if (rc != BT_WALKED)
            mmu_fault(c, at, acc, rc);
    }
}

uint64_t bt_read(struct bt_vcpu *c, uint64_t lin, unsigned size, unsigned acc)
{
    uint64_t pa, v = 0;
    bool code;
    if (!bt_long_mode(c))
        lin = (uint32_t)lin;
    if ((lin & 0xfff) + size <= 4096) {
        mmu_check_canonical(c, lin, size, false);
        uint64_t h = page_access(c, lin, size, acc & ~BT_ACC_WRITE, &pa, &code);
        return h ? mmu_load((void *)h, size) : bt_mmio_read(c, pa, size);
    }
    bt_read_bytes(c, lin, &v, size, acc);
    return v;
}

void bt_write(struct bt_vcpu *c, uint64_t lin, unsigned size, uint64_t v, unsigned acc)
{
    uint64_t pa;
    bool code;
    if (!bt_long_mode(c))
        lin = (uint32_t)lin;
    if ((lin & 0xfff) + size <= 4096) {
        mmu_check_canonical(c, lin, size, false);
        uint64_t h = page_access(c, lin, size, acc | BT_ACC_WRITE, &pa, &code);
        if (h) {
            mmu_store((void *)h, size, v);
            if (code)
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
    mmu_check_canonical(c, lin, n ? n : 1, false);
    while (n) {
        uint64_t pa;
        bool code;
        size_t k = 4096 - (lin & 0xfff);
        if (k > n)
            k = n;
        uint64_t h = page_access(c, lin, (unsigned)k, acc & ~BT_ACC_WRITE, &pa, &code);
        if (h) {
            void *dd = d;
            const void *ss = (void *)h;
            size_t cnt = k;
            __asm__ volatile("rep movsb" : "+D"(dd), "+S"(ss), "+c"(cnt) : : "memory");
        } else {
            for (size_t i = 0; i < k;) {
                unsigned s = mmio_step(pa + i, k - i);
                mmu_store(d + i, s, bt_mmio_read(c, pa + i, s));
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
    mmu_check_canonical(c, lin, n ? n : 1, false);
    while (n) {
        uint64_t pa;
        bool code;
        size_t k = 4096 - (lin & 0xfff);
        if (k > n)
            k = n;
        uint64_t h = page_access(c, lin, (unsigned)k, acc | BT_ACC_WRITE, &pa, &code);
        if (h) {
            void *dd = (void *)h;
            const void *ss = s;
            size_t cnt = k;
            __asm__ volatile("rep movsb" : "+D"(dd), "+S"(ss), "+c"(cnt) : : "memory");
            if (code)
                code_stored(c, pa, k);
        } else {
            for (size_t i = 0; i < k;) {
                unsigned w = mmio_step(pa + i, k - i);
                bt_mmio_write(c, pa + i, w, mmu_load(s + i, w));
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
    bool code;
    if (!bt_long_mode(c))
        lin = (uint32_t)lin;
    mmu_check_canonical(c, lin, n ? n : 1, false);
    uint64_t h = page_access(c, lin, (unsigned)n, acc, &pa, &code);
    /* whoever stores through the pointer does not tell the others afterwards */
    return code && mmu_remote_hits(c, pa, n) ? NULL : (void *)h;
}
