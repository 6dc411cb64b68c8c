/* SPDX-License-Identifier: Apache-2.0
 *
 * test_driver.h - a small virtio driver that plays the guest in unit tests:
 * finds the device on the fake host's PCI bus, negotiates through the legacy
 * or the modern registers, and drives split or packed rings in guest RAM.
 */
#ifndef DEV_VIRTIO_TEST_DRIVER_H
#define DEV_VIRTIO_TEST_DRIVER_H

#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

#include <hvx/test.h>

extern const struct hvx_plugin hvx_plugin_dev_virtio;

#define DRV_QUEUES 12u
#define DRV_RAM (64u << 20)
#define BIT(n) (1ull << (n))

struct seg {
    uint64_t gpa;
    uint32_t len;
    bool write; /* by the device */
};

struct drvq {
    uint16_t index, size;
    uint64_t desc_gpa, avail_gpa, used_gpa;
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    struct vring_packed_desc *pdesc;
    struct vring_packed_desc_event *driver_event, *device_event;
    uint16_t next_desc;   /* bump allocation round the table: tests keep few chains in flight */
    uint16_t avail_idx, last_used, kicked;
    bool avail_wrap, used_wrap;
    uint16_t packed_len[1024]; /* by id: ring entries that the chain took */
};

struct drv {
    struct hvx_vm *vm;
    struct hvx_pci_dev *pci;
    bool modern, packed, event_idx;
    uint64_t bar;      /* of the interface in use */
    uint64_t features; /* agreed */
    uint64_t next;     /* free guest memory */
    struct drvq q[DRV_QUEUES];
};

/* --- instances --- */
struct instance {
    struct hvx_vm *vm;
    void *ctx, *dev;
    struct hvx_config *config;
    const struct hvx_device_type *type;
    struct drv d;
};
/* Make a device in a VM that the caller furnished with disks and networks. */
void instance_open(struct instance *i, struct hvx_vm *vm, const char *type, const char *options);
void instance_close(struct instance *i); /* frees the VM too */
const struct hvx_device_type *device_type(const char *name);

/* --- the driver --- */
void drv_find(struct drv *d, struct hvx_vm *vm, bool modern);
/* Reset, then agree on `want` as far as offered; false: the device refused. */
bool drv_negotiate(struct drv *d, uint64_t want);
uint64_t drv_offered(struct drv *d);
void drv_set_status(struct drv *d, uint8_t v);
uint8_t drv_status(struct drv *d);
uint8_t drv_isr(struct drv *d);
/* Make ring memory for a queue and switch it on; size 0: the device's. */
struct drvq *drv_queue(struct drv *d, unsigned index, unsigned size);
void drv_place_queue(struct drv *d, struct drvq *q); /* tell the device where the rings of q are */
uint16_t drv_queue_size(struct drv *d, unsigned index);
void drv_set_vectors(struct drv *d, unsigned queue, uint16_t queue_vector, uint16_t config_vector);
void drv_ok(struct drv *d);
/* All of it: negotiate, n queues, DRIVER_OK. */
void drv_start(struct drv *d, struct hvx_vm *vm, bool modern, uint64_t want, unsigned n_queues);
uint64_t drv_config(struct drv *d, unsigned off, unsigned size);
void drv_set_config(struct drv *d, unsigned off, unsigned size, uint64_t v);

uint64_t drv_alloc(struct drv *d, size_t n, size_t align);
void *drv_mem(struct drv *d, uint64_t gpa, size_t n);
/* Make a chain available; returns its id. Not visible to the device's
 * notification before drv_kick(). */
uint16_t drv_add(struct drv *d, struct drvq *q, const struct seg *segs, unsigned n);
uint16_t drv_add_indirect(struct drv *d, struct drvq *q, const struct seg *segs, unsigned n);
/* Split: publish a raw head. */
void drv_publish(struct drvq *q, uint16_t head);
/* Notify if the device wants it; returns whether it did. */
bool drv_kick(struct drv *d, struct drvq *q);
void drv_notify(struct drv *d, unsigned index); /* unconditionally */
/* Next used chain: its id, or -1. */
int drv_used(struct drv *d, struct drvq *q, uint32_t *len);
#endif
