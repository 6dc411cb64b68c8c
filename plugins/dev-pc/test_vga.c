/* SPDX-License-Identifier: Apache-2.0
 *
 * test_vga.c - what the screen shows: text, planar and linear modes, drawn
 * through the ports and windows that a guest uses.
 */
#include "test_board.h"

#include <stdlib.h>
#include <string.h>

static int setup(void **state)
{
    static struct board b;
    board_new(&b, board_vm(), NULL);
    hvxtest_pci_enable(hvxtest_pci_at(b.vm, 0x10));
    *state = &b;
    return 0;
}

static int teardown(void **state)
{
    board_free(*state);
    return 0;
}

static void indexed(struct board *b, uint16_t port, uint8_t index, uint8_t v)
{
    out8(b, port, index);
    out8(b, port + 1, v);
}

static void attribute(struct board *b, uint8_t index, uint8_t v)
{
    in8(b, 0x3da);
    out8(b, 0x3c0, index);
    out8(b, 0x3c0, v);
}

/* Palette entry i is a recognisable colour: i in each channel, times four as a DAC of six bits shows it. */
static uint32_t grey(unsigned i)
{
    uint32_t c = i << 2 | i >> 4;
    return c << 16 | c << 8 | c;
}

static void common(struct board *b)
{
    out8(b, 0x3c2, 0x67);
    for (unsigned i = 0; i < 16; i++)
        attribute(b, (uint8_t)i, (uint8_t)i);
    attribute(b, 0x12, 0x0f);
    out8(b, 0x3c8, 0);
    for (unsigned i = 0; i < 64; i++)
        for (unsigned n = 0; n < 3; n++)
            out8(b, 0x3c9, (uint8_t)i);
}

static void screen_on(struct board *b)
{
    in8(b, 0x3da);
    out8(b, 0x3c0, 0x20);
}

static void crtc_height(struct board *b, unsigned lines)
{
    lines--;
    indexed(b, 0x3d4, 0x12, (uint8_t)lines);
    indexed(b, 0x3d4, 0x07, (uint8_t)((lines >> 7 & 2) | (lines >> 3 & 0x40)));
}

static void text_mode(struct board *b)
{
    common(b);
    /* font for 'A' through plane 2: a filled left half in each of 16 rows */
    indexed(b, 0x3c4, 2, 4);
    indexed(b, 0x3c4, 4, 6);
    indexed(b, 0x3ce, 5, 0);
    indexed(b, 0x3ce, 6, 4);
    indexed(b, 0x3ce, 8, 0xff);
    for (unsigned y = 0; y < 16; y++)
        hvxtest_mmio_write(b->vm, 0xa0000 + 'A' * 32 + y, 1, 0xf0);
    indexed(b, 0x3c4, 2, 3);
    indexed(b, 0x3c4, 4, 2);
    indexed(b, 0x3ce, 5, 0x10);
    indexed(b, 0x3ce, 6, 0x0e);
    indexed(b, 0x3c4, 1, 1); /* cells of 8 */
    indexed(b, 0x3d4, 1, 79);
    indexed(b, 0x3d4, 9, 15);
    indexed(b, 0x3d4, 0x13, 40);
    indexed(b, 0x3d4, 0x0a, 0x20); /* no cursor */
    crtc_height(b, 400);
    screen_on(b);
}

static uint32_t pixel(const struct hvx_surface *s, unsigned x, unsigned y)
{
    return s->pixels[y * (s->stride / 4) + x];
}

static void text_is_drawn_with_the_guests_font(void **state)
{
    struct board *b = *state;
    struct hvx_surface s;
    text_mode(b);
    hvxtest_mmio_write(b->vm, 0xb8000 + (2 * 80 + 5) * 2, 2, 0x1e << 8 | 'A'); /* row 2, column 5, 14 on 1 */
    assert_int_equal(hvxtest_mmio_read(b->vm, 0xb8000 + (2 * 80 + 5) * 2, 2), 0x1e41);
    assert_int_equal(hvxtest_render(b->vm, &s), 0);
    assert_int_equal(s.width, 640);
    assert_int_equal(s.height, 400);
    assert_int_equal(pixel(&s, 5 * 8, 2 * 16), grey(14));
    assert_int_equal(pixel(&s, 5 * 8 + 3, 2 * 16 + 15), grey(14));
    assert_int_equal(pixel(&s, 5 * 8 + 4, 2 * 16), grey(1));
    assert_int_equal(pixel(&s, 5 * 8 - 1, 2 * 16), grey(0));
    /* the cursor, then scrolling by the start address */
    indexed(b, 0x3d4, 0x0a, 14);
    indexed(b, 0x3d4, 0x0b, 15);
    indexed(b, 0x3d4, 0x0e, 0);
    indexed(b, 0x3d4, 0x0f, 165);
    hvxtest_render(b->vm, &s);
    assert_int_equal(pixel(&s, 5 * 8 + 4, 2 * 16 + 13), grey(1));
    assert_int_equal(pixel(&s, 5 * 8 + 4, 2 * 16 + 14), grey(14));
    indexed(b, 0x3d4, 0x0d, 80);
    hvxtest_render(b->vm, &s);
    assert_int_equal(pixel(&s, 5 * 8, 1 * 16), grey(14));
}

static void planar_write_modes(void **state)
{
    struct board *b = *state;
    common(b);
    indexed(b, 0x3c4, 2, 0x0f);
    indexed(b, 0x3c4, 4, 0x06);
    indexed(b, 0x3ce, 6, 0x05);
    indexed(b, 0x3ce, 8, 0xff);
    /* mode 2: the colour's bits go to the planes */
    indexed(b, 0x3ce, 5, 2);
    hvxtest_mmio_write(b->vm, 0xa0000, 1, 0x0a);
    indexed(b, 0x3ce, 5, 0);
    for (unsigned plane = 0; plane < 4; plane++) {
        indexed(b, 0x3ce, 4, (uint8_t)plane);
        assert_int_equal(hvxtest_mmio_read(b->vm, 0xa0000, 1), plane & 1 ? 0xff : 0);
    }
    /* mode 0 with set/reset and bit mask keeps the other bits from the latch */
    indexed(b, 0x3ce, 0, 0x05);
    indexed(b, 0x3ce, 1, 0x0f);
    indexed(b, 0x3ce, 8, 0x0f);
    hvxtest_mmio_read(b->vm, 0xa0000, 1);
    hvxtest_mmio_write(b->vm, 0xa0000, 1, 0);
    indexed(b, 0x3ce, 4, 0);
    assert_int_equal(hvxtest_mmio_read(b->vm, 0xa0000, 1), 0x0f);
    indexed(b, 0x3ce, 4, 1);
    assert_int_equal(hvxtest_mmio_read(b->vm, 0xa0000, 1), 0xf0);
    /* mode 1 copies the latch */
    indexed(b, 0x3ce, 5, 1);
    hvxtest_mmio_read(b->vm, 0xa0000, 1);
    hvxtest_mmio_write(b->vm, 0xa0010, 1, 0);
    indexed(b, 0x3ce, 5, 0);
    assert_int_equal(hvxtest_mmio_read(b->vm, 0xa0010, 1), 0xf0);
    /* xor by the function select, and the map mask */
    indexed(b, 0x3ce, 1, 0);
    indexed(b, 0x3ce, 8, 0xff);
    indexed(b, 0x3ce, 3, 0x18);
    indexed(b, 0x3c4, 2, 0x02);
    hvxtest_mmio_read(b->vm, 0xa0000, 1);
    hvxtest_mmio_write(b->vm, 0xa0000, 1, 0xff);
    assert_int_equal(hvxtest_mmio_read(b->vm, 0xa0000, 1), 0x0f);
    indexed(b, 0x3ce, 4, 0);
    assert_int_equal(hvxtest_mmio_read(b->vm, 0xa0000, 1), 0x0f);
    /* read mode 1: where planes 0 and 1 are clear and 2, 3 do not matter */
    indexed(b, 0x3ce, 5, 8);
    indexed(b, 0x3ce, 2, 0);
    indexed(b, 0x3ce, 7, 3);
    assert_int_equal(hvxtest_mmio_read(b->vm, 0xa0000, 1), 0xf0);
}

static void mode_12_shows_sixteen_colours(void **state)
{
    struct board *b = *state;
    struct hvx_surface s;
    common(b);
    indexed(b, 0x3c4, 1, 1);
    indexed(b, 0x3c4, 2, 0x0f);
    indexed(b, 0x3c4, 4, 0x06);
    indexed(b, 0x3ce, 6, 0x05);
    indexed(b, 0x3ce, 8, 0x01);
    indexed(b, 0x3ce, 5, 2);
    indexed(b, 0x3d4, 1, 79);
    indexed(b, 0x3d4, 9, 0);
    indexed(b, 0x3d4, 0x13, 40);
    indexed(b, 0x3d4, 0x17, 0xe3);
    crtc_height(b, 480);
    screen_on(b);
    hvxtest_mmio_read(b->vm, 0xa0000 + 80 * 100 + 3, 1);
    hvxtest_mmio_write(b->vm, 0xa0000 + 80 * 100 + 3, 1, 0x0d);
    assert_int_equal(hvxtest_render(b->vm, &s), 0);
    assert_int_equal(s.width, 640);
    assert_int_equal(s.height, 480);
    assert_int_equal(pixel(&s, 31, 100), grey(13));
    assert_int_equal(pixel(&s, 30, 100), grey(0));
}

static void mode_13_is_linear(void **state)
{
    struct board *b = *state;
    struct hvx_surface s;
    common(b);
    indexed(b, 0x3c4, 1, 1);
    indexed(b, 0x3c4, 2, 0x0f);
    indexed(b, 0x3c4, 4, 0x0e);
    indexed(b, 0x3ce, 5, 0x40);
    indexed(b, 0x3ce, 6, 0x05);
    indexed(b, 0x3d4, 1, 79);
    indexed(b, 0x3d4, 9, 0x41);
    indexed(b, 0x3d4, 0x13, 40);
    indexed(b, 0x3d4, 0x17, 0xa3);
    crtc_height(b, 400);
    screen_on(b);
    hvxtest_mmio_write(b->vm, 0xa0000 + 320 * 50 + 21, 1, 0x2a);
    assert_int_equal(hvxtest_render(b->vm, &s), 0);
    assert_int_equal(s.width, 320);
    assert_int_equal(s.height, 200);
    assert_int_equal(pixel(&s, 21, 50), grey(0x2a));
    assert_int_equal(pixel(&s, 22, 50), grey(0));
}

static void dispi(struct board *b, uint16_t index, uint16_t v)
{
    out16(b, 0x1ce, index);
    out16(b, 0x1cf, v);
}

static void display_interface(void **state)
{
    struct board *b = *state;
    struct hvx_surface s;
    out16(b, 0x1ce, 0);
    assert_int_equal(in16(b, 0x1cf), 0xb0c5);
    out16(b, 0x1ce, 10);
    assert_int_equal(in16(b, 0x1cf), 256);
    dispi(b, 1, 800);
    dispi(b, 2, 600);
    dispi(b, 3, 32);
    dispi(b, 4, 0x41);
    uint64_t lfb = hvxtest_pci_bar(hvxtest_pci_at(b->vm, 0x10), 0);
    uint64_t regs = hvxtest_pci_bar(hvxtest_pci_at(b->vm, 0x10), 2);
    hvxtest_mmio_write(b->vm, lfb + (10 * 800 + 20) * 4, 4, 0x00123456);
    assert_int_equal(hvxtest_render(b->vm, &s), 0);
    assert_int_equal(s.width, 800);
    assert_int_equal(s.height, 600);
    assert_int_equal(pixel(&s, 20, 10), 0x123456);
    dispi(b, 5, 1); /* bank 1 of 64 KiB */
    hvxtest_mmio_write(b->vm, 0xa0004, 4, 0x00abcdef);
    assert_int_equal(hvxtest_mmio_read(b->vm, lfb + 0x10004, 4), 0x00abcdef);
    dispi(b, 9, 5); /* shown from line 5 on */
    hvxtest_render(b->vm, &s);
    assert_int_equal(pixel(&s, 20, 5), 0x123456);
    assert_int_equal(hvxtest_mmio_read(b->vm, regs + 0x502, 2), 800);
    hvxtest_mmio_write(b->vm, regs + 0x508, 2, 0);
    hvxtest_mmio_write(b->vm, regs + 0x506, 2, 16);
    hvxtest_mmio_write(b->vm, regs + 0x508, 2, 0x41);
    hvxtest_mmio_write(b->vm, lfb, 2, 0xf800);
    hvxtest_render(b->vm, &s);
    assert_int_equal(pixel(&s, 0, 0), 0xf80000);
    assert_int_equal(pixel(&s, 0, 1), 0); /* cleared by the mode change */
}

static void modes_that_do_not_fit_are_cut(void **state)
{
    struct board *b = *state;
    struct hvx_surface s;
    dispi(b, 1, 2560);
    dispi(b, 2, 2048);
    dispi(b, 3, 32);
    dispi(b, 4, 0x41); /* 20 MiB of 16 */
    dispi(b, 6, 0xffff);
    dispi(b, 8, 0xffff);
    dispi(b, 9, 0xffff);
    assert_int_equal(hvxtest_render(b->vm, &s), 0);
    assert_true(s.width <= 2560 && s.height <= 2048);
    dispi(b, 1, 0xffff);
    out16(b, 0x1ce, 1);
    assert_int_equal(in16(b, 0x1cf), 2560);
    dispi(b, 3, 7);
    out16(b, 0x1ce, 3);
    assert_int_equal(in16(b, 0x1cf), 32);
}

static void nonsense_in_all_registers_still_renders(void **state)
{
    struct board *b = *state;
    struct hvx_surface s;
    uint32_t x = 12345;
    for (unsigned round = 0; round < 300; round++) {
        for (unsigned i = 0; i < 60; i++) {
            x = x * 1664525 + 1013904223;
            out8(b, (uint16_t)(0x3b0 + (x >> 24) % 0x30), (uint8_t)(x >> 8));
            if (i % 16 == 0)
                dispi(b, (x >> 4) % 11, (uint16_t)(x >> 12));
            hvxtest_mmio_write(b->vm, 0xa0000 + (x >> 9) % 0x1fff8, 8, x);
        }
        assert_int_equal(hvxtest_render(b->vm, &s), 0);
        assert_true(s.width >= 1 && s.width <= 2560 && s.height >= 1 && s.height <= 2048);
    }
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(text_is_drawn_with_the_guests_font), T(planar_write_modes), T(mode_12_shows_sixteen_colours),
        T(mode_13_is_linear), T(display_interface), T(modes_that_do_not_fit_are_cut),
        T(nonsense_in_all_registers_still_renders),
    };
    return cmocka_run_group_tests_name("vga", tests, NULL, NULL);
}
