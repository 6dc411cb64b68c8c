/* SPDX-License-Identifier: Apache-2.0
 *
 * rtc.c - the MC146818 clock with 128 bytes of CMOS RAM, ports 0x70/0x71.
 *
 * The date is the host's wall clock plus an offset that a guest changes by
 * setting the clock; it is UTC. Register 0x32 (and 0x37) is the century.
 * Update, alarm and periodic interrupts share irq 8 and clear on a read of
 * register C. Periodic rates above 8192 Hz do not exist on the part.
 *
 * Registers: Motorola MC146818A data sheet; the CMOS map is that of SeaBIOS.
 */
#include "pc.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CMOS_BYTES 128u
#define REG_A 0x0au
#define REG_B 0x0bu
#define REG_C 0x0cu
#define REG_D 0x0du
#define REG_CENTURY 0x32u
#define REG_CENTURY_PS2 0x37u
#define A_UIP 0x80u
#define B_SET 0x80u
#define B_PIE 0x40u
#define B_AIE 0x20u
#define B_UIE 0x10u
#define B_BINARY 0x04u
#define B_24H 0x02u
#define C_IRQF 0x80u
#define C_PF 0x40u
#define C_AF 0x20u
#define C_UF 0x10u
/* The update cycle: UIP rises 244 us before the second ends. */
#define UIP_NS 244000u
#define RTC_IRQ 8u
#define RTC_HZ 32768u

struct rtc {
    struct pc *pc;
    struct hvx_timer *second_timer, *periodic_timer;
    bool irq_on;
    uint8_t index;
    uint8_t cmos[CMOS_BYTES]; /* time registers here are only used while SET holds the clock */
    int64_t offset_ns;        /* guest's clock minus the host's */
    uint64_t periodic_ns;     /* next periodic event, clock_ns time */
    unsigned periodic_owed;   /* events that came while the guest had not yet seen an earlier one */
    int64_t last_second;      /* last second whose alarm was looked at */
};

static int64_t guest_ns(const struct rtc *r)
{
    /* unsigned: an offset from a saved file may be anything and must only wrap */
    return (int64_t)(r->pc->host->wall_clock_ns() + (uint64_t)r->offset_ns);
}

static int64_t floor_div(int64_t a, int64_t b)
{
    int64_t q = a / b;
    return a % b < 0 ? q - 1 : q;
}

static uint8_t encode(const struct rtc *r, unsigned v)
{
    return (uint8_t)(r->cmos[REG_B] & B_BINARY ? v : v / 10 % 10 << 4 | v % 10);
}

static unsigned decode(const struct rtc *r, uint8_t v)
{
    return r->cmos[REG_B] & B_BINARY ? v : (v >> 4) * 10u + (v & 15);
}

static uint8_t encode_hour(const struct rtc *r, unsigned hour)
{
    if (r->cmos[REG_B] & B_24H)
        return encode(r, hour);
    unsigned h12 = hour % 12 ? hour % 12 : 12;
    return (uint8_t)(encode(r, h12) | (hour >= 12 ? 0x80 : 0));
}

static unsigned decode_hour(const struct rtc *r, uint8_t v)
{
    if (r->cmos[REG_B] & B_24H)
        return decode(r, v);
    unsigned h = decode(r, v & 0x7f) % 12;
    return h + (v & 0x80 ? 12 : 0);
}

/* Bring the time registers up to date from the clock. */
static void clock_to_cmos(struct rtc *r)
{
    time_t t = (time_t)floor_div(guest_ns(r), (int64_t)PC_NS_PER_SEC);
    struct tm tm;
    if (!gmtime_r(&t, &tm))
        return;
    unsigned year = (unsigned)(tm.tm_year + 1900) % 10000;
    r->cmos[0] = encode(r, (unsigned)tm.tm_sec);
    r->cmos[2] = encode(r, (unsigned)tm.tm_min);
    r->cmos[4] = encode_hour(r, (unsigned)tm.tm_hour);
    r->cmos[6] = encode(r, (unsigned)tm.tm_wday + 1);
    r->cmos[7] = encode(r, (unsigned)tm.tm_mday);
    r->cmos[8] = encode(r, (unsigned)tm.tm_mon + 1);
    r->cmos[9] = encode(r, year % 100);
    r->cmos[REG_CENTURY] = r->cmos[REG_CENTURY_PS2] = encode(r, year / 100);
}

static void cmos_to_clock(struct rtc *r)
{
    struct tm tm = {
        .tm_sec = (int)decode(r, r->cmos[0]),
        .tm_min = (int)decode(r, r->cmos[2]),
        .tm_hour = (int)decode_hour(r, r->cmos[4]),
        .tm_mday = (int)decode(r, r->cmos[7]),
        .tm_mon = (int)decode(r, r->cmos[8]) - 1,
        .tm_year = (int)(decode(r, r->cmos[9]) + decode(r, r->cmos[REG_CENTURY]) * 100) - 1900,
    };
    /* Nonsense in the registers must not overflow 64 bits of nanoseconds (the year 2262). */
    if (tm.tm_year < 0 || tm.tm_year > 350)
        tm.tm_year = 100;
    int64_t want = (int64_t)timegm(&tm) * (int64_t)PC_NS_PER_SEC;
    r->offset_ns = (int64_t)((uint64_t)want - r->pc->host->wall_clock_ns());
    r->last_second = floor_div(want, (int64_t)PC_NS_PER_SEC);
}

static bool clock_runs(const struct rtc *r)
{
    /* divider 0x20 selects the 32 kHz crystal; 0x60 and 0x70 hold the chain in reset */
    return !(r->cmos[REG_B] & B_SET) && (r->cmos[REG_A] & 0x60) != 0x60;
}

static void raise(struct rtc *r, uint8_t flag, uint8_t enable)
{
    r->cmos[REG_C] |= flag;
    if (!(r->cmos[REG_B] & enable))
        return;
    r->cmos[REG_C] |= C_IRQF;
    if (r->irq_on)
        r->pc->host->irq_set(r->pc->vm, RTC_IRQ, true);
}

/* --- the second: update-ended and alarm ------------------------------------- */
static bool alarm_matches(const struct rtc *r, int64_t second)
{
    time_t t = (time_t)second;
    struct tm tm;
    if (!gmtime_r(&t, &tm))
        return false;
    const uint8_t *c = r->cmos;
    /* 0xc0..0xff: don't care */
    return (c[1] >= 0xc0 || c[1] == encode(r, (unsigned)tm.tm_sec)) &&
           (c[3] >= 0xc0 || c[3] == encode(r, (unsigned)tm.tm_min)) &&
           (c[5] >= 0xc0 || c[5] == encode_hour(r, (unsigned)tm.tm_hour));
}

static void arm_second(struct rtc *r)
{
    uint8_t b = r->cmos[REG_B];
    if (!clock_runs(r) || !(b & (B_UIE | B_AIE))) {
        r->pc->host->timer_set(r->second_timer, PC_NEVER);
        return;
    }
    int64_t into = guest_ns(r) - floor_div(guest_ns(r), (int64_t)PC_NS_PER_SEC) * (int64_t)PC_NS_PER_SEC;
    r->pc->host->timer_set(r->second_timer, r->pc->host->clock_ns() + PC_NS_PER_SEC - (uint64_t)into);
}

static void second_due(void *opaque)
{
    struct rtc *r = opaque;
    int64_t second = floor_div(guest_ns(r), (int64_t)PC_NS_PER_SEC);
    if (clock_runs(r) && second > r->last_second) {
        r->last_second = second;
        raise(r, C_UF, B_UIE);
        if (alarm_matches(r, second)) {
            raise(r, C_AF, B_AIE);
            if (r->cmos[REG_B] & B_AIE)
                piix4_pm_rtc_alarm(r->pc->pm);
        }
    }
    arm_second(r);
}

/* --- the periodic interrupt --------------------------------------------------- */
static uint64_t period_ns(const struct rtc *r)
{
    unsigned rate = r->cmos[REG_A] & 0x0f;
    if (!rate || (r->cmos[REG_A] & 0x60) == 0x60)
        return 0;
    if (rate <= 2)
        rate += 7; /* 1 and 2 mean the same as 8 and 9 */
    return (1ull << (rate - 1)) * PC_NS_PER_SEC / RTC_HZ;
}

static void arm_periodic(struct rtc *r)
{
    uint64_t period = period_ns(r);
    if (!period || !(r->cmos[REG_B] & B_PIE)) {
        r->periodic_ns = PC_NEVER;
    } else {
        uint64_t now = r->pc->host->clock_ns();
        if (r->periodic_ns == PC_NEVER || r->periodic_ns + 100 * PC_NS_PER_SEC < now)
            r->periodic_ns = now;
        /* the next one on the old beat */
        if (r->periodic_ns <= now)
            r->periodic_ns += (1 + (now - r->periodic_ns) / period) * period;
    }
    if (r->periodic_ns == PC_NEVER)
        r->periodic_owed = 0;
    r->pc->host->timer_set(r->periodic_timer, r->periodic_ns);
}

static void periodic_due(void *opaque)
{
    struct rtc *r = opaque;
    uint64_t period = period_ns(r), now = r->pc->host->clock_ns();
    uint64_t n = period && now > r->periodic_ns ? 1 + (now - r->periodic_ns) / period : 1;
    uint64_t owed = r->periodic_owed + n - !(r->cmos[REG_C] & C_PF);
    /* A guest counts the interrupts: those that it could not see are made up for, one with each read of register C. */
    if (period >= PC_TICK_MIN_NS && r->irq_on)
        r->periodic_owed = owed < HVX_TICKS_OWED_MAX ? (unsigned)owed : HVX_TICKS_OWED_MAX;
    raise(r, C_PF, B_PIE);
    arm_periodic(r);
}

/* --- ports --------------------------------------------------------------------- */
static uint8_t register_read(struct rtc *r)
{
    uint8_t v;
    switch (r->index) {
    case 0: case 2: case 4: case 6: case 7: case 8: case 9: case REG_CENTURY: case REG_CENTURY_PS2:
        if (clock_runs(r))
            clock_to_cmos(r);
        return r->cmos[r->index];
    case REG_A:
        v = r->cmos[REG_A];
        if (clock_runs(r)) {
            int64_t into = guest_ns(r) % (int64_t)PC_NS_PER_SEC;
            if (into >= (int64_t)(PC_NS_PER_SEC - UIP_NS))
                v |= A_UIP;
        }
        return v;
    case REG_C:
        v = r->cmos[REG_C];
        r->cmos[REG_C] = 0;
        if (r->irq_on)
            r->pc->host->irq_set(r->pc->vm, RTC_IRQ, false);
        if ((v & C_PF) && r->periodic_owed) {
            r->periodic_owed--;
            raise(r, C_PF, B_PIE);
        }
        return v;
    case REG_D:
        return 0x80; /* battery is good */
    default:
        return r->cmos[r->index];
    }
}

static void write_b(struct rtc *r, uint8_t v)
{
    if (v & B_SET) {
        if (clock_runs(r))
            clock_to_cmos(r);
        v &= (uint8_t)~B_UIE;
    }
    bool set_ends = (r->cmos[REG_B] & B_SET) && !(v & B_SET);
    r->cmos[REG_B] = v;
    if (set_ends)
        cmos_to_clock(r);
    if (r->cmos[REG_C] & v & (C_PF | C_AF | C_UF)) {
        r->cmos[REG_C] |= C_IRQF;
        if (r->irq_on)
            r->pc->host->irq_set(r->pc->vm, RTC_IRQ, true);
    }
    r->last_second = floor_div(guest_ns(r), (int64_t)PC_NS_PER_SEC);
    arm_second(r);
    arm_periodic(r);
}

static void register_write(struct rtc *r, uint8_t v)
{
    switch (r->index) {
    case 0: case 2: case 4: case 6: case 7: case 8: case 9: case REG_CENTURY: case REG_CENTURY_PS2:
        if (clock_runs(r))
            clock_to_cmos(r);
        r->cmos[r->index] = v;
        if (r->index == REG_CENTURY_PS2)
            r->cmos[REG_CENTURY] = v;
        if (clock_runs(r)) /* set without SET: takes effect at once */
            cmos_to_clock(r);
        break;
    case REG_A: {
        bool ran = clock_runs(r);
        if (ran)
            clock_to_cmos(r);
        r->cmos[REG_A] = v & (uint8_t)~A_UIP;
        if (!ran && clock_runs(r))
            cmos_to_clock(r);
        arm_second(r);
        arm_periodic(r);
        break;
    }
    case REG_B:
        write_b(r, v);
        break;
    case REG_C:
    case REG_D:
        break; /* read-only */
    default:
        r->cmos[r->index] = v;
    }
}

static uint64_t rtc_read(void *opaque, uint64_t off, unsigned size)
{
    (void)size;
    return off == 1 ? register_read(opaque) : 0xff;
}

static void rtc_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct rtc *r = opaque;
    (void)size;
    if (off == 0)
        r->index = value & 0x7f; /* bit 7 masks NMI, of which there is none */
    else
        register_write(r, (uint8_t)value);
}

static const struct hvx_region_ops rtc_ops = {rtc_read, rtc_write};

void rtc_enable_irq(struct rtc *r, bool on)
{
    if (r->irq_on && !on)
        r->pc->host->irq_set(r->pc->vm, RTC_IRQ, false);
    r->irq_on = on;
}

void rtc_set_cmos(struct rtc *r, unsigned index, uint8_t value)
{
    if (index > REG_D && index < CMOS_BYTES)
        r->cmos[index] = value;
}

int rtc_create(struct pc *pc, struct rtc **out, struct hvx_error *err)
{
    struct rtc *r = calloc(1, sizeof(*r));
    if (!r)
        return hvx_fail(err, -ENOMEM, "pc: no memory for the clock");
    r->pc = pc;
    r->cmos[REG_A] = 0x26;
    r->cmos[REG_B] = B_24H;
    *out = r;
    int rc = pc->host->timer_new(pc->vm, second_due, r, &r->second_timer);
    if (rc == 0)
        rc = pc->host->timer_new(pc->vm, periodic_due, r, &r->periodic_timer);
    if (rc)
        return hvx_fail(err, rc, "pc: no host timer for the clock");
    return pc_region(pc, HVX_SPACE_PIO, 0x70, 2, HVX_REGION_MIN1, "rtc", &rtc_ops, r, err);
}

void rtc_destroy(struct rtc *r)
{
    if (!r)
        return;
    if (r->second_timer)
        r->pc->host->timer_del(r->second_timer);
    if (r->periodic_timer)
        r->pc->host->timer_del(r->periodic_timer);
    free(r);
}

/* The RESET pin clears the interrupt enables and flags and leaves time and CMOS alone. */
void rtc_reset(struct rtc *r)
{
    r->irq_on = true;
    r->index = 0;
    r->cmos[REG_B] &= (uint8_t) ~(B_PIE | B_AIE | B_UIE | 0x08);
    r->cmos[REG_C] = 0;
    r->periodic_ns = PC_NEVER;
    r->periodic_owed = 0;
    r->pc->host->irq_set(r->pc->vm, RTC_IRQ, false);
    arm_second(r);
    arm_periodic(r);
}

int rtc_state(struct rtc *r, struct hvx_stream *s)
{
    uint64_t now = r->pc->host->clock_ns();
    uint64_t until = r->periodic_ns == PC_NEVER ? PC_NEVER : r->periodic_ns > now ? r->periodic_ns - now : 0;
    uint64_t offset = (uint64_t)r->offset_ns;
    hvx_state_bool(s, &r->irq_on);
    hvx_state_u8(s, &r->index);
    hvx_state_bytes(s, r->cmos, sizeof(r->cmos));
    hvx_state_u64(s, &offset);
    hvx_state_u64(s, &until);
    if (!hvx_stream_is_saving(s) && !hvx_state_error(s)) {
        r->index &= 0x7f;
        r->offset_ns = (int64_t)offset;
        r->periodic_ns = until == PC_NEVER || until > 100 * PC_NS_PER_SEC ? PC_NEVER : now + until;
        r->last_second = floor_div(guest_ns(r), (int64_t)PC_NS_PER_SEC);
        arm_second(r);
        arm_periodic(r);
    }
    return hvx_state_error(s);
}
