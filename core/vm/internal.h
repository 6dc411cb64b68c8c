/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/internal.h - the insides of struct hvx_vm, for core/vm only.
 */
#ifndef HVX_CORE_VM_INTERNAL_H
#define HVX_CORE_VM_INTERNAL_H

#include "core/vm/pci.h"
#include "core/vm/space.h"
#include "core/vm/vm.h"

#include <pthread.h>
#include <stdatomic.h>

#define HVX_N_GSI 24u
#define HVX_MAX_GUEST_EVENTS 128u
#define HVX_MAX_DISPLAYS 4u
#define HVX_MAX_INPUTS 8u
#define HVX_BACKEND_LIST 256u

struct hvx_instance {
    const struct hvx_device_type *type;
    void *dev;
    char name[48]; /* type name and number: "virtio-blk.1" */
    char backend[HVX_BACKEND_LIST]; /* the disks or the network behind it: "disk0", "disk0:disk1"; "" none */
    int slot;                       /* PCI slot; -1: none, or not of its own */
    struct hvx_config *config;      /* owned, of what was attached later; else NULL */
    bool ejecting;                  /* the guest let go of it */
};

struct hvx_vcpu_thread {
    struct hvx_vm *vm;
    unsigned index;
    struct hvx_vcpu *engine; /* the engine's */
    pthread_t thread;
    bool started;
    bool parked;                 /* run_mutex */
    _Atomic(bool) held;          /* by the debugger: does not run although the VM does */
    _Atomic(bool) debug_stop;    /* its last run ended with HVX_EXIT_DEBUG */
    uint64_t debug_detail;
    bool have_start_regs;        /* set by the machine during reset */
    struct hvx_vcpu_regs *start_regs;
    uint64_t n_runs;
};

struct hvx_backend {
    char id[24];
    void *p;
};

struct hvx_guest_event {
    char what[48];
    uint64_t count, shown_ns;
};

struct hvx_display {
    struct hvx_vm *vm;
    struct hvx_display_ops ops;
    void *opaque;
};

struct hvx_input {
    struct hvx_input_ops ops;
    void *opaque;
};

struct hvx_vm {
    struct hvx_vm_params params; /* strings are owned copies */
    uint8_t uuid[16];
    uint64_t tsc_hz;
    struct hvx_loop *loop;
    pthread_t loop_thread;
    bool loop_running;

    struct hvx_ram ram;
    struct hvx_address_space pio, mem;
    struct hvx_pci_bus pci;

    /* Interrupt lines: what ISA devices drive, how many PCI functions drive
     * it too, and what the engine was told. */
    pthread_mutex_t irq_mutex;
    bool isa_level[HVX_N_GSI], irq_out[HVX_N_GSI];
    unsigned pci_level[HVX_N_GSI];
    uint64_t n_irqs[HVX_N_GSI];
    _Atomic(uint64_t) n_msi;

    const struct hvx_cpu_ops *engine;
    struct hvx_engine_vm *engine_vm;
    char engine_name[48];

    struct hvx_vcpu_thread vcpu[HVX_MAX_VCPUS];
    unsigned n_vcpus_made;
    pthread_mutex_t run_mutex;
    pthread_cond_t run_cond;
    _Atomic(unsigned) pause_count;
    bool quit; /* run_mutex */
    bool started;
    struct hvx_restore *restore; /* borrowed: the state to start in; NULL: power-on */

    struct hvx_instance instance[HVX_VM_MAX_DEVICES];
    unsigned n_instances;
    struct hvx_backend blk[HVX_VM_MAX_BACKENDS], net[HVX_VM_MAX_BACKENDS], chr[HVX_VM_MAX_BACKENDS];
    unsigned n_blk, n_net, n_chr;
    struct hvx_display *display[HVX_MAX_DISPLAYS];
    struct hvx_input input[HVX_MAX_INPUTS];
    unsigned n_displays, n_inputs;
    void (*power_button)(void *opaque);
    void *power_button_opaque;
    const struct hvx_balloon_ops *balloon;
    void *balloon_opaque;
    uint64_t balloon_target; /* 0: never set */
    _Atomic(uint64_t) discarded_bytes;
    const struct hvx_hotplug_ops *hotplug;
    void *hotplug_opaque;
    struct hvx_timer *eject_timer; /* waits for requests in flight */

    pthread_mutex_t event_mutex;
    struct hvx_guest_event guest_event[HVX_MAX_GUEST_EVENTS];
    unsigned n_guest_events;
};

/* balloon.c: see hvx/host.h */
int hvx_vm_mem_discard(struct hvx_vm *vm, uint64_t gpa, uint64_t n);
void hvx_vm_balloon_set(struct hvx_vm *vm, const struct hvx_balloon_ops *ops, void *opaque);
uint64_t hvx_vm_resident(struct hvx_vm *vm);
void hvx_vm_balloon_stats(struct hvx_vm *vm, hvx_stat_fn fn, void *opaque);

/* hotplug.c: see hvx/host.h */
void hvx_vm_hotplug_set(struct hvx_vm *vm, const struct hvx_hotplug_ops *ops, void *opaque);
bool hvx_vm_pci_eject(struct hvx_vm *vm, unsigned slot);

/* log.c */
HVX_PRINTF(3, 4) void hvx_log(int level, const char *who, const char *fmt, ...);
void hvx_log_set_level(int level);
HVX_PRINTF(3, 4) void hvx_vm_guest_event(struct hvx_vm *vm, const char *what, const char *fmt, ...);
uint64_t hvx_clock_ns(void);
/* For the calling thread time stands still at ns, until called with 0: all
 * that is saved or restored must be as of one moment. */
void hvx_clock_freeze(uint64_t ns);

/* state.c */
/* Wait until no device has requests under way; with vCPUs paused, the loop running. */
void hvx_vm_settle(struct hvx_vm *vm);
/* All sections but RAM; VM lock held, vCPUs paused. */
struct hvx_state_file;
HVX_WUR int hvx_vm_state_sections(struct hvx_vm *vm, struct hvx_state_file *f, bool saving, struct hvx_error *err);
/* The section "cpu". */
HVX_WUR int hvx_vm_state_model(struct hvx_vm *vm, struct hvx_state_file *f, bool saving, struct hvx_error *err);

/* restore.c */
struct hvx_restore;
HVX_WUR int hvx_restore_load(struct hvx_restore *r, struct hvx_vm *vm, struct hvx_error *err);

/* irq.c */
void hvx_vm_irq_set(struct hvx_vm *vm, unsigned gsi, bool level);
void hvx_vm_irq_tick(struct hvx_vm *vm, unsigned gsi, unsigned n);
void hvx_vm_irq_count(struct hvx_vm *vm, unsigned gsi, int delta);
void hvx_vm_irq_redeliver(struct hvx_vm *vm);
void hvx_vm_irq_state(struct hvx_vm *vm, struct hvx_stream *s);
void hvx_vm_msi(struct hvx_vm *vm, uint64_t addr, uint32_t data);

/* vcpu.c */
HVX_WUR int hvx_vm_vcpus_create(struct hvx_vm *vm, struct hvx_error *err);
HVX_WUR int hvx_vm_vcpus_start(struct hvx_vm *vm, struct hvx_error *err);
void hvx_vm_vcpus_stop(struct hvx_vm *vm);
void hvx_vm_vcpus_reset(struct hvx_vm *vm);
void hvx_vm_block_signals(void);

/* vm.c */
HVX_WUR int hvx_vm_add_device_locked(struct hvx_vm *vm, const struct hvx_device_type *type, void *plugin_ctx,
                                     const struct hvx_config *config, const char *backend, struct hvx_error *err);
void *hvx_vm_backend(const struct hvx_backend *list, unsigned n, const char *id);
void hvx_vm_post_event(struct hvx_vm *vm, enum hvx_vm_event e, int code, const char *text);
void hvx_vm_free_region_later(struct hvx_vm *vm, struct hvx_region *r);

#endif
