/* SPDX-License-Identifier: Apache-2.0
 *
 * test_direct_cpu.c - on which CPU of the host a vCPU and its helper run.
 */
#define _GNU_SOURCE
#include "test_direct.h"
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

static cpu_set_t all; /* of this process */

static cpu_set_t only(int cpu)
{
    cpu_set_t s;
    CPU_ZERO(&s);
    CPU_SET(cpu, &s);
    return s;
}

static bool is_on(int pid, const cpu_set_t *want)
{
    cpu_set_t s;
    CPU_ZERO(&s);
    assert_int_equal(sched_getaffinity(pid, sizeof(s), &s), 0);
    return CPU_EQUAL(&s, want);
}

/* Two CPUs that we may use. */
static void two_cpus(int cpu[2])
{
    unsigned n = 0;
    CPU_ZERO(&all);
    assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
    for (int i = 0; i < CPU_SETSIZE && n < 2; i++)
        if (CPU_ISSET(i, &all))
            cpu[n++] = i;
    if (n < 2) {
        print_message("  SKIP: one CPU only\n");
        skip();
    }
}

static void use(cpu_set_t s)
{
    assert_int_equal(sched_setaffinity(0, sizeof(s), &s), 0);
}

static void run_program(void)
{
    put_program(CODE, p_loop);
    start_natively(CODE);
    assert_int_equal(RAX, LOOP_SUM);
}

void a_helper_is_where_its_vcpu_is(void **state)
{
    int cpu[2];
    (void)state;
    two_cpus(cpu);
    begin(__func__);
    for (unsigned i = 0; i < 4; i++) {
        cpu_set_t here = only(cpu[i & 1]);
        use(here);
        run_program();
        assert_true(is_on(current_proc()->pid, &here));
        assert_true(is_on(0, &here));
    }
    assert_int_equal(m.c->st.direct_held, 0); /* it did not move by itself */
    use(all);
}

void a_vcpu_that_was_moved_is_held_for_a_while(void **state)
{
    int cpu[2];
    (void)state;
    two_cpus(cpu);
    begin(__func__);
    run_program();
    uint64_t held = m.c->st.direct_held;
    m.c->direct->cpu.held = 0;
    use(only(cpu[1]));
    use(all);
    int here = sched_getcpu();
    bt_direct_met(m.c, here == cpu[0] ? cpu[1] : cpu[0]); /* where it went in */
    assert_int_equal(m.c->st.direct_held, held + 1);
    cpu_set_t now = only(m.c->direct->cpu.held - 1);
    assert_true(is_on(0, &now));
    bt_direct_let_go(m.c, DIRECT_STAY_MS); /* not yet */
    assert_true(is_on(0, &now));
    m.c->direct->cpu.since -= m.c->vm->tsc_hz;
    bt_direct_let_go(m.c, DIRECT_STAY_MS);
    assert_true(is_on(0, &all));
    bt_direct_let_go(m.c, DIRECT_STAY_MS);
    assert_true(is_on(0, &all));
}

static int other_cpu;
static pid_t vcpu_tid;

/* While the vCPU's thread waits for its helper: it will wake up elsewhere. */
static void *move_and_kick(void *arg)
{
    cpu_set_t there = only(other_cpu);
    (void)arg;
    usleep(20000);
    assert_int_equal(sched_setaffinity(vcpu_tid, sizeof(there), &there), 0);
    m.h.ops->vcpu_kick(m.h.vcpu);
    return NULL;
}

void who_comes_out_elsewhere_is_held(void **state)
{
    int cpu[2];
    pthread_t t;
    (void)state;
    two_cpus(cpu);
    begin(__func__);
    use(only(cpu[0]));
    put_program(CODE, p_count);
    set_start(CODE);
    m.a->cmd = CMD_IRET;
    m.h.stopped = false;
    other_cpu = cpu[1];
    vcpu_tid = gettid();
    pthread_create(&t, NULL, move_and_kick, NULL);
    alarm(10);
    run_once();
    alarm(0);
    pthread_join(t, NULL);
    assert_int_equal(m.c->st.direct_held, 1);
    assert_int_equal(m.c->direct->cpu.held, 0); /* a vCPU that does not run is let go */
    cpu_set_t there = only(cpu[1]);
    assert_true(is_on(0, &there));
    use(all);
}

void what_others_set_stays_set(void **state)
{
    int cpu[2];
    (void)state;
    two_cpus(cpu);
    begin(__func__);
    run_program();
    m.c->direct->cpu.held = 0;
    use(all);
    bt_direct_met(m.c, CPU_SETSIZE - 1);
    assert_true(m.c->direct->cpu.held);
    int held = m.c->direct->cpu.held - 1;
    cpu_set_t other = only(held == cpu[0] ? cpu[1] : cpu[0]);
    use(other);
    m.c->direct->cpu.since -= m.c->vm->tsc_hz;
    run_program(); /* lets go on the way */
    assert_true(is_on(0, &other));
    assert_true(is_on(current_proc()->pid, &other));
    use(all);
}
