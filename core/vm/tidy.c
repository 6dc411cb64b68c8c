/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/tidy.c - see tidy.h.
 */
#define _GNU_SOURCE
#include "core/vm/tidy.h"
#include "core/vm/confine.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static struct {
    pthread_mutex_t mutex;
    struct {
        char *path;
        dev_t dev;
        ino_t ino;
    } file[HVX_TIDY_MAX];
    pid_t pid;
    int fd;
} tidy = {.mutex = PTHREAD_MUTEX_INITIALIZER};

void hvx_tidy_add(const char *path)
{
    struct stat st;

    pthread_mutex_lock(&tidy.mutex);
    for (unsigned i = 0; i < HVX_TIDY_MAX && lstat(path, &st) == 0; i++) {
        if (tidy.file[i].path)
            continue;
        tidy.file[i].path = strdup(path);
        tidy.file[i].dev = st.st_dev;
        tidy.file[i].ino = st.st_ino;
        break;
    }
    pthread_mutex_unlock(&tidy.mutex);
}

static void remove_file(unsigned i)
{
    struct stat st;

    if (lstat(tidy.file[i].path, &st) == 0 && st.st_dev == tidy.file[i].dev && st.st_ino == tidy.file[i].ino)
        unlink(tidy.file[i].path);
}

void hvx_tidy_remove(const char *path)
{
    pthread_mutex_lock(&tidy.mutex);
    for (unsigned i = 0; i < HVX_TIDY_MAX && !tidy.pid; i++) {
        if (!tidy.file[i].path || strcmp(tidy.file[i].path, path))
            continue;
        remove_file(i);
        free(tidy.file[i].path);
        tidy.file[i].path = NULL;
    }
    pthread_mutex_unlock(&tidy.mutex);
}

/* In the child: nothing but this socket is kept, and its end is waited for. */
__attribute__((noreturn)) static void child(int fd)
{
    struct hvx_error err;
    char byte;

    prctl(PR_SET_NAME, "hvx-tidy");
    dup2(fd, 0);
    close_range(1, ~0u, 0);
    (void)!chdir("/");
    if (hvx_confine_planned() && hvx_confine_process(HVX_CONFINE_TIDY, NULL, 0, &err) < 0)
        _exit(1);
    while (read(0, &byte, 1) < 0 && errno == EINTR)
        ;
    for (unsigned i = 0; i < HVX_TIDY_MAX; i++)
        if (tidy.file[i].path)
            remove_file(i);
    _exit(0);
}

int hvx_tidy_start(struct hvx_error *err)
{
    int fd[2];
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) < 0)
        return hvx_fail(err, -errno, "cannot make a socket pair: %s", strerror(errno));
    pthread_mutex_lock(&tidy.mutex);
    pid = fork();
    if (pid == 0)
        child(fd[1]);
    close(fd[1]);
    if (pid < 0) {
        int e = errno;
        pthread_mutex_unlock(&tidy.mutex);
        close(fd[0]);
        return hvx_fail(err, -e, "cannot start the process that tidies up: %s (raise `ulimit -u`?)", strerror(e));
    }
    tidy.pid = pid;
    tidy.fd = fd[0];
    pthread_mutex_unlock(&tidy.mutex);
    return 0;
}

void hvx_tidy_finish(void)
{
    if (!tidy.pid)
        return;
    close(tidy.fd);
    while (waitpid(tidy.pid, NULL, 0) < 0 && errno == EINTR)
        ;
    tidy.pid = 0;
}
