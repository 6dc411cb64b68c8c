/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/loop.h - the event loop of a process, over libevent.
 *
 * One thread runs the loop. The loop owns a lock (the VM lock of hvx/host.h):
 * every callback runs with it held. Functions marked "any thread" may be
 * called with or without the lock.
 */
#ifndef HVX_CORE_LOOP_H
#define HVX_CORE_LOOP_H

#include <hvx/base.h>

struct hvx_loop;
struct hvx_timer;
struct hvx_watch;
struct event_base;

HVX_WUR int hvx_loop_new(struct hvx_loop **out, struct hvx_error *err);
void hvx_loop_destroy(struct hvx_loop *l);
/* Run until hvx_loop_stop(); returns 0. */
int hvx_loop_run(struct hvx_loop *l);
void hvx_loop_stop(struct hvx_loop *l); /* any thread */
void hvx_loop_lock(struct hvx_loop *l);
void hvx_loop_unlock(struct hvx_loop *l);
struct event_base *hvx_loop_base(struct hvx_loop *l);

/* Run cb soon on the loop; any thread, allocates nothing after warm-up. */
int hvx_loop_post(struct hvx_loop *l, void (*cb)(void *opaque), void *opaque);
/* Forget posts of exactly this pair; VM lock held (so none is running, unless
 * the caller is it). */
void hvx_loop_unpost(struct hvx_loop *l, void (*cb)(void *opaque), void *opaque);
/* Run what was posted, once the loop's thread has ended. */
void hvx_loop_drain(struct hvx_loop *l);

int hvx_loop_timer_new(struct hvx_loop *l, void (*cb)(void *opaque), void *opaque, struct hvx_timer **out);
void hvx_timer_set(struct hvx_timer *t, uint64_t deadline_ns); /* CLOCK_MONOTONIC ns; ~0 disarms; any thread */
void hvx_timer_del(struct hvx_timer *t);

int hvx_loop_watch_new(struct hvx_loop *l, int fd, bool want_read, bool want_write,
                       void (*cb)(void *opaque, int fd, bool readable, bool writable), void *opaque,
                       struct hvx_watch **out);
void hvx_watch_set(struct hvx_watch *w, bool want_read, bool want_write);
void hvx_watch_del(struct hvx_watch *w);
#endif
