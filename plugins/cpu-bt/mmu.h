/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/mmu.h - what the files of the memory management unit share:
 *     walk.c    the guest's page tables
 *     tlb.c     the software TLB and where code lies
 *     space.c   address spaces (PCIDs): what is kept of one while another runs
 *     mmu.c     accesses from C
 *     slow.c    accesses that translated code cannot do inline
 *
 * What of it an invalidation reaches
 *   The inline TLBs and the jump cache of programs hold the current address
 *   space alone, and global pages. A switch to another PCID puts the entries
 *   aside and brings that one's back. All other tables are tagged with a
 *   number that the space gets anew when it is flushed.
 *   Supervisor code is taken to stay where it is: jumps between its pages are
 *   chained, and its jump cache outlives CR3 loads. Each of its pages is noted
 *   (struct bt_kcode), and after an invalidation that may have reached it the
 *   notes are compared with the page tables.
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

/* Entries of the guest's page tables: SDM volume 3, chapter 4. */
#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_PS 0x80ull
#define PTE_G 0x100ull
#define PTE_NX (1ull << 63)
#define PTE_PAGE 0x000ffffffffff000ull /* the address */

static inline unsigned tlb_index(uint64_t lin) { return (lin >> 12) & (BT_TLB_SIZE - 1); }
static inline uint64_t tag_never(unsigned i) { return (uint64_t)(i ^ 1) << 12; }
#define STK_NEVER 0x8000000000000000ull

/* One entry of the paging-structure cache: the page table of 2 MiB, or the
 * entry of a large page that covers them. The entry that maps a page is read
 * from the guest's memory each time. */
struct bt_psc {
    uint64_t key;   /* number of the 2 MiB | psc_gen << 27 */
    uint64_t *slot; /* the table's first entry; the large page's own */
    uint8_t shift;  /* of the page size */
    bool wr, us, nx; /* of all levels above */
};
#define BT_PSC_SIZE 512u

/* A page of supervisor code, or 2 MiB of it in a large page. */
struct bt_kcode {
    uint64_t key; /* linear page number << 1, or number of the 2 MiB << 1 | 1 */
    uint64_t pa;
    uint32_t next;
};
#define BT_KCODE_MAX 2048u
#define BT_KCODE_HASH 512u

/* What is kept of an address space that does not run. */
struct bt_space {
    uint64_t gen;     /* tags instruction pages */
    uint64_t psc_gen; /* tags the paging-structure cache */
    uint64_t last;    /* when it ran: the least recent one gives way */
    uint64_t drop_gen;
    uint16_t pcid;
    bool used;
    uint32_t n_tlb[2], n_jump;
    uint32_t jc_mode;
    uint64_t jc_cs_base;
    uint64_t code_filter[64];
    struct { uint32_t index; struct bt_tlb_entry e; } tlb[2][256];
    struct { uint32_t index, ind; } jump[2048];
};
#define BT_SPACES 8u

/* Pages of programs' code that chains connect: ucode.c. */
#define BT_UCODE_MAX 8192u
#define BT_UCODE_CHAINS 131072u
#define BT_UCODE_FAILS 8u
struct bt_upage {
    uint64_t vpage, pa;
    uint32_t next, ring, rep; /* hash chain or free list; members of the component, one that stands for it */
    uint8_t shared, fails;
    /* of the one that stands for the component */
    uint32_t size, chains, space;
    uint64_t gen;
};
struct bt_ucode {
    uint32_t n, n_chained, free_page, free_chained;
    uint32_t head[BT_UCODE_MAX];
    struct { uint32_t exit, next; } chained[BT_UCODE_CHAINS];
    struct bt_upage page[BT_UCODE_MAX]; /* 0 is never used, nor is chained[0] */
};

#define BT_ITLB_SIZE 256u
#define BT_LARGE_SLOTS 4096u
#define BT_LARGE_MANY 0xffffffffu
#define BT_HUGE_MAX 16u
struct bt_mmu {
    struct bt_space *space; /* the current one, of spaces[] */
    uint64_t last_gen, kgen, clock;
    uint64_t drop_gen;      /* grows when a right to store is taken away */
    struct bt_psc psc[BT_PSC_SIZE];
    struct { uint64_t vpage, pa, gen; const uint8_t *host; } itlb[2][BT_ITLB_SIZE];
    uint16_t listed[2][BT_TLB_SIZE]; /* entries that are not global, or were not once: each is here once */
    uint32_t n_listed[2];
    /* Which large pages have entries: number of the 2 MiB + 1; of the 1 GiB. */
    uint32_t large[BT_LARGE_SLOTS];
    uint64_t huge[BT_HUGE_MAX];
    uint32_t n_large, n_huge;
    struct bt_kcode kcode[BT_KCODE_MAX]; /* 0 is never used */
    uint32_t n_kcode, kcode_head[BT_KCODE_HASH];
    bool kcode_local; /* some of it is not in global pages */
    bool global_ucode; /* some code of programs is in global pages */
    struct bt_space spaces[BT_SPACES];
    struct bt_ucode ucode;
};
static inline uint64_t mmu_new_gen(struct bt_mmu *m) { return ++m->last_gen; }

/* walk.c. What a walk found. */
struct bt_walk {
    uint64_t pa; /* of the page */
    bool writable, user, global, dirty, exec;
    uint8_t shift; /* of the page size */
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
uint64_t mmu_fill_walked(struct bt_vcpu *c, uint64_t lin, unsigned acc, const struct bt_walk *w); /* after mmu_walk() */
/* Write an entry, all but its tag_w. */
static inline struct bt_tlb_entry *mmu_enter(struct bt_vcpu *c, unsigned t, unsigned i, uint64_t page, uint64_t pa,
                                             uint64_t host, bool global)
{
    struct bt_mmu *m = c->mmu;
    struct bt_tlb_entry *e = &c->tlb[t][i];
    uint64_t listed = e->pa & BT_TLB_LISTED;
    if (!global && !listed) {
        m->listed[t][m->n_listed[t]++] = (uint16_t)i;
        listed = BT_TLB_LISTED;
    }
    e->tag_r = page;
    e->tag_w = tag_never(i);
    e->host = host;
    e->pa = pa | listed | (global ? BT_TLB_GLOBAL : 0);
    return e;
}
/* The page tables were looked at for code: what invalidations have to know of the page. */
void mmu_code_found(struct bt_vcpu *c, uint64_t lin, const struct bt_walk *w);
/* Supervisor code may have moved: is it where it was? */
void mmu_kcode_check(struct bt_vcpu *c);

/* space.c. Forget all spaces; the current one is new. */
void mmu_spaces_reset(struct bt_vcpu *c);
void mmu_spaces_drop_others(struct bt_vcpu *c); /* all but the current one */

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
