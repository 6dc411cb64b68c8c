/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/state.c - the sections of one VM's saved state: interrupt
 * controllers, vCPUs, lines, PCI functions, then every instance. RAM and disks
 * are the business of save.c and restore.c.
 */
#include "core/vm/internal.h"
#include "core/vm/stream.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct state_one {
    struct hvx_vm *vm;
    unsigned index;
};

static int shape_state(void *opaque, struct hvx_stream *s)
{
    struct hvx_vm *vm = ((struct state_one *)opaque)->vm;
    uint64_t ram = vm->ram.bytes;
    uint32_t n_vcpus = vm->params.n_vcpus, n_devices = vm->n_instances;

    hvx_state_u64(s, &ram);
    hvx_state_u32(s, &n_vcpus);
    hvx_state_u32(s, &n_devices);
    hvx_state_bytes(s, vm->uuid, sizeof(vm->uuid));
    if (ram != vm->ram.bytes)
        hvx_state_fail(s, -EINVAL, "the saved VM has another memory size; use the same --memory");
    if (n_vcpus != vm->params.n_vcpus)
        hvx_state_fail(s, -EINVAL, "the saved VM has another number of vCPUs; use the same --cpus");
    if (n_devices != vm->n_instances)
        hvx_state_fail(s, -EINVAL, "the saved VM has other devices");
    return hvx_state_error(s);
}

/* The engine reads the host's counter, which does not stand still with the
 * clock of the devices (hvx_clock_freeze): the difference, in the guest's ticks. */
static uint64_t tsc_since_freeze(struct hvx_vm *vm)
{
    struct timespec ts;
    int64_t ns;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    ns = (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec - (int64_t)hvx_clock_ns();
    if (ns < 0 || ns > 1000000000)
        return 0; /* not frozen */
    return (uint64_t)((unsigned __int128)(uint64_t)ns * vm->tsc_hz / 1000000000u);
}

static int vcpu_state(void *opaque, struct hvx_stream *s)
{
    struct state_one *o = opaque;
    struct hvx_vm *vm = o->vm;
    struct hvx_vcpu *v = vm->vcpu[o->index].engine;
    struct hvx_vcpu_regs *r = aligned_alloc(64, (sizeof(*r) + 63) & ~(size_t)63);
    uint32_t size = sizeof(*r);
    struct hvx_error err;

    if (!r)
        return -ENOMEM;
    memset(r, 0, sizeof(*r));
    r->size = sizeof(*r);
    if (hvx_stream_is_saving(s) && vm->engine->vcpu_get(v, r) < 0)
        hvx_state_fail(s, -EIO, "the engine does not give the vCPU's registers");
    if (hvx_stream_is_saving(s))
        r->tsc -= tsc_since_freeze(vm);
    hvx_state_u32(s, &size);
    if (size > sizeof(*r) || size < sizeof(uint32_t))
        hvx_state_fail(s, -EINVAL, "the register block has a size that this program does not know");
    hvx_state_bytes(s, r, size <= sizeof(*r) ? size : 0);
    if (!hvx_stream_is_saving(s) && !hvx_state_error(s)) {
        r->size = sizeof(*r);
        r->tsc += tsc_since_freeze(vm);
        if (r->n_msrs > HVX_MAX_MSRS || r->xsave_size > HVX_XSAVE_MAX)
            hvx_state_fail(s, -EINVAL, "a count in the register block is too large");
        else if (vm->engine->vcpu_set(v, r, &err) < 0)
            hvx_state_fail(s, -EINVAL, err.text);
    }
    free(r);
    return hvx_state_error(s);
}

static int irqchip_state(void *opaque, struct hvx_stream *s)
{
    struct hvx_vm *vm = ((struct state_one *)opaque)->vm;

    return vm->engine->irqchip_state(vm->engine_vm, s);
}

static int lines_state(void *opaque, struct hvx_stream *s)
{
    hvx_vm_irq_state(((struct state_one *)opaque)->vm, s);
    return hvx_state_error(s);
}

static int pci_state(void *opaque, struct hvx_stream *s)
{
    struct state_one *o = opaque;

    hvx_pci_state(o->vm->pci.dev[o->index], s);
    return hvx_state_error(s);
}

static int instance_state(void *opaque, struct hvx_stream *s)
{
    struct state_one *o = opaque;
    struct hvx_instance *i = &o->vm->instance[o->index];

    return i->type->state ? i->type->state(i->dev, s) : 0;
}

static int model_state(void *opaque, struct hvx_stream *s)
{
    struct hvx_vm *vm = ((struct state_one *)opaque)->vm;

    return vm->engine->model_state ? vm->engine->model_state(vm->engine_vm, s) : 0;
}

static int section(struct hvx_vm *vm, struct hvx_state_file *f, bool saving, const char *name, uint32_t version,
                   hvx_state_fn fn, unsigned index, struct hvx_error *err)
{
    struct state_one o = {vm, index};

    return saving ? hvx_state_save_section(f, name, version, fn, &o, err)
                  : hvx_state_load_section(f, name, version, fn, &o, err);
}

int hvx_vm_state_model(struct hvx_vm *vm, struct hvx_state_file *f, bool saving, struct hvx_error *err)
{
    return section(vm, f, saving, "cpu", 1, model_state, 0, err);
}

int hvx_vm_state_sections(struct hvx_vm *vm, struct hvx_state_file *f, bool saving, struct hvx_error *err)
{
    char name[64];
    int r = section(vm, f, saving, "irqchip", 1, irqchip_state, 0, err);

    for (unsigned i = 0; i < vm->n_vcpus_made && r == 0; i++) {
        snprintf(name, sizeof(name), "vcpu.%u", i);
        r = section(vm, f, saving, name, 1, vcpu_state, i, err);
    }
    if (r == 0)
        r = section(vm, f, saving, "lines", 1, lines_state, 0, err);
    for (unsigned i = 0; i < 256 && r == 0; i++) {
        if (!vm->pci.dev[i])
            continue;
        snprintf(name, sizeof(name), "pci.%02x.%u", i >> 3, i & 7);
        r = section(vm, f, saving, name, 1, pci_state, i, err);
    }
    for (unsigned i = 0; i < vm->n_instances && r == 0; i++)
        r = section(vm, f, saving, vm->instance[i].name, vm->instance[i].type->version, instance_state, i, err);
    return r;
}

void hvx_vm_settle(struct hvx_vm *vm)
{
    bool busy;

    do {
        busy = false;
        hvx_loop_lock(vm->loop);
        for (unsigned i = 0; i < vm->n_instances; i++)
            if (vm->instance[i].type->quiesced && !vm->instance[i].type->quiesced(vm->instance[i].dev))
                busy = true;
        hvx_loop_unlock(vm->loop);
        if (busy) {
            struct timespec wait = {0, 1000000};
            nanosleep(&wait, NULL);
        }
    } while (busy);
}

/* A state without RAM and disks, to put back into the same VM. */
static int round_trip_sections(struct hvx_vm *vm, struct hvx_state_file *s, bool saving, struct hvx_error *err)
{
    int r;

    if (!s)
        return hvx_fail(err, -ENOMEM, "saved state: out of memory");
    hvx_loop_lock(vm->loop);
    hvx_clock_freeze(hvx_clock_ns());
    r = saving ? hvx_state_write_header(s, err) : hvx_state_read_header(s, err);
    if (r == 0)
        r = section(vm, s, saving, "vm", 1, shape_state, 0, err);
    if (r == 0)
        r = hvx_vm_state_model(vm, s, saving, err);
    if (r == 0)
        r = hvx_vm_state_sections(vm, s, saving, err);
    if (r == 0)
        r = saving ? hvx_state_write_end(s, err) : hvx_state_read_end(s, err);
    hvx_clock_freeze(0);
    hvx_loop_unlock(vm->loop);
    return r;
}

int hvx_vm_save_devices(struct hvx_vm *vm, FILE *f, struct hvx_error *err)
{
    struct hvx_state_file *s = hvx_state_open(f);
    int r;

    hvx_vm_pause(vm);
    hvx_vm_settle(vm);
    r = round_trip_sections(vm, s, true, err);
    hvx_vm_resume(vm);
    hvx_state_close(s);
    return r;
}

int hvx_vm_restore_devices(struct hvx_vm *vm, FILE *f, struct hvx_error *err)
{
    struct hvx_state_file *s = hvx_state_open(f);
    int r;

    hvx_vm_pause(vm);
    r = round_trip_sections(vm, s, false, err);
    hvx_vm_resume(vm);
    hvx_state_close(s);
    return r;
}
