/* SPDX-License-Identifier: Apache-2.0
 *
 * The plugin's unit test: its object and libhvxtest, no hypervisor.
 */
#include <hvx/test.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

extern const struct hvx_plugin hvx_plugin_dev_adder;

struct fixture {
    struct hvx_vm *vm;
    struct hvx_config *config;
    const struct hvx_device_type *type;
    void *ctx, *dev;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct hvx_error err;
    const struct hvx_device_ops *ops = hvx_plugin_dev_adder.ops;
    f->vm = hvxtest_new(NULL);
    f->type = ops->types[0];
    f->config = hvxtest_config(f->type->options, "base=0x300,irq=7,delay-ns=500");
    if (hvx_plugin_dev_adder.init(hvxtest_host(), NULL, &f->ctx, &err) < 0 ||
        f->type->create(f->ctx, f->vm, f->config, &f->dev, &err) < 0)
        return -1;
    f->type->reset(f->dev);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    f->type->destroy(f->dev);
    hvxtest_config_free(f->config);
    hvxtest_free(f->vm); /* aborts if the device left something behind */
    free(f);
    return 0;
}

static void it_adds_and_interrupts(void **state)
{
    struct fixture *f = *state;
    hvxtest_pio_write(f->vm, 0x300, 4, 40);
    hvxtest_pio_write(f->vm, 0x304, 4, 2);
    hvxtest_pio_write(f->vm, 0x30c, 4, 5); /* go, with interrupt */
    assert_int_equal(hvxtest_pio_read(f->vm, 0x30c, 4), 5);
    hvxtest_step_ns(f->vm, 499);
    assert_false(hvxtest_irq_level(f->vm, 7));
    hvxtest_step_ns(f->vm, 1);
    assert_true(hvxtest_irq_level(f->vm, 7));
    assert_int_equal(hvxtest_pio_read(f->vm, 0x308, 4), 42);
    assert_int_equal(hvxtest_pio_read(f->vm, 0x30c, 1), 6);
    hvxtest_pio_write(f->vm, 0x30c, 4, 2); /* acknowledge */
    assert_false(hvxtest_irq_level(f->vm, 7));
}

static void odd_accesses_are_harmless(void **state)
{
    struct fixture *f = *state;
    hvxtest_pio_write(f->vm, 0x301, 2, 0xffff);
    hvxtest_pio_write(f->vm, 0x308, 4, 9); /* SUM is read-only */
    assert_int_equal(hvxtest_events(f->vm, "adder-access"), 1);
    assert_int_equal(hvxtest_pio_read(f->vm, 0x300, 4), 0);
    assert_int_equal(hvxtest_pio_read(f->vm, 0x308, 4), 0);
}

static void state_survives_in_mid_addition(void **state)
{
    struct fixture *f = *state;
    uint8_t *buf;
    size_t n;
    struct hvx_error err;
    hvxtest_pio_write(f->vm, 0x300, 4, 1);
    hvxtest_pio_write(f->vm, 0x30c, 4, 1);
    assert_int_equal(hvxtest_save(f->type->state, f->dev, f->type->version, &buf, &n), 0);
    f->type->reset(f->dev);
    assert_int_equal(hvxtest_load(f->type->state, f->dev, f->type->version, buf, n, &err), 0);
    hvxtest_step_ns(f->vm, 500);
    assert_int_equal(hvxtest_pio_read(f->vm, 0x308, 4), 1);
    buf[12] = 0x80;
    assert_int_equal(hvxtest_load(f->type->state, f->dev, f->type->version, buf, n, &err), -EINVAL);
    free(buf);
}

static void creation_fails_cleanly(void **state)
{
    struct fixture *f = *state;
    struct hvx_config *c = hvxtest_config(f->type->options, "base=0x400");
    for (unsigned nth = 1;; nth++) {
        struct hvx_error err;
        void *dev = NULL;
        hvxtest_fail_nth(f->vm, nth);
        int r = f->type->create(f->ctx, f->vm, c, &dev, &err);
        if (hvxtest_fail_nth(f->vm, 0)) { /* ran out of calls to fail */
            assert_int_equal(r, 0);
            f->type->destroy(dev);
            break;
        }
        assert_int_equal(r, -ENOMEM);
        assert_null(dev);
    }
    hvxtest_config_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_adds_and_interrupts, setup, teardown),
        cmocka_unit_test_setup_teardown(odd_accesses_are_harmless, setup, teardown),
        cmocka_unit_test_setup_teardown(state_survives_in_mid_addition, setup, teardown),
        cmocka_unit_test_setup_teardown(creation_fails_cleanly, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
