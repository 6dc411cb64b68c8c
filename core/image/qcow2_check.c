/* SPDX-License-Identifier: Apache-2.0
 *
 * qcow2_check.c - count every reference, compare with the refcounts, and on
 * request build new refcounts. It reads the tables from the file itself, so
 * that it also serves images whose tables the driver would not touch.
 *
 * A leak is a cluster counted more often than it is used: space is lost. A
 * corruption is one counted less often, or a table that lies: data can be
 * lost. Repair writes a whole new set of refcounts at the end of the file and
 * then sets the COPIED flags by them; it invents no data.
 */
#include "core/image/qcow2.h"

#include <stdlib.h>

#define MAX_CLUSTERS (1ull << 28)
#define MAX_LINES 50u

struct check {
    struct hvx_image *img;
    struct qcow2 *q;
    struct hvx_image_check *out;
    hvx_check_fn fn;
    void *opaque;
    uint32_t *refs;
    uint64_t n_clusters, n_lines;
    uint8_t *l2_seen; /* per cluster: met in this walk */
    uint8_t *packed;  /* per cluster: holds compressed data */
    uint64_t *buf;    /* one cluster */
};

HVX_PRINTF(2, 3) static void say(struct check *c, const char *fmt, ...)
{
    char line[300];
    va_list ap;
    if (!c->fn || c->n_lines++ >= MAX_LINES) {
        if (c->fn && c->n_lines == MAX_LINES + 1)
            c->fn(c->opaque, "(more findings, not listed)");
        return;
    }
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    c->fn(c->opaque, line);
}

HVX_PRINTF(2, 3) static void corrupt(struct check *c, const char *fmt, ...)
{
    char what[240];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    c->out->corruptions++;
    say(c, "ERROR %s", what);
}

/* Count the clusters of [offset, offset+bytes) as used. */
static bool count(struct check *c, uint64_t offset, uint64_t bytes, const char *what)
{
    struct qcow2 *q = c->q;
    if (!bytes)
        return true;
    uint64_t first = offset >> q->cluster_bits;
    if (offset + bytes < offset || first >= c->n_clusters) {
        corrupt(c, "%s at %#llx lies outside of the file", what, (unsigned long long)offset);
        return false;
    }
    uint64_t last = (offset + bytes - 1) >> q->cluster_bits;
    for (uint64_t i = first; i <= last && i < c->n_clusters; i++) {
        if (c->refs[i] < UINT32_MAX)
            c->refs[i]++;
    }
    if ((last + 1) << q->cluster_bits > c->out->end_bytes)
        c->out->end_bytes = (last + 1) << q->cluster_bits;
    return true;
}

static int read_table(struct check *c, uint64_t offset, uint64_t bytes, void *buf)
{
    int r = hvx_file_pread(c->q->file, buf, bytes, offset);
    if (r) {
        c->out->check_errors++;
        say(c, "ERROR cannot read %llu bytes at %#llx: %s", (unsigned long long)bytes, (unsigned long long)offset,
            strerror(-r));
    }
    return r;
}

static void count_l2_entry(struct check *c, uint64_t raw, bool active)
{
    struct qcow2 *q = c->q;
    uint64_t offset = raw & QCOW2_OFFSET_MASK;
    if (raw & QCOW2_L2_COMPRESSED) {
        unsigned shift = 62 - (q->cluster_bits - 8);
        offset = raw & ((1ull << shift) - 1);
        uint64_t sectors = ((raw >> shift) & ((1ull << (q->cluster_bits - 8)) - 1)) + 1;
        uint64_t bytes = sectors * 512 - (offset & 511);
        if (raw & QCOW2_L2_COPIED)
            corrupt(c, "a compressed cluster at %#llx carries the COPIED flag", (unsigned long long)offset);
        if (!count(c, offset, bytes, "a compressed cluster"))
            return;
        for (uint64_t k = offset >> q->cluster_bits; k <= (offset + bytes - 1) >> q->cluster_bits && k < c->n_clusters; k++)
            c->packed[k / 8] |= (uint8_t)(1u << (k % 8));
        c->out->allocated += active;
        c->out->compressed += active;
        return;
    }
    if (raw & QCOW2_L2_RESERVED)
        corrupt(c, "an L2 entry with reserved bits set (%#llx)", (unsigned long long)raw);
    if ((raw & QCOW2_L2_ZERO) && q->version < 3)
        corrupt(c, "a zero cluster in a version 2 image (entry %#llx)", (unsigned long long)raw);
    if (!offset)
        return;
    if (qcow2_in_cluster(q, offset))
        corrupt(c, "a data cluster at %#llx is not aligned", (unsigned long long)offset);
    else if (count(c, offset, q->cluster_bytes, "a data cluster") && active)
        c->out->allocated++;
}

static int walk_l2(struct check *c, uint64_t l2, bool active)
{
    struct qcow2 *q = c->q;
    int r = read_table(c, l2, q->cluster_bytes, c->buf);
    for (uint32_t i = 0; i < q->l2_entries && !r; i++) {
        if (c->buf[i])
            count_l2_entry(c, be64toh(c->buf[i]), active);
    }
    return r;
}

static int walk_l1(struct check *c, uint64_t offset, uint32_t n, bool active)
{
    struct qcow2 *q = c->q;
    uint64_t *l1 = calloc(n ? n : 1, 8);
    if (!l1)
        return -ENOMEM;
    memset(c->l2_seen, 0, c->n_clusters / 8 + 1);
    int r = 0;
    if (count(c, offset, (uint64_t)n * 8, "an L1 table"))
        r = read_table(c, offset, (uint64_t)n * 8, l1);
    for (uint32_t i = 0; i < n && !r; i++) {
        uint64_t l2 = be64toh(l1[i]) & QCOW2_OFFSET_MASK, k = l2 >> q->cluster_bits;
        if (!l2)
            continue;
        if (qcow2_in_cluster(q, l2)) {
            corrupt(c, "an L2 table at %#llx is not aligned", (unsigned long long)l2);
            continue;
        }
        if (!count(c, l2, q->cluster_bytes, "an L2 table"))
            continue;
        if (c->l2_seen[k / 8] >> (k % 8) & 1) {
            corrupt(c, "two entries of one L1 table point to the L2 table at %#llx", (unsigned long long)l2);
            continue;
        }
        c->l2_seen[k / 8] |= (uint8_t)(1u << (k % 8));
        walk_l2(c, l2, active);
    }
    free(l1);
    return r == -ENOMEM ? r : 0;
}

/* Persistent dirty bitmaps of QEMU: kept as they are as long as nobody writes,
 * so their clusters count. */
static void walk_bitmaps(struct check *c)
{
    struct qcow2 *q = c->q;
    uint64_t at = 0;
    if (!q->n_bitmaps || !(q->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return;
    if (q->bitmaps_bytes > QCOW2_MAX_BITMAP_DIRECTORY_BYTES || q->n_bitmaps > QCOW2_MAX_BITMAPS) {
        corrupt(c, "a bitmap directory of %llu bytes", (unsigned long long)q->bitmaps_bytes);
        return;
    }
    if (!count(c, q->bitmaps_offset, q->bitmaps_bytes, "the bitmap directory"))
        return;
    for (uint32_t i = 0; i < q->n_bitmaps && at + 24 <= q->bitmaps_bytes; i++) {
        struct {
            uint64_t table;
            uint32_t size, flags;
            uint8_t type, granularity;
            uint16_t name;
            uint32_t extra;
        } __attribute__((packed)) b;
        if (read_table(c, q->bitmaps_offset + at, sizeof(b), &b))
            return;
        uint64_t table = be64toh(b.table), n = be32toh(b.size);
        if (n * 8 > QCOW2_MAX_L1_BYTES || !count(c, table, n * 8, "a bitmap table"))
            return;
        for (uint64_t k = 0; k < n; k++) {
            uint64_t e;
            if (read_table(c, table + k * 8, 8, &e))
                return;
            e = be64toh(e) & QCOW2_OFFSET_MASK;
            if (e)
                count(c, e, q->cluster_bytes, "a bitmap cluster");
        }
        at += (sizeof(b) + be32toh(b.extra) + be16toh(b.name) + 7) & ~7ull;
    }
}

static int count_all(struct check *c)
{
    struct qcow2 *q = c->q;
    count(c, 0, q->cluster_bytes, "the header");
    int r = walk_l1(c, q->l1_offset, q->l1_size, true);
    if (q->snapshots_bytes)
        count(c, q->snapshots_offset, q->snapshots_bytes, "the snapshot table");
    for (uint32_t i = 0; i < q->n_snapshots && !r; i++)
        r = walk_l1(c, q->snapshots[i].l1_offset, q->snapshots[i].l1_size, false);
    walk_bitmaps(c);
    return r;
}

static void count_refcount_structures(struct check *c)
{
    struct qcow2 *q = c->q;
    count(c, q->rt_offset, q->rt_clusters << q->cluster_bits, "the refcount table");
    for (uint64_t i = 0; i < q->rt_size; i++) {
        if (!q->rt[i])
            continue;
        if (qcow2_in_cluster(q, q->rt[i]))
            corrupt(c, "refcount block %llu at %#llx is not aligned", (unsigned long long)i,
                    (unsigned long long)q->rt[i]);
        else if (count(c, q->rt[i], q->cluster_bytes, "a refcount block") && c->refs[q->rt[i] >> q->cluster_bits] > 1)
            corrupt(c, "refcount block %llu at %#llx is used for something else, too", (unsigned long long)i,
                    (unsigned long long)q->rt[i]);
    }
}

/* Stored refcounts against counted references. */
static void compare(struct check *c)
{
    struct qcow2 *q = c->q;
    for (uint64_t rbi = 0; rbi < q->rt_size || rbi * q->rb_entries < c->n_clusters; rbi++) {
        uint64_t block = rbi < q->rt_size ? q->rt[rbi] : 0, base = rbi * q->rb_entries;
        bool usable = block && !qcow2_in_cluster(q, block) && block >> q->cluster_bits < c->n_clusters;
        if (!usable && base >= c->n_clusters)
            continue;
        if (usable && read_table(c, block, q->cluster_bytes, c->buf))
            continue;
        for (uint64_t i = 0; i < q->rb_entries; i++) {
            uint64_t stored = usable ? qcow2_refcount_read(q, c->buf, i) : 0;
            uint64_t refs = base + i < c->n_clusters ? c->refs[base + i] : 0;
            if (stored == refs)
                continue;
            if (stored < refs) {
                corrupt(c, "cluster %llu: refcount %llu, but %llu references", (unsigned long long)(base + i),
                        (unsigned long long)stored, (unsigned long long)refs);
            } else {
                c->out->leaks++;
                say(c, "leaked cluster %llu: refcount %llu, but %llu references", (unsigned long long)(base + i),
                    (unsigned long long)stored, (unsigned long long)refs);
            }
        }
    }
}

static uint64_t copied_fixed(const struct check *c, uint64_t raw)
{
    uint64_t k = (raw & QCOW2_OFFSET_MASK) >> c->q->cluster_bits;
    if ((raw & QCOW2_L2_COMPRESSED) || !(raw & QCOW2_OFFSET_MASK) || k >= c->n_clusters ||
        qcow2_in_cluster(c->q, raw & QCOW2_OFFSET_MASK))
        return raw;
    return c->refs[k] == 1 ? raw | QCOW2_L2_COPIED : raw & ~QCOW2_L2_COPIED;
}

/* The COPIED flag of the active tables says "refcount is exactly 1". A flag
 * too many loses data of a snapshot; one too few is only slow, but other
 * programs report it. */
static int check_copied(struct check *c, bool repair)
{
    struct qcow2 *q = c->q;
    for (uint32_t i = 0; i < q->l1_size; i++) {
        uint64_t l2 = q->l1[i] & QCOW2_OFFSET_MASK, fixed = copied_fixed(c, q->l1[i]);
        bool changed = false;
        if (!l2 || qcow2_in_cluster(q, l2) || l2 >> q->cluster_bits >= c->n_clusters)
            continue;
        if (fixed != q->l1[i]) {
            corrupt(c, "L1 entry %u: wrong COPIED flag", i);
            if (repair) {
                q->l1[i] = fixed;
                fixed = htobe64(fixed);
                int r = hvx_file_pwrite(q->file, &fixed, 8, q->l1_offset + i * 8ull);
                if (r)
                    return r;
                c->out->corruptions_fixed++;
            }
        }
        if (read_table(c, l2, q->cluster_bytes, c->buf))
            continue;
        for (uint32_t k = 0; k < q->l2_entries; k++) {
            uint64_t raw = be64toh(c->buf[k]), place = (raw & QCOW2_OFFSET_MASK) >> q->cluster_bits;
            if (!(raw & QCOW2_L2_COMPRESSED) && place && place < c->n_clusters && c->packed[place / 8] >> (place % 8) & 1) {
                corrupt(c, "L2 table at %#llx, entry %u: its cluster holds compressed data, too", (unsigned long long)l2, k);
                continue;
            }
            fixed = copied_fixed(c, raw);
            if (fixed == raw)
                continue;
            corrupt(c, "L2 table at %#llx, entry %u: wrong COPIED flag", (unsigned long long)l2, k);
            c->buf[k] = htobe64(fixed);
            changed = true;
            c->out->corruptions_fixed += repair;
        }
        if (changed && repair) {
            int r = hvx_file_pwrite(q->file, c->buf, q->cluster_bytes, l2);
            if (r)
                return r;
            qcow2_cache_drop(q, &q->l2c, l2, q->cluster_bytes);
        }
    }
    return 0;
}

struct rebuild {
    uint64_t first, blocks, clusters; /* new area: blocks, then the table */
    uint64_t *rt;
};

static int write_rebuilt(struct check *c, const struct rebuild *b)
{
    struct qcow2 *q = c->q;
    uint64_t end = b->first + b->blocks + b->clusters, per = q->cluster_bytes / 8;
    for (uint64_t i = 0; i < b->blocks; i++) {
        memset(c->buf, 0, q->cluster_bytes);
        for (uint64_t k = 0; k < q->rb_entries; k++) {
            uint64_t at = i * q->rb_entries + k, refs = at < b->first ? c->refs[at] : at < end;
            if (refs > qcow2_refcount_max(q))
                return -ERANGE;
            if (refs)
                qcow2_refcount_write(q, c->buf, k, refs);
        }
        int r = hvx_file_pwrite(q->file, c->buf, q->cluster_bytes, (b->first + i) << q->cluster_bits);
        if (r)
            return r;
        b->rt[i] = (b->first + i) << q->cluster_bits;
    }
    for (uint64_t t = 0; t < b->clusters; t++) {
        for (uint64_t k = 0; k < per; k++)
            c->buf[k] = htobe64(b->rt[t * per + k]);
        int r = hvx_file_pwrite(q->file, c->buf, q->cluster_bytes, (b->first + b->blocks + t) << q->cluster_bits);
        if (r)
            return r;
    }
    return hvx_file_flush(q->file);
}

static int use_rebuilt(struct check *c, struct rebuild *b)
{
    struct qcow2 *q = c->q;
    struct {
        uint64_t offset;
        uint32_t clusters;
    } __attribute__((packed))
    field = {htobe64((b->first + b->blocks) << q->cluster_bits), htobe32((uint32_t)b->clusters)};
    int r = hvx_file_pwrite(q->file, &field, sizeof(field), offsetof(struct qcow2_header, refcount_table_offset));
    if (!r)
        r = hvx_file_flush(q->file);
    if (r)
        return r;
    uint8_t *dirty = calloc(b->clusters * (q->cluster_bytes / 8) / 64 + 1, 1);
    if (!dirty)
        return -ENOMEM;
    qcow2_meta_del(q, q->rt_offset, q->rt_clusters << q->cluster_bits);
    for (uint64_t i = 0; i < q->rt_size; i++) {
        if (q->rt[i] && qcow2_meta_at(q, q->rt[i]) == QCOW2_META_REFBLOCK) {
            qcow2_meta_del(q, q->rt[i], q->cluster_bytes);
            qcow2_cache_drop(q, &q->rbc, q->rt[i] & ~(q->cluster_bytes - 1), q->cluster_bytes);
        }
    }
    free(q->rt);
    free(q->rt_dirty);
    q->rt = b->rt;
    b->rt = NULL;
    q->rt_dirty = dirty;
    q->rt_offset = (b->first + b->blocks) << q->cluster_bits;
    q->rt_clusters = b->clusters;
    q->rt_size = b->clusters * (q->cluster_bytes / 8);
    uint64_t end = (b->first + b->blocks + b->clusters) << q->cluster_bits;
    if (end > q->end_bytes)
        q->end_bytes = end;
    if (!q->file->is_device && end > q->virgin)
        q->virgin = end;
    q->free_hint = 0;
    r = qcow2_meta_add(q, b->first << q->cluster_bits, b->blocks << q->cluster_bits, QCOW2_META_REFBLOCK);
    if (!r)
        r = qcow2_meta_add(q, q->rt_offset, b->clusters << q->cluster_bits, QCOW2_META_REFTABLE);
    return r;
}

/* New refcounts behind the end of the file; refs[] holds what is in use
 * without the old refcount structures, which are simply left behind. */
static int rebuild(struct check *c)
{
    struct qcow2 *q = c->q;
    struct rebuild b = {.first = c->n_clusters, .blocks = 1, .clusters = 1};
    uint64_t per = q->cluster_bytes / 8;
    for (;;) {
        uint64_t blocks = (b.first + b.blocks + b.clusters + q->rb_entries - 1) / q->rb_entries;
        uint64_t clusters = (blocks + per - 1) / per;
        if (blocks <= b.blocks && clusters <= b.clusters)
            break;
        b.blocks = blocks > b.blocks ? blocks : b.blocks;
        b.clusters = clusters > b.clusters ? clusters : b.clusters;
    }
    if (b.clusters << q->cluster_bits > QCOW2_MAX_REFTABLE_BYTES)
        return -EFBIG;
    b.rt = calloc(b.clusters * per, 8);
    if (!b.rt)
        return -ENOMEM;
    int r = write_rebuilt(c, &b);
    if (!r)
        r = use_rebuilt(c, &b);
    free(b.rt);
    return r;
}

static int repair_image(struct check *c)
{
    struct qcow2 *q = c->q;
    struct hvx_image_check *out = c->out;
    uint64_t bad_tables = 0;
    int r;
    if (out->leaks || out->corruptions) {
        /* Again, without the refcount structures: those are replaced. What
         * this pass finds are lies in the tables, which nobody can repair. */
        struct hvx_image_check second = {0}, *first = out;
        hvx_check_fn fn = c->fn;
        memset(c->refs, 0, c->n_clusters * sizeof(c->refs[0]));
        c->out = &second;
        c->fn = NULL;
        r = count_all(c);
        bad_tables = second.corruptions + second.check_errors;
        c->out = first;
        c->fn = fn;
        if (!r)
            r = rebuild(c);
        if (r)
            return r;
        out->leaks_fixed = out->leaks;
    }
    r = check_copied(c, true);
    if (r)
        return r;
    out->leaks = 0;
    out->corruptions_fixed = out->corruptions - bad_tables;
    out->corruptions = bad_tables;
    if (bad_tables)
        return 0;
    atomic_store(&c->img->corrupt, false);
    r = hvx_file_flush(q->file);
    uint64_t keep = q->incompatible & ~(uint64_t)(QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    if (!r && keep != q->incompatible)
        r = qcow2_header_set_incompatible(q, keep);
    return r;
}

int qcow2_check(struct hvx_image *img, bool repair, struct hvx_image_check *out, hvx_check_fn fn, void *opaque)
{
    struct qcow2 *q = img->priv;
    struct check c = {.img = img, .q = q, .out = out, .fn = fn, .opaque = opaque};
    uint64_t n_file;
    memset(out, 0, sizeof(*out));
    if (repair && img->read_only)
        return -EROFS;
    int r = hvx_file_size(q->file, &n_file);
    if (r)
        return r;
    out->clusters = (img->bytes + q->cluster_bytes - 1) >> q->cluster_bits;
    c.n_clusters = qcow2_round_up(q, n_file) >> q->cluster_bits;
    if (c.n_clusters > MAX_CLUSTERS)
        return -EFBIG;
    c.refs = calloc(c.n_clusters, sizeof(c.refs[0]));
    c.l2_seen = calloc(c.n_clusters / 8 + 1, 1);
    c.packed = calloc(c.n_clusters / 8 + 1, 1);
    c.buf = aligned_alloc(4096, q->cluster_bytes < 4096 ? 4096 : q->cluster_bytes);
    pthread_mutex_lock(&q->meta);
    r = c.refs && c.l2_seen && c.packed && c.buf ? 0 : -ENOMEM;
    if (!r && !img->read_only && !img->for_check)
        r = qcow2_writeback(q);
    if (!r)
        r = count_all(&c);
    if (!r) {
        count_refcount_structures(&c);
        compare(&c);
        r = repair ? repair_image(&c) : check_copied(&c, false);
    }
    pthread_mutex_unlock(&q->meta);
    free(c.refs);
    free(c.l2_seen);
    free(c.packed);
    free(c.buf);
    return r;
}
