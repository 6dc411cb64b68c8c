/* SPDX-License-Identifier: Apache-2.0 */
/* Two CPUs: start, locked operations, store order, IPIs, remote TLB flush, cross-modified code. Needs 2 vCPUs. */
#include "tk.h"

#define APIC(reg) (*(volatile uint32_t *)(0xfee00000ul + (reg)))

extern uint8_t tk_ap_code[], tk_ap_code_end[];
extern tk_word tk_ap_stack;
extern void (*tk_ap_entry)(void);
extern uint64_t tk_pml4[512];

static uint8_t ap_stack[16384] __attribute__((aligned(16)));
static uint64_t pdpt1[512] __attribute__((aligned(4096)));
static uint64_t pd1[512] __attribute__((aligned(4096)));
static uint64_t pt1[512] __attribute__((aligned(4096)));
static uint64_t page_a[512] __attribute__((aligned(4096)));
static uint64_t page_b[512] __attribute__((aligned(4096)));
static uint8_t code[8192] __attribute__((aligned(4096)));

static volatile uint32_t ap_alive, ap_id, job, job_done, ipis_ap, ipis_bsp, stop;
static volatile uint64_t counter, seen;
static volatile uint32_t spin_lock_word;
static volatile uint64_t guarded[2];
static volatile uint64_t wide[2] __attribute__((aligned(16)));

static void pause(void)
{
    __asm__ volatile("pause" : : : "memory");
}

static void on_ipi(struct tk_frame *f)
{
    if ((APIC(0x20) >> 24) == ap_id)
        ipis_ap++;
    else
        ipis_bsp++;
    if (f->vector == 0x91) /* flush request */
        __asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" : : : "rax", "memory");
    APIC(0xb0) = 0;
}

static void lock(void)
{
    while (__atomic_exchange_n(&spin_lock_word, 1, __ATOMIC_ACQUIRE))
        while (spin_lock_word)
            pause();
}

static void unlock(void)
{
    __atomic_store_n(&spin_lock_word, 0, __ATOMIC_RELEASE);
}

#define ROUNDS 200000
#define HANDOVERS 20000
#define HANDOVER_TIME 5000000000ul /* time stamps: two vCPUs on one CPU take a time slice for each */
#define NO_MORE (~0ul)
#define PATIENCE 20000000000ul /* time stamps; the other CPU may not be running on a busy host */

static void add_work(void)
{
    for (int i = 0; i < ROUNDS; i++)
        __asm__ volatile("lock; incq %0" : "+m"(counter) : : "cc");
}

static void mixed_locked_work(void)
{
    for (int i = 0; i < ROUNDS / 4; i++) {
        uint64_t v = 1, old, lo, hi;

        __asm__ volatile("lock; xaddq %0, %1" : "+r"(v), "+m"(counter) : : "cc");
        old = counter;
        while (!__atomic_compare_exchange_n(&counter, &old, old + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            ;
        lo = wide[0], hi = wide[1];
        __asm__ volatile("1: mov %0, %%rbx; mov %1, %%rcx; inc %%rbx; dec %%rcx; lock; cmpxchg16b %2; jnz 1b"
                         : "+a"(lo), "+d"(hi), "+m"(wide) : : "rbx", "rcx", "cc");
    }
}

static void spin_work(void)
{
    for (int i = 0; i < 20000; i++) {
        lock();
        guarded[0]++;
        guarded[1] += guarded[0] & 1;
        unlock();
    }
}

/* Locked bit operations on one word, each CPU its own bit; no toggle may be lost. */
static volatile uint64_t bits;
static void bit_work(int bit)
{
    for (int i = 0; i < 100001; i++)
        __asm__ volatile("lock; btcq %1, %0" : "+m"(bits) : "r"((uint64_t)bit) : "cc");
}

static uint32_t run(volatile void *p)
{
    return ((uint32_t(*)(void))(tk_word)p)();
}

static void ap_main(void)
{
    APIC(0xf0) = 0x1ff;
    ap_id = APIC(0x20) >> 24;
    ap_alive = 1;
    while (!stop) {
        uint32_t now = job;

        if (now == job_done) {
            pause();
            continue;
        }
        switch (now) {
        case 1:
            add_work();
            break;
        case 2:
            mixed_locked_work();
            break;
        case 3:
            spin_work();
            break;
        case 4:
            bit_work(63);
            break;
        case 5: /* wait for IPIs with interrupts on */
            __asm__ volatile("sti");
            while (job == 5)
                pause();
            __asm__ volatile("cli");
            break;
        case 6: /* the same, halted */
            while (job == 6)
                __asm__ volatile("sti; hlt; cli" : : : "memory");
            break;
        case 7: /* reads through VA until it sees the new page */
            __asm__ volatile("sti");
            while (*(volatile uint64_t *)0x8000000000ul != 0xb)
                pause();
            __asm__ volatile("cli");
            break;
        case 8: /* runs code that the other CPU rewrites, serialising as the manual asks */
            while (job == 8) {
                uint32_t r[4];

                cpuid(0, 0, r);
                seen = run(code);
            }
            break;
        case 9: /* message passing: flag after data */
            for (uint64_t i = 1; i <= HANDOVERS; i++) {
                uint64_t at;
                while ((at = guarded[1]) != i && at != NO_MORE)
                    pause();
                if (at == NO_MORE)
                    break;
                if (guarded[0] != i * 3) {
                    seen = i;
                    break;
                }
                counter = i;
            }
            break;
        }
        job_done = now;
    }
    job_done = ~0u;
}

static void wait_done(uint32_t n)
{
    while (job_done != n)
        pause();
}

static void icr(uint32_t to, uint32_t low)
{
    while (APIC(0x300) & 0x1000)
        pause();
    APIC(0x310) = to << 24;
    APIC(0x300) = low;
    while (APIC(0x300) & 0x1000)
        pause();
}

static bool start_ap(void)
{
    memcpy((void *)0x8000, tk_ap_code, (size_t)(tk_ap_code_end - tk_ap_code));
    tk_ap_stack = (tk_word)(ap_stack + sizeof(ap_stack));
    tk_ap_entry = ap_main;
    APIC(0xf0) = 0x1ff;
    APIC(0x300) = 0xc4500; /* INIT to all but self */
    tk_delay_us(10000);
    APIC(0x300) = 0xc4608; /* STARTUP at page 8 */
    for (int i = 0; i < 20 && !ap_alive; i++)
        tk_delay_us(10000);
    if (!ap_alive)
        APIC(0x300) = 0xc4608;
    for (int i = 0; i < 50 && !ap_alive; i++)
        tk_delay_us(10000);
    return ap_alive;
}

static void locked(void)
{
    counter = 0;
    job = 1;
    add_work();
    wait_done(1);
    EQUAL(counter, 2 * ROUNDS, "lock-inc");
    counter = 0;
    job = 2;
    mixed_locked_work();
    wait_done(2);
    EQUAL(counter, ROUNDS, "xadd-and-cmpxchg");
    CHECK(wide[0] == ROUNDS / 2 && wide[1] == -(uint64_t)(ROUNDS / 2), "cmpxchg16b");
    job = 3;
    spin_work();
    wait_done(3);
    CHECK(guarded[0] == 40000 && guarded[1] == 20000, "spin-lock");
    job = 4;
    bit_work(0);
    wait_done(4);
    EQUAL(bits, 0x8000000000000001ul, "lock-btc");
    guarded[0] = guarded[1] = counter = seen = 0;
    job = 9;
    for (uint64_t i = 1, t = rdtsc(); i <= HANDOVERS && !seen && rdtsc() - t < HANDOVER_TIME; i++) {
        guarded[0] = i * 3;
        __asm__ volatile("" : : : "memory");
        guarded[1] = i;
        while (counter != i && !seen)
            pause();
    }
    guarded[1] = NO_MORE;
    wait_done(9);
    EQUAL(seen, 0, "store-order-seen-by-the-other");
}

static void ipis(void)
{
    bool good = true;

    job = 5;
    for (uint32_t i = 1; i <= 1000; i++) {
        icr(ap_id, 0x4090);
        for (uint64_t t = rdtsc(); ipis_ap != i && rdtsc() - t < PATIENCE;)
            pause();
        good &= ipis_ap == i;
    }
    CHECK(good, "1000-ipis-to-a-running-cpu");
    job = 6;
    wait_done(5);
    tk_delay_us(2000);
    good = true;
    for (uint32_t i = 1001; i <= 1200; i++) {
        icr(ap_id, 0x4090);
        for (uint64_t t = rdtsc(); ipis_ap != i && rdtsc() - t < PATIENCE;)
            pause();
        good &= ipis_ap == i;
    }
    CHECK(good, "200-ipis-to-a-halted-cpu");
    job = 0;
    icr(ap_id, 0x4090);
    wait_done(0); /* 6 itself would be visible for a moment only */
    __asm__ volatile("sti");
    icr(0, 0x80000 | 0x4090); /* all, self included */
    for (int i = 0; i < 100 && !ipis_bsp; i++)
        tk_delay_us(100);
    __asm__ volatile("cli");
    CHECK(ipis_bsp == 1, "ipi-to-all");
}

static void shootdown(void)
{
    tk_pml4[1] = (tk_word)pdpt1 | 7;
    pdpt1[0] = (tk_word)pd1 | 7;
    pd1[0] = (tk_word)pt1 | 7;
    pt1[0] = (tk_word)page_a | 7;
    page_a[0] = 0xa;
    page_b[0] = 0xb;
    job = 7;
    tk_delay_us(5000);
    pt1[0] = (tk_word)page_b | 7;
    icr(ap_id, 0x4091);
    wait_done(7);
    CHECK(true, "remote-tlb-flush");
}

static void cross_code(void)
{
    bool good = true;

    *(volatile uint64_t *)code = 0xc300000000b8ul;
    job = 8;
    for (uint32_t i = 1; i <= 500; i++) {
        *(volatile uint32_t *)(code + 1) = i;
        for (uint64_t t = rdtsc(); seen != i && rdtsc() - t < PATIENCE;)
            pause();
        if (seen != i) {
            tk_say("round %u: the other CPU still sees %u", i, (unsigned)seen);
            good = false;
            break;
        }
    }
    UNLESS_TCG("code-changed-by-the-other-cpu") /* a race of its threads; it passes with -accel tcg,thread=single */
    CHECK(good, "code-changed-by-the-other-cpu");
    job = 0;
    wait_done(0);
}

void tk_main(void)
{
    tk_pic_setup(0x20, 0xffff);
    tk_on(0x90, on_ipi);
    tk_on(0x91, on_ipi);
    if (!start_ap()) {
        tk_result(false, "second-cpu-starts");
        return;
    }
    CHECK(ap_id != APIC(0x20) >> 24, "second-cpu-starts");
    locked();
    ipis();
    shootdown();
    cross_code();
    stop = 1;
    wait_done(~0u);
    CHECK(true, "second-cpu-stops");
}
