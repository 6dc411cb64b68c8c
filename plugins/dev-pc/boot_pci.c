/* SPDX-License-Identifier: Apache-2.0
 *
 * boot_pci.c - gives the functions on bus 0 their addresses and interrupt
 * lines, as firmware does, for kernels that are started without it.
 */
#include "pc.h"

#define CFG_COMMAND 0x04u
#define CFG_BAR0 0x10u
#define CFG_IRQ_LINE 0x3cu
#define CFG_IRQ_PIN 0x3du
#define IO_FIRST 0xc000u
#define IO_LIMIT 0xfff0u
#define MEM_LIMIT 0xfeb00000ull

struct assign {
    struct pc *pc;
    uint64_t io, mem;
};

static uint32_t cfg_read(struct assign *a, unsigned devfn, unsigned off, unsigned size)
{
    return a->pc->host->pci_cfg_read(a->pc->vm, devfn, off, size);
}

static void cfg_write(struct assign *a, unsigned devfn, unsigned off, unsigned size, uint32_t v)
{
    a->pc->host->pci_cfg_write(a->pc->vm, devfn, off, size, v);
}

static uint64_t take(uint64_t *next, uint64_t limit, uint64_t bytes)
{
    uint64_t at = (*next + bytes - 1) & ~(bytes - 1);
    if (at + bytes > limit)
        return 0;
    *next = at + bytes;
    return at;
}

/* Size one BAR and place it; returns how many slots it takes. */
static unsigned place_bar(struct assign *a, unsigned devfn, unsigned bar)
{
    unsigned off = CFG_BAR0 + 4 * bar;
    cfg_write(a, devfn, off, 4, UINT32_MAX);
    uint32_t v = cfg_read(a, devfn, off, 4);
    if (v == 0 || v == UINT32_MAX)
        return 1;
    bool io = v & 1, wide = !io && (v & 6) == 4;
    uint32_t mask = v & (io ? ~3u : ~15u);
    uint64_t bytes = (uint64_t)(uint32_t)-(mask | (io ? 0xffff0000u : 0));
    uint64_t at = bytes ? take(io ? &a->io : &a->mem, io ? IO_LIMIT : MEM_LIMIT, bytes) : 0;
    cfg_write(a, devfn, off, 4, (uint32_t)at);
    if (wide)
        cfg_write(a, devfn, off + 4, 4, 0);
    return wide ? 2 : 1;
}

static void place_function(struct assign *a, unsigned devfn)
{
    static const uint8_t irq[4] = {10, 10, 11, 11}; /* as piix3_default_routes */
    for (unsigned bar = 0; bar < 6;)
        bar += place_bar(a, devfn, bar);
    unsigned pin = cfg_read(a, devfn, CFG_IRQ_PIN, 1);
    if (pin && devfn != PC_DEVFN_PM)
        cfg_write(a, devfn, CFG_IRQ_LINE, 1, irq[((devfn >> 3) + pin + 2) & 3]);
    uint32_t command = cfg_read(a, devfn, CFG_COMMAND, 2);
    cfg_write(a, devfn, CFG_COMMAND, 2, command | 3);
}

void boot_pci(struct pc *pc)
{
    uint64_t below = pc->info.ram_below_4g;
    struct assign a = {.pc = pc, .io = IO_FIRST};
    a.mem = below <= 0x80000000u ? 0x80000000u : below <= 0xc0000000u ? 0xc0000000u : 0xe0000000u;
    for (unsigned devfn = 0; devfn < 256; devfn++)
        if (cfg_read(&a, devfn, 0, 2) != 0xffff)
            place_function(&a, devfn);
}
