/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-balloon.c - memory that the guest gives up (virtio 1.2, section 5.5):
 * the balloon proper, statistics, and free-page reporting.
 *
 * Pages that the driver puts into the balloon or reports as free go back to
 * the host at once. Pages that leave the balloon need nothing: they are there
 * again, zeroed, when the guest touches them.
 */
#include <linux/virtio_balloon.h>
#include <stdlib.h>
#include <string.h>

#include "virtio.h"

#define BALLOON_PAGE 4096u
#define BALLOON_QUEUE_SIZE 128u
#define BALLOON_PFNS 512u       /* taken from a chain at a time */
#define BALLOON_STATS_MAX 64u   /* entries of one report that are looked at */
#define STATS_PERIOD_NS 2000000000ull

enum { Q_INFLATE, Q_DEFLATE, Q_FIXED };

struct vballoon {
    struct virtio_dev dev; /* first */
    uint64_t ram_bytes;
    unsigned stats_queue, report_queue; /* 0: not there; which index they have depends on what was agreed on */
    struct hvx_timer *timer; /* fetches statistics, and goes on with queues that used up their budget */
    bool stats_held;         /* the driver's buffer is kept until new figures are wanted */
    struct vq_token stats_token;
    uint64_t stat[VIRTIO_BALLOON_S_NR];
    uint32_t stat_valid;
    uint64_t n_inflated, n_deflated, n_reported; /* pages, since the start */
    uint32_t pfns[BALLOON_PFNS];
    struct vq_chain chain;
};

static inline struct virtio_balloon_config *vballoon_config(struct vballoon *b)
{
    return (struct virtio_balloon_config *)(void *)b->dev.config;
}

/* --- the balloon (5.5.6) ------------------------------------------------------------ */
static void give_back(struct vballoon *b, uint64_t gpa, uint64_t n)
{
    int r = b->dev.host->mem_discard(b->dev.vm, gpa, n);
    if (r == -EFAULT || r == -EINVAL)
        b->dev.host->guest_event(b->dev.vm, "virtio-balloon", "%llu bytes at %#llx are not all RAM",
                                 (unsigned long long)n, (unsigned long long)gpa);
}

static void inflate(struct vballoon *b, const uint32_t *pfn, unsigned n)
{
    /* Drivers take pages in runs, in either direction. */
    for (unsigned i = 0; i < n;) {
        unsigned k = 1;
        uint64_t first = pfn[i];
        while (i + k < n && pfn[i + k] == pfn[i] + k)
            k++;
        if (k == 1)
            while (i + k < n && pfn[i + k] == pfn[i] - k)
                first = pfn[i + k++];
        give_back(b, first * BALLOON_PAGE, (uint64_t)k * BALLOON_PAGE);
        i += k;
    }
    b->n_inflated += n;
}

static void take_pages(struct vballoon *b, struct virtqueue *vq)
{
    struct vq_chain *c = &b->chain;
    uint32_t done = 0, all = c->out_bytes & ~3u;
    while (done < all) {
        uint32_t n = all - done < sizeof(b->pfns) ? all - done : (uint32_t)sizeof(b->pfns);
        vq_iov_read(c->iov, c->n_out, done, b->pfns, n);
        if (vq->index == Q_INFLATE)
            inflate(b, b->pfns, n / 4);
        else
            b->n_deflated += n / 4;
        done += n;
    }
    vq_push(vq, c->token, 0);
}

/* --- free-page reporting (5.5.6.7) ----------------------------------------------------- */
static void take_report(struct vballoon *b, struct virtqueue *vq)
{
    struct vq_chain *c = &b->chain;
    for (unsigned i = 0; i < c->n_in; i++) {
        uint64_t gpa = c->in_gpa[i], n = c->iov[c->n_out + i].iov_len;
        /* With PAGE_POISON the driver expects its pattern in there (5.5.6.7.2): not offered. */
        uint64_t first = (gpa + BALLOON_PAGE - 1) & ~(uint64_t)(BALLOON_PAGE - 1);
        uint64_t end = (gpa + n) & ~(uint64_t)(BALLOON_PAGE - 1);
        if (end > first) {
            give_back(b, first, end - first);
            b->n_reported += (end - first) / BALLOON_PAGE;
        }
    }
    vq_push(vq, c->token, 0);
}

/* --- statistics (5.5.6.3) ------------------------------------------------------------- */
static void take_stats(struct vballoon *b)
{
    struct vq_chain *c = &b->chain;
    struct virtio_balloon_stat s;
    for (unsigned i = 0; i < BALLOON_STATS_MAX && (i + 1) * sizeof(s) <= c->out_bytes; i++) {
        vq_iov_read(c->iov, c->n_out, i * sizeof(s), &s, sizeof(s));
        if (s.tag >= VIRTIO_BALLOON_S_NR)
            continue;
        b->stat[s.tag] = s.val;
        b->stat_valid |= 1u << s.tag;
    }
    b->stats_token = c->token;
    b->stats_held = true;
}

/* --- queues --------------------------------------------------------------------------- */
static void vballoon_notify(struct virtio_dev *d, struct virtqueue *vq)
{
    struct vballoon *b = (struct vballoon *)d;
    bool stats = b->stats_queue && vq->index == b->stats_queue;
    bool report = b->report_queue && vq->index == b->report_queue;
    unsigned budget = VQ_BUDGET;
    if (vq->index >= Q_FIXED && !stats && !report)
        return;
    vq_disarm(vq);
    do {
        while (budget && !(stats && b->stats_held) && vq_pop(vq, &b->chain) > 0) {
            budget--;
            if (stats)
                take_stats(b);
            else if (report)
                take_report(b, vq);
            else
                take_pages(b, vq);
        }
    } while (budget && !(stats && b->stats_held) && vq_rearm(vq));
    vq_flush(vq);
    if (!budget)
        d->host->timer_set(b->timer, d->host->clock_ns());
}

static void vballoon_timer(void *opaque)
{
    struct vballoon *b = opaque;
    struct virtio_dev *d = &b->dev;
    for (unsigned i = 0; i < d->n_queues; i++)
        if (vq_has_work(&d->queues[i]))
            virtio_notify_queue(d, i);
    if (!b->stats_queue || !virtio_running(d))
        return;
    if (b->stats_held) { /* the buffer back to the driver: it fills it again */
        struct virtqueue *vq = &d->queues[b->stats_queue];
        b->stats_held = false;
        vq_push(vq, b->stats_token, 0);
        vq_flush(vq);
        if (vq_rearm(vq))
            virtio_notify_queue(d, b->stats_queue);
    }
    d->host->timer_set(b->timer, d->host->clock_ns() + STATS_PERIOD_NS);
}

/* --- features --------------------------------------------------------------------------- */
/* Queues that were not agreed on have no number: those behind move up (5.5.2). */
static void number_queues(struct vballoon *b)
{
    unsigned next = Q_FIXED;
    b->stats_queue = virtio_has(&b->dev, VIRTIO_BALLOON_F_STATS_VQ) ? next++ : 0;
    b->report_queue = virtio_has(&b->dev, VIRTIO_BALLOON_F_REPORTING) ? next++ : 0;
}

static void vballoon_features_set(struct virtio_dev *d)
{
    number_queues((struct vballoon *)d);
}

static void vballoon_driver_ok(struct virtio_dev *d)
{
    struct vballoon *b = (struct vballoon *)d;
    d->host->timer_set(b->timer, d->host->clock_ns() + STATS_PERIOD_NS);
}

static void vballoon_config_write(struct virtio_dev *d, unsigned off, const uint8_t *bytes, unsigned n)
{
    unsigned at = offsetof(struct virtio_balloon_config, actual);
    if (off >= at && off + n <= at + 4) /* the rest is the device's */
        memcpy(d->config + off, bytes, n);
}

/* --- the host's side ------------------------------------------------------------------------ */
static void set_target(void *opaque, uint64_t bytes)
{
    struct vballoon *b = opaque;
    vballoon_config(b)->num_pages = (b->ram_bytes - bytes) / BALLOON_PAGE;
    virtio_config_changed(&b->dev);
}

static uint64_t actual(void *opaque, bool *ready)
{
    struct vballoon *b = opaque;
    uint64_t held = (uint64_t)vballoon_config(b)->actual * BALLOON_PAGE;
    *ready = b->dev.status & VIRTIO_CONFIG_S_DRIVER_OK;
    return held < b->ram_bytes ? b->ram_bytes - held : 0; /* the driver writes it: anything may stand there */
}

static void stats(void *opaque, hvx_stat_fn fn, void *o)
{
    static const struct { uint8_t tag; const char *name; bool bytes; } known[] = {
        {VIRTIO_BALLOON_S_MEMTOT, "guest: memory", true},     {VIRTIO_BALLOON_S_MEMFREE, "guest: free", true},
        {VIRTIO_BALLOON_S_AVAIL, "guest: available", true},   {VIRTIO_BALLOON_S_CACHES, "guest: caches", true},
        {VIRTIO_BALLOON_S_SWAP_IN, "guest: swapped in", true}, {VIRTIO_BALLOON_S_SWAP_OUT, "guest: swapped out", true},
        {VIRTIO_BALLOON_S_MAJFLT, "guest: major faults", false}, {VIRTIO_BALLOON_S_MINFLT, "guest: minor faults", false},
    };
    struct vballoon *b = opaque;
    bool ready;
    fn(o, "balloon", "left to the guest", actual(b, &ready), "bytes");
    fn(o, "balloon", "target", b->ram_bytes - (uint64_t)vballoon_config(b)->num_pages * BALLOON_PAGE, "bytes");
    fn(o, "balloon", "inflated so far", b->n_inflated * BALLOON_PAGE, "bytes");
    fn(o, "balloon", "deflated so far", b->n_deflated * BALLOON_PAGE, "bytes");
    fn(o, "balloon", "reported free so far", b->n_reported * BALLOON_PAGE, "bytes");
    for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (b->stat_valid & 1u << known[i].tag)
            fn(o, "balloon", known[i].name, b->stat[known[i].tag], known[i].bytes ? "bytes" : "");
}

static const struct hvx_balloon_ops balloon_ops = {
    .size = sizeof(struct hvx_balloon_ops),
    .set_target = set_target,
    .actual = actual,
    .stats = stats,
};

/* --- life ----------------------------------------------------------------------------------- */
static void vballoon_reset(struct virtio_dev *d)
{
    struct vballoon *b = (struct vballoon *)d;
    vballoon_config(b)->actual = 0; /* a new driver starts with an empty balloon */
    b->stats_held = false;
    b->stat_valid = 0;
    d->host->timer_set(b->timer, ~0ull);
}

static int vballoon_state(struct virtio_dev *d, struct hvx_stream *s)
{
    struct vballoon *b = (struct vballoon *)d;
    hvx_state_bool(s, &b->stats_held);
    hvx_state_u16(s, &b->stats_token.id);
    hvx_state_u16(s, &b->stats_token.n_ring);
    hvx_state_u64(s, &b->n_inflated);
    hvx_state_u64(s, &b->n_deflated);
    hvx_state_u64(s, &b->n_reported);
    if (!hvx_state_error(s) && b->stats_held && !b->stats_queue)
        hvx_state_fail(s, -EINVAL, "statistics are under way that were not agreed on");
    if (!hvx_state_error(s) && b->stats_held && !d->queues[b->stats_queue].inflight)
        b->stats_held = false;
    return hvx_state_error(s);
}

static void vballoon_resume(struct virtio_dev *d)
{
    d->host->timer_set(((struct vballoon *)d)->timer, d->host->clock_ns());
}

static const struct virtio_ops vballoon_ops = {
    .name = "virtio-balloon",
    .device_id = VIRTIO_ID_BALLOON,
    .legacy_pci = 0x1002,
    .class_code = 0x00ff00,
    .reset = vballoon_reset,
    .features_set = vballoon_features_set,
    .driver_ok = vballoon_driver_ok,
    .notify = vballoon_notify,
    .config_write = vballoon_config_write,
    .state = vballoon_state,
    .resume = vballoon_resume,
};

static void vballoon_destroy(void *dev)
{
    struct vballoon *b = dev;
    if (!b)
        return;
    b->dev.host->balloon_set(b->dev.vm, NULL, NULL);
    if (b->timer)
        b->dev.host->timer_del(b->timer);
    virtio_destroy(&b->dev);
    free(b);
}

static int vballoon_build(struct vballoon *b, const struct hvx_config *config, struct hvx_error *err)
{
    const struct hvx_host *host = b->dev.host;
    const uint16_t sizes[] = {BALLOON_QUEUE_SIZE, BALLOON_QUEUE_SIZE, BALLOON_QUEUE_SIZE, BALLOON_QUEUE_SIZE};
    struct hvx_guest_info g = {.size = sizeof(g)};
    host->guest_info(b->dev.vm, &g);
    b->ram_bytes = g.ram_bytes;
    b->dev.offered = VIRTIO_BIT(VIRTIO_BALLOON_F_STATS_VQ);
    if (host->conf_bool(config, "deflate-on-oom"))
        b->dev.offered |= VIRTIO_BIT(VIRTIO_BALLOON_F_DEFLATE_ON_OOM);
    if (host->conf_bool(config, "free-page-reporting"))
        b->dev.offered |= VIRTIO_BIT(VIRTIO_BALLOON_F_REPORTING);
    b->dev.config_bytes = offsetof(struct virtio_balloon_config, actual) + 4;
    int r = host->timer_new(b->dev.vm, vballoon_timer, b, &b->timer);
    if (r < 0)
        return hvx_fail(err, r, "virtio-balloon: cannot make a timer: %s", strerror(-r));
    r = virtio_create(&b->dev, &vballoon_ops, host, b->dev.vm, config, 4, sizes, err);
    if (r == 0)
        host->balloon_set(b->dev.vm, &balloon_ops, b);
    return r;
}

static int vballoon_create(void *plugin_ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev,
                           struct hvx_error *err)
{
    struct vballoon *b = calloc(1, sizeof(*b));
    if (!b)
        return hvx_fail(err, -ENOMEM, "virtio-balloon: out of memory");
    b->dev.host = ((const struct virtio_plugin *)plugin_ctx)->host;
    b->dev.vm = vm;
    int r = vballoon_build(b, config, err);
    if (r < 0) {
        vballoon_destroy(b);
        return r;
    }
    *dev = b;
    return 0;
}

static void vballoon_type_reset(void *dev) { virtio_reset(dev); }
static int vballoon_type_state(void *dev, struct hvx_stream *s) { return virtio_state(dev, s); }

static const struct hvx_option vballoon_options[] = {
    {.name = "deflate-on-oom", .type = HVX_OPT_BOOL, .def = "yes",
     .help = "the guest may take memory back before it runs out of it"},
    {.name = "free-page-reporting", .type = HVX_OPT_BOOL, .def = "yes",
     .help = "memory that is free in the guest goes back to the host by itself"},
    VIRTIO_COMMON_OPTIONS,
    {.name = NULL},
};

const struct hvx_device_type virtio_balloon_type = {
    .size = sizeof(struct hvx_device_type),
    .role = HVX_ROLE_BALLOON,
    .rank = 100,
    .version = 1,
    .name = "virtio-balloon",
    .summary = "virtio memory balloon with free-page reporting",
    .options = vballoon_options,
    .create = vballoon_create,
    .destroy = vballoon_destroy,
    .reset = vballoon_type_reset,
    .state = vballoon_type_state,
};
