/* SPDX-License-Identifier: Apache-2.0
 *
 * test_board.c - see test_board.h.
 */
#include "test_board.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern const struct hvx_plugin hvx_plugin_dev_pc;

/* Each process makes its two files once; they go when it exits. */
static char firmware_path[64], vga_rom_path[64];

static void remove_files(void)
{
    unlink(firmware_path);
    unlink(vga_rom_path);
}

static void write_file(char path[64], const char *name, size_t bytes)
{
    snprintf(path, 64, "/tmp/hvx-test-%s-XXXXXX", name);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    uint8_t *p = malloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        p[i] = (uint8_t)(i >> 8 ^ i);
    assert_int_equal(write(fd, p, bytes), (ssize_t)bytes);
    free(p);
    close(fd);
}

const struct hvx_device_type *board_type(const char *name)
{
    const struct hvx_device_ops *ops = hvx_plugin_dev_pc.ops;
    for (uint32_t i = 0; i < ops->n_types; i++)
        if (!strcmp(ops->types[i]->name, name))
            return ops->types[i];
    fail_msg("no device type %s", name);
    return NULL;
}

struct hvx_vm *board_vm(void)
{
    return hvxtest_new(&(struct hvxtest_params){.ram_below_4g = BOARD_RAM});
}

int board_try(struct board *b, struct hvx_vm *vm, const char *options, struct hvx_error *err)
{
    char text[400];
    memset(b, 0, sizeof(*b));
    b->vm = vm;
    if (!firmware_path[0]) {
        write_file(firmware_path, "firmware", BOARD_FIRMWARE_BYTES);
        write_file(vga_rom_path, "vgabios", 4096);
        atexit(remove_files);
    }
    b->type = board_type("pc");
    snprintf(text, sizeof(text), "firmware=%s,vga-rom=%s%s%s", firmware_path, vga_rom_path, options ? "," : "",
             options ? options : "");
    b->config = hvxtest_config(b->type->options, text);
    int rc = hvx_plugin_dev_pc.init(hvxtest_host(), NULL, &b->ctx, err);
    assert_int_equal(rc, 0);
    rc = b->type->create(b->ctx, vm, b->config, &b->dev, err);
    if (rc == 0)
        b->type->reset(b->dev);
    return rc;
}

void board_new(struct board *b, struct hvx_vm *vm, const char *options)
{
    struct hvx_error err = {0};
    if (board_try(b, vm, options, &err))
        fail_msg("%s", err.text);
}

void board_free(struct board *b)
{
    if (b->dev)
        b->type->destroy(b->dev);
    hvxtest_config_free(b->config);
    hvxtest_free(b->vm);
}

uint32_t board_cfg_read(struct board *b, unsigned devfn, unsigned off, unsigned size)
{
    out32(b, 0xcf8, 0x80000000u | devfn << 8 | (off & 0xfc));
    return (uint32_t)hvxtest_pio_read(b->vm, (uint16_t)(0xcfc + (off & 3)), size);
}

void board_cfg_write(struct board *b, unsigned devfn, unsigned off, unsigned size, uint32_t v)
{
    out32(b, 0xcf8, 0x80000000u | devfn << 8 | (off & 0xfc));
    hvxtest_pio_write(b->vm, (uint16_t)(0xcfc + (off & 3)), size, v);
}
