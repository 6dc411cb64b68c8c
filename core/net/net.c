/* SPDX-License-Identifier: Apache-2.0
 *
 * net.c - the port between a guest's NIC and a back end: software help for
 * frames that the other side cannot take, and a bounded queue towards the
 * guest. Everything runs with the VM lock held.
 *
 * A back end may answer from inside send (libslirp does: ARP, ICMP). Such
 * frames go through the queue and reach the guest from the loop, so that a
 * device never sees receive() in the middle of its own transmission.
 */
#define _GNU_SOURCE
#include "core/image/sg.h"
#include "core/net/csum.h"
#include "core/net/gso.h"
#include "core/net/port.h"

#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* --- the queue -------------------------------------------------------------- */
struct record {
    uint32_t bytes;
    struct hvx_net_meta meta;
    uint16_t pad;
};

static size_t record_size(size_t bytes)
{
    return (sizeof(struct record) + bytes + 7) & ~(size_t)7;
}

static bool queue_put(struct hvx_net_queue *q, const struct iovec *iov, unsigned n_iov, size_t bytes,
                      const struct hvx_net_meta *meta)
{
    uint32_t need = (uint32_t)record_size(bytes);
    if (!q->n)
        q->head = q->tail = q->end = 0;
    bool wrapped = q->n && q->tail <= q->head;
    if (!wrapped && q->tail + need > HVX_NET_QUEUE_BYTES) {
        if (need > q->head)
            return false;
        q->end = q->tail;
        q->tail = 0;
    } else if (wrapped && q->tail + need > q->head) {
        return false;
    }
    struct record r = {.bytes = (uint32_t)bytes, .meta = *meta};
    memcpy(q->bytes + q->tail, &r, sizeof(r));
    hvx_sg_take(hvx_sg_of(iov, n_iov), q->bytes + q->tail + sizeof(r), bytes);
    q->tail += need;
    q->n++;
    return true;
}

static void queue_peek(struct hvx_net_queue *q, struct record *r, struct iovec *v)
{
    memcpy(r, q->bytes + q->head, sizeof(*r));
    v->iov_base = q->bytes + q->head + sizeof(*r);
    v->iov_len = r->bytes;
}

static void queue_drop_first(struct hvx_net_queue *q, const struct record *r)
{
    q->head += (uint32_t)record_size(r->bytes);
    q->n--;
    if (q->end && q->head == q->end) {
        q->head = 0;
        q->end = 0;
    }
}

/* --- towards the guest --------------------------------------------------------- */
static size_t total_bytes(const struct iovec *iov, unsigned n)
{
    size_t sum = 0;
    for (unsigned i = 0; i < n; i++)
        sum += iov[i].iov_len;
    return sum;
}

static int give(struct hvx_net *n, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta)
{
    int taken = n->nic.ops->receive(n->nic.opaque, iov, n_iov, meta);
    if (taken) {
        n->count.rx++;
        n->count.rx_bytes += total_bytes(iov, n_iov);
    }
    return taken;
}

static void flush_queue(struct hvx_net *n)
{
    while (n->queue.n && n->nic.ops) {
        struct record r;
        struct iovec v;
        queue_peek(&n->queue, &r, &v);
        if (!give(n, &v, 1, &r.meta))
            return;
        queue_drop_first(&n->queue, &r);
    }
}

static void on_flush(void *opaque, int fd, bool readable, bool writable)
{
    struct hvx_net *n = opaque;
    uint64_t count;
    (void)readable;
    (void)writable;
    ssize_t got = read(fd, &count, sizeof(count));
    (void)got;
    n->flush_pending = false;
    flush_queue(n);
    if (!n->queue.n && n->backend && n->backend->resume)
        n->backend->resume(n);
}

static void post_flush(struct hvx_net *n)
{
    uint64_t one = 1;
    if (!n->flush_pending && write(n->flush_fd, &one, sizeof(one)) == sizeof(one))
        n->flush_pending = true;
}

static int enqueue(struct hvx_net *n, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta)
{
    size_t bytes = total_bytes(iov, n_iov);
    if (!queue_put(&n->queue, iov, n_iov, bytes, meta)) {
        n->count.rx_dropped++;
        return 0;
    }
    n->count.rx_queued++;
    return 1;
}

static bool guest_lacks(const struct hvx_net *n, const struct hvx_net_meta *meta)
{
    uint8_t gso = meta->gso_type & 0x7f;
    if (gso == 1)
        return !(n->guest_can & HVX_NET_CAN_TSO4);
    if (gso == 4)
        return !(n->guest_can & HVX_NET_CAN_TSO6);
    return gso || ((meta->flags & 1) && !(n->guest_can & HVX_NET_CAN_CSUM));
}

static void deliver_segment(void *opaque, uint8_t *frame, size_t bytes)
{
    static const struct hvx_net_meta plain = {0};
    struct iovec v = {frame, bytes};
    hvx_net_deliver(opaque, &v, 1, &plain, true);
}

/* The guest took back an offload while such a frame was on its way. */
static int deliver_finished(struct hvx_net *n, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta)
{
    size_t bytes = total_bytes(iov, n_iov);
    int r;
    if (meta->gso_type & 0x7f) {
        r = hvx_gso_segment(iov, n_iov, meta, n->scratch, HVX_NET_SCRATCH, deliver_segment, n);
    } else {
        r = -EINVAL;
        if (bytes <= HVX_NET_SCRATCH) {
            hvx_sg_take(hvx_sg_of(iov, n_iov), n->scratch, bytes);
            r = hvx_csum_complete(n->scratch, bytes, meta);
        }
        if (!r)
            deliver_segment(n, n->scratch, bytes);
    }
    if (r)
        n->count.rx_dropped++;
    return 1;
}

int hvx_net_deliver(struct hvx_net *n, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta,
                    bool keep)
{
    if (!n->nic.ops || total_bytes(iov, n_iov) > HVX_NET_MAX_FRAME) {
        n->count.rx_dropped++;
        return 1;
    }
    if (guest_lacks(n, meta))
        return deliver_finished(n, iov, n_iov, meta);
    if (n->in_send) {
        int r = enqueue(n, iov, n_iov, meta);
        post_flush(n);
        return r;
    }
    flush_queue(n); /* frames keep their order */
    if (!n->queue.n && give(n, iov, n_iov, meta))
        return 1;
    return keep ? enqueue(n, iov, n_iov, meta) : 0;
}

void hvx_nic_rx_ready(struct hvx_nic *nic)
{
    /* Called by a device in the middle of its own work: answer from the loop. */
    if (nic->net->queue.n || (nic->net->backend && nic->net->backend->resume))
        post_flush(nic->net);
}

/* --- from the guest ----------------------------------------------------------------- */
static void hand_over(struct hvx_net *n, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta)
{
    if (n->backend->send(n, iov, n_iov, meta)) {
        n->count.tx++;
        n->count.tx_bytes += total_bytes(iov, n_iov);
    } else {
        n->count.tx_dropped++;
    }
}

static void send_segment(void *opaque, uint8_t *frame, size_t bytes)
{
    static const struct hvx_net_meta plain = {0};
    struct iovec v = {frame, bytes};
    hand_over(opaque, &v, 1, &plain);
}

static bool backend_lacks_gso(const struct hvx_net *n, uint8_t gso)
{
    if (gso == 1)
        return !(n->backend->can & HVX_NET_CAN_TSO4);
    if (gso == 4)
        return !(n->backend->can & HVX_NET_CAN_TSO6);
    return gso != 0;
}

void hvx_nic_send(struct hvx_nic *nic, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta)
{
    static const struct hvx_net_meta plain = {0};
    struct hvx_net *n = nic->net;
    size_t bytes = total_bytes(iov, n_iov);
    if (!n->backend)
        return;
    if (!meta)
        meta = &plain;
    if (bytes < 14 || bytes > HVX_NET_MAX_FRAME) {
        n->count.tx_bad++;
        return;
    }
    bool was = n->in_send;
    n->in_send = true;
    if (backend_lacks_gso(n, meta->gso_type & 0x7f)) {
        n->count.tx_segmented++;
        if (hvx_gso_segment(iov, n_iov, meta, n->scratch, HVX_NET_SCRATCH, send_segment, n))
            n->count.tx_bad++;
    } else if ((meta->flags & 1) && !(n->backend->can & HVX_NET_CAN_CSUM)) {
        n->count.tx_checksummed++;
        hvx_sg_take(hvx_sg_of(iov, n_iov), n->scratch, bytes);
        if (hvx_csum_complete(n->scratch, bytes, meta))
            n->count.tx_bad++;
        else
            send_segment(n, n->scratch, bytes);
    } else {
        hand_over(n, iov, n_iov, meta);
    }
    n->in_send = was;
}

/* --- life ------------------------------------------------------------------------------ */
void hvx_net_default_mac(const char *vm_name, unsigned index, uint8_t mac[6])
{
    uint32_t h = 2166136261u; /* FNV-1a */
    for (const char *s = vm_name ? vm_name : ""; *s; s++)
        h = (h ^ (uint8_t)*s) * 16777619u;
    h = (h ^ index) * 16777619u;
    h ^= h >> 15;
    mac[0] = 0x52;
    mac[1] = 0x54;
    mac[2] = 0x00;
    mac[3] = (uint8_t)(h >> 16);
    mac[4] = (uint8_t)(h >> 8);
    mac[5] = (uint8_t)h;
}

void hvx_net_name_vm(struct hvx_net *n, const char *vm_name, unsigned index)
{
    if (!n->mac_given) /* no address was given */
        hvx_net_default_mac(vm_name, index, n->mac);
}

int hvx_net_open(struct hvx_loop *loop, const char *spec_text, unsigned index, struct hvx_net **out,
                 struct hvx_error *err)
{
    struct hvx_net_spec spec;
    int r = hvx_net_parse(spec_text, &spec, err);
    if (r)
        return r;
    struct hvx_net *n = calloc(1, sizeof(*n));
    if (n) {
        n->loop = loop;
        n->flush_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        n->queue.bytes = malloc(HVX_NET_QUEUE_BYTES);
        n->scratch = malloc(HVX_NET_SCRATCH);
    }
    if (!n || !n->queue.bytes || !n->scratch || n->flush_fd < 0 ||
        hvx_loop_watch_new(loop, n->flush_fd, true, false, on_flush, n, &n->flush_watch)) {
        hvx_net_close(n);
        return hvx_fail(err, -ENOMEM, "no memory or descriptors for network port %u", index);
    }
    n->mac_given = spec.has_mac;
    if (spec.has_mac)
        memcpy(n->mac, spec.mac, 6);
    else
        hvx_net_default_mac("", index, n->mac);
    if (spec.kind == HVX_NET_USER)
        r = hvx_net_user_open(n, &spec, err);
    else if (spec.kind == HVX_NET_TAP)
        r = hvx_net_tap_open(n, &spec, err);
    if (r) {
        n->backend = NULL;
        hvx_net_close(n);
        return r;
    }
    *out = n;
    return 0;
}

void hvx_net_close(struct hvx_net *n)
{
    if (!n)
        return;
    n->nic.ops = NULL;
    if (n->backend)
        n->backend->close(n);
    n->backend = NULL;
    if (n->flush_watch)
        hvx_watch_del(n->flush_watch);
    if (n->flush_fd >= 0)
        close(n->flush_fd);
    free(n->queue.bytes);
    free(n->scratch);
    free(n);
}

int hvx_nic_attach(struct hvx_net *n, const struct hvx_nic_ops *ops, void *opaque, struct hvx_nic **out,
                   struct hvx_error *err)
{
    if (n->nic.ops)
        return hvx_fail(err, -EBUSY, "a network port takes one NIC, and this one has one already");
    n->nic.net = n;
    n->nic.ops = ops;
    n->nic.opaque = opaque;
    n->guest_can = 0;
    *out = &n->nic;
    return 0;
}

void hvx_nic_detach(struct hvx_nic *nic)
{
    if (!nic)
        return;
    nic->ops = NULL;
    nic->net->queue.n = 0;
}

void hvx_nic_mac(struct hvx_nic *nic, uint8_t mac[6])
{
    memcpy(mac, nic->net->mac, 6);
}

void hvx_nic_set_caps(struct hvx_nic *nic, uint32_t can)
{
    nic->net->guest_can = can;
    if (nic->net->backend && nic->net->backend->set_guest_caps)
        nic->net->backend->set_guest_caps(nic->net, can);
}

uint32_t hvx_nic_mtu(struct hvx_nic *nic)
{
    (void)nic;
    return HVX_NET_MTU;
}

void hvx_net_stats(struct hvx_net *n, void (*fn)(void *o, const char *name, uint64_t v, const char *unit), void *o)
{
    const struct hvx_net_counters *c = &n->count;
    fn(o, "tx_frames", c->tx, "");
    fn(o, "tx_bytes", c->tx_bytes, "bytes");
    fn(o, "tx_dropped", c->tx_dropped, "");
    fn(o, "tx_malformed", c->tx_bad, "");
    fn(o, "tx_segmented", c->tx_segmented, "");
    fn(o, "tx_checksummed", c->tx_checksummed, "");
    fn(o, "rx_frames", c->rx, "");
    fn(o, "rx_bytes", c->rx_bytes, "bytes");
    fn(o, "rx_dropped", c->rx_dropped, "");
    fn(o, "rx_waited", c->rx_queued, "");
}
