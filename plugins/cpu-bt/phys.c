/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/phys.c - slots of guest RAM into the page tables of phys.h.
 * Ordinary C: may use libc; runs on threads outside translated code.
 */
#include "phys.h"
#include <sys/mman.h>

static struct bt_page_chunk *chunk_get(struct bt_vm *vm, uint64_t gpa)
{
    struct bt_page_chunk *k = bt_chunk(vm, gpa);
    if (k)
        return k;
    k = mmap(NULL, sizeof(*k), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (k == MAP_FAILED)
        return NULL;
    (void)madvise(k, sizeof(*k), MADV_DONTFORK); /* as in plugin.c, region_map() */
    atomic_store_explicit(&vm->chunk[gpa >> 30], k, memory_order_release);
    return k;
}

/* Slots do not overlap: recompute a range from the slot list. */
static int range_fill(struct bt_vm *vm, uint64_t gpa, uint64_t bytes, const struct hvx_mem_slot *s)
{
    for (uint64_t o = 0; o < bytes; o += 4096) {
        struct bt_page_chunk *k = s ? chunk_get(vm, gpa + o) : bt_chunk(vm, gpa + o);
        if (!k) {
            if (s)
                return -ENOMEM;
            continue;
        }
        uintptr_t v = s ? (uintptr_t)s->hva + o : 0;
        if (s && (s->flags & HVX_SLOT_READONLY))
            v |= BT_HVA_RO;
        atomic_store_explicit(&k->hva[bt_chunk_page(gpa + o)], v, memory_order_relaxed);
    }
    return 0;
}

int bt_phys_set_slot(struct bt_vm *vm, const struct hvx_mem_slot *slot, struct hvx_error *err)
{
    if (((slot->gpa | slot->bytes | (uintptr_t)slot->hva) & 4095) || (slot->gpa + slot->bytes) >> 40)
        return hvx_fail(err, -EINVAL,
                        "cpu-bt: memory slot %u at %#llx (%#llx bytes) is not page-aligned or lies beyond 1 TiB",
                        slot->id, (unsigned long long)slot->gpa, (unsigned long long)slot->bytes);
    pthread_mutex_lock(&vm->lock);
    unsigned i;
    for (i = 0; i < vm->n_slots && vm->slots[i].id != slot->id; i++)
        ;
    if (i == vm->n_slots) {
        if (!slot->bytes) {
            pthread_mutex_unlock(&vm->lock);
            return 0;
        }
        if (i == sizeof(vm->slots) / sizeof(vm->slots[0])) {
            pthread_mutex_unlock(&vm->lock);
            return hvx_fail(err, -ENOSPC, "cpu-bt: more than %u memory slots", i);
        }
        vm->n_slots++;
    } else {
        range_fill(vm, vm->slots[i].gpa, vm->slots[i].bytes, NULL);
    }
    int rc = 0;
    if (slot->bytes) {
        vm->slots[i] = *slot;
        rc = range_fill(vm, slot->gpa, slot->bytes, slot);
    } else {
        vm->slots[i] = vm->slots[--vm->n_slots];
    }
    pthread_mutex_unlock(&vm->lock);
    if (rc)
        return hvx_fail(err, rc, "cpu-bt: no memory for the page tables of slot %u", slot->id);
    return 0;
}

void bt_phys_destroy(struct bt_vm *vm)
{
    for (unsigned i = 0; i < 1024; i++)
        if (vm->chunk[i])
            munmap(vm->chunk[i], sizeof(struct bt_page_chunk));
}
