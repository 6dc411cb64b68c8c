/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/op_cr.c - control and debug registers, EFER, PDPTEs (SDM
 * volume 3, chapters 2, 4.1, 9.8.5, 17.2).
 */
#include "phys.h"
#include "sys.h"

#define CR0_WRITABLE 0xe005003full
#define CR0_ET 0x10ull
#define CR0_NW 0x20000000ull
#define CR0_CD 0x40000000ull
#define DR6_FIXED 0xffff0ff0ull
#define DR6_WRITABLE 0xe00full
#define DR6_BD 0x2000ull
#define DR7_FIXED 0x400ull
#define DR7_WRITABLE 0xffff23ffull
#define DR7_GD 0x2000ull

/* --- what the CPU model has -------------------------------------------------- */
static uint64_t phys_mask(struct bt_vcpu *c)
{
    if (!c->phys_mask) {
        uint32_t r[4];
        bt_cpuid(c, 0x80000008, 0, r);
        unsigned bits = r[0] & 0xff;
        c->phys_mask = (1ull << (bits >= 32 && bits <= 52 ? bits : 36)) - 1;
    }
    return c->phys_mask;
}

static uint64_t cr4_valid(struct bt_vcpu *c)
{
    if (!c->cr4_valid) {
        uint32_t r1[4], r7[4];
        bt_cpuid(c, 1, 0, r1);
        bt_cpuid(c, 7, 0, r7);
        uint64_t m = BT_CR4_TSD | BT_CR4_DE | BT_CR4_PSE | BT_CR4_PAE | BT_CR4_MCE | BT_CR4_PGE | BT_CR4_PCE |
                     BT_CR4_OSFXSR | BT_CR4_OSXMMEXCPT;
        if (r1[3] & 1u << 1) /* VME: accepted as a bit */
            m |= BT_CR4_VME | BT_CR4_PVI;
        if (r1[2] & 1u << 17)
            m |= BT_CR4_PCIDE;
        if (r1[2] & 1u << 26)
            m |= BT_CR4_OSXSAVE;
        if (r7[1] & 1u << 0)
            m |= BT_CR4_FSGSBASE;
        if (r7[1] & 1u << 7)
            m |= BT_CR4_SMEP;
        if (r7[1] & 1u << 20)
            m |= BT_CR4_SMAP;
        if (r7[2] & 1u << 2)
            m |= BT_CR4_UMIP;
        c->cr4_valid = m;
    }
    return c->cr4_valid;
}

/* --- PAE paging without long mode ------------------------------------------------ */
bool sys_load_pdptes(struct bt_vcpu *c, uint64_t cr3)
{
    uint64_t e[4], reserved = ~phys_mask(c) | 0x1e6;
    uint64_t gpa = cr3 & 0xffffffe0ull;
    uintptr_t page = bt_phys_page(c->vm, gpa) & ~0xfffull;

    /* 32-byte aligned: inside one page. Pointers outside RAM read as absent. */
    for (unsigned i = 0; i < 4; i++)
        e[i] = page ? __atomic_load_n((uint64_t *)(page + (gpa & 0xfff)) + i, __ATOMIC_RELAXED) : 0;
    for (unsigned i = 0; i < 4; i++)
        if ((e[i] & 1) && (e[i] & reserved))
            return false;
    for (unsigned i = 0; i < 4; i++)
        c->pdpte[i] = e[i];
    return true;
}

static bool pae_legacy(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
    return (cr0 & BT_CR0_PG) && (cr4 & BT_CR4_PAE) && !(efer & BT_EFER_LME);
}

/* --- CR0 ------------------------------------------------------------------------------ */
static void write_cr0(struct bt_vcpu *c, uint64_t v)
{
    uint64_t efer = c->efer, old = c->cr0;

    if (v >> 32)
        sys_gp0(c);
    v = (v & CR0_WRITABLE) | CR0_ET;
    if (((v & BT_CR0_PG) && !(v & BT_CR0_PE)) || ((v & CR0_NW) && !(v & CR0_CD)))
        sys_gp0(c);
    uint64_t diff = old ^ v;
    if ((diff & BT_CR0_PG) && (v & BT_CR0_PG) && (efer & BT_EFER_LME)) {
        if (!(c->cr4 & BT_CR4_PAE) || (c->seg[BT_CS].attr & SYS_L))
            sys_gp0(c);
        unsigned type = SYS_TYPE(c->tr.attr);
        if (!(c->tr.attr & SYS_UNUSABLE) && (type == SYS_TSS16 || type == SYS_TSS16_BUSY) && !sys_null(c->tr.selector))
            sys_gp0(c);
        efer |= BT_EFER_LMA;
    }
    if ((diff & BT_CR0_PG) && !(v & BT_CR0_PG)) {
        if ((c->cr4 & BT_CR4_PCIDE) || ((efer & BT_EFER_LMA) && (c->seg[BT_CS].attr & SYS_L)))
            sys_gp0(c);
        efer &= ~(uint64_t)BT_EFER_LMA;
    }
    if ((diff & (BT_CR0_PG | CR0_CD | CR0_NW)) && pae_legacy(v, c->cr4, efer) && !sys_load_pdptes(c, c->cr3))
        sys_gp0(c);
    c->cr0 = v;
    c->efer = efer;
    if (diff & (BT_CR0_PG | BT_CR0_WP)) /* PE alone changes no translation */
        bt_tlb_flush_all(c);
    bt_mode_update(c);
}

/* --- CR3 ------------------------------------------------------------------------------- */
static void write_cr3(struct bt_vcpu *c, uint64_t v)
{
    bool keep = false;

    if (c->cr4 & BT_CR4_PCIDE) {
        keep = v >> 63;
        v &= ~(1ull << 63);
    }
    if (v & ~phys_mask(c))
        sys_gp0(c);
    if (pae_legacy(c->cr0, c->cr4, c->efer) && !sys_load_pdptes(c, v))
        sys_gp0(c);
    c->cr3 = v;
    c->st.cr3_loads++;
    if (c->cr4 & BT_CR4_PCIDE)
        bt_tlb_switch(c, keep);
    else
        bt_tlb_flush_nonglobal(c);
}

/* --- CR4 -------------------------------------------------------------------------------- */
static void write_cr4(struct bt_vcpu *c, uint64_t v)
{
    const uint64_t paging = BT_CR4_PGE | BT_CR4_PSE | BT_CR4_PAE | BT_CR4_SMEP;
    uint64_t diff = c->cr4 ^ v;

    if (v & ~cr4_valid(c))
        sys_gp0(c);
    if (bt_long_mode(c) && !(v & BT_CR4_PAE))
        sys_gp0(c);
    if ((diff & BT_CR4_PCIDE) && (v & BT_CR4_PCIDE) && (!bt_long_mode(c) || (c->cr3 & 0xfff)))
        sys_gp0(c);
    if ((diff & paging) && pae_legacy(c->cr0, v, c->efer) && !sys_load_pdptes(c, c->cr3))
        sys_gp0(c);
    c->cr4 = v;
    if (diff & (paging | BT_CR4_PCIDE | BT_CR4_SMAP))
        bt_tlb_flush_all(c);
    bt_mode_update(c);
}

/* --- EFER -------------------------------------------------------------------------------- */
bool sys_write_efer(struct bt_vcpu *c, uint64_t v)
{
    const uint64_t valid = BT_EFER_SCE | BT_EFER_LME | BT_EFER_LMA | BT_EFER_NXE;
    uint64_t diff;

    if (v & ~valid)
        return false;
    v = (v & ~(uint64_t)BT_EFER_LMA) | (c->efer & BT_EFER_LMA); /* LMA is read-only */
    diff = v ^ c->efer;
    if ((diff & BT_EFER_LME) && (c->cr0 & BT_CR0_PG))
        return false;
    c->efer = v;
    if (diff & BT_EFER_NXE)
        bt_tlb_flush_all(c);
    bt_mode_update(c);
    return true;
}

/* --- MOV to and from CRn ------------------------------------------------------------------- */
static bool cr_exists(const struct bt_vcpu *c, unsigned n)
{
    return n == 0 || n == 2 || n == 3 || n == 4 || (n == 8 && bt_code64(c));
}

void bt_op_mov_r_cr(struct bt_vcpu *c, const struct bt_op *op)
{
    uint64_t v = 0;

    if (!cr_exists(c, op->reg))
        bt_raise(c, BT_EX_UD);
    sys_need_cpl0(c);
    switch (op->reg) {
    case 0: v = c->cr0; break;
    case 2: v = c->cr2; break;
    case 3: v = c->cr3; break;
    case 4: v = c->cr4; break;
    case 8: v = bt_apic_get_tpr(c); break;
    }
    bt_reg_set(c, op->rm, bt_code64(c) ? 8 : 4, 0, v);
}

void bt_op_mov_cr_r(struct bt_vcpu *c, const struct bt_op *op)
{
    if (!cr_exists(c, op->reg))
        bt_raise(c, BT_EX_UD);
    sys_need_cpl0(c);
    uint64_t v = bt_reg_get(c, op->rm, bt_code64(c) ? 8 : 4, 0);
    switch (op->reg) {
    case 0: write_cr0(c, v); break;
    case 2: c->cr2 = v; break;
    case 3: write_cr3(c, v); break;
    case 4: write_cr4(c, v); break;
    case 8:
        if (v & ~15ull)
            sys_gp0(c);
        bt_apic_set_tpr(c, v);
        break;
    }
}

void bt_op_lmsw(struct bt_vcpu *c, const struct bt_op *op)
{
    sys_need_cpl0(c);
    uint64_t v = sys_get_rm(c, op, 2) & 15;
    /* PE can be set but not cleared. */
    write_cr0(c, (c->cr0 & ~14ull) | v);
}

void bt_op_smsw(struct bt_vcpu *c, const struct bt_op *op)
{
    if (c->cpl && (c->cr4 & BT_CR4_UMIP))
        sys_gp0(c);
    sys_set_rm(c, op, op->is_mem ? 2 : op->opsize, c->cr0);
}

void bt_op_clts(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    sys_need_cpl0(c);
    c->cr0 &= ~(uint64_t)BT_CR0_TS;
    bt_mode_update(c);
}

/* --- debug registers -------------------------------------------------------------------------- */
/* Checks shared by both directions; returns the register meant. */
static unsigned debug_register(struct bt_vcpu *c, unsigned n)
{
    if (n > 7)
        bt_raise(c, BT_EX_UD);
    if (n == 4 || n == 5) {
        if (c->cr4 & BT_CR4_DE)
            bt_raise(c, BT_EX_UD);
        n += 2;
    }
    sys_need_cpl0(c);
    if (c->dr[7] & DR7_GD) {
        c->dr[6] |= DR6_BD;
        bt_raise(c, BT_EX_DB);
    }
    return n;
}

void bt_op_mov_r_dr(struct bt_vcpu *c, const struct bt_op *op)
{
    unsigned n = debug_register(c, op->reg);
    uint64_t v = c->dr[n];
    if (n == 6)
        v = (v & DR6_WRITABLE) | (v & 0x4000) | DR6_FIXED;
    else if (n == 7)
        v = (v & DR7_WRITABLE) | DR7_FIXED;
    bt_reg_set(c, op->rm, bt_code64(c) ? 8 : 4, 0, v);
}

void bt_op_mov_dr_r(struct bt_vcpu *c, const struct bt_op *op)
{
    unsigned n = debug_register(c, op->reg);
    uint64_t v = bt_reg_get(c, op->rm, bt_code64(c) ? 8 : 4, 0);

    if (n >= 6 && v >> 32)
        sys_gp0(c);
    if (n == 6)
        v = (v & DR6_WRITABLE) | DR6_FIXED;
    else if (n == 7)
        v = (v & DR7_WRITABLE) | DR7_FIXED;
    c->dr[n] = v;
    bt_mode_update(c);
}

/* --- TLB and caches ------------------------------------------------------------------------------ */
void bt_op_invlpg(struct bt_vcpu *c, const struct bt_op *op)
{
    if (!op->is_mem)
        bt_raise(c, BT_EX_UD);
    sys_need_cpl0(c);
    uint64_t lin = c->op_ea + c->seg_base[op->seg];
    if (!bt_code64(c))
        lin = (uint32_t)lin;
    if (sys_canonical(lin))
        bt_tlb_invlpg(c, lin);
}

void bt_op_invpcid(struct bt_vcpu *c, const struct bt_op *op)
{
    if (!op->is_mem)
        bt_raise(c, BT_EX_UD);
    if (c->cpl)
        sys_gp0(c);
    uint64_t type = bt_reg_get(c, op->reg, bt_code64(c) ? 8 : 4, 0);
    if (type > 3)
        sys_gp0(c);
    uint64_t lin = sys_mem_lin(c, op, 16, false);
    uint64_t pcid = bt_read(c, lin, 8, bt_acc(c)), addr = bt_read(c, lin + 8, 8, bt_acc(c));
    bool tags = (c->cr4 & BT_CR4_PCIDE) != 0;
    if (pcid >> 12 || (type < 2 && !tags && pcid) || (type == 0 && !sys_canonical(addr)))
        sys_gp0(c);
    switch (type) {
    case 0: bt_tlb_invlpg_pcid(c, (unsigned)pcid, addr); break;
    case 1: bt_tlb_flush_pcid(c, (unsigned)pcid); break;
    case 2: bt_tlb_flush_all(c); break;
    default: bt_tlb_flush_pcids(c);
    }
}

/* The host keeps its caches coherent; nothing is to be written back or lost. */
void bt_op_invd(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    sys_need_cpl0(c);
}

void bt_op_wbinvd(struct bt_vcpu *c, const struct bt_op *op)
{
    (void)op;
    sys_need_cpl0(c);
}
