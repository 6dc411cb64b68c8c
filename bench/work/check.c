/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checks, not measurements: what a user program may rely on and an engine may get wrong. Faults must be precise
 * (address, code, instruction), rewritten code must take effect, and vector state must survive switches.
 */
#include "work.h"

#include <immintrin.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static sigjmp_buf after;
static volatile int got_signal, got_code;
static void *volatile got_address;
static volatile uintptr_t got_ip;

static void on_fault(int sig, siginfo_t *info, void *context)
{
    const ucontext_t *uc = context;

    got_signal = sig;
    got_code = info->si_code;
    got_address = info->si_addr;
#ifdef __x86_64__
    got_ip = (uintptr_t)uc->uc_mcontext.gregs[REG_RIP];
#else
    got_ip = (uintptr_t)uc->uc_mcontext.gregs[REG_EIP];
#endif
    siglongjmp(after, 1);
}

/* Runs code at `at` and says whether it raised `sig` with `code`, at `ip` unless 0. */
static bool raises(void *at, int sig, int code, uintptr_t ip)
{
    got_signal = 0;
    if (sigsetjmp(after, 1) == 0) {
        ((void (*)(void))at)();
        return false;
    }
    return got_signal == sig && got_code == code && (!ip || got_ip == ip);
}

static enum work_verdict run_faults(unsigned long n, uint64_t *result)
{
    static const int sigs[] = {SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGBUS};
    /* Each: code, offset of the instruction that must be blamed, signal, si_code. */
    static const struct {
        unsigned char code[16];
        unsigned blame;
        int sig, si_code;
    } cases[] = {
        {{0x90, 0x31, 0xc9, 0x31, 0xd2, 0xf7, 0xf1, 0xc3}, 5, SIGFPE, FPE_INTDIV},     /* div ecx, with 0 */
        {{0x90, 0x0f, 0x0b, 0xc3}, 1, SIGILL, ILL_ILLOPN},                             /* ud2 */
        {{0x90, 0xcc, 0xc3}, 2, SIGTRAP, SI_KERNEL},                                   /* int3: a trap, blames the next */
        {{0x90, 0xf4, 0xc3}, 1, SIGSEGV, SI_KERNEL},                                   /* hlt: #GP in user mode */
        {{0x90, 0xe6, 0x80, 0xc3}, 1, SIGSEGV, SI_KERNEL},                             /* out: #GP without IOPL */
        {{0x31, 0xc0, 0x90, 0x8b, 0x00, 0xc3}, 3, SIGSEGV, SEGV_MAPERR},               /* load from 0 */
        {{0x31, 0xc0, 0x90, 0x89, 0x00, 0xc3}, 3, SIGSEGV, SEGV_MAPERR},               /* store to 0 */
        {{0x31, 0xc0, 0xff, 0x30, 0xc3}, 2, SIGSEGV, SEGV_MAPERR},                     /* push from 0 */
        {{0x31, 0xc0, 0x01, 0x40, 0x10, 0xc3}, 2, SIGSEGV, SEGV_MAPERR},               /* read-modify-write */
        {{0x31, 0xc0, 0x0f, 0x28, 0x00, 0xc3}, 2, SIGSEGV, SEGV_MAPERR},               /* movaps load */
    };
    struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, old[5];
    unsigned char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    enum work_verdict verdict = WORK_OK;

    if (page == MAP_FAILED)
        return WORK_SKIP;
    for (int i = 0; i < 5; i++)
        sigaction(sigs[i], &sa, &old[i]);
    for (unsigned long r = 0; r < n && verdict == WORK_OK; r++) {
        for (unsigned c = 0; c < sizeof(cases) / sizeof(cases[0]) && verdict == WORK_OK; c++) {
            memcpy(page, cases[c].code, sizeof(cases[c].code));
            if (!raises(page, cases[c].sig, cases[c].si_code, (uintptr_t)page + cases[c].blame)) {
                verdict = WORK_WRONG;
                *result = 100 + c;
            }
        }
        /* A call into a page that may not be executed blames the target itself. */
        page[4096] = 0xc3;
        mprotect(page + 4096, 4096, PROT_READ);
        if (verdict == WORK_OK && (!raises(page + 4096, SIGSEGV, SEGV_ACCERR, (uintptr_t)page + 4096) ||
                                   got_address != page + 4096)) {
            verdict = WORK_WRONG;
            *result = 200;
        }
        mprotect(page + 4096, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
    }
    for (int i = 0; i < 5; i++)
        sigaction(sigs[i], &old[i], NULL);
    munmap(page, 8192);
    if (verdict == WORK_OK)
        *result = n;
    return verdict;
}

/* Code that rewrites code: mov eax, imm32; ret - with the immediate across a page border as well. */
static enum work_verdict run_smc(unsigned long n, uint64_t *result)
{
    unsigned char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (page == MAP_FAILED)
        return WORK_SKIP;
    for (unsigned long r = 0; r < n; r++) {
        static const unsigned offsets[] = {0, 64, 4093, 4096 + 100};

        for (unsigned i = 0; i < 4; i++) {
            volatile unsigned char *p = page + offsets[i];
            uint32_t want = (uint32_t)(r * 2654435761u + i), got;

            p[0] = 0xb8;
            for (int b = 0; b < 4; b++)
                p[1 + b] = (unsigned char)(want >> (8 * b));
            p[5] = 0xc3;
            got = ((uint32_t(*)(void))(uintptr_t)p)();
            if (got != want) {
                *result = r;
                return WORK_WRONG;
            }
        }
    }
    munmap(page, 8192);
    *result = n;
    return WORK_OK;
}

static volatile sig_atomic_t ticks;

static void on_tick(int sig)
{
    (void)sig;
    ticks++;
    /* Leave other values in the registers that the interrupted code uses. */
    __asm__ volatile("pcmpeqd %%xmm0, %%xmm0\n\tpcmpeqd %%xmm7, %%xmm7\n\tfldpi\n\tfstp %%st(0)" : : : "xmm0", "xmm7");
}

__attribute__((target("avx2"))) static bool vectors_hold(unsigned long rounds)
{
    __m256i a = _mm256_set1_epi32(1), sum = _mm256_setzero_si256();
    uint32_t out[8];

    for (unsigned long r = 0; r < rounds; r++) {
        sum = _mm256_add_epi32(sum, a);
        __asm__ volatile("" : "+x"(sum), "+x"(a));
        if ((r & 0xffff) == 0)
            sched_yield();
    }
    _mm256_storeu_si256((__m256i *)out, sum);
    for (int i = 0; i < 8; i++)
        if (out[i] != (uint32_t)rounds)
            return false;
    return true;
}

/* Upper halves of vector registers must survive context switches between two processes and signal frames. */
static enum work_verdict run_vectors(unsigned long n, uint64_t *result)
{
    struct sigaction sa = {.sa_handler = on_tick}, old;
    int status = 0, good;
    pid_t child;

    if (!__builtin_cpu_supports("avx2"))
        return WORK_SKIP;
    child = fork();
    if (child < 0)
        return WORK_SKIP;
    if (child == 0)
        _exit(!vectors_hold(1000000 * n + 7));
    sigaction(SIGALRM, &sa, &old);
    ualarm(2000, 2000);
    good = vectors_hold(1000000 * n);
    ualarm(0, 0);
    sigaction(SIGALRM, &old, NULL);
    if (waitpid(child, &status, 0) != child)
        return WORK_WRONG;
    *result = n;
    return good && status == 0 ? WORK_OK : WORK_WRONG;
}

/* String instructions over page borders, both directions, against a plain loop. */
static enum work_verdict run_strings(unsigned long n, uint64_t *result)
{
    static unsigned char a[3 * 4096], b[3 * 4096];

    for (unsigned long r = 0; r < n; r++) {
        for (unsigned off = 4090; off < 4100; off++) {
            void *to = b + off, *from = a + off + 3;
            size_t count = 4096 + (r & 15);

            for (unsigned i = 0; i < sizeof(a); i++)
                a[i] = (unsigned char)(i * 31 + r), b[i] = 0;
            __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
            if (count || to != b + off + 4096 + (r & 15) || memcmp(b + off, a + off + 3, 4096 + (r & 15)) || b[off - 1])
                return WORK_WRONG;
            to = b + off + 4000;
            count = 1000;
            __asm__ volatile("std; rep stosl; cld" : "+D"(to), "+c"(count) : "a"(0x01020304) : "memory");
            if (count || to != b + off || b[off + 4] != 4 || b[off + 3 + 4000] != 1 || b[off + 5] != 3)
                return WORK_WRONG;
            to = b + off + 4;
            count = 4000;
            __asm__ volatile("repne scasb" : "+D"(to), "+c"(count) : "a"(1) : "memory", "cc");
            if (to != b + off + 8 || count != 3996)
                return WORK_WRONG;
        }
    }
    *result = n;
    return WORK_OK;
}

const struct work work_check[] = {
    {"faults", "ten kinds of fault, each precise", 200, run_faults},
    {"smc", "self-modifying code", 2000, run_smc},
    {"vectors", "AVX state across switches and signals", 50, run_vectors},
    {"strings", "string instructions over page borders", 100, run_strings},
    {NULL, NULL, 0, NULL},
};
