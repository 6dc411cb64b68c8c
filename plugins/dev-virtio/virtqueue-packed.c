/* SPDX-License-Identifier: Apache-2.0
 *
 * virtqueue-packed.c - packed rings (virtio 1.2, section 2.8).
 *
 * One ring of descriptors serves both directions. A descriptor belongs to the
 * device when its AVAIL flag equals the device's avail wrap counter and its
 * USED flag does not; a used one has both equal to the used wrap counter. A
 * chain occupies consecutive ring entries; its used entry is written at the
 * used position, which then skips as many entries as the chain took.
 */
#include <linux/virtio_ring.h>
#include <string.h>

#include "virtio.h"
#include "virtqueue.h"

#define DESC_AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define DESC_USED (1u << VRING_PACKED_DESC_F_USED)
#define EVENT_WRAP_SHIFT VRING_PACKED_EVENT_F_WRAP_CTR

void vq_packed_init(struct virtqueue *vq)
{
    vq->last_avail = vq->used_idx = 0;
    vq->avail_wrap = vq->used_wrap = true; /* 2.8.1: both counters start at one */
}

/* Flags of the entry at pos. Acquire: the rest of the entry is read after
 * them; pairs with the driver's write barrier before it stores them. */
static uint16_t read_flags(const struct virtqueue *vq, uint16_t pos)
{
    return __atomic_load_n(&vq->pdesc[pos].flags, __ATOMIC_ACQUIRE);
}

static bool is_available(uint16_t flags, bool wrap)
{
    return !!(flags & DESC_AVAIL) == wrap && !!(flags & DESC_USED) != wrap;
}

bool vq_packed_has_work(struct virtqueue *vq)
{
    return is_available(read_flags(vq, vq->last_avail), vq->avail_wrap);
}

static void advance(struct virtqueue *vq, uint16_t *pos, bool *wrap, uint16_t n)
{
    *pos += n;
    if (*pos >= vq->size) {
        *pos -= vq->size;
        *wrap = !*wrap;
    }
}

static int pop_indirect(struct virtqueue *vq, struct vq_chain *chain, const struct vring_packed_desc *d)
{
    struct virtio_dev *dev = vq->dev;
    unsigned n = d->len / sizeof(*d);
    if (!vq->indirect || (d->flags & VRING_DESC_F_NEXT) || n == 0 || d->len % sizeof(*d) || n > VQ_CHAIN_MAX) {
        virtio_broken(dev, "queue %u: an indirect descriptor with flags %#x and %u bytes", vq->index, d->flags, d->len);
        return -1;
    }
    size_t bytes = d->len;
    const struct vring_packed_desc *table = dev->host->mem_ptr(dev->vm, d->addr, &bytes);
    if (!table || bytes < d->len) {
        virtio_broken(dev, "queue %u: the indirect table at %#llx is not in one piece of RAM", vq->index,
                      (unsigned long long)d->addr);
        return -1;
    }
    for (unsigned i = 0; i < n; i++) {
        struct vring_packed_desc e;
        memcpy(&e, &table[i], sizeof(e)); /* one copy: the guest may change the original */
        __asm__ volatile("" ::: "memory");
        if (e.flags & VRING_DESC_F_INDIRECT) {
            virtio_broken(dev, "queue %u: an indirect descriptor inside an indirect table", vq->index);
            return -1;
        }
        if (vq_chain_add(vq, chain, e.addr, e.len, e.flags & VRING_DESC_F_WRITE))
            return -1;
    }
    return 0;
}

int vq_packed_pop(struct virtqueue *vq, struct vq_chain *chain)
{
    uint16_t pos = vq->last_avail, n = 0;
    bool wrap = vq->avail_wrap;
    if (!is_available(read_flags(vq, pos), wrap))
        return 0;
    for (;;) {
        if (vq->inflight + n >= vq->size || n == VQ_CHAIN_MAX) {
            virtio_broken(vq->dev, "queue %u: a chain is too long (%u in flight, size %u)", vq->index, vq->inflight,
                          vq->size);
            return -1;
        }
        /* The driver makes the head available last, so the rest of the chain
         * is complete by now. */
        struct vring_packed_desc d;
        memcpy(&d, &vq->pdesc[pos], sizeof(d));
        __asm__ volatile("" ::: "memory");
        n++;
        advance(vq, &pos, &wrap, 1);
        if (d.flags & VRING_DESC_F_INDIRECT) {
            if (n > 1) {
                virtio_broken(vq->dev, "queue %u: an indirect descriptor inside a chain", vq->index);
                return -1;
            }
            if (pop_indirect(vq, chain, &d) < 0)
                return -1;
        } else if (vq_chain_add(vq, chain, d.addr, d.len, d.flags & VRING_DESC_F_WRITE)) {
            return -1;
        }
        chain->token.id = d.id; /* the last one's counts (2.8.6) */
        if (!(d.flags & VRING_DESC_F_NEXT))
            break;
    }
    chain->token.n_ring = n;
    vq->last_avail = pos;
    vq->avail_wrap = wrap;
    vq->inflight += n;
    return 1;
}

void vq_packed_unpop(struct virtqueue *vq, struct vq_token t)
{
    vq->inflight -= t.n_ring;
    if (vq->last_avail < t.n_ring) {
        vq->last_avail += vq->size;
        vq->avail_wrap = !vq->avail_wrap;
    }
    vq->last_avail -= t.n_ring;
}

void vq_packed_push(struct virtqueue *vq, struct vq_token t, uint32_t used_len)
{
    struct vring_packed_desc *d = &vq->pdesc[vq->used_idx];
    uint16_t flags = (vq->used_wrap ? DESC_AVAIL | DESC_USED : 0) | (used_len ? VRING_DESC_F_WRITE : 0);
    d->id = t.id;
    d->len = used_len;
    if (vq->n_pending == 0) {
        /* The first entry's flags hide the whole batch; published last. */
        vq->first_pos = vq->used_idx;
        vq->first_flags = flags;
    } else {
        __atomic_store_n(&d->flags, flags, __ATOMIC_RELEASE); /* after id and len */
    }
    vq->n_pending += t.n_ring;
    vq->inflight -= t.n_ring;
    advance(vq, &vq->used_idx, &vq->used_wrap, t.n_ring);
}

/* Make the pending entries visible; true when the driver wants an interrupt. */
bool vq_packed_publish(struct virtqueue *vq)
{
    uint16_t new = vq->used_idx, old = new - vq->n_pending; /* may be "negative": 16-bit arithmetic is meant */
    /* Release: all entries of the batch before the flags that reveal them. */
    __atomic_store_n(&vq->pdesc[vq->first_pos].flags, vq->first_flags, __ATOMIC_RELEASE);
    vq->n_pending = 0;
    /* Full barrier: entries visible before the driver's wish is read, as in split_publish(). */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint16_t flags = __atomic_load_n(&vq->driver_event->flags, __ATOMIC_ACQUIRE);
    if (flags == VRING_PACKED_EVENT_FLAG_DISABLE)
        return false;
    if (flags != VRING_PACKED_EVENT_FLAG_DESC || !vq->event_idx)
        return true;
    uint16_t off_wrap = __atomic_load_n(&vq->driver_event->off_wrap, __ATOMIC_RELAXED);
    uint16_t event = off_wrap & ((1u << EVENT_WRAP_SHIFT) - 1);
    if ((off_wrap >> EVENT_WRAP_SHIFT) != vq->used_wrap)
        event -= vq->size;
    return vring_need_event(event, new, old);
}

void vq_packed_disarm(struct virtqueue *vq)
{
    __atomic_store_n(&vq->device_event->flags, VRING_PACKED_EVENT_FLAG_DISABLE, __ATOMIC_RELAXED);
}

bool vq_packed_rearm(struct virtqueue *vq)
{
    uint16_t flags = VRING_PACKED_EVENT_FLAG_ENABLE;
    if (vq->event_idx) {
        __atomic_store_n(&vq->device_event->off_wrap,
                         (uint16_t)(vq->last_avail | (vq->avail_wrap ? 1u << EVENT_WRAP_SHIFT : 0)), __ATOMIC_RELAXED);
        flags = VRING_PACKED_EVENT_FLAG_DESC;
    }
    __atomic_store_n(&vq->device_event->flags, flags, __ATOMIC_RELEASE); /* after off_wrap */
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* as in vq_rearm() */
    return vq_packed_has_work(vq);
}

void vq_packed_arm_next(struct virtqueue *vq)
{
    __atomic_store_n(&vq->device_event->flags, VRING_PACKED_EVENT_FLAG_ENABLE, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* as in vq_rearm() */
}
