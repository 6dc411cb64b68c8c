/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_cpuid_msr.c - the CPU model is consistent with itself and
 * with what the engine does; MSRs keep their rules.
 */
#include "test_stubs.h" /* before cmocka, whose fail() is a macro */
#include <setjmp.h>
#include <cmocka.h>

static uint32_t leaf(struct bt_vcpu *c, uint32_t l, uint32_t sub, unsigned reg)
{
    uint32_t r[4];
    bt_cpuid(c, l, sub, r);
    return r[reg];
}
#define BIT(n) (1u << (n))

static void nothing_that_does_not_work(void **state)
{
    struct bt_vm *vm = test_vm_new(2);
    struct bt_vcpu *c = vm->vcpu[1];
    (void)state;
    /* DTES64 MONITOR DS-CPL VMX SMX EST TM2 PDCM DCA */
    assert_int_equal(
        leaf(c, 1, 0, 2) & (BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(15) | BIT(18)), 0);
    assert_int_equal(leaf(c, 1, 0, 3) & (BIT(1) | BIT(21) | BIT(22) | BIT(29) | BIT(31)), 0);
    assert_int_equal(leaf(c, 7, 0, 1) & (BIT(2) | BIT(4) | BIT(11) | BIT(14) | BIT(20) | BIT(25)), 0);
    assert_int_equal(leaf(c, 7, 0, 2) & (BIT(3) | BIT(4) | BIT(5) | BIT(7) | BIT(16) | BIT(23) | BIT(24) | BIT(29)), 0);
    assert_int_equal(leaf(c, 7, 0, 3) & (BIT(5) | BIT(20) | BIT(22) | BIT(24) | BIT(25) | BIT(27) | BIT(31)), 0);
    assert_int_equal(leaf(c, 0x80000001, 0, 2) & (BIT(2) | BIT(29)), 0);
    assert_int_equal(leaf(c, 0xa, 0, 0), 0);
    assert_true(leaf(c, 1, 0, 2) & BIT(31));
    assert_true(leaf(c, 0x80000007, 0, 3) & BIT(8));
    assert_int_equal(leaf(c, 0x12345, 0, 0), 0);
    test_vm_free(vm);
}

static void dynamic_bits(void **state)
{
    struct bt_vm *vm = test_vm_new(3);
    struct bt_vcpu *c = vm->vcpu[2];
    (void)state;
    assert_int_equal(leaf(c, 1, 0, 1) >> 24, 2);
    assert_int_equal((leaf(c, 1, 0, 1) >> 16) & 0xff, 4);
    assert_int_equal(leaf(c, 0xb, 0, 3), 2);
    assert_int_equal(leaf(c, 0xb, 1, 0), 2);
    assert_int_equal(leaf(c, 0xb, 1, 1), 3);
    assert_int_equal(leaf(c, 0xb, 2, 2), 2);
    assert_false(leaf(c, 1, 0, 2) & BIT(27));
    c->cr4 |= BT_CR4_OSXSAVE;
    assert_true(leaf(c, 1, 0, 2) & BIT(27));
    uint64_t off = 0xfee00000;
    assert_true(leaf(c, 1, 0, 3) & BIT(9));
    assert_true(bt_apic_msr(c, 0x1b, true, &off));
    assert_false(leaf(c, 1, 0, 3) & BIT(9));
    test_vm_free(vm);
}

static void xsave_sizes(void **state)
{
    struct bt_vm *vm = test_vm_new(1);
    struct bt_vcpu *c = vm->vcpu[0];
    uint64_t all = leaf(c, 0xd, 0, 0);
    (void)state;
    assert_int_equal(all & ~0xe7ull, 0);
    c->xcr0 = 1;
    assert_int_equal(leaf(c, 0xd, 0, 1), 576);
    assert_int_equal(leaf(c, 0xd, 0, 2) >= 576, 1);
    c->xcr0 = all;
    assert_int_equal(leaf(c, 0xd, 0, 1), leaf(c, 0xd, 0, 2));
    uint32_t n = 576;
    for (unsigned i = 2; i < 8; i++)
        if (all >> i & 1)
            n += leaf(c, 0xd, i, 0);
    if (leaf(c, 0xd, 1, 0) & 2)
        assert_in_range(leaf(c, 0xd, 1, 1), n, n + 63 * 6);
    test_vm_free(vm);
}

static void tsc_rate_is_told(void **state)
{
    static const uint64_t rates[] = {1000000000, 2600000000, 2599999123, 3792871234, 4700000001, 2394454000};
    (void)state;
    for (unsigned i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
        struct bt_vm vm = {.n_vcpus = 1, .tsc_hz = rates[i]};
        struct bt_vcpu *c = aligned_alloc(64, (sizeof(*c) + 63) & ~(size_t)63);
        memset(c, 0, sizeof(*c));
        c->vm = &vm;
        assert_int_equal(bt_cpuid_create(&vm, "host", NULL), 0);
        uint32_t r[4];
        bt_cpuid(c, 0x15, 0, r);
        assert_int_equal(r[2], 1000000000);
        uint32_t khz = 1000000u * r[1] / r[0]; /* as Linux computes it, in 32 bits */
        int64_t off = (int64_t)khz * 1000 - (int64_t)rates[i];
        if (rates[i] < 4290000000u)
            assert_true(off < 4000 && off > -4000);
        bt_cpuid_destroy(&vm);
        free(c);
    }
}

static void unknown_model_is_refused(void **state)
{
    struct bt_vm vm = {.n_vcpus = 1, .tsc_hz = 1000000000};
    struct hvx_error err;
    (void)state;
    assert_int_equal(bt_cpuid_create(&vm, "pentium", &err), -EINVAL);
    assert_non_null(strstr(err.text, "pentium"));
    assert_null(vm.cpuid);
}

/* A VM with one vCPU and the model that the text names. */
static struct bt_vm *vm_of(const char *text)
{
    struct bt_vm *vm = test_vm_new(1);
    struct hvx_error err = {0};
    bt_cpuid_destroy(vm);
    if (bt_cpuid_create(vm, text, &err)) {
        fprintf(stderr, "%s: %s\n", text, err.text);
        abort();
    }
    return vm;
}

static int create(const char *text, struct hvx_error *err)
{
    struct bt_vm vm = {.n_vcpus = 1, .tsc_hz = 1000000000};
    int rc = bt_cpuid_create(&vm, text, err);
    bt_cpuid_destroy(&vm);
    return rc;
}

static void named_models_take_nothing_from_the_host(void **state)
{
    struct bt_vm *vm = vm_of("x86-64-v1");
    struct bt_vcpu *c = vm->vcpu[0];
    uint32_t r[4];
    (void)state;
    bt_cpuid(c, 0, 0, r);
    assert_memory_equal(&r[1], "Genu", 4);
    assert_memory_equal(&r[3], "ineI", 4);
    assert_memory_equal(&r[2], "ntel", 4);
    assert_int_equal(leaf(c, 1, 0, 0), 0x6fb);
    assert_int_equal(leaf(c, 1, 0, 2) & (BIT(0) | BIT(9) | BIT(19) | BIT(20) | BIT(23) | BIT(26) | BIT(28)), 0);
    assert_int_equal(leaf(c, 7, 0, 1) & (BIT(3) | BIT(5) | BIT(8) | BIT(16)), 0);
    assert_int_equal(leaf(c, 0xd, 0, 0), 0);
    assert_int_equal(leaf(c, 0x80000008, 0, 0) & 0xff, 40);
    bt_cpuid(c, 0x80000002, 0, r);
    assert_memory_equal(r, "x86-64-v1 virtua", 16);
    assert_true(vm->cpuid->restricted);
    assert_int_equal(vm->cpuid->xcr0, 3);
    /* what the engine does for every guest */
    assert_true(leaf(c, 1, 0, 2) & BIT(21));
    assert_true(leaf(c, 7, 0, 1) & BIT(7));
    test_vm_free(vm);
}

static void features_come_and_go(void **state)
{
    struct bt_vm *vm = vm_of("host,-avx,-x2apic,-tsc-adjust,-arch-capabilities");
    struct bt_vcpu *c = vm->vcpu[0];
    struct hvx_error err;
    uint64_t v;
    (void)state;
    /* AVX takes all along that needs it. */
    assert_int_equal(leaf(c, 1, 0, 2) & (BIT(12) | BIT(21) | BIT(28) | BIT(29)), 0);
    assert_int_equal(leaf(c, 7, 0, 1) & (BIT(5) | BIT(16) | BIT(17) | BIT(30) | BIT(31)), 0);
    assert_int_equal(leaf(c, 0xd, 0, 0), 3);
    assert_int_equal(leaf(c, 0xd, 0, 2), 576);
    assert_false(bt_cpuid_has_x2apic(vm));
    assert_false(bt_rdmsr(c, 0x3b, &v));
    assert_false(bt_rdmsr(c, 0x10a, &v));
    test_vm_free(vm);
    assert_int_equal(create("x86-64-v1,+avx", &err), -EINVAL);
    assert_non_null(strstr(err.text, "+xsave"));
    assert_int_equal(create("x86-64-v1,+frob", &err), -EINVAL);
    assert_non_null(strstr(err.text, "frob"));
    assert_int_equal(create("host,frob", &err), -EINVAL);
    assert_int_equal(create("host,hypervisor=xen", &err), -EINVAL);
    assert_int_equal(create("host,tsc-frequency=1", &err), -EINVAL);
    assert_int_equal(create("host,tsc-frequency=99999999999999999999999", &err), -EINVAL);
    assert_int_equal(create("host,", &err), -EINVAL);
    assert_int_equal(create("", &err), -EINVAL);
    assert_int_equal(create("host,+smap", &err), -ENOTSUP);
}

static void note_model(void *opaque, const char *name, const char *what, const char *why)
{
    unsigned *n = opaque;
    (void)what;
    if (!name)
        return;
    struct hvx_error err = {0};
    int rc = create(name, &err);
    assert_int_equal(rc, why ? -ENOTSUP : 0); /* the list tells the truth */
    if (why) /* on AMD's processors Intel's models with AVX-512 lack nothing, but keep it elsewhere */
        assert_non_null(strstr(err.text, strstr(why, "elsewhere") ? "at other places" : "lacks"));
    ++*n;
}

static void every_model_in_the_list(void **state)
{
    unsigned n = 0;
    (void)state;
    bt_cpuid_models(note_model, &n);
    assert_true(n >= 18);
}

/* What a host without AVX2 would say. */
static void what_is_missing_is_named(void **state)
{
    struct bt_cpuid_offer o;
    struct bt_model_choice c;
    struct hvx_error err = {0};
    (void)state;
    memset(&o, 0, sizeof(o));
    memset(o.host_kind, 0xff, sizeof(o.host_kind));
    memset(o.here, 0xff, sizeof(o.here));
    o.here[BT_W_7B] &= ~(BIT(5) | BIT(16));
    assert_int_equal(bt_model_choose("x86-64-v3", &o, &c, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "avx2"));
    assert_null(strstr(err.text, "bmi"));
    assert_non_null(strstr(err.text, "use x86-64-v2"));
    assert_int_equal(bt_model_choose("x86-64-v3,-avx2", &o, &c, &err), 0);
    memset(o.here, 0xff, sizeof(o.here));
    o.avx512_off = 832; /* as AMD's */
    assert_int_equal(bt_model_choose("x86-64-v4", &o, &c, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "other places"));
    assert_int_equal(bt_model_choose("EPYC-Genoa", &o, &c, &err), 0);
}

static void tsc_at_another_rate(void **state)
{
    struct bt_vm *vm = test_vm_new(1);
    struct bt_vcpu *c = vm->vcpu[0];
    (void)state;
    vm->host_tsc_hz = 2600000000u;
    vm->tsc_hz = 2600100000u; /* as good as the same */
    bt_tsc_scale_init(vm);
    assert_int_equal(vm->tsc_ratio, 0);
    vm->tsc_hz = 1300000000u;
    bt_tsc_scale_init(vm);
    assert_int_equal(bt_tsc_scale(vm, 1ull << 62), 1ull << 61);
    c->tsc_offset = 0;
    uint64_t a = bt_guest_tsc(c), h = bt_host_tsc();
    assert_in_range(a, h / 2 - 2600000000u, h / 2);
    bt_cpuid_destroy(vm);
    assert_int_equal(bt_cpuid_create(vm, "host,tsc-frequency=1500M", NULL), 0);
    assert_int_equal(vm->tsc_hz, 1500000000u);
    assert_int_equal(leaf(c, 0x40000010, 0, 0), 1500000);
    test_vm_free(vm);
}

static void kvm_leaves_and_msrs(void **state)
{
    struct bt_vm *vm = test_vm_new(2);
    struct bt_vcpu *c = vm->vcpu[0];
    struct hvx_vcpu_regs *r = calloc(1, sizeof(*r));
    uint32_t id[4];
    uint64_t v;
    (void)state;
    bt_cpuid(c, 0x40000000, 0, id);
    assert_memory_equal(&id[1], "KVMKVMKVM\0\0", 12);
    assert_int_equal(leaf(c, 0x40000001, 0, 0), BIT(0) | BIT(1) | BIT(3) | BIT(7) | BIT(11) | BIT(24));
    assert_true(bt_wrmsr(c, 0x4b564d01, 0x1001)); /* no RAM there: of no effect */
    assert_true(bt_rdmsr(c, 0x12, &v));
    assert_int_equal(v, 0x1001);
    assert_true(bt_wrmsr(c, 0x3b, 4711));
    v = c->tsc_offset;
    bt_msr_get_all(c, r);
    assert_true(bt_wrmsr(c, 0x3b, 0));
    assert_true(bt_wrmsr(c, 0x4b564d01, 0));
    uint64_t offset = c->tsc_offset;
    bt_msr_set_all(c, r);
    assert_int_equal(c->tsc_offset, offset); /* restoring moves no TSC */
    assert_int_equal(bt_msr_tsc_adjust(c), 4711);
    assert_int_equal(c->pv.system_time, 0x1001);
    test_take_pending(vm->vcpu[1]);
    const uint64_t kick[4] = {0, 1, 0, 0}, nothing[4] = {0};
    assert_int_equal(bt_pv_hypercall(c, 5, kick), 0);
    assert_true(test_take_pending(vm->vcpu[1]) & BT_PEND_UNHALT);
    assert_int_equal(bt_pv_hypercall(c, 99, nothing), (uint64_t)-1000);
    c->cpl = 3;
    assert_int_equal(bt_pv_hypercall(c, 5, kick), (uint64_t)-1);
    free(r);
    test_vm_free(vm);
    vm = vm_of("host,hypervisor=none");
    c = vm->vcpu[0];
    assert_false(leaf(c, 1, 0, 2) & BIT(31));
    assert_int_equal(leaf(c, 0x40000000, 0, 0), 0);
    assert_false(bt_rdmsr(c, 0x4b564d01, &v));
    assert_false(vm->hypercalls);
    test_vm_free(vm);
    vm = vm_of("host,-hypervisor"); /* the same */
    assert_int_equal(leaf(vm->vcpu[0], 0x40000000, 0, 0), 0);
    test_vm_free(vm);
}

static void msr_rules(void **state)
{
    struct bt_vm *vm = test_vm_new(1);
    struct bt_vcpu *c = vm->vcpu[0];
    uint64_t v;
    (void)state;
    assert_true(bt_rdmsr(c, 0x277, &v));
    assert_int_equal(v, 0x0007040600070406ull);
    assert_false(bt_wrmsr(c, 0x277, 0x0007040600070402ull)); /* type 2 is reserved */
    assert_true(bt_wrmsr(c, 0xc0000101, 0xffff888000000000ull));
    assert_int_equal(c->seg_base[BT_GS], 0xffff888000000000ull);
    assert_false(bt_wrmsr(c, 0xc0000100, 0x0000800000000000ull));
    assert_false(bt_wrmsr(c, 0xc0000082, 0x8000000000000000ull));
    assert_true(bt_wrmsr(c, 0x2ff, 0xc06));
    assert_false(bt_wrmsr(c, 0x2ff, 0x802));
    assert_true(bt_wrmsr(c, 0x250, 0x0606060606060606ull));
    assert_false(bt_wrmsr(c, 0x250, 0x0706060606060606ull));
    assert_true(bt_wrmsr(c, 0x20f, 0x800));
    assert_true(bt_rdmsr(c, 0x20f, &v));
    assert_int_equal(v, 0x800);
    assert_false(bt_wrmsr(c, 0x200, 1ull << 60));
    assert_true(bt_rdmsr(c, 0x10a, &v));
    assert_true(v & 1); /* RDCL_NO: no page-table isolation */
    assert_true(bt_wrmsr(c, 0x48, 0x401));
    assert_false(bt_wrmsr(c, 0x3a, 5));
    assert_false(bt_rdmsr(c, 0x480, &v)); /* VMX */
    assert_false(bt_wrmsr(c, 0xda0, 0x100));
    assert_false(bt_wrmsr(c, 0xc0000103, 1ull << 32));
    for (unsigned i = 0; i < bt_n_msr_saved; i++) {
        assert_true(bt_rdmsr(c, bt_msr_saved[i], &v));
        assert_true(bt_wrmsr(c, bt_msr_saved[i], v));
    }
    test_vm_free(vm);
}

static void tsc_and_its_adjustment(void **state)
{
    struct bt_vm *vm = test_vm_new(2);
    struct bt_vcpu *c = vm->vcpu[0];
    uint64_t v, w;
    (void)state;
    assert_int_equal(c->tsc_offset, vm->vcpu[1]->tsc_offset);
    assert_true(bt_wrmsr(c, 0x10, 1000));
    assert_true(bt_rdmsr(c, 0x10, &v));
    assert_in_range(v, 1000, 2600000000u);
    assert_true(bt_rdmsr(c, 0x3b, &w));
    assert_int_equal(w, c->tsc_offset - vm->vcpu[1]->tsc_offset);
    assert_true(bt_wrmsr(c, 0x3b, 0));
    assert_int_equal(c->tsc_offset, vm->vcpu[1]->tsc_offset);
    test_vm_free(vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_that_does_not_work),
        cmocka_unit_test(dynamic_bits),
        cmocka_unit_test(xsave_sizes),
        cmocka_unit_test(tsc_rate_is_told),
        cmocka_unit_test(unknown_model_is_refused),
        cmocka_unit_test(named_models_take_nothing_from_the_host),
        cmocka_unit_test(features_come_and_go),
        cmocka_unit_test(every_model_in_the_list),
        cmocka_unit_test(what_is_missing_is_named),
        cmocka_unit_test(tsc_at_another_rate),
        cmocka_unit_test(kvm_leaves_and_msrs),
        cmocka_unit_test(msr_rules),
        cmocka_unit_test(tsc_and_its_adjustment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
