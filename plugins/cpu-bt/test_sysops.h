/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_sysops.h - the bench the C ops are tested on: a vCPU
 * whose linear memory is a byte array, with exceptions caught by setjmp.
 */
#ifndef TEST_SYSOPS_H
#define TEST_SYSOPS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "phys.h"
#include "sys.h"

#include <cmocka.h> /* after ours: its macro fail() */

#define RAM_SIZE 0x100000u
#define GDT 0x1000u
#define IDT 0x2000u
#define TSS 0x3000u
#define TSS2 0x4000u
#define LDT 0x5000u
#define CODE 0x10000u
#define STACK0 0x20000u /* top of the level-0 stack in the TSS */
#define STACK3 0x30000u
#define DATA 0x40000u

/* Selectors of the table that bench_gdt() writes. */
enum {
    S_CODE0 = 0x08,
    S_DATA0 = 0x10,
    S_CODE3 = 0x18 | 3,
    S_DATA3 = 0x20 | 3,
    S_TSS = 0x28,
    S_CODE64 = 0x38,
    S_DATA64 = 0x40,
    S_CODE64_3 = 0x48 | 3,
    S_CONFORM = 0x50,
    S_TSS2 = 0x58,
    S_RODATA = 0x60,
    S_XONLY = 0x68,
    S_ABSENT = 0x70,
    S_LDT = 0x78,
    S_GATE = 0x80,
    S_TASKGATE = 0x90,
    S_CODE16 = 0x98,
    S_DATA16 = 0xa0,
    S_DOWN = 0xa8,
    S_CODE32C_3 = 0xb0 | 3,
    S_END = 0xb8,
};

struct bench {
    struct bt_vcpu c;
    struct bt_vm vm;
    struct hvx_host host;
    jmp_buf jump;
    int vector; /* last exception, -1 none; -2 restart */
    uint32_t error;
    bool has_error;
    unsigned flush_all, flush_nonglobal, switches, switches_kept, pcid, flush_pcid, invlpg_pcid, flush_pcids, invlpg,
        ports;
    uint16_t port;
    uint32_t port_value, port_size;
    uint64_t pf_page; /* one page that faults, ~0 none */
    uint64_t no_ptr_page; /* one page that bt_host_ptr refuses */
    struct bt_op op;
    __attribute__((aligned(4096))) uint8_t ram[RAM_SIZE];
};
extern struct bench B;

/* No local changes between setjmp and longjmp, so none is lost. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wclobbered"
#endif

/* Run an expression; B.vector tells what it raised. */
#define RUN(expr)                                                                                                  \
    do {                                                                                                           \
        B.vector = -1;                                                                                             \
        B.error = 0;                                                                                               \
        B.has_error = false;                                                                                       \
        if (!setjmp(B.jump)) {                                                                                     \
            expr;                                                                                                  \
        }                                                                                                          \
    } while (0)
#define OK(expr)                                                                                                   \
    do {                                                                                                           \
        RUN(expr);                                                                                                 \
        assert_int_equal(B.vector, -1);                                                                            \
    } while (0)
#define RAISES(vec, err, expr)                                                                                     \
    do {                                                                                                           \
        RUN(expr);                                                                                                 \
        assert_int_equal(B.vector, vec);                                                                           \
        assert_int_equal(B.error, err);                                                                            \
    } while (0)

void bench_real(void);   /* real mode at CODE, stack 0x2000:1000 */
void bench_prot(unsigned cpl); /* 32-bit protected mode, flat segments, TSS with STACK0 */
void bench_long(unsigned cpl); /* 64-bit mode */
void bench_v86(void);

uint64_t desc(uint32_t base, uint32_t limit, uint32_t attr); /* attr as in hvx_segment */
uint64_t gate(uint32_t sel, uint32_t off, unsigned type, unsigned dpl);
void put(uint64_t addr, unsigned size, uint64_t v);
uint64_t get(uint64_t addr, unsigned size);
void idt32(unsigned vector, uint64_t g);
void idt64(unsigned vector, uint32_t sel, uint64_t off, unsigned type, unsigned dpl, unsigned ist);
static inline uint64_t stack(unsigned i, unsigned size)
{
    return get(B.c.seg[BT_SS].base + B.c.gpr[BT_RSP] + i * size, size);
}

int test_transfers(void);
int test_machine(void);
int test_data(void);
#endif
