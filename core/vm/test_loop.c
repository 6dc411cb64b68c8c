/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/test_loop.c - the event loop: order, threads, timers, descriptors.
 */
#include "core/vm/loop.h"

#include <stdarg.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static struct hvx_loop *loop_new(void)
{
    struct hvx_loop *l = NULL;
    struct hvx_error err;

    assert_int_equal(hvx_loop_new(&l, &err), 0);
    return l;
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static struct hvx_loop *the_loop;
static unsigned order[4096], n_order;

static void note(void *opaque)
{
    order[n_order++] = (unsigned)(uintptr_t)opaque;
}

static void stop(void *opaque)
{
    hvx_loop_stop(opaque);
}

static void posts_run_in_order_and_more_than_the_ring_holds(void **state)
{
    struct hvx_loop *l = loop_new();

    (void)state;
    n_order = 0;
    for (uintptr_t i = 0; i < 3000; i++)
        assert_int_equal(hvx_loop_post(l, note, (void *)i), 0);
    hvx_loop_post(l, stop, l);
    hvx_loop_run(l);
    assert_int_equal(n_order, 3000);
    for (unsigned i = 0; i < 3000; i++)
        assert_int_equal(order[i], i);
    hvx_loop_destroy(l);
}

static unsigned counter;

static void count(void *opaque)
{
    if (++counter == *(unsigned *)opaque)
        hvx_loop_stop(the_loop);
}

static void *poster(void *opaque)
{
    for (unsigned i = 0; i < 20000; i++)
        hvx_loop_post(the_loop, count, opaque);
    return NULL;
}

static void posts_from_many_threads_are_all_run(void **state)
{
    pthread_t t[4];
    unsigned all = 80000;

    (void)state;
    the_loop = loop_new();
    counter = 0;
    for (unsigned i = 0; i < 4; i++)
        pthread_create(&t[i], NULL, poster, &all);
    hvx_loop_run(the_loop);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(counter, all);
    hvx_loop_destroy(the_loop);
}

static void unposted_calls_do_not_run(void **state)
{
    struct hvx_loop *l = loop_new();

    (void)state;
    n_order = 0;
    hvx_loop_post(l, note, (void *)1);
    hvx_loop_post(l, note, (void *)2);
    hvx_loop_lock(l);
    hvx_loop_unpost(l, note, (void *)1);
    hvx_loop_unlock(l);
    hvx_loop_drain(l);
    assert_int_equal(n_order, 1);
    assert_int_equal(order[0], 2);
    hvx_loop_destroy(l);
}

static void timers_fire_by_deadline_and_never_early(void **state)
{
    static const unsigned delays_us[] = {3000, 1000, 2000, 500, 2500, 1500};
    struct hvx_timer *t[6], *last, *never;
    struct hvx_loop *l = loop_new();
    uint64_t start = now_ns();

    (void)state;
    n_order = 0;
    for (uintptr_t i = 0; i < 6; i++) {
        assert_int_equal(hvx_loop_timer_new(l, note, (void *)(uintptr_t)delays_us[i], &t[i]), 0);
        hvx_timer_set(t[i], start + delays_us[i] * 1000);
    }
    hvx_loop_timer_new(l, stop, l, &last);
    hvx_timer_set(last, start + 4000000);
    hvx_loop_timer_new(l, note, (void *)9999, &never);
    hvx_timer_set(never, start + 1000000);
    hvx_timer_set(never, UINT64_MAX);
    hvx_loop_run(l);
    assert_true(now_ns() - start >= 4000000);
    assert_int_equal(n_order, 6);
    for (unsigned i = 1; i < 6; i++)
        assert_true(order[i - 1] < order[i]);
    for (unsigned i = 0; i < 6; i++)
        hvx_timer_del(t[i]);
    hvx_timer_del(last);
    hvx_timer_del(never);
    hvx_loop_destroy(l);
}

struct tick {
    struct hvx_loop *l;
    struct hvx_timer *t;
    unsigned n;
};

static void again(void *opaque)
{
    struct tick *k = opaque;

    if (++k->n == 200)
        hvx_loop_stop(k->l);
    else
        hvx_timer_set(k->t, now_ns() + 10000);
}

static void a_timer_may_set_itself_again(void **state)
{
    struct tick k = {.l = loop_new()};

    (void)state;
    hvx_loop_timer_new(k.l, again, &k, &k.t);
    hvx_timer_set(k.t, 0); /* long past */
    hvx_loop_run(k.l);
    assert_int_equal(k.n, 200);
    hvx_timer_del(k.t);
    hvx_loop_destroy(k.l);
}

static void *run_loop(void *opaque)
{
    hvx_loop_run(opaque);
    return NULL;
}

struct racer {
    struct hvx_loop *l;
    struct hvx_timer *t;
    sem_t fired;
    uint64_t seed;
    bool lost, early;
    uint64_t deadline_ns;
};

static void racer_fired(void *opaque)
{
    struct racer *r = opaque;

    if (now_ns() < r->deadline_ns)
        r->early = true;
    sem_post(&r->fired);
}

/* Sets, moves earlier or later, waits; again. */
static void *race(void *opaque)
{
    struct racer *r = opaque;

    for (unsigned i = 0; i < 1500 && !r->lost; i++) {
        struct timespec limit;
        r->seed = r->seed * 6364136223846793005u + 1442695040888963407u;
        hvx_loop_lock(r->l); /* as devices do; also keeps deadline_ns and the timer together */
        if (i & 1)
            hvx_timer_set(r->t, now_ns() + (r->seed >> 40) % 3000000);
        r->deadline_ns = now_ns() + (r->seed >> 20) % 300000;
        hvx_timer_set(r->t, r->deadline_ns);
        hvx_loop_unlock(r->l);
        clock_gettime(CLOCK_REALTIME, &limit);
        limit.tv_sec += 30;
        r->lost = sem_timedwait(&r->fired, &limit) < 0;
    }
    return NULL;
}

static void no_timer_is_lost_when_many_threads_set_them(void **state)
{
    struct racer r[6];
    pthread_t t[6], loop_thread;
    struct hvx_loop *l = loop_new();

    (void)state;
    pthread_create(&loop_thread, NULL, run_loop, l);
    for (unsigned i = 0; i < 6; i++) {
        memset(&r[i], 0, sizeof(r[i]));
        r[i].l = l;
        r[i].seed = i;
        sem_init(&r[i].fired, 0, 0);
        hvx_loop_timer_new(l, racer_fired, &r[i], &r[i].t);
        pthread_create(&t[i], NULL, race, &r[i]);
    }
    for (unsigned i = 0; i < 6; i++) {
        pthread_join(t[i], NULL);
        assert_false(r[i].lost);
        assert_false(r[i].early);
    }
    hvx_loop_stop(l);
    pthread_join(loop_thread, NULL);
    for (unsigned i = 0; i < 6; i++)
        hvx_timer_del(r[i].t);
    hvx_loop_destroy(l);
}

struct pipe_test {
    struct hvx_loop *l;
    struct hvx_watch *w;
    char got[64];
    size_t n;
};

static void readable(void *opaque, int fd, bool r, bool w)
{
    struct pipe_test *p = opaque;
    ssize_t n;

    assert_true(r);
    assert_false(w);
    n = read(fd, p->got + p->n, sizeof(p->got) - p->n);
    assert_true(n > 0);
    p->n += (size_t)n;
    if (p->n == 10) {
        hvx_watch_del(p->w); /* from inside its own callback */
        hvx_loop_stop(p->l);
    }
}

static void *writer(void *opaque)
{
    int fd = *(int *)opaque;

    for (unsigned i = 0; i < 10; i++)
        if (write(fd, "x", 1) != 1)
            break;
    return NULL;
}

static void a_watch_reports_and_can_be_deleted_inside(void **state)
{
    struct pipe_test p = {.l = loop_new()};
    pthread_t t;
    int fd[2];

    (void)state;
    assert_int_equal(pipe(fd), 0);
    assert_int_equal(hvx_loop_watch_new(p.l, fd[0], true, false, readable, &p, &p.w), 0);
    pthread_create(&t, NULL, writer, &fd[1]);
    hvx_loop_run(p.l);
    pthread_join(t, NULL);
    assert_int_equal(p.n, 10);
    close(fd[0]);
    close(fd[1]);
    hvx_loop_destroy(p.l);
}

/* Deleting under the lock while the loop is about to fire must neither
 * deadlock nor call back: the loop thread spins on a readable pipe. */
static _Atomic(bool) deleted;

static void must_live(void *opaque, int fd, bool r, bool w)
{
    (void)opaque, (void)fd, (void)r, (void)w;
    assert_false(deleted);
}

static void a_watch_deleted_by_another_thread_is_silent(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 50; i++) {
        struct hvx_loop *l = loop_new();
        struct hvx_watch *w;
        pthread_t t;
        int fd[2];
        assert_int_equal(pipe(fd), 0);
        assert_int_equal(write(fd[1], "x", 1), 1);
        deleted = false;
        hvx_loop_watch_new(l, fd[0], true, false, must_live, NULL, &w);
        pthread_create(&t, NULL, run_loop, l);
        hvx_loop_lock(l);
        hvx_watch_del(w);
        deleted = true;
        hvx_loop_unlock(l);
        hvx_loop_stop(l);
        pthread_join(t, NULL);
        close(fd[0]);
        close(fd[1]);
        hvx_loop_destroy(l);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(posts_run_in_order_and_more_than_the_ring_holds),
        cmocka_unit_test(posts_from_many_threads_are_all_run),
        cmocka_unit_test(unposted_calls_do_not_run),
        cmocka_unit_test(timers_fire_by_deadline_and_never_early),
        cmocka_unit_test(a_timer_may_set_itself_again),
        cmocka_unit_test(no_timer_is_lost_when_many_threads_set_them),
        cmocka_unit_test(a_watch_reports_and_can_be_deleted_inside),
        cmocka_unit_test(a_watch_deleted_by_another_thread_is_silent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
