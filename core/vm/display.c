/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/display.c - the registered displays and keyboards: screendump to
 * PNG, keys by name.
 */
#include "core/vm/internal.h"

#include <fcntl.h>
#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#define MAX_PIXELS (64u << 20)
#define MAX_KEYS 8u

/* Copy the picture under the lock, encode it without. */
static int grab(struct hvx_vm *vm, uint32_t **pixels, uint32_t *width, uint32_t *height, struct hvx_error *err)
{
    struct hvx_surface s = {0};
    uint32_t *copy = NULL;
    int r = -ENODEV;

    hvx_loop_lock(vm->loop);
    for (unsigned i = 0; i < HVX_MAX_DISPLAYS && r < 0; i++)
        if (vm->display[i])
            r = vm->display[i]->ops.render(vm->display[i]->opaque, &s);
    if (r >= 0 && s.width && s.height && (uint64_t)s.width * s.height <= MAX_PIXELS) {
        copy = malloc((size_t)s.width * s.height * 4);
        for (uint32_t y = 0; copy && y < s.height; y++)
            memcpy(copy + (size_t)y * s.width, (uint8_t *)s.pixels + (size_t)y * s.stride, s.width * 4u);
    }
    hvx_loop_unlock(vm->loop);
    if (r < 0)
        return hvx_fail(err, r, "screendump: %s",
                        r == -ENODEV ? "this VM has no display" : "the display has nothing to show");
    if (!copy)
        return hvx_fail(err, -ENOMEM, "screendump: no memory for %u x %u pixels", s.width, s.height);
    *pixels = copy;
    *width = s.width;
    *height = s.height;
    return 0;
}

static int write_png(FILE *f, const uint32_t *pixels, uint32_t width, uint32_t height)
{
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    uint8_t *volatile row = malloc((size_t)width * 3);

    if (!info || !row || setjmp(png_jmpbuf(png))) {
        png_destroy_write_struct(&png, &info);
        free(row);
        return -EIO;
    }
    png_init_io(png, f);
    png_set_compression_level(png, 3);
    png_set_IHDR(png, info, width, height, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
                 PNG_FILTER_TYPE_DEFAULT);
    png_write_info(png, info);
    for (uint32_t y = 0; y < height; y++) {
        for (uint32_t x = 0; x < width; x++) {
            uint32_t p = pixels[(size_t)y * width + x];
            row[x * 3] = (uint8_t)(p >> 16);
            row[x * 3 + 1] = (uint8_t)(p >> 8);
            row[x * 3 + 2] = (uint8_t)p;
        }
        png_write_row(png, row);
    }
    png_write_end(png, NULL);
    png_destroy_write_struct(&png, &info);
    free(row);
    return 0;
}

int hvx_vm_screendump(struct hvx_vm *vm, int fd, struct hvx_error *err)
{
    uint32_t *pixels = NULL, width = 0, height = 0;
    FILE *f;
    int own, r = grab(vm, &pixels, &width, &height, err);

    if (r < 0)
        return r;
    own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    f = own < 0 ? NULL : fdopen(own, "w");
    if (!f) {
        r = hvx_fail(err, -errno, "screendump: cannot write to the file: %s", strerror(errno));
        if (own >= 0)
            close(own);
    } else {
        r = write_png(f, pixels, width, height);
        if (fclose(f) || r < 0)
            r = hvx_fail(err, -EIO, "screendump: writing the file failed; is the disk full?");
    }
    free(pixels);
    return r;
}

/* --- keys -------------------------------------------------------------------------- */

/* Scan code set 1. */
static const struct {
    const char *name;
    uint16_t code;
} keys[] = {
    {"esc", 0x01},   {"1", 0x02},     {"2", 0x03},      {"3", 0x04},     {"4", 0x05},       {"5", 0x06},
    {"6", 0x07},     {"7", 0x08},     {"8", 0x09},      {"9", 0x0a},     {"0", 0x0b},       {"minus", 0x0c},
    {"equal", 0x0d}, {"backspace", 0x0e}, {"tab", 0x0f}, {"q", 0x10},    {"w", 0x11},       {"e", 0x12},
    {"r", 0x13},     {"t", 0x14},     {"y", 0x15},      {"u", 0x16},     {"i", 0x17},       {"o", 0x18},
    {"p", 0x19},     {"ret", 0x1c},   {"enter", 0x1c},  {"ctrl", 0x1d},  {"a", 0x1e},       {"s", 0x1f},
    {"d", 0x20},     {"f", 0x21},     {"g", 0x22},      {"h", 0x23},     {"j", 0x24},       {"k", 0x25},
    {"l", 0x26},     {"semicolon", 0x27}, {"apostrophe", 0x28}, {"shift", 0x2a}, {"backslash", 0x2b}, {"z", 0x2c},
    {"x", 0x2d},     {"c", 0x2e},     {"v", 0x2f},      {"b", 0x30},     {"n", 0x31},       {"m", 0x32},
    {"comma", 0x33}, {"dot", 0x34},   {"slash", 0x35},  {"alt", 0x38},   {"space", 0x39},   {"f1", 0x3b},
    {"f2", 0x3c},    {"f3", 0x3d},    {"f4", 0x3e},     {"f5", 0x3f},    {"f6", 0x40},      {"f7", 0x41},
    {"f8", 0x42},    {"f9", 0x43},    {"f10", 0x44},    {"f11", 0x57},   {"f12", 0x58},     {"up", 0xe048},
    {"down", 0xe050}, {"left", 0xe04b}, {"right", 0xe04d}, {"home", 0xe047}, {"end", 0xe04f}, {"pgup", 0xe049},
    {"pgdn", 0xe051}, {"insert", 0xe052}, {"delete", 0xe053},
};

int hvx_vm_sendkey(struct hvx_vm *vm, const char *text, struct hvx_error *err)
{
    uint16_t code[MAX_KEYS];
    unsigned n = 0;
    bool taken = false;

    for (const char *p = text; *p; ) {
        size_t length = strcspn(p, "-"), k = 0;
        while (k < sizeof(keys) / sizeof(keys[0]) &&
               (strlen(keys[k].name) != length || strncasecmp(keys[k].name, p, length)))
            k++;
        if (k == sizeof(keys) / sizeof(keys[0]) || n == MAX_KEYS)
            return hvx_fail(err, -EINVAL, "sendkey: '%.*s' is no key; say for instance ctrl-alt-delete, a, ret, f12",
                            (int)length, p);
        code[n++] = keys[k].code;
        p += length + (p[length] == '-');
    }
    if (!n)
        return hvx_fail(err, -EINVAL, "sendkey: no key given");
    hvx_loop_lock(vm->loop);
    for (unsigned i = 0; i < vm->n_inputs && !taken; i++) {
        struct hvx_input *in = &vm->input[i];
        if (!in->ops.key)
            continue;
        for (unsigned k = 0; k < n; k++)
            in->ops.key(in->opaque, code[k], true);
        for (unsigned k = n; k-- > 0;)
            in->ops.key(in->opaque, code[k], false);
        taken = true;
    }
    hvx_loop_unlock(vm->loop);
    return taken ? 0 : hvx_fail(err, -ENODEV, "sendkey: this VM has no keyboard");
}
