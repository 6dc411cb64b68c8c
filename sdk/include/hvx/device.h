/* SPDX-License-Identifier: Apache-2.0
 *
 * hvx/device.h - what a device plugin implements.
 *
 * A device plugin offers device *types*. A type is instantiated by
 * `hvx run --device NAME,key=value` or by its role: a disk given with --disk
 * becomes an instance of the enabled type with role DISK and the highest
 * rank, and so on. core never names a type.
 *
 * Life of an instance: create -> reset -> (run, reset, state)* -> destroy.
 * All callbacks run with the VM lock held (see host.h); before the first
 * guest instruction `reset` has been called once for every instance, the
 * machine last.
 */
#ifndef HVX_DEVICE_H
#define HVX_DEVICE_H

#include <hvx/host.h>

HVX_EXTERN_C_BEGIN

enum hvx_device_role {
    HVX_ROLE_NONE = 0,    /* only by name */
    HVX_ROLE_MACHINE = 1, /* the board: exactly one per VM, created first */
    HVX_ROLE_DISK = 2,    /* takes option "drive" = "disk0".. */
    HVX_ROLE_NIC = 3,     /* takes option "netdev" = "net0".. */
    HVX_ROLE_RNG = 4,     /* one per VM by default */
    HVX_ROLE_CONSOLE = 5, /* option "chardev" = "console0" */
    HVX_ROLE_CDROM = 6,   /* takes option "drive" */
    HVX_ROLE_SCSI = 7,    /* SCSI host adapter: option "drives" = "disk0:disk1.." */
    HVX_ROLE_BALLOON = 8, /* one per VM by default */
};

struct hvx_device_type {
    uint32_t size;
    uint32_t role;
    int32_t rank; /* the highest rank of a role is the default; negative: never default */
    uint32_t version; /* of its saved state; state() gets the file's version in the stream */
    const char *name; /* "virtio-blk" */
    const char *summary;
    const struct hvx_option *options; /* may be NULL */
    int (*create)(void *plugin_ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev,
                  struct hvx_error *err);
    void (*destroy)(void *dev);
    void (*reset)(void *dev);
    int (*state)(void *dev, struct hvx_stream *s); /* save or restore; may be NULL while a device has none */
    /* Optional: settle outstanding work before a save; called until it returns true. */
    bool (*quiesced)(void *dev);
};

struct hvx_device_ops {
    uint32_t size;
    uint32_t n_types;
    const struct hvx_device_type *const *types;
};

HVX_EXTERN_C_END
#endif
