/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/control.c - server side of the control socket.
 */
#define _GNU_SOURCE
#include "core/vm/control.h"
#include "core/vm/control_path.h"
#include "core/vm/tidy.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct client {
    struct hvx_control *control;
    struct hvx_watch *watch;
    int fd; /* -1: this place is free */
    char *in, *out;
    size_t in_n, out_n, out_pos;
    int fds[HVX_CONTROL_MAX_FDS]; /* -1: taken */
    unsigned n_fds;
    bool later;                 /* its request is under way: hvx_control_later() */
    void (*gone)(void *opaque); /* NULL: nobody wants to know */
    void *gone_opaque;
};

struct hvx_control {
    struct hvx_loop *loop;
    int fd;
    struct hvx_watch *watch;
    struct sockaddr_un address;
    struct client client[HVX_CONTROL_MAX_CLIENTS];
    struct client *asking; /* whose request the handler has */
    int (*handler)(void *opaque, const char *command, json_t *request, json_t *answer, struct hvx_error *err);
    void *opaque;
};

static void close_fds(struct client *c)
{
    for (unsigned i = 0; i < c->n_fds; i++)
        if (c->fds[i] >= 0)
            close(c->fds[i]);
    c->n_fds = 0;
}

int hvx_control_take_fd(struct hvx_control *c, unsigned i)
{
    int fd;

    if (!c->asking || i >= c->asking->n_fds)
        return -1;
    fd = c->asking->fds[i];
    c->asking->fds[i] = -1;
    return fd;
}

static void client_close(struct client *c)
{
    if (c->fd < 0)
        return;
    close_fds(c);
    hvx_watch_del(c->watch);
    close(c->fd);
    free(c->in);
    free(c->out);
    c->in = c->out = NULL;
    c->in_n = c->out_n = c->out_pos = 0;
    c->fd = -1;
    c->later = false;
    if (c->gone) {
        void (*gone)(void *) = c->gone;
        c->gone = NULL;
        gone(c->gone_opaque);
    }
}

/* false: the client is gone. */
static bool client_flush(struct client *c)
{
    while (c->out_pos < c->out_n) {
        ssize_t w = send(c->fd, c->out + c->out_pos, c->out_n - c->out_pos, MSG_NOSIGNAL);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0 && errno == EAGAIN) {
            hvx_watch_set(c->watch, false, true); /* one answer at a time: no reading meanwhile */
            return true;
        }
        if (w <= 0) {
            client_close(c);
            return false;
        }
        c->out_pos += (size_t)w;
    }
    free(c->out);
    c->out = NULL;
    c->out_n = c->out_pos = 0;
    hvx_watch_set(c->watch, true, false);
    return true;
}

static char *final_text(json_t *answer, int r, const struct hvx_error *err)
{
    if (r < 0) {
        json_object_clear(answer);
        json_object_set_new(answer, "error", json_string(err->text));
    }
    json_object_set_new(answer, "ok", json_boolean(r >= 0));
    return json_dumps(answer, JSON_COMPACT);
}

/* NULL: no memory, or the answer comes later. */
static char *answer_text(struct hvx_control *control, const char *line, size_t n)
{
    json_error_t je;
    json_t *request = json_loadb(line, n, JSON_REJECT_DUPLICATES, &je), *answer = json_object();
    const char *command = json_string_value(json_object_get(request, "command"));
    struct hvx_error err = {0};
    char *text;
    int r;

    if (!command)
        r = hvx_fail(&err, -EINVAL, "the request is no JSON object with a \"command\"");
    else
        r = control->handler(control->opaque, command, request, answer, &err);
    json_decref(request);
    if (r >= 0 && control->asking->later) {
        json_decref(answer);
        return NULL;
    }
    control->asking->later = false;
    text = final_text(answer, r, &err);
    json_decref(answer);
    return text;
}

/* Put a line behind what waits to be sent. False: the client is gone. */
static bool client_say(struct client *c, const char *text)
{
    size_t n = strlen(text);
    char *out = c->out_n + n < HVX_CONTROL_MAX_ANSWER ? realloc(c->out, c->out_n + n + 1) : NULL;

    if (!out) {
        client_close(c);
        return false;
    }
    memcpy(out + c->out_n, text, n);
    out[c->out_n + n] = '\n';
    c->out = out;
    c->out_n += n + 1;
    return client_flush(c);
}

static bool client_answer(struct client *c, size_t line)
{
    char *text;
    bool there;

    c->control->asking = c;
    text = answer_text(c->control, c->in, line);
    c->control->asking = NULL;
    close_fds(c);
    memmove(c->in, c->in + line + 1, c->in_n - line - 1);
    c->in_n -= line + 1;
    if (!text && c->later)
        return true;
    if (!text) {
        client_close(c);
        return false;
    }
    there = client_say(c, text);
    free(text);
    return there;
}

/* read(), with descriptors that come along. */
static ssize_t take_in(struct client *c)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(HVX_CONTROL_MAX_FDS * sizeof(int))];
    } control;
    struct iovec v = {c->in + c->in_n, HVX_CONTROL_MAX_REQUEST - c->in_n};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(c->fd, &m, MSG_CMSG_CLOEXEC);

    if (n < 0)
        return n;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < (h->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(h) + i * sizeof(int), sizeof(int));
            if (c->n_fds < HVX_CONTROL_MAX_FDS)
                c->fds[c->n_fds++] = fd;
            else
                close(fd);
        }
    }
    return n;
}

static void client_ready(void *opaque, int fd, bool readable, bool writable)
{
    struct client *c = opaque;
    char *end;

    (void)fd;
    if (writable && !client_flush(c))
        return;
    if (readable && !c->out) {
        ssize_t n = take_in(c);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            client_close(c);
            return;
        }
        c->in_n += (size_t)n;
    }
    while (!c->out && !c->later && (end = memchr(c->in, '\n', c->in_n)))
        if (!client_answer(c, (size_t)(end - c->in)))
            return;
    if (!c->out && !c->later && c->in_n == HVX_CONTROL_MAX_REQUEST)
        client_close(c); /* no line may be that long */
}

/* --- answers that take their time ---------------------------------------------------- */

struct hvx_control_client *hvx_control_later(struct hvx_control *c, void (*gone)(void *opaque), void *opaque)
{
    struct client *client = c->asking;

    client->later = true;
    client->gone = gone;
    client->gone_opaque = opaque;
    return (struct hvx_control_client *)client;
}

void hvx_control_progress(struct hvx_control_client *later, json_t *line)
{
    struct client *c = (struct client *)later;
    char *text = c->out ? NULL : json_dumps(line, JSON_COMPACT); /* who does not read misses some */

    json_decref(line);
    if (text)
        client_say(c, text);
    free(text);
}

void hvx_control_answer(struct hvx_control_client *later, json_t *answer, int r, const struct hvx_error *err)
{
    struct client *c = (struct client *)later;
    char *text = final_text(answer, r, err);

    json_decref(answer);
    c->later = false;
    if (text)
        client_say(c, text);
    else
        client_close(c);
    free(text);
}

void hvx_control_forget(struct hvx_control_client *later)
{
    ((struct client *)later)->gone = NULL;
}

/* --- clients ----------------------------------------------------------------------------- */

static void client_came(void *opaque, int fd, bool readable, bool writable)
{
    struct hvx_control *control = opaque;
    int s = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    (void)readable;
    (void)writable;
    if (s < 0)
        return;
    for (unsigned i = 0; i < HVX_CONTROL_MAX_CLIENTS; i++) {
        struct client *c = &control->client[i];
        if (c->fd >= 0)
            continue;
        c->in = malloc(HVX_CONTROL_MAX_REQUEST);
        if (!c->in || hvx_loop_watch_new(control->loop, s, true, false, client_ready, c, &c->watch) < 0) {
            free(c->in);
            c->in = NULL;
            break;
        }
        c->control = control;
        c->fd = s;
        return;
    }
    close(s);
}

int hvx_control_new(struct hvx_loop *loop, const char *name,
                    int (*handler)(void *opaque, const char *command, json_t *request, json_t *answer,
                                   struct hvx_error *err),
                    void *opaque, struct hvx_control **out, struct hvx_error *err)
{
    struct hvx_control *c = calloc(1, sizeof(*c));
    mode_t mask;
    int r;

    if (!c)
        return hvx_fail(err, -ENOMEM, "control socket: out of memory");
    c->loop = loop;
    c->handler = handler;
    c->opaque = opaque;
    c->fd = -1;
    for (unsigned i = 0; i < HVX_CONTROL_MAX_CLIENTS; i++)
        c->client[i].fd = -1;
    r = hvx_control_address(name, true, &c->address, err);
    if (r == 0 && hvx_control_alive(&c->address))
        r = hvx_fail(err, -EEXIST, "a VM named '%s' is running already; choose another --name", name);
    if (r == 0) {
        unlink(c->address.sun_path); /* a leftover, or nothing */
        c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        mask = umask(0177);
        if (c->fd < 0 || bind(c->fd, (struct sockaddr *)&c->address, sizeof(c->address)) < 0 || listen(c->fd, 8) < 0)
            r = hvx_fail(err, -errno, "control socket %s: %s", c->address.sun_path, strerror(errno));
        umask(mask);
        if (r == 0)
            hvx_tidy_add(c->address.sun_path);
    }
    if (r == 0 && (r = hvx_loop_watch_new(loop, c->fd, true, false, client_came, c, &c->watch)) < 0)
        hvx_fail(err, r, "control socket: out of memory");
    if (r < 0) {
        if (c->fd >= 0)
            close(c->fd);
        free(c);
        return r;
    }
    *out = c;
    return 0;
}

void hvx_control_destroy(struct hvx_control *c)
{
    if (!c)
        return;
    hvx_tidy_remove(c->address.sun_path);
    for (unsigned i = 0; i < HVX_CONTROL_MAX_CLIENTS; i++)
        client_close(&c->client[i]);
    hvx_watch_del(c->watch);
    close(c->fd);
    free(c);
}
