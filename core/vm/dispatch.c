/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/dispatch.c - accesses: to RAM by devices, and to devices by vCPUs.
 * On the guest's critical path: no allocation, no logging.
 */
#include "core/vm/space.h"

#include <string.h>

static const struct hvx_segment_view *search(const struct hvx_flat *f, uint64_t addr)
{
    unsigned lo = 0, hi = f->n;

    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        if (f->seg[mid].last < addr)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < f->n && f->seg[lo].first <= addr ? &f->seg[lo] : NULL;
}

bool hvx_space_lookup(struct hvx_address_space *s, uint64_t addr, struct hvx_segment_view *out)
{
    for (;;) {
        /* acquire pairs with the release in hvx_space_refresh */
        unsigned sequence = atomic_load_explicit(&s->sequence, memory_order_acquire);
        const struct hvx_segment_view *v = search(s->flat[sequence & 1], addr);
        if (v)
            *out = *v;
        atomic_thread_fence(memory_order_acquire);
        if (atomic_load_explicit(&s->sequence, memory_order_relaxed) == sequence)
            return v != NULL;
    }
}

/* With the VM lock the array cannot change under us. */
static const struct hvx_segment_view *find_locked(struct hvx_address_space *s, uint64_t addr)
{
    const struct hvx_flat *f = s->flat[atomic_load_explicit(&s->sequence, memory_order_relaxed) & 1];
    const struct hvx_segment_view *v;

    if (s->last_hit < f->n && addr >= f->seg[s->last_hit].first && addr <= f->seg[s->last_hit].last)
        return &f->seg[s->last_hit];
    v = search(f, addr);
    if (v)
        s->last_hit = (unsigned)(v - f->seg);
    return v;
}

/* --- devices ---------------------------------------------------------------------- */

static void region_read(struct hvx_region *r, uint64_t off, unsigned size, uint8_t *out)
{
    unsigned step = size;

    r->n_reads++;
    if (!r->ops->read) {
        memset(out, 0xff, size);
        return;
    }
    if (r->flags & HVX_REGION_MIN1)
        step = 1;
    else if ((r->flags & HVX_REGION_MAX4) && size > 4)
        step = 4;
    for (unsigned i = 0; i < size; i += step) {
        uint64_t v = r->ops->read(r->opaque, off + i, step);
        memcpy(out + i, &v, step);
    }
}

static void region_write(struct hvx_region *r, uint64_t off, unsigned size, const uint8_t *in)
{
    unsigned step = size;

    r->n_writes++;
    if (!r->ops->write)
        return;
    if (r->flags & HVX_REGION_MIN1)
        step = 1;
    else if ((r->flags & HVX_REGION_MAX4) && size > 4)
        step = 4;
    for (unsigned i = 0; i < size; i += step) {
        uint64_t v = 0;
        memcpy(&v, in + i, step);
        r->ops->write(r->opaque, off + i, step, v);
    }
}

/* The largest access of 1, 2, 4 or 8 bytes that fits in n. */
static unsigned piece(uint64_t n)
{
    return n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1;
}

void hvx_space_read(struct hvx_address_space *s, uint64_t addr, unsigned size, void *value)
{
    uint8_t *out = value;

    s->n_reads++;
    while (size) {
        const struct hvx_segment_view *v = find_locked(s, addr);
        unsigned n;
        if (!v) {
            s->n_unclaimed++;
            *out = 0xff;
            n = 1;
        } else if (v->read_hva) {
            n = v->last - addr < size ? (unsigned)(v->last - addr) + 1 : size;
            memcpy(out, v->read_hva + (addr - v->first), n);
        } else if (!v->region) { /* a hole whose writes go to RAM */
            *out = 0xff;
            n = 1;
        } else {
            uint64_t room = v->last - addr + 1;
            n = piece(size < room ? size : room);
            region_read(v->region, v->region_off + (addr - v->first), n, out);
        }
        out += n;
        addr += n;
        size -= n;
    }
}

void hvx_space_write(struct hvx_address_space *s, uint64_t addr, unsigned size, const void *value)
{
    const uint8_t *in = value;

    s->n_writes++;
    while (size) {
        const struct hvx_segment_view *v = find_locked(s, addr);
        unsigned n;
        if (!v) {
            s->n_unclaimed++;
            n = 1;
        } else if (v->write_hva) {
            n = v->last - addr < size ? (unsigned)(v->last - addr) + 1 : size;
            memcpy(v->write_hva + (addr - v->first), in, n);
            if (s->code_written)
                s->code_written(s->slot_opaque, addr, n);
        } else if (v->below) { /* flash */
            uint64_t room = v->last - addr + 1;
            n = piece(size < room ? size : room);
            region_write(v->below, v->below_off + (addr - v->first), n, in);
        } else if (v->kind != HVX_LAYER_IO) { /* ROM */
            n = 1;
        } else {
            uint64_t room = v->last - addr + 1;
            n = piece(size < room ? size : room);
            region_write(v->region, v->region_off + (addr - v->first), n, in);
        }
        in += n;
        addr += n;
        size -= n;
    }
}

/* --- memory ------------------------------------------------------------------------- */

int hvx_space_mem_read(struct hvx_address_space *s, uint64_t gpa, void *buf, size_t n)
{
    struct hvx_segment_view v;
    uint8_t *out = buf;
    int result = 0;

    while (n) {
        size_t step = 1;
        if (hvx_space_lookup(s, gpa, &v) && v.read_hva) {
            step = v.last - gpa < n ? (size_t)(v.last - gpa) + 1 : n;
            memcpy(out, v.read_hva + (gpa - v.first), step);
        } else {
            *out = 0xff;
            result = -EFAULT;
        }
        out += step;
        gpa += step;
        n -= step;
    }
    return result;
}

int hvx_space_mem_write(struct hvx_address_space *s, uint64_t gpa, const void *buf, size_t n)
{
    struct hvx_segment_view v;
    const uint8_t *in = buf;
    int result = 0;

    while (n) {
        size_t step = 1;
        if (hvx_space_lookup(s, gpa, &v) && v.write_hva) {
            step = v.last - gpa < n ? (size_t)(v.last - gpa) + 1 : n;
            memcpy(v.write_hva + (gpa - v.first), in, step);
            if (s->code_written)
                s->code_written(s->slot_opaque, gpa, step);
        } else {
            result = -EFAULT;
        }
        in += step;
        gpa += step;
        n -= step;
    }
    return result;
}

void *hvx_space_mem_ptr(struct hvx_address_space *s, uint64_t gpa, size_t *n)
{
    struct hvx_segment_view v;

    /* Plain RAM only: mapped memory may go away, and RAM under PAM may be
     * seen by reads or writes alone. */
    if (!hvx_space_lookup(s, gpa, &v) || v.kind != HVX_LAYER_RAM || v.read_hva != v.write_hva)
        return NULL;
    if (v.last - gpa < *n)
        *n = (size_t)(v.last - gpa) + 1;
    return v.read_hva + (gpa - v.first);
}
