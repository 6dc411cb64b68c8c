/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_direct_copy.c - pages with RDPID: they run natively, from
 * copies (direct_copy.c), RDPID tells the guest's value, and copies follow what
 * is written to their pages.
 */
#include "test_direct.h"
#include <unistd.h>

#define PAGE (CODE + 0x20000)
#define AGAIN (CODE + 0x30000) /* the same page, writable */
#define AUX 0x1234u

PROGRAM(p_rdpid, "mov $100, %ecx\n 1: dec %ecx\n jnz 1b\n .byte 0xf3, 0x0f, 0xc7, 0xf8\n mov $7, %ebx\n syscall");
#define MOV (PAGE + 13) /* the MOV to EBX, SYSCALL and a byte */
#define MOV_VALUE(x) (0x00050f00000000bbull | (uint64_t)(x) << 8)
PROGRAM(p_r15, "mov $100, %ecx\n 1: dec %ecx\n jnz 1b\n .byte 0xf3, 0x41, 0x0f, 0xc7, 0xff\n mov %r15, %rax\n mov $7, %ebx\n syscall");
PROGRAM(p_lookalike, "mov $0xf8c70ff3, %eax\n mov $8, %ebx\n syscall");

static void start_page(const uint8_t *program, size_t n, uint64_t flags)
{
    if (!m.c->vm->direct_rdpid)
        skip();
    m.c->tsc_aux = AUX;
    uint64_t gpa = map(PAGE, flags);
    *pte(AGAIN) = gpa | RW;
    put_bytes(PAGE, program, n);
}
static void run_page(uint64_t rax, uint64_t rbx)
{
    start_natively(PAGE);
    expect_syscall();
    assert_int_equal(RAX, rax);
    assert_int_equal(RBX, rbx);
}
#define START_PAGE(name, flags) start_page(name, (size_t)(name##_end - name), flags)

void rdpid_tells_the_guests_cpu(void **state)
{
    (void)state;
    begin(__func__);
    START_PAGE(p_rdpid, P | U | A);
    for (unsigned i = 0; i < 5; i++) {
        run_page(AUX, 7);
        assert_int_equal(m.c->st.direct_entries, entries_before + (i ? 2 : 3)); /* with RDPID between, and the first fault */
    }
    assert_int_equal(m.c->st.direct_copies, 1);
    START_PAGE(p_r15, P | U | A);
    invlpg(PAGE);
    run_page(AUX, 7);
    assert_int_equal(m.c->st.direct_copies, 2);
}

void copies_follow_the_kernels_stores(void **state)
{
    (void)state;
    begin(__func__);
    START_PAGE(p_rdpid, P | U | A);
    for (unsigned i = 0; i < 20; i++) {
        m.a->arg2 = MOV_VALUE(i);
        go_arg(CMD_STORE, AGAIN + (MOV - PAGE));
        run_page(AUX, i);
        run_page(AUX, i);
    }
    assert_int_equal(m.c->st.direct_copies, 20);
}

void copies_follow_a_programs_stores(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    START_PAGE(p_rdpid, P | U | A);
    for (unsigned i = 0; i < 20; i++) {
        run_page(AUX, i ? i : 7);
        write_at(AGAIN + (MOV - PAGE), MOV_VALUE(i + 1));
        expect_syscall();
    }
}

void copies_follow_devices(void **state)
{
    (void)state;
    begin(__func__);
    START_PAGE(p_rdpid, P | U | A);
    for (unsigned i = 0; i < 20; i++) {
        patch64(MOV, MOV_VALUE(i));
        run_page(AUX, i);
    }
}

/* Wherever in the page it stands, and nothing beside it. */
void the_search_finds_each_rdpid(void **state)
{
    static const uint8_t plain[] = {0xf3, 0x0f, 0xc7, 0xf8}, rex[] = {0xf3, 0x41, 0x0f, 0xc7, 0xff};
    static const uint8_t others[][4] = {{0x66, 0x0f, 0xc7, 0xf8}, {0xf3, 0x0f, 0xc7, 0xf0}, {0xf3, 0x0f, 0xc6, 0xf8}};
    static uint8_t pages[3 * 4096];
    uint8_t *p = (uint8_t *)(((uintptr_t)pages + 4095) & ~(uintptr_t)4095);
    (void)state;
    for (int at = 0; at + 5 <= 4096; at++) {
        memset(p, 0x90, 4096);
        memcpy(p + at, plain, 4);
        assert_int_equal(bt_direct_next_rdpid(p, 0), at + 1);
        assert_int_equal(bt_direct_next_rdpid(p, at + 1), at + 1);
        assert_int_equal(bt_direct_next_rdpid(p, at + 2), -1);
        memcpy(p + at, rex, 5);
        assert_int_equal(bt_direct_next_rdpid(p, 0), at + 2);
        for (unsigned i = 0; i < 3; i++) {
            memset(p, 0x90, 4096);
            memcpy(p + at, others[i], 4);
            assert_int_equal(bt_direct_next_rdpid(p, 0), -1);
        }
    }
    memset(p, 0x90, 4096);
    memcpy(p + 4092, plain, 4);
    assert_int_equal(bt_direct_next_rdpid(p, 0), 4093);
    memcpy(p + 4090, plain, 4);
    memcpy(p + 4094, plain, 4); /* over the end: not in this page */
    assert_int_equal(bt_direct_next_rdpid(p, 0), 4091);
    assert_int_equal(bt_direct_next_rdpid(p, 4092), -1);
}

void what_only_looks_like_rdpid(void **state)
{
    (void)state;
    begin(__func__);
    START_PAGE(p_lookalike, P | U | A);
    uint64_t copies = m.c->st.direct_copies;
    start(PAGE);
    expect_syscall();
    assert_int_equal(RAX, 0xf8c70ff3);
    assert_int_equal(RBX, 8);
    assert_int_equal(m.c->st.direct_copies, copies);
}

void rdpid_in_a_writable_page(void **state)
{
    (void)state;
    begin(__func__);
    START_PAGE(p_rdpid, RW);
    uint64_t copies = m.c->st.direct_copies;
    for (unsigned i = 0; i < 3; i++) {
        start(PAGE);
        expect_syscall();
        assert_int_equal(RAX, AUX);
        assert_int_equal(RBX, 7);
    }
    assert_int_equal(m.c->st.direct_copies, copies);
}

/* It does not run natively, and the next one is on the page that does not either. */
void an_instruction_that_ends_in_such_a_page(void **state)
{
    static const uint8_t f_mov[] = {0xbe, 0x78, 0x56, 0x34, 0x12}; /* to ESI */
    (void)state;
    begin(__func__);
    START_PAGE(p_rdpid, RW);
    map(PAGE - 4096, RW);
    put_bytes(PAGE - 3, f_mov, 3);
    put_bytes(PAGE, f_mov + 3, 2);
    put_bytes(PAGE + 2, p_rdpid, (size_t)(p_rdpid_end - p_rdpid));
    alarm(30);
    for (unsigned i = 0; i < 3; i++) {
        start(PAGE - 3);
        expect_syscall();
        assert_int_equal(RAX, AUX);
        assert_int_equal(RBX, 7);
        assert_int_equal(m.a->gpr[6], 0x12345678);
    }
    alarm(0);
}

void more_pages_with_rdpid_than_copies(void **state)
{
    (void)state;
    begin(__func__);
    START_PAGE(p_rdpid, P | U | A);
    for (unsigned i = 0; i < 2 * DIRECT_COPIES; i++) {
        map(PAGE, P | U | A);
        put_bytes(PAGE, p_rdpid, (size_t)(p_rdpid_end - p_rdpid));
        patch64(MOV, MOV_VALUE(i));
        invlpg(PAGE);
        start(PAGE);
        expect_syscall();
        assert_int_equal(RAX, AUX);
        assert_int_equal(RBX, i);
    }
    assert_int_equal(m.c->st.direct_copies, DIRECT_COPIES);
}
