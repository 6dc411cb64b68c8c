/* SPDX-License-Identifier: Apache-2.0
 *
 * fw_files.c - what firmware is told: items and files of fw_cfg, the memory
 * map, and the CMOS bytes that older code reads instead.
 */
#include "pc.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#define KEY_UUID 0x0002u
#define KEY_RAM_SIZE 0x0003u
#define KEY_NOGRAPHIC 0x0004u
#define KEY_NB_CPUS 0x0005u
#define KEY_NUMA 0x000du
#define KEY_BOOT_MENU 0x000eu
#define KEY_MAX_CPUS 0x000fu
#define KEY_IRQ0_OVERRIDE 0x8002u

#define E820_RAM 1u
#define E820_RESERVED 2u
#define EBDA_START 0x9fc00u

/* With `low_memory` the map is a kernel's: it knows the hole below 1 MiB.
 * Without it, it is firmware's, which knows that hole by itself. */
unsigned pc_e820(const struct pc *pc, struct pc_e820 out[PC_E820_MAX], bool low_memory)
{
    unsigned n = 0;
    uint64_t below = pc->info.ram_below_4g;
    if (low_memory) {
        out[n++] = (struct pc_e820){0, EBDA_START, E820_RAM};
        out[n++] = (struct pc_e820){EBDA_START, 0xa0000 - EBDA_START, E820_RESERVED};
        out[n++] = (struct pc_e820){0xe0000, 0x20000, E820_RESERVED};
        out[n++] = (struct pc_e820){0x100000, below - 0x100000, E820_RAM};
        out[n++] = (struct pc_e820){0xfffc0000, 0x40000, E820_RESERVED};
    } else {
        out[n++] = (struct pc_e820){0, below, E820_RAM};
    }
    if (pc->info.ram_above_4g)
        out[n++] = (struct pc_e820){1ull << 32, pc->info.ram_above_4g, E820_RAM};
    return n;
}

static int add_u16(struct fw_cfg *f, uint16_t key, unsigned v, struct hvx_error *err)
{
    uint16_t le = htole16((uint16_t)v);
    return fw_cfg_add_item(f, key, &le, sizeof(le), err);
}

static int add_items(struct pc *pc, struct hvx_error *err)
{
    struct fw_cfg *f = pc->fw_cfg;
    uint64_t ram = htole64(pc->info.ram_below_4g); /* as the interface defines it: RAM below 4 GiB */
    uint32_t one = htole32(1);
    uint64_t *numa = calloc(1 + pc->info.n_vcpus, sizeof(*numa)); /* no nodes, every vCPU on node 0 */
    if (!numa)
        return hvx_fail(err, -ENOMEM, "pc: no memory for the firmware files");

    int rc = fw_cfg_add_item(f, KEY_UUID, pc->info.uuid, sizeof(pc->info.uuid), err);
    if (rc == 0)
        rc = fw_cfg_add_item(f, KEY_RAM_SIZE, &ram, sizeof(ram), err);
    if (rc == 0)
        rc = add_u16(f, KEY_NOGRAPHIC, !pc->conf.vga, err);
    if (rc == 0)
        rc = add_u16(f, KEY_NB_CPUS, pc->info.n_vcpus, err);
    if (rc == 0)
        rc = add_u16(f, KEY_MAX_CPUS, pc->info.n_vcpus, err);
    if (rc == 0)
        rc = add_u16(f, KEY_BOOT_MENU, 0, err);
    if (rc == 0)
        rc = fw_cfg_add_item(f, KEY_IRQ0_OVERRIDE, &one, sizeof(one), err);
    if (rc == 0)
        rc = fw_cfg_add_item(f, KEY_NUMA, numa, (1 + pc->info.n_vcpus) * sizeof(*numa), err);
    free(numa);
    return rc;
}

static int add_acpi(struct pc *pc, struct hvx_error *err)
{
    struct acpi_files a;
    if (!pc->conf.acpi)
        return 0;
    int rc = acpi_build(pc, &a, err);
    if (rc)
        return rc;
    pc->fadt_at = a.fadt_at;
    rc = fw_cfg_take_file(pc->fw_cfg, "etc/acpi/rsdp", &a.rsdp, err);
    if (rc == 0)
        rc = fw_cfg_take_file(pc->fw_cfg, "etc/acpi/tables", &a.tables, err);
    if (rc == 0)
        rc = fw_cfg_take_file(pc->fw_cfg, "etc/table-loader", &a.loader, err);
    acpi_files_free(&a);
    return rc;
}

static int add_smbios(struct pc *pc, struct hvx_error *err)
{
    struct pc_buf anchor = {0}, tables = {0};
    int rc = smbios_build(pc, &anchor, &tables, err);
    if (rc == 0)
        rc = fw_cfg_take_file(pc->fw_cfg, "etc/smbios/smbios-anchor", &anchor, err);
    if (rc == 0)
        rc = fw_cfg_take_file(pc->fw_cfg, "etc/smbios/smbios-tables", &tables, err);
    pc_buf_free(&anchor);
    pc_buf_free(&tables);
    return rc;
}

static int add_files(struct pc *pc, struct hvx_error *err)
{
    struct pc_e820 map[PC_E820_MAX];
    /* S3 and S4 are not offered: bit 7 of bytes 3 and 4 is clear */
    static const uint8_t states[6] = {128, 0, 0, 1, 2, 128};
    unsigned n = pc_e820(pc, map, false);
    int rc = fw_cfg_add_file(pc->fw_cfg, "etc/e820", map, n * sizeof(map[0]), err);
    if (rc == 0)
        rc = fw_cfg_add_file(pc->fw_cfg, "etc/system-states", states, sizeof(states), err);
    if (rc == 0 && !pc->conf.vga && pc->conf.n_serial) {
        /* without a screen SeaBIOS shows its text on COM1 */
        uint64_t port = htole64(uart_port[0]);
        rc = fw_cfg_add_file(pc->fw_cfg, "etc/sercon-port", &port, sizeof(port), err);
    }
    return rc;
}

/* --- CMOS -------------------------------------------------------------------------- */
static void cmos16(struct pc *pc, unsigned at, uint64_t v)
{
    rtc_set_cmos(pc->rtc, at, (uint8_t)v);
    rtc_set_cmos(pc->rtc, at + 1, (uint8_t)(v >> 8));
}

static void cmos_memory(struct pc *pc)
{
    uint64_t below = pc->info.ram_below_4g, above = pc->info.ram_above_4g;
    uint64_t ext_kib = below > 1u << 20 ? (below - (1u << 20)) >> 10 : 0;
    uint64_t above_16m = below > 16u << 20 ? (below - (16u << 20)) >> 16 : 0;
    cmos16(pc, 0x15, 640);
    cmos16(pc, 0x17, ext_kib < 65535 ? ext_kib : 65535);
    cmos16(pc, 0x30, ext_kib < 65535 ? ext_kib : 65535);
    cmos16(pc, 0x34, above_16m < 65535 ? above_16m : 65535);
    cmos16(pc, 0x5b, above >> 16);
    rtc_set_cmos(pc->rtc, 0x5d, (uint8_t)(above >> 32));
}

/* "cdn" to the nibbles that SeaBIOS knows: 1 floppy, 2 disk, 3 CD, 4 network. */
static unsigned boot_code(char c)
{
    return c == 'a' ? 1 : c == 'c' ? 2 : c == 'd' ? 3 : c == 'n' ? 4 : 0;
}

static void cmos_boot_order(struct pc *pc)
{
    const char *order = pc->info.boot_order && pc->info.boot_order[0] ? pc->info.boot_order : "cdn";
    unsigned code[3] = {0};
    for (unsigned n = 0; *order && n < 3; order++)
        if (boot_code(*order))
            code[n++] = boot_code(*order);
    rtc_set_cmos(pc->rtc, 0x3d, (uint8_t)(code[1] << 4 | code[0]));
    rtc_set_cmos(pc->rtc, 0x38, (uint8_t)(code[2] << 4 | 1)); /* bit 0: do not check floppy signatures */
}

static void cmos_disks(struct pc *pc)
{
    uint8_t types = 0, translation = 0;
    for (unsigned n = 0; n < PC_N_IDE; n++) {
        uint32_t c, h, s;
        if (!ide_geometry(pc->ide, n, &c, &h, &s))
            continue;
        if (n < 2) {
            unsigned at = n ? 0x24 : 0x1b;
            types |= n ? 0x0f : 0xf0;
            rtc_set_cmos(pc->rtc, 0x19 + n, 47);
            cmos16(pc, at, c);
            rtc_set_cmos(pc->rtc, at + 2, (uint8_t)h);
            cmos16(pc, at + 3, 0xffff);
            rtc_set_cmos(pc->rtc, at + 5, h > 8 ? 0xc8 : 0xc0);
            cmos16(pc, at + 6, c);
            rtc_set_cmos(pc->rtc, at + 8, (uint8_t)s);
        }
        if (c > 1024) /* 1: LBA translation */
            translation |= (uint8_t)(1u << (2 * n));
    }
    rtc_set_cmos(pc->rtc, 0x12, types);
    rtc_set_cmos(pc->rtc, 0x39, translation);
}

int fw_files_create(struct pc *pc, struct hvx_error *err)
{
    int rc = add_items(pc, err);
    if (rc == 0)
        rc = add_files(pc, err);
    if (rc == 0)
        rc = add_acpi(pc, err);
    if (rc == 0)
        rc = add_smbios(pc, err);
    if (rc)
        return rc;
    cmos_memory(pc);
    cmos_boot_order(pc);
    cmos_disks(pc);
    rtc_set_cmos(pc->rtc, 0x14, 0x06); /* equipment: coprocessor, PS/2 mouse */
    rtc_set_cmos(pc->rtc, 0x5f, (uint8_t)(pc->info.n_vcpus - 1));
    return 0;
}
