/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/op_sys.c - fast system calls, MSRs, flags, time, CPUID and
 * other system instructions. Vendor-dependent behaviour follows the vendor that
 * CPUID shows where programs depend on it, else Intel.
 */
#include "sys.h"

#define MSR_EFER 0xc0000080u
#define MSR_FS_BASE 0xc0000100u
#define MSR_GS_BASE 0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u

/* Attributes of the flat segments that the fast calls install. */
#define CODE64_0 0xa09bu
#define CODE64_3 0xa0fbu
#define CODE32_0 0xc09bu
#define CODE32_3 0xc0fbu
#define DATA_0 0xc093u
#define DATA_3 0xc0f3u

static void flat_segs(struct bt_vcpu *c, uint32_t cs, uint16_t cs_attr, uint32_t ss, uint16_t ss_attr, unsigned cpl)
{
    c->seg[BT_CS] = (struct hvx_segment){.limit = 0xffffffff, .selector = (uint16_t)cs, .attr = cs_attr};
    c->seg[BT_SS] = (struct hvx_segment){.limit = 0xffffffff, .selector = (uint16_t)ss, .attr = ss_attr};
    c->cpl = (uint8_t)cpl;
    sys_mode_cs(c, bt_code64(c));
}

/* --- SYSCALL and SYSRET ----------------------------------------------------------- */
/* AMD's processors have it outside 64-bit code, too (APM volume 3, SYSCALL):
 * from compatibility mode by way of CSTAR, and without long mode to STAR's low half. */
static void syscall_legacy(struct bt_vcpu *c, const struct bt_op *op)
{
    uint32_t sel = (c->star >> 32) & 0xfffc;
    c->gpr[BT_RCX] = op->next_rip;
    c->sysflags &= ~(BT_VM | BT_RF);
    c->iflag = 0;
    c->rip = (uint32_t)c->star;
    c->st.syscalls++;
    flat_segs(c, sel, CODE32_0, sel + 8, DATA_0, 0);
}

void bt_op_syscall(struct bt_vcpu *c, const struct bt_op *op)
{
    bt_user_left(c);
    if (!(c->efer & BT_EFER_SCE) || (!bt_code64(c) && !(c->vm->amd && bt_pe(c))))
        bt_raise(c, BT_EX_UD);
    if (!bt_long_mode(c)) {
        syscall_legacy(c, op);
        return;
    }
    uint32_t flags = bt_rflags(c) & ~BT_RF, sel = (c->star >> 32) & 0xfffc;
    bool compat = !bt_code64(c);
    c->gpr[BT_RCX] = op->next_rip;
    c->gpr[11] = flags;
    bt_set_rflags(c, flags & ~(uint32_t)c->sfmask);
    c->rip = compat ? c->cstar : c->lstar;
    c->int_done = !(c->sysflags & BT_TF); /* the trap goes by TF after the instruction, here and in SYSRET */
    c->st.syscalls++;
    flat_segs(c, sel, CODE64_0, sel + 8, DATA_0, 0);
}

void bt_op_sysret(struct bt_vcpu *c, const struct bt_op *op)
{
    if (!(c->efer & BT_EFER_SCE) || (!bt_code64(c) && !(c->vm->amd && bt_pe(c))))
        bt_raise(c, BT_EX_UD);
    sys_need_cpl0(c);
    bool wide = op->opsize == 8 && bt_code64(c);
    if (wide && !c->vm->amd && !sys_canonical(c->gpr[BT_RCX])) /* AMD's: #GP at the target, as any jump */
        sys_gp0(c);
    uint32_t sel = (c->star >> 48) & 0xffff;
    if (!bt_long_mode(c)) {
        c->rip = (uint32_t)c->gpr[BT_RCX];
        c->iflag = 1;
        flat_segs(c, sel | 3, CODE32_3, (sel + 8) | 3, DATA_3, 3);
        return;
    }
    c->rip = wide ? c->gpr[BT_RCX] : (uint32_t)c->gpr[BT_RCX];
    bt_set_rflags(c, (uint32_t)c->gpr[11] & 0x3c7fd7);
    c->int_done = c->sysflags & BT_TF ? 2 : 1;
    flat_segs(c, (sel + (wide ? 16 : 0)) | 3, wide ? CODE64_3 : CODE32_3, (sel + 8) | 3, DATA_3, 3);
}

/* --- SYSENTER and SYSEXIT ------------------------------------------------------------ */
void bt_op_sysenter(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    bt_user_left(c);
    uint32_t sel = c->sysenter_cs & 0xfffc;
    if (c->vm->amd && bt_long_mode(c)) /* AMD's have it in legacy mode alone */
        bt_raise(c, BT_EX_UD);
    if (!bt_pe(c) || !sel)
        sys_gp0(c);
    bool lm = bt_long_mode(c);
    c->sysflags &= ~(BT_VM | BT_RF);
    c->iflag = 0;
    c->gpr[BT_RSP] = lm ? c->sysenter_esp : (uint32_t)c->sysenter_esp;
    c->rip = lm ? c->sysenter_eip : (uint32_t)c->sysenter_eip;
    c->st.syscalls++;
    flat_segs(c, sel, lm ? CODE64_0 : CODE32_0, sel + 8, DATA_0, 0);
}

void bt_op_sysexit(struct bt_vcpu *c, const struct bt_op *op)
{
    uint32_t sel = c->sysenter_cs & 0xfffc;
    if (c->vm->amd && bt_long_mode(c))
        bt_raise(c, BT_EX_UD);
    if (!bt_pe(c) || !sel || c->cpl)
        sys_gp0(c);
    bool wide = op->opsize == 8 && bt_code64(c);
    uint64_t sp = c->gpr[BT_RCX], ip = c->gpr[BT_RDX];
    if (wide && (!sys_canonical(sp) || !sys_canonical(ip)))
        sys_gp0(c);
    c->gpr[BT_RSP] = wide ? sp : (uint32_t)sp;
    c->rip = wide ? ip : (uint32_t)ip;
    flat_segs(c, (sel + (wide ? 32 : 16)) | 3, wide ? CODE64_3 : CODE32_3, (sel + (wide ? 40 : 24)) | 3, DATA_3, 3);
}

/* --- FS and GS bases --------------------------------------------------------------------- */
void bt_op_swapgs(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    if (!bt_code64(c))
        bt_raise(c, BT_EX_UD);
    sys_need_cpl0(c);
    uint64_t t = c->seg[BT_GS].base;
    c->seg[BT_GS].base = c->kernel_gs_base;
    c->kernel_gs_base = t;
    bt_seg_update(c, BT_GS);
}

static void need_fsgsbase(struct bt_vcpu *c)
{
    if (!bt_code64(c) || !(c->cr4 & BT_CR4_FSGSBASE))
        bt_raise(c, BT_EX_UD);
}

static void write_base(struct bt_vcpu *c, const struct bt_op *op, unsigned seg)
{
    need_fsgsbase(c);
    uint64_t v = bt_reg_get(c, op->rm, op->opsize, 0);
    if (!sys_canonical(v))
        sys_gp0(c);
    c->seg[seg].base = v;
    bt_seg_update(c, seg);
}

void bt_op_rdfsbase(struct bt_vcpu *c, const struct bt_op *op)
{
    need_fsgsbase(c);
    bt_reg_set(c, op->rm, op->opsize, 0, c->seg[BT_FS].base);
}

void bt_op_rdgsbase(struct bt_vcpu *c, const struct bt_op *op)
{
    need_fsgsbase(c);
    bt_reg_set(c, op->rm, op->opsize, 0, c->seg[BT_GS].base);
}

void bt_op_wrfsbase(struct bt_vcpu *c, const struct bt_op *op) { write_base(c, op, BT_FS); }
void bt_op_wrgsbase(struct bt_vcpu *c, const struct bt_op *op) { write_base(c, op, BT_GS); }

/* --- MSRs ----------------------------------------------------------------------------------- */
/* The registers whose value lives in segment caches or steers paging are
 * served here; all others by msr.c. */
static bool read_msr(struct bt_vcpu *c, uint32_t index, uint64_t *v)
{
    switch (index) {
    case MSR_EFER: *v = c->efer; return true;
    case MSR_FS_BASE: *v = c->seg[BT_FS].base; return true;
    case MSR_GS_BASE: *v = c->seg[BT_GS].base; return true;
    case MSR_KERNEL_GS_BASE: *v = c->kernel_gs_base; return true;
    }
    return bt_rdmsr(c, index, v);
}

static bool write_msr(struct bt_vcpu *c, uint32_t index, uint64_t v)
{
    switch (index) {
    case MSR_EFER: return sys_write_efer(c, v);
    case MSR_FS_BASE:
    case MSR_GS_BASE: {
        unsigned seg = index == MSR_FS_BASE ? BT_FS : BT_GS;
        if (!sys_canonical(v))
            return false;
        c->seg[seg].base = v;
        bt_seg_update(c, seg);
        return true;
    }
    case MSR_KERNEL_GS_BASE:
        if (!sys_canonical(v))
            return false;
        c->kernel_gs_base = v;
        return true;
    }
    return bt_wrmsr(c, index, v);
}

void bt_op_rdmsr(struct bt_vcpu *c, const struct bt_op *op)
{
    uint64_t v = 0;
    (void)op;
    sys_need_cpl0(c);
    if (!read_msr(c, (uint32_t)c->gpr[BT_RCX], &v))
        sys_gp0(c);
    c->gpr[BT_RAX] = (uint32_t)v;
    c->gpr[BT_RDX] = v >> 32;
}

void bt_op_wrmsr(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    sys_need_cpl0(c);
    uint64_t v = (uint32_t)c->gpr[BT_RAX] | c->gpr[BT_RDX] << 32;
    if (!write_msr(c, (uint32_t)c->gpr[BT_RCX], v))
        sys_gp0(c);
}

/* The CPU model shows no performance counters. */
void bt_op_rdpmc(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    sys_gp0(c);
}

/* --- time and identity ------------------------------------------------------------------------ */
static void read_tsc(struct bt_vcpu *c)
{
    if ((c->cr4 & BT_CR4_TSD) && c->cpl)
        sys_gp0(c);
    uint64_t t = bt_guest_tsc(c);
    c->gpr[BT_RAX] = (uint32_t)t;
    c->gpr[BT_RDX] = t >> 32;
}

void bt_op_rdtsc(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    read_tsc(c);
}

void bt_op_rdtscp(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    read_tsc(c);
    c->gpr[BT_RCX] = (uint32_t)c->tsc_aux;
}

void bt_op_rdpid(struct bt_vcpu *c, const struct bt_op *op)
{
    bt_reg_set(c, op->rm, bt_code64(c) ? 8 : 4, 0, (uint32_t)c->tsc_aux);
}

void bt_op_cpuid(struct bt_vcpu *c, const struct bt_op *op)
{
    uint32_t r[4];
    (void)op;
    bt_cpuid(c, (uint32_t)c->gpr[BT_RAX], (uint32_t)c->gpr[BT_RCX], r);
    c->gpr[BT_RAX] = r[0];
    c->gpr[BT_RBX] = r[1];
    c->gpr[BT_RCX] = r[2];
    c->gpr[BT_RDX] = r[3];
}

/* --- XCR0 ---------------------------------------------------------------------------------------- */
void bt_op_xgetbv(struct bt_vcpu *c, const struct bt_op *op)
{
    uint64_t v;
    (void)op;
    if (!(c->cr4 & BT_CR4_OSXSAVE))
        bt_raise(c, BT_EX_UD);
    if ((uint32_t)c->gpr[BT_RCX] == 0) {
        v = c->xcr0;
    } else {
        uint32_t r[4], lo, hi;
        bt_cpuid(c, 0xd, 1, r);
        if ((uint32_t)c->gpr[BT_RCX] != 1 || !(r[0] & 4))
            sys_gp0(c);
        /* XINUSE: the live registers are the guest's. */
        sys_fp_live(c);
        __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(1));
        v = c->xcr0 & (lo | (uint64_t)hi << 32);
    }
    c->gpr[BT_RAX] = (uint32_t)v;
    c->gpr[BT_RDX] = v >> 32;
}

void bt_op_xsetbv(struct bt_vcpu *c, const struct bt_op *op)
{
    uint32_t r[4];
    (void)op;
    if (!(c->cr4 & BT_CR4_OSXSAVE))
        bt_raise(c, BT_EX_UD);
    sys_need_cpl0(c);
    uint64_t v = (uint32_t)c->gpr[BT_RAX] | c->gpr[BT_RDX] << 32, avx512 = v & 0xe0;
    bt_cpuid(c, 0xd, 0, r);
    uint64_t valid = r[0] | (uint64_t)r[3] << 32;
    if ((uint32_t)c->gpr[BT_RCX] || !(v & 1) || (v & ~valid) || ((v & 4) && !(v & 2)))
        sys_gp0(c);
    if (avx512 && (avx512 != 0xe0 || !(v & 4)))
        sys_gp0(c);
    c->xcr0 = v;
    bt_mode_update(c);
}

/* --- flags ------------------------------------------------------------------------------------------ */
/* CLI, STI, PUSHF, POPF in virtual-8086 mode need IOPL 3 (no VME). */
static void need_iopl_v86(struct bt_vcpu *c)
{
    if (bt_vm86(c) && bt_iopl(c) < 3)
        sys_gp0(c);
}

void bt_op_cli(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    if (bt_pe(c) && c->cpl > bt_iopl(c))
        sys_gp0(c);
    c->iflag = 0;
}

void bt_op_sti(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    if (bt_pe(c) && c->cpl > bt_iopl(c))
        sys_gp0(c);
    if (!c->iflag)
        c->shadow = 1;
    c->iflag = 1;
}

void bt_op_pushf(struct bt_vcpu *c, const struct bt_op *op)
{
    struct sys_stack k;
    if (bt_code64(c) && op->opsize == 8) {
        uint64_t sp = c->gpr[BT_RSP] - 8;
        if (sys_canonical(sp) && sys_canonical(sp + 7)) {
            bt_write(c, sp, 8, bt_rflags(c) & ~(BT_VM | BT_RF), bt_acc(c) | BT_ACC_WRITE);
            c->gpr[BT_RSP] = sp;
            return;
        }
    }
    need_iopl_v86(c);
    sys_stack_current(c, &k, 0);
    sys_push(c, &k, op->opsize, bt_rflags(c) & ~(BT_VM | BT_RF));
    sys_stack_commit(c, &k);
}

void bt_op_popf(struct bt_vcpu *c, const struct bt_op *op)
{
    struct sys_stack k;
    uint32_t mask = BT_ARITH | BT_TF | BT_DF | BT_NT;

    need_iopl_v86(c);
    if (op->opsize > 2)
        mask |= BT_AC | BT_ID | BT_RF;
    if (!bt_pe(c) || c->cpl <= bt_iopl(c))
        mask |= BT_IF;
    if (c->cpl == 0)
        mask |= BT_IOPL;
    sys_stack_current(c, &k, 0);
    uint32_t v = (uint32_t)sys_pop(c, &k, op->opsize) & ~BT_RF;
    sys_stack_commit(c, &k);
    bt_set_rflags(c, (bt_rflags(c) & ~mask) | (v & mask));
    bt_mode_update(c);
}

static void set_ac(struct bt_vcpu *c, uint32_t ac)
{
    uint32_t r[4];
    bt_cpuid(c, 7, 0, r);
    if (c->cpl || !(r[1] & 1u << 20))
        bt_raise(c, BT_EX_UD);
    c->sysflags = (c->sysflags & ~BT_AC) | ac;
}

void bt_op_clac(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    set_ac(c, 0);
}

void bt_op_stac(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    set_ac(c, BT_AC);
}

/* --- waiting ------------------------------------------------------------------------------------------ */
void bt_op_hlt(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    sys_need_cpl0(c);
    c->halted = 1;
}

static void need_monitor(struct bt_vcpu *c)
{
    uint32_t r[4];
    bt_cpuid(c, 1, 0, r);
    if (c->cpl || !(r[2] & 8))
        bt_raise(c, BT_EX_UD);
}

void bt_op_monitor(struct bt_vcpu *c, const struct bt_op *op)
{
    need_monitor(c);
    if ((uint32_t)c->gpr[BT_RCX])
        sys_gp0(c);
    uint64_t off = bt_reg_get(c, BT_RAX, op->addrsize, 0);
    bt_read(c, bt_seg_lin(c, op->seg, off, 1, false), 1, bt_acc(c));
}

/* May return at any time, and does at once: nothing watches the line. */
void bt_op_mwait(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    need_monitor(c);
}

/* --- hypercalls --------------------------------------------------------------------------------------- */
/* KVM's convention: number in RAX, arguments in RBX RCX RDX RSI, 32 bits wide outside 64-bit code. */
void bt_op_vmcall(struct bt_vcpu *c, const struct bt_op *op)
{
    const uint64_t mask = sys_mask(bt_code64(c) ? 8 : 4);
    const uint64_t a[4] = {c->gpr[BT_RBX] & mask, c->gpr[BT_RCX] & mask, c->gpr[BT_RDX] & mask, c->gpr[BT_RSI] & mask};
    (void)op;
    if (!c->vm->hypercalls || !bt_pe(c))
        bt_raise(c, BT_EX_UD);
    c->gpr[BT_RAX] = bt_pv_hypercall(c, c->gpr[BT_RAX] & mask, a) & mask;
}

void bt_op_nop(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)c;
    (void)op;
}
