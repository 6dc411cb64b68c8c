/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random programs, each run twice: at its address in the lower half with data there, and through aliases of code and
 * data in the upper half, where a kernel's are, with pages that come and go and are read-only on the way. Both must
 * leave the same registers, flags and memory.
 */
#include "tk.h"

#define HIGH 0xffffffff80000000ul
#define VA 0xffffea0000000000ul
#define P 1ul
#define W 2ul
#define G 0x100ul
#define PAGES 4
#define PROGRAMS 3000
#define LENGTH 40
#define FLAGS 0x8c5ul /* all but AF, which logic leaves undefined */

extern uint64_t tk_pml4[512], tk_pd[2048];
#define PAGE __attribute__((aligned(4096)))
static uint64_t high_pdpt[512] PAGE, va_pdpt[512] PAGE, va_pd[512] PAGE, va_pt[512] PAGE;
static uint8_t data[PAGES * 4096] PAGE, first[PAGES * 4096] PAGE, code[8192] PAGE;

uint64_t in[17], out[17], own_sp;
__asm__(".text\n.globl enter, leave_it\nenter: push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, own_sp(%rip)\nlea in(%rip), %rax\npush 128(%rax)\npopfq\nmov 8(%rax), %rcx\nmov 16(%rax), %rdx\n"
        "mov 24(%rax), %rbx\nmov 32(%rax), %rsp\nmov 40(%rax), %rbp\nmov 48(%rax), %rsi\nmov 64(%rax), %r8\nmov 72(%rax), %r9\n"
        "mov 80(%rax), %r10\nmov 88(%rax), %r11\nmov 96(%rax), %r12\nmov 104(%rax), %r13\nmov 112(%rax), %r14\n"
        "mov 120(%rax), %r15\npush %rdi\nmov 56(%rax), %rdi\nmov 0(%rax), %rax\nret\n"
        "leave_it: mov %rax, out(%rip)\nmov %rcx, 8+out(%rip)\nmov %rdx, 16+out(%rip)\nmov %rbx, 24+out(%rip)\n"
        "mov %rsp, 32+out(%rip)\nmov %rbp, 40+out(%rip)\nmov %rsi, 48+out(%rip)\nmov %rdi, 56+out(%rip)\n"
        "mov %r8, 64+out(%rip)\nmov %r9, 72+out(%rip)\nmov %r10, 80+out(%rip)\nmov %r11, 88+out(%rip)\n"
        "mov %r12, 96+out(%rip)\nmov %r13, 104+out(%rip)\nmov %r14, 112+out(%rip)\nmov %r15, 120+out(%rip)\n"
        "mov own_sp(%rip), %rsp\npushfq\npop 128+out(%rip)\npop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n");
extern uint8_t enter[], leave_it[];

static uint32_t seed = 12345;
static uint32_t rnd(uint32_t n)
{
    seed = seed * 1664525 + 1013904223;
    return (uint32_t)((uint64_t)(seed >> 8) * n >> 24);
}

/* --- programs ------------------------------------------------------------------------- */
/* rbx rbp rdi r12 r13 r14 point into the data, rsp too; r11 is a small index; the rest are values. */
static const uint8_t base_of[] = {3, 5, 7, 12, 13, 14}, value_of[] = {0, 1, 2, 6, 8, 9, 10, 15};
static uint8_t *at;
static void b(unsigned v) { *at++ = (uint8_t)v; }
static void d32(uint32_t v) { b(v), b(v >> 8), b(v >> 16), b(v >> 24); }

/* size 1 2 4 8; prefix lock or 0; op up to two bytes; reg; a random operand in memory */
static void insn(unsigned size, unsigned lock, unsigned op, unsigned reg, bool gs)
{
    unsigned base = base_of[rnd(6)], index = rnd(3) ? 4 : 11, scale = rnd(4);
    int disp = (int)rnd(160) - 80;
    bool stack = !rnd(6);
    if (gs)
        b(0x65);
    if (lock)
        b(lock);
    if (size == 2)
        b(0x66);
    unsigned form = gs ? 5 : stack ? 4 : base & 7;
    unsigned r = index == 11 ? index : 0;
    unsigned rex = 0x40 | (size == 8) << 3 | (reg >> 3) << 2 | (!gs && r ? 2 : 0) | (!gs && !stack && base > 7);
    bool high = size == 1 && reg >= 4 && reg < 8 && rex == 0x40 && rnd(2); /* AH CH DH BH... */
    if (high && (reg == 5 || reg == 7))
        high = false; /* CH changes RCX, DH RDX, AH RAX; BH would change a base */
    if (rex != 0x40 || (size == 1 && reg >= 4 && !high))
        b(rex);
    if (op > 0xff)
        b(op >> 8);
    b(op & 0xff);
    if (gs) { /* gs:[disp32] */
        b((reg & 7) << 3 | 4);
        b(0x25);
        d32((uint32_t)(disp + 200));
        return;
    }
    if (stack)
        index = rnd(3) ? 4 : 11, disp = (int)rnd(64);
    b(0x80 | (reg & 7) << 3 | 4); /* always a SIB and disp32 */
    b(scale << 6 | ((r ? 11 : 4) & 7) << 3 | form);
    d32((uint32_t)disp);
}

static void one(void)
{
    static const uint8_t sizes[] = {1, 2, 4, 8, 8, 4, 8};
    static const uint16_t rmw[] = {0x00, 0x08, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x88, 0x84, 0x86};
    unsigned size = sizes[rnd(7)], w = size > 1, v = value_of[rnd(8)], v2 = value_of[rnd(8)];
    bool gs = !rnd(8);
    switch (rnd(22)) {
    case 0: case 1: case 2: insn(size, 0, rmw[rnd(11)] | w, v, gs); break;
    case 3: case 4: insn(size, 0, (rnd(8) << 3 | 2) | w, v, gs); break; /* alu r, m */
    case 5: case 6: insn(size, 0, 0x8a | w, v, gs); break;
    case 7: insn(size, 0xf0, rmw[rnd(7)] | w, v, gs); break;
    case 8: insn(size, 0xf0, 0x0fc0 | w, v, gs); break; /* xadd */
    case 9: insn(size, rnd(2) ? 0xf0 : 0, 0x0fb0 | w, v, gs); break; /* cmpxchg */
    case 10: insn(size, rnd(2) ? 0xf0 : 0, 0xfe | w, rnd(2), gs); break; /* inc, dec */
    case 11: insn(size, 0, 0xf6 | w, 2 + rnd(2), gs); break; /* not, neg */
    case 12: insn(size, 0, 0xd0 | w, 4 + rnd(2), gs); break; /* shl, shr by 1 */
    case 13: insn(w && size > 2 ? size : 4, 0, 0x0fb6 | rnd(2) | rnd(2) << 3, v, gs); break; /* movzx, movsx */
    case 14: insn(1, 0, 0x0f90 | rnd(16), 0, gs); break; /* setcc */
    case 15: insn(w && size > 2 ? size : 8, 0, 0x0f40 | rnd(16), v, gs); break; /* cmovcc */
    case 16: /* push, pop */
        if (v > 7)
            b(0x41);
        b(0x50 | (v & 7));
        if (v2 > 7)
            b(0x41);
        b(0x58 | (v2 & 7));
        break;
    case 17: insn(4, 0, 0xff, 6, false), insn(4, 0, 0x8f, 0, false); break; /* push m, pop m */
    case 18: /* call over an instruction, and back to it */
        b(0xe8), d32(5); /* call 1f */
        b(0xe9), d32(4); /* jmp 2f */
        b(0x48), b(0xff), b(0xc0), b(0xc3); /* 1: inc rax; ret; 2: */
        break;
    case 19: { /* jcc over the next */
        b(0x70 | rnd(16));
        uint8_t *over = at;
        b(0);
        insn(8, 0, 0x01, v, false);
        *over = (uint8_t)(at - over - 1);
        break;
    }
    case 20: /* register instructions that make flags */
        b(0x48 | (v2 > 7) << 2 | (v > 7));
        b((rnd(8) << 3) | 1);
        b(0xc0 | (v2 & 7) << 3 | (v & 7));
        break;
    default: /* bts and others by a small register */
        b(0x83), b(0xe1), b(0x7f); /* and ecx, 0x7f */
        static const uint16_t bits[] = {0x0fa3, 0x0fab, 0x0fb3, 0x0fbb};
        insn(rnd(2) ? 8 : 4, 0, bits[rnd(4)], 1, false);
        b(0x1b), b(0xc9); /* sbb ecx, ecx: the other flags are undefined now */
    }
}

static void make(void)
{
    at = code;
    for (unsigned i = 0; i < LENGTH; i++)
        one();
    b(0xe9);
    d32((uint32_t)((tk_word)leave_it - ((tk_word)at + 4)));
}

/* --- running ------------------------------------------------------------------------------ */
static volatile uint32_t n_faults;
static volatile bool lost;

static void on_fault(struct tk_frame *f)
{
    uint64_t a = READ_REG("cr2"), i = (a - VA) / 4096;
    if (i >= PAGES || ++n_faults > 200) {
        tk_say("fault at %p for %p, error %p", f->ip, a, f->error);
        tk_result(false, "only-expected-faults");
        tk_exit();
    }
    uint64_t want = f->error & 2 ? P | W : P;
    if (((f->error & 1) && !(f->error & 2)) || ((va_pt[i] & want) == want))
        lost = true; /* for nothing */
    va_pt[i] |= want;
    __asm__ volatile("invlpg (%0)" : : "r"(a) : "memory");
}

static void execute(uint64_t code_base, uint64_t data_base)
{
    static const int16_t where[] = {40, 4096 - 40, 4096, 2 * 4096 - 20, 2 * 4096 + 300, 3 * 4096 - 60};
    for (unsigned i = 0; i < 6; i++)
        in[base_of[i]] = data_base + (uint64_t)(128 + where[i]);
    in[4] = data_base + 3 * 4096 + 2048;
    wrmsr(0xc0000101, data_base + 2 * 4096 - 250);
    ((void (*)(uint64_t))(code_base + (tk_word)enter))(code_base + (tk_word)code);
    wrmsr(0xc0000101, 0);
}

void tk_main(void)
{
    unsigned bad = 0, faults = 0;
    high_pdpt[510] = (tk_word)tk_pd | P | W;
    tk_pml4[511] = (tk_word)high_pdpt | P | W;
    tk_pml4[VA >> 39 & 511] = (tk_word)va_pdpt | P | W;
    va_pdpt[0] = (tk_word)va_pd | P | W;
    va_pd[0] = (tk_word)va_pt | P | W;
    WRITE_REG("cr4", READ_REG("cr4") | 0x80);
    tk_on(14, on_fault);
    for (unsigned p = 0; p < PROGRAMS && bad < 5; p++) {
        uint64_t low[17];
        static uint8_t memory[sizeof(data)];
        uint32_t at_start = seed;
        make();
        for (unsigned i = 0; i < 17; i++)
            in[i] = rnd(4) ? (uint64_t)rnd(1 << 24) << 40 ^ (uint64_t)rnd(1 << 24) << 20 ^ rnd(1 << 24) : rnd(3) - 1u;
        in[11] = rnd(16);
        in[16] = 2 | (rnd(1 << 12) & FLAGS);
        for (unsigned i = 0; i < sizeof(data); i += 8)
            *(uint64_t *)(first + i) = (uint64_t)rnd(1 << 24) << 40 ^ (uint64_t)rnd(1 << 24) << 18 ^ rnd(1 << 20);
        __builtin_memcpy(data, first, sizeof(data));
        execute(0, (tk_word)data);
        for (unsigned i = 0; i < 17; i++)
            low[i] = out[i];
        __builtin_memcpy(memory, data, sizeof(data));
        /* QEMU TCG 7.2 sometimes has other flags after a fault in the middle: there, without faults */
        for (unsigned turn = tk_tcg() ? 3 : 0; turn < 4; turn++) {
            __builtin_memcpy(data, first, sizeof(data));
            for (unsigned i = 0; i < PAGES; i++) {
                unsigned kind = turn == 3 ? 2 : rnd(4);
                va_pt[i] = ((tk_word)data + i * 4096ul) | (kind ? P : 0) | (kind > 1 ? W : 0) | (rnd(8) ? G : 0);
                if (i == 3) /* a stack that is not there is a double fault on a processor */
                    va_pt[i] |= P | W;
                __asm__ volatile("invlpg (%0)" : : "r"(VA + i * 4096ul) : "memory");
            }
            n_faults = 0;
            execute(HIGH, VA);
            faults += n_faults;
            bool same = !lost;
            for (unsigned i = 0; i < 17; i++) {
                uint64_t a = low[i], c = out[i];
                for (unsigned j = 0; j < 6; j++)
                    if (base_of[j] == i)
                        c = c - VA + (tk_word)data;
                if (i == 4)
                    c = c - VA + (tk_word)data;
                if (i == 16)
                    a &= FLAGS, c &= FLAGS;
                if (a != c) {
                    tk_say("register %u: %p, in the upper half %p", i, a, c);
                    same = false;
                }
            }
            for (unsigned i = 0; i < sizeof(data); i++)
                if (data[i] != memory[i] && (i < 3 * 4096 + 1024 || i >= 3 * 4096 + 2048)) {
                    tk_say("byte %u: %x, in the upper half %x", i, memory[i], data[i]);
                    same = false;
                    break;
                }
            if (!same) {
                tk_say("program %u, seed %u, turn %u%s", p, at_start, turn, lost ? ", a fault for nothing" : "");
                bad++;
                lost = false;
                break;
            }
        }
    }
    tk_say("%u faults", faults);
    CHECK(!bad, "same-in-both-halves");
}
