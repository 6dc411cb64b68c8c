/* SPDX-License-Identifier: Apache-2.0
 *
 * front.h - what blk.c (requests) and blk_open.c (life) share.
 */
#ifndef HVX_IMAGE_FRONT_H
#define HVX_IMAGE_FRONT_H

#include "core/image/blk.h"
#include "core/image/image.h"
#include "core/image/workers.h"

#include <liburing.h>

#define POOL 256u       /* requests in progress; more wait in line */
#define MAX_SEGS 16u
#define MAX_IOV 64u     /* scratch for requests that are cut into pieces */
#define RING_ENTRIES 256u
#define N_WORKERS 8u

struct io {
    struct hvx_job job; /* first: a job is turned back into its io by a cast */
    struct hvx_blk *b;
    struct hvx_blk_req *req;
    struct io *next, *prev; /* free list, in flight, or waiting */
    struct io *next_done;
    uint32_t op;
    bool exclusive, in_line;
    uint64_t from, to; /* in units of whole clusters; empty for a flush */
    unsigned pending;  /* transfers in the ring */
    int result;
    bool redo; /* a transfer came up short: a worker does it over */
    struct hvx_seg segs[MAX_SEGS];
    struct iovec iov[MAX_IOV];
};

struct io_list {
    struct io *head, *tail;
    unsigned n;
};

struct counters {
    uint64_t reads, writes, flushes, discards, zeroes, errors;
    uint64_t read_bytes, write_bytes;
    uint64_t by_ring, by_worker, waited;
};

struct hvx_blk {
    struct hvx_loop *loop;
    struct hvx_image *img;
    struct hvx_blk_info info;
    bool unsafe, ring_ok;
    bool temporary; /* snapshot=on: img is an overlay that goes away */
    struct io_uring ring;
    int efd;
    struct hvx_watch *watch;
    struct hvx_workers workers;
    struct io *pool;
    struct io_list idle, active, waiting;
    unsigned n_exclusive;
    struct hvx_blk_req *overflow, **overflow_tail; /* linked through core[0] */
    bool restarting;
    pthread_mutex_t done_lock;
    struct io *done, **done_tail;
    struct counters count;
};

/* Take what the ring and the workers have finished, and complete it. */
void hvx_blk_reap(struct hvx_blk *b);
void hvx_blk_pool_add(struct hvx_blk *b, struct io *io); /* a new, idle one */
#endif
