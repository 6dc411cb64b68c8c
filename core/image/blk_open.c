/* SPDX-License-Identifier: Apache-2.0
 *
 * blk_open.c - opening and closing a disk, and what is told about it. The
 * requests themselves are the business of blk.c.
 */
#define _GNU_SOURCE
#include "core/image/front.h"

#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

static void on_event(void *opaque, int fd, bool readable, bool writable)
{
    (void)fd;
    (void)readable;
    (void)writable;
    hvx_blk_reap(opaque);
}

/* Ring requests pass by seccomp: this ring reads and writes, and nothing else for ever. */
static int restrict_ring(struct io_uring *ring)
{
    struct io_uring_restriction only[] = {
        {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READV},
        {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_WRITEV},
    };
    /* liburing 2.3 declares functions for these two and does not export them. */
    if (syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_RESTRICTIONS, only, 2) < 0 ||
        syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
        return -errno;
    return 0;
}

static int start_ring(struct hvx_blk *b, const char *aio, const char *path, struct hvx_error *err)
{
    if (aio && strcmp(aio, "io_uring") && strcmp(aio, "threads"))
        return hvx_fail(err, -EINVAL, "disk %s: aio=%s is unknown; use io_uring or threads", path, aio);
    if (aio && !strcmp(aio, "threads"))
        return 0;
    int r = io_uring_queue_init(RING_ENTRIES, &b->ring, IORING_SETUP_R_DISABLED);
    if (!r) {
        r = io_uring_register_eventfd(&b->ring, b->efd);
        if (!r)
            r = restrict_ring(&b->ring);
        if (r)
            io_uring_queue_exit(&b->ring);
    }
    if (!r)
        b->ring_ok = true;
    else if (aio)
        return hvx_fail(err, r,
                        "disk %s: the kernel refuses io_uring (%s). See the sysctl kernel.io_uring_disabled and the "
                        "container's seccomp profile, or use aio=threads",
                        path, strerror(-r));
    return 0;
}

/* From descriptors: what stands in the images about their backing does not count. */
static int open_passed(const struct hvx_blk_open *p, struct hvx_image **out, struct hvx_error *err)
{
    bool direct = p->cache && !strcmp(p->cache, "none"), unsafe = p->cache && !strcmp(p->cache, "unsafe");
    bool write = !p->read_only && !p->cdrom;
    struct hvx_image *top = NULL, **below = &top;
    int r = 0;
    for (unsigned i = 0; i < p->n_fds && !r; i++) {
        struct hvx_blk_fd *f = &p->fds[i];
        struct hvx_file *file;
        int fd = f->fd;
        bool temporary = i == 0 && p->snapshot && write;
        f->fd = -1;
        r = hvx_file_from_fd(fd, f->name,
                             (direct && !temporary ? HVX_FILE_DIRECT : 0) | (i == 0 && write ? HVX_FILE_WRITE : 0) |
                                 (unsafe || temporary ? HVX_FILE_NO_SYNC : 0),
                             &file, err);
        if (!r)
            r = hvx_image_open_file(file, f->format, 0, below, err);
        if (!r)
            below = &(*below)->backing;
    }
    if (r)
        hvx_image_close(top);
    else
        *out = top;
    return r;
}

static int open_image(const struct hvx_blk_open *p, struct hvx_image **out, struct hvx_error *err)
{
    if (p->n_fds)
        return open_passed(p, out, err);
    bool direct = p->cache && !strcmp(p->cache, "none"), unsafe = p->cache && !strcmp(p->cache, "unsafe");
    if (p->cache && !direct && !unsafe && strcmp(p->cache, "writeback"))
        return hvx_fail(err, -EINVAL, "disk %s: cache=%s is unknown; use writeback, none or unsafe", p->path, p->cache);
    if (!p->format)
        return hvx_fail(err, -EINVAL,
                        "disk %s: say its format (format=raw or format=qcow2). It is never guessed: a guest "
                        "could write another format's header into its disk",
                        p->path);
    bool write = !p->read_only && !p->cdrom;
    struct hvx_image_open o = {.path = p->path, .format = p->format, .allow_backing_outside = p->allow_backing_outside};
    o.file_flags = (direct ? HVX_FILE_DIRECT : 0) | (p->no_lock ? HVX_FILE_NO_LOCK : 0);
    if (unsafe)
        o.file_flags |= HVX_FILE_NO_SYNC;
    if (write && !p->snapshot)
        o.file_flags |= HVX_FILE_WRITE;
    struct hvx_image *img;
    int r = hvx_image_open(&o, &img, err);
    if (r)
        return r;
    if (write && p->snapshot) {
        struct hvx_image *top;
        r = hvx_image_overlay(img, HVX_FILE_NO_SYNC, &top, err); /* thrown away: needs no durability */
        if (r) {
            hvx_image_close(img);
            return r;
        }
        img = top;
    }
    *out = img;
    return 0;
}

static void set_info(struct hvx_blk *b, const struct hvx_blk_open *p)
{
    struct hvx_blk_info *i = &b->info;
    i->size = sizeof(*i);
    i->logical_block = p->cdrom ? 2048 : 512;
    i->bytes = b->img->bytes;
    i->read_only = b->img->read_only;
    i->can_discard = b->img->can_discard && !b->img->read_only;
    i->can_write_zeroes = b->img->can_write_zeroes && !b->img->read_only;
    i->is_cdrom = p->cdrom;
    i->opt_io_bytes = b->img->granularity > 512 ? b->img->granularity : 0;
    if (p->serial) {
        snprintf(i->serial, sizeof(i->serial), "%s", p->serial);
        return;
    }
    uint32_t h = 2166136261u; /* FNV-1a of the path: the same disk keeps its serial */
    for (const char *s = p->path; *s; s++)
        h = (h ^ (uint8_t)*s) * 16777619u;
    snprintf(i->serial, sizeof(i->serial), "HVX%08X", h);
}

static void blk_free(struct hvx_blk *b)
{
    if (b->watch)
        hvx_watch_del(b->watch);
    if (b->workers.max)
        hvx_workers_fini(&b->workers);
    if (b->ring_ok)
        io_uring_queue_exit(&b->ring);
    hvx_image_close(b->img);
    if (b->efd >= 0)
        close(b->efd);
    pthread_mutex_destroy(&b->done_lock);
    free(b->pool);
    free(b);
}

static int blk_start(struct hvx_blk *b, const struct hvx_blk_open *p, struct hvx_error *err)
{
    b->pool = calloc(POOL, sizeof(b->pool[0]));
    b->efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!b->pool || b->efd < 0)
        return hvx_fail(err, -ENOMEM, "no memory or descriptors to open disk %s", p->path);
    for (unsigned i = 0; i < POOL; i++) {
        b->pool[i].b = b;
        hvx_blk_pool_add(b, &b->pool[i]);
    }
    int r = start_ring(b, p->aio, p->path, err);
    if (r)
        return r;
    r = hvx_workers_init(&b->workers, N_WORKERS);
    if (r) {
        b->workers.max = 0;
        return hvx_fail(err, r, "cannot start a thread for disk %s: %s", p->path, strerror(-r));
    }
    r = hvx_loop_watch_new(b->loop, b->efd, true, false, on_event, b, &b->watch);
    return r ? hvx_fail(err, r, "cannot watch events of disk %s: %s", p->path, strerror(-r)) : 0;
}

int hvx_blk_open(struct hvx_loop *loop, const struct hvx_blk_open *params, struct hvx_blk **out, struct hvx_error *err)
{
    struct hvx_blk *b = calloc(1, sizeof(*b));
    if (!b)
        return hvx_fail(err, -ENOMEM, "no memory to open disk %s", params->path);
    b->loop = loop;
    b->efd = -1;
    b->overflow_tail = &b->overflow;
    b->done_tail = &b->done;
    b->unsafe = params->cache && !strcmp(params->cache, "unsafe");
    pthread_mutex_init(&b->done_lock, NULL);
    b->temporary = params->snapshot && !params->read_only && !params->cdrom;
    int r = open_image(params, &b->img, err);
    if (!r) {
        set_info(b, params);
        r = blk_start(b, params, err);
    }
    if (r) {
        blk_free(b);
        return r;
    }
    *out = b;
    return 0;
}

void hvx_blk_close(struct hvx_blk *b)
{
    if (!b)
        return;
    int r = hvx_blk_drain(b);
    if (r && !atomic_load(&b->img->corrupt)) {
        char line[300];
        snprintf(line, sizeof(line), "disk image %s: the last writes could not be brought to the disk: %s",
                 b->img->file->name, strerror(-r));
        hvx_image_warn(line);
    }
    blk_free(b);
}

void hvx_blk_get_info(struct hvx_blk *b, struct hvx_blk_info *out)
{
    uint32_t size = out->size && out->size < sizeof(*out) ? out->size : (uint32_t)sizeof(*out);
    memcpy(out, &b->info, size);
    out->size = size;
}

void hvx_blk_stats(struct hvx_blk *b, void (*fn)(void *o, const char *name, uint64_t v, const char *unit), void *o)
{
    const struct counters *c = &b->count;
    fn(o, "reads", c->reads, "");
    fn(o, "writes", c->writes, "");
    fn(o, "read_bytes", c->read_bytes, "bytes");
    fn(o, "written_bytes", c->write_bytes, "bytes");
    fn(o, "flushes", c->flushes, "");
    fn(o, "discards", c->discards, "");
    fn(o, "write_zeroes", c->zeroes, "");
    fn(o, "errors", c->errors, "");
    fn(o, "by_io_uring", c->by_ring, "");
    fn(o, "by_worker", c->by_worker, "");
    fn(o, "waited_for_others", c->waited, "");
    fn(o, "in_flight", b->active.n + b->waiting.n, "");
}
