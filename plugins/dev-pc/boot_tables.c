/* SPDX-License-Identifier: Apache-2.0
 *
 * boot_tables.c - runs the table-loader script as firmware would, with
 * everything in 0xe0000..0xfffff, and puts the SMBIOS anchor where it is
 * looked for.
 */
#include "pc.h"

#include <stdlib.h>
#include <string.h>

#define AREA_START 0xe0000u
#define AREA_END 0x100000u
#define ENTRY_BYTES 128u
#define MAX_FILES 4u

struct placed {
    char name[FW_CFG_NAME];
    struct pc_buf data;
    uint32_t at;
};

struct placement {
    struct pc *pc;
    struct placed file[MAX_FILES];
    unsigned n;
    uint32_t next; /* free from here */
};

static struct placed *find(struct placement *p, const uint8_t *name)
{
    for (unsigned i = 0; i < p->n; i++)
        if (strncmp(p->file[i].name, (const char *)name, FW_CFG_NAME) == 0)
            return &p->file[i];
    return NULL;
}

static uint32_t get32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static int allocate(struct placement *p, const uint8_t *e, struct hvx_error *err)
{
    const struct pc_buf *from = fw_cfg_file(p->pc->fw_cfg, (const char *)e);
    uint32_t align = get32(e + FW_CFG_NAME);
    if (!from || p->n == MAX_FILES || !align)
        return hvx_fail(err, -EINVAL, "placing ACPI tables: bad allocation of %.55s", (const char *)e);
    struct placed *f = &p->file[p->n++];
    memcpy(f->name, e, FW_CFG_NAME);
    pc_buf_bytes(&f->data, from->data, from->len);
    f->at = (p->next + align - 1) / align * align;
    p->next = f->at + (uint32_t)from->len;
    if (f->data.failed)
        return hvx_fail(err, -ENOMEM, "placing ACPI tables: no memory");
    if (p->next > AREA_END)
        return hvx_fail(err, -ENOSPC, "placing ACPI tables: they do not fit below 1 MiB");
    return 0;
}

static int add_pointer(struct placement *p, const uint8_t *e)
{
    struct placed *to = find(p, e), *from = find(p, e + FW_CFG_NAME);
    uint32_t offset = get32(e + 2 * FW_CFG_NAME), size = e[2 * FW_CFG_NAME + 4];
    uint64_t v = 0;
    if (!to || !from || size > 8 || offset > to->data.len || size > to->data.len - offset)
        return -EINVAL;
    memcpy(&v, to->data.data + offset, size);
    v += from->at;
    memcpy(to->data.data + offset, &v, size);
    return 0;
}

static int add_checksum(struct placement *p, const uint8_t *e)
{
    struct placed *f = find(p, e);
    uint32_t at = get32(e + FW_CFG_NAME), start = get32(e + FW_CFG_NAME + 4), n = get32(e + FW_CFG_NAME + 8);
    uint8_t sum = 0;
    if (!f || at >= f->data.len || start > f->data.len || n > f->data.len - start)
        return -EINVAL;
    for (uint32_t i = 0; i < n; i++)
        sum = (uint8_t)(sum + f->data.data[start + i]);
    f->data.data[at] = (uint8_t)(f->data.data[at] - sum);
    return 0;
}

static int run_script(struct placement *p, struct hvx_error *err)
{
    const struct pc_buf *script = fw_cfg_file(p->pc->fw_cfg, "etc/table-loader");
    int rc = 0;
    for (size_t i = 0; script && i + ENTRY_BYTES <= script->len && rc == 0; i += ENTRY_BYTES) {
        const uint8_t *e = script->data + i;
        switch (get32(e)) {
        case 1: rc = allocate(p, e + 4, err); continue;
        case 2: rc = add_pointer(p, e + 4); break;
        case 3: rc = add_checksum(p, e + 4); break;
        default: break;
        }
        if (rc)
            hvx_fail(err, rc, "placing ACPI tables: entry %zu of the script is out of range", i / ENTRY_BYTES);
    }
    return rc;
}

static uint8_t sum_to_zero(const uint8_t *p, size_t n)
{
    uint8_t sum = 0;
    while (n--)
        sum = (uint8_t)(sum + *p++);
    return (uint8_t)-sum;
}

/* Anchor at a multiple of 16 in 0xf0000..0xfffff, the structures after it. */
static int place_smbios(struct placement *p, struct hvx_error *err)
{
    const struct pc_buf *anchor = fw_cfg_file(p->pc->fw_cfg, "etc/smbios/smbios-anchor");
    const struct pc_buf *tables = fw_cfg_file(p->pc->fw_cfg, "etc/smbios/smbios-tables");
    uint8_t a[31];
    if (!anchor || !tables || anchor->len != sizeof(a))
        return 0;
    uint32_t at = p->next < 0xf0000 ? 0xf0000 : (p->next + 15) & ~15u;
    uint32_t tables_at = at + 32;
    if (tables->len > AREA_END - tables_at)
        return 0; /* a guest does without */
    memcpy(a, anchor->data, sizeof(a));
    memcpy(a + 24, &tables_at, sizeof(tables_at));
    a[21] = 0;
    a[21] = sum_to_zero(a + 16, 15);
    a[4] = 0;
    a[4] = sum_to_zero(a, sizeof(a));
    int rc = boot_write(p->pc, at, a, sizeof(a), "the SMBIOS anchor", err);
    return rc ? rc : boot_write(p->pc, tables_at, tables->data, tables->len, "the SMBIOS tables", err);
}

int boot_tables(struct pc *pc, uint64_t *rsdp, struct hvx_error *err)
{
    struct placement *p = calloc(1, sizeof(*p));
    if (!p)
        return hvx_fail(err, -ENOMEM, "placing ACPI tables: no memory");
    p->pc = pc;
    p->next = AREA_START;
    int rc = run_script(p, err);
    for (unsigned i = 0; i < p->n && rc == 0; i++)
        rc = boot_write(pc, p->file[i].at, p->file[i].data.data, p->file[i].data.len, "an ACPI table", err);
    if (rc == 0)
        rc = place_smbios(p, err);
    struct placed *f = find(p, (const uint8_t *)"etc/acpi/rsdp");
    *rsdp = rc == 0 && f ? f->at : 0;
    for (unsigned i = 0; i < p->n; i++)
        pc_buf_free(&p->file[i].data);
    free(p);
    return rc;
}
