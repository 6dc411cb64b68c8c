/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/host.c - the table of functions that plugins receive. What is said
 * in hvx/host.h about threads holds here: entries marked "any thread" take
 * their own locks, the others rely on the VM lock of their caller.
 */
#define _GNU_SOURCE
#include "core/conf/options.h"
#include "core/image/blk.h"
#include "core/net/net.h"
#include "core/vm/chr.h"
#include "core/vm/internal.h"
#include "core/vm/confine.h"
#include <hvx/plugin.h>

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

/* --- general --------------------------------------------------------------------- */

static uint64_t wall_clock_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void host_random(void *buf, size_t n)
{
    uint8_t *p = buf;

    while (n) {
        ssize_t r = getrandom(p, n, 0);
        if (r < 0)
            continue; /* a signal */
        p += r;
        n -= (size_t)r;
    }
}

static void guest_info(struct hvx_vm *vm, struct hvx_guest_info *out)
{
    const struct hvx_vm_params *p = &vm->params;
    struct hvx_guest_info i = {.size = out->size,
                               .n_vcpus = p->n_vcpus,
                               .ram_bytes = vm->ram.bytes,
                               .ram_below_4g = vm->ram.below_4g,
                               .ram_above_4g = vm->ram.above_4g,
                               .n_disks = vm->n_blk,
                               .n_nics = vm->n_net,
                               .kernel = p->kernel,
                               .initrd = p->initrd,
                               .append = p->append,
                               .firmware = p->firmware,
                               .boot_order = p->boot_order,
                               .name = hvx_vm_name(vm),
                               .tsc_hz = vm->tsc_hz};

    memcpy(i.uuid, vm->uuid, sizeof(i.uuid));
    memcpy(out, &i, out->size < sizeof(i) ? out->size : sizeof(i));
}

static void vm_lock(struct hvx_vm *vm)
{
    hvx_loop_lock(vm->loop);
}

static void vm_unlock(struct hvx_vm *vm)
{
    hvx_loop_unlock(vm->loop);
}

static void vm_request(struct hvx_vm *vm, enum hvx_vm_request what, int code)
{
    switch (what) {
    case HVX_VM_RESET:
        hvx_vm_post_event(vm, HVX_EVENT_RESET, code, NULL);
        break;
    case HVX_VM_POWEROFF:
        hvx_vm_post_event(vm, HVX_EVENT_POWEROFF, code, NULL);
        break;
    case HVX_VM_DEBUG_EXIT:
        hvx_vm_post_event(vm, HVX_EVENT_DEBUG_EXIT, code, NULL);
        break;
    case HVX_VM_PANIC:
        hvx_vm_post_event(vm, HVX_EVENT_PANIC, code, NULL);
        break;
    }
}

/* --- memory ------------------------------------------------------------------------ */

static int mem_read(struct hvx_vm *vm, uint64_t gpa, void *buf, size_t n)
{
    return hvx_space_mem_read(&vm->mem, gpa, buf, n);
}

static int mem_write(struct hvx_vm *vm, uint64_t gpa, const void *buf, size_t n)
{
    return hvx_space_mem_write(&vm->mem, gpa, buf, n);
}

static void *mem_ptr(struct hvx_vm *vm, uint64_t gpa, size_t *n)
{
    return hvx_space_mem_ptr(&vm->mem, gpa, n);
}

static void mem_dirty(struct hvx_vm *vm, uint64_t gpa, size_t n)
{
    if (vm->mem.code_written)
        vm->mem.code_written(vm->mem.slot_opaque, gpa, n);
}

/* --- address spaces ------------------------------------------------------------------- */

static int region_add(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, uint64_t n, uint32_t flags,
                      const char *name, const struct hvx_region_ops *ops, void *opaque, struct hvx_region **out,
                      struct hvx_error *err)
{
    struct hvx_region model = {.kind = HVX_LAYER_IO,
                               .prio = HVX_PRIO_TOP,
                               .addr = addr,
                               .bytes = n,
                               .flags = flags,
                               .ops = ops,
                               .opaque = opaque};

    snprintf(model.name, sizeof(model.name), "%s", name);
    return hvx_space_add(space == HVX_SPACE_PIO ? &vm->pio : &vm->mem, &model, out, err);
}

static void region_del(struct hvx_vm *vm, struct hvx_region *r)
{
    if (!r)
        return;
    hvx_space_remove(r->space, r);
    hvx_vm_free_region_later(vm, r);
}

static int region_move(struct hvx_vm *vm, struct hvx_region *r, uint64_t addr)
{
    (void)vm;
    return hvx_space_move(r->space, r, addr);
}

static int mem_map(struct hvx_vm *vm, uint64_t gpa, uint64_t n, void *hva, bool read_only, const char *name,
                   struct hvx_region **out, struct hvx_error *err)
{
    struct hvx_region model = {.kind = HVX_LAYER_MAP,
                               .prio = HVX_PRIO_TOP,
                               .addr = gpa,
                               .bytes = n,
                               .hva = hva,
                               .read_only = read_only};

    snprintf(model.name, sizeof(model.name), "%s", name);
    return hvx_space_add(&vm->mem, &model, out, err);
}

static void mem_pam(struct hvx_vm *vm, uint64_t gpa, uint64_t n, bool read_ram, bool write_ram)
{
    hvx_space_pam(&vm->mem, gpa, n, read_ram, write_ram);
}

static void io_read(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, unsigned size, void *value)
{
    hvx_loop_lock(vm->loop);
    hvx_space_read(space == HVX_SPACE_PIO ? &vm->pio : &vm->mem, addr, size, value);
    hvx_loop_unlock(vm->loop);
}

static void io_write(struct hvx_vm *vm, enum hvx_space space, uint64_t addr, unsigned size, const void *value)
{
    hvx_loop_lock(vm->loop);
    hvx_space_write(space == HVX_SPACE_PIO ? &vm->pio : &vm->mem, addr, size, value);
    hvx_loop_unlock(vm->loop);
}

/* --- PCI --------------------------------------------------------------------------------- */

static int pci_add(struct hvx_vm *vm, const struct hvx_pci_desc *desc, const struct hvx_pci_ops *ops, void *opaque,
                   struct hvx_pci_dev **out, struct hvx_error *err)
{
    return hvx_pci_add(&vm->pci, desc, ops, opaque, out, err);
}

static void pci_del(struct hvx_vm *vm, struct hvx_pci_dev *d)
{
    (void)vm;
    hvx_pci_del(d);
}

static uint8_t *pci_config(struct hvx_pci_dev *d)
{
    return d->config;
}

static int pci_dma_read(struct hvx_pci_dev *d, uint64_t gpa, void *buf, size_t n)
{
    return hvx_pci_bus_master(d) ? hvx_space_mem_read(d->bus->mem, gpa, buf, n) : -EFAULT;
}

static int pci_dma_write(struct hvx_pci_dev *d, uint64_t gpa, const void *buf, size_t n)
{
    return hvx_pci_bus_master(d) ? hvx_space_mem_write(d->bus->mem, gpa, buf, n) : -EFAULT;
}

static bool pci_bus_master(struct hvx_pci_dev *d)
{
    return hvx_pci_bus_master(d);
}

static void pci_set_route(struct hvx_vm *vm, unsigned (*gsi_of)(void *opaque, unsigned slot, unsigned pin),
                          void *opaque)
{
    vm->pci.gsi_of = gsi_of;
    vm->pci.route_opaque = opaque;
    hvx_pci_reroute(&vm->pci);
}

static uint32_t pci_cfg_read(struct hvx_vm *vm, unsigned bdf, unsigned off, unsigned size)
{
    return hvx_pci_cfg_read(&vm->pci, bdf, off, size);
}

static void pci_cfg_write(struct hvx_vm *vm, unsigned bdf, unsigned off, unsigned size, uint32_t v)
{
    hvx_pci_cfg_write(&vm->pci, bdf, off, size, v);
}

static void pci_reroute(struct hvx_vm *vm)
{
    hvx_pci_reroute(&vm->pci);
}

/* --- time and descriptors ------------------------------------------------------------------ */

static int timer_new(struct hvx_vm *vm, void (*cb)(void *opaque), void *opaque, struct hvx_timer **out)
{
    return hvx_loop_timer_new(vm->loop, cb, opaque, out);
}

static int watch_new(struct hvx_vm *vm, int fd, bool want_read, bool want_write,
                     void (*cb)(void *opaque, int fd, bool readable, bool writable), void *opaque,
                     struct hvx_watch **out)
{
    return hvx_loop_watch_new(vm->loop, fd, want_read, want_write, cb, opaque, out);
}

static int defer(struct hvx_vm *vm, void (*cb)(void *opaque), void *opaque)
{
    return hvx_loop_post(vm->loop, cb, opaque);
}

/* --- back ends --------------------------------------------------------------------------------- */

static struct hvx_blk *blk_get(struct hvx_vm *vm, const char *id)
{
    return id ? hvx_vm_backend(vm->blk, vm->n_blk, id) : NULL;
}

static int nic_attach(struct hvx_vm *vm, const char *id, const struct hvx_nic_ops *ops, void *opaque,
                      struct hvx_nic **out, struct hvx_error *err)
{
    struct hvx_net *n = id ? hvx_vm_backend(vm->net, vm->n_net, id) : NULL;

    if (!n)
        return hvx_fail(err, -ENOENT, "network '%s' does not exist; --net adds one", id ? id : "(none)");
    return hvx_nic_attach(n, ops, opaque, out, err);
}

static int chr_attach(struct hvx_vm *vm, const char *id, const struct hvx_chr_ops *ops, void *opaque,
                      struct hvx_chr **out)
{
    struct hvx_chr *c = id ? hvx_vm_backend(vm->chr, vm->n_chr, id) : NULL;

    if (!c) {
        /* An unconnected line: swallow what is written to it. */
        struct hvx_error err;
        int r = hvx_chr_open(vm->loop, "null", NULL, NULL, &c, &err);
        if (r == 0 && (r = hvx_vm_add_chr(vm, id ? id : "chr", c, &err)) < 0)
            hvx_chr_close(c);
        if (r < 0)
            return r;
    }
    hvx_chr_set_guest(c, ops, opaque);
    *out = c;
    return 0;
}

static void chr_detach(struct hvx_chr *c)
{
    if (c)
        hvx_chr_set_guest(c, NULL, NULL);
}

static int display_add(struct hvx_vm *vm, const struct hvx_display_ops *ops, void *opaque, struct hvx_display **out)
{
    for (unsigned i = 0; i < HVX_MAX_DISPLAYS; i++) {
        struct hvx_display *d;
        if (vm->display[i])
            continue;
        d = calloc(1, sizeof(*d));
        if (!d)
            return -ENOMEM;
        d->vm = vm;
        d->ops = *ops;
        d->opaque = opaque;
        *out = vm->display[i] = d;
        return 0;
    }
    return -ENOSPC;
}

static void display_del(struct hvx_display *d)
{
    for (unsigned i = 0; d && i < HVX_MAX_DISPLAYS; i++)
        if (d->vm->display[i] == d) {
            d->vm->display[i] = NULL;
            free(d);
            return;
        }
}

static int input_add(struct hvx_vm *vm, const struct hvx_input_ops *ops, void *opaque)
{
    if (vm->n_inputs == HVX_MAX_INPUTS)
        return -ENOSPC;
    vm->input[vm->n_inputs++] = (struct hvx_input){*ops, opaque};
    return 0;
}

static int vcpu_set_regs(struct hvx_vm *vm, unsigned index, const void *regs, size_t size)
{
    struct hvx_vcpu_thread *t = &vm->vcpu[index < HVX_MAX_VCPUS ? index : 0];

    if (index >= vm->n_vcpus_made || size > sizeof(*t->start_regs))
        return -EINVAL;
    memset(t->start_regs, 0, sizeof(*t->start_regs));
    memcpy(t->start_regs, regs, size);
    t->have_start_regs = true;
    return 0;
}

static void power_button_set(struct hvx_vm *vm, void (*cb)(void *opaque), void *opaque)
{
    vm->power_button = cb;
    vm->power_button_opaque = opaque;
}

static const struct hvx_host host_table = {
    .size = sizeof(struct hvx_host),
    .abi_major = HVX_ABI_MAJOR,
    .log = hvx_log,
    .guest_event = hvx_vm_guest_event,
    .clock_ns = hvx_clock_ns,
    .wall_clock_ns = wall_clock_ns,
    .random = host_random,
    .conf_bool = hvx_config_bool,
    .conf_int = hvx_config_int,
    .conf_string = hvx_config_string,
    .conf_is_set = hvx_config_is_set,
    .guest_info = guest_info,
    .vm_lock = vm_lock,
    .vm_unlock = vm_unlock,
    .vm_request = vm_request,
    .mem_read = mem_read,
    .mem_write = mem_write,
    .mem_ptr = mem_ptr,
    .mem_dirty = mem_dirty,
    .region_add = region_add,
    .region_del = region_del,
    .region_move = region_move,
    .mem_map = mem_map,
    .mem_pam = mem_pam,
    .io_read = io_read,
    .io_write = io_write,
    .irq_set = hvx_vm_irq_set,
    .msi_send = hvx_vm_msi,
    .pci_add = pci_add,
    .pci_del = pci_del,
    .pci_config = pci_config,
    .pci_add_cap = hvx_pci_add_cap,
    .pci_set_irq = hvx_pci_set_irq,
    .pci_msix_enabled = hvx_pci_msix_enabled,
    .pci_msi_enabled = hvx_pci_msi_enabled,
    .pci_msix_notify = hvx_pci_msix_notify,
    .pci_msi_notify = hvx_pci_msi_notify,
    .pci_dma_read = pci_dma_read,
    .pci_dma_write = pci_dma_write,
    .pci_bus_master = pci_bus_master,
    .pci_set_route = pci_set_route,
    .pci_cfg_read = pci_cfg_read,
    .pci_cfg_write = pci_cfg_write,
    .pci_reroute = pci_reroute,
    .timer_new = timer_new,
    .timer_set = hvx_timer_set,
    .timer_del = hvx_timer_del,
    .watch_new = watch_new,
    .watch_set = hvx_watch_set,
    .watch_del = hvx_watch_del,
    .defer = defer,
    .blk_get = blk_get,
    .blk_info = hvx_blk_get_info,
    .blk_submit = hvx_blk_submit,
    .nic_attach = nic_attach,
    .nic_detach = hvx_nic_detach,
    .nic_mac = hvx_nic_mac,
    .nic_set_caps = hvx_nic_set_caps,
    .nic_send = hvx_nic_send,
    .nic_rx_ready = hvx_nic_rx_ready,
    .nic_mtu = hvx_nic_mtu,
    .chr_attach = chr_attach,
    .chr_detach = chr_detach,
    .chr_write = hvx_chr_write,
    .chr_rx_ready = hvx_chr_rx_ready,
    .display_add = display_add,
    .display_del = display_del,
    .input_add = input_add,
    .vcpu_set_regs = vcpu_set_regs,
    .power_button_set = power_button_set,
    .is_confined = hvx_confined,
    .mem_discard = hvx_vm_mem_discard,
    .balloon_set = hvx_vm_balloon_set,
    .hotplug_set = hvx_vm_hotplug_set,
    .pci_eject = hvx_vm_pci_eject,
    .irq_tick = hvx_vm_irq_tick,
};

const struct hvx_host *hvx_host_table(void)
{
    return &host_table;
}
