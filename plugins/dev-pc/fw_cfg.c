/* SPDX-License-Identifier: Apache-2.0
 *
 * fw_cfg.c - the firmware configuration device: a set of numbered items, some
 * with file names, read through ports 0x510/0x511 or by DMA through 0x514.
 *
 * Interface as SeaBIOS and OVMF use it (QEMU's docs/specs/fw_cfg): item
 * 0x0000 is the signature, 0x0001 the feature bits, 0x0019 the directory.
 * Items are read-only; a write by the guest is answered with the error bit.
 * Reading past the end of an item gives zeros.
 */
#include "pc.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#define KEY_SIGNATURE 0x0000u
#define KEY_FEATURES 0x0001u
#define KEY_DIRECTORY 0x0019u
#define KEY_FIRST_FILE 0x0020u
#define KEY_LOCAL 0x8000u
#define KEY_MASK 0x3fffu

#define FEATURE_PORTS 1u
#define FEATURE_DMA 2u
#define DMA_SIGNATURE 0x51454d5520434647ull /* "QEMU CFG", read big-endian */

#define DMA_ERROR 0x01u
#define DMA_READ 0x02u
#define DMA_SKIP 0x04u
#define DMA_SELECT 0x08u
#define DMA_WRITE 0x10u
/* More than any item holds: what lies beyond reads as zeros and is not copied. */
#define DMA_MAX_BYTES (64u << 20)

#define MAX_ITEMS (FW_CFG_MAX_FILES + 32u)

struct fw_item {
    uint16_t key;
    char name[FW_CFG_NAME]; /* empty: no file */
    struct pc_buf data;
};

struct fw_cfg {
    struct pc *pc;
    struct fw_item item[MAX_ITEMS];
    unsigned n_items, n_files;
    uint16_t key;    /* selected */
    uint32_t offset; /* in the selected item */
    uint64_t dma_address;
    struct pc_buf directory;
};

static const struct pc_buf *selected(const struct fw_cfg *f)
{
    if (f->key == KEY_DIRECTORY)
        return &f->directory;
    for (unsigned i = 0; i < f->n_items; i++)
        if (f->item[i].key == f->key)
            return &f->item[i].data;
    return NULL;
}

static void select_item(struct fw_cfg *f, uint16_t key)
{
    f->key = key & (KEY_LOCAL | KEY_MASK); /* bit 14 asked for writing, long ago */
    f->offset = 0;
}

static uint8_t next_byte(struct fw_cfg *f)
{
    const struct pc_buf *b = selected(f);
    if (!b || f->offset >= b->len)
        return 0;
    return b->data[f->offset++];
}

/* --- DMA -------------------------------------------------------------------------- */
/* Copy n bytes of the selected item to the guest, zeros after its end. */
static int dma_copy(struct fw_cfg *f, uint64_t gpa, uint32_t n)
{
    static const uint8_t zeros[4096];
    const struct hvx_host *host = f->pc->host;
    const struct pc_buf *b = selected(f);
    uint32_t have = b && f->offset < b->len ? (uint32_t)(b->len - f->offset) : 0;
    if (have > n)
        have = n;
    if (have && host->mem_write(f->pc->vm, gpa, b->data + f->offset, have))
        return -EFAULT;
    f->offset += have;
    for (uint64_t done = have; done < n;) {
        size_t piece = n - done < sizeof(zeros) ? (size_t)(n - done) : sizeof(zeros);
        if (host->mem_write(f->pc->vm, gpa + done, zeros, piece))
            return -EFAULT;
        done += piece;
    }
    return 0;
}

static void dma_run(struct fw_cfg *f)
{
    const struct hvx_host *host = f->pc->host;
    uint64_t at = f->dma_address;
    struct {
        uint32_t control, length;
        uint64_t address;
    } d;
    f->dma_address = 0;
    if (host->mem_read(f->pc->vm, at, &d, sizeof(d))) {
        host->guest_event(f->pc->vm, "fw-cfg-dma", "the descriptor at %#llx is not in RAM", (unsigned long long)at);
        return;
    }
    uint32_t control = be32toh(d.control), n = be32toh(d.length), status = 0;
    uint64_t gpa = be64toh(d.address);

    if (control & DMA_SELECT)
        select_item(f, (uint16_t)(control >> 16));
    const struct pc_buf *b = selected(f);
    if (control & DMA_READ) {
        if (n > DMA_MAX_BYTES || gpa + n < gpa || dma_copy(f, gpa, n))
            status = DMA_ERROR;
    } else if (control & DMA_WRITE) {
        status = DMA_ERROR;
    } else if (control & DMA_SKIP) {
        uint32_t left = b && f->offset < b->len ? (uint32_t)(b->len - f->offset) : 0;
        f->offset += n < left ? n : left;
    }
    status = htobe32(status);
    host->mem_write(f->pc->vm, at, &status, sizeof(status));
}

static uint64_t dma_read(void *opaque, uint64_t off, unsigned size)
{
    (void)opaque;
    /* big-endian: the byte at the lowest address is the highest of the signature */
    uint64_t v = 0;
    for (unsigned i = 0; i < size; i++)
        v |= ((DMA_SIGNATURE >> (8 * (7 - ((off + i) & 7)))) & 0xff) << (8 * i);
    return v;
}

static void dma_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct fw_cfg *f = opaque;
    if (size == 4 && off == 0) {
        f->dma_address = (uint64_t)be32toh((uint32_t)value) << 32;
    } else if (size == 4 && off == 4) {
        f->dma_address |= be32toh((uint32_t)value);
        dma_run(f);
    } else if (size == 8 && off == 0) {
        f->dma_address = be64toh(value);
        dma_run(f);
    }
}

/* --- ports ---------------------------------------------------------------------------- */
static uint64_t select_read(void *opaque, uint64_t off, unsigned size)
{
    struct fw_cfg *f = opaque;
    (void)size;
    return off == 1 ? next_byte(f) : 0;
}

static void select_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    if (off == 0 && size == 2)
        select_item(opaque, (uint16_t)value);
}

static const struct hvx_region_ops select_ops = {select_read, select_write};
static const struct hvx_region_ops dma_ops = {dma_read, dma_write};

/* --- filling it -------------------------------------------------------------------------- */
/* Directory entry: size and key big-endian, a reserved word, the name. */
static void rebuild_directory(struct fw_cfg *f)
{
    f->directory.len = 0;
    pc_buf_u32(&f->directory, htobe32(f->n_files));
    for (unsigned i = 0; i < f->n_items; i++) {
        const struct fw_item *it = &f->item[i];
        if (!it->name[0])
            continue;
        pc_buf_u32(&f->directory, htobe32((uint32_t)it->data.len));
        pc_buf_u16(&f->directory, htobe16(it->key));
        pc_buf_u16(&f->directory, 0);
        pc_buf_bytes(&f->directory, it->name, sizeof(it->name));
    }
}

static int add(struct fw_cfg *f, uint16_t key, const char *name, struct pc_buf *b, struct hvx_error *err)
{
    if (f->n_items == MAX_ITEMS || (name && f->n_files == FW_CFG_MAX_FILES))
        return hvx_fail(err, -ENOSPC, "pc: more than %u firmware files", FW_CFG_MAX_FILES);
    if (b->failed || b->len > DMA_MAX_BYTES)
        return hvx_fail(err, b->failed ? -ENOMEM : -EFBIG, "pc: firmware file %s: %s", name ? name : "(item)",
                        b->failed ? "no memory" : "too big");
    if (name && strlen(name) >= FW_CFG_NAME)
        return hvx_fail(err, -ENAMETOOLONG, "pc: firmware file name %s is longer than %u characters", name,
                        FW_CFG_NAME - 1);
    struct fw_item *it = &f->item[f->n_items++];
    it->key = key;
    if (name) {
        memcpy(it->name, name, strlen(name));
        f->n_files++;
    }
    it->data = *b;
    memset(b, 0, sizeof(*b));
    rebuild_directory(f);
    return f->directory.failed ? hvx_fail(err, -ENOMEM, "pc: no memory for the firmware directory") : 0;
}

int fw_cfg_add_item(struct fw_cfg *f, uint16_t key, const void *data, size_t n, struct hvx_error *err)
{
    struct pc_buf b = {0};
    pc_buf_bytes(&b, data, n);
    int rc = add(f, key, NULL, &b, err);
    pc_buf_free(&b);
    return rc;
}

int fw_cfg_take_file(struct fw_cfg *f, const char *name, struct pc_buf *b, struct hvx_error *err)
{
    return add(f, (uint16_t)(KEY_FIRST_FILE + f->n_files), name, b, err);
}

int fw_cfg_add_file(struct fw_cfg *f, const char *name, const void *data, size_t n, struct hvx_error *err)
{
    struct pc_buf b = {0};
    pc_buf_bytes(&b, data, n);
    int rc = fw_cfg_take_file(f, name, &b, err);
    pc_buf_free(&b);
    return rc;
}

struct pc_buf *fw_cfg_file(struct fw_cfg *f, const char *name)
{
    for (unsigned i = 0; i < f->n_items; i++)
        if (f->item[i].name[0] && strcmp(f->item[i].name, name) == 0)
            return &f->item[i].data;
    return NULL;
}

int fw_cfg_create(struct pc *pc, struct fw_cfg **out, struct hvx_error *err)
{
    struct fw_cfg *f = calloc(1, sizeof(*f));
    if (!f)
        return hvx_fail(err, -ENOMEM, "pc: no memory for fw_cfg");
    f->pc = pc;
    *out = f;
    rebuild_directory(f);
    uint32_t features = htole32(FEATURE_PORTS | FEATURE_DMA);
    int rc = fw_cfg_add_item(f, KEY_SIGNATURE, "QEMU", 4, err);
    if (rc == 0)
        rc = fw_cfg_add_item(f, KEY_FEATURES, &features, sizeof(features), err);
    if (rc == 0)
        rc = pc_region(pc, HVX_SPACE_PIO, 0x510, 2, 0, "fw_cfg", &select_ops, f, err);
    if (rc == 0)
        rc = pc_region(pc, HVX_SPACE_PIO, 0x514, 8, 0, "fw_cfg-dma", &dma_ops, f, err);
    return rc;
}

void fw_cfg_destroy(struct fw_cfg *f)
{
    if (!f)
        return;
    for (unsigned i = 0; i < f->n_items; i++)
        pc_buf_free(&f->item[i].data);
    pc_buf_free(&f->directory);
    free(f);
}

void fw_cfg_reset(struct fw_cfg *f)
{
    f->key = KEY_SIGNATURE;
    f->offset = 0;
    f->dma_address = 0;
}

int fw_cfg_state(struct fw_cfg *f, struct hvx_stream *s)
{
    hvx_state_u16(s, &f->key);
    hvx_state_u32(s, &f->offset);
    hvx_state_u64(s, &f->dma_address);
    return hvx_state_error(s);
}
