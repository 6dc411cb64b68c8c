/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_irqchip.c - what guests rely on in the interrupt
 * controllers: priorities, trigger modes, destinations, spurious vectors.
 */
#include "test_stubs.h" /* before cmocka, whose fail() is a macro */
#include <setjmp.h>
#include <cmocka.h>
#include <signal.h>
#include <time.h>

static uint32_t reg(struct bt_vcpu *c, unsigned off)
{
    uint64_t v = 0;
    assert_true(bt_irqchip_mmio(c, 0xfee00000 + off, 4, false, &v));
    return (uint32_t)v;
}
static void set_reg(struct bt_vcpu *c, unsigned off, uint32_t value)
{
    uint64_t v = value;
    assert_true(bt_irqchip_mmio(c, 0xfee00000 + off, 4, true, &v));
}
static void ioapic_write(struct bt_vcpu *c, unsigned index, uint32_t value)
{
    uint64_t i = index, v = value;
    assert_true(bt_irqchip_mmio(c, 0xfec00000, 4, true, &i));
    assert_true(bt_irqchip_mmio(c, 0xfec00010, 4, true, &v));
}
static uint32_t ioapic_read(struct bt_vcpu *c, unsigned index)
{
    uint64_t i = index, v = 0;
    assert_true(bt_irqchip_mmio(c, 0xfec00000, 4, true, &i));
    assert_true(bt_irqchip_mmio(c, 0xfec00010, 4, false, &v));
    return (uint32_t)v;
}
static void pin(struct bt_vcpu *c, unsigned n, uint64_t entry)
{
    ioapic_write(c, 0x11 + 2 * n, (uint32_t)(entry >> 32));
    ioapic_write(c, 0x10 + 2 * n, (uint32_t)entry);
}
static void outb(struct bt_vcpu *c, uint16_t port, uint8_t value)
{
    uint32_t v = value;
    assert_true(bt_irqchip_pio(c, port, 1, true, &v));
}
static uint8_t inb(struct bt_vcpu *c, uint16_t port)
{
    uint32_t v = 0;
    assert_true(bt_irqchip_pio(c, port, 1, false, &v));
    return (uint8_t)v;
}
/* As a PC's firmware does: vectors 0x08 and 0x70, all open. */
static void pic_init(struct bt_vcpu *c, uint8_t icw4)
{
    outb(c, 0x20, 0x11), outb(c, 0x21, 0x08), outb(c, 0x21, 0x04), outb(c, 0x21, icw4);
    outb(c, 0xa0, 0x11), outb(c, 0xa1, 0x70), outb(c, 0xa1, 0x02), outb(c, 0xa1, icw4);
    outb(c, 0x21, 0), outb(c, 0xa1, 0);
}
static void apic_on(struct bt_vcpu *c)
{
    set_reg(c, 0xf0, 0x1ff);
    set_reg(c, 0x350, 0x10000);
}

static void pic_priorities_and_nesting(void **state)
{
    struct bt_vm *vm = test_vm_new(1);
    struct bt_vcpu *c = vm->vcpu[0];
    (void)state;
    pic_init(c, 1);
    assert_int_equal(bt_irq_ready(c), -1);
    bt_irq_line(vm, 4, true);
    bt_irq_line(vm, 1, true);
    assert_true(test_take_pending(c) & BT_PEND_IRQ);
    assert_int_equal(bt_irq_ready(c), 9);
    assert_int_equal(bt_irq_ack(c), 9);
    assert_int_equal(bt_irq_ready(c), -1); /* 4 waits for the end of 1 */
    outb(c, 0x20, 0x0b);
    assert_int_equal(inb(c, 0x20), 0x02); /* ISR */
    bt_irq_line(vm, 0, true);             /* higher: interrupts 1 */
    assert_int_equal(bt_irq_ack(c), 8);
    outb(c, 0x20, 0x20);
    assert_int_equal(inb(c, 0x20), 0x02);
    outb(c, 0x20, 0x20);
    assert_int_equal(bt_irq_ack(c), 12);
    outb(c, 0x20, 0x64); /* specific EOI of 4 */
    assert_int_equal(inb(c, 0x20), 0);
    outb(c, 0x21, 0x02);
    bt_irq_line(vm, 1, false);
    bt_irq_line(vm, 1, true);
    assert_int_equal(bt_irq_ready(c), -1); /* masked, but remembered */
    outb(c, 0x21, 0);
    assert_int_equal(bt_irq_ready(c), 9);
    test_vm_free(vm);
}

static void pic_cascade_and_spurious(void **state)
{
    struct bt_vm *vm = test_vm_new(1);
    struct bt_vcpu *c = vm->vcpu[0];
    (void)state;
    pic_init(c, 1);
    bt_irq_line(vm, 12, true);
    bt_irq_line(vm, 8, true);
    assert_int_equal(bt_irq_ack(c), 0x70);
    assert_int_equal(bt_irq_ready(c), -1);
    outb(c, 0xa0, 0x20);
    assert_int_equal(bt_irq_ready(c), -1); /* the master still serves its input 2 */
    outb(c, 0x20, 0x20);
    assert_int_equal(bt_irq_ack(c), 0x74);
    outb(c, 0xa0, 0x20), outb(c, 0x20, 0x20);
    /* A level that goes away before the acknowledge: vector 7, nothing in service. */
    outb(c, 0x4d0, 0x20);
    assert_int_equal(inb(c, 0x4d0), 0x20);
    bt_irq_line(vm, 5, true);
    assert_int_equal(bt_irq_ready(c), 13);
    bt_irq_line(vm, 5, false);
    assert_int_equal(bt_irq_ready(c), -1);
    assert_int_equal(bt_pic_ack(vm), 15);
    outb(c, 0x20, 0x0b);
    assert_int_equal(inb(c, 0x20), 0);
    test_vm_free(vm);
}

static void pic_level_rotation_poll_auto_eoi(void **state)
{
    struct bt_vm *vm = test_vm_new(1);
    struct bt_vcpu *c = vm->vcpu[0];
    (void)state;
    pic_init(c, 1);
    outb(c, 0x4d1, 0x08); /* IRQ 11 level */
    bt_irq_line(vm, 11, true);
    assert_int_equal(bt_irq_ack(c), 0x73);
    outb(c, 0xa0, 0x20), outb(c, 0x20, 0x20);
    assert_int_equal(bt_irq_ack(c), 0x73); /* still high: again */
    bt_irq_line(vm, 11, false);
    outb(c, 0xa0, 0x20), outb(c, 0x20, 0x20);
    assert_int_equal(bt_irq_ready(c), -1);

    bt_irq_line(vm, 3, true);
    assert_int_equal(bt_irq_ack(c), 11);
    outb(c, 0x20, 0xa0); /* rotate on non-specific EOI: 3 is now lowest, 4 highest */
    bt_irq_line(vm, 1, true);
    bt_irq_line(vm, 6, true);
    assert_int_equal(bt_irq_ack(c), 14);
    outb(c, 0x20, 0x20);
    outb(c, 0x20, 0x0c); /* poll */
    assert_int_equal(inb(c, 0x20), 0x81);
    outb(c, 0x20, 0x20);
    outb(c, 0x20, 0xc7); /* set priority: back to 0 highest */

    pic_init(c, 3); /* auto EOI */
    bt_irq_line(vm, 4, true);
    assert_int_equal(bt_irq_ack(c), 12);
    bt_irq_line(vm, 7, true);
    assert_int_equal(bt_irq_ack(c), 15);
    uint32_t v = 0;
    assert_false(bt_irqchip_pio(c, 0x22, 1, false, &v));
    assert_false(bt_irqchip_pio(c, 0x60, 1, false, &v));
    test_vm_free(vm);
}

static void apic_priorities_and_eoi(void **state)
{
    struct bt_vm *vm = test_vm_new(1);
    struct bt_vcpu *c = vm->vcpu[0];
    (void)state;
    assert_int_equal(reg(c, 0x30), 0x50014);
    bt_msi(vm, 0xfee00000, 0x41);
    assert_int_equal(bt_irq_ready(c), -1); /* software-disabled: refused */
    apic_on(c);
    bt_msi(vm, 0xfee00000, 0x41);
    bt_msi(vm, 0xfee00000, 0x62);
    assert_int_equal(reg(c, 0x230), 4); /* IRR: vector 0x62 is bit 2 of word 3 */
    assert_int_equal(bt_irq_ack(c), 0x62);
    assert_int_equal(reg(c, 0xa0), 0x60);
    assert_int_equal(bt_irq_ready(c), -1);
    bt_msi(vm, 0xfee00000, 0x6f);
    assert_int_equal(bt_irq_ready(c), -1); /* same class */
    bt_msi(vm, 0xfee00000, 0x70);
    assert_int_equal(bt_irq_ack(c), 0x70);
    set_reg(c, 0xb0, 0);
    test_take_pending(c);
    set_reg(c, 0xb0, 0);
    assert_true(test_take_pending(c) & BT_PEND_IRQ); /* lower priority wakes what waited */
    assert_int_equal(bt_irq_ack(c), 0x6f);
    set_reg(c, 0xb0, 0);
    bt_apic_set_tpr(c, 4);
    assert_int_equal(bt_irq_ready(c), -1);
    test_take_pending(c);
    bt_apic_set_tpr(c, 3);
    assert_true(test_take_pending(c) & BT_PEND_IRQ);
    assert_int_equal(reg(c, 0x80), 0x30);
    assert_int_equal(bt_irq_ack(c), 0x41);
    /* errors: a vector below 16, a register that does not exist */
    set_reg(c, 0x370, 0xee);
    bt_msi(vm, 0xfee00000, 5);
    assert_int_equal(bt_irq_ack(c), 0xee);
    (void)reg(c, 0x40);
    set_reg(c, 0x280, 0);
    assert_int_equal(reg(c, 0x280), 0xc0);
    test_vm_free(vm);
}

static void apic_destinations(void **state)
{
    struct bt_vm *vm = test_vm_new(4);
    struct bt_vcpu **v = vm->vcpu;
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        apic_on(v[i]);
        set_reg(v[i], 0xd0, 1u << (24 + i));
    }
    set_reg(v[0], 0x310, 2u << 24);
    set_reg(v[0], 0x300, 0x4050); /* physical 2 */
    assert_int_equal(bt_irq_ack(v[2]), 0x50);
    assert_int_equal(bt_irq_ready(v[0]) & bt_irq_ready(v[1]) & bt_irq_ready(v[3]), -1);
    set_reg(v[0], 0x310, 0xau << 24);
    set_reg(v[0], 0x300, 0x4851); /* logical, flat: 1 and 3 */
    assert_int_equal(bt_irq_ready(v[0]), -1);
    assert_int_equal(bt_irq_ack(v[1]), 0x51);
    assert_int_equal(bt_irq_ack(v[3]), 0x51);
    for (unsigned i = 0; i < 4; i++) { /* cluster model: 0,1 in cluster 0, 2,3 in cluster 1 */
        set_reg(v[i], 0xb0, 0);
        set_reg(v[i], 0xe0, 0x0fffffff);
        set_reg(v[i], 0xd0, (i / 2) << 28 | 1u << (24 + i % 2));
    }
    bt_msi(vm, 0xfee00004 | 0x13 << 12, 0x52);
    assert_int_equal(bt_irq_ready(v[1]), -1);
    assert_int_equal(bt_irq_ack(v[2]), 0x52);
    assert_int_equal(bt_irq_ack(v[3]), 0x52);
    set_reg(v[1], 0x300, 0xc4053); /* all but self */
    assert_int_equal(bt_irq_ready(v[1]), -1);
    assert_int_equal(bt_irq_ready(v[0]), 0x53);
    set_reg(v[1], 0x300, 0x44054); /* self */
    assert_int_equal(bt_irq_ready(v[1]), 0x54);
    test_take_pending(v[3]);
    set_reg(v[0], 0x310, 3u << 24);
    set_reg(v[0], 0x300, 0x4400);
    assert_int_equal(test_take_pending(v[3]), BT_PEND_NMI);
    set_reg(v[0], 0x300, 0xc500);
    assert_int_equal(test_take_pending(v[3]), BT_PEND_INIT);
    set_reg(v[0], 0x300, 0x8500); /* de-assert */
    assert_int_equal(test_take_pending(v[3]), 0);
    set_reg(v[0], 0x300, 0x4699);
    assert_int_equal(test_take_pending(v[3]), BT_PEND_SIPI);
    assert_int_equal(bt_apic_sipi_vector(v[3]), 0x99);
    test_vm_free(vm);
}

static void lowest_priority_takes_the_idlest(void **state)
{
    struct bt_vm *vm = test_vm_new(3);
    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        apic_on(vm->vcpu[i]);
        set_reg(vm->vcpu[i], 0xd0, 1u << (24 + i));
        set_reg(vm->vcpu[i], 0x80, i == 1 ? 0x10 : 0x30);
    }
    bt_msi(vm, 0xfee0700c, 0x60); /* logical, redirection hint */
    assert_int_equal(bt_irq_ready(vm->vcpu[0]), -1);
    assert_int_equal(bt_irq_ack(vm->vcpu[1]), 0x60);
    assert_int_equal(bt_irq_ready(vm->vcpu[2]), -1);
    test_vm_free(vm);
}

static void ioapic_level_and_edge(void **state)
{
    struct bt_vm *vm = test_vm_new(1);
    struct bt_vcpu *c = vm->vcpu[0];
    uint64_t v = 0x60;
    (void)state;
    apic_on(c);
    assert_int_equal(ioapic_read(c, 1), 0x170020);
    bt_irq_line(vm, 20, true);
    assert_int_equal(bt_irq_ready(c), -1);
    pin(c, 20, 0x8060); /* level, open: delivered now since the line is high */
    assert_int_equal(bt_irq_ack(c), 0x60);
    assert_int_equal(ioapic_read(c, 0x38), 0xc060); /* remote IRR */
    assert_int_equal(reg(c, 0x1b0), 1);             /* TMR */
    set_reg(c, 0xb0, 0);
    assert_int_equal(bt_irq_ack(c), 0x60); /* still high: again */
    bt_irq_line(vm, 20, false);
    set_reg(c, 0xb0, 0);
    assert_int_equal(bt_irq_ready(c), -1);
    assert_int_equal(ioapic_read(c, 0x38), 0x8060);
    bt_irq_line(vm, 20, true);
    assert_true(bt_irqchip_mmio(c, 0xfec00040, 4, true, &v)); /* I/O APIC's own EOI */
    bt_irq_line(vm, 20, false);

    bt_irq_ack(c), set_reg(c, 0xb0, 0);
    bt_irq_ack(c), set_reg(c, 0xb0, 0);
    pin(c, 4, 0x10044); /* edge, masked: lost */
    bt_irq_line(vm, 4, true);
    pin(c, 4, 0x44);
    assert_int_equal(bt_irq_ready(c), -1);
    bt_irq_line(vm, 4, false);
    bt_irq_line(vm, 4, true);
    assert_int_equal(bt_irq_ack(c), 0x44);
    set_reg(c, 0xb0, 0);
    pin(c, 2, 0x45); /* IRQ 0 arrives at pin 2 */
    bt_irq_line(vm, 0, true);
    assert_int_equal(bt_irq_ack(c), 0x45);
    test_vm_free(vm);
}

/* Acknowledges and ends whatever comes; returns how often it was `vector`. */
static unsigned take_all(struct bt_vcpu *c, int vector, bool at_pic)
{
    unsigned n = 0;
    for (unsigned i = 0; i < 1000 && bt_irq_ready(c) >= 0; i++) {
        n += bt_irq_ack(c) == vector;
        if (at_pic)
            outb(c, 0x20, 0x20);
        else
            set_reg(c, 0xb0, 0);
    }
    return n;
}

static void ticks_are_not_lost(void **state)
{
    struct bt_vm *vm = test_vm_new(1);
    struct bt_vcpu *c = vm->vcpu[0];
    (void)state;
    apic_on(c);
    c->iflag = 1;
    pin(c, 2, 0x10045); /* masked: nobody listens */
    outb(c, 0x21, 0xff);
    bt_irq_tick(vm, 0, 5);
    pin(c, 2, 0x45);
    assert_int_equal(take_all(c, 0x45, false), 0);
    bt_irq_tick(vm, 0, 1);
    bt_irq_tick(vm, 0, 1);
    bt_irq_tick(vm, 0, 3);
    assert_int_equal(take_all(c, 0x45, false), 5);
    bt_irq_tick(vm, 0, 4);
    assert_int_equal(bt_irq_ack(c), 0x45);
    bt_irq_tick(vm, 0, 0); /* stopped: what is requested already comes, the rest does not */
    set_reg(c, 0xb0, 0);
    assert_int_equal(take_all(c, 0x45, false), 1);
    for (unsigned i = 0; i < 100; i++)
        bt_irq_tick(vm, 0, 100);
    assert_in_range(take_all(c, 0x45, false), HVX_TICKS_OWED_MAX, HVX_TICKS_OWED_MAX + 1);
    bt_irq_tick(vm, 0, 1);
    bt_irq_line(vm, 4, true); /* other lines merge as ever */
    assert_int_equal(take_all(c, 0x45, false), 1);
    c->iflag = 0; /* the guest does not want any: as on the part, one is kept */
    bt_irq_tick(vm, 0, 3);
    bt_irq_tick(vm, 0, 1);
    assert_int_equal(take_all(c, 0x45, false), 1);
    test_vm_free(vm);

    vm = test_vm_new(1);
    c = vm->vcpu[0];
    pic_init(c, 1);
    c->iflag = 1;
    bt_irq_tick(vm, 0, 1);
    bt_irq_tick(vm, 0, 2);
    assert_int_equal(take_all(c, 8, true), 3);
    test_vm_free(vm);
}

static void virtual_wire(void **state)
{
    struct bt_vm *vm = test_vm_new(2);
    struct bt_vcpu *c = vm->vcpu[0];
    (void)state;
    pic_init(c, 1);
    bt_irq_line(vm, 1, true);
    assert_int_equal(bt_irq_ready(vm->vcpu[1]), -1);
    assert_int_equal(bt_irq_ready(c), 9); /* after reset, through LINT0 */
    set_reg(c, 0x350, 0x10700);
    assert_int_equal(bt_irq_ready(c), -1);
    set_reg(c, 0xf0, 0x1ff);
    set_reg(c, 0x350, 0x700);
    assert_int_equal(bt_irq_ack(c), 9);
    outb(c, 0x20, 0x20);
    set_reg(c, 0x350, 0x10000);
    pin(c, 0, 0x700); /* ExtINT through the I/O APIC's pin 0 */
    bt_irq_line(vm, 4, true);
    assert_int_equal(bt_irq_ack(c), 12);
    outb(c, 0x20, 0x20);
    uint64_t base;
    assert_true(bt_apic_msr(c, 0x1b, false, &base));
    assert_int_equal(base, 0xfee00900);
    base &= ~0x800ull;
    assert_true(bt_apic_msr(c, 0x1b, true, &base));
    bt_irq_line(vm, 3, true);
    assert_int_equal(bt_irq_ack(c), 11); /* no APIC: INTR is the processor's pin */
    uint64_t v = 0;
    assert_false(bt_irqchip_mmio(c, 0xfee00020, 4, false, &v));
    test_vm_free(vm);
}

static void x2apic(void **state)
{
    struct bt_vm *vm = test_vm_new(20);
    struct bt_vcpu *c = vm->vcpu[17];
    uint64_t v;
    (void)state;
    assert_false(bt_apic_msr(c, 0x802, false, &v));
    v = 0xfee00c00;
    assert_true(bt_apic_msr(c, 0x1b, true, &v));
    v = 0xfee00800;
    assert_false(bt_apic_msr(c, 0x1b, true, &v)); /* not back without a stop at "disabled" */
    assert_true(bt_apic_msr(c, 0x802, false, &v));
    assert_int_equal(v, 17);
    assert_true(bt_apic_msr(c, 0x80d, false, &v));
    assert_int_equal(v, 0x10002);
    v = 0x1ff;
    assert_true(bt_apic_msr(c, 0x80f, true, &v));
    v = 0x55;
    assert_true(bt_apic_msr(c, 0x83f, true, &v)); /* self IPI */
    assert_int_equal(bt_irq_ack(c), 0x55);
    v = 1;
    assert_false(bt_apic_msr(c, 0x80b, true, &v)); /* EOI takes only 0 */
    v = 0;
    assert_true(bt_apic_msr(c, 0x80b, true, &v));
    v = 17ull << 32 | 0x4056;
    assert_true(bt_apic_msr(c, 0x830, true, &v));
    assert_int_equal(bt_irq_ready(c), 0x56);
    v = 0x10002ull << 32 | 0x4857;
    assert_true(bt_apic_msr(c, 0x830, true, &v)); /* logical */
    assert_int_equal(bt_irq_ready(c), 0x57);
    static const unsigned absent[] = {0x800, 0x801, 0x80e, 0x831, 0x82f, 0x838 + 4};
    for (unsigned i = 0; i < sizeof(absent) / sizeof(absent[0]); i++)
        assert_false(bt_apic_msr(c, absent[i], false, &v));
    assert_false(bt_irqchip_mmio(c, 0xfee00020, 4, false, &v));
    test_vm_free(vm);
}

static volatile sig_atomic_t timer_signals;
static void on_timer(int sig, siginfo_t *si, void *uc)
{
    (void)sig, (void)uc;
    timer_signals += si->si_code == SI_TIMER;
}

static void apic_timer_modes(void **state)
{
    struct bt_vm *vm = test_vm_new(1);
    struct bt_vcpu *c = vm->vcpu[0];
    struct sigaction sa = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO};
    uint64_t v;
    (void)state;
    sigaction(BT_SIG_KICK, &sa, NULL);
    apic_on(c);
    set_reg(c, 0x3e0, 0xb);      /* divide by 1 */
    set_reg(c, 0x320, 0x400e0); /* TSC deadline */
    v = 1;
    assert_true(bt_apic_msr(c, 0x6e0, true, &v)); /* in the past: at once, no timer */
    assert_int_equal(c->has_timer, 0);
    assert_int_equal(bt_irq_ack(c), 0xe0);
    set_reg(c, 0xb0, 0);
    assert_true(bt_apic_msr(c, 0x6e0, false, &v));
    assert_int_equal(v, 0);

    v = bt_guest_tsc(c) + vm->tsc_hz / 1000;
    assert_true(bt_apic_msr(c, 0x6e0, true, &v));
    bt_apic_timer_expired(c); /* a stale signal: not yet */
    assert_int_equal(bt_irq_ready(c), -1);
    assert_true(bt_apic_next_deadline_ns(c) <= 1000000);
    while (bt_guest_tsc(c) < v || !timer_signals)
        __asm__ volatile("pause");
    bt_apic_timer_expired(c);
    assert_int_equal(bt_irq_ack(c), 0xe0);
    set_reg(c, 0xb0, 0);

    set_reg(c, 0x320, 0xe1); /* one-shot: mode change stops what ran */
    set_reg(c, 0x380, 400000000);
    uint32_t a = reg(c, 0x390), b = reg(c, 0x390);
    assert_in_range(a, 390000000, 400000000);
    assert_true(b <= a);
    set_reg(c, 0x3e0, 0x3); /* divide by 16: the rest runs slower */
    assert_true(bt_apic_next_deadline_ns(c) > 5000000000ull);
    uint64_t before = bt_apic_next_deadline_ns(c);
    c->tsc_offset += 1000000000;
    bt_apic_tsc_moved(c, 1000000000); /* writing the TSC does not shorten a count */
    assert_true(before - bt_apic_next_deadline_ns(c) < 100000000);
    set_reg(c, 0x380, 0);
    assert_int_equal(bt_apic_next_deadline_ns(c), ~0ull);

    set_reg(c, 0x320, 0x200e2); /* periodic */
    set_reg(c, 0x3e0, 0xb);
    set_reg(c, 0x380, 100000);
    for (unsigned i = 0; i < 3; i++) {
        while (bt_apic_next_deadline_ns(c))
            __asm__ volatile("pause");
        bt_apic_timer_expired(c);
        assert_int_equal(bt_irq_ack(c), 0xe2);
        set_reg(c, 0xb0, 0);
        assert_in_range(bt_apic_next_deadline_ns(c), 1, 100000);
    }
    test_vm_free(vm);
}

/* A reset drops the expiry that has just been signalled; the next deadline must set the host timer all the same. */
static void a_timer_lost_with_a_reset_holds_up_none_after_it(void **state)
{
    struct bt_vm *vm = test_vm_new(1);
    struct bt_vcpu *c = vm->vcpu[0];
    struct sigaction sa = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO};
    uint64_t v, ms = vm->tsc_hz / 1000;
    (void)state;
    sigaction(BT_SIG_KICK, &sa, NULL);
    for (unsigned reset = 0; reset < 2; reset++) {
        apic_on(c);
        set_reg(c, 0x320, 0x400e0);
        timer_signals = 0;
        v = bt_guest_tsc(c) + 5 * ms;
        uint64_t limit = v + 5000 * ms;
        assert_true(bt_apic_msr(c, 0x6e0, true, &v));
        while (!timer_signals && bt_guest_tsc(c) < limit)
            __asm__ volatile("pause");
        assert_int_equal(timer_signals, 1);
        bt_apic_reset(c, false);
    }
    test_vm_free(vm);
}

static void state_travels(void **state)
{
    struct bt_vm *vm = test_vm_new(1), *to = test_vm_new(1);
    struct bt_vcpu *c = vm->vcpu[0], *d = to->vcpu[0];
    struct hvx_vcpu_regs *r = aligned_alloc(64, (sizeof(*r) + 63) & ~(size_t)63);
    (void)state;
    memset(r, 0, sizeof(*r));
    apic_on(c);
    set_reg(c, 0x80, 0x20);
    set_reg(c, 0x370, 0x100fe); /* masked: the loop below reads registers that do not exist */
    bt_msi(vm, 0xfee00000, 0x80);
    bt_msi(vm, 0xfee00000, 0x8090);
    assert_int_equal(bt_irq_ack(c), 0x90);
    set_reg(c, 0x320, 0x200e0);
    set_reg(c, 0x380, 3000000000u);
    bt_apic_get(c, r);
    bt_apic_set(d, r);
    assert_true(test_take_pending(d) & BT_PEND_TIMER);
    for (unsigned off = 0x20; off < 0x3f0; off += 0x10)
        if (off != 0x390 && off != 0x40 && off != 0xb0 && off != 0x280)
            assert_int_equal(reg(c, off), reg(d, off));
    assert_true(bt_apic_next_deadline_ns(d) > 5000000000ull);
    set_reg(d, 0xb0, 0);
    assert_int_equal(bt_irq_ack(d), 0x80);
    free(r);
    test_vm_free(vm);
    test_vm_free(to);
}

/* A stream in memory, for the shared controllers. */
struct mem_stream {
    struct hvx_stream s;
    size_t at;
    uint8_t buf[1024];
};
static void mem_bytes(struct hvx_stream *s, void *p, size_t n)
{
    struct mem_stream *m = (struct mem_stream *)s;
    assert_true(m->at + n <= sizeof(m->buf));
    memcpy(s->saving ? m->buf + m->at : p, s->saving ? p : m->buf + m->at, n);
    m->at += n;
}

static void irqchip_state_travels(void **state)
{
    struct bt_vm *vm = test_vm_new(1), *to = test_vm_new(1);
    struct mem_stream m = {.s = {.size = sizeof(m.s), .saving = 1, .bytes = mem_bytes}};
    (void)state;
    pic_init(vm->vcpu[0], 1);
    bt_irq_line(vm, 12, true);
    pin(vm->vcpu[0], 5, 0x0100000000008077);
    assert_int_equal(bt_irqchip_state(vm, &m.s), 0);
    m.s.saving = 0;
    m.at = 0;
    assert_int_equal(bt_irqchip_state(to, &m.s), 0);
    assert_int_equal(bt_irq_ack(to->vcpu[0]), 0x74);
    assert_int_equal(ioapic_read(to->vcpu[0], 0x1a), 0x8077);
    bt_irqchip_reset(to);
    assert_int_equal(ioapic_read(to->vcpu[0], 0x1a), 0x10000);
    test_vm_free(vm);
    test_vm_free(to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pic_priorities_and_nesting),
        cmocka_unit_test(pic_cascade_and_spurious),
        cmocka_unit_test(pic_level_rotation_poll_auto_eoi),
        cmocka_unit_test(apic_priorities_and_eoi),
        cmocka_unit_test(apic_destinations),
        cmocka_unit_test(lowest_priority_takes_the_idlest),
        cmocka_unit_test(ioapic_level_and_edge),
        cmocka_unit_test(ticks_are_not_lost),
        cmocka_unit_test(virtual_wire),
        cmocka_unit_test(x2apic),
        cmocka_unit_test(apic_timer_modes),
        cmocka_unit_test(a_timer_lost_with_a_reset_holds_up_none_after_it),
        cmocka_unit_test(state_travels),
        cmocka_unit_test(irqchip_state_travels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
