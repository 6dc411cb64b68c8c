/* SPDX-License-Identifier: Apache-2.0
 *
 * test_user.c - user networking driven by a fake guest that speaks raw
 * frames: ARP, DHCP, ICMP, TCP to a server on this machine, a port forward,
 * offloaded frames, a guest without room.
 */
#include <hvx/host.h>
/* before cmocka.h, which has a macro named fail */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* after the four above */
#include <cmocka.h>

#include "core/net/csum.h"
#include "core/vm/confine.h"
#include "core/net/net.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define QUEUE 512u
#define GUEST_IP 0x0a00020fu
#define ROUTER_IP 0x0a000202u

static struct hvx_loop *loop;
static struct hvx_net *net;
static struct hvx_nic *nic;
static uint8_t mac[6], router_mac[6];
static uint8_t frames[QUEUE][1600];
static size_t lengths[QUEUE];
static unsigned n_got, n_read;
static bool no_room, in_send;
static struct hvx_timer *deadline;
static bool expired;

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int receive(void *opaque, const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta)
{
    uint8_t *f = frames[n_got % QUEUE];
    size_t n = 0;
    (void)opaque;
    assert_false(in_send); /* never from inside our own transmission */
    assert_int_equal(meta->gso_type, 0);
    assert_int_equal(meta->flags & 1, 0);
    if (no_room || n_got - n_read >= QUEUE)
        return 0;
    for (unsigned i = 0; i < n_iov; i++) {
        assert_true(n + iov[i].iov_len <= sizeof(frames[0]));
        memcpy(f + n, iov[i].iov_base, iov[i].iov_len);
        n += iov[i].iov_len;
    }
    lengths[n_got++ % QUEUE] = n;
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

/* The next frame, or NULL when none comes for that long. */
static uint8_t *next_frame(size_t *n, unsigned ms)
{
    expired = false;
    hvx_timer_set(deadline, now_ns() + ms * 1000000ull);
    while (n_read == n_got && !expired)
        hvx_loop_run(loop);
    hvx_timer_set(deadline, UINT64_MAX);
    if (n_read == n_got)
        return NULL;
    *n = lengths[n_read % QUEUE];
    return frames[n_read++ % QUEUE];
}

static void send_meta(const uint8_t *f, size_t n, const struct hvx_net_meta *meta)
{
    struct iovec v[2] = {{(void *)(uintptr_t)f, 10}, {(void *)(uintptr_t)(f + 10), n - 10}};
    hvx_loop_lock(loop);
    in_send = true;
    hvx_nic_send(nic, v, 2, meta);
    in_send = false;
    hvx_loop_unlock(loop);
}

static void send_frame(const uint8_t *f, size_t n)
{
    struct hvx_net_meta plain = {0};
    send_meta(f, n, &plain);
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

static void ethernet(uint8_t *f, const uint8_t *to, unsigned type)
{
    memcpy(f, to, 6);
    memcpy(f + 6, mac, 6);
    put16(f + 12, type);
}

/* IPv4 header for n bytes behind it; returns the frame's length. */
static size_t ipv4(uint8_t *f, const uint8_t *to, uint32_t src, uint32_t dst, unsigned proto, size_t n)
{
    ethernet(f, to, 0x0800);
    memset(f + 14, 0, 20);
    f[14] = 0x45;
    put16(f + 16, (unsigned)(20 + n));
    f[22] = 64;
    f[23] = (uint8_t)proto;
    put32(f + 26, src);
    put32(f + 30, dst);
    put16(f + 24, (uint16_t)~hvx_csum_fold(hvx_csum_add(0, f + 14, 20)));
    return 34 + n;
}

static unsigned tcp_sum(const uint8_t *f, size_t n)
{
    return hvx_csum_fold(hvx_csum_add(hvx_csum_add(0, f + 26, 8) + 6 + n, f + 34, n));
}

static size_t tcp_frame(uint8_t *f, unsigned sport, unsigned dport, uint32_t seq, uint32_t ack, unsigned flags,
                        const void *data, size_t n)
{
    size_t len = ipv4(f, router_mac, GUEST_IP, ROUTER_IP, 6, 20 + n);
    memset(f + 34, 0, 20);
    put16(f + 34, sport);
    put16(f + 36, dport);
    put32(f + 38, seq);
    put32(f + 42, ack);
    f[46] = 0x50;
    f[47] = (uint8_t)flags;
    put16(f + 48, 65535);
    if (n)
        memcpy(f + 54, data, n);
    put16(f + 50, (uint16_t)~tcp_sum(f, 20 + n));
    return len;
}

/* --- setting up: a port, the router's address --------------------------------- */
static void arp(void)
{
    static const uint8_t all[6] = {255, 255, 255, 255, 255, 255};
    uint8_t f[42] = {0}, *r;
    size_t n;
    ethernet(f, all, 0x0806);
    memcpy(f + 14, "\0\1\x08\0\6\4\0\1", 8);
    memcpy(f + 22, mac, 6);
    put32(f + 28, GUEST_IP);
    put32(f + 38, ROUTER_IP);
    send_frame(f, sizeof(f));
    while ((r = next_frame(&n, 3000)) && get16(r + 12) != 0x0806)
        ;
    assert_non_null(r);
    assert_int_equal(get16(r + 20), 2);
    assert_int_equal(get32(r + 28), ROUTER_IP);
    memcpy(router_mac, r + 22, 6);
}

static void open_net(const char *spec)
{
    struct hvx_error err = {0};
    hvx_loop_lock(loop);
    if (hvx_net_open(loop, spec, 0, &net, &err))
        fail_msg("%s", err.text);
    hvx_net_name_vm(net, "test", 0);
    assert_int_equal(hvx_nic_attach(net, &ops, NULL, &nic, &err), 0);
    hvx_nic_mac(nic, mac);
    hvx_loop_unlock(loop);
    n_got = n_read = 0;
    no_room = false;
}

static void close_net(void)
{
    hvx_loop_lock(loop);
    hvx_nic_detach(nic);
    hvx_net_close(net);
    hvx_loop_unlock(loop);
}

static int listener(unsigned *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(fd, 5), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &n), 0);
    *port = ntohs(a.sin_port);
    return fd;
}

/* --- tests -------------------------------------------------------------------------- */
static void test_arp_and_icmp(void **state)
{
    uint8_t f[98], *r;
    size_t n;
    (void)state;
    open_net("user");
    arp();
    memset(f, 0, sizeof(f));
    size_t len = ipv4(f, router_mac, GUEST_IP, ROUTER_IP, 1, 64);
    f[34] = 8;
    put16(f + 38, 0x4242);
    put16(f + 36, (uint16_t)~hvx_csum_fold(hvx_csum_add(0, f + 34, 64)));
    send_frame(f, len);
    while ((r = next_frame(&n, 3000)) && !(get16(r + 12) == 0x0800 && r[23] == 1))
        ;
    assert_non_null(r);
    assert_int_equal(r[34], 0); /* echo reply */
    assert_int_equal(get16(r + 38), 0x4242);
    assert_int_equal(hvx_csum_fold(hvx_csum_add(0, r + 34, 64)), 0xffff);
    close_net();
}

/* It makes libslirp read /etc/resolv.conf, in a process that can open no file. */
static void test_a_question_to_the_resolver_is_survived(void **state)
{
    static const uint8_t query[] = "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01";
    uint8_t f[200] = {0}, *r;
    size_t n, bytes = sizeof(query) - 1;
    (void)state;
    open_net("user");
    arp();
    size_t len = ipv4(f, router_mac, GUEST_IP, ROUTER_IP + 1, 17, 8 + bytes);
    put16(f + 34, 5353);
    put16(f + 36, 53);
    put16(f + 38, (unsigned)(8 + bytes));
    memcpy(f + 42, query, bytes);
    send_frame(f, len);
    len = ipv4(f, router_mac, GUEST_IP, ROUTER_IP, 1, 64);
    memset(f + 34, 0, 64);
    f[34] = 8;
    put16(f + 36, (uint16_t)~hvx_csum_fold(hvx_csum_add(0, f + 34, 64)));
    send_frame(f, len);
    while ((r = next_frame(&n, 3000)) && !(get16(r + 12) == 0x0800 && r[23] == 1 && r[34] == 0))
        ;
    assert_non_null(r); /* who answers is alive */
    close_net();
}

static void test_dhcp_offers_an_address(void **state)
{
    static const uint8_t all[6] = {255, 255, 255, 255, 255, 255};
    uint8_t f[400] = {0}, *r;
    size_t n;
    (void)state;
    open_net("user,net=192.168.77.0/24");
    size_t len = ipv4(f, all, 0, 0xffffffff, 17, 8 + 300);
    put16(f + 34, 68);
    put16(f + 36, 67);
    put16(f + 38, 308);
    uint8_t *b = f + 42;
    b[0] = 1;
    b[1] = 1;
    b[2] = 6;
    put32(b + 4, 0xabcd1234);
    memcpy(b + 28, mac, 6);
    put32(b + 236, 0x63825363);
    memcpy(b + 240, "\x35\x01\x01\xff", 4);
    send_frame(f, len);
    while ((r = next_frame(&n, 3000)) && !(get16(r + 12) == 0x0800 && r[23] == 17 && get16(r + 36) == 68))
        ;
    assert_non_null(r);
    assert_int_equal(get32(r + 46), 0xabcd1234);
    assert_int_equal(get32(r + 58), 0xc0a84d0f); /* 192.168.77.15 */
    close_net();
}

/* Connect, send data (plain, or large frames with unfinished checksums), echo. */
static void tcp_session(bool offload)
{
    enum { TOTAL = 60000 };
    unsigned port;
    int fd = listener(&port), c;
    uint8_t *big = malloc(TOTAL + 54), *data = malloc(TOTAL), *seen = malloc(TOTAL), f[1600], *r;
    uint32_t seq = 1000, ack = 0;
    size_t n, got = 0;
    open_net("user");
    arp();
    send_frame(f, tcp_frame(f, 4000, port, seq, 0, 2, NULL, 0));
    while ((r = next_frame(&n, 3000)) && !(r[23] == 6 && r[47] == 0x12))
        ;
    assert_non_null(r);
    assert_int_equal(tcp_sum(r, get16(r + 16) - 20u), 0xffff);
    ack = get32(r + 38) + 1;
    assert_int_equal(get32(r + 42), ++seq);
    send_frame(f, tcp_frame(f, 4000, port, seq, ack, 0x10, NULL, 0));
    c = accept(fd, NULL, NULL);
    assert_true(c >= 0);
    fcntl(c, F_SETFL, O_NONBLOCK);
    srand(7);
    for (unsigned i = 0; i < TOTAL; i++)
        data[i] = (uint8_t)rand();
    size_t chunk = offload ? 20000 : 1400;
    for (size_t at = 0; at < TOTAL;) {
        size_t k = TOTAL - at < chunk ? TOTAL - at : chunk;
        size_t len = tcp_frame(big, 4000, port, seq, ack, 0x18, data + at, k);
        if (offload) {
            struct hvx_net_meta m = {.flags = 1, .gso_type = 1, .gso_size = 1400, .hdr_len = 54, .csum_start = 34,
                                     .csum_offset = 16};
            put16(big + 50, hvx_csum_fold(hvx_csum_add(0, big + 26, 8) + 6 + 20 + k)); /* the pseudo header's sum */
            send_meta(big, len, &m);
        } else {
            send_frame(big, len);
        }
        seq += (uint32_t)k;
        at += k;
        /* Wait until it is acknowledged; the server reads meanwhile. */
        for (uint32_t acked = 0; acked != seq;) {
            ssize_t m = read(c, seen + got, TOTAL - got);
            if (m > 0)
                got += (size_t)m;
            r = next_frame(&n, 3000);
            assert_non_null(r);
            if (get16(r + 12) == 0x0800 && r[23] == 6)
                acked = get32(r + 42);
        }
    }
    while (got < TOTAL) {
        struct pollfd p = {.fd = c, .events = POLLIN};
        if (poll(&p, 1, 0) == 1) {
            ssize_t m = read(c, seen + got, TOTAL - got);
            assert_true(m > 0);
            got += (size_t)m;
        } else {
            (void)next_frame(&n, 20);
        }
    }
    assert_memory_equal(seen, data, TOTAL);
    assert_int_equal(write(c, "pong", 4), 4); /* and back */
    while ((r = next_frame(&n, 3000)) && !(r[23] == 6 && get16(r + 16) == 20u + (r[46] >> 4) * 4u + 4))
        ;
    assert_non_null(r);
    assert_memory_equal(r + 34 + (r[46] >> 4) * 4, "pong", 4);
    assert_int_equal(tcp_sum(r, get16(r + 16) - 20u), 0xffff);
    close(c);
    close(fd);
    close_net();
    free(big);
    free(data);
    free(seen);
}

static void test_tcp_to_a_server(void **state)
{
    (void)state;
    tcp_session(false);
}

static void test_tcp_with_segmentation_left_to_us(void **state)
{
    (void)state;
    tcp_session(true);
}

static void test_unfinished_checksum_is_finished(void **state)
{
    unsigned port;
    int fd = listener(&port);
    uint8_t f[100], *r;
    size_t n;
    struct hvx_net_meta m = {.flags = 1, .csum_start = 34, .csum_offset = 16};
    (void)state;
    open_net("user");
    arp();
    size_t len = tcp_frame(f, 4001, port, 5, 0, 2, NULL, 0);
    put16(f + 50, hvx_csum_fold(hvx_csum_add(0, f + 26, 8) + 6 + 20));
    send_meta(f, len, &m);
    while ((r = next_frame(&n, 3000)) && !(r[23] == 6 && r[47] == 0x12))
        ;
    assert_non_null(r); /* libslirp drops frames with wrong checksums */
    close(fd);
    close_net();
}

static void test_restricted_guest_reaches_nothing(void **state)
{
    unsigned port;
    int fd = listener(&port);
    uint8_t f[100], *r;
    size_t n;
    (void)state;
    open_net("user,restrict=on");
    arp();
    send_frame(f, tcp_frame(f, 4002, port, 5, 0, 2, NULL, 0));
    while ((r = next_frame(&n, 300)))
        assert_false(get16(r + 12) == 0x0800 && r[23] == 6 && r[47] == 0x12);
    close(fd);
    close_net();
}

static void test_port_forward_tcp(void **state)
{
    unsigned port;
    char spec[100];
    uint8_t f[1600], *r;
    size_t n;
    int probe = listener(&port); /* a free port number */
    (void)state;
    close(probe);
    snprintf(spec, sizeof(spec), "user,hostfwd=tcp:127.0.0.1:%u-:22", port);
    open_net(spec);
    arp();
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int c = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(c, (struct sockaddr *)&a, sizeof(a)), 0);
    while ((r = next_frame(&n, 3000)) && !(get16(r + 12) == 0x0800 && r[23] == 6 && r[47] == 2))
        ;
    assert_non_null(r);
    assert_int_equal(get16(r + 36), 22);
    unsigned peer = get16(r + 34);
    uint32_t ack = get32(r + 38) + 1;
    send_frame(f, tcp_frame(f, 22, peer, 100, ack, 0x12, NULL, 0));
    send_frame(f, tcp_frame(f, 22, peer, 101, ack, 0x18, "SSH-2.0-fake\r\n", 14));
    char buf[32] = {0};
    for (unsigned i = 0; i < 200 && read(c, buf, 0) == 0; i++) {
        struct pollfd p = {.fd = c, .events = POLLIN};
        if (poll(&p, 1, 0) == 1)
            break;
        (void)next_frame(&n, 20);
    }
    assert_int_equal(recv(c, buf, sizeof(buf), MSG_DONTWAIT), 14);
    assert_string_equal(buf, "SSH-2.0-fake\r\n");
    close(c);
    struct hvx_net *second;
    struct hvx_error err;
    /* the same port again: says so */
    assert_true(hvx_net_open(loop, spec, 1, &second, &err) < 0);
    assert_non_null(strstr(err.text, "cannot forward TCP port"));
    close_net();
}

static void count_stat(void *o, const char *name, uint64_t v, const char *unit)
{
    (void)unit;
    if (!strcmp(name, "rx_dropped") || !strcmp(name, "tx_dropped"))
        *(uint64_t *)o += v;
}

static void test_guest_without_room_loses_no_order_and_no_memory(void **state)
{
    uint8_t f[98] = {0}, *r;
    size_t n;
    unsigned next = 0;
    uint64_t dropped = 0;
    (void)state;
    open_net("user");
    arp();
    while (next_frame(&n, 50))
        ;
    no_room = true;
    for (unsigned i = 0; i < 20000; i++) { /* more than the queues hold */
        size_t len = ipv4(f, router_mac, GUEST_IP, ROUTER_IP, 1, 64);
        f[34] = 8;
        put16(f + 36, 0);
        put16(f + 40, i & 0xffff);
        put16(f + 36, (uint16_t)~hvx_csum_fold(hvx_csum_add(0, f + 34, 64)));
        send_frame(f, len);
    }
    hvx_net_stats(net, count_stat, &dropped);
    assert_true(dropped > 1000);
    no_room = false;
    hvx_loop_lock(loop);
    hvx_nic_rx_ready(nic);
    hvx_loop_unlock(loop);
    while ((r = next_frame(&n, 200))) {
        if (r[23] == 1)
            assert_int_equal(get16(r + 40), next++); /* none is missing between those that were kept */
        if (n_got == n_read) {
            hvx_loop_lock(loop);
            hvx_nic_rx_ready(nic);
            hvx_loop_unlock(loop);
        }
    }
    assert_true(next >= 1000);
    close_net();
}

static void test_specifications_that_are_refused(void **state)
{
    static const struct {
        const char *spec, *says;
    } bad[] = {
        {"", "unknown"},
        {"bridge", "user, tap or none"},
        {"user,mac=1:2:3", "not a MAC"},
        {"user,mac=01:00:00:00:00:01", "multicast"},
        {"user,hostfwd=tcp:2222-:22", "not understood"},
        {"user,hostfwd=sctp::1-:2", "not understood"},
        {"user,hostfwd=tcp::0-:22", "not understood"},
        {"user,hostfwd=tcp::99999-:22", "not understood"},
        {"user,hostfwd=tcp:1.2.3:x-:22", "not understood"},
        {"user,net=10.0.2.1/24", "not a network"},
        {"user,net=10.0.2.0/30", "not a network"},
        {"user,net=10.0.2.0", "not a network"},
        {"user,restrict=maybe", "on or off"},
        {"user,ifname=tap0", "unknown option"},
        {"tap,hostfwd=tcp::1-:2", "unknown option"},
        {"user,mac", "needs a value"},
        {"tap,ifname=a-name-that-is-too-long", "15 characters"},
        {"tap,fd=x", "descriptor number"},
        {"tap,fd=0", "no TAP"},
        {"none,mac=52:54:00:00:00:01", "takes no options"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct hvx_net *n;
        struct hvx_error err = {0};
        int r = hvx_net_open(loop, bad[i].spec, 0, &n, &err);
        if (!r || !strstr(err.text, bad[i].says))
            fail_msg("%s: %d \"%s\", should say \"%s\"", bad[i].spec, r, err.text, bad[i].says);
    }
}

static void test_mac_addresses(void **state)
{
    uint8_t a[6], b[6], given[6];
    struct hvx_error err;
    (void)state;
    hvx_net_default_mac("web", 0, a);
    hvx_net_default_mac("web", 0, b);
    assert_memory_equal(a, b, 6);
    assert_memory_equal(a, "\x52\x54\x00", 3);
    hvx_net_default_mac("web", 1, b);
    assert_memory_not_equal(a, b, 6);
    hvx_net_default_mac("db", 0, b);
    assert_memory_not_equal(a, b, 6);
    assert_int_equal(hvx_net_open(loop, "none", 0, &net, &err), 0);
    hvx_net_close(net);
    open_net("user,mac=02:00:00:00:00:07");
    hvx_nic_mac(nic, given);
    assert_memory_equal(given, "\x02\0\0\0\0\x07", 6);
    close_net();
}

static int setup(void **state)
{
    struct hvx_error err;
    (void)state;
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
    hvx_confine_plan("test_user"); /* the processes with the sockets run under their filter, as in a VM */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arp_and_icmp),
        cmocka_unit_test(test_dhcp_offers_an_address),
        cmocka_unit_test(test_a_question_to_the_resolver_is_survived),
        cmocka_unit_test(test_tcp_to_a_server),
        cmocka_unit_test(test_tcp_with_segmentation_left_to_us),
        cmocka_unit_test(test_unfinished_checksum_is_finished),
        cmocka_unit_test(test_restricted_guest_reaches_nothing),
        cmocka_unit_test(test_port_forward_tcp),
        cmocka_unit_test(test_guest_without_room_loses_no_order_and_no_memory),
        cmocka_unit_test(test_specifications_that_are_refused),
        cmocka_unit_test(test_mac_addresses),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
