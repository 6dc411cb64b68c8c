/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/program_flow.c - units of a program that use the stack
 * or transfer control, string instructions, code that changes itself.
 */
#include "program_gen.h"

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

void one_byte(struct gen *m, unsigned op, bool plain)
{
    uint64_t start = begin(m);
    put(m, op);
    done(m, start, plain);
}

void u_stack(struct gen *m)
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

void u_popf(struct gen *m)
{
    if (!grow(m, 0))
        return;
    flags_onto_stack(m);
    shrink(m, 1);
    one_byte(m, 0x9d, false);
}

/* enter or push rbp; mov rbp, rsp - leave */
void u_frame(struct gen *m)
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

void u_jcc(struct gen *m)
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
void u_indirect(struct gen *m)
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

void u_loop(struct gen *m)
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
void u_call(struct gen *m)
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
void u_odd_call(struct gen *m)
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

void function(struct gen *m, unsigned k)
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

void u_string(struct gen *m)
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
void u_smc(struct gen *m)
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
