/* SPDX-License-Identifier: Apache-2.0
 *
 * tap.c - a TAP device of the host. Frames travel with the kernel's virtio
 * header, so that checksums and segmentation stay undone as long as both ends
 * can live with it.
 */
#define _GNU_SOURCE
#include "core/net/port.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define FRAMES_PER_WAKE 64u /* then the loop's other users have their turn */
#define MAX_IOV 64u

struct tap {
    struct hvx_net *net;
    int fd;
    bool vnet; /* frames carry struct virtio_net_hdr */
    struct hvx_watch *watch;
    size_t held; /* bytes in buf that the guest had no room for */
    uint8_t buf[HVX_NET_MAX_FRAME + sizeof(struct virtio_net_hdr)];
};

/* Hand over what is in buf; false: no room. */
static bool offer(struct tap *t)
{
    struct virtio_net_hdr h = {0};
    size_t skip = t->vnet ? sizeof(h) : 0;
    if (t->held > skip) {
        memcpy(&h, t->buf, skip);
        struct hvx_net_meta meta = {
            .flags = h.flags & 3, .gso_type = h.gso_type, .hdr_len = h.hdr_len, .gso_size = h.gso_size,
            .csum_start = h.csum_start, .csum_offset = h.csum_offset,
        };
        struct iovec v = {t->buf + skip, t->held - skip};
        if (!hvx_net_deliver(t->net, &v, 1, &meta, false))
            return false;
    }
    t->held = 0;
    return true;
}

static void receive(struct tap *t)
{
    for (unsigned i = 0; i < FRAMES_PER_WAKE; i++) {
        if (!t->held) {
            ssize_t n = read(t->fd, t->buf, sizeof(t->buf));
            if (n <= 0)
                return;
            t->held = (size_t)n;
        }
        if (!offer(t)) {
            hvx_watch_set(t->watch, false, false); /* the kernel's queue holds the rest */
            return;
        }
    }
}

static void on_readable(void *opaque, int fd, bool readable, bool writable)
{
    (void)fd;
    (void)writable;
    if (readable)
        receive(opaque);
}

static void tap_resume(struct hvx_net *n)
{
    struct tap *t = n->priv;
    if (!t->held || offer(t))
        hvx_watch_set(t->watch, true, false);
}

static bool tap_send(struct hvx_net *n, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta)
{
    struct tap *t = n->priv;
    struct iovec v[MAX_IOV + 1];
    struct virtio_net_hdr h = {
        .flags = meta->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = meta->gso_type, .hdr_len = meta->hdr_len,
        .gso_size = meta->gso_size, .csum_start = meta->csum_start, .csum_offset = meta->csum_offset,
    };
    unsigned k = 0;
    if (t->vnet)
        v[k++] = (struct iovec){&h, sizeof(h)};
    if (n_iov > MAX_IOV)
        return false; /* no driver sends frames in so many pieces */
    memcpy(v + k, iov, n_iov * sizeof(*iov));
    return writev(t->fd, v, (int)(k + n_iov)) > 0;
}

/* The kernel may then send us such frames. */
static void tap_set_guest_caps(struct hvx_net *n, uint32_t can)
{
    struct tap *t = n->priv;
    unsigned f = 0;
    if (!t->vnet)
        return;
    if (can & HVX_NET_CAN_CSUM) {
        f |= TUN_F_CSUM;
        if (can & HVX_NET_CAN_TSO4)
            f |= TUN_F_TSO4 | TUN_F_TSO_ECN;
        if (can & HVX_NET_CAN_TSO6)
            f |= TUN_F_TSO6 | TUN_F_TSO_ECN;
    }
    if (ioctl(t->fd, TUNSETOFFLOAD, f))
        ioctl(t->fd, TUNSETOFFLOAD, 0); /* then all frames come finished */
}

static void tap_close(struct hvx_net *n)
{
    struct tap *t = n->priv;
    hvx_watch_del(t->watch);
    close(t->fd);
    free(t);
    n->priv = NULL;
}

static const struct hvx_net_backend tap_vnet_backend = {
    .can = HVX_NET_CAN_CSUM | HVX_NET_CAN_TSO4 | HVX_NET_CAN_TSO6,
    .send = tap_send,
    .set_guest_caps = tap_set_guest_caps,
    .resume = tap_resume,
    .close = tap_close,
};
static const struct hvx_net_backend tap_plain_backend = {
    .can = 0, .send = tap_send, .resume = tap_resume, .close = tap_close,
};

static int attach(const struct hvx_net_spec *spec, struct hvx_error *err)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return hvx_fail(err, -errno,
                        "--net tap: cannot open /dev/net/tun: %s. The tun module must be loaded and the device "
                        "be accessible; --net user needs neither",
                        strerror(errno));
    memcpy(ifr.ifr_name, spec->ifname, strlen(spec->ifname));
    if (ioctl(fd, TUNSETIFF, &ifr)) {
        int e = errno;
        const char *name = spec->ifname[0] ? spec->ifname : "tap0";
        close(fd);
        if (e == EPERM || e == EACCES)
            return hvx_fail(
                err, -EPERM,
                "--net tap: making or opening %s needs CAP_NET_ADMIN. Let root make it once: `ip "
                "tuntap add dev %s mode tap user $USER && ip link set %s up`, then use --net tap,ifname=%s; or "
                "use --net user",
                name, name, name, name);
        if (e == EBUSY)
            return hvx_fail(err, -EBUSY, "--net tap: %s is in use by another program", name);
        return hvx_fail(err, -e, "--net tap: cannot attach to %s: %s", name, strerror(e));
    }
    return fd;
}

/* A descriptor that somebody else opened: see what it is. */
static int adopt(int fd, bool *vnet, struct hvx_error *err)
{
    struct ifreq ifr = {0};
    if (ioctl(fd, TUNGETIFF, &ifr))
        return hvx_fail(err, -EINVAL, "--net tap: descriptor %d is no TAP device (%s)", fd, strerror(errno));
    if (!(ifr.ifr_flags & IFF_TAP) || !(ifr.ifr_flags & IFF_NO_PI))
        return hvx_fail(err, -EINVAL, "--net tap: descriptor %d must be opened with IFF_TAP and IFF_NO_PI", fd);
    *vnet = ifr.ifr_flags & IFF_VNET_HDR;
    fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (fd < 0 || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK))
        return hvx_fail(err, -errno, "--net tap: cannot use the descriptor: %s", strerror(errno));
    return fd;
}

int hvx_net_open_fd(const char *text, struct hvx_error *err)
{
    struct hvx_net_spec spec;
    int r = hvx_net_parse(text, &spec, err);
    if (r)
        return r;
    if (spec.kind != HVX_NET_TAP)
        return spec.kind == HVX_NET_USER ? hvx_net_user_fd(&spec, err)
                                         : hvx_fail(err, -EINVAL, "--net none is nothing to attach");
    if (spec.fd >= 0) {
        bool vnet;
        return adopt(spec.fd, &vnet, err);
    }
    return attach(&spec, err);
}

int hvx_net_tap_open(struct hvx_net *n, const struct hvx_net_spec *spec, struct hvx_error *err)
{
    bool vnet = true;
    int fd = spec->fd >= 0 ? adopt(spec->fd, &vnet, err) : attach(spec, err);
    if (fd < 0)
        return fd;
    int size = sizeof(struct virtio_net_hdr);
    struct tap *t = calloc(1, sizeof(*t));
    if (!t || (vnet && ioctl(fd, TUNSETVNETHDRSZ, &size))) {
        int e = t ? errno : ENOMEM;
        free(t);
        close(fd);
        return hvx_fail(err, -e, "--net tap: cannot set up the device: %s", strerror(e));
    }
    t->net = n;
    t->fd = fd;
    t->vnet = vnet;
    int r = hvx_loop_watch_new(n->loop, fd, true, false, on_readable, t, &t->watch);
    if (r) {
        free(t);
        close(fd);
        return hvx_fail(err, r, "--net tap: cannot watch the device: %s", strerror(-r));
    }
    n->priv = t;
    n->backend = vnet ? &tap_vnet_backend : &tap_plain_backend;
    if (vnet)
        ioctl(fd, TUNSETOFFLOAD, 0); /* until the guest says what it can take */
    return 0;
}
