/* SPDX-License-Identifier: Apache-2.0 */
/* Protected mode, the less travelled parts: alignment checks, x87 errors by IRQ 13, debug registers, 16-bit tasks,
 * faults through task gates, SYSENTER, UMIP, what VME's absence means. */
#include "tk.h"

struct tss {
    uint32_t link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi;
    uint32_t es, cs, ss, ds, fs, gs, ldt;
    uint16_t trap, io_map;
};
struct tss16 {
    uint16_t link, sp0, ss0, sp1, ss1, sp2, ss2, ip, flags, ax, cx, dx, bx, sp, bp, si, di, es, cs, ss, ds, ldt;
};
enum { SEL_TASK = TK_SPARE, SEL_TASK16 = TK_SPARE + 8, SEL_CODE16 = TK_SPARE + 16, SEL_FAULT = TK_SPARE + 24,
       SEL_OTHER = TK_SPARE + 32 };
#define FLAG_AC 0x40000u
#define FLAG_NT 0x4000u

static uint8_t user_stack[1024] __attribute__((aligned(16)));
static uint8_t task_stack[4096] __attribute__((aligned(16)));
static uint8_t task_stack16[1024] __attribute__((aligned(16)));
static uint64_t area[4] __attribute__((aligned(16)));

static uint64_t descriptor(uint32_t base, uint32_t limit, uint32_t access, uint32_t flags)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 |
           (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)flags << 52 | (uint64_t)(base >> 24) << 56;
}

static void user(void *code, uint32_t flags)
{
    tk_got.vector = -1;
    tk_run_user((tk_word)(uintptr_t)code, (tk_word)(uintptr_t)(user_stack + sizeof(user_stack)), 2 | flags,
                TK_USER_CODE);
}

/* --- #AC ---------------------------------------------------------------------------------------- */
#define USER(name, code) __attribute__((naked)) static void name(void) { __asm__(code); }
USER(ac_long, "nop; movl area+1, %eax; int $0x80")
USER(ac_word, "nop; movw area+1, %ax; int $0x80")
USER(ac_store, "nop; movl %eax, area+2; int $0x80")
USER(ac_fine, "movl area+4, %eax; movw area+2, %ax; movb area+1, %al; fldl area+8; fstp %st(0); int $0x80")
USER(ac_double, "nop; fldl area+4; int $0x80")
USER(ac_push, "dec %esp; push %eax; int $0x80")
USER(ac_movs, "movl $area+1, %esi; movl $area+8, %edi; cld; movsl; int $0x80")

static bool ac_at(void *code, uint32_t off)
{
    return tk_got.vector == 17 && tk_got.error == 0 && tk_got.ip == (tk_word)(uintptr_t)code + off;
}

static void alignment(void)
{
    uint32_t v;

    WRITE_REG("cr0", READ_REG("cr0") | 0x40000);
    if (tk_tcg()) {
        tk_skip("alignment-check", "QEMU TCG does not check this");
        return;
    }
    user(ac_long, FLAG_AC);
    CHECK(ac_at(ac_long, 1), "ac-long");
    user(ac_word, FLAG_AC);
    CHECK(ac_at(ac_word, 1), "ac-word");
    user(ac_store, FLAG_AC);
    CHECK(ac_at(ac_store, 1), "ac-store");
    user(ac_double, FLAG_AC);
    CHECK(ac_at(ac_double, 1), "ac-double");
    user(ac_push, FLAG_AC);
    CHECK(ac_at(ac_push, 1), "ac-push");
    user(ac_movs, FLAG_AC);
    CHECK(ac_at(ac_movs, 11), "ac-movs");
    user(ac_fine, FLAG_AC);
    CHECK(tk_got.vector == 0x80, "ac-aligned-is-fine");
    user(ac_long, 0);
    CHECK(tk_got.vector == 0x80, "ac-needs-the-flag");
    WRITE_REG("cr0", READ_REG("cr0") & ~0x40000u);
    user(ac_long, FLAG_AC);
    CHECK(tk_got.vector == 0x80, "ac-needs-cr0-am");
    WRITE_REG("cr0", READ_REG("cr0") | 0x40000);
    TRY("pushf; orl $0x40000, (%%esp); popf; movl area+1, %0; pushf; andl $~0x40000, (%%esp); popf",
        : "=r"(v) : : "cc", "memory");
    CHECK(tk_got.vector == -1, "ac-not-in-ring-0");
}

/* --- x87 errors of old ------------------------------------------------------------------------------ */
static volatile int irq13, irq13_status;

static void on_irq13(struct tk_frame *f)
{
    uint16_t sw;

    (void)f;
    irq13++;
    outb(0xf0, 0);
    __asm__ volatile("fnstsw %0; fnclex" : "=a"(sw));
    irq13_status = sw;
    outb(0xa0, 0x20);
    outb(0x20, 0x20);
}

static void x87_by_irq(void)
{
    uint16_t control = 0x37b; /* division by zero unmasked */

    tk_pic_setup(0x20, 0xdffb);
    tk_on(0x2d, on_irq13);
    WRITE_REG("cr0", READ_REG("cr0") & ~0x2cu);
    /* The next waiting instruction is where the interrupt comes. */
    __asm__ volatile("fninit; fldcw %0; sti; fld1; fldz; fdivrp; fwait; nop; fninit; cli" : : "m"(control) : "memory");
    EQUAL(irq13, 1, "irq13-once");
    CHECK((irq13_status & 0x84) == 0x84, "irq13-status");
    /* In ring 0 with interrupts off, as in such a handler, nothing stops for ever. */
    WRITE_REG("cr0", READ_REG("cr0") | 0x20);
    TRY("fninit; fldcw %0; fld1; fldz; fdivrp; fwait", : : "m"(control) : "memory");
    CHECK(tk_got.vector == 16, "mf-with-ne");
    EQUAL(irq13, 1, "no-irq13-with-ne");
    __asm__ volatile("fninit");
}

/* --- debug registers ---------------------------------------------------------------------------------- */
static void debug(void)
{
    tk_word dr6, dr7;
    uint8_t v = 0;

    WRITE_REG("dr6", 0);
    WRITE_REG("dr7", 0x2400);
    TRY("mov %%dr0, %0", : "=r"(dr6));
    dr6 = READ_REG("dr6");
    dr7 = READ_REG("dr7");
    UNLESS_TCG("general-detect")
    CHECK(FAULTED(1, 0) && (dr6 & 0x2000) && !(dr7 & 0x2000), "general-detect");
    WRITE_REG("dr7", 0x400);
    WRITE_REG("cr4", READ_REG("cr4") | 8);
    TRY("mov %%dr4, %0", : "=r"(dr6));
    CHECK(FAULTED(6, 0), "dr4-with-de");
    /* I/O breakpoint at port 0x80: a trap behind the access */
    WRITE_REG("dr6", 0);
    WRITE_REG("dr0", 0x80);
    WRITE_REG("dr7", 0x401 | 2 << 16);
    TRY("outb %b0, $0x80; nop", : : "a"(0));
    dr6 = READ_REG("dr6");
    WRITE_REG("dr7", 0x400);
    CHECK(tk_got.vector == 1 && tk_got.ip == tk_try_ip + 2 && (dr6 & 15) == 1, "io-breakpoint");
    WRITE_REG("dr6", 0);
    WRITE_REG("dr7", 0x401 | 2 << 16);
    TRY("inb $0x61, %b0; nop", : "=a"(v));
    WRITE_REG("dr7", 0x400);
    CHECK(tk_got.vector == -1, "io-breakpoint-elsewhere");
    WRITE_REG("cr4", READ_REG("cr4") & ~8u);
    /* Two reasons at once: the step and the store, one #DB */
    WRITE_REG("dr6", 0);
    WRITE_REG("dr0", (tk_word)(uintptr_t)area);
    WRITE_REG("dr7", 0x000d0401);
    TRY("pushf; orl $0x100, (%%esp); popf; movl $1, area; nop", : : : "cc", "memory");
    dr6 = READ_REG("dr6");
    WRITE_REG("dr7", 0x400);
    CHECK(tk_got.vector == 1 && (dr6 & 0x4001) == 0x4001, "step-and-watchpoint-together");
    WRITE_REG("dr6", 0);
}

/* --- tasks ------------------------------------------------------------------------------------------------ */
static struct tss task, fault_task;
static struct tss16 task16;
extern volatile uint32_t task_jumps;
extern volatile uint32_t task16_runs, fault_error, fault_runs;
extern uint16_t task16_saw;

__attribute__((naked)) static void task_jump_back(void)
{
    __asm__("1: incl task_jumps; ljmp $0x28, $0; jmp 1b\n .data; .globl task_jumps; task_jumps: .long 0; .text");
}

/* The fault handler as a task: takes the error code, mends the faulting task's EIP in its TSS, goes back. */
__attribute__((naked)) static void task_of_faults(void)
{
    __asm__("1: popl fault_error; incl fault_runs; movl tk_try_resume, %eax; movl %eax, tk_tss+32; iret; jmp 1b\n"
            ".data; fault_error: .long 0; fault_runs: .long 0; .text");
}

static void set_task(struct tss *t, void *at)
{
    memset(t, 0, sizeof(*t));
    t->eip = (uint32_t)(uintptr_t)at;
    t->esp = (uint32_t)(uintptr_t)(task_stack + sizeof(task_stack));
    t->eflags = 2;
    t->cs = TK_CODE;
    t->ds = t->es = t->ss = t->fs = t->gs = TK_DATA;
    t->io_map = sizeof(*t);
}

static void tasks16(void)
{
    uint32_t base, a = 0x12345678;

    __asm__("mov $task16_code, %0" : "=r"(base));
    tk_gdt[SEL_CODE16 / 8] = descriptor(base, 0xffff, 0x9a, 0);
    memset(&task16, 0, sizeof(task16));
    task16.sp = (uint16_t)sizeof(task_stack16);
    tk_gdt[SEL_OTHER / 8] = descriptor((uint32_t)(uintptr_t)task_stack16, 0xffff, 0x92, 0);
    task16.flags = 2;
    task16.ax = 0x4321;
    task16.cs = SEL_CODE16;
    task16.ds = task16.es = TK_DATA;
    task16.ss = SEL_OTHER;
    tk_gdt[SEL_TASK16 / 8] = descriptor((uint32_t)(uintptr_t)&task16, sizeof(task16) - 1, 0x81, 0);
    __asm__ volatile("lcall %1, $0\n"
                     ".section .text.task16, \"ax\"; .code16\n"
                     "task16_code: movl $task16_saw, %%ebx; movw %%ax, (%%ebx)\n"
                     "movl $task16_runs, %%ebx; incl (%%ebx)\n"
                     "inc %%ax; iret; jmp task16_code; .code32; .previous\n"
                     ".data; task16_saw: .word 0; .balign 4; task16_runs: .long 0; .text"
                     : "+a"(a) : "i"(SEL_TASK16) : "memory", "cc");
    CHECK(task16_runs == 1 && task16_saw == 0x4321 && a == 0x12345678, "task16-by-call");
    EQUAL(task16.ax, 0x4322, "task16-saves-its-registers");
    EQUAL(task16.link, TK_TSS, "task16-back-link");
    CHECK((tk_gdt[SEL_TASK16 / 8] >> 40 & 0xff) == 0x81, "task16-not-busy");
}

static tk_word arrival_ip, arrival_dr6;

static void on_arrival(struct tk_frame *f)
{
    arrival_ip = f->ip;
    arrival_dr6 = READ_REG("dr6");
}

static void tasks(void)
{
    /* A jump leaves no link behind, and the old task is not busy any more. */
    set_task(&task, task_jump_back);
    tk_gdt[SEL_TASK / 8] = descriptor((uint32_t)(uintptr_t)&task, sizeof(task) - 1, 0x89, 0);
    __asm__ volatile("ljmp %0, $0" : : "i"(SEL_TASK) : "memory", "cc");
    CHECK(task_jumps == 1 && task.link == 0, "task-by-jump");
    CHECK((tk_gdt[SEL_TASK / 8] >> 40 & 0xff) == 0x89 && (tk_gdt[TK_TSS / 8] >> 40 & 0xff) == 0x8b,
          "task-jump-busy-bits");
    EQUAL(READ_REG("cr0") & 8, 8, "task-jump-sets-ts");
    /* T: a debug trap on arrival */
    task.trap = 1;
    task.eip = (uint32_t)(uintptr_t)task_jump_back;
    tk_on(1, on_arrival);
    WRITE_REG("dr6", 0);
    __asm__ volatile("ljmp %0, $0" : : "i"(SEL_TASK) : "memory", "cc");
    tk_on(1, NULL);
    UNLESS_TCG("task-trap-bit")
    CHECK((arrival_dr6 & 0x8000) && arrival_ip == (tk_word)(uintptr_t)task_jump_back && task_jumps == 2,
          "task-trap-bit");
    task.trap = 0;
    /* An exception through a task gate: the error code is on the new task's stack. */
    set_task(&fault_task, task_of_faults);
    tk_gdt[SEL_FAULT / 8] = descriptor((uint32_t)(uintptr_t)&fault_task, sizeof(fault_task) - 1, 0x89, 0);
    tk_gate(13, NULL, SEL_FAULT, 0x85, 0);
    TRY("mov %w0, %%es", : : "r"(0x7ff8) : "memory");
    extern char tk_stubs[];
    tk_gate(13, (void (*)(void))(tk_stubs + 16 * 13), TK_CODE, 0x8e, 0);
    CHECK(fault_runs == 1 && fault_error == 0x7ff8, "fault-through-task-gate");
    CHECK((tk_gdt[TK_TSS / 8] >> 40 & 0xff) == 0x8b, "fault-task-returns");
    /* IRET with NT and a link to something that is no busy task */
    extern struct tss tk_tss;
    tk_gdt[SEL_TASK / 8] = descriptor((uint32_t)(uintptr_t)&task, sizeof(task) - 1, 0x89, 0);
    tk_tss.link = SEL_TASK;
    UNLESS_TCG("iret-to-idle-task-ts") {
        TRY("nop; pushf; orl %0, (%%esp); popf; iret", : : "i"(FLAG_NT) : "memory", "cc");
        CHECK(tk_got.vector == 10 && tk_got.error == SEL_TASK, "iret-to-idle-task-ts");
    }
    __asm__ volatile("pushf; andl %0, (%%esp); popf; clts" : : "i"(~FLAG_NT) : "memory", "cc");
    /* A new task with a bad stack segment: the fault is the new task's. */
    set_task(&task, task_jump_back);
    task.ss = TK_CODE;
    tk_gdt[SEL_TASK / 8] = descriptor((uint32_t)(uintptr_t)&task, sizeof(task) - 1, 0x89, 0);
    TRY("lcall %0, $0", : : "i"(SEL_OTHER + 8) : "memory", "cc");
    CHECK(tk_got.vector == 13 || tk_got.vector == 11, "no-such-task");
}

/* --- fast calls, UMIP, VME -------------------------------------------------------------------------------- */
__attribute__((naked)) static void fast_entry(void)
{
    __asm__("mov %cs, %eax; mov %ss, %ebx; mov %esp, %esi; pushf; pop %edi; mov $user_back, %edx; mov $user_stack+512, %ecx; sysexit");
}
__attribute__((naked)) static void user_fast(void)
{
    __asm__("sti; nop; sysenter; hlt; user_back: mov %cs, %ecx; mov %ss, %edx; int $0x80");
}
USER(user_sgdt, "sgdt user_stack; int $0x80")
USER(user_smsw, "smsw %ax; int $0x80")
USER(user_str, "str %ax; int $0x80")

static void fast_calls(void)
{
    uint32_t r[4];

    cpuid(1, 0, r);
    if (!(r[3] & 1 << 11)) {
        tk_skip("sysenter", "CPUID shows none");
        return;
    }
    /* CS, SS = CS + 8, user CS + 16, user SS + 24: the table has them at 8, 10, 18, 20 */
    wrmsr(0x174, TK_CODE);
    wrmsr(0x175, (tk_word)(uintptr_t)(task_stack + sizeof(task_stack)));
    wrmsr(0x176, (tk_word)(uintptr_t)fast_entry);
    user(user_fast, 0x3000);
    CHECK(tk_got.vector == 0x80 && tk_user_frame.ax == TK_CODE && tk_user_frame.bx == TK_DATA, "sysenter-selectors");
    CHECK(tk_user_frame.si == (tk_word)(uintptr_t)(task_stack + sizeof(task_stack)), "sysenter-stack");
    CHECK(!(tk_user_frame.di & 0x200), "sysenter-clears-if");
    CHECK(tk_user_frame.cx == 0x1b && tk_user_frame.dx == 0x23, "sysexit-selectors");
    wrmsr(0x174, 0);
    user(user_fast, 0x3000);
    CHECK(tk_got.vector == 13 && tk_got.error == 0, "sysenter-without-cs");
}

static void umip(void)
{
    uint32_t r[4];

    cpuid(7, 0, r);
    if (!(r[2] & 4)) {
        tk_skip("umip", "CPUID shows none");
        return;
    }
    user(user_smsw, 0);
    CHECK(tk_got.vector == 0x80, "smsw-without-umip");
    WRITE_REG("cr4", READ_REG("cr4") | 0x800);
    user(user_sgdt, 0);
    CHECK(tk_got.vector == 13 && tk_got.error == 0, "umip-sgdt");
    user(user_smsw, 0);
    CHECK(tk_got.vector == 13, "umip-smsw");
    user(user_str, 0);
    CHECK(tk_got.vector == 13, "umip-str");
    WRITE_REG("cr4", READ_REG("cr4") & ~0x800u);
}

static void vme(void)
{
    uint32_t r[4];

    cpuid(1, 0, r);
    if (r[3] & 2) {
        tk_skip("vme", "CPUID shows it; not tested here");
        return;
    }
    TRY("mov %0, %%cr4", : : "r"(READ_REG("cr4") | 1));
    UNLESS_TCG("cr4-vme-gp")
    CHECK(FAULTED(13, 0), "cr4-vme-gp");
    TRY("mov %0, %%cr4", : : "r"(READ_REG("cr4") | 2));
    UNLESS_TCG("cr4-pvi-gp")
    CHECK(FAULTED(13, 0), "cr4-pvi-gp");
}

void tk_main(void)
{
    alignment();
    if (tk_tcg())
        tk_skip("irq13", "QEMU TCG 7.2 ends at its own assertion");
    else
        x87_by_irq();
    debug();
    tasks16();
    tasks();
    fast_calls();
    umip();
    vme();
    tk_exit(); /* some of the above may have cost QEMU TCG its stack */

}
