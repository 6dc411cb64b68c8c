/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-net-rx.c - frames for the guest: filter, steering, and the copy into
 * receive buffers, joined when the driver takes mergeable ones (5.1.6.4).
 */
#include <string.h>

#include "virtio-net.h"

static bool listed(const struct vnet *n, const uint8_t *mac, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++)
        if (memcmp(n->macs[i], mac, ETH_ALEN) == 0)
            return true;
    return false;
}

static bool wanted(const struct vnet *n, const uint8_t *mac)
{
    static const uint8_t broadcast[ETH_ALEN] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    if (n->promisc)
        return true;
    if (memcmp(mac, broadcast, ETH_ALEN) == 0)
        return !n->nobcast;
    if (mac[0] & 1)
        return !n->nomulti && (n->allmulti || n->multi_overflow || listed(n, mac, n->n_uni, n->n_macs));
    return !n->nouni && (n->alluni || n->uni_overflow || memcmp(mac, n->mac, ETH_ALEN) == 0 ||
                         listed(n, mac, 0, n->n_uni));
}

/* Frames of one flow stay on one queue, whatever the flow is made of. */
static unsigned steer(const struct vnet *n, const uint8_t *head, size_t bytes)
{
    if (n->pairs <= 1)
        return 0;
    uint32_t h = 2166136261u;
    unsigned from = 0, to = 12; /* the MAC addresses */
    uint16_t type = head[12] << 8 | head[13];
    if (type == ETH_P_IP && bytes >= 38) {
        /* Addresses, and the ports behind a plain header of an unfragmented packet. */
        bool ports = head[14] == 0x45 && !((head[20] << 8 | head[21]) & 0x3fff) && (head[23] == 6 || head[23] == 17);
        from = 26;
        to = ports ? 38 : 34;
    } else if (type == ETH_P_IPV6 && bytes >= 58) {
        from = 22;
        to = head[20] == 6 || head[20] == 17 ? 58 : 54;
    }
    for (unsigned i = from; i < to; i++)
        h = (h ^ head[i]) * 16777619u;
    h ^= h >> 16;
    return h % n->pairs;
}

/* The header for the guest. False: the guest cannot take such a frame; it was
 * under way while the offloads were switched off. */
static bool make_header(const struct vnet *n, const struct hvx_net_meta *meta, struct virtio_net_hdr *h)
{
    uint64_t can = n->guest_offloads;
    bool csum = can & VIRTIO_BIT(VIRTIO_NET_F_GUEST_CSUM);
    memset(h, 0, sizeof(*h));
    if (!meta)
        return true;
    uint8_t gso = meta->gso_type & ~VIRTIO_NET_HDR_GSO_ECN;
    if (meta->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
        if (!csum)
            return false;
        h->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        h->csum_start = meta->csum_start;
        h->csum_offset = meta->csum_offset;
    } else if (csum && (meta->flags & VIRTIO_NET_HDR_F_DATA_VALID)) {
        h->flags = VIRTIO_NET_HDR_F_DATA_VALID;
    }
    if (gso == VIRTIO_NET_HDR_GSO_NONE)
        return true;
    if (!(gso == VIRTIO_NET_HDR_GSO_TCPV4 && (can & VIRTIO_BIT(VIRTIO_NET_F_GUEST_TSO4))) &&
        !(gso == VIRTIO_NET_HDR_GSO_TCPV6 && (can & VIRTIO_BIT(VIRTIO_NET_F_GUEST_TSO6))))
        return false;
    h->gso_type = gso;
    if (can & VIRTIO_BIT(VIRTIO_NET_F_GUEST_ECN))
        h->gso_type |= meta->gso_type & VIRTIO_NET_HDR_GSO_ECN;
    h->gso_size = meta->gso_size;
    h->hdr_len = meta->hdr_len;
    return true;
}

/* A place in a source vector. */
struct cursor {
    const struct iovec *iov;
    unsigned n;
    size_t off;
};

static void copy_some(struct cursor *src, const struct iovec *dst, unsigned n_dst, size_t dst_off, size_t bytes)
{
    while (bytes && src->n) {
        size_t k = src->iov->iov_len - src->off;
        if (k > bytes)
            k = bytes;
        vq_iov_write(dst, n_dst, dst_off, (const char *)src->iov->iov_base + src->off, k);
        dst_off += k;
        bytes -= k;
        src->off += k;
        if (src->off == src->iov->iov_len) {
            src->iov++;
            src->n--;
            src->off = 0;
        }
    }
}

struct used_buffer {
    struct vq_token token;
    uint32_t bytes;
};

/* Take one more receive buffer and fill it from the frame; -1: none to be had. */
static int fill_buffer(struct virtqueue *vq, struct vq_chain *c, struct cursor *src, unsigned header, size_t *left,
                       struct used_buffer *used)
{
    if (vq_pop(vq, c) <= 0)
        return -1;
    if (c->n_out || c->in_bytes <= header) {
        virtio_broken(vq->dev, "queue %u: a receive buffer with %u readable and %u writable bytes", vq->index,
                      c->out_bytes, c->in_bytes);
        return -1;
    }
    size_t bytes = c->in_bytes - header < *left ? c->in_bytes - header : *left;
    copy_some(src, c->iov, c->n_in, header, bytes);
    vq_chain_dirty(vq, c, header + bytes);
    *used = (struct used_buffer){c->token, header + bytes};
    *left -= bytes;
    return 0;
}

enum verdict { DELIVERED, NO_ROOM, DROPPED };

static enum verdict deliver(struct vnet *n, struct virtqueue *vq, const struct virtio_net_hdr *h,
                            const struct iovec *iov, unsigned n_iov, size_t bytes)
{
    struct used_buffer used[NET_MERGE_MAX];
    struct cursor src = {iov, n_iov, 0};
    unsigned header = vnet_header_bytes(n), count = 0;
    bool merge = virtio_has(&n->dev, VIRTIO_NET_F_MRG_RXBUF);
    size_t left = bytes;
    enum verdict v = DELIVERED;
    do {
        if (count && (!merge || count == NET_MERGE_MAX)) {
            v = DROPPED; /* the driver's buffers are too small for this frame */
            break;
        }
        if (fill_buffer(vq, count ? &n->rx_rest : &n->rx_first, &src, count ? 0 : header, &left, &used[count]) < 0) {
            v = NO_ROOM;
            break;
        }
        count++;
    } while (left);
    if (v != DELIVERED) {
        if (n->dev.broken)
            return DROPPED;
        while (count)
            vq_unpop(vq, used[--count].token);
        return v;
    }
    struct virtio_net_hdr_mrg_rxbuf full = {.hdr = *h, .num_buffers = count};
    vq_iov_write(n->rx_first.iov, n->rx_first.n_in, 0, &full, header);
    for (unsigned i = 0; i < count; i++)
        vq_push(vq, used[i].token, used[i].bytes);
    vq_flush(vq);
    return DELIVERED;
}

int vnet_receive(void *opaque, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta)
{
    struct vnet *n = opaque;
    struct virtio_dev *d = &n->dev;
    uint8_t head[58];
    struct virtio_net_hdr h;
    size_t bytes = vq_iov_bytes(iov, n_iov), n_head = vq_iov_read(iov, n_iov, 0, head, sizeof(head));
    if (!virtio_running(d) || !(d->status & VIRTIO_CONFIG_S_DRIVER_OK))
        return 1; /* as a card whose driver is not up */
    if (bytes < ETH_HLEN || bytes > HVX_NET_MAX_FRAME || !wanted(n, head) || !make_header(n, meta, &h))
        return 1;
    struct virtqueue *vq = &d->queues[2 * steer(n, head, n_head)];
    if (!vq->enabled)
        vq = &d->queues[0];
    if (!vq->enabled)
        return 1;
    if (deliver(n, vq, &h, iov, n_iov, bytes) != NO_ROOM)
        return 1;
    /* Ask to hear of the next buffers, then look again: some may have come
     * in between. */
    vq_arm_next(vq);
    return deliver(n, vq, &h, iov, n_iov, bytes) != NO_ROOM;
}
