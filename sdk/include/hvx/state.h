/* SPDX-License-Identifier: Apache-2.0
 *
 * hvx/state.h - saving and restoring the state of devices and engines.
 *
 * A saved state is a sequence of named sections, one per instance, each with
 * a version; inside a section fields follow one another in the order written.
 * One function serves both directions: `hvx_stream_is_saving()` tells which,
 * and every hvx_state_*() call either writes the field or reads it back.
 *
 *     static int foo_state(void *dev, struct hvx_stream *s)
 *     {
 *         struct foo *f = dev;
 *         hvx_state_u32(s, &f->control);
 *         hvx_state_bytes(s, f->fifo, sizeof(f->fifo));
 *         return hvx_state_error(s);
 *     }
 *
 * Errors latch: after the first one every call does nothing, and
 * hvx_state_error() returns it. Counts read back come from a file and must be
 * checked before use; hvx_state_fail() latches a refusal with a reason.
 * All integers are little-endian in the stream.
 */
#ifndef HVX_STATE_H
#define HVX_STATE_H

#include <hvx/base.h>

HVX_EXTERN_C_BEGIN

/* The stream's own functions; core fills it in. Append-only. */
struct hvx_stream {
    uint32_t size;
    uint32_t saving;   /* 1 saving, 0 restoring */
    uint32_t version;  /* restoring: version of the section in the file */
    int32_t error;     /* latched -errno */
    void (*bytes)(struct hvx_stream *s, void *p, size_t n);
    void (*fail)(struct hvx_stream *s, int code, const char *why);
};

static inline bool hvx_stream_is_saving(const struct hvx_stream *s) { return s->saving != 0; }
static inline int hvx_state_error(const struct hvx_stream *s) { return s->error; }
static inline void hvx_state_fail(struct hvx_stream *s, int code, const char *why) { s->fail(s, code, why); }
static inline void hvx_state_bytes(struct hvx_stream *s, void *p, size_t n) { s->bytes(s, p, n); }
static inline void hvx_state_u8(struct hvx_stream *s, uint8_t *v) { s->bytes(s, v, 1); }
static inline void hvx_state_u16(struct hvx_stream *s, uint16_t *v) { s->bytes(s, v, 2); }
static inline void hvx_state_u32(struct hvx_stream *s, uint32_t *v) { s->bytes(s, v, 4); }
static inline void hvx_state_u64(struct hvx_stream *s, uint64_t *v) { s->bytes(s, v, 8); }
static inline void hvx_state_bool(struct hvx_stream *s, bool *v)
{
    uint8_t b = *v ? 1 : 0;
    s->bytes(s, &b, 1);
    *v = b != 0;
}

HVX_EXTERN_C_END
#endif
