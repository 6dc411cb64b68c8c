/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/direct_proc.c - making the helper processes of the user-direct
 * tier: direct.h. Ordinary C; runs before the VM's process confines itself.
 */
#define _GNU_SOURCE
#include "cpu_model.h"
#include "direct.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#if __has_include(<sys/rseq.h>)
#include <sys/rseq.h>
#endif
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_EXEC 0x10u
#endif
#define TASK_END 0x7ffffffff000ull
#define BASE_MIN 0x100000000000ull /* between where programs are linked to be and where their libraries go */
#define BASE_SPAN 0x400000000000ull

extern const uint8_t direct_stub[], direct_stub_init[], direct_stub_handler[], direct_stub_end[];

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

    /* write(EXIT, one's place, 8) */
    load(p, offsetof(struct seccomp_data, nr));
    over = p->n;
    put(p, BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 0, 0);
    arg_must_be(p, 0, DIRECT_EXIT_FD);
    must_be(p, ARG(1), (uint32_t)(base + offsetof(struct direct_zone, orders.one)));
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

/* --- the helper's side, up to its stub --------------------------------------------------------- */
struct plan {
    uint64_t base;
    int zone_fd, cmd_fd, exit_fd, n_ram, ram_fd[DIRECT_MAX_RAM];
};

/* A child that shares nothing with us but files. No function that could want a lock. */
__attribute__((no_sanitize("address", "undefined"), noreturn)) static void helper(const struct plan *p)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct caps[2] = {{0}, {0}};
    int fd[DIRECT_RAM_FD + DIRECT_MAX_RAM], n = DIRECT_RAM_FD + p->n_ram, zone, last = DIRECT_ZONE_FD;
    uint64_t none = 0;

#ifdef RSEQ_SIG /* else the kernel would go on writing to where our library had its area */
    syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG);
#endif
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NAME, "hvx-direct");
    prctl(PR_SET_DUMPABLE, 0);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_capset, &head, caps))
        _exit(101);
    /* descriptors to their numbers: first up and out of the way */
    zone = fcntl(p->zone_fd, F_DUPFD, 200);
    fd[DIRECT_CMD_FD] = fcntl(p->cmd_fd, F_DUPFD, 200);
    fd[DIRECT_EXIT_FD] = fcntl(p->exit_fd, F_DUPFD, 200);
    for (int i = 0; i < p->n_ram; i++)
        fd[DIRECT_RAM_FD + i] = fcntl(p->ram_fd[i], F_DUPFD, 200);
    for (int i = DIRECT_CMD_FD; i < n; i++)
        if (fd[i] < 0 || dup2(fd[i], i) < 0)
            _exit(102);
    if (zone < 0 || dup2(zone, last) < 0)
        _exit(102);
    syscall(SYS_close_range, 0, DIRECT_CMD_FD - 1, 0);
    if (n < last)
        syscall(SYS_close_range, n, last - 1, 0);
    syscall(SYS_close_range, last + 1, ~0u, 0);
    /* the zone: code, orders, the rest */
    const uint64_t at[4] = {0, offsetof(struct direct_zone, orders), offsetof(struct direct_zone, report),
                            sizeof(struct direct_zone)};
    const int prot[3] = {PROT_READ | PROT_EXEC, PROT_READ, PROT_READ | PROT_WRITE};
    for (unsigned i = 0; i < 3; i++)
        if (mmap((void *)(p->base + at[i]), at[i + 1] - at[i], prot[i], MAP_SHARED | MAP_FIXED_NOREPLACE, last,
                 (off_t)at[i]) != (void *)(p->base + at[i]))
            _exit(103);
    stack_t ss = {.ss_sp = (void *)(p->base + offsetof(struct direct_zone, stack)), .ss_size = DIRECT_STACK};
    if (sigaltstack(&ss, NULL))
        _exit(104);
    uint64_t entry = p->base + (uint64_t)(direct_stub_handler - direct_stub);
    struct kernel_sigaction sa = {entry, SA_SIGINFO | SA_ONSTACK | 0x04000000 /* SA_RESTORER */, entry, ~0ull};
    for (int i = 1; i < 65; i++) { /* none of our own handlers */
        struct kernel_sigaction dfl = {0, 0, 0, 0};
        syscall(SYS_rt_sigaction, i, &dfl, NULL, 8);
    }
    for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        if (syscall(SYS_rt_sigaction, signals[i], &sa, NULL, 8))
            _exit(105);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, 8);
    ((void (*)(void))(p->base + (uint64_t)(direct_stub_init - direct_stub)))();
    _exit(106);
}

/* --- our side -------------------------------------------------------------------------------------- */
static void init_op(struct direct_orders *o, uint64_t nr, uint64_t a0, uint64_t a1, uint64_t a2)
{
    struct direct_op *op = &o->op[o->n_ops++];
    memset(op, 0, sizeof(*op));
    op->nr = nr;
    op->arg[0] = a0;
    op->arg[1] = a1;
    op->arg[2] = a2;
}

static void proc_close(struct direct_proc *p)
{
    if (p->pidfd >= 0) {
        siginfo_t info;
        syscall(SYS_pidfd_send_signal, p->pidfd, SIGKILL, NULL, 0);
        waitid((idtype_t)3 /* P_PIDFD */, (id_t)p->pidfd, &info, WEXITED | __WALL);
        close(p->pidfd);
    }
    if (p->cmd_fd >= 0)
        close(p->cmd_fd);
    if (p->exit_fd >= 0)
        close(p->exit_fd);
    if (p->zone)
        munmap(p->zone, sizeof(*p->zone));
    memset(p, 0, sizeof(*p));
    p->pidfd = p->cmd_fd = p->exit_fd = -1;
}

/* The first frame: where the kernel puts things, and its own values. */
static bool learn_frame(struct direct_proc *p)
{
    uint64_t stack = p->base + offsetof(struct direct_zone, stack), sp = p->zone->report.frame;
    if (sp < stack || sp + 8 + sizeof(ucontext_t) > stack + DIRECT_STACK)
        return false;
    p->uc = sp + 8 - p->base;
    const ucontext_t *u = (const void *)((uint8_t *)p->zone + p->uc);
    uint64_t fp = (uint64_t)u->uc_mcontext.fpregs;
    if (fp < stack || fp + 1024 > stack + DIRECT_STACK)
        return false;
    p->fp = fp - p->base;
    const uint8_t *f = (uint8_t *)p->zone + p->fp;
    memcpy(p->sw_reserved, f + 464, sizeof(p->sw_reserved));
    uint32_t magic = *(const uint32_t *)p->sw_reserved, extended = *(const uint32_t *)(p->sw_reserved + 4);
    uint32_t size = *(const uint32_t *)(p->sw_reserved + 16);
    if (magic != FP_XSTATE_MAGIC1 || size < 576 || extended < size + 4 || p->fp + extended > sizeof(struct direct_zone))
        return false;
    p->fp_size = size;
    memcpy(p->uc_head, u, sizeof(p->uc_head));
    p->uc_mask = *(const uint64_t *)&u->uc_sigmask;
    p->csgsfs = (uint64_t)u->uc_mcontext.gregs[REG_CSGSFS];
    return p->uc_mask == 0 && (p->csgsfs & 0xffff) == 0x33;
}

static int proc_make(struct bt_vm *vm, struct direct_proc *p, struct hvx_error *err)
{
    struct plan plan = {.n_ram = 0};
    struct program prog;
    struct sock_fprog fprog;
    uint64_t r[2], n;
    int rc = 0;

    memset(p, 0, sizeof(*p));
    p->pidfd = p->cmd_fd = p->exit_fd = -1;
    if (getrandom(r, sizeof(r), 0) != sizeof(r))
        return hvx_fail(err, -errno, "no random numbers: %s", strerror(errno));
    p->cookie = r[0] ? r[0] : 1;
    if (p->cookie == ~0ull) /* an eventfd takes anything else */
        p->cookie = 1;
    p->base = plan.base = BASE_MIN + (r[1] % (BASE_SPAN >> 21) << 21);
    plan.zone_fd = memfd_create("hvx-direct-zone", MFD_CLOEXEC | MFD_EXEC);
    if (plan.zone_fd < 0 && errno == EINVAL) /* before Linux 6.3 all are executable */
        plan.zone_fd = memfd_create("hvx-direct-zone", MFD_CLOEXEC);
    p->cmd_fd = plan.cmd_fd = eventfd(0, EFD_CLOEXEC);
    p->exit_fd = plan.exit_fd = eventfd(0, EFD_CLOEXEC);
    if (plan.zone_fd < 0 || p->cmd_fd < 0 || p->exit_fd < 0 || ftruncate(plan.zone_fd, sizeof(struct direct_zone))) {
        rc = hvx_fail(err, -errno, "cannot make its memory: %s", strerror(errno));
        goto out;
    }
    p->zone = mmap(NULL, sizeof(struct direct_zone), PROT_READ | PROT_WRITE, MAP_SHARED, plan.zone_fd, 0);
    if (p->zone == MAP_FAILED) {
        p->zone = NULL;
        rc = hvx_fail(err, -errno, "cannot map its memory: %s", strerror(errno));
        goto out;
    }
    memcpy(p->zone->code, direct_stub, (size_t)(direct_stub_end - direct_stub));
    make_filter(&prog, p->base, p->cookie);
    /* the filter lies on the stack for the moment */
    fprog.len = (unsigned short)prog.n;
    fprog.filter = (void *)(p->base + offsetof(struct direct_zone, stack) + 64);
    memcpy(p->zone->stack, &fprog, sizeof(fprog));
    memcpy(p->zone->stack + 64, prog.f, prog.n * sizeof(prog.f[0]));
    struct direct_orders *o = &p->zone->orders;
    o->one = o->clock = 1;
    init_op(o, SYS_munmap, 0, p->base, 0);
    init_op(o, SYS_munmap, p->base + sizeof(struct direct_zone), TASK_END - p->base - sizeof(struct direct_zone), 0);
    init_op(o, SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            p->base + offsetof(struct direct_zone, stack));
    for (unsigned i = 0; i < vm->n_direct_ram; i++)
        if (vm->direct_ram[i].helper_fd == DIRECT_RAM_FD + plan.n_ram)
            plan.ram_fd[plan.n_ram++] = vm->direct_ram[i].fd;
    long pid = syscall(SYS_clone, CLONE_PIDFD, NULL, &p->pidfd, NULL, NULL);
    if (pid == 0)
        helper(&plan);
    if (pid < 0) {
        p->pidfd = -1;
        rc = hvx_fail(err, -errno, "cannot make a process: %s", strerror(errno));
        goto out;
    }
    p->pid = (int)pid;
    /* it tells of its first signal, or it ends */
    for (unsigned tries = 0;; tries++) {
        siginfo_t info = {0};
        int flags = fcntl(p->exit_fd, F_GETFL);
        fcntl(p->exit_fd, F_SETFL, flags | O_NONBLOCK);
        ssize_t got = read(p->exit_fd, &n, 8);
        fcntl(p->exit_fd, F_SETFL, flags);
        if (got == 8)
            break;
        if (waitid((idtype_t)3, (id_t)p->pidfd, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) == 0 && info.si_pid) {
            rc = hvx_fail(err, -ECHILD, "its process ended at once (%s %d)", info.si_code == CLD_EXITED ? "status" : "signal",
                          info.si_status);
            goto out;
        }
        if (tries > 20000) {
            rc = hvx_fail(err, -ETIMEDOUT, "its process does not answer");
            goto out;
        }
        usleep(100);
    }
    if (p->zone->report.failed)
        rc = hvx_fail(err, (int)(int64_t)p->zone->report.failed, "its process cannot give up its memory or load its filter: %s",
                      strerror((int)-(int64_t)p->zone->report.failed));
    else if (!learn_frame(p))
        rc = hvx_fail(err, -ENOTSUP, "this host's signal frames have another form than expected");
    memset(p->zone->stack, 0, 4096); /* the filter, and in it the cookie */
    memset(p->zone->code + (direct_stub_init - direct_stub), 0xf4, (size_t)(direct_stub_end - direct_stub_init)); /* HLT */
    o->n_ops = 0;
out:
    if (plan.zone_fd >= 0)
        close(plan.zone_fd);
    if (rc)
        proc_close(p);
    return rc;
}

/* Guest RAM: what lies in memfds. */
static void find_ram(struct bt_vm *vm)
{
    int n_fd = 0;
    vm->n_direct_ram = 0;
    for (unsigned i = 0; i < vm->n_slots && vm->n_direct_ram < DIRECT_MAX_RAM; i++) {
        const struct hvx_mem_slot *s = &vm->slots[i];
        if (s->fd < 0)
            continue;
        struct direct_ram *r = &vm->direct_ram[vm->n_direct_ram];
        r->hva = (uintptr_t)s->hva;
        r->bytes = s->bytes;
        r->offset = s->fd_offset;
        r->fd = s->fd;
        r->helper_fd = -1;
        for (unsigned j = 0; j < vm->n_direct_ram; j++)
            if (vm->direct_ram[j].fd == s->fd)
                r->helper_fd = vm->direct_ram[j].helper_fd;
        if (r->helper_fd < 0)
            r->helper_fd = DIRECT_RAM_FD + n_fd++;
        vm->n_direct_ram++;
    }
}

static void ended(void *opaque, int fd, bool readable, bool writable)
{
    struct direct_proc *p = opaque;
    uint64_t one = 1;
    (void)fd;
    (void)readable;
    (void)writable;
    if (atomic_exchange(&p->dead, 1) == 0 && write(p->exit_fd, &one, 8) != 8) /* whoever waits for it */
        return;
}

static void watches_del(struct bt_vm *vm)
{
    for (unsigned i = 0; i < vm->n_direct_watches; i++)
        vm->host->watch_del(vm->direct_watch[i]);
    vm->n_direct_watches = 0;
}

void bt_direct_destroy(struct bt_vm *vm)
{
    watches_del(vm);
    free(vm->direct_watch);
    vm->direct_watch = NULL;
    for (unsigned i = 0; i < vm->n_vcpus; i++) {
        struct bt_vcpu *c = vm->vcpu[i];
        struct bt_direct *d = c ? c->direct : NULL;
        if (!d)
            continue;
        c->direct = NULL;
        for (unsigned j = 0; j < d->n_procs; j++)
            proc_close(&d->proc[j]);
        munmap(d, sizeof(*d));
    }
}

/* Another guest, as it were. */
void bt_direct_reset(struct bt_vcpu *c)
{
    struct bt_direct *d = c->direct;
    if (!d)
        return;
    bt_direct_forget(c);
    d->soft = false;
    d->soft_page = d->hint = 0;
    for (unsigned i = 0; i < DIRECT_SPACES; i++) {
        d->space[i].direct = false;
        d->space[i].backoff = 0;
        d->space[i].hold = 0;
        d->space[i].looked = false;
    }
}

/* Are there 32-bit programs on this host, and do its TLS entries work as direct.h says? A process tries it. */
__attribute__((no_sanitize("address", "undefined"), noreturn)) static void try_code32(void)
{
    static const uint8_t code[] = {
        0x65, 0x8b, 0x1d, 64, 0, 0, 0, /* mov %gs:64, %ebx */
        0x81, 0xeb, 0x0d, 0x60, 0, 0,  /* sub $0x600d, %ebx */
        0xb8, 1, 0, 0, 0, 0xcd, 0x80,  /* exit(%ebx) */
    };
    uint8_t *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    struct kernel_sigaction dfl = {0, 0, 0, 0};
    long rc = I386_SET_THREAD_AREA;
    prctl(PR_SET_DUMPABLE, 0);
    for (int i = 1; i < 65; i++)
        syscall(SYS_rt_sigaction, i, &dfl, NULL, 8);
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
    __asm__ volatile("mov %0, %%gs\n\tmov %1, %%ds\n\tljmpl *(%2)" ::"r"(DIRECT_TLS_FIRST * 8 + 3), "r"(SS_PROGRAM), "r"(low + 72) : "memory");
    _exit(3);
}

static bool code32_works(void)
{
    int status;
    long pid = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    if (pid == 0)
        try_code32();
    return pid > 0 && waitpid((pid_t)pid, &status, __WALL) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static int vcpu_prepare(struct bt_vm *vm, struct bt_vcpu *c, struct hvx_error *err)
{
    struct bt_direct *d = mmap(NULL, sizeof(*d), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (d == MAP_FAILED)
        return hvx_fail(err, -ENOMEM, "out of memory");
    d->n_regions = 1;
    for (unsigned i = 0; i < vm->direct_helpers && i < DIRECT_PROCS_MAX; i++) {
        int rc = proc_make(vm, &d->proc[i], err);
        if (rc && !i) {
            munmap(d, sizeof(*d));
            return rc;
        }
        if (rc)
            break;
        d->n_procs++;
    }
    c->direct = d;
    return 0;
}

int bt_direct_prepare(struct bt_vm *vm, struct hvx_error *err)
{
    struct hvx_error why = {0};
    uint32_t r[4];
    (void)err;
    if (!vm->direct_user)
        return 0;
    const char *off = NULL;
    if (vm->cpuid->restricted)
        off = "the CPU model has less than the host, which a program could find out";
    find_ram(vm);
    if (!off && !vm->n_direct_ram)
        off = "guest RAM is not in a memfd";
    unsigned n = 0;
    for (unsigned i = 0; !off && i < vm->n_vcpus; i++) {
        if (vcpu_prepare(vm, vm->vcpu[i], &why))
            off = why.text;
        else
            n += vm->vcpu[i]->direct->n_procs;
    }
    if (!off) {
        vm->direct_watch = calloc(n, sizeof(vm->direct_watch[0]));
        if (!vm->direct_watch)
            off = "out of memory";
    }
    for (unsigned i = 0; !off && i < vm->n_vcpus; i++) {
        struct bt_direct *d = vm->vcpu[i]->direct;
        for (unsigned j = 0; !off && j < d->n_procs; j++)
            if (vm->host->watch_new(vm->hvm, d->proc[j].pidfd, true, false, ended, &d->proc[j],
                                    &vm->direct_watch[vm->n_direct_watches]))
                off = "cannot watch the helpers";
            else
                vm->n_direct_watches++;
    }
    vm->direct32 = !off && code32_works();
    if (!off && !vm->direct32)
        vm->host->log(HVX_LOG_INFO, "cpu-bt", "user-direct execution is for 64-bit programs: the host runs no 32-bit ones");
    bt_cpuid(vm->vcpu[0], 7, 0, r);
    vm->direct_rdpid = (r[2] >> 22 & 1) != 0;
    if (off) {
        vm->host->log(HVX_LOG_INFO, "cpu-bt", "user-direct execution is off: %s", off);
        bt_direct_destroy(vm);
        vm->direct_user = false;
    }
    return 0;
}
