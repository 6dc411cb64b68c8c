/* SPDX-License-Identifier: Apache-2.0
 *
 * cmd_convert.c - hvx image convert: a chain of images becomes one new image.
 * What reads as zeroes is not stored, whether the source says so or the bytes
 * do. The new image gets its name only when it is complete.
 */
#define _GNU_SOURCE
#include "core/image/cmd.h"

#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (2u << 20)

struct copy {
    struct hvx_image *in, *out;
    uint8_t *buf;
    uint32_t unit; /* zeroes are looked for in pieces of this */
    bool show;
    uint64_t shown_ms;
};

static void progress(struct copy *c, uint64_t done)
{
    struct timespec ts;
    if (!c->show)
        return;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    uint64_t ms = (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
    if (done < c->in->bytes && ms - c->shown_ms < 200)
        return;
    c->shown_ms = ms;
    fprintf(stderr, "\r  %6.2f%% of %llu MiB", 100.0 * (double)done / (double)c->in->bytes,
            (unsigned long long)(c->in->bytes >> 20));
    if (done == c->in->bytes)
        fputc('\n', stderr);
    fflush(stderr);
}

static bool is_zero(const uint8_t *p, size_t n)
{
    /* If the first 16 bytes are zero and every byte equals the one 16 before, all are. */
    static const uint8_t zeroes[16];
    if (n < 16)
        return !memcmp(p, zeroes, n);
    return !memcmp(p, zeroes, 16) && !memcmp(p, p + 16, n - 16);
}

static int write_stretch(struct copy *c, uint64_t off, uint64_t from, uint64_t to)
{
    struct iovec v = {c->buf + from, to - from};
    return from == to ? 0 : c->out->ops->pwritev(c->out, hvx_sg_of(&v, 1), off + from, to - from);
}

/* Write the pieces of the chunk that are not zero, in as few writes as it takes. */
static int write_chunk(struct copy *c, uint64_t off, uint64_t bytes)
{
    uint64_t from = 0;
    int r = 0;
    for (uint64_t at = 0; at < bytes && !r;) {
        uint64_t n = c->unit - (off + at) % c->unit;
        if (n > bytes - at)
            n = bytes - at;
        if (is_zero(c->buf + at, n)) {
            r = write_stretch(c, off, from, at);
            from = at + n;
        }
        at += n;
    }
    return r ? r : write_stretch(c, off, from, bytes);
}

static int copy_all(struct copy *c, struct hvx_error *err)
{
    for (uint64_t off = 0; off < c->in->bytes;) {
        uint64_t left = c->in->bytes - off, run;
        bool data;
        int r = hvx_image_status(c->in, off, left < CHUNK ? left : CHUNK, &run, &data);
        if (!r && data) {
            struct iovec v = {c->buf, run};
            r = hvx_image_preadv(c->in, hvx_sg_of(&v, 1), off, run);
        }
        if (r)
            return hvx_fail(err, r, "cannot read %s at byte %llu: %s", c->in->file->name, (unsigned long long)off,
                            strerror(-r));
        if (data && (r = write_chunk(c, off, run)))
            return hvx_fail(err, r, "cannot write the new image: %s%s", strerror(-r),
                            r == -ENOSPC ? "; make room or choose another folder" : "");
        off += run;
        progress(c, off);
    }
    int r = c->out->ops->flush(c->out);
    return r ? hvx_fail(err, r, "cannot write the new image: %s", strerror(-r)) : 0;
}

static int make_output(const struct hvx_image_options *o, const char *path, uint64_t bytes, struct hvx_image **out,
                       struct hvx_error *err)
{
    struct hvx_qcow2_create c = {.bytes = bytes};
    struct hvx_file *f;
    bool qcow2 = !strcmp(o->out_format, "qcow2");
    if (!qcow2 && o->options)
        return hvx_fail(err, -EINVAL, "-o: a raw image takes no options");
    int r = hvx_image_parse_create(o->options, &c, err);
    if (!r)
        r = hvx_file_open(path, HVX_FILE_WRITE | HVX_FILE_CREATE, &f, err);
    if (r)
        return r;
    if (qcow2) {
        r = hvx_qcow2_create(f, &c, err);
    } else {
        r = f->ops->truncate(f, bytes);
        uint64_t have = 0;
        if (!r && !(r = hvx_file_size(f, &have)) && have < bytes)
            r = -ENOSPC;
        if (!r && f->is_device) /* old contents must not shine through */
            r = hvx_file_zero(f, 0, bytes, true);
        if (r)
            hvx_fail(err, r, "cannot make %s of %llu bytes: %s", path, (unsigned long long)bytes, strerror(-r));
    }
    if (r) {
        hvx_file_close(f);
        return r;
    }
    return hvx_image_open_file(f, o->out_format, 0, out, err);
}

static int convert_to(const struct hvx_image_options *o, struct hvx_image *in, const char *path, struct hvx_error *err)
{
    struct copy c = {.in = in, .show = !o->quiet && isatty(2), .unit = 4096};
    int r = make_output(o, path, in->bytes, &c.out, err);
    if (r)
        return r;
    if (c.out->granularity > c.unit)
        c.unit = c.out->granularity;
    c.buf = aligned_alloc(4096, CHUNK);
    r = c.buf ? copy_all(&c, err) : hvx_fail(err, -ENOMEM, "no memory to copy");
    free(c.buf);
    hvx_image_close(c.out);
    return r;
}

int hvx_image_convert(const struct hvx_image_options *o, struct hvx_error *err)
{
    const char *to = o->args[1];
    char part[PATH_MAX];
    struct stat st;
    struct hvx_file *old = NULL;
    struct hvx_image *in;
    if (!o->format || !o->out_format || !hvx_image_format(o->out_format))
        return hvx_fail(err, -EINVAL,
                        "say both formats, raw or qcow2: -f FORMAT of the source (it is never guessed) and -O "
                        "FORMAT of the new image");
    bool exists = !stat(to, &st), device = exists && S_ISBLK(st.st_mode);
    if (exists && !device && !o->force)
        return hvx_fail(err, -EEXIST, "%s exists; remove it first, or say --force to replace it", to);
    struct hvx_image_open p = {
        .path = o->args[0], .format = o->format, .allow_backing_outside = o->allow_backing_outside};
    int r = hvx_image_open(&p, &in, err);
    if (r)
        return r;
    if (exists && !device) /* nobody may be using what is replaced */
        r = hvx_file_open(to, HVX_FILE_WRITE, &old, err);
    if (!r && snprintf(part, sizeof(part), "%s%s", to, device ? "" : ".part") >= (int)sizeof(part))
        r = hvx_fail(err, -ENAMETOOLONG, "the name %.100s... is too long", to);
    if (!r) {
        r = convert_to(o, in, part, err);
        if (!r && !device && rename(part, to))
            r = hvx_fail(err, -errno, "cannot name the new image %s: %s", to, strerror(errno));
        if (r && !device)
            unlink(part);
    }
    hvx_file_close(old);
    hvx_image_close(in);
    return r;
}
