/* SPDX-License-Identifier: Apache-2.0
 *
 * qcow2_open.c - reading the header. Everything in it is taken for a lie
 * until it has been checked.
 */
#include "core/image/qcow2.h"

#include <stdlib.h>

#define NAME q->file->name

static void header_swap(struct qcow2_header *h)
{
    h->magic = be32toh(h->magic);
    h->version = be32toh(h->version);
    h->backing_file_offset = be64toh(h->backing_file_offset);
    h->backing_file_size = be32toh(h->backing_file_size);
    h->cluster_bits = be32toh(h->cluster_bits);
    h->size = be64toh(h->size);
    h->crypt_method = be32toh(h->crypt_method);
    h->l1_size = be32toh(h->l1_size);
    h->l1_table_offset = be64toh(h->l1_table_offset);
    h->refcount_table_offset = be64toh(h->refcount_table_offset);
    h->refcount_table_clusters = be32toh(h->refcount_table_clusters);
    h->nb_snapshots = be32toh(h->nb_snapshots);
    h->snapshots_offset = be64toh(h->snapshots_offset);
    if (h->version < 3) { /* these fields do not exist */
        memset(&h->incompatible, 0, sizeof(*h) - offsetof(struct qcow2_header, incompatible));
        h->refcount_order = 4;
        h->header_length = 72;
        return;
    }
    h->incompatible = be64toh(h->incompatible);
    h->compatible = be64toh(h->compatible);
    h->autoclear = be64toh(h->autoclear);
    h->refcount_order = be32toh(h->refcount_order);
    h->header_length = be32toh(h->header_length);
    if (h->header_length <= offsetof(struct qcow2_header, compression_type))
        h->compression_type = 0;
}

/* Names of features from the image's own table, as far as it has one. */
static void feature_names(const uint8_t *table, uint32_t n, uint64_t bits, char *out, size_t n_out)
{
    size_t used = 0;
    out[0] = 0;
    for (unsigned bit = 0; bit < 64; bit++) {
        if (!(bits >> bit & 1))
            continue;
        char name[48];
        snprintf(name, sizeof(name), "bit %u", bit);
        for (uint32_t i = 0; i + 48 <= n; i += 48) {
            if (table[i] == 0 && table[i + 1] == bit) {
                size_t k = 0;
                for (; k < 46 && table[i + 2 + k]; k++)
                    name[k] = table[i + 2 + k] >= 32 && table[i + 2 + k] < 127 ? (char)table[i + 2 + k] : '?';
                name[k] = 0;
            }
        }
        int w = snprintf(out + used, n_out - used, "%s%s", used ? ", " : "", name);
        if (w < 0 || (size_t)w >= n_out - used)
            return;
        used += (size_t)w;
    }
}

static int check_features(struct qcow2 *q, const uint8_t *table, uint32_t n_table, struct hvx_error *err)
{
    uint64_t known = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_COMPRESSION;
    char names[200];
    if (q->incompatible & QCOW2_INCOMPAT_DATA_FILE)
        return hvx_fail(err, -ENOTSUP,
                        "disk image %s keeps its data in an external data file, which HVX does not read. "
                        "Convert it: qemu-img convert -O qcow2 OLD NEW",
                        NAME);
    if (q->incompatible & QCOW2_INCOMPAT_EXT_L2)
        return hvx_fail(err, -ENOTSUP, "disk image %s uses extended L2 entries (subclusters), which HVX does not read. "
                        "Convert it: qemu-img convert -O qcow2 OLD NEW", NAME);
    if (q->incompatible & ~known) {
        feature_names(table, n_table, q->incompatible & ~known, names, sizeof(names));
        return hvx_fail(err, -ENOTSUP, "disk image %s needs features that HVX does not know: %s. Convert it with the "
                        "program that made it", NAME, names);
    }
    return 0;
}

static int in_file(struct qcow2 *q, uint64_t offset, uint64_t bytes, const char *what, struct hvx_error *err)
{
    if (qcow2_in_cluster(q, offset) || !offset)
        return hvx_fail(err, -EINVAL, "disk image %s is damaged: %s lies at %#llx, which is not the start of a cluster",
                        NAME, what, (unsigned long long)offset);
    if (offset > q->end_bytes || bytes > q->end_bytes - offset)
        return hvx_fail(err, -EINVAL,
                        "disk image %s is damaged or was cut off: %s should lie at %#llx (%llu bytes), but the "
                        "file ends before that. Fetch the image again",
                        NAME, what, (unsigned long long)offset, (unsigned long long)bytes);
    return 0;
}

static int check_header(struct qcow2 *q, const struct qcow2_header *h, struct hvx_error *err)
{
    if (h->cluster_bits < 9 || h->cluster_bits > 21)
        return hvx_fail(err, -EINVAL, "disk image %s is damaged: cluster size 2^%u is not between 512 and 2 MiB", NAME,
                        h->cluster_bits);
    if (h->version == 3 && (h->header_length < 104 || h->header_length > 1u << h->cluster_bits ||
                            h->header_length % 8))
        return hvx_fail(err, -EINVAL, "disk image %s is damaged: header length %u", NAME, h->header_length);
    if (h->refcount_order > 6)
        return hvx_fail(err, -EINVAL, "disk image %s is damaged: refcounts of 2^%u bits", NAME, h->refcount_order);
    if (h->crypt_method)
        return hvx_fail(err, -ENOTSUP,
                        "disk image %s is encrypted (method %u), which HVX does not read. Decrypt it first: "
                        "qemu-img convert with --image-opts and the secret",
                        NAME, h->crypt_method);
    if (h->compression_type > 1 || (h->compression_type && !(h->incompatible & QCOW2_INCOMPAT_COMPRESSION)))
        return hvx_fail(err, -ENOTSUP, "disk image %s uses compression type %u; known are 0 (zlib) and 1 (zstd)", NAME,
                        h->compression_type);
    if (!h->size || h->size > (uint64_t)INT64_MAX - (2u << 20))
        return hvx_fail(err, -EINVAL, "disk image %s is damaged: its disk would have %llu bytes", NAME,
                        (unsigned long long)h->size);
    return 0;
}

static int check_tables(struct qcow2 *q, const struct qcow2_header *h, struct hvx_error *err)
{
    uint64_t span = q->cluster_bytes * q->l2_entries, need = (h->size - 1) / span + 1;
    if (h->l1_size < need || (uint64_t)h->l1_size * 8 > QCOW2_MAX_L1_BYTES)
        return hvx_fail(err, -EINVAL,
                        "disk image %s is damaged: an L1 table of %u entries for a disk that needs %llu (limit "
                        "%u)",
                        NAME, h->l1_size, (unsigned long long)need, QCOW2_MAX_L1_BYTES / 8);
    if (!h->refcount_table_clusters ||
        (uint64_t)h->refcount_table_clusters << h->cluster_bits > QCOW2_MAX_REFTABLE_BYTES)
        return hvx_fail(err, -EINVAL, "disk image %s is damaged: a refcount table of %u clusters", NAME,
                        h->refcount_table_clusters);
    if (h->nb_snapshots > QCOW2_MAX_SNAPSHOTS)
        return hvx_fail(err, -EINVAL, "disk image %s is damaged: %u snapshots", NAME, h->nb_snapshots);
    int r = in_file(q, h->l1_table_offset, (uint64_t)h->l1_size * 8, "the L1 table", err);
    if (!r)
        r = in_file(q, h->refcount_table_offset, (uint64_t)h->refcount_table_clusters << h->cluster_bits,
                    "the refcount table", err);
    if (!r && h->nb_snapshots)
        r = in_file(q, h->snapshots_offset, 40, "the snapshot table", err);
    return r;
}

static void read_bitmaps_extension(struct qcow2 *q, const uint8_t *p, uint32_t n)
{
    uint32_t count;
    uint64_t size, offset;
    if (n < 24)
        return;
    memcpy(&count, p, 4);
    memcpy(&size, p + 8, 8);
    memcpy(&offset, p + 16, 8);
    q->n_bitmaps = be32toh(count);
    q->bitmaps_bytes = be64toh(size);
    q->bitmaps_offset = be64toh(offset);
}

/* Header extensions: backing format and feature names. `area` is the first
 * cluster (or what there is of it). */
static int read_extensions(struct qcow2 *q, const struct qcow2_header *h, const uint8_t *area, uint64_t n_area,
                           struct hvx_error *err)
{
    const uint8_t *features = NULL;
    uint32_t n_features = 0;
    uint64_t at = h->header_length, end = n_area;
    if (h->backing_file_offset && h->backing_file_offset < end)
        end = h->backing_file_offset;
    while (at + 8 <= end) {
        uint32_t type, n;
        memcpy(&type, area + at, 4);
        memcpy(&n, area + at + 4, 4);
        type = be32toh(type);
        n = be32toh(n);
        at += 8;
        if (!type)
            break;
        if (n > end - at)
            return hvx_fail(err, -EINVAL, "disk image %s is damaged: header extension %#x has %u bytes, more than fit",
                            NAME, type, n);
        if (type == QCOW2_EXT_BACKING_FORMAT && n < sizeof(q->img->backing_format)) {
            memcpy(q->img->backing_format, area + at, n);
            q->img->backing_format[n] = 0;
        } else if (type == QCOW2_EXT_FEATURES) {
            features = area + at;
            n_features = n;
        } else if (type == QCOW2_EXT_BITMAPS && (h->autoclear & QCOW2_AUTOCLEAR_BITMAPS)) {
            read_bitmaps_extension(q, area + at, n);
        }
        at += ((uint64_t)n + 7) & ~7ull;
    }
    return check_features(q, features, n_features, err);
}

static int read_backing_name(struct qcow2 *q, const struct qcow2_header *h, struct hvx_error *err)
{
    if (!h->backing_file_offset || q->img->no_backing)
        return 0;
    if (!h->backing_file_size || h->backing_file_size >= HVX_IMAGE_NAME_MAX ||
        h->backing_file_offset > q->cluster_bytes || h->backing_file_size > q->cluster_bytes - h->backing_file_offset)
        return hvx_fail(err, -EINVAL, "disk image %s is damaged: the name of its backing file has %u bytes at %#llx",
                        NAME, h->backing_file_size, (unsigned long long)h->backing_file_offset);
    int r = hvx_file_pread(q->file, q->img->backing_name, h->backing_file_size, h->backing_file_offset);
    if (r)
        return hvx_fail(err, r, "cannot read the backing file's name in %s: %s", NAME, strerror(-r));
    q->img->backing_name[h->backing_file_size] = 0;
    if (strlen(q->img->backing_name) != h->backing_file_size)
        return hvx_fail(err, -EINVAL, "disk image %s is damaged: the name of its backing file holds a zero byte", NAME);
    return 0;
}

/* Where snapshots keep their L1 tables: we never change them, but must not
 * write over them. */
static int read_snapshots(struct qcow2 *q, const struct qcow2_header *h, struct hvx_error *err)
{
    uint64_t at = h->snapshots_offset;
    if (!h->nb_snapshots)
        return 0;
    q->snapshots = calloc(h->nb_snapshots, sizeof(q->snapshots[0]));
    if (!q->snapshots)
        return hvx_fail(err, -ENOMEM, "no memory for the snapshot table of %s", NAME);
    for (uint32_t i = 0; i < h->nb_snapshots; i++) {
        struct {
            uint64_t l1_offset;
            uint32_t l1_size;
            uint16_t id_size, name_size;
            uint32_t date_s, date_ns;
            uint64_t clock_ns;
            uint32_t vm_state, extra;
        } __attribute__((packed)) s;
        int r = hvx_file_pread(q->file, &s, sizeof(s), at);
        if (r)
            return hvx_fail(err, r, "cannot read the snapshot table of %s: %s", NAME, strerror(-r));
        q->snapshots[i].l1_offset = be64toh(s.l1_offset);
        q->snapshots[i].l1_size = be32toh(s.l1_size);
        at += sizeof(s) + be32toh(s.extra) + be16toh(s.id_size) + be16toh(s.name_size);
        at = (at + 7) & ~7ull;
        if (at - h->snapshots_offset > QCOW2_MAX_SNAPSHOT_TABLE_BYTES || at > q->end_bytes)
            return hvx_fail(err, -EINVAL, "disk image %s is damaged: its snapshot table has no end", NAME);
        if (in_file(q, q->snapshots[i].l1_offset, (uint64_t)q->snapshots[i].l1_size * 8, "the L1 table of a snapshot",
                    err))
            return -EINVAL;
        if ((uint64_t)q->snapshots[i].l1_size * 8 > QCOW2_MAX_L1_BYTES)
            return hvx_fail(err, -EINVAL, "disk image %s is damaged: a snapshot's L1 table has %u entries", NAME,
                            q->snapshots[i].l1_size);
    }
    q->n_snapshots = h->nb_snapshots;
    q->snapshots_offset = h->snapshots_offset;
    q->snapshots_bytes = at - h->snapshots_offset;
    return 0;
}

static int claim(struct qcow2 *q, uint64_t offset, uint64_t bytes, enum qcow2_meta_kind kind, struct hvx_error *err)
{
    int r = bytes ? qcow2_meta_add(q, offset, bytes, kind) : 0;
    if (r == -EEXIST)
        return hvx_fail(err, -EINVAL, "disk image %s is damaged: %s at %#llx overlaps with %s", NAME,
                        qcow2_meta_name(kind), (unsigned long long)offset, qcow2_meta_name(qcow2_meta_at(q, offset)));
    return r ? hvx_fail(err, r, "no memory for the tables of %s", NAME) : 0;
}

static int claim_tables(struct qcow2 *q, struct hvx_error *err)
{
    int r = claim(q, 0, q->cluster_bytes, QCOW2_META_HEADER, err);
    if (!r)
        r = claim(q, q->l1_offset, (uint64_t)q->l1_size * 8, QCOW2_META_L1, err);
    if (!r)
        r = claim(q, q->rt_offset, q->rt_clusters << q->cluster_bits, QCOW2_META_REFTABLE, err);
    if (!r)
        r = claim(q, q->snapshots_offset, q->snapshots_bytes, QCOW2_META_SNAPSHOT, err);
    for (uint32_t i = 0; i < q->n_snapshots && !r; i++)
        r = claim(q, q->snapshots[i].l1_offset, (uint64_t)q->snapshots[i].l1_size * 8, QCOW2_META_SNAPSHOT, err);
    return r;
}

static void qcow2_free(struct qcow2 *q)
{
    qcow2_cache_fini(&q->l2c);
    qcow2_cache_fini(&q->rbc);
    qcow2_meta_fini(q);
    hvx_bufpool_fini(&q->bufs);
    pthread_mutex_destroy(&q->meta);
    pthread_mutex_destroy(&q->map);
    pthread_mutex_destroy(&q->zlock);
    free(q->l1);
    free(q->l1_dirty);
    free(q->rt);
    free(q->rt_dirty);
    free(q->snapshots);
    free(q->frees);
    free(q->z_data);
    free(q->z_in);
    free(q);
}

int qcow2_header_set_incompatible(struct qcow2 *q, uint64_t value)
{
    uint64_t field = htobe64(value);
    if (q->version < 3)
        return 0;
    int r = hvx_file_pwrite(q->file, &field, 8, offsetof(struct qcow2_header, incompatible));
    q->written++;
    if (!r)
        r = qcow2_barrier(q);
    if (!r)
        q->incompatible = value;
    return r;
}

static int load_tables(struct qcow2 *q, const struct qcow2_header *h, uint64_t n_file, struct hvx_error *err)
{
    uint64_t l2_bytes = (h->size / q->cluster_bytes + 1) * 8, rb_bytes;
    int r = check_tables(q, h, err);
    if (r)
        return r;
    q->l1_offset = h->l1_table_offset;
    q->l1_size = h->l1_size;
    q->rt_offset = h->refcount_table_offset;
    q->rt_clusters = h->refcount_table_clusters;
    q->virgin = q->file->is_device ? UINT64_MAX : qcow2_round_up(q, n_file);
    q->free_hint = 0;
    rb_bytes = ((l2_bytes / 8) << q->refcount_order) / 8 * 2;
    if (qcow2_cache_init(&q->l2c, q, QCOW2_L2_CACHE_BYTES, l2_bytes) ||
        qcow2_cache_init(&q->rbc, q, QCOW2_RB_CACHE_BYTES, rb_bytes))
        return hvx_fail(err, -ENOMEM, "no memory for the caches of %s", NAME);
    q->frees = calloc(QCOW2_MAX_FREES, sizeof(q->frees[0]));
    if (!q->frees)
        return hvx_fail(err, -ENOMEM, "no memory to open %s", NAME);
    r = read_snapshots(q, h, err);
    if (!r)
        r = claim_tables(q, err);
    if (!r)
        r = qcow2_reftable_load(q, err);
    if (!r)
        r = qcow2_l1_load(q, err);
    return r;
}

/* Opened for writing: settle what the last writer left behind. */
static int prepare_write(struct qcow2 *q, struct hvx_error *err)
{
    if ((q->incompatible & QCOW2_INCOMPAT_CORRUPT) || atomic_load(&q->img->corrupt))
        return hvx_fail(err, -EROFS,
                        "disk image %s is %s, so it is not opened for writing. Copy it, then repair the copy "
                        "with `hvx image check --repair` or qemu-img check -r all, or open it read-only",
                        NAME, q->incompatible & QCOW2_INCOMPAT_CORRUPT ? "marked as damaged" : "damaged");
    if (q->incompatible & QCOW2_INCOMPAT_DIRTY) {
        struct hvx_image_check c;
        int r = qcow2_check(q->img, true, &c, NULL, NULL);
        if (r || c.corruptions || c.check_errors)
            return hvx_fail(err, r ? r : -EIO,
                            "disk image %s was not closed properly and its refcounts cannot be rebuilt "
                            "(%llu errors). Copy it and run `hvx image check --repair` on the copy",
                            NAME, (unsigned long long)(c.corruptions + c.check_errors));
    }
    if (q->autoclear) { /* bits that only those may keep who maintain what they stand for */
        uint64_t none = 0;
        int r = hvx_file_pwrite(q->file, &none, 8, offsetof(struct qcow2_header, autoclear));
        if (r)
            return hvx_fail(err, r, "cannot write to %s: %s", NAME, strerror(-r));
        q->written++;
        q->autoclear = 0;
    }
    return 0;
}

static int open_header(struct qcow2 *q, struct hvx_error *err)
{
    struct qcow2_header h;
    uint64_t n_file;
    int r = hvx_file_size(q->file, &n_file);
    if (!r)
        r = hvx_file_pread(q->file, &h, sizeof(h), 0);
    if (r)
        return hvx_fail(err, r, "cannot read %s: %s", NAME, strerror(-r));
    if (n_file < 72)
        return hvx_fail(err, -EINVAL, "disk image %s is cut off: it has %llu bytes, a qcow2 header alone has 72", NAME,
                        (unsigned long long)n_file);
    header_swap(&h);
    if (h.magic != QCOW2_MAGIC)
        return hvx_fail(err, -EINVAL,
                        "disk image %s is not a qcow2 image (its first bytes are %08x, not \"QFI\\xfb\"). If it "
                        "is a raw disk, say format=raw",
                        NAME, h.magic);
    if (h.version != 2 && h.version != 3)
        return hvx_fail(err, -ENOTSUP, "disk image %s is qcow version %u; known are 2 and 3", NAME, h.version);
    if (h.version == 3 && n_file < offsetof(struct qcow2_header, compression_type))
        return hvx_fail(err, -EINVAL, "disk image %s is cut off: it has %llu bytes, less than its header", NAME,
                        (unsigned long long)n_file);
    r = check_header(q, &h, err);
    if (r)
        return r;
    q->version = h.version;
    q->cluster_bits = h.cluster_bits;
    q->cluster_bytes = 1ull << h.cluster_bits;
    q->l2_bits = h.cluster_bits - 3;
    q->l2_entries = 1u << q->l2_bits;
    q->refcount_order = h.refcount_order;
    q->rb_entries = (q->cluster_bytes * 8) >> h.refcount_order;
    q->header_length = h.header_length;
    q->incompatible = h.incompatible;
    q->compatible = h.compatible;
    q->autoclear = h.autoclear;
    q->zstd = h.compression_type == 1;
    q->end_bytes = qcow2_round_up(q, n_file);
    q->img->bytes = h.size & ~511ull;
    q->img->granularity = (uint32_t)q->cluster_bytes;
    q->img->can_discard = q->img->can_write_zeroes = true;
    if (!q->img->bytes)
        return hvx_fail(err, -EINVAL, "disk image %s holds a disk of %llu bytes, less than a sector", NAME,
                        (unsigned long long)h.size);
    /* One buffer for a whole cluster serves the header, too. */
    hvx_bufpool_fini(&q->bufs);
    hvx_bufpool_init(&q->bufs, q->cluster_bytes, 8);
    uint8_t *area = hvx_bufpool_get(&q->bufs);
    if (!area)
        return hvx_fail(err, -ENOMEM, "no memory to open %s", NAME);
    r = hvx_file_pread(q->file, area, q->cluster_bytes, 0);
    if (!r)
        r = read_extensions(q, &h, area, q->cluster_bytes, err);
    else
        hvx_fail(err, r, "cannot read %s: %s", NAME, strerror(-r));
    hvx_bufpool_put(&q->bufs, area);
    if (!r)
        r = read_backing_name(q, &h, err);
    return r ? r : load_tables(q, &h, n_file, err);
}

static int qcow2_open(struct hvx_image *img, struct hvx_error *err)
{
    struct qcow2 *q = calloc(1, sizeof(*q));
    if (!q)
        return hvx_fail(err, -ENOMEM, "no memory to open %s", img->file->name);
    q->img = img;
    q->file = img->file;
    img->priv = q;
    pthread_mutex_init(&q->meta, NULL);
    pthread_mutex_init(&q->map, NULL);
    pthread_mutex_init(&q->zlock, NULL);
    hvx_bufpool_init(&q->bufs, 512, 1);
    int r = open_header(q, err);
    if (!r && !img->read_only && !img->for_check)
        r = prepare_write(q, err);
    if (r)
        qcow2_free(q);
    return r;
}

static void qcow2_close(struct hvx_image *img)
{
    struct qcow2 *q = img->priv;
    if (!img->read_only && !img->for_check && !atomic_load(&img->corrupt)) {
        pthread_mutex_lock(&q->meta);
        /* The first run may free clusters, the second writes those refcounts. */
        if (!qcow2_writeback(q) && !qcow2_writeback(q))
            (void)!qcow2_barrier(q);
        pthread_mutex_unlock(&q->meta);
    } else if (!img->read_only && !img->for_check) {
        /* So that the next one who opens it knows, too. */
        (void)!qcow2_header_set_incompatible(q, q->incompatible | QCOW2_INCOMPAT_CORRUPT);
    }
    qcow2_free(q);
}

void hvx_qcow2_get_info(struct hvx_image *img, struct hvx_qcow2_info *out)
{
    const struct qcow2 *q = img->priv;
    out->version = q->version;
    out->cluster_bytes = (uint32_t)q->cluster_bytes;
    out->refcount_bits = 1u << q->refcount_order;
    out->n_snapshots = q->n_snapshots;
    out->lazy_refcounts = q->compatible & QCOW2_COMPAT_LAZY;
    out->dirty = q->incompatible & QCOW2_INCOMPAT_DIRTY;
    out->corrupt = (q->incompatible & QCOW2_INCOMPAT_CORRUPT) || atomic_load(&img->corrupt);
    out->zstd = q->zstd;
}

const struct hvx_image_ops hvx_image_qcow2 = {
    .name = "qcow2", .open = qcow2_open, .close = qcow2_close, .map = qcow2_map, .preadv = qcow2_preadv,
    .pwritev = qcow2_pwritev, .flush = qcow2_flush, .discard = qcow2_discard, .write_zeroes = qcow2_write_zeroes,
    .status = qcow2_status, .check = qcow2_check,
};
