/* SPDX-License-Identifier: Apache-2.0
 *
 * workers.c - see workers.h.
 */
#define _GNU_SOURCE
#include "core/image/workers.h"
#include "core/vm/confine.h"

#include <signal.h>
#include <string.h>

#define STACK_BYTES (512u * 1024)

static void *worker_main(void *arg)
{
    struct hvx_workers *w = arg;
    pthread_setname_np(pthread_self(), "hvx-disk");
    hvx_confine_thread();
    pthread_mutex_lock(&w->lock);
    for (;;) {
        while (!w->head && !w->stopping) {
            w->n_idle++;
            pthread_cond_wait(&w->wake, &w->lock);
            w->n_idle--;
        }
        struct hvx_job *job = w->head;
        if (!job)
            break;
        w->head = job->next;
        if (!w->head)
            w->tail = &w->head;
        w->n_queued--;
        pthread_mutex_unlock(&w->lock);
        job->run(job);
        pthread_mutex_lock(&w->lock);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* Signals belong to other threads: engines use them to interrupt vCPUs. */
static int spawn_locked(struct hvx_workers *w)
{
    pthread_attr_t attr;
    sigset_t all, old;
    if (w->n_threads == w->max)
        return -EAGAIN;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    sigfillset(&all);
    sigdelset(&all, SIGSYS); /* or a violation of the confinement has no message */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&w->threads[w->n_threads], &attr, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (!r)
        w->n_threads++;
    return -r;
}

int hvx_workers_init(struct hvx_workers *w, unsigned max)
{
    memset(w, 0, sizeof(*w));
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->wake, NULL);
    w->tail = &w->head;
    w->max = max < HVX_WORKERS_MAX ? max : HVX_WORKERS_MAX;
    pthread_mutex_lock(&w->lock);
    int r = spawn_locked(w); /* one at once: later failures to get more then only cost speed */
    pthread_mutex_unlock(&w->lock);
    return r;
}

void hvx_workers_submit(struct hvx_workers *w, struct hvx_job *job)
{
    job->next = NULL;
    pthread_mutex_lock(&w->lock);
    *w->tail = job;
    w->tail = &job->next;
    w->n_queued++;
    if (w->n_queued > w->n_idle)
        (void)spawn_locked(w);
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
}

void hvx_workers_fini(struct hvx_workers *w)
{
    pthread_mutex_lock(&w->lock);
    w->stopping = true;
    pthread_cond_broadcast(&w->wake);
    unsigned n = w->n_threads;
    pthread_mutex_unlock(&w->lock);
    for (unsigned i = 0; i < n; i++)
        pthread_join(w->threads[i], NULL);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->wake);
}
