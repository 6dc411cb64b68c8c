/* SPDX-License-Identifier: Apache-2.0
 *
 * plugin.c - the dev-virtio plugin: its descriptor and its device types.
 */
#include <hvx/plugin.h>
#include <stdlib.h>

#include "virtio.h"

static const struct hvx_device_type *const types[] = {
    &virtio_blk_type,
    &virtio_net_type,
    &virtio_rng_type,
    &virtio_console_type,
    &virtio_balloon_type,
    &virtio_scsi_type,
};

static const struct hvx_device_ops device_ops = {
    .size = sizeof(struct hvx_device_ops),
    .n_types = sizeof(types) / sizeof(types[0]),
    .types = types,
};

static int init(const struct hvx_host *host, const struct hvx_config *config, void **ctx, struct hvx_error *err)
{
    struct virtio_plugin *p = calloc(1, sizeof(*p));
    (void)config;
    if (!p)
        return hvx_fail(err, -ENOMEM, "dev-virtio: out of memory");
    p->host = host;
    *ctx = p;
    return 0;
}

static void fini(void *ctx)
{
    free(ctx);
}

static const char *const capabilities[] = {"virtio-1.2", "virtio-legacy", "virtio-packed", NULL};

HVX_PLUGIN_DEFINE(dev_virtio, HVX_FAMILY_DEVICE, HVX_DEVICE_MINOR,
    .name = "dev-virtio",
    .version = "1",
    .summary = "virtio devices over PCI: block, SCSI, network, entropy, console, balloon",
    .license = "Apache-2.0",
    .capabilities = capabilities,
    .init = init,
    .fini = fini,
    .ops = &device_ops);
