/* SPDX-License-Identifier: Apache-2.0
 *
 * image.c - opening an image and the chain of images below it.
 *
 * The name of a backing file stands in the image, which may come from
 * anywhere. It is resolved against the folder of the image that names it and
 * must not lead out of that folder, unless the caller allows it: otherwise an
 * image could read any file of the host into the guest. The format must be
 * named too: a guest could write a qcow2 header into a raw disk and so have
 * another file opened the next time somebody guesses.
 */
#define _GNU_SOURCE
#include "core/image/image.h"

#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static void warn_stderr(const char *text)
{
    fprintf(stderr, "hvx: %s\n", text);
}
void (*hvx_image_warn)(const char *text) = warn_stderr;

int hvx_image_corrupt(struct hvx_image *img, const char *fmt, ...)
{
    if (!atomic_exchange(&img->corrupt, true)) {
        char what[300], line[800];
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(what, sizeof(what), fmt, ap);
        va_end(ap);
        snprintf(line, sizeof(line), "disk image %s is damaged: %s. Writes to it are refused from now on; stop the VM, "
                 "copy the image, and look at it with `hvx image check`", img->file->name, what);
        hvx_image_warn(line);
    }
    return -EIO;
}

const struct hvx_image_ops *hvx_image_format(const char *name)
{
    static const struct hvx_image_ops *const formats[] = {&hvx_image_raw, &hvx_image_qcow2};
    for (size_t i = 0; name && i < sizeof(formats) / sizeof(formats[0]); i++) {
        if (!strcmp(formats[i]->name, name))
            return formats[i];
    }
    return NULL;
}

int hvx_image_open_file(struct hvx_file *file, const char *format, unsigned flags, struct hvx_image **out,
                        struct hvx_error *err)
{
    const struct hvx_image_ops *ops = hvx_image_format(format);
    struct hvx_image *img = ops ? calloc(1, sizeof(*img)) : NULL;
    if (!img) {
        int r = ops ? hvx_fail(err, -ENOMEM, "no memory to open %s", file->name)
                    : hvx_fail(err, -EINVAL, "disk %s: unknown image format \"%s\"; known are raw and qcow2",
                               file->name, format ? format : "");
        hvx_file_close(file);
        return r;
    }
    img->ops = ops;
    img->file = file;
    img->read_only = file->read_only;
    img->granularity = 512;
    img->for_check = flags & HVX_IMAGE_FOR_CHECK;
    img->no_backing = flags & HVX_IMAGE_NO_BACKING;
    int r = ops->open(img, err);
    if (r) {
        hvx_file_close(file);
        free(img);
        return r;
    }
    *out = img;
    return 0;
}

void hvx_image_close(struct hvx_image *img)
{
    while (img) {
        struct hvx_image *below = img->backing;
        img->ops->close(img);
        hvx_file_close(img->file);
        free(img);
        img = below;
    }
}

/* "nbd://host", "json:{...}": a protocol, not a file */
static bool names_protocol(const char *name)
{
    const char *colon = strchr(name, ':');
    return colon && !memchr(name, '/', (size_t)(colon - name));
}

static int resolve_backing(const struct hvx_image *img, bool allow_outside, char out[PATH_MAX], struct hvx_error *err)
{
    char self[PATH_MAX], joined[2 * PATH_MAX];
    const char *name = img->backing_name;

    if (names_protocol(name))
        return hvx_fail(err, -EINVAL,
                        "disk image %s: its backing file \"%.200s\" is a network or driver specification; "
                        "HVX opens files only. Copy the data to a file and rebase the image onto it",
                        img->file->name, name);
    if (!realpath(img->file->name, self))
        return hvx_fail(err, -errno, "cannot resolve the path of %s: %s", img->file->name, strerror(errno));
    char *dir = dirname(self);
    if (name[0] == '/')
        snprintf(joined, sizeof(joined), "%s", name);
    else
        snprintf(joined, sizeof(joined), "%s/%s", dir, name);
    if (!realpath(joined, out)) {
        int e = errno;
        return hvx_fail(err, -e,
                        "disk image %s needs its backing file %.300s, which cannot be found (%s); put it there or "
                        "rebase the image (qemu-img rebase -u)",
                        img->file->name, joined, strerror(e));
    }
    size_t n = strcmp(dir, "/") ? strlen(dir) : 0;
    if (!allow_outside && (strncmp(out, dir, n) || out[n] != '/'))
        return hvx_fail(
            err, -EPERM,
            "disk image %s names the backing file %.200s, which lies outside of the image's own "
            "folder. An image from elsewhere could read any file that way. If you trust it, say "
            "allow-backing-outside=on for this disk (--allow-backing-outside for hvx image), or move the file "
            "beside it",
            img->file->name, out);
    return 0;
}

static bool in_chain(const struct hvx_image *top, const struct hvx_file *f)
{
    for (const struct hvx_image *i = top; i; i = i->backing) {
        if (i->file->dev == f->dev && i->file->ino == f->ino)
            return true;
    }
    return false;
}

static int open_backing(struct hvx_image *top, struct hvx_image *img, bool allow_outside, struct hvx_error *err)
{
    char path[PATH_MAX];
    if (!img->backing_format[0])
        return hvx_fail(err, -EINVAL,
                        "disk image %s has a backing file %.200s but does not say in which format. Guessing "
                        "would let a guest choose; name it: qemu-img rebase -u -b %.100s -F raw|qcow2 %s",
                        img->file->name, img->backing_name, img->backing_name, img->file->name);
    if (!hvx_image_format(img->backing_format))
        return hvx_fail(err, -EINVAL,
                        "disk image %s: its backing file %.200s is in the format %s; known are raw and qcow2",
                        img->file->name, img->backing_name, img->backing_format);
    int r = resolve_backing(img, allow_outside, path, err);
    if (r)
        return r;
    struct hvx_file *file;
    /* Nobody may write to it meanwhile, many may read: a shared lock. */
    r = hvx_file_open(path, top->file->direct ? HVX_FILE_DIRECT : 0, &file, err);
    if (r)
        return r;
    if (in_chain(top, file)) {
        hvx_file_close(file);
        return hvx_fail(err, -ELOOP, "disk image %s: its backing chain comes back to %s; the chain has no end",
                        top->file->name, path);
    }
    return hvx_image_open_file(file, img->backing_format, 0, &img->backing, err);
}

int hvx_image_open(const struct hvx_image_open *p, struct hvx_image **out, struct hvx_error *err)
{
    struct hvx_file *file;
    struct hvx_image *top;
    unsigned flags = (p->for_check ? HVX_IMAGE_FOR_CHECK : 0) | (p->no_backing ? HVX_IMAGE_NO_BACKING : 0);

    if (!p->format || !hvx_image_format(p->format))
        return hvx_fail(err, -EINVAL, "disk %s: unknown image format \"%s\"; known are raw and qcow2", p->path,
                        p->format ? p->format : "");
    int r = hvx_file_open(p->path, p->file_flags, &file, err);
    if (r)
        return r;
    r = hvx_image_open_file(file, p->format, flags, &top, err);
    if (r)
        return r;
    unsigned depth = 1;
    for (struct hvx_image *i = top; i->backing_name[0] && !p->no_backing; i = i->backing, depth++) {
        if (depth == HVX_IMAGE_MAX_DEPTH) {
            hvx_image_close(top);
            return hvx_fail(err, -ELOOP, "disk image %s: more than %u backing files below it; merge some (hvx image "
                            "convert makes one image of a chain)", p->path, HVX_IMAGE_MAX_DEPTH);
        }
        r = open_backing(top, i, p->allow_backing_outside, err);
        if (r) {
            hvx_image_close(top);
            return r;
        }
    }
    *out = top;
    return 0;
}

int hvx_image_overlay(struct hvx_image *base, unsigned file_flags, struct hvx_image **out, struct hvx_error *err)
{
    struct hvx_file *file;
    struct hvx_qcow2_create c = {.bytes = base->bytes};
    int r = hvx_file_open_temp(file_flags, &file, err);
    if (r)
        return r;
    r = hvx_qcow2_create(file, &c, err);
    if (r) {
        hvx_file_close(file);
        return r;
    }
    r = hvx_image_open_file(file, "qcow2", 0, out, err);
    if (!r)
        (*out)->backing = base;
    return r;
}

int hvx_image_preadv(struct hvx_image *img, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    uint64_t have = off < img->bytes ? img->bytes - off : 0;
    if (have > bytes)
        have = bytes;
    if (have) {
        int r = img->ops->preadv(img, sg, off, have);
        if (r)
            return r;
    }
    if (have < bytes) {
        hvx_sg_advance(&sg, have);
        hvx_sg_zero(sg, bytes - have);
    }
    return 0;
}

int hvx_image_status(struct hvx_image *img, uint64_t off, uint64_t bytes, uint64_t *run, bool *data)
{
    if (off >= img->bytes) {
        *run = bytes;
        *data = false;
        return 0;
    }
    if (bytes > img->bytes - off)
        bytes = img->bytes - off;
    return img->ops->status(img, off, bytes, run, data);
}
