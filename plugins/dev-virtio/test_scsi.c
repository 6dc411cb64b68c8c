/* SPDX-License-Identifier: Apache-2.0
 *
 * The SCSI host adapter: addressing, commands of disks and CD-ROM drives,
 * sense data, task management, events, state.
 */
#include "test_driver.h"

#include <linux/virtio_scsi.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define DISK_BYTES (2u << 20)
#define CD_BYTES (1u << 20)
#define REQ_BYTES 51u
#define RESP_BYTES 108u
#define CTRL 0u
#define EVENTS 1u
#define REQUESTS 2u

struct fixture {
    struct instance i;
    struct hvx_blk *disk[3];
    struct drv *d;
    struct drvq *q;
    uint64_t req, resp, data;
    struct virtio_scsi_cmd_resp answer; /* of the latest command */
};

static void open_adapter(struct fixture *f, const struct hvxtest_disk_params *first, const char *options, uint64_t want)
{
    struct hvx_vm *vm = hvxtest_new(&(struct hvxtest_params){.ram_below_4g = DRV_RAM, .n_vcpus = 2});
    memset(f, 0, sizeof(*f));
    f->disk[0] = hvxtest_disk_add(vm, "disk0", first);
    f->disk[1] = hvxtest_disk_add(vm, "disk1", &(struct hvxtest_disk_params){.bytes = DISK_BYTES});
    f->disk[2] = hvxtest_disk_add(vm, "disk2", &(struct hvxtest_disk_params){.bytes = CD_BYTES, .cdrom = true,
                                                                             .read_only = true, .logical_block = 2048});
    instance_open(&f->i, vm, "virtio-scsi", options);
    f->d = &f->i.d;
    drv_start(f->d, vm, true, want, 4);
    f->q = &f->d->q[REQUESTS];
    f->req = drv_alloc(f->d, 64 * 16, 16);
    f->resp = drv_alloc(f->d, 128 * 16, 16);
    f->data = drv_alloc(f->d, 1 << 20, 4096);
}

static void open_plain(struct fixture *f)
{
    open_adapter(f, &(struct hvxtest_disk_params){.bytes = DISK_BYTES}, "drives=disk0+disk1:disk2", BIT(VIRTIO_SCSI_F_CHANGE));
}

static void put_request(struct fixture *f, unsigned slot, unsigned target, unsigned lun, uint64_t tag, const void *cdb,
                        unsigned n)
{
    uint8_t *p = drv_mem(f->d, f->req + 64 * slot, 64);
    memset(p, 0, 64);
    p[0] = 1;
    p[1] = target;
    p[2] = 0x40 | lun >> 8;
    p[3] = lun;
    memcpy(p + 8, &tag, 8);
    memcpy(p + 19, cdb, n);
    memset(drv_mem(f->d, f->resp + 128 * slot, RESP_BYTES), 0xee, RESP_BYTES);
}

static uint16_t queue_command(struct fixture *f, unsigned slot, unsigned target, unsigned lun, const void *cdb, unsigned n,
                              uint32_t bytes, bool in)
{
    put_request(f, slot, target, lun, 100 + slot, cdb, n);
    struct seg out[] = {{f->req + 64 * slot, REQ_BYTES, false}, {f->data, bytes, false},
                        {f->resp + 128 * slot, RESP_BYTES, true}};
    struct seg to_guest[] = {{f->req + 64 * slot, REQ_BYTES, false}, {f->resp + 128 * slot, RESP_BYTES, true},
                             {f->data, bytes, true}};
    if (!bytes)
        out[1] = out[2];
    return drv_add(f->d, f->q, bytes && in ? to_guest : out, bytes ? 3 : 2);
}

/* One command; returns its sense as key << 16 | code << 8 | qualifier, 0 when good, or -response. */
static int command(struct fixture *f, unsigned target, unsigned lun, const void *cdb, unsigned n, uint32_t bytes, bool in)
{
    queue_command(f, 0, target, lun, cdb, n, bytes, in);
    drv_kick(f->d, f->q);
    hvxtest_run(f->i.vm);
    assert_true(drv_used(f->d, f->q, NULL) >= 0);
    memcpy(&f->answer, drv_mem(f->d, f->resp, RESP_BYTES), sizeof(f->answer));
    if (f->answer.response)
        return -f->answer.response;
    if (!f->answer.status)
        return 0;
    assert_int_equal(f->answer.status, 2);
    assert_int_equal(f->answer.sense_len, 18);
    assert_int_equal(f->answer.sense[0] & 0x7f, 0x70);
    return f->answer.sense[2] << 16 | f->answer.sense[12] << 8 | f->answer.sense[13];
}
#define CMD(f, target, lun, bytes, in, ...)                                                                            \
    command(f, target, lun, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}), bytes, in)

static uint8_t *data(struct fixture *f) { return drv_mem(f->d, f->data, 1 << 20); }

/* The unit attentions of a fresh start. */
static void settle(struct fixture *f)
{
    CMD(f, 0, 0, 0, false, 0x00, 0);
    CMD(f, 0, 1, 0, false, 0x00, 0);
    CMD(f, 1, 0, 0, false, 0x00, 0);
}

static void test_units_are_where_the_option_says(void **state)
{
    (void)state;
    struct fixture f;
    open_plain(&f);
    assert_int_equal(CMD(&f, 2, 0, 0, false, 0x00, 0), -VIRTIO_SCSI_S_BAD_TARGET);
    assert_int_equal(CMD(&f, 0, 2, 0, false, 0x00, 0), 0x52500);
    assert_int_equal(CMD(&f, 0, 0, 64, true, 0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0), 0);
    assert_int_equal(data(&f)[3], 16);
    assert_int_equal(data(&f)[9], 0);
    assert_int_equal(data(&f)[17], 1);
    assert_int_equal(f.answer.resid, 64 - 24);
    assert_int_equal(CMD(&f, 1, 0, 64, true, 0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0), 0);
    assert_int_equal(data(&f)[3], 8);
    assert_int_equal(CMD(&f, 0, 7, 36, true, 0x12, 0, 0, 0, 36, 0), 0); /* no unit there: it says so */
    assert_int_equal(data(&f)[0], 0x7f);
    instance_close(&f.i);
}

static void test_a_unit_attention_is_told_once(void **state)
{
    (void)state;
    struct fixture f;
    open_plain(&f);
    assert_int_equal(CMD(&f, 0, 0, 96, true, 0x12, 0, 0, 0, 96, 0), 0); /* INQUIRY passes it by */
    assert_int_equal(CMD(&f, 0, 0, 0, false, 0x00, 0), 0x62900);
    assert_int_equal(CMD(&f, 0, 0, 0, false, 0x00, 0), 0);
    assert_int_equal(CMD(&f, 0, 1, 18, true, 0x03, 0, 0, 0, 18, 0), 0); /* REQUEST SENSE takes it */
    assert_int_equal(data(&f)[2], 6);
    assert_int_equal(data(&f)[12], 0x29);
    assert_int_equal(CMD(&f, 0, 1, 0, false, 0x00, 0), 0);
    instance_close(&f.i);
}

static void test_identity(void **state)
{
    (void)state;
    struct fixture f;
    open_plain(&f);
    settle(&f);
    assert_int_equal(CMD(&f, 0, 0, 96, true, 0x12, 0, 0, 0, 96, 0), 0);
    assert_memory_equal(data(&f) + 8, "HVX     DISK            ", 24);
    assert_int_equal(data(&f)[0], 0);
    assert_int_equal(CMD(&f, 1, 0, 96, true, 0x12, 0, 0, 0, 96, 0), 0);
    assert_int_equal(data(&f)[0], 5);
    assert_int_equal(data(&f)[1], 0x80);
    static const uint8_t pages[] = {0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2};
    assert_int_equal(CMD(&f, 0, 0, 255, true, 0x12, 1, 0, 0, 255, 0), 0);
    assert_memory_equal(data(&f) + 4, pages, sizeof(pages));
    for (unsigned i = 0; i < sizeof(pages); i++) {
        assert_int_equal(CMD(&f, 0, 0, 255, true, 0x12, 1, pages[i], 0, 255, 0), 0);
        assert_int_equal(data(&f)[1], pages[i]);
        assert_int_equal(f.answer.resid, 255 - 4 - data(&f)[3]);
    }
    assert_int_equal(CMD(&f, 0, 0, 255, true, 0x12, 1, 0xc0, 0, 255, 0), 0x52400);
    assert_int_equal(CMD(&f, 0, 0, 8, true, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0), 0);
    assert_int_equal(data(&f)[2] << 8 | data(&f)[3], DISK_BYTES / 512 - 1);
    assert_int_equal(CMD(&f, 0, 0, 32, true, 0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0), 0);
    assert_int_equal(data(&f)[6] << 8 | data(&f)[7], DISK_BYTES / 512 - 1);
    assert_int_equal(data(&f)[10] << 8 | data(&f)[11], 512);
    assert_int_equal(data(&f)[14], 0x80); /* it can be unmapped */
    instance_close(&f.i);
}

static void test_reads_and_writes_reach_the_right_disk(void **state)
{
    (void)state;
    struct fixture f;
    open_plain(&f);
    settle(&f);
    for (unsigned lun = 0; lun < 2; lun++) {
        for (unsigned i = 0; i < 8192; i++)
            data(&f)[i] = i * 7 + lun;
        assert_int_equal(CMD(&f, 0, lun, 8192, false, 0x2a, 0, 0, 0, 0, 100, 0, 0, 16, 0), 0);
        assert_int_equal(f.answer.resid, 0);
        assert_memory_equal(hvxtest_disk_data(f.disk[lun]) + 100 * 512, data(&f), 8192);
        memset(data(&f), 0, 8192);
        assert_int_equal(CMD(&f, 0, lun, 8192, true, 0x88, 0, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 16, 0, 0), 0);
        assert_memory_equal(hvxtest_disk_data(f.disk[lun]) + 100 * 512, data(&f), 8192);
        assert_int_equal(CMD(&f, 0, lun, 1024, true, 0x08, 0, 0, 101, 1, 0), 0);
        assert_int_equal(f.answer.resid, 512);
        assert_memory_equal(hvxtest_disk_data(f.disk[lun]) + 101 * 512, data(&f), 512);
    }
    assert_int_equal(CMD(&f, 0, 0, 512, true, 0x28, 0, 0, 0, 0x10, 0, 0, 0, 1, 0), 0x52100); /* past the end */
    assert_int_equal(CMD(&f, 0, 0, 512, true, 0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0), -VIRTIO_SCSI_S_OVERRUN);
    assert_int_equal(CMD(&f, 0, 0, 512, false, 0x2a, 0, 0, 0, 0, 0, 0, 0, 2, 0), -VIRTIO_SCSI_S_OVERRUN);
    assert_int_equal(CMD(&f, 0, 0, 0, false, 0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0), 0);
    assert_int_equal(hvxtest_disk_count(f.disk[0], HVX_BLK_FLUSH), 1);
    assert_int_equal(CMD(&f, 0, 0, 0, false, 0xff, 0), 0x52000);
    instance_close(&f.i);
}

static void test_errors_have_their_sense(void **state)
{
    (void)state;
    static const struct { int error; bool write; int sense; } map[] = {
        {-EIO, false, 0x31100}, {-EIO, true, 0x30c00}, {-ENOSPC, true, 0x72707}, {-EROFS, true, 0x72700},
        {-ENOMEM, true, 0x44400},
    };
    struct fixture f;
    open_plain(&f);
    settle(&f);
    for (unsigned i = 0; i < sizeof(map) / sizeof(map[0]); i++) {
        hvxtest_disk_fail(f.disk[0], 0, 1, map[i].error);
        int s = map[i].write ? CMD(&f, 0, 0, 512, false, 0x2a, 0, 0, 0, 0, 9, 0, 0, 1, 0)
                             : CMD(&f, 0, 0, 512, true, 0x28, 0, 0, 0, 0, 9, 0, 0, 1, 0);
        assert_int_equal(s, map[i].sense);
        if (map[i].error == -EIO) { /* where it happened */
            assert_int_equal(f.answer.sense[0], 0xf0);
            assert_int_equal(f.answer.sense[6], 9);
        }
    }
    instance_close(&f.i);
}

static void test_unmap_and_write_same(void **state)
{
    (void)state;
    struct fixture f;
    open_plain(&f);
    settle(&f);
    memset(hvxtest_disk_data(f.disk[0]), 0x55, DISK_BYTES);
    memset(data(&f), 0, 64);
    data(&f)[1] = 38, data(&f)[3] = 32; /* two ranges: 16 blocks at 8, 8 at 64 */
    data(&f)[15] = 8, data(&f)[19] = 16;
    data(&f)[31] = 64, data(&f)[35] = 8;
    assert_int_equal(CMD(&f, 0, 0, 40, false, 0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0), 0);
    assert_int_equal(hvxtest_disk_count(f.disk[0], HVX_BLK_DISCARD), 2);
    data(&f)[3] = 33 * 4; /* longer than the list */
    assert_int_equal(CMD(&f, 0, 0, 40, false, 0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0), 0x51a00);
    memset(data(&f), 0, 512);
    assert_int_equal(CMD(&f, 0, 0, 512, false, 0x93, 8, 0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 1, 0, 0, 0), 0);
    assert_int_equal(hvxtest_disk_count(f.disk[0], HVX_BLK_WRITE_ZEROES), 1);
    assert_int_equal(hvxtest_disk_data(f.disk[0])[200 * 512], 0);
    assert_int_equal(hvxtest_disk_data(f.disk[0])[456 * 512 - 1], 0);
    assert_int_equal(hvxtest_disk_data(f.disk[0])[456 * 512], 0x55);
    memset(data(&f), 0xa7, 512); /* a pattern, in more pieces than one */
    assert_int_equal(CMD(&f, 0, 0, 512, false, 0x41, 0, 0, 0, 4, 0, 0, 1, 44, 0), 0);
    for (unsigned i = 0; i < 300 * 512; i++)
        assert_int_equal(hvxtest_disk_data(f.disk[0])[1024 * 512 + i], 0xa7);
    assert_int_equal(hvxtest_disk_data(f.disk[0])[1324 * 512], 0x55);
    assert_int_equal(CMD(&f, 0, 0, 20, true, 0xa3, 0x0c, 1, 0x93, 0, 0, 0, 0, 0, 20, 0, 0), 0);
    assert_int_equal(data(&f)[1], 3);
    instance_close(&f.i);
}

static void test_mode_pages(void **state)
{
    (void)state;
    struct fixture f;
    open_plain(&f);
    settle(&f);
    assert_int_equal(CMD(&f, 0, 0, 64, true, 0x1a, 8, 8, 0, 64, 0), 0);
    assert_int_equal(data(&f)[4], 8);
    assert_int_equal(data(&f)[6] & 4, 4); /* write cache on */
    assert_int_equal(CMD(&f, 0, 0, 64, true, 0x1a, 0, 0x3f, 0, 64, 0), 0);
    assert_int_equal(data(&f)[3], 8); /* a block descriptor */
    assert_int_equal(CMD(&f, 0, 0, 64, true, 0x1a, 0, 0x1c, 0, 64, 0), 0x52400);
    assert_int_equal(CMD(&f, 0, 0, 64, true, 0x1a, 0, 0xc8, 0, 64, 0), 0x53900);
    /* Off: each write is durable by itself. */
    memset(data(&f), 0, 24);
    data(&f)[4] = 8, data(&f)[5] = 18;
    assert_int_equal(CMD(&f, 0, 0, 24, false, 0x15, 0x10, 0, 0, 24, 0), 0);
    assert_int_equal(CMD(&f, 0, 0, 64, true, 0x1a, 8, 8, 0, 64, 0), 0);
    assert_int_equal(data(&f)[6] & 4, 0);
    memset(data(&f), 0, 24);
    data(&f)[4] = 8, data(&f)[5] = 18, data(&f)[7] = 1; /* not to be changed */
    assert_int_equal(CMD(&f, 0, 0, 24, false, 0x15, 0x10, 0, 0, 24, 0), 0x52600);
    instance_close(&f.i);
}

static void test_a_read_only_disk_refuses_writes(void **state)
{
    (void)state;
    struct fixture f;
    open_adapter(&f, &(struct hvxtest_disk_params){.bytes = DISK_BYTES, .read_only = true}, "drives=disk0", 0);
    CMD(&f, 0, 0, 0, false, 0x00, 0);
    assert_int_equal(CMD(&f, 0, 0, 512, false, 0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0), 0x72700);
    assert_int_equal(CMD(&f, 0, 0, 64, true, 0x1a, 8, 8, 0, 64, 0), 0);
    assert_int_equal(data(&f)[2] & 0x80, 0x80);
    instance_close(&f.i);
}

static void test_the_cd_drive(void **state)
{
    (void)state;
    struct fixture f;
    uint32_t len;
    open_plain(&f);
    settle(&f);
    memcpy(hvxtest_disk_data(f.disk[2]) + 16 * 2048, "CD001", 5);
    assert_int_equal(CMD(&f, 1, 0, 8, true, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0), 0);
    assert_int_equal(data(&f)[2] << 8 | data(&f)[3], CD_BYTES / 2048 - 1);
    assert_int_equal(data(&f)[6], 8);
    assert_int_equal(CMD(&f, 1, 0, 2048, true, 0x28, 0, 0, 0, 0, 16, 0, 0, 1, 0), 0);
    assert_memory_equal(data(&f), "CD001", 5);
    assert_int_equal(CMD(&f, 1, 0, 20, true, 0x43, 0, 0, 0, 0, 0, 0, 0, 20, 0), 0);
    assert_int_equal(data(&f)[14], 0xaa);
    assert_int_equal(CMD(&f, 1, 0, 512, false, 0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0), 0x52000);
    /* Eject: an event for the driver, no medium, and a unit attention when it is back. */
    uint64_t event = drv_alloc(f.d, 16, 16);
    struct seg s = {event, 16, true};
    drv_add(f.d, &f.d->q[EVENTS], &s, 1);
    drv_notify(f.d, EVENTS);
    assert_int_equal(CMD(&f, 1, 0, 0, false, 0x1e, 0, 0, 0, 1, 0), 0);
    assert_int_equal(CMD(&f, 1, 0, 0, false, 0x1b, 0, 0, 0, 2, 0), 0x55302);
    assert_int_equal(CMD(&f, 1, 0, 0, false, 0x1e, 0, 0, 0, 0, 0), 0);
    assert_int_equal(CMD(&f, 1, 0, 0, false, 0x1b, 0, 0, 0, 2, 0), 0);
    assert_true(drv_used(f.d, &f.d->q[EVENTS], &len) >= 0);
    assert_int_equal(len, 16);
    assert_int_equal(((struct virtio_scsi_event *)drv_mem(f.d, event, 16))->event, VIRTIO_SCSI_T_PARAM_CHANGE);
    assert_int_equal(CMD(&f, 1, 0, 0, false, 0x00, 0), 0x23a00);
    assert_int_equal(CMD(&f, 1, 0, 0, false, 0x1b, 0, 0, 0, 3, 0), 0);
    assert_int_equal(CMD(&f, 1, 0, 0, false, 0x00, 0), 0x62800);
    /* That event found no buffer: the next one says so. */
    drv_add(f.d, &f.d->q[EVENTS], &s, 1);
    drv_notify(f.d, EVENTS);
    assert_true(drv_used(f.d, &f.d->q[EVENTS], &len) >= 0);
    assert_int_equal(((struct virtio_scsi_event *)drv_mem(f.d, event, 16))->event, VIRTIO_SCSI_T_EVENTS_MISSED);
    instance_close(&f.i);
}

/* One function; returns its answer, -1 when there is none yet. */
static int task_function(struct fixture *f, uint32_t subtype, unsigned lun, uint64_t tag, uint64_t *at)
{
    struct virtio_scsi_ctrl_tmf_req q = {.type = VIRTIO_SCSI_T_TMF, .subtype = subtype,
                                         .lun = {1, 0, 0x40, (uint8_t)lun}, .tag = tag};
    uint64_t p = drv_alloc(f->d, 64, 16);
    memcpy(drv_mem(f->d, p, sizeof(q)), &q, sizeof(q));
    struct seg s[] = {{p, sizeof(q), false}, {p + 60, 1, true}};
    drv_add(f->d, &f->d->q[CTRL], s, 2);
    drv_kick(f->d, &f->d->q[CTRL]);
    hvxtest_run(f->i.vm);
    *at = p + 60;
    return drv_used(f->d, &f->d->q[CTRL], NULL) < 0 ? -1 : *(uint8_t *)drv_mem(f->d, p + 60, 1);
}

static void test_task_management(void **state)
{
    (void)state;
    static const uint8_t read[] = {0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0};
    struct fixture f;
    uint64_t at;
    open_plain(&f);
    settle(&f);
    hvxtest_disk_hold(f.disk[0], true);
    for (unsigned i = 0; i < 3; i++)
        queue_command(&f, i, 0, 0, read, sizeof(read), 512, true);
    drv_kick(f.d, f.q);
    assert_int_equal(hvxtest_disk_in_flight(f.disk[0]), 3);
    assert_false(f.i.type->quiesced(f.i.dev));
    assert_int_equal(task_function(&f, VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, 101, &at), VIRTIO_SCSI_S_FUNCTION_SUCCEEDED);
    assert_int_equal(task_function(&f, VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, 7, &at), 0);
    assert_int_equal(task_function(&f, VIRTIO_SCSI_T_TMF_ABORT_TASK, 5, 0, &at), VIRTIO_SCSI_S_INCORRECT_LUN);
    assert_int_equal(task_function(&f, VIRTIO_SCSI_T_TMF_CLEAR_ACA, 0, 0, &at), VIRTIO_SCSI_S_FUNCTION_REJECTED);
    /* The abort is confirmed when the command has ended, not before. */
    assert_int_equal(task_function(&f, VIRTIO_SCSI_T_TMF_ABORT_TASK, 0, 101, &at), -1);
    hvxtest_disk_release(f.disk[0], 0);
    assert_true(drv_used(f.d, f.q, NULL) >= 0);
    assert_int_equal(((struct virtio_scsi_cmd_resp *)drv_mem(f.d, f.resp, RESP_BYTES))->response, 0);
    assert_int_equal(drv_used(f.d, &f.d->q[CTRL], NULL), -1);
    hvxtest_disk_release(f.disk[0], 0);
    assert_true(drv_used(f.d, f.q, NULL) >= 0);
    assert_int_equal(((struct virtio_scsi_cmd_resp *)drv_mem(f.d, f.resp + 128, RESP_BYTES))->response,
                     VIRTIO_SCSI_S_ABORTED);
    assert_true(drv_used(f.d, &f.d->q[CTRL], NULL) >= 0);
    assert_int_equal(*(uint8_t *)drv_mem(f.d, at, 1), 0);
    /* A reset of the unit: its commands end, and a unit attention waits. */
    assert_int_equal(task_function(&f, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0, 0, &at), -1);
    hvxtest_disk_release(f.disk[0], ~0u);
    hvxtest_run(f.i.vm);
    assert_true(drv_used(f.d, &f.d->q[CTRL], NULL) >= 0);
    assert_true(drv_used(f.d, f.q, NULL) >= 0);
    assert_int_equal(((struct virtio_scsi_cmd_resp *)drv_mem(f.d, f.resp + 256, RESP_BYTES))->response,
                     VIRTIO_SCSI_S_RESET);
    hvxtest_disk_hold(f.disk[0], false);
    assert_int_equal(CMD(&f, 0, 0, 0, false, 0x00, 0), 0x62900);
    assert_true(f.i.type->quiesced(f.i.dev));
    instance_close(&f.i);
}

static void test_sizes_of_commands_and_sense(void **state)
{
    (void)state;
    struct fixture f;
    open_plain(&f);
    assert_int_equal(drv_config(f.d, 24, 4), 32);
    drv_set_config(f.d, 24, 4, 100000); /* out of range: ignored */
    assert_int_equal(drv_config(f.d, 24, 4), 32);
    drv_set_config(f.d, 20, 4, 4);
    assert_int_equal(drv_config(f.d, 20, 4), 4);
    put_request(&f, 0, 0, 0, 1, "\0", 1);
    struct seg s[] = {{f.req, REQ_BYTES, false}, {f.resp, 16, true}};
    drv_add(f.d, f.q, s, 2);
    drv_kick(f.d, f.q);
    assert_true(drv_used(f.d, f.q, NULL) >= 0);
    assert_int_equal(((struct virtio_scsi_cmd_resp *)drv_mem(f.d, f.resp, RESP_BYTES))->sense_len, 4);
    assert_int_equal(*(uint8_t *)drv_mem(f.d, f.resp + 16, 1), 0xee);
    s[0].len = 20; /* shorter than a request */
    drv_add(f.d, f.q, s, 2);
    drv_kick(f.d, f.q);
    assert_true(drv_status(f.d) & VIRTIO_CONFIG_S_NEEDS_RESET);
    instance_close(&f.i);
}

static void test_state_survives_the_round_trip(void **state)
{
    (void)state;
    struct fixture f;
    uint8_t *buf;
    size_t n;
    struct hvx_error err;
    open_plain(&f);
    settle(&f);
    CMD(&f, 1, 0, 0, false, 0x1b, 0, 0, 0, 2, 0);
    hvxtest_disk_hold(f.disk[0], true);
    queue_command(&f, 0, 0, 0, "\x28\0\0\0\0\0\0\0\1", 10, 512, true);
    drv_kick(f.d, f.q);
    assert_true(hvxtest_save(f.i.type->state, f.i.dev, 1, &buf, &n) < 0); /* not with a request under way */
    hvxtest_disk_release(f.disk[0], ~0u);
    hvxtest_disk_hold(f.disk[0], false);
    drv_used(f.d, f.q, NULL);
    assert_int_equal(hvxtest_save(f.i.type->state, f.i.dev, 1, &buf, &n), 0);
    CMD(&f, 1, 0, 0, false, 0x1b, 0, 0, 0, 3, 0);
    f.i.type->reset(f.i.dev);
    assert_int_equal(hvxtest_load(f.i.type->state, f.i.dev, 1, buf, n, &err), 0);
    for (size_t k = 0; k < n; k++)
        assert_true(hvxtest_load(f.i.type->state, f.i.dev, 1, buf, k, &err) < 0);
    free(buf);
    instance_close(&f.i);
}

static void test_bad_options_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"drives=disk9", "drives=disk0:disk9", "drives=disk0,queue-size=100"};
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct hvx_vm *vm = hvxtest_new(NULL);
        const struct hvx_device_type *t = device_type("virtio-scsi");
        struct hvx_config *c = hvxtest_config(t->options, bad[i]);
        struct hvx_error err = {0};
        void *ctx, *dev;
        hvxtest_disk_add(vm, "disk0", &(struct hvxtest_disk_params){.bytes = DISK_BYTES});
        assert_int_equal(hvx_plugin_dev_virtio.init(hvxtest_host(), NULL, &ctx, &err), 0);
        assert_true(t->create(ctx, vm, c, &dev, &err) < 0);
        assert_true(err.text[0]);
        hvx_plugin_dev_virtio.fini(ctx);
        hvxtest_config_free(c);
        hvxtest_free(vm);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_units_are_where_the_option_says),
        cmocka_unit_test(test_a_unit_attention_is_told_once),
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_reads_and_writes_reach_the_right_disk),
        cmocka_unit_test(test_errors_have_their_sense),
        cmocka_unit_test(test_unmap_and_write_same),
        cmocka_unit_test(test_mode_pages),
        cmocka_unit_test(test_a_read_only_disk_refuses_writes),
        cmocka_unit_test(test_the_cd_drive),
        cmocka_unit_test(test_task_management),
        cmocka_unit_test(test_sizes_of_commands_and_sense),
        cmocka_unit_test(test_state_survives_the_round_trip),
        cmocka_unit_test(test_bad_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
