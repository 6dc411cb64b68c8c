/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-rng.c - the entropy device (virtio 1.2, section 5.4), with an
 * optional limit so that a guest cannot keep the host's generator busy.
 */
#include <stdlib.h>
#include <string.h>

#include "virtio.h"

#define RNG_QUEUE_SIZE 64u
#define RNG_CHAIN_BYTES_MAX 65536u /* a chain may be larger, it is then filled in part */

struct vrng {
    struct virtio_dev dev; /* first */
    struct hvx_timer *timer;
    uint64_t max_bytes, period_ns; /* max_bytes 0: no limit */
    uint64_t quota;                /* bytes left in this period */
    uint64_t period_end;
    struct vq_chain chain;
};

/* Start a new period when the old one is over; returns what may be given. */
static uint64_t allowance(struct vrng *r)
{
    if (!r->max_bytes)
        return ~0ull;
    uint64_t now = r->dev.host->clock_ns();
    if (now >= r->period_end) {
        r->quota = r->max_bytes;
        r->period_end = now + r->period_ns;
    }
    return r->quota;
}

/* Fill one chain; the queue is not empty. */
static bool fill_one(struct vrng *r, struct virtqueue *vq, uint64_t allowed)
{
    struct vq_chain *c = &r->chain;
    if (vq_pop(vq, c) <= 0)
        return false;
    uint32_t n = c->in_bytes < RNG_CHAIN_BYTES_MAX ? c->in_bytes : RNG_CHAIN_BYTES_MAX, done = 0;
    if (n > allowed)
        n = allowed;
    for (unsigned i = 0; i < c->n_in && done < n; i++) {
        struct iovec *v = &c->iov[c->n_out + i];
        size_t k = v->iov_len < n - done ? v->iov_len : n - done;
        r->dev.host->random(v->iov_base, k);
        done += k;
    }
    vq_chain_dirty(vq, c, done);
    vq_push(vq, c->token, done);
    if (r->max_bytes)
        r->quota -= done;
    return true;
}

static void vrng_notify(struct virtio_dev *d, struct virtqueue *vq)
{
    struct vrng *r = (struct vrng *)d;
    unsigned budget = VQ_BUDGET;
    uint64_t allowed = 0;
    vq_disarm(vq);
    do {
        while (budget && vq_has_work(vq) && (allowed = allowance(r)) && fill_one(r, vq, allowed))
            budget--;
    } while (budget && vq_rearm(vq) && (allowed = allowance(r)));
    vq_flush(vq);
    if (vq_has_work(vq))
        d->host->timer_set(r->timer, budget ? r->period_end : d->host->clock_ns());
}

static void vrng_timer(void *opaque)
{
    struct vrng *r = opaque;
    virtio_notify_queue(&r->dev, 0);
}

static void vrng_reset(struct virtio_dev *d)
{
    /* The quota survives: a driver could reset its way round it. */
    d->host->timer_set(((struct vrng *)d)->timer, ~0ull);
}

static void vrng_resume(struct virtio_dev *d)
{
    d->host->timer_set(((struct vrng *)d)->timer, d->host->clock_ns());
}

static const struct virtio_ops vrng_ops = {
    .name = "virtio-rng",
    .device_id = VIRTIO_ID_RNG,
    .legacy_pci = 0x1005,
    .class_code = 0x00ff00,
    .reset = vrng_reset,
    .notify = vrng_notify,
    .resume = vrng_resume,
};

static void vrng_destroy(void *dev)
{
    struct vrng *r = dev;
    if (!r)
        return;
    if (r->timer)
        r->dev.host->timer_del(r->timer);
    virtio_destroy(&r->dev);
    free(r);
}

static int vrng_create(void *plugin_ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev,
                       struct hvx_error *err)
{
    const struct hvx_host *host = ((const struct virtio_plugin *)plugin_ctx)->host;
    const uint16_t sizes[] = {RNG_QUEUE_SIZE};
    struct vrng *r = calloc(1, sizeof(*r));
    if (!r)
        return hvx_fail(err, -ENOMEM, "virtio-rng: out of memory");
    r->dev.host = host;
    r->max_bytes = host->conf_int(config, "max-bytes");
    r->period_ns = host->conf_int(config, "period") * 1000000ull;
    int e = host->timer_new(vm, vrng_timer, r, &r->timer);
    if (e < 0)
        hvx_fail(err, e, "virtio-rng: cannot make a timer: %s", strerror(-e));
    else
        e = virtio_create(&r->dev, &vrng_ops, host, vm, config, 1, sizes, err);
    if (e < 0) {
        vrng_destroy(r);
        return e;
    }
    *dev = r;
    return 0;
}

static void vrng_type_reset(void *dev) { virtio_reset(dev); }
static int vrng_type_state(void *dev, struct hvx_stream *s) { return virtio_state(dev, s); }

static const struct hvx_option vrng_options[] = {
    {.name = "max-bytes", .type = HVX_OPT_SIZE, .min = 0, .max = 1ll << 40, .def = "0",
     .help = "give at most so many bytes in each period; 0: no limit"},
    {.name = "period", .type = HVX_OPT_INT, .min = 1, .max = 3600000, .def = "1000",
     .help = "length of a period in milliseconds"},
    VIRTIO_COMMON_OPTIONS,
    {.name = NULL},
};

const struct hvx_device_type virtio_rng_type = {
    .size = sizeof(struct hvx_device_type),
    .role = HVX_ROLE_RNG,
    .rank = 100,
    .version = 1,
    .name = "virtio-rng",
    .summary = "virtio entropy device",
    .options = vrng_options,
    .create = vrng_create,
    .destroy = vrng_destroy,
    .reset = vrng_type_reset,
    .state = vrng_type_state,
};
