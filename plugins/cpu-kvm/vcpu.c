/* SPDX-License-Identifier: Apache-2.0
 *
 * vcpu.c - running a vCPU.
 */
#define _GNU_SOURCE
#include "kvm.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define KICK_SIGNAL (SIGRTMIN + 1)

static void on_kick(int signal)
{
    (void)signal; /* its arrival is the message: KVM_RUN returns */
}

void kvm_install_kick_handler(void)
{
    struct sigaction a;

    memset(&a, 0, sizeof(a));
    a.sa_handler = on_kick;
    sigaction(KICK_SIGNAL, &a, NULL);
}

/* What KVM supports, with this vCPU's APIC id where CPUID shows it. */
static int set_cpuid(struct hvx_vcpu *v)
{
    size_t bytes = sizeof(*v->e->cpuid) + v->e->cpuid->nent * sizeof(v->e->cpuid->entries[0]);
    struct kvm_cpuid2 *c = malloc(bytes);
    int r;

    if (!c)
        return -ENOMEM;
    memcpy(c, v->e->cpuid, bytes);
    for (unsigned i = 0; i < c->nent; i++) {
        struct kvm_cpuid_entry2 *x = &c->entries[i];
        if (x->function == 1) {
            x->ebx = (x->ebx & 0x0000ffff) | v->e->n_vcpus << 16 | v->index << 24;
            x->ecx |= 1u << 31; /* a hypervisor is present */
        } else if (x->function == 4) {
            x->eax &= 0x03fff; /* caches and cores: each vCPU a package of its own */
        } else if (x->function == 0xb || x->function == 0x1f) {
            x->eax = x->ebx = 0;
            x->ecx &= 0xff;
            x->edx = v->index;
        }
    }
    r = ioctl(v->fd, KVM_SET_CPUID2, c) < 0 ? -errno : 0;
    free(c);
    return r;
}

int kvm_vcpu_create(struct hvx_engine_vm *e, unsigned index, struct hvx_vcpu **out, struct hvx_error *err)
{
    struct hvx_vcpu *v = calloc(1, sizeof(*v));
    int r = 0;

    if (!v)
        return hvx_fail(err, -ENOMEM, "cpu-kvm: out of memory");
    v->e = e;
    v->index = index;
    v->fd = ioctl(e->fd, KVM_CREATE_VCPU, index);
    if (v->fd < 0) {
        r = -errno;
    } else {
        v->run = mmap(NULL, e->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
        if (v->run == MAP_FAILED) {
            v->run = NULL;
            r = -errno;
        }
    }
    if (r == 0)
        r = set_cpuid(v);
    if (r == 0 && (ioctl(v->fd, KVM_GET_SREGS, &v->sregs_at_start) < 0 ||
                   ioctl(v->fd, KVM_GET_LAPIC, &v->lapic_at_start) < 0))
        r = -errno;
    if (r < 0) {
        kvm_vcpu_destroy(v);
        return hvx_fail(err, r, "cpu-kvm: cannot make vCPU %u: %s", index, strerror(-r));
    }
    e->vcpu[index] = v;
    *out = v;
    return 0;
}

void kvm_vcpu_destroy(struct hvx_vcpu *v)
{
    if (!v)
        return;
    if (v->e->vcpu[v->index] == v)
        v->e->vcpu[v->index] = NULL;
    if (v->run)
        munmap(v->run, v->e->run_bytes);
    if (v->fd >= 0)
        close(v->fd);
    free(v);
}

void kvm_vcpu_kick(struct hvx_vcpu *v)
{
    atomic_store(&v->kicked, true);
    v->run->immediate_exit = 1;
    if (atomic_load(&v->have_thread))
        pthread_kill(v->thread, KICK_SIGNAL);
}

static void port_io(struct hvx_vcpu *v)
{
    struct kvm_run *k = v->run;
    uint8_t *data = (uint8_t *)k + k->io.data_offset;

    for (uint32_t i = 0; i < k->io.count; i++, data += k->io.size) {
        if (k->io.direction == KVM_EXIT_IO_OUT)
            v->e->host->io_write(v->e->vm, HVX_SPACE_PIO, k->io.port, k->io.size, data);
        else
            v->e->host->io_read(v->e->vm, HVX_SPACE_PIO, k->io.port, k->io.size, data);
    }
}

static int fail(struct hvx_vcpu *v, struct hvx_exit *x, const char *why, uint64_t detail)
{
    struct kvm_regs regs;

    memset(&regs, 0, sizeof(regs));
    (void)ioctl(v->fd, KVM_GET_REGS, &regs);
    x->reason = HVX_EXIT_ERROR;
    x->detail = detail;
    snprintf(x->text, sizeof(x->text), "KVM stopped at rip %#llx: %s (%#llx)", (unsigned long long)regs.rip, why,
             (unsigned long long)detail);
    return 0;
}

int kvm_vcpu_run(struct hvx_vcpu *v, struct hvx_exit *x)
{
    struct kvm_run *k = v->run;

    if (!atomic_load(&v->have_thread)) {
        v->thread = pthread_self();
        atomic_store(&v->have_thread, true);
    }
    for (;;) {
        int r = ioctl(v->fd, KVM_RUN, 0);
        if (r < 0 && (errno == EINTR || errno == EAGAIN)) {
            v->n_exits[KVM_EXIT_INTR]++;
            if (!atomic_exchange(&v->kicked, false))
                continue;
            k->immediate_exit = 0;
            x->reason = HVX_EXIT_INTERRUPTED;
            return 0;
        }
        if (r < 0)
            return fail(v, x, strerror(errno), (uint64_t)errno);
        if (k->exit_reason < KVM_N_EXITS)
            v->n_exits[k->exit_reason]++;
        switch (k->exit_reason) {
        case KVM_EXIT_IO:
            port_io(v);
            break;
        case KVM_EXIT_MMIO:
            if (k->mmio.is_write)
                v->e->host->io_write(v->e->vm, HVX_SPACE_MMIO, k->mmio.phys_addr, k->mmio.len, k->mmio.data);
            else
                v->e->host->io_read(v->e->vm, HVX_SPACE_MMIO, k->mmio.phys_addr, k->mmio.len, k->mmio.data);
            break;
        case KVM_EXIT_INTR:
        case KVM_EXIT_HLT:
        case KVM_EXIT_IRQ_WINDOW_OPEN:
            break;
        case KVM_EXIT_SHUTDOWN:
            x->reason = HVX_EXIT_SHUTDOWN;
            return 0;
        case KVM_EXIT_SYSTEM_EVENT:
            x->reason = HVX_EXIT_SHUTDOWN;
            x->detail = k->system_event.type;
            return 0;
        case KVM_EXIT_FAIL_ENTRY:
            return fail(v, x, "the processor refused to enter the guest", k->fail_entry.hardware_entry_failure_reason);
        case KVM_EXIT_INTERNAL_ERROR:
            return fail(v, x, k->internal.suberror == KVM_INTERNAL_ERROR_EMULATION
                                  ? "an instruction that it cannot emulate" : "internal error",
                        k->internal.suberror);
        default:
            return fail(v, x, "an exit that HVX does not know", k->exit_reason);
        }
    }
}
