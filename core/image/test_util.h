/* SPDX-License-Identifier: Apache-2.0
 *
 * test_util.h - what the tests of core/image share: a folder for files, a
 * seeded generator, random operations on an image beside a model in memory.
 */
#ifndef HVX_IMAGE_TEST_UTIL_H
#define HVX_IMAGE_TEST_UTIL_H

#include <hvx/host.h>
/* before cmocka.h, which has a macro named fail */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* after the four above */
#include <cmocka.h>

#include "core/image/image.h"
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char test_dir[256];

__attribute__((unused)) static int make_test_dir(void **state)
{
    const char *tmp = getenv("TMPDIR");
    (void)state;
    snprintf(test_dir, sizeof(test_dir), "%s/hvx-image-XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(test_dir) ? 0 : -1;
}

HVX_PRINTF(1, 2) __attribute__((unused)) static int shell(const char *fmt, ...)
{
    char cmd[2000];
    int n = snprintf(cmd, sizeof(cmd), "cd '%s' && { ", test_dir);
    va_list ap;
    va_start(ap, fmt);
    n += vsnprintf(cmd + n, sizeof(cmd) - (size_t)n, fmt, ap);
    va_end(ap);
    snprintf(cmd + n, sizeof(cmd) - (size_t)n, "; } >>log 2>&1");
    int r = system(cmd);
    return WIFEXITED(r) ? WEXITSTATUS(r) : -1;
}

__attribute__((unused)) static int remove_test_dir(void **state)
{
    char cmd[300];
    (void)state;
    snprintf(cmd, sizeof(cmd), "rm -rf '%s'", test_dir);
    return system(cmd);
}

__attribute__((unused)) static const char *in_dir(const char *name)
{
    static char path[4][600];
    static unsigned turn;
    char *p = path[turn++ % 4];
    snprintf(p, sizeof(path[0]), "%s/%s", test_dir, name);
    return p;
}

/* xorshift: the same sequence everywhere */
static uint64_t rnd_state;
__attribute__((unused)) static uint64_t rnd(uint64_t below)
{
    rnd_state ^= rnd_state << 13;
    rnd_state ^= rnd_state >> 7;
    rnd_state ^= rnd_state << 17;
    return below ? rnd_state % below : 0;
}
__attribute__((unused)) static void rnd_seed(uint64_t seed)
{
    rnd_state = seed * 0x9e3779b97f4a7c15ull + 1;
}

__attribute__((unused)) static void fill_random(uint8_t *p, size_t n)
{
    for (size_t i = 0; i + 8 <= n; i += 8) {
        uint64_t v = rnd(0), w;
        v = rnd_state;
        memcpy(&w, &v, 8);
        memcpy(p + i, &w, 8);
    }
}

__attribute__((unused)) static int img_read(struct hvx_image *img, void *buf, uint64_t off, uint64_t bytes)
{
    struct iovec v = {buf, bytes};
    return hvx_image_preadv(img, hvx_sg_of(&v, 1), off, bytes);
}
__attribute__((unused)) static int img_write(struct hvx_image *img, const void *buf, uint64_t off, uint64_t bytes)
{
    struct iovec v = {(void *)(uintptr_t)buf, bytes};
    return img->ops->pwritev(img, hvx_sg_of(&v, 1), off, bytes);
}

/* n random operations; `model` holds what the disk must hold. */
__attribute__((unused)) static void random_ops(struct hvx_image *img, uint8_t *model, unsigned n)
{
    uint64_t size = img->bytes;
    uint8_t *buf = malloc(size);
    assert_non_null(buf);
    for (unsigned i = 0; i < n; i++) {
        uint64_t off = rnd(size / 512) * 512, bytes = (1 + rnd(rnd(8) ? 40 : 1000)) * 512;
        if (bytes > size - off)
            bytes = size - off;
        switch (rnd(10)) {
        case 0:
        case 1:
        case 2:
        case 3:
        case 4:
            fill_random(model + off, bytes);
            assert_int_equal(img_write(img, model + off, off, bytes), 0);
            break;
        case 5:
            assert_int_equal(img->ops->write_zeroes(img, off, bytes, rnd(2)), 0);
            memset(model + off, 0, bytes);
            break;
        case 6: /* afterwards either the old bytes or zeroes */
            assert_int_equal(img->ops->discard(img, off, bytes), 0);
            assert_int_equal(img_read(img, buf, off, bytes), 0);
            for (uint64_t k = 0; k < bytes; k++)
                assert_true(buf[k] == model[off + k] || buf[k] == 0);
            memcpy(model + off, buf, bytes);
            break;
        case 7:
            if (!rnd(4))
                assert_int_equal(img->ops->flush(img), 0);
            break;
        default:
            assert_int_equal(img_read(img, buf, off, bytes), 0);
            assert_memory_equal(buf, model + off, bytes);
        }
    }
    assert_int_equal(img_read(img, buf, 0, size), 0);
    assert_memory_equal(buf, model, size);
    free(buf);
}

__attribute__((unused)) static void assert_clean(struct hvx_image *img)
{
    struct hvx_image_check c;
    assert_int_equal(img->ops->check(img, false, &c, NULL, NULL), 0);
    assert_int_equal(c.corruptions, 0);
    assert_int_equal(c.check_errors, 0);
    assert_int_equal(c.leaks, 0);
}
#endif
