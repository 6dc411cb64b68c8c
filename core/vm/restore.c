/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/restore.c - a VM comes out of a file; snapshot.h says how. What is
 * read here may have been written by anybody.
 */
#define _GNU_SOURCE
#include "core/vm/snapshot_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

struct hvx_restore {
    FILE *f;
    char *name;
    bool skip_sums;
    uint64_t total;
    void (*progress)(void *opaque, uint64_t done, uint64_t total);
    void *opaque;
    struct hvx_saved_vm vm;
};

/* --- opening ------------------------------------------------------------------------ */

static void verified(void *opaque, uint64_t done)
{
    struct hvx_restore *r = opaque;

    if (r->progress)
        r->progress(r->opaque, done, r->total);
}

/* Puts the file's name before the message. */
static int with_name(struct hvx_restore *r, int code, struct hvx_error *err)
{
    char text[sizeof(err->text)];

    memcpy(text, err->text, sizeof(text));
    return hvx_fail(err, code, "%s: %s", r->name, text);
}

static int read_vm(struct hvx_restore *r, struct hvx_state_file *s, struct hvx_saved_vm *v, struct hvx_error *err)
{
    int e = hvx_state_read_header(s, err);

    if (r->skip_sums)
        hvx_state_ignore_sums(s);
    memset(v, 0, sizeof(*v));
    return e < 0 ? e : hvx_state_load_section(s, "vm", 1, hvx_saved_vm_state, v, err);
}

static int examine(struct hvx_restore *r, struct hvx_error *err)
{
    struct hvx_state_file *s;
    int e = r->skip_sums ? 0 : hvx_state_verify(r->f, verified, r, err);

    if (e < 0)
        return e;
    rewind(r->f);
    s = hvx_state_open(r->f);
    e = s ? read_vm(r, s, &r->vm, err) : hvx_fail(err, -ENOMEM, "saved state: out of memory");
    hvx_state_close(s);
    return e;
}

static int open_stream(FILE *f, const char *name, struct hvx_restore *r, struct hvx_error *err)
{
    int e;

    r->f = f;
    r->name = strdup(name);
    if (!r->name)
        e = hvx_fail(err, -ENOMEM, "saved state: out of memory");
    else if ((e = examine(r, err)) < 0)
        with_name(r, e, err);
    if (e < 0)
        hvx_restore_close(r);
    return e;
}

int hvx_restore_open_stream(FILE *f, const char *name, bool skip_sums, struct hvx_restore **out, struct hvx_error *err)
{
    struct hvx_restore *r = calloc(1, sizeof(*r));
    int e;

    if (!r) {
        fclose(f);
        return hvx_fail(err, -ENOMEM, "saved state: out of memory");
    }
    r->skip_sums = skip_sums;
    e = open_stream(f, name, r, err);
    if (e == 0)
        *out = r;
    return e;
}

int hvx_restore_open(const char *path, void (*progress)(void *opaque, uint64_t done, uint64_t total), void *opaque,
                     struct hvx_restore **out, struct hvx_error *err)
{
    /* Not to wait for the other end of a pipe. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), e;
    FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
    struct hvx_restore *r;
    struct stat st;

    if (!f || fstat(fd, &st) < 0)
        e = hvx_fail(err, -errno, "saved state %s: cannot open it: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        e = hvx_fail(err, -EINVAL, "saved state %s: this is no ordinary file", path);
    else
        e = 0;
    r = e == 0 ? calloc(1, sizeof(*r)) : NULL;
    if (e == 0 && !r)
        e = hvx_fail(err, -ENOMEM, "saved state: out of memory");
    if (e < 0) {
        if (f)
            fclose(f);
        else if (fd >= 0)
            close(fd);
        return e;
    }
    r->progress = progress;
    r->opaque = opaque;
    r->total = (uint64_t)st.st_size;
    e = open_stream(f, path, r, err);
    if (e == 0)
        *out = r;
    return e;
}

const struct hvx_saved_vm *hvx_restore_info(const struct hvx_restore *r)
{
    return &r->vm;
}

void hvx_restore_close(struct hvx_restore *r)
{
    if (!r)
        return;
    fclose(r->f);
    free(r->name);
    free(r);
}

void hvx_vm_restore_from(struct hvx_vm *vm, struct hvx_restore *r)
{
    vm->restore = r;
}

/* --- memory ---------------------------------------------------------------------------- */

/* Whatever firmware or a loader put there in this process. */
static void clear_ram(struct hvx_ram *ram)
{
    off_t from = 0, to;

    while ((uint64_t)from < ram->bytes) {
        from = lseek(ram->fd, from, SEEK_DATA);
        to = from < 0 ? -1 : lseek(ram->fd, from, SEEK_HOLE);
        if (from < 0 && errno == ENXIO)
            return; /* nothing more */
        if (to <= from || (uint64_t)to > ram->bytes) {
            from = from < 0 ? 0 : from;
            to = (off_t)ram->bytes;
        }
        memset(ram->hva + from, 0, (size_t)(to - from));
        from = to;
    }
}

struct unpacker {
    ZSTD_DCtx *zstd;
    uint8_t *pages;
    uint64_t next; /* sections ascend: nothing before this any more */
};

static int bad_chunk(uint64_t base, const char *why, struct hvx_error *err)
{
    return hvx_fail(err, -EINVAL, "restoring section 'ram': the piece at %#llx %s", (unsigned long long)base, why);
}

static int read_chunk(struct unpacker *u, struct hvx_ram *ram, const uint8_t *data, size_t n, struct hvx_error *err)
{
    const uint8_t *bits = data + 8, *page = u->pages;
    size_t n_pages = 0, got;
    uint64_t base;

    if (n < HVX_SAVED_CHUNK_HEAD)
        return bad_chunk(0, "is cut off", err);
    memcpy(&base, data, 8);
    if (base % HVX_SAVED_CHUNK || base < u->next || base >= ram->bytes)
        return bad_chunk(base, "is not where it may be", err);
    u->next = base + HVX_SAVED_CHUNK;
    for (unsigned i = 0; i < HVX_SAVED_CHUNK_PAGES; i++) {
        if (!(bits[i / 8] >> i % 8 & 1))
            continue;
        if (base + (uint64_t)i * HVX_PAGE >= ram->bytes)
            return bad_chunk(base, "reaches past the end of memory", err);
        n_pages++;
    }
    got = ZSTD_decompressDCtx(u->zstd, u->pages, HVX_SAVED_CHUNK, data + HVX_SAVED_CHUNK_HEAD,
                              n - HVX_SAVED_CHUNK_HEAD);
    if (ZSTD_isError(got))
        return bad_chunk(base, ZSTD_getErrorName(got), err);
    if (got != n_pages * HVX_PAGE)
        return bad_chunk(base, "has another size than it says", err);
    for (unsigned i = 0; i < HVX_SAVED_CHUNK_PAGES; i++)
        if (bits[i / 8] >> i % 8 & 1) {
            memcpy(ram->hva + base + (uint64_t)i * HVX_PAGE, page, HVX_PAGE);
            page += HVX_PAGE;
        }
    return 0;
}

static int load_ram(struct hvx_restore *r, struct hvx_state_file *s, struct hvx_ram *ram, struct hvx_error *err)
{
    struct unpacker u = {.zstd = ZSTD_createDCtx(), .pages = malloc(HVX_SAVED_CHUNK)};
    bool more = true;
    int e = u.zstd && u.pages ? 0 : hvx_fail(err, -ENOMEM, "saved state: out of memory");

    clear_ram(ram);
    while (e == 0 && more) {
        uint8_t *data;
        size_t n;
        e = hvx_state_read_raw(s, "ram", 1, &data, &n, err);
        if (e < 0)
            break;
        more = n > 0;
        if (more)
            e = read_chunk(&u, ram, data, n, err);
        free(data);
        verified(r, hvx_state_position(s));
    }
    ZSTD_freeDCtx(u.zstd);
    free(u.pages);
    return e;
}

/* --- all of it ----------------------------------------------------------------------------- */

int hvx_restore_load(struct hvx_restore *r, struct hvx_vm *vm, struct hvx_error *err)
{
    struct hvx_state_file *s;
    struct hvx_saved_vm *again = malloc(sizeof(*again));
    int e;

    rewind(r->f);
    s = hvx_state_open(r->f);
    hvx_loop_lock(vm->loop);
    e = s && again ? read_vm(r, s, again, err) : hvx_fail(err, -ENOMEM, "saved state: out of memory");
    if (e == 0)
        e = hvx_saved_vm_fits(again, vm, err);
    if (e == 0)
        e = hvx_vm_state_model(vm, s, false, err);
    if (e == 0)
        e = load_ram(r, s, &vm->ram, err);
    if (e == 0) {
        memcpy(vm->uuid, again->uuid, sizeof(vm->uuid));
        hvx_clock_freeze(hvx_clock_ns());
        e = hvx_vm_state_sections(vm, s, false, err);
        hvx_clock_freeze(0);
    }
    if (e == 0)
        e = hvx_state_read_end(s, err);
    hvx_loop_unlock(vm->loop);
    if (e < 0)
        with_name(r, e, err);
    hvx_state_close(s);
    free(again);
    return e;
}
