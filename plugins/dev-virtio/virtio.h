/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio.h - what a virtio device and its PCI transport share.
 *
 * A device (virtio-blk.c, virtio-net.c, ...) embeds struct virtio_dev first,
 * fills in its queues, features and configuration bytes and implements struct
 * virtio_ops. The transport (pci.c with pci-modern.c and pci-legacy.c) does
 * the rest: registers, feature negotiation, status, interrupts, reset, state.
 *
 * Section numbers are those of "Virtual I/O Device (VIRTIO) Version 1.2".
 * Constants come from the kernel's uapi headers.
 */
#ifndef DEV_VIRTIO_VIRTIO_H
#define DEV_VIRTIO_VIRTIO_H

#include <hvx/device.h>
#include <hvx/host.h>

#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_pci.h>

#include "virtqueue.h"

#define VIRTIO_CONFIG_MAX 128u      /* device-specific configuration, bytes */
#define VIRTIO_BAR_LEGACY 0u
#define VIRTIO_BAR_MSIX 1u
#define VIRTIO_BAR_MODERN 4u
/* The modern BAR: one page for each structure. */
#define VIRTIO_BAR_COMMON 0x0000u
#define VIRTIO_BAR_ISR 0x1000u
#define VIRTIO_BAR_DEVICE 0x2000u
#define VIRTIO_BAR_NOTIFY 0x3000u
#define VIRTIO_BAR_BYTES 0x4000u
#define VIRTIO_NOTIFY_MULTIPLIER 4u

#define VIRTIO_BIT(n) (1ull << (n))

struct virtio_dev;

struct virtio_ops {
    const char *name;
    uint16_t device_id;  /* VIRTIO_ID_* */
    uint16_t legacy_pci; /* transitional PCI device id */
    uint32_t class_code;
    /* Forget everything about the driver. Requests still held complete into
     * nowhere; see virtio_hold(). */
    void (*reset)(struct virtio_dev *d);
    /* The driver's choice is in d->features; modern drivers may be refused. */
    bool (*features_ok)(struct virtio_dev *d); /* optional */
    void (*features_set)(struct virtio_dev *d); /* optional */
    void (*driver_ok)(struct virtio_dev *d);    /* optional */
    void (*notify)(struct virtio_dev *d, struct virtqueue *vq);
    /* The driver wrote n configuration bytes at off, not yet stored. */
    void (*config_write)(struct virtio_dev *d, unsigned off, const uint8_t *bytes, unsigned n); /* optional */
    /* The device's own fields; after the transport's. Called with n_held 0. */
    int (*state)(struct virtio_dev *d, struct hvx_stream *s); /* optional */
    /* After a restore: resume work that waits in the queues. */
    void (*resume)(struct virtio_dev *d); /* optional */
};

struct virtio_dev {
    const struct virtio_ops *ops;
    const struct hvx_host *host;
    struct hvx_vm *vm;
    struct hvx_pci_dev *pci;
    uint64_t offered;  /* features */
    uint64_t features; /* accepted by the driver */
    uint8_t status, isr;
    bool broken;       /* until reset */
    bool reset_pending; /* driver asked for a reset, requests still in flight */
    bool no_legacy, no_modern;
    uint8_t reset_status; /* what a driver reads while reset_pending */
    uint8_t config_generation;
    uint16_t config_vector, n_vectors, queue_sel;
    uint32_t offered_sel, driver_sel;
    uint64_t driver_features; /* modern: as written, before FEATURES_OK */
    unsigned n_queues;
    struct virtqueue *queues;
    unsigned n_held;   /* requests in flight in the host, of any generation */
    unsigned config_bytes;
    uint8_t config[VIRTIO_CONFIG_MAX]; /* little-endian, as the driver sees it */
    unsigned pci_cfg_cap; /* offset of the PCI configuration access capability */
};

/* --- for devices --------------------------------------------------------- */
/* Options that every virtio device has. */
#define VIRTIO_COMMON_OPTIONS                                                                                          \
    {.name = "slot", .type = HVX_OPT_INT, .min = -1, .max = 31, .def = "-1", .help = "PCI slot; -1: any free one"},     \
    {.name = "disable-legacy", .type = HVX_OPT_BOOL, .def = "no", .help = "offer only the virtio 1.x interface"},       \
    {.name = "disable-modern", .type = HVX_OPT_BOOL, .def = "no", .help = "offer only the pre-1.0 interface"},          \
    {.name = "event-idx", .type = HVX_OPT_BOOL, .def = "yes", .help = "offer event suppression by index"},             \
    {.name = "indirect", .type = HVX_OPT_BOOL, .def = "yes", .help = "offer indirect descriptors"},                    \
    {.name = "packed", .type = HVX_OPT_BOOL, .def = "no", .help = "offer packed rings"}

/* Set up d (zeroed, offered/config/config_bytes filled in) with n_queues
 * queues of the given sizes and add its PCI function. */
HVX_WUR int virtio_create(struct virtio_dev *d, const struct virtio_ops *ops, const struct hvx_host *host,
                          struct hvx_vm *vm, const struct hvx_config *config, unsigned n_queues,
                          const uint16_t *sizes, struct hvx_error *err);
void virtio_destroy(struct virtio_dev *d); /* half-built is fine; does not free d */
void virtio_reset(struct virtio_dev *d);   /* by the machine */
int virtio_state(struct virtio_dev *d, struct hvx_stream *s);
static inline bool virtio_quiesced(const struct virtio_dev *d) { return d->n_held == 0; }

static inline bool virtio_has(const struct virtio_dev *d, unsigned feature)
{
    return (d->features & VIRTIO_BIT(feature)) != 0;
}

/* May the device touch the queues now? */
bool virtio_running(const struct virtio_dev *d);

/* The driver broke a rule: stop serving its queues until it resets the
 * device, tell it so (2.1.2, DEVICE_NEEDS_RESET), and report the event. */
HVX_PRINTF(2, 3) void virtio_broken(struct virtio_dev *d, const char *fmt, ...);

/* The device changed its configuration bytes. */
void virtio_config_changed(struct virtio_dev *d);
void virtio_interrupt_queue(struct virtqueue *vq);

/* A request that the host completes later keeps the device from being saved
 * and, for drivers that wait for it, keeps a reset from being complete. */
static inline void virtio_hold(struct virtio_dev *d) { d->n_held++; }
void virtio_release(struct virtio_dev *d);

/* --- between pci.c, pci-modern.c and pci-legacy.c ------------------------ */
extern const struct hvx_region_ops virtio_legacy_region, virtio_modern_region;
void virtio_write_status(struct virtio_dev *d, uint8_t v, bool modern);
uint8_t virtio_read_isr(struct virtio_dev *d);
void virtio_set_features(struct virtio_dev *d, uint64_t features);
uint16_t virtio_check_vector(struct virtio_dev *d, uint16_t vector);
void virtio_notify_queue(struct virtio_dev *d, unsigned index);
uint64_t virtio_config_read(struct virtio_dev *d, uint64_t off, unsigned size);
void virtio_config_write(struct virtio_dev *d, uint64_t off, unsigned size, uint64_t value);
struct virtqueue *virtio_selected_queue(struct virtio_dev *d); /* NULL: no such queue */

/* --- the device types ----------------------------------------------------- */
extern const struct hvx_device_type virtio_blk_type, virtio_net_type, virtio_rng_type, virtio_console_type,
    virtio_balloon_type, virtio_scsi_type;
/* The plugin's context: what init() was given. */
struct virtio_plugin {
    const struct hvx_host *host;
};
#endif
