/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/machine.h - from what a person asked for to a VM with its devices.
 *
 * No device type is named here: the board, disks, networks and so on are the
 * enabled types of the right role with the highest rank.
 *
 * Disks. `--disk` becomes an instance of role DISK, or of the type named by
 * if=TYPE; if=scsi means the one of role SCSI. Disks of a type with an option
 * `drives` share one instance. A disk whose if= is no device type ("ide") is left to the board:
 * boards declare options ide0..ide3 that take the names of disks. A CD-ROM
 * goes to the board's ide2, or to an instance of role CDROM.
 */
#ifndef HVX_CORE_MACHINE_H
#define HVX_CORE_MACHINE_H

#include "core/image/blk.h"
#include "core/plugin/registry.h"
#include "core/vm/vm.h"

#define HVX_MACHINE_MAX 16u

/* All strings are borrowed for the call. */
struct hvx_machine_options {
    struct hvx_vm_params vm;
    const char *engine; /* "auto" or a name */
    const char *machine; /* board; NULL: the default one */
    const char *engine_option[HVX_MACHINE_MAX]; /* "key=value" */
    const char *machine_option[HVX_MACHINE_MAX]; /* "key=value,..." */
    const char *disk[HVX_MACHINE_MAX];
    const char *net[HVX_MACHINE_MAX];
    const char *device[HVX_MACHINE_MAX];
    const char *serial[4];
    const char *console; /* NULL: none */
    const char *cdrom;
    const char *uefi_vars; /* the board's option of that name; NULL: not set */
    const char *debug_exit; /* NULL: none; "" default port, else the port */
    unsigned n_engine_options, n_machine_options, n_disks, n_nets, n_devices, n_serials;
    bool no_defaults; /* no RNG that nobody asked for */
    void (*on_escape)(void *opaque);
    void *escape_opaque;
};

struct hvx_machine; /* the VM and the options of its instances */

/* On success *why_engine is one line about the choice of the engine. */
HVX_WUR int hvx_machine_new(struct hvx_registry *reg, const struct hvx_machine_options *o, struct hvx_machine **out,
                            char *why_engine, size_t why_size, struct hvx_error *err);
struct hvx_vm *hvx_machine_vm(struct hvx_machine *m);
void hvx_machine_destroy(struct hvx_machine *m);

/* The device type that an if= of --disk or a model= of --net means; NULL and a
 * message when there is none. */
const struct hvx_device_entry *hvx_machine_disk_type(const struct hvx_registry *reg, const char *iface, bool *place,
                                                     struct hvx_error *err);
const struct hvx_device_entry *hvx_machine_net_type(const struct hvx_registry *reg, const char *model,
                                                    struct hvx_error *err);

/* attach.c: add a disk or a network card to a running VM; spec is what --disk
 * or --net would say. Everything is open already: `fds` are the files of the
 * disk, top first, or the TAP device. Takes the descriptors. */
struct hvx_attach_request {
    const char *disk, *net; /* one of them */
    struct hvx_blk_fd *fds;
    unsigned n_fds;
};
HVX_WUR int hvx_machine_attach(struct hvx_vm *vm, struct hvx_registry *reg, const struct hvx_attach_request *request,
                               char id[24], char name[48], struct hvx_error *err);

#endif
