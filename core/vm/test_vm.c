/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/test_vm.c - a VM's life: instances, vCPU threads, pause, reset,
 * events, saved state.
 */
#define _GNU_SOURCE
#include "core/vm/test_null.h"
#include "core/vm/chr.h"
#include "core/vm/snapshot.h"
#include "core/vm/stream.h"

#include <semaphore.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- a small device ---------------------------------------------------------- */

struct toy {
    struct hvx_vm *vm;
    uint32_t value;
    unsigned n_resets;
};

static unsigned reset_order, machine_reset_at, toy_reset_at;

static uint64_t toy_read(void *opaque, uint64_t off, unsigned size)
{
    (void)off, (void)size;
    return ((struct toy *)opaque)->value;
}

/* Port 0 holds a value; port 4 asks the VM for something. */
static void toy_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct toy *t = opaque;

    (void)size;
    if (off == 0)
        t->value = (uint32_t)value;
    else
        hvx_host_table()->vm_request(t->vm, (enum hvx_vm_request)value, 33);
}

static const struct hvx_region_ops toy_ops = {toy_read, toy_write};

static int toy_create(void *ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev, struct hvx_error *err)
{
    struct toy *t = calloc(1, sizeof(*t));

    (void)config;
    t->vm = vm;
    *(struct toy **)ctx = t;
    *dev = t;
    return hvx_host_table()->region_add(vm, HVX_SPACE_PIO, 0x500, 8, 0, "toy", &toy_ops, t,
                                        &(struct hvx_region *){0}, err);
}

static void toy_reset(void *dev)
{
    ((struct toy *)dev)->n_resets++;
    toy_reset_at = ++reset_order;
}

static int toy_state(void *dev, struct hvx_stream *s)
{
    hvx_state_u32(s, &((struct toy *)dev)->value);
    return hvx_state_error(s);
}

static const struct hvx_device_type toy_type = {
    .size = sizeof(toy_type), .version = 3, .name = "toy", .create = toy_create, .destroy = free, .reset = toy_reset,
    .state = toy_state};

/* A board that starts vCPU 0 somewhere else. */
static int board_create(void *ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev,
                        struct hvx_error *err)
{
    (void)ctx, (void)config, (void)err;
    *dev = vm;
    return 0;
}

static void board_reset(void *dev)
{
    struct hvx_vcpu_regs *r = aligned_alloc(64, (sizeof(*r) + 63) & ~(size_t)63);

    memset(r, 0, sizeof(*r));
    r->size = sizeof(*r);
    r->rip = 0x100000;
    assert_int_equal(hvx_host_table()->vcpu_set_regs(dev, 0, r, sizeof(*r)), 0);
    free(r);
    machine_reset_at = ++reset_order;
}

static const struct hvx_device_type board_type = {
    .size = sizeof(board_type), .role = HVX_ROLE_MACHINE, .name = "board", .create = board_create,
    .reset = board_reset};

/* --- the fixture ------------------------------------------------------------------- */

struct fixture {
    struct null_engine n;
    struct hvx_vm *vm;
    const struct hvx_host *h;
    struct toy *toy;
    sem_t event;
    enum hvx_vm_event got;
    int code;
    char text[100];
    _Atomic(unsigned) n_runs;
};

static void on_event(void *opaque, enum hvx_vm_event e, int code, const char *text)
{
    struct fixture *f = opaque;

    f->got = e;
    f->code = code;
    snprintf(f->text, sizeof(f->text), "%s", text ? text : "");
    sem_post(&f->event);
}

static struct fixture *fixture(unsigned n_vcpus, int (*guest)(struct hvx_vm *, unsigned, void *, struct hvx_exit *))
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct hvx_error err;

    sem_init(&f->event, 0, 0);
    f->n.guest = guest;
    f->n.opaque = f;
    f->vm = null_vm(&f->n, n_vcpus, 32 << 20, on_event, f);
    f->h = hvx_host_table();
    assert_int_equal(hvx_vm_add_device(f->vm, &board_type, NULL, NULL, NULL, &err), 0);
    assert_int_equal(hvx_vm_add_device(f->vm, &toy_type, &f->toy, NULL, NULL, &err), 0);
    return f;
}

static void start(struct fixture *f)
{
    struct hvx_error err = {0};

    if (hvx_vm_start(f->vm, &err) < 0)
        fail_msg("%s", err.text);
}

static void end(struct fixture *f)
{
    hvx_vm_destroy(f->vm);
    sem_destroy(&f->event);
    free(f);
}

static void wait_event(struct fixture *f)
{
    while (sem_wait(&f->event) < 0)
        ;
}

/* --- tests --------------------------------------------------------------------------- */

static int writes_once(struct hvx_vm *vm, unsigned vcpu, void *opaque, struct hvx_exit *x)
{
    struct fixture *f = opaque;
    uint32_t v = 0xabcd, what = HVX_VM_DEBUG_EXIT;

    (void)x;
    if (vcpu == 0 && f->n_runs++ == 0) {
        f->h->io_write(vm, HVX_SPACE_PIO, 0x500, 4, &v);
        f->h->io_write(vm, HVX_SPACE_PIO, 0x504, 4, &what);
    }
    return 0;
}

static void a_guest_reaches_its_devices_and_ends_the_vm(void **state)
{
    struct fixture *f = fixture(2, writes_once);

    (void)state;
    reset_order = 0;
    start(f);
    wait_event(f);
    assert_int_equal(f->got, HVX_EVENT_DEBUG_EXIT);
    assert_int_equal(f->code, 33);
    assert_int_equal(f->toy->value, 0xabcd);
    assert_int_equal(f->toy->n_resets, 1);
    assert_true(toy_reset_at < machine_reset_at); /* the machine last */
    hvx_vm_pause(f->vm);
    assert_true(f->vm->vcpu[0].engine->regs.rip == 0x100000);
    assert_true(f->vm->vcpu[1].engine->regs.rip == 0xfff0);
    hvx_vm_resume(f->vm);
    end(f);
}

static int spins(struct hvx_vm *vm, unsigned vcpu, void *opaque, struct hvx_exit *x)
{
    struct fixture *f = opaque;
    uint32_t v;

    (void)vcpu, (void)x;
    f->n_runs++;
    f->h->io_read(vm, HVX_SPACE_PIO, 0x500, 4, &v);
    return HVX_EXIT_INTERRUPTED;
}

static void a_paused_vm_runs_nothing_and_pauses_nest(void **state)
{
    struct fixture *f = fixture(4, spins);
    unsigned n;

    (void)state;
    start(f);
    while (f->n_runs < 100)
        ;
    for (unsigned i = 0; i < 50; i++) {
        hvx_vm_pause(f->vm);
        hvx_vm_pause(f->vm);
        n = f->n_runs;
        hvx_vm_resume(f->vm);
        for (unsigned k = 0; k < 1000; k++)
            assert_int_equal(f->n_runs, n);
        hvx_vm_resume(f->vm);
        while (f->n_runs == n)
            ;
    }
    end(f);
}

static int faults(struct hvx_vm *vm, unsigned vcpu, void *opaque, struct hvx_exit *x)
{
    struct fixture *f = opaque;

    (void)vm;
    if (vcpu == 1 && f->n_runs++ == 0) {
        snprintf(x->text, sizeof(x->text), "no gate");
        return HVX_EXIT_SHUTDOWN;
    }
    return 0;
}

static void a_triple_fault_is_reported_and_a_reset_goes_on(void **state)
{
    struct fixture *f = fixture(2, faults);
    unsigned before;

    (void)state;
    start(f);
    wait_event(f);
    assert_int_equal(f->got, HVX_EVENT_SHUTDOWN);
    assert_int_equal(f->code, 1);
    assert_string_equal(f->text, "no gate");
    before = f->n_runs;
    hvx_vm_reset(f->vm);
    while (f->n_runs == before)
        ;
    assert_int_equal(f->toy->n_resets, 2);
    assert_int_equal(f->n.n_irqchip_resets, 2);
    assert_int_equal(f->vm->vcpu[1].engine->n_resets, 2);
    end(f);
}

static int breaks(struct hvx_vm *vm, unsigned vcpu, void *opaque, struct hvx_exit *x)
{
    (void)vm, (void)vcpu, (void)opaque;
    snprintf(x->text, sizeof(x->text), "cannot decode");
    return HVX_EXIT_ERROR;
}

static void an_engine_error_is_reported_with_its_reason(void **state)
{
    struct fixture *f = fixture(1, breaks);

    (void)state;
    start(f);
    wait_event(f);
    assert_int_equal(f->got, HVX_EVENT_ENGINE_ERROR);
    assert_string_equal(f->text, "cannot decode");
    end(f);
}

static FILE *saved(struct fixture *f)
{
    struct hvx_error err = {0};
    FILE *s = tmpfile();

    if (hvx_vm_save_devices(f->vm, s, &err) < 0)
        fail_msg("%s", err.text);
    rewind(s);
    return s;
}

static void state_survives_a_round_trip(void **state)
{
    struct fixture *a = fixture(2, NULL), *b = fixture(2, NULL);
    struct hvx_error err = {0};
    FILE *s;

    (void)state;
    start(a);
    start(b);
    a->toy->value = 0x12345678;
    a->n.irqchip = 99;
    a->h->irq_set(a->vm, 5, true);
    hvx_vm_pause(a->vm);
    a->vm->vcpu[1].engine->regs.gpr[HVX_RBX] = 0xb0b;
    hvx_vm_resume(a->vm);
    s = saved(a);
    if (hvx_vm_restore_devices(b->vm, s, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(b->toy->value, 0x12345678);
    assert_int_equal(b->n.irqchip, 99);
    assert_true(b->vm->irq_out[5]);
    assert_int_equal(b->vm->vcpu[1].engine->regs.gpr[HVX_RBX], 0xb0b);
    fclose(s);
    end(a);
    end(b);
}

static void a_damaged_or_foreign_state_is_refused_with_the_reason(void **state)
{
    struct fixture *a = fixture(1, NULL), *b = fixture(2, NULL);
    struct hvx_error err = {0};
    FILE *s, *cut;
    long n;

    (void)state;
    start(a);
    start(b);
    s = saved(a);
    assert_true(hvx_vm_restore_devices(b->vm, s, &err) < 0);
    assert_non_null(strstr(err.text, "--cpus"));
    fseek(s, 0, SEEK_END);
    n = ftell(s);
    for (long at = 0; at < n; at += 37) { /* every byte counts: flip some */
        int c;
        fseek(s, at, SEEK_SET);
        c = fgetc(s);
        fseek(s, at, SEEK_SET);
        fputc(c ^ 0x10, s);
        rewind(s);
        assert_true(hvx_vm_restore_devices(a->vm, s, &err) < 0);
        fseek(s, at, SEEK_SET);
        fputc(c, s);
    }
    cut = tmpfile();
    rewind(s);
    for (long i = 0; i < n - 5; i++)
        fputc(fgetc(s), cut);
    rewind(cut);
    assert_true(hvx_vm_restore_devices(a->vm, cut, &err) < 0);
    assert_non_null(strstr(err.text, "incomplete"));
    rewind(s);
    assert_int_equal(hvx_vm_restore_devices(a->vm, s, &err), 0);
    fclose(s);
    fclose(cut);
    end(a);
    end(b);
}

static int two_versions(void *opaque, struct hvx_stream *s)
{
    uint32_t *seen = opaque;

    *seen = s->version;
    hvx_state_u32(s, &(uint32_t){0});
    return hvx_state_error(s);
}

static int load_x(FILE *f, const char *name, uint32_t version, uint32_t *seen, struct hvx_error *err)
{
    struct hvx_state_file *s;
    int r;

    rewind(f);
    s = hvx_state_open(f);
    r = hvx_state_load_section(s, name, version, two_versions, seen, err);
    hvx_state_close(s);
    return r;
}

static void versions_older_are_served_and_newer_refused(void **state)
{
    struct hvx_error err;
    uint32_t seen = 0;
    FILE *f = tmpfile();
    struct hvx_state_file *s = hvx_state_open(f);

    (void)state;
    assert_int_equal(hvx_state_save_section(s, "x", 2, two_versions, &seen, &err), 0);
    hvx_state_close(s);
    assert_int_equal(load_x(f, "x", 3, &seen, &err), 0);
    assert_int_equal(seen, 2);
    assert_true(load_x(f, "x", 1, &seen, &err) < 0);
    assert_non_null(strstr(err.text, "newer"));
    assert_true(load_x(f, "y", 2, &seen, &err) < 0);
    fclose(f);
}

static void save_all(struct fixture *f, char **data, size_t *n)
{
    struct hvx_error err = {0};
    FILE *s = open_memstream(data, n);
    struct hvx_save *save;
    int r;

    if (hvx_save_begin(f->vm, s, "hvx run test", &save, &err) < 0)
        fail_msg("%s", err.text);
    assert_true(hvx_vm_paused(f->vm));
    while ((r = hvx_save_step(save, &err)) == 1)
        ;
    assert_int_equal(r, 0);
    hvx_save_end(save, true);
    assert_false(hvx_vm_paused(f->vm));
    fclose(s);
}

/* Start f from the state; the message when that fails. */
static const char *restored(struct fixture *f, char *data, size_t n)
{
    static struct hvx_error err;
    struct hvx_restore *r;
    FILE *s = fmemopen(data, n, "r");

    err.text[0] = 0;
    if (hvx_restore_open_stream(s, "test", false, &r, &err) < 0)
        return err.text;
    hvx_vm_restore_from(f->vm, r);
    if (hvx_vm_start(f->vm, &err) == 0)
        err.text[0] = 0;
    hvx_restore_close(r);
    return err.text;
}

static void a_whole_vm_comes_back_from_a_file(void **state)
{
    struct fixture *a = fixture(2, NULL), *b = fixture(2, NULL), *c = fixture(1, NULL), *d = fixture(2, NULL);
    static const uint64_t marks[] = {0, 0x3ff8, 0x400000 - 8, 0x400000, 0x1234560, (32 << 20) - 8};
    char *data;
    size_t n;

    (void)state;
    start(a);
    a->toy->value = 77;
    for (unsigned i = 0; i < sizeof(marks) / sizeof(marks[0]); i++)
        memcpy(a->vm->ram.hva + marks[i], &(uint64_t){0x1111 * (i + 1)}, 8);
    save_all(a, &data, &n);
    assert_true(n < 64 << 10); /* zeroes take no room */
    /* What stood in the new one's memory before does not show through. */
    memset(b->vm->ram.hva + (8 << 20), 0xee, 4096);
    assert_string_equal(restored(b, data, n), "");
    assert_int_equal(memcmp(a->vm->ram.hva, b->vm->ram.hva, 32 << 20), 0);
    assert_int_equal(b->toy->value, 77);
    assert_memory_equal(a->vm->uuid, b->vm->uuid, 16);
    assert_non_null(strstr(restored(c, data, n), "--cpus 2"));
    data[n / 2] ^= 1;
    assert_non_null(strstr(restored(d, data, n), "damaged"));
    assert_int_equal(d->n_runs, 0);
    free(data);
    end(a);
    end(b);
    end(c);
    end(d);
}

static void wrong_sizes_are_refused(void **state)
{
    struct hvx_vm_params p = {.n_vcpus = 0, .ram_bytes = 64 << 20};
    struct hvx_vm *vm = NULL;
    struct hvx_error err;

    (void)state;
    assert_true(hvx_vm_new(&p, &vm, &err) < 0);
    p.n_vcpus = 1;
    p.ram_bytes = 1 << 20;
    assert_true(hvx_vm_new(&p, &vm, &err) < 0);
    assert_non_null(strstr(err.text, "16 MiB"));
    p.ram_bytes = 1ull << 50;
    assert_true(hvx_vm_new(&p, &vm, &err) < 0);
    assert_null(vm);
}

static int draw(void *opaque, struct hvx_surface *out)
{
    static uint32_t pixels[8 * 4] = {0x00ff0000, 0x0000ff00};

    (void)opaque;
    *out = (struct hvx_surface){.width = 6, .height = 4, .stride = 32, .pixels = pixels};
    return 0;
}

static uint16_t pressed[16];
static unsigned n_pressed;

static void key(void *opaque, uint16_t code, bool down)
{
    (void)opaque;
    pressed[n_pressed++] = (uint16_t)(code | (down ? 0 : 0x8000));
}

static void screen_and_keyboard_are_found(void **state)
{
    struct fixture *f = fixture(1, NULL);
    const struct hvx_display_ops d = {.size = sizeof(d), .render = draw};
    const struct hvx_input_ops i = {.size = sizeof(i), .key = key};
    char path[] = "/tmp/hvx-test-png-XXXXXX";
    struct hvx_display *display;
    struct hvx_error err;
    struct stat st;

    (void)state;
    int fd = mkstemp(path);
    assert_true(hvx_vm_screendump(f->vm, fd, &err) < 0);
    assert_true(hvx_vm_sendkey(f->vm, "a", &err) < 0);
    assert_int_equal(f->h->display_add(f->vm, &d, NULL, &display), 0);
    assert_int_equal(f->h->input_add(f->vm, &i, NULL), 0);
    assert_int_equal(hvx_vm_screendump(f->vm, fd, &err), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_size > 60);
    close(fd);
    assert_true(hvx_vm_screendump(f->vm, fd, &err) < 0);
    n_pressed = 0;
    assert_int_equal(hvx_vm_sendkey(f->vm, "ctrl-alt-f2", &err), 0);
    assert_int_equal(n_pressed, 6);
    assert_int_equal(pressed[2], 0x3c);
    assert_int_equal(pressed[5], 0x801d);
    assert_true(hvx_vm_sendkey(f->vm, "ctrl-bogus", &err) < 0);
    assert_non_null(strstr(err.text, "bogus"));
    unlink(path);
    end(f);
}

static void guest_events_are_counted_per_kind(void **state)
{
    struct fixture *f = fixture(1, NULL);

    (void)state;
    hvx_log_set_level(HVX_LOG_ERROR);
    for (unsigned i = 0; i < 1000; i++)
        f->h->guest_event(f->vm, "nonsense", "write %u", i);
    for (unsigned i = 0; i < 300; i++) {
        char name[20];
        snprintf(name, sizeof(name), "kind %u", i);
        f->h->guest_event(f->vm, name, "x");
    }
    assert_int_equal(f->vm->guest_event[0].count, 1000);
    assert_int_equal(f->vm->n_guest_events, HVX_MAX_GUEST_EVENTS);
    end(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_guest_reaches_its_devices_and_ends_the_vm),
        cmocka_unit_test(a_paused_vm_runs_nothing_and_pauses_nest),
        cmocka_unit_test(a_triple_fault_is_reported_and_a_reset_goes_on),
        cmocka_unit_test(an_engine_error_is_reported_with_its_reason),
        cmocka_unit_test(state_survives_a_round_trip),
        cmocka_unit_test(a_damaged_or_foreign_state_is_refused_with_the_reason),
        cmocka_unit_test(versions_older_are_served_and_newer_refused),
        cmocka_unit_test(a_whole_vm_comes_back_from_a_file),
        cmocka_unit_test(wrong_sizes_are_refused),
        cmocka_unit_test(screen_and_keyboard_are_found),
        cmocka_unit_test(guest_events_are_counted_per_kind),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
