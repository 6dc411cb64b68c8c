/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/save.c - a VM goes to a file; snapshot.h says how.
 *
 * The small sections are taken at the start, into memory: they are as of that
 * moment, however long the guest's memory takes afterwards.
 */
#define _GNU_SOURCE
#include "core/vm/snapshot_file.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#define LEVEL 1
#define STEP_NS 50000000ull

struct hvx_save {
    struct hvx_vm *vm;
    struct hvx_state_file *out;
    FILE *small; /* over small_data */
    char *small_data;
    size_t small_n;
    uint64_t offset; /* in guest RAM: all before is written */
    bool finished;
    ZSTD_CCtx *zstd;
    uint8_t *pages, *packed; /* of one chunk */
    size_t packed_size;
};

/* --- memory ------------------------------------------------------------------------ */

static bool is_zero(const uint8_t *page)
{
    const uint64_t *w = (const uint64_t *)(const void *)page;

    /* Most pages that are in use show it at once. */
    return !w[0] && !memcmp(page, page + 8, HVX_PAGE - 8);
}

/* The next bytes of RAM, from `at`, that ever were touched: *end is where they
 * end. Reading untouched ones would give them memory. */
static uint64_t next_data(const struct hvx_ram *ram, uint64_t at, uint64_t *end)
{
    off_t from, to;

    *end = ram->bytes;
    if (ram->map) /* frames in another order than in the file */
        return at;
    from = lseek(ram->fd, (off_t)at, SEEK_DATA);
    if (from < 0)
        return errno == ENXIO ? ram->bytes : at;
    to = lseek(ram->fd, from, SEEK_HOLE);
    if (to > from)
        *end = (uint64_t)to;
    return (uint64_t)from & ~(uint64_t)(HVX_PAGE - 1);
}

/* Pages of the chunk that begins at `base` that are not zero, and their bits. */
static unsigned gather(struct hvx_save *s, uint64_t base, uint8_t *bits)
{
    const struct hvx_ram *ram = &s->vm->ram;
    uint64_t end = base + HVX_SAVED_CHUNK < ram->bytes ? base + HVX_SAVED_CHUNK : ram->bytes, data_end;
    unsigned n = 0;

    for (uint64_t at = base; (at = next_data(ram, at, &data_end)) < end;) {
        for (; at < data_end && at < end; at += HVX_PAGE) {
            unsigned i = (unsigned)((at - base) / HVX_PAGE);
            uint8_t *page;
            bool writable;
            hvx_ram_run(ram, at, HVX_PAGE, &page, &writable);
            if (is_zero(page))
                continue;
            memcpy(s->pages + (size_t)n++ * HVX_PAGE, page, HVX_PAGE);
            bits[i / 8] |= (uint8_t)(1u << i % 8);
        }
    }
    return n;
}

static int write_chunk(struct hvx_save *s, uint64_t base, struct hvx_error *err)
{
    unsigned n;
    size_t packed;

    memset(s->packed, 0, HVX_SAVED_CHUNK_HEAD);
    memcpy(s->packed, &base, 8);
    n = gather(s, base, s->packed + 8);
    if (!n)
        return 0;
    packed = ZSTD_compressCCtx(s->zstd, s->packed + HVX_SAVED_CHUNK_HEAD, s->packed_size - HVX_SAVED_CHUNK_HEAD,
                               s->pages, (size_t)n * HVX_PAGE, LEVEL);
    if (ZSTD_isError(packed))
        return hvx_fail(err, -EIO, "saved state: zstd: %s", ZSTD_getErrorName(packed));
    return hvx_state_write_raw(s->out, "ram", 1, s->packed, HVX_SAVED_CHUNK_HEAD + packed, err);
}

/* --- life -------------------------------------------------------------------------------- */

static int allocate(struct hvx_save *s, FILE *f)
{
    s->packed_size = HVX_SAVED_CHUNK_HEAD + ZSTD_compressBound(HVX_SAVED_CHUNK);
    s->pages = malloc(HVX_SAVED_CHUNK);
    s->packed = malloc(s->packed_size);
    s->zstd = ZSTD_createCCtx();
    s->out = hvx_state_open(f);
    s->small = open_memstream(&s->small_data, &s->small_n);
    return s->pages && s->packed && s->zstd && s->out && s->small ? 0 : -ENOMEM;
}

static int drain_disks(struct hvx_vm *vm, struct hvx_error *err)
{
    for (unsigned i = 0; i < vm->n_blk; i++) {
        /* Twice: writing back an image's tables can leave some more to write, and
         * after its mark is taken nothing may. */
        int r = hvx_blk_drain(vm->blk[i].p);
        if (r == 0)
            r = hvx_blk_drain(vm->blk[i].p);
        if (r < 0)
            return hvx_fail(err, r, "%s: what the guest wrote could not be brought to the disk: %s", vm->blk[i].id,
                            strerror(-r));
    }
    return 0;
}

/* Everything but the memory, VM lock held. */
static int write_small(struct hvx_save *s, const char *command, struct hvx_error *err)
{
    struct hvx_saved_vm *v = malloc(sizeof(*v));
    struct hvx_state_file *small = hvx_state_open(s->small);
    int r = v && small ? 0 : hvx_fail(err, -ENOMEM, "saved state: out of memory");

    hvx_clock_freeze(hvx_clock_ns());
    if (r == 0)
        r = hvx_vm_state_sections(s->vm, small, true, err);
    if (r == 0)
        r = hvx_saved_vm_of(s->vm, command, v, err);
    if (r == 0)
        r = hvx_state_write_header(s->out, err);
    if (r == 0)
        r = hvx_state_save_section(s->out, "vm", 1, hvx_saved_vm_state, v, err);
    if (r == 0)
        r = hvx_vm_state_model(s->vm, s->out, true, err);
    hvx_clock_freeze(0);
    hvx_state_close(small);
    free(v);
    if (r == 0 && fflush(s->small))
        r = hvx_fail(err, -ENOMEM, "saved state: out of memory");
    return r;
}

int hvx_save_begin(struct hvx_vm *vm, FILE *f, const char *command, struct hvx_save **out, struct hvx_error *err)
{
    struct hvx_save *s = calloc(1, sizeof(*s));
    int r;

    if (!s)
        return hvx_fail(err, -ENOMEM, "saved state: out of memory");
    s->vm = vm;
    hvx_vm_pause(vm);
    hvx_vm_settle(vm);
    hvx_loop_lock(vm->loop);
    r = allocate(s, f);
    if (r < 0)
        hvx_fail(err, r, "saved state: out of memory");
    if (r == 0)
        r = drain_disks(vm, err);
    if (r == 0)
        r = write_small(s, command, err);
    if (r < 0) {
        hvx_save_end(s, true);
        return r;
    }
    *out = s;
    return 0;
}

int hvx_save_step(struct hvx_save *s, struct hvx_error *err)
{
    uint64_t until = hvx_clock_ns() + STEP_NS, end;
    int r;

    while (s->offset < s->vm->ram.bytes) {
        uint64_t base = next_data(&s->vm->ram, s->offset, &end) & ~(uint64_t)(HVX_SAVED_CHUNK - 1);
        if (base < s->vm->ram.bytes) {
            r = write_chunk(s, base, err);
            if (r < 0)
                return r;
        }
        s->offset = base + HVX_SAVED_CHUNK < s->vm->ram.bytes ? base + HVX_SAVED_CHUNK : s->vm->ram.bytes;
        if (hvx_clock_ns() > until)
            return 1;
    }
    if (s->finished)
        return 0;
    s->finished = true;
    r = hvx_state_write_raw(s->out, "ram", 1, NULL, 0, err);
    if (r == 0)
        r = hvx_state_append(s->out, s->small_data, s->small_n, err);
    return r < 0 ? r : hvx_state_write_end(s->out, err);
}

void hvx_save_progress(const struct hvx_save *s, uint64_t *done, uint64_t *total)
{
    *done = s->offset;
    *total = s->vm->ram.bytes;
}

void hvx_save_end(struct hvx_save *s, bool resume)
{
    if (!s)
        return;
    hvx_loop_unlock(s->vm->loop);
    if (resume)
        hvx_vm_resume(s->vm);
    if (s->small)
        fclose(s->small);
    free(s->small_data);
    hvx_state_close(s->out);
    ZSTD_freeCCtx(s->zstd);
    free(s->pages);
    free(s->packed);
    free(s);
}
