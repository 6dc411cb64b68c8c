/* SPDX-License-Identifier: Apache-2.0
 *
 * The fake host's general part: the table, locks, configuration, interrupts,
 * requests, saved state.
 */
#include "internal.h"

#include "core/conf/options.h"

#include <stdlib.h>
#include <string.h>

void test_bug(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("libhvxtest: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    abort();
}

void *test_alloc(size_t n)
{
    void *p = calloc(1, n ? n : 1);
    if (!p)
        test_bug("out of memory");
    return p;
}

void test_note(char *buf, size_t n, const char *fmt, ...)
{
    size_t used = n ? strlen(buf) : 0;
    if (used + 1 >= n)
        return;
    if (used) {
        strncat(buf, ", ", n - used - 1);
        used = strlen(buf);
    }
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(buf + used, n - used, fmt, ap);
    va_end(ap);
}

bool test_should_fail(struct hvx_vm *vm)
{
    return vm->fail_in && --vm->fail_in == 0;
}

bool hvxtest_fail_nth(struct hvx_vm *vm, unsigned nth)
{
    bool waiting = vm->fail_in != 0;
    vm->fail_in = nth;
    return waiting;
}

/* --- locks, log, events ------------------------------------------------------ */
void test_lock(struct hvx_vm *vm)
{
    pthread_mutex_lock(&vm->lock);
    vm->lock_depth++;
}

void test_unlock(struct hvx_vm *vm)
{
    if (vm->lock_depth <= 0)
        test_bug("vm_unlock without vm_lock");
    vm->lock_depth--;
    pthread_mutex_unlock(&vm->lock);
}

static bool is_verbose(void)
{
    return getenv("HVXTEST_VERBOSE") != NULL;
}

static void host_log(int level, const char *who, const char *fmt, ...)
{
    if (!is_verbose())
        return;
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "# log %d %s: ", level, who);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}

static void host_guest_event(struct hvx_vm *vm, const char *what, const char *fmt, ...)
{
    if (is_verbose()) {
        va_list ap;
        va_start(ap, fmt);
        fprintf(stderr, "# guest event %s: ", what);
        vfprintf(stderr, fmt, ap);
        fputc('\n', stderr);
        va_end(ap);
    }
    pthread_mutex_lock(&vm->irq_lock);
    struct test_event *e = vm->events;
    while (e && strcmp(e->what, what))
        e = e->next;
    if (!e) {
        e = test_alloc(sizeof(*e));
        snprintf(e->what, sizeof(e->what), "%s", what);
        e->next = vm->events;
        vm->events = e;
    }
    e->count++;
    pthread_mutex_unlock(&vm->irq_lock);
}

unsigned hvxtest_events(struct hvx_vm *vm, const char *what)
{
    unsigned n = 0;
    pthread_mutex_lock(&vm->irq_lock);
    for (struct test_event *e = vm->events; e; e = e->next)
        if (!what || !strcmp(e->what, what))
            n += e->count;
    pthread_mutex_unlock(&vm->irq_lock);
    return n;
}

static void host_random(void *buf, size_t n)
{
    /* Deterministic on purpose: a test that fails must fail again. */
    static uint64_t s = 0x243f6a8885a308d3u;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < n; i++) {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        ((uint8_t *)buf)[i] = (uint8_t)(s >> 24);
    }
    pthread_mutex_unlock(&lock);
}

/* --- configuration -------------------------------------------------------------- */
int hvxtest_config_try(const struct hvx_option *table, const char *text, struct hvx_config **out, struct hvx_error *err)
{
    struct hvx_config *c = NULL;
    int r = hvx_options_check(table, "option table", err);
    if (r == 0)
        r = hvx_config_new(table, &c);
    if (r == 0)
        r = hvx_config_parse(c, text, "options", err);
    if (r == 0)
        r = hvx_config_check(c, "options", err);
    if (r < 0) {
        hvx_config_destroy(c);
        return r;
    }
    *out = c;
    return 0;
}

struct hvx_config *hvxtest_config(const struct hvx_option *table, const char *text)
{
    struct hvx_config *c;
    struct hvx_error err = {.code = 0};
    if (hvxtest_config_try(table, text, &c, &err) < 0)
        test_bug("hvxtest_config: %s", err.text);
    return c;
}

void hvxtest_config_free(struct hvx_config *c)
{
    hvx_config_destroy(c);
}

/* --- interrupts --------------------------------------------------------------------- */
void test_irq_set(struct hvx_vm *vm, unsigned gsi, bool level)
{
    if (gsi >= TEST_GSIS)
        test_bug("irq_set: there is no GSI %u", gsi);
    pthread_mutex_lock(&vm->irq_lock);
    if (level && !vm->irq_level[gsi])
        vm->irq_rises[gsi]++;
    vm->irq_level[gsi] = level;
    pthread_mutex_unlock(&vm->irq_lock);
}

void test_msi_send(struct hvx_vm *vm, uint64_t addr, uint32_t data)
{
    pthread_mutex_lock(&vm->irq_lock);
    if (!vm->msis)
        vm->msis = test_alloc(TEST_MAX_MSI * sizeof(*vm->msis));
    if (vm->n_msis < TEST_MAX_MSI)
        vm->msis[vm->n_msis++] = (struct hvxtest_msi){addr, data};
    pthread_mutex_unlock(&vm->irq_lock);
}

bool hvxtest_irq_level(struct hvx_vm *vm, unsigned gsi)
{
    return gsi < TEST_GSIS && vm->irq_level[gsi];
}

/* This guest takes every edge at once. */
static void host_irq_tick(struct hvx_vm *vm, unsigned gsi, unsigned n)
{
    if (n > HVX_TICKS_OWED_MAX)
        test_bug("irq_tick: %u ticks at once, more than HVX_TICKS_OWED_MAX", n);
    while (n--) {
        test_irq_set(vm, gsi, false);
        test_irq_set(vm, gsi, true);
    }
    test_irq_set(vm, gsi, false);
}

unsigned hvxtest_irq_rises(struct hvx_vm *vm, unsigned gsi)
{
    return gsi < TEST_GSIS ? vm->irq_rises[gsi] : 0;
}

unsigned hvxtest_msi_count(struct hvx_vm *vm)
{
    return vm->n_msis;
}

struct hvxtest_msi hvxtest_msi_at(struct hvx_vm *vm, unsigned i)
{
    if (i >= vm->n_msis)
        test_bug("hvxtest_msi_at(%u): there were %u", i, vm->n_msis);
    return vm->msis[i];
}

void hvxtest_irq_clear(struct hvx_vm *vm)
{
    pthread_mutex_lock(&vm->irq_lock);
    memset(vm->irq_rises, 0, sizeof(vm->irq_rises));
    vm->n_msis = 0;
    pthread_mutex_unlock(&vm->irq_lock);
}

/* --- the VM ------------------------------------------------------------------------------ */
static void host_guest_info(struct hvx_vm *vm, struct hvx_guest_info *out)
{
    struct hvx_guest_info info = {
        .n_vcpus = vm->params.n_vcpus,
        .ram_bytes = vm->params.ram_below_4g + vm->params.ram_above_4g,
        .ram_below_4g = vm->params.ram_below_4g,
        .ram_above_4g = vm->params.ram_above_4g,
        .n_disks = vm->params.n_disks,
        .n_nics = vm->params.n_nics,
        .kernel = vm->params.kernel,
        .initrd = vm->params.initrd,
        .append = vm->params.append,
        .firmware = vm->params.firmware,
        .boot_order = vm->params.boot_order ? vm->params.boot_order : "cdn",
        .name = vm->params.name ? vm->params.name : "test",
        .uuid = {0x6d, 0x1e, 0x57, 0x90, 0x11, 0x22, 0x43, 0x44, 0x85, 0x66, 1, 2, 3, 4, 5, 6},
        .tsc_hz = 1000000000u,
    };
    uint32_t size = out->size;
    if (size < sizeof(uint32_t) || size > sizeof(info))
        test_bug("guest_info: out->size is %u; set it to sizeof(struct hvx_guest_info)", size);
    info.size = size;
    memcpy(out, &info, size);
}

static void host_vm_request(struct hvx_vm *vm, enum hvx_vm_request what, int code)
{
    pthread_mutex_lock(&vm->irq_lock);
    vm->request = (int)what;
    vm->request_code = code;
    pthread_mutex_unlock(&vm->irq_lock);
}

int hvxtest_request(struct hvx_vm *vm, int *code)
{
    pthread_mutex_lock(&vm->irq_lock);
    int what = vm->request;
    if (code)
        *code = vm->request_code;
    vm->request = 0;
    pthread_mutex_unlock(&vm->irq_lock);
    return what;
}

static int host_vcpu_set_regs(struct hvx_vm *vm, unsigned index, const void *regs, size_t size)
{
    if (test_should_fail(vm))
        return -ENOMEM;
    if (index >= vm->params.n_vcpus)
        return -EINVAL;
    free(vm->regs[index]);
    vm->regs[index] = test_alloc(size);
    memcpy(vm->regs[index], regs, size);
    vm->regs_n[index] = size;
    return 0;
}

const void *hvxtest_vcpu_regs(struct hvx_vm *vm, unsigned index, size_t *size)
{
    if (index >= 64 || !vm->regs[index])
        return NULL;
    if (size)
        *size = vm->regs_n[index];
    return vm->regs[index];
}

static bool host_is_confined(void)
{
    return false;
}

static void host_power_button_set(struct hvx_vm *vm, void (*cb)(void *opaque), void *opaque)
{
    vm->power_cb = cb;
    vm->power_opaque = opaque;
}

void hvxtest_power_button(struct hvx_vm *vm)
{
    test_lock(vm);
    if (vm->power_cb)
        vm->power_cb(vm->power_opaque);
    test_unlock(vm);
}

static void host_balloon_set(struct hvx_vm *vm, const struct hvx_balloon_ops *ops, void *opaque)
{
    vm->balloon = ops;
    vm->balloon_opaque = opaque;
}

const struct hvx_balloon_ops *hvxtest_balloon(struct hvx_vm *vm, void **opaque)
{
    *opaque = vm->balloon_opaque;
    return vm->balloon;
}

static void host_hotplug_set(struct hvx_vm *vm, const struct hvx_hotplug_ops *ops, void *opaque)
{
    vm->hotplug = ops;
    vm->hotplug_opaque = opaque;
}

const struct hvx_hotplug_ops *hvxtest_hotplug(struct hvx_vm *vm, void **opaque)
{
    *opaque = vm->hotplug_opaque;
    return vm->hotplug;
}

static bool host_pci_eject(struct hvx_vm *vm, unsigned slot)
{
    vm->ejected |= 1u << slot;
    return true;
}

uint32_t hvxtest_ejected(struct hvx_vm *vm)
{
    uint32_t slots = vm->ejected;
    vm->ejected = 0;
    return slots;
}

static struct hvx_host table;
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void table_fill(void)
{
    table = (struct hvx_host){
        .size = sizeof(table),
        .abi_major = HVX_ABI_MAJOR,
        .log = host_log,
        .guest_event = host_guest_event,
        .random = host_random,
        .conf_bool = hvx_config_bool,
        .conf_int = hvx_config_int,
        .conf_string = hvx_config_string,
        .conf_is_set = hvx_config_is_set,
        .guest_info = host_guest_info,
        .vm_lock = test_lock,
        .vm_unlock = test_unlock,
        .vm_request = host_vm_request,
        .irq_set = test_irq_set,
        .irq_tick = host_irq_tick,
        .msi_send = test_msi_send,
        .vcpu_set_regs = host_vcpu_set_regs,
        .power_button_set = host_power_button_set,
        .is_confined = host_is_confined,
        .balloon_set = host_balloon_set,
        .hotplug_set = host_hotplug_set,
        .pci_eject = host_pci_eject,
    };
    test_host_mem(&table);
    test_host_pci(&table);
    test_host_loop(&table);
    test_host_io(&table);
    /* A function added to the table but not here would be a NULL call later. */
    for (void **p = (void **)&table.log; p < (void **)(&table + 1); p++)
        if (!*p)
            test_bug("libhvxtest lacks host function number %td", p - (void **)&table.log);
}

const struct hvx_host *hvxtest_host(void)
{
    pthread_once(&table_once, table_fill);
    return &table;
}

struct hvx_vm *hvxtest_new(const struct hvxtest_params *params)
{
    struct hvx_vm *vm = test_alloc(sizeof(*vm));
    if (params)
        vm->params = *params;
    if (!vm->params.ram_below_4g)
        vm->params.ram_below_4g = 16u << 20;
    if (!vm->params.n_vcpus)
        vm->params.n_vcpus = 1;
    if ((vm->params.ram_below_4g | vm->params.ram_above_4g) % 4096 || vm->params.n_vcpus > 64)
        test_bug("hvxtest_new: RAM must be a multiple of 4096 bytes, and at most 64 vCPUs");
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&vm->lock, &attr);
    pthread_mutex_init(&vm->irq_lock, NULL);
    pthread_mutex_init(&vm->loop_lock, NULL);
    pthread_mutexattr_destroy(&attr);
    vm->deferred_end = &vm->deferred;
    test_mem_init(vm);
    return vm;
}

unsigned hvxtest_leftovers(struct hvx_vm *vm, char *buf, size_t n)
{
    unsigned count = 0;
    if (n)
        buf[0] = '\0';
    for (struct hvx_region *r = vm->regions; r; r = r->next) {
        test_note(buf, n, "region %s", r->name);
        count++;
    }
    count += test_pci_leftovers(vm, buf, n);
    count += test_loop_leftovers(vm, buf, n);
    count += test_io_leftovers(vm, buf, n);
    return count;
}

void hvxtest_free(struct hvx_vm *vm)
{
    if (!vm)
        return;
    char names[400];
    if (hvxtest_leftovers(vm, names, sizeof(names)))
        test_bug("hvxtest_free: the device left behind: %s", names);
    test_pci_done(vm);
    test_loop_done(vm);
    test_io_done(vm);
    test_mem_done(vm);
    while (vm->events) {
        struct test_event *e = vm->events;
        vm->events = e->next;
        free(e);
    }
    for (unsigned i = 0; i < 64; i++)
        free(vm->regs[i]);
    free(vm->msis);
    pthread_mutex_destroy(&vm->lock);
    pthread_mutex_destroy(&vm->irq_lock);
    pthread_mutex_destroy(&vm->loop_lock);
    free(vm);
}

/* --- saved state ------------------------------------------------------------------------------ */
struct memory_stream {
    struct hvx_stream s; /* first */
    uint8_t *buf;        /* saving: owned */
    const uint8_t *in;
    size_t n, pos;
    char why[200];
};

static void stream_fail(struct hvx_stream *s, int code, const char *why)
{
    struct memory_stream *m = (struct memory_stream *)s;
    if (!s->error) {
        s->error = code;
        snprintf(m->why, sizeof(m->why), "%s", why);
    }
}

static void stream_bytes(struct hvx_stream *s, void *p, size_t n)
{
    struct memory_stream *m = (struct memory_stream *)s;
    if (s->error)
        return;
    if (s->saving) {
        m->buf = realloc(m->buf, m->pos + n + 1);
        if (!m->buf)
            test_bug("out of memory");
        memcpy(m->buf + m->pos, p, n);
    } else {
        if (n > m->n - m->pos) {
            stream_fail(s, -EINVAL, "the section ends early");
            return;
        }
        memcpy(p, m->in + m->pos, n);
    }
    m->pos += n;
}

int hvxtest_save(int (*state)(void *dev, struct hvx_stream *s), void *dev, uint32_t version, uint8_t **buf, size_t *n)
{
    struct memory_stream m = {.s = {.size = sizeof(m.s), .saving = 1, .version = version, .bytes = stream_bytes,
                                    .fail = stream_fail}};
    int r = state(dev, &m.s);
    if (r != m.s.error)
        test_bug("state(): returned %d, the stream's error is %d; return hvx_state_error(s)", r, m.s.error);
    if (r < 0) {
        free(m.buf);
        return r;
    }
    *buf = m.buf ? m.buf : test_alloc(1);
    *n = m.pos;
    return 0;
}

int hvxtest_load(int (*state)(void *dev, struct hvx_stream *s), void *dev, uint32_t version, const uint8_t *buf, size_t n,
                 struct hvx_error *err)
{
    struct memory_stream m = {.s = {.size = sizeof(m.s), .version = version, .bytes = stream_bytes,
                                    .fail = stream_fail}, .in = buf, .n = n};
    int r = state(dev, &m.s);
    if (r < 0 || m.s.error)
        return hvx_fail(err, m.s.error ? m.s.error : r, "restore: %s", m.why[0] ? m.why : "failed");
    if (m.pos != n)
        return hvx_fail(err, -EINVAL, "restore: %zu bytes are left over", n - m.pos);
    return 0;
}
