/* SPDX-License-Identifier: Apache-2.0 */
/* Local APIC: timer in its three modes, self IPIs, priorities, x2APIC; I/O APIC with the PIT. */
#include "tk.h"

#define APIC_BASE_MSR 0x1b
#define TSC_DEADLINE 0x6e0
enum { ID = 0x20, VERSION = 0x30, TPR = 0x80, PPR = 0xa0, EOI = 0xb0, LDR = 0xd0, DFR = 0xe0, SVR = 0xf0, ISR = 0x100,
       IRR = 0x200, ESR = 0x280, ICR = 0x300, ICR2 = 0x310, LVT_TIMER = 0x320, LVT_LINT0 = 0x350, LVT_ERROR = 0x370,
       TIMER_INITIAL = 0x380, TIMER_CURRENT = 0x390, TIMER_DIVIDE = 0x3e0 };

static bool x2;
static volatile uint32_t hits[256], order[16], n_order;

static uint32_t get(unsigned reg)
{
    return x2 ? (uint32_t)rdmsr(0x800 + reg / 16) : *(volatile uint32_t *)(0xfee00000ul + reg);
}

static void set(unsigned reg, uint32_t v)
{
    if (x2)
        wrmsr(0x800 + reg / 16, v);
    else
        *(volatile uint32_t *)(0xfee00000ul + reg) = v;
}

static void send_self(uint8_t vector)
{
    if (x2)
        wrmsr(0x83f, vector);
    else
        set(ICR, 0x40000u | vector); /* shorthand: self */
}

static void on_hit(struct tk_frame *f)
{
    hits[f->vector]++;
    if (n_order < 16)
        order[n_order++] = (uint32_t)f->vector;
    set(EOI, 0);
}

#define STI __asm__ volatile("sti; nop; nop" : : : "memory")
#define CLI __asm__ volatile("cli" : : : "memory")

static bool wait_hits(unsigned vector, uint32_t n)
{
    for (int i = 0; i < 3000 && hits[vector] < n; i++)
        tk_delay_us(1000);
    return hits[vector] >= n;
}

static void timer(const char *const names[4])
{
    uint32_t before, current;

    tk_on(0x40, on_hit);
    hits[0x40] = 0;
    set(TIMER_DIVIDE, 3); /* by 16 */
    set(LVT_TIMER, 0x40);
    set(TIMER_INITIAL, 100000);
    current = get(TIMER_CURRENT);
    STI;
    if (!(current > 0 && current <= 100000))
        tk_say("the timer shows %u", current);
    CHECK(current > 0 && current <= 100000 && wait_hits(0x40, 1), names[0]);
    tk_delay_us(20000);
    EQUAL(hits[0x40], 1, names[1]);
    set(LVT_TIMER, 0x40 | 1 << 17);
    set(TIMER_INITIAL, 50000);
    CHECK(wait_hits(0x40, 6), names[2]);
    CLI;
    set(LVT_TIMER, 0x40 | 1 << 17 | 1 << 16); /* masked */
    STI;
    before = hits[0x40];
    tk_delay_us(20000);
    CHECK(hits[0x40] <= before + 1, names[3]);
    CLI;
    set(TIMER_INITIAL, 0);
}

static void deadline(void)
{
    uint32_t r[4];
    uint64_t start, due;

    cpuid(1, 0, r);
    if (!(r[2] & 1u << 24)) {
        tk_skip("tsc-deadline", "CPUID shows none");
        return;
    }
    hits[0x40] = 0;
    set(LVT_TIMER, 0x40 | 2 << 17);
    start = rdtsc();
    due = start + 20000000;
    wrmsr(TSC_DEADLINE, due);
    EQUAL(rdmsr(TSC_DEADLINE), due, "tsc-deadline-reads-back");
    STI;
    while (!hits[0x40] && rdtsc() < start + 40000000000ul)
        ;
    uint64_t now = rdtsc();
    if (now < due)
        tk_say("%u ticks too early", (unsigned)(due - now));
    CHECK(hits[0x40] == 1 && now >= due, "tsc-deadline-fires");
    EQUAL(rdmsr(TSC_DEADLINE), 0, "tsc-deadline-disarmed");
    wrmsr(TSC_DEADLINE, 1);
    tk_delay_us(1000);
    EQUAL(hits[0x40], 2, "tsc-deadline-in-the-past");
    wrmsr(TSC_DEADLINE, rdtsc() + 100000000);
    wrmsr(TSC_DEADLINE, 0);
    tk_delay_us(60000);
    EQUAL(hits[0x40], 2, "tsc-deadline-cancelled");
    for (int i = 0; i < 50; i++) {
        CLI;
        wrmsr(TSC_DEADLINE, rdtsc() + 200000);
        __asm__ volatile("sti; hlt" : : : "memory");
    }
    CHECK(hits[0x40] >= 52, "hlt-wakes-by-deadline");
    CLI;
    set(LVT_TIMER, 0x10000);
}

static void ipis(void)
{
    tk_on(0x50, on_hit);
    tk_on(0x61, on_hit);
    tk_on(0x72, on_hit);
    hits[0x50] = hits[0x61] = hits[0x72] = 0;
    n_order = 0;
    send_self(0x50);
    send_self(0x72);
    send_self(0x61);
    CHECK((get(IRR + 0x20) & 1u << 16) && (get(IRR + 0x30) & 1u << 1) && (get(IRR + 0x30) & 1u << 18), "irr-shows-pending");
    STI;
    CLI;
    CHECK(n_order == 3 && order[0] == 0x72 && order[1] == 0x61 && order[2] == 0x50, "highest-vector-first");
    /* The task priority holds back what is not above it. */
    set(TPR, 0x60);
    send_self(0x61);
    send_self(0x72);
    STI;
    CHECK(hits[0x61] == 1 && hits[0x72] == 2, "tpr-holds-back");
    EQUAL(get(PPR), 0x60, "ppr");
    set(TPR, 0);
    wait_hits(0x61, 2); /* at once on hardware, TCG takes until the end of its block */
    EQUAL(hits[0x61], 2, "tpr-lowered-delivers");
    CLI;
    if (!x2) {
        WRITE_REG("cr8", 7);
        EQUAL(get(TPR), 0x70, "cr8-is-tpr");
        send_self(0x72);
        STI;
        EQUAL(hits[0x72], 2, "cr8-holds-back");
        WRITE_REG("cr8", 0);
        wait_hits(0x72, 3);
        EQUAL(hits[0x72], 3, "cr8-lowered-delivers");
        CLI;
    }
    bool good = true;
    STI;
    for (uint32_t i = 0; i < 1000; i++) {
        uint32_t before = hits[0x50];

        send_self(0x50);
        while (hits[0x50] == before)
            __asm__ volatile("pause");
        good &= hits[0x50] == before + 1;
    }
    CLI;
    CHECK(good, "1000-self-ipis");
}

static volatile uint32_t nested_depth, nested_seen;

static void on_outer(struct tk_frame *f)
{
    (void)f;
    send_self(0x72);
    send_self(0x50);
    nested_depth = 1;
    __asm__ volatile("sti; nop; nop; nop; cli" : : : "memory");
    nested_seen = hits[0x72] * 16 + hits[0x50];
    set(EOI, 0);
}

static void nesting(void)
{
    tk_on(0x61, on_outer);
    hits[0x72] = hits[0x50] = 0;
    send_self(0x61);
    STI;
    CLI;
    CHECK(nested_seen == 16, "only-higher-class-nests");
    CHECK(hits[0x50] == 1, "lower-class-after-eoi");
}

static void io_apic(void)
{
    volatile uint32_t *select = (uint32_t *)0xfec00000ul, *window = (uint32_t *)0xfec00010ul;

    *select = 1;
    CHECK((*window >> 16 & 0xff) >= 15 && (*window & 0xff) >= 0x11, "ioapic-version");
    tk_on(0x42, on_hit);
    hits[0x42] = 0;
    *select = 0x10 + 2 * 2 + 1; /* the PIT is on pin 2 */
    *window = 0;
    *select = 0x10 + 2 * 2;
    *window = 0x42;
    outb(0x43, 0x34);
    outb(0x40, 11932 & 0xff);
    outb(0x40, 11932 >> 8);
    STI;
    CHECK(wait_hits(0x42, 5), "ioapic-pit");
    CLI;
    *select = 0x10 + 2 * 2;
    *window = 0x10042;
    STI;
    tk_delay_us(1000);
    uint32_t before = hits[0x42];
    tk_delay_us(30000);
    EQUAL(hits[0x42], before, "ioapic-masked");
    CLI;
}

void tk_main(void)
{
    static const char *const xapic[] = {"xapic-one-shot", "xapic-one-shot-once", "xapic-periodic", "xapic-masked"};
    static const char *const x2apic[] = {"x2apic-one-shot", "x2apic-one-shot-once", "x2apic-periodic", "x2apic-masked"};
    uint32_t r[4];

    tk_pic_setup(0x20, 0xffff);
    CHECK((rdmsr(APIC_BASE_MSR) & 0xfffff900) == 0xfee00900, "apic-base-msr");
    set(SVR, 0x1ff);
    CHECK((get(VERSION) & 0xff) >= 0x10, "apic-version");
    timer(xapic);
    deadline();
    ipis();
    nesting();
    io_apic();
    cpuid(1, 0, r);
    if (!(r[2] & 1u << 21)) {
        tk_skip("x2apic", "CPUID shows none");
        return;
    }
    wrmsr(APIC_BASE_MSR, rdmsr(APIC_BASE_MSR) | 0x400);
    x2 = true;
    set(SVR, 0x1ff);
    cpuid(0xb, 0, r);
    EQUAL(get(ID), r[3], "x2apic-id-is-cpuid");
    timer(x2apic);
    deadline();
    ipis();
    nesting();
    TRY("wrmsr", : : "c"(0x802), "a"(5), "d"(0) : "memory");
    CHECK(FAULTED(13, 0), "x2apic-id-is-read-only");
}
