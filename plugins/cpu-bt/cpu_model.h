/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/cpu_model.h - the CPU model (cpuid.c, cpu_models.c) and what
 * follows from it.
 */
#ifndef BT_CPU_MODEL_H
#define BT_CPU_MODEL_H

#include "bt.h"
#include "cpu_features.h"

/* What is masked for want of an implementation, in one place each. */
#ifndef BT_CPUID_PCID
#define BT_CPUID_PCID 1 /* process-context identifiers: space.c */
#endif

/* Whose leaves at 0x40000000 a guest finds (paravirt.c). */
enum bt_hypervisor { BT_HYPERVISOR_KVM, BT_HYPERVISOR_HVX, BT_HYPERVISOR_NONE };

/* --- named models (cpu_models.c) --------------------------------------------------- */
struct bt_model {
    const char *name, *base, *vendor;
    uint32_t signature; /* leaf 1's EAX */
    uint32_t l2_kib;
    const char *features, *what;
};
/* What can be offered, word by word. */
struct bt_cpuid_offer {
    uint32_t here[BT_WORDS];      /* by this host and the engine */
    uint32_t host_kind[BT_WORDS]; /* by the engine wherever the host's processor has it */
    uint32_t engine[BT_WORDS];    /* by the engine on every host */
    uint32_t avx512_off;          /* the host's place of the mask registers in XSAVE's area, 0: none */
};
struct bt_model_choice {
    const struct bt_model *model; /* NULL: host */
    uint32_t word[BT_WORDS];
    bool restricted; /* less than the host has: hidden instructions must fault */
    enum bt_hypervisor hypervisor;
    uint64_t tsc_hz; /* 0: the host's */
};
#define BT_TSC_HZ_MIN 100000000ull
#define BT_TSC_HZ_MAX 10000000000ull
int bt_model_choose(const char *text, const struct bt_cpuid_offer *o, struct bt_model_choice *c, struct hvx_error *err);
void bt_model_list(const struct bt_cpuid_offer *o, hvx_cpu_model_fn fn, void *opaque);
/* cpuid.c: for `hvx run --cpu help` */
void bt_cpuid_models(hvx_cpu_model_fn fn, void *opaque);

/* --- a VM's CPUID -------------------------------------------------------------------- */
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
    uint8_t amd;        /* the guest sees an AMD processor */
    uint8_t restricted; /* see struct bt_model_choice */
    uint8_t hypervisor; /* enum bt_hypervisor */
    uint32_t word[BT_WORDS];
    uint16_t n;
    struct bt_cpuid_leaf leaf[BT_CPUID_MAX];
};

static inline uint64_t bt_cpuid_xcr0(const struct bt_vm *vm) { return vm->cpuid->xcr0; }
static inline unsigned bt_cpuid_phys_bits(const struct bt_vm *vm) { return vm->cpuid->phys_bits; }
static inline bool bt_cpuid_has(const struct bt_vm *vm, enum bt_feature_id f)
{
    return vm->cpuid->word[bt_features[f].word] >> bt_features[f].bit & 1;
}

/* --- MSRs of struct hvx_vcpu_regs.msrs[]: those without a field of their own (msr.c) ---- */
extern const uint32_t bt_msr_saved[];
extern const unsigned bt_n_msr_saved;
/* To and from regs->msrs[]. Setting TSC_ADJUST moves no TSC here. */
void bt_msr_get_all(struct bt_vcpu *c, struct hvx_vcpu_regs *r);
void bt_msr_set_all(struct bt_vcpu *c, const struct hvx_vcpu_regs *r);

uint64_t bt_msr_tsc_adjust(const struct bt_vcpu *c);

/* --- paravirt.c: what KVM offers its guests ------------------------------------------------- */
bool bt_pv_rdmsr(struct bt_vcpu *c, uint32_t index, uint64_t *v); /* false: not ours */
bool bt_pv_wrmsr(struct bt_vcpu *c, uint32_t index, uint64_t v);
bool bt_pv_msr(const struct bt_vcpu *c, uint32_t index); /* ours? */
void bt_pv_reset(struct bt_vcpu *c);
void bt_pv_tsc_moved(struct bt_vcpu *c); /* tsc_offset has changed: the clock page must follow */
void bt_pv_set_msr(struct bt_vcpu *c, uint32_t index, uint64_t v); /* restoring: the page is in RAM already */
uint32_t bt_pv_features(const struct bt_vm *vm);

#endif
