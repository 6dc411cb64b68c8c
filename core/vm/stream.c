/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/stream.c - the sections of a saved state.
 */
#include "core/vm/stream.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zlib.h>

#define VERIFY_CHUNK 65536u
#define END_BYTES sizeof(XXH128_canonical_t)

static const char magic[8] = {'H', 'V', 'X', 'S', 'T', 'A', 'T', 'E'};

struct hvx_state_file {
    FILE *f;
    XXH3_state_t *hash; /* of everything up to here */
    uint64_t position;
    bool ignore_sums;
};

struct section {
    struct hvx_stream s; /* first: callbacks get a pointer to it */
    uint8_t *data;
    size_t n, pos, size;
    char why[300];
};

/* --- bytes ------------------------------------------------------------------------ */

struct hvx_state_file *hvx_state_open(FILE *f)
{
    struct hvx_state_file *s = calloc(1, sizeof(*s));

    if (!s)
        return NULL;
    s->f = f;
    s->hash = XXH3_createState();
    if (!s->hash) {
        free(s);
        return NULL;
    }
    XXH3_128bits_reset(s->hash);
    return s;
}

void hvx_state_close(struct hvx_state_file *s)
{
    if (!s)
        return;
    XXH3_freeState(s->hash);
    free(s);
}

uint64_t hvx_state_position(const struct hvx_state_file *s)
{
    return s->position;
}

void hvx_state_ignore_sums(struct hvx_state_file *s)
{
    s->ignore_sums = true;
}

static bool put(struct hvx_state_file *s, const void *p, size_t n)
{
    XXH3_128bits_update(s->hash, p, n);
    s->position += n;
    return !n || fwrite(p, 1, n, s->f) == n;
}

static bool get(struct hvx_state_file *s, void *p, size_t n)
{
    if (n && fread(p, 1, n, s->f) != n)
        return false;
    XXH3_128bits_update(s->hash, p, n);
    s->position += n;
    return true;
}

static int cannot_write(struct hvx_error *err)
{
    int e = errno;

    return hvx_fail(err, e ? -e : -EIO, "saved state: writing: %s%s", e ? strerror(e) : "short write",
                    e == ENOSPC || e == EDQUOT || e == EFBIG ? "; free some room, or name another folder" : "");
}

/* --- the fields of a section --------------------------------------------------------- */

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

/* --- sections in the file -------------------------------------------------------------- */

struct head {
    uint8_t raw[2 + HVX_STATE_MAX_NAME + 8];
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

int hvx_state_write_raw(struct hvx_state_file *s, const char *name, uint32_t version, const void *data, size_t n,
                        struct hvx_error *err)
{
    struct head h = {.n = 0}, tail = {.n = 0};
    size_t length = strlen(name);
    uLong crc;

    if (length > HVX_STATE_MAX_NAME || n > HVX_STATE_MAX_SECTION)
        return hvx_fail(err, -EINVAL, "saved state: section %s: its name or itself is too long", name);
    head_put(&h, length, 2);
    memcpy(h.raw + h.n, name, length);
    h.n += length;
    head_put(&h, version, 4);
    head_put(&h, n, 4);
    crc = crc32(crc32(0, h.raw, (uInt)h.n), n ? data : h.raw, (uInt)n);
    head_put(&tail, crc, 4);
    errno = 0;
    if (!put(s, h.raw, h.n) || !put(s, data, n) || !put(s, tail.raw, 4))
        return cannot_write(err);
    return 0;
}

int hvx_state_append(struct hvx_state_file *s, const void *sections, size_t n, struct hvx_error *err)
{
    errno = 0;
    return put(s, sections, n) ? 0 : cannot_write(err);
}

static int incomplete(struct hvx_state_file *s, const char *where, const char *name, struct hvx_error *err)
{
    return hvx_fail(err, -EINVAL, "saved state: the file ends at byte %llu, %s section '%s': it is incomplete",
                    (unsigned long long)s->position, where, name);
}

/* The part before the payload; name is what is expected, NULL for anything.
 * h->raw then holds the name behind two bytes. */
static int read_head(struct hvx_state_file *s, const char *name, struct head *h, uint32_t *version, size_t *bytes,
                     struct hvx_error *err)
{
    unsigned long long at = s->position;
    size_t length;

    if (!get(s, h->raw, 2))
        return incomplete(s, "before", name ? name : "(end)", err);
    length = h->raw[0] | (size_t)h->raw[1] << 8;
    if (length > HVX_STATE_MAX_NAME)
        return hvx_fail(err, -EINVAL, "saved state: no section begins at byte %llu: the file is damaged", at);
    if (!get(s, h->raw + 2, length + 8))
        return incomplete(s, "in the head of", name ? name : "?", err);
    h->n = 2 + length + 8;
    if (name && (length != strlen(name) || memcmp(h->raw + 2, name, length)))
        return hvx_fail(err, -EINVAL,
                        "saved state: found section '%.*s' where '%s' belongs; start the VM with the same devices "
                        "and engine as when it was saved",
                        (int)length, h->raw + 2, name);
    *version = get32(h->raw + 2 + length);
    *bytes = get32(h->raw + 2 + length + 4);
    if (*bytes > HVX_STATE_MAX_SECTION)
        return hvx_fail(err, -EINVAL, "saved state: the section at byte %llu claims %zu bytes: the file is damaged", at,
                        *bytes);
    return 0;
}

static int wrong_sum(const char *name, struct hvx_error *err)
{
    return hvx_fail(err, -EINVAL, "saved state: the checksum of section '%s' is wrong: the file is damaged", name);
}

/* Reads one section; *data is owned by the caller. */
static int read_section(struct hvx_state_file *s, const char *name, uint32_t *version, uint8_t **data, size_t *n,
                        struct hvx_error *err)
{
    struct head h;
    uint8_t sum[4], *p;
    int r = read_head(s, name, &h, version, n, err);

    if (r < 0)
        return r;
    p = malloc(*n ? *n : 1);
    if (!p)
        return hvx_fail(err, -ENOMEM, "saved state: out of memory for section '%s'", name);
    if (!get(s, p, *n) || !get(s, sum, 4))
        r = incomplete(s, "in", name, err);
    else if (crc32(crc32(0, h.raw, (uInt)h.n), p, (uInt)*n) != get32(sum) && !s->ignore_sums)
        r = wrong_sum(name, err);
    if (r < 0) {
        free(p);
        return r;
    }
    *data = p;
    return 0;
}

static int too_new(const char *name, uint32_t found, uint32_t version, struct hvx_error *err)
{
    return hvx_fail(err, -EINVAL,
                    "saved state: section '%s' has version %u, this program knows up to %u; use a newer HVX", name,
                    found, version);
}

int hvx_state_read_raw(struct hvx_state_file *s, const char *name, uint32_t version, uint8_t **data, size_t *n,
                       struct hvx_error *err)
{
    uint32_t found;
    int r = read_section(s, name, &found, data, n, err);

    if (r == 0 && found > version) {
        free(*data);
        r = too_new(name, found, version, err);
    }
    return r;
}

/* --- interface ------------------------------------------------------------------- */

int hvx_state_write_header(struct hvx_state_file *s, struct hvx_error *err)
{
    struct head h = {.n = 0};

    head_put(&h, HVX_STATE_FORMAT, 4);
    head_put(&h, 0, 4);
    errno = 0;
    return put(s, magic, sizeof(magic)) && put(s, h.raw, h.n) ? 0 : cannot_write(err);
}

int hvx_state_read_header(struct hvx_state_file *s, struct hvx_error *err)
{
    uint8_t raw[16];

    if (!get(s, raw, sizeof(raw)) || memcmp(raw, magic, sizeof(magic)))
        return hvx_fail(err, -EINVAL, "saved state: this is not a saved state of HVX");
    if (get32(raw + 8) != HVX_STATE_FORMAT)
        return hvx_fail(err, -EINVAL, "saved state: the file has format %u, this program reads %u; use %s HVX",
                        get32(raw + 8), HVX_STATE_FORMAT, get32(raw + 8) > HVX_STATE_FORMAT ? "a newer" : "an older");
    if (get32(raw + 12))
        return hvx_fail(err, -EINVAL, "saved state: the file uses features that this program does not know; use a "
                                      "newer HVX");
    return 0;
}

int hvx_state_save_section(struct hvx_state_file *s, const char *name, uint32_t version, hvx_state_fn fn, void *opaque,
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
        r = hvx_state_write_raw(s, name, version, c.data, c.n, err);
    free(c.data);
    return r < 0 ? r : 0;
}

int hvx_state_load_section(struct hvx_state_file *s, const char *name, uint32_t version, hvx_state_fn fn, void *opaque,
                           struct hvx_error *err)
{
    struct section c;
    uint32_t found;
    int r;

    section_init(&c, false, 0);
    r = read_section(s, name, &found, &c.data, &c.n, err);
    if (r < 0)
        return r;
    if (found > version) {
        free(c.data);
        return too_new(name, found, version, err);
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

static void digest(struct hvx_state_file *s, uint8_t out[END_BYTES])
{
    XXH128_canonical_t c;

    XXH128_canonicalFromHash(&c, XXH3_128bits_digest(s->hash));
    memcpy(out, &c, END_BYTES);
}

int hvx_state_write_end(struct hvx_state_file *s, struct hvx_error *err)
{
    uint8_t sum[END_BYTES];
    int r;

    digest(s, sum);
    r = hvx_state_write_raw(s, "", 0, sum, sizeof(sum), err);
    errno = 0;
    if (r == 0 && fflush(s->f))
        r = cannot_write(err);
    return r;
}

int hvx_state_read_end(struct hvx_state_file *s, struct hvx_error *err)
{
    uint8_t sum[END_BYTES], *data;
    size_t n;
    int r;

    digest(s, sum);
    r = hvx_state_read_raw(s, "", 0, &data, &n, err);
    if (r < 0)
        return r;
    if ((n != sizeof(sum) || memcmp(sum, data, sizeof(sum))) && !s->ignore_sums)
        r = hvx_fail(err, -EINVAL, "saved state: the checksum of the whole file is wrong: it is damaged");
    free(data);
    if (r == 0 && fgetc(s->f) != EOF)
        r = hvx_fail(err, -EINVAL, "saved state: something follows the end of the state: the file is damaged");
    return r;
}

/* --- checking a whole file ---------------------------------------------------------- */

/* One section in small pieces; *end when it was the last one. */
static int verify_section(struct hvx_state_file *s, uint8_t *buf, bool *end, struct hvx_error *err)
{
    char name[HVX_STATE_MAX_NAME + 1] = "";
    uint8_t sum[4], whole[END_BYTES];
    struct head h;
    uint32_t version;
    size_t n;
    uLong crc;
    int r;

    digest(s, whole);
    r = read_head(s, NULL, &h, &version, &n, err);
    if (r < 0)
        return r;
    memcpy(name, h.raw + 2, h.n - 10);
    for (char *c = name; *c; c++)
        if (*c < ' ' || *c > '~')
            *c = '?'; /* it may go to a terminal */
    *end = h.n == 10;
    if (*end && n != END_BYTES)
        return wrong_sum("(end)", err);
    crc = crc32(0, h.raw, (uInt)h.n);
    while (n) {
        size_t piece = n < VERIFY_CHUNK ? n : VERIFY_CHUNK;
        if (!get(s, buf, piece))
            return incomplete(s, "in", name, err);
        crc = crc32(crc, buf, (uInt)piece);
        n -= piece;
    }
    if (!get(s, sum, 4))
        return incomplete(s, "in", name, err);
    if (crc != get32(sum))
        return wrong_sum(*end ? "(end)" : name, err);
    if (*end && memcmp(whole, buf, END_BYTES))
        return hvx_fail(err, -EINVAL, "saved state: the checksum of the whole file is wrong: it is damaged");
    return 0;
}

int hvx_state_verify(FILE *f, void (*progress)(void *opaque, uint64_t done), void *opaque, struct hvx_error *err)
{
    struct hvx_state_file *s = hvx_state_open(f);
    uint8_t *buf = malloc(VERIFY_CHUNK);
    bool end = false;
    int r = 0;

    if (!s || !buf)
        r = hvx_fail(err, -ENOMEM, "saved state: out of memory");
    if (r == 0)
        r = hvx_state_read_header(s, err);
    while (r == 0 && !end) {
        r = verify_section(s, buf, &end, err);
        if (progress)
            progress(opaque, s->position);
    }
    if (r == 0 && fgetc(f) != EOF)
        r = hvx_fail(err, -EINVAL, "saved state: something follows the end of the state: the file is damaged");
    free(buf);
    hvx_state_close(s);
    return r;
}
