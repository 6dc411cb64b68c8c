/* SPDX-License-Identifier: Apache-2.0
 *
 * dma8237.c - the two ISA DMA controllers with their page registers, and port
 * 0x80. No device of this board moves data through them; the registers can be
 * programmed and read back, which is what firmware and start-up code do.
 *
 * Registers: Intel 8237A data sheet; 82371SB data sheet, section 4.2.
 */
#include "pc.h"

#include <stdlib.h>
#include <string.h>

#define DMA_CHANNELS 4u

struct dma_controller {
    uint16_t base[DMA_CHANNELS][2]; /* address, count as written */
    bool high;                      /* the byte pointer flip-flop */
    uint8_t command, mask, request, temp;
    uint8_t mode[DMA_CHANNELS];
    unsigned shift; /* the second controller's ports are two apart */
};

struct dma8237 {
    struct pc *pc;
    struct dma_controller c[2];
    uint8_t page[16]; /* ports 0x80..0x8f; 0x80 shows POST codes */
};

static void master_clear(struct dma_controller *c)
{
    c->high = false;
    c->command = c->request = c->temp = 0;
    c->mask = 0x0f;
}

static uint64_t dma_read(void *opaque, uint64_t off, unsigned size)
{
    struct dma_controller *c = opaque;
    unsigned reg = (unsigned)off >> c->shift;
    (void)size;
    if (reg < 8) {
        uint16_t v = c->base[reg / 2][reg & 1];
        c->high = !c->high;
        return c->high ? v & 0xff : v >> 8;
    }
    switch (reg) {
    case 8: return 0; /* status: no request, no terminal count */
    case 13: return c->temp;
    case 15: return c->mask | 0xf0;
    default: return 0xff;
    }
}

static void dma_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct dma_controller *c = opaque;
    unsigned reg = (unsigned)off >> c->shift;
    uint8_t v = (uint8_t)value;
    (void)size;
    if (reg < 8) {
        uint16_t *b = &c->base[reg / 2][reg & 1];
        *b = c->high ? (uint16_t)((*b & 0x00ff) | v << 8) : (uint16_t)((*b & 0xff00) | v);
        c->high = !c->high;
        return;
    }
    switch (reg) {
    case 8: c->command = v; break;
    case 9: c->request = v; break;
    case 10: c->mask = (uint8_t)(v & 4 ? c->mask | 1u << (v & 3) : c->mask & ~(1u << (v & 3))); break;
    case 11: c->mode[v & 3] = v; break;
    case 12: c->high = false; break;
    case 13: master_clear(c); break;
    case 14: c->mask = 0; break;
    case 15: c->mask = v & 0x0f; break;
    default: break;
    }
}

static uint64_t page_read(void *opaque, uint64_t off, unsigned size)
{
    (void)size;
    return ((struct dma8237 *)opaque)->page[off & 15];
}

static void page_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    (void)size;
    ((struct dma8237 *)opaque)->page[off & 15] = (uint8_t)value;
}

static const struct hvx_region_ops dma_ops = {dma_read, dma_write};
static const struct hvx_region_ops page_ops = {page_read, page_write};

int dma8237_create(struct pc *pc, struct dma8237 **out, struct hvx_error *err)
{
    struct dma8237 *d = calloc(1, sizeof(*d));
    if (!d)
        return hvx_fail(err, -ENOMEM, "pc: no memory for the DMA controllers");
    d->pc = pc;
    d->c[1].shift = 1;
    *out = d;
    int rc = pc_region(pc, HVX_SPACE_PIO, 0x00, 16, HVX_REGION_MIN1, "dma1", &dma_ops, &d->c[0], err);
    if (rc == 0)
        rc = pc_region(pc, HVX_SPACE_PIO, 0xc0, 32, HVX_REGION_MIN1, "dma2", &dma_ops, &d->c[1], err);
    if (rc == 0)
        rc = pc_region(pc, HVX_SPACE_PIO, 0x80, 16, HVX_REGION_MIN1, "dma-page", &page_ops, d, err);
    return rc;
}

void dma8237_destroy(struct dma8237 *d)
{
    free(d);
}

void dma8237_reset(struct dma8237 *d)
{
    for (unsigned i = 0; i < 2; i++)
        master_clear(&d->c[i]);
    memset(d->page, 0, sizeof(d->page));
}

int dma8237_state(struct dma8237 *d, struct hvx_stream *s)
{
    for (unsigned i = 0; i < 2; i++) {
        struct dma_controller *c = &d->c[i];
        for (unsigned n = 0; n < DMA_CHANNELS; n++) {
            hvx_state_u16(s, &c->base[n][0]);
            hvx_state_u16(s, &c->base[n][1]);
            hvx_state_u8(s, &c->mode[n]);
        }
        hvx_state_bool(s, &c->high);
        hvx_state_u8(s, &c->command);
        hvx_state_u8(s, &c->mask);
        hvx_state_u8(s, &c->request);
        hvx_state_u8(s, &c->temp);
    }
    hvx_state_bytes(s, d->page, sizeof(d->page));
    return hvx_state_error(s);
}
