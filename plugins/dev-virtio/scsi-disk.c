/* SPDX-License-Identifier: Apache-2.0
 *
 * scsi-disk.c - commands of disks (SBC-3, chapter 5).
 */
#include "scsi.h"

#include <stdlib.h>
#include <string.h>

#include "virtqueue.h"

#define VERIFY_BYTES_MAX (1u << 20) /* VERIFY that compares: more is refused */

/* LBA and count, by the length of the command (SPC-4 4.2.5.1). */
static void address(const uint8_t *cdb, uint64_t *lba, uint32_t *n)
{
    switch (cdb[0] >> 5) {
    case 0:
        *lba = (uint32_t)(cdb[1] & 0x1f) << 16 | be16_get(cdb + 2);
        *n = cdb[4] ? cdb[4] : 256;
        break;
    case 4:
        *lba = be64_get(cdb + 2);
        *n = be32_get(cdb + 10);
        break;
    case 5:
        *lba = be32_get(cdb + 2);
        *n = be32_get(cdb + 6);
        break;
    default:
        *lba = be32_get(cdb + 2);
        *n = be16_get(cdb + 7);
    }
}

static uint32_t durable(const struct scsi_cmd *c)
{
    bool fua = (c->cdb[0] >> 5) && (c->cdb[1] & 0x08);
    return fua || c->unit->write_through ? HVX_BLK_FUA : 0;
}

static bool writable(struct scsi_cmd *c)
{
    if (!c->unit->info.read_only)
        return true;
    scsi_end(c, SENSE_WRITE_PROTECTED);
    return false;
}

/* --- READ, WRITE, VERIFY ------------------------------------------------------------ */
static void read_command(struct scsi_cmd *c)
{
    uint64_t lba;
    uint32_t n;
    address(c->cdb, &lba, &n);
    if ((c->cdb[0] >> 5) && (c->cdb[1] & 0xe0)) /* protection information is not kept */
        scsi_end(c, SENSE_BAD_FIELD);
    else
        scsi_read_blocks(c, lba, n);
}

static void write_command(struct scsi_cmd *c)
{
    uint64_t lba, bytes;
    uint32_t n;
    address(c->cdb, &lba, &n);
    if ((c->cdb[0] >> 5) && (c->cdb[1] & 0xe0)) {
        scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    if (!writable(c) || !scsi_in_range(c, lba, n))
        return;
    bytes = (uint64_t)n * c->unit->block;
    if (bytes > c->out_bytes) { /* not all of it is there: nothing is written */
        c->overrun = true;
        scsi_end(c, SENSE_NONE);
        return;
    }
    if (!bytes) {
        scsi_end(c, SENSE_NONE);
        return;
    }
    uint64_t left = bytes;
    unsigned k = 0;
    for (; k < c->n_out && left; k++) {
        if (c->out[k].iov_len > left)
            c->out[k].iov_len = left;
        left -= c->out[k].iov_len;
    }
    c->host.iov = c->out;
    c->host.n_iov = k;
    c->done_bytes = (uint32_t)bytes;
    /* WRITE AND VERIFY: on the medium, for want of more. */
    bool verify = c->cdb[0] == 0x2e || c->cdb[0] == 0x8e || c->cdb[0] == 0xae;
    scsi_submit(c, HVX_BLK_WRITE, lba * c->unit->block, bytes, durable(c) | (verify ? HVX_BLK_FUA : 0),
                scsi_simple_done);
}

static void verify_done(struct hvx_blk_req *r)
{
    struct scsi_cmd *c = r->opaque;
    uint32_t bytes = (uint32_t)r->bytes;
    bool same = true;
    if (r->result) {
        scsi_end(c, scsi_sense_of(r->result, false));
        return;
    }
    for (uint32_t at = 0; at < bytes && same; at += SCSI_SECTOR) {
        uint8_t theirs[SCSI_SECTOR];
        vq_iov_read(c->out, c->n_out, at, theirs, SCSI_SECTOR);
        same = !memcmp(theirs, c->verify + at, SCSI_SECTOR);
    }
    c->done_bytes = bytes;
    scsi_end(c, same ? SENSE_NONE : SENSE_MISCOMPARE);
}

static void verify_command(struct scsi_cmd *c)
{
    uint64_t lba, bytes;
    uint32_t n;
    unsigned check = c->cdb[1] >> 1 & 3;
    address(c->cdb, &lba, &n);
    if (!scsi_in_range(c, lba, n))
        return;
    bytes = (uint64_t)n * c->unit->block;
    if (check == 0 || !n) { /* the block layer checks what it can when it reads */
        scsi_end(c, SENSE_NONE);
        return;
    }
    if (check != 1 || bytes > c->out_bytes || bytes > VERIFY_BYTES_MAX || !(c->verify = malloc(bytes))) {
        scsi_end(c, check == 1 && bytes > c->out_bytes ? SENSE_LIST_LENGTH : SENSE_BAD_FIELD);
        return;
    }
    c->same[0] = (struct iovec){c->verify, bytes};
    c->host.iov = c->same;
    c->host.n_iov = 1;
    scsi_submit(c, HVX_BLK_READ, lba * c->unit->block, bytes, 0, verify_done);
}

/* --- ranges: UNMAP and WRITE SAME (5.30, 5.43) ------------------------------------------ */
static void next_range(struct scsi_cmd *c, uint32_t op, uint32_t flags);

static void range_done(struct hvx_blk_req *r)
{
    struct scsi_cmd *c = r->opaque;
    /* A disk that cannot discard after all: the advice was not taken, no more. */
    int result = r->op == HVX_BLK_DISCARD && r->result == -EOPNOTSUPP ? 0 : r->result;
    if (result || c->aborted || c->range == c->n_ranges)
        scsi_end(c, scsi_sense_of(result, true));
    else
        next_range(c, r->op, r->flags);
}

static void next_range(struct scsi_cmd *c, uint32_t op, uint32_t flags)
{
    uint64_t at = c->ranges[c->range].at, n = c->ranges[c->range].n;
    c->range++;
    scsi_submit(c, op, at, n, flags, range_done);
}

static void unmap_command(struct scsi_cmd *c)
{
    struct scsi_unit *u = c->unit;
    uint32_t list = be16_get(c->cdb + 7), n;
    if (!u->info.can_discard) {
        scsi_end(c, SENSE_BAD_OPCODE);
        return;
    }
    if (c->cdb[1] & 1) { /* ANCHOR */
        scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    if (list == 0) {
        scsi_end(c, SENSE_NONE);
        return;
    }
    if (!writable(c) || !scsi_parameters(c, list))
        return;
    n = list < 8 ? 0 : be16_get(c->buf + 2);
    if (list < 8 || be16_get(c->buf) + 2u > list || n + 8 > list) {
        scsi_end(c, SENSE_LIST_LENGTH);
        return;
    }
    if (n / 16 > SCSI_MAX_RANGES) {
        scsi_end(c, SENSE_BAD_PARAMETER);
        return;
    }
    for (unsigned i = 0; i < n / 16; i++) {
        uint64_t lba = be64_get(c->buf + 8 + 16 * i), k = be32_get(c->buf + 16 + 16 * i);
        if (k * u->block > SCSI_MAX_RANGE_BYTES) {
            scsi_end(c, SENSE_BAD_PARAMETER);
            return;
        }
        if (!scsi_in_range(c, lba, k))
            return;
        if (!k)
            continue;
        c->ranges[c->n_ranges].at = lba * u->block;
        c->ranges[c->n_ranges++].n = k * u->block;
    }
    if (c->n_ranges)
        next_range(c, HVX_BLK_DISCARD, 0);
    else
        scsi_end(c, SENSE_NONE);
}

static void same_done(struct hvx_blk_req *r);

static void same_more(struct scsi_cmd *c)
{
    unsigned k = 0;
    uint64_t bytes = 0;
    for (; k < SCSI_SAME_IOV && bytes < c->same_left; k++, bytes += c->unit->block)
        c->same[k] = (struct iovec){c->buf, c->unit->block};
    c->host.iov = c->same;
    c->host.n_iov = k;
    c->same_at += bytes;
    c->same_left -= bytes;
    scsi_submit(c, HVX_BLK_WRITE, c->same_at - bytes, bytes, durable(c), same_done);
}

static void same_done(struct hvx_blk_req *r)
{
    struct scsi_cmd *c = r->opaque;
    if (r->result || c->aborted || !c->same_left)
        scsi_end(c, scsi_sense_of(r->result, true));
    else
        same_more(c);
}

static void write_same(struct scsi_cmd *c)
{
    struct scsi_unit *u = c->unit;
    uint64_t lba, bytes;
    uint32_t n;
    bool sixteen = c->cdb[0] == 0x93, unmap = c->cdb[1] & 8, no_data = sixteen && (c->cdb[1] & 1), zero = true;
    address(c->cdb, &lba, &n);
    if (c->cdb[1] & 0xf0 || (c->cdb[1] & 0x06)) { /* protection, anchor, obsolete patterns */
        scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    if (!writable(c))
        return;
    if (!n) /* all up to the end; more than we take at a time is refused below */
        n = lba < u->blocks && u->blocks - lba < UINT32_MAX ? (uint32_t)(u->blocks - lba) : UINT32_MAX;
    bytes = (uint64_t)n * u->block;
    if (bytes > SCSI_MAX_RANGE_BYTES) {
        scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    if (!scsi_in_range(c, lba, n))
        return;
    if (!no_data) {
        if (!scsi_parameters(c, u->block))
            return;
        for (unsigned i = 0; i < u->block && zero; i++)
            zero = !c->buf[i];
    }
    if (zero && u->info.can_write_zeroes) {
        scsi_submit(c, HVX_BLK_WRITE_ZEROES, lba * u->block, bytes, (unmap ? HVX_BLK_UNMAP : 0) | durable(c),
                    scsi_simple_done);
        return;
    }
    if (no_data)
        memset(c->buf, 0, u->block);
    c->same_at = lba * u->block;
    c->same_left = bytes;
    same_more(c);
}

/* --- the rest ----------------------------------------------------------------------------- */
static void read_capacity10(struct scsi_cmd *c)
{
    uint64_t last = c->unit->blocks ? c->unit->blocks - 1 : 0;
    be32_put(c->buf, last > UINT32_MAX ? UINT32_MAX : (uint32_t)last);
    be32_put(c->buf + 4, c->unit->block);
    scsi_reply(c, 8, 8);
}

static void service_action_in(struct scsi_cmd *c)
{
    const struct scsi_unit *u = c->unit;
    uint8_t *b = c->buf;
    if ((c->cdb[1] & 0x1f) != 0x10) { /* READ CAPACITY (16), 5.16 */
        scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    memset(b, 0, 32);
    be64_put(b, u->blocks ? u->blocks - 1 : 0);
    be32_put(b + 8, u->block);
    b[13] = u->block < 4096 ? (uint8_t)__builtin_ctz(4096 / u->block) : 0; /* physical blocks of 4 KiB */
    b[14] = u->info.can_discard && !u->info.read_only ? 0x80 : 0;          /* provisioning is managed */
    scsi_reply(c, 32, be32_get(c->cdb + 10));
}

/* Tells whether one operation code is known (SPC-4 6.35). */
static void report_opcodes(struct scsi_cmd *c)
{
    static const struct { uint8_t op, bytes; } known[] = {
        {0x00, 6},  {0x03, 6},  {0x08, 6},  {0x0a, 6},  {0x12, 6},  {0x15, 6},  {0x1a, 6},  {0x1b, 6},  {0x1e, 6},
        {0x25, 10}, {0x28, 10}, {0x2a, 10}, {0x2e, 10}, {0x2f, 10}, {0x35, 10}, {0x41, 10}, {0x42, 10}, {0x55, 10},
        {0x5a, 10}, {0x88, 16}, {0x8a, 16}, {0x8e, 16}, {0x8f, 16}, {0x91, 16}, {0x93, 16}, {0xa0, 12}, {0xa8, 12},
        {0xaa, 12},
    };
    uint8_t *b = c->buf, op = c->cdb[3];
    if ((c->cdb[1] & 0x1f) != 0x0c || (c->cdb[2] & 0x07) != 1) {
        scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    memset(b, 0, 4 + 16);
    b[1] = 1; /* not supported */
    for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (known[i].op != op || (op == 0x42 && !c->unit->info.can_discard))
            continue;
        b[1] = 3; /* as the standard has it */
        be16_put(b + 2, known[i].bytes);
        b[4] = op;
        memset(b + 5, 0xff, known[i].bytes - 2u);
        scsi_reply(c, 4u + known[i].bytes, be32_get(c->cdb + 6));
        return;
    }
    scsi_reply(c, 4, be32_get(c->cdb + 6));
}

static void start_stop(struct scsi_cmd *c)
{
    if (c->cdb[4] & 2) { /* there is nothing to eject */
        scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    if (c->cdb[4] & 1)
        scsi_end(c, SENSE_NONE);
    else
        scsi_submit(c, HVX_BLK_FLUSH, 0, 0, 0, scsi_simple_done);
}

void scsi_disk_command(struct scsi_cmd *c)
{
    switch (c->cdb[0]) {
    case 0x00: scsi_end(c, SENSE_NONE); break;
    case 0x1b: start_stop(c); break;
    case 0x1e:
        c->unit->locked = c->cdb[4] & 1;
        scsi_end(c, SENSE_NONE);
        break;
    case 0x25: read_capacity10(c); break;
    case 0x9e: service_action_in(c); break;
    case 0xa3: report_opcodes(c); break;
    case 0x08:
    case 0x28:
    case 0x88:
    case 0xa8: read_command(c); break;
    case 0x0a:
    case 0x2a:
    case 0x2e:
    case 0x8a:
    case 0x8e:
    case 0xaa: write_command(c); break;
    case 0x2f:
    case 0x8f: verify_command(c); break;
    case 0x35:
    case 0x91: scsi_submit(c, HVX_BLK_FLUSH, 0, 0, 0, scsi_simple_done); break;
    case 0x41:
    case 0x93: write_same(c); break;
    case 0x42: unmap_command(c); break;
    default: scsi_end(c, SENSE_BAD_OPCODE);
    }
}
