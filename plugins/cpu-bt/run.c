/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/run.c - the dispatcher: pending work, interrupts, exceptions,
 * halting; and the short cuts from block to block that do not need it.
 */
#include "run.h"
#include "sys.h"
#include "apic.h"
#include "cache.h"
#include "direct.h"
#include "phys.h"
#include "translate.h"
#include "warm.h"
#include <linux/futex.h>
#include <sys/syscall.h>


static inline long sys4(long nr, long a, long b, long c, long d)
{
    long ret;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return ret;
}
static inline long sys3(long nr, long a, long b, long c) { return sys4(nr, a, b, c, 0); }

/* --- vector state ------------------------------------------------------------------ */
void bt_fp_save(struct bt_vcpu *c)
{
    if (!c->fp_live)
        return;
    uint32_t lo = (uint32_t)c->vm->host_xcr0, hi = (uint32_t)(c->vm->host_xcr0 >> 32), mxcsr = 0x1f80;
    __asm__ volatile("xsave64 %0" : "+m"(c->xsave) : "a"(lo), "d"(hi) : "memory");
    __asm__ volatile("fninit; ldmxcsr %0" : : "m"(mxcsr));
    c->fp_live = 0;
}

/* --- kicks ---------------------------------------------------------------------------- */
void bt_kick(struct bt_vcpu *c, uint32_t pend)
{
    uint32_t old = atomic_fetch_or(&c->pending, pend);
    if ((old & pend) == pend || bt_thread_is(c) || !c->tid)
        return;
    if (atomic_load(&c->quiescent))
        sys3(SYS_futex, (long)&c->pending, FUTEX_WAKE_PRIVATE, 1);
    else
        sys3(SYS_tgkill, sys3(SYS_getpid, 0, 0, 0), c->tid, BT_SIG_KICK);
}

/* --- raising ----------------------------------------------------------------------------- */
static _Noreturn void unwind(struct bt_vcpu *c)
{
    struct bt_cache *k = c->cache;
    if (k->helper_ret) {
        uint64_t rip;
        if (bt_host_to_rip(c, k->helper_ret - 1, &rip))
            c->rip = rip;
        k->helper_ret = 0;
    }
    c->in_code = 0;
    __builtin_longjmp((void **)k->jmpbuf, 1);
}

static _Noreturn void raise_exc(struct bt_vcpu *c, unsigned vector, bool has_error, uint32_t error)
{
    c->exc.vector = (uint8_t)vector;
    c->exc.has_error = has_error;
    c->exc.error = error;
    c->exc.valid = 1;
    c->force_careful = c->force_single = 0;
    unwind(c);
}
_Noreturn void bt_raise(struct bt_vcpu *c, unsigned vector) { raise_exc(c, vector, false, 0); }
_Noreturn void bt_raise_err(struct bt_vcpu *c, unsigned vector, uint32_t error) { raise_exc(c, vector, true, error); }
_Noreturn void bt_raise_pf(struct bt_vcpu *c, uint64_t lin, uint32_t error)
{
    c->cr2 = lin;
    raise_exc(c, BT_EX_PF, true, error);
}
_Noreturn void bt_restart(struct bt_vcpu *c) { unwind(c); }
_Noreturn void bt_careful_c(struct bt_vcpu *c)
{
    c->st.careful++;
    c->force_careful = 1;
    unwind(c);
}
_Noreturn void bt_shutdown(struct bt_vcpu *c)
{
    c->cur_exit = BT_X_SHUTDOWN;
    unwind(c);
}
_Noreturn void bt_fatal(struct bt_vcpu *c, const char *why)
{
    c->cur_exit = BT_X_FATAL;
    c->exit_arg = (uintptr_t)why;
    unwind(c);
}

/* --- from block to block ------------------------------------------------------------------- */
static bool must_leave(struct bt_vcpu *c)
{
    return atomic_load_explicit(&c->pending, memory_order_relaxed) || c->shadow || c->halted || c->force_single ||
           c->force_careful || (c->mode & BT_MODE_TF) || c->trap_after || c->leave_after;
}

/* A jump cache serves one mode at a time, and so does a stack of returns. */
static inline void jc_check(struct bt_vcpu *c, unsigned t)
{
    struct bt_cache *k = c->cache;
    uint64_t base = bt_code64(c) ? 0 : c->seg_base[BT_CS];
    if (k->ret_table != t) {
        k->ret_saved[k->ret_table] = c->ret_sp;
        c->ret_sp = k->ret_saved[t];
        k->ret_table = t;
    }
    if (k->jc_mode[t] != c->mode || k->jc_cs_base[t] != base) {
        bt_jc_flush(c, t);
        k->jc_mode[t] = c->mode;
        k->jc_cs_base[t] = base;
    }
}

static struct bt_block *find(struct bt_vcpu *c, uint32_t mode)
{
    uint64_t base = bt_code64(c) ? 0 : c->seg_base[BT_CS], lin = c->rip + base, pa, pa2;
    if (!bt_code64(c))
        lin = (uint32_t)lin;
    bt_code_page(c, lin, &pa);
    if (c->cpl == 3)
        bt_ucode_enter(c, lin, pa);
    struct bt_block *b = bt_block_find(c, pa, c->rip, mode, base);
    if (!b)
        return bt_block_moved(c, pa, c->rip, mode);
    if (b->pa2) {
        uint64_t next = (lin & ~0xfffull) + 4096;
        bt_code_page(c, bt_code64(c) ? next : (uint32_t)next, &pa2);
        if (pa2 != b->pa2) { /* the tail is another page now */
            bt_block_drop(c, b);
            return NULL;
        }
    }
    return b;
}

uint64_t bt_next_c(struct bt_vcpu *c)
{
    struct bt_cache *k = c->cache;
    c->cur_exit = BT_X_DONE;
    if (must_leave(c))
        return k->stub_leave;
    unsigned t = c->cpl == 3;
    c->st.jc_miss++;
    jc_check(c, t);
    struct bt_block *b = find(c, c->mode);
    if (!b)
        return k->stub_leave;
    bt_jc_set(c, t, c->rip, b);
    return b->ind;
}

/* Exit x of block `from` is taken often, it seems: make the block anew, so that it goes on there. */
static void trace(struct bt_vcpu *c, struct bt_exit *x, struct bt_block *from)
{
    x->heat = BT_HOT;
    if (from->dead || from->mode != c->mode || !bt_cache_room(c))
        return;
    const uint8_t *host = (const uint8_t *)(bt_phys_page(c->vm, from->pa) & ~(uintptr_t)0xfff) + (from->pa & 0xfff);
    unsigned bit = 1u << x->branch, follow = from->follow;
    if (x->branch != BT_NO_BRANCH)
        follow = (follow & (bit - 1)) | bit; /* the other branches behind it will be others */
    follow |= BT_TRACE;
    if (follow == from->follow) { /* all that it can be */
        x->heat = 0;
        return;
    }
    bt_fp_save(c);
    bt_block_drop(c, from);
    bt_translate(c, from->rip, from->mode, from->pa, host, follow);
    c->st.traces++;
}

uint64_t bt_exit_c(struct bt_vcpu *c, uint32_t exit)
{
    struct bt_cache *k = c->cache;
    struct bt_exit *x = &k->exits[exit];
    struct bt_block *from = &k->blocks[x->from];
    c->rip = x->target;
    c->cur_exit = BT_X_DONE;
    if (must_leave(c)) {
        if (x->heat && x->to && !--x->heat) /* chained: it is a kick that brings us here */
            trace(c, x, from);
        return k->stub_leave;
    }
    struct bt_block *b = find(c, c->mode | (x->plain ? BT_MODE_PLAIN : 0));
    /* It may have been moved itself: then the exit is another one. */
    bool usual = !from->dead && x->target == c->rip && (from->mode & ~BT_MODE_PLAIN) == c->mode;
    if (!b) {
        k->chain_exit = usual ? exit : 0;
        c->force_plain = x->plain;
        return k->stub_leave;
    }
    if (usual)
        bt_chain(c, exit, b);
    return b->a;
}

/* An inline cache that has not seen c->rip before, or is not chained. */
uint64_t bt_inline_c(struct bt_vcpu *c, uint32_t exit)
{
    struct bt_cache *k = c->cache;
    struct bt_exit *x = &k->exits[exit];
    struct bt_block *from = &k->blocks[x->from];
    uint64_t at = from->rip;
    c->cur_exit = BT_X_DONE;
    if (must_leave(c))
        return k->stub_leave;
    c->st.inline_miss++;
    jc_check(c, c->cpl == 3);
    struct bt_block *b = find(c, c->mode);
    if (!b)
        return k->stub_leave; /* next time */
    /* rip: it may have been moved just now */
    if (from->dead || from->unlinked || from->rip != at || from->mode != c->mode)
        return b->a;
    bt_inline_learn(c, exit, c->rip, b);
    return b->a;
}

uint64_t bt_op_next_c(struct bt_vcpu *c, const struct bt_op *op)
{
    c->st.c_ops++;
    bt_op_table[op->id](c, op);
    if (c->cache->smc_hit) {
        c->cache->smc_hit = false;
        c->rip = op->next_rip;
        return bt_next_c(c);
    }
    return 0;
}

static const uint8_t op_jumps[BT_OP_COUNT] = {
#define NEXT 0
#define END 0
#define JUMP 1
#define X(name, kind) [BT_OP_##name] = kind,
    BT_OPS(X)
#undef X
#undef NEXT
#undef END
#undef JUMP
};

uint64_t bt_op_end_c(struct bt_vcpu *c, const struct bt_op *op)
{
    struct bt_cache *k = c->cache;
    c->st.c_ops++;
    c->cur_exit = BT_X_DONE;
    bt_op_table[op->id](c, op);
    if (!op_jumps[op->id])
        c->rip = op->next_rip;
    k->smc_hit = false;
    if (c->iflag && c->irq_wait)
        atomic_fetch_or(&c->pending, BT_PEND_IRQ);
    if (must_leave(c))
        return k->stub_leave;
    unsigned t = c->cpl == 3;
    if (t && c->direct && (op->id == BT_OP_sysret || op->id == BT_OP_iret) && bt_direct_wanted(c, op->id == BT_OP_iret))
        return k->stub_leave;
    jc_check(c, t);
    return c->jc[t][bt_jc_index(c->rip)];
}

uint64_t bt_seg_c(struct bt_vcpu *c, uint64_t off, uint32_t desc)
{
    return bt_seg_lin(c, desc & 7, off, desc >> 8 & 0x1fff, desc >> 30 & 1);
}

void bt_unlink_running(struct bt_vcpu *c)
{
    struct bt_block *b = bt_block_at(c, c->cache->last_ret);
    if (b)
        bt_unlink_block(c, b);
}

/* --- exceptions and interrupts -------------------------------------------------------------- */
static bool contributory(unsigned v) { return v == BT_EX_DE || (v >= BT_EX_TS && v <= BT_EX_GP && v != BT_EX_PF); }

static void deliver_exception(struct bt_vcpu *c)
{
    unsigned v = c->exc.vector;
    bool has_error = c->exc.has_error;
    uint32_t error = c->exc.error;
    c->exc.valid = 0;
    c->st.exceptions++;
    bt_user_left(c);
    c->shadow = 0;
    if (c->delivering >= 0) {
        unsigned first = (unsigned)c->delivering;
        if (first == BT_EX_DF) {
            if (contributory(v) || v == BT_EX_PF)
                bt_shutdown(c);
        } else if ((contributory(first) && contributory(v)) ||
                   (first == BT_EX_PF && (contributory(v) || v == BT_EX_PF))) {
            v = BT_EX_DF;
            has_error = true;
            error = 0;
        }
    }
    c->delivering = (int16_t)v;
    bt_deliver(c, v, false, has_error, error);
    c->delivering = -1;
    c->halted = 0;
}

static void deliver_interrupt(struct bt_vcpu *c, unsigned v)
{
    c->halted = 0;
    c->st.interrupts++;
    bt_user_left(c);
    c->delivering = 256;
    bt_deliver(c, v, false, false, 0);
    c->delivering = -1;
}

static void init_ipi(struct bt_vcpu *c)
{
    atomic_fetch_and(&c->pending, ~BT_PEND_INIT);
    bt_vcpu_init(c, true);
    c->wait_sipi = c->index != 0;
    c->halted = 0;
}

static void startup_ipi(struct bt_vcpu *c)
{
    atomic_fetch_and(&c->pending, ~BT_PEND_SIPI);
    if (!c->wait_sipi)
        return;
    unsigned v = bt_apic_sipi_vector(c);
    c->wait_sipi = 0;
    c->seg[BT_CS].selector = (uint16_t)(v << 8);
    c->seg[BT_CS].base = (uint64_t)v << 12;
    c->rip = 0;
    bt_seg_update(c, BT_CS);
    bt_mode_update(c);
}

/* Work other than interrupts; true when vcpu_run must return. */
static bool pending_work(struct bt_vcpu *c, uint32_t p)
{
    if (p & BT_PEND_SYNC)
        bt_sync_process(c);
    if (p & BT_PEND_FLUSH) {
        atomic_fetch_and(&c->pending, ~BT_PEND_FLUSH);
        bt_cache_flush(c);
        bt_tlb_flush_all(c);
    }
    if (p & BT_PEND_TIMER) {
        atomic_fetch_and(&c->pending, ~BT_PEND_TIMER);
        bt_apic_timer_expired(c);
    }
    if (p & BT_PEND_INIT)
        init_ipi(c);
    if (p & BT_PEND_SIPI)
        startup_ipi(c);
    if (p & BT_PEND_UNHALT) {
        atomic_fetch_and(&c->pending, ~BT_PEND_UNHALT);
        c->pv_unhalt = 1;
    }
    if (p & BT_PEND_KICK) {
        atomic_fetch_and(&c->pending, ~BT_PEND_KICK);
        return true;
    }
    return false;
}

static void interrupts(struct bt_vcpu *c)
{
    if (c->wait_sipi)
        return;
    if (c->shadow || (c->dbg.step && !c->halted)) { /* one instruction later: turn() sets the bits again */
        uint32_t bits = atomic_fetch_and(&c->pending, ~(BT_PEND_IRQ | BT_PEND_NMI));
        c->irq_wait |= (bits & BT_PEND_IRQ) != 0;
        c->nmi_held |= (bits & BT_PEND_NMI) != 0;
        return;
    }
    uint32_t p = atomic_load_explicit(&c->pending, memory_order_relaxed);
    if ((p & BT_PEND_NMI) && !c->nmi_masked) {
        atomic_fetch_and(&c->pending, ~BT_PEND_NMI);
        c->nmi_masked = 1;
        deliver_interrupt(c, BT_EX_NMI);
        return;
    }
    if (!(p & BT_PEND_IRQ) && !c->irq_wait)
        return;
    atomic_fetch_and(&c->pending, ~BT_PEND_IRQ);
    c->irq_wait = 0;
    if (bt_irq_ready(c) < 0)
        return;
    if (!c->iflag) {
        c->irq_wait = 1;
        return;
    }
    int v = bt_irq_ack(c);
    if (v < 0)
        return;
    bt_direct_let_go(c, DIRECT_STAY_MS); /* in the soft tier nobody else does */
    if (bt_irq_ready(c) >= 0)
        c->irq_wait = 1;
    deliver_interrupt(c, (unsigned)v);
}

static void halt_wait(struct bt_vcpu *c)
{
    c->st.halts++;
    bt_direct_let_go(c, DIRECT_STAY_HALT_MS);
    bt_quiescent_enter(c);
    while (!atomic_load(&c->pending))
        sys4(SYS_futex, (long)&c->pending, FUTEX_WAIT_PRIVATE, 0, 0);
    bt_quiescent_leave(c);
}

/* NMI pending while masked must not keep us from running or sleeping. */
static void hold_nmi(struct bt_vcpu *c)
{
    if (c->nmi_masked && (atomic_load(&c->pending) & BT_PEND_NMI)) {
        atomic_fetch_and(&c->pending, ~BT_PEND_NMI);
        c->nmi_held = 1;
    } else if (c->nmi_held && !c->nmi_masked && !c->shadow) {
        c->nmi_held = 0;
        atomic_fetch_or(&c->pending, BT_PEND_NMI);
    }
}

/* A fault, taken before the instruction. */
static void instruction_breakpoint(struct bt_vcpu *c)
{
    uint64_t lin = c->rip + c->seg_base[BT_CS];
    uint32_t hit = bt_debug_exec(c, bt_code64(c) ? lin : (uint32_t)lin);
    if (!hit)
        return;
    c->dr[6] |= hit;
    bt_raise(c, BT_EX_DB);
}

static int debug_exit(struct bt_vcpu *c, struct hvx_exit *exit)
{
    exit->reason = HVX_EXIT_DEBUG;
    exit->detail = c->dbg.hit;
    c->dbg.hit = 0;
    return 1;
}

/* CR0.NE is clear: the exception leaves the processor by FERR#, which a PC
 * wires to IRQ 13, and the instruction waits for the interrupt. The handler
 * writes port 0xf0. With interrupts off, as in such a handler, IGNNE# is taken
 * to be asserted: the exception is dropped. */
static void x87_error(struct bt_vcpu *c)
{
    c->ferr = 0;
    if (c->iflag) {
        c->halted = 1;
        bt_irq_line(c->vm, BT_FERR_GSI, true);
        return;
    }
    sys_fp_live(c);
    __asm__ volatile("fnclex");
}

/* One turn; 0: go on. */
static int turn(struct bt_vcpu *c, struct hvx_exit *exit)
{
    struct bt_cache *k = c->cache;
    bt_relink(c);
    c->leave_after = 0;
    if (c->ferr)
        x87_error(c);
    if (c->exc.valid) {
        deliver_exception(c);
        if (c->dbg.step) /* at the handler's first instruction */
            return debug_exit(c, exit);
    }
    if (c->inject.valid) {
        c->inject.valid = 0;
        if (c->inject.has_error)
            bt_raise_err(c, c->inject.vector, c->inject.error);
        bt_raise(c, c->inject.vector);
    }
    uint32_t p = atomic_load(&c->pending);
    if (p && pending_work(c, p)) {
        exit->reason = HVX_EXIT_INTERRUPTED;
        return 1;
    }
    hold_nmi(c);
    interrupts(c);
    if (c->halted && c->pv_unhalt)
        c->halted = c->pv_unhalt = 0;
    if (c->halted || c->wait_sipi) {
        if (!atomic_load(&c->pending))
            halt_wait(c);
        return 0;
    }
    if (atomic_load(&c->pending) & ~(BT_PEND_IRQ | BT_PEND_NMI))
        return 0;
    if (c->direct && c->cpl == 3 && !(c->force_careful | c->force_single | c->shadow) && bt_direct_run(c))
        return 0;
    jc_check(c, c->cpl == 3); /* an exception or interrupt may have changed the mode */
    uint32_t mode = c->mode;
    bool special = c->force_careful || c->force_single || c->shadow;
    c->bp_data = (uint8_t)((c->bp_data & ~BT_BP_ALIGN) | (bt_aligning(c) ? BT_BP_ALIGN : 0));
    if (c->force_careful || c->bp_data)
        mode |= BT_MODE_CAREFUL;
    if (special)
        mode |= BT_MODE_SINGLE;
    else if (c->force_plain)
        mode |= BT_MODE_PLAIN;
    c->force_plain = 0;
    struct bt_block *b = find(c, mode);
    if (!b) {
        uint64_t pa, lin = c->rip + (bt_code64(c) ? 0 : c->seg_base[BT_CS]);
        const uint8_t *host = bt_code_page(c, bt_code64(c) ? lin : (uint32_t)lin, &pa);
        if (!bt_cache_room(c))
            bt_cache_make_room(c);
        if (c->vm->warm)
            b = bt_warm_find(c, c->rip, mode, pa, host);
        if (!b) {
            bt_fp_save(c);
            b = bt_translate(c, c->rip, mode, pa, host, 0);
        }
        /* an interrupt may have come between the exit and us: then this is not its target */
        if (k->chain_exit && !special && k->exits[k->chain_exit].target == b->rip &&
            (k->blocks[k->exits[k->chain_exit].from].mode & ~BT_MODE_PLAIN) == c->mode &&
            k->exits[k->chain_exit].plain == ((mode & BT_MODE_PLAIN) != 0))
            bt_chain(c, k->chain_exit, b);
    }
    k->chain_exit = 0;
    c->st.dispatches++;
    c->cur_exit = BT_X_NONE;
    bool step = (c->sysflags & BT_TF) || c->debug_step;
    c->trap_after = step;
    uint8_t shadow = c->shadow;
    uint32_t rf = c->sysflags & BT_RF;
    if (c->bp_exec && !rf)
        instruction_breakpoint(c);
    c->sysflags &= ~BT_RF;
    /* The block itself decides nothing on these; they are for this turn. */
    uint8_t careful = c->force_careful, single = c->force_single;
    c->shadow = 0;
    c->force_careful = c->force_single = 0;
    c->int_done = 0;
    c->dbg.hit = 0;
    k->enter(c, b->a);
    if (c->cur_exit == BT_X_NONE) { /* something came up before the first instruction */
        c->shadow = shadow;
        c->force_careful = careful;
        c->force_single = single;
        c->sysflags |= rf;
        return 0;
    }
    if ((shadow || c->dbg.step) && (c->irq_wait || c->nmi_held))
        atomic_fetch_or(&c->pending,
                        (c->irq_wait ? BT_PEND_IRQ : 0) | (c->nmi_held && !c->nmi_masked ? BT_PEND_NMI : 0));
    /* MOV SS (shadow 2) holds the trap off, STI does not; INT n takes TF along. */
    step = c->int_done == 2 || (step && !c->int_done);
    if ((step || c->bp_hit) && c->shadow != 2) {
        c->dr[6] |= c->bp_hit | (step ? 0x4000 : 0);
        if (!c->dbg.hit)
            bt_raise(c, BT_EX_DB);
        c->exc.vector = BT_EX_DB; /* the debugger comes first; the guest has its trap when it goes on */
        c->exc.has_error = 0;
        c->exc.valid = 1;
    }
    return c->dbg.step || c->dbg.hit ? debug_exit(c, exit) : 0;
}

static int __attribute__((noinline)) loop(struct bt_vcpu *c, struct hvx_exit *exit)
{
    struct bt_cache *k = c->cache;
    if (__builtin_setjmp((void **)k->jmpbuf)) {
        c->in_code = 0;
        k->helper_ret = 0;
        k->smc_hit = false;
        c->bounce.active = 0;
        if (c->cur_exit == BT_X_SHUTDOWN) {
            exit->reason = HVX_EXIT_SHUTDOWN;
            c->delivering = -1;
            c->exc.valid = 0;
            return 0;
        }
        if (c->cur_exit == BT_X_DEBUG) {
            debug_exit(c, exit);
            return 0;
        }
        if (c->cur_exit == BT_X_FATAL) {
            exit->reason = HVX_EXIT_ERROR;
            return 0;
        }
    }
    while (!turn(c, exit))
        ;
    return 0;
}

int bt_vcpu_run(struct bt_vcpu *c, struct hvx_exit *exit)
{
    c->cur_exit = BT_X_NONE;
    bt_quiescent_leave(c);
    int rc = loop(c, exit);
    bt_direct_let_go(c, 0);
    bt_fp_save(c);
    bt_quiescent_enter(c);
    return rc;
}
