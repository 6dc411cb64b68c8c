/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/sys.h - helpers shared by the C ops of the system half:
 * descriptors, segment caches, stacks, privilege checks.
 *
 * Every helper that finds a reason for an exception raises it (bt_raise*,
 * which does not return), so callers read as the list of checks in the
 * manual: first all the loads and checks, then the commit.
 */
#ifndef BT_SYS_H
#define BT_SYS_H

#include "bt.h"
#include "op.h"

/* --- segment attributes (struct hvx_segment.attr) ------------------------- */
#define SYS_TYPE(a) ((a) & 0xfu)
#define SYS_ACCESSED 0x1u
#define SYS_WR 0x2u      /* data: writable; code: readable */
#define SYS_EC 0x4u      /* data: expand-down; code: conforming */
#define SYS_CODE 0x8u
#define SYS_S 0x10u      /* code or data, not system */
#define SYS_DPL(a) (((a) >> 5) & 3u)
#define SYS_P 0x80u
#define SYS_UNUSABLE 0x100u
#define SYS_L 0x2000u
#define SYS_DB 0x4000u
#define SYS_G 0x8000u

/* System descriptor types. */
enum {
    SYS_TSS16 = 1, SYS_LDT = 2, SYS_TSS16_BUSY = 3, SYS_CALL16 = 4, SYS_TASK_GATE = 5, SYS_INT16 = 6, SYS_TRAP16 = 7,
    SYS_TSS32 = 9, SYS_TSS32_BUSY = 11, SYS_CALL32 = 12, SYS_INT32 = 14, SYS_TRAP32 = 15,
};

static inline uint16_t sys_desc_attr(uint64_t d) { return (d >> 40) & 0xf0ff; }
static inline unsigned sys_desc_type(uint64_t d) { return (d >> 40) & 0xf; }
static inline unsigned sys_desc_dpl(uint64_t d) { return (d >> 45) & 3; }
static inline bool sys_desc_s(uint64_t d) { return (d >> 44) & 1; }
static inline bool sys_desc_p(uint64_t d) { return (d >> 47) & 1; }
static inline bool sys_desc_l(uint64_t d) { return (d >> 53) & 1; }
static inline bool sys_desc_d(uint64_t d) { return (d >> 54) & 1; }
static inline bool sys_desc_code(uint64_t d) { return sys_desc_s(d) && (d >> 43 & 1); }
static inline bool sys_desc_conforming(uint64_t d) { return sys_desc_code(d) && (d >> 42 & 1); }
static inline bool sys_desc_wdata(uint64_t d) { return sys_desc_s(d) && !(d >> 43 & 1) && (d >> 41 & 1); }
static inline uint32_t sys_desc_base(uint64_t d) { return ((d >> 16) & 0xffffff) | ((d >> 56) << 24); }
static inline uint32_t sys_desc_limit(uint64_t d)
{
    uint32_t l = (d & 0xffff) | ((d >> 32) & 0xf0000);
    return (d >> 55 & 1) ? l << 12 | 0xfff : l;
}
static inline uint64_t sys_gate_offset(uint64_t d) { return (d & 0xffff) | ((d >> 32) & 0xffff0000); }
static inline uint16_t sys_gate_sel(uint64_t d) { return (d >> 16) & 0xffff; }

static inline bool sys_null(uint32_t sel) { return (sel & 0xfffc) == 0; }
static inline bool sys_canonical(uint64_t a) { return (uint64_t)((int64_t)(a << 16) >> 16) == a; }
/* Protected mode proper: selectors name descriptors. */
static inline bool sys_protected(const struct bt_vcpu *c) { return bt_pe(c) && !bt_vm86(c); }
static inline uint64_t sys_mask(unsigned size) { return size == 8 ? ~0ull : (1ull << (size * 8)) - 1; }
static inline uint32_t sys_acc_cpl(unsigned cpl) { return cpl == 3 ? BT_ACC_USER : 0; }

_Noreturn static inline void sys_gp0(struct bt_vcpu *c) { bt_raise_err(c, BT_EX_GP, 0); }
static inline void sys_need_cpl0(struct bt_vcpu *c)
{
    if (c->cpl)
        sys_gp0(c);
}
static inline void sys_need_protected(struct bt_vcpu *c)
{
    if (!sys_protected(c))
        bt_raise(c, BT_EX_UD);
}

/* Unaligned little-endian accesses to images. */
typedef uint16_t sys_u16 __attribute__((may_alias, aligned(1)));
typedef uint32_t sys_u32 __attribute__((may_alias, aligned(1)));
typedef uint64_t sys_u64 __attribute__((may_alias, aligned(1)));
static inline uint16_t sys_get16(const void *p) { return *(const sys_u16 *)p; }
static inline uint32_t sys_get32(const void *p) { return *(const sys_u32 *)p; }
static inline uint64_t sys_get64(const void *p) { return *(const sys_u64 *)p; }
static inline void sys_put16(void *p, uint16_t v) { *(sys_u16 *)p = v; }
static inline void sys_put64(void *p, uint64_t v) { *(sys_u64 *)p = v; }

/* libc's copies use vector registers, which hold guest state here. */
static inline void sys_copy(void *d, const void *s, size_t n)
{
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n)::"memory");
}
static inline void sys_zero(void *d, size_t n)
{
    __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(0) : "memory");
}

/* Before an instruction that works on the live x87 or vector registers: an
 * access to guest memory may have called out and left them to the host. */
static inline void sys_fp_live(struct bt_vcpu *c)
{
    if (c->fp_live)
        return;
    __asm__ volatile("xrstor64 (%0)" ::"r"(c->xsave), "a"((uint32_t)c->vm->host_xcr0),
                     "d"((uint32_t)(c->vm->host_xcr0 >> 32))
                     : "memory");
    c->fp_live = 1;
}

/* --- descriptors (seg.c) --------------------------------------------------------- */
/* Linear address of a descriptor of n bytes (8, or 16 for system ones in long
 * mode); false: outside its table. */
bool sys_desc_addr(struct bt_vcpu *c, uint32_t sel, unsigned n, uint64_t *lin);
/* Its low 8 bytes; outside the table raises vector with (sel | ext). */
uint64_t sys_desc_read(struct bt_vcpu *c, uint32_t sel, unsigned vector, uint32_t ext);
/* Fill the hidden part for code and data descriptors. */
void sys_seg_cache(struct hvx_segment *s, uint32_t sel, uint64_t d);
/* Set the accessed bit in memory if it is clear; sel has been read before. */
void sys_set_accessed(struct bt_vcpu *c, uint32_t sel, uint64_t d);
/* Load a segment register other than CS, all modes, all checks. */
void sys_load_seg(struct bt_vcpu *c, unsigned seg, uint32_t sel);
/* Make a register null (keeps the selector given). */
void sys_null_seg(struct bt_vcpu *c, unsigned seg, uint32_t sel);
/* Load a register in real or virtual-8086 fashion. */
void sys_real_seg(struct bt_vcpu *c, unsigned seg, uint32_t sel);
void sys_v86_seg(struct bt_vcpu *c, unsigned seg, uint32_t sel);
/* Check an offset against a code descriptor about to be loaded: #GP(ext). */
void sys_check_rip(struct bt_vcpu *c, uint64_t d, uint64_t rip, uint32_t ext);
/* Commit CS (d checked, accessed set) and CPL; the caller does SS and then sys_mode_cs or bt_mode_update. */
void sys_commit_cs(struct bt_vcpu *c, uint32_t sel, uint64_t d, unsigned cpl);
/* After a return to an outer level: null what the new level may not use. */
void sys_drop_segs(struct bt_vcpu *c);
/* Check a stack segment for privilege dpl; vector for bad ones is #TS or #GP. */
uint64_t sys_check_ss(struct bt_vcpu *c, uint32_t sel, unsigned dpl, unsigned vector, uint32_t ext);

/* After a change of CS, SS, CPL and flags alone. Between two pieces of 64-bit
 * code only these bits of the mode differ, and no segment copy does: the path
 * of system calls, interrupts and their returns. was64: before the change. */
static inline void sys_mode_cs(struct bt_vcpu *c, bool was64)
{
    if (was64 && (c->seg[BT_CS].attr & SYS_L) && !(c->cr4 & BT_CR4_TSD)) {
        c->mode = (c->mode & ~(BT_MODE_CPL | BT_MODE_TF)) | c->cpl | (bt_stepping(c) ? BT_MODE_TF : 0);
        return;
    }
    bt_seg_update(c, BT_CS);
    bt_seg_update(c, BT_SS);
    bt_mode_update(c);
}

/* --- stacks ----------------------------------------------------------------------- */
/* A stack being pushed to or popped from; nothing is committed until the
 * caller stores sp. */
struct sys_stack {
    struct hvx_segment ss;
    uint64_t sp, mask;
    uint32_t acc;
    uint32_t error; /* of the #SS that a limit violation raises */
    bool flat64;
};
void sys_stack_current(struct bt_vcpu *c, struct sys_stack *k, uint32_t ext);
/* The stack that the TSS names for level dpl. Sets ss_desc (0 in long mode). */
void sys_stack_inner(struct bt_vcpu *c, struct sys_stack *k, unsigned dpl, uint32_t ext, uint64_t *ss_desc);
void sys_push(struct bt_vcpu *c, struct sys_stack *k, unsigned size, uint64_t v);
uint64_t sys_pop(struct bt_vcpu *c, struct sys_stack *k, unsigned size);
/* A value offset bytes above sp. */
uint64_t sys_peek(struct bt_vcpu *c, struct sys_stack *k, uint64_t offset, unsigned size);
/* Store sp in RSP under the width of the stack. */
static inline void sys_stack_commit(struct bt_vcpu *c, const struct sys_stack *k)
{
    if (k->mask == 0xffff)
        c->gpr[BT_RSP] = (c->gpr[BT_RSP] & ~0xffffull) | (k->sp & 0xffff);
    else
        c->gpr[BT_RSP] = k->sp & k->mask;
}

/* --- operands -------------------------------------------------------------------------- */
static inline uint64_t sys_mem_lin(struct bt_vcpu *c, const struct bt_op *op, size_t n, bool write)
{
    return bt_seg_lin(c, op->seg, c->op_ea, n, write);
}
static inline uint64_t sys_get_rm(struct bt_vcpu *c, const struct bt_op *op, unsigned size)
{
    if (op->is_mem)
        return bt_read(c, sys_mem_lin(c, op, size, false), size, bt_acc(c));
    return bt_reg_get(c, op->rm, size, op->high8);
}
static inline void sys_set_rm(struct bt_vcpu *c, const struct bt_op *op, unsigned size, uint64_t v)
{
    if (op->is_mem)
        bt_write(c, sys_mem_lin(c, op, size, true), size, v, bt_acc(c) | BT_ACC_WRITE);
    else
        bt_reg_set(c, op->rm, size, op->high8, v);
}
static inline void sys_set_flags(struct bt_vcpu *c, uint32_t mask, uint32_t v)
{
    c->flags_slot = bt_flags_to_slot((bt_slot_to_flags(c->flags_slot) & ~mask) | (v & mask));
}

/* --- transfers ------------------------------------------------------------------------------ */
enum sys_task_cause { SYS_TASK_JMP, SYS_TASK_CALL, SYS_TASK_INT, SYS_TASK_IRET };
/* task.c. sel names a TSS; ret is the address the old task goes on at. The
 * new task's CS:EIP, stack and segments are loaded. */
void sys_task_switch(struct bt_vcpu *c, uint32_t sel, enum sys_task_cause cause, uint64_t ret, bool has_error,
                     uint32_t error, uint32_t ext);
/* deliver.c. ret is what is pushed as (R/E)IP; c->rip stays the faulting one. */
void sys_deliver(struct bt_vcpu *c, unsigned vector, bool soft, bool has_error, uint32_t error, uint64_t ret);
/* op_iret.c: RETF and IRET to a protected-mode CS. */
void sys_return_protected(struct bt_vcpu *c, unsigned opsize, uint32_t pop, bool iret);
/* op_cr.c: load and check the four PDPTEs under cr3; false if a reserved bit is set. */
bool sys_load_pdptes(struct bt_vcpu *c, uint64_t cr3);
/* op_cr.c: EFER as WRMSR writes it; false -> #GP. */
bool sys_write_efer(struct bt_vcpu *c, uint64_t v);
/* op_fpu.c: fills c->xcomp[]. */
void sys_xstate_layout(struct bt_vcpu *c);
/* op_io.c: #GP(0) unless the guest may touch the port. */
void sys_check_io(struct bt_vcpu *c, uint32_t port, unsigned size);
#endif
