/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/difftest.h - differential test of the engine against
 * the processor it runs on.
 *
 *   forms.c    enumerates opcode space with Zydis: what an unprivileged program
 *              may execute in 64-bit mode, one form per mnemonic, encoding and
 *              operand kinds; makes random instances of a form
 *   states.c   random registers, flags, vector state and memory for an instance,
 *              such that each memory operand falls at a place of our choosing
 *   driver.S   the loop that loads a state, executes, saves the state
 *   native.c   runs the loop on the host, signals standing in for exceptions
 *   guest.c    runs the same loop as a guest of the engine
 *   program.c  random programs of many instructions, for what one does not show
 *   main.c     batches, comparison, report
 *
 * Every case derives from the seed, the form's name and a counter, so that
 * `--seed S --form NAME` brings back a failure whatever else is run.
 */
#ifndef DIFFTEST_H
#define DIFFTEST_H

#include "layout.h"
#include <Zydis/Zydis.h>
#include <stdbool.h>
#include <stddef.h>

/* Behind an instruction: a jump to driver_save, and one to driver_taken. */
#define PAD_SIZE (mode32 ? 7u : 5u)

/* --- random numbers: splitmix64 ------------------------------------------------- */
struct rng {
    uint64_t s;
};
static inline uint64_t rnd(struct rng *r)
{
    uint64_t z = r->s += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
static inline unsigned rnd_below(struct rng *r, unsigned n) { return (unsigned)((rnd(r) >> 32) * n >> 32); }
static inline bool rnd_one_in(struct rng *r, unsigned n) { return rnd_below(r, n) == 0; }

/* Which code is tested: false 64-bit, true 32-bit (compatibility mode). */
extern bool mode32;

/* --- forms ---------------------------------------------------------------------- */
enum form_encoding { FORM_LEGACY, FORM_VEX, FORM_EVEX };
struct form {
    char name[96];
    uint8_t encoding, map, pp, w, l, bcast, opcode;
    uint8_t has_modrm, mem;
    uint64_t regrm; /* allowed ModRM.reg * 8 + ModRM.rm; for memory forms rm is free and bit reg * 8 counts */
    /* results */
    uint8_t unsupported; /* the host says #UD */
    uint32_t cases, failures, faults;
};
struct instance {
    struct form *form;
    ZydisDecodedInstruction insn;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
    uint64_t ip;
    uint8_t bytes[16];
    uint8_t len;
};
size_t forms_enumerate(struct form **out);
/* A random instance at address ip; false when none could be made. */
bool form_instance(struct form *f, struct rng *r, uint64_t ip, struct instance *out);
/* The same with its memory operand, if any, at [base + disp]. */
bool form_steered(struct form *f, struct rng *r, uint64_t ip, int base, int32_t disp, struct instance *out);
void form_disassemble(const uint8_t *bytes, unsigned len, uint64_t ip, char *buf, size_t n);
void form_format(const struct instance *in, char *buf, size_t n);

/* --- states ----------------------------------------------------------------------- */
struct xsave_layout {
    uint64_t mask;
    uint32_t off[8], size[8], total;
};
extern struct xsave_layout xlayout;
extern bool host_amd; /* the host's processor is AMD's */
void states_init(void);
/* Fill the block for n instances that run one after the other; false when no
 * harmless state was found. */
bool state_random(const struct instance *in, unsigned n, struct rng *r, uint8_t *block);
/* May `in` follow the first n of a sequence? Its addresses must not depend on
 * what they write, nor share registers with theirs. */
bool state_fits(const struct instance *seq, unsigned n, const struct instance *in);
/* May it stand in a program: changes none of the reserved registers (a mask), no
 * memory but through base, no jump? */
bool state_tame(const struct instance *in, uint32_t reserved, int base);
/* Vector state with exceptions masked, memory, registers. */
void state_fill(struct rng *r, uint8_t *block, uint64_t gpr[16]);
/* Where the operand's first byte is under a block's registers. */
bool state_address(const struct instance *in, const ZydisDecodedOperand *o, const uint64_t *gpr, uint64_t *ea);
/* Constant contents of page C. */
void state_page_c(uint8_t page[4096]);

/* --- running a batch ------------------------------------------------------------------ */
/* Each backend has the arena's memory; the caller fills CODE and INS through
 * at(), runs n cases, reads OUTS and the data pages. */
struct backend {
    const char *name;
    int (*init)(struct backend *b);
    void *(*at)(struct backend *b, uint64_t address);
    int (*run)(struct backend *b, unsigned n_cases); /* 0, or -1 with a message printed */
    void (*stats)(struct backend *b);
    void (*fini)(struct backend *b);
};
extern bool guest_direct;
extern const char *guest_warm; /* before init: 64-bit code in a helper process */
extern struct backend native_backend, guest_backend;
void put_jump(uint8_t *p, uint64_t at, uint64_t to); /* to 64-bit code */
uint64_t driver_enter_at(void);
void driver_place(struct backend *b); /* copies driver.S, sets variables common to both */

#endif
