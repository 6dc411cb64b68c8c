/* SPDX-License-Identifier: Apache-2.0
 *
 * core/conf/conf.h - hvx.conf: which plugins a site enables, where they are,
 * and a section of options for each.
 *
 *     plugins = {"cpu-bt", "dev-pc", "dev-virtio"}
 *     plugin_dir = "/usr/lib/hvx/plugins"
 *     cpu-bt { cache = 64M }
 *
 * The options of a section are declared by the plugin, so the file is read
 * twice: hvx_conf_load() learns which plugins there are, the registry loads
 * them, and hvx_conf_sections() reads the sections against their tables.
 */
#ifndef HVX_CORE_CONF_H
#define HVX_CORE_CONF_H

#include <hvx/option.h>

struct hvx_conf;
struct hvx_config;

/* path NULL: $HVX_CONF, else the system's hvx.conf if there is one, else the
 * defaults (every plugin found is enabled). A file asked for by name must exist. */
HVX_WUR int hvx_conf_load(const char *path, struct hvx_conf **out, struct hvx_error *err);
void hvx_conf_destroy(struct hvx_conf *c);
const char *hvx_conf_path(const struct hvx_conf *c); /* NULL: no file was read */

/* Names in `plugins = {...}`, NULL-terminated; NULL when the file does not say. */
const char *const *hvx_conf_plugins(const struct hvx_conf *c);
/* Absolute folders to look in, NULL-terminated: $HVX_PLUGIN_DIR (colon
 * separated), else plugin_dir, else the build tree this program runs from,
 * else the installed folder. */
const char *const *hvx_conf_plugin_dirs(const struct hvx_conf *c);

struct hvx_conf_section {
    const char *name;          /* "cpu-bt" */
    struct hvx_config *config; /* filled in; NULL: the section may be there but cannot be checked */
    const char *unusable;      /* why config is NULL */
};
/* Read the sections. An option or section that is not declared is an error
 * with file, line and the valid names. */
HVX_WUR int hvx_conf_sections(const struct hvx_conf *c, const struct hvx_conf_section *sections, unsigned n,
                              struct hvx_error *err);
#endif
