/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/direct.c - the user-direct tier: when a program runs natively,
 * and how it gets in and out: direct.h.
 */
#define _GNU_SOURCE
#include "cpu_model.h"
#include "direct.h"
#include "run.h"
#include "sys.h"
#include <errno.h>
#include <linux/mman.h>
#include <poll.h>
#include <sys/syscall.h>
#include <ucontext.h>

/* Times in units of 256 cycles of the host's counter, some 0.1 us. */
#define SHIFT 8
#define ENTER_MEAN 300  /* in the soft tier, between two entries of the kernel, so that it pays */
#define ENTER_CREDIT 20000 /* and for some 2 ms: a helper is not given to programs that are about to end */
#define COLD 2          /* translations made or moved, for each entry of the kernel: new to the soft tier */
#define COLD_CREDIT 1000
#define LEAVE_MEAN 50   /* in the helper, getting into the program and out of it included (10), the switches not */
#define NEW_CODE 300
#define FIRST_MEAN 270
#define LONG 3600
#define GREY (4 * LEAVE_MEAN) /* below: perhaps better off in the soft tier, for each switch leaves it with cold TLBs */
#define PROBE_AFTER 4000u     /* so many of these, and it is tried; 16 times as many before the next try */
#define PROBES_MAX 4
#define PROBE_HOLD 200000     /* some 20 ms, in which it is not new to the soft tier any more */
#define HOLD_FIRST 20000 /* some 2 ms before the next try; doubles with each failure */
#define BACKOFF_MAX 6
#define REMAKE_LOOK (1000 << SHIFT) /* some 0.1 ms between two looks at lost helpers */
#define BARRED_FROM 3      /* helpers spoilt */
#define BARRED_FIRST 10000000 /* some 1 s; doubles with each */
#define BARRED_MAX 8
#define LOOK_EVERY 12u   /* entries between two looks at the clock, and up to 7 more: loops have their own rhythm */

#define FLAGS_PROGRAM (BT_ARITH | BT_DF | BT_ID | BT_NT)
#define FLAT_DATA 0xc0f3u /* attributes */
#define FLAT_CODE32 0xc0fbu
#define FLIPS_MAX 4u      /* between 32-bit and 64-bit code, which costs all pages */

/* What a helper adds to its eventfd: two values by turns, of which no multiple of one is the other, so that what was
 * told before it had new orders is not taken for an answer to them. */
#define EXIT_VALUE (1ull << 40)
/* In a frame: no signal has come since the registers were put there; no vector has this number. */
#define NOT_RUN 0x1000

static inline long sys4(long nr, long a, long b, long c, long d)
{
    long ret;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return ret;
}

static void copy(void *to, const void *from, size_t n)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

/* --- waiting ------------------------------------------------------------------------- */
void bt_direct_kick(struct bt_vcpu *c)
{
    sys4(SYS_pidfd_send_signal, c->direct->kick_fd, SIGUSR1, 0, 0);
}

/* The helper carries out its orders and, with resume, runs the program until something happens. */
bool bt_direct_wait(struct bt_vcpu *c, struct direct_proc *p, bool resume)
{
    uint64_t cookie = p->cookie, n;
    long rc;
    p->one = p->one == EXIT_VALUE ? EXIT_VALUE + 1 : EXIT_VALUE;
    p->zone->orders.one = p->one;
    p->zone->report.failed = 0;
    p->zone->orders.resume = resume;
    p->zone->orders.frame = p->base + p->uc;
    int cpu = bt_direct_meet(c, p);
    sys4(SYS_write, p->cmd_fd, (long)&cookie, 8, 0);
    do
        rc = sys4(SYS_read, p->exit_fd, (long)&n, 8, 0);
    while (rc == -EINTR);
    c->in_code = 0;
    atomic_signal_fence(memory_order_seq_cst);
    bt_direct_met(c, cpu);
    p->zone->orders.n_ops = 0;
    bool dead = atomic_load(&p->dead);
    if (rc == 8 && n == p->one && !dead)
        return true;
    /* What it tells is left over from before: it has told of an exit that did not happen. */
    bt_direct_lost(c, p, !dead);
    return false;
}

/* Whoever has spoilt several helpers does so for a purpose. Page tables are not a program, so not for ever. */
static void bar(struct direct_space *s)
{
    if (s->spoilt < BARRED_FROM + BARRED_MAX)
        s->spoilt++;
    if (s->spoilt >= BARRED_FROM)
        s->barred = bt_host_tsc() + ((uint64_t)BARRED_FIRST << SHIFT << (s->spoilt - BARRED_FROM));
}

static bool barred(const struct direct_space *s) { return s->barred && bt_host_tsc() < s->barred; }

/* Of a helper that has ended: did it not get its last orders? */
static bool unread(const struct direct_proc *p)
{
    struct pollfd f = {.fd = p->cmd_fd, .events = POLLIN};
    return sys4(SYS_poll, (long)&f, 1, 0, 0) == 1;
}

void bt_direct_lost(struct bt_vcpu *c, struct direct_proc *p, bool meddled)
{
    if (meddled)
        c->st.direct_meddled++;
    if (meddled && p->space)
        bar(p->space);
    c->st.direct_lost++;
    atomic_store(&p->dead, 1);
    sys4(SYS_pidfd_send_signal, p->pidfd, SIGKILL, 0, 0);
    /* It must not run on, with pages that the guest is about to use for something else. */
    struct pollfd f = {.fd = p->pidfd, .events = POLLIN};
    while (sys4(SYS_poll, (long)&f, 1, 1000, 0) == -EINTR)
        ;
    if (p->space)
        bt_direct_drop_space(c, p->space);
}

/* --- policy ---------------------------------------------------------------------------------- */
/* Null, or one that the host has, too. What it stands for: segments_fit(). */
static bool selector_fits(unsigned sel)
{
    unsigned tls = sel - (DIRECT_TLS_FIRST * 8 + 3);
    return !sel || sel == SS_PROGRAM || (tls < DIRECT_TLS * 8 && !(tls & 7));
}

static bool selectors_fit(const struct bt_vcpu *c)
{
    const struct hvx_segment *s = c->seg;
    if (s[BT_SS].selector != SS_PROGRAM)
        return false;
    if (bt_code64(c) ? s[BT_CS].selector != CS_PROGRAM : s[BT_CS].selector != CS32_PROGRAM || !c->vm->direct32)
        return false;
    if (!(s[BT_DS].selector | s[BT_ES].selector | s[BT_FS].selector | s[BT_GS].selector))
        return true;
    return c->vm->direct32 && selector_fits(s[BT_DS].selector) && selector_fits(s[BT_ES].selector) &&
           selector_fits(s[BT_FS].selector) && selector_fits(s[BT_GS].selector);
}

static bool flat(const struct hvx_segment *s, unsigned attr)
{
    return !s->base && s->limit == 0xffffffff && (s->attr & ~0x1000u) == attr;
}

static bool segment_fits(const struct bt_vcpu *c, unsigned seg, const uint64_t tls[DIRECT_TLS])
{
    const struct hvx_segment *s = &c->seg[seg];
    struct hvx_segment x;
    if (!s->selector)
        return true;
    if (s->selector == SS_PROGRAM)
        return flat(s, FLAT_DATA);
    uint64_t d = tls[(s->selector >> 3) - DIRECT_TLS_FIRST];
    if (!d) /* the helper cannot load it */
        return false;
    sys_seg_cache(&x, s->selector, d);
    /* 64-bit code may have given FS and GS another base: the stub loads it after the selector. */
    return (x.base == s->base || seg >= BT_FS) && x.limit == s->limit && x.attr == s->attr;
}

/* Are the program's segments those that the helper's GDT has by these names? Gives the helper the TLS entries. */
static bool segments_fit(struct bt_vcpu *c, struct direct_space *s)
{
    const struct direct_proc *p = s->proc;
    bool code64 = bt_code64(c);
    unsigned sel = c->seg[BT_DS].selector | c->seg[BT_ES].selector | c->seg[BT_FS].selector | c->seg[BT_GS].selector;
    uint64_t tls[DIRECT_TLS];
    /* Without TLS entries 64-bit code, with the usual null selectors, has nothing to be compared. */
    if (code64 && !(sel | p->tls[0] | p->tls[1] | p->tls[2]))
        return true;
    if (!bt_direct_tls(c, s, tls))
        return false;
    return (code64 || (flat(&c->seg[BT_CS], FLAT_CODE32) && flat(&c->seg[BT_SS], FLAT_DATA))) &&
           segment_fits(c, BT_DS, tls) && segment_fits(c, BT_ES, tls) && segment_fits(c, BT_FS, tls) &&
           segment_fits(c, BT_GS, tls);
}

static bool can(const struct bt_vcpu *c)
{
    const uint32_t wrong = BT_MODE_TF | BT_MODE_NOFPU | BT_MODE_NOSSE | BT_MODE_NOAVX | BT_MODE_EM | BT_MODE_TSD;
    return c->cpl == 3 && bt_long_mode(c) && !(c->mode & wrong) && c->iflag && !bt_stepping(c) && !c->bp_data &&
           !c->dbg.n && !(c->sysflags & (BT_TF | BT_IOPL | BT_VM | BT_AC | BT_VIF | BT_VIP)) && selectors_fit(c) &&
           !(c->cr4 & BT_CR4_LA57) && (c->efer & BT_EFER_NXE) && !c->vm->cpuid->restricted;
}

static void go_soft(struct direct_space *s)
{
    s->direct = false;
    s->looked = false;
    s->n_entries = 0;
    s->hold = bt_host_tsc() + ((uint64_t)HOLD_FIRST << SHIFT << s->backoff);
    if (s->backoff < BACKOFF_MAX)
        s->backoff++;
}

/* How long the program ran between two calls of the kernel; true: it is not worth it. */
static bool too_short(struct direct_space *s, uint64_t cycles)
{
    uint64_t t = cycles >> SHIFT;
    s->mean = (s->mean * 15 + (t < LONG ? t : LONG)) / 16;
    if (s->mean > LONG / 4 && s->backoff)
        s->backoff--;
    return s->mean < LEAVE_MEAN;
}

/* It has long been running natively with much coming and going: time to see how the soft tier does. */
static bool probe(struct direct_space *s)
{
    if (s->mean >= GREY || ++s->n_grey < PROBE_AFTER << 4 * s->probes)
        return false;
    s->n_grey = 0;
    s->probes += s->probes < PROBES_MAX;
    return true;
}

static void note(struct bt_vcpu *c, struct direct_space *s, uint64_t cycles)
{
    if (too_short(s, cycles) && !c->vm->direct_eager) {
        c->st.direct_left++;
        go_soft(s);
    } else if (probe(s)) {
        c->st.direct_left++;
        go_soft(s);
        s->probing = true;
        s->hold = bt_host_tsc() + ((uint64_t)PROBE_HOLD << SHIFT);
    }
}

/* A program is about to go on after the kernel: shall it run natively? Counted in entries, seldom looking at the
 * clock. */
bool bt_direct_wanted(struct bt_vcpu *c, bool iret)
{
    struct bt_direct *d = c->direct;
    struct direct_space *s = d->current;
    d->soft = false;
    if (!s || s->root != (c->cr3 & 0x000ffffffffff000ull))
        s = bt_direct_space(c);
    if (c->vm->direct_eager)
        return (s->direct = can(c));
    if (barred(s))
        return (s->direct = false);
    if (s->direct) {
        uint64_t ran = d->ran;
        d->ran = 0;
        if (ran) /* the soft tier would have to translate what is new */
            note(c, s, ran + (d->new_code ? (uint64_t)NEW_CODE << SHIFT : 0));
        d->new_code = false;
        return s->direct && can(c);
    }
    if (++s->n_entries < s->look_at && !iret && s->looked)
        return false;
    /* How long it ran after the last look, until it came to the kernel; the others of the entries since are taken to
     * have been like this one. */
    uint64_t made = c->st.blocks + c->st.moved, ran = s->looked && !c->user_from ? c->user_ran * s->n_entries : 0;
    bool held = bt_host_tsc() <= s->hold;
    s->probing &= held;
    bool cold = !s->probing && made - s->made >= (uint64_t)COLD * s->n_entries;
    bool pays = (cold || !held) && ran >> SHIFT >= (uint64_t)ENTER_MEAN * s->n_entries;
    s->made = made;
    s->n_entries = 0;
    s->looked = true;
    c->user_from = bt_host_tsc();
    s->look_at = (uint8_t)(LOOK_EVERY + (c->user_from >> 4 & 7));
    if (!pays) {
        s->credit /= 2;
        return false;
    }
    s->credit += ran;
    if (s->credit >> SHIFT < (cold ? COLD_CREDIT : ENTER_CREDIT) || !can(c))
        return false;
    s->credit = 0;
    s->direct = true;
    s->mean = FIRST_MEAN;
    s->looked = false;
    d->ran = c->user_from = 0;
    return true;
}

/* --- registers ----------------------------------------------------------------------------------- */
static const uint8_t greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static ucontext_t *frame_of(const struct direct_proc *p) { return (void *)((uint8_t *)p->zone + p->uc); }
static uint8_t *fp_of(const struct direct_proc *p) { return (uint8_t *)p->zone + p->fp; }

/* The standard form of XSAVE (SDM volume 1, 13.4) in both; the frame may have more components than the guest. */
#define XSAVE_AVX_END 832
#define XSAVE_KEPT 2696

static void registers_in(struct bt_vcpu *c, struct direct_proc *p)
{
    ucontext_t *u = frame_of(p);
    greg_t *g = u->uc_mcontext.gregs;
    uint8_t *fp = fp_of(p);
    uint64_t *header = (uint64_t *)(fp + 512);
    copy(u, p->uc_head, sizeof(p->uc_head));
    for (unsigned i = 0; i < 16; i++)
        g[greg_of[i]] = (greg_t)c->gpr[i];
    g[REG_RIP] = (greg_t)c->rip;
    g[REG_EFL] = (greg_t)((bt_rflags(c) & FLAGS_PROGRAM) | BT_IF | 2);
    g[REG_CSGSFS] = (greg_t)((p->csgsfs & ~0xffffull) | (bt_code64(c) ? CS_PROGRAM : CS32_PROGRAM));
    g[REG_TRAPNO] = NOT_RUN;
    u->uc_mcontext.fpregs = (void *)(p->base + p->fp);
    *(uint64_t *)&u->uc_sigmask = p->uc_mask;
    copy(fp, c->xsave, 464);
    copy(fp + 464, p->sw_reserved, 48);
    copy(fp + 512, c->xsave + 512, 64);
    header[0] &= c->vm->host_xcr0;
    for (unsigned i = 1; i < 8; i++)
        header[i] = 0;
    size_t n = header[0] & ~7ull ? XSAVE_KEPT : XSAVE_AVX_END;
    if (n > p->fp_size)
        n = p->fp_size;
    copy(fp + 576, c->xsave + 576, n - 576);
    *(uint32_t *)(fp + p->fp_size) = FP_XSTATE_MAGIC2;
    p->zone->orders.fs = c->seg_base[BT_FS];
    p->zone->orders.gs = c->seg_base[BT_GS];
    p->zone->orders.segs = (uint64_t)c->seg[BT_DS].selector | (uint64_t)c->seg[BT_ES].selector << 16 |
                           (uint64_t)c->seg[BT_FS].selector << 32 | (uint64_t)c->seg[BT_GS].selector << 48;
}

static void set_base(struct bt_vcpu *c, unsigned seg, uint64_t base)
{
    if (base == c->seg_base[seg] || !mmu_canonical(base))
        return;
    c->seg[seg].base = base;
    bt_seg_update(c, seg);
}

/* It has loaded another one, or says so: the guest's tables tell what that is. May raise #GP and the like, late. */
static void segments_out(struct bt_vcpu *c, const struct direct_proc *p)
{
    const greg_t *g = frame_of(p)->uc_mcontext.gregs;
    uint64_t segs = p->zone->report.segs, csgsfs = (uint64_t)g[REG_CSGSFS];
    unsigned cs = csgsfs & 0xffff, ss = csgsfs >> 48;
    if (cs != c->seg[BT_CS].selector) { /* a far transfer */
        bool was64 = bt_code64(c);
        uint64_t desc = sys_desc_read(c, cs, BT_EX_GP, 0);
        if (!sys_desc_code(desc) || !sys_desc_p(desc) || sys_desc_dpl(desc) != 3 ||
            (sys_desc_l(desc) && sys_desc_d(desc)))
            bt_raise_err(c, BT_EX_GP, cs & 0xfffc);
        sys_commit_cs(c, cs, desc, 3);
        sys_mode_cs(c, was64);
        for (unsigned i = 0; i < BT_NSEG; i++)
            bt_seg_update(c, i);
        bt_mode_update(c);
    }
    if (ss != c->seg[BT_SS].selector)
        sys_load_seg(c, BT_SS, ss);
    static const uint8_t order[4] = {BT_DS, BT_ES, BT_FS, BT_GS};
    for (unsigned i = 0; i < 4; i++, segs >>= 16)
        if ((segs & 0xffff) != c->seg[order[i]].selector)
            sys_load_seg(c, order[i], segs & 0xffff);
    set_base(c, BT_FS, p->zone->report.fs);
    set_base(c, BT_GS, p->zone->report.gs);
}

/* What stands in the frame is what the program says: whatever it is, it must be something a program can have. */
static void registers_out(struct bt_vcpu *c, struct direct_proc *p)
{
    const greg_t *g = frame_of(p)->uc_mcontext.gregs;
    const uint8_t *fp = fp_of(p);
    for (unsigned i = 0; i < 16; i++)
        c->gpr[i] = (uint64_t)g[greg_of[i]];
    c->rip = (uint64_t)g[REG_RIP];
    const uint32_t keep = FLAGS_PROGRAM | BT_TF | BT_AC;
    bt_set_rflags(c, (bt_rflags(c) & ~keep) | ((uint32_t)g[REG_EFL] & keep));
    copy(c->xsave, fp, 464);
    *(uint32_t *)(c->xsave + 24) &= c->vm->mxcsr_mask;
    uint64_t *header = (uint64_t *)(c->xsave + 512), bv = *(const uint64_t *)(fp + 512) & c->vm->host_xcr0;
    for (unsigned i = 1; i < 8; i++)
        header[i] = 0;
    header[0] = bv;
    size_t n = bv & ~7ull ? XSAVE_KEPT : XSAVE_AVX_END;
    if (n > p->fp_size)
        n = p->fp_size;
    copy(c->xsave + 576, fp + 576, n - 576);
    if (c->sysflags & (BT_TF | BT_AC))
        bt_mode_update(c);
}

/* Its registers are gone with its helper; memory has what it did since they were last seen. To go on from there would
 * do some of that twice, unnoticed. So it gets an exception for which programs seldom have a handler - SIGILL in
 * Linux - and nothing in its registers that one could take for its state: to return leads to address 0, with no
 * stack. */
static _Noreturn void end_program(struct bt_vcpu *c)
{
    for (unsigned i = 0; i < 16; i++)
        c->gpr[i] = 0;
    c->rip = 0;
    bt_set_rflags(c, BT_IF | 2);
    sys_zero(c->xsave, 576);
    *(uint16_t *)c->xsave = 0x37f;
    *(uint32_t *)(c->xsave + 24) = 0x1f80;
    bt_mode_update(c);
    bt_raise(c, BT_EX_UD);
}

/* --- running ---------------------------------------------------------------------------------------- */
/* A fault for want of a page. True: the program can go on at once. May raise #PF. */
static bool page_fault(struct bt_vcpu *c, struct direct_space *s, uint64_t lin, uint64_t error)
{
    struct bt_direct *d = c->direct;
    unsigned acc = BT_ACC_USER | (error & PF_W ? BT_ACC_WRITE : 0) | (error & PF_I ? BT_ACC_FETCH : 0);
    c->st.direct_faults++;
    if (lin >> 47 || lin - s->proc->base < sizeof(struct direct_zone)) {
        d->soft = true;
        return false;
    }
    d->hint = lin;
    d->new_code |= (error & PF_I) != 0;
    switch (bt_direct_map(c, s, lin, acc)) {
    case DIRECT_MAPPED:
        d->hint = 0;
        return true;
    case DIRECT_SOFT_PAGE:
        d->once = (lin ^ c->rip) >> 12; /* the instruction begins on the page before */
        d->soft_page = d->once ? 0 : lin & ~0xfffull;
        /* Dearer than the kernel: who always asks for the time runs better in the soft tier. With 32-bit code it is the
         * page by which the kernel is called. */
        note(c, s, s->code32 ? d->ran - d->ran / 4 : d->ran / 4);
        d->ran = 0;
        break;
    default:
        d->soft = true;
    }
    d->hint = 0;
    c->st.direct_soft++;
    return false;
}

/* SYSCALL or SYSENTER by 32-bit code from a page that had none when it was mapped. The host's kernel has forgotten
 * where it stood and put the registers as its vDSO would have them after the call: RIP lies there. The guest's is
 * Linux, for the selectors are its, and will do the same with what its entry gets. */
static void fast_call(struct bt_vcpu *c)
{
    struct bt_op op = {.next_rip = 0};
    c->rip = 0;
    if (c->vm->host_amd) {
        c->gpr[BT_RBP] = (uint32_t)c->gpr[BT_RCX];
        bt_op_syscall(c, &op);
    } else {
        c->gpr[BT_RBP] = (uint32_t)c->gpr[BT_RSP];
        bt_op_sysenter(c, &op);
    }
}

static bool stopped_in_zone(const struct direct_proc *p)
{
    return (uint64_t)frame_of(p)->uc_mcontext.gregs[REG_RIP] - p->base < sizeof(struct direct_zone);
}

/* Why the program came out; true: it can go on at once. */
static bool out(struct bt_vcpu *c, struct direct_space *s, struct direct_proc *p)
{
    struct bt_direct *d = c->direct;
    const greg_t *g = frame_of(p)->uc_mcontext.gregs;
    uint64_t signal = p->zone->report.signal, trap = (uint64_t)g[REG_TRAPNO], cr2 = (uint64_t)g[REG_CR2];
    uint64_t error = (uint64_t)g[REG_ERR];
    if (p->zone->report.frame != p->base + p->uc - 8 || stopped_in_zone(p)) {
        /* It meddled with the stub: direct.h says why that ends it. The soft tier begins where the helper did, and
         * shows the program what is there: nothing. Or another program had left the helper waiting with signals on, and
         * a kick came before this one ran: it has lost nothing. */
        bt_direct_lost(c, p, true);
        d->soft = true;
        return false;
    }
    registers_out(c, p);
    segments_out(c, p);
    switch (signal) {
    case SIGUSR1:
        c->st.direct_kicks++;
        return false;
    case SIGSEGV:
        if (trap == BT_EX_PF)
            return page_fault(c, s, cr2, error);
        if (trap == BT_EX_OF) /* INT 4, INTO */
            c->rip -= bt_code64(c) || bt_direct_peek(c, c->rip - 1) == 4 ? 2 : 1;
        break;
    case SIGSYS:
        c->st.direct_syscalls++;
        if (!bt_code64(c) && (c->rip >> 32 || c->rip < 0x10000)) { /* nothing of the program is there */
            fast_call(c);
            return false;
        }
        if (!(c->rip >> 47))
            c->rip -= 2;
        break;
    case SIGTRAP:
        if (trap == BT_EX_BP) {
            c->rip -= bt_direct_peek(c, c->rip - 1) == 3 ? 2 : 1; /* INT 3 has two forms */
        } else if (c->sysflags & BT_TF) { /* it has set TF itself */
            c->dr[6] |= 0x4000;
            bt_raise(c, BT_EX_DB);
        } else {
            c->rip -= 1; /* INT1 */
        }
        break;
    case SIGILL:
        d->once = bt_direct_runs_copy(c, s, c->rip);
        break;
    default:
        break;
    }
    c->st.direct_soft += signal != SIGSYS;
    d->soft = !d->once; /* the instruction itself runs in the soft tier */
    return false;
}

/* RDTSC is native where the guest's counter is the host's. */
static void tsc_order(struct bt_vcpu *c, struct direct_proc *p)
{
    bool faults = c->tsc_offset || c->vm->tsc_ratio;
    if ((int)faults == p->tsc_faults)
        return;
    struct direct_orders *o = &p->zone->orders;
    if (o->n_ops == DIRECT_MAX_OPS) /* the next time */
        return;
    struct direct_op *op = &o->op[o->n_ops++];
    op->nr = SYS_prctl;
    op->arg[0] = 26;             /* PR_SET_TSC */
    op->arg[1] = faults ? 2 : 1; /* PR_TSC_SIGSEGV, PR_TSC_ENABLE */
    op->arg[2] = op->arg[3] = op->arg[4] = op->arg[5] = op->compat = 0;
    p->tsc_faults = faults;
    o->clock = !faults;
}

bool bt_direct_run(struct bt_vcpu *c)
{
    struct bt_direct *d = c->direct;
    if (d->once) {
        d->once = false;
        c->force_single = c->leave_after = 1;
        return false;
    }
    if (d->soft_page) {
        if (d->current && d->current->direct && (c->rip & ~0xfffull) == d->soft_page) {
            c->force_single = c->leave_after = 1;
            return false;
        }
        d->soft_page = 0;
    }
    if (atomic_load_explicit(&d->n_lost, memory_order_relaxed) && bt_host_tsc() - d->remake_look > REMAKE_LOOK) {
        d->remake_look = bt_host_tsc();
        bt_fp_save(c);
        bt_direct_remake(c);
    }
    if (d->soft || !can(c))
        return false;
    struct direct_space *s = bt_direct_space(c);
    s->direct |= c->vm->direct_eager;
    if (!s->direct || barred(s) || (!s->proc && !bt_direct_give_proc(c, s)))
        return false;
    struct direct_proc *p = s->proc;
    if (atomic_load(&p->dead)) { /* killed while it waited: nothing is lost */
        bt_direct_lost(c, p, false);
        return false;
    }
    if (bt_direct_zone_taken(c, s)) {
        d->soft = true;
        return false;
    }
    bt_fp_save(c);
    bool code64 = bt_code64(c);
    bt_direct_width(c, s, !code64);
    if (s->flips >= FLIPS_MAX && !c->vm->direct_eager) {
        s->flips = 0;
        go_soft(s);
        return false;
    }
    if (!bt_direct_compare(c, s) && !c->vm->direct_eager) {
        s->direct = s->looked = false;
        s->credit = 0;
        return false;
    }
    tsc_order(c, p);
    if (s->fresh) {
        s->fresh = false;
        if (!bt_direct_flush_orders(c, s)) /* if the last program has spoilt it, it shows now */
            return false;
        bt_direct_prefetch(c, s);
    }
    if (!segments_fit(c, s)) {
        d->soft = true;
        return false;
    }
    if (d->hint) { /* the guest's kernel has just been asked for it */
        uint64_t lin = d->hint;
        struct bt_walk w;
        d->hint = 0;
        if (mmu_walk(c, lin, BT_ACC_USER, &w, true) == BT_WALKED)
            (void)bt_direct_map(c, s, lin, BT_ACC_USER | (w.writable && w.dirty ? BT_ACC_WRITE : 0));
    }
    for (;;) {
        if (!s->proc || s->forget)
            return true;
        registers_in(c, p);
        /* From here on a kick's signal goes on to the helper, which keeps it until it runs the program; what was
         * pending before is seen here. */
        d->kick_fd = p->pidfd;
        c->in_code = 3;
        atomic_signal_fence(memory_order_seq_cst);
        if (atomic_load(&c->pending)) { /* orders wait for the next time */
            c->in_code = 0;
            return true;
        }
        uint64_t t = bt_host_tsc();
        c->st.direct_entries++;
        if (!bt_direct_wait(c, p, true)) {
            /* It has not run. Or a signal has found the stub at work on its orders, for the program before has left the
             * helper waiting with signals on; were it this one that had jumped there, it is to blame: see out(). */
            if (unread(p) || stopped_in_zone(p)) {
                d->soft = true;
                return true;
            }
            /* Its registers are gone with it, and what it did since they were last seen cannot be done again. */
            c->st.direct_killed++;
            end_program(c);
        }
        bool ran = frame_of(p)->uc_mcontext.gregs[REG_TRAPNO] != NOT_RUN;
        if (!ran && !p->zone->report.failed) { /* an exit that did not happen */
            bt_direct_lost(c, p, true);
            end_program(c);
        }
        if (!ran) {
            p->zone->report.failed = 0;
            c->st.direct_failures++;
            bt_direct_unknown(p);
            bt_direct_drop_space(c, s);
            go_soft(s);
            return true; /* the program has not run: its registers are as they were */
        }
        t = bt_host_tsc() - t;
        c->st.direct_cycles += t;
        uint64_t inside = p->zone->orders.clock ? p->zone->report.out - p->zone->report.in : t - t / 2;
        d->ran += inside < t ? inside : t;
        /* Flags that a program has set itself, too, are for the soft tier: the helper gets FLAGS_PROGRAM. */
        if (!out(c, s, p) || bt_code64(c) != code64 || (c->sysflags & (BT_TF | BT_AC)))
            return true;
    }
}
