/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/ucode.c - programs' jumps to other pages, chained.
 *
 * Such a chain from page A to page B holds where both are mapped as they were
 * when it was made. Pages that chains connect make up a component, which
 * belongs to one address space as it was since its last flush (bt_space.gen).
 * Who enters a page from C - by a miss of the jump cache, an exit, the
 * dispatcher - looks whose component it is in first. After a flush the
 * component is compared with the page tables; when it does not hold, or when
 * another space enters it, it is dissolved. A page that two spaces run in turn
 * (after a fork) is `shared` from then on: its exits go by the jump cache. So:
 *   translated code runs in a page of a component => the component is this
 *   space's, and all of it is in its place.
 * What enters pages without C is the jump cache and the stack of returns, of the
 * same address space since the same flush: they are emptied by whatever changes
 * a mapping (bt_jc_flush), and what is kept of the jump caches of other spaces
 * is thrown away when a page becomes part of a component that they may have run.
 */
#include "mmu.h"

#define NONE 0u

static inline uint32_t hash(uint64_t vpage) { return (uint32_t)(vpage * 0x9e3779b1u) >> 12 & (BT_UCODE_MAX - 1); }

static uint32_t lookup(const struct bt_ucode *u, uint64_t vpage, uint64_t pa)
{
    for (uint32_t i = u->head[hash(vpage)]; i; i = u->page[i].next)
        if (u->page[i].vpage == vpage && u->page[i].pa == pa)
            return i;
    return NONE;
}

void bt_ucode_reset(struct bt_vcpu *c)
{
    struct bt_ucode *u = &c->mmu->ucode;
    for (uint32_t i = 1; i < u->n_chained; i++)
        if (u->chained[i].exit)
            bt_unchain(c, u->chained[i].exit);
    u->n_chained = 1;
    u->free_chained = u->free_page = 0;
    if (u->n <= 1)
        return;
    u->n = 1;
    for (unsigned i = 0; i < BT_UCODE_MAX; i++)
        u->head[i] = 0;
}

static void forget(struct bt_ucode *u, uint32_t i)
{
    uint32_t *pp = &u->head[hash(u->page[i].vpage)];
    while (*pp != i)
        pp = &u->page[*pp].next;
    *pp = u->page[i].next;
    u->page[i].next = u->free_page;
    u->free_page = i;
}

/* Undo the chains of page i's component; its pages are as if never chained, i itself only if it is not to be shared. */
static void dissolve(struct bt_vcpu *c, uint32_t i, bool share)
{
    struct bt_ucode *u = &c->mmu->ucode;
    uint32_t rep = u->page[i].rep, j, next;
    for (j = u->page[rep].chains; j; j = next) {
        next = u->chained[j].next;
        bt_unchain(c, u->chained[j].exit);
        u->chained[j].exit = 0;
        u->chained[j].next = u->free_chained;
        u->free_chained = j;
    }
    for (j = u->page[i].ring; j != i; j = next) {
        next = u->page[j].ring;
        forget(u, j);
    }
    if (!share) {
        forget(u, i);
        return;
    }
    u->page[i].shared = true;
    u->page[i].rep = u->page[i].ring = i;
    u->page[i].chains = 0;
}

/* Page i is entered, of a component of an earlier flush, or of another space. */
static void entered(struct bt_vcpu *c, uint32_t i)
{
    struct bt_mmu *m = c->mmu;
    struct bt_ucode *u = &m->ucode;
    struct bt_upage *rep = &u->page[u->page[i].rep];
    uint32_t j = i;
    if (m->spaces[rep->space].gen == rep->gen) { /* it lives */
        dissolve(c, i, true);
        return;
    }
    do {
        struct bt_walk w;
        if (mmu_walk(c, u->page[j].vpage << 12, BT_ACC_FETCH | BT_ACC_USER, &w, false) != BT_WALKED ||
            w.pa != u->page[j].pa) {
            dissolve(c, i, u->page[i].fails++ == BT_UCODE_FAILS);
            return;
        }
        mmu_code_found(c, u->page[j].vpage << 12, &w); /* it may run without a further look */
        j = u->page[j].ring;
    } while (j != i);
    rep->gen = m->space->gen;
    rep->space = (uint32_t)(m->space - m->spaces);
}

void bt_ucode_enter(struct bt_vcpu *c, uint64_t lin, uint64_t pa)
{
    struct bt_ucode *u = &c->mmu->ucode;
    uint32_t i = lookup(u, lin >> 12, pa & ~0xfffull);
    if (i && !u->page[i].shared && u->page[u->page[i].rep].gen != c->mmu->space->gen)
        entered(c, i);
}

bool bt_ucode_has(const struct bt_vcpu *c, uint64_t lin)
{
    const struct bt_ucode *u = &c->mmu->ucode;
    for (uint32_t i = u->head[hash(lin >> 12)]; i; i = u->page[i].next)
        if (u->page[i].vpage == lin >> 12)
            return true;
    return false;
}

static uint32_t page(struct bt_vcpu *c, uint64_t lin, uint64_t pa)
{
    struct bt_mmu *m = c->mmu;
    struct bt_ucode *u = &m->ucode;
    uint64_t vpage = lin >> 12;
    pa &= ~0xfffull;
    bt_ucode_enter(c, lin, pa);
    uint32_t i = lookup(u, vpage, pa);
    if (i)
        return u->page[i].shared ? NONE : i;
    i = u->free_page;
    if (i)
        u->free_page = u->page[i].next;
    else
        i = u->n++;
    struct bt_upage *p = &u->page[i];
    if (p->vpage != vpage || p->pa != pa)
        p->fails = 0;
    p->vpage = vpage;
    p->pa = pa;
    p->rep = p->ring = i;
    p->size = 1;
    p->chains = 0;
    p->shared = false;
    p->gen = m->space->gen;
    p->space = (uint32_t)(m->space - m->spaces);
    p->next = u->head[hash(vpage)];
    u->head[hash(vpage)] = i;
    bt_spaces_drop_block(c, lin); /* those which had it when nothing needed to be looked at */
    return i;
}

static void merge(struct bt_ucode *u, uint32_t a, uint32_t b)
{
    a = u->page[a].rep;
    b = u->page[b].rep;
    if (a == b)
        return;
    if (u->page[a].size < u->page[b].size) {
        uint32_t x = a;
        a = b;
        b = x;
    }
    u->page[a].size += u->page[b].size;
    uint32_t i = b, last = u->page[b].chains;
    do {
        u->page[i].rep = a;
        i = u->page[i].ring;
    } while (i != b);
    uint32_t ring = u->page[a].ring;
    u->page[a].ring = u->page[b].ring;
    u->page[b].ring = ring;
    if (!last)
        return;
    while (u->chained[last].next)
        last = u->chained[last].next;
    u->chained[last].next = u->page[a].chains;
    u->page[a].chains = u->page[b].chains;
}

bool bt_ucode_join(struct bt_vcpu *c, uint32_t exit, uint64_t lin_a, uint64_t pa_a, uint64_t lin_b, uint64_t pa_b)
{
    struct bt_ucode *u = &c->mmu->ucode;
    if (u->n + 2 > BT_UCODE_MAX || u->n_chained == BT_UCODE_CHAINS)
        bt_ucode_reset(c);
    uint32_t a = page(c, lin_a, pa_a), b = a ? page(c, lin_b, pa_b) : NONE;
    if (!a || !b)
        return false;
    merge(u, a, b);
    uint32_t i = u->free_chained;
    if (i)
        u->free_chained = u->chained[i].next;
    else
        i = u->n_chained++;
    struct bt_upage *rep = &u->page[u->page[a].rep];
    u->chained[i].exit = exit;
    u->chained[i].next = rep->chains;
    rep->chains = i;
    return true;
}
