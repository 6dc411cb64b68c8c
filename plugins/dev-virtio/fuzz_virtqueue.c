/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: a hostile driver. The input chooses a device, how it is
 * negotiated, and then a sequence of register accesses, ring contents,
 * notifications, and events from the outside world.
 */
#include "test_driver.h"

#include <stdlib.h>
#include <string.h>

#define RAM_BYTES (4u << 20)
#define DATA_GPA 0x200000u
#define MAX_STEPS 400u

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

struct world {
    struct instance i;
    struct drv *d;
    struct hvx_blk *disk;
    unsigned n_queues;
    uint64_t legacy_bar, modern_bar;
};

static const struct { const char *type, *options; unsigned n_queues; } devices[] = {
    {"virtio-blk", "drive=disk0,queues=2,queue-size=16,packed=on", 2},
    {"virtio-net", "netdev=net0,queues=2,queue-size=16,packed=on", 5},
    {"virtio-rng", "packed=on", 1},
    {"virtio-console", "port1=agent0:name,packed=on", 6},
    {"virtio-rng", "max-bytes=100,period=1,packed=on", 1},
    {"virtio-scsi", "drives=disk0:cd0,queues=2,queue-size=16,packed=on", 4},
    {"virtio-balloon", "packed=on", 4},
};

static void start(struct world *w, struct input *in)
{
    unsigned pick = take(in, 1) % (sizeof(devices) / sizeof(devices[0]));
    unsigned mode = take(in, 1);
    struct hvx_vm *vm = hvxtest_new(&(struct hvxtest_params){.ram_below_4g = RAM_BYTES});
    memset(w, 0, sizeof(*w));
    w->disk = hvxtest_disk_add(vm, "disk0", &(struct hvxtest_disk_params){.bytes = 1 << 16});
    hvxtest_disk_add(vm, "cd0", &(struct hvxtest_disk_params){.bytes = 1 << 15, .cdrom = true, .read_only = true,
                                                              .logical_block = 2048});
    hvxtest_nic_add(vm, "net0");
    instance_open(&w->i, vm, devices[pick].type, devices[pick].options);
    w->d = &w->i.d;
    w->n_queues = devices[pick].n_queues;
    drv_find(w->d, vm, mode & 1);
    w->legacy_bar = hvxtest_pci_bar(w->d->pci, 0);
    w->modern_bar = hvxtest_pci_bar(w->d->pci, 4);
    if (mode & 2)
        hvxtest_pci_msix(w->d->pci, 0, 0xfee00000, 0x30, false);
    uint64_t want = ~0ull;
    if (mode & 4)
        want &= ~BIT(VIRTIO_F_RING_PACKED);
    if (mode & 8)
        want &= ~BIT(VIRTIO_RING_F_EVENT_IDX);
    if (mode & 16)
        want &= ~BIT(VIRTIO_RING_F_INDIRECT_DESC);
    if (mode & 32)
        want &= take(in, 8);
    if (!drv_negotiate(w->d, want))
        return;
    for (unsigned q = 0; q < w->n_queues; q++)
        drv_queue(w->d, q, 0);
    drv_ok(w->d);
}

static void add_chain(struct world *w, struct input *in, bool indirect)
{
    struct drvq *q = &w->d->q[take(in, 1) % w->n_queues];
    struct seg s[8];
    unsigned n = 1 + take(in, 1) % 8;
    if (!q->size)
        return;
    for (unsigned i = 0; i < n; i++) {
        uint32_t v = take(in, 4);
        s[i] = (struct seg){DATA_GPA + (v >> 16) * 8, v & 0x7fff, v & 0x8000};
        if (s[i].len > 20000)
            s[i].gpa = RAM_BYTES - (v >> 16);
    }
    (indirect ? drv_add_indirect : drv_add)(w->d, q, s, n);
    if (w->d->next > DATA_GPA)
        w->d->next = DATA_GPA - 0x40000;
    drv_notify(w->d, q->index);
}

static void poke_ram(struct world *w, struct input *in)
{
    struct drvq *q = &w->d->q[take(in, 1) % w->n_queues];
    unsigned what = take(in, 1), off = take(in, 2), n = 1 + take(in, 1) % 16;
    uint64_t base = what % 4 == 0 ? q->desc_gpa : what % 4 == 1 ? q->avail_gpa : what % 4 == 2 ? q->used_gpa : DATA_GPA;
    for (unsigned i = 0; i < n; i++)
        if (base + off % 4096 + i < RAM_BYTES)
            hvxtest_ram(w->i.vm)[base + off % 4096 + i] = take(in, 1);
}

static void inject(struct world *w, struct input *in)
{
    static uint8_t frame[70000];
    struct hvx_net_meta m = {0};
    size_t n = take(in, 2);
    m.flags = take(in, 1);
    m.gso_type = take(in, 1);
    memset(frame, 0xff, 14);
    hvxtest_nic_inject(w->i.vm, "net0", frame, n, &m);
}

static void save_and_load(struct world *w, struct input *in)
{
    uint8_t *buf;
    size_t n;
    struct hvx_error err;
    if (hvxtest_save(w->i.type->state, w->i.dev, 1, &buf, &n) < 0)
        return;
    for (unsigned k = take(in, 1) % 4; k && n; k--)
        buf[take(in, 2) % n] = take(in, 1);
    (void)!hvxtest_load(w->i.type->state, w->i.dev, 1, buf, n, &err);
    free(buf);
}

static void step(struct world *w, struct input *in)
{
    static const uint8_t sizes[] = {1, 2, 4, 8};
    unsigned op = take(in, 1) % 16, size, off;
    switch (op) {
    case 0:
    case 1:
        size = sizes[take(in, 1) % 4];
        off = (take(in, 2) & 0x3fff & ~(size - 1u));
        if (w->modern_bar != ~0ull && op)
            hvxtest_mmio_write(w->i.vm, w->modern_bar + off, size, take(in, size));
        else if (w->modern_bar != ~0ull)
            (void)hvxtest_mmio_read(w->i.vm, w->modern_bar + off, size);
        return;
    case 2:
    case 3:
        size = sizes[take(in, 1) % 3];
        off = take(in, 1) & 31 & ~(size - 1u);
        if (op == 3)
            hvxtest_pio_write(w->i.vm, w->legacy_bar + off, size, take(in, size));
        else
            (void)hvxtest_pio_read(w->i.vm, w->legacy_bar + off, size);
        return;
    case 4: case 5: case 6: poke_ram(w, in); return;
    case 7: case 8: add_chain(w, in, false); return;
    case 9: add_chain(w, in, true); return;
    case 10: drv_notify(w->d, take(in, 1) % 8); return;
    case 11: hvxtest_step_ns(w->i.vm, take(in, 3)); return;
    case 12: inject(w, in); return;
    case 13: hvxtest_chr_input(w->i.vm, take(in, 1) & 1 ? "console0" : "agent0", "0123456789abcdef", take(in, 1) % 17); return;
    case 14:
        off = take(in, 1);
        hvxtest_disk_hold(w->disk, off & 1);
        if (hvxtest_disk_in_flight(w->disk))
            hvxtest_disk_release(w->disk, off & 2 ? ~0u : 0);
        hvxtest_chr_limit(w->i.vm, "console0", off >> 4);
        return;
    case 15:
        if (take(in, 1) & 1)
            save_and_load(w, in);
        else
            hvxtest_pci_cfg_write(w->d->pci, 0x40 + take(in, 1) % 0xc0, 1, take(in, 1));
        return;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    struct world w;
    start(&w, &in);
    for (unsigned i = 0; in.n && i < MAX_STEPS; i++)
        step(&w, &in);
    hvxtest_disk_hold(w.disk, false);
    if (hvxtest_disk_in_flight(w.disk))
        hvxtest_disk_release(w.disk, ~0u);
    hvxtest_step_ns(w.i.vm, 10000000);
    instance_close(&w.i);
    return 0;
}
