/* SPDX-License-Identifier: Apache-2.0
 *
 * file_mem.c - a file in memory, for tests and the fuzzer: no disk noise,
 * an exact limit on its size, and writes that fail on demand.
 */
#include "core/image/file.h"

#include <stdlib.h>

struct mem_file {
    struct hvx_file f;
    pthread_mutex_t lock;
    uint8_t *data;
    size_t bytes, max;
    uint64_t writes_left;
    int error;
};

static struct mem_file *mem_of(struct hvx_file *f)
{
    return (struct mem_file *)f;
}

static int mem_preadv(struct hvx_file *f, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    struct mem_file *m = mem_of(f);
    pthread_mutex_lock(&m->lock);
    uint64_t have = off < m->bytes ? m->bytes - off : 0;
    if (have > bytes)
        have = bytes;
    if (have)
        hvx_sg_fill(sg, m->data + off, have);
    hvx_sg_advance(&sg, have);
    hvx_sg_zero(sg, bytes - have);
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static int grow_locked(struct mem_file *m, uint64_t bytes)
{
    if (bytes > m->max)
        return -ENOSPC;
    if (bytes > m->bytes) {
        memset(m->data + m->bytes, 0, bytes - m->bytes);
        m->bytes = bytes;
    }
    return 0;
}

static int write_fault_locked(struct mem_file *m)
{
    if (!m->error)
        return 0;
    if (m->writes_left) {
        m->writes_left--;
        return 0;
    }
    return m->error;
}

static int mem_pwritev(struct hvx_file *f, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    struct mem_file *m = mem_of(f);
    if (off > UINT64_MAX - bytes)
        return -EFBIG;
    pthread_mutex_lock(&m->lock);
    int r = write_fault_locked(m);
    if (!r)
        r = grow_locked(m, off + bytes);
    if (!r && bytes)
        hvx_sg_take(sg, m->data + off, bytes);
    pthread_mutex_unlock(&m->lock);
    return r;
}

static int mem_flush(struct hvx_file *f)
{
    (void)f;
    return 0;
}

static int mem_zero(struct hvx_file *f, uint64_t off, uint64_t bytes, bool unmap)
{
    struct mem_file *m = mem_of(f);
    (void)unmap;
    pthread_mutex_lock(&m->lock);
    if (off < m->bytes)
        memset(m->data + off, 0, bytes < m->bytes - off ? bytes : m->bytes - off);
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static int mem_discard(struct hvx_file *f, uint64_t off, uint64_t bytes)
{
    return mem_zero(f, off, bytes, true);
}

static int mem_size(struct hvx_file *f, uint64_t *out)
{
    struct mem_file *m = mem_of(f);
    pthread_mutex_lock(&m->lock);
    *out = m->bytes;
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static int mem_truncate(struct hvx_file *f, uint64_t bytes)
{
    struct mem_file *m = mem_of(f);
    pthread_mutex_lock(&m->lock);
    int r = grow_locked(m, bytes);
    if (!r)
        m->bytes = bytes;
    pthread_mutex_unlock(&m->lock);
    return r;
}

static void mem_close(struct hvx_file *f)
{
    struct mem_file *m = mem_of(f);
    pthread_mutex_destroy(&m->lock);
    free(m->data);
    free(f->name);
    free(m);
}

static const struct hvx_file_ops mem_ops = {
    .preadv = mem_preadv, .pwritev = mem_pwritev, .flush = mem_flush, .discard = mem_discard, .write_zeroes = mem_zero,
    .size = mem_size, .truncate = mem_truncate, .close = mem_close,
};

int hvx_file_mem_new(const void *data, size_t bytes, size_t max_bytes, struct hvx_file **out)
{
    struct mem_file *m = calloc(1, sizeof(*m));
    if (!m)
        return -ENOMEM;
    if (max_bytes < bytes)
        max_bytes = bytes;
    m->data = malloc(max_bytes ? max_bytes : 1);
    m->f.name = strdup("memory");
    if (!m->data || !m->f.name) {
        free(m->data);
        free(m->f.name);
        free(m);
        return -ENOMEM;
    }
    if (bytes)
        memcpy(m->data, data, bytes);
    pthread_mutex_init(&m->lock, NULL);
    m->bytes = bytes;
    m->max = max_bytes;
    m->f.ops = &mem_ops;
    m->f.fd = -1;
    m->f.mem_align = m->f.io_align = 1;
    *out = &m->f;
    return 0;
}

uint8_t *hvx_file_mem_data(struct hvx_file *f, size_t *bytes)
{
    struct mem_file *m = mem_of(f);
    if (bytes)
        *bytes = m->bytes;
    return m->data;
}

void hvx_file_mem_fail_after(struct hvx_file *f, uint64_t n_writes, int error)
{
    struct mem_file *m = mem_of(f);
    pthread_mutex_lock(&m->lock);
    m->writes_left = n_writes;
    m->error = error;
    pthread_mutex_unlock(&m->lock);
}
