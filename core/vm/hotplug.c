/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/hotplug.c - devices that come and go while the guest runs.
 *
 * Attaching: the back end and the instance are made under the VM lock, the
 * instance is reset, and the machine tells the guest which slot to look at.
 * Detaching: the machine asks the guest; when that lets go of the slot
 * (hvx_vm_pci_eject, in the middle of a register access) the function leaves
 * the bus at once. The instance and its back end follow on the loop, when
 * requests in flight are done.
 */
#include "core/conf/options.h"
#include "core/image/blk.h"
#include "core/net/net.h"
#include "core/vm/internal.h"

#include <string.h>

#define SETTLE_NS 1000000u

void hvx_vm_hotplug_set(struct hvx_vm *vm, const struct hvx_hotplug_ops *ops, void *opaque)
{
    vm->hotplug = ops;
    vm->hotplug_opaque = opaque;
}

/* --- attach ----------------------------------------------------------------------- */

static void take_backend(struct hvx_backend *list, unsigned *n, const char *id)
{
    for (unsigned i = 0; i < *n; i++)
        if (!strcmp(list[i].id, id)) {
            memmove(&list[i], &list[i + 1], (--*n - i) * sizeof(list[0]));
            return;
        }
}

static int attach_locked(struct hvx_vm *vm, const struct hvx_vm_attach *a, char id[24], char name[48],
                         struct hvx_error *err)
{
    const char *given;
    int r;

    if (!vm->hotplug)
        return hvx_fail(err, -ENOTSUP, "this board cannot take devices while the VM runs");
    r = a->blk ? hvx_vm_add_blk(vm, a->blk, &given, err) : hvx_vm_add_net(vm, a->net, &given, err);
    if (r < 0)
        return r;
    snprintf(id, 24, "%s", given);
    if (a->net)
        hvx_net_name_vm(a->net, vm->params.name, vm->n_net - 1);
    r = hvx_config_set(a->config, a->key, id, a->type->name, err);
    if (r == 0)
        r = hvx_config_check(a->config, a->type->name, err);
    if (r == 0)
        r = hvx_vm_add_device_locked(vm, a->type, a->plugin_ctx, a->config, id, err);
    if (r == 0) {
        struct hvx_instance *i = &vm->instance[vm->n_instances - 1];
        i->config = a->config;
        if (a->type->reset)
            a->type->reset(i->dev);
        snprintf(name, 48, "%s", i->name);
        if (i->slot >= 0)
            vm->hotplug->plugged(vm->hotplug_opaque, (unsigned)i->slot);
    } else if (a->blk) {
        take_backend(vm->blk, &vm->n_blk, id);
    } else {
        take_backend(vm->net, &vm->n_net, id);
    }
    return r;
}

int hvx_vm_attach(struct hvx_vm *vm, const struct hvx_vm_attach *a, char id[24], char name[48], struct hvx_error *err)
{
    int r;

    hvx_loop_lock(vm->loop);
    r = attach_locked(vm, a, id, name, err);
    if (r < 0) {
        hvx_config_destroy(a->config);
        hvx_blk_close(a->blk);
        hvx_net_close(a->net);
    }
    hvx_loop_unlock(vm->loop);
    return r;
}

/* --- detach ----------------------------------------------------------------------- */

/* Is `id` one of "disk0:disk1"? */
static bool listed(const char *list, const char *id)
{
    size_t n = strlen(id);

    for (const char *p = list; *p; p += strcspn(p, ":+"), p += *p != 0)
        if (strcspn(p, ":+") == n && !strncmp(p, id, n))
            return true;
    return false;
}

static struct hvx_instance *find(struct hvx_vm *vm, const char *id)
{
    for (unsigned i = 0; i < vm->n_instances && id[0]; i++)
        if (!strcmp(vm->instance[i].name, id) || listed(vm->instance[i].backend, id))
            return &vm->instance[i];
    return NULL;
}

static int detach_locked(struct hvx_vm *vm, const char *id, struct hvx_error *err)
{
    struct hvx_instance *i = find(vm, id);

    if (!i)
        return hvx_fail(err, -ENOENT, "there is no device, disk or network '%s'; `hvx attach` said what it added, "
                                      "`hvx stat` lists disks and networks", id);
    if (i->ejecting)
        return 0;
    if (strpbrk(i->backend, ":+") && strcmp(i->name, id))
        return hvx_fail(err, -EBUSY, "%s is one of several on %s, which can only go as a whole: detach %s", id,
                        i->name, i->name);
    if (i->slot < 0 || !vm->hotplug || !vm->hotplug->unplug_request(vm->hotplug_opaque, (unsigned)i->slot))
        return hvx_fail(err, -ENOTSUP, "%s is part of the board and stays", id);
    return 0;
}

int hvx_vm_detach(struct hvx_vm *vm, const char *id, struct hvx_error *err)
{
    int r;

    hvx_loop_lock(vm->loop);
    r = detach_locked(vm, id, err);
    hvx_loop_unlock(vm->loop);
    return r;
}

bool hvx_vm_attached(struct hvx_vm *vm, const char *id)
{
    bool there;

    hvx_loop_lock(vm->loop);
    there = find(vm, id) != NULL;
    hvx_loop_unlock(vm->loop);
    return there;
}

/* Close the disks and the network behind an instance that is gone. */
static void close_backends(struct hvx_vm *vm, const char *list)
{
    char id[HVX_BACKEND_LIST];

    for (const char *p = list; *p; p += strcspn(p, ":+"), p += *p != 0) {
        struct hvx_blk *b;
        struct hvx_net *n;
        snprintf(id, sizeof(id), "%.*s", (int)strcspn(p, ":+"), p);
        b = hvx_vm_backend(vm->blk, vm->n_blk, id);
        n = hvx_vm_backend(vm->net, vm->n_net, id);
        if (b)
            take_backend(vm->blk, &vm->n_blk, id);
        if (n)
            take_backend(vm->net, &vm->n_net, id);
        hvx_blk_close(b);
        hvx_net_close(n);
    }
}

static void finish_ejects(void *opaque)
{
    struct hvx_vm *vm = opaque;
    bool busy = false;

    for (unsigned k = vm->n_instances; k-- > 0;) {
        struct hvx_instance gone, *i = &vm->instance[k];
        if (!i->ejecting)
            continue;
        if (i->type->quiesced && !i->type->quiesced(i->dev)) {
            busy = true;
            continue;
        }
        gone = *i;
        memmove(i, i + 1, (--vm->n_instances - k) * sizeof(*i));
        if (gone.type->destroy)
            gone.type->destroy(gone.dev);
        close_backends(vm, gone.backend);
        hvx_config_destroy(gone.config);
        hvx_log(HVX_LOG_INFO, hvx_vm_name(vm), "%s is detached", gone.name);
    }
    if (busy)
        hvx_timer_set(vm->eject_timer, hvx_clock_ns() + SETTLE_NS);
}

bool hvx_vm_pci_eject(struct hvx_vm *vm, unsigned slot)
{
    for (unsigned k = 0; k < vm->n_instances; k++) {
        struct hvx_instance *i = &vm->instance[k];
        if (i->slot != (int)slot || i->ejecting)
            continue;
        if (!vm->eject_timer && hvx_loop_timer_new(vm->loop, finish_ejects, vm, &vm->eject_timer) < 0)
            return false;
        i->ejecting = true;
        hvx_pci_hide(&vm->pci, slot);
        /* Not from here: the device may be the one whose callback this is. */
        hvx_timer_set(vm->eject_timer, hvx_clock_ns());
        return true;
    }
    return false;
}
