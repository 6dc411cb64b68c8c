/* SPDX-License-Identifier: Apache-2.0
 *
 * scsi-cd.c - commands of CD-ROM drives (MMC-5, chapter 6): one data track.
 */
#include "scsi.h"

#include <string.h>

#define LEAD_IN 150u /* frames before block 0 */
#define CD_BLOCKS_MAX 450000u /* more than a CD holds: a DVD */

static uint32_t blocks(const struct scsi_cmd *c)
{
    return c->unit->blocks < UINT32_MAX ? (uint32_t)c->unit->blocks : UINT32_MAX;
}

unsigned scsi_cd_mode_page(const struct scsi_unit *u, uint8_t *p, unsigned page, bool changeable)
{
    unsigned n = page == 0x01 ? 12 : page == 0x2a ? 20 : 0;
    if (!n)
        return 0;
    memset(p, 0, n);
    p[0] = (uint8_t)page;
    p[1] = (uint8_t)(n - 2);
    if (changeable)
        return n;
    if (page == 0x01) {
        p[3] = 5; /* retries */
    } else {
        p[2] = 0x3b; /* reads CD-R, CD-RW, DVD */
        p[4] = 0x70;
        p[6] = (uint8_t)(0x29 | (u->locked ? 2 : 0)); /* tray, eject, lock */
        be16_put(p + 8, 706);
        be16_put(p + 12, 512);
        be16_put(p + 14, 706);
    }
    return n;
}

static void put_address(uint8_t *p, uint32_t block, bool msf)
{
    if (!msf) {
        be32_put(p, block);
        return;
    }
    block += LEAD_IN;
    p[0] = 0;
    p[1] = (uint8_t)(block / 75 / 60);
    p[2] = (uint8_t)(block / 75 % 60);
    p[3] = (uint8_t)(block % 75);
}

static void track(uint8_t *p, uint8_t number, uint32_t block, bool msf)
{
    memset(p, 0, 8);
    p[1] = 0x14; /* data */
    p[2] = number;
    put_address(p + 4, block, msf);
}

/* READ TOC/PMA/ATIP, 6.26. */
static void read_toc(struct scsi_cmd *c)
{
    uint8_t *b = c->buf, first = c->cdb[6];
    bool msf = c->cdb[1] & 2;
    unsigned format = c->cdb[2] & 0x0f, n = 4;
    if (!format)
        format = c->cdb[9] >> 6;
    if (format > 1 || (format == 0 && first > 1 && first != 0xaa)) {
        scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    if (format == 1 || first <= 1) {
        track(b + n, 1, 0, msf);
        n += 8;
    }
    if (format == 0) {
        track(b + n, 0xaa, blocks(c), msf);
        n += 8;
    }
    be16_put(b, n - 2);
    b[2] = b[3] = 1;
    scsi_reply(c, n, be16_get(c->cdb + 7));
}

/* GET CONFIGURATION, 6.6: profiles, core, removable medium. */
static void get_configuration(struct scsi_cmd *c)
{
    uint8_t *b = c->buf;
    bool dvd = blocks(c) > CD_BLOCKS_MAX, there = !c->unit->ejected;
    memset(b, 0, 40);
    be32_put(b, 36);
    be16_put(b + 6, !there ? 0 : dvd ? 0x0010 : 0x0008);
    b[10] = 0x03;
    b[11] = 8;
    be16_put(b + 12, 0x0010);
    b[14] = there && dvd;
    be16_put(b + 16, 0x0008);
    b[18] = there && !dvd;
    be16_put(b + 20, 0x0001);
    b[22] = 0x0b;
    b[23] = 8;
    be32_put(b + 24, 1); /* SCSI */
    b[28] = 1;
    be16_put(b + 32, 0x0003);
    b[34] = 0x03;
    b[35] = 4;
    b[36] = 0x29; /* tray, eject, lock */
    scsi_reply(c, 40, be16_get(c->cdb + 7));
}

/* GET EVENT STATUS NOTIFICATION, 6.7: polled, of the medium. */
static void event_status(struct scsi_cmd *c)
{
    uint8_t *b = c->buf;
    if (!(c->cdb[1] & 1)) {
        scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    memset(b, 0, 8);
    b[3] = 0x10;
    if (!(c->cdb[4] & 0x10)) {
        be16_put(b, 2);
        b[2] = 0x80; /* no such class */
        scsi_reply(c, 4, be16_get(c->cdb + 7));
        return;
    }
    be16_put(b, 6);
    b[2] = 4;
    b[4] = c->unit->medium_event ? 2 : 0;
    b[5] = c->unit->ejected ? 0x01 : 0x02;
    c->unit->medium_event = false;
    scsi_reply(c, 8, be16_get(c->cdb + 7));
}

static void start_stop(struct scsi_cmd *c)
{
    struct scsi_unit *u = c->unit;
    bool eject = c->cdb[4] & 2, start = c->cdb[4] & 1;
    if (eject && !start && u->locked) {
        scsi_end(c, SENSE_LOCKED);
        return;
    }
    if (eject) {
        if (start && u->ejected) {
            u->attention = SENSE_MEDIUM_CHANGED;
            u->medium_event = true;
        }
        u->ejected = !start;
    }
    scsi_end(c, SENSE_NONE);
}

static void disc_information(struct scsi_cmd *c)
{
    uint8_t *b = c->buf;
    if (c->cdb[1] & 7) {
        scsi_end(c, SENSE_BAD_FIELD);
        return;
    }
    memset(b, 0, 34);
    be16_put(b, 32);
    b[2] = 0x0e; /* complete, last session complete */
    b[3] = b[4] = b[5] = b[6] = 1;
    b[7] = 0x20;
    scsi_reply(c, 34, be16_get(c->cdb + 7));
}

static void mechanism_status(struct scsi_cmd *c)
{
    memset(c->buf, 0, 8);
    c->buf[1] = c->unit->ejected ? 0x10 : 0;
    c->buf[5] = 1;
    scsi_reply(c, 8, be16_get(c->cdb + 8));
}

static void read_capacity(struct scsi_cmd *c)
{
    be32_put(c->buf, blocks(c) - 1);
    be32_put(c->buf + 4, c->unit->block);
    scsi_reply(c, 8, 8);
}

static void read_cd(struct scsi_cmd *c)
{
    uint32_t n = (uint32_t)c->cdb[6] << 16 | be16_get(c->cdb + 7);
    switch (c->cdb[9] & 0xf8) {
    case 0x00: scsi_end(c, SENSE_NONE); break;
    case 0x10: scsi_read_blocks(c, be32_get(c->cdb + 2), n); break; /* user data */
    default: scsi_end(c, SENSE_BAD_FIELD);
    }
}

static bool needs_medium(uint8_t op)
{
    switch (op) {
    case 0x00: case 0x08: case 0x25: case 0x28: case 0x2b: case 0x43: case 0x51: case 0x88: case 0xa8: case 0xbe:
        return true;
    default:
        return false;
    }
}

void scsi_cd_command(struct scsi_cmd *c)
{
    const uint8_t *d = c->cdb;
    if (needs_medium(d[0]) && (c->unit->ejected || !blocks(c))) {
        scsi_end(c, SENSE_NO_MEDIUM);
        return;
    }
    switch (d[0]) {
    case 0x00: scsi_end(c, SENSE_NONE); break;
    case 0x08: scsi_read_blocks(c, (uint32_t)(d[1] & 0x1f) << 16 | be16_get(d + 2), d[4] ? d[4] : 256); break;
    case 0x1b: start_stop(c); break;
    case 0x1e:
        c->unit->locked = d[4] & 1;
        scsi_end(c, SENSE_NONE);
        break;
    case 0x25: read_capacity(c); break;
    case 0x28: scsi_read_blocks(c, be32_get(d + 2), be16_get(d + 7)); break;
    case 0x2b: scsi_end(c, SENSE_NONE); break; /* seek */
    case 0x35: scsi_end(c, SENSE_NONE); break; /* nothing is cached */
    case 0x43: read_toc(c); break;
    case 0x46: get_configuration(c); break;
    case 0x4a: event_status(c); break;
    case 0x51: disc_information(c); break;
    case 0x88: scsi_read_blocks(c, be64_get(d + 2), be32_get(d + 10)); break;
    case 0xa8: scsi_read_blocks(c, be32_get(d + 2), be32_get(d + 6)); break;
    case 0xbb: scsi_end(c, SENSE_NONE); break; /* speed */
    case 0xbd: mechanism_status(c); break;
    case 0xbe: read_cd(c); break;
    default: scsi_end(c, SENSE_BAD_OPCODE);
    }
}
