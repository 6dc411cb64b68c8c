/* SPDX-License-Identifier: Apache-2.0
 *
 * mark.c - by what a disk is recognised when a saved VM comes back to it.
 */
#define _GNU_SOURCE
#include "core/image/front.h"

#include <sys/stat.h>

int hvx_blk_get_mark(struct hvx_blk *b, struct hvx_blk_mark *out)
{
    const struct hvx_image *img = b->img;

    memset(out, 0, sizeof(*out));
    out->bytes = b->info.bytes;
    if (b->temporary) { /* the overlay of snapshot=on; what counts is below */
        out->lost_writes = b->count.writes || b->count.zeroes || b->count.discards;
        img = img->backing;
    }
    snprintf(out->path, sizeof(out->path), "%s", img->file->name);
    for (; img && out->n_files < HVX_BLK_MARK_FILES; img = img->backing) {
        struct hvx_blk_mark_file *f = &out->file[out->n_files++];
        struct stat st;
        uint64_t bytes;
        int r = hvx_file_size(img->file, &bytes);
        if (r < 0)
            return r;
        f->bytes = bytes;
        if (img->file->fd < 0 || img->file->is_device)
            continue; /* the time of a device node says nothing of its contents */
        if (fstat(img->file->fd, &st) < 0)
            return -errno;
        f->changed_ns = (uint64_t)st.st_mtim.tv_sec * 1000000000u + (uint64_t)st.st_mtim.tv_nsec;
    }
    return 0;
}
