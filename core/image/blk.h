/* SPDX-License-Identifier: Apache-2.0
 *
 * core/image/blk.h - disks as the rest of core sees them. Devices see the
 * same object through hvx_blk_req of hvx/host.h.
 *
 * The caller names the format; "raw" is never probed, and probing is refused
 * on anything a guest could have written. A backing file name that leaves the
 * image's folder is refused unless allow_backing_outside is set.
 */
#ifndef HVX_CORE_BLK_H
#define HVX_CORE_BLK_H

#include "core/vm/loop.h"
#include <hvx/host.h>

/* A file of a disk's chain that somebody else opened. */
struct hvx_blk_fd {
    int fd;
    char name[1024]; /* for messages */
    char format[16];
};

struct hvx_blk_open {
    const char *path;
    const char *format; /* "raw", "qcow2" */
    const char *serial; /* NULL: derived from path */
    bool read_only, cdrom;
    bool snapshot; /* writes go to an unnamed temporary overlay */
    bool allow_backing_outside;
    bool no_lock;     /* skip the advisory lock that keeps two VMs off one image */
    const char *aio;  /* "io_uring", "threads", NULL: the best that works */
    const char *cache; /* "writeback" (default), "none" (O_DIRECT), "unsafe" (ignore flush) */
    struct hvx_blk_fd *fds; /* the whole chain, top first, instead of path; taken (set to -1) */
    unsigned n_fds;
};
/* For a process that cannot open files (a confined VM): open, check and lock
 * the chain of images that `params` names. Returns how many, or -errno. */
int hvx_blk_open_chain(const struct hvx_blk_open *params, struct hvx_blk_fd *out, unsigned max, struct hvx_error *err);
HVX_WUR int hvx_blk_open(struct hvx_loop *loop, const struct hvx_blk_open *params, struct hvx_blk **out,
                         struct hvx_error *err);
/* Waits for requests in flight, flushes, closes. */
void hvx_blk_close(struct hvx_blk *b);
void hvx_blk_submit(struct hvx_blk *b, struct hvx_blk_req *req); /* completion as in hvx/host.h */
void hvx_blk_get_info(struct hvx_blk *b, struct hvx_blk_info *out);
/* Block until nothing is in flight and all is on stable storage (for save). */
int hvx_blk_drain(struct hvx_blk *b);

/* By what a disk is recognised when a saved VM comes back to it: its files,
 * the image itself first, then what it is based on. Call after a drain. */
#define HVX_BLK_MARK_FILES 33u
struct hvx_blk_mark_file {
    uint64_t bytes, changed_ns; /* ns since 1970; 0: unknown, a device */
};
struct hvx_blk_mark {
    uint64_t bytes; /* of the disk */
    uint32_t n_files;
    bool lost_writes; /* snapshot=on, and there is something that will be forgotten */
    char path[1024];
    struct hvx_blk_mark_file file[HVX_BLK_MARK_FILES];
};
HVX_WUR int hvx_blk_get_mark(struct hvx_blk *b, struct hvx_blk_mark *out);

void hvx_blk_stats(struct hvx_blk *b, void (*fn)(void *o, const char *name, uint64_t v, const char *unit), void *o);
/* hvx image create|info|check|convert use these */
int hvx_image_main(int argc, char **argv);
#endif
