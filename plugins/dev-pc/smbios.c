/* SPDX-License-Identifier: Apache-2.0
 *
 * smbios.c - SMBIOS 2.8 structures: BIOS, system, chassis, processors, memory
 * array, devices and their mapped ranges, boot information, end of table.
 *
 * Layouts: DSP0134 3.x, section 7. Strings follow their structure; numbers in
 * string fields count from one.
 */
#include "pc.h"

#include <string.h>

#define MAX_STRUCTURES 1024u

struct smbios {
    struct pc_buf *b;
    size_t start;
    unsigned n, largest;
};

static void begin(struct smbios *s, uint8_t type, uint8_t length, uint16_t handle)
{
    s->start = s->b->len;
    pc_buf_u8(s->b, type);
    pc_buf_u8(s->b, length);
    pc_buf_u16(s->b, handle);
}

static void end(struct smbios *s, const char *const *strings)
{
    if (!strings || !strings[0])
        pc_buf_u8(s->b, 0);
    for (unsigned i = 0; strings && strings[i]; i++)
        pc_buf_bytes(s->b, strings[i], strlen(strings[i]) + 1);
    pc_buf_u8(s->b, 0);
    s->n++;
    if (s->b->len - s->start > s->largest)
        s->largest = (unsigned)(s->b->len - s->start);
}

static void type0(struct smbios *s)
{
    /* Guests judge a machine by this date: from 2015 on Linux takes the clock's alarms from ACPI only, from 2023 on
     * it ignores reserved ranges of the memory map. The hardware shown here is older than both. */
    static const char *const text[] = {"HVX", "1", "04/01/2014", NULL};
    begin(s, 0, 24, 0x0000);
    pc_buf_u8(s->b, 1);
    pc_buf_u8(s->b, 2);
    pc_buf_u16(s->b, 0xe800); /* BIOS starting segment */
    pc_buf_u8(s->b, 3);
    pc_buf_u8(s->b, 0);
    pc_buf_u64(s->b, 0x08); /* characteristics not supported */
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 0x14); /* virtual machine; targeted content distribution */
    pc_buf_u8(s->b, 1);
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 0xff);
    pc_buf_u8(s->b, 0xff);
    end(s, text);
}

static void type1(struct smbios *s, const struct pc *pc)
{
    static const char *const text[] = {"HVX", "Standard PC (i440FX + PIIX)", "1", NULL};
    const uint8_t *u = pc->info.uuid;
    /* the first three fields of a UUID are little-endian here (7.2.1) */
    const uint8_t wire[16] = {u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6],
                              u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]};
    begin(s, 1, 27, 0x0100);
    pc_buf_u8(s->b, 1);
    pc_buf_u8(s->b, 2);
    pc_buf_u8(s->b, 3);
    pc_buf_u8(s->b, 0);
    pc_buf_bytes(s->b, wire, 16);
    pc_buf_u8(s->b, 0x06); /* woken by the power switch */
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 0);
    end(s, text);
}

static void type3(struct smbios *s)
{
    static const char *const text[] = {"HVX", "1", NULL};
    begin(s, 3, 22, 0x0300);
    pc_buf_u8(s->b, 1);
    pc_buf_u8(s->b, 0x01); /* other */
    pc_buf_u8(s->b, 2);
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 3); /* states: safe */
    pc_buf_u8(s->b, 3);
    pc_buf_u8(s->b, 3);
    pc_buf_u8(s->b, 2); /* security: unknown */
    pc_buf_u32(s->b, 0);
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 0);
    end(s, text);
}

static void type4(struct smbios *s, unsigned n)
{
    char socket[16];
    snprintf(socket, sizeof(socket), "CPU %u", n);
    const char *const text[] = {socket, "HVX", NULL};
    begin(s, 4, 42, (uint16_t)(0x0400 + n));
    pc_buf_u8(s->b, 1);
    pc_buf_u8(s->b, 3);    /* central processor */
    pc_buf_u8(s->b, 0x01); /* family: other */
    pc_buf_u8(s->b, 2);
    pc_buf_u64(s->b, 0);
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 0);
    pc_buf_u16(s->b, 0);    /* external clock unknown */
    pc_buf_u16(s->b, 2000); /* MHz */
    pc_buf_u16(s->b, 2000);
    pc_buf_u8(s->b, 0x41); /* populated, enabled */
    pc_buf_u8(s->b, 0x01);
    pc_buf_u16(s->b, 0xffff);
    pc_buf_u16(s->b, 0xffff);
    pc_buf_u16(s->b, 0xffff);
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 1); /* cores, enabled, threads */
    pc_buf_u8(s->b, 1);
    pc_buf_u8(s->b, 1);
    pc_buf_u16(s->b, 0x02); /* characteristics unknown */
    pc_buf_u16(s->b, 0x01);
    end(s, text);
}

static void memory(struct smbios *s, const struct pc *pc)
{
    static const char *const text[] = {"DIMM 0", "HVX", NULL};
    uint64_t kib = pc->info.ram_bytes >> 10, mib = pc->info.ram_bytes >> 20;

    begin(s, 16, 23, 0x1000);
    pc_buf_u8(s->b, 0x01); /* other */
    pc_buf_u8(s->b, 0x03); /* system memory */
    pc_buf_u8(s->b, 0x06); /* multi-bit ECC */
    pc_buf_u32(s->b, kib < 0x80000000u ? (uint32_t)kib : 0x80000000u);
    pc_buf_u16(s->b, 0xfffe);
    pc_buf_u16(s->b, 1);
    pc_buf_u64(s->b, kib < 0x80000000u ? 0 : pc->info.ram_bytes);
    end(s, NULL);

    begin(s, 17, 40, 0x1100);
    pc_buf_u16(s->b, 0x1000);
    pc_buf_u16(s->b, 0xfffe);
    pc_buf_u16(s->b, 0xffff);
    pc_buf_u16(s->b, 0xffff);
    pc_buf_u16(s->b, mib < 0x7fff ? (uint16_t)mib : 0x7fff);
    pc_buf_u8(s->b, 0x09); /* DIMM */
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 1);
    pc_buf_u8(s->b, 0);
    pc_buf_u8(s->b, 0x07); /* RAM */
    pc_buf_u16(s->b, 0x02);
    pc_buf_u16(s->b, 0);
    pc_buf_u8(s->b, 2);
    pc_buf_zero(s->b, 3);
    pc_buf_u8(s->b, 0);
    pc_buf_u32(s->b, mib < 0x7fff ? 0 : (uint32_t)mib);
    pc_buf_u16(s->b, 0);
    pc_buf_zero(s->b, 6); /* voltages */
    end(s, text);

    uint64_t first[2] = {0, 1ull << 32}, bytes[2] = {pc->info.ram_below_4g, pc->info.ram_above_4g};
    for (unsigned i = 0; i < 2; i++) {
        if (!bytes[i])
            continue;
        uint64_t last = first[i] + bytes[i] - 1;
        bool wide = (last >> 10) >= UINT32_MAX;
        begin(s, 19, 31, (uint16_t)(0x1300 + i));
        pc_buf_u32(s->b, wide ? UINT32_MAX : (uint32_t)(first[i] >> 10));
        pc_buf_u32(s->b, wide ? UINT32_MAX : (uint32_t)(last >> 10));
        pc_buf_u16(s->b, 0x1000);
        pc_buf_u8(s->b, 1);
        pc_buf_u64(s->b, wide ? first[i] : 0);
        pc_buf_u64(s->b, wide ? last : 0);
        end(s, NULL);
    }
}

static void tail(struct smbios *s)
{
    begin(s, 32, 11, 0x2000);
    pc_buf_zero(s->b, 6);
    pc_buf_u8(s->b, 0); /* booted without errors */
    end(s, NULL);
    begin(s, 127, 4, 0x7f00);
    end(s, NULL);
}

static uint8_t checksum(const uint8_t *p, size_t n)
{
    uint8_t sum = 0;
    while (n--)
        sum = (uint8_t)(sum + *p++);
    return (uint8_t)-sum;
}

/* The 2.1 entry point; firmware fills in the table's address and sums again. */
static void anchor_build(struct pc_buf *b, const struct smbios *s)
{
    pc_buf_bytes(b, "_SM_", 4);
    pc_buf_u8(b, 0);
    pc_buf_u8(b, 0x1f);
    pc_buf_u8(b, 2);
    pc_buf_u8(b, 8);
    pc_buf_u16(b, (uint16_t)s->largest);
    pc_buf_zero(b, 6);
    pc_buf_bytes(b, "_DMI_", 5);
    pc_buf_u8(b, 0);
    pc_buf_u16(b, (uint16_t)s->b->len);
    pc_buf_u32(b, 0);
    pc_buf_u16(b, (uint16_t)s->n);
    pc_buf_u8(b, 0x28);
    if (b->failed)
        return;
    b->data[21] = checksum(b->data + 16, 15);
    b->data[4] = checksum(b->data, 31);
}

int smbios_build(struct pc *pc, struct pc_buf *anchor, struct pc_buf *tables, struct hvx_error *err)
{
    struct smbios s = {.b = tables};
    type0(&s);
    type1(&s, pc);
    type3(&s);
    for (unsigned n = 0; n < pc->info.n_vcpus && n < MAX_STRUCTURES; n++)
        type4(&s, n);
    memory(&s, pc);
    tail(&s);
    anchor_build(anchor, &s);
    if (anchor->failed || tables->failed)
        return hvx_fail(err, -ENOMEM, "pc: no memory for the SMBIOS tables");
    return 0;
}
