/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/control_talk.c - the client's side of a conversation with a VM.
 */
#define _GNU_SOURCE
#include "core/vm/control.h"
#include "core/vm/control_path.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define MAX_LINE 65536u
#define PATIENCE_S 120 /* without a line of progress: quiescing a slow disk takes its time */

struct hvx_talk {
    int fd;
    size_t n;
    char name[HVX_CONTROL_MAX_NAME + 1];
    char in[MAX_LINE];
};

int hvx_talk_open(const char *name, struct hvx_talk **out, struct hvx_error *err)
{
    struct timeval wait = {PATIENCE_S, 0};
    struct hvx_talk *t;
    struct sockaddr_un a;
    int r = hvx_control_address(name, false, &a, err);

    if (r < 0)
        return r == -ENOENT ? hvx_fail(err, r, "no VM named '%s' is running; `hvx ps` lists them", name) : r;
    t = calloc(1, sizeof(*t));
    if (!t)
        return hvx_fail(err, -ENOMEM, "out of memory");
    snprintf(t->name, sizeof(t->name), "%s", name);
    t->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (t->fd < 0 || connect(t->fd, (const struct sockaddr *)&a, sizeof(a)) < 0) {
        r = -errno;
        hvx_talk_close(t);
        if (r == -ECONNREFUSED || r == -ENOENT)
            return hvx_fail(err, -ENOENT, "no VM named '%s' is running; `hvx ps` lists them", name);
        return hvx_fail(err, r, "cannot reach VM '%s' at %s: %s", name, a.sun_path, strerror(-r));
    }
    setsockopt(t->fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
    setsockopt(t->fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
    *out = t;
    return 0;
}

void hvx_talk_close(struct hvx_talk *t)
{
    if (!t)
        return;
    if (t->fd >= 0)
        close(t->fd);
    free(t);
}

static int send_all(struct hvx_talk *t, const char *text, int fd, struct hvx_error *err)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.head = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    size_t n = strlen(text);

    memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
    for (size_t done = 0; done < n;) {
        struct iovec v = {(void *)(uintptr_t)(text + done), n - done};
        struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
        ssize_t w;
        if (fd >= 0 && !done) {
            m.msg_control = &control;
            m.msg_controllen = sizeof(control.room);
        }
        w = sendmsg(t->fd, &m, MSG_NOSIGNAL);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return hvx_fail(err, -EIO, "VM '%s' does not take requests: %s", t->name, strerror(errno));
        done += (size_t)w;
    }
    return 0;
}

/* The next line, which stays in t->in until the call after. */
static int read_line(struct hvx_talk *t, size_t *length, struct hvx_error *err)
{
    for (;;) {
        char *end = memchr(t->in, '\n', t->n);
        ssize_t r;
        if (end) {
            *length = (size_t)(end - t->in);
            return 0;
        }
        if (t->n == sizeof(t->in))
            return hvx_fail(err, -EPROTO, "VM '%s' gave an answer without an end; are both of one version?", t->name);
        r = read(t->fd, t->in + t->n, sizeof(t->in) - t->n);
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return hvx_fail(err, -EIO, "VM '%s' %s", t->name,
                            r < 0 ? "does not answer; is it stuck? `hvx kill` ends it" : "went away without an answer");
        t->n += (size_t)r;
    }
}

/* 1: it was progress, 0: *answer is the answer. */
static int take_line(struct hvx_talk *t, size_t length, void (*progress)(void *opaque, json_t *line), void *opaque,
                     json_t **answer, struct hvx_error *err)
{
    json_t *line = json_loadb(t->in, length, 0, NULL), *ok = json_object_get(line, "ok");

    memmove(t->in, t->in + length + 1, t->n - length - 1);
    t->n -= length + 1;
    if (!json_is_object(line)) {
        json_decref(line);
        return hvx_fail(err, -EPROTO, "VM '%s' gave an answer that is no JSON; are both of one version?", t->name);
    }
    if (!ok) {
        if (progress)
            progress(opaque, line);
        json_decref(line);
        return 1;
    }
    if (!json_is_true(ok)) {
        const char *why = json_string_value(json_object_get(line, "error"));
        hvx_fail(err, -EREMOTEIO, "VM '%s': %s", t->name, why ? why : "refused");
        json_decref(line);
        return -EREMOTEIO;
    }
    *answer = line;
    return 0;
}

int hvx_talk(struct hvx_talk *t, json_t *request, int fd, void (*progress)(void *opaque, json_t *line), void *opaque,
             json_t **answer, struct hvx_error *err)
{
    char *text = json_dumps(request, JSON_COMPACT), *line = NULL;
    size_t length = 0;
    int r;

    if (!text || asprintf(&line, "%s\n", text) < 0) {
        free(text);
        return hvx_fail(err, -ENOMEM, "out of memory");
    }
    r = send_all(t, line, fd, err);
    free(line);
    free(text);
    while (r == 0 && (r = read_line(t, &length, err)) == 0)
        if ((r = take_line(t, length, progress, opaque, answer, err)) <= 0)
            return r;
        else
            r = 0;
    return r;
}
