/* SPDX-License-Identifier: Apache-2.0
 *
 * test_flash.c - the flash chip of UEFI's variables and the file behind it.
 */
#include "test_board.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CODE_BYTES 0x20000u
#define VARS_BYTES 0x10000u
#define VARS_GPA (0x100000000ull - CODE_BYTES - VARS_BYTES)

struct fixture {
    struct board b;
    char folder[64], code[96], template[96], vars[96], options[256];
};

static void put_file(const char *path, const uint8_t *p, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, p, n), (ssize_t)n);
    close(fd);
}

static uint8_t file_byte(const char *path, off_t at)
{
    uint8_t v = 0;
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &v, 1, at), 1);
    close(fd);
    return v;
}

static struct hvx_vm *flash_vm(const struct fixture *f)
{
    return hvxtest_new(&(struct hvxtest_params){.ram_below_4g = BOARD_RAM, .firmware = f->code});
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    uint8_t *p = calloc(1, CODE_BYTES);
    snprintf(f->folder, sizeof(f->folder), "/tmp/hvx-test-flash-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->code, sizeof(f->code), "%s/T_CODE.fd", f->folder);
    snprintf(f->template, sizeof(f->template), "%s/T_VARS.fd", f->folder);
    snprintf(f->vars, sizeof(f->vars), "%s/vm.vars", f->folder);
    memset(p, 0x90, CODE_BYTES);
    put_file(f->code, p, CODE_BYTES);
    memset(p, 0xff, VARS_BYTES);
    memcpy(p + 40, "_FVH", 4);
    p[0] = 0x11;
    put_file(f->template, p, VARS_BYTES);
    free(p);
    snprintf(f->options, sizeof(f->options), "firmware=%s,uefi-vars=%s", f->code, f->vars);
    board_new(&f->b, flash_vm(f), f->options);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    board_free(&f->b);
    unlink(f->code);
    unlink(f->template);
    unlink(f->vars);
    assert_int_equal(rmdir(f->folder), 0); /* nothing else was left behind */
    free(f);
    return 0;
}

static uint8_t get(struct fixture *f, uint32_t at) { return (uint8_t)hvxtest_mmio_read(f->b.vm, VARS_GPA + at, 1); }
static void put(struct fixture *f, uint32_t at, uint8_t v) { hvxtest_mmio_write(f->b.vm, VARS_GPA + at, 1, v); }

static void program(struct fixture *f, uint32_t at, uint8_t v)
{
    put(f, at, 0x10);
    put(f, at, v);
    put(f, at, 0xff);
}

static void file_is_made_from_the_template(void **state)
{
    struct fixture *f = *state;
    struct stat st;
    assert_int_equal(stat(f->vars, &st), 0);
    assert_int_equal(st.st_size, VARS_BYTES);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(file_byte(f->vars, 0), 0x11);
    assert_int_equal(get(f, 0), 0x11);
    assert_int_equal(hvxtest_mmio_read(f->b.vm, 0xfffffff0, 1), 0x90); /* the code above it */
}

/* How OVMF tells flash from RAM and from ROM. */
static void looks_like_flash_to_ovmf(void **state)
{
    struct fixture *f = *state;
    put(f, 0, 0x50);
    assert_int_equal(get(f, 0), 0x11);
    put(f, 0, 0x70);
    assert_int_equal(get(f, 0), 0x00);
    put(f, 0, 0xff);
    assert_int_equal(get(f, 0), 0x11);
}

static void programmed_bytes_are_in_the_file(void **state)
{
    struct fixture *f = *state;
    put(f, 0x1234, 0x10);
    put(f, 0x1234, 0x5a);
    assert_int_equal(get(f, 0x1234), 0x80); /* status: ready, no error */
    assert_int_equal(file_byte(f->vars, 0x1234), 0xff);
    put(f, 0x1234, 0xff);
    assert_int_equal(get(f, 0x1234), 0x5a);
    assert_int_equal(file_byte(f->vars, 0x1234), 0x5a);
}

static void erasing_takes_one_block(void **state)
{
    struct fixture *f = *state;
    program(f, 0x1fff, 1);
    program(f, 0x2000, 2);
    program(f, 0x2fff, 3);
    program(f, 0x3000, 4);
    put(f, 0x2345, 0x20);
    put(f, 0x2345, 0xd0);
    put(f, 0x2345, 0xff);
    assert_int_equal(get(f, 0x1fff), 1);
    assert_int_equal(get(f, 0x2000), 0xff);
    assert_int_equal(file_byte(f->vars, 0x2fff), 0xff);
    assert_int_equal(get(f, 0x3000), 4);
    put(f, 0x3000, 0x20); /* not confirmed */
    put(f, 0x3000, 0x77);
    assert_int_equal(get(f, 0x3000), 0xb0);
    put(f, 0x3000, 0x50);
    assert_int_equal(get(f, 0x3000), 4);
}

static void buffered_write(void **state)
{
    struct fixture *f = *state;
    put(f, 0x4000, 0xe8);
    assert_int_equal(get(f, 0x4000), 0x80);
    put(f, 0x4000, 2); /* three bytes */
    put(f, 0x4010, 0xa1);
    put(f, 0x4011, 0xa2);
    put(f, 0x4012, 0xa3);
    put(f, 0x4000, 0xd0);
    put(f, 0x4000, 0xff);
    assert_int_equal(get(f, 0x4010), 0xa1);
    assert_int_equal(get(f, 0x4012), 0xa3);
    assert_int_equal(get(f, 0x4013), 0xff);
    put(f, 0x4000, 0xe8);
    put(f, 0x4000, 0);
    put(f, 0x5000, 1); /* another block */
    assert_int_equal(get(f, 0x4000) & 0x10, 0x10);
}

static void query_and_identifier(void **state)
{
    struct fixture *f = *state;
    put(f, 0x55, 0x98);
    assert_int_equal(get(f, 0x10), 'Q');
    assert_int_equal(get(f, 0x12), 'Y');
    assert_int_equal(get(f, 0x27), 16);                                    /* 2^16 bytes */
    assert_int_equal(get(f, 0x2d) | get(f, 0x2e) << 8, VARS_BYTES / 4096 - 1);
    assert_int_equal((get(f, 0x2f) | get(f, 0x30) << 8) * 256, 4096);
    put(f, 0, 0x90);
    assert_int_equal(get(f, 0), 0x89);
    put(f, 0, 0x33); /* no command: back to the contents, told to whoever watches */
    assert_int_equal(get(f, 0), 0x11);
    assert_int_equal(hvxtest_events(f->b.vm, "flash"), 1);
}

static void reset_shows_the_contents(void **state)
{
    struct fixture *f = *state;
    put(f, 0, 0x40);
    f->b.type->reset(f->b.dev);
    put(f, 0x10, 0x70); /* is a command again, not data */
    assert_int_equal(get(f, 0), 0x80);
    f->b.type->reset(f->b.dev);
    assert_int_equal(get(f, 0), 0x11);
}

static void a_second_run_finds_what_the_first_wrote(void **state)
{
    struct fixture *f = *state;
    program(f, 0x777, 0x42);
    board_free(&f->b);
    board_new(&f->b, flash_vm(f), f->options);
    assert_int_equal(get(f, 0x777), 0x42);
}

static void two_machines_cannot_share_a_file(void **state)
{
    struct fixture *f = *state;
    struct board other;
    struct hvx_error err = {0};
    assert_true(board_try(&other, flash_vm(f), f->options, &err) < 0);
    assert_non_null(strstr(err.text, "another virtual machine"));
    board_free(&other);
}

static void refuse(struct fixture *f, const char *options, const char *why)
{
    struct board other;
    struct hvx_error err = {0};
    assert_true(board_try(&other, flash_vm(f), options, &err) < 0);
    if (!strstr(err.text, why))
        fail_msg("\"%s\" does not say \"%s\"", err.text, why);
    board_free(&other);
}

static void foreign_files_are_refused(void **state)
{
    struct fixture *f = *state;
    char options[256], path[96];
    uint8_t bytes[8192];
    memset(bytes, 0, sizeof(bytes));
    snprintf(path, sizeof(path), "%s/foreign", f->folder);
    snprintf(options, sizeof(options), "firmware=%s,uefi-vars=%s", f->code, path);
    put_file(path, bytes, sizeof(bytes));
    refuse(f, options, "no file of UEFI variables");
    memcpy(bytes + 40, "_FVH", 4);
    put_file(path, bytes, sizeof(bytes));
    refuse(f, options, "belongs to other firmware");
    unlink(path);
    snprintf(options, sizeof(options), "firmware=%s,uefi-vars=%s/no/such/folder", f->code, f->folder);
    refuse(f, options, "name a file in a folder");
    snprintf(options, sizeof(options), "firmware=/x/OVMF_CODE_4M.secboot.fd,uefi-vars=%s", path);
    refuse(f, options, "system management mode");
    snprintf(options, sizeof(options), "firmware=/x/bios.bin,uefi-vars=%s", path);
    refuse(f, options, "two files");
}

static void state_carries_the_variables(void **state)
{
    struct fixture *f = *state;
    struct board *b = &f->b;
    struct hvx_error err = {0};
    uint8_t *saved = NULL;
    size_t n = 0;
    program(f, 0x100, 0x24);
    put(f, 0x200, 0x40); /* in the middle of a command */
    assert_int_equal(hvxtest_save(b->type->state, b->dev, 1, &saved, &n), 0);
    b->type->reset(b->dev);
    program(f, 0x100, 0x00);
    assert_int_equal(hvxtest_load(b->type->state, b->dev, 1, saved, n, &err), 0);
    assert_int_equal(file_byte(f->vars, 0x100), 0x24);
    put(f, 0x200, 0x99);
    put(f, 0x200, 0xff);
    assert_int_equal(get(f, 0x200), 0x99);
    assert_int_equal(get(f, 0x100), 0x24);
    free(saved);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(file_is_made_from_the_template), T(looks_like_flash_to_ovmf), T(programmed_bytes_are_in_the_file),
        T(erasing_takes_one_block), T(buffered_write), T(query_and_identifier), T(reset_shows_the_contents),
        T(a_second_run_finds_what_the_first_wrote), T(two_machines_cannot_share_a_file),
        T(foreign_files_are_refused), T(state_carries_the_variables),
    };
    return cmocka_run_group_tests_name("flash", tests, NULL, NULL);
}
