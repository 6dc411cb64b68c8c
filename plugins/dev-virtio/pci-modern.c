/* SPDX-License-Identifier: Apache-2.0
 *
 * pci-modern.c - the virtio 1.x register interface: common configuration,
 * ISR, device configuration and notification, a page each in one memory BAR
 * (virtio 1.2, sections 4.1.4.3 to 4.1.4.6).
 */
#include <string.h>

#include "virtio.h"

#define FIELD(name) offsetof(struct virtio_pci_common_cfg, name)

static uint32_t common_read(struct virtio_dev *d, unsigned off)
{
    struct virtqueue *vq = virtio_selected_queue(d);
    switch (off) {
    case FIELD(device_feature_select): return d->offered_sel;
    case FIELD(device_feature):
        /* ANY_LAYOUT (bit 27) is for legacy drivers; the modern interface implies it. */
        return d->offered_sel < 2 ? (d->offered & ~VIRTIO_BIT(VIRTIO_F_ANY_LAYOUT)) >> (32 * d->offered_sel) : 0;
    case FIELD(guest_feature_select): return d->driver_sel;
    case FIELD(guest_feature): return d->driver_sel < 2 ? d->driver_features >> (32 * d->driver_sel) : 0;
    case FIELD(msix_config): return d->config_vector;
    case FIELD(num_queues): return d->n_queues;
    case FIELD(device_status): return d->reset_pending ? d->reset_status : d->status;
    case FIELD(config_generation): return d->config_generation;
    case FIELD(queue_select): return d->queue_sel;
    case FIELD(queue_size): return vq ? vq->size : 0;
    case FIELD(queue_msix_vector): return vq ? vq->vector : VQ_NO_VECTOR;
    case FIELD(queue_enable): return vq && vq->enabled;
    case FIELD(queue_notify_off): return vq ? vq->index : 0;
    case FIELD(queue_desc_lo): return vq ? vq->desc_gpa : 0;
    case FIELD(queue_desc_hi): return vq ? vq->desc_gpa >> 32 : 0;
    case FIELD(queue_avail_lo): return vq ? vq->avail_gpa : 0;
    case FIELD(queue_avail_hi): return vq ? vq->avail_gpa >> 32 : 0;
    case FIELD(queue_used_lo): return vq ? vq->used_gpa : 0;
    case FIELD(queue_used_hi): return vq ? vq->used_gpa >> 32 : 0;
    }
    return 0;
}

static void set_half(uint64_t *v, bool high, uint32_t half)
{
    *v = high ? (*v & 0xffffffffu) | (uint64_t)half << 32 : (*v & ~0xffffffffull) | half;
}

static void enable_queue(struct virtio_dev *d, struct virtqueue *vq)
{
    const char *why = "";
    if (!(d->status & VIRTIO_CONFIG_S_FEATURES_OK)) {
        d->host->guest_event(d->vm, d->ops->name, "queue %u enabled before features are agreed", vq->index);
        return;
    }
    if (vq_enable(vq, &why) < 0)
        virtio_broken(d, "queue %u cannot be enabled: %s", vq->index, why);
}

static void queue_write(struct virtio_dev *d, struct virtqueue *vq, unsigned off, uint32_t v)
{
    switch (off) {
    case FIELD(queue_msix_vector): vq->vector = virtio_check_vector(d, v); return;
    case FIELD(queue_enable):
        if ((v & 0xffff) == 1 && !vq->enabled)
            enable_queue(d, vq);
        return;
    }
    if (vq->enabled)
        return; /* a live queue does not move (4.1.4.3.2) */
    switch (off) {
    case FIELD(queue_size):
        v &= 0xffff;
        if (v && v <= vq->max_size)
            vq->size = v;
        return;
    case FIELD(queue_desc_lo): set_half(&vq->desc_gpa, false, v); return;
    case FIELD(queue_desc_hi): set_half(&vq->desc_gpa, true, v); return;
    case FIELD(queue_avail_lo): set_half(&vq->avail_gpa, false, v); return;
    case FIELD(queue_avail_hi): set_half(&vq->avail_gpa, true, v); return;
    case FIELD(queue_used_lo): set_half(&vq->used_gpa, false, v); return;
    case FIELD(queue_used_hi): set_half(&vq->used_gpa, true, v); return;
    }
}

static void common_write(struct virtio_dev *d, unsigned off, uint32_t v)
{
    struct virtqueue *vq;
    switch (off) {
    case FIELD(device_feature_select): d->offered_sel = v; return;
    case FIELD(guest_feature_select): d->driver_sel = v; return;
    case FIELD(guest_feature):
        if (d->driver_sel < 2 && !(d->status & VIRTIO_CONFIG_S_FEATURES_OK))
            set_half(&d->driver_features, d->driver_sel == 1, v);
        return;
    case FIELD(msix_config): d->config_vector = virtio_check_vector(d, v); return;
    case FIELD(device_status): virtio_write_status(d, v, true); return;
    case FIELD(queue_select): d->queue_sel = v; return;
    default:
        vq = virtio_selected_queue(d);
        if (vq)
            queue_write(d, vq, off, v);
    }
}

/* Width of the register that begins at off; 0: none does. Drivers must use
 * that width (4.1.3.1), halves of 64-bit ones are registers of their own. */
static unsigned common_width(unsigned off)
{
    switch (off) {
    case FIELD(device_status):
    case FIELD(config_generation): return 1;
    case FIELD(msix_config):
    case FIELD(num_queues):
    case FIELD(queue_select):
    case FIELD(queue_size):
    case FIELD(queue_msix_vector):
    case FIELD(queue_enable):
    case FIELD(queue_notify_off): return 2;
    }
    return off < FIELD(queue_used_hi) + 4 && off % 4 == 0 ? 4 : 0;
}

static uint64_t modern_read(void *opaque, uint64_t off, unsigned size)
{
    struct virtio_dev *d = opaque;
    unsigned reg = off & 0xfff;
    uint64_t v = 0;
    switch (off & ~0xfffull) {
    case VIRTIO_BAR_COMMON:
        /* Wider or narrower reads than the register are put together from
         * whole registers: firmware dumps are not refused. */
        for (unsigned i = 0; i < size;) {
            unsigned w = common_width(reg + i);
            if (!w) {
                i++;
                continue;
            }
            v |= (uint64_t)common_read(d, reg + i) << (8 * i);
            i += w;
        }
        return size < 8 ? v & ((1ull << (8 * size)) - 1) : v;
    case VIRTIO_BAR_ISR: return reg == 0 ? virtio_read_isr(d) : 0;
    case VIRTIO_BAR_DEVICE: return virtio_config_read(d, reg, size);
    }
    return 0;
}

static void modern_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct virtio_dev *d = opaque;
    unsigned reg = off & 0xfff;
    switch (off & ~0xfffull) {
    case VIRTIO_BAR_COMMON:
        if (size == 8 && reg >= FIELD(queue_desc_lo) && reg % 8 == 0 && reg <= FIELD(queue_used_lo)) {
            common_write(d, reg, value);
            common_write(d, reg + 4, value >> 32);
        } else if (size <= 4 && common_width(reg) && common_width(reg) <= size) {
            common_write(d, reg, common_width(reg) == 4 ? value : value & ((1u << (8 * common_width(reg))) - 1));
        }
        return;
    case VIRTIO_BAR_DEVICE: virtio_config_write(d, reg, size, value); return;
    case VIRTIO_BAR_NOTIFY:
        /* The address names the queue; the value repeats it. */
        if (reg % VIRTIO_NOTIFY_MULTIPLIER == 0)
            virtio_notify_queue(d, reg / VIRTIO_NOTIFY_MULTIPLIER);
        return;
    }
}

const struct hvx_region_ops virtio_modern_region = {.read = modern_read, .write = modern_write};
