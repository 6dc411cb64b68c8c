/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-net.c - the network device: life, features, transmit path (5.1).
 * Frames go to the backend straight from the guest's buffers.
 */
#include "virtio-net.h"

#include <stdlib.h>
#include <string.h>

/* --- transmit (5.1.6.2) ------------------------------------------------------------ */
/* The driver's header as metadata; false when it asks for what was not
 * agreed on or points outside the frame. */
static bool check_header(const struct vnet *n, const struct virtio_net_hdr *h, size_t bytes, struct hvx_net_meta *m)
{
    const struct virtio_dev *d = &n->dev;
    memset(m, 0, sizeof(*m));
    if (h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
        if (!virtio_has(d, VIRTIO_NET_F_CSUM) || (size_t)h->csum_start + h->csum_offset + 2 > bytes)
            return false;
        m->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        m->csum_start = h->csum_start;
        m->csum_offset = h->csum_offset;
    }
    uint8_t gso = h->gso_type & ~VIRTIO_NET_HDR_GSO_ECN;
    if (gso == VIRTIO_NET_HDR_GSO_NONE)
        return true;
    if (!(gso == VIRTIO_NET_HDR_GSO_TCPV4 && virtio_has(d, VIRTIO_NET_F_HOST_TSO4)) &&
        !(gso == VIRTIO_NET_HDR_GSO_TCPV6 && virtio_has(d, VIRTIO_NET_F_HOST_TSO6)))
        return false;
    if (((h->gso_type & VIRTIO_NET_HDR_GSO_ECN) && !virtio_has(d, VIRTIO_NET_F_HOST_ECN)) || h->gso_size == 0 ||
        !m->flags || h->hdr_len > bytes)
        return false;
    m->gso_type = h->gso_type;
    m->gso_size = h->gso_size;
    m->hdr_len = h->hdr_len;
    return true;
}

/* Send one chain. */
static void transmit(struct vnet *n, struct virtqueue *vq)
{
    struct vq_chain *c = &n->tx;
    struct virtio_net_hdr h;
    struct hvx_net_meta meta;
    unsigned header = vnet_header_bytes(n);
    if (c->n_in || c->out_bytes < header) {
        virtio_broken(&n->dev, "queue %u: a frame of %u readable and %u writable bytes", vq->index, c->out_bytes,
                      c->in_bytes);
        return;
    }
    vq_iov_read(c->iov, c->n_out, 0, &h, sizeof(h));
    size_t bytes = c->out_bytes - header;
    if (bytes < ETH_HLEN || bytes > HVX_NET_MAX_FRAME || !check_header(n, &h, bytes, &meta)) {
        n->dev.host->guest_event(n->dev.vm, "virtio-net", "dropped a frame of %zu bytes (flags %#x, segmentation %#x of "
                                 "%u)", bytes, h.flags, h.gso_type, h.gso_size);
    } else {
        unsigned skip = vq_iov_skip(c->iov, c->n_out, header);
        n->dev.host->nic_send(n->nic, c->iov + skip, c->n_out - skip, &meta);
    }
    vq_push(vq, c->token, 0);
}

static void drain_tx(struct vnet *n, struct virtqueue *vq)
{
    unsigned budget = VQ_BUDGET;
    vq_disarm(vq);
    do {
        while (budget && vq_pop(vq, &n->tx) > 0) {
            transmit(n, vq);
            budget--;
        }
    } while (budget && vq_rearm(vq));
    vq_flush(vq);
    if (!budget)
        n->dev.host->timer_set(n->more, n->dev.host->clock_ns());
}

static void vnet_notify(struct virtio_dev *d, struct virtqueue *vq)
{
    struct vnet *n = (struct vnet *)d;
    if (virtio_has(d, VIRTIO_NET_F_CTRL_VQ) && vq->index == vnet_ctrl_index(n)) {
        vnet_control(n, vq);
    } else if (vq->index & 1) {
        drain_tx(n, vq);
    } else if (vq->index < 2 * n->max_pairs) {
        /* Buffers are wanted when frames come, no sooner: no more
         * notifications until one finds no room. */
        vq_disarm(vq);
        d->host->nic_rx_ready(n->nic);
    }
}

static void vnet_more(void *opaque)
{
    struct vnet *n = opaque;
    for (unsigned i = 0; i < n->dev.n_queues; i++)
        if (vq_has_work(&n->dev.queues[i]))
            virtio_notify_queue(&n->dev, i);
}

/* --- features -------------------------------------------------------------------------- */
static bool vnet_features_ok(struct virtio_dev *d)
{
    /* 5.1.3.1: what needs what. */
    static const struct { uint8_t feature, needs; } rules[] = {
        {VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_CSUM}, {VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_CSUM},
        {VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_CSUM},        {VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_CSUM},
        {VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ},       {VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ},
        {VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ},
    };
    for (unsigned i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
        if (virtio_has(d, rules[i].feature) && !virtio_has(d, rules[i].needs))
            return false;
    return true;
}

void vnet_apply_offloads(struct vnet *n)
{
    uint64_t o = n->guest_offloads;
    n->dev.host->nic_set_caps(n->nic, (o & VIRTIO_BIT(VIRTIO_NET_F_GUEST_CSUM) ? HVX_NET_CAN_CSUM : 0) |
                                          (o & VIRTIO_BIT(VIRTIO_NET_F_GUEST_TSO4) ? HVX_NET_CAN_TSO4 : 0) |
                                          (o & VIRTIO_BIT(VIRTIO_NET_F_GUEST_TSO6) ? HVX_NET_CAN_TSO6 : 0));
}

static void vnet_features_set(struct virtio_dev *d)
{
    struct vnet *n = (struct vnet *)d;
    n->guest_offloads = d->features & VNET_GUEST_OFFLOADS;
    vnet_apply_offloads(n);
}

static uint64_t offered_features(const struct vnet *n, bool offloads)
{
    uint64_t f = VIRTIO_BIT(VIRTIO_NET_F_MAC) | VIRTIO_BIT(VIRTIO_NET_F_STATUS) | VIRTIO_BIT(VIRTIO_NET_F_MRG_RXBUF) |
                 VIRTIO_BIT(VIRTIO_NET_F_CTRL_VQ) | VIRTIO_BIT(VIRTIO_NET_F_CTRL_RX) |
                 VIRTIO_BIT(VIRTIO_NET_F_CTRL_RX_EXTRA) | VIRTIO_BIT(VIRTIO_NET_F_CTRL_MAC_ADDR);
    if (offloads)
        f |= VIRTIO_BIT(VIRTIO_NET_F_CSUM) | VIRTIO_BIT(VIRTIO_NET_F_HOST_TSO4) | VIRTIO_BIT(VIRTIO_NET_F_HOST_TSO6) |
             VIRTIO_BIT(VIRTIO_NET_F_HOST_ECN) | VNET_GUEST_OFFLOADS | VIRTIO_BIT(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
    if (n->max_pairs > 1)
        f |= VIRTIO_BIT(VIRTIO_NET_F_MQ);
    return f;
}

static void vnet_config_write(struct virtio_dev *d, unsigned off, const uint8_t *bytes, unsigned k)
{
    struct vnet *n = (struct vnet *)d;
    /* Legacy drivers set the address here, a byte at a time (5.1.4.3). */
    if (virtio_has(d, VIRTIO_F_VERSION_1) || virtio_has(d, VIRTIO_NET_F_CTRL_MAC_ADDR) || off + k > ETH_ALEN)
        return;
    memcpy(d->config + off, bytes, k);
    memcpy(n->mac, d->config, ETH_ALEN);
}

static void vnet_link_changed(void *opaque, bool up)
{
    struct vnet *n = opaque;
    uint16_t status = up ? VIRTIO_NET_S_LINK_UP : 0;
    if (vnet_config(n)->status == status)
        return;
    vnet_config(n)->status = status;
    virtio_config_changed(&n->dev);
}

/* --- life ---------------------------------------------------------------------------------- */
static void vnet_reset(struct virtio_dev *d)
{
    struct vnet *n = (struct vnet *)d;
    n->pairs = 1;
    memcpy(n->mac, n->default_mac, ETH_ALEN);
    memcpy(vnet_config(n)->mac, n->mac, ETH_ALEN);
    vnet_filter_reset(n);
    d->host->timer_set(n->more, ~0ull);
}

static int vnet_state(struct virtio_dev *d, struct hvx_stream *s)
{
    struct vnet *n = (struct vnet *)d;
    uint32_t pairs = n->pairs;
    uint64_t offloads = n->guest_offloads;
    hvx_state_u32(s, &pairs);
    hvx_state_u64(s, &offloads);
    if (hvx_state_error(s))
        return hvx_state_error(s);
    if (pairs < 1 || pairs > n->max_pairs || (offloads & ~(d->features & VNET_GUEST_OFFLOADS))) {
        hvx_state_fail(s, -EINVAL, "the saved queue pairs or offloads are out of range");
        return hvx_state_error(s);
    }
    n->pairs = pairs;
    n->guest_offloads = offloads;
    if (!hvx_stream_is_saving(s))
        vnet_apply_offloads(n);
    return vnet_filter_state(n, s);
}

static void vnet_resume(struct virtio_dev *d)
{
    d->host->timer_set(((struct vnet *)d)->more, d->host->clock_ns());
}

static const struct virtio_ops vnet_ops = {
    .name = "virtio-net",
    .device_id = VIRTIO_ID_NET,
    .legacy_pci = 0x1000,
    .class_code = 0x020000,
    .reset = vnet_reset,
    .features_ok = vnet_features_ok,
    .features_set = vnet_features_set,
    .notify = vnet_notify,
    .config_write = vnet_config_write,
    .state = vnet_state,
    .resume = vnet_resume,
};

static const struct hvx_nic_ops nic_ops = {
    .size = sizeof(struct hvx_nic_ops),
    .receive = vnet_receive,
    .link_changed = vnet_link_changed,
};

static void vnet_destroy(void *dev)
{
    struct vnet *n = dev;
    if (!n)
        return;
    if (n->nic)
        n->dev.host->nic_detach(n->nic);
    if (n->more)
        n->dev.host->timer_del(n->more);
    virtio_destroy(&n->dev);
    free(n);
}

static void fill_config(struct vnet *n, bool offloads)
{
    const struct hvx_host *host = n->dev.host;
    struct virtio_net_config *c = vnet_config(n);
    uint32_t mtu = host->nic_mtu(n->nic);
    host->nic_mac(n->nic, n->default_mac);
    memcpy(n->mac, n->default_mac, ETH_ALEN);
    memcpy(c->mac, n->mac, ETH_ALEN);
    c->max_virtqueue_pairs = n->max_pairs;
    n->dev.offered = offered_features(n, offloads);
    if (mtu >= NET_MIN_MTU && mtu <= UINT16_MAX) {
        c->mtu = mtu;
        n->dev.offered |= VIRTIO_BIT(VIRTIO_NET_F_MTU);
    }
    n->dev.config_bytes = offsetof(struct virtio_net_config, mtu) + sizeof(c->mtu);
}

static int vnet_build(struct vnet *n, const struct hvx_host *host, struct hvx_vm *vm, const struct hvx_config *config,
                      struct hvx_error *err)
{
    uint16_t sizes[2 * NET_PAIRS_MAX + 1];
    const char *netdev = host->conf_string(config, "netdev");
    unsigned size = host->conf_int(config, "queue-size"), n_queues;
    n->dev.host = host;
    n->max_pairs = host->conf_int(config, "queues");
    if (n->max_pairs == 0) {
        struct hvx_guest_info g = {.size = sizeof(g)};
        host->guest_info(vm, &g);
        n->max_pairs = g.n_vcpus == 0 ? 1 : g.n_vcpus < NET_PAIRS_MAX ? g.n_vcpus : NET_PAIRS_MAX;
    }
    n->pairs = 1;
    vnet_filter_reset(n);
    if (size & (size - 1))
        return hvx_fail(err, -EINVAL, "virtio-net: queue-size=%u is not a power of two; try 256", size);
    int r = host->timer_new(vm, vnet_more, n, &n->more);
    if (r < 0)
        return hvx_fail(err, r, "virtio-net: cannot make a timer: %s", strerror(-r));
    vnet_config(n)->status = VIRTIO_NET_S_LINK_UP; /* until the backend says otherwise */
    r = host->nic_attach(vm, netdev ? netdev : "", &nic_ops, n, &n->nic, err);
    if (r < 0) {
        n->nic = NULL;
        return r;
    }
    fill_config(n, host->conf_bool(config, "offloads"));
    n_queues = 2 * n->max_pairs + 1;
    for (unsigned i = 0; i < n_queues; i++)
        sizes[i] = i == n_queues - 1 ? 64 : size;
    return virtio_create(&n->dev, &vnet_ops, host, vm, config, n_queues, sizes, err);
}

static int vnet_create(void *plugin_ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev,
                       struct hvx_error *err)
{
    struct vnet *n = calloc(1, sizeof(*n));
    if (!n)
        return hvx_fail(err, -ENOMEM, "virtio-net: out of memory");
    int r = vnet_build(n, ((const struct virtio_plugin *)plugin_ctx)->host, vm, config, err);
    if (r < 0) {
        vnet_destroy(n);
        return r;
    }
    *dev = n;
    return 0;
}

static void vnet_type_reset(void *dev) { virtio_reset(dev); }
static int vnet_type_state(void *dev, struct hvx_stream *s) { return virtio_state(dev, s); }

static const struct hvx_option vnet_options[] = {
    {.name = "netdev", .type = HVX_OPT_STRING, .flags = HVX_OPTF_REQUIRED, .help = "the network behind it: net0, net1, ..."},
    {.name = "queues", .type = HVX_OPT_INT, .min = 0, .max = NET_PAIRS_MAX, .def = "1",
     .help = "pairs of receive and transmit queues; 0: one for each vCPU, at most 16"},
    {.name = "queue-size", .type = HVX_OPT_INT, .min = 16, .max = NET_QUEUE_SIZE_MAX, .def = "256",
     .help = "entries in each queue, a power of two"},
    {.name = "offloads", .type = HVX_OPT_BOOL, .def = "yes", .help = "offer checksum and segmentation offload"},
    VIRTIO_COMMON_OPTIONS,
    {.name = NULL},
};

const struct hvx_device_type virtio_net_type = {
    .size = sizeof(struct hvx_device_type),
    .role = HVX_ROLE_NIC,
    .rank = 100,
    .version = 1,
    .name = "virtio-net",
    .summary = "virtio network device",
    .options = vnet_options,
    .create = vnet_create,
    .destroy = vnet_destroy,
    .reset = vnet_type_reset,
    .state = vnet_type_state,
};
