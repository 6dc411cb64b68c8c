/* SPDX-License-Identifier: Apache-2.0
 *
 * qcow2_create.c - a new, empty image: header, refcount table, refcount
 * blocks, L1 table, in this order and without gaps.
 */
#include "core/image/qcow2.h"

#include <stdlib.h>

struct layout {
    struct qcow2 q; /* only its geometry is used */
    uint64_t l1_size, l1_clusters, rt_clusters, rb_clusters, total;
};

static bool power_of_2(uint32_t v)
{
    return v && !(v & (v - 1));
}

static int plan_layout(struct layout *l, const struct hvx_qcow2_create *p, struct hvx_error *err)
{
    uint32_t cluster = p->cluster_bytes ? p->cluster_bytes : 65536, bits = p->refcount_bits ? p->refcount_bits : 16;
    if (!power_of_2(cluster) || cluster < 512 || cluster > 2u << 20)
        return hvx_fail(err, -EINVAL, "cluster size %u: must be a power of two from 512 to 2M", cluster);
    if (!power_of_2(bits) || bits > 64 || (p->version == 2 && bits != 16))
        return hvx_fail(err, -EINVAL, "refcount bits %u: must be a power of two from 1 to 64 (16 in version 2)", bits);
    if (!p->bytes || p->bytes > (uint64_t)INT64_MAX - (2u << 20))
        return hvx_fail(err, -EINVAL, "disk size %llu: must be from 512 bytes to 8 EiB", (unsigned long long)p->bytes);
    struct qcow2 *q = &l->q;
    q->cluster_bits = (uint32_t)__builtin_ctz(cluster);
    q->cluster_bytes = cluster;
    q->refcount_order = (uint32_t)__builtin_ctz(bits);
    q->rb_entries = (q->cluster_bytes * 8) >> q->refcount_order;
    uint64_t span = q->cluster_bytes * (q->cluster_bytes / 8);
    l->l1_size = (p->bytes - 1) / span + 1;
    if (l->l1_size * 8 > QCOW2_MAX_L1_BYTES)
        return hvx_fail(err, -EFBIG, "a disk of %llu bytes is too large for clusters of %u bytes; use larger clusters",
                        (unsigned long long)p->bytes, cluster);
    l->l1_clusters = (l->l1_size * 8 + cluster - 1) >> q->cluster_bits;
    l->rt_clusters = l->rb_clusters = 1;
    for (;;) { /* the blocks count themselves */
        l->total = 1 + l->rt_clusters + l->rb_clusters + l->l1_clusters;
        uint64_t blocks = (l->total + q->rb_entries - 1) / q->rb_entries;
        uint64_t tables = (blocks * 8 + cluster - 1) >> q->cluster_bits;
        if (blocks <= l->rb_clusters && tables <= l->rt_clusters)
            return 0;
        l->rb_clusters = blocks > l->rb_clusters ? blocks : l->rb_clusters;
        l->rt_clusters = tables > l->rt_clusters ? tables : l->rt_clusters;
    }
}

static uint64_t put_extension(uint8_t *area, uint64_t at, uint32_t type, const void *data, uint32_t n)
{
    uint32_t head[2] = {htobe32(type), htobe32(n)};
    memcpy(area + at, head, 8);
    memcpy(area + at + 8, data, n);
    return at + 8 + ((n + 7u) & ~7u);
}

/* The table that lets other programs name our features in their refusals. */
static uint64_t put_features(uint8_t *area, uint64_t at)
{
    static const struct {
        uint8_t type, bit;
        const char *name;
    } f[] = {{0, 0, "dirty bit"}, {0, 1, "corrupt bit"}, {0, 3, "compression type"}, {1, 0, "lazy refcounts"}};
    uint8_t table[4][48];
    memset(table, 0, sizeof(table));
    for (unsigned i = 0; i < 4; i++) {
        table[i][0] = f[i].type;
        table[i][1] = f[i].bit;
        memcpy(&table[i][2], f[i].name, strlen(f[i].name));
    }
    return put_extension(area, at, QCOW2_EXT_FEATURES, table, sizeof(table));
}

static int put_header(const struct layout *l, const struct hvx_qcow2_create *p, uint8_t *area, struct hvx_error *err)
{
    uint32_t version = p->version ? p->version : 3;
    const struct qcow2 *q = &l->q;
    struct qcow2_header h = {
        .magic = htobe32(QCOW2_MAGIC), .version = htobe32(version), .cluster_bits = htobe32(q->cluster_bits),
        .size = htobe64(p->bytes), .l1_size = htobe32((uint32_t)l->l1_size),
        .l1_table_offset = htobe64((1 + l->rt_clusters + l->rb_clusters) << q->cluster_bits),
        .refcount_table_offset = htobe64(1ull << q->cluster_bits),
        .refcount_table_clusters = htobe32((uint32_t)l->rt_clusters),
    };
    uint64_t at = version == 3 ? sizeof(h) : 72;
    size_t n_name = p->backing_name ? strlen(p->backing_name) : 0, n_format = n_name ? strlen(p->backing_format) : 0;
    if (n_name >= HVX_IMAGE_NAME_MAX || n_format > 15)
        return hvx_fail(err, -EINVAL, "the backing file's name is longer than %u bytes", HVX_IMAGE_NAME_MAX - 1);
    if (at + n_name + n_format + 48 > q->cluster_bytes)
        return hvx_fail(err, -EINVAL, "the backing file's name does not fit into a cluster of %llu bytes",
                        (unsigned long long)q->cluster_bytes);
    if (version == 3) {
        h.compatible = htobe64(p->lazy_refcounts ? QCOW2_COMPAT_LAZY : 0);
        h.refcount_order = htobe32(q->refcount_order);
        h.header_length = htobe32(sizeof(h));
    }
    if (n_name)
        at = put_extension(area, at, QCOW2_EXT_BACKING_FORMAT, p->backing_format, (uint32_t)n_format);
    if (version == 3 && at + 208 + n_name <= q->cluster_bytes)
        at = put_features(area, at);
    at += 8; /* the end mark, zeroes */
    if (n_name) {
        memcpy(area + at, p->backing_name, n_name);
        h.backing_file_offset = htobe64(at);
        h.backing_file_size = htobe32((uint32_t)n_name);
    }
    memcpy(area, &h, version == 3 ? sizeof(h) : 72);
    return 0;
}

static int write_body(struct hvx_file *file, const struct layout *l, uint8_t *buf)
{
    const struct qcow2 *q = &l->q;
    uint64_t cs = q->cluster_bytes;
    int r = hvx_file_zero(file, (1 + l->rt_clusters + l->rb_clusters) * cs, l->l1_clusters * cs, false);
    for (uint64_t b = 0; b < l->rb_clusters && !r; b++) {
        memset(buf, 0, cs);
        for (uint64_t i = 0; i < q->rb_entries && b * q->rb_entries + i < l->total; i++)
            qcow2_refcount_write(q, buf, i, 1);
        r = hvx_file_pwrite(file, buf, cs, (1 + l->rt_clusters + b) * cs);
    }
    for (uint64_t t = 0; t < l->rt_clusters && !r; t++) {
        memset(buf, 0, cs);
        for (uint64_t i = 0; i < cs / 8 && t * (cs / 8) + i < l->rb_clusters; i++)
            ((uint64_t *)buf)[i] = htobe64((1 + l->rt_clusters + t * (cs / 8) + i) * cs);
        r = hvx_file_pwrite(file, buf, cs, (1 + t) * cs);
    }
    return r;
}

int hvx_qcow2_create(struct hvx_file *file, const struct hvx_qcow2_create *p, struct hvx_error *err)
{
    struct layout l = {0};
    int r = plan_layout(&l, p, err);
    if (r)
        return r;
    size_t n_buf = l.q.cluster_bytes < 4096 ? 4096 : l.q.cluster_bytes;
    uint8_t *buf = aligned_alloc(4096, n_buf);
    if (!buf)
        return hvx_fail(err, -ENOMEM, "no memory to make %s", file->name);
    memset(buf, 0, n_buf);
    r = put_header(&l, p, buf, err);
    if (r) {
        free(buf);
        return r;
    }
    /* The header goes last: a file that was not finished is no image. */
    uint8_t *body = aligned_alloc(4096, n_buf);
    r = body ? file->ops->truncate(file, l.total * l.q.cluster_bytes) : -ENOMEM;
    if (!r)
        r = write_body(file, &l, body);
    if (!r)
        r = hvx_file_pwrite(file, buf, l.q.cluster_bytes, 0);
    free(body);
    free(buf);
    return r ? hvx_fail(err, r, "cannot write the new image %s: %s", file->name, strerror(-r)) : 0;
}
