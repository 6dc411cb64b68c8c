/* SPDX-License-Identifier: Apache-2.0
 *
 * core/plugin/registry.h - the plugins of this process.
 *
 *     struct hvx_conf *conf;
 *     struct hvx_registry *reg;
 *     hvx_conf_load(NULL, &conf, &err);
 *     hvx_registry_new(conf, &host_table, &reg, &err);
 *     const struct hvx_device_entry *d = hvx_registry_device_by_role(reg, HVX_ROLE_DISK);
 *     d->type->create(d->plugin->ctx, vm, config, &dev, &err);
 *     hvx_registry_destroy(reg);       // after every instance is gone
 *
 * hvx_registry_new looks for NAME.so in the plugin folders, loads what hvx.conf
 * enables (all of them when it does not say), reads their sections, and calls
 * init. A plugin that the site asked for and that is refused is an error; one
 * that was merely found is kept in the list with its refusal, and a warning is
 * logged. With host == NULL nothing is initialised: the registry only
 * describes (`hvx plugin list`), and every failure is kept in the list.
 *
 * Threads: build and destroy from one thread; lookups from any.
 * Everything returned is owned by the registry.
 */
#ifndef HVX_CORE_REGISTRY_H
#define HVX_CORE_REGISTRY_H

#include "core/conf/conf.h"
#include "core/conf/options.h"

#include <hvx/cpu.h>
#include <hvx/device.h>
#include <hvx/plugin.h>

struct hvx_registry;

struct hvx_plugin_entry {
    const char *name;              /* from the file's name */
    const char *path;              /* absolute */
    bool enabled;                  /* hvx.conf wants it */
    bool ready;                    /* loaded, and initialised if there is a host */
    struct hvx_plugin desc;        /* a copy at this host's size; zero when refused */
    const void *ops;               /* likewise: struct hvx_cpu_ops, hvx_device_ops, ... */
    void *ctx;                     /* from init */
    struct hvx_config *config;     /* its section */
    struct hvx_error refusal;      /* code != 0: why it is not ready */
};

/* A device type, copied at this host's size, and who offers it. */
struct hvx_device_entry {
    const struct hvx_device_type *type;
    const struct hvx_plugin_entry *plugin;
};

struct hvx_engine_entry {
    const struct hvx_cpu_ops *ops;
    const struct hvx_plugin_entry *plugin; /* ->desc.name: "cpu-bt"; --engine bt means cpu-bt */
};

HVX_WUR int hvx_registry_new(const struct hvx_conf *conf, const struct hvx_host *host, struct hvx_registry **out,
                             struct hvx_error *err);
void hvx_registry_destroy(struct hvx_registry *r);

/* All plugins by name, refused and disabled ones too; i from 0, NULL ends. */
const struct hvx_plugin_entry *hvx_registry_plugin(const struct hvx_registry *r, unsigned i);
const struct hvx_plugin_entry *hvx_registry_find(const struct hvx_registry *r, const char *name);

/* Device types of ready plugins; NULL when there is none. */
const struct hvx_device_entry *hvx_registry_device(const struct hvx_registry *r, const char *type_name);
const struct hvx_device_entry *hvx_registry_device_by_role(const struct hvx_registry *r, enum hvx_device_role role);
const struct hvx_device_entry *hvx_registry_device_at(const struct hvx_registry *r, unsigned i); /* NULL ends */

/* Engines of ready plugins, highest rank first. */
const struct hvx_engine_entry *hvx_registry_engine_at(const struct hvx_registry *r, unsigned i); /* NULL ends */
/* "bt" and "cpu-bt" both find cpu-bt. */
const struct hvx_engine_entry *hvx_registry_engine(const struct hvx_registry *r, const char *name);
/* Device types or engines that exist, as "a, b, c", for messages. */
void hvx_registry_device_names(const struct hvx_registry *r, char *buf, size_t n);
void hvx_registry_engine_names(const struct hvx_registry *r, char *buf, size_t n);
#endif
