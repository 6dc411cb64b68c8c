/* SPDX-License-Identifier: Apache-2.0
 *
 * vga.c - standard VGA registers, the display interface that Bochs brought in
 * (ports 0x1ce/0x1cf), and the PCI function 1234:1111 with the frame buffer
 * in BAR 0 and the same registers in BAR 2.
 *
 * Registers: IBM VGA technical reference; the display interface: Bochs'
 * vbe_display_api; BAR 2: QEMU's docs/specs/standard-vga.
 */
#define _GNU_SOURCE
#include "vga.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MMIO_BYTES 4096u
#define MMIO_VGA 0x400u
#define MMIO_DISPI 0x500u
#define DISPI_ID0 0xb0c0u
#define DISPI_ID5 0xb0c5u
#define MISC_COLOUR 0x01u
#define ROM_MAX (1u << 20)

/* --- the four indexed blocks, DAC, and plain registers --------------------------- */
static void attr_write(struct vga *v, uint8_t b)
{
    if (!v->attr_data)
        v->attr_index = b & 0x3f;
    else if ((v->attr_index & 0x1f) < 0x15)
        v->attr[v->attr_index & 0x1f] = b;
    v->attr_data = !v->attr_data;
}

static void crtc_write(struct vga *v, uint8_t b)
{
    /* bit 7 of register 0x11 protects 0..7, but for line compare's bit in 7 */
    if ((v->crtc[0x11] & 0x80) && v->crtc_index < 8) {
        if (v->crtc_index == 7)
            v->crtc[7] = (uint8_t)((v->crtc[7] & ~0x10) | (b & 0x10));
        return;
    }
    if (v->crtc_index < sizeof(v->crtc))
        v->crtc[v->crtc_index] = b;
}

static void dac_data_write(struct vga *v, uint8_t b)
{
    v->dac[v->dac_write * 3 + v->dac_part] = v->dispi[DISPI_ENABLE] & DISPI_8BIT_DAC ? b : b & 0x3f;
    if (++v->dac_part == 3) {
        v->dac_part = 0;
        v->dac_write++;
    }
}

static uint8_t dac_data_read(struct vga *v)
{
    uint8_t b = v->dac[v->dac_read * 3 + v->dac_part];
    if (++v->dac_part == 3) {
        v->dac_part = 0;
        v->dac_read++;
    }
    return b;
}

/* Retrace bits from the clock: 60 pictures a second of 31.5 kHz lines. */
static uint8_t input_status1(struct vga *v)
{
    uint64_t now = v->pc->host->clock_ns();
    v->attr_data = false;
    if (now % 16666667 > 15900000)
        return 0x09;
    return now % 31778 > 25422 ? 0x01 : 0x00;
}

/* Ports 0x3b4.. and 0x3d4.. are the same registers; misc bit 0 says which set answers. */
static bool wrong_set(const struct vga *v, unsigned port)
{
    bool mono_port = port < 0x3c0, mono = !(v->misc & MISC_COLOUR);
    return (mono_port || port >= 0x3d0) && mono_port != mono;
}

static uint8_t port_read(struct vga *v, unsigned port)
{
    if (wrong_set(v, port))
        return 0xff;
    switch (port) {
    case 0x3c0: return v->attr_data ? 0 : v->attr_index;
    case 0x3c1: return (v->attr_index & 0x1f) < 0x15 ? v->attr[v->attr_index & 0x1f] : 0;
    case 0x3c2: return 0x10; /* switch sense: a colour display */
    case 0x3c4: return v->seq_index;
    case 0x3c5: return v->seq[v->seq_index & 7];
    case 0x3c6: return v->dac_mask;
    case 0x3c7: return v->dac_reading ? 3 : 0;
    case 0x3c8: return v->dac_write;
    case 0x3c9: return dac_data_read(v);
    case 0x3ca: return v->feature;
    case 0x3cc: return v->misc;
    case 0x3ce: return v->gfx_index;
    case 0x3cf: return v->gfx[v->gfx_index & 15];
    case 0x3b4: case 0x3d4: return v->crtc_index;
    case 0x3b5: case 0x3d5: return v->crtc_index < sizeof(v->crtc) ? v->crtc[v->crtc_index] : 0;
    case 0x3ba: case 0x3da: return input_status1(v);
    default: return 0xff;
    }
}

static void port_write(struct vga *v, unsigned port, uint8_t b)
{
    static const uint8_t seq_mask[8] = {0x03, 0x3d, 0x0f, 0x3f, 0x0e, 0, 0, 0xff};
    static const uint8_t gfx_mask[16] = {0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff};
    if (wrong_set(v, port))
        return;
    switch (port) {
    case 0x3c0: attr_write(v, b); break;
    case 0x3c2: v->misc = b & (uint8_t)~0x10; break;
    case 0x3c4: v->seq_index = b & 7; break;
    case 0x3c5: v->seq[v->seq_index & 7] = b & seq_mask[v->seq_index & 7]; break;
    case 0x3c6: v->dac_mask = b; break;
    case 0x3c7:
        v->dac_read = b;
        v->dac_part = 0;
        v->dac_reading = true;
        break;
    case 0x3c8:
        v->dac_write = b;
        v->dac_part = 0;
        v->dac_reading = false;
        break;
    case 0x3c9: dac_data_write(v, b); break;
    case 0x3ce: v->gfx_index = b & 15; break;
    case 0x3cf: v->gfx[v->gfx_index & 15] = b & gfx_mask[v->gfx_index & 15]; break;
    case 0x3b4: case 0x3d4: v->crtc_index = b; break;
    case 0x3b5: case 0x3d5: crtc_write(v, b); break;
    case 0x3ba: case 0x3da: v->feature = b & 0x10; break;
    default: break;
    }
}

/* --- display interface -------------------------------------------------------------- */
static unsigned dispi_stride(const struct vga *v, unsigned width)
{
    unsigned bpp = v->dispi[DISPI_BPP];
    return bpp == 4 ? width / 2 : width * ((bpp + 7) / 8);
}

/* How many lines of the virtual width there is memory for. */
static void dispi_fix_virtual(struct vga *v)
{
    unsigned width = v->dispi[DISPI_VIRT_WIDTH];
    if (width < v->dispi[DISPI_XRES])
        width = v->dispi[DISPI_XRES];
    width &= ~7u;
    if (width == 0)
        width = 8;
    if (width > 8192)
        width = 8192;
    unsigned lines = VGA_VRAM_BYTES / dispi_stride(v, width);
    v->dispi[DISPI_VIRT_WIDTH] = (uint16_t)width;
    v->dispi[DISPI_VIRT_HEIGHT] = (uint16_t)(lines < 65535 ? lines : 65535);
}

static bool good_bpp(unsigned bpp)
{
    return bpp == 4 || bpp == 8 || bpp == 15 || bpp == 16 || bpp == 24 || bpp == 32;
}

static void dispi_enable(struct vga *v, uint16_t value)
{
    bool was = vga_dispi_on(v);
    if ((value & DISPI_ENABLED) && !was) {
        /* A mode that does not fit memory is made to fit. */
        unsigned stride = dispi_stride(v, v->dispi[DISPI_XRES] & ~7u);
        if (stride && v->dispi[DISPI_YRES] > VGA_VRAM_BYTES / stride)
            v->dispi[DISPI_YRES] = (uint16_t)(VGA_VRAM_BYTES / stride);
        v->dispi[DISPI_VIRT_WIDTH] = v->dispi[DISPI_XRES];
        v->dispi[DISPI_X_OFFSET] = v->dispi[DISPI_Y_OFFSET] = 0;
        dispi_fix_virtual(v);
        if (!(value & DISPI_NOCLEAR))
            memset(v->vram, 0, (size_t)v->dispi[DISPI_YRES] * dispi_stride(v, v->dispi[DISPI_VIRT_WIDTH]));
    }
    v->dispi[DISPI_ENABLE] = value;
    if (!(value & DISPI_ENABLED))
        v->dispi[DISPI_BANK] = 0;
}

static uint16_t dispi_read(struct vga *v, unsigned index)
{
    if (index == DISPI_MEMORY_64K)
        return VGA_VRAM_BYTES >> 16;
    if (index >= VGA_N_DISPI)
        return 0;
    if (v->dispi[DISPI_ENABLE] & DISPI_GETCAPS) {
        switch (index) {
        case DISPI_XRES: return VGA_MAX_WIDTH;
        case DISPI_YRES: return VGA_MAX_HEIGHT;
        case DISPI_BPP: return 32;
        default: break;
        }
    }
    return v->dispi[index];
}

static void dispi_write(struct vga *v, unsigned index, uint16_t value)
{
    switch (index) {
    case DISPI_ID:
        if (value >= DISPI_ID0 && value <= DISPI_ID5)
            v->dispi[DISPI_ID] = value;
        break;
    case DISPI_XRES:
        if (value >= 8 && value <= VGA_MAX_WIDTH)
            v->dispi[DISPI_XRES] = value & (uint16_t)~7u;
        break;
    case DISPI_YRES:
        if (value >= 1 && value <= VGA_MAX_HEIGHT)
            v->dispi[DISPI_YRES] = value;
        break;
    case DISPI_BPP:
        if (value == 0)
            value = 8;
        if (good_bpp(value))
            v->dispi[DISPI_BPP] = value;
        break;
    case DISPI_ENABLE:
        dispi_enable(v, value);
        break;
    case DISPI_BANK:
        if (value < VGA_VRAM_BYTES >> 16)
            v->dispi[DISPI_BANK] = value;
        break;
    case DISPI_VIRT_WIDTH:
        v->dispi[DISPI_VIRT_WIDTH] = value;
        dispi_fix_virtual(v);
        break;
    case DISPI_X_OFFSET:
    case DISPI_Y_OFFSET:
        v->dispi[index] = value;
        break;
    default:
        break;
    }
}

/* --- ports and BAR 2 ------------------------------------------------------------------- */
static uint64_t vga_ports_read(void *opaque, uint64_t off, unsigned size)
{
    (void)size;
    return port_read(opaque, 0x3b0 + (unsigned)off);
}

static void vga_ports_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    (void)size;
    port_write(opaque, 0x3b0 + (unsigned)off, (uint8_t)value);
}

static uint64_t dispi_ports_read(void *opaque, uint64_t off, unsigned size)
{
    struct vga *v = opaque;
    if (size != 2)
        return ~0ull;
    return off == 0 ? v->dispi_index : dispi_read(v, v->dispi_index);
}

static void dispi_ports_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct vga *v = opaque;
    if (size != 2)
        return;
    if (off == 0)
        v->dispi_index = (uint16_t)value;
    else
        dispi_write(v, v->dispi_index, (uint16_t)value);
}

static uint64_t mmio_read(void *opaque, uint64_t off, unsigned size)
{
    struct vga *v = opaque;
    if (off >= MMIO_DISPI && off < MMIO_DISPI + 2 * VGA_N_DISPI)
        return (uint64_t)dispi_read(v, (unsigned)(off - MMIO_DISPI) / 2) >> (8 * (off & 1));
    if (off >= MMIO_VGA && off + size <= MMIO_VGA + 0x20) {
        uint64_t value = 0;
        for (unsigned i = 0; i < size; i++)
            value |= (uint64_t)port_read(v, 0x3c0 + (unsigned)(off - MMIO_VGA) + i) << (8 * i);
        return value;
    }
    return 0; /* no EDID, no extended registers */
}

static void mmio_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct vga *v = opaque;
    if (off >= MMIO_DISPI && off < MMIO_DISPI + 2 * VGA_N_DISPI && size == 2 && !(off & 1)) {
        dispi_write(v, (unsigned)(off - MMIO_DISPI) / 2, (uint16_t)value);
    } else if (off >= MMIO_VGA && off + size <= MMIO_VGA + 0x20) {
        for (unsigned i = 0; i < size; i++)
            port_write(v, 0x3c0 + (unsigned)(off - MMIO_VGA) + i, (uint8_t)(value >> (8 * i)));
    }
}

static const struct hvx_region_ops ports_ops = {vga_ports_read, vga_ports_write};
static const struct hvx_region_ops dispi_ops = {dispi_ports_read, dispi_ports_write};
static const struct hvx_region_ops mmio_ops = {mmio_read, mmio_write};
static const struct hvx_display_ops display_ops = {.size = sizeof(display_ops), .render = vga_render};

/* --- life -------------------------------------------------------------------------------- */
static int add_function(struct pc *pc, struct vga *v, struct hvx_error *err)
{
    struct pc_buf rom = {0};
    int rc = 0;
    if (!pc->direct) /* a kernel started without firmware has no use for it */
        rc = pc_buf_file(&rom, pc->conf.vga_rom, ROM_MAX, "VGA BIOS (package seabios; vga=off does without)", err);
    if (rc)
        return rc;
    struct hvx_pci_desc desc = {
        .size = sizeof(desc),
        .devfn = PC_DEVFN_VGA,
        .vendor = 0x1234,
        .device = 0x1111,
        .subsys_vendor = PC_SUBSYS_VENDOR,
        .subsys = PC_SUBSYS_ID,
        .class_code = 0x030000,
        .revision = 2,
        .rom = rom.data,
        .rom_size = (uint32_t)rom.len,
    };
    desc.bars[0] = (struct hvx_pci_bar){
        .type = HVX_BAR_MEM32, .flags = HVX_BAR_PREFETCH, .size = VGA_VRAM_BYTES, .ram = v->vram};
    desc.bars[2] = (struct hvx_pci_bar){.type = HVX_BAR_MEM32, .size = MMIO_BYTES, .ops = &mmio_ops};
    rc = pc->host->pci_add(pc->vm, &desc, NULL, v, &v->pci, err);
    pc_buf_free(&rom);
    return rc;
}

int vga_create(struct pc *pc, struct vga **out, struct hvx_error *err)
{
    struct vga *v = calloc(1, sizeof(*v));
    if (!v)
        return hvx_fail(err, -ENOMEM, "pc: no memory for the VGA");
    v->pc = pc;
    *out = v;
    void *vram = mmap(NULL, VGA_VRAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (vram == MAP_FAILED)
        return hvx_fail(err, -ENOMEM, "pc: no memory for the VGA's %u MiB", VGA_VRAM_BYTES >> 20);
    v->vram = vram;

    int rc = add_function(pc, v, err);
    if (rc == 0)
        rc = pc_region(pc, HVX_SPACE_MMIO, 0xa0000, 0x20000, 0, "vga-window", &vga_window_ops, v, err);
    if (rc == 0)
        rc = pc_region(pc, HVX_SPACE_PIO, 0x3b0, 0x30, HVX_REGION_MIN1, "vga", &ports_ops, v, err);
    if (rc == 0)
        rc = pc_region(pc, HVX_SPACE_PIO, 0x1ce, 3, 0, "vga-dispi", &dispi_ops, v, err);
    if (rc == 0) {
        rc = pc->host->display_add(pc->vm, &display_ops, v, &v->display);
        if (rc)
            hvx_fail(err, rc, "pc: the display could not be connected: %s", strerror(-rc));
    }
    return rc;
}

void vga_destroy(struct vga *v)
{
    if (!v)
        return;
    if (v->display)
        v->pc->host->display_del(v->display);
    if (v->pci)
        v->pc->host->pci_del(v->pc->vm, v->pci);
    if (v->vram)
        munmap(v->vram, VGA_VRAM_BYTES);
    free(v->pixels);
    free(v);
}

void vga_reset(struct vga *v)
{
    v->misc = MISC_COLOUR;
    v->feature = 0;
    v->seq_index = v->gfx_index = v->attr_index = v->crtc_index = 0;
    v->attr_data = v->dac_reading = false;
    memset(v->seq, 0, sizeof(v->seq));
    memset(v->gfx, 0, sizeof(v->gfx));
    memset(v->attr, 0, sizeof(v->attr));
    memset(v->crtc, 0, sizeof(v->crtc));
    memset(v->dac, 0, sizeof(v->dac));
    memset(v->dispi, 0, sizeof(v->dispi));
    v->dac_mask = 0xff;
    v->dac_read = v->dac_write = v->dac_part = 0;
    v->dispi[DISPI_ID] = DISPI_ID5;
    v->dispi[DISPI_BPP] = 8;
    v->dispi_index = 0;
    v->latch = 0;
    /* zero pages anew cost less than zeroing 16 MiB that nobody used */
    if (madvise(v->vram, VGA_VRAM_BYTES, MADV_DONTNEED))
        memset(v->vram, 0, VGA_VRAM_BYTES);
}

int vga_state(struct vga *v, struct hvx_stream *s)
{
    uint8_t *const regs[] = {&v->misc,       &v->feature,    &v->seq_index, &v->gfx_index, &v->attr_index,
                             &v->crtc_index, &v->dac_mask,   &v->dac_read,  &v->dac_write, &v->dac_part};
    for (unsigned i = 0; i < sizeof(regs) / sizeof(regs[0]); i++)
        hvx_state_u8(s, regs[i]);
    hvx_state_bool(s, &v->attr_data);
    hvx_state_bool(s, &v->dac_reading);
    hvx_state_bytes(s, v->seq, sizeof(v->seq));
    hvx_state_bytes(s, v->gfx, sizeof(v->gfx));
    hvx_state_bytes(s, v->attr, sizeof(v->attr));
    hvx_state_bytes(s, v->crtc, sizeof(v->crtc));
    hvx_state_bytes(s, v->dac, sizeof(v->dac));
    hvx_state_u16(s, &v->dispi_index);
    for (unsigned i = 0; i < VGA_N_DISPI; i++)
        hvx_state_u16(s, &v->dispi[i]);
    hvx_state_u32(s, &v->latch);
    hvx_state_bytes(s, v->vram, VGA_VRAM_BYTES);
    if (v->dac_part > 2 || !good_bpp(v->dispi[DISPI_BPP]) || v->dispi[DISPI_BANK] >= VGA_VRAM_BYTES >> 16 ||
        v->dispi[DISPI_XRES] > VGA_MAX_WIDTH || v->dispi[DISPI_YRES] > VGA_MAX_HEIGHT) {
        v->dac_part = 0;
        memset(v->dispi, 0, sizeof(v->dispi));
        v->dispi[DISPI_BPP] = 8;
        hvx_state_fail(s, -EINVAL, "VGA: a register of the display interface is out of range");
    }
    return hvx_state_error(s);
}
