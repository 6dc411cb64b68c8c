/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_warm.h - a machine that runs one small program, for tests
 * of the option translation-cache: test_warm.c, fuzz_warm.c.
 */
#ifndef TEST_WARM_H
#define TEST_WARM_H

#include "test_host.h"
#include "warm_file.h"

/* Where the program may be: two places for a program, two for a kernel, one where nothing may be moved. */
#define WARM_USER_A 0x7f1234500000ull
#define WARM_USER_B 0x555555500000ull
#define WARM_KERNEL_A 0xffffffff80000000ull
#define WARM_KERNEL_B 0xffffffffa0000000ull
#define WARM_LOW 0x400000ull

struct warm_machine {
    struct test_host h;
    uint64_t result, loaded, kept, lost, blocks; /* after warm_run() */
};
/* path: the option. False: m->h.log has why. */
bool warm_start(struct warm_machine *m, const char *path);
/* The program at `at`; `constant` is in its bytes, and in m->result. */
void warm_run(struct warm_machine *m, uint64_t at, uint32_t constant);
void warm_end(struct warm_machine *m);
/* What m->result ought to be. */
uint64_t warm_expect(uint32_t constant);

#endif
