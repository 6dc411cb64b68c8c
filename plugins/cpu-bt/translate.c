/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/translate.c - makes one block: decode, liveness of flags,
 * code, exits, cold paths. Ordinary C: called with guest vector state saved.
 */
#include "translate.h"
#include "cpu_model.h"
#include "mmu.h"
#include "perf_map.h"
#include "trans.h"
#include "warm.h"
#include <assert.h>
#include <stdlib.h>

struct trans *bt_trans_create(struct bt_vcpu *c)
{
    struct trans *t = calloc(1, sizeof(*t));
    if (!t)
        return NULL;
    t->c = c;
    t->k = c->cache;
    ZydisDecoderInit(&t->dec64, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisDecoderInit(&t->dec32, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    ZydisDecoderInit(&t->dec16, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
    return t;
}
void bt_trans_destroy(struct trans *t) { free(t); }

/* --- exits -------------------------------------------------------------------- */
static uint32_t new_exit(struct trans *t, unsigned kind, uint8_t *site, uint64_t target)
{
    struct bt_cache *k = t->k;
    uint32_t i = k->n_exits++;
    struct bt_exit *x = &k->exits[i];
    memset(x, 0, sizeof(*x));
    x->kind = (uint8_t)kind;
    x->site = e_abs(site);
    x->target = target;
    x->from = bt_block_index(t->c, t->b);
    x->flags_by_fn = !t->in_reg;
    t->b->n_exits++;
    return i;
}

uint32_t trans_exit_plain(struct trans *t)
{
    uint32_t i = new_exit(t, BT_EXIT_DIRECT, t->e.p, t->cur->rip); /* emit_cold() knows the site */
    t->k->exits[i].plain = 1;
    t->k->exits[i].flags_by_fn = !gen_flags_are_again(t);
    return i;
}

static bool same_page(const struct trans *t, uint64_t target)
{
    return !(((target + t->cs_base) ^ (t->rip + t->cs_base)) >> 12);
}
/* Programs' jumps to other pages may have to go through the jump cache, whose
 * entries die with the address space: ucode.c. The supervisor's are chained and
 * checked on flushes. */
static bool is_far(const struct trans *t, uint64_t target) { return t->cpl3 && !same_page(t, target); }

/* Is r14 this? Clobbers r15. */
static void compare_rip(struct bt_emit *e, uint64_t rip)
{
    if ((int64_t)rip == (int32_t)rip) {
        e8(e, 0x49); /* cmp r14, imm32 */
        e8(e, 0x81);
        e_mod_rr(e, 7, H_R14);
        e32(e, (uint32_t)rip);
        e_rip_field(e, rip, 4);
    } else {
        e_mov_rip(e, H_R15, rip);
        e_rr(e, 1, 0x3b, H_R14, H_R15);
    }
}

/* What runs one instruction at a time does without the stack of returns. */
static bool predicts_returns(const struct trans *t)
{
    return !(t->mode & (BT_MODE_TF | BT_MODE_CAREFUL | BT_MODE_SINGLE));
}

/* Where the RET of a CALL comes to; flags are by flags_fn. */
static void landing(struct trans *t, uint64_t next, bool goes_on)
{
    struct bt_emit *e = &t->e;
    compare_rip(e, next);
    uint8_t *site = e_jcc(e, CC_NE, t->k->stub_ret_other[t->cpl3]);
    uint32_t i = new_exit(t, BT_EXIT_OTHER, site, 0);
    t->k->exits[i].stub = t->k->stub_jc_miss[t->cpl3];
    t->in_reg = t->in_slot = false;
    t->in_fn = true;
    t->again.kind = AGAIN_NONE;
    t->r15_group = 0;
    if (!goes_on)
        gen_exit(t, next);
}

static void indirect(struct trans *t, struct bt_emit *e, unsigned kind, uint64_t target)
{
    uint32_t i = new_exit(t, kind, e->p, target);
    t->k->exits[i].stub = t->k->stub_jc_miss[t->cpl3];
    memset(e->p, 0xcc, 5); /* room for another jump */
    bt_exit_open(t->k, &t->k->exits[i]);
    e->p += 5;
}

static void direct(struct trans *t, uint64_t target, unsigned opcode)
{
    struct bt_emit *e = &t->e;
    if (!t->in_reg && !t->in_fn) {
        if (t->again.kind)
            gen_flags_restore(t);
        else if (t->in_slot)
            gen_flags_lazy(t);
    }
    e8(e, opcode);
    uint8_t *site = e->p;
    e32(e, 0);
    uint32_t i = new_exit(t, BT_EXIT_DIRECT, site, target);
    struct cold *x = trans_cold(t, COLD_EXIT, site);
    x->exit = i;
    x->save_flags = t->in_reg;
    x->far = is_far(t, target);
    if (t->cur && t->cur->count && (t->cur->kind == K_JMP || target == next_rip(t, t->cur)))
        t->k->exits[i].heat = BT_HOT; /* not a CALL's own */
    t->k->exits[i].branch = BT_NO_BRANCH;
}

void gen_exit(struct trans *t, uint64_t target) { direct(t, target, 0xe9); }

void gen_exit_call(struct trans *t, uint64_t target, uint64_t next, bool goes_on)
{
    bool call = predicts_returns(t);
    direct(t, target, call ? 0xe8 : 0xe9);
    if (call)
        landing(t, next, goes_on);
}

void gen_exit_jcc(struct trans *t, unsigned cc, uint64_t target, const struct insn *counted)
{
    uint8_t *site = e_jcc(&t->e, cc, 0);
    uint32_t i = new_exit(t, BT_EXIT_DIRECT, site, target);
    struct cold *x = trans_cold(t, COLD_EXIT, site);
    x->exit = i;
    x->save_flags = t->in_reg;
    x->far = is_far(t, target);
    if (counted) {
        t->k->exits[i].branch = counted->branch & 15;
        t->k->exits[i].heat = BT_HOT;
    }
}

/* The target of the last time, compared and jumped to: MOV R15, it; CMP R14, R15; JNE; JMP or CALL. cache.c writes the
 * MOV. */
static struct cold *inline_cache(struct trans *t, bool call)
{
    struct bt_emit *e = &t->e;
    e8(e, 0x49);
    e8(e, 0xbf);
    e64(e, 0);
    e_rr(e, 1, 0x3b, H_R14, H_R15);
    struct cold *x = trans_cold(t, COLD_INLINE, e_jcc(e, CC_NE, 0));
    e8(e, call ? 0xe8 : 0xe9);
    x->exit = new_exit(t, BT_EXIT_INLINE, e->p, 0);
    t->k->exits[x->exit].flags_by_fn = 1;
    x->call = call;
    e32(e, 0);
    return x;
}

void gen_exit_indirect(struct trans *t, uint64_t next, bool goes_on, bool many)
{
    struct bt_emit *e = &t->e;
    bool call = next != 0;
    struct cold *x = NULL;
    uint8_t *over = NULL;
    gen_flags_lazy(t);
    if (!predicts_returns(t)) { /* bt_next_c() says whether it is one instruction again */
        e_jmp(e, t->k->stub_jc_miss[t->cpl3]);
        return;
    }
    if (t->code64 && !many) {
        x = inline_cache(t, call);
        if (call) {
            e8(e, 0xeb); /* to the landing */
            over = e->p;
            e8(e, 0);
        }
    }
    e_jc_index(e, t->c->vm); /* RFLAGS are free: gen_flags_lazy() */
    e_r_index_at(e, 0, 0x8b, H_R15, H_R15, 2, e_abs(t->c->jc[t->cpl3]));
    indirect(t, e, call ? BT_EXIT_CALL : BT_EXIT_INDIRECT, 0);
    if (x && call) {
        *over = (uint8_t)(e->p - over - 1);
        x->rejoin = e_here(e);
    }
    if (call)
        landing(t, next, goes_on);
}

void gen_exit_ret(struct trans *t)
{
    if (!predicts_returns(t)) {
        gen_exit_indirect(t, 0, false, true);
        return;
    }
    gen_flags_lazy(t);
    indirect(t, &t->e, BT_EXIT_RET, 0);
}

/* --- decoding --------------------------------------------------------------------- */
static bool ends_block(const struct insn *x)
{
    if (x->goes_on)
        return false;
    switch (x->kind) {
    case K_JMP: case K_CALL: case K_RET: case K_JMP_IND: case K_CALL_IND: case K_LOOP:
        return true;
    case K_OP:
        return x->op_kind != KIND_NEXT;
    default:
        return false;
    }
}

/* Zydis 4.0.0 takes [index*scale + disp32] for [r13d + index*scale] where REX.B
 * is set under an address-size prefix. */
static void fix_sib(struct insn *x)
{
    const ZydisDecodedInstruction *d = &x->d;
    if (d->address_width != 32 || !(d->attributes & ZYDIS_ATTRIB_HAS_SIB) || d->raw.modrm.mod || d->raw.sib.base != 5)
        return;
    for (unsigned i = 0; i < d->operand_count; i++) {
        ZydisDecodedOperandMem *m = &x->op[i].mem;
        if (x->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && m->base == ZYDIS_REGISTER_R13D) {
            m->base = ZYDIS_REGISTER_NONE;
            m->disp.has_displacement = true;
            m->disp.value = d->raw.disp.value;
        }
    }
}

/* F3 90 with REX.B: PAUSE for Intel's processors, as Zydis has it. For AMD's REX.B counts, and it is XCHG: decoded
 * again without the F3. */
static void fix_pause(const struct trans *t, const ZydisDecoder *dec, struct insn *x)
{
    if (x->d.mnemonic != ZYDIS_MNEMONIC_PAUSE || !(x->d.attributes & ZYDIS_ATTRIB_HAS_REX) || !x->d.raw.rex.B ||
        !t->c->vm->amd)
        return;
    for (unsigned i = 0; i < x->d.raw.prefix_count; i++)
        if (x->bytes[i] == 0xf3 || x->bytes[i] == 0xf2)
            x->bytes[i] = 0x3e; /* DS: of no effect here */
    ZydisDecoderDecodeFull(dec, x->bytes, x->d.length, &x->d, x->op);
}

static bool traces(const struct trans *t) { return predicts_returns(t) && !t->plain; }
static bool is_ahead(const struct trans *t, uint64_t target, unsigned at, unsigned room)
{
    return same_page(t, target) && target - t->rip >= at && target - t->rip < room;
}

/* Can the block go on behind x? *at: there. A block goes on behind a JCC either way. */
static bool goes_on(struct trans *t, struct insn *x, unsigned room, unsigned *at)
{
    uint64_t target;
    switch (x->kind) {
    case K_JMP:
        target = insn_target(t, x);
        if (!is_ahead(t, target, *at, room))
            return false;
        x->count = traces(t) && !(t->follow & BT_TRACE);
        if (!(t->follow & BT_TRACE))
            return false;
        *at = (unsigned)(target - t->rip);
        return true;
    case K_JCC:
        target = insn_target(t, x);
        if (x->branch >= BT_MAX_TRACED || !traces(t) || !is_ahead(t, target, *at, room))
            return false;
        x->follow = t->follow >> x->branch & 1;
        x->count = !x->follow;
        if (x->follow)
            *at = (unsigned)(target - t->rip);
        return false;
    case K_CALL:
        if (insn_calls_thunk(t, x))
            return false;
        /* fall through */
    case K_CALL_IND:
        if (*at >= room || !traces(t))
            return false;
        x->count = !(t->follow & BT_TRACE);
        return !x->count && ++t->n_calls <= BT_MAX_CALLS;
    default: return false;
    }
}

static uint64_t decode(struct trans *t, uint64_t pa, const uint8_t *host);

/* Other vCPUs may be waited for, and requests served meanwhile. When memory was another's there (BT_SYNC_RANGE),
 * nothing is left in the TLB, and what has been looked up - where the code is on the host - may be no more: begin
 * again. */
static void mark(struct bt_vcpu *c, uint64_t pa, unsigned len)
{
    uint64_t flushed = c->mmu->kgen;
    bt_codepage_mark(c, pa, len);
    if (c->mmu->kgen != flushed)
        bt_restart(c);
}

/* Fills t->insn; returns the page of the tail if the block straddles, else 0. */
static uint64_t decode_block(struct trans *t, uint64_t pa, const uint8_t *host)
{
    uint64_t pa2 = decode(t, pa, host);
    t->insn[t->n - 1].goes_on = t->insn[t->n - 1].follow = false; /* it did not */
    return pa2;
}

static uint64_t decode(struct trans *t, uint64_t pa, const uint8_t *host)
{
    struct bt_vcpu *c = t->c;
    const ZydisDecoder *dec = t->code64 ? &t->dec64 : t->code32 ? &t->dec32 : &t->dec16;
    unsigned room = 4096 - (unsigned)(pa & 0xfff), at = 0;
    unsigned max = t->mode & (BT_MODE_TF | BT_MODE_CAREFUL | BT_MODE_SINGLE) ? 1 : BT_MAX_INSNS;
    unsigned branches = t->follow & BT_TRACE ? BT_MAX_TRACED : BT_MAX_BRANCHES;
    uint64_t pa2 = 0;
    bool last = false;
    t->n = t->n_calls = t->n_branches = 0;
    while (t->n < max && at < room) {
        struct insn *x = &t->insn[t->n];
        unsigned here = room - at < 15 ? room - at : 15;
        mark(c, pa + at, here);
        memset(x->bytes, 0, sizeof(x->bytes));
        memcpy(x->bytes, host + at, here);
        x->rip = t->code64 ? t->rip + at : (uint32_t)(t->rip + at);
        x->goes_on = x->follow = x->count = false;
        bool stop = c->dbg.any_exec && bt_debug_stops_at(c, x->rip + t->cs_base);
        if (stop && t->n)
            break;
        ZyanStatus st = stop ? ZYAN_STATUS_FAILED : ZydisDecoderDecodeFull(dec, x->bytes, here, &x->d, x->op);
        if (!ZYAN_SUCCESS(st) && here < 15 && st == ZYDIS_STATUS_NO_MORE_DATA) {
            if (t->n)
                break; /* let it be the first of its own block: it may fault */
            uint64_t lin = x->rip + t->cs_base + here, p;
            if (!t->code64)
                lin = (uint32_t)lin;
            const uint8_t *h2 = bt_code_page(c, lin, &p);
            mark(c, p, 15 - here);
            /* It may have served requests of other vCPUs, one for the first page's bytes perhaps: mark and read them
             * once more. */
            mark(c, pa + at, here);
            memcpy(x->bytes, host + at, here);
            memcpy(x->bytes + here, h2, 15 - here);
            st = ZydisDecoderDecodeFull(dec, x->bytes, 15, &x->d, x->op);
            pa2 = p & ~0xfffull;
            last = true;
        }
        if (!ZYAN_SUCCESS(st)) {
            memset(&x->d, 0, sizeof(x->d));
            x->d.length = 1;
            x->d.operand_width = 32;
            x->d.address_width = 32;
            x->kind = K_OP;
            x->op_id = stop ? BT_OP_debug_stop : st == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? BT_OP_gp0 : BT_OP_ud;
            x->op_kind = KIND_JUMP;
            x->f_read = x->f_write = ALL_FLAGS;
            x->f_kill = 0;
            t->n++;
            t->odd = true;
            return pa2;
        }
        fix_sib(x);
        fix_pause(t, dec, x);
        trans_classify(t, x);
        at += x->d.length;
        t->n++;
        if (x->kind == K_JCC)
            x->branch = (uint8_t)t->n_branches++;
        x->goes_on = !last && t->n < max && goes_on(t, x, room, &at);
        if (ends_block(x) || last || (x->kind == K_JCC && t->n_branches == branches))
            break;
        if (x->kind == K_STI) {
            /* exactly one more instruction, then interrupts may come */
            if (t->n >= max || room - at < 15) {
                x->kind = K_OP; /* no room for it here: the C op casts the shadow */
                x->op_id = BT_OP_sti;
                x->op_kind = KIND_END;
                x->f_read = x->f_write = ALL_FLAGS;
                x->f_kill = 0;
                break;
            }
            max = t->n + 1;
        }
    }
    return pa2;
}

static void liveness(struct trans *t)
{
    uint32_t live = ALL_FLAGS;
    for (unsigned i = t->n; i-- > 0;) {
        struct insn *x = &t->insn[i];
        bool call = x->kind == K_CALL || x->kind == K_CALL_IND;
        x->live_after = call ? ALL_FLAGS : live;
        live = call || x->kind == K_JCC ? ALL_FLAGS : live_before(x); /* of an exit nothing is known */
    }
}

/* --- cold paths ----------------------------------------------------------------------- */
static void save_again(struct trans *t, struct bt_emit *e, const struct cold *x)
{
    if (!x->again.kind)
        return;
    flags_again(e, &x->again);
    flags_to_slot(e, t->c);
}

/* The flags where glue finds them. The recipe's AGAIN_FN is the glue's own affair. */
static unsigned glue_flags(struct bt_emit *e, const struct cold *x)
{
    if (x->again.kind == AGAIN_FN)
        return BT_FLAGS_FN;
    if (x->again.kind)
        flags_again(e, &x->again);
    return x->again.kind || x->save_flags ? BT_FLAGS_RFLAGS : BT_FLAGS_SLOT;
}

static void exit_stub(struct bt_emit *e, uint32_t exit, uint32_t stub)
{
    e_mov_imm(e, H_R15, exit);
    e->p -= 4;
    e_reloc(e, BT_RELOC_EXIT);
    e->p += 4;
    e_jmp(e, stub);
}

/* The exit's other stub. The flags are in RFLAGS, in the slot, or flags_fn knows. */
static void by_jump_cache(struct trans *t, struct bt_emit *e, const struct cold *x)
{
    struct bt_exit *exit = &t->k->exits[x->exit];
    uint64_t target = exit->target;
    exit->alt = (uint8_t)(e_here(e) - exit->stub);
    if (x->save_flags)
        flags_to_slot(e, t->c);
    if (x->save_flags || x->fn_slot)
        flags_fn_slot(e, t->c);
    e_mov_rip(e, H_R14, target);
    e_load32(e, H_R15, &t->c->jc[t->cpl3][bt_jc_index(target)]);
    indirect(t, e, BT_EXIT_INDIRECT, target);
}

static void emit_cold(struct trans *t)
{
    struct bt_cache *k = t->k;
    struct bt_emit cold = {k->cold_p, k->cold_end, t->e.relocs}, *e = &cold;
    for (unsigned i = 0; i < t->n_cold; i++) {
        struct cold *x = &t->cold[i];
        unsigned flags;
        if (x->site)
            e_patch32(x->site, e_here(e));
        trans_map(t, &t->map[t->n_map++], e_here(e), x->off);
        switch (x->type) {
        case COLD_SLOW:
            if (x->indexed)
                e_r_base_at(e, 1, 0x33, H_R14, H_R15, x->tag_abs);
            else
                e_r_abs(e, 1, 0x33, H_R14, x->tag_abs);
            flags = glue_flags(e, x);
            e_mov_imm(e, H_R15, x->desc);
            e_call(e, x->stack ? k->stub_stack[flags] : k->stub_slow[flags]);
            e_jmp(e, x->rejoin);
            break;
        case COLD_GUARD: {
            e_alu_ri(e, 1, 7, H_R14, 4096); /* in the page: the group crosses its end */
            e8(e, 0x72);                    /* jb over */
            uint8_t *over = e->p;
            e8(e, 0);
            if (x->indexed)
                e_r_base_at(e, 1, 0x33, H_R14, H_R15, x->tag_abs);
            else
                e_r_abs(e, 1, 0x33, H_R14, x->tag_abs);
            e_mov_imm(e, H_R15, x->desc);
            e_call(e, x->desc & BT_DESC_STACK ? k->stub_stack_try : k->stub_try);
            e_rr(e, 0, 0x85, H_R15, H_R15); /* test */
            e_jcc(e, CC_NE, x->rejoin);
            *over = (uint8_t)(e->p - over - 1);
            if (x->again.kind && x->again.kind != AGAIN_FN)
                flags_again(e, &x->again);
            if (x->fn_slot)
                flags_fn_slot(e, t->c);
            e8(e, 0xe9);
            k->exits[x->exit].site = e_here(e);
            e32(e, 0);
            k->exits[x->exit].stub = e_here(e);
            flags = x->again.kind == AGAIN_FN ? BT_FLAGS_FN : x->again.kind ? BT_FLAGS_RFLAGS : BT_FLAGS_SLOT;
            exit_stub(e, x->exit, k->stub_exit[flags]);
            break;
        }
        case COLD_EXIT:
            k->exits[x->exit].stub = e_here(e);
            flags = glue_flags(e, x);
            exit_stub(e, x->exit, k->stub_exit[flags]);
            if (x->far)
                by_jump_cache(t, e, x);
            break;
        case COLD_INLINE:
            if (x->call) {
                e8(e, 0x68); /* push, as the CALL would have done */
                e_reloc(e, BT_RELOC_ABS32);
                e32(e, x->rejoin);
            }
            k->exits[x->exit].stub = e_here(e);
            exit_stub(e, x->exit, k->stub_inline);
            e_patch32((uint8_t *)(uintptr_t)k->exits[x->exit].site, k->exits[x->exit].stub);
            bt_inline_forget(&k->exits[x->exit]);
            break;
        case COLD_IRQ:
            e_call(e, k->stub_irq);
            e_jmp(e, x->rejoin);
            break;
        case COLD_ENTRY:
            t->b->b = e_here(e);
            flags_to_slot(e, t->c);
            flags_fn_slot(e, t->c);
            e_jmp(e, x->rejoin);
            break;
        case COLD_CAREFUL:
            save_again(t, e, x);
            e_call(e, k->stub_careful);
            e8(e, 0xcc);
            break;
        }
    }
    k->cold_p = e->p;
}

/* Does the block need the flags it starts with in RFLAGS, before anything clobbers them? */
static bool flags_read_first(const struct trans *t)
{
    for (unsigned i = 0; i < t->n; i++) {
        const struct insn *x = &t->insn[i];
        if (x->f_read || (x->f_write && (x->live_after & ~x->f_kill)))
            return x->kind != K_OP && x->kind != K_PUSHF;
        switch (x->kind) {
        case K_NOP: case K_LEA: case K_CLI: case K_STD: case K_CLD: continue;
        case K_JMP:
            if (x->goes_on)
                continue;
            return true;
        case K_GENERIC:
            for (unsigned j = 0; j < x->d.operand_count; j++)
                if (x->op[j].type == ZYDIS_OPERAND_TYPE_MEMORY)
                    return false;
            continue;
        default: return false;
        }
    }
    return true;
}

/* Entries a (flags by flags_fn) and b (flags in RFLAGS) of a block where some are live. */
static void entry(struct trans *t)
{
    struct bt_emit *e = &t->e;
    struct bt_block *b = t->b;
    b->a = e_here(e);
    t->in_reg = t->in_slot = false;
    t->in_fn = b->live_in;
    if (b->live_in && flags_read_first(t)) {
        gen_flags_restore(t);
        b->b = e_here(e);
        t->in_fn = false;
    } else if (b->live_in) {
        trans_cold(t, COLD_ENTRY, NULL)->rejoin = e_here(e); /* sets b->b */
    } else {
        b->b = e_here(e);
    }
}

struct bt_block *bt_translate(struct bt_vcpu *c, uint64_t rip, uint32_t mode, uint64_t pa, const uint8_t *host,
                              unsigned follow)
{
    struct trans *t = c->trans;
    struct bt_cache *k = c->cache;
    struct bt_emit *e = &t->e;
    uint64_t t0 = bt_host_tsc();
    t->mode = mode;
    t->cpl3 = (mode & BT_MODE_CPL) == 3;
    t->code64 = (mode & BT_MODE_CODE) == BT_MODE_CODE64;
    t->code32 = (mode & BT_MODE_CODE) == BT_MODE_CODE32;
    t->careful = (mode & BT_MODE_CAREFUL) != 0;
    t->plain = (mode & BT_MODE_PLAIN) != 0;
    t->flat = (mode & BT_MODE_FLAT) != 0;
    t->rip = rip;
    t->host = host;
    t->follow = (uint16_t)follow;
    t->cs_base = t->code64 ? 0 : c->seg_base[BT_CS];
    t->n_cold = t->n_map = 0;
    t->rsp_bias = 0;
    t->desc_extra = 0;
    t->cur = NULL;
    t->again.kind = AGAIN_NONE;
    t->odd = false;

    if (c->vm->cpuid->restricted && !t->restricted) { /* now, or since a saved state was restored */
        trans_isa_decoder(c->vm, &t->dec64);
        trans_isa_decoder(c->vm, &t->dec32);
        trans_isa_decoder(c->vm, &t->dec16);
        t->restricted = true;
    }
    gen_direct_start(t);
    uint64_t pa2 = decode_block(t, pa, host);
    liveness(t);
    group_plan(t);

    uint32_t bi = k->n_blocks;
    struct bt_block *b = &k->blocks[bi];
    memset(b, 0, sizeof(*b));
    t->b = b;
    b->rip = rip;
    b->pa = pa;
    b->pa2 = pa2;
    b->mode = mode;
    b->cs_base = t->cs_base;
    b->follow = t->follow;
    b->exits = k->n_exits;
    b->recipes = k->n_recipes;
    b->cold = e_abs(k->cold_p);
    b->live_in = live_before(&t->insn[0]) != 0;
    e->p = (uint8_t *)(((uintptr_t)k->hot_p + 15) & ~15ull);
    e->end = k->hot_end;
    b->ind = e_here(e);
    bool usual = bt_warm_mode(mode) && !pa2, movable = usual && t->code64 && t->cpl3 && rip >> 32;
    unsigned class = bt_warm_class(mode, rip);
    t->relocs.n = 0;
    t->relocs.full = false;
    t->relocs.upper = class == WARM_KERNEL;
    t->relocs.fixed = class == WARM_EXACT && !movable;
    e->relocs = movable || (usual && c->vm->warm) ? &t->relocs : NULL;
    compare_rip(e, rip);
    e_jcc(e, CC_NE, k->stub_jc_miss[t->cpl3]);
    entry(t);
    for (unsigned i = 0; i < t->n; i++) {
        struct insn *x = &t->insn[i];
        t->cur = x;
        x->direct = gen_direct_insn(t, x);
        trans_map(t, &t->map[t->n_map++], e_here(e), (unsigned)(x->rip - rip));
        group_before(t, i);
        gen_insn(t, x);
    }
    struct insn *lastx = &t->insn[t->n - 1];
    if (!ends_block(lastx)) {
        trans_map(t, &t->map[t->n_map++], e_here(e), (unsigned)(lastx->rip + lastx->d.length - rip));
        gen_exit(t, next_rip(t, lastx));
    }
    b->end = e_here(e);
    k->hot_p = e->p;
    emit_cold(t);
    b->cold_end = e_abs(k->cold_p);
    if (b->cold_end == b->cold)
        *k->cold_p++ = 0xcc, b->cold_end = e_abs(k->cold_p);
    bt_map_keep(c, b, t->map, t->n_map);
    b->n_insns = (uint8_t)t->n;
    b->len = (uint16_t)(lastx->rip + lastx->d.length - rip);
    k->n_blocks++;
    bt_block_insert(c, b);
    bt_perf_map_block(c, b);
    if (movable)
        bt_relocs_keep(c, b, e->relocs);
    if (e->relocs && c->vm->warm)
        bt_warm_keep(c, t, b);
    e->relocs = NULL;
    c->st.blocks++;
    c->st.insns_translated += t->n;
    c->st.translate_cycles += bt_host_tsc() - t0;
    c->st.code_bytes = (uint64_t)(k->hot_p - k->hot) + (uint64_t)(k->cold_p - k->cold);
    return b;
}
