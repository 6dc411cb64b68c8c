/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/cpuid.h - the CPU model (cpuid.c) and what follows from it.
 */
#ifndef BT_CPUID_H
#define BT_CPUID_H

#include "bt.h"

/* What is masked for want of an implementation, in one place each. */
#define BT_CPUID_PCID 0 /* process-context identifiers: 1 when the TLB has tags */

struct bt_cpuid_leaf {
    uint32_t leaf, sub, r[4];
};
#define BT_CPUID_MAX 96u
struct bt_cpuid {
    uint64_t xcr0;     /* features that XSETBV may enable */
    uint64_t tsc_base; /* host TSC that is the guests' zero: the same for all vCPUs */
    uint32_t n_vcpus;
    uint32_t comp_size[16];  /* XSAVE components: bytes, and their place in the standard format */
    uint32_t comp_off[16];
    uint32_t comp_align[16]; /* 64-byte aligned in the compacted format */
    uint8_t phys_bits;
    uint8_t amd;
    uint16_t n;
    struct bt_cpuid_leaf leaf[BT_CPUID_MAX];
};

static inline uint64_t bt_cpuid_xcr0(const struct bt_vm *vm) { return vm->cpuid->xcr0; }
static inline unsigned bt_cpuid_phys_bits(const struct bt_vm *vm) { return vm->cpuid->phys_bits; }

/* MSRs of struct hvx_vcpu_regs.msrs[]: those without a field of their own (msr.c). */
extern const uint32_t bt_msr_saved[];
extern const unsigned bt_n_msr_saved;

#endif
