/* SPDX-License-Identifier: Apache-2.0
 *
 * user_slirp.c - the process of user networking: libslirp is the guest's
 * router, DHCP server and resolver, and turns its connections into sockets of
 * this process. It needs no privilege. Frames come and go over the link to the
 * VM's process, which user.c is about.
 *
 * libslirp wants to be asked before each sleep which descriptors it waits
 * for, and told afterwards which are ready. libevent has no hook there, so
 * the set lives in an epoll of our own, which the loop watches as one
 * descriptor; it is brought up to date once after anything has happened.
 */
#define _GNU_SOURCE
#include "core/net/user.h"
#include "core/net/link.h"
#include "core/vm/confine.h"

#include <arpa/inet.h>
#include <poll.h>
#include <slirp/libslirp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS 4096u
#define IDLE_MS 60000u

struct user {
    struct hvx_loop *loop;
    struct hvx_link *link;
    Slirp *slirp;
    int epoll_fd, kick_fd;
    struct hvx_watch *watch, *kick_watch;
    struct hvx_timer *timer;
    struct pollfd *fds; /* the set as of the last update */
    unsigned n_fds;
    int old[MAX_FDS]; /* scratch of update() */
    uint16_t *events; /* by descriptor: what the epoll waits for, 0: not in it */
    uint32_t *seen;   /* by descriptor: last update that named it */
    uint32_t generation;
    bool kicked;
};

struct user_timer {
    struct hvx_timer *timer;
    struct user *u;
    SlirpTimerCb cb;
    SlirpTimerId id;
    void *opaque;
};

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* --- the set of descriptors ----------------------------------------------- */
static void epoll_set(struct user *u, int fd, uint16_t events)
{
    struct epoll_event ev = {.events = events, .data.fd = fd};
    uint16_t old = u->events[fd];
    if (old == events)
        return;
    u->events[fd] = events;
    if (!events) {
        epoll_ctl(u->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
        return;
    }
    /* The number may have been closed and used again behind our back. */
    if (epoll_ctl(u->epoll_fd, old ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &ev))
        epoll_ctl(u->epoll_fd, old ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &ev);
}

static int add_poll(int fd, int events, void *opaque)
{
    struct user *u = opaque;
    uint16_t ev = 0;
    if (fd < 0 || (unsigned)fd >= MAX_FDS || u->n_fds == MAX_FDS)
        return -1;
    if (events & SLIRP_POLL_IN)
        ev |= POLLIN;
    if (events & SLIRP_POLL_OUT)
        ev |= POLLOUT;
    if (events & SLIRP_POLL_PRI)
        ev |= POLLPRI;
    if (events & SLIRP_POLL_ERR)
        ev |= POLLERR;
    if (events & SLIRP_POLL_HUP)
        ev |= POLLHUP;
    u->fds[u->n_fds] = (struct pollfd){.fd = fd, .events = (short)ev};
    if (u->seen[fd] != u->generation) {
        u->seen[fd] = u->generation;
        epoll_set(u, fd, ev);
    }
    return (int)u->n_fds++;
}

static int get_revents(int index, void *opaque)
{
    struct user *u = opaque;
    if (index < 0 || (unsigned)index >= u->n_fds)
        return 0;
    short r = u->fds[index].revents;
    return (r & POLLIN ? SLIRP_POLL_IN : 0) | (r & POLLOUT ? SLIRP_POLL_OUT : 0) | (r & POLLPRI ? SLIRP_POLL_PRI : 0) |
           (r & POLLERR ? SLIRP_POLL_ERR : 0) | (r & POLLHUP ? SLIRP_POLL_HUP : 0);
}

static void update(struct user *u)
{
    uint32_t timeout = IDLE_MS;
    u->generation++;
    unsigned n_old = u->n_fds;
    /* Descriptors of the old set that are not in the new one leave the epoll:
     * it would report their hang-ups again and again. */
    for (unsigned i = 0; i < n_old; i++)
        u->old[i] = u->fds[i].fd;
    u->n_fds = 0;
    slirp_pollfds_fill(u->slirp, &timeout, add_poll, u);
    for (unsigned i = 0; i < n_old; i++) {
        if (u->seen[u->old[i]] != u->generation && u->events[u->old[i]])
            epoll_set(u, u->old[i], 0);
    }
    hvx_timer_set(u->timer, now_ns() + (uint64_t)timeout * 1000000u);
}

static void run_slirp(struct user *u)
{
    int r = poll(u->fds, u->n_fds, 0);
    slirp_pollfds_poll(u->slirp, r < 0, get_revents, u);
    update(u);
}

static void on_ready(void *opaque, int fd, bool readable, bool writable)
{
    (void)fd;
    (void)readable;
    (void)writable;
    run_slirp(opaque);
}

static void on_timer(void *opaque)
{
    run_slirp(opaque);
}

/* Ask for an update from the loop, once however many frames come first. */
static void kick(struct user *u)
{
    uint64_t one = 1;
    if (!u->kicked && write(u->kick_fd, &one, sizeof(one)) == sizeof(one))
        u->kicked = true;
}

static void on_kick(void *opaque, int fd, bool readable, bool writable)
{
    struct user *u = opaque;
    uint64_t n;
    (void)readable;
    (void)writable;
    ssize_t got = read(fd, &n, sizeof(n));
    (void)got;
    u->kicked = false;
    run_slirp(u);
}

/* --- what libslirp calls ------------------------------------------------------ */
static ssize_t cb_send_packet(const void *buf, size_t n, void *opaque)
{
    struct user *u = opaque;
    struct iovec v = {(void *)(uintptr_t)buf, n};
    (void)!hvx_link_put(u->link, HVX_LINK_FRAME, &v, 1); /* full: lost, as on a wire */
    return (ssize_t)n;
}

static void cb_guest_error(const char *msg, void *opaque)
{
    struct user *u = opaque;
    (void)msg;
    (void)!hvx_link_put(u->link, HVX_LINK_GUEST_ERROR, NULL, 0); /* the guest's own affair; it shows in hvx stat */
}

static int64_t cb_clock(void *opaque)
{
    (void)opaque;
    return (int64_t)now_ns();
}

static void timer_fired(void *opaque)
{
    struct user_timer *t = opaque;
    if (t->cb)
        t->cb(t->opaque);
    else
        slirp_handle_timer(t->u->slirp, t->id, t->opaque);
    kick(t->u);
}

static void *timer_make(struct user *u, SlirpTimerCb cb, SlirpTimerId id, void *cb_opaque)
{
    struct user_timer *t = calloc(1, sizeof(*t));
    if (!t || hvx_loop_timer_new(u->loop, timer_fired, t, &t->timer)) {
        free(t);
        return NULL;
    }
    t->u = u;
    t->cb = cb;
    t->id = id;
    t->opaque = cb_opaque;
    return t;
}

static void *cb_timer_new(SlirpTimerCb cb, void *cb_opaque, void *opaque)
{
    return timer_make(opaque, cb, SLIRP_TIMER_NUM, cb_opaque);
}

static void *cb_timer_new_opaque(SlirpTimerId id, void *cb_opaque, void *opaque)
{
    return timer_make(opaque, NULL, id, cb_opaque);
}

static void cb_timer_free(void *timer, void *opaque)
{
    struct user_timer *t = timer;
    (void)opaque;
    if (t) {
        hvx_timer_del(t->timer);
        free(t);
    }
}

static void cb_timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
    struct user_timer *t = timer;
    (void)opaque;
    if (t)
        hvx_timer_set(t->timer, expire_ms > 0 ? (uint64_t)expire_ms * 1000000u : 0);
}

static void cb_register_fd(int fd, void *opaque)
{
    (void)fd;
    (void)opaque;
}

static void cb_unregister_fd(int fd, void *opaque)
{
    struct user *u = opaque;
    if (fd >= 0 && (unsigned)fd < MAX_FDS)
        epoll_set(u, fd, 0); /* about to be closed */
}

static void cb_notify(void *opaque)
{
    kick(opaque);
}

static void cb_init_completed(Slirp *slirp, void *opaque)
{
    struct user *u = opaque;
    u->slirp = slirp;
}

static const SlirpCb callbacks = {
    .send_packet = cb_send_packet, .guest_error = cb_guest_error, .clock_get_ns = cb_clock, .timer_new = cb_timer_new,
    .timer_free = cb_timer_free, .timer_mod = cb_timer_mod, .register_poll_fd = cb_register_fd,
    .unregister_poll_fd = cb_unregister_fd, .notify = cb_notify, .init_completed = cb_init_completed,
    .timer_new_opaque = cb_timer_new_opaque,
};

/* --- frames from the VM ------------------------------------------------------------ */
static bool on_record(void *opaque, uint32_t kind, uint8_t *bytes, size_t n)
{
    struct user *u = opaque;
    if (kind == HVX_LINK_FRAME && n >= 14) {
        slirp_input(u->slirp, bytes, (int)n);
        kick(u);
    }
    return true;
}

static void on_end(void *opaque, bool malformed)
{
    (void)opaque;
    _exit(malformed); /* the VM is gone */
}

static const struct hvx_link_ops link_ops = {.record = on_record, .ended = on_end};

static int add_forwards(struct user *u, const struct hvx_net_spec *spec, struct hvx_error *err)
{
    for (unsigned i = 0; i < spec->n_fwd; i++) {
        const struct hvx_net_hostfwd *f = &spec->fwd[i];
        struct in_addr host = {htonl(f->host_addr)};
        struct in_addr guest = {htonl(f->guest_addr ? f->guest_addr : spec->net + 15)};
        errno = 0;
        if (slirp_add_hostfwd(u->slirp, f->udp, host, f->host_port, guest, f->guest_port) < 0) {
            char text[INET_ADDRSTRLEN];
            int e = errno ? errno : EADDRINUSE;
            inet_ntop(AF_INET, &host, text, sizeof(text));
            return hvx_fail(err, -e, "--net: cannot forward %s port %u of %s: %s. Choose another host port%s",
                            f->udp ? "UDP" : "TCP", f->host_port, text, strerror(e),
                            f->host_port < 1024 ? " of 1024 or more: lower ones need a privilege" : "");
        }
    }
    return 0;
}

static int make_slirp(struct user *u, const struct hvx_net_spec *spec, struct hvx_error *err)
{
    SlirpConfig cfg = {
        .version = SLIRP_CONFIG_VERSION_MAX, .restricted = spec->restricted, .in_enabled = true,
        .vnetwork.s_addr = htonl(spec->net), .vnetmask.s_addr = htonl(spec->mask), .vhost.s_addr = htonl(spec->net + 2),
        .vnameserver.s_addr = htonl(spec->net + 3), .vdhcp_start.s_addr = htonl(spec->net + 15), .in6_enabled = true,
        .vprefix_len = 64,
    };
    inet_pton(AF_INET6, "fec0::", &cfg.vprefix_addr6);
    inet_pton(AF_INET6, "fec0::2", &cfg.vhost6);
    inet_pton(AF_INET6, "fec0::3", &cfg.vnameserver6);
    u->slirp = slirp_new(&cfg, &callbacks, u);
    if (!u->slirp)
        return hvx_fail(err, -EIO, "--net user: libslirp %s refuses this configuration", slirp_version_string());
    return 0;
}

static int set_up(struct user *u, int fd, const struct hvx_net_spec *spec, struct hvx_error *err)
{
    int r = hvx_loop_new(&u->loop, err);
    if (r)
        return r;
    u->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    u->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    u->fds = calloc(MAX_FDS, sizeof(u->fds[0]));
    u->events = calloc(MAX_FDS, sizeof(u->events[0]));
    u->seen = calloc(MAX_FDS, sizeof(u->seen[0]));
    r = u->epoll_fd >= 0 && u->kick_fd >= 0 && u->fds && u->events && u->seen ? 0 : -ENOMEM;
    if (!r)
        r = hvx_loop_timer_new(u->loop, on_timer, u, &u->timer);
    if (!r)
        r = hvx_loop_watch_new(u->loop, u->epoll_fd, true, false, on_ready, u, &u->watch);
    if (!r)
        r = hvx_loop_watch_new(u->loop, u->kick_fd, true, false, on_kick, u, &u->kick_watch);
    if (!r)
        r = hvx_link_new(u->loop, fd, HVX_NET_MAX_FRAME, &link_ops, u, &u->link);
    if (r)
        return hvx_fail(err, r, "no memory or descriptors for user networking");
    r = make_slirp(u, spec, err);
    return r ? r : add_forwards(u, spec, err);
}

void hvx_net_user_main(int fd, const struct hvx_net_spec *spec)
{
    struct hvx_error err = {0};
    struct user *u = calloc(1, sizeof(*u));
    int r = u ? set_up(u, fd, spec, &err) : hvx_fail(&err, -ENOMEM, "no memory for user networking");
    if (!r)
        r = hvx_confine_process(HVX_CONFINE_NET, NULL, 0, &err);
    err.code = r;
    if (send(fd, &err, sizeof(err), MSG_NOSIGNAL) != sizeof(err) || r)
        _exit(1);
    kick(u);
    _exit(hvx_loop_run(u->loop) < 0);
}
