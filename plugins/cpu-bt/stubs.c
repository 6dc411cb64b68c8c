/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/stubs.c - the glue between C and translated code, written
 * once per vCPU into its own region (state is addressed absolutely).
 * Built as ordinary C.
 *
 * in_code tells the kick signal's handler where we are:
 *   0  the dispatcher: it looks at `pending` by itself;
 *   1  translated code, or glue that is about to enter it at last_ret: the
 *      handler unlinks that block;
 *   2  C called from translated code: the handler does nothing, the glue looks
 *      at `pending` on its way back, after it has set in_code to 1.
 */
#include "cache.h"
#include "emit.h"
#include "phys.h"
#include "run.h"
#include "trans.h"

static const uint8_t guest_to_host[16] = {H_RAX, H_RCX, H_RDX, H_RBX, H_R13, H_RBP, H_RSI, H_RDI,
                                          H_R8,  H_R9,  H_R10, H_R11, H_R12, 255,   255,   255};

static void spill_all(struct bt_emit *e, struct bt_vcpu *c)
{
    for (unsigned g = 0; g < 13; g++)
        e_store(e, guest_to_host[g], &c->gpr[g]);
}
static void load_all(struct bt_emit *e, struct bt_vcpu *c)
{
    for (unsigned g = 0; g < 13; g++)
        e_load(e, guest_to_host[g], &c->gpr[g]);
}
static void load_caller_saved(struct bt_emit *e, struct bt_vcpu *c)
{
    static const uint8_t regs[] = {0, 1, 2, 6, 7, 8, 9, 10, 11};
    for (unsigned i = 0; i < sizeof(regs); i++)
        e_load(e, guest_to_host[regs[i]], &c->gpr[regs[i]]);
}
static void call_c(struct bt_emit *e, struct bt_vcpu *c, void *fn)
{
    e_mov_imm(e, H_RDI, (uintptr_t)c);
    e_mov_imm(e, H_RAX, (uintptr_t)fn);
    e_call_r(e, H_RAX);
}
/* Guest vector state back into the registers if C had to save it. */
static void fp_restore(struct bt_emit *e, struct bt_vcpu *c)
{
    e_cmp_abs8(e, &c->fp_live, 0);
    e8(e, 0x75); /* jne over */
    uint8_t *over = e->p;
    e8(e, 0);
    e_mov_imm(e, H_RAX, (uint32_t)c->vm->host_xcr0);
    e_mov_imm(e, H_RDX, (uint32_t)(c->vm->host_xcr0 >> 32));
    e8(e, 0x48); /* xrstor64 [abs] */
    e8(e, 0x0f);
    e8(e, 0xae);
    e_mod_abs(e, 5, e_abs(c->xsave));
    e_store8_imm(e, &c->fp_live, 1);
    *over = (uint8_t)(e->p - over - 1);
}

/* C runs on the dispatcher's stack: in translated code RSP is the stack of returns. */
static void native_stack(struct bt_emit *e, struct bt_vcpu *c)
{
    e_store(e, H_RSP, &c->ret_sp);
    e_load(e, H_RSP, &c->host_rsp);
}
static void return_stack(struct bt_emit *e, struct bt_vcpu *c) { e_load(e, H_RSP, &c->ret_sp); }

/* Called from a block: to C, and back to the block. */
static void leave_block(struct bt_emit *e, struct bt_vcpu *c)
{
    e8(e, 0x8f); /* pop qword [last_ret] */
    e_mod_abs(e, 0, e_abs(&c->cache->last_ret));
    native_stack(e, c);
}
static void return_to_block(struct bt_emit *e, struct bt_vcpu *c)
{
    return_stack(e, c);
    e8(e, 0xff); /* push qword [last_ret] */
    e_mod_abs(e, 6, e_abs(&c->cache->last_ret));
    e8(e, 0xc3);
}

/* Back from C into the middle of the running block, at last_ret. Kicked
 * meanwhile: unlink the block first. */
static void back_to_block(struct bt_emit *e, struct bt_vcpu *c)
{
    e_store8_imm(e, &c->in_code, 1);
    e_cmp_abs32(e, (void *)&c->pending, 0);
    e8(e, 0x74); /* je over */
    uint8_t *over = e->p;
    e8(e, 0);
    e_store8_imm(e, &c->in_code, 2);
    call_c(e, c, (void *)bt_unlink_running);
    e_store8_imm(e, &c->in_code, 1);
    *over = (uint8_t)(e->p - over - 1);
}

/* C in the middle of an instruction: fn(c, r14, r15d). It may raise. Its result goes to r14 or r15, H_RAX: to none. */
static uint32_t helper(struct bt_emit *e, struct bt_vcpu *c, void *fn, unsigned result)
{
    struct bt_cache *k = c->cache;
    uint32_t at = e_here(e);
    spill_all(e, c);
    e_store8_imm(e, &c->in_code, 2);
    leave_block(e, c);
    e_load(e, H_RAX, &k->last_ret);
    e_store(e, H_RAX, &k->helper_ret);
    e_mov_rr(e, H_RSI, H_R14);
    e_mov32_rr(e, H_RDX, H_R15);
    call_c(e, c, fn);
    if (result != H_RAX)
        e_mov_rr(e, result, H_RAX);
    e_store_imm(e, &k->helper_ret, 0);
    back_to_block(e, c);
    fp_restore(e, c);
    load_caller_saved(e, c);
    return_to_block(e, c);
    return at;
}

/* A miss of the one-entry TLB of the stack: look into the big one first, and
 * enter what it finds there; else go to `miss`. */
static void stack_stub(struct bt_emit *e, struct bt_vcpu *c, uint32_t miss_stub, bool only_enter)
{
    e8(e, 0x50); /* push rax; push r15; push rcx */
    e8(e, 0x41); e8(e, 0x57);
    e8(e, 0x51);
    e_mov_imm(e, H_RCX, e_abs(c->tlb[0]));
    e_rex(e, 0, 0, 0, H_R15, false); /* test r15d, BT_DESC_USER */
    e8(e, 0xf7);
    e_mod_rr(e, 0, H_R15);
    e32(e, BT_DESC_USER);
    e8(e, 0x74); /* je over */
    uint8_t *over = e->p;
    e8(e, 0);
    e_mov_imm(e, H_RCX, e_abs(c->tlb[1]));
    *over = (uint8_t)(e->p - over - 1);
    e_mov_rr(e, H_RAX, H_R14); /* rcx = entry */
    e_rex(e, 1, 0, 0, H_RAX, false);
    e8(e, 0xc1); /* shr rax, 7 */
    e_mod_rr(e, 5, H_RAX);
    e8(e, 7);
    e_alu_ri(e, 0, 4, H_RAX, (BT_TLB_SIZE - 1) << 5);
    e_rr(e, 1, 0x03, H_RCX, H_RAX);
    e_mov_rr(e, H_RAX, H_R14);
    /* Stores need tag_w. So that one test serves, loads too: pages that can
     * only be read are left to C. */
    e_r_base(e, 1, 0x33, H_RAX, H_RCX, (int32_t)offsetof(struct bt_tlb_entry, tag_w));
    e_alu_ri(e, 1, 7, H_RAX, 4096 - 8);
    e8(e, 0x77); /* ja miss */
    uint8_t *miss = e->p;
    e8(e, 0);
    e_rex(e, 0, 0, 0, H_R15, false); /* r15 = 8 for programs, 0 */
    e8(e, 0xc1);
    e_mod_rr(e, 5, H_R15);
    e8(e, 16); /* BT_DESC_USER is bit 19 */
    e_alu_ri(e, 0, 4, H_R15, 8);
    e_r_base(e, 1, 0x8b, H_RAX, H_RCX, (int32_t)offsetof(struct bt_tlb_entry, tag_w));
    e_r_base(e, 1, 0x89, H_RAX, H_R15, (int32_t)e_abs(c->stk_tag));
    e_r_base(e, 1, 0x89, H_RAX, H_R15, (int32_t)e_abs(c->stk_rtag));
    e_rr(e, 1, 0x33, H_R14, H_RAX); /* page offset */
    e_r_base(e, 1, 0x8b, H_RAX, H_RCX, (int32_t)offsetof(struct bt_tlb_entry, host));
    e_r_base(e, 1, 0x89, H_RAX, H_R15, (int32_t)e_abs(c->stk_host));
    e_rr(e, 1, 0x03, H_R14, H_RAX);
    e8(e, 0x59);
    e8(e, 0x41); e8(e, 0x5f);
    e8(e, 0x58);
    if (only_enter)
        e_mov_imm(e, H_R15, 1);
    e8(e, 0xc3);
    *miss = (uint8_t)(e->p - miss - 1);
    e8(e, 0x59);
    e8(e, 0x41); e8(e, 0x5f);
    e8(e, 0x58);
    e_jmp(e, miss_stub);
}

static void call_flags_fn(struct bt_emit *e, struct bt_vcpu *c)
{
    e8(e, 0xff);
    e_mod_abs(e, 2, e_abs(&c->flags_fn));
}

/* The same for flags that are not in the slot yet; keeps r14 and r15. */
static void with_flags(struct bt_emit *e, struct bt_vcpu *c, uint32_t stub[BT_FLAGS_KINDS])
{
    stub[BT_FLAGS_FN] = e_here(e);
    e_store(e, H_R15, &c->tmp[4]);
    call_flags_fn(e, c);
    e8(e, 0xeb); /* jmp over the store */
    uint8_t *over = e->p;
    e8(e, 0);
    stub[BT_FLAGS_RFLAGS] = e_here(e);
    e_store(e, H_R15, &c->tmp[4]);
    *over = (uint8_t)(e->p - over - 1);
    flags_to_slot(e, c);
    e_load(e, H_R15, &c->tmp[4]);
    e_jmp(e, stub[BT_FLAGS_SLOT]);
}

/* To C between two blocks; r14 = rip, flags by flags_fn. */
static void leave_between(struct bt_emit *e, struct bt_vcpu *c)
{
    call_flags_fn(e, c);
    flags_to_slot(e, c);
    spill_all(e, c);
    e_store(e, H_R14, &c->rip);
    e_store8_imm(e, &c->in_code, 2);
    native_stack(e, c);
}

void bt_stubs_emit(struct bt_vcpu *c)
{
    struct bt_cache *k = c->cache;
    struct bt_emit em = {(uint8_t *)(uintptr_t)k->stubs_start, (uint8_t *)(uintptr_t)k->stubs_end, NULL}, *e = &em;

    /* leave: complete state in *c; return to the dispatcher */
    k->stub_leave = e_here(e);
    e_store8_imm(e, &c->in_code, 0);
    e_load(e, H_RSP, &c->host_rsp);
    e_alu_ri(e, 1, 0, H_RSP, 8);
    e8(e, 0x41); e8(e, 0x5f); /* pop r15 */
    e8(e, 0x41); e8(e, 0x5e);
    e8(e, 0x41); e8(e, 0x5d);
    e8(e, 0x41); e8(e, 0x5c);
    e8(e, 0x5d);
    e8(e, 0x5b);
    e8(e, 0xc3);

    /* flags_slot: a flags_fn: they are in the slot */
    k->stub_flags_slot = e_here(e);
    flags_from_slot(e, c);
    e8(e, 0xc3);
    flags_stubs_emit(e, c);

    /* go: rax = host address of a block's ind or a entry, or of leave */
    k->stub_go = e_here(e);
    e_store(e, H_RAX, &k->last_ret);
    e_store8_imm(e, &c->in_code, 1);
    e_cmp_abs32(e, (void *)&c->pending, 0);
    e_jcc(e, CC_NE, k->stub_leave);
    e_mov_rr(e, H_R15, H_RAX);
    fp_restore(e, c);
    flags_fn_slot(e, c);
    load_all(e, c);
    e_load(e, H_R14, &c->rip);
    return_stack(e, c);
    e_jmp_r(e, H_R15);

    /* enter(c, host): from C */
    k->enter = (void (*)(struct bt_vcpu *, uint64_t))(uintptr_t)e->p;
    e8(e, 0x53);
    e8(e, 0x55);
    e8(e, 0x41); e8(e, 0x54);
    e8(e, 0x41); e8(e, 0x55);
    e8(e, 0x41); e8(e, 0x56);
    e8(e, 0x41); e8(e, 0x57);
    e_alu_ri(e, 1, 5, H_RSP, 8);
    e_store(e, H_RSP, &c->host_rsp);
    e_mov_rr(e, H_RAX, H_RSI);
    e_jmp(e, k->stub_go);

    /* slow: r14 = linear address, r15d = description; returns r14 = host address */
    k->stub_slow[BT_FLAGS_SLOT] = helper(e, c, (void *)bt_slow_c, H_R14);
    with_flags(e, c, k->stub_slow);
    /* try: the same, but r15d tells whether the page is in the TLB now */
    k->stub_try = helper(e, c, (void *)bt_try_c, H_R15);

    k->stub_stack[BT_FLAGS_SLOT] = e_here(e); /* as slow */
    stack_stub(e, c, k->stub_slow[BT_FLAGS_SLOT], false);
    with_flags(e, c, k->stub_stack);
    k->stub_stack_try = e_here(e); /* as try */
    stack_stub(e, c, k->stub_try, true);

    /* commit: after the instruction of a careful block; keeps flags in the slot */
    k->stub_commit = helper(e, c, (void *)bt_commit_c, H_RAX);
    /* segment check of a careful block: r14 = offset, r15d = seg | size << 8 | write << 30; returns linear in r14 */
    k->stub_segfault = helper(e, c, (void *)bt_seg_c, H_R14);

    /* careful: called in the middle of a block: run this instruction again, alone */
    k->stub_careful = e_here(e);
    spill_all(e, c);
    e_store8_imm(e, &c->in_code, 2);
    leave_block(e, c);
    e_load(e, H_RAX, &k->last_ret);
    e_store(e, H_RAX, &k->helper_ret);
    call_c(e, c, (void *)bt_careful_c);

    /* irq: called after STI when an interrupt waits */
    k->stub_irq = e_here(e);
    spill_all(e, c);
    e_store8_imm(e, &c->in_code, 2);
    leave_block(e, c);
    e8(e, 0xf0); /* lock or dword [pending], BT_PEND_IRQ */
    e8(e, 0x83);
    e_mod_abs(e, 1, e_abs((void *)&c->pending));
    e8(e, BT_PEND_IRQ);
    back_to_block(e, c);
    load_caller_saved(e, c);
    return_to_block(e, c);

    /* op: called; r14 = struct bt_op; c->rip set; flags in the slot */
    k->stub_op = e_here(e);
    spill_all(e, c);
    e_store8_imm(e, &c->in_code, 2);
    leave_block(e, c);
    e_mov_rr(e, H_RSI, H_R14);
    call_c(e, c, (void *)bt_op_next_c);
    e_rr(e, 1, 0x85, H_RAX, H_RAX); /* test */
    e8(e, 0x74);                    /* je on */
    uint8_t *on = e->p;
    e8(e, 0);
    e_jmp(e, k->stub_go); /* leave the block */
    *on = (uint8_t)(e->p - on - 1);
    back_to_block(e, c);
    fp_restore(e, c);
    load_all(e, c);
    return_to_block(e, c);

    /* op_end: jumped to */
    k->stub_op_end = e_here(e);
    spill_all(e, c);
    e_store8_imm(e, &c->in_code, 2);
    native_stack(e, c);
    e_mov_rr(e, H_RSI, H_R14);
    call_c(e, c, (void *)bt_op_end_c);
    e_jmp(e, k->stub_go);

    /* jc_miss: r14 = rip, flags by flags_fn */
    for (unsigned t = 0; t < 2; t++) {
        k->stub_jc_miss[t] = e_here(e);
        leave_between(e, c);
        call_c(e, c, (void *)bt_next_c);
        e_jmp(e, k->stub_go);
    }

    /* inline: the same for an inline cache; r15d = exit index */
    k->stub_inline = e_here(e);
    e_store32(e, H_R15, &k->inline_exit);
    leave_between(e, c);
    e_load32(e, H_RSI, &k->inline_exit);
    call_c(e, c, (void *)bt_inline_c);
    e_jmp(e, k->stub_go);

    /* ret_empty: a RET that no CALL is known for. ret_other: one that goes elsewhere than its CALL's continuation.
     * r14 = rip, flags by flags_fn. No block to unlink: the kick's handler goes on at jc_miss. */
    for (unsigned t = 0; t < 2; t++) {
        k->stub_ret_empty[t] = e_here(e);
        e_lea(e, 1, H_RSP, H_RSP, -1, 0, -8); /* it stays */
        k->stub_ret_other[t] = e_here(e);
        e_jc_index(e, c->vm);
        e_r_sib(e, 0, 0x8b, H_R15, -1, H_R15, 2, (int32_t)e_abs(c->jc[t]));
        e_jmp_r(e, H_R15);
        k->stub_ret_end[t] = e_here(e);
        uint64_t *top = (uint64_t *)(uintptr_t)k->ret_top[t];
        for (unsigned i = 0; i < BT_RET_SPARE / 8; i++)
            top[i] = k->stub_ret_empty[t];
    }

    /* exit: r15d = exit index */
    k->stub_exit[BT_FLAGS_SLOT] = e_here(e);
    spill_all(e, c);
    e_store8_imm(e, &c->in_code, 2);
    native_stack(e, c);
    e_mov32_rr(e, H_RSI, H_R15);
    call_c(e, c, (void *)bt_exit_c);
    e_jmp(e, k->stub_go);
    with_flags(e, c, k->stub_exit);
    k->stubs_end = e_here(e);
}
