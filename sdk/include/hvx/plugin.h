/* SPDX-License-Identifier: Apache-2.0
 *
 * hvx/plugin.h - what makes a shared object a plugin.
 *
 * A plugin is one shared object with exactly one exported constant,
 * hvx_plugin_<name> ('-' in the name becomes '_'), made by
 * HVX_PLUGIN_DEFINE(). Nothing runs before init(). A plugin links no symbol of
 * the program that loads it (link with -Wl,-z,defs -Wl,-z,now): everything it
 * may call arrives in a table of host functions (hvx/host.h). So it can be
 * tested against a fake host (libhvxtest) and linked statically into tests.
 *
 * Life cycle
 *   load      the loader opens the file by absolute path, finds the constant,
 *             checks magic, ABI major, family, family minor and size, copies
 *             min(size) into a zeroed struct. A refusal names the file, what
 *             was expected, what was found, and the remedy.
 *   init      once per load and host: returns the plugin's context. Two loads
 *             in one process must work: no mutable file-scope state.
 *   use       family operations (cpu.h, device.h, transport.h, store.h).
 *   fini      after every instance is destroyed.
 *
 * Compatibility: the major must match. Within a major, structs only grow at
 * the end. A plugin with a newer family minor than the host's is refused; an
 * older one is served. sdk/ABI-DIARY dates every change.
 */
#ifndef HVX_PLUGIN_H
#define HVX_PLUGIN_H

#include <hvx/base.h>
#include <hvx/option.h>

HVX_EXTERN_C_BEGIN

#define HVX_PLUGIN_MAGIC 0x50585648u /* "HVXP", little-endian */
#define HVX_ABI_MAJOR 1u

enum hvx_family {
    HVX_FAMILY_CPU = 1,       /* execution engine, hvx/cpu.h */
    HVX_FAMILY_DEVICE = 2,    /* device families, hvx/device.h */
    HVX_FAMILY_TRANSPORT = 3, /* overlay links of hSwitch, hvx/transport.h */
    HVX_FAMILY_STORE = 4,     /* storage backends, hvx/store.h */
};
/* Current minor of each family. */
#define HVX_CPU_MINOR 0u
#define HVX_DEVICE_MINOR 0u
#define HVX_TRANSPORT_MINOR 0u
#define HVX_STORE_MINOR 0u

struct hvx_host; /* hvx/host.h */

struct hvx_plugin {
    uint32_t size; /* sizeof(struct hvx_plugin) when the plugin was built */
    uint32_t magic;
    uint32_t abi_major;
    uint32_t family;       /* enum hvx_family */
    uint32_t family_minor; /* minor it was built against */
    uint32_t reserved;
    const char *name;    /* "cpu-bt": folder, file and section name */
    const char *version; /* of the plugin */
    const char *summary; /* one line */
    const char *license; /* SPDX expression */
    const struct hvx_option *options;       /* of its hvx.conf section; may be NULL */
    const char *const *capabilities;        /* NULL-terminated words; may be NULL */
    /* Returns 0 and an opaque context, or -errno and a message. `config`
     * holds the plugin's hvx.conf section and is only borrowed during init. */
    int (*init)(const struct hvx_host *host, const struct hvx_config *config, void **ctx, struct hvx_error *err);
    void (*fini)(void *ctx); /* may be NULL */
    const void *ops;         /* struct hvx_cpu_ops, hvx_device_ops, ... : u32 size first */
};
HVX_STATIC_ASSERT(offsetof(struct hvx_plugin, magic) == 4, "released offset");
HVX_STATIC_ASSERT(offsetof(struct hvx_plugin, name) == 24, "released offset");
HVX_STATIC_ASSERT(sizeof(struct hvx_plugin) == 96, "no tail padding");

/* HVX_PLUGIN_DEFINE(cpu_bt, HVX_FAMILY_CPU, HVX_CPU_MINOR, .name = "cpu-bt", ...); */
#define HVX_PLUGIN_DEFINE(ident, fam, minor, ...)                                          \
    extern const struct hvx_plugin hvx_plugin_##ident;                                     \
    __attribute__((visibility("default"))) const struct hvx_plugin hvx_plugin_##ident = {  \
        .size = sizeof(struct hvx_plugin), .magic = HVX_PLUGIN_MAGIC,                      \
        .abi_major = HVX_ABI_MAJOR, .family = (fam), .family_minor = (minor),              \
        .reserved = 0, __VA_ARGS__}

HVX_EXTERN_C_END
#endif
