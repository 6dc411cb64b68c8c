/* SPDX-License-Identifier: Apache-2.0 */
#include "work.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <time.h>
#include <unistd.h>

const char *work_self = "/proc/self/exe";

static const struct work *const tables[] = {work_cpu, work_crypto, work_kernel, work_check};

uint64_t work_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static const struct work *find(const char *name)
{
    for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++)
        for (const struct work *w = tables[t]; w->name; w++)
            if (!strcmp(w->name, name))
                return w;
    return NULL;
}

/* One line per run, written at once, so that kernel messages on the same console cannot split it. */
static int run_one(const struct work *w, double scale)
{
    static const char *const words[] = {"ok", "WRONG", "skip"};
    unsigned long n = (unsigned long)((double)w->n * scale);
    uint64_t result = 0, start, end;
    enum work_verdict verdict;
    char line[160];
    int len;

    if (n < 1)
        n = 1;
    start = work_now_ns();
    verdict = w->run(n, &result);
    end = work_now_ns();
    len = snprintf(line, sizeof(line), "work %s %s n=%lu result=%llu ns=%llu per=%.2f\n", w->name, words[verdict], n,
                   (unsigned long long)result, (unsigned long long)(end - start), (double)(end - start) / (double)n);
    if (len > 0 && write(1, line, (size_t)len) != len)
        return 1;
    return verdict == WORK_WRONG;
}

static int usage(FILE *to)
{
    fprintf(to, "usage: work [-s SCALE] [-r REPEAT] NAME...|all|check\n"
                "       work list | work exit CODE (leave the virtual machine through isa-debug-exit)\n");
    return to == stdout ? 0 : 2;
}

static int list(void)
{
    for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++)
        for (const struct work *w = tables[t]; w->name; w++)
            printf("%-12s %10lu  %s\n", w->name, w->n, w->help);
    return 0;
}

/* Port 0x501 is where our test machines have isa-debug-exit: the VMM ends with 2 * CODE + 1. */
static int debug_exit(const char *code)
{
    if (ioperm(0x501, 1, 1) < 0) {
        perror("work: cannot get at port 0x501 (needs root)");
        return 1;
    }
    outb((unsigned char)atoi(code), 0x501);
    fprintf(stderr, "work: port 0x501 did not end the machine: has it the device isa-debug-exit?\n");
    return 1;
}

int main(int argc, char **argv)
{
    double scale = 1;
    int repeat = 1, opt, bad = 0;

    while ((opt = getopt(argc, argv, "s:r:h")) != -1) {
        if (opt == 's')
            scale = atof(optarg);
        else if (opt == 'r')
            repeat = atoi(optarg);
        else
            return usage(opt == 'h' ? stdout : stderr);
    }
    if (optind >= argc)
        return usage(stderr);
    if (!strcmp(argv[optind], "nop"))
        return 0;
    if (!strcmp(argv[optind], "list"))
        return list();
    if (!strcmp(argv[optind], "exit") && optind + 1 < argc)
        return debug_exit(argv[optind + 1]);
    for (int i = optind; i < argc; i++) {
        bool all = !strcmp(argv[i], "all"), check = all || !strcmp(argv[i], "check");

        if (all || check) {
            for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++)
                for (const struct work *w = tables[t]; w->name; w++)
                    if (all || tables[t] == work_check)
                        bad |= run_one(w, scale);
            continue;
        }
        if (!find(argv[i])) {
            fprintf(stderr, "work: there is no workload \"%s\"; \"work list\" shows them\n", argv[i]);
            return 2;
        }
        for (int r = 0; r < repeat; r++)
            bad |= run_one(find(argv[i]), scale);
    }
    return bad;
}
