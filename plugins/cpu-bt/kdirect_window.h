/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/kdirect_window.h - what kdirect.c and kdirect_own.c share: the
 * state of the window. See kdirect.h first.
 */
#ifndef BT_KDIRECT_WINDOW_H
#define BT_KDIRECT_WINDOW_H

#include "kdirect.h"

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
#endif
