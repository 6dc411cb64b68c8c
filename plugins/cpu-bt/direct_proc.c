/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/direct_proc.c - the helper processes of the user-direct tier, as
 * the VM's process has them: direct.h. Ordinary C.
 */
#define _GNU_SOURCE
#include "cpu_model.h"
#include "direct.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_EXEC 0x10u
#endif
#define TASK_END 0x7ffffffff000ull
#define P_PIDFD_ ((idtype_t)3)
/* Of a vCPU, for each lost helper, and how many at once. */
#define REMAKE_MS 500u
#define REMAKE_BURST 8u

/* --- a zone, for a process that is to be ---------------------------------------------------------- */
static void init_op(struct direct_orders *o, uint64_t cookie, uint64_t nr, uint64_t a0, uint64_t a1)
{
    struct direct_op *op = &o->op[o->n_ops++];
    memset(op, 0, sizeof(*op));
    op->nr = nr;
    op->arg[0] = a0;
    op->arg[1] = a1;
    op->arg[3] = cookie >> 32 << 32;
    op->arg[4] = cookie << 32;
}

/* A new cookie, the stub, and orders to give up all other memory. */
static int zone_fill(struct direct_proc *p)
{
    struct direct_orders *o = &p->zone->orders;
    uint64_t end = p->base + sizeof(struct direct_zone);
    if (getrandom(&p->cookie, sizeof(p->cookie), 0) != sizeof(p->cookie))
        return -errno;
    if (p->cookie + 1 <= 1) /* an eventfd takes anything else */
        p->cookie = 1;
    memset(p->zone, 0, sizeof(*p->zone));
    memcpy(p->zone->code, direct_stub, (size_t)(direct_stub_end - direct_stub));
    o->clock = o->one = p->zone->report.token = 1;
    init_op(o, p->cookie, SYS_munmap, 0, p->base);
    init_op(o, p->cookie, SYS_munmap, end, TASK_END - end);
    p->one = 0;
    p->cpu = -1;
    p->tsc_faults = 0;
    memset(p->tls, 0, sizeof(p->tls));
    return 0;
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

/* It has told of its first signal. */
static int zone_ready(struct direct_proc *p)
{
    struct direct_orders *o = &p->zone->orders;
    int failed = (int)(int64_t)p->zone->report.failed;
    memset(p->zone->code + (direct_stub_init - direct_stub), 0xf4 /* HLT */,
           (size_t)(direct_stub_end - direct_stub_init));
    memset(o->op, 0, 2 * sizeof(o->op[0])); /* the cookie */
    o->n_ops = 0;
    return failed ? failed : learn_frame(p) ? 0 : -ENOTSUP;
}

/* --- the process that makes them ---------------------------------------------------------------------- */
static int ask(struct direct_proc *p)
{
    union {
        char bytes[CMSG_SPACE(3 * sizeof(int))];
        struct cmsghdr align;
    } control = {.bytes = {0}};
    struct direct_request rq = {.base = p->base, .cookie = p->cookie, .slot = p->slot};
    struct iovec iov = {&rq, sizeof(rq)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    const int fds[3] = {p->zone_fd, p->cmd_fd, p->exit_fd};
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(fds));
    memcpy(CMSG_DATA(c), fds, sizeof(fds));
    return sendmsg(p->vm->direct_maker_fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(rq) ? 0 : -errno;
}

/* 1, 0: nothing there, -1: it has ended. */
static int answered(struct bt_vm *vm, struct direct_answer *a, int *pidfd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {a, sizeof(*a)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(vm->direct_maker_fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n != sizeof(*a))
        return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    *pidfd = -1;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(pidfd, CMSG_DATA(c), sizeof(int));
    if (a->pid > 0 && *pidfd < 0)
        a->pid = -EMFILE;
    return 1;
}

/* --- helpers ------------------------------------------------------------------------------------------ */
static void end_process(int pidfd)
{
    siginfo_t info;
    if (pidfd < 0)
        return;
    syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
    waitid(P_PIDFD_, (id_t)pidfd, &info, WEXITED | __WALL);
    close(pidfd);
}

static void proc_close(struct direct_proc *p)
{
    end_process(p->pidfd);
    if (p->cmd_fd >= 0)
        close(p->cmd_fd);
    if (p->exit_fd >= 0)
        close(p->exit_fd);
    if (p->zone_fd >= 0)
        close(p->zone_fd);
    if (p->zone)
        munmap(p->zone, sizeof(*p->zone));
    memset(p, 0, sizeof(*p));
    p->pidfd = p->cmd_fd = p->exit_fd = p->zone_fd = -1;
}

static bool readable(int fd, int ms)
{
    struct pollfd f = {.fd = fd, .events = POLLIN};
    return poll(&f, 1, ms) == 1;
}

static void drain(int eventfd)
{
    uint64_t n;
    if (readable(eventfd, 0) && read(eventfd, &n, 8) != 8)
        return;
}

static int proc_make(struct bt_vm *vm, struct direct_proc *p, uint32_t slot, struct hvx_error *err)
{
    struct direct_answer a;
    uint64_t r;
    int rc = 0;

    memset(p, 0, sizeof(*p));
    p->pidfd = p->cmd_fd = p->exit_fd = p->zone_fd = -1;
    p->vm = vm;
    p->slot = slot;
    if (getrandom(&r, sizeof(r), 0) != sizeof(r))
        return hvx_fail(err, -errno, "no random numbers: %s", strerror(errno));
    p->base = DIRECT_BASE_MIN + (r % (DIRECT_BASE_SPAN >> 21) << 21);
    p->zone_fd = memfd_create("hvx-direct-zone", MFD_CLOEXEC | MFD_EXEC);
    if (p->zone_fd < 0 && errno == EINVAL) /* before Linux 6.3 all are executable */
        p->zone_fd = memfd_create("hvx-direct-zone", MFD_CLOEXEC);
    p->cmd_fd = eventfd(0, EFD_CLOEXEC);
    p->exit_fd = eventfd(0, EFD_CLOEXEC);
    if (p->zone_fd < 0 || p->cmd_fd < 0 || p->exit_fd < 0 || ftruncate(p->zone_fd, sizeof(struct direct_zone))) {
        rc = hvx_fail(err, -errno, "cannot make its memory: %s", strerror(errno));
        goto out;
    }
    p->zone = mmap(NULL, sizeof(struct direct_zone), PROT_READ | PROT_WRITE, MAP_SHARED, p->zone_fd, 0);
    if (p->zone == MAP_FAILED) {
        p->zone = NULL;
        rc = hvx_fail(err, -errno, "cannot map its memory: %s", strerror(errno));
        goto out;
    }
    if ((rc = zone_fill(p)) || (rc = ask(p))) {
        hvx_fail(err, rc, "cannot ask for a process: %s", strerror(-rc));
        goto out;
    }
    if (!readable(vm->direct_maker_fd, 5000) || answered(vm, &a, &p->pidfd) != 1 || a.pid <= 0) {
        rc = hvx_fail(err, -ECHILD, "no process was made");
        goto out;
    }
    p->pid = a.pid;
    /* it tells of its first signal, or it ends */
    struct pollfd f[2] = {{.fd = p->exit_fd, .events = POLLIN}, {.fd = p->pidfd, .events = POLLIN}};
    if (poll(f, 2, 5000) <= 0) {
        rc = hvx_fail(err, -ETIMEDOUT, "its process does not answer");
        goto out;
    }
    if (f[1].revents && !f[0].revents) {
        siginfo_t info = {0};
        waitid(P_PIDFD_, (id_t)p->pidfd, &info, WEXITED | WNOHANG | WNOWAIT | __WALL);
        rc = hvx_fail(err, -ECHILD, "its process ended at once (%s %d)",
                      info.si_code == CLD_EXITED ? "status" : "signal", info.si_status);
        goto out;
    }
    drain(p->exit_fd);
    rc = zone_ready(p);
    if (rc == -ENOTSUP)
        hvx_fail(err, rc, "this host's signal frames have another form than expected");
    else if (rc)
        hvx_fail(err, rc, "its process cannot give up its memory: %s", strerror(-rc));
out:
    if (rc)
        proc_close(p);
    return rc;
}

/* --- losses -------------------------------------------------------------------------------------------- */
/* On the device thread. */
static void ended(void *opaque, int fd, bool can_read, bool can_write)
{
    struct direct_proc *p = opaque;
    uint64_t one = 1;
    (void)fd;
    (void)can_read;
    (void)can_write;
    pthread_mutex_lock(&p->vm->direct_lock);
    p->vm->host->watch_del(p->watch);
    p->watch = NULL;
    /* with a word to whoever waits for it */
    if (atomic_exchange(&p->dead, 1) || write(p->exit_fd, &one, 8) == 8)
        p->stage = DIRECT_DEAD;
    if (!p->lost)
        atomic_fetch_add(p->n_lost, 1);
    p->lost = true;
    pthread_mutex_unlock(&p->vm->direct_lock);
}

static struct direct_proc *proc_of(struct bt_vm *vm, uint32_t slot)
{
    uint32_t vcpu = slot / DIRECT_PROCS_MAX, i = slot % DIRECT_PROCS_MAX;
    struct bt_direct *d = vcpu < vm->n_vcpus && vm->vcpu[vcpu] ? vm->vcpu[vcpu]->direct : NULL;
    return d && i < d->n_procs ? &d->proc[i] : NULL;
}

/* A helper has been made; it may not have got to its stub. On the device thread. */
static void made(void *opaque, int fd, bool can_read, bool can_write)
{
    struct bt_vm *vm = opaque;
    struct direct_answer a;
    int pidfd, rc;
    (void)fd;
    (void)can_read;
    (void)can_write;
    pthread_mutex_lock(&vm->direct_lock);
    while ((rc = answered(vm, &a, &pidfd)) == 1) {
        struct direct_proc *p = proc_of(vm, a.slot);
        if (!p || p->stage != DIRECT_ASKED) {
            end_process(pidfd);
            continue;
        }
        if (a.pid > 0) {
            end_process(p->pidfd);
            p->pidfd = pidfd;
            p->pid = a.pid;
        }
        bool good = a.pid > 0 && vm->host->watch_new(vm->hvm, pidfd, true, false, ended, p, &p->watch) == 0;
        p->stage = good ? DIRECT_MADE : DIRECT_DEAD;
    }
    pthread_mutex_unlock(&vm->direct_lock);
    if (rc < 0) { /* without it all is as it is, but for losses */
        vm->host->log(HVX_LOG_WARN, "cpu-bt", "the process that makes helpers for user-direct execution has ended");
        vm->host->watch_del(vm->direct_maker_watch);
        vm->direct_maker_watch = NULL;
    }
}

/* There is time for each helper lost: a program that spoils one after the other, or whoever kills them, cannot have the
 * host make processes without end. */
static bool remake_paid(struct bt_vcpu *c)
{
    struct bt_direct *d = c->direct;
    uint64_t now = bt_host_tsc(), each = (c->vm->host_tsc_hz ? c->vm->host_tsc_hz : c->vm->tsc_hz) / 1000 * REMAKE_MS;
    if (now - d->remake_from > each * REMAKE_BURST)
        d->remake_from = now - each * REMAKE_BURST;
    if (now - d->remake_from < each)
        return false;
    d->remake_from += each;
    return true;
}

void bt_direct_remake(struct bt_vcpu *c)
{
    struct bt_direct *d = c->direct;
    pthread_mutex_lock(&c->vm->direct_lock);
    for (unsigned i = 0; i < d->n_procs; i++) {
        struct direct_proc *p = &d->proc[i];
        if (!atomic_load(&p->dead))
            continue;
        switch (p->stage) {
        case DIRECT_DEAD:
            if (p->space) { /* it has not run since: bt_direct_lost() would end the new one in its place */
                c->st.direct_lost++;
                bt_direct_drop_space(c, p->space);
            }
            if (!remake_paid(c))
                break;
            drain(p->cmd_fd);
            drain(p->exit_fd);
            if (zone_fill(p))
                break;
            p->stage = ask(p) ? DIRECT_DEAD : DIRECT_ASKED;
            break;
        case DIRECT_MADE:
            if (!readable(p->exit_fd, 0)) /* it is on its way, or ended() will come */
                break;
            drain(p->exit_fd);
            p->stage = DIRECT_LIVE;
            if (zone_ready(p)) {
                syscall(SYS_pidfd_send_signal, p->pidfd, SIGKILL, NULL, 0);
                break;
            }
            p->lost = false;
            atomic_fetch_sub(&d->n_lost, 1);
            atomic_store(&p->dead, 0);
            c->st.direct_remade++;
            break;
        default: /* ended() and made() have not been there yet */
            break;
        }
    }
    pthread_mutex_unlock(&c->vm->direct_lock);
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

void bt_direct_destroy(struct bt_vm *vm)
{
    struct direct_answer a;
    int pidfd;
    if (vm->direct_maker_watch)
        vm->host->watch_del(vm->direct_maker_watch);
    vm->direct_maker_watch = NULL;
    end_process(vm->direct_maker_pidfd);
    while (vm->direct_maker_fd >= 0 && answered(vm, &a, &pidfd) == 1)
        end_process(pidfd);
    if (vm->direct_maker_fd >= 0)
        close(vm->direct_maker_fd);
    vm->direct_maker_fd = vm->direct_maker_pidfd = -1;
    bt_direct_copies_end(vm);
    for (unsigned i = 0; i < vm->n_vcpus; i++) {
        struct bt_vcpu *c = vm->vcpu[i];
        struct bt_direct *d = c ? c->direct : NULL;
        if (!d)
            continue;
        for (unsigned j = 0; j < d->n_procs; j++)
            if (d->proc[j].watch)
                vm->host->watch_del(d->proc[j].watch);
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
        d->space[i].backoff = d->space[i].spoilt = 0;
        d->space[i].hold = d->space[i].barred = 0;
        d->space[i].looked = false;
    }
}

static int maker_start(struct bt_vm *vm, struct hvx_error *err)
{
    int fd[DIRECT_MAX_RAM], n = 0, copies = -1;
    for (unsigned i = 0; i < vm->n_direct_ram; i++)
        if (vm->direct_ram[i].helper_fd == DIRECT_RAM_FD + n)
            fd[n++] = vm->direct_ram[i].fd;
    if (n < (int)DIRECT_MAX_RAM)
        copies = bt_direct_copies_make(vm);
    vm->direct_copies_fd = DIRECT_RAM_FD + n;
    if (copies >= 0)
        fd[n++] = copies;
    /* It stays; what the vCPUs are about to fill does not go along: region_map(). */
    vm->direct_maker_fd = bt_direct_maker(fd, n, &vm->direct_maker_pidfd, err);
    if (copies >= 0)
        close(copies);
    return vm->direct_maker_fd < 0 ? vm->direct_maker_fd : 0;
}

static int vcpu_prepare(struct bt_vm *vm, struct bt_vcpu *c, struct hvx_error *err)
{
    struct bt_direct *d = mmap(NULL, sizeof(*d), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                               -1, 0);
    if (d == MAP_FAILED)
        return hvx_fail(err, -ENOMEM, "out of memory");
    d->n_regions = 1;
    for (unsigned i = 0; i < vm->direct_helpers && i < DIRECT_PROCS_MAX; i++) {
        int rc = proc_make(vm, &d->proc[i], c->index * DIRECT_PROCS_MAX + i, err);
        d->proc[i].n_lost = &d->n_lost;
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
    if (!off && maker_start(vm, &why))
        off = why.text;
    for (unsigned i = 0; !off && i < vm->n_vcpus; i++)
        if (vcpu_prepare(vm, vm->vcpu[i], &why))
            off = why.text;
    for (unsigned i = 0; !off && i < vm->n_vcpus; i++) {
        struct bt_direct *d = vm->vcpu[i]->direct;
        for (unsigned j = 0; !off && j < d->n_procs; j++)
            if (vm->host->watch_new(vm->hvm, d->proc[j].pidfd, true, false, ended, &d->proc[j], &d->proc[j].watch))
                off = "cannot watch the helpers";
    }
    if (!off && vm->host->watch_new(vm->hvm, vm->direct_maker_fd, true, false, made, vm, &vm->direct_maker_watch))
        off = "cannot watch the helpers";
    vm->direct32 = !off && bt_direct_code32_works();
    if (!off && !vm->direct32)
        vm->host->log(HVX_LOG_INFO, "cpu-bt",
                      "user-direct execution is for 64-bit programs: the host runs no 32-bit ones");
    bt_cpuid(vm->vcpu[0], 7, 0, r);
    vm->direct_rdpid = (r[2] >> 22 & 1) != 0;
    if (off) {
        vm->host->log(HVX_LOG_INFO, "cpu-bt", "user-direct execution is off: %s", off);
        bt_direct_destroy(vm);
        vm->direct_user = false;
    }
    return 0;
}
