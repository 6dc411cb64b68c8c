/* SPDX-License-Identifier: Apache-2.0
 *
 * user.c - user networking, the VM's half: starts the process that has the
 * sockets, and passes frames to and fro.
 *
 * It is a process of its own because it must be able to open sockets for as
 * long as the guest runs, which the VM's own process must not (confine.h). It
 * is forked before the VM opens disks; guest RAM does not go along (ram.c).
 */
#define _GNU_SOURCE
#include "core/net/link.h"
#include "core/net/user.h"
#include "core/vm/confine.h"
#include "core/vm/internal.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEPT_FD 3
#define GOODBYE_MS 3000

struct user {
    struct hvx_net *net;
    struct hvx_link *link;
    pid_t pid;
    int fd;
};

static bool on_record(void *opaque, uint32_t kind, uint8_t *bytes, size_t n)
{
    struct hvx_net_meta verified = {.flags = 2}; /* libslirp has just computed it */
    struct user *u = opaque;
    struct iovec v = {bytes, n};

    if (kind == HVX_LINK_GUEST_ERROR)
        u->net->count.tx_bad++;
    return kind != HVX_LINK_FRAME || hvx_net_deliver(u->net, &v, 1, &verified, false);
}

static void on_end(void *opaque, bool malformed)
{
    struct user *u = opaque;

    (void)malformed;
    hvx_log(HVX_LOG_ERROR, "user networking",
            "its process has ended; the guest's network is dead until the VM is started again");
    (void)u;
}

static const struct hvx_link_ops link_ops = {.record = on_record, .ended = on_end};

static bool user_send(struct hvx_net *n, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta)
{
    struct user *u = n->priv;

    (void)meta;
    return hvx_link_put(u->link, HVX_LINK_FRAME, iov, n_iov);
}

static void user_resume(struct hvx_net *n)
{
    struct user *u = n->priv;

    hvx_link_resume(u->link);
}

static void user_close(struct hvx_net *n)
{
    struct user *u = n->priv;
    struct pollfd p = {.fd = u->fd, .events = POLLRDHUP};

    n->priv = NULL;
    /* It ends when its socket does. Should it hang, it dies with us (PR_SET_PDEATHSIG). */
    shutdown(u->fd, SHUT_WR);
    for (int left = GOODBYE_MS; left > 0 && poll(&p, 1, 100) <= 0; left -= 100)
        ;
    hvx_link_free(u->link);
    while (u->pid > 0 && waitpid(u->pid, NULL, p.revents & POLLRDHUP ? 0 : WNOHANG) < 0 && errno == EINTR)
        ;
    free(u);
}

static const struct hvx_net_backend user_backend = {
    .can = 0, .send = user_send, .resume = user_resume, .close = user_close};

/* In the child. */
__attribute__((noreturn)) static void child(int fd, pid_t parent, const struct hvx_net_spec *spec)
{
    int null = open("/dev/null", O_RDWR);

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(0);
    prctl(PR_SET_NAME, "hvx-net");
    dup2(null, 0);
    dup2(null, 1);
    if (fd != KEPT_FD)
        dup2(fd, KEPT_FD);
    close_range(KEPT_FD + 1, ~0u, 0);
    hvx_net_user_main(KEPT_FD, spec);
}

static int hear_answer(int fd, struct hvx_error *err)
{
    struct hvx_error answer;
    ssize_t n;

    do
        n = recv(fd, &answer, sizeof(answer), MSG_WAITALL);
    while (n < 0 && errno == EINTR);
    if (n != sizeof(answer))
        return hvx_fail(err, -EIO, "the process of user networking died at its start");
    answer.text[sizeof(answer.text) - 1] = 0;
    return answer.code ? hvx_fail(err, answer.code, "%s", answer.text) : 0;
}

/* For another process: one of its own, which no parent will bury. */
int hvx_net_user_fd(const struct hvx_net_spec *spec, struct hvx_error *err)
{
    int fd[2], r;
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) < 0)
        return hvx_fail(err, -errno, "no descriptors for user networking");
    pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);
        setsid();
        prctl(PR_SET_NAME, "hvx-net");
        for (int i = 0; i < 3; i++)
            dup2(null, i); /* whoever reads our output waits for its end */
        if (fd[1] != KEPT_FD)
            dup2(fd[1], KEPT_FD);
        close_range(KEPT_FD + 1, ~0u, 0);
        hvx_confine_plan("hvx attach");
        hvx_net_user_main(KEPT_FD, spec);
    }
    close(fd[1]);
    r = pid < 0 ? hvx_fail(err, -errno, "cannot start a process for user networking: %s", strerror(errno))
                : hear_answer(fd[0], err);
    if (r) {
        close(fd[0]);
        return r;
    }
    return fd[0];
}

/* A line to a process that somebody else started. */
static int adopt(struct hvx_net *n, struct user *u, int line, struct hvx_error *err)
{
    int r;

    u->net = n;
    u->pid = -1;
    u->fd = fcntl(line, F_DUPFD_CLOEXEC, 3);
    if (u->fd < 0)
        return hvx_fail(err, -errno, "--net user: descriptor %d cannot be used: %s", line, strerror(errno));
    r = hvx_link_new(n->loop, u->fd, HVX_NET_MAX_FRAME, &link_ops, u, &u->link);
    if (r < 0) {
        close(u->fd);
        return hvx_fail(err, r, "--net user: descriptor %d cannot be used: %s", line, strerror(-r));
    }
    n->priv = u;
    n->backend = &user_backend;
    return 0;
}

int hvx_net_user_open(struct hvx_net *n, const struct hvx_net_spec *spec, struct hvx_error *err)
{
    struct user *u = calloc(1, sizeof(*u));
    pid_t parent = getpid();
    int fd[2], r;

    if (spec->fd >= 0) {
        r = u ? adopt(n, u, spec->fd, err) : hvx_fail(err, -ENOMEM, "no memory for user networking");
        if (r)
            free(u);
        return r;
    }
    if (hvx_confined()) {
        free(u);
        return hvx_fail(err, -EPERM, "user networking needs a process of its own, which a running, confined VM cannot "
                                     "start: give it at the start of the VM, or pass an opened TAP");
    }
    if (!u || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) < 0) {
        free(u);
        return hvx_fail(err, -ENOMEM, "no memory or descriptors for user networking");
    }
    u->net = n;
    u->fd = fd[0];
    u->pid = fork();
    if (u->pid == 0)
        child(fd[1], parent, spec);
    close(fd[1]);
    r = u->pid < 0 ? hvx_fail(err, -errno, "cannot start a process for user networking: %s", strerror(errno))
                   : hear_answer(u->fd, err);
    if (!r && (r = hvx_link_new(n->loop, u->fd, HVX_NET_MAX_FRAME, &link_ops, u, &u->link)) < 0)
        hvx_fail(err, r, "no memory for user networking");
    if (r) {
        close(u->fd);
        if (u->pid > 0)
            while (waitpid(u->pid, NULL, 0) < 0 && errno == EINTR)
                ;
        free(u);
        return r;
    }
    n->priv = u;
    n->backend = &user_backend;
    return 0;
}
