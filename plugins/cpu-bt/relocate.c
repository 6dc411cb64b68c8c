/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/relocate.c - a program's code at another address.
 *
 * Programs and libraries are mapped at random addresses, so each process that
 * starts runs the same guest pages elsewhere. Translations hold the guest's
 * RIP in few places: these are noted when a block is made, and the block is
 * copied and put right instead of being translated again. Only 64-bit code of
 * programs above 4 GiB, where each such constant has its long form.
 *
 * Most programs do not run for long, and their copies would fill the cache: the
 * one that has been at its address for longest is put right where it lies, and
 * is gone from there. Copies are made only while it is younger than BT_COPY_AGE:
 * programs that run in turn get some of their own rather than take them from
 * each other over and over.
 */
#include "cache.h"
#include "emit.h"
#include "op.h"
#include "perf_map.h"
#include "phys.h"

#define BT_COPY_AGE 64u /* by now(): some 30 ms */

static inline uint32_t now(void) { return (uint32_t)(bt_host_tsc() >> 20); }
static inline uint32_t pa_hash(uint64_t pa)
{
    return (uint32_t)((pa * 0x9e3779b97f4a7c15ull) >> (64 - BT_PA_HASH_BITS));
}

/* Its copies are found by pa, the latest first. */
static void list(struct bt_vcpu *c, struct bt_block *b)
{
    uint32_t *h = &c->cache->pa_hash[pa_hash(b->pa)];
    b->pa_next = *h;
    *h = bt_block_index(c, b);
    b->made = now();
}

void bt_relocs_keep(struct bt_vcpu *c, struct bt_block *b, const struct bt_relocs *r)
{
    struct bt_cache *k = c->cache;
    b->relocs = k->n_relocs;
    b->n_relocs = 0;
    if (r->fixed || c->dbg.any_exec)
        return;
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->n; i++) {
        if (r->r[i].kind > BT_RELOC_OP)
            continue;
        bool cold = r->r[i].at >= b->cold && r->r[i].at < b->cold_end;
        uint32_t off = r->r[i].at - (cold ? b->cold : b->ind);
        if (off > 0xffff)
            return;
        k->relocs[k->n_relocs + n++] = (struct bt_kept_reloc){(uint16_t)off, r->r[i].kind, cold};
    }
    b->n_relocs = (uint16_t)n;
    k->n_relocs += n;
    list(c, b);
}

static void copy(uint8_t *to, const uint8_t *from, size_t n)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

struct move {
    const struct bt_block *from;
    uint32_t hot, cold; /* added to host addresses */
    uint64_t rip;       /* added to the guest's */
};
static inline uint32_t moved(const struct move *m, uint32_t host)
{
    if (host >= m->from->ind && host < m->from->end)
        return host + m->hot;
    if (host >= m->from->cold && host < m->from->cold_end)
        return host + m->cold;
    return host;
}

static void put_right(struct bt_cache *k, const struct move *m, const struct bt_block *to)
{
    for (uint32_t i = 0; i < m->from->n_relocs; i++) {
        const struct bt_kept_reloc *r = &k->relocs[m->from->relocs + i];
        uint32_t old = (r->cold ? m->from->cold : m->from->ind) + r->off;
        uint8_t *p = (uint8_t *)(uintptr_t)moved(m, old);
        uint32_t v;
        uint64_t q;
        switch (r->kind) {
        case BT_RELOC_REL32:
            __builtin_memcpy(&v, p, 4);
            e_patch32(p, moved(m, old + 4 + v));
            break;
        case BT_RELOC_ABS32:
            __builtin_memcpy(&v, p, 4);
            v = moved(m, v);
            __builtin_memcpy(p, &v, 4);
            break;
        case BT_RELOC_RIP:
            __builtin_memcpy(&q, p, 8);
            q += m->rip;
            __builtin_memcpy(p, &q, 8);
            break;
        case BT_RELOC_EXIT:
            __builtin_memcpy(&v, p, 4);
            v += to->exits - m->from->exits;
            __builtin_memcpy(p, &v, 4);
            break;
        case BT_RELOC_OP:
            __builtin_memcpy(&v, p, 4);
            v += m->cold;
            __builtin_memcpy(p, &v, 4);
            ((struct bt_op *)(uintptr_t)v)->next_rip += m->rip;
            break;
        }
    }
}

static void move_exits(struct bt_vcpu *c, const struct move *m, const struct bt_block *to)
{
    struct bt_cache *k = c->cache;
    for (unsigned i = 0; i < to->n_exits; i++) {
        struct bt_exit *x = &k->exits[to->exits + i];
        *x = k->exits[m->from->exits + i];
        x->from = bt_block_index(c, to);
        x->to = x->in_next = 0;
        x->site = moved(m, x->site);
        x->stub = moved(m, x->stub);
        uint8_t *site = (uint8_t *)(uintptr_t)x->site;
        if (x->kind == BT_EXIT_INLINE) {
            bt_inline_forget(x);
            e_patch32(site, x->stub);
            continue;
        }
        if (x->kind == BT_EXIT_DIRECT) {
            x->target += m->rip;
            e_patch32(site, x->stub);
            x->heat = x->heat ? BT_HOT : 0;
            continue;
        }
        bt_exit_open(k, x);
        if (x->kind == BT_EXIT_OTHER) { /* as it was before bt_block_drop() */
            site[-2] = 0x0f;
            site[-1] = 0x85;
        }
        if (x->target) { /* mov r15d, [its place in the jump cache] stands before it */
            x->target += m->rip;
            uint32_t at = e_abs(&c->jc[1][bt_jc_index(x->target)]);
            __builtin_memcpy(site - 4, &at, 4);
        }
    }
}

/* b's code and records are where they belong, b->rip is new: put right what they hold, and make it known. */
static struct bt_block *settle(struct bt_vcpu *c, const struct move *m, struct bt_block *b)
{
    put_right(c->cache, m, b);
    move_exits(c, m, b);
    if (b == m->from) /* its page has it */
        bt_block_hash(c, b);
    else
        bt_block_insert(c, b);
    list(c, b);
    bt_perf_map_block(c, b);
    c->st.moved++;
    return b;
}

/* Take b from its address to another one. Nothing of it runs. A stack of returns
 * may hold its landings: they are good at the new address. */
static struct bt_block *move(struct bt_vcpu *c, struct bt_block *b, uint64_t rip)
{
    struct bt_cache *k = c->cache;
    struct move m = {b, 0, 0, rip - b->rip};
    bt_block_drop(c, b);
    uint32_t *pp = &k->pa_hash[pa_hash(b->pa)];
    while (*pp != bt_block_index(c, b))
        pp = &k->blocks[*pp].pa_next;
    *pp = b->pa_next;
    b->dead = 0;
    b->rip = rip;
    return settle(c, &m, b);
}

struct bt_block *bt_block_moved(struct bt_vcpu *c, uint64_t pa, uint64_t rip, uint32_t mode)
{
    struct bt_cache *k = c->cache;
    struct bt_block *from = NULL, *oldest = NULL;
    if ((mode & BT_MODE_CPL) != 3 || (mode & BT_MODE_CODE) != BT_MODE_CODE64 || rip >> 32 == 0 || c->dbg.any_exec)
        return NULL;
    for (uint32_t i = k->pa_hash[pa_hash(pa)]; i; i = k->blocks[i].pa_next) {
        struct bt_block *b = &k->blocks[i];
        if (b->pa == pa && b->mode == mode && !b->dead && !((b->rip ^ rip) & 0xfff)) {
            from = from ? from : b;
            oldest = b;
        }
    }
    /* its last bytes must be long constants at the new place, too */
    if (!from || (rip + from->len + 0x7fffffff) >> 47)
        return NULL;
    if (!oldest->unlinked && now() - oldest->made >= BT_COPY_AGE)
        return move(c, oldest, rip);
    if (!bt_cache_room(c))
        return NULL;
    uint32_t bi = k->n_blocks++;
    struct bt_block *b = &k->blocks[bi];
    *b = *from;
    uint8_t *hot = (uint8_t *)(((uintptr_t)k->hot_p + 15) & ~15ull);
    uint8_t *cold = k->cold_p + ((from->cold - e_abs(k->cold_p)) & 15); /* C ops are aligned */
    struct move m = {from, e_abs(hot) - from->ind, e_abs(cold) - from->cold, rip - from->rip};
    copy(hot, (const uint8_t *)(uintptr_t)from->ind, from->end - from->ind);
    copy(cold, (const uint8_t *)(uintptr_t)from->cold, from->cold_end - from->cold);
    k->hot_p = hot + (from->end - from->ind);
    k->cold_p = cold + (from->cold_end - from->cold);
    b->rip = rip;
    b->a = moved(&m, from->a);
    b->b = moved(&m, from->b);
    b->ind = from->ind + m.hot;
    b->end = from->end + m.hot;
    b->cold = from->cold + m.cold;
    b->cold_end = from->cold_end + m.cold;
    b->hash_next = b->in_head = 0;
    b->page_next[0] = b->page_next[1] = 0;
    b->unlinked = 0;
    b->exits = k->n_exits;
    k->n_exits += b->n_exits;
    return settle(c, &m, b);
}
