/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/chr.c - character streams.
 *
 * Both directions have a bounded buffer. Output is written by the loop, not
 * by the vCPU that produced it, so a slow reader delays nothing but the line
 * itself; input that the guest does not take stops being read. Guests write
 * a serial line byte by byte: what comes within PACE_NS after the last write
 * leaves together, so that a thread is not woken for each.
 */
#define _GNU_SOURCE
#include "core/vm/chr.h"
#include "core/vm/internal.h"
#include "core/vm/tidy.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define OUT_SIZE 65536u /* power of two */
#define IN_SIZE 4096u
#define PACE_NS 1000000ull /* one write of output a millisecond, unless half of the buffer is full */
#define ESCAPE 0x1d /* ^] */
#define ESCAPE_WAIT_NS 700000000ull

struct hvx_chr {
    struct hvx_loop *loop;
    int in_fd, out_fd, listen_fd; /* -1: none */
    bool in_direct; /* a regular file: always ready, epoll refuses it */
    bool own_out;
    struct hvx_watch *in_watch, *out_watch, *listen_watch;
    char *unlink_path;
    struct hvx_chr_ops ops;
    void *opaque;
    bool attached, deliver_posted, flush_posted, pacing, swallow;
    bool mid_line; /* what left last was no end of a line */
    struct hvx_timer *pace;
    uint64_t left_ns; /* when output left last */
    uint8_t in[IN_SIZE], out[OUT_SIZE];
    size_t in_pos, in_n, out_head, out_n;
    /* leaving by ^] */
    bool terminal, escape_seen;
    struct hvx_timer *escape_timer;
    void (*on_escape)(void *opaque);
    void *escape_opaque;
    struct termios saved;
};

/* One process has one terminal; atexit() must find it. */
static struct hvx_chr *terminal_user;

static void restore_terminal(void)
{
    if (terminal_user && terminal_user->terminal)
        tcsetattr(0, TCSADRAIN, &terminal_user->saved);
}

static void deliver(void *opaque);

/* --- output ------------------------------------------------------------------ */

static void want_output(struct hvx_chr *c, bool want)
{
    if (c->out_watch)
        hvx_watch_set(c->out_watch, c->out_watch == c->in_watch && c->in_n < IN_SIZE, want);
}

static void drop_client(struct hvx_chr *c);

static void flush(void *opaque)
{
    struct hvx_chr *c = opaque;

    c->flush_posted = c->pacing = false;
    c->left_ns = hvx_clock_ns();
    while (c->out_n && c->out_fd >= 0) {
        size_t n = OUT_SIZE - c->out_head < c->out_n ? OUT_SIZE - c->out_head : c->out_n;
        ssize_t w = write(c->out_fd, c->out + c->out_head, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0 && errno == EAGAIN) {
            want_output(c, true);
            return;
        }
        if (w <= 0) { /* nobody reads any more: swallow from here on */
            if (c->listen_fd >= 0)
                drop_client(c);
            else
                c->swallow = true;
            c->out_n = 0;
            return;
        }
        c->out_head = (c->out_head + (size_t)w) & (OUT_SIZE - 1);
        c->out_n -= (size_t)w;
        c->mid_line = c->out[(c->out_head - 1) & (OUT_SIZE - 1)] != '\n';
    }
    want_output(c, false);
}

/* At once when the line was quiet or there is much, else when its time has come. */
static void flush_soon(struct hvx_chr *c)
{
    bool much = c->out_n >= OUT_SIZE / 2;

    if (c->flush_posted || (c->pacing && !much))
        return;
    if (!much && hvx_clock_ns() - c->left_ns < PACE_NS) {
        c->pacing = true;
        hvx_timer_set(c->pace, c->left_ns + PACE_NS);
    } else {
        c->flush_posted = hvx_loop_post(c->loop, flush, c) == 0;
    }
}

size_t hvx_chr_write(struct hvx_chr *c, const uint8_t *buf, size_t n)
{
    size_t room = OUT_SIZE - c->out_n, taken = n < room ? n : room;

    if (c->swallow || c->out_fd < 0)
        return n;
    for (size_t i = 0; i < taken; i++)
        c->out[(c->out_head + c->out_n + i) & (OUT_SIZE - 1)] = buf[i];
    c->out_n += taken;
    if (taken)
        flush_soon(c);
    return taken;
}

/* --- input -------------------------------------------------------------------- */

static void leave(void *opaque)
{
    struct hvx_chr *c = opaque;

    c->escape_seen = false;
    if (c->on_escape)
        c->on_escape(c->escape_opaque);
}

static void take_input(struct hvx_chr *c, const uint8_t *buf, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (c->terminal && c->escape_seen) {
            c->escape_seen = false;
            hvx_timer_set(c->escape_timer, UINT64_MAX);
            if (buf[i] != ESCAPE) {
                leave(c);
                return;
            }
        } else if (c->terminal && buf[i] == ESCAPE) {
            c->escape_seen = true;
            hvx_timer_set(c->escape_timer, hvx_clock_ns() + ESCAPE_WAIT_NS);
            continue;
        }
        c->in[c->in_n++] = buf[i];
    }
}

static void watch_input(struct hvx_chr *c)
{
    if (c->in_watch)
        hvx_watch_set(c->in_watch, c->in_n < IN_SIZE, c->in_watch == c->out_watch && c->out_n > 0);
}

/* false: nothing more will come. */
static bool read_input(struct hvx_chr *c)
{
    uint8_t buf[IN_SIZE];
    ssize_t n;

    if (c->in_pos) {
        memmove(c->in, c->in + c->in_pos, c->in_n - c->in_pos);
        c->in_n -= c->in_pos;
        c->in_pos = 0;
    }
    if (c->in_n == IN_SIZE)
        return true;
    n = read(c->in_fd, buf, IN_SIZE - c->in_n);
    if (n > 0)
        take_input(c, buf, (size_t)n);
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static void close_input(struct hvx_chr *c)
{
    if (c->in_watch) {
        if (c->in_watch == c->out_watch)
            c->out_watch = NULL;
        hvx_watch_del(c->in_watch);
        c->in_watch = NULL;
    }
    c->in_direct = false;
    c->in_fd = -1;
}

static void deliver(void *opaque)
{
    struct hvx_chr *c = opaque;

    c->deliver_posted = false;
    do {
        if (c->in_direct && c->attached && c->in_pos == c->in_n && !read_input(c))
            close_input(c);
        if (!c->attached || !c->ops.receive || c->in_pos == c->in_n)
            break;
        c->in_pos += c->ops.receive(c->opaque, c->in + c->in_pos, c->in_n - c->in_pos);
    } while (c->in_direct && c->in_pos == c->in_n);
    if (c->in_pos == c->in_n)
        c->in_pos = c->in_n = 0;
    watch_input(c);
}

static void post_deliver(struct hvx_chr *c)
{
    if (!c->deliver_posted)
        c->deliver_posted = hvx_loop_post(c->loop, deliver, c) == 0;
}

/* From a post and not at once: the device calls this in the middle of its own
 * register access. */
void hvx_chr_rx_ready(struct hvx_chr *c)
{
    if (c->in_n || c->in_direct)
        post_deliver(c);
}

static void fd_ready(void *opaque, int fd, bool readable, bool writable)
{
    struct hvx_chr *c = opaque;

    (void)fd;
    if (writable)
        flush(c);
    if (readable && c->in_fd >= 0) {
        if (!read_input(c)) {
            if (c->listen_fd >= 0) {
                drop_client(c);
                return;
            }
            close_input(c);
        }
        deliver(c);
    }
}

void hvx_chr_set_guest(struct hvx_chr *c, const struct hvx_chr_ops *ops, void *opaque)
{
    c->attached = ops != NULL;
    if (!ops)
        return;
    c->ops = *ops;
    c->opaque = opaque;
    hvx_chr_rx_ready(c);
}

/* --- unix:PATH --------------------------------------------------------------------- */

static void drop_client(struct hvx_chr *c)
{
    int fd = c->in_fd;

    hvx_watch_del(c->in_watch);
    c->in_watch = c->out_watch = NULL;
    c->in_fd = c->out_fd = -1;
    c->out_n = 0;
    if (fd >= 0)
        close(fd);
}

static void client_came(void *opaque, int fd, bool readable, bool writable)
{
    struct hvx_chr *c = opaque;
    int client = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    (void)readable;
    (void)writable;
    if (client < 0)
        return;
    if (c->in_fd >= 0 || hvx_loop_watch_new(c->loop, client, true, false, fd_ready, c, &c->in_watch) < 0) {
        close(client); /* one at a time */
        return;
    }
    c->out_watch = c->in_watch;
    c->in_fd = c->out_fd = client;
}

/* A socket that nobody listens on is a leftover and may be replaced. */
static bool stale_socket(const struct sockaddr_un *a)
{
    struct stat st;
    int fd, r;

    if (lstat(a->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return false;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    r = fd < 0 ? 0 : connect(fd, (const struct sockaddr *)a, sizeof(*a));
    if (fd >= 0)
        close(fd);
    return r < 0 && errno == ECONNREFUSED;
}

static int open_unix(struct hvx_chr *c, const char *path, struct hvx_error *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    mode_t mask;
    int r;

    if (strlen(path) >= sizeof(a.sun_path))
        return hvx_fail(err, -ENAMETOOLONG, "serial line unix:%s: the path is longer than %zu characters", path,
                        sizeof(a.sun_path) - 1);
    memcpy(a.sun_path, path, strlen(path) + 1);
    if (stale_socket(&a))
        unlink(path);
    c->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mask = umask(0177);
    r = c->listen_fd < 0 ? -1 : bind(c->listen_fd, (struct sockaddr *)&a, sizeof(a));
    umask(mask);
    if (r < 0 || listen(c->listen_fd, 2) < 0)
        return hvx_fail(err, -errno, "serial line unix:%s: cannot listen: %s", path, strerror(errno));
    c->unlink_path = strdup(path);
    hvx_tidy_add(path);
    return hvx_loop_watch_new(c->loop, c->listen_fd, true, false, client_came, c, &c->listen_watch);
}

/* --- stdio and file:PATH -------------------------------------------------------------- */

static bool pollable(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode) || isatty(fd));
}

/* A file description of our own, so that O_NONBLOCK does not leak into the
 * shell that shares the terminal with us. */
static int reopen(int fd, int flags)
{
    char path[40];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return open(path, flags | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
}

static int open_stdio(struct hvx_chr *c, struct hvx_error *err)
{
    struct stat st;
    int r = 0;

    if (terminal_user)
        return hvx_fail(err, -EBUSY, "serial line stdio: another line uses the terminal already");
    terminal_user = c;
    c->out_fd = 1;
    if (pollable(1)) {
        int fd = reopen(1, O_WRONLY);
        if (fd >= 0) {
            c->out_fd = fd;
            c->own_out = true;
        }
        r = hvx_loop_watch_new(c->loop, c->out_fd, false, false, fd_ready, c, &c->out_watch);
    }
    if (r == 0 && pollable(0)) {
        c->in_fd = 0;
        r = hvx_loop_watch_new(c->loop, 0, true, false, fd_ready, c, &c->in_watch);
    } else if (r == 0 && fstat(0, &st) == 0 && S_ISREG(st.st_mode)) {
        c->in_fd = 0;
        c->in_direct = true;
    }
    if (r == 0)
        r = hvx_loop_timer_new(c->loop, leave, c, &c->escape_timer);
    if (r < 0)
        return hvx_fail(err, r, "serial line stdio: %s", strerror(-r));
    if (isatty(0) && tcgetattr(0, &c->saved) == 0 && tcgetpgrp(0) == getpgrp()) {
        struct termios raw = c->saved;
        static bool registered;
        cfmakeraw(&raw);
        if (tcsetattr(0, TCSADRAIN, &raw) == 0)
            c->terminal = true;
        if (!registered)
            registered = atexit(restore_terminal) == 0;
    }
    return 0;
}

static int open_file(struct hvx_chr *c, const char *path, struct hvx_error *err)
{
    c->out_fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, 0666);
    if (c->out_fd < 0)
        return hvx_fail(err, -errno, "serial line file:%s: cannot open it: %s", path, strerror(errno));
    c->own_out = true;
    return pollable(c->out_fd) ? hvx_loop_watch_new(c->loop, c->out_fd, false, false, fd_ready, c, &c->out_watch) : 0;
}

int hvx_chr_open(struct hvx_loop *loop, const char *spec, void (*on_escape)(void *opaque), void *opaque,
                 struct hvx_chr **out, struct hvx_error *err)
{
    struct hvx_chr *c = calloc(1, sizeof(*c));
    int r;

    if (!c)
        return hvx_fail(err, -ENOMEM, "serial line: out of memory");
    c->loop = loop;
    c->in_fd = c->out_fd = c->listen_fd = -1;
    c->on_escape = on_escape;
    c->escape_opaque = opaque;
    r = hvx_loop_timer_new(loop, flush, c, &c->pace);
    if (r < 0) {
        hvx_chr_close(c);
        return hvx_fail(err, r, "serial line: %s", strerror(-r));
    }
    if (!strcmp(spec, "null") || !strcmp(spec, "none"))
        r = 0;
    else if (!strcmp(spec, "stdio"))
        r = open_stdio(c, err);
    else if (!strncmp(spec, "file:", 5) && spec[5])
        r = open_file(c, spec + 5, err);
    else if (!strncmp(spec, "unix:", 5) && spec[5])
        r = open_unix(c, spec + 5, err);
    else
        r = hvx_fail(err, -EINVAL, "serial line '%s': say stdio, null, file:PATH or unix:PATH", spec);
    if (r < 0) {
        hvx_chr_close(c);
        return r;
    }
    *out = c;
    return 0;
}

/* What is still buffered gets a moment to leave: the last lines of a guest
 * are the ones that matter. */
static void flush_at_close(struct hvx_chr *c)
{
    for (unsigned i = 0; i < 50 && c->out_n && c->out_fd >= 0; i++) {
        size_t before = c->out_n;
        flush(c);
        if (c->out_n && c->out_n == before) {
            struct timespec wait = {0, 10000000};
            nanosleep(&wait, NULL);
        }
    }
    /* On a terminal that messages share they begin on a line of their own. */
    if (c == terminal_user && c->mid_line && isatty(1) && isatty(2))
        (void)!write(1, "\r\n", 2);
}

void hvx_chr_close(struct hvx_chr *c)
{
    if (!c)
        return;
    flush_at_close(c);
    hvx_loop_unpost(c->loop, flush, c);
    hvx_loop_unpost(c->loop, deliver, c);
    if (terminal_user == c) {
        restore_terminal();
        terminal_user = NULL;
    }
    if (c->listen_fd >= 0) {
        drop_client(c);
        hvx_watch_del(c->listen_watch);
        close(c->listen_fd);
        if (c->unlink_path)
            hvx_tidy_remove(c->unlink_path);
    } else {
        close_input(c);
        hvx_watch_del(c->out_watch);
        if (c->own_out)
            close(c->out_fd);
    }
    hvx_timer_del(c->escape_timer);
    hvx_timer_del(c->pace);
    free(c->unlink_path);
    free(c);
}
