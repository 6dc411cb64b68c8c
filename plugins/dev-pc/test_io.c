/* SPDX-License-Identifier: Apache-2.0
 *
 * test_io.c - serial lines, keyboard and mouse, power management, resets, and
 * the debug ports.
 */
#include "test_board.h"

#include <string.h>

static int setup(void **state)
{
    static struct board b;
    board_new(&b, board_vm(), "vga=off,debug-exit=0x501");
    *state = &b;
    return 0;
}

static int teardown(void **state)
{
    board_free(*state);
    return 0;
}

/* --- serial lines ---------------------------------------------------------------- */
#define COM1 0x3f8
#define LSR (COM1 + 5)

static void expect_output(struct board *b, const char *id, const char *text)
{
    size_t n;
    const uint8_t *p = hvxtest_chr_output(b->vm, id, &n);
    assert_int_equal(n, strlen(text));
    assert_memory_equal(p, text, n);
}

static void uart_sends_at_once(void **state)
{
    struct board *b = *state;
    for (const char *s = "hello"; *s; s++) {
        assert_int_equal(in8(b, LSR) & 0x60, 0x60);
        out8(b, COM1, (uint8_t)*s);
    }
    out8(b, 0x2f8, '2');
    expect_output(b, "serial0", "hello");
    expect_output(b, "serial1", "2");
}

static void uart_back_pressure_holds_the_guest_not_the_host(void **state)
{
    struct board *b = *state;
    out8(b, COM1 + 2, 0x01); /* FIFO on */
    hvxtest_chr_limit(b->vm, "serial0", 0);
    out8(b, COM1, 'a');
    assert_int_equal(in8(b, LSR) & 0x60, 0); /* full: a polite guest waits */
    for (char c = 'b'; c <= 'z'; c++)
        out8(b, COM1, (uint8_t)c); /* an impolite one loses what the FIFO does not hold */
    hvxtest_chr_limit(b->vm, "serial0", 1000);
    step_us(b, 3000);
    assert_int_equal(in8(b, LSR) & 0x60, 0x60);
    expect_output(b, "serial0", "abcdefghijklmnop");
    assert_true(hvxtest_events(b->vm, "serial-overrun") > 0);
}

static void uart_transmit_interrupt(void **state)
{
    struct board *b = *state;
    out8(b, COM1 + 4, 0x0b); /* DTR, RTS, OUT2 */
    out8(b, COM1 + 1, 0x02);
    assert_true(hvxtest_irq_level(b->vm, 4));
    assert_int_equal(in8(b, COM1 + 2) & 0x0f, 0x02);
    assert_false(hvxtest_irq_level(b->vm, 4)); /* reading IIR took it */
    hvxtest_irq_clear(b->vm);
    out8(b, COM1, 'x');
    out8(b, COM1, 'y');
    assert_int_equal(hvxtest_irq_rises(b->vm, 4), 2); /* an edge for each */
    hvxtest_chr_limit(b->vm, "serial0", 0);
    out8(b, COM1, 'z');
    assert_false(hvxtest_irq_level(b->vm, 4));
    hvxtest_chr_limit(b->vm, "serial0", 100);
    step_us(b, 3000);
    assert_true(hvxtest_irq_level(b->vm, 4));
}

static void uart_receives_with_fifo_and_interrupt(void **state)
{
    struct board *b = *state;
    out8(b, COM1 + 2, 0x01);
    out8(b, COM1 + 4, 0x08);
    out8(b, COM1 + 1, 0x01);
    assert_int_equal(hvxtest_chr_input(b->vm, "serial0", "0123456789abcdefXYZ", 19), 3);
    assert_true(hvxtest_irq_level(b->vm, 4));
    for (const char *s = "0123456789abcdefXYZ"; *s; s++) {
        assert_int_equal(in8(b, LSR) & 1, 1);
        assert_int_equal(in8(b, COM1), *s);
        hvxtest_run(b->vm);
    }
    assert_int_equal(in8(b, LSR) & 1, 0);
    assert_false(hvxtest_irq_level(b->vm, 4));
}

static void uart_is_a_16550a(void **state)
{
    struct board *b = *state;
    assert_int_equal(in8(b, COM1 + 2) & 0xc0, 0);
    out8(b, COM1 + 2, 0x01);
    assert_int_equal(in8(b, COM1 + 2) & 0xc0, 0xc0);
    out8(b, COM1 + 7, 0x5a);
    assert_int_equal(in8(b, COM1 + 7), 0x5a);
    out8(b, COM1 + 3, 0x83);
    out8(b, COM1, 0x34);
    out8(b, COM1 + 1, 0x12);
    assert_int_equal(in8(b, COM1), 0x34);
    assert_int_equal(in8(b, COM1 + 1), 0x12);
    out8(b, COM1 + 3, 0x03);
    assert_int_equal(in8(b, COM1 + 1), 0);
    assert_int_equal(in8(b, COM1 + 6) & 0xf0, 0xb0); /* carrier, ready, clear to send */
}

static void uart_loop_back(void **state)
{
    struct board *b = *state;
    out8(b, COM1 + 4, 0x1a); /* loop, OUT2, RTS */
    assert_int_equal(in8(b, COM1 + 6) & 0xf0, 0x90); /* as autoconfig in drivers expects */
    out8(b, COM1, 0xae);
    assert_int_equal(in8(b, COM1), 0xae);
    expect_output(b, "serial0", "");
}

/* --- keyboard controller ------------------------------------------------------------ */
static void kbd_expect(struct board *b, const uint8_t *bytes, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(in8(b, 0x64) & 0x21, 0x01);
        assert_int_equal(in8(b, 0x60), bytes[i]);
    }
    assert_int_equal(in8(b, 0x64) & 1, 0);
}

static void kbd_write_ctr(struct board *b, uint8_t v)
{
    out8(b, 0x64, 0x60);
    out8(b, 0x60, v);
}

static void i8042_self_tests(void **state)
{
    struct board *b = *state;
    out8(b, 0x64, 0xaa);
    kbd_expect(b, (const uint8_t[]){0x55}, 1);
    assert_int_equal(in8(b, 0x64) & 4, 4);
    out8(b, 0x64, 0xab);
    kbd_expect(b, (const uint8_t[]){0}, 1);
    out8(b, 0x64, 0xa9);
    kbd_expect(b, (const uint8_t[]){0}, 1);
    kbd_write_ctr(b, 0x65);
    out8(b, 0x64, 0x20);
    kbd_expect(b, (const uint8_t[]){0x65}, 1);
}

static void keyboard_answers_commands(void **state)
{
    struct board *b = *state;
    kbd_write_ctr(b, 0x01);
    out8(b, 0x60, 0xff);
    kbd_expect(b, (const uint8_t[]){0xfa, 0xaa}, 2);
    out8(b, 0x60, 0xf2);
    kbd_expect(b, (const uint8_t[]){0xfa, 0xab, 0x83}, 3);
    out8(b, 0x60, 0xed);
    kbd_expect(b, (const uint8_t[]){0xfa}, 1);
    out8(b, 0x60, 0x02);
    kbd_expect(b, (const uint8_t[]){0xfa}, 1);
    kbd_write_ctr(b, 0x41);
    out8(b, 0x60, 0xf2);
    kbd_expect(b, (const uint8_t[]){0xfa, 0xab, 0x41}, 3); /* translated */
}

static void keyboard_set2_and_translation(void **state)
{
    struct board *b = *state;
    kbd_write_ctr(b, 0x01);
    hvxtest_key(b->vm, 0x1e, true); /* A */
    hvxtest_key(b->vm, 0x1e, false);
    hvxtest_key(b->vm, 0xe048, true); /* up */
    hvxtest_key(b->vm, 0xe048, false);
    kbd_expect(b, (const uint8_t[]){0x1c, 0xf0, 0x1c, 0xe0, 0x75, 0xe0, 0xf0, 0x75}, 8);
    kbd_write_ctr(b, 0x41);
    hvxtest_key(b->vm, 0x1e, true);
    hvxtest_key(b->vm, 0x1e, false);
    hvxtest_key(b->vm, 0xe048, true);
    hvxtest_key(b->vm, 0xe048, false);
    kbd_expect(b, (const uint8_t[]){0x1e, 0x9e, 0xe0, 0x48, 0xe0, 0xc8}, 6);
}

static void keyboard_interrupts_once_a_byte(void **state)
{
    struct board *b = *state;
    kbd_write_ctr(b, 0x41);
    hvxtest_irq_clear(b->vm);
    hvxtest_key(b->vm, 0x10, true);
    hvxtest_key(b->vm, 0x10, false);
    assert_int_equal(hvxtest_irq_rises(b->vm, 1), 1);
    in8(b, 0x60);
    assert_int_equal(hvxtest_irq_rises(b->vm, 1), 2);
    in8(b, 0x60);
    assert_false(hvxtest_irq_level(b->vm, 1));
}

static void keyboard_flood_drops_whole_keys(void **state)
{
    struct board *b = *state;
    kbd_write_ctr(b, 0x01);
    for (unsigned i = 0; i < 1000; i++)
        hvxtest_key(b->vm, 0xe048, i & 1);
    static const uint8_t pair[5] = {0xe0, 0xf0, 0x75, 0xe0, 0x75}; /* release, press */
    unsigned n = 0;
    while (in8(b, 0x64) & 1)
        assert_int_equal(in8(b, 0x60), pair[n++ % 5]);
    assert_in_range(n, 32, 65);
    assert_true(n % 5 == 0 || n % 5 == 3); /* no half of a code at the end */
}

static void mouse_packets(void **state)
{
    struct board *b = *state;
    kbd_write_ctr(b, 0x03);
    out8(b, 0x64, 0xd4);
    out8(b, 0x60, 0xff);
    static const uint8_t reset[] = {0xfa, 0xaa, 0x00};
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(in8(b, 0x64) & 0x21, 0x21);
        assert_int_equal(in8(b, 0x60), reset[i]);
    }
    out8(b, 0x64, 0xd4);
    out8(b, 0x60, 0xf4);
    assert_int_equal(in8(b, 0x60), 0xfa);
    hvxtest_irq_clear(b->vm);
    hvxtest_pointer(b->vm, 5, 3, 1);
    assert_int_equal(hvxtest_irq_rises(b->vm, 12), 1);
    assert_int_equal(in8(b, 0x60), 0x29); /* left button, y negative */
    assert_int_equal(in8(b, 0x60), 5);
    assert_int_equal(in8(b, 0x60), 0xfd);
    assert_int_equal(in8(b, 0x64) & 1, 0);
}

/* --- resets and power ------------------------------------------------------------------ */
static void expect_request(struct board *b, int what)
{
    assert_int_equal(hvxtest_request(b->vm, NULL), what);
}

static void every_way_to_reset(void **state)
{
    struct board *b = *state;
    out8(b, 0x64, 0xfe);
    expect_request(b, HVX_VM_RESET);
    out8(b, 0x64, 0xd1);
    out8(b, 0x60, 0xfe);
    expect_request(b, HVX_VM_RESET);
    out8(b, 0x92, in8(b, 0x92) | 1);
    expect_request(b, HVX_VM_RESET);
    out8(b, 0xcf9, 0x02);
    expect_request(b, 0);
    out8(b, 0xcf9, 0x06);
    expect_request(b, HVX_VM_RESET);
}

static void pm_map(struct board *b)
{
    board_cfg_write(b, 0x0b, 0x40, 4, 0x601);
    board_cfg_write(b, 0x0b, 0x80, 1, 1);
    out8(b, 0xb2, 0xf1);
}

static void soft_off(void **state)
{
    struct board *b = *state;
    assert_int_equal(in16(b, 0x604), 0xffff); /* not mapped yet */
    pm_map(b);
    out16(b, 0x604, 0x0401 | 0x2000); /* S3 is not there */
    expect_request(b, 0);
    out16(b, 0x604, 0x0001 | 0x2000);
    expect_request(b, HVX_VM_POWEROFF);
    assert_int_equal(in16(b, 0x604), 0x0001);
}

#define GPE_STS 0xafe0
#define GPE_EN 0xafe2
#define HOTPLUG 0xae00

static void slots_come_and_go_through_acpi(void **state)
{
    struct board *b = *state;
    void *opaque;
    const struct hvx_hotplug_ops *ops = hvxtest_hotplug(b->vm, &opaque);
    assert_non_null(ops);
    out8(b, 0xb2, 0xf1); /* ACPI on */
    out8(b, GPE_EN, 2);
    assert_false(hvxtest_irq_level(b->vm, 9));
    ops->plugged(opaque, 7);
    assert_true(hvxtest_irq_level(b->vm, 9));
    assert_int_equal(in8(b, GPE_STS), 2);
    out8(b, GPE_STS, 2);
    assert_false(hvxtest_irq_level(b->vm, 9));
    assert_int_equal(in32(b, HOTPLUG), 1u << 7);
    assert_int_equal(in32(b, HOTPLUG), 0); /* told once */
    assert_false(ops->unplug_request(opaque, 2)); /* the display stays */
    assert_true(ops->unplug_request(opaque, 7));
    assert_true(hvxtest_irq_level(b->vm, 9));
    assert_int_equal(in32(b, HOTPLUG), 0);
    assert_int_equal(in32(b, HOTPLUG + 4), 1u << 7);
    assert_int_equal(hvxtest_ejected(b->vm), 0);
    out32(b, HOTPLUG + 8, 1u << 7 | 1u << 1); /* the bridge stays too */
    assert_int_equal(hvxtest_ejected(b->vm), 1u << 7);
    ops->plugged(opaque, 9);
    b->type->reset(b->dev);
    assert_int_equal(in32(b, HOTPLUG), 0);
}

static void power_button_raises_the_sci(void **state)
{
    struct board *b = *state;
    pm_map(b);
    hvxtest_power_button(b->vm);
    assert_false(hvxtest_irq_level(b->vm, 9)); /* not enabled */
    out16(b, 0x602, 0x0100);
    assert_true(hvxtest_irq_level(b->vm, 9));
    assert_int_equal(in16(b, 0x600) & 0x0100, 0x0100);
    out16(b, 0x600, 0x0100);
    assert_false(hvxtest_irq_level(b->vm, 9));
}

static void acpi_enable_and_disable_by_the_command_port(void **state)
{
    struct board *b = *state;
    pm_map(b);
    assert_int_equal(in16(b, 0x604) & 1, 1);
    out8(b, 0xb2, 0xf0);
    assert_int_equal(in16(b, 0x604) & 1, 0);
    assert_int_equal(board_cfg_read(b, 0x0b, 0x5b, 1) & 2, 2); /* SMM set-up counts as done */
}

/* --- debug ports -------------------------------------------------------------------------- */
static void debug_ports(void **state)
{
    struct board *b = *state;
    int code;
    assert_int_equal(in8(b, 0x402), 0xe9);
    out8(b, 0x402, '!');
    expect_output(b, "debugcon", "!");
    out8(b, 0x501, 0x10);
    assert_int_equal(hvxtest_request(b->vm, &code), HVX_VM_DEBUG_EXIT);
    assert_int_equal(code, 0x21);
    out8(b, 0x505, 1);
    expect_request(b, HVX_VM_PANIC);
    out8(b, 0x505, 2);
    expect_request(b, 0);
}

static void debug_exit_as_a_device_of_its_own(void **state)
{
    (void)state;
    const struct hvx_device_type *t = board_type("isa-debug-exit");
    struct hvx_vm *vm = board_vm();
    struct hvx_config *c = hvxtest_config(t->options, "iobase=0xf4");
    struct hvx_error err;
    void *dev;
    int code;
    assert_int_equal(t->create((void *)(uintptr_t)hvxtest_host(), vm, c, &dev, &err), 0);
    hvxtest_pio_write(vm, 0xf4, 4, 0);
    assert_int_equal(hvxtest_request(vm, &code), HVX_VM_DEBUG_EXIT);
    assert_int_equal(code, 1);
    t->destroy(dev);
    hvxtest_config_free(c);
    hvxtest_free(vm);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(uart_sends_at_once), T(uart_back_pressure_holds_the_guest_not_the_host), T(uart_transmit_interrupt),
        T(uart_receives_with_fifo_and_interrupt), T(uart_is_a_16550a), T(uart_loop_back), T(i8042_self_tests),
        T(keyboard_answers_commands), T(keyboard_set2_and_translation), T(keyboard_interrupts_once_a_byte),
        T(keyboard_flood_drops_whole_keys), T(mouse_packets), T(every_way_to_reset), T(soft_off),
        T(power_button_raises_the_sci), T(slots_come_and_go_through_acpi), T(acpi_enable_and_disable_by_the_command_port), T(debug_ports),
        cmocka_unit_test(debug_exit_as_a_device_of_its_own),
    };
    return cmocka_run_group_tests_name("io", tests, NULL, NULL);
}
