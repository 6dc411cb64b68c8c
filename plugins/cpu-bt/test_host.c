/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_host.c - see test_host.h. Its struct test_host is what the engine has for a VM and for options.
 */
#define _GNU_SOURCE
#include "test_host.h"
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

extern const struct hvx_plugin hvx_plugin_cpu_bt;

static struct test_host *of_vm(struct hvx_vm *v) { return (void *)v; }
static const struct test_host *of_config(const struct hvx_config *c) { return (const void *)c; }

/* --- the log ----------------------------------------------------------------------------- */
static struct test_host *now; /* whose vCPU was last used: the engine logs without saying for whom */
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;

static void host_log(int level, const char *who, const char *fmt, ...)
{
    char line[1000];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    pthread_mutex_lock(&log_lock);
    if (now) {
        size_t n = strlen(now->log);
        snprintf(now->log + n, sizeof(now->log) - n, "%s\n", line);
    }
    if (!(now && now->quiet) && (level <= HVX_LOG_WARN || getenv("HVXTEST_VERBOSE")))
        fprintf(stderr, "%s: %s\n", who, line);
    pthread_mutex_unlock(&log_lock);
}
static void host_event(struct hvx_vm *v, const char *what, const char *fmt, ...) { (void)v, (void)what, (void)fmt; }

/* --- clock, options, memory, ports ------------------------------------------------------------ */
uint64_t test_host_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
static void host_random(void *buf, size_t n) { memset(buf, 0x5a, n); }
static bool conf_bool(const struct hvx_config *c, const char *name)
{
    return of_config(c)->direct_eager && !strcmp(name, "direct-eager");
}
static int64_t conf_int(const struct hvx_config *c, const char *name)
{
    return !strcmp(name, "direct-helpers") && of_config(c)->helpers ? of_config(c)->helpers : 1;
}
static const char *conf_string(const struct hvx_config *c, const char *name)
{
    if (!strcmp(name, "direct"))
        return of_config(c)->direct ? of_config(c)->direct : "off";
    return !strcmp(name, "translation-cache") ? of_config(c)->translation_cache : NULL;
}
static void host_lock(struct hvx_vm *v) { (void)v; }
static void io_read(struct hvx_vm *v, enum hvx_space space, uint64_t addr, unsigned size, void *value)
{
    (void)v, (void)space, (void)addr;
    memset(value, 0xff, size);
}
static void io_write(struct hvx_vm *v, enum hvx_space space, uint64_t addr, unsigned size, const void *value)
{
    struct test_host *h = of_vm(v);
    (void)size, (void)value;
    if (space == HVX_SPACE_PIO && addr == TEST_PORT) {
        h->stopped = true;
        h->ops->vcpu_kick(h->vcpu);
    }
}
static void *mem_ptr(struct hvx_vm *v, uint64_t gpa, size_t *n)
{
    struct test_host *h = of_vm(v);
    if (gpa >= h->ram_size)
        return NULL;
    if (*n > h->ram_size - gpa)
        *n = h->ram_size - gpa;
    return h->ram + gpa;
}

/* --- watches: a thread for each descriptor does for an event loop ------------------------------- */
/* One at a time, and none while the VM is taken down: as with a device thread. */
static pthread_mutex_t devices = PTHREAD_MUTEX_INITIALIZER;

struct hvx_watch {
    pthread_t thread;
    int fd, stop;
    bool gone; /* under devices */
    void (*cb)(void *, int, bool, bool);
    void *opaque;
};
static void *watch_thread(void *arg)
{
    struct hvx_watch *w = arg;
    struct pollfd p[2] = {{.fd = w->fd, .events = POLLIN}, {.fd = w->stop, .events = POLLIN}};
    for (;;) {
        while (poll(p, 2, -1) < 0)
            ;
        if (p[1].revents)
            break;
        pthread_mutex_lock(&devices);
        if (!w->gone)
            w->cb(w->opaque, w->fd, true, false);
        pthread_mutex_unlock(&devices);
    }
    pthread_detach(pthread_self());
    close(w->stop);
    free(w);
    return NULL;
}
static int watch_new(struct hvx_vm *v, int fd, bool want_read, bool want_write, void (*cb)(void *, int, bool, bool),
                     void *opaque, struct hvx_watch **out)
{
    struct hvx_watch *w = calloc(1, sizeof(*w));
    (void)v, (void)want_read, (void)want_write;
    w->fd = fd;
    w->cb = cb;
    w->opaque = opaque;
    w->stop = eventfd(0, EFD_CLOEXEC);
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    *out = w;
    int rc = pthread_create(&w->thread, NULL, watch_thread, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -rc;
}
static void watch_del(struct hvx_watch *w)
{
    uint64_t one = 1;
    w->gone = true;
    if (write(w->stop, &one, 8) != 8)
        abort();
}

static const struct hvx_host host = {
    .size = sizeof(host), .abi_major = HVX_ABI_MAJOR, .log = host_log, .guest_event = host_event,
    .clock_ns = test_host_clock, .wall_clock_ns = test_host_clock, .random = host_random, .conf_bool = conf_bool,
    .conf_int = conf_int, .conf_string = conf_string, .conf_is_set = conf_bool, .vm_lock = host_lock,
    .vm_unlock = host_lock, .io_read = io_read, .io_write = io_write, .mem_ptr = mem_ptr, .watch_new = watch_new,
    .watch_del = watch_del,
};

/* --- the VM ------------------------------------------------------------------------------------ */
bool test_host_ram(struct test_host *h, uint64_t bytes, bool shared)
{
    int fd = shared ? memfd_create(TEST_RAM_NAME, MFD_CLOEXEC) : -1;
    if (shared && (fd < 0 || ftruncate(fd, (off_t)bytes)))
        goto fail;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
    if (p == MAP_FAILED)
        goto fail;
    h->ram = p;
    h->ram_size = bytes;
    h->fd = fd;
    return true;
fail:
    if (fd >= 0)
        close(fd);
    return false;
}

bool test_host_start(struct test_host *h)
{
    struct hvx_error err = {.text = ""};
    struct hvx_engine_config cfg = {.size = sizeof(cfg), .n_vcpus = 1, .cpu_model = "host", .tsc_hz = h->tsc_hz,
                                    .options = h->direct || h->translation_cache ? (const void *)h : NULL};
    struct hvx_mem_slot slot = {.size = sizeof(slot), .id = 0, .gpa = 0, .bytes = h->ram_size, .hva = h->ram,
                                .fd = h->fd};
    now = h;
    h->ops = hvx_plugin_cpu_bt.ops;
    if (hvx_plugin_cpu_bt.init(&host, NULL, &h->ctx, &err) || h->ops->probe(h->ctx, &err) ||
        h->ops->vm_create(h->ctx, (struct hvx_vm *)(void *)h, &cfg, &h->vm, &err) ||
        h->ops->set_slot(h->vm, &slot, &err) || h->ops->vcpu_create(h->vm, 0, &h->vcpu, &err) ||
        h->ops->prepare(h->vm, &err)) {
        host_log(HVX_LOG_WARN, "test_host", "cannot start the engine: %s", err.text);
        return false;
    }
    h->ops->vcpu_reset(h->vcpu);
    return true;
}

void test_host_end(struct test_host *h)
{
    struct hvx_vcpu *v = h->vcpu;
    now = h;
    h->vcpu = NULL; /* threads of a test's own look at it */
    pthread_mutex_lock(&devices);
    if (v)
        h->ops->vcpu_destroy(v);
    if (h->vm)
        h->ops->vm_destroy(h->vm);
    pthread_mutex_unlock(&devices);
    if (h->ctx)
        hvx_plugin_cpu_bt.fini(h->ctx);
    h->vm = NULL, h->ctx = NULL;
    if (h->ram)
        munmap(h->ram, h->ram_size);
    if (h->ram && h->fd >= 0)
        close(h->fd);
    h->ram = NULL;
    now = NULL;
}

bool test_host_run(struct test_host *h)
{
    struct hvx_exit x = {.size = sizeof(x)};
    now = h;
    int rc = h->ops->vcpu_run(h->vcpu, &x);
    if (!rc && x.reason == HVX_EXIT_INTERRUPTED)
        return true;
    fprintf(stderr, "vcpu_run gives %d, reason %u (%s)\n", rc, x.reason, x.text);
    return false;
}

/* --- what long mode wants ------------------------------------------------------------------------ */
void test_segment(struct hvx_segment *s, uint16_t sel, uint16_t attr)
{
    *s = (struct hvx_segment){.selector = sel, .attr = attr, .limit = attr & 0x100 ? 0 : 0xffffffff};
}

struct hvx_vcpu_regs *test_host_get(struct test_host *h)
{
    struct hvx_vcpu_regs *r = aligned_alloc(64, (sizeof(*r) + 63) & ~(size_t)63);
    memset(r, 0, sizeof(*r));
    r->size = sizeof(*r);
    h->ops->vcpu_get(h->vcpu, r);
    r->mp_state = 0;
    r->rflags = 2;
    for (unsigned i = 0; i < 6; i++)
        test_segment(&r->seg[i], 0, 0x100);
    test_segment(&r->ldtr, 0, 0x100);
    test_segment(&r->tr, 0x40, 0x8b);
    r->tr.limit = 0x67;
    r->cr0 = 0x80050033;
    r->cr4 = 0x620; /* PAE, OSFXSR, OSXMMEXCPT */
    r->efer = 0xd01; /* SCE, LME, LMA, NXE */
    r->dr[6] = 0xffff0ff0, r->dr[7] = 0x400;
    return r;
}

bool test_host_set(struct test_host *h, struct hvx_vcpu_regs *r)
{
    struct hvx_error err = {.text = ""};
    now = h;
    bool refused = h->ops->vcpu_set(h->vcpu, r, &err);
    if (refused)
        host_log(HVX_LOG_WARN, "test_host", "the engine refuses the registers: %s", err.text);
    free(r);
    return !refused;
}

void test_gdt(void *gdt, uint64_t tss)
{
    const uint64_t e[TEST_GDT_ENTRIES] = {
        0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0x00cffb000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff, 0,
        0x00008b0000000067 | (tss & 0xffffff) << 16 | (tss >> 24 & 0xff) << 56, tss >> 32,
    };
    memcpy(gdt, e, sizeof(e));
}

void test_gate(void *idt, unsigned n, uint64_t target, unsigned dpl)
{
    uint64_t attr = 0x8e00 | dpl << 13;
    uint64_t e[2] = {(target & 0xffff) | 8u << 16 | attr << 32 | (target >> 16 & 0xffff) << 48, target >> 32};
    memcpy((uint8_t *)idt + n * 16, e, 16);
}
