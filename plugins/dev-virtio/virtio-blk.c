/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-blk.c - the block device (virtio 1.2, section 5.2).
 *
 * Each queue owns as many request structures as its ring has entries, made
 * once; a notification turns all chains that wait into asynchronous requests
 * of the block layer with the guest's buffers as scatter-gather list. They
 * complete in any order on the VM's loop.
 */
#include <linux/virtio_blk.h>
#include <stdlib.h>
#include <string.h>

#include "virtio.h"

#define SECTOR 512u
#define BLK_QUEUE_SIZE_MAX 256u
#define BLK_QUEUES_MAX 16u
#define BLK_QUEUES_DEFAULT 4u
#define BLK_MAX_RANGES 16u                  /* ranges in one discard or write-zeroes request */
#define BLK_MAX_RANGE_SECTORS (1u << 22)    /* 2 GiB each */
#define BLK_HEADER_BYTES sizeof(struct virtio_blk_outhdr)

struct vblk;

struct vblk_request {
    struct hvx_blk_req host;
    struct vblk *blk;
    struct virtqueue *vq;
    uint32_t generation; /* of the queue, when the chain was taken */
    struct vblk_request *next_free;
    uint8_t *status;
    struct iovec *shortened; /* lacks its last byte, the status, while the host reads into it */
    uint16_t n_ranges, range; /* discard and write zeroes: one host request after another */
    struct virtio_blk_discard_write_zeroes ranges[BLK_MAX_RANGES];
    struct vq_chain chain;
};

struct vblk {
    struct virtio_dev dev; /* first */
    struct hvx_blk *disk;
    struct hvx_blk_info info;
    struct hvx_timer *more; /* goes on with queues that used up their budget */
    bool write_through;
    unsigned queue_size;
    struct vblk_request *requests; /* n_queues * queue_size */
    size_t n_requests, n_used;     /* those from n_used on were never used: their pages are still untouched */
    struct vblk_request *free_requests;
    bool starved; /* a queue waits for a free request */
};

static inline struct virtio_blk_config *vblk_config(struct vblk *b)
{
    return (struct virtio_blk_config *)(void *)b->dev.config;
}

/* --- request structures ------------------------------------------------------------ */
static struct vblk_request *peek_free(struct vblk *b)
{
    if (!b->free_requests && b->n_used < b->n_requests)
        b->free_requests = &b->requests[b->n_used++]; /* its next_free is NULL from calloc */
    return b->free_requests;
}

static void give_back(struct vblk_request *r)
{
    struct vblk *b = r->blk;
    r->next_free = b->free_requests;
    b->free_requests = r;
    if (b->starved) {
        b->starved = false;
        b->dev.host->timer_set(b->more, b->dev.host->clock_ns());
    }
}

/* --- completion ----------------------------------------------------------------- */

static void finish(struct vblk_request *r, uint8_t status)
{
    struct virtqueue *vq = r->vq;
    bool stale = r->generation != vq->generation;
    if (r->shortened)
        r->shortened->iov_len++;
    r->shortened = NULL;
    if (!stale)
        *r->status = status;
    /* Data was written even where the request is stale or failed: the engine
     * must drop what it translated from there. */
    vq_chain_dirty(vq, &r->chain, r->chain.in_bytes);
    if (!stale)
        vq_push(vq, r->chain.token, r->chain.in_bytes);
    give_back(r);
}

static uint8_t status_of(int result)
{
    switch (result) {
    case 0: return VIRTIO_BLK_S_OK;
    case -EOPNOTSUPP:
    case -ENOSYS: return VIRTIO_BLK_S_UNSUPP;
    default: return VIRTIO_BLK_S_IOERR;
    }
}

static void submit_range(struct vblk_request *r);

static void host_done(struct hvx_blk_req *host)
{
    struct vblk_request *r = host->opaque;
    struct vblk *b = r->blk;
    struct virtqueue *vq = r->vq;
    if (host->result == 0 && r->range < r->n_ranges && r->generation == vq->generation) {
        submit_range(r);
        return;
    }
    finish(r, status_of(host->result));
    vq_flush(vq);
    virtio_release(&b->dev);
}

/* --- requests --------------------------------------------------------------------- */
static void submit(struct vblk_request *r, uint32_t op, uint64_t offset, uint64_t bytes, uint32_t flags)
{
    r->host.op = op;
    r->host.flags = flags;
    r->host.offset = offset;
    r->host.bytes = bytes;
    r->host.done = host_done;
    r->host.opaque = r;
    r->blk->dev.host->blk_submit(r->blk->disk, &r->host);
}

static void submit_range(struct vblk_request *r)
{
    const struct virtio_blk_discard_write_zeroes *g = &r->ranges[r->range++];
    bool discard = r->host.op == HVX_BLK_DISCARD;
    uint32_t flags = 0;
    if (!discard)
        flags = (g->flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP ? HVX_BLK_UNMAP : 0) |
                (r->blk->write_through ? HVX_BLK_FUA : 0);
    r->host.iov = NULL;
    r->host.n_iov = 0;
    submit(r, discard ? HVX_BLK_DISCARD : HVX_BLK_WRITE_ZEROES, g->sector * SECTOR, (uint64_t)g->num_sectors * SECTOR,
           flags);
}

static bool in_range(const struct vblk *b, uint64_t sector, uint64_t n_sectors)
{
    uint64_t capacity = b->info.bytes / SECTOR;
    return sector <= capacity && n_sectors <= capacity - sector;
}

/* The functions below take a request apart and start it. They return a status
 * for requests that end here and -1 for those that the host completes. */
#define STARTED (-1)

static int start_transfer(struct vblk_request *r, const struct virtio_blk_outhdr *h)
{
    struct vblk *b = r->blk;
    struct vq_chain *c = &r->chain;
    bool write = h->type & VIRTIO_BLK_T_OUT;
    uint64_t bytes = write ? c->out_bytes - BLK_HEADER_BYTES : c->in_bytes - 1;
    if (bytes % SECTOR || !in_range(b, h->sector, bytes / SECTOR) || (write && b->info.read_only)) {
        if (!write || !b->info.read_only)
            b->dev.host->guest_event(b->dev.vm, "virtio-blk", "%s of %llu bytes at sector %llu is outside the disk",
                                     write ? "write" : "read", (unsigned long long)bytes,
                                     (unsigned long long)h->sector);
        return VIRTIO_BLK_S_IOERR;
    }
    if (bytes == 0)
        return VIRTIO_BLK_S_OK;
    struct iovec *iov;
    unsigned n;
    if (write) {
        unsigned skip = vq_iov_skip(c->iov, c->n_out, BLK_HEADER_BYTES);
        iov = c->iov + skip;
        n = c->n_out - skip;
    } else {
        /* The status byte stays out of the host's list but in the chain. */
        iov = c->iov + c->n_out;
        n = c->n_in;
        r->shortened = &iov[n - 1];
        if (--r->shortened->iov_len == 0)
            n--;
    }
    r->host.iov = iov;
    r->host.n_iov = n;
    submit(r, write ? HVX_BLK_WRITE : HVX_BLK_READ, h->sector * SECTOR, bytes,
           write && b->write_through ? HVX_BLK_FUA : 0);
    return STARTED;
}

static int start_ranges(struct vblk_request *r, uint32_t type)
{
    struct vblk *b = r->blk;
    struct vq_chain *c = &r->chain;
    uint32_t bytes = c->out_bytes - BLK_HEADER_BYTES;
    bool discard = type == VIRTIO_BLK_T_DISCARD;
    if (!virtio_has(&b->dev, discard ? VIRTIO_BLK_F_DISCARD : VIRTIO_BLK_F_WRITE_ZEROES))
        return VIRTIO_BLK_S_UNSUPP;
    if (b->info.read_only)
        return VIRTIO_BLK_S_IOERR;
    if (bytes == 0 || bytes % sizeof(r->ranges[0]) || bytes > sizeof(r->ranges))
        return VIRTIO_BLK_S_IOERR;
    r->n_ranges = bytes / sizeof(r->ranges[0]);
    r->range = 0;
    vq_iov_read(c->iov, c->n_out, BLK_HEADER_BYTES, r->ranges, bytes);
    uint32_t known = discard ? 0 : VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    for (unsigned i = 0; i < r->n_ranges; i++) {
        const struct virtio_blk_discard_write_zeroes *g = &r->ranges[i];
        if (g->flags & ~known) /* 5.2.6.2: reserved flags, and unmap in a discard, are unsupported */
            return VIRTIO_BLK_S_UNSUPP;
        if (g->num_sectors == 0 || g->num_sectors > BLK_MAX_RANGE_SECTORS || !in_range(b, g->sector, g->num_sectors))
            return VIRTIO_BLK_S_IOERR;
    }
    r->host.op = discard ? HVX_BLK_DISCARD : HVX_BLK_WRITE_ZEROES;
    submit_range(r);
    return STARTED;
}

static int start(struct vblk_request *r)
{
    struct vblk *b = r->blk;
    struct vq_chain *c = &r->chain;
    struct virtio_blk_outhdr h;
    vq_iov_read(c->iov, c->n_out, 0, &h, sizeof(h));
    r->n_ranges = r->range = 0;
    switch (h.type) {
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_OUT: return start_transfer(r, &h);
    case VIRTIO_BLK_T_FLUSH:
        r->host.iov = NULL;
        r->host.n_iov = 0;
        submit(r, HVX_BLK_FLUSH, 0, 0, 0);
        return STARTED;
    case VIRTIO_BLK_T_GET_ID: {
        char id[VIRTIO_BLK_ID_BYTES] = {0}; /* not terminated when full (5.2.6.1) */
        memcpy(id, b->info.serial, strnlen(b->info.serial, sizeof(id)));
        uint32_t n = c->in_bytes - 1 < sizeof(id) ? c->in_bytes - 1 : sizeof(id);
        vq_iov_write(c->iov + c->n_out, c->n_in, 0, id, n);
        return VIRTIO_BLK_S_OK;
    }
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES: return start_ranges(r, h.type);
    default: return VIRTIO_BLK_S_UNSUPP;
    }
}

/* Take one chain. 1: go on; 0: nothing left; the device may be broken after. */
static int take(struct vblk *b, struct virtqueue *vq)
{
    struct vblk_request *r = peek_free(b);
    if (!r) {
        /* Rings bound what is in flight, so requests of an earlier life of
         * the device are still there; when one completes, work goes on. */
        b->starved = true;
        return 0;
    }
    if (vq_pop(vq, &r->chain) <= 0)
        return 0;
    struct vq_chain *c = &r->chain;
    if (c->out_bytes < BLK_HEADER_BYTES || c->in_bytes < 1) {
        virtio_broken(&b->dev, "queue %u: a request of %u readable and %u writable bytes", vq->index, c->out_bytes,
                      c->in_bytes);
        return 0;
    }
    b->free_requests = r->next_free;
    r->blk = b;
    r->vq = vq;
    r->generation = vq->generation;
    const struct iovec *last = &c->iov[c->n_out + c->n_in - 1];
    r->status = (uint8_t *)last->iov_base + last->iov_len - 1;
    virtio_hold(&b->dev);
    int status = start(r);
    if (status != STARTED) {
        finish(r, status);
        virtio_release(&b->dev);
    }
    return 1;
}

static void vblk_notify(struct virtio_dev *d, struct virtqueue *vq)
{
    struct vblk *b = (struct vblk *)d;
    unsigned budget = VQ_BUDGET;
    vq_disarm(vq);
    do {
        while (budget && take(b, vq))
            budget--;
    } while (budget && !b->starved && vq_rearm(vq));
    vq_flush(vq);
    if (!budget)
        d->host->timer_set(b->more, d->host->clock_ns());
}

static void vblk_more(void *opaque)
{
    struct vblk *b = opaque;
    for (unsigned i = 0; i < b->dev.n_queues; i++)
        if (vq_has_work(&b->dev.queues[i]))
            virtio_notify_queue(&b->dev, i);
}

/* --- configuration ------------------------------------------------------------------ */
static void vblk_set_cache(struct vblk *b)
{
    struct virtio_dev *d = &b->dev;
    /* 5.2.5.2: without CONFIG_WCE the cache is write-back exactly when the
     * driver can flush it. */
    if (virtio_has(d, VIRTIO_BLK_F_CONFIG_WCE))
        b->write_through = !vblk_config(b)->wce;
    else
        b->write_through = !virtio_has(d, VIRTIO_BLK_F_FLUSH);
}

static void vblk_features_set(struct virtio_dev *d)
{
    vblk_set_cache((struct vblk *)d);
}

static void vblk_config_write(struct virtio_dev *d, unsigned off, const uint8_t *bytes, unsigned n)
{
    struct vblk *b = (struct vblk *)d;
    if (off != offsetof(struct virtio_blk_config, wce) || n != 1 || !virtio_has(d, VIRTIO_BLK_F_CONFIG_WCE))
        return;
    vblk_config(b)->wce = bytes[0] & 1;
    vblk_set_cache(b);
}

static void vblk_fill_config(struct vblk *b, unsigned n_queues)
{
    struct virtio_blk_config *c = vblk_config(b);
    const struct hvx_blk_info *i = &b->info;
    uint32_t block = i->logical_block >= SECTOR && !(i->logical_block & (i->logical_block - 1)) ? i->logical_block
                                                                                                 : SECTOR;
    uint64_t cylinders = i->bytes / SECTOR / (16 * 63);
    uint32_t opt_sectors = i->opt_io_bytes / SECTOR > BLK_MAX_RANGE_SECTORS ? 0 : i->opt_io_bytes / SECTOR;
    c->capacity = i->bytes / SECTOR;
    c->seg_max = b->queue_size - 2; /* a chain without indirect descriptors must fit: header, data, status */
    c->geometry.cylinders = cylinders > 16383 ? 16383 : cylinders;
    c->geometry.heads = 16;
    c->geometry.sectors = 63;
    c->blk_size = block;
    c->physical_block_exp = block < 4096 ? __builtin_ctz(4096 / block) : 0;
    c->min_io_size = block < 4096 ? 4096 / block : 1;
    c->opt_io_size = i->opt_io_bytes / block > UINT32_MAX ? 0 : i->opt_io_bytes / block;
    c->wce = 1;
    c->num_queues = n_queues;
    c->max_discard_sectors = c->max_write_zeroes_sectors = BLK_MAX_RANGE_SECTORS;
    c->max_discard_seg = c->max_write_zeroes_seg = BLK_MAX_RANGES;
    c->discard_sector_alignment = opt_sectors ? opt_sectors : block / SECTOR;
    c->write_zeroes_may_unmap = i->can_discard != 0;

    uint64_t f = VIRTIO_BIT(VIRTIO_BLK_F_SEG_MAX) | VIRTIO_BIT(VIRTIO_BLK_F_GEOMETRY) |
                 VIRTIO_BIT(VIRTIO_BLK_F_BLK_SIZE) | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) |
                 VIRTIO_BIT(VIRTIO_BLK_F_TOPOLOGY) | VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE);
    if (i->read_only)
        f |= VIRTIO_BIT(VIRTIO_BLK_F_RO);
    if (n_queues > 1)
        f |= VIRTIO_BIT(VIRTIO_BLK_F_MQ);
    if (i->can_discard && !i->read_only)
        f |= VIRTIO_BIT(VIRTIO_BLK_F_DISCARD);
    if (i->can_write_zeroes && !i->read_only)
        f |= VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES);
    b->dev.offered = f;
    b->dev.config_bytes = offsetof(struct virtio_blk_config, unused1) + sizeof(c->unused1);
}

/* --- life ------------------------------------------------------------------------------ */
static void vblk_reset(struct virtio_dev *d)
{
    struct vblk *b = (struct vblk *)d;
    vblk_config(b)->wce = 1;
    d->host->timer_set(b->more, ~0ull);
    b->starved = false;
}

static int vblk_state(struct virtio_dev *d, struct hvx_stream *s)
{
    struct vblk *b = (struct vblk *)d;
    uint64_t bytes = b->info.bytes;
    hvx_state_u64(s, &bytes);
    if (!hvx_state_error(s) && bytes != b->info.bytes)
        hvx_state_fail(s, -EINVAL, "the disk has another size than when it was saved");
    if (!hvx_stream_is_saving(s))
        vblk_set_cache(b);
    return hvx_state_error(s);
}

static void vblk_resume(struct virtio_dev *d)
{
    /* Notifications between the pause and the save went nowhere. */
    d->host->timer_set(((struct vblk *)d)->more, d->host->clock_ns());
}

static const struct virtio_ops vblk_ops = {
    .name = "virtio-blk",
    .device_id = VIRTIO_ID_BLOCK,
    .legacy_pci = 0x1001,
    .class_code = 0x010000, /* SCSI storage: what existing drivers and firmware expect */
    .reset = vblk_reset,
    .features_set = vblk_features_set,
    .notify = vblk_notify,
    .config_write = vblk_config_write,
    .state = vblk_state,
    .resume = vblk_resume,
};

static void vblk_destroy(void *dev)
{
    struct vblk *b = dev;
    if (!b)
        return;
    if (b->more)
        b->dev.host->timer_del(b->more);
    virtio_destroy(&b->dev);
    free(b->requests);
    free(b);
}

static unsigned default_queues(const struct hvx_host *host, struct hvx_vm *vm)
{
    struct hvx_guest_info g = {.size = sizeof(g)};
    host->guest_info(vm, &g);
    return g.n_vcpus == 0 ? 1 : g.n_vcpus < BLK_QUEUES_DEFAULT ? g.n_vcpus : BLK_QUEUES_DEFAULT;
}

static int vblk_build(struct vblk *b, const struct hvx_host *host, struct hvx_vm *vm, const struct hvx_config *config,
                      struct hvx_error *err)
{
    const char *drive = host->conf_string(config, "drive");
    uint16_t sizes[BLK_QUEUES_MAX];
    unsigned n_queues = host->conf_int(config, "queues");
    b->dev.host = host;
    b->disk = drive ? host->blk_get(vm, drive) : NULL;
    if (!b->disk)
        return hvx_fail(err, -ENODEV, "virtio-blk: there is no disk \"%s\"; give one with --disk and name it here as "
                        "drive=disk0 (disk1, ...)", drive ? drive : "");
    b->info.size = sizeof(b->info);
    host->blk_info(b->disk, &b->info);
    if (n_queues == 0)
        n_queues = default_queues(host, vm);
    b->queue_size = host->conf_int(config, "queue-size");
    if (b->queue_size & (b->queue_size - 1))
        return hvx_fail(err, -EINVAL, "virtio-blk: queue-size=%u is not a power of two; try 128 or 256", b->queue_size);
    for (unsigned i = 0; i < n_queues; i++)
        sizes[i] = b->queue_size;
    vblk_fill_config(b, n_queues);
    b->n_requests = (size_t)n_queues * b->queue_size;
    b->requests = calloc(b->n_requests, sizeof(*b->requests)); /* about 7 KiB each, untouched until used */
    if (!b->requests)
        return hvx_fail(err, -ENOMEM, "virtio-blk: out of memory for %zu requests; try a smaller queue-size",
                        b->n_requests);
    int r = host->timer_new(vm, vblk_more, b, &b->more);
    if (r < 0)
        return hvx_fail(err, r, "virtio-blk: cannot make a timer: %s", strerror(-r));
    return virtio_create(&b->dev, &vblk_ops, host, vm, config, n_queues, sizes, err);
}

static int vblk_create(void *plugin_ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev,
                       struct hvx_error *err)
{
    const struct virtio_plugin *plugin = plugin_ctx;
    struct vblk *b = calloc(1, sizeof(*b));
    if (!b)
        return hvx_fail(err, -ENOMEM, "virtio-blk: out of memory");
    int r = vblk_build(b, plugin->host, vm, config, err);
    if (r < 0) {
        vblk_destroy(b);
        return r;
    }
    *dev = b;
    return 0;
}

static void vblk_type_reset(void *dev) { virtio_reset(dev); }
static int vblk_type_state(void *dev, struct hvx_stream *s) { return virtio_state(dev, s); }
static bool vblk_type_quiesced(void *dev) { return virtio_quiesced(dev); }

static const struct hvx_option vblk_options[] = {
    {.name = "drive", .type = HVX_OPT_STRING, .flags = HVX_OPTF_REQUIRED, .help = "the disk behind it: disk0, disk1, ..."},
    {.name = "queues", .type = HVX_OPT_INT, .min = 0, .max = BLK_QUEUES_MAX, .def = "0",
     .help = "number of queues; 0: one for each vCPU, at most 4"},
    {.name = "queue-size", .type = HVX_OPT_INT, .min = 4, .max = BLK_QUEUE_SIZE_MAX, .def = "256",
     .help = "entries in each queue, a power of two"},
    VIRTIO_COMMON_OPTIONS,
    {.name = NULL},
};

const struct hvx_device_type virtio_blk_type = {
    .size = sizeof(struct hvx_device_type),
    .role = HVX_ROLE_DISK,
    .rank = 100,
    .version = 1,
    .name = "virtio-blk",
    .summary = "virtio block device",
    .options = vblk_options,
    .create = vblk_create,
    .destroy = vblk_destroy,
    .reset = vblk_type_reset,
    .state = vblk_type_state,
    .quiesced = vblk_type_quiesced,
};
