/* SPDX-License-Identifier: Apache-2.0
 *
 * image.h - disk image formats. A format is a table of operations over one
 * hvx_file and, where the format knows backing files, another image below it.
 *
 * Two ways in:
 *   map       answers from memory alone where the bytes of a range are, so
 *             that the front can do the transfer with io_uring. It never
 *             blocks; -EAGAIN sends the request the other way.
 *   preadv... do a whole request, synchronously, from a worker thread. Any
 *             number of threads may be inside one image at once; the front
 *             guarantees that requests that change the mapping of a cluster
 *             do not overlap any other request on that cluster.
 *
 * A format driver refuses by message at open and by -errno afterwards. When
 * it finds tables that lie, it says so once (hvx_image_corrupt) and from then
 * on refuses writes: -EIO.
 */
#ifndef HVX_IMAGE_IMAGE_H
#define HVX_IMAGE_IMAGE_H

#include "core/image/file.h"
#include <stdatomic.h>

#define HVX_IMAGE_MAX_DEPTH 32u
#define HVX_IMAGE_NAME_MAX 1024u

enum hvx_seg_kind { HVX_SEG_DATA = 1, HVX_SEG_ZERO = 2 };
struct hvx_seg {
    uint32_t kind;
    uint32_t pad;
    uint64_t bytes;
    uint64_t host_off; /* DATA */
    struct hvx_file *file;
};

struct hvx_image;
struct hvx_image_check {
    uint64_t leaks, corruptions, check_errors;
    uint64_t leaks_fixed, corruptions_fixed;
    uint64_t clusters, allocated, compressed; /* guest clusters: of the disk, stored, stored compressed */
    uint64_t end_bytes;                       /* end of what is used in the file */
};
/* One line of findings for a person; may be NULL. */
typedef void (*hvx_check_fn)(void *opaque, const char *line);

struct hvx_image_ops {
    const char *name;
    int (*open)(struct hvx_image *img, struct hvx_error *err);
    void (*close)(struct hvx_image *img); /* writes back what it can */
    int (*map)(struct hvx_image *img, bool write, uint64_t off, uint64_t bytes, struct hvx_seg *segs, unsigned max);
    int (*preadv)(struct hvx_image *img, struct hvx_sg sg, uint64_t off, uint64_t bytes);
    int (*pwritev)(struct hvx_image *img, struct hvx_sg sg, uint64_t off, uint64_t bytes);
    int (*flush)(struct hvx_image *img);
    int (*discard)(struct hvx_image *img, uint64_t off, uint64_t bytes);
    int (*write_zeroes)(struct hvx_image *img, uint64_t off, uint64_t bytes, bool unmap);
    /* How much from off on has one state: *data false means it reads as
     * zeroes (through the whole chain). For convert. */
    int (*status)(struct hvx_image *img, uint64_t off, uint64_t bytes, uint64_t *run, bool *data);
    int (*check)(struct hvx_image *img, bool repair, struct hvx_image_check *out, hvx_check_fn fn, void *opaque);
};

struct hvx_image {
    const struct hvx_image_ops *ops;
    struct hvx_file *file;     /* owned */
    struct hvx_image *backing; /* owned; NULL: none */
    uint64_t bytes;            /* virtual size, multiple of 512 */
    uint32_t granularity;      /* requests that change the mapping exclude others in units of this */
    bool read_only;
    bool can_discard, can_write_zeroes;
    bool for_check;            /* opened to be checked: tolerate what a VM must not */
    bool no_backing;           /* do not open the backing file */
    atomic_bool corrupt;
    char backing_name[HVX_IMAGE_NAME_MAX];
    char backing_format[16];
    void *priv;
};

struct hvx_image_open {
    const char *path, *format;
    unsigned file_flags; /* HVX_FILE_* for the top image */
    bool allow_backing_outside;
    bool for_check, no_backing;
};

/* Open an image with its chain. */
HVX_WUR int hvx_image_open(const struct hvx_image_open *p, struct hvx_image **out, struct hvx_error *err);
/* Open one image on a file that is already there (tests, fuzzer, overlays).
 * Takes `file`, also on failure. `flags`: HVX_IMAGE_*. */
#define HVX_IMAGE_FOR_CHECK 1u
#define HVX_IMAGE_NO_BACKING 2u
HVX_WUR int hvx_image_open_file(struct hvx_file *file, const char *format, unsigned flags, struct hvx_image **out,
                                struct hvx_error *err);
void hvx_image_close(struct hvx_image *img);
const struct hvx_image_ops *hvx_image_format(const char *name);
extern const struct hvx_image_ops hvx_image_raw, hvx_image_qcow2;

/* Read with zeroes past the image's end (a backing may be shorter). */
int hvx_image_preadv(struct hvx_image *img, struct hvx_sg sg, uint64_t off, uint64_t bytes);
/* status past the end is zeroes, too. */
int hvx_image_status(struct hvx_image *img, uint64_t off, uint64_t bytes, uint64_t *run, bool *data);

/* Say once that this image is damaged and refuse writes from now on. Returns
 * -EIO, for `return`. */
HVX_PRINTF(2, 3) int hvx_image_corrupt(struct hvx_image *img, const char *fmt, ...);

/* Where one-time warnings go; stderr unless the program sets it. */
extern void (*hvx_image_warn)(const char *text);

/* --- making images (qcow2_create.c) ---------------------------------------- */
struct hvx_qcow2_create {
    uint64_t bytes;        /* virtual size */
    uint32_t cluster_bytes; /* 0: 64 KiB */
    uint32_t refcount_bits; /* 0: 16 */
    uint32_t version;       /* 0: 3 */
    bool lazy_refcounts;
    const char *backing_name, *backing_format; /* NULL: none */
};
HVX_WUR int hvx_qcow2_create(struct hvx_file *file, const struct hvx_qcow2_create *p, struct hvx_error *err);
/* A qcow2 overlay on `base` in an unnamed temporary file; takes base on success. */
HVX_WUR int hvx_image_overlay(struct hvx_image *base, unsigned file_flags, struct hvx_image **out,
                              struct hvx_error *err);

/* --- printing (qcow2_open.c) ------------------------------------------------ */
struct hvx_qcow2_info {
    uint32_t version, cluster_bytes, refcount_bits, n_snapshots;
    bool lazy_refcounts, dirty, corrupt, zstd;
};
void hvx_qcow2_get_info(struct hvx_image *img, struct hvx_qcow2_info *out);
#endif
