/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/space.c - address spaces by PCID (SDM volume 3, 4.10): what is
 * kept of one while another runs. The inline TLB and the jump cache of programs
 * lie at fixed addresses, so that entries move in and out; without PCIDs there
 * is one space, which CR3 loads flush.
 */
#include "kdirect.h"
#include "mmu.h"
#include <errno.h>
#include <stdlib.h>

#define MAX_TLB (sizeof(((struct bt_space *)0)->tlb[0]) / sizeof(((struct bt_space *)0)->tlb[0][0]))
#define MAX_JUMP (sizeof(((struct bt_space *)0)->jump) / sizeof(((struct bt_space *)0)->jump[0]))

int bt_mmu_create(struct bt_vcpu *c)
{
    c->mmu = calloc(1, sizeof(*c->mmu));
    if (!c->mmu)
        return -ENOMEM;
    c->mmu->n_kcode = c->mmu->ucode.n = c->mmu->ucode.n_chained = 1;
    c->mmu->space = &c->mmu->spaces[0];
    return 0;
}

void bt_mmu_destroy(struct bt_vcpu *c)
{
    free(c->mmu);
    c->mmu = NULL;
}

static unsigned current_pcid(const struct bt_vcpu *c) { return c->cr4 & BT_CR4_PCIDE ? c->cr3 & 0xfff : 0; }

static void empty(struct bt_mmu *m, struct bt_space *s)
{
    s->gen = mmu_new_gen(m);
    s->psc_gen = mmu_new_gen(m);
    s->n_tlb[0] = s->n_tlb[1] = s->n_jump = 0;
}

void mmu_spaces_reset(struct bt_vcpu *c)
{
    struct bt_mmu *m = c->mmu;
    for (unsigned i = 0; i < BT_SPACES; i++)
        m->spaces[i].used = false;
    m->space = &m->spaces[0];
    empty(m, m->space);
    m->space->pcid = (uint16_t)current_pcid(c);
    m->space->used = true;
    m->space->last = ++m->clock;
    m->global_ucode = false;
}

static struct bt_space *find(struct bt_mmu *m, unsigned pcid)
{
    for (unsigned i = 0; i < BT_SPACES; i++)
        if (m->spaces[i].used && m->spaces[i].pcid == pcid)
            return &m->spaces[i];
    return NULL;
}

/* The space of a PCID, if need be in place of the one that has not run for longest. */
static struct bt_space *take(struct bt_mmu *m, unsigned pcid)
{
    struct bt_space *s = find(m, pcid);
    if (s)
        return s;
    for (unsigned i = 0; i < BT_SPACES; i++) {
        struct bt_space *x = &m->spaces[i];
        if (x == m->space)
            continue;
        if (!x->used) {
            s = x;
            break;
        }
        if (!s || x->last < s->last)
            s = x;
    }
    empty(m, s);
    s->pcid = (uint16_t)pcid;
    s->used = true;
    return s;
}

/* --- moving out and in ------------------------------------------------------------- */
static void tlb_out(struct bt_vcpu *c, struct bt_space *s, unsigned t)
{
    struct bt_mmu *m = c->mmu;
    uint32_t n = 0;
    for (uint32_t j = m->n_listed[t]; j--;) { /* the latest first */
        unsigned i = m->listed[t][j];
        struct bt_tlb_entry *e = &c->tlb[t][i];
        e->pa &= ~(uint64_t)BT_TLB_LISTED;
        if (e->tag_r == tag_never(i) || (e->pa & BT_TLB_GLOBAL))
            continue;
        if (n < MAX_TLB) {
            s->tlb[t][n].index = i;
            s->tlb[t][n++].e = *e;
        }
        e->tag_r = e->tag_w = tag_never(i);
    }
    s->n_tlb[t] = n;
    m->n_listed[t] = 0;
    c->stk_tag[t] = c->stk_rtag[t] = STK_NEVER;
}

static void tlb_in(struct bt_vcpu *c, const struct bt_space *s, unsigned t)
{
    bool stores = s->drop_gen == c->mmu->drop_gen;
    for (uint32_t j = 0; j < s->n_tlb[t]; j++) {
        unsigned i = s->tlb[t][j].index;
        const struct bt_tlb_entry *x = &s->tlb[t][j].e;
        struct bt_tlb_entry *e = mmu_enter(c, t, i, x->tag_r, x->pa, x->host, false);
        if (stores)
            e->tag_w = x->tag_w;
    }
}

static void jumps_out(struct bt_vcpu *c, struct bt_space *s)
{
    struct bt_cache *k = c->cache;
    uint32_t n = 0;
    for (uint32_t j = k->n_jc_touched[1]; j-- && n < MAX_JUMP;) {
        uint32_t i = k->jc_touched[1][j], ind = c->jc[1][i];
        if (ind == k->stub_jc_miss[1])
            continue;
        s->jump[n].index = i;
        s->jump[n++].ind = ind;
    }
    s->n_jump = n;
    s->jc_mode = k->jc_mode[1];
    s->jc_cs_base = k->jc_cs_base[1];
    for (unsigned i = 0; i < 64; i++)
        s->code_filter[i] = k->code_filter[1][i];
}

static void jumps_in(struct bt_vcpu *c, const struct bt_space *s)
{
    struct bt_cache *k = c->cache;
    if (!s->n_jump)
        return;
    k->jc_mode[1] = s->jc_mode;
    k->jc_cs_base[1] = s->jc_cs_base;
    for (uint32_t j = 0; j < s->n_jump; j++) {
        c->jc[1][s->jump[j].index] = s->jump[j].ind;
        k->jc_touched[1][j] = s->jump[j].index;
    }
    k->n_jc_touched[1] = s->n_jump;
    for (unsigned i = 0; i < 64; i++)
        k->code_filter[1][i] = s->code_filter[i];
}
_Static_assert(MAX_JUMP <= BT_TOUCHED_MAX, "what comes back must fit");

void bt_spaces_drop_block(struct bt_vcpu *c, uint64_t lin)
{
    uint32_t h = bt_code_filter_hash(lin);
    for (unsigned i = 0; i < BT_SPACES; i++) {
        struct bt_space *s = &c->mmu->spaces[i];
        if (s->n_jump && s->code_filter[h >> 6] >> (h & 63) & 1)
            s->n_jump = 0;
    }
}

void bt_spaces_drop_jumps(struct bt_vcpu *c)
{
    for (unsigned i = 0; i < BT_SPACES; i++)
        c->mmu->spaces[i].n_jump = 0;
}

/* --- CR3 and INVPCID ------------------------------------------------------------------ */
void bt_tlb_switch(struct bt_vcpu *c, bool keep)
{
    struct bt_mmu *m = c->mmu;
    struct bt_space *s = m->space;
    unsigned pcid = current_pcid(c);
    if (s->pcid == pcid) {
        if (!keep)
            bt_tlb_flush_nonglobal(c);
        return;
    }
    tlb_out(c, s, 0);
    tlb_out(c, s, 1);
    s->drop_gen = m->drop_gen;
    jumps_out(c, s);
    s = take(m, pcid);
    if (!keep)
        empty(m, s);
    s->last = ++m->clock;
    m->space = s;
    bt_jc_flush(c, 1);
    jumps_in(c, s);
    tlb_in(c, s, 0);
    tlb_in(c, s, 1);
    s->n_tlb[0] = s->n_tlb[1] = s->n_jump = 0;
    if (m->kcode_local) {
        m->kgen = mmu_new_gen(m);
        mmu_kcode_check(c);
    }
    bt_kd_switch(c, keep);
}

void bt_tlb_flush_pcid(struct bt_vcpu *c, unsigned pcid)
{
    struct bt_space *s = find(c->mmu, pcid);
    if (s == c->mmu->space)
        bt_tlb_flush_nonglobal(c);
    else if (s)
        s->used = false;
    if (s != c->mmu->space)
        bt_kd_flush(c, false);
}

void bt_tlb_invlpg_pcid(struct bt_vcpu *c, unsigned pcid, uint64_t lin)
{
    struct bt_space *s = find(c->mmu, pcid);
    if (s == c->mmu->space)
        bt_tlb_invlpg(c, lin);
    else if (s)
        s->used = false; /* all of it: nobody looks for one page there */
    if (s != c->mmu->space)
        bt_kd_invlpg(c, lin);
}

void mmu_spaces_drop_others(struct bt_vcpu *c)
{
    for (unsigned i = 0; i < BT_SPACES; i++)
        c->mmu->spaces[i].used &= &c->mmu->spaces[i] == c->mmu->space;
}

void bt_tlb_flush_pcids(struct bt_vcpu *c)
{
    mmu_spaces_drop_others(c);
    bt_tlb_flush_nonglobal(c);
}
