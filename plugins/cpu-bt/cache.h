/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/cache.h - a vCPU's translations: blocks, exits, chains.
 *
 * A block is a run of guest instructions in one page, each somewhere behind the
 * one before: on over conditional branches, where it has side exits, and where it
 * is a trace, forward jumps and calls, which come back into it. It is keyed by guest-physical
 * address, guest RIP, CS base and mode. Its host code lies in the hot area;
 * slow paths and exit stubs in the cold area. Three ways in:
 *   ind  by indirect jump: r14 holds the RIP aimed at, which is compared with
 *        the block's own; the code at c->flags_fn makes the flags;
 *   a    the same, without a comparison;
 *   b    flags are in host RFLAGS.
 * When no flag is live at the start, a and b coincide.
 *
 * Traces
 *   A kick - a guest's timer, mostly - finds out which exit is taken: the block's
 *   next one. When BT_HOT kicks have found the same direct exit, to a place
 *   further on in the page or behind a call, its block is made anew, and goes on
 *   there: the other way of a branch is the side exit then. So blocks grow along
 *   the paths that run, and nothing is counted where they run.
 *
 * Inline caches
 *   Before an indirect jump or call of 64-bit code looks into the jump cache, it
 *   compares the target with the one it had the last time (BT_EXIT_INLINE), and
 *   is chained to that one as a direct exit is. Another target comes through C,
 *   and is the one from then on; where that has happened BT_INLINE_TRIES times
 *   there are many, and the jump cache alone serves the site.
 *
 * Exits are patchable. A direct exit's rel32 points to its stub, or, chained,
 * into the target block. An indirect exit ends in `jmp r15` padded to five
 * bytes. To stop a running vCPU, the kick signal points all exits of the block
 * it interrupted back to their stubs (bt_unlink_block): no block pays for a check.
 *
 * Returns
 *   A guest's CALL leaves its block by a host CALL, its RET by a host RET, so
 *   that the host's predictor of returns works for the guest. In translated
 *   code the host's RSP is a stack of such return addresses, one for programs,
 *   one for the supervisor; C runs on the dispatcher's stack. At the host's
 *   return address, the end of the calling block, stands a landing: it
 *   compares r14, the guest's return address, with the one that the CALL
 *   pushed, and goes on there, or, when they differ, by the jump cache. So the
 *   stack is a guess, and may be emptied at any time - what empties a jump
 *   cache does (bt_jc_flush) - but an address in it must be a landing of the
 *   present mode and address space. Above the bottom entry lies the address of
 *   glue that uses the jump cache; a guard page below makes the handler of
 *   SIGSEGV throw the older entries away. A dead block's landings may remain,
 *   but always use the jump cache. bt_cache_flush() empties both stacks.
 *
 * Everything is private to the vCPU's thread, signal handler included; other
 * vCPUs reach in through sync.c.
 */
#ifndef BT_CACHE_H
#define BT_CACHE_H

#include "bt.h"

#define BT_MAX_INSNS 64
#define BT_MAX_GROUPS 40 /* accesses that share a look-up, in one block: gen_group.c */
#define BT_MAX_BRANCHES 4 /* conditional ones that a block goes on after */
#define BT_MAX_CALLS 4    /* likewise */
#define BT_MAX_TRACED 8   /* branches of a trace */
#define BT_HOT 2u         /* kicks that found an exit taken, until it is followed */
#define BT_INLINE_TRIES 4u
#define BT_TRACE 0x100u   /* with the branches that a block follows: it is a trace, and goes on over jumps and calls */
#define BT_NO_BRANCH 15u
/* What a vCPU's translations may take in all: code, and what is kept of it; some 570 bytes a block. When it is used up
 * they all go, and what still runs is made again in 4 us a block. All vCPUs' code shares the low 2 GiB. */
#define BT_HELD_BYTES(vcpus) ((vcpus) == 1 ? 80u << 20 : (vcpus) <= 8 ? 40u << 20 : 32u << 20)
#define BT_HOT_BYTES(vcpus) (BT_HELD_BYTES(vcpus) / 8 * 5)
#define BT_COLD_BYTES(vcpus) (BT_HELD_BYTES(vcpus) / 8 * 3)
/* Indices end here; the bytes above do so before. */
#define BT_MAX_BLOCKS (512u * 1024)
#define BT_MAX_EXITS (2u * 1024 * 1024)
#define BT_MAX_MAP (24u * 1024 * 1024)
#define BT_MAX_RECIPES (1u * 1024 * 1024)
#define BT_MAX_RELOCS_KEPT (6u * 1024 * 1024)
#define BT_HASH_BITS 18
#define BT_PA_HASH_BITS 16
#define BT_XPAGE_MAX 65536u
#define BT_TOUCHED_MAX 65536u

struct bt_block {
    uint64_t rip, pa, pa2; /* pa2: page of the tail when the last instruction straddles, else 0 */
    uint64_t cs_base;
    uint32_t mode;
    uint32_t ind, a, b, end;
    uint32_t cold, cold_end;
    uint32_t hash_next;
    uint32_t page_next[2];
    uint32_t exits;   /* first index */
    uint32_t in_head; /* exits chained to this block, 0 ends */
    uint32_t map;     /* first byte in map[] */
    uint16_t n_map, len; /* n_map: bytes */
    uint8_t n_exits, n_insns, unlinked, dead : 1, live_in : 1;
    uint32_t made; /* when, or moved: relocate.c */
    uint32_t recipes; /* first index */
    uint32_t relocs, pa_next; /* what a copy elsewhere must put right, the next one that can be copied: relocate.c */
    uint16_t n_relocs;
    uint16_t follow; /* conditional branches, by number, that the block follows to their targets; BT_TRACE */
};
struct bt_kept_reloc {
    uint16_t off;
    uint8_t kind, cold;
};
#define BT_RET_BYTES (32u << 10) /* a stack of returns: 4096 */
#define BT_RET_SPARE 128u        /* above it, the empty stack's entry */
#define BT_RET_KEPT 512u         /* what stays when it is full */
/* OTHER: the landing's way out when the return address is another one. INLINE: the inline cache before an INDIRECT or
 * CALL. */
enum { BT_EXIT_DIRECT, BT_EXIT_INDIRECT, BT_EXIT_CALL, BT_EXIT_RET, BT_EXIT_OTHER, BT_EXIT_INLINE };
struct bt_exit {
    uint64_t target; /* guest RIP */
    uint32_t site;   /* rel32 field, or the jmp r15 */
    uint32_t stub;   /* where it goes unchained */
    uint32_t from, to, in_next;
    uint8_t kind;
    uint8_t flags_by_fn : 1, plain : 1 /* to the plain twin: gen_group.c */,
        branch : 4 /* number of the conditional branch */;
    uint8_t alt;  /* from the stub to another one, for good: by the jump cache; 0: none */
    uint8_t heat; /* so many kicks until it is followed; 0: never; INLINE: so many targets until there are too many */
};
static inline bool bt_exit_chains(const struct bt_exit *x)
{
    return x->kind == BT_EXIT_DIRECT || x->kind == BT_EXIT_INLINE;
}
/* From host address to guest instruction, as the translator notes it: sorted by
 * host, hot entries first, then cold ones. How it is kept: hostmap.c. */
struct bt_map_entry {
    uint32_t host;
    uint16_t off;  /* guest bytes from the start of the block */
    uint16_t slot; /* BT_MAP_*: where the guest's flags are from here on; at first in RFLAGS */
};
#define BT_MAP_MOST 8192u     /* bytes of one block's at most */
#define BT_MAP_SLOT 1u        /* in c->flags_slot, RFLAGS are a look-up's */
#define BT_MAP_FN 2u          /* c->flags_fn makes them */
#define BT_MAP_RECIPE 16u     /* and more: recipe 0 and so on of the block */
#define BT_MAP_DIRECT 0x8000u /* here an operand is accessed without a look-up: gen_direct.c */
/* One guest page with translations. */
struct bt_codepage {
    uint64_t pa;
    uint32_t next;   /* hash chain */
    uint32_t blocks; /* list: index << 1 | which link */
    bool stale;      /* bytes of blocks that are gone are marked still */
    _Atomic uint64_t bytes[64]; /* which bytes are translated; others read it */
};

/* Where glue that goes to C finds the flags. */
enum { BT_FLAGS_SLOT, BT_FLAGS_RFLAGS, BT_FLAGS_FN, BT_FLAGS_KINDS };
struct bt_cache {
    uint8_t *hot, *hot_p, *hot_end, *cold, *cold_p, *cold_end;
    size_t most; /* BT_HELD_BYTES() */
    struct bt_block *blocks;
    struct bt_exit *exits;
    uint8_t *map; /* hostmap.c */
    struct bt_kept_reloc *relocs;
    struct again *recipes; /* trans.h */
    uint32_t n_recipes;
    uint32_t pa_hash[1u << BT_PA_HASH_BITS]; /* blocks that can be copied */
    uint32_t n_relocs;
    uint32_t n_map; /* bytes */
    uint32_t n_blocks, n_exits; /* index 0 is never used */
    uint32_t hash[1u << BT_HASH_BITS];
    struct bt_codepage *pages;
    uint32_t n_pages, max_pages;
    uint32_t page_hash[4096];
    uint32_t xpage[BT_XPAGE_MAX]; /* chained supervisor exits that leave their page */
    uint32_t n_xpage;
    uint32_t straddle[1024]; /* chained program exits to blocks that reach into the next page: undone with jc[1] */
    uint32_t n_straddle;
    struct { uint64_t vpage, pa; } kpage[8192]; /* supervisor code pages such chains rely on */
    uint32_t n_kpage;
    uint32_t kpage_hash[8192];
    uint32_t jc_touched[2][BT_TOUCHED_MAX];
    uint32_t n_jc_touched[2];
    uint32_t jc_mode[2];
    uint64_t jc_cs_base[2];
    uint64_t code_filter[2][64];   /* hashed pages with jump cache entries */
    /* stubs */
    uint32_t stub_stack[BT_FLAGS_KINDS], stub_stack_try, stub_slow[BT_FLAGS_KINDS], stub_try, stub_commit, stub_op,
        stub_op_end, stub_jc_miss[2], stub_exit[BT_FLAGS_KINDS], stub_inline, stub_leave, stub_go, stub_irq,
        stub_careful, stub_segfault, stub_flags_slot, stub_flags[8][4];
    uint32_t stub_ret_empty[2], stub_ret_other[2], stub_ret_end[2];
    uint32_t ret_top[2];   /* the empty stacks of returns */
    uint64_t ret_saved[2]; /* c->ret_sp of the one that is not in use */
    unsigned ret_table;    /* the one in use */
    uint32_t stubs_start, stubs_end;
    void (*enter)(struct bt_vcpu *c, uint64_t host);
    uint32_t unlinked[64];
    _Atomic uint32_t n_unlinked;
    uint64_t helper_ret; /* return address of a memory helper into a block, 0 when none runs */
    uint64_t last_ret;   /* where code will go on: for the signal handler */
    uint32_t inline_exit; /* stubs.c: which inline cache has brought us to C */
    uint32_t chain_exit; /* exit to chain once its target is translated */
    bool smc_hit;        /* the running block was invalidated */
    bool flush_wanted;
    intptr_t jmpbuf[8];
};

enum { BT_X_NONE, BT_X_DONE, BT_X_SHUTDOWN, BT_X_FATAL, BT_X_DEBUG };

int bt_cache_create(struct bt_vcpu *c, struct hvx_error *err);
void bt_cache_destroy(struct bt_vcpu *c);
void bt_stubs_emit(struct bt_vcpu *c); /* stubs.c */
/* Drop every translation; not while a block of ours is on the stack. */
void bt_cache_flush(struct bt_vcpu *c);
void bt_cache_make_room(struct bt_vcpu *c); /* flush, forget code pages too, and give the memory back */
size_t bt_cache_held(const struct bt_vcpu *c); /* bytes in use */
struct bt_block *bt_block_find(struct bt_vcpu *c, uint64_t pa, uint64_t rip, uint32_t mode, uint64_t cs_base);
/* Make one; raises #PF when code cannot be fetched. translate.c */
struct bt_block *bt_translate(struct bt_vcpu *c, uint64_t rip, uint32_t mode, uint64_t pa, const uint8_t *host,
                              unsigned follow);
void bt_block_insert(struct bt_vcpu *c, struct bt_block *b);
void bt_block_hash(struct bt_vcpu *c, struct bt_block *b); /* only that it can be found */
void bt_block_drop(struct bt_vcpu *c, struct bt_block *b);
void bt_chain(struct bt_vcpu *c, uint32_t exit, struct bt_block *to);
void bt_unlink_block(struct bt_vcpu *c, struct bt_block *b); /* async-signal-safe on the owner thread */
void bt_relink(struct bt_vcpu *c);
struct bt_block *bt_block_at(struct bt_vcpu *c, uint64_t host); /* by any host address of it */
/* hostmap.c */
void bt_map_keep(struct bt_vcpu *c, struct bt_block *b, const struct bt_map_entry *m, unsigned n);
bool bt_host_to_rip(struct bt_vcpu *c, uint64_t host, uint64_t *rip);
void bt_codepage_mark(struct bt_vcpu *c, uint64_t pa, unsigned len); /* [pa, pa+len) of one page is about to be read */
/* The block and the last entry before a host address, or NULL. */
const struct bt_block *bt_host_map(struct bt_vcpu *c, uint64_t host, struct bt_map_entry *found);
struct bt_codepage *bt_codepage_get(struct bt_vcpu *c, uint64_t pa, bool create);
/* The bytes [pa, pa+n) change: drop this vCPU's blocks over them; true when `current` was among them. */
bool bt_invalidate_local(struct bt_vcpu *c, uint64_t pa, uint64_t n, struct bt_block *current);
void bt_exit_open(struct bt_cache *k, struct bt_exit *x); /* an indirect exit as it was made */
/* a call's stub is behind the push of its return address, for who does not come by the call */
#define BT_INLINE_CALL_STUB 5u
#define BT_INLINE_COMPARE 20 /* before its site: MOV R15, target; CMP R14, R15; JNE */
void bt_inline_forget(struct bt_exit *x); /* as it was made */
/* Take it for the target, and chain to it; or give up. */
void bt_inline_learn(struct bt_vcpu *c, uint32_t exit, uint64_t rip, struct bt_block *to);
void bt_ret_empty(struct bt_vcpu *c, unsigned t); /* forget a stack of returns */
bool bt_cache_room(struct bt_vcpu *c); /* for one more block */
/* relocate.c: what a new block holds of its address; one for another address, copied or moved there, or NULL. */
struct bt_relocs;
void bt_relocs_keep(struct bt_vcpu *c, struct bt_block *b, const struct bt_relocs *r);
struct bt_block *bt_block_moved(struct bt_vcpu *c, uint64_t pa, uint64_t rip, uint32_t mode);
void bt_jc_set(struct bt_vcpu *c, unsigned t, uint64_t rip, struct bt_block *b);
/* What runs under table t may be mapped in another way from now on: the one
 * place that every such change of mappings goes through. */
void bt_jc_flush(struct bt_vcpu *c, unsigned t);
void bt_jc_drop_page(struct bt_vcpu *c, unsigned t, uint64_t lin);
static inline uint32_t bt_code_filter_hash(uint64_t lin) { return (uint32_t)(lin >> 12) * 0x9e3779b1u >> 20; }
/* space.c: a program's block goes; all blocks go. */
void bt_spaces_drop_block(struct bt_vcpu *c, uint64_t lin);
void bt_spaces_drop_jumps(struct bt_vcpu *c);
void bt_xpage_unchain(struct bt_vcpu *c);
void bt_unchain(struct bt_vcpu *c, uint32_t exit);
/* ucode.c: programs' chains from page to page. A program enters a page; may an exit be chained? */
void bt_ucode_enter(struct bt_vcpu *c, uint64_t lin, uint64_t pa);
bool bt_ucode_join(struct bt_vcpu *c, uint32_t exit, uint64_t lin_a, uint64_t pa_a, uint64_t lin_b, uint64_t pa_b);
bool bt_ucode_has(const struct bt_vcpu *c, uint64_t lin); /* any in this page? */
void bt_ucode_reset(struct bt_vcpu *c);                   /* undo them all */
static inline uint32_t bt_block_index(struct bt_vcpu *c, const struct bt_block *b)
{
    return (uint32_t)(b - c->cache->blocks);
}
#endif
