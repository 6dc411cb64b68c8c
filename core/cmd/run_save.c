/* SPDX-License-Identifier: Apache-2.0
 *
 * core/cmd/run_save.c - the VM's side of `hvx save`.
 */
#define _GNU_SOURCE
#include "core/cmd/run_save.h"
#include "core/vm/internal.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SAY_NS 100000000ull

static void step(void *opaque);

void hvx_run_save_abort(struct hvx_run_save *s, bool resume)
{
    if (!s->save)
        return;
    hvx_loop_unpost(s->loop, step, s);
    if (s->client)
        hvx_control_forget(s->client);
    s->client = NULL;
    hvx_save_end(s->save, resume);
    s->save = NULL;
    fclose(s->f);
    s->f = NULL;
    if (resume)
        s->resumed(s->opaque);
}

static void client_gone(void *opaque)
{
    struct hvx_run_save *s = opaque;

    s->client = NULL;
    hvx_log(HVX_LOG_WARN, s->name, "hvx save went away before the end; the VM goes on");
    hvx_run_save_abort(s, true);
}

static void failed(struct hvx_run_save *s, int r, const struct hvx_error *err)
{
    struct hvx_control_client *client = s->client;

    hvx_log(HVX_LOG_ERROR, s->name, "%s; the VM goes on", err->text);
    hvx_run_save_abort(s, true);
    hvx_control_answer(client, json_object(), r, err);
}

static void progress(struct hvx_run_save *s)
{
    uint64_t now = hvx_clock_ns(), done, total;

    if (now - s->said_ns < SAY_NS)
        return;
    s->said_ns = now;
    hvx_save_progress(s->save, &done, &total);
    hvx_control_progress(s->client, json_pack("{s:I, s:I}", "done", (json_int_t)done, "total", (json_int_t)total));
}

/* One slice. Sending may find that the client is gone, and then nothing of the saving is left. */
static void step(void *opaque)
{
    struct hvx_run_save *s = opaque;
    struct hvx_error err = {0};
    int r;

    if (!s->save || s->written)
        return;
    r = hvx_save_step(s->save, &err);
    if (r == 1 && hvx_loop_post(s->loop, step, s) < 0)
        r = hvx_fail(&err, -ENOMEM, "out of memory");
    if (r == 1) {
        progress(s);
    } else if (r < 0) {
        failed(s, r, &err);
    } else {
        s->written = true;
        hvx_control_answer(s->client,
                           json_pack("{s:I, s:i}", "bytes", (json_int_t)ftello(s->f), "pid", (int)getpid()), 0, NULL);
    }
}

int hvx_run_save_begin(struct hvx_run_save *s, struct hvx_control *control, struct hvx_error *err)
{
    int fd = hvx_control_take_fd(control, 0), flags = fd < 0 ? 0 : fcntl(fd, F_GETFL), r;
    struct stat st;

    if (fd < 0)
        return hvx_fail(err, -EINVAL, "save: pass the file's descriptor with the request");
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || (flags & O_ACCMODE) == O_RDONLY || st.st_size) {
        close(fd);
        return hvx_fail(err, -EINVAL, "save: the descriptor is not that of an empty file, open for writing");
    }
    s->f = fdopen(fd, "w");
    if (!s->f) {
        close(fd);
        return hvx_fail(err, -ENOMEM, "save: out of memory");
    }
    r = hvx_save_begin(s->vm, s->f, s->command, &s->save, err);
    if (r < 0) {
        fclose(s->f);
        s->f = NULL;
        return r;
    }
    s->written = false;
    s->said_ns = 0;
    s->client = hvx_control_later(control, client_gone, s);
    if (hvx_loop_post(s->loop, step, s) < 0) {
        hvx_run_save_abort(s, true);
        return hvx_fail(err, -ENOMEM, "save: out of memory");
    }
    return 0;
}

int hvx_run_save_commit(struct hvx_run_save *s, json_t *request, struct hvx_error *err)
{
    if (!s->save || !s->written)
        return hvx_fail(err, -EINVAL, "save-end: nothing has been saved; send save first");
    if (json_is_true(json_object_get(request, "continue"))) {
        hvx_run_save_abort(s, true);
        return 0;
    }
    /* Still holding the VM: nothing may happen to its disks any more. */
    hvx_control_forget(s->client);
    s->client = NULL;
    return 1;
}
