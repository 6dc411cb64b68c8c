/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/warm_rec.c - records: sums, checks, keys, the table. See warm.h.
 */
#include "warm_rec.h"
#include <sys/syscall.h>

#define KEY_BYTES 16u
#define MIX 0x9e3779b97f4a7c15ull

/* --- sums ------------------------------------------------------------------------------ */
static inline uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * MIX;
    return h ^ h >> 32;
}

/* identify() sums whole modules, variables and what a sanitizer puts between them. */
__attribute__((no_sanitize("address"))) uint64_t bt_warm_sum(uint64_t h, const void *data, uint64_t n)
{
    const uint8_t *p = data;
    uint64_t lane[4] = {h, h + 1, h + 2, h + 3}, v;
    for (; n >= 32; n -= 32, p += 32)
        for (unsigned i = 0; i < 4; i++) {
            __builtin_memcpy(&v, p + 8 * i, 8);
            lane[i] = mix(lane[i], v);
        }
    for (; n >= 8; n -= 8, p += 8) {
        __builtin_memcpy(&v, p, 8);
        lane[0] = mix(lane[0], v);
    }
    for (; n; n--)
        lane[1] = mix(lane[1], *p++ | 0x100u);
    return mix(mix(mix(lane[0], lane[1]), lane[2]), lane[3]);
}

/* --- checks ------------------------------------------------------------------------------ */
static bool place_ok(const struct warm_rec *r, unsigned place, unsigned n)
{
    return (place & WARM_CODE_MAX) + n <= (place & WARM_COLD ? r->cold : r->hot);
}

static bool op_ok(const struct warm_rec *r, const struct warm_parts *p, uint32_t at)
{
    struct bt_op op;
    if ((at + r->cold_align) & 15 || at > r->cold || r->cold - at < sizeof(op))
        return false;
    __builtin_memcpy(&op, p->cold + at, sizeof(op));
    return op.id < BT_OP_COUNT;
}

static bool relocs_ok(const struct warm_rec *r, const struct warm_parts *p, const struct warm_layout *l)
{
    unsigned at[2] = {0, 0}, fields = 0;
    for (unsigned i = 0; i < r->n_relocs; i++) {
        unsigned kind = p->reloc[i] & 7, cold = (p->reloc[i] & WARM_RELOC_COLD) != 0;
        unsigned n = kind == BT_RELOC_RIP ? 8 : 4, bytes = cold ? r->cold : r->hot;
        uint32_t v;
        at[cold] += p->reloc[i] >> 4;
        if (kind == WARM_RELOC_SKIP)
            continue;
        if (at[cold] + n > bytes || ++fields > BT_MAX_RELOCS)
            return false;
        __builtin_memcpy(&v, (cold ? p->cold : p->hot) + at[cold], 4);
        switch (kind) {
        case BT_RELOC_REL32:
        case BT_RELOC_ABS32:
            if (kind == BT_RELOC_ABS32 && v < WARM_TO_HOT)
                return false;
            if (v >= WARM_TO_COLD  ? v - WARM_TO_COLD >= r->cold
                : v >= WARM_TO_HOT ? v - WARM_TO_HOT >= r->hot
                                   : v < l->stubs || v >= l->stubs_end)
                return false;
            break;
        case BT_RELOC_STATE:
            if (v >= l->region)
                return false;
            break;
        case BT_RELOC_EXIT:
            if (v >= r->n_exits)
                return false;
            break;
        case BT_RELOC_OP:
            if (!op_ok(r, p, v))
                return false;
            break;
        default: /* RIP, RIP32 */
            if (r->fixed || kind != (r->class == WARM_KERNEL ? BT_RELOC_RIP32 : BT_RELOC_RIP))
                return false;
        }
    }
    return true;
}

static bool exits_ok(const struct warm_rec *r, const struct warm_parts *p)
{
    for (unsigned i = 0; i < r->n_exits; i++) {
        const struct warm_exit *x = &p->exit[i];
        bool cache = x->kind == BT_EXIT_INLINE, direct = x->kind == BT_EXIT_DIRECT || cache;
        if (x->kind > BT_EXIT_INLINE || !place_ok(r, x->site, direct || x->kind == BT_EXIT_OTHER ? 4 : 5))
            return false;
        if (cache && (x->site < BT_INLINE_COMPARE || x->site & WARM_COLD ||
                      (x->stub & WARM_CODE_MAX) < BT_INLINE_CALL_STUB || x->has_target))
            return false;
        if (direct && (!place_ok(r, x->stub, 1) || !place_ok(r, x->stub + x->alt, 1) ||
                       ((x->stub + x->alt) ^ x->stub) & WARM_COLD))
            return false;
        if (!direct && x->has_target && (x->site & WARM_CODE_MAX) < 4)
            return false;
        if (x->kind == BT_EXIT_OTHER && (x->site & WARM_CODE_MAX) < 2)
            return false;
        if (x->branch > BT_NO_BRANCH || x->heat > (cache ? BT_INLINE_TRIES : BT_HOT))
            return false;
    }
    return true;
}

bool bt_warm_rec_ok(const struct warm_rec *r, uint64_t size, const struct warm_layout *l)
{
    if (r->size > size || r->size < sizeof(*r) || r->size & 7 || r->n_exits > WARM_MAX_EXITS ||
        r->n_relocs > WARM_MAX_RELOCS || r->n_map > WARM_MAX_MAP || r->n_recipes > WARM_MAX_RECIPES ||
        r->n_direct > BT_MAX_INSNS || !r->hot || r->hot > WARM_CODE_MAX || !r->cold || r->cold > WARM_CODE_MAX ||
        !r->len || r->page_off + r->len > 4096 || !r->n_insns || r->n_insns > BT_MAX_INSNS || r->cold_align > 15)
        return false;
    struct warm_parts p = warm_parts_of(r);
    if (p.size != r->size || !bt_warm_mode(r->mode) || r->class > WARM_KERNEL ||
        (r->class == WARM_EXACT ? !r->fixed : (r->mode & BT_MODE_CODE) != BT_MODE_CODE64) || !place_ok(r, r->a, 1) ||
        !place_ok(r, r->b, 1))
        return false;
    unsigned recipes = 0, cold = 0;
    for (unsigned i = 0; i < r->n_map; i++) {
        unsigned kind = p.map[2 * i + 1] >> 12;
        recipes += (kind & 3) == WARM_MAP_RECIPE;
        if (!place_ok(r, p.map[2 * i], 0) || (p.map[2 * i] & WARM_COLD) < cold || kind > (WARM_MAP_DIRECT | 3))
            return false;
        cold = p.map[2 * i] & WARM_COLD;
    }
    for (unsigned i = 0; i < r->n_recipes; i++)
        if (p.recipe[i].kind > AGAIN_SELF || p.recipe[i].dst > 15 || p.recipe[i].src > 15)
            return false;
    for (unsigned i = 0; i < r->n_direct; i++)
        if (p.direct[i] >= r->len)
            return false;
    return recipes == r->n_recipes && exits_ok(r, &p) && relocs_ok(r, &p, l);
}

/* --- keys ------------------------------------------------------------------------------- */
uint64_t warm_key_of(uint64_t rip, uint32_t mode, uint64_t cs_base, bool window, const uint8_t *host)
{
    unsigned class = bt_warm_class(mode, rip), off = rip & 0xfff, n = 4096 - (unsigned)((rip + cs_base) & 0xfff);
    uint64_t h = ((uint64_t)mode << 8 | class << 1 | window) * MIX, v;
    h = (h ^ (class == WARM_EXACT ? rip : off)) * MIX;
    h = (h ^ h >> 29 ^ cs_base) * MIX;
    if (n >= KEY_BYTES) {
        __builtin_memcpy(&v, host, 8);
        h = (h ^ h >> 31 ^ v) * MIX;
        __builtin_memcpy(&v, host + 8, 8);
        h = (h ^ h >> 31 ^ v) * MIX;
    } else {
        for (unsigned i = 0; i < n; i++)
            h = (h ^ h >> 31 ^ host[i]) * MIX;
    }
    return h ^ h >> 32;
}

/* --- the table --------------------------------------------------------------------------- */
uint64_t bt_warm_rec_sum(const uint64_t id[4], const struct warm_rec *r)
{
    struct warm_rec head = *r;
    head.gone = 0;
    head.sum = 0;
    return bt_warm_sum(bt_warm_sum(bt_warm_sum(1, id, 4 * sizeof(id[0])), &head, sizeof(head)), r + 1,
                       r->size - sizeof(head));
}

const struct warm_rec *bt_warm_fetch(struct bt_warm *w, struct warm_arena *a, uint32_t i)
{
    const struct warm_index *x = &w->index[i];
    uint64_t n = x->units * 8ull, at = x->at * 8ull;
    if (n > WARM_REC_MAX || n < sizeof(struct warm_rec))
        return NULL;
    if (at < a->read_at ||
        at + n > a->read_at + a->read_bytes) { /* what was translated in turn is mostly wanted in turn */
        long got = SYS_pread64;
        register long r10 __asm__("r10") = (long)at;
        __asm__ volatile("syscall"
                         : "+a"(got)
                         : "D"((long)w->fd), "S"(a->read), "d"(n > WARM_WINDOW ? n : WARM_WINDOW), "r"(r10)
                         : "rcx", "r11", "memory");
        a->read_at = at;
        a->read_bytes = got < 0 ? 0 : (uint64_t)got;
        if (a->read_bytes < n)
            return NULL;
    }
    const struct warm_rec *r = (const struct warm_rec *)(a->read + (at - a->read_at));
    if (r->size != n || r->key != x->key || r->gone || r->sum != bt_warm_rec_sum(w->id, r) ||
        !bt_warm_rec_ok(r, n, &w->layout))
        return NULL; /* another VM has made the file anew, or it is damaged */
    return r;
}

/* The bytes of the one that ends first are the same: newer translations of one piece of code. */
static bool replaces(const struct warm_rec *new, const struct warm_rec *old)
{
    return new->key == old->key &&new->mode == old->mode &&new->cs_base == old->cs_base &&new->class == old->class &&
           (!(new->fixed && old->fixed) || new->rip == old->rip) &&
           new->window == old->window &&warm_same(warm_parts_of(new).bytes, warm_parts_of(old).bytes,
                                                  new->len < old->len ? new->len : old->len);
}

const struct warm_rec *warm_rec_at(struct bt_warm *w, struct warm_arena *a, uint64_t key, uint64_t slot)
{
    uint64_t what = warm_slot_what(slot);
    if (!(what & 1)) {
        for (unsigned i = 0; i < 8; i++) /* it is in no cache, and most are that long */
            __builtin_prefetch((const uint8_t *)(uintptr_t)what + 64 * i);
        return (const struct warm_rec *)(uintptr_t)what;
    }
    return w->index[what >> 1].key == key ? bt_warm_fetch(w, a, (uint32_t)(what >> 1)) : NULL;
}

static bool claim(struct bt_warm *w, _Atomic uint64_t *slot, uint64_t *there, uint64_t mine)
{
    if (!*there && atomic_fetch_add_explicit(&w->n_records, 1, memory_order_relaxed) >= WARM_RECORDS_MAX) {
        atomic_fetch_sub_explicit(&w->n_records, 1, memory_order_relaxed);
        return false;
    }
    if (atomic_compare_exchange_strong(slot, there, mine))
        return true;
    return false; /* somebody was faster */
}

bool bt_warm_enter(struct bt_warm *w, struct warm_arena *a, const struct warm_rec *r)
{
    uint32_t mask = (1u << WARM_SLOT_BITS) - 1;
    uint64_t mine = warm_slot_of(r->key, (uintptr_t)r);
    for (uint32_t i = (uint32_t)r->key & mask;; i = (i + 1) & mask) {
        uint64_t there = atomic_load_explicit(&w->slot[i], memory_order_acquire);
        if (!there)
            return claim(w, &w->slot[i], &there, mine);
        if ((there ^ mine) >> 48)
            continue;
        const struct warm_rec *old = warm_rec_at(w, a, r->key, there);
        if (!old || !replaces(r, old))
            continue;
        uint64_t what = warm_slot_what(there);
        if (!claim(w, &w->slot[i], &there, mine))
            return false;
        if (what & 1)
            __atomic_fetch_or(&w->marks[what >> 1], WARM_GONE, __ATOMIC_RELAXED);
        else
            __atomic_store_n(&((struct warm_rec *)(uintptr_t)what)->gone, 1, __ATOMIC_RELAXED);
        return true;
    }
}

bool bt_warm_enter_file(struct bt_warm *w, uint32_t n)
{
    uint32_t mask = (1u << WARM_SLOT_BITS) - 1;
    uint64_t key = w->index[n].key, there = 0;
    uint32_t i = (uint32_t)key & mask;
    while (w->slot[i])
        i = (i + 1) & mask;
    return claim(w, &w->slot[i], &there, warm_slot_of(key, (uint64_t)n << 1 | 1));
}
