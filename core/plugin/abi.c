/* SPDX-License-Identifier: Apache-2.0
 *
 * May this plugin be used? Every answer "no" names the file, what was
 * expected, what was found, and what to do. The policy is in hvx/plugin.h.
 */
#include "core/plugin/loader.h"

#include "core/conf/options.h"

#include <hvx/cpu.h>
#include <hvx/device.h>
#include <hvx/store.h>
#include <hvx/transport.h>

#include <stdlib.h>
#include <string.h>

/* Sizes as released with minor 0: less cannot have been built from our headers. */
#define PLUGIN_SIZE_1_0 96u
#define CPU_OPS_SIZE_1_0 (offsetof(struct hvx_cpu_ops, dirty_fetch) + sizeof(void *))
#define DEVICE_OPS_SIZE_1_0 (offsetof(struct hvx_device_ops, types) + sizeof(void *))
#define DEVICE_TYPE_SIZE_1_0 (offsetof(struct hvx_device_type, quiesced) + sizeof(void *))
#define RESERVED_OPS_SIZE_1_0 8u
#define MAX_DEVICE_TYPES 64u

#define REBUILD "rebuild the plugin against this host's hvx-sdk headers"

struct subject {
    const char *path, *name;
    struct hvx_error *err;
};

HVX_PRINTF(3, 4)
static int refuse(const struct subject *s, const char *remedy, const char *fmt, ...)
{
    char what[300];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    return hvx_fail(s->err, -ENOEXEC, "plugin %s refused: %s; %s", s->path, what, remedy);
}

static const struct family {
    const char *name;
    uint32_t minor;
    size_t min_size, size;
} families[] = {
    [HVX_FAMILY_CPU] = {"cpu", HVX_CPU_MINOR, CPU_OPS_SIZE_1_0, sizeof(struct hvx_cpu_ops)},
    [HVX_FAMILY_DEVICE] = {"device", HVX_DEVICE_MINOR, DEVICE_OPS_SIZE_1_0, sizeof(struct hvx_device_ops)},
    [HVX_FAMILY_TRANSPORT] = {"transport", HVX_TRANSPORT_MINOR, RESERVED_OPS_SIZE_1_0,
                              sizeof(struct hvx_transport_ops)},
    [HVX_FAMILY_STORE] = {"store", HVX_STORE_MINOR, RESERVED_OPS_SIZE_1_0, sizeof(struct hvx_store_ops)},
};

const char *hvx_family_name(uint32_t family)
{
    return family < sizeof(families) / sizeof(families[0]) ? families[family].name : NULL;
}

uint32_t hvx_family_minor(uint32_t family)
{
    return hvx_family_name(family) ? families[family].minor : 0;
}

/* The fields that every version has in the same place. */
static int check_head(const struct subject *s, const struct hvx_plugin *raw, size_t available)
{
    if (available < 8)
        return refuse(s, "is this an HVX plugin?", "expected a descriptor of at least %u bytes, found an object of %zu",
                      PLUGIN_SIZE_1_0, available);
    if (raw->magic != HVX_PLUGIN_MAGIC)
        return refuse(s, "is this an HVX plugin? " REBUILD, "expected magic 0x%08x, found 0x%08x", HVX_PLUGIN_MAGIC,
                      raw->magic);
    if (raw->size < PLUGIN_SIZE_1_0 || raw->size > available)
        return refuse(s, "do not fill in .size by hand: use HVX_PLUGIN_DEFINE, and " REBUILD,
                      "expected a descriptor of %u to %zu bytes, found size %u", PLUGIN_SIZE_1_0, available, raw->size);
    if (raw->abi_major != HVX_ABI_MAJOR)
        return refuse(s, raw->abi_major > HVX_ABI_MAJOR ? "upgrade HVX, or " REBUILD : REBUILD,
                      "expected ABI major %u, found %u", HVX_ABI_MAJOR, raw->abi_major);
    if (!hvx_family_name(raw->family))
        return refuse(s, "upgrade HVX, or set the family to one of enum hvx_family",
                      "expected family 1 to 4 (cpu, device, transport, store), found %u", raw->family);
    if (raw->family_minor > families[raw->family].minor)
        return refuse(s, "upgrade HVX, or " REBUILD, "expected minor %u or older of the %s family, found %u",
                      families[raw->family].minor, hvx_family_name(raw->family), raw->family_minor);
    return 0;
}

static int check_desc(const struct subject *s, const struct hvx_plugin *d)
{
    if (!d->name || strcmp(d->name, s->name))
        return refuse(s, "rename the file or the plugin: they must agree", "expected the plugin name %s, found %s",
                      s->name, d->name ? d->name : "none");
    if (!d->version || !d->summary || !d->license)
        return refuse(s, "fill in .version, .summary and .license", "expected version, summary and license, found no %s",
                      !d->version ? "version" : !d->summary ? "summary" : "license");
    if (!d->init)
        return refuse(s, "fill in .init", "expected an init function, found none");
    struct hvx_error bad;
    if (hvx_options_check(d->options, "option table", &bad) < 0)
        return refuse(s, "correct the table", "expected a sound option table, found: %s", bad.text);
    return 0;
}

/* Callbacks: name and offset of each that must be there. */
struct callback {
    const char *name;
    size_t offset;
};
#define CALLBACK(type, field) {#field, offsetof(type, field)}

static const struct callback cpu_callbacks[] = {
    CALLBACK(struct hvx_cpu_ops, probe),         CALLBACK(struct hvx_cpu_ops, vm_create),
    CALLBACK(struct hvx_cpu_ops, vm_destroy),    CALLBACK(struct hvx_cpu_ops, set_slot),
    CALLBACK(struct hvx_cpu_ops, vcpu_create),   CALLBACK(struct hvx_cpu_ops, vcpu_destroy),
    CALLBACK(struct hvx_cpu_ops, vcpu_reset),    CALLBACK(struct hvx_cpu_ops, vcpu_run),
    CALLBACK(struct hvx_cpu_ops, vcpu_kick),     CALLBACK(struct hvx_cpu_ops, vcpu_get),
    CALLBACK(struct hvx_cpu_ops, vcpu_set),      CALLBACK(struct hvx_cpu_ops, irqchip_reset),
    CALLBACK(struct hvx_cpu_ops, irqchip_state), CALLBACK(struct hvx_cpu_ops, irq_line),
    CALLBACK(struct hvx_cpu_ops, msi),           CALLBACK(struct hvx_cpu_ops, code_written),
};
static const struct callback type_callbacks[] = {
    CALLBACK(struct hvx_device_type, create),
    CALLBACK(struct hvx_device_type, destroy),
    CALLBACK(struct hvx_device_type, reset),
};

/* List every callback that is missing, not just the first. */
static bool missing(const void *p, const struct callback *list, size_t n, char *names, size_t n_names)
{
    names[0] = '\0';
    for (size_t i = 0; i < n; i++) {
        void *const *slot = (void *const *)((const char *)p + list[i].offset);
        if (*slot)
            continue;
        size_t used = strlen(names);
        snprintf(names + used, n_names - used, "%s%s", used ? ", " : "", list[i].name);
    }
    return names[0] != '\0';
}

static int check_cpu(const struct subject *s, const struct hvx_cpu_ops *ops)
{
    char names[200];
    if (missing(ops, cpu_callbacks, sizeof(cpu_callbacks) / sizeof(cpu_callbacks[0]), names, sizeof(names)))
        return refuse(s, "implement them, hvx/cpu.h says what each does", "expected all callbacks of an engine, found no %s",
                      names);
    return 0;
}

static int check_type(const struct subject *s, const struct hvx_device_type *t)
{
    char names[100];
    if (!t->name || !*t->name || strpbrk(t->name, ", \t"))
        return refuse(s, "name each type", "expected a device type's name, found %s", t->name ? t->name : "none");
    if (missing(t, type_callbacks, sizeof(type_callbacks) / sizeof(type_callbacks[0]), names, sizeof(names)))
        return refuse(s, "implement them, hvx/device.h says what each does",
                      "expected all callbacks of device type %s, found no %s", t->name, names);
    struct hvx_error bad;
    if (hvx_options_check(t->options, t->name, &bad) < 0)
        return refuse(s, "correct the table", "expected a sound option table, found: %s", bad.text);
    return 0;
}

/* Replace the array of types by copies at this host's size. */
static int copy_types(const struct subject *s, struct hvx_device_ops *ops)
{
    if (!ops->n_types || ops->n_types > MAX_DEVICE_TYPES || !ops->types)
        return refuse(s, "offer at least one type", "expected 1 to %u device types, found %u", MAX_DEVICE_TYPES,
                      ops->types ? ops->n_types : 0);
    const struct hvx_device_type *const *raw = ops->types;
    struct hvx_device_type **copies = calloc(ops->n_types + 1, sizeof(*copies));
    int r = copies ? 0 : hvx_fail(s->err, -ENOMEM, "plugin %s: out of memory", s->path);
    ops->types = (const struct hvx_device_type *const *)copies;
    for (unsigned i = 0; r == 0 && i < ops->n_types; i++) {
        if (!raw[i] || raw[i]->size < DEVICE_TYPE_SIZE_1_0) {
            r = refuse(s, "set .size = sizeof(struct hvx_device_type), and " REBUILD,
                       "expected device type %u to have at least %zu bytes, found %u", i, DEVICE_TYPE_SIZE_1_0,
                       raw[i] ? raw[i]->size : 0);
            break;
        }
        copies[i] = calloc(1, sizeof(**copies));
        if (!copies[i]) {
            r = hvx_fail(s->err, -ENOMEM, "plugin %s: out of memory", s->path);
            break;
        }
        memcpy(copies[i], raw[i], raw[i]->size < sizeof(**copies) ? raw[i]->size : sizeof(**copies));
        r = check_type(s, copies[i]);
        for (unsigned k = 0; r == 0 && k < i; k++)
            if (!strcmp(copies[k]->name, copies[i]->name))
                r = refuse(s, "give each type its own name", "expected different names, found device type %s twice",
                           copies[i]->name);
    }
    return r;
}

void hvx_ops_free(uint32_t family, void *ops)
{
    if (ops && family == HVX_FAMILY_DEVICE) {
        struct hvx_device_ops *d = ops;
        for (unsigned i = 0; d->types && i < d->n_types; i++)
            free((void *)(uintptr_t)d->types[i]);
        free((void *)(uintptr_t)d->types);
    }
    free(ops);
}

static int copy_ops(const struct subject *s, const struct hvx_plugin *d, void **out)
{
    const struct family *f = &families[d->family];
    if (!d->ops)
        return refuse(s, "fill in .ops", "expected the operations of the %s family, found none", f->name);
    uint32_t size;
    memcpy(&size, d->ops, sizeof(size));
    if (size < f->min_size)
        return refuse(s, "set the .size of the operations with sizeof, and check .family; " REBUILD,
                      "expected operations of the %s family of at least %zu bytes, found %u", f->name, f->min_size, size);
    void *ops = calloc(1, f->size);
    if (!ops)
        return hvx_fail(s->err, -ENOMEM, "plugin %s: out of memory", s->path);
    memcpy(ops, d->ops, size < f->size ? size : f->size);
    int r = 0;
    if (d->family == HVX_FAMILY_CPU)
        r = check_cpu(s, ops);
    else if (d->family == HVX_FAMILY_DEVICE)
        r = copy_types(s, ops);
    if (r < 0) {
        hvx_ops_free(d->family, ops);
        return r;
    }
    *out = ops;
    return 0;
}

int hvx_plugin_check(const struct hvx_plugin *raw, size_t available, const char *path, const char *name,
                     struct hvx_plugin *desc, void **ops, struct hvx_error *err)
{
    const struct subject s = {path, name, err};
    int r = check_head(&s, raw, available);
    if (r < 0)
        return r;
    struct hvx_plugin copy = {.size = sizeof(copy)};
    memcpy(&copy, raw, raw->size < sizeof(copy) ? raw->size : sizeof(copy));
    r = check_desc(&s, &copy);
    if (r == 0)
        r = copy_ops(&s, &copy, ops);
    if (r == 0)
        *desc = copy;
    return r;
}
