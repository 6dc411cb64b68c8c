/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/pci.c - configuration space, BARs and INTx of bus 0.
 * Register offsets and bits: PCI Local Bus Specification 3.0, chapter 6.
 */
#include "core/vm/pci.h"

#include <linux/pci_regs.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_FREE_SLOT 3u /* 0 host bridge, 1 south bridge, 2 display, by custom */
#define ROM_MAX (16u << 20)

/* --- BARs ---------------------------------------------------------------------- */

static unsigned bar_off(unsigned i)
{
    return PCI_BASE_ADDRESS_0 + 4 * i;
}

/* Where a BAR asks to be, or HVX_ADDR_NONE. A BAR that is being sized while
 * decoding is on points at the top of its space for a moment, and one that
 * was never set at 0: neither is a mapping. */
static uint64_t bar_address(const struct hvx_pci_dev *d, unsigned i)
{
    const struct hvx_pci_bar *b = &d->desc.bars[i];
    uint16_t command = hvx_pci_get16(d->config + PCI_COMMAND);
    uint64_t v = hvx_pci_get32(d->config + bar_off(i));
    uint64_t last;

    if (!(command & (b->type == HVX_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY)))
        return HVX_ADDR_NONE;
    if (b->type == HVX_BAR_MEM64)
        v |= (uint64_t)hvx_pci_get32(d->config + bar_off(i + 1)) << 32;
    v &= ~(b->size - 1);
    last = v + b->size - 1;
    if (v == 0 || last < v)
        return HVX_ADDR_NONE;
    if (b->type == HVX_BAR_IO)
        return last < 0xffff ? v : HVX_ADDR_NONE;
    if (b->type == HVX_BAR_MEM32 || last <= UINT32_MAX)
        return last < UINT32_MAX ? v : HVX_ADDR_NONE;
    return last < HVX_ADDR_MAX ? v : HVX_ADDR_NONE;
}

void hvx_pci_update_mappings(struct hvx_pci_dev *d)
{
    for (unsigned i = 0; i < 6; i++) {
        struct hvx_region *r = d->bar_region[i];
        uint64_t addr;
        if (!r)
            continue;
        addr = bar_address(d, i);
        if (addr == r->addr || hvx_space_move(r->space, r, addr) < 0)
            continue;
        if (d->ops.bar_moved)
            d->ops.bar_moved(d->opaque, i, addr);
    }
    if (d->rom_region) {
        uint32_t v = hvx_pci_get32(d->config + PCI_ROM_ADDRESS);
        uint64_t addr = v & ~(d->rom_bytes - 1);
        bool on = (v & PCI_ROM_ADDRESS_ENABLE) &&
                  (hvx_pci_get16(d->config + PCI_COMMAND) & PCI_COMMAND_MEMORY) && addr &&
                  addr + d->rom_bytes - 1 < UINT32_MAX;
        (void)!hvx_space_move(d->bus->mem, d->rom_region, on ? addr : HVX_ADDR_NONE);
    }
}

static int add_bar(struct hvx_pci_dev *d, unsigned i, struct hvx_error *err)
{
    const struct hvx_pci_bar *b = &d->desc.bars[i];
    struct hvx_region model = {.prio = HVX_PRIO_BAR, .addr = HVX_ADDR_NONE, .bytes = b->size};
    uint64_t mask = ~(b->size - 1);
    uint8_t *c = d->config + bar_off(i), *w = d->wmask + bar_off(i);
    bool io = b->type == HVX_BAR_IO;

    if (b->type == HVX_BAR_NONE)
        return 0;
    if ((b->size & (b->size - 1)) || b->size < (io ? 4 : 16) || (io && (b->size > 256 || b->ram)) ||
        (b->type == HVX_BAR_MEM32 && b->size > (1u << 31)) || b->size > HVX_ADDR_MAX / 2 ||
        (b->type == HVX_BAR_MEM64 && (i == 5 || d->desc.bars[i + 1].type != HVX_BAR_NONE)) || (!b->ops && !b->ram))
        return hvx_fail(err, -EINVAL, "PCI device %04x:%04x: BAR %u is described wrongly (type %u, %#llx bytes)",
                        d->desc.vendor, d->desc.device, i, b->type, (unsigned long long)b->size);
    snprintf(model.name, sizeof(model.name), "pci %02x.%u bar%u", d->devfn >> 3, d->devfn & 7, i);
    if (b->ram) {
        model.kind = HVX_LAYER_MAP;
        model.hva = b->ram;
    } else {
        model.kind = HVX_LAYER_IO;
        model.ops = b->ops;
        /* The device knows its BARs by the opaque of the device. */
        model.opaque = b->ops == &hvx_pci_msix_ops ? d : d->opaque;
    }
    c[0] = io ? PCI_BASE_ADDRESS_SPACE_IO
              : (b->type == HVX_BAR_MEM64 ? PCI_BASE_ADDRESS_MEM_TYPE_64 : 0) |
                    (b->flags & HVX_BAR_PREFETCH ? PCI_BASE_ADDRESS_MEM_PREFETCH : 0);
    hvx_pci_put32(w, (uint32_t)mask & (io ? ~3u : ~15u));
    if (b->type == HVX_BAR_MEM64)
        hvx_pci_put32(w + 4, (uint32_t)(mask >> 32));
    return hvx_space_add(io ? d->bus->pio : d->bus->mem, &model, &d->bar_region[i], err);
}

static int add_rom(struct hvx_pci_dev *d, struct hvx_error *err)
{
    struct hvx_region model = {
        .kind = HVX_LAYER_MAP, .prio = HVX_PRIO_BAR, .addr = HVX_ADDR_NONE, .read_only = true};
    uint32_t n = HVX_PAGE;

    if (!d->desc.rom || !d->desc.rom_size)
        return 0;
    if (d->desc.rom_size > ROM_MAX)
        return hvx_fail(err, -EFBIG, "PCI option ROM of %u bytes: at most %u are possible", d->desc.rom_size, ROM_MAX);
    while (n < d->desc.rom_size)
        n *= 2;
    d->rom = aligned_alloc(HVX_PAGE, n);
    if (!d->rom)
        return hvx_fail(err, -ENOMEM, "PCI option ROM: out of memory");
    memset(d->rom, 0xff, n);
    memcpy(d->rom, d->desc.rom, d->desc.rom_size);
    d->rom_bytes = n;
    model.bytes = n;
    model.hva = d->rom;
    snprintf(model.name, sizeof(model.name), "pci %02x.%u rom", d->devfn >> 3, d->devfn & 7);
    hvx_pci_put32(d->wmask + PCI_ROM_ADDRESS, ~(n - 1) | PCI_ROM_ADDRESS_ENABLE);
    return hvx_space_add(d->bus->mem, &model, &d->rom_region, err);
}

/* --- INTx ------------------------------------------------------------------------- */

static void deliver_irq(struct hvx_pci_dev *d)
{
    struct hvx_pci_bus *bus = d->bus;
    bool on = d->irq_level && d->desc.irq_pin && bus->gsi_of &&
              !(hvx_pci_get16(d->config + PCI_COMMAND) & PCI_COMMAND_INTX_DISABLE);
    int gsi = on ? (int)bus->gsi_of(bus->route_opaque, d->devfn >> 3, d->desc.irq_pin) : -1;

    if (gsi == d->irq_gsi)
        return;
    if (d->irq_gsi >= 0)
        bus->irq_count(bus->vm, (unsigned)d->irq_gsi, -1);
    d->irq_gsi = gsi;
    if (gsi >= 0)
        bus->irq_count(bus->vm, (unsigned)gsi, 1);
}

void hvx_pci_set_irq(struct hvx_pci_dev *d, bool level)
{
    if (d->irq_level == level)
        return;
    d->irq_level = level;
    /* Status bit 3 follows the device even while INTx is disabled. */
    if (level)
        d->config[PCI_STATUS] |= PCI_STATUS_INTERRUPT;
    else
        d->config[PCI_STATUS] &= (uint8_t)~PCI_STATUS_INTERRUPT;
    deliver_irq(d);
}

void hvx_pci_reroute(struct hvx_pci_bus *bus)
{
    for (unsigned i = 0; i < 256; i++)
        if (bus->dev[i])
            deliver_irq(bus->dev[i]);
}

/* --- configuration space ------------------------------------------------------------ */

static struct hvx_pci_dev *find(struct hvx_pci_bus *bus, unsigned bdf, unsigned off, unsigned size)
{
    if (bdf > 0xff || off >= 256 || size > 4 || off + size > 256)
        return NULL;
    return bus->dev[bdf];
}

static bool owned(const struct hvx_pci_dev *d, unsigned off, unsigned size)
{
    for (unsigned i = off; i < off + size; i++)
        if (!d->core_owned[i])
            return false;
    return true;
}

uint32_t hvx_pci_cfg_read(struct hvx_pci_bus *bus, unsigned bdf, unsigned off, unsigned size)
{
    struct hvx_pci_dev *d = find(bus, bdf, off, size);
    uint32_t v = 0;

    if (!d)
        return size >= 4 ? UINT32_MAX : (1u << (8 * size)) - 1;
    if (off >= 0x40 && d->ops.config_read && !owned(d, off, size))
        d->ops.config_read(d->opaque, off, size);
    memcpy(&v, d->config + off, size);
    return v;
}

void hvx_pci_cfg_write(struct hvx_pci_bus *bus, unsigned bdf, unsigned off, unsigned size, uint32_t v)
{
    struct hvx_pci_dev *d = find(bus, bdf, off, size);
    unsigned last = off + size - 1;

    if (!d)
        return;
    for (unsigned i = 0; i < size; i++) {
        uint8_t b = (uint8_t)(v >> (8 * i)), *c = &d->config[off + i], w = d->wmask[off + i];
        *c = (uint8_t)((*c & ~w) | (b & w));
        *c &= (uint8_t) ~(b & d->w1c[off + i]);
    }
    if ((off <= PCI_COMMAND + 1 && last >= PCI_COMMAND) ||
        (off < PCI_BASE_ADDRESS_0 + 24 && last >= PCI_BASE_ADDRESS_0) ||
        (off < PCI_ROM_ADDRESS + 4 && last >= PCI_ROM_ADDRESS))
        hvx_pci_update_mappings(d);
    if (off <= PCI_COMMAND + 1 && last >= PCI_COMMAND)
        deliver_irq(d);
    if (off >= 0x40) {
        hvx_pci_msi_control_written(d);
        if (d->ops.config_written && !owned(d, off, size))
            d->ops.config_written(d->opaque, off, size);
    }
}

int hvx_pci_add_cap(struct hvx_pci_dev *d, uint8_t cap_id, const void *body, const void *wmask, unsigned n)
{
    unsigned off = d->next_cap;

    if (n < 2 || n > 0xc0 || off + n > 256)
        return -ENOSPC;
    memcpy(d->config + off, body, n);
    if (wmask)
        memcpy(d->wmask + off, wmask, n);
    else
        memset(d->wmask + off, 0, n);
    d->wmask[off] = d->wmask[off + 1] = 0;
    d->config[off] = cap_id;
    d->config[off + 1] = d->config[PCI_CAPABILITY_LIST];
    d->config[PCI_CAPABILITY_LIST] = (uint8_t)off;
    d->config[PCI_STATUS] |= PCI_STATUS_CAP_LIST;
    d->next_cap = (off + n + 3) & ~3u;
    return (int)off;
}

bool hvx_pci_bus_master(const struct hvx_pci_dev *d)
{
    return d->config[PCI_COMMAND] & PCI_COMMAND_MASTER;
}

/* --- life --------------------------------------------------------------------------- */

static void init_config(struct hvx_pci_dev *d)
{
    const struct hvx_pci_desc *k = &d->desc;
    uint8_t *c = d->config;

    hvx_pci_put16(c + PCI_VENDOR_ID, k->vendor);
    hvx_pci_put16(c + PCI_DEVICE_ID, k->device);
    c[PCI_REVISION_ID] = k->revision;
    c[PCI_CLASS_PROG] = (uint8_t)k->class_code;
    hvx_pci_put16(c + PCI_CLASS_DEVICE, (uint16_t)(k->class_code >> 8));
    c[PCI_HEADER_TYPE] = k->multifunction ? 0x80 : 0;
    hvx_pci_put16(c + PCI_SUBSYSTEM_VENDOR_ID, k->subsys_vendor);
    hvx_pci_put16(c + PCI_SUBSYSTEM_ID, k->subsys);
    c[PCI_INTERRUPT_PIN] = k->irq_pin;
    hvx_pci_put16(d->wmask + PCI_COMMAND, PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
                                              PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE);
    hvx_pci_put16(d->w1c + PCI_STATUS, 0xf900);
    d->wmask[PCI_CACHE_LINE_SIZE] = 0xff;
    d->wmask[PCI_LATENCY_TIMER] = 0xf8;
    d->wmask[PCI_INTERRUPT_LINE] = 0xff;
    if (d->ops.config_written) /* registers of the device's own: it repairs what is not writable */
        memset(d->wmask + 0x40, 0xff, 0xc0);
}

static int choose_devfn(struct hvx_pci_bus *bus, const struct hvx_pci_desc *desc, struct hvx_error *err)
{
    if (desc->devfn >= 0) {
        if (desc->devfn > 0xff || bus->dev[desc->devfn])
            return hvx_fail(err, -EEXIST, "PCI device %04x:%04x: place %02x.%d is taken", desc->vendor, desc->device,
                            (unsigned)desc->devfn >> 3, desc->devfn & 7);
        return desc->devfn;
    }
    for (unsigned slot = FIRST_FREE_SLOT; slot < 32; slot++) {
        bool free_slot = true;
        for (unsigned f = 0; f < 8; f++)
            free_slot &= !bus->dev[slot << 3 | f];
        if (free_slot)
            return (int)(slot << 3);
    }
    return hvx_fail(err, -ENOSPC, "PCI device %04x:%04x: all slots of the bus are taken; use fewer devices",
                    desc->vendor, desc->device);
}

int hvx_pci_add(struct hvx_pci_bus *bus, const struct hvx_pci_desc *desc, const struct hvx_pci_ops *ops, void *opaque,
                struct hvx_pci_dev **out, struct hvx_error *err)
{
    int devfn = choose_devfn(bus, desc, err), r;
    struct hvx_pci_dev *d;

    if (devfn < 0)
        return devfn;
    d = calloc(1, sizeof(*d));
    if (!d)
        return hvx_fail(err, -ENOMEM, "PCI device: out of memory");
    memcpy(&d->desc, desc, desc->size < sizeof(d->desc) ? desc->size : sizeof(d->desc));
    if (ops)
        memcpy(&d->ops, ops, ops->size < sizeof(d->ops) ? ops->size : sizeof(d->ops));
    d->bus = bus;
    d->devfn = (unsigned)devfn;
    d->opaque = opaque;
    d->irq_gsi = -1;
    d->next_cap = 0x40;
    pthread_mutex_init(&d->msi_lock, NULL);
    bus->dev[devfn] = d;
    bus->last_added = devfn;
    init_config(d);
    r = hvx_pci_msi_setup(d, err);
    for (unsigned i = 0; i < 6 && r == 0; i++)
        r = add_bar(d, i, err);
    if (r == 0)
        r = add_rom(d, err);
    if (r < 0) {
        hvx_pci_del(d);
        return r;
    }
    *out = d;
    return 0;
}

void hvx_pci_del(struct hvx_pci_dev *d)
{
    if (!d)
        return;
    hvx_pci_set_irq(d, false);
    for (unsigned i = 0; i < 7; i++) {
        struct hvx_region *r = i < 6 ? d->bar_region[i] : d->rom_region;
        if (r) {
            hvx_space_remove(r->space, r);
            d->bus->region_gone(d->bus->vm, r);
        }
    }
    if (d->bus->dev[d->devfn] == d) /* else it was hidden, and another may be in its place */
        d->bus->dev[d->devfn] = NULL;
    pthread_mutex_destroy(&d->msi_lock);
    free(d->msix_table);
    free(d->msix_pending);
    free(d->rom);
    free(d);
}

void hvx_pci_hide(struct hvx_pci_bus *bus, unsigned slot)
{
    for (unsigned f = 0; f < 8; f++) {
        struct hvx_pci_dev *d = bus->dev[slot << 3 | f];
        if (!d)
            continue;
        /* Without decoding and bus mastering nothing reaches the device, and
         * it reaches nothing. */
        hvx_pci_put16(d->config + PCI_COMMAND, 0);
        hvx_pci_update_mappings(d);
        hvx_pci_set_irq(d, false);
        bus->dev[slot << 3 | f] = NULL;
    }
}

void hvx_pci_init(struct hvx_pci_bus *bus)
{
    memset(bus->dev, 0, sizeof(bus->dev));
}

void hvx_pci_fini(struct hvx_pci_bus *bus)
{
    for (unsigned i = 0; i < 256; i++)
        hvx_pci_del(bus->dev[i]);
}

/* RST#: decoding off, BARs and interrupt set-up forgotten. Registers of the
 * device's own are its reset callback's business. */
void hvx_pci_reset(struct hvx_pci_bus *bus)
{
    for (unsigned i = 0; i < 256; i++) {
        struct hvx_pci_dev *d = bus->dev[i];
        if (!d)
            continue;
        for (unsigned o = 0; o < 0x40; o++)
            d->config[o] &= (uint8_t)~d->wmask[o];
        d->config[PCI_STATUS + 1] &= 0x06;
        hvx_pci_msi_reset(d);
        hvx_pci_set_irq(d, false);
        hvx_pci_update_mappings(d);
    }
}

void hvx_pci_state(struct hvx_pci_dev *d, struct hvx_stream *s)
{
    bool level = d->irq_level;

    hvx_state_bytes(s, d->config, sizeof(d->config));
    hvx_state_bool(s, &level);
    if (d->msix_table) {
        hvx_state_bytes(s, d->msix_table, d->desc.msix_vectors * 16u);
        hvx_state_bytes(s, d->msix_pending, (d->desc.msix_vectors + 63u) / 64u * 8u);
    }
    if (!hvx_stream_is_saving(s) && !hvx_state_error(s)) {
        /* What the guest cannot write comes from this program, not from the file. */
        hvx_pci_put16(d->config + PCI_VENDOR_ID, d->desc.vendor);
        hvx_pci_put16(d->config + PCI_DEVICE_ID, d->desc.device);
        d->irq_level = false;
        hvx_pci_update_mappings(d);
        hvx_pci_set_irq(d, level);
        deliver_irq(d);
    }
}
