/* SPDX-License-Identifier: Apache-2.0
 *
 * test_qcow2.c - the qcow2 driver over files in memory: what it writes and
 * reads back, what it does when the file is full or a write fails, and which
 * lies in the tables it refuses.
 */
#include "core/image/qcow2.h"
#include "core/image/test_util.h"

#define MAX_FILE (64u << 20)
#define DISK (4u << 20)

static unsigned n_warnings;
static char last_warning[800];
static void count_warning(const char *text)
{
    n_warnings++;
    snprintf(last_warning, sizeof(last_warning), "%s", text);
}

static struct hvx_file *new_file(const struct hvx_qcow2_create *c, size_t max)
{
    struct hvx_file *f;
    struct hvx_error err;
    assert_int_equal(hvx_file_mem_new(NULL, 0, max, &f), 0);
    assert_int_equal(hvx_qcow2_create(f, c, &err), 0);
    return f;
}

static struct hvx_image *open_mem(struct hvx_file *f)
{
    struct hvx_image *img;
    struct hvx_error err = {0};
    if (hvx_image_open_file(f, "qcow2", 0, &img, &err))
        fail_msg("%s", err.text);
    return img;
}

/* Close, and open what is then in the file. */
static struct hvx_image *reopen(struct hvx_image *img)
{
    struct hvx_file *f = img->file, *copy;
    size_t n;
    struct hvx_image *again;
    img->ops->close(img);
    uint8_t *data = hvx_file_mem_data(f, &n);
    assert_int_equal(hvx_file_mem_new(data, n, MAX_FILE, &copy), 0);
    hvx_file_close(f);
    hvx_image_close(img->backing);
    free(img);
    again = open_mem(copy);
    return again;
}

static void test_random_ops_all_geometries(void **state)
{
    static const struct hvx_qcow2_create geometry[] = {
        {.bytes = DISK},
        {.bytes = DISK, .cluster_bytes = 512},
        {.bytes = DISK, .cluster_bytes = 512, .refcount_bits = 64},
        {.bytes = DISK, .cluster_bytes = 4096, .refcount_bits = 1},
        {.bytes = DISK, .cluster_bytes = 2u << 20},
        {.bytes = DISK, .version = 2},
        {.bytes = DISK + 512 * 7, .cluster_bytes = 1024, .refcount_bits = 2},
        {.bytes = DISK, .cluster_bytes = 8192, .refcount_bits = 4},
        {.bytes = DISK + 512, .refcount_bits = 8},
        {.bytes = DISK, .cluster_bytes = 32768, .refcount_bits = 32, .lazy_refcounts = true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(geometry) / sizeof(geometry[0]); i++) {
        uint8_t *model = calloc(1, geometry[i].bytes);
        struct hvx_image *img = open_mem(new_file(&geometry[i], MAX_FILE));
        rnd_seed(i + 1);
        for (unsigned round = 0; round < 3; round++) {
            random_ops(img, model, 200);
            img = reopen(img);
            assert_clean(img);
        }
        random_ops(img, model, 1);
        hvx_image_close(img);
        free(model);
    }
}

/* Eight slices of each kind for tables of 128 KiB: every other step evicts
 * something, much of it dirty. */
static void test_caches_that_are_far_too_small(void **state)
{
    qcow2_cache_limit = 0;
    test_random_ops_all_geometries(state);
    qcow2_cache_limit = UINT64_MAX;
}

static void test_overlay_random_ops(void **state)
{
    static const struct hvx_qcow2_create top = {.bytes = DISK, .cluster_bytes = 4096};
    static const struct hvx_qcow2_create old = {.bytes = DISK, .cluster_bytes = 4096, .version = 2};
    (void)state;
    for (unsigned v = 0; v < 2; v++) {
        struct hvx_qcow2_create base = {.bytes = DISK - 512 * 9, .cluster_bytes = 1024}; /* shorter than the overlay */
        uint8_t *model = calloc(1, DISK);
        struct hvx_image *below = open_mem(new_file(&base, MAX_FILE));
        rnd_seed(77 + v);
        random_ops(below, model, 300);
        struct hvx_image *img = open_mem(new_file(v ? &old : &top, MAX_FILE));
        img->backing = below;
        random_ops(img, model, 400);
        assert_int_equal(img->ops->flush(img), 0);
        assert_int_equal(img->ops->flush(img), 0);
        assert_clean(img);
        hvx_image_close(img);
        free(model);
    }
}

/* map() must agree with preadv() wherever it answers. */
static void test_map_agrees_with_read(void **state)
{
    struct hvx_qcow2_create base = {.bytes = DISK / 2, .cluster_bytes = 1024},
                            top = {.bytes = DISK, .cluster_bytes = 2048};
    uint8_t *model = calloc(1, DISK), *buf = malloc(DISK);
    struct hvx_image *below = open_mem(new_file(&base, MAX_FILE)), *img = open_mem(new_file(&top, MAX_FILE));
    unsigned answered = 0;
    (void)state;
    rnd_seed(5);
    random_ops(below, model, 200);
    img->backing = below;
    random_ops(img, model, 200);
    for (unsigned i = 0; i < 2000; i++) {
        struct hvx_seg segs[16];
        uint64_t off = rnd(DISK / 512) * 512, bytes = (1 + rnd(64)) * 512, at = 0;
        if (bytes > DISK - off)
            bytes = DISK - off;
        int n = img->ops->map(img, false, off, bytes, segs, 16);
        if (n < 0) {
            assert_int_equal(n, -EAGAIN);
            continue;
        }
        answered++;
        for (int k = 0; k < n; k++) {
            if (segs[k].kind == HVX_SEG_ZERO)
                memset(buf + at, 0, segs[k].bytes);
            else
                assert_int_equal(hvx_file_pread(segs[k].file, buf + at, segs[k].bytes, segs[k].host_off), 0);
            at += segs[k].bytes;
        }
        assert_int_equal(at, bytes);
        assert_memory_equal(buf, model + off, bytes);
    }
    assert_true(answered > 500);
    hvx_image_close(img);
    free(model);
    free(buf);
}

static void test_enospc_leaves_image_consistent(void **state)
{
    struct hvx_qcow2_create c = {.bytes = DISK, .cluster_bytes = 4096};
    uint8_t *model = calloc(1, DISK), *buf = malloc(DISK);
    struct hvx_image *img = open_mem(new_file(&c, 300 * 1024));
    unsigned full = 0;
    (void)state;
    rnd_seed(3);
    for (unsigned i = 0; i < 400; i++) {
        uint64_t off = rnd(DISK / 512 - 16) * 512, bytes = (1 + rnd(16)) * 512;
        fill_random(buf, bytes);
        int r = img_write(img, buf, off, bytes);
        if (r) {
            assert_int_equal(r, -ENOSPC);
            full++;
            assert_int_equal(img_read(img, model + off, off, bytes), 0); /* what got through, got through */
        } else {
            memcpy(model + off, buf, bytes);
        }
    }
    assert_true(full > 10);
    assert_int_equal(img->ops->flush(img), 0);
    assert_int_equal(img_read(img, buf, 0, DISK), 0);
    assert_memory_equal(buf, model, DISK);
    img = reopen(img);
    assert_clean(img);
    /* Giving space back makes room again. */
    assert_int_equal(img->ops->discard(img, 0, DISK), 0);
    assert_int_equal(img->ops->flush(img), 0);
    assert_int_equal(img_write(img, buf, 0, 65536), 0);
    hvx_image_close(img);
    free(model);
    free(buf);
}

/* Whatever write fails, and whatever was in memory then is lost: the file
 * itself never holds a corrupt image, and what was flushed is there. */
static void test_failing_and_killed_at_every_write(void **state)
{
    struct hvx_qcow2_create c = {.bytes = 1u << 20, .cluster_bytes = 512, .refcount_bits = 16};
    uint8_t *flushed = calloc(1, c.bytes), *now = calloc(1, c.bytes), *buf = malloc(c.bytes);
    (void)state;
    for (unsigned stop = 0; stop < 1500; stop += 7) {
        qcow2_cache_limit = stop % 2 ? UINT64_MAX : 0;
        struct hvx_file *f = new_file(&c, MAX_FILE), *copy;
        struct hvx_image *img = open_mem(f), *after;
        struct hvx_error err = {0};
        memset(flushed, 0, c.bytes);
        memset(now, 0, c.bytes);
        /* Sectors touched since the last flush may hold either version. */
        uint8_t touched[2048];
        memset(touched, 0, sizeof(touched));
        rnd_seed(1000 + stop);
        hvx_file_mem_fail_after(f, stop, -EIO);
        for (unsigned i = 0; i < 120; i++) {
            uint64_t off = rnd(2048 - 40) * 512, bytes = (1 + rnd(40)) * 512, op = rnd(8);
            int r;
            if (op == 0) {
                r = img->ops->flush(img);
                if (!r) {
                    memcpy(flushed, now, c.bytes);
                    memset(touched, 0, sizeof(touched));
                }
            } else {
                memset(touched + off / 512, 1, bytes / 512);
                if (op == 1) {
                    memset(now + off, 0, bytes);
                    r = img->ops->write_zeroes(img, off, bytes, true);
                } else {
                    fill_random(now + off, bytes);
                    r = img_write(img, now + off, off, bytes);
                }
            }
            if (r)
                break;
        }
        /* The process dies here: only the file remains. */
        size_t n;
        uint8_t *data = hvx_file_mem_data(f, &n);
        assert_int_equal(hvx_file_mem_new(data, n, MAX_FILE, &copy), 0);
        if (hvx_image_open_file(copy, "qcow2", 0, &after, &err))
            fail_msg("stop %u: %s", stop, err.text);
        struct hvx_image_check ck;
        assert_int_equal(after->ops->check(after, false, &ck, NULL, NULL), 0);
        if (ck.corruptions)
            fail_msg("stop %u: %u corruptions", stop, (unsigned)ck.corruptions);
        assert_int_equal(img_read(after, buf, 0, c.bytes), 0);
        for (unsigned s = 0; s < 2048; s++) {
            if (!touched[s])
                assert_memory_equal(buf + s * 512, flushed + s * 512, 512);
        }
        hvx_image_close(after);
        hvx_file_mem_fail_after(f, 0, -EIO); /* nor may closing it write anything */
        hvx_image_close(img);
    }
    qcow2_cache_limit = UINT64_MAX;
    free(flushed);
    free(now);
    free(buf);
}

/* --- lies ----------------------------------------------------------------------- */
static void put_be(uint8_t *p, uint64_t v, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> (8 * (n - 1 - i)));
}

struct header_lie {
    unsigned off, size;
    uint64_t value;
    const char *says; /* part of the message */
};

static void test_header_lies_are_refused(void **state)
{
    static const struct header_lie lies[] = {
        {0, 4, 0x12345678, "not a qcow2 image"}, {4, 4, 1, "version 1"}, {4, 4, 4, "version 4"},
        {20, 4, 8, "cluster size"}, {20, 4, 22, "cluster size"}, {20, 4, 0xffffffff, "cluster size"},
        {24, 8, 0, "0 bytes"}, {24, 8, ~0ull, "bytes"}, {24, 8, 1ull << 60, "L1 table"}, {32, 4, 1, "encrypted"},
        {32, 4, 2, "encrypted"}, {36, 4, 0, "L1 table"}, {36, 4, 0xffffffff, "L1 table"}, {40, 8, 0, "L1 table"},
        {40, 8, 513, "start of a cluster"}, {40, 8, 1ull << 40, "cut off"}, {40, 8, ~0ull << 16, "cut off"},
        {48, 8, 0, "refcount table"}, {48, 8, 1ull << 50, "cut off"}, {56, 4, 0, "refcount table"},
        {56, 4, 0xffffffff, "refcount table"}, {60, 4, 70000, "snapshots"}, {60, 4, 1, "snapshot table"},
        {72, 8, 4, "external data file"}, {72, 8, 16, "extended L2"}, {72, 8, 1ull << 40, "bit 40"},
        {96, 4, 7, "refcounts"}, {100, 4, 50, "header length"}, {100, 4, 1u << 20, "header length"},
        {104, 1, 1, "compression type"}, {40, 8, 65536, "overlaps"}, {8, 8, 65535, "damaged"},
        {116, 4, 0x7fffffff, "header extension"},
    };
    struct hvx_qcow2_create c = {.bytes = 1u << 30};
    (void)state;
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        struct hvx_file *f = new_file(&c, MAX_FILE);
        struct hvx_image *img;
        struct hvx_error err = {0};
        put_be(hvx_file_mem_data(f, NULL) + lies[i].off, lies[i].value, lies[i].size);
        if (lies[i].off == 8)
            put_be(hvx_file_mem_data(f, NULL) + 16, 100, 4);
        int r = hvx_image_open_file(f, "qcow2", 0, &img, &err);
        if (!r || !strstr(err.text, lies[i].says))
            fail_msg("lie %zu: %d \"%s\", should say \"%s\"", i, r, err.text, lies[i].says);
        assert_int_equal(err.code, r);
    }
}

static void test_unknown_feature_is_named_from_the_table(void **state)
{
    struct hvx_qcow2_create c = {.bytes = 1u << 20};
    struct hvx_file *f = new_file(&c, MAX_FILE);
    uint8_t *p = hvx_file_mem_data(f, NULL);
    struct hvx_image *img;
    struct hvx_error err = {0};
    (void)state;
    /* the first entry of the feature name table, behind header and extension head */
    p[112 + 8 + 1] = 9;
    memcpy(p + 112 + 8 + 2, "time travel\0", 12);
    put_be(p + 72, 1 << 9, 8);
    assert_int_equal(hvx_image_open_file(f, "qcow2", 0, &img, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "time travel"));
}

static void test_cut_off_images(void **state)
{
    struct hvx_qcow2_create c = {.bytes = 1u << 30};
    size_t sizes[] = {0, 3, 71, 100, 65536, 100000, 131072, 196608};
    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct hvx_file *f = new_file(&c, MAX_FILE);
        struct hvx_image *img;
        struct hvx_error err = {0};
        f->ops->truncate(f, sizes[i]);
        int r = hvx_image_open_file(f, "qcow2", 0, &img, &err);
        if (!r)
            fail_msg("%zu bytes: opened", sizes[i]);
        if (sizes[i] >= 72)
            assert_non_null(strstr(err.text, "cut off"));
    }
}

/* An image with data in its first cluster; offsets of its tables. */
static struct hvx_file *image_with_data(uint64_t *l2)
{
    struct hvx_qcow2_create c = {.bytes = 1u << 30};
    struct hvx_file *f = new_file(&c, MAX_FILE), *copy;
    struct hvx_image *img = open_mem(f);
    uint8_t data[4096];
    size_t n;
    memset(data, 0xa5, sizeof(data));
    assert_int_equal(img_write(img, data, 0, sizeof(data)), 0);
    assert_int_equal(img->ops->flush(img), 0);
    *l2 = ((struct qcow2 *)img->priv)->l1[0] & QCOW2_OFFSET_MASK;
    uint8_t *p = hvx_file_mem_data(f, &n);
    assert_int_equal(hvx_file_mem_new(p, n, MAX_FILE, &copy), 0);
    hvx_image_close(img);
    return copy;
}

static void test_l2_lies_give_eio_and_one_message(void **state)
{
    static const struct {
        uint64_t value;
        const char *says;
        bool read_fails;
    } lies[] = {
        {1ull << 45 | QCOW2_L2_COPIED, "behind the end", true},
        {(5u << 16) + 512, "not the start", true},
        {0 | QCOW2_L2_COPIED | 65536, "the refcount table", false},
        {QCOW2_L2_COPIED | (2u << 16), "a refcount block", false},
        {QCOW2_L2_COPIED | (3u << 16), "the L1 table", false},
        {QCOW2_L2_COPIED | (4u << 16), "an L2 table", false},
        {QCOW2_L2_COMPRESSED | 100, "compressed data", true},
        {QCOW2_L2_COMPRESSED | 1ull << 44, "compressed data", true},
        {QCOW2_L2_COMPRESSED | (5u << 16), "cannot be decompressed", true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        uint64_t l2;
        uint8_t buf[4096] = {0};
        struct hvx_file *f = image_with_data(&l2);
        put_be(hvx_file_mem_data(f, NULL) + l2, lies[i].value, 8);
        struct hvx_image *img = open_mem(f), *opened = img;
        size_t n_file;
        n_warnings = 0;
        int r = img_read(img, buf, 0, sizeof(buf));
        assert_int_equal(r, lies[i].read_fails ? -EIO : 0);
        assert_int_equal(img_write(img, buf, 0, sizeof(buf)), -EIO);
        assert_int_equal(img_write(img, buf, 1u << 20, sizeof(buf)), -EIO); /* all writes are refused from now on */
        assert_int_equal(img->ops->write_zeroes(img, 0, 1u << 20, true), -EIO);
        assert_int_equal(n_warnings, 1);
        if (!strstr(last_warning, lies[i].says))
            fail_msg("lie %zu: \"%s\", should say \"%s\"", i, last_warning, lies[i].says);
        struct hvx_image_check c;
        assert_int_equal(img->ops->check(img, false, &c, NULL, NULL), 0);
        assert_true(c.corruptions > 0 || strstr(lies[i].says, "decompressed")); /* check reads tables, not data */
        struct hvx_file *copy;
        struct hvx_error err;
        img->ops->close(img);
        uint8_t *p = hvx_file_mem_data(f, &n_file);
        assert_int_equal(p[79], QCOW2_INCOMPAT_CORRUPT); /* the mark stays */
        assert_int_equal(hvx_file_mem_new(p, n_file, MAX_FILE, &copy), 0);
        assert_int_equal(hvx_image_open_file(copy, "qcow2", 0, &img, &err), -EROFS);
        hvx_file_close(f);
        free(opened);
    }
}

static void test_refcount_lies_do_not_overwrite_tables(void **state)
{
    uint64_t l2;
    uint8_t buf[512] = {1};
    struct hvx_file *f = image_with_data(&l2);
    struct hvx_image *img;
    (void)state;
    /* Every cluster of the image is said to be free. */
    memset(hvx_file_mem_data(f, NULL) + 2 * 65536, 0, 65536);
    img = open_mem(f);
    n_warnings = 0;
    assert_int_equal(img_write(img, buf, 1u << 20, 512), -EIO);
    assert_int_equal(n_warnings, 1);
    assert_non_null(strstr(last_warning, "the header"));
    hvx_image_close(img);
}

static void test_refused_for_writing_when_tables_overlap(void **state)
{
    uint64_t l2;
    struct hvx_file *f = image_with_data(&l2), *copy;
    struct hvx_image *img;
    struct hvx_error err = {0};
    size_t n;
    (void)state;
    put_be(hvx_file_mem_data(f, NULL) + 3 * 65536 + 8, l2 | QCOW2_L2_COPIED, 8); /* second L1 entry: the same table */
    uint8_t *p = hvx_file_mem_data(f, &n);
    assert_int_equal(hvx_file_mem_new(p, n, MAX_FILE, &copy), 0);
    assert_int_equal(hvx_image_open_file(f, "qcow2", 0, &img, &err), -EROFS);
    assert_non_null(strstr(err.text, "damaged"));
    copy->read_only = true; /* reading still works */
    img = open_mem(copy);
    uint8_t b[512];
    assert_int_equal(img_read(img, b, 0, 512), 0);
    assert_int_equal(b[0], 0xa5);
    assert_int_equal(img_write(img, b, 0, 512), -EROFS);
    hvx_image_close(img);
}

/* --- repair ------------------------------------------------------------------------ */
static void test_dirty_image_gets_its_refcounts_back(void **state)
{
    uint64_t l2;
    uint8_t b[512];
    struct hvx_file *f = image_with_data(&l2);
    (void)state;
    memset(hvx_file_mem_data(f, NULL) + 2 * 65536, 0, 65536); /* refcounts that a lazy writer never wrote */
    put_be(hvx_file_mem_data(f, NULL) + 72, QCOW2_INCOMPAT_DIRTY, 8);
    struct hvx_image *img = open_mem(f);
    assert_clean(img);
    assert_int_equal(hvx_file_mem_data(f, NULL)[79], 0); /* no longer dirty */
    assert_int_equal(img_read(img, b, 0, 512), 0);
    assert_int_equal(b[511], 0xa5);
    assert_int_equal(img_write(img, b, 100u << 20, 512), 0);
    img = reopen(img);
    assert_clean(img);
    hvx_image_close(img);
}

static void test_repair_frees_leaks(void **state)
{
    uint64_t l2;
    struct hvx_file *f = image_with_data(&l2);
    struct hvx_image *img;
    struct hvx_image_check c;
    (void)state;
    put_be(hvx_file_mem_data(f, NULL) + 2 * 65536 + 2 * 5, 7, 2);  /* data cluster: used once, counted 7 times */
    put_be(hvx_file_mem_data(f, NULL) + 2 * 65536 + 2 * 50, 1, 2); /* far away, used by nobody */
    img = open_mem(f);
    assert_int_equal(img->ops->check(img, false, &c, NULL, NULL), 0);
    assert_int_equal(c.leaks, 2);
    assert_int_equal(c.corruptions, 0);
    assert_int_equal(img->ops->check(img, true, &c, NULL, NULL), 0);
    assert_int_equal(c.leaks_fixed, 2);
    assert_clean(img);
    img = reopen(img);
    assert_clean(img);
    hvx_image_close(img);
}

/* --- what check finds ------------------------------------------------------------- */
static void note_finding(void *opaque, const char *line)
{
    char *last = opaque;
    snprintf(last, 300, "%s", line);
}

/* The number of findings; the last one in `last`. */
static uint64_t check_l2(uint64_t entry0, uint64_t entry1, unsigned refcount, char last[300])
{
    uint64_t l2;
    struct hvx_file *f = image_with_data(&l2);
    struct hvx_image_check c;
    uint8_t *p = hvx_file_mem_data(f, NULL);
    put_be(p + l2, entry0, 8);
    put_be(p + l2 + 8, entry1, 8);
    put_be(p + 2 * 65536 + 2 * 5, refcount, 2); /* of the data cluster */
    struct hvx_image *img = open_mem(f);
    last[0] = 0;
    assert_int_equal(img->ops->check(img, false, &c, note_finding, last), 0);
    assert_int_equal(c.leaks, 0);
    hvx_image_close(img);
    return c.corruptions;
}

static void test_check_finds_reserved_bits(void **state)
{
    static const unsigned reserved[] = {1, 2, 8, 56, 61};
    const uint64_t data = QCOW2_L2_COPIED | 5u << 16;
    char last[300];
    (void)state;
    assert_int_equal(check_l2(data, 0, 1, last), 0);
    assert_int_equal(check_l2(data | QCOW2_L2_ZERO, 0, 1, last), 0);
    for (size_t i = 0; i < sizeof(reserved) / sizeof(reserved[0]); i++) {
        assert_int_equal(check_l2(data | 1ull << reserved[i], 0, 1, last), 1);
        assert_non_null(strstr(last, "reserved bits"));
        assert_int_equal(check_l2(data, 1ull << reserved[i], 1, last), 1); /* without a cluster, too */
        assert_non_null(strstr(last, "reserved bits"));
    }
    /* in an entry of compressed data they are its length and its place */
    assert_int_equal(check_l2(QCOW2_L2_COMPRESSED | 1ull << 61 | (5u << 16) | 0x1fe, 0, 1, last), 0);
}

static void test_check_finds_data_among_compressed_data(void **state)
{
    const uint64_t data = 5u << 16, packed = QCOW2_L2_COMPRESSED | data, zeroes = data | QCOW2_L2_ZERO;
    char last[300];
    (void)state;
    assert_int_equal(check_l2(packed, packed + 512, 2, last), 0); /* they may share a cluster */
    assert_int_equal(check_l2(data, data, 2, last), 0);           /* and so may data, as far as its flags are right */
    const uint64_t mixed[][2] = {{data, packed}, {packed + 512, data}, {zeroes, packed}};
    for (size_t i = 0; i < sizeof(mixed) / sizeof(mixed[0]); i++) {
        assert_int_equal(check_l2(mixed[i][0], mixed[i][1], 2, last), 1);
        assert_non_null(strstr(last, "holds compressed data"));
    }
}

static int setup(void **state)
{
    (void)state;
    hvx_image_warn = count_warning;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_ops_all_geometries),
        cmocka_unit_test(test_caches_that_are_far_too_small),
        cmocka_unit_test(test_overlay_random_ops),
        cmocka_unit_test(test_map_agrees_with_read),
        cmocka_unit_test(test_enospc_leaves_image_consistent),
        cmocka_unit_test(test_failing_and_killed_at_every_write),
        cmocka_unit_test(test_header_lies_are_refused),
        cmocka_unit_test(test_unknown_feature_is_named_from_the_table),
        cmocka_unit_test(test_cut_off_images),
        cmocka_unit_test(test_l2_lies_give_eio_and_one_message),
        cmocka_unit_test(test_refcount_lies_do_not_overwrite_tables),
        cmocka_unit_test(test_refused_for_writing_when_tables_overlap),
        cmocka_unit_test(test_dirty_image_gets_its_refcounts_back),
        cmocka_unit_test(test_repair_frees_leaks),
        cmocka_unit_test(test_check_finds_reserved_bits),
        cmocka_unit_test(test_check_finds_data_among_compressed_data),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
