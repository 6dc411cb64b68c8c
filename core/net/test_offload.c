/* SPDX-License-Identifier: Apache-2.0
 *
 * test_offload.c - checksums and segmentation in software: known vectors, and
 * frames that are taken apart again and checked field by field with another,
 * simple-minded checksum.
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
#include "core/net/gso.h"
#include <stdlib.h>
#include <string.h>

/* RFC 1071 word by word. */
static uint16_t slow_sum(uint32_t sum, const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        sum += i & 1 ? p[i] : (uint32_t)p[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static void test_rfc1071_example(void **state)
{
    static const uint8_t v[] = {0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}; /* RFC 1071, section 3 */
    (void)state;
    assert_int_equal(hvx_csum_fold(hvx_csum_add(0, v, sizeof(v))), 0xddf2);
}

static void test_known_ipv4_header(void **state)
{
    static const uint8_t h[] = {0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11,
                                0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7};
    (void)state;
    assert_int_equal(hvx_csum_fold(hvx_csum_add(0, h, sizeof(h))), 0xffff); /* a header with its checksum */
}

static void test_any_length_and_alignment(void **state)
{
    uint8_t buf[300];
    (void)state;
    srand(1);
    for (size_t i = 0; i < sizeof(buf); i++)
        buf[i] = (uint8_t)rand();
    for (size_t at = 0; at < 8; at++) {
        for (size_t n = 0; n <= 280; n++)
            assert_int_equal(hvx_csum_fold(hvx_csum_add(0, buf + at, n)), slow_sum(0, buf + at, n));
    }
    memset(buf, 0xff, sizeof(buf));
    assert_int_equal(hvx_csum_fold(hvx_csum_add(0xffffffffu, buf, 280)), 0xffff);
}

static void test_complete_checksum_stays_in_the_frame(void **state)
{
    uint8_t f[64] = {0};
    struct hvx_net_meta m = {.flags = 1, .csum_start = 34, .csum_offset = 16};
    (void)state;
    assert_int_equal(hvx_csum_complete(f, sizeof(f), &m), 0);
    m.csum_offset = 29;
    assert_int_equal(hvx_csum_complete(f, sizeof(f), &m), -EINVAL);
    m.csum_start = 65;
    m.csum_offset = 0;
    assert_int_equal(hvx_csum_complete(f, sizeof(f), &m), -EINVAL);
    m.csum_start = 0xffff;
    m.csum_offset = 0xffff;
    assert_int_equal(hvx_csum_complete(f, sizeof(f), &m), -EINVAL);
    /* UDP: a sum of zero is sent as ones */
    memset(f, 0, sizeof(f));
    f[34] = 0xff;
    f[35] = 0xff;
    m = (struct hvx_net_meta){.flags = 1, .csum_start = 34, .csum_offset = 6};
    assert_int_equal(hvx_csum_complete(f, 42, &m), 0);
    assert_int_equal(f[40] << 8 | f[41], 0xffff);
}

struct sink {
    bool v6;
    size_t tcp, ip, payload_at, mss;
    const uint8_t *payload;
    size_t n_payload, done;
    unsigned n;
    uint32_t seq;
    uint8_t flags_first, flags_middle, flags_last;
};

static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static void check_segment(void *opaque, uint8_t *f, size_t n)
{
    struct sink *s = opaque;
    size_t payload = n - s->payload_at, n_tcp = n - s->tcp;
    bool last = s->done + payload == s->n_payload;
    assert_true(payload == s->mss || last);
    assert_memory_equal(f + s->payload_at, s->payload + s->done, payload);
    if (s->v6) {
        assert_int_equal(get16(f + s->ip + 4), n - s->ip - 40);
    } else {
        assert_int_equal(get16(f + s->ip + 2), n - s->ip);
        assert_int_equal(get16(f + s->ip + 4), (uint16_t)(0xfffe + s->n));
        assert_int_equal(slow_sum(0, f + s->ip, s->tcp - s->ip), 0xffff);
    }
    uint32_t pseudo = slow_sum(6 + (uint32_t)n_tcp, f + s->ip + (s->v6 ? 8 : 12), s->v6 ? 32 : 8);
    assert_int_equal(slow_sum(pseudo, f + s->tcp, n_tcp), 0xffff);
    uint32_t seq = (uint32_t)get16(f + s->tcp + 4) << 16 | get16(f + s->tcp + 6);
    assert_int_equal(seq, (uint32_t)(s->seq + s->done));
    uint8_t want = s->n == 0 ? s->flags_first : s->flags_middle;
    if (last)
        want = s->flags_last;
    assert_int_equal(f[s->tcp + 13], want);
    s->done += payload;
    s->n++;
}

/* Ethernet, optional VLAN tag, IPv4 or IPv6 with an extension header, TCP with
 * 12 bytes of options, in several pieces. */
static void segment_one(bool v6, bool vlan, bool extension, size_t n_payload, uint16_t mss)
{
    size_t ip = vlan ? 18 : 14, tcp = ip + (v6 ? 40 + (extension ? 8 : 0) : 20), end = tcp + 32;
    uint8_t *f = calloc(1, end + n_payload), scratch[4096];
    struct sink s = {.v6 = v6, .ip = ip, .tcp = tcp, .payload_at = end, .mss = mss, .payload = f + end,
                     .n_payload = n_payload, .seq = 0xfffffff0u, .flags_first = 0x90, .flags_middle = 0x10,
                     .flags_last = 0x19};
    f[12] = vlan ? 0x81 : v6 ? 0x86 : 0x08;
    f[13] = vlan ? 0 : v6 ? 0xdd : 0;
    if (vlan) {
        f[16] = v6 ? 0x86 : 0x08;
        f[17] = v6 ? 0xdd : 0;
    }
    f[ip] = v6 ? 0x60 : 0x45;
    if (v6) {
        f[ip + 6] = extension ? 60 : 6;
        if (extension)
            f[ip + 40] = 6;
        for (unsigned i = 8; i < 40; i++)
            f[ip + i] = (uint8_t)(i * 7);
    } else {
        f[ip + 4] = 0xff; /* identification 0xfffe: wraps */
        f[ip + 5] = 0xfe;
        f[ip + 8] = 64;
        f[ip + 9] = 6;
        memcpy(f + ip + 12, "\x0a\x00\x02\x0f\x0a\x00\x02\x02", 8);
    }
    memcpy(f + tcp, "\x12\x34\x00\x50\xff\xff\xff\xf0", 8); /* the sequence number wraps, too */
    f[tcp + 12] = 0x80;
    f[tcp + 13] = 0x99; /* CWR ACK PSH FIN */
    for (size_t i = 0; i < n_payload; i++)
        f[end + i] = (uint8_t)rand();
    if (n_payload <= mss)
        s.flags_last = 0x99;
    struct hvx_net_meta m = {.flags = 1, .gso_type = (v6 ? 4 : 1) | 0x80, .hdr_len = (uint16_t)end, .gso_size = mss};
    struct iovec v[3] = {{f, 20}, {f + 20, end + n_payload > 60 ? 40 : 1}, {NULL, 0}};
    v[2].iov_base = f + 20 + v[1].iov_len;
    v[2].iov_len = end + n_payload - 20 - v[1].iov_len;
    assert_int_equal(hvx_gso_segment(v, 3, &m, scratch, sizeof(scratch), check_segment, &s), 0);
    assert_int_equal(s.done, n_payload);
    assert_int_equal(s.n, n_payload ? (n_payload + mss - 1) / mss : 1);
    free(f);
}

static void test_segments_of_every_shape(void **state)
{
    (void)state;
    srand(2);
    for (unsigned shape = 0; shape < 8; shape++) {
        segment_one(shape & 1, shape & 2, shape & 4, 65000, 1448);
        segment_one(shape & 1, shape & 2, shape & 4, 1448, 1448);
        segment_one(shape & 1, shape & 2, shape & 4, 1449, 1448);
        segment_one(shape & 1, shape & 2, shape & 4, 100, 7);
        segment_one(shape & 1, shape & 2, shape & 4, 1, 1);
    }
}

static void must_not_emit(void *opaque, uint8_t *f, size_t n)
{
    (void)opaque;
    (void)f;
    (void)n;
    fail_msg("a malformed frame was segmented");
}

static void test_malformed_frames_are_refused(void **state)
{
    uint8_t f[200], scratch[2000];
    struct iovec v = {f, sizeof(f)};
    struct hvx_net_meta good = {.gso_type = 1, .gso_size = 100}, m;
    (void)state;
    memset(f, 0, sizeof(f));
    f[12] = 8;
    f[14] = 0x45;
    f[23] = 6;
    f[46] = 0x50;
    static const struct {
        uint8_t at, value;
    } lies[] = {{12, 9}, {14, 0x65}, {14, 0x44}, {14, 0x4f}, {23, 17}, {46, 0x40}, {13, 1}};
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        uint8_t was = f[lies[i].at];
        f[lies[i].at] = lies[i].value;
        if (lies[i].value == 0x4f)
            v.iov_len = 60; /* the IP header would end behind the frame */
        assert_int_equal(hvx_gso_segment(&v, 1, &good, scratch, sizeof(scratch), must_not_emit, NULL), -EINVAL);
        v.iov_len = sizeof(f);
        f[lies[i].at] = was;
    }
    m = good;
    m.gso_size = 0;
    assert_int_equal(hvx_gso_segment(&v, 1, &m, scratch, sizeof(scratch), must_not_emit, NULL), -EINVAL);
    m = good;
    m.gso_size = 1990;
    assert_int_equal(hvx_gso_segment(&v, 1, &m, scratch, sizeof(scratch), must_not_emit, NULL), -EINVAL);
    for (unsigned type = 0; type < 128; type++) {
        m = good;
        m.gso_type = (uint8_t)type;
        if (type != 1)
            assert_int_equal(hvx_gso_segment(&v, 1, &m, scratch, sizeof(scratch), must_not_emit, NULL), -EINVAL);
    }
    for (size_t n = 0; n < 54; n++) {
        v.iov_len = n;
        assert_int_equal(hvx_gso_segment(&v, 1, &good, scratch, sizeof(scratch), must_not_emit, NULL), -EINVAL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rfc1071_example),
        cmocka_unit_test(test_known_ipv4_header),
        cmocka_unit_test(test_any_length_and_alignment),
        cmocka_unit_test(test_complete_checksum_stays_in_the_frame),
        cmocka_unit_test(test_segments_of_every_shape),
        cmocka_unit_test(test_malformed_frames_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
