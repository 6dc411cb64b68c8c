/* SPDX-License-Identifier: Apache-2.0
 *
 * test_kvm.c - real-mode guest code on the host's KVM: ports, memory-mapped
 * registers, kicks, registers in and out, triple faults. Skipped where there
 * is no usable /dev/kvm.
 */
#define _GNU_SOURCE
#include "kvm.h"

#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

extern const struct hvx_plugin hvx_plugin_cpu_kvm;

/* --- a host table with what the engine calls --------------------------------------- */

#define END_PORT 0x80 /* a write here kicks the vCPU: the end of a test's guest */

static struct {
    unsigned n_out, n_in, n_mmio;
    uint64_t addr, value;
    unsigned size;
    struct hvx_vcpu *v;
} seen;

static void io_read(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, unsigned size, void *value)
{
    (void)vm;
    seen.n_in += space == HVX_SPACE_PIO;
    seen.n_mmio += space == HVX_SPACE_MMIO;
    seen.addr = addr;
    seen.size = size;
    memset(value, 0x42, size);
}

static void io_write(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, unsigned size, const void *value)
{
    (void)vm;
    if (space == HVX_SPACE_PIO && addr == END_PORT) {
        kvm_vcpu_kick(seen.v);
        return;
    }
    seen.n_out += space == HVX_SPACE_PIO;
    seen.n_mmio += space == HVX_SPACE_MMIO;
    seen.addr = addr;
    seen.size = size;
    seen.value = 0;
    memcpy(&seen.value, value, size);
}

static const struct hvx_host host = {
    .size = sizeof(host), .abi_major = HVX_ABI_MAJOR, .io_read = io_read, .io_write = io_write};

struct fixture {
    const struct hvx_cpu_ops *ops;
    void *ctx;
    struct hvx_engine_vm *e;
    struct hvx_vcpu *v;
    uint8_t *ram;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct hvx_engine_config cfg = {.size = sizeof(cfg), .n_vcpus = 1, .cpu_model = "host"};
    struct hvx_mem_slot slot = {.size = sizeof(slot), .id = 0, .bytes = 0x10000, .fd = -1};
    struct hvx_error err = {0};

    memset(&seen, 0, sizeof(seen));
    f->ops = hvx_plugin_cpu_kvm.ops;
    assert_int_equal(hvx_plugin_cpu_kvm.init(&host, NULL, &f->ctx, &err), 0);
    if (f->ops->vm_create(f->ctx, NULL, &cfg, &f->e, &err) < 0)
        fail_msg("%s", err.text);
    f->ram = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    slot.hva = f->ram;
    assert_int_equal(f->ops->set_slot(f->e, &slot, &err), 0);
    if (f->ops->vcpu_create(f->e, 0, &f->v, &err) < 0)
        fail_msg("%s", err.text);
    f->ops->vcpu_reset(f->v);
    seen.v = f->v;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    f->ops->vcpu_destroy(f->v);
    f->ops->vm_destroy(f->e);
    hvx_plugin_cpu_kvm.fini(f->ctx);
    munmap(f->ram, 0x10000);
    free(f);
    return 0;
}

static struct hvx_vcpu_regs *registers(void)
{
    struct hvx_vcpu_regs *r = aligned_alloc(64, (sizeof(*r) + 63) & ~(size_t)63);

    memset(r, 0, sizeof(*r));
    return r;
}

/* Code at 0:1000 in real mode. */
static void load(struct fixture *f, const void *code, size_t n)
{
    struct hvx_vcpu_regs *r = registers();
    struct hvx_error err = {0};

    memcpy(f->ram + 0x1000, code, n);
    assert_int_equal(f->ops->vcpu_get(f->v, r), 0);
    r->seg[HVX_CS].selector = 0;
    r->seg[HVX_CS].base = 0;
    r->rip = 0x1000;
    r->gpr[HVX_RSP] = 0x8000;
    if (f->ops->vcpu_set(f->v, r, &err) < 0)
        fail_msg("%s", err.text);
    free(r);
}

static void run(struct fixture *f)
{
    struct hvx_exit x = {.size = sizeof(x)};

    assert_int_equal(f->ops->vcpu_run(f->v, &x), 0);
    if (x.reason != HVX_EXIT_INTERRUPTED)
        fail_msg("reason %u: %s", x.reason, x.text);
}

static void ports_and_registers_work_in_real_mode(void **state)
{
    static const uint8_t code[] = {0xba, 0xf8, 0x03, /* mov dx, 0x3f8 */
                                   0xb0, 0x5a,       /* mov al, 0x5a */
                                   0xee,             /* out dx, al */
                                   0xe5, 0x60,       /* in ax, 0x60 */
                                   0xa3, 0x00, 0x20, /* mov [0x2000], ax */
                                   0xbb, 0x34, 0x12, /* mov bx, 0x1234 */
                                   0xe6, END_PORT,   /* out 0x80, al */
                                   0xeb, 0xfe};      /* jmp $ */
    struct fixture *f = *state;
    struct hvx_vcpu_regs *r = registers();

    load(f, code, sizeof(code));
    f->ops->vcpu_kick(f->v); /* sticks: nothing runs */
    run(f);
    assert_int_equal(seen.n_out, 0);
    run(f);
    assert_int_equal(seen.n_out, 1);
    assert_int_equal(seen.value, 0x5a);
    assert_int_equal(seen.n_in, 1);
    assert_int_equal(seen.addr, 0x60);
    assert_int_equal(f->ram[0x2000] | f->ram[0x2001] << 8, 0x4242);
    assert_int_equal(f->ops->vcpu_get(f->v, r), 0);
    assert_int_equal(r->gpr[HVX_RBX] & 0xffff, 0x1234);
    assert_int_equal(r->rip, 0x1000 + sizeof(code) - 2);
    free(r);
}

static void memory_outside_the_slots_is_mmio(void **state)
{
    static const uint8_t code[] = {0xb8, 0x00, 0x20,             /* mov ax, 0x2000 */
                                   0x8e, 0xd8,                   /* mov ds, ax: base 0x20000 */
                                   0xa0, 0x10, 0x00,             /* mov al, [0x10] */
                                   0xc6, 0x06, 0x20, 0x00, 0x77, /* mov byte [0x20], 0x77 */
                                   0xe6, END_PORT};
    struct fixture *f = *state;

    load(f, code, sizeof(code));
    run(f);
    assert_int_equal(seen.n_mmio, 2);
    assert_int_equal(seen.addr, 0x20020);
    assert_int_equal(seen.value, 0x77);
}

static void read_only_slots_send_writes_to_the_host(void **state)
{
    static const uint8_t code[] = {0xc6, 0x06, 0x10, 0x00, 0x77, /* mov byte [0x10], 0x77 */
                                   0xa0, 0x10, 0x00,             /* mov al, [0x10] */
                                   0xe6, END_PORT};
    struct fixture *f = *state;
    struct hvx_mem_slot slot = {.size = sizeof(slot), .id = 0, .fd = -1, .hva = f->ram};
    struct hvx_error err;

    load(f, code, sizeof(code));
    assert_int_equal(f->ops->set_slot(f->e, &slot, &err), 0); /* removes it */
    slot.bytes = 0x10000;
    slot.flags = HVX_SLOT_READONLY;
    assert_int_equal(f->ops->set_slot(f->e, &slot, &err), 0);
    run(f);
    assert_int_equal(seen.n_mmio, 1);
    assert_int_equal(seen.value, 0x77);
    assert_int_equal(f->ram[0x10], 0);
}

static void a_triple_fault_is_a_shutdown_and_reset_recovers(void **state)
{
    static const uint8_t code[] = {0x0f, 0x01, 0x1e, 0x00, 0x30, /* lidt [0x3000]: limit 0 */
                                   0xcd, 0x03};                  /* int 3 */
    struct fixture *f = *state;
    struct hvx_exit x = {.size = sizeof(x)};
    struct hvx_vcpu_regs *r = registers();

    load(f, code, sizeof(code));
    assert_int_equal(f->ops->vcpu_run(f->v, &x), 0);
    /* A KVM that the probe refuses may not get that far. */
    if (x.reason != HVX_EXIT_ERROR || f->ops->probe(f->ctx, NULL) == 0)
        assert_int_equal(x.reason, HVX_EXIT_SHUTDOWN);
    f->ops->vcpu_reset(f->v);
    assert_int_equal(f->ops->vcpu_get(f->v, r), 0);
    assert_int_equal(r->rip, 0xfff0);
    assert_int_equal(r->seg[HVX_CS].selector, 0xf000);
    assert_true(r->seg[HVX_CS].base == 0xffff0000);
    assert_int_equal(r->idt_limit, 0xffff);
    assert_int_equal(r->mp_state, 0);
    free(r);
}

/* What vcpu_get gives, vcpu_set takes, and vcpu_get gives again. */
static void registers_survive_a_round_trip(void **state)
{
    struct fixture *f = *state;
    struct hvx_vcpu_regs *a = registers(), *b = registers();
    struct hvx_error err = {0};

    assert_int_equal(f->ops->vcpu_get(f->v, a), 0);
    for (unsigned i = 0; i < 16; i++)
        a->gpr[i] = 0x1111111111111111ull * i;
    a->lstar = 0xffffffff81000000ull;
    a->cr2 = 0x1234;
    a->dr[1] = 0x5678;
    a->seg[HVX_FS].base = 0x7000;
    a->sysenter_eip = 0xdeadbeef;
    if (f->ops->vcpu_set(f->v, a, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(f->ops->vcpu_get(f->v, b), 0);
    assert_memory_equal(a->gpr, b->gpr, sizeof(a->gpr));
    assert_memory_equal(a->seg, b->seg, sizeof(a->seg));
    assert_memory_equal(a->dr, b->dr, sizeof(a->dr));
    assert_memory_equal(a->apic, b->apic, sizeof(a->apic));
    assert_true(a->lstar == b->lstar && a->cr2 == b->cr2 && a->sysenter_eip == b->sysenter_eip);
    assert_int_equal(a->n_msrs, b->n_msrs);
    free(a);
    free(b);
}

/* The probe must come to a verdict, whatever this host's KVM is. */
static void the_probe_says_why_not(void **state)
{
    struct fixture *f = *state;
    struct hvx_error err = {0};

    if (f->ops->probe(f->ctx, &err) < 0) {
        assert_true(strlen(err.text) > 20);
        print_message("# this host: %s\n", err.text);
    }
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(ports_and_registers_work_in_real_mode),
        T(memory_outside_the_slots_is_mmio),
        T(read_only_slots_send_writes_to_the_host),
        T(a_triple_fault_is_a_shutdown_and_reset_recovers),
        T(registers_survive_a_round_trip),
        T(the_probe_says_why_not),
    };

    if (access("/dev/kvm", R_OK | W_OK) < 0) {
        fprintf(stderr, "no /dev/kvm here\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
