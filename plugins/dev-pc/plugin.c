/* SPDX-License-Identifier: Apache-2.0
 *
 * plugin.c - the dev-pc plugin: its descriptor and its device types.
 */
#include "pc.h"

static const struct hvx_device_type *const types[] = {&pc_type, &debug_exit_type, &pvpanic_type};

static const struct hvx_device_ops device_ops = {
    .size = sizeof(struct hvx_device_ops),
    .n_types = sizeof(types) / sizeof(types[0]),
    .types = types,
};

/* Nothing but the host table is needed, so the table is the context. */
static int init(const struct hvx_host *host, const struct hvx_config *config, void **ctx, struct hvx_error *err)
{
    (void)config, (void)err;
    *ctx = (void *)(uintptr_t)host;
    return 0;
}

static const char *const capabilities[] = {"i440fx", "acpi", "smbios", "fw_cfg", "direct-boot", NULL};

HVX_PLUGIN_DEFINE(dev_pc, HVX_FAMILY_DEVICE, HVX_DEVICE_MINOR,
    .name = "dev-pc",
    .version = "1",
    .summary = "the PC: i440fx board with IDE, timers, serial lines, keyboard, VGA, fw_cfg",
    .license = "Apache-2.0",
    .capabilities = capabilities,
    .init = init,
    .ops = &device_ops);
