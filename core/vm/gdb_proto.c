/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/gdb_proto.c - see gdb_proto.h. Sections are those of "Debugging with
 * GDB", appendix E.
 */
#define _GNU_SOURCE
#include "core/vm/gdb_proto.h"

#include <stdlib.h>
#include <string.h>

#define SIG_INT 2
#define SIG_TRAP 5
#define MAX_TRANSFER ((HVX_GDB_PACKET - 16) / 2)
#define MAX_REG 16u

enum framing { OUTSIDE, INSIDE, SUM_1, SUM_2 };

struct point {
    struct hvx_debug_point at;
    uint8_t type; /* of the Z packet */
};

struct hvx_gdb_session {
    const struct hvx_gdb_target *t;
    void *o;
    bool wide, stopped, ended, no_ack, says_swbreak, says_hwbreak;
    unsigned thread_g, thread_c; /* of Hg and Hc; thread_c may be -1 (all): UINT_MAX */
    unsigned listed;             /* qsThreadInfo goes on here */
    char stop_reply[128];
    struct point point[HVX_DEBUG_MAX_POINTS];
    unsigned n_points;
    enum framing framing;
    bool too_long;
    uint8_t sum, sum_said;
    size_t n;
    char in[HVX_GDB_PACKET + 1];
    size_t n_out;
    char out[HVX_GDB_PACKET + 8]; /* the last answer, to be sent again on request */
    struct hvx_vcpu_regs regs;
};

/* --- bytes ------------------------------------------------------------------------- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* At most 16 digits, at least one. */
static bool number(const char **p, uint64_t *v)
{
    const char *start = *p;
    int d;

    for (*v = 0; (d = hex_digit(**p)) >= 0 && *p - start < 16; ++*p)
        *v = *v << 4 | (unsigned)d;
    return *p > start && hex_digit(**p) < 0;
}

static bool expect(const char **p, char c)
{
    if (**p != c)
        return false;
    ++*p;
    return true;
}

static bool unhex(const char *p, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int a = hex_digit(p[2 * i]), b = a < 0 ? -1 : hex_digit(p[2 * i + 1]);
        if (b < 0)
            return false;
        out[i] = (uint8_t)(a << 4 | b);
    }
    return true;
}

static char *hex(char *out, const uint8_t *p, size_t n)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < n; i++) {
        *out++ = digits[p[i] >> 4];
        *out++ = digits[p[i] & 15];
    }
    *out = 0;
    return out;
}

/* E.1: $data#checksum. s->out + 1 holds n bytes of data. */
static void send_out(struct hvx_gdb_session *s, size_t n)
{
    uint8_t sum = 0;

    for (size_t i = 1; i <= n; i++)
        sum += (uint8_t)s->out[i];
    s->out[0] = '$';
    s->out[n + 1] = '#';
    hex(s->out + n + 2, &sum, 1);
    s->n_out = n + 4;
    s->t->send(s->o, s->out, s->n_out);
}

static void answer(struct hvx_gdb_session *s, const char *text)
{
    size_t n = strlen(text); /* all are short */

    memmove(s->out + 1, text, n);
    send_out(s, n);
}

static void answer_if(struct hvx_gdb_session *s, bool good)
{
    answer(s, good ? "OK" : "E0e");
}

/* --- threads: E.2 H, T, q*ThreadInfo --------------------------------------------------- */

/* "-1" and "0" mean all and any. */
static bool thread_id(const char **p, unsigned n_threads, unsigned *out, bool *all)
{
    uint64_t v;

    *all = false;
    if (!strncmp(*p, "-1", 2)) {
        *p += 2;
        *all = true;
        *out = 0;
        return true;
    }
    if (!number(p, &v) || v > n_threads)
        return false;
    *out = v ? (unsigned)v - 1 : 0;
    return true;
}

static void choose_thread(struct hvx_gdb_session *s, const char *p)
{
    char what = *p++;
    unsigned thread;
    bool all;

    if (!thread_id(&p, s->t->n_threads(s->o), &thread, &all)) {
        answer(s, "E01");
        return;
    }
    if (what == 'g')
        s->thread_g = thread;
    else if (what == 'c')
        s->thread_c = all ? UINT32_MAX : thread;
    answer(s, "OK");
}

static void list_threads(struct hvx_gdb_session *s, bool first)
{
    unsigned n = s->t->n_threads(s->o);
    char *p = s->out + 1;

    if (first)
        s->listed = 0;
    *p++ = s->listed < n ? 'm' : 'l';
    for (bool comma = false; s->listed < n && p < s->out + 1000; comma = true)
        p += sprintf(p, "%s%x", comma ? "," : "", ++s->listed);
    send_out(s, (size_t)(p - s->out - 1));
}

/* --- registers: g G p P --------------------------------------------------------------------- */

static void read_registers(struct hvx_gdb_session *s)
{
    uint8_t value[MAX_REG];
    char *p = s->out + 1;

    if (!s->t->get_regs(s->o, s->thread_g, &s->regs)) {
        answer(s, "E01");
        return;
    }
    for (unsigned i = 0; i < hvx_gdb_n_regs(s->wide); i++) {
        hvx_gdb_reg_get(s->wide, i, &s->regs, value);
        p = hex(p, value, hvx_gdb_reg_size(s->wide, i));
    }
    send_out(s, (size_t)(p - s->out - 1));
}

static void write_registers(struct hvx_gdb_session *s, const char *p)
{
    uint8_t value[MAX_REG];

    if (!s->t->get_regs(s->o, s->thread_g, &s->regs)) {
        answer(s, "E01");
        return;
    }
    for (unsigned i = 0; i < hvx_gdb_n_regs(s->wide) && *p; i++) {
        unsigned n = hvx_gdb_reg_size(s->wide, i);
        if (!unhex(p, value, n)) {
            answer(s, "E16");
            return;
        }
        p += 2 * n;
        (void)hvx_gdb_reg_set(s->wide, i, &s->regs, value); /* what cannot be set keeps its value */
    }
    answer_if(s, s->t->set_regs(s->o, s->thread_g, &s->regs));
}

static void read_register(struct hvx_gdb_session *s, const char *p)
{
    uint8_t value[MAX_REG];
    uint64_t i;
    unsigned n;

    if (!number(&p, &i) || *p || i > UINT32_MAX || !(n = hvx_gdb_reg_size(s->wide, (unsigned)i)) ||
        !s->t->get_regs(s->o, s->thread_g, &s->regs)) {
        answer(s, "E01");
        return;
    }
    hvx_gdb_reg_get(s->wide, (unsigned)i, &s->regs, value);
    hex(s->out + 1, value, n);
    send_out(s, 2 * n);
}

static void write_register(struct hvx_gdb_session *s, const char *p)
{
    uint8_t value[MAX_REG];
    uint64_t i;
    unsigned n;

    if (!number(&p, &i) || !expect(&p, '=') || i > UINT32_MAX || !(n = hvx_gdb_reg_size(s->wide, (unsigned)i)) ||
        !unhex(p, value, n) || !s->t->get_regs(s->o, s->thread_g, &s->regs)) {
        answer(s, "E16");
        return;
    }
    answer_if(s, hvx_gdb_reg_set(s->wide, (unsigned)i, &s->regs, value) && s->t->set_regs(s->o, s->thread_g, &s->regs));
}

/* --- memory: m M X ------------------------------------------------------------------------------ */

static bool range(const char **p, uint64_t *addr, uint64_t *n)
{
    return number(p, addr) && expect(p, ',') && number(p, n) && *n <= MAX_TRANSFER;
}

static void read_memory(struct hvx_gdb_session *s, const char *p)
{
    uint8_t buf[MAX_TRANSFER];
    uint64_t addr, n;

    if (!range(&p, &addr, &n) || *p) {
        answer(s, "E16");
        return;
    }
    /* What can be had: gdb asks for the rest and hears that it cannot. */
    while (n && !s->t->read(s->o, s->thread_g, addr, buf, n))
        n = n > 4096 ? n - 4096 : n > 256 ? n - 256 : n > 1 ? n / 2 : 0;
    if (!n) {
        answer(s, "E0e");
        return;
    }
    hex(s->out + 1, buf, n);
    send_out(s, 2 * n);
}

static void write_memory(struct hvx_gdb_session *s, const char *p, const char *end, bool binary)
{
    uint8_t buf[MAX_TRANSFER];
    uint64_t addr, n, i = 0;

    if (!range(&p, &addr, &n) || !expect(&p, ':')) {
        answer(s, "E16");
        return;
    }
    if (!binary && ((uint64_t)(end - p) != 2 * n || !unhex(p, buf, n))) {
        answer(s, "E16");
        return;
    }
    for (; binary && p < end && i < n; p++, i++) { /* 0x7d announces a byte with bit 5 turned over */
        if (*p == '}' && p + 1 < end)
            buf[i] = (uint8_t)(*++p ^ 0x20);
        else
            buf[i] = (uint8_t)*p;
    }
    if (binary && (i != n || p != end)) {
        answer(s, "E16");
        return;
    }
    answer_if(s, n == 0 || s->t->write(s->o, s->thread_g, addr, buf, n));
}

/* --- points: Z z ------------------------------------------------------------------------------------ */

static void change_point(struct hvx_gdb_session *s, const char *p, bool insert)
{
    static const uint8_t kinds[] = {HVX_DEBUG_EXEC, HVX_DEBUG_EXEC, HVX_DEBUG_WRITE, HVX_DEBUG_READ, HVX_DEBUG_ACCESS};
    uint64_t addr, bytes;
    uint8_t type = (uint8_t)(*p++ - '0');
    unsigned i;

    if (type >= sizeof(kinds)) {
        answer(s, "");
        return;
    }
    if (!expect(&p, ',') || !number(&p, &addr) || !expect(&p, ',') || !number(&p, &bytes) || bytes > 4096) {
        answer(s, "E16");
        return;
    }
    if (!bytes || type < 2)
        bytes = 1;
    for (i = 0; i < s->n_points; i++)
        if (s->point[i].type == type && s->point[i].at.lin == addr && s->point[i].at.bytes == bytes)
            break;
    if (insert && i == s->n_points) {
        if (i == HVX_DEBUG_MAX_POINTS) {
            answer(s, "E1c");
            return;
        }
        s->point[s->n_points++] = (struct point){{addr, (uint32_t)bytes, kinds[type]}, type};
    } else if (!insert && i < s->n_points) {
        s->point[i] = s->point[--s->n_points];
    }
    answer(s, "OK");
}

/* --- running: c s C S vCont -------------------------------------------------------------------------- */

static void resume(struct hvx_gdb_session *s, const enum hvx_gdb_resume *how)
{
    struct hvx_debug_point points[HVX_DEBUG_MAX_POINTS];

    for (unsigned i = 0; i < s->n_points; i++)
        points[i] = s->point[i].at;
    s->stopped = false;
    if (!s->t->resume(s->o, how, points, s->n_points)) {
        s->stopped = true;
        answer(s, "E01");
    }
}

static bool set_pc(struct hvx_gdb_session *s, unsigned thread, uint64_t pc)
{
    if (!s->t->get_regs(s->o, thread, &s->regs))
        return false;
    s->regs.rip = pc;
    return s->t->set_regs(s->o, thread, &s->regs);
}

/* c [addr], s [addr], C sig[;addr], S sig[;addr]: signals mean nothing to a processor. */
static void resume_old(struct hvx_gdb_session *s, const char *p)
{
    enum hvx_gdb_resume how[HVX_MAX_VCPUS];
    unsigned n = s->t->n_threads(s->o), thread = s->thread_c == UINT32_MAX ? s->thread_g : s->thread_c;
    bool step = *p == 's' || *p == 'S', with_signal = *p == 'C' || *p == 'S';
    uint64_t v;

    p++;
    if (with_signal && (!number(&p, &v) || (*p && !expect(&p, ';')))) {
        answer(s, "E16");
        return;
    }
    if (*p && (!number(&p, &v) || *p || !set_pc(s, thread, v))) {
        answer(s, "E16");
        return;
    }
    for (unsigned i = 0; i < n; i++)
        how[i] = !step ? HVX_GDB_GO : i == thread ? HVX_GDB_STEP : HVX_GDB_HOLD;
    resume(s, how);
}

static void resume_threads(struct hvx_gdb_session *s, const char *p)
{
    enum hvx_gdb_resume how[HVX_MAX_VCPUS];
    bool said[HVX_MAX_VCPUS] = {false}, any = false;
    unsigned n = s->t->n_threads(s->o);

    for (unsigned i = 0; i < n; i++)
        how[i] = HVX_GDB_HOLD;
    while (expect(&p, ';')) {
        char action = *p++;
        unsigned thread = 0;
        bool all = true;
        uint64_t v;
        if (!action || !strchr("csCS", action) || ((action == 'C' || action == 'S') && !number(&p, &v)) ||
            (expect(&p, ':') && !thread_id(&p, n, &thread, &all))) {
            answer(s, "E16");
            return;
        }
        for (unsigned i = 0; i < n; i++) /* the first action that names a thread is the one for it */
            if (!said[i] && (all || i == thread)) {
                said[i] = any = true;
                how[i] = action == 's' || action == 'S' ? HVX_GDB_STEP : HVX_GDB_GO;
            }
    }
    if (*p || !any)
        answer(s, "E16");
    else
        resume(s, how);
}

void hvx_gdb_stop(struct hvx_gdb_session *s, unsigned thread, int point)
{
    static const char *const watches[] = {"watch", "rwatch", "awatch"};
    const struct point *p = point >= 0 && (unsigned)point < s->n_points ? &s->point[point] : NULL;
    char *out = s->stop_reply, *end = out + sizeof(s->stop_reply);

    if (s->stopped || s->ended)
        return;
    s->stopped = true;
    s->thread_g = thread;
    s->thread_c = UINT32_MAX;
    out += snprintf(out, (size_t)(end - out), "T%02xthread:%x;", point == -2 ? SIG_INT : SIG_TRAP, thread + 1);
    if (p && p->type >= 2)
        snprintf(out, (size_t)(end - out), "%s:%llx;", watches[p->type - 2], (unsigned long long)p->at.lin);
    else if (p && p->type == 1 && s->says_hwbreak)
        snprintf(out, (size_t)(end - out), "hwbreak:;");
    else if (p && p->type == 0 && s->says_swbreak)
        snprintf(out, (size_t)(end - out), "swbreak:;");
    answer(s, s->stop_reply);
}

void hvx_gdb_exited(struct hvx_gdb_session *s)
{
    if (!s->ended && !s->stopped)
        answer(s, "W00");
    s->ended = true;
}

/* --- q and v --------------------------------------------------------------------------------------------- */

static void send_description(struct hvx_gdb_session *s, const char *p)
{
    static const char prefix[] = "target.xml:";
    char text[HVX_GDB_PACKET];
    uint64_t off, n;
    size_t all;

    if (strncmp(p, prefix, sizeof(prefix) - 1)) {
        answer(s, "E00");
        return;
    }
    p += sizeof(prefix) - 1;
    if (!number(&p, &off) || !expect(&p, ',') || !number(&p, &n) || *p) {
        answer(s, "E16");
        return;
    }
    all = hvx_gdb_description(s->wide, text, sizeof(text));
    if (off > all)
        off = all;
    if (n > all - off)
        n = all - off;
    if (n > HVX_GDB_PACKET - 8)
        n = HVX_GDB_PACKET - 8;
    s->out[1] = off + n < all ? 'm' : 'l';
    memcpy(s->out + 2, text + off, n); /* no byte of it needs an escape */
    send_out(s, n + 1);
}

static void thread_info(struct hvx_gdb_session *s, const char *p)
{
    char text[200] = "";
    unsigned thread;
    bool all;

    if (!thread_id(&p, s->t->n_threads(s->o), &thread, &all)) {
        answer(s, "E01");
        return;
    }
    s->t->describe(s->o, thread, text, sizeof(text));
    hex(s->out + 1, (uint8_t *)text, strlen(text));
    send_out(s, 2 * strlen(text));
}

static bool begins(const char **p, const char *with)
{
    size_t n = strlen(with);

    if (strncmp(*p, with, n))
        return false;
    *p += n;
    return true;
}

static void query(struct hvx_gdb_session *s, const char *p)
{
    char text[32];

    if (begins(&p, "qSupported")) {
        s->says_swbreak = strstr(p, "swbreak+") != NULL;
        s->says_hwbreak = strstr(p, "hwbreak+") != NULL;
        answer(s, "PacketSize=4000;qXfer:features:read+;swbreak+;hwbreak+;vContSupported+;QStartNoAckMode+");
    } else if (begins(&p, "qXfer:features:read:")) {
        send_description(s, p);
    } else if (begins(&p, "qAttached")) {
        answer(s, "1");
    } else if (!strcmp(p, "qC")) {
        snprintf(text, sizeof(text), "QC%x", s->thread_g + 1);
        answer(s, text);
    } else if (begins(&p, "qfThreadInfo")) {
        list_threads(s, true);
    } else if (begins(&p, "qsThreadInfo")) {
        list_threads(s, false);
    } else if (begins(&p, "qThreadExtraInfo,")) {
        thread_info(s, p);
    } else if (!strcmp(p, "QStartNoAckMode")) {
        answer(s, "OK");
        s->no_ack = true;
    } else {
        answer(s, "");
    }
}

static void finish(struct hvx_gdb_session *s, bool kill)
{
    s->ended = true;
    (kill ? s->t->kill : s->t->detach)(s->o);
}

static void verb(struct hvx_gdb_session *s, const char *p)
{
    if (begins(&p, "vCont?")) {
        answer(s, "vCont;c;C;s;S");
    } else if (begins(&p, "vCont")) {
        resume_threads(s, p);
    } else if (begins(&p, "vKill")) {
        answer(s, "OK");
        finish(s, true);
    } else {
        answer(s, "");
    }
}

/* --- one packet ------------------------------------------------------------------------------------------------ */

static void alive(struct hvx_gdb_session *s, const char *p)
{
    unsigned thread;
    bool all;

    answer(s, thread_id(&p, s->t->n_threads(s->o), &thread, &all) ? "OK" : "E01");
}

static void packet(struct hvx_gdb_session *s)
{
    const char *p = s->in;

    if (!s->stopped) { /* gdb does not speak now */
        answer(s, "E01");
        return;
    }
    switch (*p) {
    case '?': answer(s, s->stop_reply); break;
    case 'g': read_registers(s); break;
    case 'G': write_registers(s, p + 1); break;
    case 'p': read_register(s, p + 1); break;
    case 'P': write_register(s, p + 1); break;
    case 'm': read_memory(s, p + 1); break;
    case 'M': write_memory(s, p + 1, s->in + s->n, false); break;
    case 'X': write_memory(s, p + 1, s->in + s->n, true); break;
    case 'Z': change_point(s, p + 1, true); break;
    case 'z': change_point(s, p + 1, false); break;
    case 'H': choose_thread(s, p + 1); break;
    case 'T': alive(s, p + 1); break;
    case 'c': case 's': case 'C': case 'S': resume_old(s, p); break;
    case 'q': case 'Q': query(s, p); break;
    case 'v': verb(s, p); break;
    case 'D':
        answer(s, "OK");
        finish(s, false);
        break;
    case 'k': finish(s, true); break;
    default: answer(s, ""); break;
    }
}

static void whole_packet(struct hvx_gdb_session *s)
{
    bool good = s->sum == s->sum_said;

    if (!s->no_ack)
        s->t->send(s->o, good ? "+" : "-", 1);
    if (!good)
        return;
    s->in[s->n] = 0;
    if (s->too_long)
        answer(s, "E07");
    else
        packet(s);
}

static void outside(struct hvx_gdb_session *s, uint8_t c)
{
    if (c == '$') {
        s->framing = INSIDE;
        s->n = s->sum = 0;
        s->too_long = false;
    } else if (c == 3 && !s->stopped) {
        s->t->interrupt(s->o);
    } else if (c == '-' && s->n_out && !s->no_ack) {
        s->t->send(s->o, s->out, s->n_out);
    }
}

void hvx_gdb_feed(struct hvx_gdb_session *s, const uint8_t *buf, size_t n)
{
    for (size_t i = 0; i < n && !s->ended; i++) {
        uint8_t c = buf[i];
        int d = hex_digit((char)c);
        switch (s->framing) {
        case OUTSIDE:
            outside(s, c);
            break;
        case INSIDE:
            if (c == '#') {
                s->framing = SUM_1;
                break;
            }
            s->sum += c;
            if (s->n < HVX_GDB_PACKET)
                s->in[s->n++] = (char)c;
            else
                s->too_long = true;
            break;
        case SUM_1:
            s->sum_said = (uint8_t)((d < 0 ? 0 : d) << 4);
            s->framing = SUM_2;
            break;
        case SUM_2:
            s->sum_said |= (uint8_t)(d < 0 ? 0 : d);
            s->framing = OUTSIDE;
            whole_packet(s);
            break;
        }
    }
}

struct hvx_gdb_session *hvx_gdb_session_new(const struct hvx_gdb_target *t, void *o, unsigned force)
{
    struct hvx_gdb_session *s = aligned_alloc(64, (sizeof(*s) + 63) & ~(size_t)63);

    if (!s)
        return NULL;
    memset(s, 0, sizeof(*s));
    s->t = t;
    s->o = o;
    s->stopped = true;
    s->thread_c = UINT32_MAX;
    snprintf(s->stop_reply, sizeof(s->stop_reply), "T%02xthread:1;", SIG_TRAP);
    /* 16-bit code says nothing about what is to come; protected mode without long mode is a 32-bit system's. */
    s->wide = force != 32;
    if (!force && t->get_regs(o, 0, &s->regs) && !(s->regs.efer & 0x400) && (s->regs.cr0 & 1) &&
        (s->regs.seg[HVX_CS].attr & 0x4000))
        s->wide = false;
    return s;
}

void hvx_gdb_session_free(struct hvx_gdb_session *s)
{
    free(s);
}
