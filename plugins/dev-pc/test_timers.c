/* SPDX-License-Identifier: Apache-2.0
 *
 * test_timers.c - PIT, RTC, HPET and the PM timer on a stepped clock.
 */
#include "test_board.h"

#define HPET 0xfed00000ull

static int setup(void **state)
{
    static struct board b;
    hvxtest_set_wall_ns(1767323045ull * 1000000000ull); /* 2026-01-02 03:04:05 UTC, a Friday */
    board_new(&b, board_vm(), "vga=off");
    *state = &b;
    return 0;
}

static int teardown(void **state)
{
    board_free(*state);
    return 0;
}

static uint64_t hpet_get(struct board *b, unsigned off) { return hvxtest_mmio_read(b->vm, HPET + off, 8); }
static void hpet_put(struct board *b, unsigned off, uint64_t v) { hvxtest_mmio_write(b->vm, HPET + off, 8, v); }

/* --- PIT ------------------------------------------------------------------------ */
static void pit_load(struct board *b, unsigned channel, unsigned mode, uint16_t count)
{
    out8(b, 0x43, (uint8_t)(channel << 6 | 0x30 | mode << 1));
    out8(b, (uint16_t)(0x40 + channel), (uint8_t)count);
    out8(b, (uint16_t)(0x40 + channel), (uint8_t)(count >> 8));
}

static uint16_t pit_count(struct board *b, unsigned channel)
{
    out8(b, 0x43, (uint8_t)(channel << 6));
    uint16_t low = in8(b, (uint16_t)(0x40 + channel));
    return (uint16_t)(low | in8(b, (uint16_t)(0x40 + channel)) << 8);
}

static void pit_mode2_interrupts_at_its_rate(void **state)
{
    struct board *b = *state;
    pit_load(b, 0, 2, 11932); /* 10.0002 ms */
    hvxtest_irq_clear(b->vm);
    hvxtest_step_ns(b->vm, 1000000000);
    assert_in_range(hvxtest_irq_rises(b->vm, 0), 99, 100);
}

static void pit_makes_up_for_ticks_that_come_late(void **state)
{
    struct board *b = *state;
    pit_load(b, 0, 2, 11932); /* 10.0002 ms */
    hvxtest_irq_clear(b->vm);
    hvxtest_stall_ns(b->vm, 105000000);
    assert_int_equal(hvxtest_irq_rises(b->vm, 0), 10);
    hvxtest_step_ns(b->vm, 100000000); /* and goes on on the old beat */
    assert_int_equal(hvxtest_irq_rises(b->vm, 0), 20);
    hvxtest_irq_clear(b->vm);
    hvxtest_stall_ns(b->vm, 3600000000000ull);
    assert_int_equal(hvxtest_irq_rises(b->vm, 0), HVX_TICKS_OWED_MAX);
    pit_load(b, 0, 2, 119); /* 0.1 ms: too fast to be caught up with */
    hvxtest_irq_clear(b->vm);
    hvxtest_stall_ns(b->vm, 10000000);
    assert_int_equal(hvxtest_irq_rises(b->vm, 0), 1);
}

static void pit_counts_down_with_the_clock(void **state)
{
    struct board *b = *state;
    pit_load(b, 0, 2, 0xffff);
    step_us(b, 10000); /* 11931 ticks */
    assert_in_range(pit_count(b, 0), 0xffff - 11932, 0xffff - 11931);
}

static void pit_latched_count_stands_still(void **state)
{
    struct board *b = *state;
    pit_load(b, 0, 2, 0xffff);
    out8(b, 0x43, 0x00);
    step_us(b, 5000);
    uint16_t low = in8(b, 0x40);
    assert_int_equal(low | in8(b, 0x40) << 8, 0xffff);
    assert_true(pit_count(b, 0) < 0xffff - 5000);
}

static void pit_mode0_fires_once_on_terminal_count(void **state)
{
    struct board *b = *state;
    pit_load(b, 0, 0, 1193); /* 1 ms */
    hvxtest_irq_clear(b->vm);
    step_us(b, 990);
    assert_int_equal(hvxtest_irq_rises(b->vm, 0), 0);
    step_us(b, 20);
    assert_int_equal(hvxtest_irq_rises(b->vm, 0), 1);
    step_us(b, 1000000);
    assert_int_equal(hvxtest_irq_rises(b->vm, 0), 1);
}

static void pit_read_back_tells_mode_and_output(void **state)
{
    struct board *b = *state;
    pit_load(b, 0, 0, 1193);
    out8(b, 0x43, 0xe2); /* status of channel 0 */
    assert_int_equal(in8(b, 0x40), 0x30);
    step_us(b, 2000);
    out8(b, 0x43, 0xe2);
    assert_int_equal(in8(b, 0x40), 0xb0);
}

static void pit_channel2_calibration_loop(void **state)
{
    struct board *b = *state;
    out8(b, 0x61, (uint8_t)((in8(b, 0x61) & ~2) | 1)); /* gate on, speaker off */
    pit_load(b, 2, 0, 59659); /* 50 ms */
    assert_int_equal(in8(b, 0x61) & 0x21, 0x01);
    step_us(b, 49000);
    assert_int_equal(in8(b, 0x61) & 0x20, 0);
    step_us(b, 2000);
    assert_int_equal(in8(b, 0x61) & 0x20, 0x20);
}

static void pit_gate2_stops_the_count(void **state)
{
    struct board *b = *state;
    out8(b, 0x61, 1);
    pit_load(b, 2, 0, 0xffff);
    step_us(b, 10000);
    out8(b, 0x61, 0);
    uint16_t count = pit_count(b, 2);
    step_us(b, 20000);
    assert_int_equal(pit_count(b, 2), count);
    out8(b, 0x61, 1);
    step_us(b, 1000);
    assert_in_range(pit_count(b, 2), count - 1195, count - 1190);
}

static void pit_bcd_counts_in_decimal(void **state)
{
    struct board *b = *state;
    out8(b, 0x43, 0x35); /* channel 0, mode 2, BCD */
    out8(b, 0x40, 0x00);
    out8(b, 0x40, 0x10); /* 1000 */
    step_us(b, 100); /* 119 ticks */
    assert_int_equal(pit_count(b, 0), 0x0881);
}

/* --- RTC -------------------------------------------------------------------------- */
static uint8_t cmos(struct board *b, uint8_t reg)
{
    out8(b, 0x70, reg);
    return in8(b, 0x71);
}

static void cmos_set(struct board *b, uint8_t reg, uint8_t v)
{
    out8(b, 0x70, reg);
    out8(b, 0x71, v);
}

static void rtc_shows_the_wall_clock_in_bcd(void **state)
{
    struct board *b = *state;
    assert_int_equal(cmos(b, 0), 0x05);
    assert_int_equal(cmos(b, 2), 0x04);
    assert_int_equal(cmos(b, 4), 0x03);
    assert_int_equal(cmos(b, 6), 6); /* Friday, Sunday being 1 */
    assert_int_equal(cmos(b, 7), 0x02);
    assert_int_equal(cmos(b, 8), 0x01);
    assert_int_equal(cmos(b, 9), 0x26);
    assert_int_equal(cmos(b, 0x32), 0x20);
    hvxtest_step_ns(b->vm, 60ull * 1000000000);
    assert_int_equal(cmos(b, 2), 0x05);
}

static void rtc_can_be_set(void **state)
{
    struct board *b = *state;
    cmos_set(b, 0x0b, 0x82); /* SET, 24 h */
    static const uint8_t when[][2] = {{0, 0x59}, {2, 0x59}, {4, 0x23}, {7, 0x31}, {8, 0x12}, {9, 0x99}, {0x32, 0x19}};
    for (unsigned i = 0; i < 7; i++)
        cmos_set(b, when[i][0], when[i][1]);
    hvxtest_step_ns(b->vm, 5000000000ull);
    assert_int_equal(cmos(b, 0), 0x59); /* held */
    cmos_set(b, 0x0b, 0x02);
    hvxtest_step_ns(b->vm, 1000000000ull);
    assert_int_equal(cmos(b, 0), 0x00);
    assert_int_equal(cmos(b, 9), 0x00);
    assert_int_equal(cmos(b, 0x32), 0x20);
    assert_int_equal(cmos(b, 7), 0x01);
}

static void rtc_update_in_progress_before_the_second(void **state)
{
    struct board *b = *state;
    assert_int_equal(cmos(b, 0x0a) & 0x80, 0);
    hvxtest_step_ns(b->vm, 999900000);
    assert_int_equal(cmos(b, 0x0a) & 0x80, 0x80);
}

static void rtc_periodic_rate_and_acknowledge(void **state)
{
    struct board *b = *state;
    cmos_set(b, 0x0a, 0x26); /* 1024 Hz */
    cmos_set(b, 0x0b, 0x42);
    hvxtest_irq_clear(b->vm);
    unsigned n = 0;
    for (unsigned i = 0; i < 1000; i++) {
        step_us(b, 100);
        if (hvxtest_irq_level(b->vm, 8)) {
            assert_int_equal(cmos(b, 0x0c) & 0xc0, 0xc0);
            assert_false(hvxtest_irq_level(b->vm, 8));
            n++;
        }
    }
    assert_in_range(n, 101, 103); /* in 100 ms */
    cmos_set(b, 0x0b, 0x02);
    cmos(b, 0x0c);
    hvxtest_irq_clear(b->vm);
    step_us(b, 100000);
    assert_int_equal(hvxtest_irq_rises(b->vm, 8), 0);
}

static void rtc_periodic_events_are_made_up_for_one_with_each_acknowledge(void **state)
{
    struct board *b = *state;
    cmos_set(b, 0x0a, 0x2a); /* 64 Hz */
    cmos_set(b, 0x0b, 0x42);
    hvxtest_irq_clear(b->vm);
    hvxtest_stall_ns(b->vm, 100000000); /* 6.4 periods */
    unsigned n = 0;
    for (; hvxtest_irq_level(b->vm, 8) && n < 100; n++)
        cmos(b, 0x0c);
    assert_int_equal(n, 6);
    assert_int_equal(hvxtest_irq_rises(b->vm, 8), 6);
    hvxtest_stall_ns(b->vm, 100000000);
    cmos_set(b, 0x0b, 0x02); /* switched off: nothing is owed */
    cmos(b, 0x0c);
    assert_false(hvxtest_irq_level(b->vm, 8));
}

static void rtc_alarm_at_its_second(void **state)
{
    struct board *b = *state;
    cmos_set(b, 1, 0x10); /* at :10 of any minute and hour */
    cmos_set(b, 3, 0xc0);
    cmos_set(b, 5, 0xff);
    cmos_set(b, 0x0b, 0x22);
    hvxtest_step_ns(b->vm, 4500000000ull);
    assert_false(hvxtest_irq_level(b->vm, 8));
    hvxtest_step_ns(b->vm, 1000000000ull);
    assert_true(hvxtest_irq_level(b->vm, 8));
    assert_int_equal(cmos(b, 0x0c) & 0xa0, 0xa0);
}

static void rtc_alarm_is_an_acpi_event_too(void **state)
{
    struct board *b = *state;
    board_cfg_write(b, 0x0b, 0x40, 4, 0x601);
    board_cfg_write(b, 0x0b, 0x80, 1, 1);
    out8(b, 0xb2, 0xf1);
    out16(b, 0x602, 0x400);
    hpet_put(b, 0x10, 3); /* the HPET has taken irq 8 */
    cmos_set(b, 1, 0x06);
    cmos_set(b, 3, 0xff);
    cmos_set(b, 5, 0xff);
    cmos_set(b, 0x0b, 0x22);
    hvxtest_step_ns(b->vm, 1500000000ull);
    assert_false(hvxtest_irq_level(b->vm, 8));
    assert_true(hvxtest_irq_level(b->vm, 9));
    assert_int_equal(in16(b, 0x600) & 0x400, 0x400);
}

static void rtc_nonsense_time_does_not_break_it(void **state)
{
    struct board *b = *state;
    cmos_set(b, 0x0b, 0x82);
    for (uint8_t r = 0; r < 10; r++)
        cmos_set(b, r, 0xff);
    cmos_set(b, 0x32, 0xff);
    cmos_set(b, 0x0b, 0x32);
    hvxtest_step_ns(b->vm, 3000000000ull);
    assert_in_range(cmos(b, 0), 0, 0x59);
    assert_in_range(cmos(b, 8), 1, 0x12);
}

/* --- HPET ---------------------------------------------------------------------------- */
static void hpet_counts_tens_of_nanoseconds(void **state)
{
    struct board *b = *state;
    assert_int_equal(hvxtest_mmio_read(b->vm, HPET, 4), 0x8086a201);
    assert_int_equal(hvxtest_mmio_read(b->vm, HPET + 4, 4), 10000000);
    hpet_put(b, 0xf0, 5);
    step_us(b, 10);
    assert_int_equal(hpet_get(b, 0xf0), 5); /* stopped */
    hpet_put(b, 0x10, 1);
    step_us(b, 10);
    assert_int_equal(hpet_get(b, 0xf0), 1005);
    hpet_put(b, 0x10, 0);
    step_us(b, 10);
    assert_int_equal(hpet_get(b, 0xf0), 1005);
}

static void hpet_one_shot_edge(void **state)
{
    struct board *b = *state;
    hpet_put(b, 0x10, 1);
    hpet_put(b, 0x140, 20ull << 9 | 4); /* timer 2, gsi 20, enabled */
    hpet_put(b, 0x148, hpet_get(b, 0xf0) + 100000); /* 1 ms */
    hvxtest_irq_clear(b->vm);
    step_us(b, 990);
    assert_int_equal(hvxtest_irq_rises(b->vm, 20), 0);
    step_us(b, 20);
    assert_int_equal(hvxtest_irq_rises(b->vm, 20), 1);
    step_us(b, 100000);
    assert_int_equal(hvxtest_irq_rises(b->vm, 20), 1);
}

static void hpet_level_until_acknowledged(void **state)
{
    struct board *b = *state;
    hpet_put(b, 0x10, 1);
    hpet_put(b, 0x140, 20ull << 9 | 4 | 2);
    hpet_put(b, 0x148, hpet_get(b, 0xf0) + 1000);
    step_us(b, 20);
    assert_true(hvxtest_irq_level(b->vm, 20));
    assert_int_equal(hpet_get(b, 0x20), 4);
    hpet_put(b, 0x20, 4);
    assert_false(hvxtest_irq_level(b->vm, 20));
}

static void hpet_legacy_replaces_the_pit(void **state)
{
    struct board *b = *state;
    pit_load(b, 0, 2, 11932);
    hpet_put(b, 0x10, 3);
    hvxtest_irq_clear(b->vm);
    step_us(b, 100000);
    assert_int_equal(hvxtest_irq_rises(b->vm, 0), 0);
    hpet_put(b, 0x100, 0x4c); /* timer 0: periodic, enabled, set value */
    hpet_put(b, 0x108, hpet_get(b, 0xf0) + 100000);
    hpet_put(b, 0x108, 100000); /* period 1 ms */
    step_us(b, 100500);
    assert_in_range(hvxtest_irq_rises(b->vm, 0), 99, 100);
    hpet_put(b, 0x10, 1);
    hpet_put(b, 0x100, 0);
    hvxtest_irq_clear(b->vm);
    step_us(b, 100500);
    assert_in_range(hvxtest_irq_rises(b->vm, 0), 9, 11); /* the PIT again */
}

static void hpet_makes_up_for_ticks_that_come_late(void **state)
{
    struct board *b = *state;
    hpet_put(b, 0x10, 3);
    hpet_put(b, 0x100, 0x4c);
    hpet_put(b, 0x108, hpet_get(b, 0xf0) + 100000);
    hpet_put(b, 0x108, 100000); /* 1 ms */
    hvxtest_irq_clear(b->vm);
    hvxtest_stall_ns(b->vm, 20500000);
    assert_int_equal(hvxtest_irq_rises(b->vm, 0), 20);
    step_us(b, 10000);
    assert_int_equal(hvxtest_irq_rises(b->vm, 0), 30);
}

static void hpet_tiny_period_does_not_flood(void **state)
{
    struct board *b = *state;
    hpet_put(b, 0x10, 1);
    hpet_put(b, 0x100, 20ull << 9 | 0x4c);
    hpet_put(b, 0x108, 1);
    hpet_put(b, 0x108, 1);
    hvxtest_irq_clear(b->vm);
    step_us(b, 10000);
    assert_in_range(hvxtest_irq_rises(b->vm, 20), 1, 200);
}

/* As Linux leaves it when it has a better timer: nobody hears of it, so the host need not wake up for it. */
static void hpet_without_interrupts_lets_the_host_sleep(void **state)
{
    struct board *b = *state;
    uint64_t start = hpet_get(b, 0xf0), idle = hvxtest_next_deadline(b->vm);
    hpet_put(b, 0x10, 1);
    hpet_put(b, 0x100, 20ull << 9 | 0x4c);
    hpet_put(b, 0x108, start + 100000);
    hpet_put(b, 0x108, 100000); /* 1 ms */
    assert_true(hvxtest_next_deadline(b->vm) < idle);
    step_us(b, 3500);
    hpet_put(b, 0x100, 20ull << 9 | 0x08);
    assert_int_equal(hvxtest_next_deadline(b->vm), idle);
    hvxtest_irq_clear(b->vm);
    assert_int_equal(hpet_get(b, 0x108), start + 400000);
    step_us(b, 6200);
    assert_int_equal(hpet_get(b, 0x108), start + 1000000); /* it has gone on */
    step_us(b, 50000);
    assert_int_equal(hvxtest_irq_rises(b->vm, 20), 0);
    hpet_put(b, 0x100, 20ull << 9 | 0x0c); /* and is in step when it is heard again */
    step_us(b, 200);
    assert_int_equal(hvxtest_irq_rises(b->vm, 20), 0);
    step_us(b, 200);
    assert_int_equal(hvxtest_irq_rises(b->vm, 20), 1);
    hpet_put(b, 0x140, 20ull << 9 | 2); /* without one, but its status tells */
    hpet_put(b, 0x148, hpet_get(b, 0xf0) + 1000);
    step_us(b, 20);
    assert_int_equal(hpet_get(b, 0x20), 4);
}

static void hpet_of_32_bits_without_interrupts(void **state)
{
    struct board *b = *state;
    hpet_put(b, 0x10, 1);
    hpet_put(b, 0x100, 20ull << 9 | 0x148); /* periodic, set value, 32 bits */
    hpet_put(b, 0x108, 100000);
    hpet_put(b, 0x108, 100000);
    step_us(b, 30000000); /* more than half of what it counts to */
    hpet_put(b, 0x100, 20ull << 9 | 0x10c);
    hvxtest_irq_clear(b->vm);
    step_us(b, 10500);
    assert_in_range(hvxtest_irq_rises(b->vm, 20), 10, 11);
}

/* --- PM timer ------------------------------------------------------------------------- */
static void pm_map(struct board *b)
{
    board_cfg_write(b, 0x0b, 0x40, 4, 0x601);
    board_cfg_write(b, 0x0b, 0x80, 1, 1);
}

static void pm_timer_runs_at_its_rate_in_24_bits(void **state)
{
    struct board *b = *state;
    pm_map(b);
    uint32_t first = in32(b, 0x608);
    step_us(b, 1000);
    assert_in_range((in32(b, 0x608) - first) & 0xffffff, 3579, 3580);
    hvxtest_step_ns(b->vm, 10000000000ull);
    assert_true(in32(b, 0x608) < 1u << 24);
}

static void pm_timer_overflow_raises_the_sci(void **state)
{
    struct board *b = *state;
    pm_map(b);
    out8(b, 0xb2, 0xf1);
    assert_int_equal(in16(b, 0x604) & 1, 1);
    out16(b, 0x602, 1);
    hvxtest_step_ns(b->vm, 2400000000ull);
    assert_true(hvxtest_irq_level(b->vm, 9));
    out16(b, 0x600, 1);
    assert_false(hvxtest_irq_level(b->vm, 9));
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(pit_mode2_interrupts_at_its_rate), T(pit_makes_up_for_ticks_that_come_late),
        T(pit_counts_down_with_the_clock), T(pit_latched_count_stands_still),
        T(pit_mode0_fires_once_on_terminal_count), T(pit_read_back_tells_mode_and_output),
        T(pit_channel2_calibration_loop), T(pit_gate2_stops_the_count), T(pit_bcd_counts_in_decimal),
        T(rtc_shows_the_wall_clock_in_bcd), T(rtc_can_be_set), T(rtc_update_in_progress_before_the_second),
        T(rtc_periodic_rate_and_acknowledge), T(rtc_periodic_events_are_made_up_for_one_with_each_acknowledge),
        T(rtc_alarm_at_its_second), T(rtc_alarm_is_an_acpi_event_too),
        T(rtc_nonsense_time_does_not_break_it),
        T(hpet_counts_tens_of_nanoseconds), T(hpet_one_shot_edge), T(hpet_level_until_acknowledged),
        T(hpet_legacy_replaces_the_pit), T(hpet_makes_up_for_ticks_that_come_late), T(hpet_tiny_period_does_not_flood),
        T(hpet_without_interrupts_lets_the_host_sleep), T(hpet_of_32_bits_without_interrupts),
        T(pm_timer_runs_at_its_rate_in_24_bits), T(pm_timer_overflow_raises_the_sci),
    };
    return cmocka_run_group_tests_name("timers", tests, NULL, NULL);
}
