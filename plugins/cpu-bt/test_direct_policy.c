/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_direct_policy.c - which programs run natively, as direct.c
 * decides when the kernel lets one go on. The test says how long it ran, and
 * what the clock is compared with; nothing is measured.
 */
#include "test_direct.h"

#define UNIT 256ull /* cycles: direct.c counts in these */
/* Between two entries of the kernel, natively. */
#define MUCH_COMING_AND_GOING (70 * UNIT)
#define SOME_COMING_AND_GOING (150 * UNIT) /* a web server's */
#define LITTLE (2000 * UNIT)
#define HARDLY_ANY_TIME (20 * UNIT)

static struct direct_space *s;

/* A vCPU that is about to run a program at GOOD, in an address space of which nothing is known. */
static void begin_policy(const char *name)
{
    begin(name);
    put_program(GOOD, p_loop);
    m.c->vm->direct_eager = false;
    struct hvx_vcpu_regs *r = test_host_get(&m.h);
    r->cr4 = m.c->cr4;
    r->rip = GOOD;
    r->rflags = 0x202;
    r->gpr[HVX_RSP] = STACK - 64;
    test_segment(&r->seg[HVX_CS], CS_PROGRAM, 0xa0fb);
    test_segment(&r->seg[HVX_SS], SS_PROGRAM, 0xc0f3);
    r->cr3 = m.root;
    r->tr.base = KLIN + TSS;
    if (!test_host_set(&m.h, r))
        fail_msg("%s", m.h.log);
    s = bt_direct_space(m.c);
    assert_false(s->direct);
}

/* The kernel lets it go on, after it ran for so long natively. */
static bool after_native(uint64_t cycles)
{
    m.c->direct->ran = cycles;
    return bt_direct_wanted(m.c, true);
}
/* Likewise in the soft tier, with nothing new to translate. */
static bool after_soft(uint64_t cycles)
{
    m.c->user_ran = cycles;
    m.c->user_from = 0;
    return bt_direct_wanted(m.c, true);
}
/* It is left in the soft tier for `hold` cycles; here that is until the test says that they are over. */
static void expect_held(void)
{
    assert_true(s->hold > 0);
    s->hold = ~0ull;
}
static void hold_is_over(void) { s->hold = 0; }

/* True: it came to run natively, within `most` calls of the kernel. */
static bool comes_natively(uint64_t cycles, unsigned most)
{
    while (most--)
        if (after_soft(cycles))
            return true;
    return false;
}
/* How many calls of the kernel until it is sent to the soft tier. */
static unsigned stays_natively(uint64_t cycles, unsigned most)
{
    unsigned n = 0;
    while (n < most && after_native(cycles))
        n++;
    return n;
}

void who_pays_runs_natively(void **state)
{
    (void)state;
    begin_policy(__func__);
    assert_false(comes_natively(HARDLY_ANY_TIME, 1000));
    assert_true(comes_natively(LITTLE, 1000));
    assert_int_equal(stays_natively(LITTLE, 100000), 100000);
    assert_false(s->probing);
    uint64_t left = m.c->st.direct_left;
    assert_in_range(stays_natively(HARDLY_ANY_TIME, 1000), 1, 200);
    assert_false(s->probing);
    assert_int_equal(m.c->st.direct_left, left + 1);
    expect_held();
    assert_false(comes_natively(LITTLE, 1000));
    hold_is_over();
    assert_true(comes_natively(LITTLE, 1000));
}

void much_coming_and_going_is_tried_in_the_soft_tier(void **state)
{
    (void)state;
    begin_policy(__func__);
    hold_is_over();
    assert_true(comes_natively(LITTLE, 1000));
    unsigned first = stays_natively(MUCH_COMING_AND_GOING, 100000);
    assert_in_range(first, 1000, 10000);
    assert_false(s->direct);
    assert_true(s->probing);
    assert_int_equal(m.c->st.direct_left, 1);
    /* It stays there for a while, however new it is to that tier. */
    expect_held();
    for (unsigned i = 0; i < 1000; i++) {
        m.c->st.blocks += 100;
        assert_false(after_soft(LITTLE));
    }
    assert_true(s->probing);
    hold_is_over();
    /* There it calls the kernel as often in less time: it is better off. */
    assert_false(comes_natively(MUCH_COMING_AND_GOING, 1000));
    assert_false(s->probing);
    /* It does not: back, and then it is long before the next try. */
    assert_true(comes_natively(LITTLE, 1000));
    assert_true(s->direct);
    unsigned second = stays_natively(MUCH_COMING_AND_GOING, 1000000);
    assert_in_range(second, 8 * first, 32 * first);
    assert_true(s->probing);
    expect_held();
    hold_is_over();
    assert_true(comes_natively(LITTLE, 1000));
    natively();
    m.h.stopped = false;
    go_on();
    was_native();
    expect_syscall();
    assert_int_equal(RAX, LOOP_SUM);
}

/* Not too little to run natively, but perhaps as well off in the soft tier. */
void some_coming_and_going_is_tried_there_too(void **state)
{
    (void)state;
    begin_policy(__func__);
    hold_is_over();
    assert_true(comes_natively(LITTLE, 1000));
    assert_in_range(stays_natively(SOME_COMING_AND_GOING, 100000), 1000, 10000);
    assert_false(s->direct);
    assert_true(s->probing);
}

/* It has page tables of its own, calls the kernel twice, and another one's turn comes. */
static bool turn(uint64_t root, uint64_t cycles)
{
    bool wanted = false;
    m.c->cr3 = root;
    for (unsigned i = 0; i < 2 && !wanted; i++) {
        wanted = bt_direct_wanted(m.c, false);
        if (m.c->user_from)
            m.c->user_ran = cycles;
        m.c->user_from = 0;
    }
    return wanted;
}

void programs_that_run_in_turn_are_told_apart(void **state)
{
    (void)state;
    begin_policy(__func__);
    uint64_t long_ones = m.root, short_ones = m.root + 0x100000;
    unsigned n = 0;
    while (n < 1000 && !turn(long_ones, LITTLE)) {
        n++;
        assert_false(turn(short_ones, HARDLY_ANY_TIME));
    }
    assert_in_range(n, 3, 200);
    assert_true(s->direct);
    assert_int_equal(s->root, long_ones);
}
