/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_qcow2.c - opens images whose tables lie, reads, writes, discards,
 * flushes and closes them, all in memory.
 *
 * An input starts with 16 bytes: mode, geometry, 6 unused, a seed for the
 * operations (8). Then, by bit 0 of the mode,
 *   0: the bytes of an image,
 *   1: patches of 12 bytes for an image of our own: which table, entry (2
 *      bytes), width, value (8). So short inputs reach deep.
 *
 * An image that was consistent before must be consistent afterwards: that is
 * asserted, whatever was done to it.
 */
#include "core/image/qcow2.h"

#include <assert.h>
#include <stdlib.h>

#define MAX_FILE (4u << 20)
#define HEAD 16u

static void no_warning(const char *text)
{
    (void)text;
}

/* --- images of our own ------------------------------------------------------- */
static const struct hvx_qcow2_create geometries[] = {
    {.bytes = 1u << 20},
    {.bytes = 1u << 20, .cluster_bytes = 512},
    {.bytes = 1u << 20, .version = 2, .cluster_bytes = 1024},
    {.bytes = 300000 / 512 * 512, .cluster_bytes = 4096, .refcount_bits = 1},
    {.bytes = 1u << 20, .cluster_bytes = 512, .refcount_bits = 64},
    {.bytes = 1ull << 34, .cluster_bytes = 2048},
};
#define N_GEOMETRIES (sizeof(geometries) / sizeof(geometries[0]))

static struct {
    uint8_t *data;
    size_t bytes;
    uint64_t place[6]; /* header, L1, refcount table, first block, first and second L2 table */
} bases[N_GEOMETRIES];

static void make_base(unsigned g)
{
    struct hvx_file *f;
    struct hvx_image *img;
    uint8_t buf[1500 / 512 * 512];
    memset(buf, 0x5a, sizeof(buf));
    int r = hvx_file_mem_new(NULL, 0, MAX_FILE, &f);
    assert(!r);
    r = hvx_qcow2_create(f, &geometries[g], NULL);
    assert(!r);
    r = hvx_image_open_file(f, "qcow2", 0, &img, NULL);
    assert(!r);
    struct iovec v = {buf, sizeof(buf)};
    for (uint64_t off = 0; off < 300000 - 4096; off += 40960)
        img->ops->pwritev(img, hvx_sg_of(&v, 1), off, sizeof(buf));
    img->ops->write_zeroes(img, 131072, 65536, true);
    img->ops->flush(img);
    img->ops->flush(img);
    struct qcow2 *q = img->priv;
    bases[g].place[1] = q->l1_offset;
    bases[g].place[2] = q->rt_offset;
    bases[g].place[3] = q->rt[0];
    bases[g].place[4] = q->l1[0] & QCOW2_OFFSET_MASK;
    bases[g].place[5] = (q->l1_size > 1 ? q->l1[1] : q->l1[0]) & QCOW2_OFFSET_MASK;
    uint8_t *p = hvx_file_mem_data(f, &bases[g].bytes);
    bases[g].data = malloc(bases[g].bytes);
    memcpy(bases[g].data, p, bases[g].bytes);
    hvx_image_close(img);
}

static void patch(uint8_t *image, size_t n_image, unsigned g, const uint8_t *p)
{
    unsigned widths[] = {1, 2, 4, 8}, width = widths[p[3] & 3];
    uint64_t at = bases[g].place[p[0] % 6] + (uint64_t)(p[1] | (p[2] & 1) << 8) * width;
    if (p[3] & 4) { /* small numbers of clusters are more telling than random bits */
        uint64_t v = htobe64(
            ((uint64_t)p[11] << (__builtin_ctz(geometries[g].cluster_bytes ? geometries[g].cluster_bytes : 65536))) |
            (uint64_t)(p[4] & 0xc0) << 56 | (p[5] & 1));
        width = 8;
        if (at + 8 <= n_image)
            memcpy(image + at, &v, 8);
        return;
    }
    if (at + width <= n_image)
        memcpy(image + at, p + 12 - width, width);
}

/* --- the run ------------------------------------------------------------------------ */
static uint64_t next(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static void operate(struct hvx_image *img, uint64_t seed)
{
    static uint8_t buf[128 << 10];
    uint64_t s = seed | 1;
    for (unsigned i = 0; i < 24; i++) {
        /* mostly near the start, where the tables of small images are */
        uint64_t span = next(&s) % 4 ? (img->bytes < 400000 ? img->bytes : 400000) : img->bytes;
        uint64_t off = next(&s) % span & ~511ull, bytes = ((next(&s) >> 8) % sizeof(buf) & ~511ull) + 512;
        struct hvx_seg segs[8];
        struct iovec v = {buf, 0};
        if (bytes > img->bytes - off)
            bytes = img->bytes - off;
        if (bytes > sizeof(buf))
            bytes = sizeof(buf);
        v.iov_len = bytes;
        struct hvx_sg sg = hvx_sg_of(&v, 1);
        switch (next(&s) % 8) {
        case 0:
        case 1: img->ops->preadv(img, sg, off, bytes); break;
        case 2:
        case 3: img->ops->pwritev(img, sg, off, bytes); break;
        case 4: img->ops->discard(img, off, bytes); break;
        case 5: img->ops->write_zeroes(img, off, bytes, s & 4096); break;
        case 6: img->ops->flush(img); break;
        default: img->ops->map(img, s & 4096, off, bytes, segs, 8); break;
        }
    }
}

static uint64_t count_errors(const uint8_t *data, size_t n)
{
    struct hvx_file *f;
    struct hvx_image *img;
    struct hvx_image_check c;
    uint64_t bad = UINT64_MAX;
    if (hvx_file_mem_new(data, n, n, &f) || hvx_image_open_file(f, "qcow2", HVX_IMAGE_FOR_CHECK, &img, NULL))
        return bad;
    if (!img->ops->check(img, false, &c, NULL, NULL))
        bad = c.corruptions + c.check_errors;
    hvx_image_close(img);
    return bad;
}

static void run(const uint8_t *image, size_t n, uint64_t seed)
{
    struct hvx_file *f;
    struct hvx_image *img;
    uint64_t before = count_errors(image, n);
    if (hvx_file_mem_new(image, n, MAX_FILE, &f) || hvx_image_open_file(f, "qcow2", 0, &img, NULL))
        return;
    operate(img, seed);
    img->ops->flush(img);
    size_t n_after;
    uint8_t *after = hvx_file_mem_data(f, &n_after);
    if (!before && count_errors(after, n_after))
        abort(); /* we made a sound image unsound */
    hvx_image_close(img);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    uint64_t seed;
    hvx_image_warn = no_warning;
    if (n < HEAD)
        return 0;
    memcpy(&seed, data + 8, 8);
    if (!(data[0] & 1)) {
        if (n - HEAD <= MAX_FILE)
            run(data + HEAD, n - HEAD, seed);
        return 0;
    }
    qcow2_cache_limit = data[0] & 2 ? 0 : 256u << 10;
    unsigned g = data[1] % N_GEOMETRIES;
    if (!bases[g].data)
        make_base(g);
    uint8_t *image = malloc(bases[g].bytes);
    memcpy(image, bases[g].data, bases[g].bytes);
    for (size_t at = HEAD; at + 12 <= n && at < HEAD + 12 * 8; at += 12)
        patch(image, bases[g].bytes, g, data + at);
    run(image, bases[g].bytes, seed);
    free(image);
    return 0;
}
