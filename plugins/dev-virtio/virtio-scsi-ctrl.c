/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-scsi-ctrl.c - task management, and events (virtio 1.2, 5.6.6.2, 5.6.6.3).
 *
 * The block layer cannot take a request back. An aborted command therefore
 * ends when its transfer does, and only then is the abort confirmed: until
 * then the guest's buffers are in use. One such function is under way at a
 * time; those behind it stay in the queue.
 */
#include "virtio-scsi.h"

#include <string.h>

/* --- task management ------------------------------------------------------------- */
static bool concerns(const struct vscsi_request *r, uint32_t subtype, uint8_t target, uint16_t lun, uint64_t tag)
{
    if (r->target != target || r->generation != r->vq->generation)
        return false;
    if (subtype == VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET)
        return true;
    if (r->lun != lun)
        return false;
    return (subtype != VIRTIO_SCSI_T_TMF_ABORT_TASK && subtype != VIRTIO_SCSI_T_TMF_QUERY_TASK) || r->tag == tag;
}

/* Mark what the function is about; returns how many commands that are. */
static unsigned abort_commands(struct vscsi *s, uint32_t subtype, uint8_t target, uint16_t lun, uint64_t tag)
{
    bool reset = subtype == VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET || subtype == VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET;
    unsigned n = 0;
    for (struct vscsi_request *r = s->busy.next; r != &s->busy; r = r->next) {
        if (!concerns(r, subtype, target, lun, tag))
            continue;
        r->cmd.aborted = true;
        r->response = reset ? VIRTIO_SCSI_S_RESET : VIRTIO_SCSI_S_ABORTED;
        n++;
    }
    for (unsigned i = 0; i < s->n_units && reset; i++) {
        struct vscsi_unit *u = &s->units[i];
        if (u->target == target && (subtype == VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET || u->lun == lun))
            scsi_unit_reset(&u->scsi);
    }
    return n;
}

static unsigned count_commands(struct vscsi *s, uint32_t subtype, uint8_t target, uint16_t lun, uint64_t tag)
{
    unsigned n = 0;
    for (struct vscsi_request *r = s->busy.next; r != &s->busy; r = r->next)
        n += concerns(r, subtype, target, lun, tag);
    return n;
}

static bool aborts_pending(const struct vscsi *s)
{
    for (const struct vscsi_request *r = s->busy.next; r != &s->busy; r = r->next)
        if (r->cmd.aborted && r->generation == r->vq->generation)
            return true;
    return false;
}

/* The answer to a function; *wait: when the aborted commands have ended. */
static uint8_t task_management(struct vscsi *s, const struct virtio_scsi_ctrl_tmf_req *q, bool *wait)
{
    uint8_t target;
    uint16_t lun;
    if (!vscsi_address(q->lun, &target, &lun) || !vscsi_has_target(s, target))
        return VIRTIO_SCSI_S_BAD_TARGET;
    if (q->subtype != VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET && !vscsi_find(s, target, lun))
        return VIRTIO_SCSI_S_INCORRECT_LUN;
    switch (q->subtype) {
    case VIRTIO_SCSI_T_TMF_ABORT_TASK:
    case VIRTIO_SCSI_T_TMF_ABORT_TASK_SET:
    case VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET:
    case VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET:
    case VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET:
        *wait = abort_commands(s, q->subtype, target, lun, q->tag) > 0;
        return VIRTIO_SCSI_S_OK;
    case VIRTIO_SCSI_T_TMF_QUERY_TASK:
    case VIRTIO_SCSI_T_TMF_QUERY_TASK_SET:
        return count_commands(s, q->subtype, target, lun, q->tag) ? VIRTIO_SCSI_S_FUNCTION_SUCCEEDED
                                                                  : VIRTIO_SCSI_S_OK;
    default:
        return VIRTIO_SCSI_S_FUNCTION_REJECTED;
    }
}

static void answer(struct vscsi *s, struct virtqueue *vq, const void *bytes, uint32_t n)
{
    struct vq_chain *c = &s->ctrl;
    n = (uint32_t)vq_iov_write(c->iov + c->n_out, c->n_in, 0, bytes, n);
    vq_chain_dirty(vq, c, n);
    vq_push(vq, c->token, n);
}

static void control_command(struct vscsi *s, struct virtqueue *vq)
{
    struct vq_chain *c = &s->ctrl;
    uint32_t type;
    if (c->in_bytes < 1 || vq_iov_read(c->iov, c->n_out, 0, &type, sizeof(type)) != sizeof(type)) {
        virtio_broken(&s->dev, "queue %u: a control request of %u readable and %u writable bytes", vq->index,
                      c->out_bytes, c->in_bytes);
        return;
    }
    if (type == VIRTIO_SCSI_T_TMF) {
        struct virtio_scsi_ctrl_tmf_req q;
        bool wait = false;
        if (vq_iov_read(c->iov, c->n_out, 0, &q, sizeof(q)) != sizeof(q)) {
            virtio_broken(&s->dev, "queue %u: a task management request of %u bytes", vq->index, c->out_bytes);
            return;
        }
        s->tmf_answer = task_management(s, &q, &wait);
        s->tmf_waits = wait;
        s->tmf_generation = vq->generation;
        if (!wait)
            answer(s, vq, &s->tmf_answer, 1);
    } else if (type == VIRTIO_SCSI_T_AN_QUERY || type == VIRTIO_SCSI_T_AN_SUBSCRIBE) {
        /* No asynchronous notification of media is offered. */
        struct virtio_scsi_ctrl_an_resp r = {.event_actual = 0, .response = VIRTIO_SCSI_S_OK};
        answer(s, vq, &r, sizeof(r));
    } else {
        uint8_t rejected = VIRTIO_SCSI_S_FUNCTION_REJECTED;
        answer(s, vq, &rejected, 1);
    }
}

void vscsi_control(struct vscsi *s, struct virtqueue *vq)
{
    unsigned budget = VQ_BUDGET;
    vq_disarm(vq);
    do {
        while (budget && !s->tmf_waits && vq_pop(vq, &s->ctrl) > 0) {
            control_command(s, vq);
            budget--;
        }
    } while (budget && !s->tmf_waits && vq_rearm(vq));
    vq_flush(vq);
    if (!budget)
        s->dev.host->timer_set(s->more, s->dev.host->clock_ns());
}

void vscsi_tmf_check(struct vscsi *s)
{
    struct virtqueue *vq = &s->dev.queues[VSCSI_CTRL];
    if (!s->tmf_waits || aborts_pending(s))
        return;
    s->tmf_waits = false;
    if (s->tmf_generation != vq->generation)
        return;
    answer(s, vq, &s->tmf_answer, 1);
    vq_flush(vq);
    s->dev.host->timer_set(s->more, s->dev.host->clock_ns()); /* those behind it */
}

/* --- events ------------------------------------------------------------------------ */
static bool put_event(struct vscsi *s, const struct virtio_scsi_event *e)
{
    struct virtqueue *vq = &s->dev.queues[VSCSI_EVENT];
    struct vq_chain *c = &s->event;
    if (!vq->enabled || !virtio_running(&s->dev) || vq_pop(vq, c) <= 0)
        return false;
    if (c->n_out || c->in_bytes < sizeof(*e)) {
        virtio_broken(&s->dev, "queue %u: an event buffer of %u readable and %u writable bytes", vq->index,
                      c->out_bytes, c->in_bytes);
        return false;
    }
    vq_iov_write(c->iov, c->n_in, 0, e, sizeof(*e));
    vq_chain_dirty(vq, c, sizeof(*e));
    vq_push(vq, c->token, sizeof(*e));
    vq_flush(vq);
    return true;
}

void vscsi_send_event(struct vscsi *s, const struct vscsi_unit *u, uint32_t event, uint32_t reason)
{
    struct virtio_scsi_event e = {
        .event = event | (s->events_missed ? VIRTIO_SCSI_T_EVENTS_MISSED : 0),
        .lun = {1, u->target, (uint8_t)(0x40 | u->lun >> 8), (uint8_t)u->lun},
        .reason = reason,
    };
    s->events_missed = !put_event(s, &e);
}

void vscsi_serve_events(struct vscsi *s)
{
    struct virtio_scsi_event e = {.event = VIRTIO_SCSI_T_NO_EVENT | VIRTIO_SCSI_T_EVENTS_MISSED};
    vq_disarm(&s->dev.queues[VSCSI_EVENT]); /* the buffers wait there until something happens */
    if (s->events_missed)
        s->events_missed = !put_event(s, &e);
    if (s->events_missed && vq_rearm(&s->dev.queues[VSCSI_EVENT]))
        s->events_missed = !put_event(s, &e);
}
