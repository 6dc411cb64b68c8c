/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/apic.c - the local APIC of each vCPU (Intel SDM 3A, 10).
 *
 * Time. The timer's input clock is 1 GHz, and all its modes are kept as a
 * deadline in guest TSC time, so that reading the counter costs an RDTSC and
 * no system call. A POSIX timer that signals the vCPU's own thread wakes us;
 * it is a hint only: whoever handles BT_PEND_TIMER compares the deadline with
 * the TSC, so a stale or early signal does no harm and disarming needs no
 * system call.
 */
#include "apic.h"
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#define APIC_VERSION 0x00050014u /* 0x14, highest LVT entry 5 */
#define SVR_ENABLED 0x100u
#define LVT_MASKED 0x10000u
#define LVT_PERIODIC 1u
#define LVT_DEADLINE 2u
#define ESR_SEND_ILLEGAL 0x20u
#define ESR_RECV_ILLEGAL 0x40u
#define ESR_BAD_REGISTER 0x80u
/* A guest could ask for an interrupt per nanosecond; what cannot be served is
 * better never asked for. */
#define MIN_PERIOD_NS 50000u
#define MAX_ARM_NS 3600000000000ull

/* Register numbers: offset in the page >> 4, and MSR index - 0x800. */
enum {
    R_ID = 0x02, R_VERSION, R_TPR = 0x08, R_APR, R_PPR, R_EOI, R_RRD, R_LDR, R_DFR, R_SVR, R_ISR = 0x10, R_TMR = 0x18,
    R_IRR = 0x20, R_ESR = 0x28, R_ICR = 0x30, R_ICR_HI, R_LVT_TIMER, R_LVT_ERROR = 0x37, R_INITIAL, R_CURRENT,
    R_TDCR = 0x3e, R_SELF_IPI,
};

static const uint32_t lvt_writable[BT_N_LVT] = {0x700ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff};

#define GET(x) atomic_load_explicit(&(x), memory_order_relaxed)
#define SET(x, v) atomic_store_explicit(&(x), (v), memory_order_relaxed)

/* --- small helpers ----------------------------------------------------------- */

static uint64_t mul_div(uint64_t a, uint64_t b, uint64_t d)
{
    uint64_t lo, hi, rem;
    __asm__("mulq %3" : "=a"(lo), "=d"(hi) : "0"(a), "rm"(b) : "cc");
    if (hi >= d)
        return ~0ull;
    __asm__("divq %4" : "=a"(lo), "=d"(rem) : "0"(lo), "1"(hi), "rm"(d) : "cc");
    return lo;
}

static uint64_t ns_to_tsc(const struct bt_vcpu *c, uint64_t ns) { return mul_div(ns, c->vm->tsc_hz, BT_APIC_BUS_HZ); }
static uint64_t tsc_to_ns(const struct bt_vcpu *c, uint64_t t) { return mul_div(t, BT_APIC_BUS_HZ, c->vm->tsc_hz); }

static bool hw_enabled(const struct bt_apic *a) { return (GET(a->base) & BT_APIC_BASE_EN) != 0; }
static bool sw_enabled(const struct bt_apic *a) { return (GET(a->svr) & SVR_ENABLED) != 0; }
static bool is_x2apic(const struct bt_apic *a)
{
    return (GET(a->base) & (BT_APIC_BASE_EN | BT_APIC_BASE_EXTD)) == (BT_APIC_BASE_EN | BT_APIC_BASE_EXTD);
}

static int highest(const uint64_t w[4])
{
    for (int i = 3; i >= 0; i--)
        if (w[i])
            return i * 64 + 63 - __builtin_clzll(w[i]);
    return -1;
}

static int highest_irr(struct bt_apic *a)
{
    for (int i = 3; i >= 0; i--) {
        uint64_t w = atomic_load_explicit(&a->irr[i], memory_order_acquire); /* pairs with accept() */
        if (w)
            return i * 64 + 63 - __builtin_clzll(w);
    }
    return -1;
}

static uint32_t ppr(struct bt_apic *a)
{
    uint32_t tpr = GET(a->tpr);
    int isr = highest(a->isr);
    uint32_t class = isr < 0 ? 0 : (uint32_t)isr & 0xf0;
    return (tpr & 0xf0) >= class ? tpr : class;
}

/* Something that holds interrupts back has changed. */
static void recheck(struct bt_vcpu *c)
{
    if (bt_irq_ready(c) >= 0)
        bt_kick(c, BT_PEND_IRQ);
}

/* --- receiving ------------------------------------------------------------------ */

static void lvt_deliver(struct bt_vcpu *t, unsigned which);

static void apic_error(struct bt_vcpu *t, uint32_t bit)
{
    if (!(atomic_fetch_or_explicit(&t->apic->esr_pending, bit, memory_order_relaxed) & bit))
        lvt_deliver(t, BT_LVT_ERROR);
}

static bool accept(struct bt_vcpu *t, uint8_t vector, bool level)
{
    struct bt_apic *a = t->apic;
    uint64_t bit = 1ull << (vector & 63);
    unsigned w = vector >> 6;

    if (!hw_enabled(a) || !sw_enabled(a))
        return false;
    if (vector < 16) {
        apic_error(t, ESR_RECV_ILLEGAL);
        return true;
    }
    if (level)
        atomic_fetch_or_explicit(&a->tmr[w], bit, memory_order_relaxed);
    else if (GET(a->tmr[w]) & bit)
        atomic_fetch_and_explicit(&a->tmr[w], ~bit, memory_order_relaxed);
    /* Already requested: whoever requested it has kicked, and the owner
     * rechecks whenever it lowers its priority. */
    if (!(atomic_fetch_or_explicit(&a->irr[w], bit, memory_order_acq_rel) & bit))
        bt_kick(t, BT_PEND_IRQ);
    return true;
}

static void lvt_deliver(struct bt_vcpu *t, unsigned which)
{
    uint32_t lvt = GET(t->apic->lvt[which]);
    if (lvt & LVT_MASKED)
        return;
    unsigned mode = which == BT_LVT_TIMER || which == BT_LVT_ERROR ? BT_DM_FIXED : (lvt >> 8) & 7;
    if (mode == BT_DM_FIXED)
        accept(t, (uint8_t)lvt, false);
    else if (mode == BT_DM_NMI)
        bt_kick(t, BT_PEND_NMI);
}

static bool receive(struct bt_vcpu *t, unsigned mode, uint8_t vector, bool level)
{
    struct bt_apic *a = t->apic;
    if (!hw_enabled(a))
        return false;
    switch (mode) {
    case BT_DM_FIXED:
    case BT_DM_LOWEST:
        return accept(t, vector, level);
    case BT_DM_NMI:
        bt_kick(t, BT_PEND_NMI);
        return true;
    case BT_DM_INIT:
        atomic_fetch_and(&t->pending, ~BT_PEND_SIPI); /* a start-up IPI counts only after the last INIT */
        bt_kick(t, BT_PEND_INIT);
        return true;
    case BT_DM_SIPI:
        SET(a->sipi_vector, vector);
        bt_kick(t, BT_PEND_SIPI);
        return true;
    case BT_DM_EXTINT:
        SET(a->extint, 1);
        bt_kick(t, BT_PEND_IRQ);
        return true;
    default: /* SMI: there is no SMM here; the rest is reserved */
        return false;
    }
}

/* --- destinations ------------------------------------------------------------------ */

static bool matches(const struct bt_vcpu *t, uint32_t dest, bool wide, bool logical)
{
    const struct bt_apic *a = t->apic;
    bool x2 = is_x2apic(a);

    if (dest == (wide ? 0xffffffffu : 0xffu))
        return true;
    if (!logical)
        return (x2 ? t->apic_id : t->apic_id & 0xff) == dest;
    if (x2) {
        uint32_t cluster = t->apic_id >> 4, bit = 1u << (t->apic_id & 15);
        return (dest >> 16) == cluster && (dest & bit);
    }
    uint32_t ldr = GET(a->ldr) >> 24;
    if (dest > 0xff)
        return false;
    if ((GET(a->dfr) >> 28) == 0xf)
        return (ldr & dest) != 0;
    return ((dest >> 4) == 0xf || (dest >> 4) == (ldr >> 4)) && (ldr & dest & 0xf);
}

bool bt_apic_send(struct bt_vm *vm, struct bt_vcpu *src, unsigned shorthand, uint32_t dest, bool wide, bool logical,
                  unsigned mode, uint8_t vector, bool level)
{
    struct bt_vcpu *best = NULL;
    uint32_t best_tpr = 0;
    bool taken = false;

    if (shorthand == 1)
        return receive(src, mode, vector, level);
    unsigned start = mode == BT_DM_LOWEST && vm->irqchip ? atomic_fetch_add(&vm->irqchip->rotor, 1) % vm->n_vcpus : 0;
    for (unsigned k = 0; k < vm->n_vcpus; k++) {
        struct bt_vcpu *t = vm->vcpu[(start + k) % vm->n_vcpus];
        if (!t || !t->apic || (shorthand == 3 && t == src))
            continue;
        if (!shorthand && !matches(t, dest, wide, logical))
            continue;
        if (mode != BT_DM_LOWEST) {
            taken |= receive(t, mode, vector, level);
            continue;
        }
        uint32_t tpr = GET(t->apic->tpr) & 0xf0;
        if (hw_enabled(t->apic) && sw_enabled(t->apic) && (!best || tpr < best_tpr)) {
            best = t;
            best_tpr = tpr;
        }
    }
    return best ? receive(best, mode, vector, level) : taken;
}

static void icr_send(struct bt_vcpu *c, uint32_t lo, uint32_t dest, bool wide)
{
    unsigned mode = (lo >> 8) & 7;
    uint8_t vector = (uint8_t)lo;
    bool level = (lo & 0x8000) != 0, asserted = (lo & 0x4000) != 0;

    if (mode == BT_DM_INIT && level && !asserted)
        return; /* INIT level de-assert only synchronised arbitration IDs */
    if ((mode == BT_DM_FIXED || mode == BT_DM_LOWEST) && vector < 16) {
        apic_error(c, ESR_SEND_ILLEGAL);
        return;
    }
    /* IPIs are edge-triggered whatever the trigger bit says. */
    bt_apic_send(c->vm, c, (lo >> 18) & 3, dest, wide, (lo & 0x800) != 0, mode, vector, false);
}

/* Message-signalled interrupts, SDM 3A 10.11. The redirection hint asks for one
 * CPU out of a logical set, which lowest priority is. */
void bt_msi(struct bt_vm *vm, uint64_t addr, uint32_t data)
{
    if ((addr >> 20) != 0xfee)
        return;
    unsigned mode = (data >> 8) & 7;
    bool logical = (addr & 4) != 0;
    if (mode == BT_DM_FIXED && (addr & 8) && logical)
        mode = BT_DM_LOWEST;
    bt_apic_send(vm, NULL, 0, (addr >> 12) & 0xff, false, logical, mode, (uint8_t)data, (data & 0x8000) != 0);
}

/* --- the CPU's side ------------------------------------------------------------------ */

bool bt_apic_takes_pic(struct bt_vcpu *c)
{
    struct bt_apic *a = c->apic;
    uint32_t lint0 = GET(a->lvt[BT_LVT_LINT0]);
    if (!hw_enabled(a))
        return c->index == 0; /* INTR is the processor's own pin then */
    if (GET(a->extint))
        return true;
    return !(lint0 & LVT_MASKED) && ((lint0 >> 8) & 7) == BT_DM_EXTINT;
}

bool bt_apic_requested(const struct bt_vcpu *c, uint8_t vector)
{
    return (GET(c->apic->irr[vector >> 6]) >> (vector & 63) & 1) != 0;
}

static bool pic_wants(struct bt_vcpu *c)
{
    struct bt_irqchip *chip = c->vm->irqchip;
    return chip && GET(chip->pic_intr) && bt_apic_takes_pic(c);
}

int bt_irq_ready(struct bt_vcpu *c)
{
    struct bt_apic *a = c->apic;

    if (pic_wants(c)) {
        bt_irqchip_lock(c->vm->irqchip);
        int v = bt_pic_peek(c->vm);
        bt_irqchip_unlock(c->vm->irqchip);
        if (v >= 0)
            return v;
    }
    if (!hw_enabled(a) || !sw_enabled(a))
        return -1;
    int v = highest_irr(a);
    return v >= 0 && ((uint32_t)v & 0xf0) > (ppr(a) & 0xf0) ? v : -1;
}

int bt_irq_ack(struct bt_vcpu *c)
{
    struct bt_apic *a = c->apic;

    if (pic_wants(c)) {
        SET(a->extint, 0);
        return bt_pic_ack(c->vm);
    }
    if (!hw_enabled(a) || !sw_enabled(a))
        return -1;
    int v = highest_irr(a);
    if (v < 0 || ((uint32_t)v & 0xf0) <= (ppr(a) & 0xf0))
        return -1;
    atomic_fetch_and_explicit(&a->irr[v >> 6], ~(1ull << (v & 63)), memory_order_acq_rel);
    a->isr[v >> 6] |= 1ull << (v & 63);
    struct bt_irqchip *chip = c->vm->irqchip;
    if (chip && GET(chip->tick.vector) == v) {
        bt_irqchip_lock(chip);
        bt_tick_taken(c->vm);
        bt_irqchip_unlock(chip);
    }
    return v;
}

static void eoi(struct bt_vcpu *c)
{
    struct bt_apic *a = c->apic;
    int v = highest(a->isr);
    if (v < 0)
        return;
    uint64_t bit = 1ull << (v & 63);
    a->isr[v >> 6] &= ~bit;
    if (GET(a->tmr[v >> 6]) & bit)
        bt_ioapic_eoi(c->vm, (uint8_t)v);
    recheck(c);
}

uint64_t bt_apic_get_tpr(struct bt_vcpu *c) { return (GET(c->apic->tpr) >> 4) & 15; }

static void set_tpr(struct bt_vcpu *c, uint32_t tpr)
{
    uint32_t old = GET(c->apic->tpr);
    SET(c->apic->tpr, tpr & 0xff);
    if ((tpr & 0xf0) < (old & 0xf0))
        recheck(c);
}

void bt_apic_set_tpr(struct bt_vcpu *c, uint64_t cr8) { set_tpr(c, (uint32_t)(cr8 & 15) << 4); }

uint8_t bt_apic_sipi_vector(struct bt_vcpu *c) { return (uint8_t)GET(c->apic->sipi_vector); }

/* --- the timer -------------------------------------------------------------------------- */

static long sys4(long nr, long a1, long a2, long a3, long a4)
{
    register long r10 __asm__("r10") = a4;
    __asm__ volatile("syscall" : "+a"(nr) : "D"(a1), "S"(a2), "d"(a3), "r"(r10) : "rcx", "r11", "memory");
    return nr;
}

static unsigned timer_mode(const struct bt_apic *a) { return (GET(a->lvt[BT_LVT_TIMER]) >> 17) & 3; }
static unsigned timer_shift(const struct bt_apic *a)
{
    return (((a->tdcr & 3) | ((a->tdcr >> 1) & 4)) + 1) & 7; /* 0 means divide by 2, 7 by 1 */
}

/* The host timer signals the vCPU's own thread: made there, on first use. */
static void host_timer_make(struct bt_vcpu *c)
{
    struct bt_apic *a = c->apic;
    if (a->timer_tid == c->tid)
        return;
    if (a->timer_tid)
        sys4(SYS_timer_delete, a->timer_id, 0, 0, 0);
    a->timer_tid = 0;
    struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = BT_SIG_KICK};
    ev._sigev_un._tid = c->tid;
    long r = sys4(SYS_timer_create, CLOCK_MONOTONIC, (long)&ev, (long)&a->timer_id, 0);
    if (r < 0)
        bt_fatal(
            c, "no host timer for the local APIC: timer_create failed; raise the limit of pending signals (ulimit -i)");
    a->timer_tid = c->tid;
    c->has_timer = 1;
}

static void timer_arm(struct bt_vcpu *c);

static void timer_fire(struct bt_vcpu *c, uint64_t now)
{
    struct bt_apic *a = c->apic;
    if (timer_mode(a) == LVT_PERIODIC && a->period) {
        a->deadline += a->period;
        if (a->deadline <= now) /* we came late by whole periods: they are lost, the phase is kept */
            a->deadline = now + a->period - (now - a->deadline) % a->period;
        timer_arm(c);
    } else {
        a->deadline = 0;
    }
    lvt_deliver(c, BT_LVT_TIMER);
}

static void timer_arm(struct bt_vcpu *c)
{
    struct bt_apic *a = c->apic;
    if (!a->deadline)
        return;
    uint64_t now = bt_guest_tsc(c);
    if (now >= a->deadline) {
        timer_fire(c, now);
        return;
    }
    /* The signal comes, finds it early and sets the timer anew. One that should have come already may have been lost
     * with a reset. */
    if (a->armed > now && a->armed <= a->deadline && a->timer_tid == c->tid)
        return;
    host_timer_make(c);
    uint64_t ns = tsc_to_ns(c, a->deadline - now) + 1;
    if (ns > MAX_ARM_NS)
        ns = MAX_ARM_NS;
    struct itimerspec its = {.it_value = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)}};
    sys4(SYS_timer_settime, a->timer_id, 0, (long)&its, 0);
    a->armed = a->deadline;
}

void bt_apic_timer_expired(struct bt_vcpu *c)
{
    c->apic->armed = 0;
    timer_arm(c);
}

uint64_t bt_apic_next_deadline_ns(struct bt_vcpu *c)
{
    uint64_t d = c->apic->deadline;
    if (!d)
        return ~0ull;
    uint64_t now = bt_guest_tsc(c);
    return d > now ? tsc_to_ns(c, d - now) : 0;
}

void bt_apic_tsc_moved(struct bt_vcpu *c, uint64_t delta)
{
    struct bt_apic *a = c->apic;
    a->armed = 0; /* counted by the old TSC */
    if (!a->deadline)
        return;
    if (timer_mode(a) != LVT_DEADLINE)
        a->deadline += delta;
    timer_arm(c);
}

static void timer_start(struct bt_vcpu *c, uint32_t count)
{
    struct bt_apic *a = c->apic;
    a->initial = count;
    a->deadline = a->period = 0;
    if (!count)
        return;
    uint64_t ns = (uint64_t)count << timer_shift(a);
    if (timer_mode(a) == LVT_PERIODIC)
        a->period = ns_to_tsc(c, ns < MIN_PERIOD_NS ? MIN_PERIOD_NS : ns);
    uint64_t len = a->period ? a->period : ns_to_tsc(c, ns);
    a->deadline = bt_guest_tsc(c) + (len ? len : 1);
    timer_arm(c);
}

static uint32_t timer_current(struct bt_vcpu *c)
{
    struct bt_apic *a = c->apic;
    uint64_t now = bt_guest_tsc(c), d = a->deadline;
    if (!d || timer_mode(a) == LVT_DEADLINE)
        return 0;
    if (now >= d) { /* over, and the signal is on its way */
        if (!a->period)
            return 0;
        d = now + a->period - (now - d) % a->period;
    }
    uint64_t n = tsc_to_ns(c, d - now) >> timer_shift(a);
    return n > a->initial ? a->initial : (uint32_t)n;
}

static void set_deadline(struct bt_vcpu *c, uint64_t v)
{
    struct bt_apic *a = c->apic;
    if (timer_mode(a) != LVT_DEADLINE || !hw_enabled(a))
        return;
    a->deadline = v;
    timer_arm(c);
}

/* A new divisor takes effect at once: the rest of the count runs at its pace. */
static void set_tdcr(struct bt_vcpu *c, uint32_t v)
{
    struct bt_apic *a = c->apic;
    uint32_t left = timer_current(c), initial = a->initial;
    if (a->tdcr == (v & 0xb))
        return;
    a->tdcr = v & 0xb;
    if (!a->deadline || timer_mode(a) == LVT_DEADLINE)
        return;
    timer_start(c, initial);
    if (a->deadline)
        a->deadline = bt_guest_tsc(c) + ns_to_tsc(c, (uint64_t)left << timer_shift(a)) + 1;
    timer_arm(c);
}

/* --- registers ------------------------------------------------------------------------------ */

static uint32_t ldr_value(const struct bt_vcpu *c)
{
    if (is_x2apic(c->apic))
        return (c->apic_id >> 4) << 16 | 1u << (c->apic_id & 15);
    return GET(c->apic->ldr);
}

static bool reg_read(struct bt_vcpu *c, unsigned reg, uint32_t *v)
{
    struct bt_apic *a = c->apic;
    bool x2 = is_x2apic(a);

    if (reg >= R_ISR && reg < R_ESR) {
        unsigned w = (reg & 7) >> 1, half = (reg & 1) * 32;
        uint64_t q = reg < R_TMR ? a->isr[w] : reg < R_IRR ? GET(a->tmr[w]) : GET(a->irr[w]);
        *v = (uint32_t)(q >> half);
        return true;
    }
    if (reg >= R_LVT_TIMER && reg <= R_LVT_ERROR) {
        *v = GET(a->lvt[reg - R_LVT_TIMER]);
        return true;
    }
    switch (reg) {
    case R_ID: *v = x2 ? c->apic_id : c->apic_id << 24; return true;
    case R_VERSION: *v = APIC_VERSION; return true;
    case R_TPR: *v = GET(a->tpr); return true;
    case R_PPR: *v = ppr(a); return true;
    case R_LDR: *v = ldr_value(c); return true;
    case R_SVR: *v = GET(a->svr); return true;
    case R_ESR: *v = a->esr; return true;
    case R_ICR: *v = a->icr_lo; return true;
    case R_INITIAL: *v = a->initial; return true;
    case R_CURRENT: *v = timer_current(c); return true;
    case R_TDCR: *v = a->tdcr; return true;
    default: break;
    }
    if (x2)
        return false;
    switch (reg) {
    case R_DFR: *v = GET(a->dfr); return true;
    case R_ICR_HI: *v = a->icr_hi; return true;
    case R_APR:
    case R_RRD:
    case R_EOI: *v = 0; return true;
    default: *v = 0; return false;
    }
}

static void write_svr(struct bt_vcpu *c, uint32_t v)
{
    struct bt_apic *a = c->apic;
    SET(a->svr, v & 0x3ff);
    if (!(v & SVR_ENABLED)) /* SDM 3A 10.4.7.2: mask bits are set and stay so */
        for (unsigned i = 0; i < BT_N_LVT; i++)
            SET(a->lvt[i], GET(a->lvt[i]) | LVT_MASKED);
    recheck(c);
}

static void write_lvt(struct bt_vcpu *c, unsigned which, uint32_t v)
{
    struct bt_apic *a = c->apic;
    uint32_t old = GET(a->lvt[which]);
    v &= lvt_writable[which];
    if (!sw_enabled(a))
        v |= LVT_MASKED;
    SET(a->lvt[which], v);
    if (which == BT_LVT_TIMER && ((old ^ v) & 0x60000)) {
        bool deadline = ((old | v) & 0x40000) != 0;
        if (deadline) {
            a->deadline = a->period = 0;
            a->initial = 0;
        } else if (a->deadline) { /* between one-shot and periodic the count goes on */
            uint64_t ns = (uint64_t)a->initial << timer_shift(a);
            a->period = (v & 0x20000) ? ns_to_tsc(c, ns < MIN_PERIOD_NS ? MIN_PERIOD_NS : ns) : 0;
        }
    }
    if (which == BT_LVT_LINT0)
        recheck(c);
}

/* False: no such register, or not writable. */
static bool reg_write(struct bt_vcpu *c, unsigned reg, uint32_t v)
{
    struct bt_apic *a = c->apic;
    bool x2 = is_x2apic(a);

    if (reg >= R_LVT_TIMER && reg <= R_LVT_ERROR) {
        write_lvt(c, reg - R_LVT_TIMER, v);
        return true;
    }
    switch (reg) {
    case R_TPR: set_tpr(c, v); return true;
    case R_EOI: eoi(c); return true;
    case R_SVR: write_svr(c, v); return true;
    case R_ESR: a->esr = atomic_exchange_explicit(&a->esr_pending, 0, memory_order_relaxed); return true;
    case R_TDCR: set_tdcr(c, v); return true;
    case R_INITIAL:
        if (timer_mode(a) != LVT_DEADLINE)
            timer_start(c, v);
        return true;
    default: break;
    }
    if (x2) {
        if (reg != R_SELF_IPI)
            return false;
        icr_send(c, 0x40000u | (v & 0xff), 0, true);
        return true;
    }
    switch (reg) {
    case R_ID: return true; /* fixed, as on current processors */
    case R_LDR: SET(a->ldr, v & 0xff000000u); return true;
    case R_DFR: SET(a->dfr, v | 0x0fffffffu); return true;
    case R_ICR_HI: a->icr_hi = v & 0xff000000u; return true;
    case R_ICR:
        a->icr_lo = v & 0xccfffu;
        icr_send(c, a->icr_lo, a->icr_hi >> 24, false);
        return true;
    default: return false;
    }
}

static void page_access(struct bt_vcpu *c, unsigned off, unsigned size, bool write, uint64_t *value)
{
    if (write) {
        if ((off & 15) || size < 4)
            return; /* SDM 3A 10.4.1: undefined; nothing happens here */
        if (!reg_write(c, off >> 4, (uint32_t)*value))
            apic_error(c, ESR_BAD_REGISTER);
        return;
    }
    uint32_t v = 0;
    if ((off & 15) < 4 && !reg_read(c, off >> 4, &v))
        apic_error(c, ESR_BAD_REGISTER);
    *value = (uint64_t)v >> ((off & 3) * 8);
    if (size < 8)
        *value &= (1ull << (size * 8)) - 1;
}

bool bt_irqchip_mmio(struct bt_vcpu *c, uint64_t gpa, unsigned size, bool write, uint64_t *value)
{
    uint64_t base = GET(c->apic->base);
    if (!((gpa ^ base) & ~0xfffull) && (base & (BT_APIC_BASE_EN | BT_APIC_BASE_EXTD)) == BT_APIC_BASE_EN) {
        page_access(c, gpa & 0xfff, size, write, value);
        return true;
    }
    if ((gpa & ~0xfffull) != BT_IOAPIC_GPA)
        return false;
    struct bt_irqchip *chip = c->vm->irqchip;
    bt_irqchip_lock(chip);
    if (write)
        bt_ioapic_write(c->vm, gpa & 0xff, (uint32_t)*value);
    else
        *value = bt_ioapic_read(chip, gpa & 0xff);
    bt_irqchip_unlock(chip);
    return true;
}

/* --- MSRs --------------------------------------------------------------------------------------- */

static void regs_reset(struct bt_vcpu *c)
{
    struct bt_apic *a = c->apic;
    for (unsigned i = 0; i < 4; i++) {
        SET(a->irr[i], 0);
        SET(a->tmr[i], 0);
        *(volatile uint64_t *)&a->isr[i] = 0; /* volatile: no call of memset, vector state may be live */
    }
    for (unsigned i = 0; i < BT_N_LVT; i++)
        SET(a->lvt[i], LVT_MASKED);
    /* Hardware comes up with LINT0 masked. The boot processor's is open here,
     * as in other virtual machines, since firmware written for them counts on
     * the 8259's interrupts before it ever touches the APIC. */
    if (c->index == 0)
        SET(a->lvt[BT_LVT_LINT0], (uint32_t)BT_DM_EXTINT << 8);
    SET(a->ldr, 0);
    SET(a->dfr, 0xffffffffu);
    SET(a->svr, 0xff);
    SET(a->tpr, 0);
    SET(a->esr_pending, 0);
    SET(a->extint, 0);
    a->esr = a->icr_lo = a->icr_hi = a->tdcr = a->initial = 0;
    a->deadline = a->period = a->armed = 0; /* the TSC starts anew with the processor */
}

void bt_apic_reset(struct bt_vcpu *c, bool init)
{
    if (!init)
        SET(c->apic->base, BT_APIC_DEFAULT_GPA | BT_APIC_BASE_EN | (c->index == 0 ? BT_APIC_BASE_BSP : 0));
    regs_reset(c);
}

/* SDM 3A 10.12.5: which mode follows which. */
static bool write_base(struct bt_vcpu *c, uint64_t v)
{
    struct bt_apic *a = c->apic;
    uint64_t old = GET(a->base), mode = BT_APIC_BASE_EN | BT_APIC_BASE_EXTD;
    uint64_t from = old & mode, to = v & mode;

    if (v & (0xffull | 0x200 | ~((1ull << 40) - 1)))
        return false;
    if (to == BT_APIC_BASE_EXTD || (to == mode && !from) || (from == mode && to == BT_APIC_BASE_EN))
        return false;
    if (to == mode && !bt_cpuid_has_x2apic(c->vm))
        return false;
    if (from && !to)
        regs_reset(c);
    if (to == mode && from != mode)
        a->icr_hi = 0;
    SET(a->base, v);
    if (from != to || ((old ^ v) & ~0xfffull))
        bt_tlb_flush_all(c); /* the page may have become RAM, or stopped being it */
    recheck(c);
    return true;
}

static bool x2_msr(struct bt_vcpu *c, unsigned reg, bool write, uint64_t *value)
{
    struct bt_apic *a = c->apic;
    uint32_t v;

    if (!is_x2apic(a) || reg == R_ICR_HI || reg == R_DFR)
        return false;
    if (!write) {
        if (reg == R_EOI || reg == R_SELF_IPI || !reg_read(c, reg, &v))
            return false;
        *value = reg == R_ICR ? (uint64_t)a->icr_hi << 32 | a->icr_lo : v;
        return true;
    }
    if (reg == R_ICR) {
        a->icr_hi = (uint32_t)(*value >> 32);
        a->icr_lo = (uint32_t)*value & 0xccfffu;
        icr_send(c, a->icr_lo, a->icr_hi, true);
        return true;
    }
    if (*value >> 32)
        return false;
    v = (uint32_t)*value;
    if (((reg == R_EOI || reg == R_ESR) && v) || ((reg == R_TPR || reg == R_SELF_IPI) && v > 0xff))
        return false;
    return reg_write(c, reg, v);
}

bool bt_apic_msr(struct bt_vcpu *c, uint32_t index, bool write, uint64_t *value)
{
    struct bt_apic *a = c->apic;
    if (index >= 0x800 && index < 0x840)
        return x2_msr(c, index - 0x800, write, value);
    if (index == 0x6e0) {
        if (write)
            set_deadline(c, *value);
        else
            *value = timer_mode(a) == LVT_DEADLINE ? a->deadline : 0;
        return true;
    }
    if (index != 0x1b)
        return false;
    if (write)
        return write_base(c, *value);
    *value = GET(a->base);
    return true;
}

/* --- life and state --------------------------------------------------------------------------------- */

int bt_apic_create(struct bt_vcpu *c)
{
    c->apic = calloc(1, sizeof(*c->apic));
    if (!c->apic)
        return -ENOMEM;
    bt_apic_reset(c, false);
    return 0;
}

void bt_apic_destroy(struct bt_vcpu *c)
{
    if (!c || !c->apic)
        return;
    if (c->apic->timer_tid)
        sys4(SYS_timer_delete, c->apic->timer_id, 0, 0, 0);
    free(c->apic);
    c->apic = NULL;
    c->has_timer = 0;
}

void bt_apic_get(struct bt_vcpu *c, struct hvx_vcpu_regs *r)
{
    struct bt_apic *a = c->apic;
    for (unsigned i = 0; i < 64; i++) {
        uint32_t v = 0;
        if (i != R_EOI && i != R_SELF_IPI && reg_read(c, i, &v))
            r->apic[i] = v;
        else
            r->apic[i] = 0;
    }
    r->apic[R_DFR] = GET(a->dfr);
    r->apic[R_LDR] = ldr_value(c);
    r->apic[R_ICR_HI] = a->icr_hi;
    r->apic_base = GET(a->base);
    r->tsc_deadline = timer_mode(a) == LVT_DEADLINE ? a->deadline : 0;
}

static uint64_t page_word(const uint32_t *p, unsigned w) { return p[w * 2] | (uint64_t)p[w * 2 + 1] << 32; }

/* Also called from other threads than the vCPU's, while it does not run. So the
 * host timer is left to BT_PEND_TIMER. r->tsc must be in place already. */
void bt_apic_set(struct bt_vcpu *c, const struct hvx_vcpu_regs *r)
{
    struct bt_apic *a = c->apic;
    const uint32_t *p = r->apic;

    SET(a->base, r->apic_base & (((1ull << 40) - 1) & ~0x2ffull));
    for (unsigned i = 0; i < 4; i++) {
        a->isr[i] = page_word(p + R_ISR, i);
        SET(a->tmr[i], page_word(p + R_TMR, i));
        SET(a->irr[i], page_word(p + R_IRR, i));
    }
    for (unsigned i = 0; i < BT_N_LVT; i++)
        SET(a->lvt[i], p[R_LVT_TIMER + i] & lvt_writable[i]);
    SET(a->tpr, p[R_TPR] & 0xff);
    SET(a->ldr, p[R_LDR] & 0xff000000u);
    SET(a->dfr, p[R_DFR] | 0x0fffffffu);
    SET(a->svr, p[R_SVR] & 0x3ff);
    a->esr = p[R_ESR];
    a->icr_lo = p[R_ICR] & 0xccfffu;
    a->icr_hi = p[R_ICR_HI];
    a->tdcr = p[R_TDCR] & 0xb;
    a->initial = p[R_INITIAL];
    a->deadline = a->period = a->armed = 0;
    if (timer_mode(a) == LVT_DEADLINE) {
        a->deadline = r->tsc_deadline;
    } else if (a->initial && p[R_CURRENT]) {
        uint64_t ns = (uint64_t)a->initial << timer_shift(a);
        if (timer_mode(a) == LVT_PERIODIC)
            a->period = ns_to_tsc(c, ns < MIN_PERIOD_NS ? MIN_PERIOD_NS : ns);
        a->deadline = bt_guest_tsc(c) + ns_to_tsc(c, (uint64_t)p[R_CURRENT] << timer_shift(a)) + 1;
    }
    bt_kick(c, BT_PEND_TIMER | BT_PEND_IRQ);
}
