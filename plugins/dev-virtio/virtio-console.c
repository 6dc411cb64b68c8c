/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-console.c - the console device (virtio 1.2, section 5.3): one console
 * port, and further named ports with the multiport feature.
 *
 * Output goes to a character stream that may take less than it is offered; a
 * chain is then put back into the ring, its progress kept, and tried again
 * from a timer. So nothing is held outside the rings, and a guest that floods
 * its console waits for itself only.
 */
#include <linux/virtio_console.h>
#include <stdlib.h>
#include <string.h>

#include "virtio.h"

#define CON_QUEUE_SIZE 128u
#define CON_PORTS_MAX 4u
#define CON_NAME_MAX 64u
#define CON_RETRY_NS 2000000ull /* when the stream was full */
#define CON_CTRL_RX 2u
#define CON_CTRL_TX 3u
#define CON_NO_VALUE 0u

/* Control messages that a port still has to send, a bit each; sent in this order. */
enum { SEND_ADD = 1, SEND_CONSOLE = 2, SEND_NAME = 4, SEND_OPEN = 8 };

struct vcon;

struct vcon_port {
    struct vcon *con;
    struct hvx_chr *chr;
    unsigned index;
    uint32_t tx_done; /* bytes of the chain at the head of the transmit queue already sent */
    uint8_t to_send;
    bool guest_open;
    char name[CON_NAME_MAX];
};

struct vcon {
    struct virtio_dev dev; /* first */
    struct hvx_timer *retry;
    unsigned n_ports;
    struct vcon_port ports[CON_PORTS_MAX];
    struct vq_chain rx, tx, ctrl;
};

/* 5.3.2: port 0 has queues 0 and 1, the control queues are 2 and 3. */
static unsigned rx_index(unsigned port) { return port == 0 ? 0 : 2 + 2 * port; }

static struct virtqueue *port_queue(const struct vcon_port *p, bool tx)
{
    return &p->con->dev.queues[rx_index(p->index) + tx];
}

static bool usable(const struct vcon *c)
{
    return virtio_running(&c->dev) && (c->dev.status & VIRTIO_CONFIG_S_DRIVER_OK);
}

/* --- guest to host --------------------------------------------------------------------- */
/* Send what is left of one chain; false: the stream is full. */
static bool send_chain(struct vcon_port *p, const struct vq_chain *c)
{
    uint32_t off = p->tx_done;
    for (unsigned i = 0; i < c->n_out; i++) {
        const struct iovec *v = &c->iov[i];
        if (off >= v->iov_len) {
            off -= v->iov_len;
            continue;
        }
        size_t n = v->iov_len - off, took = p->con->dev.host->chr_write(p->chr, (const uint8_t *)v->iov_base + off, n);
        p->tx_done += took;
        if (took < n)
            return false;
        off = 0;
    }
    return true;
}

static void drain_tx(struct vcon_port *p)
{
    struct vcon *c = p->con;
    struct virtqueue *vq = port_queue(p, true);
    unsigned budget = VQ_BUDGET;
    bool full = false;
    vq_disarm(vq);
    do {
        while (!full && budget && vq_pop(vq, &c->tx) > 0) {
            budget--;
            full = !send_chain(p, &c->tx);
            if (full) {
                vq_unpop(vq, c->tx.token);
            } else {
                p->tx_done = 0;
                vq_push(vq, c->tx.token, 0);
            }
        }
    } while (!full && budget && vq_rearm(vq));
    vq_flush(vq);
    if (full || !budget)
        c->dev.host->timer_set(c->retry, c->dev.host->clock_ns() + (full ? CON_RETRY_NS : 0));
}

/* --- host to guest --------------------------------------------------------------------- */
static size_t vcon_receive(void *opaque, const uint8_t *buf, size_t n)
{
    struct vcon_port *p = opaque;
    struct vcon *c = p->con;
    size_t done = 0;
    if (!usable(c) || (virtio_has(&c->dev, VIRTIO_CONSOLE_F_MULTIPORT) && !p->guest_open))
        return 0; /* kept, and offered again when the driver is there */
    struct virtqueue *vq = port_queue(p, false);
    vq_disarm(vq);
    do {
        while (done < n && vq_pop(vq, &c->rx) > 0) {
            size_t k = vq_iov_write(c->rx.iov + c->rx.n_out, c->rx.n_in, 0, buf + done, n - done);
            vq_chain_dirty(vq, &c->rx, k);
            vq_push(vq, c->rx.token, k);
            done += k;
            if (k == 0)
                break; /* a buffer without room: one at a time, or a lying driver keeps us here */
        }
    } while (done < n && vq_rearm(vq) && !c->dev.broken && vq->n_pending < vq->size);
    vq_flush(vq);
    return done;
}

static const struct hvx_chr_ops chr_ops = {.size = sizeof(struct hvx_chr_ops), .receive = vcon_receive};

/* --- control queues (5.3.6.2) -------------------------------------------------------------- */
static bool send_control(struct vcon *c, const struct vcon_port *p, uint16_t event, uint16_t value, const char *text)
{
    struct virtqueue *vq = &c->dev.queues[CON_CTRL_RX];
    struct {
        struct virtio_console_control h;
        char text[CON_NAME_MAX];
    } m = {.h = {.id = p->index, .event = event, .value = value}};
    size_t n = sizeof(m.h);
    if (text) {
        size_t len = strnlen(text, sizeof(m.text));
        memcpy(m.text, text, len);
        n += len;
    }
    if (vq_pop(vq, &c->ctrl) <= 0)
        return false;
    size_t k = vq_iov_write(c->ctrl.iov + c->ctrl.n_out, c->ctrl.n_in, 0, &m, n);
    vq_chain_dirty(vq, &c->ctrl, k);
    vq_push(vq, c->ctrl.token, k);
    return true;
}

/* Send what the ports have to say while there are buffers for it. */
static void flush_control(struct vcon *c)
{
    struct virtqueue *vq = &c->dev.queues[CON_CTRL_RX];
    static const struct { uint8_t bit; uint16_t event; } order[] = {
        {SEND_ADD, VIRTIO_CONSOLE_PORT_ADD},
        {SEND_CONSOLE, VIRTIO_CONSOLE_CONSOLE_PORT},
        {SEND_NAME, VIRTIO_CONSOLE_PORT_NAME},
        {SEND_OPEN, VIRTIO_CONSOLE_PORT_OPEN},
    };
    if (c->dev.n_queues <= CON_CTRL_TX)
        return;
    for (unsigned i = 0; i < c->n_ports; i++) {
        struct vcon_port *p = &c->ports[i];
        for (unsigned k = 0; k < sizeof(order) / sizeof(order[0]) && p->to_send; k++) {
            if (!(p->to_send & order[k].bit))
                continue;
            bool name = order[k].bit == SEND_NAME;
            uint16_t value = order[k].bit == SEND_ADD ? CON_NO_VALUE : 1;
            while (!send_control(c, p, order[k].event, value, name ? p->name : NULL))
                if (!vq_rearm(vq)) { /* the driver notifies when it adds buffers */
                    vq_flush(vq);
                    return;
                }
            p->to_send &= ~order[k].bit;
        }
    }
    vq_flush(vq);
}

static void guest_says(struct vcon *c, const struct virtio_console_control *m)
{
    if (m->event == VIRTIO_CONSOLE_DEVICE_READY) {
        if (m->value)
            for (unsigned i = 0; i < c->n_ports; i++)
                c->ports[i].to_send |= SEND_ADD;
        return;
    }
    if (m->id >= c->n_ports) {
        c->dev.host->guest_event(c->dev.vm, "virtio-console", "message %u for port %u of %u", m->event, m->id,
                                 c->n_ports);
        return;
    }
    struct vcon_port *p = &c->ports[m->id];
    switch (m->event) {
    case VIRTIO_CONSOLE_PORT_READY:
        if (m->value)
            p->to_send |= (p->index == 0 ? SEND_CONSOLE : 0) | (p->name[0] ? SEND_NAME : 0) | SEND_OPEN;
        return;
    case VIRTIO_CONSOLE_PORT_OPEN:
        p->guest_open = m->value != 0;
        if (p->guest_open)
            c->dev.host->chr_rx_ready(p->chr);
        return;
    }
}

static void drain_control(struct vcon *c, struct virtqueue *vq)
{
    unsigned budget = VQ_BUDGET;
    do {
        while (budget && vq_pop(vq, &c->ctrl) > 0) {
            struct virtio_console_control m;
            bool whole = vq_iov_read(c->ctrl.iov, c->ctrl.n_out, 0, &m, sizeof(m)) == sizeof(m);
            vq_push(vq, c->ctrl.token, 0); /* before the chain structure is used again */
            if (whole)
                guest_says(c, &m);
            budget--;
        }
    } while (budget && vq_rearm(vq));
    vq_flush(vq);
    flush_control(c);
    if (!budget)
        c->dev.host->timer_set(c->retry, c->dev.host->clock_ns());
}

/* --- notifications --------------------------------------------------------------------------- */
static void vcon_notify(struct virtio_dev *d, struct virtqueue *vq)
{
    struct vcon *c = (struct vcon *)d;
    bool multi = virtio_has(d, VIRTIO_CONSOLE_F_MULTIPORT);
    unsigned port = vq->index < 2 ? 0 : vq->index / 2 - 1;
    if (vq->index == CON_CTRL_RX || vq->index == CON_CTRL_TX) {
        if (!multi)
            return;
        if (vq->index == CON_CTRL_TX)
            drain_control(c, vq);
        else
            flush_control(c);
        return;
    }
    if (port && !multi)
        return;
    if (vq->index & 1)
        drain_tx(&c->ports[port]);
    else
        d->host->chr_rx_ready(c->ports[port].chr);
}

static void vcon_retry(void *opaque)
{
    struct vcon *c = opaque;
    for (unsigned i = 0; i < c->dev.n_queues; i++)
        if (vq_has_work(&c->dev.queues[i]))
            virtio_notify_queue(&c->dev, i);
}

static void vcon_config_write(struct virtio_dev *d, unsigned off, const uint8_t *bytes, unsigned n)
{
    struct vcon *c = (struct vcon *)d;
    (void)n;
    /* Emergency write (5.3.4): a character before, or without, any queue. */
    if (off == offsetof(struct virtio_console_config, emerg_wr))
        d->host->chr_write(c->ports[0].chr, bytes, 1);
}

/* --- life ----------------------------------------------------------------------------------------- */
static void vcon_driver_ok(struct virtio_dev *d)
{
    struct vcon *c = (struct vcon *)d;
    for (unsigned i = 0; i < c->n_ports; i++)
        d->host->chr_rx_ready(c->ports[i].chr);
}

static void vcon_reset(struct virtio_dev *d)
{
    struct vcon *c = (struct vcon *)d;
    for (unsigned i = 0; i < c->n_ports; i++) {
        c->ports[i].tx_done = 0;
        c->ports[i].to_send = 0;
        c->ports[i].guest_open = false;
    }
    d->host->timer_set(c->retry, ~0ull);
}

static int vcon_state(struct virtio_dev *d, struct hvx_stream *s)
{
    struct vcon *c = (struct vcon *)d;
    for (unsigned i = 0; i < c->n_ports; i++) {
        hvx_state_u32(s, &c->ports[i].tx_done);
        hvx_state_u8(s, &c->ports[i].to_send);
        hvx_state_bool(s, &c->ports[i].guest_open);
    }
    return hvx_state_error(s);
}

static void vcon_resume(struct virtio_dev *d)
{
    d->host->timer_set(((struct vcon *)d)->retry, d->host->clock_ns());
}

static const struct virtio_ops vcon_ops = {
    .name = "virtio-console",
    .device_id = VIRTIO_ID_CONSOLE,
    .legacy_pci = 0x1003,
    .class_code = 0x078000,
    .reset = vcon_reset,
    .driver_ok = vcon_driver_ok,
    .notify = vcon_notify,
    .config_write = vcon_config_write,
    .state = vcon_state,
    .resume = vcon_resume,
};

static void vcon_destroy(void *dev)
{
    struct vcon *c = dev;
    if (!c)
        return;
    for (unsigned i = 0; i < CON_PORTS_MAX; i++)
        if (c->ports[i].chr)
            c->dev.host->chr_detach(c->ports[i].chr);
    if (c->retry)
        c->dev.host->timer_del(c->retry);
    virtio_destroy(&c->dev);
    free(c);
}

static int attach_port(struct vcon *c, const char *stream, const char *name, struct hvx_error *err)
{
    struct vcon_port *p = &c->ports[c->n_ports];
    p->con = c;
    p->index = c->n_ports;
    snprintf(p->name, sizeof(p->name), "%s", name);
    int r = c->dev.host->chr_attach(c->dev.vm, stream, &chr_ops, p, &p->chr);
    if (r < 0)
        return hvx_fail(err, r, "virtio-console: cannot attach to the character stream \"%s\": %s", stream,
                        strerror(-r));
    c->n_ports++;
    return 0;
}

/* port1=STREAM:NAME and so on. */
static int attach_extra(struct vcon *c, const struct hvx_config *config, struct hvx_error *err)
{
    for (unsigned i = 1; i < CON_PORTS_MAX; i++) {
        char option[8], stream[64];
        snprintf(option, sizeof(option), "port%u", i);
        const char *text = c->dev.host->conf_string(config, option), *colon;
        if (!text)
            continue;
        colon = strchr(text, ':');
        if (!colon || colon == text || (size_t)(colon - text) >= sizeof(stream) || !colon[1] ||
            strlen(colon + 1) >= CON_NAME_MAX)
            return hvx_fail(err, -EINVAL, "virtio-console: %s=%s is not of the form STREAM:NAME, for instance "
                            "console1:org.example.agent", option, text);
        snprintf(stream, sizeof(stream), "%.*s", (int)(colon - text), text);
        int r = attach_port(c, stream, colon + 1, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int vcon_build(struct vcon *c, const struct hvx_host *host, struct hvx_vm *vm, const struct hvx_config *config,
                      struct hvx_error *err)
{
    uint16_t sizes[2 + 2 * CON_PORTS_MAX];
    c->dev.host = host;
    c->dev.vm = vm;
    int r = host->timer_new(vm, vcon_retry, c, &c->retry);
    if (r < 0)
        return hvx_fail(err, r, "virtio-console: cannot make a timer: %s", strerror(-r));
    if ((r = attach_port(c, host->conf_string(config, "chardev"), "", err)) < 0 ||
        (r = attach_extra(c, config, err)) < 0)
        return r;
    bool multi = c->n_ports > 1;
    struct virtio_console_config *cfg = (void *)c->dev.config;
    cfg->max_nr_ports = c->n_ports;
    c->dev.config_bytes = sizeof(*cfg);
    c->dev.offered = VIRTIO_BIT(VIRTIO_CONSOLE_F_EMERG_WRITE) | (multi ? VIRTIO_BIT(VIRTIO_CONSOLE_F_MULTIPORT) : 0);
    unsigned n_queues = multi ? 2 + 2 * c->n_ports : 2;
    for (unsigned i = 0; i < n_queues; i++)
        sizes[i] = CON_QUEUE_SIZE;
    return virtio_create(&c->dev, &vcon_ops, host, vm, config, n_queues, sizes, err);
}

static int vcon_create(void *plugin_ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev,
                       struct hvx_error *err)
{
    struct vcon *c = calloc(1, sizeof(*c));
    if (!c)
        return hvx_fail(err, -ENOMEM, "virtio-console: out of memory");
    int r = vcon_build(c, ((const struct virtio_plugin *)plugin_ctx)->host, vm, config, err);
    if (r < 0) {
        vcon_destroy(c);
        return r;
    }
    *dev = c;
    return 0;
}

static void vcon_type_reset(void *dev) { virtio_reset(dev); }
static int vcon_type_state(void *dev, struct hvx_stream *s) { return virtio_state(dev, s); }

static const struct hvx_option vcon_options[] = {
    {.name = "chardev", .type = HVX_OPT_STRING, .def = "console0", .help = "the character stream of the console port"},
    {.name = "port1", .type = HVX_OPT_STRING, .help = "a further port, STREAM:NAME; the guest sees NAME"},
    {.name = "port2", .type = HVX_OPT_STRING, .help = "a further port"},
    {.name = "port3", .type = HVX_OPT_STRING, .help = "a further port"},
    VIRTIO_COMMON_OPTIONS,
    {.name = NULL},
};

const struct hvx_device_type virtio_console_type = {
    .size = sizeof(struct hvx_device_type),
    .role = HVX_ROLE_CONSOLE,
    .rank = 100,
    .version = 1,
    .name = "virtio-console",
    .summary = "virtio console device",
    .options = vcon_options,
    .create = vcon_create,
    .destroy = vcon_destroy,
    .reset = vcon_type_reset,
    .state = vcon_type_state,
};
