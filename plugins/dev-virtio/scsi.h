/* SPDX-License-Identifier: Apache-2.0
 *
 * scsi.h - SCSI logical units over the block layer, and commands to them. The
 * transport (virtio-scsi.c) carries commands and answers; scsi.c has what all
 * units know (SPC-4), scsi-disk.c disks (SBC-3), scsi-cd.c CD-ROM drives (MMC-5).
 *
 * Life of a command: the transport fills in unit, CDB and the guest's buffers
 * and calls scsi_start(). That ends it at once with scsi_end(), or starts
 * requests of the block layer; they end it later, on the VM's loop. Either way
 * done() is called exactly once.
 *
 * Section numbers: SPC-4 revision 37, SBC-3 revision 36, MMC-5 revision 4.
 */
#ifndef DEV_VIRTIO_SCSI_H
#define DEV_VIRTIO_SCSI_H

#include <hvx/host.h>

#define SCSI_CDB_MAX 64u
#define SCSI_SENSE_BYTES 18u
#define SCSI_BUF 4608u            /* answers and parameter lists; a block of WRITE SAME */
#define SCSI_SECTOR 512u
#define SCSI_MAX_RANGES 64u       /* descriptors of one UNMAP */
#define SCSI_MAX_RANGE_BYTES (1ull << 31) /* of one UNMAP descriptor or WRITE SAME */
#define SCSI_SAME_IOV 128u        /* copies of the block that WRITE SAME writes at a time */

enum { SCSI_GOOD = 0x00, SCSI_CHECK_CONDITION = 0x02 };

/* Sense key << 16 | additional sense code << 8 | qualifier. */
#define SENSE(key, asc, ascq) ((uint32_t)(key) << 16 | (uint32_t)(asc) << 8 | (ascq))
#define SENSE_NONE 0u
#define SENSE_NO_MEDIUM SENSE(0x2, 0x3a, 0x00)
#define SENSE_WRITE_ERROR SENSE(0x3, 0x0c, 0x00)
#define SENSE_READ_ERROR SENSE(0x3, 0x11, 0x00)
#define SENSE_TARGET_FAILURE SENSE(0x4, 0x44, 0x00)
#define SENSE_LIST_LENGTH SENSE(0x5, 0x1a, 0x00)
#define SENSE_BAD_OPCODE SENSE(0x5, 0x20, 0x00)
#define SENSE_BAD_LBA SENSE(0x5, 0x21, 0x00)
#define SENSE_BAD_FIELD SENSE(0x5, 0x24, 0x00)
#define SENSE_BAD_UNIT SENSE(0x5, 0x25, 0x00)
#define SENSE_BAD_PARAMETER SENSE(0x5, 0x26, 0x00)
#define SENSE_NOT_SAVED SENSE(0x5, 0x39, 0x00)
#define SENSE_LOCKED SENSE(0x5, 0x53, 0x02)
#define SENSE_MEDIUM_CHANGED SENSE(0x6, 0x28, 0x00)
#define SENSE_RESET SENSE(0x6, 0x29, 0x00)
#define SENSE_MODE_CHANGED SENSE(0x6, 0x2a, 0x01)
#define SENSE_WRITE_PROTECTED SENSE(0x7, 0x27, 0x00)
#define SENSE_NO_SPACE SENSE(0x7, 0x27, 0x07)
#define SENSE_ABORTED SENSE(0xb, 0x00, 0x00)
#define SENSE_MISCOMPARE SENSE(0xe, 0x1d, 0x00)

struct scsi_unit {
    const struct hvx_host *host;
    struct hvx_blk *disk;
    struct hvx_blk_info info;
    uint32_t block;  /* bytes of a logical block */
    uint64_t blocks;
    bool cdrom;
    uint32_t attention; /* sense of the unit attention that waits; 0: none */
    bool write_through; /* the caching page's WCE is off */
    bool locked, ejected;
    bool medium_event;  /* GET EVENT STATUS NOTIFICATION has a new medium to tell of */
};

struct scsi_cmd {
    struct hvx_blk_req host;
    struct scsi_unit *unit; /* NULL: no such unit; only INQUIRY, REPORT LUNS and REQUEST SENSE make sense */
    uint8_t cdb[SCSI_CDB_MAX];
    struct iovec *out, *in; /* the guest's buffers: to the device, from it; changed in place */
    unsigned n_out, n_in;
    uint32_t out_bytes, in_bytes;
    const uint16_t *luns;   /* of the target, for REPORT LUNS */
    unsigned n_luns;
    bool aborted;           /* start no further request */
    /* the answer */
    uint8_t status;
    uint8_t sense[SCSI_SENSE_BYTES];
    uint8_t n_sense;
    bool overrun;           /* the buffers are smaller than what the CDB transfers */
    uint32_t done_bytes;    /* transferred */
    void (*done)(struct scsi_cmd *c);
    /* in progress */
    uint64_t lba;
    unsigned n_ranges, range;
    uint64_t same_at, same_left; /* WRITE SAME of a pattern: bytes */
    bool then_flush;
    uint8_t *verify;        /* owned: what was read to be compared */
    struct { uint64_t at, n; } ranges[SCSI_MAX_RANGES];
    struct iovec same[SCSI_SAME_IOV];
    uint8_t buf[SCSI_BUF];
};

/* --- for the transport --- */
void scsi_unit_init(struct scsi_unit *u, const struct hvx_host *host, struct hvx_blk *disk);
void scsi_unit_reset(struct scsi_unit *u); /* also after a LUN reset: a unit attention waits then */
int scsi_unit_state(struct scsi_unit *u, struct hvx_stream *s);
void scsi_start(struct scsi_cmd *c);

/* --- scsi.c, for the command sets --- */
void scsi_end(struct scsi_cmd *c, uint32_t sense); /* SENSE_NONE: good */
void scsi_reply(struct scsi_cmd *c, uint32_t n, uint32_t wanted); /* n bytes of c->buf, at most `wanted` */
bool scsi_parameters(struct scsi_cmd *c, uint32_t n); /* fetch a list of n bytes into c->buf; false: it ended the command */
uint32_t scsi_sense_of(int error, bool write);
void scsi_submit(struct scsi_cmd *c, uint32_t op, uint64_t offset, uint64_t bytes, uint32_t flags,
                 void (*done)(struct hvx_blk_req *r));
/* Blocks from the disk to the guest; checks them. */
void scsi_read_blocks(struct scsi_cmd *c, uint64_t lba, uint64_t n);
bool scsi_in_range(struct scsi_cmd *c, uint64_t lba, uint64_t n); /* false: it ended the command */
void scsi_simple_done(struct hvx_blk_req *r); /* a flush or the like is over */
/* One mode page's current values at p; 0: unknown. `changeable`: the mask instead. */
unsigned scsi_mode_page(const struct scsi_unit *u, uint8_t *p, unsigned page, bool changeable);
void scsi_disk_command(struct scsi_cmd *c);
void scsi_cd_command(struct scsi_cmd *c);
unsigned scsi_cd_mode_page(const struct scsi_unit *u, uint8_t *p, unsigned page, bool changeable);

static inline uint16_t be16_get(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static inline uint32_t be32_get(const uint8_t *p) { return (uint32_t)be16_get(p) << 16 | be16_get(p + 2); }
static inline uint64_t be64_get(const uint8_t *p) { return (uint64_t)be32_get(p) << 32 | be32_get(p + 4); }
static inline void be16_put(uint8_t *p, uint32_t v) { p[0] = (uint8_t)(v >> 8), p[1] = (uint8_t)v; }
static inline void be32_put(uint8_t *p, uint32_t v) { be16_put(p, v >> 16), be16_put(p + 2, v); }
static inline void be64_put(uint8_t *p, uint64_t v) { be32_put(p, (uint32_t)(v >> 32)), be32_put(p + 4, (uint32_t)v); }
#endif
