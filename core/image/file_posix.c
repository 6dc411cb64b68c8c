/* SPDX-License-Identifier: Apache-2.0
 *
 * file_posix.c - images in files and on block devices.
 *
 * With O_DIRECT the kernel wants aligned memory, offsets and lengths. What
 * is not aligned goes through a bounce buffer; a write that covers part of a
 * block reads the block first, under rmw_lock, because two neighbours in one
 * block would otherwise undo each other.
 */
#define _GNU_SOURCE
#include "core/image/file.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define SLICE_IOV 64u
#define BOUNCE_BYTES (256u * 1024)

struct posix_file {
    struct hvx_file f;
    struct hvx_bufpool bounce; /* direct only */
    pthread_mutex_t rmw_lock;
};

static struct posix_file *posix_of(struct hvx_file *f)
{
    return (struct posix_file *)f;
}

/* One transfer of up to SLICE_IOV pieces; returns bytes or -errno. */
static ssize_t transfer(int fd, bool write, const struct iovec *v, unsigned n, uint64_t off)
{
    ssize_t r;
    do {
        r = write ? pwritev(fd, v, (int)n, (off_t)off) : preadv(fd, v, (int)n, (off_t)off);
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : r;
}

static int transfer_all(int fd, bool write, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    struct iovec v[SLICE_IOV];
    while (bytes) {
        uint64_t covered;
        unsigned n = hvx_sg_slice(sg, bytes < INT_MAX / 2 ? bytes : INT_MAX / 2, v, SLICE_IOV, &covered);
        ssize_t r = transfer(fd, write, v, n, off);
        if (r < 0)
            return (int)r;
        if (r == 0) {
            if (write)
                return -EIO;
            hvx_sg_zero(sg, bytes); /* past the end of the file */
            return 0;
        }
        hvx_sg_advance(&sg, (uint64_t)r);
        off += (uint64_t)r;
        bytes -= (uint64_t)r;
    }
    return 0;
}

bool hvx_file_aligned(const struct hvx_file *f, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    if (!f->direct)
        return true;
    if ((off | bytes) & (f->io_align - 1))
        return false;
    while (sg.n && bytes) {
        size_t len = sg.iov->iov_len - sg.skip;
        uintptr_t p = (uintptr_t)sg.iov->iov_base + sg.skip;
        if (len > bytes)
            len = bytes;
        if ((p & (f->mem_align - 1)) || (len & (f->io_align - 1)))
            return false;
        bytes -= len;
        sg.iov++;
        sg.n--;
        sg.skip = 0;
    }
    return true;
}

static int bounce_read(struct posix_file *p, void *buf, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    uint64_t mask = p->f.io_align - 1;
    while (bytes) {
        uint64_t start = off & ~mask, skip = off - start;
        uint64_t span = (skip + bytes + mask) & ~mask;
        if (span > BOUNCE_BYTES)
            span = BOUNCE_BYTES;
        uint64_t len = span - skip < bytes ? span - skip : bytes;
        struct iovec v = {buf, span};
        int r = transfer_all(p->f.fd, false, hvx_sg_of(&v, 1), start, span);
        if (r)
            return r;
        hvx_sg_fill(sg, (uint8_t *)buf + skip, len);
        hvx_sg_advance(&sg, len);
        off += len;
        bytes -= len;
    }
    return 0;
}

static int bounce_write(struct posix_file *p, uint8_t *buf, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    uint64_t mask = p->f.io_align - 1;
    while (bytes) {
        uint64_t start = off & ~mask, skip = off - start;
        uint64_t span = (skip + bytes + mask) & ~mask;
        if (span > BOUNCE_BYTES)
            span = BOUNCE_BYTES;
        uint64_t len = span - skip < bytes ? span - skip : bytes;
        bool partial = skip || len < span;
        struct iovec v = {buf, span};
        int r = 0;
        if (partial) {
            pthread_mutex_lock(&p->rmw_lock);
            r = transfer_all(p->f.fd, false, hvx_sg_of(&v, 1), start, span);
        }
        hvx_sg_take(sg, buf + skip, len);
        if (!r)
            r = transfer_all(p->f.fd, true, hvx_sg_of(&v, 1), start, span);
        if (partial)
            pthread_mutex_unlock(&p->rmw_lock);
        if (r)
            return r;
        hvx_sg_advance(&sg, len);
        off += len;
        bytes -= len;
    }
    return 0;
}

static int posix_rw(struct hvx_file *f, bool write, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    struct posix_file *p = posix_of(f);
    if (off > INT64_MAX - bytes)
        return -EIO;
    if (hvx_file_aligned(f, sg, off, bytes))
        return transfer_all(f->fd, write, sg, off, bytes);
    uint8_t *buf = hvx_bufpool_get(&p->bounce);
    if (!buf)
        return -ENOMEM;
    int r = write ? bounce_write(p, buf, sg, off, bytes) : bounce_read(p, buf, sg, off, bytes);
    hvx_bufpool_put(&p->bounce, buf);
    return r;
}

static int posix_preadv(struct hvx_file *f, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    return posix_rw(f, false, sg, off, bytes);
}

static int posix_pwritev(struct hvx_file *f, struct hvx_sg sg, uint64_t off, uint64_t bytes)
{
    return f->read_only ? -EROFS : posix_rw(f, true, sg, off, bytes);
}

static int posix_flush(struct hvx_file *f)
{
    return fdatasync(f->fd) ? -errno : 0;
}

static int do_fallocate(struct hvx_file *f, int mode, uint64_t off, uint64_t bytes)
{
    int r;
    do {
        r = fallocate(f->fd, mode, (off_t)off, (off_t)bytes);
    } while (r && errno == EINTR);
    if (!r)
        return 0;
    return errno == ENODEV || errno == ENOSYS || errno == EINVAL ? -EOPNOTSUPP : -errno;
}

static int posix_discard(struct hvx_file *f, uint64_t off, uint64_t bytes)
{
    return do_fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, bytes);
}

static int posix_write_zeroes(struct hvx_file *f, uint64_t off, uint64_t bytes, bool unmap)
{
    if (unmap && posix_discard(f, off, bytes) == 0)
        return 0;
    return do_fallocate(f, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, off, bytes);
}

static int posix_size(struct hvx_file *f, uint64_t *out)
{
    if (f->is_device) {
        uint64_t n;
        if (ioctl(f->fd, BLKGETSIZE64, &n))
            return -errno;
        *out = n;
        return 0;
    }
    struct stat st;
    if (fstat(f->fd, &st))
        return -errno;
    *out = (uint64_t)st.st_size;
    return 0;
}

static int posix_truncate(struct hvx_file *f, uint64_t bytes)
{
    if (f->is_device)
        return 0;
    return ftruncate(f->fd, (off_t)bytes) ? -errno : 0;
}

static void posix_close(struct hvx_file *f)
{
    struct posix_file *p = posix_of(f);
    if (f->direct)
        hvx_bufpool_fini(&p->bounce);
    pthread_mutex_destroy(&p->rmw_lock);
    if (f->fd >= 0)
        close(f->fd);
    free(f->name);
    free(p);
}

static const struct hvx_file_ops posix_ops = {
    .preadv = posix_preadv, .pwritev = posix_pwritev, .flush = posix_flush, .discard = posix_discard,
    .write_zeroes = posix_write_zeroes, .size = posix_size, .truncate = posix_truncate, .close = posix_close,
};

/* What O_DIRECT asks for here; 4096 suits every disk when the kernel does not say. */
static void find_alignment(struct hvx_file *f)
{
    f->mem_align = f->io_align = 4096;
    if (f->is_device) {
        int n;
        if (!ioctl(f->fd, BLKSSZGET, &n) && n >= 512 && n <= 65536 && !(n & (n - 1)))
            f->mem_align = f->io_align = (uint32_t)n;
        return;
    }
#ifdef STATX_DIOALIGN
    struct statx sx;
    if (!statx(f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) && (sx.stx_mask & STATX_DIOALIGN) &&
        sx.stx_dio_offset_align) {
        uint32_t m = sx.stx_dio_mem_align, o = sx.stx_dio_offset_align;
        if (m && !(m & (m - 1)) && m <= 65536)
            f->mem_align = m;
        if (!(o & (o - 1)) && o <= 65536)
            f->io_align = o;
    }
#endif
}

int hvx_file_from_fd(int fd, const char *name, unsigned flags, struct hvx_file **out, struct hvx_error *err)
{
    struct stat st;
    if (fstat(fd, &st)) {
        int e = errno;
        close(fd);
        return hvx_fail(err, -e, "cannot open disk image %s: %s", name, strerror(e));
    }
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        close(fd);
        return hvx_fail(err, -EINVAL, "cannot use %s as a disk image: it is %s; give a file or a block device", name,
                        S_ISDIR(st.st_mode) ? "a folder" : "neither a file nor a block device");
    }
    struct posix_file *p = calloc(1, sizeof(*p));
    char *copy = strdup(name);
    if (!p || !copy) {
        free(p);
        free(copy);
        close(fd);
        return hvx_fail(err, -ENOMEM, "no memory to open %s", name);
    }
    struct hvx_file *f = &p->f;
    pthread_mutex_init(&p->rmw_lock, NULL);
    f->ops = &posix_ops;
    f->name = copy;
    f->fd = fd;
    f->read_only = !(flags & HVX_FILE_WRITE);
    f->no_sync = flags & HVX_FILE_NO_SYNC;
    f->is_device = S_ISBLK(st.st_mode);
    f->dev = f->is_device ? st.st_rdev : st.st_dev;
    f->ino = f->is_device ? 0 : st.st_ino;
    f->mem_align = f->io_align = 1;
    if (flags & HVX_FILE_DIRECT) {
        f->direct = true;
        find_alignment(f);
        hvx_bufpool_init(&p->bounce, BOUNCE_BYTES, 4);
    }
    *out = f;
    return 0;
}

static const char *open_hint(int e)
{
    switch (e) {
    case ENOENT: return "; check the path";
    case EACCES: return "; check the file's owner and mode, or open it read-only";
    case EROFS: return "; it lies on a read-only file system: open it read-only or with snapshot=on";
    case EINVAL: return "; its file system may not support O_DIRECT: use cache=writeback";
    default: return "";
    }
}

int hvx_file_open(const char *path, unsigned flags, struct hvx_file **out, struct hvx_error *err)
{
    int mode = (flags & HVX_FILE_WRITE ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    if (flags & HVX_FILE_DIRECT)
        mode |= O_DIRECT;
    if (flags & HVX_FILE_CREATE)
        mode |= O_CREAT; /* emptied only after the lock is ours */
    int fd = open(path, mode, 0644);
    if (fd < 0) {
        int e = errno;
        return hvx_fail(err, -e, "cannot open disk image %s%s: %s%s", path,
                        flags & HVX_FILE_WRITE ? " for writing" : "", strerror(e), open_hint(e));
    }
    if (!(flags & HVX_FILE_NO_LOCK)) {
        int r = hvx_file_lock(fd, flags & HVX_FILE_WRITE, path, err);
        if (r) {
            close(fd);
            return r;
        }
    }
    struct stat st;
    if ((flags & HVX_FILE_CREATE) && !fstat(fd, &st) && S_ISREG(st.st_mode) && ftruncate(fd, 0)) {
        int e = errno;
        close(fd);
        return hvx_fail(err, -e, "cannot empty %s: %s", path, strerror(e));
    }
    return hvx_file_from_fd(fd, path, flags, out, err);
}

int hvx_file_open_temp(unsigned flags, struct hvx_file **out, struct hvx_error *err)
{
    const char *dir = getenv("TMPDIR");
    if (!dir || dir[0] != '/')
        dir = "/var/tmp";
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC | (flags & HVX_FILE_DIRECT ? O_DIRECT : 0), 0600);
    if (fd < 0) { /* a file system without O_TMPFILE, overlayfs of old */
        char name[PATH_MAX];
        snprintf(name, sizeof(name), "%s/hvx-snapshot-XXXXXX", dir);
        fd = mkostemp(name, O_CLOEXEC);
        if (fd < 0)
            return hvx_fail(err, -errno,
                            "cannot make a temporary file for snapshot=on in %s: %s; set TMPDIR to a folder "
                            "with room",
                            dir, strerror(errno));
        unlink(name);
        flags &= ~HVX_FILE_DIRECT;
    }
    return hvx_file_from_fd(fd, "temporary overlay", flags | HVX_FILE_WRITE, out, err);
}

void hvx_file_close(struct hvx_file *f)
{
    if (f)
        f->ops->close(f);
}

int hvx_file_zero(struct hvx_file *f, uint64_t off, uint64_t bytes, bool unmap)
{
    static const uint8_t zeroes[65536] __attribute__((aligned(4096)));
    if (f->read_only)
        return -EROFS;
    int r = f->ops->write_zeroes(f, off, bytes, unmap);
    if (r != -EOPNOTSUPP)
        return r;
    while (bytes) {
        uint64_t n = bytes < sizeof(zeroes) ? bytes : sizeof(zeroes);
        r = hvx_file_pwrite(f, zeroes, n, off);
        if (r)
            return r;
        off += n;
        bytes -= n;
    }
    return 0;
}
