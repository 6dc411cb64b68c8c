/* SPDX-License-Identifier: Apache-2.0
 *
 * test_blk.c - the front: requests of all kinds at once, over both engines
 * and all cache modes, against a model; order of conflicting requests; what
 * is refused; locks; snapshot=on.
 */
#include "core/image/blk.h"
#include "core/image/qcow2.h"
#include "core/image/test_util.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define DISK (8u << 20)
#define SLOTS 64u

static struct hvx_loop *loop;

struct slot {
    struct hvx_blk_req req;
    struct iovec iov[8];
    uint8_t *buf;
    bool busy;
    bool inside_submit;
};

static struct slot slots[SLOTS];
static uint8_t *model;
static unsigned n_busy, n_started, n_wanted;
static struct hvx_blk *blk;
static bool in_submit;

static struct hvx_blk *open_blk(const struct hvx_blk_open *p)
{
    struct hvx_blk *b;
    struct hvx_error err = {0};
    hvx_loop_lock(loop);
    int r = hvx_blk_open(loop, p, &b, &err);
    hvx_loop_unlock(loop);
    if (r)
        fail_msg("%s", err.text);
    return b;
}

static int open_error(const struct hvx_blk_open *p, const char *says)
{
    struct hvx_blk *b;
    struct hvx_error err = {0};
    int r = hvx_blk_open(loop, p, &b, &err);
    if (!r || !strstr(err.text, says))
        fail_msg("%d \"%s\", should say \"%s\"", r, err.text, says);
    return r;
}

static void close_blk(struct hvx_blk *b)
{
    hvx_loop_lock(loop);
    hvx_blk_close(b);
    hvx_loop_unlock(loop);
}

static void stop_when_done(struct hvx_blk_req *req)
{
    assert_false(in_submit);
    *(bool *)req->opaque = true;
    hvx_loop_stop(loop);
}

static int one_request(struct hvx_blk *b, uint32_t op, uint32_t flags, uint64_t off, void *buf, uint64_t bytes)
{
    bool done = false;
    struct iovec v = {buf, bytes};
    struct hvx_blk_req req = {.op = op, .flags = flags, .offset = off, .bytes = bytes, .iov = &v, .n_iov = buf ? 1 : 0,
                              .done = stop_when_done, .opaque = &done};
    hvx_loop_lock(loop);
    in_submit = true;
    hvx_blk_submit(b, &req);
    in_submit = false;
    hvx_loop_unlock(loop);
    hvx_loop_run(loop);
    assert_true(done);
    return req.result;
}

/* --- many at once ------------------------------------------------------------- */
static void start_next(struct slot *s);

static bool overlaps_running(uint64_t off, uint64_t bytes)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        if (slots[i].busy && off < slots[i].req.offset + slots[i].req.bytes && slots[i].req.offset < off + bytes)
            return true;
    }
    return false;
}

static void on_done(struct hvx_blk_req *req)
{
    struct slot *s = req->opaque;
    assert_false(in_submit);
    assert_int_equal(req->result, 0);
    if (req->op == HVX_BLK_READ)
        assert_memory_equal(s->buf, model + req->offset, req->bytes);
    s->busy = false;
    n_busy--;
    if (n_started < n_wanted)
        start_next(s);
    else if (!n_busy)
        hvx_loop_stop(loop);
}

static void start_next(struct slot *s)
{
    struct hvx_blk_req *q = &s->req;
    uint64_t off, bytes, at = 0;
    do { /* a driver does not have two requests for one sector under way; for one cluster it may */
        off = rnd(DISK / 512 - 256) * 512;
        bytes = (1 + rnd(rnd(4) ? 16 : 256)) * 512;
    } while (overlaps_running(off, bytes));
    static const uint32_t ops[] = {HVX_BLK_READ,  HVX_BLK_READ,  HVX_BLK_READ,         HVX_BLK_WRITE,
                                   HVX_BLK_WRITE, HVX_BLK_WRITE, HVX_BLK_WRITE_ZEROES, HVX_BLK_FLUSH};
    memset(q, 0, sizeof(*q));
    q->op = ops[rnd(8)];
    q->offset = off;
    q->bytes = bytes;
    q->done = on_done;
    q->opaque = s;
    q->iov = s->iov;
    while (at < bytes) { /* in up to 8 pieces of odd sizes */
        uint64_t n = q->n_iov == 7 ? bytes - at : 1 + rnd(bytes - at);
        s->iov[q->n_iov++] = (struct iovec){s->buf + at, n};
        at += n;
    }
    if (q->op == HVX_BLK_WRITE) {
        fill_random(s->buf, bytes);
        memcpy(model + off, s->buf, bytes);
        q->flags = rnd(8) ? 0 : HVX_BLK_FUA;
    } else if (q->op == HVX_BLK_WRITE_ZEROES) {
        memset(model + off, 0, bytes);
        q->flags = rnd(2) ? HVX_BLK_UNMAP : 0;
    }
    s->busy = true;
    n_busy++;
    n_started++;
    in_submit = true;
    hvx_blk_submit(blk, q);
    in_submit = false;
}

static void storm(const struct hvx_blk_open *p, unsigned n)
{
    blk = open_blk(p);
    n_started = n_busy = 0;
    n_wanted = n;
    hvx_loop_lock(loop);
    for (unsigned i = 0; i < SLOTS; i++)
        start_next(&slots[i]);
    hvx_loop_unlock(loop);
    hvx_loop_run(loop);
    assert_int_equal(n_busy, 0);
    close_blk(blk);
}

static void make(const char *name, const char *format, const char *options)
{
    struct hvx_file *f;
    struct hvx_error err = {0};
    struct hvx_qcow2_create c = {.bytes = DISK};
    if (strstr(options, "4k"))
        c.cluster_bytes = 4096;
    else if (strstr(options, "512"))
        c.cluster_bytes = 512;
    assert_int_equal(hvx_file_open(in_dir(name), HVX_FILE_WRITE | HVX_FILE_CREATE, &f, &err), 0);
    if (!strcmp(format, "qcow2"))
        assert_int_equal(hvx_qcow2_create(f, &c, &err), 0);
    else
        assert_int_equal(f->ops->truncate(f, DISK), 0);
    hvx_file_close(f);
}

static void verify_file(const char *name, const char *format)
{
    struct hvx_image_open p = {.path = in_dir(name), .format = format};
    struct hvx_image *img;
    struct hvx_error err = {0};
    uint8_t *buf = malloc(DISK);
    if (hvx_image_open(&p, &img, &err))
        fail_msg("%s", err.text);
    assert_int_equal(img_read(img, buf, 0, DISK), 0);
    assert_memory_equal(buf, model, DISK);
    assert_clean(img);
    hvx_image_close(img);
    free(buf);
}

static void test_storm_on_every_engine_and_cache(void **state)
{
    static const char *const aio[] = {"io_uring", "threads"}, *const cache[] = {"writeback", "none", "unsafe"},
                      *const format[] = {"raw", "qcow2"}, *const options[] = {"", "4k"};
    (void)state;
    for (unsigned i = 0; i < 24; i++) {
        struct hvx_blk_open p = {.path = in_dir("storm"), .format = format[i & 1], .aio = aio[i >> 1 & 1],
                                 .cache = cache[(i >> 2) % 3]};
        if (i >= 12 && !(i & 1))
            continue; /* raw has no options */
        make("storm", p.format, options[i / 12]);
        memset(model, 0, DISK);
        rnd_seed(i + 1);
        storm(&p, 1500);
        verify_file("storm", p.format);
        storm(&p, 300); /* again, on what is there now */
        verify_file("storm", p.format);
    }
}

static void test_storm_with_tables_that_do_not_fit_into_memory(void **state)
{
    struct hvx_blk_open p = {.path = in_dir("small"), .format = "qcow2"};
    (void)state;
    qcow2_cache_limit = 0;
    for (unsigned i = 0; i < 2; i++) {
        make("small", "qcow2", i ? "512" : "4k");
        memset(model, 0, DISK);
        rnd_seed(i + 200);
        for (unsigned round = 0; round < 3; round++) {
            storm(&p, 1000);
            verify_file("small", "qcow2");
        }
    }
    qcow2_cache_limit = UINT64_MAX;
}

static void test_storm_over_a_snapshot_changes_nothing(void **state)
{
    struct hvx_blk_open p = {.path = in_dir("base"), .format = "raw"};
    (void)state;
    make("base", "raw", "");
    memset(model, 0, DISK);
    rnd_seed(99);
    storm(&p, 500);
    uint8_t *before = malloc(DISK);
    memcpy(before, model, DISK);
    p.snapshot = true;
    storm(&p, 1000);
    memcpy(model, before, DISK);
    free(before);
    verify_file("base", "raw");
}

/* --- order of requests that touch one cluster ---------------------------------------- */
static void test_writes_to_one_new_cluster_do_not_lose_each_other(void **state)
{
    static struct hvx_blk_req req[128];
    static struct iovec v[128];
    static bool done[128];
    static uint8_t buf[128][512];
    struct hvx_blk_open p = {.path = in_dir("one"), .format = "qcow2"};
    (void)state;
    make("one", "qcow2", "");
    memset(model, 0, DISK);
    struct hvx_blk *b = open_blk(&p);
    hvx_loop_lock(loop);
    for (unsigned i = 0; i < 128; i++) {
        memset(buf[i], (int)i + 1, 512);
        memset(model + i * 512, (int)i + 1, 512);
        v[i] = (struct iovec){buf[i], 512};
        req[i] = (struct hvx_blk_req){.op = HVX_BLK_WRITE, .offset = i * 512, .bytes = 512, .iov = &v[i], .n_iov = 1,
                                      .done = stop_when_done, .opaque = &done[i]};
        hvx_blk_submit(b, &req[i]);
    }
    assert_int_equal(hvx_blk_drain(b), 0);
    hvx_loop_unlock(loop);
    for (unsigned i = 0; i < 128; i++)
        assert_true(done[i] && !req[i].result);
    close_blk(b);
    hvx_loop_run(loop); /* take back the stops */
    verify_file("one", "qcow2");
}

static void test_more_requests_than_the_pool_holds(void **state)
{
    enum { N = 2000 };
    static struct hvx_blk_req req[N];
    static bool done[N];
    static uint8_t buf[512];
    static struct iovec v = {buf, 512};
    struct hvx_blk_open p = {.path = in_dir("many"), .format = "raw"};
    (void)state;
    make("many", "raw", "");
    struct hvx_blk *b = open_blk(&p);
    hvx_loop_lock(loop);
    for (unsigned i = 0; i < N; i++) {
        req[i] = (struct hvx_blk_req){.op = HVX_BLK_READ, .offset = i * 512, .bytes = 512, .iov = &v, .n_iov = 1,
                                      .done = stop_when_done, .opaque = &done[i]};
        hvx_blk_submit(b, &req[i]);
    }
    assert_int_equal(hvx_blk_drain(b), 0);
    hvx_loop_unlock(loop);
    for (unsigned i = 0; i < N; i++)
        assert_true(done[i] && !req[i].result);
    close_blk(b);
    hvx_loop_run(loop);
}

/* --- refusals ------------------------------------------------------------------------- */
static void test_bad_requests_get_an_error_through_done(void **state)
{
    struct hvx_blk_open p = {.path = in_dir("bad"), .format = "raw"};
    uint8_t buf[1024] = {0};
    (void)state;
    make("bad", "raw", "");
    struct hvx_blk *b = open_blk(&p);
    assert_int_equal(one_request(b, HVX_BLK_READ, 0, DISK, buf, 512), -EINVAL);
    assert_int_equal(one_request(b, HVX_BLK_READ, 0, DISK - 512, buf, 1024), -EINVAL);
    assert_int_equal(one_request(b, HVX_BLK_READ, 0, ~0ull << 9, buf, 1024), -EINVAL);
    assert_int_equal(one_request(b, HVX_BLK_WRITE, 0, 100, buf, 512), -EINVAL);
    assert_int_equal(one_request(b, HVX_BLK_DISCARD, 0, 0, NULL, DISK + 512), -EINVAL);
    assert_int_equal(one_request(b, 77, 0, 0, buf, 512), -ENOTSUP);
    assert_int_equal(one_request(b, HVX_BLK_WRITE, 0, 0, NULL, 512), -EINVAL); /* no memory given */
    assert_int_equal(one_request(b, HVX_BLK_READ, 0, DISK - 512, buf, 512), 0);
    assert_int_equal(one_request(b, HVX_BLK_DISCARD, 0, 0, NULL, DISK), 0);
    close_blk(b);
    p.read_only = true;
    b = open_blk(&p);
    assert_int_equal(one_request(b, HVX_BLK_WRITE, 0, 0, buf, 512), -EROFS);
    assert_int_equal(one_request(b, HVX_BLK_FLUSH, 0, 0, NULL, 0), 0);
    close_blk(b);
}

static void test_messages_at_open(void **state)
{
    struct hvx_blk_open p = {.path = in_dir("nowhere"), .format = "raw"};
    (void)state;
    assert_int_equal(open_error(&p, "check the path"), -ENOENT);
    p.path = test_dir;
    p.read_only = true;
    assert_int_equal(open_error(&p, "a folder"), -EINVAL);
    p.path = "/dev/null";
    assert_int_equal(open_error(&p, "neither a file nor a block device"), -EINVAL);
    assert_int_equal(shell(": >empty; echo hello >text; head -c 100000 /dev/zero >zeroes"), 0);
    p.path = in_dir("empty");
    assert_int_equal(open_error(&p, "0 bytes"), -EINVAL);
    p.format = "qcow2";
    assert_int_equal(open_error(&p, "cut off"), -EINVAL);
    p.path = in_dir("zeroes");
    assert_int_equal(open_error(&p, "not a qcow2 image"), -EINVAL);
    p.format = NULL;
    assert_int_equal(open_error(&p, "say its format"), -EINVAL);
    p.format = "vmdk";
    assert_int_equal(open_error(&p, "unknown image format"), -EINVAL);
    p.format = "raw";
    p.aio = "native";
    assert_int_equal(open_error(&p, "aio=native is unknown"), -EINVAL);
    p.aio = NULL;
    p.cache = "directsync";
    assert_int_equal(open_error(&p, "cache=directsync is unknown"), -EINVAL);
}

static void test_second_writer_is_refused_readers_share(void **state)
{
    struct hvx_blk_open p = {.path = in_dir("locked"), .format = "qcow2"}, ro = p;
    (void)state;
    make("locked", "qcow2", "");
    ro.read_only = true;
    struct hvx_blk *b = open_blk(&p), *c;
    assert_int_equal(open_error(&p, "in use by another"), -EAGAIN);
    assert_int_equal(open_error(&ro, "being written"), -EAGAIN);
    close_blk(b);
    b = open_blk(&ro);
    c = open_blk(&ro);
    assert_int_equal(open_error(&p, "in use by another"), -EAGAIN);
    p.no_lock = true;
    struct hvx_blk *d = open_blk(&p);
    close_blk(d);
    close_blk(c);
    close_blk(b);
}

static void note_ring(void *o, const char *name, uint64_t v, const char *unit)
{
    (void)unit;
    if (!strcmp(name, "by_io_uring"))
        *(uint64_t *)o = v;
}

/* In a child whose kernel says no to io_uring, as many containers' does. */
static int without_io_uring(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {sizeof(code) / sizeof(code[0]), code};
    struct hvx_blk_open p = {.path = in_dir("plain"), .format = "raw"};
    struct hvx_error err = {0};
    struct hvx_blk *b;
    uint8_t buf[512];
    uint64_t by_ring = 99;
    bool done = false;
    struct iovec v = {buf, 512};
    struct hvx_blk_req req = {.op = HVX_BLK_READ, .bytes = 512, .iov = &v, .n_iov = 1, .done = stop_when_done,
                              .opaque = &done};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
        return 1;
    p.aio = "io_uring";
    if (!hvx_blk_open(loop, &p, &b, &err) || !strstr(err.text, "use aio=threads"))
        return 2;
    p.aio = NULL;
    if (hvx_blk_open(loop, &p, &b, &err))
        return 3;
    hvx_blk_submit(b, &req);
    if (hvx_blk_drain(b) || !done || req.result)
        return 4;
    hvx_blk_stats(b, note_ring, &by_ring);
    return by_ring ? 5 : 0;
}

static void test_threads_take_over_where_io_uring_is_refused(void **state)
{
    (void)state;
    make("plain", "raw", "");
    pid_t pid = fork();
    if (!pid)
        _exit(without_io_uring());
    int status;
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
}

static void test_info(void **state)
{
    struct hvx_blk_open p = {.path = in_dir("info"), .format = "qcow2"};
    struct hvx_blk_info i = {.size = sizeof(i)}, again = i;
    (void)state;
    make("info", "qcow2", "");
    struct hvx_blk *b = open_blk(&p);
    hvx_blk_get_info(b, &i);
    assert_int_equal(i.bytes, DISK);
    assert_int_equal(i.logical_block, 512);
    assert_int_equal(i.opt_io_bytes, 65536);
    assert_true(i.can_discard && i.can_write_zeroes && !i.read_only && !i.is_cdrom);
    assert_memory_equal(i.serial, "HVX", 3);
    close_blk(b);
    p.cdrom = true;
    b = open_blk(&p);
    hvx_blk_get_info(b, &again);
    assert_string_equal(i.serial, again.serial);
    assert_true(again.read_only && again.is_cdrom && !again.can_discard);
    assert_int_equal(again.logical_block, 2048);
    close_blk(b);
    p.cdrom = false;
    p.serial = "a-serial-number-that-is-too-long";
    b = open_blk(&p);
    hvx_blk_get_info(b, &again);
    assert_string_equal(again.serial, "a-serial-number-that-is");
    close_blk(b);
}

static void test_discard_gives_space_back(void **state)
{
    struct hvx_blk_open p = {.path = in_dir("punch"), .format = "raw"};
    uint8_t *buf = malloc(1 << 20);
    struct stat st;
    (void)state;
    memset(buf, 7, 1 << 20);
    make("punch", "raw", "");
    struct hvx_blk *b = open_blk(&p);
    assert_int_equal(one_request(b, HVX_BLK_WRITE, HVX_BLK_FUA, 0, buf, 1 << 20), 0);
    stat(p.path, &st);
    blkcnt_t before = st.st_blocks;
    assert_int_equal(one_request(b, HVX_BLK_DISCARD, 0, 0, NULL, 1 << 20), 0);
    stat(p.path, &st);
    assert_true(st.st_blocks < before);
    assert_int_equal(one_request(b, HVX_BLK_READ, 0, 0, buf, 1 << 20), 0);
    assert_true(buf[0] == 0 && buf[(1 << 20) - 1] == 0);
    close_blk(b);
    free(buf);
}

static int setup(void **state)
{
    struct hvx_error err;
    model = malloc(DISK);
    for (unsigned i = 0; i < SLOTS; i++)
        slots[i].buf = malloc(256 * 512);
    return make_test_dir(state) || hvx_loop_new(&loop, &err);
}

static int teardown(void **state)
{
    hvx_loop_destroy(loop);
    for (unsigned i = 0; i < SLOTS; i++)
        free(slots[i].buf);
    free(model);
    return remove_test_dir(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_storm_on_every_engine_and_cache),
        cmocka_unit_test(test_storm_with_tables_that_do_not_fit_into_memory),
        cmocka_unit_test(test_storm_over_a_snapshot_changes_nothing),
        cmocka_unit_test(test_writes_to_one_new_cluster_do_not_lose_each_other),
        cmocka_unit_test(test_more_requests_than_the_pool_holds),
        cmocka_unit_test(test_bad_requests_get_an_error_through_done),
        cmocka_unit_test(test_messages_at_open),
        cmocka_unit_test(test_second_writer_is_refused_readers_share),
        cmocka_unit_test(test_threads_take_over_where_io_uring_is_refused),
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_discard_gives_space_back),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
