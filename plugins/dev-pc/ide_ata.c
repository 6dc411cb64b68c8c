/* SPDX-License-Identifier: Apache-2.0
 *
 * ide_ata.c - disk commands.
 *
 * Commands and IDENTIFY DEVICE: ATA/ATAPI-7 volume 1, chapter 6.
 */
#include "ide.h"

#include <string.h>

#define LBA28_MAX 0x0fffffffull
#define DEV_LBA 0x40u
#define FIRMWARE "1.0"

static void put16(uint8_t *id, unsigned word, uint32_t v)
{
    id[2 * word] = (uint8_t)v;
    id[2 * word + 1] = (uint8_t)(v >> 8);
}

/* Text in IDENTIFY words has its bytes swapped and is padded with spaces. */
void ata_identify_text(uint8_t *at, const char *s, unsigned n)
{
    size_t len = strnlen(s, n);
    for (unsigned i = 0; i < n; i++)
        at[i ^ 1] = (uint8_t)(i < len ? s[i] : ' ');
}

static void identify(struct ide_drive *d, uint8_t *id)
{
    uint64_t lba28 = d->sectors < LBA28_MAX ? d->sectors : LBA28_MAX;
    uint32_t chs = d->cylinders * d->cur_heads * d->cur_spt;
    memset(id, 0, IDE_SECTOR);
    put16(id, 0, 0x0040);
    put16(id, 1, d->cylinders);
    put16(id, 3, d->heads);
    put16(id, 4, IDE_SECTOR * d->spt);
    put16(id, 5, IDE_SECTOR);
    put16(id, 6, d->spt);
    ata_identify_text(id + 20, d->serial, 20);
    put16(id, 20, 3);
    put16(id, 21, 512);
    put16(id, 22, 4);
    ata_identify_text(id + 46, FIRMWARE, 8);
    ata_identify_text(id + 54, "HVX HARDDISK", 40);
    put16(id, 47, 0x8000 | IDE_MAX_MULTIPLE);
    put16(id, 48, 1);
    put16(id, 49, 0x0b00); /* IORDY, LBA, DMA */
    put16(id, 51, 0x0200);
    put16(id, 52, 0x0200);
    put16(id, 53, 0x0007);
    put16(id, 54, d->cylinders);
    put16(id, 55, d->cur_heads);
    put16(id, 56, d->cur_spt);
    put16(id, 57, chs);
    put16(id, 58, chs >> 16);
    if (d->multiple)
        put16(id, 59, 0x0100u | d->multiple);
    put16(id, 60, (uint32_t)lba28);
    put16(id, 61, (uint32_t)(lba28 >> 16));
    put16(id, 63, 0x07u | (uint32_t)d->mwdma << 8);
    put16(id, 64, 0x03);
    for (unsigned w = 65; w <= 68; w++)
        put16(id, w, 120);
    put16(id, 80, 0x00f0); /* ATA-4 to ATA-7 */
    put16(id, 81, 0x0016);
    put16(id, 82, 1u << 14 | 1u << 5 | 1u); /* NOP, write cache, SMART */
    put16(id, 83, 1u << 14 | 1u << 13 | 1u << 12 | 1u << 10); /* flush, flush ext, 48 bit */
    put16(id, 84, 1u << 14 | 1u << 6); /* FUA */
    put16(id, 85, 1u << 14 | (d->write_cache ? 1u << 5 : 0) | 1u);
    put16(id, 86, 1u << 13 | 1u << 12 | 1u << 10);
    put16(id, 87, 1u << 14 | 1u << 6);
    put16(id, 88, 0x3fu | (uint32_t)d->udma << 8);
    put16(id, 93, 0x6001);
    for (unsigned i = 0; i < 4; i++)
        put16(id, 100 + i, (uint32_t)(d->sectors >> (16 * i)));
}

void ata_signature(struct ide_drive *d)
{
    d->nsector = 1;
    d->lba_low = 1;
    d->lba_mid = d->cdrom ? 0x14 : 0;
    d->lba_high = d->cdrom ? 0xeb : 0;
    d->device &= 0x10;
}

/* --- addresses ------------------------------------------------------------------------ */
static bool get_address(struct ide_drive *d, bool ext)
{
    uint64_t lba;
    uint32_t n = d->nsector;
    if (ext) {
        lba = (uint64_t)d->hob_lba_high << 40 | (uint64_t)d->hob_lba_mid << 32 | (uint64_t)d->hob_lba_low << 24 |
              (uint64_t)d->lba_high << 16 | (uint64_t)d->lba_mid << 8 | d->lba_low;
        n |= (uint32_t)d->hob_nsector << 8;
        n = n ? n : 65536;
    } else {
        n = n ? n : 256;
        if (d->device & DEV_LBA) {
            lba = (uint64_t)(d->device & 15) << 24 | (uint64_t)d->lba_high << 16 | (uint64_t)d->lba_mid << 8 |
                  d->lba_low;
        } else {
            uint64_t cylinder = (uint64_t)d->lba_high << 8 | d->lba_mid;
            if (!d->lba_low || d->lba_low > d->cur_spt || (uint32_t)(d->device & 15) >= d->cur_heads)
                return false;
            lba = (cylinder * d->cur_heads + (d->device & 15)) * d->cur_spt + d->lba_low - 1;
        }
    }
    if (lba >= d->sectors || n > d->sectors - lba)
        return false;
    d->ext = ext;
    d->lba = lba;
    d->left = n;
    return true;
}

/* Show the guest where an error happened, or where the command ended. */
static void set_address(struct ide_drive *d)
{
    if (d->ext) {
        d->lba_low = (uint8_t)d->lba;
        d->lba_mid = (uint8_t)(d->lba >> 8);
        d->lba_high = (uint8_t)(d->lba >> 16);
        d->hob_lba_low = (uint8_t)(d->lba >> 24);
        d->hob_lba_mid = (uint8_t)(d->lba >> 32);
        d->hob_lba_high = (uint8_t)(d->lba >> 40);
    } else if (d->device & DEV_LBA) {
        d->lba_low = (uint8_t)d->lba;
        d->lba_mid = (uint8_t)(d->lba >> 8);
        d->lba_high = (uint8_t)(d->lba >> 16);
        d->device = (uint8_t)((d->device & 0xf0) | (d->lba >> 24 & 15));
    } else if (d->cur_heads && d->cur_spt) {
        uint64_t track = d->lba / d->cur_spt, cylinder = track / d->cur_heads;
        d->lba_low = (uint8_t)(d->lba % d->cur_spt + 1);
        d->device = (uint8_t)((d->device & 0xf0) | (track % d->cur_heads & 15));
        d->lba_mid = (uint8_t)cylinder;
        d->lba_high = (uint8_t)(cylinder >> 8);
    }
}

static void io_failed(struct ide_drive *d, bool dma)
{
    set_address(d);
    if (dma)
        ide_dma_end(d, true);
    ide_done(d, ST_READY | ST_ERR, dma ? ER_UNC | ER_ABRT : ER_UNC);
}

static void advance(struct ide_drive *d, uint32_t bytes)
{
    d->lba += bytes / IDE_SECTOR;
    d->left -= bytes / IDE_SECTOR;
}

static uint32_t chunk_bytes(const struct ide_drive *d)
{
    return (d->left < IDE_CHUNK_SECTORS ? d->left : IDE_CHUNK_SECTORS) * IDE_SECTOR;
}

/* --- reading by PIO: chunk into the buffer, then block after block to the guest ------------ */
static void pio_in_block(struct ide_drive *d)
{
    uint32_t rest = d->filled - d->pos;
    ide_show_block(d, rest < d->block ? rest : d->block);
    ide_raise(d);
}

static void pio_in_ready(struct ide_drive *d, int result)
{
    if (result) {
        io_failed(d, false);
        return;
    }
    d->pos = 0;
    pio_in_block(d);
}

static void pio_in_chunk(struct ide_drive *d)
{
    d->filled = chunk_bytes(d);
    ide_submit(d, HVX_BLK_READ, d->filled, pio_in_ready);
}

static void pio_in_done(struct ide_drive *d)
{
    if (d->pos < d->filled) {
        pio_in_block(d);
        return;
    }
    if (d->left)
        advance(d, d->filled);
    if (d->left) {
        pio_in_chunk(d);
        return;
    }
    d->phase = IDE_IDLE;
    d->status = ST_OK; /* no interrupt after the last block of a read */
}

/* --- writing by PIO: each block goes to the disk before the next is asked for ---------------- */
static void pio_out_block(struct ide_drive *d)
{
    uint32_t rest = d->left * IDE_SECTOR;
    d->pos = 0;
    ide_show_block(d, d->left < d->block / IDE_SECTOR ? rest : d->block);
}

static void pio_out_written(struct ide_drive *d, int result)
{
    if (result) {
        io_failed(d, false);
        return;
    }
    advance(d, d->end);
    if (d->left) {
        pio_out_block(d);
        ide_raise(d);
    } else {
        ide_done(d, ST_OK, 0);
    }
}

void ata_block_done(struct ide_drive *d)
{
    if (d->phase == IDE_PIO_IN)
        pio_in_done(d);
    else
        ide_submit(d, HVX_BLK_WRITE, d->end, pio_out_written);
}

/* --- DMA -------------------------------------------------------------------------------------- */
static void dma_next(struct ide_drive *d)
{
    if (d->left) {
        d->status = ST_OK | ST_DRQ;
        ata_dma_run(d);
        return;
    }
    ide_dma_end(d, false);
    ide_done(d, ST_OK, 0);
}

static void dma_in_ready(struct ide_drive *d, int result)
{
    if (result || ide_dma_stopped(d)) { /* stopped: the memory may be somebody else's by now */
        io_failed(d, true);
        return;
    }
    int rc = ide_dma_copy(d, d->filled, true);
    if (rc <= 0) { /* no memory there, or too few descriptors */
        io_failed(d, true);
        return;
    }
    advance(d, d->filled);
    dma_next(d);
}

static void dma_out_written(struct ide_drive *d, int result)
{
    if (result || (d->left > d->filled / IDE_SECTOR && ide_dma_stopped(d))) {
        io_failed(d, true);
        return;
    }
    advance(d, d->filled);
    dma_next(d);
}

void ata_dma_run(struct ide_drive *d)
{
    d->filled = chunk_bytes(d);
    if (d->phase == IDE_DMA_IN) {
        ide_submit(d, HVX_BLK_READ, d->filled, dma_in_ready);
    } else if (ide_dma_copy(d, d->filled, false) <= 0) {
        io_failed(d, true);
    } else {
        ide_submit(d, HVX_BLK_WRITE, d->filled, dma_out_written);
    }
}

/* --- commands --------------------------------------------------------------------------------- */
enum { RW_WRITE = 1, RW_EXT = 2, RW_DMA = 4, RW_MULTIPLE = 8, RW_FUA = 16 };

static void read_write(struct ide_drive *d, unsigned how)
{
    bool write = how & RW_WRITE;
    if ((write && d->read_only) || ((how & RW_MULTIPLE) && !d->multiple)) {
        ide_abort(d);
        return;
    }
    if (!get_address(d, how & RW_EXT)) {
        ide_done(d, ST_READY | ST_ERR, ER_IDNF);
        return;
    }
    d->fua = how & RW_FUA;
    d->error = 0;
    d->block = how & RW_MULTIPLE ? d->multiple * IDE_SECTOR : IDE_SECTOR;
    if (how & RW_DMA) {
        ide_dma_begin(d, write ? IDE_DMA_OUT : IDE_DMA_IN);
    } else if (write) {
        d->phase = IDE_PIO_OUT;
        pio_out_block(d); /* the first block is asked for without an interrupt */
    } else {
        d->phase = IDE_PIO_IN;
        pio_in_chunk(d);
    }
}

/* One sector from the buffer to the guest. */
static void send_sector(struct ide_drive *d)
{
    d->phase = IDE_PIO_IN;
    d->error = 0;
    d->left = 0;
    d->block = IDE_SECTOR;
    d->pos = 0;
    d->filled = IDE_SECTOR;
    pio_in_block(d);
}

static void flushed(struct ide_drive *d, int result)
{
    if (result)
        ide_done(d, ST_READY | ST_ERR, ER_ABRT);
    else
        ide_done(d, ST_OK, 0);
}

static void native_max(struct ide_drive *d, bool ext)
{
    d->ext = ext;
    d->lba = d->sectors ? d->sectors - 1 : 0;
    if (!ext && d->lba > LBA28_MAX)
        d->lba = LBA28_MAX;
    d->device |= DEV_LBA;
    set_address(d);
    d->lba = 0;
    ide_done(d, ST_OK, 0);
}

void ata_set_features(struct ide_drive *d)
{
    uint8_t mode = d->nsector & 7;
    switch (d->feature) {
    case 0x02: d->write_cache = true; break;
    case 0x82: d->write_cache = false; break;
    case 0x03: /* transfer mode in the sector count */
        switch (d->nsector >> 3) {
        case 0: case 1: d->mwdma = d->udma = 0; break;
        case 4: d->mwdma = (uint8_t)(1u << mode); d->udma = 0; break;
        case 8: d->udma = (uint8_t)(1u << mode); d->mwdma = 0; break;
        default: ide_abort(d); return;
        }
        break;
    case 0x05: case 0x85: /* power management */
    case 0x42: case 0xc2: /* acoustic management */
    case 0x55: case 0xaa: /* read look-ahead */
    case 0x66: case 0xcc: /* defaults at reset */
        break;
    default:
        ide_abort(d);
        return;
    }
    ide_done(d, ST_OK, 0);
}

#define SMART_READ_DATA 0xd0u
#define SMART_READ_THRESHOLDS 0xd1u
#define SMART_AUTOSAVE 0xd2u
#define SMART_ENABLE 0xd8u
#define SMART_DISABLE 0xd9u
#define SMART_STATUS 0xdau

static void smart(struct ide_drive *d)
{
    if (d->lba_mid != 0x4f || d->lba_high != 0xc2) {
        ide_abort(d);
        return;
    }
    switch (d->feature) {
    case SMART_READ_DATA:
    case SMART_READ_THRESHOLDS: {
        uint8_t sum = 1; /* no attributes: version, then the checksum */
        memset(d->buf, 0, IDE_SECTOR);
        d->buf[0] = 1;
        d->buf[511] = (uint8_t)-sum;
        send_sector(d);
        break;
    }
    case SMART_STATUS: /* the signature unchanged: healthy */
    case SMART_AUTOSAVE:
    case SMART_ENABLE:
    case SMART_DISABLE:
        ide_done(d, ST_OK, 0);
        break;
    default:
        ide_abort(d);
    }
}

static void verify(struct ide_drive *d, bool ext)
{
    if (!get_address(d, ext))
        ide_done(d, ST_READY | ST_ERR, ER_IDNF);
    else
        ide_done(d, ST_OK, 0);
}

static void diagnostics(struct ide_drive *d)
{
    for (unsigned i = 0; i < 2; i++) {
        struct ide_drive *one = d->ch->drive[i];
        if (one->busy || !one->blk)
            continue;
        ata_signature(one);
        one->error = 1;
        one->status = one->cdrom ? 0 : ST_OK;
    }
    ide_raise(d);
}

/* Commands that both kinds of drive know; false when it is none of them. */
static bool common_command(struct ide_drive *d, uint8_t command)
{
    switch (command) {
    case 0x90:
        diagnostics(d);
        return true;
    case 0xe0: case 0xe1: case 0xe2: case 0xe3: case 0xe6: /* standby, idle, sleep */
    case 0x94: case 0x95: case 0x96: case 0x97: case 0x99:
        ide_done(d, ST_OK, 0);
        return true;
    case 0xe5: case 0x98: /* check power mode: active */
        d->nsector = 0xff;
        ide_done(d, ST_OK, 0);
        return true;
    case 0xef:
        ata_set_features(d);
        return true;
    default:
        return false;
    }
}

static void cdrom_command(struct ide_drive *d, uint8_t command)
{
    switch (command) {
    case 0xa0:
        atapi_packet(d);
        break;
    case 0xa1:
        atapi_identify(d, d->buf);
        send_sector(d);
        break;
    case 0xec: case 0x20: /* these answer with the signature, so that the drive is recognised */
        ata_signature(d);
        ide_abort(d);
        break;
    default:
        ide_abort(d);
    }
}

static void disk_command(struct ide_drive *d, uint8_t command)
{
    switch (command) {
    case 0x20: case 0x21: read_write(d, 0); break;
    case 0x24: read_write(d, RW_EXT); break;
    case 0x25: read_write(d, RW_EXT | RW_DMA); break;
    case 0x29: read_write(d, RW_EXT | RW_MULTIPLE); break;
    case 0x30: case 0x31: case 0x3c: read_write(d, RW_WRITE); break;
    case 0x34: read_write(d, RW_WRITE | RW_EXT); break;
    case 0x35: read_write(d, RW_WRITE | RW_EXT | RW_DMA); break;
    case 0x39: read_write(d, RW_WRITE | RW_EXT | RW_MULTIPLE); break;
    case 0x3d: read_write(d, RW_WRITE | RW_EXT | RW_DMA | RW_FUA); break;
    case 0xce: read_write(d, RW_WRITE | RW_EXT | RW_MULTIPLE | RW_FUA); break;
    case 0xc4: read_write(d, RW_MULTIPLE); break;
    case 0xc5: read_write(d, RW_WRITE | RW_MULTIPLE); break;
    case 0xc8: case 0xc9: read_write(d, RW_DMA); break;
    case 0xca: case 0xcb: read_write(d, RW_WRITE | RW_DMA); break;
    case 0x27: native_max(d, true); break;
    case 0xf8: native_max(d, false); break;
    case 0x40: case 0x41: verify(d, false); break;
    case 0x42: verify(d, true); break;
    case 0x70: ide_done(d, ST_OK, 0); break; /* seek */
    case 0x91: /* initialize device parameters */
        d->cur_heads = (d->device & 15u) + 1;
        d->cur_spt = d->nsector ? d->nsector : d->spt;
        ide_done(d, ST_OK, 0);
        break;
    case 0xb0: smart(d); break;
    case 0xc6: /* set multiple mode: a power of two */
        if (d->nsector > IDE_MAX_MULTIPLE || (d->nsector & (d->nsector - 1))) {
            ide_abort(d);
        } else {
            d->multiple = d->nsector;
            ide_done(d, ST_OK, 0);
        }
        break;
    case 0xe7: case 0xea:
        ide_submit(d, HVX_BLK_FLUSH, 0, flushed);
        break;
    case 0xec:
        identify(d, d->buf);
        send_sector(d);
        break;
    default:
        if ((command & 0xf0) == 0x10) /* recalibrate */
            ide_done(d, ST_OK, 0);
        else
            ide_abort(d);
    }
}

void ata_command(struct ide_drive *d, uint8_t command)
{
    d->packet = false;
    if (common_command(d, command))
        return;
    if (d->cdrom)
        cdrom_command(d, command);
    else
        disk_command(d, command);
}
