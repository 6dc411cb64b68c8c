/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/test_null.h - an engine for tests that executes no instructions: a
 * vCPU calls a function of the test instead, which does what guest code
 * would (port and memory accesses) and says how the run ended.
 */
#ifndef HVX_TEST_NULL_H
#define HVX_TEST_NULL_H

#include "core/vm/internal.h"

#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

struct hvx_vcpu {
    struct hvx_engine_vm *e;
    unsigned index;
    sem_t kick;
    _Atomic(unsigned) n_resets;
    struct hvx_vcpu_regs regs;
};

struct null_engine {
    /* Called on the vCPU's thread; returns an exit reason, 0: wait for a kick. */
    int (*guest)(struct hvx_vm *vm, unsigned vcpu, void *opaque, struct hvx_exit *x);
    void *opaque;
    struct hvx_mem_slot slots[HVX_MAX_SLOTS];
    unsigned n_set_slot, n_code_written, n_irqchip_resets, n_msi;
    bool line[HVX_N_GSI];
    uint64_t msi_addr;
    uint32_t msi_data, irqchip;
};

struct hvx_engine_vm {
    struct null_engine *n;
    struct hvx_vm *vm;
};

static int null_vm_create(void *ctx, struct hvx_vm *vm, const struct hvx_engine_config *cfg, struct hvx_engine_vm **out,
                          struct hvx_error *err)
{
    (void)cfg;
    (void)err;
    *out = calloc(1, sizeof(**out));
    (*out)->n = ctx;
    (*out)->vm = vm;
    return 0;
}

static void null_vm_destroy(struct hvx_engine_vm *e)
{
    free(e);
}

static int null_set_slot(struct hvx_engine_vm *e, const struct hvx_mem_slot *s, struct hvx_error *err)
{
    (void)err;
    assert_true(s->id < HVX_MAX_SLOTS);
    if (s->bytes) /* replacing without removing would be core's bug */
        assert_int_equal(e->n->slots[s->id].bytes, 0);
    for (unsigned i = 0; i < HVX_MAX_SLOTS && s->bytes; i++)
        if (e->n->slots[i].bytes)
            assert_true(s->gpa + s->bytes <= e->n->slots[i].gpa ||
                        e->n->slots[i].gpa + e->n->slots[i].bytes <= s->gpa);
    e->n->slots[s->id] = *s;
    e->n->n_set_slot++;
    return 0;
}

static int null_vcpu_create(struct hvx_engine_vm *e, unsigned index, struct hvx_vcpu **out, struct hvx_error *err)
{
    struct hvx_vcpu *v = aligned_alloc(64, (sizeof(*v) + 63) & ~(size_t)63);

    (void)err;
    memset(v, 0, sizeof(*v));
    v->e = e;
    v->index = index;
    sem_init(&v->kick, 0, 0);
    *out = v;
    return 0;
}

static void null_vcpu_destroy(struct hvx_vcpu *v)
{
    sem_destroy(&v->kick);
    free(v);
}

static void null_vcpu_reset(struct hvx_vcpu *v)
{
    memset(&v->regs, 0, sizeof(v->regs));
    v->regs.size = sizeof(v->regs);
    v->regs.rip = 0xfff0;
    v->n_resets++;
}

static int null_vcpu_run(struct hvx_vcpu *v, struct hvx_exit *x)
{
    int r = v->e->n->guest ? v->e->n->guest(v->e->vm, v->index, v->e->n->opaque, x) : 0;

    if (r) {
        x->reason = (uint32_t)r;
        return 0;
    }
    while (sem_wait(&v->kick) < 0)
        ;
    x->reason = HVX_EXIT_INTERRUPTED;
    return 0;
}

static void null_vcpu_kick(struct hvx_vcpu *v)
{
    sem_post(&v->kick);
}

static int null_vcpu_get(struct hvx_vcpu *v, struct hvx_vcpu_regs *r)
{
    *r = v->regs;
    return 0;
}

static int null_vcpu_set(struct hvx_vcpu *v, const struct hvx_vcpu_regs *r, struct hvx_error *err)
{
    (void)err;
    v->regs = *r;
    return 0;
}

static void null_irqchip_reset(struct hvx_engine_vm *e)
{
    e->n->n_irqchip_resets++;
    memset(e->n->line, 0, sizeof(e->n->line));
}

static int null_irqchip_state(struct hvx_engine_vm *e, struct hvx_stream *s)
{
    hvx_state_u32(s, &e->n->irqchip);
    return hvx_state_error(s);
}

static void null_irq_line(struct hvx_engine_vm *e, unsigned gsi, bool level)
{
    e->n->line[gsi] = level;
}

static void null_msi(struct hvx_engine_vm *e, uint64_t addr, uint32_t data)
{
    e->n->n_msi++;
    e->n->msi_addr = addr;
    e->n->msi_data = data;
}

static void null_code_written(struct hvx_engine_vm *e, uint64_t gpa, uint64_t n)
{
    (void)gpa;
    (void)n;
    e->n->n_code_written++;
}

static void null_stats(struct hvx_engine_vm *e, hvx_stat_fn fn, void *opaque)
{
    fn(opaque, "engine", "slots set", e->n->n_set_slot, "");
}

static const struct hvx_cpu_ops null_ops = {
    .size = sizeof(null_ops),
    .vm_create = null_vm_create,
    .vm_destroy = null_vm_destroy,
    .set_slot = null_set_slot,
    .vcpu_create = null_vcpu_create,
    .vcpu_destroy = null_vcpu_destroy,
    .vcpu_reset = null_vcpu_reset,
    .vcpu_run = null_vcpu_run,
    .vcpu_kick = null_vcpu_kick,
    .vcpu_get = null_vcpu_get,
    .vcpu_set = null_vcpu_set,
    .irqchip_reset = null_irqchip_reset,
    .irqchip_state = null_irqchip_state,
    .irq_line = null_irq_line,
    .msi = null_msi,
    .code_written = null_code_written,
    .stats = null_stats,
};

/* The slot of the null engine that covers gpa, or NULL. */
static inline const struct hvx_mem_slot *null_slot_at(const struct null_engine *n, uint64_t gpa)
{
    for (unsigned i = 0; i < HVX_MAX_SLOTS; i++)
        if (n->slots[i].bytes && gpa >= n->slots[i].gpa && gpa - n->slots[i].gpa < n->slots[i].bytes)
            return &n->slots[i];
    return NULL;
}

/* A VM with n vCPUs and ram bytes on the null engine. */
static inline struct hvx_vm *null_vm(struct null_engine *n, unsigned n_vcpus, uint64_t ram,
                                     void (*on_event)(void *opaque, enum hvx_vm_event e, int code, const char *text),
                                     void *opaque)
{
    struct hvx_vm_params p = {.name = "test", .n_vcpus = n_vcpus, .ram_bytes = ram, .tsc_hz = 1000000000,
                              .on_event = on_event, .opaque = opaque};
    struct hvx_error err = {0};
    struct hvx_vm *vm = NULL;

    if (hvx_vm_new(&p, &vm, &err) < 0 || hvx_vm_set_engine(vm, &null_ops, n, NULL, "null", &err) < 0)
        fail_msg("%s", err.text);
    return vm;
}

#endif
