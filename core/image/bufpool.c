/* SPDX-License-Identifier: Apache-2.0
 *
 * bufpool.c - a bounded pool of page-aligned buffers; see file.h.
 */
#include "core/image/file.h"

#include <assert.h>
#include <stdlib.h>

void hvx_bufpool_init(struct hvx_bufpool *p, size_t bytes, unsigned max)
{
    memset(p, 0, sizeof(*p));
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->cond, NULL);
    p->bytes = (bytes + 4095) & ~(size_t)4095; /* O_DIRECT wants whole blocks */
    p->max = max < 16 ? max : 16;
}

void *hvx_bufpool_get(struct hvx_bufpool *p)
{
    void *buf = NULL;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        if (p->n_free) {
            buf = p->free[--p->n_free];
            break;
        }
        if (p->made < p->max) {
            p->made++;
            buf = aligned_alloc(4096, p->bytes);
            if (buf)
                break;
            p->made--;
            if (!p->made)
                break; /* nobody will ever return one */
        }
        pthread_cond_wait(&p->cond, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return buf;
}

void hvx_bufpool_put(struct hvx_bufpool *p, void *buf)
{
    if (!buf)
        return;
    pthread_mutex_lock(&p->lock);
    p->free[p->n_free++] = buf;
    pthread_cond_signal(&p->cond);
    pthread_mutex_unlock(&p->lock);
}

void hvx_bufpool_fini(struct hvx_bufpool *p)
{
    assert(p->n_free == p->made);
    while (p->n_free)
        free(p->free[--p->n_free]);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->cond);
}
