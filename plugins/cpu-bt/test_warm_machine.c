/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_warm_machine.c - see test_warm.h. The engine is reached
 * through its public ABI.
 */
#define _GNU_SOURCE
#include "test_warm.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

extern const struct hvx_plugin hvx_plugin_cpu_bt;

#define RAM_SIZE 0x800000u
#define TABLES 0x100000u
#define CODE 0x200000u /* 2 MiB, mapped at all the places */
#define PORT 0xf4

/* RIP-relative operands, calls direct and indirect, a C op, a loop, a jump to another page. Nothing of its place is in
 * the result. */
__asm__(".section .rodata\n"
        ".p2align 12\n"
        "warm_code:\n"
        "lea 4096*16(%rip), %rsp\n"
        "xor %ebx, %ebx\n"
        "mov $40, %r12d\n"
        "warm_code_constant: mov $0x11223344, %r13d\n"
        "1: mov warm_code_data(%rip), %rax\n"
        "add %r13, %rax\n"
        "lea warm_code_add(%rip), %rdx\n"
        "call *%rdx\n"
        "call warm_code_far\n"
        "mov %rbx, warm_code_data+8(%rip)\n"
        "dec %r12d\n"
        "jne 1b\n"
        "xor %eax, %eax\n"
        "cpuid\n"
        "mov warm_code_data+8(%rip), %rax\n"
        "jmp warm_code_end\n"
        "warm_code_add: add %rax, %rbx\n"
        "rol $7, %rbx\n"
        "ret\n"
        ".p2align 6\n"
        "warm_code_data: .quad 0x123456789abcdef1, 0\n"
        ".p2align 12\n"
        "warm_code_far: xor %rax, %rbx\n"
        "ret\n"
        "warm_code_end: out %al, $0xf4\n"
        "jmp warm_code_end\n"
        "warm_code_stop:\n"
        ".previous\n");
extern const uint8_t warm_code[], warm_code_constant[], warm_code_stop[];

uint64_t warm_expect(uint32_t constant)
{
    uint64_t b = 0;
    for (unsigned i = 0; i < 40; i++) {
        uint64_t a = 0x123456789abcdef1ull + constant;
        b += a;
        b = b << 7 | b >> 57;
        b ^= a;
    }
    return b;
}

static struct warm_machine *now;

static void host_log(int level, const char *who, const char *fmt, ...)
{
    va_list ap;
    size_t n = now ? strlen(now->log) : 0;
    (void)level, (void)who;
    if (!now)
        return;
    va_start(ap, fmt);
    vsnprintf(now->log + n, sizeof(now->log) - n, fmt, ap);
    va_end(ap);
    n = strlen(now->log);
    snprintf(now->log + n, sizeof(now->log) - n, "\n");
}
static void host_event(struct hvx_vm *v, const char *what, const char *fmt, ...) { (void)v, (void)what, (void)fmt; }
static uint64_t host_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
static void host_random(void *buf, size_t n) { memset(buf, 0x5a, n); }
static bool conf_bool(const struct hvx_config *c, const char *name) { return (void)c, (void)name, false; }
static int64_t conf_int(const struct hvx_config *c, const char *name) { return (void)c, (void)name, 1; }
static const char *conf_string(const struct hvx_config *c, const char *name)
{
    (void)c;
    return !strcmp(name, "direct") ? "off" : !strcmp(name, "translation-cache") ? now->path : NULL;
}
static void host_lock(struct hvx_vm *v) { (void)v; }
static void io_read(struct hvx_vm *v, enum hvx_space space, uint64_t addr, unsigned size, void *value)
{
    (void)v, (void)space, (void)addr;
    memset(value, 0xff, size);
}
static void io_write(struct hvx_vm *v, enum hvx_space space, uint64_t addr, unsigned size, const void *value)
{
    (void)v, (void)size, (void)value;
    if (space == HVX_SPACE_PIO && addr == PORT) {
        now->done = true;
        now->ops->vcpu_kick(now->vcpu);
    }
}
static void *mem_ptr(struct hvx_vm *v, uint64_t gpa, size_t *n)
{
    (void)v;
    if (gpa >= RAM_SIZE)
        return NULL;
    if (*n > RAM_SIZE - gpa)
        *n = RAM_SIZE - gpa;
    return now->ram + gpa;
}
static const struct hvx_host host = {
    .size = sizeof(host), .abi_major = HVX_ABI_MAJOR, .log = host_log, .guest_event = host_event, .clock_ns = host_clock,
    .wall_clock_ns = host_clock, .random = host_random, .conf_bool = conf_bool, .conf_int = conf_int,
    .conf_string = conf_string, .conf_is_set = conf_bool, .vm_lock = host_lock, .vm_unlock = host_lock,
    .io_read = io_read, .io_write = io_write, .mem_ptr = mem_ptr,
};

static void put64(struct warm_machine *m, uint64_t gpa, uint64_t v) { memcpy(m->ram + gpa, &v, 8); }

static void map(struct warm_machine *m, uint64_t va, unsigned n)
{
    uint64_t pdpt = TABLES + 0x1000 + n * 0x2000, pd = pdpt + 0x1000, old;
    memcpy(&old, m->ram + TABLES + (va >> 39 & 511) * 8, 8);
    if (old) /* the kernel's places */
        pdpt = old & ~0xfffull;
    put64(m, TABLES + (va >> 39 & 511) * 8, pdpt | 7);
    memcpy(&old, m->ram + pdpt + (va >> 30 & 511) * 8, 8);
    if (old)
        pd = old & ~0xfffull;
    put64(m, pdpt + (va >> 30 & 511) * 8, pd | 7);
    put64(m, pd + (va >> 21 & 511) * 8, CODE | 0xe7); /* large, accessed, dirty */
}

bool warm_start(struct warm_machine *m, const char *path)
{
    struct hvx_error err = {.text = ""};
    struct hvx_engine_config cfg = {.size = sizeof(cfg), .n_vcpus = 1, .cpu_model = "host", .tsc_hz = 2000000000,
                                    .options = (const void *)&host};
    struct hvx_mem_slot slot = {.size = sizeof(slot), .id = 0, .gpa = 0, .bytes = RAM_SIZE, .fd = -1};
    memset(m, 0, sizeof(*m));
    now = m;
    m->path = path;
    m->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m->ram == MAP_FAILED)
        return false;
    slot.hva = m->ram;
    static const uint64_t places[] = {WARM_USER_A, WARM_USER_B, WARM_KERNEL_A, WARM_KERNEL_B, WARM_LOW};
    for (unsigned i = 0; i < 5; i++)
        map(m, places[i] & ~0x1fffffull, i);
    m->ops = hvx_plugin_cpu_bt.ops;
    if (hvx_plugin_cpu_bt.init(&host, NULL, &m->ctx, &err) || m->ops->probe(m->ctx, &err) ||
        m->ops->vm_create(m->ctx, (struct hvx_vm *)&host, &cfg, &m->vm, &err) || m->ops->set_slot(m->vm, &slot, &err) ||
        m->ops->vcpu_create(m->vm, 0, &m->vcpu, &err) || m->ops->prepare(m->vm, &err)) {
        snprintf(m->log, sizeof(m->log), "%s", err.text);
        return false;
    }
    m->ops->vcpu_reset(m->vcpu);
    return true;
}

static void segment(struct hvx_segment *s, uint16_t sel, uint16_t attr)
{
    *s = (struct hvx_segment){.selector = sel, .attr = attr, .limit = attr & 0x100 ? 0 : 0xffffffff};
}

static void count(void *opaque, const char *group, const char *name, uint64_t value, const char *unit)
{
    struct warm_machine *m = opaque;
    (void)group, (void)unit;
    if (!strcmp(name, "warm_loaded"))
        m->loaded = value;
    else if (!strcmp(name, "warm_kept"))
        m->kept = value;
    else if (!strcmp(name, "warm_lost"))
        m->lost = value;
    else if (!strcmp(name, "blocks"))
        m->blocks = value;
}

void warm_run(struct warm_machine *m, uint64_t at, uint32_t constant)
{
    struct hvx_vcpu_regs *r = aligned_alloc(64, (sizeof(*r) + 63) & ~(size_t)63);
    struct hvx_error err = {.text = ""};
    bool user = !(at >> 63);
    unsigned off = (unsigned)(at & 0x1fffff);
    now = m;
    memcpy(m->ram + CODE + off, warm_code, (size_t)(warm_code_stop - warm_code));
    memcpy(m->ram + CODE + off + (warm_code_constant - warm_code) + 2, &constant, 4);
    memset(r, 0, sizeof(*r));
    r->size = sizeof(*r);
    m->ops->vcpu_get(m->vcpu, r);
    r->mp_state = 0;
    r->rip = at;
    r->rflags = 0x3002; /* programs may use ports */
    segment(&r->seg[HVX_CS], user ? 0x33 : 0x10, user ? 0xa0fb : 0xa09b);
    segment(&r->seg[HVX_SS], user ? 0x2b : 0x18, user ? 0xc0f3 : 0xc093);
    for (unsigned i = 0; i < 6; i++)
        if (i != HVX_CS && i != HVX_SS)
            segment(&r->seg[i], 0, 0x100);
    segment(&r->ldtr, 0, 0x100);
    segment(&r->tr, 0x40, 0x8b);
    r->cr0 = 0x80050033;
    r->cr3 = TABLES;
    r->cr4 = 0x620;
    r->efer = 0xd01;
    r->dr[6] = 0xffff0ff0, r->dr[7] = 0x400;
    if (m->ops->vcpu_set(m->vcpu, r, &err)) {
        fprintf(stderr, "test_warm: %s\n", err.text);
        abort();
    }
    for (m->done = false; !m->done;) {
        struct hvx_exit x = {.size = sizeof(x)};
        if (m->ops->vcpu_run(m->vcpu, &x) || x.reason != HVX_EXIT_INTERRUPTED) {
            fprintf(stderr, "test_warm: the guest ends with %u %s\n", x.reason, x.text);
            abort();
        }
    }
    memset(r, 0, sizeof(*r));
    r->size = sizeof(*r);
    m->ops->vcpu_get(m->vcpu, r);
    m->result = r->gpr[0];
    free(r);
    m->ops->stats(m->vm, count, m);
}

void warm_end(struct warm_machine *m)
{
    now = m;
    if (m->vcpu)
        m->ops->vcpu_destroy(m->vcpu);
    if (m->vm)
        m->ops->vm_destroy(m->vm);
    if (m->ctx)
        hvx_plugin_cpu_bt.fini(m->ctx);
    munmap(m->ram, RAM_SIZE);
    m->vcpu = NULL, m->vm = NULL, m->ctx = NULL;
}
