/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/main.c - batches, comparison, report.
 */
#include "program.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define STATES_PER_INSTANCE 8u
#define MAX_REPORTS_PER_FORM 2u
#define MAX_SEQUENCE 12u

struct options {
    uint64_t seed;
    unsigned cases; /* per form */
    unsigned sequences, programs;
    const char *form;
    const char *seeds; /* file of seeds to run again */
    const char *against; /* "bt", or "native": the harness against itself */
    unsigned reports;
    bool no_forms, list, quiet, legacy_only, no_evex, inject, stats, only32, only64;
} opt = {.seed = 1, .cases = 32, .sequences = 4000, .programs = 4000, .against = "bt", .reports = 40};

struct test_case {
    struct instance *in;
    unsigned n_in; /* more than one: a sequence */
    unsigned number; /* within its form */
    struct program *program;
};
static struct test_case batch[MAX_CASES];
static struct instance instances[MAX_CASES + MAX_SEQUENCE];
static struct program programs[MAX_CASES / STATES_PER_INSTANCE];
static unsigned n_batch, n_instances, n_programs;
static uint64_t code_at;
static uint8_t native_out[MAX_CASES * BLOCK], native_pages[4][4096], native_logs[MAX_CASES * LOG], first_code[CODE_SIZE];
static uint64_t total_cases, total_failures, total_faults;
static unsigned reports;

/* --- building a batch ------------------------------------------------------------------ */

static uint64_t hash_name(const char *s)
{
    uint64_t h = 0xcbf29ce484222325ull;
    while (*s)
        h = (h ^ (uint8_t)*s++) * 0x100000001b3ull;
    return h;
}

void put_jump(uint8_t *p, uint64_t at, uint64_t to)
{
    if (mode32) { /* far, to 64-bit code */
        uint16_t sel = SEL_CODE64;
        p[0] = 0xea;
        memcpy(p + 1, &to, 4);
        memcpy(p + 5, &sel, 2);
        return;
    }
    uint32_t rel = (uint32_t)(to - at - 5);
    p[0] = 0xe9;
    memcpy(p + 1, &rel, 4);
}

static void batch_begin(void)
{
    if (n_programs)
        memset(native_backend.at(&native_backend, FIXES), 0, FIXES_SIZE);
    n_batch = n_instances = n_programs = 0;
    code_at = CODE;
}

/* A LOCK prefix where none is allowed: #UD, before anything else is looked at. */
static void lock_wrongly(struct instance *in)
{
    for (unsigned i = 0; i < in->insn.operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && in->op[i].mem.base == ZYDIS_REGISTER_RIP)
            return; /* its address would be another */
    /* AMD: LOCK MOV CR0 is MOV CR8 (CPUID 80000001h, ECX bit 4), which no guest is shown. */
    if (host_amd && in->insn.meta.category == ZYDIS_CATEGORY_DATAXFER && in->insn.opcode_map == ZYDIS_OPCODE_MAP_0F &&
        (in->insn.opcode & 0xfd) == 0x20)
        return;
    if (in->len >= 15 || (in->insn.attributes & ZYDIS_ATTRIB_HAS_LOCK) ||
        ((in->insn.attributes & ZYDIS_ATTRIB_ACCEPTS_LOCK) && in->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY))
        return;
    memmove(in->bytes + 1, in->bytes, in->len++);
    in->bytes[0] = 0xf0;
}

/* The instruction, a jump for those that fall through, a jump for branches. */
static struct instance *add_instance(struct form *f, struct rng *r, bool lock)
{
    struct instance *in = &instances[n_instances];
    /* Every fourth one lies across a page border. */
    if (rnd_one_in(r, 4) && (code_at & 0xfff) < 0xf00)
        code_at = (code_at | 0xfff) - rnd_below(r, 14);
    if (!form_instance(f, r, code_at, in))
        return NULL;
    if (lock)
        lock_wrongly(in);
    uint8_t *p = native_backend.at(&native_backend, code_at);
    memcpy(p, in->bytes, in->len);
    put_jump(p + in->len, code_at + in->len, DRIVER_AT(driver_save));
    put_jump(p + in->len + PAD_SIZE, code_at + in->len + PAD_SIZE, DRIVER_AT(driver_taken));
    code_at += in->len + 2 * PAD_SIZE + rnd_below(r, 16);
    n_instances++;
    return in;
}

/* Instructions one behind the other, now and then a conditional jump over one. */
static unsigned make_sequence(struct form *forms, size_t n_forms, struct rng *r, struct instance *seq)
{
    unsigned want = 2 + rnd_below(r, MAX_SEQUENCE - 1), n = 0;
    for (unsigned tries = 0; n < want && tries < 200; tries++) {
        struct form *f = &forms[rnd_below(r, (unsigned)n_forms)];
        bool jump = rnd_one_in(r, 6);
        if (f->unsupported || (f->encoding == FORM_EVEX && rnd_below(r, 4)) ||
            !form_instance(f, r, code_at + (jump ? 2 : 0), &seq[n]) || !state_fits(seq, n, &seq[n]))
            continue;
        uint8_t *p = native_backend.at(&native_backend, code_at);
        if (jump) {
            *p++ = 0x70 | (uint8_t)rnd_below(r, 16);
            *p++ = seq[n].len;
        }
        memcpy(p, seq[n].bytes, seq[n].len);
        code_at = seq[n].ip + seq[n].len;
        n++;
    }
    put_jump(native_backend.at(&native_backend, code_at), code_at, DRIVER_AT(driver_save));
    code_at += PAD_SIZE + rnd_below(r, 16);
    return n;
}

static struct form sequence_form = {.name = "sequence"};

static unsigned add_sequence(struct form *forms, size_t n_forms, unsigned number)
{
    struct rng r = {.s = opt.seed ^ (number + 1) * 0x9fb21c651e98df25ull};
    struct instance *seq = &instances[n_instances];
    uint64_t start = code_at;
    unsigned len = make_sequence(forms, n_forms, &r, seq), n = 0;
    if (!len)
        return 0;
    n_instances += len;
    while (n < STATES_PER_INSTANCE) {
        uint8_t *block = native_backend.at(&native_backend, INS + n_batch * (uint64_t)BLOCK);
        if (!state_random(seq, len, &r, block))
            break;
        memcpy(block + B_TARGET, &start, 4);
        batch[n_batch++] = (struct test_case){.in = seq, .n_in = len, .number = number * STATES_PER_INSTANCE + n++};
    }
    return n;
}

static struct form program_form;
static bool replaying; /* a seed kept: what showed a difference, not another prefix */

static unsigned add_program(struct form *forms, size_t n_forms, unsigned number)
{
    static struct instance none[2];
    struct rng r = {.s = opt.seed ^ (number + 1) * 0xd1342543de82ef95ull ^ 0x5555};
    struct program *g = &programs[n_programs++];
    program_make(g, forms, n_forms, &r, &code_at, &native_backend);
    for (unsigned n = 0; n < STATES_PER_INSTANCE; n++) {
        program_state(g, &r, native_backend.at(&native_backend, INS + n_batch * (uint64_t)BLOCK));
        batch[n_batch++] = (struct test_case){.in = none, .n_in = 2, .number = number * STATES_PER_INSTANCE + n, .program = g};
    }
    return STATES_PER_INSTANCE;
}

/* Adds up to want cases of a form; returns how many. */
static unsigned add_cases(struct form *f, unsigned group, unsigned want)
{
    struct rng r = {.s = opt.seed ^ hash_name(f->name) ^ group * 0x632be59bd9b4e019ull};
    /* Group 0 tells whether the host knows the form. */
    struct rng r2 = {.s = r.s ^ 0x10c};
    struct instance *in = add_instance(f, &r, group && !replaying && rnd_one_in(&r2, 6));
    unsigned n = 0;
    if (!in)
        return 0;
    while (n < want && state_random(in, 1, &r, native_backend.at(&native_backend, INS + n_batch * (uint64_t)BLOCK))) {
        batch[n_batch++] = (struct test_case){.in = in, .n_in = 1, .number = group * STATES_PER_INSTANCE + n};
        n++;
    }
    return n;
}

/* --- comparing --------------------------------------------------------------------------- */

static uint64_t word(const uint8_t *block, unsigned off)
{
    uint64_t v;
    memcpy(&v, block + off, 8);
    return v;
}

/* Offsets in the memory windows that hold FPU instruction or data pointers, which
 * are the translated code's own. */
static bool ignored_byte(const struct test_case *t, const uint8_t *in, const uint8_t *out, unsigned window_off)
{
    const struct instance *i = t->in;
    unsigned from, to;
    uint64_t ea, at = window_off < WIN1_SIZE ? WIN1 + window_off : WIN2 + window_off - WIN1_SIZE;
    uint64_t gpr[16];
    switch (i->insn.mnemonic) {
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE:
        from = i->insn.operand_width == 16 ? 6 : 12;
        to = i->insn.operand_width == 16 ? 14 : 28;
        break;
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
        from = 6, to = 24;
        break;
    default:
        /* A store of 80 bits is two stores: the first may be done when the second
         * faults. */
        if (i->op[0].type != ZYDIS_OPERAND_TYPE_MEMORY || i->op[0].size != 80 || word(out, B_VECTOR) != 14)
            return false;
        from = 0, to = 10;
        break;
    }
    memcpy(gpr, in, sizeof(gpr));
    return state_address(i, &i->op[0], gpr, &ea) && at >= ea + from && at < ea + to;
}

static const char *xsave_part(unsigned off)
{
    static char buf[64];
    static const char *const comp[8] = {"", "", "ymm high", "", "", "k", "zmm high", "zmm16-31"};
    if (off < 32)
        snprintf(buf, sizeof(buf), "%s", off < 2 ? "fcw" : off < 4 ? "fsw" : off < 6 ? "ftw" : "mxcsr");
    else if (off < 160)
        snprintf(buf, sizeof(buf), "st%u+%u", (off - 32) / 16, (off - 32) % 16);
    else if (off < 416)
        snprintf(buf, sizeof(buf), "xmm%u+%u", (off - 160) / 16, (off - 160) % 16);
    else
        for (unsigned c = 2; c < 8; c++)
            if (xlayout.size[c] && off >= xlayout.off[c] && off < xlayout.off[c] + xlayout.size[c])
                snprintf(buf, sizeof(buf), "%s+%u", comp[c], off - xlayout.off[c]);
    return buf;
}

/* Is this byte of an XSAVE area architectural, and ours to promise? */
static bool xsave_compared(unsigned off)
{
    if (off < 160)
        return off < 5 || (off >= 24 && off < 28) || (off >= 32 && (off & 15) < 10);
    return off < 416 || off >= 576; /* the header tells what is in use: an optimisation's business */
}

static const char *const reg_name[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                         "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

static void note(char *buf, size_t n, const char *what, uint64_t want, uint64_t got)
{
    size_t len = strlen(buf);
    if (len + 80 < n)
        snprintf(buf + len, n - len, "    %-10s host %#018llx  engine %#018llx\n", what, (unsigned long long)want,
                 (unsigned long long)got);
}

/* A fault of an instruction with MMX operands comes after the switch to MMX mode
 * has changed the x87 state on this processor; no manual promises either. */
static bool mmx_fault(const struct test_case *t, const uint8_t *out)
{
    if (word(out, B_VECTOR) == ~0ull)
        return false;
    for (unsigned k = 0; k < t->n_in; k++)
        for (unsigned i = 0; i < t->in[k].insn.operand_count; i++)
            if (t->in[k].op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                ZydisRegisterGetClass(t->in[k].op[i].reg.value) == ZYDIS_REGCLASS_MMX)
                return true;
    return false;
}

/* Which byte of a long x87 image or a masked store faults first is the microcode's
 * business. */
static uint64_t cr2_mask(const struct test_case *t)
{
    ZydisMnemonic m = t->in->insn.mnemonic;
    if (m == ZYDIS_MNEMONIC_MASKMOVDQU || m == ZYDIS_MNEMONIC_MASKMOVQ || m == ZYDIS_MNEMONIC_VMASKMOVDQU)
        return ~0xfffull;
    for (unsigned i = 0; i < t->in->insn.operand_count; i++)
        if (t->in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && t->in->op[i].size >= 4096)
            return 0;
        else if (t->in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && t->in->op[i].size >= 112 &&
            t->in->insn.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && t->in->op[i].size != 128)
            return ~0xfffull;
    return ~0ull;
}

/* Whether there is a page in the upper half is the host's kernel's business, where the guest has none. */
static uint64_t error_mask(uint64_t vector, uint64_t cr2) { return vector == 14 && cr2 >> 63 ? ~1ull : ~0ull; }

/* The states noted at faults that a handler put right. */
static bool same_log(unsigned i, unsigned n_fixed, const uint8_t *log, char *why, size_t n)
{
    static const char *const name[4] = {"rip", "error", "cr2", "flags"};
    char what[64];
    bool ok = true;
    for (unsigned k = 0; k < n_fixed && k < MAX_FIXES; k++)
        for (unsigned j = 0; j < 20; j++) {
            uint64_t a = word(native_logs + (size_t)i * LOG + k * LOG_ENTRY, j * 8), b = word(log + k * LOG_ENTRY, j * 8);
            uint64_t mask = j == 19 ? ~0x108d5ull : mode32 && j < 8 ? 0xffffffff : ~0ull; /* flags: see same() */
            if (j == 17) /* the error code, by the address behind it */
                mask = error_mask(14, word(native_logs + (size_t)i * LOG + k * LOG_ENTRY, 18 * 8));
            if (!((a ^ b) & mask))
                continue;
            snprintf(what, sizeof(what), "fault %u %s", k + 1, j < 16 ? reg_name[j] : name[j - 16]);
            note(why, n, what, a, b);
            ok = false;
        }
    return ok;
}

static bool same(const struct test_case *t, const uint8_t *in, const uint8_t *a, const uint8_t *b, const uint8_t *log, char *why, size_t n)
{
    bool ok = true;
    char name[80];
    /* POPA that faults half-way has loaded some registers, on this processor. */
    bool popa = word(a, B_VECTOR) != ~0ull && (t->in->insn.mnemonic == ZYDIS_MNEMONIC_POPA ||
                                               t->in->insn.mnemonic == ZYDIS_MNEMONIC_POPAD);
    for (unsigned i = 0; i < 16; i++)
        if (!popa && (word(a, i * 8) ^ word(b, i * 8)) & (mode32 && i < 8 ? 0xffffffff : ~0ull))
            note(why, n, reg_name[i], word(a, i * 8), word(b, i * 8)), ok = false;
    uint64_t flags = ~0x10000ull;
    /* In the middle of a block, flags that nothing will read are not kept for the
     * handler of a fault. */
    if (t->n_in > 1 && word(a, B_VECTOR) != ~0ull)
        flags &= ~0x8d5ull;
    if ((word(a, B_FLAGS) & flags) != (word(b, B_FLAGS) & flags))
        note(why, n, "rflags", word(a, B_FLAGS), word(b, B_FLAGS)), ok = false;
    static const struct { uint16_t off; const char *name; } exc[] = {
        {B_TARGET, "taken"}, {B_VECTOR, "vector"}, {B_ERROR, "error"}, {B_RIP, "fault rip"}};
    for (unsigned i = 0; i < 4; i++)
        if ((word(a, exc[i].off) ^ word(b, exc[i].off)) &
            (exc[i].off == B_ERROR ? error_mask(word(a, B_VECTOR), word(a, B_CR2)) : ~0ull))
            note(why, n, exc[i].name, word(a, exc[i].off), word(b, exc[i].off)), ok = false;
    if (word(a, B_VECTOR) == 14 && word(b, B_VECTOR) == 14 &&
        ((word(a, B_CR2) ^ word(b, B_CR2)) & cr2_mask(t)))
        note(why, n, "cr2", word(a, B_CR2), word(b, B_CR2)), ok = false;
    for (unsigned i = 0; i < WIN1_SIZE + WIN2_SIZE; i++)
        if (a[B_WIN + i] != b[B_WIN + i] && !ignored_byte(t, in, a, i)) {
            snprintf(name, sizeof(name), "%s%+d", i < WIN1_SIZE ? "A/B" : "B/C", i < WIN1_SIZE ? (int)i - 256 : (int)i - 768);
            note(why, n, name, a[B_WIN + i], b[B_WIN + i]), ok = false;
        }
    if (t->program && !same_log((unsigned)(t - batch), (unsigned)word(a, B_FIXED), log, why, n))
        ok = false;
    if (t->program && word(a, B_FIXED) != word(b, B_FIXED))
        note(why, n, "faults", word(a, B_FIXED), word(b, B_FIXED)), ok = false;
    bool no_x87 = mmx_fault(t, a);
    /* A gather that faults half-way: which elements are done, and whether masks are
     * widened to their sign, is the processor's choice. */
    bool no_vector = (t->in->insn.meta.category == ZYDIS_CATEGORY_AVX2GATHER ||
                      t->in->insn.meta.category == ZYDIS_CATEGORY_GATHER || t->in->insn.meta.category == ZYDIS_CATEGORY_SCATTER) &&
                     word(a, B_VECTOR) != ~0ull;
    /* VCVTPS2PH to memory: this processor has noted the inexact result before the store faults. */
    bool no_mxcsr = t->in->insn.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH && word(a, B_VECTOR) != ~0ull;
    for (unsigned i = 0; i < xlayout.total; i++)
        if (!(no_vector && i >= 160) && !(no_mxcsr && i >= 24 && i < 28) && !(no_x87 && i < 160 && (i < 24 || i >= 32)) && a[B_XSAVE + i] != b[B_XSAVE + i] && xsave_compared(i))
            note(why, n, xsave_part(i), a[B_XSAVE + i], b[B_XSAVE + i]), ok = false;
    return ok;
}

static struct form *form_of(const struct test_case *t)
{
    return t->program ? &program_form : t->n_in > 1 ? &sequence_form : t->in->form;
}

static void report(const struct test_case *t, const uint8_t *in, const char *why)
{
    char text[128];
    struct form *f = form_of(t);
    f->failures++;
    total_failures++;
    if ((f->failures > MAX_REPORTS_PER_FORM && t->n_in == 1) || reports >= opt.reports)
        return;
    reports++;
    printf("FAIL %s  case %u  seed %llu\n", f->name, t->number, (unsigned long long)opt.seed);
    if (t->program)
        program_print(t->program, first_code + (t->program->start - CODE));
    for (unsigned k = 0; k < t->n_in && !t->program; k++) {
        form_format(&t->in[k], text, sizeof(text));
        printf("    at %#llx: %s  [", (unsigned long long)t->in[k].ip, text);
        for (unsigned i = 0; i < t->in[k].len; i++)
            printf("%s%02x", i ? " " : "", t->in[k].bytes[i]);
        printf("]%s\n", k && t->in[k].ip != t->in[k - 1].ip + t->in[k - 1].len ? "  behind a jcc" : "");
    }
    printf("    in:");
    for (unsigned i = 0; i < 16; i++)
        printf(" %s=%llx", reg_name[i], (unsigned long long)word(in, i * 8));
    printf(" flags=%llx\n%s", (unsigned long long)word(in, B_FLAGS), why);
}

/* --- running a batch -------------------------------------------------------------------------- */

static void copy(struct backend *to, struct backend *from, uint64_t address, size_t n)
{
    if (to->at(to, address) != from->at(from, address))
        memcpy(to->at(to, address), from->at(from, address), n);
}

static void fresh_pages(struct backend *b)
{
    memset(b->at(b, PAGE_A), 0xcc, 8192);
    memset(b->at(b, PAGE_S), 0xcc, 8192);
}

static int run_native(void)
{
    fresh_pages(&native_backend);
    if (native_backend.run(&native_backend, n_batch))
        return -1;
    memcpy(native_out, native_backend.at(&native_backend, OUTS), (size_t)n_batch * BLOCK);
    memcpy(native_pages, native_backend.at(&native_backend, PAGE_A), 8192);
    memcpy(native_pages[2], native_backend.at(&native_backend, PAGE_S), 8192);
    memcpy(native_logs, native_backend.at(&native_backend, LOGS), sizeof(native_logs));
    return 0;
}

static int run_batch(struct backend *other)
{
    char why[4096];
    if (!n_batch)
        return 0;
    /* Programs change their code: the other one starts from the same. */
    memcpy(first_code, native_backend.at(&native_backend, CODE), CODE_SIZE);
    if (run_native())
        return -1;
    memcpy(other->at(other, CODE), first_code, CODE_SIZE);
    copy(other, &native_backend, FIXES, FIXES_SIZE);
    copy(other, &native_backend, INS, (size_t)n_batch * BLOCK);
    fresh_pages(other);
    if (other->run(other, n_batch))
        return -1;
    for (unsigned i = 0; i < n_batch; i++) {
        const struct test_case *t = &batch[i];
        const uint8_t *in = native_backend.at(&native_backend, INS + (uint64_t)i * BLOCK);
        const uint8_t *a = native_out + (size_t)i * BLOCK;
        uint8_t *b = other->at(other, OUTS + (uint64_t)i * BLOCK);
        if (opt.inject && !(i & 0xff))
            b[B_FLAGS] ^= 1; /* does the comparison notice? */
        form_of(t)->cases++;
        total_cases++;
        if (word(a, B_VECTOR) != ~0ull)
            form_of(t)->faults++, total_faults++;
        why[0] = 0;
        if (!same(t, in, a, b, other->at(other, LOGS + (uint64_t)i * LOG), why, sizeof(why)))
            report(t, in, why);
    }
    /* Stores that went elsewhere on the data pages. */
    for (unsigned k = 0; k < 2; k++) {
        const uint8_t *p = other->at(other, k ? PAGE_S : PAGE_A), *q = native_pages[2 * k];
        for (unsigned i = 0; i < 8192 && total_failures == 0; i++)
            if (p[i] != q[i]) {
                printf("FAIL a stray store at %s page offset %#x in the batch from %s %u on\n", k ? "stack" : "data", i,
                       form_of(&batch[0])->name, batch[0].number);
                total_failures++;
            }
    }
    return 0;
}

/* Forms that this host refuses with #UD are no forms of this host. */
static int probe_forms(struct form *forms, size_t n)
{
    size_t next = 0;
    while (next < n) {
        batch_begin();
        for (; next < n && n_batch + 2 <= MAX_CASES; next++)
            if (!add_cases(&forms[next], 0, 2))
                forms[next].unsupported = 2;
        if (run_native())
            return -1;
        for (unsigned i = 0; i < n_batch; i++)
            if (word(native_out + (size_t)i * BLOCK, B_VECTOR) == 6)
                batch[i].in->form->unsupported = 1;
    }
    return 0;
}

static int run_all(struct form *forms, size_t n, struct backend *other)
{
    unsigned groups = (opt.cases + STATES_PER_INSTANCE - 1) / STATES_PER_INSTANCE;
    batch_begin();
    for (size_t i = 0; i < n && !opt.no_forms; i++) {
        struct form *f = &forms[i];
        if (f->unsupported || (opt.no_evex && f->encoding == FORM_EVEX) || (opt.legacy_only && f->encoding != FORM_LEGACY) ||
            (opt.form && !strstr(f->name, opt.form)))
            continue;
        for (unsigned g = 0; g < groups; g++) {
            if (n_batch + STATES_PER_INSTANCE > MAX_CASES || code_at > CODE + CODE_SIZE - 8192) {
                if (run_batch(other))
                    return -1;
                batch_begin();
            }
            add_cases(f, g, STATES_PER_INSTANCE);
        }
    }
    if (run_batch(other))
        return -1;
    batch_begin();
    for (unsigned i = 0; i < opt.sequences && !opt.form; i++) {
        if (n_batch + STATES_PER_INSTANCE > MAX_CASES || n_instances + MAX_SEQUENCE > MAX_CASES) {
            if (run_batch(other))
                return -1;
            batch_begin();
        }
        add_sequence(forms, n, i);
    }
    if (run_batch(other))
        return -1;
    batch_begin();
    for (unsigned i = 0; i < opt.programs && !opt.form; i++) {
        if (n_batch + STATES_PER_INSTANCE > MAX_CASES || code_at > CODE + CODE_SIZE - 3 * PROGRAM_MAX_BYTES) {
            if (run_batch(other))
                return -1;
            batch_begin();
        }
        add_program(forms, n, i);
    }
    return run_batch(other);
}

/* --- seeds kept ---------------------------------------------------------------------------- */

static int replay_line(const char *line, struct form *forms, size_t n, struct backend *other)
{
    char form[64];
    unsigned long long seed;
    unsigned number;
    struct options saved = opt;
    int used, rc = 0;

    if (sscanf(line, "%llu %n", &seed, &used) != 1)
        return 0;
    replaying = true;
    opt.seed = seed;
    if (sscanf(line + used, "sequence %u", &number) == 1) {
        batch_begin();
        add_sequence(forms, n, number / STATES_PER_INSTANCE);
        rc = run_batch(other);
    } else if (sscanf(line + used, "program %u", &number) == 1) {
        batch_begin();
        add_program(forms, n, number / STATES_PER_INSTANCE);
        rc = run_batch(other);
    } else if (sscanf(line + used, "%63[^#]", form) == 1) {
        for (size_t len = strlen(form); len && (form[len - 1] == ' ' || form[len - 1] == '\n');)
            form[--len] = 0;
        opt.form = form;
        opt.cases = 64;
        rc = run_all(forms, n, other);
    }
    opt = saved;
    replaying = false;
    return rc;
}

static int replay(struct form *forms, size_t n, struct backend *other)
{
    char line[200], path[400];
    const char *srcdir = getenv("srcdir");
    int rc = 0;

    if (opt.seeds)
        snprintf(path, sizeof(path), "%s", opt.seeds);
    else
        snprintf(path, sizeof(path), "%s/difftest/seeds", srcdir ? srcdir : ".");
    FILE *f = fopen(path, "r");
    if (!f) {
        if (opt.seeds)
            fprintf(stderr, "difftest: cannot open the seeds %s\n", path);
        return opt.seeds ? -1 : 0;
    }
    while (!rc && fgets(line, sizeof(line), f))
        rc = line[0] == '#' ? 0 : replay_line(line, forms, n, other);
    fclose(f);
    return rc;
}

static void print_form(const struct form *f)
{
    if (f->cases && (!opt.quiet || f->failures))
        printf("%-64s %6u cases %6u faults %6u failures\n", f->name, f->cases, f->faults, f->failures);
}

/* --- the program --------------------------------------------------------------------------------- */

static void usage(void)
{
    printf("difftest: runs instructions on this processor and in the engine and compares everything\n"
           "  --seed N       first cause of all random choices (1)\n"
           "  --cases N      cases per form (32)\n"
           "  --sequences N  random sequences of 2 to 12 instructions, 8 states each (4000)\n"
           "                 and random programs of 4 to 30: calls, loops, faults put right, code that changes itself\n"
           "  --programs N   programs only as many as that\n"
           "  --no-forms     sequences and programs only\n"
           "  --form TEXT    only forms whose name contains TEXT\n"
           "  --seeds FILE   seeds kept, run again at the end ($srcdir/difftest/seeds)\n"
           "  --direct       the engine runs programs natively, in a helper process: its entries and exits are what is tested\n"
           "  --warm FILE    the engine keeps its translations there: the same run once more does with those\n"
           "  --against X    bt (the engine) or native (the harness against itself)\n"
           "  --32, --64     only code of that size (both)\n"
           "  --no-evex      leave out AVX-512\n"
           "  --legacy       leave out VEX and EVEX\n"
           "  --reports N    failures to describe (40)\n"
           "  --quiet        no count per form\n"
           "  --list         names of the forms, nothing is run\n"
           "  --stats        the engine's own figures at the end\n"
           "  --inject       falsify every 256th result: the run must then fail\n");
}

static int parse(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *v = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(a, "--help")) {
            usage();
            exit(0);
        } else if (!strcmp(a, "--list"))
            opt.list = true;
        else if (!strcmp(a, "--no-forms"))
            opt.no_forms = true;
        else if (!strcmp(a, "--quiet"))
            opt.quiet = true;
        else if (!strcmp(a, "--no-evex"))
            opt.no_evex = true;
        else if (!strcmp(a, "--legacy"))
            opt.legacy_only = true;
        else if (!strcmp(a, "--32"))
            opt.only32 = true;
        else if (!strcmp(a, "--64"))
            opt.only64 = true;
        else if (!strcmp(a, "--direct"))
            guest_direct = true;
        else if (!strcmp(a, "--inject"))
            opt.inject = true;
        else if (!strcmp(a, "--stats"))
            opt.stats = true;
        else if (!v)
            return -1;
        else if (!strcmp(a, "--warm"))
            guest_warm = v, i++;
        else if (!strcmp(a, "--seed"))
            opt.seed = strtoull(v, NULL, 0), i++;
        else if (!strcmp(a, "--cases"))
            opt.cases = (unsigned)strtoul(v, NULL, 0), i++;
        else if (!strcmp(a, "--sequences"))
            opt.sequences = opt.programs = (unsigned)strtoul(v, NULL, 0), i++;
        else if (!strcmp(a, "--programs"))
            opt.programs = (unsigned)strtoul(v, NULL, 0), i++;
        else if (!strcmp(a, "--reports"))
            opt.reports = (unsigned)strtoul(v, NULL, 0), i++;
        else if (!strcmp(a, "--form"))
            opt.form = v, i++;
        else if (!strcmp(a, "--seeds"))
            opt.seeds = v, i++;
        else if (!strcmp(a, "--against"))
            opt.against = v, i++;
        else
            return -1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct form *forms;
    struct timespec t0, t1;
    size_t run = 0, unsupported = 0, failed = 0;
    int rc = 0;
    if (parse(argc, argv)) {
        usage();
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    states_init();
    struct backend *other = !strcmp(opt.against, "native") ? &native_backend : &guest_backend;
    if (!opt.list && (native_backend.init(&native_backend) || (other != &native_backend && other->init(other))))
        return 1;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    for (unsigned m = 0; m < 2 && !rc; m++) {
        mode32 = m == 1;
        if (mode32 ? opt.only64 : opt.only32)
            continue;
        size_t n = forms_enumerate(&forms);
        sequence_form = (struct form){.name = ""};
        program_form = sequence_form;
        snprintf(sequence_form.name, sizeof(sequence_form.name), "%ssequence", mode32 ? "32: " : "");
        snprintf(program_form.name, sizeof(program_form.name), "%sprogram", mode32 ? "32: " : "");
        for (size_t i = 0; i < n && opt.list; i++)
            puts(forms[i].name);
        if (!opt.list && !(rc = probe_forms(forms, n)))
            rc = run_all(forms, n, other);
        if (!opt.list && !rc && (!opt.form || opt.seeds))
            rc = replay(forms, n, other);
        for (size_t i = 0; i < n; i++) {
            unsupported += forms[i].unsupported != 0;
            run += forms[i].cases != 0;
            failed += forms[i].failures != 0;
            print_form(&forms[i]);
        }
        print_form(&sequence_form);
        print_form(&program_form);
        free(forms);
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    if (opt.list)
        return 0;
    if (opt.stats && other->stats)
        other->stats(other);
    if (other->fini)
        other->fini(other);
    printf("difftest: seed %llu, %zu forms (%zu not on this host), %llu cases (%llu with an exception), %llu failures in %zu "
           "forms, %.1f s\n",
           (unsigned long long)opt.seed, run, unsupported, (unsigned long long)total_cases, (unsigned long long)total_faults,
           (unsigned long long)total_failures, failed, (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) / 1e9);
    if (rc)
        printf("difftest: stopped before the end\n");
    return rc || total_failures || !total_cases;
}
