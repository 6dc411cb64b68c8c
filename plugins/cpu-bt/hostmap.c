/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/hostmap.c - from an address in translated code to the guest's
 * instruction.
 *
 * Asked for when something goes wrong in a block, so it is kept small rather
 * than quick to search: the entries of a block's hot code, a mark, those of its
 * cold code, each as the difference to the one before, mostly in two bytes:
 *     0hhhhhhh sssspppp   host bytes, where the flags are (code()), guest bytes
 *     0x80 and three 16-bit numbers: host bytes, offset from the block's start, slot
 *     0xff                the mark
 * Nothing in it depends on where the block is.
 */
#include "cache.h"

#define LONG 0x80u
#define COLD 0xffu
#define N_RECIPES 10u /* codes 6 and more */

static const uint16_t slots[6] = {
    0, BT_MAP_SLOT, BT_MAP_DIRECT, BT_MAP_DIRECT | BT_MAP_SLOT, BT_MAP_DIRECT | BT_MAP_FN, BT_MAP_FN};

/* 16: it has none */
static unsigned code(unsigned slot)
{
    for (unsigned i = 0; i < 6; i++)
        if (slots[i] == slot)
            return i;
    unsigned recipe = slot - (BT_MAP_DIRECT | BT_MAP_RECIPE);
    return recipe < N_RECIPES ? 6 + recipe : 16;
}

static uint8_t *put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
    return p + 2;
}
static unsigned get16(const uint8_t *p) { return p[0] | (unsigned)p[1] << 8; }

void bt_map_keep(struct bt_vcpu *c, struct bt_block *b, const struct bt_map_entry *m, unsigned n)
{
    struct bt_cache *k = c->cache;
    uint8_t *start = &k->map[k->n_map], *p = start;
    uint32_t host = b->ind, off = 0;
    bool cold = false;
    for (unsigned i = 0; i < n; i++) {
        if (!cold && m[i].host >= (uintptr_t)k->cold) {
            *p++ = COLD;
            cold = true;
            host = b->cold;
            off = 0;
        }
        unsigned h = m[i].host - host, o = m[i].off - off, s = code(m[i].slot);
        if (h < LONG && o < 16 && s < 16) {
            *p++ = (uint8_t)h;
            *p++ = (uint8_t)(s << 4 | o);
        } else {
            *p++ = LONG;
            p = put16(put16(put16(p, h), m[i].off), m[i].slot);
        }
        host = m[i].host;
        off = m[i].off;
    }
    b->map = k->n_map;
    b->n_map = (uint16_t)(p - start);
    k->n_map += b->n_map;
}

const struct bt_block *bt_host_map(struct bt_vcpu *c, uint64_t host, struct bt_map_entry *found)
{
    const struct bt_block *b = bt_block_at(c, host);
    if (!b)
        return NULL;
    const uint8_t *p = &c->cache->map[b->map], *end = p + b->n_map;
    struct bt_map_entry m = {b->ind, 0, 0};
    bool any = false;
    if (host >= (uintptr_t)c->cache->cold) {
        while (p < end && *p != COLD)
            p += *p == LONG ? 7 : 2;
        p++;
        m.host = b->cold;
    }
    while (p < end && *p != COLD) {
        if (*p == LONG) {
            m.host += get16(p + 1);
            m.off = (uint16_t)get16(p + 3);
            m.slot = (uint16_t)get16(p + 5);
            p += 7;
        } else {
            unsigned s = p[1] >> 4;
            m.host += p[0];
            m.off = (uint16_t)(m.off + (p[1] & 15));
            m.slot = (uint16_t)(s < 6 ? slots[s] : BT_MAP_DIRECT | (BT_MAP_RECIPE + s - 6));
            p += 2;
        }
        if (m.host > host)
            break;
        *found = m;
        any = true;
    }
    return any ? b : NULL;
}

bool bt_host_to_rip(struct bt_vcpu *c, uint64_t host, uint64_t *rip)
{
    struct bt_map_entry m;
    const struct bt_block *b = bt_host_map(c, host, &m);
    if (!b)
        return false;
    *rip = b->rip + m.off;
    if ((b->mode & BT_MODE_CODE) != BT_MODE_CODE64)
        *rip = (uint32_t)*rip;
    return true;
}
