/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/kdirect_window.h - what kdirect.c and kdirect_own.c share: the
 * state of the window. See kdirect.h first.
 */
#ifndef BT_KDIRECT_WINDOW_H
#define BT_KDIRECT_WINDOW_H

#include "kdirect.h"
#include "mmu.h"
#include <sys/syscall.h>

/* The guest's upper half in pieces of 1 GiB and 2 MiB. A region is made at the
 * first fault in its 2 MiB and stays; index 0 of each pool is never used. */
#define KD_GIBS 4096u
#define KD_REGIONS 65536u
#define KD_TABLES 8192u
#define KD_HASH 16384u

#define KD_PLACED 1ull /* in kd_table.pte */
#define KD_RW 2ull
#define KD_GLOBAL 4ull

struct kd_gib {
    uint32_t region[512];
    uint32_t n_1g; /* regions placed from one 1 GiB page */
};
/* Pages that the guest maps one by one. */
struct kd_table {
    uint64_t pte[512];  /* gpa | KD_*; 0: not placed */
    uint32_t next[512]; /* chain of pages with one hash: page number in tables[] */
};
struct kd_region {
    uint64_t va;      /* guest address */
    uint64_t pa;      /* shift > 12: gpa */
    uint32_t next_pa; /* shift > 12: chain of regions with one hash */
    uint32_t table;   /* shift 12 */
    uint32_t n;       /* shift 12: pages placed */
    uint32_t n_local; /* pages placed that are not global; shift > 12: 0 or 1 */
    uint32_t drops;   /* pages that went one by one since one was placed */
    uint32_t pieces;  /* what it may have added to the host's mappings */
    uint8_t shift;    /* of the guest's pages here; 0: nothing is placed */
    bool rw;          /* shift > 12: some page is writable */
};
struct kd_own {
    uint64_t lo, hi; /* host addresses */
};
struct kdirect {
    _Atomic uint32_t lock;
    _Atomic bool active;  /* translations use the window */
    bool started;
    _Atomic bool say;     /* why_off is to be logged */
    const char *why_off;
    int maps_fd;          /* /proc/self/maps, opened before confinement */
    unsigned n_own;
    struct kd_own own[KD_MAX_OWN];
    uint64_t own_pml4e[KD_MAX_OWN];
    unsigned n_slots;
    struct hvx_mem_slot slots[64];
    _Atomic uint32_t n_local; /* regions with pages that are not global */
    uint32_t local_regions[256]; /* the same for each entry of the root, */
    uint64_t local_pml4e[256];   /* which was this */
    uint32_t local_drops;     /* how often roots that differ took some out */
    uint32_t n_maps;      /* pieces of protection made: the host limits mappings */
    uint32_t n_gibs, n_regions, n_tables;
    uint32_t large_hash[KD_HASH], page_hash[KD_HASH];
    struct kd_stores {
        uint32_t last, n;
    } stores[KD_HASH]; /* to pages with translations, by a hash of the page; a race costs a count */
    _Atomic uint64_t soft[1u << 15]; /* 2 Mi bits: instructions that look up, by a hash of their gpa */
    uint16_t top[1u << 17]; /* gib of (address - lowest) >> 30 */
    struct kd_gib gibs[KD_GIBS];
    struct kd_region regions[KD_REGIONS];
    uint32_t table_region[KD_TABLES];
    struct kd_table tables[KD_TABLES];
};

#define KD_REGION (2ull << 20)

static inline long kd_sys(long nr, long a, long b, long c, long d, long e, long f)
{
    long ret;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}

static inline uint64_t kd_window(uint64_t a) { return a + KD_BASE; }
/* In the window's reach: the upper half without its lowest 2 MiB. */
static inline bool kd_reachable(uint64_t a) { return a >= 0ull - KD_BASE; }

static inline uint64_t kd_entry(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint32_t kd_hash(uint64_t x) { return (uint32_t)((x * 0x9e3779b97f4a7c15ull) >> 50); }
_Static_assert(KD_HASH == 1u << 14, "as kd_hash() has it");

/* kdirect_regions.c: the guest's page tables. What maps an address; */
struct kd_leaf {
    uint64_t e, pml4e, pa; /* pa: of the 4 KiB page */
    const uint64_t *slot;
    uint8_t shift;
    bool rw, global; /* rw: a store needs to set nothing and is allowed even with CR0.WP */
};
const uint64_t *kd_table_at(const struct bt_vcpu *c, uint64_t pa);
void kd_leaf_of(const struct bt_vcpu *c, uint64_t a, uint64_t e, bool wr, struct kd_leaf *l);
bool kd_descend(const struct bt_vcpu *c, uint64_t a, struct kd_leaf *l); /* false: nothing, or it is not accessed yet */
uint64_t kd_pml4e(const struct bt_vcpu *c, uint64_t a); /* the root's entry, without A and D */
bool kd_roots_agree(const struct bt_vcpu *c, uint64_t a); /* do all vCPUs map what is at a through the same tables? */
/* Regions; with the lock. */
void kd_lock(struct kdirect *kd);
void kd_unlock(struct kdirect *kd);
struct kd_gib *kd_gib_of(struct kdirect *kd, uint64_t a, bool create);
struct kd_region *kd_region_of(struct kdirect *kd, uint64_t a, bool create);
void kd_unmap(uint64_t host, uint64_t n);
bool kd_protect(struct kdirect *kd, struct kd_region *r, uint64_t host, uint64_t n, bool rw);
bool kd_map(struct kdirect *kd, struct kd_region *r, uint64_t host, uint64_t n, bool rw,
            const struct hvx_mem_slot *s, uint64_t pa);
const struct hvx_mem_slot *kd_slot_of(const struct kdirect *kd, uint64_t pa); /* NULL: nothing with a file behind it */
bool kd_is_own(const struct kdirect *kd, uint64_t host, uint64_t n);
void kd_set_local(struct kdirect *kd, struct kd_region *r, uint32_t n);
void kd_page_out(struct kdirect *kd, struct kd_region *r, unsigned i);
/* The part of a slot that a large page's region at pa shows; false: none. */
bool kd_part(const struct hvx_mem_slot *s, uint64_t pa, uint64_t *lo, uint64_t *hi);
bool kd_large_map(struct kdirect *kd, struct kd_region *r, uint64_t pa);
void kd_region_out(struct bt_vcpu *c, struct kdirect *kd, struct kd_region *r);
void kd_all_out(struct bt_vcpu *c, struct kdirect *kd);
void kd_count(struct kdirect *kd, struct kd_region *r, int n);
/* kdirect_flush.c. Does the guest map where the process has memory? Deep: even if the root's entry is what it was. */
bool kd_conflict(const struct bt_vcpu *c, struct kdirect *kd, bool deep);
void kd_conflict_off(struct bt_vcpu *c, struct kdirect *kd);
#endif
