/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tk: the few lines that every test kernel needs.
 *
 * A test kernel is one multiboot ELF file (32-bit, or 64-bit wrapped as 32-bit), started with interrupts off and
 * identity mapping (long mode: the first 4 GiB, 2 MiB pages; protected mode: paging off). It reports on COM1 in TAP
 * ("ok 3 name", "not ok 4 name", "1..4") and leaves through isa-debug-exit at port 0x501 with 0x10 if all passed and
 * 0x11 if not, so the exit status of the VMM is 33 or 35 (2 * value + 1). QEMU TCG 7.2 is the oracle; what it does not
 * check is skipped there.
 *
 * Traps: every vector enters tk_trap(). In this order: a handler set with tk_on(); a TRY() in progress, whose fault is
 * recorded in tk_got and which goes on behind the faulting instruction; a fault of user code, which ends
 * tk_run_user(); else the kernel reports the trap and gives up.
 */
#ifndef TESTS_KERNELS_TK_H
#define TESTS_KERNELS_TK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TK_CODE 0x08
#define TK_DATA 0x10
#define TK_USER_DATA 0x23
#ifdef __x86_64__
#define TK_USER_CODE32 0x1b
#define TK_USER_CODE 0x2b
#define TK_TSS 0x30
#define TK_CODE32 0x40
#define TK_SPARE 0x50 /* first selector that is free for tests */
#else
#define TK_USER_CODE 0x1b
#define TK_TSS 0x28
#define TK_SPARE 0x50
#endif
#define TK_GDT_ENTRIES 64

#ifdef __x86_64__
typedef uint64_t tk_word;
struct tk_frame {
    tk_word r15, r14, r13, r12, r11, r10, r9, r8, di, si, bp, bx, dx, cx, ax;
    tk_word vector, error, ip, cs, flags, sp, ss;
};
#else
typedef uint32_t tk_word;
struct tk_frame {
    tk_word gs, fs, es, ds, di, si, bp, sp0, bx, dx, cx, ax;
    tk_word vector, error, ip, cs, flags;
    tk_word sp, ss;                     /* only from user or v86 mode */
    tk_word v86_es, v86_ds, v86_fs, v86_gs; /* only from v86 mode */
};
#endif

/* What the last TRY() or tk_run_user() met; vector -1: nothing. */
struct tk_got {
    int vector;
    tk_word error, ip, cr2, sp, cs, flags;
};
extern volatile struct tk_got tk_got;
extern volatile tk_word tk_try_resume, tk_try_ip;
extern struct tk_frame tk_user_frame; /* registers of user code when it came back */

extern volatile uint64_t tk_gdt[TK_GDT_ENTRIES];
extern uint32_t tk_multiboot_magic, tk_multiboot_info;

void tk_main(void); /* the test's own */
void tk_result(bool good, const char *name);
#define CHECK(cond, name) tk_result((cond), (name))
#define EQUAL(got, want, name) tk_equal((tk_word)(got), (tk_word)(want), (name))
void tk_equal(tk_word got, tk_word want, const char *name);
void tk_skip(const char *name, const char *why);
/* QEMU TCG 7.2 leaves some checks of the architecture out; a test that only it would fail is skipped there. */
bool tk_tcg(void);
#define UNLESS_TCG(name) if (tk_tcg()) tk_skip((name), "QEMU TCG does not check this"); else
void tk_say(const char *format, ...); /* a TAP comment; knows %s %d %u %x and %p */
void tk_exit(void) __attribute__((noreturn));

/* The handler may change the frame; null takes it away again. */
void tk_on(int vector, void (*handler)(struct tk_frame *));
void tk_gate(int vector, void (*entry)(void), int selector, int type_dpl, int ist);
/* Runs user code until it faults or executes int $0x80; the outcome is in tk_got and tk_user_frame. */
void tk_run_user(tk_word ip, tk_word sp, tk_word flags, tk_word cs);
void tk_user_exit(void) __attribute__((noreturn));
void tk_set_trap_stack(tk_word top);
void tk_load_gdt(void);
void tk_delay_us(uint32_t us); /* by the PIT, busy */
void tk_pic_setup(uint8_t base_vector, uint16_t mask);

void *memset(void *to, int c, size_t n);
void *memcpy(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);

#ifdef __x86_64__
#define TK_MOV "movq"
#else
#define TK_MOV "movl"
#endif
/*
 * TRY(code, operands...): runs the assembly `code`; the instruction blamed must be its first one. Afterwards tk_got
 * says what happened. Every register that the code changes must be named in the operands.
 */
#define TRY(code, ...)                                                                                                 \
    do {                                                                                                               \
        tk_got.vector = -1;                                                                                            \
        __asm__ volatile(TK_MOV " $1f, tk_try_resume\n\t" TK_MOV " $2f, tk_try_ip\n\t"                                 \
                         "2:\t" code "\n1:\t" TK_MOV " $0, tk_try_resume" __VA_ARGS__);                                \
    } while (0)
#define FAULTED(v, e) (tk_got.vector == (v) && tk_got.error == (tk_word)(e) && tk_got.ip == tk_try_ip)

static inline void outb(uint16_t port, uint8_t v)
{
    __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port) : "memory");
}
static inline uint8_t inb(uint16_t port)
{
    uint8_t v;

    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory");
    return v;
}
static inline void cpuid(uint32_t leaf, uint32_t sub, uint32_t r[4])
{
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}
static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t lo, hi;

    __asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr) : "memory");
    return (uint64_t)hi << 32 | lo;
}
static inline void wrmsr(uint32_t msr, uint64_t v)
{
    __asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}
static inline uint64_t rdtsc(void)
{
    uint32_t lo, hi;

    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi) : : "memory");
    return (uint64_t)hi << 32 | lo;
}
#define READ_REG(reg)                                                                                                  \
    ({                                                                                                                 \
        tk_word v_;                                                                                                    \
        __asm__ volatile("mov %%" reg ", %0" : "=r"(v_) : : "memory");                                                 \
        v_;                                                                                                            \
    })
#define WRITE_REG(reg, v) __asm__ volatile("mov %0, %%" reg : : "r"((tk_word)(v)) : "memory")

#endif
