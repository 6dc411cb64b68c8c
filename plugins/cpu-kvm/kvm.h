/* SPDX-License-Identifier: Apache-2.0
 *
 * kvm.h - cpu-kvm: the host's KVM behind the engine interface.
 *
 *   kvm.c       the plugin, probing, a VM: slots, interrupt lines
 *   vcpu.c      a vCPU: running, exits, CPUID
 *   regs.c      registers in and out
 *
 * The interrupt controllers are KVM's own, timers and all other devices are
 * not: they come over host->io_read and io_write like for any engine.
 */
#ifndef CPU_KVM_H
#define CPU_KVM_H

#include <hvx/cpu.h>
#include <hvx/plugin.h>

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>

#define KVM_N_EXITS 48u
#define KVM_N_CHIPS 3u

struct kvm_plugin {
    const struct hvx_host *host;
};

struct hvx_engine_vm {
    struct kvm_plugin *plugin;
    const struct hvx_host *host;
    struct hvx_vm *vm;
    int kvm_fd, fd;
    unsigned n_vcpus;
    bool read_only_slots;
    size_t run_bytes;
    struct kvm_cpuid2 *cpuid; /* what KVM supports */
    struct kvm_irqchip chip_at_start[KVM_N_CHIPS];
    struct hvx_vcpu *vcpu[HVX_MAX_VCPUS];
};

struct hvx_vcpu {
    struct hvx_engine_vm *e;
    unsigned index;
    int fd;
    struct kvm_run *run;
    _Atomic(bool) kicked, have_thread;
    pthread_t thread;
    struct kvm_sregs sregs_at_start;
    struct kvm_lapic_state lapic_at_start;
    uint64_t n_exits[KVM_N_EXITS];
};

/* vcpu.c */
int kvm_vcpu_create(struct hvx_engine_vm *e, unsigned index, struct hvx_vcpu **out, struct hvx_error *err);
void kvm_vcpu_destroy(struct hvx_vcpu *v);
int kvm_vcpu_run(struct hvx_vcpu *v, struct hvx_exit *exit);
void kvm_vcpu_kick(struct hvx_vcpu *v);
void kvm_install_kick_handler(void);

/* regs.c */
void kvm_vcpu_reset(struct hvx_vcpu *v);
int kvm_vcpu_get(struct hvx_vcpu *v, struct hvx_vcpu_regs *r);
int kvm_vcpu_set(struct hvx_vcpu *v, const struct hvx_vcpu_regs *r, struct hvx_error *err);

#endif
