/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: a guest that writes nonsense to every port, to PCI
 * configuration space, and to the memory of every device. The input is a
 * sequence of accesses, steps of the clock, and events from outside. Nothing
 * may crash, hang or be left behind; the screen must still render.
 */
#include "test_board.h"

#include <stdlib.h>
#include <string.h>

#define MAX_STEPS 600u

struct input {
    const uint8_t *p;
    size_t n;
};

static uint64_t take(struct input *in, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes && in->n; i++, in->n--)
        v |= (uint64_t)*in->p++ << (8 * i);
    return v;
}

/* Ranges where something answers, so that most accesses hit. */
static const struct {
    uint16_t first, n;
} ports[] = {
    {0x00, 16},   {0x40, 4},    {0x60, 6},    {0x70, 2},    {0x80, 16},   {0x92, 1},    {0xb2, 2},   {0xc0, 32},
    {0x170, 8},   {0x1ce, 3},   {0x1f0, 8},   {0x2f8, 8},   {0x376, 1},   {0x3b0, 48},  {0x3f6, 1},  {0x3f8, 8},
    {0x402, 1},   {0x501, 2},   {0x505, 1},   {0x510, 12},  {0x600, 64},  {0x700, 16},  {0xafe0, 4}, {0xc000, 16},
    {0xcf8, 8},   {0, 0xffff},
};

static uint16_t pick_port(struct input *in)
{
    unsigned i = take(in, 1) % (sizeof(ports) / sizeof(ports[0]));
    return (uint16_t)(ports[i].first + take(in, 2) % ports[i].n);
}

static uint64_t pick_address(struct input *in, uint64_t bar0, uint64_t bar2)
{
    uint64_t off = take(in, 3);
    switch (take(in, 1) % 6) {
    case 0: return 0xa0000 + off % 0x20000;
    case 1: return 0xfed00000 + off % 0x400;
    case 2: return bar2 == ~0ull ? 0 : bar2 + off % 4096;
    case 3: return bar0 == ~0ull ? 0 : bar0 + off;
    case 4: return 0xc0000 + off % 0x40000;
    default: return off % BOARD_RAM;
    }
}

static unsigned pick_size(struct input *in)
{
    return 1u << (take(in, 1) & 3);
}

/* A valid descriptor table now and then: random bytes rarely make one. */
static void plant_descriptors(struct board *b, struct input *in)
{
    uint32_t prd[4] = {(uint32_t)take(in, 3), (uint32_t)take(in, 2), (uint32_t)take(in, 4), 0x80000000u};
    memcpy(hvxtest_mem(b->vm, 0x1000, sizeof(prd)), prd, sizeof(prd));
    out32(b, 0xc004, 0x1000);
    out32(b, 0xc00c, 0x1000);
}

static void one_step(struct board *b, struct input *in, struct hvx_blk *disk)
{
    struct hvx_pci_dev *vga = hvxtest_pci_at(b->vm, 0x10);
    uint64_t bar0 = hvxtest_pci_bar(vga, 0), bar2 = hvxtest_pci_bar(vga, 2);
    uint8_t text[8];
    struct hvx_surface s;
    unsigned n;
    switch (take(in, 1) % 16) {
    case 0: case 1: case 2: case 3: {
        uint16_t port = pick_port(in);
        n = pick_size(in) & 7;
        hvxtest_pio_write(b->vm, port, n ? n : 1, take(in, 4));
        break;
    }
    case 4: case 5: {
        uint16_t port = pick_port(in);
        n = pick_size(in) & 7;
        hvxtest_pio_read(b->vm, port, n ? n : 1);
        break;
    }
    case 6: case 7: {
        uint64_t at = pick_address(in, bar0, bar2);
        n = pick_size(in);
        hvxtest_mmio_write(b->vm, at & ~(uint64_t)(n - 1), n, take(in, 8));
        break;
    }
    case 8: {
        uint64_t at = pick_address(in, bar0, bar2);
        n = pick_size(in);
        hvxtest_mmio_read(b->vm, at & ~(uint64_t)(n - 1), n);
        break;
    }
    case 9: {
        unsigned devfn = (unsigned)take(in, 1), off = (unsigned)take(in, 1);
        n = 1u << (take(in, 1) % 3);
        board_cfg_write(b, devfn & 0x1f, off & ~(n - 1), n, (uint32_t)take(in, 4));
        break;
    }
    case 10: hvxtest_step_ns(b->vm, take(in, 4) % 50000000); break;
    case 11: hvxtest_key(b->vm, (uint16_t)take(in, 2), take(in, 1) & 1); break;
    case 12: hvxtest_pointer(b->vm, (int)take(in, 4), (int)take(in, 4), (uint32_t)take(in, 1)); break;
    case 13:
        n = (unsigned)take(in, 1) % sizeof(text);
        for (unsigned i = 0; i < n; i++)
            text[i] = (uint8_t)take(in, 1);
        hvxtest_chr_input(b->vm, "serial0", text, n);
        hvxtest_chr_limit(b->vm, "serial0", take(in, 1));
        break;
    case 14:
        n = (unsigned)take(in, 1);
        hvxtest_disk_hold(disk, n & 1);
        if (n & 2)
            hvxtest_disk_fail(disk, 0, 1 + (n >> 4), -EIO);
        hvxtest_disk_release(disk, ~0u);
        if (n & 4)
            plant_descriptors(b, in);
        if (n & 8)
            b->type->reset(b->dev);
        break;
    default:
        if (hvxtest_render(b->vm, &s) || s.width > 2560 || s.height > 2048)
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    struct board b;
    struct hvx_vm *vm = board_vm();
    struct hvx_blk *disk = hvxtest_disk_add(vm, "disk0", &(struct hvxtest_disk_params){.bytes = 1 << 20});
    hvxtest_disk_add(vm, "disk1", &(struct hvxtest_disk_params){.bytes = 1 << 20, .read_only = true, .cdrom = true});
    board_new(&b, vm, "ide0=disk0,ide2=disk1,debug-exit=0x501");
    for (unsigned devfn = 0; devfn < 0x18; devfn++)
        if (hvxtest_pci_at(vm, devfn))
            hvxtest_pci_enable(hvxtest_pci_at(vm, devfn));
    board_cfg_write(&b, 0x09, 0x20, 4, 0xc000);
    board_cfg_write(&b, 0x0b, 0x40, 4, 0x600);
    board_cfg_write(&b, 0x0b, 0x80, 1, 1);
    board_cfg_write(&b, 0x0b, 0x90, 4, 0x700);
    board_cfg_write(&b, 0x0b, 0xd2, 1, 1);
    for (unsigned i = 0; i < MAX_STEPS && in.n; i++) {
        one_step(&b, &in, disk);
        hvxtest_run(vm);
    }
    hvxtest_disk_hold(disk, false);
    hvxtest_disk_release(disk, ~0u);
    hvxtest_run(vm);
    if (!b.type->quiesced(b.dev))
        abort();
    board_free(&b);
    return 0;
}
