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
#include "core/image/front.h"

#include <poll.h>
#include <unistd.h>

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

void hvx_blk_pool_add(struct hvx_blk *b, struct io *io)
{
    list_add(&b->idle, io);
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

void hvx_blk_reap(struct hvx_blk *b)
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

int hvx_blk_drain(struct hvx_blk *b)
{
    while (b->active.n || b->waiting.n || b->overflow) {
        struct pollfd p = {.fd = b->efd, .events = POLLIN};
        if (poll(&p, 1, -1) < 0 && errno != EINTR)
            return -errno;
        hvx_blk_reap(b);
    }
    return b->img->ops->flush(b->img);
}
