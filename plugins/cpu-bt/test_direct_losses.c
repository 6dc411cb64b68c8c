/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_direct_losses.c - helpers that are killed, and kicks.
 */
#define _GNU_SOURCE
#include "test_direct.h"
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Requests end where they were sent. */
static void kill_maker(void)
{
    struct pollfd f = {.fd = m.c->vm->direct_maker_pidfd, .events = POLLIN};
    syscall(SYS_pidfd_send_signal, f.fd, SIGKILL, NULL, 0);
    assert_int_equal(poll(&f, 1, 10000), 1);
}
static void no_more_helpers(void) { m.c->direct->remake_from = 0; }

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
    start_natively(CODE);
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
    kill_maker();
    for (unsigned i = 0; i < m.h.helpers; i++) {
        good_program_still_runs();
        was_native();
        struct direct_proc *p = current_proc();
        assert_non_null(p);
        *user64(DATA) = 0;
        pthread_create(&t, NULL, kill_running, p);
        start(CODE);
        pthread_join(t, NULL);
        assert_int_equal(m.a->vec, 6);
        assert_int_equal(m.a->rip | m.a->rsp | RAX | RCX | RBX, 0); /* nothing to go on with */
        assert_int_equal(m.c->st.direct_killed, i + 1);
    }
    no_more_helpers();
    natively(); /* none is left */
    good_program_still_runs();
    assert_int_equal(m.c->st.direct_entries, entries_before);
    assert_null(current_proc());
    write_at(DATA, 5);
    expect_syscall();
    assert_int_equal(*user64(DATA), 5);
}

/* Helpers that are lost come back. */
static void wait_remade(uint64_t n)
{
    struct timespec t = {0, 2000000};
    for (unsigned i = 0; m.c->st.direct_remade < n; i++) {
        assert_true(i < 5000);
        good_program_still_runs();
        nanosleep(&t, NULL);
    }
}
static void expect_all_native(void)
{
    for (unsigned i = 0; i < m.h.helpers; i++)
        assert_int_equal(atomic_load(&m.c->direct->proc[i].dead), 0);
    natively();
    good_program_still_runs();
    was_native();
}

void lost_helpers_are_replaced(void **state)
{
    (void)state;
    begin(__func__);
    put_accesses();
    put_program(GOOD, p_loop);
    for (unsigned round = 0; round < 3; round++) {
        good_program_still_runs();
        was_native();
        m.c->direct->remake_from = 0; /* a long time has passed */
        for (unsigned i = 0; i < m.h.helpers; i++)
            kill(m.c->direct->proc[i].pid, SIGKILL);
        for (unsigned i = 0; i < m.h.helpers; i++)
            wait_dead(&m.c->direct->proc[i]);
        natively();
        good_program_still_runs(); /* with none, in the soft tier */
        wait_remade((round + 1) * m.h.helpers);
        expect_all_native();
        check_zones();
        write_at(DATA, round + 7);
        expect_syscall();
        assert_int_equal(*user64(DATA), round + 7);
    }
    assert_int_equal(m.c->st.direct_killed + m.c->st.direct_meddled, 0);
    assert_int_equal(m.c->st.direct_lost, 3); /* the one that had the address space; the others had none */
}

void replacements_are_limited(void **state)
{
    (void)state;
    begin(__func__);
    put_program(GOOD, p_loop);
    good_program_still_runs();
    uint64_t from = test_host_clock();
    unsigned kills = 0;
    while (test_host_clock() - from < 3000000000u) { /* whoever kills them as fast as they come */
        struct timespec t = {0, 1000000};
        for (unsigned i = 0; i < m.h.helpers; i++)
            if (!atomic_load(&m.c->direct->proc[i].dead)) {
                kill(m.c->direct->proc[i].pid, SIGKILL);
                wait_dead(&m.c->direct->proc[i]);
                kills++;
            }
        good_program_still_runs();
        nanosleep(&t, NULL);
    }
    print_message("  %u killed in 3 s, %llu made anew\n", kills, (unsigned long long)m.c->st.direct_remade);
    assert_true(m.c->st.direct_remade >= 8 && m.c->st.direct_remade <= 8 + 7);
    m.c->direct->remake_from = 0;
    wait_remade(m.c->st.direct_remade + 1);
}

/* Whoever spoils one helper after the other stays soft, and the next does not. */
void spoilers_are_barred(void **state)
{
    (void)state;
    begin(__func__);
    uint64_t root = m.root, other = new_root();
    put_accesses();
    put_program(GOOD, p_loop);
    for (uint64_t lin = CODE;; lin = STACK - 4096) {
        *entry(other, lin, 0) = *pte(lin);
        if (lin != CODE)
            break;
    }
    unsigned jumps = 0;
    for (; jumps < 20; jumps++) {
        m.c->direct->remake_from = 0;
        natively();
        good_program_still_runs();
        struct direct_proc *p = current_proc();
        if (!p || m.c->st.direct_entries == entries_before)
            break;
        try_at(JUMP, p->base + 16);
        assert_true(m.a->vec < 32);
    }
    assert_int_equal(jumps, 3);
    assert_int_equal(m.c->st.direct_meddled, 3);
    go_arg(CMD_CR3, other);
    natively();
    good_program_still_runs();
    was_native();
    go_arg(CMD_CR3, root);
    natively();
    good_program_still_runs();
    assert_int_equal(m.c->st.direct_entries, entries_before);
    m.c->direct->current->barred = 1; /* the time has passed */
    wait_remade(1);
    good_program_still_runs();
    was_native();
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
        m.h.ops->vcpu_kick(m.h.vcpu);
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
    m.h.stopped = false;
    hammer_at = 0;
    natively();
    pthread_create(&t, NULL, hammer, NULL);
    for (unsigned i = 0; i < 3000; i++) {
        uint64_t before = test_host_clock();
        hammer_at++;
        alarm(10);
        run_once();
        alarm(0);
        uint64_t took = test_host_clock() - before;
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
