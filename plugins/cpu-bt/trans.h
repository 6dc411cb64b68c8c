/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/trans.h - the translator's inside: one struct trans per
 * vCPU, used while a block is made. Files: translate.c (block by block:
 * decoding, liveness, exits), classify.c (which way an instruction goes),
 * gen_mem.c (addresses and look-ups), gen_insn.c (control transfers, choice of
 * a generator), gen_encode.c (re-encoded instructions), gen_data.c (stack and
 * moves), gen_op.c (calls of C).
 *
 * Flags while a block is made: `in_reg` says that host RFLAGS hold the guest's
 * arithmetic flags, `in_slot` that c->flags_slot does. Both may be true; both
 * are false where no flag is live.
 */
#ifndef BT_TRANS_H
#define BT_TRANS_H

#include "cache.h"
#include "emit.h"
#include "op.h"
#include "phys.h"
#include <Zydis/Zydis.h>

enum insn_kind {
    K_GENERIC, K_NOP, K_OP, K_JCC, K_JMP, K_CALL, K_RET, K_JMP_IND, K_CALL_IND, K_LOOP, K_PUSH, K_POP, K_LEAVE, K_LEA,
    K_STI, K_CLI, K_STD, K_CLD, K_BT, K_MOV_FROM_SREG, K_MOFFS, K_RDTSC, K_SWAPGS,
};
#define KIND_NEXT 0
#define KIND_END 1
#define KIND_JUMP 2

struct insn {
    ZydisDecodedInstruction d;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
    uint64_t rip;
    uint8_t bytes[16];
    uint8_t kind;    /* enum insn_kind */
    uint8_t op_kind; /* KIND_* */
    uint16_t op_id;
    uint32_t f_read, f_write, f_kill; /* arithmetic flags */
    uint32_t live_after;
};

enum cold_type { COLD_SLOW, COLD_EXIT, COLD_IRQ, COLD_CAREFUL };
struct cold {
    uint8_t type;
    uint8_t save_flags;
    uint16_t off; /* of the instruction in the block */
    uint8_t *site;    /* rel32 of the jump here */
    uint32_t rejoin;
    uint32_t desc;
    uint32_t tag_abs; /* undo of the XOR: absolute address, or with r15 as index */
    bool indexed;
    bool stack;
    uint32_t exit;
};

/* PUSH m and POP m with checked segments have four cold paths each; the block's end adds its exits. */
#define BT_MAX_COLD (BT_MAX_INSNS * 4 + 8)

struct trans {
    struct bt_vcpu *c;
    struct bt_cache *k;
    struct bt_emit e; /* hot */
    ZydisDecoder dec64, dec32, dec16;
    uint32_t mode;
    unsigned cpl3;
    bool code64, code32, careful, flat;
    bool restricted; /* the decoders know the CPU model */
    uint64_t rip, cs_base;
    struct insn insn[BT_MAX_INSNS + 2];
    unsigned n;
    struct cold cold[BT_MAX_COLD];
    unsigned n_cold;
    struct bt_map_entry map[BT_MAX_INSNS + 1 + BT_MAX_COLD];
    unsigned n_map;
    struct bt_block *b;
    bool in_reg, in_slot;
    uint32_t desc_extra; /* BT_DESC_ALIGNED, BT_DESC_SS for the next look-up */
    int rsp_bias; /* POP [rsp+x]: added to RSP in addresses */
    struct insn *cur;
};

#define ALL_FLAGS BT_ARITH

/* guest register -> host register, -1 when it lives in memory */
static inline int host_reg(unsigned g) { return g == 4 ? H_R13 : g < 13 ? (int)g : -1; }
static inline uint32_t live_before(const struct insn *x) { return x->f_read | (x->live_after & ~x->f_kill); }
/* register operand -> guest number; *high8 for AH CH DH BH */
static inline unsigned reg_number(ZydisRegister r, bool *high8)
{
    unsigned id = (unsigned)ZydisRegisterGetId(r);
    *high8 = false;
    if (ZydisRegisterGetClass(r) != ZYDIS_REGCLASS_GPR8)
        return id;
    if (id < 4)
        return id;
    if (id < 8) {
        *high8 = true;
        return id;
    }
    return id - 4;
}
static inline bool is_gpr(ZydisRegister r)
{
    ZydisRegisterClass k = ZydisRegisterGetClass(r);
    return k >= ZYDIS_REGCLASS_GPR8 && k <= ZYDIS_REGCLASS_GPR64;
}

/* classify.c */
void trans_classify(struct trans *t, struct insn *x);
/* isa.c */
bool trans_isa_hidden(const struct trans *t, const struct insn *x);
void trans_isa_decoder(const struct bt_vm *vm, ZydisDecoder *d);
/* gen_mem.c */
void gen_flags_save(struct trans *t);    /* to the slot if they are only in RFLAGS; clobbers r15 */
void gen_flags_restore(struct trans *t); /* to RFLAGS; clobbers r15 */
void gen_flags_restore_tmp(struct trans *t); /* the same without r15 */
void gen_offset(struct trans *t, const ZydisDecodedOperand *o, unsigned addr_bits); /* r14 = offset; keeps flags */
void gen_lookup(struct trans *t, const ZydisDecodedOperand *o, unsigned size, bool rd, bool wr); /* r14 = hva */
void gen_lookup_at(struct trans *t, unsigned seg, unsigned size, bool rd, bool wr); /* r14 = offset -> hva */
void gen_stack(struct trans *t, int delta, unsigned size, bool wr); /* r14 = hva of [SP + delta] */
void gen_stack_at_rbp(struct trans *t, unsigned size);
void gen_sp_add(struct trans *t, int delta);
void gen_commit(struct trans *t); /* after a store, in careful blocks */
void gen_flags_before_mem(struct trans *t);
void trans_map(struct trans *t, struct bt_map_entry *m, uint32_t host, unsigned off);
struct cold *trans_cold(struct trans *t, unsigned type, uint8_t *site);
/* gen_encode.c */
void gen_generic(struct trans *t, struct insn *x); /* re-encoded */
void gen_vzero(struct trans *t, struct insn *x);
void gen_flags_for(struct trans *t, struct insn *x);  /* into RFLAGS if x or what follows needs them */
void gen_flags_done(struct trans *t, struct insn *x); /* x has written its flags */
/* gen_data.c */
void gen_load_gpr(struct trans *t, unsigned h, unsigned g); /* host register h = guest register g */
void gen_store_gpr(struct trans *t, unsigned g, unsigned h, unsigned size); /* x86 rules for the size; clobbers h */
void gen_load_at_r14(struct trans *t, unsigned h, unsigned size); /* h = [r14], zero-extended */
void gen_store_at_r14(struct trans *t, unsigned h, unsigned size);
void gen_store_imm_at_r14(struct trans *t, uint64_t v, unsigned size); /* clobbers r15 */
void gen_push(struct trans *t, struct insn *x);
void gen_pop(struct trans *t, struct insn *x);
void gen_leave(struct trans *t, struct insn *x);
void gen_lea(struct trans *t, struct insn *x);
void gen_bt(struct trans *t, struct insn *x);
void gen_mov_from_sreg(struct trans *t, struct insn *x);
void gen_moffs(struct trans *t, struct insn *x);
/* gen_op.c */
void gen_op(struct trans *t, struct insn *x);
/* gen_insn.c */
void gen_insn(struct trans *t, struct insn *x);
/* translate.c */
void gen_exit(struct trans *t, uint64_t target); /* direct */
uint8_t *gen_exit_jcc(struct trans *t, unsigned cc, uint64_t target);
void gen_exit_indirect(struct trans *t); /* r14 = target */
static inline uint64_t next_rip(const struct trans *t, const struct insn *x)
{
    uint64_t n = x->rip + x->d.length;
    return t->code64 ? n : (uint32_t)n;
}
#endif
