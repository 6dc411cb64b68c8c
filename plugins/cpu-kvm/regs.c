/* SPDX-License-Identifier: Apache-2.0
 *
 * regs.c - a vCPU's registers between KVM's structures and hvx_vcpu_regs.
 */
#define _GNU_SOURCE
#include "kvm.h"

#include <asm/kvm_para.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

/* Architectural MSR numbers (Intel SDM volume 4). */
enum {
    MSR_TSC = 0x10, MSR_SYSENTER_CS = 0x174, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP, MSR_MISC_ENABLE = 0x1a0,
    MSR_PAT = 0x277, MSR_TSC_DEADLINE = 0x6e0, MSR_STAR = 0xc0000081u, MSR_LSTAR, MSR_CSTAR, MSR_SFMASK,
    MSR_KERNEL_GS = 0xc0000102u, MSR_TSC_AUX,
};

/* Kept in msrs[] of the register block. */
static const uint32_t further[] = {
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f,
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x2ff, 0x3a, 0x48,
    MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_ASYNC_PF_EN, MSR_KVM_STEAL_TIME, MSR_KVM_PV_EOI_EN,
};
#define N_FURTHER (sizeof(further) / sizeof(further[0]))

static uint64_t *named_msr(struct hvx_vcpu_regs *r, unsigned i, uint32_t *index)
{
    const struct {
        uint32_t index;
        uint64_t *value;
    } list[] = {
        {MSR_SYSENTER_CS, &r->sysenter_cs}, {MSR_SYSENTER_ESP, &r->sysenter_esp}, {MSR_SYSENTER_EIP, &r->sysenter_eip},
        {MSR_MISC_ENABLE, &r->misc_enable}, {MSR_PAT, &r->pat},                   {MSR_STAR, &r->star},
        {MSR_LSTAR, &r->lstar},             {MSR_CSTAR, &r->cstar},               {MSR_SFMASK, &r->sfmask},
        {MSR_KERNEL_GS, &r->kernel_gs_base}, {MSR_TSC_AUX, &r->tsc_aux},          {MSR_TSC, &r->tsc},
        {MSR_TSC_DEADLINE, &r->tsc_deadline},
    };

    if (i >= sizeof(list) / sizeof(list[0]))
        return NULL;
    *index = list[i].index;
    return list[i].value;
}

/* One at a time: KVM stops at the first one that it does not know. */
static bool msr_get(struct hvx_vcpu *v, uint32_t index, uint64_t *value)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } m = {.head.nmsrs = 1, .entry.index = index};

    if (ioctl(v->fd, KVM_GET_MSRS, &m) != 1)
        return false;
    *value = m.entry.data;
    return true;
}

static bool msr_set(struct hvx_vcpu *v, uint32_t index, uint64_t value)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } m = {.head.nmsrs = 1, .entry = {.index = index, .data = value}};

    return ioctl(v->fd, KVM_SET_MSRS, &m) == 1;
}

static void segment_out(const struct kvm_segment *k, struct hvx_segment *s)
{
    s->base = k->base;
    s->limit = k->limit;
    s->selector = k->selector;
    s->attr = (uint16_t)(k->type | k->s << 4 | k->dpl << 5 | k->present << 7 | k->unusable << 8 | k->avl << 12 |
                         k->l << 13 | k->db << 14 | k->g << 15);
}

static void segment_in(const struct hvx_segment *s, struct kvm_segment *k)
{
    memset(k, 0, sizeof(*k));
    k->base = s->base;
    k->limit = s->limit;
    k->selector = s->selector;
    k->type = s->attr & 15;
    k->s = s->attr >> 4 & 1;
    k->dpl = s->attr >> 5 & 3;
    k->present = s->attr >> 7 & 1;
    k->unusable = s->attr >> 8 & 1;
    k->avl = s->attr >> 12 & 1;
    k->l = s->attr >> 13 & 1;
    k->db = s->attr >> 14 & 1;
    k->g = s->attr >> 15 & 1;
}

/* KVM's segments in the order of HVX_ES..HVX_GS. */
static struct kvm_segment *segment(struct kvm_sregs *s, unsigned i)
{
    struct kvm_segment *const list[] = {&s->es, &s->cs, &s->ss, &s->ds, &s->fs, &s->gs};

    return list[i];
}

static void gprs_out(const struct kvm_regs *k, struct hvx_vcpu_regs *r)
{
    const uint64_t list[16] = {k->rax, k->rcx, k->rdx, k->rbx, k->rsp, k->rbp, k->rsi, k->rdi,
                               k->r8,  k->r9,  k->r10, k->r11, k->r12, k->r13, k->r14, k->r15};

    memcpy(r->gpr, list, sizeof(list));
    r->rip = k->rip;
    r->rflags = k->rflags;
}

static void gprs_in(const struct hvx_vcpu_regs *r, struct kvm_regs *k)
{
    __u64 *const list[16] = {&k->rax, &k->rcx, &k->rdx, &k->rbx, &k->rsp, &k->rbp, &k->rsi, &k->rdi,
                                &k->r8,  &k->r9,  &k->r10, &k->r11, &k->r12, &k->r13, &k->r14, &k->r15};

    for (unsigned i = 0; i < 16; i++)
        *list[i] = r->gpr[i];
    k->rip = r->rip;
    k->rflags = r->rflags | 2;
}

static void system_out(struct kvm_sregs *k, struct hvx_vcpu_regs *r)
{
    for (unsigned i = 0; i < 6; i++)
        segment_out(segment(k, i), &r->seg[i]);
    segment_out(&k->ldt, &r->ldtr);
    segment_out(&k->tr, &r->tr);
    r->gdt_base = k->gdt.base;
    r->gdt_limit = k->gdt.limit;
    r->idt_base = k->idt.base;
    r->idt_limit = k->idt.limit;
    r->cr0 = k->cr0;
    r->cr2 = k->cr2;
    r->cr3 = k->cr3;
    r->cr4 = k->cr4;
    r->cr8 = k->cr8;
    r->efer = k->efer;
    r->apic_base = k->apic_base;
}

static void system_in(const struct hvx_vcpu_regs *r, struct kvm_sregs *k)
{
    for (unsigned i = 0; i < 6; i++)
        segment_in(&r->seg[i], segment(k, i));
    segment_in(&r->ldtr, &k->ldt);
    segment_in(&r->tr, &k->tr);
    k->gdt.base = r->gdt_base;
    k->gdt.limit = (uint16_t)r->gdt_limit;
    k->idt.base = r->idt_base;
    k->idt.limit = (uint16_t)r->idt_limit;
    k->cr0 = r->cr0;
    k->cr2 = r->cr2;
    k->cr3 = r->cr3;
    k->cr4 = r->cr4;
    k->cr8 = r->cr8;
    k->efer = r->efer;
    if (r->apic_base)
        k->apic_base = r->apic_base;
    memset(k->interrupt_bitmap, 0, sizeof(k->interrupt_bitmap));
}

int kvm_vcpu_get(struct hvx_vcpu *v, struct hvx_vcpu_regs *r)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_debugregs debug;
    struct kvm_xcrs xcrs;
    struct kvm_xsave xsave;
    struct kvm_mp_state mp;
    struct kvm_vcpu_events events;
    struct kvm_lapic_state lapic;
    uint64_t *value;
    uint32_t index;

    memset(r, 0, sizeof(*r));
    r->size = sizeof(*r);
    if (ioctl(v->fd, KVM_GET_REGS, &regs) < 0 || ioctl(v->fd, KVM_GET_SREGS, &sregs) < 0 ||
        ioctl(v->fd, KVM_GET_MP_STATE, &mp) < 0 || ioctl(v->fd, KVM_GET_VCPU_EVENTS, &events) < 0 ||
        ioctl(v->fd, KVM_GET_LAPIC, &lapic) < 0 || ioctl(v->fd, KVM_GET_XSAVE, &xsave) < 0 ||
        ioctl(v->fd, KVM_GET_DEBUGREGS, &debug) < 0)
        return -errno;
    gprs_out(&regs, r);
    system_out(&sregs, r);
    memcpy(r->dr, debug.db, sizeof(debug.db));
    r->dr[6] = debug.dr6;
    r->dr[7] = debug.dr7;
    if (ioctl(v->fd, KVM_GET_XCRS, &xcrs) == 0 && xcrs.nr_xcrs > 0)
        r->xcr0 = xcrs.xcrs[0].value;
    memcpy(r->xsave, &xsave, sizeof(xsave) < sizeof(r->xsave) ? sizeof(xsave) : sizeof(r->xsave));
    r->xsave_size = sizeof(r->xsave);
    r->mp_state = mp.mp_state == KVM_MP_STATE_RUNNABLE ? 0 : mp.mp_state == KVM_MP_STATE_HALTED ? 1 : 2;
    r->interrupt_shadow = events.interrupt.shadow;
    r->nmi_masked = events.nmi.masked;
    if (events.exception.injected) {
        r->pending_exception = 0x80000000u | events.exception.nr | (events.exception.has_error_code ? 0x100 : 0);
        r->pending_error_code = events.exception.error_code;
    }
    for (unsigned i = 0; i < 64; i++)
        memcpy(&r->apic[i], lapic.regs + 16 * i, 4);
    for (unsigned i = 0; (value = named_msr(r, i, &index)); i++)
        (void)msr_get(v, index, value);
    for (unsigned i = 0; i < N_FURTHER && r->n_msrs < HVX_MAX_MSRS; i++) {
        r->msrs[r->n_msrs].index = further[i];
        if (msr_get(v, further[i], &r->msrs[r->n_msrs].value))
            r->n_msrs++;
    }
    return 0;
}

static int set_extended(struct hvx_vcpu *v, const struct hvx_vcpu_regs *r)
{
    struct kvm_xsave xsave;
    struct kvm_xcrs xcrs = {.nr_xcrs = 1};

    xcrs.xcrs[0].value = r->xcr0 ? r->xcr0 : 1;
    if (r->xcr0 && ioctl(v->fd, KVM_SET_XCRS, &xcrs) < 0)
        return -errno;
    if (r->xsave_size < 512)
        return 0; /* the caller has no floating-point state to give */
    memset(&xsave, 0, sizeof(xsave));
    memcpy(&xsave, r->xsave, r->xsave_size < sizeof(xsave) ? r->xsave_size : sizeof(xsave));
    return ioctl(v->fd, KVM_SET_XSAVE, &xsave) < 0 ? -errno : 0;
}

static int set_lapic(struct hvx_vcpu *v, const struct hvx_vcpu_regs *r)
{
    struct kvm_lapic_state lapic = v->lapic_at_start;

    if (!r->apic[3]) /* version register: no APIC page given */
        return 0;
    for (unsigned i = 0; i < 64; i++)
        memcpy(lapic.regs + 16 * i, &r->apic[i], 4);
    return ioctl(v->fd, KVM_SET_LAPIC, &lapic) < 0 ? -errno : 0;
}

static int set_events(struct hvx_vcpu *v, const struct hvx_vcpu_regs *r)
{
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp = {.mp_state = r->mp_state == 0   ? KVM_MP_STATE_RUNNABLE
                                          : r->mp_state == 1 ? KVM_MP_STATE_HALTED
                                          : v->index         ? KVM_MP_STATE_UNINITIALIZED
                                                             : KVM_MP_STATE_INIT_RECEIVED};

    memset(&events, 0, sizeof(events));
    events.flags = KVM_VCPUEVENT_VALID_SHADOW;
    events.interrupt.shadow = (uint8_t)r->interrupt_shadow;
    events.nmi.masked = (uint8_t)r->nmi_masked;
    if (r->pending_exception & 0x80000000u) {
        events.exception.injected = 1;
        events.exception.nr = (uint8_t)r->pending_exception;
        events.exception.has_error_code = (r->pending_exception & 0x100) != 0;
        events.exception.error_code = r->pending_error_code;
    }
    if (ioctl(v->fd, KVM_SET_VCPU_EVENTS, &events) < 0 || ioctl(v->fd, KVM_SET_MP_STATE, &mp) < 0)
        return -errno;
    return 0;
}

int kvm_vcpu_set(struct hvx_vcpu *v, const struct hvx_vcpu_regs *r, struct hvx_error *err)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_debugregs debug;
    uint64_t *value;
    uint32_t index;
    int e;

    memset(&regs, 0, sizeof(regs));
    memset(&debug, 0, sizeof(debug));
    gprs_in(r, &regs);
    if (ioctl(v->fd, KVM_GET_SREGS, &sregs) < 0)
        return hvx_fail(err, -errno, "cpu-kvm: KVM_GET_SREGS: %s", strerror(errno));
    system_in(r, &sregs);
    memcpy(debug.db, r->dr, sizeof(debug.db));
    debug.dr6 = r->dr[6];
    debug.dr7 = r->dr[7];
    if (ioctl(v->fd, KVM_SET_SREGS, &sregs) < 0 || ioctl(v->fd, KVM_SET_REGS, &regs) < 0 ||
        ioctl(v->fd, KVM_SET_DEBUGREGS, &debug) < 0)
        return hvx_fail(err, -errno, "cpu-kvm: KVM refuses the registers: %s", strerror(errno));
    e = set_extended(v, r);
    if (e == 0)
        e = set_lapic(v, r);
    if (e == 0)
        e = set_events(v, r);
    if (e < 0)
        return hvx_fail(err, e, "cpu-kvm: KVM refuses the vCPU's state: %s", strerror(-e));
    /* A block made by hand (direct boot) leaves most at 0, which must not
     * reach registers whose power-on value is another. */
    for (unsigned i = 0; (value = named_msr((struct hvx_vcpu_regs *)r, i, &index)); i++)
        if (*value || (index != MSR_PAT && index != MSR_TSC && index != MSR_MISC_ENABLE && index != MSR_TSC_DEADLINE))
            (void)msr_set(v, index, *value);
    for (unsigned i = 0; i < r->n_msrs && i < HVX_MAX_MSRS; i++)
        (void)msr_set(v, r->msrs[i].index, r->msrs[i].value);
    return 0;
}

/* Power-on state, Intel SDM volume 3, table 10-1. */
void kvm_vcpu_reset(struct hvx_vcpu *v)
{
    struct kvm_regs regs;
    struct kvm_fpu fpu;
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp = {.mp_state = v->index ? KVM_MP_STATE_UNINITIALIZED : KVM_MP_STATE_RUNNABLE};
    struct kvm_debugregs debug;

    memset(&regs, 0, sizeof(regs));
    regs.rip = 0xfff0;
    regs.rflags = 2;
    regs.rdx = 0x600;
    for (unsigned i = 0; i < v->e->cpuid->nent; i++)
        if (v->e->cpuid->entries[i].function == 1)
            regs.rdx = v->e->cpuid->entries[i].eax;
    memset(&fpu, 0, sizeof(fpu));
    fpu.fcw = 0x40;
    fpu.mxcsr = 0x1f80;
    memset(&events, 0, sizeof(events));
    events.flags = KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING;
    memset(&debug, 0, sizeof(debug));
    debug.dr6 = 0xffff0ff0;
    debug.dr7 = 0x400;
    for (unsigned i = 0; i < N_FURTHER; i++)
        (void)msr_set(v, further[i], 0);
    (void)msr_set(v, MSR_PAT, 0x0007040600070406ull);
    (void)msr_set(v, MSR_MISC_ENABLE, 1);
    for (uint32_t m = MSR_STAR; m <= MSR_SFMASK; m++)
        (void)msr_set(v, m, 0);
    for (uint32_t m = MSR_SYSENTER_CS; m <= MSR_SYSENTER_EIP; m++)
        (void)msr_set(v, m, 0);
    (void)msr_set(v, MSR_KERNEL_GS, 0);
    (void)msr_set(v, MSR_TSC_AUX, 0);
    (void)ioctl(v->fd, KVM_SET_SREGS, &v->sregs_at_start);
    (void)ioctl(v->fd, KVM_SET_REGS, &regs);
    (void)ioctl(v->fd, KVM_SET_FPU, &fpu);
    (void)ioctl(v->fd, KVM_SET_DEBUGREGS, &debug);
    (void)ioctl(v->fd, KVM_SET_LAPIC, &v->lapic_at_start);
    (void)ioctl(v->fd, KVM_SET_VCPU_EVENTS, &events);
    (void)ioctl(v->fd, KVM_SET_MP_STATE, &mp);
}
