/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/direct.h - the user-direct tier: programs run natively, at
 * their own addresses, in a helper process.
 *
 *     direct.c        when to, and getting in and out
 *     direct_map.c    which guest pages a helper has, and when they must go
 *     direct_cpu.c    vCPU and helper on one CPU of the host
 *     direct_copy.c   pages of code with RDPID
 *     direct_proc.c   having helpers: zones, requests, losses; ordinary C
 *     direct_helper.c making them: the process that does, filters
 *     direct_stub.S   the only code in a helper that is not the guest's
 *
 * A helper
 *   is a process of one thread that holds nothing but pages of guest memory, as
 *   one address space of the guest maps them for programs, and its zone (struct
 *   direct_zone): the stub, a page of orders, a stack for signals. A vCPU has a
 *   few. Each belongs to one root of guest page tables at a time and keeps its
 *   pages while others run. One that is lost is made anew, for the same place, by
 *   a process that does nothing else: direct_helper.c. That costs time, so how
 *   often is limited, and whose program has spoilt one is soft for a while.
 *
 * In and out
 *   The vCPU's thread writes registers into the frame of the helper's last
 *   signal and the orders into the zone, and the cookie to the eventfd that the
 *   stub waits on. The stub carries the orders out - mmap, munmap - and returns
 *   from the signal: the program goes on. What the program does that needs the
 *   guest's kernel is a signal: a system call (the filter traps it), a fault, a
 *   page that is not there, a kick. The stub's handler tells the vCPU and waits.
 *   What comes next is the vCPU's affair: it maps the page, or it goes on in the
 *   soft tier at that instruction, which does what the processor would have done.
 *
 * 32-bit programs
 *   Linux's selectors are the same for host and guest, so 32-bit code runs in the
 *   segments that it would have: CS 0x23, the others null, 0x2b, or one of the
 *   three TLS entries that each thread has in its GDT (0x63, 0x6b, 0x73). A
 *   program reads and loads these registers as it likes, so the helper's TLS
 *   entries are the guest's whenever a program runs: the stub sets them, with a
 *   call that only 32-bit programs have, INT 80h. Whatever selector a program
 *   comes out with is loaded anew from the guest's tables.
 *     INT 80h comes out as a system call. SYSCALL (AMD) and SYSENTER (Intel) from
 *   32-bit code do not tell where they stood - Linux goes back to its vDSO - so
 *   pages in which their bytes are found run in the soft tier, while a space has
 *   32-bit code. A program that writes one natively, later, is let off with what
 *   Linux needs to know: direct.c, fast_call().
 *
 * Why a program gains nothing from the stub
 *   It can read it, jump into it, and write the signal stack. But
 *   - the orders lie in pages that the helper can only read;
 *   - each system call that does something must carry the cookie, 64 random
 *     bits, in the upper halves of two argument registers that the call
 *     ignores; the filter checks them. The cookie is in the helper only while
 *     the stub carries out orders: it comes by read() into the zone and leaves
 *     the registers before the program goes on. All signals are blocked then;
 *     INT 80h in the stub, which sets a TLS entry, has the cookie in two other
 *     arguments, and the filter lets no other call of that kind pass;
 *   - the stub takes no address from a register or from memory that the
 *     program can write. The other two system calls, read and write of the
 *     eventfds, are pinned by the filter to their arguments, and lead into the
 *     stub's own waiting;
 *   - whoever jumps into the stub may be interrupted there, with the cookie in
 *     the frame: so an exit whose RIP lies in the zone ends that helper;
 *   - a program can tell of an exit that did not happen, once: then the stub
 *     waits, as after any. What tells of an exit is a token that comes with the
 *     orders and changes each time: whatever is told before the next orders are
 *     read, in two exits at once or by a signal that comes late, has the old
 *     one; and a program that puts the next one there itself is wrong about the
 *     exit that it is in. A signal that finds the stub at work has none at all.
 *     Each ends the helper. So the vCPU never goes on while the program runs, nor
 *     takes orders for done that are not.
 *   What the vCPU reads from the zone is taken for what a program could have
 *   put into its registers, and is checked as such.
 *
 * Coherence
 *   A helper's pages are a TLB: they may be stale until the guest flushes. A
 *   flush of a space gives it a new number (struct bt_space's gen); before a
 *   helper runs under another number than its pages were last compared under,
 *   each mapped page's entry is compared with the guest's tables, and what
 *   differs goes. INVLPG marks the 2 MiB around. A page is writable in a helper
 *   only when D is set and no vCPU has translations of it: the same `written`
 *   and `code` protocol as for entries of the software TLB (tlb.c).
 */
#ifndef BT_DIRECT_H
#define BT_DIRECT_H

#include "mmu.h"

/* --- the zone: what a helper has besides guest pages ----------------------------- */
#define CS_PROGRAM 0x33u /* Linux's selectors, which a host and its guest share */
#define CS32_PROGRAM 0x23u
#define SS_PROGRAM 0x2bu
#define DIRECT_MAX_OPS 511u
#define DIRECT_STACK 65536u
#define DIRECT_CMD_FD 3
#define DIRECT_EXIT_FD 4
#define DIRECT_RAM_FD 5 /* and on */
#define DIRECT_MAX_RAM 8u
#define DIRECT_ZONE_FD (DIRECT_RAM_FD + (int)DIRECT_MAX_RAM)

struct direct_op { /* one system call */
    uint64_t nr, arg[6], compat; /* compat: by INT 80h, one argument */
};
/* SYS_set_thread_area takes no address above 4 GiB: its order, and with it what it points to, is mapped there
 * meanwhile, where Linux has nothing of a 32-bit program's. */
#define DIRECT_LOW 0xfffff000ull
#define DIRECT_TLS_FIRST 12u /* in the GDT */
#define DIRECT_TLS 3u
#define I386_SET_THREAD_AREA 243u /* of <asm/unistd_32.h>, which cannot be had with the other one */
/* Written by the vCPU; the helper can only read it. Offsets are known to direct_stub.S. */
struct direct_orders {
    uint64_t one;     /* what the stub is to tell of the next exit with; changes each time */
    uint64_t n_ops;
    uint64_t resume;  /* 0: tell when done, and wait again */
    uint64_t frame;   /* RSP for rt_sigreturn */
    uint64_t fs, gs;  /* bases */
    uint64_t clock;   /* RDTSC does not trap: report.in and .out */
    uint64_t segs;    /* selectors of DS, ES, FS, GS, 16 bits each */
    struct direct_op op[DIRECT_MAX_OPS];
};
/* Written by the stub, and by any program that cares to. */
struct direct_report {
    uint64_t cookie; /* read() puts it here; 0 but for a moment */
    uint64_t fs, gs;
    uint64_t frame;  /* RSP in the handler */
    uint64_t signal;
    uint64_t failed; /* an order's result, if it was an error */
    uint64_t failed_op;
    uint64_t in, out; /* the counter before the program ran, and after; for the policy alone */
    uint64_t segs;
    uint64_t token; /* the `one` of the orders that have been read: what is told */
    uint64_t pad[501];
};
struct direct_zone {
    uint8_t code[4096];
    struct direct_orders orders; /* 8 pages */
    struct direct_report report; /* 1 page */
    uint8_t stack[DIRECT_STACK];
};
_Static_assert(sizeof(struct direct_orders) == 32768 && sizeof(struct direct_report) == 4096,
               "whole pages: direct_stub.S");

/* To and from the process that makes helpers. With a request go the descriptors of zone, orders, exits, with an answer
 * a pidfd. */
struct direct_request {
    uint64_t base, cookie;
    uint32_t slot, pad;
};
struct direct_answer {
    uint32_t slot;
    int32_t pid; /* or -errno */
};
#define DIRECT_BASE_MIN 0x100000000000ull /* between where programs are linked to be and where their libraries go */
#define DIRECT_BASE_SPAN 0x400000000000ull

extern const uint8_t direct_stub[], direct_stub_init[], direct_stub_handler[], direct_stub_end[];

/* --- a helper, as its vCPU sees it -------------------------------------------------- */
struct direct_space;
struct direct_proc {
    int pid, pidfd, cmd_fd, exit_fd, zone_fd;
    _Atomic uint32_t dead;  /* set by the device thread as well; everything else but the next line is then the vCPU's */
    uint32_t stage; /* of its replacement, under direct_lock */
    bool lost;      /* counted in: */
    _Atomic uint32_t *n_lost;
    struct hvx_watch *watch;
    struct bt_vm *vm;
    uint32_t slot;
    int tsc_faults;        /* RDTSC traps; -1: not known */
    uint64_t tls[DIRECT_TLS]; /* its TLS entries, as descriptors; ~0: not known */
    uint64_t cookie;
    uint64_t one; /* what the next exit must tell */
    struct direct_zone *zone; /* our mapping of it */
    uint64_t base;            /* where the helper has it */
    uint64_t uc, fp;          /* in the zone: its ucontext_t, the XSAVE area */
    uint32_t fp_size;         /* of the area without the closing magic */
    uint64_t uc_head[5], uc_mask, csgsfs; /* the kernel's own values, put back each time */
    uint8_t sw_reserved[48];
    struct direct_space *space;
    int cpu; /* of the host, where it is bound to; -1: none */
};

/* LIVE, the device thread when it has ended: DEAD, the vCPU: ASKED, the device thread: MADE (or DEAD), the vCPU:
 * LIVE. */
enum { DIRECT_LIVE, DIRECT_DEAD, DIRECT_ASKED, DIRECT_MADE };

/* 2 MiB of a space, as far as pages of it are mapped in the helper. */
struct direct_region {
    uint64_t number; /* lin >> 21 */
    uint32_t next_hash, next_space;
    uint16_t space, n_mapped;
    bool stale; /* compare before the helper runs */
    uint64_t mapped[8], writable[8], gone[8]; /* gone: still to be unmapped */
    uint64_t pte[512]; /* as mapped: address and rights, see direct_map.c */
};
#define DIRECT_REGIONS 4096u
#define DIRECT_HASH 4096u
#define DIRECT_COPIES 16u /* of a vCPU: pages with RDPID */
#define DIRECT_NO_COPY (~0ull)
#define DIRECT_SPACES 128u
#define DIRECT_PROCS_MAX 32u
#define DIRECT_MAX_PAGES 40000u /* of a helper: under the host's usual max_map_count however scattered */

/* One root of guest page tables; kept for some that have no helper, for what was learnt about them. */
struct direct_space {
    uint64_t root; /* 0: free */
    struct direct_proc *proc;
    uint64_t gen;  /* of the bt_space under which pages were last compared */
    uint64_t last; /* use */
    uint32_t regions, n_pages; /* list; mapped ones */
    bool stale;    /* some region is */
    bool forget;   /* unmap everything first */
    bool fresh;    /* its helper has just been given to it */
    bool code32;   /* what last ran natively; then pages are mapped as 32-bit code needs it */
    uint8_t flips; /* of that */
    uint8_t spoilt; /* helpers */
    uint64_t barred; /* until then soft for that */
    /* policy: direct.c */
    bool direct;
    uint8_t backoff;
    uint32_t n_entries;
    uint64_t hold, mean, credit, made;
    uint64_t seen_gen; /* of the bt_space when it last came to run */
    bool looked;       /* a sample has begun, or, while others run, is kept: */
    uint64_t sample, made_out;
    uint8_t look_at;   /* entries from one look to the next */
    bool probing; /* it has been sent back to the soft tier to see how it does there */
    uint8_t probes;
    uint32_t n_grey;
};

/* On which CPU of the host the vCPU's thread is: direct_cpu.c */
#define DIRECT_CPUS 1024u
struct direct_cpu {
    bool off;      /* it cannot be had */
    int held;      /* there, + 1; 0: it may run anywhere in mask */
    uint32_t mask_bytes;
    uint64_t since;
    uint64_t mask[DIRECT_CPUS / 64]; /* before */
};

struct bt_direct {
    unsigned n_procs;
    struct direct_cpu cpu;
    struct direct_proc proc[DIRECT_PROCS_MAX];
    struct direct_space space[DIRECT_SPACES];
    struct direct_space *current; /* of c->cr3, or NULL: not looked up */
    uint64_t clock, epoch; /* epoch: counts regions given up */
    uint32_t hash[DIRECT_HASH];
    uint32_t free_region, n_regions; /* 0 is never used */
    uint64_t copy[DIRECT_COPIES];    /* of which guest page, | 1; 0: free */
    unsigned n_copies;
    bool once;                       /* one instruction in the soft tier, then natively again */
    uint16_t rw_filter[65536];       /* how many writable pages, by hash of the address */
    uint64_t soft_page;              /* linear page that must not run natively and runs: one instruction at a time */
    bool new_code;                   /* the program has come to a page of code that its helper did not have */
    bool soft;                       /* until the program next comes from the kernel */
    uint64_t ran;                    /* cycles of the program since the kernel last let it go on */
    uint64_t hint;                   /* a page that the guest has just been asked for */
    int kick_fd;                     /* pidfd of the helper that runs */
    _Atomic uint32_t n_lost;         /* helpers to be made anew */
    uint64_t remake_look;            /* when that was last gone about */
    uint64_t remake_from;            /* replacements are paid for by time that has passed since */
    struct direct_region region[DIRECT_REGIONS];
};

/* Guest RAM that helpers can map. */
struct direct_ram {
    uintptr_t hva;
    uint64_t bytes, offset;
    int fd, helper_fd;
};

/* direct_proc.c */
int bt_direct_prepare(struct bt_vm *vm, struct hvx_error *err); /* before confinement; 0 also when the tier stays off */
void bt_direct_reset(struct bt_vcpu *c);
void bt_direct_destroy(struct bt_vm *vm);
void bt_direct_remake(struct bt_vcpu *c); /* lost helpers: a step on the way. bt_fp_save() has been called */
/* direct_helper.c */
int bt_direct_maker(const int *ram_fd, int n_ram, int *pidfd, struct hvx_error *err); /* a socket to it */
bool bt_direct_code32_works(void);
/* direct_map.c. In translated code's company: no vector registers, no libc. */
struct direct_space *bt_direct_space(struct bt_vcpu *c);
bool bt_direct_give_proc(struct bt_vcpu *c, struct direct_space *s);
void bt_direct_drop_space(struct bt_vcpu *c, struct direct_space *s);
/* Orders for what must go; false: it is another program that has these page tables now. */
bool bt_direct_compare(struct bt_vcpu *c, struct direct_space *s);
/* The space is about to run code of that kind. */
void bt_direct_width(struct bt_vcpu *c, struct direct_space *s, bool code32);
/* The program's TLS entries, and orders to give them to the helper. */
bool bt_direct_tls(struct bt_vcpu *c, struct direct_space *s, uint64_t tls[DIRECT_TLS]);
void bt_direct_unknown(struct direct_proc *p); /* some of its orders were not carried out */
int bt_direct_peek(struct bt_vcpu *c, uint64_t lin); /* the byte there, -1: none */
/* The guest has something of its own there. */
bool bt_direct_zone_taken(struct bt_vcpu *c, const struct direct_space *s);
bool bt_direct_room(struct bt_vcpu *c, struct direct_space *s);
/* Orders for what is likely to be needed. */
void bt_direct_prefetch(struct bt_vcpu *c, struct direct_space *s);
enum { DIRECT_MAPPED, DIRECT_SOFT, DIRECT_SOFT_PAGE };
/* Raises #PF when the guest has no such page. */
int bt_direct_map(struct bt_vcpu *c, struct direct_space *s, uint64_t lin, unsigned acc);
/* Orders are carried out without running the program; false: the helper is lost. */
bool bt_direct_flush_orders(struct bt_vcpu *c, struct direct_space *s);
/* Does the page at lin run from a copy? */
bool bt_direct_runs_copy(struct bt_vcpu *c, const struct direct_space *s, uint64_t lin);
/* direct_cpu.c: before and after a wait for the helper, on the vCPU's thread */
int bt_direct_meet(struct bt_vcpu *c, struct direct_proc *p);
void bt_direct_met(struct bt_vcpu *c, int cpu);
#define DIRECT_STAY_MS 50u
#define DIRECT_STAY_HALT_MS 10u /* two system calls for each halt would be too many */
void bt_direct_let_go(struct bt_vcpu *c, unsigned after_ms); /* also when there is no direct */
/* direct_copy.c; ordinary C */
int bt_direct_copies_make(struct bt_vm *vm); /* a file descriptor for helpers, or -1: there are none */
void bt_direct_copies_end(struct bt_vm *vm);
/* In a page: where the 0f of the first RDPID from `from` on is, or -1. */
int bt_direct_next_rdpid(const uint8_t *page, int from);
uint64_t bt_direct_copy(struct bt_vcpu *c, uint64_t pa, const uint8_t *page); /* where in the file, or DIRECT_NO_COPY */
/* hooks */
void bt_direct_uncopy(struct bt_vcpu *c, uint64_t pa, uint64_t n); /* the bytes change, or nobody watches them now */
void bt_direct_invlpg(struct bt_vcpu *c, uint64_t lin);
void bt_direct_drop_write(struct bt_vcpu *c, uint64_t pa);
void bt_direct_forget(struct bt_vcpu *c);          /* guest-physical memory has changed */
void bt_direct_uncode(struct bt_vcpu *c, uint64_t pa); /* drop our translations of the page, and the mark */
/* direct.c */
bool bt_direct_wanted(struct bt_vcpu *c, bool iret); /* a program is about to be entered */
bool bt_direct_run(struct bt_vcpu *c);              /* false: not now, go on in the soft tier */
bool bt_direct_wait(struct bt_vcpu *c, struct direct_proc *p, bool resume);
void bt_direct_kick(struct bt_vcpu *c);             /* async-signal-safe */
void bt_direct_lost(struct bt_vcpu *c, struct direct_proc *p, bool meddled); /* meddled: by its program's doing */

#endif
