/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-net.h - the network device's own state, shared by its life
 * (virtio-net.c), receive path (virtio-net-rx.c) and control queue
 * (virtio-net-ctrl.c). Virtio 1.2, section 5.1.
 */
#ifndef DEV_VIRTIO_NET_H
#define DEV_VIRTIO_NET_H

#include <linux/if_ether.h>
#include <linux/virtio_net.h>

#include "virtio.h"

#define NET_QUEUE_SIZE_MAX VQ_SIZE_MAX
#define NET_PAIRS_MAX 16u
#define NET_MAC_TABLE 64u  /* addresses kept; more switch the filter off for that kind */
#define NET_MERGE_MAX 64u  /* receive buffers joined for one frame */
#define NET_CTRL_BYTES_MAX (8u + 2u * NET_MAC_TABLE * ETH_ALEN * 4u) /* longest control command looked at */
#define NET_MIN_MTU 68u

struct vnet {
    struct virtio_dev dev; /* first */
    struct hvx_nic *nic;
    struct hvx_timer *more; /* goes on with transmit queues that used up their budget */
    unsigned max_pairs, pairs;
    uint8_t default_mac[ETH_ALEN], mac[ETH_ALEN];
    uint64_t guest_offloads; /* VIRTIO_NET_F_GUEST_* bits in force */
    /* Receive filter (5.1.6.5.1, 5.1.6.5.2). */
    bool promisc, allmulti, alluni, nomulti, nouni, nobcast;
    bool uni_overflow, multi_overflow;
    uint32_t n_uni, n_macs; /* unicast addresses first */
    uint8_t macs[NET_MAC_TABLE][ETH_ALEN];
    /* A backend may answer from inside nic_send(), so transmit and receive
     * need chains of their own. */
    struct vq_chain tx, rx_first, rx_rest, ctrl;
};

static inline struct virtio_net_config *vnet_config(struct vnet *n)
{
    return (struct virtio_net_config *)(void *)n->dev.config;
}

/* 5.1.6.1: num_buffers is there in the modern header always, in the legacy
 * one with mergeable buffers only. */
static inline unsigned vnet_header_bytes(const struct vnet *n)
{
    bool merge = virtio_has(&n->dev, VIRTIO_F_VERSION_1) || virtio_has(&n->dev, VIRTIO_NET_F_MRG_RXBUF);
    return merge ? sizeof(struct virtio_net_hdr_mrg_rxbuf) : sizeof(struct virtio_net_hdr);
}

/* Virtqueue numbers (5.1.2). */
static inline unsigned vnet_ctrl_index(const struct vnet *n)
{
    return virtio_has(&n->dev, VIRTIO_NET_F_MQ) ? 2 * n->max_pairs : 2;
}

#define VNET_GUEST_OFFLOADS                                                                          \
    (VIRTIO_BIT(VIRTIO_NET_F_GUEST_CSUM) | VIRTIO_BIT(VIRTIO_NET_F_GUEST_TSO4) |                     \
     VIRTIO_BIT(VIRTIO_NET_F_GUEST_TSO6) | VIRTIO_BIT(VIRTIO_NET_F_GUEST_ECN))

/* Tell the backend what the guest can take now. */
void vnet_apply_offloads(struct vnet *n);
int vnet_receive(void *opaque, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta);
void vnet_control(struct vnet *n, struct virtqueue *vq);
void vnet_filter_reset(struct vnet *n);
int vnet_filter_state(struct vnet *n, struct hvx_stream *s);
#endif
