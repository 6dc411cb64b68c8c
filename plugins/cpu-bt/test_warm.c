/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/test_warm.c - the option translation-cache: the second VM need
 * not translate, wherever its code is; what a file must be so that it is used;
 * and that nothing but the same bytes gets a translation of another VM's.
 */
#define _GNU_SOURCE
#include "test_warm.h"
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#define A_CONSTANT 0x1020304u

static char folder[64], path[100], other[100];
static struct warm_machine m, second;

static int setup(void **state)
{
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/test_warm-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof(path), "%s/file", folder);
    snprintf(other, sizeof(other), "%s/other", folder);
    return 0;
}
static int teardown(void **state)
{
    (void)state;
    unlink(path);
    unlink(other);
    return rmdir(folder);
}

/* A VM from its start to its end. */
static void one(uint64_t at, uint32_t constant)
{
    if (!warm_start(&m, path))
        fail_msg("%s", m.h.log);
    warm_run(&m, at, constant);
    warm_end(&m);
    assert_true(m.result == warm_expect(constant));
}
static void says(const char *what)
{
    if (!strstr(m.h.log, what))
        fail_msg("the log lacks \"%s\": %s", what, m.h.log);
}
static void cold(void)
{
    assert_true(m.loaded == 0 && m.blocks > 4);
}
static void warm(void)
{
    assert_true(m.loaded > 4 && m.loaded > 3 * m.blocks);
}

static void poke(uint64_t at, uint8_t with)
{
    uint8_t b = 0;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0 && pread(fd, &b, 1, (off_t)at) == 1);
    b ^= with;
    assert_true(pwrite(fd, &b, 1, (off_t)at) == 1);
    close(fd);
}
static struct warm_header header(void)
{
    struct warm_header h = {0};
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0 && read(fd, &h, sizeof(h)) == sizeof(h));
    close(fd);
    return h;
}
static void header_set(struct warm_header h)
{
    int fd = open(path, O_WRONLY);
    h.sum = bt_warm_sum(0, &h, offsetof(struct warm_header, sum));
    assert_true(fd >= 0 && write(fd, &h, sizeof(h)) == sizeof(h));
    close(fd);
}

static void the_second_vm_is_warm(void **state)
{
    (void)state;
    struct stat st;
    one(WARM_USER_A, A_CONSTANT);
    cold();
    assert_true(m.kept > 4);
    assert_true(!stat(path, &st) && S_ISREG(st.st_mode) && (st.st_mode & 0777) == 0600);
    one(WARM_USER_A, A_CONSTANT);
    warm();
    one(WARM_LOW, A_CONSTANT); /* what was at 4 GiB and above cannot be there */
    cold();
    one(WARM_LOW, A_CONSTANT);
    warm();
    one(WARM_LOW + 0x1000, A_CONSTANT); /* nor can that be elsewhere */
    cold();
}

static void at_another_address(void **state)
{
    (void)state;
    one(WARM_USER_A, A_CONSTANT);
    one(WARM_USER_B + 0x5000, A_CONSTANT);
    warm();
    one(WARM_KERNEL_A, A_CONSTANT); /* another mode */
    cold();
    one(WARM_KERNEL_B + 0x3000, A_CONSTANT);
    warm();
}

static void only_for_the_same_bytes(void **state)
{
    (void)state;
    one(WARM_USER_A, A_CONSTANT);
    one(WARM_USER_A, A_CONSTANT + 1);
    assert_true(m.blocks >= 1 && m.loaded > 4);
    /* in a running VM, too: its own are entered at once */
    if (!warm_start(&m, path))
        fail();
    for (uint32_t i = 0; i < 20; i++) {
        warm_run(&m, i & 1 ? WARM_USER_A : WARM_USER_B + 0x1000 * i, A_CONSTANT + i / 3);
        assert_true(m.result == warm_expect(A_CONSTANT + i / 3));
    }
    warm_end(&m);
}

static void damaged_files(void **state)
{
    (void)state;
    one(WARM_USER_A, A_CONSTANT);
    struct warm_header h = header();
    poke(40, 1); /* the header */
    one(WARM_USER_A, A_CONSTANT);
    cold();
    says("is not used, the VM starts cold: its header is damaged");
    one(WARM_USER_A, A_CONSTANT); /* made anew */
    warm();
    h = header();
    poke(h.index + 3, 0x10);
    one(WARM_USER_A, A_CONSTANT);
    cold();
    says("its contents are damaged");
    one(WARM_USER_A, A_CONSTANT);
    warm();
    h = header(); /* records: each is looked at when it is wanted */
    for (uint64_t at = h.start + 200; at < h.index; at += 64)
        poke(at, 0x40);
    one(WARM_USER_A, A_CONSTANT);
    assert_true(m.loaded == 0);
    one(WARM_USER_A, A_CONSTANT); /* and made anew */
    warm();
    h = header();
    assert_true(!truncate(path, (off_t)h.index + 8));
    one(WARM_USER_A, A_CONSTANT);
    cold();
    says("it is cut off");
    h = header();
    h.n_records = ~0ull;
    header_set(h);
    one(WARM_USER_A, A_CONSTANT);
    cold();
    says("it is cut off");
    assert_true(!truncate(path, 20));
    one(WARM_USER_A, A_CONSTANT);
    cold();
    one(WARM_USER_A, A_CONSTANT);
    warm();
}

static void of_another_build(void **state)
{
    (void)state;
    one(WARM_USER_A, A_CONSTANT);
    struct warm_header h = header();
    h.id[0] ^= 1;
    header_set(h);
    one(WARM_USER_A, A_CONSTANT);
    cold();
    says("another build of the engine made it");
    one(WARM_USER_A, A_CONSTANT);
    warm();
    h = header();
    h.id[3] ^= 1;
    header_set(h);
    one(WARM_USER_A, A_CONSTANT);
    cold();
    says("another host processor, CPU model");
    h = header();
    h.version++;
    header_set(h);
    one(WARM_USER_A, A_CONSTANT);
    cold();
    says("another version");
}

static void files_that_are_not_ours_to_use(void **state)
{
    (void)state;
    one(WARM_USER_A, A_CONSTANT);
    assert_true(!rename(path, other) && !symlink(other, path));
    one(WARM_USER_A, A_CONSTANT);
    cold();
    says("is not used, the VM starts cold: it is a symbolic link");
    assert_true(!unlink(path) && !rename(other, path) && !chmod(path, 0620));
    one(WARM_USER_A, A_CONSTANT);
    cold();
    says("others may write to it");
    assert_true(!chmod(path, 0602));
    one(WARM_USER_A, A_CONSTANT);
    cold();
    says("others may write to it");
    assert_true(!chmod(path, 0644));
    one(WARM_USER_A, A_CONSTANT);
    warm();
    if (!geteuid()) { /* only root can give files away, and open those of others */
        assert_true(!chown(path, 12345, (gid_t)-1));
        one(WARM_USER_A, A_CONSTANT);
        cold();
        says("it belongs to another user");
    }
    assert_true(!unlink(path) && !mkfifo(path, 0600));
    one(WARM_USER_A, A_CONSTANT);
    cold();
    says("it is not a regular file");
    assert_true(!unlink(path));
    snprintf(path, sizeof(path), "%s/no/such", folder);
    one(WARM_USER_A, A_CONSTANT);
    cold();
    says("No such file");
    snprintf(path, sizeof(path), "%s/file", folder);
}

static void what_is_no_cache_stays_as_it_is(void **state)
{
    (void)state;
    static const char text[] =
        "somebody's only copy of something else, longer than any header would be if it were one of ours; "
        "0123456789012345678901234567890123456789";
    char back[sizeof(text)];
    FILE *f = fopen(path, "w");
    assert_true(f && fwrite(text, 1, sizeof(text), f) == sizeof(text) && !fclose(f));
    one(WARM_USER_A, A_CONSTANT);
    cold();
    says("is not used and not written: it is no translation cache");
    f = fopen(path, "r");
    assert_true(f && fread(back, 1, sizeof(back), f) == sizeof(back) && fgetc(f) == EOF && !fclose(f));
    assert_memory_equal(text, back, sizeof(text));
}

static void two_at_the_same_time(void **state)
{
    (void)state;
    if (!warm_start(&second, path))
        fail();
    warm_run(&second, WARM_LOW, A_CONSTANT);
    one(WARM_USER_A, A_CONSTANT);
    one(WARM_KERNEL_A, A_CONSTANT);
    warm_run(&second, WARM_LOW, A_CONSTANT + 7);
    assert_true(second.result == warm_expect(A_CONSTANT + 7));
    warm_end(&second);
    one(WARM_USER_B, A_CONSTANT); /* each has added to what the others have */
    warm();
    one(WARM_KERNEL_B, A_CONSTANT);
    warm();
    one(WARM_LOW, A_CONSTANT);
    warm();
    /* the file goes while a VM uses it */
    if (!warm_start(&second, path))
        fail();
    assert_true(!truncate(path, 0));
    warm_run(&second, WARM_LOW, A_CONSTANT);
    assert_true(second.result == warm_expect(A_CONSTANT) && second.loaded == 0);
    warm_end(&second);
    one(WARM_LOW, A_CONSTANT);
    warm();
}

/* While a VM runs, one with another CPU model makes the file anew: records of one kind lie where those of the other
 * did. */
static void made_anew_for_another_model(void **state)
{
    (void)state;
    one(WARM_USER_A, A_CONSTANT);
    if (!warm_start(&second, path))
        fail();
    struct bt_warm *w = ((struct bt_vm *)second.h.vm)->warm;
    assert_true(w->n_index > 4);
    uint64_t id = w->id[2];
    assert_true(bt_warm_fetch(w, &w->arena[0], 0) != NULL);
    w->id[2] ^= 1;
    w->arena[0].read_bytes = 0;
    assert_true(bt_warm_fetch(w, &w->arena[0], 0) == NULL);
    warm_run(&second, WARM_USER_A, A_CONSTANT);
    assert_true(second.result == warm_expect(A_CONSTANT) && second.loaded == 0);
    warm_end(&second); /* for its model the file is no good: anew */
    assert_true(header().id[2] == (id ^ 1) && header().epoch == header().generation);
    one(WARM_USER_A, A_CONSTANT);
    cold();
}

static void what_cannot_be_written_leaves_the_old_one(void **state)
{
    (void)state;
    struct stat st, after;
    struct rlimit old = {0}, small;
    one(WARM_USER_A, A_CONSTANT);
    assert_true(!stat(path, &st) && !getrlimit(RLIMIT_FSIZE, &old));
    signal(SIGXFSZ, SIG_IGN);
    small = old;
    small.rlim_cur = (rlim_t)st.st_size + 1000; /* as on a full disk */
    assert_true(!setrlimit(RLIMIT_FSIZE, &small));
    one(WARM_KERNEL_A, A_CONSTANT);
    assert_true(!setrlimit(RLIMIT_FSIZE, &old));
    says("cannot be written: File too large");
    assert_true(!stat(path, &after) && after.st_size <= st.st_size + 8);
    one(WARM_USER_B, A_CONSTANT);
    warm();
}

/* A file does not grow with every VM: what is replaced makes room. */
static void many_vms(void **state)
{
    (void)state;
    struct stat st;
    blkcnt_t first = 0;
    for (uint32_t i = 0; i < 60; i++) {
        one(i & 1 ? WARM_USER_A : WARM_KERNEL_A, A_CONSTANT + i / 2 % 3);
        assert_true(!stat(path, &st));
        if (i == 10)
            first = st.st_blocks;
    }
    assert_true(st.st_blocks <= first + 8);
    warm();
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(the_second_vm_is_warm),
        T(at_another_address),
        T(only_for_the_same_bytes),
        T(damaged_files),
        T(of_another_build),
        T(files_that_are_not_ours_to_use),
        T(what_is_no_cache_stays_as_it_is),
        T(two_at_the_same_time),
        T(made_anew_for_another_model),
        T(what_cannot_be_written_leaves_the_old_one),
        T(many_vms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
