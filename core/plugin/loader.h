/* SPDX-License-Identifier: Apache-2.0
 *
 * core/plugin/loader.h - one plugin file: open it, check it, close it.
 *
 * A refusal's message has four parts: the file, what was expected, what was
 * found, and the remedy. Nothing of the plugin has run when it is refused.
 */
#ifndef HVX_CORE_LOADER_H
#define HVX_CORE_LOADER_H

#include <hvx/plugin.h>

struct hvx_module {
    char *path;             /* absolute */
    char *name;             /* "cpu-bt", from the file's name */
    struct hvx_plugin desc; /* copied at this host's size; strings and tables stay in the file */
    void *ops;              /* copied likewise; owned */
    void *handle;           /* of libltdl; NULL: linked statically */
};

/* path must be absolute. On success the caller owns *out. */
HVX_WUR int hvx_module_open(const char *path, struct hvx_module **out, struct hvx_error *err);
/* After fini(), when nothing of the plugin is in use any more. */
void hvx_module_close(struct hvx_module *m);

/* The checks alone, for a descriptor that is already in memory. available:
 * bytes of the object behind raw, as the symbol table says. On success *desc
 * and *ops (owned, free with hvx_ops_free) are copies. */
HVX_WUR int hvx_plugin_check(const struct hvx_plugin *raw, size_t available, const char *path, const char *name,
                             struct hvx_plugin *desc, void **ops, struct hvx_error *err);
void hvx_ops_free(uint32_t family, void *ops);

/* "device" for HVX_FAMILY_DEVICE; NULL when unknown. */
const char *hvx_family_name(uint32_t family);
uint32_t hvx_family_minor(uint32_t family); /* what this host serves */
#endif
