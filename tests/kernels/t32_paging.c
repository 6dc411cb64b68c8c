/* SPDX-License-Identifier: Apache-2.0 */
/* Protected mode paging: 4 KiB and 4 MiB pages, PAE, access rights, A/D bits, error codes, invlpg. */
#include "tk.h"

#define P 1u
#define W 2u
#define U 4u
#define A 0x20u
#define D 0x40u
#define PS 0x80u
#define G 0x100u
#define TEST_VA 0x40000000u

static uint32_t dir[1024] __attribute__((aligned(4096)));
static uint32_t table[1024] __attribute__((aligned(4096)));
static uint64_t pdpt[4] __attribute__((aligned(32)));
static uint64_t pae_dir[4][512] __attribute__((aligned(4096)));
static uint64_t pae_table[512] __attribute__((aligned(4096)));
static uint32_t page_a[1024] __attribute__((aligned(4096)));
static uint32_t page_b[1024] __attribute__((aligned(4096)));

static volatile uint32_t *const va = (volatile uint32_t *)TEST_VA;

static void invlpg(const volatile void *p)
{
    __asm__ volatile("invlpg (%0)" : : "r"(p) : "memory");
}

#define LOAD(addr)                                                                                                     \
    ({                                                                                                                 \
        uint32_t v_ = 0;                                                                                               \
        TRY("movl (%1), %0", : "+r"(v_) : "r"(addr) : "memory");                                                       \
        v_;                                                                                                            \
    })
#define STORE(addr, v) TRY("movl %0, (%1)", : : "r"(v), "r"(addr) : "memory")

static void plain(void)
{
    for (uint32_t i = 0; i < 64; i++)
        dir[i] = i << 22 | P | W | U | PS;
    dir[TEST_VA >> 22] = (uint32_t)(uintptr_t)table | P | W | U;
    table[0] = (uint32_t)(uintptr_t)page_a | P | W;
    table[1] = (uint32_t)(uintptr_t)page_b | P | W;
    page_a[0] = 0xaaaa0000;
    page_a[1023] = 0x11223344;
    page_b[0] = 0x55667788;
    WRITE_REG("cr4", READ_REG("cr4") | 0x10);
    WRITE_REG("cr3", dir);
    WRITE_REG("cr0", READ_REG("cr0") | 0x80010000u);
    CHECK(true, "pse-on");
    EQUAL(LOAD(va), 0xaaaa0000, "translate-4k");
    EQUAL(LOAD((char *)va + 4094), 0x77881122, "load-across-pages");
    STORE((char *)va + 4094, 0xa1b2c3d4);
    CHECK(page_a[1023] == 0xc3d43344 && page_b[0] == 0x5566a1b2, "store-across-pages");
    CHECK((dir[TEST_VA >> 22] & A) && (table[0] & (A | D)) == (A | D), "a-and-d-set");
    /* A store that faults on its second page must leave the first page alone. */
    table[1] = 0;
    invlpg((char *)va + 4096);
    STORE((char *)va + 4094, 0);
    CHECK(FAULTED(14, 2) && tk_got.cr2 == TEST_VA + 4096 && page_a[1023] == 0xc3d43344, "split-store-is-atomic-to-faults");
    LOAD((char *)va + 4094);
    CHECK(FAULTED(14, 0) && tk_got.cr2 == TEST_VA + 4096, "split-load-cr2");
    LOAD((char *)va + 8192);
    CHECK(FAULTED(14, 0) && tk_got.cr2 == TEST_VA + 8192, "pf-not-present-read");
    STORE((char *)va + 8192, 0);
    CHECK(FAULTED(14, 2), "pf-not-present-write");
    LOAD((void *)0x60000000);
    CHECK(FAULTED(14, 0) && tk_got.cr2 == 0x60000000, "pf-no-table");
    table[2] = (uint32_t)(uintptr_t)page_a | P; /* read-only */
    EQUAL(LOAD((char *)va + 8192), 0xaaaa0000, "read-only-read");
    CHECK((table[2] & (A | D)) == A, "read-sets-a-only");
    STORE((char *)va + 8192, 1);
    CHECK(FAULTED(14, 3), "wp-supervisor-write");
    CHECK(!(table[2] & D), "failed-write-leaves-d");
    WRITE_REG("cr0", READ_REG("cr0") & ~0x10000u);
    STORE((char *)va + 8192, 1);
    CHECK(tk_got.vector == -1 && page_a[0] == 1 && (table[2] & D), "wp-off-write");
    WRITE_REG("cr0", READ_REG("cr0") | 0x10000u);
    STORE((char *)va + 8192, 1);
    CHECK(FAULTED(14, 3), "wp-on-again");
    /* Read-modify-write on a read-only page is a write even where the value would not change. */
    TRY("orl $0, (%0)", : : "r"((char *)va + 8192) : "memory", "cc");
    CHECK(FAULTED(14, 3), "rmw-is-a-write");
    TRY("lock; cmpxchgl %1, (%2)", : : "a"(0x7fffffff), "r"(0), "r"((char *)va + 8192) : "memory", "cc");
    CHECK(FAULTED(14, 3), "cmpxchg-always-writes");
}

static void remap(void)
{
    page_a[1] = 0xa;
    page_b[1] = 0xb;
    table[3] = (uint32_t)(uintptr_t)page_a | P | W;
    EQUAL(LOAD((char *)va + 0x3004), 0xa, "remap-before");
    table[3] = (uint32_t)(uintptr_t)page_b | P | W;
    invlpg((char *)va + 0x3000);
    EQUAL(LOAD((char *)va + 0x3004), 0xb, "remap-invlpg");
    table[3] = (uint32_t)(uintptr_t)page_a | P | W;
    WRITE_REG("cr3", dir);
    EQUAL(LOAD((char *)va + 0x3004), 0xa, "remap-cr3");
    WRITE_REG("cr4", READ_REG("cr4") | 0x80); /* global pages */
    table[3] = (uint32_t)(uintptr_t)page_a | P | W | G;
    WRITE_REG("cr3", dir);
    EQUAL(LOAD((char *)va + 0x3004), 0xa, "global-page");
    table[3] = (uint32_t)(uintptr_t)page_b | P | W | G;
    WRITE_REG("cr4", READ_REG("cr4") & ~0x80u);
    EQUAL(LOAD((char *)va + 0x3004), 0xb, "global-flushed-by-cr4");
    /* Code through a mapping that changes: mov eax, imm; ret */
    page_a[16] = 0x000111b8, page_a[17] = 0xc300;
    page_b[16] = 0x000222b8, page_b[17] = 0xc300;
    table[3] = (uint32_t)(uintptr_t)page_a | P | W;
    invlpg((char *)va + 0x3000);
    EQUAL(((uint32_t(*)(void))(TEST_VA + 0x3040))(), 0x111, "code-before-remap");
    table[3] = (uint32_t)(uintptr_t)page_b | P | W;
    invlpg((char *)va + 0x3000);
    EQUAL(((uint32_t(*)(void))(TEST_VA + 0x3040))(), 0x222, "code-after-remap");
    page_b[16] = 0x000333b8; /* through the identity mapping: the same physical page */
    EQUAL(((uint32_t(*)(void))(TEST_VA + 0x3040))(), 0x333, "code-changed-through-alias");
}

static uint8_t user_stack[512] __attribute__((aligned(16)));

/* Ring 3 reads and writes; code and stack lie in the user-accessible identity map. */
__attribute__((naked)) static void user_read(void)
{
    __asm__("movl 0x40000000, %eax; int $0x80");
}
__attribute__((naked)) static void user_write(void)
{
    __asm__("movl %eax, 0x40000000; int $0x80");
}
__attribute__((naked)) static void user_hello(void)
{
    __asm__("movl $0x1234, %eax; mov %cs, %ebx; pushf; pop %ecx; int $0x80");
}

static void user(void (*code)(void))
{
    tk_got.vector = -1;
    tk_run_user((tk_word)(uintptr_t)code, (tk_word)(uintptr_t)(user_stack + 512), 2, TK_USER_CODE);
}

static void user_mode(void)
{
    user(user_hello);
    CHECK(tk_got.vector == 0x80 && tk_user_frame.ax == 0x1234 && tk_user_frame.bx == TK_USER_CODE, "user-mode-and-back");
    CHECK(tk_user_frame.ss == TK_USER_DATA && tk_user_frame.sp == (tk_word)(uintptr_t)(user_stack + 512), "user-stack-saved");
    user(user_read);
    CHECK(tk_got.vector == 14 && tk_got.error == 5 && tk_got.cr2 == TEST_VA, "pf-user-read-of-supervisor");
    user(user_write);
    CHECK(tk_got.vector == 14 && tk_got.error == 7, "pf-user-write-of-supervisor");
    table[0] |= U;
    invlpg(va);
    user(user_read);
    CHECK(tk_got.vector == 0x80, "user-read-allowed");
    table[0] &= ~W;
    invlpg(va);
    user(user_write);
    CHECK(tk_got.vector == 14 && tk_got.error == 7, "pf-user-write-of-read-only");
    table[0] |= W;
    dir[TEST_VA >> 22] &= ~U;
    invlpg(va);
    user(user_read);
    CHECK(tk_got.vector == 14 && tk_got.error == 5, "directory-rights-count");
    dir[TEST_VA >> 22] |= U;
    invlpg(va);
}

static void pae(void)
{
    WRITE_REG("cr0", READ_REG("cr0") & ~0x80000000u);
    CHECK(true, "paging-off");
    for (uint32_t g = 0; g < 4; g++)
        pdpt[g] = (uint32_t)(uintptr_t)pae_dir[g] | P;
    for (uint32_t i = 0; i < 64; i++)
        pae_dir[0][i] = (uint64_t)i << 21 | P | W | U | PS;
    pae_dir[1][0] = (uint32_t)(uintptr_t)pae_table | P | W | U;
    pae_table[0] = (uint32_t)(uintptr_t)page_a | P | W;
    pae_table[1] = (uint32_t)(uintptr_t)page_b | P | W;
    pae_dir[1][1] = 0x200000ull | P | W | PS;
    WRITE_REG("cr4", READ_REG("cr4") | 0x20);
    WRITE_REG("cr3", pdpt);
    WRITE_REG("cr0", READ_REG("cr0") | 0x80000000u);
    page_a[0] = 0xcafe0001;
    EQUAL(LOAD(va), 0xcafe0001, "pae-translate");
    CHECK((pae_table[0] & (A | D)) == A && (pae_dir[1][0] & A), "pae-a-bits");
    STORE(va, 7);
    CHECK((pae_table[0] & D) && page_a[0] == 7, "pae-d-bit");
    STORE((char *)va + 0x200000 + 64, 0x99);
    EQUAL(*(volatile uint32_t *)0x200040, 0x99, "pae-2m-page");
    CHECK((pae_dir[1][1] & D), "pae-2m-d-bit");
    /* NX, when the CPU has it. */
    uint32_t r[4];
    cpuid(0x80000001, 0, r);
    if (!(r[3] & (1u << 20))) {
        tk_skip("pae-nx", "CPUID shows no NX");
        return;
    }
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 0x800);
    page_a[0] = 0xc3;
    pae_table[0] |= 1ull << 63;
    invlpg(va);
    tk_got.vector = -1;
    __asm__ volatile("movl $1f, tk_try_resume; call *%0; jmp 2f; 1: add $4, %%esp; 2: movl $0, tk_try_resume" : : "r"(va)
                     : "memory", "eax", "ecx", "edx");
    CHECK(tk_got.vector == 14 && tk_got.error == 0x11 && tk_got.ip == TEST_VA && tk_got.cr2 == TEST_VA, "pae-nx");
    pae_table[0] = 0;
    wrmsr(0xc0000080, rdmsr(0xc0000080) & ~0x800ull);
    pae_table[0] = (uint32_t)(uintptr_t)page_a | P | W | 1ull << 63;
    invlpg(va);
    LOAD(va);
    CHECK(tk_got.vector == 14 && (tk_got.error & 8), "pae-reserved-bit");
    /* With the PDPT changed in memory, the CPU goes on with its four loaded entries until CR3 is written. */
    pae_table[0] = (uint32_t)(uintptr_t)page_a | P | W;
    invlpg(va);
    pdpt[1] = 0;
    WRITE_REG("cr3", pdpt);
    LOAD(va);
    CHECK(FAULTED(14, 0), "pae-pdpt-entry-absent");
    pdpt[1] = (uint32_t)(uintptr_t)pae_dir[1] | P | 2; /* reserved bit in a PDPTE: #GP on load */
    UNLESS_TCG("pae-pdpt-reserved-gp") {
        TRY("mov %0, %%cr3", : : "r"(pdpt) : "memory");
        CHECK(FAULTED(13, 0), "pae-pdpt-reserved-gp");
    }
    pdpt[1] &= ~2ull;
    WRITE_REG("cr3", pdpt);
}

void tk_main(void)
{
    plain();
    remap();
    user_mode();
    pae();
}
