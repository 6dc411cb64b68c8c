/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Interrupts at a high rate while the guest does what a kernel does: system calls with swapgs, faults of user code,
 * sections with interrupts off, flags pushed and popped, address spaces switched, stacks changed. Every interrupt
 * handler checks what must hold at its entry. Meant for engines that deliver interrupts asynchronously.
 */
#include "tk.h"

#define APIC(reg) (*(volatile uint32_t *)(0xfee00000ul + (reg)))
#define GS_BASE 0xc0000101
#define KERNEL_GS_BASE 0xc0000102
#define KERNEL_MARK 0x6b65726e656c2121ul
#define USER_MARK 0x757365722d2d2121ul
#define VA 0x8000000000ul

extern uint64_t tk_pml4[512];
static uint64_t pml4_b[512] __attribute__((aligned(4096)));
static uint64_t pdpt[2][512] __attribute__((aligned(4096)));
static uint64_t pd[2][512] __attribute__((aligned(4096)));
static uint64_t pt[2][512] __attribute__((aligned(4096)));
static uint64_t page[2][512] __attribute__((aligned(4096)));

static tk_word kernel_area[8] = {KERNEL_MARK}, user_area[8] = {USER_MARK};
static uint8_t user_stack[4096] __attribute__((aligned(16)));
static uint8_t syscall_stack[8192] __attribute__((aligned(16)));
tk_word async_user_sp, async_sys_top, async_calls, async_gs_wrong;
static volatile uint64_t ticks, from_user, if_was_clear, if_is_set, bad_gs, closed_hits, bad_regs, bad_cr3;
static volatile bool closed;

static inline tk_word gs0(void)
{
    tk_word v;

    __asm__ volatile("mov %%gs:0, %0" : "=r"(v) : : "memory");
    return v;
}

static inline tk_word flags_now(void)
{
    tk_word v;

    __asm__ volatile("pushf; pop %0" : "=r"(v) : : "memory");
    return v;
}

/* The timer. From user code the kernel's GS comes by swapgs, as in any kernel. */
static void on_tick(struct tk_frame *f)
{
    ticks++;
    if_is_set += (flags_now() & 0x200) != 0;
    if_was_clear += (f->flags & 0x200) == 0;
    closed_hits += closed;
    if ((f->cs & 3) == 3) {
        from_user++;
        __asm__ volatile("swapgs" : : : "memory");
        bad_gs += gs0() != KERNEL_MARK;
        __asm__ volatile("swapgs" : : : "memory");
    } else if (f->flags & 0x200) {
        bad_gs += gs0() != KERNEL_MARK;
    }
    APIC(0xb0) = 0;
}

static void start_timer(uint32_t count)
{
    APIC(0xf0) = 0x1ff;
    APIC(0x3e0) = 0xb; /* by 1 */
    APIC(0x320) = 0x40 | 1 << 17;
    APIC(0x380) = count;
}

/* Every so often on another phase, so that ticks meet every instruction of the loops below. */
static void another_phase(void)
{
    static uint64_t last;

    if (ticks >= last + 16) {
        last = ticks;
        APIC(0x380) = 15000 + (uint32_t)(ticks * 7919 % 9001);
    }
}

static bool clean(void)
{
    bool good = !if_was_clear && !if_is_set && !bad_gs && !closed_hits && !bad_regs && !bad_cr3 && !async_gs_wrong;

    if (!good)
        tk_say("IF clear in frame %u, IF set in handler %u, wrong GS %u, in closed section %u, registers %u, cr3 %u, "
               "syscall GS %u; ticks %u", (unsigned)if_was_clear, (unsigned)if_is_set, (unsigned)bad_gs,
               (unsigned)closed_hits, (unsigned)bad_regs, (unsigned)bad_cr3, (unsigned)async_gs_wrong, (unsigned)ticks);
    if_was_clear = if_is_set = bad_gs = closed_hits = bad_regs = bad_cr3 = async_gs_wrong = 0;
    return good;
}

#define UNTIL(n) for (uint64_t end_ = ticks + (n), i = 0; ticks < end_ && i < 50000000; i++)

static void closed_sections(void)
{
    UNTIL(3000) {
        another_phase();
        __asm__ volatile("cli" : : : "memory");
        closed = true;
        for (int k = 0; k < 20; k++)
            __asm__ volatile("" : : : "memory");
        closed = false;
        __asm__ volatile("sti; nop" : : : "memory");
    }
    CHECK(clean(), "cli-sti");
    UNTIL(3000) {
        tk_word flags;

        another_phase();
        __asm__ volatile("pushf; pop %0; cli" : "=r"(flags) : : "memory");
        closed = true;
        bad_regs += (flags & 0x200) == 0;
        for (int k = 0; k < 20; k++)
            __asm__ volatile("" : : : "memory");
        closed = false;
        __asm__ volatile("push %0; popf" : : "r"(flags) : "memory", "cc");
    }
    CHECK(clean(), "pushf-cli-popf");
    UNTIL(300) {
        __asm__ volatile("cli; sti; hlt" : : : "memory");
    }
    CHECK(clean(), "sti-hlt");
}

static void registers(void)
{
    UNTIL(3000) {
        tk_word a = i, b = i * 3, c = 0, d = ~i, n = 50;

        another_phase();
        /* Arithmetic whose flags live across instructions that touch memory, with pushes, calls and returns. */
        __asm__ volatile("1: add %1, %0; adc %3, %2; push %0; push %2; rcl $1, %1; pop %2; pop %0; lahf; call 2f; sahf\n"
                         "jmp 3f\n 2: xor %%r8d, %%r8d; ret\n 3: adc $0, %3; dec %4; jnz 1b"
                         : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(n) : : "rax", "r8", "cc", "memory");
        tk_word a2 = i, b2 = i * 3, c2 = 0, d2 = ~i;
        __asm__ volatile("cli");
        n = 50;
        __asm__ volatile("1: add %1, %0; adc %3, %2; push %0; push %2; rcl $1, %1; pop %2; pop %0; lahf; call 2f; sahf\n"
                         "jmp 3f\n 2: xor %%r8d, %%r8d; ret\n 3: adc $0, %3; dec %4; jnz 1b"
                         : "+r"(a2), "+r"(b2), "+r"(c2), "+r"(d2), "+r"(n) : : "rax", "r8", "cc", "memory");
        __asm__ volatile("sti");
        bad_regs += a != a2 || b != b2 || c != c2 || d != d2;
    }
    CHECK(clean(), "registers-and-flags");
}

/* System call entry as Linux writes it: swapgs, stack from memory, interrupts on, work, off, swapgs, sysret. */
__attribute__((naked)) static void syscall_entry(void)
{
    __asm__("swapgs; mov %rsp, async_user_sp; mov async_sys_top, %rsp; push %rcx; push %r11\n"
            "mov $0x6b65726e656c2121, %r9; cmp %gs:0, %r9; je 1f; incq async_gs_wrong\n"
            "1: sti; incq async_calls; mov $10, %r10d\n"
            "2: cmp %gs:0, %r9; je 3f; incq async_gs_wrong\n"
            "3: dec %r10d; jnz 2b; cli\n"
            "pop %r11; pop %rcx; mov async_user_sp, %rsp; swapgs; sysretq");
}

/* Counts up rbx while it calls the kernel and checks its own GS; leaves after 200 rounds. */
__attribute__((naked)) static void user_calls(void)
{
    __asm__("mov $200, %ebx; mov $0x757365722d2d2121, %r12\n"
            "1: mov %ebx, %eax; mov %rbx, %r13; syscall; cmp %r13, %rbx; jne 2f; cmp %gs:0, %r12; jne 2f\n"
            "push %rbx; pop %r14; cmp %r14, %rbx; jne 2f; dec %ebx; jnz 1b; xor %eax, %eax; int $0x80\n"
            "2: mov $1, %eax; int $0x80");
}

/* Faults all the time: the handler skips the two bytes of ud2, or maps a page. */
__attribute__((naked)) static void user_faults(void)
{
    __asm__("mov $100, %ebx; mov $0x8000000000, %rbp; mov $0x757365722d2d2121, %r12\n"
            "1: ud2; cmp %gs:0, %r12; jne 2f; mov (%rbp), %rax; mov %rax, 8(%rbp); dec %ebx; jnz 1b; xor %eax, %eax; int $0x80\n"
            "2: mov $1, %eax; int $0x80");
}

__attribute__((naked)) static void user_spins(void)
{
    __asm__("mov $20000, %ebx; 1: add %rbx, %rax; imul $3, %rax; dec %ebx; jnz 1b; int $0x80");
}

static volatile uint64_t undefined_hits, fault_hits;

static void from_user_gs(struct tk_frame *f)
{
    if ((f->cs & 3) != 3) {
        bad_regs++;
        return;
    }
    __asm__ volatile("swapgs" : : : "memory");
    bad_gs += gs0() != KERNEL_MARK;
    /* Handlers of faults let interrupts in, like those of a kernel. */
    __asm__ volatile("sti; nop; nop; nop" : : : "memory");
    bad_gs += gs0() != KERNEL_MARK;
    __asm__ volatile("cli" : : : "memory");
    bad_gs += gs0() != KERNEL_MARK;
    __asm__ volatile("swapgs" : : : "memory");
}

static void on_undefined(struct tk_frame *f)
{
    from_user_gs(f);
    undefined_hits++;
    f->ip += 2;
    pt[0][0] = 0; /* the next load faults */
    __asm__ volatile("invlpg (%0)" : : "r"(VA) : "memory");
}

static void on_page_fault(struct tk_frame *f)
{
    tk_word address = READ_REG("cr2");

    bad_regs += (address & ~4095ul) != VA;
    from_user_gs(f);
    fault_hits++;
    pt[0][0] = (tk_word)page[0] | 7;
}

static void user(void (*code)(void), const char *name, unsigned rounds)
{
    bool good = true;
    uint64_t start = ticks;
    unsigned r;

    for (r = 0; r < rounds && good; r++) {
        another_phase();
        /* The kernel runs on its own GS with interrupts on; user code gets the other one. */
        __asm__ volatile("cli; swapgs" : : : "memory");
        tk_got.vector = -1;
        tk_run_user((tk_word)code, (tk_word)(user_stack + sizeof(user_stack)), 0x202, TK_USER_CODE);
        __asm__ volatile("swapgs; sti" : : : "memory");
        good &= tk_got.vector == 0x80 && (code == user_spins || (tk_user_frame.ax & 0xffffffff) == 0);
    }
    if (!good)
        tk_say("round %u: vector %d error %p ip %p cr2 %p rax %p rbx %p", r, tk_got.vector, tk_got.error, tk_got.ip, tk_got.cr2,
               tk_user_frame.ax, tk_user_frame.bx);
    CHECK(clean() && good, name);
    tk_say("%u ticks, %u from user code so far", (unsigned)(ticks - start), (unsigned)from_user);
}

static void spaces(void)
{
    memcpy(pml4_b, tk_pml4, 4096);
    for (int s = 0; s < 2; s++) {
        (s ? pml4_b : tk_pml4)[1] = (tk_word)pdpt[s] | 7;
        pdpt[s][0] = (tk_word)pd[s] | 7;
        pd[s][0] = (tk_word)pt[s] | 7;
        pt[s][0] = (tk_word)page[s] | 7;
        page[s][0] = 0x1000 + (tk_word)s;
    }
    WRITE_REG("cr3", READ_REG("cr3"));
    UNTIL(2000) {
        another_phase();
        WRITE_REG("cr3", i & 1 ? pml4_b : tk_pml4);
        bad_cr3 += *(volatile uint64_t *)VA != 0x1000 + (i & 1);
    }
    WRITE_REG("cr3", tk_pml4);
    CHECK(clean(), "cr3-switches");
}

/* Both timers at once, one of them on an interrupt stack of its own, above the other in priority. */
static volatile uint64_t other_ticks;

static void on_other(struct tk_frame *f)
{
    other_ticks++;
    if_is_set += (flags_now() & 0x200) != 0;
    if_was_clear += (f->flags & 0x200) == 0;
    outb(0x20, 0x20);
}

static void two_sources(void)
{
    uint64_t before = other_ticks;

    tk_pic_setup(0x20, 0xfffe);
    tk_on(0x20, on_other);
    APIC(0x350) = 0x700; /* LINT0: ExtINT */
    outb(0x43, 0x34);
    outb(0x40, 0x50);
    outb(0x40, 0x02);
    registers();
    closed_sections();
    CHECK(other_ticks > before, "second-source-ticks");
    tk_pic_setup(0x20, 0xffff);
}

void tk_main(void)
{
    tk_pic_setup(0x20, 0xffff);
    tk_on(0x40, on_tick);
    wrmsr(GS_BASE, (tk_word)kernel_area);
    wrmsr(KERNEL_GS_BASE, (tk_word)user_area);
    async_sys_top = (tk_word)(syscall_stack + sizeof(syscall_stack));
    wrmsr(0xc0000081, (uint64_t)0x18 << 48 | (uint64_t)TK_CODE << 32);
    wrmsr(0xc0000082, (tk_word)syscall_entry);
    wrmsr(0xc0000084, 0x47700);
    start_timer(20000);
    __asm__ volatile("sti");
    for (uint64_t t = rdtsc(); ticks < 10 && rdtsc() - t < 40000000000ul;)
        ;
    CHECK(ticks >= 10, "timer-ticks");
    if (ticks < 10)
        return;
    closed_sections();
    registers();
    spaces();
    user(user_spins, "user-code-interrupted", 300);
    user(user_calls, "system-calls-interrupted", 1000);
    tk_on(6, on_undefined);
    tk_on(14, on_page_fault);
    user(user_faults, "faults-interrupted", 500);
    CHECK(undefined_hits == 50000 && fault_hits == 50000, "every-fault-counted");
    tk_on(6, NULL);
    tk_on(14, NULL);
    two_sources();
    __asm__ volatile("cli");
    EQUAL(if_was_clear + if_is_set, 0, "nothing-left");
}
