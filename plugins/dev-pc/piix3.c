/* SPDX-License-Identifier: Apache-2.0
 *
 * piix3.c - the ISA bridge of the 82371SB: PCI interrupt routing and the odd
 * ports of a PC: 0x61 (timer 2 gate, refresh), 0x80..0x8f live in dma8237.c,
 * 0x92 (fast A20 and reset), 0xcf9 (reset control).
 *
 * The A20 line always passes: the bit can be read back, as with any chip set
 * whose firmware enables it at once.
 */
#include "pc.h"

#include <stdlib.h>
#include <string.h>

#define PIIX_PIRQRCA 0x60u
#define PIIX_N_PIRQ 4u
#define PIRQ_OFF 0x80u
#define PIRQ_UNROUTED UINT32_MAX /* no GSI */

#define PORT61_GATE2 0x01u
#define PORT61_SPEAKER 0x02u
#define PORT61_WRITABLE 0x0fu
#define PORT61_REFRESH 0x10u
#define PORT61_OUT2 0x20u

struct piix3 {
    struct pc *pc;
    struct hvx_pci_dev *pci;
    uint8_t port61;
    uint8_t port92;
    uint8_t rcr; /* reset control, port 0xcf9 */
};

/* Slot and pin to PIRQ line: pin INTA of slot 1 is PIRQ A, and so on round. */
static unsigned piix3_gsi_of(void *opaque, unsigned slot, unsigned pin)
{
    struct piix3 *p = opaque;
    const uint8_t *config = p->pc->host->pci_config(p->pci);
    /* pin counts from 1 = INTA, as in the interrupt pin register */
    unsigned line = (slot + (pin ? pin - 1 : 0) + 3) % PIIX_N_PIRQ;
    uint8_t route = config[PIIX_PIRQRCA + line];
    if (route & PIRQ_OFF)
        return PIRQ_UNROUTED;
    return route & 0x0f;
}

static void piix3_config_written(void *opaque, unsigned off, unsigned size)
{
    struct piix3 *p = opaque;
    if (off < PIIX_PIRQRCA + PIIX_N_PIRQ && off + size > PIIX_PIRQRCA)
        p->pc->host->pci_reroute(p->pc->vm);
}

static const struct hvx_pci_ops piix3_pci_ops = {
    .size = sizeof(piix3_pci_ops), .config_written = piix3_config_written};

static uint64_t port61_read(void *opaque, uint64_t off, unsigned size)
{
    struct piix3 *p = opaque;
    (void)off, (void)size;
    /* The refresh bit toggles every 15.085 us; delay loops count it. */
    uint64_t refresh = p->pc->host->clock_ns() / 15085;
    uint8_t v = p->port61 & (uint8_t)~PORT61_GATE2;
    if (pit_gate2(p->pc->pit))
        v |= PORT61_GATE2;
    if (refresh & 1)
        v |= PORT61_REFRESH;
    if (pit_out2(p->pc->pit))
        v |= PORT61_OUT2;
    return v;
}

static void port61_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct piix3 *p = opaque;
    (void)off, (void)size;
    p->port61 = value & PORT61_WRITABLE;
    pit_set_gate2(p->pc->pit, value & PORT61_GATE2);
}

static uint64_t port92_read(void *opaque, uint64_t off, unsigned size)
{
    (void)off, (void)size;
    return ((struct piix3 *)opaque)->port92;
}

static void port92_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct piix3 *p = opaque;
    (void)off, (void)size;
    bool pulse = (value & 1) && !(p->port92 & 1);
    p->port92 = value & 0x03;
    if (pulse)
        p->pc->host->vm_request(p->pc->vm, HVX_VM_RESET, 0);
}

uint8_t piix3_rcr_read(struct piix3 *p)
{
    return p->rcr;
}

void piix3_rcr_write(struct piix3 *p, uint8_t value)
{
    bool pulse = (value & 4) && !(p->rcr & 4);
    p->rcr = value & 0x02; /* bit 2 does not stay */
    if (pulse)
        p->pc->host->vm_request(p->pc->vm, HVX_VM_RESET, 0);
}

static const struct hvx_region_ops port61_ops = {port61_read, port61_write};
static const struct hvx_region_ops port92_ops = {port92_read, port92_write};

int piix3_create(struct pc *pc, struct piix3 **out, struct hvx_error *err)
{
    struct piix3 *p = calloc(1, sizeof(*p));
    if (!p)
        return hvx_fail(err, -ENOMEM, "pc: no memory for the ISA bridge");
    p->pc = pc;
    *out = p;

    const struct hvx_pci_desc desc = {
        .size = sizeof(desc),
        .devfn = PC_DEVFN_ISA,
        .vendor = 0x8086,
        .device = 0x7000,
        .subsys_vendor = PC_SUBSYS_VENDOR,
        .subsys = PC_SUBSYS_ID,
        .class_code = 0x060100,
        .multifunction = 1,
    };
    int rc = pc->host->pci_add(pc->vm, &desc, &piix3_pci_ops, p, &p->pci, err);
    if (rc)
        return rc;
    pc->host->pci_set_route(pc->vm, piix3_gsi_of, p);
    rc = pc_region(pc, HVX_SPACE_PIO, 0x61, 1, 0, "port61", &port61_ops, p, err);
    if (rc)
        return rc;
    return pc_region(pc, HVX_SPACE_PIO, 0x92, 1, 0, "port92", &port92_ops, p, err);
}

void piix3_destroy(struct piix3 *p)
{
    if (!p)
        return;
    if (p->pci) {
        p->pc->host->pci_set_route(p->pc->vm, NULL, NULL);
        p->pc->host->pci_del(p->pc->vm, p->pci);
    }
    free(p);
}

void piix3_reset(struct piix3 *p)
{
    uint8_t *config = p->pc->host->pci_config(p->pci);
    memset(config + PIIX_PIRQRCA, PIRQ_OFF, PIIX_N_PIRQ);
    config[0x4c] = 0x4d; /* ISA I/O recovery timer */
    config[0x4e] = 0x03; /* X-bus chip select */
    config[0x69] = 0x02; /* top of memory for ISA DMA: 1 MiB */
    config[0xae] = 0x00;
    p->port61 = 0;
    p->port92 = 0x02;
    p->rcr = 0;
    p->pc->host->pci_reroute(p->pc->vm);
}

void piix3_default_routes(struct piix3 *p)
{
    static const uint8_t irq[PIIX_N_PIRQ] = {10, 10, 11, 11};
    memcpy(p->pc->host->pci_config(p->pci) + PIIX_PIRQRCA, irq, sizeof(irq));
    p->pc->host->pci_reroute(p->pc->vm);
}

int piix3_state(struct piix3 *p, struct hvx_stream *s)
{
    hvx_state_u8(s, &p->port61);
    hvx_state_u8(s, &p->port92);
    hvx_state_u8(s, &p->rcr);
    hvx_state_bytes(s, p->pc->host->pci_config(p->pci) + PIIX_PIRQRCA, PIIX_N_PIRQ);
    if (!hvx_stream_is_saving(s))
        p->pc->host->pci_reroute(p->pc->vm);
    return hvx_state_error(s);
}
