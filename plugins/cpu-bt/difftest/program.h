/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/program.h - random programs of 4 to 30 instructions
 * and their functions: what one instruction at a time does not show. Flags that
 * are read far from where they were made, several accesses through one base
 * register, faults in the middle, calls and returns of every kind, loops, code
 * that changes itself.
 *
 * Registers have roles, so that a program cannot go astray: bases point to the
 * data pages and only move by small steps; a counter ends loops; the others hold
 * data. The stack is a page pair of its own, of which each slot is known to be
 * data or not. An access that faults names its base register in FIXES: the
 * handler notes the whole state, points the base to a good place, and the
 * program goes on.
 */
#ifndef DIFFTEST_PROGRAM_H
#define DIFFTEST_PROGRAM_H

#include "difftest.h"

#define PROGRAM_MAX_ITEMS 160
#define PROGRAM_MAX_ACCESSES 96
#define PROGRAM_MAX_BYTES 1600

struct program {
    uint64_t start, end; /* of the code */
    unsigned n_bases, n_data, counter;
    uint8_t base[3], data[16];
    unsigned n_access;
    struct { uint8_t base, size; int32_t disp; } access[PROGRAM_MAX_ACCESSES];
    unsigned n_items; /* instructions, for the report; `plain` ones can be left out */
    struct { uint64_t at; uint8_t len, plain; } item[PROGRAM_MAX_ITEMS];
};

/* Writes a program and its FIXES at *at through b, moves *at behind it. */
void program_make(struct program *g, const struct form *forms, size_t n_forms, struct rng *r, uint64_t *at, struct backend *b);
void program_state(const struct program *g, struct rng *r, uint8_t *block);
void program_print(const struct program *g, const uint8_t *code);
#endif
