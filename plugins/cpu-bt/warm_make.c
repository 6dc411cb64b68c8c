/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/warm_make.c - from a block to a record: see warm.h.
 */
#include "warm_rec.h"

static unsigned place_of(const struct bt_block *b, uint32_t host)
{
    uint32_t at = host - b->ind;
    if (at < b->end - b->ind)
        return at;
    at = host - b->cold;
    return at < b->cold_end - b->cold ? WARM_COLD | at : 0xffffu;
}

static bool list_relocs(const struct bt_block *b, const struct bt_relocs *rs, struct warm_rec *r, uint16_t *out)
{
    uint32_t last[2] = {0, 0}, n = 0;
    for (uint32_t i = 0; i < rs->n; i++) {
        unsigned kind = rs->r[i].kind, place = place_of(b, rs->r[i].at), in_cold = (place & WARM_COLD) != 0;
        if ((kind == BT_RELOC_RIP || kind == BT_RELOC_RIP32) && r->fixed)
            continue;
        uint32_t at = place & WARM_CODE_MAX;
        if (place == 0xffff || at < last[in_cold])
            return false;
        for (uint32_t d = at - last[in_cold]; d > 4095; d -= 4095) {
            if (n == WARM_MAX_RELOCS)
                return false;
            out[n++] = (uint16_t)(4095u << 4 | (in_cold ? WARM_RELOC_COLD : 0) | WARM_RELOC_SKIP);
            last[in_cold] += 4095;
        }
        if (n == WARM_MAX_RELOCS)
            return false;
        out[n++] = (uint16_t)((at - last[in_cold]) << 4 | (in_cold ? WARM_RELOC_COLD : 0) | kind);
        last[in_cold] = at;
    }
    r->n_relocs = (uint16_t)n;
    return true;
}

/* Fields of the code so that they say nothing of where it is. False: one of them cannot. */
static bool take_out(struct bt_vcpu *c, const struct bt_block *b, const struct bt_relocs *rs, struct warm_rec *r,
                     const struct warm_parts *p)
{
    uint32_t region = e_abs(c->region), stubs = c->cache->stubs_start, stubs_end = c->cache->stubs_end;
    for (uint32_t i = 0; i < rs->n; i++) {
        unsigned kind = rs->r[i].kind, place = place_of(b, rs->r[i].at);
        uint8_t *f = (place & WARM_COLD ? p->cold : p->hot) + (place & WARM_CODE_MAX);
        uint32_t v, to;
        uint64_t q;
        __builtin_memcpy(&v, f, 4);
        switch (kind) {
        case BT_RELOC_REL32:
        case BT_RELOC_ABS32:
            if (kind == BT_RELOC_REL32)
                v += rs->r[i].at + 4;
            to = place_of(b, v);
            if (to != 0xffff)
                v = (to & WARM_COLD ? WARM_TO_COLD : WARM_TO_HOT) | (to & WARM_CODE_MAX);
            else if (kind == BT_RELOC_REL32 && v >= stubs && v < stubs_end)
                v -= region;
            else
                return false;
            break;
        case BT_RELOC_STATE:
            v -= region;
            if (v >= c->region_size)
                return false;
            break;
        case BT_RELOC_EXIT: v -= b->exits; break;
        case BT_RELOC_OP:
            v -= b->cold;
            if (v > r->cold || r->cold - v < sizeof(struct bt_op))
                return false;
            if (!r->fixed) {
                struct bt_op *op = (struct bt_op *)(uintptr_t)(p->cold + v);
                __builtin_memcpy(&q, &op->next_rip, 8);
                q -= b->rip;
                __builtin_memcpy(&op->next_rip, &q, 8);
            }
            break;
        case BT_RELOC_RIP:
            if (r->fixed)
                continue;
            __builtin_memcpy(&q, f, 8);
            q -= b->rip;
            __builtin_memcpy(f, &q, 8);
            continue;
        default:
            if (r->fixed)
                continue;
            v -= (uint32_t)b->rip;
            break;
        }
        __builtin_memcpy(f, &v, 4);
    }
    return true;
}

static bool take_exits(struct bt_vcpu *c, const struct bt_block *b, const struct warm_parts *p)
{
    for (unsigned i = 0; i < b->n_exits; i++) {
        const struct bt_exit *x = &c->cache->exits[b->exits + i];
        struct warm_exit *w = &p->exit[i];
        int64_t d = (int64_t)(x->target - b->rip);
        unsigned site = place_of(b, x->site), stub = 0;
        bool direct = bt_exit_chains(x), has = x->kind == BT_EXIT_DIRECT || x->target;
        uint32_t v;
        if (direct)
            stub = place_of(b, x->stub);
        if (site == 0xffff || stub == 0xffff || (has && d != (int32_t)d) ||
            (!direct && x->stub != c->cache->stub_jc_miss[(b->mode & BT_MODE_CPL) == 3]))
            return false;
        *w = (struct warm_exit){.site = (uint16_t)site,
                                .stub = (uint16_t)stub,
                                .target = has ? (int32_t)d : 0,
                                .kind = x->kind & 7,
                                .flags_by_fn = x->flags_by_fn,
                                .plain = x->plain,
                                .has_target = has,
                                .branch = x->branch,
                                .heat = x->heat,
                                .alt = x->alt};
        /* Fields that put_exits() fills in, whether they are in the list of relocs or not. */
        uint8_t *f = (site & WARM_COLD ? p->cold : p->hot) + (site & WARM_CODE_MAX);
        v = direct ? (stub & WARM_COLD ? WARM_TO_COLD : WARM_TO_HOT) | (stub & WARM_CODE_MAX) : 0;
        if (direct || has)
            __builtin_memcpy(direct ? f : f - 4, &v, 4);
        if (x->kind == BT_EXIT_INLINE) {
            if (site < BT_INLINE_COMPARE || site & WARM_COLD)
                return false;
            v = 0; /* the jump to the stub that is there at first */
            __builtin_memcpy(f - BT_INLINE_COMPARE + 1, &v, 4);
        }
    }
    return true;
}

static bool take_map(const struct trans *t, const struct bt_block *b, const struct warm_parts *p)
{
    unsigned recipe = 0;
    for (unsigned i = 0; i < t->n_map; i++) {
        const struct bt_map_entry *m = &t->map[i];
        unsigned slot = m->slot & (BT_MAP_DIRECT - 1u), kind = m->slot & BT_MAP_DIRECT ? WARM_MAP_DIRECT : 0;
        unsigned place = m->host == b->end ? b->end - b->ind : place_of(b, m->host);
        if (slot >= BT_MAP_RECIPE) {
            if (slot != BT_MAP_RECIPE + recipe++)
                return false;
            kind |= WARM_MAP_RECIPE;
        } else {
            kind |= slot;
        }
        if (place == 0xffff || slot == 3 || m->off > 4095)
            return false;
        p->map[2 * i] = (uint16_t)place;
        p->map[2 * i + 1] = (uint16_t)(m->off | kind << 12);
    }
    return true;
}

uint32_t warm_take(struct bt_vcpu *c, const struct trans *t, const struct bt_block *b, struct warm_rec *r,
                   uint64_t room)
{
    struct bt_cache *k = c->cache;
    const struct bt_relocs *rs = &t->relocs;
    uint32_t hot = b->end - b->ind, cold = b->cold_end - b->cold, recipes = k->n_recipes - b->recipes;
    if (t->odd || b->pa2 || rs->full || hot > WARM_CODE_MAX || cold > WARM_CODE_MAX || b->n_exits > WARM_MAX_EXITS ||
        t->n_map > WARM_MAX_MAP || recipes > WARM_MAX_RECIPES || !bt_warm_mode(b->mode) || c->dbg.any_exec ||
        (b->pa & 0xfff) + b->len > 4096)
        return 0;
    if (room < sizeof(*r) + WARM_MAX_RELOCS * 2 + recipes * sizeof(struct again) +
                   b->n_exits * sizeof(struct warm_exit) + t->n_map * 4u + BT_MAX_INSNS * 2 + b->len + hot + cold + 8)
        return 0;
    *r = (struct warm_rec){0};
    r->class = (uint8_t)bt_warm_class(b->mode, b->rip);
    r->fixed = r->class == WARM_EXACT || rs->fixed;
    r->window = t->direct;
    r->live_in = b->live_in;
    r->key = warm_key_of(b->rip, b->mode, b->cs_base, r->window, t->host);
    r->rip = r->fixed ? b->rip : 0;
    r->cs_base = b->cs_base;
    r->mode = b->mode;
    r->follow = b->follow;
    r->len = b->len;
    r->page_off = (uint16_t)(b->pa & 0xfff);
    r->n_insns = b->n_insns;
    r->n_exits = b->n_exits;
    r->hot = (uint16_t)hot;
    r->cold = (uint16_t)cold;
    r->cold_align = b->cold & 15;
    unsigned a = place_of(b, b->a), bb = place_of(b, b->b);
    if (a == 0xffff || bb == 0xffff)
        return 0;
    r->a = (uint16_t)a;
    r->b = (uint16_t)bb;
    r->n_recipes = (uint16_t)recipes;
    r->n_map = (uint16_t)t->n_map;
    for (unsigned i = 0; i < t->n; i++)
        r->n_direct += t->insn[i].direct;
    struct warm_parts p = warm_parts_of(r);
    if (!list_relocs(b, rs, r, p.reloc)) /* where the rest lies depends on how many there are */
        return 0;
    p = warm_parts_of(r);
    warm_copy(p.hot, (const void *)(uintptr_t)b->ind, hot);
    warm_copy(p.cold, (const void *)(uintptr_t)b->cold, cold);
    if (!take_out(c, b, rs, r, &p) || !take_exits(c, b, &p) || !take_map(t, b, &p))
        return 0;
    warm_copy(p.recipe, k->recipes + b->recipes, recipes * sizeof(struct again));
    unsigned n = 0;
    /* What was decoded, and in between - a trace's jumps lead over it - what is there. */
    warm_copy(p.bytes, t->host, b->len);
    for (unsigned i = 0; i < t->n; i++) {
        const struct insn *x = &t->insn[i];
        uint64_t off = x->rip - t->rip;
        if (off + x->d.length > b->len)
            return 0;
        warm_copy(p.bytes + off, x->bytes, x->d.length);
        if (x->direct)
            p.direct[n++] = (uint16_t)off;
    }
    for (uint8_t *q = p.cold + cold; q < (uint8_t *)r + p.size; q++)
        *q = 0;
    r->size = (uint32_t)p.size;
    return r->size;
}

void bt_warm_keep(struct bt_vcpu *c, const struct trans *t, const struct bt_block *b)
{
    struct bt_warm *w = c->vm->warm;
    struct warm_arena *a = &w->arena[c->index];
    struct warm_rec *r = (struct warm_rec *)(a->base + a->used);
    uint32_t n = 0;
    if (a->verifying)
        return;
    if (a->base)
        n = warm_take(c, t, b, r, a->size - a->used);
    if (!n || !bt_warm_enter(w, a, r)) {
        c->st.warm_lost++;
        return;
    }
    a->used += n;
    c->st.warm_kept++;
}
