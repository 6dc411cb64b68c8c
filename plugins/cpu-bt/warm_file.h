/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/warm_file.h - the file of option translation-cache.
 *
 * A header of 128 bytes at the start, which tells where the index is; records
 * (warm.h) where the index says. The index is read when the VM starts, a record
 * when it is wanted: it is copied and checked then, so nothing depends on the
 * file's staying as it is. What a header names is never written over: new
 * records and a new index go behind, or beside, and then the header is replaced,
 * so that whoever is killed in between, or finds the disk full, leaves the older
 * set. A confined process cannot make files or rename them, so there is one
 * file, open from the start.
 *
 * The file decides what code runs in this process. It is used only when it is
 * a regular file of our own that nobody else may write, when the header's hash
 * of the engine, the decoder and the configuration is ours, and when the
 * checksums of header, index and record are right. Those are against accidents:
 * who can write the file can make them right. All offsets are checked as well.
 *
 * Two VMs with one file lock it, shared to read, exclusive to write, and do
 * without rather than wait for long. Who ends later adds to what the other has
 * written. A VM whose records have gone meanwhile (a file is written anew when
 * half of it is of no use) reads others, sees it, and translates.
 */
#ifndef BT_WARM_FILE_H
#define BT_WARM_FILE_H

#include "warm.h"

#define WARM_MAGIC "HVXtrans"
#define WARM_VERSION 1u
#define WARM_HEADER 4096u         /* records start behind it */
#define WARM_CHUNK (1u << 20)     /* written at a time */
#define WARM_END_MAX (8ull << 30) /* of a file, with its holes: an index counts in 32 bits */

struct warm_header {
    char magic[8];
    uint32_t version, header_bytes;
    uint64_t id[4];             /* engine and decoder, configuration: two words each */
    uint64_t generation, epoch; /* counts writes; the last one that moved records */
    uint64_t start, index;      /* records are between them, the index behind */
    uint64_t n_records, index_sum;
    uint64_t zero[3];
    uint64_t sum; /* of all before it */
};
_Static_assert(sizeof(struct warm_header) == 128, "no gaps");

/* Is it a header, of this engine, for a file of this size? NULL, or what is wrong. */
const char *bt_warm_header_ok(const struct warm_header *h, uint64_t file_bytes, const uint64_t id[4]);
/* Is it the index that the header tells of, and does it stay within the file? */
bool bt_warm_index_ok(const struct warm_header *h, const struct warm_index *x);
/* Look-ups find these from now on; takes x. False: out of memory. */
bool bt_warm_take_index(struct bt_warm *w, const struct warm_header *h, struct warm_index *x);

/* Without the engine around it, for tests. */
struct bt_warm *bt_warm_create(void);
void bt_warm_destroy(struct bt_warm *w);

#endif
