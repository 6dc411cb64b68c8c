/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/vm.h - one virtual machine, as the rest of core sees it.
 *
 * Life of a VM
 *   hvx_vm_new          guest RAM, empty address spaces, the device loop (not running)
 *   hvx_vm_set_engine   an execution engine takes the RAM slots
 *   hvx_vm_add_*        disks, networks, character streams get their names
 *   hvx_vm_add_device   instances are created, the machine first
 *   hvx_vm_start        vCPUs are created, everything is reset, threads start
 *   hvx_vm_pause/resume/reset, hvx_vm_state ...
 *   hvx_vm_destroy      in any state; stops and joins all threads
 *
 * Threads. The *device loop* thread runs timers, descriptors and block
 * completions. Each vCPU has a thread. The thread that calls hvx_vm_start and
 * the control functions is the *control thread*; it must never hold the VM
 * lock when it calls them, because they wait for vCPU threads that may be
 * waiting for the lock. What a guest asks for (reset, power-off) reaches the
 * control thread through params.on_request, called on any thread.
 *
 * Lock ranks, lowest taken first:
 *   control loop's lock  >  VM lock (device loop's lock)  >  irq lock, PCI
 *   message lock, chr lock  >  engine's own.
 */
#ifndef HVX_CORE_VM_H
#define HVX_CORE_VM_H

#include "core/vm/loop.h"
#include <hvx/cpu.h>
#include <hvx/device.h>

struct hvx_net;
struct hvx_blk;

#define HVX_VM_MIN_RAM (16ull << 20)
#define HVX_VM_MAX_RAM (1ull << 40)
#define HVX_VM_RAM_BELOW_4G_MAX (3ull << 30) /* the pc's PCI hole starts here */
#define HVX_VM_MAX_DEVICES 64u
#define HVX_VM_MAX_BACKENDS 32u

/* What reaches the control thread. */
enum hvx_vm_event {
    HVX_EVENT_RESET = 1,  /* guest asked for a reset */
    HVX_EVENT_POWEROFF,   /* ACPI S5 */
    HVX_EVENT_DEBUG_EXIT, /* isa-debug-exit, code = exit status */
    HVX_EVENT_PANIC,      /* guest says that it panicked */
    HVX_EVENT_SHUTDOWN,   /* a vCPU triple-faulted, code = vCPU index */
    HVX_EVENT_ENGINE_ERROR, /* text says why, code = vCPU index */
    HVX_EVENT_DEBUG,        /* a vCPU stopped for the debugger, code = its index */
};
const char *hvx_vm_event_name(enum hvx_vm_event e);

struct hvx_vm_params {
    const char *name;
    unsigned n_vcpus;
    uint64_t ram_bytes;
    const char *kernel, *initrd, *append, *firmware, *boot_order;
    const char *cpu_model; /* NULL: the engine's default */
    uint64_t tsc_hz;       /* 0: measure the host's */
    const uint8_t *uuid;   /* 16 bytes, copied; NULL: a new one */
    /* Any thread, possibly with the VM lock held: must only post. */
    void (*on_event)(void *opaque, enum hvx_vm_event e, int code, const char *text);
    /* All threads are there, no guest instruction has run: the time to give up privileges. May be NULL. */
    int (*before_guest)(void *opaque, struct hvx_error *err);
    void *opaque;
};

HVX_WUR int hvx_vm_new(const struct hvx_vm_params *p, struct hvx_vm **out, struct hvx_error *err);
void hvx_vm_destroy(struct hvx_vm *vm);
struct hvx_loop *hvx_vm_loop(struct hvx_vm *vm);
const char *hvx_vm_name(struct hvx_vm *vm);

/* options is borrowed until the VM is destroyed; may be NULL. */
HVX_WUR int hvx_vm_set_engine(struct hvx_vm *vm, const struct hvx_cpu_ops *ops, void *plugin_ctx,
                              const struct hvx_config *options, const char *name, struct hvx_error *err);
const char *hvx_vm_engine_name(struct hvx_vm *vm);

/* Back ends get the names "disk0".., "net0".., in the order in which they are
 * added; character streams are named by the caller. All are taken: closed
 * with the VM. */
HVX_WUR int hvx_vm_add_blk(struct hvx_vm *vm, struct hvx_blk *b, const char **id, struct hvx_error *err);
HVX_WUR int hvx_vm_add_net(struct hvx_vm *vm, struct hvx_net *n, const char **id, struct hvx_error *err);
HVX_WUR int hvx_vm_add_chr(struct hvx_vm *vm, const char *id, struct hvx_chr *c, struct hvx_error *err);

/* Create an instance. config is borrowed until the VM is destroyed. backend:
 * the disks or the network behind it, "disk0" or "disk0:disk1"; NULL: none. */
HVX_WUR int hvx_vm_add_device(struct hvx_vm *vm, const struct hvx_device_type *type, void *plugin_ctx,
                              const struct hvx_config *config, const char *backend, struct hvx_error *err);

HVX_WUR int hvx_vm_start(struct hvx_vm *vm, struct hvx_error *err);
/* Pauses nest. Pause returns when no vCPU executes guest code. */
void hvx_vm_pause(struct hvx_vm *vm);
void hvx_vm_resume(struct hvx_vm *vm);
bool hvx_vm_paused(struct hvx_vm *vm);
void hvx_vm_reset(struct hvx_vm *vm); /* devices, interrupt controllers, vCPUs */
/* Stop the threads for good; what is left can only be looked at. */
void hvx_vm_stop(struct hvx_vm *vm);
/* False when the machine has no power button. */
bool hvx_vm_power_button(struct hvx_vm *vm);

/* Save or restore everything but RAM and disks, with the vCPUs paused. */
HVX_WUR int hvx_vm_save_devices(struct hvx_vm *vm, FILE *f, struct hvx_error *err);
HVX_WUR int hvx_vm_restore_devices(struct hvx_vm *vm, FILE *f, struct hvx_error *err);

void hvx_vm_stats(struct hvx_vm *vm, hvx_stat_fn fn, void *opaque);

/* --- ballooning (balloon.c) -------------------------------------------------- */
struct hvx_vm_balloon_info {
    uint64_t ram, target, actual; /* guest RAM; what it shall have and has left */
    uint64_t resident, discarded; /* host memory behind it now; given back so far */
    bool there, ready;            /* a device; a driver in the guest */
};
bool hvx_vm_balloon_info(struct hvx_vm *vm, struct hvx_vm_balloon_info *out); /* returns out->there */
HVX_WUR int hvx_vm_balloon_target(struct hvx_vm *vm, uint64_t bytes, struct hvx_error *err);

/* --- hot plug (hotplug.c): while the VM runs, without the VM lock -------------- */
/* Exactly one of blk and net, taken in any case. `config` (its options are
 * complete but for `key`, which takes the back end's name) is taken as well.
 * *id receives the back end's name, *name the instance's. */
struct hvx_vm_attach {
    const struct hvx_device_type *type;
    void *plugin_ctx;
    struct hvx_config *config;
    const char *key; /* "drive", "netdev" */
    struct hvx_blk *blk;
    struct hvx_net *net;
};
HVX_WUR int hvx_vm_attach(struct hvx_vm *vm, const struct hvx_vm_attach *a, char id[24], char name[48],
                          struct hvx_error *err);
/* Ask the guest to let go of an instance, named as such or by what is behind
 * it ("disk1"). It goes when the guest does so. */
HVX_WUR int hvx_vm_detach(struct hvx_vm *vm, const char *id, struct hvx_error *err);
/* Is there such an instance or back end? */
bool hvx_vm_attached(struct hvx_vm *vm, const char *id);
/* The picture that the guest shows now, as a PNG file written to fd. */
HVX_WUR int hvx_vm_screendump(struct hvx_vm *vm, int fd, struct hvx_error *err);
/* "ctrl-alt-delete", "a", "ret": presses, then releases in reverse order. */
HVX_WUR int hvx_vm_sendkey(struct hvx_vm *vm, const char *keys, struct hvx_error *err);

/* The one table that every plugin receives. */
const struct hvx_host *hvx_host_table(void);

#endif
