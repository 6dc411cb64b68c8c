/* SPDX-License-Identifier: Apache-2.0
 *
 * blk.c - the front of the block layer: takes requests from devices, lets
 * those run together that may, and completes them on the loop.
 *
 * A request takes one of two roads. When the image can say from memory where
 * the bytes are (hvx_image_ops.map), the transfers go to io_uring straight
 * away. Everything else - tables to be loaded, clusters to be allocated,
 * flushes, and all of it where io_uring is refused - is run by a worker.
 *
 * Requests that may change where a cluster lies (allocating writes, discard,
 * write zeroes) are exclusive on the clusters that they touch; the others
 * share. Who conflicts waits in line, and who conflicts with a waiter stands
 * behind it. All state here is guarded by the VM lock, except what `done_lock`
 * guards: the list on which workers put what they have finished.
 */
#define _GNU_SOURCE
#include "core/image/blk.h"
#include "core/image/image.h"
#include "core/image/workers.h"

#include <assert.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define POOL 256u       /* requests in progress; more wait in line */
#define MAX_SEGS 16u
#define MAX_IOV 64u     /* scratch for requests that are cut into pieces */
#define RING_ENTRIES 256u
#define N_WORKERS 8u

struct io {
    struct hvx_job job; /* first: a job is turned back into its io by a cast */
    struct hvx_blk *b;
    struct hvx_blk_req *req;
    struct io *next, *prev; /* free list, in flight, or waiting */
    struct io *next_done;
    uint32_t op;
    bool exclusive, in_line;
    uint64_t from, to; /* in units of whole clusters; empty for a flush */
    unsigned pending;  /* transfers in the ring */
    int result;
    bool redo; /* a transfer came up short: a worker does it over */
    struct hvx_seg segs[MAX_SEGS];
    struct iovec iov[MAX_IOV];
};

struct io_list {
    struct io *head, *tail;
    unsigned n;
};

struct counters {
    uint64_t reads, writes, flushes, discards, zeroes, errors;
    uint64_t read_bytes, write_bytes;
    uint64_t by_ring, by_worker, waited;
};

struct hvx_blk {
    struct hvx_loop *loop;
    struct hvx_image *img;
    struct hvx_blk_info info;
    bool unsafe, ring_ok;
    struct io_uring ring;
    int efd;
    struct hvx_watch *watch;
    struct hvx_workers workers;
    struct io *pool;
    struct io_list idle, active, waiting;
    unsigned n_exclusive;
    struct hvx_blk_req *overflow, **overflow_tail; /* linked through core[0] */
    bool restarting;
    pthread_mutex_t done_lock;
    struct io *done, **done_tail;
    struct counters count;
};

/* --- lists ------------------------------------------------------------------ */
static void list_add(struct io_list *l, struct io *io)
{
    io->next = NULL;
    io->prev = l->tail;
    if (l->tail)
        l->tail->next = io;
    else
        l->head = io;
    l->tail = io;
    l->n++;
}

static void list_del(struct io_list *l, struct io *io)
{
    if (io->prev)
        io->prev->next = io->next;
    else
        l->head = io->next;
    if (io->next)
        io->next->prev = io->prev;
    else
        l->tail = io->prev;
    l->n--;
}

/* --- completion -------------------------------------------------------------- */
static void signal_done(struct hvx_blk *b)
{
    uint64_t one = 1;
    ssize_t n = write(b->efd, &one, sizeof(one));
    (void)n; /* can only fail when the counter is huge, and then the reader is awake */
}

/* Any thread. */
static void put_done(struct io *io)
{
    struct hvx_blk *b = io->b;
    io->next_done = NULL;
    pthread_mutex_lock(&b->done_lock);
    bool first = !b->done;
    *b->done_tail = io;
    b->done_tail = &io->next_done;
    pthread_mutex_unlock(&b->done_lock);
    if (first)
        signal_done(b);
}

/* --- the worker's road --------------------------------------------------------- */
static void run_job(struct hvx_job *job)
{
    struct io *io = (struct io *)job;
    struct hvx_image *img = io->b->img;
    const struct hvx_blk_req *req = io->req;
    struct hvx_sg sg = hvx_sg_of(req->iov, req->n_iov);
    switch (io->op) {
    case HVX_BLK_READ: io->result = hvx_image_preadv(img, sg, req->offset, req->bytes); break;
    case HVX_BLK_WRITE: io->result = img->ops->pwritev(img, sg, req->offset, req->bytes); break;
    case HVX_BLK_FLUSH: io->result = img->ops->flush(img); break;
    case HVX_BLK_DISCARD: io->result = img->ops->discard(img, req->offset, req->bytes); break;
    default:
        io->result = img->ops->write_zeroes(img, req->offset, req->bytes, req->flags & HVX_BLK_UNMAP);
        break;
    }
    put_done(io);
}

static void to_worker(struct io *io)
{
    io->job.run = run_job;
    io->b->count.by_worker++;
    hvx_workers_submit(&io->b->workers, &io->job);
}

/* --- the ring's road ------------------------------------------------------------- */
/* Cut the request's list along the segments. False: too many pieces. */
static bool cut(struct io *io, unsigned n_segs, const struct iovec *out_iov[MAX_SEGS], unsigned out_n[MAX_SEGS])
{
    struct hvx_sg sg = hvx_sg_of(io->req->iov, io->req->n_iov);
    unsigned used = 0;
    if (n_segs == 1) {
        out_iov[0] = io->req->iov;
        out_n[0] = io->req->n_iov;
        return hvx_file_aligned(io->segs[0].file, sg, io->segs[0].host_off, io->segs[0].bytes);
    }
    for (unsigned i = 0; i < n_segs; i++) {
        struct hvx_seg *s = &io->segs[i];
        if (s->kind == HVX_SEG_DATA) {
            uint64_t covered;
            unsigned n = hvx_sg_slice(sg, s->bytes, io->iov + used, MAX_IOV - used, &covered);
            if (covered != s->bytes || !hvx_file_aligned(s->file, sg, s->host_off, s->bytes))
                return false;
            out_iov[i] = io->iov + used;
            out_n[i] = n;
            used += n;
        }
        hvx_sg_advance(&sg, s->bytes);
    }
    return true;
}

static void clear_zero_segs(struct io *io, unsigned n_segs)
{
    struct hvx_sg sg = hvx_sg_of(io->req->iov, io->req->n_iov);
    for (unsigned i = 0; i < n_segs; i++) {
        if (io->segs[i].kind == HVX_SEG_ZERO)
            hvx_sg_zero(sg, io->segs[i].bytes);
        hvx_sg_advance(&sg, io->segs[i].bytes);
    }
}

/* False: this request is one for a worker. */
static bool to_ring(struct io *io, unsigned n_segs)
{
    struct hvx_blk *b = io->b;
    const struct iovec *iov[MAX_SEGS];
    unsigned n_iov[MAX_SEGS], n_data = 0;
    bool write = io->op == HVX_BLK_WRITE;
    for (unsigned i = 0; i < n_segs; i++)
        n_data += io->segs[i].kind == HVX_SEG_DATA;
    if (n_data && (!b->ring_ok || io_uring_sq_space_left(&b->ring) < n_data))
        return false;
    for (unsigned i = 0; i < n_segs; i++) {
        if (io->segs[i].kind == HVX_SEG_DATA && io->segs[i].file->fd < 0)
            return false;
    }
    if (n_data && !cut(io, n_segs, iov, n_iov))
        return false;
    clear_zero_segs(io, n_segs);
    if (!n_data) {
        put_done(io);
        return true;
    }
    io->pending = n_data;
    for (unsigned i = 0; i < n_segs; i++) {
        const struct hvx_seg *s = &io->segs[i];
        if (s->kind != HVX_SEG_DATA)
            continue;
        struct io_uring_sqe *sqe = io_uring_get_sqe(&b->ring);
        if (write)
            io_uring_prep_writev(sqe, s->file->fd, iov[i], n_iov[i], s->host_off);
        else
            io_uring_prep_readv(sqe, s->file->fd, iov[i], n_iov[i], s->host_off);
        /* What the transfer must return rides along: a shorter one is redone.
         * Segments fit 4 bits, pool indices 8. */
        io_uring_sqe_set_data64(sqe, (uint64_t)(io - b->pool) << 4 | i);
    }
    b->count.by_ring++;
    /* A failure (out of kernel memory) leaves them queued: the next submit,
     * or the loop below in reap, takes them along. */
    if (io_uring_submit(&b->ring) < 0)
        signal_done(b);
    return true;
}

/* --- starting ---------------------------------------------------------------------- */
static bool overlaps(const struct io *a, const struct io *b)
{
    return a->from < b->to && b->from < a->to;
}

/* May io not start yet? Waiters in front of it count as if they had started. */
static bool conflicts(const struct hvx_blk *b, const struct io *io)
{
    if (io->exclusive || b->n_exclusive) {
        for (const struct io *o = b->active.head; o; o = o->next) {
            if (overlaps(io, o) && (io->exclusive || o->exclusive))
                return true;
        }
    }
    for (const struct io *o = b->waiting.head; o && o != io; o = o->next) {
        if (overlaps(io, o) && (io->exclusive || o->exclusive))
            return true;
    }
    return false;
}

static void activate(struct io *io)
{
    if (io->in_line) {
        list_del(&io->b->waiting, io);
        io->in_line = false;
    }
    list_add(&io->b->active, io);
    io->b->n_exclusive += io->exclusive;
}

/* True: started. False: it conflicts and has to wait. */
static bool try_start(struct io *io)
{
    struct hvx_blk *b = io->b;
    struct hvx_image *img = b->img;
    const struct hvx_blk_req *req = io->req;
    bool transfer = io->op == HVX_BLK_READ || io->op == HVX_BLK_WRITE;
    io->exclusive = !transfer && io->op != HVX_BLK_FLUSH;
    /* Part of an O_DIRECT block is read, changed and written back. */
    if (io->op == HVX_BLK_WRITE && ((req->offset | req->bytes) & (img->file->io_align - 1)))
        io->exclusive = true;
    if (conflicts(b, io))
        return false;
    if (transfer) {
        int n = img->ops->map(img, io->op == HVX_BLK_WRITE, req->offset, req->bytes, io->segs, MAX_SEGS);
        if (n > 0) {
            activate(io);
            if (io->exclusive || !to_ring(io, (unsigned)n))
                to_worker(io);
            return true;
        }
        if (io->op == HVX_BLK_WRITE) {
            io->exclusive = true; /* it will allocate */
            if (conflicts(b, io))
                return false;
        }
    }
    activate(io);
    to_worker(io);
    return true;
}

static void set_range(struct io *io)
{
    uint64_t unit = io->b->img->granularity;
    if (io->op == HVX_BLK_FLUSH) {
        io->from = io->to = 0;
        return;
    }
    io->from = io->req->offset / unit * unit;
    io->to = (io->req->offset + io->req->bytes + unit - 1) / unit * unit;
}

static int check_req(const struct hvx_blk *b, const struct hvx_blk_req *req)
{
    uint64_t sum = 0;
    if (req->op < HVX_BLK_READ || req->op > HVX_BLK_WRITE_ZEROES)
        return -ENOTSUP;
    if (req->op == HVX_BLK_FLUSH)
        return 0;
    if ((req->offset | req->bytes) & 511 || req->offset > b->info.bytes || req->bytes > b->info.bytes - req->offset)
        return -EINVAL;
    if (req->op != HVX_BLK_READ && b->info.read_only)
        return -EROFS;
    if (req->op == HVX_BLK_READ || req->op == HVX_BLK_WRITE) {
        if (req->n_iov > HVX_BLK_MAX_IOV || req->bytes > INT32_MAX)
            return -EINVAL;
        for (uint32_t i = 0; i < req->n_iov; i++)
            sum += req->iov[i].iov_len;
        if (sum != req->bytes)
            return -EINVAL;
    }
    return 0;
}

static void count_req(struct hvx_blk *b, const struct hvx_blk_req *req)
{
    switch (req->op) {
    case HVX_BLK_READ:
        b->count.reads++;
        b->count.read_bytes += req->bytes;
        break;
    case HVX_BLK_WRITE:
        b->count.writes++;
        b->count.write_bytes += req->bytes;
        break;
    case HVX_BLK_FLUSH: b->count.flushes++; break;
    case HVX_BLK_DISCARD: b->count.discards++; break;
    case HVX_BLK_WRITE_ZEROES: b->count.zeroes++; break;
    }
}

/* There is room in the pool. */
static void begin(struct hvx_blk *b, struct hvx_blk_req *req)
{
    struct io *io = b->idle.head;
    list_del(&b->idle, io);
    io->req = req;
    io->op = req->op;
    io->result = 0;
    io->redo = false;
    io->exclusive = false;
    io->pending = 0;
    int r = check_req(b, req);
    if (r || (req->op == HVX_BLK_FLUSH && (b->unsafe || b->info.read_only)) ||
        (req->op != HVX_BLK_FLUSH && !req->bytes)) {
        io->op = HVX_BLK_FLUSH; /* touches nothing */
        io->from = io->to = 0;
        io->result = r;
        activate(io);
        put_done(io);
        return;
    }
    count_req(b, req);
    set_range(io);
    if (!try_start(io)) {
        b->count.waited++;
        io->in_line = true;
        list_add(&b->waiting, io);
    }
}

void hvx_blk_submit(struct hvx_blk *b, struct hvx_blk_req *req)
{
    if (b->overflow || !b->idle.n) {
        req->core[0] = 0;
        *b->overflow_tail = req;
        b->overflow_tail = (struct hvx_blk_req **)(void *)&req->core[0];
        return;
    }
    begin(b, req);
}

/* Something has finished: whoever waited for it may go. */
static void restart(struct hvx_blk *b)
{
    if (b->restarting)
        return;
    b->restarting = true;
    for (struct io *io = b->waiting.head, *next; io; io = next) {
        next = io->next;
        (void)try_start(io); /* takes it out of the line, unless it must be exclusive and cannot yet */
    }
    while (b->overflow && b->idle.n) {
        struct hvx_blk_req *req = b->overflow;
        b->overflow = (struct hvx_blk_req *)(uintptr_t)req->core[0];
        if (!b->overflow)
            b->overflow_tail = &b->overflow;
        begin(b, req);
    }
    b->restarting = false;
}

static void finish(struct io *io)
{
    struct hvx_blk *b = io->b;
    struct hvx_blk_req *req = io->req;
    if (io->redo) {
        io->redo = false;
        io->result = 0;
        to_worker(io);
        return;
    }
    if (!io->result && req->op == HVX_BLK_WRITE && (req->flags & HVX_BLK_FUA) && io->op == HVX_BLK_WRITE &&
        !b->unsafe) {
        io->op = HVX_BLK_FLUSH; /* same request, second stage */
        to_worker(io);
        return;
    }
    list_del(&b->active, io);
    b->n_exclusive -= io->exclusive;
    req->result = io->result;
    if (io->result)
        b->count.errors++;
    list_add(&b->idle, io);
    restart(b);
    req->done(req);
}

static void reap_ring(struct hvx_blk *b)
{
    struct io_uring_cqe *cqe;
    if (!b->ring_ok)
        return;
    if (io_uring_sq_ready(&b->ring) && io_uring_submit(&b->ring) < 0)
        signal_done(b); /* still no memory: come back */
    while (io_uring_peek_cqe(&b->ring, &cqe) == 0 && cqe) {
        uint64_t data = io_uring_cqe_get_data64(cqe);
        struct io *io = &b->pool[data >> 4];
        int res = cqe->res;
        io_uring_cqe_seen(&b->ring, cqe);
        if (res < 0 && res != -EAGAIN && res != -EINTR && res != -EOPNOTSUPP && res != -EINVAL)
            io->result = res;
        else if (res < 0 || (uint64_t)res != io->segs[data & 15].bytes)
            io->redo = true; /* end of file, or the kernel wants it another way */
        if (--io->pending == 0)
            finish(io);
    }
}

static void reap(struct hvx_blk *b)
{
    uint64_t n;
    ssize_t got = read(b->efd, &n, sizeof(n));
    (void)got;
    reap_ring(b);
    for (;;) { /* one at a time: a completion may come back here through drain */
        pthread_mutex_lock(&b->done_lock);
        struct io *io = b->done;
        if (io) {
            b->done = io->next_done;
            if (!b->done)
                b->done_tail = &b->done;
        }
        pthread_mutex_unlock(&b->done_lock);
        if (!io)
            break;
        finish(io);
    }
}

static void on_event(void *opaque, int fd, bool readable, bool writable)
{
    (void)fd;
    (void)readable;
    (void)writable;
    reap(opaque);
}

/* --- life --------------------------------------------------------------------------- */
static int start_ring(struct hvx_blk *b, const char *aio, const char *path, struct hvx_error *err)
{
    if (aio && strcmp(aio, "io_uring") && strcmp(aio, "threads"))
        return hvx_fail(err, -EINVAL, "disk %s: aio=%s is unknown; use io_uring or threads", path, aio);
    if (aio && !strcmp(aio, "threads"))
        return 0;
    int r = io_uring_queue_init(RING_ENTRIES, &b->ring, 0);
    if (!r) {
        r = io_uring_register_eventfd(&b->ring, b->efd);
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

static int open_image(const struct hvx_blk_open *p, struct hvx_image **out, struct hvx_error *err)
{
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
        list_add(&b->idle, &b->pool[i]);
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

int hvx_blk_drain(struct hvx_blk *b)
{
    while (b->active.n || b->waiting.n || b->overflow) {
        struct pollfd p = {.fd = b->efd, .events = POLLIN};
        if (poll(&p, 1, -1) < 0 && errno != EINTR)
            return -errno;
        reap(b);
    }
    return b->img->ops->flush(b->img);
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
