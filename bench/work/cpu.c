/* SPDX-License-Identifier: Apache-2.0 */
/* Workloads of user code alone: no system call inside the measured loop. */
#include "work.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NOINLINE __attribute__((noinline, noclone))

static enum work_verdict sieve(unsigned long n, uint32_t limit, uint64_t want, uint64_t *result)
{
    unsigned char *composite = malloc(limit);
    uint64_t primes = 0;

    if (!composite)
        return WORK_SKIP;
    for (unsigned long r = 0; r < n; r++) {
        memset(composite, 0, limit);
        for (uint32_t i = 2; i * i < limit; i++)
            if (!composite[i])
                for (uint32_t j = i * i; j < limit; j += i)
                    composite[j] = 1;
        primes = 0;
        for (uint32_t i = 2; i < limit; i++)
            primes += !composite[i];
    }
    free(composite);
    *result = primes;
    return primes == want ? WORK_OK : WORK_WRONG;
}

/* Stays in the second-level cache; 78498 is pi(10^6). */
static enum work_verdict run_sieve(unsigned long n, uint64_t *result)
{
    return sieve(n, 1000000, 78498, result);
}

/* Does not: the host waits for memory, whoever computes the addresses. */
static enum work_verdict run_sieve16(unsigned long n, uint64_t *result)
{
    return sieve(n, 16000000, 1031130, result);
}

static NOINLINE uint32_t fib(uint32_t k)
{
    uint32_t a, b;

    if (k < 2)
        return k;
    a = fib(k - 1);
    __asm__ volatile("" : "+r"(a)); /* keeps the compiler from turning calls into loops */
    b = fib(k - 2);
    __asm__ volatile("" : "+r"(b));
    return a + b;
}

/* fib(27): 832,040 calls of leaf and 832,039 of inner nodes, each with a return. */
static enum work_verdict run_calls(unsigned long n, uint64_t *result)
{
    for (unsigned long r = 0; r < n; r++) {
        uint32_t k = 27;

        __asm__ volatile("" : "+r"(k));
        *result = fib(k);
        if (*result != 196418)
            return WORK_WRONG;
    }
    return WORK_OK;
}

#define OP(NAME, EXPR)                                                                                                 \
    static NOINLINE uint32_t NAME(uint32_t x)                                                                          \
    {                                                                                                                  \
        return EXPR;                                                                                                   \
    }
OP(op0, x + 0x9e3779b9u)
OP(op1, x ^ (x >> 7))
OP(op2, x * 5u + 1u)
OP(op3, (x << 3) | (x >> 29))
OP(op4, x - 0x1234567u)
OP(op5, ~x)
OP(op6, x ^ 0xa5a5a5a5u)
OP(op7, (x >> 11) | (x << 21))

/* Indirect calls with an unpredictable target: the value itself picks the next of eight functions. */
static enum work_verdict run_indirect(unsigned long n, uint64_t *result)
{
    static uint32_t (*const volatile ops[8])(uint32_t) = {op0, op1, op2, op3, op4, op5, op6, op7};
    uint32_t x = 1;

    for (unsigned long r = 0; r < 1000 * n; r++)
        x = ops[(x ^ r) & 7](x);
    *result = x;
    if (n == 10000)
        return x == 1152370888u ? WORK_OK : WORK_WRONG;
    return WORK_OK;
}

/* Leibniz' series in doubles: divide, add, change of sign. */
static enum work_verdict run_double(unsigned long n, uint64_t *result)
{
    volatile double seed = 1.0;
    double sum = 0, sign = seed;

    for (unsigned long k = 0; k < 1000 * n; k++) {
        sum += sign / (double)(2 * k + 1);
        sign = -sign;
    }
    sum *= 4;
    *result = (uint64_t)(sum * 1e6);
    return fabs(sum - 3.14159265358979) < 2.0 / (1000.0 * (double)n) ? WORK_OK : WORK_WRONG;
}

#define MAT 64
static NOINLINE void matmul(double (*restrict c)[MAT], double (*restrict a)[MAT], double (*restrict b)[MAT])
{
    for (int i = 0; i < MAT; i++)
        for (int j = 0; j < MAT; j++) {
            double s = 0;

            for (int k = 0; k < MAT; k++)
                s += a[i][k] * b[k][j];
            c[i][j] = s;
        }
}

/* Multiplies by a rotation by one place: after MAT times it is the identity again, exactly. */
static enum work_verdict run_matrix(unsigned long n, uint64_t *result)
{
    static double a[MAT][MAT], b[MAT][MAT], c[MAT][MAT];

    for (int i = 0; i < MAT; i++)
        for (int j = 0; j < MAT; j++) {
            a[i][j] = i * MAT + j;
            b[i][j] = j == (i + 1) % MAT;
        }
    for (unsigned long r = 0; r < n * MAT; r++) {
        matmul(c, a, b);
        memcpy(a, c, sizeof(a));
    }
    *result = (uint64_t)a[MAT - 1][MAT - 1];
    for (int i = 0; i < MAT; i++)
        for (int j = 0; j < MAT; j++)
            if (a[i][j] != i * MAT + j)
                return WORK_WRONG;
    return WORK_OK;
}

/* The x87 unit: sum of 1/k^2 in extended precision. */
static enum work_verdict run_x87(unsigned long n, uint64_t *result)
{
    volatile long double one = 1.0L;
    long double sum = 0;

    for (unsigned long k = 1; k <= 1000 * n; k++)
        sum += one / ((long double)k * (long double)k);
    *result = (uint64_t)(sum * 1e9L);
    return fabsl(sum - 1.64493406684822643647L) < 1.1L / (1000.0L * (long double)n) ? WORK_OK : WORK_WRONG;
}

#define CHASE_WORDS (8u << 20) /* 64 MiB of pointers: far more than any TLB or L2 holds */

/* A single cycle through all words in a pseudo-random order (full-period linear congruence). */
static enum work_verdict run_chase(unsigned long n, uint64_t *result)
{
    uint32_t *next = malloc(CHASE_WORDS * 4ul), at = 0;

    if (!next)
        return WORK_SKIP;
    for (uint32_t i = 0; i < CHASE_WORDS; i++)
        next[i] = (i * 1664525u + 1013904223u) & (CHASE_WORDS - 1);
    for (unsigned long r = 0; r < 1000 * n; r++)
        at = next[at];
    *result = at;
    free(next);
    return n != 2000 || at == 3270272u ? WORK_OK : WORK_WRONG;
}

#define COPY_BYTES (1u << 20)

static enum work_verdict run_memcpy(unsigned long n, uint64_t *result)
{
    unsigned char *a = malloc(COPY_BYTES + 64), *b = malloc(COPY_BYTES + 64);
    enum work_verdict verdict = WORK_WRONG;

    if (!a || !b)
        goto out;
    for (unsigned i = 0; i < COPY_BYTES + 64; i++)
        a[i] = (unsigned char)(i * 7);
    for (unsigned long r = 0; r < n; r++) {
        memcpy(b + (r & 63), a + 1, COPY_BYTES - 64);
        __asm__ volatile("" : : "r"(b) : "memory");
    }
    *result = b[((n - 1) & 63) + 1000];
    verdict = memcmp(b + ((n - 1) & 63), a + 1, COPY_BYTES - 64) ? WORK_WRONG : WORK_OK;
out:
    free(a);
    free(b);
    return verdict;
}

struct node {
    struct node *left, *right;
    uint32_t key;
};

/* A binary tree built and searched: branches that no predictor likes, and malloc. */
static enum work_verdict run_tree(unsigned long n, uint64_t *result)
{
    struct node *pool = malloc(sizeof(*pool) * 65536), *root = NULL;
    uint32_t x = 12345;
    uint64_t depth = 0;

    if (!pool)
        return WORK_SKIP;
    for (unsigned long r = 0; r < n; r++) {
        unsigned used = 0;

        root = NULL;
        depth = 0;
        x = 12345;
        for (unsigned i = 0; i < 65536; i++) {
            struct node **at = &root;

            x = x * 1664525u + 1013904223u;
            while (*at) {
                at = (x >> 8) < (*at)->key ? &(*at)->left : &(*at)->right;
                depth++;
            }
            pool[used] = (struct node){.key = x >> 8};
            *at = &pool[used++];
        }
    }
    *result = depth;
    free(pool);
    return depth == 1282448u ? WORK_OK : WORK_WRONG;
}

const struct work work_cpu[] = {
    {"sieve", "primes below 10^6 by Eratosthenes' sieve", 60, run_sieve},
    {"sieve16", "primes below 16 * 10^6, likewise", 4, run_sieve16},
    {"calls", "recursive calls: fib(27)", 60, run_calls},
    {"indirect", "1000 indirect calls to one of eight functions", 10000, run_indirect},
    {"double", "1000 Leibniz terms in doubles", 50000, run_double},
    {"matrix", "64 products of 64x64 matrices", 8, run_matrix},
    {"x87", "1000 terms of 1/k^2 in x87 extended precision", 20000, run_x87},
    {"chase", "1000 dependent loads over 32 MiB", 2000, run_chase},
    {"memcpy", "copies of 1 MiB", 2000, run_memcpy},
    {"tree", "65536 insertions into a binary tree", 8, run_tree},
    {NULL, NULL, 0, NULL},
};
