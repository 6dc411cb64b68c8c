/* SPDX-License-Identifier: Apache-2.0 */
/*
 * work: one static binary with every measured workload in it.
 *
 * The same file runs on the host (the "native" column of bench/run) and inside the guests of HVX and of QEMU, so that
 * a ratio compares engines and not compilers. Each workload checks its own answer: a wrong answer is reported as
 * WRONG and makes the exit status 1, which is how the boot tests use it.
 */
#ifndef BENCH_WORK_H
#define BENCH_WORK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* work.h comes first in each file */
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum work_verdict {
    WORK_OK,
    WORK_WRONG,
    WORK_SKIP, /* the CPU or the kernel lacks what the workload needs */
};

struct work {
    const char *name;
    const char *help;
    unsigned long n; /* repetitions when the user names none; about 0.1-0.5 s natively */
    enum work_verdict (*run)(unsigned long n, uint64_t *result);
};

/* Each table ends with a null name. */
extern const struct work work_cpu[];
extern const struct work work_crypto[];
extern const struct work work_kernel[];
extern const struct work work_check[];

extern const char *work_self; /* path of this binary, for exec */

uint64_t work_now_ns(void);

#endif
