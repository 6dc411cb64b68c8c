/* SPDX-License-Identifier: Apache-2.0
 *
 * The plugins of this process: find, load, configure, initialise, look up.
 */
#define _GNU_SOURCE
#include "core/plugin/registry.h"

#include "core/plugin/loader.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PLUGINS 128u

struct plugin {
    struct hvx_plugin_entry e; /* first */
    struct hvx_module *module;
    bool initialised;
};

struct hvx_registry {
    const struct hvx_host *host;
    struct plugin *plugins[MAX_PLUGINS]; /* by name */
    unsigned n_plugins;
    struct hvx_device_entry *devices;
    unsigned n_devices;
    struct hvx_engine_entry *engines; /* highest rank first */
    unsigned n_engines;
};

/* --- finding ---------------------------------------------------------------- */
static bool is_enabled(const struct hvx_conf *conf, const char *name)
{
    const char *const *list = hvx_conf_plugins(conf);
    for (; list && *list; list++)
        if (!strcmp(*list, name))
            return true;
    return hvx_conf_plugins(conf) == NULL;
}

static int plugin_add(struct hvx_registry *r, const struct hvx_conf *conf, const char *dir, const char *file,
                      struct hvx_error *err)
{
    if (r->n_plugins == MAX_PLUGINS)
        return hvx_fail(err, -E2BIG, "plugin folder %s: more than %u plugins; move those not needed away", dir,
                        MAX_PLUGINS);
    struct plugin *p = calloc(1, sizeof(*p));
    char *path = NULL;
    if (!p)
        return -ENOMEM;
    r->plugins[r->n_plugins++] = p;
    p->e.name = strndup(file, strlen(file) - 3);
    if (!p->e.name || asprintf(&path, "%s/%s", dir, file) < 0)
        return -ENOMEM;
    p->e.path = path;
    p->e.enabled = is_enabled(conf, p->e.name);
    /* One name in two folders: which one is meant would depend on their order. */
    for (unsigned i = 0; i + 1 < r->n_plugins; i++)
        if (!strcmp(r->plugins[i]->e.name, p->e.name))
            hvx_fail(&p->e.refusal, -EEXIST, "plugin %s refused: expected one plugin named %s, found also %s; remove one "
                     "of the files", path, p->e.name, r->plugins[i]->e.path);
    return 0;
}

static int find_in(struct hvx_registry *r, const struct hvx_conf *conf, const char *dir, struct hvx_error *err)
{
    struct dirent **files = NULL;
    int n = scandir(dir, &files, NULL, alphasort), result = 0;
    for (int i = 0; i < n; i++) {
        size_t len = strlen(files[i]->d_name);
        if (result == 0 && len > 3 && files[i]->d_name[0] != '.' && !strcmp(files[i]->d_name + len - 3, ".so"))
            result = plugin_add(r, conf, dir, files[i]->d_name, err);
        free(files[i]);
    }
    free(files);
    return result; /* a folder that is not there holds nothing */
}

static int by_name(const void *a, const void *b)
{
    const struct plugin *p = *(struct plugin *const *)a, *q = *(struct plugin *const *)b;
    int c = strcmp(p->e.name, q->e.name);
    return c ? c : (p->e.refusal.code != 0) - (q->e.refusal.code != 0);
}

/* Every name in hvx.conf must have a file. */
static int check_wanted(struct hvx_registry *r, const struct hvx_conf *conf, struct hvx_error *err)
{
    for (const char *const *w = hvx_conf_plugins(conf); w && *w; w++) {
        if (hvx_registry_find(r, *w))
            continue;
        char found[200] = "", dirs[200] = "";
        for (unsigned i = 0; i < r->n_plugins; i++)
            snprintf(found + strlen(found), sizeof(found) - strlen(found), "%s%s", i ? ", " : "", r->plugins[i]->e.name);
        for (const char *const *d = hvx_conf_plugin_dirs(conf); *d; d++)
            snprintf(dirs + strlen(dirs), sizeof(dirs) - strlen(dirs), "%s%s", *dirs ? ", " : "", *d);
        return hvx_fail(err, -ENOENT, "%s enables the plugin %s, but there is no %s.so in %s; there are: %s",
                        hvx_conf_path(conf), *w, *w, *dirs ? dirs : "any folder", *found ? found : "none");
    }
    return 0;
}

/* --- loading ---------------------------------------------------------------- */
static int load(struct plugin *p)
{
    int r = hvx_module_open(p->e.path, &p->module, &p->e.refusal);
    if (r < 0)
        return r;
    p->e.desc = p->module->desc;
    p->e.ops = p->module->ops;
    r = hvx_config_new(p->e.desc.options, &p->e.config);
    return r < 0 ? hvx_fail(&p->e.refusal, r, "plugin %s: out of memory", p->e.path) : 0;
}

static int read_sections(struct hvx_registry *r, const struct hvx_conf *conf, struct hvx_error *err)
{
    struct hvx_conf_section sections[MAX_PLUGINS];
    unsigned n = 0;
    for (unsigned i = 0; i < r->n_plugins; i++) {
        struct plugin *p = r->plugins[i];
        if (i == 0 || strcmp(r->plugins[i - 1]->e.name, p->e.name))
            sections[n++] = (struct hvx_conf_section){p->e.name, p->e.config, p->e.refusal.text};
    }
    return hvx_conf_sections(conf, sections, n, err);
}

static int initialise(struct hvx_registry *r, struct plugin *p)
{
    if (!r->host)
        return 0;
    struct hvx_error why = {.code = 0};
    int code = hvx_config_check(p->e.config, p->e.name, &why);
    if (code == 0)
        code = p->e.desc.init(r->host, p->e.config, &p->e.ctx, &why);
    if (code < 0)
        return hvx_fail(&p->e.refusal, code, "plugin %s does not start: %s", p->e.name,
                        why.text[0] ? why.text : strerror(-code));
    p->initialised = true;
    return 0;
}

/* --- tables for look-ups ---------------------------------------------------------- */
static int add_devices(struct hvx_registry *r, struct plugin *p)
{
    const struct hvx_device_ops *ops = p->e.ops;
    for (unsigned i = 0; i < ops->n_types; i++) {
        const struct hvx_device_entry *other = hvx_registry_device(r, ops->types[i]->name);
        if (other)
            return hvx_fail(&p->e.refusal, -EEXIST, "plugin %s refused: expected device types of its own, found %s, which "
                            "%s offers too; enable only one of them in hvx.conf", p->e.path, ops->types[i]->name,
                            other->plugin->name);
    }
    struct hvx_device_entry *grown = realloc(r->devices, (r->n_devices + ops->n_types) * sizeof(*grown));
    if (!grown)
        return hvx_fail(&p->e.refusal, -ENOMEM, "plugin %s: out of memory", p->e.path);
    r->devices = grown;
    for (unsigned i = 0; i < ops->n_types; i++)
        r->devices[r->n_devices++] = (struct hvx_device_entry){ops->types[i], &p->e};
    return 0;
}

static int add_engine(struct hvx_registry *r, struct plugin *p)
{
    struct hvx_engine_entry *grown = realloc(r->engines, (r->n_engines + 1) * sizeof(*grown));
    if (!grown)
        return hvx_fail(&p->e.refusal, -ENOMEM, "plugin %s: out of memory", p->e.path);
    r->engines = grown;
    const struct hvx_cpu_ops *ops = p->e.ops;
    unsigned at = r->n_engines++;
    for (; at > 0 && r->engines[at - 1].ops->rank < ops->rank; at--)
        r->engines[at] = r->engines[at - 1];
    r->engines[at] = (struct hvx_engine_entry){ops, &p->e};
    return 0;
}

static int bring_up(struct hvx_registry *r, struct plugin *p)
{
    int code = initialise(r, p);
    if (code == 0 && p->e.desc.family == HVX_FAMILY_DEVICE)
        code = add_devices(r, p);
    if (code == 0 && p->e.desc.family == HVX_FAMILY_CPU)
        code = add_engine(r, p);
    p->e.ready = code == 0;
    return code;
}

/* A refusal is an error when hvx.conf names the plugin; else it is worth a warning. */
static int judge(struct hvx_registry *r, const struct hvx_conf *conf, const struct plugin *p, struct hvx_error *err)
{
    if (!p->e.refusal.code || !p->e.enabled || !r->host)
        return 0;
    if (hvx_conf_plugins(conf))
        return hvx_fail(err, p->e.refusal.code, "%s", p->e.refusal.text);
    r->host->log(HVX_LOG_WARN, "plugins", "%s", p->e.refusal.text);
    return 0;
}

static int build(struct hvx_registry *r, const struct hvx_conf *conf, struct hvx_error *err)
{
    int code = 0;
    for (const char *const *d = hvx_conf_plugin_dirs(conf); code == 0 && *d; d++)
        code = find_in(r, conf, *d, err);
    if (code < 0)
        return code;
    qsort(r->plugins, r->n_plugins, sizeof(r->plugins[0]), by_name);
    code = check_wanted(r, conf, err);
    if (code < 0)
        return code;
    /* Those not enabled are loaded only to describe them, or for their section. */
    bool all = !r->host || hvx_conf_path(conf);
    for (unsigned i = 0; i < r->n_plugins; i++)
        if (!r->plugins[i]->e.refusal.code && (r->plugins[i]->e.enabled || all))
            load(r->plugins[i]); /* the refusal stays in the entry */
    code = read_sections(r, conf, err);
    for (unsigned i = 0; code == 0 && i < r->n_plugins; i++) {
        struct plugin *p = r->plugins[i];
        if (p->module && p->e.enabled)
            bring_up(r, p); /* likewise */
        code = judge(r, conf, p, err);
    }
    return code;
}

int hvx_registry_new(const struct hvx_conf *conf, const struct hvx_host *host, struct hvx_registry **out,
                     struct hvx_error *err)
{
    struct hvx_registry *r = calloc(1, sizeof(*r));
    if (!r)
        return hvx_fail(err, -ENOMEM, "loading plugins: out of memory");
    r->host = host;
    struct hvx_error why = {.code = 0};
    int code = build(r, conf, &why);
    if (code < 0) {
        hvx_registry_destroy(r);
        return hvx_fail(err, code, "%s", why.code ? why.text : "loading plugins: out of memory");
    }
    *out = r;
    return 0;
}

void hvx_registry_destroy(struct hvx_registry *r)
{
    if (!r)
        return;
    free(r->devices);
    free(r->engines);
    for (unsigned i = r->n_plugins; i-- > 0;) {
        struct plugin *p = r->plugins[i];
        if (p->initialised && p->e.desc.fini)
            p->e.desc.fini(p->e.ctx);
        hvx_config_destroy(p->e.config);
        hvx_module_close(p->module);
        free((void *)(uintptr_t)p->e.name);
        free((void *)(uintptr_t)p->e.path);
        free(p);
    }
    free(r);
}

/* --- look-ups --------------------------------------------------------------------- */
const struct hvx_plugin_entry *hvx_registry_plugin(const struct hvx_registry *r, unsigned i)
{
    return i < r->n_plugins ? &r->plugins[i]->e : NULL;
}

const struct hvx_plugin_entry *hvx_registry_find(const struct hvx_registry *r, const char *name)
{
    for (unsigned i = 0; i < r->n_plugins; i++)
        if (!strcmp(r->plugins[i]->e.name, name))
            return &r->plugins[i]->e;
    return NULL;
}

const struct hvx_device_entry *hvx_registry_device_at(const struct hvx_registry *r, unsigned i)
{
    return i < r->n_devices ? &r->devices[i] : NULL;
}

const struct hvx_device_entry *hvx_registry_device(const struct hvx_registry *r, const char *type_name)
{
    for (unsigned i = 0; i < r->n_devices; i++)
        if (!strcmp(r->devices[i].type->name, type_name))
            return &r->devices[i];
    return NULL;
}

const struct hvx_device_entry *hvx_registry_device_by_role(const struct hvx_registry *r, enum hvx_device_role role)
{
    const struct hvx_device_entry *best = NULL;
    for (unsigned i = 0; i < r->n_devices; i++) {
        const struct hvx_device_entry *d = &r->devices[i];
        if (d->type->role == (uint32_t)role && d->type->rank >= 0 && (!best || d->type->rank > best->type->rank))
            best = d;
    }
    return best;
}

const struct hvx_engine_entry *hvx_registry_engine_at(const struct hvx_registry *r, unsigned i)
{
    return i < r->n_engines ? &r->engines[i] : NULL;
}

const struct hvx_engine_entry *hvx_registry_engine(const struct hvx_registry *r, const char *name)
{
    for (unsigned i = 0; i < r->n_engines; i++) {
        const char *full = r->engines[i].plugin->name;
        if (!strcmp(full, name) || (!strncmp(full, "cpu-", 4) && !strcmp(full + 4, name)))
            return &r->engines[i];
    }
    return NULL;
}

void hvx_registry_device_names(const struct hvx_registry *r, char *buf, size_t n)
{
    buf[0] = '\0';
    for (unsigned i = 0; i < r->n_devices; i++)
        snprintf(buf + strlen(buf), n - strlen(buf), "%s%s", i ? ", " : "", r->devices[i].type->name);
}

void hvx_registry_engine_names(const struct hvx_registry *r, char *buf, size_t n)
{
    buf[0] = '\0';
    for (unsigned i = 0; i < r->n_engines; i++) {
        const char *name = r->engines[i].plugin->name;
        snprintf(buf + strlen(buf), n - strlen(buf), "%s%s", i ? ", " : "", !strncmp(name, "cpu-", 4) ? name + 4 : name);
    }
}
