/* SPDX-License-Identifier: Apache-2.0
 *
 * The network device: frames both ways with and without mergeable buffers and
 * offloads, the receive filter, the control queue.
 */
#include "test_driver.h"

#include <linux/virtio_net.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define RING (BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(VIRTIO_RING_F_INDIRECT_DESC))
#define MERGE BIT(VIRTIO_NET_F_MRG_RXBUF)
#define CTRL (BIT(VIRTIO_NET_F_CTRL_VQ) | BIT(VIRTIO_NET_F_CTRL_RX) | BIT(VIRTIO_NET_F_CTRL_RX_EXTRA) | \
              BIT(VIRTIO_NET_F_CTRL_MAC_ADDR) | BIT(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS))
#define TX_OFFLOAD (BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_HOST_TSO4) | BIT(VIRTIO_NET_F_HOST_TSO6))
#define RX_OFFLOAD (BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_GUEST_TSO4) | BIT(VIRTIO_NET_F_GUEST_TSO6))
#define ALL (RING | MERGE | CTRL | TX_OFFLOAD | RX_OFFLOAD | BIT(VIRTIO_NET_F_STATUS) | BIT(VIRTIO_NET_F_MAC))
#define BUF 2048u

static const struct variant {
    bool modern;
    uint64_t features;
    unsigned header;
} variants[] = {
    {false, 0, 10}, {false, MERGE, 12}, {false, ALL, 12},
    {true, 0, 12},  {true, MERGE, 12},  {true, ALL, 12}, {true, ALL | BIT(VIRTIO_F_RING_PACKED), 12},
};
#define N_VARIANTS (sizeof(variants) / sizeof(variants[0]))

struct fixture {
    struct instance i;
    struct drv *d;
    struct drvq *rx, *tx, *ctrl;
    uint64_t rx_buf, tx_buf, ctrl_buf;
    uint16_t rx_id[1024]; /* slot of the buffer pool by chain id */
    uint8_t frame[70000];
};

static void open_net(struct fixture *f, const char *options, bool modern, uint64_t features, unsigned n_queues)
{
    struct hvx_vm *vm = hvxtest_new(&(struct hvxtest_params){.ram_below_4g = DRV_RAM});
    memset(f, 0, sizeof(*f));
    hvxtest_nic_add(vm, "net0");
    instance_open(&f->i, vm, "virtio-net", options);
    f->d = &f->i.d;
    drv_start(f->d, vm, modern, features, n_queues);
    f->rx = &f->d->q[0];
    f->tx = &f->d->q[1];
    f->ctrl = &f->d->q[2];
    f->rx_buf = drv_alloc(f->d, 64 * BUF, 4096);
    f->tx_buf = drv_alloc(f->d, 128 << 10, 4096);
    f->ctrl_buf = drv_alloc(f->d, 4096, 16);
}

static void open_variant(struct fixture *f, const struct variant *v)
{
    open_net(f, "netdev=net0,packed=on", v->modern, v->features, 3);
}

static void give_buffers(struct fixture *f, unsigned from, unsigned n, uint32_t bytes)
{
    for (unsigned i = from; i < from + n; i++)
        f->rx_id[drv_add(f->d, f->rx, &(struct seg){f->rx_buf + i * BUF, bytes, true}, 1)] = i;
    drv_kick(f->d, f->rx);
}

static void make_frame(struct fixture *f, size_t n, const uint8_t *dst)
{
    static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    for (size_t i = 0; i < n; i++)
        f->frame[i] = i * 3 + (i >> 8);
    memcpy(f->frame, dst ? dst : broadcast, 6);
    f->frame[12] = 0x88;
    f->frame[13] = 0xb5;
}

static int inject(struct fixture *f, size_t n, const struct hvx_net_meta *meta)
{
    return hvxtest_nic_inject(f->i.vm, "net0", f->frame, n, meta);
}

/* --- transmit --- */
static void send(struct fixture *f, const struct variant *v, const struct virtio_net_hdr *h, size_t bytes)
{
    uint8_t *p = drv_mem(f->d, f->tx_buf, v->header + bytes);
    memset(p, 0, v->header);
    if (h)
        memcpy(p, h, sizeof(*h));
    memcpy(p + v->header, f->frame, bytes);
    /* Header and half of the frame in one buffer, the rest in another. */
    struct seg s[] = {{f->tx_buf, v->header + bytes / 2, false},
                      {f->tx_buf + v->header + bytes / 2, bytes - bytes / 2, false}};
    uint16_t id = drv_add(f->d, f->tx, s, 2);
    drv_kick(f->d, f->tx);
    assert_int_equal(drv_used(f->d, f->tx, NULL), id);
}

static void test_frames_leave_the_guest(void **state)
{
    (void)state;
    for (unsigned k = 0; k < N_VARIANTS; k++) {
        struct fixture f;
        struct hvx_net_meta m;
        size_t n;
        open_variant(&f, &variants[k]);
        for (unsigned i = 0; i < 600; i++) {
            make_frame(&f, 60 + i, NULL);
            send(&f, &variants[k], NULL, 60 + i);
            assert_int_equal(hvxtest_nic_sent(f.i.vm, "net0"), i + 1);
            const uint8_t *got = hvxtest_nic_frame(f.i.vm, "net0", i, &n, &m);
            assert_int_equal(n, 60 + i);
            assert_memory_equal(got, f.frame, n);
            assert_int_equal(m.flags | m.gso_type, 0);
        }
        instance_close(&f.i);
    }
}

static void test_many_frames_in_one_notification(void **state)
{
    (void)state;
    struct fixture f;
    open_variant(&f, &variants[5]);
    hvxtest_pci_msix(f.d->pci, 2, 0xfee00000, 0x42, false);
    drv_set_vectors(f.d, 1, 2, 0xffff);
    make_frame(&f, 100, NULL);
    memcpy(drv_mem(f.d, f.tx_buf + 12, 100), f.frame, 100);
    for (unsigned i = 0; i < 200; i++)
        drv_add(f.d, f.tx, &(struct seg){f.tx_buf, 112, false}, 1);
    assert_true(drv_kick(f.d, f.tx));
    assert_int_equal(hvxtest_nic_sent(f.i.vm, "net0"), 200);
    assert_int_equal(hvxtest_msi_count(f.i.vm), 1);
    instance_close(&f.i);
}

/* One notification does a bounded amount of work; the rest follows from the loop. */
static void test_a_long_queue_is_served_in_portions(void **state)
{
    (void)state;
    struct fixture f;
    open_net(&f, "netdev=net0,queue-size=1024", true, ALL, 3);
    for (unsigned i = 0; i < 1000; i++)
        drv_add(f.d, f.tx, &(struct seg){f.tx_buf, 112, false}, 1);
    assert_true(drv_kick(f.d, f.tx));
    assert_int_equal(hvxtest_nic_sent(f.i.vm, "net0"), 256);
    hvxtest_step_ns(f.i.vm, 1);
    assert_int_equal(hvxtest_nic_sent(f.i.vm, "net0"), 1000);
    assert_int_equal(hvxtest_next_deadline(f.i.vm), ~0ull);
    /* The same while a reset comes in between: nothing is sent for a driver that is gone. */
    for (unsigned i = 0; i < 600; i++)
        drv_add(f.d, f.tx, &(struct seg){f.tx_buf, 112, false}, 1);
    drv_kick(f.d, f.tx);
    assert_int_equal(hvxtest_nic_sent(f.i.vm, "net0"), 1256);
    drv_set_status(f.d, 0);
    hvxtest_step_ns(f.i.vm, 1000);
    assert_int_equal(hvxtest_nic_sent(f.i.vm, "net0"), 1256);
    instance_close(&f.i);
}

static void test_transmit_offloads(void **state)
{
    (void)state;
    struct fixture f;
    struct hvx_net_meta m;
    size_t n;
    open_variant(&f, &variants[5]);
    make_frame(&f, 64000, NULL);
    struct virtio_net_hdr h = {.flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .hdr_len = 54, .gso_size = 1460,
                               .csum_start = 34, .csum_offset = 16};
    send(&f, &variants[5], &h, 64000);
    hvxtest_nic_frame(f.i.vm, "net0", 0, &n, &m);
    assert_int_equal(n, 64000);
    assert_memory_equal(&m, &h, sizeof(h));
    h = (struct virtio_net_hdr){.flags = 1, .csum_start = 34, .csum_offset = 6};
    send(&f, &variants[5], &h, 100);
    hvxtest_nic_frame(f.i.vm, "net0", 1, &n, &m);
    assert_int_equal(m.csum_start, 34);
    assert_int_equal(hvxtest_nic_sent(f.i.vm, "net0"), 2);

    /* What was not agreed on, or points outside the frame, is dropped. */
    static const struct virtio_net_hdr bad[] = {
        {.flags = 1, .csum_start = 99, .csum_offset = 0},
        {.flags = 1, .csum_start = 65535, .csum_offset = 65535},
        {.flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .csum_start = 34, .csum_offset = 16}, /* gso_size 0 */
        {.gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 1460},                                 /* no checksum */
        {.flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_UDP, .gso_size = 1460, .csum_start = 34, .csum_offset = 6},
        {.flags = 1, .gso_type = 0x81, .gso_size = 1460, .csum_start = 34, .csum_offset = 16}, /* ECN */
        {.flags = 1, .gso_type = 1, .hdr_len = 101, .gso_size = 1460, .csum_start = 34, .csum_offset = 16},
        {.gso_type = 0x7f, .gso_size = 1},
    };
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        send(&f, &variants[5], &bad[i], 100);
    send(&f, &variants[5], NULL, 13);
    send(&f, &variants[5], NULL, HVX_NET_MAX_FRAME + 1);
    assert_int_equal(hvxtest_nic_sent(f.i.vm, "net0"), 2);
    assert_int_equal(hvxtest_events(f.i.vm, NULL), 10);
    assert_int_equal(drv_status(f.d) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    instance_close(&f.i);
}

static void test_bad_transmit_chains_break_the_device(void **state)
{
    (void)state;
    static const struct seg bad[] = {{0, 11, false}, {0, 100, true}};
    for (unsigned i = 0; i < 2; i++) {
        struct fixture f;
        open_variant(&f, &variants[5]);
        drv_add(f.d, f.tx, &(struct seg){f.tx_buf, bad[i].len, bad[i].write}, 1);
        drv_kick(f.d, f.tx);
        assert_true(drv_status(f.d) & VIRTIO_CONFIG_S_NEEDS_RESET);
        make_frame(&f, 60, NULL);
        assert_int_equal(inject(&f, 60, NULL), 1); /* dropped, not queued for ever */
        instance_close(&f.i);
    }
}

/* --- receive --- */
static void check_received(struct fixture *f, const struct variant *v, size_t bytes)
{
    struct virtio_net_hdr_mrg_rxbuf h;
    size_t done = 0;
    unsigned count = 0, expect = 1;
    uint32_t len;
    do {
        int id = drv_used(f->d, f->rx, &len);
        assert_true(id >= 0);
        uint8_t *p = drv_mem(f->d, f->rx_buf + f->rx_id[id] * BUF, len);
        if (count == 0) {
            memcpy(&h, p, v->header);
            if (v->header == 12)
                expect = h.num_buffers;
            p += v->header;
            len -= v->header;
        }
        assert_memory_equal(p, f->frame + done, len);
        done += len;
    } while (++count < expect);
    assert_int_equal(done, bytes);
}

static void test_frames_reach_the_guest(void **state)
{
    (void)state;
    for (unsigned k = 0; k < N_VARIANTS; k++) {
        struct fixture f;
        open_variant(&f, &variants[k]);
        for (unsigned i = 0; i < 600; i++) {
            make_frame(&f, 60 + i * 2, NULL);
            give_buffers(&f, i % 64, 1, BUF);
            assert_int_equal(inject(&f, 60 + i * 2, NULL), 1);
            check_received(&f, &variants[k], 60 + i * 2);
        }
        assert_int_equal(drv_used(f.d, f.rx, NULL), -1);
        instance_close(&f.i);
    }
}

static void test_large_frames_are_spread_over_mergeable_buffers(void **state)
{
    (void)state;
    static const struct hvx_net_meta tso = {.flags = 1, .gso_type = 1, .hdr_len = 54, .gso_size = 1448,
                                            .csum_start = 34, .csum_offset = 16};
    for (unsigned k = 0; k < N_VARIANTS; k++) {
        struct fixture f;
        if ((variants[k].features & (MERGE | RX_OFFLOAD)) != (MERGE | RX_OFFLOAD))
            continue;
        open_variant(&f, &variants[k]);
        for (unsigned i = 0; i < 50; i++) {
            make_frame(&f, 64000, NULL);
            give_buffers(&f, 0, 20, BUF);
            assert_int_equal(inject(&f, 64000, &tso), 0); /* 20 do not suffice, and none is lost */
            assert_int_equal(drv_used(f.d, f.rx, NULL), -1);
            unsigned ready = hvxtest_nic_rx_ready_count(f.i.vm, "net0");
            give_buffers(&f, 20, 12, BUF);
            assert_int_equal(hvxtest_nic_rx_ready_count(f.i.vm, "net0"), ready + 1);
            assert_int_equal(inject(&f, 64000, &tso), 1);
            check_received(&f, &variants[k], 64000);
        }
        instance_close(&f.i);
    }
}

static void test_receive_without_room(void **state)
{
    (void)state;
    for (unsigned k = 0; k < N_VARIANTS; k++) {
        struct fixture f;
        open_variant(&f, &variants[k]);
        make_frame(&f, 1000, NULL);
        assert_int_equal(inject(&f, 1000, NULL), 0);
        unsigned ready = hvxtest_nic_rx_ready_count(f.i.vm, "net0");
        give_buffers(&f, 0, 1, BUF);
        assert_int_equal(hvxtest_nic_rx_ready_count(f.i.vm, "net0"), ready + 1);
        assert_int_equal(inject(&f, 1000, NULL), 1);
        check_received(&f, &variants[k], 1000);
        /* No more notifications than needed: buffers added while there is no shortage are not announced. */
        if (variants[k].features & RING) {
            give_buffers(&f, 1, 1, BUF);
            ready = hvxtest_nic_rx_ready_count(f.i.vm, "net0");
            for (unsigned i = 2; i < 20; i++)
                give_buffers(&f, i, 1, BUF);
            assert_int_equal(hvxtest_nic_rx_ready_count(f.i.vm, "net0"), ready);
        }
        instance_close(&f.i);
    }
}

static void test_a_frame_larger_than_the_buffer_is_dropped(void **state)
{
    (void)state;
    struct fixture f;
    open_variant(&f, &variants[3]);
    give_buffers(&f, 0, 4, 600);
    make_frame(&f, 1000, NULL);
    assert_int_equal(inject(&f, 1000, NULL), 1);
    assert_int_equal(drv_used(f.d, f.rx, NULL), -1);
    make_frame(&f, 500, NULL);
    assert_int_equal(inject(&f, 500, NULL), 1);
    check_received(&f, &variants[3], 500);
    instance_close(&f.i);
}

static void test_bad_receive_buffers_break_the_device(void **state)
{
    (void)state;
    static const struct seg bad[] = {{0, 12, true}, {0, 100, false}};
    for (unsigned i = 0; i < 2; i++) {
        struct fixture f;
        open_variant(&f, &variants[5]);
        drv_add(f.d, f.rx, &(struct seg){f.rx_buf, bad[i].len, bad[i].write}, 1);
        drv_kick(f.d, f.rx);
        make_frame(&f, 100, NULL);
        assert_int_equal(inject(&f, 100, NULL), 1);
        assert_true(drv_status(f.d) & VIRTIO_CONFIG_S_NEEDS_RESET);
        instance_close(&f.i);
    }
}

static void test_receive_offloads_follow_negotiation(void **state)
{
    (void)state;
    static const struct hvx_net_meta csum = {.flags = 1, .csum_start = 34, .csum_offset = 6};
    static const struct hvx_net_meta tso6 = {.flags = 1, .gso_type = 0x84, .hdr_len = 74, .gso_size = 1400,
                                             .csum_start = 54, .csum_offset = 16};
    struct virtio_net_hdr *h;
    struct fixture f;
    open_variant(&f, &variants[3]); /* none */
    assert_int_equal(hvxtest_nic_caps(f.i.vm, "net0"), 0);
    give_buffers(&f, 0, 4, BUF);
    make_frame(&f, 200, NULL);
    assert_int_equal(inject(&f, 200, &csum), 1); /* cannot be given to this guest */
    assert_int_equal(drv_used(f.d, f.rx, NULL), -1);
    assert_int_equal(inject(&f, 200, &(struct hvx_net_meta){.flags = 2}), 1);
    h = drv_mem(f.d, f.rx_buf, 12);
    assert_int_equal(h->flags, 0);
    instance_close(&f.i);

    open_variant(&f, &variants[5]);
    assert_int_equal(hvxtest_nic_caps(f.i.vm, "net0"), HVX_NET_CAN_CSUM | HVX_NET_CAN_TSO4 | HVX_NET_CAN_TSO6);
    give_buffers(&f, 0, 4, BUF);
    make_frame(&f, 200, NULL);
    assert_int_equal(inject(&f, 200, &tso6), 1);
    h = drv_mem(f.d, f.rx_buf + f.rx_id[drv_used(f.d, f.rx, NULL)] * BUF, 12);
    assert_int_equal(h->gso_type, VIRTIO_NET_HDR_GSO_TCPV6); /* ECN was not agreed on */
    assert_int_equal(h->gso_size, 1400);
    assert_int_equal(inject(&f, 200, &(struct hvx_net_meta){.flags = 2}), 1);
    h = drv_mem(f.d, f.rx_buf + f.rx_id[drv_used(f.d, f.rx, NULL)] * BUF, 12);
    assert_int_equal(h->flags, VIRTIO_NET_HDR_F_DATA_VALID);
    drv_set_status(f.d, 0);
    assert_int_equal(hvxtest_nic_caps(f.i.vm, "net0"), 0);
    instance_close(&f.i);

    open_net(&f, "netdev=net0,offloads=off", true, ~0ull & ~BIT(VIRTIO_F_RING_PACKED), 3);
    assert_false(drv_offered(f.d) & (TX_OFFLOAD | RX_OFFLOAD));
    instance_close(&f.i);
}

/* --- control queue --- */
static int control(struct fixture *f, uint8_t class, uint8_t cmd, const void *data, uint32_t n)
{
    uint8_t *p = drv_mem(f->d, f->ctrl_buf, 2 + n + 1);
    p[0] = class;
    p[1] = cmd;
    memcpy(p + 2, data, n);
    p[2 + n] = 0xee;
    struct seg s[] = {{f->ctrl_buf, 2, false}, {f->ctrl_buf + 2, n, false}, {f->ctrl_buf + 2 + n, 1, true}};
    uint16_t id = drv_add(f->d, f->ctrl, s, 3);
    drv_kick(f->d, f->ctrl);
    assert_int_equal(drv_used(f->d, f->ctrl, NULL), id);
    return p[2 + n];
}

static bool passes(struct fixture *f, const uint8_t *mac)
{
    give_buffers(f, 0, 1, BUF);
    make_frame(f, 100, mac);
    assert_int_equal(inject(f, 100, NULL), 1);
    return drv_used(f->d, f->rx, NULL) >= 0;
}

static void test_receive_filter(void **state)
{
    (void)state;
    struct fixture f;
    static const uint8_t on = 1, off = 0;
    uint8_t own[6], other[6] = {0x52, 0, 0, 1, 2, 3}, multi[6] = {1, 0, 0x5e, 0, 0, 1};
    open_variant(&f, &variants[5]);
    for (unsigned i = 0; i < 6; i++)
        own[i] = drv_config(f.d, i, 1);
    assert_int_equal(own[0], 0x52);
    assert_true(passes(&f, other)); /* promiscuous until told otherwise */
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, &off, 1), VIRTIO_NET_OK);
    assert_false(passes(&f, other));
    assert_true(passes(&f, own));
    assert_true(passes(&f, NULL));
    assert_false(passes(&f, multi));
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, &on, 1), VIRTIO_NET_OK);
    assert_true(passes(&f, multi));
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOMULTI, &on, 1), VIRTIO_NET_OK);
    assert_false(passes(&f, multi));
    control(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOMULTI, &off, 1);
    control(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, &off, 1);
    control(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOBCAST, &on, 1);
    assert_false(passes(&f, NULL));
    control(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLUNI, &on, 1);
    assert_true(passes(&f, other));
    control(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLUNI, &off, 1);

    uint8_t table[4 + 6 + 4 + 6] = {1};
    memcpy(table + 4, other, 6);
    table[10] = 1;
    memcpy(table + 14, multi, 6);
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, table, sizeof(table)), VIRTIO_NET_OK);
    assert_true(passes(&f, other));
    assert_true(passes(&f, multi));
    table[0] = 200; /* counts that lie */
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, table, sizeof(table)), VIRTIO_NET_ERR);
    table[0] = 10;
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, table, sizeof(table)), VIRTIO_NET_ERR);
    table[0] = 1;
    table[10] = 2;
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, table, sizeof(table)), VIRTIO_NET_ERR);
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, table, 3), VIRTIO_NET_ERR);
    assert_true(passes(&f, other));
    uint8_t large[4 + 65 * 6 + 4] = {65}; /* more than are kept: all unicast passes */
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, large, sizeof(large)), VIRTIO_NET_OK);
    assert_true(passes(&f, (uint8_t[]){0x52, 9, 9, 9, 9, 9}));
    assert_false(passes(&f, multi));

    memset(table, 0, sizeof(table));
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, table, 8), VIRTIO_NET_OK);
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, other, 6), VIRTIO_NET_OK);
    assert_true(passes(&f, other));
    assert_false(passes(&f, own));
    assert_int_equal(drv_config(f.d, 3, 1), 1);
    assert_int_equal(control(&f, 99, 0, &on, 1), VIRTIO_NET_ERR);
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_RX, 99, &on, 1), VIRTIO_NET_ERR);
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_MQ, 0, "\x02", 2), VIRTIO_NET_ERR); /* not offered */
    instance_close(&f.i);
}

static void test_guest_offloads_can_be_switched(void **state)
{
    (void)state;
    struct fixture f;
    uint64_t v = BIT(VIRTIO_NET_F_GUEST_CSUM);
    open_variant(&f, &variants[5]);
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &v, 8), VIRTIO_NET_OK);
    assert_int_equal(hvxtest_nic_caps(f.i.vm, "net0"), HVX_NET_CAN_CSUM);
    v |= BIT(VIRTIO_NET_F_GUEST_UFO);
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &v, 8), VIRTIO_NET_ERR);
    assert_int_equal(hvxtest_nic_caps(f.i.vm, "net0"), HVX_NET_CAN_CSUM);
    instance_close(&f.i);
}

static void test_short_control_command_breaks_the_device(void **state)
{
    (void)state;
    struct fixture f;
    open_variant(&f, &variants[5]);
    drv_add(f.d, f.ctrl, &(struct seg){f.ctrl_buf, 1, false}, 1);
    drv_kick(f.d, f.ctrl);
    assert_true(drv_status(f.d) & VIRTIO_CONFIG_S_NEEDS_RESET);
    instance_close(&f.i);
}

static void test_multiqueue(void **state)
{
    (void)state;
    struct fixture f;
    uint16_t pairs = 2;
    open_net(&f, "netdev=net0,queues=2", true, ALL | BIT(VIRTIO_NET_F_MQ), 5);
    assert_int_equal(drv_config(f.d, offsetof(struct virtio_net_config, max_virtqueue_pairs), 2), 2);
    f.ctrl = &f.d->q[4];
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_MQ, 0, &pairs, 2), VIRTIO_NET_OK);
    pairs = 3;
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_MQ, 0, &pairs, 2), VIRTIO_NET_ERR);
    pairs = 0;
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_MQ, 0, &pairs, 2), VIRTIO_NET_ERR);
    for (unsigned i = 0; i < 64; i++) {
        drv_add(f.d, f.rx, &(struct seg){f.rx_buf + i * BUF, BUF, true}, 1);
        drv_add(f.d, &f.d->q[2], &(struct seg){f.rx_buf + i * BUF, BUF, true}, 1);
    }
    /* Flows spread over both, and each stays on its queue. */
    make_frame(&f, 100, NULL);
    memcpy(f.frame + 12, "\x08\x00\x45", 3);
    memset(f.frame + 20, 0, 2);
    f.frame[23] = 6;
    int where[16];
    unsigned on[2] = {0, 0};
    for (unsigned i = 0; i < 64; i++) {
        f.frame[35] = i % 16; /* source port */
        assert_int_equal(inject(&f, 100, NULL), 1);
        int q = drv_used(f.d, f.rx, NULL) >= 0 ? 0 : 1;
        if (q)
            assert_true(drv_used(f.d, &f.d->q[2], NULL) >= 0);
        if (i < 16)
            where[i] = q;
        assert_int_equal(where[i % 16], q);
        on[q]++;
    }
    assert_true(on[0] && on[1]);
    /* IPv6 and anything else find a queue too. */
    memcpy(f.frame + 12, "\x86\xdd", 2);
    f.frame[20] = 17;
    give_buffers(&f, 0, 4, BUF);
    for (unsigned i = 0; i < 2; i++)
        drv_add(f.d, &f.d->q[2], &(struct seg){f.rx_buf + i * BUF, BUF, true}, 1);
    assert_int_equal(inject(&f, 100, NULL), 1);
    assert_int_equal(inject(&f, 20, NULL), 1);
    /* The second transmit queue works too. */
    uint8_t *p = drv_mem(f.d, f.tx_buf, 112);
    memset(p, 0, 12);
    drv_add(f.d, &f.d->q[3], &(struct seg){f.tx_buf, 112, false}, 1);
    drv_kick(f.d, &f.d->q[3]);
    assert_int_equal(hvxtest_nic_sent(f.i.vm, "net0"), 1);
    instance_close(&f.i);
    /* Offered but not taken: the control queue is number two (5.1.2). */
    open_net(&f, "netdev=net0,queues=2", true, ALL, 3);
    assert_int_equal(control(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, "", 1), VIRTIO_NET_OK);
    instance_close(&f.i);
}

static void test_link_status(void **state)
{
    (void)state;
    struct fixture f;
    open_variant(&f, &variants[5]);
    hvxtest_pci_msix(f.d->pci, 0, 0xfee00000, 0x30, false);
    drv_set_vectors(f.d, 0, 0xffff, 0);
    unsigned off = offsetof(struct virtio_net_config, status);
    assert_int_equal(drv_config(f.d, off, 2), VIRTIO_NET_S_LINK_UP);
    hvxtest_nic_link(f.i.vm, "net0", false);
    assert_int_equal(drv_config(f.d, off, 2), 0);
    assert_int_equal(hvxtest_msi_count(f.i.vm), 1);
    hvxtest_nic_link(f.i.vm, "net0", true);
    assert_int_equal(drv_config(f.d, off, 2), VIRTIO_NET_S_LINK_UP);
    assert_int_equal(hvxtest_msi_count(f.i.vm), 2);
    instance_close(&f.i);
}

static void test_legacy_drivers_set_the_mac_in_configuration(void **state)
{
    (void)state;
    struct fixture f;
    open_variant(&f, &variants[0]);
    drv_set_config(f.d, 5, 1, 0x99);
    assert_int_equal(drv_config(f.d, 5, 1), 0x99);
    drv_set_status(f.d, 0);
    assert_int_equal(drv_config(f.d, 5, 1), 0x56);
    instance_close(&f.i);
}

static void test_feature_dependencies(void **state)
{
    (void)state;
    struct fixture f;
    open_variant(&f, &variants[5]);
    assert_false(drv_negotiate(f.d, BIT(VIRTIO_NET_F_HOST_TSO4)));
    assert_false(drv_negotiate(f.d, BIT(VIRTIO_NET_F_GUEST_TSO4)));
    assert_false(drv_negotiate(f.d, BIT(VIRTIO_NET_F_CTRL_RX)));
    assert_true(drv_negotiate(f.d, TX_OFFLOAD));
    instance_close(&f.i);
}

static void test_state_travels(void **state)
{
    (void)state;
    for (unsigned k = 0; k < N_VARIANTS; k++) {
        struct fixture f;
        struct hvx_error err = {0};
        uint8_t *buf, off = 0, other[6] = {0x52, 0, 0, 1, 2, 3};
        size_t n;
        open_variant(&f, &variants[k]);
        bool has_ctrl = variants[k].features & BIT(VIRTIO_NET_F_CTRL_VQ);
        if (has_ctrl) {
            control(&f, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, &off, 1);
            control(&f, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, other, 6);
        }
        give_buffers(&f, 0, 4, BUF);
        assert_int_equal(hvxtest_save(f.i.type->state, f.i.dev, 1, &buf, &n), 0);
        uint32_t caps = hvxtest_nic_caps(f.i.vm, "net0");
        f.i.type->reset(f.i.dev);
        assert_int_equal(hvxtest_load(f.i.type->state, f.i.dev, 1, buf, n, &err), 0);
        assert_int_equal(hvxtest_nic_caps(f.i.vm, "net0"), caps);
        make_frame(&f, 1000, other);
        assert_int_equal(inject(&f, 1000, NULL), 1);
        check_received(&f, &variants[k], 1000);
        if (has_ctrl) {
            make_frame(&f, 1000, (uint8_t[]){0x52, 7, 7, 7, 7, 7});
            assert_int_equal(inject(&f, 1000, NULL), 1);
            assert_int_equal(drv_used(f.d, f.rx, NULL), -1);
        }
        for (size_t cut = 0; cut < n; cut += 3)
            assert_true(hvxtest_load(f.i.type->state, f.i.dev, 1, buf, cut, &err) < 0);
        for (size_t at = 0; at < n; at++) {
            buf[at] ^= 0xff;
            (void)!hvxtest_load(f.i.type->state, f.i.dev, 1, buf, n, &err);
            inject(&f, 1000, NULL);
            hvxtest_step_ns(f.i.vm, 1000);
            buf[at] ^= 0xff;
        }
        free(buf);
        instance_close(&f.i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frames_leave_the_guest),
        cmocka_unit_test(test_many_frames_in_one_notification),
        cmocka_unit_test(test_a_long_queue_is_served_in_portions),
        cmocka_unit_test(test_transmit_offloads),
        cmocka_unit_test(test_bad_transmit_chains_break_the_device),
        cmocka_unit_test(test_frames_reach_the_guest),
        cmocka_unit_test(test_large_frames_are_spread_over_mergeable_buffers),
        cmocka_unit_test(test_receive_without_room),
        cmocka_unit_test(test_a_frame_larger_than_the_buffer_is_dropped),
        cmocka_unit_test(test_bad_receive_buffers_break_the_device),
        cmocka_unit_test(test_receive_offloads_follow_negotiation),
        cmocka_unit_test(test_receive_filter),
        cmocka_unit_test(test_guest_offloads_can_be_switched),
        cmocka_unit_test(test_short_control_command_breaks_the_device),
        cmocka_unit_test(test_multiqueue),
        cmocka_unit_test(test_link_status),
        cmocka_unit_test(test_legacy_drivers_set_the_mac_in_configuration),
        cmocka_unit_test(test_feature_dependencies),
        cmocka_unit_test(test_state_travels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
