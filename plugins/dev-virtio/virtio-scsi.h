/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-scsi.h - the SCSI host adapter's own structures.
 */
#ifndef DEV_VIRTIO_VIRTIO_SCSI_H
#define DEV_VIRTIO_VIRTIO_SCSI_H

#include <linux/virtio_scsi.h>

#include "scsi.h"
#include "virtio.h"

#define VSCSI_QUEUES_MAX 16u     /* of requests */
#define VSCSI_QUEUES_DEFAULT 4u
#define VSCSI_QUEUE_SIZE_MAX 256u
#define VSCSI_UNITS_MAX 32u
#define VSCSI_TARGETS_MAX 256u
#define VSCSI_CDB_DEFAULT 32u
#define VSCSI_SENSE_DEFAULT 96u
#define VSCSI_SENSE_MAX 252u
#define VSCSI_RESP_PIECES 8u     /* the answer's header may lie in so many buffers */
#define VSCSI_MAX_SECTORS 0xffffu

enum { VSCSI_CTRL, VSCSI_EVENT, VSCSI_FIRST };

struct vscsi;

struct vscsi_request {
    struct scsi_cmd cmd;
    struct vscsi *s;
    struct virtqueue *vq;
    uint32_t generation;
    struct vscsi_request *next, *prev; /* free list, or the list of those under way */
    uint8_t target;
    uint16_t lun;
    uint64_t tag;
    uint8_t response;          /* VIRTIO_SCSI_S_*, once aborted */
    bool data_in;
    uint32_t data_bytes;
    struct iovec resp[VSCSI_RESP_PIECES];
    unsigned n_resp;
    struct iovec in[VQ_IOV_MAX]; /* chain.iov keeps its shape: what was written is counted by it */
    struct vq_chain chain;
};

struct vscsi_unit {
    struct scsi_unit scsi;
    uint8_t target;
    uint16_t lun;
};

struct vscsi {
    struct virtio_dev dev; /* first */
    struct vscsi_unit units[VSCSI_UNITS_MAX];
    unsigned n_units;
    struct hvx_timer *more;
    unsigned queue_size;
    struct vscsi_request *requests;
    size_t n_requests, n_used; /* those from n_used on were never touched */
    struct vscsi_request *free_requests;
    struct vscsi_request busy; /* head of a ring: those under way */
    bool starved;
    bool events_missed;
    /* The task management function that waits for commands to end; others wait behind it. */
    bool tmf_waits;
    uint8_t tmf_answer;
    uint32_t tmf_generation;
    struct vq_chain ctrl; /* of the command that is being served */
    struct vq_chain event;
};

static inline struct virtio_scsi_config *vscsi_config(struct vscsi *s)
{
    return (struct virtio_scsi_config *)(void *)s->dev.config;
}

/* virtio-scsi-ctrl.c: the control and event queues */
void vscsi_control(struct vscsi *s, struct virtqueue *vq);
void vscsi_tmf_check(struct vscsi *s); /* a command ended: was somebody waiting for it? */
void vscsi_send_event(struct vscsi *s, const struct vscsi_unit *u, uint32_t event, uint32_t reason);
void vscsi_serve_events(struct vscsi *s); /* the driver has buffers again */
/* The address in a request (5.6.6.1); false: not of a form that can exist here. */
bool vscsi_address(const uint8_t lun[8], uint8_t *target, uint16_t *out);
struct vscsi_unit *vscsi_find(struct vscsi *s, uint8_t target, uint16_t lun);
bool vscsi_has_target(const struct vscsi *s, uint8_t target);
#endif
