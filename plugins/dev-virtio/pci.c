/* SPDX-License-Identifier: Apache-2.0
 *
 * pci.c - the PCI function of a virtio device: what its modern and its legacy
 * register interfaces share (virtio 1.2, section 4.1).
 *
 * A transitional device has both; which of them a driver uses shows in
 * VIRTIO_F_VERSION_1, which only the modern one can negotiate.
 */
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>

#include "virtio.h"

#define VENDOR_VIRTIO 0x1af4u
#define MODERN_PCI_BASE 0x1040u      /* 4.1.2: modern device id = base + virtio id */
#define MODERN_SUBSYSTEM 0x1100u     /* 4.1.2.1: 0x40 or higher */
#define TRANSITIONAL_REVISION 0u
#define MODERN_REVISION 1u
#define ISR_QUEUE 1u /* 4.1.4.5; the other bit is VIRTIO_PCI_ISR_CONFIG */

/* --- features ---------------------------------------------------------------- */
#define TRANSPORT_LEGACY_ONLY VIRTIO_BIT(VIRTIO_F_ANY_LAYOUT)

void virtio_set_features(struct virtio_dev *d, uint64_t features)
{
    d->features = features;
    for (unsigned i = 0; i < d->n_queues; i++) {
        struct virtqueue *vq = &d->queues[i];
        vq->event_idx = virtio_has(d, VIRTIO_RING_F_EVENT_IDX);
        vq->indirect = virtio_has(d, VIRTIO_RING_F_INDIRECT_DESC);
        vq->packed = virtio_has(d, VIRTIO_F_RING_PACKED);
        if (vq->packed && !vq->enabled)
            vq_packed_init(vq);
    }
    if (d->ops->features_set)
        d->ops->features_set(d);
}

static bool features_acceptable(struct virtio_dev *d)
{
    uint64_t f = d->driver_features;
    if (f & ~d->offered || !(f & VIRTIO_BIT(VIRTIO_F_VERSION_1)))
        return false;
    virtio_set_features(d, f);
    if (d->ops->features_ok && !d->ops->features_ok(d)) {
        virtio_set_features(d, 0);
        return false;
    }
    return true;
}

/* --- status and reset (2.1, 2.4) ---------------------------------------------- */
static void forget_driver(struct virtio_dev *d)
{
    d->ops->reset(d);
    for (unsigned i = 0; i < d->n_queues; i++)
        vq_reset(&d->queues[i]);
    d->status = d->isr = 0;
    d->broken = false;
    d->reset_pending = false;
    d->config_vector = VQ_NO_VECTOR;
    d->queue_sel = 0;
    d->offered_sel = d->driver_sel = 0;
    d->driver_features = 0;
    virtio_set_features(d, 0);
    d->host->pci_set_irq(d->pci, false);
}

void virtio_reset(struct virtio_dev *d)
{
    forget_driver(d);
}

void virtio_release(struct virtio_dev *d)
{
    if (--d->n_held == 0)
        d->reset_pending = false;
}

void virtio_write_status(struct virtio_dev *d, uint8_t v, bool modern)
{
    if (v == 0) {
        uint8_t before = d->status;
        forget_driver(d);
        /* A modern driver waits until it reads zero (4.1.4.3.2). Requests in
         * flight still write to its buffers, so it must go on waiting. A
         * legacy driver does not wait, and gets them into what it gave up. */
        if (modern && d->n_held && before) {
            d->reset_pending = true;
            d->reset_status = before;
        }
        return;
    }
    d->reset_pending = false; /* a driver that did not wait */
    uint8_t set = v & ~d->status;
    v |= d->status & VIRTIO_CONFIG_S_NEEDS_RESET; /* not the driver's to clear */
    if (modern && (set & VIRTIO_CONFIG_S_FEATURES_OK) && !features_acceptable(d)) {
        d->host->guest_event(d->vm, d->ops->name, "driver asked for features %#llx of %#llx",
                             (unsigned long long)d->driver_features, (unsigned long long)d->offered);
        v &= ~VIRTIO_CONFIG_S_FEATURES_OK;
        set &= ~VIRTIO_CONFIG_S_FEATURES_OK;
    }
    if (modern && (set & VIRTIO_CONFIG_S_DRIVER_OK) && !(v & VIRTIO_CONFIG_S_FEATURES_OK)) {
        d->host->guest_event(d->vm, d->ops->name, "driver is ready but features are not agreed");
        v &= ~VIRTIO_CONFIG_S_DRIVER_OK;
        set &= ~VIRTIO_CONFIG_S_DRIVER_OK;
    }
    d->status = v;
    if ((set & VIRTIO_CONFIG_S_DRIVER_OK) && d->ops->driver_ok)
        d->ops->driver_ok(d);
}

bool virtio_running(const struct virtio_dev *d)
{
    if (d->broken || d->reset_pending)
        return false;
    /* Old Linux drivers use their queues before they set DRIVER_OK and before
     * they enable bus mastering (2.1.2 and 4.1.4 legacy notes). */
    if (!virtio_has(d, VIRTIO_F_VERSION_1))
        return true;
    return (d->status & VIRTIO_CONFIG_S_DRIVER_OK) && d->host->pci_bus_master(d->pci);
}

/* --- interrupts --------------------------------------------------------------- */
static void interrupt(struct virtio_dev *d, uint8_t isr, uint16_t vector)
{
    d->isr |= isr;
    if (d->host->pci_msix_enabled(d->pci)) {
        if (vector != VQ_NO_VECTOR)
            d->host->pci_msix_notify(d->pci, vector);
    } else {
        d->host->pci_set_irq(d->pci, true);
    }
}

void virtio_interrupt_queue(struct virtqueue *vq)
{
    interrupt(vq->dev, ISR_QUEUE, vq->vector);
}

uint8_t virtio_read_isr(struct virtio_dev *d)
{
    uint8_t v = d->isr;
    d->isr = 0;
    d->host->pci_set_irq(d->pci, false);
    return v;
}

uint16_t virtio_check_vector(struct virtio_dev *d, uint16_t vector)
{
    return vector < d->n_vectors ? vector : VQ_NO_VECTOR;
}

void virtio_config_changed(struct virtio_dev *d)
{
    d->config_generation++;
    if (d->status & VIRTIO_CONFIG_S_DRIVER_OK)
        interrupt(d, VIRTIO_PCI_ISR_CONFIG, d->config_vector);
}

void virtio_broken(struct virtio_dev *d, const char *fmt, ...)
{
    char why[160];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof(why), fmt, ap);
    va_end(ap);
    d->host->guest_event(d->vm, d->ops->name, "%s; the device waits for a reset by its driver", why);
    if (d->broken)
        return;
    d->broken = true;
    if (!virtio_has(d, VIRTIO_F_VERSION_1))
        return; /* a legacy driver knows no such status */
    d->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    virtio_config_changed(d);
}

/* --- queues -------------------------------------------------------------------- */
struct virtqueue *virtio_selected_queue(struct virtio_dev *d)
{
    return d->queue_sel < d->n_queues && d->queues[d->queue_sel].max_size ? &d->queues[d->queue_sel] : NULL;
}

void virtio_notify_queue(struct virtio_dev *d, unsigned index)
{
    if (index >= d->n_queues || !d->queues[index].enabled || !virtio_running(d))
        return;
    d->ops->notify(d, &d->queues[index]);
}

/* --- device-specific configuration ----------------------------------------------- */
uint64_t virtio_config_read(struct virtio_dev *d, uint64_t off, unsigned size)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < size; i++)
        if (off + i < d->config_bytes)
            v |= (uint64_t)d->config[off + i] << (8 * i);
    return v;
}

void virtio_config_write(struct virtio_dev *d, uint64_t off, unsigned size, uint64_t value)
{
    if (!d->ops->config_write || off >= d->config_bytes || size > d->config_bytes - off)
        return;
    uint8_t bytes[8];
    memcpy(bytes, &value, sizeof(bytes));
    d->ops->config_write(d, off, bytes, size);
}

/* --- PCI configuration access capability (4.1.4.9) -------------------------------- */
/* A window through which firmware reaches the BARs without mapping them: the
 * guest sets bar, offset and length, then reads or writes the data field. */
struct cfg_window {
    uint8_t bar;
    uint32_t offset, length;
};

static bool cfg_window(struct virtio_dev *d, struct cfg_window *w)
{
    const uint8_t *cap = d->host->pci_config(d->pci) + d->pci_cfg_cap;
    w->bar = cap[offsetof(struct virtio_pci_cap, bar)];
    memcpy(&w->offset, cap + offsetof(struct virtio_pci_cap, offset), 4);
    memcpy(&w->length, cap + offsetof(struct virtio_pci_cap, length), 4);
    return w->bar == VIRTIO_BAR_MODERN && (w->length == 1 || w->length == 2 || w->length == 4) &&
           w->offset <= VIRTIO_BAR_BYTES - w->length && w->offset % w->length == 0;
}

static bool touches_data(struct virtio_dev *d, unsigned off, unsigned size)
{
    unsigned data = d->pci_cfg_cap + offsetof(struct virtio_pci_cfg_cap, pci_cfg_data);
    return d->pci_cfg_cap && off < data + 4 && off + size > data;
}

static void config_read(void *opaque, unsigned off, unsigned size)
{
    struct virtio_dev *d = opaque;
    struct cfg_window w;
    if (!touches_data(d, off, size) || !cfg_window(d, &w))
        return;
    uint32_t v = virtio_modern_region.read(d, w.offset, w.length);
    memcpy(d->host->pci_config(d->pci) + d->pci_cfg_cap + offsetof(struct virtio_pci_cfg_cap, pci_cfg_data), &v, 4);
}

static void config_written(void *opaque, unsigned off, unsigned size)
{
    struct virtio_dev *d = opaque;
    struct cfg_window w;
    uint32_t v;
    if (!touches_data(d, off, size) || !cfg_window(d, &w))
        return;
    memcpy(&v, d->host->pci_config(d->pci) + d->pci_cfg_cap + offsetof(struct virtio_pci_cfg_cap, pci_cfg_data), 4);
    virtio_modern_region.write(d, w.offset, w.length, v);
}

static const struct hvx_pci_ops pci_ops = {
    .size = sizeof(struct hvx_pci_ops),
    .config_read = config_read,
    .config_written = config_written,
};

static int add_capabilities(struct virtio_dev *d)
{
    static const struct { uint8_t type; uint32_t offset, bytes; } structures[] = {
        {VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_BAR_COMMON, 0x1000},
        {VIRTIO_PCI_CAP_ISR_CFG, VIRTIO_BAR_ISR, 0x1000},
        {VIRTIO_PCI_CAP_DEVICE_CFG, VIRTIO_BAR_DEVICE, 0x1000},
    };
    for (unsigned i = 0; i < sizeof(structures) / sizeof(structures[0]); i++) {
        struct virtio_pci_cap cap = {
            .cap_len = sizeof(cap), .cfg_type = structures[i].type, .bar = VIRTIO_BAR_MODERN,
            .offset = structures[i].offset, .length = structures[i].bytes,
        };
        int r = d->host->pci_add_cap(d->pci, 0x09, &cap, NULL, sizeof(cap));
        if (r < 0)
            return r;
    }
    struct virtio_pci_notify_cap notify = {
        .cap = {.cap_len = sizeof(notify), .cfg_type = VIRTIO_PCI_CAP_NOTIFY_CFG, .bar = VIRTIO_BAR_MODERN,
                .offset = VIRTIO_BAR_NOTIFY, .length = 0x1000},
        .notify_off_multiplier = VIRTIO_NOTIFY_MULTIPLIER,
    };
    int r = d->host->pci_add_cap(d->pci, 0x09, &notify, NULL, sizeof(notify));
    if (r < 0)
        return r;
    struct virtio_pci_cfg_cap window = {.cap = {.cap_len = sizeof(window), .cfg_type = VIRTIO_PCI_CAP_PCI_CFG}};
    struct virtio_pci_cfg_cap mask = {.cap = {.bar = 0xff, .offset = ~0u, .length = ~0u},
                                      .pci_cfg_data = {0xff, 0xff, 0xff, 0xff}};
    r = d->host->pci_add_cap(d->pci, 0x09, &window, &mask, sizeof(window));
    if (r < 0)
        return r;
    d->pci_cfg_cap = r;
    return 0;
}

/* --- life ------------------------------------------------------------------------ */
static unsigned legacy_bar_bytes(const struct virtio_dev *d)
{
    unsigned n = 32;
    while (n < VIRTIO_PCI_CONFIG_OFF(1) + d->config_bytes)
        n *= 2;
    return n;
}

static int add_function(struct virtio_dev *d, const struct hvx_config *config, struct hvx_error *err)
{
    const struct hvx_host *h = d->host;
    int64_t slot = h->conf_int(config, "slot");
    bool transitional = !d->no_legacy;
    struct hvx_pci_desc desc = {
        .size = sizeof(desc),
        .devfn = slot < 0 ? -1 : (int32_t)slot << 3,
        .vendor = VENDOR_VIRTIO,
        .device = transitional ? d->ops->legacy_pci : MODERN_PCI_BASE + d->ops->device_id,
        .subsys_vendor = VENDOR_VIRTIO,
        .subsys = transitional ? d->ops->device_id : MODERN_SUBSYSTEM,
        .class_code = d->ops->class_code,
        .revision = transitional ? TRANSITIONAL_REVISION : MODERN_REVISION,
        .irq_pin = 1,
        .msix_vectors = d->n_vectors,
        .msix_bar = VIRTIO_BAR_MSIX,
    };
    if (!d->no_legacy)
        desc.bars[VIRTIO_BAR_LEGACY] =
            (struct hvx_pci_bar){.type = HVX_BAR_IO, .size = legacy_bar_bytes(d), .ops = &virtio_legacy_region};
    if (!d->no_modern)
        desc.bars[VIRTIO_BAR_MODERN] = (struct hvx_pci_bar){
            .type = HVX_BAR_MEM64, .flags = HVX_BAR_PREFETCH, .size = VIRTIO_BAR_BYTES, .ops = &virtio_modern_region};
    int r = h->pci_add(d->vm, &desc, &pci_ops, d, &d->pci, err);
    if (r < 0)
        return r;
    if (!d->no_modern && (r = add_capabilities(d)) < 0)
        return hvx_fail(err, r, "%s: its PCI capabilities do not fit into configuration space", d->ops->name);
    return 0;
}

int virtio_create(struct virtio_dev *d, const struct virtio_ops *ops, const struct hvx_host *host, struct hvx_vm *vm,
                  const struct hvx_config *config, unsigned n_queues, const uint16_t *sizes, struct hvx_error *err)
{
    d->ops = ops;
    d->host = host;
    d->vm = vm;
    d->no_legacy = host->conf_bool(config, "disable-legacy");
    d->no_modern = host->conf_bool(config, "disable-modern");
    d->config_vector = VQ_NO_VECTOR;
    if (d->no_legacy && d->no_modern)
        return hvx_fail(err, -EINVAL, "%s: disable-legacy and disable-modern together leave no interface; drop one",
                        ops->name);
    if (host->conf_bool(config, "indirect"))
        d->offered |= VIRTIO_BIT(VIRTIO_RING_F_INDIRECT_DESC);
    if (host->conf_bool(config, "event-idx"))
        d->offered |= VIRTIO_BIT(VIRTIO_RING_F_EVENT_IDX);
    if (!d->no_legacy)
        d->offered |= TRANSPORT_LEGACY_ONLY;
    if (!d->no_modern) {
        d->offered |= VIRTIO_BIT(VIRTIO_F_VERSION_1);
        if (host->conf_bool(config, "packed"))
            d->offered |= VIRTIO_BIT(VIRTIO_F_RING_PACKED);
    }
    d->queues = calloc(n_queues, sizeof(*d->queues));
    if (!d->queues)
        return hvx_fail(err, -ENOMEM, "%s: out of memory", ops->name);
    d->n_queues = n_queues;
    for (unsigned i = 0; i < n_queues; i++)
        vq_init(&d->queues[i], d, i, sizes[i]);
    d->n_vectors = n_queues + 1;
    return add_function(d, config, err);
}

void virtio_destroy(struct virtio_dev *d)
{
    if (d->pci)
        d->host->pci_del(d->vm, d->pci);
    free(d->queues);
    d->pci = NULL;
    d->queues = NULL;
}

/* --- saved state ------------------------------------------------------------------- */
static int restore_end(struct virtio_dev *d, struct hvx_stream *s)
{
    uint64_t features = d->features;
    if (features & ~d->offered) {
        hvx_state_fail(s, -EINVAL, "the driver had negotiated features that this device does not offer");
        return hvx_state_error(s);
    }
    d->config_vector = virtio_check_vector(d, d->config_vector);
    d->reset_pending = false;
    return 0;
}

int virtio_state(struct virtio_dev *d, struct hvx_stream *s)
{
    if (hvx_stream_is_saving(s) && d->n_held) {
        hvx_state_fail(s, -EBUSY, "requests are in flight");
        return hvx_state_error(s);
    }
    uint32_t n_queues = d->n_queues;
    hvx_state_u32(s, &n_queues);
    if (!hvx_state_error(s) && n_queues != d->n_queues) {
        hvx_state_fail(s, -EINVAL, "the saved device has another number of queues");
        return hvx_state_error(s);
    }
    if (!hvx_stream_is_saving(s))
        forget_driver(d);
    hvx_state_u64(s, &d->features);
    hvx_state_u64(s, &d->driver_features);
    hvx_state_u8(s, &d->status);
    hvx_state_u8(s, &d->isr);
    hvx_state_bool(s, &d->broken);
    hvx_state_u8(s, &d->config_generation);
    hvx_state_u16(s, &d->config_vector);
    hvx_state_u16(s, &d->queue_sel);
    hvx_state_u32(s, &d->offered_sel);
    hvx_state_u32(s, &d->driver_sel);
    hvx_state_bytes(s, d->config, d->config_bytes);
    if (hvx_state_error(s))
        return hvx_state_error(s);
    if (!hvx_stream_is_saving(s)) {
        if (restore_end(d, s) < 0)
            return hvx_state_error(s);
        virtio_set_features(d, d->features);
    }
    for (unsigned i = 0; i < d->n_queues; i++) {
        if (vq_state(&d->queues[i], s) < 0)
            return hvx_state_error(s);
        d->queues[i].vector = virtio_check_vector(d, d->queues[i].vector);
    }
    if (d->ops->state && d->ops->state(d, s) < 0)
        return hvx_state_error(s);
    if (!hvx_stream_is_saving(s)) {
        if (d->isr && !d->host->pci_msix_enabled(d->pci))
            d->host->pci_set_irq(d->pci, true);
        if (d->ops->resume)
            d->ops->resume(d);
    }
    return hvx_state_error(s);
}
