/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/system/forms.h - what the makers of instructions share.
 *
 *   encode.c        bytes, prefixes, operands
 *   forms_system.c  segments, tables, control registers, flags, I/O
 *   forms_flow.c    control transfers
 *   forms_data.c    accesses to memory; what is no instruction
 *   forms.c         the table
 */
#ifndef SYSTEM_FORMS_H
#define SYSTEM_FORMS_H

#include "system.h"

/* encode.c */
void e8(struct test *t, unsigned v);
void e16(struct test *t, unsigned v);
void e32(struct test *t, uint32_t v);
void eo(struct test *t, unsigned op);
bool op32(const struct test *t);
unsigned opsize(const struct test *t);
unsigned addr_bits(const struct test *t);
void segment_prefix(struct test *t);
void prefix66(struct test *t);
void prefix67(struct test *t);
void lock(struct test *t, unsigned n);
void prefixes(struct test *t);
void rexw(struct test *t, unsigned n);
uint32_t memory(struct test *t, unsigned reg);
void put(struct test *t, uint32_t off, const void *p, unsigned n);
void reg_reg(struct test *t, unsigned reg, unsigned rm);
unsigned any_reg(struct test *t);
void set(unsigned reg, uint64_t v);
void rm_value(struct test *t, unsigned reg, unsigned v);
void no_trap(struct test *t);
void small_sp(struct test *t);

/* forms_system.c */
void f_mov_sreg(struct test *t);
void f_sreg_use(struct test *t);
void f_mov_from_sreg(struct test *t);
void f_push_sreg(struct test *t);
void f_pop_sreg(struct test *t);
void f_load_far(struct test *t);
void f_descriptor_ops(struct test *t);
void f_lar_lsl(struct test *t);
void f_arpl(struct test *t);
void f_store_table(struct test *t);
void f_load_table(struct test *t);
void f_lmsw(struct test *t);
void f_mov_from_cr(struct test *t);
void f_mov_to_cr(struct test *t);
void f_mov_dr(struct test *t);
void f_clts_etc(struct test *t);
void f_invlpg(struct test *t);
void f_msr(struct test *t);
void f_fsgsbase(struct test *t);
void f_swapgs(struct test *t);
void f_flags(struct test *t);
void f_in_out(struct test *t);
void f_ins_outs(struct test *t);

/* forms_flow.c */
void f_far_direct(struct test *t);
void f_far_memory(struct test *t);
void f_ret_far(struct test *t);
void f_iret(struct test *t);
void f_int(struct test *t);
void f_bound(struct test *t);
void f_task(struct test *t);
void f_syscall(struct test *t);
void f_near_odd(struct test *t);
void f_loop(struct test *t);

/* forms_data.c */
void f_mov(struct test *t);
void f_moffs(struct test *t);
void f_alu(struct test *t);
void f_locked(struct test *t);
void f_bt_string(struct test *t);
void f_cmpxchg8b(struct test *t);
void f_string(struct test *t);
void f_xlat(struct test *t);
void f_push_pop(struct test *t);
void f_frame(struct test *t);
void f_adjust(struct test *t);
void f_mul_div(struct test *t);
void f_shift(struct test *t);
void f_undefined(struct test *t);
void f_too_long(struct test *t);
void f_mov_ss_shadow(struct test *t);
#endif
