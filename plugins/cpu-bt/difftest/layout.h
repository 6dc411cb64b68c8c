/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/layout.h - where everything lies, natively and in the
 * guest alike. Shared by C and assembly.
 *
 * The arena is one piece of virtual memory. Natively it is a mapping of the
 * test program; in the guest it is mapped by page tables at the same addresses.
 * Data pages: [hole] A B C [hole]; C is read-only. Test operands lie around the
 * borders between them.
 */
#ifndef DIFFTEST_LAYOUT_H
#define DIFFTEST_LAYOUT_H

#define ARENA 0x10000000
#define ARENA_SIZE 0x1000000
#define DRIVER ARENA               /* driver.S, two pages */
#define VARS (ARENA + 0x10000)     /* its variables */
#define STACK_TOP (ARENA + 0x14000)
#define CODE (ARENA + 0x100000)    /* the instructions under test */
#define CODE_SIZE 0x100000
#define INS (ARENA + 0x400000)     /* states to load, one BLOCK per case */
#define OUTS (ARENA + 0x800000)    /* states saved */
#define BLOCK 0x1000
#define MAX_CASES 1024
#define DATA (ARENA + 0x300000)    /* hole of 64 KiB, A, B, C, hole */
#define PAGE_A (DATA + 0x10000)
#define PAGE_B (PAGE_A + 0x1000)
#define PAGE_C (PAGE_A + 0x2000)
#define DATA_SIZE 0x30000
#define KSTACK_TOP (ARENA + 0x20000) /* the guest's ring 0 */
#define KTABLES (ARENA + 0x20000)    /* GDT, TSS, IDT: a page each */
#define WIN1 (PAGE_B - 256)          /* written before and compared after each case */
#define WIN1_SIZE 512
#define WIN2 (PAGE_C - 256)
#define WIN2_SIZE 256
#define WIN3 (PAGE_C + 0x1000 - 256) /* read-only, constant */
#define GS_BASE (PAGE_A + 0x100)
#define STACKS (ARENA + 0x380000) /* of programs: hole of 64 KiB, two pages, hole */
#define PAGE_S (STACKS + 0x10000)
#define STACKS_SIZE 0x22000
#define FIXES (ARENA + 0xc00000) /* for each byte of CODE: 1 + base register to be put right when an instruction there faults */
#define FIXES_SIZE CODE_SIZE
#define MAX_FIXES 4
#define LOGS (ARENA + 0xd00000) /* states at faults that were put right, one LOG per case */
#define LOG 0x400
#define LOG_ENTRY 0x100 /* 16 registers, RIP, error code, CR2, flags */
#define SAFE (WIN1 + 192)

/* A block: 16 registers in encoding order, flags, then */
#define B_FLAGS 0x80
#define B_TARGET 0x88 /* in: address of the instruction; out: 1 when a branch was taken */
#define B_VECTOR 0x90 /* out: exception, -1 none */
#define B_ERROR 0x98
#define B_CR2 0xa0
#define B_RIP 0xa8
#define B_FIXED 0xb0 /* out: faults that were put right */
#define B_WIN 0x100
#define B_XSAVE 0x400
#define XSAVE_MAX (BLOCK - B_XSAVE)

/* Variables */
#define V_IN (VARS + 0x00)
#define V_OUT (VARS + 0x08)
#define V_LEFT (VARS + 0x10)
#define V_EXIT (VARS + 0x18)
#define V_TARGET (VARS + 0x20)
#define V_R15 (VARS + 0x28)
#define V_TAKEN (VARS + 0x30)
#define V_VECTOR (VARS + 0x38)
#define V_ERROR (VARS + 0x40)
#define V_CR2 (VARS + 0x48)
#define V_RIP (VARS + 0x50)
#define V_MASK (VARS + 0x58) /* of XSAVE components, EDX:EAX */
#define V_RSP (VARS + 0x60)
#define V_ENTER (VARS + 0x68) /* driver_enter64 or driver_enter32 */
#define V_FIXED (VARS + 0x70)
#define V_LOG (VARS + 0x78) /* of this case */
#define V_SAVED (VARS + 0x80)
#define V_LOG_AT (VARS + 0x90) /* next entry */
#define V_SEL (VARS + 0x98) /* in DS and ES */
#define V_REGS (VARS + 0x100) /* as a log entry */
#define SEL_CODE64 0x33 /* Linux's selectors; the guest has the same */
#define SEL_CODE32 0x23
#define SEL_DATA 0x2b

#ifndef __ASSEMBLER__
#include <stdint.h>
extern const uint8_t driver_begin[], driver_end[], driver_start[], driver_native_exit[], driver_guest_exit[],
    driver_save[], driver_taken[], driver_native_entry[], driver_guest_stubs[], driver_guest_stop[],
    driver_enter64[], driver_enter32[];
/* Where a label of driver.S ends up. */
#define DRIVER_AT(label) ((uint64_t)DRIVER + (uint64_t)((label) - driver_begin))
#define GUEST_STUB_SIZE 16
#endif
#endif
