/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/warm_use.c - from a record to a block: see warm.h.
 */
#include "warm_rec.h"
#include "kdirect.h"
#include "mmu.h"
#include "perf_map.h"

struct installed {
    const struct warm_rec *r;
    uint32_t hot, cold;
};
static inline uint32_t host_of(const struct installed *w, unsigned place)
{
    return (place & WARM_COLD ? w->cold : w->hot) + (place & WARM_CODE_MAX);
}

static inline uint32_t in_block(const struct installed *w, uint32_t region, uint32_t v)
{
    return v >= WARM_TO_COLD  ? w->cold + (v - WARM_TO_COLD)
           : v >= WARM_TO_HOT ? w->hot + (v - WARM_TO_HOT)
                              : region + v;
}

static void put_in(struct bt_vcpu *c, const struct installed *w, const struct warm_parts *p, uint64_t rip,
                   uint32_t exits, struct bt_relocs *keep)
{
    uint32_t at[2] = {w->hot, w->cold}, region = e_abs(c->region);
    for (unsigned i = 0; i < w->r->n_relocs; i++) {
        unsigned kind = p->reloc[i] & 7, cold = (p->reloc[i] & WARM_RELOC_COLD) != 0;
        at[cold] += p->reloc[i] >> 4;
        uint8_t *f = (uint8_t *)(uintptr_t)at[cold];
        uint32_t v;
        uint64_t q;
        if (kind == WARM_RELOC_SKIP)
            continue;
        if (keep && kind <= BT_RELOC_OP)
            keep->r[keep->n++] = (struct bt_reloc){at[cold], (uint8_t)kind, 0};
        __builtin_memcpy(&v, f, 4);
        switch (kind) {
        case BT_RELOC_REL32:
            v = in_block(w, region, v);
            e_patch32(f, v);
            continue;
        case BT_RELOC_ABS32: v = in_block(w, region, v); break;
        case BT_RELOC_STATE: v += region; break;
        case BT_RELOC_EXIT: v += exits; break;
        case BT_RELOC_OP:
            v += w->cold;
            if (!w->r->fixed)
                ((struct bt_op *)(uintptr_t)v)->next_rip += rip;
            break;
        case BT_RELOC_RIP:
            __builtin_memcpy(&q, f, 8);
            q += rip;
            __builtin_memcpy(f, &q, 8);
            continue;
        default: v += (uint32_t)rip; break;
        }
        __builtin_memcpy(f, &v, 4);
    }
}

static void put_exits(struct bt_vcpu *c, const struct installed *w, const struct warm_parts *p,
                      const struct bt_block *b)
{
    struct bt_cache *k = c->cache;
    unsigned t = (b->mode & BT_MODE_CPL) == 3;
    for (unsigned i = 0; i < b->n_exits; i++) {
        const struct warm_exit *e = &p->exit[i];
        struct bt_exit *x = &k->exits[b->exits + i];
        *x = (struct bt_exit){.site = host_of(w, e->site),
                              .kind = e->kind,
                              .flags_by_fn = e->flags_by_fn,
                              .plain = e->plain,
                              .branch = e->branch & 15,
                              .heat = e->heat,
                              .alt = e->alt,
                              .from = bt_block_index(c, b)};
        if (e->has_target)
            x->target = b->rip + (uint64_t)(int64_t)e->target;
        x->stub = bt_exit_chains(x) ? host_of(w, e->stub) : k->stub_jc_miss[t];
        uint8_t *site = (uint8_t *)(uintptr_t)x->site;
        if (bt_exit_chains(x)) {
            e_patch32(site, x->stub);
            if (x->kind == BT_EXIT_INLINE)
                bt_inline_forget(x);
        } else if (e->has_target) { /* mov r15d, [its place in the jump cache] stands before it */
            uint32_t at = e_abs(&c->jc[t][bt_jc_index(x->target)]);
            __builtin_memcpy(site - 4, &at, 4);
        }
    }
}

struct bt_block *bt_warm_install(struct bt_vcpu *c, const struct warm_rec *r, uint64_t rip, uint64_t pa)
{
    struct bt_cache *k = c->cache;
    struct warm_parts p = warm_parts_of(r);
    uint32_t bi = k->n_blocks++;
    struct bt_block *b = &k->blocks[bi];
    uint8_t *hot = (uint8_t *)(((uintptr_t)k->hot_p + 15) & ~15ull);
    uint8_t *cold = k->cold_p + ((r->cold_align - e_abs(k->cold_p)) & 15);
    struct installed w = {r, e_abs(hot), e_abs(cold)};
    warm_copy(hot, p.hot, r->hot);
    warm_copy(cold, p.cold, r->cold);
    k->hot_p = hot + r->hot;
    k->cold_p = cold + r->cold;
    *b = (struct bt_block){.rip = rip,
                           .pa = pa,
                           .cs_base = r->cs_base,
                           .mode = r->mode,
                           .ind = w.hot,
                           .end = w.hot + r->hot,
                           .cold = w.cold,
                           .cold_end = w.cold + r->cold,
                           .len = r->len,
                           .n_insns = r->n_insns,
                           .n_exits = r->n_exits,
                           .live_in = r->live_in,
                           .follow = r->follow};
    b->a = host_of(&w, r->a);
    b->b = host_of(&w, r->b);
    b->exits = k->n_exits;
    k->n_exits += r->n_exits;
    b->recipes = k->n_recipes;
    warm_copy(k->recipes + k->n_recipes, p.recipe, r->n_recipes * sizeof(struct again));
    k->n_recipes += r->n_recipes;
    struct bt_map_entry *map = c->trans->map; /* the translator is not at work */
    for (unsigned i = 0, recipe = 0; i < r->n_map; i++) {
        unsigned kind = p.map[2 * i + 1] >> 12;
        map[i].host = host_of(&w, p.map[2 * i]);
        map[i].off = p.map[2 * i + 1] & 0xfff;
        map[i].slot = (kind & 3) == WARM_MAP_RECIPE ? (uint16_t)(BT_MAP_RECIPE + recipe++) : (uint16_t)(kind & 3);
        if (kind & WARM_MAP_DIRECT)
            map[i].slot |= BT_MAP_DIRECT;
    }
    bt_map_keep(c, b, map, r->n_map);
    bool movable = r->class == WARM_PROGRAM && !r->fixed;
    struct bt_relocs *keep = movable ? &c->trans->relocs : NULL;
    if (keep) {
        keep->n = 0;
        keep->fixed = keep->full = false;
    }
    put_in(c, &w, &p, rip, b->exits, keep);
    put_exits(c, &w, &p, b);
    bt_block_insert(c, b);
    bt_perf_map_block(c, b);
    if (keep)
        bt_relocs_keep(c, b, keep);
    c->st.code_bytes = (uint64_t)(k->hot_p - k->hot) + (uint64_t)(k->cold_p - k->cold);
    return b;
}

/* RIP32 constants must keep their sign. */
static bool may_go(const struct warm_rec *r, const struct warm_parts *p, uint64_t rip)
{
    unsigned at[2] = {0, 0};
    if (r->fixed)
        return r->rip == rip;
    if (r->class != WARM_KERNEL)
        return true;
    for (unsigned i = 0; i < r->n_relocs; i++) {
        unsigned kind = p->reloc[i] & 7, cold = (p->reloc[i] & WARM_RELOC_COLD) != 0;
        int32_t v;
        at[cold] += p->reloc[i] >> 4;
        if (kind != BT_RELOC_RIP32)
            continue;
        __builtin_memcpy(&v, (cold ? p->cold : p->hot) + at[cold], 4);
        int64_t to = (int64_t)rip + v;
        if (to >= 0 || to < INT32_MIN)
            return false;
    }
    return true;
}

static bool window_ok(struct bt_vcpu *c, const struct warm_rec *r, const struct warm_parts *p, uint64_t pa)
{
    for (unsigned i = 0; i < r->n_direct; i++)
        if (bt_kd_is_soft(c->vm, pa + p->direct[i]))
            return false;
    return true;
}

/* For tests: is it what the translator makes of the same bytes? */
static void verify(struct bt_vcpu *c, const struct warm_rec *r, uint64_t rip, uint64_t pa, const uint8_t *host)
{
    struct bt_cache *k = c->cache;
    struct bt_warm *w = c->vm->warm;
    struct warm_arena *a = &w->arena[c->index];
    bt_fp_save(c);
    k->cold_p += (r->cold_align - e_abs(k->cold_p)) & 15;
    a->verifying = true;
    struct bt_block *b = bt_translate(c, rip, r->mode, pa, host, r->follow);
    a->verifying = false;
    struct warm_rec *again = (struct warm_rec *)(a->base + a->used);
    uint32_t n = warm_take(c, c->trans, b, again, a->size - a->used);
    again->gone = r->gone;
    again->sum = r->sum;
    bt_block_drop(c, b);
    if (n && again->n_direct > r->n_direct) /* then instructions could not be direct; now they might */
        return;
    if (n == r->size && warm_same((const uint8_t *)again, (const uint8_t *)r, n))
        return;
    c->st.warm_differs++;
    bt_warm_differs(c, r, n ? again : NULL, rip);
}

struct bt_block *bt_warm_find(struct bt_vcpu *c, uint64_t rip, uint32_t mode, uint64_t pa, const uint8_t *host)
{
    struct bt_warm *w = c->vm->warm;
    if (!bt_warm_mode(mode) || c->dbg.any_exec)
        return NULL;
    uint64_t t0 = bt_host_tsc();
    uint64_t cs_base = (mode & BT_MODE_CODE) == BT_MODE_CODE64 ? 0 : c->seg_base[BT_CS];
    bool window = (mode & (BT_MODE_CODE | BT_MODE_CPL)) == BT_MODE_CODE64 && (int64_t)rip < 0 && bt_kd_on(c->vm);
    uint64_t key = warm_key_of(rip, mode, cs_base, window, host);
    uint32_t mask = (1u << WARM_SLOT_BITS) - 1;
    for (uint32_t i = (uint32_t)key & mask;; i = (i + 1) & mask) {
        uint64_t there = atomic_load_explicit(&w->slot[i], memory_order_acquire);
        if (!there)
            return NULL;
        if ((there ^ key) >> 48)
            continue;
        const struct warm_rec *r = warm_rec_at(w, &w->arena[c->index], key, there);
        if (!r || r->key != key || r->mode != mode || r->cs_base != cs_base || r->window != window ||
            r->page_off != (pa & 0xfff))
            continue;
        struct warm_parts p = warm_parts_of(r);
        if (!warm_same(host, p.bytes, r->len) || !may_go(r, &p, rip) || !window_ok(c, r, &p, pa))
            continue;
        /* From here on a store to these bytes is noticed; before, there may have been one. */
        uint64_t flushed = c->mmu->kgen;
        bt_codepage_mark(c, pa, r->len);
        if (c->mmu->kgen != flushed) /* as for the translator: the code may be elsewhere now */
            bt_restart(c);
        if (!warm_same(host, p.bytes, r->len))
            continue;
        if (w->verify)
            verify(c, r, rip, pa, host);
        struct bt_block *b = bt_warm_install(c, r, rip, pa);
        if (warm_slot_what(there) & 1)
            __atomic_fetch_or(&w->marks[warm_slot_what(there) >> 1], WARM_USED, __ATOMIC_RELAXED);
        c->st.warm_loaded++;
        c->st.warm_cycles += bt_host_tsc() - t0;
        return b;
    }
}
