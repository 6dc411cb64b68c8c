/* SPDX-License-Identifier: Apache-2.0
 *
 * scsi.c - what every logical unit knows (SPC-4), and how commands start and
 * end. Vital product data: SPC-4 7.8 and SBC-3 6.5.
 */
#include "scsi.h"

#include <errno.h>
#include <hvx/state.h>
#include <stdlib.h>
#include <string.h>

#include "virtqueue.h"

#define QUALIFIER_NO_UNIT 0x7fu

/* --- units ------------------------------------------------------------------------- */
void scsi_unit_init(struct scsi_unit *u, const struct hvx_host *host, struct hvx_blk *disk)
{
    memset(u, 0, sizeof(*u));
    u->host = host;
    u->disk = disk;
    u->info.size = sizeof(u->info);
    host->blk_info(disk, &u->info);
    u->cdrom = u->info.is_cdrom;
    uint32_t b = u->info.logical_block;
    u->block = u->cdrom ? 2048 : b >= SCSI_SECTOR && b <= 4096 && !(b & (b - 1)) ? b : SCSI_SECTOR;
    u->blocks = u->info.bytes / u->block;
    scsi_unit_reset(u);
}

void scsi_unit_reset(struct scsi_unit *u)
{
    u->attention = SENSE_RESET;
    u->write_through = false;
    u->locked = false;
}

int scsi_unit_state(struct scsi_unit *u, struct hvx_stream *s)
{
    uint64_t bytes = u->info.bytes;
    hvx_state_u64(s, &bytes);
    hvx_state_u32(s, &u->attention);
    hvx_state_bool(s, &u->write_through);
    hvx_state_bool(s, &u->locked);
    hvx_state_bool(s, &u->ejected);
    hvx_state_bool(s, &u->medium_event);
    if (!hvx_state_error(s) && bytes != u->info.bytes)
        hvx_state_fail(s, -EINVAL, "a SCSI disk has another size than when it was saved");
    return hvx_state_error(s);
}

/* --- ends of a command ---------------------------------------------------------------- */
void scsi_end(struct scsi_cmd *c, uint32_t sense)
{
    c->status = sense ? SCSI_CHECK_CONDITION : SCSI_GOOD;
    c->n_sense = 0;
    if (sense) { /* fixed format, 4.5.3 */
        memset(c->sense, 0, sizeof(c->sense));
        c->sense[0] = 0x70;
        c->sense[2] = (uint8_t)(sense >> 16);
        c->sense[7] = 10;
        c->sense[12] = (uint8_t)(sense >> 8);
        c->sense[13] = (uint8_t)sense;
        if ((sense >> 16) == 3 && c->lba <= UINT32_MAX) { /* where the medium failed */
            c->sense[0] |= 0x80;
            be32_put(c->sense + 3, (uint32_t)c->lba);
        }
        c->n_sense = SCSI_SENSE_BYTES;
    }
    free(c->verify);
    c->verify = NULL;
    c->done(c);
}

void scsi_reply(struct scsi_cmd *c, uint32_t n, uint32_t wanted)
{
    if (n > wanted)
        n = wanted;
    c->done_bytes = (uint32_t)vq_iov_write(c->in, c->n_in, 0, c->buf, n);
    c->overrun = c->done_bytes < n;
    scsi_end(c, SENSE_NONE);
}

bool scsi_parameters(struct scsi_cmd *c, uint32_t n)
{
    if (n > sizeof(c->buf) || n > c->out_bytes) {
        scsi_end(c, SENSE_LIST_LENGTH);
        return false;
    }
    vq_iov_read(c->out, c->n_out, 0, c->buf, n);
    c->done_bytes = n;
    return true;
}

uint32_t scsi_sense_of(int error, bool write)
{
    switch (error) {
    case 0: return SENSE_NONE;
    case -ENOSPC:
    case -EDQUOT: return SENSE_NO_SPACE;
    case -EROFS:
    case -EACCES:
    case -EPERM: return SENSE_WRITE_PROTECTED;
    case -EOPNOTSUPP:
    case -ENOSYS: return SENSE_BAD_OPCODE;
    case -EIO: return write ? SENSE_WRITE_ERROR : SENSE_READ_ERROR;
    default: return SENSE_TARGET_FAILURE;
    }
}

void scsi_submit(struct scsi_cmd *c, uint32_t op, uint64_t offset, uint64_t bytes, uint32_t flags,
                 void (*done)(struct hvx_blk_req *r))
{
    c->host.op = op;
    c->host.flags = flags;
    c->host.offset = offset;
    c->host.bytes = bytes;
    c->host.done = done;
    c->host.opaque = c;
    if (op != HVX_BLK_READ && op != HVX_BLK_WRITE) {
        c->host.iov = NULL;
        c->host.n_iov = 0;
    }
    c->unit->host->blk_submit(c->unit->disk, &c->host);
}

void scsi_simple_done(struct hvx_blk_req *r)
{
    scsi_end(r->opaque, scsi_sense_of(r->result, r->op != HVX_BLK_READ));
}

bool scsi_in_range(struct scsi_cmd *c, uint64_t lba, uint64_t n)
{
    c->lba = lba;
    if (lba <= c->unit->blocks && n <= c->unit->blocks - lba)
        return true;
    scsi_end(c, SENSE_BAD_LBA);
    return false;
}

void scsi_read_blocks(struct scsi_cmd *c, uint64_t lba, uint64_t n)
{
    if (!scsi_in_range(c, lba, n))
        return;
    uint64_t bytes = n * c->unit->block;
    if (bytes > c->in_bytes) {
        c->overrun = true;
        bytes = c->in_bytes / c->unit->block * c->unit->block;
    }
    if (!bytes) {
        scsi_end(c, SENSE_NONE);
        return;
    }
    /* Exactly so many bytes in the list. */
    uint64_t left = bytes;
    unsigned k = 0;
    for (; k < c->n_in && left; k++) {
        if (c->in[k].iov_len > left)
            c->in[k].iov_len = left;
        left -= c->in[k].iov_len;
    }
    c->host.iov = c->in;
    c->host.n_iov = k;
    c->done_bytes = (uint32_t)bytes;
    scsi_submit(c, HVX_BLK_READ, lba * c->unit->block, bytes, 0, scsi_simple_done);
}

/* --- INQUIRY (SPC-4 6.6) ----------------------------------------------------------------- */
static unsigned vpd_identification(const struct scsi_unit *u, uint8_t *b)
{
    /* A T10 vendor identification, and a locally assigned NAA name made of the serial number. */
    uint64_t h = 14695981039346656037ull;
    unsigned serial = (unsigned)strnlen(u->info.serial, sizeof(u->info.serial)), n = 4;
    b[n] = 0x02; /* ASCII */
    b[n + 1] = 0x01;
    b[n + 3] = (uint8_t)(8 + serial);
    memcpy(b + n + 4, "HVX     ", 8);
    memcpy(b + n + 12, u->info.serial, serial);
    n += 12 + serial;
    for (unsigned i = 0; i < serial; i++)
        h = (h ^ (uint8_t)u->info.serial[i]) * 1099511628211ull;
    b[n] = 0x01; /* binary */
    b[n + 1] = 0x03;
    b[n + 3] = 8;
    be64_put(b + n + 4, (h & 0x0fffffffffffffffull) | 0x3000000000000000ull);
    return n + 12;
}

static void vpd_limits(const struct scsi_unit *u, uint8_t *b)
{
    uint32_t range = (uint32_t)(SCSI_MAX_RANGE_BYTES / u->block);
    be16_put(b + 6, u->block < 4096 ? 4096 / u->block : 1); /* granularity of transfers */
    be32_put(b + 12, (uint32_t)(u->info.opt_io_bytes / u->block));
    if (u->info.can_discard && !u->info.read_only) {
        uint32_t grain = (uint32_t)(u->info.opt_io_bytes / u->block);
        be32_put(b + 20, range);
        be32_put(b + 24, SCSI_MAX_RANGES);
        be32_put(b + 28, grain ? grain : 4096 / u->block);
    }
    be64_put(b + 36, range); /* WRITE SAME */
}

/* A page of vital product data in b; its length, 0: unknown. */
static unsigned vpd_page(const struct scsi_unit *u, uint8_t *b, uint8_t page)
{
    static const uint8_t disk_pages[] = {0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2}, cd_pages[] = {0x00, 0x80, 0x83};
    unsigned n, serial = (unsigned)strnlen(u->info.serial, sizeof(u->info.serial));
    memset(b, 0, 256);
    switch (page) {
    case 0x00:
        n = u->cdrom ? sizeof(cd_pages) : sizeof(disk_pages);
        memcpy(b + 4, u->cdrom ? cd_pages : disk_pages, n);
        n += 4;
        break;
    case 0x80:
        memcpy(b + 4, u->info.serial, serial);
        n = 4 + serial;
        break;
    case 0x83: n = vpd_identification(u, b); break;
    case 0xb0:
        if (u->cdrom)
            return 0;
        vpd_limits(u, b);
        n = 64;
        break;
    case 0xb1:
        if (u->cdrom)
            return 0;
        be16_put(b + 4, 1); /* does not rotate */
        n = 64;
        break;
    case 0xb2: /* logical block provisioning, SBC-3 6.5.5 */
        if (u->cdrom)
            return 0;
        if (u->info.can_discard && !u->info.read_only) {
            b[5] = 0x80 | 0x40 | 0x20; /* UNMAP, WRITE SAME (16) and (10) */
            b[6] = 2;                  /* thin */
        }
        n = 8;
        break;
    default: return 0;
    }
    b[0] = u->cdrom ? 0x05 : 0x00;
    b[1] = page;
    be16_put(b + 2, n - 4);
    return n;
}

static void inquiry(struct scsi_cmd *c)
{
    const struct scsi_unit *u = c->unit;
    uint8_t *b = c->buf;
    unsigned n = 36, wanted = be16_get(c->cdb + 3);
    if (c->cdb[1] & ~1u || (!(c->cdb[1] & 1) && c->cdb[2])) {
        scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    if ((c->cdb[1] & 1) && u) {
        n = vpd_page(u, b, c->cdb[2]);
        if (n)
            scsi_reply(c, n, wanted);
        else
            scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    memset(b, 0, 96);
    b[4] = 96 - 5;
    if (!u) {
        b[0] = QUALIFIER_NO_UNIT;
    } else {
        b[0] = u->cdrom ? 0x05 : 0x00;
        b[1] = u->cdrom ? 0x80 : 0x00; /* removable */
        n = 96;
    }
    b[2] = 0x05; /* SPC-3 */
    b[3] = 0x12; /* hierarchical LUNs, response format 2 */
    b[4] = (uint8_t)(n - 5);
    b[7] = 0x02; /* command queueing */
    memcpy(b + 8, "HVX     ", 8);
    memcpy(b + 16, u && u->cdrom ? "DVD-ROM         " : "DISK            ", 16);
    memcpy(b + 32, "1.0 ", 4);
    if (n == 96) { /* version descriptors: SAM-5, SPC-4, SBC-3 or MMC-5 */
        be16_put(b + 58, 0x00a0);
        be16_put(b + 60, 0x0460);
        be16_put(b + 62, u->cdrom ? 0x0400 : 0x04c0);
    }
    scsi_reply(c, n, wanted);
}

/* --- REPORT LUNS (6.33) ---------------------------------------------------------------------- */
static void report_luns(struct scsi_cmd *c)
{
    uint8_t *b = c->buf;
    uint32_t wanted = be32_get(c->cdb + 6);
    unsigned n = 8;
    if (c->cdb[2] > 2) {
        scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    memset(b, 0, 8);
    for (unsigned i = 0; i < c->n_luns && c->cdb[2] != 1 && n + 8 <= sizeof(c->buf); i++, n += 8) {
        memset(b + n, 0, 8);
        b[n] = (uint8_t)(c->luns[i] > 255 ? 0x40 | c->luns[i] >> 8 : 0);
        b[n + 1] = (uint8_t)c->luns[i];
    }
    be32_put(b, n - 8);
    scsi_reply(c, n, wanted);
}

static void request_sense(struct scsi_cmd *c)
{
    uint32_t sense = !c->unit ? SENSE_BAD_UNIT : c->unit->attention;
    uint8_t *b = c->buf;
    if (c->cdb[1] & 1) { /* descriptor format */
        memset(b, 0, 8);
        b[0] = 0x72;
        b[1] = (uint8_t)(sense >> 16);
        b[2] = (uint8_t)(sense >> 8);
        b[3] = (uint8_t)sense;
    } else {
        memset(b, 0, SCSI_SENSE_BYTES);
        b[0] = 0x70;
        b[2] = (uint8_t)(sense >> 16);
        b[7] = 10;
        b[12] = (uint8_t)(sense >> 8);
        b[13] = (uint8_t)sense;
    }
    if (c->unit)
        c->unit->attention = 0;
    scsi_reply(c, b[0] == 0x72 ? 8 : SCSI_SENSE_BYTES, c->cdb[4]);
}

/* --- mode pages (7.5) ------------------------------------------------------------------------- */
unsigned scsi_mode_page(const struct scsi_unit *u, uint8_t *p, unsigned page, bool changeable)
{
    static const struct { uint8_t page, bytes; } known[] = {{0x01, 12}, {0x08, 20}, {0x0a, 12}};
    if (u->cdrom)
        return scsi_cd_mode_page(u, p, page, changeable);
    for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (known[i].page != page)
            continue;
        memset(p, 0, known[i].bytes);
        p[0] = (uint8_t)page;
        p[1] = known[i].bytes - 2;
        if (page == 0x08) /* caching: WCE */
            p[2] = changeable || !u->write_through ? 0x04 : 0;
        else if (page == 0x01 && !changeable)
            p[2] = 0x80; /* write errors: reassign by itself */
        else if (page == 0x0a && !changeable)
            p[3] = 0x10; /* commands may be reordered */
        return known[i].bytes;
    }
    return 0;
}

static void mode_sense(struct scsi_cmd *c, bool ten)
{
    const struct scsi_unit *u = c->unit;
    uint8_t *b = c->buf;
    unsigned page = c->cdb[2] & 0x3f, control = c->cdb[2] >> 6, head = ten ? 8 : 4, n = head, from;
    bool descriptor = !(c->cdb[1] & 8) && !u->cdrom;
    if (control == 3 || (c->cdb[3] && c->cdb[3] != 0xff)) {
        scsi_end(c, control == 3 ? SENSE_NOT_SAVED : SENSE_BAD_FIELD);
        return;
    }
    memset(b, 0, head + 8);
    if (descriptor) {
        be32_put(b + n, u->blocks > 0xffffff ? 0xffffff : (uint32_t)u->blocks);
        be32_put(b + n + 4, u->block);
        n += 8;
    }
    from = n;
    if (page == 0x3f)
        for (unsigned k = 0; k < 0x3f; k++)
            n += scsi_mode_page(u, b + n, k, control == 1);
    else
        n += scsi_mode_page(u, b + n, page, control == 1);
    if (n == from) {
        scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    uint8_t specific = u->cdrom ? 0 : (uint8_t)((u->info.read_only ? 0x80 : 0) | 0x10); /* WP, DPO and FUA */
    if (ten) {
        be16_put(b, n - 2);
        b[3] = specific;
        be16_put(b + 6, descriptor ? 8 : 0);
    } else {
        b[0] = (uint8_t)(n - 1);
        b[2] = specific;
        b[3] = descriptor ? 8 : 0;
    }
    scsi_reply(c, n, ten ? be16_get(c->cdb + 7) : c->cdb[4]);
}

/* Nothing but the write cache can be changed: all else must be as it is. */
static void mode_select(struct scsi_cmd *c, bool ten)
{
    struct scsi_unit *u = c->unit;
    uint8_t mask[64], now[64];
    uint32_t n = ten ? be16_get(c->cdb + 7) : c->cdb[4], head = ten ? 8 : 4, at;
    bool write_through = u->write_through;
    if (!(c->cdb[1] & 0x10) || (c->cdb[1] & 1)) {
        scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    if (n == 0) {
        scsi_end(c, SENSE_NONE);
        return;
    }
    if (!scsi_parameters(c, n))
        return;
    at = head;
    if (n >= head)
        at += ten ? be16_get(c->buf + 6) : c->buf[3];
    if (n < head || at > n) {
        scsi_end(c, SENSE_LIST_LENGTH);
        return;
    }
    while (at < n) {
        const uint8_t *p = c->buf + at;
        unsigned page = p[0] & 0x3f, bytes = at + 1 < n ? p[1] + 2u : 2;
        if (at + bytes > n) {
            scsi_end(c, SENSE_LIST_LENGTH);
            return;
        }
        if (scsi_mode_page(u, now, page, false) != bytes || (p[0] & 0x40)) {
            scsi_end(c, SENSE_BAD_PARAMETER);
            return;
        }
        scsi_mode_page(u, mask, page, true);
        for (unsigned i = 2; i < bytes; i++)
            if ((p[i] ^ now[i]) & ~mask[i]) {
                scsi_end(c, SENSE_BAD_PARAMETER);
                return;
            }
        if (page == 0x08)
            write_through = !(p[2] & 0x04);
        at += bytes;
    }
    bool flush = write_through && !u->write_through;
    u->write_through = write_through;
    if (flush) /* what was written so far is to be durable now */
        scsi_submit(c, HVX_BLK_FLUSH, 0, 0, 0, scsi_simple_done);
    else
        scsi_end(c, SENSE_NONE);
}

/* --- dispatch ----------------------------------------------------------------------------------- */
void scsi_start(struct scsi_cmd *c)
{
    struct scsi_unit *u = c->unit;
    uint8_t op = c->cdb[0];
    c->n_ranges = c->range = 0;
    c->done_bytes = 0;
    c->overrun = c->aborted = c->then_flush = false;
    c->same_left = 0;
    c->lba = UINT64_MAX;
    c->verify = NULL;
    /* These pass by a unit attention, and the first three need no unit (SAM-5 5.14). */
    switch (op) {
    case 0x12: inquiry(c); return;
    case 0xa0: report_luns(c); return;
    case 0x03: request_sense(c); return;
    }
    if (!u) {
        scsi_end(c, SENSE_BAD_UNIT);
        return;
    }
    if (u->attention && op != 0x4a) {
        uint32_t sense = u->attention;
        u->attention = 0;
        scsi_end(c, sense);
        return;
    }
    switch (op) {
    case 0x15: mode_select(c, false); return;
    case 0x1a: mode_sense(c, false); return;
    case 0x55: mode_select(c, true); return;
    case 0x5a: mode_sense(c, true); return;
    default:
        if (u->cdrom)
            scsi_cd_command(c);
        else
            scsi_disk_command(c);
    }
}
