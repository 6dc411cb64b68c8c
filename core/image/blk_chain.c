/* SPDX-License-Identifier: Apache-2.0
 *
 * blk_chain.c - opening the files of a disk on behalf of another process.
 *
 * A first look, without locks, finds out which files belong to the disk. Then
 * each is opened as the user of the disk will need it and locked. Locks belong
 * to the open file, not to the process: they travel with the descriptor.
 */
#define _GNU_SOURCE
#include "core/image/blk.h"
#include "core/image/image.h"
#include "core/image/qcow2.h"

#include <fcntl.h>
#include <unistd.h>

static int keep(struct hvx_file *file, const char *format, struct hvx_blk_fd *out, struct hvx_error *err)
{
    int r = 0;
    out->fd = fcntl(file->fd, F_DUPFD_CLOEXEC, 3);
    if (out->fd < 0)
        r = hvx_fail(err, -errno, "disk %s: no descriptor left", file->name);
    if (snprintf(out->name, sizeof(out->name), "%s", file->name) >= (int)sizeof(out->name))
        r = hvx_fail(err, -ENAMETOOLONG, "disk %s: the path is too long", file->name);
    snprintf(out->format, sizeof(out->format), "%s", format);
    hvx_file_close(file);
    return r;
}

/* snapshot=on: an empty image over it, in an unnamed file. */
static int overlay(uint64_t bytes, struct hvx_blk_fd *out, struct hvx_error *err)
{
    struct hvx_qcow2_create c = {.bytes = bytes};
    struct hvx_file *file;
    int r = hvx_file_open_temp(HVX_FILE_NO_SYNC, &file, err);
    if (r)
        return r;
    r = hvx_qcow2_create(file, &c, err);
    if (r) {
        hvx_file_close(file);
        return r;
    }
    return keep(file, "qcow2", out, err);
}

int hvx_blk_open_chain(const struct hvx_blk_open *p, struct hvx_blk_fd *out, unsigned max, struct hvx_error *err)
{
    struct hvx_image_open look = {.path = p->path, .format = p->format, .file_flags = HVX_FILE_NO_LOCK,
                                  .allow_backing_outside = p->allow_backing_outside};
    unsigned direct = p->cache && !strcmp(p->cache, "none") ? HVX_FILE_DIRECT : 0, n = 0;
    bool write = !p->read_only && !p->cdrom;
    struct hvx_image *top;
    int r = hvx_image_open(&look, &top, err);
    if (r)
        return r;
    if (write && p->snapshot) {
        r = overlay(top->bytes, &out[n], err);
        n++;
    }
    for (struct hvx_image *i = top; i && !r; i = i->backing) {
        struct hvx_file *file;
        bool writable = i == top && write && !p->snapshot;
        if (n == max) {
            r = hvx_fail(err, -E2BIG, "disk %s: more than %u files in its chain", p->path, max);
            break;
        }
        out[n].fd = -1;
        r = hvx_file_open(i->file->name, direct | (writable ? HVX_FILE_WRITE : 0) | (p->no_lock ? HVX_FILE_NO_LOCK : 0),
                          &file, err);
        if (!r) {
            r = keep(file, i->ops->name, &out[n], err);
            n++;
        }
    }
    hvx_image_close(top);
    if (!r)
        return (int)n;
    for (unsigned i = 0; i < n; i++)
        if (out[i].fd >= 0)
            close(out[i].fd);
    return r;
}
