/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/loop.c - the event loop.
 *
 * libevent only waits for descriptors here. Posting goes through a ring and
 * an eventfd, timers through a heap and one timerfd, because both must be
 * usable from vCPU threads at the cost of a short lock (and mostly no system
 * call: the timerfd is only moved when a deadline becomes the earliest).
 *
 * Locks: `lock` is the VM lock; `mutex` guards ring and heap and is taken
 * inside it.
 */
#include "core/vm/loop.h"

#include <assert.h>
#include <event2/event.h>
#include <event2/thread.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define POST_INITIAL 1024u
#define NEVER UINT64_MAX

struct post {
    void (*cb)(void *opaque);
    void *opaque;
};

struct hvx_timer {
    struct hvx_loop *loop;
    void (*cb)(void *opaque);
    void *opaque;
    uint64_t deadline_ns;
    size_t slot; /* place in the heap, SIZE_MAX when not armed */
};

struct hvx_watch {
    struct hvx_loop *loop;
    void (*cb)(void *opaque, int fd, bool readable, bool writable);
    void *opaque;
    int fd;
    bool want_read, want_write, dead;
    struct event *read_event, *write_event;
};

struct hvx_loop {
    pthread_mutex_t lock;
    pthread_mutex_t mutex;
    struct event_base *base;
    struct event *post_event, *timer_event;
    int post_fd, timer_fd;
    atomic_bool stop;
    struct post *ring;
    size_t ring_size, ring_head, ring_n; /* ring_size is a power of two */
    struct hvx_timer **heap;
    size_t heap_n, heap_size, n_timers;
    uint64_t armed_ns; /* what timer_fd is set to */
};

/* --- posting ---------------------------------------------------------------- */

static int ring_grow_locked(struct hvx_loop *l)
{
    size_t size = l->ring_size ? l->ring_size * 2 : POST_INITIAL;
    struct post *ring = malloc(size * sizeof(*ring));

    if (!ring)
        return -ENOMEM;
    for (size_t i = 0; i < l->ring_n; i++)
        ring[i] = l->ring[(l->ring_head + i) & (l->ring_size - 1)];
    free(l->ring);
    l->ring = ring;
    l->ring_size = size;
    l->ring_head = 0;
    return 0;
}

static void wake(int fd)
{
    uint64_t one = 1;
    ssize_t n = write(fd, &one, sizeof(one));

    (void)n; /* EAGAIN: the counter is full, so the loop is awake anyway */
}

int hvx_loop_post(struct hvx_loop *l, void (*cb)(void *opaque), void *opaque)
{
    bool first;

    pthread_mutex_lock(&l->mutex);
    if (l->ring_n == l->ring_size && ring_grow_locked(l) < 0) {
        pthread_mutex_unlock(&l->mutex);
        return -ENOMEM;
    }
    l->ring[(l->ring_head + l->ring_n) & (l->ring_size - 1)] = (struct post){cb, opaque};
    first = l->ring_n++ == 0;
    pthread_mutex_unlock(&l->mutex);
    if (first)
        wake(l->post_fd);
    return 0;
}

static void no_post(void *opaque)
{
    (void)opaque;
}

void hvx_loop_unpost(struct hvx_loop *l, void (*cb)(void *opaque), void *opaque)
{
    pthread_mutex_lock(&l->mutex);
    for (size_t i = 0; i < l->ring_n; i++) {
        struct post *p = &l->ring[(l->ring_head + i) & (l->ring_size - 1)];
        if (p->cb == cb && p->opaque == opaque)
            p->cb = no_post;
    }
    pthread_mutex_unlock(&l->mutex);
}

static void run_one_post(struct hvx_loop *l)
{
    struct post p;

    pthread_mutex_lock(&l->lock);
    pthread_mutex_lock(&l->mutex);
    p = l->ring[l->ring_head];
    l->ring_head = (l->ring_head + 1) & (l->ring_size - 1);
    l->ring_n--;
    pthread_mutex_unlock(&l->mutex);
    p.cb(p.opaque);
    pthread_mutex_unlock(&l->lock);
}

void hvx_loop_drain(struct hvx_loop *l)
{
    for (;;) {
        bool any;
        pthread_mutex_lock(&l->mutex);
        any = l->ring_n > 0;
        pthread_mutex_unlock(&l->mutex);
        if (!any)
            return;
        run_one_post(l);
    }
}

static void run_posts(evutil_socket_t fd, short what, void *arg)
{
    struct hvx_loop *l = arg;
    uint64_t count;
    size_t budget;
    ssize_t n = read(fd, &count, sizeof(count));

    (void)n;
    (void)what;
    pthread_mutex_lock(&l->mutex);
    budget = l->ring_n; /* what is posted meanwhile waits for its turn: no starvation */
    pthread_mutex_unlock(&l->mutex);
    while (budget-- > 0 && !atomic_load(&l->stop))
        run_one_post(l);
    pthread_mutex_lock(&l->mutex);
    if (l->ring_n)
        wake(l->post_fd);
    pthread_mutex_unlock(&l->mutex);
}

/* --- timers: a binary heap by deadline ---------------------------------------- */

static void heap_place(struct hvx_loop *l, size_t i, struct hvx_timer *t)
{
    l->heap[i] = t;
    t->slot = i;
}

static void heap_up(struct hvx_loop *l, size_t i, struct hvx_timer *t)
{
    while (i > 0 && l->heap[(i - 1) / 2]->deadline_ns > t->deadline_ns) {
        heap_place(l, i, l->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    heap_place(l, i, t);
}

static void heap_down(struct hvx_loop *l, size_t i, struct hvx_timer *t)
{
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= l->heap_n)
            break;
        if (child + 1 < l->heap_n && l->heap[child + 1]->deadline_ns < l->heap[child]->deadline_ns)
            child++;
        if (l->heap[child]->deadline_ns >= t->deadline_ns)
            break;
        heap_place(l, i, l->heap[child]);
        i = child;
    }
    heap_place(l, i, t);
}

static void heap_remove(struct hvx_loop *l, struct hvx_timer *t)
{
    size_t i = t->slot;
    struct hvx_timer *last;

    if (i == SIZE_MAX)
        return;
    t->slot = SIZE_MAX;
    last = l->heap[--l->heap_n];
    if (last == t)
        return;
    if (i > 0 && l->heap[(i - 1) / 2]->deadline_ns > last->deadline_ns)
        heap_up(l, i, last);
    else
        heap_down(l, i, last);
}

/* A deadline that moved later leaves the timerfd alone: the early wake-up is
 * cheaper than a system call for every re-arm. */
static void arm_locked(struct hvx_loop *l)
{
    uint64_t first = l->heap_n ? l->heap[0]->deadline_ns : NEVER;
    struct itimerspec its = {{0, 0}, {0, 0}};

    if (first >= l->armed_ns)
        return;
    l->armed_ns = first;
    its.it_value.tv_sec = (time_t)(first / 1000000000u);
    its.it_value.tv_nsec = (long)(first % 1000000000u);
    if (!its.it_value.tv_sec && !its.it_value.tv_nsec)
        its.it_value.tv_nsec = 1; /* zero would disarm */
    timerfd_settime(l->timer_fd, TFD_TIMER_ABSTIME, &its, NULL);
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void run_timers(evutil_socket_t fd, short what, void *arg)
{
    struct hvx_loop *l = arg;
    uint64_t count, now = now_ns();
    ssize_t n = read(fd, &count, sizeof(count));

    (void)n;
    (void)what;
    pthread_mutex_lock(&l->mutex);
    l->armed_ns = NEVER;
    pthread_mutex_unlock(&l->mutex);
    while (!atomic_load(&l->stop)) {
        struct hvx_timer *t = NULL;
        void (*cb)(void *) = NULL;
        void *opaque = NULL;
        /* The VM lock comes first: a timer that its owner deletes under the
         * lock can then not be between heap and callback. */
        pthread_mutex_lock(&l->lock);
        pthread_mutex_lock(&l->mutex);
        if (l->heap_n && l->heap[0]->deadline_ns <= now) {
            t = l->heap[0];
            cb = t->cb;
            opaque = t->opaque;
            heap_remove(l, t);
        } else {
            arm_locked(l);
        }
        pthread_mutex_unlock(&l->mutex);
        if (cb)
            cb(opaque);
        pthread_mutex_unlock(&l->lock);
        if (!cb)
            break;
    }
}

int hvx_loop_timer_new(struct hvx_loop *l, void (*cb)(void *opaque), void *opaque, struct hvx_timer **out)
{
    struct hvx_timer *t = calloc(1, sizeof(*t));

    if (!t)
        return -ENOMEM;
    t->loop = l;
    t->cb = cb;
    t->opaque = opaque;
    t->slot = SIZE_MAX;
    pthread_mutex_lock(&l->mutex);
    if (l->n_timers == l->heap_size) { /* room for all timers, so that setting one cannot fail */
        size_t size = l->heap_size ? l->heap_size * 2 : 32;
        struct hvx_timer **heap = realloc(l->heap, size * sizeof(*heap));
        if (!heap) {
            pthread_mutex_unlock(&l->mutex);
            free(t);
            return -ENOMEM;
        }
        l->heap = heap;
        l->heap_size = size;
    }
    l->n_timers++;
    pthread_mutex_unlock(&l->mutex);
    *out = t;
    return 0;
}

void hvx_timer_set(struct hvx_timer *t, uint64_t deadline_ns)
{
    struct hvx_loop *l = t->loop;

    pthread_mutex_lock(&l->mutex);
    heap_remove(l, t);
    if (deadline_ns != NEVER) {
        t->deadline_ns = deadline_ns;
        heap_up(l, l->heap_n++, t);
        arm_locked(l);
    }
    pthread_mutex_unlock(&l->mutex);
}

void hvx_timer_del(struct hvx_timer *t)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->loop->mutex);
    heap_remove(t->loop, t);
    t->loop->n_timers--;
    pthread_mutex_unlock(&t->loop->mutex);
    free(t);
}

/* --- descriptors ---------------------------------------------------------------- */

static void watch_fire(evutil_socket_t fd, short what, void *arg)
{
    struct hvx_watch *w = arg;
    struct hvx_loop *l = w->loop;

    pthread_mutex_lock(&l->lock);
    /* Between libevent's decision and our lock the owner may have changed its mind. */
    if (!w->dead && (((what & EV_READ) && w->want_read) || ((what & EV_WRITE) && w->want_write)))
        w->cb(w->opaque, (int)fd, (what & EV_READ) != 0, (what & EV_WRITE) != 0);
    pthread_mutex_unlock(&l->lock);
}

int hvx_loop_watch_new(struct hvx_loop *l, int fd, bool want_read, bool want_write,
                       void (*cb)(void *opaque, int fd, bool readable, bool writable), void *opaque,
                       struct hvx_watch **out)
{
    struct hvx_watch *w = calloc(1, sizeof(*w));

    if (!w)
        return -ENOMEM;
    w->loop = l;
    w->cb = cb;
    w->opaque = opaque;
    w->fd = fd;
    w->read_event = event_new(l->base, fd, EV_READ | EV_PERSIST, watch_fire, w);
    w->write_event = event_new(l->base, fd, EV_WRITE | EV_PERSIST, watch_fire, w);
    if (!w->read_event || !w->write_event) {
        if (w->read_event)
            event_free(w->read_event);
        if (w->write_event)
            event_free(w->write_event);
        free(w);
        return -ENOMEM;
    }
    hvx_watch_set(w, want_read, want_write);
    *out = w;
    return 0;
}

void hvx_watch_set(struct hvx_watch *w, bool want_read, bool want_write)
{
    /* noblock: the plain form waits for a running callback, which may be
     * waiting for the VM lock that our caller holds. */
    if (want_read != w->want_read) {
        w->want_read = want_read;
        if (want_read)
            event_add(w->read_event, NULL);
        else
            event_del_noblock(w->read_event);
    }
    if (want_write != w->want_write) {
        w->want_write = want_write;
        if (want_write)
            event_add(w->write_event, NULL);
        else
            event_del_noblock(w->write_event);
    }
}

static void watch_free(void *opaque)
{
    struct hvx_watch *w = opaque;

    event_free(w->read_event);
    event_free(w->write_event);
    free(w);
}

void hvx_watch_del(struct hvx_watch *w)
{
    if (!w)
        return;
    hvx_watch_set(w, false, false);
    w->dead = true;
    /* The loop thread may be about to call watch_fire: it frees. */
    if (hvx_loop_post(w->loop, watch_free, w) < 0)
        return; /* out of memory: leaking is the safe answer */
}

/* --- the loop -------------------------------------------------------------------- */

struct event_base *hvx_loop_base(struct hvx_loop *l)
{
    return l->base;
}

void hvx_loop_lock(struct hvx_loop *l)
{
    pthread_mutex_lock(&l->lock);
}

void hvx_loop_unlock(struct hvx_loop *l)
{
    pthread_mutex_unlock(&l->lock);
}

int hvx_loop_run(struct hvx_loop *l)
{
    while (!atomic_load(&l->stop))
        if (event_base_loop(l->base, EVLOOP_ONCE | EVLOOP_NO_EXIT_ON_EMPTY) < 0)
            return -EIO;
    atomic_store(&l->stop, false);
    return 0;
}

void hvx_loop_stop(struct hvx_loop *l)
{
    atomic_store(&l->stop, true);
    wake(l->post_fd);
}

static struct event *always(struct hvx_loop *l, int fd, event_callback_fn cb)
{
    struct event *e = fd < 0 ? NULL : event_new(l->base, fd, EV_READ | EV_PERSIST, cb, l);

    if (e && event_add(e, NULL) < 0) {
        event_free(e);
        e = NULL;
    }
    return e;
}

int hvx_loop_new(struct hvx_loop **out, struct hvx_error *err)
{
    struct hvx_loop *l = calloc(1, sizeof(*l));
    pthread_mutexattr_t attr;

    if (!l || evthread_use_pthreads() < 0) {
        free(l);
        return hvx_fail(err, -ENOMEM, "event loop: out of memory");
    }
    pthread_mutexattr_init(&attr);
    /* Spins a little before it sleeps: the lock is held for well under a microsecond. */
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&l->lock, &attr);
    pthread_mutex_init(&l->mutex, &attr);
    pthread_mutexattr_destroy(&attr);
    l->armed_ns = NEVER;
    l->post_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    l->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    l->base = event_base_new();
    if (l->base) {
        l->post_event = always(l, l->post_fd, run_posts);
        l->timer_event = always(l, l->timer_fd, run_timers);
    }
    if (!l->post_event || !l->timer_event || ring_grow_locked(l) < 0) {
        hvx_loop_destroy(l);
        return hvx_fail(err, -ENOMEM, "event loop: cannot get descriptors or memory (raise `ulimit -n`?)");
    }
    *out = l;
    return 0;
}

void hvx_loop_destroy(struct hvx_loop *l)
{
    if (!l)
        return;
    /* Deleted watches whose turn has not come are still in the ring. */
    for (; l->ring_n; l->ring_n--, l->ring_head = (l->ring_head + 1) & (l->ring_size - 1))
        if (l->ring[l->ring_head].cb == watch_free)
            watch_free(l->ring[l->ring_head].opaque);
    if (l->post_event)
        event_free(l->post_event);
    if (l->timer_event)
        event_free(l->timer_event);
    if (l->base)
        event_base_free(l->base);
    if (l->post_fd >= 0)
        close(l->post_fd);
    if (l->timer_fd >= 0)
        close(l->timer_fd);
    free(l->ring);
    free(l->heap);
    pthread_mutex_destroy(&l->lock);
    pthread_mutex_destroy(&l->mutex);
    free(l);
}
