/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/machine.c - assembling a VM.
 */
#define _GNU_SOURCE
#include "core/vm/machine.h"
#include "core/vm/disk_spec.h"
#include "core/image/blk.h"
#include "core/net/net.h"
#include "core/vm/chr.h"

#include <stdlib.h>
#include <string.h>

struct hvx_machine {
    struct hvx_vm *vm;
    struct hvx_config *config[HVX_VM_MAX_DEVICES];
    unsigned n_configs;
    const char *disk_id[HVX_MACHINE_MAX + 1], *net_id[HVX_MACHINE_MAX];
    char disk_if[HVX_MACHINE_MAX][32];
    char disk_options[HVX_MACHINE_MAX][1024]; /* of the device in front of it */
    char net_model[HVX_MACHINE_MAX][48], net_options[HVX_MACHINE_MAX][1024];
    const char *cdrom_id;
};

struct hvx_vm *hvx_machine_vm(struct hvx_machine *m)
{
    return m->vm;
}

void hvx_machine_destroy(struct hvx_machine *m)
{
    if (!m)
        return;
    hvx_vm_destroy(m->vm);
    for (unsigned i = 0; i < m->n_configs; i++)
        hvx_config_destroy(m->config[i]);
    free(m);
}

/* --- engine ---------------------------------------------------------------------- */

static int choose_engine(struct hvx_registry *reg, const char *name, const struct hvx_engine_entry **out, char *why,
                         size_t why_size, struct hvx_error *err)
{
    struct hvx_error reason = {0};
    const struct hvx_engine_entry *e;
    char refused[300] = "";

    if (name && strcmp(name, "auto")) {
        char names[200];
        e = hvx_registry_engine(reg, name);
        hvx_registry_engine_names(reg, names, sizeof(names));
        if (!e)
            return hvx_fail(err, -ENOENT, "--engine %s: no such engine; there are: %s (see `hvx plugin list`)", name,
                            names[0] ? names : "none");
        /* Asked for by name it is tried all the same: for the firmware and 16-bit
         * code that it may still be good enough. */
        if (e->ops->probe && e->ops->probe(e->plugin->ctx, &reason) < 0)
            snprintf(why, why_size, "engine %s, as asked, although it says: %s", e->plugin->desc.name, reason.text);
        else
            snprintf(why, why_size, "engine %s, as asked", e->plugin->desc.name);
        *out = e;
        return 0;
    }
    for (unsigned i = 0; (e = hvx_registry_engine_at(reg, i)); i++) {
        size_t n = strlen(refused);
        if (!e->ops->probe || e->ops->probe(e->plugin->ctx, &reason) == 0) {
            snprintf(why, why_size, "engine %s: the first of the ranking that works here%s%s", e->plugin->desc.name,
                     refused[0] ? "; not " : "", refused);
            *out = e;
            return 0;
        }
        snprintf(refused + n, sizeof(refused) - n, "%s%s (%.150s)", n ? ", " : "", e->plugin->desc.name, reason.text);
    }
    return hvx_fail(err, -ENOTSUP, "no execution engine works here%s%s; `hvx plugin list` shows what is enabled",
                    refused[0] ? ": " : "", refused);
}

static int add_engine(struct hvx_machine *m, struct hvx_registry *reg, const struct hvx_machine_options *o, char *why,
                      size_t why_size, struct hvx_error *err)
{
    const struct hvx_engine_entry *e;
    int r = choose_engine(reg, o->engine, &e, why, why_size, err);

    for (unsigned i = 0; i < o->n_engine_options && r == 0; i++)
        r = hvx_config_parse(e->plugin->config, o->engine_option[i], "--engine-option", err);
    if (r == 0)
        r = hvx_vm_set_engine(m->vm, e->ops, e->plugin->ctx, e->plugin->config, e->plugin->desc.name, err);
    return r;
}

/* --- instances --------------------------------------------------------------------- */

static int new_config(struct hvx_machine *m, const struct hvx_device_type *type, struct hvx_config **out,
                      struct hvx_error *err)
{
    if (m->n_configs == HVX_VM_MAX_DEVICES)
        return hvx_fail(err, -ENOSPC, "device %s: a VM has at most %u devices", type->name, HVX_VM_MAX_DEVICES);
    if (hvx_config_new(type->options, out) < 0)
        return hvx_fail(err, -ENOMEM, "device %s: out of memory", type->name);
    m->config[m->n_configs++] = *out;
    return 0;
}

static bool has_option(const struct hvx_device_type *type, const char *name)
{
    for (const struct hvx_option *o = type->options; o && o->name; o++)
        if (!strcmp(o->name, name))
            return true;
    return false;
}

/* The back end that the options of a device name, for `hvx detach`. */
static const char *backend_of(const struct hvx_device_type *type, const struct hvx_config *c)
{
    static const char *const keys[] = {"drive", "drives", "netdev"};

    for (unsigned i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        if (has_option(type, keys[i]) && hvx_config_is_set(c, keys[i]))
            return hvx_config_string(c, keys[i]);
    return NULL;
}

/* An instance with the option `key` = `value` (both may be NULL) and what
 * `text` ("k=v,k=v", may be NULL) says; `from` is the option that a message names. */
static int add_instance(struct hvx_machine *m, const struct hvx_device_entry *d, const char *key, const char *value,
                        const char *text, const char *from, struct hvx_error *err)
{
    struct hvx_config *c;
    char where[80];
    int r = new_config(m, d->type, &c, err);

    snprintf(where, sizeof(where), "%s %s", from, d->type->name);
    if (r == 0 && text)
        r = hvx_config_parse(c, text, where, err);
    if (r == 0 && key)
        r = hvx_config_set(c, key, value, where, err);
    if (r == 0)
        r = hvx_config_check(c, where, err);
    return r < 0 ? r : hvx_vm_add_device(m->vm, d->type, d->plugin->ctx, c, backend_of(d->type, c), err);
}

static int role_missing(struct hvx_error *err, const char *what)
{
    return hvx_fail(err, -ENOENT, "no enabled plugin offers %s; see `hvx plugin list`, and hvx.conf's `plugins`", what);
}

/* --- disks ------------------------------------------------------------------------- */

static int open_blk(struct hvx_machine *m, const struct hvx_blk_open *open, const char **id, struct hvx_error *err)
{
    struct hvx_blk *b;
    int r = hvx_blk_open(hvx_vm_loop(m->vm), open, &b, err);

    if (r == 0 && (r = hvx_vm_add_blk(m->vm, b, id, err)) < 0)
        hvx_blk_close(b);
    return r;
}

static int open_disks(struct hvx_machine *m, const struct hvx_machine_options *o, struct hvx_error *err)
{
    for (unsigned i = 0; i < o->n_disks; i++) {
        struct hvx_disk_spec d;
        int r = hvx_disk_spec_parse(o->disk[i], &d, err);
        if (r == 0)
            r = open_blk(m, &d.open, &m->disk_id[i], err);
        if (r == 0)
            snprintf(m->disk_if[i], sizeof(m->disk_if[i]), "%s", d.iface ? d.iface : "");
        memcpy(m->disk_options[i], d.device, sizeof(d.device));
        free(d.text);
        if (r < 0)
            return r;
    }
    if (o->cdrom) {
        struct hvx_blk_open open = {.path = o->cdrom, .format = "raw", .read_only = true, .cdrom = true};
        return open_blk(m, &open, &m->cdrom_id, err);
    }
    return 0;
}

/* --- the other back ends -------------------------------------------------------------- */

static int open_nets(struct hvx_machine *m, const struct hvx_machine_options *o, struct hvx_error *err)
{
    unsigned n = 0;

    for (unsigned i = 0; i < o->n_nets; i++) {
        struct hvx_net_words words;
        struct hvx_net *net;
        int r;
        if (!strcmp(o->net[i], "none"))
            continue;
        r = hvx_net_spec_split(o->net[i], &words, err);
        if (r < 0)
            return r;
        memcpy(m->net_model[n], words.model, sizeof(words.model));
        memcpy(m->net_options[n], words.device, sizeof(words.device));
        r = hvx_net_open(hvx_vm_loop(m->vm), words.backend, n, &net, err);
        if (r == 0)
            hvx_net_name_vm(net, o->vm.name, n); /* the MAC address follows the VM's name */
        if (r == 0 && (r = hvx_vm_add_net(m->vm, net, &m->net_id[n], err)) < 0)
            hvx_net_close(net);
        if (r < 0)
            return r;
        n++;
    }
    return 0;
}

static int open_chr(struct hvx_machine *m, const struct hvx_machine_options *o, const char *id, const char *spec,
                    struct hvx_error *err)
{
    struct hvx_chr *c;
    int r = hvx_chr_open(hvx_vm_loop(m->vm), spec, o->on_escape, o->escape_opaque, &c, err);

    if (r == 0 && (r = hvx_vm_add_chr(m->vm, id, c, err)) < 0)
        hvx_chr_close(c);
    return r;
}

/* --- the board ------------------------------------------------------------------------- */

/* The device type behind an if=; NULL: none. *place: it is no type but a place on the board. */
const struct hvx_device_entry *hvx_machine_disk_type(const struct hvx_registry *reg, const char *iface, bool *place,
                                                     struct hvx_error *err)
{
    const struct hvx_device_entry *d;
    bool scsi = iface && !strcmp(iface, "scsi");

    *place = false;
    if (!iface || !iface[0] || scsi || !strcmp(iface, "disk")) {
        d = hvx_registry_device_by_role(reg, scsi ? HVX_ROLE_SCSI : HVX_ROLE_DISK);
        if (!d)
            role_missing(err, scsi ? "a SCSI adapter (role scsi)" : "a disk (role disk)");
        return d;
    }
    d = hvx_registry_device(reg, iface);
    *place = !d;
    return d;
}

static bool for_board(const struct hvx_machine *m, const struct hvx_registry *reg, unsigned disk)
{
    bool place;

    (void)hvx_machine_disk_type(reg, m->disk_if[disk], &place, NULL);
    return place;
}

/* Hand a disk to the board's first free option ide0..ide3, or to `place`. */
static int give_to_board(const struct hvx_device_type *board, struct hvx_config *c, const char *id, const char *place,
                         struct hvx_error *err)
{
    static const char *const places[] = {"ide0", "ide1", "ide3", "ide2"};

    for (unsigned i = 0; i < 4; i++) {
        if ((place && strcmp(place, places[i])) || !has_option(board, places[i]) || hvx_config_is_set(c, places[i]))
            continue;
        return hvx_config_set(c, places[i], id, "--disk", err);
    }
    return hvx_fail(err, -ENOSPC, "%s: the board %s has no free IDE place for it; use another if=", id, board->name);
}

static int add_board(struct hvx_machine *m, struct hvx_registry *reg, const struct hvx_machine_options *o,
                     bool *cdrom_done, struct hvx_error *err)
{
    const struct hvx_device_entry *d =
        o->machine ? hvx_registry_device(reg, o->machine) : hvx_registry_device_by_role(reg, HVX_ROLE_MACHINE);
    struct hvx_config *c;
    int r = 0;

    if (o->machine && (!d || d->type->role != HVX_ROLE_MACHINE))
        return hvx_fail(err, -ENOENT, "--machine %s: no enabled plugin offers such a board; see `hvx plugin list`",
                        o->machine);
    if (!d)
        return role_missing(err, "a board (role machine)");
    r = new_config(m, d->type, &c, err);
    for (unsigned i = 0; i < o->n_machine_options && r == 0; i++)
        r = hvx_config_parse(c, o->machine_option[i], "--machine-option", err);
    if (r == 0 && o->uefi_vars)
        r = has_option(d->type, "uefi-vars")
                ? hvx_config_set(c, "uefi-vars", o->uefi_vars, "--uefi-vars", err)
                : hvx_fail(err, -ENOTSUP, "--uefi-vars: the board %s keeps no UEFI variables", d->type->name);
    if (r == 0 && m->cdrom_id && has_option(d->type, "ide2")) {
        r = give_to_board(d->type, c, m->cdrom_id, "ide2", err);
        *cdrom_done = true;
    }
    for (unsigned i = 0; i < o->n_disks && r == 0; i++)
        if (for_board(m, reg, i) && m->disk_options[i][0])
            r = hvx_fail(err, -EINVAL, "--disk: if=%s knows no option \"%s\"; options of the disk are file, format, if, "
                         "media, cache, aio, serial, snapshot, readonly, allow-backing-outside", m->disk_if[i],
                         m->disk_options[i]);
        else if (for_board(m, reg, i))
            r = give_to_board(d->type, c, m->disk_id[i], NULL, err);
    if (r == 0)
        r = hvx_config_check(c, "--machine-option", err);
    return r < 0 ? r : hvx_vm_add_device(m->vm, d->type, d->plugin->ctx, c, NULL, err);
}

/* All disks of this type, from number `first` on, share one adapter. */
static int add_adapter(struct hvx_machine *m, struct hvx_registry *reg, const struct hvx_device_entry *d,
                       unsigned first, unsigned n_disks, bool done[], struct hvx_error *err)
{
    char drives[HVX_MACHINE_MAX * 8] = "", options[HVX_MACHINE_MAX * 64] = "";
    size_t n = 0, k = 0;

    for (unsigned i = first; i < n_disks; i++) {
        bool place;
        if (done[i] || hvx_machine_disk_type(reg, m->disk_if[i], &place, NULL) != d)
            continue;
        done[i] = true;
        n += (size_t)snprintf(drives + n, sizeof(drives) - n, "%s%s", n ? ":" : "", m->disk_id[i]);
        if (!m->disk_options[i][0])
            continue;
        k += (size_t)snprintf(options + k, sizeof(options) - k, "%s%s", k ? "," : "", m->disk_options[i]);
        if (k >= sizeof(options))
            return hvx_fail(err, -E2BIG, "--disk: too many options for one %s", d->type->name);
    }
    return add_instance(m, d, "drives", drives, options, "--disk", err);
}

static int add_drives(struct hvx_machine *m, struct hvx_registry *reg, const struct hvx_machine_options *o,
                      bool cdrom_done, struct hvx_error *err)
{
    const struct hvx_device_entry *d;
    bool done[HVX_MACHINE_MAX] = {false}, place;
    int r = 0;

    for (unsigned i = 0; i < o->n_disks && r == 0; i++) {
        if (done[i])
            continue;
        d = hvx_machine_disk_type(reg, m->disk_if[i], &place, err);
        if (place)
            continue;
        if (!d)
            return -ENOENT;
        r = has_option(d->type, "drives")
                ? add_adapter(m, reg, d, i, o->n_disks, done, err)
                : add_instance(m, d, "drive", m->disk_id[i], m->disk_options[i], "--disk", err);
    }
    if (r == 0 && m->cdrom_id && !cdrom_done) {
        d = hvx_registry_device_by_role(reg, HVX_ROLE_CDROM);
        r = d ? add_instance(m, d, "drive", m->cdrom_id, NULL, "--cdrom", err) : role_missing(err, "a CD-ROM drive");
    }
    return r;
}

static int add_named(struct hvx_machine *m, struct hvx_registry *reg, const char *text, struct hvx_error *err)
{
    const struct hvx_device_entry *d;
    size_t n = strcspn(text, ",");
    char name[64], names[300];

    snprintf(name, sizeof(name), "%.*s", (int)(n < sizeof(name) ? n : sizeof(name) - 1), text);
    d = hvx_registry_device(reg, name);
    hvx_registry_device_names(reg, names, sizeof(names));
    if (!d)
        return hvx_fail(err, -ENOENT, "--device %s: no such device type; there are: %s", name, names);
    if (d->type->role == HVX_ROLE_MACHINE)
        return hvx_fail(err, -EINVAL, "--device %s: this is a board; choose it with --machine", name);
    return add_instance(m, d, NULL, NULL, text[n] ? text + n + 1 : NULL, "--device", err);
}

/* Is one of the --device of this role? */
static bool names_role(const struct hvx_registry *reg, const struct hvx_machine_options *o, uint32_t role)
{
    for (unsigned i = 0; i < o->n_devices; i++) {
        char name[64];
        const struct hvx_device_entry *d;
        snprintf(name, sizeof(name), "%.*s", (int)strcspn(o->device[i], ","), o->device[i]);
        if ((d = hvx_registry_device(reg, name)) && d->type->role == role)
            return true;
    }
    return false;
}

const struct hvx_device_entry *hvx_machine_net_type(const struct hvx_registry *reg, const char *model,
                                                    struct hvx_error *err)
{
    const struct hvx_device_entry *d;

    if (!model || !model[0]) {
        d = hvx_registry_device_by_role(reg, HVX_ROLE_NIC);
        if (!d)
            role_missing(err, "a network card (role nic); or say --net none");
        return d;
    }
    d = hvx_registry_device(reg, model);
    if (!d || d->type->role != HVX_ROLE_NIC) {
        hvx_fail(err, -ENOENT, "--net: model=%s is no network card; `hvx plugin list` shows the types", model);
        return NULL;
    }
    return d;
}

static int add_devices(struct hvx_machine *m, struct hvx_registry *reg, const struct hvx_machine_options *o,
                       struct hvx_error *err)
{
    const struct hvx_device_entry *d;
    bool cdrom_done = false;
    int r = add_board(m, reg, o, &cdrom_done, err);

    if (r == 0)
        r = add_drives(m, reg, o, cdrom_done, err);
    for (unsigned i = 0; i < HVX_MACHINE_MAX && m->net_id[i] && r == 0; i++) {
        d = hvx_machine_net_type(reg, m->net_model[i], err);
        r = d ? add_instance(m, d, "netdev", m->net_id[i], m->net_options[i], "--net", err) : -ENOENT;
    }
    if (r == 0 && !o->no_defaults && (d = hvx_registry_device_by_role(reg, HVX_ROLE_RNG)))
        r = add_instance(m, d, NULL, NULL, NULL, "default", err);
    if (r == 0 && o->console) {
        d = hvx_registry_device_by_role(reg, HVX_ROLE_CONSOLE);
        r = d ? add_instance(m, d, "chardev", "console0", NULL, "--console", err) : role_missing(err, "a console device");
    }
    if (r == 0 && o->debug_exit) {
        char text[96];
        snprintf(text, sizeof(text), "isa-debug-exit%s%s", o->debug_exit[0] ? ",port=" : "", o->debug_exit);
        r = add_named(m, reg, text, err);
    }
    for (unsigned i = 0; i < o->n_devices && r == 0; i++)
        r = add_named(m, reg, o->device[i], err);
    if (r == 0 && !o->no_defaults && !names_role(reg, o, HVX_ROLE_BALLOON) &&
        (d = hvx_registry_device_by_role(reg, HVX_ROLE_BALLOON)))
        r = add_instance(m, d, NULL, NULL, NULL, "default", err);
    return r;
}

int hvx_machine_new(struct hvx_registry *reg, const struct hvx_machine_options *o, struct hvx_machine **out,
                    char *why_engine, size_t why_size, struct hvx_error *err)
{
    struct hvx_machine *m = calloc(1, sizeof(*m));
    char id[24];
    int r;

    if (!m)
        return hvx_fail(err, -ENOMEM, "VM: out of memory");
    r = hvx_vm_new(&o->vm, &m->vm, err);
    /* Networks first: user networking forks, which is best done before there are threads. */
    if (r == 0)
        r = open_nets(m, o, err);
    if (r == 0)
        r = add_engine(m, reg, o, why_engine, why_size, err);
    if (r == 0)
        r = open_disks(m, o, err);
    for (unsigned i = 0; i < o->n_serials && r == 0; i++) {
        snprintf(id, sizeof(id), "serial%u", i);
        r = open_chr(m, o, id, o->serial[i], err);
    }
    if (r == 0 && o->console)
        r = open_chr(m, o, "console0", o->console, err);
    if (r == 0)
        r = add_devices(m, reg, o, err);
    if (r < 0) {
        hvx_machine_destroy(m);
        return r;
    }
    *out = m;
    return 0;
}
