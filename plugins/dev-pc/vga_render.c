/* SPDX-License-Identifier: Apache-2.0
 *
 * vga_render.c - draws what the guest shows: text, planar 16 colours, CGA and
 * 256 colour modes, and the linear modes of the display interface.
 */
#include "vga.h"

#include <stdlib.h>
#include <string.h>

#define MIN_SIDE 1u

static uint8_t vram_at(const struct vga *v, uint32_t at)
{
    return v->vram[at % VGA_VRAM_BYTES];
}

static uint32_t vram32(const struct vga *v, uint32_t at)
{
    uint32_t x;
    memcpy(&x, v->vram + (at % VGA_VRAM_BYTES & ~3u), sizeof(x));
    return x;
}

/* Colour of a DAC entry; six bits a channel unless the eight-bit DAC is on. */
static uint32_t dac_colour(const struct vga *v, unsigned i)
{
    const uint8_t *d = v->dac + 3 * (i & v->dac_mask & 0xff);
    uint32_t c[3];
    for (unsigned n = 0; n < 3; n++)
        c[n] = v->dispi[DISPI_ENABLE] & DISPI_8BIT_DAC ? d[n] : (uint32_t)(d[n] << 2 | d[n] >> 4);
    return c[0] << 16 | c[1] << 8 | c[2];
}

/* The 16 colours of text and planar modes go through the attribute controller. */
static void palette16(const struct vga *v, uint32_t out[16])
{
    for (unsigned i = 0; i < 16; i++) {
        unsigned a = v->attr[i];
        if (v->attr[0x10] & 0x80)
            a = (v->attr[0x14] & 0x0fu) << 4 | (a & 0x0f);
        else
            a = (v->attr[0x14] & 0x0cu) << 4 | (a & 0x3f);
        out[i] = dac_colour(v, a);
    }
}

static int surface(struct vga *v, struct hvx_surface *out, uint32_t width, uint32_t height)
{
    if (width > VGA_MAX_WIDTH)
        width = VGA_MAX_WIDTH;
    if (height > VGA_MAX_HEIGHT)
        height = VGA_MAX_HEIGHT;
    width = width < MIN_SIDE ? MIN_SIDE : width;
    height = height < MIN_SIDE ? MIN_SIDE : height;
    size_t bytes = (size_t)width * height * 4;
    if (bytes > v->pixels_bytes) {
        uint32_t *p = realloc(v->pixels, bytes);
        if (!p)
            return -ENOMEM;
        v->pixels = p;
        v->pixels_bytes = bytes;
    }
    memset(v->pixels, 0, bytes);
    out->width = width;
    out->height = height;
    out->stride = width * 4;
    out->pixels = v->pixels;
    return 0;
}

static uint32_t crtc_height(const struct vga *v)
{
    return (v->crtc[0x12] | (v->crtc[7] & 0x02u) << 7 | (v->crtc[7] & 0x40u) << 3) + 1;
}

static uint32_t start_address(const struct vga *v)
{
    return (uint32_t)v->crtc[0x0c] << 8 | v->crtc[0x0d];
}

/* --- text ----------------------------------------------------------------------------- */
struct text_mode {
    uint32_t cell_width, cell_height, columns, rows;
    uint32_t font[2]; /* where the fonts of attribute bit 3 begin */
    uint32_t palette[16];
};

static void text_mode(const struct vga *v, struct text_mode *t)
{
    uint8_t s = v->seq[3];
    t->cell_width = v->seq[1] & 1 ? 8 : 9;
    t->cell_height = (v->crtc[9] & 0x1fu) + 1;
    t->columns = v->crtc[1] + 1u;
    t->rows = crtc_height(v) / t->cell_height;
    if (t->rows * t->cell_height > VGA_MAX_HEIGHT)
        t->rows = VGA_MAX_HEIGHT / t->cell_height;
    if (t->columns * t->cell_width > VGA_MAX_WIDTH)
        t->columns = VGA_MAX_WIDTH / t->cell_width;
    /* map A serves attribute bit 3 set, map B clear; blocks of 8 KiB in plane 2 */
    t->font[0] = ((s >> 4 & 1u) | (s << 1 & 6u)) * 8192;
    t->font[1] = ((s >> 5 & 1u) | (s >> 1 & 6u)) * 8192;
    palette16(v, t->palette);
}

static void draw_cell(const struct vga *v, const struct text_mode *t, const struct hvx_surface *out, uint32_t col,
                      uint32_t row, uint8_t ch, uint8_t attr)
{
    uint32_t fg = t->palette[attr & 15];
    uint32_t bg = t->palette[v->attr[0x10] & 8 ? attr >> 4 & 7 : attr >> 4];
    uint32_t font = t->font[attr >> 3 & 1] + ch * 32u;
    for (uint32_t y = 0; y < t->cell_height; y++) {
        uint32_t *p = out->pixels + (size_t)(row * t->cell_height + y) * out->width + col * t->cell_width;
        uint8_t bits = vram_at(v, (font + y) * 4 + 2);
        for (uint32_t x = 0; x < 8; x++)
            p[x] = bits & 0x80u >> x ? fg : bg;
        if (t->cell_width == 9) /* line graphics join their neighbours */
            p[8] = (bits & 1) && (v->attr[0x10] & 4) && ch >= 0xc0 && ch <= 0xdf ? fg : bg;
    }
}

static void draw_cursor(const struct vga *v, const struct text_mode *t, const struct hvx_surface *out, uint32_t line)
{
    uint32_t at = (uint32_t)v->crtc[0x0e] << 8 | v->crtc[0x0f], start = start_address(v);
    uint32_t first = v->crtc[0x0a] & 0x1f, last = v->crtc[0x0b] & 0x1f;
    if ((v->crtc[0x0a] & 0x20) || at < start || !line)
        return;
    uint32_t row = (at - start) / line, col = (at - start) % line;
    if (row >= t->rows || col >= t->columns)
        return;
    uint32_t fg = t->palette[vram_at(v, at * 4 + 1) & 15];
    for (uint32_t y = first; y <= last && y < t->cell_height; y++) {
        uint32_t *p = out->pixels + (size_t)(row * t->cell_height + y) * out->width + col * t->cell_width;
        for (uint32_t x = 0; x < t->cell_width; x++)
            p[x] = fg;
    }
}

static int render_text(struct vga *v, struct hvx_surface *out)
{
    struct text_mode t;
    text_mode(v, &t);
    int rc = surface(v, out, t.columns * t.cell_width, t.rows * t.cell_height);
    if (rc)
        return rc;
    uint32_t line = v->crtc[0x13] * 2u; /* cells from row to row */
    for (uint32_t row = 0; row < t.rows; row++) {
        for (uint32_t col = 0; col < t.columns; col++) {
            uint32_t at = (start_address(v) + row * line + col) * 4;
            draw_cell(v, &t, out, col, row, vram_at(v, at), vram_at(v, at + 1));
        }
    }
    draw_cursor(v, &t, out, line);
    return 0;
}

/* --- graphics by the CRTC -------------------------------------------------------------------- */
static void planar_line(const struct vga *v, uint32_t *p, uint32_t width, uint32_t at, const uint32_t palette[16])
{
    unsigned enabled = v->attr[0x12] & 15;
    for (uint32_t x = 0; x < width; x++) {
        uint32_t four = vram32(v, at + x / 8 * 4);
        unsigned bit = 7 - x % 8, c = 0;
        for (unsigned plane = 0; plane < 4; plane++)
            c |= (four >> (8 * plane + bit) & 1) << plane;
        p[x] = palette[c & enabled];
    }
}

/* Two bits a pixel, bytes alternating between planes 0 and 1. */
static void cga_line(const struct vga *v, uint32_t *p, uint32_t width, uint32_t at, const uint32_t palette[16])
{
    unsigned enabled = v->attr[0x12] & 15;
    for (uint32_t x = 0; x < width; x++) {
        uint8_t b = vram_at(v, at + x / 8 * 4 + (x / 4 & 1));
        p[x] = palette[b >> (6 - 2 * (x % 4)) & 3 & enabled];
    }
}

static void byte_line(const struct vga *v, uint32_t *p, uint32_t width, uint32_t at)
{
    for (uint32_t x = 0; x < width; x++)
        p[x] = dac_colour(v, vram_at(v, at + x));
}

static int render_planar(struct vga *v, struct hvx_surface *out)
{
    unsigned kind = v->gfx[5] >> 5 & 3;
    uint32_t width = (v->crtc[1] + 1u) * 8, height = crtc_height(v);
    uint32_t repeat = ((v->crtc[9] & 0x1fu) + 1) << (v->crtc[9] >> 7);
    uint32_t stride = v->crtc[0x13] * 8u, palette[16];
    if (vga_dispi_on(v)) { /* 4 bits a pixel of the display interface */
        width = v->dispi[DISPI_XRES];
        height = v->dispi[DISPI_YRES];
        repeat = 1;
        stride = v->dispi[DISPI_VIRT_WIDTH] / 2u;
        kind = 0;
    }
    bool cga_rows = kind != 2 && !(v->crtc[0x17] & 1); /* row bit 0 selects the 8 KiB half */
    if (kind >= 2)
        width /= 2;
    if (kind < 2 && cga_rows)
        repeat = repeat > 1 ? repeat / 2 : 1;
    height /= repeat;
    int rc = surface(v, out, width, height);
    if (rc)
        return rc;
    palette16(v, palette);
    for (uint32_t y = 0; y < out->height; y++) {
        uint32_t *p = out->pixels + (size_t)y * out->width;
        uint32_t row = cga_rows ? y / 2 : y;
        uint32_t at = start_address(v) * 4 + row * stride + (cga_rows && (y & 1) ? 0x2000u * 4 / 2 : 0);
        if (kind >= 2)
            byte_line(v, p, out->width, at);
        else if (kind == 1)
            cga_line(v, p, out->width, at, palette);
        else
            planar_line(v, p, out->width, at, palette);
    }
    return 0;
}

/* --- linear modes ------------------------------------------------------------------------------ */
static uint32_t linear_pixel(const struct vga *v, uint32_t at, unsigned bpp)
{
    uint32_t x;
    switch (bpp) {
    case 8:
        return dac_colour(v, vram_at(v, at));
    case 15:
        x = vram_at(v, at) | (uint32_t)vram_at(v, at + 1) << 8;
        return (x >> 10 & 31) << 19 | (x >> 5 & 31) << 11 | (x & 31) << 3;
    case 16:
        x = vram_at(v, at) | (uint32_t)vram_at(v, at + 1) << 8;
        return (x >> 11 & 31) << 19 | (x >> 5 & 63) << 10 | (x & 31) << 3;
    default:
        return vram_at(v, at) | (uint32_t)vram_at(v, at + 1) << 8 | (uint32_t)vram_at(v, at + 2) << 16;
    }
}

static int render_linear(struct vga *v, struct hvx_surface *out)
{
    unsigned bpp = v->dispi[DISPI_BPP], bytes = (bpp + 7) / 8;
    uint32_t stride = v->dispi[DISPI_VIRT_WIDTH] * bytes;
    uint32_t start = v->dispi[DISPI_Y_OFFSET] * stride + v->dispi[DISPI_X_OFFSET] * bytes;
    int rc = surface(v, out, v->dispi[DISPI_XRES], v->dispi[DISPI_YRES]);
    if (rc)
        return rc;
    for (uint32_t y = 0; y < out->height; y++) {
        uint32_t *p = out->pixels + (size_t)y * out->width;
        for (uint32_t x = 0; x < out->width; x++)
            p[x] = linear_pixel(v, start + y * stride + x * bytes, bpp);
    }
    return 0;
}

int vga_render(void *opaque, struct hvx_surface *out)
{
    struct vga *v = opaque;
    if (vga_dispi_on(v) && v->dispi[DISPI_BPP] != 4)
        return render_linear(v, out);
    if ((v->seq[1] & 0x20) || !(v->attr_index & 0x20)) /* screen off */
        return surface(v, out, 640, 400);
    if (v->gfx[6] & 1)
        return render_planar(v, out);
    return render_text(v, out);
}
