/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/irq.c - interrupt lines. A line is high while an ISA device drives
 * it or at least one PCI function does; the engine hears of changes only.
 */
#include "core/vm/internal.h"

/* irq_mutex keeps the order of changes, so it is held across the call. */
static void update_locked(struct hvx_vm *vm, unsigned gsi)
{
    bool level = vm->isa_level[gsi] || vm->pci_level[gsi] > 0;

    if (level == vm->irq_out[gsi])
        return;
    vm->irq_out[gsi] = level;
    vm->n_irqs[gsi] += level;
    if (vm->engine)
        vm->engine->irq_line(vm->engine_vm, gsi, level);
}

void hvx_vm_irq_set(struct hvx_vm *vm, unsigned gsi, bool level)
{
    if (gsi >= HVX_N_GSI)
        return;
    pthread_mutex_lock(&vm->irq_mutex);
    vm->isa_level[gsi] = level;
    update_locked(vm, gsi);
    pthread_mutex_unlock(&vm->irq_mutex);
}

void hvx_vm_irq_tick(struct hvx_vm *vm, unsigned gsi, unsigned n)
{
    if (gsi >= HVX_N_GSI)
        return;
    if (n > HVX_TICKS_OWED_MAX)
        n = HVX_TICKS_OWED_MAX;
    pthread_mutex_lock(&vm->irq_mutex);
    vm->isa_level[gsi] = false;
    update_locked(vm, gsi);
    if (vm->engine && !vm->irq_out[gsi]) { /* else a PCI function holds the line: no edge can come through */
        vm->n_irqs[gsi] += n;
        if (vm->engine->irq_tick) {
            vm->engine->irq_tick(vm->engine_vm, gsi, n);
        } else if (n) {
            vm->engine->irq_line(vm->engine_vm, gsi, true);
            vm->engine->irq_line(vm->engine_vm, gsi, false);
        }
    }
    pthread_mutex_unlock(&vm->irq_mutex);
}

void hvx_vm_irq_count(struct hvx_vm *vm, unsigned gsi, int delta)
{
    if (gsi >= HVX_N_GSI)
        return;
    pthread_mutex_lock(&vm->irq_mutex);
    vm->pci_level[gsi] += (unsigned)delta;
    update_locked(vm, gsi);
    pthread_mutex_unlock(&vm->irq_mutex);
}

/* After the interrupt controllers were reset they know of no line. */
void hvx_vm_irq_redeliver(struct hvx_vm *vm)
{
    pthread_mutex_lock(&vm->irq_mutex);
    for (unsigned i = 0; i < HVX_N_GSI && vm->engine; i++)
        if (vm->irq_out[i])
            vm->engine->irq_line(vm->engine_vm, i, true);
    pthread_mutex_unlock(&vm->irq_mutex);
}

/* The controllers' own state holds what they made of the lines, so a restored
 * level is noted without telling them. PCI levels come with the functions. */
void hvx_vm_irq_state(struct hvx_vm *vm, struct hvx_stream *s)
{
    pthread_mutex_lock(&vm->irq_mutex);
    for (unsigned i = 0; i < HVX_N_GSI; i++) {
        hvx_state_bool(s, &vm->isa_level[i]);
        if (!hvx_stream_is_saving(s))
            vm->irq_out[i] = vm->isa_level[i] || vm->pci_level[i] > 0;
    }
    pthread_mutex_unlock(&vm->irq_mutex);
}

void hvx_vm_msi(struct hvx_vm *vm, uint64_t addr, uint32_t data)
{
    atomic_fetch_add_explicit(&vm->n_msi, 1, memory_order_relaxed);
    if (vm->engine)
        vm->engine->msi(vm->engine_vm, addr, data);
}
