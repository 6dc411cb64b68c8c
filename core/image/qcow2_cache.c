/* SPDX-License-Identifier: Apache-2.0
 *
 * qcow2_cache.c - bounded caches of L2 tables and refcount blocks, in slices
 * of 4 KiB, and the one function that writes dirty metadata in a safe order.
 */
#include "core/image/qcow2.h"

#include <stdlib.h>

uint64_t qcow2_cache_limit = UINT64_MAX;

int qcow2_cache_init(struct qcow2_cache *c, const struct qcow2 *q, uint64_t budget, uint64_t useful_bytes)
{
    c->slice_bytes = q->cluster_bytes < QCOW2_SLICE_BYTES ? (uint32_t)q->cluster_bytes : QCOW2_SLICE_BYTES;
    if (useful_bytes < budget)
        budget = useful_bytes; /* no more than the whole disk needs */
    if (budget > qcow2_cache_limit)
        budget = qcow2_cache_limit;
    c->n_sets = 1;
    while ((uint64_t)c->n_sets * 2 * QCOW2_CACHE_WAYS * c->slice_bytes <= budget)
        c->n_sets *= 2;
    c->slices = calloc((size_t)c->n_sets * QCOW2_CACHE_WAYS, sizeof(c->slices[0]));
    return c->slices ? 0 : -ENOMEM;
}

void qcow2_cache_fini(struct qcow2_cache *c)
{
    if (!c->slices)
        return;
    for (size_t i = 0; i < (size_t)c->n_sets * QCOW2_CACHE_WAYS; i++)
        free(c->slices[i].data);
    free(c->slices);
    c->slices = NULL;
}

static struct qcow2_slice *set_of(struct qcow2_cache *c, uint64_t offset)
{
    uint64_t i = offset / c->slice_bytes;
    i ^= i >> 17; /* tables of a large disk start at equal distances */
    return c->slices + (i & (c->n_sets - 1)) * QCOW2_CACHE_WAYS;
}

static void touch(struct qcow2_cache *c, struct qcow2_slice *s)
{
    uint64_t now = atomic_fetch_add_explicit(&c->clock, 1, memory_order_relaxed) + 1;
    atomic_store_explicit(&s->stamp, now, memory_order_relaxed);
}

struct qcow2_slice *qcow2_cache_peek(struct qcow2_cache *c, uint64_t offset)
{
    struct qcow2_slice *s = set_of(c, offset);
    for (unsigned i = 0; i < QCOW2_CACHE_WAYS; i++, s++) {
        if (s->offset == offset) {
            touch(c, s);
            return s;
        }
    }
    return NULL;
}

void qcow2_cache_dirty(struct qcow2_cache *c, struct qcow2_slice *s)
{
    if (!s->dirty) {
        s->dirty = true;
        c->n_dirty++;
    }
}

static void set_offset(struct qcow2 *q, struct qcow2_slice *s, uint64_t offset)
{
    pthread_mutex_lock(&q->map);
    s->offset = offset;
    pthread_mutex_unlock(&q->map);
}

int qcow2_cache_get(struct qcow2 *q, struct qcow2_cache *c, uint64_t offset, struct qcow2_slice **out)
{
    struct qcow2_slice *s = qcow2_cache_peek(c, offset), *set, *victim;
    int r;
    if (s) {
        *out = s;
        return 0;
    }
    set = victim = set_of(c, offset);
    for (unsigned i = 1; i < QCOW2_CACHE_WAYS; i++) {
        if (atomic_load_explicit(&set[i].stamp, memory_order_relaxed) <
            atomic_load_explicit(&victim->stamp, memory_order_relaxed))
            victim = set + i;
    }
    if (victim->dirty) {
        /* A refcount slice may go any time; an L2 slice only after the
         * refcounts that it relies on. Freeing what waits is left to the
         * caller of qcow2_writeback: it would come back into this cache. */
        r = c == &q->rbc ? qcow2_cache_write(q, c) : qcow2_writeback(q);
        if (r)
            return r;
    }
    if (!victim->data) {
        victim->data = aligned_alloc(4096, QCOW2_SLICE_BYTES);
        if (!victim->data)
            return -ENOMEM;
    }
    set_offset(q, victim, 0);
    r = hvx_file_pread(q->file, victim->data, c->slice_bytes, offset);
    if (r)
        return r;
    touch(c, victim);
    set_offset(q, victim, offset);
    *out = victim;
    return 0;
}

void qcow2_cache_drop(struct qcow2 *q, struct qcow2_cache *c, uint64_t offset, uint64_t bytes)
{
    for (uint64_t o = offset; o < offset + bytes; o += c->slice_bytes) {
        struct qcow2_slice *s = qcow2_cache_peek(c, o);
        if (!s)
            continue;
        set_offset(q, s, 0);
        atomic_store_explicit(&s->stamp, 0, memory_order_relaxed);
        if (s->dirty) {
            s->dirty = false;
            c->n_dirty--;
        }
    }
}

int qcow2_cache_write(struct qcow2 *q, struct qcow2_cache *c)
{
    int result = 0;
    if (!c->n_dirty)
        return 0;
    for (size_t i = 0; i < (size_t)c->n_sets * QCOW2_CACHE_WAYS && c->n_dirty; i++) {
        struct qcow2_slice *s = &c->slices[i];
        if (!s->dirty)
            continue;
        int r = hvx_file_pwrite(q->file, s->data, c->slice_bytes, s->offset);
        q->written++;
        if (r) {
            result = r;
            break;
        }
        s->dirty = false;
        c->n_dirty--;
    }
    return result;
}

int qcow2_barrier(struct qcow2 *q)
{
    uint64_t upto = q->written;
    if (q->synced == upto)
        return 0;
    int r = hvx_file_flush(q->file);
    if (!r)
        q->synced = upto;
    return r;
}

/* The dirty 512-byte pieces of a table that is kept whole in memory. */
static int write_pieces(struct qcow2 *q, const uint64_t *table, uint64_t n, uint64_t offset, uint8_t *dirty, bool *any)
{
    uint64_t piece[64];
    for (uint64_t i = 0; i * 64 < n; i++) {
        if (!dirty[i])
            continue;
        uint64_t k = n - i * 64 < 64 ? n - i * 64 : 64;
        for (uint64_t j = 0; j < k; j++)
            piece[j] = htobe64(table[i * 64 + j]);
        int r = hvx_file_pwrite(q->file, piece, k * 8, offset + i * 512);
        q->written++;
        if (r)
            return r;
        dirty[i] = 0;
    }
    *any = false;
    return 0;
}

static int write_refcounts(struct qcow2 *q)
{
    int r = qcow2_cache_write(q, &q->rbc);
    if (!r && q->rt_any_dirty) {
        r = qcow2_barrier(q); /* blocks before the table that points to them */
        if (!r)
            r = write_pieces(q, q->rt, q->rt_size, q->rt_offset, q->rt_dirty, &q->rt_any_dirty);
    }
    return r;
}

int qcow2_writeback(struct qcow2 *q)
{
    int r = write_refcounts(q);
    if (!r && (q->l2c.n_dirty || q->l1_any_dirty)) {
        r = qcow2_barrier(q);
        if (!r)
            r = qcow2_cache_write(q, &q->l2c);
    }
    if (!r && q->l1_any_dirty) {
        r = qcow2_barrier(q);
        if (!r)
            r = write_pieces(q, q->l1, q->l1_size, q->l1_offset, q->l1_dirty, &q->l1_any_dirty);
    }
    if (!r && q->n_frees) {
        r = qcow2_barrier(q);
        if (!r)
            r = qcow2_apply_frees(q);
    }
    return r;
}
