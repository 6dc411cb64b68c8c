/* SPDX-License-Identifier: Apache-2.0
 *
 * The console device: one port, a stream that is full, several named ports.
 */
#include "test_driver.h"

#include <linux/virtio_console.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define RING (BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(VIRTIO_RING_F_INDIRECT_DESC))

static const struct variant {
    bool modern;
    uint64_t features;
} variants[] = {{false, 0}, {false, RING}, {true, 0}, {true, RING}, {true, RING | BIT(VIRTIO_F_RING_PACKED)}};
#define N_VARIANTS (sizeof(variants) / sizeof(variants[0]))

struct fixture {
    struct instance i;
    struct drv *d;
    uint64_t buf;
};

static void open_console(struct fixture *f, const char *options, bool modern, uint64_t features, unsigned n_queues)
{
    struct hvx_vm *vm = hvxtest_new(&(struct hvxtest_params){.ram_below_4g = DRV_RAM});
    memset(f, 0, sizeof(*f));
    instance_open(&f->i, vm, "virtio-console", options);
    f->d = &f->i.d;
    drv_start(f->d, vm, modern, features, n_queues);
    f->buf = drv_alloc(f->d, 1 << 20, 4096);
}

static void say(struct fixture *f, unsigned queue, const char *text)
{
    uint64_t at = drv_alloc(f->d, 256, 16);
    memcpy(drv_mem(f->d, at, 256), text, strlen(text));
    drv_add(f->d, &f->d->q[queue], &(struct seg){at, strlen(text), false}, 1);
    drv_kick(f->d, &f->d->q[queue]);
}

static void check_output(struct fixture *f, const char *id, const char *text)
{
    size_t n;
    const uint8_t *out = hvxtest_chr_output(f->i.vm, id, &n);
    assert_int_equal(n, strlen(text));
    assert_memory_equal(out, text, n);
}

static void test_output(void **state)
{
    (void)state;
    for (unsigned k = 0; k < N_VARIANTS; k++) {
        struct fixture f;
        open_console(&f, "packed=on", variants[k].modern, variants[k].features, 2);
        say(&f, 1, "hello ");
        say(&f, 1, "world\n");
        check_output(&f, "console0", "hello world\n");
        assert_true(drv_used(f.d, &f.d->q[1], NULL) >= 0);
        assert_true(drv_used(f.d, &f.d->q[1], NULL) >= 0);
        instance_close(&f.i);
    }
}

/* A stream that takes three bytes at a time: nothing is lost, doubled or reordered. */
static void test_output_to_a_full_stream(void **state)
{
    (void)state;
    for (unsigned k = 0; k < N_VARIANTS; k++) {
        struct fixture f;
        open_console(&f, "packed=on", variants[k].modern, variants[k].features, 2);
        hvxtest_chr_limit(f.i.vm, "console0", 3);
        uint64_t at = drv_alloc(f.d, 64, 16);
        memcpy(drv_mem(f.d, at, 36), "abcdefghijklmnopqrstuvwxyz0123456789", 36);
        drv_add(f.d, &f.d->q[1], (struct seg[]){{at, 10, false}, {at + 10, 1, false}, {at + 11, 25, false}}, 3);
        drv_kick(f.d, &f.d->q[1]);
        say(&f, 1, "next");
        assert_int_equal(drv_used(f.d, &f.d->q[1], NULL), -1);
        for (unsigned i = 0; i < 3; i++)
            hvxtest_step_ns(f.i.vm, 2000000);
        hvxtest_chr_limit(f.i.vm, "console0", 0);
        for (unsigned i = 0; i < 3; i++)
            hvxtest_step_ns(f.i.vm, 2000000);
        hvxtest_chr_limit(f.i.vm, "console0", 7);
        for (unsigned i = 0; i < 20; i++)
            hvxtest_step_ns(f.i.vm, 2000000);
        check_output(&f, "console0", "abcdefghijklmnopqrstuvwxyz0123456789next");
        assert_true(drv_used(f.d, &f.d->q[1], NULL) >= 0);
        assert_true(drv_used(f.d, &f.d->q[1], NULL) >= 0);
        assert_int_equal(hvxtest_next_deadline(f.i.vm), ~0ull);
        instance_close(&f.i);
    }
}

static void test_input(void **state)
{
    (void)state;
    for (unsigned k = 0; k < N_VARIANTS; k++) {
        struct fixture f;
        uint32_t len;
        open_console(&f, "packed=on", variants[k].modern, variants[k].features, 2);
        struct drvq *rx = &f.d->q[0];
        assert_int_equal(hvxtest_chr_input(f.i.vm, "console0", "0123456789", 10), 10); /* no buffers yet */
        drv_add(f.d, rx, &(struct seg){f.buf, 4, true}, 1);
        drv_add(f.d, rx, &(struct seg){f.buf + 4, 4, true}, 1);
        drv_kick(f.d, rx);
        hvxtest_run(f.i.vm);
        assert_true(drv_used(f.d, rx, &len) >= 0);
        assert_int_equal(len, 4);
        assert_true(drv_used(f.d, rx, &len) >= 0);
        assert_memory_equal(drv_mem(f.d, f.buf, 8), "01234567", 8);
        drv_add(f.d, rx, &(struct seg){f.buf, 100, true}, 1);
        drv_kick(f.d, rx);
        hvxtest_run(f.i.vm);
        assert_true(drv_used(f.d, rx, &len) >= 0);
        assert_int_equal(len, 2);
        assert_int_equal(hvxtest_chr_input(f.i.vm, "console0", "xy", 2), 2);
        drv_add(f.d, rx, &(struct seg){f.buf, 100, true}, 1);
        drv_kick(f.d, rx);
        hvxtest_run(f.i.vm);
        assert_int_equal(hvxtest_chr_input(f.i.vm, "console0", "", 0), 0);
        instance_close(&f.i);
    }
}

static void test_input_into_buffers_without_room(void **state)
{
    (void)state;
    struct fixture f;
    open_console(&f, "", true, RING, 2);
    for (unsigned i = 0; i < 5; i++)
        drv_add(f.d, &f.d->q[0], &(struct seg){f.buf, 10, false}, 1); /* readable ones */
    drv_kick(f.d, &f.d->q[0]);
    assert_int_equal(hvxtest_chr_input(f.i.vm, "console0", "abc", 3), 3);
    instance_close(&f.i);
}

static void test_emergency_write(void **state)
{
    (void)state;
    struct fixture f;
    open_console(&f, "", true, BIT(VIRTIO_CONSOLE_F_EMERG_WRITE), 0);
    drv_set_config(f.d, offsetof(struct virtio_console_config, emerg_wr), 4, '!');
    check_output(&f, "console0", "!");
    instance_close(&f.i);
}

/* --- several ports ---------------------------------------------------------------- */
static void tell(struct fixture *f, uint32_t id, uint16_t event, uint16_t value)
{
    struct virtio_console_control m = {id, event, value};
    uint64_t at = drv_alloc(f->d, sizeof(m), 8);
    memcpy(drv_mem(f->d, at, sizeof(m)), &m, sizeof(m));
    drv_add(f->d, &f->d->q[3], &(struct seg){at, sizeof(m), false}, 1);
    drv_kick(f->d, &f->d->q[3]);
}

static void expect(struct fixture *f, uint32_t id, uint16_t event, uint16_t value, const char *text)
{
    uint32_t len;
    int got = drv_used(f->d, &f->d->q[2], &len);
    assert_true(got >= 0);
    struct virtio_console_control *m = drv_mem(f->d, f->buf + 256 * got, 256);
    assert_int_equal(m->id, id);
    assert_int_equal(m->event, event);
    assert_int_equal(m->value, value);
    assert_int_equal(len, sizeof(*m) + strlen(text));
    assert_memory_equal(m + 1, text, strlen(text));
}

static void control_buffers(struct fixture *f, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        uint64_t at = f->buf + 256 * f->d->q[2].next_desc;
        drv_add(f->d, &f->d->q[2], &(struct seg){at, 256, true}, 1);
    }
    drv_kick(f->d, &f->d->q[2]);
}

static void test_multiport(void **state)
{
    (void)state;
    struct fixture f;
    open_console(&f, "port1=agent0:org.example.agent", true, RING | BIT(VIRTIO_CONSOLE_F_MULTIPORT), 6);
    assert_int_equal(drv_config(f.d, offsetof(struct virtio_console_config, max_nr_ports), 4), 2);
    tell(&f, 0xffffffff, VIRTIO_CONSOLE_DEVICE_READY, 1);
    assert_int_equal(drv_used(f.d, &f.d->q[2], NULL), -1); /* no buffers: it waits */
    control_buffers(&f, 1);
    expect(&f, 0, VIRTIO_CONSOLE_PORT_ADD, 0, "");
    control_buffers(&f, 1);
    expect(&f, 1, VIRTIO_CONSOLE_PORT_ADD, 0, "");
    control_buffers(&f, 20);
    tell(&f, 0, VIRTIO_CONSOLE_PORT_READY, 1);
    expect(&f, 0, VIRTIO_CONSOLE_CONSOLE_PORT, 1, "");
    expect(&f, 0, VIRTIO_CONSOLE_PORT_OPEN, 1, "");
    tell(&f, 1, VIRTIO_CONSOLE_PORT_READY, 1);
    expect(&f, 1, VIRTIO_CONSOLE_PORT_NAME, 1, "org.example.agent");
    expect(&f, 1, VIRTIO_CONSOLE_PORT_OPEN, 1, "");
    tell(&f, 7, VIRTIO_CONSOLE_PORT_READY, 1);
    assert_int_equal(hvxtest_events(f.i.vm, NULL), 1);

    say(&f, 5, "to the agent");
    check_output(&f, "agent0", "to the agent");
    drv_add(f.d, &f.d->q[4], &(struct seg){f.buf + 65536, 64, true}, 1);
    drv_kick(f.d, &f.d->q[4]);
    assert_int_equal(hvxtest_chr_input(f.i.vm, "agent0", "ask", 3), 3); /* nobody opened the port */
    tell(&f, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
    hvxtest_run(f.i.vm);
    assert_memory_equal(drv_mem(f.d, f.buf + 65536, 3), "ask", 3);
    say(&f, 1, "console");
    check_output(&f, "console0", "console");

    /* State keeps what ports still have to send. */
    uint8_t *buf;
    size_t n;
    struct hvx_error err = {0};
    assert_int_equal(hvxtest_save(f.i.type->state, f.i.dev, 1, &buf, &n), 0);
    f.i.type->reset(f.i.dev);
    assert_int_equal(hvxtest_load(f.i.type->state, f.i.dev, 1, buf, n, &err), 0);
    say(&f, 5, "!");
    check_output(&f, "agent0", "to the agent!");
    for (size_t at = 0; at < n; at++) {
        buf[at] ^= 0xff;
        (void)!hvxtest_load(f.i.type->state, f.i.dev, 1, buf, n, &err);
        hvxtest_step_ns(f.i.vm, 3000000);
        buf[at] ^= 0xff;
    }
    free(buf);
    instance_close(&f.i);
}

static void test_bad_port_options(void **state)
{
    (void)state;
    const struct hvx_device_type *t = device_type("virtio-console");
    struct hvx_vm *vm = hvxtest_new(NULL);
    struct hvx_error err = {0};
    void *ctx, *dev = NULL;
    assert_int_equal(hvx_plugin_dev_virtio.init(hvxtest_host(), NULL, &ctx, &err), 0);
    static const char *const bad[] = {"port1=nocolon", "port1=:name", "port2=stream:"};
    for (unsigned i = 0; i < 3; i++) {
        struct hvx_config *c = hvxtest_config(t->options, bad[i]);
        assert_int_equal(t->create(ctx, vm, c, &dev, &err), -EINVAL);
        assert_non_null(strstr(err.text, "STREAM:NAME"));
        hvxtest_config_free(c);
    }
    struct hvx_config *c = hvxtest_config(t->options, "port1=a:b");
    for (unsigned n = 1;; n++) {
        hvxtest_fail_nth(vm, n);
        int r = t->create(ctx, vm, c, &dev, &err);
        if (hvxtest_fail_nth(vm, 0))
            break;
        assert_true(r < 0);
        assert_int_equal(hvxtest_leftovers(vm, NULL, 0), 0);
    }
    t->destroy(dev);
    hvxtest_config_free(c);
    hvx_plugin_dev_virtio.fini(ctx);
    hvxtest_free(vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_output),
        cmocka_unit_test(test_output_to_a_full_stream),
        cmocka_unit_test(test_input),
        cmocka_unit_test(test_input_into_buffers_without_room),
        cmocka_unit_test(test_emergency_write),
        cmocka_unit_test(test_multiport),
        cmocka_unit_test(test_bad_port_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
