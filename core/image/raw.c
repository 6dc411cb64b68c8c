/* SPDX-License-Identifier: Apache-2.0
 *
 * raw.c - the format without a format: byte n of the disk is byte n of the file.
 */
#define _GNU_SOURCE
#include "core/image/image.h"

#include <unistd.h>

static int raw_open(struct hvx_image *img, struct hvx_error *err)
{
    uint64_t n;
    int r = hvx_file_size(img->file, &n);
    if (r)
        return hvx_fail(err, r, "cannot tell the size of %s: %s", img->file->name, strerror(-r));
    if (!n)
        return hvx_fail(err, -EINVAL, "disk image %s is empty (0 bytes); a raw disk has the size of its file. Make one "
                        "with `hvx image create -f raw %s 10G`", img->file->name, img->file->name);
    if (n > INT64_MAX - 512)
        return hvx_fail(err, -EFBIG, "disk image %s is too large", img->file->name);
    img->bytes = (n + 511) & ~511ull; /* an odd tail reads as zeroes */
    img->can_discard = img->can_write_zeroes = true;
    if (img->file->io_align > img->granularity)
        img->granularity = img->file->io_align;
    return 0;
}

static void raw_close(struct hvx_image *img)
{
    (void)img;
}

static int raw_map(struct hvx_image *img, bool write, uint64_t off, uint64_t bytes, struct hvx_seg *segs, unsigned max)
{
    (void)write;
    if (!max)
        return -EAGAIN;
    segs[0] = (struct hvx_seg){.kind = HVX_SEG_DATA, .bytes = bytes, .host_off = off, .file = img->file};
    return 1;
}

static int raw_preadv(struct hvx_image *img, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    return hvx_file_preadv(img->file, sg, off, bytes);
}

static int raw_pwritev(struct hvx_image *img, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    return hvx_file_pwritev(img->file, sg, off, bytes);
}

static int raw_flush(struct hvx_image *img)
{
    return img->read_only ? 0 : hvx_file_flush(img->file);
}

static int raw_discard(struct hvx_image *img, uint64_t off, uint64_t bytes)
{
    if (img->read_only)
        return -EROFS;
    int r = img->file->ops->discard(img->file, off, bytes);
    return r == -EOPNOTSUPP ? 0 : r; /* a hint: keeping the space is allowed */
}

static int raw_write_zeroes(struct hvx_image *img, uint64_t off, uint64_t bytes, bool unmap)
{
    return hvx_file_zero(img->file, off, bytes, unmap);
}

static int raw_status(struct hvx_image *img, uint64_t off, uint64_t bytes, uint64_t *run, bool *data)
{
    *run = bytes;
    *data = true;
    if (img->file->fd < 0)
        return 0;
    off_t d = lseek(img->file->fd, (off_t)off, SEEK_DATA);
    if (d < 0) {
        *data = errno != ENXIO; /* ENXIO: nothing but hole up to the end */
        return 0;
    }
    if ((uint64_t)d > off) {
        *data = false;
        *run = (uint64_t)d - off < bytes ? (uint64_t)d - off : bytes;
        return 0;
    }
    off_t h = lseek(img->file->fd, (off_t)off, SEEK_HOLE);
    if (h > (off_t)off && (uint64_t)h - off < bytes)
        *run = (uint64_t)h - off;
    return 0;
}

static int raw_check(struct hvx_image *img, bool repair, struct hvx_image_check *out, hvx_check_fn fn, void *opaque)
{
    (void)repair;
    (void)fn;
    (void)opaque;
    memset(out, 0, sizeof(*out));
    out->end_bytes = img->bytes;
    return 0;
}

const struct hvx_image_ops hvx_image_raw = {
    .name = "raw", .open = raw_open, .close = raw_close, .map = raw_map, .preadv = raw_preadv, .pwritev = raw_pwritev,
    .flush = raw_flush, .discard = raw_discard, .write_zeroes = raw_write_zeroes, .status = raw_status,
    .check = raw_check,
};
