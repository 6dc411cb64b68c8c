/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/states.c - random states for an instance.
 */
#include "difftest.h"
#include <cpuid.h>
#include <string.h>

struct xsave_layout xlayout;
static bool misaligned_mode; /* AMD's MXCSR.MM */
bool host_amd;

void states_init(void)
{
    uint32_t a, b, c, d, lo, hi;
    if (__get_cpuid(0x80000001, &a, &b, &c, &d))
        misaligned_mode = c >> 7 & 1;
    __cpuid(0, a, b, c, d);
    host_amd = c == 0x444d4163; /* "cAMD" */
    __cpuid(1, a, b, c, d);
    uint64_t xcr0 = 3;
    if (c & 1u << 27) {
        __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
        xcr0 = lo;
    }
    xcr0 &= 0xe7;
    if ((xcr0 & 0xe0) != 0xe0)
        xcr0 &= 7;
    xlayout.mask = xcr0;
    xlayout.total = 576;
    for (unsigned i = 2; i < 8; i++) {
        if (!(xcr0 >> i & 1))
            continue;
        __cpuid_count(0xd, i, a, b, c, d);
        xlayout.size[i] = a;
        xlayout.off[i] = b;
        if (a + b > xlayout.total)
            xlayout.total = a + b;
    }
}

/* --- values --------------------------------------------------------------------------- */

static uint64_t random_integer(struct rng *r)
{
    static const uint64_t odd[] = {0, 1, ~0ull, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000,
                                   0xffffffff, 0x7fffffffffffffff, 0x8000000000000000, 0x100, 0xaaaaaaaaaaaaaaaa};
    switch (rnd_below(r, 5)) {
    case 0: return odd[rnd_below(r, 16)];
    case 1: return rnd(r) >> rnd_below(r, 64);
    case 2: return (uint64_t)((int64_t)rnd(r) >> rnd_below(r, 64));
    default: return rnd(r);
    }
}

static void random_vector(struct rng *r, uint8_t *p, size_t n)
{
    static const uint32_t f32[] = {0, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0x7fa00001,
                                   1, 0x807fffff, 0x00800000, 0x7f7fffff, 0x4f000000, 0xcf000000, 0x5f000000, 0x40490fdb};
    static const uint64_t f64[] = {0, 0x8000000000000000, 0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000,
                                   0xfff0000000000000, 0x7ff8000000000000, 0x7ff4000000000001, 1, 0x800fffffffffffff,
                                   0x0010000000000000, 0x7fefffffffffffff, 0x41e0000000000000, 0x43e0000000000000,
                                   0xc1e0000000000000, 0x400921fb54442d18};
    unsigned kind = rnd_below(r, 6);
    for (size_t i = 0; i < n; i += 8) {
        uint64_t v = rnd(r);
        if (kind == 1)
            v = f32[v & 15] | (uint64_t)f32[v >> 4 & 15] << 32;
        else if (kind == 2)
            v = f64[v & 15];
        else if (kind == 3) /* floats of moderate size */
            v = (v & 0x807fffff807fffffull) | 0x3e0000003e000000ull | (rnd(r) & 0x0380000003800000ull);
        else if (kind == 4)
            v = (v & 0x800fffffffffffffull) | (0x3f0ull + (rnd(r) & 0x1f)) << 52;
        memcpy(p + i, &v, n - i < 8 ? n - i : 8);
    }
}

static void random_x87(struct rng *r, uint8_t *p)
{
    static const uint16_t exponent[] = {0, 1, 0x3fff, 0x4000, 0x3ffe, 0x7ffe, 0x7fff, 0x403e, 0x3fbf, 0xbfff, 0xffff, 0x8000};
    uint64_t m = rnd(r);
    uint16_t e = rnd_below(r, 2) ? exponent[rnd_below(r, 12)] : (uint16_t)(0x3fe0 + rnd_below(r, 64));
    if (!rnd_one_in(r, 8))
        m |= 1ull << 63;
    if (rnd_one_in(r, 6))
        m &= 0xc000000000000000ull;
    memcpy(p, &m, 8);
    memcpy(p + 8, &e, 2);
}

/* An operand in memory of which AMD's processors read one half, as MXCSR.MM shows at the end of a page: shift counts, what
 * is unpacked. The engine looks all of it up. */
static bool half_read(const struct instance *in)
{
    switch (in->insn.mnemonic) {
    case ZYDIS_MNEMONIC_PUNPCKLBW: case ZYDIS_MNEMONIC_PUNPCKLWD: case ZYDIS_MNEMONIC_PUNPCKLDQ: case ZYDIS_MNEMONIC_PUNPCKLQDQ:
    case ZYDIS_MNEMONIC_PUNPCKHBW: case ZYDIS_MNEMONIC_PUNPCKHWD: case ZYDIS_MNEMONIC_PUNPCKHDQ: case ZYDIS_MNEMONIC_PUNPCKHQDQ:
    case ZYDIS_MNEMONIC_UNPCKLPS: case ZYDIS_MNEMONIC_UNPCKLPD: case ZYDIS_MNEMONIC_UNPCKHPS: case ZYDIS_MNEMONIC_UNPCKHPD:
    case ZYDIS_MNEMONIC_PSLLW: case ZYDIS_MNEMONIC_PSLLD: case ZYDIS_MNEMONIC_PSLLQ: case ZYDIS_MNEMONIC_PSRLW:
    case ZYDIS_MNEMONIC_PSRLD: case ZYDIS_MNEMONIC_PSRLQ: case ZYDIS_MNEMONIC_PSRAW: case ZYDIS_MNEMONIC_PSRAD:
        return in->op[1].type == ZYDIS_OPERAND_TYPE_MEMORY;
    default: return false;
    }
}

static void random_xsave(struct rng *r, uint8_t *x, bool may_misalign)
{
    memset(x, 0, XSAVE_MAX);
    uint16_t fcw = (uint16_t)(0x7f | (rnd(r) & 0xf00)), fsw = (uint16_t)(rnd(r) & 0x7f00);
    if (rnd_below(r, 3) == 0)
        fcw = 0x37f;
    if (rnd_one_in(r, 16))
        fcw &= (uint16_t) ~(rnd(r) & 0x3f); /* some exceptions unmasked */
    if (rnd_below(r, 2))
        fsw &= 0x4700; /* TOS = 0 */
    uint8_t tags = rnd_below(r, 4) ? 0xff : (uint8_t)rnd(r);
    uint32_t mxcsr = 0x1f80;
    if (rnd_below(r, 2)) {
        uint64_t v = rnd(r);
        mxcsr = (uint32_t)(0x1f80 | (v & 0xe07f) | (may_misalign && !(v >> 48 & 3) ? 1u << 17 : 0));
    }
    if (rnd_one_in(r, 12))
        mxcsr &= ~(uint32_t)(rnd(r) & 0x1f80);
    memcpy(x, &fcw, 2);
    memcpy(x + 2, &fsw, 2);
    x[4] = tags;
    memcpy(x + 24, &mxcsr, 4);
    for (unsigned i = 0; i < 8; i++)
        random_x87(r, x + 32 + 16 * i);
    for (unsigned i = 0; i < 16; i++)
        random_vector(r, x + 160 + 16 * i, 16);
    memcpy(x + 512, &xlayout.mask, 8);
    for (unsigned c = 2; c < 8; c++)
        for (unsigned o = 0; o < xlayout.size[c]; o += 64)
            random_vector(r, x + xlayout.off[c] + o, xlayout.size[c] - o < 64 ? xlayout.size[c] - o : 64);
}

/* --- addresses -------------------------------------------------------------------------- */

static int gpr_number(ZydisRegister reg)
{
    if (reg == ZYDIS_REGISTER_NONE)
        return -1;
    ZydisRegister full = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
    return full >= ZYDIS_REGISTER_RAX && full <= ZYDIS_REGISTER_R15 ? (int)(full - ZYDIS_REGISTER_RAX) : -1;
}

static bool touches_memory(const ZydisDecodedOperand *o)
{
    return o->type == ZYDIS_OPERAND_TYPE_MEMORY &&
           (o->mem.type == ZYDIS_MEMOP_TYPE_MEM || o->mem.type == ZYDIS_MEMOP_TYPE_VSIB);
}

/* PUSH, RET and the like: the stack, whose width no prefix changes. */
static bool is_stack(const ZydisDecodedOperand *o)
{
    return o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN && gpr_number(o->mem.base) == 4;
}

static uint64_t offset_mask(const struct instance *in, const ZydisDecodedOperand *o)
{
    if (in->insn.address_width == 64 || (is_stack(o) && !mode32))
        return ~0ull;
    return in->insn.address_width == 16 && !is_stack(o) ? 0xffffull : 0xffffffffull;
}

static uint64_t segment_base(const ZydisDecodedOperand *o) { return o->mem.segment == ZYDIS_REGISTER_GS ? GS_BASE : 0; }

static uint64_t index_value(const ZydisDecodedOperand *o, const uint64_t *gpr)
{
    int n = gpr_number(o->mem.index);
    if (n < 0)
        return 0;
    uint64_t v = gpr[n];
    return o->mem.index == ZYDIS_REGISTER_AL ? v & 0xff : v * (o->mem.scale ? o->mem.scale : 1);
}

bool state_address(const struct instance *in, const ZydisDecodedOperand *o, const uint64_t *gpr, uint64_t *ea)
{
    if (!touches_memory(o))
        return false;
    uint64_t off = (o->mem.disp.has_displacement ? (uint64_t)o->mem.disp.value : 0) + index_value(o, gpr);
    if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP)
        off += in->ip + in->insn.length;
    else if (gpr_number(o->mem.base) >= 0)
        off += gpr[gpr_number(o->mem.base)];
    *ea = (off & offset_mask(in, o)) + segment_base(o);
    return true;
}

static bool is_byte_masked(const struct instance *in)
{
    return in->insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU || in->insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ ||
           in->insn.mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU;
}

/* Around the borders of pages, and elsewhere. */
static uint64_t random_place(const struct instance *in, const ZydisDecodedOperand *o, struct rng *r)
{
    unsigned size = o->size / 8 ? o->size / 8 : 1;
    uint64_t align = size >= 16 && rnd_below(r, 2) ? (size >= 64 ? 63 : size - 1) : 0;

    if (is_byte_masked(in)) /* what inactive bytes may do at page borders differs between processors */
        return PAGE_B + (rnd_below(r, 2) ? rnd_below(r, 224) : 0ull - 16 - rnd_below(r, 224));
    if (size >= 512)
        return rnd_one_in(r, 8) ? WIN1 + rnd_below(r, 16) : WIN1;
    if (size > 128)
        size = 128;
    if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
        return PAGE_B - 32 + rnd_below(r, 64);
    switch (rnd_below(r, 20)) {
    case 0: case 1: case 2: case 3: case 4: case 5:
        return (PAGE_B - 1 - rnd_below(r, size)) & ~align; /* crosses, when it has more than a byte */
    case 6: case 7:
        return (PAGE_C - 1 - rnd_below(r, size)) & ~align;
    case 8:
        return (PAGE_C + 4096 - 1 - rnd_below(r, size)) & ~align;
    case 9:
        return PAGE_A - rnd_below(r, size + 1);
    case 10:
        if (in->insn.address_width == 64 && rnd_below(r, 2) && segment_base(o) == 0)
            return 0x8000000000000000ull ^ (rnd(r) & 0x3fffffffffffffffull);
        return DATA + 0x18000 + rnd_below(r, 64);
    default: return (WIN1 + rnd_below(r, WIN1_SIZE - size)) & ~align;
    }
}

static bool harmless(uint64_t ea)
{
    int64_t top = (int64_t)ea >> 47;
    if (mode32 && ea < 0x10000) /* nothing is mapped there, here or in the guest */
        return true;
    return (ea >= DATA + 0x8000 && ea < DATA + DATA_SIZE - 0x8000) || (top != 0 && top != -1);
}

/* Give the operand's registers values that make it point to ea. */
static void point(const struct instance *in, const ZydisDecodedOperand *o, uint64_t ea, uint64_t *gpr, struct rng *r)
{
    int base = gpr_number(o->mem.base), index = gpr_number(o->mem.index);
    uint64_t mask = offset_mask(in, o), disp = o->mem.disp.has_displacement ? (uint64_t)o->mem.disp.value : 0;
    uint64_t want = ea - segment_base(o) - disp;

    if (base < 0) {
        if (index >= 0)
            gpr[index] = rnd_below(r, 8) | (mask == ~0ull ? 0 : rnd(r) << 32);
        return;
    }
    uint64_t v;
    if (base == index)
        v = (want & mask) / (1u + o->mem.scale);
    else
        v = want - index_value(o, gpr);
    if (mask == 0xffff)
        gpr[base] = (v & mask) | (rnd(r) & 0xffff0000);
    else
        gpr[base] = mask == ~0ull ? v : (v & mask) | (rnd_below(r, 2) ? rnd(r) << 32 : 0);
}

/* --- instructions with wishes of their own ---------------------------------------------------- */

static uint8_t *window(uint8_t *block, uint64_t ea, unsigned size)
{
    if (ea >= WIN1 && ea + size <= WIN1 + WIN1_SIZE)
        return block + B_WIN + (ea - WIN1);
    if (ea >= WIN2 && ea + size <= WIN2 + WIN2_SIZE)
        return block + B_WIN + WIN1_SIZE + (ea - WIN2);
    return NULL;
}

static void small_indices(const struct instance *in, const ZydisDecodedOperand *o, uint8_t *x, struct rng *r)
{
    const char *m = ZydisMnemonicGetString(in->insn.mnemonic), *p = strstr(m, "gather");
    unsigned n = ZydisRegisterGetId(o->mem.index), scale = o->mem.scale ? o->mem.scale : 1;
    p = p ? p + 6 : strstr(m, "scatter") ? strstr(m, "scatter") + 7 : m;
    bool dwords = *p == 'd' || (*p == 'p' && p[2] == 'd'); /* vgatherdps; vgatherpf0dps */
    for (unsigned i = 0; i < 8; i++) {
        int64_t a = (int64_t)rnd_below(r, 200 / scale) - 100 / (int)scale, b = (int64_t)rnd_below(r, 200 / scale) - 100 / (int)scale;
        uint64_t v = dwords ? (uint32_t)a | (uint64_t)(uint32_t)b << 32 : (uint64_t)a;
        uint8_t *d;
        if (n >= 16)
            d = xlayout.size[7] ? x + xlayout.off[7] + (n - 16) * 64 + i * 8 : NULL;
        else if (i < 2)
            d = x + 160 + n * 16 + i * 8;
        else if (i < 4)
            d = xlayout.size[2] ? x + xlayout.off[2] + n * 16 + (i - 2) * 8 : NULL;
        else
            d = xlayout.size[6] ? x + xlayout.off[6] + n * 32 + (i - 4) * 8 : NULL;
        if (d)
            memcpy(d, &v, 8);
    }
}

static void wishes_before(const struct instance *in, uint64_t *gpr, struct rng *r)
{
    const ZydisDecodedInstruction *d = &in->insn;
    if (d->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
        gpr[1] = rnd_below(r, 20) | (d->address_width == 32 ? rnd(r) << 32 : 0);
    switch (d->mnemonic) {
    case ZYDIS_MNEMONIC_LOOP:
    case ZYDIS_MNEMONIC_LOOPE:
    case ZYDIS_MNEMONIC_LOOPNE:
    case ZYDIS_MNEMONIC_JRCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
        if (rnd_below(r, 3))
            gpr[1] = rnd_below(r, 3) | (rnd_below(r, 2) ? rnd(r) << 32 : 0);
        break;
    case ZYDIS_MNEMONIC_DIV:
        if (rnd_below(r, 3)) {
            gpr[2] = rnd_below(r, 3);
            if (d->operand_width == 8)
                gpr[0] &= ~0xff00ull;
        }
        break;
    case ZYDIS_MNEMONIC_IDIV:
        if (rnd_below(r, 3)) {
            gpr[0] = (uint64_t)((int64_t)gpr[0] >> rnd_below(r, 30));
            gpr[2] = (uint64_t)((int64_t)gpr[0] >> 63);
        }
        break;
    case ZYDIS_MNEMONIC_ENTER:
    case ZYDIS_MNEMONIC_LEAVE: gpr[5] = WIN1 + 200 + rnd_below(r, 64); break;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        if (in->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY && in->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER) {
            int n = gpr_number(in->op[1].reg.value);
            int64_t bit = (int64_t)rnd_below(r, rnd_one_in(r, 16) ? 200000 : 2000);
            uint64_t v = (uint64_t)(rnd_below(r, 2) ? bit : -bit);
            if (n >= 0) /* the bits above the operand size do not count */
                gpr[n] = d->operand_width == 32 ? (uint32_t)v | rnd(r) << 32 : v;
        }
        break;
    default: break;
    }
}

static bool is_indirect(const struct instance *in)
{
    ZydisMnemonic m = in->insn.mnemonic;
    return ((m == ZYDIS_MNEMONIC_JMP || m == ZYDIS_MNEMONIC_CALL) && in->op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE) ||
           m == ZYDIS_MNEMONIC_RET;
}

/* Indirect branches go to the "taken" pad. Not to addresses that are not
 * canonical: this processor raises #GP at the branch, the engine (and others)
 * at the target. False: cannot be arranged. */
static bool aim(const struct instance *in, uint64_t *gpr, uint8_t *block)
{
    uint64_t pad = in->ip + in->len + PAD_SIZE, ea;
    const unsigned size = mode32 ? 4 : 8;
    const ZydisDecodedOperand *o = &in->op[0];
    if (in->insn.mnemonic != ZYDIS_MNEMONIC_RET && o->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        gpr[gpr_number(o->reg.value)] = pad;
        return true;
    }
    for (unsigned i = 0; i < in->insn.operand_count; i++) {
        o = &in->op[i];
        if (!touches_memory(o) || (in->insn.mnemonic != ZYDIS_MNEMONIC_RET && is_stack(o)))
            continue;
        if (!state_address(in, o, gpr, &ea))
            return false;
        uint8_t *w = window(block, ea, size);
        if (w)
            memcpy(w, &pad, size);
        /* Page C and the holes: the load faults, or finds what must not be jumped to. */
        return w || ea + 7 < PAGE_A || ea > PAGE_C + 4096 - 8;
    }
    return false;
}

static void wishes_after(const struct instance *in, uint64_t *gpr, uint8_t *block, struct rng *r)
{
    uint64_t ea;
    ZydisMnemonic m = in->insn.mnemonic;
    if (m != ZYDIS_MNEMONIC_CMPXCHG && m != ZYDIS_MNEMONIC_CMPXCHG8B && m != ZYDIS_MNEMONIC_CMPXCHG16B)
        return;
    if (rnd_below(r, 2) || !state_address(in, &in->op[0], gpr, &ea))
        return;
    uint8_t *w = window(block, ea, in->op[0].size / 8);
    if (!w)
        return;
    unsigned half = m == ZYDIS_MNEMONIC_CMPXCHG ? in->op[0].size / 8 : in->op[0].size / 16;
    memcpy(w, &gpr[0], half); /* make the comparison succeed */
    if (m != ZYDIS_MNEMONIC_CMPXCHG)
        memcpy(w + half, &gpr[2], half);
}

/* Registers that form addresses, and those that are written, as bit masks. */
static void usage(const struct instance *in, uint32_t *bases, uint32_t *indices, uint32_t *written)
{
    if (host_amd && in->insn.mnemonic == ZYDIS_MNEMONIC_PAUSE && !mode32 && in->insn.raw.rex.B) /* XCHG R8, RAX */
        *written |= 1u << 0 | 1u << 8;
    for (unsigned i = 0; i < in->insn.operand_count; i++) {
        const ZydisDecodedOperand *o = &in->op[i];
        int n;
        if (touches_memory(o)) {
            if ((n = gpr_number(o->mem.base)) >= 0)
                *bases |= 1u << n;
            if ((n = gpr_number(o->mem.index)) >= 0)
                *indices |= 1u << n;
        } else if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
                   (n = gpr_number(o->reg.value)) >= 0) {
            *written |= 1u << n;
        }
    }
}

/* AMD's family 25: EVEX VCVTSI2SD and the like see RSP as it was before a PUSH or POP just ahead, when they are decoded for
 * the first time. */
static bool stale_stack_pointer(const struct instance *in)
{
    for (unsigned i = 0; host_amd && in->insn.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && i < in->insn.operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && gpr_number(in->op[i].reg.value) == 4)
            return true;
    return false;
}

bool state_fits(const struct instance *seq, unsigned n, const struct instance *in)
{
    uint32_t bases = 0, indices = 0, written = 0, b = 0, x = 0, w = 0;
    if (stale_stack_pointer(in))
        return false;
    switch (in->insn.meta.category) {
    case ZYDIS_CATEGORY_CALL: case ZYDIS_CATEGORY_RET: case ZYDIS_CATEGORY_COND_BR: case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_IO: case ZYDIS_CATEGORY_IOSTRINGOP: case ZYDIS_CATEGORY_AVX2GATHER: case ZYDIS_CATEGORY_GATHER:
    case ZYDIS_CATEGORY_SCATTER:
        return false;
    default: break;
    }
    switch (in->insn.mnemonic) {
    case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC: /* bit offsets */
    case ZYDIS_MNEMONIC_POPA: case ZYDIS_MNEMONIC_POPAD: case ZYDIS_MNEMONIC_ENTER: case ZYDIS_MNEMONIC_LEAVE: case ZYDIS_MNEMONIC_DIV: case ZYDIS_MNEMONIC_IDIV:
    case ZYDIS_MNEMONIC_FNSAVE: case ZYDIS_MNEMONIC_FNSTENV: case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FLDCW: case ZYDIS_MNEMONIC_FRSTOR: case ZYDIS_MNEMONIC_FLDENV: case ZYDIS_MNEMONIC_FXRSTOR: /* see main.c: ignored_byte() */
        return false;
    default: break;
    }
    if ((in->insn.attributes & (ZYDIS_ATTRIB_IS_PRIVILEGED | ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE |
                                ZYDIS_ATTRIB_HAS_REPNE)) || is_byte_masked(in))
        return false;
    if (in->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY && (in->op[0].size == 80 || in->insn.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH))
        return false;
    for (unsigned i = 0; i < n; i++)
        usage(&seq[i], &bases, &indices, &written);
    usage(in, &b, &x, &w);
    return !((b | x) & written) && !(b & (bases | indices)) && !(x & bases);
}

static bool uses_x87(const struct instance *in)
{
    if (in->insn.meta.category == ZYDIS_CATEGORY_X87_ALU)
        return true;
    for (unsigned i = 0; i < in->insn.operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(in->op[i].reg.value) == ZYDIS_REGCLASS_MMX)
            return true;
    return false;
}

bool state_tame(const struct instance *in, uint32_t reserved, int base)
{
    uint32_t bases = 0, indices = 0, written = 0;
    unsigned n = 0;
    if (!state_fits(NULL, 0, in) || in->insn.mnemonic == ZYDIS_MNEMONIC_LDMXCSR || in->insn.mnemonic == ZYDIS_MNEMONIC_VLDMXCSR)
        return false;
    for (unsigned i = 0; i < in->insn.operand_count; i++)
        if (touches_memory(&in->op[i]) && (n++ || gpr_number(in->op[i].mem.base) != base || gpr_number(in->op[i].mem.index) >= 0 ||
                                           in->op[i].mem.type != ZYDIS_MEMOP_TYPE_MEM || !in->form->mem))
            return false;
    usage(in, &bases, &indices, &written);
    return !(written & reserved) && !(in->form->mem && uses_x87(in));
}

void state_fill(struct rng *r, uint8_t *block, uint64_t gpr[16])
{
    random_xsave(r, block + B_XSAVE, false);
    block[B_XSAVE] |= 0x3f;
    block[B_XSAVE + 24] |= 0x80, block[B_XSAVE + 25] |= 0x1f;
    for (unsigned i = 0; i < WIN1_SIZE + WIN2_SIZE; i += 64)
        random_vector(r, block + B_WIN + i, 64);
    for (unsigned i = 0; i < 16; i++)
        gpr[i] = random_integer(r);
}

bool state_random(const struct instance *in, unsigned n, struct rng *r, uint8_t *block)
{
    uint64_t gpr[16], flags, target = in->ip | (mode32 ? (uint64_t)SEL_CODE32 << 32 : 0), ea;

    bool may_misalign = misaligned_mode;
    for (unsigned k = 0; k < n; k++)
        may_misalign &= !half_read(&in[k]);
    random_xsave(r, block + B_XSAVE, may_misalign);
    /* With an exception unmasked, or pending, a memory access of the x87 or MMX does
     * not happen; whether its page is looked at before is not the same here and there. */
    for (unsigned k = 0; k < n; k++) {
        if (in[k].form->mem && uses_x87(&in[k]))
            block[B_XSAVE] |= 0x3f;
        if (in[k].form->mem && in[k].insn.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH)
            block[B_XSAVE + 24] |= 0x80, block[B_XSAVE + 25] |= 0x1f;
    }
    for (unsigned i = 0; i < WIN1_SIZE + WIN2_SIZE; i += 64)
        random_vector(r, block + B_WIN + i, 64);
    for (unsigned attempt = 0; attempt < 50; attempt++) {
        bool ok = true;
        for (unsigned i = 0; i < 16; i++)
            gpr[i] = random_integer(r);
        for (unsigned k = 0; k < n; k++) {
            wishes_before(&in[k], gpr, r);
            for (unsigned i = 0; i < in[k].insn.operand_count; i++) {
                const ZydisDecodedOperand *o = &in[k].op[i];
                if (!touches_memory(o))
                    continue;
                if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
                    small_indices(&in[k], o, block + B_XSAVE, r);
                uint64_t place = random_place(&in[k], o, r);
                if (n > 1 && rnd_below(r, 8)) /* long sequences should not all end at their first fault */
                    place = (WIN1 + rnd_below(r, 384)) & (rnd_below(r, 2) ? ~63ull : ~0ull);
                point(&in[k], o, place, gpr, r);
            }
        }
        if (n == 1 && is_indirect(in))
            ok = aim(in, gpr, block);
        for (unsigned k = 0; k < n; k++)
            for (unsigned i = 0; i < in[k].insn.operand_count && ok; i++)
                if (state_address(&in[k], &in[k].op[i], gpr, &ea))
                    ok = harmless(ea);
        if (!ok)
            continue;
        wishes_after(in, gpr, block, r);
        if (mode32)
            for (unsigned i = 0; i < 8; i++)
                gpr[i] &= 0xffffffff;
        flags = 0x202 | (rnd(r) & 0x8d5) | (rnd_one_in(r, 6) ? 0x400 : 0);
        memcpy(block, gpr, sizeof(gpr));
        memcpy(block + B_FLAGS, &flags, 8);
        memcpy(block + B_TARGET, &target, 8);
        return true;
    }
    return false;
}

void state_page_c(uint8_t page[4096])
{
    struct rng r = {.s = 12345};
    for (unsigned i = 0; i < 4096; i += 64)
        random_vector(&r, page + i, 64);
}
