/* SPDX-License-Identifier: Apache-2.0
 *
 * acpi_dsdt.c - the DSDT: the PCI host bridge with its windows and interrupt
 * routing, the ISA devices, processors, HPET, and the soft-off state. The
 * power button is a fixed event, which the FADT announces.
 */
#include "aml.h"

#define PCI_PINS 4u
#define PCI_SLOTS 32u
/* 64-bit window for BARs, above whatever RAM there is. */
#define HIGH_WINDOW_BYTES (1ull << 35)

static void dsdt_pci_windows(struct pc *pc, struct pc_buf *b)
{
    struct aml_resources r = {0};
    uint64_t below = pc->info.ram_below_4g;
    uint32_t hole = below <= 0x80000000u ? 0x80000000u : below <= 0xc0000000u ? 0xc0000000u : 0xe0000000u;

    aml_name(b, "_CRS");
    aml_res_bus(&r, 0, 255);
    aml_res_io(&r, 0xcf8, 1, 8);
    aml_res_word_io(&r, 0x0000, 0x0cf7);
    aml_res_word_io(&r, 0x0d00, 0xffff);
    aml_res_dword_memory(&r, 0x000a0000, 0x000bffff, true);
    aml_res_dword_memory(&r, hole, 0xfebfffff, false);
    if (pc->info.ram_above_4g) {
        /* aligned up to its own size, as firmware places it */
        uint64_t top = (1ull << 32) + pc->info.ram_above_4g;
        uint64_t base = (top + HIGH_WINDOW_BYTES - 1) / HIGH_WINDOW_BYTES * HIGH_WINDOW_BYTES;
        aml_res_qword_memory(&r, base, base + HIGH_WINDOW_BYTES - 1);
    }
    aml_resources_end(b, &r);
}

/* _PRT: pin of slot to link device, the same rotation as in piix3.c. */
static void dsdt_pci_routing(struct pc_buf *b)
{
    static const char *const link[PCI_PINS] = {"LNKA", "LNKB", "LNKC", "LNKD"};
    aml_name(b, "_PRT");
    size_t all = aml_package(b, PCI_SLOTS * PCI_PINS);
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        for (unsigned pin = 0; pin < PCI_PINS; pin++) {
            size_t one = aml_package(b, 4);
            aml_integer(b, slot << 16 | 0xffffu);
            aml_integer(b, pin);
            aml_path(b, link[(slot + pin + 3) % PCI_PINS]);
            aml_integer(b, 0);
            aml_end(b, one);
        }
    }
    aml_end(b, all);
}

static void dsdt_link(struct pc_buf *b, unsigned n)
{
    static const uint32_t choices[] = {5, 10, 11}, none[] = {0};
    char link[] = "LNKA", reg[] = "PRQ0";
    struct aml_resources r = {0};
    size_t m, i;
    link[3] = (char)('A' + n);
    reg[3] = (char)('0' + n);

    size_t dev = aml_device(b, link);
    aml_name_eisaid(b, "_HID", "PNP0C0F");
    aml_name_integer(b, "_UID", n);
    aml_name(b, "_PRS");
    aml_res_interrupt(&r, choices, 3);
    aml_resources_end(b, &r);

    m = aml_method(b, "_STA", 0);
    i = aml_if(b);
    aml_and(b);
    aml_path(b, reg);
    aml_integer(b, 0x80);
    aml_op(b, 0);
    aml_return(b);
    aml_integer(b, 0x09);
    aml_end(b, i);
    aml_return(b);
    aml_integer(b, 0x0b);
    aml_end(b, m);

    m = aml_method(b, "_DIS", 0);
    aml_or(b);
    aml_path(b, reg);
    aml_integer(b, 0x80);
    aml_path(b, reg);
    aml_end(b, m);

    aml_name(b, "PRR0");
    aml_res_interrupt(&r, none, 1);
    aml_resources_end(b, &r);
    m = aml_method(b, "_CRS", 0);
    aml_dword_field(b);
    aml_path(b, "PRR0");
    aml_integer(b, 5); /* the interrupt number in the descriptor */
    aml_path(b, "PRRI");
    i = aml_if(b);
    aml_less(b);
    aml_path(b, reg);
    aml_integer(b, 0x80);
    aml_store(b);
    aml_path(b, reg);
    aml_path(b, "PRRI");
    aml_end(b, i);
    aml_return(b);
    aml_path(b, "PRR0");
    aml_end(b, m);

    m = aml_method(b, "_SRS", 1);
    aml_dword_field(b);
    aml_op(b, AML_ARG0);
    aml_integer(b, 5);
    aml_path(b, "PRRI");
    aml_store(b);
    aml_path(b, "PRRI");
    aml_path(b, reg);
    aml_end(b, m);
    aml_end(b, dev);
}

static void dsdt_uart(struct pc_buf *b, unsigned n)
{
    char name[] = "COM1";
    struct aml_resources r = {0};
    name[3] = (char)('1' + n);
    size_t dev = aml_device(b, name);
    aml_name_eisaid(b, "_HID", "PNP0501");
    aml_name_integer(b, "_UID", n + 1);
    aml_name(b, "_CRS");
    aml_res_io(&r, uart_port[n], 1, 8);
    aml_res_irq(&r, uart_irq[n]);
    aml_resources_end(b, &r);
    aml_end(b, dev);
}

static void dsdt_isa_devices(struct pc *pc, struct pc_buf *b)
{
    struct aml_resources r = {0};

    size_t dev = aml_device(b, "RTC");
    aml_name_eisaid(b, "_HID", "PNP0B00");
    aml_name(b, "_CRS");
    aml_res_io(&r, 0x70, 1, 2);
    aml_res_irq(&r, 8);
    aml_resources_end(b, &r);
    aml_end(b, dev);

    dev = aml_device(b, "KBD");
    aml_name_eisaid(b, "_HID", "PNP0303");
    aml_name_integer(b, "_STA", 0x0f);
    aml_name(b, "_CRS");
    aml_res_io(&r, 0x60, 1, 1);
    aml_res_io(&r, 0x64, 1, 1);
    aml_res_irq(&r, 1);
    aml_resources_end(b, &r);
    aml_end(b, dev);

    dev = aml_device(b, "MOU");
    aml_name_eisaid(b, "_HID", "PNP0F13");
    aml_name_integer(b, "_STA", 0x0f);
    aml_name(b, "_CRS");
    aml_res_irq(&r, 12);
    aml_resources_end(b, &r);
    aml_end(b, dev);

    for (unsigned n = 0; n < pc->conf.n_serial; n++)
        dsdt_uart(b, n);

    if (pc->conf.pvpanic) {
        dev = aml_device(b, "PEVT");
        aml_name_string(b, "_HID", "QEMU0001");
        aml_name_integer(b, "_STA", 0x0f);
        aml_name(b, "_CRS");
        aml_res_io(&r, 0x505, 1, 1);
        aml_resources_end(b, &r);
        aml_operation_region(b, "PEOR", 1, 0x505, 1);
        size_t f = aml_field(b, "PEOR");
        aml_field_byte(b, "PEPT");
        aml_end(b, f);
        size_t m = aml_method(b, "RDPT", 0);
        aml_return(b);
        aml_path(b, "PEPT");
        aml_end(b, m);
        m = aml_method(b, "WRPT", 1);
        aml_store(b);
        aml_op(b, AML_ARG0);
        aml_path(b, "PEPT");
        aml_end(b, m);
        aml_end(b, dev);
    }
}

static void dsdt_pci0(struct pc *pc, struct pc_buf *b)
{
    size_t pci = aml_device(b, "PCI0");
    aml_name_eisaid(b, "_HID", "PNP0A03");
    aml_name_integer(b, "_UID", 0);
    aml_name_integer(b, "_BBN", 0);
    dsdt_pci_windows(pc, b);
    dsdt_pci_routing(b);

    size_t isa = aml_device(b, "ISA");
    aml_name_integer(b, "_ADR", 0x00010000);
    aml_operation_region(b, "PIRQ", 2, 0x60, 4); /* PCI configuration space */
    dsdt_isa_devices(pc, b);
    aml_end(b, isa);
    acpi_hotplug_dsdt(b);
    aml_end(b, pci);
}

static void dsdt_links(struct pc_buf *b)
{
    size_t f = aml_field(b, "PCI0.ISA.PIRQ");
    aml_field_byte(b, "PRQ0");
    aml_field_byte(b, "PRQ1");
    aml_field_byte(b, "PRQ2");
    aml_field_byte(b, "PRQ3");
    aml_end(b, f);
    for (unsigned n = 0; n < PCI_PINS; n++)
        dsdt_link(b, n);
}

static void dsdt_system(struct pc *pc, struct pc_buf *b)
{
    struct aml_resources r = {0};
    size_t dev;
    if (pc->conf.hpet) {
        dev = aml_device(b, "HPET");
        aml_name_eisaid(b, "_HID", "PNP0103");
        aml_name_integer(b, "_UID", 0);
        aml_name(b, "_CRS");
        aml_res_memory32(&r, (uint32_t)PC_HPET_BASE, 0x400, false);
        aml_resources_end(b, &r);
        aml_end(b, dev);
    }
    dev = aml_device(b, "FWCF");
    aml_name_string(b, "_HID", "QEMU0002");
    aml_name_integer(b, "_STA", 0x0b);
    aml_name(b, "_CRS");
    aml_res_io(&r, 0x510, 1, 12);
    aml_resources_end(b, &r);
    aml_end(b, dev);

    for (unsigned n = 0; n < pc->info.n_vcpus; n++) {
        char name[8];
        snprintf(name, sizeof(name), "CP%02X", n & 0xff);
        dev = aml_processor(b, name, (uint8_t)n);
        aml_end(b, dev);
    }
}

void acpi_dsdt(struct pc *pc, struct pc_buf *out)
{
    size_t start = out->len;
    acpi_header(out, "DSDT", 1);

    size_t sb = aml_scope(out, "\\_SB");
    dsdt_pci0(pc, out);
    dsdt_links(out);
    dsdt_system(pc, out);
    aml_end(out, sb);

    acpi_hotplug_event(out);
    aml_name(out, "_S5");
    size_t s5 = aml_package(out, 4);
    for (unsigned i = 0; i < 4; i++)
        aml_integer(out, 0);
    aml_end(out, s5);
    acpi_finish(out, start);
}
