/* SPDX-License-Identifier: Apache-2.0
 *
 * test_tap.c - TAP: a guest of raw frames in this process talks to the
 * kernel's own stack on the other side of the device, in a network namespace
 * of the test's own. Without the privilege for that, only the messages are
 * tested.
 */
#define _GNU_SOURCE
#include <hvx/host.h>
/* before cmocka.h, which has a macro named fail */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* after the four above */
#include <cmocka.h>

#include "core/net/csum.h"
#include "core/net/net.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HOST_IP 0x0a090001u
#define GUEST_IP 0x0a090002u

static bool privileged;
static struct hvx_loop *loop;
static struct hvx_net *net;
static struct hvx_nic *nic;
static struct hvx_timer *deadline;
static bool expired, no_room;
static uint8_t mac[6], host_mac[6];
static uint8_t frame[HVX_NET_MAX_FRAME];
static size_t n_frame;
static struct hvx_net_meta frame_meta;

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int receive(void *opaque, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta)
{
    (void)opaque;
    if (no_room || n_frame)
        return 0; /* one at a time: exercises holding back */
    for (unsigned i = 0; i < n_iov; i++) {
        memcpy(frame + n_frame, iov[i].iov_base, iov[i].iov_len);
        n_frame += iov[i].iov_len;
    }
    frame_meta = *meta;
    hvx_loop_stop(loop);
    return 1;
}

static const struct hvx_nic_ops ops = {.size = sizeof(ops), .receive = receive};

static void on_deadline(void *opaque)
{
    (void)opaque;
    expired = true;
    hvx_loop_stop(loop);
}

static uint8_t *next_frame(unsigned ms)
{
    expired = false;
    hvx_loop_lock(loop);
    n_frame = 0;
    hvx_nic_rx_ready(nic);
    hvx_loop_unlock(loop);
    hvx_timer_set(deadline, now_ns() + ms * 1000000ull);
    while (!n_frame && !expired)
        hvx_loop_run(loop);
    hvx_timer_set(deadline, UINT64_MAX);
    return n_frame ? frame : NULL;
}

static void send_frame(const uint8_t *f, size_t n, const struct hvx_net_meta *meta)
{
    struct iovec v[2] = {{(void *)(uintptr_t)f, 14}, {(void *)(uintptr_t)(f + 14), n - 14}};
    hvx_loop_lock(loop);
    hvx_nic_send(nic, v, 2, meta);
    hvx_loop_unlock(loop);
}

static void put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}
static void put32(uint8_t *p, uint32_t v)
{
    put16(p, v >> 16);
    put16(p + 2, v & 0xffff);
}
static unsigned get16(const uint8_t *p)
{
    return (unsigned)p[0] << 8 | p[1];
}
static uint32_t get32(const uint8_t *p)
{
    return get16(p) << 16 | get16(p + 2);
}

static size_t tcp_frame(uint8_t *f, unsigned sport, unsigned dport, uint32_t seq, uint32_t ack, unsigned flags,
                        const void *data, size_t n)
{
    memset(f, 0, 54);
    memcpy(f, host_mac, 6);
    memcpy(f + 6, mac, 6);
    put16(f + 12, 0x0800);
    f[14] = 0x45;
    put16(f + 16, (unsigned)(40 + n));
    f[22] = 64;
    f[23] = 6;
    put32(f + 26, GUEST_IP);
    put32(f + 30, HOST_IP);
    put16(f + 24, (uint16_t)~hvx_csum_fold(hvx_csum_add(0, f + 14, 20)));
    put16(f + 34, sport);
    put16(f + 36, dport);
    put32(f + 38, seq);
    put32(f + 42, ack);
    f[46] = 0x50;
    f[47] = (uint8_t)flags;
    put16(f + 48, 65535);
    if (n)
        memcpy(f + 54, data, n);
    /* only the pseudo header's sum: the rest is for whoever comes behind us */
    put16(f + 50, hvx_csum_fold(hvx_csum_add(0, f + 26, 8) + 6 + 20 + n));
    return 54 + n;
}

static const struct hvx_net_meta partial = {.flags = 1, .csum_start = 34, .csum_offset = 16};

static void answer_arp(const uint8_t *q)
{
    uint8_t f[42];
    struct hvx_net_meta plain = {0};
    memcpy(f, q + 6, 6);
    memcpy(f + 6, mac, 6);
    memcpy(f + 12, q + 12, 8);
    put16(f + 20, 2);
    memcpy(f + 22, mac, 6);
    put32(f + 28, GUEST_IP);
    memcpy(f + 32, q + 22, 10);
    memcpy(host_mac, q + 6, 6);
    send_frame(f, sizeof(f), &plain);
}

/* The next TCP frame for us; answers ARP on the way. */
static uint8_t *next_tcp(void)
{
    for (;;) {
        uint8_t *f = next_frame(3000);
        if (!f)
            return NULL;
        if (get16(f + 12) == 0x0806 && get16(f + 20) == 1 && get32(f + 38) == GUEST_IP)
            answer_arp(f);
        else if (get16(f + 12) == 0x0800 && f[23] == 6)
            return f;
    }
}

static void open_tap(const char *spec, uint32_t can)
{
    struct hvx_error err = {0};
    hvx_loop_lock(loop);
    if (hvx_net_open(loop, spec, 0, &net, &err))
        fail_msg("%s", err.text);
    assert_int_equal(hvx_nic_attach(net, &ops, NULL, &nic, &err), 0);
    hvx_nic_set_caps(nic, can);
    hvx_nic_mac(nic, mac);
    hvx_loop_unlock(loop);
    n_frame = 0;
    assert_int_equal(system("ip addr add 10.9.0.1/24 dev hvxtest0 && ip link set hvxtest0 up"), 0);
}

static void close_tap(void)
{
    hvx_loop_lock(loop);
    hvx_nic_detach(nic);
    hvx_net_close(net);
    hvx_loop_unlock(loop);
}

static void skip_unless_privileged(void)
{
    if (!privileged) {
        fprintf(stderr, "no CAP_NET_ADMIN or no /dev/net/tun: skipped\n");
        skip();
    }
}

/* The kernel connects to the guest, which sends `up` bytes in large unfinished
 * frames and receives `down` bytes. */
static void session(const char *spec, uint32_t can, bool vnet)
{
    enum { UP = 40000, DOWN = 40000 };
    uint8_t *out = malloc(UP + 54), *data = malloc(UP), *got = calloc(1, DOWN), *back = calloc(1, UP), *f;
    size_t largest = 0, received = 0, n_back = 0;
    bool finished = true;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(80), .sin_addr.s_addr = htonl(GUEST_IP)};
    open_tap(spec, can);
    int c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    assert_true(connect(c, (struct sockaddr *)&a, sizeof(a)) < 0 && errno == EINPROGRESS);
    assert_non_null(f = next_tcp());
    assert_int_equal(f[47], 2);
    unsigned port = get16(f + 34);
    uint32_t ack = get32(f + 38) + 1, seq = 5000;
    send_frame(out, tcp_frame(out, 80, port, seq++, ack, 0x12, NULL, 0), &partial);
    struct pollfd p = {.fd = c, .events = POLLOUT};
    assert_int_equal(poll(&p, 1, 3000), 1);
    int e;
    socklen_t n_e = sizeof(e);
    assert_int_equal(getsockopt(c, SOL_SOCKET, SO_ERROR, &e, &n_e), 0);
    assert_int_equal(e, 0);
    /* guest to kernel */
    for (size_t i = 0; i < UP; i++)
        data[i] = (uint8_t)(i * 31 >> 3);
    for (size_t at = 0; at < UP; at += 10000) {
        struct hvx_net_meta m = partial;
        m.gso_type = 1;
        m.gso_size = 1460;
        m.hdr_len = 54;
        send_frame(out, tcp_frame(out, 80, port, seq, ack, 0x18, data + at, 10000), &m);
        seq += 10000;
        for (size_t want = at + 10000; n_back < want;) {
            p.events = POLLIN;
            assert_int_equal(poll(&p, 1, 3000), 1);
            ssize_t n = read(c, back + n_back, UP - n_back);
            assert_true(n > 0);
            n_back += (size_t)n;
        }
    }
    assert_memory_equal(back, data, UP);
    /* kernel to guest */
    size_t sent = 0;
    while (received < DOWN) {
        if (sent < DOWN) {
            ssize_t n = write(c, data + sent, DOWN - sent);
            if (n > 0)
                sent += (size_t)n;
        }
        assert_non_null(f = next_tcp());
        size_t head = 34 + (f[46] >> 4) * 4u, n = 14 + get16(f + 16) - head;
        if (!n || get32(f + 38) != ack)
            continue;
        assert_true(received + n <= DOWN);
        memcpy(got + received, f + head, n);
        if (frame_meta.flags & 1)
            finished = false;
        else /* then the sum must be right */
            assert_int_equal(hvx_csum_fold(hvx_csum_add(hvx_csum_add(0, f + 26, 8) + 6 + get16(f + 16) - 20u, f + 34,
                                                        get16(f + 16) - 20u)), 0xffff);
        if (n > largest)
            largest = n;
        received += n;
        ack += (uint32_t)n;
        send_frame(out, tcp_frame(out, 80, port, seq, ack, 0x10, NULL, 0), &partial);
    }
    assert_memory_equal(got, data, DOWN);
    /* Offloads are used when, and only when, the guest can take them. */
    if (vnet && (can & HVX_NET_CAN_TSO4))
        assert_true(largest > 1460 && !finished);
    else
        assert_true(largest <= 1460);
    if (!can)
        assert_true(finished);
    close(c);
    close_tap();
    free(out);
    free(data);
    free(got);
    free(back);
}

static void test_tcp_with_all_offloads(void **state)
{
    (void)state;
    skip_unless_privileged();
    session("tap,ifname=hvxtest0", HVX_NET_CAN_CSUM | HVX_NET_CAN_TSO4, true);
}

static void test_tcp_with_checksum_offload_only(void **state)
{
    (void)state;
    skip_unless_privileged();
    session("tap,ifname=hvxtest0", HVX_NET_CAN_CSUM, true);
}

static void test_tcp_without_offloads(void **state)
{
    (void)state;
    skip_unless_privileged();
    session("tap,ifname=hvxtest0", 0, true);
}

/* A descriptor without the virtio header: all is finished in software. */
static void test_tcp_over_a_plain_descriptor(void **state)
{
    char spec[40];
    struct ifreq ifr = {.ifr_name = "hvxtest0", .ifr_flags = IFF_TAP | IFF_NO_PI};
    (void)state;
    skip_unless_privileged();
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    assert_int_equal(ioctl(fd, TUNSETIFF, &ifr), 0);
    snprintf(spec, sizeof(spec), "tap,fd=%d", fd);
    session(spec, HVX_NET_CAN_CSUM | HVX_NET_CAN_TSO4, false);
    close(fd);
}

static void test_device_in_use(void **state)
{
    struct hvx_net *second;
    struct hvx_error err;
    (void)state;
    skip_unless_privileged();
    open_tap("tap,ifname=hvxtest0", 0);
    assert_int_equal(hvx_net_open(loop, "tap,ifname=hvxtest0", 1, &second, &err), -EBUSY);
    assert_non_null(strstr(err.text, "in use"));
    close_tap();
}

static void test_message_without_the_privilege(void **state)
{
    (void)state;
    if (access("/dev/net/tun", F_OK))
        skip();
    pid_t pid = fork();
    if (!pid) {
        struct hvx_net *n;
        struct hvx_error err = {0};
        if (setgid(65534) || setuid(65534))
            _exit(getuid() ? 0 : 9); /* not root: the tests above have seen it */
        int r = hvx_net_open(loop, "tap,ifname=hvxtest0", 0, &n, &err);
        _exit(r < 0 && (strstr(err.text, "CAP_NET_ADMIN") || strstr(err.text, "/dev/net/tun")) ? 0 : 1);
    }
    int status;
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
}

static int setup(void **state)
{
    struct hvx_error err;
    (void)state;
    privileged = !access("/dev/net/tun", R_OK | W_OK) && !unshare(CLONE_NEWNET) && !system("ip link set lo up");
    return hvx_loop_new(&loop, &err) || hvx_loop_timer_new(loop, on_deadline, NULL, &deadline);
}

static int teardown(void **state)
{
    (void)state;
    hvx_timer_del(deadline);
    hvx_loop_destroy(loop);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tcp_with_all_offloads),
        cmocka_unit_test(test_tcp_with_checksum_offload_only),
        cmocka_unit_test(test_tcp_without_offloads),
        cmocka_unit_test(test_tcp_over_a_plain_descriptor),
        cmocka_unit_test(test_device_in_use),
        cmocka_unit_test(test_message_without_the_privilege),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
