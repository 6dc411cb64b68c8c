/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/stream.c - the sections of a saved state.
 */
#include "core/vm/stream.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define FORMAT 1u
#define MAX_NAME 64u

static const char magic[8] = {'H', 'V', 'X', 'S', 'T', 'A', 'T', 'E'};

struct section {
    struct hvx_stream s; /* first: callbacks get a pointer to it */
    uint8_t *data;
    size_t n, pos, size;
    char why[200];
};

static void section_fail(struct hvx_stream *s, int code, const char *why)
{
    struct section *c = (struct section *)s;

    if (s->error)
        return;
    s->error = code < 0 ? code : -EINVAL;
    snprintf(c->why, sizeof(c->why), "%s", why);
}

static void section_bytes(struct hvx_stream *s, void *p, size_t n)
{
    struct section *c = (struct section *)s;

    if (s->error)
        return;
    if (!s->saving) {
        if (n > c->n - c->pos) {
            section_fail(s, -EINVAL, "it ends too early");
            return;
        }
        memcpy(p, c->data + c->pos, n);
        c->pos += n;
        return;
    }
    if (n > HVX_STATE_MAX_SECTION - c->n) {
        section_fail(s, -EFBIG, "it is larger than a section may be");
        return;
    }
    if (c->n + n > c->size) {
        size_t size = c->size ? c->size * 2 : 4096;
        uint8_t *data;
        while (size < c->n + n)
            size *= 2;
        data = realloc(c->data, size);
        if (!data) {
            section_fail(s, -ENOMEM, "out of memory");
            return;
        }
        c->data = data;
        c->size = size;
    }
    memcpy(c->data + c->n, p, n);
    c->n += n;
}

static void section_init(struct section *c, bool saving, uint32_t version)
{
    memset(c, 0, sizeof(*c));
    c->s = (struct hvx_stream){.size = sizeof(c->s),
                               .saving = saving,
                               .version = version,
                               .bytes = section_bytes,
                               .fail = section_fail};
}

/* --- integers in the file ------------------------------------------------------ */

struct head {
    uint8_t raw[2 + MAX_NAME + 8];
    size_t n;
};

static void head_put(struct head *h, uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        h->raw[h->n++] = (uint8_t)(v >> (8 * i));
}

static uint32_t get32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static int write_section(FILE *f, const char *name, uint32_t version, const uint8_t *data, size_t n,
                         struct hvx_error *err)
{
    struct head h = {.n = 0}, tail = {.n = 0};
    size_t length = strlen(name);
    uLong crc;

    if (length > MAX_NAME)
        return hvx_fail(err, -EINVAL, "saved state: the section name %s is too long", name);
    head_put(&h, length, 2);
    memcpy(h.raw + h.n, name, length);
    h.n += length;
    head_put(&h, version, 4);
    head_put(&h, n, 4);
    crc = crc32(crc32(0, h.raw, (uInt)h.n), data ? data : h.raw, (uInt)n);
    head_put(&tail, crc, 4);
    if (fwrite(h.raw, 1, h.n, f) != h.n || (n && fwrite(data, 1, n, f) != n) || fwrite(tail.raw, 1, 4, f) != 4)
        return hvx_fail(err, -EIO, "saved state: writing section %s: %s; is the disk full?", name, strerror(errno));
    return 0;
}

/* Reads one section; *data is owned by the caller. */
static int read_section(FILE *f, const char *name, uint32_t *version, uint8_t **data, size_t *n, struct hvx_error *err)
{
    uint8_t raw[2 + MAX_NAME + 8], crc_raw[4];
    size_t length, bytes;
    uint8_t *p;

    if (fread(raw, 1, 2, f) != 2)
        return hvx_fail(err, -EINVAL, "saved state: the file ends before section '%s': it is incomplete", name);
    length = raw[0] | (size_t)raw[1] << 8;
    if (length > MAX_NAME)
        return hvx_fail(err, -EINVAL, "saved state: the file is damaged before section '%s'", name);
    if (fread(raw + 2, 1, length + 8, f) != length + 8)
        return hvx_fail(err, -EINVAL, "saved state: the file ends before section '%s': it is incomplete", name);
    if (length != strlen(name) || memcmp(raw + 2, name, length))
        return hvx_fail(err, -EINVAL,
                        "saved state: found section '%.*s' where '%s' belongs; start the VM with the same devices "
                        "and engine as when it was saved",
                        (int)length, raw + 2, name);
    bytes = get32(raw + 2 + length + 4);
    if (bytes > HVX_STATE_MAX_SECTION)
        return hvx_fail(err, -EINVAL, "saved state: section '%s' claims %zu bytes: the file is damaged", name, bytes);
    p = malloc(bytes ? bytes : 1);
    if (!p)
        return hvx_fail(err, -ENOMEM, "saved state: out of memory for section '%s'", name);
    if (fread(p, 1, bytes, f) != bytes || fread(crc_raw, 1, 4, f) != 4) {
        free(p);
        return hvx_fail(err, -EINVAL, "saved state: the file ends inside section '%s': it is incomplete", name);
    }
    if (crc32(crc32(0, raw, (uInt)(2 + length + 8)), p, (uInt)bytes) != get32(crc_raw)) {
        free(p);
        return hvx_fail(err, -EINVAL, "saved state: checksum of section '%s' is wrong: the file is damaged", name);
    }
    *version = get32(raw + 2 + length);
    *data = p;
    *n = bytes;
    return 0;
}

/* --- interface ------------------------------------------------------------------- */

int hvx_state_write_header(FILE *f, struct hvx_error *err)
{
    struct head h = {.n = 0};

    head_put(&h, FORMAT, 4);
    head_put(&h, 0, 4);
    if (fwrite(magic, 1, sizeof(magic), f) != sizeof(magic) || fwrite(h.raw, 1, h.n, f) != h.n)
        return hvx_fail(err, -EIO, "saved state: cannot write: %s", strerror(errno));
    return 0;
}

int hvx_state_read_header(FILE *f, struct hvx_error *err)
{
    uint8_t raw[16];

    if (fread(raw, 1, sizeof(raw), f) != sizeof(raw) || memcmp(raw, magic, sizeof(magic)))
        return hvx_fail(err, -EINVAL, "saved state: this is not a saved state of HVX");
    if (get32(raw + 8) != FORMAT)
        return hvx_fail(err, -EINVAL, "saved state: the file has format %u, this program reads %u", get32(raw + 8),
                        FORMAT);
    return 0;
}

int hvx_state_save_section(FILE *f, const char *name, uint32_t version, hvx_state_fn fn, void *opaque,
                           struct hvx_error *err)
{
    struct section c;
    int r;

    section_init(&c, true, version);
    r = fn(opaque, &c.s);
    if (c.s.error)
        r = c.s.error;
    if (r < 0)
        hvx_fail(err, r, "saving section '%s': %s", name, c.why[0] ? c.why : strerror(-r));
    else
        r = write_section(f, name, version, c.data, c.n, err);
    free(c.data);
    return r < 0 ? r : 0;
}

int hvx_state_load_section(FILE *f, const char *name, uint32_t version, hvx_state_fn fn, void *opaque,
                           struct hvx_error *err)
{
    struct section c;
    uint32_t found;
    int r;

    section_init(&c, false, 0);
    r = read_section(f, name, &found, &c.data, &c.n, err);
    if (r < 0)
        return r;
    if (found > version) {
        free(c.data);
        return hvx_fail(err, -EINVAL,
                        "saved state: section '%s' has version %u, this program knows up to %u; use a newer HVX", name,
                        found, version);
    }
    c.s.version = found;
    r = fn(opaque, &c.s);
    if (c.s.error)
        r = c.s.error;
    if (r < 0)
        hvx_fail(err, r, "restoring section '%s': %s", name, c.why[0] ? c.why : strerror(-r));
    else if (c.pos != c.n)
        r = hvx_fail(err, -EINVAL, "restoring section '%s': %zu bytes are left over", name, c.n - c.pos);
    free(c.data);
    return r < 0 ? r : 0;
}

int hvx_state_write_end(FILE *f, struct hvx_error *err)
{
    int r = write_section(f, "", 0, NULL, 0, err);

    if (r == 0 && fflush(f))
        r = hvx_fail(err, -EIO, "saved state: cannot write: %s", strerror(errno));
    return r;
}

int hvx_state_read_end(FILE *f, struct hvx_error *err)
{
    uint32_t version;
    uint8_t *data;
    size_t n;
    int r = read_section(f, "", &version, &data, &n, err);

    if (r == 0)
        free(data);
    return r;
}
