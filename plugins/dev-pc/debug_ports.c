/* SPDX-License-Identifier: Apache-2.0
 *
 * debug_ports.c - three ports by which a guest talks to whoever runs it: the
 * debug console that firmware prints to, isa-debug-exit, and pvpanic. The
 * last two are device types of their own and can be part of the board too.
 */
#include "pc.h"

#include <stdlib.h>
#include <string.h>

/* --- debug console ---------------------------------------------------------------
 * Reading the port gives 0xe9: that is how firmware finds it. Output goes to
 * the character stream of option debugcon-chr; what does not fit there is lost, because a
 * message is never worth stopping firmware for. */
#define DEBUGCON_PRESENT 0xe9u

struct debugcon {
    struct pc *pc;
    struct hvx_chr *chr;
};

static size_t debugcon_receive(void *opaque, const uint8_t *buf, size_t n)
{
    (void)opaque, (void)buf;
    return n; /* output only */
}

static const struct hvx_chr_ops debugcon_chr_ops = {.size = sizeof(debugcon_chr_ops), .receive = debugcon_receive};

static uint64_t debugcon_read(void *opaque, uint64_t off, unsigned size)
{
    (void)opaque, (void)off, (void)size;
    return DEBUGCON_PRESENT;
}

static void debugcon_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct debugcon *d = opaque;
    uint8_t v = (uint8_t)value;
    (void)off, (void)size;
    d->pc->host->chr_write(d->chr, &v, 1);
}

static const struct hvx_region_ops debugcon_ops = {debugcon_read, debugcon_write};

int debugcon_create(struct pc *pc, unsigned port, struct debugcon **out, struct hvx_error *err)
{
    struct debugcon *d = calloc(1, sizeof(*d));
    if (!d)
        return hvx_fail(err, -ENOMEM, "pc: no memory for the debug console");
    d->pc = pc;
    *out = d;
    const char *id = pc->conf.debugcon_chr ? pc->conf.debugcon_chr : "debugcon";
    int rc = pc->host->chr_attach(pc->vm, id, &debugcon_chr_ops, d, &d->chr);
    if (rc)
        return hvx_fail(err, rc, "pc: the debug console could not be connected to %s: %s", id, strerror(-rc));
    return pc_region(pc, HVX_SPACE_PIO, port, 1, HVX_REGION_MIN1, "debugcon", &debugcon_ops, d, err);
}

void debugcon_destroy(struct debugcon *d)
{
    if (!d)
        return;
    if (d->chr)
        d->pc->host->chr_detach(d->chr);
    free(d);
}

/* --- isa-debug-exit ----------------------------------------------------------------
 * A value v written to the port ends the run with status (v << 1) | 1, so that
 * no value looks like success of the program that runs the guest. */
#define DEBUG_EXIT_PORTS 2u

struct debug_exit {
    const struct hvx_host *host;
    struct hvx_vm *vm;
    struct hvx_region *region;
};

static uint64_t debug_exit_read(void *opaque, uint64_t off, unsigned size)
{
    (void)opaque, (void)off, (void)size;
    return 0;
}

static void debug_exit_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct debug_exit *d = opaque;
    (void)off, (void)size;
    d->host->vm_request(d->vm, HVX_VM_DEBUG_EXIT, (int)((value & 0x7f) << 1 | 1));
}

static const struct hvx_region_ops debug_exit_ops = {debug_exit_read, debug_exit_write};

int debug_exit_create(const struct hvx_host *host, struct hvx_vm *vm, unsigned port, struct debug_exit **out,
                      struct hvx_error *err)
{
    struct debug_exit *d = calloc(1, sizeof(*d));
    if (!d)
        return hvx_fail(err, -ENOMEM, "isa-debug-exit: no memory");
    d->host = host;
    d->vm = vm;
    int rc = host->region_add(vm, HVX_SPACE_PIO, port, DEBUG_EXIT_PORTS, 0, "isa-debug-exit", &debug_exit_ops, d,
                              &d->region, err);
    if (rc) {
        free(d);
        return rc;
    }
    *out = d;
    return 0;
}

void debug_exit_destroy(struct debug_exit *d)
{
    if (!d)
        return;
    d->host->region_del(d->vm, d->region);
    free(d);
}

/* --- pvpanic: bit 0 panicked, bit 1 crash kernel loaded ------------------------------ */
#define PVPANIC_PORT 0x505u
#define PVPANIC_PANICKED 1u
#define PVPANIC_CRASH_LOADED 2u

struct pvpanic {
    const struct hvx_host *host;
    struct hvx_vm *vm;
    struct hvx_region *region;
};

static uint64_t pvpanic_read(void *opaque, uint64_t off, unsigned size)
{
    (void)opaque, (void)off, (void)size;
    return PVPANIC_PANICKED | PVPANIC_CRASH_LOADED;
}

static void pvpanic_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct pvpanic *p = opaque;
    (void)off, (void)size;
    if (value & PVPANIC_PANICKED)
        p->host->vm_request(p->vm, HVX_VM_PANIC, 0);
    else if (value & PVPANIC_CRASH_LOADED)
        p->host->guest_event(p->vm, "guest-crash-kernel", "the guest panicked and starts its crash kernel");
}

static const struct hvx_region_ops pvpanic_ops = {pvpanic_read, pvpanic_write};

int pvpanic_create(const struct hvx_host *host, struct hvx_vm *vm, struct pvpanic **out, struct hvx_error *err)
{
    struct pvpanic *p = calloc(1, sizeof(*p));
    if (!p)
        return hvx_fail(err, -ENOMEM, "pvpanic: no memory");
    p->host = host;
    p->vm = vm;
    int rc = host->region_add(vm, HVX_SPACE_PIO, PVPANIC_PORT, 1, 0, "pvpanic", &pvpanic_ops, p, &p->region, err);
    if (rc) {
        free(p);
        return rc;
    }
    *out = p;
    return 0;
}

void pvpanic_destroy(struct pvpanic *p)
{
    if (!p)
        return;
    p->host->region_del(p->vm, p->region);
    free(p);
}

/* --- the device types ------------------------------------------------------------------ */
static int exit_type_create(void *plugin_ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev,
                            struct hvx_error *err)
{
    const struct hvx_host *host = pc_host_of(plugin_ctx);
    struct debug_exit *d = NULL;
    int rc = debug_exit_create(host, vm, (unsigned)host->conf_int(config, "iobase"), &d, err);
    if (rc == 0)
        *dev = d;
    return rc;
}

static void exit_type_destroy(void *dev)
{
    debug_exit_destroy(dev);
}

static int panic_type_create(void *plugin_ctx, struct hvx_vm *vm, const struct hvx_config *config, void **dev,
                             struct hvx_error *err)
{
    struct pvpanic *p = NULL;
    (void)config;
    int rc = pvpanic_create(pc_host_of(plugin_ctx), vm, &p, err);
    if (rc == 0)
        *dev = p;
    return rc;
}

static void panic_type_destroy(void *dev)
{
    pvpanic_destroy(dev);
}

static void nothing_to_reset(void *dev)
{
    (void)dev;
}

static const struct hvx_option exit_options[] = {
    {.name = "iobase", .type = HVX_OPT_INT, .min = 0, .max = 0xfffe, .def = "0x501", .help = "first of its two ports"},
    {.name = NULL},
};

static const struct hvx_option no_options[] = {{.name = NULL}};

const struct hvx_device_type debug_exit_type = {
    .size = sizeof(debug_exit_type),
    .role = HVX_ROLE_NONE,
    .version = 1,
    .name = "isa-debug-exit",
    .summary = "a port that ends the run with a status the guest chooses",
    .options = exit_options,
    .create = exit_type_create,
    .destroy = exit_type_destroy,
    .reset = nothing_to_reset,
};

const struct hvx_device_type pvpanic_type = {
    .size = sizeof(pvpanic_type),
    .role = HVX_ROLE_NONE,
    .version = 1,
    .name = "pvpanic",
    .summary = "a port by which a guest says that it panicked",
    .options = no_options,
    .create = panic_type_create,
    .destroy = panic_type_destroy,
    .reset = nothing_to_reset,
};
