/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/slow.c - every access of translated code that cannot be done
 * inline: misses of the TLB, page crossings, devices, pages with translations.
 */
#include "mmu.h"

/* The instruction cannot be done in place: run it alone, through the bounce buffer. */
static _Noreturn void careful(struct bt_vcpu *c)
{
    c->st.careful++;
    c->force_careful = 1;
    bt_restart(c);
}

/* Would an access fault here? The vector, or 0 when it would not. */
static unsigned would_fault(struct bt_vcpu *c, uint64_t lin, unsigned acc, bool ss, uint32_t *error)
{
    struct bt_walk w;
    *error = 0;
    if (bt_long_mode(c) && (uint64_t)((int64_t)(lin << 16) >> 16) != lin)
        return ss ? BT_EX_SS : BT_EX_GP;
    int rc = mmu_walk(c, lin, acc, &w, true);
    if (rc == BT_WALKED)
        return 0;
    *error = (uint32_t)rc | (acc & BT_ACC_WRITE ? PF_W : 0) | (acc & BT_ACC_USER ? PF_U : 0);
    return BT_EX_PF;
}

/* A masked operand with a page that would fault: lay it out in the window so
 * that bad pages are bad on the host too. 0: no such page. */
static uint64_t masked_window(struct bt_vcpu *c, uint64_t ea, unsigned size, uint32_t desc, unsigned acc)
{
    unsigned off = ea & 0xfff, first = off + size > 4096 ? 4096 - off : size;
    bool ss = (desc & BT_DESC_SS) != 0, two = first < size;
    uint32_t error[2] = {0, 0};
    unsigned v0 = would_fault(c, ea, acc, ss, &error[0]);
    unsigned v1 = two ? would_fault(c, ea + first, acc, ss, &error[1]) : 0;
    if (!v0 && !v1)
        return 0;
    if ((desc & BT_DESC_WRITE) && !(desc & BT_DESC_CAREFUL))
        careful(c);
    c->window.lin = ea;
    c->window.split = first;
    c->window.vector[0] = (uint8_t)v0;
    c->window.vector[1] = (uint8_t)v1;
    c->window.error[0] = error[0];
    c->window.error[1] = error[1];
    unsigned page = v0 && (v1 || !two) ? 2 : v0 ? 0 : 1, good = v0 ? size - first : first;
    c->window.host = (uintptr_t)c->window.base + page * 4096 + off;
    c->bounce.active = 0;
    if (page != 2) {
        uint8_t *part = c->window.base + 4096 + (v0 ? 0 : off);
        uint64_t lin = v0 ? ea + first : ea;
        bt_read_bytes(c, lin, part, good, acc & ~BT_ACC_WRITE);
        if (desc & BT_DESC_WRITE) {
            c->window.from = part;
            c->window.commit = 1;
            c->bounce.lin = lin;
            c->bounce.size = good;
            c->bounce.active = 1;
        }
    }
    c->st.bounces++;
    return c->window.host;
}

static void stack_entry(struct bt_vcpu *c, unsigned t, uint64_t page, const struct bt_tlb_entry *e)
{
    c->stk_rtag[t] = page;
    c->stk_tag[t] = e->tag_w == page ? page : STK_NEVER;
    c->stk_host[t] = e->host;
}

bool bt_try_c(struct bt_vcpu *c, uint64_t ea, uint32_t desc)
{
    unsigned size = desc & BT_DESC_SIZE, t = (desc & BT_DESC_USER) != 0;
    bool wr = (desc & BT_DESC_WRITE) != 0;
    unsigned acc = (t ? BT_ACC_USER : 0) | (wr ? BT_ACC_WRITE : 0);
    uint64_t page = ea & ~0xfffull;
    c->st.slow_accesses++;
    if ((ea & 0xfff) + size > 4096 || !mmu_canonical(ea))
        return false;
    struct bt_tlb_entry *e = &c->tlb[t][tlb_index(ea)];
    if ((wr ? e->tag_w : e->tag_r) != page) {
        struct bt_walk w;
        if (mmu_walk(c, ea, acc, &w, true) != BT_WALKED || (wr && !w.dirty))
            return false;
        /* once more, for the accessed bit; another vCPU may have changed the tables: no fault even so */
        if (mmu_walk(c, ea, acc, &w, false) != BT_WALKED || !mmu_fill_walked(c, ea, acc, &w))
            return false;
        if (wr && e->tag_w != page)
            return false;
    }
    if (desc & BT_DESC_STACK)
        stack_entry(c, t, page, e);
    return true;
}

/* AMD's MXCSR.MM: operands of SSE arithmetic may lie anywhere. Intel's processors have no such bit. */
static bool sse_misaligned_mode(void)
{
    uint32_t mxcsr;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    return mxcsr & 1u << 17;
}

uint64_t bt_slow_c(struct bt_vcpu *c, uint64_t ea, uint32_t desc)
{
    unsigned size = desc & BT_DESC_SIZE;
    unsigned t = (desc & BT_DESC_USER) != 0;
    unsigned acc = (t ? BT_ACC_USER : 0) | (desc & BT_DESC_WRITE ? BT_ACC_WRITE : 0);
    uint64_t pa = 0, page = ea & ~0xfffull;
    uint32_t drops = c->tlb_drops;
    bool groups = (desc & BT_DESC_GROUPS) != 0;
    c->st.slow_accesses++;
    if (!bt_long_mode(c))
        ea = (uint32_t)ea, page = (uint32_t)page;
    bool misaligned =
        (desc & BT_DESC_ALIGNED) && (ea & (size - 1)) && !((desc & BT_DESC_RELAXED) && sse_misaligned_mode());
    if (misaligned && !(desc & BT_DESC_MASKED))
        bt_raise_err(c, BT_EX_GP, 0);
    if (desc & BT_DESC_MASKED) {
        uint64_t h = masked_window(c, ea, size, desc, acc);
        if (h)
            return h;
        if (misaligned && ((desc & BT_DESC_CAREFUL) || (ea & 0xfff) + size > 4096)) {
            /* #GP, or nothing at all when no element is active: the host knows */
            c->bounce.active = 0;
            return (uint64_t)c->bounce.buf + (ea & 63);
        }
    }
    mmu_check_canonical(c, ea, size, (desc & (BT_DESC_STACK | BT_DESC_SS)) != 0);
    if (c->bp_data & BT_BP_ALIGN)
        bt_debug_align(c, ea, size, acc);
    if (desc & BT_DESC_CAREFUL) {
        c->window.commit = 0;
        c->st.bounces++;
        if (desc & BT_DESC_WRITE) {
            bt_probe(c, ea, size, acc);
            if (desc & BT_DESC_READ)
                bt_read_bytes(c, ea, c->bounce.buf, size, acc & ~BT_ACC_WRITE);
            c->bounce.lin = ea;
            c->bounce.size = size;
            c->bounce.active = 1;
        } else {
            bt_read_bytes(c, ea, c->bounce.buf, size, acc);
        }
        return (uint64_t)c->bounce.buf;
    }
    if ((ea & 0xfff) + size > 4096) {
        if ((desc & BT_DESC_WRITE) || groups)
            careful(c);
        c->st.bounces++;
        bt_read_bytes(c, ea, c->bounce.buf, size, acc);
        return (uint64_t)c->bounce.buf;
    }
    struct bt_tlb_entry *e = &c->tlb[t][tlb_index(ea)];
    uint64_t want = desc & BT_DESC_WRITE ? e->tag_w : e->tag_r, h;
    if (want == page) {
        h = e->host;
    } else {
        h = mmu_fill(c, ea, acc, &pa);
        if (!h || ((desc & BT_DESC_WRITE) && (bt_phys_page(c->vm, pa) & BT_HVA_RO))) {
            if ((desc & BT_DESC_WRITE) || groups)
                careful(c);
            c->st.bounces++;
            bt_read_bytes(c, ea, c->bounce.buf, size, acc);
            return (uint64_t)c->bounce.buf;
        }
        if ((desc & BT_DESC_WRITE) && e->tag_w != page) {
            if (mmu_code_store(c, pa | (ea & 0xfff), size)) {
                c->cache->smc_hit = false;
                careful(c);
            }
            if (mmu_remote_hits(c, pa | (ea & 0xfff), size))
                careful(c);
        }
    }
    if (groups && c->tlb_drops != drops) /* we served another vCPU meanwhile: the block's other look-ups are old */
        bt_restart(c);
    if (desc & BT_DESC_STACK)
        stack_entry(c, t, page, e);
    return h | (ea & 0xfff);
}

void bt_commit_c(struct bt_vcpu *c)
{
    if (!c->bounce.active)
        return;
    c->bounce.active = 0;
    uint64_t lin = c->bounce.lin;
    unsigned n = c->bounce.size, acc = BT_ACC_WRITE | bt_acc(c);
    if (c->window.commit) {
        void *d = c->bounce.buf;
        const void *s = c->window.from;
        size_t cnt = n;
        __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(cnt) : : "memory");
        c->window.commit = 0;
    }
    if (n <= 8 && !(n & (n - 1)))
        bt_write(c, lin, n, mmu_load(c->bounce.buf, n), acc);
    else
        bt_write_bytes(c, lin, c->bounce.buf, n, acc);
}
