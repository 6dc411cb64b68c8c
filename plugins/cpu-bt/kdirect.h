/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/kdirect.h - the kernel-direct tier: memory operands of 64-bit
 * supervisor code at upper-half addresses reach guest memory without a look-up.
 *
 * The window. Guest address a is at host address a + KD_BASE (mod 2^64). The
 * vCPU's thread keeps KD_BASE in its GS base, so an operand keeps its form and
 * gains a prefix; accesses off the guest's own GS base go through a second
 * base, c->gs_window, without one. With KD_BASE = 2^47 - 2 MiB and 48-bit
 * addresses
 *     a in [-2^47, -2^47 + 2 MiB)   -> [-2 MiB, 0): the host kernel's half;
 *     a in [-2^47 + 2 MiB, 0)       -> [0, 2^47 - 2 MiB): the window;
 *     a in [0, 2 MiB)               -> [2^47 - 2 MiB, 2^47): the guard, which we
 *                                      map without any rights, or are beyond
 *                                      what the host gives to programs;
 *     a in [2 MiB, 2^47)            -> [2^47, 2^48 - 2 MiB): not canonical;
 *     a not canonical               -> not canonical, or the host kernel's half.
 * So a program's address cannot hit memory, it faults. (On a host with 57-bit
 * addresses "not canonical" reads "never mapped": those are given only to who
 * asks for them.) KD_BASE is a multiple of 2 MiB so that huge pages of guest
 * RAM can be huge pages in the window.
 *
 * The window is one for all vCPUs. A page comes into it at its first fault
 * (signal.c calls bt_kd_fault()), from the memfd behind guest RAM, together
 * with its neighbours as far as the guest's mapping is contiguous; it is
 * writable when the guest's entry is writable and dirty and no vCPU has
 * translations of the page. An access that cannot be done so - devices, user
 * memory, pages with translations, addresses where the process itself has
 * memory - marks its instruction as soft, for good, and is made again by a
 * translation that looks up as elsewhere (gen_mem.c).
 *
 * Coherence. The window is a TLB: whatever takes something out of a guest's
 * TLB compares what the window has there with the page tables, and what differs
 * goes. Nothing is traced, nothing is dropped as long as the tables say what
 * they said. Pages that are not global are there only while all vCPUs' roots
 * agree on that part of the address space; a guest with another root for
 * programs, which lacks the kernel's part, switches the tier off.
 *
 * The process's own memory. Guest code could name it through the window, so
 * the tier is on only when the process is confined. A guest whose page tables
 * map addresses where the process has memory switches it off: those accesses
 * would not fault. Linux has nothing there but by a bad chance of either's
 * randomization: see own ranges in kdirect_own.c. Its tables are looked at
 * whenever a root is loaded, at a global flush, at each fault of the window,
 * and when a look-up or INVLPG meets such a page. A page table there is enough,
 * and those are there long before the pages, as a rule: not caught in time is a
 * kernel that makes tables for such an address and uses it by a direct access
 * before any of those. The process is confined for that case, too.
 *
 * Locks: one spin lock; who has it waits for nobody. Signal handlers take it,
 * in the middle of translated code, where no lock is held.
 */
#ifndef BT_KDIRECT_H
#define BT_KDIRECT_H

#include "bt.h"

#define KD_BASE ((1ull << 47) - (2ull << 20))
#define KD_MAX_OWN 32u

struct bt_block;
struct kdirect;
enum bt_kd_verdict {
    KD_RETRY, /* it is mapped now */
    KD_SOFT,  /* the instruction must look up */
    KD_FAULT, /* *error is the guest's page fault */
};

/* kdirect_own.c: ordinary C. create: before confinement. NULL when the tier is off; why is logged at the start. */
struct kdirect *bt_kd_create(struct bt_vm *vm);
void bt_kd_destroy(struct kdirect *kd);
void bt_kd_slots_changed(struct bt_vm *vm);
void bt_kd_start(struct bt_vcpu *c); /* on the vCPU's thread, whenever it starts to run; says why the tier is off */

/* kdirect.c */
bool bt_kd_on(const struct bt_vm *vm); /* may translations use the window? */
enum bt_kd_verdict bt_kd_fault(struct bt_vcpu *c, const struct bt_block *b, uint64_t host, bool write, uint32_t *error);
bool bt_kd_is_soft(const struct bt_vm *vm, uint64_t pa); /* of an instruction */
void bt_kd_mark_soft(struct bt_vm *vm, uint64_t pa);
/* From now on stores to the page must fault; `code` says so already. */
void bt_kd_protect(struct bt_vm *vm, uint64_t pa);
void bt_kd_drop(struct kdirect *kd);        /* all that is in the window */
void bt_kd_slots(struct bt_vm *vm);          /* the same; slots have changed: under vm->lock */
/* The guest invalidates; called after the fact. */
void bt_kd_invlpg(struct bt_vcpu *c, uint64_t lin);
void bt_kd_flush(struct bt_vcpu *c, bool global);
/* lin is mapped, a look-up has found: should the tier go off? Only when there is one. */
void bt_kd_mapped(struct bt_vcpu *c, uint64_t lin);
void bt_kd_switch(struct bt_vcpu *c, bool keep);
#endif
