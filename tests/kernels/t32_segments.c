/* SPDX-License-Identifier: Apache-2.0 */
/* Protected mode: call gates, stack switches by TSS, task gates, LDT, 16-bit segments, I/O bitmap, virtual 8086 mode. */
#include "tk.h"

struct tss {
    uint32_t link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi;
    uint32_t es, cs, ss, ds, fs, gs, ldt;
    uint16_t trap, io_map;
};
extern struct tss tk_tss;

enum { SEL_GATE = TK_SPARE, SEL_TSS2 = TK_SPARE + 8, SEL_LDT = TK_SPARE + 16, SEL_CODE16 = TK_SPARE + 24,
       SEL_CONFORMING = TK_SPARE + 32, SEL_TSS1 = TK_SPARE + 40, SEL_DATA16 = TK_SPARE + 48, SEL_TASKGATE = TK_SPARE + 56 };

static uint8_t user_stack[1024] __attribute__((aligned(16)));
static uint8_t task_stack[4096] __attribute__((aligned(16)));

static uint64_t descriptor(uint32_t base, uint32_t limit, uint32_t access, uint32_t flags)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 |
           (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)flags << 52 | (uint64_t)(base >> 24) << 56;
}

static uint64_t call_gate(uint32_t selector, void *at, uint32_t access, uint32_t params)
{
    uint32_t ip = (uint32_t)(uintptr_t)at;

    return (ip & 0xffff) | (uint64_t)selector << 16 | (uint64_t)params << 32 | (uint64_t)access << 40 |
           (uint64_t)(ip >> 16) << 48;
}

static void user(void *code)
{
    tk_got.vector = -1;
    tk_run_user((tk_word)(uintptr_t)code, (tk_word)(uintptr_t)(user_stack + sizeof(user_stack)), 2, TK_USER_CODE);
}

/* Behind the gate: caller's two parameters were copied to the ring 0 stack; return drops them. */
__attribute__((naked)) void gate_entry(void);
__attribute__((naked)) void gate_entry(void)
{
    __asm__("mov 8(%esp), %eax; sub 12(%esp), %eax; mov %cs, %ebx; mov %ss, %ecx; mov %esp, %edx; lret $8");
}
__attribute__((naked)) static void user_through_gate(void)
{
    __asm__("push $30; push $1000; lcall $0x50, $0; mov %esp, %esi; int $0x80");
}

static void call_gates(void)
{
    tk_gdt[SEL_GATE / 8] = call_gate(TK_CODE, gate_entry, 0xec, 2);
    user(user_through_gate);
    CHECK(tk_got.vector == 0x80 && tk_user_frame.ax == 970, "call-gate-copies-parameters");
    CHECK(tk_user_frame.bx == TK_CODE && tk_user_frame.cx == TK_DATA, "call-gate-changes-ring");
    CHECK(tk_user_frame.dx == tk_tss.esp0 - 24, "call-gate-stack-from-tss");
    CHECK(tk_user_frame.si == (tk_word)(uintptr_t)(user_stack + sizeof(user_stack)), "lret-drops-both-stacks");
    tk_gdt[SEL_GATE / 8] = call_gate(TK_CODE, gate_entry, 0x8c, 2); /* DPL 0 */
    user(user_through_gate);
    CHECK(tk_got.vector == 13 && tk_got.error == SEL_GATE, "call-gate-dpl");
    tk_gdt[SEL_GATE / 8] = call_gate(TK_CODE, gate_entry, 0x6c, 2); /* absent */
    user(user_through_gate);
    CHECK(tk_got.vector == 11 && tk_got.error == SEL_GATE, "call-gate-absent");
    tk_gdt[SEL_GATE / 8] = call_gate(TK_CODE, gate_entry, 0xec, 0);
    uint32_t bx = 0;
    __asm__ volatile("push $1; push $2; lcall $0x50, $0" : "=b"(bx) : : "eax", "ecx", "edx", "memory", "cc");
    CHECK(bx == TK_CODE, "call-gate-same-ring");
}

__attribute__((naked)) static void user_privileged(void)
{
    __asm__("mov %cr0, %eax; int $0x80");
}
__attribute__((naked)) static void user_cli(void)
{
    __asm__("cli; int $0x80");
}
__attribute__((naked)) static void user_in(void)
{
    __asm__("in $0x80, %al; int $0x80");
}
__attribute__((naked)) static void user_in61(void)
{
    __asm__("in $0x61, %al; int $0x80");
}
__attribute__((naked)) static void user_popf(void)
{
    __asm__("push $0x3202; popf; pushf; pop %eax; int $0x80");
}
__attribute__((naked)) static void user_load_kernel_data(void)
{
    __asm__("mov $0x10, %eax; mov %eax, %ds; int $0x80");
}
__attribute__((naked)) static void user_int20(void)
{
    __asm__("int $0x20; int $0x80");
}
__attribute__((naked)) static void user_data_after_return(void)
{
    __asm__("mov %ds, %eax; mov %fs, %ecx; int $0x80");
}

static void rings(void)
{
    user(user_privileged);
    CHECK(tk_got.vector == 13 && tk_got.error == 0, "user-mov-cr0");
    user(user_cli);
    CHECK(tk_got.vector == 13, "user-cli");
    user(user_int20);
    CHECK(tk_got.vector == 13 && tk_got.error == 0x20 * 8 + 2, "user-int-dpl0-gate");
    user(user_load_kernel_data);
    CHECK(tk_got.vector == 13 && tk_got.error == 0x10, "user-load-kernel-data");
    user(user_popf);
    CHECK(tk_got.vector == 0x80 && !(tk_user_frame.ax & 0x3200), "user-popf-keeps-if-and-iopl");
    user(user_in);
    CHECK(tk_got.vector == 13, "user-io-denied");
    /* The bitmap stands behind the TSS: tk_tss is followed by other data, so a copy with a map is made. */
    static struct {
        struct tss tss;
        uint8_t map[128 + 1];
    } wide;
    wide.tss = tk_tss;
    wide.tss.io_map = sizeof(struct tss);
    memset(wide.map, 0xff, sizeof(wide.map));
    wide.map[0x61 / 8] &= (uint8_t) ~(1 << (0x61 % 8));
    tk_gdt[SEL_TSS1 / 8] = descriptor((uint32_t)(uintptr_t)&wide, sizeof(wide) - 1, 0x89, 0);
    __asm__ volatile("ltr %w0" : : "r"(SEL_TSS1) : "memory");
    CHECK((tk_gdt[SEL_TSS1 / 8] >> 40 & 0xff) == 0x8b, "ltr-marks-busy");
    user(user_in61);
    CHECK(tk_got.vector == 0x80, "io-bitmap-allows");
    user(user_in);
    CHECK(tk_got.vector == 13, "io-bitmap-denies");
    TRY("ltr %w0", : : "r"(SEL_TSS1));
    CHECK(FAULTED(13, SEL_TSS1), "ltr-busy");
    /* A segment register with a more privileged segment is cleared on the way out. */
    __asm__ volatile("mov %0, %%fs" : : "r"(TK_DATA));
    user(user_data_after_return);
    CHECK(tk_user_frame.cx == 0, "iret-clears-fs");
    __asm__ volatile("mov %0, %%fs" : : "r"(TK_DATA));
    tk_gdt[TK_TSS / 8] &= ~0x0000020000000000ull;
    __asm__ volatile("ltr %w0" : : "r"(TK_TSS) : "memory");
}

static struct tss task;

__attribute__((naked)) void task_entry(void);
__attribute__((naked)) void task_entry(void)
{
    __asm__("1: incl task_runs_asm; iret; jmp 1b\n"
            ".data; .globl task_runs_asm; task_runs_asm: .long 0; .text");
}
extern volatile uint32_t task_runs_asm;

static void set_task(void)
{
    memset(&task, 0, sizeof(task));
    task.eip = (uint32_t)(uintptr_t)task_entry;
    task.esp = (uint32_t)(uintptr_t)(task_stack + sizeof(task_stack));
    task.eflags = 2;
    task.cs = TK_CODE;
    task.ds = task.es = task.ss = task.fs = task.gs = TK_DATA;
    task.io_map = sizeof(task);
    tk_gdt[SEL_TSS2 / 8] = descriptor((uint32_t)(uintptr_t)&task, sizeof(task) - 1, 0x89, 0);
}

static void tasks(void)
{
    uint32_t a = 0x1111, b = 0x2222, c = 0x3333;

    set_task();
    __asm__ volatile("lcall %3, $0" : "+a"(a), "+b"(b), "+c"(c) : "i"(SEL_TSS2) : "memory", "cc");
    CHECK(task_runs_asm == 1 && a == 0x1111 && b == 0x2222 && c == 0x3333, "task-switch-by-call");
    CHECK((task.link & 0xffff) == TK_TSS, "task-back-link");
    CHECK((tk_gdt[SEL_TSS2 / 8] >> 40 & 0xff) == 0x89 && (tk_gdt[TK_TSS / 8] >> 40 & 0xff) == 0x8b, "task-busy-bits");
    __asm__ volatile("lcall %0, $0" : : "i"(SEL_TSS2) : "memory", "cc");
    EQUAL(task_runs_asm, 2, "task-goes-on-where-it-was");
    tk_gdt[SEL_TASKGATE / 8] = call_gate(SEL_TSS2, NULL, 0xe5, 0);
    __asm__ volatile("lcall %0, $0" : : "i"(SEL_TASKGATE) : "memory", "cc");
    EQUAL(task_runs_asm, 3, "task-gate-by-call");
    tk_gate(0x92, NULL, SEL_TSS2, 0xe5, 0);
    __asm__ volatile("int $0x92" : : : "memory", "cc");
    EQUAL(task_runs_asm, 4, "task-gate-by-interrupt");
    CHECK(READ_REG("cr0") & 8, "task-switch-sets-ts");
    __asm__ volatile("clts");
    CHECK(!(READ_REG("cr0") & 8), "clts");
    tk_gdt[SEL_TSS2 / 8] = descriptor((uint32_t)(uintptr_t)&task, 0x66, 0x89, 0);
    TRY("lcall %0, $0", : : "i"(SEL_TSS2) : "memory", "cc");
    CHECK(tk_got.vector == 10 && tk_got.error == SEL_TSS2, "ts-tss-too-short");
}

static void queries(void)
{
    uint32_t v = 0, good = 0;
    struct {
        uint16_t limit;
        uint32_t base;
    } __attribute__((packed)) gdtr, idtr;

    __asm__ volatile("sgdt %0; sidt %1" : "=m"(gdtr), "=m"(idtr));
    CHECK(gdtr.base == (uint32_t)(uintptr_t)tk_gdt && gdtr.limit == sizeof(tk_gdt) - 1, "sgdt");
    EQUAL(idtr.limit, 2047, "sidt");
    __asm__ volatile("str %w0" : "=r"(v));
    EQUAL(v & 0xffff, TK_TSS, "str");
    __asm__ volatile("smsw %0" : "=r"(v));
    EQUAL(v & 0xffff, READ_REG("cr0") & 0xffff, "smsw");
    __asm__ volatile("lsl %2, %0; setz %b1" : "=r"(v), "=q"(good) : "r"(TK_CODE) : "cc");
    CHECK(v == 0xffffffff && (good & 1), "lsl");
    __asm__ volatile("lar %2, %0; setz %b1" : "=r"(v), "=q"(good) : "r"(TK_CODE) : "cc");
    CHECK((v & 0xfe00) == 0x9a00 && (good & 1), "lar");
    __asm__ volatile("lar %2, %0; setz %b1" : "=r"(v), "=q"(good) : "r"(0x7ff8) : "cc");
    CHECK(!(good & 1), "lar-beyond");
    __asm__ volatile("verw %w1; setz %b0" : "=q"(good) : "r"(TK_CODE) : "cc");
    CHECK(!(good & 1), "verw-code");
    __asm__ volatile("verr %w1; setz %b0" : "=q"(good) : "r"(TK_DATA) : "cc");
    CHECK(good & 1, "verr-data");
    v = 0x10;
    __asm__ volatile("arpl %w2, %w0; setz %b1" : "+r"(v), "=q"(good) : "r"(3) : "cc");
    CHECK((v & 0xffff) == 0x13 && (good & 1), "arpl");
}

static uint64_t ldt[4];
static uint32_t ldt_word = 0x1d7ca11;

static void local_table(void)
{
    uint32_t v = 0;

    ldt[1] = descriptor((uint32_t)(uintptr_t)&ldt_word, 3, 0x92, 4);
    tk_gdt[SEL_LDT / 8] = descriptor((uint32_t)(uintptr_t)ldt, sizeof(ldt) - 1, 0x82, 0);
    __asm__ volatile("lldt %w0" : : "r"(SEL_LDT));
    TRY("mov %1, %%fs; mov %%fs:0, %0", : "=r"(v) : "r"(0x0c));
    CHECK(tk_got.vector == -1 && v == 0x1d7ca11, "ldt-segment");
    TRY("mov %0, %%fs", : : "r"(0x24));
    CHECK(FAULTED(13, 0x24), "ldt-limit");
    __asm__ volatile("mov %0, %%fs; lldt %w1" : : "r"(TK_DATA), "r"(0));
    /* A conforming segment is entered without a change of ring. */
    tk_gdt[SEL_CONFORMING / 8] = 0x00cf9e000000ffffull;
    __asm__ volatile("lcall %1, $1f; jmp 2f; 1: mov %%cs, %0; lret; 2:" : "=r"(v) : "i"(SEL_CONFORMING) : "memory");
    EQUAL(v, SEL_CONFORMING, "conforming-call");
}

/* 16-bit code: operand and address size flip, IP and SP wrap at 64 KiB. */
static void sixteen(void)
{
    uint32_t v = 0xffff0000, base;

    __asm__("mov $code16, %0" : "=r"(base));
    tk_gdt[SEL_CODE16 / 8] = descriptor(base, 0xffff, 0x9a, 0);
    __asm__ volatile("lcall %1, $0\n"
                     ".section .text.code16, \"ax\"; .code16; code16: mov $0x1234, %%ax; add $0x1, %%ax; mov $0xffff, %%cx\n"
                     "inc %%cx; jnz 1f; lretl; 1: xor %%ax, %%ax; lretl; .code32; .previous"
                     : "+a"(v) : "i"(SEL_CODE16) : "ecx", "memory", "cc");
    EQUAL(v, 0xffff1235, "code16");
    static uint16_t stack16[64];
    tk_gdt[SEL_DATA16 / 8] = descriptor((uint32_t)(uintptr_t)stack16, 0xffff, 0x92, 0);
    /* A 16-bit stack uses SP only: the upper half of ESP neither matters nor changes. */
    __asm__ volatile("mov %%esp, %%edx; mov %%ss, %%ecx; mov %1, %%ss; mov $0x7fff0040, %%esp; pushl $0x55aa55aa; mov %%esp, %0\n"
                     "mov %%ecx, %%ss; mov %%edx, %%esp"
                     : "=&a"(v) : "r"(SEL_DATA16) : "ecx", "edx", "memory");
    EQUAL(v, 0x7fff003c, "stack16-keeps-upper-esp");
    CHECK(stack16[30] == 0x55aa && stack16[31] == 0x55aa, "stack16-pushes-there");
}

/* Virtual 8086 code at 0x20000: mov ax, 0x1234; mov es, ax; int 0x21 - or others. */
static void run_v86(const void *code, uint32_t size, uint32_t flags)
{
    memcpy((void *)0x20000, code, size);
    tk_got.vector = -1;
    __asm__ volatile("push %%ebp; push %%ebx; push %%esi; push %%edi; push $1f; mov %%esp, %%eax; call tk_v86_enter; 1:\n"
                     "pop %%edi; pop %%esi; pop %%ebx; pop %%ebp"
                     : : "d"(flags | 0x20002) : "eax", "ecx", "memory", "cc");
}

void tk_v86_enter(void);
__asm__(".text\n"
        "tk_v86_enter:\n"
        /* tk_user_exit pops edi, esi, ebx, ebp and returns: lay such a frame down, returning to our caller. */
        "  pop %eax; pop %ecx\n" /* both are the label 1 */
        "  pop %edi; pop %esi; pop %ebx; pop %ebp\n"
        "  push %ebp; push %ebx; push %esi; push %edi\n"
        "  push %eax\n"
        "  push %ebp; push %ebx; push %esi; push %edi\n"
        "  mov %esp, saved_esp\n"
        "  push $0x2000; push $0x2000; push $0x2000; push $0x2000\n" /* gs fs ds es */
        "  push $0x2000; push $0xfff0; push %edx; push $0x2000; push $0\n"
        "  iret\n");

static void virtual_8086(void)
{
    static const uint8_t set[] = {0xb8, 0x34, 0x12, 0x8e, 0xc0, 0x8c, 0xcb, 0xbe, 0x00, 0x01, 0xc7, 0x04, 0x78, 0x56,
                                  0x8b, 0x0c, 0xcd, 0x21};
    static const uint8_t cli[] = {0x90, 0xfa};
    static const uint8_t hlt[] = {0x90, 0xf4};
    static const uint8_t out[] = {0x90, 0xe6, 0x80};
    static const uint8_t pushf[] = {0x90, 0x9c, 0x58, 0xcd, 0x80};
    static const uint8_t wrap[] = {0x66, 0xb8, 0xff, 0xff, 0x00, 0x00, 0x67, 0x8b, 0x18};

    run_v86(set, sizeof(set), 0);
    CHECK(tk_got.vector == 13 && tk_got.error == 0 && tk_user_frame.ip == 16, "v86-int-with-iopl-0");
    CHECK((tk_user_frame.ax & 0xffff) == 0x1234 && tk_user_frame.v86_es == 0x1234, "v86-segment-load");
    CHECK((tk_user_frame.bx & 0xffff) == 0x2000 && (tk_user_frame.cx & 0xffff) == 0x5678, "v86-real-mode-addresses");
    CHECK(tk_user_frame.flags & 0x20000, "v86-flag-in-frame");
    EQUAL(*(volatile uint16_t *)0x20100, 0x5678, "v86-store");
    run_v86(cli, sizeof(cli), 0);
    CHECK(tk_got.vector == 13 && tk_user_frame.ip == 1, "v86-cli-with-iopl-0");
    run_v86(hlt, sizeof(hlt), 0x3000);
    CHECK(tk_got.vector == 13 && tk_user_frame.ip == 1, "v86-hlt");
    run_v86(out, sizeof(out), 0x3000);
    CHECK(tk_got.vector == 13 && tk_user_frame.ip == 1, "v86-out-goes-by-bitmap");
    run_v86(pushf, sizeof(pushf), 0x3000);
    CHECK(tk_got.vector == 0x80 && (tk_user_frame.ax & 0x3000) == 0x3000, "v86-int-with-iopl-3");
    UNLESS_TCG("v86-limit-64k") {
        run_v86(wrap, sizeof(wrap), 0x3000);
        CHECK(tk_got.vector == 13 && tk_user_frame.ip == 6, "v86-limit-64k");
    }
}

void tk_main(void)
{
    call_gates();
    rings();
    queries();
    local_table();
    sixteen();
    tasks();
    virtual_8086();
}
