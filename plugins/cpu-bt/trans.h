/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/trans.h - the translator's inside: one struct trans per
 * vCPU, used while a block is made. Files: translate.c (block by block:
 * decoding, liveness, exits), classify.c (which way an instruction goes),
 * gen_flags.c, gen_mem.c (addresses and look-ups), gen_insn.c (control transfers, choice of
 * a generator), gen_encode.c (re-encoded instructions), gen_data.c (stack and
 * moves), gen_string.c (MOVS, STOS, LODS), gen_direct.c (operands without a look-up), gen_op.c (calls of C).
 *
 * Flags while a block is made: `in_reg` says that host RFLAGS hold the guest's
 * arithmetic flags, `in_slot` that c->flags_slot does, `in_fn` that the code at
 * c->flags_fn makes them. Several may be true. Where none is, `again` tells how
 * to make them from registers, or no flag is live.
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
    K_STRING, /* MOVS, STOS, LODS of one element */
    K_REP,    /* MOVS, STOS repeated, in 64-bit code; the rest is K_OP */
    K_PUSHF,  /* likewise */
};
/* SELF: TEST of a register with itself, FN: by c->flags_fn; both only where noted. */
/* How to make the flags of an earlier instruction once more. Host registers;
 * nothing but RFLAGS has changed afterwards. */
enum again_kind { AGAIN_NONE, AGAIN_TEST, AGAIN_CMP, AGAIN_ADD, AGAIN_SUB, AGAIN_NEG, AGAIN_SELF, AGAIN_FN };
struct again {
    uint8_t kind, size, dst, src;
    bool has_imm;
    int32_t imm;
    int32_t bias;  /* the guest's RSP, if it is dst, has moved by this since */
    uint32_t regs; /* guest registers it depends on */
};

/* Accesses off one base register, or to neighbouring constants, share a look-up: gen_group.c. */
struct group {
    int8_t base, index;  /* guest registers; -1: none; base BT_BASE_RIP: constant addresses */
    uint8_t scale, seg;  /* scale as a power of two; BT_FS, BT_GS, or BT_NSEG: none */
    bool open, wr, stack, ready;
    unsigned uses, left;
    unsigned first, at;  /* instruction of the first access; where the look-up is made */
    int64_t bias;        /* while planning: what the base register has moved by */
    int64_t lo, hi;      /* bytes touched, relative to the base as it was at the first access */
};
#define BT_BASE_RIP 16

/* Where a memory operand is, for the host. */
struct host_mem {
    int base, index; /* host registers, -1 none */
    unsigned scale;
    int32_t disp;
    bool gs;     /* with that prefix, */
    bool direct; /* may fault: gen_direct.c. gen_direct_site() goes before the instruction and writes the prefix */
    bool by_rip; /* disp moves with the guest's RIP */
};
static inline bool host_mem_uses(const struct host_mem *m, int h) { return m->base == h || m->index == h; }

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
    uint32_t gpr_wr; /* guest registers it writes */
    bool direct; /* its operands need no look-up */
    uint8_t group, stack_group; /* number + 1 of its memory operand's, its stack access's */
    bool goes_on;    /* a JMP whose target, a CALL whose continuation is the next one in the block */
    bool follow;     /* the same of a JCC's target */
    bool count;      /* it may be followed some day */
    uint8_t branch;  /* its number in the block */
};

enum cold_type { COLD_SLOW, COLD_EXIT, COLD_IRQ, COLD_CAREFUL, COLD_ENTRY, COLD_GUARD, COLD_INLINE };
struct cold {
    uint8_t type;
    uint8_t save_flags; /* they are in RFLAGS */
    uint8_t fn_slot;    /* the slot has them, flags_fn does not say so yet */
    uint16_t off; /* of the instruction in the block */
    struct again again; /* make the flags so and save them, before anything else */
    uint8_t *site;    /* rel32 of the jump here */
    uint32_t rejoin;
    uint32_t desc;
    uint32_t tag_abs; /* undo of the XOR: absolute address, or with r15 as index */
    bool indexed;
    bool stack;
    bool call; /* of an inline cache: rejoin is where it returns to */
    bool far; /* a program's exit to another page: it has a second stub, which uses the jump cache */
    uint32_t exit;
};

/* PUSH m and POP m with checked segments have four cold paths each; the block's end adds its exits. */
#define BT_MAX_COLD (BT_MAX_INSNS * 4 + 16)

struct trans {
    struct bt_vcpu *c;
    struct bt_cache *k;
    struct bt_emit e; /* hot */
    struct bt_relocs relocs;
    ZydisDecoder dec64, dec32, dec16;
    uint32_t mode;
    unsigned cpl3;
    bool code64, code32, careful, plain, flat, direct;
    bool restricted; /* the decoders know the CPU model */
    uint64_t rip, cs_base;
    const uint8_t *host; /* of the first instruction's bytes */
    struct insn insn[BT_MAX_INSNS + 2];
    unsigned n, n_calls, n_branches;
    uint16_t follow; /* for struct bt_block */
    struct cold cold[BT_MAX_COLD];
    unsigned n_cold;
    struct bt_map_entry map[BT_MAX_INSNS + 1 + BT_MAX_COLD];
    unsigned n_map;
    struct bt_block *b;
    bool in_reg, in_slot, in_fn;
    struct again again;
    uint32_t desc_extra; /* BT_DESC_ALIGNED, BT_DESC_SS for the next look-up */
    struct group group[BT_MAX_GROUPS];
    unsigned n_groups;
    uint8_t r15_group; /* r15 holds that group's delta: number + 1 */
    struct host_mem m; /* what the last look-up led to */
    int rsp_bias; /* POP [rsp+x]: added to RSP in addresses */
    struct insn *cur;
    bool odd; /* it ends in what is no instruction, or where a debugger stops */
};

#define ALL_FLAGS BT_ARITH

/* ModRM and what follows for t->m */
static inline void e_mod_host(struct bt_emit *e, unsigned reg, const struct host_mem *m)
{
    if (m->index < 0 && m->base < 0) {
        e_mod_sib(e, reg, -1, -1, 0, m->disp);
        if (m->by_rip)
            e_rip_field(e, (uint64_t)(int64_t)m->disp, 4);
    } else if (m->index < 0)
        e_mod_base(e, reg, (unsigned)m->base, m->disp);
    else
        e_mod_sib(e, reg, m->base, m->index, m->scale, m->disp);
}
/* r15 = bt_jc_index(r14) */
static inline void e_jc_index(struct bt_emit *e, const struct bt_vm *vm)
{
    if (vm->have_bmi2) {
        e_rorx32(e, H_R15, H_R14, BT_JC_SHIFT);
    } else {
        e_mov32_rr(e, H_R15, H_R14);
        e_rex(e, 0, 0, 0, H_R15, false); /* shr r15d */
        e8(e, 0xc1);
        e_mod_rr(e, 5, H_R15);
        e8(e, BT_JC_SHIFT);
    }
    e_rr(e, 0, 0x33, H_R15, H_R14);
    e_alu_ri(e, 0, 4, H_R15, BT_JC_SIZE - 1);
}
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
/* gen_flags.c */
void gen_flags_save(struct trans *t);    /* to the slot; clobbers r15 */
void gen_flags_restore(struct trans *t); /* to RFLAGS; clobbers r15 */
void gen_flags_restore_tmp(struct trans *t); /* the same without r15 */
void gen_flags_before_mem(struct trans *t); /* a look-up is about to clobber RFLAGS */
void gen_flags_clobbered(struct trans *t);
void gen_flags_for(struct trans *t, struct insn *x);  /* into RFLAGS if x or what follows needs them */
void gen_flags_done(struct trans *t, struct insn *x); /* x has written its flags */
void gen_flags_before_write(struct trans *t, struct insn *x); /* x changes registers: may `again` need them? */
void gen_flags_after(struct trans *t, struct insn *x);
void gen_flags_lazy(struct trans *t); /* before an indirect exit: c->flags_fn makes them */
bool gen_flags_are_again(const struct trans *t); /* only `again` can make them */
struct again gen_flags_recipe(const struct trans *t);
void flags_fn_slot(struct bt_emit *e, struct bt_vcpu *c);
void flags_stubs_emit(struct bt_emit *e, struct bt_vcpu *c);
void flags_again(struct bt_emit *e, const struct again *a);
void flags_to_slot(struct bt_emit *e, struct bt_vcpu *c); /* clobbers r15 */
void flags_from_slot(struct bt_emit *e, struct bt_vcpu *c); /* likewise */
/* gen_mem.c */
unsigned gen_seg_number(ZydisRegister r); /* BT_DS for what has no segment */
void gen_offset(struct trans *t, const ZydisDecodedOperand *o, unsigned addr_bits); /* r14 = offset; keeps flags */
/* Look-ups leave the operand's place in t->m: [r14], or with r15 and guest registers; see gen_scratch(). */
void gen_lookup(struct trans *t, const ZydisDecodedOperand *o, unsigned size, bool rd, bool wr);
void gen_lookup_at(struct trans *t, unsigned seg, unsigned size, bool rd, bool wr); /* r14 = offset; t->m is [r14] */
void gen_stack(struct trans *t, int delta, unsigned size, bool wr); /* [SP + delta] */
void gen_stack_at_rbp(struct trans *t, unsigned size);
void gen_mem_in_r14(struct trans *t); /* make t->m [r14], so that r15 is free */
void gen_tlb_index(struct trans *t); /* r15 = offset of r14's entry in the TLB */
unsigned gen_scratch(struct trans *t); /* a host register that t->m does not need */
/* gen_direct.c: kernel-direct operands. False: this one needs a look-up. */
void gen_direct_start(struct trans *t);
bool gen_direct_insn(struct trans *t, const struct insn *x);
bool gen_direct(struct trans *t, const ZydisDecodedOperand *o);
bool gen_direct_at(struct trans *t, unsigned base, int delta);
void gen_direct_site(struct trans *t);
/* gen_group.c */
void group_plan(struct trans *t);
/* false: none; sets t->m */
bool gen_group(struct trans *t, uint8_t number, const ZydisDecodedOperand *o, int stack_delta);
void group_before(struct trans *t, unsigned i); /* look-ups made early, before instruction i */
bool group_live(const struct trans *t); /* does a later access rely on an earlier look-up? */
void gen_sp_add(struct trans *t, int delta);
void gen_commit(struct trans *t); /* after a store, in careful blocks */
void trans_map(struct trans *t, struct bt_map_entry *m, uint32_t host, unsigned off);
struct cold *trans_cold(struct trans *t, unsigned type, uint8_t *site);
/* gen_encode.c */
void gen_generic(struct trans *t, struct insn *x); /* re-encoded */
void gen_vzero(struct trans *t, struct insn *x);
unsigned insn_memory_size(const struct bt_vm *vm, const struct insn *x, const ZydisDecodedOperand *o);
bool insn_is_masked(const ZydisDecodedInstruction *d); /* may elements be left out? */
#define ACT_RD (ZYDIS_OPERAND_ACTION_READ | ZYDIS_OPERAND_ACTION_CONDREAD)
#define ACT_WR (ZYDIS_OPERAND_ACTION_WRITE | ZYDIS_OPERAND_ACTION_CONDWRITE)
/* gen_data.c */
void gen_load_gpr(struct trans *t, unsigned h, unsigned g); /* host register h = guest register g */
void gen_store_gpr(struct trans *t, unsigned g, unsigned h, unsigned size); /* x86 rules for the size; clobbers h */
void gen_load_mem(struct trans *t, unsigned h, unsigned size); /* h = t->m, zero-extended */
void gen_store_mem(struct trans *t, unsigned h, unsigned size);
void gen_store_imm_mem(struct trans *t, uint64_t v, unsigned size); /* may clobber gen_scratch() */
void gen_store_rip_mem(struct trans *t, uint64_t v, unsigned size); /* the same for an address of code */
void gen_push(struct trans *t, struct insn *x);
void gen_pushf(struct trans *t);
void gen_pop(struct trans *t, struct insn *x);
void gen_leave(struct trans *t, struct insn *x);
void gen_lea(struct trans *t, struct insn *x);
void gen_bt(struct trans *t, struct insn *x);
void gen_mov_from_sreg(struct trans *t, struct insn *x);
void gen_moffs(struct trans *t, struct insn *x);
/* gen_string.c */
void gen_string(struct trans *t, struct insn *x); /* of one element */
void gen_rep(struct trans *t, struct insn *x);
/* gen_op.c */
void gen_op(struct trans *t, struct insn *x);
/* gen_insn.c */
void gen_insn(struct trans *t, struct insn *x);
uint64_t insn_target(const struct trans *t, const struct insn *x); /* of a direct jump or call */
bool insn_calls_thunk(const struct trans *t, const struct insn *x); /* a CALL whose RET goes elsewhere */
/* translate.c */
void gen_exit(struct trans *t, uint64_t target); /* direct */
uint32_t trans_exit_plain(struct trans *t); /* to the current instruction, in the plain twin; the caller emits it */
void gen_exit_jcc(struct trans *t, unsigned cc, uint64_t target, const struct insn *counted); /* or NULL */
/* r14 = target, not by an inline cache if it is known to be many. For a CALL, next is where it returns to, else 0;
 * where it goes on, the block's code follows. */
void gen_exit_indirect(struct trans *t, uint64_t next, bool goes_on, bool many);
void gen_exit_call(struct trans *t, uint64_t target, uint64_t next, bool goes_on);
void gen_exit_ret(struct trans *t); /* r14 = target */
static inline uint64_t next_rip(const struct trans *t, const struct insn *x)
{
    uint64_t n = x->rip + x->d.length;
    return t->code64 ? n : (uint32_t)n;
}
#endif
