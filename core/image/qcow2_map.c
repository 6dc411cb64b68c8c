/* SPDX-License-Identifier: Apache-2.0
 *
 * qcow2_map.c - from a place on the guest's disk to a place in the file.
 */
#include "core/image/qcow2.h"

#include <stdlib.h>

static int decode_compressed(struct qcow2 *q, uint64_t raw, struct qcow2_entry *out)
{
    unsigned shift = 62 - (q->cluster_bits - 8);
    out->kind = QCOW2_COMPRESSED;
    out->copied = false;
    out->offset = raw & ((1ull << shift) - 1);
    out->z_bytes = (uint32_t)((((raw >> shift) & ((1ull << (q->cluster_bits - 8)) - 1)) + 1) * 512 -
                              (out->offset & 511));
    if (out->offset < q->cluster_bytes || out->offset >= q->end_bytes)
        return hvx_image_corrupt(q->img, "an L2 entry says that compressed data lie at %#llx, outside of the file",
                                 (unsigned long long)out->offset);
    return 0;
}

int qcow2_entry_decode(struct qcow2 *q, uint64_t raw, uint64_t guest_off, bool for_write, struct qcow2_entry *out)
{
    if (raw & QCOW2_L2_COMPRESSED)
        return decode_compressed(q, raw, out);
    bool zero = raw & QCOW2_L2_ZERO;
    out->offset = raw & QCOW2_OFFSET_MASK;
    out->copied = raw & QCOW2_L2_COPIED;
    out->z_bytes = 0;
    if (zero && q->version < 3)
        return hvx_image_corrupt(q->img, "the L2 entry for disk offset %#llx is a zero cluster, which version 2 lacks",
                                 (unsigned long long)guest_off);
    if (!out->offset) {
        out->kind = zero ? QCOW2_ZERO_PLAIN : QCOW2_UNALLOCATED;
        return 0;
    }
    out->kind = zero ? QCOW2_ZERO_ALLOC : QCOW2_NORMAL;
    if (qcow2_in_cluster(q, out->offset) || out->offset >= q->end_bytes)
        return hvx_image_corrupt(q->img, "the L2 entry for disk offset %#llx points to %#llx, %s",
                                 (unsigned long long)guest_off, (unsigned long long)out->offset,
                                 qcow2_in_cluster(q, out->offset) ? "not the start of a cluster"
                                                                  : "behind the end of the file");
    if (for_write && qcow2_meta_at(q, out->offset))
        return hvx_image_corrupt(q->img, "the L2 entry for disk offset %#llx points to %#llx, which holds %s",
                                 (unsigned long long)guest_off, (unsigned long long)out->offset,
                                 qcow2_meta_name(qcow2_meta_at(q, out->offset)));
    return 0;
}

void qcow2_l2_place(const struct qcow2 *q, uint64_t guest_off, uint32_t *l1_index, uint64_t *slice_off,
                    uint32_t *in_slice)
{
    uint64_t i = guest_off >> q->cluster_bits;
    uint32_t in_table = (uint32_t)(i & (q->l2_entries - 1)), per_slice = q->l2c.slice_bytes / 8;
    *l1_index = (uint32_t)(i >> q->l2_bits);
    *slice_off = (uint64_t)(in_table / per_slice) * q->l2c.slice_bytes;
    *in_slice = in_table % per_slice;
}

static int check_l2_offset(struct qcow2 *q, uint32_t l1_index, uint64_t l2)
{
    if (qcow2_in_cluster(q, l2) || l2 >= q->end_bytes)
        return hvx_image_corrupt(q->img, "L1 entry %u says that an L2 table lies at %#llx, which cannot be", l1_index,
                                 (unsigned long long)l2);
    return 0;
}

int qcow2_l2_get(struct qcow2 *q, uint64_t guest_off, struct qcow2_slice **out, uint32_t *in_slice)
{
    uint32_t l1i;
    uint64_t slice_off;
    qcow2_l2_place(q, guest_off, &l1i, &slice_off, in_slice);
    uint64_t l2 = q->l1[l1i] & QCOW2_OFFSET_MASK;
    *out = NULL;
    if (!l2)
        return 0;
    int r = check_l2_offset(q, l1i, l2);
    return r ? r : qcow2_cache_get(q, &q->l2c, l2 + slice_off, out);
}

/* A table of our own for this L1 entry: empty, or a copy of the shared one. */
static int new_l2_table(struct qcow2 *q, uint32_t l1i)
{
    uint64_t old = q->l1[l1i] & QCOW2_OFFSET_MASK, n = 1, fresh;
    int r = old ? check_l2_offset(q, l1i, old) : 0;
    if (!r)
        r = qcow2_alloc(q, &n, &fresh);
    if (r)
        return r;
    uint8_t *buf = hvx_bufpool_get(&q->bufs);
    r = buf ? 0 : -ENOMEM;
    if (!r && old)
        r = hvx_file_pread(q->file, buf, q->cluster_bytes, old);
    else if (!r)
        memset(buf, 0, q->cluster_bytes);
    qcow2_cache_drop(q, &q->l2c, fresh, q->cluster_bytes);
    if (!r)
        r = hvx_file_pwrite(q->file, buf, q->cluster_bytes, fresh);
    hvx_bufpool_put(&q->bufs, buf);
    q->written++;
    if (r) {
        qcow2_free_now(q, fresh, q->cluster_bytes);
        return r;
    }
    pthread_mutex_lock(&q->map);
    r = qcow2_meta_add(q, fresh, q->cluster_bytes, QCOW2_META_L2);
    q->l1[l1i] = fresh | QCOW2_L2_COPIED;
    pthread_mutex_unlock(&q->map);
    q->l1_dirty[l1i / 64] = 1;
    q->l1_any_dirty = true;
    if (old)
        qcow2_free_later(q, old, (uint32_t)q->cluster_bytes);
    return r;
}

int qcow2_l2_get_write(struct qcow2 *q, uint64_t guest_off, struct qcow2_slice **out, uint32_t *in_slice)
{
    uint32_t l1i;
    uint64_t slice_off;
    qcow2_l2_place(q, guest_off, &l1i, &slice_off, in_slice);
    if (!(q->l1[l1i] & QCOW2_L2_COPIED) || !(q->l1[l1i] & QCOW2_OFFSET_MASK)) {
        int r = new_l2_table(q, l1i);
        if (r)
            return r;
    }
    uint64_t l2 = q->l1[l1i] & QCOW2_OFFSET_MASK;
    int r = check_l2_offset(q, l1i, l2);
    if (!r && qcow2_meta_at(q, l2) != QCOW2_META_L2)
        r = hvx_image_corrupt(q->img, "the L2 table at %#llx overlaps with %s", (unsigned long long)l2,
                              qcow2_meta_name(qcow2_meta_at(q, l2)));
    return r ? r : qcow2_cache_get(q, &q->l2c, l2 + slice_off, out);
}

void qcow2_l2_set(struct qcow2 *q, struct qcow2_slice *s, uint32_t in_slice, uint64_t value)
{
    pthread_mutex_lock(&q->map);
    s->data[in_slice] = htobe64(value);
    pthread_mutex_unlock(&q->map);
    qcow2_cache_dirty(&q->l2c, s);
}

int qcow2_l1_load(struct qcow2 *q, struct hvx_error *err)
{
    q->l1 = calloc(q->l1_size ? q->l1_size : 1, 8);
    q->l1_dirty = calloc(q->l1_size / 64 + 1, 1);
    if (!q->l1 || !q->l1_dirty)
        return hvx_fail(err, -ENOMEM, "no memory for the L1 table of %s", q->file->name);
    int r = hvx_file_pread(q->file, q->l1, (uint64_t)q->l1_size * 8, q->l1_offset);
    if (r)
        return hvx_fail(err, r, "cannot read the L1 table of %s: %s", q->file->name, strerror(-r));
    for (uint32_t i = 0; i < q->l1_size; i++) {
        q->l1[i] = be64toh(q->l1[i]);
        uint64_t l2 = q->l1[i] & QCOW2_OFFSET_MASK;
        if (!l2 || check_l2_offset(q, i, l2))
            continue;
        r = qcow2_meta_add(q, l2, q->cluster_bytes, QCOW2_META_L2);
        if (r == -EEXIST && (qcow2_meta_at(q, l2) != QCOW2_META_L2 || q->l1[i] & QCOW2_L2_COPIED))
            hvx_image_corrupt(q->img, "L1 entry %u says that its L2 table lies at %#llx, which is also %s", i,
                              (unsigned long long)l2, qcow2_meta_name(qcow2_meta_at(q, l2)));
        else if (r && r != -EEXIST)
            return hvx_fail(err, r, "no memory for the tables of %s", q->file->name);
    }
    return 0;
}

static bool continues(const struct qcow2 *q, const struct qcow2_entry *first, const struct qcow2_entry *e, uint64_t k)
{
    if (e->kind != first->kind)
        return false;
    switch (e->kind) {
    case QCOW2_UNALLOCATED:
    case QCOW2_ZERO_PLAIN: return true;
    case QCOW2_NORMAL:
    case QCOW2_ZERO_ALLOC: return e->copied == first->copied && e->offset == first->offset + (k << q->cluster_bits);
    default: return false;
    }
}

/* The run at off in a slice that is at hand. */
static int extent_in_slice(struct qcow2 *q, const struct qcow2_slice *s, uint32_t i, uint64_t off, uint64_t bytes,
                           bool for_write, struct qcow2_entry *e, uint64_t *run)
{
    uint32_t per_slice = q->l2c.slice_bytes / 8;
    uint64_t have = q->cluster_bytes - qcow2_in_cluster(q, off);
    int r = qcow2_entry_decode(q, be64toh(s->data[i]), off, for_write, e);
    if (r)
        return r;
    for (uint32_t k = 1; have < bytes && i + k < per_slice; k++) {
        struct qcow2_entry next;
        /* An entry that lies ends the run here; its own turn reports it. */
        uint64_t raw = be64toh(s->data[i + k]);
        if (!(raw & QCOW2_L2_COMPRESSED) && (raw & QCOW2_OFFSET_MASK) >= q->end_bytes)
            break;
        if ((raw & QCOW2_L2_COMPRESSED) || qcow2_entry_decode(q, raw, off + have, for_write, &next) ||
            !continues(q, e, &next, k))
            break;
        have += q->cluster_bytes;
    }
    *run = have < bytes ? have : bytes;
    return 0;
}

/* Without a table every cluster up to the table's end is unallocated. */
static void extent_no_table(struct qcow2 *q, uint64_t off, uint64_t bytes, struct qcow2_entry *e, uint64_t *run)
{
    uint64_t span = q->cluster_bytes * q->l2_entries, left = span - (off & (span - 1));
    memset(e, 0, sizeof(*e));
    e->kind = QCOW2_UNALLOCATED;
    *run = left < bytes ? left : bytes;
}

/* map held. -EAGAIN: the slice is not in memory. */
static int extent_cached(struct qcow2 *q, bool for_write, uint64_t off, uint64_t bytes, struct qcow2_entry *e,
                         uint64_t *run)
{
    uint32_t l1i, i;
    uint64_t slice_off;
    qcow2_l2_place(q, off, &l1i, &slice_off, &i);
    uint64_t l2 = q->l1[l1i] & QCOW2_OFFSET_MASK;
    if (!l2) {
        extent_no_table(q, off, bytes, e, run);
        return 0;
    }
    if (for_write && !(q->l1[l1i] & QCOW2_L2_COPIED))
        return -EAGAIN;
    struct qcow2_slice *s = qcow2_cache_peek(&q->l2c, l2 + slice_off);
    return s ? extent_in_slice(q, s, i, off, bytes, for_write, e, run) : -EAGAIN;
}

int qcow2_extent(struct qcow2 *q, uint64_t off, uint64_t bytes, struct qcow2_entry *e, uint64_t *run)
{
    struct qcow2_slice *s;
    uint32_t i;
    pthread_mutex_lock(&q->map);
    int r = extent_cached(q, false, off, bytes, e, run);
    pthread_mutex_unlock(&q->map);
    if (r != -EAGAIN)
        return r;
    pthread_mutex_lock(&q->meta);
    r = qcow2_l2_get(q, off, &s, &i);
    if (!r && !s)
        extent_no_table(q, off, bytes, e, run);
    else if (!r)
        r = extent_in_slice(q, s, i, off, bytes, false, e, run);
    pthread_mutex_unlock(&q->meta);
    return r;
}

static int add_seg(struct hvx_seg *segs, unsigned n, unsigned max, struct hvx_seg seg)
{
    if (n && segs[n - 1].kind == seg.kind && segs[n - 1].file == seg.file &&
        (seg.kind == HVX_SEG_ZERO || segs[n - 1].host_off + segs[n - 1].bytes == seg.host_off)) {
        segs[n - 1].bytes += seg.bytes;
        return (int)n;
    }
    if (n == max)
        return -EAGAIN;
    segs[n] = seg;
    return (int)n + 1;
}

static int map_backing(struct hvx_image *below, uint64_t off, uint64_t bytes, struct hvx_seg *segs, unsigned n,
                       unsigned max)
{
    uint64_t have = below && off < below->bytes ? below->bytes - off : 0;
    if (have > bytes)
        have = bytes;
    if (have) {
        int r = below->ops->map(below, false, off, have, segs + n, max - n);
        if (r < 0)
            return r;
        n += (unsigned)r;
    }
    if (have == bytes)
        return (int)n;
    return add_seg(segs, n, max, (struct hvx_seg){.kind = HVX_SEG_ZERO, .bytes = bytes - have});
}

int qcow2_map(struct hvx_image *img, bool write, uint64_t off, uint64_t bytes, struct hvx_seg *segs, unsigned max)
{
    struct qcow2 *q = img->priv;
    int n = 0;
    while (bytes) {
        struct qcow2_entry e;
        uint64_t run;
        pthread_mutex_lock(&q->map);
        int r = extent_cached(q, write, off, bytes, &e, &run);
        pthread_mutex_unlock(&q->map);
        if (r)
            return r;
        if (e.kind == QCOW2_COMPRESSED || (write && (e.kind != QCOW2_NORMAL || !e.copied)))
            return -EAGAIN;
        if (e.kind == QCOW2_NORMAL)
            n = add_seg(segs, (unsigned)n, max,
                        (struct hvx_seg){.kind = HVX_SEG_DATA, .bytes = run, .file = q->file,
                                         .host_off = e.offset + qcow2_in_cluster(q, off)});
        else if (e.kind == QCOW2_UNALLOCATED)
            n = map_backing(img->backing, off, run, segs, (unsigned)n, max);
        else
            n = add_seg(segs, (unsigned)n, max, (struct hvx_seg){.kind = HVX_SEG_ZERO, .bytes = run});
        if (n < 0)
            return n;
        off += run;
        bytes -= run;
    }
    return n;
}
