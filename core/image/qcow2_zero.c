/* SPDX-License-Identifier: Apache-2.0
 *
 * qcow2_zero.c - discard and write zeroes: only table entries change. What
 * the entries pointed to is freed once the entries are on disk.
 */
#include "core/image/qcow2.h"

enum change { DISCARD, ZERO_UNMAP, ZERO_KEEP };

/* The new entry for a cluster; returns false when it stays as it is. */
static bool new_entry(struct hvx_image *img, enum change how, const struct qcow2_entry *e, uint64_t *value)
{
    struct qcow2 *q = img->priv;
    bool hides = img->backing; /* an unallocated cluster would show the backing file */
    if (e->kind == QCOW2_ZERO_PLAIN || (e->kind == QCOW2_UNALLOCATED && !hides))
        return false;
    if (how == ZERO_KEEP && e->copied && (e->kind == QCOW2_NORMAL || e->kind == QCOW2_ZERO_ALLOC)) {
        *value = e->offset | QCOW2_L2_COPIED | QCOW2_L2_ZERO;
        return e->kind == QCOW2_NORMAL;
    }
    if (how == DISCARD && e->kind == QCOW2_UNALLOCATED)
        return false; /* nothing of ours to give back */
    *value = q->version >= 3 && (hides || how == ZERO_KEEP) ? QCOW2_L2_ZERO : 0;
    return true;
}

/* Clusters [off, off+bytes), as far as one slice goes; *done says how far. */
static int change_slice(struct hvx_image *img, enum change how, uint64_t off, uint64_t bytes, uint64_t *done)
{
    struct qcow2 *q = img->priv;
    struct qcow2_slice *s;
    uint32_t i, per_slice = q->l2c.slice_bytes / 8;
    int r = qcow2_l2_get(q, off, &s, &i);
    if (r)
        return r;
    uint64_t n = (bytes + q->cluster_bytes - 1) >> q->cluster_bits;
    if (n > per_slice - i)
        n = per_slice - i;
    *done = n << q->cluster_bits;
    if (!s && (!img->backing || how == DISCARD))
        return 0;
    bool ours = false;
    for (uint64_t k = 0; k < n; k++) {
        struct qcow2_entry e = {0};
        uint64_t value;
        if (s)
            r = qcow2_entry_decode(q, be64toh(s->data[i + k]), off + (k << q->cluster_bits), true, &e);
        if (r)
            return r;
        if (!new_entry(img, how, &e, &value))
            continue;
        if (!ours) {
            r = qcow2_l2_get_write(q, off, &s, &i);
            if (r)
                return r;
            ours = true;
        }
        qcow2_l2_set(q, s, i + (uint32_t)k, value);
        if (value & QCOW2_OFFSET_MASK)
            continue;
        if (e.kind == QCOW2_COMPRESSED)
            r = qcow2_free_later(q, e.offset, e.z_bytes);
        else if (e.offset)
            r = qcow2_free_later(q, e.offset, (uint32_t)q->cluster_bytes);
        if (r)
            return r;
    }
    return 0;
}

static int change_range(struct hvx_image *img, enum change how, uint64_t off, uint64_t bytes)
{
    struct qcow2 *q = img->priv;
    while (bytes) {
        uint64_t done = 0;
        if (img->read_only)
            return -EROFS;
        if (atomic_load(&img->corrupt))
            return -EIO;
        pthread_mutex_lock(&q->meta);
        int r = change_slice(img, how, off, bytes, &done);
        pthread_mutex_unlock(&q->meta);
        if (r)
            return r;
        off += done;
        bytes -= done < bytes ? done : bytes;
    }
    return 0;
}

/* The whole clusters inside a range; the disk's end counts as a boundary. */
static bool whole_clusters(struct hvx_image *img, uint64_t off, uint64_t bytes, uint64_t *from, uint64_t *to)
{
    struct qcow2 *q = img->priv;
    *from = qcow2_round_up(q, off);
    *to = off + bytes == img->bytes ? qcow2_round_up(q, off + bytes) : (off + bytes) & ~(q->cluster_bytes - 1);
    return *from < *to;
}

int qcow2_discard(struct hvx_image *img, uint64_t off, uint64_t bytes)
{
    struct qcow2 *q = img->priv;
    uint64_t from, to;
    if (!whole_clusters(img, off, bytes, &from, &to))
        return img->read_only ? -EROFS : 0;
    if (q->version < 3 && img->backing)
        return 0; /* version 2 cannot hide the backing file: keep the data, which a hint allows */
    return change_range(img, DISCARD, from, to - from);
}

static int write_explicit(struct hvx_image *img, uint64_t off, uint64_t bytes)
{
    static const uint8_t zeroes[65536] __attribute__((aligned(4096)));
    while (bytes) {
        struct qcow2_entry e;
        uint64_t run;
        int r = qcow2_extent(img->priv, off, bytes, &e, &run);
        if (r)
            return r;
        if (run > sizeof(zeroes))
            run = sizeof(zeroes);
        bool already = e.kind == QCOW2_ZERO_PLAIN || e.kind == QCOW2_ZERO_ALLOC ||
                       (e.kind == QCOW2_UNALLOCATED && !img->backing);
        struct iovec v = {(void *)(uintptr_t)zeroes, run};
        r = already ? 0 : qcow2_pwritev(img, hvx_sg_of(&v, 1), off, run);
        if (r)
            return r;
        off += run;
        bytes -= run;
    }
    return 0;
}

int qcow2_write_zeroes(struct hvx_image *img, uint64_t off, uint64_t bytes, bool unmap)
{
    struct qcow2 *q = img->priv;
    uint64_t from, to, end = off + bytes;
    if (img->read_only)
        return -EROFS;
    if (!whole_clusters(img, off, bytes, &from, &to) || (q->version < 3 && (img->backing || !unmap)))
        return write_explicit(img, off, bytes);
    int r = write_explicit(img, off, from - off);
    if (!r)
        r = change_range(img, unmap ? ZERO_UNMAP : ZERO_KEEP, from, to - from);
    if (!r && to < end)
        r = write_explicit(img, to, end - to);
    return r;
}
