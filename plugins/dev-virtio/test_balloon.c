/* SPDX-License-Identifier: Apache-2.0
 *
 * The balloon: pages given up and reported go back to the host, statistics,
 * targets, state.
 */
#include "test_driver.h"

#include <linux/virtio_balloon.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define INFLATE 0u
#define DEFLATE 1u
#define STATS 2u
#define ALL (BIT(VIRTIO_BALLOON_F_STATS_VQ) | BIT(VIRTIO_BALLOON_F_REPORTING) | BIT(VIRTIO_BALLOON_F_DEFLATE_ON_OOM))
#define PAGE_GPA 0x2000000u

struct fixture {
    struct instance i;
    struct drv *d;
    const struct hvx_balloon_ops *ops;
    void *opaque;
};

static void open_balloon(struct fixture *f, const char *options, uint64_t want, unsigned n_queues)
{
    struct hvx_vm *vm = hvxtest_new(&(struct hvxtest_params){.ram_below_4g = DRV_RAM});
    memset(f, 0, sizeof(*f));
    instance_open(&f->i, vm, "virtio-balloon", options);
    f->d = &f->i.d;
    drv_start(f->d, vm, true, want, n_queues);
    f->ops = hvxtest_balloon(vm, &f->opaque);
    assert_non_null(f->ops);
}

static void send_pfns(struct fixture *f, unsigned queue, const uint32_t *pfn, unsigned n)
{
    uint64_t p = drv_alloc(f->d, n * 4, 4);
    memcpy(drv_mem(f->d, p, n * 4), pfn, n * 4);
    struct seg s = {p, n * 4, false};
    drv_add(f->d, &f->d->q[queue], &s, 1);
    drv_kick(f->d, &f->d->q[queue]);
    assert_true(drv_used(f->d, &f->d->q[queue], NULL) >= 0);
}

static void test_pages_in_the_balloon_go_back_to_the_host(void **state)
{
    (void)state;
    static const uint32_t up[] = {0x2000, 0x2001, 0x2002, 0x2010}, down[] = {0x2023, 0x2022, 0x2021};
    static const uint32_t nowhere[] = {0xfffffff0, 0x2030};
    struct fixture f;
    open_balloon(&f, "", ALL, 4);
    memset(hvxtest_ram(f.i.vm) + PAGE_GPA, 0x77, 0x40000);
    send_pfns(&f, INFLATE, up, 4);
    send_pfns(&f, INFLATE, down, 3);
    assert_int_equal(hvxtest_discarded_bytes(f.i.vm), 7 * 4096);
    assert_int_equal(hvxtest_ram(f.i.vm)[PAGE_GPA], 0);
    assert_int_equal(hvxtest_ram(f.i.vm)[PAGE_GPA + 0x2fff], 0);
    assert_int_equal(hvxtest_ram(f.i.vm)[PAGE_GPA + 0x3000], 0x77);
    assert_int_equal(hvxtest_ram(f.i.vm)[PAGE_GPA + 0x20fff], 0x77);
    assert_int_equal(hvxtest_ram(f.i.vm)[PAGE_GPA + 0x21000], 0);
    assert_int_equal(hvxtest_ram(f.i.vm)[PAGE_GPA + 0x24000], 0x77);
    send_pfns(&f, INFLATE, nowhere, 2); /* what is no RAM does not keep the rest from going */
    assert_int_equal(hvxtest_discarded_bytes(f.i.vm), 8 * 4096);
    assert_int_equal(hvxtest_events(f.i.vm, "virtio-balloon"), 1);
    send_pfns(&f, DEFLATE, up, 4);
    assert_int_equal(hvxtest_discarded_bytes(f.i.vm), 8 * 4096);
    instance_close(&f.i);
}

static void test_targets_reach_the_driver_and_back(void **state)
{
    (void)state;
    struct fixture f;
    bool ready = false;
    open_balloon(&f, "", ALL, 4);
    assert_int_equal(f.ops->actual(f.opaque, &ready), DRV_RAM);
    assert_true(ready);
    f.ops->set_target(f.opaque, DRV_RAM / 2);
    assert_true(drv_isr(f.d) & 2);
    assert_int_equal(drv_config(f.d, 0, 4), DRV_RAM / 2 / 4096);
    drv_set_config(f.d, 4, 4, 100);
    assert_int_equal(f.ops->actual(f.opaque, &ready), DRV_RAM - 100 * 4096);
    drv_set_config(f.d, 0, 4, 7); /* not the driver's */
    assert_int_equal(drv_config(f.d, 0, 4), DRV_RAM / 2 / 4096);
    drv_set_config(f.d, 4, 4, 0xffffffff); /* anything may stand there */
    assert_int_equal(f.ops->actual(f.opaque, &ready), 0);
    f.i.type->reset(f.i.dev);
    assert_int_equal(f.ops->actual(f.opaque, &ready), DRV_RAM);
    assert_false(ready);
    instance_close(&f.i);
}

static void report(struct fixture *f, unsigned queue)
{
    struct seg s[] = {{PAGE_GPA, 0x10000, true}, {PAGE_GPA + 0x20800, 0x2000, true}};
    drv_add(f->d, &f->d->q[queue], s, 2);
    drv_kick(f->d, &f->d->q[queue]);
    assert_true(drv_used(f->d, &f->d->q[queue], NULL) >= 0);
}

static void test_reported_pages_go_back_to_the_host(void **state)
{
    (void)state;
    struct fixture f;
    open_balloon(&f, "", ALL, 4);
    report(&f, 3);
    assert_int_equal(hvxtest_discarded_bytes(f.i.vm), 0x11000); /* whole pages only */
    instance_close(&f.i);
    /* Without statistics the queue of reports has their number. */
    open_balloon(&f, "", ALL & ~BIT(VIRTIO_BALLOON_F_STATS_VQ), 3);
    report(&f, 2);
    assert_int_equal(hvxtest_discarded_bytes(f.i.vm), 0x11000);
    instance_close(&f.i);
    open_balloon(&f, "free-page-reporting=off,deflate-on-oom=off", ALL, 3);
    assert_false(f.d->features & (BIT(VIRTIO_BALLOON_F_REPORTING) | BIT(VIRTIO_BALLOON_F_DEFLATE_ON_OOM)));
    instance_close(&f.i);
}

struct figure {
    const char *name;
    uint64_t value;
    bool seen;
};

static void look(void *opaque, const char *group, const char *name, uint64_t value, const char *unit)
{
    struct figure *g = opaque;
    (void)unit;
    assert_string_equal(group, "balloon");
    if (!strcmp(name, g->name)) {
        g->seen = true;
        g->value = value;
    }
}

static void test_statistics_are_fetched_again_and_again(void **state)
{
    (void)state;
    struct fixture f;
    open_balloon(&f, "", ALL, 4);
    uint64_t p = drv_alloc(f.d, 64, 8);
    for (unsigned round = 1; round < 4; round++) {
        struct figure free_memory = {.name = "guest: free"};
        struct virtio_balloon_stat s[] = {{VIRTIO_BALLOON_S_MEMFREE, 1000 * round}, {999, 5}};
        memcpy(drv_mem(f.d, p, sizeof(s)), s, sizeof(s));
        struct seg g = {p, sizeof(s), false};
        drv_add(f.d, &f.d->q[STATS], &g, 1);
        drv_notify(f.d, STATS);
        assert_int_equal(drv_used(f.d, &f.d->q[STATS], NULL), -1); /* kept until new ones are wanted */
        f.ops->stats(f.opaque, look, &free_memory);
        assert_true(free_memory.seen);
        assert_int_equal(free_memory.value, 1000 * round);
        hvxtest_step_ns(f.i.vm, 2100000000);
        assert_true(drv_used(f.d, &f.d->q[STATS], NULL) >= 0);
    }
    instance_close(&f.i);
}

static void test_state_survives_the_round_trip(void **state)
{
    (void)state;
    struct fixture f;
    struct hvx_error err;
    uint8_t *buf;
    size_t n;
    bool ready;
    open_balloon(&f, "", ALL, 4);
    uint64_t p = drv_alloc(f.d, 64, 8);
    struct seg g = {p, 20, false};
    f.ops->set_target(f.opaque, DRV_RAM / 4);
    drv_set_config(f.d, 4, 4, 50);
    drv_add(f.d, &f.d->q[STATS], &g, 1);
    drv_notify(f.d, STATS);
    assert_int_equal(hvxtest_save(f.i.type->state, f.i.dev, 1, &buf, &n), 0);
    f.i.type->reset(f.i.dev);
    assert_int_equal(hvxtest_load(f.i.type->state, f.i.dev, 1, buf, n, &err), 0);
    assert_int_equal(f.ops->actual(f.opaque, &ready), DRV_RAM - 50 * 4096);
    assert_int_equal(drv_config(f.d, 0, 4), DRV_RAM / 4 * 3 / 4096);
    hvxtest_step_ns(f.i.vm, 2100000000);
    assert_true(drv_used(f.d, &f.d->q[STATS], NULL) >= 0); /* the buffer that was held comes back */
    for (size_t k = 0; k < n; k++)
        assert_true(hvxtest_load(f.i.type->state, f.i.dev, 1, buf, k, &err) < 0);
    free(buf);
    instance_close(&f.i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages_in_the_balloon_go_back_to_the_host),
        cmocka_unit_test(test_targets_reach_the_driver_and_back),
        cmocka_unit_test(test_reported_pages_go_back_to_the_host),
        cmocka_unit_test(test_statistics_are_fetched_again_and_again),
        cmocka_unit_test(test_state_survives_the_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
