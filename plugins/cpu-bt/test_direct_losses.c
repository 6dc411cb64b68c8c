/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_direct_losses.c - helpers that are killed, and kicks.
 */
#define _GNU_SOURCE
#include "test_direct.h"
#include <sched.h>
#include <unistd.h>

static void wait_dead(struct direct_proc *p)
{
    alarm(30);
    while (!atomic_load(&p->dead))
        sched_yield();
    alarm(0);
}

void a_helper_that_waits_is_killed(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    put_program(CODE, p_loop);
    start(CODE);
    expect_syscall();
    struct direct_proc *p = current_proc();
    assert_non_null(p);
    kill(p->pid, SIGKILL);
    wait_dead(p);
    go(CMD_SYSRET);
    expect_syscall();
    assert_int_equal(RBX, 77);
    assert_int_equal(m.a->gpr[6], LOOP_SUM + 3);
    natively();
    start(CODE);
    was_native();
    expect_syscall();
    assert_int_equal(RAX, LOOP_SUM);
    assert_true(current_proc() && current_proc() != p);
    assert_int_equal(m.c->st.direct_killed, 0);
}

static void *kill_running(void *arg)
{
    volatile uint64_t *count = user64(DATA);
    while (*count < 1000)
        sched_yield();
    kill(((struct direct_proc *)arg)->pid, SIGKILL);
    return NULL;
}
void a_helper_that_runs_is_killed(void **state)
{
    pthread_t t;
    (void)state;
    begin(__func__);
    put_accesses();
    put_program(CODE, p_count);
    put_program(GOOD, p_loop);
    for (unsigned i = 0; i < m.helpers; i++) {
        good_program_still_runs();
        was_native();
        struct direct_proc *p = current_proc();
        assert_non_null(p);
        *user64(DATA) = 0;
        pthread_create(&t, NULL, kill_running, p);
        start(CODE);
        pthread_join(t, NULL);
        assert_int_equal(m.a->vec, 6);
        assert_int_equal(m.c->st.direct_killed, i + 1);
    }
    natively(); /* none is left */
    good_program_still_runs();
    assert_int_equal(m.c->st.direct_entries, entries_before);
    assert_null(current_proc());
    write_at(DATA, 5);
    expect_syscall();
    assert_int_equal(*user64(DATA), 5);
}

static _Atomic unsigned hammer_at;
static void *hammer(void *arg)
{
    unsigned seen = 0;
    (void)arg;
    for (unsigned i = 0; i < 3000; i++) {
        while (hammer_at == seen)
            __builtin_ia32_pause();
        seen = hammer_at;
        for (unsigned k = 0; k < i % 500; k++)
            __builtin_ia32_pause();
        m.ops->vcpu_kick(m.vcpu);
    }
    return NULL;
}
/* At whatever moment of getting in. */
void a_kick_ends_an_endless_loop(void **state)
{
    pthread_t t;
    uint64_t worst = 0;
    (void)state;
    begin(__func__);
    put_program(CODE, p_count);
    set_start(CODE);
    m.a->cmd = CMD_IRET;
    m.stopped = false;
    hammer_at = 0;
    natively();
    pthread_create(&t, NULL, hammer, NULL);
    for (unsigned i = 0; i < 3000; i++) {
        uint64_t before = host_clock();
        hammer_at++;
        alarm(10);
        run_once();
        alarm(0);
        uint64_t took = host_clock() - before;
        worst = took > worst ? took : worst;
    }
    pthread_join(t, NULL);
    was_native();
    assert_true(m.c->st.direct_kicks > 0);
    assert_true(*user64(DATA) > 0);
    print_message("  3000 kicks, %llu seen by a helper, the slowest %.1f ms\n", (unsigned long long)m.c->st.direct_kicks,
                  (double)worst / 1e6);
    assert_true(worst < 1000000000);
}
