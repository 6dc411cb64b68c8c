/* SPDX-License-Identifier: Apache-2.0
 *
 * pci-legacy.c - the register interface of drivers older than virtio 1.0, in
 * I/O BAR 0 (virtio 1.2, section 4.1.4.10). A queue is one page-aligned block
 * given by its page number; the driver cannot choose its size; the device
 * configuration follows the registers and moves by four bytes with MSI-X.
 */
#include <linux/virtio_ring.h>

#include "virtio.h"

/* Feature bits of the interface itself that a legacy driver may see. */
#define LEGACY_FEATURES 0xffffffffull

static unsigned config_offset(const struct virtio_dev *d)
{
    return VIRTIO_PCI_CONFIG_OFF(d->host->pci_msix_enabled(d->pci));
}

/* 2.7.2: descriptors, available ring, then the used ring on the next page. */
static void place_queue(struct virtio_dev *d, struct virtqueue *vq, uint32_t pfn)
{
    const char *why = "";
    uint16_t vector = vq->vector;
    vq_reset(vq);
    vq->vector = vector;
    virtio_set_features(d, d->features);
    if (pfn == 0)
        return;
    vq->desc_gpa = (uint64_t)pfn << VIRTIO_PCI_QUEUE_ADDR_SHIFT;
    vq->avail_gpa = vq->desc_gpa + vq_desc_bytes(vq->size);
    vq->used_gpa = (vq->avail_gpa + vq_avail_bytes(vq->size) + VIRTIO_PCI_VRING_ALIGN - 1) &
                   ~(uint64_t)(VIRTIO_PCI_VRING_ALIGN - 1);
    if (vq_enable(vq, &why) < 0)
        virtio_broken(d, "queue %u at page %#x cannot be used: %s", vq->index, pfn, why);
}

static uint64_t legacy_read(void *opaque, uint64_t off, unsigned size)
{
    struct virtio_dev *d = opaque;
    struct virtqueue *vq = virtio_selected_queue(d);
    bool msix = d->host->pci_msix_enabled(d->pci);
    if (off >= config_offset(d))
        return virtio_config_read(d, off - config_offset(d), size);
    switch (off) {
    case VIRTIO_PCI_HOST_FEATURES: return d->offered & LEGACY_FEATURES;
    case VIRTIO_PCI_GUEST_FEATURES: return d->features & LEGACY_FEATURES;
    case VIRTIO_PCI_QUEUE_PFN: return vq && vq->enabled ? vq->desc_gpa >> VIRTIO_PCI_QUEUE_ADDR_SHIFT : 0;
    case VIRTIO_PCI_QUEUE_NUM: return vq ? vq->size : 0;
    case VIRTIO_PCI_QUEUE_SEL: return d->queue_sel;
    case VIRTIO_PCI_STATUS: return d->status;
    case VIRTIO_PCI_ISR: return virtio_read_isr(d);
    case VIRTIO_MSI_CONFIG_VECTOR: return msix ? d->config_vector : 0;
    case VIRTIO_MSI_QUEUE_VECTOR: return msix && vq ? vq->vector : VQ_NO_VECTOR;
    }
    return 0;
}

static void legacy_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct virtio_dev *d = opaque;
    struct virtqueue *vq = virtio_selected_queue(d);
    bool msix = d->host->pci_msix_enabled(d->pci);
    if (off >= config_offset(d)) {
        virtio_config_write(d, off - config_offset(d), size, value);
        return;
    }
    switch (off) {
    case VIRTIO_PCI_GUEST_FEATURES:
        if (size == 4)
            virtio_set_features(d, value & d->offered & LEGACY_FEATURES);
        return;
    case VIRTIO_PCI_QUEUE_PFN:
        if (size == 4 && vq)
            place_queue(d, vq, value);
        return;
    case VIRTIO_PCI_QUEUE_SEL: d->queue_sel = value; return;
    case VIRTIO_PCI_QUEUE_NOTIFY: virtio_notify_queue(d, value & 0xffff); return;
    case VIRTIO_PCI_STATUS: virtio_write_status(d, value, false); return;
    case VIRTIO_MSI_CONFIG_VECTOR:
        if (msix)
            d->config_vector = virtio_check_vector(d, value);
        return;
    case VIRTIO_MSI_QUEUE_VECTOR:
        if (msix && vq)
            vq->vector = virtio_check_vector(d, value);
        return;
    }
}

const struct hvx_region_ops virtio_legacy_region = {.read = legacy_read, .write = legacy_write};
