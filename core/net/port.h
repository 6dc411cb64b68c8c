/* SPDX-License-Identifier: Apache-2.0
 *
 * port.h - inside of core/net: the port in the middle, the back ends behind.
 */
#ifndef HVX_NET_PORT_H
#define HVX_NET_PORT_H

#include "core/net/net.h"

#define HVX_NET_QUEUE_BYTES (1u << 20) /* frames that wait for room in the guest */
#define HVX_NET_MAX_HOSTFWD 64u
#define HVX_NET_MTU 1500u

struct hvx_net_hostfwd {
    bool udp;
    uint32_t host_addr, guest_addr; /* IPv4, host order; 0: any, the guest */
    uint16_t host_port, guest_port;
};

/* A --net specification, parsed. */
struct hvx_net_spec {
    enum { HVX_NET_NONE, HVX_NET_USER, HVX_NET_TAP } kind;
    bool has_mac, restricted;
    uint8_t mac[6];
    uint32_t net, mask; /* user: host order */
    struct hvx_net_hostfwd fwd[HVX_NET_MAX_HOSTFWD];
    unsigned n_fwd;
    char ifname[16];
    int fd;
};
HVX_WUR int hvx_net_parse(const char *text, struct hvx_net_spec *out, struct hvx_error *err);

/* What a back end implements; all with the VM lock held. */
struct hvx_net_backend {
    uint32_t can; /* HVX_NET_CAN_*: frames that it takes unfinished */
    /* A frame from the guest that fits `can`. Borrowed; it is dropped when
     * there is no room. Returns whether it was taken. */
    bool (*send)(struct hvx_net *n, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta);
    void (*set_guest_caps)(struct hvx_net *n, uint32_t can); /* may be NULL */
    void (*resume)(struct hvx_net *n);                       /* the guest has room again; may be NULL */
    void (*close)(struct hvx_net *n);
};

struct hvx_net_counters {
    uint64_t tx, tx_bytes, tx_dropped, tx_bad, tx_segmented, tx_checksummed;
    uint64_t rx, rx_bytes, rx_dropped, rx_queued;
};

/* The queue: records of {head, bytes} in a ring; a record never wraps. */
struct hvx_net_queue {
    uint8_t *bytes;
    uint32_t head, tail, end; /* end: where the upper part stops while tail has wrapped */
    uint32_t n;
};

struct hvx_nic {
    struct hvx_net *net;
    const struct hvx_nic_ops *ops;
    void *opaque;
};

struct hvx_net {
    struct hvx_loop *loop;
    const struct hvx_net_backend *backend; /* NULL: none, frames vanish */
    void *priv;
    struct hvx_nic nic; /* ops NULL: no guest attached */
    uint8_t mac[6];
    uint32_t guest_can;
    bool in_send, flush_pending;
    int flush_fd; /* wakes the loop to empty the queue */
    struct hvx_watch *flush_watch;
    struct hvx_net_queue queue;
    uint8_t *scratch; /* one frame in one piece */
    bool mac_given;
    struct hvx_net_counters count;
};
#define HVX_NET_SCRATCH (HVX_NET_MAX_FRAME + 256u)

/* From a back end to the guest. keep: queue a copy when there is no room (and
 * drop it when the queue is full). Returns 1 taken, 0 no room. */
int hvx_net_deliver(struct hvx_net *n, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta,
                    bool keep);

int hvx_net_user_fd(const struct hvx_net_spec *spec, struct hvx_error *err);
HVX_WUR int hvx_net_user_open(struct hvx_net *n, const struct hvx_net_spec *spec, struct hvx_error *err);
HVX_WUR int hvx_net_tap_open(struct hvx_net *n, const struct hvx_net_spec *spec, struct hvx_error *err);
#endif
