/* SPDX-License-Identifier: Apache-2.0
 *
 * qcow2_refcount.c - refcounts and the allocation of clusters. All of it runs
 * with q->meta held.
 *
 * A new refcount block lives in the first cluster of the range that it
 * covers: nothing else can be there, since without a block every cluster of
 * the range is free.
 */
#include "core/image/qcow2.h"

#include <stdlib.h>

uint64_t qcow2_refcount_read(const struct qcow2 *q, const void *table, uint64_t i)
{
    const uint8_t *p = table;
    unsigned bits;
    switch (q->refcount_order) {
    case 3: return p[i];
    case 4: return (uint64_t)p[2 * i] << 8 | p[2 * i + 1];
    case 5: return be32toh(((const uint32_t *)table)[i]);
    case 6: return be64toh(((const uint64_t *)table)[i]);
    }
    bits = 1u << q->refcount_order; /* 1, 2, 4: the lowest bits come first */
    return (p[i * bits / 8] >> (i * bits % 8)) & ((1u << bits) - 1);
}

void qcow2_refcount_write(const struct qcow2 *q, void *table, uint64_t i, uint64_t v)
{
    uint8_t *p = table;
    unsigned bits = 1u << q->refcount_order;
    switch (q->refcount_order) {
    case 3: p[i] = (uint8_t)v; return;
    case 4:
        p[2 * i] = (uint8_t)(v >> 8);
        p[2 * i + 1] = (uint8_t)v;
        return;
    case 5: ((uint32_t *)table)[i] = htobe32((uint32_t)v); return;
    case 6: ((uint64_t *)table)[i] = htobe64(v); return;
    }
    unsigned shift = i * bits % 8, mask = (1u << bits) - 1;
    p[i * bits / 8] = (uint8_t)((p[i * bits / 8] & ~(mask << shift)) | (v & mask) << shift);
}

/* The slice with a cluster's refcount; *out NULL: no block covers it. */
static int refcount_slice(struct qcow2 *q, uint64_t cluster, struct qcow2_slice **out, uint64_t *index)
{
    uint64_t rbi = cluster / q->rb_entries, in_block = cluster % q->rb_entries;
    uint64_t per_slice = ((uint64_t)q->rbc.slice_bytes * 8) >> q->refcount_order;
    *out = NULL;
    if (rbi >= q->rt_size || !q->rt[rbi])
        return 0;
    uint64_t block = q->rt[rbi];
    if (qcow2_in_cluster(q, block) || block >= q->end_bytes)
        return hvx_image_corrupt(q->img, "refcount block %llu lies at %#llx, outside of the file",
                                 (unsigned long long)rbi, (unsigned long long)block);
    *index = in_block % per_slice;
    return qcow2_cache_get(q, &q->rbc, block + in_block / per_slice * q->rbc.slice_bytes, out);
}

int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *out)
{
    struct qcow2_slice *s;
    uint64_t i;
    int r = refcount_slice(q, cluster, &s, &i);
    if (!r)
        *out = s ? qcow2_refcount_read(q, s->data, i) : 0;
    return r;
}

static int refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t value)
{
    struct qcow2_slice *s;
    uint64_t i;
    int r = refcount_slice(q, cluster, &s, &i);
    if (r)
        return r;
    if (!s)
        return -EIO;
    qcow2_refcount_write(q, s->data, i, value);
    qcow2_cache_dirty(&q->rbc, s);
    return 0;
}

static void set_end(struct qcow2 *q, uint64_t end)
{
    pthread_mutex_lock(&q->map);
    if (q->end_bytes < end)
        q->end_bytes = end;
    pthread_mutex_unlock(&q->map);
    if (!q->file->is_device && q->virgin < end)
        q->virgin = end;
}

static int add_meta(struct qcow2 *q, uint64_t offset, uint64_t bytes, enum qcow2_meta_kind kind)
{
    pthread_mutex_lock(&q->map);
    int r = qcow2_meta_add(q, offset, bytes, kind);
    pthread_mutex_unlock(&q->map);
    return r;
}

static int refuse_overlap(struct qcow2 *q, uint64_t offset)
{
    return hvx_image_corrupt(q->img, "the refcounts call the cluster at %#llx free, but it holds %s",
                             (unsigned long long)offset, qcow2_meta_name(qcow2_meta_at(q, offset)));
}

static int new_refblock(struct qcow2 *q, uint64_t rbi)
{
    uint64_t offset = (rbi * q->rb_entries) << q->cluster_bits;
    if (qcow2_meta_at(q, offset))
        return refuse_overlap(q, offset);
    uint8_t *buf = hvx_bufpool_get(&q->bufs);
    if (!buf)
        return -ENOMEM;
    memset(buf, 0, q->cluster_bytes);
    qcow2_refcount_write(q, buf, 0, 1);
    qcow2_cache_drop(q, &q->rbc, offset, q->cluster_bytes);
    int r = hvx_file_pwrite(q->file, buf, q->cluster_bytes, offset);
    hvx_bufpool_put(&q->bufs, buf);
    q->written++;
    if (!r)
        r = add_meta(q, offset, q->cluster_bytes, QCOW2_META_REFBLOCK);
    if (r)
        return r;
    set_end(q, offset + q->cluster_bytes);
    q->rt[rbi] = offset;
    q->rt_dirty[rbi / 64] = 1;
    q->rt_any_dirty = true;
    return 0;
}

/* Write B blocks that count B+T clusters from `first` on, all of them 1. */
static int write_new_blocks(struct qcow2 *q, uint64_t first, uint64_t n_blocks, uint64_t n_used)
{
    uint8_t *buf = hvx_bufpool_get(&q->bufs);
    int r = buf ? 0 : -ENOMEM;
    for (uint64_t b = 0; b < n_blocks && !r; b++) {
        memset(buf, 0, q->cluster_bytes);
        for (uint64_t i = 0; i < q->rb_entries && b * q->rb_entries + i < n_used; i++)
            qcow2_refcount_write(q, buf, i, 1);
        qcow2_cache_drop(q, &q->rbc, (first + b) << q->cluster_bits, q->cluster_bytes);
        r = hvx_file_pwrite(q->file, buf, q->cluster_bytes, (first + b) << q->cluster_bits);
    }
    hvx_bufpool_put(&q->bufs, buf);
    return r;
}

static int write_table(struct qcow2 *q, const uint64_t *table, uint64_t n, uint64_t offset)
{
    uint64_t piece[64];
    for (uint64_t i = 0; i < n; i += 64) {
        for (unsigned j = 0; j < 64; j++)
            piece[j] = i + j < n ? htobe64(table[i + j]) : 0;
        int r = hvx_file_pwrite(q->file, piece, sizeof(piece), offset + i * 8);
        if (r)
            return r;
    }
    return 0;
}

/* Point the header at another refcount table. */
static int switch_reftable(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    struct {
        uint64_t offset;
        uint32_t clusters;
    } __attribute__((packed)) field = {htobe64(offset), htobe32((uint32_t)clusters)};
    q->written++;
    int r = qcow2_barrier(q);
    if (!r)
        r = hvx_file_pwrite(q->file, &field, sizeof(field), offsetof(struct qcow2_header, refcount_table_offset));
    q->written++;
    return r ? r : qcow2_barrier(q);
}

/* The refcount table is full: a larger one, with the blocks that count it,
 * goes behind everything that the old one could count. */
static int grow_reftable(struct qcow2 *q)
{
    uint64_t first = q->rt_size * q->rb_entries, n_blocks = 1, per = q->cluster_bytes / 8;
    uint64_t entries = q->rt_size + q->rt_size / 2 + 2;
    entries = (entries + per - 1) / per * per;
    uint64_t clusters = entries / per;
    while (n_blocks * q->rb_entries < n_blocks + clusters)
        n_blocks++;
    while (entries < q->rt_size + n_blocks) {
        entries += per;
        clusters++;
        while (n_blocks * q->rb_entries < n_blocks + clusters)
            n_blocks++;
    }
    if (entries * 8 > QCOW2_MAX_REFTABLE_BYTES)
        return -EFBIG;
    uint64_t total = n_blocks + clusters;
    for (uint64_t i = 0; i < total; i++) {
        if (qcow2_meta_at(q, (first + i) << q->cluster_bits))
            return refuse_overlap(q, (first + i) << q->cluster_bits);
    }
    uint64_t *rt = calloc(entries, sizeof(*rt));
    uint8_t *dirty = calloc(entries / 64 + 1, 1);
    int r = rt && dirty ? qcow2_cache_write(q, &q->rbc) : -ENOMEM;
    if (!r)
        r = write_new_blocks(q, first, n_blocks, total);
    if (!r) {
        memcpy(rt, q->rt, q->rt_size * sizeof(*rt));
        for (uint64_t b = 0; b < n_blocks; b++)
            rt[q->rt_size + b] = (first + b) << q->cluster_bits;
        r = write_table(q, rt, entries, (first + n_blocks) << q->cluster_bits);
    }
    if (!r)
        r = switch_reftable(q, (first + n_blocks) << q->cluster_bits, clusters);
    if (!r)
        r = add_meta(q, first << q->cluster_bits, n_blocks << q->cluster_bits, QCOW2_META_REFBLOCK);
    if (!r)
        r = add_meta(q, (first + n_blocks) << q->cluster_bits, clusters << q->cluster_bits, QCOW2_META_REFTABLE);
    if (r) {
        free(rt);
        free(dirty);
        return r;
    }
    uint64_t old = q->rt_offset, old_bytes = q->rt_clusters << q->cluster_bits;
    free(q->rt);
    free(q->rt_dirty);
    q->rt = rt;
    q->rt_dirty = dirty;
    q->rt_any_dirty = false;
    q->rt_offset = (first + n_blocks) << q->cluster_bits;
    q->rt_clusters = clusters;
    q->rt_size = entries;
    set_end(q, (first + total) << q->cluster_bits);
    qcow2_free_now(q, old, old_bytes);
    return 0;
}

/* Find up to `want` free clusters in a row. */
static int find_run(struct qcow2 *q, uint64_t want, uint64_t *start, uint64_t *found)
{
    uint64_t run = 0, i = q->free_hint;
    while (run < want) {
        uint64_t rbi = i / q->rb_entries, count;
        int r = 0;
        if (rbi >= q->rt_size || !q->rt[rbi]) {
            if (run)
                break;
            r = rbi >= q->rt_size ? grow_reftable(q) : new_refblock(q, rbi);
            if (r)
                return r;
            if (i > q->free_hint)
                i = q->free_hint; /* growing freed the old table */
            continue;
        }
        r = qcow2_refcount_get(q, i, &count);
        if (r)
            return r;
        if (!count) {
            if (qcow2_meta_at(q, i << q->cluster_bits))
                return refuse_overlap(q, i << q->cluster_bits);
            run++;
        } else if (run) {
            break;
        }
        i++;
    }
    *start = i - run;
    *found = run;
    return 0;
}

int qcow2_alloc(struct qcow2 *q, uint64_t *n, uint64_t *offset)
{
    uint64_t start = 0, run = 0;
    int r = find_run(q, *n, &start, &run);
    if (r)
        return r;
    for (uint64_t i = 0; i < run; i++) {
        r = refcount_set(q, start + i, 1);
        if (r) {
            if (i)
                qcow2_free_now(q, start << q->cluster_bits, i << q->cluster_bits);
            return r;
        }
    }
    q->free_hint = start + run;
    set_end(q, (start + run) << q->cluster_bits);
    *n = run;
    *offset = start << q->cluster_bits;
    return 0;
}

static void forget_cluster(struct qcow2 *q, uint64_t cluster)
{
    uint64_t offset = cluster << q->cluster_bits;
    if (cluster < q->free_hint)
        q->free_hint = cluster;
    qcow2_cache_drop(q, &q->l2c, offset, q->cluster_bytes);
    qcow2_cache_drop(q, &q->rbc, offset, q->cluster_bytes);
    pthread_mutex_lock(&q->map);
    qcow2_meta_del(q, offset, 1);
    pthread_mutex_unlock(&q->map);
    pthread_mutex_lock(&q->zlock);
    if (q->z_offset >> q->cluster_bits == cluster)
        q->z_offset = 0;
    pthread_mutex_unlock(&q->zlock);
}

void qcow2_free_now(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    uint64_t last = (offset + bytes - 1) >> q->cluster_bits, hole = 0, n_hole = 0;
    for (uint64_t i = offset >> q->cluster_bits; i <= last; i++) {
        uint64_t count;
        if (qcow2_refcount_get(q, i, &count))
            continue; /* stays a leak */
        if (!count) {
            hvx_image_corrupt(q->img, "the cluster at %#llx is in use but its refcount is 0",
                              (unsigned long long)(i << q->cluster_bits));
            continue;
        }
        if (refcount_set(q, i, count - 1) || count > 1)
            continue;
        forget_cluster(q, i);
        if (n_hole && hole + n_hole == i) {
            n_hole++;
            continue;
        }
        if (n_hole)
            q->file->ops->discard(q->file, hole << q->cluster_bits, n_hole << q->cluster_bits);
        hole = i;
        n_hole = 1;
    }
    if (n_hole) /* giving space back is a courtesy: failure changes nothing */
        q->file->ops->discard(q->file, hole << q->cluster_bits, n_hole << q->cluster_bits);
}

int qcow2_free_later(struct qcow2 *q, uint64_t offset, uint32_t bytes)
{
    if (q->n_frees) {
        struct qcow2_free *last = &q->frees[q->n_frees - 1];
        if (!qcow2_in_cluster(q, offset | bytes | last->offset | last->bytes) && last->offset + last->bytes == offset &&
            last->bytes <= (1u << 30)) {
            last->bytes += bytes;
            return 0;
        }
    }
    if (q->n_frees == QCOW2_MAX_FREES) {
        int r = qcow2_writeback(q);
        if (r)
            return r; /* then it is a leak */
    }
    q->frees[q->n_frees++] = (struct qcow2_free){offset, bytes};
    return 0;
}

int qcow2_apply_frees(struct qcow2 *q)
{
    for (uint32_t i = 0; i < q->n_frees; i++)
        qcow2_free_now(q, q->frees[i].offset, q->frees[i].bytes);
    q->n_frees = 0;
    return 0;
}

int qcow2_reftable_load(struct qcow2 *q, struct hvx_error *err)
{
    q->rt_size = (q->rt_clusters << q->cluster_bits) / 8;
    q->rt = calloc(q->rt_size, 8);
    q->rt_dirty = calloc(q->rt_size / 64 + 1, 1);
    if (!q->rt || !q->rt_dirty)
        return hvx_fail(err, -ENOMEM, "no memory for the refcount table of %s", q->file->name);
    int r = hvx_file_pread(q->file, q->rt, q->rt_size * 8, q->rt_offset);
    if (r)
        return hvx_fail(err, r, "cannot read the refcount table of %s: %s", q->file->name, strerror(-r));
    for (uint64_t i = 0; i < q->rt_size; i++) {
        q->rt[i] = be64toh(q->rt[i]) & ~511ull;
        if (!q->rt[i])
            continue;
        if (qcow2_in_cluster(q, q->rt[i]) || q->rt[i] >= q->end_bytes)
            hvx_image_corrupt(q->img, "its refcount table says that block %llu lies at %#llx, which cannot be",
                              (unsigned long long)i, (unsigned long long)q->rt[i]);
        else if ((r = qcow2_meta_add(q, q->rt[i], q->cluster_bytes, QCOW2_META_REFBLOCK)) == -EEXIST)
            hvx_image_corrupt(q->img, "its refcount block %llu lies at %#llx, which is also %s", (unsigned long long)i,
                              (unsigned long long)q->rt[i], qcow2_meta_name(qcow2_meta_at(q, q->rt[i])));
        else if (r)
            return hvx_fail(err, r, "no memory for the tables of %s", q->file->name);
    }
    return 0;
}
