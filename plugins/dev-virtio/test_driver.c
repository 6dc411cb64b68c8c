/* SPDX-License-Identifier: Apache-2.0 */
#include "test_driver.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define COMMON(name) offsetof(struct virtio_pci_common_cfg, name)

/* --- instances ------------------------------------------------------------------ */
const struct hvx_device_type *device_type(const char *name)
{
    const struct hvx_device_ops *ops = hvx_plugin_dev_virtio.ops;
    for (unsigned i = 0; i < ops->n_types; i++)
        if (strcmp(ops->types[i]->name, name) == 0)
            return ops->types[i];
    abort();
}

void instance_open(struct instance *i, struct hvx_vm *vm, const char *type, const char *options)
{
    struct hvx_error err = {0};
    memset(i, 0, sizeof(*i));
    i->vm = vm;
    i->type = device_type(type);
    i->config = hvxtest_config(i->type->options, options);
    if (hvx_plugin_dev_virtio.init(hvxtest_host(), NULL, &i->ctx, &err) < 0 ||
        i->type->create(i->ctx, vm, i->config, &i->dev, &err) < 0) {
        fprintf(stderr, "instance_open: %s\n", err.text);
        abort();
    }
    i->type->reset(i->dev);
}

void instance_close(struct instance *i)
{
    i->type->destroy(i->dev);
    hvx_plugin_dev_virtio.fini(i->ctx);
    hvxtest_config_free(i->config);
    hvxtest_free(i->vm);
}

/* --- registers ------------------------------------------------------------------- */
static uint64_t rd(struct drv *d, unsigned off, unsigned size)
{
    return d->modern ? hvxtest_mmio_read(d->vm, d->bar + off, size) : hvxtest_pio_read(d->vm, d->bar + off, size);
}

static void wr(struct drv *d, unsigned off, unsigned size, uint64_t v)
{
    if (d->modern)
        hvxtest_mmio_write(d->vm, d->bar + off, size, v);
    else
        hvxtest_pio_write(d->vm, d->bar + off, size, v);
}

static unsigned structure(struct drv *d, uint8_t type)
{
    for (unsigned n = 0, cap; (cap = hvxtest_pci_find_cap(d->pci, 0x09, n)); n++)
        if (hvxtest_pci_cfg_read(d->pci, cap + 3, 1) == type) {
            assert(hvxtest_pci_cfg_read(d->pci, cap + 4, 1) == 4 || type == VIRTIO_PCI_CAP_PCI_CFG);
            return hvxtest_pci_cfg_read(d->pci, cap + 8, 4);
        }
    abort();
}

void drv_find(struct drv *d, struct hvx_vm *vm, bool modern)
{
    memset(d, 0, sizeof(*d));
    d->vm = vm;
    d->modern = modern;
    d->pci = hvxtest_pci_nth(vm, 0);
    d->next = 1 << 20;
    hvxtest_pci_enable(d->pci);
    d->bar = hvxtest_pci_bar(d->pci, modern ? 4 : 0);
    assert(d->bar != ~0ull);
}

uint64_t drv_offered(struct drv *d)
{
    if (!d->modern)
        return rd(d, VIRTIO_PCI_HOST_FEATURES, 4);
    wr(d, COMMON(device_feature_select), 4, 0);
    uint64_t f = rd(d, COMMON(device_feature), 4);
    wr(d, COMMON(device_feature_select), 4, 1);
    return f | rd(d, COMMON(device_feature), 4) << 32;
}

void drv_set_status(struct drv *d, uint8_t v) { wr(d, d->modern ? COMMON(device_status) : VIRTIO_PCI_STATUS, 1, v); }
uint8_t drv_status(struct drv *d) { return rd(d, d->modern ? COMMON(device_status) : VIRTIO_PCI_STATUS, 1); }
uint8_t drv_isr(struct drv *d) { return rd(d, d->modern ? structure(d, VIRTIO_PCI_CAP_ISR_CFG) : VIRTIO_PCI_ISR, 1); }

bool drv_negotiate(struct drv *d, uint64_t want)
{
    drv_set_status(d, 0);
    drv_set_status(d, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    drv_set_status(d, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    uint64_t f = drv_offered(d) & (want | (d->modern ? BIT(VIRTIO_F_VERSION_1) : 0));
    d->features = f;
    d->event_idx = f & BIT(VIRTIO_RING_F_EVENT_IDX);
    d->packed = f & BIT(VIRTIO_F_RING_PACKED);
    if (!d->modern) {
        wr(d, VIRTIO_PCI_GUEST_FEATURES, 4, f);
        return true;
    }
    wr(d, COMMON(guest_feature_select), 4, 0);
    wr(d, COMMON(guest_feature), 4, (uint32_t)f);
    wr(d, COMMON(guest_feature_select), 4, 1);
    wr(d, COMMON(guest_feature), 4, f >> 32);
    drv_set_status(d, drv_status(d) | VIRTIO_CONFIG_S_FEATURES_OK);
    return drv_status(d) & VIRTIO_CONFIG_S_FEATURES_OK;
}

static void select_queue(struct drv *d, unsigned index)
{
    wr(d, d->modern ? COMMON(queue_select) : VIRTIO_PCI_QUEUE_SEL, 2, index);
}

uint16_t drv_queue_size(struct drv *d, unsigned index)
{
    select_queue(d, index);
    return rd(d, d->modern ? COMMON(queue_size) : VIRTIO_PCI_QUEUE_NUM, 2);
}

void drv_place_queue(struct drv *d, struct drvq *q)
{
    select_queue(d, q->index);
    if (!d->modern) {
        wr(d, VIRTIO_PCI_QUEUE_PFN, 4, q->desc_gpa >> 12);
        return;
    }
    wr(d, COMMON(queue_size), 2, q->size);
    wr(d, COMMON(queue_desc_lo), 4, (uint32_t)q->desc_gpa);
    wr(d, COMMON(queue_desc_hi), 4, q->desc_gpa >> 32);
    wr(d, COMMON(queue_avail_lo), 8, q->avail_gpa);
    wr(d, COMMON(queue_used_lo), 4, (uint32_t)q->used_gpa);
    wr(d, COMMON(queue_used_hi), 4, q->used_gpa >> 32);
    wr(d, COMMON(queue_enable), 2, 1);
}

struct drvq *drv_queue(struct drv *d, unsigned index, unsigned size)
{
    struct drvq *q = &d->q[index];
    memset(q, 0, sizeof(*q));
    q->index = index;
    q->size = size ? size : drv_queue_size(d, index);
    q->desc_gpa = drv_alloc(d, 16 * q->size, 4096);
    q->avail_gpa = d->modern ? drv_alloc(d, 6 + 2 * q->size, 4) : q->desc_gpa + 16 * q->size;
    if (!d->modern)
        d->next += 6 + 2 * q->size;
    q->used_gpa = drv_alloc(d, 6 + 8 * q->size, d->modern ? 4 : 4096);
    memset(drv_mem(d, q->desc_gpa, 1), 0, q->used_gpa + 6 + 8 * q->size - q->desc_gpa);
    q->desc = drv_mem(d, q->desc_gpa, 16 * q->size);
    q->avail = drv_mem(d, q->avail_gpa, 6 + 2 * q->size);
    q->used = drv_mem(d, q->used_gpa, 6 + 8 * q->size);
    q->pdesc = (void *)q->desc;
    q->driver_event = (void *)q->avail;
    q->device_event = (void *)q->used;
    q->avail_wrap = q->used_wrap = true;
    drv_place_queue(d, q);
    return q;
}

void drv_set_vectors(struct drv *d, unsigned queue, uint16_t queue_vector, uint16_t config_vector)
{
    select_queue(d, queue);
    wr(d, d->modern ? COMMON(queue_msix_vector) : VIRTIO_MSI_QUEUE_VECTOR, 2, queue_vector);
    wr(d, d->modern ? COMMON(msix_config) : VIRTIO_MSI_CONFIG_VECTOR, 2, config_vector);
}

void drv_ok(struct drv *d)
{
    drv_set_status(d, drv_status(d) | VIRTIO_CONFIG_S_DRIVER_OK);
}

void drv_start(struct drv *d, struct hvx_vm *vm, bool modern, uint64_t want, unsigned n_queues)
{
    drv_find(d, vm, modern);
    assert(drv_negotiate(d, want));
    for (unsigned i = 0; i < n_queues; i++)
        drv_queue(d, i, 0);
    drv_ok(d);
}

static unsigned config_base(struct drv *d)
{
    unsigned msix = hvxtest_pci_find_cap(d->pci, 0x11, 0);
    bool on = msix && (hvxtest_pci_cfg_read(d->pci, msix + 2, 2) & 0x8000);
    return d->modern ? structure(d, VIRTIO_PCI_CAP_DEVICE_CFG) : VIRTIO_PCI_CONFIG_OFF(on);
}

uint64_t drv_config(struct drv *d, unsigned off, unsigned size) { return rd(d, config_base(d) + off, size); }
void drv_set_config(struct drv *d, unsigned off, unsigned size, uint64_t v) { wr(d, config_base(d) + off, size, v); }

/* --- memory ------------------------------------------------------------------------ */
uint64_t drv_alloc(struct drv *d, size_t n, size_t align)
{
    uint64_t at = (d->next + align - 1) & ~(uint64_t)(align - 1);
    d->next = at + n;
    return at;
}

void *drv_mem(struct drv *d, uint64_t gpa, size_t n) { return hvxtest_mem(d->vm, gpa, n); }

/* --- queues -------------------------------------------------------------------------- */
void drv_publish(struct drvq *q, uint16_t head)
{
    q->avail->ring[q->avail_idx % q->size] = head;
    q->avail->idx = ++q->avail_idx;
}

static uint16_t add_packed(struct drvq *q, const struct seg *segs, unsigned n, uint64_t table)
{
    uint16_t head = q->next_desc, id = head, head_flags = 0;
    unsigned n_ring = table ? 1 : n;
    for (unsigned i = 0; i < n_ring; i++) {
        struct vring_packed_desc *e = &q->pdesc[q->next_desc];
        uint16_t flags = q->avail_wrap ? 1u << VRING_PACKED_DESC_F_AVAIL : 1u << VRING_PACKED_DESC_F_USED;
        e->id = id;
        e->addr = table ? table : segs[i].gpa;
        e->len = table ? n * 16 : segs[i].len;
        if (table)
            flags |= VRING_DESC_F_INDIRECT;
        else
            flags |= (segs[i].write ? VRING_DESC_F_WRITE : 0) | (i + 1 < n ? VRING_DESC_F_NEXT : 0);
        if (i == 0)
            head_flags = flags;
        else
            e->flags = flags;
        if (++q->next_desc == q->size) {
            q->next_desc = 0;
            q->avail_wrap = !q->avail_wrap;
        }
    }
    q->pdesc[head].flags = head_flags;
    q->packed_len[id] = n_ring;
    q->avail_idx += n_ring;
    return id;
}

uint16_t drv_add(struct drv *d, struct drvq *q, const struct seg *segs, unsigned n)
{
    if (d->packed)
        return add_packed(q, segs, n, 0);
    uint16_t head = q->next_desc;
    for (unsigned i = 0; i < n; i++) {
        struct vring_desc *e = &q->desc[q->next_desc];
        q->next_desc = (q->next_desc + 1) % q->size;
        *e = (struct vring_desc){.addr = segs[i].gpa, .len = segs[i].len, .next = q->next_desc,
                                 .flags = (segs[i].write ? VRING_DESC_F_WRITE : 0) |
                                          (i + 1 < n ? VRING_DESC_F_NEXT : 0)};
    }
    drv_publish(q, head);
    return head;
}

uint16_t drv_add_indirect(struct drv *d, struct drvq *q, const struct seg *segs, unsigned n)
{
    uint64_t table = drv_alloc(d, 16 * n, 16);
    if (d->packed) {
        struct vring_packed_desc *t = drv_mem(d, table, 16 * n);
        for (unsigned i = 0; i < n; i++)
            t[i] = (struct vring_packed_desc){.addr = segs[i].gpa, .len = segs[i].len,
                                              .flags = segs[i].write ? VRING_DESC_F_WRITE : 0};
        return add_packed(q, segs, n, table);
    }
    struct vring_desc *t = drv_mem(d, table, 16 * n);
    for (unsigned i = 0; i < n; i++)
        t[i] = (struct vring_desc){.addr = segs[i].gpa, .len = segs[i].len, .next = i + 1,
                                   .flags = (segs[i].write ? VRING_DESC_F_WRITE : 0) |
                                            (i + 1 < n ? VRING_DESC_F_NEXT : 0)};
    uint16_t head = q->next_desc;
    q->next_desc = (q->next_desc + 1) % q->size;
    q->desc[head] = (struct vring_desc){.addr = table, .len = 16 * n, .flags = VRING_DESC_F_INDIRECT};
    drv_publish(q, head);
    return head;
}

void drv_notify(struct drv *d, unsigned index)
{
    if (d->modern)
        wr(d, structure(d, VIRTIO_PCI_CAP_NOTIFY_CFG) + 4 * index, 2, index);
    else
        wr(d, VIRTIO_PCI_QUEUE_NOTIFY, 2, index);
}

static bool wants_kick(struct drv *d, struct drvq *q)
{
    uint16_t old = q->kicked, new = q->avail_idx;
    q->kicked = new;
    if (d->packed) {
        if (q->device_event->flags != VRING_PACKED_EVENT_FLAG_DESC)
            return q->device_event->flags == VRING_PACKED_EVENT_FLAG_ENABLE;
        uint16_t off = q->device_event->off_wrap & 0x7fff, pos = q->next_desc;
        if (q->device_event->off_wrap >> 15 != q->avail_wrap)
            off -= q->size;
        return vring_need_event(off, pos, pos - (new - old));
    }
    if (d->event_idx)
        return vring_need_event(*(uint16_t *)(void *)((char *)q->used + 4 + 8 * q->size), new, old);
    return !(q->used->flags & VRING_USED_F_NO_NOTIFY);
}

bool drv_kick(struct drv *d, struct drvq *q)
{
    if (!wants_kick(d, q))
        return false;
    drv_notify(d, q->index);
    return true;
}

int drv_used(struct drv *d, struct drvq *q, uint32_t *len)
{
    if (d->packed) {
        struct vring_packed_desc *e = &q->pdesc[q->last_used];
        bool avail = e->flags & (1u << VRING_PACKED_DESC_F_AVAIL), used = e->flags & (1u << VRING_PACKED_DESC_F_USED);
        if (avail != used || used != q->used_wrap)
            return -1;
        if (len)
            *len = e->len;
        q->last_used += q->packed_len[e->id];
        if (q->last_used >= q->size) {
            q->last_used -= q->size;
            q->used_wrap = !q->used_wrap;
        }
        return e->id;
    }
    if (q->used->idx == q->last_used)
        return -1;
    struct vring_used_elem *e = &q->used->ring[q->last_used++ % q->size];
    if (len)
        *len = e->len;
    return e->id;
}
