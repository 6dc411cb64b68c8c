/* SPDX-License-Identifier: Apache-2.0
 *
 * vga_mem.c - the window at 0xa0000..0xbffff: how an access reaches the four
 * planes. Write modes, latches and plane masks: IBM VGA technical reference,
 * "Graphics Controller".
 */
#include "vga.h"

#define BAD UINT32_MAX

static const uint32_t plane_mask[16] = {
    0x00000000, 0x000000ff, 0x0000ff00, 0x0000ffff, 0x00ff0000, 0x00ff00ff, 0x00ffff00, 0x00ffffff,
    0xff000000, 0xff0000ff, 0xff00ff00, 0xff00ffff, 0xffff0000, 0xffff00ff, 0xffffff00, 0xffffffff,
};

static uint32_t spread(uint8_t b)
{
    return b * 0x01010101u;
}

/* Offset in the window to offset in the selected map; BAD outside it. */
static uint32_t window_offset(const struct vga *v, uint32_t off)
{
    switch (v->gfx[6] >> 2 & 3) {
    case 0: break;
    case 1:
        if (off >= 0x10000)
            return BAD;
        break;
    case 2:
        off -= 0x10000;
        if (off >= 0x8000)
            return BAD;
        break;
    default:
        off -= 0x18000;
        if (off >= 0x8000)
            return BAD;
    }
    return off + ((uint32_t)v->dispi[DISPI_BANK] << 16);
}

/* Linear modes of the display interface: a 64 KiB bank, byte for byte. */
static bool linear(const struct vga *v)
{
    return vga_dispi_on(v) && v->dispi[DISPI_BPP] != 4;
}

static uint32_t *planes(struct vga *v, uint32_t off)
{
    return (uint32_t *)(void *)(v->vram + ((size_t)off * 4) % VGA_VRAM_BYTES);
}

static uint8_t read_byte(struct vga *v, uint32_t off)
{
    if (linear(v)) {
        if (off >= 0x10000)
            return 0xff;
        return v->vram[((uint32_t)v->dispi[DISPI_BANK] << 16) + off];
    }
    off = window_offset(v, off);
    if (off == BAD)
        return 0xff;
    if (v->seq[4] & 0x08) /* chain 4 */
        return v->vram[off % VGA_VRAM_BYTES];
    if (v->gfx[5] & 0x10) { /* odd/even */
        /* an even and an odd byte share offset off/2*2 of planes 0 and 1 (or 2 and 3) */
        return ((uint8_t *)planes(v, (off & ~1u) / 2))[(v->gfx[4] & 2u) | (off & 1)];
    }
    v->latch = *planes(v, off);
    if (!(v->gfx[5] & 0x08))
        return (uint8_t)(v->latch >> (8 * (v->gfx[4] & 3)));
    /* read mode 1: bits where all planes of interest match the colour */
    uint32_t diff = (v->latch ^ plane_mask[v->gfx[2] & 15]) & plane_mask[v->gfx[7] & 15];
    diff |= diff >> 16;
    return (uint8_t) ~(diff | diff >> 8);
}

static uint32_t logic(const struct vga *v, uint32_t data)
{
    switch (v->gfx[3] >> 3 & 3) {
    case 1: return data & v->latch;
    case 2: return data | v->latch;
    case 3: return data ^ v->latch;
    default: return data;
    }
}

static uint8_t rotate(const struct vga *v, uint8_t b)
{
    unsigned n = v->gfx[3] & 7;
    return (uint8_t)(b >> n | b << (8 - n));
}

/* The 32 bits that a planar write stores, before the plane mask. */
static uint32_t planar_value(const struct vga *v, uint8_t b)
{
    uint32_t data, mask = spread(v->gfx[8]);
    switch (v->gfx[5] & 3) {
    case 1:
        return v->latch;
    case 2:
        data = plane_mask[b & 15];
        break;
    case 3:
        mask &= spread(rotate(v, b));
        data = plane_mask[v->gfx[0] & 15];
        break;
    default: {
        uint32_t set = plane_mask[v->gfx[0] & 15], enable = plane_mask[v->gfx[1] & 15];
        data = (spread(rotate(v, b)) & ~enable) | (set & enable);
        break;
    }
    }
    data = logic(v, data);
    return (data & mask) | (v->latch & ~mask);
}

static void write_byte(struct vga *v, uint32_t off, uint8_t b)
{
    if (linear(v)) {
        if (off < 0x10000)
            v->vram[((uint32_t)v->dispi[DISPI_BANK] << 16) + off] = b;
        return;
    }
    off = window_offset(v, off);
    if (off == BAD)
        return;
    if (v->seq[4] & 0x08) {
        if (v->seq[2] & 1u << (off & 3))
            v->vram[off % VGA_VRAM_BYTES] = b;
    } else if (v->gfx[5] & 0x10) {
        if (v->seq[2] & 1u << (off & 1))
            ((uint8_t *)planes(v, (off & ~1u) / 2))[off & 1] = b;
    } else {
        uint32_t *p = planes(v, off), mask = plane_mask[v->seq[2] & 15];
        *p = (planar_value(v, b) & mask) | (*p & ~mask);
    }
}

static uint64_t window_read(void *opaque, uint64_t off, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)read_byte(opaque, (uint32_t)off + i) << (8 * i);
    return value;
}

static void window_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        write_byte(opaque, (uint32_t)off + i, (uint8_t)(value >> (8 * i)));
}

const struct hvx_region_ops vga_window_ops = {window_read, window_write};
