/* SPDX-License-Identifier: Apache-2.0
 *
 * file.h - what an image format reads and writes: a range of bytes that can
 * grow. The real one is a file or a block device (file_posix.c); tests and
 * the fuzzer use memory (file_mem.c).
 *
 * All operations are synchronous and may be called from any thread at once.
 * Asynchrony is the business of the front (blk.c): it hands `fd` to io_uring
 * where it can and otherwise calls these from a worker.
 *
 * Operations return 0 or -errno and transfer everything or fail. A read past
 * the end gives zeroes, because images may end in the middle of a cluster.
 */
#ifndef HVX_IMAGE_FILE_H
#define HVX_IMAGE_FILE_H

#include "core/image/sg.h"
#include <pthread.h>
#include <sys/types.h>

struct hvx_file;
struct hvx_file_ops {
    int (*preadv)(struct hvx_file *f, struct hvx_sg sg, uint64_t off, uint64_t bytes);
    int (*pwritev)(struct hvx_file *f, struct hvx_sg sg, uint64_t off, uint64_t bytes);
    int (*flush)(struct hvx_file *f);
    /* Give the space back; reads zeroes afterwards or fails. */
    int (*discard)(struct hvx_file *f, uint64_t off, uint64_t bytes);
    int (*write_zeroes)(struct hvx_file *f, uint64_t off, uint64_t bytes, bool unmap);
    int (*size)(struct hvx_file *f, uint64_t *out);
    int (*truncate)(struct hvx_file *f, uint64_t bytes);
    void (*close)(struct hvx_file *f);
};

struct hvx_file {
    const struct hvx_file_ops *ops;
    char *name;         /* for messages and for resolving backing names */
    int fd;             /* -1: not for io_uring */
    bool read_only;
    bool direct;        /* O_DIRECT: memory and offsets must be aligned */
    bool no_sync;       /* cache=unsafe: flush does nothing */
    bool is_device;     /* a block device: cannot grow */
    uint32_t mem_align; /* 1 unless direct */
    uint32_t io_align;
    dev_t dev; /* identity, for loop detection */
    ino_t ino;
};

#define HVX_FILE_WRITE 1u
#define HVX_FILE_DIRECT 2u
#define HVX_FILE_NO_LOCK 4u
#define HVX_FILE_NO_SYNC 8u
#define HVX_FILE_CREATE 16u /* make or empty it; fails when somebody has it open */

HVX_WUR int hvx_file_open(const char *path, unsigned flags, struct hvx_file **out, struct hvx_error *err);
/* An unnamed temporary file in $TMPDIR or /var/tmp. */
HVX_WUR int hvx_file_open_temp(unsigned flags, struct hvx_file **out, struct hvx_error *err);
/* Takes fd. Used by hvx_file_open and for descriptors that were passed in. */
HVX_WUR int hvx_file_from_fd(int fd, const char *name, unsigned flags, struct hvx_file **out, struct hvx_error *err);
void hvx_file_close(struct hvx_file *f);

/* Advisory lock, in the way QEMU does it, so that both respect each other:
 * see file_lock.c. */
HVX_WUR int hvx_file_lock(int fd, bool write, const char *name, struct hvx_error *err);

static inline int hvx_file_preadv(struct hvx_file *f, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    return f->ops->preadv(f, sg, off, bytes);
}
static inline int hvx_file_pwritev(struct hvx_file *f, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    return f->ops->pwritev(f, sg, off, bytes);
}
static inline int hvx_file_pread(struct hvx_file *f, void *buf, uint64_t bytes, uint64_t off)
{
    struct iovec v = {buf, bytes};
    return f->ops->preadv(f, hvx_sg_of(&v, 1), off, bytes);
}
static inline int hvx_file_pwrite(struct hvx_file *f, const void *buf, uint64_t bytes, uint64_t off)
{
    struct iovec v = {(void *)(uintptr_t)buf, bytes};
    return f->ops->pwritev(f, hvx_sg_of(&v, 1), off, bytes);
}
static inline int hvx_file_flush(struct hvx_file *f)
{
    return f->no_sync ? 0 : f->ops->flush(f);
}
static inline int hvx_file_size(struct hvx_file *f, uint64_t *out)
{
    return f->ops->size(f, out);
}
/* Zeroes by the cheapest way that works, explicit writes at worst. */
HVX_WUR int hvx_file_zero(struct hvx_file *f, uint64_t off, uint64_t bytes, bool unmap);

/* Can this go to the file as it is, or does O_DIRECT ask for a bounce buffer? */
bool hvx_file_aligned(const struct hvx_file *f, struct hvx_sg sg, uint64_t off, uint64_t bytes);

/* --- memory (file_mem.c): grows up to max_bytes, then -ENOSPC -------------- */
HVX_WUR int hvx_file_mem_new(const void *data, size_t bytes, size_t max_bytes, struct hvx_file **out);
/* The bytes, for a test to look at or to damage. */
uint8_t *hvx_file_mem_data(struct hvx_file *f, size_t *bytes);
/* The n-th write from now fails with `error`, and so do all later ones until
 * it is set to 0 (never). Partial effects of that write do not happen. */
void hvx_file_mem_fail_after(struct hvx_file *f, uint64_t n_writes, int error);

/* --- a bounded pool of aligned buffers ------------------------------------- */
/* Buffers are made on first use and kept; a taker waits when all are out, so
 * the number of buffers bounds memory and nothing allocates once warm. A
 * thread may hold one buffer of a pool at a time. */
struct hvx_bufpool {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    size_t bytes;
    unsigned max, made, n_free;
    void *free[16];
};
void hvx_bufpool_init(struct hvx_bufpool *p, size_t bytes, unsigned max);
void *hvx_bufpool_get(struct hvx_bufpool *p); /* NULL: out of memory */
void hvx_bufpool_put(struct hvx_bufpool *p, void *buf);
void hvx_bufpool_fini(struct hvx_bufpool *p);
#endif
