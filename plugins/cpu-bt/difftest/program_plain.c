/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/program_plain.c - units of a program that are plain
 * instructions: arithmetic, moves, bits, conditions, steps of the bases; other forms.
 */
#include "program_gen.h"

/* --- units: plain instructions ---------------------------------------------------------------- */

void units(struct gen *m, unsigned n)
{
    m->depth++;
    while (n-- && m->budget > 0 && m->at < m->limit)
        unit(m);
    m->depth--;
}

void u_alu(struct gen *m)
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

void u_mov(struct gen *m)
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

void u_unary(struct gen *m)
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

void u_shift(struct gen *m)
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

void u_mul(struct gen *m)
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

void u_bits(struct gen *m)
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
void u_condition(struct gen *m)
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

void u_flag(struct gen *m)
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
void u_base(struct gen *m)
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
void u_cluster(struct gen *m)
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

/* Any other form: registers only, or through a base. */
void u_form(struct gen *m)
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
