/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/cache.c - blocks, chains, jump caches: see cache.h.
 */
#include "cache.h"
#include "direct.h"
#include "emit.h"
#include "kdirect.h"
#include "phys.h"
#include "trans.h"
#include <sys/mman.h>
#include <sys/syscall.h>

static inline uint32_t block_hash(uint64_t pa, uint64_t rip, uint32_t mode)
{
    uint64_t h = (pa ^ (rip << 7) ^ ((uint64_t)mode << 40)) * 0x9e3779b97f4a7c15ull;
    return (uint32_t)(h >> (64 - BT_HASH_BITS));
}
static inline uint32_t page_hash(uint64_t pa) { return (uint32_t)(pa >> 12) * 0x9e3779b1u >> 20; }

struct bt_block *bt_block_find(struct bt_vcpu *c, uint64_t pa, uint64_t rip, uint32_t mode, uint64_t cs_base)
{
    struct bt_cache *k = c->cache;
    for (uint32_t i = k->hash[block_hash(pa, rip, mode)]; i; i = k->blocks[i].hash_next) {
        struct bt_block *b = &k->blocks[i];
        if (b->pa == pa && b->rip == rip && b->mode == mode && b->cs_base == cs_base)
            return b;
    }
    return NULL;
}

struct bt_codepage *bt_codepage_get(struct bt_vcpu *c, uint64_t pa, bool create)
{
    struct bt_cache *k = c->cache;
    pa &= ~0xfffull;
    uint32_t *head = &k->page_hash[page_hash(pa)];
    for (uint32_t i = *head; i; i = k->pages[i].next)
        if (k->pages[i].pa == pa)
            return &k->pages[i];
    if (!create || k->n_pages == k->max_pages)
        return NULL;
    struct bt_codepage *p = &k->pages[k->n_pages];
    p->pa = pa;
    p->blocks = 0;
    p->stale = false;
    for (unsigned i = 0; i < 64; i++)
        atomic_store_explicit(&p->bytes[i], 0, memory_order_relaxed);
    p->next = *head;
    atomic_thread_fence(memory_order_release);
    *head = k->n_pages++;
    return p;
}

/* From now on stores to the page take the slow path, on every vCPU. */
static void page_mark(struct bt_vcpu *c, uint64_t pa)
{
    struct bt_page_chunk *ch = bt_chunk(c->vm, pa);
    if (!ch)
        return;
    unsigned i = bt_chunk_page(pa);
    uint64_t bit = 1ull << c->index;
    if (atomic_load(&ch->code[i]) & bit)
        return;
    atomic_fetch_or(&ch->code[i], bit);
    unsigned written = atomic_exchange(&ch->written[i], 0);
    if (written & BT_WRITTEN_WINDOW)
        bt_kd_protect(c->vm, pa);
    if (written & BT_WRITTEN_TLB) {
        c->marking = 1;
        bt_tlb_drop_write(c, pa);
        bt_sync_request(c->vm, c, c->vm->n_vcpus == 64 ? ~0ull : (1ull << c->vm->n_vcpus) - 1, BT_SYNC_DROP_WRITE,
                        pa & ~0xfffull, 0, true);
        c->marking = 0;
    }
}

/* Called before the bytes are read, so that no store slips between. */
void bt_codepage_mark(struct bt_vcpu *c, uint64_t pa, unsigned len)
{
    struct bt_codepage *p = bt_codepage_get(c, pa, true);
    if (!p)
        return;
    unsigned first = (unsigned)(pa & 0xfff), last = first + len - 1;
    for (unsigned w = first >> 6; w <= last >> 6; w++) {
        unsigned lo = w == first >> 6 ? first & 63 : 0, hi = w == last >> 6 ? last & 63 : 63;
        uint64_t bits = (~0ull >> (63 - hi)) & (~0ull << lo);
        if ((atomic_load_explicit(&p->bytes[w], memory_order_relaxed) & bits) != bits)
            atomic_fetch_or_explicit(&p->bytes[w], bits, memory_order_relaxed);
    }
    page_mark(c, pa);
}

static void page_link(struct bt_vcpu *c, struct bt_block *b, unsigned which, uint64_t pa)
{
    struct bt_codepage *p = bt_codepage_get(c, pa, true);
    if (!p)
        return;
    b->page_next[which] = p->blocks;
    p->blocks = bt_block_index(c, b) << 1 | which;
}

void bt_block_hash(struct bt_vcpu *c, struct bt_block *b)
{
    uint32_t *h = &c->cache->hash[block_hash(b->pa, b->rip, b->mode)];
    b->hash_next = *h;
    *h = bt_block_index(c, b);
}

void bt_block_insert(struct bt_vcpu *c, struct bt_block *b)
{
    bt_block_hash(c, b);
    page_link(c, b, 0, b->pa);
    if (b->pa2)
        page_link(c, b, 1, b->pa2);
}

static void exit_patch(struct bt_exit *x, uint32_t target) { e_patch32((uint8_t *)(uintptr_t)x->site, target); }

static void exit_patch_indirect(struct bt_cache *k, struct bt_exit *x, bool to_stub)
{
    uint8_t *p = (uint8_t *)(uintptr_t)x->site;
    if (x->kind == BT_EXIT_OTHER) {
        e_patch32(p, to_stub ? x->stub : k->stub_ret_other[(k->blocks[x->from].mode & BT_MODE_CPL) == 3]);
    } else if (to_stub) {
        p[0] = x->kind == BT_EXIT_CALL ? 0xe8 : 0xe9;
        e_patch32(p + 1, x->stub);
    } else if (x->kind == BT_EXIT_RET) {
        p[0] = 0xc3;
    } else {
        if (x->kind == BT_EXIT_CALL) /* five bytes, too: the return address is the same */
            *p++ = 0x2e, *p++ = 0x2e;
        p[0] = 0x41; /* jmp r15, call r15 */
        p[1] = 0xff;
        p[2] = x->kind == BT_EXIT_CALL ? 0xd7 : 0xe7;
    }
}

void bt_exit_open(struct bt_cache *k, struct bt_exit *x) { exit_patch_indirect(k, x, false); }

void bt_ret_empty(struct bt_vcpu *c, unsigned t)
{
    struct bt_cache *k = c->cache;
    k->ret_saved[t] = k->ret_top[t];
    if (k->ret_table == t)
        c->ret_sp = k->ret_top[t];
}

void bt_unchain(struct bt_vcpu *c, uint32_t i)
{
    struct bt_cache *k = c->cache;
    struct bt_exit *x = &k->exits[i];
    if (!x->to)
        return;
    uint32_t *pp = &k->blocks[x->to].in_head;
    while (*pp && *pp != i)
        pp = &k->exits[*pp].in_next;
    if (*pp)
        *pp = x->in_next;
    x->to = 0;
    exit_patch(x, x->stub);
}

void bt_chain(struct bt_vcpu *c, uint32_t i, struct bt_block *to)
{
    struct bt_cache *k = c->cache;
    struct bt_exit *x = &k->exits[i];
    struct bt_block *from = &k->blocks[x->from];
    if (from->dead || to->dead || x->to || from->unlinked) /* it stays unlinked: the next kick would do nothing */
        return;
    uint64_t a = from->rip + from->cs_base, b = x->target + from->cs_base;
    if ((from->mode & BT_MODE_CODE) != BT_MODE_CODE64)
        a = (uint32_t)a, b = (uint32_t)b;
    bool leaves = (a ^ b) >> 12, cross = leaves || to->pa2;
    if (cross && (from->mode & BT_MODE_CPL) == 3) {
        if (leaves && (to->pa2 || !bt_ucode_join(c, i, a, from->pa, b, to->pa))) {
            if (x->alt)
                exit_patch(x, x->stub + x->alt);
            return;
        }
        if (to->pa2) { /* it stays in the page, but the target's last instruction does not */
            if (k->n_straddle == 1024)
                return;
            k->straddle[k->n_straddle++] = i;
            uint32_t h = bt_code_filter_hash(b + 4096); /* nothing else may tell that the next page matters */
            k->code_filter[1][h >> 6] |= 1ull << (h & 63);
        }
    } else if (cross) {
        if (k->n_xpage == BT_XPAGE_MAX)
            return;
        uint64_t lin = x->target + to->cs_base;
        for (unsigned n = 0; n < (to->pa2 ? 2u : 1u); n++) {
            uint64_t vp = (lin >> 12) + n, pa = (n ? to->pa2 : to->pa) & ~0xfffull;
            uint32_t h = (uint32_t)(vp * 0x9e3779b1u) & 8191, tries = 0;
            while (k->kpage_hash[h] && k->kpage[k->kpage_hash[h]].vpage != vp && ++tries < 64)
                h = (h + 1) & 8191;
            if (tries == 64 || (!k->kpage_hash[h] && k->n_kpage >= 4096))
                return;
            if (!k->kpage_hash[h]) {
                k->kpage_hash[h] = k->n_kpage;
                k->kpage[k->n_kpage].vpage = vp;
                k->kpage[k->n_kpage++].pa = pa;
            } else if (k->kpage[k->kpage_hash[h]].pa != pa) {
                return; /* an old mapping is still chained; flushes will drop it */
            }
        }
        k->xpage[k->n_xpage++] = i;
    }
    x->to = bt_block_index(c, to);
    x->in_next = to->in_head;
    to->in_head = i;
    exit_patch(x, x->flags_by_fn ? to->a : to->b);
    c->st.chains++;
}

/* An inline cache's code, made by translate.c: at the site, the rel32 field, it jumps to the target's block. */
static bool is_call(const struct bt_exit *x) { return ((const uint8_t *)(uintptr_t)x->site)[-1] == 0xe8; }

void bt_inline_forget(struct bt_exit *x)
{
    uint8_t *p = (uint8_t *)(uintptr_t)x->site - BT_INLINE_COMPARE;
    p[0] = 0xe9; /* to where the JNE goes */
    e_patch32(p + 1, is_call(x) ? x->stub - BT_INLINE_CALL_STUB : x->stub);
    x->heat = BT_INLINE_TRIES;
}

static bool inline_knows(const struct bt_exit *x, uint64_t rip)
{
    return ((const uint8_t *)(uintptr_t)x->site)[-BT_INLINE_COMPARE] == 0x49 && x->target == rip;
}

void bt_inline_learn(struct bt_vcpu *c, uint32_t exit, uint64_t rip, struct bt_block *to)
{
    struct bt_exit *x = &c->cache->exits[exit];
    uint8_t *p = (uint8_t *)(uintptr_t)x->site - BT_INLINE_COMPARE;
    if (inline_knows(x, rip)) { /* unchained since */
        bt_chain(c, exit, to);
        if (x->to)
            return;
    }
    bt_unchain(c, exit);
    if (!x->heat) { /* to the look-up behind the jump, or behind the call and its jump to the landing */
        p[0] = 0xeb;
        p[1] = BT_INLINE_COMPARE - 2 + 4 + (is_call(x) ? 2 : 0);
        c->st.inline_opened++;
        return;
    }
    x->heat--;
    x->target = rip;
    p[0] = 0x49;
    p[1] = 0xbf;
    __builtin_memcpy(p + 2, &rip, 8);
    bt_chain(c, exit, to);
    c->st.inline_learnt++;
}

void bt_xpage_unchain(struct bt_vcpu *c)
{
    struct bt_cache *k = c->cache;
    for (uint32_t i = 0; i < k->n_xpage; i++)
        bt_unchain(c, k->xpage[i]);
    k->n_xpage = 0;
    k->n_kpage = 1;
    for (unsigned i = 0; i < 8192; i++)
        k->kpage_hash[i] = 0;
    bt_jc_flush(c, 0);
}

/* --- jump caches ------------------------------------------------------------- */
void bt_jc_set(struct bt_vcpu *c, unsigned t, uint64_t rip, struct bt_block *b)
{
    struct bt_cache *k = c->cache;
    uint32_t i = bt_jc_index(rip);
    if (c->jc[t][i] == k->stub_jc_miss[t]) { /* else it is listed */
        if (k->n_jc_touched[t] == BT_TOUCHED_MAX)
            bt_jc_flush(c, t);
        k->jc_touched[t][k->n_jc_touched[t]++] = i;
    }
    c->jc[t][i] = b->ind;
    for (unsigned n = 0; n < (b->pa2 ? 2u : 1u); n++) {
        uint32_t h = bt_code_filter_hash(rip + b->cs_base + n * 4096);
        k->code_filter[t][h >> 6] |= 1ull << (h & 63);
    }
}

void bt_jc_flush(struct bt_vcpu *c, unsigned t)
{
    struct bt_cache *k = c->cache;
    for (uint32_t i = 0; i < k->n_jc_touched[t]; i++)
        c->jc[t][k->jc_touched[t][i]] = k->stub_jc_miss[t];
    k->n_jc_touched[t] = 0;
    bt_ret_empty(c, t);
    if (t) {
        for (uint32_t i = 0; i < k->n_straddle; i++)
            bt_unchain(c, k->straddle[i]);
        k->n_straddle = 0;
    }
    for (unsigned i = 0; i < 64; i++)
        k->code_filter[t][i] = 0;
}

/* Targets in a page lie side by side; a block may reach into it from the page before. */
void bt_jc_drop_page(struct bt_vcpu *c, unsigned t, uint64_t lin)
{
    struct bt_cache *k = c->cache;
    uint64_t rip = (lin & ~0xfffull) - k->jc_cs_base[t];
    for (uint64_t r = rip - 16; r != rip + 4096; r++)
        c->jc[t][bt_jc_index(r)] = k->stub_jc_miss[t];
    for (uint32_t i = 0; t && i < k->n_straddle; i++)
        bt_unchain(c, k->straddle[i]);
    if (t)
        k->n_straddle = 0;
}

/* --- dropping ------------------------------------------------------------------ */
void bt_block_drop(struct bt_vcpu *c, struct bt_block *b)
{
    struct bt_cache *k = c->cache;
    uint32_t self = bt_block_index(c, b);
    if (b->dead)
        return;
    b->dead = 1;
    for (uint32_t *pp = &k->hash[block_hash(b->pa, b->rip, b->mode)]; *pp; pp = &k->blocks[*pp].hash_next)
        if (*pp == self) {
            *pp = b->hash_next;
            break;
        }
    while (b->in_head) {
        struct bt_exit *x = &k->exits[b->in_head];
        uint32_t next = x->in_next;
        x->to = 0;
        exit_patch(x, x->stub);
        b->in_head = next;
    }
    for (unsigned i = 0; i < b->n_exits; i++) {
        struct bt_exit *x = &k->exits[b->exits + i];
        if (bt_exit_chains(x))
            bt_unchain(c, b->exits + i);
        /* Who comes back must not go on in here. Only a trace's landing would: others jump, which is unchained above;
         * but then each return went through C. */
        if (x->kind == BT_EXIT_OTHER) {
            uint8_t *p = (uint8_t *)(uintptr_t)x->site - 2;
            p[0] = 0x90; /* JNE -> NOP; JMP */
            p[1] = 0xe9;
        }
    }
    unsigned t = (b->mode & BT_MODE_CPL) == 3;
    if (c->jc[t][bt_jc_index(b->rip)] == b->ind)
        c->jc[t][bt_jc_index(b->rip)] = k->stub_jc_miss[t];
    if (t)
        bt_spaces_drop_block(c, b->rip + b->cs_base);
}

/* Dear where a page has many blocks and is written to all the time, as firmware's are: only when a write has come that
 * hit nothing but old marks. */
static void page_remark(struct bt_vcpu *c, struct bt_codepage *p)
{
    struct bt_cache *k = c->cache;
    uint64_t bits[64] = {0};
    for (uint32_t l = p->blocks; l;) {
        struct bt_block *b = &k->blocks[l >> 1];
        uint64_t from = (l & 1) ? 0 : b->pa & 0xfff;
        uint64_t n = (l & 1) ? (b->pa & 0xfff) + b->len - 4096 : b->len;
        for (uint64_t i = from; i < from + n && i < 4096; i++)
            bits[i >> 6] |= 1ull << (i & 63);
        l = b->page_next[l & 1];
    }
    for (unsigned i = 0; i < 64; i++)
        atomic_store_explicit(&p->bytes[i], bits[i], memory_order_relaxed);
}

bool bt_invalidate_local(struct bt_vcpu *c, uint64_t pa, uint64_t n, struct bt_block *current)
{
    struct bt_cache *k = c->cache;
    bool hit = false;
    if (c->direct && c->direct->n_copies)
        bt_direct_uncopy(c, pa, n);
    for (uint64_t page = pa & ~0xfffull; page < pa + n; page += 4096) {
        struct bt_codepage *p = bt_codepage_get(c, page, false);
        if (!p)
            continue;
        bool any = false;
        uint32_t *pp = &p->blocks;
        while (*pp) {
            struct bt_block *b = &k->blocks[*pp >> 1];
            unsigned which = *pp & 1;
            uint64_t from = which ? page : b->pa;
            uint64_t to = which ? page + (b->pa & 0xfff) + b->len - 4096 : b->pa + b->len;
            if (b->dead || (from < pa + n && pa < to)) {
                if (!b->dead) {
                    bt_block_drop(c, b);
                    c->st.smc_invalidations++;
                    any = true;
                    hit |= b == current;
                }
                *pp = b->page_next[which];
            } else {
                pp = &b->page_next[which];
            }
        }
        p->stale |= any;
        if (!p->blocks || (p->stale && !any)) {
            page_remark(c, p);
            p->stale = false;
        }
    }
    return hit;
}

/* --- stopping and going on --------------------------------------------------------- */
void bt_unlink_block(struct bt_vcpu *c, struct bt_block *b)
{
    struct bt_cache *k = c->cache;
    if (b->unlinked)
        return;
    uint32_t n = atomic_load_explicit(&k->n_unlinked, memory_order_relaxed);
    if (n == sizeof(k->unlinked) / sizeof(k->unlinked[0]))
        return;
    b->unlinked = 1;
    k->unlinked[n] = bt_block_index(c, b);
    atomic_store_explicit(&k->n_unlinked, n + 1, memory_order_relaxed);
    for (unsigned i = 0; i < b->n_exits; i++) {
        struct bt_exit *x = &k->exits[b->exits + i];
        if (!bt_exit_chains(x))
            exit_patch_indirect(k, x, true);
        else if (x->to)
            exit_patch(x, x->stub);
    }
    c->st.unchains++;
}

void bt_relink(struct bt_vcpu *c)
{
    struct bt_cache *k = c->cache;
    uint32_t n = atomic_load_explicit(&k->n_unlinked, memory_order_relaxed);
    if (!n)
        return;
    for (uint32_t j = 0; j < n; j++) {
        struct bt_block *b = &k->blocks[k->unlinked[j]];
        b->unlinked = 0;
        for (unsigned i = 0; i < b->n_exits; i++) {
            struct bt_exit *x = &k->exits[b->exits + i];
            if (!bt_exit_chains(x))
                exit_patch_indirect(k, x, false);
            else if (x->to)
                exit_patch(x, x->flags_by_fn ? k->blocks[x->to].a : k->blocks[x->to].b);
        }
    }
    atomic_store_explicit(&k->n_unlinked, 0, memory_order_relaxed);
}

struct bt_block *bt_block_at(struct bt_vcpu *c, uint64_t host)
{
    struct bt_cache *k = c->cache;
    bool cold = host >= (uintptr_t)k->cold;
    uint32_t lo = 1, hi = k->n_blocks;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if ((cold ? k->blocks[mid].cold_end : k->blocks[mid].end) <= host)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo >= k->n_blocks)
        return NULL;
    struct bt_block *b = &k->blocks[lo];
    return host >= (cold ? b->cold : b->ind) ? b : NULL;
}

size_t bt_cache_held(const struct bt_vcpu *c)
{
    const struct bt_cache *k = c->cache;
    return (size_t)(k->hot_p - k->hot) + (size_t)(k->cold_p - k->cold) + k->n_blocks * sizeof(k->blocks[0]) +
           k->n_exits * sizeof(k->exits[0]) + k->n_map + k->n_relocs * sizeof(k->relocs[0]) +
           k->n_recipes * sizeof(k->recipes[0]) + k->n_pages * sizeof(k->pages[0]);
}

bool bt_cache_room(struct bt_vcpu *c)
{
    struct bt_cache *k = c->cache;
    if (bt_cache_held(c) > k->most)
        return false;
    /* side exits, guards, and the ends that a block may have */
    unsigned exits = 3 * BT_MAX_TRACED + 4 * BT_MAX_CALLS + BT_MAX_GROUPS + 16;
    return k->hot_end - k->hot_p > 64 * 1024 && k->cold_end - k->cold_p > 128 * 1024 &&
           k->n_blocks + 2 < BT_MAX_BLOCKS && k->n_exits + exits < BT_MAX_EXITS &&
           k->n_map + BT_MAP_MOST < BT_MAX_MAP && k->n_recipes + 2 * BT_MAX_INSNS < BT_MAX_RECIPES &&
           k->n_relocs + BT_MAX_RELOCS < BT_MAX_RELOCS_KEPT && k->n_pages + 4 < k->max_pages;
}

void bt_cache_flush(struct bt_vcpu *c)
{
    struct bt_cache *k = c->cache;
    bt_relink(c);
    c->st.cache_flushes++;
    if (c->direct && c->direct->n_copies)
        bt_direct_uncopy(c, 0, ~0ull);
    k->hot_p = k->hot;
    k->cold_p = k->cold;
    k->n_blocks = k->n_exits = 1;
    k->n_map = k->n_relocs = k->n_recipes = 0;
    for (unsigned i = 0; i < 1u << BT_PA_HASH_BITS; i++)
        k->pa_hash[i] = 0;
    k->n_xpage = k->n_straddle = 0;
    bt_ucode_reset(c);
    k->n_kpage = 1;
    k->chain_exit = 0;
    for (unsigned i = 0; i < 1u << BT_HASH_BITS; i++)
        k->hash[i] = 0;
    for (unsigned i = 0; i < 8192; i++)
        k->kpage_hash[i] = 0;
    for (uint32_t i = 1; i < k->n_pages; i++) {
        k->pages[i].blocks = 0;
        k->pages[i].stale = false;
        for (unsigned j = 0; j < 64; j++)
            atomic_store_explicit(&k->pages[i].bytes[j], 0, memory_order_relaxed);
    }
    bt_jc_flush(c, 0);
    bt_jc_flush(c, 1);
    bt_spaces_drop_jumps(c);
}

/* The host has the pages back. What fills up next is not what did so this time: or each part would keep its largest. */
static void give_back(void *from, size_t n)
{
    long r = SYS_madvise;
    __asm__ volatile("syscall" : "+a"(r) : "D"(from), "S"(n), "d"(MADV_DONTNEED) : "rcx", "r11", "memory");
}

void bt_cache_make_room(struct bt_vcpu *c)
{
    struct bt_cache *k = c->cache;
    bt_cache_flush(c);
    give_back(k->hot, (size_t)(k->cold_end - k->hot));
    give_back(k->blocks, BT_MAX_BLOCKS * sizeof(k->blocks[0]));
    give_back(k->exits, BT_MAX_EXITS * sizeof(k->exits[0]));
    give_back(k->map, BT_MAX_MAP);
    give_back(k->relocs, BT_MAX_RELOCS_KEPT * sizeof(k->relocs[0]));
    give_back(k->recipes, BT_MAX_RECIPES * sizeof(k->recipes[0]));
    for (uint32_t i = 1; i < k->n_pages; i++) {
        struct bt_page_chunk *ch = bt_chunk(c->vm, k->pages[i].pa);
        if (ch)
            atomic_fetch_and(&ch->code[bt_chunk_page(k->pages[i].pa)], ~(1ull << c->index));
    }
    for (unsigned i = 0; i < 4096; i++)
        k->page_hash[i] = 0;
    k->n_pages = 1;
}
