/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/space.c - layers, and how they are flattened into segments and
 * engine slots. Dispatch of accesses is in dispatch.c.
 */
#include "core/vm/space.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define PAM_END (HVX_PAM_START + HVX_PAM_PAGES * HVX_PAGE)
#define PAM_CHOSEN 1u
#define PAM_READ_RAM 2u
#define PAM_WRITE_RAM 4u

/* --- flattening ---------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static struct hvx_region *top_at(const struct hvx_address_space *s, uint64_t addr, bool without_ram)
{
    for (unsigned i = s->n_layers; i-- > 0;) {
        struct hvx_region *r = s->layers[i];
        if (r->addr != HVX_ADDR_NONE && addr >= r->addr && addr - r->addr < r->bytes &&
            !(without_ram && r->kind == HVX_LAYER_RAM))
            return r;
    }
    return NULL;
}

/* A read-only map over a device region shows what the device holds (flash):
 * the device gets the writes. */
static struct hvx_region *io_below(const struct hvx_address_space *s, const struct hvx_region *map, uint64_t addr)
{
    unsigned i = s->n_layers;

    while (i-- > 0 && s->layers[i] != map)
        ;
    while (i-- > 0 && i < s->n_layers) {
        struct hvx_region *r = s->layers[i];
        if (r->addr != HVX_ADDR_NONE && addr >= r->addr && addr - r->addr < r->bytes)
            return r->kind == HVX_LAYER_IO ? r : NULL;
    }
    return NULL;
}

static bool continues(const struct hvx_segment_view *a, const struct hvx_segment_view *b)
{
    uint64_t n = a->last - a->first + 1;

    return a->last + 1 == b->first && a->kind == b->kind && a->region == b->region &&
           a->region_off + n == b->region_off && (a->read_hva ? a->read_hva + n : NULL) == b->read_hva &&
           (a->write_hva ? a->write_hva + n : NULL) == b->write_hva && a->below == b->below &&
           (!a->below || a->below_off + n == b->below_off);
}

static void flat_append(struct hvx_flat *f, const struct hvx_segment_view *v)
{
    if (f->n && continues(&f->seg[f->n - 1], v)) {
        f->seg[f->n - 1].last = v->last;
        return;
    }
    if (f->n < HVX_MAX_SEGMENTS) /* beyond it the address is a hole; only a page map of many runs gets here */
        f->seg[f->n++] = *v;
}

/* The segment(s) of [first, last], which no layer boundary cuts. */
static void flat_add(struct hvx_address_space *s, struct hvx_flat *f, uint64_t first, uint64_t last)
{
    uint8_t pam = s->id == HVX_SPACE_MMIO && first >= HVX_PAM_START && first < PAM_END
                      ? s->pam[(first - HVX_PAM_START) / HVX_PAGE]
                      : 0;

    while (first <= last) {
        uint64_t n = last - first + 1;
        struct hvx_segment_view v = {.first = first};
        struct hvx_region *r = top_at(s, first, (pam & PAM_CHOSEN) && !(pam & PAM_READ_RAM));
        struct hvx_region *ram = NULL;
        uint8_t *ram_hva = NULL;
        bool ram_writable = false;

        if ((pam & (PAM_READ_RAM | PAM_WRITE_RAM)) && first < s->ram->below_4g)
            for (unsigned i = 0; i < s->n_layers && !ram; i++)
                if (s->layers[i]->kind == HVX_LAYER_RAM && s->layers[i]->addr == 0)
                    ram = s->layers[i];
        if (pam & PAM_READ_RAM)
            r = ram;
        if (r && r->kind == HVX_LAYER_RAM)
            ram = r;
        if (ram)
            n = hvx_ram_run(s->ram, ram->ram_offset + (first - ram->addr), n, &ram_hva, &ram_writable);
        v.last = first + n - 1;
        if (r) {
            v.kind = r->kind;
            v.region = r;
            v.region_off = first - r->addr;
            if (r->kind == HVX_LAYER_RAM) {
                v.read_hva = ram_hva;
                v.write_hva = ram_writable ? ram_hva : NULL;
            } else if (r->kind == HVX_LAYER_MAP) {
                v.read_hva = r->hva + v.region_off;
                v.write_hva = r->read_only ? NULL : v.read_hva;
                v.below = r->read_only ? io_below(s, r, first) : NULL;
                v.below_off = v.below ? first - v.below->addr : 0;
            }
        }
        if (pam & PAM_CHOSEN) {
            if (pam & PAM_WRITE_RAM)
                v.write_hva = ram_writable ? ram_hva : NULL;
            else if (pam & PAM_READ_RAM)
                v.write_hva = NULL;
            v.below = NULL; /* no chipset has flash there */
        }
        if (v.region || v.write_hva)
            flat_append(f, &v);
        first += n;
    }
}

static void flatten(struct hvx_address_space *s, struct hvx_flat *f)
{
    uint64_t cut[2 * HVX_MAX_LAYERS + HVX_PAM_PAGES + 1];
    size_t n = 0;

    f->n = 0;
    for (unsigned i = 0; i < s->n_layers; i++) {
        if (s->layers[i]->addr == HVX_ADDR_NONE)
            continue;
        cut[n++] = s->layers[i]->addr;
        cut[n++] = s->layers[i]->addr + s->layers[i]->bytes;
    }
    if (s->id == HVX_SPACE_MMIO)
        for (unsigned i = 0; i <= HVX_PAM_PAGES; i++)
            if ((i < HVX_PAM_PAGES ? s->pam[i] : 0) != (i ? s->pam[i - 1] : 0))
                cut[n++] = HVX_PAM_START + i * HVX_PAGE;
    qsort(cut, n, sizeof(cut[0]), by_value);
    for (size_t i = 0; i + 1 < n; i++)
        if (cut[i] != cut[i + 1])
            flat_add(s, f, cut[i], cut[i + 1] - 1);
}

/* --- engine slots ------------------------------------------------------------------ */

static int give_slot(struct hvx_address_space *s, unsigned id, const struct hvx_mem_slot *slot)
{
    struct hvx_error err = {0};
    int r = s->set_slot(s->slot_opaque, slot, &err);

    s->n_slot_changes++;
    if (r < 0)
        snprintf(s->slot_error, sizeof(s->slot_error), "slot %u at %#llx, %llu bytes: %.120s", id,
                 (unsigned long long)slot->gpa, (unsigned long long)slot->bytes, err.text);
    return r;
}

static unsigned wanted_slots(struct hvx_address_space *s, const struct hvx_flat *f, struct hvx_mem_slot *want)
{
    unsigned n = 0;

    for (unsigned i = 0; i < f->n; i++) {
        const struct hvx_segment_view *v = &f->seg[i];
        /* Only whole pages can be slots; the rest of a page that it shares
         * with a device is reached through dispatch. */
        uint64_t first = (v->first + HVX_PAGE - 1) & ~(uint64_t)(HVX_PAGE - 1);
        uint64_t end = (v->last + 1) & ~(uint64_t)(HVX_PAGE - 1);
        struct hvx_mem_slot *prev = n ? &want[n - 1] : NULL;
        struct hvx_mem_slot w = {.size = sizeof(w), .fd = -1};

        if (!v->read_hva || end <= first)
            continue;
        w.gpa = first;
        w.bytes = end - first;
        w.hva = v->read_hva + (first - v->first);
        w.flags = v->write_hva == v->read_hva ? 0 : HVX_SLOT_READONLY;
        if (v->kind == HVX_LAYER_RAM) {
            w.fd = s->ram->fd;
            w.fd_offset = (uint64_t)((uint8_t *)w.hva - s->ram->hva);
        }
        if (prev && prev->gpa + prev->bytes == w.gpa && (uint8_t *)prev->hva + prev->bytes == (uint8_t *)w.hva &&
            prev->flags == w.flags && prev->fd == w.fd)
            prev->bytes += w.bytes;
        else if (n < HVX_MAX_SLOTS)
            want[n++] = w;
        else
            snprintf(s->slot_error, sizeof(s->slot_error), "more than %u memory slots", HVX_MAX_SLOTS);
    }
    return n;
}

static bool same_slot(const struct hvx_mem_slot *a, const struct hvx_mem_slot *b)
{
    return a->gpa == b->gpa && a->bytes == b->bytes && a->hva == b->hva && a->flags == b->flags && a->fd == b->fd;
}

/* Remove what is no longer wanted first: slots must not overlap. */
static void sync_slots(struct hvx_address_space *s, const struct hvx_flat *f)
{
    struct hvx_mem_slot want[HVX_MAX_SLOTS];
    bool have[HVX_MAX_SLOTS] = {false};
    unsigned n = wanted_slots(s, f, want), next = 0;

    for (unsigned id = 0; id < HVX_MAX_SLOTS; id++) {
        struct hvx_mem_slot *old = &s->slots[id];
        bool keep = false;
        for (unsigned i = 0; i < n && old->bytes && !keep; i++)
            if (same_slot(old, &want[i]))
                keep = have[i] = true;
        if (old->bytes && !keep) {
            struct hvx_mem_slot gone = *old;
            gone.bytes = 0;
            give_slot(s, id, &gone);
            old->bytes = 0;
        }
    }
    for (unsigned i = 0; i < n; i++) {
        if (have[i])
            continue;
        while (next < HVX_MAX_SLOTS && s->slots[next].bytes)
            next++;
        if (next == HVX_MAX_SLOTS)
            break; /* cannot be: n is at most HVX_MAX_SLOTS */
        want[i].id = next;
        if (give_slot(s, next, &want[i]) == 0)
            s->slots[next] = want[i];
    }
}

void hvx_space_refresh(struct hvx_address_space *s)
{
    unsigned sequence = atomic_load_explicit(&s->sequence, memory_order_relaxed);
    struct hvx_flat *f = s->flat[(sequence + 1) & 1];

    /* A reader still inside this array notices by the sequence number, which
     * has moved on since that array was current. */
    atomic_thread_fence(memory_order_seq_cst);
    flatten(s, f);
    atomic_store_explicit(&s->sequence, sequence + 1, memory_order_release);
    s->n_rebuilds++;
    s->last_hit = 0;
    if (s->set_slot)
        sync_slots(s, f);
}

/* --- layers --------------------------------------------------------------------------- */

static void insert_layer(struct hvx_address_space *s, struct hvx_region *r)
{
    unsigned i = s->n_layers++;

    for (; i > 0 && s->layers[i - 1]->prio > r->prio; i--)
        s->layers[i] = s->layers[i - 1];
    s->layers[i] = r;
}

static void take_layer(struct hvx_address_space *s, struct hvx_region *r)
{
    unsigned i = 0;

    while (i < s->n_layers && s->layers[i] != r)
        i++;
    assert(i < s->n_layers);
    memmove(&s->layers[i], &s->layers[i + 1], (--s->n_layers - i) * sizeof(s->layers[0]));
}

static int check_place(const struct hvx_address_space *s, const struct hvx_region *r, uint64_t addr)
{
    uint64_t limit = s->id == HVX_SPACE_PIO ? 0x10000 : HVX_ADDR_MAX;

    if (addr == HVX_ADDR_NONE)
        return 0;
    if (!r->bytes || r->bytes > limit || addr > limit - r->bytes)
        return -ERANGE;
    if (r->kind == HVX_LAYER_MAP && (addr | r->bytes | (uintptr_t)r->hva) % HVX_PAGE)
        return -EINVAL;
    return 0;
}

int hvx_space_add(struct hvx_address_space *s, const struct hvx_region *model, struct hvx_region **out,
                  struct hvx_error *err)
{
    struct hvx_region *r;
    int e = check_place(s, model, model->addr);

    if (e == 0 && (!model->bytes || (model->kind == HVX_LAYER_MAP && s->id == HVX_SPACE_PIO)))
        e = -EINVAL;
    if (e < 0)
        return hvx_fail(err, e, "region %s: %#llx bytes at %#llx do not fit this address space%s", model->name,
                        (unsigned long long)model->bytes, (unsigned long long)model->addr,
                        e == -EINVAL ? " (mapped memory must be page-aligned)" : "");
    if (s->n_layers == HVX_MAX_LAYERS)
        return hvx_fail(err, -ENOSPC, "region %s: a VM has at most %u regions", model->name, HVX_MAX_LAYERS);
    r = malloc(sizeof(*r));
    if (!r)
        return hvx_fail(err, -ENOMEM, "region %s: out of memory", model->name);
    *r = *model;
    r->space = s;
    r->n_reads = r->n_writes = 0;
    insert_layer(s, r);
    if (r->addr != HVX_ADDR_NONE)
        hvx_space_refresh(s);
    if (out)
        *out = r;
    return 0;
}

void hvx_space_remove(struct hvx_address_space *s, struct hvx_region *r)
{
    take_layer(s, r);
    if (r->addr != HVX_ADDR_NONE)
        hvx_space_refresh(s);
}

int hvx_space_move(struct hvx_address_space *s, struct hvx_region *r, uint64_t addr)
{
    int e = check_place(s, r, addr);

    if (e < 0)
        return e;
    if (r->addr == addr)
        return 0;
    r->addr = addr;
    take_layer(s, r);
    insert_layer(s, r); /* the last one mapped is on top */
    hvx_space_refresh(s);
    return 0;
}

void hvx_space_pam(struct hvx_address_space *s, uint64_t gpa, uint64_t n, bool read_ram, bool write_ram)
{
    uint8_t v = (uint8_t)(PAM_CHOSEN | (read_ram ? PAM_READ_RAM : 0) | (write_ram ? PAM_WRITE_RAM : 0));
    bool changed = false;

    for (uint64_t a = gpa & ~(uint64_t)(HVX_PAGE - 1); a < gpa + n; a += HVX_PAGE) {
        if (a < HVX_PAM_START || a >= PAM_END)
            continue;
        changed |= s->pam[(a - HVX_PAM_START) / HVX_PAGE] != v;
        s->pam[(a - HVX_PAM_START) / HVX_PAGE] = v;
    }
    if (changed)
        hvx_space_refresh(s);
}

static int add_ram(struct hvx_address_space *s, uint64_t addr, uint64_t n, uint64_t offset, const char *name,
                   struct hvx_error *err)
{
    struct hvx_region r = {
        .kind = HVX_LAYER_RAM, .prio = HVX_PRIO_RAM, .addr = addr, .bytes = n, .ram_offset = offset};

    if (!n)
        return 0;
    snprintf(r.name, sizeof(r.name), "%s", name);
    return hvx_space_add(s, &r, NULL, err);
}

int hvx_space_init(struct hvx_address_space *s, enum hvx_space id, struct hvx_ram *ram, struct hvx_error *err)
{
    memset(s, 0, sizeof(*s));
    s->id = id;
    s->ram = ram;
    s->flat[0] = calloc(1, sizeof(struct hvx_flat));
    s->flat[1] = calloc(1, sizeof(struct hvx_flat));
    if (!s->flat[0] || !s->flat[1])
        return hvx_fail(err, -ENOMEM, "address space: out of memory");
    if (!ram)
        return 0;
    int e = add_ram(s, 0, ram->below_4g, 0, "ram below 4G", err);
    return e < 0 ? e : add_ram(s, 1ull << 32, ram->above_4g, ram->below_4g, "ram above 4G", err);
}

void hvx_space_fini(struct hvx_address_space *s)
{
    for (unsigned i = 0; i < s->n_layers; i++)
        free(s->layers[i]);
    free(s->flat[0]);
    free(s->flat[1]);
    s->flat[0] = s->flat[1] = NULL;
    s->n_layers = 0;
}

int hvx_space_attach(struct hvx_address_space *s,
                     int (*set_slot)(void *opaque, const struct hvx_mem_slot *slot, struct hvx_error *err),
                     void (*code_written)(void *opaque, uint64_t gpa, uint64_t n), void *opaque, struct hvx_error *err)
{
    s->set_slot = set_slot;
    s->code_written = code_written;
    s->slot_opaque = opaque;
    s->slot_error[0] = 0;
    hvx_space_refresh(s);
    if (s->slot_error[0])
        return hvx_fail(err, -EIO, "giving guest RAM to the engine: %s", s->slot_error);
    return 0;
}
