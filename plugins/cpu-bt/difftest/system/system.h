/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/difftest/system/system.h - a kernel that runs instructions in
 * every mode and hashes what they did; shared by C and assembly.
 *
 *   entry.S   from the monitor (32-bit, no paging) into a state, and back from
 *             whatever exception ends it
 *   case.c    a case's world: descriptors, page tables, registers, memory
 *   forms.c   the instructions
 *   main.c    the loop, the hash, the report
 *
 * The same image runs under HVX and under QEMU; ../system.py compares. All
 * choices come from the seed and the number of the case.
 */
#ifndef SYSTEM_H
#define SYSTEM_H

/* Physical, below 1 MiB, because real mode reaches it. */
#define TEST_IVT 0x2000
#define LOW_CODE 0x8000
#define RESULT 0xa000
#define STATE 0xb000
#define STACK 0x30000 /* 64 KiB each */
#define CODE 0x40000
#define AREA 0x50000

/* Selectors of the test GDT */
#define SEL_CODE 0x08 /* the monitor's */
#define SEL_DATA 0x10
#define SEL_LONG 0x18
#define SEL_CODE16 0x20
#define SEL_DATA16 0x28
#define SEL_UNREAL 0x30
#define SEL_DFTSS 0x38
#define SEL_TSS 0x40 /* 16 bytes in long mode */
#define SEL_LDT 0x50 /* likewise */
#define SEL_TSS2 0x60
#define SEL_CODE_0 0x70
#define SEL_STACK_0 0x78
#define SEL_DATA_0 0x80
#define SEL_CODE_3 0x88 /* SYSEXIT: +16 of CODE_0? no: MSRs name others */
#define SEL_STACK_3 0x90
#define SEL_DATA_3 0x98
#define SEL_LONG_3 0xa0
#define SEL_RANDOM 0xa8 /* and on to the end */
#define N_GDT 40

#define KIND_PM 0
#define KIND_OUTER 1
#define KIND_VM86 2
#define KIND_REAL 3
#define KIND_LONG 4

#define N_VECTORS 64

/* STATE: to load */
#define S_GPR STATE
#define S_EFLAGS (STATE + 0x80)
#define S_KIND (STATE + 0x88)
#define S_EIP (STATE + 0x90)
#define S_CS (STATE + 0x94) /* far pointer with S_EIP; 32 bits */
#define S_EIP16 (STATE + 0x9c)
#define S_CS16 (STATE + 0x9e)
#define S_ESP (STATE + 0xa0)
#define S_SS (STATE + 0xa4)
#define S_DS (STATE + 0xa8)
#define S_ES (STATE + 0xac)
#define S_FS (STATE + 0xb0)
#define S_GS (STATE + 0xb4)
#define S_CR0 (STATE + 0xb8)
#define S_CR3 (STATE + 0xbc)
#define S_CR4 (STATE + 0xc0)
#define S_EFER (STATE + 0xc4)
#define S_GDTR (STATE + 0xc8)
#define S_IDTR (STATE + 0xd8)
#define S_LDT (STATE + 0xe8)
#define S_TR (STATE + 0xec)
#define S_LIMITS (STATE + 0xf0) /* real mode: which descriptor gives the segments their limits */
#define S_RIP (STATE + 0xf8)    /* 64 bits */
#define S_BASES (STATE + 0x100) /* FS, GS, kernel GS */
#define M_ESP (STATE + 0x120)
#define M_GDTR (STATE + 0x128)

/* RESULT: saved */
#define R_GPR RESULT
#define R_VECTOR (RESULT + 0x80)
#define R_SP (RESULT + 0x88)
#define R_SS (RESULT + 0x90)
#define R_DS (RESULT + 0x94)
#define R_ES (RESULT + 0x98)
#define R_FS (RESULT + 0x9c)
#define R_GS (RESULT + 0xa0)
#define R_EFLAGS (RESULT + 0xa4)
#define R_CR0 (RESULT + 0xa8)
#define R_CR2 (RESULT + 0xb0)
#define R_CR3 (RESULT + 0xb8)
#define R_CR4 (RESULT + 0xbc)
#define R_DR6 (RESULT + 0xc0)
#define R_DR7 (RESULT + 0xc4)
#define R_GDTR (RESULT + 0xc8)
#define R_IDTR (RESULT + 0xd8)
#define R_LDT (RESULT + 0xe8)
#define R_TR (RESULT + 0xec)
#define R_BASES (RESULT + 0xf0)
#define R_SIZE 0x110

#ifndef __ASSEMBLER__
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct table_pointer {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed));
struct state {
    uint64_t gpr[16];
    uint32_t eflags, pad0, kind, pad1, eip, cs, pad2;
    uint16_t eip16, cs16;
    uint32_t esp, ss, ds, es, fs, gs, cr0, cr3, cr4, efer;
    struct table_pointer gdtr;
    uint8_t pad3[6];
    struct table_pointer idtr;
    uint8_t pad4[6];
    uint32_t ldt, tr, limits, pad5;
    uint64_t rip, bases[3];
};
struct result {
    uint64_t gpr[16];
    uint32_t vector, pad0;
    uint64_t sp;
    uint32_t ss, ds, es, fs, gs, eflags, cr0, pad1;
    uint64_t cr2;
    uint32_t cr3, cr4, dr6, dr7;
    struct table_pointer gdtr;
    uint8_t pad2[6];
    struct table_pointer idtr;
    uint8_t pad3[6];
    uint32_t ldt, tr;
    uint64_t bases[3];
};
#define state_in (*(struct state *)STATE)
#define result (*(volatile struct result *)RESULT)

/* entry.S */
void enter(void);
extern uint8_t low_begin[], low_end[], low_stubs[], stubs32[], stubs64[], df_entry[];
extern uint64_t monitor_gdt[];

/* --- modes ------------------------------------------------------------------ */
enum mode {
    M_REAL, M_UNREAL, M_VM86, M_PM16_0, M_PM32_0, M_PM16_3, M_PM32_3, M_PM32_1, M_LONG_0, M_LONG_3, M_COMPAT32, M_COMPAT16, N_MODES
};
#define MODE(m) (1u << (m))
#define MODES_REAL (MODE(M_REAL) | MODE(M_UNREAL))
#define MODES_PM (MODE(M_PM16_0) | MODE(M_PM32_0) | MODE(M_PM16_3) | MODE(M_PM32_3) | MODE(M_PM32_1))
#define MODES_LONG64 (MODE(M_LONG_0) | MODE(M_LONG_3))
#define MODES_COMPAT (MODE(M_COMPAT32) | MODE(M_COMPAT16))
#define MODES_LONG (MODES_LONG64 | MODES_COMPAT)
#define MODES_PROT (MODES_PM | MODES_LONG)
#define MODES_ALL ((1u << N_MODES) - 1)
#define MODES_NOT64 (MODES_ALL & ~MODES_LONG64)

/* --- a case -------------------------------------------------------------------- */
struct test {
    uint64_t rng;
    enum mode mode;
    unsigned cpl, bits; /* of code: 16, 32, 64 */
    bool pe, lm, vm86, stack32, paging, pae;
    uint32_t area;       /* linear address of AREA in this case */
    uint8_t *code;       /* where the next byte goes */
    uint32_t code_at;    /* offset in the code segment */
    unsigned prefix67, prefix66;
    bool compare_after;  /* flags that are undefined: something that defines them goes behind */
    bool pusha;          /* pushes several words */
    const struct form *form;
};
struct form {
    const char *name;
    unsigned modes;
    void (*make)(struct test *);
    bool task; /* may switch tasks */
    bool far; /* QEMU pushes and pops as the supervisor */
    bool early; /* QEMU checks the privilege before it has fetched the whole instruction */
    bool rmw; /* reads and writes one operand */
    unsigned cases, faults;
};
extern struct form forms[];
extern const unsigned n_forms;

extern uint8_t gdt[N_GDT * 8], ldt[64], tss[256], tss2[256], idt[N_VECTORS * 16], r0_stack[512];
extern uint8_t page_tables[9][4096];

extern uint32_t cr4_features;
extern bool amd; /* CPUID's vendor */
uint32_t rnd(struct test *t);
static inline uint32_t below(struct test *t, uint32_t n) { return (uint32_t)((uint64_t)rnd(t) * n >> 32); }
static inline bool one_in(struct test *t, uint32_t n) { return below(t, n) == 0; }

void case_begin(struct test *t);  /* world and registers */
void case_finish(struct test *t); /* what depends on the code */
uint32_t any_selector(struct test *t);
uint32_t hot_offset(struct test *t);
/* Bytes of the data segment, or the stack, as the instruction will find them. */
void poke(struct test *t, uint32_t off, const void *p, unsigned n);
void poke_stack(struct test *t, unsigned slot, unsigned size, uint32_t v);

void *memcpy(void *d, const void *s, size_t n);
void *memset(void *d, int c, size_t n);
#endif
#endif
