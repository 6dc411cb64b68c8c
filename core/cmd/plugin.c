/* SPDX-License-Identifier: Apache-2.0
 *
 * hvx plugin list, hvx plugin show NAME|FILE.
 */
#include <config.h>

#include "core/cmd/commands.h"
#include "core/plugin/loader.h"
#include "core/plugin/registry.h"

#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static void usage(FILE *f)
{
    fprintf(f, "Usage: hvx plugin list [--json] [--config FILE]\n"
               "       hvx plugin show [--json] [--config FILE] NAME|FILE.so\n"
               "List the plugins that hvx.conf and the plugin folder offer; show one with its\n"
               "ABI, capabilities, options and device types.\n");
}

static const char *plugin_status(const struct hvx_plugin_entry *e)
{
    return e->refusal.code ? "refused" : e->enabled ? "enabled" : "disabled";
}

static const char *role_name(uint32_t role)
{
    static const char *const names[] = {
        [HVX_ROLE_NONE] = "none", [HVX_ROLE_MACHINE] = "machine", [HVX_ROLE_DISK] = "disk", [HVX_ROLE_NIC] = "nic",
        [HVX_ROLE_RNG] = "rng", [HVX_ROLE_CONSOLE] = "console", [HVX_ROLE_CDROM] = "cdrom",
        [HVX_ROLE_SCSI] = "scsi", [HVX_ROLE_BALLOON] = "balloon",
    };
    return role < sizeof(names) / sizeof(names[0]) && names[role] ? names[role] : "unknown";
}

/* "0 to 65535", "4K to 1G", "fast or slow"; empty when there is no limit. */
static void range_text(const struct hvx_option *o, char *buf, size_t n)
{
    buf[0] = '\0';
    if (o->type == HVX_OPT_ENUM) {
        snprintf(buf, n, "%s", o->choices);
    } else if (o->min || o->max) {
        char lo[32], hi[32];
        if (o->type == HVX_OPT_SIZE) {
            hvx_format_size(o->min, lo, sizeof(lo));
            hvx_format_size(o->max, hi, sizeof(hi));
        } else {
            snprintf(lo, sizeof(lo), "%" PRId64, o->min);
            snprintf(hi, sizeof(hi), "%" PRId64, o->max);
        }
        snprintf(buf, n, "%s to %s", lo, hi);
    }
}

/* --- JSON -------------------------------------------------------------------- */
static json_t *string_or_null(const char *s)
{
    return s ? json_string(s) : json_null();
}

static json_t *options_json(const struct hvx_option *table)
{
    json_t *list = json_array();
    for (const struct hvx_option *o = table; o && o->name; o++) {
        json_t *j = json_pack("{s:s, s:s, s:b, s:o, s:o}", "name", o->name, "type", hvx_option_type_name(o->type),
                              "required", (o->flags & HVX_OPTF_REQUIRED) != 0, "default", string_or_null(o->def),
                              "help", string_or_null(o->help));
        if ((o->type == HVX_OPT_INT || o->type == HVX_OPT_SIZE) && (o->min || o->max)) {
            json_object_set_new(j, "min", json_integer(o->min));
            json_object_set_new(j, "max", json_integer(o->max));
        }
        if (o->type == HVX_OPT_ENUM)
            json_object_set_new(j, "choices", json_string(o->choices));
        json_array_append_new(list, j);
    }
    return list;
}

static json_t *types_json(const struct hvx_device_ops *ops)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < ops->n_types; i++) {
        const struct hvx_device_type *t = ops->types[i];
        json_array_append_new(list, json_pack("{s:s, s:o, s:s, s:i, s:i, s:o}", "name", t->name, "summary",
                                              string_or_null(t->summary), "role", role_name(t->role), "rank",
                                              (int)t->rank, "state_version", (int)t->version, "options",
                                              options_json(t->options)));
    }
    return list;
}

static json_t *entry_json(const struct hvx_plugin_entry *e, bool full)
{
    json_t *j = json_pack("{s:s, s:s, s:s}", "name", e->name, "path", e->path, "status", plugin_status(e));
    if (e->refusal.code)
        json_object_set_new(j, "reason", json_string(e->refusal.text));
    if (!e->desc.name)
        return j;
    const struct hvx_plugin *d = &e->desc;
    json_object_update_new(j, json_pack("{s:s, s:s, s:s, s:s, s:{s:i, s:i}}", "family", hvx_family_name(d->family),
                                        "version", d->version, "summary", d->summary, "license", d->license, "abi",
                                        "major", (int)d->abi_major, "minor", (int)d->family_minor));
    if (!full)
        return j;
    json_t *caps = json_array();
    for (const char *const *c = d->capabilities; c && *c; c++)
        json_array_append_new(caps, json_string(*c));
    json_object_set_new(j, "capabilities", caps);
    json_object_set_new(j, "options", options_json(d->options));
    if (d->family == HVX_FAMILY_DEVICE)
        json_object_set_new(j, "device_types", types_json(e->ops));
    if (d->family == HVX_FAMILY_CPU)
        json_object_set_new(j, "rank", json_integer(((const struct hvx_cpu_ops *)e->ops)->rank));
    return j;
}

static void print_json(json_t *j)
{
    json_dumpf(j, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(j);
}

/* --- for people ---------------------------------------------------------------------- */
static void print_options(const struct hvx_option *table, const char *indent)
{
    for (const struct hvx_option *o = table; o && o->name; o++) {
        char range[200];
        range_text(o, range, sizeof(range));
        printf("%s%s=%s%s%s%s%s%s%s\n", indent, o->name, hvx_option_type_name(o->type), *range ? " (" : "", range,
               *range ? ")" : "", o->def ? ", default " : "", o->def ? o->def : "",
               o->flags & HVX_OPTF_REQUIRED ? ", required" : "");
        if (o->help)
            printf("%s    %s\n", indent, o->help);
    }
}

static void print_entry(const struct hvx_plugin_entry *e)
{
    const struct hvx_plugin *d = &e->desc;
    printf("name          %s\nfile          %s\nstatus        %s\n", e->name, e->path, plugin_status(e));
    if (e->refusal.code)
        printf("reason        %s\n", e->refusal.text);
    if (!d->name)
        return;
    printf("summary       %s\nversion       %s\nlicense       %s\n", d->summary, d->version, d->license);
    printf("family        %s\nABI           major %u, minor %u (this host: major %u, minor %u)\n",
           hvx_family_name(d->family), d->abi_major, d->family_minor, HVX_ABI_MAJOR, hvx_family_minor(d->family));
    printf("capabilities ");
    for (const char *const *c = d->capabilities; c && *c; c++)
        printf(" %s", *c);
    printf("%s\n", d->capabilities && *d->capabilities ? "" : " none");
    if (d->options && d->options->name) {
        printf("\nOptions, in a section '%s { ... }' of hvx.conf:\n", e->name);
        print_options(d->options, "  ");
    } else {
        printf("options       none\n");
    }
    if (d->family != HVX_FAMILY_DEVICE)
        return;
    const struct hvx_device_ops *ops = e->ops;
    for (unsigned i = 0; i < ops->n_types; i++) {
        const struct hvx_device_type *t = ops->types[i];
        printf("\nDevice type %s: %s\n  role %s, rank %d\n", t->name, t->summary ? t->summary : "", role_name(t->role),
               t->rank);
        print_options(t->options, "  ");
    }
}

static int list(const struct hvx_registry *reg, bool json)
{
    const struct hvx_plugin_entry *e;
    if (json) {
        json_t *all = json_array();
        for (unsigned i = 0; (e = hvx_registry_plugin(reg, i)); i++)
            json_array_append_new(all, entry_json(e, false));
        print_json(all);
        return HVX_STATUS_OK;
    }
    printf("%-14s %-10s %-9s %-5s %s\n", "NAME", "FAMILY", "STATUS", "ABI", "SUMMARY");
    for (unsigned i = 0; (e = hvx_registry_plugin(reg, i)); i++) {
        if (!e->desc.name) {
            printf("%-14s %-10s %-9s %-5s %s\n", e->name, "-", plugin_status(e), "-", e->refusal.text);
            continue;
        }
        printf("%-14s %-10s %-9s %u.%-3u %s\n", e->name, hvx_family_name(e->desc.family), plugin_status(e),
               e->desc.abi_major, e->desc.family_minor, e->desc.summary);
        if (e->refusal.code)
            printf("%-14s %s\n", "", e->refusal.text);
    }
    return HVX_STATUS_OK;
}

static int show(const struct hvx_plugin_entry *e, bool json)
{
    if (json)
        print_json(entry_json(e, true));
    else
        print_entry(e);
    if (e->refusal.code)
        fprintf(stderr, "hvx plugin show: %s\n", e->refusal.text);
    return e->refusal.code ? HVX_STATUS_FAILED : HVX_STATUS_OK;
}

static int show_by_name(const struct hvx_registry *reg, const char *name, bool json)
{
    const struct hvx_plugin_entry *e = hvx_registry_find(reg, name);
    if (e)
        return show(e, json);
    fprintf(stderr, "hvx plugin show: there is no plugin '%s'; there are:", name);
    for (unsigned i = 0; (e = hvx_registry_plugin(reg, i)); i++)
        fprintf(stderr, " %s", e->name);
    fprintf(stderr, "\n");
    return HVX_STATUS_FAILED;
}

/* A file that is not installed: what its author wants to know. */
static int show_file(const char *file, bool json)
{
    char path[PATH_MAX];
    struct hvx_module *m = NULL;
    struct hvx_error err = {.code = 0};
    if (!realpath(file, path)) {
        fprintf(stderr, "hvx plugin show: %s: %s\n", file, strerror(errno));
        return HVX_STATUS_FAILED;
    }
    if (hvx_module_open(path, &m, &err) < 0) {
        fprintf(stderr, "hvx plugin show: %s\n", err.text);
        return HVX_STATUS_FAILED;
    }
    struct hvx_plugin_entry e = {.name = m->name, .path = m->path, .desc = m->desc, .ops = m->ops, .enabled = false};
    int r = show(&e, json);
    hvx_module_close(m);
    return r;
}

int hvx_cmd_plugin(int argc, char **argv)
{
    static const struct option longs[] = {
        {"json", no_argument, NULL, 'j'}, {"config", required_argument, NULL, 'c'}, {"help", no_argument, NULL, 'h'}, {0},
    };
    bool json = false;
    const char *config = NULL;
    for (int o; (o = getopt_long(argc, argv, "jc:h", longs, NULL)) != -1;) {
        switch (o) {
        case 'j': json = true; break;
        case 'c': config = optarg; break;
        case 'h': usage(stdout); return HVX_STATUS_OK;
        default: usage(stderr); return HVX_STATUS_USAGE;
        }
    }
    int n = argc - optind;
    bool is_list = n == 1 && !strcmp(argv[optind], "list"), is_show = n == 2 && !strcmp(argv[optind], "show");
    if (!is_list && !is_show) {
        usage(stderr);
        return HVX_STATUS_USAGE;
    }
    if (is_show && strchr(argv[optind + 1], '/'))
        return show_file(argv[optind + 1], json);
    struct hvx_conf *conf = NULL;
    struct hvx_registry *reg = NULL;
    struct hvx_error err = {.code = 0};
    int r = HVX_STATUS_FAILED;
    if (hvx_conf_load(config, &conf, &err) < 0 || hvx_registry_new(conf, NULL, &reg, &err) < 0)
        fprintf(stderr, "hvx plugin: %s\n", err.text);
    else
        r = is_list ? list(reg, json) : show_by_name(reg, argv[optind + 1], json);
    hvx_registry_destroy(reg);
    hvx_conf_destroy(conf);
    return r;
}
