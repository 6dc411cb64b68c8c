/* SPDX-License-Identifier: Apache-2.0
 *
 * The fake host itself: a unit test is only as good as this.
 */
#include <hvx/test.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static uint64_t last_off, last_value;
static unsigned last_size, n_accesses;

static uint64_t reg_read(void *opaque, uint64_t off, unsigned size)
{
    last_off = off;
    last_size = size;
    n_accesses++;
    return *(uint64_t *)opaque >> (8 * off);
}

static void reg_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    (void)opaque;
    last_off = off;
    last_size = size;
    last_value = value;
    n_accesses++;
}
static const struct hvx_region_ops reg_ops = {reg_read, reg_write};

static void test_memory_and_holes(void **state)
{
    (void)state;
    const struct hvx_host *h = hvxtest_host();
    struct hvx_vm *vm = hvxtest_new(&(struct hvxtest_params){.ram_below_4g = 1 << 20, .ram_above_4g = 4096});
    uint32_t v = 0x11223344, r = 0;
    assert_int_equal(h->mem_write(vm, 0xffffc, &v, 4), 0);
    assert_int_equal(h->mem_read(vm, 0xffffc, &r, 4), 0);
    assert_int_equal(r, v);
    assert_int_equal(h->mem_read(vm, 0xffffe, &r, 4), -EFAULT);
    assert_int_equal(r, 0xffff1122);
    size_t n = 100;
    assert_null(h->mem_ptr(vm, 1 << 20, &n));
    assert_non_null(h->mem_ptr(vm, 0xffff0, &n));
    assert_int_equal(n, 16);
    n = 8192;
    assert_non_null(h->mem_ptr(vm, 1ull << 32, &n));
    assert_int_equal(n, 4096);
    hvxtest_free(vm);
}

static void test_dispatch_splits_and_layers(void **state)
{
    (void)state;
    const struct hvx_host *h = hvxtest_host();
    struct hvx_vm *vm = hvxtest_new(NULL);
    struct hvx_region *pio, *mmio, *rom;
    uint64_t value = 0x8877665544332211;
    assert_int_equal(h->region_add(vm, HVX_SPACE_PIO, 0x300, 4, HVX_REGION_MIN1, "ports", &reg_ops, &value, &pio, NULL),
                     0);
    n_accesses = 0;
    assert_int_equal(hvxtest_pio_read(vm, 0x300, 4), 0x44332211);
    assert_int_equal(n_accesses, 4);
    assert_int_equal(hvxtest_pio_read(vm, 0x302, 4), 0xffff4433); /* two bytes of it lie beyond */
    assert_int_equal(hvxtest_pio_read(vm, 0x400, 2), 0xffff);

    assert_int_equal(h->region_add(vm, HVX_SPACE_MMIO, 0xa0000, 0x1000, HVX_REGION_MAX4, "window", &reg_ops, &value,
                                   &mmio, NULL), 0);
    n_accesses = 0;
    hvxtest_mmio_write(vm, 0xa0008, 8, 0x1234567890ull);
    assert_int_equal(n_accesses, 2);
    assert_int_equal(last_off, 12);
    assert_int_equal(last_value, 0x12);
    assert_int_equal(h->region_move(vm, mmio, ~0ull), 0);
    hvxtest_mmio_write(vm, 0xa0008, 4, 7); /* RAM shows again */
    assert_int_equal(hvxtest_ram(vm)[0xa0008], 7);

    uint8_t *page = aligned_alloc(4096, 0x10000);
    assert_non_null(page);
    memset(page, 0x5a, 0x10000);
    hvxtest_ram(vm)[0xf0000] = 0x11;
    assert_int_equal(h->mem_map(vm, 0xf0000, 0x10000, page, true, "bios", &rom, NULL), 0);
    assert_int_equal(hvxtest_mmio_read(vm, 0xf0000, 1), 0x5a);
    hvxtest_mmio_write(vm, 0xf0000, 1, 0x22);
    assert_int_equal(page[0], 0x5a);
    h->mem_pam(vm, 0xf0000, 0x10000, false, true); /* copy ROM to RAM underneath */
    hvxtest_mmio_write(vm, 0xf0000, 1, 0x33);
    assert_int_equal(hvxtest_mmio_read(vm, 0xf0000, 1), 0x5a);
    h->mem_pam(vm, 0xf0000, 0x10000, true, false);
    assert_int_equal(hvxtest_mmio_read(vm, 0xf0000, 1), 0x33);
    h->region_del(vm, pio);
    h->region_del(vm, mmio);
    assert_int_equal(hvxtest_leftovers(vm, NULL, 0), 1);
    h->region_del(vm, rom);
    hvxtest_free(vm);
    free(page);
}

struct ticker {
    const struct hvx_host *h;
    struct hvx_timer *t;
    uint64_t at[8];
    unsigned n;
};

static void tick(void *opaque)
{
    struct ticker *k = opaque;
    k->at[k->n++] = k->h->clock_ns();
    if (k->n < 3)
        k->h->timer_set(k->t, k->h->clock_ns() + 100);
}

static void test_time_stands_still_between_steps(void **state)
{
    (void)state;
    struct hvx_vm *vm = hvxtest_new(NULL);
    struct ticker k = {.h = hvxtest_host()};
    uint64_t t0 = k.h->clock_ns();
    assert_int_equal(k.h->timer_new(vm, tick, &k, &k.t), 0);
    k.h->timer_set(k.t, t0 + 50);
    hvxtest_run(vm);
    assert_int_equal(k.n, 0);
    hvxtest_step_ns(vm, 200);
    assert_int_equal(k.n, 2);
    assert_int_equal(k.at[0], t0 + 50);
    assert_int_equal(k.at[1], t0 + 150);
    assert_int_equal(hvxtest_next_deadline(vm), t0 + 250);
    hvxtest_step_ns(vm, 1000);
    assert_int_equal(k.n, 3);
    assert_int_equal(hvxtest_now_ns(), t0 + 1200);
    k.h->timer_del(k.t);
    hvxtest_free(vm);
}

static void note_fd(void *opaque, int fd, bool readable, bool writable)
{
    char c;
    assert_true(readable && !writable);
    assert_int_equal(read(fd, &c, 1), 1);
    ++*(unsigned *)opaque;
}

static void count_call(void *opaque)
{
    ++*(unsigned *)opaque;
}

static void test_watches_and_deferred_calls(void **state)
{
    (void)state;
    const struct hvx_host *h = hvxtest_host();
    struct hvx_vm *vm = hvxtest_new(NULL);
    int p[2];
    unsigned seen = 0, calls = 0;
    struct hvx_watch *w;
    assert_int_equal(pipe(p), 0);
    assert_int_equal(h->watch_new(vm, p[0], true, false, note_fd, &seen, &w), 0);
    assert_int_equal(h->defer(vm, count_call, &calls), 0);
    assert_int_equal(calls, 0);
    assert_int_equal(write(p[1], "ab", 2), 2);
    assert_int_equal(hvxtest_run(vm), 3);
    assert_int_equal(seen, 2);
    assert_int_equal(calls, 1);
    h->watch_del(w);
    close(p[0]);
    close(p[1]);
    hvxtest_free(vm);
}

static void test_pci_bars_msix_and_intx(void **state)
{
    (void)state;
    const struct hvx_host *h = hvxtest_host();
    struct hvx_vm *vm = hvxtest_new(NULL);
    uint64_t value = 0xabcd;
    struct hvx_pci_desc desc = {.size = sizeof(desc), .devfn = -1, .vendor = 0x1af4, .device = 0x1000, .irq_pin = 1,
                                .msix_vectors = 3, .msix_bar = 1};
    desc.bars[0] = (struct hvx_pci_bar){.type = HVX_BAR_IO, .size = 32, .ops = &reg_ops};
    desc.bars[4] = (struct hvx_pci_bar){.type = HVX_BAR_MEM64, .size = 16384, .ops = &reg_ops};
    struct hvx_pci_dev *d;
    assert_int_equal(h->pci_add(vm, &desc, NULL, &value, &d, NULL), 0);
    assert_ptr_equal(hvxtest_pci_at(vm, 1 << 3), d);
    assert_int_equal(h->pci_cfg_read(vm, 1 << 3, 0, 4), 0x10001af4);
    assert_int_equal(h->pci_cfg_read(vm, 2 << 3, 0, 4), 0xffffffff);
    h->pci_cfg_write(vm, 1 << 3, 0x20, 4, ~0u);
    assert_int_equal(h->pci_cfg_read(vm, 1 << 3, 0x20, 4), 0xffffc004);
    assert_int_equal(h->pci_dma_read(d, 0, &value, 1), -EFAULT); /* not a bus master yet */
    hvxtest_pci_enable(d);
    assert_int_not_equal(hvxtest_pci_bar(d, 4), ~0ull);
    assert_int_equal(hvxtest_pio_read(vm, (uint16_t)hvxtest_pci_bar(d, 0), 2), 0xabcd);
    assert_int_equal(hvxtest_mmio_read(vm, hvxtest_pci_bar(d, 4), 2), 0xabcd);
    hvxtest_pci_cfg_write(d, 4, 2, 0);
    assert_int_equal(hvxtest_pci_bar(d, 0), ~0ull);
    hvxtest_pci_cfg_write(d, 4, 2, 7);

    h->pci_msix_notify(d, 2); /* not enabled: nothing */
    assert_false(h->pci_msix_enabled(d));
    hvxtest_pci_msix(d, 2, 0xfee00000, 0x41, true);
    assert_true(h->pci_msix_enabled(d));
    h->pci_msix_notify(d, 2);
    assert_int_equal(hvxtest_msi_count(vm), 0);
    assert_true(hvxtest_pci_msix_pending(d, 2));
    hvxtest_pci_msix(d, 2, 0xfee00000, 0x41, false);
    assert_int_equal(hvxtest_msi_count(vm), 1);
    assert_int_equal(hvxtest_msi_at(vm, 0).data, 0x41);
    assert_false(hvxtest_pci_msix_pending(d, 2));

    h->pci_set_irq(d, true);
    assert_true(hvxtest_irq_level(vm, 17));
    hvxtest_pci_cfg_write(d, 4, 2, 0x407);
    assert_false(hvxtest_irq_level(vm, 17));
    h->pci_set_irq(d, false);
    h->pci_del(vm, d);
    hvxtest_free(vm);
}

static unsigned n_done;
static int32_t last_result;
static void done(struct hvx_blk_req *req)
{
    n_done++;
    last_result = req->result;
}

static void test_disk_holds_and_fails(void **state)
{
    (void)state;
    const struct hvx_host *h = hvxtest_host();
    struct hvx_vm *vm = hvxtest_new(NULL);
    struct hvx_blk *b = hvxtest_disk_add(vm, "disk0", &(struct hvxtest_disk_params){.bytes = 4096});
    assert_ptr_equal(h->blk_get(vm, "disk0"), b);
    assert_null(h->blk_get(vm, "disk1"));
    uint8_t buf[512];
    memset(buf, 0x77, sizeof(buf));
    struct iovec iov = {buf, sizeof(buf)};
    struct hvx_blk_req w = {.op = HVX_BLK_WRITE, .offset = 512, .bytes = 512, .iov = &iov, .n_iov = 1, .done = done};
    struct hvx_blk_req r = {.op = HVX_BLK_READ, .offset = 4096, .bytes = 512, .iov = &iov, .n_iov = 1, .done = done};
    n_done = 0;
    hvxtest_disk_hold(b, true);
    h->blk_submit(b, &w);
    hvxtest_run(vm);
    assert_int_equal(n_done, 0);
    assert_int_equal(hvxtest_disk_in_flight(b), 1);
    hvxtest_disk_hold(b, false);
    hvxtest_run(vm);
    assert_int_equal(n_done, 1);
    assert_int_equal(last_result, 0);
    assert_int_equal(hvxtest_disk_data(b)[512], 0x77);
    h->blk_submit(b, &r);
    hvxtest_run(vm);
    assert_int_equal(last_result, -EINVAL);
    hvxtest_disk_fail(b, HVX_BLK_WRITE, 1, -EIO);
    hvxtest_disk_data(b)[512] = 0;
    h->blk_submit(b, &w);
    hvxtest_run(vm);
    assert_int_equal(last_result, -EIO);
    assert_int_equal(hvxtest_disk_data(b)[512], 0);
    hvxtest_free(vm);
}

static size_t take_two(void *opaque, const uint8_t *buf, size_t n)
{
    size_t room = *(size_t *)opaque;
    (void)buf;
    size_t taken = n < room ? n : room;
    *(size_t *)opaque -= taken;
    return taken;
}

static void test_streams_are_offered_again(void **state)
{
    (void)state;
    const struct hvx_host *h = hvxtest_host();
    struct hvx_vm *vm = hvxtest_new(NULL);
    static const struct hvx_chr_ops ops = {.size = sizeof(ops), .receive = take_two};
    struct hvx_chr *c;
    size_t room = 2, n;
    assert_int_equal(h->chr_attach(vm, "serial0", &ops, &room, &c), 0);
    assert_int_equal(hvxtest_chr_input(vm, "serial0", "abcde", 5), 3);
    room = 10;
    h->chr_rx_ready(c);
    hvxtest_run(vm);
    assert_int_equal(hvxtest_chr_input(vm, "serial0", "", 0), 0);
    hvxtest_chr_limit(vm, "serial0", 1);
    assert_int_equal(h->chr_write(c, (const uint8_t *)"xy", 2), 1);
    assert_string_equal((const char *)hvxtest_chr_output(vm, "serial0", &n), "x");
    h->chr_detach(c);
    hvxtest_free(vm);
}

static const struct hvx_option table[] = {
    {.name = "base", .type = HVX_OPT_INT, .min = 0, .max = 0xffff, .def = "0x300", .help = "first port"},
    {.name = "cache", .type = HVX_OPT_SIZE, .min = 4096, .max = 1 << 30, .def = "64K"},
    {.name = "mode", .type = HVX_OPT_ENUM, .choices = "fast|slow", .def = "fast"},
    {.name = "label", .type = HVX_OPT_STRING},
    {.name = "on", .type = HVX_OPT_BOOL, .def = "no"},
    {.name = NULL},
};

static void test_options(void **state)
{
    (void)state;
    const struct hvx_host *h = hvxtest_host();
    struct hvx_config *c = hvxtest_config(table, "cache=2M,label=a,,b,on");
    assert_int_equal(h->conf_int(c, "base"), 0x300);
    assert_false(h->conf_is_set(c, "base"));
    assert_int_equal(h->conf_int(c, "cache"), 2 << 20);
    assert_string_equal(h->conf_string(c, "label"), "a,b");
    assert_string_equal(h->conf_string(c, "mode"), "fast");
    assert_true(h->conf_bool(c, "on"));
    hvxtest_config_free(c);
    struct hvx_error err;
    assert_int_equal(hvxtest_config_try(table, "mode=medium", &c, &err), -EINVAL);
    assert_string_equal(err.text, "options: mode=medium is not known; give one of fast|slow");
    assert_int_equal(hvxtest_config_try(table, "cache=1", &c, &err), -ERANGE);
    assert_string_equal(err.text, "options: cache=1 is out of range; give 4K to 1G");
}

static int reg_state(void *dev, struct hvx_stream *s)
{
    hvx_state_u32(s, dev);
    return hvx_state_error(s);
}

static void test_saved_state(void **state)
{
    (void)state;
    uint32_t v = 0x12345678, w = 0;
    uint8_t *buf;
    size_t n;
    struct hvx_error err;
    assert_int_equal(hvxtest_save(reg_state, &v, 1, &buf, &n), 0);
    assert_int_equal(n, 4);
    assert_int_equal(hvxtest_load(reg_state, &w, 1, buf, n, &err), 0);
    assert_int_equal(w, v);
    assert_int_equal(hvxtest_load(reg_state, &w, 1, buf, 3, &err), -EINVAL);
    free(buf);
}

static void test_faults_at_the_nth_call(void **state)
{
    (void)state;
    const struct hvx_host *h = hvxtest_host();
    struct hvx_vm *vm = hvxtest_new(NULL);
    struct hvx_timer *t = NULL, *u = NULL;
    hvxtest_fail_nth(vm, 2);
    assert_int_equal(h->timer_new(vm, tick, NULL, &t), 0);
    assert_int_equal(h->timer_new(vm, tick, NULL, &u), -ENOMEM);
    assert_null(u);
    assert_false(hvxtest_fail_nth(vm, 0));
    h->timer_del(t);
    hvxtest_free(vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_and_holes),
        cmocka_unit_test(test_dispatch_splits_and_layers),
        cmocka_unit_test(test_time_stands_still_between_steps),
        cmocka_unit_test(test_watches_and_deferred_calls),
        cmocka_unit_test(test_pci_bars_msix_and_intx),
        cmocka_unit_test(test_disk_holds_and_fails),
        cmocka_unit_test(test_streams_are_offered_again),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_saved_state),
        cmocka_unit_test(test_faults_at_the_nth_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
