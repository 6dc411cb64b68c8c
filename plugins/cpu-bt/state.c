/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/state.c - saved states: the CPU model, what of a vCPU has no
 * architectural register, and whether registers that come from a file can be
 * those of a processor. Ordinary C.
 *
 * A guest keeps what CPUID told it at its boot. So the table that it was shown
 * goes along and is shown again, provided that this host and the model chosen
 * here have all its features; and its TSC goes on at the rate that it knows.
 */
#include "state.h"
#include "apic.h"
#include "cpu_model.h"
#include "sys.h"
#include <stdio.h>
#include <string.h>

#define MODEL_VERSION 1u

/* --- the model ------------------------------------------------------------------- */

struct saved_model {
    struct bt_cpuid m;
    uint64_t tsc_hz;
    uint32_t version, n_words;
};

static void model_fields(struct saved_model *s, struct hvx_stream *st)
{
    struct bt_cpuid *m = &s->m;
    hvx_state_u32(st, &s->version);
    if (s->version > MODEL_VERSION)
        hvx_state_fail(st, -EINVAL, "the CPU model is of a newer version; use a newer HVX");
    hvx_state_u64(st, &s->tsc_hz);
    hvx_state_u64(st, &m->xcr0);
    hvx_state_u8(st, &m->phys_bits);
    hvx_state_u8(st, &m->amd);
    hvx_state_u8(st, &m->hypervisor);
    hvx_state_u32(st, &s->n_words);
    if (s->n_words > BT_WORDS) {
        hvx_state_fail(st, -EINVAL, "the CPU model has features that this program does not know; use a newer HVX");
        s->n_words = 0;
    }
    for (unsigned i = 0; i < s->n_words; i++)
        hvx_state_u32(st, &m->word[i]);
    for (unsigned i = 2; i < 16; i++) {
        hvx_state_u32(st, &m->comp_size[i]);
        hvx_state_u32(st, &m->comp_off[i]);
        hvx_state_u32(st, &m->comp_align[i]);
    }
    hvx_state_u16(st, &m->n);
    if (m->n > BT_CPUID_MAX) {
        hvx_state_fail(st, -EINVAL, "the CPU model has more CPUID leaves than there can be");
        m->n = 0;
    }
    for (unsigned i = 0; i < m->n; i++) {
        hvx_state_u32(st, &m->leaf[i].leaf);
        hvx_state_u32(st, &m->leaf[i].sub);
        for (unsigned k = 0; k < 4; k++)
            hvx_state_u32(st, &m->leaf[i].r[k]);
    }
}

/* Names of features that were shown and are not here. */
static bool missing_features(const struct bt_cpuid *was, const struct bt_cpuid *is, char *text, size_t size)
{
    size_t n = 0;
    unsigned all = 0, named = 0;
    text[0] = 0;
    for (unsigned w = 0; w < BT_WORDS; w++)
        all += (unsigned)__builtin_popcount(was->word[w] & ~is->word[w]);
    for (unsigned i = 1; i < BT_F_COUNT && named < 4; i++) {
        const struct bt_feature *f = &bt_features[i];
        if ((was->word[f->word] & ~is->word[f->word]) >> f->bit & 1)
            n += (size_t)snprintf(text + n, size - n, "%s%s", named++ ? " " : "", f->name);
    }
    if (all > named)
        snprintf(text + n, size - n, "%s%u more", named ? " and " : "", all - named);
    return all > 0;
}

static bool same_layout(const struct bt_cpuid *a, const struct bt_cpuid *b)
{
    for (unsigned i = 2; i < 16; i++)
        if ((a->xcr0 >> i & 1) && (a->comp_size[i] != b->comp_size[i] || a->comp_off[i] != b->comp_off[i] ||
                                   a->comp_align[i] != b->comp_align[i]))
            return false;
    return true;
}

static void model_check(const struct saved_model *s, const struct bt_cpuid *here, struct hvx_stream *st)
{
    const char *hint = "use the --cpu that the VM was saved with, or another host";
    char names[120], why[300] = "";
    if (missing_features(&s->m, here, names, sizeof(names)))
        snprintf(why, sizeof(why), "this processor lacks %s of those features that the guest was shown; %s", names,
                 hint);
    else if (s->m.amd != here->amd || s->m.phys_bits > here->phys_bits || s->m.phys_bits < 32)
        snprintf(why, sizeof(why), "the guest has been shown a processor of another maker or address width; %s", hint);
    else if ((s->m.xcr0 & ~here->xcr0) || !same_layout(&s->m, here))
        snprintf(why, sizeof(why), "this host lays out its vector registers differently; %s", hint);
    else if (s->m.hypervisor > BT_HYPERVISOR_NONE)
        snprintf(why, sizeof(why), "the guest's kind of hypervisor is not known; use a newer HVX");
    else if (s->tsc_hz < BT_TSC_HZ_MIN || s->tsc_hz > BT_TSC_HZ_MAX)
        snprintf(why, sizeof(why), "its time-stamp counter has a rate that none has");
    if (why[0])
        hvx_state_fail(st, -ENOTSUP, why);
}

/* vCPUs have not run yet: nothing has been translated for the model so far. */
static void model_adopt(struct bt_vm *vm, const struct saved_model *s)
{
    struct bt_cpuid *m = vm->cpuid;
    m->restricted |= memcmp(m->word, s->m.word, sizeof(m->word)) != 0;
    memcpy(m->word, s->m.word, sizeof(m->word));
    m->xcr0 = s->m.xcr0 | 3;
    m->phys_bits = s->m.phys_bits;
    m->hypervisor = s->m.hypervisor;
    m->n = s->m.n;
    memcpy(m->leaf, s->m.leaf, sizeof(m->leaf));
    vm->hypercalls = m->hypervisor == BT_HYPERVISOR_KVM;
    vm->tsc_hz = s->tsc_hz;
    bt_tsc_scale_init(vm);
    for (unsigned i = 0; i < vm->n_vcpus; i++) {
        struct bt_vcpu *c = vm->vcpu[i];
        if (!c)
            continue;
        c->cr4_valid = c->phys_mask = 0; /* follow from the model */
        /* Far from any that a guest could have: set_tsc() shall see no neighbour in what this process began with. */
        c->tsc_offset = 1ull << 62;
    }
}

int bt_model_state(struct bt_vm *vm, struct hvx_stream *st)
{
    struct saved_model s = {.m = *vm->cpuid, .tsc_hz = vm->tsc_hz, .version = MODEL_VERSION, .n_words = BT_WORDS};
    bool saving = hvx_stream_is_saving(st), same;
    if (!saving) {
        memset(&s, 0, sizeof(s));
        s.version = MODEL_VERSION;
    }
    model_fields(&s, st);
    if (saving || hvx_state_error(st))
        return hvx_state_error(st);
    model_check(&s, vm->cpuid, st);
    same = s.tsc_hz == vm->tsc_hz && s.m.n == vm->cpuid->n && !memcmp(s.m.leaf, vm->cpuid->leaf, sizeof(s.m.leaf));
    /* not into the VM that it is from */
    if (!hvx_state_error(st) && !(same && vm->vcpu[0] && vm->vcpu[0]->st.dispatches))
        model_adopt(vm, &s);
    return hvx_state_error(st);
}

/* --- a vCPU's events ----------------------------------------------------------------- */

void bt_events_get(struct bt_vcpu *c, struct hvx_vcpu_regs *r)
{
    struct bt_apic *a = c->apic;
    uint32_t p = atomic_load(&c->pending);
    if (c->inject.valid && !c->exc.valid) { /* restored, and not run since */
        r->pending_exception = 0x80000000u | (c->inject.has_error ? 0x100u : 0) | c->inject.vector;
        r->pending_error_code = c->inject.error;
    }
    r->pending_nmi = (p & BT_PEND_NMI) || c->nmi_held;
    r->pending_init = (p & BT_PEND_INIT) != 0;
    r->pending_sipi = p & BT_PEND_SIPI ? 0x100u | bt_apic_sipi_vector(c) : 0;
    r->pending_extint = atomic_load(&a->extint);
    r->apic_errors = atomic_load(&a->esr_pending);
    r->has_pdpte = (c->cr0 & BT_CR0_PG) && (c->cr4 & BT_CR4_PAE) && !bt_long_mode(c);
    memcpy(r->pdpte, c->pdpte, sizeof(r->pdpte));
}

/* After bt_apic_set(). */
void bt_events_set(struct bt_vcpu *c, const struct hvx_vcpu_regs *r)
{
    struct bt_apic *a = c->apic;
    uint32_t bits = (r->pending_nmi ? BT_PEND_NMI : 0) | (r->pending_init ? BT_PEND_INIT : 0) |
                    (r->pending_sipi ? BT_PEND_SIPI : 0);
    atomic_store(&a->sipi_vector, r->pending_sipi & 0xff);
    atomic_store(&a->extint, r->pending_extint != 0);
    atomic_store(&a->esr_pending, r->apic_errors & 0xff);
    atomic_fetch_and(&c->pending, ~(BT_PEND_NMI | BT_PEND_INIT | BT_PEND_SIPI));
    atomic_fetch_or(&c->pending, bits);
    c->nmi_held = c->irq_wait = 0;
    c->exc.valid = 0;
    c->delivering = -1;
    c->force_careful = c->force_single = 0;
    c->bounce.active = 0;
    if (r->has_pdpte)
        memcpy(c->pdpte, r->pdpte, sizeof(c->pdpte));
}

/* --- can these be the registers of a processor? ----------------------------------------- */

static bool addresses_fit(const struct hvx_vcpu_regs *r)
{
    const uint64_t a[] = {r->gdt_base,  r->idt_base,      r->lstar,        r->cstar,        r->kernel_gs_base,
                          r->ldtr.base, r->tr.base,       r->sysenter_esp, r->sysenter_eip, r->seg[HVX_FS].base,
                          r->seg[HVX_GS].base};
    for (unsigned i = 0; i < sizeof(a) / sizeof(a[0]); i++)
        if (!sys_canonical(a[i]))
            return false;
    for (unsigned i = 0; i < 6; i++)
        if (i != HVX_FS && i != HVX_GS && r->seg[i].base >> 32)
            return false;
    return sys_canonical(r->rip) || !(r->efer & BT_EFER_LMA);
}

static bool modes_fit(const struct hvx_vcpu_regs *r)
{
    bool pg = r->cr0 & BT_CR0_PG, pe = r->cr0 & BT_CR0_PE, lma = r->efer & BT_EFER_LMA, lme = r->efer & BT_EFER_LME;
    if (r->cr0 >> 32 || (pg && !pe) || lma != (lme && pg) || (lma && !(r->cr4 & BT_CR4_PAE)))
        return false;
    if ((r->rflags & BT_VM) && (!pe || lma))
        return false;
    if (!lma && (r->seg[HVX_CS].attr & 0x2000)) /* L without long mode */
        return false;
    return !((r->seg[HVX_CS].attr & 0x2000) && (r->seg[HVX_CS].attr & 0x4000));
}

static bool xstate_fits(const struct bt_vm *vm, const struct hvx_vcpu_regs *r)
{
    uint64_t have = 3 | bt_cpuid_xcr0(vm), head[8];
    uint32_t mxcsr;
    if ((r->xcr0 & ~have) || (r->xcr0 && !(r->xcr0 & 1)) || ((r->xcr0 & 4) && !(r->xcr0 & 2)) ||
        ((r->xcr0 & 0xe0) && (r->xcr0 & 0xe6) != 0xe6) || r->xss)
        return false;
    if (r->xsave_size < 576)
        return r->xsave_size == 0;
    memcpy(head, r->xsave + 512, sizeof(head));
    memcpy(&mxcsr, r->xsave + 24, sizeof(mxcsr));
    for (unsigned i = 1; i < 8; i++)
        if (head[i])
            return false;
    return !(head[0] & ~have) && !(mxcsr & ~vm->mxcsr_mask);
}

static bool msrs_fit(const struct bt_vcpu *c, const struct hvx_vcpu_regs *r)
{
    for (unsigned i = 0; i < r->n_msrs && i < HVX_MAX_MSRS; i++) {
        bool known = bt_pv_msr(c, r->msrs[i].index);
        for (unsigned k = 0; k < bt_n_msr_saved && !known; k++)
            known = bt_msr_saved[k] == r->msrs[i].index;
        if (!known)
            return false;
    }
    return true;
}

int bt_state_check(const struct bt_vcpu *c, const struct hvx_vcpu_regs *r, struct hvx_error *err)
{
    const char *what = NULL;
    if (!addresses_fit(r))
        what = "an address is not canonical";
    else if (!modes_fit(r))
        what = "CR0, CR4, EFER and the flags contradict each other";
    else if (!xstate_fits(c->vm, r))
        what = "the state of the vector registers is none";
    else if (!msrs_fit(c, r))
        what = "an MSR is none that is saved";
    else if (r->mp_state > 2 || (r->pending_exception & 0xff) > 31 || r->interrupt_shadow > 2 || r->nmi_masked > 1)
        what = "an event or the activity state is none";
    return what ? hvx_fail(err, -EINVAL, "cpu-bt: these are no registers of a processor: %s", what) : 0;
}
