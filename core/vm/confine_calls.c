/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/confine_calls.c - which system calls each profile may make.
 */
#define _GNU_SOURCE
#include "core/vm/confine_calls.h"

#include <asm/termbits.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define VM (1u << HVX_CONFINE_VM)
#define NET (1u << HVX_CONFINE_NET)
#define TIDY (1u << HVX_CONFINE_TIDY)
#define ALL (VM | NET | TIDY)
#define MAX_CALL 512u
#define MAX_NAME 24u

/* What C code and its library need whatever they do; what works on descriptors
 * that are there; what devices and engines do: timers, signals between the
 * threads of this process. Calls that look harmless but take a path, make a
 * descriptor out of nothing or reach another process are not here, but for
 * sched_setaffinity. */
static const struct {
    int nr;
    unsigned profiles;
} plain[] = {
    {SCMP_SYS(read), ALL}, {SCMP_SYS(write), ALL}, {SCMP_SYS(readv), VM | NET}, {SCMP_SYS(writev), VM | NET},
    {SCMP_SYS(pread64), VM}, {SCMP_SYS(pwrite64), VM}, {SCMP_SYS(preadv), VM}, {SCMP_SYS(pwritev), VM},
    {SCMP_SYS(preadv2), VM}, {SCMP_SYS(pwritev2), VM}, {SCMP_SYS(lseek), VM | NET}, {SCMP_SYS(fsync), VM},
    {SCMP_SYS(fdatasync), VM}, {SCMP_SYS(sync_file_range), VM}, {SCMP_SYS(fallocate), VM}, {SCMP_SYS(ftruncate), VM},
    {SCMP_SYS(fadvise64), VM}, {SCMP_SYS(fstat), ALL}, {SCMP_SYS(close), ALL}, {SCMP_SYS(dup), VM | NET},
    {SCMP_SYS(fcntl), VM | NET}, {SCMP_SYS(flock), VM},
    {SCMP_SYS(io_uring_enter), VM}, {SCMP_SYS(poll), VM | NET}, {SCMP_SYS(ppoll), VM | NET},
    {SCMP_SYS(select), NET}, {SCMP_SYS(pselect6), NET},
    {SCMP_SYS(epoll_wait), VM | NET}, {SCMP_SYS(epoll_pwait), VM | NET}, {SCMP_SYS(epoll_pwait2), VM | NET},
    {SCMP_SYS(epoll_ctl), VM | NET}, {SCMP_SYS(eventfd2), VM | NET}, {SCMP_SYS(timerfd_settime), VM | NET},
    {SCMP_SYS(timerfd_gettime), VM | NET}, {SCMP_SYS(timer_create), VM}, {SCMP_SYS(timer_settime), VM},
    {SCMP_SYS(timer_gettime), VM}, {SCMP_SYS(timer_getoverrun), VM}, {SCMP_SYS(timer_delete), VM},
    {SCMP_SYS(accept4), VM | NET}, {SCMP_SYS(accept), NET}, {SCMP_SYS(recvmsg), VM | NET},
    {SCMP_SYS(sendmsg), VM | NET}, {SCMP_SYS(recvfrom), VM | NET}, {SCMP_SYS(sendto), VM | NET},
    {SCMP_SYS(recvmmsg), VM | NET}, {SCMP_SYS(sendmmsg), VM | NET}, {SCMP_SYS(shutdown), VM | NET},
    {SCMP_SYS(getsockopt), VM | NET}, {SCMP_SYS(setsockopt), VM | NET}, {SCMP_SYS(getsockname), VM | NET},
    {SCMP_SYS(getpeername), VM | NET}, {SCMP_SYS(connect), NET}, {SCMP_SYS(bind), NET}, {SCMP_SYS(listen), NET},
    {SCMP_SYS(munmap), ALL}, {SCMP_SYS(mremap), VM | NET}, {SCMP_SYS(brk), ALL}, {SCMP_SYS(madvise), VM | NET},
    {SCMP_SYS(mincore), VM}, {SCMP_SYS(msync), VM},
    {SCMP_SYS(futex), ALL}, {SCMP_SYS(membarrier), VM}, {SCMP_SYS(sched_yield), VM | NET},
    {SCMP_SYS(sched_getaffinity), VM | NET}, {SCMP_SYS(getcpu), VM}, {SCMP_SYS(set_robust_list), VM},
    {SCMP_SYS(rseq), VM}, {SCMP_SYS(set_tid_address), VM}, {SCMP_SYS(arch_prctl), VM},
    {SCMP_SYS(clock_gettime), ALL}, {SCMP_SYS(clock_getres), VM | NET}, {SCMP_SYS(clock_nanosleep), VM | NET},
    {SCMP_SYS(nanosleep), VM | NET}, {SCMP_SYS(gettimeofday), VM | NET}, {SCMP_SYS(time), VM | NET},
    {SCMP_SYS(restart_syscall), ALL}, {SCMP_SYS(rt_sigprocmask), ALL}, {SCMP_SYS(rt_sigreturn), ALL},
    {SCMP_SYS(rt_sigtimedwait), VM}, {SCMP_SYS(sigaltstack), VM | NET}, {SCMP_SYS(getpid), ALL},
    {SCMP_SYS(getppid), VM}, {SCMP_SYS(gettid), ALL}, {SCMP_SYS(getuid), VM | NET},
    {SCMP_SYS(geteuid), VM | NET}, {SCMP_SYS(getgid), VM}, {SCMP_SYS(getegid), VM}, {SCMP_SYS(getrusage), VM},
    {SCMP_SYS(getrandom), VM | NET}, {SCMP_SYS(uname), VM | NET}, {SCMP_SYS(sysinfo), VM},
    {SCMP_SYS(wait4), VM}, {SCMP_SYS(waitid), VM}, {SCMP_SYS(exit), ALL}, {SCMP_SYS(exit_group), ALL},
    {SCMP_SYS(pidfd_send_signal), VM}, /* to a process whose descriptor is there */
    /* A thread makes itself smaller at its start, which for the last of them is after the filter. */
    {SCMP_SYS(capset), VM}, {SCMP_SYS(landlock_create_ruleset), VM}, {SCMP_SYS(landlock_restrict_self), VM},
    {SCMP_SYS(setpriority), VM}, {SCMP_SYS(getpriority), VM},
    /* Reaches all processes of this user, engines' helpers among them: a CPU to run on is all that it gives. */
    {SCMP_SYS(sched_setaffinity), VM},
    {SCMP_SYS(newfstatat), NET | TIDY}, {SCMP_SYS(unlink), TIDY},
};

/* The sanitizers' run-time reads files, traces its own threads and more, to
 * report and to look for leaks. Their builds forbid these and allow the rest. */
static const int forbidden_to_sanitized[] = {
    SCMP_SYS(socket), SCMP_SYS(connect), SCMP_SYS(bind), SCMP_SYS(unlink), SCMP_SYS(unlinkat), SCMP_SYS(rename),
    SCMP_SYS(mkdir), SCMP_SYS(chmod), SCMP_SYS(truncate), SCMP_SYS(link), SCMP_SYS(symlink),
};

/* Never in honest code: no handler, the kernel kills. */
static const int deadly[] = {
    SCMP_SYS(execve), SCMP_SYS(execveat), SCMP_SYS(process_vm_writev), SCMP_SYS(init_module), SCMP_SYS(finit_module),
    SCMP_SYS(bpf), SCMP_SYS(kexec_load), SCMP_SYS(userfaultfd),
    SCMP_SYS(pidfd_getfd), SCMP_SYS(mount), SCMP_SYS(unshare), SCMP_SYS(setns),
};

static const unsigned long vm_ioctls[] = {TUNSETOFFLOAD, TCGETS, TCSETS, TCSETSW, TCSETSF, TIOCGWINSZ, FIONREAD,
                                          FIONBIO};
static const unsigned long net_ioctls[] = {FIONREAD, FIONBIO, TCGETS};

static char names[MAX_CALL][MAX_NAME];

const char *hvx_confine_call_name(unsigned nr)
{
    return nr < MAX_CALL ? names[nr] : "";
}

static void learn_names(void)
{
    for (unsigned i = 0; i < MAX_CALL; i++) {
        char *s = seccomp_syscall_resolve_num_arch(SCMP_ARCH_X86_64, (int)i);
        snprintf(names[i], sizeof(names[i]), "%s", s ? s : "");
        free(s);
    }
}

/* The comparisons EQ and NE have a second value, 0, for the compiler only. */
#define ALLOW(...) (r = r < 0 || HVX_SANITIZED ? r : seccomp_rule_add(c, SCMP_ACT_ALLOW, __VA_ARGS__))

static int allow_memory(scmp_filter_ctx c)
{
    int r = 0;

    /* Engines have made their code areas; nothing else is to become executable. */
    ALLOW(SCMP_SYS(mmap), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    ALLOW(SCMP_SYS(mprotect), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    return r;
}

static int allow_vm(scmp_filter_ctx c)
{
    int r = 0;

    ALLOW(SCMP_SYS(clone), 1, SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM));
    /* Its flags are behind a pointer, out of a filter's sight; the library then takes clone. */
    r = r < 0 ? r : seccomp_rule_add(c, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    /* A ring without restrictions would be a way out. Disks that are plugged in later use threads. */
    r = r < 0 ? r : seccomp_rule_add(c, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(io_uring_setup), 0);
    ALLOW(SCMP_SYS(prctl), 1, SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME, 0));
    ALLOW(SCMP_SYS(prctl), 1, SCMP_A0(SCMP_CMP_EQ, PR_SET_NO_NEW_PRIVS, 0));
    ALLOW(SCMP_SYS(prctl), 1, SCMP_A0(SCMP_CMP_EQ, 0x53564d41, 0)); /* PR_SET_VMA: the library names its areas */
    /* fstat() of some libraries: a descriptor and no path. */
    ALLOW(SCMP_SYS(newfstatat), 1, SCMP_A3(SCMP_CMP_MASKED_EQ, 0x1000, 0x1000));
    for (unsigned i = 0; i < sizeof(vm_ioctls) / sizeof(vm_ioctls[0]); i++)
        ALLOW(SCMP_SYS(ioctl), 1, SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffffffu, vm_ioctls[i]));
    /* All of KVM's, which only its own descriptors take. */
    ALLOW(SCMP_SYS(ioctl), 1, SCMP_A1(SCMP_CMP_MASKED_EQ, 0xff00, KVMIO << 8));
    return r;
}

static int allow_net(scmp_filter_ctx c)
{
    int r = 0;

    ALLOW(SCMP_SYS(socket), 1, SCMP_A0(SCMP_CMP_EQ, AF_INET, 0));
    ALLOW(SCMP_SYS(socket), 1, SCMP_A0(SCMP_CMP_EQ, AF_INET6, 0));
    for (unsigned i = 0; i < sizeof(net_ioctls) / sizeof(net_ioctls[0]); i++)
        ALLOW(SCMP_SYS(ioctl), 1, SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffffffu, net_ioctls[i]));
    return r;
}

static int fill(scmp_filter_ctx c, enum hvx_confine_profile profile)
{
    int r = 0;

    for (unsigned i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
        if (plain[i].profiles & 1u << profile)
            ALLOW(plain[i].nr, 0);
    for (unsigned i = 0; HVX_SANITIZED && profile == HVX_CONFINE_VM &&
                         i < sizeof(forbidden_to_sanitized) / sizeof(forbidden_to_sanitized[0]); i++)
        r = r < 0 ? r : seccomp_rule_add(c, SCMP_ACT_TRAP, forbidden_to_sanitized[i], 0);
    for (unsigned i = 0; i < sizeof(deadly) / sizeof(deadly[0]); i++)
        r = r < 0 ? r : seccomp_rule_add(c, SCMP_ACT_KILL_PROCESS, deadly[i], 0);
    /* Signals only to this very process; the action of SIGSYS stays. */
    ALLOW(SCMP_SYS(tgkill), 1, SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid(), 0));
    ALLOW(SCMP_SYS(rt_sigaction), 1, SCMP_A0(SCMP_CMP_NE, SIGSYS, 0));
    if (r == 0)
        r = allow_memory(c);
    if (r == 0 && profile == HVX_CONFINE_VM)
        r = allow_vm(c);
    if (r == 0 && profile == HVX_CONFINE_NET)
        r = allow_net(c);
    return r;
}

int hvx_confine_load(enum hvx_confine_profile profile)
{
    scmp_filter_ctx c = seccomp_init(HVX_SANITIZED ? SCMP_ACT_ALLOW : SCMP_ACT_TRAP);
    int r;

    if (!c)
        return -ENOMEM;
    learn_names();
    r = seccomp_attr_set(c, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (r == 0)
        r = seccomp_attr_set(c, SCMP_FLTATR_CTL_TSYNC, 1);
    /* Older kernels slow a filtered process's loads after stores; translated
     * code lives on them, and this process is no more secretive than any. */
    if (r == 0)
        (void)seccomp_attr_set(c, SCMP_FLTATR_CTL_SSB, 1);
    /* A search tree: the list is long and vCPUs make calls in their fast paths. */
    if (r == 0)
        (void)seccomp_attr_set(c, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    if (r == 0)
        r = fill(c, profile);
    if (r == 0)
        r = seccomp_load(c);
    seccomp_release(c);
    return r;
}
