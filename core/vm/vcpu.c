/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/vcpu.c - one thread per vCPU, and stopping all of them.
 */
#define _GNU_SOURCE
#include "core/vm/internal.h"
#include "core/vm/confine.h"

#include <assert.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* Threads other than vCPUs take no asynchronous signals: those of the person
 * have one that waits for them (run.c), those of engines belong to vCPU threads. */
void hvx_vm_block_signals(void)
{
    sigset_t set;

    sigfillset(&set);
    for (const int *s = (const int[]){SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT, 0}; *s; s++)
        sigdelset(&set, *s);
    pthread_sigmask(SIG_SETMASK, &set, NULL);
}

static void open_engine_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    for (int i = 1; i <= 3; i++)
        sigaddset(&set, SIGRTMIN + i);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

/* Wait while the VM is paused; false: the thread is to end. */
static bool may_run(struct hvx_vcpu_thread *t)
{
    struct hvx_vm *vm = t->vm;
    bool go;

    if (atomic_load_explicit(&vm->pause_count, memory_order_acquire) == 0 && !atomic_load(&t->held))
        return true;
    pthread_mutex_lock(&vm->run_mutex);
    while ((atomic_load(&vm->pause_count) || atomic_load(&t->held)) && !vm->quit) {
        t->parked = true;
        pthread_cond_broadcast(&vm->run_cond);
        pthread_cond_wait(&vm->run_cond, &vm->run_mutex);
    }
    t->parked = false;
    go = !vm->quit;
    pthread_mutex_unlock(&vm->run_mutex);
    return go;
}

/* The vCPU cannot go on by itself: wait until somebody pauses the VM, which
 * whoever handles the event will do. */
static void wait_for_pause(struct hvx_vm *vm)
{
    pthread_mutex_lock(&vm->run_mutex);
    while (!atomic_load(&vm->pause_count) && !vm->quit)
        pthread_cond_wait(&vm->run_cond, &vm->run_mutex);
    pthread_mutex_unlock(&vm->run_mutex);
}

static void *vcpu_main(void *arg)
{
    struct hvx_vcpu_thread *t = arg;
    struct hvx_vm *vm = t->vm;
    struct hvx_exit x;
    char name[16];

    snprintf(name, sizeof(name), "vcpu%u", t->index);
    pthread_setname_np(pthread_self(), name);
    hvx_confine_thread();
    open_engine_signals();
    while (may_run(t)) {
        int r;
        memset(&x, 0, sizeof(x));
        x.size = sizeof(x);
        t->n_runs++;
        r = vm->engine->vcpu_run(t->engine, &x);
        if (r < 0) {
            snprintf(x.text, sizeof(x.text), "the engine failed: %s", strerror(-r));
            x.reason = HVX_EXIT_ERROR;
        }
        x.text[sizeof(x.text) - 1] = 0;
        switch (x.reason) {
        case HVX_EXIT_SHUTDOWN:
            hvx_vm_post_event(vm, HVX_EVENT_SHUTDOWN, (int)t->index, x.text);
            wait_for_pause(vm);
            break;
        case HVX_EXIT_ERROR:
            hvx_vm_post_event(vm, HVX_EVENT_ENGINE_ERROR, (int)t->index,
                              x.text[0] ? x.text : "the engine gave no reason");
            wait_for_pause(vm);
            break;
        case HVX_EXIT_DEBUG:
            t->debug_detail = x.detail;
            atomic_store(&t->debug_stop, true);
            hvx_vm_post_event(vm, HVX_EVENT_DEBUG, (int)t->index, NULL);
            wait_for_pause(vm);
            break;
        default: /* interrupted */
            break;
        }
    }
    pthread_mutex_lock(&vm->run_mutex);
    t->parked = true;
    pthread_cond_broadcast(&vm->run_cond);
    pthread_mutex_unlock(&vm->run_mutex);
    return NULL;
}

static void kick_all(struct hvx_vm *vm)
{
    for (unsigned i = 0; i < vm->n_vcpus_made; i++)
        if (vm->vcpu[i].started)
            vm->engine->vcpu_kick(vm->vcpu[i].engine);
}

void hvx_vm_pause(struct hvx_vm *vm)
{
    pthread_mutex_lock(&vm->run_mutex);
    atomic_fetch_add(&vm->pause_count, 1);
    pthread_cond_broadcast(&vm->run_cond);
    kick_all(vm);
    for (unsigned i = 0; i < vm->n_vcpus_made; i++)
        while (vm->vcpu[i].started && !vm->vcpu[i].parked)
            pthread_cond_wait(&vm->run_cond, &vm->run_mutex);
    pthread_mutex_unlock(&vm->run_mutex);
}

void hvx_vm_resume(struct hvx_vm *vm)
{
    pthread_mutex_lock(&vm->run_mutex);
    assert(atomic_load(&vm->pause_count) > 0);
    if (atomic_load(&vm->pause_count) == 1)
        for (unsigned i = 0; i < vm->n_vcpus_made; i++)
            vm->vcpu[i].parked = atomic_load(&vm->vcpu[i].held); /* a pause that follows at once must see them run first */
    atomic_fetch_sub(&vm->pause_count, 1);
    pthread_cond_broadcast(&vm->run_cond);
    pthread_mutex_unlock(&vm->run_mutex);
}

bool hvx_vm_paused(struct hvx_vm *vm)
{
    return atomic_load(&vm->pause_count) > 0;
}

int hvx_vm_vcpus_create(struct hvx_vm *vm, struct hvx_error *err)
{
    for (unsigned i = 0; i < vm->params.n_vcpus; i++) {
        struct hvx_vcpu_thread *t = &vm->vcpu[i];
        int r;
        t->vm = vm;
        t->index = i;
        t->start_regs = aligned_alloc(64, (sizeof(*t->start_regs) + 63) & ~(size_t)63);
        if (!t->start_regs)
            return hvx_fail(err, -ENOMEM, "vCPU %u: out of memory", i);
        r = vm->engine->vcpu_create(vm->engine_vm, i, &t->engine, err);
        if (r < 0) {
            free(t->start_regs);
            t->start_regs = NULL;
            return r;
        }
        vm->n_vcpus_made = i + 1;
    }
    return 0;
}

/* Threads start parked: hvx_vm_start resumes them after the first reset. */
int hvx_vm_vcpus_start(struct hvx_vm *vm, struct hvx_error *err)
{
    for (unsigned i = 0; i < vm->n_vcpus_made; i++) {
        int r = pthread_create(&vm->vcpu[i].thread, NULL, vcpu_main, &vm->vcpu[i]);
        if (r)
            return hvx_fail(err, -r, "vCPU %u: cannot start its thread: %s", i, strerror(r));
        vm->vcpu[i].started = true;
    }
    return 0;
}

void hvx_vm_vcpus_stop(struct hvx_vm *vm)
{
    pthread_mutex_lock(&vm->run_mutex);
    vm->quit = true;
    atomic_fetch_add(&vm->pause_count, 1);
    pthread_cond_broadcast(&vm->run_cond);
    if (vm->n_vcpus_made)
        kick_all(vm);
    pthread_mutex_unlock(&vm->run_mutex);
    for (unsigned i = 0; i < vm->n_vcpus_made; i++) {
        if (vm->vcpu[i].started)
            pthread_join(vm->vcpu[i].thread, NULL);
        vm->vcpu[i].started = false;
    }
}

void hvx_vm_vcpus_reset(struct hvx_vm *vm)
{
    struct hvx_error err;

    for (unsigned i = 0; i < vm->n_vcpus_made; i++) {
        struct hvx_vcpu_thread *t = &vm->vcpu[i];
        vm->engine->vcpu_reset(t->engine);
        if (t->have_start_regs && vm->engine->vcpu_set(t->engine, t->start_regs, &err) < 0)
            hvx_log(HVX_LOG_ERROR, vm->engine_name, "vCPU %u: cannot set its first state: %s", i, err.text);
        t->have_start_regs = false;
    }
}
