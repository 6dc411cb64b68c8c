/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/test_chr.c - character streams: files, sockets, floods, the escape.
 */
#define _GNU_SOURCE
#include "core/vm/chr.h"

#include <stdarg.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <pty.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

struct fixture {
    struct hvx_loop *loop;
    pthread_t thread;
    sem_t some;
    uint8_t got[8192];
    _Atomic(size_t) n_got;
    size_t take; /* how many bytes the guest takes at a time */
    sem_t escaped;
    long sleeps;
};

static void *run(void *opaque)
{
    hvx_loop_run(opaque);
    return NULL;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct hvx_error err;

    assert_int_equal(hvx_loop_new(&f->loop, &err), 0);
    sem_init(&f->some, 0, 0);
    sem_init(&f->escaped, 0, 0);
    f->take = 4096;
    pthread_create(&f->thread, NULL, run, f->loop);
    *state = f;
    return 0;
}

static void stop_loop(struct fixture *f)
{
    if (!f->loop)
        return;
    hvx_loop_stop(f->loop);
    pthread_join(f->thread, NULL);
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    hvx_loop_destroy(f->loop);
    free(f);
    return 0;
}

static size_t receive(void *opaque, const uint8_t *buf, size_t n)
{
    struct fixture *f = opaque;

    if (n > f->take)
        n = f->take;
    if (n > sizeof(f->got) - f->n_got)
        n = sizeof(f->got) - f->n_got;
    memcpy(f->got + f->n_got, buf, n);
    f->n_got += n;
    if (n)
        sem_post(&f->some);
    return n;
}

static const struct hvx_chr_ops ops = {sizeof(ops), 0, receive};

static struct hvx_chr *open_chr(struct fixture *f, const char *spec)
{
    struct hvx_chr *c = NULL;
    struct hvx_error err = {0};

    hvx_loop_lock(f->loop);
    if (hvx_chr_open(f->loop, spec, NULL, NULL, &c, &err) < 0)
        fail_msg("%s", err.text);
    hvx_chr_set_guest(c, &ops, f);
    hvx_loop_unlock(f->loop);
    return c;
}

static size_t write_chr(struct fixture *f, struct hvx_chr *c, const void *buf, size_t n)
{
    hvx_loop_lock(f->loop);
    n = hvx_chr_write(c, buf, n);
    hvx_loop_unlock(f->loop);
    return n;
}

static void a_file_gets_what_was_written(void **state)
{
    struct fixture *f = *state;
    char path[] = "/tmp/hvx-test-chr-XXXXXX", spec[64], back[32] = "";
    struct hvx_chr *c;
    int fd = mkstemp(path);

    snprintf(spec, sizeof(spec), "file:%s", path);
    c = open_chr(f, spec);
    assert_int_equal(write_chr(f, c, "hello\r\n", 7), 7);
    stop_loop(f);
    hvx_chr_close(c); /* writes what is left */
    assert_int_equal(read(fd, back, sizeof(back)), 7);
    assert_string_equal(back, "hello\r\n");
    close(fd);
    unlink(path);
}

static void null_swallows_any_amount(void **state)
{
    struct fixture *f = *state;
    struct hvx_chr *c = open_chr(f, "null");
    static uint8_t big[1 << 20];

    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(write_chr(f, c, big, sizeof(big)), sizeof(big));
    stop_loop(f);
    hvx_chr_close(c);
}

static int dial(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
    return connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0 ? -1 : fd;
}

/* Connect and say "abc"; -1 when the server closed the line instead of listening. */
static int greet(struct fixture *f, const char *path, size_t before)
{
    int fd = dial(path);
    char b;

    assert_true(fd >= 0);
    (void)!send(fd, "abc", 3, MSG_NOSIGNAL);
    while (f->n_got < before + 3) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 20000000;
        t.tv_sec += t.tv_nsec / 1000000000;
        t.tv_nsec %= 1000000000;
        if (sem_timedwait(&f->some, &t) < 0 && recv(fd, &b, 1, MSG_DONTWAIT | MSG_PEEK) >= 0) {
            close(fd);
            return -1;
        }
    }
    return fd;
}

static void a_socket_carries_both_ways_and_comes_back(void **state)
{
    struct fixture *f = *state;
    char path[] = "/tmp/hvx-test-sock-XXXXXX", spec[64], back[8] = "";
    struct hvx_chr *c;

    close(mkstemp(path));
    unlink(path);
    snprintf(spec, sizeof(spec), "unix:%s", path);
    c = open_chr(f, spec);
    for (unsigned i = 0; i < 3; i++) { /* clients come and go */
        int fd;
        size_t before = f->n_got;
        assert_int_equal(write_chr(f, c, "lost", 4), 4); /* nobody listens */
        /* Until the server has noticed that the last one left, it turns the next away. */
        while ((fd = greet(f, path, before)) < 0)
            ;
        assert_int_equal(write_chr(f, c, "xyz", 3), 3);
        assert_int_equal(recv(fd, back, 3, MSG_WAITALL), 3);
        assert_string_equal(back, "xyz");
        close(fd);
    }
    stop_loop(f);
    hvx_chr_close(c);
    assert_int_equal(access(path, F_OK), -1);
}

/* The guest floods, the reader sleeps: the buffer fills, writing takes less,
 * nothing blocks; what was taken arrives complete once the reader wakes. */
static void a_flood_is_bounded_and_nothing_taken_is_lost(void **state)
{
    struct fixture *f = *state;
    char path[] = "/tmp/hvx-test-sock-XXXXXX", spec[64];
    size_t taken = 0, back = 0;
    static uint8_t block[4096];
    struct hvx_chr *c;
    unsigned refused = 0;
    int fd;

    close(mkstemp(path));
    unlink(path);
    snprintf(spec, sizeof(spec), "unix:%s", path);
    c = open_chr(f, spec);
    fd = dial(path);
    assert_int_equal(write(fd, "!", 1), 1);
    sem_wait(&f->some); /* the server has accepted */
    for (unsigned i = 0; i < 4000; i++) {
        for (size_t k = 0; k < sizeof(block); k++)
            block[k] = (uint8_t)((taken + k) * 31 >> 3);
        size_t n = write_chr(f, c, block, sizeof(block));
        taken += n;
        refused += n < sizeof(block);
    }
    assert_true(refused > 0);
    assert_true(taken < 2u << 20);
    while (back < taken) {
        uint8_t buf[4096];
        ssize_t n = read(fd, buf, sizeof(buf));
        assert_true(n > 0);
        for (ssize_t k = 0; k < n; k++)
            assert_int_equal(buf[k], (uint8_t)((back + (size_t)k) * 31 >> 3));
        back += (size_t)n;
    }
    assert_int_equal(back, taken);
    stop_loop(f);
    close(fd);
    hvx_chr_close(c);
}

/* How often the loop's thread has gone to sleep. */
static void count_sleeps(void *opaque)
{
    struct fixture *f = opaque;
    struct rusage u;

    getrusage(RUSAGE_THREAD, &u);
    f->sleeps = u.ru_nvcsw;
    sem_post(&f->some);
}

static long sleeps(struct fixture *f)
{
    assert_int_equal(hvx_loop_post(f->loop, count_sleeps, f), 0);
    while (sem_wait(&f->some) < 0)
        ;
    return f->sleeps;
}

static uint64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* A serial console is written byte by byte. A lone byte leaves at once, many
 * do not wake the loop for each of them. */
static void bytes_one_by_one_leave_together(void **state)
{
    struct fixture *f = *state;
    enum { BYTES = 4000, APART_US = 10 };
    char path[] = "/tmp/hvx-test-fifo-XXXXXX", spec[64];
    static char back[BYTES];
    struct hvx_chr *c;
    uint64_t start, next;
    size_t n = 0;
    int fd;

    close(mkstemp(path));
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    fd = open(path, O_RDWR);
    snprintf(spec, sizeof(spec), "file:%s", path);
    c = open_chr(f, spec);
    assert_int_equal(write_chr(f, c, "1", 1), 1);
    assert_int_equal(read(fd, back, 1), 1);
    long before = sleeps(f);
    start = next = now_us();
    for (unsigned i = 0; i < BYTES; i++) {
        assert_int_equal(write_chr(f, c, &"0123456789"[i % 10], 1), 1);
        for (next += APART_US; now_us() < next;)
            ;
    }
    uint64_t ms = (now_us() - start) / 1000;
    long slept = sleeps(f) - before;
    if ((uint64_t)slept > 3 * ms + 20)
        fail_msg("the loop slept %ld times in %llu ms", slept, (unsigned long long)ms);
    while (n < BYTES) {
        ssize_t got = read(fd, back + n, BYTES - n);
        assert_true(got > 0);
        n += (size_t)got;
    }
    for (unsigned i = 0; i < BYTES; i++)
        assert_int_equal(back[i], "0123456789"[i % 10]);
    stop_loop(f);
    hvx_chr_close(c);
    close(fd);
    unlink(path);
}

static void a_slow_guest_gets_all_input_in_order(void **state)
{
    struct fixture *f = *state;
    char path[] = "/tmp/hvx-test-sock-XXXXXX", spec[64];
    struct hvx_chr *c;
    uint8_t text[6000];
    int fd;

    close(mkstemp(path));
    unlink(path);
    snprintf(spec, sizeof(spec), "unix:%s", path);
    f->take = 1;
    c = open_chr(f, spec);
    fd = dial(path);
    for (unsigned i = 0; i < sizeof(text); i++)
        text[i] = (uint8_t)(i * 7);
    assert_int_equal(write(fd, text, sizeof(text)), sizeof(text));
    while (f->n_got < sizeof(text)) {
        hvx_loop_lock(f->loop);
        hvx_chr_rx_ready(c); /* as a UART does after each byte */
        hvx_loop_unlock(f->loop);
    }
    assert_memory_equal(f->got, text, sizeof(text));
    stop_loop(f);
    close(fd);
    hvx_chr_close(c);
}

static void on_escape(void *opaque)
{
    sem_post(&((struct fixture *)opaque)->escaped);
}

/* In a child, whose terminal is a pty: ^] twice is one ^], ^] alone leaves. */
static void the_escape_leaves_and_is_doubled_to_send(void **state)
{
    struct fixture *f = *state;
    struct termios before, raw, after;
    struct hvx_chr *c = NULL;
    struct hvx_error err;
    int master, slave, in = dup(0), out = dup(1);
    char echo[16] = "";

    assert_int_equal(openpty(&master, &slave, NULL, NULL, NULL), 0);
    tcgetattr(slave, &before);
    dup2(slave, 0);
    dup2(slave, 1);
    hvx_loop_lock(f->loop);
    assert_int_equal(hvx_chr_open(f->loop, "stdio", on_escape, f, &c, &err), 0);
    hvx_chr_set_guest(c, &ops, f);
    hvx_loop_unlock(f->loop);
    tcgetattr(slave, &raw);
    if (!(raw.c_lflag & ICANON)) { /* needs to be the foreground process of the pty to be raw */
        assert_int_equal(write(master, "a\x1d\x1d" "b", 4), 4);
        while (f->n_got < 3)
            sem_wait(&f->some);
        assert_memory_equal(f->got, "a\x1d" "b", 3);
        assert_int_equal(write(master, "\x1d", 1), 1);
        while (sem_wait(&f->escaped) < 0)
            ;
        assert_int_equal(f->n_got, 3);
    }
    assert_int_equal(write_chr(f, c, "out", 3), 3);
    assert_int_equal(read(master, echo, 3), 3);
    assert_string_equal(echo, "out");
    stop_loop(f);
    hvx_chr_close(c);
    tcgetattr(slave, &after);
    assert_int_equal(after.c_lflag, before.c_lflag);
    dup2(in, 0);
    dup2(out, 1);
    close(in);
    close(out);
    close(master);
    close(slave);
}

static void wrong_specifications_are_explained(void **state)
{
    struct fixture *f = *state;
    struct hvx_chr *c = NULL;
    struct hvx_error err;

    assert_true(hvx_chr_open(f->loop, "tcp:1", NULL, NULL, &c, &err) < 0);
    assert_non_null(strstr(err.text, "unix:PATH"));
    assert_true(hvx_chr_open(f->loop, "file:/nonexistent/x", NULL, NULL, &c, &err) < 0);
    assert_non_null(strstr(err.text, "/nonexistent/x"));
    assert_true(hvx_chr_open(f->loop, "unix:/nonexistent/x", NULL, NULL, &c, &err) < 0);
    assert_null(c);
    stop_loop(f);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    signal(SIGPIPE, SIG_IGN); /* as hvx does: clients leave at any time */
    const struct CMUnitTest tests[] = {
        T(a_file_gets_what_was_written),
        T(null_swallows_any_amount),
        T(a_socket_carries_both_ways_and_comes_back),
        T(a_flood_is_bounded_and_nothing_taken_is_lost),
        T(bytes_one_by_one_leave_together),
        T(a_slow_guest_gets_all_input_in_order),
        T(the_escape_leaves_and_is_doubled_to_send),
        T(wrong_specifications_are_explained),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
