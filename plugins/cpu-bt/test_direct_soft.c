/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_direct_soft.c - the same programs in the soft tier: what
 * is translated does not call C, over and over.
 */
#include "test_direct.h"

#define TIMES 200u
#define TO (DATA + 0x100)
#define FROM (DATA + 0x800)

#define AGAIN_AND_AGAIN(text) \
    "mov $200, %ebx\n 1: mov $0x600100, %edi\n mov $0x600800, %esi\n mov $24, %ecx\n" text "\n dec %ebx\n jnz 1b\n syscall"
PROGRAM(p_nothing, AGAIN_AND_AGAIN(""));
PROGRAM(p_rep_stosb, AGAIN_AND_AGAIN("mov $0x5a, %eax\n rep stosb"));
PROGRAM(p_rep_stosl, AGAIN_AND_AGAIN("mov $0x12345678, %eax\n rep stosl"));
PROGRAM(p_rep_stosq_few, AGAIN_AND_AGAIN("mov $3, %ecx\n mov $0x12345678, %eax\n rep stosq"));
PROGRAM(p_rep_stosq_many, AGAIN_AND_AGAIN("mov $0x12345678, %eax\n rep stosq"));
PROGRAM(p_rep_none, AGAIN_AND_AGAIN("xor %ecx, %ecx\n rep stosq\n rep movsb"));
PROGRAM(p_rep_movsb, AGAIN_AND_AGAIN("rep movsb"));
PROGRAM(p_rep_movsq, AGAIN_AND_AGAIN("rep movsq"));
PROGRAM(p_movs, AGAIN_AND_AGAIN("movsb\n movsq\n stosl\n lodsw"));
PROGRAM(p_pushf, AGAIN_AND_AGAIN("stc\n pushfq\n pop %rax"));
PROGRAM(p_rdtsc, AGAIN_AND_AGAIN("rdtscp\n rdtsc"));

/* C is called for what the TLB does not have yet, and the system call. */
static void translated(const uint8_t *program, const uint8_t *end, unsigned most)
{
    put_bytes(CODE, program, (size_t)(end - program));
    uint64_t before = m.c->st.c_ops, native = m.c->st.direct_entries;
    start(CODE);
    expect_syscall();
    assert_int_equal(m.c->st.direct_entries, native);
    assert_in_range(m.c->st.c_ops - before, 1, most);
}
#define TRANSLATED(p) translated(p, p##_end, usual + 4)

void what_is_translated_does_not_call_c(void **state)
{
    (void)state;
    begin(__func__);
    m.c->vm->direct_eager = false;
    map(DATA, RW);
    translated(p_nothing, p_nothing_end, TIMES);
    uint64_t before = m.c->st.c_ops;
    start(CODE);
    unsigned usual = (unsigned)(m.c->st.c_ops - before);
    assert_in_range(usual, 1, 20);
    TRANSLATED(p_rep_stosb);
    assert_int_equal(*user64(TO + 16), 0x5a5a5a5a5a5a5a5aull);
    assert_int_equal(*user64(TO + 24), 0);
    TRANSLATED(p_rep_stosl);
    assert_int_equal(*user64(TO + 88), 0x1234567812345678ull);
    assert_int_equal(*user64(TO + 96), 0);
    TRANSLATED(p_rep_stosq_many);
    assert_int_equal(*user64(TO + 184), 0x12345678);
    assert_int_equal(*user64(TO + 192), 0);
    assert_int_equal(m.a->gpr[7], TO + 192);
    *user64(TO + 24) = 7;
    TRANSLATED(p_rep_stosq_few);
    assert_int_equal(*user64(TO + 24), 7);
    assert_int_equal(m.a->gpr[7], TO + 24);
    TRANSLATED(p_rep_none);
    assert_int_equal(m.a->gpr[7], TO);
    assert_int_equal(m.a->gpr[6], FROM);
    for (unsigned i = 0; i < 32; i++)
        *user64(FROM + i * 8) = i + 1;
    TRANSLATED(p_rep_movsb);
    assert_int_equal(*user64(TO + 16), 3);
    assert_int_equal(*user64(TO + 24), 7);
    TRANSLATED(p_rep_movsq);
    assert_int_equal(*user64(TO + 184), 24);
    assert_int_equal(m.a->gpr[6], FROM + 192);
    assert_int_equal(m.a->gpr[7], TO + 192);
    TRANSLATED(p_movs);
    TRANSLATED(p_pushf);
    assert_int_equal(RAX & 0xcd7, 0x003 | (RAX & 0xd4)); /* CF and bit 1; DEC comes later */
    if (!m.c->vm->tsc_ratio)
        TRANSLATED(p_rdtsc);
}

/* Where the TLB does not help it is C, and as right. */
void repeats_that_are_not_plain(void **state)
{
    PROGRAM(p_over_the_page, "mov $0x600ff0, %edi\n mov $32, %ecx\n mov $0x77, %eax\n rep stosb\n mov $9, %ebx\n syscall");
    PROGRAM(p_backwards, "std\n mov $0x600118, %edi\n mov $4, %ecx\n mov $0x66, %eax\n rep stosq\n cld\n syscall");
    PROGRAM(p_to_nowhere, "mov $0x600800, %esi\n mov $0x700000, %edi\n mov $5, %ecx\n rep movsb");
    (void)state;
    begin(__func__);
    m.c->vm->direct_eager = false;
    map(DATA, RW);
    map(DATA + 4096, RW);
    for (unsigned i = 0; i < 2; i++) { /* again, with what is in the TLB now */
        *user64(DATA + 0xff8) = *user64(DATA + 4096) = *user64(DATA + 4104) = *user64(DATA + 4112) = 0;
        put_program(CODE, p_over_the_page);
        start(CODE);
        expect_syscall();
        assert_int_equal(RBX, 9);
        assert_int_equal(*user64(DATA + 0xff8), 0x7777777777777777ull);
        assert_int_equal(*user64(DATA + 4104), 0x7777777777777777ull);
        assert_int_equal(*user64(DATA + 4112), 0);
        put_program(CODE, p_backwards);
        start(CODE);
        expect_syscall();
        assert_int_equal(m.a->gpr[7], DATA + 0xf8);
        assert_int_equal(*user64(DATA + 0x100), 0x66);
        assert_int_equal(*user64(DATA + 0x118), 0x66);
        put_program(CODE, p_to_nowhere);
        start(CODE);
        expect_pf(6, DATA + 0x100000);
        assert_int_equal(m.a->gpr[6], DATA + 0x800);
        assert_int_equal(m.a->gpr[7], DATA + 0x100000);
        assert_int_equal(RCX, 5);
    }
}
