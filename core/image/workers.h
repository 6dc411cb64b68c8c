/* SPDX-License-Identifier: Apache-2.0
 *
 * workers.h - a few threads that run blocking jobs, in the order given.
 * Threads are made when there is work for them, up to a cap, and stay.
 */
#ifndef HVX_IMAGE_WORKERS_H
#define HVX_IMAGE_WORKERS_H

#include <hvx/base.h>
#include <pthread.h>

/* Embedded in whatever is to be worked on. */
struct hvx_job {
    struct hvx_job *next;
    void (*run)(struct hvx_job *job); /* on a worker; the job may be reused once it has told its owner */
};

#define HVX_WORKERS_MAX 16u
struct hvx_workers {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct hvx_job *head, **tail;
    unsigned n_threads, n_idle, n_queued, max;
    bool stopping;
    pthread_t threads[HVX_WORKERS_MAX];
};

HVX_WUR int hvx_workers_init(struct hvx_workers *w, unsigned max);
void hvx_workers_submit(struct hvx_workers *w, struct hvx_job *job);
/* Runs what is queued, then ends the threads. */
void hvx_workers_fini(struct hvx_workers *w);
#endif
