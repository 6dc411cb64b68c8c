/* SPDX-License-Identifier: Apache-2.0 */
/* Workloads that live at the border between user code and the kernel. */
#include "work.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static enum work_verdict run_getpid(unsigned long n, uint64_t *result)
{
    long pid = getpid();

    for (unsigned long r = 0; r < 1000 * n; r++)
        if (syscall(SYS_getpid) != pid)
            return WORK_WRONG;
    *result = n;
    return WORK_OK;
}

#define SORTED 2560
#define POINTS 1024
#define PASSES 80

/* Some 200 us on a processor of today: integers, branches and memory, then doubles. */
static bool compute(uint32_t seed, uint64_t *sum)
{
    static uint32_t v[SORTED];
    static double a[POINTS], b[POINTS];
    uint32_t x = seed, check = 0;
    double mean = 0;

    for (int i = 0; i < SORTED; i++)
        check += v[i] = (x = x * 1664525u + 1013904223u) >> 8;
    for (int gap = 364; gap; gap /= 3) /* Shell's sort with Knuth's gaps */
        for (int i = gap; i < SORTED; i++) {
            uint32_t t = v[i];
            int j = i;

            for (; j >= gap && v[j - gap] > t; j -= gap)
                v[j] = v[j - gap];
            v[j] = t;
        }
    for (int i = 0; i < SORTED; i++) {
        check -= v[i];
        if (i && v[i - 1] > v[i])
            return false;
    }

    /* Smoothing on a ring keeps the mean. */
    for (int i = 0; i < POINTS; i++)
        mean += a[i] = (double)(v[i] & 0xffff);
    for (int pass = 0; pass < PASSES; pass++) {
        for (int i = 0; i < POINTS; i++)
            b[i] = 0.25 * a[(i + POINTS - 1) % POINTS] + 0.5 * a[i] + 0.25 * a[(i + 1) % POINTS];
        memcpy(a, b, sizeof(a));
    }
    for (int i = 0; i < POINTS; i++)
        mean -= a[i];
    *sum += v[SORTED / 2];
    return check == 0 && fabs(mean) < 1e-3;
}

/* A program that computes and makes some 5000 system calls a second. */
static enum work_verdict run_calls5k(unsigned long n, uint64_t *result)
{
    long pid = getpid();

    *result = 0;
    for (unsigned long r = 0; r < 100 * n; r++)
        if (!compute((uint32_t)r, result) || syscall(SYS_getpid) != pid)
            return WORK_WRONG;
    return WORK_OK;
}

static enum work_verdict run_read(unsigned long n, uint64_t *result)
{
    int fd = open("/dev/zero", O_RDONLY);
    char byte = 1;

    if (fd < 0)
        return WORK_SKIP;
    for (unsigned long r = 0; r < 1000 * n; r++)
        if (read(fd, &byte, 1) != 1 || byte) {
            close(fd);
            return WORK_WRONG;
        }
    close(fd);
    *result = n;
    return WORK_OK;
}

static enum work_verdict run_stat(unsigned long n, uint64_t *result)
{
    struct stat st;

    for (unsigned long r = 0; r < 1000 * n; r++)
        if (stat("/tmp", &st) < 0)
            return WORK_WRONG;
    *result = n;
    return WORK_OK;
}

static volatile sig_atomic_t caught;

static void on_signal(int sig)
{
    (void)sig;
    caught++;
}

static enum work_verdict run_signal(unsigned long n, uint64_t *result)
{
    struct sigaction sa = {.sa_handler = on_signal}, old;
    long pid = getpid();

    caught = 0;
    sigaction(SIGUSR1, &sa, &old);
    for (unsigned long r = 0; r < 1000 * n; r++)
        kill((pid_t)pid, SIGUSR1);
    sigaction(SIGUSR1, &old, NULL);
    *result = (uint64_t)caught;
    return *result == 1000 * n ? WORK_OK : WORK_WRONG;
}

/* One byte to a child and back, 1000 * n times; result counts both directions. */
static enum work_verdict run_pipe(unsigned long n, uint64_t *result)
{
    enum work_verdict verdict = WORK_OK;
    int there[2], back[2], status;
    unsigned char byte = 0;
    pid_t child;

    if (pipe(there) < 0 || pipe(back) < 0 || (child = fork()) < 0)
        return WORK_SKIP;
    if (child == 0) {
        close(there[1]);
        close(back[0]);
        while (read(there[0], &byte, 1) == 1) {
            byte++;
            if (write(back[1], &byte, 1) != 1)
                _exit(1);
        }
        _exit(0);
    }
    close(there[0]);
    close(back[1]);
    for (unsigned long r = 0; r < 1000 * n && verdict == WORK_OK; r++) {
        unsigned char sent = (unsigned char)r;

        if (write(there[1], &sent, 1) != 1 || read(back[0], &byte, 1) != 1 || byte != (unsigned char)(r + 1))
            verdict = WORK_WRONG;
    }
    close(there[1]);
    close(back[0]);
    if (waitpid(child, &status, 0) != child || status)
        verdict = WORK_WRONG;
    *result = 2000 * n;
    return verdict;
}

static enum work_verdict run_fork(unsigned long n, uint64_t *result)
{
    for (unsigned long r = 0; r < n; r++) {
        int status = 0;
        pid_t child = fork();

        if (child < 0)
            return WORK_SKIP;
        if (child == 0)
            _exit((int)(r & 127));
        if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != (int)(r & 127))
            return WORK_WRONG;
    }
    *result = n;
    return WORK_OK;
}

static enum work_verdict run_exec(unsigned long n, uint64_t *result)
{
    for (unsigned long r = 0; r < n; r++) {
        int status = 0;
        pid_t child = fork();

        if (child < 0)
            return WORK_SKIP;
        if (child == 0) {
            execl(work_self, "work", "nop", (char *)NULL);
            _exit(127);
        }
        if (waitpid(child, &status, 0) != child || status)
            return WORK_WRONG;
    }
    *result = n;
    return WORK_OK;
}

#define FAULT_PAGES 256

/* First touch of fresh anonymous pages, then unmap: page faults, zeroing and TLB shoot-down. */
static enum work_verdict run_fault(unsigned long n, uint64_t *result)
{
    uint64_t touched = 0;

    for (unsigned long r = 0; r < n; r++) {
        volatile unsigned char *p =
            mmap(NULL, FAULT_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (p == MAP_FAILED)
            return WORK_SKIP;
        for (unsigned i = 0; i < FAULT_PAGES; i++) {
            touched += p[i * 4096] == 0;
            p[i * 4096] = 1;
        }
        munmap((void *)p, FAULT_PAGES * 4096);
    }
    *result = touched;
    return touched == n * FAULT_PAGES ? WORK_OK : WORK_WRONG;
}

/* A child writes to pages it shares with its parent: the parent must not see it. */
static enum work_verdict run_cow(unsigned long n, uint64_t *result)
{
    volatile unsigned char *p = mmap(NULL, FAULT_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    enum work_verdict verdict = WORK_OK;

    if (p == MAP_FAILED)
        return WORK_SKIP;
    for (unsigned long r = 0; r < n && verdict == WORK_OK; r++) {
        int status = 0;
        pid_t child;

        for (unsigned i = 0; i < FAULT_PAGES; i++)
            p[i * 4096] = (unsigned char)r;
        child = fork();
        if (child < 0)
            return WORK_SKIP;
        if (child == 0) {
            int bad = 0;

            for (unsigned i = 0; i < FAULT_PAGES; i++) {
                bad |= p[i * 4096] != (unsigned char)r;
                p[i * 4096] = (unsigned char)~r;
            }
            _exit(bad);
        }
        if (waitpid(child, &status, 0) != child || status)
            verdict = WORK_WRONG;
        for (unsigned i = 0; i < FAULT_PAGES; i++)
            if (p[i * 4096] != (unsigned char)r)
                verdict = WORK_WRONG;
    }
    munmap((void *)p, FAULT_PAGES * 4096);
    *result = n;
    return verdict;
}

static enum work_verdict run_yield(unsigned long n, uint64_t *result)
{
    for (unsigned long r = 0; r < 1000 * n; r++)
        sched_yield();
    *result = n;
    return WORK_OK;
}

static uint64_t locked_counter, plain_counter;
static pthread_mutex_t counter_mutex = PTHREAD_MUTEX_INITIALIZER;

static void *count(void *arg)
{
    unsigned long n = *(unsigned long *)arg;

    for (unsigned long r = 0; r < 100 * n; r++) {
        for (int i = 0; i < 10; i++)
            __atomic_fetch_add(&locked_counter, 1, __ATOMIC_SEQ_CST);
        pthread_mutex_lock(&counter_mutex);
        plain_counter++;
        pthread_mutex_unlock(&counter_mutex);
    }
    return NULL;
}

/* Two threads: locked adds and a mutex, both must come out exact. */
static enum work_verdict run_threads(unsigned long n, uint64_t *result)
{
    pthread_t other;

    locked_counter = plain_counter = 0;
    if (pthread_create(&other, NULL, count, &n))
        return WORK_SKIP;
    count(&n);
    pthread_join(other, NULL);
    *result = locked_counter;
    return locked_counter == 2000 * n && plain_counter == 200 * n ? WORK_OK : WORK_WRONG;
}

const struct work work_kernel[] = {
    {"getpid", "1000 null system calls", 1500, run_getpid},
    {"calls5k", "100 times 200 us of computation and a null system call", 20, run_calls5k},
    {"read", "1000 reads of one byte from /dev/zero", 1000, run_read},
    {"stat", "1000 stat() of /tmp", 200, run_stat},
    {"signal", "1000 signals to itself", 250, run_signal},
    {"pipe", "1000 round trips of one byte through two pipes", 20, run_pipe},
    {"fork", "fork, exit, wait", 1500, run_fork},
    {"exec", "fork, exec of itself, exit, wait", 500, run_exec},
    {"fault", "first touch of 256 fresh pages", 800, run_fault},
    {"cow", "fork, then write 256 shared pages in the child", 300, run_cow},
    {"yield", "1000 sched_yield()", 600, run_yield},
    {"threads", "1000 locked adds and 100 mutex rounds in each of two threads", 1000, run_threads},
    {NULL, NULL, 0, NULL},
};
