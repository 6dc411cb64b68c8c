/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/ioapic.c - the I/O APIC (82093AA data sheet, with the EOI
 * register of version 0x20), and how interrupt lines reach it and the 8259s.
 *
 * Wiring, as ACPI's MADT and the MP tables of the machine describe it: ISA IRQ n
 * is pin n, but for IRQ 0, which is pin 2; pin 0 carries the INTR output of the
 * 8259s; pins 16..23 are PCI's alone.
 */
#include "apic.h"
#include <stdlib.h>

#define E_VECTOR 0xffull
#define E_LOGICAL 0x800ull
#define E_STATUS 0x1000ull
#define E_REMOTE_IRR 0x4000ull
#define E_LEVEL 0x8000ull
#define E_MASKED 0x10000ull
#define E_READ_ONLY (E_STATUS | E_REMOTE_IRR)
#define E_WRITABLE 0xff0000000001efffull

#define IOAPIC_VERSION ((BT_IOAPIC_PINS - 1) << 16 | 0x20u)

static bool entry_send(struct bt_vm *vm, uint64_t e)
{
    unsigned mode = (e >> 8) & 7;
    return bt_apic_send(vm, NULL, 0, (uint32_t)(e >> 56), false, (e & E_LOGICAL) != 0, mode, (uint8_t)(e & E_VECTOR),
                        (e & E_LEVEL) != 0 && mode <= BT_DM_LOWEST);
}

/* A level input that is high, open and not in service is delivered. */
static void serve_level(struct bt_vm *vm, unsigned pin)
{
    struct bt_irqchip *chip = vm->irqchip;
    uint64_t *e = &chip->ioapic.entry[pin];
    if (!(*e & E_LEVEL) || (*e & (E_MASKED | E_REMOTE_IRR)) || !(chip->ioapic.lines >> pin & 1))
        return;
    /* Set before the message goes out: the target's EOI waits for our lock
     * anyway. Nobody took it: a later write of the entry tries again. */
    if (entry_send(vm, *e) && ((*e >> 8) & 7) <= BT_DM_LOWEST)
        *e |= E_REMOTE_IRR;
}

void bt_ioapic_set(struct bt_vm *vm, unsigned pin, bool level)
{
    struct bt_irqchip *chip = vm->irqchip;
    uint32_t bit = 1u << pin;
    bool was = (chip->ioapic.lines & bit) != 0;
    uint64_t e = chip->ioapic.entry[pin];

    chip->ioapic.lines = level ? chip->ioapic.lines | bit : chip->ioapic.lines & ~bit;
    if (e & E_LEVEL)
        serve_level(vm, pin);
    else if (level && !was && !(e & E_MASKED)) /* an edge on a masked pin is lost (82093AA, 3.4.2) */
        entry_send(vm, e);
}

void bt_ioapic_eoi(struct bt_vm *vm, uint8_t vector)
{
    struct bt_irqchip *chip = vm->irqchip;
    if (!chip)
        return;
    bt_irqchip_lock(chip);
    for (unsigned pin = 0; pin < BT_IOAPIC_PINS; pin++) {
        uint64_t *e = &chip->ioapic.entry[pin];
        if ((*e & E_VECTOR) == vector && (*e & (E_LEVEL | E_REMOTE_IRR)) == (E_LEVEL | E_REMOTE_IRR)) {
            *e &= ~E_REMOTE_IRR;
            serve_level(vm, pin);
        }
    }
    bt_irqchip_unlock(chip);
}

static uint32_t reg_read(const struct bt_irqchip *chip)
{
    unsigned r = chip->ioapic.select;
    if (r >= 0x10 && r < 0x10 + 2 * BT_IOAPIC_PINS)
        return (uint32_t)(chip->ioapic.entry[(r - 0x10) >> 1] >> ((r & 1) * 32));
    switch (r) {
    case 0:
    case 2: return (uint32_t)chip->ioapic.id << 24;
    case 1: return IOAPIC_VERSION;
    default: return 0;
    }
}

static void reg_write(struct bt_vm *vm, uint32_t v)
{
    struct bt_irqchip *chip = vm->irqchip;
    unsigned r = chip->ioapic.select;
    if (r == 0) {
        chip->ioapic.id = (v >> 24) & 15;
        return;
    }
    if (r < 0x10 || r >= 0x10 + 2 * BT_IOAPIC_PINS)
        return;
    unsigned pin = (r - 0x10) >> 1, shift = (r & 1) * 32;
    uint64_t *e = &chip->ioapic.entry[pin], old = *e;
    uint64_t n = (old & ~(0xffffffffull << shift)) | (uint64_t)v << shift;
    n = (n & E_WRITABLE & ~E_READ_ONLY) | (old & E_READ_ONLY);
    if (!(n & E_LEVEL))
        n &= ~E_REMOTE_IRR; /* how systems clear it by hand on version 0x11 */
    *e = n;
    serve_level(vm, pin);
}

uint32_t bt_ioapic_read(struct bt_irqchip *chip, unsigned off)
{
    if (off == 0x00)
        return chip->ioapic.select;
    return off == 0x10 ? reg_read(chip) : 0;
}

void bt_ioapic_write(struct bt_vm *vm, unsigned off, uint32_t v)
{
    struct bt_irqchip *chip = vm->irqchip;
    if (off == 0x00) {
        chip->ioapic.select = (uint8_t)v;
    } else if (off == 0x10) {
        reg_write(vm, v);
    } else if (off == 0x40) {
        bt_irqchip_unlock(chip); /* bt_ioapic_eoi() takes it */
        bt_ioapic_eoi(vm, (uint8_t)v);
        bt_irqchip_lock(chip);
    }
}

void bt_ioapic_reset(struct bt_irqchip *chip)
{
    for (unsigned i = 0; i < BT_IOAPIC_PINS; i++)
        *(volatile uint64_t *)&chip->ioapic.entry[i] = E_MASKED;
    chip->ioapic.id = 0;
    chip->ioapic.select = 0;
    /* lines are the devices': they stay */
}

void bt_ioapic_state(struct bt_vm *vm, struct hvx_stream *s)
{
    struct bt_irqchip *chip = vm->irqchip;
    for (unsigned i = 0; i < BT_IOAPIC_PINS; i++) {
        hvx_state_u64(s, &chip->ioapic.entry[i]);
        chip->ioapic.entry[i] &= E_WRITABLE | E_READ_ONLY;
    }
    hvx_state_u32(s, &chip->ioapic.lines);
    hvx_state_u8(s, &chip->ioapic.id);
    hvx_state_u8(s, &chip->ioapic.select);
}

/* --- lines of the machine -------------------------------------------------------- */

void bt_irq_line(struct bt_vm *vm, unsigned gsi, bool level)
{
    struct bt_irqchip *chip = vm->irqchip;
    if (!chip || gsi >= BT_IOAPIC_PINS)
        return;
    bt_irqchip_lock(chip);
    if (gsi < 16)
        bt_pic_set(vm, gsi, level);
    if (gsi == 0)
        bt_ioapic_set(vm, 2, level);
    else if (gsi != 2)
        bt_ioapic_set(vm, gsi, level);
    bt_irqchip_unlock(chip);
}

/* --- ticks --------------------------------------------------------------------- */

int bt_ioapic_edge_vector(const struct bt_irqchip *chip, unsigned pin)
{
    uint64_t e = chip->ioapic.entry[pin];
    return (e & (E_MASKED | E_LEVEL)) || ((e >> 8) & 7) > BT_DM_LOWEST ? -1 : (int)(e & E_VECTOR);
}

/* One edge on GSI 0, and who is to take it. */
static void tick_request(struct bt_vm *vm)
{
    struct bt_irqchip *chip = vm->irqchip;
    chip->tick.at_pic = !(chip->pic[0].imr & 1);
    atomic_store_explicit(&chip->tick.vector, bt_ioapic_edge_vector(chip, 2), memory_order_relaxed);
    bt_pic_set(vm, 0, true);
    bt_ioapic_set(vm, 2, true);
    bt_pic_set(vm, 0, false);
    bt_ioapic_set(vm, 2, false);
}

/* Does the request wait because the guest itself has closed its interrupts? */
static bool tick_held_back(struct bt_vm *vm)
{
    int vector = atomic_load_explicit(&vm->irqchip->tick.vector, memory_order_relaxed);
    for (unsigned i = 0; i < vm->n_vcpus; i++) {
        struct bt_vcpu *t = vm->vcpu[i];
        if (!t || !t->apic || *(volatile uint8_t *)&t->iflag)
            continue;
        if (vm->irqchip->tick.at_pic && bt_apic_takes_pic(t))
            return true;
        if (vector >= 0 && bt_apic_requested(t, (uint8_t)vector))
            return true;
    }
    return false;
}

/* A tick that comes while another is still requested would be lost in it: it is
 * owed, when the guest was ready to take that one and only had no CPU time.
 * With its interrupts closed it loses ticks as it does on the part. Each new one
 * makes its edge all the same, so that nothing sticks when a guest has thrown
 * its request away. */
void bt_irq_tick(struct bt_vm *vm, unsigned gsi, unsigned n)
{
    struct bt_irqchip *chip = vm->irqchip;
    if (!chip || gsi >= BT_IOAPIC_PINS)
        return;
    if (gsi != 0) {
        if (n) {
            bt_irq_line(vm, gsi, true);
            bt_irq_line(vm, gsi, false);
        }
        return;
    }
    bt_irqchip_lock(chip);
    bool waiting = chip->tick.at_pic || atomic_load_explicit(&chip->tick.vector, memory_order_relaxed) >= 0;
    if (n) {
        tick_request(vm);
        if (!tick_held_back(vm))
            chip->tick.owed += waiting ? n : n - 1;
        if (chip->tick.owed > HVX_TICKS_OWED_MAX)
            chip->tick.owed = HVX_TICKS_OWED_MAX;
    }
    /* Stopped, or masked everywhere: as on the part, what nobody listens for is lost. */
    if (!n || (!chip->tick.at_pic && atomic_load_explicit(&chip->tick.vector, memory_order_relaxed) < 0))
        chip->tick.owed = 0;
    bt_irqchip_unlock(chip);
}

void bt_tick_taken(struct bt_vm *vm)
{
    struct bt_irqchip *chip = vm->irqchip;
    chip->tick.at_pic = false;
    atomic_store_explicit(&chip->tick.vector, -1, memory_order_relaxed);
    if (!chip->tick.owed)
        return;
    chip->tick.owed--;
    tick_request(vm);
    if (!chip->tick.at_pic && atomic_load_explicit(&chip->tick.vector, memory_order_relaxed) < 0)
        chip->tick.owed = 0;
}

/* --- life ---------------------------------------------------------------------------- */

int bt_irqchip_create(struct bt_vm *vm)
{
    vm->irqchip = calloc(1, sizeof(*vm->irqchip));
    if (!vm->irqchip)
        return -ENOMEM;
    bt_irqchip_reset(vm);
    return 0;
}

void bt_irqchip_destroy(struct bt_vm *vm)
{
    free(vm->irqchip);
    vm->irqchip = NULL;
}

void bt_irqchip_reset(struct bt_vm *vm)
{
    bt_irqchip_lock(vm->irqchip);
    bt_ioapic_reset(vm->irqchip);
    bt_pic_reset(vm);
    vm->irqchip->tick.owed = 0;
    vm->irqchip->tick.at_pic = false;
    atomic_store_explicit(&vm->irqchip->tick.vector, -1, memory_order_relaxed);
    bt_irqchip_unlock(vm->irqchip);
}

int bt_irqchip_state(struct bt_vm *vm, struct hvx_stream *s)
{
    bt_ioapic_state(vm, s);
    bt_pic_state(vm, s);
    if (!hvx_stream_is_saving(s))
        for (unsigned i = 0; i < vm->n_vcpus; i++)
            if (vm->vcpu[i])
                bt_kick(vm->vcpu[i], BT_PEND_IRQ);
    return hvx_state_error(s);
}
