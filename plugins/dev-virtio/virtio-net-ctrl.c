/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-net-ctrl.c - the network device's control queue: receive filter,
 * MAC addresses, offloads, number of queue pairs (5.1.6.5).
 */
#include <string.h>

#include "virtio-net.h"

struct command {
    struct virtio_net_ctrl_hdr h;
    const struct iovec *iov; /* what follows the header */
    unsigned n_iov;
    size_t bytes;
};

static bool argument(const struct command *c, void *buf, size_t n)
{
    return c->bytes >= n && vq_iov_read(c->iov, c->n_iov, 0, buf, n) == n;
}

static bool rx_mode(struct vnet *n, const struct command *c)
{
    uint8_t on;
    if (!virtio_has(&n->dev, VIRTIO_NET_F_CTRL_RX) || !argument(c, &on, 1))
        return false;
    if (c->h.cmd > VIRTIO_NET_CTRL_RX_ALLMULTI && !virtio_has(&n->dev, VIRTIO_NET_F_CTRL_RX_EXTRA))
        return false;
    switch (c->h.cmd) {
    case VIRTIO_NET_CTRL_RX_PROMISC: n->promisc = on; return true;
    case VIRTIO_NET_CTRL_RX_ALLMULTI: n->allmulti = on; return true;
    case VIRTIO_NET_CTRL_RX_ALLUNI: n->alluni = on; return true;
    case VIRTIO_NET_CTRL_RX_NOMULTI: n->nomulti = on; return true;
    case VIRTIO_NET_CTRL_RX_NOUNI: n->nouni = on; return true;
    case VIRTIO_NET_CTRL_RX_NOBCAST: n->nobcast = on; return true;
    }
    return false;
}

/* One list of a MAC table: a count and that many addresses. Advances *off;
 * a list that does not fit sets *overflow instead. */
static bool mac_list(const struct command *c, size_t *off, uint8_t (*macs)[ETH_ALEN], uint32_t room, uint32_t *count,
                     bool *overflow)
{
    uint32_t n;
    if (vq_iov_read(c->iov, c->n_iov, *off, &n, sizeof(n)) != sizeof(n))
        return false;
    *off += sizeof(n);
    if (n > (c->bytes - *off) / ETH_ALEN)
        return false;
    *overflow = n > room;
    *count = *overflow ? 0 : n;
    vq_iov_read(c->iov, c->n_iov, *off, macs, (size_t)*count * ETH_ALEN);
    *off += (size_t)n * ETH_ALEN;
    return true;
}

static bool mac_table(struct vnet *n, const struct command *c)
{
    uint8_t macs[NET_MAC_TABLE][ETH_ALEN];
    uint32_t n_uni, n_multi;
    bool uni_overflow, multi_overflow;
    size_t off = 0;
    if (c->bytes > NET_CTRL_BYTES_MAX || !virtio_has(&n->dev, VIRTIO_NET_F_CTRL_RX) ||
        !mac_list(c, &off, macs, NET_MAC_TABLE, &n_uni, &uni_overflow) ||
        !mac_list(c, &off, macs + n_uni, NET_MAC_TABLE - n_uni, &n_multi, &multi_overflow))
        return false;
    memcpy(n->macs, macs, (size_t)(n_uni + n_multi) * ETH_ALEN);
    n->n_uni = n_uni;
    n->n_macs = n_uni + n_multi;
    n->uni_overflow = uni_overflow;
    n->multi_overflow = multi_overflow;
    return true;
}

static bool mac_address(struct vnet *n, const struct command *c)
{
    uint8_t mac[ETH_ALEN];
    if (!virtio_has(&n->dev, VIRTIO_NET_F_CTRL_MAC_ADDR) || c->bytes != ETH_ALEN || !argument(c, mac, ETH_ALEN))
        return false;
    memcpy(n->mac, mac, ETH_ALEN);
    memcpy(vnet_config(n)->mac, mac, ETH_ALEN);
    return true;
}

static bool queue_pairs(struct vnet *n, const struct command *c)
{
    struct virtio_net_ctrl_mq mq;
    if (!virtio_has(&n->dev, VIRTIO_NET_F_MQ) || c->h.cmd != VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET ||
        !argument(c, &mq, sizeof(mq)) || mq.virtqueue_pairs < 1 || mq.virtqueue_pairs > n->max_pairs)
        return false;
    n->pairs = mq.virtqueue_pairs;
    return true;
}

static bool offloads(struct vnet *n, const struct command *c)
{
    uint64_t v;
    if (!virtio_has(&n->dev, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) || c->h.cmd != VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET ||
        !argument(c, &v, sizeof(v)) || (v & ~(n->dev.features & VNET_GUEST_OFFLOADS)))
        return false;
    n->guest_offloads = v;
    vnet_apply_offloads(n);
    return true;
}

static bool run(struct vnet *n, const struct command *c)
{
    switch (c->h.class) {
    case VIRTIO_NET_CTRL_RX: return rx_mode(n, c);
    case VIRTIO_NET_CTRL_MAC:
        if (c->h.cmd == VIRTIO_NET_CTRL_MAC_TABLE_SET)
            return mac_table(n, c);
        return c->h.cmd == VIRTIO_NET_CTRL_MAC_ADDR_SET && mac_address(n, c);
    case VIRTIO_NET_CTRL_MQ: return queue_pairs(n, c);
    case VIRTIO_NET_CTRL_GUEST_OFFLOADS: return offloads(n, c);
    }
    return false;
}

void vnet_control(struct vnet *n, struct virtqueue *vq)
{
    struct vq_chain *c = &n->ctrl;
    unsigned budget = VQ_BUDGET;
    do {
        while (budget && vq_pop(vq, c) > 0) {
            struct command cmd;
            if (c->out_bytes < sizeof(cmd.h) || c->in_bytes < 1) {
                virtio_broken(&n->dev, "queue %u: a control command of %u readable and %u writable bytes", vq->index,
                              c->out_bytes, c->in_bytes);
                return;
            }
            vq_iov_read(c->iov, c->n_out, 0, &cmd.h, sizeof(cmd.h));
            unsigned skip = vq_iov_skip(c->iov, c->n_out, sizeof(cmd.h));
            cmd.iov = c->iov + skip;
            cmd.n_iov = c->n_out - skip;
            cmd.bytes = c->out_bytes - sizeof(cmd.h);
            uint8_t ack = run(n, &cmd) ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
            vq_iov_write(c->iov + c->n_out, c->n_in, 0, &ack, 1);
            vq_chain_dirty(vq, c, 1);
            vq_push(vq, c->token, 1);
            budget--;
        }
    } while (budget && vq_rearm(vq));
    vq_flush(vq);
    if (!budget)
        n->dev.host->timer_set(n->more, n->dev.host->clock_ns());
}

void vnet_filter_reset(struct vnet *n)
{
    /* Everything passes until the driver asks for less; one without CTRL_RX
     * filters by itself. */
    n->promisc = true;
    n->allmulti = n->alluni = n->nomulti = n->nouni = n->nobcast = false;
    n->uni_overflow = n->multi_overflow = false;
    n->n_uni = n->n_macs = 0;
}

int vnet_filter_state(struct vnet *n, struct hvx_stream *s)
{
    bool *flags[] = {&n->promisc, &n->allmulti, &n->alluni, &n->nomulti,
                     &n->nouni, &n->nobcast, &n->uni_overflow, &n->multi_overflow};
    for (unsigned i = 0; i < sizeof(flags) / sizeof(flags[0]); i++)
        hvx_state_bool(s, flags[i]);
    uint32_t n_uni = n->n_uni, n_macs = n->n_macs;
    hvx_state_u32(s, &n_uni);
    hvx_state_u32(s, &n_macs);
    if (hvx_state_error(s))
        return hvx_state_error(s);
    if (n_macs > NET_MAC_TABLE || n_uni > n_macs) {
        hvx_state_fail(s, -EINVAL, "the saved MAC table is larger than there can be");
        return hvx_state_error(s);
    }
    n->n_uni = n_uni;
    n->n_macs = n_macs;
    hvx_state_bytes(s, n->macs, (size_t)n_macs * ETH_ALEN);
    hvx_state_bytes(s, n->mac, ETH_ALEN);
    return hvx_state_error(s);
}
