/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/warm_rec.h - what the files of warm.h share.
 */
#ifndef BT_WARM_REC_H
#define BT_WARM_REC_H

#include "trans.h"
#include "warm.h"

#define WARM_MAX_EXITS (3u * BT_MAX_TRACED + 4u * BT_MAX_CALLS + BT_MAX_GROUPS + 16u)
#define WARM_MAX_MAP (BT_MAX_INSNS + 1u + BT_MAX_COLD) /* as in struct trans */
#define WARM_MAX_RECIPES (2u * BT_MAX_INSNS)
#define WARM_MAX_RELOCS (BT_MAX_RELOCS + 64u)

static inline void warm_copy(void *to, const void *from, size_t n)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}
static inline bool warm_same(const uint8_t *a, const uint8_t *b, unsigned n)
{
    uint64_t x, y;
    for (; n >= 8; n -= 8, a += 8, b += 8) {
        __builtin_memcpy(&x, a, 8);
        __builtin_memcpy(&y, b, 8);
        if (x != y)
            return false;
    }
    while (n--)
        if (*a++ != *b++)
            return false;
    return true;
}

struct warm_parts {
    struct again *recipe;
    struct warm_exit *exit;
    uint16_t *reloc, *map, *direct;
    uint8_t *bytes, *hot, *cold;
    uint64_t size;
};

static inline struct warm_parts warm_parts_of(const struct warm_rec *r)
{
    struct warm_parts p;
    p.recipe = (struct again *)(uintptr_t)(r + 1);
    p.exit = (struct warm_exit *)(p.recipe + r->n_recipes);
    p.reloc = (uint16_t *)(p.exit + r->n_exits);
    p.map = p.reloc + r->n_relocs;
    p.direct = p.map + 2u * r->n_map;
    p.bytes = (uint8_t *)(p.direct + r->n_direct);
    p.hot = p.bytes + r->len;
    p.cold = p.hot + r->hot;
    p.size = (uint64_t)(p.cold + r->cold - (const uint8_t *)r);
    p.size = (p.size + 7) & ~7ull;
    return p;
}

/* A slot: the address of a record in memory, or the number in the file's index << 1 | 1; in the last 16 bits some of
 * the key's, which saves a look at most of those that are others. 0: free. */
static inline uint64_t warm_slot_of(uint64_t key, uint64_t what)
{
    return what | (key >> 48) << 48;
}
static inline uint64_t warm_slot_what(uint64_t slot)
{
    return slot & 0xffffffffffffull;
}

/* What is known of a block before it is made: host is where its bytes are. */
uint64_t warm_key_of(uint64_t rip, uint32_t mode, uint64_t cs_base, bool window, const uint8_t *host);
/* The record in a slot of the table, fetched if it is the file's: NULL when it cannot be this key's. */
const struct warm_rec *warm_rec_at(struct bt_warm *w, struct warm_arena *a, uint64_t key, uint64_t slot);
/* The record of b, just made by t, at r where there is room for so many bytes; 0: none, else its size. */
uint32_t warm_take(struct bt_vcpu *c, const struct trans *t, const struct bt_block *b, struct warm_rec *r,
                   uint64_t room);

#endif
