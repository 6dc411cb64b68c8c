/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/forms.c - the forms of instructions, found by walking
 * through opcode space.
 */
#include "difftest.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool mode32;
static ZydisDecoder decoder;

/* --- what may run ------------------------------------------------------------------ */

static bool category_excluded(ZydisInstructionCategory c)
{
    switch (c) {
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_XSAVE: /* the driver does nothing else all day */
    case ZYDIS_CATEGORY_XSAVEOPT:
    case ZYDIS_CATEGORY_RDRAND:
    case ZYDIS_CATEGORY_RDSEED:
    case ZYDIS_CATEGORY_RDPID:
    case ZYDIS_CATEGORY_RDPRU:
    case ZYDIS_CATEGORY_RDWRFSGS:
    case ZYDIS_CATEGORY_PKU:
    case ZYDIS_CATEGORY_SGX:
    case ZYDIS_CATEGORY_VTX:
    case ZYDIS_CATEGORY_UINTR:
    case ZYDIS_CATEGORY_KEYLOCKER:
    case ZYDIS_CATEGORY_KEYLOCKER_WIDE:
    case ZYDIS_CATEGORY_ENQCMD:
    case ZYDIS_CATEGORY_PCONFIG:
    case ZYDIS_CATEGORY_PT:
    case ZYDIS_CATEGORY_MPX:
    case ZYDIS_CATEGORY_WAITPKG:
    case ZYDIS_CATEGORY_HRESET:
    case ZYDIS_CATEGORY_AMX_TILE:
    case ZYDIS_CATEGORY_TSX_LDTRK:
    case ZYDIS_CATEGORY_SMAP:
    case ZYDIS_CATEGORY_CLZERO:
    case ZYDIS_CATEGORY_PADLOCK:
    case ZYDIS_CATEGORY_KNC:
    case ZYDIS_CATEGORY_KNCMASK:
    case ZYDIS_CATEGORY_KNCSCALAR:
    case ZYDIS_CATEGORY_UFMA:
    case ZYDIS_CATEGORY_XOP:
    case ZYDIS_CATEGORY_TBM:
    case ZYDIS_CATEGORY_FMA4:
    case ZYDIS_CATEGORY_AMD3DNOW:
    case ZYDIS_CATEGORY_AVX512_4FMAPS:
    case ZYDIS_CATEGORY_AVX512_4VNNIW:
    case ZYDIS_CATEGORY_SEGOP: /* LDS and the like: selectors differ */
    case ZYDIS_CATEGORY_INVALID: return true;
    default: return false;
    }
}

static bool mnemonic_excluded(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_CPUID: /* answers differ by design */
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_XGETBV:
    case ZYDIS_MNEMONIC_SGDT: /* the host kernel emulates them under UMIP */
    case ZYDIS_MNEMONIC_SIDT:
    case ZYDIS_MNEMONIC_SLDT:
    case ZYDIS_MNEMONIC_STR:
    case ZYDIS_MNEMONIC_SMSW:
    case ZYDIS_MNEMONIC_LAR: /* descriptor tables differ */
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
    case ZYDIS_MNEMONIC_XBEGIN:
    case ZYDIS_MNEMONIC_XEND:
    case ZYDIS_MNEMONIC_XABORT:
    case ZYDIS_MNEMONIC_XTEST:
    case ZYDIS_MNEMONIC_MONITOR:
    case ZYDIS_MNEMONIC_MONITORX:
    case ZYDIS_MNEMONIC_MWAIT:
    case ZYDIS_MNEMONIC_MWAITX:
    case ZYDIS_MNEMONIC_POPF: /* would set TF and AC: states.c cannot contain it */
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
    case ZYDIS_MNEMONIC_VMRUN:
    case ZYDIS_MNEMONIC_GETSEC:
    case ZYDIS_MNEMONIC_RSM:
    case ZYDIS_MNEMONIC_SEAMCALL: /* calls of whatever hypervisor is below */
    case ZYDIS_MNEMONIC_SEAMRET:
    case ZYDIS_MNEMONIC_SEAMOPS:
    case ZYDIS_MNEMONIC_TDCALL:
    case ZYDIS_MNEMONIC_VMMCALL:
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_STGI:
    case ZYDIS_MNEMONIC_CLGI:
    case ZYDIS_MNEMONIC_SKINIT:
    case ZYDIS_MNEMONIC_INVLPGA:
    case ZYDIS_MNEMONIC_INVLPGB:
    case ZYDIS_MNEMONIC_TLBSYNC:
    case ZYDIS_MNEMONIC_VMLOAD: /* AMD's: no guest is shown them (#UD), the host's #GP comes of the privilege */
    case ZYDIS_MNEMONIC_VMSAVE:
    case ZYDIS_MNEMONIC_PVALIDATE:
    case ZYDIS_MNEMONIC_PSMASH:
    case ZYDIS_MNEMONIC_RMPADJUST:
    case ZYDIS_MNEMONIC_RMPUPDATE:
    case ZYDIS_MNEMONIC_UD0: /* how many bytes it has is the model's business */
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_SETSSBSY: return true;
    default: return false;
    }
}

static bool may_run(const ZydisDecodedInstruction *d, const ZydisDecodedOperand *op)
{
    if (d->meta.category == ZYDIS_CATEGORY_CET)
        return d->mnemonic == ZYDIS_MNEMONIC_ENDBR32 || d->mnemonic == ZYDIS_MNEMONIC_ENDBR64 ||
               d->mnemonic == ZYDIS_MNEMONIC_RDSSPD || d->mnemonic == ZYDIS_MNEMONIC_RDSSPQ;
    if (category_excluded(d->meta.category) || mnemonic_excluded(d->mnemonic))
        return false;
    if (d->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
        return false;
    for (unsigned i = 0; i < d->operand_count; i++) {
        if (op[i].type == ZYDIS_OPERAND_TYPE_POINTER)
            return false;
        if (op[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        ZydisRegisterClass c = ZydisRegisterGetClass(op[i].reg.value);
        if (c == ZYDIS_REGCLASS_SEGMENT && (op[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
            return false;
    }
    return true;
}

/* --- names --------------------------------------------------------------------------- */

static void operand_name(const ZydisDecodedInstruction *d, const ZydisDecodedOperand *o, char *buf, size_t n)
{
    switch (o->type) {
    case ZYDIS_OPERAND_TYPE_REGISTER:
        switch (ZydisRegisterGetClass(o->reg.value)) {
        case ZYDIS_REGCLASS_GPR8: snprintf(buf, n, "r8"); break;
        case ZYDIS_REGCLASS_GPR16: snprintf(buf, n, "r16"); break;
        case ZYDIS_REGCLASS_GPR32: snprintf(buf, n, "r32"); break;
        case ZYDIS_REGCLASS_GPR64: snprintf(buf, n, "r64"); break;
        case ZYDIS_REGCLASS_X87: snprintf(buf, n, "st"); break;
        case ZYDIS_REGCLASS_MMX: snprintf(buf, n, "mm"); break;
        case ZYDIS_REGCLASS_XMM: snprintf(buf, n, "xmm"); break;
        case ZYDIS_REGCLASS_YMM: snprintf(buf, n, "ymm"); break;
        case ZYDIS_REGCLASS_ZMM: snprintf(buf, n, "zmm"); break;
        case ZYDIS_REGCLASS_MASK: snprintf(buf, n, "k"); break;
        case ZYDIS_REGCLASS_SEGMENT: snprintf(buf, n, "sreg"); break;
        case ZYDIS_REGCLASS_CONTROL: snprintf(buf, n, "cr"); break;
        case ZYDIS_REGCLASS_DEBUG: snprintf(buf, n, "dr"); break;
        default: snprintf(buf, n, "reg"); break;
        }
        break;
    case ZYDIS_OPERAND_TYPE_MEMORY:
        snprintf(buf, n, "m%u%s", o->size, d->avx.broadcast.mode && !d->avx.broadcast.is_static ? "b" : "");
        break;
    case ZYDIS_OPERAND_TYPE_IMMEDIATE: snprintf(buf, n, o->imm.is_relative ? "rel%u" : "imm%u", o->size); break;
    default: snprintf(buf, n, "?"); break;
    }
}

static void form_name(const ZydisDecodedInstruction *d, const ZydisDecodedOperand *op, char *buf, size_t n)
{
    static const char *const enc[] = {"", "", "", "vex", "evex", ""};
    size_t len = (size_t)snprintf(buf, n, "%s%s", mode32 ? "32: " : "", ZydisMnemonicGetString(d->mnemonic));
    if (d->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE))
        len += (size_t)snprintf(buf + len, n - len, " rep");
    if (d->attributes & ZYDIS_ATTRIB_HAS_REPNE)
        len += (size_t)snprintf(buf + len, n - len, " repne");
    for (unsigned i = 0; i < d->operand_count; i++) {
        char o[24];
        if (op[i].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN || (d->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX &&
                                                                   op[i].encoding == ZYDIS_OPERAND_ENCODING_MASK))
            continue;
        operand_name(d, &op[i], o, sizeof(o));
        len += (size_t)snprintf(buf + len, n - len, "%s%s", i ? "," : " ", o);
        if (len >= n)
            return;
    }
    if (d->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && d->avx.has_sae)
        len += (size_t)snprintf(buf + len, n - len, " sae");
    snprintf(buf + len, n - len, " [%s%s%x:%02x]", d->encoding < 6 ? enc[d->encoding] : "?",
             d->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX || d->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ? "." : "",
             d->opcode_map, d->opcode);
}

static bool decode(const uint8_t *b, size_t n, ZydisDecodedInstruction *d, ZydisDecodedOperand *op)
{
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, b, n, d, op)))
        return false;
    /* Zydis 4.0.0 takes [index*scale + disp32] for [r13d + index*scale] under
     * an address-size prefix when REX.B is set. */
    if (!mode32 && d->address_width == 32 && (d->attributes & ZYDIS_ATTRIB_HAS_SIB) && d->raw.modrm.mod == 0 && d->raw.sib.base == 5)
        for (unsigned i = 0; i < d->operand_count; i++)
            if (op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && op[i].mem.base == ZYDIS_REGISTER_R13D) {
                op[i].mem.base = ZYDIS_REGISTER_NONE;
                op[i].mem.disp.has_displacement = true;
                op[i].mem.disp.value = d->raw.disp.value;
            }
    return true;
}

/* --- encoding ----------------------------------------------------------------------------- */

struct pieces {
    uint8_t prefix[4], n_prefix;
    uint8_t rex;        /* legacy: 0 none */
    uint8_t r, x, b, r2, v, vvvv, z, aaa; /* VEX/EVEX, not inverted */
    uint8_t two_byte_vex;
    uint8_t modrm, sib, has_sib, disp_size;
    uint32_t disp;
};

static uint8_t *put_prefixes(const struct form *f, const struct pieces *p, uint8_t *o)
{
    static const uint8_t pp_byte[4] = {0, 0x66, 0xf3, 0xf2};
    for (unsigned i = 0; i < p->n_prefix; i++)
        *o++ = p->prefix[i];
    if (f->encoding == FORM_LEGACY) {
        if (f->pp)
            *o++ = pp_byte[f->pp];
        if (p->rex)
            *o++ = p->rex;
        if (f->map >= 1)
            *o++ = 0x0f;
        if (f->map >= 2)
            *o++ = f->map == 2 ? 0x38 : 0x3a;
    } else if (f->encoding == FORM_VEX) {
        if (p->two_byte_vex && f->map == 1 && !f->w && !p->x && !p->b) {
            *o++ = 0xc5;
            *o++ = (uint8_t)(!p->r << 7 | (~p->vvvv & 15) << 3 | f->l << 2 | f->pp);
        } else {
            *o++ = 0xc4;
            *o++ = (uint8_t)(!p->r << 7 | !p->x << 6 | !p->b << 5 | f->map);
            *o++ = (uint8_t)(f->w << 7 | (~p->vvvv & 15) << 3 | f->l << 2 | f->pp);
        }
    } else {
        *o++ = 0x62;
        *o++ = (uint8_t)(!p->r << 7 | !p->x << 6 | !p->b << 5 | !p->r2 << 4 | f->map);
        *o++ = (uint8_t)(f->w << 7 | (~p->vvvv & 15) << 3 | 4 | f->pp);
        *o++ = (uint8_t)(p->z << 7 | f->l << 5 | f->bcast << 4 | !p->v << 3 | p->aaa);
    }
    *o++ = f->opcode;
    return o;
}

static unsigned assemble(const struct form *f, const struct pieces *p, uint64_t tail, uint8_t *bytes)
{
    uint8_t buf[40], *o = put_prefixes(f, p, buf);
    if (f->has_modrm) {
        *o++ = p->modrm;
        if (p->has_sib)
            *o++ = p->sib;
        memcpy(o, &p->disp, 4);
        o += p->disp_size;
    }
    memcpy(o, &tail, 8);
    o += 8;
    unsigned n = (unsigned)(o - buf);
    memcpy(bytes, buf, n > 16 ? 16 : n);
    return n > 15 ? 15 : n;
}

/* Skeleton of a form for enumeration: simplest registers. */
static bool skeleton(struct form *f, unsigned reg, unsigned rm, ZydisDecodedInstruction *d, ZydisDecodedOperand *op)
{
    struct pieces p = {.rex = f->w ? 0x48 : 0};
    uint8_t bytes[16];
    f->has_modrm = 1;
    p.modrm = (uint8_t)(f->mem ? reg << 3 | 1 : 0xc0 | reg << 3 | rm); /* [rcx] */
    for (unsigned k = 0; k < 3; k++) {
        /* An all-ones vvvv where there is no such operand; a VSIB; a mask where one is needed. */
        p.vvvv = k == 1 ? 3 : 0;
        p.aaa = k == 2 ? 1 : 0;
        p.has_sib = k == 2;
        if (k == 2 && f->mem) {
            p.modrm = (uint8_t)(reg << 3 | 4);
            p.sib = 0x11;
            p.vvvv = f->encoding == FORM_VEX ? 3 : 0;
        }
        unsigned n = assemble(f, &p, 0x0102030405060708ull, bytes);
        if (decode(bytes, n, d, op))
            return true;
        if (f->encoding == FORM_LEGACY)
            return false;
    }
    return false;
}

static struct form *find(struct form *forms, size_t n, const char *name)
{
    for (size_t i = n; i-- > 0;)
        if (!strcmp(forms[i].name, name))
            return &forms[i];
    return NULL;
}

/* All of one opcode; names are unique within an opcode, prefixes that change
 * nothing give the same name again and are dropped. */
static void walk_opcode(struct form **forms, size_t *n, size_t *cap, size_t first, const struct form *proto)
{
    for (unsigned k = 0; k < 64; k++) {
        struct form f = *proto;
        ZydisDecodedInstruction d;
        ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
        if (f.mem && (k & 7))
            continue;
        if (!skeleton(&f, k >> 3, k & 7, &d, op) || !may_run(&d, op))
            continue;
        f.has_modrm = (d.attributes & ZYDIS_ATTRIB_HAS_MODRM) != 0;
        if (!f.has_modrm && f.mem)
            continue;
        form_name(&d, op, f.name, sizeof(f.name));
        struct form *old = find(*forms + first, *n - first, f.name);
        if (old) {
            if (old->pp == f.pp && old->w == f.w && old->l == f.l && old->mem == f.mem && old->bcast == f.bcast)
                old->regrm |= 1ull << k;
            continue;
        }
        if (*n == *cap) {
            *cap = *cap ? *cap * 2 : 4096;
            *forms = realloc(*forms, *cap * sizeof(f));
            if (!*forms)
                abort();
        }
        f.regrm = 1ull << k;
        (*forms)[(*n)++] = f;
    }
}

static bool legacy_prefix(unsigned map, unsigned opcode)
{
    if (map == 0)
        return opcode == 0x0f || (opcode & 0xe7) == 0x26 || (!mode32 && (opcode & 0xf0) == 0x40) || opcode == 0x62 ||
               (opcode >= 0x64 && opcode <= 0x67) ||
               opcode == 0xc4 || opcode == 0xc5 || opcode == 0xf0 || opcode == 0xf2 || opcode == 0xf3;
    return map == 1 && (opcode == 0x38 || opcode == 0x3a || opcode == 0x0f);
}

size_t forms_enumerate(struct form **out)
{
    struct form *forms = NULL;
    size_t n = 0, cap = 0;
    static const struct { uint8_t encoding, first, last, w, l, b; } kinds[] = {
        {FORM_LEGACY, 0, 3, 2, 1, 1}, {FORM_VEX, 1, 3, 2, 2, 1}, {FORM_EVEX, 1, 6, 2, 3, 2}};

    if (mode32)
        ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
    else
        ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    for (unsigned e = 0; e < (mode32 ? 2u : 3u); e++) /* no EVEX in 32-bit code here */
        for (unsigned map = kinds[e].first; map <= kinds[e].last; map++)
            for (unsigned opcode = 0; opcode < 256; opcode++) {
                size_t first = n;
                if (e == 0 && legacy_prefix(map, opcode))
                    continue;
                for (unsigned v = 0; v < 4u * kinds[e].w * kinds[e].l * kinds[e].b * 2; v++) {
                    struct form f = {.encoding = (uint8_t)e, .map = (uint8_t)map, .opcode = (uint8_t)opcode};
                    unsigned t = v;
                    f.mem = t & 1, t >>= 1;
                    f.pp = t & 3, t >>= 2;
                    f.w = (uint8_t)(t % kinds[e].w), t /= kinds[e].w;
                    if (mode32 && f.w && e == FORM_LEGACY)
                        continue; /* there is no REX */
                    f.l = (uint8_t)(t % kinds[e].l), t /= kinds[e].l;
                    f.bcast = (uint8_t)t;
                    walk_opcode(&forms, &n, &cap, first, &f);
                }
            }
    *out = forms;
    return n;
}

/* --- instances -------------------------------------------------------------------------------- */

/* Where memory operands go, when it is not to be random (form_steered). */
static struct { bool on; unsigned base; int32_t disp; } steer;

static void steered_memory(struct pieces *p)
{
    unsigned rm = steer.base & 7;
    p->modrm = (uint8_t)(0x80 | (p->modrm & 0x38) | rm);
    p->has_sib = rm == 4;
    p->sib = (uint8_t)(0x20 | rm);
    p->disp_size = 4;
    p->disp = (uint32_t)steer.disp;
}

static void random_memory(const struct form *f, struct rng *r, struct pieces *p)
{
    unsigned mod = rnd_below(r, 3), rm = rnd_below(r, 8);
    p->modrm = (uint8_t)(mod << 6 | (p->modrm & 0x38) | rm);
    p->has_sib = rm == 4;
    p->sib = (uint8_t)rnd(r);
    p->disp_size = mod == 1 ? 1 : mod == 2 ? 4 : rm == 5 || (rm == 4 && (p->sib & 7) == 5) ? 4 : 0;
    p->disp = (uint32_t)rnd(r);
    if (rnd_one_in(r, 12))
        p->prefix[p->n_prefix++] = 0x67;
    if (!mode32 && rnd_one_in(r, 24))
        p->prefix[p->n_prefix++] = 0x65;
    else if (rnd_one_in(r, 40))
        p->prefix[p->n_prefix++] = 0x2e; /* CS: no effect */
    (void)f;
}

static void random_pieces(const struct form *f, struct rng *r, struct pieces *p, unsigned attempt)
{
    unsigned k;
    memset(p, 0, sizeof(*p));
    do
        k = rnd_below(r, 64);
    while (!(f->regrm >> (f->mem ? k & 0x38 : k) & 1));
    p->modrm = (uint8_t)(0xc0 | k);
    if (f->mem && steer.on)
        steered_memory(p);
    else if (f->mem)
        random_memory(f, r, p);
    p->vvvv = attempt & 1 ? 0 : (uint8_t)rnd_below(r, 16);
    p->two_byte_vex = (uint8_t)rnd_below(r, 2);
    uint64_t bits = rnd(r);
    p->r = bits & 1, p->x = bits >> 1 & 1, p->b = bits >> 2 & 1, p->r2 = bits >> 3 & 1;
    p->v = attempt & 1 ? 0 : bits >> 4 & 1;
    p->aaa = bits >> 5 & 1 ? (bits >> 8) & 7 : 0;
    p->z = bits >> 6 & 1 && p->aaa;
    if (attempt > 20) /* some forms demand a mask */
        p->aaa = (uint8_t)(1 + (bits >> 8) % 7), p->z = 0;
    if (attempt > 40)
        p->r = p->r2 = p->b = 0;
    if (mode32) {
        p->r = p->x = p->b = 0;
        p->vvvv &= 7;
    } else if (f->encoding == FORM_LEGACY) {
        if (f->w)
            p->rex = (uint8_t)(0x48 | ((bits >> 16) & 7));
        else if (bits >> 20 & 1)
            p->rex = (uint8_t)(0x40 | ((bits >> 16) & 7));
    }
    if (steer.on && f->mem && !mode32) {
        p->x = 0;
        p->b = steer.base >> 3;
        p->rex &= 0x4c;
        if (p->b && f->encoding == FORM_LEGACY)
            p->rex |= 0x41;
    }
}

/* Where a memory operand that no register can steer should point. */
static uint64_t fixed_place(struct rng *r)
{
    switch (rnd_below(r, 4)) {
    case 0: return PAGE_B - 1 - rnd_below(r, 64);
    case 1: return PAGE_C - 1 - rnd_below(r, 64);
    case 2: return PAGE_C + 4096 - 1 - rnd_below(r, 64);
    default: return (WIN1 + rnd_below(r, 448)) & (rnd_below(r, 2) ? ~63ull : ~0ull);
    }
}

/* RIP-relative and absolute operands, and branch targets, are settled in the bytes. */
static void settle(struct instance *in, struct rng *r)
{
    ZydisDecodedInstruction *d = &in->insn;
    if (d->raw.imm[0].is_relative) { /* to the "taken" pad */
        memset(in->bytes + d->raw.imm[0].offset, 0, d->raw.imm[0].size / 8);
        in->bytes[d->raw.imm[0].offset] = PAD_SIZE;
    }
    for (unsigned i = 0; i < d->operand_count; i++) {
        const ZydisDecodedOperand *o = &in->op[i];
        if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || d->raw.disp.size < 32)
            continue;
        uint64_t v; /* 8 bytes: MOV with an absolute address */
        if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP)
            v = (uint32_t)(fixed_place(r) - in->ip - d->length);
        else if (o->mem.base == ZYDIS_REGISTER_NONE)
            v = (uint32_t)(fixed_place(r) - (o->mem.segment == ZYDIS_REGISTER_GS ? GS_BASE : 0));
        else
            continue;
        memcpy(in->bytes + d->raw.disp.offset, &v, d->raw.disp.size / 8);
    }
}

static bool gpr_is_sp(ZydisRegister r) { return r == ZYDIS_REGISTER_RSP || r == ZYDIS_REGISTER_ESP; }

bool form_instance(struct form *f, struct rng *r, uint64_t ip, struct instance *in)
{
    char name[sizeof(f->name)];
    in->form = f;
    in->ip = ip;
    for (unsigned attempt = 0; attempt < 80; attempt++) {
        struct pieces p;
        random_pieces(f, r, &p, attempt);
        uint64_t tail = rnd(r);
        unsigned n = assemble(f, &p, tail, in->bytes);
        if (!decode(in->bytes, n, &in->insn, in->op) || !may_run(&in->insn, in->op))
            continue;
        form_name(&in->insn, in->op, name, sizeof(name));
        if (strcmp(name, f->name))
            continue;
        in->len = in->insn.length;
        /* Nothing may hang on what is behind the instruction. */
        if (in->len > 14 && (in->insn.attributes & ZYDIS_ATTRIB_ACCEPTS_LOCK))
            continue;
        if ((in->insn.attributes & ZYDIS_ATTRIB_ACCEPTS_LOCK) && f->mem && in->len < 15 && rnd_one_in(r, 3)) {
            memmove(in->bytes + 1, in->bytes, in->len);
            in->bytes[0] = 0xf0;
        }
        /* A store through CS is #GP, but is it with all elements masked off? */
        if (mode32 && p.n_prefix && strstr(f->name, "maskmov"))
            continue;
        settle(in, r);
        if (!decode(in->bytes, 15, &in->insn, in->op))
            continue;
        in->len = in->insn.length;
        if (in->insn.mnemonic == ZYDIS_MNEMONIC_CALL && in->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            gpr_is_sp(in->op[0].reg.value))
            continue; /* would push into the code */
        if (in->insn.mnemonic == ZYDIS_MNEMONIC_ENTER) { /* frame size: within the data pages */
            in->bytes[in->insn.raw.imm[0].offset + 1] = 0;
            decode(in->bytes, 15, &in->insn, in->op);
        }
        return true;
    }
    return false;
}

bool form_steered(struct form *f, struct rng *r, uint64_t ip, int base, int32_t disp, struct instance *out)
{
    steer.on = true;
    steer.base = (unsigned)base;
    steer.disp = disp;
    bool ok = form_instance(f, r, ip, out);
    steer.on = false;
    return ok;
}

void form_disassemble(const uint8_t *bytes, unsigned len, uint64_t ip, char *buf, size_t n)
{
    struct instance in = {.ip = ip};
    snprintf(buf, n, "?");
    if (decode(bytes, len, &in.insn, in.op))
        form_format(&in, buf, n);
}

void form_format(const struct instance *in, char *buf, size_t n)
{
    ZydisFormatter fmt;
    ZydisFormatterInit(&fmt, ZYDIS_FORMATTER_STYLE_INTEL);
    if (!ZYAN_SUCCESS(ZydisFormatterFormatInstruction(&fmt, &in->insn, in->op, in->insn.operand_count_visible, buf, n, in->ip,
                                                      NULL)))
        snprintf(buf, n, "?");
}
