/* SPDX-License-Identifier: Apache-2.0
 *
 * ide.h - shared by the controller (ide.c), disk commands (ide_ata.c) and
 * packet commands (ide_atapi.c).
 *
 * A drive works on one command at a time and has at most one block request
 * in flight. While it has, BSY is set and the guest can start nothing new;
 * a reset in that time waits for the request (`reset_pending`). All data
 * passes through the drive's buffer, in chunks of at most IDE_BUFFER_BYTES.
 */
#ifndef DEV_PC_IDE_H
#define DEV_PC_IDE_H

#include "pc.h"

#define IDE_SECTOR 512u
#define IDE_CHUNK_SECTORS 256u
#define IDE_BUFFER_BYTES (IDE_CHUNK_SECTORS * IDE_SECTOR)
#define IDE_MAX_MULTIPLE 16u
#define IDE_CDB_BYTES 12u
#define CD_BLOCK 2048u

#define ST_ERR 0x01u
#define ST_DRQ 0x08u
#define ST_SEEK 0x10u
#define ST_FAULT 0x20u
#define ST_READY 0x40u
#define ST_BSY 0x80u
#define ST_OK (ST_READY | ST_SEEK)

#define ER_ABRT 0x04u
#define ER_IDNF 0x10u
#define ER_UNC 0x40u

/* The interrupt reason register of packet commands. */
#define IR_COMMAND 0x01u
#define IR_TO_HOST 0x02u

enum ide_phase {
    IDE_IDLE,
    IDE_PIO_IN,  /* guest reads the data port */
    IDE_PIO_OUT, /* guest writes the data port */
    IDE_CDB_OUT, /* guest writes a packet */
    IDE_DMA_IN,  /* to the guest by bus master */
    IDE_DMA_OUT,
    IDE_N_PHASES,
};

struct ide_drive;
struct ide;

struct ide_channel {
    struct ide *ide;
    unsigned index;
    struct ide_drive *drive[2]; /* never NULL; drive->blk is NULL when there is no drive */
    uint8_t select, control;
    bool irq; /* pending at the channel */
    /* bus master */
    uint8_t bm_command, bm_status;
    uint32_t prd_table;
    uint32_t prd_next;  /* address of the next descriptor */
    uint32_t prd_addr;  /* rest of the current one */
    uint32_t prd_left;
    bool prd_last;
};

struct ide_drive {
    struct ide_channel *ch;
    struct hvx_blk *blk;
    bool cdrom, read_only;
    uint64_t sectors; /* of 512 bytes */
    char serial[24];
    uint32_t cylinders, heads, spt; /* default geometry */
    uint32_t cur_heads, cur_spt;    /* as set by INITIALIZE DEVICE PARAMETERS */
    /* task file; hob_ holds the previous write, the high half of 48-bit commands */
    uint8_t feature, nsector, lba_low, lba_mid, lba_high, device;
    uint8_t hob_feature, hob_nsector, hob_lba_low, hob_lba_mid, hob_lba_high;
    uint8_t status, error;
    uint8_t multiple;
    uint8_t mwdma, udma; /* mode bits selected */
    bool write_cache;
    bool reset_pending;
    /* the command under way */
    uint8_t phase;
    bool ext, fua;
    uint64_t lba;        /* next sector, of 512 bytes */
    uint32_t left;       /* sectors not yet in or out of the buffer */
    uint32_t block;      /* bytes of one DRQ block */
    uint32_t pos, end;   /* of the DRQ block in the buffer */
    uint32_t filled;     /* valid bytes in the buffer */
    uint8_t *buf;
    /* packet commands */
    uint8_t cdb[IDE_CDB_BYTES];
    bool packet; /* the command is PACKET: data phases follow its protocol */
    bool packet_dma;
    bool unit_attention, locked, ejected;
    uint8_t sense_key, asc, ascq;
    /* block request */
    struct hvx_blk_req req;
    struct iovec iov;
    bool busy;
    void (*then)(struct ide_drive *d, int result);
};

/* ide.c */
void ide_raise(struct ide_drive *d);
/* End the command: status and error, interrupt. */
void ide_done(struct ide_drive *d, uint8_t status, uint8_t error);
void ide_abort(struct ide_drive *d);
/* Read or write `bytes` of the buffer at d->lba, or flush. */
void ide_submit(struct ide_drive *d, uint32_t op, uint32_t bytes, void (*then)(struct ide_drive *, int));
void ide_show_block(struct ide_drive *d, uint32_t bytes); /* next DRQ block of the buffer */
/* Buffer to or from guest memory by the descriptors: 1 done, 0 descriptors ran out, -errno. */
int ide_dma_copy(struct ide_drive *d, uint32_t bytes, bool to_guest);
void ide_dma_begin(struct ide_drive *d, enum ide_phase phase); /* runs now or when the guest starts it */
void ide_dma_end(struct ide_drive *d, bool error);
bool ide_dma_stopped(const struct ide_drive *d); /* the guest stopped the bus master meanwhile */

/* ide_ata.c */
void ata_command(struct ide_drive *d, uint8_t command);
void ata_block_done(struct ide_drive *d); /* the guest emptied or filled a DRQ block */
void ata_dma_run(struct ide_drive *d);
void ata_signature(struct ide_drive *d);
void ata_identify_text(uint8_t *at, const char *s, unsigned n);
void ata_set_features(struct ide_drive *d);

/* ide_atapi.c */
void atapi_identify(struct ide_drive *d, uint8_t *out);
void atapi_packet(struct ide_drive *d); /* the PACKET command: ask for the CDB */
void atapi_cdb(struct ide_drive *d);
void atapi_block_done(struct ide_drive *d);
void atapi_dma_run(struct ide_drive *d);
#endif
