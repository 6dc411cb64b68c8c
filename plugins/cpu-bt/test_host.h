/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_host.h - a host for the whole engine in a test: options
 * as the test sets them, a log, RAM, a port by which the guest gets the test out
 * of vcpu_run(); and a VM of one vCPU that runs under it. The engine is reached
 * through its public ABI alone. For test_direct, test_warm, fuzz_warm, difftest.
 */
#ifndef TEST_HOST_H
#define TEST_HOST_H

#include <hvx/cpu.h>
#include <hvx/plugin.h>

#define TEST_PORT 0xf4
#define TEST_RAM_NAME "test-ram" /* in /proc/PID/maps */

/* Zeroed, then the first part set: */
struct test_host {
    const char *direct, *translation_cache; /* options; both NULL: the engine is given none */
    bool direct_eager;
    unsigned helpers; /* 0: 1 */
    uint64_t tsc_hz;
    bool quiet; /* the log is not printed; else warnings are, and with HVXTEST_VERBOSE all */

    /* test_host_ram() */
    uint8_t *ram;
    uint64_t ram_size;
    int fd;
    /* test_host_start() */
    const struct hvx_cpu_ops *ops;
    struct hvx_engine_vm *vm;
    struct hvx_vcpu *vcpu;
    void *ctx;
    volatile bool stopped; /* the guest has written to TEST_PORT */
    char log[4000];        /* from the beginning, in lines */
};

/* Zeroes. shared: with a descriptor, as helpers and the window for kernels want it. */
bool test_host_ram(struct test_host *h, uint64_t bytes, bool shared);
/* The engine with that RAM, and its vCPU after a reset. False: the log has why. */
bool test_host_start(struct test_host *h);
/* After a failed start, too. */
void test_host_end(struct test_host *h);
/* One vcpu_run(). False: it ended otherwise than by a kick; stderr has how. */
bool test_host_run(struct test_host *h);

/* The vCPU's registers, made those of 64-bit code with null segments; to be completed, then given to
 * test_host_set(). */
struct hvx_vcpu_regs *test_host_get(struct test_host *h);
/* Frees them. False: the log has why the engine refuses them. */
bool test_host_set(struct test_host *h, struct hvx_vcpu_regs *r);
void test_segment(struct hvx_segment *s, uint16_t sel, uint16_t attr);
/* Linux's selectors, so that a program that reads them finds the host's; 0x40 is a TSS. */
#define TEST_GDT_ENTRIES 10
void test_gdt(void *gdt, uint64_t tss);
void test_gate(void *idt, unsigned n, uint64_t target, unsigned dpl); /* an interrupt gate to CS 8 */

uint64_t test_host_clock(void); /* ns */

#endif
