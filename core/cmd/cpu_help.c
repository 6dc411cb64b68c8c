/* SPDX-License-Identifier: Apache-2.0
 *
 * core/cmd/cpu_help.c - `hvx run --cpu help`: the CPU models of the engine that
 * would be taken, and which of them this host can run.
 */
#include "core/cmd/commands.h"
#include "core/cmd/run.h"
#include "core/plugin/registry.h"
#include "core/vm/vm.h"

#include <stdio.h>
#include <string.h>

struct list {
    bool names; /* the models are done, names of features follow */
};

static void print(void *opaque, const char *name, const char *what, const char *why)
{
    struct list *l = opaque;

    if (name) {
        printf("  %-20s %-5s %s\n", name, why ? "no" : "yes", what);
        if (why)
            printf("  %-20s       this host %s\n", "", why);
        return;
    }
    if (!l->names)
        printf("\nFeatures that +NAME adds and -NAME takes away:\n");
    l->names = true;
    printf("  %s\n", what);
}

static const struct hvx_engine_entry *choose(const struct hvx_registry *reg, const char *name)
{
    const struct hvx_engine_entry *e;
    struct hvx_error ignored;

    if (name && strcmp(name, "auto"))
        return hvx_registry_engine(reg, name);
    for (unsigned i = 0; (e = hvx_registry_engine_at(reg, i)); i++)
        if (!e->ops->probe || e->ops->probe(e->plugin->ctx, &ignored) == 0)
            return e;
    return NULL;
}

static int list_models(const struct hvx_registry *reg, const char *engine, struct hvx_error *err)
{
    const struct hvx_engine_entry *e = choose(reg, engine);
    struct list l = {0};

    if (!e)
        return hvx_fail(err, -ENOENT, "there is no engine %s here; `hvx plugin list` shows what there is",
                        engine ? engine : "auto");
    printf("CPU models of engine %s: --cpu NAME[,+FEATURE][,-FEATURE][,hypervisor=kvm|hvx|none][,tsc-frequency=HZ]\n\n",
           e->plugin->desc.name);
    printf("  %-20s %-5s %s\n", "NAME", "HERE", "WHAT IT IS");
    if (e->ops->cpu_models)
        return e->ops->cpu_models(e->plugin->ctx, print, &l);
    print(&l, "host", "what this host has; this engine has no other", NULL);
    return 0;
}

int hvx_cpu_help(const char *config, const char *engine)
{
    struct hvx_conf *conf = NULL;
    struct hvx_registry *reg = NULL;
    struct hvx_error err = {0};
    int e = hvx_conf_load(config, &conf, &err);

    if (e == 0)
        e = hvx_registry_new(conf, hvx_host_table(), &reg, &err);
    if (e == 0)
        e = list_models(reg, engine, &err);
    if (e < 0)
        fprintf(stderr, "hvx run: --cpu help: %s\n", err.text);
    hvx_registry_destroy(reg);
    hvx_conf_destroy(conf);
    return e < 0 ? HVX_STATUS_FAILED : HVX_STATUS_OK;
}
