/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/program_gen.h - what the parts of the program maker
 * share: the program under construction, a small assembler, choices.
 *
 *   program_emit.c    encodes instructions, chooses registers and operands
 *   program_plain.c   units of code: plain instructions
 *   program_flow.c    units: stack, jumps, loops, calls, strings, changes of code
 *   program.c         programs out of units, states to start them in
 */
#ifndef DIFFTEST_PROGRAM_GEN_H
#define DIFFTEST_PROGRAM_GEN_H

#include "program.h"
#include <string.h>

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };
#define NONE (-1)
#define MAX_DEPTH 24 /* of the stack, in slots */
#define MAX_FUNCTIONS 4

/* base NONE: an absolute address, RIP-relative in 64-bit code. */
struct mem {
    int base, index;
    unsigned scale; /* log2 */
    int32_t disp;
    uint64_t address;
};

struct gen {
    struct program *g;
    struct rng *r;
    const struct form *forms;
    size_t n_forms;
    uint8_t *code;  /* host address of `at` */
    uint8_t *fixes;
    uint64_t at, limit;
    int budget;
    unsigned depth, loop_depth, call_depth;
    uint8_t slot[MAX_DEPTH]; /* 1: data, may be overwritten */
    unsigned n_slots;
    struct { uint64_t site; uint8_t depth, skip; } call[MAX_FUNCTIONS * 4]; /* calls without a function yet */
    unsigned n_calls;
    struct { uint64_t site; uint8_t function; } again[16]; /* other calls of the same */
    unsigned n_again, made; /* functions made so far */
    bool counter_busy;
};

static inline unsigned below(struct gen *m, unsigned n) { return rnd_below(m->r, n); }
static inline bool one_in(struct gen *m, unsigned n) { return rnd_below(m->r, n) == 0; }
static inline unsigned word_size(void) { return mode32 ? 4 : 8; }

/* One instruction with a ModRM byte. op: 0x0fxx two bytes. x NULL: register rm. */
struct ins {
    unsigned op, size; /* size 1 clears bit 0 nowhere: the caller gives the opcode */
    int reg, rm;
    const struct mem *x;
    bool byte_reg, byte_rm, lock, far_from_plain;
    unsigned imm_size;
    uint64_t imm;
};

/* program_emit.c */
void put(struct gen *m, unsigned v);
void put32(struct gen *m, uint32_t v);
void put_imm(struct gen *m, uint64_t v, unsigned size);
void patch32(struct gen *m, uint64_t site, uint64_t target);
uint64_t begin(struct gen *m);
void done(struct gen *m, uint64_t start, bool plain);
void emit(struct gen *m, const struct ins *i);
void push_pop(struct gen *m, bool push, int reg, bool plain);
int data_reg(struct gen *m);
int base_reg(struct gen *m);
bool is_data(const struct program *g, int reg);
int source_reg(struct gen *m);
unsigned any_size(struct gen *m);
int dest_reg(struct gen *m, unsigned *size);
int src_reg(struct gen *m, unsigned size);
uint64_t any_imm(struct gen *m);
void note_access(struct gen *m, int b, unsigned size, int32_t disp);
struct mem operand(struct gen *m, int b, unsigned size);
struct mem any_operand(struct gen *m, unsigned size, bool store);

/* program_plain.c */
void units(struct gen *m, unsigned n);
void u_alu(struct gen *m);
void u_mov(struct gen *m);
void u_unary(struct gen *m);
void u_shift(struct gen *m);
void u_mul(struct gen *m);
void u_bits(struct gen *m);
void u_condition(struct gen *m);
void u_flag(struct gen *m);
void u_base(struct gen *m);
void u_cluster(struct gen *m);
void u_form(struct gen *m);

/* program_flow.c */
void one_byte(struct gen *m, unsigned op, bool plain);
void u_stack(struct gen *m);
void u_popf(struct gen *m);
void u_frame(struct gen *m);
void u_jcc(struct gen *m);
void u_indirect(struct gen *m);
void u_loop(struct gen *m);
void u_call(struct gen *m);
void u_odd_call(struct gen *m);
void function(struct gen *m, unsigned k);
void u_string(struct gen *m);
void u_smc(struct gen *m);

/* program.c */
void unit(struct gen *m);
#endif
