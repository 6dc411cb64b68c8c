/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/debug.c - hardware breakpoints (SDM volume 3, 17.2).
 *
 * Rare, so they cost nothing until the guest enables one. Then every
 * instruction is a block of its own, in whose memory accesses (all through C)
 * mmu.c reports each access, and whose start the dispatcher checks. I/O
 * breakpoints are not offered.
 */
#include "sys.h"

enum { BP_EXEC = 0, BP_WRITE = 1, BP_IO = 2, BP_ACCESS = 3 };

static inline bool bp_enabled(const struct bt_vcpu *c, unsigned i) { return c->dr[7] >> (2 * i) & 3; }
static inline unsigned bp_kind(const struct bt_vcpu *c, unsigned i) { return c->dr[7] >> (16 + 4 * i) & 3; }
static inline uint64_t bp_length(const struct bt_vcpu *c, unsigned i)
{
    static const uint8_t length[4] = {1, 2, 8, 4};
    return length[c->dr[7] >> (18 + 4 * i) & 3];
}

void bt_debug_update(struct bt_vcpu *c)
{
    c->bp_exec = c->bp_data = 0;
    for (unsigned i = 0; i < 4 && (c->dr[7] & 0xff); i++) {
        if (!bp_enabled(c, i))
            continue;
        if (bp_kind(c, i) == BP_EXEC)
            c->bp_exec |= (uint8_t)(1u << i);
        else if (bp_kind(c, i) != BP_IO)
            c->bp_data |= (uint8_t)(1u << i);
    }
}

uint32_t bt_debug_exec(struct bt_vcpu *c, uint64_t lin)
{
    uint32_t hit = 0;
    for (unsigned i = 0; i < 4; i++)
        if ((c->bp_exec >> i & 1) && c->dr[i] == lin)
            hit |= 1u << i;
    return hit;
}

void bt_debug_data(struct bt_vcpu *c, uint64_t lin, uint64_t n, bool write)
{
    for (unsigned i = 0; i < 4; i++) {
        uint64_t length = bp_length(c, i), start = c->dr[i] & ~(length - 1);
        if ((c->bp_data >> i & 1) && (write || bp_kind(c, i) == BP_ACCESS) && lin < start + length && start < lin + n)
            c->bp_hit |= (uint8_t)(1u << i);
    }
}
