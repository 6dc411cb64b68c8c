/* SPDX-License-Identifier: Apache-2.0
 *
 * aml.c - encodes ACPI Machine Language; see aml.h.
 */
#include "aml.h"

#include <string.h>

#define OP_NAME 0x08u
#define OP_BYTE 0x0au
#define OP_WORD 0x0bu
#define OP_DWORD 0x0cu
#define OP_STRING 0x0du
#define OP_QWORD 0x0eu
#define OP_SCOPE 0x10u
#define OP_BUFFER 0x11u
#define OP_PACKAGE 0x12u
#define OP_METHOD 0x14u
#define OP_EXT 0x5bu
#define OP_STORE 0x70u
#define OP_AND 0x7bu
#define OP_OR 0x7du
#define OP_NOTIFY 0x86u
#define OP_DWORD_FIELD 0x8au
#define OP_LLESS 0x95u
#define OP_IF 0xa0u
#define OP_RETURN 0xa4u

void aml_op(struct pc_buf *b, uint8_t op)
{
    pc_buf_u8(b, op);
}

/* A name of up to four characters, padded with underscores. */
static void segment(struct pc_buf *b, const char *s)
{
    for (unsigned i = 0; i < 4; i++) {
        bool more = *s && *s != '.';
        pc_buf_u8(b, (uint8_t)(more ? *s : '_'));
        s += more;
    }
}

void aml_path(struct pc_buf *b, const char *path)
{
    unsigned n = 1;
    while (*path == '\\' || *path == '^')
        pc_buf_u8(b, (uint8_t)*path++);
    for (const char *p = path; *p; p++)
        n += *p == '.';
    if (n == 2) {
        pc_buf_u8(b, 0x2e); /* DualNamePrefix */
    } else if (n > 2) {
        pc_buf_u8(b, 0x2f); /* MultiNamePrefix */
        pc_buf_u8(b, (uint8_t)n);
    }
    for (; n; n--) {
        segment(b, path);
        while (*path && *path++ != '.')
            continue;
    }
}

/* Insert the PkgLength that starts at `mark`: it counts itself (20.2.4). */
void aml_end(struct pc_buf *b, size_t mark)
{
    size_t body = b->len - mark;
    unsigned n = body + 1 < 0x40 ? 1 : body + 2 < 0x1000 ? 2 : body + 3 < 0x100000 ? 3 : 4;
    size_t total = body + n;
    uint8_t enc[4];

    if (n == 1) {
        enc[0] = (uint8_t)total;
    } else {
        enc[0] = (uint8_t)((n - 1) << 6 | (total & 0x0f));
        for (unsigned i = 1; i < n; i++)
            enc[i] = (uint8_t)(total >> (4 + 8 * (i - 1)));
    }
    pc_buf_zero(b, n);
    if (b->failed)
        return;
    memmove(b->data + mark + n, b->data + mark, body);
    memcpy(b->data + mark, enc, n);
}

static size_t open1(struct pc_buf *b, uint8_t op)
{
    pc_buf_u8(b, op);
    return b->len;
}

static size_t open2(struct pc_buf *b, uint8_t op)
{
    pc_buf_u8(b, OP_EXT);
    return open1(b, op);
}

size_t aml_scope(struct pc_buf *b, const char *path)
{
    size_t mark = open1(b, OP_SCOPE);
    aml_path(b, path);
    return mark;
}

size_t aml_device(struct pc_buf *b, const char *name)
{
    size_t mark = open2(b, 0x82);
    segment(b, name);
    return mark;
}

size_t aml_method(struct pc_buf *b, const char *name, unsigned n_args)
{
    size_t mark = open1(b, OP_METHOD);
    segment(b, name);
    pc_buf_u8(b, (uint8_t)n_args | 0x08); /* serialized: it may create fields */
    return mark;
}

size_t aml_processor(struct pc_buf *b, const char *name, uint8_t id)
{
    size_t mark = open2(b, 0x83);
    segment(b, name);
    pc_buf_u8(b, id);
    pc_buf_u32(b, 0); /* no P_BLK */
    pc_buf_u8(b, 0);
    return mark;
}

size_t aml_package(struct pc_buf *b, unsigned n_elements)
{
    size_t mark = open1(b, OP_PACKAGE);
    pc_buf_u8(b, (uint8_t)n_elements);
    return mark;
}

size_t aml_if(struct pc_buf *b)
{
    return open1(b, OP_IF);
}

size_t aml_field(struct pc_buf *b, const char *region)
{
    size_t mark = open2(b, 0x81);
    aml_path(b, region);
    pc_buf_u8(b, 0x01); /* byte access */
    return mark;
}

void aml_field_byte(struct pc_buf *b, const char *name)
{
    segment(b, name);
    pc_buf_u8(b, 8); /* bits, as a PkgLength of one byte */
}

size_t aml_field_dwords(struct pc_buf *b, const char *region)
{
    size_t mark = open2(b, 0x81);
    aml_path(b, region);
    pc_buf_u8(b, 0x43); /* dword access, the rest written as zeroes */
    return mark;
}

void aml_field_dword(struct pc_buf *b, const char *name)
{
    segment(b, name);
    pc_buf_u8(b, 32);
}

void aml_integer(struct pc_buf *b, uint64_t v)
{
    if (v <= 1) {
        pc_buf_u8(b, (uint8_t)v);
    } else if (v <= UINT8_MAX) {
        pc_buf_u8(b, OP_BYTE);
        pc_buf_u8(b, (uint8_t)v);
    } else if (v <= UINT16_MAX) {
        pc_buf_u8(b, OP_WORD);
        pc_buf_u16(b, (uint16_t)v);
    } else if (v <= UINT32_MAX) {
        pc_buf_u8(b, OP_DWORD);
        pc_buf_u32(b, (uint32_t)v);
    } else {
        pc_buf_u8(b, OP_QWORD);
        pc_buf_u64(b, v);
    }
}

void aml_string(struct pc_buf *b, const char *s)
{
    pc_buf_u8(b, OP_STRING);
    pc_buf_bytes(b, s, strlen(s) + 1);
}

static uint32_t hex(char c)
{
    return (uint32_t)(c <= '9' ? c - '0' : c - 'A' + 10);
}

/* Three letters of five bits and four hex digits, big-endian (19.6.35). */
void aml_eisaid(struct pc_buf *b, const char id[8])
{
    uint32_t v = (uint32_t)(id[0] - 0x40) << 26 | (uint32_t)(id[1] - 0x40) << 21 | (uint32_t)(id[2] - 0x40) << 16 |
                 hex(id[3]) << 12 | hex(id[4]) << 8 | hex(id[5]) << 4 | hex(id[6]);
    pc_buf_u8(b, OP_DWORD);
    pc_buf_u32(b, __builtin_bswap32(v));
}

void aml_name(struct pc_buf *b, const char *name)
{
    pc_buf_u8(b, OP_NAME);
    aml_path(b, name);
}

void aml_name_integer(struct pc_buf *b, const char *name, uint64_t v)
{
    aml_name(b, name);
    aml_integer(b, v);
}

void aml_name_eisaid(struct pc_buf *b, const char *name, const char id[8])
{
    aml_name(b, name);
    aml_eisaid(b, id);
}

void aml_name_string(struct pc_buf *b, const char *name, const char *s)
{
    aml_name(b, name);
    aml_string(b, s);
}

void aml_return(struct pc_buf *b) { pc_buf_u8(b, OP_RETURN); }
void aml_store(struct pc_buf *b) { pc_buf_u8(b, OP_STORE); }
void aml_or(struct pc_buf *b) { pc_buf_u8(b, OP_OR); }
void aml_and(struct pc_buf *b) { pc_buf_u8(b, OP_AND); }
void aml_notify(struct pc_buf *b) { pc_buf_u8(b, OP_NOTIFY); }
void aml_less(struct pc_buf *b) { pc_buf_u8(b, OP_LLESS); }
void aml_dword_field(struct pc_buf *b) { pc_buf_u8(b, OP_DWORD_FIELD); }

void aml_operation_region(struct pc_buf *b, const char *name, uint8_t space, uint64_t offset, uint64_t n)
{
    pc_buf_u8(b, OP_EXT);
    pc_buf_u8(b, 0x80);
    segment(b, name);
    pc_buf_u8(b, space);
    aml_integer(b, offset);
    aml_integer(b, n);
}

/* --- resource descriptors (ACPI 6.4, section 6.4) ------------------------------- */
void aml_res_io(struct aml_resources *r, uint16_t port, uint8_t align, uint8_t n)
{
    pc_buf_u8(&r->bytes, 0x47);
    pc_buf_u8(&r->bytes, 1); /* decodes 16 bits */
    pc_buf_u16(&r->bytes, port);
    pc_buf_u16(&r->bytes, port);
    pc_buf_u8(&r->bytes, align);
    pc_buf_u8(&r->bytes, n);
}

void aml_res_irq(struct aml_resources *r, unsigned irq)
{
    pc_buf_u8(&r->bytes, 0x22);
    pc_buf_u16(&r->bytes, (uint16_t)(1u << irq));
}

void aml_res_interrupt(struct aml_resources *r, const uint32_t *irqs, unsigned n)
{
    pc_buf_u8(&r->bytes, 0x89);
    pc_buf_u16(&r->bytes, (uint16_t)(2 + 4 * n));
    pc_buf_u8(&r->bytes, 0x09); /* consumer, level, active high, shared */
    pc_buf_u8(&r->bytes, (uint8_t)n);
    for (unsigned i = 0; i < n; i++)
        pc_buf_u32(&r->bytes, irqs[i]);
}

void aml_res_memory32(struct aml_resources *r, uint32_t base, uint32_t n, bool writable)
{
    pc_buf_u8(&r->bytes, 0x86);
    pc_buf_u16(&r->bytes, 9);
    pc_buf_u8(&r->bytes, writable);
    pc_buf_u32(&r->bytes, base);
    pc_buf_u32(&r->bytes, n);
}

/* Address space descriptors: type 0 memory, 1 I/O, 2 bus numbers; minimum and maximum fixed. */
static void word_space(struct aml_resources *r, uint8_t type, uint8_t flags, uint16_t first, uint16_t last)
{
    pc_buf_u8(&r->bytes, 0x88);
    pc_buf_u16(&r->bytes, 13);
    pc_buf_u8(&r->bytes, type);
    pc_buf_u8(&r->bytes, 0x0c);
    pc_buf_u8(&r->bytes, flags);
    pc_buf_u16(&r->bytes, 0);
    pc_buf_u16(&r->bytes, first);
    pc_buf_u16(&r->bytes, last);
    pc_buf_u16(&r->bytes, 0);
    pc_buf_u16(&r->bytes, (uint16_t)(last - first + 1));
}

void aml_res_bus(struct aml_resources *r, uint16_t first, uint16_t last)
{
    word_space(r, 2, 0, first, last);
}

void aml_res_word_io(struct aml_resources *r, uint16_t first, uint16_t last)
{
    word_space(r, 1, 0x03, first, last); /* entire range */
}

void aml_res_dword_memory(struct aml_resources *r, uint32_t first, uint32_t last, bool cached)
{
    pc_buf_u8(&r->bytes, 0x87);
    pc_buf_u16(&r->bytes, 23);
    pc_buf_u8(&r->bytes, 0);
    pc_buf_u8(&r->bytes, 0x0c);
    pc_buf_u8(&r->bytes, cached ? 0x03 : 0x01);
    pc_buf_u32(&r->bytes, 0);
    pc_buf_u32(&r->bytes, first);
    pc_buf_u32(&r->bytes, last);
    pc_buf_u32(&r->bytes, 0);
    pc_buf_u32(&r->bytes, last - first + 1);
}

void aml_res_qword_memory(struct aml_resources *r, uint64_t first, uint64_t last)
{
    pc_buf_u8(&r->bytes, 0x8a);
    pc_buf_u16(&r->bytes, 43);
    pc_buf_u8(&r->bytes, 0);
    pc_buf_u8(&r->bytes, 0x0c);
    pc_buf_u8(&r->bytes, 0x03);
    pc_buf_u64(&r->bytes, 0);
    pc_buf_u64(&r->bytes, first);
    pc_buf_u64(&r->bytes, last);
    pc_buf_u64(&r->bytes, 0);
    pc_buf_u64(&r->bytes, last - first + 1);
}

void aml_resources_end(struct pc_buf *b, struct aml_resources *r)
{
    pc_buf_u8(&r->bytes, 0x79); /* end tag; a checksum of 0 means none */
    pc_buf_u8(&r->bytes, 0);
    size_t mark = open1(b, OP_BUFFER);
    aml_integer(b, r->bytes.len);
    pc_buf_bytes(b, r->bytes.data, r->bytes.len);
    aml_end(b, mark);
    b->failed |= r->bytes.failed;
    pc_buf_free(&r->bytes);
}
