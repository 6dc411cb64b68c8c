/* SPDX-License-Identifier: Apache-2.0
 *
 * The PCI transport and the rings, with the entropy device as the simplest
 * thing behind them: identity, negotiation, interrupts, and everything that a
 * driver can get wrong.
 */
#include "test_driver.h"

#include <linux/virtio_ids.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define RING (BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(VIRTIO_RING_F_INDIRECT_DESC))
#define PACKED (RING | BIT(VIRTIO_F_RING_PACKED))

struct fixture {
    struct instance i;
    struct drv *d;
    struct drvq *q;
    uint64_t data;
};

static void open_rng(struct fixture *f, const char *options, bool modern, uint64_t features)
{
    struct hvx_vm *vm = hvxtest_new(&(struct hvxtest_params){.ram_below_4g = DRV_RAM, .ram_above_4g = 8 << 20});
    memset(f, 0, sizeof(*f));
    instance_open(&f->i, vm, "virtio-rng", options);
    f->d = &f->i.d;
    drv_start(f->d, vm, modern, features, 1);
    f->q = &f->d->q[0];
    f->data = drv_alloc(f->d, 65536, 4096);
}

static bool serve_one(struct fixture *f, uint32_t bytes)
{
    uint32_t len = 0;
    uint16_t id = drv_add(f->d, f->q, &(struct seg){f->data, bytes, true}, 1);
    drv_kick(f->d, f->q);
    return drv_used(f->d, f->q, &len) == id && len == bytes;
}

static unsigned cfg(struct fixture *f, unsigned off, unsigned n) { return hvxtest_pci_cfg_read(f->d->pci, off, n); }

static void test_identity(void **state)
{
    (void)state;
    static const struct { const char *type, *options; unsigned device, subsystem, revision, class; } ids[] = {
        {"virtio-rng", "", 0x1005, VIRTIO_ID_RNG, 0, 0x00ff},
        {"virtio-rng", "disable-modern=on", 0x1005, VIRTIO_ID_RNG, 0, 0x00ff},
        {"virtio-rng", "disable-legacy=on", 0x1044, 0x1100, 1, 0x00ff},
        {"virtio-blk", "drive=disk0", 0x1001, VIRTIO_ID_BLOCK, 0, 0x0100},
        {"virtio-net", "netdev=net0", 0x1000, VIRTIO_ID_NET, 0, 0x0200},
        {"virtio-net", "netdev=net0,disable-legacy=on", 0x1041, 0x1100, 1, 0x0200},
        {"virtio-console", "", 0x1003, VIRTIO_ID_CONSOLE, 0, 0x0780},
    };
    for (unsigned k = 0; k < sizeof(ids) / sizeof(ids[0]); k++) {
        struct fixture f;
        struct hvx_vm *vm = hvxtest_new(NULL);
        hvxtest_disk_add(vm, "disk0", &(struct hvxtest_disk_params){.bytes = 1 << 20});
        hvxtest_nic_add(vm, "net0");
        instance_open(&f.i, vm, ids[k].type, ids[k].options);
        f.d = &f.i.d;
        f.d->pci = hvxtest_pci_nth(vm, 0);
        hvxtest_pci_enable(f.d->pci);
        assert_int_equal(cfg(&f, 0, 2), 0x1af4);
        assert_int_equal(cfg(&f, 2, 2), ids[k].device);
        assert_int_equal(cfg(&f, 0x2c, 2), 0x1af4);
        assert_int_equal(cfg(&f, 0x2e, 2), ids[k].subsystem);
        assert_int_equal(cfg(&f, 8, 1), ids[k].revision);
        assert_int_equal(cfg(&f, 10, 2), ids[k].class);
        assert_int_equal(hvxtest_pci_bar(f.d->pci, 0) != ~0ull, !strstr(ids[k].options, "disable-legacy"));
        assert_int_equal(hvxtest_pci_bar(f.d->pci, 4) != ~0ull, !strstr(ids[k].options, "disable-modern"));
        assert_int_equal(hvxtest_pci_find_cap(f.d->pci, 0x09, 0) != 0, !strstr(ids[k].options, "disable-modern"));
        assert_true(hvxtest_pci_find_cap(f.d->pci, 0x11, 0));
        instance_close(&f.i);
    }
}

static void test_slot_option_places_the_device(void **state)
{
    (void)state;
    struct fixture f;
    open_rng(&f, "slot=9", true, RING);
    assert_int_equal(hvxtest_pci_devfn(f.d->pci), 9 << 3);
    instance_close(&f.i);
}

static void test_feature_negotiation(void **state)
{
    (void)state;
    struct fixture f;
    open_rng(&f, "packed=on", true, RING);
    uint64_t bar = f.d->bar;
    assert_int_equal(drv_offered(f.d), PACKED | BIT(VIRTIO_F_VERSION_1));
    /* More than two words of features: there are none. */
    hvxtest_mmio_write(f.i.vm, bar, 4, 2);
    assert_int_equal(hvxtest_mmio_read(f.i.vm, bar + 4, 4), 0);
    /* Not offered: FEATURES_OK does not stick, and DRIVER_OK without it neither. */
    drv_set_status(f.d, 0);
    hvxtest_mmio_write(f.i.vm, bar + 8, 4, 0);
    hvxtest_mmio_write(f.i.vm, bar + 12, 4, 1);
    hvxtest_mmio_write(f.i.vm, bar + 8, 4, 1);
    hvxtest_mmio_write(f.i.vm, bar + 12, 4, 1);
    drv_set_status(f.d, 0xb);
    assert_int_equal(drv_status(f.d), 3);
    drv_set_status(f.d, 7);
    assert_int_equal(drv_status(f.d), 3);
    /* Without VERSION_1 a modern driver is refused. */
    hvxtest_mmio_write(f.i.vm, bar + 12, 4, 0);
    hvxtest_mmio_write(f.i.vm, bar + 8, 4, 0);
    hvxtest_mmio_write(f.i.vm, bar + 12, 4, 0);
    drv_set_status(f.d, 0xb);
    assert_int_equal(drv_status(f.d), 3);
    /* Features are final after FEATURES_OK. */
    assert_true(drv_negotiate(f.d, 0));
    hvxtest_mmio_write(f.i.vm, bar + 12, 4, 0);
    assert_int_equal(hvxtest_mmio_read(f.i.vm, bar + 12, 4), 1);
    instance_close(&f.i);

    open_rng(&f, "packed=on", false, RING);
    assert_int_equal(drv_offered(f.d), RING | BIT(VIRTIO_F_ANY_LAYOUT));
    instance_close(&f.i);
    open_rng(&f, "event-idx=off,indirect=off", true, ~0ull);
    assert_int_equal(drv_offered(f.d), BIT(VIRTIO_F_VERSION_1));
    instance_close(&f.i);
}

static void test_registers_of_missing_queues(void **state)
{
    (void)state;
    struct fixture f;
    open_rng(&f, "", true, RING);
    assert_int_equal(hvxtest_mmio_read(f.i.vm, f.d->bar + offsetof(struct virtio_pci_common_cfg, num_queues), 2), 1);
    assert_int_equal(drv_queue_size(f.d, 1), 0);
    assert_int_equal(drv_queue_size(f.d, 0xffff), 0);
    for (unsigned off = 0; off < 0x4000; off += off < 0x80 ? 1 : 0x3f)
        for (unsigned size = 1; size <= 8; size *= 2)
            if (off % size == 0)
                (void)hvxtest_mmio_read(f.i.vm, f.d->bar + off, size);
    drv_notify(f.d, 1);
    drv_notify(f.d, 1000);
    instance_close(&f.i);
}

static void test_intx_and_isr(void **state)
{
    (void)state;
    for (unsigned modern = 0; modern < 2; modern++) {
        struct fixture f;
        open_rng(&f, "", modern, 0);
        assert_true(serve_one(&f, 16));
        assert_true(hvxtest_pci_intx(f.d->pci));
        assert_int_equal(drv_isr(f.d), 1);
        assert_false(hvxtest_pci_intx(f.d->pci));
        assert_int_equal(drv_isr(f.d), 0);
        f.q->avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
        assert_true(serve_one(&f, 16));
        assert_false(hvxtest_pci_intx(f.d->pci));
        f.q->avail->flags = 0;
        assert_true(serve_one(&f, 16));
        assert_true(hvxtest_pci_intx(f.d->pci));
        drv_set_status(f.d, 0); /* a reset lowers the line */
        assert_false(hvxtest_pci_intx(f.d->pci));
        instance_close(&f.i);
    }
}

static void test_msix_vectors(void **state)
{
    (void)state;
    for (unsigned modern = 0; modern < 2; modern++) {
        struct fixture f;
        open_rng(&f, "", modern, 0);
        hvxtest_pci_msix(f.d->pci, 0, 0xfee00000, 0x30, false);
        hvxtest_pci_msix(f.d->pci, 1, 0xfee01000, 0x41, false);
        drv_set_vectors(f.d, 0, 1, 0);
        assert_true(serve_one(&f, 16));
        assert_int_equal(hvxtest_msi_count(f.i.vm), 1);
        assert_int_equal(hvxtest_msi_at(f.i.vm, 0).data, 0x41);
        assert_false(hvxtest_pci_intx(f.d->pci));
        /* A vector that does not exist reads back as none (4.1.5.1.2.1). */
        drv_set_vectors(f.d, 0, 2, 0);
        unsigned off = offsetof(struct virtio_pci_common_cfg, queue_msix_vector);
        if (modern)
            assert_int_equal(hvxtest_mmio_read(f.i.vm, f.d->bar + off, 2), 0xffff);
        else
            assert_int_equal(hvxtest_pio_read(f.i.vm, f.d->bar + VIRTIO_MSI_QUEUE_VECTOR, 2), 0xffff);
        assert_true(serve_one(&f, 16));
        assert_int_equal(hvxtest_msi_count(f.i.vm), 1);
        drv_set_vectors(f.d, 0, 1, 0);
        hvxtest_pci_msix(f.d->pci, 1, 0xfee01000, 0x41, true);
        assert_true(serve_one(&f, 16));
        assert_int_equal(hvxtest_msi_count(f.i.vm), 1);
        assert_true(hvxtest_pci_msix_pending(f.d->pci, 1));
        instance_close(&f.i);
    }
}

/* With event index the driver names the used entry after which it wants to hear. */
static void test_event_index_coalesces_interrupts(void **state)
{
    (void)state;
    for (unsigned packed = 0; packed < 2; packed++) {
        struct fixture f;
        open_rng(&f, "packed=on", true, packed ? PACKED : RING);
        hvxtest_pci_msix(f.d->pci, 0, 0xfee00000, 0x41, false);
        drv_set_vectors(f.d, 0, 0, 0xffff);
        unsigned want = 0;
        for (unsigned i = 0; i < 500; i++) {
            if (i % 10 == 0) { /* tell me when entry i + 9 is used */
                unsigned at = (i + 9) % f.q->size;
                bool wrap = ((i + 9) / f.q->size) % 2 == 0;
                if (packed) {
                    f.q->driver_event->off_wrap = at | wrap << 15;
                    f.q->driver_event->flags = VRING_PACKED_EVENT_FLAG_DESC;
                } else {
                    f.q->avail->ring[f.q->size] = i + 9;
                }
            }
            if (i == 0 && !packed)
                want++; /* the first one after a start is always told */
            assert_true(serve_one(&f, 8));
            want += i % 10 == 9;
            assert_int_equal(hvxtest_msi_count(f.i.vm), want);
        }
        instance_close(&f.i);
    }
}

static void test_packed_interrupt_flags(void **state)
{
    (void)state;
    struct fixture f;
    open_rng(&f, "packed=on", true, PACKED);
    assert_true(f.d->packed);
    hvxtest_pci_msix(f.d->pci, 0, 0xfee00000, 0x41, false);
    drv_set_vectors(f.d, 0, 0, 0xffff);
    f.q->driver_event->flags = VRING_PACKED_EVENT_FLAG_DISABLE;
    assert_true(serve_one(&f, 8));
    assert_int_equal(hvxtest_msi_count(f.i.vm), 0);
    f.q->driver_event->flags = VRING_PACKED_EVENT_FLAG_ENABLE;
    assert_true(serve_one(&f, 8));
    assert_int_equal(hvxtest_msi_count(f.i.vm), 1);
    instance_close(&f.i);
}

static void test_pci_config_window(void **state)
{
    (void)state;
    struct fixture f;
    open_rng(&f, "", true, RING);
    unsigned cap = hvxtest_pci_find_cap(f.d->pci, 0x09, 0);
    for (unsigned n = 0; cfg(&f, cap + 3, 1) != VIRTIO_PCI_CAP_PCI_CFG; n++)
        cap = hvxtest_pci_find_cap(f.d->pci, 0x09, n);
    hvxtest_pci_cfg_write(f.d->pci, cap + 4, 1, 4);
    hvxtest_pci_cfg_write(f.d->pci, cap + 8, 4, offsetof(struct virtio_pci_common_cfg, num_queues));
    hvxtest_pci_cfg_write(f.d->pci, cap + 12, 4, 2);
    assert_int_equal(cfg(&f, cap + 16, 2), 1);
    hvxtest_pci_cfg_write(f.d->pci, cap + 8, 4, offsetof(struct virtio_pci_common_cfg, device_status));
    hvxtest_pci_cfg_write(f.d->pci, cap + 12, 4, 1);
    assert_int_equal(cfg(&f, cap + 16, 1), 0xf);
    hvxtest_pci_cfg_write(f.d->pci, cap + 16, 1, 0);
    assert_int_equal(drv_status(f.d), 0);
    /* Outside the BAR, crooked lengths, the wrong BAR: nothing happens. */
    drv_set_status(f.d, 1);
    static const uint32_t bad[][3] = {{4, 0x4000, 1}, {4, ~0u, 4}, {4, 0x3fff, 4}, {4, 20, 3}, {4, 20, 0}, {4, 20, ~0u},
                                      {0, 20, 1}, {6, 20, 1}, {4, 21, 2}};
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        hvxtest_pci_cfg_write(f.d->pci, cap + 4, 1, bad[i][0]);
        hvxtest_pci_cfg_write(f.d->pci, cap + 8, 4, bad[i][1]);
        hvxtest_pci_cfg_write(f.d->pci, cap + 12, 4, bad[i][2]);
        hvxtest_pci_cfg_write(f.d->pci, cap + 16, 4, 0);
        (void)cfg(&f, cap + 16, 4);
        assert_int_equal(drv_status(f.d), 1);
    }
    instance_close(&f.i);
}

/* --- what a driver can get wrong ------------------------------------------------------ */
static void check_broken(struct fixture *f)
{
    unsigned before = hvxtest_msi_count(f->i.vm);
    drv_notify(f->d, 0);
    assert_int_equal(drv_used(f->d, f->q, NULL), -1);
    assert_true(drv_status(f->d) & VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_int_equal(hvxtest_msi_count(f->i.vm), before + 1); /* the configuration interrupt */
    assert_int_equal(hvxtest_msi_at(f->i.vm, before).data, 0x30);
    assert_true(hvxtest_events(f->i.vm, NULL) > 0);
    /* It stays quiet, and works again after a reset. */
    drv_notify(f->d, 0);
    assert_int_equal(drv_used(f->d, f->q, NULL), -1);
    uint64_t features = f->d->features;
    drv_negotiate(f->d, features);
    f->q = drv_queue(f->d, 0, 0);
    drv_set_vectors(f->d, 0, 1, 0);
    drv_ok(f->d);
    assert_int_equal(drv_status(f->d) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    assert_true(serve_one(f, 32));
}

static void open_msix(struct fixture *f, uint64_t features)
{
    open_rng(f, "packed=on", true, features);
    hvxtest_pci_msix(f->d->pci, 0, 0xfee00000, 0x30, false);
    hvxtest_pci_msix(f->d->pci, 1, 0xfee01000, 0x41, false);
    drv_set_vectors(f->d, 0, 1, 0);
    assert_true(serve_one(f, 8));
}

static void test_bad_split_chains_break_the_device_not_the_vm(void **state)
{
    (void)state;
    struct fixture f;
    open_msix(&f, RING);

    f.q->desc[3] = (struct vring_desc){.addr = f.data, .len = 4, .flags = VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, .next = 3};
    drv_publish(f.q, 3); /* a loop of one */
    check_broken(&f);
    for (unsigned i = 0; i < f.q->size; i++)
        f.q->desc[i] = (struct vring_desc){.addr = f.data, .len = 4, .flags = VRING_DESC_F_WRITE | VRING_DESC_F_NEXT,
                                           .next = (i + 1) % f.q->size};
    drv_publish(f.q, 0); /* a loop of all */
    check_broken(&f);
    drv_publish(f.q, f.q->size); /* head outside the table */
    check_broken(&f);
    f.q->desc[1] = (struct vring_desc){.addr = f.data, .len = 4, .flags = VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, .next = 64};
    drv_publish(f.q, 1); /* next outside the table */
    check_broken(&f);
    f.q->avail_idx += f.q->size; /* index runs ahead of the ring */
    drv_publish(f.q, 0);
    check_broken(&f);
    drv_add(f.d, f.q, &(struct seg){DRV_RAM, 4, true}, 1); /* not RAM */
    check_broken(&f);
    drv_add(f.d, f.q, &(struct seg){DRV_RAM - 2, 4, true}, 1); /* runs out of RAM */
    check_broken(&f);
    drv_add(f.d, f.q, &(struct seg){~0ull - 1, 4, true}, 1); /* wraps round the address space */
    check_broken(&f);
    drv_add(f.d, f.q, &(struct seg){0, ~0u, true}, 1); /* larger than anything */
    check_broken(&f);
    drv_add(f.d, f.q, (struct seg[]){{f.data, 4, true}, {f.data, 4, false}}, 2); /* readable after writable */
    check_broken(&f);
    instance_close(&f.i);
}

static void test_bad_indirect_tables(void **state)
{
    (void)state;
    struct fixture f;
    open_msix(&f, RING);
    const struct vring_desc good = {.addr = f.data, .len = 8, .flags = VRING_DESC_F_WRITE};
    struct vring_desc *table = drv_mem(f.d, f.data + 4096, 4096);
    static const struct { uint64_t addr; uint32_t len; uint16_t flags; } bad[] = {
        {4096, 0, VRING_DESC_F_INDIRECT},
        {4096, 17, VRING_DESC_F_INDIRECT},
        {4096, 16 * 1025, VRING_DESC_F_INDIRECT},
        {4096, ~0u & ~15u, VRING_DESC_F_INDIRECT},
        {4096, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT},
        {DRV_RAM, 16, VRING_DESC_F_INDIRECT},
        {~15ull, 32, VRING_DESC_F_INDIRECT},
    };
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        table[0] = good;
        f.q->desc[0] = (struct vring_desc){.addr = bad[i].addr == 4096 ? f.data + 4096 : bad[i].addr,
                                           .len = bad[i].len, .flags = bad[i].flags};
        drv_publish(f.q, 0);
        check_broken(&f);
    }
    /* An indirect entry in an indirect table; a next beyond the table. */
    table[0] = (struct vring_desc){.addr = f.data + 4096, .len = 16, .flags = VRING_DESC_F_INDIRECT};
    f.q->desc[0] = (struct vring_desc){.addr = f.data + 4096, .len = 16, .flags = VRING_DESC_F_INDIRECT};
    drv_publish(f.q, 0);
    check_broken(&f);
    table[0] = (struct vring_desc){.addr = f.data, .len = 8, .flags = VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, .next = 1};
    f.q->desc[0] = (struct vring_desc){.addr = f.data + 4096, .len = 16, .flags = VRING_DESC_F_INDIRECT};
    drv_publish(f.q, 0);
    check_broken(&f);
    instance_close(&f.i);

    open_msix(&f, 0); /* not negotiated */
    drv_add_indirect(f.d, f.q, &(struct seg){f.data, 8, true}, 1);
    check_broken(&f);
    instance_close(&f.i);
}

static void test_bad_packed_chains(void **state)
{
    (void)state;
    struct fixture f;
    open_msix(&f, PACKED);
    const uint16_t avail = 1u << VRING_PACKED_DESC_F_AVAIL;
    struct vring_packed_desc *e = &f.q->pdesc[1]; /* entry 0 went to open_msix() */
    /* Every entry says that another follows. */
    for (unsigned i = 0; i < f.q->size; i++)
        f.q->pdesc[i] = (struct vring_packed_desc){.addr = f.data, .len = 4, .flags = avail | VRING_DESC_F_NEXT | VRING_DESC_F_WRITE};
    check_broken(&f);
    e = f.q->pdesc + 1;
    *e = (struct vring_packed_desc){.addr = f.data + 4096, .len = 17, .flags = avail | VRING_DESC_F_INDIRECT};
    check_broken(&f);
    e = f.q->pdesc + 1;
    *e = (struct vring_packed_desc){.addr = DRV_RAM, .len = 16, .flags = avail | VRING_DESC_F_INDIRECT};
    check_broken(&f);
    e = f.q->pdesc + 1;
    e[0] = (struct vring_packed_desc){.addr = f.data, .len = 4, .flags = avail | VRING_DESC_F_NEXT | VRING_DESC_F_WRITE};
    e[1] = (struct vring_packed_desc){.addr = f.data + 4096, .len = 16, .flags = avail | VRING_DESC_F_INDIRECT};
    check_broken(&f);
    struct vring_packed_desc *table = drv_mem(f.d, f.data + 4096, 16);
    *table = (struct vring_packed_desc){.addr = f.data, .len = 16, .flags = VRING_DESC_F_INDIRECT};
    f.q->pdesc[1] = (struct vring_packed_desc){.addr = f.data + 4096, .len = 16, .flags = avail | VRING_DESC_F_INDIRECT};
    check_broken(&f);
    instance_close(&f.i);
}

static void test_rings_in_bad_places_are_refused(void **state)
{
    (void)state;
    static const struct { uint64_t desc, avail, used; unsigned size; } bad[] = {
        {DRV_RAM, 0x100000, 0x101000, 64},
        {0x100000, DRV_RAM - 8, 0x101000, 64},
        {0x100000, 0x101000, DRV_RAM - 4, 64},
        {0x100008, 0x101000, 0x102000, 64},
        {0x100000, 0x101001, 0x102000, 64},
        {0x100000, 0x101000, 0x102002, 64},
        {~0ull << 4, 0x101000, 0x102000, 64},
        {0x100000, ~1ull, 0x102000, 64},
        {0x100000, 0x101000, 0x102000, 48}, /* split rings are powers of two */
        {(1ull << 32) + (8 << 20) - 512, 0x101000, 0x102000, 64},
    };
    struct fixture f;
    open_rng(&f, "", true, RING);
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_true(drv_negotiate(f.d, RING));
        struct drvq q = {.size = bad[i].size, .desc_gpa = bad[i].desc, .avail_gpa = bad[i].avail, .used_gpa = bad[i].used};
        drv_place_queue(f.d, &q);
        assert_int_equal(hvxtest_mmio_read(f.i.vm, f.d->bar + offsetof(struct virtio_pci_common_cfg, queue_enable), 2), 0);
        assert_true(drv_status(f.d) & VIRTIO_CONFIG_S_NEEDS_RESET);
    }
    /* Too large for the device: the size stays as it was. */
    assert_true(drv_negotiate(f.d, RING));
    hvxtest_mmio_write(f.i.vm, f.d->bar + offsetof(struct virtio_pci_common_cfg, queue_size), 2, 1024);
    assert_int_equal(drv_queue_size(f.d, 0), 64);
    instance_close(&f.i);

    open_rng(&f, "", false, RING);
    struct drvq q = {.size = 64, .desc_gpa = 0xffffffffull << 12};
    drv_place_queue(f.d, &q);
    assert_int_equal(hvxtest_pio_read(f.i.vm, f.d->bar + VIRTIO_PCI_QUEUE_PFN, 4), 0);
    drv_notify(f.d, 0);
    instance_close(&f.i);
}

static void test_rings_and_buffers_above_4g(void **state)
{
    (void)state;
    struct fixture f;
    open_rng(&f, "", true, RING);
    assert_true(drv_negotiate(f.d, RING));
    f.d->next = (1ull << 32) + 4096;
    f.q = drv_queue(f.d, 0, 0);
    drv_ok(f.d);
    f.data = drv_alloc(f.d, 4096, 4096);
    assert_true(serve_one(&f, 4096));
    instance_close(&f.i);
}

static void test_queue_order_of_operations(void **state)
{
    (void)state;
    struct fixture f;
    open_rng(&f, "", true, RING);
    /* Not before FEATURES_OK. */
    drv_set_status(f.d, 0);
    drv_set_status(f.d, 3);
    drv_place_queue(f.d, f.q);
    assert_int_equal(hvxtest_mmio_read(f.i.vm, f.d->bar + offsetof(struct virtio_pci_common_cfg, queue_enable), 2), 0);
    /* No service before DRIVER_OK, and none without bus mastering. */
    assert_true(drv_negotiate(f.d, 0));
    f.q = drv_queue(f.d, 0, 0);
    assert_false(serve_one(&f, 4));
    drv_ok(f.d);
    unsigned command = cfg(&f, 4, 2);
    hvxtest_pci_cfg_write(f.d->pci, 4, 2, command & ~4u);
    drv_notify(f.d, 0);
    assert_int_equal(drv_used(f.d, f.q, NULL), -1);
    hvxtest_pci_cfg_write(f.d->pci, 4, 2, command);
    drv_notify(f.d, 0);
    assert_true(drv_used(f.d, f.q, NULL) >= 0);
    /* A live queue does not move. */
    uint64_t before = f.q->desc_gpa;
    struct drvq other = *f.q;
    other.desc_gpa += 4096;
    drv_place_queue(f.d, &other);
    assert_int_equal(hvxtest_mmio_read(f.i.vm, f.d->bar + offsetof(struct virtio_pci_common_cfg, queue_desc_lo), 4), before);
    instance_close(&f.i);

    /* Old legacy drivers use the queue before DRIVER_OK. */
    open_rng(&f, "", false, 0);
    drv_negotiate(f.d, 0);
    f.q = drv_queue(f.d, 0, 0);
    assert_true(serve_one(&f, 4));
    instance_close(&f.i);
}

static void test_rng_rate_limit(void **state)
{
    (void)state;
    struct fixture f;
    open_rng(&f, "max-bytes=1000,period=100", true, RING);
    uint32_t len, total = 0;
    for (unsigned i = 0; i < 10; i++)
        drv_add(f.d, f.q, &(struct seg){f.data, 300, true}, 1);
    drv_kick(f.d, f.q);
    while (drv_used(f.d, f.q, &len) >= 0)
        total += len;
    assert_int_equal(total, 1000);
    hvxtest_step_ns(f.i.vm, 99000000);
    assert_int_equal(drv_used(f.d, f.q, &len), -1);
    hvxtest_step_ns(f.i.vm, 1000000);
    while (drv_used(f.d, f.q, &len) >= 0)
        total += len;
    assert_int_equal(total, 2000);
    hvxtest_step_ns(f.i.vm, 300000000);
    while (drv_used(f.d, f.q, &len) >= 0)
        total += len;
    assert_int_equal(total, 2600); /* ten chains; the last of each of two periods was filled in part */
    assert_int_equal(hvxtest_next_deadline(f.i.vm), ~0ull);
    instance_close(&f.i);
}

static void test_rng_fills_what_it_says(void **state)
{
    (void)state;
    struct fixture f;
    uint8_t *p;
    unsigned zeroes = 0;
    open_rng(&f, "", true, RING);
    p = drv_mem(f.d, f.data, 4096);
    memset(p, 0, 4096);
    assert_true(serve_one(&f, 1000));
    for (unsigned i = 0; i < 1000; i++)
        zeroes += p[i] == 0;
    assert_true(zeroes < 100);
    assert_int_equal(p[1000], 0);
    assert_true(hvxtest_dirty_bytes(f.i.vm) >= 1000);
    instance_close(&f.i);
}

static void test_rng_state_travels(void **state)
{
    (void)state;
    struct fixture f;
    struct hvx_error err = {0};
    uint8_t *buf;
    size_t n;
    open_rng(&f, "packed=on", true, PACKED);
    for (unsigned i = 0; i < 100; i++)
        assert_true(serve_one(&f, 16));
    hvxtest_pci_msix(f.d->pci, 1, 0xfee01000, 0x41, false);
    drv_set_vectors(f.d, 0, 1, 0);
    assert_int_equal(hvxtest_save(f.i.type->state, f.i.dev, 1, &buf, &n), 0);
    int id = drv_add(f.d, f.q, &(struct seg){f.data, 8, true}, 1); /* while the VM is away */
    f.i.type->reset(f.i.dev);
    assert_int_equal(hvxtest_load(f.i.type->state, f.i.dev, 1, buf, n, &err), 0);
    hvxtest_step_ns(f.i.vm, 1000);
    assert_int_equal(drv_used(f.d, f.q, NULL), id);
    assert_int_equal(hvxtest_msi_count(f.i.vm), 1);
    assert_int_equal(drv_status(f.d), 0xf);
    f.q->kicked = f.q->avail_idx;
    for (unsigned i = 0; i < 100; i++)
        assert_true(serve_one(&f, 16));
    instance_close(&f.i);
    /* A device that offers less than what was agreed on refuses. */
    open_rng(&f, "", true, RING);
    assert_int_equal(hvxtest_load(f.i.type->state, f.i.dev, 1, buf, n, &err), -EINVAL);
    instance_close(&f.i);
    free(buf);
}

static void test_creation_failures_leave_nothing(void **state)
{
    (void)state;
    static const char *const types[][2] = {{"virtio-rng", ""}, {"virtio-net", "netdev=net0"}, {"virtio-console", ""}};
    for (unsigned k = 0; k < 3; k++) {
        const struct hvx_device_type *t = device_type(types[k][0]);
        struct hvx_vm *vm = hvxtest_new(NULL);
        struct hvx_config *c = hvxtest_config(t->options, types[k][1]);
        struct hvx_error err = {0};
        void *ctx, *dev = NULL;
        hvxtest_nic_add(vm, "net0");
        assert_int_equal(hvx_plugin_dev_virtio.init(hvxtest_host(), NULL, &ctx, &err), 0);
        for (unsigned n = 1;; n++) {
            hvxtest_fail_nth(vm, n);
            int r = t->create(ctx, vm, c, &dev, &err);
            if (hvxtest_fail_nth(vm, 0))
                break;
            assert_true(r < 0);
            assert_int_equal(hvxtest_leftovers(vm, NULL, 0), 0);
        }
        t->destroy(dev);
        t->destroy(NULL);
        hvxtest_config_free(c);
        hvx_plugin_dev_virtio.fini(ctx);
        hvxtest_free(vm);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_slot_option_places_the_device),
        cmocka_unit_test(test_feature_negotiation),
        cmocka_unit_test(test_registers_of_missing_queues),
        cmocka_unit_test(test_intx_and_isr),
        cmocka_unit_test(test_msix_vectors),
        cmocka_unit_test(test_event_index_coalesces_interrupts),
        cmocka_unit_test(test_packed_interrupt_flags),
        cmocka_unit_test(test_pci_config_window),
        cmocka_unit_test(test_bad_split_chains_break_the_device_not_the_vm),
        cmocka_unit_test(test_bad_indirect_tables),
        cmocka_unit_test(test_bad_packed_chains),
        cmocka_unit_test(test_rings_in_bad_places_are_refused),
        cmocka_unit_test(test_rings_and_buffers_above_4g),
        cmocka_unit_test(test_queue_order_of_operations),
        cmocka_unit_test(test_rng_rate_limit),
        cmocka_unit_test(test_rng_fills_what_it_says),
        cmocka_unit_test(test_rng_state_travels),
        cmocka_unit_test(test_creation_failures_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
