/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/op.h - C ops: guest instructions carried out by C functions.
 *
 * The translator fills a struct bt_op per instruction and the block calls
 * bt_op_table[op->id](c, op) with the vCPU complete in *c and c->rip at the
 * instruction itself. Unless the op changes it, control goes on at
 * op->next_rip: the caller (not the op) advances c->rip after the op returns,
 * for ops marked NEXT below; ops marked JUMP set c->rip themselves always.
 *
 * Register operands use guest numbers 0..15; 8-bit registers without REX use
 * 4..7 for AH CH DH BH with op->high8 set. A memory operand's offset is in
 * c->op_ea (already truncated to the address size); op->seg is its segment.
 */
#ifndef BT_OP_H
#define BT_OP_H

#include "bt.h"

struct bt_op {
    uint16_t id;
    uint8_t opsize;   /* 1 2 4 8 bytes */
    uint8_t addrsize; /* 2 4 8 */
    uint8_t seg;      /* of the memory operand, BT_ES.. */
    uint8_t is_mem;   /* the ModRM operand is memory (else register `rm`) */
    uint8_t reg;      /* ModRM.reg as a guest register / segment / control register number */
    uint8_t rm;       /* ModRM.rm as a guest register when !is_mem */
    uint8_t rep;      /* 0, 0xf3, 0xf2 */
    uint8_t lock, high8, len;
    uint32_t imm2;    /* far pointer selector; ENTER's level */
    uint64_t imm;     /* immediate, sign-extended */
    uint64_t next_rip; /* masked to the code size */
    uint8_t bytes[16]; /* the instruction itself, len bytes: GATHER, SCATTER and the MASKMOVs decode it again */
};

typedef void (*bt_op_fn)(struct bt_vcpu *c, const struct bt_op *op);

/* X(name, kind). kind: NEXT - falls through to next_rip, the block goes on;
 * END - falls through to next_rip, but the block ends (mode, mappings or
 * interrupt flag may have changed); JUMP - sets c->rip, the block ends. */
#define BT_OPS(X)                                                                                                  \
    /* segments: op->reg is the segment register for MOV; opsize for PUSH/POP */                                    \
    X(mov_sreg_rm, END) /* MOV Sreg, r/m16 */                                                                       \
    X(push_sreg, NEXT) X(pop_sreg, END)                                                                             \
    X(load_far, END) /* LDS LES LSS LFS LGS: op->reg gpr, op->imm2 segment */                                       \
    X(jmp_far_imm, JUMP) X(call_far_imm, JUMP) /* imm offset, imm2 selector */                                      \
    X(jmp_far_mem, JUMP) X(call_far_mem, JUMP) X(ret_far, JUMP) /* imm = bytes to pop */                            \
    X(sldt, NEXT) X(str, NEXT) X(lldt, END) X(ltr, END) X(verr, NEXT) X(verw, NEXT)                                 \
    X(lar, NEXT) X(lsl, NEXT) X(arpl, NEXT)                                                                         \
    X(sgdt, NEXT) X(sidt, NEXT) X(lgdt, END) X(lidt, END) X(smsw, NEXT) X(lmsw, END)                                \
    /* interrupts */                                                                                                \
    X(int_n, JUMP) X(int3, JUMP) X(into, JUMP) X(int1, JUMP) X(iret, JUMP) X(hlt, END) X(ud, JUMP)                  \
    X(nm, JUMP) X(gp0, JUMP) X(bound, NEXT)                                                                         \
    X(cli, END) X(sti, END) X(pushf, NEXT) X(popf, END) X(clts, END)                                                \
    /* system calls */                                                                                              \
    X(syscall, JUMP) X(sysret, JUMP) X(sysenter, JUMP) X(sysexit, JUMP) X(swapgs, END)                              \
    X(rdfsbase, NEXT) X(rdgsbase, NEXT) X(wrfsbase, END) X(wrgsbase, END)                                           \
    /* control registers and the like: op->reg the CR/DR number, op->rm the gpr */                                  \
    X(mov_r_cr, NEXT) X(mov_cr_r, END) X(mov_r_dr, NEXT) X(mov_dr_r, END)                                           \
    X(invlpg, END) X(invpcid, END) X(invd, NEXT) X(wbinvd, NEXT)                                                    \
    X(rdmsr, NEXT) X(wrmsr, END) X(rdpmc, NEXT) X(rdtsc, NEXT) X(rdtscp, NEXT) X(rdpid, NEXT)                       \
    X(cpuid, NEXT) X(xgetbv, NEXT) X(xsetbv, END) X(clac, NEXT) X(stac, NEXT) X(monitor, NEXT) X(mwait, END)        \
    X(vmcall, END)                                                                                                  \
    /* extended state: memory operand, 64-byte alignment rules; guest vector state is live in host registers */     \
    X(fxsave, NEXT) X(fxrstor, NEXT) X(xsave, NEXT) X(xsaveopt, NEXT) X(xsavec, NEXT) X(xsaves, NEXT)               \
    X(xrstor, NEXT) X(xrstors, NEXT) X(fnsave, NEXT) X(frstor, NEXT) X(fnstenv, NEXT) X(fldenv, NEXT)               \
    /* ports: opsize; imm port when op->is_mem == 0 and op->reg == 0, DX when op->reg == 1 */                       \
    X(in, END) X(out, END) X(ins, JUMP) X(outs, JUMP)                                                                 \
    /* strings: op->seg the source segment, op->rep; interruptible: an op that was stopped by c->pending in the     \
     * middle of a REP leaves c->rip at the instruction (so they are JUMP) */                                       \
    X(movs, JUMP) X(stos, JUMP) X(cmps, JUMP) X(scas, JUMP) X(lods, JUMP)                                           \
    /* stack oddities */                                                                                            \
    X(pusha, NEXT) X(popa, NEXT) X(enter, NEXT)                                                                     \
    /* memory forms that need more than one access */                                                               \
    X(maskmovdqu, NEXT) X(maskmovq, NEXT) X(gather, NEXT) X(scatter, NEXT) X(xlat, NEXT)                            \
    X(aaa, NEXT) X(aas, NEXT) X(aam, NEXT) X(aad, NEXT) X(daa, NEXT) X(das, NEXT) X(salc, NEXT)                     \
    X(cmpxchg16b, NEXT) X(movdir64b, NEXT) X(nop, NEXT)                                                             \
    X(debug_stop, JUMP) /* no instruction: a debugger's breakpoint */

enum bt_op_id {
#define X(name, kind) BT_OP_##name,
    BT_OPS(X)
#undef X
        BT_OP_COUNT
};
#define X(name, kind) void bt_op_##name(struct bt_vcpu *c, const struct bt_op *op);
BT_OPS(X)
#undef X

extern const bt_op_fn bt_op_table[BT_OP_COUNT];

/* Register helpers for ops. */
static inline uint64_t bt_reg_get(const struct bt_vcpu *c, unsigned reg, unsigned size, unsigned high8)
{
    if (size == 1 && high8 && reg >= 4 && reg < 8)
        return (c->gpr[reg - 4] >> 8) & 0xff;
    return size == 8 ? c->gpr[reg] : c->gpr[reg] & ((1ull << (size * 8)) - 1);
}
static inline void bt_reg_set(struct bt_vcpu *c, unsigned reg, unsigned size, unsigned high8, uint64_t v)
{
    if (size == 1 && high8 && reg >= 4 && reg < 8)
        c->gpr[reg - 4] = (c->gpr[reg - 4] & ~0xff00ull) | ((v & 0xff) << 8);
    else if (size == 8)
        c->gpr[reg] = v;
    else if (size == 4)
        c->gpr[reg] = (uint32_t)v;
    else if (size == 2)
        c->gpr[reg] = (c->gpr[reg] & ~0xffffull) | (v & 0xffff);
    else
        c->gpr[reg] = (c->gpr[reg] & ~0xffull) | (v & 0xff);
}
#endif
