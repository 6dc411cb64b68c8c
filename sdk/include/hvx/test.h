/* SPDX-License-Identifier: Apache-2.0
 *
 * hvx/test.h - libhvxtest, the fake host.
 *
 * A unit test links a plugin's objects and libhvxtest, makes a fake VM, hands
 * the plugin hvxtest_host(), and then plays the guest, the clock and the
 * outside world:
 *
 *     struct hvx_vm *vm = hvxtest_new(NULL);
 *     void *ctx, *dev;
 *     hvx_plugin_dev_foo.init(hvxtest_host(), cfg, &ctx, &err);
 *     type->create(ctx, vm, hvxtest_config(type->options, "base=0x300"), &dev, &err);
 *     hvxtest_pio_write(vm, 0x300, 1, 0x42);
 *     hvxtest_step_ns(vm, 1000000);
 *     assert(hvxtest_irq_level(vm, 5));
 *     type->destroy(dev);
 *     hvxtest_free(vm);        // aborts when the device left something behind
 *
 * Nothing here sleeps: time stands still until hvxtest_step_ns(). Guest RAM
 * lies between unmapped guard pages, so that an overrun faults at once. What
 * the plugin does against the contract of hvx/host.h (a disk request that is
 * not aligned, an unbalanced unlock, a region that overlaps its own twin)
 * prints a sentence and aborts.
 *
 * Threads: one test thread, plus any number of threads of the plugin's own
 * calling functions marked "any thread" in hvx/host.h. Several fake VMs may
 * exist; they share one clock.
 */
#ifndef HVX_TEST_H
#define HVX_TEST_H

#include <hvx/device.h>
#include <hvx/host.h>
#include <hvx/plugin.h>

HVX_EXTERN_C_BEGIN

/* --- the fake VM ---------------------------------------------------------- */
struct hvxtest_params {
    uint64_t ram_below_4g; /* 0: 16 MiB; multiple of 4096 */
    uint64_t ram_above_4g; /* at gpa 4 GiB */
    unsigned n_vcpus;      /* 0: 1 */
    unsigned n_disks, n_nics; /* what guest_info reports */
    const char *kernel, *initrd, *append, *firmware, *boot_order, *name; /* borrowed */
};
struct hvx_vm *hvxtest_new(const struct hvxtest_params *params); /* NULL: all defaults */
/* Aborts when timers, watches, regions, PCI functions, NICs or streams that the
 * device added are still there; hvxtest_leftovers() first asks politely. */
void hvxtest_free(struct hvx_vm *vm);
unsigned hvxtest_leftovers(struct hvx_vm *vm, char *buf, size_t n); /* count, and their names in buf */
const struct hvx_host *hvxtest_host(void);

/* Values for an option table from "key=value,key=value"; prints and aborts on a bad
 * text. hvxtest_config_try returns the error instead. */
struct hvx_config *hvxtest_config(const struct hvx_option *table, const char *text);
int hvxtest_config_try(const struct hvx_option *table, const char *text, struct hvx_config **out, struct hvx_error *err);
void hvxtest_config_free(struct hvx_config *c);

/* The nth call from now (1 = the next) of a host function that can fail
 * (region_add, mem_map, pci_add, pci_add_cap, timer_new, watch_new, defer,
 * nic_attach, chr_attach, display_add, input_add, vcpu_set_regs) returns -ENOMEM.
 * 0 switches off. Returns whether an earlier fault is still waiting, so that
 *     for (n = 1;; n++) { hvxtest_fail_nth(vm, n); r = create(...);
 *                         if (hvxtest_fail_nth(vm, 0)) break; assert(r < 0); }
 * walks every error path. */
bool hvxtest_fail_nth(struct hvx_vm *vm, unsigned nth);

/* --- the guest's accesses --------------------------------------------------- */
uint8_t *hvxtest_ram(struct hvx_vm *vm); /* RAM from gpa 0 */
void *hvxtest_mem(struct hvx_vm *vm, uint64_t gpa, size_t n); /* aborts outside RAM */
uint64_t hvxtest_pio_read(struct hvx_vm *vm, uint16_t port, unsigned size);
void hvxtest_pio_write(struct hvx_vm *vm, uint16_t port, unsigned size, uint64_t value);
uint64_t hvxtest_mmio_read(struct hvx_vm *vm, uint64_t gpa, unsigned size); /* RAM and ROM too */
void hvxtest_mmio_write(struct hvx_vm *vm, uint64_t gpa, unsigned size, uint64_t value);
const char *hvxtest_region_name(struct hvx_vm *vm, enum hvx_space space, uint64_t addr); /* NULL: none there */
uint64_t hvxtest_dirty_bytes(struct hvx_vm *vm); /* sum over mem_write and mem_dirty */

/* --- interrupts ------------------------------------------------------------- */
bool hvxtest_irq_level(struct hvx_vm *vm, unsigned gsi);
unsigned hvxtest_irq_rises(struct hvx_vm *vm, unsigned gsi); /* rising edges since the last clear */
struct hvxtest_msi { uint64_t addr; uint32_t data; };
unsigned hvxtest_msi_count(struct hvx_vm *vm);
struct hvxtest_msi hvxtest_msi_at(struct hvx_vm *vm, unsigned i);
void hvxtest_irq_clear(struct hvx_vm *vm); /* forget rises and MSIs; levels stay */

/* --- PCI --------------------------------------------------------------------- */
struct hvx_pci_dev *hvxtest_pci_at(struct hvx_vm *vm, unsigned devfn);  /* NULL: empty slot */
struct hvx_pci_dev *hvxtest_pci_nth(struct hvx_vm *vm, unsigned i);     /* in order of pci_add */
unsigned hvxtest_pci_devfn(struct hvx_pci_dev *d);
uint32_t hvxtest_pci_cfg_read(struct hvx_pci_dev *d, unsigned off, unsigned size);
void hvxtest_pci_cfg_write(struct hvx_pci_dev *d, unsigned off, unsigned size, uint32_t v);
/* What firmware does: size and place every BAR, switch on I/O, memory and bus
 * mastering. */
void hvxtest_pci_enable(struct hvx_pci_dev *d);
uint64_t hvxtest_pci_bar(struct hvx_pci_dev *d, unsigned bar);         /* its address, ~0 when unmapped */
unsigned hvxtest_pci_find_cap(struct hvx_pci_dev *d, uint8_t id, unsigned nth); /* offset; 0: none. nth from 0 */
/* Program one MSI-X entry and switch MSI-X on. */
void hvxtest_pci_msix(struct hvx_pci_dev *d, unsigned vector, uint64_t addr, uint32_t data, bool masked);
bool hvxtest_pci_msix_pending(struct hvx_pci_dev *d, unsigned vector);
void hvxtest_pci_msi(struct hvx_pci_dev *d, uint64_t addr, uint32_t data);
bool hvxtest_pci_intx(struct hvx_pci_dev *d); /* level of its pin, after interrupt-disable */

/* --- time and the loop --------------------------------------------------------- */
uint64_t hvxtest_now_ns(void);
void hvxtest_set_wall_ns(uint64_t utc_ns); /* what wall_clock_ns returns now; it advances with the clock */
/* Advance the clock; timers fire in the order of their deadlines, at their
 * deadlines; deferred calls, disk completions and watches run in between. */
void hvxtest_step_ns(struct hvx_vm *vm, uint64_t ns);
/* The host was busy for so long: the clock jumps, and what became due meanwhile runs late. */
void hvxtest_stall_ns(struct hvx_vm *vm, uint64_t ns);
/* Run what is due without advancing the clock, until nothing is; returns how many callbacks ran. */
unsigned hvxtest_run(struct hvx_vm *vm);
uint64_t hvxtest_next_deadline(struct hvx_vm *vm); /* ~0: no timer armed */

/* --- disks: memory behind an id ----------------------------------------------- */
struct hvxtest_disk_params {
    uint64_t bytes;         /* multiple of 512 */
    bool read_only, cdrom, no_discard;
    uint32_t logical_block; /* 0: 512 */
};
struct hvx_blk *hvxtest_disk_add(struct hvx_vm *vm, const char *id, const struct hvxtest_disk_params *p);
uint8_t *hvxtest_disk_data(struct hvx_blk *b);
/* The nth request from now with this op (0: any) completes with `error` (-EIO); it changes nothing. */
void hvxtest_disk_fail(struct hvx_blk *b, uint32_t op, unsigned nth, int error);
/* While held, requests stay in flight. release completes the i-th of those
 * in flight (0 = oldest; ~0u = all, oldest first). */
void hvxtest_disk_hold(struct hvx_blk *b, bool hold);
unsigned hvxtest_disk_in_flight(struct hvx_blk *b);
void hvxtest_disk_release(struct hvx_blk *b, unsigned i);
unsigned hvxtest_disk_count(struct hvx_blk *b, uint32_t op); /* requests submitted so far */

/* --- networks -------------------------------------------------------------------- */
void hvxtest_nic_add(struct hvx_vm *vm, const char *id); /* MAC 52:54:00:12:34:56 + index */
unsigned hvxtest_nic_sent(struct hvx_vm *vm, const char *id); /* frames that the guest sent */
const uint8_t *hvxtest_nic_frame(struct hvx_vm *vm, const char *id, unsigned i, size_t *n, struct hvx_net_meta *meta);
/* A frame for the guest: 1 taken, 0 no room (not queued). meta NULL: plain. */
int hvxtest_nic_inject(struct hvx_vm *vm, const char *id, const void *frame, size_t n, const struct hvx_net_meta *meta);
uint32_t hvxtest_nic_caps(struct hvx_vm *vm, const char *id);
unsigned hvxtest_nic_rx_ready_count(struct hvx_vm *vm, const char *id);
void hvxtest_nic_link(struct hvx_vm *vm, const char *id, bool up);

/* --- character streams: any id can be attached ------------------------------------- */
const uint8_t *hvxtest_chr_output(struct hvx_vm *vm, const char *id, size_t *n); /* all so far */
void hvxtest_chr_clear(struct hvx_vm *vm, const char *id);
/* Bytes for the guest; what it does not take now is offered again after
 * chr_rx_ready. Returns how many still wait. */
size_t hvxtest_chr_input(struct hvx_vm *vm, const char *id, const void *buf, size_t n);
void hvxtest_chr_limit(struct hvx_vm *vm, const char *id, size_t max_taken); /* chr_write takes at most so many; default all */

/* --- display, input, requests ------------------------------------------------------- */
int hvxtest_render(struct hvx_vm *vm, struct hvx_surface *out); /* the first display; -ENODEV */
void hvxtest_key(struct hvx_vm *vm, uint16_t scancode_set1, bool down);
void hvxtest_pointer(struct hvx_vm *vm, int dx, int dy, uint32_t buttons);
void hvxtest_power_button(struct hvx_vm *vm);
/* What the device registered; NULL: nothing. */
const struct hvx_balloon_ops *hvxtest_balloon(struct hvx_vm *vm, void **opaque);
const struct hvx_hotplug_ops *hvxtest_hotplug(struct hvx_vm *vm, void **opaque);
uint64_t hvxtest_discarded_bytes(struct hvx_vm *vm); /* sum over mem_discard */
uint32_t hvxtest_ejected(struct hvx_vm *vm);         /* slots of pci_eject since the last call, as bits */
/* The latest vm_request and its code; 0 when there was none. Clears it. */
int hvxtest_request(struct hvx_vm *vm, int *code);
unsigned hvxtest_events(struct hvx_vm *vm, const char *what); /* guest_event calls; what NULL: all */
const void *hvxtest_vcpu_regs(struct hvx_vm *vm, unsigned index, size_t *size); /* from vcpu_set_regs; NULL none */

/* --- saved state ------------------------------------------------------------------------ */
/* Save into a new buffer (free() it). */
int hvxtest_save(int (*state)(void *dev, struct hvx_stream *s), void *dev, uint32_t version, uint8_t **buf, size_t *n);
/* Restore; -EINVAL when the function reads past the end or leaves bytes over. */
int hvxtest_load(int (*state)(void *dev, struct hvx_stream *s), void *dev, uint32_t version, const uint8_t *buf, size_t n,
                 struct hvx_error *err);

HVX_EXTERN_C_END
#endif
