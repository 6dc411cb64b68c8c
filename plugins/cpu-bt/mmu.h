/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/mmu.h - what the files of the memory management unit share:
 *     walk.c    the guest's page tables
 *     tlb.c     the software TLB and where code lies
 *     mmu.c     accesses from C
 *     slow.c    accesses that translated code cannot do inline
 */
#ifndef BT_MMU_H
#define BT_MMU_H

#include "cache.h"
#include "phys.h"

#define PF_P 1u
#define PF_W 2u
#define PF_U 4u
#define PF_RSVD 8u
#define PF_I 16u

static inline unsigned tlb_index(uint64_t lin) { return (lin >> 12) & (BT_TLB_SIZE - 1); }
static inline uint64_t tag_never(unsigned i) { return (uint64_t)(i ^ 1) << 12; }
#define STK_NEVER 0x8000000000000000ull

/* walk.c. What a walk found. */
struct bt_walk {
    uint64_t pa; /* of the page */
    bool writable, user, global, dirty, exec, large;
};
#define BT_WALKED 0x100
/* BT_WALKED, and A and D are set in the guest's tables as the access needs
 * (peek: nothing is). Else the page-fault error code's P and RSVD bits. */
int mmu_walk(struct bt_vcpu *c, uint64_t lin, unsigned acc, struct bt_walk *w, bool peek);
/* What mmu_walk() refused. */
_Noreturn void mmu_fault(struct bt_vcpu *c, uint64_t lin, unsigned acc, int rc);

/* tlb.c. Walk and enter lin's page; raises #PF. Returns hva of the page or 0
 * (not RAM); *pa is the page's address either way. */
uint64_t mmu_fill(struct bt_vcpu *c, uint64_t lin, unsigned acc, uint64_t *pa);

/* mmu.c: stores to pages with translations. Our own translations of the bytes
 * go before the store, the other vCPUs' after it: they could make them again
 * from the old bytes. */
/* True when the block that runs now was hit. */
bool mmu_code_store(struct bt_vcpu *c, uint64_t pa, uint64_t n);
/* Other vCPUs with translations of the bytes. */
uint64_t mmu_remote_hits(struct bt_vcpu *c, uint64_t pa, uint64_t n);

static inline bool mmu_canonical(uint64_t lin) { return (uint64_t)((int64_t)(lin << 16) >> 16) == lin; }
static inline void mmu_check_canonical(struct bt_vcpu *c, uint64_t lin, uint64_t n, bool stack)
{
    if (bt_long_mode(c) && (!mmu_canonical(lin) || !mmu_canonical(lin + n - 1)))
        bt_raise_err(c, stack ? BT_EX_SS : BT_EX_GP, 0);
}
static inline uint64_t mmu_load(const void *p, unsigned size)
{
    switch (size) {
    case 1: return *(const volatile uint8_t *)p;
    case 2: return *(const volatile uint16_t *)p;
    case 4: return *(const volatile uint32_t *)p;
    default: return *(const volatile uint64_t *)p;
    }
}
static inline void mmu_store(void *p, unsigned size, uint64_t v)
{
    switch (size) {
    case 1: *(volatile uint8_t *)p = (uint8_t)v; break;
    case 2: *(volatile uint16_t *)p = (uint16_t)v; break;
    case 4: *(volatile uint32_t *)p = (uint32_t)v; break;
    default: *(volatile uint64_t *)p = v;
    }
}
#endif
