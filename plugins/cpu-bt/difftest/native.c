/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/native.c - the batch loop on the host itself. A
 * signal handler does what the guest's exception handlers do: note the
 * exception, go on at driver_save with all registers as they are.
 */
#define _GNU_SOURCE
#include "difftest.h"
#include <asm/prctl.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGALRM};
#define N_SIGNALS (sizeof(signals) / sizeof(signals[0]))

static uint64_t *var(uint64_t address) { return (uint64_t *)(uintptr_t)address; }

static void die(const char *what, uint64_t rip)
{
    char buf[160];
    int n = snprintf(buf, sizeof(buf), "difftest: native run: %s at %#llx, case at %#llx\n", what, (unsigned long long)rip,
                     (unsigned long long)*var(V_TARGET));
    if (write(2, buf, (size_t)n) < 0)
        _exit(98);
    _exit(99);
}

/* What driver.S does at guest_fix. */
static bool put_right(greg_t *g)
{
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    uint64_t at = (uint64_t)g[REG_RIP] - CODE, *log = var(*var(V_LOG_AT));
    unsigned fix = g[REG_TRAPNO] == 14 && at < FIXES_SIZE ? *(uint8_t *)(uintptr_t)(FIXES + at) : 0;
    if (!fix || *var(V_FIXED) >= MAX_FIXES)
        return false;
    for (unsigned i = 0; i < 16; i++)
        log[i] = (uint64_t)g[order[i]];
    log[16] = (uint64_t)g[REG_RIP];
    log[17] = (uint64_t)g[REG_ERR];
    log[18] = (uint64_t)g[REG_CR2];
    log[19] = (uint64_t)g[REG_EFL];
    *var(V_LOG_AT) += LOG_ENTRY;
    ++*var(V_FIXED);
    g[order[fix - 1]] = SAFE;
    return true;
}

static void on_fault(int sig, siginfo_t *si, void *ctx)
{
    ucontext_t *uc = ctx;
    greg_t *g = uc->uc_mcontext.gregs;
    uint64_t rip = (uint64_t)g[REG_RIP];
    (void)si;
    if (sig == SIGALRM)
        die("no progress for 20 seconds", rip);
    if (rip >= DRIVER && rip < DRIVER_AT(driver_save))
        die(strsignal(sig), rip);
    if (put_right(g))
        return;
    *var(V_VECTOR) = (uint64_t)g[REG_TRAPNO];
    *var(V_ERROR) = (uint64_t)g[REG_ERR];
    *var(V_CR2) = g[REG_TRAPNO] == 14 ? (uint64_t)g[REG_CR2] : 0;
    *var(V_RIP) = rip;
    g[REG_EFL] &= ~0x100;
    g[REG_CSGSFS] = (g[REG_CSGSFS] & ~0xffffll) | SEL_CODE64;
    g[REG_RIP] = (greg_t)DRIVER_AT(driver_save);
}

static int native_init(struct backend *b)
{
    uint8_t page[4096];
    (void)b;
    void *p = mmap((void *)(uintptr_t)ARENA, ARENA_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (p != (void *)(uintptr_t)ARENA) {
        fprintf(stderr, "difftest: cannot map the arena at %#x: %s\n", ARENA, strerror(errno));
        return -1;
    }
    state_page_c(page);
    memcpy((void *)(uintptr_t)PAGE_C, page, sizeof(page));
    memset((void *)(uintptr_t)PAGE_A, 0, 8192);
    mprotect((void *)(uintptr_t)DATA, PAGE_A - DATA, PROT_NONE);
    mprotect((void *)(uintptr_t)PAGE_C, 4096, PROT_READ);
    mprotect((void *)(uintptr_t)(PAGE_C + 4096), DATA + DATA_SIZE - PAGE_C - 4096, PROT_NONE);
    mprotect((void *)(uintptr_t)STACKS, PAGE_S - STACKS, PROT_NONE);
    mprotect((void *)(uintptr_t)(PAGE_S + 8192), STACKS + STACKS_SIZE - PAGE_S - 8192, PROT_NONE);
    driver_place(b);
    *var(V_EXIT) = DRIVER_AT(driver_native_exit);
    if (syscall(SYS_arch_prctl, ARCH_SET_GS, GS_BASE))
        return -1;
    return 0;
}

static void *native_at(struct backend *b, uint64_t address)
{
    (void)b;
    return (void *)(uintptr_t)address;
}

static int native_run(struct backend *b, unsigned n)
{
    static uint8_t alt[65536];
    struct sigaction old[N_SIGNALS], sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    stack_t ss = {.ss_sp = alt, .ss_size = sizeof(alt)}, old_ss;
    (void)b;
    sigfillset(&sa.sa_mask);
    sigaltstack(&ss, &old_ss);
    for (unsigned i = 0; i < N_SIGNALS; i++)
        sigaction(signals[i], &sa, &old[i]);
    *var(V_IN) = INS;
    *var(V_OUT) = OUTS;
    *var(V_LEFT) = n;
    *var(V_LOG) = LOGS;
    *var(V_ENTER) = driver_enter_at();
    alarm(20);
    ((void (*)(void))(uintptr_t)DRIVER_AT(driver_native_entry))();
    alarm(0);
    for (unsigned i = 0; i < N_SIGNALS; i++)
        sigaction(signals[i], &old[i], NULL);
    sigaltstack(&old_ss, NULL);
    return 0;
}

struct backend native_backend = {"native", native_init, native_at, native_run, NULL, NULL};

uint64_t driver_enter_at(void) { return mode32 ? DRIVER_AT(driver_enter32) : DRIVER_AT(driver_enter64); }

void driver_place(struct backend *b)
{
    memcpy(b->at(b, DRIVER), driver_begin, (size_t)(driver_end - driver_begin));
    memcpy(b->at(b, V_MASK), &xlayout.mask, 8);
    memcpy(b->at(b, V_SEL), &(uint64_t){SEL_DATA}, 8);
}
