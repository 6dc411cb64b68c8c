/* SPDX-License-Identifier: Apache-2.0
 *
 * test_qemu.c - with qemu-img and qemu-io as witnesses: images that they
 * made, read and written by us, then checked and compared by them. Skipped
 * where they are not installed.
 */
#include "core/image/blk.h"
#include "core/image/qcow2.h"
#include "core/image/test_util.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>

#define DISK (6u << 20)

static bool have_qemu;
static uint8_t *model;

#define NEED_QEMU()      \
    do {                 \
        if (!have_qemu)  \
            skip();      \
    } while (0)

static struct hvx_image *open_rw(const char *name, unsigned flags)
{
    struct hvx_image_open p = {.path = in_dir(name), .format = "qcow2", .file_flags = flags};
    struct hvx_image *img;
    struct hvx_error err = {0};
    if (hvx_image_open(&p, &img, &err))
        fail_msg("%s", err.text);
    return img;
}

static int open_fails(const char *name, const char *says)
{
    struct hvx_image_open p = {.path = in_dir(name), .format = "qcow2"};
    struct hvx_image *img;
    struct hvx_error err = {0};
    int r = hvx_image_open(&p, &img, &err);
    if (!r || !strstr(err.text, says))
        fail_msg("%s: %d \"%s\", should say \"%s\"", name, r, err.text, says);
    return r;
}

static void save_model(const char *name)
{
    FILE *f = fopen(in_dir(name), "w");
    assert_non_null(f);
    assert_int_equal(fwrite(model, 1, DISK, f), DISK);
    fclose(f);
}

static void load_model(const char *name)
{
    FILE *f = fopen(in_dir(name), "r");
    assert_non_null(f);
    assert_int_equal(fread(model, 1, DISK, f), DISK);
    fclose(f);
}

static void verify(const char *image)
{
    save_model("model.raw");
    if (shell("qemu-img check -f qcow2 %s", image))
        fail_msg("qemu-img check %s; see the log in %s", image, test_dir);
    if (shell("qemu-img compare -f qcow2 -F raw %s model.raw", image))
        fail_msg("qemu-img compare %s", image);
}

static void test_every_option_of_qemu_img(void **state)
{
    static const char *const options[] = {
        "cluster_size=512",
        "cluster_size=1k,refcount_bits=1",
        "cluster_size=4k,refcount_bits=2",
        "cluster_size=64k",
        "cluster_size=2M",
        "compat=0.10",
        "compat=0.10,cluster_size=512",
        "lazy_refcounts=on",
        "refcount_bits=64,cluster_size=512",
        "preallocation=metadata",
        "preallocation=falloc,cluster_size=8k",
        "compression_type=zstd,cluster_size=32k",
        "preallocation=full,refcount_bits=8",
        "cluster_size=1M,refcount_bits=4",
    };
    (void)state;
    NEED_QEMU();
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        assert_int_equal(shell("rm -f o.qcow2; qemu-img create -f qcow2 -o %s o.qcow2 6M", options[i]), 0);
        memset(model, 0, DISK);
        rnd_seed(i + 10);
        for (unsigned round = 0; round < 2; round++) {
            struct hvx_image *img = open_rw("o.qcow2", HVX_FILE_WRITE);
            random_ops(img, model, 250);
            hvx_image_close(img);
            verify("o.qcow2");
        }
    }
}

static void test_o_direct(void **state)
{
    (void)state;
    NEED_QEMU();
    assert_int_equal(shell("qemu-img create -f qcow2 -o cluster_size=512 d.qcow2 6M"), 0);
    memset(model, 0, DISK);
    rnd_seed(31);
    struct hvx_image *img = open_rw("d.qcow2", HVX_FILE_WRITE | HVX_FILE_DIRECT);
    random_ops(img, model, 60);
    hvx_image_close(img);
    verify("d.qcow2");
}

/* Text that compresses, random bytes that do not, and holes. */
static void make_source(const char *name)
{
    memset(model, 0, DISK);
    for (unsigned i = 0; i < DISK / 2; i++)
        model[i] = "compressible "[(i / 3) % 13];
    rnd_seed(8);
    fill_random(model + DISK / 4, DISK / 8);
    memset(model + DISK / 8, 0, 200000);
    save_model(name);
}

static void test_compressed_images(void **state)
{
    static const char *const options[] = {"compression_type=zlib",
                                          "compression_type=zstd",
                                          "compat=0.10",
                                          "cluster_size=512",
                                          "cluster_size=2M,compression_type=zstd",
                                          "cluster_size=4k"};
    (void)state;
    NEED_QEMU();
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        make_source("source.raw");
        assert_int_equal(shell("qemu-img convert -c -f raw -O qcow2 -o %s source.raw c.qcow2", options[i]), 0);
        struct hvx_image *img = open_rw("c.qcow2", HVX_FILE_WRITE);
        rnd_seed(i);
        assert_clean(img);
        random_ops(img, model, 1);
        random_ops(img, model, 200); /* writes over compressed clusters free them piece by piece */
        hvx_image_close(img);
        verify("c.qcow2");
    }
}

static void test_backing_chain(void **state)
{
    static const char *const top[] = {"", "-o cluster_size=512", "-o compat=0.10"};
    (void)state;
    NEED_QEMU();
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(shell("rm -rf sub; mkdir sub"), 0);
        make_source("sub/base.raw");
        /* a short base, a compressed layer written by qemu-io, an empty one, ours */
        assert_int_equal(
            shell("truncate -s 5000192 sub/base.raw && cp sub/base.raw base.copy && "
                  "qemu-img create -f qcow2 -b sub/base.raw -F raw mid.qcow2 6M && "
                  "qemu-io -c 'write -c -P 7 1M 64k' -c 'write -P 8 3M 100k' -c 'write -z 2M 1M' mid.qcow2 && "
                  "qemu-img create -f qcow2 -b mid.qcow2 -F qcow2 mid2.qcow2 && "
                  "qemu-img create -f qcow2 %s -b ./mid2.qcow2 -F qcow2 top.qcow2 && "
                  "qemu-img convert -O raw top.qcow2 top.raw",
                  top[i]),
            0);
        load_model("top.raw");
        struct hvx_image *img = open_rw("top.qcow2", HVX_FILE_WRITE);
        rnd_seed(40 + i);
        random_ops(img, model, 300);
        hvx_image_close(img);
        verify("top.qcow2");
        assert_int_equal(shell("cmp sub/base.raw base.copy && qemu-img check mid.qcow2"), 0);
    }
}

static void test_internal_snapshots_survive(void **state)
{
    static const char *const options[] = {"cluster_size=64k", "cluster_size=512", "compat=0.10,cluster_size=4k"};
    (void)state;
    NEED_QEMU();
    for (unsigned i = 0; i < 3; i++) {
        make_source("source.raw");
        assert_int_equal(shell("qemu-img convert -f raw -O qcow2 -o %s source.raw s.qcow2 && "
                               "qemu-img snapshot -c one s.qcow2", options[i]), 0);
        rnd_seed(60 + i);
        struct hvx_image *img = open_rw("s.qcow2", HVX_FILE_WRITE);
        random_ops(img, model, 150);
        hvx_image_close(img);
        verify("s.qcow2");
        save_model("two.raw");
        assert_int_equal(shell("qemu-img snapshot -c two s.qcow2"), 0);
        img = open_rw("s.qcow2", HVX_FILE_WRITE);
        random_ops(img, model, 150);
        hvx_image_close(img);
        verify("s.qcow2");
        /* Both snapshots still hold what they held. */
        assert_int_equal(shell("qemu-img convert -l one -f qcow2 -O raw s.qcow2 now.raw && cmp now.raw source.raw"), 0);
        assert_int_equal(shell("qemu-img convert -l two -f qcow2 -O raw s.qcow2 now.raw && cmp now.raw two.raw"), 0);
        assert_int_equal(shell("qemu-img snapshot -a one s.qcow2 && qemu-img compare s.qcow2 source.raw && "
                               "qemu-img snapshot -d two s.qcow2 && qemu-img check s.qcow2"), 0);
        img = open_rw("s.qcow2", 0);
        assert_clean(img);
        hvx_image_close(img);
    }
}

static void test_qemus_dirty_image_is_repaired(void **state)
{
    (void)state;
    NEED_QEMU();
    assert_int_equal(shell("qemu-img create -f qcow2 -o lazy_refcounts=on l.qcow2 6M && "
                           "(qemu-io -c 'write -P 9 0 2M' -c flush -c 'abort' l.qcow2; true)"), 0);
    memset(model, 0, DISK);
    memset(model, 9, 2 << 20);
    struct hvx_image *img = open_rw("l.qcow2", 0); /* reading needs no refcounts */
    random_ops(img, model, 0);
    struct hvx_qcow2_info info;
    hvx_qcow2_get_info(img, &info);
    assert_true(info.dirty);
    hvx_image_close(img);
    img = open_rw("l.qcow2", HVX_FILE_WRITE);
    rnd_seed(3);
    random_ops(img, model, 100);
    hvx_image_close(img);
    verify("l.qcow2");
}

static void test_our_images_in_qemus_hands(void **state)
{
    static const struct hvx_qcow2_create c[] = {
        {.bytes = DISK}, {.bytes = DISK, .version = 2}, {.bytes = DISK, .cluster_bytes = 512, .refcount_bits = 64},
        {.bytes = DISK, .cluster_bytes = 2u << 20, .refcount_bits = 1, .lazy_refcounts = true},
        {.bytes = DISK, .cluster_bytes = 1024, .backing_name = "model.raw", .backing_format = "raw"},
    };
    (void)state;
    NEED_QEMU();
    for (size_t i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
        struct hvx_file *f;
        struct hvx_error err;
        memset(model, 0x33, DISK);
        save_model("model.raw");
        assert_int_equal(hvx_file_open(in_dir("n.qcow2"), HVX_FILE_WRITE | HVX_FILE_CREATE, &f, &err), 0);
        assert_int_equal(hvx_qcow2_create(f, &c[i], &err), 0);
        hvx_file_close(f);
        if (!c[i].backing_name)
            memset(model, 0, DISK);
        verify("n.qcow2");
        assert_int_equal(shell("qemu-io -c 'write -P 5 100k 3M' n.qcow2"), 0);
        memset(model + 102400, 5, 3 << 20);
        verify("n.qcow2");
        struct hvx_image *img = open_rw("n.qcow2", HVX_FILE_WRITE);
        if (!c[i].backing_name) {
            rnd_seed(i);
            random_ops(img, model, 100);
        }
        hvx_image_close(img);
        verify("n.qcow2");
    }
}

/* --- killed in the middle --------------------------------------------------------- */
struct journal { /* shared with the child that gets killed */
    volatile uint32_t flushed[DISK / 4096], written[DISK / 4096]; /* versions of each 4 KiB block */
    uint32_t torn[DISK / 4096]; /* the version that a kill tore; the rounds after it find it still so */
};

static struct hvx_loop *child_loop;
static void child_done(struct hvx_blk_req *req)
{
    *(bool *)req->opaque = true;
    hvx_loop_stop(child_loop);
}

static int child_request(struct hvx_blk *b, uint32_t op, uint64_t off, void *buf, uint64_t bytes)
{
    bool done = false;
    struct iovec v = {buf, bytes};
    struct hvx_blk_req req = {.op = op, .offset = off, .bytes = bytes, .iov = &v, .n_iov = bytes ? 1 : 0,
                              .done = child_done, .opaque = &done};
    hvx_loop_lock(child_loop);
    hvx_blk_submit(b, &req);
    hvx_loop_unlock(child_loop);
    hvx_loop_run(child_loop);
    return req.result;
}

static void stamp(uint8_t *buf, uint32_t block, uint32_t version)
{
    for (unsigned i = 0; i < 4096; i += 8) {
        memcpy(buf + i, &block, 4);
        memcpy(buf + i + 4, &version, 4);
    }
}

static void child(struct journal *j, uint64_t seed)
{
    struct hvx_blk_open p = {.path = in_dir("k.qcow2"), .format = "qcow2"};
    struct hvx_error err;
    struct hvx_blk *b;
    static uint8_t buf[65536];
    uint32_t version = (uint32_t)seed * 100000;
    rnd_seed(seed);
    if (hvx_loop_new(&child_loop, &err) || hvx_blk_open(child_loop, &p, &b, &err))
        _exit(1);
    for (;;) {
        uint32_t block = (uint32_t)rnd(DISK / 4096 - 16), n = 1 + (uint32_t)rnd(16);
        version++;
        for (uint32_t i = 0; i < n; i++) {
            stamp(buf + i * 4096, block + i, version);
            j->written[block + i] = version;
        }
        if (child_request(b, HVX_BLK_WRITE, block * 4096ull, buf, n * 4096ull))
            _exit(2);
        if (!rnd(12)) {
            if (child_request(b, HVX_BLK_FLUSH, 0, NULL, 0))
                _exit(3);
            for (unsigned i = 0; i < DISK / 4096; i++)
                j->flushed[i] = j->written[i];
        }
    }
}

static void test_killed_while_writing(void **state)
{
    struct journal *j = mmap(NULL, sizeof(*j), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    (void)state;
    NEED_QEMU();
    for (unsigned round = 0; round < 24; round++) {
        if (round % 8 == 0) { /* then go on with what the last one left */
            memset(j, 0, sizeof(*j));
            assert_int_equal(shell("rm -f k.qcow2; qemu-img create -f qcow2 -o cluster_size=%s k.qcow2 6M",
                                   round == 0 ? "64k" : round == 8 ? "512" : "4k"), 0);
        }
        pid_t pid = fork();
        if (!pid)
            child(j, round + 1);
        struct timespec t = {0, 3000000 + (long)(round * 7919 % 40) * 1000000}; /* at whatever point that is */
        nanosleep(&t, NULL);
        kill(pid, SIGKILL);
        int status;
        waitpid(pid, &status, 0);
        assert_true(WIFSIGNALED(status));
        int check;
        /* The kernel ends a killed process's io_uring requests a little later than the process, and keeps its file
         * and our lock until then: 1 says that the image could not be opened. */
        for (unsigned tries = 0; (check = shell("qemu-img check k.qcow2")) == 1 && tries < 100; tries++)
            nanosleep(&(struct timespec){0, 20000000}, NULL);
        if (check != 0 && check != 3) /* 3: leaks only */
            fail_msg("round %u: qemu-img check says %d", round, check);
        struct hvx_image *img = open_rw("k.qcow2", 0);
        static uint8_t buf[4096], want[4096];
        for (uint32_t i = 0; i < DISK / 4096; i++) {
            uint32_t found;
            assert_int_equal(img_read(img, buf, i * 4096ull, 4096), 0);
            memcpy(&found, buf + 4, 4);
            if (found < j->flushed[i] || found > j->written[i])
                fail_msg("round %u block %u: version %u, flushed %u", round, i, found, j->flushed[i]);
            memset(want, 0, sizeof(want));
            if (found)
                stamp(want, i, found);
            bool whole = !memcmp(buf, want, 4096);
            if (found == j->flushed[i] && found != j->torn[i] && !whole) /* one that was never flushed may be torn */
                fail_msg("round %u block %u: version %u was flushed and is torn", round, i, found);
            j->torn[i] = whole ? 0 : found;
            j->flushed[i] = found;
            j->written[i] = found;
        }
        hvx_image_close(img);
        if (check == 3)
            assert_int_equal(shell("qemu-img check -r leaks k.qcow2"), 0);
    }
    munmap(j, sizeof(*j));
}

/* --- what is refused ------------------------------------------------------------------ */
static void test_formats_that_are_refused(void **state)
{
    (void)state;
    NEED_QEMU();
    assert_int_equal(shell("qemu-img create -f qcow2 -o extended_l2=on,cluster_size=128k e.qcow2 6M && "
                           "qemu-img create -f qcow2 -o data_file=x.raw x.qcow2 6M"), 0);
    /* luks fails on a machine under load ("Unable to calculate iteration
     * count"), through no fault of ours: then the header lies do for it */
    int luks = shell("qemu-img create -f qcow2 --object secret,id=s,data=abc -o "
                     "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 luks.qcow2 6M");
    assert_int_equal(open_fails("e.qcow2", "extended L2"), -ENOTSUP);
    assert_int_equal(open_fails("x.qcow2", "external data file"), -ENOTSUP);
    if (!luks)
        assert_int_equal(open_fails("luks.qcow2", "encrypted"), -ENOTSUP);
}

static void test_backing_files_that_are_refused(void **state)
{
    (void)state;
    NEED_QEMU();
    assert_int_equal(
        shell(
            "mkdir -p in; head -c 6M /dev/zero >out.raw; head -c 6M /dev/zero >in/b.raw; ln -s ../out.raw in/link.raw;"
            "qemu-img create -f qcow2 -b ../out.raw -F raw in/up.qcow2 && "
            "qemu-img create -f qcow2 -b '%s/out.raw' -F raw in/abs.qcow2 && "
            "qemu-img create -f qcow2 -b link.raw -F raw in/link.qcow2 && "
            "qemu-img create -u -f qcow2 -b nbd://localhost/x -F raw in/nbd.qcow2 6M && "
            "qemu-img create -u -f qcow2 -b b.raw in/noformat.qcow2 6M; "
            "qemu-img create -u -f qcow2 -b gone.raw -F raw in/gone.qcow2 6M && "
            "qemu-img create -u -f qcow2 -b b.raw -F vmdk in/vmdk.qcow2 6M; "
            "qemu-img create -u -f qcow2 -b loop2.qcow2 -F qcow2 in/loop1.qcow2 6M && "
            "qemu-img create -u -f qcow2 -b loop1.qcow2 -F qcow2 in/loop2.qcow2 6M && "
            "qemu-img create -f qcow2 -b b.raw -F raw in/0.qcow2 && for i in $(seq 40); do "
            "qemu-img create -u -q -f qcow2 -b $((i-1)).qcow2 -F qcow2 in/$i.qcow2 6M; done",
            test_dir),
        0);
    assert_int_equal(open_fails("in/up.qcow2", "outside of the image's own folder"), -EPERM);
    assert_int_equal(open_fails("in/abs.qcow2", "outside of the image's own folder"), -EPERM);
    assert_int_equal(open_fails("in/link.qcow2", "outside of the image's own folder"), -EPERM);
    assert_int_equal(open_fails("in/nbd.qcow2", "network or driver"), -EINVAL);
    assert_int_equal(open_fails("in/gone.qcow2", "cannot be found"), -ENOENT);
    assert_int_equal(open_fails("in/loop1.qcow2", "the chain has no end"), -ELOOP);
    assert_int_equal(open_fails("in/40.qcow2", "more than 32"), -ELOOP);
    struct hvx_image_open p = {.path = in_dir("in/up.qcow2"), .format = "qcow2", .allow_backing_outside = true};
    struct hvx_image *img;
    struct hvx_error err;
    assert_int_equal(hvx_image_open(&p, &img, &err), 0);
    hvx_image_close(img);
    /* qemu-img 7.2 insists on a format; older images lack it */
    struct hvx_file *f;
    struct hvx_qcow2_create c = {.bytes = DISK, .backing_name = "b.raw", .backing_format = ""};
    assert_int_equal(hvx_file_open(in_dir("in/nofmt.qcow2"), HVX_FILE_WRITE | HVX_FILE_CREATE, &f, &err), 0);
    assert_int_equal(hvx_qcow2_create(f, &c, &err), 0);
    hvx_file_close(f);
    assert_int_equal(open_fails("in/nofmt.qcow2", "does not say in which format"), -EINVAL);
}

static void test_qemu_respects_our_lock_and_we_its(void **state)
{
    (void)state;
    NEED_QEMU();
    assert_int_equal(shell("qemu-img create -f qcow2 lock.qcow2 6M"), 0);
    struct hvx_image *img = open_rw("lock.qcow2", HVX_FILE_WRITE);
    assert_int_not_equal(shell("qemu-io -c 'write 0 512' lock.qcow2"), 0);
    assert_int_not_equal(shell("qemu-img info lock.qcow2"), 0);
    hvx_image_close(img);
    img = open_rw("lock.qcow2", 0);
    assert_int_not_equal(shell("qemu-io -c 'write 0 512' lock.qcow2"), 0);
    assert_int_equal(shell("qemu-img info lock.qcow2"), 0);
    hvx_image_close(img);
    /* qemu-io holds it while its standard input stays open */
    FILE *qemu;
    char cmd[1600];
    snprintf(cmd, sizeof(cmd), "exec qemu-io -f qcow2 '%s' >'%s' 2>&1", in_dir("lock.qcow2"), in_dir("io.log"));
    qemu = popen(cmd, "w");
    fputs("write 0 512\n", qemu);
    fflush(qemu);
    struct stat st = {0};
    for (unsigned i = 0; i < 500 && st.st_size < 10; i++) {
        struct timespec t = {0, 10000000};
        nanosleep(&t, NULL); /* another process: nothing to wait on but its output */
        stat(in_dir("io.log"), &st);
    }
    assert_int_equal(open_fails("lock.qcow2", "being written"), -EAGAIN);
    pclose(qemu);
    img = open_rw("lock.qcow2", HVX_FILE_WRITE);
    hvx_image_close(img);
}

static int setup(void **state)
{
    model = malloc(DISK);
    have_qemu = !system("qemu-img --version >/dev/null 2>&1 && qemu-io --version >/dev/null 2>&1");
    if (!have_qemu)
        fprintf(stderr, "qemu-img or qemu-io is missing (package qemu-utils): skipped\n");
    return make_test_dir(state);
}

static int teardown(void **state)
{
    free(model);
    return remove_test_dir(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_option_of_qemu_img),
        cmocka_unit_test(test_o_direct),
        cmocka_unit_test(test_compressed_images),
        cmocka_unit_test(test_backing_chain),
        cmocka_unit_test(test_internal_snapshots_survive),
        cmocka_unit_test(test_qemus_dirty_image_is_repaired),
        cmocka_unit_test(test_our_images_in_qemus_hands),
        cmocka_unit_test(test_killed_while_writing),
        cmocka_unit_test(test_formats_that_are_refused),
        cmocka_unit_test(test_backing_files_that_are_refused),
        cmocka_unit_test(test_qemu_respects_our_lock_and_we_its),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
