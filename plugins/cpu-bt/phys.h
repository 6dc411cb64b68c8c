/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/phys.h - guest-physical pages: where they are in the host,
 * and which vCPUs hold translations of them.
 */
#ifndef BT_PHYS_H
#define BT_PHYS_H

#include "bt.h"

#define BT_CHUNK_PAGES (1u << 18)
struct bt_page_chunk {
    _Atomic uintptr_t hva[BT_CHUNK_PAGES]; /* page address | BT_HVA_*; 0: no RAM */
    _Atomic uint64_t code[BT_CHUNK_PAGES]; /* bit i: vCPU i has translations of this page */
    _Atomic uint8_t written[BT_CHUNK_PAGES]; /* BT_WRITTEN_*: by whom it may be stored to without a look at `code` */
};
#define BT_WRITTEN_TLB 1u    /* some vCPU may hold a TLB entry that allows stores */
#define BT_WRITTEN_WINDOW 2u /* the window may: kdirect.h */
#define BT_HVA_RO 1u

static inline struct bt_page_chunk *bt_chunk(const struct bt_vm *vm, uint64_t gpa)
{
    return gpa >> 40 ? NULL : atomic_load_explicit(&((struct bt_vm *)vm)->chunk[gpa >> 30], memory_order_acquire);
}
static inline unsigned bt_chunk_page(uint64_t gpa) { return (gpa >> 12) & (BT_CHUNK_PAGES - 1); }
/* hva of the page with gpa | BT_HVA_RO, or 0 */
static inline uintptr_t bt_phys_page(const struct bt_vm *vm, uint64_t gpa)
{
    struct bt_page_chunk *k = bt_chunk(vm, gpa);
    return k ? atomic_load_explicit(&k->hva[bt_chunk_page(gpa)], memory_order_relaxed) : 0;
}
int bt_phys_set_slot(struct bt_vm *vm, const struct hvx_mem_slot *slot, struct hvx_error *err);
void bt_phys_destroy(struct bt_vm *vm);

/* sync.c: between vCPUs */
enum { BT_SYNC_DROP_WRITE = 1, BT_SYNC_INVALIDATE, BT_SYNC_FLUSH, BT_SYNC_RANGE, BT_SYNC_UNCODE };
int bt_sync_create(struct bt_vm *vm);
void bt_sync_destroy(struct bt_vm *vm);
/* Ask the vCPUs in `mask` (bit per index); self is the calling vCPU or NULL;
 * wait: until each has done it or is quiescent. */
void bt_sync_request(struct bt_vm *vm, struct bt_vcpu *self, uint64_t mask, unsigned what, uint64_t pa, uint64_t n,
                     bool wait);
void bt_sync_process(struct bt_vcpu *c);
/* Host calls that may take long: others need not wait for us meanwhile. */
void bt_quiescent_enter(struct bt_vcpu *c);
void bt_quiescent_leave(struct bt_vcpu *c);

/* mmu.c, tlb.c, slow.c */
int bt_mmu_create(struct bt_vcpu *c);
void bt_mmu_destroy(struct bt_vcpu *c);
void bt_tlb_drop_write(struct bt_vcpu *c, uint64_t pa);
/* Linear code address to page: raises #PF. */
const uint8_t *bt_code_page(struct bt_vcpu *c, uint64_t lin, uint64_t *pa);
uint64_t bt_slow_c(struct bt_vcpu *c, uint64_t ea, uint32_t desc);
/* Enter the page of [ea, ea + size) into the TLB if nothing but the accessed bit can show it. */
bool bt_try_c(struct bt_vcpu *c, uint64_t ea, uint32_t desc);
void bt_commit_c(struct bt_vcpu *c);
uint64_t bt_mmio_read(struct bt_vcpu *c, uint64_t pa, unsigned size);
void bt_mmio_write(struct bt_vcpu *c, uint64_t pa, unsigned size, uint64_t v);

/* desc of bt_slow_c */
#define BT_DESC_SIZE 0x1fffu
#define BT_DESC_WRITE 0x10000u
#define BT_DESC_READ 0x20000u /* with WRITE: read-modify-write */
#define BT_DESC_STACK 0x40000u
#define BT_DESC_USER 0x80000u
#define BT_DESC_CAREFUL 0x100000u
#define BT_DESC_ALIGNED 0x200000u /* misaligned: #GP, before any page fault */
#define BT_DESC_RELAXED 0x2000u    /* with ALIGNED: not while MXCSR.MM is set (AMD) */
#define BT_DESC_MASKED 0x800000u  /* elements that are masked off must not fault */
#define BT_DESC_GROUPS 0x1000000u /* the block holds on to look-ups for later: see gen_group.c */
#define BT_DESC_SS 0x400000u      /* not canonical: #SS */
#endif
