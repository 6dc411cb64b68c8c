/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/direct_cpu.c - the user-direct tier: a vCPU's thread and its
 * helper take turns, so they belong on one CPU of the host.
 *
 * Linux wakes a thread on an idle CPU if there is one, and the one that waits
 * for the other is asleep by then: each exit and each entry would go to another
 * CPU, which costs an interrupt between them and a start from idle, several
 * times what a switch on the same CPU does. So
 *   the helper is bound to the CPU that the vCPU's thread is on;
 *   the vCPU's thread is held where it is for a while when it has come out of a
 *   wait on another CPU than it went in on. As long as that does not happen,
 *   there was no idle CPU, and Linux may balance as it likes.
 * It is let go after DIRECT_STAY_MS, and when it halts, so that it finds an idle
 * CPU if its own has become a busy one. What somebody else sets meanwhile stays.
 */
#define _GNU_SOURCE
#include "direct.h"
#include <sys/syscall.h>
#if __has_include(<sys/rseq.h>) /* glibc 2.35 */
#include <sys/rseq.h>
#endif

static inline long sys3(long nr, long a, long b, long c)
{
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "0"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return r;
}

static int this_cpu(void)
{
#ifdef RSEQ_SIG
    const volatile struct rseq *r = (const void *)((char *)__builtin_thread_pointer() + __rseq_offset);
    if (__rseq_size && (int)r->cpu_id >= 0) /* glibc.pthread.rseq=0 is possible */
        return (int)r->cpu_id;
#endif
    unsigned cpu;
    return sys3(SYS_getcpu, (long)&cpu, 0, 0) == 0 ? (int)cpu : -1;
}

/* pid 0: the calling thread */
static bool bind_to(int pid, int cpu)
{
    uint64_t one[DIRECT_CPUS / 64];
    for (unsigned i = 0; i < DIRECT_CPUS / 64; i++)
        one[i] = (unsigned)cpu / 64 == i ? 1ull << (cpu & 63) : 0;
    return sys3(SYS_sched_setaffinity, pid, sizeof(one), (long)one) == 0;
}

static bool older_than(const struct bt_vcpu *c, unsigned ms)
{
    uint64_t hz = c->vm->host_tsc_hz ? c->vm->host_tsc_hz : c->vm->tsc_hz;
    return bt_host_tsc() - c->direct->cpu.since > hz / 1000 * ms;
}

static void hold(struct bt_vcpu *c)
{
    struct direct_cpu *h = &c->direct->cpu;
    long n = sys3(SYS_sched_getaffinity, 0, sizeof(h->mask), (long)h->mask);
    int cpu = this_cpu();
    if (n <= 0 || cpu < 0 || cpu >= (int)DIRECT_CPUS || !bind_to(0, cpu)) {
        h->off = true;
        return;
    }
    h->mask_bytes = (uint32_t)n;
    h->held = cpu + 1;
    h->since = bt_host_tsc();
    c->st.direct_held++;
}

static void let_go(struct bt_vcpu *c)
{
    struct direct_cpu *h = &c->direct->cpu;
    uint64_t now[DIRECT_CPUS / 64];
    int cpu = h->held - 1;
    h->held = 0;
    long n = sys3(SYS_sched_getaffinity, 0, sizeof(now), (long)now);
    for (long i = 0; i < n / 8; i++)
        if (now[i] != (cpu / 64 == i ? 1ull << (cpu & 63) : 0))
            return;
    if (n > 0)
        sys3(SYS_sched_setaffinity, 0, h->mask_bytes, (long)h->mask);
}

void bt_direct_let_go(struct bt_vcpu *c, unsigned after_ms)
{
    if (c->direct && c->direct->cpu.held && older_than(c, after_ms))
        let_go(c);
}

int bt_direct_meet(struct bt_vcpu *c, struct direct_proc *p)
{
    struct direct_cpu *h = &c->direct->cpu;
    if (h->off)
        return -1;
    bt_direct_let_go(c, DIRECT_STAY_MS);
    int cpu = this_cpu();
    if (cpu != p->cpu && cpu >= 0 && cpu < (int)DIRECT_CPUS) {
        bind_to(p->pid, cpu);
        p->cpu = cpu;
    }
    return cpu;
}

void bt_direct_met(struct bt_vcpu *c, int cpu)
{
    if (cpu >= 0 && !c->direct->cpu.held && this_cpu() != cpu)
        hold(c);
}
