/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-scsi.c - the SCSI host adapter (virtio 1.2, section 5.6): targets and
 * units, request queues, life. scsi.h has the commands.
 *
 * As with the block device each request queue owns as many request structures
 * as its ring has entries; commands complete in any order.
 */
#include "virtio-scsi.h"

#include <stdlib.h>
#include <string.h>

#define REQ_LUN 0u /* struct virtio_scsi_cmd_req, whose CDB is as long as the driver wants */
#define REQ_TAG 8u
#define REQ_CDB 19u
#define RESP_BYTES 12u /* struct virtio_scsi_cmd_resp without the sense data */

/* --- addresses -------------------------------------------------------------------------- */
bool vscsi_address(const uint8_t lun[8], uint8_t *target, uint16_t *out)
{
    if (lun[0] != 1 || (lun[2] & 0x80) || (!(lun[2] & 0x40) && lun[2]))
        return false;
    *target = lun[1];
    *out = (uint16_t)((lun[2] & 0x3f) << 8 | lun[3]);
    return true;
}

struct vscsi_unit *vscsi_find(struct vscsi *s, uint8_t target, uint16_t lun)
{
    for (unsigned i = 0; i < s->n_units; i++)
        if (s->units[i].target == target && s->units[i].lun == lun)
            return &s->units[i];
    return NULL;
}

bool vscsi_has_target(const struct vscsi *s, uint8_t target)
{
    for (unsigned i = 0; i < s->n_units; i++)
        if (s->units[i].target == target)
            return true;
    return false;
}

/* --- request structures ------------------------------------------------------------------- */
static struct vscsi_request *peek_free(struct vscsi *s)
{
    if (!s->free_requests && s->n_used < s->n_requests)
        s->free_requests = &s->requests[s->n_used++]; /* its next is NULL from calloc */
    return s->free_requests;
}

static void begin(struct vscsi *s, struct vscsi_request *r)
{
    s->free_requests = r->next;
    r->prev = &s->busy;
    r->next = s->busy.next;
    r->next->prev = r;
    s->busy.next = r;
    virtio_hold(&s->dev);
}

static void end(struct vscsi *s, struct vscsi_request *r)
{
    r->prev->next = r->next;
    r->next->prev = r->prev;
    r->next = s->free_requests;
    s->free_requests = r;
    virtio_release(&s->dev);
    if (s->starved) {
        s->starved = false;
        s->dev.host->timer_set(s->more, s->dev.host->clock_ns());
    }
    vscsi_tmf_check(s);
}

/* --- answers ---------------------------------------------------------------------------------- */
static void respond(struct vscsi_request *r, uint8_t response)
{
    struct vscsi *s = r->s;
    struct virtqueue *vq = r->vq;
    struct scsi_cmd *c = &r->cmd;
    if (r->generation == vq->generation) {
        struct virtio_scsi_cmd_resp h;
        uint32_t sense_size = vscsi_config(s)->sense_size, n_sense = response == VIRTIO_SCSI_S_OK ? c->n_sense : 0;
        uint32_t done = c->done_bytes < r->data_bytes ? c->done_bytes : r->data_bytes;
        memset(&h, 0, RESP_BYTES);
        if (n_sense > sense_size)
            n_sense = sense_size;
        h.sense_len = n_sense;
        h.resid = r->data_bytes - done;
        h.status = response == VIRTIO_SCSI_S_OK ? c->status : 0;
        h.response = response;
        vq_iov_write(r->resp, r->n_resp, 0, &h, RESP_BYTES);
        vq_iov_write(r->resp, r->n_resp, RESP_BYTES, c->sense, n_sense);
        /* A failed read may have written anywhere. */
        uint32_t used = RESP_BYTES + sense_size + (r->data_in ? done : 0);
        bool all = r->data_in && c->status != SCSI_GOOD;
        vq_chain_dirty(vq, &r->chain, all ? r->chain.in_bytes : used);
        vq_push(vq, r->chain.token, used < r->chain.in_bytes ? used : r->chain.in_bytes);
    } else {
        vq_chain_dirty(vq, &r->chain, r->chain.in_bytes);
    }
    end(s, r);
}

/* What a command did to its unit that the driver may want to hear of. */
static void tell_events(struct vscsi *s, const struct vscsi_request *r)
{
    const struct scsi_cmd *c = &r->cmd;
    const struct vscsi_unit *u = vscsi_find(s, r->target, r->lun);
    if (u && u->scsi.cdrom && c->cdb[0] == 0x1b && (c->cdb[4] & 2) && c->status == SCSI_GOOD &&
        virtio_has(&s->dev, VIRTIO_SCSI_F_CHANGE))
        vscsi_send_event(s, u, VIRTIO_SCSI_T_PARAM_CHANGE, u->scsi.ejected ? 0x3a : 0x28);
}

static void command_done(struct scsi_cmd *c)
{
    struct vscsi_request *r = (struct vscsi_request *)c;
    struct vscsi *s = r->s;
    struct virtqueue *vq = r->vq;
    if (r->generation == vq->generation)
        tell_events(s, r);
    respond(r, c->aborted ? r->response : c->overrun && c->status == SCSI_GOOD ? VIRTIO_SCSI_S_OVERRUN
                                                                               : VIRTIO_SCSI_S_OK);
    vq_flush(vq);
}

/* --- requests ---------------------------------------------------------------------------------- */
/* Where the answer's first bytes go; the rest of the writable part is data. */
static bool split_in(struct vscsi_request *r, uint32_t resp_bytes)
{
    struct vq_chain *c = &r->chain;
    uint32_t left = resp_bytes;
    unsigned k = 0;
    r->n_resp = 0;
    memcpy(r->in, c->iov + c->n_out, c->n_in * sizeof(r->in[0]));
    for (; k < c->n_in && left; k++) {
        size_t n = r->in[k].iov_len < left ? r->in[k].iov_len : left;
        if (r->n_resp == VSCSI_RESP_PIECES)
            return false;
        r->resp[r->n_resp++] = (struct iovec){r->in[k].iov_base, n};
        left -= (uint32_t)n;
        if (n < r->in[k].iov_len) {
            r->in[k].iov_base = (char *)r->in[k].iov_base + n;
            r->in[k].iov_len -= n;
            break;
        }
    }
    r->cmd.in = r->in + k;
    r->cmd.n_in = c->n_in - k;
    r->cmd.in_bytes = c->in_bytes - resp_bytes;
    return true;
}

static void start(struct vscsi *s, struct vscsi_request *r)
{
    struct vq_chain *c = &r->chain;
    struct scsi_cmd *cmd = &r->cmd;
    uint32_t cdb_size = vscsi_config(s)->cdb_size, head = REQ_CDB + cdb_size;
    uint8_t lun[8];
    uint16_t luns[VSCSI_UNITS_MAX];
    vq_iov_read(c->iov, c->n_out, REQ_LUN, lun, sizeof(lun));
    vq_iov_read(c->iov, c->n_out, REQ_TAG, &r->tag, sizeof(r->tag));
    memset(cmd->cdb, 0, sizeof(cmd->cdb));
    vq_iov_read(c->iov, c->n_out, REQ_CDB, cmd->cdb, cdb_size < SCSI_CDB_MAX ? cdb_size : SCSI_CDB_MAX);
    unsigned skip = vq_iov_skip(c->iov, c->n_out, head);
    cmd->out = c->iov + skip;
    cmd->n_out = c->n_out - skip;
    cmd->out_bytes = c->out_bytes - head;
    cmd->aborted = false;
    cmd->status = SCSI_GOOD;
    cmd->n_sense = 0;
    cmd->done_bytes = 0;
    cmd->done = command_done;
    r->data_in = cmd->in_bytes > 0;
    r->data_bytes = r->data_in ? cmd->in_bytes : cmd->out_bytes;
    if (!vscsi_address(lun, &r->target, &r->lun) || !vscsi_has_target(s, r->target)) {
        r->target = 0;
        r->lun = 0xffff; /* nobody's, for task management */
        respond(r, VIRTIO_SCSI_S_BAD_TARGET);
        return;
    }
    if (cmd->in_bytes && cmd->out_bytes) { /* INOUT is not offered */
        respond(r, VIRTIO_SCSI_S_FAILURE);
        return;
    }
    struct vscsi_unit *u = vscsi_find(s, r->target, r->lun);
    cmd->unit = u ? &u->scsi : NULL;
    cmd->n_luns = 0;
    for (unsigned i = 0; i < s->n_units; i++)
        if (s->units[i].target == r->target)
            luns[cmd->n_luns++] = s->units[i].lun;
    cmd->luns = luns; /* used before scsi_start returns */
    scsi_start(cmd);
}

/* Take one chain. 1: go on; 0: nothing left; the device may be broken after. */
static int take(struct vscsi *s, struct virtqueue *vq)
{
    struct vscsi_request *r = peek_free(s);
    if (!r) {
        s->starved = true; /* requests of an earlier life of the device are still there */
        return 0;
    }
    if (vq_pop(vq, &r->chain) <= 0)
        return 0;
    uint32_t head = REQ_CDB + vscsi_config(s)->cdb_size, resp = RESP_BYTES + vscsi_config(s)->sense_size;
    if (r->chain.out_bytes < head || r->chain.in_bytes < resp || !split_in(r, resp)) {
        virtio_broken(&s->dev, "queue %u: a request of %u readable and %u writable bytes", vq->index,
                      r->chain.out_bytes, r->chain.in_bytes);
        return 0;
    }
    r->s = s;
    r->vq = vq;
    r->generation = vq->generation;
    begin(s, r);
    start(s, r);
    return 1;
}

static void vscsi_notify(struct virtio_dev *d, struct virtqueue *vq)
{
    struct vscsi *s = (struct vscsi *)d;
    unsigned budget = VQ_BUDGET;
    if (vq->index == VSCSI_CTRL) {
        vscsi_control(s, vq);
        return;
    }
    if (vq->index == VSCSI_EVENT) {
        vscsi_serve_events(s);
        return;
    }
    vq_disarm(vq);
    do {
        while (budget && take(s, vq))
            budget--;
    } while (budget && !s->starved && vq_rearm(vq));
    vq_flush(vq);
    if (!budget)
        d->host->timer_set(s->more, d->host->clock_ns());
}

static void vscsi_more(void *opaque)
{
    struct vscsi *s = opaque;
    for (unsigned i = 0; i < s->dev.n_queues; i++)
        if (i != VSCSI_EVENT && vq_has_work(&s->dev.queues[i]))
            virtio_notify_queue(&s->dev, i);
}

/* --- configuration ------------------------------------------------------------------------------ */
static void vscsi_config_write(struct virtio_dev *d, unsigned off, const uint8_t *bytes, unsigned n)
{
    struct vscsi *s = (struct vscsi *)d;
    uint32_t v;
    if (n != sizeof(v))
        return;
    memcpy(&v, bytes, sizeof(v));
    if (off == offsetof(struct virtio_scsi_config, sense_size) && v <= VSCSI_SENSE_MAX)
        vscsi_config(s)->sense_size = v;
    else if (off == offsetof(struct virtio_scsi_config, cdb_size) && v >= 6 && v <= SCSI_CDB_MAX)
        vscsi_config(s)->cdb_size = v;
    else
        d->host->guest_event(d->vm, "virtio-scsi", "driver wrote %u at offset %u of the configuration", v, off);
}

static void default_sizes(struct vscsi *s)
{
    vscsi_config(s)->sense_size = VSCSI_SENSE_DEFAULT;
    vscsi_config(s)->cdb_size = VSCSI_CDB_DEFAULT;
}

static void fill_config(struct vscsi *s, unsigned n_queues)
{
    struct virtio_scsi_config *c = vscsi_config(s);
    c->num_queues = n_queues;
    c->seg_max = s->queue_size - 2 < 254 ? s->queue_size - 2 : 254;
    c->max_sectors = VSCSI_MAX_SECTORS;
    c->cmd_per_lun = s->queue_size - 2 < 128 ? s->queue_size - 2 : 128;
    c->event_info_size = sizeof(struct virtio_scsi_event);
    c->max_channel = 0;
    c->max_target = VSCSI_TARGETS_MAX - 1;
    c->max_lun = 16383;
    default_sizes(s);
    s->dev.offered = VIRTIO_BIT(VIRTIO_SCSI_F_CHANGE);
    s->dev.config_bytes = sizeof(*c);
}

/* --- life -------------------------------------------------------------------------------------------- */
static void vscsi_reset(struct virtio_dev *d)
{
    struct vscsi *s = (struct vscsi *)d;
    default_sizes(s);
    d->host->timer_set(s->more, ~0ull);
    s->starved = s->events_missed = s->tmf_waits = false;
    for (unsigned i = 0; i < s->n_units; i++)
        scsi_unit_reset(&s->units[i].scsi);
}

static int vscsi_state(struct virtio_dev *d, struct hvx_stream *st)
{
    struct vscsi *s = (struct vscsi *)d;
    uint32_t n = s->n_units;
    hvx_state_u32(st, &n);
    hvx_state_bool(st, &s->events_missed);
    if (!hvx_state_error(st) && n != s->n_units)
        hvx_state_fail(st, -EINVAL, "the saved SCSI adapter has another number of disks");
    for (unsigned i = 0; i < s->n_units && !hvx_state_error(st); i++)
        (void)scsi_unit_state(&s->units[i].scsi, st);
    /* These are limits of ours: a changed file must not widen them. */
    if (!hvx_state_error(st) && (vscsi_config(s)->sense_size > VSCSI_SENSE_MAX || vscsi_config(s)->cdb_size < 6 ||
                                 vscsi_config(s)->cdb_size > SCSI_CDB_MAX)) {
        default_sizes(s);
        hvx_state_fail(st, -EINVAL, "the saved sizes of sense data or commands are out of range");
    }
    return hvx_state_error(st);
}

static void vscsi_resume(struct virtio_dev *d)
{
    d->host->timer_set(((struct vscsi *)d)->more, d->host->clock_ns());
}

static const struct virtio_ops vscsi_ops = {
    .name = "virtio-scsi",
    .device_id = VIRTIO_ID_SCSI,
    .legacy_pci = 0x1004,
    .class_code = 0x010000,
    .reset = vscsi_reset,
    .notify = vscsi_notify,
    .config_write = vscsi_config_write,
    .state = vscsi_state,
    .resume = vscsi_resume,
};

static void vscsi_destroy(void *dev)
{
    struct vscsi *s = dev;
    if (!s)
        return;
    if (s->more)
        s->dev.host->timer_del(s->more);
    virtio_destroy(&s->dev);
    free(s->requests);
    free(s);
}

/* "disk0:disk1+disk2": targets 0 and 1, the second with units 0 and 1. */
static int add_units(struct vscsi *s, const char *list, struct hvx_error *err)
{
    unsigned target = 0, lun = 0;
    for (const char *p = list; *p;) {
        char id[24];
        size_t n = strcspn(p, ":+");
        struct hvx_blk *disk;
        snprintf(id, sizeof(id), "%.*s", (int)(n < sizeof(id) ? n : sizeof(id) - 1), p);
        disk = s->dev.host->blk_get(s->dev.vm, id);
        if (!disk)
            return hvx_fail(err, -ENODEV, "virtio-scsi: there is no disk \"%s\"; give one with --disk and name it in "
                            "drives=disk0:disk1 (targets 0 and 1) or drives=disk0+disk1 (units 0 and 1 of target 0)", id);
        if (s->n_units == VSCSI_UNITS_MAX)
            return hvx_fail(err, -E2BIG, "virtio-scsi: more than %u disks; use a second adapter", VSCSI_UNITS_MAX);
        struct vscsi_unit *u = &s->units[s->n_units++];
        scsi_unit_init(&u->scsi, s->dev.host, disk);
        u->target = (uint8_t)target;
        u->lun = (uint16_t)lun;
        p += n;
        if (*p == '+')
            lun++;
        else
            target++, lun = 0;
        p += *p != 0;
    }
    return 0;
}

static unsigned default_queues(const struct hvx_host *host, struct hvx_vm *vm)
{
    struct hvx_guest_info g = {.size = sizeof(g)};
    host->guest_info(vm, &g);
    return g.n_vcpus == 0 ? 1 : g.n_vcpus < VSCSI_QUEUES_DEFAULT ? g.n_vcpus : VSCSI_QUEUES_DEFAULT;
}

static int vscsi_build(struct vscsi *s, const struct hvx_config *config, struct hvx_error *err)
{
    const struct hvx_host *host = s->dev.host;
    const char *drives = host->conf_string(config, "drives");
    uint16_t sizes[VSCSI_FIRST + VSCSI_QUEUES_MAX] = {64, 64};
    unsigned n_queues = host->conf_int(config, "queues");
    int r = add_units(s, drives ? drives : "", err);
    if (r < 0)
        return r;
    if (n_queues == 0)
        n_queues = default_queues(host, s->dev.vm);
    s->queue_size = host->conf_int(config, "queue-size");
    if (s->queue_size & (s->queue_size - 1))
        return hvx_fail(err, -EINVAL, "virtio-scsi: queue-size=%u is not a power of two; try 128 or 256", s->queue_size);
    for (unsigned i = 0; i < n_queues; i++)
        sizes[VSCSI_FIRST + i] = s->queue_size;
    fill_config(s, n_queues);
    s->busy.next = s->busy.prev = &s->busy;
    s->n_requests = (size_t)n_queues * s->queue_size;
    s->requests = calloc(s->n_requests, sizeof(*s->requests)); /* about 20 KiB each, untouched until used */
    if (!s->requests)
        return hvx_fail(err, -ENOMEM, "virtio-scsi: out of memory for %zu requests; try a smaller queue-size",
                        s->n_requests);
    r = host->timer_new(s->dev.vm, vscsi_more, s, &s->more);
    if (r < 0)
        return hvx_fail(err, r, "virtio-scsi: cannot make a timer: %s", strerror(-r));
    return virtio_create(&s->dev, &vscsi_ops, host, s->dev.vm, config, VSCSI_FIRST + n_queues, sizes, err);
}

static int vscsi_create(void *plugin_ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev,
                        struct hvx_error *err)
{
    struct vscsi *s = calloc(1, sizeof(*s));
    if (!s)
        return hvx_fail(err, -ENOMEM, "virtio-scsi: out of memory");
    s->dev.host = ((const struct virtio_plugin *)plugin_ctx)->host;
    s->dev.vm = vm;
    int r = vscsi_build(s, config, err);
    if (r < 0) {
        vscsi_destroy(s);
        return r;
    }
    *dev = s;
    return 0;
}

static void vscsi_type_reset(void *dev) { virtio_reset(dev); }
static int vscsi_type_state(void *dev, struct hvx_stream *s) { return virtio_state(dev, s); }
static bool vscsi_type_quiesced(void *dev) { return virtio_quiesced(dev); }

static const struct hvx_option vscsi_options[] = {
    {.name = "drives", .type = HVX_OPT_STRING, .flags = HVX_OPTF_REQUIRED,
     .help = "disks behind it: disk0:disk1 are targets 0 and 1, disk0+disk1 units 0 and 1 of one target"},
    {.name = "queues", .type = HVX_OPT_INT, .min = 0, .max = VSCSI_QUEUES_MAX, .def = "0",
     .help = "number of request queues; 0: one for each vCPU, at most 4"},
    {.name = "queue-size", .type = HVX_OPT_INT, .min = 4, .max = VSCSI_QUEUE_SIZE_MAX, .def = "256",
     .help = "entries in each request queue, a power of two"},
    VIRTIO_COMMON_OPTIONS,
    {.name = NULL},
};

const struct hvx_device_type virtio_scsi_type = {
    .size = sizeof(struct hvx_device_type),
    .role = HVX_ROLE_SCSI,
    .rank = 100,
    .version = 1,
    .name = "virtio-scsi",
    .summary = "virtio SCSI host adapter with disks and CD-ROM drives",
    .options = vscsi_options,
    .create = vscsi_create,
    .destroy = vscsi_destroy,
    .reset = vscsi_type_reset,
    .state = vscsi_type_state,
    .quiesced = vscsi_type_quiesced,
};
