/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/gdb_regs.c - the registers as gdb sees them. The features and names
 * up to mxcsr and the two segment bases are those that gdb knows ("Debugging
 * with GDB", G.5.6, i386 Features); then come system registers in a feature of
 * our own, which gdb shows under their names.
 */
#include "core/vm/gdb_proto.h"

#include <string.h>

enum kind { GPR, PC, FLAGS, SELECTOR, FPU_STACK, FPU_CONTROL, VECTOR, MXCSR, BASE, SYSTEM };

struct reg {
    const char *name, *type, *group;
    uint8_t bytes, kind, index;
};

#define XSTATE_BV 512u
#define SYS(field, text) {text, NULL, "system", 0, SYSTEM, field}
enum { S_KGS, S_CR0, S_CR2, S_CR3, S_CR4, S_CR8, S_EFER };

#define G(text, i) {text, NULL, "general", 0, GPR, i}
#define SEG(text, i) {text, "int32", "general", 4, SELECTOR, i}
#define ST(i) {"st" #i, "i387_ext", "float", 10, FPU_STACK, i}
#define FC(text, i) {text, "int", "float", 4, FPU_CONTROL, i}
#define XMM(i) {"xmm" #i, "vec128", "vector", 16, VECTOR, i}
#define COMMON_MIDDLE                                                                                                  \
    SEG("cs", HVX_CS), SEG("ss", HVX_SS), SEG("ds", HVX_DS), SEG("es", HVX_ES), SEG("fs", HVX_FS), SEG("gs", HVX_GS),  \
        ST(0), ST(1), ST(2), ST(3), ST(4), ST(5), ST(6), ST(7), FC("fctrl", 0), FC("fstat", 1), FC("ftag", 2),         \
        FC("fiseg", 3), FC("fioff", 4), FC("foseg", 5), FC("fooff", 6), FC("fop", 7), XMM(0), XMM(1), XMM(2), XMM(3),  \
        XMM(4), XMM(5), XMM(6), XMM(7)
#define COMMON_END                                                                                                     \
    {"mxcsr", "i386_mxcsr", "vector", 4, MXCSR, 0}, {"fs_base", NULL, "general", 0, BASE, HVX_FS},                     \
        {"gs_base", NULL, "general", 0, BASE, HVX_GS}

static const struct reg wide_regs[] = {
    G("rax", HVX_RAX), G("rbx", HVX_RBX), G("rcx", HVX_RCX), G("rdx", HVX_RDX), G("rsi", HVX_RSI), G("rdi", HVX_RDI),
    {"rbp", "data_ptr", "general", 0, GPR, HVX_RBP}, {"rsp", "data_ptr", "general", 0, GPR, HVX_RSP},
    G("r8", 8), G("r9", 9), G("r10", 10), G("r11", 11), G("r12", 12), G("r13", 13), G("r14", 14), G("r15", 15),
    {"rip", "code_ptr", "general", 0, PC, 0}, {"eflags", "i386_eflags", "general", 4, FLAGS, 0}, COMMON_MIDDLE,
    XMM(8), XMM(9), XMM(10), XMM(11), XMM(12), XMM(13), XMM(14), XMM(15), COMMON_END,
    SYS(S_KGS, "k_gs_base"), SYS(S_CR0, "cr0"), SYS(S_CR2, "cr2"), SYS(S_CR3, "cr3"), SYS(S_CR4, "cr4"),
    SYS(S_CR8, "cr8"), SYS(S_EFER, "efer"),
};
static const struct reg narrow_regs[] = {
    G("eax", HVX_RAX), G("ecx", HVX_RCX), G("edx", HVX_RDX), G("ebx", HVX_RBX),
    {"esp", "data_ptr", "general", 0, GPR, HVX_RSP}, {"ebp", "data_ptr", "general", 0, GPR, HVX_RBP},
    G("esi", HVX_RSI), G("edi", HVX_RDI), {"eip", "code_ptr", "general", 0, PC, 0},
    {"eflags", "i386_eflags", "general", 4, FLAGS, 0}, COMMON_MIDDLE, COMMON_END,
    SYS(S_CR0, "cr0"), SYS(S_CR2, "cr2"), SYS(S_CR3, "cr3"), SYS(S_CR4, "cr4"), SYS(S_EFER, "efer"),
};
#define N(a) (sizeof(a) / sizeof((a)[0]))

static const struct reg *find(bool wide, unsigned number)
{
    if (number >= hvx_gdb_n_regs(wide))
        return NULL;
    return wide ? &wide_regs[number] : &narrow_regs[number];
}

unsigned hvx_gdb_n_regs(bool wide)
{
    return wide ? N(wide_regs) : N(narrow_regs);
}

static unsigned size_of(bool wide, const struct reg *d)
{
    return d->bytes ? d->bytes : wide ? 8 : 4;
}

unsigned hvx_gdb_reg_size(bool wide, unsigned number)
{
    const struct reg *d = find(wide, number);

    return d ? size_of(wide, d) : 0;
}

unsigned hvx_gdb_reg_pc(bool wide)
{
    return wide ? 16 : 8;
}

/* --- x87 and SSE: the legacy area of XSAVE (SDM volume 1, 13.4) ------------------------ */

static bool in_use(const struct hvx_vcpu_regs *r, unsigned component)
{
    return r->xsave[XSTATE_BV] >> component & 1;
}

/* Before a write to a component that is in its initial state. */
static void take_into_use(struct hvx_vcpu_regs *r, unsigned component)
{
    if (in_use(r, component))
        return;
    if (component == 0) {
        memset(r->xsave, 0, 24);
        memset(r->xsave + 32, 0, 128);
        r->xsave[0] = 0x7f;
        r->xsave[1] = 0x03;
    } else {
        memset(r->xsave + 160, 0, 256);
    }
    r->xsave[XSTATE_BV] |= (uint8_t)(1u << component);
}

/* The tag word of FNSTENV from FXSAVE's one bit a register. */
static uint32_t full_tags(const uint8_t *x)
{
    unsigned top = x[3] >> 3 & 7;
    uint32_t tags = 0;

    for (unsigned phys = 0; phys < 8; phys++) {
        const uint8_t *st = x + 32 + 16 * ((phys - top) & 7);
        unsigned exponent = (st[8] | (unsigned)st[9] << 8) & 0x7fff, tag = 0;
        uint64_t mantissa;
        memcpy(&mantissa, st, 8);
        if (!(x[4] >> phys & 1))
            tag = 3;
        else if (exponent == 0x7fff || (exponent && !(mantissa >> 63)) || (!exponent && mantissa))
            tag = 2;
        else if (!exponent)
            tag = 1;
        tags |= tag << (2 * phys);
    }
    return tags;
}

static uint32_t x87_get(const struct hvx_vcpu_regs *r, unsigned i)
{
    static const uint8_t at[8] = {0, 2, 0, 12, 8, 20, 16, 6}, bytes[8] = {2, 2, 0, 2, 4, 2, 4, 2};
    uint32_t v = 0;

    if (!in_use(r, 0))
        return i == 0 ? 0x37f : i == 2 ? 0xffff : 0;
    if (i == 2)
        return full_tags(r->xsave);
    memcpy(&v, r->xsave + at[i], bytes[i]);
    return i == 7 ? v & 0x7ff : v;
}

static void x87_set(struct hvx_vcpu_regs *r, unsigned i, uint32_t v)
{
    static const uint8_t at[8] = {0, 2, 0, 12, 8, 20, 16, 6}, bytes[8] = {2, 2, 0, 2, 4, 2, 4, 2};

    take_into_use(r, 0);
    if (i != 2) {
        memcpy(r->xsave + at[i], &v, bytes[i]);
        return;
    }
    r->xsave[4] = 0;
    for (unsigned phys = 0; phys < 8; phys++)
        r->xsave[4] |= (uint8_t)((v >> (2 * phys) & 3) != 3) << phys;
}

/* --- one register ------------------------------------------------------------------------ */

static uint64_t *system_reg(struct hvx_vcpu_regs *r, unsigned i)
{
    switch (i) {
    case S_KGS: return &r->kernel_gs_base;
    case S_CR0: return &r->cr0;
    case S_CR2: return &r->cr2;
    case S_CR3: return &r->cr3;
    case S_CR4: return &r->cr4;
    case S_CR8: return &r->cr8;
    default: return &r->efer;
    }
}

void hvx_gdb_reg_get(bool wide, unsigned number, const struct hvx_vcpu_regs *r, uint8_t *out)
{
    const struct reg *d = find(wide, number);
    unsigned n = size_of(wide, d);
    uint64_t v = 0;

    memset(out, 0, n);
    switch (d->kind) {
    case GPR: v = r->gpr[d->index]; break;
    case PC: v = r->rip; break;
    case FLAGS: v = r->rflags; break;
    case SELECTOR: v = r->seg[d->index].selector; break;
    case BASE: v = r->seg[d->index].base; break;
    case SYSTEM: v = *system_reg((struct hvx_vcpu_regs *)(uintptr_t)r, d->index); break;
    case FPU_CONTROL: v = x87_get(r, d->index); break;
    case FPU_STACK:
        if (in_use(r, 0))
            memcpy(out, r->xsave + 32 + 16 * d->index, 10);
        return;
    case VECTOR:
        if (in_use(r, 1))
            memcpy(out, r->xsave + 160 + 16 * d->index, 16);
        return;
    case MXCSR:
        memcpy(out, r->xsave + 24, 4);
        return;
    }
    memcpy(out, &v, n);
}

/* In real and virtual-8086 mode a selector says it all; elsewhere its
 * descriptor would have to be read, with all that may go wrong. */
static bool set_selector(struct hvx_vcpu_regs *r, unsigned i, uint16_t v)
{
    if (v == r->seg[i].selector)
        return true;
    if ((r->cr0 & 1) && !(r->rflags & 0x20000))
        return false;
    r->seg[i].selector = v;
    r->seg[i].base = (uint64_t)v << 4;
    return true;
}

bool hvx_gdb_reg_set(bool wide, unsigned number, struct hvx_vcpu_regs *r, const uint8_t *in)
{
    const struct reg *d = find(wide, number);
    unsigned n = size_of(wide, d);
    uint64_t v = 0;

    memcpy(&v, in, n < 8 ? n : 8);
    switch (d->kind) {
    case GPR: r->gpr[d->index] = v; break;
    case PC: r->rip = v; break;
    case FLAGS: r->rflags = (v & 0x3f7fd5u) | 2; break;
    case SELECTOR: return set_selector(r, d->index, (uint16_t)v);
    case BASE: r->seg[d->index].base = v; break;
    case SYSTEM: *system_reg(r, d->index) = v; break;
    case FPU_CONTROL: x87_set(r, d->index, (uint32_t)v); break;
    case FPU_STACK:
        take_into_use(r, 0);
        memcpy(r->xsave + 32 + 16 * d->index, in, 10);
        break;
    case VECTOR:
        take_into_use(r, 1);
        memcpy(r->xsave + 160 + 16 * d->index, in, 16);
        break;
    case MXCSR:
        v &= 0xffff;
        memcpy(r->xsave + 24, &v, 4);
        break;
    }
    return true;
}

/* --- the description ------------------------------------------------------------------------ */

static const char *const flag_bits[] = {"CF", NULL, "PF", NULL, "AF", NULL, "ZF", "SF", "TF", "IF", "DF", "OF", NULL,
                                        NULL, "NT", NULL, "RF", "VM", "AC", "VIF", "VIP", "ID"};
static const char *const mxcsr_bits[] = {"IE", "DE", "ZE", "OE", "UE", "PE", "DAZ", "IM", "DM", "ZM", "OM", "UM", "PM",
                                         NULL, NULL, "FZ"};

struct text {
    char *buf;
    size_t n, at;
};

__attribute__((format(printf, 2, 3))) static void add(struct text *t, const char *fmt, ...)
{
    va_list ap;
    int k;

    va_start(ap, fmt);
    k = vsnprintf(t->buf + t->at, t->n - t->at, fmt, ap);
    va_end(ap);
    t->at = k < 0 || (size_t)k >= t->n - t->at ? t->n - 1 : t->at + (size_t)k;
}

static void add_flags(struct text *t, const char *id, const char *const *bit, unsigned n)
{
    add(t, "<flags id=\"%s\" size=\"4\">", id);
    for (unsigned i = 0; i < n; i++)
        if (bit[i])
            add(t, "<field name=\"%s\" start=\"%u\" end=\"%u\"/>", bit[i], i, i);
    add(t, "</flags>");
}

static void add_feature(struct text *t, bool wide, const char *name, unsigned *i, const char *upto)
{
    const struct reg *d;

    add(t, "<feature name=\"%s\">", name);
    if (!strcmp(name, "org.gnu.gdb.i386.core"))
        add_flags(t, "i386_eflags", flag_bits, N(flag_bits));
    if (!strcmp(name, "org.gnu.gdb.i386.sse")) {
        add(t, "<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/>"
               "<vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>"
               "<vector id=\"v16i8\" type=\"int8\" count=\"16\"/><vector id=\"v8i16\" type=\"int16\" count=\"8\"/>"
               "<vector id=\"v4i32\" type=\"int32\" count=\"4\"/><vector id=\"v2i64\" type=\"int64\" count=\"2\"/>"
               "<union id=\"vec128\"><field name=\"v4_float\" type=\"v4f\"/><field name=\"v2_double\" type=\"v2d\"/>"
               "<field name=\"v16_int8\" type=\"v16i8\"/><field name=\"v8_int16\" type=\"v8i16\"/>"
               "<field name=\"v4_int32\" type=\"v4i32\"/><field name=\"v2_int64\" type=\"v2i64\"/>"
               "<field name=\"uint128\" type=\"uint128\"/></union>");
        add_flags(t, "i386_mxcsr", mxcsr_bits, N(mxcsr_bits));
    }
    while ((d = find(wide, *i)) && (!upto || strcmp(d->name, upto))) {
        unsigned bits = size_of(wide, d) * 8;
        add(t, "<reg name=\"%s\" bitsize=\"%u\" type=\"%s\" regnum=\"%u\"", d->name, bits,
            d->type ? d->type : bits == 64 ? "int64" : "int32", *i);
        if (!strcmp(d->group, "system") || !strcmp(d->group, "float"))
            add(t, " group=\"%s\"", d->group);
        add(t, "/>");
        ++*i;
    }
    add(t, "</feature>");
}

size_t hvx_gdb_description(bool wide, char *buf, size_t n)
{
    struct text t = {buf, n, 0};
    unsigned i = 0;

    add(&t, "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target><architecture>%s</architecture>",
        wide ? "i386:x86-64" : "i386");
    add_feature(&t, wide, "org.gnu.gdb.i386.core", &i, "xmm0");
    add_feature(&t, wide, "org.gnu.gdb.i386.sse", &i, "fs_base");
    add_feature(&t, wide, "org.gnu.gdb.i386.segments", &i, wide ? "k_gs_base" : "cr0");
    add_feature(&t, wide, "org.hvx.system", &i, NULL);
    add(&t, "</target>");
    return t.at;
}
