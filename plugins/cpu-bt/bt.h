/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/bt.h - the engine's own types, shared by all its files.
 *
 * How the engine runs a guest
 *   A vCPU thread alternates between the dispatcher (run.c) and translated
 *   code in its private code cache. Guest instructions become mostly the same
 *   host instructions (translate.c, emit.h): the guest's general registers
 *   live in the same host registers but for four -
 *       guest RSP            host R13
 *       guest R13, R14, R15  memory, c->gpr[]
 *       host R14, R15        scratch, host RSP the stack of returns (cache.h) -
 *   and a memory operand goes through an inline look-up in a software TLB.
 *   Everything a block addresses lies in the low 2 GiB next to its code, so
 *   no register is spent on a base: state is reached RIP-relative or absolute.
 *
 *   Guest arithmetic flags stay in host RFLAGS, or, where a look-up had to
 *   clobber them while they were live, in c->flags_slot (AX after
 *   LAHF; SETO AL). IF, DF and the other flags live in c->iflag, c->dflag and
 *   c->sysflags.
 *
 *   Instructions that are not worth re-encoding are "C ops" (op.h): the block
 *   spills the guest's registers to c->gpr[] and calls a C function. Such a
 *   function sees a complete vCPU in *c and may raise a guest exception with
 *   bt_raise*(), which does not return: the native stack is cut back to the
 *   dispatcher, which delivers the exception.
 *
 * Live vector state
 *   Guest x87/SSE/AVX registers stay in the host's while these C functions
 *   run. So every file of the engine that translated code calls into is built
 *   with -mgeneral-regs-only and calls no libc function; before it calls
 *   anything else (core, libc, the translator) it must call bt_fp_save(c).
 *   Files so built: *.c except those that say otherwise at the top.
 *
 * Threads
 *   A struct bt_vcpu belongs to its vCPU thread. Other threads touch only the
 *   fields marked "any thread", with atomics, and then bt_kick() it.
 */
#ifndef BT_H
#define BT_H

#include <hvx/cpu.h>
#include <hvx/host.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

struct bt_vm;
struct bt_vcpu;
struct bt_cache; /* code cache and block tables of one vCPU: cache.h */
struct bt_op;    /* one decoded C op: op.h */
struct kdirect;  /* the kernel-direct tier's window: kdirect.h */
struct bt_mmu;   /* what stands behind the software TLB: mmu.h */
struct bt_direct; /* programs that run natively: direct.h */
struct direct_ram;

/* --- registers ------------------------------------------------------------ */
enum { BT_RAX, BT_RCX, BT_RDX, BT_RBX, BT_RSP, BT_RBP, BT_RSI, BT_RDI, BT_R8, BT_R13 = 13, BT_R14, BT_R15 };
enum { BT_ES, BT_CS, BT_SS, BT_DS, BT_FS, BT_GS, BT_NSEG };

#define BT_CF 0x0001u
#define BT_PF 0x0004u
#define BT_AF 0x0010u
#define BT_ZF 0x0040u
#define BT_SF 0x0080u
#define BT_TF 0x0100u
#define BT_IF 0x0200u
#define BT_DF 0x0400u
#define BT_OF 0x0800u
#define BT_IOPL 0x3000u
#define BT_NT 0x4000u
#define BT_RF 0x10000u
#define BT_VM 0x20000u
#define BT_AC 0x40000u
#define BT_VIF 0x80000u
#define BT_VIP 0x100000u
#define BT_ID 0x200000u
#define BT_ARITH (BT_CF | BT_PF | BT_AF | BT_ZF | BT_SF | BT_OF)

#define BT_CR0_PE 1u
#define BT_CR0_MP 2u
#define BT_CR0_EM 4u
#define BT_CR0_TS 8u
#define BT_CR0_NE 0x20u
#define BT_CR0_WP 0x10000u
#define BT_CR0_AM 0x40000u
#define BT_CR0_PG 0x80000000u
#define BT_CR4_VME 1u
#define BT_CR4_PVI 2u
#define BT_CR4_TSD 4u
#define BT_CR4_DE 8u
#define BT_CR4_PSE 0x10u
#define BT_CR4_PAE 0x20u
#define BT_CR4_MCE 0x40u
#define BT_CR4_PGE 0x80u
#define BT_CR4_PCE 0x100u
#define BT_CR4_OSFXSR 0x200u
#define BT_CR4_OSXMMEXCPT 0x400u
#define BT_CR4_UMIP 0x800u
#define BT_CR4_LA57 0x1000u
#define BT_CR4_FSGSBASE 0x10000u
#define BT_CR4_PCIDE 0x20000u
#define BT_CR4_OSXSAVE 0x40000u
#define BT_CR4_SMEP 0x100000u
#define BT_CR4_SMAP 0x200000u
#define BT_EFER_SCE 1u
#define BT_EFER_LME 0x100u
#define BT_EFER_LMA 0x400u
#define BT_EFER_NXE 0x800u

enum {
    BT_EX_DE = 0, BT_EX_DB, BT_EX_NMI, BT_EX_BP, BT_EX_OF, BT_EX_BR, BT_EX_UD, BT_EX_NM, BT_EX_DF,
    BT_EX_TS = 10, BT_EX_NP, BT_EX_SS, BT_EX_GP, BT_EX_PF, BT_EX_MF = 16, BT_EX_AC, BT_EX_MC, BT_EX_XM,
};

/* c->mode: all that a translation depends on besides the bytes. */
#define BT_MODE_CPL 0x3u
#define BT_MODE_CODE16 0x0u
#define BT_MODE_CODE32 0x4u
#define BT_MODE_CODE64 0x8u
#define BT_MODE_CODE 0xcu
#define BT_MODE_SS32 0x10u    /* SS.B; not set in 64-bit code */
#define BT_MODE_FLAT 0x20u    /* 16/32-bit code: CS ES SS DS have base 0 and limit 4 GiB, DS ES SS writable */
#define BT_MODE_PE 0x40u
#define BT_MODE_VM86 0x80u
#define BT_MODE_TF 0x100u     /* single step: one instruction per block */
#define BT_MODE_NOFPU 0x200u  /* CR0.EM or CR0.TS: x87 raises #NM */
#define BT_MODE_NOSSE 0x400u  /* CR4.OSFXSR clear: SSE raises #UD */
#define BT_MODE_NOAVX 0x800u  /* CR4.OSXSAVE or XCR0 forbid AVX: #UD */
#define BT_MODE_NOAVX512 0x1000u
#define BT_MODE_EM 0x2000u    /* CR0.EM: SSE raises #UD, not #NM */
#define BT_MODE_CAREFUL 0x4000u /* one instruction, memory only through C, bounce buffer committed after it */
#define BT_MODE_SINGLE 0x8000u  /* one instruction */
#define BT_MODE_FSGSBASE 0x10000u
#define BT_MODE_CS0 0x20000u  /* CS base is 0 */
#define BT_MODE_TSD 0x80000u /* CR4.TSD at CPL 3: RDTSC raises #GP */
#define BT_MODE_PLAIN 0x40000000u /* a look-up for each access */
#define BT_MODE_MPTS 0x40000u /* CR0.MP and CR0.TS: WAIT raises #NM */

/* --- the software TLB: one table for supervisor, one for user accesses ------ */
#define BT_TLB_BITS 12
#define BT_TLB_SIZE (1u << BT_TLB_BITS)
struct bt_tlb_entry {
    uint64_t tag_r; /* gva of the page when it can be read, else never matches */
    uint64_t tag_w; /* likewise for stores: writable, dirty set, no translated code */
    uint64_t host;  /* hva of the page */
    uint64_t pa;    /* gpa of the page | BT_TLB_* */
};
#define BT_TLB_GLOBAL 1u
#define BT_TLB_LISTED 2u /* in the list of entries that a CR3 load clears */

#define BT_JC_SIZE (1u << 18) /* entries of a jump cache: bt_jc_index() */

/* Functions begin at multiples of 16, and large programs are many times that size: the upper bits spread them. */
#define BT_JC_SHIFT 14
static inline uint32_t bt_jc_index(uint64_t rip)
{
    return ((uint32_t)rip ^ (uint32_t)rip >> BT_JC_SHIFT) & (BT_JC_SIZE - 1);
}

/* --- a vCPU ------------------------------------------------------------------ */
struct bt_vcpu {
    /* Addressed by translated code; keep this part together (cache lines). */
    uint64_t gpr[16]; /* complete outside translated code; inside only r13..r15 are current */
    uint64_t rip;     /* EIP/RIP; the linear address is rip + seg[CS].base in 16/32-bit code */
    uint32_t flags_slot; /* AX after LAHF; SETO AL: low byte OF, high byte SF ZF AF PF CF */
    uint8_t iflag;    /* IF, 0 or 1 */
    uint8_t dflag;    /* DF, 0 or 1 */
    uint8_t in_code;  /* where we are, for the signal handler: stubs.c; 3: a helper runs the program (direct.h) */
    uint8_t fp_live;  /* guest vector state is in the host's registers */
    uint32_t sysflags; /* TF IOPL NT RF VM AC VIF VIP ID at their places; bit 1 always set */
    uint32_t mode;    /* BT_MODE_*, see bt_mode_update() */
    uint64_t gs_window; /* seg_base[BT_GS] in the window: kdirect.h */
    uint64_t seg_base[6]; /* copies for translated code, by BT_ES.. ; kept by bt_seg_update() */
    /* last valid offset for reads / writes; 0 with base_ok clear -> always slow */
    uint32_t seg_rlimit[6], seg_wlimit[6];
    uint64_t op_ea;   /* effective address (offset inside its segment) of the current C op's memory operand */
    _Atomic uint32_t pending; /* BT_PEND_*; any thread sets bits */
    uint32_t cur_exit; /* why translated code came back: BT_X_* */
    uint64_t exit_arg;
    uint64_t host_rsp; /* native stack of the dispatcher, on which C runs */
    uint64_t ret_sp;   /* the stack of returns while C runs: cache.h */
    uint64_t tmp[5]; /* [4]: of the glue */
    uint64_t stk_tag[2]; /* one-entry TLB for the stack, [0] supervisor [1] user: as tag_w */
    uint64_t stk_host[2];
    uint64_t stk_rtag[2]; /* as tag_r */
    uint64_t group_delta[40]; /* of the running block's groups: host minus guest address (gen_group.c) */
    uint64_t flags_of[2]; /* operands for it */
    uint32_t flags_fn;    /* after an indirect exit: code that makes the flags in RFLAGS; clobbers r15 */

    /* Architectural state, C code only. attr as in struct hvx_segment
     * (descriptor bits 40..55, bit 8 = unusable/null). */
    struct hvx_segment seg[6], ldtr, tr;
    uint64_t gdt_base, idt_base;
    uint32_t gdt_limit, idt_limit;
    uint64_t cr0, cr2, cr3, cr4, efer, xcr0, xss;
    uint64_t dr[8];
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux, pat, misc_enable;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t tsc_offset; /* guest TSC = bt_tsc_scale(host TSC) + offset */
    uint64_t mtrr[32];   /* fixed and variable MTRRs as written: index is msr.c's */
    uint64_t mtrr_def;
    uint64_t mcg_status, spec_ctrl;
    struct { uint64_t system_time, wall_clock; } pv; /* KVM's clock: paravirt.c */
    uint8_t pv_unhalt; /* a kick by hypercall ends the present or the next HLT */
    uint8_t cpl;
    uint8_t nmi_masked, nmi_held;
    uint8_t halted;     /* in HLT */
    uint8_t wait_sipi;
    uint8_t shadow;     /* interrupts held off for one instruction (1 STI, 2 MOV SS) - dispatcher only */
    uint8_t force_careful, force_single; /* next block: one instruction */
    uint8_t force_plain; /* next block: BT_MODE_PLAIN */
    uint32_t tlb_drops;  /* counts what took something out of the TLB */
    uint8_t debug_step;
    uint8_t marking;    /* a page is being marked: no request takes a mark away */
    uint8_t kd_started; /* this thread's GS base is the window's */
    uint32_t kd_again;  /* how often the same access has faulted in a row */
    uint64_t kd_last;
    uint8_t leave_after; /* one instruction of a page that must not run natively: then bt_direct_run() once more */
    uint8_t trap_after; /* the instruction that runs began under TF: its trap comes though it clear TF (IRET, POPF) */
    uint8_t irq_wait;   /* an interrupt waits for IF: whoever sets IF sets BT_PEND_IRQ */
    uint64_t pdpte[4];  /* PAE paging without long mode */
    uint64_t cr4_valid;   /* CR4 bits the CPU model has; 0: not computed yet (op_cr.c) */
    uint64_t phys_mask;   /* address bits the CPU model has; 0: not computed yet */
    /* 1: INT n, SYSCALL or SYSRET has cleared TF: no #DB after it; 2: SYSRET set TF: #DB at once */
    uint8_t int_done;
    uint8_t bp_exec, bp_data; /* DR0..3 that DR7 enables for fetches / for data: debug.c; BT_BP_* */
    uint8_t ferr;         /* an x87 exception while CR0.NE is clear: run.c */
    uint8_t bp_hit;       /* data breakpoints met by the current instruction */
    struct bt_debugger { /* who debugs from outside: debug.c */
        uint8_t step, any_exec, any_data, pad;
        uint32_t hit; /* 1 + the point met, 0 none */
        uint32_t n;
        struct hvx_debug_point point[HVX_DEBUG_MAX_POINTS];
    } dbg;
    /* XSAVE components, standard offsets; filled on first use (op_fpu.c) */
    struct { uint16_t off, size; uint32_t align; } xcomp[10];

    /* exception being raised (bt_raise) and exception being delivered */
    struct { uint8_t vector, has_error, valid, is_int; uint32_t error; } exc;
    int16_t delivering; /* vector being delivered, -1 none: for double faults */
    struct { uint8_t valid, has_error, vector; uint32_t error; } inject; /* from vcpu_set */

    /* bounce buffer for accesses that cannot be done in place */
    struct {
        uint64_t lin;
        uint32_t size;
        uint8_t active; /* commit after the instruction */
        uint8_t pad[3];
        __attribute__((aligned(64))) uint8_t buf[4096 + 64];
    } bounce;
    /* Four host pages - none, read-write, none, none - where a masked vector
     * operand is put whose guest pages are not all accessible: the host finds
     * out whether an active element touches a bad one (slow.c). */
    struct {
        uint8_t *base;
        uint64_t host, lin; /* of the operand's first byte */
        uint32_t split;     /* bytes before the page border */
        uint32_t error[2];  /* of a fault on the first, the second page */
        uint8_t vector[2];
        uint8_t commit;     /* bounce.buf is to be filled from `from` */
        const uint8_t *from;
    } window;

    unsigned index;
    uint32_t apic_id;
    struct bt_vm *vm;
    const struct hvx_host *host;
    struct bt_cache *cache;
    struct trans *trans; /* translator, trans.h */
    struct bt_perf_map *perf_map; /* option perf-map: perf_map.c */
    struct bt_mmu *mmu;
    struct bt_direct *direct; /* NULL: the user-direct tier is off */
    uint64_t user_from; /* host's counter when a program was let go on, 0: it has come back. Samples: direct.c */
    uint64_t user_ran;  /* how long it ran then */
    struct bt_apic *apic; /* apic.c */
    struct bt_tlb_entry *tlb[2];  /* [0] supervisor, [1] user */
    uint32_t *jc[2];              /* jump caches, likewise */
    uint32_t jc_mode;             /* mode the user jump cache was filled under */
    uint8_t *region;              /* the low-2-GiB block that holds this struct, TLBs, caches, code */
    size_t region_size;
    pthread_t thread;
    int tid;
    _Atomic uint32_t quiescent;   /* 1: holds no guest translation, need not be waited for */
    timer_t timer;                /* APIC timer -> kick signal on this thread */
    uint32_t has_timer;

    /* statistics, written by the owner */
    struct {
        uint64_t blocks, traces, retranslations, moved, chains, dispatches, c_ops, tlb_miss[2], tlb_flush,
            tlb_flush_global, invlpg;
        uint64_t slow_accesses, bounces, careful, mmio, pio, smc_invalidations, cache_flushes, exceptions, page_faults,
            interrupts;
        uint64_t direct_entries, direct_cycles, direct_syscalls, direct_faults, direct_kicks, direct_held, direct_soft,
            direct_left, direct_maps, direct_pages, direct_unmaps, direct_compares, direct_uncoded, direct_failures,
            direct_lost, direct_killed, direct_meddled, direct_remade, direct_copies;
        uint64_t warm_loaded, warm_kept, warm_lost, warm_differs, warm_cycles;
        uint64_t kd_maps, kd_faults, kd_soft, kd_unmaps, kd_checks;
        uint64_t kicks, unchains, halts, jc_miss, inline_miss, inline_learnt, inline_opened, code_bytes, syscalls,
            cr3_loads, insns_translated, translate_cycles, sync_requests;
    } st;

    __attribute__((aligned(64))) uint8_t xsave[HVX_XSAVE_MAX]; /* guest x87/SSE/AVX state while !fp_live */
};

/* c->pending: what the dispatcher must look at before it enters a block. */
#define BT_BP_IO 4u      /* in bp_exec, shift: those for ports */
#define BT_BP_ALIGN 0x40u /* in bp_data: accesses are looked at for #AC */

#define BT_PEND_KICK 1u   /* leave vcpu_run */
#define BT_PEND_IRQ 2u    /* local APIC or PIC may have an interrupt */
#define BT_PEND_NMI 4u
#define BT_PEND_SYNC 8u   /* requests from other vCPUs: sync.c */
#define BT_PEND_TIMER 16u /* APIC timer expired */
#define BT_PEND_INIT 32u
#define BT_PEND_SIPI 64u
#define BT_PEND_FLUSH 128u /* drop all translations and TLBs */
#define BT_PEND_UNHALT 256u /* paravirt.c: another vCPU kicked us out of HLT */

/* --- the VM -------------------------------------------------------------------- */
struct bt_page_chunk; /* 1 GiB of guest-physical pages: phys.c */
struct bt_vm {
    struct hvx_vm *hvm;
    const struct hvx_host *host;
    unsigned n_vcpus;
    struct bt_vcpu *vcpu[HVX_MAX_VCPUS];
    struct bt_page_chunk *_Atomic chunk[1024]; /* gpa >> 30 */
    struct hvx_mem_slot slots[64];
    unsigned n_slots;
    struct bt_irqchip *irqchip; /* PICs and I/O APIC: pic.c, ioapic.c */
    struct bt_cpuid *cpuid;     /* the CPU model: cpuid.c */
    uint64_t tsc_hz;            /* of the guest's TSC */
    uint64_t host_tsc_hz;       /* 0: not measured, taken to be the guest's */
    uint64_t tsc_ratio;         /* guest's rate / host's, 48 bits of fraction; 0: they are the same */
    pthread_mutex_t lock;       /* slots, sync */
    uint64_t host_xcr0;         /* features saved by bt_fp_save: x87 SSE AVX AVX-512 */
    struct bt_syncq *syncq;     /* sync.c */
    bool have_bmi2;
    int perf_map_fd;            /* -1: option perf-map is off */
    _Atomic uint64_t perf_map_bytes;
    bool amd;                   /* CPUID shows a processor of AMD's */
    bool host_amd;              /* the host's is one */
    uint32_t mxcsr_mask;        /* bits that the host's MXCSR has; bit 17, MM, is AMD's */
    bool direct_kernel, direct_user; /* option direct; user: programs may run natively */
    struct kdirect *kd;         /* NULL: off */
    const char *warm_path;      /* option translation-cache */
    bool warm_verify;
    struct bt_warm *warm;       /* NULL: no translation-cache (warm.h) */
    bool hypercalls;            /* VMCALL and VMMCALL are not #UD */
    bool direct_eager;          /* at once and always: for tests */
    bool direct_rdpid;          /* and RDPID must not */
    uint8_t *direct_copies;     /* pages with RDPID: direct_copy.c */
    int direct_copies_fd;       /* as helpers have them */
    bool direct32;              /* 32-bit ones as well */
    unsigned direct_helpers;    /* processes a vCPU */
    struct direct_ram *direct_ram;
    unsigned n_direct_ram;
    pthread_mutex_t direct_lock; /* stage of helpers */
    int direct_maker_fd, direct_maker_pidfd; /* makes helpers: direct_helper.c */
    struct hvx_watch *direct_maker_watch;
};

/* --- rflags ----------------------------------------------------------------------
 * Valid while C code runs (flags are in the slot). */
static inline uint32_t bt_slot_to_flags(uint32_t slot) { return ((slot >> 8) & 0xd5u) | ((slot & 1u) << 11); }
static inline uint32_t bt_flags_to_slot(uint32_t f) { return ((f & 0xd5u) << 8) | 0x200u | ((f >> 11) & 1u); }
static inline uint32_t bt_rflags(const struct bt_vcpu *c)
{
    return bt_slot_to_flags(c->flags_slot) | c->sysflags | ((uint32_t)c->iflag << 9) | ((uint32_t)c->dflag << 10) | 2u;
}
/* Sets every flag; the caller has applied its masks. Call bt_mode_update()
 * when TF or VM may have changed. */
static inline void bt_set_rflags(struct bt_vcpu *c, uint32_t f)
{
    c->flags_slot = bt_flags_to_slot(f);
    c->iflag = (f >> 9) & 1;
    c->dflag = (f >> 10) & 1;
    c->sysflags = (f & (BT_TF | BT_IOPL | BT_NT | BT_RF | BT_VM | BT_AC | BT_VIF | BT_VIP | BT_ID)) | 2u;
}
static inline bool bt_long_mode(const struct bt_vcpu *c) { return (c->efer & BT_EFER_LMA) != 0; }
static inline bool bt_code64(const struct bt_vcpu *c) { return (c->mode & BT_MODE_CODE) == BT_MODE_CODE64; }
static inline bool bt_pe(const struct bt_vcpu *c) { return (c->cr0 & BT_CR0_PE) != 0; }
static inline bool bt_vm86(const struct bt_vcpu *c) { return (c->sysflags & BT_VM) != 0; }
static inline unsigned bt_iopl(const struct bt_vcpu *c) { return (c->sysflags >> 12) & 3; }

/* --- exceptions: never return (run.c) ------------------------------------------------
 * c->rip must be the faulting instruction's (traps: the next one's). In a C op
 * it is set up already; helpers of translated code recover it from the return
 * address. */
_Noreturn void bt_raise(struct bt_vcpu *c, unsigned vector);
_Noreturn void bt_raise_err(struct bt_vcpu *c, unsigned vector, uint32_t error);
_Noreturn void bt_raise_pf(struct bt_vcpu *c, uint64_t lin, uint32_t error); /* sets CR2 */
/* Go back to the dispatcher as if the instruction had not started. */
_Noreturn void bt_restart(struct bt_vcpu *c);
/* The engine itself cannot go on. */
_Noreturn void bt_fatal(struct bt_vcpu *c, const char *why);
_Noreturn void bt_shutdown(struct bt_vcpu *c); /* triple fault */

/* --- guest memory by linear address (mmu.c): raise #PF, go to MMIO, handle page
 * crossing and translated code. acc: */
#define BT_ACC_WRITE 1u
#define BT_ACC_USER 2u   /* as CPL 3; otherwise supervisor (implicit descriptor-table and stack accesses) */
#define BT_ACC_FETCH 4u
uint64_t bt_read(struct bt_vcpu *c, uint64_t lin, unsigned size, unsigned acc); /* size 1 2 4 8 */
void bt_write(struct bt_vcpu *c, uint64_t lin, unsigned size, uint64_t v, unsigned acc);
void bt_read_bytes(struct bt_vcpu *c, uint64_t lin, void *buf, size_t n, unsigned acc);
void bt_write_bytes(struct bt_vcpu *c, uint64_t lin, const void *buf, size_t n, unsigned acc);
/* Raise #PF now if any byte could not be accessed; later accesses then succeed. */
void bt_probe(struct bt_vcpu *c, uint64_t lin, size_t n, unsigned acc);
/* hva for n bytes at lin inside one page if it is plain RAM, else NULL (use
 * bt_read/bt_write). May raise #PF. With WRITE, code on the page has been
 * invalidated for these bytes. */
void *bt_host_ptr(struct bt_vcpu *c, uint64_t lin, size_t n, unsigned acc);
static inline unsigned bt_acc(const struct bt_vcpu *c) { return c->cpl == 3 ? BT_ACC_USER : 0; }
/* Segmented address to linear: checks presence, type, limit, canonical form for
 * n bytes; raises #GP/#SS. */
uint64_t bt_seg_lin(struct bt_vcpu *c, unsigned seg, uint64_t off, size_t n, bool write);

void bt_tlb_flush_all(struct bt_vcpu *c);       /* global entries too */
void bt_tlb_flush_nonglobal(struct bt_vcpu *c); /* of the current address space: CR3 load */
void bt_tlb_invlpg(struct bt_vcpu *c, uint64_t lin);
/* Process-context identifiers. The current one is c->cr3's; switch: CR3 has
 * just been loaded, keep says that what is known of its PCID stays valid. The
 * others: INVPCID. */
void bt_tlb_switch(struct bt_vcpu *c, bool keep);
void bt_tlb_flush_pcid(struct bt_vcpu *c, unsigned pcid);                 /* without global entries */
void bt_tlb_invlpg_pcid(struct bt_vcpu *c, unsigned pcid, uint64_t lin);
void bt_tlb_flush_pcids(struct bt_vcpu *c);                               /* all, without global entries */

/* --- after changes of state ------------------------------------------------------------ */
void bt_seg_update(struct bt_vcpu *c, unsigned seg); /* after c->seg[seg] changed: copies for translated code */
void bt_mode_update(struct bt_vcpu *c);              /* after CS, SS, CPL, CR0, CR4, EFER, XCR0, TF, VM, DR7 changed */

/* --- hardware breakpoints (debug.c). While any is enabled the guest runs one
 * instruction at a time, memory through C. */
/* Does misalignment raise #AC? Programs seldom ask for it, so it is done as breakpoints are. */
static inline bool bt_aligning(const struct bt_vcpu *c)
{
    return (c->sysflags & BT_AC) && (c->cr0 & BT_CR0_AM) && c->cpl == 3;
}
static inline bool bt_stepping(const struct bt_vcpu *c)
{
    return (c->sysflags & BT_TF) || c->debug_step || c->bp_exec || (c->bp_data & ~BT_BP_ALIGN) || c->dbg.step ||
           bt_aligning(c);
}
void bt_debug_update(struct bt_vcpu *c);
int bt_debug_set(struct bt_vcpu *c, const struct hvx_debug *d);
bool bt_debug_stops_at(struct bt_vcpu *c, uint64_t lin); /* for the translator: a block of its own */
uint32_t bt_debug_exec(struct bt_vcpu *c, uint64_t lin); /* DR6 bits for an instruction about to run */
void bt_debug_data(struct bt_vcpu *c, uint64_t lin, uint64_t n, unsigned acc); /* notes hits; may raise #AC */
void bt_debug_align(struct bt_vcpu *c, uint64_t lin, uint64_t n, unsigned acc); /* may raise #AC */
void bt_debug_io(struct bt_vcpu *c, uint32_t port, uint64_t n); /* notes hits */

/* --- host calls -------------------------------------------------------------------------- */
void bt_fp_save(struct bt_vcpu *c); /* guest vector state to c->xsave; C code may then use any register and libc */
void bt_kick(struct bt_vcpu *c, uint32_t pend); /* any thread: set bits, get the vCPU to its dispatcher */

/* --- op.c and friends: see op.h ------------------------------------------------------------- */
/* Deliver vector through the IVT/IDT; soft: INT n, INT3, INTO (c->rip already
 * the next instruction). May raise again (double fault logic in run.c). */
void bt_deliver(struct bt_vcpu *c, unsigned vector, bool soft, bool has_error, uint32_t error);

/* --- irqchip (apic.c ioapic.c pic.c) ------------------------------------------------------------ */
int bt_irqchip_create(struct bt_vm *vm);
void bt_irqchip_destroy(struct bt_vm *vm);
void bt_irqchip_reset(struct bt_vm *vm);
int bt_irqchip_state(struct bt_vm *vm, struct hvx_stream *s);
void bt_irq_line(struct bt_vm *vm, unsigned gsi, bool level); /* any thread */
void bt_irq_tick(struct bt_vm *vm, unsigned gsi, unsigned n); /* likewise; see irq_tick of hvx_cpu_ops */
void bt_msi(struct bt_vm *vm, uint64_t addr, uint32_t data);  /* any thread */
int bt_apic_create(struct bt_vcpu *c);
void bt_apic_destroy(struct bt_vcpu *c);
void bt_apic_reset(struct bt_vcpu *c, bool init); /* init: INIT IPI, keeps apic_base and id */
/* Owner thread. Is an interrupt ready (IF not considered)? -1 or its vector, not yet acknowledged. */
int bt_irq_ready(struct bt_vcpu *c);
int bt_irq_ack(struct bt_vcpu *c); /* take it: vector (PIC spurious handled), -1 if gone */
void bt_apic_timer_expired(struct bt_vcpu *c); /* BT_PEND_TIMER handled */
/* Ports 0x20/0x21/0xa0/0xa1/0x4d0/0x4d1: true when it was ours. */
bool bt_irqchip_pio(struct bt_vcpu *c, uint16_t port, unsigned size, bool write, uint32_t *value);
/* MMIO of the local APIC page and the I/O APIC: true when it was ours. Cheap no otherwise. */
bool bt_irqchip_mmio(struct bt_vcpu *c, uint64_t gpa, unsigned size, bool write, uint64_t *value);
/* x2APIC MSRs 0x800-0x83f, IA32_APIC_BASE (0x1b), TSC_DEADLINE (0x6e0): false -> #GP. */
bool bt_apic_msr(struct bt_vcpu *c, uint32_t index, bool write, uint64_t *value);
uint64_t bt_apic_get_tpr(struct bt_vcpu *c); /* CR8 */
void bt_apic_set_tpr(struct bt_vcpu *c, uint64_t cr8);
void bt_apic_get(struct bt_vcpu *c, struct hvx_vcpu_regs *r); /* apic page, base, deadline */
void bt_apic_set(struct bt_vcpu *c, const struct hvx_vcpu_regs *r);

/* --- cpuid.c, msr.c ------------------------------------------------------------------------------------ */
/* "host", or as `hvx run --cpu` takes it: cpu_models.c. May set vm->tsc_hz. */
int bt_cpuid_create(struct bt_vm *vm, const char *model, struct hvx_error *err);
uint64_t bt_pv_hypercall(struct bt_vcpu *c, uint64_t nr, const uint64_t a[4]); /* paravirt.c; the result */
void bt_cpuid_destroy(struct bt_vm *vm);
/* eax ebx ecx edx; allocation-free, no syscalls, no host CPUID */
void bt_cpuid(struct bt_vcpu *c, uint32_t leaf, uint32_t sub, uint32_t out[4]);
bool bt_cpuid_has_x2apic(const struct bt_vm *vm);
bool bt_rdmsr(struct bt_vcpu *c, uint32_t index, uint64_t *value); /* false -> #GP */
bool bt_wrmsr(struct bt_vcpu *c, uint32_t index, uint64_t value);
void bt_msr_reset(struct bt_vcpu *c);
static inline uint64_t bt_host_tsc(void)
{
    uint32_t lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (uint64_t)hi << 32 | lo;
}
uint64_t bt_host_tsc_hz(void); /* tsc.c: measured, takes some 20 ms; not from translated code */
/* A host's count at the guest's rate; c->tsc_offset comes on top. */
static inline uint64_t bt_tsc_scale(const struct bt_vm *vm, uint64_t host)
{
    return vm->tsc_ratio ? (uint64_t)((unsigned __int128)host * vm->tsc_ratio >> 48) : host;
}
void bt_tsc_scale_init(struct bt_vm *vm); /* cpuid.c: tsc_hz and host_tsc_hz are known */
/* A program comes to the kernel. */
static inline void bt_user_left(struct bt_vcpu *c)
{
    if (c->user_from) {
        c->user_ran = bt_host_tsc() - c->user_from;
        c->user_from = 0;
    }
}
static inline uint64_t bt_guest_tsc(const struct bt_vcpu *c)
{
    return bt_tsc_scale(c->vm, bt_host_tsc()) + c->tsc_offset;
}

#endif
