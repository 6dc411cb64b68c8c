/* SPDX-License-Identifier: Apache-2.0 */
/* String instructions: page crossings, faults in the middle, directions, overlaps, ports; and their register rules. */
#include "tk.h"

#define PAGE 4096
#define VA 0x8000000000ul
#define NOT_THERE (VA + 3 * PAGE)

extern uint64_t tk_pml4[512];
static uint64_t pdpt1[512] __attribute__((aligned(PAGE)));
static uint64_t pd1[512] __attribute__((aligned(PAGE)));
static uint64_t pt1[512] __attribute__((aligned(PAGE)));
static uint8_t pages[3][PAGE] __attribute__((aligned(PAGE)));
static uint8_t from[2 * PAGE];

static uint8_t *const va = (uint8_t *)VA;

static void invlpg(const volatile void *p)
{
    __asm__ volatile("invlpg (%0)" : : "r"(p) : "memory");
}

static void set_up(void)
{
    tk_pml4[1] = (tk_word)pdpt1 | 7;
    pdpt1[0] = (tk_word)pd1 | 7;
    pd1[0] = (tk_word)pt1 | 7;
    /* Neighbours at VA are not neighbours in memory. */
    pt1[0] = (tk_word)pages[2] | 7;
    pt1[1] = (tk_word)pages[0] | 7;
    pt1[2] = (tk_word)pages[1] | 7;
    for (unsigned i = 0; i < sizeof(from); i++)
        from[i] = (uint8_t)(i * 7 + (i >> 8));
}

static bool same(const uint8_t *a, const uint8_t *b, unsigned n)
{
    return memcmp(a, b, n) == 0;
}

static void crossing(void)
{
    bool good = true;

    for (unsigned at = PAGE - 9; at < PAGE + 2; at++) {
        tk_word d = VA + at, s = (tk_word)from + 3, n = PAGE + 5;

        memset(va, 0, 3 * PAGE);
        __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
        good &= n == 0 && d == VA + at + PAGE + 5 && s == (tk_word)from + 3 + PAGE + 5 && same(va + at, from + 3, PAGE + 5) &&
                !va[at - 1] && !va[at + PAGE + 5];
        d = VA + at, n = 600;
        __asm__ volatile("rep stosq" : "+D"(d), "+c"(n) : "a"(0x1122334455667788ul) : "memory");
        good &= n == 0 && *(volatile uint64_t *)(va + at + 599 * 8) == 0x1122334455667788ul && va[at] == 0x88;
        d = VA + at + 4800 - 8, n = 600;
        __asm__ volatile("std; rep stosq; cld" : "+D"(d), "+c"(n) : "a"(0x99ul) : "memory");
        good &= n == 0 && d == VA + at - 8 && va[at] == 0x99 && !va[at + 1];
        memcpy(va + at, from, 5000);
        d = VA + at, s = (tk_word)from, n = 1250;
        bool z;
        __asm__ volatile("repe cmpsl; setz %3" : "+D"(d), "+S"(s), "+c"(n), "=q"(z) : : "memory", "cc");
        good &= z && n == 0;
        va[at + 4444] ^= 1;
        d = VA + at, s = (tk_word)from, n = 1250;
        __asm__ volatile("repe cmpsl; setz %3" : "+D"(d), "+S"(s), "+c"(n), "=q"(z) : : "memory", "cc");
        good &= !z && n == 1250 - 1112 && d == VA + at + 4448;
        memset(va + at, 'x', 5000);
        va[at + 4321] = 'y';
        d = VA + at, n = 5000;
        __asm__ volatile("repne scasb" : "+D"(d), "+c"(n) : "a"('y') : "memory", "cc");
        good &= d == VA + at + 4322 && n == 5000 - 4322;
    }
    CHECK(good, "strings-across-pages");
    tk_word sum = 0, s = VA + PAGE - 4, v = 0;
    for (unsigned i = 0; i < 8; i++)
        va[PAGE - 4 + i] = (uint8_t)i;
    __asm__ volatile("lodsq" : "+S"(s), "=a"(v));
    sum = v;
    CHECK(sum == 0x0706050403020100ul && s == VA + PAGE + 4, "lodsq-across-pages");
}

/* A fault in the middle: counters say exactly how far it came, and the instruction goes on afterwards. */
static void faults(void)
{
    tk_word d = NOT_THERE - 20, s = (tk_word)from, n = 50;

    memset(va, 0, 3 * PAGE);
    TRY("rep movsb", : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    CHECK(FAULTED(14, 2) && tk_got.cr2 == NOT_THERE, "movsb-fault-address");
    CHECK(d == NOT_THERE && s == (tk_word)from + 20 && n == 30 && same(va + 3 * PAGE - 20, from, 20), "movsb-fault-counters");
    d = NOT_THERE - 20, s = (tk_word)from, n = 10;
    TRY("rep movsq", : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    CHECK(FAULTED(14, 2) && tk_got.cr2 == NOT_THERE && d == NOT_THERE - 4 && n == 8, "movsq-fault-in-an-element");
    d = (tk_word)pages[1], s = NOT_THERE - 16, n = 5;
    TRY("rep movsq", : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    CHECK(FAULTED(14, 0) && s == NOT_THERE && n == 3, "movsq-fault-on-the-source");
    d = NOT_THERE - 8, n = 5;
    TRY("rep stosl", : "+D"(d), "+c"(n) : "a"(0) : "memory");
    CHECK(FAULTED(14, 2) && d == NOT_THERE && n == 3, "stosl-fault");
    d = NOT_THERE - 3, n = 50;
    va[3 * PAGE - 1] = va[3 * PAGE - 2] = va[3 * PAGE - 3] = 1;
    TRY("repne scasb", : "+D"(d), "+c"(n) : "a"(9) : "memory", "cc");
    CHECK(FAULTED(14, 0) && d == NOT_THERE && n == 47, "scasb-fault");
    /* A count of zero touches nothing, not even a bad address. */
    d = NOT_THERE, s = NOT_THERE, n = 0;
    TRY("rep movsb", : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    CHECK(tk_got.vector == -1 && d == NOT_THERE, "zero-count");
    /* Non-canonical. */
    d = 0x7ffffffffff0ul, n = 100;
    TRY("rep lodsb", : "+S"(d), "+c"(n) : : "rax", "memory");
    CHECK(tk_got.vector == 14 || tk_got.vector == 13, "lodsb-at-the-canonical-hole");
    /* Write to a read-only page in the middle. */
    pt1[2] &= ~2ul;
    invlpg(va + 2 * PAGE);
    d = VA + 2 * PAGE - 100, n = 300, s = (tk_word)from;
    TRY("rep movsb", : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    CHECK(FAULTED(14, 3) && d == VA + 2 * PAGE && n == 200 && tk_got.cr2 == VA + 2 * PAGE, "movsb-into-read-only");
    pt1[2] |= 2;
    invlpg(va + 2 * PAGE);
}

static volatile uint32_t mapped_in;

static void map_it(struct tk_frame *f)
{
    (void)f;
    pt1[3 + mapped_in++] = (tk_word)pages[2] | 7;
}

/* Demand paging: the handler maps the page and the instruction resumes. */
static void resume(void)
{
    tk_word d = NOT_THERE - 100, s = (tk_word)from, n = 1000;

    tk_on(14, map_it);
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    tk_on(14, NULL);
    CHECK(mapped_in == 1 && n == 0 && d == NOT_THERE + 900, "movsb-resumes");
    CHECK(same(va + 3 * PAGE - 100, from, 100) && same(pages[2], from + 100, 900), "movsb-resumed-right");
    pt1[3] = 0;
    invlpg((void *)NOT_THERE);
}

static void overlap(void)
{
    tk_word d = VA + 1, s = VA, n = 5000;

    va[0] = 0x5a;
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    bool good = true;
    for (unsigned i = 0; i <= 5000; i++)
        good &= va[i] == 0x5a;
    CHECK(good, "overlap-forward-smears");
    for (unsigned i = 0; i < 5000; i++)
        va[i] = from[i];
    d = VA + 5001, s = VA + 4999, n = 5000;
    __asm__ volatile("std; rep movsb; cld" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    CHECK(same(va + 2, from, 5000), "overlap-backward-moves");
    for (unsigned i = 0; i < 16; i++)
        va[PAGE - 8 + i] = (uint8_t)i;
    d = VA + PAGE - 6, s = VA + PAGE - 8, n = 3;
    __asm__ volatile("rep movsl" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    /* Element by element: 0123 -> at 2; then (4..7 as then read) and so on. */
    uint8_t model[16];
    for (unsigned i = 0; i < 16; i++)
        model[i] = (uint8_t)i;
    for (unsigned e = 0; e < 3; e++) {
        uint8_t t[4];

        for (unsigned i = 0; i < 4; i++)
            t[i] = model[e * 4 + i];
        for (unsigned i = 0; i < 4; i++)
            model[e * 4 + 2 + i] = t[i];
    }
    CHECK(same(va + PAGE - 8, model, 16), "overlap-within-an-element");
}

static void address_size(void)
{
    static uint8_t low[64];
    tk_word d = (tk_word)low | 0xabcd00000000ul, n = 0x100000004ul;

    __asm__ volatile("addr32 rep stosb" : "+D"(d), "+c"(n) : "a"(7) : "memory");
    CHECK(low[3] == 7 && low[4] == 0, "addr32-uses-ecx-and-edi");
    CHECK(d == (tk_word)low + 4 && n == 0, "addr32-zero-extends");
    /* Ports: 16 reads of a port whose value does not change; the POST port takes writes. */
    d = VA + PAGE - 8, n = 16;
    __asm__ volatile("rep insb" : "+D"(d), "+c"(n) : "d"(0x21) : "memory");
    CHECK(n == 0 && d == VA + PAGE + 8 && va[PAGE + 7] == 0xff, "rep-insb");
    tk_word s = VA + PAGE - 8;
    n = 16;
    __asm__ volatile("rep outsb" : "+S"(s), "+c"(n) : "d"(0x80) : "memory");
    CHECK(n == 0 && s == VA + PAGE + 8, "rep-outsb");
    d = NOT_THERE - 2, n = 8;
    TRY("rep insb", : "+D"(d), "+c"(n) : "d"(0x21) : "memory");
    CHECK(FAULTED(14, 2) && d == NOT_THERE && n == 6, "rep-insb-fault");
}

static volatile uint32_t ticks;

static void on_tick(struct tk_frame *f)
{
    (void)f;
    ticks++;
    outb(0x20, 0x20);
}

/* Long repeats are interruptible and still come out right. */
static void interrupted(void)
{
    bool good = true;
    uint8_t *big = (uint8_t *)0x2000000;

    tk_pic_setup(0x20, 0xfffe);
    tk_on(0x20, on_tick);
    outb(0x43, 0x34);
    outb(0x40, 0x50);
    outb(0x40, 0x02);
    __asm__ volatile("sti");
    for (unsigned r = 0; r < 8 || ticks < 20; r++) {
        tk_word d = (tk_word)big, n = 1 << 20, s = (tk_word)big;

        __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(r) : "memory");
        good &= n == 0 && d == (tk_word)big + (1 << 20) && big[0] == (uint8_t)r && big[(1 << 20) - 1] == (uint8_t)r;
        d = (tk_word)big + (1 << 20), n = 1 << 17;
        __asm__ volatile("rep movsq" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
        good &= n == 0 && big[(2 << 20) - 1] == (uint8_t)r;
        if (r > 2000)
            break;
    }
    __asm__ volatile("cli");
    CHECK(good && ticks >= 5, "long-repeats-with-interrupts");
}

/* Without a repeat; they are translated, not called. */
static void one_element(void)
{
    bool good = true;

#define ONE(insn, size, at)                                                                                            \
    do {                                                                                                               \
        tk_word d = VA + (at), s = (tk_word)from + 5;                                                                  \
        memset(va + (at) - 8, 0, 24);                                                                                  \
        __asm__ volatile(insn : "+D"(d), "+S"(s) : : "memory");                                                        \
        good &= d == VA + (at) + size && s == (tk_word)from + 5 + size && same(va + (at), from + 5, size) &&           \
                !va[(at) - 1] && !va[(at) + size];                                                                     \
        memset(va + (at) - 8, 0, 24);                                                                                  \
        d = VA + (at), s = (tk_word)from + 5;                                                                          \
        __asm__ volatile("std\n\t" insn "\n\tcld" : "+D"(d), "+S"(s) : : "memory");                                    \
        good &= d == VA + (at)-size && s == (tk_word)from + 5 - size && same(va + (at), from + 5, size) &&             \
                !va[(at) - 1] && !va[(at) + size];                                                                     \
    } while (0)
    for (unsigned at = PAGE - 9; at < PAGE + 2; at++) {
        ONE("movsb", 1, at);
        ONE("movsw", 2, at);
        ONE("movsl", 4, at);
        ONE("movsq", 8, at);
    }
    CHECK(good, "one-element-across-pages");

    /* A fault changes nothing; the source's comes first. */
    tk_word d = NOT_THERE - 3, s = (tk_word)from, v = 77;
    TRY("movsl", : "+D"(d), "+S"(s) : : "memory");
    CHECK(FAULTED(14, 2) && tk_got.cr2 == NOT_THERE && d == NOT_THERE - 3 && s == (tk_word)from, "movsl-fault");
    d = NOT_THERE, s = NOT_THERE + 8;
    TRY("movsb", : "+D"(d), "+S"(s) : : "memory");
    CHECK(FAULTED(14, 0) && tk_got.cr2 == NOT_THERE + 8 && d == NOT_THERE && s == NOT_THERE + 8, "movsb-source-first");
    d = 0x800000000000ul, s = (tk_word)from;
    TRY("movsb", : "+D"(d), "+S"(s) : : "memory");
    CHECK(FAULTED(13, 0) && d == 0x800000000000ul && s == (tk_word)from, "movsb-not-canonical");
    d = NOT_THERE;
    TRY("stosw", : "+D"(d) : "a"(v) : "memory");
    CHECK(FAULTED(14, 2) && d == NOT_THERE, "stosw-fault");
    s = NOT_THERE - 1;
    TRY("lodsw", : "+S"(s), "+a"(v) : : "memory");
    CHECK(FAULTED(14, 0) && tk_got.cr2 == NOT_THERE && s == NOT_THERE - 1 && v == 77, "lodsw-fault");

    /* Registers: parts, address size; flags stay. */
    va[0] = 0xaa, va[1] = 0xbb, va[2] = 0xcc, va[3] = 0xdd;
    s = VA, v = 0x1122334455667788ul;
    __asm__ volatile("lodsb" : "+S"(s), "+a"(v) : : "memory");
    good = v == 0x11223344556677aaul && s == VA + 1;
    __asm__ volatile("lodsw" : "+S"(s), "+a"(v) : : "memory");
    good &= v == 0x112233445566ccbbul && s == VA + 3;
    s = VA;
    __asm__ volatile("lodsl" : "+S"(s), "+a"(v) : : "memory");
    CHECK(good && v == 0xddccbbaaul && s == VA + 4, "lods-parts-of-rax");
    static uint8_t low[16];
    d = (tk_word)low | 0xabcd00000000ul, s = (tk_word)from | 0x123400000000ul;
    __asm__ volatile("addr32 movsl" : "+D"(d), "+S"(s) : : "memory");
    CHECK(same(low, from, 4) && d == (tk_word)low + 4 && s == (tk_word)from + 4, "addr32-movsl");
    uint8_t below, above;
    d = (tk_word)low, s = (tk_word)from;
    __asm__ volatile("cmp $5, %4\n\tmovsb\n\tsetb %2\n\tstosb\n\tseta %3"
                     : "+D"(d), "+S"(s), "=&q"(below), "=&q"(above) : "r"(4u), "a"(3) : "memory", "cc");
    CHECK(below == 1 && above == 0 && low[0] == from[0] && low[1] == 3, "flags-across-movsb-and-stosb");

    /* Devices: the local APIC's version and task priority. */
    volatile uint32_t *apic = (volatile uint32_t *)0xfee00000ul;
    uint32_t version = apic[0x30 / 4], got = 0, priority = 0x20;
    d = (tk_word)&got, s = 0xfee00030ul;
    __asm__ volatile("movsl" : "+D"(d), "+S"(s) : : "memory");
    good = got == version && version && s == 0xfee00034ul && d == (tk_word)&got + 4;
    d = 0xfee00080ul, s = (tk_word)&priority;
    __asm__ volatile("movsl" : "+D"(d), "+S"(s) : : "memory");
    good &= apic[0x80 / 4] == 0x20 && d == 0xfee00084ul;
    d = 0xfee00080ul;
    __asm__ volatile("stosl" : "+D"(d) : "a"(0) : "memory");
    s = 0xfee00030ul;
    __asm__ volatile("lodsl" : "+S"(s), "=a"(v) : : "memory");
    CHECK(good && !apic[0x80 / 4] && v == version, "one-element-and-devices");
}

void tk_main(void)
{
    set_up();
    crossing();
    faults();
    resume();
    overlap();
    address_size();
    one_element();
    interrupted();
}
