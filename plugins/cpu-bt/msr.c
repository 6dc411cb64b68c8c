/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/msr.c - model-specific registers (Intel SDM 4; what systems
 * read on AMD processors besides). What is not here raises #GP, for which
 * every system that probes is prepared.
 */
#include "apic.h"
#include "cpu_model.h"
#include "sys.h"

/* ARCH_CAPABILITIES. Why all this "not affected" is the truth that matters to a
 * guest: see the top of cpuid.c. RDCL_NO IBRS_ALL SKIP_L1DFL SSB_NO MDS_NO
 * PSCHANGE_MC_NO TAA_NO SBDR_SSDP_NO FBSDP_NO PSDP_NO BHI_NO PBRSB_NO GDS_NO
 * RFDS_NO ITS_NO */
#define ARCH_CAP                                                                                                       \
    (1ull << 0 | 1ull << 1 | 1ull << 3 | 1ull << 4 | 1ull << 5 | 1ull << 6 | 1ull << 8 | 1ull << 13 | 1ull << 14 |     \
     1ull << 15 | 1ull << 20 | 1ull << 24 | 1ull << 26 | 1ull << 27 | 1ull << 62)

#define MTRR_CAP 0x508u /* 8 variable ranges, fixed ranges, write combining */
#define PAT_RESET 0x0007040600070406ull
#define MISC_ENABLE_RESET 0x1801ull /* fast strings; no BTS, no PEBS */

/* Places in c->mtrr[]. */
enum { M_FIXED = 0, M_VARIABLE = 11, M_TSC_ADJUST = 27, M_SLOTS };
_Static_assert(M_SLOTS <= 32, "c->mtrr[] is too small");

const uint32_t bt_msr_saved[] = {
    0x3b,  0x48,  0x17a, 0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c,
    0x20d, 0x20e, 0x20f, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x2ff,
    0x4b564d00, 0x4b564d01,
};
const unsigned bt_n_msr_saved = sizeof(bt_msr_saved) / sizeof(bt_msr_saved[0]);
_Static_assert(sizeof(bt_msr_saved) / sizeof(bt_msr_saved[0]) <= HVX_MAX_MSRS, "too many MSRs to save");

/* --- memory types ----------------------------------------------------------------- */

static int mtrr_slot(uint32_t index)
{
    if (index >= 0x200 && index < 0x210)
        return M_VARIABLE + (int)(index - 0x200);
    switch (index) {
    case 0x250: return M_FIXED;
    case 0x258: return M_FIXED + 1;
    case 0x259: return M_FIXED + 2;
    default: return index >= 0x268 && index <= 0x26f ? M_FIXED + 3 + (int)(index - 0x268) : -1;
    }
}

static bool mtrr_type(uint8_t t) { return t < 7 && t != 2 && t != 3; }

static bool write_mtrr(struct bt_vcpu *c, int slot, uint64_t v)
{
    if (slot >= M_VARIABLE) {
        uint64_t reserved = ~((1ull << bt_cpuid_phys_bits(c->vm)) - 1);
        bool mask = (slot - M_VARIABLE) & 1;
        if ((v & reserved) || (mask ? (v & 0x7ff) : ((v & 0xf00) || !mtrr_type((uint8_t)v))))
            return false;
    } else {
        for (unsigned i = 0; i < 64; i += 8)
            if (!mtrr_type((uint8_t)(v >> i)))
                return false;
    }
    c->mtrr[slot] = v;
    return true;
}

static bool write_pat(struct bt_vcpu *c, uint64_t v)
{
    for (unsigned i = 0; i < 64; i += 8) {
        uint8_t t = (uint8_t)(v >> i);
        if (t > 7 || t == 2 || t == 3)
            return false;
    }
    c->pat = v;
    return true;
}

/* --- time ----------------------------------------------------------------------------- */

uint64_t bt_msr_tsc_adjust(const struct bt_vcpu *c) { return c->mtrr[M_TSC_ADJUST]; }

static void move_tsc(struct bt_vcpu *c, uint64_t delta)
{
    c->mtrr[M_TSC_ADJUST] += delta;
    c->tsc_offset += delta;
    bt_apic_tsc_moved(c, delta);
    bt_pv_tsc_moved(c);
}

/* --- segment bases ------------------------------------------------------------------------ */

static bool write_base(struct bt_vcpu *c, unsigned seg, uint64_t v)
{
    if (!sys_canonical(v))
        return false;
    c->seg[seg].base = v;
    bt_seg_update(c, seg);
    return true;
}

static bool write_canonical(uint64_t *field, uint64_t v)
{
    if (!sys_canonical(v))
        return false;
    *field = v;
    return true;
}

/* --- unknown and odd ones ------------------------------------------------------------------ */

/* Registers that CPUID shows by a feature: without it they are not there. */
static bool hidden(const struct bt_vcpu *c, uint32_t index)
{
    switch (index) {
    case 0x3b: return !bt_cpuid_has(c->vm, BT_F_TSC_ADJUST);
    case 0x48:
    case 0x49: return !bt_cpuid_has(c->vm, BT_F_SPEC_CTRL);
    case 0x10a: return !bt_cpuid_has(c->vm, BT_F_ARCH_CAP);
    case 0x6e0: return !bt_cpuid_has(c->vm, BT_F_TSC_DEADLINE);
    case 0xda0: return !bt_cpuid_has(c->vm, BT_F_XSAVES);
    case 0xc0000103: return !bt_cpuid_has(c->vm, BT_F_RDTSCP) && !bt_cpuid_has(c->vm, BT_F_RDPID);
    default: return false;
    }
}

static bool unknown(struct bt_vcpu *c, const char *how, uint32_t index)
{
    if (c->host && c->host->guest_event) {
        bt_fp_save(c);
        c->host->guest_event(c->vm->hvm, "unknown MSR", "%s of MSR 0x%x on vCPU %u raises #GP", how, index, c->index);
    }
    return false;
}

/* AMD: configuration registers that systems read and patch without a check. */
static bool amd_config(const struct bt_vcpu *c, uint32_t index)
{
    if (!c->vm->cpuid->amd)
        return false;
    switch (index) {
    case 0xc0010010: /* SYSCFG */
    case 0xc0010015: /* HWCR */
    case 0xc001001a: /* TOP_MEM */
    case 0xc001001d: /* TOP_MEM2 */
    case 0xc001001f: /* NB_CFG */
    case 0xc0010055: /* INTPENDING */
    case 0xc0010112:
    case 0xc0010113: /* TSEG */
    case 0xc0010114: /* VM_CR */
    case 0xc0010140:
    case 0xc0010141: /* OSVW */
    case 0xc0011020: /* LS_CFG */
    case 0xc0011022: /* DC_CFG */
    case 0xc0011023: /* BU_CFG2 */
    case 0xc0011029: /* DE_CFG */
    case 0xc001102a: /* BU_CFG2 */ return true;
    default: return false;
    }
}

/* --- reading ---------------------------------------------------------------------------------- */

bool bt_rdmsr(struct bt_vcpu *c, uint32_t index, uint64_t *value)
{
    int slot;

    if (hidden(c, index))
        return unknown(c, "a read", index);
    if ((index >= 0x800 && index < 0x840) || index == 0x1b || index == 0x6e0)
        return bt_apic_msr(c, index, false, value);
    switch (index) {
    case 0x10: *value = bt_guest_tsc(c); return true;
    case 0x17: *value = 0; return true; /* PLATFORM_ID */
    case 0x2a: *value = 0; return true; /* EBL_CR_POWERON */
    case 0x34: *value = 0; return true; /* SMI_COUNT */
    case 0x3a: *value = 1; return true; /* FEATURE_CONTROL: locked, no VMX */
    case 0x3b: *value = c->mtrr[M_TSC_ADJUST]; return true;
    case 0x48: *value = c->spec_ctrl; return true;
    case 0x8b: *value = 1ull << 32; return true; /* microcode revision: some, and constant */
    case 0xce: *value = (c->vm->tsc_hz / 100000000u & 0xff) << 8; return true; /* PLATFORM_INFO: ratio */
    case 0xfe: *value = MTRR_CAP; return true;
    case 0x10a: *value = ARCH_CAP; return true;
    case 0x11e: *value = 0xbe702111; return true; /* BBL_CR_CTL3: L2 cache present and enabled */
    case 0x174: *value = c->sysenter_cs; return true;
    case 0x175: *value = c->sysenter_esp; return true;
    case 0x176: *value = c->sysenter_eip; return true;
    case 0x179: *value = 0; return true; /* MCG_CAP: no banks */
    case 0x17a: *value = c->mcg_status; return true;
    case 0x198: *value = 0; return true; /* PERF_STATUS */
    case 0x1a0: *value = c->misc_enable; return true;
    case 0x1d9: *value = 0; return true; /* DEBUGCTL */
    case 0x1db:
    case 0x1dc:
    case 0x1dd:
    case 0x1de: *value = 0; return true; /* last branch, last exception */
    case 0x277: *value = c->pat; return true;
    case 0x2ff: *value = c->mtrr_def; return true;
    case 0xda0: *value = c->xss; return true;
    case 0xc0000080: *value = c->efer; return true;
    case 0xc0000081: *value = c->star; return true;
    case 0xc0000082: *value = c->lstar; return true;
    case 0xc0000083: *value = c->cstar; return true;
    case 0xc0000084: *value = c->sfmask; return true;
    case 0xc0000100: *value = c->seg[BT_FS].base; return true;
    case 0xc0000101: *value = c->seg[BT_GS].base; return true;
    case 0xc0000102: *value = c->kernel_gs_base; return true;
    case 0xc0000103: *value = c->tsc_aux; return true;
    default: break;
    }
    slot = mtrr_slot(index);
    if (slot >= 0) {
        *value = c->mtrr[slot];
        return true;
    }
    if (amd_config(c, index)) {
        *value = index == 0xc0010015 ? 1ull << 24 : 0; /* HWCR: the TSC counts at one rate */
        return true;
    }
    return bt_pv_rdmsr(c, index, value) || unknown(c, "a read", index);
}

/* --- writing ------------------------------------------------------------------------------------ */

bool bt_wrmsr(struct bt_vcpu *c, uint32_t index, uint64_t v)
{
    int slot;

    if (hidden(c, index))
        return unknown(c, "a write", index);
    if ((index >= 0x800 && index < 0x840) || index == 0x1b || index == 0x6e0)
        return bt_apic_msr(c, index, true, &v);
    switch (index) {
    case 0x10: move_tsc(c, v - bt_guest_tsc(c)); return true;
    case 0x2a: return true;
    case 0x3a: return false; /* locked */
    case 0x3b: move_tsc(c, v - c->mtrr[M_TSC_ADJUST]); return true;
    case 0x48:
        if (v & ~0x407ull) /* IBRS STIBP SSBD BHI_DIS_S */
            return false;
        c->spec_ctrl = v;
        return true;
    case 0x49: return v <= 1;   /* PRED_CMD: IBPB */
    case 0x79: return true;     /* microcode update: taken, of no effect */
    case 0x8b: return true;     /* written before CPUID reads the revision back */
    case 0x174: c->sysenter_cs = v & 0xffffffffu; return true;
    case 0x175: return write_canonical(&c->sysenter_esp, v);
    case 0x176: return write_canonical(&c->sysenter_eip, v);
    case 0x17a:
        if (v)
            return false;
        c->mcg_status = 0;
        return true;
    case 0x1a0: c->misc_enable = v & ~0x40000ull; return true; /* MONITOR/MWAIT stays off */
    case 0x1d9: return true;
    case 0x277: return write_pat(c, v);
    case 0x2ff:
        if ((v & ~0xcffull) || !mtrr_type((uint8_t)v))
            return false;
        c->mtrr_def = v;
        return true;
    case 0xda0: return v == 0; /* no supervisor states */
    case 0xc0000080: return sys_write_efer(c, v);
    case 0xc0000081: c->star = v; return true;
    case 0xc0000082: return write_canonical(&c->lstar, v);
    case 0xc0000083: return write_canonical(&c->cstar, v);
    case 0xc0000084: c->sfmask = v & 0xffffffffu; return true;
    case 0xc0000100: return write_base(c, BT_FS, v);
    case 0xc0000101: return write_base(c, BT_GS, v);
    case 0xc0000102: return write_canonical(&c->kernel_gs_base, v);
    case 0xc0000103:
        if (v >> 32)
            return false;
        c->tsc_aux = v;
        return true;
    default: break;
    }
    slot = mtrr_slot(index);
    if (slot >= 0)
        return write_mtrr(c, slot, v);
    if (amd_config(c, index) || bt_pv_wrmsr(c, index, v))
        return true;
    return unknown(c, "a write", index);
}

/* --- saved states ------------------------------------------------------------------------------- */

void bt_msr_get_all(struct bt_vcpu *c, struct hvx_vcpu_regs *r)
{
    r->n_msrs = 0;
    for (unsigned i = 0; i < bt_n_msr_saved; i++) {
        uint32_t index = bt_msr_saved[i];
        uint64_t v;
        if (hidden(c, index) || (index >= 0x4b564d00 && !bt_pv_msr(c, index)) || !bt_rdmsr(c, index, &v))
            continue;
        r->msrs[r->n_msrs].index = index;
        r->msrs[r->n_msrs].pad = 0;
        r->msrs[r->n_msrs++].value = v;
    }
}

void bt_msr_set_all(struct bt_vcpu *c, const struct hvx_vcpu_regs *r)
{
    for (unsigned i = 0; i < r->n_msrs && i < HVX_MAX_MSRS; i++) {
        uint32_t index = r->msrs[i].index;
        if (index == 0x3b)
            c->mtrr[M_TSC_ADJUST] = r->msrs[i].value;
        else if (bt_pv_msr(c, index))
            bt_pv_set_msr(c, index, r->msrs[i].value);
        else
            bt_wrmsr(c, index, r->msrs[i].value);
    }
}

/* Power-on. The TSC of all vCPUs counts from one moment, so that they agree. */
void bt_msr_reset(struct bt_vcpu *c)
{
    for (unsigned i = 0; i < M_SLOTS; i++)
        *(volatile uint64_t *)&c->mtrr[i] = 0; /* volatile: no call of memset */
    c->mtrr_def = 0;
    c->star = c->lstar = c->cstar = c->sfmask = c->kernel_gs_base = c->tsc_aux = 0;
    c->sysenter_cs = c->sysenter_esp = c->sysenter_eip = 0;
    c->pat = PAT_RESET;
    c->misc_enable = MISC_ENABLE_RESET;
    c->mcg_status = c->spec_ctrl = c->xss = 0;
    /* With the host's own count programs can read it natively. */
    c->tsc_offset = c->vm->direct_user && !c->vm->tsc_ratio ? 0 : 0 - bt_tsc_scale(c->vm, c->vm->cpuid->tsc_base);
    bt_pv_reset(c);
}
