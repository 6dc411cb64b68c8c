/* SPDX-License-Identifier: Apache-2.0
 *
 * ide_atapi.c - the CD-ROM's packet commands.
 *
 * Commands: MMC-5 (T10/1675D), chapter 6; SPC-3 for INQUIRY, sense data and
 * mode pages; the packet protocol: ATA/ATAPI-7 volume 2, 9.8.
 */
#include "ide.h"

#include <string.h>

#define SENSE_NOT_READY 0x02u
#define SENSE_MEDIUM 0x03u
#define SENSE_ILLEGAL 0x05u
#define SENSE_ATTENTION 0x06u
#define ASC_READ_ERROR 0x11u
#define ASC_BAD_OPCODE 0x20u
#define ASC_BAD_LBA 0x21u
#define ASC_BAD_FIELD 0x24u
#define ASC_CHANGED 0x28u
#define ASC_NO_MEDIUM 0x3au
#define ASC_LOCKED 0x53u

static uint16_t be16_get(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static uint32_t be32_get(const uint8_t *p) { return (uint32_t)be16_get(p) << 16 | be16_get(p + 2); }
static void be16_put(uint8_t *p, uint32_t v) { p[0] = (uint8_t)(v >> 8), p[1] = (uint8_t)v; }
static void be32_put(uint8_t *p, uint32_t v) { be16_put(p, v >> 16), be16_put(p + 2, v); }

void atapi_identify(struct ide_drive *d, uint8_t *id)
{
    static const struct {
        uint8_t word;
        uint16_t value;
    } words[] = {{0, 0x85c0},  {20, 3},      {21, 512},    {22, 4},     {48, 1},      {49, 0x0b00}, {53, 0x0007},
                 {64, 0x0001}, {65, 0x00b4}, {66, 0x00b4}, {67, 0x012c}, {68, 0x00b4}, {71, 30},     {72, 30},
                 {80, 0x001e}, {82, 0x0210}, {85, 0x0210}, {87, 0x4000}};
    memset(id, 0, IDE_SECTOR);
    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        id[2 * words[i].word] = (uint8_t)words[i].value;
        id[2 * words[i].word + 1] = (uint8_t)(words[i].value >> 8);
    }
    ata_identify_text(id + 20, d->serial, 20);
    ata_identify_text(id + 46, "1.0", 8);
    ata_identify_text(id + 54, "HVX DVD-ROM", 40);
    id[2 * 63] = 0x07;
    id[2 * 63 + 1] = d->mwdma;
    id[2 * 88] = 0x3f;
    id[2 * 88 + 1] = d->udma;
}

/* --- ends --------------------------------------------------------------------------------- */
static void packet_ok(struct ide_drive *d)
{
    d->sense_key = d->asc = d->ascq = 0;
    d->nsector = IR_COMMAND | IR_TO_HOST;
    ide_done(d, ST_OK, 0);
}

static void packet_error(struct ide_drive *d, uint8_t key, uint8_t asc)
{
    d->sense_key = key;
    d->asc = asc;
    d->ascq = 0;
    d->nsector = IR_COMMAND | IR_TO_HOST;
    ide_done(d, ST_READY | ST_ERR, (uint8_t)(key << 4));
}

/* --- data to the guest: what is in the buffer, then the rest of the disc blocks -------------- */
static void show_block(struct ide_drive *d)
{
    uint32_t rest = d->filled - d->pos;
    uint32_t n = rest < d->block ? rest : d->block;
    d->phase = IDE_PIO_IN;
    d->nsector = IR_TO_HOST;
    d->lba_mid = (uint8_t)n;
    d->lba_high = (uint8_t)(n >> 8);
    ide_show_block(d, n);
    ide_raise(d);
}

static void chunk_read(struct ide_drive *d, int result);

static void next_chunk(struct ide_drive *d)
{
    uint32_t n = d->left < IDE_CHUNK_SECTORS ? d->left : IDE_CHUNK_SECTORS;
    d->filled = n * IDE_SECTOR;
    ide_submit(d, HVX_BLK_READ, d->filled, chunk_read);
}

static void dma_send(struct ide_drive *d)
{
    int rc = ide_dma_copy(d, d->filled, true);
    if (rc <= 0) {
        ide_dma_end(d, true);
        packet_error(d, SENSE_MEDIUM, ASC_READ_ERROR);
    } else if (d->left) {
        next_chunk(d);
    } else {
        ide_dma_end(d, false);
        packet_ok(d);
    }
}

static void chunk_read(struct ide_drive *d, int result)
{
    if (result || (d->packet_dma && ide_dma_stopped(d))) {
        if (d->packet_dma)
            ide_dma_end(d, true);
        packet_error(d, SENSE_MEDIUM, ASC_READ_ERROR);
        return;
    }
    d->lba += d->filled / IDE_SECTOR;
    d->left -= d->filled / IDE_SECTOR;
    d->pos = 0;
    if (d->packet_dma)
        dma_send(d);
    else
        show_block(d);
}

void atapi_block_done(struct ide_drive *d)
{
    if (d->phase != IDE_PIO_IN)
        return;
    if (!d->packet) { /* a plain ATA answer: IDENTIFY PACKET DEVICE */
        d->phase = IDE_IDLE;
        d->status = ST_OK;
    } else if (d->pos < d->filled) {
        show_block(d);
    } else if (d->left) {
        next_chunk(d);
    } else {
        packet_ok(d);
    }
}

void atapi_dma_run(struct ide_drive *d)
{
    if (d->filled) /* a reply is in the buffer */
        dma_send(d);
    else
        next_chunk(d);
}

static void send_data(struct ide_drive *d)
{
    d->pos = 0;
    if (d->packet_dma)
        ide_dma_begin(d, IDE_DMA_IN);
    else if (d->filled)
        show_block(d);
    else
        next_chunk(d);
}

/* A reply of n bytes in the buffer, of which the guest wants at most `wanted`. */
static void reply(struct ide_drive *d, uint32_t n, uint32_t wanted)
{
    d->filled = n < wanted ? n : wanted;
    d->left = 0;
    if (!d->filled)
        packet_ok(d);
    else
        send_data(d);
}

/* --- commands ------------------------------------------------------------------------------------ */
static uint32_t disc_blocks(const struct ide_drive *d)
{
    uint64_t n = d->sectors / (CD_BLOCK / IDE_SECTOR);
    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

static void read_blocks(struct ide_drive *d, uint32_t block, uint32_t n)
{
    if (block > disc_blocks(d) || n > disc_blocks(d) - block) {
        packet_error(d, SENSE_ILLEGAL, ASC_BAD_LBA);
        return;
    }
    if (!n) {
        packet_ok(d);
        return;
    }
    d->lba = (uint64_t)block * (CD_BLOCK / IDE_SECTOR);
    /* A count that does not fit is more than any guest's buffer. */
    if (n > UINT32_MAX / CD_BLOCK) {
        packet_error(d, SENSE_ILLEGAL, ASC_BAD_FIELD);
        return;
    }
    d->left = n * (CD_BLOCK / IDE_SECTOR);
    d->filled = 0;
    send_data(d);
}

static void read_cd(struct ide_drive *d)
{
    uint32_t n = (uint32_t)d->cdb[6] << 16 | be16_get(d->cdb + 7);
    switch (d->cdb[9] & 0xf8) {
    case 0x00: packet_ok(d); break;
    case 0x10: read_blocks(d, be32_get(d->cdb + 2), n); break; /* user data */
    default: packet_error(d, SENSE_ILLEGAL, ASC_BAD_FIELD);
    }
}

static void request_sense(struct ide_drive *d)
{
    uint8_t *b = d->buf;
    memset(b, 0, 18);
    b[0] = 0xf0;
    b[2] = d->sense_key;
    b[7] = 10;
    b[12] = d->asc;
    b[13] = d->ascq;
    if (d->sense_key == SENSE_ATTENTION)
        d->unit_attention = false;
    reply(d, 18, d->cdb[4]);
}

static void inquiry(struct ide_drive *d)
{
    uint8_t *b = d->buf;
    memset(b, 0, 36);
    b[0] = 0x05; /* CD/DVD */
    b[1] = 0x80; /* removable */
    b[3] = 0x21; /* ATAPI, response format 1 */
    b[4] = 31;
    memcpy(b + 8, "HVX     ", 8);
    memcpy(b + 16, "DVD-ROM         ", 16);
    memcpy(b + 32, "1.0 ", 4);
    if (d->cdb[1] & 1)
        packet_error(d, SENSE_ILLEGAL, ASC_BAD_FIELD);
    else
        reply(d, 36, be16_get(d->cdb + 3));
}

static void read_capacity(struct ide_drive *d)
{
    be32_put(d->buf, disc_blocks(d) - 1);
    be32_put(d->buf + 4, CD_BLOCK);
    reply(d, 8, 8);
}

static void put_address(uint8_t *p, uint32_t block, bool msf)
{
    if (!msf) {
        be32_put(p, block);
        return;
    }
    block += 150; /* two seconds of lead-in */
    p[0] = 0;
    p[1] = (uint8_t)(block / 75 / 60);
    p[2] = (uint8_t)(block / 75 % 60);
    p[3] = (uint8_t)(block % 75);
}

/* One data track, and the lead-out. */
static void read_toc(struct ide_drive *d)
{
    uint8_t *b = d->buf, first = d->cdb[6];
    bool msf = d->cdb[1] & 2;
    unsigned format = d->cdb[2] & 0x0f, n = 4;
    if (!format)
        format = d->cdb[9] >> 6;
    memset(b, 0, 64);
    b[2] = b[3] = 1;
    if (format == 0) {
        if (first > 1 && first != 0xaa) {
            packet_error(d, SENSE_ILLEGAL, ASC_BAD_FIELD);
            return;
        }
        if (first <= 1) {
            b[n + 1] = 0x14; /* data track */
            b[n + 2] = 1;
            put_address(b + n + 4, 0, msf);
            n += 8;
        }
        b[n + 1] = 0x14;
        b[n + 2] = 0xaa;
        put_address(b + n + 4, disc_blocks(d), msf);
        n += 8;
    } else if (format == 1) { /* one session */
        b[n + 1] = 0x14;
        b[n + 2] = 1;
        put_address(b + n + 4, 0, msf);
        n += 8;
    } else {
        packet_error(d, SENSE_ILLEGAL, ASC_BAD_FIELD);
        return;
    }
    be16_put(b, n - 2);
    reply(d, n, be16_get(d->cdb + 7));
}

static void get_configuration(struct ide_drive *d)
{
    uint8_t *b = d->buf;
    uint16_t profile = disc_blocks(d) > 450000 ? 0x0010 : 0x0008; /* DVD-ROM or CD-ROM */
    memset(b, 0, 40);
    be16_put(b + 6, d->ejected ? 0 : profile);
    b[10] = 0x03; /* feature 0, profile list: persistent, current */
    b[11] = 8;
    be16_put(b + 12, 0x0010);
    b[14] = profile == 0x0010 && !d->ejected;
    be16_put(b + 16, 0x0008);
    b[18] = profile == 0x0008 && !d->ejected;
    be16_put(b + 20, 0x0001); /* core */
    b[22] = 0x0b;
    b[23] = 8;
    be32_put(b + 24, 2); /* ATAPI */
    b[28] = 1;
    be16_put(b + 32, 0x0003); /* removable medium */
    b[34] = 0x03;
    b[35] = 4;
    b[36] = 0x29;
    be32_put(b, 36);
    reply(d, 40, be16_get(d->cdb + 7));
}

static void event_status(struct ide_drive *d)
{
    uint8_t *b = d->buf;
    if (!(d->cdb[1] & 1)) { /* only polled operation */
        packet_error(d, SENSE_ILLEGAL, ASC_BAD_FIELD);
        return;
    }
    memset(b, 0, 8);
    b[3] = 0x10; /* media events are supported */
    if (d->cdb[4] & 0x10) {
        be16_put(b, 6);
        b[2] = 4;
        b[4] = d->unit_attention ? 2 : 0; /* new medium */
        b[5] = d->ejected ? 0x01 : 0x02;
        reply(d, 8, be16_get(d->cdb + 7));
    } else {
        be16_put(b, 2);
        b[2] = 0x80;
        reply(d, 4, be16_get(d->cdb + 7));
    }
}

/* Pages: 0x01 error recovery, 0x0e audio, 0x2a capabilities. */
static unsigned mode_page(struct ide_drive *d, uint8_t *b, unsigned page)
{
    if (page == 0x01) {
        memset(b, 0, 8);
        b[0] = 0x01;
        b[1] = 6;
        b[3] = 5;
        return 8;
    }
    if (page == 0x2a) {
        memset(b, 0, 20);
        b[0] = 0x2a;
        b[1] = 18;
        b[2] = 0x3b; /* reads CD-R, CD-RW, DVD */
        b[4] = 0x70;
        b[6] = (uint8_t)(0x29 | (d->locked ? 2 : 0)); /* tray, eject, lock */
        be16_put(b + 8, 706);
        be16_put(b + 12, 512);
        be16_put(b + 14, 706);
        return 20;
    }
    return 0;
}

static void mode_sense(struct ide_drive *d, bool ten)
{
    uint8_t *b = d->buf;
    unsigned page = d->cdb[2] & 0x3f, head = ten ? 8 : 4, n = head;
    memset(b, 0, head);
    if (page == 0x3f) {
        n += mode_page(d, b + n, 0x01);
        n += mode_page(d, b + n, 0x2a);
    } else {
        n += mode_page(d, b + n, page);
    }
    if (n == head || (d->cdb[2] >> 6) == 3) {
        packet_error(d, SENSE_ILLEGAL, ASC_BAD_FIELD);
        return;
    }
    if (ten) {
        be16_put(b, n - 2);
        b[2] = 0x70;
    } else {
        b[0] = (uint8_t)(n - 1);
        b[1] = 0x70;
    }
    reply(d, n, ten ? be16_get(d->cdb + 7) : d->cdb[4]);
}

static void start_stop(struct ide_drive *d)
{
    bool eject = d->cdb[4] & 2, start = d->cdb[4] & 1;
    if (eject && !start && d->locked) {
        packet_error(d, SENSE_ILLEGAL, ASC_LOCKED);
        return;
    }
    if (eject) {
        if (start && d->ejected)
            d->unit_attention = true;
        d->ejected = !start;
    }
    packet_ok(d);
}

static void read_disc_information(struct ide_drive *d)
{
    uint8_t *b = d->buf;
    memset(b, 0, 34);
    be16_put(b, 32);
    b[2] = 0x0e; /* complete, last session complete */
    b[3] = b[4] = b[5] = b[6] = 1;
    b[7] = 0x20; /* unrestricted use */
    reply(d, 34, be16_get(d->cdb + 7));
}

static void mechanism_status(struct ide_drive *d)
{
    memset(d->buf, 0, 8);
    d->buf[5] = 1;
    reply(d, 8, be16_get(d->cdb + 8));
}

/* Commands that need a disc, and those that an attention does not hold up. */
static bool needs_medium(uint8_t op)
{
    switch (op) {
    case 0x00: case 0x25: case 0x28: case 0x2b: case 0x43: case 0x51: case 0xa8: case 0xad: case 0xbe:
        return true;
    default:
        return false;
    }
}

static bool passes_attention(uint8_t op)
{
    return op == 0x03 || op == 0x12 || op == 0x46 || op == 0x4a;
}

void atapi_cdb(struct ide_drive *d)
{
    const uint8_t *c = d->cdb;
    d->status = ST_BSY;
    d->error = 0;
    d->left = d->filled = 0;
    if (d->unit_attention && !passes_attention(c[0])) {
        d->unit_attention = false;
        packet_error(d, SENSE_ATTENTION, ASC_CHANGED);
        return;
    }
    if (needs_medium(c[0]) && (d->ejected || !disc_blocks(d))) {
        packet_error(d, SENSE_NOT_READY, ASC_NO_MEDIUM);
        return;
    }
    switch (c[0]) {
    case 0x00: packet_ok(d); break;
    case 0x03: request_sense(d); break;
    case 0x12: inquiry(d); break;
    case 0x1a: mode_sense(d, false); break;
    case 0x1b: start_stop(d); break;
    case 0x1e:
        d->locked = c[4] & 1;
        packet_ok(d);
        break;
    case 0x25: read_capacity(d); break;
    case 0x28: read_blocks(d, be32_get(c + 2), be16_get(c + 7)); break;
    case 0x2b: packet_ok(d); break;
    case 0x43: read_toc(d); break;
    case 0x46: get_configuration(d); break;
    case 0x4a: event_status(d); break;
    case 0x51: read_disc_information(d); break;
    case 0x5a: mode_sense(d, true); break;
    case 0xa8: read_blocks(d, be32_get(c + 2), be32_get(c + 6)); break;
    case 0xbb: packet_ok(d); break; /* set speed */
    case 0xbd: mechanism_status(d); break;
    case 0xbe: read_cd(d); break;
    default: packet_error(d, SENSE_ILLEGAL, ASC_BAD_OPCODE);
    }
}

void atapi_packet(struct ide_drive *d)
{
    uint32_t limit = (uint32_t)d->lba_high << 8 | d->lba_mid;
    if (d->feature & 2) { /* overlapped: not supported */
        ide_abort(d);
        return;
    }
    d->packet = true;
    d->packet_dma = d->feature & 1;
    d->block = limit < 2 ? 0xfffe : limit & ~1u;
    d->phase = IDE_CDB_OUT;
    d->nsector = IR_COMMAND;
    d->pos = 0;
    ide_show_block(d, IDE_CDB_BYTES);
}
