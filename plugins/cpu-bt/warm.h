/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/warm.h - translations that outlive the VM: option translation-cache.
 *
 * Every block that the translator makes is also kept as a record: the guest's
 * bytes that it was made from, all else that it depends on, and its code with
 * each address taken out of it. When the VM ends the records go to a file; the
 * next VM with that file reads it before it confines itself, and a block whose
 * record is there is copied and put right instead of being decoded and
 * generated. Records serve all vCPUs, and a guest that reboots, from the moment
 * they are made.
 *
 * What a record is good for
 *   A block is a function of: the bytes of its instructions, which are compared
 *   one by one; its mode, CS base and place in the page; which of its
 *   instructions access the kernel's window (gen_direct.c), all of which must
 *   be allowed to do so still; and what is the same for the whole VM - this very
 *   build of the engine and of its decoder, the CPU model, the host's features,
 *   the options, the layout of a vCPU's region. Of these the file's header has
 *   a hash; with another one nothing in the file is looked at.
 *   A record need not be what the translator would make now: it may be a trace
 *   found by an earlier VM, or access by a look-up what could be direct.
 *
 * Where a block may go
 *   64-bit code of programs and of kernels in the last 2 GiB may be at another
 *   RIP, as long as it has the same place in its page: both are mapped at
 *   random addresses. Other code must be where it was.
 *
 * What is never kept: blocks of one instruction by order (single step,
 * breakpoints, shadows, careful ones), while a debugger has points set all
 * blocks; those that reach into a second page; bytes that are no instruction.
 *
 * Files: warm_make.c and warm_use.c, from blocks to records and back, and
 * warm_rec.c, the table of records, run with guest vector state live;
 * warm_file.c has the file, and when it is trusted.
 */
#ifndef BT_WARM_H
#define BT_WARM_H

#include "cache.h"

#define WARM_BYTES_MAX (192u << 20) /* of records: in a file, and new ones of a VM */
#define WARM_REC_MAX (128u << 10)   /* one of them */
#define WARM_WINDOW (16u << 10)     /* read at a time */
#define WARM_SLOT_BITS 19u
#define WARM_RECORDS_MAX (3u << (WARM_SLOT_BITS - 2))

/* Places: an offset in the hot code, or with this bit in the cold code. */
#define WARM_COLD 0x8000u
#define WARM_CODE_MAX 0x7fffu
/* Targets of relative jumps and calls, in place of their rel32; without either bit from the region's start. */
#define WARM_TO_HOT 0x80000000u
#define WARM_TO_COLD 0xc0000000u

enum warm_class { WARM_EXACT, WARM_PROGRAM, WARM_KERNEL };

/* In memory as in the file; sum is of the file's only (bt_warm_rec_sum()). What follows, in this order, without gaps:
 * recipes, exits, relocs, map, direct, guest bytes, hot code, cold code. */
struct warm_rec {
    uint32_t size; /* a multiple of 8 */
    uint8_t gone;  /* a newer one has its place; 0 in the file */
    uint8_t zero3;
    uint8_t n_insns, n_exits;
    uint64_t key;
    uint64_t rip, cs_base; /* rip: 0 where it may be another one */
    uint32_t mode;
    uint16_t follow, len;
    uint16_t page_off;
    uint8_t class, window : 1, fixed : 1, live_in : 1, zero2 : 5;
    uint16_t hot, cold; /* bytes */
    uint16_t a, b;      /* entries: places */
    uint16_t n_recipes, n_relocs, n_map, n_direct;
    uint8_t cold_align; /* of the cold code, modulo 16 */
    uint8_t zero[1];
    uint64_t sum;
};
_Static_assert(sizeof(struct warm_rec) == 72, "no gaps");
/* The file's list of its records. */
struct warm_index {
    uint64_t key;
    uint32_t at;    /* in the file, in units of 8 bytes */
    uint32_t units; /* of 8 bytes */
};
struct warm_exit {
    uint16_t site, stub; /* places; stub only of direct exits */
    int32_t target;      /* from the block's RIP */
    uint8_t kind : 3, flags_by_fn : 1, plain : 1, has_target : 1, zero : 2;
    uint8_t branch, heat, alt;
};
/* A reloc is 16 bits: bytes since the last one in this code << 4 | WARM_RELOC_COLD | kind. */
#define WARM_RELOC_COLD 8u
#define WARM_RELOC_SKIP 7u /* no field, only bytes */
/* An entry of the map: place, then offset in the guest's bytes | WARM_MAP_* << 12. */
enum { WARM_MAP_SLOT = 1, WARM_MAP_FN = 2, WARM_MAP_RECIPE = 3, WARM_MAP_DIRECT = 4 };

/* What offsets in a record may point to. */
struct warm_layout {
    uint32_t region, stubs, stubs_end; /* bytes of the region; where in it stubs are */
};
/* Nothing in the record leads out of it or out of the region. size: what is there; at least a struct warm_rec. */
bool bt_warm_rec_ok(const struct warm_rec *r, uint64_t size, const struct warm_layout *l);
/* Of all but its mark and the sum itself, and of what the file is for: at the same place of the file there may be
 * another VM's meanwhile, of a file made anew for another CPU model. */
uint64_t bt_warm_rec_sum(const uint64_t id[4], const struct warm_rec *r);
/* A checksum and hash; not against malice. n need not be a multiple of anything; start with any value. */
uint64_t bt_warm_sum(uint64_t h, const void *p, uint64_t n);

struct bt_warm {
    _Atomic uint64_t *slot;     /* warm_rec.c */
    _Atomic uint32_t n_records; /* slots in use */
    bool verify;                /* for tests: translate what is found, too, and compare */
    struct warm_layout layout;
    int fd;                   /* -1: none */
    struct warm_index *index; /* the file's as it was at the start: its records stay there, and are read when used */
    uint8_t *marks;           /* WARM_GONE, WARM_USED of each */
    uint32_t n_index;
    struct warm_arena { /* new ones, of a vCPU */
        uint8_t *base;
        uint64_t used, size;
        uint8_t *read; /* WARM_REC_MAX: a piece of the file */
        uint64_t read_at, read_bytes;
        bool verifying;
    } arena[HVX_MAX_VCPUS];
    /* warm_file.c */
    uint64_t id[4];             /* engine, configuration */
    uint64_t generation, epoch; /* of what was read */
};
#define WARM_GONE 1u /* a newer one has its place */
#define WARM_USED 2u

/* Enter a record of an arena; a present one of the same bytes goes. False: no room. */
bool bt_warm_enter(struct bt_warm *w, struct warm_arena *a, const struct warm_rec *r);
/* Enter the index's i-th. */
bool bt_warm_enter_file(struct bt_warm *w, uint32_t i);
/* Read the index's i-th: NULL, or it, checked, until the next one is read. */
const struct warm_rec *bt_warm_fetch(struct bt_warm *w, struct warm_arena *a, uint32_t i);
/* A block for these bytes from a record, or NULL. There is room for a block. */
struct bt_block *bt_warm_find(struct bt_vcpu *c, uint64_t rip, uint32_t mode, uint64_t pa, const uint8_t *host);
/* The same from this record, which has been checked. */
struct bt_block *bt_warm_install(struct bt_vcpu *c, const struct warm_rec *r, uint64_t rip, uint64_t pa);
/* A block has just been made: keep it. translate.c */
struct trans;
void bt_warm_keep(struct bt_vcpu *c, const struct trans *t, const struct bt_block *b);
/* What decides where a block may go: relocs of translate.c are made accordingly. */
static inline unsigned bt_warm_class(uint32_t mode, uint64_t rip)
{
    if ((mode & BT_MODE_CODE) != BT_MODE_CODE64)
        return WARM_EXACT;
    if ((mode & BT_MODE_CPL) == 3)
        return rip >> 32 && !((rip + 8192 + 0x7fffffff) >> 47) ? WARM_PROGRAM : WARM_EXACT;
    return rip >= 0xffffffff80000000ull ? WARM_KERNEL : WARM_EXACT;
}
static inline bool bt_warm_mode(uint32_t mode)
{
    return !(mode & (BT_MODE_TF | BT_MODE_CAREFUL | BT_MODE_SINGLE));
}

void bt_warm_differs(struct bt_vcpu *c, const struct warm_rec *r, const struct warm_rec *again,
                     uint64_t rip); /* says so */
/* warm_file.c: ordinary C. Before confinement; when the last vCPU has stopped. */
void bt_warm_prepare(struct bt_vm *vm);
void bt_warm_finish(struct bt_vm *vm);

#endif
