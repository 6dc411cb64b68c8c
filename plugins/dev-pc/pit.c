/* SPDX-License-Identifier: Apache-2.0
 *
 * pit.c - the 8254 interval timer, ports 0x40..0x43. Channel 0 drives irq 0,
 * channel 2 the speaker gate of port 0x61 that calibration loops watch.
 *
 * Nothing counts down: a channel remembers when its count was loaded, and
 * count and output are computed from the clock when somebody looks. A host
 * timer is armed only for the next rising edge of channel 0. Edges that came
 * and went while the host was busy are counted and made up for (irq_tick).
 *
 * Modes, read-back and latching: Intel 8254 data sheet, order 231164.
 */
#include "pc.h"

#include <stdlib.h>

#define PIT_CHANNELS 3u
/* A guest that loads tiny counts must not keep the host's loop busy. */
#define PIT_MIN_PERIOD_NS 50000u

enum { ACCESS_LATCH, ACCESS_LOW, ACCESS_HIGH, ACCESS_BOTH };

struct pit_channel {
    uint64_t start_ns; /* when the count was loaded or the gate rose */
    uint64_t frozen;   /* ticks gone when the gate fell; valid while `stopped` */
    uint32_t count;    /* 1..0x10000 */
    uint8_t mode, bcd, access;
    bool gate, stopped;
    bool loaded; /* a count was written since the control word */
    bool write_high, read_high; /* which half comes next when both are accessed */
    uint8_t write_low;
    bool count_latched, status_latched;
    uint16_t latch;
    uint8_t status;
};

struct pit {
    struct pc *pc;
    struct hvx_timer *timer;
    bool irq_on; /* false while the HPET replaces irq 0 */
    uint64_t edges; /* of channel 0 since its count was loaded, as far as they were told to the guest */
    struct pit_channel ch[PIT_CHANNELS];
};

static bool periodic(const struct pit_channel *c) { return c->mode == 2 || c->mode == 3; }

static uint64_t ticks_gone(const struct pit *p, const struct pit_channel *c)
{
    if (c->stopped)
        return c->frozen;
    return pc_muldiv(p->pc->host->clock_ns() - c->start_ns, PC_PIT_HZ, PC_NS_PER_SEC);
}

static bool channel_out(const struct pit *p, const struct pit_channel *c)
{
    if (!c->loaded)
        return c->mode != 0;
    uint64_t d = ticks_gone(p, c);
    switch (c->mode) {
    case 0:
        return d >= c->count;
    case 1:
        return d >= c->count;
    case 2:
        return c->count == 1 || d % c->count != c->count - 1;
    case 3:
        return d % c->count < (c->count + 1) / 2;
    default:
        return d != c->count;
    }
}

static uint16_t to_bcd(uint32_t v)
{
    v %= 10000;
    return (uint16_t)((v / 1000) << 12 | (v / 100 % 10) << 8 | (v / 10 % 10) << 4 | v % 10);
}

static uint32_t from_bcd(uint16_t v)
{
    return (v >> 12) * 1000u + ((v >> 8) & 15) * 100u + ((v >> 4) & 15) * 10u + (v & 15);
}

static uint16_t channel_count(const struct pit *p, const struct pit_channel *c)
{
    uint64_t d = ticks_gone(p, c);
    uint32_t wrap = c->bcd ? 10000 : 0x10000;
    uint32_t v;
    if (c->mode == 3) {
        v = c->count - (uint32_t)(2 * d % c->count); /* counts by two */
        v &= ~1u;
    } else if (c->mode == 2) {
        v = c->count - (uint32_t)(d % c->count);
    } else {
        v = (uint32_t)((c->count + wrap - d % wrap) % wrap);
    }
    return c->bcd ? to_bcd(v) : (uint16_t)v;
}

/* The next rising edge of channel 0 after tick `d`, as a tick; PC_NEVER when none comes. */
static uint64_t next_edge(const struct pit_channel *c, uint64_t d)
{
    if (!c->loaded || c->stopped)
        return PC_NEVER;
    if (periodic(c))
        return (d / c->count + 1) * c->count;
    return d < c->count ? c->count : PC_NEVER;
}

static void arm(struct pit *p)
{
    struct pit_channel *c = &p->ch[0];
    uint64_t edge = p->irq_on ? next_edge(c, ticks_gone(p, c)) : PC_NEVER;
    if (edge == PC_NEVER) {
        p->pc->host->timer_set(p->timer, PC_NEVER);
        return;
    }
    /* One nanosecond more, or truncation would find the tick before the edge. */
    uint64_t at = c->start_ns + pc_muldiv(edge, PC_NS_PER_SEC, PC_PIT_HZ) + 1;
    uint64_t soonest = p->pc->host->clock_ns() + (periodic(c) ? PIT_MIN_PERIOD_NS : 0);
    p->pc->host->timer_set(p->timer, at < soonest ? soonest : at);
}

/* Nothing is owed from before: the count or the mode is new. */
static void forget_edges(struct pit *p)
{
    p->edges = p->ch[0].loaded ? ticks_gone(p, &p->ch[0]) / p->ch[0].count : 0;
    p->pc->host->irq_tick(p->pc->vm, 0, 0);
}

static void periodic_edges(struct pit *p)
{
    struct pit_channel *c = &p->ch[0];
    uint64_t edges = ticks_gone(p, c) / c->count, n = edges - p->edges;
    if (pc_muldiv(c->count, PC_NS_PER_SEC, PC_PIT_HZ) < PC_TICK_MIN_NS)
        n = n ? 1 : 0;
    p->edges = edges;
    if (n)
        p->pc->host->irq_tick(p->pc->vm, 0, n < HVX_TICKS_OWED_MAX ? (unsigned)n : HVX_TICKS_OWED_MAX);
}

static void edge_due(void *opaque)
{
    struct pit *p = opaque;
    struct pit_channel *c = &p->ch[0];
    if (!p->irq_on || !c->loaded)
        return;
    if (periodic(c)) {
        periodic_edges(p);
    } else if (ticks_gone(p, c) >= c->count) {
        p->pc->host->irq_set(p->pc->vm, 0, false);
        p->pc->host->irq_set(p->pc->vm, 0, true);
    }
    arm(p);
}

static void load_count(struct pit *p, unsigned n, uint16_t raw)
{
    struct pit_channel *c = &p->ch[n];
    uint32_t v = c->bcd ? from_bcd(raw) : raw;
    c->count = v ? v : c->bcd ? 10000 : 0x10000;
    c->start_ns = p->pc->host->clock_ns();
    c->frozen = 0;
    /* Modes 1 and 5 wait for a rising gate; the others count while it is high. */
    c->stopped = !c->gate && c->mode != 1 && c->mode != 5;
    c->loaded = true;
    if (n == 0) {
        if (p->irq_on)
            forget_edges(p);
        if (c->mode == 0)
            p->pc->host->irq_set(p->pc->vm, 0, false);
        arm(p);
    }
}

static void latch_status(struct pit *p, struct pit_channel *c)
{
    if (c->status_latched)
        return;
    c->status = (uint8_t)(channel_out(p, c) << 7 | !c->loaded << 6 | c->access << 4 | c->mode << 1 | c->bcd);
    c->status_latched = true;
}

static void latch_count(struct pit *p, struct pit_channel *c)
{
    if (c->count_latched)
        return;
    c->latch = channel_count(p, c);
    c->count_latched = true;
}

static void control_write(struct pit *p, uint8_t v)
{
    unsigned n = v >> 6;
    if (n == 3) { /* read-back */
        for (unsigned i = 0; i < PIT_CHANNELS; i++) {
            if (!(v & (2u << i)))
                continue;
            if (!(v & 0x20))
                latch_count(p, &p->ch[i]);
            if (!(v & 0x10))
                latch_status(p, &p->ch[i]);
        }
        return;
    }
    struct pit_channel *c = &p->ch[n];
    unsigned access = (v >> 4) & 3;
    if (access == ACCESS_LATCH) {
        latch_count(p, c);
        return;
    }
    c->access = (uint8_t)access;
    c->mode = (v >> 1) & 7;
    if (c->mode > 5)
        c->mode &= 3;
    c->bcd = v & 1;
    c->write_high = c->read_high = false;
    c->count_latched = c->status_latched = false;
    c->loaded = false;
    if (n == 0) {
        if (p->irq_on) {
            forget_edges(p);
            p->pc->host->irq_set(p->pc->vm, 0, false);
        }
        arm(p);
    }
}

static uint8_t channel_read(struct pit *p, struct pit_channel *c)
{
    if (c->status_latched) {
        c->status_latched = false;
        return c->status;
    }
    uint16_t v = c->count_latched ? c->latch : channel_count(p, c);
    bool high = c->access == ACCESS_HIGH;
    bool last = true;
    if (c->access == ACCESS_BOTH) {
        high = c->read_high;
        last = high;
        c->read_high = !high;
    }
    if (last)
        c->count_latched = false;
    return (uint8_t)(high ? v >> 8 : v);
}

static uint64_t pit_read(void *opaque, uint64_t off, unsigned size)
{
    struct pit *p = opaque;
    (void)size;
    return off < PIT_CHANNELS ? channel_read(p, &p->ch[off]) : 0;
}

static void pit_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct pit *p = opaque;
    uint8_t v = (uint8_t)value;
    (void)size;
    if (off >= PIT_CHANNELS) {
        control_write(p, v);
        return;
    }
    struct pit_channel *c = &p->ch[off];
    if (c->access == ACCESS_LOW) {
        load_count(p, (unsigned)off, v);
    } else if (c->access == ACCESS_HIGH) {
        load_count(p, (unsigned)off, (uint16_t)(v << 8));
    } else if (!c->write_high) {
        c->write_low = v;
        c->write_high = true;
    } else {
        c->write_high = false;
        load_count(p, (unsigned)off, (uint16_t)(v << 8 | c->write_low));
    }
}

static const struct hvx_region_ops pit_ops = {pit_read, pit_write};

void pit_set_gate2(struct pit *p, bool gate)
{
    struct pit_channel *c = &p->ch[2];
    if (gate == c->gate)
        return;
    if (!gate && (c->mode == 0 || periodic(c) || c->mode == 4)) {
        c->frozen = ticks_gone(p, c);
        c->stopped = true;
    } else if (gate) {
        uint64_t now = p->pc->host->clock_ns();
        /* Modes 0 and 4 go on where they stood, the others start afresh. */
        uint64_t gone = c->stopped && (c->mode == 0 || c->mode == 4) ? c->frozen : 0;
        c->start_ns = now - pc_muldiv(gone, PC_NS_PER_SEC, PC_PIT_HZ);
        c->stopped = false;
    }
    c->gate = gate;
}

bool pit_gate2(struct pit *p) { return p->ch[2].gate; }
bool pit_out2(struct pit *p) { return channel_out(p, &p->ch[2]); }

void pit_enable_irq(struct pit *p, bool on)
{
    if (p->irq_on == on)
        return;
    p->irq_on = on;
    forget_edges(p);
    arm(p);
}

int pit_create(struct pc *pc, struct pit **out, struct hvx_error *err)
{
    struct pit *p = calloc(1, sizeof(*p));
    if (!p)
        return hvx_fail(err, -ENOMEM, "pc: no memory for the interval timer");
    p->pc = pc;
    *out = p;
    int rc = pc->host->timer_new(pc->vm, edge_due, p, &p->timer);
    if (rc)
        return hvx_fail(err, rc, "pc: no host timer for the interval timer");
    return pc_region(pc, HVX_SPACE_PIO, 0x40, 4, HVX_REGION_MIN1, "pit", &pit_ops, p, err);
}

void pit_destroy(struct pit *p)
{
    if (!p)
        return;
    if (p->timer)
        p->pc->host->timer_del(p->timer);
    free(p);
}

void pit_reset(struct pit *p)
{
    p->irq_on = true;
    for (unsigned i = 0; i < PIT_CHANNELS; i++) {
        p->ch[i] = (struct pit_channel){
            .mode = 3, .access = ACCESS_BOTH, .count = 0x10000, .gate = i != 2,
            .start_ns = p->pc->host->clock_ns(),
        };
    }
    forget_edges(p);
    arm(p);
}

static void channel_state(struct pit *p, struct pit_channel *c, struct hvx_stream *s)
{
    uint64_t now = p->pc->host->clock_ns();
    uint64_t gone_ns = now - c->start_ns;
    hvx_state_u64(s, &gone_ns);
    c->start_ns = now - gone_ns;
    hvx_state_u64(s, &c->frozen);
    hvx_state_u32(s, &c->count);
    hvx_state_u8(s, &c->mode);
    hvx_state_u8(s, &c->bcd);
    hvx_state_u8(s, &c->access);
    hvx_state_bool(s, &c->gate);
    hvx_state_bool(s, &c->stopped);
    hvx_state_bool(s, &c->loaded);
    hvx_state_bool(s, &c->write_high);
    hvx_state_bool(s, &c->read_high);
    hvx_state_u8(s, &c->write_low);
    hvx_state_bool(s, &c->count_latched);
    hvx_state_bool(s, &c->status_latched);
    hvx_state_u16(s, &c->latch);
    hvx_state_u8(s, &c->status);
    if (c->count < 1 || c->count > 0x10000 || c->mode > 5 || c->bcd > 1 || c->access > 3) {
        c->count = 0x10000;
        c->mode = c->bcd = 0;
        c->access = ACCESS_BOTH;
        hvx_state_fail(s, -EINVAL, "interval timer: a channel's count or mode is out of range");
    }
}

int pit_state(struct pit *p, struct hvx_stream *s)
{
    hvx_state_bool(s, &p->irq_on);
    for (unsigned i = 0; i < PIT_CHANNELS; i++)
        channel_state(p, &p->ch[i], s);
    if (!hvx_stream_is_saving(s)) {
        p->edges = p->ch[0].loaded ? ticks_gone(p, &p->ch[0]) / p->ch[0].count : 0;
        arm(p);
    }
    return hvx_state_error(s);
}
