/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/guest.c - the batch loop as a guest of the engine: a
 * vCPU in long mode, ring 3, with page tables that put the arena where the
 * native run has it. The engine is reached through its public ABI alone.
 */
#define _GNU_SOURCE
#include "difftest.h"
#include <hvx/cpu.h>
#include <hvx/plugin.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

extern const struct hvx_plugin hvx_plugin_cpu_bt;

#define RAM_SIZE 0x2000000u
#define ARENA_GPA 0x1000000u
#define TABLES_GPA 0x100000u

static const struct hvx_cpu_ops *ops;
static struct hvx_engine_vm *vm;
static struct hvx_vcpu *vcpu;
static void *ctx;
static uint8_t *ram;
static volatile bool batch_done;
bool guest_direct;
const char *guest_warm;

/* --- the host table ----------------------------------------------------------------- */

static void host_log(int level, const char *who, const char *fmt, ...)
{
    va_list ap;
    if (level > HVX_LOG_WARN)
        return;
    va_start(ap, fmt);
    fprintf(stderr, "%s: ", who);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}
static void host_event(struct hvx_vm *v, const char *what, const char *fmt, ...)
{
    (void)v, (void)what, (void)fmt;
}
static uint64_t host_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
static void host_random(void *buf, size_t n) { memset(buf, 0x5a, n); }
/* Options are there with --direct, when programs run in a helper process, and with --warm only. */
static bool conf_bool(const struct hvx_config *c, const char *name) { return (void)c, guest_direct && !strcmp(name, "direct-eager"); }
static int64_t conf_int(const struct hvx_config *c, const char *name) { return (void)c, (void)name, 1; }
static const char *conf_string(const struct hvx_config *c, const char *name)
{
    (void)c;
    return !strcmp(name, "direct") ? guest_direct ? "user" : "off" : !strcmp(name, "translation-cache") ? guest_warm : NULL;
}
static int watch_new(struct hvx_vm *v, int fd, bool want_read, bool want_write, void (*cb)(void *, int, bool, bool), void *opaque,
                     struct hvx_watch **out)
{
    (void)v, (void)fd, (void)want_read, (void)want_write, (void)cb, (void)opaque;
    *out = NULL;
    return 0;
}
static void watch_del(struct hvx_watch *w) { (void)w; }
static void host_lock(struct hvx_vm *v) { (void)v; }
static void io_read(struct hvx_vm *v, enum hvx_space space, uint64_t addr, unsigned size, void *value)
{
    (void)v, (void)space, (void)addr;
    memset(value, 0xff, size);
}
static void io_write(struct hvx_vm *v, enum hvx_space space, uint64_t addr, unsigned size, const void *value)
{
    (void)v, (void)size, (void)value;
    if (space == HVX_SPACE_PIO && addr == 0xf4) {
        batch_done = true;
        ops->vcpu_kick(vcpu);
    }
}
static void *mem_ptr(struct hvx_vm *v, uint64_t gpa, size_t *n)
{
    (void)v;
    if (gpa >= RAM_SIZE)
        return NULL;
    if (*n > RAM_SIZE - gpa)
        *n = RAM_SIZE - gpa;
    return ram + gpa;
}

static const struct hvx_host host = {
    .size = sizeof(host), .abi_major = HVX_ABI_MAJOR, .log = host_log, .guest_event = host_event, .clock_ns = host_clock,
    .wall_clock_ns = host_clock, .random = host_random, .conf_bool = conf_bool, .conf_int = conf_int,
    .conf_string = conf_string, .conf_is_set = conf_bool, .vm_lock = host_lock, .vm_unlock = host_lock,
    .io_read = io_read, .io_write = io_write, .mem_ptr = mem_ptr, .watch_new = watch_new, .watch_del = watch_del,
};

/* --- guest memory ----------------------------------------------------------------------- */

static void *guest_at(struct backend *b, uint64_t address)
{
    (void)b;
    return ram + ARENA_GPA + (address - ARENA);
}

static void put64(uint64_t gpa, uint64_t v) { memcpy(ram + gpa, &v, 8); }

static uint64_t page_flags(uint64_t a)
{
    if (a >= DATA && a < DATA + DATA_SIZE) {
        if (a == PAGE_C)
            return 5;
        return a == PAGE_A || a == PAGE_B ? 7 : 0;
    }
    if (a >= STACKS && a < STACKS + STACKS_SIZE)
        return a == PAGE_S || a == PAGE_S + 4096 ? 7 : 0;
    return 7;
}

/* PML4, PDPT, PD, then a page of PTEs for each 2 MiB of the arena. */
static void build_tables(void)
{
    uint64_t pml4 = TABLES_GPA, pdpt = pml4 + 4096, pd = pdpt + 4096, pt = pd + 4096;
    put64(pml4, pdpt | 7);
    put64(pdpt, pd | 7);
    for (uint64_t a = 0; a < ARENA_SIZE; a += 4096) {
        if (!(a & 0x1fffff))
            put64(pd + ((ARENA + a) >> 21) * 8, (pt + (a >> 21) * 4096) | 7);
        uint64_t f = page_flags(ARENA + a);
        put64(pt + (a >> 12) * 8, f ? (ARENA_GPA + a) | f : 0);
    }
}

static void gate(unsigned n, uint64_t target, unsigned dpl)
{
    uint8_t *p = guest_at(NULL, KTABLES + 0x2000 + n * 16);
    uint64_t lo = (target & 0xffff) | 8u << 16 | (uint64_t)(0x8e00 | dpl << 13) << 32 | (target >> 16 & 0xffff) << 48;
    uint64_t hi = target >> 32;
    memcpy(p, &lo, 8);
    memcpy(p + 8, &hi, 8);
}

/* Selectors as Linux gives its processes, so that reading them agrees. */
static void build_system(void)
{
    uint64_t tss = KTABLES + 0x1000, sp = KSTACK_TOP;
    const uint64_t gdt[] = {0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0x00cffb000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff, 0,
                            0x00008b0000000067 | (tss & 0xffffff) << 16 | (tss >> 24 & 0xff) << 56, tss >> 32};
    memcpy(guest_at(NULL, KTABLES), gdt, sizeof(gdt));
    memcpy(guest_at(NULL, tss + 4), &sp, 8);
    memcpy(guest_at(NULL, tss + 0x66), &(uint16_t){0x68}, 2); /* no I/O permission map */
    for (unsigned i = 0; i < 32; i++)
        gate(i, DRIVER_AT(driver_guest_stubs) + i * GUEST_STUB_SIZE, i == 3 || i == 4 ? 3 : 0);
    gate(0x81, DRIVER_AT(driver_guest_stop), 3);
}

static void set_seg(struct hvx_segment *s, uint16_t sel, uint16_t attr, uint64_t base)
{
    s->selector = sel;
    s->attr = attr;
    s->limit = attr & 0x100 ? 0 : 0xffffffff;
    s->base = base;
}

static int set_state(struct hvx_error *err)
{
    struct hvx_vcpu_regs *r = aligned_alloc(64, (sizeof(*r) + 63) & ~(size_t)63);
    uint16_t fcw = 0x37f;
    uint32_t mxcsr = 0x1f80;
    memset(r, 0, sizeof(*r));
    r->size = sizeof(*r);
    ops->vcpu_get(vcpu, r);
    r->mp_state = 0;
    r->rip = DRIVER_AT(driver_start);
    r->rflags = 0x202;
    set_seg(&r->seg[HVX_CS], 0x33, 0xa0fb, 0);
    set_seg(&r->seg[HVX_SS], 0x2b, 0xc0f3, 0);
    set_seg(&r->seg[HVX_DS], SEL_DATA, 0xc0f3, 0);
    set_seg(&r->seg[HVX_ES], SEL_DATA, 0xc0f3, 0);
    set_seg(&r->seg[HVX_FS], 0, 0x100, 0);
    set_seg(&r->seg[HVX_GS], 0, 0x100, GS_BASE);
    set_seg(&r->ldtr, 0, 0x100, 0);
    set_seg(&r->tr, 0x40, 0x8b, KTABLES + 0x1000);
    r->tr.limit = 0x67;
    r->gdt_base = KTABLES, r->gdt_limit = 79;
    r->idt_base = KTABLES + 0x2000, r->idt_limit = 4095;
    r->cr0 = 0x80050033;
    r->cr3 = TABLES_GPA;
    r->cr4 = 0x20 | 0x80 | 0x200 | 0x400 | 0x40000;
    r->efer = 1 | 0x100 | 0x400 | 0x800;
    r->xcr0 = xlayout.mask;
    r->dr[6] = 0xffff0ff0, r->dr[7] = 0x400;
    memcpy(r->xsave, &fcw, 2);
    memcpy(r->xsave + 24, &mxcsr, 4);
    memcpy(r->xsave + 512, &(uint64_t){3}, 8);
    int rc = ops->vcpu_set(vcpu, r, err);
    free(r);
    return rc;
}

static int guest_init(struct backend *b)
{
    struct hvx_error err = {.text = ""};
    struct hvx_engine_config cfg = {.size = sizeof(cfg), .n_vcpus = 1, .cpu_model = "host", .tsc_hz = 2000000000,
                                    .options = guest_direct || guest_warm ? (const void *)&host : NULL};
    int fd = memfd_create("difftest", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, RAM_SIZE))
        return -1;
    ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ram == MAP_FAILED)
        return -1;
    build_tables();
    build_system();
    driver_place(b);
    state_page_c(guest_at(b, PAGE_C));
    memcpy(guest_at(b, V_EXIT), &(uint64_t){DRIVER_AT(driver_guest_exit)}, 8);

    ops = hvx_plugin_cpu_bt.ops;
    struct hvx_mem_slot slot = {.size = sizeof(slot), .id = 0, .gpa = 0, .bytes = RAM_SIZE, .hva = ram, .fd = fd};
    if (hvx_plugin_cpu_bt.init(&host, NULL, &ctx, &err) || ops->probe(ctx, &err) ||
        ops->vm_create(ctx, (struct hvx_vm *)&host, &cfg, &vm, &err) || ops->set_slot(vm, &slot, &err) ||
        ops->vcpu_create(vm, 0, &vcpu, &err) || ops->prepare(vm, &err)) {
        fprintf(stderr, "difftest: cannot start the engine: %s\n", err.text);
        return -1;
    }
    ops->vcpu_reset(vcpu);
    if (set_state(&err)) {
        fprintf(stderr, "difftest: the engine refuses the start state: %s\n", err.text);
        return -1;
    }
    return 0;
}

static void on_alarm(int sig)
{
    char buf[120];
    uint64_t target;
    (void)sig;
    memcpy(&target, guest_at(NULL, V_TARGET), 8);
    int n = snprintf(buf, sizeof(buf), "difftest: the engine makes no progress for 60 seconds, case at %#llx\n", (unsigned long long)target);
    if (write(2, buf, (size_t)n) < 0)
        _exit(98);
    _exit(99);
}

static int guest_run(struct backend *b, unsigned n)
{
    struct hvx_exit x;
    memcpy(guest_at(b, V_IN), &(uint64_t){INS}, 8);
    memcpy(guest_at(b, V_OUT), &(uint64_t){OUTS}, 8);
    memcpy(guest_at(b, V_LEFT), &(uint64_t){n}, 8);
    memcpy(guest_at(b, V_LOG), &(uint64_t){LOGS}, 8);
    memcpy(guest_at(b, V_ENTER), &(uint64_t){driver_enter_at()}, 8);
    ops->code_written(vm, ARENA_GPA + CODE - ARENA, CODE_SIZE);
    batch_done = false;
    signal(SIGALRM, on_alarm);
    alarm(60);
    while (!batch_done) {
        memset(&x, 0, sizeof(x));
        x.size = sizeof(x);
        int rc = ops->vcpu_run(vcpu, &x);
        if (rc || x.reason != HVX_EXIT_INTERRUPTED) {
            uint64_t target, left;
            memcpy(&target, guest_at(b, V_TARGET), 8);
            memcpy(&left, guest_at(b, V_LEFT), 8);
            fprintf(stderr, "difftest: vcpu_run gives %d, reason %u (%s), %llu cases left, case at %#llx\n", rc, x.reason,
                    x.text, (unsigned long long)left, (unsigned long long)target);
            return -1;
        }
    }
    alarm(0);
    return 0;
}

static void print_stat(void *opaque, const char *group, const char *name, uint64_t value, const char *unit)
{
    (void)opaque;
    if (value)
        printf("  %s %-24s %12llu %s\n", group, name, (unsigned long long)value, unit ? unit : "");
}
static void guest_stats(struct backend *b)
{
    (void)b;
    ops->stats(vm, print_stat, NULL);
}

static void guest_fini(struct backend *b)
{
    (void)b;
    if (vcpu)
        ops->vcpu_destroy(vcpu);
    if (vm)
        ops->vm_destroy(vm);
    if (ctx)
        hvx_plugin_cpu_bt.fini(ctx);
    vcpu = NULL, vm = NULL, ctx = NULL;
}

struct backend guest_backend = {"engine", guest_init, guest_at, guest_run, guest_stats, guest_fini};
