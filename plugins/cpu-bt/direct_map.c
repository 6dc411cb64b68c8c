/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/direct_map.c - which guest pages a helper of the user-direct
 * tier has: direct.h.
 */
#include "direct.h"
#include "sys.h"
#include <linux/mman.h>
#include <stddef.h>
#include <sys/syscall.h>

/* What a mapping depends on. D only makes a page writable. */
#define PTE_KEPT (PTE_PAGE | PTE_P | PTE_U | PTE_NX)

#define LIN_MIN 0x10000ull         /* hosts let nobody map below */
#define LIN_END 0x7ffffffff000ull  /* nor above */
#define PREFETCH 16u               /* pages around a fault */
#define PREFETCH_TLB 256u          /* pages that a new helper gets at once */

static void *guest_ptr(struct bt_vcpu *c, uint64_t pa)
{
    uintptr_t p = bt_phys_page(c->vm, pa);
    return p ? (void *)((p & ~0xfffull) | (pa & 0xfff)) : NULL;
}

static bool bit(const uint64_t *map, unsigned i) { return map[i >> 6] >> (i & 63) & 1; }
static void bit_set(uint64_t *map, unsigned i) { map[i >> 6] |= 1ull << (i & 63); }
static void bit_clear(uint64_t *map, unsigned i) { map[i >> 6] &= ~(1ull << (i & 63)); }

/* --- the guest's tables ---------------------------------------------------------------- */
/* Who maps the 2 MiB at lin: a table, or one entry for all of them. */
struct leaf {
    const uint64_t *table;
    uint64_t large;    /* the entry, 0: table */
    bool wr, us, nx;   /* of the levels above */
    bool huge;         /* 1 GiB: not found */
};

static bool leaf_find(struct bt_vcpu *c, uint64_t root, uint64_t lin, struct leaf *l)
{
    uint64_t table = root;
    l->wr = l->us = true;
    l->nx = l->huge = false;
    l->large = 0;
    for (unsigned shift = 39; shift >= 21; shift -= 9) {
        const uint64_t *p = guest_ptr(c, table + (lin >> shift & 511) * 8);
        uint64_t e = p ? __atomic_load_n(p, __ATOMIC_RELAXED) : 0;
        if (!(e & PTE_P))
            return false;
        if (e & PTE_PS) {
            if (shift != 21) { /* 1 GiB: programs seldom have them, and INVLPG would reach far */
                l->huge = true;
                return false;
            }
            l->large = e & ~0x1fe000ull;
            return true;
        }
        l->wr &= (e & PTE_W) != 0;
        l->us &= (e & PTE_U) != 0;
        l->nx |= (e & PTE_NX) != 0;
        table = e & PTE_PAGE;
    }
    l->table = guest_ptr(c, table);
    return l->table != NULL;
}

/* The entry of page i, with the rights of all levels; 0: not for programs. */
static uint64_t leaf_entry(const struct leaf *l, unsigned i)
{
    uint64_t e = l->large ? (l->large & ~0x1000ull) + ((uint64_t)i << 12)
                          : __atomic_load_n(&l->table[i], __ATOMIC_RELAXED);
    if (!(e & PTE_P) || !(e & PTE_U) || !l->us)
        return 0;
    if (!l->wr)
        e &= ~PTE_W;
    if (l->nx)
        e |= PTE_NX;
    return e & (PTE_KEPT | PTE_W | PTE_D | PTE_A);
}

bool bt_direct_zone_taken(struct bt_vcpu *c, const struct direct_space *s)
{
    struct leaf l;
    if (!leaf_find(c, s->root, s->proc->base, &l))
        return l.huge;
    for (unsigned i = 0; i < sizeof(struct direct_zone) / 4096; i++) /* it does not cross 2 MiB */
        if (leaf_entry(&l, i))
            return true;
    return false;
}

/* --- regions ------------------------------------------------------------------------------- */
static uint32_t region_hash(unsigned space, uint64_t number)
{
    return (uint32_t)((number ^ (uint64_t)space << 20) * 0x9e3779b1u >> 8) % DIRECT_HASH;
}
static unsigned space_index(const struct bt_direct *d, const struct direct_space *s)
{
    return (unsigned)(s - d->space);
}

static struct direct_region *region_find(struct bt_direct *d, const struct direct_space *s, uint64_t lin)
{
    uint64_t number = lin >> 21;
    unsigned space = space_index(d, s);
    for (uint32_t i = d->hash[region_hash(space, number)]; i; i = d->region[i].next_hash)
        if (d->region[i].number == number && d->region[i].space == space)
            return &d->region[i];
    return NULL;
}

static struct direct_region *region_make(struct bt_direct *d, struct direct_space *s, uint64_t lin)
{
    struct direct_region *r = region_find(d, s, lin);
    uint32_t i;
    if (r)
        return r;
    if (d->free_region) {
        i = d->free_region;
        d->free_region = d->region[i].next_space;
    } else if (d->n_regions < DIRECT_REGIONS) {
        i = d->n_regions++;
    } else {
        return NULL;
    }
    r = &d->region[i];
    r->number = lin >> 21;
    r->space = (uint16_t)space_index(d, s);
    r->n_mapped = 0;
    r->stale = false;
    for (unsigned j = 0; j < 8; j++)
        r->mapped[j] = r->writable[j] = r->gone[j] = 0;
    uint32_t *h = &d->hash[region_hash(r->space, r->number)];
    r->next_hash = *h;
    *h = i;
    r->next_space = s->regions;
    s->regions = i;
    return r;
}

static uint16_t *filter(struct bt_direct *d, uint64_t pte)
{
    return &d->rw_filter[((uint32_t)(pte >> 12 & 0xfffffff) * 0x9e3779b1u) >> 16];
}

static void forget_page(struct bt_direct *d, struct direct_space *s, struct direct_region *r, unsigned i)
{
    if (!bit(r->mapped, i))
        return;
    if (bit(r->writable, i))
        --*filter(d, r->pte[i]);
    bit_clear(r->mapped, i);
    bit_clear(r->writable, i);
    r->n_mapped--;
    s->n_pages--;
}

/* The helper keeps nothing of it. */
static void space_empty(struct bt_direct *d, struct direct_space *s)
{
    d->epoch++;
    while (s->regions) {
        uint32_t i = s->regions;
        struct direct_region *r = &d->region[i];
        for (unsigned w = 0; w < 8; w++)
            for (uint64_t m = r->writable[w]; m; m &= m - 1)
                --*filter(d, r->pte[w * 64 + (unsigned)__builtin_ctzll(m)]);
        uint32_t *pp = &d->hash[region_hash(r->space, r->number)];
        while (*pp != i)
            pp = &d->region[*pp].next_hash;
        *pp = r->next_hash;
        s->regions = r->next_space;
        r->next_space = d->free_region;
        d->free_region = i;
    }
    s->n_pages = 0;
    s->stale = false;
    s->forget = true;
}

/* --- spaces ---------------------------------------------------------------------------------- */
struct direct_space *bt_direct_space(struct bt_vcpu *c)
{
    struct bt_direct *d = c->direct;
    uint64_t root = c->cr3 & PTE_PAGE, made;
    struct direct_space *s = d->current, *oldest = NULL;
    if (s && s->root == root)
        return s;
    for (unsigned i = 0; i < DIRECT_SPACES; i++) {
        s = &d->space[i];
        if (s->root == root)
            goto found;
        if (!oldest || s->last < oldest->last)
            oldest = s;
    }
    s = oldest;
    if (s->proc)
        bt_direct_drop_space(c, s);
    s->root = root;
    s->direct = s->forget = s->stale = false;
    s->code32 = s->probing = false;
    s->backoff = s->flips = s->probes = s->spoilt = 0;
    s->barred = 0;
    s->n_entries = s->n_grey = 0;
    s->hold = 0;
    s->gen = s->mean = s->credit = s->made = s->made_out = 0;
    s->looked = false;
found:
    s->last = ++d->clock;
    /* Programs that run in turn have samples that last longer than their turns. */
    made = c->st.blocks + c->st.moved;
    if (d->current) {
        d->current->looked &= !c->user_from;
        d->current->sample = c->user_ran;
        d->current->made_out = made;
    }
    s->made += made - s->made_out;
    c->user_from = 0;
    c->user_ran = s->sample;
    if (s->seen_gen != c->mmu->space->gen) { /* another program may have got these page tables */
        s->credit = s->n_entries = 0;
        s->looked = false;
    }
    s->seen_gen = c->mmu->space->gen;
    d->current = s;
    return s;
}

/* Its helper is free for others, who first unmap all. */
void bt_direct_drop_space(struct bt_vcpu *c, struct direct_space *s)
{
    space_empty(c->direct, s);
    if (s->proc)
        s->proc->space = NULL;
    s->proc = NULL;
}

bool bt_direct_give_proc(struct bt_vcpu *c, struct direct_space *s)
{
    struct bt_direct *d = c->direct;
    struct direct_proc *p = NULL;
    for (unsigned i = 0; i < d->n_procs; i++) {
        struct direct_proc *x = &d->proc[i];
        if (atomic_load(&x->dead))
            continue;
        if (!p || !x->space || (p->space && x->space->last < p->space->last))
            p = x;
        if (!p->space)
            break;
    }
    if (!p)
        return false;
    if (p->space)
        bt_direct_drop_space(c, p->space);
    space_empty(d, s);
    p->space = s;
    s->proc = p;
    s->fresh = true;
    s->gen = c->mmu->space->gen;
    return true;
}

void bt_direct_unknown(struct direct_proc *p)
{
    p->tsc_faults = -1;
    for (unsigned i = 0; i < DIRECT_TLS; i++)
        p->tls[i] = ~0ull;
}

/* --- orders ------------------------------------------------------------------------------------ */
static struct direct_op *order(struct bt_vcpu *c, struct direct_space *s, uint64_t nr)
{
    struct direct_orders *o = s->proc ? &s->proc->zone->orders : NULL;
    if (!o || (o->n_ops == DIRECT_MAX_OPS && !bt_direct_flush_orders(c, s)))
        return NULL;
    struct direct_op *op = &o->op[o->n_ops++];
    op->nr = nr;
    for (unsigned i = 0; i < 6; i++)
        op->arg[i] = 0;
    op->compat = 0;
    return op;
}

static void order_unmap(struct bt_vcpu *c, struct direct_space *s, uint64_t lin, uint64_t n)
{
    struct direct_op *op = order(c, s, SYS_munmap);
    c->st.direct_unmaps++;
    if (op) {
        op->arg[0] = lin;
        op->arg[1] = n;
    }
}

static void unmap_all(struct bt_vcpu *c, struct direct_space *s)
{
    uint64_t base = s->proc->base, end = base + sizeof(struct direct_zone);
    struct direct_orders *o = &s->proc->zone->orders;
    if (o->n_ops) /* some may not have been about memory */
        bt_direct_unknown(s->proc);
    o->n_ops = 0;
    order_unmap(c, s, 0, base);
    order_unmap(c, s, end, LIN_END - end);
    s->forget = false;
}

/* Pages that have gone, run by run. */
static void unmap_gone(struct bt_vcpu *c, struct direct_space *s, struct direct_region *r)
{
    uint64_t epoch = c->direct->epoch;
    for (unsigned i = 0; i < 512 && epoch == c->direct->epoch;) {
        uint64_t rest = r->gone[i >> 6] >> (i & 63);
        if (!rest) {
            i = (i | 63) + 1;
            continue;
        }
        i += (unsigned)__builtin_ctzll(rest);
        unsigned first = i;
        while (i < 512 && bit(r->gone, i))
            i++;
        order_unmap(c, s, (r->number << 21) + ((uint64_t)first << 12), (uint64_t)(i - first) << 12);
    }
    for (unsigned j = 0; j < 8; j++)
        r->gone[j] = 0;
}

bool bt_direct_flush_orders(struct bt_vcpu *c, struct direct_space *s)
{
    struct direct_proc *p = s->proc;
    if (!p)
        return false;
    if (!p->zone->orders.n_ops)
        return true;
    if (!bt_direct_wait(c, p, false))
        return false;
    if (p->zone->report.failed) { /* out of mappings or memory: begin anew, smaller */
        p->zone->report.failed = 0;
        c->st.direct_failures++;
        bt_direct_unknown(p);
        space_empty(c->direct, s); /* the rest of it before the helper next runs the program */
        return false;
    }
    return true;
}

/* --- 32-bit code ------------------------------------------------------------------------------------ */
/* The instruction by which 32-bit code calls the kernel and which does not tell where it stood: SYSCALL on AMD's
 * processors, SYSENTER on Intel's. The other one is #UD. */
static bool has_fast_call(const uint8_t *p, bool amd)
{
    const uint8_t second = amd ? 0x05 : 0x34;
    const uint64_t pattern = second * 0x0101010101010101ull;
    for (unsigned i = 0; i < 4096; i += 8) {
        uint64_t x = *(const uint64_t *)(p + i) ^ pattern;
        if (!((x - 0x0101010101010101ull) & ~x & 0x8080808080808080ull))
            continue;
        for (unsigned j = i; j < i + 8; j++)
            if (p[j] == second && j && p[j - 1] == 0x0f)
                return true;
    }
    return false;
}

void bt_direct_width(struct bt_vcpu *c, struct direct_space *s, bool code32)
{
    struct bt_direct *d = c->direct;
    if (s->code32 == code32)
        return;
    s->code32 = code32;
    if (s->n_pages && s->flips < 255)
        s->flips++;
    for (uint32_t ri = s->regions; ri; ri = d->region[ri].next_space) {
        struct direct_region *r = &d->region[ri];
        for (unsigned w = 0; w < 8; w++)
            for (uint64_t m = r->mapped[w]; m; m &= m - 1) {
                unsigned i = w * 64 + (unsigned)__builtin_ctzll(m);
                const uint8_t *p = r->pte[i] & PTE_NX ? NULL : guest_ptr(c, r->pte[i] & PTE_PAGE);
                if (!p || !has_fast_call(p, c->vm->host_amd))
                    continue;
                forget_page(d, s, r, i);
                bit_set(r->gone, i);
                s->stale = r->stale = true;
            }
    }
}

static const uint8_t *peek(struct bt_vcpu *c, uint64_t lin)
{
    struct bt_walk w;
    return mmu_walk(c, lin, 0, &w, true) == BT_WALKED ? guest_ptr(c, w.pa | (lin & 0xfff)) : NULL;
}

int bt_direct_peek(struct bt_vcpu *c, uint64_t lin)
{
    const uint8_t *p = peek(c, lin);
    return p ? *p : -1;
}

/* A data segment as set_thread_area() makes them: 32 bits, DPL 3. */
static bool tls_can(uint64_t d)
{
    return sys_desc_s(d) && !sys_desc_code(d) && sys_desc_dpl(d) == 3 && sys_desc_p(d) && sys_desc_d(d) &&
           !sys_desc_l(d);
}

static bool tls_order(struct bt_vcpu *c, struct direct_space *s, unsigned i, uint64_t d)
{
    struct direct_proc *p = s->proc;
    struct direct_orders *o = &p->zone->orders;
    struct direct_region *r = region_find(c->direct, s, DIRECT_LOW);
    if (o->n_ops > DIRECT_MAX_OPS - 3 && !bt_direct_flush_orders(c, s))
        return false;
    if (r)
        forget_page(c->direct, s, r, DIRECT_LOW >> 12 & 511);
    uint64_t at = offsetof(struct direct_zone, orders.op) + (o->n_ops + 1) * sizeof(struct direct_op);
    struct direct_op *map = order(c, s, SYS_mmap), *set = map ? order(c, s, I386_SET_THREAD_AREA) : NULL;
    if (!set)
        return false;
    map->arg[0] = DIRECT_LOW;
    map->arg[1] = 4096;
    map->arg[2] = PROT_READ;
    map->arg[3] = MAP_SHARED | MAP_FIXED;
    map->arg[4] = (uint64_t)DIRECT_ZONE_FD;
    map->arg[5] = at & ~0xfffull;
    set->compat = 1;
    set->arg[0] = DIRECT_LOW + (at & 0xfff) + offsetof(struct direct_op, arg[4]);
    uint32_t *desc = (uint32_t *)&set->arg[4];
    unsigned type = sys_desc_type(d);
    desc[0] = DIRECT_TLS_FIRST + i;
    desc[1] = sys_desc_base(d);
    desc[2] = (uint32_t)((d & 0xffff) | (d >> 32 & 0xf0000));
    desc[3] = d ? 1 | (type >> 2 & 1) << 1 | (type >> 1 & 1 ? 0 : 8) | (uint32_t)(d >> 55 & 1) << 4 |
                      (uint32_t)(d >> 52 & 1) << 6
                : 8 | 32; /* empty */
    order_unmap(c, s, DIRECT_LOW, 4096);
    p->tls[i] = d;
    return true;
}

bool bt_direct_tls(struct bt_vcpu *c, struct direct_space *s, uint64_t tls[DIRECT_TLS])
{
    uint64_t lin;
    const uint8_t *gdt = NULL;
    /* In one page, as Linux's is: else there are none. */
    if (sys_desc_addr(c, DIRECT_TLS_FIRST * 8, DIRECT_TLS * 8, &lin) && (lin & 0xfff) <= 4096 - DIRECT_TLS * 8)
        gdt = peek(c, lin);
    for (unsigned i = 0; i < DIRECT_TLS; i++) {
        uint64_t d = gdt ? ((const uint64_t *)gdt)[i] | 1ull << 40 : 0;
        tls[i] = tls_can(d) ? d : 0;
        if (tls[i] != s->proc->tls[i] && !tls_order(c, s, i, tls[i]))
            return false;
    }
    return true;
}

/* --- comparing ------------------------------------------------------------------------------------ */
static void compare_region(struct bt_vcpu *c, struct direct_space *s, struct direct_region *r)
{
    struct bt_direct *d = c->direct;
    struct leaf l;
    bool there = r->n_mapped && leaf_find(c, s->root, r->number << 21, &l);
    for (unsigned w = 0; w < 8; w++)
        for (uint64_t m = r->mapped[w]; m; m &= m - 1) {
            unsigned i = w * 64 + (unsigned)__builtin_ctzll(m);
            uint64_t e = there ? leaf_entry(&l, i) : 0, was = r->pte[i];
            if (!((e ^ was) & PTE_KEPT) && (!bit(r->writable, i) || (e & (PTE_W | PTE_D)) == (PTE_W | PTE_D)))
                continue;
            forget_page(d, s, r, i);
            bit_set(r->gone, i);
        }
    r->stale = false;
}

bool bt_direct_compare(struct bt_vcpu *c, struct direct_space *s)
{
    struct bt_direct *d = c->direct;
    bool all = s->gen != c->mmu->space->gen;
    s->gen = c->mmu->space->gen;
    if (s->forget) {
        unmap_all(c, s);
        return true;
    }
    if (!all && !s->stale)
        return true;
    c->st.direct_compares++;
    uint32_t before = s->n_pages;
    for (uint32_t i = s->regions; i; i = d->region[i].next_space)
        if (all || d->region[i].stale)
            compare_region(c, s, &d->region[i]);
    if (before > 16 && s->n_pages < before / 4) { /* another program: two orders rather than hundreds */
        space_empty(d, s);
        unmap_all(c, s);
        return false;
    }
    uint64_t epoch = d->epoch;
    s->stale = false;
    for (uint32_t i = s->regions; i && epoch == d->epoch; i = d->region[i].next_space)
        unmap_gone(c, s, &d->region[i]);
    return true;
}

bool bt_direct_room(struct bt_vcpu *c, struct direct_space *s)
{
    struct bt_direct *d = c->direct;
    if (s->n_pages > DIRECT_MAX_PAGES) {
        space_empty(d, s);
        unmap_all(c, s);
    }
    if (!d->free_region && d->n_regions + 16 > DIRECT_REGIONS) { /* the pages of whoever has not run for longest */
        struct direct_space *oldest = NULL;
        for (unsigned i = 0; i < DIRECT_SPACES; i++)
            if (d->space[i].regions && &d->space[i] != s && (!oldest || d->space[i].last < oldest->last))
                oldest = &d->space[i];
        if (oldest) {
            bt_direct_drop_space(c, oldest);
        } else {
            space_empty(d, s);
            unmap_all(c, s);
        }
    }
    return true;
}

/* --- mapping -------------------------------------------------------------------------------------- */
static const struct direct_ram *ram_find(const struct bt_vm *vm, uintptr_t hva)
{
    for (unsigned i = 0; i < vm->n_direct_ram; i++)
        if (hva - vm->direct_ram[i].hva < vm->direct_ram[i].bytes)
            return &vm->direct_ram[i];
    return NULL;
}

void bt_direct_uncode(struct bt_vcpu *c, uint64_t pa)
{
    struct bt_page_chunk *ch = bt_chunk(c->vm, pa);
    pa &= ~0xfffull;
    bt_invalidate_local(c, pa, 4096, NULL);
    /* Else the translator is about to read such a page, this one perhaps: claim() finds the mark. */
    if (ch && !c->marking)
        atomic_fetch_and(&ch->code[bt_chunk_page(pa)], ~(1ull << c->index));
}

/* May a helper write the page? Then no translations of it are left, unless somebody makes new ones at this moment. */
static bool claim(struct bt_vcpu *c, uint64_t pa, bool hard)
{
    struct bt_page_chunk *ch = bt_chunk(c->vm, pa);
    unsigned i = bt_chunk_page(pa);
    atomic_store(&ch->written[i], 1); /* before the look at `code`: see mmu_fill_walked() */
    uint64_t mask = atomic_load(&ch->code[i]);
    if (!mask)
        return true;
    if (!hard)
        return false;
    bt_direct_uncode(c, pa);
    c->st.direct_uncoded++;
    if (mask & ~(1ull << c->index))
        bt_sync_request(c->vm, c, mask, BT_SYNC_UNCODE, pa & ~0xfffull, 4096, true);
    atomic_store(&ch->written[i], 1);
    return !atomic_load(&ch->code[i]);
}

/* An order for the page, or a longer one before it. */
static bool place(struct bt_vcpu *c, struct direct_space *s, struct direct_region *r, const struct leaf *l, unsigned i,
                  bool write, bool populate)
{
    struct bt_direct *d = c->direct;
    uint64_t lin = (r->number << 21) + ((uint64_t)i << 12), e = leaf_entry(l, i);
    if (!e || !(e & PTE_A) || lin < LIN_MIN || lin >= LIN_END || lin - s->proc->base < sizeof(struct direct_zone))
        return false;
    uintptr_t h = bt_phys_page(c->vm, e & PTE_PAGE);
    const struct direct_ram *ram = ram_find(c->vm, h & ~0xfffull);
    if (!h || !ram)
        return false;
    bool w = (e & PTE_W) && (e & PTE_D) && !(h & BT_HVA_RO);
    if (bit(r->mapped, i)) {
        if (!w || bit(r->writable, i))
            return true;
        forget_page(d, s, r, i);
    }
    r->pte[i] = e;
    bit_set(r->mapped, i);
    bit_clear(r->gone, i); /* MAP_FIXED replaces what is there */
    r->n_mapped++;
    s->n_pages++;
    if (w) {
        /* noted before `code` is looked at: a request that comes while we wait finds it */
        bit_set(r->writable, i);
        ++*filter(d, e);
        if (!claim(c, e & PTE_PAGE, write) && bit(r->writable, i)) {
            bit_clear(r->writable, i);
            --*filter(d, e);
        }
        w = bit(r->writable, i);
    }
    if (!bit(r->mapped, i)) /* it ran from a copy somewhere: bt_direct_uncopy(); next time */
        return false;
    bool x = !(e & PTE_NX);
    uint64_t off = ram->offset + ((h & ~0xfffull) - ram->hva), fd = (uint64_t)ram->helper_fd;
    /* RDPID tells the host's CPU and cannot be made to fault: direct_copy.c */
    if (x && c->vm->direct_rdpid && bt_direct_next_rdpid((const uint8_t *)(h & ~0xfffull), 0) >= 0) {
        uint64_t epoch = d->epoch, copy = DIRECT_NO_COPY;
        if (!(e & PTE_W) && !s->code32)
            copy = bt_direct_copy(c, e & PTE_PAGE, (const uint8_t *)(h & ~0xfffull));
        if (epoch != d->epoch || !bit(r->mapped, i)) /* it may have waited for other vCPUs, and served requests */
            return false;
        if (copy == DIRECT_NO_COPY) {
            x = false;
        } else {
            off = copy;
            fd = (uint64_t)c->vm->direct_copies_fd;
        }
    }
    if (x && s->code32 && has_fast_call((const uint8_t *)(h & ~0xfffull), c->vm->host_amd))
        x = false;
    uint64_t prot = PROT_READ | (w ? PROT_WRITE : 0) | (x ? PROT_EXEC : 0);
    uint64_t flags = MAP_SHARED | MAP_FIXED | (populate ? MAP_POPULATE : 0);
    struct direct_orders *o = &s->proc->zone->orders;
    struct direct_op *last = o->n_ops ? &o->op[o->n_ops - 1] : NULL;
    c->st.direct_pages++;
    if (last && last->nr == SYS_mmap && last->arg[0] + last->arg[1] == lin && last->arg[2] == prot &&
        last->arg[3] == flags && last->arg[4] == fd && last->arg[5] + last->arg[1] == off) {
        last->arg[1] += 4096;
        return true;
    }
    struct direct_op *op = order(c, s, SYS_mmap);
    if (!op)
        return false;
    c->st.direct_maps++;
    op->arg[0] = lin;
    op->arg[1] = 4096;
    op->arg[2] = prot;
    op->arg[3] = flags;
    op->arg[4] = fd;
    op->arg[5] = off;
    return bit(r->mapped, i); /* not if orders had to be carried out and failed */
}

/* The pages around one that is there already: what is likely to be next. */
static void neighbours(struct bt_vcpu *c, struct direct_space *s, struct direct_region *r, const struct leaf *l,
                       unsigned i)
{
    unsigned n = l->large ? 512 : PREFETCH, first = i & ~(n - 1);
    uint64_t epoch = c->direct->epoch;
    for (unsigned j = first; j < first + n && j < 512 && epoch == c->direct->epoch; j++)
        if (!bit(r->mapped, j))
            (void)place(c, s, r, l, j, false, false); /* to populate costs as much as the host's fault, if it comes */
}

int bt_direct_map(struct bt_vcpu *c, struct direct_space *s, uint64_t lin, unsigned acc)
{
    struct bt_walk w;
    struct leaf l;
    unsigned i = lin >> 12 & 511;
    int rc = mmu_walk(c, lin, acc, &w, false);
    if (rc != BT_WALKED)
        mmu_fault(c, lin, acc, rc);
    bt_direct_room(c, s);
    struct direct_region *r = region_make(c->direct, s, lin);
    if (!r || !leaf_find(c, s->root, lin, &l))
        return DIRECT_SOFT;
    bool was = bit(r->mapped, i) && !bit(r->gone, i), was_rw = bit(r->writable, i);
    if (was && (acc & BT_ACC_FETCH)) /* it is there, and did not let itself be run */
        return w.exec && (c->vm->direct_rdpid || s->code32) ? DIRECT_SOFT_PAGE : DIRECT_SOFT;
    uint64_t first = s->proc->zone->orders.n_ops, epoch = c->direct->epoch;
    if (!place(c, s, r, &l, i, (acc & BT_ACC_WRITE) != 0, true))
        return DIRECT_SOFT;
    if (epoch != c->direct->epoch)
        return DIRECT_SOFT;
    if (was && s->proc->zone->orders.n_ops == first) /* it is there already, as it can be */
        return DIRECT_SOFT;
    if ((acc & BT_ACC_WRITE) && !bit(r->writable, i))
        return DIRECT_SOFT;
    if (!was_rw)
        neighbours(c, s, r, &l, i);
    return DIRECT_MAPPED;
}

/* What the soft tier has used of late. */
void bt_direct_prefetch(struct bt_vcpu *c, struct direct_space *s)
{
    struct bt_mmu *m = c->mmu;
    struct leaf l;
    unsigned n = 0;
    uint64_t epoch = c->direct->epoch;
    for (uint32_t j = m->n_listed[1]; j-- && n < PREFETCH_TLB && epoch == c->direct->epoch;) {
        unsigned ti = m->listed[1][j];
        const struct bt_tlb_entry *e = &c->tlb[1][ti];
        uint64_t lin = e->tag_r;
        if (lin == tag_never(ti) || lin >> 47 || (e->pa & BT_TLB_GLOBAL))
            continue;
        struct direct_region *r = region_make(c->direct, s, lin);
        if (!r || !leaf_find(c, s->root, lin, &l))
            continue;
        if (place(c, s, r, &l, lin >> 12 & 511, false, true))
            n++;
    }
}

/* --- hooks ------------------------------------------------------------------------------------------ */
void bt_direct_invlpg(struct bt_vcpu *c, uint64_t lin)
{
    struct bt_direct *d = c->direct;
    if (lin >> 47)
        return;
    struct direct_space *s = bt_direct_space(c);
    struct direct_region *r = s->regions ? region_find(d, s, lin) : NULL;
    if (r)
        r->stale = s->stale = true;
}

void bt_direct_drop_write(struct bt_vcpu *c, uint64_t pa)
{
    struct bt_direct *d = c->direct;
    pa &= PTE_PAGE;
    if (!*filter(d, pa))
        return;
    for (unsigned k = 0; k < DIRECT_SPACES; k++) {
        struct direct_space *s = &d->space[k];
        for (uint32_t ri = s->regions; ri; ri = d->region[ri].next_space) {
            struct direct_region *r = &d->region[ri];
            for (unsigned w = 0; w < 8; w++)
                for (uint64_t m = r->writable[w]; m; m &= m - 1) {
                    unsigned i = w * 64 + (unsigned)__builtin_ctzll(m);
                    if ((r->pte[i] & PTE_PAGE) != pa)
                        continue;
                    forget_page(d, s, r, i);
                    bit_set(r->gone, i);
                    s->stale = r->stale = true;
                }
        }
    }
}

bool bt_direct_runs_copy(struct bt_vcpu *c, const struct direct_space *s, uint64_t lin)
{
    struct bt_direct *d = c->direct;
    const struct direct_region *r = region_find(d, s, lin);
    unsigned i = lin >> 12 & 511;
    if (!r || !bit(r->mapped, i))
        return false;
    for (unsigned j = 0; j < DIRECT_COPIES; j++)
        if (d->copy[j] == ((r->pte[i] & PTE_PAGE) | 1))
            return true;
    return false;
}

void bt_direct_uncopy(struct bt_vcpu *c, uint64_t pa, uint64_t n)
{
    struct bt_direct *d = c->direct;
    for (unsigned j = 0; j < DIRECT_COPIES; j++) {
        uint64_t page = d->copy[j] & PTE_PAGE;
        if (!d->copy[j] || (page - pa >= n && pa - page >= 4096))
            continue;
        d->copy[j] = 0;
        d->n_copies--;
        for (unsigned k = 0; k < DIRECT_SPACES; k++) {
            struct direct_space *s = &d->space[k];
            for (uint32_t ri = s->regions; ri; ri = d->region[ri].next_space) {
                struct direct_region *r = &d->region[ri];
                for (unsigned i = 0; i < 512; i++) {
                    if (!bit(r->mapped, i) || (r->pte[i] & PTE_PAGE) != page)
                        continue;
                    forget_page(d, s, r, i);
                    bit_set(r->gone, i);
                    s->stale = r->stale = true;
                }
            }
        }
    }
}

void bt_direct_forget(struct bt_vcpu *c)
{
    struct bt_direct *d = c->direct;
    for (unsigned i = 0; i < DIRECT_COPIES; i++)
        d->copy[i] = 0;
    d->n_copies = 0;
    for (unsigned i = 0; i < DIRECT_SPACES; i++)
        if (d->space[i].regions || d->space[i].proc)
            space_empty(d, &d->space[i]);
}
