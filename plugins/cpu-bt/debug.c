/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/debug.c - hardware breakpoints (SDM volume 3, 17.2).
 *
 * Rare, so they cost nothing until the guest enables one. Then every
 * instruction is a block of its own, in whose memory accesses (all through C)
 * mmu.c reports each access, and whose start the dispatcher checks. Alignment
 * checks (#AC) come the same way.
 */
#include "cache.h"
#include "sys.h"

enum { BP_EXEC = 0, BP_WRITE = 1, BP_IO = 2, BP_ACCESS = 3 };

static inline bool bp_enabled(const struct bt_vcpu *c, unsigned i) { return c->dr[7] >> (2 * i) & 3; }
static inline unsigned bp_kind(const struct bt_vcpu *c, unsigned i) { return c->dr[7] >> (16 + 4 * i) & 3; }
static inline uint64_t bp_length(const struct bt_vcpu *c, unsigned i)
{
    static const uint8_t length[4] = {1, 2, 8, 4};
    return length[c->dr[7] >> (18 + 4 * i) & 3];
}

#define BP_DEBUGGER 0x80u /* in bp_data: the debugger has data points */

void bt_debug_update(struct bt_vcpu *c)
{
    c->bp_exec = 0;
    c->bp_data = c->dbg.any_data ? BP_DEBUGGER : 0;
    for (unsigned i = 0; i < 4 && (c->dr[7] & 0xff); i++) {
        if (!bp_enabled(c, i))
            continue;
        if (bp_kind(c, i) == BP_EXEC)
            c->bp_exec |= (uint8_t)(1u << i);
        else if (bp_kind(c, i) != BP_IO)
            c->bp_data |= (uint8_t)(1u << i);
        else if (c->cr4 & BT_CR4_DE)
            c->bp_exec |= (uint8_t)(1u << (i + BT_BP_IO));
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

/* --- from outside: the gdb stub ------------------------------------------------------
 * An execution point is a block of its own with the op below, so the code around
 * it keeps its speed. Data points make blocks careful, as the guest's own do. */
int bt_debug_set(struct bt_vcpu *c, const struct hvx_debug *d)
{
    struct bt_debugger *g = &c->dbg;
    if (d->n_points > HVX_DEBUG_MAX_POINTS)
        return -E2BIG;
    g->step = (d->flags & HVX_DEBUG_STEP) != 0;
    g->any_exec = g->any_data = 0;
    g->hit = 0;
    g->n = d->n_points;
    for (uint32_t i = 0; i < g->n; i++) {
        g->point[i] = d->points[i];
        if (g->point[i].kind == HVX_DEBUG_EXEC)
            g->any_exec = 1;
        else
            g->any_data = 1;
    }
    bt_debug_update(c);
    bt_mode_update(c);
    /* Blocks know the points; interrupts may have been held off for a step. */
    atomic_fetch_or(&c->pending, BT_PEND_FLUSH | (c->wait_sipi ? 0 : BT_PEND_IRQ));
    return 0;
}

bool bt_debug_stops_at(struct bt_vcpu *c, uint64_t lin)
{
    if (!bt_code64(c))
        lin = (uint32_t)lin;
    for (uint32_t i = 0; i < c->dbg.n; i++)
        if (c->dbg.point[i].kind == HVX_DEBUG_EXEC && c->dbg.point[i].lin == lin)
            return true;
    return false;
}

void bt_op_debug_stop(struct bt_vcpu *c, const struct bt_op *op)
{
    uint64_t lin = c->rip + (bt_code64(c) ? 0 : c->seg_base[BT_CS]);
    (void)op;
    for (uint32_t i = 0; i < c->dbg.n; i++)
        if (c->dbg.point[i].kind == HVX_DEBUG_EXEC && c->dbg.point[i].lin == (bt_code64(c) ? lin : (uint32_t)lin))
            c->dbg.hit = i + 1;
    c->cur_exit = BT_X_DEBUG;
    bt_restart(c);
}

static void debugger_data(struct bt_vcpu *c, uint64_t lin, uint64_t n, bool write)
{
    for (uint32_t i = 0; i < c->dbg.n && !c->dbg.hit; i++) {
        const struct hvx_debug_point *p = &c->dbg.point[i];
        if ((p->kind & (write ? HVX_DEBUG_WRITE : HVX_DEBUG_READ)) && lin < p->lin + p->bytes && p->lin < lin + n)
            c->dbg.hit = i + 1;
    }
}

static bool meets(const struct bt_vcpu *c, unsigned i, uint64_t at, uint64_t n)
{
    uint64_t length = bp_length(c, i), start = c->dr[i] & ~(length - 1);
    return at < start + length && start < at + n;
}

void bt_debug_io(struct bt_vcpu *c, uint32_t port, uint64_t n)
{
    for (unsigned i = 0; i < 4; i++)
        if ((c->bp_exec >> (i + BT_BP_IO) & 1) && meets(c, i, port, n))
            c->bp_hit |= (uint8_t)(1u << i);
}

/* What is larger than a quadword is made of smaller things (SDM volume 3, table
 * "Alignment Requirements by Data Type"); the fields of FPU environments have
 * four bytes. A page fault comes first. */
void bt_debug_align(struct bt_vcpu *c, uint64_t lin, uint64_t n, unsigned acc)
{
    uint64_t align = n > 16 && (n & 15) ? 4 : n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1;
    if (!(lin & (align - 1)) || !(acc & BT_ACC_USER) || !bt_aligning(c))
        return;
    c->bp_data &= (uint8_t)~BT_BP_ALIGN; /* no check of the probe */
    bt_probe(c, lin, n, acc);
    bt_raise_err(c, BT_EX_AC, 0);
}

void bt_debug_data(struct bt_vcpu *c, uint64_t lin, uint64_t n, unsigned acc)
{
    const bool write = acc & BT_ACC_WRITE;
    if (c->bp_data & BT_BP_ALIGN)
        bt_debug_align(c, lin, n, acc);
    if (c->dbg.any_data)
        debugger_data(c, lin, n, write);
    for (unsigned i = 0; i < 4; i++)
        if ((c->bp_data >> i & 1) && (write || bp_kind(c, i) == BP_ACCESS) && meets(c, i, lin, n))
            c->bp_hit |= (uint8_t)(1u << i);
}
