/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/attach.c - from a specification and open descriptors to a device of
 * a running VM. hotplug.c does the rest.
 */
#define _GNU_SOURCE
#include "core/conf/options.h"
#include "core/net/net.h"
#include "core/vm/disk_spec.h"
#include "core/vm/machine.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool has_option(const struct hvx_device_type *type, const char *name)
{
    for (const struct hvx_option *o = type->options; o && o->name; o++)
        if (!strcmp(o->name, name))
            return true;
    return false;
}

static int new_config(const struct hvx_device_entry *d, const char *text, const char *from, struct hvx_config **out,
                      struct hvx_error *err)
{
    char where[80];
    int r;

    if (hvx_config_new(d->type->options, out) < 0)
        return hvx_fail(err, -ENOMEM, "%s: out of memory", from);
    snprintf(where, sizeof(where), "%s %s", from, d->type->name);
    r = hvx_config_parse(*out, text, where, err);
    if (r < 0)
        hvx_config_destroy(*out);
    return r;
}

static int attach_disk(struct hvx_vm *vm, struct hvx_registry *reg, const struct hvx_attach_request *q, char id[24],
                       char name[48], struct hvx_error *err)
{
    struct hvx_vm_attach a = {0};
    const struct hvx_device_entry *d = NULL;
    struct hvx_disk_spec spec;
    bool place;
    int r = hvx_disk_spec_parse(q->disk, &spec, err);

    if (r == 0 && !q->n_fds)
        r = hvx_fail(err, -EINVAL, "the request came without the disk's files");
    if (r == 0) {
        d = hvx_machine_disk_type(reg, spec.iface, &place, err);
        if (place)
            hvx_fail(err, -EINVAL, "if=%s: not while the VM runs; leave it out, or say if=scsi", spec.iface);
        r = d ? new_config(d, spec.device, "--disk", &a.config, err) : -EINVAL;
    }
    if (r == 0) {
        spec.open.fds = q->fds;
        spec.open.n_fds = q->n_fds;
        r = hvx_blk_open(hvx_vm_loop(vm), &spec.open, &a.blk, err);
        if (r < 0)
            hvx_config_destroy(a.config);
    }
    free(spec.text);
    if (r < 0)
        return r;
    a.type = d->type;
    a.plugin_ctx = d->plugin->ctx;
    a.key = has_option(d->type, "drives") ? "drives" : "drive";
    return hvx_vm_attach(vm, &a, id, name, err);
}

/* "tap,ifname=x,mac=y" to "tap,mac=y,fd=N". */
static int use_descriptor(char *text, size_t size, int fd, struct hvx_error *err)
{
    char *copy = strdup(text), *save = NULL, number[16];
    int r = copy ? 0 : hvx_fail(err, -ENOMEM, "--net: out of memory");

    text[0] = 0;
    for (char *w = copy ? strtok_r(copy, ",", &save) : NULL; w && r == 0; w = strtok_r(NULL, ",", &save)) {
        char *eq = strchr(w, '=');
        if (!strncmp(w, "ifname=", 7) || !strncmp(w, "fd=", 3))
            continue;
        if (eq)
            *eq = 0;
        r = hvx_spec_append(text, size, w, eq ? eq + 1 : "", "--net", err);
    }
    free(copy);
    snprintf(number, sizeof(number), "%d", fd);
    return r < 0 ? r : hvx_spec_append(text, size, "fd", number, "--net", err);
}

static int attach_net(struct hvx_vm *vm, struct hvx_registry *reg, const struct hvx_attach_request *q, char id[24],
                      char name[48], struct hvx_error *err)
{
    struct hvx_vm_attach a = {0};
    const struct hvx_device_entry *d;
    struct hvx_net_words words;
    int r = hvx_net_spec_split(q->net, &words, err);

    if (r == 0)
        r = q->n_fds ? use_descriptor(words.backend, sizeof(words.backend), q->fds[0].fd, err)
                     : hvx_fail(err, -EINVAL, "the request came without the network's descriptor");
    if (r < 0)
        return r;
    d = hvx_machine_net_type(reg, words.model, err);
    if (!d)
        return -ENOENT;
    r = new_config(d, words.device, "--net", &a.config, err);
    if (r < 0)
        return r;
    hvx_loop_lock(hvx_vm_loop(vm));
    r = hvx_net_open(hvx_vm_loop(vm), words.backend, 0, &a.net, err);
    hvx_loop_unlock(hvx_vm_loop(vm));
    if (r < 0) {
        hvx_config_destroy(a.config);
        return r;
    }
    a.type = d->type;
    a.plugin_ctx = d->plugin->ctx;
    a.key = "netdev";
    return hvx_vm_attach(vm, &a, id, name, err);
}

int hvx_machine_attach(struct hvx_vm *vm, struct hvx_registry *reg, const struct hvx_attach_request *q, char id[24],
                       char name[48], struct hvx_error *err)
{
    int r = q->disk ? attach_disk(vm, reg, q, id, name, err) : attach_net(vm, reg, q, id, name, err);

    for (unsigned i = 0; i < q->n_fds; i++)
        if (q->fds[i].fd >= 0) {
            close(q->fds[i].fd);
            q->fds[i].fd = -1;
        }
    return r;
}
