/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/control_client.c - finding running VMs and talking to them.
 */
#define _GNU_SOURCE
#include "core/vm/control.h"
#include "core/vm/control_path.h"

#include <dirent.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#define SUFFIX ".sock"
#define MAX_VMS 4096u
#define TIMEOUT_S 20

bool hvx_control_name_ok(const char *name)
{
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");

    return n > 0 && n <= HVX_CONTROL_MAX_NAME && !name[n] && name[0] != '.';
}

int hvx_control_dir(char *buf, size_t n, bool create, struct hvx_error *err)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    struct stat st;

    if (runtime && runtime[0] == '/')
        snprintf(buf, n, "%s/hvx", runtime);
    else if (geteuid() == 0)
        snprintf(buf, n, "/run/hvx");
    else
        snprintf(buf, n, "/tmp/hvx-%u", (unsigned)geteuid());
    if (create && mkdir(buf, 0700) < 0 && errno != EEXIST)
        return hvx_fail(err, -errno, "control socket: cannot create the folder %s: %s", buf, strerror(errno));
    if (lstat(buf, &st) < 0)
        return hvx_fail(err, -errno, "control socket: folder %s: %s", buf, strerror(errno));
    /* In /tmp anybody could have made it first. */
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 022))
        return hvx_fail(err, -EPERM, "control socket: %s is not a folder that only you can write to", buf);
    return 0;
}

int hvx_control_address(const char *name, bool create, struct sockaddr_un *a, struct hvx_error *err)
{
    char dir[PATH_MAX];
    int r;

    if (!hvx_control_name_ok(name))
        return hvx_fail(err, -EINVAL, "'%s' cannot be the name of a VM: use up to %u letters, digits, '.', '_', '-'",
                        name, HVX_CONTROL_MAX_NAME);
    r = hvx_control_dir(dir, sizeof(dir), create, err);
    if (r < 0)
        return r;
    memset(a, 0, sizeof(*a));
    a->sun_family = AF_UNIX;
    if (snprintf(a->sun_path, sizeof(a->sun_path), "%s/%s" SUFFIX, dir, name) >= (int)sizeof(a->sun_path))
        return hvx_fail(err, -ENAMETOOLONG, "control socket: %s is too long a folder name", dir);
    return 0;
}

static int dial(const struct sockaddr_un *a)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 && connect(fd, (const struct sockaddr *)a, sizeof(*a)) < 0) {
        int e = errno;
        close(fd);
        return -e;
    }
    return fd < 0 ? -errno : fd;
}

bool hvx_control_alive(const struct sockaddr_un *a)
{
    int fd = dial(a);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

/* send(), with descriptors along with the first byte. */
static ssize_t send_some(int fd, const char *text, size_t n, const int *fds, unsigned n_fds)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(HVX_CONTROL_MAX_FDS * sizeof(int))];
    } control = {0};
    struct iovec v = {(void *)(uintptr_t)text, n};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};

    if (n_fds) {
        m.msg_control = &control;
        m.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        control.head.cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(&control.head), fds, n_fds * sizeof(int));
    }
    return sendmsg(fd, &m, MSG_NOSIGNAL);
}

static int exchange(int fd, const char *text, const int *fds, unsigned n_fds, char **line, struct hvx_error *err)
{
    size_t n = 0, size = 4096;
    char *buf = malloc(size);
    struct timeval wait = {TIMEOUT_S, 0};

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
    for (size_t done = 0, all = strlen(text); buf && done < all;) {
        ssize_t w = send_some(fd, text + done, all - done, fds, done ? 0 : n_fds);
        if (w <= 0 && errno != EINTR) {
            free(buf);
            return hvx_fail(err, -EIO, "the VM does not take requests: %s", strerror(errno));
        }
        done += w > 0 ? (size_t)w : 0;
    }
    while (buf) {
        ssize_t r = read(fd, buf + n, size - n - 1);
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0) {
            free(buf);
            return hvx_fail(err, -EIO, "the VM %s",
                            r < 0 ? "does not answer; is it stuck? `hvx kill` ends it" : "went away without an answer");
        }
        n += (size_t)r;
        if (buf[n - 1] == '\n') {
            buf[n] = 0;
            *line = buf;
            return 0;
        }
        if (n + 1 == size) {
            char *bigger = size < HVX_CONTROL_MAX_ANSWER ? realloc(buf, size * 2) : NULL;
            if (!bigger)
                free(buf);
            buf = bigger;
            size *= 2;
        }
    }
    return hvx_fail(err, -ENOMEM, "no memory for the VM's answer");
}

int hvx_control_call(const char *name, json_t *request, json_t **answer, struct hvx_error *err)
{
    return hvx_control_call_fds(name, request, NULL, 0, answer, err);
}

int hvx_control_call_fds(const char *name, json_t *request, const int *fds, unsigned n_fds, json_t **answer,
                         struct hvx_error *err)
{
    struct sockaddr_un a;
    char *text, *line = NULL;
    json_t *reply;
    int r = hvx_control_address(name, false, &a, err), fd;

    if (r == -ENOENT)
        return hvx_fail(err, r, "no VM named '%s' is running; `hvx ps` lists them", name);
    if (r < 0)
        return r;
    fd = dial(&a);
    if (fd == -ECONNREFUSED) /* its process died without tidying up */
        unlink(a.sun_path);
    if (fd == -ECONNREFUSED || fd == -ENOENT)
        return hvx_fail(err, -ENOENT, "no VM named '%s' is running; `hvx ps` lists them", name);
    if (fd < 0)
        return hvx_fail(err, fd, "cannot reach VM '%s' at %s: %s", name, a.sun_path, strerror(-fd));
    text = json_dumps(request, JSON_COMPACT);
    if (text) {
        size_t n = strlen(text);
        char *with_end = realloc(text, n + 2);
        if (with_end)
            memcpy(with_end + n, "\n", 2);
        text = with_end;
    }
    if (n_fds > HVX_CONTROL_MAX_FDS) {
        free(text);
        close(fd);
        return hvx_fail(err, -E2BIG, "VM '%s': %u descriptors with one request; at most %u are possible", name, n_fds,
                        HVX_CONTROL_MAX_FDS);
    }
    r = text ? exchange(fd, text, fds, n_fds, &line, err) : hvx_fail(err, -ENOMEM, "out of memory");
    free(text);
    close(fd);
    if (r < 0)
        return r;
    reply = json_loads(line, 0, NULL);
    free(line);
    if (!json_is_object(reply)) {
        json_decref(reply);
        return hvx_fail(err, -EPROTO, "VM '%s' gave an answer that is no JSON; are both of one version?", name);
    }
    if (!json_is_true(json_object_get(reply, "ok"))) {
        const char *why = json_string_value(json_object_get(reply, "error"));
        hvx_fail(err, -EREMOTEIO, "VM '%s': %s", name, why ? why : "refused");
        json_decref(reply);
        return -EREMOTEIO;
    }
    *answer = reply;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

char **hvx_control_list(void)
{
    char dir[PATH_MAX], **list = calloc(MAX_VMS + 1, sizeof(*list));
    struct dirent *e;
    size_t n = 0;
    DIR *d;

    if (!list || hvx_control_dir(dir, sizeof(dir), false, NULL) < 0 || !(d = opendir(dir)))
        return list;
    while (n < MAX_VMS && (e = readdir(d))) {
        size_t length = strlen(e->d_name);
        if (length <= strlen(SUFFIX) || strcmp(e->d_name + length - strlen(SUFFIX), SUFFIX))
            continue;
        list[n] = strndup(e->d_name, length - strlen(SUFFIX));
        if (list[n] && hvx_control_name_ok(list[n]))
            n++;
        else
            free(list[n]);
    }
    closedir(d);
    list[n] = NULL;
    qsort(list, n, sizeof(*list), by_name);
    return list;
}
