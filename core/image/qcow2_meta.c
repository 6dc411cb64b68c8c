/* SPDX-License-Identifier: Apache-2.0
 *
 * qcow2_meta.c - the set of clusters that hold metadata. Guest data must
 * never be written there, whatever an L2 entry says, and the allocator must
 * never hand one out, whatever the refcounts say.
 */
#include "core/image/qcow2.h"

#include <stdlib.h>

#define TOMBSTONE 0xffull /* kind of a deleted slot */

static size_t hash_of(uint64_t index, size_t n_slots)
{
    return (size_t)((index * 0x9e3779b97f4a7c15ull) >> 17) & (n_slots - 1);
}

static uint64_t *find(const struct qcow2_meta *m, uint64_t index)
{
    if (!m->n_slots)
        return NULL;
    for (size_t i = hash_of(index, m->n_slots);; i = (i + 1) & (m->n_slots - 1)) {
        if (!m->slots[i])
            return NULL;
        if (m->slots[i] >> 8 == index && (m->slots[i] & 0xff) != TOMBSTONE)
            return &m->slots[i];
    }
}

static void insert(struct qcow2_meta *m, uint64_t slot)
{
    size_t i = hash_of(slot >> 8, m->n_slots);
    while (m->slots[i])
        i = (i + 1) & (m->n_slots - 1);
    m->slots[i] = slot;
    m->used++;
    m->live++;
}

static int make_room(struct qcow2_meta *m)
{
    if (m->n_slots && m->used * 4 < m->n_slots * 3)
        return 0;
    struct qcow2_meta old = *m;
    size_t n = old.n_slots ? old.n_slots : 64;
    while (old.live * 2 >= n)
        n *= 2;
    m->slots = calloc(n, sizeof(uint64_t));
    if (!m->slots) {
        m->slots = old.slots;
        return -ENOMEM;
    }
    m->n_slots = n;
    m->used = m->live = 0;
    for (size_t i = 0; i < old.n_slots; i++) {
        if (old.slots[i] && (old.slots[i] & 0xff) != TOMBSTONE)
            insert(m, old.slots[i]);
    }
    free(old.slots);
    return 0;
}

int qcow2_meta_add(struct qcow2 *q, uint64_t offset, uint64_t bytes, enum qcow2_meta_kind kind)
{
    int result = 0;
    for (uint64_t i = offset >> q->cluster_bits; i << q->cluster_bits < offset + bytes; i++) {
        if (find(&q->metaset, i)) {
            result = -EEXIST; /* the first owner stays; the rest is recorded all the same */
            continue;
        }
        if (make_room(&q->metaset))
            return -ENOMEM;
        insert(&q->metaset, i << 8 | kind);
    }
    return result;
}

void qcow2_meta_del(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    for (uint64_t i = offset >> q->cluster_bits; i << q->cluster_bits < offset + bytes; i++) {
        uint64_t *s = find(&q->metaset, i);
        if (s) {
            *s |= TOMBSTONE;
            q->metaset.live--;
        }
    }
}

enum qcow2_meta_kind qcow2_meta_at(const struct qcow2 *q, uint64_t offset)
{
    uint64_t *s = find(&q->metaset, offset >> q->cluster_bits);
    return s ? (enum qcow2_meta_kind)(*s & 0xff) : QCOW2_META_NONE;
}

const char *qcow2_meta_name(enum qcow2_meta_kind kind)
{
    static const char *const names[] = {"nothing",          "the header",  "the L1 table",    "the refcount table",
                                        "a refcount block", "an L2 table", "a snapshot table"};
    return names[kind];
}

void qcow2_meta_fini(struct qcow2 *q)
{
    free(q->metaset.slots);
    memset(&q->metaset, 0, sizeof(q->metaset));
}
