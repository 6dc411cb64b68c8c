/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/signal.c - host signals in vCPU threads: the kick that gets a
 * vCPU out of translated code, and faults that translated instructions cause
 * on the host and the guest must see (divide error, SIMD exceptions, misaligned
 * SSE operands). Ordinary C, async-signal-safe.
 */
#define _GNU_SOURCE
#include "apic.h"
#include "cache.h"
#include "direct.h"
#include "kdirect.h"
#include "run.h"
#include "trans.h"
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* Which vCPU this thread runs. A signal handler has no other way to know. */
static __thread struct bt_vcpu *self;
static struct sigaction old_action[65];

bool bt_thread_is(const struct bt_vcpu *c) { return self == c; }

static bool in_blocks(const struct bt_vcpu *c, uint64_t pc)
{
    const struct bt_cache *k = c->cache;
    return (pc >= (uintptr_t)k->hot && pc < (uintptr_t)k->hot_p + 4096) ||
           (pc >= (uintptr_t)k->cold && pc < (uintptr_t)k->cold_p + 4096);
}

static void on_kick(int sig, siginfo_t *info, void *ucv)
{
    (void)sig;
    struct bt_vcpu *c = self;
    ucontext_t *uc = ucv;
    if (!c)
        return;
    if (info->si_code == SI_TIMER)
        atomic_fetch_or(&c->pending, BT_PEND_TIMER);
    c->st.kicks++;
    if (c->in_code == 3)
        bt_direct_kick(c);
    if (c->in_code != 1)
        return;
    uint64_t pc = (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
    const struct bt_cache *k = c->cache;
    for (unsigned t = 0; t < 2; t++)
        if (pc >= k->stub_ret_empty[t] && pc < k->stub_ret_end[t]) { /* no block: all it needs is in r14 */
            if (pc == k->stub_ret_empty[t])
                uc->uc_mcontext.gregs[REG_RSP] -= 8;
            uc->uc_mcontext.gregs[REG_RIP] = k->stub_jc_miss[t];
            return;
        }
    const uint64_t *sp = (const uint64_t *)uc->uc_mcontext.gregs[REG_RSP];
    uint64_t from = k->stub_stack[BT_FLAGS_SLOT], to = k->stub_commit;
    if ((pc >= from && pc < to) || (*sp >= from && *sp < to)) {
        /* This glue, and a flags_fn that it calls, goes back to its block without a look at `pending`: its
         * return address is one of the upmost four words. */
        for (unsigned i = 0; i < 4; i++) {
            struct bt_block *b = in_blocks(c, sp[i]) ? bt_block_at(c, sp[i]) : NULL;
            if (b)
                bt_unlink_block(c, b);
        }
        return;
    }
    struct bt_block *b = in_blocks(c, pc) ? bt_block_at(c, pc) : bt_block_at(c, k->last_ret);
    if (b)
        bt_unlink_block(c, b);
    /* A flags_fn goes back to the block that called it. */
    b = in_blocks(c, *sp) ? bt_block_at(c, *sp) : NULL;
    if (b)
        bt_unlink_block(c, b);
}

/* Guest vector state is in the registers: no sanitizer's function before the jump. */
__attribute__((no_sanitize("address", "undefined"))) static void land(struct bt_vcpu *c)
{
    __builtin_longjmp((void **)c->cache->jmpbuf, 1);
}

/* The stack of returns is full, the instruction has done nothing yet. The upmost entries are those that are needed. */
static bool returns_overflow(struct bt_vcpu *c, const siginfo_t *info, greg_t *g)
{
    uint64_t at = (uint64_t)(uintptr_t)info->si_addr;
    for (unsigned t = 0; t < 2; t++) {
        uint64_t top = c->cache->ret_top[t], low = top + BT_RET_SPARE - BT_RET_BYTES;
        if (at >= low || at < low - 4096)
            continue;
        memcpy((void *)(uintptr_t)(top - BT_RET_KEPT), (const void *)(uintptr_t)g[REG_RSP], BT_RET_KEPT);
        g[REG_RSP] = (greg_t)(top - BT_RET_KEPT);
        return true;
    }
    return false;
}

/* --- where the guest's flags are ------------------------------------------------------ */
static uint64_t host_value(const greg_t *g, unsigned h)
{
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return (uint64_t)g[order[h]];
}

/* What flags_again() (gen_flags.c) does with registers; f = RFLAGS after the instruction. The stack pointer keeps clear
 * of what the compiler may have below it. */
#define AFTER(insn) "lea -128(%%rsp), %%rsp\n\t" insn "\n\tpushfq\n\tpop %0\n\tlea 128(%%rsp), %%rsp"
#define MAKE(type)                                                                                                     \
    do {                                                                                                               \
        type x = (type)dst, y = (type)src;                                                                             \
        switch (a->kind) {                                                                                             \
        case AGAIN_TEST: __asm__(AFTER("test %2, %1") : "=&r"(f) : "r"(x), "r"(y) : "cc"); break;                      \
        case AGAIN_CMP: __asm__(AFTER("cmp %2, %1") : "=&r"(f) : "r"(x), "r"(y) : "cc"); break;                        \
        case AGAIN_ADD:                                                                                                \
            x = (type)(x - y);                                                                                         \
            __asm__(AFTER("add %2, %1") : "=&r"(f), "+&r"(x) : "r"(y) : "cc");                                         \
            break;                                                                                                     \
        case AGAIN_SUB:                                                                                                \
            x = (type)(x + y);                                                                                         \
            __asm__(AFTER("sub %2, %1") : "=&r"(f), "+&r"(x) : "r"(y) : "cc");                                         \
            break;                                                                                                     \
        default: /* AGAIN_NEG */                                                                                       \
            x = (type)-x;                                                                                              \
            __asm__(AFTER("neg %1") : "=&r"(f), "+&r"(x) : : "cc");                                                    \
        }                                                                                                              \
    } while (0)

static uint32_t recipe_flags(const struct again *a, const greg_t *g)
{
    uint64_t dst = host_value(g, a->dst), src = a->has_imm ? (uint64_t)(int64_t)a->imm : host_value(g, a->src), f;
    if (!a->has_imm && a->src == a->dst)
        src -= (uint64_t)(int64_t)a->bias;
    dst -= (uint64_t)(int64_t)a->bias;
    switch (a->size) {
    case 1: MAKE(uint8_t); break;
    case 2: MAKE(uint16_t); break;
    case 4: MAKE(uint32_t); break;
    default: MAKE(uint64_t); break;
    }
    return (uint32_t)f;
}

static void flags_from(struct bt_vcpu *c, const struct bt_map_entry *m, const struct bt_block *b, const greg_t *g)
{
    unsigned where = m->slot & ~BT_MAP_DIRECT;
    uint64_t f;
    if (where == BT_MAP_SLOT)
        return;
    if (where == BT_MAP_FN) /* a routine of flags_stubs_emit() */
        __asm__ volatile(AFTER("call *%1") : "=&r"(f) : "r"((uint64_t)c->flags_fn) : "rax", "r15", "cc", "memory");
    else if (where >= BT_MAP_RECIPE)
        f = recipe_flags(&c->cache->recipes[b->recipes + where - BT_MAP_RECIPE], g);
    else
        f = (uint32_t)g[REG_EFL];
    c->flags_slot = bt_flags_to_slot((uint32_t)f);
}

/* An operand without a look-up has faulted. */
#define MAX_AGAIN 16u
static enum bt_kd_verdict direct_fault(struct bt_vcpu *c, const greg_t *g, struct bt_block *b, uint64_t addr,
                                       uint64_t rip, uint32_t *error)
{
    enum bt_kd_verdict v = KD_SOFT;
    uint64_t key = (uint64_t)g[REG_RIP] ^ addr;
    c->kd_again = key == c->kd_last ? c->kd_again + 1 : 0;
    c->kd_last = key;
    if (g[REG_TRAPNO] == 14 && c->kd_again < MAX_AGAIN)
        v = bt_kd_fault(c, b, addr, g[REG_ERR] & 2, error);
    if (v == KD_SOFT) {
        bt_kd_mark_soft(c->vm, b->pa + (rip - b->rip));
        bt_block_drop(c, b);
        c->st.kd_soft++;
    }
    return v;
}

static void on_fault(int sig, siginfo_t *info, void *ucv)
{
    struct bt_vcpu *c = self;
    ucontext_t *uc = ucv;
    greg_t *g = uc->uc_mcontext.gregs;
    uint64_t pc = (uint64_t)g[REG_RIP], rip;
    enum bt_kd_verdict direct = KD_RETRY;
    uint32_t error = 0;
    if (c && c->in_code == 1 && sig == SIGSEGV && returns_overflow(c, info, g))
        return;
    if (!c || c->in_code != 1 || !in_blocks(c, pc) || !bt_host_to_rip(c, pc, &rip)) {
        sigaction(sig, &old_action[sig], NULL); /* not ours: once more, for whoever else handles it */
        return;
    }
    struct bt_map_entry map;
    const struct bt_block *block = bt_host_map(c, pc, &map);
    if ((map.slot & BT_MAP_DIRECT) && g[REG_TRAPNO] >= 12 && g[REG_TRAPNO] <= 14) {
        c->ret_sp = (uint64_t)g[REG_RSP]; /* what it does may empty the stack of returns */
        direct = direct_fault(c, g, bt_block_at(c, pc), (uint64_t)(uintptr_t)info->si_addr, rip, &error);
        g[REG_RSP] = (greg_t)c->ret_sp;
        if (direct == KD_RETRY)
            return;
    }
    static const int order[13] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_R13, REG_RBP, REG_RSI,
                                  REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12};
    for (unsigned i = 0; i < 13; i++)
        c->gpr[i] = (uint64_t)g[order[i]];
    flags_from(c, &map, block, g);
    c->rip = rip;
    c->in_code = 0;
    unsigned v;
    switch (g[REG_TRAPNO]) {
    case 0: v = BT_EX_DE; break;
    case 6: v = BT_EX_UD; break;
    case 16: v = BT_EX_MF; break;
    case 17: v = BT_EX_AC; break;
    case 19: v = BT_EX_XM; break;
    default: v = BT_EX_GP; break;
    }
    c->exc.error = 0;
    uint64_t in_window = (uint64_t)(uintptr_t)info->si_addr - (uintptr_t)c->window.base;
    if (g[REG_TRAPNO] == 14 && in_window < 4 * 4096) { /* an active element on a bad page */
        uint64_t d = (uint64_t)(uintptr_t)info->si_addr - c->window.host;
        unsigned page = d >= c->window.split;
        v = c->window.vector[page];
        c->exc.error = c->window.error[page];
        if (v == BT_EX_PF)
            c->cr2 = c->window.lin + d;
    }
    if (direct == KD_FAULT) {
        v = BT_EX_PF;
        c->exc.error = error;
    }
    c->ferr = v == BT_EX_MF && !(c->cr0 & BT_CR0_NE);
    c->exc.vector = (uint8_t)v;
    c->exc.has_error = v == BT_EX_GP || v == BT_EX_AC || v == BT_EX_PF || v == BT_EX_SS;
    c->exc.valid = !c->ferr && direct != KD_SOFT;
    c->force_careful = c->force_single = 0;
    g[REG_RIP] = (greg_t)(uintptr_t)land;
    g[REG_RDI] = (greg_t)(uintptr_t)c;
    c->ret_sp = (uint64_t)g[REG_RSP];
    g[REG_RSP] = (greg_t)c->host_rsp - 8;
}

int bt_signals_install(struct hvx_error *err)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    struct sigaction sa;
    memset(&sa, 0, sizeof(sa));
    sigemptyset(&sa.sa_mask);
    sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sa.sa_sigaction = on_kick;
    if (sigaction(BT_SIG_KICK, &sa, NULL))
        return hvx_fail(err, -errno, "cpu-bt: cannot install the kick signal's handler");
    sa.sa_sigaction = on_fault;
    sigaddset(&sa.sa_mask, BT_SIG_KICK); /* it would take the handler for what the vCPU does */
    for (unsigned i = 0; i < 4; i++) {
        struct sigaction old;
        if (sigaction(faults[i], &sa, &old))
            return hvx_fail(err, -errno, "cpu-bt: cannot install a handler for signal %d", faults[i]);
        if (old.sa_sigaction != on_fault)
            old_action[faults[i]] = old;
    }
    return 0;
}

void bt_signals_thread(struct bt_vcpu *c)
{
    self = c;
    if (!c)
        return;
    c->tid = (int)syscall(SYS_gettid);
    c->thread = pthread_self();
    stack_t ss;
    if (sigaltstack(NULL, &ss) == 0 && (ss.ss_flags & SS_DISABLE)) {
        ss.ss_size = 256 * 1024;
        ss.ss_sp = mmap(NULL, ss.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ss.ss_flags = 0;
        if (ss.ss_sp != MAP_FAILED)
            sigaltstack(&ss, NULL);
    }
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, BT_SIG_KICK);
    sigaddset(&set, SIGSEGV);
    sigaddset(&set, SIGBUS);
    sigaddset(&set, SIGFPE);
    sigaddset(&set, SIGILL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}
