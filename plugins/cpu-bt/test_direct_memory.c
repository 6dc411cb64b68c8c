/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_direct_memory.c - helpers follow the guest's page tables, and have
 * their limits.
 */
#define _GNU_SOURCE
#include "test_direct.h"
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#define X 0x800000ull
void a_changed_entry_holds_after_invlpg(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    uint64_t p1 = map(X, RW | NX), p2 = new_page();
    *at64(p1) = 11, *at64(p2) = 22;
    expect_read(X, 11);
    was_native();
    *pte(X) = p2 | RW | NX;
    invlpg(X);
    expect_read(X, 22);
    was_native();
    *pte(X) = 0;
    invlpg(X);
    try_at(READ, X);
    expect_pf(4, X);
    *pte(X) = p1 | RW | NX; /* from not present: no flush is needed */
    expect_read(X, 11);
    *pte(X) = p1 | P | W | A | D | NX; /* the kernel's now */
    invlpg(X);
    try_at(READ, X);
    expect_pf(5, X);
    *pte(X) = p1 | RW; /* executable: no flush is needed */
    static const uint8_t code[] = {0x0f, 0x05};
    put_bytes(X, code, sizeof(code));
    try_at(JUMP, X);
    expect_syscall();
    was_native();
    *pte(X) = p1 | RW | NX;
    invlpg(X);
    try_at(JUMP, X);
    expect_pf(0x15, X);
}

void write_protection_and_copy_on_write(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    uint64_t p1 = map(X, RW | NX), p2 = new_page();
    write_at(X, 5);
    expect_syscall();
    was_native();
    assert_int_equal(*at64(p1), 5);
    *pte(X) = p1 | P | U | A | D | NX;
    invlpg(X);
    write_at(X, 6);
    expect_pf(7, X);
    assert_int_equal(*at64(p1), 5);
    memcpy(m.h.ram + p2, m.h.ram + p1, 4096);
    *pte(X) = p2 | RW | NX;
    invlpg(X);
    go_natively(CMD_IRET); /* the store again */
    expect_syscall();
    assert_int_equal(*at64(p1), 5);
    assert_int_equal(*at64(p2), 6);
    *pte(X) = p2 | P | U | A | D | NX;
    invlpg(X);
    expect_read(X, 6);
    *pte(X) = p2 | RW | NX; /* more rights: no flush is needed */
    write_at(X, 7);
    expect_syscall();
    assert_int_equal(*at64(p2), 7);
}

void accessed_and_dirty_are_set_and_set_again(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    uint64_t p1 = map(X, P | W | U | NX);
    for (unsigned round = 0; round < 3; round++) {
        *pte(X) = p1 | P | W | U | NX;
        invlpg(X);
        expect_read(X, *at64(p1));
        assert_int_equal(*pte(X) & (A | D), A);
        write_at(X, round + 100);
        expect_syscall();
        assert_int_equal(*pte(X) & (A | D), A | D);
        *pte(X) &= ~D;
        invlpg(X);
        expect_read(X, round + 100);
        assert_int_equal(*pte(X) & (A | D), A);
        write_at(X, round + 200);
        expect_syscall();
        assert_int_equal(*pte(X) & (A | D), A | D);
        was_native();
    }
    assert_true(*entry(m.root, X, 1) & A);
    assert_true(*entry(m.root, X, 3) & A);
}

/* Neighbours are mapped along with a page that is touched, but nobody has accessed them. */
void pages_nearby_are_not_marked_accessed(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    for (unsigned i = 0; i < 16; i++)
        map(X + i * 4096, P | W | U | NX);
    write_at(X + 5 * 4096, 1);
    expect_syscall();
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(*pte(X + i * 4096) & (A | D), i == 5 ? A | D : 0);
}

void large_pages(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    uint64_t lin = 0x40000000, one = 0x2000000, two = 0x2200000, *e = entry(m.root, lin, 1);
    *e = one | P | W | U | PS | NX;
    *at64(two + 0x1ff000) = 22;
    write_at(lin + 0x1ff000, 11);
    expect_syscall();
    was_native();
    assert_int_equal(*e & (A | D), A | D);
    assert_int_equal(*at64(one + 0x1ff000), 11);
    write_at(lin + 0x1008, 12);
    expect_syscall();
    assert_int_equal(*at64(one + 0x1008), 12);
    *e = two | P | W | U | A | PS | NX;
    invlpg(lin); /* any address in it will do */
    expect_read(lin + 0x1ff000, 22);
    was_native();
    assert_int_equal(*e & (A | D), A);
    write_at(lin + 0x1000, 13);
    expect_syscall();
    assert_int_equal(*e & (A | D), A | D);
    assert_int_equal(*at64(two + 0x1000), 13);
    *e = 0;
    invlpg(lin + 0x5000);
    try_at(READ, lin + 0x1ff000);
    expect_pf(4, lin + 0x1ff000);
}

static void spaces(uint64_t no_flush)
{
    uint64_t tag = m.pcid ? 1 : 0, root[2], page[2], where = X;
    root[0] = m.root;
    root[1] = new_root();
    for (uint64_t l = CODE; l < CODE + 4096; l += 4096)
        *entry(root[1], l, 0) = *pte(l);
    *entry(root[1], STACK - 4096, 0) = *pte(STACK - 4096);
    put_accesses();
    for (unsigned i = 0; i < 2; i++) {
        page[i] = new_page();
        *entry(root[i], where, 0) = page[i] | RW | NX;
        *at64(page[i]) = 1000 * (i + 1);
    }
    for (unsigned k = 0; k < 40; k++) {
        unsigned i = k & 1;
        go_arg(CMD_CR3, root[i] | (i + 1) * tag | (k > 1 ? no_flush : 0));
        expect_read(where, 1000 * (i + 1) + k / 2);
        was_native();
        write_at(where, 1000 * (i + 1) + k / 2 + 1);
        expect_syscall();
        assert_int_equal(*at64(page[i]), 1000 * (i + 1) + k / 2 + 1);
    }
    /* Changed while another space is current: its next flush shows it. */
    uint64_t other = new_page();
    *at64(other) = 4444;
    *entry(root[0], where, 0) = other | RW | NX;
    go_arg(CMD_CR3, root[0] | tag);
    expect_read(where, 4444);
    was_native();
    /* Two roots that share a table. */
    *at64(root[1] + (where >> 39 & 511) * 8) = *at64(root[0] + (where >> 39 & 511) * 8);
    go_arg(CMD_CR3, root[1] | 2 * tag);
    expect_read(where, 4444);
    *entry(root[0], where, 0) = 0;
    invlpg(where);
    try_at(READ, where);
    expect_pf(4, where);
    go_arg(CMD_CR3, root[0] | tag);
    try_at(READ, where);
    expect_pf(4, where);
}
void address_spaces_stay_apart(void **state)
{
    (void)state;
    begin(__func__);
    spaces(0);
}
void address_spaces_with_pcids(void **state)
{
    (void)state;
    begin_pcid(__func__);
    spaces(0);
}
void address_spaces_with_pcids_kept(void **state)
{
    (void)state;
    begin_pcid(__func__);
    spaces(1ull << 63);
}

/* More spaces than helpers: each helper is emptied for the next. */
void helpers_are_handed_on(void **state)
{
    (void)state;
    begin(__func__);
    uint64_t root[11], page[11];
    put_accesses();
    for (unsigned i = 0; i < 11; i++) {
        root[i] = i ? new_root() : m.root;
        *entry(root[i], CODE, 0) = *pte(CODE);
        *entry(root[i], X + i * 4096, 0) = (page[i] = new_page()) | RW | NX;
        *at64(page[i]) = i + 1;
    }
    for (unsigned k = 0; k < 44; k++) {
        unsigned i = k * 7 % 11;
        go_arg(CMD_CR3, root[i]);
        expect_read(X + i * 4096, i + 1);
        was_native();
        try_at(READ, X + (i ? i - 1 : 10) * 4096); /* what another space has there */
        expect_pf(4, X + (i ? i - 1 : 10) * 4096);
    }
    assert_int_equal(m.c->st.direct_lost, 0);
}

/* mov $1, %eax; ret - for ring 0, which has it translated */
static const uint8_t f_one[] = {0xb8, 1, 0, 0, 0, 0xc3};
void translated_pages_that_a_program_writes(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    map(X, RW);
    put_bytes(X, f_one, sizeof(f_one));
    for (unsigned round = 0; round < 5; round++) {
        go_arg(CMD_CALL, X);
        assert_int_equal(RAX, round ? 100 + round - 1 : 1);
        expect_read(X, 0xc300000000b8ull | (round ? 100 + round - 1 : 1) << 8);
        was_native();
        uint64_t before = m.c->st.direct_uncoded;
        write_at(X, 0xc300000000b8ull | (100 + round) << 8);
        expect_syscall();
        was_native();
        assert_true(m.c->st.direct_uncoded > before);
        write_at(X, 0xc300000000b8ull | (100 + round) << 8); /* no translation any more */
        expect_syscall();
        assert_int_equal(m.c->st.direct_uncoded, before + 1);
    }
}

/* The program patches its own immediate, 50 times. */
PROGRAM(p_self, "xor %ebx, %ebx\n mov $50, %ecx\n 1: mov %ecx, 2f+1(%rip)\n 2: mov $0, %edx\n add %rdx, %rbx\n dec %ecx\n jnz 1b\n syscall");
void self_modifying_programs(void **state)
{
    (void)state;
    begin(__func__);
    put_program(CODE, p_self);
    for (unsigned i = 0; i < 3; i++) {
        start_natively(CODE);
        expect_syscall();
        assert_int_equal(RBX, 50 * 51 / 2);
    }
}

/* The kernel's own stores to a page that a program has, and that was code. */
void kernel_and_program_share_memory(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    uint64_t p1 = map(X, RW);
    for (unsigned i = 0; i < 10; i++) {
        m.a->arg2 = i + 1;
        go_arg(CMD_STORE, X);
        expect_read(X, i + 1);
        write_at(X, 0xc300000000b8ull | i << 8);
        expect_syscall();
        go_arg(CMD_CALL, X);
        assert_int_equal(RAX, i);
        assert_int_equal(*at64(p1) >> 8 & 0xff, i);
    }
}

/* --- limits ------------------------------------------------------------------------------------------------------ */
PROGRAM(p_touch, "1: incq (%rdi)\n add %rsi, %rdi\n dec %rcx\n jnz 1b\n syscall");
static void touch(uint64_t lin, uint64_t step, uint64_t n)
{
    set_start(CODE);
    m.a->gpr[7] = lin;
    m.a->gpr[6] = step;
    RCX = n;
    go_natively(CMD_IRET);
    expect_syscall();
    assert_int_equal(m.a->gpr[7], lin + n * step);
}

#define POOL 1024u
#define N_SCATTERED (DIRECT_MAX_PAGES + 5000u)
void more_scattered_pages_than_a_helper_has(void **state)
{
    (void)state;
    begin(__func__);
    uint64_t lin = 0x100000000, pool = m.next_page, sum = 0;
    put_program(CODE, p_touch);
    m.next_page += POOL * 4096;
    for (unsigned i = 0; i < N_SCATTERED; i++)
        *pte(lin + i * 4096ull) = (pool + (i * 7 + i / POOL) % POOL * 4096) | RW | NX;
    for (unsigned round = 0; round < 3; round++)
        touch(lin, 4096, N_SCATTERED);
    for (unsigned i = 0; i < POOL; i++)
        sum += *at64(pool + i * 4096ull);
    assert_int_equal(sum, 3 * N_SCATTERED);
    assert_true(m.c->direct->current->n_pages <= DIRECT_MAX_PAGES + 512);
    assert_int_equal(m.c->st.direct_lost, 0);
    print_message("  %u pages, failed orders: %llu\n", N_SCATTERED, (unsigned long long)m.c->st.direct_failures);
}

void more_regions_than_there_are(void **state)
{
    (void)state;
    begin(__func__);
    uint64_t lin = 0x10000000000, n = DIRECT_REGIONS + 100, gpa = new_page(), table = new_table();
    put_program(CODE, p_touch);
    *at64(table) = gpa | RW | NX;
    for (unsigned i = 0; i < n; i++)
        *entry(m.root, lin + ((uint64_t)i << 21), 1) = table | P | W | U | A;
    for (unsigned round = 0; round < 2; round++)
        touch(lin, 1 << 21, n);
    assert_int_equal(*at64(gpa), 2 * n);
    assert_int_equal(m.c->st.direct_lost, 0);
}

/* The host refuses: what was mapped goes, and the program goes on. */
void a_helper_that_gets_no_more_memory(void **state)
{
    (void)state;
    begin(__func__);
    uint64_t lin = 0x100000000, pool = m.next_page, sum = 0;
    put_accesses();
    expect_read(DATA, 0);
    struct direct_proc *p = current_proc();
    struct rlimit64 { uint64_t cur, max; } lim = {6 << 20, 6 << 20};
    assert_non_null(p);
    if (syscall(SYS_prlimit64, p->pid, 9 /* RLIMIT_AS */, &lim, NULL)) {
        print_message("  skipped: cannot limit a helper: %s\n", strerror(errno));
        skip();
    }
    put_program(CODE, p_touch);
    m.next_page += POOL * 4096;
    for (unsigned i = 0; i < 3 * POOL; i++)
        *pte(lin + i * 4096ull) = (pool + i * 7 % POOL * 4096) | RW | NX;
    for (unsigned round = 0; round < 3; round++)
        touch(lin, 4096, 3 * POOL);
    for (unsigned i = 0; i < POOL; i++)
        sum += *at64(pool + i * 4096ull);
    assert_int_equal(sum, 9 * POOL);
    assert_true(m.c->st.direct_failures > 0);
}

void pages_below_64_kib(void **state)
{
    static const uint8_t f_syscall[] = {0x0f, 0x05};
    (void)state;
    begin(__func__);
    put_accesses();
    for (uint64_t lin = 0; lin < 0x11000; lin += 4096) {
        map(lin, RW);
        *user64(lin + 8) = lin + 1;
        expect_read(lin + 8, lin + 1);
        write_at(lin + 8, lin + 2);
        expect_syscall();
        assert_int_equal(*user64(lin + 8), lin + 2);
        put_bytes(lin + 0x20, f_syscall, 2);
        try_at(JUMP, lin + 0x20);
        expect_syscall();
        assert_int_equal(m.a->rip, lin + 0x22);
    }
    was_native();
    assert_int_equal(m.c->st.direct_lost, 0);
}

/* The guest has something of its own where a helper has its zone. */
void pages_where_a_zone_is(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    expect_read(DATA, 0);
    struct direct_proc *p = current_proc();
    assert_non_null(p);
    uint64_t base = p->base;
    for (uint64_t off = 0; off < sizeof(struct direct_zone); off += 4096) {
        map(base + off, RW);
        *user64(base + off + 16) = off + 1;
    }
    for (uint64_t off = 0; off < sizeof(struct direct_zone); off += 4096) {
        try_at(READ, base + off + 16);
        expect_syscall();
        assert_int_equal(RBX, off + 1);
        write_at(base + off + 24, off + 2);
        expect_syscall();
        assert_int_equal(*user64(base + off + 24), off + 2);
    }
    put_program(base, p_loop);
    start(base);
    expect_syscall();
    assert_int_equal(RAX, LOOP_SUM);
    assert_int_equal(m.c->st.direct_lost, 0);
    assert_int_equal(m.c->st.direct_meddled, 0);
    for (uint64_t off = 0; off < sizeof(struct direct_zone); off += 4096)
        *pte(base + off) = 0;
    go_arg(CMD_CR3, m.root);
    natively();
    expect_read(DATA, 0);
    was_native();
}
