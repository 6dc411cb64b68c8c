/* SPDX-License-Identifier: Apache-2.0
 *
 * pc_buf.c - a growing block of bytes, little-endian, for tables and files.
 */
#include "pc.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void pc_buf_free(struct pc_buf *b)
{
    free(b->data);
    memset(b, 0, sizeof(*b));
}

static bool pc_buf_room(struct pc_buf *b, size_t n)
{
    if (b->failed)
        return false;
    if (n > b->cap - b->len) {
        size_t cap = b->cap ? b->cap : 256;
        while (cap - b->len < n)
            cap *= 2;
        uint8_t *data = realloc(b->data, cap);
        if (!data) {
            b->failed = true;
            return false;
        }
        b->data = data;
        b->cap = cap;
    }
    return true;
}

void pc_buf_bytes(struct pc_buf *b, const void *p, size_t n)
{
    if (n && pc_buf_room(b, n)) {
        memcpy(b->data + b->len, p, n);
        b->len += n;
    }
}

void pc_buf_zero(struct pc_buf *b, size_t n)
{
    if (n && pc_buf_room(b, n)) {
        memset(b->data + b->len, 0, n);
        b->len += n;
    }
}

void pc_buf_align(struct pc_buf *b, size_t align)
{
    pc_buf_zero(b, (align - b->len % align) % align);
}

void pc_buf_u8(struct pc_buf *b, uint8_t v) { pc_buf_bytes(b, &v, 1); }
void pc_buf_u16(struct pc_buf *b, uint16_t v) { pc_buf_bytes(b, &v, 2); }
void pc_buf_u32(struct pc_buf *b, uint32_t v) { pc_buf_bytes(b, &v, 4); }
void pc_buf_u64(struct pc_buf *b, uint64_t v) { pc_buf_bytes(b, &v, 8); }

void pc_buf_text(struct pc_buf *b, const char *s, size_t n, char pad)
{
    size_t i = 0;
    for (; i < n && s[i]; i++)
        pc_buf_u8(b, (uint8_t)s[i]);
    for (; i < n; i++)
        pc_buf_u8(b, (uint8_t)pad);
}

int pc_buf_file(struct pc_buf *b, const char *path, size_t max, const char *what, struct hvx_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return hvx_fail(err, -errno, "reading the %s %s: %s", what, path, strerror(errno));

    struct stat st;
    int rc = 0;
    if (fstat(fd, &st) < 0) {
        rc = hvx_fail(err, -errno, "reading the %s %s: %s", what, path, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        rc = hvx_fail(err, -EINVAL, "reading the %s %s: it is not a regular file", what, path);
    } else if (st.st_size == 0) {
        rc = hvx_fail(err, -EINVAL, "reading the %s %s: the file is empty", what, path);
    } else if ((uint64_t)st.st_size > max) {
        rc = hvx_fail(err, -EFBIG, "reading the %s %s: it has %lld bytes, at most %zu are possible", what, path,
                      (long long)st.st_size, max);
    } else if (!pc_buf_room(b, (size_t)st.st_size)) {
        rc = hvx_fail(err, -ENOMEM, "reading the %s %s: no memory for %lld bytes", what, path,
                      (long long)st.st_size);
    }
    size_t want = rc ? 0 : (size_t)st.st_size;
    while (want) {
        ssize_t got = read(fd, b->data + b->len, want);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            rc = hvx_fail(err, got ? -errno : -EIO, "reading the %s %s: %s", what, path,
                          got ? strerror(errno) : "the file became shorter while it was read");
            break;
        }
        b->len += (size_t)got;
        want -= (size_t)got;
    }
    close(fd);
    return rc;
}

int pc_region(struct pc *pc, enum hvx_space space, uint64_t addr, uint64_t n, uint32_t flags, const char *name,
              const struct hvx_region_ops *ops, void *opaque, struct hvx_error *err)
{
    if (pc->n_regions == PC_MAX_REGIONS)
        return hvx_fail(err, -ENOSPC, "pc: more than %u regions claimed", PC_MAX_REGIONS);
    int rc = pc->host->region_add(pc->vm, space, addr, n, flags, name, ops, opaque, &pc->regions[pc->n_regions], err);
    if (rc == 0)
        pc->n_regions++;
    return rc;
}
