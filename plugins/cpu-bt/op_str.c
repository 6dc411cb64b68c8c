/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/op_str.c - MOVS STOS CMPS SCAS LODS with and without REP.
 *
 * A repeated instruction runs page by page: as many elements as lie in the
 * same page of each operand and inside the segments' limits are handled by the
 * host's own string instruction on the host's pointers. That keeps the exact
 * element-by-element meaning of overlapping copies. An element that crosses a
 * page, or is not plain RAM, goes through bt_read and bt_write. Registers are
 * written back after each piece, so a fault or an interrupt in the middle
 * finds them as the architecture says.
 */
#include "sys.h"

struct str {
    struct bt_vcpu *c;
    const struct bt_op *op;
    unsigned size, addrsize;
    uint64_t count; /* elements left; 1 without REP */
    bool back;      /* DF */
};

/* bt_host_ptr for one run of elements. */
struct run {
    uint64_t lin; /* of the first element */
    void *host;   /* of the first element; NULL: not plain RAM */
};

static inline uint64_t index_get(const struct str *s, unsigned reg) { return bt_reg_get(s->c, reg, s->addrsize, 0); }

static inline void index_advance(const struct str *s, unsigned reg, uint64_t n)
{
    uint64_t d = n * s->size;
    bt_reg_set(s->c, reg, s->addrsize, 0, index_get(s, reg) + (s->back ? -d : d));
}

/* How many elements from off on, in the direction of DF, stay in one page,
 * inside the limit and short of the index's wrap? off itself has been
 * checked. 0: the first element crosses a page. */
static uint64_t room(const struct str *s, unsigned seg, uint64_t off, uint64_t lin)
{
    const struct hvx_segment *d = &s->c->seg[seg];
    uint64_t in_page = lin & 0xfff, n;

    if (in_page + s->size > 4096)
        return 0;
    n = s->back ? in_page / s->size + 1 : (4096 - in_page) / s->size;
    if (s->addrsize == 8)
        return n;
    uint64_t top = s->addrsize == 2 ? 0xffff : 0xffffffff, low = 0;
    if (!bt_code64(s->c)) {
        bool down = (d->attr & (SYS_CODE | SYS_EC)) == SYS_EC;
        if (down) {
            low = (uint64_t)d->limit + 1;
            if (!(d->attr & SYS_DB) && top > 0xffff)
                top = 0xffff;
        } else if (d->limit < top) {
            top = d->limit;
        }
    }
    uint64_t fit = s->back ? (off - low) / s->size + 1 : (top - off + 1) / s->size;
    return fit < n ? (fit ? fit : 1) : n;
}

/* The operand accessed first faults first. Its page is looked at ahead of time only
 * when the other one is about to raise #GP. */
static inline bool not_canonical(const struct str *s, unsigned reg)
{
    return bt_code64(s->c) && !sys_canonical(index_get(s, reg));
}

/* Check one operand's first element (raises), shorten *n to the run. */
static void open_run(const struct str *s, unsigned seg, unsigned reg, bool write, uint64_t *n, struct run *r)
{
    uint64_t off = index_get(s, reg);
    r->lin = bt_seg_lin(s->c, seg, off, s->size, write);
    r->host = NULL;
    uint64_t m = room(s, seg, off, r->lin);
    if (m < *n)
        *n = m;
}

static void *run_ptr(const struct str *s, const struct run *r, uint64_t n, bool write)
{
    uint64_t bytes = n * s->size, first = s->back ? r->lin - (bytes - s->size) : r->lin;
    if (s->back) /* a fault must name the first element, which is the highest */
        bt_probe(s->c, r->lin, s->size, bt_acc(s->c) | (write ? BT_ACC_WRITE : 0));
    uint8_t *p = bt_host_ptr(s->c, first, bytes, bt_acc(s->c) | (write ? BT_ACC_WRITE : 0));
    return p ? p + (r->lin - first) : NULL;
}

static bool str_begin(struct str *s, struct bt_vcpu *c, const struct bt_op *op)
{
    *s = (struct str){.c = c, .op = op, .size = op->opsize, .addrsize = op->addrsize, .count = 1, .back = c->dflag};
    if (op->rep) {
        s->count = bt_reg_get(c, BT_RCX, op->addrsize, 0);
        if (!s->count) {
            c->rip = op->next_rip;
            return false;
        }
        if (c->mode & BT_MODE_TF) /* a trap after every element */
            s->count = 1;
    }
    return true;
}

static void count_down(struct str *s, uint64_t n)
{
    s->count -= n;
    if (s->op->rep)
        bt_reg_set(s->c, BT_RCX, s->addrsize, 0, bt_reg_get(s->c, BT_RCX, s->addrsize, 0) - n);
}

/* After a piece: true to go on. Leaves rip at the instruction when there is
 * work left but something else must be seen to first. */
static bool str_more(struct str *s)
{
    if (!s->op->rep || !bt_reg_get(s->c, BT_RCX, s->addrsize, 0)) {
        s->c->rip = s->op->next_rip;
        return false;
    }
    return s->count && !atomic_load_explicit(&s->c->pending, memory_order_relaxed);
}

/* --- the host's own string instructions ------------------------------------------ */
/* The host's DF is clear while C code runs. */
#define REP(insn, ...)                                                                                             \
    do {                                                                                                           \
        if (s->back)                                                                                               \
            __asm__ volatile("std\n\t" insn "\n\tcld" : __VA_ARGS__ : "memory", "cc");                             \
        else                                                                                                       \
            __asm__ volatile(insn : __VA_ARGS__ : "memory", "cc");                                                 \
    } while (0)

static void host_movs(const struct str *s, void *d, const void *p, uint64_t n)
{
    switch (s->size) {
    case 1: REP("rep movsb", "+D"(d), "+S"(p), "+c"(n) :); break;
    case 2: REP("rep movsw", "+D"(d), "+S"(p), "+c"(n) :); break;
    case 4: REP("rep movsl", "+D"(d), "+S"(p), "+c"(n) :); break;
    default: REP("rep movsq", "+D"(d), "+S"(p), "+c"(n) :); break;
    }
}

static void host_stos(const struct str *s, void *d, uint64_t v, uint64_t n)
{
    switch (s->size) {
    case 1: REP("rep stosb", "+D"(d), "+c"(n) : "a"(v)); break;
    case 2: REP("rep stosw", "+D"(d), "+c"(n) : "a"(v)); break;
    case 4: REP("rep stosl", "+D"(d), "+c"(n) : "a"(v)); break;
    default: REP("rep stosq", "+D"(d), "+c"(n) : "a"(v)); break;
    }
}

/* --- MOVS and STOS --------------------------------------------------------------------- */
static uint64_t movs_piece(struct str *s)
{
    struct bt_vcpu *c = s->c;
    uint64_t n = s->count;
    struct run src, dst;

    open_run(s, s->op->seg, BT_RSI, false, &n, &src);
    if (not_canonical(s, BT_RDI))
        bt_probe(c, src.lin, s->size, bt_acc(c));
    open_run(s, BT_ES, BT_RDI, true, &n, &dst);
    if (n) {
        src.host = run_ptr(s, &src, n, false);
        if (src.host)
            dst.host = run_ptr(s, &dst, n, true);
    }
    if (dst.host) {
        host_movs(s, dst.host, src.host, n);
    } else {
        /* Reading a device may have effects: the store must not fail after it. */
        n = 1;
        bt_probe(c, src.lin, s->size, bt_acc(c));
        bt_probe(c, dst.lin, s->size, bt_acc(c) | BT_ACC_WRITE);
        bt_write(c, dst.lin, s->size, bt_read(c, src.lin, s->size, bt_acc(c)), bt_acc(c) | BT_ACC_WRITE);
    }
    index_advance(s, BT_RSI, n);
    index_advance(s, BT_RDI, n);
    return n;
}

/* What kernels and C libraries do all day: a repeat in 64-bit code, forwards,
 * inside one page. Bytes of it, 0 when it is not that. */
static uint64_t short_run(const struct bt_vcpu *c, const struct bt_op *op)
{
    uint64_t n = c->gpr[BT_RCX];
    if (!bt_code64(c) || op->addrsize != 8 || c->dflag || c->bp_data || (c->mode & BT_MODE_TF) || n > 4096)
        return 0;
    return n * op->opsize;
}
static inline bool in_page(uint64_t lin, uint64_t bytes) { return (lin & 0xfff) + bytes <= 4096; }

static bool movs_short(struct bt_vcpu *c, const struct bt_op *op)
{
    uint64_t bytes = short_run(c, op), src = c->gpr[BT_RSI], dst = c->gpr[BT_RDI];
    if (!bytes || op->seg >= BT_FS || !in_page(src, bytes) || !in_page(dst, bytes))
        return false;
    const void *p = bt_host_ptr(c, src, bytes, bt_acc(c));
    void *d = p ? bt_host_ptr(c, dst, bytes, bt_acc(c) | BT_ACC_WRITE) : NULL;
    if (!d)
        return false;
    uint64_t n = c->gpr[BT_RCX];
    switch (op->opsize) {
    case 1: __asm__ volatile("rep movsb" : "+D"(d), "+S"(p), "+c"(n) : : "memory"); break;
    case 2: __asm__ volatile("rep movsw" : "+D"(d), "+S"(p), "+c"(n) : : "memory"); break;
    case 4: __asm__ volatile("rep movsl" : "+D"(d), "+S"(p), "+c"(n) : : "memory"); break;
    default: __asm__ volatile("rep movsq" : "+D"(d), "+S"(p), "+c"(n) : : "memory");
    }
    c->gpr[BT_RSI] = src + bytes;
    c->gpr[BT_RDI] = dst + bytes;
    c->gpr[BT_RCX] = 0;
    c->rip = op->next_rip;
    return true;
}

void bt_op_movs(struct bt_vcpu *c, const struct bt_op *op)
{
    struct str s;
    if (op->rep && movs_short(c, op))
        return;
    if (!str_begin(&s, c, op))
        return;
    do {
        count_down(&s, movs_piece(&s));
    } while (str_more(&s));
}

static uint64_t stos_piece(struct str *s)
{
    struct bt_vcpu *c = s->c;
    uint64_t n = s->count, v = bt_reg_get(c, BT_RAX, s->size, 0);
    struct run dst;

    open_run(s, BT_ES, BT_RDI, true, &n, &dst);
    if (n)
        dst.host = run_ptr(s, &dst, n, true);
    if (dst.host) {
        host_stos(s, dst.host, v, n);
    } else {
        n = 1;
        bt_write(c, dst.lin, s->size, v, bt_acc(c) | BT_ACC_WRITE);
    }
    index_advance(s, BT_RDI, n);
    return n;
}

static bool stos_short(struct bt_vcpu *c, const struct bt_op *op)
{
    uint64_t bytes = short_run(c, op), dst = c->gpr[BT_RDI], n = c->gpr[BT_RCX], v = c->gpr[BT_RAX];
    if (!bytes || !in_page(dst, bytes))
        return false;
    void *d = bt_host_ptr(c, dst, bytes, bt_acc(c) | BT_ACC_WRITE);
    if (!d)
        return false;
    switch (op->opsize) {
    case 1: __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(v) : "memory"); break;
    case 2: __asm__ volatile("rep stosw" : "+D"(d), "+c"(n) : "a"(v) : "memory"); break;
    case 4: __asm__ volatile("rep stosl" : "+D"(d), "+c"(n) : "a"(v) : "memory"); break;
    default:
        if (n <= 16) /* the host's instruction takes longer to start */
            for (sys_u64 *q = d; n; n--)
                *q++ = v;
        else
            __asm__ volatile("rep stosq" : "+D"(d), "+c"(n) : "a"(v) : "memory");
    }
    c->gpr[BT_RDI] = dst + bytes;
    c->gpr[BT_RCX] = 0;
    c->rip = op->next_rip;
    return true;
}

void bt_op_stos(struct bt_vcpu *c, const struct bt_op *op)
{
    struct str s;
    if (op->rep && stos_short(c, op))
        return;
    if (!str_begin(&s, c, op))
        return;
    do {
        count_down(&s, stos_piece(&s));
    } while (str_more(&s));
}

/* --- LODS: only the last element counts, but each is an access ----------------------------- */
void bt_op_lods(struct bt_vcpu *c, const struct bt_op *op)
{
    struct str s;
    if (!str_begin(&s, c, op))
        return;
    do {
        uint64_t lin = bt_seg_lin(c, op->seg, index_get(&s, BT_RSI), s.size, false);
        bt_reg_set(c, BT_RAX, s.size, 0, bt_read(c, lin, s.size, bt_acc(c)));
        index_advance(&s, BT_RSI, 1);
        count_down(&s, 1);
    } while (str_more(&s));
}

/* --- CMPS and SCAS ------------------------------------------------------------------------------ */
static uint64_t load(const void *p, unsigned size)
{
    switch (size) {
    case 1: return *(const uint8_t *)p;
    case 2: return sys_get16(p);
    case 4: return sys_get32(p);
    default: return sys_get64(p);
    }
}

/* The flags of a compare in the slot's own form: AX after LAHF; SETO AL. */
static void compare_flags(struct bt_vcpu *c, uint64_t a, uint64_t b, unsigned size)
{
    uint64_t ax = 0;
#define CMP(suffix, mod)                                                                                           \
    __asm__("cmp" suffix " %" mod "2, %" mod "1\n\tlahf\n\tseto %%al" : "+&a"(ax) : "r"(a), "r"(b) : "cc")
    switch (size) {
    case 1: CMP("b", "b"); break;
    case 2: CMP("w", "w"); break;
    case 4: CMP("l", "k"); break;
    default: CMP("q", "q"); break;
    }
#undef CMP
    c->flags_slot = (uint32_t)ax & 0xffff;
}

/* Compare elements until the repeat condition ends: returns how many were
 * done; flags are those of the last. src NULL: compare with the accumulator. */
static uint64_t compare_run(struct str *s, const uint8_t *src, uint64_t acc, const uint8_t *dst, uint64_t n)
{
    const bool until_equal = s->op->rep == 0xf2;
    int64_t step = s->back ? -(int64_t)s->size : (int64_t)s->size;
    uint64_t a = acc, b = 0, i = 0;

    do {
        if (src)
            a = load(src + (int64_t)i * step, s->size);
        b = load(dst + (int64_t)i * step, s->size);
        i++;
    } while (i < n && (a == b) != until_equal);
    compare_flags(s->c, a, b, s->size);
    return i;
}

/* CMPS: both operands, in the order in which processors read them, which faults show: [rDI] first but for AMD's
 * REPE CMPSB (as found on family 25). */
static void open_both(struct str *s, uint64_t *n, struct run *src, struct run *dst)
{
    const bool src_first = s->c->vm->amd && s->op->rep == 0xf3 && s->size == 1;
    struct run *run[2] = {src_first ? src : dst, src_first ? dst : src};
    const unsigned seg[2] = {src_first ? s->op->seg : BT_ES, src_first ? BT_ES : s->op->seg};
    const unsigned reg[2] = {src_first ? BT_RSI : BT_RDI, src_first ? BT_RDI : BT_RSI};

    open_run(s, seg[0], reg[0], false, n, run[0]);
    if (not_canonical(s, reg[1]))
        bt_probe(s->c, run[0]->lin, s->size, bt_acc(s->c));
    open_run(s, seg[1], reg[1], false, n, run[1]);
    if (*n && (run[0]->host = run_ptr(s, run[0], *n, false)))
        run[1]->host = run_ptr(s, run[1], *n, false);
    if (src_first && !dst->host) /* before the caller reads */
        bt_probe(s->c, src->lin, s->size, bt_acc(s->c));
}

/* One piece; false: the repeat condition has ended. */
static bool compare_piece(struct str *s, bool cmps)
{
    struct bt_vcpu *c = s->c;
    uint64_t n = s->count, done = 1, acc = bt_reg_get(c, BT_RAX, s->size, 0);
    struct run src = {0}, dst;

    if (cmps) {
        open_both(s, &n, &src, &dst);
    } else {
        open_run(s, BT_ES, BT_RDI, false, &n, &dst);
        if (n)
            dst.host = run_ptr(s, &dst, n, false);
    }
    if (dst.host && (!cmps || src.host)) {
        done = compare_run(s, src.host, acc, dst.host, n);
    } else {
        uint64_t b = bt_read(c, dst.lin, s->size, bt_acc(c));
        if (cmps)
            acc = bt_read(c, src.lin, s->size, bt_acc(c));
        compare_flags(c, acc, b, s->size);
    }
    if (cmps)
        index_advance(s, BT_RSI, done);
    index_advance(s, BT_RDI, done);
    count_down(s, done);
    return ((bt_slot_to_flags(c->flags_slot) & BT_ZF) != 0) == (s->op->rep != 0xf2);
}

static void compare(struct bt_vcpu *c, const struct bt_op *op, bool cmps)
{
    struct str s;
    uint32_t before = c->flags_slot;
    if (!str_begin(&s, c, op))
        return;
    do {
        if (!c->vm->amd) /* what a fault in the middle shows: SDM volume 2, REP; on AMD's processors the last compare */
            c->flags_slot = before;
        if (!compare_piece(&s, cmps)) {
            c->rip = op->next_rip;
            return;
        }
    } while (str_more(&s));
}

void bt_op_cmps(struct bt_vcpu *c, const struct bt_op *op) { compare(c, op, true); }
void bt_op_scas(struct bt_vcpu *c, const struct bt_op *op) { compare(c, op, false); }
