/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/pic.c - the two cascaded 8259A interrupt controllers (8259A
 * data sheet; edge/level control registers as in the PIIX data sheets).
 *
 * One departure from the part: an edge, once seen, stays requested until it is
 * acknowledged or ICW1 clears it, though the line may fall earlier. Devices
 * here pulse their lines in no time at all.
 */
#include "apic.h"

#define CASCADE 2u
#define ICW1_INIT 0x10u
#define ICW1_NEED4 0x01u
#define ICW1_SINGLE 0x02u
#define ICW4_AEOI 0x02u
#define ICW4_SFNM 0x10u
#define OCW3 0x08u
static const uint8_t elcr_writable[2] = {0xf8, 0xde}; /* 0, 1, 2, 8 and 13 are always edge */

/* --- priorities ----------------------------------------------------------------- */

/* 0 is the highest; 8 for an empty mask. */
static unsigned top_priority(const struct bt_pic *p, uint8_t mask)
{
    for (unsigned k = 0; k < 8; k++)
        if (mask >> ((p->lowest + 1 + k) & 7) & 1)
            return k;
    return 8;
}

static unsigned input_at(const struct bt_pic *p, unsigned priority) { return (p->lowest + 1 + priority) & 7; }

/* The input that deserves an interrupt now, or -1. */
static int pending_input(const struct bt_pic *p, bool master)
{
    unsigned want = top_priority(p, p->irr & (uint8_t)~p->imr);
    uint8_t serving = p->isr;
    if (p->special_mask)
        serving &= (uint8_t)~p->imr;
    if (p->nested_special && master)
        serving &= (uint8_t) ~(1u << CASCADE); /* a slave's higher inputs may interrupt its lower ones */
    return want < 8 && want < top_priority(p, serving) ? (int)input_at(p, want) : -1;
}

static void set_input(struct bt_pic *p, unsigned in, bool level)
{
    uint8_t bit = (uint8_t)(1u << in);
    if (p->elcr & bit)
        p->irr = level ? p->irr | bit : p->irr & (uint8_t)~bit;
    else if (level && !(p->line & bit))
        p->irr |= bit;
    p->line = level ? p->line | bit : p->line & (uint8_t)~bit;
}

/* Carries the slave's output to the master and the master's to the CPUs. */
static void update(struct bt_vm *vm)
{
    struct bt_irqchip *chip = vm->irqchip;
    struct bt_pic *m = &chip->pic[0];
    bool slave = pending_input(&chip->pic[1], false) >= 0;

    /* The cascade follows the slave like a level, whatever the master's mode. */
    m->irr = slave ? m->irr | 1u << CASCADE : m->irr & (uint8_t) ~(1u << CASCADE);
    bool intr = pending_input(m, true) >= 0;
    bool was = atomic_exchange_explicit(&chip->pic_intr, intr, memory_order_acq_rel) != 0;
    if (intr == was)
        return;
    bt_ioapic_set(vm, 0, intr);
    if (!intr)
        return;
    for (unsigned i = 0; i < vm->n_vcpus; i++)
        if (vm->vcpu[i] && vm->vcpu[i]->apic && bt_apic_takes_pic(vm->vcpu[i]))
            bt_kick(vm->vcpu[i], BT_PEND_IRQ);
}

void bt_pic_set(struct bt_vm *vm, unsigned irq, bool level)
{
    if (irq == CASCADE || irq > 15)
        return;
    set_input(&vm->irqchip->pic[irq >> 3], irq & 7, level);
    update(vm);
}

/* --- acknowledging ---------------------------------------------------------------- */

static void end_of(struct bt_pic *p, unsigned in, bool rotate)
{
    p->isr &= (uint8_t) ~(1u << in);
    if (rotate)
        p->lowest = (uint8_t)in;
}

static void acknowledge(struct bt_pic *p, unsigned in)
{
    p->isr |= (uint8_t)(1u << in);
    if (!(p->elcr >> in & 1))
        p->irr &= (uint8_t) ~(1u << in);
    if (p->auto_eoi)
        end_of(p, in, p->rotate_aeoi);
}

int bt_pic_peek(struct bt_vm *vm)
{
    struct bt_pic *m = &vm->irqchip->pic[0], *s = &vm->irqchip->pic[1];
    int in = pending_input(m, true);
    if (in < 0)
        return -1;
    if (in != CASCADE)
        return (m->base & 0xf8) | in;
    int sub = pending_input(s, false);
    return (s->base & 0xf8) | (sub < 0 ? 7 : sub);
}

int bt_pic_ack(struct bt_vm *vm)
{
    struct bt_irqchip *chip = vm->irqchip;
    struct bt_pic *m = &chip->pic[0], *s = &chip->pic[1];
    int vector;

    bt_irqchip_lock(chip);
    int in = pending_input(m, true);
    if (in < 0) { /* the request went away: spurious, no ISR bit */
        vector = (m->base & 0xf8) | 7;
    } else if (in != CASCADE) {
        vector = (m->base & 0xf8) | in;
        acknowledge(m, (unsigned)in);
        if (in == 0 && chip->tick.at_pic)
            bt_tick_taken(vm);
    } else {
        int sub = pending_input(s, false);
        vector = (s->base & 0xf8) | (sub < 0 ? 7 : sub); /* the master has its ISR bit set even then */
        if (sub >= 0)
            acknowledge(s, (unsigned)sub);
        acknowledge(m, CASCADE);
    }
    /* INTR drops with the acknowledge; a further request raises it again. */
    atomic_store_explicit(&chip->pic_intr, 0, memory_order_release);
    bt_ioapic_set(vm, 0, false);
    update(vm);
    bt_irqchip_unlock(chip);
    return vector;
}

/* --- registers ---------------------------------------------------------------------- */

static void write_icw1(struct bt_pic *p, uint8_t v)
{
    p->irr &= p->elcr & p->line; /* edges are forgotten, levels are still there */
    p->isr = p->imr = 0;
    p->lowest = 7;
    p->special_mask = p->poll = p->read_isr = 0;
    p->auto_eoi = p->rotate_aeoi = p->nested_special = 0;
    p->want_icw4 = v & ICW1_NEED4;
    p->single = (v & ICW1_SINGLE) != 0;
    p->icw_step = 2;
}

static void write_ocw2(struct bt_pic *p, uint8_t v)
{
    unsigned in = v & 7, top;
    switch (v >> 5) {
    case 0: p->rotate_aeoi = 0; break;
    case 4: p->rotate_aeoi = 1; break;
    case 1: /* non-specific EOI */
    case 5: /* and rotate */
        top = top_priority(p, p->special_mask ? p->isr & (uint8_t)~p->imr : p->isr);
        if (top < 8)
            end_of(p, input_at(p, top), (v >> 5) == 5);
        break;
    case 3: end_of(p, in, false); break;
    case 7: end_of(p, in, true); break;
    case 6: p->lowest = (uint8_t)in; break;
    default: break;
    }
}

static void write_command(struct bt_pic *p, uint8_t v)
{
    if (v & ICW1_INIT) {
        write_icw1(p, v);
    } else if (v & OCW3) {
        if (v & 0x04)
            p->poll = 1;
        if (v & 0x02)
            p->read_isr = v & 1;
        if (v & 0x40)
            p->special_mask = (v >> 5) & 1;
    } else {
        write_ocw2(p, v);
    }
}

static void write_data(struct bt_pic *p, uint8_t v)
{
    switch (p->icw_step) {
    case 2:
        p->base = v;
        p->icw_step = p->single ? (p->want_icw4 ? 4 : 0) : 3;
        break;
    case 3:
        p->icw3 = v;
        p->icw_step = p->want_icw4 ? 4 : 0;
        break;
    case 4:
        p->auto_eoi = (v & ICW4_AEOI) != 0;
        p->nested_special = (v & ICW4_SFNM) != 0;
        p->icw_step = 0;
        break;
    default: p->imr = v; break;
    }
}

/* After the poll command the next read acknowledges, as INTA would. */
static uint8_t poll(struct bt_irqchip *chip, unsigned which)
{
    struct bt_pic *p = &chip->pic[which];
    p->poll = 0;
    int in = pending_input(p, which == 0);
    if (in < 0)
        return 0;
    acknowledge(p, (unsigned)in);
    return (uint8_t)(0x80 | in);
}

bool bt_pic_io(struct bt_vm *vm, uint16_t port, bool write, uint8_t *value)
{
    struct bt_irqchip *chip = vm->irqchip;
    unsigned which = (port & 0x80) ? 1 : 0;
    struct bt_pic *p = &chip->pic[which];
    bool elcr = port == 0x4d0 || port == 0x4d1;

    if (!elcr && (port & ~0x81u) != 0x20)
        return false;
    bt_irqchip_lock(chip);
    if (elcr) {
        which = port & 1;
        p = &chip->pic[which];
        if (write) {
            p->elcr = *value & elcr_writable[which];
            p->irr = (p->irr & (uint8_t)~p->elcr) | (p->line & p->elcr);
        } else {
            *value = p->elcr;
        }
    } else if (write) {
        if (port & 1)
            write_data(p, *value);
        else
            write_command(p, *value);
    } else if (p->poll) {
        *value = poll(chip, which);
    } else {
        *value = (port & 1) ? p->imr : p->read_isr ? p->isr : p->irr;
    }
    update(vm);
    bt_irqchip_unlock(chip);
    return true;
}

/* The guest's access may be wider than a port: byte by byte, as the bus would
 * split it, where all of them are ours. */
bool bt_irqchip_pio(struct bt_vcpu *c, uint16_t port, unsigned size, bool write, uint32_t *value)
{
    bool ours = (port & ~0x81u) == 0x20 || port == 0x4d0 || port == 0x4d1;
    if ((port & ~1u) == 0xf0 && write) { /* the numeric processor's error latch */
        bt_irq_line(c->vm, BT_FERR_GSI, false);
        return true;
    }
    if (!ours)
        return false;
    uint32_t v = write ? *value : 0;
    for (unsigned i = 0; i < size; i++) {
        uint8_t b = write ? (uint8_t)(v >> (8 * i)) : 0xff;
        bt_pic_io(c->vm, (uint16_t)(port + i), write, &b);
        if (!write)
            v |= (uint32_t)b << (8 * i);
    }
    if (!write)
        *value = v;
    return true;
}

/* --- life ------------------------------------------------------------------------------ */

void bt_pic_reset(struct bt_vm *vm)
{
    for (unsigned i = 0; i < 2; i++) {
        struct bt_pic *p = &vm->irqchip->pic[i];
        p->elcr = 0;
        write_icw1(p, 0);
        p->irr = 0;
        p->icw_step = 0;
        p->base = p->icw3 = 0;
        p->imr = 0xff; /* nothing before firmware has set the vectors */
    }
    update(vm);
}

void bt_pic_state(struct bt_vm *vm, struct hvx_stream *s)
{
    for (unsigned i = 0; i < 2; i++) {
        struct bt_pic *p = &vm->irqchip->pic[i];
        uint8_t *f[] = {&p->line, &p->irr, &p->isr, &p->imr, &p->elcr, &p->base, &p->lowest, &p->icw_step,
                        &p->want_icw4, &p->single, &p->icw3, &p->auto_eoi, &p->rotate_aeoi, &p->nested_special,
                        &p->special_mask, &p->poll, &p->read_isr};
        for (unsigned k = 0; k < sizeof(f) / sizeof(f[0]); k++)
            hvx_state_u8(s, f[k]);
        p->lowest &= 7;
    }
    if (!hvx_stream_is_saving(s)) {
        bt_irqchip_lock(vm->irqchip);
        update(vm);
        bt_irqchip_unlock(vm->irqchip);
    }
}
