/* SPDX-License-Identifier: Apache-2.0
 *
 * vga.h - shared by the VGA's registers (vga.c), its memory window
 * (vga_mem.c) and the drawing of what it shows (vga_render.c).
 *
 * Video memory holds the four planes interleaved: byte `o` of plane `p` is at
 * 4 * o + p. Chain-4 and the linear modes of the display interface see the
 * same bytes in order.
 */
#ifndef DEV_PC_VGA_H
#define DEV_PC_VGA_H

#include "pc.h"

#define VGA_VRAM_BYTES (16u << 20)
#define VGA_N_DISPI 11u
#define VGA_MAX_WIDTH 2560u
#define VGA_MAX_HEIGHT 2048u

enum { DISPI_ID, DISPI_XRES, DISPI_YRES, DISPI_BPP, DISPI_ENABLE, DISPI_BANK, DISPI_VIRT_WIDTH, DISPI_VIRT_HEIGHT,
       DISPI_X_OFFSET, DISPI_Y_OFFSET, DISPI_MEMORY_64K };
#define DISPI_ENABLED 0x01u
#define DISPI_GETCAPS 0x02u
#define DISPI_8BIT_DAC 0x20u
#define DISPI_LFB 0x40u
#define DISPI_NOCLEAR 0x80u

struct vga {
    struct pc *pc;
    struct hvx_pci_dev *pci;
    struct hvx_display *display;
    uint8_t *vram; /* page-aligned, VGA_VRAM_BYTES */
    uint8_t misc, feature;
    uint8_t seq_index, seq[8];
    uint8_t gfx_index, gfx[16];
    uint8_t attr_index, attr[32];
    bool attr_data; /* the next write to 0x3c0 is data */
    uint8_t crtc_index, crtc[32];
    uint8_t dac[768], dac_mask, dac_read, dac_write, dac_part;
    bool dac_reading;
    uint16_t dispi_index, dispi[VGA_N_DISPI];
    uint32_t latch;
    uint32_t *pixels; /* of the last picture */
    size_t pixels_bytes;
};

extern const struct hvx_region_ops vga_window_ops; /* 0xa0000..0xbffff */
int vga_render(void *opaque, struct hvx_surface *out);

static inline bool vga_dispi_on(const struct vga *v)
{
    return v->dispi[DISPI_ENABLE] & DISPI_ENABLED;
}
#endif
