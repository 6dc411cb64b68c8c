/* SPDX-License-Identifier: Apache-2.0
 *
 * file_lock.c - keeps two virtual machines off one image.
 *
 * The protocol is QEMU's (its file-posix driver), so that HVX and QEMU
 * respect each other. Locks are open-file-description locks on single bytes:
 * a read lock on byte 100+p says "I use permission p", one on byte 200+p says
 * "I do not let others use permission p". Having set its own, a process asks
 * whether anyone else holds the opposite byte of any of them. Nobody ever
 * takes a write lock, so a process that only looks does not get in the way.
 */
#define _GNU_SOURCE
#include "core/image/file.h"

#include <fcntl.h>
#include <time.h>

enum { PERM_READ = 0, PERM_WRITE = 1, PERM_RESIZE = 3 };
enum { BASE_USE = 100, BASE_DENY = 200 };

static int set_byte(int fd, off_t byte)
{
    struct flock fl = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &fl) ? -errno : 0;
}

/* 1: somebody else holds the byte, 0: nobody */
static int held_by_other(int fd, off_t byte)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    if (fcntl(fd, F_OFD_GETLK, &fl))
        return -errno;
    return fl.l_type != F_UNLCK;
}

/* A user that was killed a moment ago may still be going: the kernel gives its
 * locks back when the last transfer that it had under way is done. */
static bool stays_held(int fd, off_t byte)
{
    struct timespec pause = {0, 25000000};
    for (unsigned i = 0; i < 20; i++) {
        if (held_by_other(fd, byte) != 1)
            return false;
        nanosleep(&pause, NULL);
    }
    return true;
}

int hvx_file_lock(int fd, bool write, const char *name, struct hvx_error *err)
{
    static const int writer_uses[] = {PERM_READ, PERM_WRITE, PERM_RESIZE};
    static const int denied[] = {PERM_WRITE, PERM_RESIZE};
    unsigned n_uses = write ? 3 : 1;

    for (unsigned i = 0; i < n_uses + 2; i++) {
        off_t byte = i < n_uses ? BASE_USE + writer_uses[i] : BASE_DENY + denied[i - n_uses];
        int r = set_byte(fd, byte);
        if (r == -EINVAL || r == -ENOLCK || r == -ENOTSUP || r == -ENOSYS)
            return 0; /* a file system without locks: nothing to lean on */
        if (r)
            return hvx_fail(err, r == -EACCES ? -EAGAIN : r,
                            "cannot lock %s: %s. Another program holds it exclusively; close that program first", name,
                            strerror(-r));
    }
    for (unsigned i = 0; i < n_uses; i++) {
        if (stays_held(fd, BASE_DENY + writer_uses[i]))
            return hvx_fail(
                err, -EAGAIN,
                "%s is in use by another virtual machine or tool, which does not allow %s. Stop it (`hvx ps` "
                "lists VMs, `fuser %s` finds others), or use a copy, an overlay (hvx image create -b) or "
                "snapshot=on",
                name, writer_uses[i] == PERM_READ ? "reading" : "writing", name);
    }
    for (unsigned i = 0; i < 2; i++) {
        if (stays_held(fd, BASE_USE + denied[i]))
            return hvx_fail(
                err, -EAGAIN,
                "%s is being written by another virtual machine or tool. Stop it (`hvx ps` lists VMs, `fuser "
                "%s` finds others) and try again; two users would destroy the image",
                name, name);
    }
    return 0;
}
