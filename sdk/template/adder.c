/* SPDX-License-Identifier: Apache-2.0
 *
 * dev-adder - a complete device plugin to start from: a coprocessor on four
 * I/O ports that adds two numbers, takes its time, and raises an interrupt.
 *
 *   base+0   A        read, write, 32 bits
 *   base+4   B        read, write
 *   base+8   SUM      read: A + B of the last addition
 *   base+12  CONTROL  bit 0 GO (write 1: start; reads 1 while busy)
 *                     bit 1 DONE (write 1: clear)
 *                     bit 2 interrupt enable
 *
 * What to copy from it: nothing global is mutable, what is added to the VM is
 * removed again in destroy(), and one function saves and restores the state.
 */
#include <hvx/device.h>
#include <hvx/plugin.h>

#include <stdlib.h>

#define CONTROL_GO 1u
#define CONTROL_DONE 2u
#define CONTROL_IRQ 4u

struct adder {
    const struct hvx_host *host; /* borrowed from the plugin's context */
    struct hvx_vm *vm;
    struct hvx_region *ports;
    struct hvx_timer *timer;
    unsigned irq;
    uint64_t delay_ns;
    uint32_t a, b, sum, control;
};

static const struct hvx_option adder_options[] = {
    {.name = "base", .type = HVX_OPT_INT, .min = 0x100, .max = 0xfff0, .def = "0xa00", .help = "first of 16 ports"},
    {.name = "irq", .type = HVX_OPT_INT, .min = 3, .max = 15, .def = "5", .help = "ISA interrupt"},
    {.name = "delay-ns", .type = HVX_OPT_INT, .min = 0, .max = 1000000000, .def = "1000",
     .help = "how long an addition takes"},
    {.name = NULL},
};

static void adder_update_irq(struct adder *d)
{
    d->host->irq_set(d->vm, d->irq, (d->control & CONTROL_DONE) && (d->control & CONTROL_IRQ));
}

static void adder_finish(void *opaque)
{
    struct adder *d = opaque;
    d->sum = d->a + d->b;
    d->control = (d->control & ~CONTROL_GO) | CONTROL_DONE;
    adder_update_irq(d);
}

static uint64_t adder_read(void *opaque, uint64_t off, unsigned size)
{
    struct adder *d = opaque;
    const uint32_t regs[4] = {d->a, d->b, d->sum, d->control};
    (void)size; /* a guest may read parts of a register: shift them down */
    return regs[off / 4] >> (8 * (off % 4));
}

static void adder_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct adder *d = opaque;
    if (size != 4 || off % 4) {
        d->host->guest_event(d->vm, "adder-access", "%u-byte write at offset %u ignored", size, (unsigned)off);
        return;
    }
    switch (off) {
    case 0:
        d->a = (uint32_t)value;
        break;
    case 4:
        d->b = (uint32_t)value;
        break;
    case 12:
        d->control = (d->control & (CONTROL_GO | CONTROL_DONE) & ~(uint32_t)(value & CONTROL_DONE)) |
                     (value & CONTROL_IRQ);
        if ((value & CONTROL_GO) && !(d->control & CONTROL_GO)) {
            d->control |= CONTROL_GO;
            d->host->timer_set(d->timer, d->host->clock_ns() + d->delay_ns);
        }
        adder_update_irq(d);
        break;
    }
}
static const struct hvx_region_ops adder_ops = {.read = adder_read, .write = adder_write};

static void adder_destroy(void *dev)
{
    struct adder *d = dev;
    if (!d)
        return;
    if (d->timer)
        d->host->timer_del(d->timer);
    if (d->ports)
        d->host->region_del(d->vm, d->ports);
    free(d);
}

static int adder_create(void *plugin_ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev,
                        struct hvx_error *err)
{
    const struct hvx_host *host = plugin_ctx;
    struct adder *d = calloc(1, sizeof(*d));
    if (!d)
        return hvx_fail(err, -ENOMEM, "adder: out of memory");
    d->host = host;
    d->vm = vm;
    d->irq = (unsigned)host->conf_int(config, "irq");
    d->delay_ns = (uint64_t)host->conf_int(config, "delay-ns");
    int r = host->timer_new(vm, adder_finish, d, &d->timer);
    if (r < 0)
        hvx_fail(err, r, "adder: no timer");
    else
        r = host->region_add(vm, HVX_SPACE_PIO, (uint64_t)host->conf_int(config, "base"), 16, HVX_REGION_MAX4, "adder",
                             &adder_ops, d, &d->ports, err);
    if (r < 0) {
        adder_destroy(d);
        return r;
    }
    *dev = d;
    return 0;
}

static void adder_reset(void *dev)
{
    struct adder *d = dev;
    d->a = d->b = d->sum = d->control = 0;
    d->host->timer_set(d->timer, ~0ull);
    adder_update_irq(d);
}

static int adder_state(void *dev, struct hvx_stream *s)
{
    struct adder *d = dev;
    hvx_state_u32(s, &d->a);
    hvx_state_u32(s, &d->b);
    hvx_state_u32(s, &d->sum);
    hvx_state_u32(s, &d->control);
    if (!hvx_stream_is_saving(s) && !hvx_state_error(s)) {
        if (d->control & ~(CONTROL_GO | CONTROL_DONE | CONTROL_IRQ))
            hvx_state_fail(s, -EINVAL, "adder: control register with unknown bits");
        else if (d->control & CONTROL_GO) /* an addition was under way: begin it again */
            d->host->timer_set(d->timer, d->host->clock_ns() + d->delay_ns);
    }
    return hvx_state_error(s);
}

static const struct hvx_device_type adder_type = {
    .size = sizeof(adder_type),
    .role = HVX_ROLE_NONE, /* only by name: hvx run --device adder */
    .version = 1,
    .name = "adder",
    .summary = "adds two numbers",
    .options = adder_options,
    .create = adder_create,
    .destroy = adder_destroy,
    .reset = adder_reset,
    .state = adder_state,
};
static const struct hvx_device_type *const adder_types[] = {&adder_type};
static const struct hvx_device_ops adder_device_ops = {.size = sizeof(adder_device_ops), .n_types = 1,
                                                       .types = adder_types};

/* The plugin's context is just the host table: it keeps nothing of its own. */
static int adder_init(const struct hvx_host *host, const struct hvx_config *config, void **ctx, struct hvx_error *err)
{
    (void)config;
    (void)err;
    *ctx = (void *)(uintptr_t)host;
    return 0;
}

static const char *const adder_capabilities[] = {"adds", NULL};

HVX_PLUGIN_DEFINE(dev_adder, HVX_FAMILY_DEVICE, HVX_DEVICE_MINOR, .name = "dev-adder", .version = "1.0",
                  .summary = "template of a device plugin: an adder on ports", .license = "Apache-2.0",
                  .capabilities = adder_capabilities, .init = adder_init, .ops = &adder_device_ops);
