/* SPDX-License-Identifier: Apache-2.0
 *
 * acpi.c - the ACPI tables, and the script by which firmware puts them into
 * memory ("table-loader": allocate a file, add the address of one file to a
 * pointer in another, compute a checksum). With direct boot boot_tables.c
 * runs the same script.
 *
 * A pointer field holds an offset into its target file until the script has
 * run. Table layouts: ACPI 6.4, chapter 5; HPET: IA-PC HPET 1.0a, 3.2.4.
 */
#include "pc.h"

#include <stdlib.h>
#include <string.h>

#define OEM_ID "HVX   "
#define OEM_TABLE_ID "HVXPC   "
#define CREATOR_ID "HVX "
#define HEADER_BYTES 36u
#define HEADER_LENGTH 4u
#define HEADER_CHECKSUM 9u

#define FADT_FACS 36u
#define FADT_DSDT 40u
#define FADT_X_DSDT 140u
#define FADT_BYTES 244u
#define FADT_PM1_EVENT 56u
#define FADT_PM1_CONTROL 64u
#define FADT_PM_TIMER 76u
#define FADT_X_PM1_EVENT 148u
#define FADT_X_PM1_CONTROL 172u
#define FADT_X_PM_TIMER 208u
#define GAS_ADDRESS 4u
#define FADT_FLAGS ((1u << 0) /* WBINVD */ | (1u << 2) /* C1 */ | (1u << 5) /* no fixed sleep button */ | \
                    (1u << 10) /* reset register */)
#define FADT_BOOT_ARCH 0x0003u /* legacy devices, 8042 */

#define TABLES_FILE "etc/acpi/tables"
#define RSDP_FILE "etc/acpi/rsdp"

enum { LOADER_ALLOCATE = 1, LOADER_POINTER = 2, LOADER_CHECKSUM = 3 };
enum { ZONE_HIGH = 1, ZONE_FSEG = 2 };
#define LOADER_ENTRY_BYTES 128u

static void put_u32(struct pc_buf *b, size_t at, uint32_t v)
{
    if (!b->failed)
        memcpy(b->data + at, &v, sizeof(v));
}

void acpi_header(struct pc_buf *b, const char sig[4], uint8_t revision)
{
    pc_buf_bytes(b, sig, 4);
    pc_buf_u32(b, 0); /* length */
    pc_buf_u8(b, revision);
    pc_buf_u8(b, 0); /* checksum */
    pc_buf_bytes(b, OEM_ID, 6);
    pc_buf_bytes(b, OEM_TABLE_ID, 8);
    pc_buf_u32(b, 1); /* OEM revision */
    pc_buf_bytes(b, CREATOR_ID, 4);
    pc_buf_u32(b, 1);
}

void acpi_finish(struct pc_buf *b, size_t start)
{
    put_u32(b, start + HEADER_LENGTH, (uint32_t)(b->len - start));
}

/* --- the script ------------------------------------------------------------------ */
static void loader_pad(struct pc_buf *l, size_t start)
{
    pc_buf_zero(l, start + LOADER_ENTRY_BYTES - l->len);
}

static void loader_name(struct pc_buf *l, const char *file)
{
    pc_buf_text(l, file, FW_CFG_NAME, 0);
}

static void loader_allocate(struct pc_buf *l, const char *file, uint32_t align, uint8_t zone)
{
    size_t start = l->len;
    pc_buf_u32(l, LOADER_ALLOCATE);
    loader_name(l, file);
    pc_buf_u32(l, align);
    pc_buf_u8(l, zone);
    loader_pad(l, start);
}

static void loader_pointer(struct pc_buf *l, const char *file, size_t offset, uint8_t size)
{
    size_t start = l->len;
    pc_buf_u32(l, LOADER_POINTER);
    loader_name(l, file);
    loader_name(l, TABLES_FILE);
    pc_buf_u32(l, (uint32_t)offset);
    pc_buf_u8(l, size);
    loader_pad(l, start);
}

static void loader_checksum(struct pc_buf *l, const char *file, size_t offset, size_t from, size_t n)
{
    size_t start = l->len;
    pc_buf_u32(l, LOADER_CHECKSUM);
    loader_name(l, file);
    pc_buf_u32(l, (uint32_t)offset);
    pc_buf_u32(l, (uint32_t)from);
    pc_buf_u32(l, (uint32_t)n);
    loader_pad(l, start);
}

static void loader_table_checksum(struct acpi_files *f, size_t start)
{
    loader_checksum(&f->loader, TABLES_FILE, start + HEADER_CHECKSUM, start, f->tables.len - start);
}

/* --- tables ------------------------------------------------------------------------ */
static size_t facs(struct pc_buf *b)
{
    pc_buf_align(b, 64);
    size_t start = b->len;
    pc_buf_bytes(b, "FACS", 4);
    pc_buf_u32(b, 64);
    pc_buf_zero(b, 56);
    return start;
}

/* Generic address of an I/O register: width in bits, access size code. */
static void gas_io(struct pc_buf *b, uint8_t bits, uint8_t access, uint64_t port)
{
    pc_buf_u8(b, port ? 1 : 0);
    pc_buf_u8(b, port ? bits : 0);
    pc_buf_u8(b, 0);
    pc_buf_u8(b, port ? access : 0);
    pc_buf_u64(b, port);
}

static size_t fadt(struct acpi_files *f, size_t facs_at, size_t dsdt_at)
{
    struct pc_buf *b = &f->tables;
    pc_buf_align(b, 16);
    size_t start = b->len;
    acpi_header(b, "FACP", 3);
    pc_buf_u32(b, (uint32_t)facs_at);
    pc_buf_u32(b, (uint32_t)dsdt_at);
    pc_buf_u8(b, 0); /* reserved */
    pc_buf_u8(b, 0); /* profile unspecified */
    pc_buf_u16(b, PC_IRQ_SCI);
    pc_buf_u32(b, 0xb2); /* SMI command port */
    pc_buf_u8(b, 0xf1);  /* enable ACPI */
    pc_buf_u8(b, 0xf0);  /* disable ACPI */
    pc_buf_u8(b, 0);     /* no S4BIOS */
    pc_buf_u8(b, 0);
    pc_buf_u32(b, PC_PM_BASE);
    pc_buf_u32(b, 0);
    pc_buf_u32(b, PC_PM_BASE + 4);
    pc_buf_u32(b, 0);
    pc_buf_u32(b, 0);
    pc_buf_u32(b, PC_PM_BASE + 8);
    pc_buf_u32(b, 0xafe0); /* GPE0 */
    pc_buf_u32(b, 0);
    pc_buf_u8(b, 4); /* lengths: PM1 event, control, PM2, timer, GPE0, GPE1 */
    pc_buf_u8(b, 2);
    pc_buf_u8(b, 0);
    pc_buf_u8(b, 4);
    pc_buf_u8(b, 4);
    pc_buf_u8(b, 0);
    pc_buf_u8(b, 0);
    pc_buf_u8(b, 0);
    pc_buf_u16(b, 0x0fff); /* no C2 */
    pc_buf_u16(b, 0x0fff); /* no C3 */
    pc_buf_zero(b, 4);     /* flush size, stride */
    pc_buf_zero(b, 4);     /* duty, alarms */
    pc_buf_u8(b, 0x32);    /* century register */
    pc_buf_u16(b, FADT_BOOT_ARCH);
    pc_buf_u8(b, 0);
    pc_buf_u32(b, FADT_FLAGS);
    gas_io(b, 8, 1, 0xcf9);
    pc_buf_u8(b, 0x0f); /* reset value */
    pc_buf_zero(b, 3);
    pc_buf_u64(b, 0); /* X_FIRMWARE_CTRL: the 32-bit field holds it */
    pc_buf_u64(b, dsdt_at);
    gas_io(b, 32, 2, PC_PM_BASE);
    gas_io(b, 0, 0, 0);
    gas_io(b, 16, 2, PC_PM_BASE + 4);
    gas_io(b, 0, 0, 0);
    gas_io(b, 0, 0, 0);
    gas_io(b, 32, 3, PC_PM_BASE + 8);
    gas_io(b, 32, 1, 0xafe0);
    gas_io(b, 0, 0, 0);
    acpi_finish(b, start);
    if (!b->failed && b->len - start != FADT_BYTES)
        b->failed = true;
    loader_pointer(&f->loader, TABLES_FILE, start + FADT_FACS, 4);
    loader_pointer(&f->loader, TABLES_FILE, start + FADT_DSDT, 4);
    loader_pointer(&f->loader, TABLES_FILE, start + FADT_X_DSDT, 8);
    loader_table_checksum(f, start);
    return start;
}

/* SeaBIOS puts the block at PC_PM_BASE, OVMF elsewhere. Checksums are the loader script's business. */
void acpi_pm_base_changed(struct pc *pc, uint32_t base)
{
    static const struct {
        uint32_t field, offset;
    } fields[] = {{FADT_PM1_EVENT, 0}, {FADT_PM1_CONTROL, 4}, {FADT_PM_TIMER, 8}, {FADT_X_PM1_EVENT + GAS_ADDRESS, 0},
                  {FADT_X_PM1_CONTROL + GAS_ADDRESS, 4}, {FADT_X_PM_TIMER + GAS_ADDRESS, 8}};
    struct pc_buf *b = pc->fw_cfg ? fw_cfg_file(pc->fw_cfg, TABLES_FILE) : NULL;
    for (unsigned i = 0; b && i < sizeof(fields) / sizeof(fields[0]); i++)
        put_u32(b, pc->fadt_at + fields[i].field, base + fields[i].offset);
}

static void madt_override(struct pc_buf *b, uint8_t irq, uint32_t gsi, uint16_t flags)
{
    pc_buf_u8(b, 2);
    pc_buf_u8(b, 10);
    pc_buf_u8(b, 0); /* ISA */
    pc_buf_u8(b, irq);
    pc_buf_u32(b, gsi);
    pc_buf_u16(b, flags);
}

static size_t madt(struct pc *pc, struct acpi_files *f)
{
    struct pc_buf *b = &f->tables;
    static const uint8_t level_irqs[] = {5, 9, 10, 11};
    pc_buf_align(b, 16);
    size_t start = b->len;
    acpi_header(b, "APIC", 1);
    pc_buf_u32(b, (uint32_t)PC_LAPIC_BASE);
    pc_buf_u32(b, 1); /* 8259s are there too */
    for (unsigned n = 0; n < pc->info.n_vcpus; n++) {
        if (n < 255) {
            pc_buf_u8(b, 0); /* local APIC */
            pc_buf_u8(b, 8);
            pc_buf_u8(b, (uint8_t)n);
            pc_buf_u8(b, (uint8_t)n);
            pc_buf_u32(b, 1);
        } else {
            pc_buf_u8(b, 9); /* local x2APIC */
            pc_buf_u8(b, 16);
            pc_buf_u16(b, 0);
            pc_buf_u32(b, n);
            pc_buf_u32(b, 1);
            pc_buf_u32(b, n);
        }
    }
    pc_buf_u8(b, 1); /* I/O APIC */
    pc_buf_u8(b, 12);
    pc_buf_u8(b, 0);
    pc_buf_u8(b, 0);
    pc_buf_u32(b, (uint32_t)PC_IOAPIC_BASE);
    pc_buf_u32(b, 0);
    madt_override(b, 0, 2, 0);
    for (unsigned i = 0; i < sizeof(level_irqs); i++)
        madt_override(b, level_irqs[i], level_irqs[i], 0x000d); /* active high, level */
    pc_buf_u8(b, 4); /* NMI on LINT1 of every local APIC */
    pc_buf_u8(b, 6);
    pc_buf_u8(b, 0xff);
    pc_buf_u16(b, 0);
    pc_buf_u8(b, 1);
    acpi_finish(b, start);
    loader_table_checksum(f, start);
    return start;
}

static size_t hpet_table(struct acpi_files *f)
{
    struct pc_buf *b = &f->tables;
    pc_buf_align(b, 16);
    size_t start = b->len;
    acpi_header(b, "HPET", 1);
    pc_buf_u32(b, 0x8086a201); /* the capabilities register's low half */
    pc_buf_u8(b, 0);           /* memory */
    pc_buf_u8(b, 64);
    pc_buf_u8(b, 0);
    pc_buf_u8(b, 0);
    pc_buf_u64(b, PC_HPET_BASE);
    pc_buf_u8(b, 0);
    pc_buf_u16(b, 0x80); /* smallest tick without losing interrupts in periodic mode */
    pc_buf_u8(b, 0);
    acpi_finish(b, start);
    loader_table_checksum(f, start);
    return start;
}

/* RSDT or XSDT over n tables. */
static size_t root_table(struct acpi_files *f, const size_t *at, unsigned n, bool wide)
{
    struct pc_buf *b = &f->tables;
    pc_buf_align(b, 16);
    size_t start = b->len;
    acpi_header(b, wide ? "XSDT" : "RSDT", 1);
    for (unsigned i = 0; i < n; i++) {
        if (wide)
            pc_buf_u64(b, at[i]);
        else
            pc_buf_u32(b, (uint32_t)at[i]);
    }
    acpi_finish(b, start);
    for (unsigned i = 0; i < n; i++)
        loader_pointer(&f->loader, TABLES_FILE, start + HEADER_BYTES + i * (wide ? 8 : 4), wide ? 8 : 4);
    loader_table_checksum(f, start);
    return start;
}

static void rsdp(struct acpi_files *f, size_t rsdt, size_t xsdt)
{
    struct pc_buf *b = &f->rsdp;
    pc_buf_bytes(b, "RSD PTR ", 8);
    pc_buf_u8(b, 0); /* checksum of the first 20 bytes */
    pc_buf_bytes(b, OEM_ID, 6);
    pc_buf_u8(b, 2);
    pc_buf_u32(b, (uint32_t)rsdt);
    pc_buf_u32(b, 36);
    pc_buf_u64(b, xsdt);
    pc_buf_u8(b, 0); /* checksum of all 36 */
    pc_buf_zero(b, 3);
    loader_pointer(&f->loader, RSDP_FILE, 16, 4);
    loader_pointer(&f->loader, RSDP_FILE, 24, 8);
    loader_checksum(&f->loader, RSDP_FILE, 8, 0, 20);
    loader_checksum(&f->loader, RSDP_FILE, 32, 0, 36);
}

int acpi_build(struct pc *pc, struct acpi_files *out, struct hvx_error *err)
{
    size_t at[4];
    unsigned n = 0;
    memset(out, 0, sizeof(*out));
    loader_allocate(&out->loader, RSDP_FILE, 16, ZONE_FSEG);
    loader_allocate(&out->loader, TABLES_FILE, 64, ZONE_HIGH);

    size_t facs_at = facs(&out->tables);
    size_t dsdt_at = out->tables.len;
    acpi_dsdt(pc, &out->tables);
    loader_table_checksum(out, dsdt_at);
    out->fadt_at = at[n++] = fadt(out, facs_at, dsdt_at);
    at[n++] = madt(pc, out);
    if (pc->conf.hpet)
        at[n++] = hpet_table(out);
    size_t rsdt = root_table(out, at, n, false);
    size_t xsdt = root_table(out, at, n, true);
    rsdp(out, rsdt, xsdt);

    if (out->tables.failed || out->rsdp.failed || out->loader.failed) {
        acpi_files_free(out);
        return hvx_fail(err, -ENOMEM, "pc: no memory for the ACPI tables");
    }
    return 0;
}

void acpi_files_free(struct acpi_files *f)
{
    pc_buf_free(&f->tables);
    pc_buf_free(&f->rsdp);
    pc_buf_free(&f->loader);
}
