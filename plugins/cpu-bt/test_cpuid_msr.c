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
    assert_int_equal(leaf(c, 1, 0, 2) & (BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(15) | BIT(18)), 0);
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
        cmocka_unit_test(msr_rules),
        cmocka_unit_test(tsc_and_its_adjustment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
