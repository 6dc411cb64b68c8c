/* SPDX-License-Identifier: Apache-2.0
 *
 * hpet.c - high precision event timers: a 64-bit counter of 10 ns and three
 * comparators, periodic or one-shot, edge or level, with legacy replacement.
 * No FSB delivery.
 *
 * Registers: IA-PC HPET specification 1.0a, section 2.3.
 */
#include "pc.h"

#include <stdlib.h>

#define HPET_TIMERS 3u
#define HPET_TICK_NS 10u
#define HPET_CAPS 0x8086a201ull /* vendor, legacy replacement, 64 bit, three timers, revision 1 */
#define HPET_PERIOD_FS (HPET_TICK_NS * 1000000ull)
#define CFG_ENABLE 1u
#define CFG_LEGACY 2u

#define T_LEVEL 0x0002u
#define T_INT_ENABLE 0x0004u
#define T_PERIODIC 0x0008u
#define T_PERIODIC_CAP 0x0010u
#define T_SIZE_CAP 0x0020u
#define T_SET_VALUE 0x0040u
#define T_32BIT 0x0100u
#define T_ROUTE_SHIFT 9u
#define T_WRITABLE 0x3f4eull
#define T_ROUTES 0x00ff0104ull /* GSIs 2, 8, 16..23 */
/* A guest that asks for a tiny period must not keep the host's loop busy. */
#define HPET_MIN_NS 50000u

struct hpet_timer {
    struct hpet *hpet;
    struct hvx_timer *host_timer;
    unsigned index;
    uint64_t config, comparator, period;
    bool armed; /* a match lies ahead */
};

struct hpet {
    struct pc *pc;
    uint64_t config, status;
    uint64_t counter; /* value while stopped */
    uint64_t base_ns; /* clock_ns when the counter was 0, while running */
    struct hpet_timer timer[HPET_TIMERS];
};

static bool running(const struct hpet *h) { return h->config & CFG_ENABLE; }

static uint64_t counter_now(const struct hpet *h)
{
    return running(h) ? (h->pc->host->clock_ns() - h->base_ns) / HPET_TICK_NS : h->counter;
}

static uint64_t width_mask(const struct hpet_timer *t)
{
    return t->config & T_32BIT ? UINT32_MAX : UINT64_MAX;
}

static unsigned route(const struct hpet_timer *t)
{
    if ((t->hpet->config & CFG_LEGACY) && t->index < 2)
        return t->index == 0 ? 0 : 8; /* instead of PIT and RTC */
    return (unsigned)(t->config >> T_ROUTE_SHIFT) & 0x1f;
}

static void set_line(struct hpet_timer *t, bool level)
{
    unsigned gsi = route(t);
    bool legacy = (t->hpet->config & CFG_LEGACY) && t->index < 2;
    /* GSI 2 is where ISA irq 0 arrives at the I/O APIC */
    if (!legacy && !(T_ROUTES >> gsi & 1))
        return;
    if (!legacy && gsi == 2)
        gsi = 0;
    t->hpet->pc->host->irq_set(t->hpet->pc->vm, gsi, level);
}

/* A periodic timer on the system timer's line, slow enough that ticks are made up for. */
static bool is_tick(const struct hpet_timer *t)
{
    return (t->config & (T_LEVEL | T_INT_ENABLE | T_PERIODIC)) == (T_INT_ENABLE | T_PERIODIC) &&
           t->period >= PC_TICK_MIN_NS / HPET_TICK_NS &&
           (t->hpet->config & CFG_LEGACY && t->index < 2 ? t->index == 0 : route(t) == 2);
}

/* What is owed to the guest ends with the setting that it came from. */
static void forget_ticks(struct hpet_timer *t)
{
    if (is_tick(t))
        t->hpet->pc->host->irq_tick(t->hpet->pc->vm, 0, 0);
}

/* After n matches. */
static void fire(struct hpet_timer *t, uint64_t n)
{
    if (is_tick(t)) {
        t->hpet->pc->host->irq_tick(t->hpet->pc->vm, 0, n < HVX_TICKS_OWED_MAX ? (unsigned)n : HVX_TICKS_OWED_MAX);
    } else if (t->config & T_LEVEL) {
        t->hpet->status |= 1ull << t->index;
        if (t->config & T_INT_ENABLE)
            set_line(t, true);
    } else if (t->config & T_INT_ENABLE) {
        set_line(t, false);
        set_line(t, true);
        set_line(t, false);
    }
}

/* No interrupt, no status: a match does nothing but to move a periodic timer's comparator. Linux leaves its tick like
 * that for as long as it runs, so the host is not woken for it: catch_up() moves what is looked at. */
static bool is_unseen(const struct hpet_timer *t) { return !(t->config & (T_INT_ENABLE | T_LEVEL)); }

static void arm(struct hpet_timer *t)
{
    struct hpet *h = t->hpet;
    if (!running(h) || !t->armed || is_unseen(t)) {
        h->pc->host->timer_set(t->host_timer, PC_NEVER);
        return;
    }
    uint64_t ticks = (t->comparator - counter_now(h)) & width_mask(t);
    uint64_t now = h->pc->host->clock_ns();
    /* beyond 292 years from now: never */
    if (ticks > (uint64_t)INT64_MAX / HPET_TICK_NS) {
        h->pc->host->timer_set(t->host_timer, PC_NEVER);
        return;
    }
    uint64_t wait = ticks * HPET_TICK_NS;
    if ((t->config & T_PERIODIC) && wait < HPET_MIN_NS)
        wait = HPET_MIN_NS;
    h->pc->host->timer_set(t->host_timer, now + wait + 1);
}

/* The next match after now; returns how many there have been. */
static uint64_t next_period(struct hpet_timer *t)
{
    uint64_t mask = width_mask(t), now = counter_now(t->hpet) & mask;
    uint64_t gone = (now - t->comparator) & mask;
    if (!t->period) {
        t->armed = false;
        return 1;
    }
    t->comparator = (t->comparator + (gone / t->period + 1) * t->period) & mask;
    return gone / t->period + 1;
}

/* To what an unseen timer has come meanwhile. */
static void catch_up(struct hpet_timer *t)
{
    const uint64_t mask = width_mask(t), gone = (counter_now(t->hpet) - t->comparator) & mask;
    if (!running(t->hpet) || !t->armed || !is_unseen(t))
        return;
    bool passed = gone <= mask / 2;
    /* 32 bits come round within the minute: what lies more than a period ahead has been passed, rather */
    if (t->config & T_32BIT && t->period)
        passed |= (-gone & mask) > t->period;
    if (passed && t->config & T_PERIODIC)
        next_period(t);
    else if (passed && !(t->config & T_32BIT))
        t->armed = false;
}

static void timer_due(void *opaque)
{
    struct hpet_timer *t = opaque;
    uint64_t n = 1;
    if (!running(t->hpet) || !t->armed)
        return;
    if (t->config & T_PERIODIC)
        n = next_period(t);
    else if (!(t->config & T_32BIT))
        t->armed = false; /* a 64-bit counter does not come round again */
    fire(t, n);
    arm(t);
}

/* --- registers --------------------------------------------------------------------- */
static uint64_t timer_register(const struct hpet_timer *t, unsigned reg)
{
    switch (reg) {
    case 0x00: return t->config | T_PERIODIC_CAP | T_SIZE_CAP | T_ROUTES << 32;
    case 0x08: return t->comparator;
    default: return 0;
    }
}

static uint64_t register64(struct hpet *h, unsigned off)
{
    switch (off) {
    case 0x000: return HPET_PERIOD_FS << 32 | HPET_CAPS;
    case 0x010: return h->config;
    case 0x020: return h->status;
    case 0x0f0: return counter_now(h);
    default: break;
    }
    if (off >= 0x100 && off < 0x100 + 0x20 * HPET_TIMERS) {
        catch_up(&h->timer[(off - 0x100) / 0x20]);
        return timer_register(&h->timer[(off - 0x100) / 0x20], (off - 0x100) % 0x20);
    }
    return 0;
}

static void config_write(struct hpet *h, uint64_t v)
{
    bool was = running(h), was_legacy = h->config & CFG_LEGACY;
    uint64_t now = counter_now(h);
    v &= CFG_ENABLE | CFG_LEGACY;
    for (unsigned i = 0; i < HPET_TIMERS; i++) {
        catch_up(&h->timer[i]);
        forget_ticks(&h->timer[i]);
    }
    h->config = v;
    if (!was && running(h))
        h->base_ns = h->pc->host->clock_ns() - now * HPET_TICK_NS;
    else if (was && !running(h))
        h->counter = now;
    if (was_legacy != !!(v & CFG_LEGACY)) {
        pit_enable_irq(h->pc->pit, was_legacy);
        rtc_enable_irq(h->pc->rtc, was_legacy);
    }
    for (unsigned i = 0; i < HPET_TIMERS; i++)
        arm(&h->timer[i]);
}

static void timer_config_write(struct hpet_timer *t, uint64_t v)
{
    if (t->hpet->status >> t->index & 1)
        set_line(t, false);
    catch_up(t);
    forget_ticks(t);
    t->config = v & T_WRITABLE;
    if (t->config & T_32BIT) {
        t->comparator &= UINT32_MAX;
        t->period &= UINT32_MAX;
    }
    if ((t->hpet->status >> t->index & 1) && (t->config & T_INT_ENABLE) && (t->config & T_LEVEL))
        set_line(t, true);
    arm(t);
}

/* In periodic mode a write sets the period, and the comparator only right after SET_VALUE. */
static void comparator_write(struct hpet_timer *t, uint64_t v)
{
    v &= width_mask(t);
    forget_ticks(t);
    if (t->config & T_PERIODIC) {
        if (t->config & T_SET_VALUE)
            t->comparator = v;
        t->period = v;
    } else {
        t->comparator = v;
    }
    t->config &= ~(uint64_t)T_SET_VALUE;
    t->armed = true;
    arm(t);
}

static void status_write(struct hpet *h, uint64_t v)
{
    for (unsigned i = 0; i < HPET_TIMERS; i++) {
        if (v & h->status & 1ull << i) {
            h->status &= ~(1ull << i);
            set_line(&h->timer[i], false);
        }
    }
}

static void write64(struct hpet *h, unsigned off, uint64_t v)
{
    if (off == 0x010) {
        config_write(h, v);
    } else if (off == 0x020) {
        status_write(h, v);
    } else if (off == 0x0f0) {
        if (!running(h)) /* writing while it runs is undefined: ignored */
            h->counter = v;
    } else if (off >= 0x100 && off < 0x100 + 0x20 * HPET_TIMERS) {
        struct hpet_timer *t = &h->timer[(off - 0x100) / 0x20];
        if ((off - 0x100) % 0x20 == 0x00)
            timer_config_write(t, v);
        else if ((off - 0x100) % 0x20 == 0x08)
            comparator_write(t, v);
    }
}

static uint64_t hpet_read(void *opaque, uint64_t off, unsigned size)
{
    if (size < 4 || off % size)
        return 0; /* the specification asks for aligned words of 32 or 64 bits */
    uint64_t v = register64(opaque, (unsigned)off & ~7u);
    return off & 4 ? v >> 32 : v;
}

static void hpet_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct hpet *h = opaque;
    unsigned reg = (unsigned)off & ~7u;
    if (size < 4 || off % size)
        return;
    if (size == 4) {
        /* A half: the other one stays, but must not clear status bits. A
         * comparator's halves are written one after the other; in periodic
         * mode the period has to be put together, not the running match. */
        uint64_t old = reg == 0x20 ? 0 : register64(h, reg);
        if (reg >= 0x100 && reg % 0x20 == 0x08) {
            const struct hpet_timer *t = &h->timer[(reg - 0x100) / 0x20 % HPET_TIMERS];
            old = t->config & T_PERIODIC ? t->period : t->comparator;
            if (off & 4 && (t->config & T_32BIT))
                return;
        }
        value = off & 4 ? (old & UINT32_MAX) | value << 32 : (old & ~(uint64_t)UINT32_MAX) | (uint32_t)value;
    }
    write64(h, reg, value);
}

static const struct hvx_region_ops hpet_ops = {hpet_read, hpet_write};

int hpet_create(struct pc *pc, struct hpet **out, struct hvx_error *err)
{
    struct hpet *h = calloc(1, sizeof(*h));
    if (!h)
        return hvx_fail(err, -ENOMEM, "pc: no memory for the HPET");
    h->pc = pc;
    *out = h;
    for (unsigned i = 0; i < HPET_TIMERS; i++) {
        h->timer[i].hpet = h;
        h->timer[i].index = i;
        int rc = pc->host->timer_new(pc->vm, timer_due, &h->timer[i], &h->timer[i].host_timer);
        if (rc)
            return hvx_fail(err, rc, "pc: no host timer for the HPET");
    }
    return pc_region(pc, HVX_SPACE_MMIO, PC_HPET_BASE, 0x400, 0, "hpet", &hpet_ops, h, err);
}

void hpet_destroy(struct hpet *h)
{
    if (!h)
        return;
    for (unsigned i = 0; i < HPET_TIMERS; i++)
        if (h->timer[i].host_timer)
            h->pc->host->timer_del(h->timer[i].host_timer);
    free(h);
}

/* PIT and RTC are reset by themselves and have their interrupts back. */
void hpet_reset(struct hpet *h)
{
    for (unsigned i = 0; i < HPET_TIMERS; i++) {
        struct hpet_timer *t = &h->timer[i];
        if (h->status >> i & 1)
            set_line(t, false);
        t->config = t->period = 0;
        t->comparator = UINT64_MAX;
        t->armed = false;
    }
    h->config = h->status = h->counter = h->base_ns = 0;
    for (unsigned i = 0; i < HPET_TIMERS; i++)
        arm(&h->timer[i]);
}

int hpet_state(struct hpet *h, struct hvx_stream *s)
{
    for (unsigned i = 0; i < HPET_TIMERS; i++)
        catch_up(&h->timer[i]);
    uint64_t counter = counter_now(h);
    hvx_state_u64(s, &h->config);
    hvx_state_u64(s, &h->status);
    hvx_state_u64(s, &counter);
    for (unsigned i = 0; i < HPET_TIMERS; i++) {
        hvx_state_u64(s, &h->timer[i].config);
        hvx_state_u64(s, &h->timer[i].comparator);
        hvx_state_u64(s, &h->timer[i].period);
        hvx_state_bool(s, &h->timer[i].armed);
    }
    if (!hvx_stream_is_saving(s)) {
        h->config &= CFG_ENABLE | CFG_LEGACY;
        h->counter = counter;
        h->base_ns = h->pc->host->clock_ns() - counter * HPET_TICK_NS;
        for (unsigned i = 0; i < HPET_TIMERS; i++) {
            h->timer[i].config &= T_WRITABLE;
            arm(&h->timer[i]);
        }
    }
    return hvx_state_error(s);
}
