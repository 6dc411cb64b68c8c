/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/guest.c - the batch loop as a guest of the engine: a
 * vCPU in long mode, ring 3, with page tables that put the arena where the
 * native run has it. The engine is reached through its public ABI alone.
 */
#include "difftest.h"
#include "test_host.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define RAM_SIZE 0x2000000u
#define ARENA_GPA 0x1000000u
#define TABLES_GPA 0x100000u

static struct test_host host;
bool guest_direct;
const char *guest_warm;

/* --- guest memory ----------------------------------------------------------------------- */

static void *guest_at(struct backend *b, uint64_t address)
{
    (void)b;
    return host.ram + ARENA_GPA + (address - ARENA);
}

static void put64(uint64_t gpa, uint64_t v) { memcpy(host.ram + gpa, &v, 8); }

static uint64_t page_flags(uint64_t a)
{
    if (a >= DATA && a < DATA + DATA_SIZE) {
        if (a == PAGE_C)
            return 5;
        return a == PAGE_A || a == PAGE_B ? 7 : 0;
    }
    if (a >= STACKS && a < STACKS + STACKS_SIZE)
        return a == PAGE_S || a == PAGE_S + 4096 ? 7 : 0;
    return 7;
}

/* PML4, PDPT, PD, then a page of PTEs for each 2 MiB of the arena. */
static void build_tables(void)
{
    uint64_t pml4 = TABLES_GPA, pdpt = pml4 + 4096, pd = pdpt + 4096, pt = pd + 4096;
    put64(pml4, pdpt | 7);
    put64(pdpt, pd | 7);
    for (uint64_t a = 0; a < ARENA_SIZE; a += 4096) {
        if (!(a & 0x1fffff))
            put64(pd + ((ARENA + a) >> 21) * 8, (pt + (a >> 21) * 4096) | 7);
        uint64_t f = page_flags(ARENA + a);
        put64(pt + (a >> 12) * 8, f ? (ARENA_GPA + a) | f : 0);
    }
}

/* Selectors as Linux gives its processes, so that reading them agrees. */
static void build_system(void)
{
    uint64_t tss = KTABLES + 0x1000, sp = KSTACK_TOP;
    test_gdt(guest_at(NULL, KTABLES), tss);
    memcpy(guest_at(NULL, tss + 4), &sp, 8);
    memcpy(guest_at(NULL, tss + 0x66), &(uint16_t){0x68}, 2); /* no I/O permission map */
    for (unsigned i = 0; i < 32; i++)
        test_gate(guest_at(NULL, KTABLES + 0x2000), i, DRIVER_AT(driver_guest_stubs) + i * GUEST_STUB_SIZE, i == 3 || i == 4 ? 3 : 0);
    test_gate(guest_at(NULL, KTABLES + 0x2000), 0x81, DRIVER_AT(driver_guest_stop), 3);
}

static bool set_state(void)
{
    struct hvx_vcpu_regs *r = test_host_get(&host);
    uint16_t fcw = 0x37f;
    uint32_t mxcsr = 0x1f80;
    r->rip = DRIVER_AT(driver_start);
    r->rflags = 0x202;
    test_segment(&r->seg[HVX_CS], 0x33, 0xa0fb);
    test_segment(&r->seg[HVX_SS], 0x2b, 0xc0f3);
    test_segment(&r->seg[HVX_DS], SEL_DATA, 0xc0f3);
    test_segment(&r->seg[HVX_ES], SEL_DATA, 0xc0f3);
    r->seg[HVX_GS].base = GS_BASE;
    r->tr.base = KTABLES + 0x1000;
    r->gdt_base = KTABLES, r->gdt_limit = 79;
    r->idt_base = KTABLES + 0x2000, r->idt_limit = 4095;
    r->cr3 = TABLES_GPA;
    r->cr4 |= 0x80 | 0x40000;
    r->xcr0 = xlayout.mask;
    memcpy(r->xsave, &fcw, 2);
    memcpy(r->xsave + 24, &mxcsr, 4);
    memcpy(r->xsave + 512, &(uint64_t){3}, 8);
    return test_host_set(&host, r);
}

static int guest_init(struct backend *b)
{
    host = (struct test_host){.direct = guest_direct ? "user" : NULL, .direct_eager = guest_direct,
                              .translation_cache = guest_warm, .tsc_hz = 2000000000};
    if (!test_host_ram(&host, RAM_SIZE, true))
        return -1;
    build_tables();
    build_system();
    driver_place(b);
    state_page_c(guest_at(b, PAGE_C));
    memcpy(guest_at(b, V_EXIT), &(uint64_t){DRIVER_AT(driver_guest_exit)}, 8);
    return test_host_start(&host) && set_state() ? 0 : -1;
}

static void on_alarm(int sig)
{
    char buf[120];
    uint64_t target;
    (void)sig;
    memcpy(&target, guest_at(NULL, V_TARGET), 8);
    int n = snprintf(buf, sizeof(buf), "difftest: the engine makes no progress for 60 seconds, case at %#llx\n", (unsigned long long)target);
    if (write(2, buf, (size_t)n) < 0)
        _exit(98);
    _exit(99);
}

static int guest_run(struct backend *b, unsigned n)
{
    memcpy(guest_at(b, V_IN), &(uint64_t){INS}, 8);
    memcpy(guest_at(b, V_OUT), &(uint64_t){OUTS}, 8);
    memcpy(guest_at(b, V_LEFT), &(uint64_t){n}, 8);
    memcpy(guest_at(b, V_LOG), &(uint64_t){LOGS}, 8);
    memcpy(guest_at(b, V_ENTER), &(uint64_t){driver_enter_at()}, 8);
    host.ops->code_written(host.vm, ARENA_GPA + CODE - ARENA, CODE_SIZE);
    host.stopped = false;
    signal(SIGALRM, on_alarm);
    alarm(60);
    while (!host.stopped) {
        if (!test_host_run(&host)) {
            uint64_t target, left;
            memcpy(&target, guest_at(b, V_TARGET), 8);
            memcpy(&left, guest_at(b, V_LEFT), 8);
            fprintf(stderr, "difftest: %llu cases left, case at %#llx\n", (unsigned long long)left,
                    (unsigned long long)target);
            return -1;
        }
    }
    alarm(0);
    return 0;
}

static void print_stat(void *opaque, const char *group, const char *name, uint64_t value, const char *unit)
{
    (void)opaque;
    if (value)
        printf("  %s %-24s %12llu %s\n", group, name, (unsigned long long)value, unit ? unit : "");
}
static void guest_stats(struct backend *b)
{
    (void)b;
    host.ops->stats(host.vm, print_stat, NULL);
}

static void guest_fini(struct backend *b)
{
    (void)b;
    test_host_end(&host);
}

struct backend guest_backend = {"engine", guest_init, guest_at, guest_run, guest_stats, guest_fini};
