/* SPDX-License-Identifier: Apache-2.0
 *
 * qcow2.h - inside of the qcow2 driver. Field layout: QEMU's docs/interop/
 * qcow2.txt. Everything in the file is big-endian and in units of clusters.
 *
 * Locks
 *   meta  serialises every change of the mapping and of refcounts and every
 *         load of a table; held across metadata I/O, never across guest data.
 *   map   short: guards what qcow2_map() reads without blocking: the L1 table,
 *         the identity and the contents of cached L2 slices. Whoever changes
 *         them holds both. Taken after meta.
 *
 * Order on disk. A killed process, or a host that loses power, may leave
 * clusters that nobody refers to (leaks), never a reference to a cluster that
 * is free or holds something else:
 *   1. a refcount goes up, and the new cluster's contents are written,
 *   2. (barrier) then an L2 entry points to it,
 *   3. (barrier) then an L1 entry points to the L2 table, where it is new,
 *   4. (barrier) then what the entries pointed to before may lose refcounts.
 * qcow2_writeback() does this for all that is dirty at once; frees of step 4
 * wait in q->frees until it has run.
 */
#ifndef HVX_IMAGE_QCOW2_H
#define HVX_IMAGE_QCOW2_H

#include "core/image/image.h"
#include <endian.h>

#define QCOW2_MAGIC 0x514649fbu
#define QCOW2_L2_COPIED (1ull << 63)
#define QCOW2_L2_COMPRESSED (1ull << 62)
#define QCOW2_L2_ZERO 1ull
#define QCOW2_OFFSET_MASK 0x00fffffffffffe00ull
#define QCOW2_L2_RESERVED 0x3f000000000001feull /* of an entry that is not compressed */

enum {
    QCOW2_INCOMPAT_DIRTY = 1 << 0,
    QCOW2_INCOMPAT_CORRUPT = 1 << 1,
    QCOW2_INCOMPAT_DATA_FILE = 1 << 2,
    QCOW2_INCOMPAT_COMPRESSION = 1 << 3,
    QCOW2_INCOMPAT_EXT_L2 = 1 << 4,
};
#define QCOW2_COMPAT_LAZY 1u
#define QCOW2_AUTOCLEAR_BITMAPS 1u

#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURES 0x6803f857u
#define QCOW2_EXT_BITMAPS 0x23852875u
#define QCOW2_EXT_CRYPTO 0x0537be77u
#define QCOW2_EXT_DATA_FILE 0x44415441u

/* Caps on what a header may ask for; the figures are QEMU's. */
#define QCOW2_MAX_L1_BYTES (32u << 20)
#define QCOW2_MAX_REFTABLE_BYTES (8u << 20)
#define QCOW2_MAX_SNAPSHOTS 65536u
#define QCOW2_MAX_SNAPSHOT_TABLE_BYTES (64u << 20)
#define QCOW2_MAX_BITMAPS 65535u
#define QCOW2_MAX_BITMAP_DIRECTORY_BYTES (64u << 20)

/* Our own bounds. */
#define QCOW2_SLICE_BYTES 4096u         /* tables are cached in pieces of this */
#define QCOW2_L2_CACHE_BYTES (32u << 20)
#define QCOW2_RB_CACHE_BYTES (2u << 20)
#define QCOW2_CACHE_WAYS 8u
#define QCOW2_MAX_FREES 4096u           /* frees that wait for a writeback */
#define QCOW2_MAX_RUN_BYTES (4u << 20)  /* allocated for one write at once */

struct qcow2_header {
    uint32_t magic, version;
    uint64_t backing_file_offset;
    uint32_t backing_file_size, cluster_bits;
    uint64_t size;
    uint32_t crypt_method, l1_size;
    uint64_t l1_table_offset, refcount_table_offset;
    uint32_t refcount_table_clusters, nb_snapshots;
    uint64_t snapshots_offset;
    /* version 3 */
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order, header_length;
    uint8_t compression_type, pad[7];
} __attribute__((packed));
HVX_STATIC_ASSERT(sizeof(struct qcow2_header) == 112, "on disk");

struct qcow2_slice {
    _Atomic uint64_t stamp; /* least recently used goes first */
    uint64_t offset;        /* in the file; 0: empty */
    uint64_t *data;         /* big-endian as on disk (refcounts: bytes) */
    bool dirty;
};
struct qcow2_cache {
    uint32_t slice_bytes, n_sets, n_dirty;
    _Atomic uint64_t clock;
    struct qcow2_slice *slices;
};

/* Which clusters hold metadata: a hash set of cluster indices, so that data
 * never goes over a table however the tables lie (qcow2_meta.c). */
enum qcow2_meta_kind { QCOW2_META_NONE, QCOW2_META_HEADER, QCOW2_META_L1, QCOW2_META_REFTABLE, QCOW2_META_REFBLOCK,
                       QCOW2_META_L2, QCOW2_META_SNAPSHOT };
struct qcow2_meta {
    uint64_t *slots; /* index << 8 | kind; 0 empty */
    size_t n_slots, used, live;
};

struct qcow2_free {
    uint64_t offset; /* a cluster, or for compressed data its first byte */
    uint32_t bytes;
};

struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size;
};

struct qcow2 {
    struct hvx_image *img;
    struct hvx_file *file;
    pthread_mutex_t meta, map;

    uint32_t version, cluster_bits, refcount_order, header_length;
    uint64_t cluster_bytes;
    uint32_t l2_entries, l2_bits; /* per table */
    uint64_t rb_entries;          /* refcounts per refcount block */
    uint64_t incompatible, compatible, autoclear;
    bool zstd;

    uint64_t l1_offset;
    uint32_t l1_size;
    uint64_t *l1;       /* host-endian; guarded by map */
    uint8_t *l1_dirty;  /* one per 512 bytes of table */
    bool l1_any_dirty;

    uint64_t rt_offset, rt_clusters, rt_size; /* entries */
    uint64_t *rt;
    uint8_t *rt_dirty;
    bool rt_any_dirty;

    struct qcow2_snapshot *snapshots;
    uint32_t n_snapshots;
    uint64_t snapshots_offset, snapshots_bytes;
    uint64_t bitmaps_offset, bitmaps_bytes; /* directory; 0: none or not valid */
    uint32_t n_bitmaps;

    struct qcow2_cache l2c, rbc;
    struct qcow2_meta metaset;
    uint64_t free_hint;  /* no free cluster below this index */
    uint64_t end_bytes;  /* the file's end, counting clusters handed out; atomic reads under map */
    uint64_t virgin;     /* nothing was ever written at or behind this offset */
    uint64_t written;    /* counts writes that an order depends on */
    uint64_t synced;     /* up to this one they are on stable storage */
    struct qcow2_free *frees;
    uint32_t n_frees;

    struct hvx_bufpool bufs; /* cluster-sized scratch: copy on write, decompression */
    pthread_mutex_t zlock;   /* the last decompressed cluster */
    uint64_t z_offset;       /* its file offset, 0: none */
    uint32_t z_bytes;
    uint8_t *z_data, *z_in;
};

/* What an L2 entry means, checked. */
enum qcow2_kind { QCOW2_UNALLOCATED, QCOW2_ZERO_PLAIN, QCOW2_ZERO_ALLOC, QCOW2_NORMAL, QCOW2_COMPRESSED };
struct qcow2_entry {
    enum qcow2_kind kind;
    bool copied;      /* refcount is exactly 1: may be written in place */
    uint64_t offset;  /* cluster, or first byte of the compressed data */
    uint32_t z_bytes; /* upper bound of the compressed data's length */
};

static inline uint64_t qcow2_in_cluster(const struct qcow2 *q, uint64_t off)
{
    return off & (q->cluster_bytes - 1);
}
static inline uint64_t qcow2_round_up(const struct qcow2 *q, uint64_t off)
{
    return (off + q->cluster_bytes - 1) & ~(q->cluster_bytes - 1);
}

/* Bytes that a cache may have at most; tests make it tiny. */
extern uint64_t qcow2_cache_limit;
/* qcow2_cache.c; get: meta held. The slice stays until the next get on the same cache. */
int qcow2_cache_init(struct qcow2_cache *c, const struct qcow2 *q, uint64_t budget, uint64_t useful_bytes);
void qcow2_cache_fini(struct qcow2_cache *c);
int qcow2_cache_get(struct qcow2 *q, struct qcow2_cache *c, uint64_t offset, struct qcow2_slice **out);
struct qcow2_slice *qcow2_cache_peek(struct qcow2_cache *c, uint64_t offset); /* map held, or meta */
void qcow2_cache_dirty(struct qcow2_cache *c, struct qcow2_slice *s);
void qcow2_cache_drop(struct qcow2 *q, struct qcow2_cache *c, uint64_t offset, uint64_t bytes);
int qcow2_cache_write(struct qcow2 *q, struct qcow2_cache *c);
/* Bring all metadata to disk in the order above; meta held. */
int qcow2_writeback(struct qcow2 *q);
int qcow2_barrier(struct qcow2 *q);

/* qcow2_meta.c; changes under map, lookups under map or meta */
int qcow2_meta_add(struct qcow2 *q, uint64_t offset, uint64_t bytes, enum qcow2_meta_kind kind);
void qcow2_meta_del(struct qcow2 *q, uint64_t offset, uint64_t bytes);
enum qcow2_meta_kind qcow2_meta_at(const struct qcow2 *q, uint64_t offset);
const char *qcow2_meta_name(enum qcow2_meta_kind kind);
void qcow2_meta_fini(struct qcow2 *q);

/* qcow2_refcount.c; meta held */
uint64_t qcow2_refcount_read(const struct qcow2 *q, const void *table, uint64_t index);
void qcow2_refcount_write(const struct qcow2 *q, void *table, uint64_t index, uint64_t value);
static inline uint64_t qcow2_refcount_max(const struct qcow2 *q)
{
    return q->refcount_order == 6 ? UINT64_MAX : (1ull << (1u << q->refcount_order)) - 1;
}
int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *out);
/* Up to *n clusters in a row, at least one; *n becomes how many. Their
 * refcount is 1 then, in the cache. */
int qcow2_alloc(struct qcow2 *q, uint64_t *n, uint64_t *offset);
/* Something that nothing on disk refers to. */
void qcow2_free_now(struct qcow2 *q, uint64_t offset, uint64_t bytes);
/* Something that a table on disk may still refer to. */
int qcow2_free_later(struct qcow2 *q, uint64_t offset, uint32_t bytes);
int qcow2_apply_frees(struct qcow2 *q);
int qcow2_reftable_load(struct qcow2 *q, struct hvx_error *err);

/* qcow2_map.c */
int qcow2_entry_decode(struct qcow2 *q, uint64_t raw, uint64_t guest_off, bool for_write, struct qcow2_entry *out);
/* Index of guest_off's entry in its slice, and the slice's place in the table. */
void qcow2_l2_place(const struct qcow2 *q, uint64_t guest_off, uint32_t *l1_index, uint64_t *slice_off,
                    uint32_t *in_slice);
/* The slice with guest_off's entry for reading; *out NULL: no table there. meta held. */
int qcow2_l2_get(struct qcow2 *q, uint64_t guest_off, struct qcow2_slice **out, uint32_t *in_slice);
/* The same for writing: makes or copies the table when needed. */
int qcow2_l2_get_write(struct qcow2 *q, uint64_t guest_off, struct qcow2_slice **out, uint32_t *in_slice);
void qcow2_l2_set(struct qcow2 *q, struct qcow2_slice *s, uint32_t in_slice, uint64_t value);
int qcow2_l1_load(struct qcow2 *q, struct hvx_error *err);
int qcow2_map(struct hvx_image *img, bool write, uint64_t off, uint64_t bytes, struct hvx_seg *segs, unsigned max);
/* Run of guest bytes from off with one state; may load tables. */
int qcow2_extent(struct qcow2 *q, uint64_t off, uint64_t bytes, struct qcow2_entry *e, uint64_t *run);

/* qcow2_read.c, qcow2_write.c, qcow2_zero.c, qcow2_check.c */
int qcow2_preadv(struct hvx_image *img, struct hvx_sg sg, uint64_t off, uint64_t bytes);
int qcow2_status(struct hvx_image *img, uint64_t off, uint64_t bytes, uint64_t *run, bool *data);
int qcow2_decompress(struct qcow2 *q, const struct qcow2_entry *e, struct hvx_sg sg, uint64_t in_cluster,
                     uint64_t bytes);
int qcow2_inflate(const struct qcow2 *q, const uint8_t *in, size_t n_in, uint8_t *out, size_t n_out);
int qcow2_pwritev(struct hvx_image *img, struct hvx_sg sg, uint64_t off, uint64_t bytes);
int qcow2_flush(struct hvx_image *img);
int qcow2_discard(struct hvx_image *img, uint64_t off, uint64_t bytes);
int qcow2_write_zeroes(struct hvx_image *img, uint64_t off, uint64_t bytes, bool unmap);
int qcow2_check(struct hvx_image *img, bool repair, struct hvx_image_check *out, hvx_check_fn fn, void *opaque);
int qcow2_header_set_incompatible(struct qcow2 *q, uint64_t value);
#endif
