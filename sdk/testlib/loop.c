/* SPDX-License-Identifier: Apache-2.0
 *
 * The clock that stands still, timers, watched descriptors, deferred calls.
 */
#include "internal.h"

#include <poll.h>
#include <stdlib.h>

#define RUN_LIMIT 1000000u /* callbacks without progress of time: a device that re-arms itself for ever */

struct hvx_timer {
    struct hvx_timer *next;
    struct hvx_vm *vm;
    void (*cb)(void *opaque);
    void *opaque;
    uint64_t deadline;
};

struct hvx_watch {
    struct hvx_watch *next;
    struct hvx_vm *vm;
    int fd;
    bool want_read, want_write;
    void (*cb)(void *opaque, int fd, bool readable, bool writable);
    void *opaque;
};

struct deferred {
    struct deferred *next;
    void (*cb)(void *opaque);
    void *opaque;
};

/* One clock for the process: clock_ns() has no VM. Not 0, so that a forgotten
 * subtraction shows. */
static uint64_t clock_now = 1000000000000u;
static int64_t wall_offset = (int64_t)(1700000000ull * 1000000000ull - 1000000000000u);

uint64_t hvxtest_now_ns(void)
{
    return __atomic_load_n(&clock_now, __ATOMIC_RELAXED);
}

static uint64_t host_wall_clock_ns(void)
{
    return hvxtest_now_ns() + (uint64_t)wall_offset;
}

void hvxtest_set_wall_ns(uint64_t utc_ns)
{
    wall_offset = (int64_t)(utc_ns - clock_now);
}

/* --- timers ------------------------------------------------------------------- */
static int host_timer_new(struct hvx_vm *vm, void (*cb)(void *opaque), void *opaque, struct hvx_timer **out)
{
    if (test_should_fail(vm))
        return -ENOMEM;
    struct hvx_timer *t = test_alloc(sizeof(*t));
    *t = (struct hvx_timer){.vm = vm, .cb = cb, .opaque = opaque, .deadline = ~0ull};
    pthread_mutex_lock(&vm->loop_lock);
    t->next = vm->timers;
    vm->timers = t;
    pthread_mutex_unlock(&vm->loop_lock);
    *out = t;
    return 0;
}

static void host_timer_set(struct hvx_timer *t, uint64_t deadline_ns)
{
    pthread_mutex_lock(&t->vm->loop_lock);
    t->deadline = deadline_ns;
    pthread_mutex_unlock(&t->vm->loop_lock);
}

static void host_timer_del(struct hvx_timer *t)
{
    if (!t)
        return;
    struct hvx_vm *vm = t->vm;
    pthread_mutex_lock(&vm->loop_lock);
    struct hvx_timer **p = &vm->timers;
    while (*p && *p != t)
        p = &(*p)->next;
    if (!*p)
        test_bug("timer_del: deleted twice");
    *p = t->next;
    pthread_mutex_unlock(&vm->loop_lock);
    free(t);
}

/* The earliest armed timer; of equals the one created first. */
static struct hvx_timer *earliest(struct hvx_vm *vm)
{
    struct hvx_timer *best = NULL;
    for (struct hvx_timer *t = vm->timers; t; t = t->next)
        if (t->deadline != ~0ull && (!best || t->deadline <= best->deadline))
            best = t;
    return best;
}

uint64_t hvxtest_next_deadline(struct hvx_vm *vm)
{
    pthread_mutex_lock(&vm->loop_lock);
    struct hvx_timer *t = earliest(vm);
    uint64_t deadline = t ? t->deadline : ~0ull;
    pthread_mutex_unlock(&vm->loop_lock);
    return deadline;
}

static bool run_one_timer(struct hvx_vm *vm)
{
    pthread_mutex_lock(&vm->loop_lock);
    struct hvx_timer *t = earliest(vm);
    bool due = t && t->deadline <= clock_now;
    if (due)
        t->deadline = ~0ull;
    pthread_mutex_unlock(&vm->loop_lock);
    if (!due)
        return false;
    test_lock(vm);
    t->cb(t->opaque);
    test_unlock(vm);
    return true;
}

/* --- watches --------------------------------------------------------------------- */
static int host_watch_new(struct hvx_vm *vm, int fd, bool want_read, bool want_write,
                          void (*cb)(void *opaque, int fd, bool readable, bool writable), void *opaque,
                          struct hvx_watch **out)
{
    if (test_should_fail(vm))
        return -ENOMEM;
    struct hvx_watch *w = test_alloc(sizeof(*w));
    *w = (struct hvx_watch){.next = vm->watches, .vm = vm, .fd = fd, .want_read = want_read, .want_write = want_write,
                            .cb = cb, .opaque = opaque};
    vm->watches = w;
    *out = w;
    return 0;
}

static void host_watch_set(struct hvx_watch *w, bool want_read, bool want_write)
{
    w->want_read = want_read;
    w->want_write = want_write;
}

static void host_watch_del(struct hvx_watch *w)
{
    if (!w)
        return;
    struct hvx_watch **p = &w->vm->watches;
    while (*p && *p != w)
        p = &(*p)->next;
    if (!*p)
        test_bug("watch_del: deleted twice");
    *p = w->next;
    free(w);
}

static unsigned run_watches(struct hvx_vm *vm)
{
    for (struct hvx_watch *w = vm->watches; w; w = w->next) {
        struct pollfd p = {.fd = w->fd, .events = (short)((w->want_read ? POLLIN : 0) | (w->want_write ? POLLOUT : 0))};
        if (!p.events || poll(&p, 1, 0) <= 0)
            continue;
        bool readable = w->want_read && (p.revents & (POLLIN | POLLHUP | POLLERR));
        bool writable = w->want_write && (p.revents & (POLLOUT | POLLERR));
        if (!readable && !writable)
            continue;
        test_lock(vm);
        w->cb(w->opaque, w->fd, readable, writable);
        test_unlock(vm);
        return 1; /* the list may have changed: start over */
    }
    return 0;
}

/* --- deferred calls --------------------------------------------------------------------- */
static int host_defer(struct hvx_vm *vm, void (*cb)(void *opaque), void *opaque)
{
    if (test_should_fail(vm))
        return -ENOMEM;
    struct deferred *d = test_alloc(sizeof(*d));
    d->cb = cb;
    d->opaque = opaque;
    pthread_mutex_lock(&vm->loop_lock);
    *vm->deferred_end = d;
    vm->deferred_end = &d->next;
    pthread_mutex_unlock(&vm->loop_lock);
    return 0;
}

static unsigned run_deferred(struct hvx_vm *vm)
{
    pthread_mutex_lock(&vm->loop_lock);
    struct deferred *d = vm->deferred;
    if (d) {
        vm->deferred = d->next;
        if (!vm->deferred)
            vm->deferred_end = &vm->deferred;
    }
    pthread_mutex_unlock(&vm->loop_lock);
    if (!d)
        return 0;
    test_lock(vm);
    d->cb(d->opaque);
    test_unlock(vm);
    free(d);
    return 1;
}

unsigned hvxtest_run(struct hvx_vm *vm)
{
    unsigned total = 0;
    for (;;) {
        unsigned n = run_deferred(vm) + test_io_run(vm) + (run_one_timer(vm) ? 1 : 0) + run_watches(vm);
        if (!n)
            return total;
        total += n;
        if (total > RUN_LIMIT)
            test_bug("hvxtest_run: %u callbacks and still not idle; does a callback re-arm itself for now?", total);
    }
}

void hvxtest_step_ns(struct hvx_vm *vm, uint64_t ns)
{
    uint64_t end = clock_now + ns;
    hvxtest_run(vm);
    for (uint64_t next; (next = hvxtest_next_deadline(vm)) <= end;) {
        if (next > clock_now)
            __atomic_store_n(&clock_now, next, __ATOMIC_RELAXED);
        hvxtest_run(vm);
    }
    __atomic_store_n(&clock_now, end, __ATOMIC_RELAXED);
    hvxtest_run(vm);
}

void hvxtest_stall_ns(struct hvx_vm *vm, uint64_t ns)
{
    __atomic_store_n(&clock_now, clock_now + ns, __ATOMIC_RELAXED);
    hvxtest_run(vm);
}

unsigned test_loop_leftovers(struct hvx_vm *vm, char *buf, size_t n)
{
    unsigned count = 0;
    for (struct hvx_timer *t = vm->timers; t; t = t->next, count++)
        test_note(buf, n, "a timer");
    for (struct hvx_watch *w = vm->watches; w; w = w->next, count++)
        test_note(buf, n, "a watch on descriptor %d", w->fd);
    return count;
}

void test_loop_done(struct hvx_vm *vm)
{
    while (vm->deferred) {
        struct deferred *d = vm->deferred;
        vm->deferred = d->next;
        free(d);
    }
}

void test_host_loop(struct hvx_host *h)
{
    h->clock_ns = hvxtest_now_ns;
    h->wall_clock_ns = host_wall_clock_ns;
    h->timer_new = host_timer_new;
    h->timer_set = host_timer_set;
    h->timer_del = host_timer_del;
    h->watch_new = host_watch_new;
    h->watch_set = host_watch_set;
    h->watch_del = host_watch_del;
    h->defer = host_defer;
}
