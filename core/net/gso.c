/* SPDX-License-Identifier: Apache-2.0
 *
 * gso.c - see gso.h. The headers come from a guest: nothing in them is
 * believed before it has been checked against the frame's length.
 */
#include "core/net/gso.h"
#include "core/image/sg.h"
#include "core/net/csum.h"

#define TCP_FIN 0x01u
#define TCP_PSH 0x08u
#define TCP_CWR 0x80u

struct headers {
    uint8_t bytes[HVX_GSO_MAX_HEADERS];
    size_t have;         /* bytes of the frame copied here */
    size_t ip, tcp, end; /* offsets; end: where the payload starts */
    bool v6;
};

static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}
static void put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}
static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)get16(p) << 16 | get16(p + 2);
}
static void put32(uint8_t *p, uint32_t v)
{
    put16(p, (uint16_t)(v >> 16));
    put16(p + 2, (uint16_t)v);
}

/* Offset of TCP behind an IPv6 header and its extensions, 0: none there. */
static size_t skip_ipv6(const struct headers *h)
{
    uint8_t next = h->bytes[h->ip + 6];
    size_t at = h->ip + 40;
    while (next == 0 || next == 43 || next == 60) { /* hop by hop, routing, destination options */
        if (at + 8 > h->have)
            return 0;
        next = h->bytes[at];
        at += ((size_t)h->bytes[at + 1] + 1) * 8;
    }
    return next == 6 ? at : 0;
}

static int parse(struct headers *h, uint8_t gso_type)
{
    size_t at = 12;
    if (h->have < 14)
        return -EINVAL;
    uint16_t type = get16(h->bytes + at);
    for (unsigned tags = 0; (type == 0x8100 || type == 0x88a8) && tags < 2; tags++) {
        at += 4;
        if (at + 2 > h->have)
            return -EINVAL;
        type = get16(h->bytes + at);
    }
    h->ip = at + 2;
    h->v6 = (gso_type & 0x7f) == 4;
    if (type != (h->v6 ? 0x86dd : 0x0800) || h->ip + (h->v6 ? 40 : 20) > h->have)
        return -EINVAL;
    if (h->v6) {
        h->tcp = skip_ipv6(h);
    } else {
        size_t ihl = (h->bytes[h->ip] & 15u) * 4u;
        if (h->bytes[h->ip] >> 4 != 4 || ihl < 20 || h->bytes[h->ip + 9] != 6)
            return -EINVAL;
        h->tcp = h->ip + ihl;
    }
    if (!h->tcp || h->tcp + 20 > h->have)
        return -EINVAL;
    size_t doff = (h->bytes[h->tcp + 12] >> 4) * 4u;
    h->end = h->tcp + doff;
    return doff < 20 || h->end > h->have ? -EINVAL : 0;
}

/* Lengths, sequence number, flags and checksums of one segment. */
static void finish(const struct headers *h, uint8_t *f, uint32_t index, uint32_t done, size_t payload, bool last)
{
    uint8_t *ip = f + h->ip, *tcp = f + h->tcp;
    size_t n_tcp = h->end - h->tcp + payload;
    uint64_t pseudo;
    if (h->v6) {
        put16(ip + 4, (uint16_t)(h->tcp - h->ip - 40 + n_tcp));
        pseudo = hvx_csum_add(0, ip + 8, 32);
    } else {
        put16(ip + 2, (uint16_t)(h->tcp - h->ip + n_tcp));
        put16(ip + 4, (uint16_t)(get16(h->bytes + h->ip + 4) + index));
        put16(ip + 10, 0);
        put16(ip + 10, (uint16_t)~hvx_csum_fold(hvx_csum_add(0, ip, h->tcp - h->ip)));
        pseudo = hvx_csum_add(0, ip + 12, 8);
    }
    put32(tcp + 4, get32(h->bytes + h->tcp + 4) + done);
    if (!last)
        tcp[13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
    if (index)
        tcp[13] &= (uint8_t)~TCP_CWR; /* says "window reduced" once */
    put16(tcp + 16, 0);
    put16(tcp + 16, (uint16_t)~hvx_csum_fold(hvx_csum_add(pseudo + 6 + n_tcp, tcp, n_tcp)));
}

int hvx_gso_segment(const struct iovec *iov, unsigned n_iov, const struct hvx_net_meta *meta, uint8_t *scratch,
                    size_t n_scratch, void (*emit)(void *opaque, uint8_t *frame, size_t n), void *opaque)
{
    struct headers h;
    struct hvx_sg sg = hvx_sg_of(iov, n_iov);
    uint8_t type = meta->gso_type & 0x7f;
    size_t total = 0;
    for (unsigned i = 0; i < n_iov; i++)
        total += iov[i].iov_len;
    if ((type != 1 && type != 4) || !meta->gso_size || total > HVX_NET_MAX_FRAME)
        return -EINVAL;
    memset(&h, 0, sizeof(h));
    h.have = total < sizeof(h.bytes) ? total : sizeof(h.bytes);
    hvx_sg_take(sg, h.bytes, h.have);
    int r = parse(&h, meta->gso_type);
    if (r)
        return r;
    if (h.end + meta->gso_size > n_scratch)
        return -EINVAL;
    hvx_sg_advance(&sg, h.end);
    size_t left = total - h.end;
    uint32_t done = 0;
    for (uint32_t index = 0;; index++) {
        size_t n = left < meta->gso_size ? left : meta->gso_size;
        memcpy(scratch, h.bytes, h.end);
        hvx_sg_take(sg, scratch + h.end, n);
        hvx_sg_advance(&sg, n);
        left -= n;
        finish(&h, scratch, index, done, n, !left);
        emit(opaque, scratch, h.end + n);
        done += (uint32_t)n;
        if (!left)
            return 0;
    }
}
