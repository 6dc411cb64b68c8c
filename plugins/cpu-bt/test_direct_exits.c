/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_direct_exits.c - what comes out of a program that runs natively,
 * and how it goes on.
 */
#include "test_direct.h"

void a_loop_and_its_system_calls_run_natively(void **state)
{
    (void)state;
    begin(__func__);
    put_program(CODE, p_loop);
    natively();
    uint64_t misses = m.c->st.direct_syscalls;
    start(CODE);
    was_native();
    expect_syscall();
    assert_int_equal(m.c->st.direct_syscalls, misses + 1);
    uint64_t after = CODE + (uint64_t)(p_loop_end - p_loop) - 11;
    assert_int_equal(RAX, LOOP_SUM);
    assert_int_equal(m.a->rip, after);
    assert_int_equal(RCX, after);
    assert_int_equal(m.a->gpr[8], 0x8888);
    assert_int_equal(m.a->gpr[10], 0x1010);
    assert_int_equal(m.a->gpr[15], 0x1515);
    assert_int_equal(m.a->gpr[11] & 0xff1, 0x201 | 0x40); /* DEC's ZF, STC */
    assert_int_equal(m.a->rsp, STACK - 64);
    RAX = 40;
    m.a->flags = 0x202;
    go_natively(CMD_SYSRET);
    expect_syscall();
    assert_int_equal(RBX, 77);
    assert_int_equal(m.a->gpr[6], 43);
    assert_int_equal(m.a->gpr[15], 0x1515);
}

PROGRAM(p_state, "mov $0x1122334455667788, %rax\n movq %rax, %xmm5\n fld1\n lea 0x600100(%rip), %rbx\n"
                 "mov $0x600000, %ebx\n wrfsbase %rbx\n mov $0x600040, %ebx\n wrgsbase %rbx\n std\n syscall\n"
                 "pushfq\n pop %r9\n cld\n movq %xmm5, %r12\n fistpll 8(%rbx)\n mov 8(%rbx), %r13\n mov %fs:16, %r14\n mov %gs:16, %r15\n syscall");

void vector_registers_and_bases_survive_an_exit(void **state)
{
    (void)state;
    begin(__func__);
    put_program(CODE, p_state);
    *user64(DATA + 16) = 0xf5f5;
    *user64(DATA + 0x50) = 0x6565;
    start_natively(CODE);
    expect_syscall();
    assert_true(m.a->flags & 0x400);
    assert_int_equal(m.c->seg_base[BT_FS], DATA);
    assert_int_equal(m.c->seg_base[BT_GS], DATA + 0x40);
    go_natively(CMD_SYSRET);
    expect_syscall();
    assert_true(m.a->gpr[9] & 0x400);
    assert_int_equal(m.a->gpr[12], 0x1122334455667788);
    assert_int_equal(m.a->gpr[13], 1);
    assert_int_equal(m.a->gpr[14], 0xf5f5);
    assert_int_equal(m.a->gpr[15], 0x6565);
}

PROGRAM(p_int3, "nop\n int3\n nop");
PROGRAM(p_ud2, "nop\n ud2");
PROGRAM(p_de, "xor %ecx, %ecx\n div %ecx");
PROGRAM(p_hlt, "nop\n hlt");
PROGRAM(p_int80, "mov $5, %eax\n int $0x80\n nop");
PROGRAM(p_int1, "nop\n .byte 0xf1\n nop");
PROGRAM(p_noncanonical, "mov $0x8000000000000000, %rax\n mov (%rax), %rcx");
PROGRAM(p_tf, "pushfq\n orl $0x100, (%rsp)\n popfq\n mov $9, %ebx\n mov $10, %ebx\n mov $11, %ebx\n syscall");
PROGRAM(p_tf_page, "pushfq\n orl $0x100, (%rsp)\n popfq\n mov %ebx, 0x700010\n mov $10, %ebx\n mov $11, %ebx\n syscall");

void exceptions_have_the_right_vector_code_and_rip(void **state)
{
    (void)state;
    begin(__func__);
    natively();
    program_traps(p_int3, 3, 0, CODE + 2);
    program_traps(p_ud2, 6, 0, CODE + 1);
    program_traps(p_de, 0, 0, CODE + 2);
    program_traps(p_hlt, 13, 0, CODE + 1);
    program_traps(p_int80, 0x80, 0, CODE + 7);
    assert_int_equal(RAX, 5);
    program_traps(p_int1, 1, 0, CODE + 2);
    program_traps(p_noncanonical, 13, 0, CODE + 10);
    assert_true(m.c->st.direct_entries >= entries_before + 7);
}

void single_step_traps_after_each_instruction(void **state)
{
    (void)state;
    begin(__func__);
    uint64_t first = CODE + 1 + 7 + 1; /* behind POPF */
    put_program(CODE, p_tf);
    start_natively(CODE);
    expect_trap(1, 0, first + 5);
    assert_int_equal(RBX, 9);
    assert_true(m.a->flags & 0x100);
    assert_true(m.c->dr[6] & 0x4000);
    go(CMD_IRET); /* TF set by the kernel, as a debugger's */
    expect_trap(1, 0, first + 10);
    assert_int_equal(RBX, 10);
    m.a->flags &= ~0x100ull;
    go(CMD_IRET);
    expect_syscall();
    assert_int_equal(RBX, 11);
}

/* The stepped instruction comes out of the helper itself, for a page that is only missing there. */
void single_step_traps_after_a_page_was_fetched(void **state)
{
    (void)state;
    begin(__func__);
    uint64_t first = CODE + 1 + 7 + 1;
    map(0x700000, P | U | W | A | D | NX);
    put_program(CODE, p_tf_page);
    RBX = 77;
    start_natively(CODE);
    expect_trap(1, 0, first + 7);
    assert_int_equal(*user64(0x700010) & 0xffffffff, 77);
    assert_int_equal(RBX, 77);
}

void page_faults_have_the_right_code_and_address(void **state)
{
    (void)state;
    begin(__func__);
    uint64_t none = 0x700000, ro = 0x701000, kernel = 0x702000;
    put_accesses();
    map(ro, P | U | A | NX);
    *pte(kernel) = SECRET | P | W | A | D;
    try_at(READ, none + 0x123);
    expect_pf(4, none + 0x123);
    assert_int_equal(m.a->rip, READ + 1);
    write_at(none + 8, 1);
    expect_pf(6, none + 8);
    assert_int_equal(m.a->rip, WRITE + 1);
    try_at(JUMP, none);
    expect_pf(0x14, none);
    assert_int_equal(m.a->rip, none);
    try_at(READ, ro);
    expect_syscall();
    write_at(ro + 16, 1);
    expect_pf(7, ro + 16);
    try_at(JUMP, ro);
    expect_pf(0x15, ro);
    try_at(READ, kernel);
    expect_pf(5, kernel);
    write_at(kernel, 1);
    expect_pf(7, kernel);
    try_at(JUMP, kernel);
    expect_pf(0x15, kernel);
    try_at(READ, KLIN + SECRET);
    expect_pf(5, KLIN + SECRET);
    was_native();
    assert_int_equal(*at64(SECRET), 0x7777777777777777);
}
