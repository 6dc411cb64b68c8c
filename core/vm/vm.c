/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/vm.c - the life of a VM.
 */
#define _GNU_SOURCE
#include "core/vm/internal.h"
#include "core/conf/options.h"
#include "core/image/blk.h"
#include "core/net/net.h"
#include "core/vm/chr.h"
#include "core/vm/confine.h"

#include <assert.h>
#include <cpuid.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

const char *hvx_vm_event_name(enum hvx_vm_event e)
{
    static const char *const names[] = {"?",     "reset",       "power-off",    "debug exit",
                                        "panic", "triple fault", "engine error", "debug stop"};

    return (unsigned)e < sizeof(names) / sizeof(names[0]) ? names[e] : names[0];
}

void hvx_vm_post_event(struct hvx_vm *vm, enum hvx_vm_event e, int code, const char *text)
{
    if (vm->params.on_event)
        vm->params.on_event(vm->params.opaque, e, code, text);
}

/* Leaf 0x15 when the processor says it, else 20 ms against the clock. */
static uint64_t host_tsc_hz(void)
{
    unsigned a, b, c, d;
    uint64_t t0, t1, n0, n1;
    struct timespec wait = {0, 20000000};

    if (__get_cpuid(0x15, &a, &b, &c, &d) && a && b && c)
        return (uint64_t)c * b / a;
    n0 = hvx_clock_ns();
    t0 = __rdtsc();
    nanosleep(&wait, NULL);
    n1 = hvx_clock_ns();
    t1 = __rdtsc();
    return (uint64_t)((unsigned __int128)(t1 - t0) * 1000000000u / (n1 - n0));
}

static int copy_string(const char **s)
{
    if (*s && !(*s = strdup(*s)))
        return -ENOMEM;
    return 0;
}

static int copy_params(struct hvx_vm *vm, const struct hvx_vm_params *p)
{
    const char **strings[] = {&vm->params.name,   &vm->params.kernel,   &vm->params.initrd,    &vm->params.append,
                              &vm->params.firmware, &vm->params.boot_order, &vm->params.cpu_model};
    int r = 0;

    vm->params = *p;
    for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++)
        if (copy_string(strings[i]) < 0) {
            *strings[i] = NULL;
            r = -ENOMEM;
        }
    return r;
}

static void region_free(void *opaque)
{
    free(opaque);
}

void hvx_vm_free_region_later(struct hvx_vm *vm, struct hvx_region *r)
{
    /* A device may be deleting the very region whose callback it is in. The
     * loop runs the release under the VM lock, so after that callback. */
    if (!vm->loop_running || hvx_loop_post(vm->loop, region_free, r) < 0)
        free(r);
}

int hvx_vm_new(const struct hvx_vm_params *p, struct hvx_vm **out, struct hvx_error *err)
{
    struct hvx_vm *vm;
    int r;

    if (p->n_vcpus < 1 || p->n_vcpus > HVX_MAX_VCPUS)
        return hvx_fail(err, -EINVAL, "a VM has 1 to %u vCPUs, not %u", HVX_MAX_VCPUS, p->n_vcpus);
    if (p->ram_bytes < HVX_VM_MIN_RAM || p->ram_bytes > HVX_VM_MAX_RAM)
        return hvx_fail(err, -EINVAL, "a VM has %llu MiB to %llu GiB of memory, not %llu MiB",
                        HVX_VM_MIN_RAM >> 20, HVX_VM_MAX_RAM >> 30, (unsigned long long)(p->ram_bytes >> 20));
    vm = calloc(1, sizeof(*vm));
    if (!vm)
        return hvx_fail(err, -ENOMEM, "VM: out of memory");
    vm->ram.fd = -1;
    pthread_mutex_init(&vm->irq_mutex, NULL);
    pthread_mutex_init(&vm->run_mutex, NULL);
    pthread_cond_init(&vm->run_cond, NULL);
    pthread_mutex_init(&vm->event_mutex, NULL);
    atomic_store(&vm->pause_count, 1); /* until hvx_vm_start */
    r = copy_params(vm, p);
    if (r < 0)
        hvx_fail(err, r, "VM: out of memory");
    if (r == 0)
        r = hvx_loop_new(&vm->loop, err);
    if (r == 0)
        r = hvx_ram_init(&vm->ram, (p->ram_bytes + (1u << 20) - 1) & ~(uint64_t)((1u << 20) - 1),
                         HVX_VM_RAM_BELOW_4G_MAX, err);
    if (r == 0)
        r = hvx_space_init(&vm->pio, HVX_SPACE_PIO, NULL, err);
    if (r == 0)
        r = hvx_space_init(&vm->mem, HVX_SPACE_MMIO, &vm->ram, err);
    if (r < 0) {
        hvx_vm_destroy(vm);
        return r;
    }
    vm->tsc_hz = p->tsc_hz ? p->tsc_hz : host_tsc_hz();
    if (getrandom(vm->uuid, sizeof(vm->uuid), 0) != sizeof(vm->uuid))
        memset(vm->uuid, 0x42, sizeof(vm->uuid));
    vm->uuid[6] = (vm->uuid[6] & 0x0f) | 0x40; /* RFC 4122, version 4 */
    vm->uuid[8] = (vm->uuid[8] & 0x3f) | 0x80;
    if (p->uuid)
        memcpy(vm->uuid, p->uuid, sizeof(vm->uuid));
    vm->params.uuid = NULL;
    vm->pci.vm = vm;
    vm->pci.pio = &vm->pio;
    vm->pci.mem = &vm->mem;
    vm->pci.irq_count = hvx_vm_irq_count;
    vm->pci.msi = hvx_vm_msi;
    vm->pci.region_gone = hvx_vm_free_region_later;
    hvx_pci_init(&vm->pci);
    *out = vm;
    return 0;
}

struct hvx_loop *hvx_vm_loop(struct hvx_vm *vm)
{
    return vm->loop;
}

const char *hvx_vm_name(struct hvx_vm *vm)
{
    return vm->params.name ? vm->params.name : "vm";
}

const char *hvx_vm_engine_name(struct hvx_vm *vm)
{
    return vm->engine_name;
}

/* --- engine ------------------------------------------------------------------------ */

static int set_slot(void *opaque, const struct hvx_mem_slot *slot, struct hvx_error *err)
{
    struct hvx_vm *vm = opaque;
    int r = vm->engine->set_slot(vm->engine_vm, slot, err);

    if (r < 0)
        hvx_log(HVX_LOG_ERROR, vm->engine_name, "memory slot %u at %#llx, %#llx bytes: %s", slot->id,
                (unsigned long long)slot->gpa, (unsigned long long)slot->bytes, err->text);
    return r;
}

static void code_written(void *opaque, uint64_t gpa, uint64_t n)
{
    struct hvx_vm *vm = opaque;

    vm->engine->code_written(vm->engine_vm, gpa, n);
}

int hvx_vm_set_engine(struct hvx_vm *vm, const struct hvx_cpu_ops *ops, void *plugin_ctx,
                      const struct hvx_config *options, const char *name, struct hvx_error *err)
{
    struct hvx_engine_config cfg = {.size = sizeof(cfg),
                                    .n_vcpus = vm->params.n_vcpus,
                                    .cpu_model = vm->params.cpu_model,
                                    .options = options,
                                    .tsc_hz = vm->params.tsc_hz};
    struct hvx_engine_vm *e = NULL;
    int r;

    assert(!vm->engine);
    r = ops->vm_create(plugin_ctx, vm, &cfg, &e, err);
    if (r < 0)
        return r;
    vm->engine = ops;
    vm->engine_vm = e;
    snprintf(vm->engine_name, sizeof(vm->engine_name), "%s", name);
    hvx_loop_lock(vm->loop);
    r = hvx_space_attach(&vm->mem, set_slot, ops->code_written ? code_written : NULL, vm, err);
    hvx_loop_unlock(vm->loop);
    return r;
}

/* --- back ends and instances ---------------------------------------------------------- */

void *hvx_vm_backend(const struct hvx_backend *list, unsigned n, const char *id)
{
    for (unsigned i = 0; i < n; i++)
        if (!strcmp(list[i].id, id))
            return list[i].p;
    return NULL;
}

/* The lowest number that is free: those of detached ones are used again. */
static void number_backend(const struct hvx_backend *list, unsigned n, const char *kind, char name[24])
{
    unsigned i = 0;

    do
        snprintf(name, 24, "%s%u", kind, i++);
    while (hvx_vm_backend(list, n, name));
}

static int add_backend(struct hvx_backend *list, unsigned *n, const char *id, void *p, struct hvx_error *err)
{
    if (*n == HVX_VM_MAX_BACKENDS || hvx_vm_backend(list, *n, id))
        return hvx_fail(err, -ENOSPC, "%s: given twice, or more than %u of its kind", id, HVX_VM_MAX_BACKENDS);
    snprintf(list[*n].id, sizeof(list[*n].id), "%s", id);
    list[(*n)++].p = p;
    return 0;
}

int hvx_vm_add_blk(struct hvx_vm *vm, struct hvx_blk *b, const char **id, struct hvx_error *err)
{
    char name[24];
    int r;

    number_backend(vm->blk, vm->n_blk, "disk", name);
    r = add_backend(vm->blk, &vm->n_blk, name, b, err);
    if (r == 0 && id)
        *id = vm->blk[vm->n_blk - 1].id;
    return r;
}

int hvx_vm_add_net(struct hvx_vm *vm, struct hvx_net *n, const char **id, struct hvx_error *err)
{
    char name[24];
    int r;

    number_backend(vm->net, vm->n_net, "net", name);
    r = add_backend(vm->net, &vm->n_net, name, n, err);
    if (r == 0 && id)
        *id = vm->net[vm->n_net - 1].id;
    return r;
}

int hvx_vm_add_chr(struct hvx_vm *vm, const char *id, struct hvx_chr *c, struct hvx_error *err)
{
    return add_backend(vm->chr, &vm->n_chr, id, c, err);
}

static bool name_taken(const struct hvx_vm *vm, const char *name)
{
    for (unsigned k = 0; k < vm->n_instances; k++)
        if (!strcmp(vm->instance[k].name, name))
            return true;
    return false;
}

int hvx_vm_add_device_locked(struct hvx_vm *vm, const struct hvx_device_type *type, void *plugin_ctx,
                             const struct hvx_config *config, const char *backend, struct hvx_error *err)
{
    struct hvx_instance *i = &vm->instance[vm->n_instances];
    unsigned number = 0;
    int r;

    if (vm->n_instances == HVX_VM_MAX_DEVICES)
        return hvx_fail(err, -ENOSPC, "device %s: a VM has at most %u devices", type->name, HVX_VM_MAX_DEVICES);
    memset(i, 0, sizeof(*i));
    do
        snprintf(i->name, sizeof(i->name), "%.36s.%u", type->name, number++);
    while (name_taken(vm, i->name));
    i->type = type;
    snprintf(i->backend, sizeof(i->backend), "%s", backend ? backend : "");
    vm->pci.last_added = -1;
    r = type->create(plugin_ctx, vm, config, &i->dev, err);
    i->slot = type->role == HVX_ROLE_MACHINE || vm->pci.last_added < 0 ? -1 : vm->pci.last_added >> 3;
    if (r == 0)
        vm->n_instances++;
    return r;
}

int hvx_vm_add_device(struct hvx_vm *vm, const struct hvx_device_type *type, void *plugin_ctx,
                      const struct hvx_config *config, const char *backend, struct hvx_error *err)
{
    int r;

    hvx_loop_lock(vm->loop);
    r = hvx_vm_add_device_locked(vm, type, plugin_ctx, config, backend, err);
    hvx_loop_unlock(vm->loop);
    return r;
}

/* --- running --------------------------------------------------------------------------- */

static void reset_paused(struct hvx_vm *vm)
{
    hvx_loop_lock(vm->loop);
    hvx_pci_reset(&vm->pci);
    /* The machine was created first and is reset last: it may put a kernel
     * into RAM and set the first state of the vCPUs. */
    for (unsigned i = vm->n_instances; i-- > 0;)
        if (vm->instance[i].type->reset)
            vm->instance[i].type->reset(vm->instance[i].dev);
    vm->engine->irqchip_reset(vm->engine_vm);
    hvx_vm_irq_redeliver(vm);
    hvx_loop_unlock(vm->loop);
    hvx_vm_vcpus_reset(vm);
}

void hvx_vm_reset(struct hvx_vm *vm)
{
    hvx_vm_pause(vm);
    hvx_vm_settle(vm); /* or disk reads in flight land in the RAM of the next boot */
    reset_paused(vm);
    hvx_vm_resume(vm);
}

static void *loop_main(void *arg)
{
    struct hvx_vm *vm = arg;

    pthread_setname_np(pthread_self(), "devices");
    /* On a busy host vCPUs that compute would keep this thread from its timers,
     * and guests that count ticks against the TSC give up. It does little, so
     * it may go first; where that is not permitted nothing is lost. */
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), -10);
    hvx_confine_thread();
    hvx_loop_run(vm->loop);
    return NULL;
}

int hvx_vm_start(struct hvx_vm *vm, struct hvx_error *err)
{
    int r;

    assert(vm->engine && !vm->started);
    hvx_vm_block_signals();
    r = hvx_vm_vcpus_create(vm, err);
    if (r < 0)
        return r;
    reset_paused(vm);
    /* Before the loop runs: what comes in from outside is for the restored devices. */
    if (vm->restore) {
        r = hvx_restore_load(vm->restore, vm, err);
        vm->restore = NULL;
        if (r < 0)
            return r;
    }
    if (vm->engine->size > offsetof(struct hvx_cpu_ops, prepare) && vm->engine->prepare &&
        (r = vm->engine->prepare(vm->engine_vm, err)) < 0)
        return r;
    r = pthread_create(&vm->loop_thread, NULL, loop_main, vm);
    if (r)
        return hvx_fail(err, -r, "cannot start the device thread: %s", strerror(r));
    vm->loop_running = true;
    r = hvx_vm_vcpus_start(vm, err);
    if (r == 0 && vm->params.before_guest)
        r = vm->params.before_guest(vm->params.opaque, err);
    if (r < 0)
        return r;
    vm->started = true;
    hvx_vm_resume(vm);
    return 0;
}

void hvx_vm_stop(struct hvx_vm *vm)
{
    hvx_vm_vcpus_stop(vm);
    if (vm->loop) {
        /* Afterwards nothing is in flight. With the lock: this thread now
         * reaps completions, which devices expect under it, and the loop
         * thread must not do so at the same time. Devices of a state that was
         * refused halfway may have requests before any loop runs. */
        hvx_loop_lock(vm->loop);
        for (unsigned i = 0; i < vm->n_blk; i++)
            if (hvx_blk_drain(vm->blk[i].p) < 0)
                hvx_log(HVX_LOG_ERROR, vm->blk[i].id, "the last writes could not be made durable");
        hvx_loop_unlock(vm->loop);
    }
    if (vm->loop_running) {
        hvx_loop_stop(vm->loop);
        pthread_join(vm->loop_thread, NULL);
        vm->loop_running = false;
        hvx_loop_drain(vm->loop);
    }
}

bool hvx_vm_power_button(struct hvx_vm *vm)
{
    bool there;

    hvx_loop_lock(vm->loop);
    there = vm->power_button != NULL;
    if (there)
        vm->power_button(vm->power_button_opaque);
    hvx_loop_unlock(vm->loop);
    return there;
}

void hvx_vm_destroy(struct hvx_vm *vm)
{
    if (!vm)
        return;
    hvx_vm_stop(vm);
    if (vm->loop)
        hvx_loop_lock(vm->loop);
    for (unsigned i = vm->n_instances; i-- > 0;)
        if (vm->instance[i].type->destroy)
            vm->instance[i].type->destroy(vm->instance[i].dev);
    hvx_timer_del(vm->eject_timer);
    if (vm->pci.vm)
        hvx_pci_fini(&vm->pci);
    for (unsigned i = 0; i < HVX_MAX_DISPLAYS; i++)
        free(vm->display[i]);
    if (vm->loop)
        hvx_loop_unlock(vm->loop);
    for (unsigned i = 0; i < vm->n_instances; i++)
        hvx_config_destroy(vm->instance[i].config);
    for (unsigned i = 0; i < vm->n_blk; i++)
        hvx_blk_close(vm->blk[i].p);
    for (unsigned i = 0; i < vm->n_net; i++)
        hvx_net_close(vm->net[i].p);
    for (unsigned i = 0; i < vm->n_chr; i++)
        hvx_chr_close(vm->chr[i].p);
    for (unsigned i = 0; i < vm->n_vcpus_made; i++) {
        vm->engine->vcpu_destroy(vm->vcpu[i].engine);
        free(vm->vcpu[i].start_regs);
    }
    if (vm->engine_vm)
        vm->engine->vm_destroy(vm->engine_vm);
    vm->mem.set_slot = NULL;
    vm->mem.code_written = NULL;
    hvx_space_fini(&vm->pio);
    hvx_space_fini(&vm->mem);
    hvx_ram_fini(&vm->ram);
    hvx_loop_destroy(vm->loop);
    free((void *)vm->params.name);
    free((void *)vm->params.kernel);
    free((void *)vm->params.initrd);
    free((void *)vm->params.append);
    free((void *)vm->params.firmware);
    free((void *)vm->params.boot_order);
    free((void *)vm->params.cpu_model);
    pthread_mutex_destroy(&vm->irq_mutex);
    pthread_mutex_destroy(&vm->run_mutex);
    pthread_mutex_destroy(&vm->event_mutex);
    pthread_cond_destroy(&vm->run_cond);
    free(vm);
}
