/* SPDX-License-Identifier: Apache-2.0 */
/* Protected mode: exceptions, their error codes, and the instruction that gets the blame. */
#include "tk.h"

static bool trapped_at(int vector, tk_word error, tk_word ip)
{
    return tk_got.vector == vector && tk_got.error == error && tk_got.ip == ip;
}

static void arithmetic(void)
{
    int bounds[2] = {3, 7};

    TRY("div %%ecx", : : "a"(1), "d"(0), "c"(0));
    CHECK(FAULTED(0, 0), "de-divide-by-zero");
    TRY("div %%ecx", : : "a"(0), "d"(5), "c"(5));
    CHECK(FAULTED(0, 0), "de-quotient-too-large");
    TRY("idiv %%ecx", : : "a"(0x80000000u), "d"(0xffffffffu), "c"(0xffffffffu));
    CHECK(FAULTED(0, 0), "de-signed-overflow");
    TRY("aam $0", : : "a"(7));
    CHECK(FAULTED(0, 0), "de-aam-zero");
    TRY("bound %0, %1", : : "r"(8), "m"(bounds));
    CHECK(FAULTED(5, 0), "br-above");
    TRY("bound %0, %1", : : "r"(2), "m"(bounds));
    CHECK(FAULTED(5, 0), "br-below");
    TRY("bound %0, %1", : : "r"(7), "m"(bounds));
    CHECK(tk_got.vector == -1, "bound-inside");
    TRY("ud2", : : :);
    CHECK(FAULTED(6, 0), "ud-ud2");
    TRY(".byte 0x0f, 0xff, 0xc0", : : :);
    CHECK(FAULTED(6, 0), "ud-ud0");
    TRY(".byte 0xf0, 0x90", : : :);
    CHECK(FAULTED(6, 0), "ud-lock-nop");
    TRY(".byte 0xf0, 0x01, 0xc0", : : : "cc");
    CHECK(FAULTED(6, 0), "ud-lock-register-destination");
    TRY(".byte 0x8c, 0xf8", : : : "eax"); /* mov eax, segment 7 */
    CHECK(FAULTED(6, 0), "ud-segment-register-7");
    TRY(".byte 0x8e, 0xc8", : : "a"(0x10)); /* mov cs, ax */
    CHECK(FAULTED(6, 0), "ud-mov-to-cs");
    TRY("int3", : : :);
    CHECK(trapped_at(3, 0, tk_try_ip + 1), "bp-blames-next");
    TRY(".byte 0xcd, 3", : : :);
    CHECK(trapped_at(3, 0, tk_try_ip + 2), "int-3-two-bytes");
    TRY("nop; movb $127, %%al; addb $1, %%al; into", : : : "eax", "cc");
    CHECK(tk_got.vector == 4 && tk_got.ip == tk_try_ip + 6, "of-into");
    TRY("nop; xorb %%al, %%al; into", : : : "eax", "cc");
    CHECK(tk_got.vector == -1, "into-without-overflow");
}

static void protection(void)
{
    TRY("mov %0, %%ds", : : "r"(0x1f8 | 0));
    CHECK(FAULTED(13, 0x1f8), "gp-null-descriptor-type");
    TRY("mov %0, %%ds", : : "r"(0x8000));
    CHECK(FAULTED(13, 0x8000), "gp-selector-beyond-gdt");
    TRY("mov %0, %%ds", : : "r"(0x8003));
    CHECK(FAULTED(13, 0x8000), "gp-error-code-drops-rpl");
    TRY("mov %0, %%ds", : : "r"(0x14));
    CHECK(FAULTED(13, 0x14), "gp-no-ldt");
    TRY("mov %0, %%ss", : : "r"(0));
    CHECK(FAULTED(13, 0), "gp-null-ss");
    TRY("mov %0, %%ss", : : "r"(0x13));
    CHECK(FAULTED(13, 0x10), "gp-ss-wrong-rpl");
    TRY("mov %0, %%ss", : : "r"(0x08));
    CHECK(FAULTED(13, 0x08), "gp-ss-code-segment");
    tk_gdt[TK_SPARE / 8] = 0x00cf12000000ffffull; /* data, not present */
    TRY("mov %0, %%es", : : "r"(TK_SPARE));
    CHECK(FAULTED(11, TK_SPARE), "np-data");
    TRY("mov %0, %%ss", : : "r"(TK_SPARE));
    CHECK(FAULTED(12, TK_SPARE), "ss-not-present");
    tk_gdt[TK_SPARE / 8] = 0x00cf1a000000ffffull; /* code, not present */
    TRY("ljmp %0, $0", : : "i"(TK_SPARE));
    CHECK(FAULTED(11, TK_SPARE), "np-code");
    TRY("ljmp $0, $0", : : :);
    CHECK(FAULTED(13, 0), "gp-far-jump-null");
    TRY("ljmp $0x10, $0", : : :);
    CHECK(FAULTED(13, 0x10), "gp-far-jump-data");
    tk_gate(0x90, NULL, TK_CODE, 0x0e, 0); /* a gate that is not present */
    TRY("int $0x90", : : :);
    CHECK(FAULTED(11, 0x90 * 8 + 2), "np-gate");
    tk_gate(0x91, NULL, 0, 0x8e, 0);
    TRY("int $0x91", : : :);
    CHECK(FAULTED(13, 0), "gp-gate-null-selector");
    UNLESS_TCG("gp-cr0-pg-without-pe") {
        TRY("mov %0, %%cr0", : : "r"(0x80000000u));
        CHECK(FAULTED(13, 0), "gp-cr0-pg-without-pe");
    }
    UNLESS_TCG("gp-cr0-nw-without-cd") {
        TRY("mov %0, %%cr0", : : "r"((READ_REG("cr0") & ~0x40000000u) | 0x20000000u));
        CHECK(FAULTED(13, 0), "gp-cr0-nw-without-cd");
    }
    UNLESS_TCG("gp-cr4-reserved") {
        TRY("mov %0, %%cr4", : : "r"(0x80000000u));
        CHECK(FAULTED(13, 0), "gp-cr4-reserved");
    }
    TRY("wrmsr", : : "c"(0x12345678), "a"(0), "d"(0));
    CHECK(tk_got.vector == 13 || tk_got.vector == -1, "wrmsr-unknown-answers");
}

/* Data segment of 16 bytes, byte granular: the last byte is in, the next is out; SS uses #SS instead of #GP. */
static void limits(void)
{
    static uint32_t words[8] = {0x11111111, 0x22222222, 0x33333333, 0x44444444, 0x55555555};
    uint32_t base = (uint32_t)(uintptr_t)words, v = 0;

    tk_gdt[TK_SPARE / 8] =
        0x004092000000000full | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(base >> 24) << 56;
    __asm__ volatile("mov %0, %%fs" : : "r"(TK_SPARE));
    TRY("mov %%fs:12, %0", : "=r"(v) : :);
    CHECK(tk_got.vector == -1 && v == 0x44444444, "limit-last-word");
    TRY("mov %%fs:13, %0", : "=r"(v) : :);
    UNLESS_TCG("limit-word-sticks-out")
        CHECK(FAULTED(13, 0), "limit-word-sticks-out");
    TRY("movb %%fs:15, %b0", : "=q"(v) : :);
    CHECK(tk_got.vector == -1, "limit-last-byte");
    TRY("movb %%fs:16, %b0", : "=q"(v) : :);
    UNLESS_TCG("limit-byte-out")
        CHECK(FAULTED(13, 0), "limit-byte-out");
    TRY("mov %%fs:0xfffffffe, %0", : "=r"(v) : :);
    UNLESS_TCG("limit-wraps")
        CHECK(FAULTED(13, 0), "limit-wraps");
    tk_gdt[TK_SPARE / 8] |= 0x0000040000000000ull; /* expand down: valid above the limit */
    __asm__ volatile("mov %0, %%fs" : : "r"(TK_SPARE));
    TRY("mov %%fs:16, %0", : "=r"(v) : :);
    CHECK(tk_got.vector == -1 && v == 0x55555555, "expand-down-above");
    TRY("mov %%fs:15, %0", : "=r"(v) : :);
    UNLESS_TCG("expand-down-below")
        CHECK(FAULTED(13, 0), "expand-down-below");
    tk_gdt[TK_SPARE / 8] = 0x00cf90000000ffffull; /* read-only */
    __asm__ volatile("mov %0, %%fs" : : "r"(TK_SPARE));
    TRY("mov %0, %%fs:(%1)", : : "r"(0), "r"(words));
    UNLESS_TCG("write-to-read-only")
        CHECK(FAULTED(13, 0), "write-to-read-only");
    __asm__ volatile("mov %0, %%fs" : : "r"(TK_DATA));
    tk_gdt[TK_SPARE / 8] = 0x00cf98000000ffffull; /* execute-only */
    TRY("mov %0, %%fs", : : "r"(TK_SPARE));
    CHECK(FAULTED(13, TK_SPARE), "load-execute-only");
    __asm__ volatile("mov %0, %%fs" : : "r"(0));
    TRY("mov %%fs:(%1), %0", : "=r"(v) : "r"(words));
    UNLESS_TCG("null-segment-access")
    CHECK(FAULTED(13, 0), "null-segment-access");
    __asm__ volatile("mov %0, %%fs" : : "r"(TK_DATA));
    /* Accessed bit is set by the load. */
    tk_gdt[TK_SPARE / 8] = 0x00cf92000000ffffull;
    __asm__ volatile("mov %0, %%fs; mov %1, %%fs" : : "r"(TK_SPARE), "r"(TK_DATA));
    CHECK(tk_gdt[TK_SPARE / 8] == 0x00cf93000000ffffull, "accessed-bit");
}

static void stack_limit(void)
{
    static uint32_t small_stack[16];
    uint32_t base = (uint32_t)(uintptr_t)small_stack;

    tk_gdt[TK_SPARE / 8 + 1] =
        0x004092000000003full | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(base >> 24) << 56;
    /* The trap would push on the broken stack: a task gate or ring change is what a kernel needs there. Here the
     * access is only an operand of SS with a good ESP. */
    TRY("mov %0, %%gs; mov %%gs:0x40, %%al", : : "r"(TK_SPARE + 8) : "eax");
    UNLESS_TCG("gs-limit-gp")
        CHECK(tk_got.vector == 13 && tk_got.error == 0, "gs-limit-gp");
    __asm__ volatile("mov %0, %%gs" : : "r"(TK_DATA));
}

static void debug_traps(void)
{
    tk_word dr6;

    WRITE_REG("dr6", 0);
    TRY("pushf; orl $0x100, (%%esp); popf; nop; nop", : : : "cc", "memory");
    dr6 = READ_REG("dr6");
    CHECK(tk_got.vector == 1, "db-single-step");
    CHECK((dr6 & 0x4000) != 0, "dr6-bs");
    WRITE_REG("dr6", 0);
    static volatile uint32_t watched;
    WRITE_REG("dr0", &watched);
    WRITE_REG("dr7", 0x000d0001 | 0x400); /* local, write, four bytes */
    TRY("movl $1, %0; nop", : "=m"(watched) : :);
    dr6 = READ_REG("dr6");
    WRITE_REG("dr7", 0x400);
    CHECK(tk_got.vector == 1 && (dr6 & 15) == 1, "db-write-watchpoint");
    WRITE_REG("dr6", 0);
    __asm__ volatile("movl $3f, %%eax; mov %%eax, %%dr0; movl $0x401, %%eax; mov %%eax, %%dr7" : : : "eax");
    TRY("nop; nop; 3: nop", : : :);
    dr6 = READ_REG("dr6");
    WRITE_REG("dr7", 0x400);
    CHECK(tk_got.vector == 1 && tk_got.ip == tk_try_ip + 2 && (dr6 & 15) == 1, "db-instruction-breakpoint");
}

void tk_main(void)
{
    CHECK(tk_multiboot_magic == 0x2badb002, "multiboot-magic");
    arithmetic();
    protection();
    limits();
    stack_limit();
    debug_traps();
}
