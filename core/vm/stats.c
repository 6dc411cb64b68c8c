/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/stats.c - the figures of `hvx stat`.
 */
#include "core/vm/internal.h"
#include "core/image/blk.h"
#include "core/net/net.h"

struct in_group {
    hvx_stat_fn fn;
    void *opaque;
    const char *group;
};

static void with_group(void *opaque, const char *name, uint64_t v, const char *unit)
{
    struct in_group *g = opaque;

    g->fn(g->opaque, g->group, name, v, unit);
}

static void space_stats(struct hvx_address_space *s, const char *group, hvx_stat_fn fn, void *opaque)
{
    char name[64];

    fn(opaque, group, "reads", s->n_reads, "");
    fn(opaque, group, "writes", s->n_writes, "");
    fn(opaque, group, "unclaimed bytes", s->n_unclaimed, "");
    fn(opaque, group, "map changes", s->n_rebuilds, "");
    if (s->id == HVX_SPACE_MMIO)
        fn(opaque, group, "engine slot changes", s->n_slot_changes, "");
    for (unsigned i = 0; i < s->n_layers; i++) {
        struct hvx_region *r = s->layers[i];
        if (r->kind != HVX_LAYER_IO || !(r->n_reads | r->n_writes))
            continue;
        snprintf(name, sizeof(name), "%s reads", r->name);
        fn(opaque, group, name, r->n_reads, "");
        snprintf(name, sizeof(name), "%s writes", r->name);
        fn(opaque, group, name, r->n_writes, "");
    }
}

static void irq_stats(struct hvx_vm *vm, hvx_stat_fn fn, void *opaque)
{
    char name[32];

    for (unsigned i = 0; i < HVX_N_GSI; i++) {
        if (!vm->n_irqs[i])
            continue;
        snprintf(name, sizeof(name), "line %u raised", i);
        fn(opaque, "interrupts", name, vm->n_irqs[i], "");
    }
    fn(opaque, "interrupts", "messages", atomic_load(&vm->n_msi), "");
}

void hvx_vm_stats(struct hvx_vm *vm, hvx_stat_fn fn, void *opaque)
{
    char group[32];

    /* Engines count without locks: look while nothing runs. */
    hvx_vm_pause(vm);
    for (unsigned i = 0; i < vm->n_vcpus_made; i++) {
        snprintf(group, sizeof(group), "vcpu%u", i);
        fn(opaque, group, "entries", vm->vcpu[i].n_runs, "");
    }
    if (vm->engine->stats)
        vm->engine->stats(vm->engine_vm, fn, opaque);
    hvx_loop_lock(vm->loop);
    space_stats(&vm->pio, "ports", fn, opaque);
    space_stats(&vm->mem, "memory", fn, opaque);
    irq_stats(vm, fn, opaque);
    hvx_vm_balloon_stats(vm, fn, opaque);
    for (unsigned i = 0; i < vm->n_blk; i++)
        hvx_blk_stats(vm->blk[i].p, with_group, &(struct in_group){fn, opaque, vm->blk[i].id});
    for (unsigned i = 0; i < vm->n_net; i++)
        hvx_net_stats(vm->net[i].p, with_group, &(struct in_group){fn, opaque, vm->net[i].id});
    pthread_mutex_lock(&vm->event_mutex);
    for (unsigned i = 0; i < vm->n_guest_events; i++)
        fn(opaque, "guest events", vm->guest_event[i].what, vm->guest_event[i].count, "");
    pthread_mutex_unlock(&vm->event_mutex);
    hvx_loop_unlock(vm->loop);
    hvx_vm_resume(vm);
}
