/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/program.c - makes random programs (program.h): an
 * assembler of a few lines, units of code that keep the roles of registers and
 * the stack's layout, and states to start them in.
 */
#include "program.h"
#include <stdio.h>
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

static unsigned below(struct gen *m, unsigned n) { return rnd_below(m->r, n); }
static bool one_in(struct gen *m, unsigned n) { return rnd_below(m->r, n) == 0; }
static unsigned word_size(void) { return mode32 ? 4 : 8; }

/* --- assembling ------------------------------------------------------------------------ */

static void put(struct gen *m, unsigned v)
{
    *m->code++ = (uint8_t)v;
    m->at++;
}
static void put32(struct gen *m, uint32_t v)
{
    for (unsigned i = 0; i < 4; i++)
        put(m, v >> i * 8);
}
static void put_imm(struct gen *m, uint64_t v, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        put(m, (unsigned)(v >> i * 8));
}
static void patch32(struct gen *m, uint64_t site, uint64_t target)
{
    uint32_t rel = (uint32_t)(target - site - 4);
    memcpy(m->code - (m->at - site), &rel, 4);
}

static uint64_t begin(struct gen *m) { return m->at; }
static void done(struct gen *m, uint64_t start, bool plain)
{
    struct program *g = m->g;
    m->budget--;
    if (g->n_items < PROGRAM_MAX_ITEMS) {
        g->item[g->n_items].at = start;
        g->item[g->n_items].len = (uint8_t)(m->at - start);
        g->item[g->n_items++].plain = plain;
    }
}

static void modrm_mem(struct gen *m, unsigned reg, const struct mem *x, unsigned imm_size)
{
    reg = (reg & 7) << 3;
    if (x->base == NONE) {
        put(m, reg | 5);
        put32(m, (uint32_t)(mode32 ? x->address : x->address - (m->at + 4 + imm_size)));
        return;
    }
    bool sib = x->index != NONE || (x->base & 7) == 4;
    bool disp8 = x->disp == (int8_t)x->disp;
    bool none = !x->disp && (x->base & 7) != 5 && one_in(m, 2);
    put(m, (none ? 0 : disp8 ? 0x40 : 0x80) | reg | (sib ? 4u : (unsigned)x->base & 7));
    if (sib)
        put(m, x->scale << 6 | ((x->index == NONE ? 4u : (unsigned)x->index & 7) << 3) | ((unsigned)x->base & 7));
    if (disp8 && !none)
        put(m, (unsigned)x->disp);
    else if (!none)
        put32(m, (uint32_t)x->disp);
}

/* One instruction with a ModRM byte. op: 0x0fxx two bytes. x NULL: register rm. */
struct ins {
    unsigned op, size; /* size 1 clears bit 0 nowhere: the caller gives the opcode */
    int reg, rm;
    const struct mem *x;
    bool byte_reg, byte_rm, lock, far_from_plain;
    unsigned imm_size;
    uint64_t imm;
};

static void emit(struct gen *m, const struct ins *i)
{
    uint64_t start = begin(m);
    unsigned rex = 0;
    bool force = !mode32 && ((i->byte_reg && i->reg >= 4) || (i->byte_rm && !i->x && i->rm >= 4));
    if (i->lock)
        put(m, 0xf0);
    if (i->size == 2)
        put(m, 0x66);
    if (!mode32) {
        rex |= i->size == 8 ? 8 : 0;
        rex |= i->reg >= 8 ? 4 : 0;
        if (i->x)
            rex |= (i->x->index >= 8 ? 2 : 0) | (i->x->base >= 8 ? 1 : 0);
        else
            rex |= i->rm >= 8 ? 1 : 0;
        if (rex || force)
            put(m, 0x40 | rex);
    }
    if (i->op >> 8)
        put(m, i->op >> 8);
    put(m, i->op & 0xff);
    if (i->x)
        modrm_mem(m, (unsigned)i->reg, i->x, i->imm_size);
    else
        put(m, 0xc0 | ((unsigned)i->reg & 7) << 3 | ((unsigned)i->rm & 7));
    put_imm(m, i->imm, i->imm_size);
    if (i->x && i->x->base != NONE && i->x->base != RSP)
        m->fixes[start - CODE] = (uint8_t)(1 + i->x->base);
    done(m, start, !i->far_from_plain);
}

static void push_pop(struct gen *m, bool push, int reg, bool plain)
{
    uint64_t start = begin(m);
    if (reg >= 8)
        put(m, 0x41);
    put(m, (push ? 0x50u : 0x58u) | ((unsigned)reg & 7));
    done(m, start, plain);
}

/* --- choosing ---------------------------------------------------------------------------- */

static int data_reg(struct gen *m) { return m->g->data[below(m, m->g->n_data)]; }
static int base_reg(struct gen *m) { return m->g->base[below(m, m->g->n_bases)]; }
static bool is_data(const struct program *g, int reg)
{
    for (unsigned i = 0; i < g->n_data; i++)
        if (g->data[i] == reg)
            return true;
    return false;
}
/* A register to read: any but the stack pointer. */
static int source_reg(struct gen *m)
{
    int n;
    do
        n = (int)below(m, mode32 ? 8 : 16);
    while (n == RSP);
    return n;
}
static unsigned any_size(struct gen *m)
{
    static const uint8_t sizes[] = {1, 2, 4, 4, 4, 8, 8, 8};
    unsigned s = sizes[below(m, 8)];
    return s == 8 ? word_size() : s;
}
/* For a byte register to write; in 32-bit code 4..7 are AH..BH. Changes *size when there is none. */
static int dest_reg(struct gen *m, unsigned *size)
{
    int n = data_reg(m);
    if (*size == 1 && mode32) {
        for (unsigned i = 0; i < 8 && n >= 4; i++)
            n = data_reg(m);
        if (n >= 4)
            *size = 4;
        else if (one_in(m, 3))
            n += 4;
    }
    return n;
}
static int src_reg(struct gen *m, unsigned size) { return size == 1 && mode32 ? (int)below(m, 8) : source_reg(m); }
/* Without a REX prefix 4..7 are AH..BH in 64-bit code too; emit() forces one. */

static uint64_t any_imm(struct gen *m)
{
    static const uint32_t odd[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0x7fffffff, 0x80000000, 0xffffffff};
    return one_in(m, 2) ? odd[below(m, 10)] : (uint64_t)rnd(m->r);
}

static void note_access(struct gen *m, int b, unsigned size, int32_t disp)
{
    struct program *g = m->g;
    if (g->n_access == PROGRAM_MAX_ACCESSES)
        return;
    g->access[g->n_access].base = (uint8_t)b;
    g->access[g->n_access].size = (uint8_t)size;
    g->access[g->n_access++].disp = disp;
}

/* A memory operand of ours; through base b unless NONE. */
static struct mem operand(struct gen *m, int b, unsigned size)
{
    static const int16_t disps[] = {0, 1, 2, 3, 4, 7, 8, 12, 16, 24, 32, 40, 64, 100, 127, 128, -1, -2, -4, -8, -16, -32, -64, -128};
    struct mem x = {.base = b, .index = NONE};
    if (b == NONE) {
        x.address = PAGE_B + below(m, 200) - (one_in(m, 3) ? 100 : 0);
        return x;
    }
    x.disp = disps[below(m, 24)];
    if (one_in(m, 12))
        x.disp += one_in(m, 2) ? 4096 : -4096;
    note_access(m, b, size, x.disp);
    return x;
}

static struct mem stack_operand(struct gen *m, bool store)
{
    struct mem x = {.base = RSP, .index = NONE};
    unsigned k = m->n_slots ? below(m, m->n_slots) : 0;
    int slot = (int)word_size();
    if (!m->n_slots || (store && !m->slot[m->n_slots - 1 - k]))
        x.disp = -(int)below(m, 96) - slot; /* below the stack pointer */
    else
        x.disp = (int)k * slot;
    return x;
}

/* Any operand for an access of `size` bytes. */
static struct mem any_operand(struct gen *m, unsigned size, bool store)
{
    unsigned k = below(m, 12);
    if (k == 0)
        return operand(m, NONE, size);
    if (k <= 2 && size <= word_size())
        return stack_operand(m, store);
    struct mem x = operand(m, base_reg(m), size);
    if (k == 3) { /* an index, made small first */
        int n = data_reg(m);
        struct ins i = {.op = 0x83, .size = 4, .reg = 4, .rm = n, .imm_size = 1, .imm = below(m, 64), .far_from_plain = true};
        emit(m, &i);
        x.index = n;
        x.scale = below(m, 4);
        x.disp = (int8_t)(x.disp / 2);
    }
    return x;
}

/* --- units: plain instructions ---------------------------------------------------------------- */

static void unit(struct gen *m);
static void units(struct gen *m, unsigned n)
{
    m->depth++;
    while (n-- && m->budget > 0 && m->at < m->limit)
        unit(m);
    m->depth--;
}

static void u_alu(struct gen *m)
{
    unsigned size = any_size(m), op = below(m, 8) * 8, kind = below(m, 6);
    struct ins i = {.size = size};
    struct mem x;
    i.reg = dest_reg(m, &size);
    i.size = size;
    i.byte_reg = i.byte_rm = size == 1;
    unsigned wide = size != 1;
    if (kind <= 1) { /* reg, reg */
        i.op = op | wide | 2;
        i.rm = src_reg(m, size);
    } else if (kind == 2) { /* reg, imm */
        i.op = size == 1 ? 0x80 : one_in(m, 2) ? 0x83 : 0x81;
        i.imm_size = i.op == 0x81 ? (size == 2 ? 2 : 4) : 1;
        i.imm = any_imm(m);
        i.rm = i.reg;
        i.reg = (int)(op >> 3);
        i.byte_reg = false;
    } else if (kind == 3) { /* reg, mem */
        x = any_operand(m, size, false);
        i.op = op | wide | 2;
        i.x = &x;
    } else if (kind == 4) { /* mem, reg */
        x = any_operand(m, size, true);
        i.op = op | wide;
        i.reg = src_reg(m, size);
        i.x = &x;
        i.lock = one_in(m, 8) && op != 0x38;
    } else {
        x = any_operand(m, size, true);
        i.op = size == 1 ? 0x80 : one_in(m, 2) ? 0x83 : 0x81;
        i.imm_size = i.op == 0x81 ? (size == 2 ? 2 : 4) : 1;
        i.imm = any_imm(m);
        i.reg = (int)(op >> 3);
        i.byte_reg = false;
        i.x = &x;
    }
    emit(m, &i);
}

static void u_mov(struct gen *m)
{
    unsigned size = any_size(m), kind = below(m, 8);
    struct mem x;
    struct ins i = {.reg = dest_reg(m, &size)};
    i.size = size;
    i.byte_reg = size == 1;
    switch (kind) {
    case 0: case 1: case 2: /* load */
        x = any_operand(m, size, false);
        i.op = size == 1 ? 0x8a : 0x8b;
        i.x = &x;
        break;
    case 3: case 4: /* store */
        x = any_operand(m, size, true);
        i.op = size == 1 ? 0x88 : 0x89;
        i.reg = src_reg(m, size);
        i.x = &x;
        break;
    case 5: /* store immediate */
        x = any_operand(m, size, true);
        i = (struct ins){.op = size == 1 ? 0xc6 : 0xc7, .size = size, .x = &x, .imm_size = size == 8 ? 4 : size, .imm = any_imm(m)};
        break;
    case 6: /* movzx, movsx */
        x = any_operand(m, 2, false);
        i.op = 0x0fb6 | below(m, 2) << 3 | below(m, 2);
        i.size = size = size == 1 ? 4 : size;
        i.reg = data_reg(m);
        i.byte_reg = false;
        i.x = &x;
        break;
    default: /* xchg, xadd, cmpxchg */
        x = any_operand(m, size, true);
        i.op = (one_in(m, 3) ? 0x86 : one_in(m, 2) ? 0x0fc0 : 0x0fb0) | (size != 1);
        if (i.op >> 4 == 0xfb && !is_data(m->g, RAX))
            i.op = 0x0fc0 | (size != 1);
        i.lock = one_in(m, 2);
        i.x = &x;
        break;
    }
    emit(m, &i);
}

static void u_unary(struct gen *m)
{
    unsigned size = any_size(m);
    struct mem x;
    struct ins i = {.rm = dest_reg(m, &size)};
    unsigned which = below(m, 4); /* inc dec not neg */
    i.size = size;
    i.byte_rm = size == 1;
    i.op = (which < 2 ? 0xfe : 0xf6) | (size != 1);
    i.reg = (int)which;
    if (one_in(m, 2)) {
        x = any_operand(m, size, true);
        i.x = &x;
        i.lock = one_in(m, 10);
    }
    emit(m, &i);
}

static void u_shift(struct gen *m)
{
    unsigned size = any_size(m), kind = below(m, 4);
    struct mem x;
    struct ins i = {.rm = dest_reg(m, &size)};
    i.size = size;
    i.byte_rm = size == 1;
    if (kind == 3 && size > 1) { /* shld, shrd */
        i.op = (one_in(m, 2) ? 0x0fa4 : 0x0fac) | below(m, 2);
        i.reg = source_reg(m);
        i.imm_size = !(i.op & 1);
        i.imm = size == 2 ? below(m, 16) : rnd(m->r);
        if ((i.op & 1) && size == 2)
            i.size = size = 4; /* more than 16 of 16 bits: undefined */
    } else {
        static const uint8_t group[] = {0, 1, 2, 3, 4, 5, 7};
        i.op = (kind == 0 ? 0xc0 : kind == 1 ? 0xd0 : 0xd2) | (size != 1);
        i.reg = group[below(m, 7)];
        i.imm_size = kind == 0;
        i.imm = one_in(m, 4) ? 0 : rnd(m->r);
    }
    if (one_in(m, 3)) {
        x = any_operand(m, size, true);
        i.x = &x;
    }
    emit(m, &i);
}

static void u_mul(struct gen *m)
{
    struct mem x;
    struct ins i = {.op = 0x0faf, .size = word_size(), .reg = data_reg(m), .rm = source_reg(m)};
    if (one_in(m, 2) && is_data(m->g, RAX) && is_data(m->g, RDX)) {
        i.op = 0xf7;
        i.reg = (int)(4 + below(m, one_in(m, 6) ? 4 : 2)); /* division faults most of the time */
    }
    if (one_in(m, 3)) {
        x = any_operand(m, i.size, false);
        i.x = &x;
    }
    emit(m, &i);
}

static void u_bits(struct gen *m)
{
    struct mem x;
    struct ins i = {.size = one_in(m, 2) ? 4 : word_size(), .rm = data_reg(m)};
    if (one_in(m, 2)) {
        i.op = 0x0fba;
        i.reg = (int)(4 + below(m, 4));
        i.imm_size = 1;
        i.imm = rnd(m->r);
        if (one_in(m, 2)) {
            x = any_operand(m, i.size, true);
            i.x = &x;
        }
    } else { /* a bit string */
        struct ins a = {.op = 0x81, .size = i.size, .reg = 4, .rm = i.rm, .imm_size = 4, .imm = 0x3ff, .far_from_plain = true};
        emit(m, &a);
        i.op = 0x0fa3 | below(m, 4) << 3;
        i.reg = i.rm;
        x = operand(m, base_reg(m), 8);
        i.x = &x;
        i.lock = i.op != 0x0fa3 && one_in(m, 8);
    }
    emit(m, &i);
}

/* Readers of flags. */
static void u_condition(struct gen *m)
{
    unsigned cc = below(m, 16), size = 1;
    struct mem x;
    struct ins i = {.op = 0x0f90 | cc, .size = 1};
    if (one_in(m, 2)) {
        i.rm = dest_reg(m, &size);
        i.byte_rm = true;
        if (size != 1) {
            i.op = 0x0f40 | cc;
            i.size = 4;
            i.reg = i.rm;
            i.rm = source_reg(m);
            i.byte_rm = false;
        } else if (one_in(m, 2)) {
            x = any_operand(m, 1, true);
            i.x = &x;
        }
    } else {
        i.op = 0x0f40 | cc;
        i.size = one_in(m, 2) ? 4 : word_size();
        i.reg = data_reg(m);
        i.rm = source_reg(m);
        if (one_in(m, 3)) {
            x = any_operand(m, i.size, false);
            i.x = &x;
        }
    }
    emit(m, &i);
}

static void u_flag(struct gen *m)
{
    static const uint8_t ops[] = {0xf5, 0xf8, 0xf9, 0x9e, 0x9f, 0xfc, 0xfd};
    unsigned op = ops[below(m, 7)];
    uint64_t start = begin(m);
    if (op == 0x9f && !is_data(m->g, RAX))
        op = 0xf5;
    if (op >= 0xfc && one_in(m, 2))
        op = 0xf8;
    put(m, op);
    done(m, start, true);
}

/* Moves a base by a little, or another one onto it. */
static void u_base(struct gen *m)
{
    int b = base_reg(m);
    int step = (int)below(m, m->loop_depth ? 16 : 96) - (m->loop_depth ? 8 : 48);
    struct ins i = {.size = word_size(), .rm = b, .reg = b};
    struct mem x = {.base = b, .index = NONE, .disp = step};
    switch (below(m, 5)) {
    case 0: i.op = 0x83, i.reg = 0, i.imm_size = 1, i.imm = (uint64_t)step; break;
    case 1: i.op = 0x83, i.reg = 5, i.imm_size = 1, i.imm = (uint64_t)step; break;
    case 2: i.op = 0xff, i.reg = (int)below(m, 2); break;
    case 3: i.op = 0x8b, i.rm = base_reg(m); break;
    default:
        i.op = 0x8d;
        x.base = base_reg(m);
        i.x = &x;
        i.far_from_plain = true;
        break;
    }
    emit(m, &i);
}

/* Several accesses through one base, a change of it in between now and then. */
static void u_cluster(struct gen *m)
{
    int b = base_reg(m);
    unsigned n = 2 + below(m, 6);
    while (n-- && m->at < m->limit) {
        unsigned size = one_in(m, 6) ? 1 : one_in(m, 6) ? 2 : one_in(m, 3) ? 4 : word_size();
        struct mem x = operand(m, b, size);
        struct ins i = {.x = &x, .reg = dest_reg(m, &size)};
        static const uint16_t ops[] = {0x8b, 0x8b, 0x89, 0x89, 0x03, 0x01, 0x33, 0x39, 0x3b, 0x29};
        i.op = ops[below(m, 10)];
        i.size = size;
        i.byte_reg = size == 1;
        if (size == 1)
            i.op &= 0xfe;
        emit(m, &i);
        if (one_in(m, 6)) {
            struct ins a = {.op = 0x83, .size = word_size(), .reg = below(m, 2) ? 5 : 0, .rm = b, .imm_size = 1, .imm = below(m, 17)};
            emit(m, &a);
        }
        if (one_in(m, 5))
            u_condition(m);
        if (one_in(m, 8)) { /* base changed by its own load's neighbour: xchg with another base */
            struct ins a = {.op = 0x87, .size = word_size(), .reg = b, .rm = base_reg(m)};
            emit(m, &a);
        }
    }
}

/* --- units: stack ---------------------------------------------------------------------------- */

static bool grow(struct gen *m, unsigned data)
{
    if (m->n_slots >= MAX_DEPTH)
        return false;
    m->slot[m->n_slots++] = (uint8_t)data;
    return true;
}
static void shrink(struct gen *m, unsigned n) { m->n_slots -= n; }

static void flags_onto_stack(struct gen *m)
{
    uint64_t start = begin(m);
    uint32_t f = 0x202 | ((uint32_t)rnd(m->r) & 0x8d5) | (one_in(m, 6) ? 0x400 : 0) | (one_in(m, 30) ? 0x100 : 0);
    put(m, 0x68);
    put32(m, f);
    done(m, start, false);
}

static void one_byte(struct gen *m, unsigned op, bool plain)
{
    uint64_t start = begin(m);
    put(m, op);
    done(m, start, plain);
}

static void u_stack(struct gen *m)
{
    unsigned kind = below(m, 8);
    struct mem x;
    uint64_t start;
    if (!grow(m, kind != 1))
        return;
    switch (kind) {
    case 0: case 2: case 3: push_pop(m, true, source_reg(m), false); break;
    case 1: /* save a base, move it, restore it */ {
        int b = base_reg(m);
        push_pop(m, true, b, false);
        units(m, 1 + below(m, 3));
        shrink(m, 1);
        push_pop(m, false, b, false);
        return;
    }
    case 4: /* an immediate */
        start = begin(m);
        put(m, 0x68);
        put32(m, (uint32_t)any_imm(m));
        done(m, start, false);
        break;
    case 5: { /* memory */
        x = operand(m, base_reg(m), word_size());
        struct ins i = {.op = 0xff, .size = 4, .reg = 6, .x = &x, .far_from_plain = true};
        emit(m, &i);
        break;
    }
    case 6: one_byte(m, 0x9c, false); break;                         /* pushf */
    default:
        push_pop(m, true, RSP, false);
        break;
    }
    if (one_in(m, 2))
        units(m, 1 + below(m, 3));
    shrink(m, 1);
    switch (below(m, 6)) {
    case 0: { /* to memory */
        x = operand(m, base_reg(m), word_size());
        struct ins i = {.op = 0x8f, .size = 4, .x = &x, .far_from_plain = true};
        emit(m, &i);
        break;
    }
    case 1: { /* add rsp, 8 or lea */
        struct mem s = {.base = RSP, .index = NONE, .disp = (int)word_size()};
        struct ins a = {.op = 0x83, .size = word_size(), .rm = RSP, .imm_size = 1, .imm = word_size(), .far_from_plain = true};
        struct ins l = {.op = 0x8d, .size = word_size(), .reg = RSP, .x = &s, .far_from_plain = true};
        emit(m, one_in(m, 2) ? &a : &l);
        break;
    }
    default: push_pop(m, false, data_reg(m), false); break;
    }
}

static void u_popf(struct gen *m)
{
    if (!grow(m, 0))
        return;
    flags_onto_stack(m);
    shrink(m, 1);
    one_byte(m, 0x9d, false);
}

/* enter or push rbp; mov rbp, rsp - leave */
static void u_frame(struct gen *m)
{
    if (!is_data(m->g, RBP) || !grow(m, 0))
        return u_stack(m);
    unsigned locals = below(m, 3) * word_size();
    uint64_t start = begin(m);
    if (one_in(m, 2)) {
        put(m, 0xc8);
        put_imm(m, locals, 3);
        done(m, start, false);
    } else {
        struct ins i = {.op = 0x8b, .size = word_size(), .reg = RBP, .rm = RSP, .far_from_plain = true};
        struct ins s = {.op = 0x83, .size = word_size(), .reg = 5, .rm = RSP, .imm_size = 1, .imm = locals, .far_from_plain = true};
        push_pop(m, true, RBP, false);
        emit(m, &i);
        emit(m, &s);
    }
    for (unsigned n = 1 + below(m, 3); n--;) { /* locals, while RBP is the frame */
        struct mem x = {.base = RBP, .index = NONE, .disp = -(int)(below(m, 6) * word_size())};
        int reg = data_reg(m);
        struct ins i = {.op = x.disp && one_in(m, 2) ? 0x89 : 0x8b, .size = word_size(), .reg = reg == RBP ? RCX : reg, .x = &x};
        if (i.reg == RCX && i.op == 0x8b && !is_data(m->g, RCX))
            i.op = 0x3b;
        emit(m, &i);
        m->fixes[m->g->item[m->g->n_items - 1].at - CODE] = 0; /* never RBP */
    }
    one_byte(m, 0xc9, false);
    shrink(m, 1);
}

/* --- units: control ----------------------------------------------------------------------------- */

static void short_jump_over(struct gen *m, unsigned opcode, unsigned n)
{
    uint64_t start = begin(m);
    bool near = one_in(m, 3) && (opcode & 0xf0) == 0x70;
    if (near) {
        put(m, 0x0f);
        put(m, opcode + 0x10);
        put32(m, 0);
    } else if (opcode == 0xeb && one_in(m, 2)) {
        put(m, 0xe9);
        put32(m, 0);
        near = true;
    } else {
        put(m, opcode);
        put(m, 0);
    }
    done(m, start, false);
    uint64_t from = m->at;
    units(m, n);
    if (near)
        patch32(m, from - 4, m->at);
    else if (m->at - from < 128)
        m->code[-(int)(m->at - from) - 1] = (uint8_t)(m->at - from);
}

static void u_jcc(struct gen *m)
{
    static const uint8_t other[] = {0xeb, 0xe3};
    unsigned op = one_in(m, 8) ? other[below(m, 2)] : 0x70 | below(m, 16);
    short_jump_over(m, op, 1 + below(m, 3));
}

static void mov_label(struct gen *m, int reg, uint64_t *site)
{
    uint64_t start = begin(m);
    if (mode32) {
        put(m, 0xb8u | (unsigned)reg);
    } else {
        put(m, 0x48 | (reg >= 8 ? 4u : 0));
        put(m, 0x8d);
        put(m, 5 | ((unsigned)reg & 7) << 3);
    }
    *site = m->at;
    put32(m, 0);
    done(m, start, false);
}
static void label_here(struct gen *m, uint64_t site)
{
    uint32_t v = (uint32_t)(mode32 ? m->at : m->at - site - 4);
    memcpy(m->code - (m->at - site), &v, 4);
}

/* A jump through a register or memory, to one of two places, or by return. */
static void u_indirect(struct gen *m)
{
    int a = data_reg(m), b = data_reg(m);
    uint64_t site[2] = {0, 0};
    unsigned kind = below(m, 4);
    mov_label(m, a, &site[0]);
    if (b != a && one_in(m, 2)) {
        mov_label(m, b, &site[1]);
        struct ins c = {.op = 0x0f40 | below(m, 16), .size = word_size(), .reg = a, .rm = b, .far_from_plain = true};
        emit(m, &c);
    }
    struct ins j = {.op = 0xff, .size = 4, .reg = 4, .rm = a, .far_from_plain = true};
    if (kind == 1) {
        struct mem x = operand(m, base_reg(m), word_size());
        struct ins s = {.op = 0x89, .size = word_size(), .reg = a, .x = &x, .far_from_plain = true};
        emit(m, &s);
        j.x = &x;
        emit(m, &j);
        m->fixes[m->g->item[m->g->n_items - 1].at - CODE] = 0;
    } else if (kind == 2 && m->n_slots < MAX_DEPTH) {
        push_pop(m, true, a, false);
        one_byte(m, 0xc3, false);
    } else {
        emit(m, &j);
    }
    units(m, below(m, 2)); /* jumped over */
    if (site[1]) {
        label_here(m, site[1]);
        units(m, 1);
    }
    label_here(m, site[0]);
}

static void u_loop(struct gen *m)
{
    int c = m->g->counter;
    if (m->counter_busy)
        return u_cluster(m);
    uint64_t start = begin(m);
    if (c >= 8)
        put(m, 0x41);
    put(m, 0xb8u | ((unsigned)c & 7));
    put32(m, 1 + below(m, 5));
    done(m, start, false);
    uint64_t top = m->at;
    m->counter_busy = true;
    m->loop_depth++;
    units(m, 1 + below(m, 4));
    m->loop_depth--;
    if (c == RCX && one_in(m, 2) && m->at - top < 120) {
        start = begin(m);
        put(m, 0xe2);
        put(m, (unsigned)(top - m->at - 1));
        done(m, start, false);
    } else {
        struct ins d = {.op = 0xff, .size = 4, .reg = 1, .rm = c, .far_from_plain = true};
        struct mem l = {.base = c, .index = NONE, .disp = -1};
        if (one_in(m, 4)) { /* flags of the body live on around the loop */
            d = (struct ins){.op = 0x8d, .size = 4, .reg = c, .x = &l, .far_from_plain = true};
            emit(m, &d);
            m->fixes[m->g->item[m->g->n_items - 1].at - CODE] = 0;
            d = (struct ins){.op = 0x85, .size = 4, .reg = c, .rm = c, .far_from_plain = true};
        }
        emit(m, &d);
        start = begin(m);
        put(m, 0x0f);
        put(m, 0x85);
        put32(m, 0);
        done(m, start, false);
        patch32(m, m->at - 4, top);
    }
    m->counter_busy = false;
}

/* A call of a function that is made later. */
static void u_call(struct gen *m)
{
    if (m->n_calls > m->made && m->n_again < 16 && one_in(m, 2)) {
        unsigned k = m->made + below(m, m->n_calls - m->made);
        uint64_t at = begin(m);
        put(m, 0xe8);
        m->again[m->n_again].site = m->at;
        m->again[m->n_again++].function = (uint8_t)k;
        put32(m, 0);
        done(m, at, false);
        for (unsigned i = 0; i < m->call[k].skip; i++)
            put(m, 0x90);
        return;
    }
    if (m->call_depth >= 2 || m->n_calls >= MAX_FUNCTIONS || m->n_slots + 6 > MAX_DEPTH)
        return u_stack(m);
    uint64_t start;
    unsigned skip = 0;
    if (one_in(m, 3)) { /* through a register */
        int a = data_reg(m);
        mov_label(m, a, &m->call[m->n_calls].site);
        struct ins c = {.op = 0xff, .size = 4, .reg = 2, .rm = a, .far_from_plain = true};
        m->call[m->n_calls].depth = (uint8_t)(m->call_depth | 0x80); /* site is a label's */
        emit(m, &c);
    } else {
        start = begin(m);
        put(m, 0xe8);
        m->call[m->n_calls].site = m->at;
        put32(m, 0);
        done(m, start, false);
        m->call[m->n_calls].depth = (uint8_t)m->call_depth;
    }
    if (one_in(m, 6)) { /* the function comes back behind these */
        skip = 1 + below(m, 6);
        for (unsigned i = 0; i < skip; i++)
            put(m, 0x90);
    }
    m->call[m->n_calls++].skip = (uint8_t)skip;
}

/* call +0 and what it pushed; or a call whose return address is dropped */
static void u_odd_call(struct gen *m)
{
    if (m->n_slots >= MAX_DEPTH)
        return;
    uint64_t start = begin(m);
    unsigned over = one_in(m, 2) ? below(m, 8) : 0;
    put(m, 0xe8);
    put32(m, over);
    done(m, start, false);
    for (unsigned i = 0; i < over; i++)
        put(m, 0x90);
    if (one_in(m, 2)) {
        push_pop(m, false, data_reg(m), false);
    } else {
        struct ins a = {.op = 0x83, .size = word_size(), .rm = RSP, .imm_size = 1, .imm = word_size(), .far_from_plain = true};
        emit(m, &a);
    }
}

static void function(struct gen *m, unsigned k)
{
    bool label = m->call[k].depth & 0x80;
    unsigned skip = m->call[k].skip, depth = m->call[k].depth & 0x7f;
    uint64_t start;
    if (label)
        label_here(m, m->call[k].site);
    else
        patch32(m, m->call[k].site, m->at);
    for (unsigned i = 0; i < m->n_again; i++)
        if (m->again[i].function == k)
            patch32(m, m->again[i].site, m->at);
    m->made = k + 1;
    unsigned saved = m->n_slots;
    m->call_depth = depth + 1;
    m->slot[m->n_slots++] = 0; /* the return address */
    m->budget = (int)(2 + below(m, 6));
    m->counter_busy = true; /* perhaps called from within a loop */
    m->loop_depth++;
    units(m, 1 + below(m, 4));
    m->loop_depth--;
    if (skip) {
        struct mem x = {.base = RSP, .index = NONE};
        struct ins a = {.op = 0x83, .size = word_size(), .x = &x, .imm_size = 1, .imm = skip, .far_from_plain = true};
        emit(m, &a);
    }
    m->n_slots = saved;
    start = begin(m);
    if (one_in(m, 8) && is_data(m->g, RDX)) { /* pop rdx; jmp rdx */
        push_pop(m, false, RDX, false);
        struct ins j = {.op = 0xff, .size = 4, .reg = 4, .rm = RDX, .far_from_plain = true};
        emit(m, &j);
    } else {
        if (one_in(m, 8))
            put(m, 0xf3);
        put(m, 0xc3);
        done(m, start, false);
    }
}

/* --- units: strings, changes of code, other forms ------------------------------------------------------ */

static void u_string(struct gen *m)
{
    static const uint8_t ops[] = {0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf};
    unsigned op = ops[below(m, 10)];
    struct program *g = m->g;
    if (!is_data(g, RSI) || !is_data(g, RDI) || !is_data(g, RCX) || !is_data(g, RAX))
        return u_cluster(m);
    for (unsigned i = 0; i < 2; i++) {
        struct mem x = operand(m, base_reg(m), 16);
        struct ins l = {.op = 0x8d, .size = word_size(), .reg = i ? RSI : RDI, .x = &x, .far_from_plain = true};
        emit(m, &l);
        m->fixes[g->item[g->n_items - 1].at - CODE] = 0;
    }
    uint64_t start = begin(m);
    put(m, 0xb9);
    put32(m, below(m, 24));
    done(m, start, false);
    start = begin(m);
    if (one_in(m, 4))
        put(m, 0x66);
    if (below(m, 3))
        put(m, one_in(m, 3) ? 0xf2 : 0xf3);
    if (!mode32 && one_in(m, 3))
        put(m, 0x48);
    put(m, op);
    done(m, start, true);
}

/* A store into a later instruction `81 /n reg, imm32`: to its immediate, or to
 * its ModRM, which makes it another of the eight. ADC and SBB read flags that the
 * code before it was translated not to keep, so they need what the SDM (volume 3,
 * 8.1.3) demands before changed code runs: a jump. */
static void u_smc(struct gen *m)
{
    struct mem x = {.base = NONE, .index = NONE, .address = m->at + 64};
    bool kind = one_in(m, 2), jump = one_in(m, 2);
    int victim = data_reg(m);
    unsigned n_sites = kind && one_in(m, 2) ? 2 : 1;
    uint64_t site[2] = {0, 0}, end[2] = {0, 0}, over = 0;
    for (unsigned i = 0; i < n_sites; i++) {
        unsigned op = below(m, 8);
        if (!jump && (op == 2 || op == 3))
            op = 0;
        struct ins s = {.op = 0x89, .size = 4, .reg = source_reg(m), .x = &x, .far_from_plain = true};
        if (kind)
            s = (struct ins){.op = 0xc6, .size = 1, .x = &x, .imm_size = 1, .imm = 0xc0 | op << 3 | ((unsigned)victim & 7), .far_from_plain = true};
        if (i) { /* the second only sometimes */
            uint64_t j = begin(m);
            put(m, 0x70 | below(m, 16));
            over = m->at;
            put(m, 0);
            done(m, j, false);
        }
        emit(m, &s);
        site[i] = m->at - (kind ? 5 : 4);
        end[i] = m->at;
        if (i)
            m->code[-(int)(m->at - over)] = (uint8_t)(m->at - over - 1);
    }
    if (below(m, 3))
        units(m, 1 + below(m, 3));
    if (jump) {
        uint64_t j = begin(m);
        put(m, 0xeb);
        put(m, 0);
        done(m, j, false);
        if (one_in(m, 2))
            units(m, below(m, 3));
    }
    uint64_t start = begin(m);
    if (victim >= 8)
        put(m, 0x41);
    put(m, 0x81);
    uint64_t target = m->at;
    unsigned op = below(m, 8);
    if (!jump && (op == 2 || op == 3))
        op = 1;
    put(m, 0xc0 | op << 3 | ((unsigned)victim & 7));
    if (!kind)
        target = m->at;
    put32(m, (uint32_t)any_imm(m));
    done(m, start, false);
    for (unsigned i = 0; i < n_sites; i++) {
        uint32_t v = (uint32_t)(mode32 ? target : target - end[i]);
        memcpy(m->code - (m->at - site[i]), &v, 4);
    }
}

/* Any other form: registers only, or through a base. */
static void u_form(struct gen *m)
{
    struct program *g = m->g;
    uint32_t reserved = 1u << RSP | 1u << g->counter;
    for (unsigned i = 0; i < g->n_bases; i++)
        reserved |= 1u << g->base[i];
    for (unsigned tries = 0; tries < 40; tries++) {
        struct form f = m->forms[below(m, (unsigned)m->n_forms)];
        int b = base_reg(m);
        int32_t disp = (int32_t)below(m, 256) - 128;
        struct instance in;
        if (f.unsupported || (f.encoding == FORM_EVEX && below(m, 4)) || !form_steered(&f, m->r, m->at, b, disp, &in) ||
            !state_tame(&in, reserved, b))
            continue;
        uint64_t start = begin(m);
        memcpy(m->code, in.bytes, in.len);
        m->code += in.len;
        m->at += in.len;
        if (f.mem) {
            m->fixes[start - CODE] = (uint8_t)(1 + b);
            note_access(m, b, in.op[0].size >= 8 ? in.op[0].size / 8 : 16, disp);
        }
        done(m, start, true);
        return;
    }
}

static void unit(struct gen *m)
{
    static void (*const simple[])(struct gen *) = {u_alu, u_alu, u_alu, u_mov, u_mov, u_mov, u_unary, u_shift, u_mul, u_bits,
                                                   u_condition, u_condition, u_condition, u_flag, u_base, u_cluster, u_form, u_form};
    static void (*const nesting[])(struct gen *) = {u_stack, u_stack, u_popf, u_frame, u_jcc, u_jcc, u_jcc, u_indirect, u_loop, u_call,
                                                    u_call, u_odd_call, u_string, u_smc};
    if (m->depth > 5 || below(m, 5) < 3)
        simple[below(m, sizeof(simple) / sizeof(simple[0]))](m);
    else
        nesting[below(m, sizeof(nesting) / sizeof(nesting[0]))](m);
}

/* --- the whole -------------------------------------------------------------------------------------------- */

static void roles(struct program *g, struct rng *r)
{
    unsigned n = mode32 ? 8 : 16, taken = 1u << RSP;
    unsigned want = 1 + rnd_below(r, mode32 ? 2 : 3);
    g->n_bases = g->n_data = 0;
    for (unsigned i = 0; i <= want; i++) {
        unsigned k;
        do
            k = rnd_below(r, n);
        while (taken >> k & 1);
        taken |= 1u << k;
        if (i < want)
            g->base[g->n_bases++] = (uint8_t)k;
        else
            g->counter = k;
    }
    for (unsigned k = 0; k < n; k++)
        if (!(taken >> k & 1))
            g->data[g->n_data++] = (uint8_t)k;
}

void program_make(struct program *g, const struct form *forms, size_t n_forms, struct rng *r, uint64_t *at, struct backend *b)
{
    if (rnd_one_in(r, 3) && (*at & 0xfff) < 0xf00)
        *at = (*at | 0xfff) - rnd_below(r, 100);
    struct gen m = {.g = g, .r = r, .forms = forms, .n_forms = n_forms, .at = *at, .limit = *at + PROGRAM_MAX_BYTES / 2};
    memset(g, 0, sizeof(*g));
    roles(g, r);
    m.code = b->at(b, *at);
    m.fixes = b->at(b, FIXES);
    memset(m.fixes + (*at - CODE), 0, PROGRAM_MAX_BYTES + 64);
    g->start = *at;
    m.budget = 4 + (int)rnd_below(r, 27);
    while (m.budget > 0 && m.at < m.limit)
        unit(&m);
    if (rnd_one_in(r, 3)) { /* all flags are wanted at the end anyway; these through memory */
        one_byte(&m, 0x9c, false);
        push_pop(&m, false, data_reg(&m), false);
    }
    put_jump(m.code, m.at, DRIVER_AT(driver_save));
    m.code += PAD_SIZE;
    m.at += PAD_SIZE;
    m.limit = *at + PROGRAM_MAX_BYTES - 200;
    for (unsigned k = 0; k < m.n_calls; k++)
        function(&m, k);
    g->end = m.at;
    *at = m.at + rnd_below(r, 16);
}

void program_state(const struct program *g, struct rng *r, uint8_t *block)
{
    uint64_t gpr[16], flags = 0x202 | (rnd(r) & 0x8d5) | (rnd_one_in(r, 10) ? 0x400 : 0);
    uint64_t target = g->start | (mode32 ? (uint64_t)SEL_CODE32 << 32 : 0);
    state_fill(r, block, gpr);
    for (unsigned i = 0; i < g->n_bases; i++) {
        uint64_t v = (WIN1 + 128 + rnd_below(r, 256)) & (rnd_below(r, 2) ? ~7ull : ~0ull);
        unsigned mine = 0, pick = 0;
        for (unsigned k = 0; k < g->n_access; k++)
            if (g->access[k].base == g->base[i] && rnd_one_in(r, ++mine))
                pick = k;
        if (mine && rnd_below(r, 3)) { /* one access at a border */
            static const uint64_t border[] = {PAGE_B, PAGE_B, PAGE_B, PAGE_C, PAGE_A, PAGE_C + 4096};
            v = border[rnd_below(r, 6)] - rnd_below(r, g->access[pick].size + 1u) - (uint64_t)(int64_t)g->access[pick].disp;
        }
        gpr[g->base[i]] = v;
    }
    gpr[RSP] = PAGE_S + 4096 + rnd_below(r, 512) - 128;
    if (rnd_below(r, 4))
        gpr[RSP] &= ~15ull;
    if (rnd_one_in(r, 24))
        gpr[RSP] = PAGE_S + rnd_below(r, 64);
    for (unsigned i = 0; i < 8 && mode32; i++)
        gpr[i] &= 0xffffffff;
    memcpy(block, gpr, sizeof(gpr));
    memcpy(block + B_FLAGS, &flags, 8);
    memcpy(block + B_TARGET, &target, 8);
}

void program_print(const struct program *g, const uint8_t *code)
{
    printf("    bases:");
    for (unsigned i = 0; i < g->n_bases; i++)
        printf(" r%u", g->base[i]);
    printf("  counter: r%u  code %#llx to %#llx\n", g->counter, (unsigned long long)g->start, (unsigned long long)g->end);
    for (unsigned i = 0; i < g->n_items; i++) {
        char text[128];
        unsigned len = g->item[i].len;
        const uint8_t *p = code + (g->item[i].at - g->start);
        form_disassemble(p, len, g->item[i].at, text, sizeof(text));
        printf("    %#llx: %-50s [", (unsigned long long)g->item[i].at, text);
        for (unsigned k = 0; k < len; k++)
            printf("%s%02x", k ? " " : "", p[k]);
        printf("]\n");
    }
}
