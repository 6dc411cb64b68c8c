/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_direct.c - the user-direct tier (direct.h) under a small
 * kernel of its own: what a program's exits tell the kernel, that helpers follow
 * the guest's page tables, that the stub is of no use to a program, and that
 * helpers may die.
 *
 * The kernel is a page of code and a page of data, `struct area`. Whatever
 * enters it saves all registers there, writes to a port - which gets the test
 * out of vcpu_run() - and does what area.cmd says next. Page tables are written
 * by the test; what it changes there the guest's own INVLPG or MOV CR3 flushes.
 */
#define _GNU_SOURCE
#include "direct.h"
#include <Zydis/Zydis.h>
#include <errno.h>
#include <hvx/plugin.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sched.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include <cmocka.h>

extern const struct hvx_plugin hvx_plugin_cpu_bt;
extern const uint8_t direct_stub[], direct_stub_init[], direct_stub_end[];

#define RAM_SIZE 0x10000000ull
#define GDT 0x1000u
#define TSS 0x2000u
#define IDT 0x3000u
#define KERNEL 0x10000u /* code, area; a stack below */
#define TABLES 0x200000u
#define USER 0x1000000u /* what programs may have lies above, all else is the kernel's */
#define SECRET 0x1f0000u
#define KLIN 0xffffffff80000000ull
#define PORT 0xf4

/* Where programs are put. */
#define CODE 0x400000ull
#define DATA 0x600000ull
#define STACK 0x7ffff000ull /* one page below */

#define P 1ull
#define W 2ull
#define U 4ull
#define A 0x20ull
#define D 0x40ull
#define PS 0x80ull
#define NX (1ull << 63)
#define RW (P | W | U | A | D)
#define PA 0x000ffffffffff000ull

enum { VEC_SYSCALL = 0x100 };
enum { CMD_IRET = 1, CMD_SYSRET, CMD_INVLPG, CMD_CR3, CMD_CALL, CMD_STORE };
struct area {
    uint64_t cmd, arg, arg2;
    uint64_t vec, err, rip, cs, flags, rsp, ss, cr2;
    uint64_t gpr[16];
};

/* --- the kernel ------------------------------------------------------------------------ */
#define REGS(op)                                                                                                       \
    op(rcx, 8) op(rdx, 16) op(rbx, 24) op(rbp, 40) op(rsi, 48) op(rdi, 56) op(r8, 64) op(r9, 72) op(r10, 80)           \
    op(r11, 88) op(r12, 96) op(r13, 104) op(r14, 112) op(r15, 120)
#define SAVE(r, o) "mov %" #r ", kernel_area+88+" #o "(%rip)\n"
#define LOAD(r, o) "mov kernel_area+88+" #o "(%rip), %" #r "\n"
__asm__(".section .rodata\n"
        ".p2align 12\n"
        "kernel_start:\n"
        ".set kernel_vec, 0\n"
        ".rept 32\n"
        ".balign 16\n"
        ".if !((kernel_vec == 8) || ((kernel_vec >= 10) && (kernel_vec <= 14)) || (kernel_vec == 17))\n"
        "push $0\n"
        ".endif\n"
        "push $kernel_vec\n"
        "jmp kernel_trap\n"
        ".set kernel_vec, kernel_vec + 1\n"
        ".endr\n"
        ".balign 16\n"
        "kernel_int80: push $0\n"
        "push $0x80\n"
        "kernel_trap:\n" SAVE(rax, 0) REGS(SAVE)
        "pop kernel_area+24(%rip)\n pop kernel_area+32(%rip)\n pop kernel_area+40(%rip)\n pop kernel_area+48(%rip)\n"
        "pop kernel_area+56(%rip)\n pop kernel_area+64(%rip)\n pop kernel_area+72(%rip)\n"
        "mov %cr2, %rax\n mov %rax, kernel_area+80(%rip)\n"
        "jmp kernel_stop\n"
        "kernel_syscall:\n" SAVE(rax, 0) REGS(SAVE)
        "mov %rsp, kernel_area+64(%rip)\n mov %rcx, kernel_area+40(%rip)\n mov %r11, kernel_area+56(%rip)\n"
        "movq $0x100, kernel_area+24(%rip)\n"
        "lea kernel_start(%rip), %rsp\n"
        "kernel_stop:\n"
        "movq $0, kernel_area(%rip)\n"
        "out %al, $0xf4\n"
        "kernel_loop: mov kernel_area(%rip), %eax\n"
        "test %eax, %eax\n jz kernel_loop\n"
        "mov kernel_area+8(%rip), %rdi\n mov kernel_area+16(%rip), %rsi\n"
        "cmp $1, %eax\n jne 2f\n"
        "push kernel_area+72(%rip)\n push kernel_area+64(%rip)\n push kernel_area+56(%rip)\n push kernel_area+48(%rip)\n"
        "push kernel_area+40(%rip)\n" LOAD(rax, 0) REGS(LOAD) "iretq\n"
        "2: cmp $2, %eax\n jne 3f\n" LOAD(rax, 0) REGS(LOAD)
        "mov kernel_area+40(%rip), %rcx\n mov kernel_area+56(%rip), %r11\n mov kernel_area+64(%rip), %rsp\n"
        "sysretq\n"
        "3: cmp $3, %eax\n jne 4f\n invlpg (%rdi)\n jmp kernel_stop\n"
        "4: cmp $4, %eax\n jne 5f\n mov %rdi, %cr3\n jmp kernel_stop\n"
        "5: cmp $5, %eax\n jne 6f\n call *%rdi\n mov %rax, kernel_area+88(%rip)\n jmp kernel_stop\n"
        "6: mov %rsi, (%rdi)\n jmp kernel_stop\n"
        ".p2align 12\n"
        "kernel_area: .skip 4096\n"
        "kernel_end:\n"
        ".previous\n");
extern const uint8_t kernel_start[], kernel_int80[], kernel_syscall[], kernel_loop[], kernel_area[], kernel_end[];

/* A program NAME, to be put by put_program(). */
#define PROGRAM(name, text)                                                                                            \
    __asm__(".section .rodata\n" #name ": " text "\n" #name "_end:\n.previous\n");                                     \
    extern const uint8_t name[], name##_end[]

/* --- the machine -------------------------------------------------------------------------- */
static struct machine {
    const struct hvx_cpu_ops *ops;
    struct hvx_engine_vm *vm;
    struct hvx_vcpu *vcpu;
    struct bt_vcpu *c;
    void *ctx;
    int fd;
    uint8_t *ram;
    struct area *a;
    uint64_t root, next_table, next_page;
    unsigned helpers;
    bool pcid;
    volatile bool stopped;
} m;
static const char *volatile doing = "";

static char last_log[300];
static void host_log(int level, const char *who, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(last_log, sizeof(last_log), fmt, ap);
    va_end(ap);
    if (level > HVX_LOG_WARN && !getenv("HVXTEST_VERBOSE"))
        return;
    va_start(ap, fmt);
    fprintf(stderr, "%s: ", who);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}
static void host_event(struct hvx_vm *v, const char *what, const char *fmt, ...) { (void)v, (void)what, (void)fmt; }
static uint64_t host_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
static void host_random(void *buf, size_t n) { memset(buf, 0x5a, n); }
static bool conf_bool(const struct hvx_config *c, const char *name) { return (void)c, !strcmp(name, "direct-eager"); }
static int64_t conf_int(const struct hvx_config *c, const char *name) { return (void)c, (void)name, m.helpers; }
static const char *conf_string(const struct hvx_config *c, const char *name) { return (void)c, !strcmp(name, "direct") ? "user" : NULL; }
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
        m.stopped = true;
        m.ops->vcpu_kick(m.vcpu);
    }
}
static void *mem_ptr(struct hvx_vm *v, uint64_t gpa, size_t *n)
{
    (void)v;
    if (gpa >= RAM_SIZE)
        return NULL;
    if (*n > RAM_SIZE - gpa)
        *n = RAM_SIZE - gpa;
    return m.ram + gpa;
}

/* A thread for each descriptor does for an event loop. */
struct hvx_watch {
    pthread_t thread;
    int fd, stop;
    void (*cb)(void *, int, bool, bool);
    void *opaque;
};
static void *watch_thread(void *arg)
{
    struct hvx_watch *w = arg;
    struct pollfd p[2] = {{.fd = w->fd, .events = POLLIN}, {.fd = w->stop, .events = POLLIN}};
    while (poll(p, 2, -1) < 0)
        ;
    if (p[0].revents && !p[1].revents)
        w->cb(w->opaque, w->fd, true, false);
    return NULL;
}
static int watch_new(struct hvx_vm *v, int fd, bool want_read, bool want_write, void (*cb)(void *, int, bool, bool), void *opaque,
                     struct hvx_watch **out)
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
    int rc = pthread_create(&w->thread, NULL, watch_thread, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    *out = w;
    return -rc;
}
static void watch_del(struct hvx_watch *w)
{
    uint64_t one = 1;
    if (write(w->stop, &one, 8) != 8)
        abort();
    pthread_join(w->thread, NULL);
    close(w->stop);
    free(w);
}

static const struct hvx_host host = {
    .size = sizeof(host), .abi_major = HVX_ABI_MAJOR, .log = host_log, .guest_event = host_event, .clock_ns = host_clock,
    .wall_clock_ns = host_clock, .random = host_random, .conf_bool = conf_bool, .conf_int = conf_int,
    .conf_string = conf_string, .conf_is_set = conf_bool, .vm_lock = host_lock, .vm_unlock = host_lock,
    .io_read = io_read, .io_write = io_write, .mem_ptr = mem_ptr, .watch_new = watch_new, .watch_del = watch_del,
};

/* --- guest memory ------------------------------------------------------------------------------- */
static uint64_t *at64(uint64_t gpa) { return (uint64_t *)(void *)(m.ram + gpa); }

static uint64_t new_page(void) /* for programs */
{
    uint64_t gpa = m.next_page;
    m.next_page += 4096;
    assert_true(m.next_page <= RAM_SIZE);
    return gpa;
}
static uint64_t new_table(void)
{
    uint64_t gpa = m.next_table;
    m.next_table += 4096;
    assert_true(m.next_table <= USER);
    return gpa;
}
static uint64_t new_root(void)
{
    uint64_t root = new_table();
    if (!m.root) { /* the kernel: 2 MiB */
        uint64_t pdpt = new_table(), pd = new_table();
        *at64(root + 511 * 8) = pdpt | P | W | A;
        *at64(pdpt + 510 * 8) = pd | P | W | A;
        *at64(pd) = 0 | P | W | A | D | PS;
        m.root = root;
    }
    *at64(root + 511 * 8) = *at64(m.root + 511 * 8);
    return root;
}
/* The entry of a page in a table of the given level (0: 4 KiB), made if need be. */
static uint64_t *entry(uint64_t root, uint64_t lin, unsigned level)
{
    uint64_t table = root;
    for (unsigned l = 3; l > level; l--) {
        uint64_t *e = at64(table + (lin >> (12 + 9 * l) & 511) * 8);
        if (!(*e & P))
            *e = new_table() | P | W | U;
        table = *e & PA;
    }
    return at64(table + (lin >> (12 + 9 * level) & 511) * 8);
}
static uint64_t *pte(uint64_t lin) { return entry(m.root, lin, 0); }
static uint64_t map(uint64_t lin, uint64_t flags)
{
    uint64_t gpa = new_page();
    *pte(lin) = gpa | flags;
    return gpa;
}
static uint8_t *user_ptr(uint64_t lin) { return m.ram + ((*pte(lin) & PA) | (lin & 0xfff)); }
static uint64_t *user64(uint64_t lin) { return (uint64_t *)(void *)user_ptr(lin); }

static void put_bytes(uint64_t lin, const void *p, size_t n)
{
    memcpy(user_ptr(lin), p, n);
    m.ops->code_written(m.vm, *pte(lin) & PA, 4096);
}
static void patch64(uint64_t lin, uint64_t v) { put_bytes(lin, &v, 8); }
#define put_program(lin, name) put_bytes(lin, name, (size_t)(name##_end - name))

/* --- running -------------------------------------------------------------------------------------- */
static void on_alarm(int sig)
{
    static const char text[] = "test_direct: no progress: ";
    (void)sig;
    if (write(2, text, sizeof(text) - 1) < 0 || write(2, doing, strlen(doing)) < 0 || write(2, "\n", 1) < 0)
        _exit(98);
    _exit(99);
}

/* Neither the cookie nor a half of it is anywhere in a zone while the vCPU has control. */
static bool zone_holds(const struct direct_proc *p)
{
    uint32_t half[2] = {(uint32_t)p->cookie, (uint32_t)(p->cookie >> 32)};
    return memmem(p->zone, sizeof(*p->zone), &half[0], 4) || memmem(p->zone, sizeof(*p->zone), &half[1], 4);
}
static void check_zones(void)
{
    for (unsigned i = 0; i < m.c->direct->n_procs; i++)
        if (m.c->direct->proc[i].space && zone_holds(&m.c->direct->proc[i]))
            fail_msg("a helper's cookie is in its zone");
}

/* One vcpu_run(). */
static void run_once(void)
{
    struct hvx_exit x = {.size = sizeof(x)};
    int rc = m.ops->vcpu_run(m.vcpu, &x);
    if (rc || x.reason != HVX_EXIT_INTERRUPTED)
        fail_msg("vcpu_run gives %d, reason %u (%s), RIP %#llx", rc, x.reason, x.text, (unsigned long long)m.c->rip);
}
static void go_on(void)
{
    alarm(30);
    while (!m.stopped)
        run_once();
    alarm(0);
    check_zones();
}
static void go(uint64_t cmd)
{
    m.a->cmd = cmd;
    m.stopped = false;
    go_on();
}
static void go_arg(uint64_t cmd, uint64_t arg)
{
    m.a->arg = arg;
    go(cmd);
}
static void invlpg(uint64_t lin) { go_arg(CMD_INVLPG, lin); }
static void set_start(uint64_t rip)
{
    m.a->rip = rip;
    m.a->cs = 0x33;
    m.a->ss = 0x2b;
    m.a->flags = 0x202;
    m.a->rsp = STACK - 64;
}
static void start(uint64_t rip)
{
    set_start(rip);
    go(CMD_IRET);
}
#define RAX m.a->gpr[0]
#define RCX m.a->gpr[1]
#define RBX m.a->gpr[3]
static void expect_syscall(void) { assert_int_equal(m.a->vec, VEC_SYSCALL); }
#define expect_trap(v, e, at)                                                                                          \
    do {                                                                                                               \
        assert_int_equal(m.a->vec, v);                                                                                 \
        assert_int_equal(m.a->err, e);                                                                                 \
        assert_int_equal(m.a->rip, at);                                                                                \
        assert_int_equal(m.a->cs, 0x33);                                                                               \
        assert_int_equal(m.a->ss, 0x2b);                                                                               \
    } while (0)
#define expect_pf(e, lin)                                                                                              \
    do {                                                                                                               \
        assert_int_equal(m.a->vec, 14);                                                                                \
        assert_int_equal(m.a->err, e);                                                                                 \
        assert_int_equal(m.a->cr2, lin);                                                                               \
    } while (0)

/* What runs between these two ran natively. */
static uint64_t entries_before;
static void natively(void) { entries_before = m.c->st.direct_entries; }
static void was_native(void) { assert_true(m.c->st.direct_entries > entries_before); }

/* --- setting up --------------------------------------------------------------------------------------- */
static void gate(unsigned n, uint64_t target, unsigned dpl)
{
    uint64_t lo = (target & 0xffff) | 8u << 16 | (uint64_t)(0x8e00 | dpl << 13) << 32 | (target >> 16 & 0xffff) << 48;
    *at64(IDT + n * 16) = lo;
    *at64(IDT + n * 16 + 8) = target >> 32;
}
static uint64_t kernel_at(const uint8_t *label) { return KLIN + KERNEL + (uint64_t)(label - kernel_start); }

static void set_seg(struct hvx_segment *s, uint16_t sel, uint16_t attr)
{
    s->selector = sel;
    s->attr = attr;
    s->limit = attr & 0x100 ? 0 : 0xffffffff;
    s->base = 0;
}

static void set_state(void)
{
    struct hvx_error err = {.text = ""};
    struct hvx_vcpu_regs *r = aligned_alloc(64, (sizeof(*r) + 63) & ~(size_t)63);
    memset(r, 0, sizeof(*r));
    r->size = sizeof(*r);
    m.ops->vcpu_get(m.vcpu, r);
    r->mp_state = 0;
    r->rip = kernel_at(kernel_loop);
    r->rflags = 2;
    r->gpr[HVX_RSP] = KLIN + KERNEL;
    set_seg(&r->seg[HVX_CS], 0x08, 0xa09b);
    set_seg(&r->seg[HVX_SS], 0x10, 0xc093);
    set_seg(&r->seg[HVX_DS], 0, 0x100);
    set_seg(&r->seg[HVX_ES], 0, 0x100);
    set_seg(&r->seg[HVX_FS], 0, 0x100);
    set_seg(&r->seg[HVX_GS], 0, 0x100);
    set_seg(&r->ldtr, 0, 0x100);
    set_seg(&r->tr, 0x40, 0x8b);
    r->tr.base = KLIN + TSS;
    r->tr.limit = 0x67;
    r->gdt_base = KLIN + GDT, r->gdt_limit = 79;
    r->idt_base = KLIN + IDT, r->idt_limit = 4095;
    r->cr0 = 0x80050033;
    r->cr3 = m.root;
    r->cr4 = 0x20 | 0x80 | 0x200 | 0x400 | 0x10000 | 0x40000 | (m.pcid ? 0x20000 : 0);
    r->efer = 1 | 0x100 | 0x400 | 0x800;
    r->xcr0 = 7;
    r->star = (uint64_t)0x23 << 48 | (uint64_t)0x08 << 32;
    r->lstar = kernel_at(kernel_syscall);
    r->sfmask = 0x47700;
    r->dr[6] = 0xffff0ff0, r->dr[7] = 0x400;
    memcpy(r->xsave, &(uint16_t){0x37f}, 2);
    memcpy(r->xsave + 24, &(uint32_t){0x1f80}, 4);
    memcpy(r->xsave + 512, &(uint64_t){3}, 8);
    if (m.ops->vcpu_set(m.vcpu, r, &err))
        fail_msg("the engine refuses the start state: %s", err.text);
    free(r);
}

static void machine_new(unsigned helpers)
{
    struct hvx_error err = {.text = ""};
    struct hvx_engine_config cfg = {.size = sizeof(cfg), .n_vcpus = 1, .cpu_model = "host", .options = (const void *)&host};
    uint64_t tss = KLIN + TSS;
    const uint64_t gdt[] = {0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0x00cffb000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff, 0,
                            0x00008b0000000067 | (tss & 0xffffff) << 16 | (tss >> 24 & 0xff) << 56, tss >> 32};
    m.helpers = helpers;
    m.fd = memfd_create("test-direct-ram", MFD_CLOEXEC);
    assert_true(m.fd >= 0);
    assert_int_equal(ftruncate(m.fd, RAM_SIZE), 0);
    m.ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, m.fd, 0);
    assert_true(m.ram != MAP_FAILED);
    m.next_table = TABLES;
    m.next_page = USER;
    m.root = 0;
    new_root();
    memcpy(m.ram + GDT, gdt, sizeof(gdt));
    *(uint32_t *)(void *)(m.ram + TSS + 4) = (uint32_t)(KLIN + KERNEL);
    *(uint32_t *)(void *)(m.ram + TSS + 8) = (uint32_t)((KLIN + KERNEL) >> 32);
    memcpy(m.ram + TSS + 0x66, &(uint16_t){0x68}, 2);
    for (unsigned i = 0; i < 32; i++)
        gate(i, KLIN + KERNEL + i * 16, i == 3 || i == 4 ? 3 : 0);
    gate(0x80, kernel_at(kernel_int80), 3);
    memcpy(m.ram + KERNEL, kernel_start, (size_t)(kernel_end - kernel_start));
    m.a = (void *)(m.ram + KERNEL + (kernel_area - kernel_start));
    memset(m.ram + SECRET, 0x77, 4096);

    m.ops = hvx_plugin_cpu_bt.ops;
    struct hvx_mem_slot slot = {.size = sizeof(slot), .id = 0, .gpa = 0, .bytes = RAM_SIZE, .hva = m.ram, .fd = m.fd};
    if (hvx_plugin_cpu_bt.init(&host, NULL, &m.ctx, &err) || m.ops->probe(m.ctx, &err) ||
        m.ops->vm_create(m.ctx, (struct hvx_vm *)&host, &cfg, &m.vm, &err) || m.ops->set_slot(m.vm, &slot, &err) ||
        m.ops->vcpu_create(m.vm, 0, &m.vcpu, &err) || m.ops->prepare(m.vm, &err))
        fail_msg("cannot start the engine: %s", err.text);
    m.c = (struct bt_vcpu *)m.vcpu;
    if (!m.c->direct) { /* host_log() has the reason */
        print_message("  skipped: %s\n", last_log);
        skip();
    }
    m.ops->vcpu_reset(m.vcpu);
    set_state();
    map(CODE, RW);
    map(DATA, RW | NX);
    map(STACK - 4096, RW | NX);
    memset(user_ptr(CODE), 0xf4, 4096);
}

static void machine_free(void)
{
    struct hvx_vcpu *v = m.vcpu;
    m.vcpu = NULL;
    if (v)
        m.ops->vcpu_destroy(v);
    if (m.vm)
        m.ops->vm_destroy(m.vm);
    if (m.ctx)
        hvx_plugin_cpu_bt.fini(m.ctx);
    munmap(m.ram, RAM_SIZE);
    close(m.fd);
    memset(&m, 0, sizeof(m));
}

/* In the test itself, not in a fixture: cmocka has its own handlers for faults, and the engine's must come after them. */
static void begin(const char *name)
{
    doing = name;
    signal(SIGALRM, on_alarm);
    machine_new(4);
}
static void begin_pcid(const char *name)
{
    m.pcid = true;
    begin(name);
    if (!(m.c->cr4 & 0x20000)) {
        print_message("  skipped: this host has no PCIDs\n");
        skip();
    }
}
static int teardown(void **state)
{
    (void)state;
    alarm(0);
    machine_free();
    return 0;
}

/* --- 1. what comes out, and how it goes on -------------------------------------------------------------- */
PROGRAM(p_loop, "xor %eax, %eax\n mov $100000, %ecx\n 1: add %rcx, %rax\n dec %rcx\n jnz 1b\n"
                "mov $0x1010, %r10d\n mov $0x1111, %r11d\n mov $0x8888, %r8d\n mov $0x1515, %r15d\n stc\n"
                "syscall\n mov $77, %ebx\n lea 3(%rax), %rsi\n syscall");
#define LOOP_SUM 5000050000ull

static void a_loop_and_its_system_calls_run_natively(void **state)
{
    (void)state;
    begin(__func__);
    put_program(CODE, p_loop);
    natively();
    uint64_t misses = m.c->st.direct_syscalls;
    start(CODE);
    was_native();
    expect_syscall();
    assert_int_equal(m.c->st.direct_syscalls, misses + 1);
    uint64_t after = CODE + (uint64_t)(p_loop_end - p_loop) - 11;
    assert_int_equal(RAX, LOOP_SUM);
    assert_int_equal(m.a->rip, after);
    assert_int_equal(RCX, after);
    assert_int_equal(m.a->gpr[8], 0x8888);
    assert_int_equal(m.a->gpr[10], 0x1010);
    assert_int_equal(m.a->gpr[15], 0x1515);
    assert_int_equal(m.a->gpr[11] & 0xff1, 0x201 | 0x40); /* DEC's ZF, STC */
    assert_int_equal(m.a->rsp, STACK - 64);
    RAX = 40;
    m.a->flags = 0x202;
    natively();
    go(CMD_SYSRET);
    was_native();
    expect_syscall();
    assert_int_equal(RBX, 77);
    assert_int_equal(m.a->gpr[6], 43);
    assert_int_equal(m.a->gpr[15], 0x1515);
}

PROGRAM(p_state, "mov $0x1122334455667788, %rax\n movq %rax, %xmm5\n fld1\n lea 0x600100(%rip), %rbx\n"
                 "mov $0x600000, %ebx\n wrfsbase %rbx\n mov $0x600040, %ebx\n wrgsbase %rbx\n std\n syscall\n"
                 "pushfq\n pop %r9\n cld\n movq %xmm5, %r12\n fistpll 8(%rbx)\n mov 8(%rbx), %r13\n mov %fs:16, %r14\n mov %gs:16, %r15\n syscall");

static void vector_registers_and_bases_survive_an_exit(void **state)
{
    (void)state;
    begin(__func__);
    put_program(CODE, p_state);
    *user64(DATA + 16) = 0xf5f5;
    *user64(DATA + 0x50) = 0x6565;
    natively();
    start(CODE);
    was_native();
    expect_syscall();
    assert_true(m.a->flags & 0x400);
    assert_int_equal(m.c->seg_base[BT_FS], DATA);
    assert_int_equal(m.c->seg_base[BT_GS], DATA + 0x40);
    natively();
    go(CMD_SYSRET);
    was_native();
    expect_syscall();
    assert_true(m.a->gpr[9] & 0x400);
    assert_int_equal(m.a->gpr[12], 0x1122334455667788);
    assert_int_equal(m.a->gpr[13], 1);
    assert_int_equal(m.a->gpr[14], 0xf5f5);
    assert_int_equal(m.a->gpr[15], 0x6565);
}

PROGRAM(p_int3, "nop\n int3\n nop");
PROGRAM(p_ud2, "nop\n ud2");
PROGRAM(p_de, "xor %ecx, %ecx\n div %ecx");
PROGRAM(p_hlt, "nop\n hlt");
PROGRAM(p_int80, "mov $5, %eax\n int $0x80\n nop");
PROGRAM(p_int1, "nop\n .byte 0xf1\n nop");
PROGRAM(p_noncanonical, "mov $0x8000000000000000, %rax\n mov (%rax), %rcx");
PROGRAM(p_tf, "pushfq\n orl $0x100, (%rsp)\n popfq\n mov $9, %ebx\n mov $10, %ebx\n mov $11, %ebx\n syscall");

static void exceptions_have_the_right_vector_code_and_rip(void **state)
{
    (void)state;
    begin(__func__);
    natively();
    put_program(CODE, p_int3);
    start(CODE);
    expect_trap(3, 0, CODE + 2);
    put_program(CODE, p_ud2);
    start(CODE);
    expect_trap(6, 0, CODE + 1);
    put_program(CODE, p_de);
    start(CODE);
    expect_trap(0, 0, CODE + 2);
    put_program(CODE, p_hlt);
    start(CODE);
    expect_trap(13, 0, CODE + 1);
    put_program(CODE, p_int80);
    start(CODE);
    expect_trap(0x80, 0, CODE + 7);
    assert_int_equal(RAX, 5);
    put_program(CODE, p_int1);
    start(CODE);
    expect_trap(1, 0, CODE + 2);
    put_program(CODE, p_noncanonical);
    start(CODE);
    expect_trap(13, 0, CODE + 10);
    assert_true(m.c->st.direct_entries >= entries_before + 7);
}

static void single_step_traps_after_each_instruction(void **state)
{
    (void)state;
    begin(__func__);
    uint64_t first = CODE + 1 + 7 + 1; /* behind POPF */
    put_program(CODE, p_tf);
    natively();
    start(CODE);
    was_native();
    expect_trap(1, 0, first + 5);
    assert_int_equal(RBX, 9);
    assert_true(m.a->flags & 0x100);
    assert_true(m.c->dr[6] & 0x4000);
    go(CMD_IRET); /* TF set by the kernel, as a debugger's */
    expect_trap(1, 0, first + 10);
    assert_int_equal(RBX, 10);
    m.a->flags &= ~0x100ull;
    go(CMD_IRET);
    expect_syscall();
    assert_int_equal(RBX, 11);
}

PROGRAM(p_read, "nop\n mov (%rax), %rbx\n syscall");
PROGRAM(p_write, "nop\n mov %rbx, (%rax)\n syscall");
PROGRAM(p_jump, "nop\n jmp *%rax");
#define READ (CODE + 0x100)
#define WRITE (CODE + 0x200)
#define JUMP (CODE + 0x300)
static void put_accesses(void)
{
    put_program(READ, p_read);
    put_program(WRITE, p_write);
    put_program(JUMP, p_jump);
}
static void try_at(uint64_t at, uint64_t lin)
{
    RAX = lin;
    natively();
    start(at);
}
static void write_at(uint64_t lin, uint64_t v)
{
    RBX = v;
    try_at(WRITE, lin);
}
static void expect_read(uint64_t lin, uint64_t v)
{
    try_at(READ, lin);
    expect_syscall();
    assert_int_equal(RBX, v);
}

static void page_faults_have_the_right_code_and_address(void **state)
{
    (void)state;
    begin(__func__);
    uint64_t none = 0x700000, ro = 0x701000, kernel = 0x702000;
    put_accesses();
    map(ro, P | U | A | NX);
    *pte(kernel) = SECRET | P | W | A | D;
    try_at(READ, none + 0x123);
    expect_pf(4, none + 0x123);
    assert_int_equal(m.a->rip, READ + 1);
    write_at(none + 8, 1);
    expect_pf(6, none + 8);
    assert_int_equal(m.a->rip, WRITE + 1);
    try_at(JUMP, none);
    expect_pf(0x14, none);
    assert_int_equal(m.a->rip, none);
    try_at(READ, ro);
    expect_syscall();
    write_at(ro + 16, 1);
    expect_pf(7, ro + 16);
    try_at(JUMP, ro);
    expect_pf(0x15, ro);
    try_at(READ, kernel);
    expect_pf(5, kernel);
    write_at(kernel, 1);
    expect_pf(7, kernel);
    try_at(JUMP, kernel);
    expect_pf(0x15, kernel);
    try_at(READ, KLIN + SECRET);
    expect_pf(5, KLIN + SECRET);
    was_native();
    assert_int_equal(*at64(SECRET), 0x7777777777777777);
}

/* --- 2. coherence --------------------------------------------------------------------------------------------- */
#define X 0x800000ull
static void a_changed_entry_holds_after_invlpg(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    uint64_t p1 = map(X, RW | NX), p2 = new_page();
    *at64(p1) = 11, *at64(p2) = 22;
    expect_read(X, 11);
    was_native();
    *pte(X) = p2 | RW | NX;
    invlpg(X);
    expect_read(X, 22);
    was_native();
    *pte(X) = 0;
    invlpg(X);
    try_at(READ, X);
    expect_pf(4, X);
    *pte(X) = p1 | RW | NX; /* from not present: no flush is needed */
    expect_read(X, 11);
    *pte(X) = p1 | P | W | A | D | NX; /* the kernel's now */
    invlpg(X);
    try_at(READ, X);
    expect_pf(5, X);
    *pte(X) = p1 | RW; /* executable: no flush is needed */
    static const uint8_t code[] = {0x0f, 0x05};
    put_bytes(X, code, sizeof(code));
    try_at(JUMP, X);
    expect_syscall();
    was_native();
    *pte(X) = p1 | RW | NX;
    invlpg(X);
    try_at(JUMP, X);
    expect_pf(0x15, X);
}

static void write_protection_and_copy_on_write(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    uint64_t p1 = map(X, RW | NX), p2 = new_page();
    write_at(X, 5);
    expect_syscall();
    was_native();
    assert_int_equal(*at64(p1), 5);
    *pte(X) = p1 | P | U | A | D | NX;
    invlpg(X);
    write_at(X, 6);
    expect_pf(7, X);
    assert_int_equal(*at64(p1), 5);
    memcpy(m.ram + p2, m.ram + p1, 4096);
    *pte(X) = p2 | RW | NX;
    invlpg(X);
    natively();
    go(CMD_IRET); /* the store again */
    was_native();
    expect_syscall();
    assert_int_equal(*at64(p1), 5);
    assert_int_equal(*at64(p2), 6);
    *pte(X) = p2 | P | U | A | D | NX;
    invlpg(X);
    expect_read(X, 6);
    *pte(X) = p2 | RW | NX; /* more rights: no flush is needed */
    write_at(X, 7);
    expect_syscall();
    assert_int_equal(*at64(p2), 7);
}

static void accessed_and_dirty_are_set_and_set_again(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    uint64_t p1 = map(X, P | W | U | NX);
    for (unsigned round = 0; round < 3; round++) {
        *pte(X) = p1 | P | W | U | NX;
        invlpg(X);
        expect_read(X, *at64(p1));
        assert_int_equal(*pte(X) & (A | D), A);
        write_at(X, round + 100);
        expect_syscall();
        assert_int_equal(*pte(X) & (A | D), A | D);
        *pte(X) &= ~D;
        invlpg(X);
        expect_read(X, round + 100);
        assert_int_equal(*pte(X) & (A | D), A);
        write_at(X, round + 200);
        expect_syscall();
        assert_int_equal(*pte(X) & (A | D), A | D);
        was_native();
    }
    assert_true(*entry(m.root, X, 1) & A);
    assert_true(*entry(m.root, X, 3) & A);
}

/* Neighbours are mapped along with a page that is touched, but nobody has accessed them. */
static void pages_nearby_are_not_marked_accessed(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    for (unsigned i = 0; i < 16; i++)
        map(X + i * 4096, P | W | U | NX);
    write_at(X + 5 * 4096, 1);
    expect_syscall();
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(*pte(X + i * 4096) & (A | D), i == 5 ? A | D : 0);
}

static void large_pages(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    uint64_t lin = 0x40000000, one = 0x2000000, two = 0x2200000, *e = entry(m.root, lin, 1);
    *e = one | P | W | U | PS | NX;
    *at64(two + 0x1ff000) = 22;
    write_at(lin + 0x1ff000, 11);
    expect_syscall();
    was_native();
    assert_int_equal(*e & (A | D), A | D);
    assert_int_equal(*at64(one + 0x1ff000), 11);
    write_at(lin + 0x1008, 12);
    expect_syscall();
    assert_int_equal(*at64(one + 0x1008), 12);
    *e = two | P | W | U | A | PS | NX;
    invlpg(lin); /* any address in it will do */
    expect_read(lin + 0x1ff000, 22);
    was_native();
    assert_int_equal(*e & (A | D), A);
    write_at(lin + 0x1000, 13);
    expect_syscall();
    assert_int_equal(*e & (A | D), A | D);
    assert_int_equal(*at64(two + 0x1000), 13);
    *e = 0;
    invlpg(lin + 0x5000);
    try_at(READ, lin + 0x1ff000);
    expect_pf(4, lin + 0x1ff000);
}

static void spaces(uint64_t no_flush)
{
    uint64_t tag = m.pcid ? 1 : 0, root[2], page[2], where = X;
    root[0] = m.root;
    root[1] = new_root();
    for (uint64_t l = CODE; l < CODE + 4096; l += 4096)
        *entry(root[1], l, 0) = *pte(l);
    *entry(root[1], STACK - 4096, 0) = *pte(STACK - 4096);
    put_accesses();
    for (unsigned i = 0; i < 2; i++) {
        page[i] = new_page();
        *entry(root[i], where, 0) = page[i] | RW | NX;
        *at64(page[i]) = 1000 * (i + 1);
    }
    for (unsigned k = 0; k < 40; k++) {
        unsigned i = k & 1;
        go_arg(CMD_CR3, root[i] | (i + 1) * tag | (k > 1 ? no_flush : 0));
        expect_read(where, 1000 * (i + 1) + k / 2);
        was_native();
        write_at(where, 1000 * (i + 1) + k / 2 + 1);
        expect_syscall();
        assert_int_equal(*at64(page[i]), 1000 * (i + 1) + k / 2 + 1);
    }
    /* Changed while another space is current: its next flush shows it. */
    uint64_t other = new_page();
    *at64(other) = 4444;
    *entry(root[0], where, 0) = other | RW | NX;
    go_arg(CMD_CR3, root[0] | tag);
    expect_read(where, 4444);
    was_native();
    /* Two roots that share a table. */
    *at64(root[1] + (where >> 39 & 511) * 8) = *at64(root[0] + (where >> 39 & 511) * 8);
    go_arg(CMD_CR3, root[1] | 2 * tag);
    expect_read(where, 4444);
    *entry(root[0], where, 0) = 0;
    invlpg(where);
    try_at(READ, where);
    expect_pf(4, where);
    go_arg(CMD_CR3, root[0] | tag);
    try_at(READ, where);
    expect_pf(4, where);
}
static void address_spaces_stay_apart(void **state)
{
    (void)state;
    begin(__func__);
    spaces(0);
}
static void address_spaces_with_pcids(void **state)
{
    (void)state;
    begin_pcid(__func__);
    spaces(0);
}
static void address_spaces_with_pcids_kept(void **state)
{
    (void)state;
    begin_pcid(__func__);
    spaces(1ull << 63);
}

/* More spaces than helpers: each helper is emptied for the next. */
static void helpers_are_handed_on(void **state)
{
    (void)state;
    begin(__func__);
    uint64_t root[11], page[11];
    put_accesses();
    for (unsigned i = 0; i < 11; i++) {
        root[i] = i ? new_root() : m.root;
        *entry(root[i], CODE, 0) = *pte(CODE);
        *entry(root[i], X + i * 4096, 0) = (page[i] = new_page()) | RW | NX;
        *at64(page[i]) = i + 1;
    }
    for (unsigned k = 0; k < 44; k++) {
        unsigned i = k * 7 % 11;
        go_arg(CMD_CR3, root[i]);
        expect_read(X + i * 4096, i + 1);
        was_native();
        try_at(READ, X + (i ? i - 1 : 10) * 4096); /* what another space has there */
        expect_pf(4, X + (i ? i - 1 : 10) * 4096);
    }
    assert_int_equal(m.c->st.direct_lost, 0);
}

/* mov $1, %eax; ret - for ring 0, which has it translated */
static const uint8_t f_one[] = {0xb8, 1, 0, 0, 0, 0xc3};
static void translated_pages_that_a_program_writes(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    map(X, RW);
    put_bytes(X, f_one, sizeof(f_one));
    for (unsigned round = 0; round < 5; round++) {
        go_arg(CMD_CALL, X);
        assert_int_equal(RAX, round ? 100 + round - 1 : 1);
        expect_read(X, 0xc300000000b8ull | (round ? 100 + round - 1 : 1) << 8);
        was_native();
        uint64_t before = m.c->st.direct_uncoded;
        write_at(X, 0xc300000000b8ull | (100 + round) << 8);
        expect_syscall();
        was_native();
        assert_true(m.c->st.direct_uncoded > before);
        write_at(X, 0xc300000000b8ull | (100 + round) << 8); /* no translation any more */
        expect_syscall();
        assert_int_equal(m.c->st.direct_uncoded, before + 1);
    }
}

/* The program patches its own immediate, 50 times. */
PROGRAM(p_self, "xor %ebx, %ebx\n mov $50, %ecx\n 1: mov %ecx, 2f+1(%rip)\n 2: mov $0, %edx\n add %rdx, %rbx\n dec %ecx\n jnz 1b\n syscall");
static void self_modifying_programs(void **state)
{
    (void)state;
    begin(__func__);
    put_program(CODE, p_self);
    for (unsigned i = 0; i < 3; i++) {
        natively();
        start(CODE);
        was_native();
        expect_syscall();
        assert_int_equal(RBX, 50 * 51 / 2);
    }
}

/* The kernel's own stores to a page that a program has, and that was code. */
static void kernel_and_program_share_memory(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    uint64_t p1 = map(X, RW);
    for (unsigned i = 0; i < 10; i++) {
        m.a->arg2 = i + 1;
        go_arg(CMD_STORE, X);
        expect_read(X, i + 1);
        write_at(X, 0xc300000000b8ull | i << 8);
        expect_syscall();
        go_arg(CMD_CALL, X);
        assert_int_equal(RAX, i);
        assert_int_equal(*at64(p1) >> 8 & 0xff, i);
    }
}

/* --- 3. meddling ------------------------------------------------------------------------------------------------ */
static struct direct_proc *current_proc(void)
{
    struct direct_space *s = m.c->direct->current;
    return s && s->proc && !atomic_load(&s->proc->dead) ? s->proc : NULL;
}

/* A helper has its zone, and pages that the tables give to programs. */
static bool maps_unreadable;
static void check_maps(const struct direct_proc *p)
{
    char name[40], line[400];
    snprintf(name, sizeof(name), "/proc/%d/maps", p->pid);
    FILE *f = fopen(name, "r");
    if (!f) {
        maps_unreadable |= errno == EACCES;
        return;
    }
    while (fgets(line, sizeof(line), f)) {
        unsigned long long from, to, off;
        char prot[5], file[200] = "";
        if (sscanf(line, "%llx-%llx %4s %llx %*s %*s %199[^\n]", &from, &to, prot, &off, file) < 4)
            fail_msg("cannot read %s", line);
        if (from >= p->base && to <= p->base + sizeof(struct direct_zone)) {
            if (prot[1] == 'w' && (prot[2] == 'x' || from < p->base + offsetof(struct direct_zone, report)))
                fail_msg("the zone's rights have changed: %s", line);
            continue;
        }
        if (strstr(file, "[vsyscall]"))
            continue;
        if (!strstr(file, "test-direct-ram"))
            fail_msg("the helper has more than guest RAM: %s", line);
        for (; from < to; from += 4096, off += 4096) {
            uint64_t e = *pte(from);
            if ((e & (P | U)) != (P | U) || (e & PA) != off || off < USER || (prot[1] == 'w' && (e & (W | D)) != (W | D)) ||
                (prot[2] == 'x' && (e & NX)))
                fail_msg("the helper has what the program may not have: %#llx in %s", from, line);
        }
    }
    fclose(f);
}

static _Atomic bool kicking;
static pthread_mutex_t kick_lock = PTHREAD_MUTEX_INITIALIZER; /* the machine may be replaced */
static void *kicker(void *arg)
{
    struct timespec t = {0, 1000000};
    (void)arg;
    while (kicking) {
        nanosleep(&t, NULL);
        pthread_mutex_lock(&kick_lock);
        if (m.vcpu)
            m.ops->vcpu_kick(m.vcpu);
        pthread_mutex_unlock(&kick_lock);
    }
    return NULL;
}

/* jmp *0(%rip): no register is lost */
static const uint8_t f_jmp[] = {0xff, 0x25, 0, 0, 0, 0};
#define GOOD (CODE + 0x800)
static void good_program_still_runs(void)
{
    set_start(GOOD);
    natively();
    go(CMD_IRET);
    expect_syscall();
    assert_int_equal(RAX, LOOP_SUM);
}

static _Atomic int n_signals;
static void on_usr2(int sig)
{
    (void)sig;
    n_signals++;
}

enum { SET_MMAP, SET_MUNMAP, SET_SIGRETURN, SET_PRCTL, SET_READ, SET_WRITE, SET_WRITE_OK, SET_READ_OK, SET_OPENAT, SET_CLONE, SET_KILL,
       SET_MPROTECT, SET_INDIRECT, N_SETS };

/* Registers as the stub has them in its various places: calls, and pointers to orders of one's own. */
static void meddling_registers(unsigned set, const struct direct_proc *p, uint64_t guess)
{
    uint64_t *g = m.a->gpr, nr = 0, a[6] = {0};
    switch (set) {
    case SET_MMAP:
        nr = SYS_mmap;
        a[0] = 0x500000000000, a[1] = 4096, a[2] = 3, a[3] = MAP_SHARED | MAP_FIXED, a[4] = DIRECT_RAM_FD, a[5] = SECRET;
        break;
    case SET_MUNMAP: nr = SYS_munmap, a[0] = p->base, a[1] = sizeof(struct direct_zone); break;
    case SET_SIGRETURN: nr = SYS_rt_sigreturn; break;
    case SET_PRCTL: nr = SYS_prctl, a[0] = 26, a[1] = 2; break;
    case SET_READ: nr = SYS_read, a[0] = DIRECT_CMD_FD, a[1] = DATA + 64, a[2] = 8; break;
    case SET_WRITE: nr = SYS_write, a[0] = DIRECT_EXIT_FD, a[1] = DATA + 64, a[2] = 8; break;
    case SET_WRITE_OK:
        nr = SYS_write, a[0] = DIRECT_EXIT_FD, a[1] = p->base + offsetof(struct direct_zone, orders.one), a[2] = 8;
        break;
    case SET_READ_OK:
        nr = SYS_read, a[0] = DIRECT_CMD_FD, a[1] = p->base + offsetof(struct direct_zone, report.cookie), a[2] = 8;
        break;
    case SET_OPENAT: nr = SYS_openat, a[0] = (uint64_t)-100, a[1] = DATA + 128, a[2] = 2; break;
    case SET_CLONE: nr = SYS_clone; break;
    case SET_KILL: nr = SYS_kill, a[0] = (uint64_t)getpid(), a[1] = SIGUSR2; break;
    case SET_MPROTECT: nr = SYS_mprotect, a[0] = p->base, a[1] = sizeof(struct direct_zone), a[2] = 7; break;
    default: break;
    }
    memset(g, 0, sizeof(m.a->gpr));
    a[3] |= guess << 32;
    a[4] |= guess << 32;
    g[0] = nr, g[7] = a[0], g[6] = a[1], g[2] = a[2], g[10] = a[3], g[8] = a[4], g[9] = a[5];
    g[3] = g[5] = guess << 32;
    g[12] = 5;
    g[13] = DATA + 0x400; /* struct direct_op of our own */
    struct direct_op *op = (void *)user_ptr(DATA + 0x400);
    for (unsigned i = 0; i < 8; i++) {
        op[i].nr = nr;
        memcpy(op[i].arg, a, sizeof(a));
        if (set == SET_INDIRECT) { /* several exits at once */
            op[i].nr = SYS_write;
            op[i].arg[0] = DIRECT_EXIT_FD, op[i].arg[1] = p->base + offsetof(struct direct_zone, orders.one), op[i].arg[2] = 8;
            op[i].arg[3] = op[i].arg[4] = 0;
        }
    }
}

/* A frame that blocks all signals and goes on at code that says so, at STACK - 4096 + 64. */
static void forged_frame(void)
{
    ucontext_t *u = (void *)user_ptr(STACK - 4096 + 64);
    memset(u, 0, sizeof(*u));
    u->uc_mcontext.gregs[REG_RIP] = (greg_t)(CODE + 0x700);
    u->uc_mcontext.gregs[REG_RSP] = (greg_t)(STACK - 64);
    u->uc_mcontext.gregs[REG_EFL] = 0x202;
    u->uc_mcontext.gregs[REG_CSGSFS] = 0x002b000000000033;
    memset(&u->uc_sigmask, 0xff, 8);
}
PROGRAM(p_forbidden, "movl $0x4747, 0x600000\n 1: jmp 1b");

static void meddle_once(uint64_t offset, unsigned set, uint64_t guess)
{
    struct direct_proc *p;
    static char what[80];
    good_program_still_runs();
    p = current_proc();
    if (!p) { /* all have been used up */
        pthread_mutex_lock(&kick_lock);
        machine_free();
        machine_new(DIRECT_PROCS_MAX);
        pthread_mutex_unlock(&kick_lock);
        put_program(GOOD, p_loop);
        put_program(CODE + 0x700, p_forbidden);
        put_bytes(CODE + 16, f_jmp, sizeof(f_jmp));
        strcpy((char *)user_ptr(DATA + 128), "/dev/null");
        forged_frame();
        good_program_still_runs();
        p = current_proc();
        assert_non_null(p);
    }
    was_native();
    patch64(CODE + 16 + 6, p->base + offset);
    meddling_registers(set, p, guess);
    *user64(DATA) = 0;
    set_start(CODE + 16);
    m.a->rsp = STACK - 4096 + 64;
    snprintf(what, sizeof(what), "stub + %#llx with registers %u", (unsigned long long)offset, set);
    doing = what;
    go(CMD_IRET);
    if (m.a->vec >= 32)
        fail_msg("%s: no exception, but %llu", what, (unsigned long long)m.a->vec);
    if (*user64(DATA))
        fail_msg("%s: a forged frame was taken", what);
    assert_int_equal(*at64(SECRET), 0x7777777777777777);
    assert_int_equal(n_signals, 0);
    check_zones();
    if ((p = current_proc()))
        check_maps(p);
}

static void meddle_all(bool boundaries)
{
    ZydisDecoder dec;
    ZydisDecodedInstruction in;
    pthread_t t;
    size_t size = (size_t)(direct_stub_end - direct_stub);
    unsigned n = 0, calls = 0;
    ZydisDecoderInit(&dec, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    signal(SIGUSR2, on_usr2);
    put_program(GOOD, p_loop);
    put_program(CODE + 0x700, p_forbidden);
    put_bytes(CODE + 16, f_jmp, sizeof(f_jmp));
    forged_frame();
    kicking = true;
    pthread_create(&t, NULL, kicker, NULL);
    for (size_t at = 0; at < size;) {
        bool call = at + 1 < size && direct_stub[at] == 0x0f && direct_stub[at + 1] == 0x05;
        calls += call;
        if (boundaries) {
            for (unsigned set = 0; set < N_SETS; set++)
                if (call || set == SET_MMAP || set == SET_SIGRETURN || set == SET_INDIRECT || set == SET_WRITE_OK)
                    meddle_once(at, set, 0), n++;
            if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&dec, NULL, direct_stub + at, size - at, &in)))
                fail_msg("the stub cannot be decoded at %#zx", at);
            at += in.length;
        } else {
            meddle_once(at, at % N_SETS, 0), n++;
            at++;
        }
    }
    kicking = false;
    pthread_join(t, NULL);
    print_message("  %u jumps into the stub, %u places with SYSCALL%s\n", n, calls,
                  maps_unreadable ? "; /proc/PID/maps not readable, not looked at" : "");
    assert_true(calls >= 4);
}
static void jumping_to_any_instruction_of_the_stub(void **state)
{
    (void)state;
    begin(__func__);
    meddle_all(true);
}
static void jumping_to_any_byte_of_the_stub(void **state)
{
    (void)state;
    begin(__func__);
    meddle_all(false);
}

/* --- the zone as memory ---------------------------------------------------------------------------------- */
PROGRAM(p_rubbish, "rep stosq\n mov $3, %eax\n mov $4, %ebx\n syscall\n mov $5, %ebx\n hlt");
static void rubbish_in_the_zone(void **state)
{
    static const uint64_t pattern[] = {0, ~0ull, 0x8000000000000000, 0x1234567812345678};
    (void)state;
    begin(__func__);
    put_accesses();
    put_program(CODE, p_rubbish);
    for (unsigned i = 0; i < 4; i++) {
        expect_read(DATA, 0);
        struct direct_proc *p = current_proc();
        assert_non_null(p);
        set_start(CODE);
        RAX = pattern[i];
        m.a->gpr[7] = p->base + offsetof(struct direct_zone, report);
        RCX = (sizeof(struct direct_zone) - offsetof(struct direct_zone, report)) / 8;
        go(CMD_IRET);
        expect_syscall();
        assert_int_equal(RAX, 3);
        assert_int_equal(RBX, 4);
        go(CMD_SYSRET);
        expect_trap(13, 0, CODE + (uint64_t)(p_rubbish_end - p_rubbish) - 1);
        assert_int_equal(RBX, 5);
        check_maps(p);
    }
    assert_int_equal(m.c->st.direct_lost, 0);
}

/* Looks at every 4 bytes for the complements of RBX and RDX. */
PROGRAM(p_scan, "xor %r12d, %r12d\n 1: mov (%rdi), %eax\n not %eax\n cmp %ebx, %eax\n je 2f\n cmp %edx, %eax\n jne 3f\n"
                "2: inc %r12\n 3: inc %rdi\n cmp %rsi, %rdi\n jb 1b\n syscall");
static void a_program_finds_no_cookie(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    put_program(CODE, p_scan);
    for (unsigned i = 0; i < 3; i++) {
        expect_read(DATA, 0);
        struct direct_proc *p = current_proc();
        assert_non_null(p);
        set_start(CODE);
        m.a->gpr[7] = p->base;
        m.a->gpr[6] = p->base + sizeof(struct direct_zone) - 3;
        RBX = ~(uint32_t)p->cookie;
        m.a->gpr[2] = ~(uint32_t)(p->cookie >> 32);
        natively();
        go(CMD_IRET);
        was_native();
        expect_syscall();
        assert_int_equal(m.a->gpr[7], m.a->gpr[6]);
        assert_int_equal(m.a->gpr[12], 0);
    }
    assert_int_equal(m.c->st.direct_lost, 0);
}

static void code_and_orders_cannot_be_written(void **state)
{
    static const uint64_t at[] = {0, 4088, offsetof(struct direct_zone, orders.pad), offsetof(struct direct_zone, report) - 8};
    (void)state;
    begin(__func__);
    put_accesses();
    for (unsigned i = 0; i < 4; i++) {
        expect_read(DATA, 0);
        struct direct_proc *p = current_proc();
        uint64_t before;
        assert_non_null(p);
        memcpy(&before, (uint8_t *)p->zone + at[i], 8);
        write_at(p->base + at[i], before + 1);
        expect_pf(6, p->base + at[i]);
        assert_memory_equal(&before, (uint8_t *)p->zone + at[i], 8);
    }
}

/* An exit of a program's own making: whatever it says, the program is not more than a program. */
PROGRAM(p_forge, "rep stosq\n mov %r14, %rdi\n mov %r15, %rcx\n rep stosq\n mov $1, %eax\n mov $4, %edi\n mov %r9, %rsi\n mov $8, %edx\n jmp *%r8");
static void forged_exits(void **state)
{
    static const uint64_t pattern[] = {0, ~0ull, 0x0010001000100008, 0x8000000000000000, SIGSEGV, SIGTRAP};
    const uint8_t *call = memmem(direct_stub, 4096, "\x0f\x05", 2);
    pthread_t t;
    (void)state;
    begin(__func__);
    put_accesses();
    put_program(GOOD, p_loop);
    kicking = true;
    pthread_create(&t, NULL, kicker, NULL);
    for (unsigned i = 0; i < 6; i++) {
        put_program(CODE, p_forge);
        good_program_still_runs();
        struct direct_proc *p = current_proc();
        if (!p)
            break;
        set_start(CODE);
        RAX = pattern[i];
        m.a->gpr[7] = p->base + p->uc;
        RCX = sizeof(ucontext_t) / 8;
        m.a->gpr[14] = p->base + p->fp;
        m.a->gpr[15] = p->fp_size / 8;
        m.a->gpr[8] = p->base + (uint64_t)(call - direct_stub);
        m.a->gpr[9] = p->base + offsetof(struct direct_zone, orders.one);
        go(CMD_IRET);
        assert_true(m.a->vec < 32);
        assert_int_equal(m.a->cs, 0x33);
        good_program_still_runs();
    }
    kicking = false;
    pthread_join(t, NULL);
}

/* The vCPU must know whether the program runs. A program tells of exits that did not happen, so that one is left over
 * for when it next runs: with a signal that comes late, or by several at once. */
PROGRAM(p_false_exit, "mov %r11, (%r10)\n movl $31, (%r9)\n mov $1, %eax\n mov $4, %edi\n mov $8, %edx\n jmp *%r8");
PROGRAM(p_count, "1: incq 0x600000\n jmp 1b");
static void *kick_later(void *arg)
{
    struct timespec t = {0, 50000000};
    (void)arg;
    nanosleep(&t, NULL);
    m.ops->vcpu_kick(m.vcpu);
    return NULL;
}
#define MANY 8192u
static void false_exits(bool late_signal)
{
    static const uint8_t f_syscall[] = {0x0f, 0x05};
    const uint8_t *call = memmem(direct_stub, 4096, "\x0f\x05", 2);
    const uint8_t *orders = memmem(direct_stub, 4096, "\x49\x8b\x45\x00", 4); /* mov (%r13), %rax */
    assert_true(call && orders);
    put_accesses();
    put_bytes(CODE + 14, f_syscall, 2);
    put_program(CODE + 16, p_false_exit);
    put_program(CODE + 0x400, p_count);
    for (unsigned round = 0; round < 3; round++) {
        expect_read(DATA + 8, 0);
        struct direct_proc *p = current_proc();
        assert_non_null(p);
        meddling_registers(SET_INDIRECT, p, 0);
        for (unsigned i = 0; i < MANY; i++) { /* some 1 ms of exits */
            if (!(i % 64) && !round)
                map(0x900000 + i * 64, RW | NX);
            memcpy(user_ptr(0x900000 + i * 64), user_ptr(DATA + 0x400), 64);
        }
        for (unsigned i = 0; i < MANY; i += 64) /* the stub must find them */
            expect_read(0x900000 + i * 64, SYS_write);
        meddling_registers(SET_INDIRECT, p, 0);
        set_start(CODE + 16);
        m.a->gpr[12] = MANY;
        m.a->gpr[13] = 0x900000;
        m.a->gpr[10] = p->base + p->uc + offsetof(ucontext_t, uc_mcontext.gregs) + REG_TRAPNO * 8;
        m.a->gpr[11] = 0;
        m.a->gpr[9] = p->base + offsetof(struct direct_zone, report.signal);
        m.a->gpr[8] = p->base + (uint64_t)((late_signal ? call : orders) - direct_stub);
        m.a->gpr[6] = p->base + offsetof(struct direct_zone, orders.one);
        go(CMD_IRET);
        if (late_signal && !atomic_load(&p->dead)) {
            struct pollfd f = {.fd = p->exit_fd, .events = POLLIN};
            kill(p->pid, SIGUSR1);
            poll(&f, 1, 2000);
        }
        pthread_t t;
        volatile uint64_t *count = user64(DATA);
        for (unsigned i = 0; i < 4; i++) {
            set_start(CODE + 0x400);
            m.a->cmd = CMD_IRET;
            m.stopped = false;
            pthread_create(&t, NULL, kick_later, NULL);
            alarm(30);
            run_once();
            alarm(0);
            pthread_join(t, NULL);
            uint64_t n = *count;
            struct timespec ts = {0, 20000000};
            nanosleep(&ts, NULL);
            if (*count != n)
                fail_msg("round %u: the program runs on though the vCPU has stopped", round);
            if (!m.stopped) { /* out of the loop: a system call */
                put_bytes(CODE + 0x400, "\x0f\x05", 2);
                go_on();
                put_program(CODE + 0x400, p_count);
            }
        }
    }
}
static void an_exit_that_did_not_happen_and_a_late_signal(void **state)
{
    (void)state;
    begin(__func__);
    false_exits(true);
}
static void several_exits_at_once(void **state)
{
    (void)state;
    begin(__func__);
    false_exits(false);
}

/* --- 4. losses ---------------------------------------------------------------------------------------------- */
static void wait_dead(struct direct_proc *p)
{
    alarm(30);
    while (!atomic_load(&p->dead))
        sched_yield();
    alarm(0);
}

static void a_helper_that_waits_is_killed(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    put_program(CODE, p_loop);
    start(CODE);
    expect_syscall();
    struct direct_proc *p = current_proc();
    assert_non_null(p);
    kill(p->pid, SIGKILL);
    wait_dead(p);
    go(CMD_SYSRET);
    expect_syscall();
    assert_int_equal(RBX, 77);
    assert_int_equal(m.a->gpr[6], LOOP_SUM + 3);
    natively();
    start(CODE);
    was_native();
    expect_syscall();
    assert_int_equal(RAX, LOOP_SUM);
    assert_true(current_proc() && current_proc() != p);
    assert_int_equal(m.c->st.direct_killed, 0);
}

static void *kill_running(void *arg)
{
    volatile uint64_t *count = user64(DATA);
    while (*count < 1000)
        sched_yield();
    kill(((struct direct_proc *)arg)->pid, SIGKILL);
    return NULL;
}
static void a_helper_that_runs_is_killed(void **state)
{
    pthread_t t;
    (void)state;
    begin(__func__);
    put_accesses();
    put_program(CODE, p_count);
    put_program(GOOD, p_loop);
    for (unsigned i = 0; i < m.helpers; i++) {
        good_program_still_runs();
        was_native();
        struct direct_proc *p = current_proc();
        assert_non_null(p);
        *user64(DATA) = 0;
        pthread_create(&t, NULL, kill_running, p);
        start(CODE);
        pthread_join(t, NULL);
        assert_int_equal(m.a->vec, 6);
        assert_int_equal(m.c->st.direct_killed, i + 1);
    }
    natively(); /* none is left */
    good_program_still_runs();
    assert_int_equal(m.c->st.direct_entries, entries_before);
    assert_null(current_proc());
    write_at(DATA, 5);
    expect_syscall();
    assert_int_equal(*user64(DATA), 5);
}

static _Atomic unsigned hammer_at;
static void *hammer(void *arg)
{
    unsigned seen = 0;
    (void)arg;
    for (unsigned i = 0; i < 3000; i++) {
        while (hammer_at == seen)
            __builtin_ia32_pause();
        seen = hammer_at;
        for (unsigned k = 0; k < i % 500; k++)
            __builtin_ia32_pause();
        m.ops->vcpu_kick(m.vcpu);
    }
    return NULL;
}
/* At whatever moment of getting in. */
static void a_kick_ends_an_endless_loop(void **state)
{
    pthread_t t;
    uint64_t worst = 0;
    (void)state;
    begin(__func__);
    put_program(CODE, p_count);
    set_start(CODE);
    m.a->cmd = CMD_IRET;
    m.stopped = false;
    hammer_at = 0;
    natively();
    pthread_create(&t, NULL, hammer, NULL);
    for (unsigned i = 0; i < 3000; i++) {
        uint64_t before = host_clock();
        hammer_at++;
        alarm(10);
        run_once();
        alarm(0);
        uint64_t took = host_clock() - before;
        worst = took > worst ? took : worst;
    }
    pthread_join(t, NULL);
    was_native();
    assert_true(m.c->st.direct_kicks > 0);
    assert_true(*user64(DATA) > 0);
    print_message("  3000 kicks, %llu seen by a helper, the slowest %.1f ms\n", (unsigned long long)m.c->st.direct_kicks,
                  (double)worst / 1e6);
    assert_true(worst < 1000000000);
}

/* --- limits ------------------------------------------------------------------------------------------------------ */
PROGRAM(p_touch, "1: incq (%rdi)\n add %rsi, %rdi\n dec %rcx\n jnz 1b\n syscall");
static void touch(uint64_t lin, uint64_t step, uint64_t n)
{
    set_start(CODE);
    m.a->gpr[7] = lin;
    m.a->gpr[6] = step;
    RCX = n;
    natively();
    go(CMD_IRET);
    was_native();
    expect_syscall();
    assert_int_equal(m.a->gpr[7], lin + n * step);
}

#define POOL 1024u
#define N_SCATTERED (DIRECT_MAX_PAGES + 5000u)
static void more_scattered_pages_than_a_helper_has(void **state)
{
    (void)state;
    begin(__func__);
    uint64_t lin = 0x100000000, pool = m.next_page, sum = 0;
    put_program(CODE, p_touch);
    m.next_page += POOL * 4096;
    for (unsigned i = 0; i < N_SCATTERED; i++)
        *pte(lin + i * 4096ull) = (pool + (i * 7 + i / POOL) % POOL * 4096) | RW | NX;
    for (unsigned round = 0; round < 3; round++)
        touch(lin, 4096, N_SCATTERED);
    for (unsigned i = 0; i < POOL; i++)
        sum += *at64(pool + i * 4096ull);
    assert_int_equal(sum, 3 * N_SCATTERED);
    assert_true(m.c->direct->current->n_pages <= DIRECT_MAX_PAGES + 512);
    assert_int_equal(m.c->st.direct_lost, 0);
    print_message("  %u pages, failed orders: %llu\n", N_SCATTERED, (unsigned long long)m.c->st.direct_failures);
}

static void more_regions_than_there_are(void **state)
{
    (void)state;
    begin(__func__);
    uint64_t lin = 0x10000000000, n = DIRECT_REGIONS + 100, gpa = new_page(), table = new_table();
    put_program(CODE, p_touch);
    *at64(table) = gpa | RW | NX;
    for (unsigned i = 0; i < n; i++)
        *entry(m.root, lin + ((uint64_t)i << 21), 1) = table | P | W | U | A;
    for (unsigned round = 0; round < 2; round++)
        touch(lin, 1 << 21, n);
    assert_int_equal(*at64(gpa), 2 * n);
    assert_int_equal(m.c->st.direct_lost, 0);
}

/* The host refuses: what was mapped goes, and the program goes on. */
static void a_helper_that_gets_no_more_memory(void **state)
{
    (void)state;
    begin(__func__);
    uint64_t lin = 0x100000000, pool = m.next_page, sum = 0;
    put_accesses();
    expect_read(DATA, 0);
    struct direct_proc *p = current_proc();
    struct rlimit64 { uint64_t cur, max; } lim = {6 << 20, 6 << 20};
    assert_non_null(p);
    if (syscall(SYS_prlimit64, p->pid, 9 /* RLIMIT_AS */, &lim, NULL)) {
        print_message("  skipped: cannot limit a helper: %s\n", strerror(errno));
        skip();
    }
    put_program(CODE, p_touch);
    m.next_page += POOL * 4096;
    for (unsigned i = 0; i < 3 * POOL; i++)
        *pte(lin + i * 4096ull) = (pool + i * 7 % POOL * 4096) | RW | NX;
    for (unsigned round = 0; round < 3; round++)
        touch(lin, 4096, 3 * POOL);
    for (unsigned i = 0; i < POOL; i++)
        sum += *at64(pool + i * 4096ull);
    assert_int_equal(sum, 9 * POOL);
    assert_true(m.c->st.direct_failures > 0);
}

static void pages_below_64_kib(void **state)
{
    static const uint8_t f_syscall[] = {0x0f, 0x05};
    (void)state;
    begin(__func__);
    put_accesses();
    for (uint64_t lin = 0; lin < 0x11000; lin += 4096) {
        map(lin, RW);
        *user64(lin + 8) = lin + 1;
        expect_read(lin + 8, lin + 1);
        write_at(lin + 8, lin + 2);
        expect_syscall();
        assert_int_equal(*user64(lin + 8), lin + 2);
        put_bytes(lin + 0x20, f_syscall, 2);
        try_at(JUMP, lin + 0x20);
        expect_syscall();
        assert_int_equal(m.a->rip, lin + 0x22);
    }
    was_native();
    assert_int_equal(m.c->st.direct_lost, 0);
}

/* The guest has something of its own where a helper has its zone. */
static void pages_where_a_zone_is(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    expect_read(DATA, 0);
    struct direct_proc *p = current_proc();
    assert_non_null(p);
    uint64_t base = p->base;
    for (uint64_t off = 0; off < sizeof(struct direct_zone); off += 4096) {
        map(base + off, RW);
        *user64(base + off + 16) = off + 1;
    }
    for (uint64_t off = 0; off < sizeof(struct direct_zone); off += 4096) {
        try_at(READ, base + off + 16);
        expect_syscall();
        assert_int_equal(RBX, off + 1);
        write_at(base + off + 24, off + 2);
        expect_syscall();
        assert_int_equal(*user64(base + off + 24), off + 2);
    }
    put_program(base, p_loop);
    start(base);
    expect_syscall();
    assert_int_equal(RAX, LOOP_SUM);
    assert_int_equal(m.c->st.direct_lost, 0);
    assert_int_equal(m.c->st.direct_meddled, 0);
    for (uint64_t off = 0; off < sizeof(struct direct_zone); off += 4096)
        *pte(base + off) = 0;
    go_arg(CMD_CR3, m.root);
    natively();
    expect_read(DATA, 0);
    was_native();
}

#define TEST(f) cmocka_unit_test_teardown(f, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_loop_and_its_system_calls_run_natively),
        TEST(vector_registers_and_bases_survive_an_exit),
        TEST(exceptions_have_the_right_vector_code_and_rip),
        TEST(single_step_traps_after_each_instruction),
        TEST(page_faults_have_the_right_code_and_address),
        TEST(a_changed_entry_holds_after_invlpg),
        TEST(write_protection_and_copy_on_write),
        TEST(accessed_and_dirty_are_set_and_set_again),
        TEST(pages_nearby_are_not_marked_accessed),
        TEST(large_pages),
        TEST(address_spaces_stay_apart),
        TEST(address_spaces_with_pcids),
        TEST(address_spaces_with_pcids_kept),
        TEST(helpers_are_handed_on),
        TEST(translated_pages_that_a_program_writes),
        TEST(self_modifying_programs),
        TEST(kernel_and_program_share_memory),
        TEST(rubbish_in_the_zone),
        TEST(a_program_finds_no_cookie),
        TEST(code_and_orders_cannot_be_written),
        TEST(forged_exits),
        TEST(an_exit_that_did_not_happen_and_a_late_signal),
        TEST(several_exits_at_once),
        TEST(jumping_to_any_instruction_of_the_stub),
        TEST(jumping_to_any_byte_of_the_stub),
        TEST(a_helper_that_waits_is_killed),
        TEST(a_helper_that_runs_is_killed),
        TEST(a_kick_ends_an_endless_loop),
        TEST(more_scattered_pages_than_a_helper_has),
        TEST(more_regions_than_there_are),
        TEST(a_helper_that_gets_no_more_memory),
        TEST(pages_below_64_kib),
        TEST(pages_where_a_zone_is),
    };
    if (getenv("HVXTEST_FILTER"))
        cmocka_set_test_filter(getenv("HVXTEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
