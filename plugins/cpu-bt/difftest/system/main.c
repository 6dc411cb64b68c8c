/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/system/main.c - runs cases and prints a hash of each;
 * with "dump" all that went into it.
 *
 * Command line: seed=N first=N count=N [dump] [form=N]
 */
#include "system.h"

struct multiboot {
    uint32_t flags, lower, upper, device, cmdline;
};

/* --- output: COM1 ---------------------------------------------------------------- */

static void outb(unsigned port, uint8_t v) { __asm__ volatile("outb %0, %w1" : : "a"(v), "Nd"(port)); }
static uint8_t inb(unsigned port)
{
    uint8_t v;
    __asm__ volatile("inb %w1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static void put_char(char c) { outb(0x3f8, (uint8_t)c); }
static void put_string(const char *s)
{
    while (*s)
        put_char(*s++);
}
static void put_hex(uint64_t v, unsigned digits)
{
    while (digits--)
        put_char("0123456789abcdef"[v >> digits * 4 & 15]);
}
static void put_number(uint32_t v)
{
    char buf[12];
    unsigned n = 0;
    do
        buf[n++] = (char)('0' + v % 10);
    while (v /= 10);
    while (n)
        put_char(buf[--n]);
}

void *memcpy(void *d, const void *s, size_t n)
{
    void *r = d;
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    return r;
}
void *memset(void *d, int c, size_t n)
{
    void *r = d;
    size_t words = n / 4;
    n %= 4;
    __asm__ volatile("rep stosl" : "+D"(d), "+c"(words) : "a"((c & 0xff) * 0x01010101u) : "memory");
    __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
    return r;
}

/* --- options ------------------------------------------------------------------------ */

static char line[256];
static uint32_t option(const char *name, uint32_t fallback)
{
    for (const char *p = line; *p; p++) {
        const char *a = p, *b = name;
        while (*b && *a == *b)
            a++, b++;
        if (*b || (p != line && p[-1] != ' '))
            continue;
        if (*a != '=')
            return 1;
        uint32_t v = 0;
        for (a++; *a >= '0' && *a <= '9'; a++)
            v = v * 10 + (uint32_t)(*a - '0');
        return v;
    }
    return fallback;
}

/* --- what a case did ------------------------------------------------------------------- */

static uint32_t hash;
static bool dump;

static void add(const char *name, uint32_t at, uint32_t v)
{
    hash = (hash ^ v) * 0x01000193u;
    hash ^= hash >> 15;
    if (!dump)
        return;
    put_string("  ");
    put_string(name);
    if (at != ~0u)
        put_char('+'), put_hex(at, 4);
    put_char('=');
    put_hex(v, 8);
    put_char('\n');
}
static void add64(const char *name, uint64_t v)
{
    add(name, ~0u, (uint32_t)v);
    if (v >> 32 || dump)
        add(name, 0xffff, (uint32_t)(v >> 32));
}
static void add_memory(const char *name, uint32_t from, unsigned n, uint32_t label)
{
    for (unsigned i = 0; i < n; i += 4)
        add(name, label + i, *(volatile uint32_t *)(from + i));
}

static bool has_error(unsigned v) { return v == 8 || (v >= 10 && v <= 14) || v == 17; }

/* Faults push their flags with RF set; QEMU 7.2 does not. Take it out of the frame of
 * the exception that ended the case. */
static void mask_rf(struct test *t)
{
    uint32_t sp = (uint32_t)result.sp, flags = t->lm ? 16 : 8, wrap = 0; /* 0x10000: a stack of 64 KiB, whose end is passed */
    if (!t->pe) {
        if (t->compare_after && result.vector != 6)
            *(uint16_t *)(STACK + ((sp + 4) & 0xffff)) &= 0xf72a;
        return;
    }
    tss[0x26] &= 0xfe;
    if (t->lm) {
        flags += result.vector == 8 || has_error(result.vector) ? 8 : 0;
    } else if ((result.ss & 0xfffc) == SEL_DATA) {
        flags += has_error(result.vector) ? 4 : 0;
    } else {
        const uint8_t *d = (result.ss & 4 ? ldt : gdt) + (result.ss & 0xfff8) % sizeof(gdt);
        flags += has_error(result.vector) ? 4 : 0;
        if (sp >> 12 != STACK >> 12) { /* flat: SYSENTER */
            sp = d[6] & 0x40 ? sp : sp & 0xffff;
            wrap = !(d[6] & 0x40) && sp + flags > 0xffff ? 0x10000 : 0;
            sp += d[2] | d[3] << 8 | d[4] << 16 | (uint32_t)d[7] << 24;
        }
    }
    if (sp < 0x8000 || sp > 0xc00000)
        return;
    sp &= 0x3fffff; /* build_paging(): the same memory three times */
    flags -= wrap;
    *(uint8_t *)(sp + flags + 2) &= 0xfe;
    if (t->compare_after && result.vector != 6) /* the engine: flags that nothing reads are not kept for a fault */
        *(uint16_t *)(sp + flags) &= 0xf72a, result.eflags &= ~0x8d5u;
    /* QEMU: a reserved bit without P; a read where an instruction reads and writes. */
    if (t->lm && has_error(result.vector) && result.vector != 14 && (*(uint8_t *)sp & 2)) /* QEMU: vector * 16 */
        *(uint32_t *)sp = 2;
    if (result.vector == 14) {
        if (*(uint8_t *)sp & 8)
            *(uint8_t *)sp |= 1;
        if (t->form->rmw) /* P and RSVD: of which page, when the operand lies in two */
            *(uint8_t *)sp &= ~0xbu;
        if (t->form->far)
            *(uint8_t *)sp &= ~4u;
    }
}

static void collect(struct test *t)
{
    mask_rf(t);
    static const char *const gpr[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};
    static const uint32_t windows[] = {0, 0xfc0, 0x1fc0, 0x7fc0, 0xff80};
    bool lost = result.vector == 8 && !t->lm && t->pe; /* registers are in the TSS */
    if (t->lm && result.vector == 12) /* QEMU: #GP for addresses through RBP and RSP that are not canonical */
        result.vector = 13;
    if (t->lm && result.vector == 13)
        result.eflags &= ~0x200u; /* of another gate then */
    if (t->form->task && result.vector == 8) /* QEMU: #TS while #TS is delivered in a task half loaded */
        result.vector = 10;
    add("vector", ~0u, result.vector);
    if (t->form->task && result.vector == 10)
        return;
    /* An exception while the new task is being loaded: QEMU has the old one's EIP and CPL. */
    if (t->form->task && result.vector >= 10 && result.vector <= 13 && (result.tr & 0xfff8) == SEL_TSS2)
        return;
    for (unsigned i = 0; i < 16 && !lost; i++)
        if (i != 4 && (i < 8 || t->lm))
            add64(gpr[i], t->lm ? result.gpr[i] : (uint32_t)result.gpr[i]);
    if (!lost) {
        add64("sp", t->lm ? result.sp : (uint32_t)result.sp);
        if (!(t->lm && result.vector == 8)) /* QEMU loads null with an IST even without a change of privilege */
            add("ss", ~0u, result.ss & 0xffff);
        add("ds", ~0u, result.ds & 0xffff), add("es", ~0u, result.es & 0xffff);
        add("fs", ~0u, result.fs & 0xffff), add("gs", ~0u, result.gs & 0xffff);
        if (t->pe)
            add("handler flags", ~0u, result.eflags);
    }
    add("cr0", ~0u, result.cr0);
    /* Which byte of a frame, or of PUSHA's, faults is not told. */
    bool half = ((t->form->rmw || t->pusha) && result.vector == 14) || result.vector == 8;
    if (!half)
        add64("cr2", t->lm ? result.cr2 : (uint32_t)result.cr2);
    if (result.vector == 1) /* may be set for breakpoints that are not enabled (SDM volume 3, 17.2.3) */
        result.dr6 &= ~0xfu;
    add("cr3", ~0u, result.cr3), add("cr4", ~0u, result.cr4), add("dr6", ~0u, result.dr6), add("dr7", ~0u, result.dr7);
    add("gdt limit", ~0u, result.gdtr.limit), add("idt limit", ~0u, result.idtr.limit);
    add64("gdt base", t->lm ? result.gdtr.base : (uint32_t)result.gdtr.base);
    add64("idt base", t->lm ? result.idtr.base : (uint32_t)result.idtr.base);
    if (t->pe)
        add("ldtr", ~0u, result.ldt & 0xffff), add("tr", ~0u, result.tr & 0xffff);
    if (t->lm)
        add64("fs base", result.bases[0]), add64("gs base", result.bases[1]), add64("kernel gs", result.bases[2]);
    add_memory("r0 stack", (uint32_t)r0_stack + sizeof(r0_stack) - 448, 448, 0);
    for (unsigned k = 0; k < 5; k++) {
        if (!half)
            add_memory("area", AREA + windows[k], 0x80, windows[k]);
        if (result.vector != 8 && !(half && t->pusha)) /* a part of what could not be pushed */
            add_memory("stack", STACK + windows[k], 0x80, windows[k]);
    }
    if (result.vector != 8 && !(half && t->pusha))
        add_memory("stack", STACK + 0x7c0, 0x80, 0x7c0);
    /* QEMU: segments of a task do not become accessed, nor does the stack that a far transfer in long mode goes to. */
    bool task = t->form->task && t->pe && (result.tr & 0xfff8) != SEL_TSS, stack = t->form->far && t->lm;
    for (unsigned i = 0; i < N_GDT + sizeof(ldt) / 8; i++) {
        uint8_t *d = i < N_GDT ? gdt + i * 8 : ldt + (i - N_GDT) * 8;
        if (task || (stack && !(d[5] & 8)))
            d[5] |= d[5] >> 4 & 1;
    }
    add_memory("gdt", (uint32_t)gdt, sizeof(gdt), 0);
    add_memory("ldt", (uint32_t)ldt, sizeof(ldt), 0);
    add_memory("tss", (uint32_t)tss, 104, 0);
    add_memory("tss2", (uint32_t)tss2, 104, 0);
    if (t->paging && !half) { /* accessed and dirty bits of the area's pages, and of the tables above */
        unsigned e = t->pae ? 8 : 4;
        unsigned first = AREA / 4096 * e, last = STACK / 4096 * e;
        add_memory("pt0", (uint32_t)page_tables[3] + first, 17 * e, first);
        add_memory("pt0", (uint32_t)page_tables[3] + last, 3 * e, last);
        add_memory("pt1", (uint32_t)page_tables[5] + first, 17 * e, first);
        for (unsigned i = 0; i < 6 && result.vector == 14; i++) /* A above an entry that faults: may be set */
            page_tables[t->pae ? 2 : 0][i * e] |= 0x20;
        add_memory("pd", (uint32_t)page_tables[t->pae ? 2 : 0], 6 * e, 0);
    }
}

static void describe(struct test *t, uint32_t number)
{
    static const char *const mode[] = {"real", "unreal", "vm86", "pm16 cpl0", "pm32 cpl0", "pm16 cpl3", "pm32 cpl3", "pm32 cpl1",
                                       "long cpl0", "long cpl3", "compat32", "compat16"};
    struct state *s = &state_in;
    put_string("# case "), put_number(number), put_string(": "), put_string(t->form->name), put_string(", "), put_string(mode[t->mode]);
    put_string(t->paging ? t->pae ? ", pae" : ", paging" : "");
    put_string("\n# code at "), put_hex(t->code_at, 5), put_char(':');
    for (uint8_t *p = (uint8_t *)CODE + t->code_at; p < t->code; p++)
        put_char(' '), put_hex(*p, 2);
    put_string("\n#");
    for (unsigned i = 0; i < 16; i++)
        put_char(' '), put_hex(s->gpr[i], t->bits == 64 ? 16 : 8);
    put_string("\n# flags "), put_hex(s->eflags, 8), put_string(" cr0 "), put_hex(s->cr0, 8), put_string(" cr4 "), put_hex(s->cr4, 8);
    put_string(" efer "), put_hex(s->efer, 4), put_string(" area "), put_hex(t->area, 8), put_string("\n# cs ss ds es fs gs ldt:");
    const uint32_t sel[] = {s->cs, s->ss, s->ds, s->es, s->fs, s->gs, s->ldt};
    for (unsigned i = 0; i < 7; i++)
        put_char(' '), put_hex(sel[i], 4);
    put_string("\n# gdt from 70:");
    for (unsigned i = 14; i < N_GDT; i++)
        put_char(' '), put_hex(((uint64_t *)gdt)[i], 16);
    put_string("\n# ldt:");
    for (unsigned i = 0; i < 8; i++)
        put_char(' '), put_hex(((uint64_t *)ldt)[i], 16);
    put_char('\n');
}

/* --- the loop ------------------------------------------------------------------------------- */

static void wrmsr(uint32_t n, uint32_t lo, uint32_t hi) { __asm__ volatile("wrmsr" : : "c"(n), "a"(lo), "d"(hi)); }

/* A case whose segment has no base after all stores where its offsets say, which may be the code that takes later cases
 * into real mode and back. */
static void mend_low_code(void)
{
    volatile uint8_t *p = (uint8_t *)LOW_CODE;
    for (unsigned i = 0; i < (unsigned)(low_end - low_begin); i++)
        if (p[i] != low_begin[i])
            p[i] = low_begin[i];
}

static void run(uint32_t seed, uint32_t number, uint32_t only)
{
    struct test t;
    memset(&t, 0, sizeof(t));
    mend_low_code();
    t.rng = (uint64_t)seed << 32 ^ (uint64_t)number * 0x2545f4914f6cdd1dull;
    rnd(&t);
    t.form = &forms[only ? only - 1 : number % n_forms];
    do
        t.mode = below(&t, N_MODES);
    while (!(t.form->modes & MODE(t.mode)));
    memset((void *)RESULT, 0, R_SIZE);
    __asm__ volatile("mov %0, %%cr2; mov %0, %%dr3" : : "r"(0));
    memset((void *)CODE, 0xcc, 0x10000); /* wherever it may go */
    wrmsr(0x174, SEL_CODE_0, 0);
    wrmsr(0x175, STACK + 0x1000, 0);
    wrmsr(0x176, CODE + 0x800, 0);
    wrmsr(0xc0000081, 0, SEL_CODE_0 | (SEL_CODE_3 | 3) << 16);
    wrmsr(0xc0000082, CODE + 0x810, 0);
    wrmsr(0xc0000083, CODE + 0x820, 0);
    wrmsr(0xc0000084, 0x4fd5, 0); /* QEMU loses the status flags at SYSCALL */
    wrmsr(0xc0000103, 0, 0);
    wrmsr(0x277, 0x00070406, 0x00070406);
    case_begin(&t);
    wrmsr(0xc0000080, state_in.efer & ~0x100u, 0);
    t.form->make(&t);
    case_finish(&t);
    if (dump)
        describe(&t, number);
    enter();
    wrmsr(0xc0000080, 0, 0);
    hash = 0x811c9dc5;
    if (dump)
        put_string("# result\n");
    collect(&t);
    forms[t.form - forms].cases++;
    if (result.vector != 6)
        forms[t.form - forms].faults++;
    put_hex(hash, 8);
    put_char('\n');
}

uint32_t cr4_features;
bool amd;

/* CR4 bits that this processor has, of those that cases use. Both sides are given the same
 * processor as far as it matters here; a case must not depend on what is left. */
static void features(void)
{
    uint32_t a, b, c, d;
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0));
    amd = c == 0x444d4163; /* "cAMD" */
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    cr4_features = 0x21e | 0x100 | ((b & 1) ? 0x10000 : 0) | (b >> 7 & 1 ? 0x100000 : 0) | (c >> 2 & 1 ? 0x800 : 0);
    put_string("# cr4 "), put_hex(cr4_features, 8), put_char('\n');
}

void kernel_main(uint32_t info);
void kernel_main(uint32_t info)
{
    const struct multiboot *mb = (const struct multiboot *)info;
    if (mb->flags & 4) {
        const char *p = (const char *)mb->cmdline;
        for (unsigned i = 0; p[i] && i < sizeof(line) - 1; i++)
            line[i] = p[i];
    }
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    outb(0x70, 0x80 | (inb(0x70) & 0x7f));
    uint32_t seed = option("seed", 1), first = option("first", 0), count = option("count", 1000), only = option("form", 0);
    dump = option("dump", 0);
    put_string("# system: begin\n");
    features();
    for (uint32_t i = 0; i < count; i++)
        run(seed, first + i, only);
    for (unsigned i = 0; i < n_forms; i++) {
        put_string("form "), put_string(forms[i].name), put_string(": ");
        put_number(forms[i].cases), put_char(' '), put_number(forms[i].faults), put_char('\n');
    }
    put_string("# system: end\n");
    outb(0x501, 0);
}
