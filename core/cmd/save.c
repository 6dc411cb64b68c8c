/* SPDX-License-Identifier: Apache-2.0
 *
 * core/cmd/save.c - hvx save: the state of a running VM goes to a file.
 *
 * The file gets its name when all of it is on the disk; before that it has
 * none, so whatever is killed meanwhile, nothing half is left.
 */
#define _GNU_SOURCE
#include "core/cmd/commands.h"
#include "core/vm/control.h"

#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define END_WAIT_MS 60000

struct save_args {
    const char *vm, *file, *exec;
    bool keep, json, quiet;
};

struct target {
    int fd;
    bool named; /* by `temporary`: O_TMPFILE is not to be had */
    char folder[PATH_MAX], temporary[PATH_MAX + 32];
};

static void usage(void)
{
    printf("Usage: hvx save [--continue] [--exec COMMAND] [--quiet] [--json] NAME FILE\n"
           "Save a running virtual machine to a file, from which `hvx run --restore FILE` goes on. The machine\n"
           "ends.\n\n"
           "  --continue      let the machine go on afterwards\n"
           "  --exec COMMAND  run this shell command while the machine still stands, such as a copy of its disks\n"
           "  --quiet         do not show the progress\n"
           "  --json          print the answer as JSON\n"
           "  --help          print this\n");
}

static int parse(int argc, char **argv, struct save_args *a)
{
    static const struct option longs[] = {
        {"continue", no_argument, NULL, 'c'}, {"exec", required_argument, NULL, 'e'}, {"quiet", no_argument, NULL, 'q'},
        {"json", no_argument, NULL, 'j'},     {"help", no_argument, NULL, 'h'},       {0},
    };
    int c;

    memset(a, 0, sizeof(*a));
    optind = 1;
    opterr = 0;
    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        if (c == 'c') {
            a->keep = true;
        } else if (c == 'e') {
            a->exec = optarg;
        } else if (c == 'q') {
            a->quiet = true;
        } else if (c == 'j') {
            a->json = true;
        } else if (c == 'h') {
            usage();
            return 1 + HVX_STATUS_OK;
        } else {
            fprintf(stderr, "hvx save: wrong option '%s'; --help lists them\n", argv[optind - 1]);
            return 1 + HVX_STATUS_USAGE;
        }
    }
    if (argc - optind != 2) {
        fprintf(stderr, "hvx save: usage: hvx save [--continue] [--exec COMMAND] NAME FILE\n");
        return 1 + HVX_STATUS_USAGE;
    }
    a->vm = argv[optind];
    a->file = argv[optind + 1];
    return 0;
}

/* --- the file ----------------------------------------------------------------------- */

static int open_target(const char *file, struct target *t, struct hvx_error *err)
{
    const char *slash = strrchr(file, '/');
    struct stat st;

    if (strlen(file) >= PATH_MAX || !file[0] || (slash && !slash[1]))
        return hvx_fail(err, -EINVAL, "%.100s: no name for a file", file);
    if (stat(file, &st) == 0 && !S_ISREG(st.st_mode))
        return hvx_fail(err, -EINVAL, "%s is there already, and is no ordinary file", file);
    snprintf(t->folder, sizeof(t->folder), "%.*s", slash ? (int)(slash - file) + 1 : 1, slash ? file : ".");
    snprintf(t->temporary, sizeof(t->temporary), "%s.hvx-save-XXXXXX", file);
    t->fd = open(t->folder, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    t->named = false;
    if (t->fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT)) {
        t->fd = mkostemp(t->temporary, O_CLOEXEC);
        t->named = t->fd >= 0;
    }
    if (t->fd < 0)
        return hvx_fail(err, -errno, "cannot make a file in %s: %s", t->folder, strerror(errno));
    return 0;
}

static void drop_target(struct target *t)
{
    if (t->named)
        unlink(t->temporary);
    close(t->fd);
}

/* All of it on the disk, then the name, then the name on the disk. */
static int publish(struct target *t, const char *file, struct hvx_error *err)
{
    char self[64];
    int folder;

    if (fsync(t->fd) < 0)
        return hvx_fail(err, -errno, "%s: cannot bring it to the disk: %s", file, strerror(errno));
    if (!t->named) {
        /* A name of its own first, since linking replaces nothing. */
        int fd = mkostemp(t->temporary, O_CLOEXEC);
        snprintf(self, sizeof(self), "/proc/self/fd/%d", t->fd);
        if (fd < 0)
            return hvx_fail(err, -errno, "cannot make a file in %s: %s", t->folder, strerror(errno));
        close(fd);
        unlink(t->temporary);
        if (linkat(AT_FDCWD, self, AT_FDCWD, t->temporary, AT_SYMLINK_FOLLOW) < 0)
            return hvx_fail(err, -errno, "%s: cannot give the file its name: %s", file, strerror(errno));
        t->named = true;
    }
    if (rename(t->temporary, file) < 0)
        return hvx_fail(err, -errno, "%s: cannot give the file its name: %s", file, strerror(errno));
    t->named = false;
    folder = open(t->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0) {
        (void)!fsync(folder);
        close(folder);
    }
    return 0;
}

/* --- the conversation ------------------------------------------------------------------ */

static void show_progress(void *opaque, json_t *line)
{
    const struct save_args *a = opaque;
    json_int_t done = json_integer_value(json_object_get(line, "done"));
    json_int_t total = json_integer_value(json_object_get(line, "total"));

    if (!a->quiet && isatty(2) && total > 0)
        fprintf(stderr, "\rsaving %s: %3lld %% of %lld MiB", a->vm, (long long)(done * 100 / total),
                (long long)total >> 20);
}

static int run_command(const struct save_args *a, struct hvx_error *err)
{
    int status;

    setenv("HVX_VM", a->vm, 1);
    status = system(a->exec);
    if (status == 0)
        return 0;
    return hvx_fail(err, -EIO, "the command of --exec %s %d; nothing is saved and the VM goes on",
                    WIFSIGNALED(status) ? "was ended by signal" : "ended with status",
                    WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

/* Until the process has let go of the disks. */
static void wait_for_end(pid_t pid)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    struct pollfd p = {.fd = fd, .events = POLLIN};

    if (fd < 0)
        return;
    (void)poll(&p, 1, END_WAIT_MS);
    close(fd);
}

static int converse(const struct save_args *a, struct hvx_talk *talk, struct target *t, json_t **answer,
                    struct hvx_error *err)
{
    json_t *request = json_pack("{s:s}", "command", "save"), *end = NULL;
    bool tty = !a->quiet && isatty(2);
    int r = hvx_talk(talk, request, t->fd, show_progress, (void *)(uintptr_t)a, answer, err);

    json_decref(request);
    if (tty)
        fprintf(stderr, "\r\033[K");
    if (r == 0 && a->exec)
        r = run_command(a, err);
    if (r == 0)
        r = publish(t, a->file, err);
    if (r < 0)
        return r;
    request = json_pack("{s:s, s:b}", "command", "save-end", "continue", a->keep);
    r = hvx_talk(talk, request, -1, NULL, NULL, &end, err);
    json_decref(request);
    json_decref(end);
    return r;
}

int hvx_cmd_save(int argc, char **argv)
{
    struct hvx_error err = {0};
    struct hvx_talk *talk = NULL;
    json_t *answer = NULL;
    struct save_args a;
    struct target t;
    int r = parse(argc, argv, &a);

    if (r)
        return r - 1;
    r = open_target(a.file, &t, &err);
    if (r == 0) {
        r = hvx_talk_open(a.vm, &talk, &err);
        if (r == 0)
            r = converse(&a, talk, &t, &answer, &err);
        drop_target(&t);
    }
    if (r == 0 && !a.keep)
        wait_for_end((pid_t)json_integer_value(json_object_get(answer, "pid")));
    hvx_talk_close(talk);
    if (r < 0) {
        fprintf(stderr, "hvx save: %s\n", err.text);
    } else if (a.json) {
        json_dumpf(answer, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        printf("\n");
    }
    json_decref(answer);
    return r < 0 ? HVX_STATUS_FAILED : HVX_STATUS_OK;
}
