/* SPDX-License-Identifier: Apache-2.0
 *
 * qcow2_write.c - writing by a worker: everything that must allocate. A write
 * goes in three steps, so that other clusters can be worked on meanwhile:
 * plan (meta held) where the bytes go, write them, link (meta held) the L2
 * entries to them. Until the link nothing points to the new clusters.
 */
#include "core/image/qcow2.h"

struct plan {
    bool in_place;      /* mapped, ours alone: nothing to link */
    bool fresh;         /* allocated by us: give back on failure */
    bool virgin;        /* the file never held anything there: reads as zeroes */
    uint64_t start;     /* guest offset of the first cluster */
    uint64_t clusters;
    uint64_t host;      /* file offset of the first cluster */
    enum qcow2_kind first, last; /* what was there before */
};

static bool wants_alloc(const struct qcow2_entry *e)
{
    return !((e->kind == QCOW2_NORMAL || e->kind == QCOW2_ZERO_ALLOC) && e->copied);
}

static int plan_alloc(struct qcow2 *q, struct plan *p)
{
    uint64_t virgin = q->virgin;
    int r = qcow2_alloc(q, &p->clusters, &p->host);
    p->fresh = true;
    p->virgin = p->host >= virgin;
    return r;
}

static int plan_write(struct qcow2 *q, uint64_t off, uint64_t bytes, struct plan *p)
{
    struct qcow2_slice *s;
    uint32_t i, per_slice = q->l2c.slice_bytes / 8;
    struct qcow2_entry e;
    int r = qcow2_l2_get_write(q, off, &s, &i);
    if (r)
        return r;
    r = qcow2_entry_decode(q, be64toh(s->data[i]), off, true, &e);
    if (r)
        return r;
    memset(p, 0, sizeof(*p));
    p->start = off - qcow2_in_cluster(q, off);
    p->first = p->last = e.kind;
    p->host = e.offset;
    p->in_place = e.kind == QCOW2_NORMAL && e.copied;
    uint64_t want = (qcow2_in_cluster(q, off) + bytes + q->cluster_bytes - 1) >> q->cluster_bits;
    if (want > per_slice - i)
        want = per_slice - i;
    if (want << q->cluster_bits > QCOW2_MAX_RUN_BYTES && want > 1)
        want = QCOW2_MAX_RUN_BYTES >> q->cluster_bits;
    bool alloc = wants_alloc(&e);
    enum qcow2_kind kinds[QCOW2_SLICE_BYTES / 8];
    kinds[0] = e.kind;
    for (p->clusters = 1; p->clusters < want; p->clusters++) {
        struct qcow2_entry next;
        if (qcow2_entry_decode(q, be64toh(s->data[i + p->clusters]), off + (p->clusters << q->cluster_bits), true,
                               &next))
            break; /* reported when its turn comes */
        if (alloc != wants_alloc(&next) ||
            (!alloc && (next.kind != e.kind || next.offset != e.offset + (p->clusters << q->cluster_bits))))
            break;
        kinds[p->clusters] = next.kind;
    }
    if (alloc)
        r = plan_alloc(q, p);
    if (!r)
        p->last = kinds[p->clusters - 1];
    return r;
}

static bool reads_zero(const struct hvx_image *img, enum qcow2_kind kind)
{
    return kind == QCOW2_ZERO_PLAIN || kind == QCOW2_ZERO_ALLOC || (kind == QCOW2_UNALLOCATED && !img->backing);
}

/* What stood at [off, off+bytes) before, into memory. */
static int old_bytes(struct hvx_image *img, uint8_t *buf, uint64_t off, uint64_t bytes)
{
    struct iovec v = {buf, bytes};
    return hvx_image_preadv(img, hvx_sg_of(&v, 1), off, bytes);
}

/* The part of a new cluster beside the guest's bytes. */
static int copy_beside(struct hvx_image *img, const struct plan *p, enum qcow2_kind kind, uint8_t *buf, uint64_t off,
                       uint64_t bytes)
{
    struct qcow2 *q = img->priv;
    if (!bytes || (p->virgin && reads_zero(img, kind)))
        return 0;
    int r = old_bytes(img, buf, off, bytes);
    return r ? r : hvx_file_pwrite(q->file, buf, bytes, p->host + (off - p->start));
}

static int write_clusters(struct hvx_image *img, const struct plan *p, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    struct qcow2 *q = img->priv;
    uint64_t head = off - p->start, tail = (p->clusters << q->cluster_bits) - head - bytes;
    bool skip_head = !head || (p->virgin && reads_zero(img, p->first));
    bool skip_tail = !tail || (p->virgin && reads_zero(img, p->last));
    if (p->in_place || (skip_head && skip_tail))
        return hvx_file_pwritev(q->file, sg, p->host + head, bytes);
    uint8_t *buf = hvx_bufpool_get(&q->bufs);
    if (!buf)
        return -ENOMEM;
    int r;
    if (p->clusters == 1) { /* one write for all of it */
        uint64_t from = skip_head ? head : 0, to = skip_tail ? head + bytes : q->cluster_bytes;
        r = skip_head ? 0 : old_bytes(img, buf, p->start, head);
        if (!r && !skip_tail)
            r = old_bytes(img, buf + head + bytes, off + bytes, tail);
        if (!r) {
            hvx_sg_take(sg, buf + head, bytes);
            r = hvx_file_pwrite(q->file, buf + from, to - from, p->host + from);
        }
    } else {
        r = copy_beside(img, p, p->first, buf, p->start, head);
        if (!r)
            r = hvx_file_pwritev(q->file, sg, p->host + head, bytes);
        if (!r)
            r = copy_beside(img, p, p->last, buf, off + bytes, tail);
    }
    hvx_bufpool_put(&q->bufs, buf);
    return r;
}

static int link_clusters(struct qcow2 *q, const struct plan *p)
{
    struct qcow2_slice *s;
    uint32_t i;
    int r = qcow2_l2_get_write(q, p->start, &s, &i);
    if (r)
        return r;
    q->written++; /* what was copied must be durable before it is referred to */
    for (uint64_t k = 0; k < p->clusters; k++) {
        struct qcow2_entry old;
        uint64_t host = p->host + (k << q->cluster_bits);
        bool was_ok = !qcow2_entry_decode(q, be64toh(s->data[i + k]), p->start, false, &old);
        qcow2_l2_set(q, s, i + (uint32_t)k, host | QCOW2_L2_COPIED);
        if (!was_ok || !p->fresh)
            continue;
        if (old.kind == QCOW2_COMPRESSED)
            qcow2_free_later(q, old.offset, old.z_bytes);
        else if (old.offset)
            qcow2_free_later(q, old.offset, (uint32_t)q->cluster_bytes);
    }
    return 0;
}

static int may_write(struct hvx_image *img)
{
    if (img->read_only)
        return -EROFS;
    return atomic_load(&img->corrupt) ? -EIO : 0;
}

int qcow2_pwritev(struct hvx_image *img, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    struct qcow2 *q = img->priv;
    while (bytes) {
        struct plan p;
        int r = may_write(img);
        if (r)
            return r;
        pthread_mutex_lock(&q->meta);
        r = plan_write(q, off, bytes, &p);
        pthread_mutex_unlock(&q->meta);
        if (r)
            return r;
        uint64_t room = (p.clusters << q->cluster_bits) - qcow2_in_cluster(q, off);
        uint64_t n = bytes < room ? bytes : room;
        r = write_clusters(img, &p, sg, off, n);
        if (!p.in_place) {
            pthread_mutex_lock(&q->meta);
            if (!r)
                r = link_clusters(q, &p);
            if (r && p.fresh)
                qcow2_free_now(q, p.host, p.clusters << q->cluster_bits);
            pthread_mutex_unlock(&q->meta);
        }
        if (r)
            return r;
        hvx_sg_advance(&sg, n);
        off += n;
        bytes -= n;
    }
    return 0;
}

int qcow2_flush(struct hvx_image *img)
{
    struct qcow2 *q = img->priv;
    if (img->read_only)
        return 0;
    pthread_mutex_lock(&q->meta);
    int r = qcow2_writeback(q);
    uint64_t upto = q->written;
    pthread_mutex_unlock(&q->meta);
    /* The long wait is outside of the lock: other requests go on meanwhile. */
    int r2 = hvx_file_flush(q->file);
    if (!r2) {
        pthread_mutex_lock(&q->meta);
        if (q->synced < upto)
            q->synced = upto;
        pthread_mutex_unlock(&q->meta);
    }
    return r ? r : r2;
}
