/* SPDX-License-Identifier: Apache-2.0
 *
 * virtqueue.c - split rings, and what both ring formats share.
 */
#include "virtqueue.h"

#include <linux/virtio_ring.h>
#include <string.h>

#include "virtio.h"

void vq_init(struct virtqueue *vq, struct virtio_dev *dev, uint16_t index, uint16_t max_size)
{
    memset(vq, 0, sizeof(*vq));
    vq->dev = dev;
    vq->index = index;
    vq->max_size = max_size;
    vq->size = max_size;
    vq->vector = VQ_NO_VECTOR;
}

void vq_reset(struct virtqueue *vq)
{
    uint32_t generation = vq->generation;
    vq_init(vq, vq->dev, vq->index, vq->max_size);
    vq->generation = generation + 1;
}

/* A ring must lie in one piece of RAM, so that one pointer serves it. */
static void *map_ring(struct virtqueue *vq, uint64_t gpa, uint64_t bytes, unsigned align)
{
    struct virtio_dev *d = vq->dev;
    size_t n = bytes;
    if ((gpa & (align - 1)) || gpa + bytes < gpa)
        return NULL;
    void *p = d->host->mem_ptr(d->vm, gpa, &n);
    return p && n >= bytes ? p : NULL;
}

int vq_enable(struct virtqueue *vq, const char **why)
{
    if (vq->size == 0 || vq->size > vq->max_size || (!vq->packed && (vq->size & (vq->size - 1)))) {
        *why = "its size is out of range";
        return -EINVAL;
    }
    uint64_t avail_bytes = vq->packed ? sizeof(struct vring_packed_desc_event) : vq_avail_bytes(vq->size);
    uint64_t used_bytes = vq->packed ? sizeof(struct vring_packed_desc_event) : vq_used_bytes(vq->size);
    void *desc = map_ring(vq, vq->desc_gpa, vq_desc_bytes(vq->size), 16);
    void *avail = map_ring(vq, vq->avail_gpa, avail_bytes, vq->packed ? 4 : 2);
    void *used = map_ring(vq, vq->used_gpa, used_bytes, 4);
    if (!desc || !avail || !used) {
        *why = !desc ? "its descriptors are not aligned or not in one piece of RAM"
               : !avail ? "its driver area is not aligned or not in one piece of RAM"
                        : "its device area is not aligned or not in one piece of RAM";
        return -EINVAL;
    }
    vq->desc = desc;
    vq->avail = avail;
    vq->used = used;
    vq->enabled = true;
    return 0;
}

/* Append a guest buffer to the chain; -1 and a broken device if it cannot be. */
int vq_chain_add(struct virtqueue *vq, struct vq_chain *chain, uint64_t gpa, uint32_t len, bool writable)
{
    struct virtio_dev *d = vq->dev;
    if (!writable && chain->n_in) {
        virtio_broken(d, "queue %u: a readable buffer follows a writable one", vq->index);
        return -1;
    }
    if (gpa + len < gpa || (uint64_t)chain->out_bytes + chain->in_bytes + len > VQ_CHAIN_BYTES_MAX) {
        virtio_broken(d, "queue %u: a buffer of %u bytes at %#llx is too large", vq->index, len,
                      (unsigned long long)gpa);
        return -1;
    }
    *(writable ? &chain->in_bytes : &chain->out_bytes) += len;
    while (len) {
        unsigned slot = chain->n_out + chain->n_in;
        size_t n = len;
        void *p = d->host->mem_ptr(d->vm, gpa, &n);
        if (!p || n == 0 || n > len || slot >= VQ_IOV_MAX) {
            virtio_broken(d, "queue %u: a buffer at %#llx is %s", vq->index, (unsigned long long)gpa,
                          slot >= VQ_IOV_MAX ? "in too many pieces" : "not in RAM");
            return -1;
        }
        chain->iov[slot] = (struct iovec){p, n};
        if (writable)
            chain->in_gpa[chain->n_in++] = gpa;
        else
            chain->n_out++;
        gpa += n;
        len -= n;
    }
    return 0;
}

/* --- split rings (2.7) ----------------------------------------------------- */
static struct vring_desc read_desc(const struct vring_desc *p)
{
    /* One copy, judged afterwards: the guest may change the original. The
     * table may lie at any address when it is an indirect one. */
    struct vring_desc d;
    memcpy(&d, p, sizeof(d));
    __asm__ volatile("" ::: "memory");
    return d;
}

static const struct vring_desc *indirect_table(struct virtqueue *vq, const struct vring_desc *d, unsigned *n)
{
    struct virtio_dev *dev = vq->dev;
    if (!vq->indirect || (d->flags & VRING_DESC_F_NEXT) || d->len == 0 || d->len % sizeof(*d) ||
        d->len / sizeof(*d) > VQ_INDIRECT_MAX) {
        virtio_broken(dev, "queue %u: an indirect descriptor with flags %#x and %u bytes", vq->index, d->flags, d->len);
        return NULL;
    }
    size_t bytes = d->len;
    const void *p = dev->host->mem_ptr(dev->vm, d->addr, &bytes);
    if (!p || bytes < d->len) {
        virtio_broken(dev, "queue %u: the indirect table at %#llx is not in one piece of RAM", vq->index,
                      (unsigned long long)d->addr);
        return NULL;
    }
    *n = d->len / sizeof(*d);
    return p;
}

static int split_walk(struct virtqueue *vq, struct vq_chain *chain, uint16_t head)
{
    const struct vring_desc *table = vq->desc;
    unsigned n_table = vq->size, i = head, count = 0;
    for (;;) {
        if (i >= n_table || count++ == VQ_CHAIN_MAX) {
            virtio_broken(vq->dev, i >= n_table ? "queue %u: descriptor %u of %u"
                                                : "queue %u: a chain loops or is too long (descriptor %u of %u)",
                          vq->index, i, n_table);
            return -1;
        }
        struct vring_desc d = read_desc(&table[i]);
        if (d.flags & VRING_DESC_F_INDIRECT) {
            if (table != vq->desc) {
                virtio_broken(vq->dev, "queue %u: an indirect descriptor inside an indirect table", vq->index);
                return -1;
            }
            table = indirect_table(vq, &d, &n_table);
            if (!table)
                return -1;
            i = 0;
            continue;
        }
        if (vq_chain_add(vq, chain, d.addr, d.len, d.flags & VRING_DESC_F_WRITE))
            return -1;
        if (!(d.flags & VRING_DESC_F_NEXT))
            return 1;
        i = d.next;
    }
}

static bool split_has_work(struct virtqueue *vq)
{
    /* Acquire: the entry and its descriptors are read after the index. Pairs
     * with the driver's write barrier before it stores avail->idx. */
    return __atomic_load_n(&vq->avail->idx, __ATOMIC_ACQUIRE) != vq->last_avail;
}

int vq_pop(struct virtqueue *vq, struct vq_chain *chain)
{
    if (!vq->enabled || vq->dev->broken)
        return 0;
    chain->n_out = chain->n_in = 0;
    chain->out_bytes = chain->in_bytes = 0;
    if (vq->packed)
        return vq_packed_pop(vq, chain);

    uint16_t idx = __atomic_load_n(&vq->avail->idx, __ATOMIC_ACQUIRE); /* as in split_has_work() */
    uint16_t n = idx - vq->last_avail;
    if (n == 0)
        return 0;
    /* A descriptor is either the driver's or ours: more than a ring full of
     * either means that the driver lost count, or lies. */
    if (n > vq->size || vq->inflight >= vq->size) {
        virtio_broken(vq->dev, "queue %u: available index %u, ours %u, %u in flight, size %u", vq->index, idx,
                      vq->last_avail, vq->inflight, vq->size);
        return -1;
    }
    uint16_t head = __atomic_load_n(&vq->avail->ring[vq->last_avail & (vq->size - 1)], __ATOMIC_RELAXED);
    if (split_walk(vq, chain, head) < 0)
        return -1;
    chain->token.id = head;
    chain->token.n_ring = 1;
    vq->last_avail++;
    vq->inflight++;
    return 1;
}

void vq_unpop(struct virtqueue *vq, struct vq_token t)
{
    if (vq->packed) {
        vq_packed_unpop(vq, t);
        return;
    }
    vq->last_avail--;
    vq->inflight--;
}

bool vq_has_work(struct virtqueue *vq)
{
    if (!vq->enabled || vq->dev->broken)
        return false;
    return vq->packed ? vq_packed_has_work(vq) : split_has_work(vq);
}

void vq_chain_dirty(struct virtqueue *vq, const struct vq_chain *chain, uint32_t n)
{
    struct virtio_dev *d = vq->dev;
    for (unsigned i = 0; i < chain->n_in && n; i++) {
        size_t len = chain->iov[chain->n_out + i].iov_len;
        uint64_t gpa = chain->in_gpa[i];
        /* Neighbours are reported together: readahead hands over long runs of pages. */
        while (i + 1 < chain->n_in && len < n && chain->in_gpa[i + 1] == gpa + len)
            len += chain->iov[chain->n_out + ++i].iov_len;
        if (len > n)
            len = n;
        d->host->mem_dirty(d->vm, gpa, len);
        n -= len;
    }
}

void vq_push(struct virtqueue *vq, struct vq_token t, uint32_t used_len)
{
    if (!vq->enabled || vq->dev->broken)
        return;
    if (vq->packed) {
        vq_packed_push(vq, t, used_len);
        return;
    }
    struct vring_used_elem *e = &vq->used->ring[vq->used_idx & (vq->size - 1)];
    e->id = t.id;
    e->len = used_len;
    vq->used_idx++;
    vq->n_pending++;
    vq->inflight--;
}

static bool split_publish(struct virtqueue *vq)
{
    uint16_t new = vq->used_idx, old = vq->signalled;
    /* Release: the entries are visible before the index. Pairs with the
     * driver's read barrier after it loads used->idx. */
    __atomic_store_n(&vq->used->idx, new, __ATOMIC_RELEASE);
    vq->n_pending = 0;
    /* Full barrier: our store of used->idx comes before our load of what the
     * driver wants to be told. The driver stores that, has a full barrier,
     * and loads used->idx; so one of the two sees the other. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!vq->event_idx)
        return !(__atomic_load_n(&vq->avail->flags, __ATOMIC_RELAXED) & VRING_AVAIL_F_NO_INTERRUPT);
    bool valid = vq->signalled_valid;
    vq->signalled = new;
    vq->signalled_valid = true;
    /* used_event follows the available ring (2.7.10). */
    uint16_t event = __atomic_load_n(&vq->avail->ring[vq->size], __ATOMIC_RELAXED);
    return !valid || vring_need_event(event, new, old);
}

void vq_flush(struct virtqueue *vq)
{
    if (!vq->n_pending || !vq->enabled || vq->dev->broken)
        return;
    struct virtio_dev *d = vq->dev;
    bool wanted = vq->packed ? vq_packed_publish(vq) : split_publish(vq);
    if (vq->packed)
        d->host->mem_dirty(d->vm, vq->desc_gpa, vq_desc_bytes(vq->size));
    else
        d->host->mem_dirty(d->vm, vq->used_gpa, vq_used_bytes(vq->size));
    if (wanted)
        virtio_interrupt_queue(vq);
}

/* avail_event follows the used ring (2.7.7.1). */
static uint16_t *avail_event(struct virtqueue *vq)
{
    return (uint16_t *)(void *)((char *)vq->used + offsetof(struct vring_used, ring) +
                                vq->size * sizeof(struct vring_used_elem));
}

void vq_disarm(struct virtqueue *vq)
{
    if (!vq->enabled || vq->dev->broken)
        return;
    if (vq->packed)
        vq_packed_disarm(vq);
    else if (!vq->event_idx)
        __atomic_store_n(&vq->used->flags, VRING_USED_F_NO_NOTIFY, __ATOMIC_RELAXED);
    /* With event index an old avail_event already keeps the driver quiet. */
}

bool vq_rearm(struct virtqueue *vq)
{
    if (!vq->enabled || vq->dev->broken)
        return false;
    if (vq->packed)
        return vq_packed_rearm(vq);
    if (vq->event_idx) {
        __atomic_store_n(avail_event(vq), vq->last_avail, __ATOMIC_RELAXED);
    } else {
        __atomic_store_n(&vq->used->flags, 0, __ATOMIC_RELAXED);
    }
    /* Full barrier: the wish to be notified is visible before we look for
     * work a last time; the driver stores avail->idx, has a full barrier, and
     * loads the wish. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return split_has_work(vq);
}

void vq_arm_next(struct virtqueue *vq)
{
    if (!vq->enabled || vq->dev->broken)
        return;
    if (vq->packed) {
        vq_packed_arm_next(vq);
        return;
    }
    if (!vq->event_idx) {
        __atomic_store_n(&vq->used->flags, 0, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST); /* as in vq_rearm() */
        return;
    }
    /* The event must be an index not passed yet, or the driver stays silent
     * for a whole lap: repeat when it moved on meanwhile. Only a driver that
     * moves it without adding buffers can use up the tries, to its own loss. */
    for (unsigned i = 0; i < VQ_ARM_TRIES; i++) {
        uint16_t idx = __atomic_load_n(&vq->avail->idx, __ATOMIC_RELAXED);
        __atomic_store_n(avail_event(vq), idx, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST); /* as in vq_rearm() */
        if (__atomic_load_n(&vq->avail->idx, __ATOMIC_RELAXED) == idx)
            return;
    }
}

/* --- saved state ------------------------------------------------------------ */
int vq_state(struct virtqueue *vq, struct hvx_stream *s)
{
    hvx_state_u16(s, &vq->size);
    hvx_state_u16(s, &vq->vector);
    hvx_state_u64(s, &vq->desc_gpa);
    hvx_state_u64(s, &vq->avail_gpa);
    hvx_state_u64(s, &vq->used_gpa);
    hvx_state_u16(s, &vq->last_avail);
    hvx_state_u16(s, &vq->used_idx);
    hvx_state_u16(s, &vq->inflight);
    hvx_state_u16(s, &vq->signalled);
    hvx_state_bool(s, &vq->signalled_valid);
    hvx_state_bool(s, &vq->avail_wrap);
    hvx_state_bool(s, &vq->used_wrap);
    bool enabled = vq->enabled;
    hvx_state_bool(s, &enabled);
    if (hvx_stream_is_saving(s) || hvx_state_error(s))
        return hvx_state_error(s);
    vq->n_pending = 0;
    vq->enabled = false;
    if (vq->size > vq->max_size || vq->inflight > vq->size ||
        (vq->packed && enabled && (vq->last_avail >= vq->size || vq->used_idx >= vq->size))) {
        hvx_state_fail(s, -EINVAL, "a virtqueue's size or position is out of range");
        return hvx_state_error(s);
    }
    const char *why = "";
    if (enabled && vq_enable(vq, &why) < 0)
        hvx_state_fail(s, -EINVAL, why);
    return hvx_state_error(s);
}

/* --- scatter-gather helpers -------------------------------------------------- */
size_t vq_iov_read(const struct iovec *iov, unsigned n_iov, size_t off, void *buf, size_t n)
{
    size_t done = 0;
    for (unsigned i = 0; i < n_iov && done < n; i++) {
        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        size_t k = iov[i].iov_len - off;
        if (k > n - done)
            k = n - done;
        memcpy((char *)buf + done, (const char *)iov[i].iov_base + off, k);
        done += k;
        off = 0;
    }
    return done;
}

size_t vq_iov_write(const struct iovec *iov, unsigned n_iov, size_t off, const void *buf, size_t n)
{
    size_t done = 0;
    for (unsigned i = 0; i < n_iov && done < n; i++) {
        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        size_t k = iov[i].iov_len - off;
        if (k > n - done)
            k = n - done;
        memcpy((char *)iov[i].iov_base + off, (const char *)buf + done, k);
        done += k;
        off = 0;
    }
    return done;
}

size_t vq_iov_bytes(const struct iovec *iov, unsigned n_iov)
{
    size_t n = 0;
    while (n_iov--)
        n += iov++->iov_len;
    return n;
}

unsigned vq_iov_skip(struct iovec *iov, unsigned n_iov, size_t n)
{
    unsigned i = 0;
    while (i < n_iov && n >= iov[i].iov_len)
        n -= iov[i++].iov_len;
    if (i < n_iov) {
        iov[i].iov_base = (char *)iov[i].iov_base + n;
        iov[i].iov_len -= n;
    }
    return i;
}
