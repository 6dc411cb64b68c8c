/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/sync.c - requests between vCPUs: drop a translation, drop a
 * TLB entry that allows stores. The requester may wait; while it does it
 * serves its own queue, so two vCPUs that wait for each other make progress.
 *
 * Orders: a vCPU leaves quiescence with a full fence before it looks at its
 * queue; a requester queues with a full fence before it looks at `quiescent`.
 * So one of the two sees the other.
 */
#include "cache.h"
#include "direct.h"
#include "phys.h"
#include <stdlib.h>
#include <sys/syscall.h>

#define QUEUE 64
struct bt_syncq {
    _Atomic uint32_t lock;
    uint32_t n;
    uint64_t queued; /* requests ever queued */
    _Atomic uint64_t done;
    struct { uint32_t what; uint64_t pa, n; } req[QUEUE];
};

int bt_sync_create(struct bt_vm *vm)
{
    vm->syncq = calloc(HVX_MAX_VCPUS, sizeof(*vm->syncq));
    return vm->syncq ? 0 : -ENOMEM;
}
void bt_sync_destroy(struct bt_vm *vm) { free(vm->syncq); }

static void queue_lock(struct bt_syncq *q)
{
    while (atomic_exchange_explicit(&q->lock, 1, memory_order_acquire))
        __builtin_ia32_pause();
}
static void queue_unlock(struct bt_syncq *q) { atomic_store_explicit(&q->lock, 0, memory_order_release); }

void bt_sync_request(struct bt_vm *vm, struct bt_vcpu *self, uint64_t mask, unsigned what, uint64_t pa, uint64_t n,
                     bool wait)
{
    uint64_t seq[HVX_MAX_VCPUS];
    if (self)
        mask &= ~(1ull << self->index);
    for (uint64_t m = mask; m; m &= m - 1) {
        unsigned i = (unsigned)__builtin_ctzll(m);
        struct bt_vcpu *v = vm->vcpu[i];
        struct bt_syncq *q = &vm->syncq[i];
        if (!v) {
            mask &= ~(1ull << i);
            continue;
        }
        queue_lock(q);
        if (q->n == QUEUE) { /* too many: one request that covers all */
            q->n = 1;
            q->req[0].what = BT_SYNC_FLUSH;
        } else {
            q->req[q->n].what = what;
            q->req[q->n].pa = pa;
            q->req[q->n++].n = n;
        }
        seq[i] = ++q->queued;
        queue_unlock(q);
        bt_kick(v, BT_PEND_SYNC);
    }
    atomic_thread_fence(memory_order_seq_cst);
    if (!wait)
        return;
    for (uint64_t m = mask; m; m &= m - 1) {
        unsigned i = (unsigned)__builtin_ctzll(m);
        struct bt_syncq *q = &vm->syncq[i];
        unsigned spins = 0;
        while (atomic_load(&q->done) < seq[i] && !atomic_load(&vm->vcpu[i]->quiescent)) {
            if (self && (atomic_load(&self->pending) & BT_PEND_SYNC))
                bt_sync_process(self);
            __builtin_ia32_pause();
            if (++spins % 512 == 0) { /* its thread may not even be running: vCPUs can outnumber host CPUs */
                long nr = SYS_sched_yield;
                __asm__ volatile("syscall" : "+a"(nr) : : "rcx", "r11", "memory");
            }
        }
    }
}

static void unmark(struct bt_vcpu *c, uint64_t pa)
{
    struct bt_page_chunk *ch = bt_chunk(c->vm, pa);
    struct bt_codepage *p = bt_codepage_get(c, pa, false);
    if (ch && !c->marking && (!p || !p->blocks))
        atomic_fetch_and(&ch->code[bt_chunk_page(pa)], ~(1ull << c->index));
}

void bt_sync_process(struct bt_vcpu *c)
{
    struct bt_syncq *q = &c->vm->syncq[c->index];
    atomic_fetch_and(&c->pending, ~BT_PEND_SYNC);
    queue_lock(q);
    for (uint32_t i = 0; i < q->n; i++) {
        c->st.sync_requests++;
        switch (q->req[i].what) {
        case BT_SYNC_DROP_WRITE:
            bt_tlb_drop_write(c, q->req[i].pa);
            break;
        case BT_SYNC_INVALIDATE:
            bt_invalidate_local(c, q->req[i].pa, q->req[i].n, NULL);
            if (q->req[i].n == 4096) /* the page is something else now: whoever asks wants no marks */
                unmark(c, q->req[i].pa);
            break;
        case BT_SYNC_RANGE: /* other memory there now */
            bt_tlb_flush_all(c);
            bt_invalidate_local(c, q->req[i].pa, q->req[i].n, NULL);
            if (c->direct)
                bt_direct_forget(c);
            break;
        case BT_SYNC_UNCODE:
            bt_direct_uncode(c, q->req[i].pa);
            break;
        default:
            bt_tlb_flush_all(c);
            if (c->direct)
                bt_direct_forget(c);
            atomic_fetch_or(&c->pending, BT_PEND_FLUSH);
        }
    }
    q->n = 0;
    atomic_store(&q->done, q->queued);
    queue_unlock(q);
}

void bt_quiescent_enter(struct bt_vcpu *c) { atomic_store(&c->quiescent, 1); }
void bt_quiescent_leave(struct bt_vcpu *c)
{
    atomic_store(&c->quiescent, 0); /* seq_cst: full fence */
    if (atomic_load(&c->pending) & BT_PEND_SYNC)
        bt_sync_process(c);
}
