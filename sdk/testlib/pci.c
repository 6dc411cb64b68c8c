/* SPDX-License-Identifier: Apache-2.0
 *
 * PCI functions of the fake host: configuration space with BAR sizing, MSI and
 * MSI-X, INTx. PCI Local Bus Specification 3.0, chapter 6.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#define CFG_COMMAND 0x04u
#define CFG_STATUS 0x06u
#define CFG_BAR0 0x10u
#define CFG_ROM 0x30u
#define CFG_CAP_PTR 0x34u
#define CMD_IO 1u
#define CMD_MEM 2u
#define CMD_MASTER 4u
#define CMD_INTX_OFF 0x400u
#define CAP_MSI 0x05u
#define CAP_MSIX 0x11u
#define MSIX_ENABLE 0x8000u
#define MSIX_MASKALL 0x4000u
#define N_BARS 7u /* six and the ROM */
#define BAR_ROM 6u

struct bar {
    uint32_t type;
    uint64_t size, addr; /* addr ~0: unmapped */
    struct hvx_region *region;
};

struct hvx_pci_dev {
    struct hvx_pci_dev *next;
    struct hvx_vm *vm;
    unsigned devfn;
    uint8_t config[256], wmask[256], core_cap[256]; /* core_cap: bytes of MSI and MSI-X */
    struct hvx_pci_ops ops;
    void *opaque;
    struct bar bars[N_BARS];
    uint8_t *rom;
    unsigned next_cap, last_cap;
    unsigned msi, msix; /* capability offsets, 0: none */
    unsigned n_vectors, pba_off;
    uint8_t *table; /* 16 bytes a vector */
    uint8_t *pba;
    bool pin_level;
};

static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t get32(const uint8_t *p)
{
    return get16(p) | (uint32_t)get16(p + 2) << 16;
}

static uint64_t get64(const uint8_t *p)
{
    return get32(p) | (uint64_t)get32(p + 4) << 32;
}

static void put32(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, 4);
}

static uint16_t command(const struct hvx_pci_dev *d)
{
    return get16(d->config + CFG_COMMAND);
}

/* --- INTx ----------------------------------------------------------------------- */
static unsigned route(struct hvx_pci_dev *d)
{
    unsigned slot = d->devfn >> 3, pin = d->config[0x3d];
    if (d->vm->gsi_of)
        return d->vm->gsi_of(d->vm->gsi_opaque, slot, pin);
    return 16 + (slot + pin - 1) % 4;
}

bool hvxtest_pci_intx(struct hvx_pci_dev *d)
{
    return d->pin_level && !(command(d) & CMD_INTX_OFF);
}

/* A GSI is the OR of all pins routed to it. */
static void update_gsi(struct hvx_vm *vm, unsigned gsi)
{
    bool level = false;
    if (gsi >= TEST_GSIS)
        return; /* the machine routes this pin nowhere */
    for (struct hvx_pci_dev *d = vm->pci; d; d = d->next)
        if (d->config[0x3d] && hvxtest_pci_intx(d) && route(d) == gsi)
            level = true;
    test_irq_set(vm, gsi, level);
}

static void update_intx(struct hvx_pci_dev *d)
{
    if (d->config[0x3d])
        update_gsi(d->vm, route(d));
}

static void host_pci_set_irq(struct hvx_pci_dev *d, bool level)
{
    if (!d->config[0x3d])
        test_bug("pci_set_irq: the function has no interrupt pin");
    d->pin_level = level;
    d->config[CFG_STATUS] = (uint8_t)((d->config[CFG_STATUS] & ~8) | (level ? 8 : 0));
    update_intx(d);
}

static void host_pci_set_route(struct hvx_vm *vm, unsigned (*gsi_of)(void *opaque, unsigned slot, unsigned pin),
                               void *opaque)
{
    vm->gsi_of = gsi_of;
    vm->gsi_opaque = opaque;
}

static void host_pci_reroute(struct hvx_vm *vm)
{
    bool level[TEST_GSIS] = {false}, used[TEST_GSIS] = {false};
    for (struct hvx_pci_dev *d = vm->pci; d; d = d->next) {
        if (!d->config[0x3d])
            continue;
        unsigned gsi = route(d);
        if (gsi >= TEST_GSIS)
            continue; /* disconnected */
        used[gsi] = true;
        level[gsi] |= hvxtest_pci_intx(d);
    }
    for (unsigned i = 0; i < TEST_GSIS; i++)
        if (used[i] || (vm->irq_level[i] && i < 24 && vm->pci))
            test_irq_set(vm, i, level[i]);
}

/* --- MSI and MSI-X ---------------------------------------------------------------- */
static uint16_t msix_control(const struct hvx_pci_dev *d)
{
    return d->msix ? get16(d->config + d->msix + 2) : 0;
}

static bool host_pci_msix_enabled(struct hvx_pci_dev *d)
{
    return msix_control(d) & MSIX_ENABLE;
}

static bool host_pci_msi_enabled(struct hvx_pci_dev *d)
{
    return d->msi && (d->config[d->msi + 2] & 1);
}

static void msix_fire_pending(struct hvx_pci_dev *d)
{
    if (!(msix_control(d) & MSIX_ENABLE) || (msix_control(d) & MSIX_MASKALL))
        return;
    for (unsigned i = 0; i < d->n_vectors; i++) {
        uint8_t *e = d->table + 16 * i;
        if ((d->pba[i / 8] & 1 << i % 8) && !(e[12] & 1)) {
            d->pba[i / 8] &= (uint8_t)~(1 << i % 8);
            test_msi_send(d->vm, get64(e), get32(e + 8));
        }
    }
}

static void host_pci_msix_notify(struct hvx_pci_dev *d, unsigned vector)
{
    if (vector >= d->n_vectors)
        test_bug("pci_msix_notify: vector %u of %u", vector, d->n_vectors);
    if (!(msix_control(d) & MSIX_ENABLE))
        return;
    d->pba[vector / 8] |= (uint8_t)(1 << vector % 8);
    msix_fire_pending(d);
}

static void host_pci_msi_notify(struct hvx_pci_dev *d)
{
    if (host_pci_msi_enabled(d))
        test_msi_send(d->vm, get64(d->config + d->msi + 4), get16(d->config + d->msi + 12));
}

static uint64_t msix_read(void *opaque, uint64_t off, unsigned size)
{
    struct hvx_pci_dev *d = opaque;
    uint64_t v = 0;
    if (off + size <= 16ull * d->n_vectors)
        memcpy(&v, d->table + off, size);
    else if (off >= d->pba_off && off + size <= d->pba_off + (d->n_vectors + 63) / 64 * 8)
        memcpy(&v, d->pba + (off - d->pba_off), size);
    return v;
}

static void msix_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct hvx_pci_dev *d = opaque;
    if (off + size <= 16ull * d->n_vectors) {
        memcpy(d->table + off, &value, size);
        msix_fire_pending(d);
    }
}
static const struct hvx_region_ops msix_ops = {msix_read, msix_write};

bool hvxtest_pci_msix_pending(struct hvx_pci_dev *d, unsigned vector)
{
    return vector < d->n_vectors && (d->pba[vector / 8] & 1 << vector % 8);
}

/* --- BARs ----------------------------------------------------------------------------- */
static uint64_t bar_wanted(struct hvx_pci_dev *d, unsigned i)
{
    const struct bar *b = &d->bars[i];
    const uint8_t *p = d->config + (i == BAR_ROM ? CFG_ROM : CFG_BAR0 + 4 * i);
    if (b->type == HVX_BAR_IO) {
        uint64_t a = get32(p) & ~3u & 0xffff;
        return (command(d) & CMD_IO) && a && a + b->size <= 0x10000 ? a : ~0ull;
    }
    if (!(command(d) & CMD_MEM) || (i == BAR_ROM && !(p[0] & 1)))
        return ~0ull;
    uint64_t a = (i == BAR_ROM ? get32(p) & ~0x7ffu : get32(p) & ~15u);
    uint64_t top = 1ull << 32;
    if (b->type == HVX_BAR_MEM64) {
        a |= (uint64_t)get32(p + 4) << 32;
        top = 1ull << 46;
    }
    /* All ones is a sizing probe, not an address. */
    return a && a + b->size < top ? a : ~0ull;
}

static void update_bars(struct hvx_pci_dev *d)
{
    for (unsigned i = 0; i < N_BARS; i++) {
        struct bar *b = &d->bars[i];
        if (!b->size)
            continue;
        uint64_t wanted = bar_wanted(d, i);
        if (wanted == b->addr)
            continue;
        b->addr = wanted;
        if (b->region)
            test_region_move(d->vm, b->region, wanted);
        if (d->ops.bar_moved && i != BAR_ROM)
            d->ops.bar_moved(d->opaque, i, wanted);
    }
}

static uint64_t power_of_two(uint64_t n, uint64_t min)
{
    uint64_t p = min;
    while (p < n)
        p *= 2;
    return p;
}

static void bar_setup(struct hvx_pci_dev *d, unsigned i, const struct hvx_pci_bar *src)
{
    static const char *const names[] = {"bar0", "bar1", "bar2", "bar3", "bar4", "bar5"};
    if (src->type == HVX_BAR_NONE)
        return;
    uint64_t min = src->type == HVX_BAR_IO ? 4 : 16;
    if (src->size < min || (src->size & (src->size - 1)) || (!src->ops && !src->ram) ||
        (src->type == HVX_BAR_MEM64 && i == 5))
        test_bug("pci_add: BAR %u: size %llu must be a power of two of at least %llu, with ops or ram", i,
                 (unsigned long long)src->size, (unsigned long long)min);
    struct bar *b = &d->bars[i];
    *b = (struct bar){.type = src->type, .size = src->size, .addr = ~0ull};
    uint32_t low = src->type == HVX_BAR_IO ? 1u : src->type == HVX_BAR_MEM64 ? 4u : 0;
    if (src->flags & HVX_BAR_PREFETCH)
        low |= 8;
    put32(d->config + CFG_BAR0 + 4 * i, low);
    put32(d->wmask + CFG_BAR0 + 4 * i, (uint32_t)~(src->size - 1));
    if (src->type == HVX_BAR_MEM64)
        put32(d->wmask + CFG_BAR0 + 4 * i + 4, (uint32_t)(~(src->size - 1) >> 32));
    if (src->ram)
        b->region = test_map_new(d->vm, ~0ull, src->size, src->ram, false, names[i]);
    else if (test_region_add(d->vm, src->type == HVX_BAR_IO ? HVX_SPACE_PIO : HVX_SPACE_MMIO, ~0ull, src->size, 0,
                             names[i], src->ops, d->opaque, &b->region, NULL) < 0)
        test_bug("pci_add: BAR %u", i);
}

static void rom_setup(struct hvx_pci_dev *d, const void *rom, uint32_t size)
{
    if (!rom || !size)
        return;
    struct bar *b = &d->bars[BAR_ROM];
    *b = (struct bar){.type = HVX_BAR_MEM32, .size = power_of_two(size, 4096), .addr = ~0ull};
    if (posix_memalign((void **)&d->rom, 4096, b->size))
        test_bug("out of memory");
    memset(d->rom, 0xff, b->size);
    memcpy(d->rom, rom, size);
    b->region = test_map_new(d->vm, ~0ull, b->size, d->rom, true, "rom");
    put32(d->wmask + CFG_ROM, (uint32_t)~(b->size - 1) | 1);
}

/* --- capabilities ------------------------------------------------------------------------ */
static int add_cap(struct hvx_pci_dev *d, uint8_t id, const void *body, const void *wmask, unsigned n, bool core)
{
    unsigned off = (d->next_cap + 3) & ~3u;
    if (n < 2 || off + n > 256)
        return -ENOSPC;
    memcpy(d->config + off, body, n);
    d->config[off] = id;
    d->config[off + 1] = 0;
    if (wmask)
        memcpy(d->wmask + off, wmask, n);
    else
        memset(d->wmask + off, 0, n);
    d->wmask[off] = d->wmask[off + 1] = 0;
    if (core)
        memset(d->core_cap + off, 1, n);
    d->config[d->last_cap ? d->last_cap + 1 : CFG_CAP_PTR] = (uint8_t)off;
    d->config[CFG_STATUS] |= 0x10;
    d->last_cap = off;
    d->next_cap = off + n;
    return (int)off;
}

static int host_pci_add_cap(struct hvx_pci_dev *d, uint8_t cap_id, const void *body, const void *wmask, unsigned n)
{
    if (test_should_fail(d->vm))
        return -ENOSPC;
    return add_cap(d, cap_id, body, wmask, n, false);
}

static void msi_setup(struct hvx_pci_dev *d, const struct hvx_pci_desc *desc)
{
    if (desc->msi_vectors) {
        uint8_t body[14] = {[2] = 0x80}, mask[14] = {[2] = 1, [4] = 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                                     0xff, 0xff};
        d->msi = (unsigned)add_cap(d, CAP_MSI, body, mask, sizeof(body), true);
    }
    if (desc->msix_vectors) {
        if (desc->msix_vectors > 2048 || desc->msix_bar > 5 || desc->bars[desc->msix_bar].type != HVX_BAR_NONE)
            test_bug("pci_add: at most 2048 MSI-X vectors, in a BAR that is otherwise unused");
        d->n_vectors = desc->msix_vectors;
        d->table = test_alloc(16u * d->n_vectors);
        d->pba = test_alloc((d->n_vectors + 63) / 64 * 8);
        for (unsigned i = 0; i < d->n_vectors; i++)
            d->table[16 * i + 12] = 1; /* masked after reset, 6.8.2.9 */
        d->pba_off = (unsigned)power_of_two(16u * d->n_vectors, 2048);
        struct hvx_pci_bar bar = {.type = HVX_BAR_MEM32, .size = 2 * d->pba_off, .ops = &msix_ops};
        bar_setup(d, desc->msix_bar, &bar);
        d->bars[desc->msix_bar].region->opaque = d;
        uint8_t body[12] = {[2] = (uint8_t)(d->n_vectors - 1), [3] = (uint8_t)((d->n_vectors - 1) >> 8)};
        put32(body + 4, desc->msix_bar);
        put32(body + 8, d->pba_off | desc->msix_bar);
        uint8_t mask[12] = {[3] = 0xc0};
        d->msix = (unsigned)add_cap(d, CAP_MSIX, body, mask, sizeof(body), true);
    }
}

/* --- adding and removing ------------------------------------------------------------------- */
struct hvx_pci_dev *hvxtest_pci_at(struct hvx_vm *vm, unsigned devfn)
{
    for (struct hvx_pci_dev *d = vm->pci; d; d = d->next)
        if (d->devfn == devfn)
            return d;
    return NULL;
}

static void header_setup(struct hvx_pci_dev *d, const struct hvx_pci_desc *desc)
{
    uint8_t *c = d->config;
    put32(c, desc->vendor | (uint32_t)desc->device << 16);
    put32(c + 8, desc->revision | desc->class_code << 8);
    c[0x0e] = desc->multifunction ? 0x80 : 0;
    put32(c + 0x2c, desc->subsys_vendor | (uint32_t)desc->subsys << 16);
    c[0x3d] = desc->irq_pin;
    d->wmask[CFG_COMMAND] = 0x47;
    d->wmask[CFG_COMMAND + 1] = 0x05;
    d->wmask[0x0c] = 0xff;
    d->wmask[0x0d] = 0xff;
    d->wmask[0x3c] = 0xff;
    memset(d->wmask + 0x40, 0xff, sizeof(d->wmask) - 0x40);
}

static int host_pci_add(struct hvx_vm *vm, const struct hvx_pci_desc *desc, const struct hvx_pci_ops *ops, void *opaque,
                        struct hvx_pci_dev **out, struct hvx_error *err)
{
    if (test_should_fail(vm))
        return hvx_fail(err, -ENOMEM, "pci_add: injected fault");
    if (desc->size != sizeof(*desc) || (ops && ops->size != sizeof(*ops)))
        test_bug("pci_add: desc->size and ops->size must be set");
    int devfn = desc->devfn;
    for (int slot = 1; devfn < 0 && slot < 32; slot++)
        if (!hvxtest_pci_at(vm, (unsigned)slot << 3))
            devfn = slot << 3;
    if (devfn < 0 || devfn > 255 || hvxtest_pci_at(vm, (unsigned)devfn))
        return hvx_fail(err, -EBUSY, "PCI: device %02x.%x is taken", (unsigned)devfn >> 3, (unsigned)devfn & 7);
    struct hvx_pci_dev *d = test_alloc(sizeof(*d));
    d->vm = vm;
    d->devfn = (unsigned)devfn;
    d->opaque = opaque;
    d->next_cap = 0x40;
    if (ops)
        d->ops = *ops;
    header_setup(d, desc);
    for (unsigned i = 0; i < 6; i++)
        bar_setup(d, i, &desc->bars[i]);
    rom_setup(d, desc->rom, desc->rom_size);
    msi_setup(d, desc);
    struct hvx_pci_dev **end = &vm->pci;
    while (*end)
        end = &(*end)->next;
    *end = d;
    *out = d;
    return 0;
}

static void free_dev(struct hvx_pci_dev *d)
{
    for (unsigned i = 0; i < N_BARS; i++)
        test_region_del(d->vm, d->bars[i].region);
    free(d->table);
    free(d->pba);
    free(d->rom);
    free(d);
}

static void host_pci_del(struct hvx_vm *vm, struct hvx_pci_dev *d)
{
    if (!d)
        return;
    struct hvx_pci_dev **p = &vm->pci;
    while (*p && *p != d)
        p = &(*p)->next;
    if (!*p)
        test_bug("pci_del: not a function of this VM, or deleted twice");
    if (d->pin_level)
        host_pci_set_irq(d, false);
    *p = d->next;
    free_dev(d);
}

unsigned test_pci_leftovers(struct hvx_vm *vm, char *buf, size_t n)
{
    unsigned count = 0;
    for (struct hvx_pci_dev *d = vm->pci; d; d = d->next, count++)
        test_note(buf, n, "PCI function %02x.%x", d->devfn >> 3, d->devfn & 7);
    return count;
}

void test_pci_done(struct hvx_vm *vm)
{
    while (vm->pci) {
        struct hvx_pci_dev *d = vm->pci;
        vm->pci = d->next;
        free_dev(d);
    }
}

/* --- configuration space ---------------------------------------------------------------------- */
uint32_t hvxtest_pci_cfg_read(struct hvx_pci_dev *d, unsigned off, unsigned size)
{
    if (off >= 256 || size > 256 - off || (size != 1 && size != 2 && size != 4))
        return ~0u;
    if (off >= 0x40 && !d->core_cap[off] && d->ops.config_read) {
        test_lock(d->vm);
        d->ops.config_read(d->opaque, off, size);
        test_unlock(d->vm);
    }
    uint32_t v = 0;
    memcpy(&v, d->config + off, size);
    return v;
}

void hvxtest_pci_cfg_write(struct hvx_pci_dev *d, unsigned off, unsigned size, uint32_t v)
{
    if (off >= 256 || size > 256 - off || (size != 1 && size != 2 && size != 4))
        return;
    test_lock(d->vm);
    for (unsigned i = 0; i < size; i++) {
        uint8_t m = d->wmask[off + i];
        d->config[off + i] = (uint8_t)((d->config[off + i] & ~m) | (v >> 8 * i & m));
    }
    update_bars(d);
    update_intx(d);
    msix_fire_pending(d);
    if (off >= 0x40 && !d->core_cap[off] && d->ops.config_written)
        d->ops.config_written(d->opaque, off, size);
    test_unlock(d->vm);
}

static uint32_t host_pci_cfg_read(struct hvx_vm *vm, unsigned bdf, unsigned off, unsigned size)
{
    struct hvx_pci_dev *d = bdf < 256 ? hvxtest_pci_at(vm, bdf) : NULL;
    return d ? hvxtest_pci_cfg_read(d, off, size) : size == 4 ? ~0u : (1u << 8 * size) - 1;
}

static void host_pci_cfg_write(struct hvx_vm *vm, unsigned bdf, unsigned off, unsigned size, uint32_t v)
{
    struct hvx_pci_dev *d = bdf < 256 ? hvxtest_pci_at(vm, bdf) : NULL;
    if (d)
        hvxtest_pci_cfg_write(d, off, size, v);
}

static uint8_t *host_pci_config(struct hvx_pci_dev *d)
{
    return d->config;
}

static bool host_pci_bus_master(struct hvx_pci_dev *d)
{
    return command(d) & CMD_MASTER;
}

static int host_pci_dma_read(struct hvx_pci_dev *d, uint64_t gpa, void *buf, size_t n)
{
    return host_pci_bus_master(d) ? test_mem_read(d->vm, gpa, buf, n) : -EFAULT;
}

static int host_pci_dma_write(struct hvx_pci_dev *d, uint64_t gpa, const void *buf, size_t n)
{
    return host_pci_bus_master(d) ? test_mem_write(d->vm, gpa, buf, n) : -EFAULT;
}

/* --- what tests use ---------------------------------------------------------------------------- */
struct hvx_pci_dev *hvxtest_pci_nth(struct hvx_vm *vm, unsigned i)
{
    struct hvx_pci_dev *d = vm->pci;
    while (d && i--)
        d = d->next;
    return d;
}

unsigned hvxtest_pci_devfn(struct hvx_pci_dev *d)
{
    return d->devfn;
}

uint64_t hvxtest_pci_bar(struct hvx_pci_dev *d, unsigned bar)
{
    return bar < N_BARS && d->bars[bar].size ? d->bars[bar].addr : ~0ull;
}

void hvxtest_pci_enable(struct hvx_pci_dev *d)
{
    struct hvx_vm *vm = d->vm;
    if (!vm->next_io) {
        vm->next_io = 0xc000;
        vm->next_mem = 0xe0000000u;
    }
    for (unsigned i = 0; i < 6; i++) {
        if (!d->bars[i].size)
            continue;
        unsigned off = CFG_BAR0 + 4 * i;
        uint64_t *next = d->bars[i].type == HVX_BAR_IO ? &vm->next_io : &vm->next_mem;
        hvxtest_pci_cfg_write(d, off, 4, ~0u);
        uint32_t size = ~(hvxtest_pci_cfg_read(d, off, 4) & (d->bars[i].type == HVX_BAR_IO ? ~3u : ~15u)) + 1;
        *next = (*next + size - 1) & ~(uint64_t)(size - 1);
        hvxtest_pci_cfg_write(d, off, 4, (uint32_t)*next);
        if (d->bars[i].type == HVX_BAR_MEM64)
            hvxtest_pci_cfg_write(d, off + 4, 4, 0);
        *next += size;
    }
    hvxtest_pci_cfg_write(d, CFG_COMMAND, 2, CMD_IO | CMD_MEM | CMD_MASTER);
}

unsigned hvxtest_pci_find_cap(struct hvx_pci_dev *d, uint8_t id, unsigned nth)
{
    unsigned off = d->config[CFG_CAP_PTR];
    for (unsigned i = 0; off && i < 48; i++) {
        if (d->config[off] == id && nth-- == 0)
            return off;
        off = d->config[off + 1];
    }
    return 0;
}

void hvxtest_pci_msix(struct hvx_pci_dev *d, unsigned vector, uint64_t addr, uint32_t data, bool masked)
{
    if (vector >= d->n_vectors)
        test_bug("hvxtest_pci_msix: vector %u of %u", vector, d->n_vectors);
    msix_write(d, 16 * vector, 8, addr);
    msix_write(d, 16 * vector + 8, 4, data);
    msix_write(d, 16 * vector + 12, 4, masked);
    hvxtest_pci_cfg_write(d, d->msix + 2, 2, MSIX_ENABLE);
}

void hvxtest_pci_msi(struct hvx_pci_dev *d, uint64_t addr, uint32_t data)
{
    if (!d->msi)
        test_bug("hvxtest_pci_msi: the function has no MSI");
    hvxtest_pci_cfg_write(d, d->msi + 4, 4, (uint32_t)addr);
    hvxtest_pci_cfg_write(d, d->msi + 8, 4, (uint32_t)(addr >> 32));
    hvxtest_pci_cfg_write(d, d->msi + 12, 2, data);
    hvxtest_pci_cfg_write(d, d->msi + 2, 2, 1);
}

void test_host_pci(struct hvx_host *h)
{
    h->pci_add = host_pci_add;
    h->pci_del = host_pci_del;
    h->pci_config = host_pci_config;
    h->pci_add_cap = host_pci_add_cap;
    h->pci_set_irq = host_pci_set_irq;
    h->pci_msix_enabled = host_pci_msix_enabled;
    h->pci_msi_enabled = host_pci_msi_enabled;
    h->pci_msix_notify = host_pci_msix_notify;
    h->pci_msi_notify = host_pci_msi_notify;
    h->pci_dma_read = host_pci_dma_read;
    h->pci_dma_write = host_pci_dma_write;
    h->pci_bus_master = host_pci_bus_master;
    h->pci_set_route = host_pci_set_route;
    h->pci_cfg_read = host_pci_cfg_read;
    h->pci_cfg_write = host_pci_cfg_write;
    h->pci_reroute = host_pci_reroute;
}
