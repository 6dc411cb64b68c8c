/* SPDX-License-Identifier: Apache-2.0
 *
 * virtqueue.h - the device's side of a virtqueue (virtio 1.2, sections 2.6 to
 * 2.8; split and packed rings).
 *
 * Life of a queue: the transport sets size and the three addresses and calls
 * vq_enable(), which translates the rings to host pointers once. From then on
 *
 *     while (vq_pop(vq, chain) > 0) {
 *         ... use chain->iov: first n_out readable, then n_in writable ...
 *         vq_push(vq, chain->token, bytes_written);
 *     }
 *     vq_flush(vq);
 *
 * A chain may be pushed later and in any order; vq_unpop() gives back the one
 * popped last. vq_flush() publishes what was pushed and interrupts the guest
 * if it wants that.
 *
 * The guest may write anything into its rings at any time. Each descriptor is
 * copied once and then judged; every index, count and length is compared with
 * a named limit. Whatever cannot be served marks the device broken
 * (virtio_broken): it then ignores its queues until the driver resets it.
 *
 * Locking: the VM lock, held by all callers.
 */
#ifndef DEV_VIRTIO_VIRTQUEUE_H
#define DEV_VIRTIO_VIRTQUEUE_H

#include <hvx/host.h>

struct virtio_dev;

#define VQ_SIZE_MAX 1024u   /* largest ring a device may offer */
#define VQ_CHAIN_MAX 258u   /* descriptors in one chain: seg_max 254 of the largest block request, header, status, spare */
#define VQ_IOV_MAX 264u     /* a buffer that crosses a border between RAM regions takes one more */
#define VQ_INDIRECT_MAX 1024u /* entries of an indirect table */
#define VQ_CHAIN_BYTES_MAX (1u << 30)
#define VQ_NO_VECTOR 0xffffu
#define VQ_ARM_TRIES 64u
#define VQ_BUDGET 256u /* chains handled per notification before others get the VM lock */

/* What a popped chain must be given back with. */
struct vq_token {
    uint16_t id;     /* split: head index; packed: buffer id */
    uint16_t n_ring; /* packed: descriptors taken from the ring */
};

/* One descriptor chain, as host memory. Large: lives in preallocated requests, not on stacks. */
struct vq_chain {
    struct vq_token token;
    uint16_t n_out, n_in;
    uint32_t out_bytes, in_bytes;
    struct iovec iov[VQ_IOV_MAX];     /* n_out readable ones, then n_in writable ones */
    uint64_t in_gpa[VQ_IOV_MAX];      /* gpa of iov[n_out + i] */
};

struct vring_desc;
struct vring_avail;
struct vring_used;
struct vring_packed_desc;
struct vring_packed_desc_event;

struct virtqueue {
    struct virtio_dev *dev;
    uint16_t index;
    uint16_t max_size; /* offered by the device; 0: no such queue */
    uint16_t size;     /* chosen by the driver */
    uint16_t vector;   /* MSI-X vector or VQ_NO_VECTOR */
    bool enabled;
    bool packed, event_idx, indirect; /* negotiated */
    /* split: descriptor table, available ring, used ring;
     * packed: descriptor ring, driver event suppression, device event suppression */
    uint64_t desc_gpa, avail_gpa, used_gpa;
    union {
        struct vring_desc *desc;
        struct vring_packed_desc *pdesc;
    };
    union {
        struct vring_avail *avail;
        const struct vring_packed_desc_event *driver_event;
    };
    union {
        struct vring_used *used;
        struct vring_packed_desc_event *device_event;
    };
    uint16_t last_avail; /* next entry to take; packed: ring position */
    uint16_t used_idx;   /* next entry to fill; packed: ring position */
    uint16_t n_pending;  /* filled, not yet published */
    uint16_t inflight;   /* popped, not yet pushed; packed: in descriptors */
    uint16_t signalled;  /* used index at the last interrupt */
    bool signalled_valid;
    bool avail_wrap, used_wrap; /* packed */
    uint16_t first_flags;       /* packed: flags of the first pending entry, written last */
    uint16_t first_pos;
    uint32_t generation; /* counts resets: tells requests of an earlier life apart */
};

/* Bytes of each ring for a queue of n entries (2.7, with the event words). */
static inline uint64_t vq_desc_bytes(unsigned n) { return 16ull * n; }
static inline uint64_t vq_avail_bytes(unsigned n) { return 6ull + 2ull * n; }
static inline uint64_t vq_used_bytes(unsigned n) { return 6ull + 8ull * n; }

void vq_init(struct virtqueue *vq, struct virtio_dev *dev, uint16_t index, uint16_t max_size);
/* Back to the state after vq_init. */
void vq_reset(struct virtqueue *vq);
/* Translate the rings. 0, or -EINVAL with the reason in *why. */
HVX_WUR int vq_enable(struct virtqueue *vq, const char **why);

/* 1: chain filled; 0: nothing there; -1: the device is broken now. */
HVX_WUR int vq_pop(struct virtqueue *vq, struct vq_chain *chain);
void vq_unpop(struct virtqueue *vq, struct vq_token t); /* in reverse order of popping */
bool vq_has_work(struct virtqueue *vq);
/* used_len: bytes written, counted from the start of the writable part. */
void vq_push(struct virtqueue *vq, struct vq_token t, uint32_t used_len);
void vq_flush(struct virtqueue *vq);
/* Tell the engine about guest memory written through the chain's iov. */
void vq_chain_dirty(struct virtqueue *vq, const struct vq_chain *chain, uint32_t n);

/* Ask the driver not to notify while the queue is being drained anyway. */
void vq_disarm(struct virtqueue *vq);
/* Ask for notifications again; true when something arrived meanwhile. */
HVX_WUR bool vq_rearm(struct virtqueue *vq);
/* Ask for a notification at the next addition, although chains may be waiting
 * already (too few for a large frame). Look once more afterwards. */
void vq_arm_next(struct virtqueue *vq);

int vq_state(struct virtqueue *vq, struct hvx_stream *s);

/* --- scatter-gather helpers ---------------------------------------------- */
/* Copy between a vector and a buffer, from byte `off` of the vector; returns
 * how much was there. */
size_t vq_iov_read(const struct iovec *iov, unsigned n_iov, size_t off, void *buf, size_t n);
size_t vq_iov_write(const struct iovec *iov, unsigned n_iov, size_t off, const void *buf, size_t n);
/* Drop the first n bytes of a vector in place; returns the index of the first
 * entry left (n_iov when nothing is left). */
unsigned vq_iov_skip(struct iovec *iov, unsigned n_iov, size_t n);
size_t vq_iov_bytes(const struct iovec *iov, unsigned n_iov);

/* Internal to the ring formats. */
int vq_chain_add(struct virtqueue *vq, struct vq_chain *chain, uint64_t gpa, uint32_t len, bool writable);
void vq_packed_init(struct virtqueue *vq);
int vq_packed_pop(struct virtqueue *vq, struct vq_chain *chain);
void vq_packed_unpop(struct virtqueue *vq, struct vq_token t);
bool vq_packed_has_work(struct virtqueue *vq);
void vq_packed_push(struct virtqueue *vq, struct vq_token t, uint32_t used_len);
bool vq_packed_publish(struct virtqueue *vq);
void vq_packed_disarm(struct virtqueue *vq);
bool vq_packed_rearm(struct virtqueue *vq);
void vq_packed_arm_next(struct virtqueue *vq);
#endif
