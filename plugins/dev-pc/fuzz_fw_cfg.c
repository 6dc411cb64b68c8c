/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target: firmware configuration. The input is a sequence of port
 * accesses and of DMA descriptors, with any address, length and control word.
 */
#include "test_board.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STEPS 400u
#define DESCRIPTOR 0x3000u

struct input {
    const uint8_t *p;
    size_t n;
};

static uint64_t take(struct input *in, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes && in->n; i++, in->n--)
        v |= (uint64_t)*in->p++ << (8 * i);
    return v;
}

static void dma(struct board *b, struct input *in)
{
    struct {
        uint32_t control, length;
        uint64_t address;
    } d;
    uint8_t kind = (uint8_t)take(in, 1);
    d.control = htobe32((uint32_t)take(in, 1) | (uint32_t)take(in, 2) << 16);
    d.length = htobe32((uint32_t)take(in, kind & 1 ? 4 : 2));
    d.address = htobe64(take(in, kind & 2 ? 8 : 3));
    memcpy(hvxtest_mem(b->vm, DESCRIPTOR, sizeof(d)), &d, sizeof(d));
    out32(b, 0x514, kind & 4 ? (uint32_t)take(in, 4) : 0);
    out32(b, 0x518, htobe32(kind & 8 ? (uint32_t)take(in, 4) : DESCRIPTOR));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    struct board b;
    board_new(&b, board_vm(), "vga=off");
    for (unsigned i = 0; i < MAX_STEPS && in.n; i++) {
        uint8_t what = (uint8_t)take(&in, 1);
        uint16_t port = (uint16_t)(0x510 + take(&in, 1) % 12);
        unsigned n = 1u << (what >> 2 & 3);
        switch (what & 3) {
        case 0: out16(&b, 0x510, (uint16_t)take(&in, 2)); break;
        case 1: dma(&b, &in); break;
        case 2: hvxtest_pio_write(b.vm, port, n > 4 ? 4 : n, take(&in, 4)); break;
        default: hvxtest_pio_read(b.vm, port, n > 4 ? 4 : n);
        }
    }
    /* whatever came before, the device still answers */
    out16(&b, 0x510, 0);
    if (in8(&b, 0x511) != 'Q' || in8(&b, 0x511) != 'E')
        abort();
    board_free(&b);
    return 0;
}
