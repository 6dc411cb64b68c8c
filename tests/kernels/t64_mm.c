/* SPDX-License-Identifier: Apache-2.0 */
/* Long mode paging: A/D, NX, WP, SMEP, SMAP, PCID, invlpg, large pages, CR3 switches with the same addresses. */
#include "tk.h"

#define P 1ul
#define W 2ul
#define U 4ul
#define A 0x20ul
#define D 0x40ul
#define PS 0x80ul
#define G 0x100ul
#define NX (1ul << 63)
#define VA 0x8000000000ul /* entry 1 of the top table */

extern uint64_t tk_pml4[512], tk_pdpt[512];
static uint64_t pdpt1[512] __attribute__((aligned(4096)));
static uint64_t pd1[512] __attribute__((aligned(4096)));
static uint64_t pt1[512] __attribute__((aligned(4096)));
/* A second address space: the same lower half, other pages at VA. */
static uint64_t pml4_b[512] __attribute__((aligned(4096)));
static uint64_t pdpt_b[512] __attribute__((aligned(4096)));
static uint64_t pd_b[512] __attribute__((aligned(4096)));
static uint64_t pt_b[512] __attribute__((aligned(4096)));
static uint64_t page_a[512] __attribute__((aligned(4096)));
static uint64_t page_b[512] __attribute__((aligned(4096)));

static volatile uint64_t *const va = (volatile uint64_t *)VA;

static void invlpg(const volatile void *p)
{
    __asm__ volatile("invlpg (%0)" : : "r"(p) : "memory");
}

#define LOAD(addr)                                                                                                     \
    ({                                                                                                                 \
        uint64_t v_ = 0;                                                                                               \
        TRY("mov (%1), %0", : "+r"(v_) : "r"(addr) : "memory");                                                        \
        v_;                                                                                                            \
    })
#define STORE(addr, v) TRY("mov %0, (%1)", : : "r"((uint64_t)(v)), "r"(addr) : "memory")

/* Calls `at`; a fault of the fetch itself is caught and the return address dropped. */
static void call(volatile void *at)
{
    tk_got.vector = -1;
    __asm__ volatile("movq $1f, tk_try_resume; call *%0; jmp 2f; 1: add $8, %%rsp; 2: movq $0, tk_try_resume" : : "r"(at)
                     : "memory", "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "cc");
}

static uint64_t call_value(uint64_t at)
{
    return ((uint64_t(*)(void))at)();
}

static void put_code(uint64_t *page, unsigned at, uint32_t value)
{
    volatile uint8_t *p = (uint8_t *)page + at;

    p[0] = 0xb8;
    for (int i = 0; i < 4; i++)
        p[1 + i] = (uint8_t)(value >> (8 * i));
    p[5] = 0xc3;
}

static void basics(void)
{
    tk_pml4[1] = (tk_word)pdpt1 | P | W | U;
    pdpt1[0] = (tk_word)pd1 | P | W | U;
    pd1[0] = (tk_word)pt1 | P | W | U;
    pt1[0] = (tk_word)page_a | P | W;
    pt1[1] = (tk_word)page_b | P | W;
    page_a[0] = 0xaaaa;
    page_a[511] = 0x1122334455667788;
    page_b[0] = 0x99aabbccddeeff00;
    EQUAL(LOAD(va), 0xaaaa, "translate");
    CHECK((tk_pml4[1] & A) && (pdpt1[0] & A) && (pd1[0] & A) && (pt1[0] & (A | D)) == A, "accessed-on-every-level");
    STORE(va, 0xbbbb);
    CHECK((pt1[0] & D) && page_a[0] == 0xbbbb, "dirty-after-store");
    CHECK(!(pd1[0] & D), "dirty-only-on-leaf");
    EQUAL(LOAD((char *)va + 4092), 0xddeeff0011223344, "load-across-pages");
    STORE((char *)va + 4092, 0x0102030405060708);
    CHECK(page_a[511] == 0x0506070855667788 && page_b[0] == 0x99aabbcc01020304, "store-across-pages");
    pt1[1] = 0;
    invlpg((char *)va + 4096);
    STORE((char *)va + 4092, 0);
    CHECK(FAULTED(14, 2) && tk_got.cr2 == VA + 4096 && page_a[511] == 0x0506070855667788, "split-store-faults-whole");
    LOAD((char *)va + 4092);
    CHECK(FAULTED(14, 0) && tk_got.cr2 == VA + 4096, "split-load-cr2");
    TRY("addq $1, (%0)", : : "r"((char *)va + 4092) : "memory", "cc");
    CHECK(tk_got.vector == 14 && page_a[511] == 0x0506070855667788, "split-rmw-faults-whole");
    pt1[1] = (tk_word)page_b | P;
    STORE((char *)va + 4096, 0);
    CHECK(FAULTED(14, 3), "write-protect");
    CHECK(!(pt1[1] & D), "failed-store-leaves-dirty");
    STORE((char *)va + 4092, 0);
    CHECK(FAULTED(14, 3) && tk_got.cr2 == VA + 4096 && page_a[511] == 0x0506070855667788, "split-store-to-read-only");
    WRITE_REG("cr0", READ_REG("cr0") & ~0x10000ul);
    STORE((char *)va + 4096, 0x77);
    CHECK(tk_got.vector == -1 && page_b[0] == 0x77, "wp-clear-lets-kernel-write");
    WRITE_REG("cr0", READ_REG("cr0") | 0x10000);
    STORE((char *)va + 4096, 0x78);
    CHECK(FAULTED(14, 3), "wp-set-again");
    /* Dirty and accessed bits come again after they are cleared and flushed. */
    pt1[0] &= ~(A | D);
    invlpg(va);
    LOAD(va);
    CHECK((pt1[0] & (A | D)) == A, "accessed-again");
    STORE(va, 1);
    CHECK((pt1[0] & (A | D)) == (A | D), "dirty-again");
    pt1[2] = (tk_word)page_a | P | W | 1ul << 51; /* beyond the physical address width, unless the CPU has 52 bits */
    LOAD((char *)va + 8192);
    uint32_t r[4];
    cpuid(0x80000008, 0, r);
    if ((r[0] & 0xff) < 52)
        CHECK(tk_got.vector == 14 && (tk_got.error | tk_tcg()) == 9, "reserved-bit"); /* TCG leaves bit 0 out */
    else
        tk_skip("reserved-bit", "52 physical address bits");
    pt1[2] = 0;
    invlpg((char *)va + 8192);
    /* A push that faults leaves RSP alone. */
    tk_word sp;
    TRY("mov %%rsp, %%rbx; mov %1, %%rsp; push %%rax; jmp 1f; nop; 1: mov %%rsp, %0; mov %%rbx, %%rsp", : "=&r"(sp)
        : "r"((char *)va + 4096) : "rbx", "memory");
    EQUAL(sp, VA + 4088, "push-through-mapping");
    /* call [mem] and jmp [mem] through the mapping. */
    page_a[1] = (tk_word) && landed;
    uint64_t *slot = (uint64_t *)VA + 1;
    __asm__ goto volatile("jmp *(%0)" : : "r"(slot) : "memory" : landed);
landed:
    CHECK(true, "jump-through-memory");
}

static void execute(void)
{
    put_code(page_a, 256, 0x1234);
    pt1[0] = (tk_word)page_a | P | W;
    invlpg(va);
    EQUAL(call_value(VA + 256), 0x1234, "execute");
    pt1[0] |= NX;
    invlpg(va);
    call((char *)va + 256);
    CHECK(tk_got.vector == 14 && tk_got.error == 0x11 && tk_got.ip == VA + 256 && tk_got.cr2 == VA + 256, "nx-fetch");
    pt1[0] &= ~NX;
    pd1[0] |= NX;
    invlpg(va);
    call((char *)va + 256);
    CHECK(tk_got.vector == 14 && tk_got.error == 0x11, "nx-in-directory");
    pd1[0] &= ~NX;
    invlpg(va);
    pt1[0] = 0;
    invlpg(va);
    call((char *)va + 256);
    CHECK(tk_got.vector == 14 && tk_got.error == 0x10 && tk_got.cr2 == VA + 256, "fetch-not-present");
    pt1[0] = (tk_word)page_a | P | W;
    /* An instruction that begins on a good page and ends on a bad one. */
    pt1[1] = 0;
    put_code(page_a, 4093, 0);
    invlpg((char *)va + 4096);
    call((char *)va + 4093);
    CHECK(tk_got.vector == 14 && tk_got.error == 0x10 && tk_got.ip == VA + 4093 && tk_got.cr2 == VA + 4096, "fetch-straddles");
    pt1[1] = (tk_word)page_b | P | W;
    ((volatile uint8_t *)page_b)[0] = 0x56, ((volatile uint8_t *)page_b)[1] = 0x34, ((volatile uint8_t *)page_b)[2] = 0xc3;
    ((volatile uint8_t *)page_a)[4094] = 0x9a, ((volatile uint8_t *)page_a)[4095] = 0x78;
    invlpg((char *)va + 4096);
    EQUAL(call_value(VA + 4093), 0x3456789a, "code-straddles-pages");
    /* Move the second page elsewhere: the straddling instruction must change. */
    pt1[1] = (tk_word)page_a | P | W;
    uint32_t head = *(volatile uint32_t *)page_a;
    ((volatile uint8_t *)page_a)[0] = 0x11, ((volatile uint8_t *)page_a)[1] = 0x22, ((volatile uint8_t *)page_a)[2] = 0xc3;
    invlpg((char *)va + 4096);
    EQUAL(call_value(VA + 4093), 0x2211789a, "straddling-code-remapped");
    *(volatile uint32_t *)page_a = head;
    pt1[1] = (tk_word)page_b | P | W;
    invlpg((char *)va + 4096);
}

static void user_rights(void)
{
    static uint8_t stack[512] __attribute__((aligned(16)));
    uint32_t r[4];

    /* mov (rdi)... : eax = value; then int 0x80. rsp is good, the code lies on a user page. */
    static const uint8_t user_load[] = {0x48, 0xb8, 0, 0, 0, 0, 0x80, 0, 0, 0, 0x48, 0x8b, 0x00, 0xcd, 0x80};
    static const uint8_t user_store[] = {0x48, 0xb8, 0, 0, 0, 0, 0x80, 0, 0, 0, 0x48, 0x89, 0x00, 0xcd, 0x80};
#define RUN(code) (tk_got.vector = -1, tk_run_user((tk_word)(code), (tk_word)(stack + 512), 2, TK_USER_CODE))
    pt1[0] = (tk_word)page_a | P | W;
    invlpg(va);
    RUN(user_load);
    CHECK(tk_got.vector == 14 && tk_got.error == 5 && tk_got.cr2 == VA, "user-read-of-supervisor");
    pt1[0] |= U;
    invlpg(va);
    RUN(user_load);
    CHECK(tk_got.vector == 0x80, "user-read-allowed");
    pt1[0] &= ~W;
    invlpg(va);
    RUN(user_store);
    CHECK(tk_got.vector == 14 && tk_got.error == 7, "user-write-of-read-only");
    pt1[0] |= W;
    invlpg(va);
    RUN(user_store);
    CHECK(tk_got.vector == 0x80 && page_a[0] == VA, "user-write-allowed");
    RUN(VA + 0x200000);
    CHECK(tk_got.vector == 14 && tk_got.error == 0x14 && tk_got.ip == VA + 0x200000, "user-fetch-not-present");
    /* Kernel must not run user pages with SMEP, nor touch them with SMAP. */
    cpuid(7, 0, r);
    put_code(page_a, 256, 0x77);
    if (r[1] & 1u << 7) {
        /* All our code lies on user pages: give the kernel a supervisor view first. */
        extern uint64_t tk_pd[2048];
        tk_pd[0] &= ~U;
        invlpg((void *)0x100000);
        WRITE_REG("cr4", READ_REG("cr4") | 1 << 20);
        call((char *)va + 256);
        CHECK(tk_got.vector == 14 && tk_got.error == 0x11, "smep");
        WRITE_REG("cr4", READ_REG("cr4") & ~(1ul << 20));
        EQUAL(call_value(VA + 256), 0x77, "smep-off");
        if (r[1] & 1u << 20) {
            WRITE_REG("cr4", READ_REG("cr4") | 1 << 21);
            LOAD(va);
            CHECK(tk_got.vector == 14 && tk_got.error == 1, "smap");
            __asm__ volatile("stac");
            LOAD(va);
            CHECK(tk_got.vector == -1, "smap-stac");
            __asm__ volatile("clac");
            LOAD(va);
            CHECK(tk_got.vector == 14, "smap-clac");
            WRITE_REG("cr4", READ_REG("cr4") & ~(1ul << 21));
        } else {
            tk_skip("smap", "CPUID shows none");
        }
        tk_pd[0] |= U;
        WRITE_REG("cr3", READ_REG("cr3"));
    } else {
        tk_skip("smep", "CPUID shows none");
    }
    pt1[0] &= ~U;
    invlpg(va);
}

static void spaces(void)
{
    uint32_t r[4];
    bool good = true;

    memcpy(pml4_b, tk_pml4, 4096);
    pml4_b[1] = (tk_word)pdpt_b | P | W | U;
    pdpt_b[0] = (tk_word)pd_b | P | W | U;
    pd_b[0] = (tk_word)pt_b | P | W | U;
    pt_b[0] = (tk_word)page_b | P | W;
    pt1[0] = (tk_word)page_a | P | W;
    page_a[0] = 0xa, page_b[0] = 0xb;
    put_code(page_a, 512, 0xaa);
    put_code(page_b, 512, 0xbb);
    for (int i = 0; i < 100; i++) {
        WRITE_REG("cr3", i & 1 ? pml4_b : tk_pml4);
        good &= *va == (i & 1 ? 0xb : 0xa);
        good &= call_value(VA + 512) == (i & 1 ? 0xbb : 0xaa);
    }
    CHECK(good, "same-address-in-two-spaces");
    WRITE_REG("cr3", tk_pml4);
    /* A global page survives a CR3 load only as long as nobody changes it: here the same mapping is in both. */
    WRITE_REG("cr4", READ_REG("cr4") | 0x80);
    pt1[3] = pt_b[3] = (tk_word)page_a | P | W | G;
    good = true;
    for (int i = 0; i < 10; i++) {
        WRITE_REG("cr3", i & 1 ? pml4_b : tk_pml4);
        good &= va[3 * 512] == 0xa;
    }
    CHECK(good, "global-page-in-two-spaces");
    pt1[3] = pt_b[3] = (tk_word)page_b | P | W | G;
    invlpg((char *)va + 0x3000);
    EQUAL(va[3 * 512], 0xb, "invlpg-drops-global");
    WRITE_REG("cr4", READ_REG("cr4") & ~0x80ul);
    WRITE_REG("cr3", tk_pml4);
    cpuid(1, 0, r);
    if (r[2] & 1u << 17) {
        WRITE_REG("cr4", READ_REG("cr4") | 1 << 17);
        good = true;
        for (int i = 0; i < 100; i++) {
            tk_word root = i & 1 ? (tk_word)pml4_b | 2 : (tk_word)tk_pml4 | 1;

            WRITE_REG("cr3", root | (i >= 2 ? 1ul << 63 : 0)); /* keep what is cached */
            good &= *va == (i & 1 ? 0xb : 0xa) && call_value(VA + 512) == (i & 1 ? 0xbb : 0xaa);
        }
        CHECK(good, "pcid-switches");
        EQUAL(READ_REG("cr3") >> 63, 0, "cr3-bit-63-reads-0");
        /* Load without bit 63 flushes that PCID. */
        WRITE_REG("cr3", (tk_word)tk_pml4 | 1);
        pt1[0] = (tk_word)page_b | P | W;
        WRITE_REG("cr3", (tk_word)tk_pml4 | 1);
        EQUAL(*va, 0xb, "cr3-load-flushes-own-pcid");
        pt1[0] = (tk_word)page_a | P | W;
        WRITE_REG("cr3", (tk_word)tk_pml4 | 1);
        cpuid(7, 0, r);
        if (r[1] & 1u << 10) {
            struct {
                uint64_t pcid, address;
            } d = {1, VA};
            *va;
            pt1[0] = (tk_word)page_b | P | W;
            __asm__ volatile("invpcid %0, %1" : : "m"(d), "r"(0ul) : "memory");
            EQUAL(*va, 0xb, "invpcid-address");
            pt1[0] = (tk_word)page_a | P | W;
            __asm__ volatile("invpcid %0, %1" : : "m"(d), "r"(1ul) : "memory");
            EQUAL(*va, 0xa, "invpcid-one-context");
            pt1[0] = (tk_word)page_b | P | W;
            __asm__ volatile("invpcid %0, %1" : : "m"(d), "r"(2ul) : "memory");
            EQUAL(*va, 0xb, "invpcid-all");
        }
        WRITE_REG("cr3", tk_pml4);
        WRITE_REG("cr4", READ_REG("cr4") & ~(1ul << 17));
    } else {
        tk_skip("pcid", "CPUID shows none");
    }
    pt1[0] = (tk_word)page_a | P | W;
    WRITE_REG("cr3", tk_pml4);
}

/* More spaces than an engine may keep aside, each with its own tables, data and code. */
#define SPACES 12
static uint64_t space_table[SPACES][4][512] __attribute__((aligned(4096)));
static uint64_t space_page[SPACES][512] __attribute__((aligned(4096)));

static bool space_right(unsigned i, uint64_t value)
{
    WRITE_REG("cr3", (tk_word)space_table[i][0] | (i + 1) | 1ul << 63);
    return *va == value && call_value(VA + 512) == i;
}

static void many_spaces(void)
{
    uint32_t r[4], r7[4];
    bool good = true;

    cpuid(1, 0, r);
    cpuid(7, 0, r7);
    if (!(r[2] & 1u << 17)) {
        tk_skip("many-pcids", "CPUID shows none");
        return;
    }
    for (unsigned i = 0; i < SPACES; i++) {
        memcpy(space_table[i][0], tk_pml4, 4096);
        space_table[i][0][1] = (tk_word)space_table[i][1] | P | W;
        space_table[i][1][0] = (tk_word)space_table[i][2] | P | W;
        space_table[i][2][0] = (tk_word)space_table[i][3] | P | W;
        space_table[i][3][0] = (tk_word)space_page[i] | P | W;
        space_page[i][0] = 100 + i;
        put_code(space_page[i], 512, (uint8_t)i);
    }
    WRITE_REG("cr4", READ_REG("cr4") | 1 << 17);
    for (unsigned round = 0; round < 4; round++)
        for (unsigned i = 0; i < SPACES; i++)
            good &= space_right(i, 100 + i);
    for (unsigned i = 0; i < 60; i++) /* near ones, and one that was long away */
        good &= space_right(i % 5 ? i % 5 : i / 5, 100 + (i % 5 ? i % 5 : i / 5));
    CHECK(good, "many-pcids");
    if (r7[1] & 1u << 10) {
        struct {
            uint64_t pcid, address;
        } d;

        good = true;
        for (unsigned i = 0; i < SPACES; i++) {
            unsigned victim = (i + 1) % SPACES;

            d.pcid = victim + 1;
            d.address = VA;
            good &= space_right(victim, 100 + victim) && space_right(i, 100 + i);
            space_table[victim][3][0] = (tk_word)page_b | P | W;
            __asm__ volatile("invpcid %0, %1" : : "m"(d), "r"((tk_word)(i & 1)) : "memory");
            page_b[0] = 0xb;
            put_code(page_b, 512, (uint8_t)victim);
            good &= space_right(victim, 0xb);
            space_table[victim][3][0] = (tk_word)space_page[victim] | P | W;
            invlpg(va);
            good &= space_right(victim, 100 + victim);
        }
        CHECK(good, "invpcid-of-another-space");
        good = true;
        for (unsigned i = 0; i < SPACES; i++) {
            space_table[i][3][0] = (tk_word)page_b | P | W;
            __asm__ volatile("invpcid %0, %1" : : "m"(d), "r"(3ul) : "memory");
            put_code(page_b, 512, (uint8_t)i);
            good &= space_right(i, 0xb);
        }
        CHECK(good, "invpcid-all-but-global");
    }
    WRITE_REG("cr3", (tk_word)space_table[0][0]);
    WRITE_REG("cr4", READ_REG("cr4") & ~(1ul << 17));
    WRITE_REG("cr3", tk_pml4);
}

static void large(void)
{
    uint32_t r[4];

    pd1[1] = 0x400000ul | P | W | PS;
    *(volatile uint64_t *)0x5ffff8 = 0x1234;
    EQUAL(LOAD((char *)va + 0x3ffff8), 0x1234, "2m-page");
    STORE((char *)va + 0x3ffff0, 9);
    CHECK((pd1[1] & (A | D)) == (A | D) && *(volatile uint64_t *)0x5ffff0 == 9, "2m-page-a-d");
    pd1[1] |= 1ul << 13;
    invlpg((char *)va + 0x200000);
    LOAD((char *)va + 0x200000);
    CHECK(tk_got.vector == 14 && (tk_got.error | tk_tcg()) == 9, "2m-reserved-bit");
    pd1[1] = 0;
    /* Split a large page into small ones while it is cached. */
    pd1[1] = 0x400000ul | P | W | PS;
    invlpg((char *)va + 0x200000);
    *(volatile uint64_t *)0x401000 = 0x41;
    EQUAL(LOAD((char *)va + 0x201000), 0x41, "before-split");
    static uint64_t split[512] __attribute__((aligned(4096)));
    for (unsigned i = 0; i < 512; i++)
        split[i] = (0x400000ul + i * 4096ul) | P | W;
    split[1] = (tk_word)page_b | P | W;
    page_b[0] = 0x42;
    pd1[1] = (tk_word)split | P | W;
    invlpg((char *)va + 0x201000);
    EQUAL(LOAD((char *)va + 0x201000), 0x42, "after-split");
    cpuid(0x80000001, 0, r);
    if (r[3] & 1u << 26) {
        pdpt1[1] = 0ul | P | W | PS;
        page_a[5] = 0x5151;
        EQUAL(LOAD((char *)VA + 0x40000000ul + (tk_word)&page_a[5]), 0x5151, "1g-page");
        pdpt1[1] = 0;
    } else {
        tk_skip("1g-page", "CPUID shows none");
    }
    /* Page tables that map themselves: a store through the window changes the mapping. */
    pt1[4] = (tk_word)pt1 | P | W;
    pt1[5] = (tk_word)page_a | P | W;
    page_a[0] = 0x1, page_b[0] = 0x2;
    EQUAL(va[5 * 512], 1, "before-table-write");
    va[4 * 512 + 5] = (tk_word)page_b | P | W;
    invlpg((char *)va + 0x5000);
    EQUAL(va[5 * 512], 2, "table-written-through-window");
}

void tk_main(void)
{
    basics();
    execute();
    user_rights();
    spaces();
    many_spaces();
    large();
}
