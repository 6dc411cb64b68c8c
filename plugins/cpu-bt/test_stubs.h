/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_stubs.h - what the interrupt controllers, CPU model and
 * MSRs ask of the rest of the engine, reduced to notes that a test can read.
 * Included once by a test program that links those files alone.
 */
#ifndef BT_TEST_STUBS_H
#define BT_TEST_STUBS_H

#include "apic.h"
#include "cpu_model.h"
#include "phys.h"
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static unsigned test_flushes, test_seg_updates;

void bt_kick(struct bt_vcpu *c, uint32_t pend) { atomic_fetch_or(&c->pending, pend); }
_Noreturn void bt_fatal(struct bt_vcpu *c, const char *why)
{
    (void)c;
    fprintf(stderr, "engine gives up: %s\n", why);
    abort();
}
void bt_tlb_flush_all(struct bt_vcpu *c) { (void)c, test_flushes++; }
void bt_seg_update(struct bt_vcpu *c, unsigned seg) { c->seg_base[seg] = c->seg[seg].base, test_seg_updates++; }
void bt_fp_save(struct bt_vcpu *c) { c->fp_live = 0; }
void bt_sync_request(struct bt_vm *vm, struct bt_vcpu *self, uint64_t mask, unsigned what, uint64_t pa, uint64_t n,
                     bool wait)
{
    (void)vm, (void)self, (void)mask, (void)what, (void)pa, (void)n, (void)wait;
}
bool sys_write_efer(struct bt_vcpu *c, uint64_t v);
bool sys_write_efer(struct bt_vcpu *c, uint64_t v)
{
    c->efer = v;
    return true;
}

static struct bt_vm *test_vm_new(unsigned n)
{
    struct bt_vm *vm = calloc(1, sizeof(*vm));
    struct hvx_error err;
    vm->n_vcpus = n;
    vm->tsc_hz = 2600000000u;
    if (bt_cpuid_create(vm, "host", &err) || bt_irqchip_create(vm))
        abort();
    for (unsigned i = 0; i < n; i++) {
        struct bt_vcpu *c = aligned_alloc(64, (sizeof(*c) + 63) & ~(size_t)63);
        memset(c, 0, sizeof(*c));
        c->index = c->apic_id = i;
        c->vm = vm;
        c->tid = (int)syscall(SYS_gettid);
        vm->vcpu[i] = c;
        bt_msr_reset(c);
        if (bt_apic_create(c))
            abort();
    }
    return vm;
}

static void test_vm_free(struct bt_vm *vm)
{
    for (unsigned i = 0; i < vm->n_vcpus; i++) {
        bt_apic_destroy(vm->vcpu[i]);
        free(vm->vcpu[i]);
    }
    bt_irqchip_destroy(vm);
    bt_cpuid_destroy(vm);
    free(vm);
}

static inline uint32_t test_take_pending(struct bt_vcpu *c) { return atomic_exchange(&c->pending, 0); }

#endif
