/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/test_pci.c - configuration space, BARs, INTx, MSI, MSI-X.
 */
#define _GNU_SOURCE
#include "core/vm/test_null.h"

#include <linux/pci_regs.h>

#define SLOT 5u
#define BDF (SLOT << 3)

struct card {
    unsigned n_config_written, n_config_read, last_off;
    uint64_t moved[6];
    struct hvx_pci_dev *pci;
};

struct fixture {
    struct null_engine n;
    struct hvx_vm *vm;
    const struct hvx_host *h;
    struct card card;
    unsigned gsi;
};

static uint64_t bar_read(void *opaque, uint64_t off, unsigned size)
{
    (void)opaque, (void)size;
    return off;
}

static const struct hvx_region_ops bar_ops = {bar_read, NULL};

static void config_written(void *opaque, unsigned off, unsigned size)
{
    struct card *c = opaque;

    (void)size;
    c->n_config_written++;
    c->last_off = off;
}

static void config_read(void *opaque, unsigned off, unsigned size)
{
    struct card *c = opaque;

    (void)off, (void)size;
    c->n_config_read++;
}

static void bar_moved(void *opaque, unsigned bar, uint64_t addr)
{
    ((struct card *)opaque)->moved[bar] = addr;
}

static const struct hvx_pci_ops card_ops = {sizeof(card_ops), 0, config_read, config_written, bar_moved};

static unsigned gsi_of(void *opaque, unsigned slot, unsigned pin)
{
    struct fixture *f = opaque;

    assert_true(slot == SLOT || slot == SLOT + 1);
    assert_int_equal(pin, 1);
    return f->gsi;
}

static int setup(void **state)
{
    static const uint8_t rom[3000] = {0x55, 0xaa};
    struct fixture *f = calloc(1, sizeof(*f));
    struct hvx_pci_desc d = {.size = sizeof(d), .devfn = BDF, .vendor = 0x1af4, .device = 0x1042,
                             .class_code = 0x010000,
                             .irq_pin = 1, .msi_vectors = 1, .msix_vectors = 70, .msix_bar = 4,
                             .rom = rom, .rom_size = sizeof(rom)};
    struct hvx_error err;

    f->vm = null_vm(&f->n, 1, 64 << 20, NULL, NULL);
    f->h = hvx_host_table();
    f->gsi = 11;
    d.bars[0] = (struct hvx_pci_bar){.type = HVX_BAR_IO, .size = 64, .ops = &bar_ops};
    d.bars[1] = (struct hvx_pci_bar){.type = HVX_BAR_MEM32, .size = 0x1000, .ops = &bar_ops};
    d.bars[2] = (struct hvx_pci_bar){.type = HVX_BAR_MEM64, .size = 0x4000, .flags = HVX_BAR_PREFETCH, .ops = &bar_ops};
    assert_int_equal(f->h->pci_add(f->vm, &d, &card_ops, &f->card, &f->card.pci, &err), 0);
    f->h->pci_set_route(f->vm, gsi_of, f);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    hvx_vm_destroy(f->vm);
    free(f);
    return 0;
}

static uint32_t get(struct fixture *f, unsigned off, unsigned size)
{
    return f->h->pci_cfg_read(f->vm, BDF, off, size);
}

static void put(struct fixture *f, unsigned off, unsigned size, uint32_t v)
{
    f->h->pci_cfg_write(f->vm, BDF, off, size, v);
}

static uint32_t io(struct fixture *f, enum hvx_space space, uint64_t addr)
{
    uint32_t v = 0;

    f->h->io_read(f->vm, space, addr, 4, &v);
    return v;
}

static void identity_is_shown_and_cannot_be_written(void **state)
{
    struct fixture *f = *state;

    put(f, PCI_VENDOR_ID, 4, 0);
    assert_int_equal(get(f, PCI_VENDOR_ID, 4), 0x10421af4);
    assert_int_equal(get(f, PCI_CLASS_REVISION, 4), 0x01000000);
    assert_int_equal(f->h->pci_cfg_read(f->vm, 0x48, 0, 4), 0xffffffff);
    assert_int_equal(f->h->pci_cfg_read(f->vm, 0x108, 0, 2), 0xffff);
    assert_int_equal(get(f, 254, 4), 0xffffffff); /* over the end */
    put(f, 254, 4, 0);
}

static void bars_tell_their_size_and_appear_where_they_are_put(void **state)
{
    struct fixture *f = *state;

    put(f, PCI_BASE_ADDRESS_0, 4, 0xffffffff);
    assert_int_equal(get(f, PCI_BASE_ADDRESS_0, 4), 0xffffffc1);
    put(f, PCI_BASE_ADDRESS_1, 4, 0xffffffff);
    assert_int_equal(get(f, PCI_BASE_ADDRESS_1, 4), 0xfffff000);
    put(f, PCI_BASE_ADDRESS_2, 4, 0xffffffff);
    put(f, PCI_BASE_ADDRESS_3, 4, 0xffffffff);
    assert_int_equal(get(f, PCI_BASE_ADDRESS_2, 4), 0xffffc00c);
    assert_int_equal(get(f, PCI_BASE_ADDRESS_3, 4), 0xffffffff);
    put(f, PCI_BASE_ADDRESS_0, 4, 0xc000);
    put(f, PCI_BASE_ADDRESS_1, 4, 0xfe000000);
    put(f, PCI_BASE_ADDRESS_2, 4, 0);
    put(f, PCI_BASE_ADDRESS_3, 4, 0x10);
    assert_int_equal(io(f, HVX_SPACE_PIO, 0xc004), 0xffffffff); /* decoding is off */
    put(f, PCI_COMMAND, 2, PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
    assert_int_equal(io(f, HVX_SPACE_PIO, 0xc004), 4);
    assert_int_equal(io(f, HVX_SPACE_MMIO, 0xfe000010), 0x10);
    assert_int_equal(io(f, HVX_SPACE_MMIO, 0x1000000020), 0x20);
    assert_true(f->card.moved[2] == 0x1000000000);
    put(f, PCI_BASE_ADDRESS_1, 4, 0xfd000000);
    assert_int_equal(io(f, HVX_SPACE_MMIO, 0xfe000010), 0xffffffff);
    assert_int_equal(io(f, HVX_SPACE_MMIO, 0xfd000010), 0x10);
    put(f, PCI_BASE_ADDRESS_1, 4, 0xffffffff); /* sizing while decoding: no mapping at the top */
    assert_true(f->card.moved[1] == UINT64_MAX);
}

static void the_option_rom_is_seen_when_enabled(void **state)
{
    struct fixture *f = *state;

    put(f, PCI_ROM_ADDRESS, 4, 0xfffff801);
    assert_int_equal(get(f, PCI_ROM_ADDRESS, 4), 0xfffff001);
    put(f, PCI_ROM_ADDRESS, 4, 0xfc000001);
    put(f, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    assert_int_equal(io(f, HVX_SPACE_MMIO, 0xfc000000), 0x0000aa55);
    put(f, PCI_ROM_ADDRESS, 4, 0xfc000000);
    assert_int_equal(io(f, HVX_SPACE_MMIO, 0xfc000000), 0xffffffff);
}

static void lines_are_shared_routed_and_disabled(void **state)
{
    struct fixture *f = *state;
    struct hvx_pci_desc d = {.size = sizeof(d), .devfn = BDF + 8, .vendor = 1, .device = 2, .irq_pin = 1};
    struct hvx_pci_dev *other;
    struct hvx_error err;

    assert_int_equal(f->h->pci_add(f->vm, &d, NULL, NULL, &other, &err), 0);
    f->h->pci_set_irq(f->card.pci, true);
    f->h->pci_set_irq(other, true);
    assert_true(f->n.line[11]);
    assert_true(get(f, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
    f->h->pci_set_irq(f->card.pci, false);
    assert_true(f->n.line[11]); /* the other one still pulls */
    f->gsi = 10;
    f->h->pci_reroute(f->vm);
    assert_false(f->n.line[11]);
    assert_true(f->n.line[10]);
    f->h->irq_set(f->vm, 10, true);
    f->h->pci_set_irq(other, false);
    assert_true(f->n.line[10]); /* an ISA device drives it too */
    f->h->irq_set(f->vm, 10, false);
    assert_false(f->n.line[10]);
    f->h->pci_set_irq(f->card.pci, true);
    put(f, PCI_COMMAND, 2, PCI_COMMAND_INTX_DISABLE);
    assert_false(f->n.line[10]);
    put(f, PCI_COMMAND, 2, 0);
    assert_true(f->n.line[10]);
    f->h->pci_del(f->vm, other);
}

static unsigned cap(struct fixture *f, uint8_t id)
{
    unsigned off = get(f, PCI_CAPABILITY_LIST, 1);

    assert_true(get(f, PCI_STATUS, 2) & PCI_STATUS_CAP_LIST);
    for (unsigned i = 0; off && i < 48; i++, off = get(f, off + 1, 1))
        if (get(f, off, 1) == id)
            return off;
    return 0;
}

static void msi_is_sent_when_enabled(void **state)
{
    struct fixture *f = *state;
    unsigned c = cap(f, PCI_CAP_ID_MSI);

    put(f, c + PCI_MSI_ADDRESS_LO, 4, 0xfee01000);
    put(f, c + PCI_MSI_DATA_64, 2, 0x4041);
    f->h->pci_msi_notify(f->card.pci);
    assert_int_equal(f->n.n_msi, 0);
    put(f, c + PCI_MSI_FLAGS, 2, 0xffff);
    put(f, PCI_COMMAND, 2, PCI_COMMAND_MASTER);
    assert_true(f->h->pci_msi_enabled(f->card.pci));
    f->h->pci_msi_notify(f->card.pci);
    assert_int_equal(f->n.n_msi, 1);
    assert_true(f->n.msi_addr == 0xfee01000);
    assert_int_equal(f->n.msi_data, 0x4041);
    assert_int_equal(f->card.n_config_written, 0); /* core's capability is core's business */
}

static void table_put(struct fixture *f, unsigned off, uint32_t v)
{
    f->h->io_write(f->vm, HVX_SPACE_MMIO, 0xfe800000 + off, 4, &v);
}

static void msix_masks_latch_and_deliver_later(void **state)
{
    struct fixture *f = *state;
    unsigned c = cap(f, PCI_CAP_ID_MSIX);

    assert_int_equal(get(f, c + PCI_MSIX_FLAGS, 2), 69);
    put(f, PCI_BASE_ADDRESS_4, 4, 0xfe800000);
    put(f, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    table_put(f, 66 * 16, 0xfee00000);
    table_put(f, 66 * 16 + 8, 0x55);
    f->h->pci_msix_notify(f->card.pci, 66); /* not enabled: lost */
    put(f, c + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE);
    assert_int_equal(f->n.n_msi, 0);
    f->h->pci_msix_notify(f->card.pci, 66); /* vector masked since reset: latched */
    assert_int_equal(f->n.n_msi, 0);
    assert_int_equal(io(f, HVX_SPACE_MMIO, 0xfe800000 + (get(f, c + PCI_MSIX_PBA, 4) & ~7u) + 8), 1u << 2);
    table_put(f, 66 * 16 + 12, 0); /* unmask */
    assert_int_equal(f->n.n_msi, 1);
    assert_int_equal(f->n.msi_data, 0x55);
    put(f, c + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    f->h->pci_msix_notify(f->card.pci, 66);
    assert_int_equal(f->n.n_msi, 1);
    put(f, c + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE);
    assert_int_equal(f->n.n_msi, 2);
    f->h->pci_msix_notify(f->card.pci, 70); /* no such vector */
    assert_int_equal(f->n.n_msi, 2);
    table_put(f, 0xffc, 1); /* nowhere */
}

static void device_capabilities_and_registers_reach_the_device(void **state)
{
    struct fixture *f = *state;
    uint8_t body[20] = {0, 0, 20, 1, 2}, wmask[20] = {0xff, 0xff, 0, 0, 0xf0};
    int off = f->h->pci_add_cap(f->card.pci, PCI_CAP_ID_VNDR, body, wmask, sizeof(body));

    assert_int_equal((unsigned)off, cap(f, PCI_CAP_ID_VNDR));
    put(f, (unsigned)off + 4, 1, 0xff);
    assert_int_equal(get(f, (unsigned)off + 4, 1), 0xf2);
    put(f, (unsigned)off, 2, 0); /* the header stays */
    assert_int_equal((unsigned)off, cap(f, PCI_CAP_ID_VNDR));
    assert_int_equal(f->card.n_config_written, 2);
    put(f, 0xf0, 4, 0x12345678);
    assert_int_equal(get(f, 0xf0, 4), 0x12345678);
    assert_int_equal(f->card.last_off, 0xf0);
    assert_int_equal(f->h->pci_add_cap(f->card.pci, PCI_CAP_ID_VNDR, body, wmask, 0xc0), -ENOSPC);
}

static void dma_needs_bus_mastering(void **state)
{
    struct fixture *f = *state;
    uint32_t v = 0x1234;

    assert_int_equal(f->h->pci_dma_write(f->card.pci, 0x1000, &v, 4), -EFAULT);
    put(f, PCI_COMMAND, 2, PCI_COMMAND_MASTER);
    assert_int_equal(f->h->pci_dma_write(f->card.pci, 0x1000, &v, 4), 0);
    v = 0;
    assert_int_equal(f->h->pci_dma_read(f->card.pci, 0x1000, &v, 4), 0);
    assert_int_equal(v, 0x1234);
}

static void reset_forgets_what_the_guest_set(void **state)
{
    struct fixture *f = *state;

    put(f, PCI_BASE_ADDRESS_1, 4, 0xfe000000);
    put(f, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    put(f, cap(f, PCI_CAP_ID_MSIX) + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE);
    f->h->pci_set_irq(f->card.pci, true);
    hvx_pci_reset(&f->vm->pci);
    assert_int_equal(get(f, PCI_COMMAND, 2), 0);
    assert_int_equal(get(f, PCI_BASE_ADDRESS_0, 4), 1);
    assert_false(f->h->pci_msix_enabled(f->card.pci));
    assert_false(f->n.line[11]);
    assert_int_equal(io(f, HVX_SPACE_MMIO, 0xfe000000), 0xffffffff);
}

static void places_are_chosen_and_conflicts_refused(void **state)
{
    struct fixture *f = *state;
    struct hvx_pci_desc d = {.size = sizeof(d), .devfn = BDF, .vendor = 1, .device = 2};
    struct hvx_pci_dev *p = NULL;
    struct hvx_error err;

    assert_int_equal(f->h->pci_add(f->vm, &d, NULL, NULL, &p, &err), -EEXIST);
    assert_non_null(strstr(err.text, "05.0"));
    d.devfn = -1;
    for (unsigned i = 0; i < 28; i++)
        assert_int_equal(f->h->pci_add(f->vm, &d, NULL, NULL, &p, &err), 0);
    assert_int_equal(f->h->pci_add(f->vm, &d, NULL, NULL, &p, &err), -ENOSPC);
    d.devfn = 7;
    d.bars[0] = (struct hvx_pci_bar){.type = HVX_BAR_MEM32, .size = 100, .ops = &bar_ops};
    assert_int_equal(f->h->pci_add(f->vm, &d, NULL, NULL, &p, &err), -EINVAL);
}

/* Whatever is written anywhere: no crash, and nothing maps over RAM. */
static void nonsense_is_survived(void **state)
{
    struct fixture *f = *state;
    uint32_t x = 12345, v = 0xfeedface;

    for (unsigned i = 0; i < 200000; i++) {
        x = x * 1664525u + 1013904223u;
        f->h->pci_cfg_write(f->vm, x >> 24 & 1 ? BDF : x >> 20 & 0x1ff, x >> 8 & 0x1ff, 1u << (x >> 5 & 3),
                            x * 2654435761u);
        x = x * 1664525u + 1013904223u;
        (void)f->h->pci_cfg_read(f->vm, BDF, x >> 8 & 0x1ff, 1u << (x >> 5 & 3));
        if (i % 64 == 0)
            f->h->pci_msix_notify(f->card.pci, x >> 16 & 127);
    }
    assert_int_equal(f->h->mem_write(f->vm, 0x2000, &v, 4), 0);
    assert_int_equal(io(f, HVX_SPACE_MMIO, 0x2000), 0xfeedface);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(identity_is_shown_and_cannot_be_written),
        T(bars_tell_their_size_and_appear_where_they_are_put),
        T(the_option_rom_is_seen_when_enabled),
        T(lines_are_shared_routed_and_disabled),
        T(msi_is_sent_when_enabled),
        T(msix_masks_latch_and_deliver_later),
        T(device_capabilities_and_registers_reach_the_device),
        T(dma_needs_bus_mastering),
        T(reset_forgets_what_the_guest_set),
        T(places_are_chosen_and_conflicts_refused),
        T(nonsense_is_survived),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
