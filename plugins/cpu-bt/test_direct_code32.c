/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_direct_code32.c - 32-bit programs that run natively.
 */
#include "test_direct.h"

#define PROGRAM32(name, text) PROGRAM(name, ".code32\n" text "\n.code64\n")
#define SIZE(name) ((uint64_t)(name##_end - name))
#define TLS(i) at64(GDT + (12 + (i)) * 8)
#define FLAT_AT(base) (0x00cff3000000ffffull | ((uint64_t)(base)&0xffffff) << 16 | (uint64_t)(base) >> 24 << 56)
/* Without the stack, which is high. */
#define TO_DATA "mov $0x2b, %edi\n mov %edi, %ds\n mov %edi, %es\n"

static void set_start32(uint64_t rip)
{
    set_start(rip);
    m.a->cs = 0x23;
}
static void start32(uint64_t rip)
{
    set_start32(rip);
    go(CMD_IRET);
}
static void start32_natively(uint64_t rip)
{
    set_start32(rip);
    go_natively(CMD_IRET);
}
#define expect32(v, e, at) expect_trap_in(0x23, v, e, at)
#define program32_traps(name, v, e, at)                                                                                \
    do {                                                                                                               \
        put_program(CODE, name);                                                                                       \
        start32(CODE);                                                                                                 \
        expect32(v, e, at);                                                                                            \
    } while (0)
static void set_null(unsigned seg)
{
    m.c->seg[seg] = (struct hvx_segment){.attr = 0x100};
    bt_seg_update(m.c, seg);
    bt_mode_update(m.c);
}
static void begin32(const char *name)
{
    begin(name);
    if (!m.c->vm->direct32) {
        print_message("  skipped: no 32-bit code on this host\n");
        skip();
    }
}

PROGRAM32(p32_loop, TO_DATA "xor %eax, %eax\n mov $30000, %ecx\n 1: add %ecx, %eax\n dec %ecx\n jnz 1b\n"
                    "push %eax\n pop 0x600010\n mov $0xffffffff, %ebx\n inc %ebx\n mov $0x1234, %ebp\n stc\n int $0x80\n"
                    "add $3, %eax\n mov %esp, %esi\n int $0x80");

void code32_and_its_system_calls(void **state)
{
    (void)state;
    begin32(__func__);
    put_program(CODE, p32_loop);
    *user64(STACK - 72) = 0;
    natively();
    uint64_t calls = m.c->st.direct_syscalls;
    start32(CODE);
    was_native();
    assert_int_equal(m.c->st.direct_syscalls, calls + 1);
    uint64_t after = CODE + SIZE(p32_loop) - 7;
    expect32(0x80, 0, after);
    assert_int_equal(RAX, 450015000);
    assert_int_equal((uint32_t)*user64(DATA + 16), 450015000);
    assert_int_equal(RBX, 0);
    assert_int_equal(m.a->gpr[5], 0x1234);
    assert_int_equal(m.a->flags & 0xcd5, 0x55); /* INC's ZF, PF, AF, STC */
    assert_int_equal(m.c->seg[BT_DS].selector, 0x2b);
    assert_int_equal(m.a->rsp, STACK - 64);
    RAX = 40;
    go_natively(CMD_IRET);
    expect32(0x80, 0, after + 7);
    assert_int_equal(RAX, 43);
    assert_int_equal(m.a->gpr[6], STACK - 64);
    /* 64-bit code in the same address space, and back */
    put_program(GOOD, p_loop);
    good_program_still_runs();
    start32(CODE);
    expect32(0x80, 0, after);
    assert_int_equal(m.c->st.direct_killed + m.c->st.direct_meddled, 0);
}

PROGRAM32(p32_tls, TO_DATA "mov $0x63, %eax\n mov %eax, %gs\n 1: mov %gs:8, %ebx\n mov %gs, %ecx\n mov %fs, %edx\n int $0x80\n jmp 1b");
PROGRAM32(p32_fs, "mov $0x73, %eax\n mov %eax, %fs\n mov %fs:8, %ebx\n int $0x80");
PROGRAM(p_tls64, "mov $0x63, %eax\n mov %eax, %gs\n mov %gs:8, %ebx\n syscall");

void code32_finds_its_tls_entries(void **state)
{
    (void)state;
    begin32(__func__);
    put_program(CODE, p32_tls);
    put_program(CODE + 0x100, p32_fs);
    map(CODE + 0x1000, RW); /* SYSCALL makes it a soft page for 32-bit code */
    put_program(CODE + 0x1000, p_tls64);
    *user64(DATA + 8) = 0x11, *user64(DATA + 0x48) = 0x22, *user64(DATA + 0x88) = 0x33;
    uint64_t gp = CODE + 5 + 2 * 2 + 5;
    start32(CODE); /* there is none */
    expect32(13, 0x60, gp);
    *TLS(0) = FLAT_AT(DATA);
    start32_natively(CODE);
    expect32(0x80, 0, CODE + SIZE(p32_tls) - 2);
    assert_int_equal(RBX, 0x11);
    assert_int_equal(RCX, 0x63);
    assert_int_equal(m.a->gpr[2], 0);
    assert_int_equal(m.c->seg[BT_GS].selector, 0x63);
    assert_int_equal(m.c->seg[BT_GS].base, DATA);
    go_natively(CMD_IRET);
    assert_int_equal(RBX, 0x11);
    /* Another thread's, as it were: GS keeps what it has until it is loaded. */
    *TLS(0) = FLAT_AT(DATA + 0x40);
    go(CMD_IRET);
    assert_int_equal(RBX, 0x11);
    start32_natively(CODE);
    assert_int_equal(RBX, 0x22);
    *TLS(2) = FLAT_AT(DATA + 0x80);
    start32_natively(CODE + 0x100);
    assert_int_equal(m.a->vec, 0x80);
    assert_int_equal(RBX, 0x33);
    /* no 32 bits, a system segment, not there: as the guest's processor takes them */
    *TLS(2) = FLAT_AT(DATA + 0x80) & ~(1ull << 54);
    start32(CODE + 0x100);
    assert_int_equal(m.a->vec, 0x80);
    assert_int_equal(RBX, 0x33);
    *TLS(2) = FLAT_AT(DATA) & ~(1ull << 44);
    start32(CODE + 0x100);
    expect32(13, 0x70, CODE + 0x105);
    *TLS(2) = FLAT_AT(DATA) & ~(1ull << 47);
    start32(CODE + 0x100);
    expect32(11, 0x70, CODE + 0x105);
    /* read-only, and with a limit */
    set_null(BT_FS); /* what it has is not what the helper could load */
    *TLS(2) = (FLAT_AT(DATA) & ~(1ull << 55) & ~(1ull << 41) & ~0xf00000000ffffull) | 11;
    start32_natively(CODE + 0x100);
    assert_int_equal(m.a->vec, 0x80);
    assert_int_equal(RBX, 0x11);
    set_null(BT_FS);
    *TLS(2) -= 1;
    start32(CODE + 0x100);
    expect32(13, 0, CODE + 0x107);
    /* 64-bit programs get no other's */
    *TLS(2) = 0;
    start(CODE + 0x1000);
    expect_syscall();
    assert_int_equal(RBX, 0x22);
    *TLS(0) = 0;
    start(CODE + 0x1000);
    expect_trap(13, 0x60, CODE + 0x1005);
    assert_int_equal(m.c->st.direct_killed + m.c->st.direct_meddled + m.c->st.direct_failures, 0);
}

PROGRAM(p_segs64, "mov $0x2b, %eax\n mov %eax, %ds\n mov %eax, %fs\n mov $0x33, %eax\n mov %eax, %es\n syscall\n"
                  "mov %ds, %ebx\n mov %es, %ecx\n mov %fs, %esi\n xor %eax, %eax\n mov %eax, %es\n syscall");
PROGRAM32(p32_ss, TO_DATA "mov $0x63, %eax\n mov %eax, %ss\n nop\n mov %ss, %ebx\n int $0x80");

void segments_are_the_guests(void **state)
{
    (void)state;
    begin32(__func__);
    put_program(CODE, p_segs64);
    put_program(CODE + 0x100, p32_ss);
    start_natively(CODE);
    expect_syscall();
    assert_int_equal(m.c->seg[BT_DS].selector, 0x2b);
    assert_int_equal(m.c->seg[BT_ES].selector, 0x33);
    assert_int_equal(m.c->seg[BT_FS].selector, 0x2b);
    go(CMD_SYSRET);
    expect_syscall();
    assert_int_equal(RBX, 0x2b);
    assert_int_equal(m.a->gpr[6], 0x2b);
    assert_int_equal(m.c->seg[BT_ES].selector, 0);
    *at64(GDT + 40) &= ~(1ull << 47); /* the guest has no 0x2b any more */
    start(CODE);
    assert_int_equal(m.a->vec, 12); /* IRET's */
    *at64(GDT + 40) |= 1ull << 47;
    *TLS(0) = FLAT_AT(0);
    start32_natively(CODE + 0x100);
    assert_int_equal(m.a->vec, 0x80);
    assert_int_equal(RBX, 0x63);
    assert_int_equal(m.a->ss, 0x63);
}

PROGRAM32(p32_int3, "nop\n int3\n nop");
PROGRAM32(p32_int_3, "nop\n .byte 0xcd, 3\n nop");
PROGRAM32(p32_int_4, "nop\n .byte 0xcd, 4\n nop");
PROGRAM32(p32_into, "mov $0x7fffffff, %eax\n inc %eax\n into\n nop");
PROGRAM32(p32_bound, TO_DATA "movl $3, 0x600000\n movl $5, 0x600004\n mov $6, %eax\n bound %eax, 0x600000\n");
PROGRAM32(p32_null, "mov 0x600000, %eax");
PROGRAM32(p32_wrap, TO_DATA "mov $0xfffffff0, %ebx\n mov 0x600110(%ebx), %eax\n int $0x80");
PROGRAM32(p32_aam0, "mov $7, %eax\n aam $0");
PROGRAM32(p32_old, TO_DATA "mov $0x19, %eax\n aam\n mov %eax, %ebx\n mov $0x9a, %eax\n daa\n mov %eax, %ecx\n pusha\n popa\n int $0x80");

void code32_exceptions(void **state)
{
    (void)state;
    begin32(__func__);
    natively();
    program32_traps(p32_int3, 3, 0, CODE + 2);
    program32_traps(p32_int_3, 3, 0, CODE + 3);
    start(CODE); /* the same in 64-bit code */
    expect_trap(3, 0, CODE + 3);
    program32_traps(p32_int_4, 4, 0, CODE + 3);
    start(CODE);
    expect_trap(4, 0, CODE + 3);
    program32_traps(p32_into, 4, 0, CODE + 7);
    program32_traps(p32_bound, 5, 0, CODE + SIZE(p32_bound) - 6);
    program32_traps(p32_aam0, 0, 0, CODE + 5);
    put_program(CODE, p32_wrap);
    *user64(DATA + 0x100) = 0x77;
    start32(CODE);
    assert_int_equal(m.a->vec, 0x80);
    assert_int_equal(RAX, 0x77);
    put_program(CODE, p32_old);
    start32(CODE);
    assert_int_equal(m.a->vec, 0x80);
    assert_int_equal(RBX, 0x205);
    assert_int_equal(RCX, 0);
    put_program(CODE, p32_null);
    set_null(BT_DS);
    start32(CODE);
    expect32(13, 0, CODE);
    was_native();
    assert_int_equal(m.c->st.direct_killed + m.c->st.direct_meddled, 0);
}

PROGRAM32(p32_call_amd, TO_DATA "mov $9, %eax\n mov $0x5555, %ebp\n mov $0xcccc, %ecx\n mov $0x600000, %ebx\n call *%ebx\n int $0x80");
PROGRAM32(p32_make, TO_DATA "mov $0xc3900f90, %eax\n mov %eax, 0x700000\n movb $0x05, 0x700002\n mov $0xcccc, %ecx\n mov $0x5555, %ebp\n"
                    "mov $9, %eax\n call 2f\n 2: mov $0x700000, %ebx\n call *%ebx");

void fast_system_calls_of_code32(void **state)
{
    (void)state;
    begin32(__func__);
    if (!m.c->vm->host_amd) {
        print_message("  skipped: SYSCALL is #UD in 32-bit code here\n");
        skip();
    }
    static const uint8_t f_call[] = {0x90, 0x0f, 0x05, 0xc3};
    *pte(DATA) &= ~NX;
    put_bytes(DATA, f_call, sizeof(f_call));
    put_program(CODE, p32_call_amd);
    start32_natively(CODE);
    expect_syscall();
    assert_int_equal(m.a->rip, DATA + 3); /* RCX: it tells where it stood */
    assert_int_equal(m.c->leave_after, 0);
    assert_int_equal(RAX, 9);
    assert_int_equal(m.a->gpr[5], 0x5555);
    m.a->cs = 0x23, m.a->ss = 0x2b;
    go_natively(CMD_IRET);
    expect32(0x80, 0, CODE + SIZE(p32_call_amd));
    /* from a page where it was written later: it is a system call all the same, with what Linux looks at */
    map(0x700000, RW);
    put_program(CODE, p32_make);
    start32_natively(CODE);
    expect_syscall();
    assert_int_equal(RAX, 9);
    assert_int_equal(m.a->gpr[5], 0x5555);
    assert_int_equal(m.a->rsp, STACK - 64 - 8);
    assert_int_equal(m.c->st.direct_killed + m.c->st.direct_meddled, 0);
}

PROGRAM32(p32_gate_to, TO_DATA "mov $0x11223344, %eax\n ljmp $0x33, $0x400100");
PROGRAM(p_gate64, "mov $0x123456789abcdef0, %r9\n shl $4, %rax\n push $0x23\n push $0x400200\n lretq");
PROGRAM32(p32_gate_back, "lea 1(%eax), %ebx\n mov %cs, %ecx\n int $0x80");

void from_32_to_64_bits_and_back(void **state)
{
    (void)state;
    begin32(__func__);
    put_program(CODE, p32_gate_to);
    put_program(CODE + 0x100, p_gate64);
    put_program(CODE + 0x200, p32_gate_back);
    *user64(STACK - 128) = 0;
    natively();
    for (unsigned i = 0; i < 10; i++) {
        start32(CODE);
        expect32(0x80, 0, CODE + 0x200 + SIZE(p32_gate_back));
        assert_int_equal(RBX, 0x12233441);
        assert_int_equal(RCX, 0x23);
        assert_int_equal(m.a->gpr[9], 0x123456789abcdef0);
    }
    was_native();
    start(CODE + 0x100); /* begun in 64-bit code */
    assert_int_equal(m.a->vec, 0x80);
    assert_int_equal(m.a->cs, 0x23);
    assert_int_equal(m.c->st.direct_killed + m.c->st.direct_meddled, 0);
}
