/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/program.c - makes random programs (program.h) out of
 * units of code, and states to start them in.
 */
#include "program_gen.h"
#include <stdio.h>

void unit(struct gen *m)
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
