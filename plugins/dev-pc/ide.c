/* SPDX-License-Identifier: Apache-2.0
 *
 * ide.c - the IDE controller of the 82371SB: two channels at the legacy
 * ports, each with a bus master, and the registers that all drives share.
 *
 * Registers: ATA/ATAPI-7 volume 2, chapters 5 and 9; bus master: "Programming
 * Interface for Bus Master IDE Controller", revision 1.0.
 */
#include "ide.h"

#include <stdlib.h>
#include <string.h>

#define CTL_NIEN 0x02u
#define CTL_SRST 0x04u
#define DEV_SLAVE 0x10u
#define BM_START 0x01u
#define BM_ACTIVE 0x01u
#define BM_ERROR 0x02u
#define BM_INTR 0x04u
#define BM_DRIVES 0x60u
#define PRD_LAST 0x80000000u
#define IDE_FIRST_IRQ 14u

struct ide {
    struct pc *pc;
    struct hvx_pci_dev *pci;
    struct ide_channel channel[2];
    struct ide_drive drive[PC_N_IDE];
};

/* --- interrupts ------------------------------------------------------------------- */
static void update_irq(struct ide_channel *c)
{
    c->ide->pc->host->irq_set(c->ide->pc->vm, IDE_FIRST_IRQ + c->index, c->irq && !(c->control & CTL_NIEN));
}

void ide_raise(struct ide_drive *d)
{
    d->ch->irq = true;
    d->ch->bm_status |= BM_INTR;
    update_irq(d->ch);
}

static struct ide_drive *selected(struct ide_channel *c)
{
    return c->drive[c->select & DEV_SLAVE ? 1 : 0];
}

/* --- ends of commands ----------------------------------------------------------------- */
void ide_done(struct ide_drive *d, uint8_t status, uint8_t error)
{
    d->phase = IDE_IDLE;
    d->left = 0;
    d->status = status;
    d->error = error;
    ide_raise(d);
}

void ide_abort(struct ide_drive *d)
{
    ide_done(d, ST_READY | ST_ERR, ER_ABRT);
}

static void drive_reset(struct ide_drive *d)
{
    d->reset_pending = false;
    d->phase = IDE_IDLE;
    d->left = 0;
    d->multiple = IDE_MAX_MULTIPLE;
    d->write_cache = true;
    d->mwdma = 0x04;
    d->udma = 0;
    d->cur_heads = d->heads;
    d->cur_spt = d->spt;
    d->feature = d->hob_feature = 0;
    d->hob_nsector = d->hob_lba_low = d->hob_lba_mid = d->hob_lba_high = 0;
    d->locked = false;
    d->sense_key = d->asc = d->ascq = 0;
    d->error = 1; /* diagnostics passed */
    d->status = !d->blk ? 0 : d->cdrom ? 0 : ST_OK;
    ata_signature(d);
}

/* Reset, or as soon as the request in flight is back. */
static void drive_reset_soon(struct ide_drive *d)
{
    if (d->busy) {
        d->reset_pending = true;
        d->phase = IDE_IDLE;
        d->status = ST_BSY;
        return;
    }
    drive_reset(d);
}

/* --- block requests ----------------------------------------------------------------------- */
static void request_done(struct hvx_blk_req *req)
{
    struct ide_drive *d = req->opaque;
    d->busy = false;
    if (d->reset_pending)
        drive_reset(d);
    else
        d->then(d, req->result);
}

void ide_submit(struct ide_drive *d, uint32_t op, uint32_t bytes, void (*then)(struct ide_drive *, int))
{
    bool data = op == HVX_BLK_READ || op == HVX_BLK_WRITE;
    d->iov = (struct iovec){d->buf, bytes};
    memset(&d->req, 0, sizeof(d->req));
    d->req.op = op;
    d->req.flags = op == HVX_BLK_WRITE && (d->fua || !d->write_cache) ? HVX_BLK_FUA : 0;
    d->req.offset = data ? d->lba * IDE_SECTOR : 0;
    d->req.bytes = data ? bytes : 0;
    d->req.iov = data ? &d->iov : NULL;
    d->req.n_iov = data ? 1 : 0;
    d->req.done = request_done;
    d->req.opaque = d;
    d->then = then;
    d->busy = true;
    d->status = ST_BSY;
    d->ch->ide->pc->host->blk_submit(d->blk, &d->req);
}

/* --- programmed I/O ------------------------------------------------------------------------- */
void ide_show_block(struct ide_drive *d, uint32_t bytes)
{
    d->end = d->pos + bytes;
    d->status = ST_OK | ST_DRQ;
}

static bool data_ready(const struct ide_drive *d, bool in)
{
    if (!(d->status & ST_DRQ) || d->pos >= d->end)
        return false;
    return in ? d->phase == IDE_PIO_IN : d->phase == IDE_PIO_OUT || d->phase == IDE_CDB_OUT;
}

static void block_done(struct ide_drive *d)
{
    if (d->phase == IDE_CDB_OUT) {
        memcpy(d->cdb, d->buf, IDE_CDB_BYTES);
        atapi_cdb(d);
    } else if (d->cdrom) {
        atapi_block_done(d);
    } else {
        ata_block_done(d);
    }
}

static uint64_t data_read(void *opaque, uint64_t off, unsigned size)
{
    struct ide_drive *d = selected(opaque);
    uint64_t v = 0;
    (void)off;
    if (!data_ready(d, true))
        return ~0ull;
    unsigned n = d->end - d->pos < size ? d->end - d->pos : size;
    memcpy(&v, d->buf + d->pos, n);
    d->pos += n;
    if (d->pos >= d->end)
        block_done(d);
    return v;
}

static void data_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct ide_drive *d = selected(opaque);
    (void)off;
    if (!data_ready(d, false))
        return;
    unsigned n = d->end - d->pos < size ? d->end - d->pos : size;
    memcpy(d->buf + d->pos, &value, n);
    d->pos += n;
    if (d->pos >= d->end)
        block_done(d);
}

/* --- bus master --------------------------------------------------------------------------------- */
static int prd_fetch(struct ide_channel *c)
{
    uint32_t prd[2];
    if (c->prd_last)
        return 0;
    if (c->ide->pc->host->pci_dma_read(c->ide->pci, c->prd_next, prd, sizeof(prd)))
        return -EFAULT;
    c->prd_next += sizeof(prd);
    c->prd_addr = prd[0] & ~1u;
    c->prd_left = prd[1] & 0xfffe;
    if (!c->prd_left)
        c->prd_left = 0x10000;
    c->prd_last = prd[1] & PRD_LAST;
    return 1;
}

int ide_dma_copy(struct ide_drive *d, uint32_t bytes, bool to_guest)
{
    struct ide_channel *c = d->ch;
    const struct hvx_host *host = c->ide->pc->host;
    for (uint32_t done = 0; done < bytes;) {
        if (!c->prd_left) {
            int rc = prd_fetch(c);
            if (rc <= 0)
                return rc;
        }
        uint32_t n = bytes - done < c->prd_left ? bytes - done : c->prd_left;
        int rc = to_guest ? host->pci_dma_write(c->ide->pci, c->prd_addr, d->buf + done, n)
                          : host->pci_dma_read(c->ide->pci, c->prd_addr, d->buf + done, n);
        if (rc)
            return rc;
        c->prd_addr += n;
        c->prd_left -= n;
        done += n;
    }
    return 1;
}

static void dma_run(struct ide_drive *d)
{
    if (d->busy || !(d->ch->bm_command & BM_START))
        return;
    if (d->cdrom)
        atapi_dma_run(d);
    else
        ata_dma_run(d);
}

void ide_dma_begin(struct ide_drive *d, enum ide_phase phase)
{
    d->phase = (uint8_t)phase;
    d->status = ST_OK | ST_DRQ;
    dma_run(d);
}

/* Without an error ACTIVE stays set when the descriptors cover more than the transfer. */
void ide_dma_end(struct ide_drive *d, bool error)
{
    struct ide_channel *c = d->ch;
    if (error)
        c->bm_status = (uint8_t)((c->bm_status & ~BM_ACTIVE) | BM_ERROR);
    else if (c->prd_last && !c->prd_left)
        c->bm_status &= (uint8_t)~BM_ACTIVE;
}

bool ide_dma_stopped(const struct ide_drive *d)
{
    return !(d->ch->bm_command & BM_START);
}

static bool in_dma(const struct ide_drive *d)
{
    return d->phase == IDE_DMA_IN || d->phase == IDE_DMA_OUT;
}

static void bm_start(struct ide_channel *c, uint8_t v)
{
    bool was = c->bm_command & BM_START;
    c->bm_command = v & 0x09;
    if (!was && (v & BM_START)) {
        c->bm_status |= BM_ACTIVE;
        c->prd_next = c->prd_table;
        c->prd_left = 0;
        c->prd_last = false;
        for (unsigned i = 0; i < 2; i++)
            if (in_dma(c->drive[i]))
                dma_run(c->drive[i]);
    } else if (was && !(v & BM_START)) {
        c->bm_status &= (uint8_t)~BM_ACTIVE;
    }
}

static uint8_t bm_read_byte(struct ide *ide, unsigned off)
{
    const struct ide_channel *c = &ide->channel[off >> 3 & 1];
    switch (off & 7) {
    case 0: return c->bm_command;
    case 2: return c->bm_status;
    case 4: case 5: case 6: case 7: return (uint8_t)(c->prd_table >> (8 * (off & 3)));
    default: return 0xff;
    }
}

static void bm_write_byte(struct ide *ide, unsigned off, uint8_t v)
{
    struct ide_channel *c = &ide->channel[off >> 3 & 1];
    unsigned shift = 8 * (off & 3);
    switch (off & 7) {
    case 0:
        bm_start(c, v);
        break;
    case 2: /* drive bits are plain, error and interrupt clear by a one */
        c->bm_status = (uint8_t)((v & BM_DRIVES) | (c->bm_status & BM_ACTIVE) |
                                 (c->bm_status & ~v & (BM_ERROR | BM_INTR)));
        break;
    case 4: case 5: case 6: case 7:
        c->prd_table = ((c->prd_table & ~(0xffu << shift)) | (uint32_t)v << shift) & ~3u;
        break;
    default:
        break;
    }
}

/* Wider accesses: the descriptor table's address is a dword. The command byte is written last. */
static uint64_t bm_read(void *opaque, uint64_t off, unsigned size)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < size; i++)
        v |= (uint64_t)bm_read_byte(opaque, (unsigned)off + i) << (8 * i);
    return v;
}

static void bm_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    for (unsigned i = size; i-- > 0;)
        bm_write_byte(opaque, (unsigned)off + i, (uint8_t)(value >> (8 * i)));
}

/* --- task file --------------------------------------------------------------------------------------- */
static uint8_t register_read(struct ide_channel *c, unsigned reg)
{
    struct ide_drive *d = selected(c);
    bool hob = c->control & 0x80;
    if (!d->blk) /* nobody drives the bus: not 0xff, which would read as BSY */
        return reg == 6 ? c->select | 0xa0 : 0;
    switch (reg) {
    case 1: return hob ? d->hob_feature : d->error;
    case 2: return hob ? d->hob_nsector : d->nsector;
    case 3: return hob ? d->hob_lba_low : d->lba_low;
    case 4: return hob ? d->hob_lba_mid : d->lba_mid;
    case 5: return hob ? d->hob_lba_high : d->lba_high;
    case 6: return d->device | 0xa0;
    default:
        c->irq = false; /* reading the status acknowledges */
        update_irq(c);
        return d->status;
    }
}

static void store(uint8_t *now, uint8_t *before, uint8_t v)
{
    *before = *now;
    *now = v;
}

static void command_write(struct ide_channel *c, uint8_t v)
{
    struct ide_drive *d = selected(c);
    c->irq = false;
    update_irq(c);
    if (!d->blk)
        return;
    if (v == 0x08 && d->cdrom) { /* DEVICE RESET works at any time */
        drive_reset_soon(d);
        return;
    }
    if (d->busy || (d->status & ST_BSY))
        return;
    d->phase = IDE_IDLE;
    ata_command(d, v);
}

static void register_write(struct ide_channel *c, unsigned reg, uint8_t v)
{
    if (reg == 7) {
        command_write(c, v);
        return;
    }
    c->control &= 0x7f;
    if (reg == 6)
        c->select = v & DEV_SLAVE;
    for (unsigned i = 0; i < 2; i++) { /* both drives hear it */
        struct ide_drive *d = c->drive[i];
        if (d->status & ST_BSY)
            continue;
        switch (reg) {
        case 1: store(&d->feature, &d->hob_feature, v); break;
        case 2: store(&d->nsector, &d->hob_nsector, v); break;
        case 3: store(&d->lba_low, &d->hob_lba_low, v); break;
        case 4: store(&d->lba_mid, &d->hob_lba_mid, v); break;
        case 5: store(&d->lba_high, &d->hob_lba_high, v); break;
        default: d->device = v; break;
        }
    }
}

static uint64_t ports_read(void *opaque, uint64_t off, unsigned size)
{
    if (off == 0)
        return data_read(opaque, off, size);
    return size == 1 ? register_read(opaque, (unsigned)off) : ~0ull;
}

static void ports_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    if (off == 0)
        data_write(opaque, off, size, value);
    else if (size == 1)
        register_write(opaque, (unsigned)off, (uint8_t)value);
}

static uint64_t control_read(void *opaque, uint64_t off, unsigned size)
{
    struct ide_drive *d = selected(opaque);
    (void)off, (void)size;
    return d->blk ? d->status : 0; /* alternate status: no acknowledge */
}

static void control_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
    struct ide_channel *c = opaque;
    uint8_t v = (uint8_t)value;
    (void)off, (void)size;
    bool was = c->control & CTL_SRST;
    c->control = v & 0x86;
    if (!was && (v & CTL_SRST)) {
        c->irq = false;
        c->select = 0;
        for (unsigned i = 0; i < 2; i++) {
            drive_reset_soon(c->drive[i]);
            c->drive[i]->status = c->drive[i]->blk ? ST_BSY : 0;
        }
    } else if (was && !(v & CTL_SRST)) {
        for (unsigned i = 0; i < 2; i++)
            drive_reset_soon(c->drive[i]);
    }
    update_irq(c);
}

static const struct hvx_region_ops ports_ops = {ports_read, ports_write};
static const struct hvx_region_ops control_ops = {control_read, control_write};
static const struct hvx_region_ops bm_ops = {bm_read, bm_write};

/* --- life ------------------------------------------------------------------------------------------------ */
static int attach(struct ide *ide, unsigned n, const char *id, struct hvx_error *err)
{
    struct ide_drive *d = &ide->drive[n];
    struct hvx_blk_info info = {.size = sizeof(info)};
    if (!id)
        return 0;
    d->blk = ide->pc->host->blk_get(ide->pc->vm, id);
    if (!d->blk)
        return hvx_fail(err, -ENOENT, "pc: ide%u names drive %s, which does not exist; drives are disk0, disk1, ...", n,
                        id);
    ide->pc->host->blk_info(d->blk, &info);
    d->buf = calloc(1, IDE_BUFFER_BYTES);
    if (!d->buf)
        return hvx_fail(err, -ENOMEM, "pc: no memory for drive %s", id);
    d->cdrom = info.is_cdrom;
    d->read_only = info.read_only;
    d->sectors = info.bytes / IDE_SECTOR;
    memcpy(d->serial, info.serial, sizeof(d->serial) - 1);
    d->heads = 16;
    d->spt = 63;
    uint64_t cylinders = d->sectors / (16 * 63);
    d->cylinders = cylinders < 2 ? 2 : cylinders > 16383 ? 16383 : (uint32_t)cylinders;
    d->unit_attention = d->cdrom;
    return 0;
}

int ide_create(struct pc *pc, const char *const drives[PC_N_IDE], struct ide **out, struct hvx_error *err)
{
    struct ide *ide = calloc(1, sizeof(*ide));
    if (!ide)
        return hvx_fail(err, -ENOMEM, "pc: no memory for the IDE controller");
    ide->pc = pc;
    *out = ide;
    for (unsigned n = 0; n < PC_N_IDE; n++) {
        struct ide_channel *c = &ide->channel[n / 2];
        c->ide = ide;
        c->index = n / 2;
        c->drive[n & 1] = &ide->drive[n];
        ide->drive[n].ch = c;
        int rc = attach(ide, n, drives[n], err);
        if (rc)
            return rc;
    }
    struct hvx_pci_desc desc = {
        .size = sizeof(desc),
        .devfn = PC_DEVFN_IDE,
        .vendor = 0x8086,
        .device = 0x7010,
        .subsys_vendor = PC_SUBSYS_VENDOR,
        .subsys = PC_SUBSYS_ID,
        .class_code = 0x010180, /* legacy ports, bus master */
    };
    desc.bars[4] = (struct hvx_pci_bar){.type = HVX_BAR_IO, .size = 16, .ops = &bm_ops};
    int rc = pc->host->pci_add(pc->vm, &desc, NULL, ide, &ide->pci, err);
    static const uint16_t base[2] = {0x1f0, 0x170}, control[2] = {0x3f6, 0x376};
    for (unsigned i = 0; i < 2 && rc == 0; i++) {
        rc = pc_region(pc, HVX_SPACE_PIO, base[i], 8, 0, "ide", &ports_ops, &ide->channel[i], err);
        if (rc == 0)
            rc = pc_region(pc, HVX_SPACE_PIO, control[i], 1, 0, "ide-control", &control_ops, &ide->channel[i], err);
    }
    return rc;
}

void ide_destroy(struct ide *ide)
{
    if (!ide)
        return;
    if (ide->pci)
        ide->pc->host->pci_del(ide->pc->vm, ide->pci);
    for (unsigned n = 0; n < PC_N_IDE; n++)
        free(ide->drive[n].buf);
    free(ide);
}

void ide_reset(struct ide *ide)
{
    uint8_t *config = ide->pc->host->pci_config(ide->pci);
    config[0x41] = config[0x43] = 0x80; /* both channels decode */
    for (unsigned i = 0; i < 2; i++) {
        struct ide_channel *c = &ide->channel[i];
        c->select = c->control = 0;
        c->irq = false;
        c->bm_command = c->bm_status = 0;
        c->prd_table = c->prd_next = c->prd_addr = c->prd_left = 0;
        c->prd_last = false;
        for (unsigned n = 0; n < 2; n++) {
            c->drive[n]->device = 0;
            drive_reset_soon(c->drive[n]);
        }
        update_irq(c);
    }
}

bool ide_quiesced(struct ide *ide)
{
    for (unsigned n = 0; n < PC_N_IDE; n++)
        if (ide->drive[n].busy)
            return false;
    return true;
}

bool ide_geometry(struct ide *ide, unsigned n, uint32_t *c, uint32_t *h, uint32_t *s)
{
    const struct ide_drive *d = &ide->drive[n];
    if (!d->blk || d->cdrom)
        return false;
    *c = d->cylinders;
    *h = d->heads;
    *s = d->spt;
    return true;
}

static void drive_state(struct ide_drive *d, struct hvx_stream *s)
{
    uint8_t *const regs[] = {&d->feature,      &d->nsector,     &d->lba_low,     &d->lba_mid,      &d->lba_high,
                             &d->device,       &d->hob_feature, &d->hob_nsector, &d->hob_lba_low,  &d->hob_lba_mid,
                             &d->hob_lba_high, &d->status,      &d->error,       &d->multiple,     &d->mwdma,
                             &d->udma,         &d->phase,       &d->sense_key,   &d->asc,          &d->ascq};
    for (unsigned i = 0; i < sizeof(regs) / sizeof(regs[0]); i++)
        hvx_state_u8(s, regs[i]);
    bool *const flags[] = {&d->write_cache, &d->ext,    &d->fua,    &d->packet, &d->packet_dma,
                           &d->unit_attention, &d->locked, &d->ejected};
    for (unsigned i = 0; i < sizeof(flags) / sizeof(flags[0]); i++)
        hvx_state_bool(s, flags[i]);
    hvx_state_u32(s, &d->cur_heads);
    hvx_state_u32(s, &d->cur_spt);
    hvx_state_u64(s, &d->lba);
    hvx_state_u32(s, &d->left);
    hvx_state_u32(s, &d->block);
    hvx_state_u32(s, &d->pos);
    hvx_state_u32(s, &d->end);
    hvx_state_u32(s, &d->filled);
    hvx_state_bytes(s, d->cdb, sizeof(d->cdb));
    if (d->buf)
        hvx_state_bytes(s, d->buf, IDE_BUFFER_BYTES);
    /* What comes from a file must not lead outside buffer or disk. */
    if (d->phase >= IDE_N_PHASES || d->filled > IDE_BUFFER_BYTES || d->end > IDE_BUFFER_BYTES || d->pos > d->end ||
        d->block > IDE_BUFFER_BYTES || d->lba > d->sectors || d->left > d->sectors - d->lba ||
        (!d->buf && d->phase != IDE_IDLE) || d->multiple > IDE_MAX_MULTIPLE) {
        if (!hvx_stream_is_saving(s)) {
            drive_reset(d);
            d->pos = d->end = d->filled = d->block = 0;
            d->lba = 0;
        }
        hvx_state_fail(s, -EINVAL, "IDE: the state of a drive does not fit the drive");
    }
}

int ide_state(struct ide *ide, struct hvx_stream *s)
{
    for (unsigned n = 0; n < PC_N_IDE; n++)
        drive_state(&ide->drive[n], s);
    for (unsigned i = 0; i < 2; i++) {
        struct ide_channel *c = &ide->channel[i];
        hvx_state_u8(s, &c->select);
        hvx_state_u8(s, &c->control);
        hvx_state_bool(s, &c->irq);
        hvx_state_u8(s, &c->bm_command);
        hvx_state_u8(s, &c->bm_status);
        hvx_state_u32(s, &c->prd_table);
        hvx_state_u32(s, &c->prd_next);
        hvx_state_u32(s, &c->prd_addr);
        hvx_state_u32(s, &c->prd_left);
        hvx_state_bool(s, &c->prd_last);
        if (!hvx_stream_is_saving(s))
            update_irq(c);
    }
    return hvx_state_error(s);
}
