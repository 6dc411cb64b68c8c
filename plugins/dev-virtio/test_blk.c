/* SPDX-License-Identifier: Apache-2.0
 *
 * The block device, driven through every interface and ring format.
 */
#include "test_driver.h"

#include <linux/virtio_blk.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SECTORS 4096u
#define RING (BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(VIRTIO_RING_F_INDIRECT_DESC))
#define BLK (BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_DISCARD) | BIT(VIRTIO_BLK_F_WRITE_ZEROES) | BIT(VIRTIO_BLK_F_SEG_MAX))

static const struct variant {
    const char *name;
    bool modern;
    uint64_t features;
} variants[] = {
    {"legacy", false, BLK},
    {"legacy with event index", false, BLK | RING},
    {"modern", true, BLK},
    {"modern with event index", true, BLK | RING},
    {"modern packed", true, BLK | BIT(VIRTIO_F_RING_PACKED) | BIT(VIRTIO_RING_F_INDIRECT_DESC)},
    {"modern packed with event index", true, BLK | RING | BIT(VIRTIO_F_RING_PACKED)},
};
#define N_VARIANTS (sizeof(variants) / sizeof(variants[0]))

struct fixture {
    struct instance i;
    struct hvx_blk *disk;
    struct drv *d;
    struct drvq *q;
    uint64_t header, status, data; /* guest addresses */
};

static void open_disk(struct fixture *f, const struct hvxtest_disk_params *p, const char *options,
                      const struct variant *v)
{
    struct hvx_vm *vm = hvxtest_new(&(struct hvxtest_params){.ram_below_4g = DRV_RAM, .n_vcpus = 2});
    memset(f, 0, sizeof(*f));
    f->disk = hvxtest_disk_add(vm, "disk0", p);
    instance_open(&f->i, vm, "virtio-blk", options);
    f->d = &f->i.d;
    drv_start(f->d, vm, v->modern, v->features, 1);
    f->q = &f->d->q[0];
    f->header = drv_alloc(f->d, 16 * 64, 16);
    f->status = drv_alloc(f->d, 64, 1);
    f->data = drv_alloc(f->d, 1 << 20, 4096);
}

static void open_variant(struct fixture *f, const struct variant *v)
{
    open_disk(f, &(struct hvxtest_disk_params){.bytes = SECTORS * 512}, "drive=disk0,packed=on", v);
    assert_int_equal(f->d->packed, !!(v->features & BIT(VIRTIO_F_RING_PACKED)));
    assert_int_equal(f->d->event_idx, !!(v->features & BIT(VIRTIO_RING_F_EVENT_IDX)));
}

static void put_header(struct fixture *f, unsigned slot, uint32_t type, uint64_t sector)
{
    struct virtio_blk_outhdr h = {.type = type, .sector = sector};
    memcpy(drv_mem(f->d, f->header + 16 * slot, 16), &h, 16);
    *(uint8_t *)drv_mem(f->d, f->status + slot, 1) = 0xee;
}

/* Queue a request in `slot`; data_bytes from data + off. */
static uint16_t queue_request(struct fixture *f, unsigned slot, uint32_t type, uint64_t sector, uint64_t off,
                              uint32_t bytes, bool in)
{
    put_header(f, slot, type, sector);
    struct seg s[3] = {{f->header + 16 * slot, 16, false}, {f->data + off, bytes, in}, {f->status + slot, 1, true}};
    if (!bytes)
        s[1] = s[2];
    return drv_add(f->d, f->q, s, bytes ? 3 : 2);
}

static int result(struct fixture *f, unsigned slot)
{
    return *(uint8_t *)drv_mem(f->d, f->status + slot, 1);
}

/* One request from start to end; returns its status byte. */
static int request(struct fixture *f, uint32_t type, uint64_t sector, uint32_t bytes, bool in)
{
    uint32_t len;
    uint16_t id = queue_request(f, 0, type, sector, 0, bytes, in);
    drv_kick(f->d, f->q);
    hvxtest_run(f->i.vm);
    assert_int_equal(drv_used(f->d, f->q, &len), id);
    assert_int_equal(len, in ? bytes + 1 : 1);
    assert_int_equal(drv_used(f->d, f->q, NULL), -1);
    return result(f, 0);
}

static void fill(uint8_t *p, size_t n, unsigned seed)
{
    for (size_t i = 0; i < n; i++)
        p[i] = seed + i * 7 + (i >> 9);
}

static void test_reads_and_writes_reach_the_disk(void **state)
{
    (void)state;
    for (unsigned k = 0; k < N_VARIANTS; k++) {
        struct fixture f;
        open_variant(&f, &variants[k]);
        uint8_t *data = drv_mem(f.d, f.data, 8192);
        for (unsigned i = 0; i < 700; i++) { /* laps round the ring */
            uint64_t sector = (i * 13) % (SECTORS - 16);
            fill(data, 4096, i);
            assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, sector, 4096, false), VIRTIO_BLK_S_OK);
            assert_memory_equal(hvxtest_disk_data(f.disk) + sector * 512, data, 4096);
            memset(data, 0, 4096);
            assert_int_equal(request(&f, VIRTIO_BLK_T_IN, sector, 4096, true), VIRTIO_BLK_S_OK);
            assert_memory_equal(hvxtest_disk_data(f.disk) + sector * 512, data, 4096);
        }
        assert_true(hvxtest_dirty_bytes(f.i.vm) >= 700 * 4096);
        assert_int_equal(request(&f, VIRTIO_BLK_T_FLUSH, 0, 0, true), VIRTIO_BLK_S_OK);
        assert_int_equal(hvxtest_disk_count(f.disk, HVX_BLK_FLUSH), 1);
        assert_int_equal(hvxtest_events(f.i.vm, NULL), 0);
        instance_close(&f.i);
    }
}

/* What the device wrote is reported byte for byte: code may have been translated from there. */
static void test_written_memory_is_reported(void **state)
{
    (void)state;
    struct fixture f;
    open_variant(&f, &variants[3]);
    uint64_t before = hvxtest_dirty_bytes(f.i.vm);
    assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, 8192, true), VIRTIO_BLK_S_OK);
    assert_int_equal(hvxtest_dirty_bytes(f.i.vm) - before, 8192 + 1 + 6 + 8 * f.q->size);
    before = hvxtest_dirty_bytes(f.i.vm);
    hvxtest_disk_fail(f.disk, HVX_BLK_READ, 1, -EIO); /* part of it may have been written */
    assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, 8192, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(hvxtest_dirty_bytes(f.i.vm) - before, 8192 + 1 + 6 + 8 * f.q->size);
    instance_close(&f.i);
}

static void test_many_in_flight_complete_in_any_order(void **state)
{
    (void)state;
    for (unsigned k = 0; k < N_VARIANTS; k++) {
        struct fixture f;
        unsigned seen = 0;
        open_variant(&f, &variants[k]);
        hvxtest_disk_hold(f.disk, true);
        fill(hvxtest_disk_data(f.disk), SECTORS * 512, 3);
        uint16_t id[32];
        for (unsigned i = 0; i < 32; i++)
            id[i] = queue_request(&f, i, VIRTIO_BLK_T_IN, i * 8, i * 4096, 4096, true);
        drv_kick(f.d, f.q);
        assert_int_equal(hvxtest_disk_in_flight(f.disk), 32);
        assert_int_equal(drv_used(f.d, f.q, NULL), -1);
        assert_false(f.i.type->quiesced(f.i.dev));
        while (hvxtest_disk_in_flight(f.disk)) {
            hvxtest_disk_release(f.disk, hvxtest_disk_in_flight(f.disk) * 5 / 7);
            int got = drv_used(f.d, f.q, NULL);
            assert_true(got >= 0);
            for (unsigned i = 0; i < 32; i++)
                if (id[i] == got)
                    seen++, assert_int_equal(result(&f, i), VIRTIO_BLK_S_OK);
        }
        assert_int_equal(seen, 32);
        assert_memory_equal(hvxtest_disk_data(f.disk), drv_mem(f.d, f.data, 32 * 4096), 32 * 4096);
        assert_true(f.i.type->quiesced(f.i.dev));
        instance_close(&f.i);
    }
}

static void test_buffers_may_be_cut_anywhere(void **state)
{
    (void)state;
    for (unsigned k = 0; k < N_VARIANTS; k++) {
        struct fixture f;
        open_variant(&f, &variants[k]);
        for (unsigned indirect = 0; indirect < 2; indirect++) {
            if (indirect && !(variants[k].features & BIT(VIRTIO_RING_F_INDIRECT_DESC)))
                continue;
            /* Header in three pieces, the last one together with data; the status byte at the end of data. */
            struct virtio_blk_outhdr h = {.type = VIRTIO_BLK_T_OUT, .sector = 5};
            memcpy(drv_mem(f.d, f.data, 16), &h, 16);
            fill(drv_mem(f.d, f.data + 16, 1024), 1024, 9);
            struct seg out[] = {{f.data, 1, false}, {f.data + 1, 10, false}, {f.data + 11, 5 + 100, false},
                                {f.data + 116, 924, false}, {f.status, 1, true}};
            (indirect ? drv_add_indirect : drv_add)(f.d, f.q, out, 5);
            drv_kick(f.d, f.q);
            hvxtest_run(f.i.vm);
            assert_true(drv_used(f.d, f.q, NULL) >= 0);
            assert_int_equal(result(&f, 0), VIRTIO_BLK_S_OK);
            assert_memory_equal(hvxtest_disk_data(f.disk) + 5 * 512, drv_mem(f.d, f.data + 16, 1024), 1024);
            put_header(&f, 1, VIRTIO_BLK_T_IN, 5);
            struct seg in[] = {{f.header + 16, 16, false}, {f.data + 8192, 3, true}, {f.data + 9000, 1022, true}};
            (indirect ? drv_add_indirect : drv_add)(f.d, f.q, in, 3);
            drv_kick(f.d, f.q);
            hvxtest_run(f.i.vm);
            assert_true(drv_used(f.d, f.q, NULL) >= 0);
            assert_int_equal(*(uint8_t *)drv_mem(f.d, f.data + 9000 + 1021, 1), VIRTIO_BLK_S_OK);
            assert_memory_equal(drv_mem(f.d, f.data + 9000, 1021), hvxtest_disk_data(f.disk) + 5 * 512 + 3, 1021);
        }
        instance_close(&f.i);
    }
}

static void test_a_chain_of_seg_max_data_segments_works(void **state)
{
    (void)state;
    for (unsigned k = 2; k < N_VARIANTS; k++) {
        struct fixture f;
        struct seg s[256];
        open_variant(&f, &variants[k]);
        unsigned n = drv_config(f.d, offsetof(struct virtio_blk_config, seg_max), 4);
        assert_int_equal(n, 254);
        fill(hvxtest_disk_data(f.disk), SECTORS * 512, 1);
        put_header(&f, 0, VIRTIO_BLK_T_IN, 0);
        s[0] = (struct seg){f.header, 16, false};
        for (unsigned i = 0; i < n; i++)
            s[1 + i] = (struct seg){f.data + (n - 1 - i) * 2048, 512, true};
        s[n + 1] = (struct seg){f.status, 1, true};
        drv_add(f.d, f.q, s, n + 2);
        drv_kick(f.d, f.q);
        hvxtest_run(f.i.vm);
        assert_true(drv_used(f.d, f.q, NULL) >= 0);
        assert_int_equal(result(&f, 0), VIRTIO_BLK_S_OK);
        for (unsigned i = 0; i < n; i++)
            assert_memory_equal(drv_mem(f.d, f.data + (n - 1 - i) * 2048, 512), hvxtest_disk_data(f.disk) + i * 512, 512);
        instance_close(&f.i);
    }
}

static void test_requests_outside_the_disk_fail(void **state)
{
    (void)state;
    struct fixture f;
    open_variant(&f, &variants[3]);
    assert_int_equal(request(&f, VIRTIO_BLK_T_IN, SECTORS, 512, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(&f, VIRTIO_BLK_T_IN, SECTORS - 1, 1024, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, ~0ull, 512, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, ~0ull / 512, 1024, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, 100, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(&f, VIRTIO_BLK_T_IN, SECTORS - 1, 512, true), VIRTIO_BLK_S_OK);
    assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, 0, true), VIRTIO_BLK_S_OK);
    assert_int_equal(request(&f, 77, 0, 512, true), VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(request(&f, VIRTIO_BLK_T_SCSI_CMD, 0, 512, true), VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(hvxtest_disk_count(f.disk, HVX_BLK_READ), 1);
    assert_int_equal(drv_status(f.d) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    instance_close(&f.i);
}

static void test_requests_without_header_or_status_break_the_device(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        struct fixture f;
        open_variant(&f, &variants[3]);
        struct seg s[] = {{f.header, i == 0 ? 15 : 16, false}, {f.status, i == 1 ? 0 : 1, i != 2}};
        put_header(&f, 0, VIRTIO_BLK_T_FLUSH, 0);
        drv_add(f.d, f.q, s, 2);
        drv_kick(f.d, f.q);
        assert_true(drv_status(f.d) & VIRTIO_CONFIG_S_NEEDS_RESET);
        instance_close(&f.i);
    }
}

static void test_host_errors_become_status_bytes(void **state)
{
    (void)state;
    struct fixture f;
    open_variant(&f, &variants[3]);
    hvxtest_disk_fail(f.disk, HVX_BLK_READ, 1, -EIO);
    assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, 512, true), VIRTIO_BLK_S_IOERR);
    hvxtest_disk_fail(f.disk, HVX_BLK_WRITE, 1, -ENOSPC);
    assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, 0, 512, false), VIRTIO_BLK_S_IOERR);
    hvxtest_disk_fail(f.disk, HVX_BLK_FLUSH, 1, -EOPNOTSUPP);
    assert_int_equal(request(&f, VIRTIO_BLK_T_FLUSH, 0, 0, true), VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, 512, true), VIRTIO_BLK_S_OK);
    instance_close(&f.i);
}

static void test_read_only_disks_refuse_writes(void **state)
{
    (void)state;
    struct fixture f;
    open_disk(&f, &(struct hvxtest_disk_params){.bytes = SECTORS * 512, .read_only = true}, "drive=disk0", &variants[3]);
    assert_true(drv_offered(f.d) & BIT(VIRTIO_BLK_F_RO));
    assert_false(drv_offered(f.d) & (BIT(VIRTIO_BLK_F_DISCARD) | BIT(VIRTIO_BLK_F_WRITE_ZEROES)));
    assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, 0, 512, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(&f, VIRTIO_BLK_T_IN, 0, 512, true), VIRTIO_BLK_S_OK);
    assert_int_equal(hvxtest_disk_count(f.disk, HVX_BLK_WRITE), 0);
    instance_close(&f.i);
}

static int ranges(struct fixture *f, uint32_t type, const struct virtio_blk_discard_write_zeroes *r, unsigned n)
{
    memcpy(drv_mem(f->d, f->data, n * sizeof(*r)), r, n * sizeof(*r));
    return request(f, type, 0, n * sizeof(*r), false);
}

static void test_discard_and_write_zeroes(void **state)
{
    (void)state;
    struct fixture f;
    open_variant(&f, &variants[3]);
    fill(hvxtest_disk_data(f.disk), SECTORS * 512, 1);
    uint8_t zeroes[1024] = {0};
    struct virtio_blk_discard_write_zeroes r[17] = {{.sector = 8, .num_sectors = 2}, {.sector = 100, .num_sectors = 1}};
    assert_int_equal(ranges(&f, VIRTIO_BLK_T_WRITE_ZEROES, r, 2), VIRTIO_BLK_S_OK);
    assert_memory_equal(hvxtest_disk_data(f.disk) + 8 * 512, zeroes, 1024);
    assert_memory_equal(hvxtest_disk_data(f.disk) + 100 * 512, zeroes, 512);
    assert_int_not_equal(hvxtest_disk_data(f.disk)[101 * 512 + 3], 0);
    assert_int_equal(hvxtest_disk_count(f.disk, HVX_BLK_WRITE_ZEROES), 2);
    assert_int_equal(ranges(&f, VIRTIO_BLK_T_DISCARD, r, 1), VIRTIO_BLK_S_OK);
    assert_int_equal(hvxtest_disk_count(f.disk, HVX_BLK_DISCARD), 1);
    /* The first range fails: the second is not tried. */
    hvxtest_disk_fail(f.disk, HVX_BLK_DISCARD, 1, -EIO);
    assert_int_equal(ranges(&f, VIRTIO_BLK_T_DISCARD, r, 2), VIRTIO_BLK_S_IOERR);
    assert_int_equal(hvxtest_disk_count(f.disk, HVX_BLK_DISCARD), 2);

    r[0].flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    assert_int_equal(ranges(&f, VIRTIO_BLK_T_WRITE_ZEROES, r, 1), VIRTIO_BLK_S_OK);
    assert_int_equal(ranges(&f, VIRTIO_BLK_T_DISCARD, r, 1), VIRTIO_BLK_S_UNSUPP);
    r[0].flags = 2;
    assert_int_equal(ranges(&f, VIRTIO_BLK_T_WRITE_ZEROES, r, 1), VIRTIO_BLK_S_UNSUPP);
    r[0] = (struct virtio_blk_discard_write_zeroes){.sector = SECTORS - 1, .num_sectors = 2};
    assert_int_equal(ranges(&f, VIRTIO_BLK_T_DISCARD, r, 1), VIRTIO_BLK_S_IOERR);
    r[0] = (struct virtio_blk_discard_write_zeroes){.sector = 0, .num_sectors = ~0u};
    assert_int_equal(ranges(&f, VIRTIO_BLK_T_DISCARD, r, 1), VIRTIO_BLK_S_IOERR);
    for (unsigned i = 0; i < 17; i++)
        r[i] = (struct virtio_blk_discard_write_zeroes){.sector = i, .num_sectors = 1};
    assert_int_equal(ranges(&f, VIRTIO_BLK_T_DISCARD, r, 16), VIRTIO_BLK_S_OK);
    assert_int_equal(ranges(&f, VIRTIO_BLK_T_DISCARD, r, 17), VIRTIO_BLK_S_IOERR);
    instance_close(&f.i);
}

static void test_get_id_is_the_serial(void **state)
{
    (void)state;
    struct fixture f;
    struct hvx_blk_info info = {.size = sizeof(info)};
    open_variant(&f, &variants[3]);
    hvxtest_host()->blk_info(f.disk, &info);
    assert_int_equal(request(&f, VIRTIO_BLK_T_GET_ID, 0, 20, true), VIRTIO_BLK_S_OK);
    assert_int_equal(strncmp(drv_mem(f.d, f.data, 20), info.serial, 20), 0);
    instance_close(&f.i);
}

static void test_cache_mode_follows_the_driver(void **state)
{
    (void)state;
    struct fixture f;
    struct variant v = {"", true, BLK | BIT(VIRTIO_BLK_F_CONFIG_WCE)};
    unsigned wce = offsetof(struct virtio_blk_config, wce);
    open_variant(&f, &v);
    assert_int_equal(drv_config(f.d, wce, 1), 1);
    drv_set_config(f.d, wce, 1, 0);
    assert_int_equal(drv_config(f.d, wce, 1), 0);
    drv_set_config(f.d, 0, 8, 1); /* capacity is not the driver's */
    assert_int_equal(drv_config(f.d, 0, 8), SECTORS);
    assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, 0, 512, false), VIRTIO_BLK_S_OK);
    drv_set_status(f.d, 0);
    assert_int_equal(drv_config(f.d, wce, 1), 1);
    instance_close(&f.i);
}

static void test_geometry_and_queues_in_configuration(void **state)
{
    (void)state;
    struct fixture f;
    open_disk(&f, &(struct hvxtest_disk_params){.bytes = SECTORS * 512}, "drive=disk0", &variants[3]);
    assert_int_equal(drv_config(f.d, offsetof(struct virtio_blk_config, num_queues), 2), 2); /* two vCPUs */
    assert_int_equal(drv_config(f.d, offsetof(struct virtio_blk_config, blk_size), 4), 512);
    assert_true(drv_offered(f.d) & BIT(VIRTIO_BLK_F_MQ));
    assert_int_equal(drv_queue_size(f.d, 1), 256);
    assert_int_equal(drv_queue_size(f.d, 2), 0);
    instance_close(&f.i);
}

/* A reset while the disk is busy: a modern driver reads a status that is not
 * zero until the last buffer is its own again, and nothing is put into the
 * rings of its next life. */
static void test_reset_in_flight(void **state)
{
    (void)state;
    for (unsigned k = 0; k < N_VARIANTS; k++) {
        struct fixture f;
        open_variant(&f, &variants[k]);
        hvxtest_disk_hold(f.disk, true);
        for (unsigned i = 0; i < 8; i++)
            queue_request(&f, i, VIRTIO_BLK_T_IN, i, i * 4096, 512, true);
        drv_kick(f.d, f.q);
        assert_int_equal(hvxtest_disk_in_flight(f.disk), 8);
        drv_set_status(f.d, 0);
        if (variants[k].modern)
            assert_int_not_equal(drv_status(f.d), 0);
        else
            assert_int_equal(drv_status(f.d), 0);
        memset(f.q->used, 0x77, 64);
        hvxtest_disk_release(f.disk, ~0u);
        assert_int_equal(drv_status(f.d), 0);
        assert_int_equal(((uint8_t *)f.q->used)[3], 0x77);
        assert_int_equal(result(&f, 0), 0xee);
        hvxtest_disk_hold(f.disk, false);
        assert_true(drv_negotiate(f.d, variants[k].features));
        f.q = drv_queue(f.d, 0, 0);
        drv_ok(f.d);
        assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, 0, 512, false), VIRTIO_BLK_S_OK);
        instance_close(&f.i);
    }
}

/* Resets again and again while old requests stay in flight use up the
 * request structures; work waits and goes on when they come back. */
static void test_resets_cannot_exhaust_requests(void **state)
{
    (void)state;
    struct fixture f;
    open_disk(&f, &(struct hvxtest_disk_params){.bytes = SECTORS * 512}, "drive=disk0,queues=1,queue-size=8",
              &variants[0]);
    hvxtest_disk_hold(f.disk, true);
    for (unsigned life = 0; life < 3; life++) {
        for (unsigned i = 0; i < 2; i++)
            queue_request(&f, i, VIRTIO_BLK_T_OUT, i, 0, 512, false);
        drv_kick(f.d, f.q);
        drv_negotiate(f.d, variants[0].features);
        f.q = drv_queue(f.d, 0, 0);
        drv_ok(f.d);
    }
    assert_int_equal(hvxtest_disk_in_flight(f.disk), 6);
    for (unsigned i = 0; i < 2; i++)
        queue_request(&f, i, VIRTIO_BLK_T_OUT, i, 0, 512, false);
    drv_kick(f.d, f.q);
    drv_negotiate(f.d, variants[0].features);
    f.q = drv_queue(f.d, 0, 0);
    drv_ok(f.d);
    queue_request(&f, 5, VIRTIO_BLK_T_OUT, 7, 0, 512, false);
    drv_kick(f.d, f.q);
    assert_int_equal(hvxtest_disk_in_flight(f.disk), 8);
    hvxtest_disk_hold(f.disk, false);
    hvxtest_disk_release(f.disk, ~0u);
    hvxtest_step_ns(f.i.vm, 1000);
    assert_true(drv_used(f.d, f.q, NULL) >= 0);
    assert_int_equal(result(&f, 5), VIRTIO_BLK_S_OK);
    instance_close(&f.i);
}

static void test_state_travels(void **state)
{
    (void)state;
    for (unsigned k = 0; k < N_VARIANTS; k++) {
        struct fixture f;
        struct hvx_error err = {0};
        uint8_t *buf;
        size_t n;
        open_variant(&f, &variants[k]);
        for (unsigned i = 0; i < 300; i++)
            assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, i, 512, false), VIRTIO_BLK_S_OK);
        hvxtest_disk_hold(f.disk, true);
        queue_request(&f, 1, VIRTIO_BLK_T_IN, 0, 0, 512, true);
        drv_kick(f.d, f.q);
        assert_int_equal(hvxtest_save(f.i.type->state, f.i.dev, 1, &buf, &n), -EBUSY);
        hvxtest_disk_hold(f.disk, false);
        hvxtest_disk_release(f.disk, ~0u);
        assert_true(drv_used(f.d, f.q, NULL) >= 0);
        assert_int_equal(hvxtest_save(f.i.type->state, f.i.dev, 1, &buf, &n), 0);
        /* Work that waits in the ring when the state is saved is done after the restore. */
        uint16_t id = queue_request(&f, 2, VIRTIO_BLK_T_OUT, 9, 0, 512, false);
        f.i.type->reset(f.i.dev);
        assert_int_equal(hvxtest_load(f.i.type->state, f.i.dev, 1, buf, n, &err), 0);
        hvxtest_step_ns(f.i.vm, 1000);
        assert_int_equal(drv_used(f.d, f.q, NULL), id);
        f.q->kicked = f.q->avail_idx;
        for (unsigned i = 0; i < 300; i++)
            assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, i, 512, false), VIRTIO_BLK_S_OK);
        /* Cut off anywhere, or with any byte changed: refused or harmless. */
        for (size_t cut = 0; cut < n; cut += 3)
            assert_true(hvxtest_load(f.i.type->state, f.i.dev, 1, buf, cut, &err) < 0);
        for (size_t at = 0; at < n; at++) {
            buf[at] ^= 0xff;
            (void)!hvxtest_load(f.i.type->state, f.i.dev, 1, buf, n, &err);
            hvxtest_step_ns(f.i.vm, 1000);
            buf[at] ^= 0xff;
        }
        free(buf);
        instance_close(&f.i);
    }
}

static void test_creation_failures_leave_nothing(void **state)
{
    (void)state;
    const struct hvx_device_type *t = device_type("virtio-blk");
    struct hvx_vm *vm = hvxtest_new(NULL);
    struct hvx_error err = {0};
    void *ctx, *dev = NULL;
    hvxtest_disk_add(vm, "disk0", &(struct hvxtest_disk_params){.bytes = 1 << 20});
    assert_int_equal(hvx_plugin_dev_virtio.init(hvxtest_host(), NULL, &ctx, &err), 0);
    static const struct { const char *options, *word; } bad[] = {
        {"drive=disk7", "--disk"},
        {"drive=disk0,queue-size=100", "power of two"},
        {"drive=disk0,disable-legacy=on,disable-modern=on", "no interface"},
    };
    for (unsigned i = 0; i < 3; i++) {
        struct hvx_config *c = hvxtest_config(t->options, bad[i].options);
        assert_true(t->create(ctx, vm, c, &dev, &err) < 0);
        assert_non_null(strstr(err.text, bad[i].word));
        assert_int_equal(hvxtest_leftovers(vm, NULL, 0), 0);
        hvxtest_config_free(c);
    }
    struct hvx_config *c = hvxtest_config(t->options, "drive=disk0");
    for (unsigned n = 1;; n++) {
        hvxtest_fail_nth(vm, n);
        int r = t->create(ctx, vm, c, &dev, &err);
        if (hvxtest_fail_nth(vm, 0)) {
            assert_int_equal(r, 0);
            break;
        }
        assert_true(r < 0);
        assert_int_equal(hvxtest_leftovers(vm, NULL, 0), 0);
    }
    t->destroy(dev);
    t->destroy(NULL);
    hvxtest_config_free(c);
    hvx_plugin_dev_virtio.fini(ctx);
    hvxtest_free(vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_and_writes_reach_the_disk),
        cmocka_unit_test(test_written_memory_is_reported),
        cmocka_unit_test(test_many_in_flight_complete_in_any_order),
        cmocka_unit_test(test_buffers_may_be_cut_anywhere),
        cmocka_unit_test(test_a_chain_of_seg_max_data_segments_works),
        cmocka_unit_test(test_requests_outside_the_disk_fail),
        cmocka_unit_test(test_requests_without_header_or_status_break_the_device),
        cmocka_unit_test(test_host_errors_become_status_bytes),
        cmocka_unit_test(test_read_only_disks_refuse_writes),
        cmocka_unit_test(test_discard_and_write_zeroes),
        cmocka_unit_test(test_get_id_is_the_serial),
        cmocka_unit_test(test_cache_mode_follows_the_driver),
        cmocka_unit_test(test_geometry_and_queues_in_configuration),
        cmocka_unit_test(test_reset_in_flight),
        cmocka_unit_test(test_resets_cannot_exhaust_requests),
        cmocka_unit_test(test_state_travels),
        cmocka_unit_test(test_creation_failures_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
