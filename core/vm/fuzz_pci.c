/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/fuzz_pci.c - PCI configuration space, BARs and MSI-X under
 * arbitrary accesses. The input is a list of 8-byte operations.
 */
#include "core/vm/pci.h"

#include <stdlib.h>
#include <string.h>

#define BDF 0x20u
#define BDF_SMALL 0x21u

static struct hvx_ram ram;
static struct hvx_address_space pio, mem;
static struct hvx_pci_bus bus;
static int levels[24];

static void irq_count(struct hvx_vm *vm, unsigned gsi, int delta)
{
    (void)vm;
    if (gsi < 24 && (levels[gsi] += delta) < 0)
        abort();
}

static void msi(struct hvx_vm *vm, uint64_t addr, uint32_t data)
{
    (void)vm, (void)addr, (void)data;
}

static void region_gone(struct hvx_vm *vm, struct hvx_region *r)
{
    (void)vm;
    free(r);
}

static unsigned gsi_of(void *opaque, unsigned slot, unsigned pin)
{
    (void)opaque;
    return (slot + pin) & 31; /* some of them beyond the last line */
}

static uint64_t bar_read(void *opaque, uint64_t off, unsigned size)
{
    (void)opaque;
    if (off + size > 0x4000)
        abort(); /* an access past the BAR's end is core's bug */
    return off;
}

static void bar_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    (void)value;
    bar_read(opaque, off, size);
}

static const struct hvx_region_ops bar_ops = {bar_read, bar_write};

static void setup_once(void)
{
    struct hvx_error err;

    if (bus.pio)
        return;
    if (hvx_ram_init(&ram, 16u << 20, 3ull << 30, &err) < 0 ||
        hvx_space_init(&pio, HVX_SPACE_PIO, NULL, &err) < 0 || hvx_space_init(&mem, HVX_SPACE_MMIO, &ram, &err) < 0)
        abort();
    bus.pio = &pio;
    bus.mem = &mem;
    bus.irq_count = irq_count;
    bus.msi = msi;
    bus.region_gone = region_gone;
    bus.gsi_of = gsi_of;
}

static struct hvx_pci_dev *device(int32_t devfn, unsigned vectors)
{
    static const uint8_t rom[600] = {0x55, 0xaa};
    struct hvx_pci_desc d = {.size = sizeof(d), .devfn = devfn, .vendor = 1, .device = 2, .irq_pin = 1,
                             .msi_vectors = vectors == 0, .msix_vectors = (uint16_t)vectors, .msix_bar = 4,
                             .rom = rom, .rom_size = sizeof(rom)};
    struct hvx_pci_dev *p = NULL;
    struct hvx_error err;

    d.bars[0] = (struct hvx_pci_bar){.type = HVX_BAR_IO, .size = 64, .ops = &bar_ops};
    d.bars[1] = (struct hvx_pci_bar){.type = HVX_BAR_MEM32, .size = 0x1000, .ops = &bar_ops};
    d.bars[2] = (struct hvx_pci_bar){.type = HVX_BAR_MEM64, .size = 0x4000, .ops = &bar_ops};
    if (hvx_pci_add(&bus, &d, NULL, NULL, &p, &err) < 0)
        abort();
    return p;
}

static void access_bar(struct hvx_pci_dev *p, unsigned which, uint32_t off, unsigned size, uint32_t value, bool write)
{
    struct hvx_region *r = which < 6 ? p->bar_region[which] : p->rom_region;
    uint64_t buf = value, addr;

    if (!r || r->addr == HVX_ADDR_NONE)
        return;
    addr = r->addr + off % (r->bytes + 8); /* also a little past the end */
    if (write)
        hvx_space_write(r->space, addr, size, &buf);
    else
        hvx_space_read(r->space, addr, size, &buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct hvx_pci_dev *dev[2];

    setup_once();
    dev[0] = device(BDF, 70);
    dev[1] = device(BDF_SMALL, 0);
    for (; n >= 8; data += 8, n -= 8) {
        struct hvx_pci_dev *p = dev[data[0] >> 7];
        unsigned size = 1u << (data[0] >> 5 & 3), off = data[1] | (unsigned)data[2] << 8;
        uint32_t value = hvx_pci_get32(data + 4);
        switch (data[0] & 15) {
        case 0: case 1: case 2: case 3:
            hvx_pci_cfg_write(&bus, p->devfn, off & 0xff, size, value);
            break;
        case 4:
            hvx_pci_cfg_write(&bus, off, data[3], size, value);
            break;
        case 5:
            (void)hvx_pci_cfg_read(&bus, off, data[3], size);
            break;
        case 6: case 7:
            access_bar(p, data[3] % 7, off, size, value, true);
            break;
        case 8:
            access_bar(p, data[3] % 7, off, size, value, false);
            break;
        case 9:
            hvx_pci_msix_notify(p, data[3]);
            hvx_pci_msi_notify(p);
            break;
        case 10:
            hvx_pci_set_irq(p, data[3] & 1);
            break;
        case 11:
            hvx_pci_reset(&bus);
            break;
        default:
            (void)hvx_space_mem_write(&mem, value, data, 8);
            break;
        }
    }
    hvx_pci_del(dev[0]);
    hvx_pci_del(dev[1]);
    for (unsigned i = 0; i < 24; i++)
        if (levels[i])
            abort();
    return 0;
}
