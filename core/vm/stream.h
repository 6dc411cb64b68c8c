/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/stream.h - saved states as a file: a header, then sections, each
 * with a name, a version, a size and a checksum. hvx/state.h shows what is
 * inside a section.
 *
 *     header   "HVXSTATE" u32 format (1) u32 0
 *     section  u16 length of name, name, u32 version, u32 bytes, payload, u32 CRC-32 of all before
 *     end      a section with an empty name and no payload
 *
 * A restoring program asks for the sections that it expects, in order: a file
 * of a VM with other devices is refused by name, before anything is touched
 * in the devices that follow.
 */
#ifndef HVX_CORE_STREAM_H
#define HVX_CORE_STREAM_H

#include <hvx/state.h>

#define HVX_STATE_MAX_SECTION (64u << 20)

typedef int (*hvx_state_fn)(void *opaque, struct hvx_stream *s);

HVX_WUR int hvx_state_write_header(FILE *f, struct hvx_error *err);
HVX_WUR int hvx_state_read_header(FILE *f, struct hvx_error *err);
HVX_WUR int hvx_state_save_section(FILE *f, const char *name, uint32_t version, hvx_state_fn fn, void *opaque,
                                   struct hvx_error *err);
/* version is the newest that fn understands. */
HVX_WUR int hvx_state_load_section(FILE *f, const char *name, uint32_t version, hvx_state_fn fn, void *opaque,
                                   struct hvx_error *err);
HVX_WUR int hvx_state_write_end(FILE *f, struct hvx_error *err);
HVX_WUR int hvx_state_read_end(FILE *f, struct hvx_error *err);

#endif
