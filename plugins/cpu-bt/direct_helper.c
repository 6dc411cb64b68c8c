/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/direct_helper.c - what the helper processes of the user-direct
 * tier do before they are helpers (direct.h), and the process that makes them.
 *
 * The maker
 *   A confined VM makes no process, so one is made before, which does that on
 *   request: now, and when a helper is lost. A request names the helper's place
 *   and brings its three descriptors; the answer brings a pidfd. The helper is
 *   the VM's child, not the maker's, and ends with the VM.
 *   The VM's process may be in the guest's hands by then. What it can ask for is
 *   a process that has guest RAM and those three descriptors, and in which the
 *   filter is loaded before a byte of the zone is run. The maker has no file
 *   besides, no privileges, and a filter of its own, which its children inherit
 *   and which lets pass what they need until theirs is there.
 */
#define _GNU_SOURCE
#include "direct.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#if __has_include(<sys/rseq.h>)
#include <sys/rseq.h>
#endif
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define MAKER_FD 3 /* and from DIRECT_RAM_FD on, what helpers have there */
#define NO_SANITIZER __attribute__((no_sanitize("address", "undefined")))

/* What the kernel's sigaction() takes. */
struct kernel_sigaction {
    uint64_t handler, flags, restorer, mask;
};
static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGUSR1};

/* --- the filter ------------------------------------------------------------------------ */
#define MAX_FILTER 96
struct program {
    struct sock_filter f[MAX_FILTER];
    unsigned n;
};

static void put(struct program *p, uint16_t code, uint32_t k, uint8_t jt, uint8_t jf)
{
    p->f[p->n++] = (struct sock_filter){code, jt, jf, k};
}
static void load(struct program *p, size_t off) { put(p, BPF_LD | BPF_W | BPF_ABS, (uint32_t)off, 0, 0); }
/* The word at off must be v, else: trap. Two instructions and the trap, so that jumps stay local. */
static void must_be(struct program *p, size_t off, uint32_t v)
{
    load(p, off);
    put(p, BPF_JMP | BPF_JEQ | BPF_K, v, 1, 0);
    put(p, BPF_RET | BPF_K, SECCOMP_RET_TRAP, 0, 0);
}
#define ARG(n) (offsetof(struct seccomp_data, args) + 8 * (n))
static void arg_must_be(struct program *p, unsigned n, uint64_t v)
{
    must_be(p, ARG(n), (uint32_t)v);
    must_be(p, ARG(n) + 4, (uint32_t)(v >> 32));
}

/* See direct.h for why each of these. */
static void must_be_stub(struct program *p, uint64_t base)
{
    must_be(p, offsetof(struct seccomp_data, instruction_pointer) + 4, (uint32_t)(base >> 32));
    load(p, offsetof(struct seccomp_data, instruction_pointer));
    put(p, BPF_ALU | BPF_AND | BPF_K, ~4095u, 0, 0);
    put(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)base, 1, 0);
    put(p, BPF_RET | BPF_K, SECCOMP_RET_TRAP, 0, 0);
}

static void make_filter(struct program *p, uint64_t base, uint64_t cookie)
{
    static const int with_cookie[] = {SYS_mmap, SYS_munmap, SYS_rt_sigreturn};
    p->n = 0;
    must_be_stub(p, base);
    load(p, offsetof(struct seccomp_data, arch));
    unsigned over = p->n;
    put(p, BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 0);
    /* INT 80h: set_thread_area() and the cookie */
    must_be(p, offsetof(struct seccomp_data, arch), AUDIT_ARCH_I386);
    must_be(p, offsetof(struct seccomp_data, nr), I386_SET_THREAD_AREA);
    must_be(p, ARG(3), (uint32_t)(cookie >> 32));
    must_be(p, ARG(4), (uint32_t)cookie);
    put(p, BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
    p->f[over].jt = (uint8_t)(p->n - over - 1);

    /* read(CMD, cookie's place, 8) */
    load(p, offsetof(struct seccomp_data, nr));
    over = p->n;
    put(p, BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 0, 0);
    arg_must_be(p, 0, DIRECT_CMD_FD);
    arg_must_be(p, 1, base + offsetof(struct direct_zone, report.cookie));
    arg_must_be(p, 2, 8);
    put(p, BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
    p->f[over].jf = (uint8_t)(p->n - over - 1);

    /* write(EXIT, the token's place, 8) */
    load(p, offsetof(struct seccomp_data, nr));
    over = p->n;
    put(p, BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 0, 0);
    arg_must_be(p, 0, DIRECT_EXIT_FD);
    must_be(p, ARG(1), (uint32_t)(base + offsetof(struct direct_zone, report.token)));
    must_be(p, ARG(1) + 4, (uint32_t)(base >> 32));
    must_be(p, ARG(2), 8);
    put(p, BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
    p->f[over].jf = (uint8_t)(p->n - over - 1);

    /* whatever else, the cookie */
    must_be(p, ARG(3) + 4, (uint32_t)(cookie >> 32));
    must_be(p, ARG(4) + 4, (uint32_t)cookie);
    load(p, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < sizeof(with_cookie) / sizeof(with_cookie[0]); i++) {
        put(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)with_cookie[i], 0, 1);
        put(p, BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
    }
    put(p, BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 2);
    load(p, ARG(0));
    put(p, BPF_JMP | BPF_JEQ | BPF_K, PR_SET_TSC, 1, 0);
    put(p, BPF_RET | BPF_K, SECCOMP_RET_TRAP, 0, 0);
    put(p, BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
}

/* Loads it; from then on nothing of this program can be called any more. */
NO_SANITIZER static long load_filter(const struct program *p)
{
    struct sock_fprog fprog = {.len = (unsigned short)p->n, .filter = (void *)(uintptr_t)p->f};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &fprog);
}

/* What the maker does and what its children do until their own filter is there and, under the eyes of that one, after
 * it. Not a trap: the other filter's must prevail. */
static void make_outer_filter(struct program *p)
{
    static const int calls[] = {
        SYS_read, SYS_write, SYS_rt_sigreturn, SYS_mmap, SYS_munmap, SYS_prctl, SYS_recvmsg, SYS_sendmsg, SYS_clone,
        SYS_close, SYS_close_range, SYS_fcntl, SYS_dup2, SYS_sigaltstack, SYS_rt_sigaction, SYS_rt_sigprocmask,
        SYS_seccomp, SYS_rseq, SYS_getppid, SYS_exit_group,
    };
    p->n = 0;
    load(p, offsetof(struct seccomp_data, arch));
    put(p, BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 3, 0);
    load(p, offsetof(struct seccomp_data, nr));
    /* x32 and what else there may be has other numbers */
    put(p, BPF_JMP | BPF_JEQ | BPF_K, I386_SET_THREAD_AREA, 0, 1);
    put(p, BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
    load(p, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        put(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)calls[i], 0, 1);
        put(p, BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
    }
    put(p, BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM, 0, 0);
}

/* --- a helper, up to its stub --------------------------------------------------------------------- */
struct plan {
    struct direct_request rq;
    int zone_fd, cmd_fd, exit_fd, n_ram, vm_pid;
};

/* Signals for a group of processes, from a terminal say: the VM's process decides what becomes of all. */
static const int for_the_vm[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM};

NO_SANITIZER static void no_handlers(void)
{
    struct kernel_sigaction sa = {(uintptr_t)SIG_DFL, 0, 0, 0};
    for (int i = 1; i < 65; i++)
        syscall(SYS_rt_sigaction, i, &sa, NULL, 8);
    sa.handler = (uintptr_t)SIG_IGN;
    for (unsigned i = 0; i < sizeof(for_the_vm) / sizeof(for_the_vm[0]); i++)
        syscall(SYS_rt_sigaction, for_the_vm[i], &sa, NULL, 8);
}

/* A child that shares nothing with anybody but files. No function that could want a lock. */
NO_SANITIZER _Noreturn static void helper(const struct plan *p)
{
    struct program prog;
    uint64_t none = 0, base = p->rq.base;
    int zone, cmd, out;

#ifdef RSEQ_SIG /* else the kernel would go on writing to where our library had its area */
    syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG);
#endif
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != p->vm_pid)
        _exit(100);
    prctl(PR_SET_NAME, "hvx-direct");
    /* descriptors to their numbers: first up and out of the way */
    zone = fcntl(p->zone_fd, F_DUPFD, 200);
    cmd = fcntl(p->cmd_fd, F_DUPFD, 200);
    out = fcntl(p->exit_fd, F_DUPFD, 200);
    if (zone < 0 || cmd < 0 || out < 0 || dup2(zone, DIRECT_ZONE_FD) < 0 || dup2(cmd, DIRECT_CMD_FD) < 0 ||
        dup2(out, DIRECT_EXIT_FD) < 0)
        _exit(102);
    if (p->n_ram < (int)DIRECT_MAX_RAM)
        syscall(SYS_close_range, DIRECT_RAM_FD + p->n_ram, DIRECT_ZONE_FD - 1, 0);
    syscall(SYS_close_range, 0, DIRECT_CMD_FD - 1, 0);
    syscall(SYS_close_range, DIRECT_ZONE_FD + 1, ~0u, 0);
    /* the zone: code, orders, the rest */
    const uint64_t at[4] = {0, offsetof(struct direct_zone, orders), offsetof(struct direct_zone, report),
                            sizeof(struct direct_zone)};
    const int prot[3] = {PROT_READ | PROT_EXEC, PROT_READ, PROT_READ | PROT_WRITE};
    for (unsigned i = 0; i < 3; i++)
        if (mmap((void *)(base + at[i]), at[i + 1] - at[i], prot[i], MAP_SHARED | MAP_FIXED_NOREPLACE, DIRECT_ZONE_FD,
                 (off_t)at[i]) != (void *)(base + at[i]))
            _exit(103);
    stack_t ss = {.ss_sp = (void *)(base + offsetof(struct direct_zone, stack)), .ss_size = DIRECT_STACK};
    if (sigaltstack(&ss, NULL))
        _exit(104);
    uint64_t entry = base + (uint64_t)(direct_stub_handler - direct_stub);
    struct kernel_sigaction sa = {entry, SA_SIGINFO | SA_ONSTACK | 0x04000000 /* SA_RESTORER */, entry, ~0ull};
    for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        if (syscall(SYS_rt_sigaction, signals[i], &sa, NULL, 8))
            _exit(105);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, 8);
    make_filter(&prog, base, p->rq.cookie);
    if (load_filter(&prog))
        _exit(106);
    ((void (*)(void))(base + (uint64_t)(direct_stub_init - direct_stub)))();
    __builtin_trap();
}

/* --- the maker -------------------------------------------------------------------------------------- */
/* One request; how many bytes it had. */
NO_SANITIZER static ssize_t receive(int fd, struct plan *p, unsigned *n_fds)
{
    union {
        char bytes[CMSG_SPACE(3 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {&p->rq, sizeof(p->rq)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
    struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&msg);
    *n_fds = 0;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
        int *fds = (int *)(void *)CMSG_DATA(c);
        *n_fds = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        p->zone_fd = fds[0];
        p->cmd_fd = fds[1];
        p->exit_fd = fds[2];
    }
    return n;
}

NO_SANITIZER static void answer(int fd, uint32_t slot, int pid, int pidfd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {.bytes = {0}};
    struct direct_answer a = {slot, pid};
    struct iovec iov = {&a, sizeof(a)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (pid > 0) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        *(int *)(void *)CMSG_DATA(c) = pidfd;
    }
    if (sendmsg(fd, &msg, MSG_NOSIGNAL) < 0)
        _exit(0);
}

NO_SANITIZER _Noreturn static void maker(int socket, const int *ram_fd, int n_ram)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct caps[2] = {{0}, {0}};
    struct program prog;
    struct plan plan;
    int fd[DIRECT_MAX_RAM];
    unsigned n_fds;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NAME, "hvx-maker");
    prctl(PR_SET_DUMPABLE, 0);
    no_handlers();
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_capset, &head, caps))
        _exit(101);
    socket = fcntl(socket, F_DUPFD, 200);
    for (int i = 0; i < n_ram; i++)
        fd[i] = fcntl(ram_fd[i], F_DUPFD, 200);
    if (socket < 0 || dup2(socket, MAKER_FD) < 0)
        _exit(102);
    for (int i = 0; i < n_ram; i++)
        if (fd[i] < 0 || dup2(fd[i], DIRECT_RAM_FD + i) < 0)
            _exit(102);
    syscall(SYS_close_range, 0, MAKER_FD - 1, 0);
    close(MAKER_FD + 1);
    syscall(SYS_close_range, DIRECT_RAM_FD + n_ram, ~0u, 0);
    memset(&plan, 0, sizeof(plan));
    plan.n_ram = n_ram;
    plan.vm_pid = getppid();
    make_outer_filter(&prog);
    if (load_filter(&prog))
        _exit(106);
    for (;;) {
        ssize_t n = receive(MAKER_FD, &plan, &n_fds);
        int pidfd = -1;
        if (n <= 0)
            _exit(0);
        if (n != sizeof(plan.rq) || n_fds != 3 || plan.rq.base < DIRECT_BASE_MIN ||
            plan.rq.base - DIRECT_BASE_MIN >= DIRECT_BASE_SPAN || plan.rq.base & 0x1fffff)
            _exit(107);
        long pid = syscall(SYS_clone, CLONE_PIDFD | CLONE_PARENT, NULL, &pidfd, NULL, NULL);
        if (pid == 0)
            helper(&plan);
        answer(MAKER_FD, plan.rq.slot, pid < 0 ? -errno : (int)pid, pidfd);
        if (pid > 0)
            close(pidfd);
        close(plan.zone_fd);
        close(plan.cmd_fd);
        close(plan.exit_fd);
    }
}

int bt_direct_maker(const int *ram_fd, int n_ram, int *pidfd, struct hvx_error *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return hvx_fail(err, -errno, "no sockets: %s", strerror(errno));
    long pid = syscall(SYS_clone, CLONE_PIDFD, NULL, pidfd, NULL, NULL);
    if (pid == 0)
        maker(pair[1], ram_fd, n_ram);
    int error = errno;
    close(pair[1]);
    if (pid < 0) {
        *pidfd = -1;
        close(pair[0]);
        return hvx_fail(err, -error, "cannot make a process: %s", strerror(error));
    }
    return pair[0];
}

/* --- 32-bit code ------------------------------------------------------------------------------------ */
/* Are there 32-bit programs on this host, and do its TLS entries work as direct.h says? A process tries it. */
NO_SANITIZER _Noreturn static void try_code32(void)
{
    static const uint8_t code[] = {
        0x65, 0x8b, 0x1d, 64, 0, 0, 0, /* mov %gs:64, %ebx */
        0x81, 0xeb, 0x0d, 0x60, 0, 0,  /* sub $0x600d, %ebx */
        0xb8, 1, 0, 0, 0, 0xcd, 0x80,  /* exit(%ebx) */
    };
    uint8_t *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    long rc = I386_SET_THREAD_AREA;
    prctl(PR_SET_DUMPABLE, 0);
    no_handlers();
    if (low == MAP_FAILED)
        _exit(1);
    const uint32_t desc[4] = {DIRECT_TLS_FIRST, (uint32_t)(uintptr_t)low, 0xfffff, 0x51};
    const uint32_t value = 0x600d, far[2] = {(uint32_t)(uintptr_t)(low + 128), CS32_PROGRAM};
    memcpy(low, desc, sizeof(desc));
    memcpy(low + 64, &value, sizeof(value));
    memcpy(low + 72, far, sizeof(far));
    memcpy(low + 128, code, sizeof(code));
    __asm__ volatile("int $0x80" : "+a"(rc) : "b"(low) : "memory", "r8", "r9", "r10", "r11");
    if (rc)
        _exit(2);
    __asm__ volatile("mov %0, %%gs\n\tmov %1, %%ds\n\tljmpl *(%2)"
                     :
                     : "r"(DIRECT_TLS_FIRST * 8 + 3), "r"(SS_PROGRAM), "r"(low + 72)
                     : "memory");
    _exit(3);
}

bool bt_direct_code32_works(void)
{
    int status;
    long pid = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    if (pid == 0)
        try_code32();
    return pid > 0 && waitpid((pid_t)pid, &status, __WALL) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

