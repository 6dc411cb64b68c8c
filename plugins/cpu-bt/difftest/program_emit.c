/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/program_emit.c - an assembler of a few lines; choosing
 * registers, immediates and memory operands so that roles and stack stay whole.
 */
#include "program_gen.h"

/* --- assembling ------------------------------------------------------------------------ */

void put(struct gen *m, unsigned v)
{
    *m->code++ = (uint8_t)v;
    m->at++;
}
void put32(struct gen *m, uint32_t v)
{
    for (unsigned i = 0; i < 4; i++)
        put(m, v >> i * 8);
}
void put_imm(struct gen *m, uint64_t v, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        put(m, (unsigned)(v >> i * 8));
}
void patch32(struct gen *m, uint64_t site, uint64_t target)
{
    uint32_t rel = (uint32_t)(target - site - 4);
    memcpy(m->code - (m->at - site), &rel, 4);
}

uint64_t begin(struct gen *m) { return m->at; }
void done(struct gen *m, uint64_t start, bool plain)
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

void emit(struct gen *m, const struct ins *i)
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

void push_pop(struct gen *m, bool push, int reg, bool plain)
{
    uint64_t start = begin(m);
    if (reg >= 8)
        put(m, 0x41);
    put(m, (push ? 0x50u : 0x58u) | ((unsigned)reg & 7));
    done(m, start, plain);
}

/* --- choosing ---------------------------------------------------------------------------- */

int data_reg(struct gen *m) { return m->g->data[below(m, m->g->n_data)]; }
int base_reg(struct gen *m) { return m->g->base[below(m, m->g->n_bases)]; }
bool is_data(const struct program *g, int reg)
{
    for (unsigned i = 0; i < g->n_data; i++)
        if (g->data[i] == reg)
            return true;
    return false;
}
/* A register to read: any but the stack pointer. */
int source_reg(struct gen *m)
{
    int n;
    do
        n = (int)below(m, mode32 ? 8 : 16);
    while (n == RSP);
    return n;
}
unsigned any_size(struct gen *m)
{
    static const uint8_t sizes[] = {1, 2, 4, 4, 4, 8, 8, 8};
    unsigned s = sizes[below(m, 8)];
    return s == 8 ? word_size() : s;
}
/* For a byte register to write; in 32-bit code 4..7 are AH..BH. Changes *size when there is none. */
int dest_reg(struct gen *m, unsigned *size)
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
int src_reg(struct gen *m, unsigned size) { return size == 1 && mode32 ? (int)below(m, 8) : source_reg(m); }
/* Without a REX prefix 4..7 are AH..BH in 64-bit code too; emit() forces one. */

uint64_t any_imm(struct gen *m)
{
    static const uint32_t odd[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0x7fffffff, 0x80000000, 0xffffffff};
    return one_in(m, 2) ? odd[below(m, 10)] : (uint64_t)rnd(m->r);
}

void note_access(struct gen *m, int b, unsigned size, int32_t disp)
{
    struct program *g = m->g;
    if (g->n_access == PROGRAM_MAX_ACCESSES)
        return;
    g->access[g->n_access].base = (uint8_t)b;
    g->access[g->n_access].size = (uint8_t)size;
    g->access[g->n_access++].disp = disp;
}

/* A memory operand of ours; through base b unless NONE. */
struct mem operand(struct gen *m, int b, unsigned size)
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
struct mem any_operand(struct gen *m, unsigned size, bool store)
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
