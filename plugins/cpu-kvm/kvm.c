/* SPDX-License-Identifier: Apache-2.0
 *
 * kvm.c - the plugin and a VM.
 */
#define _GNU_SOURCE
#include "kvm.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Below the firmware, above everything else: where QEMU has them too. */
#define IDENTITY_MAP 0xfeffc000ull
#define TSS 0xfeffd000ull
#define MAX_CPUID 256u

static const unsigned chips[KVM_N_CHIPS] = {KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC};

/* --- is it there? ----------------------------------------------------------------- */

static int open_kvm(struct hvx_error *err)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC), version;

    if (fd < 0)
        return hvx_fail(err, -errno, "/dev/kvm: %s%s", strerror(errno),
                        errno == EACCES ? " (is this user in the group kvm?)" : "");
    version = ioctl(fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION || ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP) <= 0 ||
        ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT) <= 0 ||
        ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_SIGNAL_MSI) <= 0) {
        close(fd);
        return hvx_fail(err, -ENOTSUP, "/dev/kvm: this host's KVM is too old or lacks interrupt controllers");
    }
    return fd;
}

/* Addresses of the probe's guest. */
enum { P_PML4 = 0, P_CODE = 0x1000, P_PD = 0x2000, P_TSS = 0x3000, P_IDT = 0x4000, P_PDPT = 0x5000, P_STEP = 0x8000,
       P_SIZE = 0x10000, P_LAST_STEP = 8 };

extern const uint8_t kvm_probe_guest[], kvm_probe_guest_end[];
extern const uint64_t kvm_probe_entries[2];

static void gate(uint8_t *ram, unsigned vector, uint64_t handler)
{
    const uint64_t value[2] = {(handler & 0xffff) | 8ull << 16 | 0xee00ull << 32 | (handler >> 16 & 0xffff) << 48,
                               handler >> 32};

    memcpy(ram + P_IDT + vector * 16, value, sizeof(value));
}

static void probe_memory(uint8_t *ram)
{
    const uint64_t pml4 = P_PDPT | 7, pdpt = P_PD | 7, page = 0x87, rsp0 = 0x7000;

    memcpy(ram + P_PML4, &pml4, 8);
    memcpy(ram + P_PDPT, &pdpt, 8);
    memcpy(ram + P_PD, &page, 8); /* 2 MiB at 0, user too */
    memcpy(ram + P_TSS + 4, &rsp0, 8);
    memcpy(ram + P_CODE, kvm_probe_guest, (size_t)(kvm_probe_guest_end - kvm_probe_guest));
    gate(ram, 14, kvm_probe_entries[0]);
    gate(ram, 0x80, kvm_probe_entries[1]);
}

static int probe_registers(struct hvx_vcpu *v)
{
    const struct kvm_segment code = {
        .limit = UINT32_MAX, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    const struct kvm_segment data = {
        .limit = UINT32_MAX, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    struct kvm_regs regs = {.rip = P_CODE, .rflags = 2};
    struct kvm_sregs sregs;

    if (ioctl(v->fd, KVM_GET_SREGS, &sregs) < 0)
        return -errno;
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = data;
    sregs.cr0 = 0x80010031;
    sregs.cr3 = P_PML4;
    sregs.cr4 = 0x20;
    sregs.efer = 0x501; /* LMA, LME, SCE */
    return ioctl(v->fd, KVM_SET_SREGS, &sregs) < 0 || ioctl(v->fd, KVM_SET_REGS, &regs) < 0 ? -errno : 0;
}

/* Run probe_guest.S; a KVM that only stands in for hardware fails on the way. */
static int probe_vm(struct hvx_engine_vm *e, struct hvx_error *err)
{
    static const char *const step[] = {"entering long mode", "setting up system calls", "going to user mode",
                                       "taking an interrupt from user mode", "returning from it",
                                       "taking a system call", "returning from it", "taking a page fault"};
    struct kvm_userspace_memory_region slot = {.memory_size = P_SIZE};
    struct hvx_exit x = {.size = sizeof(x)};
    struct hvx_vcpu *v = NULL;
    uint8_t *ram = mmap(NULL, P_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t reached = 0;
    int r = -ENOMEM;

    if (ram == MAP_FAILED)
        return hvx_fail(err, r, "cpu-kvm: out of memory");
    probe_memory(ram);
    slot.userspace_addr = (uintptr_t)ram;
    if (ioctl(e->fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
        r = hvx_fail(err, -errno, "/dev/kvm: cannot give memory to a VM: %s", strerror(errno));
    else
        r = kvm_vcpu_create(e, 0, &v, err);
    if (r == 0 && (r = probe_registers(v)) < 0)
        hvx_fail(err, r, "/dev/kvm is there but does not take 64-bit registers: %s", strerror(-r));
    if (r == 0) {
        kvm_vcpu_run(v, &x);
        memcpy(&reached, ram + P_STEP, sizeof(reached));
        if (reached != P_LAST_STEP || x.reason != HVX_EXIT_SHUTDOWN)
            r = hvx_fail(err, -ENOTSUP, "/dev/kvm is there but cannot run a 64-bit system: it failed at %s%s%.100s",
                         reached < P_LAST_STEP ? step[reached] : "stopping", x.text[0] ? ": " : "", x.text);
    }
    kvm_vcpu_destroy(v);
    munmap(ram, P_SIZE);
    return r;
}

/* --- a VM --------------------------------------------------------------------------- */

/* ISA line 0 is wired to input 2 of the I/O APIC, as on every PC (ACPI's
 * interrupt source override says so); input 0 has nothing. */
static int set_routing(struct hvx_engine_vm *e)
{
    struct {
        struct kvm_irq_routing head;
        struct kvm_irq_routing_entry entry[64];
    } table;
    unsigned n = 0;

    memset(&table, 0, sizeof(table));
    for (unsigned gsi = 0; gsi < 24; gsi++) {
        if (gsi < 16 && gsi != 2) {
            table.entry[n].gsi = gsi;
            table.entry[n].type = KVM_IRQ_ROUTING_IRQCHIP;
            table.entry[n].u.irqchip.irqchip = gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
            table.entry[n++].u.irqchip.pin = gsi % 8;
        }
        if (gsi != 2) {
            table.entry[n].gsi = gsi;
            table.entry[n].type = KVM_IRQ_ROUTING_IRQCHIP;
            table.entry[n].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
            table.entry[n++].u.irqchip.pin = gsi == 0 ? 2 : gsi;
        }
    }
    table.head.nr = n;
    return ioctl(e->fd, KVM_SET_GSI_ROUTING, &table) < 0 ? -errno : 0;
}

static void vm_destroy(struct hvx_engine_vm *e)
{
    if (!e)
        return;
    if (e->fd >= 0)
        close(e->fd);
    if (e->kvm_fd >= 0)
        close(e->kvm_fd);
    free(e->cpuid);
    free(e);
}

static int vm_open(struct kvm_plugin *p, struct hvx_vm *vm, unsigned n_vcpus, struct hvx_engine_vm **out,
                   struct hvx_error *err)
{
    struct hvx_engine_vm *e = calloc(1, sizeof(*e));
    uint64_t identity = IDENTITY_MAP;
    int fd;

    if (!e)
        return hvx_fail(err, -ENOMEM, "cpu-kvm: out of memory");
    e->plugin = p;
    e->host = p->host;
    e->vm = vm;
    e->n_vcpus = n_vcpus;
    e->fd = -1;
    e->kvm_fd = fd = open_kvm(err);
    if (fd < 0) {
        vm_destroy(e);
        return fd;
    }
    e->fd = ioctl(fd, KVM_CREATE_VM, 0);
    if (e->fd < 0 || ioctl(e->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0 ||
        ioctl(e->fd, KVM_SET_TSS_ADDR, TSS) < 0 || ioctl(e->fd, KVM_CREATE_IRQCHIP, 0) < 0 || set_routing(e) < 0) {
        int r = -errno;
        vm_destroy(e);
        return hvx_fail(err, r, "/dev/kvm is there but cannot make a VM with interrupt controllers: %s", strerror(-r));
    }
    e->read_only_slots = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_READONLY_MEM) > 0;
    e->run_bytes = (size_t)ioctl(fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    e->cpuid = calloc(1, sizeof(*e->cpuid) + MAX_CPUID * sizeof(e->cpuid->entries[0]));
    for (unsigned i = 0; i < KVM_N_CHIPS; i++) {
        e->chip_at_start[i].chip_id = chips[i];
        (void)ioctl(e->fd, KVM_GET_IRQCHIP, &e->chip_at_start[i]);
    }
    if (e->cpuid)
        e->cpuid->nent = MAX_CPUID;
    if (!e->cpuid || ioctl(fd, KVM_GET_SUPPORTED_CPUID, e->cpuid) < 0) {
        int r = e->cpuid ? -errno : -ENOMEM;
        vm_destroy(e);
        return hvx_fail(err, r, "cpu-kvm: KVM does not tell which CPUID it supports: %s", strerror(-r));
    }
    kvm_install_kick_handler();
    *out = e;
    return 0;
}

static int vm_create(void *ctx, struct hvx_vm *vm, const struct hvx_engine_config *cfg, struct hvx_engine_vm **out,
                     struct hvx_error *err)
{
    if (cfg->cpu_model && strcmp(cfg->cpu_model, "host"))
        return hvx_fail(err, -EINVAL, "cpu-kvm: no CPU model '%s'; there is just host", cfg->cpu_model);
    return vm_open(ctx, vm, cfg->n_vcpus, out, err);
}

static int probe(void *ctx, struct hvx_error *err)
{
    struct hvx_engine_vm *e;
    int r = vm_open(ctx, NULL, 1, &e, err);

    if (r < 0)
        return r;
    r = probe_vm(e, err);
    vm_destroy(e);
    return r;
}

static int set_slot(struct hvx_engine_vm *e, const struct hvx_mem_slot *s, struct hvx_error *err)
{
    struct kvm_userspace_memory_region r = {.slot = s->id,
                                            .flags = s->flags & HVX_SLOT_READONLY ? KVM_MEM_READONLY : 0,
                                            .guest_phys_addr = s->gpa,
                                            .memory_size = s->bytes,
                                            .userspace_addr = (uintptr_t)s->hva};

    if (r.flags && !e->read_only_slots)
        return hvx_fail(err, -ENOTSUP, "this host's KVM has no read-only memory");
    if (ioctl(e->fd, KVM_SET_USER_MEMORY_REGION, &r) < 0)
        return hvx_fail(err, -errno, "KVM refuses the slot: %s", strerror(errno));
    return 0;
}

static void irq_line(struct hvx_engine_vm *e, unsigned gsi, bool level)
{
    struct kvm_irq_level l = {.irq = gsi, .level = level};

    (void)ioctl(e->fd, KVM_IRQ_LINE, &l);
}

static void msi(struct hvx_engine_vm *e, uint64_t addr, uint32_t data)
{
    struct kvm_msi m = {.address_lo = (uint32_t)addr, .address_hi = (uint32_t)(addr >> 32), .data = data};

    (void)ioctl(e->fd, KVM_SIGNAL_MSI, &m);
}

static void irqchip_reset(struct hvx_engine_vm *e)
{
    for (unsigned i = 0; i < KVM_N_CHIPS; i++)
        (void)ioctl(e->fd, KVM_SET_IRQCHIP, &e->chip_at_start[i]);
}

static int irqchip_state(struct hvx_engine_vm *e, struct hvx_stream *s)
{
    for (unsigned i = 0; i < KVM_N_CHIPS; i++) {
        struct kvm_irqchip c;
        memset(&c, 0, sizeof(c));
        c.chip_id = chips[i];
        if (hvx_stream_is_saving(s) && ioctl(e->fd, KVM_GET_IRQCHIP, &c) < 0)
            hvx_state_fail(s, -errno, "KVM does not give the state of its interrupt controllers");
        hvx_state_bytes(s, &c.chip, sizeof(c.chip));
        if (!hvx_stream_is_saving(s) && !hvx_state_error(s) && ioctl(e->fd, KVM_SET_IRQCHIP, &c) < 0)
            hvx_state_fail(s, -errno, "KVM refuses the state of its interrupt controllers");
    }
    return hvx_state_error(s);
}

static void code_written(struct hvx_engine_vm *e, uint64_t gpa, uint64_t n)
{
    (void)e; /* nothing is translated here */
    (void)gpa;
    (void)n;
}

static void stats(struct hvx_engine_vm *e, hvx_stat_fn fn, void *opaque)
{
    static const struct {
        unsigned reason;
        const char *name;
    } names[] = {{KVM_EXIT_IO, "exits: port"},          {KVM_EXIT_MMIO, "exits: MMIO"},
                 {KVM_EXIT_INTR, "exits: interrupted"}, {KVM_EXIT_SHUTDOWN, "exits: shutdown"}};
    char group[32];

    for (unsigned i = 0; i < e->n_vcpus; i++) {
        snprintf(group, sizeof(group), "vcpu%u", i);
        for (size_t k = 0; e->vcpu[i] && k < sizeof(names) / sizeof(names[0]); k++)
            fn(opaque, group, names[k].name, e->vcpu[i]->n_exits[names[k].reason], "");
    }
}

static int plugin_init(const struct hvx_host *host, const struct hvx_config *config, void **ctx, struct hvx_error *err)
{
    struct kvm_plugin *p = calloc(1, sizeof(*p));

    (void)config;
    if (!p)
        return hvx_fail(err, -ENOMEM, "cpu-kvm: out of memory");
    p->host = host;
    *ctx = p;
    return 0;
}

static void plugin_fini(void *ctx)
{
    free(ctx);
}

static const struct hvx_cpu_ops ops = {
    .size = sizeof(ops),
    .rank = 20,
    .probe = probe,
    .vm_create = vm_create,
    .vm_destroy = vm_destroy,
    .set_slot = set_slot,
    .vcpu_create = kvm_vcpu_create,
    .vcpu_destroy = kvm_vcpu_destroy,
    .vcpu_reset = kvm_vcpu_reset,
    .vcpu_run = kvm_vcpu_run,
    .vcpu_kick = kvm_vcpu_kick,
    .vcpu_get = kvm_vcpu_get,
    .vcpu_set = kvm_vcpu_set,
    .irqchip_reset = irqchip_reset,
    .irqchip_state = irqchip_state,
    .irq_line = irq_line,
    .msi = msi,
    .code_written = code_written,
    .stats = stats,
};

static const char *const capabilities[] = {"smp", "irqchip", "needs-kvm", NULL};

HVX_PLUGIN_DEFINE(cpu_kvm, HVX_FAMILY_CPU, HVX_CPU_MINOR, .name = "cpu-kvm", .version = "0.1",
                  .summary = "hardware virtualization through the host's /dev/kvm", .license = "Apache-2.0",
                  .options = NULL, .capabilities = capabilities, .init = plugin_init, .fini = plugin_fini, .ops = &ops);
