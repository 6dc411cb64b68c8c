/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/stream.h - saved states as a file: a header, then sections, each
 * with a name, a version, a size and a checksum. hvx/state.h shows what is
 * inside a section, core/vm/snapshot.h which sections a saved VM has.
 *
 *     header   "HVXSTATE" u32 format (2) u32 0
 *     section  u16 length of name, name, u32 version, u32 bytes, payload, u32 CRC-32 of all before
 *     end      a section with an empty name whose payload is the XXH3-128 of the file before it
 *
 * A restoring program asks for the sections that it expects, in order: a file
 * of a VM with other devices is refused by name, before anything is touched
 * in the devices that follow. hvx_state_verify() reads a whole file first,
 * so that a damaged one is refused before anything at all is touched.
 *
 * Life: open on a stream that stays the caller's; header, sections, end (in
 * this order, in either direction); close. After an error only close is left.
 */
#ifndef HVX_CORE_STREAM_H
#define HVX_CORE_STREAM_H

#include <hvx/state.h>

#include <stdio.h>

#define HVX_STATE_FORMAT 2u
#define HVX_STATE_MAX_SECTION (64u << 20)
#define HVX_STATE_MAX_NAME 64u

struct hvx_state_file;
typedef int (*hvx_state_fn)(void *opaque, struct hvx_stream *s);

/* f is borrowed and stands where the state begins; NULL: out of memory. */
struct hvx_state_file *hvx_state_open(FILE *f);
void hvx_state_close(struct hvx_state_file *s);
/* Bytes written or read so far. */
uint64_t hvx_state_position(const struct hvx_state_file *s);
/* For fuzzers: take any checksum for right. */
void hvx_state_ignore_sums(struct hvx_state_file *s);

HVX_WUR int hvx_state_write_header(struct hvx_state_file *s, struct hvx_error *err);
HVX_WUR int hvx_state_read_header(struct hvx_state_file *s, struct hvx_error *err);
HVX_WUR int hvx_state_save_section(struct hvx_state_file *s, const char *name, uint32_t version, hvx_state_fn fn,
                                   void *opaque, struct hvx_error *err);
/* version is the newest that fn understands. */
HVX_WUR int hvx_state_load_section(struct hvx_state_file *s, const char *name, uint32_t version, hvx_state_fn fn,
                                   void *opaque, struct hvx_error *err);
/* Sections whose payload is made by hand. A read one is owned by the caller. */
HVX_WUR int hvx_state_write_raw(struct hvx_state_file *s, const char *name, uint32_t version, const void *data,
                                size_t n, struct hvx_error *err);
HVX_WUR int hvx_state_read_raw(struct hvx_state_file *s, const char *name, uint32_t version, uint8_t **data, size_t *n,
                               struct hvx_error *err);
/* Sections that were written to another file (without header and end). */
HVX_WUR int hvx_state_append(struct hvx_state_file *s, const void *sections, size_t n, struct hvx_error *err);
HVX_WUR int hvx_state_write_end(struct hvx_state_file *s, struct hvx_error *err);
HVX_WUR int hvx_state_read_end(struct hvx_state_file *s, struct hvx_error *err);

/* Read all of f, from where it stands to its end, and check every size and
 * every checksum; nothing is interpreted. progress may be NULL. */
HVX_WUR int hvx_state_verify(FILE *f, void (*progress)(void *opaque, uint64_t done), void *opaque,
                             struct hvx_error *err);

#endif
