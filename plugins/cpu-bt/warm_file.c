/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/warm_file.c - see warm_file.h. Ordinary C.
 */
#define _GNU_SOURCE
#include "warm_file.h"
#include "cpu_model.h"
#include "phys.h"
#include <Zydis/Zydis.h>
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME "translation-cache"
#define LOCK_TRIES 50u /* of 10 ms */

static void __attribute__((format(printf, 3, 4)))
say(const struct bt_vm *vm, enum hvx_log_level level, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    vm->host->log(level, "cpu-bt", "%s", text);
}

/* --- what a file is for -------------------------------------------------------------------- */
/* What of a loaded module cannot be written: code and constants, as they are in memory. */
struct module {
    uintptr_t has; /* an address in it */
    uint64_t sum;
    bool found;
};

static int one_module(struct dl_phdr_info *info, size_t size, void *opaque)
{
    struct module *m = opaque;
    (void)size;
    for (unsigned i = 0; i < info->dlpi_phnum && !m->found; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        m->found = p->p_type == PT_LOAD && m->has - (info->dlpi_addr + p->p_vaddr) < p->p_memsz;
    }
    for (unsigned i = 0; m->found && i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type == PT_LOAD && (p->p_flags & (PF_R | PF_W)) == PF_R)
            m->sum = bt_warm_sum(m->sum, (const void *)(info->dlpi_addr + p->p_vaddr), p->p_filesz);
    }
    return m->found;
}

static bool add_module(uint64_t *sum, const void *has)
{
    struct module m = {(uintptr_t)has, *sum, false};
    dl_iterate_phdr(one_module, &m);
    *sum = m.sum;
    return m.found;
}

/* All that translations depend on and that is the same for the whole VM: see warm.h. */
static bool identify(struct bt_vm *vm, struct bt_warm *w)
{
    static const uint32_t leaves[][2] = {{0, 0},   {1, 0},   {7, 0},          {7, 1},
                                         {0xd, 0}, {0xd, 1}, {0x80000001, 0}, {0x80000008, 0}};
    const struct bt_vcpu *c = vm->vcpu[0];
    const struct bt_cache *k = c->cache;
    const uint32_t *stub = k->stub_stack, *end = (const uint32_t *)&k->ret_top;
    uint32_t region = (uint32_t)(uintptr_t)c->region;
    w->id[0] = w->id[1] = WARM_VERSION;
    if (!add_module(&w->id[0], (const void *)bt_warm_prepare) ||
        !add_module(&w->id[1], (const void *)ZydisDecoderDecodeFull))
        return false;
    uint64_t h = 1;
    for (unsigned i = 0; i < sizeof(leaves) / sizeof(leaves[0]); i++) {
        uint32_t r[4] = {0};
        if (__get_cpuid_count(leaves[i][0], leaves[i][1], &r[0], &r[1], &r[2], &r[3])) {
            if (leaves[i][0] == 1)
                r[1] = 0; /* this processor's number and the like */
            h = bt_warm_sum(h, r, sizeof(r));
        }
    }
    struct {
        uint64_t host_xcr0, xcr0, region_size, flags;
        uint32_t mxcsr_mask, place[6];
    } s = {.host_xcr0 = vm->host_xcr0,
           .xcr0 = vm->cpuid->xcr0,
           .region_size = c->region_size,
           .mxcsr_mask = vm->mxcsr_mask};
    s.flags = (uint64_t)vm->have_bmi2 | (uint64_t)vm->amd << 1 | (uint64_t)vm->host_amd << 2 |
              (uint64_t)vm->direct_kernel << 3 | (uint64_t)(vm->kd != NULL) << 4 | (uint64_t)vm->hypercalls << 5 |
              (uint64_t)(vm->tsc_ratio != 0) << 6 | (uint64_t)vm->cpuid->restricted << 7;
    s.place[0] = (uint32_t)((uint8_t *)c->tlb[0] - c->region);
    s.place[1] = (uint32_t)((uint8_t *)c->tlb[1] - c->region);
    s.place[2] = (uint32_t)((uint8_t *)c->jc[0] - c->region);
    s.place[3] = (uint32_t)((uint8_t *)c->jc[1] - c->region);
    s.place[4] = (uint32_t)(k->hot - c->region);
    s.place[5] = (uint32_t)(k->cold - c->region);
    w->id[2] = bt_warm_sum(h, &s, sizeof(s));
    h = bt_warm_sum(2, vm->cpuid->word, sizeof(vm->cpuid->word));
    for (; stub < end; stub++) {
        uint32_t v = *stub ? *stub - region : 0;
        h = bt_warm_sum(h, &v, sizeof(v));
    }
    w->id[3] = h;
    w->layout.region = (uint32_t)c->region_size;
    w->layout.stubs = k->stubs_start - region;
    w->layout.stubs_end = k->stubs_end - region;
    for (unsigned i = 1; i < vm->n_vcpus; i++) { /* made alike */
        const struct bt_vcpu *o = vm->vcpu[i];
        if (o->region_size != c->region_size ||
            o->cache->stubs_end - (uint32_t)(uintptr_t)o->region != k->stubs_end - region)
            return false;
    }
    return true;
}

/* --- reading ----------------------------------------------------------------------------- */
const char *bt_warm_header_ok(const struct warm_header *h, uint64_t file_bytes, const uint64_t id[4])
{
    if (memcmp(h->magic, WARM_MAGIC, 8))
        return "it is no translation cache";
    if (h->version != WARM_VERSION || h->header_bytes != sizeof(*h))
        return "it has the format of another version";
    if (h->sum != bt_warm_sum(0, h, offsetof(struct warm_header, sum)))
        return "its header is damaged";
    if (h->id[0] != id[0] || h->id[1] != id[1])
        return "another build of the engine made it";
    if (h->id[2] != id[2] || h->id[3] != id[3])
        return "it is for another host processor, CPU model, number of vCPUs or other options";
    if (h->n_records > WARM_RECORDS_MAX || h->start < WARM_HEADER || h->start > h->index || h->index > file_bytes ||
        h->n_records * sizeof(struct warm_index) > file_bytes - h->index || h->index > WARM_END_MAX)
        return "it is cut off";
    return NULL;
}

bool bt_warm_index_ok(const struct warm_header *h, const struct warm_index *x)
{
    if (bt_warm_sum(h->generation, x, h->n_records * sizeof(*x)) != h->index_sum)
        return false;
    for (uint64_t i = 0; i < h->n_records; i++)
        if (x[i].at * 8ull < h->start || x[i].units > WARM_REC_MAX / 8 || x[i].units * 8ull < sizeof(struct warm_rec) ||
            x[i].at * 8ull + x[i].units * 8ull > h->index)
            return false;
    return true;
}

static int read_all(int fd, void *p, uint64_t n, uint64_t at)
{
    while (n) {
        ssize_t got = pread(fd, p, n, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got ? -errno : -EIO;
        p = (uint8_t *)p + got;
        n -= (uint64_t)got;
        at += (uint64_t)got;
    }
    return 0;
}

static bool lock(int fd, int how)
{
    for (unsigned i = 0; flock(fd, how | LOCK_NB); i++) {
        struct timespec t = {0, 10000000};
        if (i == LOCK_TRIES || (errno != EWOULDBLOCK && errno != EINTR))
            return false;
        nanosleep(&t, NULL);
    }
    return true;
}

static void *memory(uint64_t n)
{
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    (void)madvise(p, n, MADV_HUGEPAGE); /* looked up at random */
    return p;
}

/* Header and index of a file that is locked; *x is NULL where there are no records. NULL, or what is wrong. */
static const char *read_index(int fd, const uint64_t id[4], struct warm_header *h, struct warm_index **x)
{
    struct stat st;
    const char *why;
    memset(h, 0, sizeof(*h));
    *x = NULL;
    if (fstat(fd, &st))
        return strerror(errno);
    if (!st.st_size)
        return "it is empty";
    if (read_all(fd, h, (uint64_t)st.st_size < sizeof(*h) ? (uint64_t)st.st_size : sizeof(*h), 0))
        return "it cannot be read";
    why = bt_warm_header_ok(h, (uint64_t)st.st_size, id);
    if (why || !h->n_records)
        return why;
    uint64_t n = h->n_records * sizeof(**x);
    *x = malloc(n);
    if (!*x)
        return "out of memory";
    if (read_all(fd, *x, n, h->index))
        why = "it cannot be read";
    else if (!bt_warm_index_ok(h, *x))
        why = "its contents are damaged";
    if (why) {
        free(*x);
        *x = NULL;
    }
    return why;
}

bool bt_warm_take_index(struct bt_warm *w, const struct warm_header *h, struct warm_index *x)
{
    uint8_t *marks = calloc(h->n_records ? h->n_records : 1, 1);
    if (!marks)
        return false;
    w->index = x;
    w->marks = marks;
    w->n_index = (uint32_t)h->n_records;
    w->generation = h->generation;
    w->epoch = h->epoch;
    for (uint32_t i = 0; i < w->n_index; i++)
        bt_warm_enter_file(w, i);
    return true;
}

/* Locked. Whatever is wrong with the file, its records are not there and the VM starts cold. */
static void load(struct bt_vm *vm, struct bt_warm *w, bool empty)
{
    struct warm_header h;
    struct warm_index *x = NULL;
    if (empty)
        return;
    const char *why = read_index(w->fd, w->id, &h, &x);
    if (why && memcmp(h.magic, WARM_MAGIC, 8)) {
        say(vm, HVX_LOG_WARN, NAME ": %s is not used and not written: %s", vm->warm_path, why);
        close(w->fd);
        w->fd = -1;
        return;
    }
    if (!why && !bt_warm_take_index(w, &h, x)) {
        free(x);
        why = "out of memory";
    }
    if (why) {
        say(vm, HVX_LOG_WARN, NAME ": %s is not used, the VM starts cold: %s. A new one is written when the VM ends",
            vm->warm_path, why);
        return;
    }
    (void)posix_fadvise(w->fd, (off_t)h.start, (off_t)(h.index - h.start), POSIX_FADV_WILLNEED);
    say(vm, HVX_LOG_INFO, NAME ": %s: %llu translations, %llu KiB", vm->warm_path, (unsigned long long)h.n_records,
        (unsigned long long)(h.index - h.start) >> 10);
}

struct bt_warm *bt_warm_create(void)
{
    struct bt_warm *w = calloc(1, sizeof(*w));
    if (!w)
        return NULL;
    w->fd = -1;
    w->slot = memory(sizeof(*w->slot) << WARM_SLOT_BITS);
    if (!w->slot) {
        free(w);
        return NULL;
    }
    return w;
}

void bt_warm_destroy(struct bt_warm *w)
{
    if (!w)
        return;
    if (w->fd >= 0)
        close(w->fd);
    free(w->index);
    free(w->marks);
    for (unsigned i = 0; i < HVX_MAX_VCPUS; i++) {
        if (w->arena[i].base)
            munmap(w->arena[i].base, w->arena[i].size);
        free(w->arena[i].read);
    }
    munmap(w->slot, sizeof(*w->slot) << WARM_SLOT_BITS);
    free(w);
}

void bt_warm_prepare(struct bt_vm *vm)
{
    struct stat st;
    const char *path = vm->warm_path, *why = NULL;
    if (!path || !*path)
        return;
    struct bt_warm *w = bt_warm_create();
    if (!w) {
        say(vm, HVX_LOG_WARN, NAME ": out of memory");
        return;
    }
    w->verify = vm->warm_verify;
    w->fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600);
    if (w->fd < 0)
        why = errno == ELOOP ? "it is a symbolic link" : strerror(errno);
    else if (fstat(w->fd, &st))
        why = strerror(errno);
    else if (!S_ISREG(st.st_mode))
        why = "it is not a regular file";
    else if (st.st_uid != geteuid())
        why = "it belongs to another user";
    else if (st.st_mode & (S_IWGRP | S_IWOTH))
        why = "others may write to it";
    else if (!identify(vm, w))
        why = "the engine cannot tell which build it is";
    for (unsigned i = 0; !why && i < vm->n_vcpus; i++) {
        w->arena[i].size = WARM_BYTES_MAX / vm->n_vcpus & ~4095ull;
        w->arena[i].base = memory(w->arena[i].size);
        w->arena[i].read = malloc(WARM_REC_MAX);
        if (!w->arena[i].base || !w->arena[i].read)
            why = "out of memory";
    }
    if (!why && !lock(w->fd, LOCK_SH))
        why = "another VM is writing it";
    if (why) {
        say(vm, HVX_LOG_WARN, NAME ": %s is not used, the VM starts cold: %s", path, why);
        bt_warm_destroy(w);
        return;
    }
    load(vm, w, fstat(w->fd, &st) || !st.st_size);
    if (w->fd >= 0)
        flock(w->fd, LOCK_UN);
    vm->warm = w;
}

/* --- writing ------------------------------------------------------------------------------- */
struct out {
    int fd;
    uint8_t *buf; /* WARM_CHUNK */
    uint64_t n;   /* in it */
    uint64_t at;  /* where it goes */
    struct warm_index *index;
    uint64_t n_records;
    int error;
    const uint64_t *id;
};

static void write_all(struct out *o, const void *p, uint64_t n, uint64_t at)
{
    while (n && !o->error) {
        ssize_t put = pwrite(o->fd, p, n, (off_t)at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            o->error = put ? errno : EIO;
            return;
        }
        p = (const uint8_t *)p + put;
        n -= (uint64_t)put;
        at += (uint64_t)put;
    }
}

static void flush(struct out *o)
{
    write_all(o, o->buf, o->n, o->at);
    o->at += o->n;
    o->n = 0;
}

static void list(struct out *o, uint64_t key, uint64_t at, uint64_t size)
{
    o->index[o->n_records++] = (struct warm_index){key, (uint32_t)(at >> 3), (uint32_t)(size >> 3)};
}

static void put(struct out *o, const struct warm_rec *r)
{
    if (o->n_records == WARM_RECORDS_MAX)
        return;
    if (o->n + r->size > WARM_CHUNK)
        flush(o);
    struct warm_rec *to = (struct warm_rec *)(o->buf + o->n);
    memcpy(to, r, r->size);
    to->gone = 0;
    to->sum = bt_warm_rec_sum(o->id, to);
    list(o, r->key, o->at + o->n, r->size);
    o->n += r->size;
}

static uint64_t new_bytes(const struct bt_warm *w, struct out *o)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < HVX_MAX_VCPUS; i++)
        for (uint64_t at = 0; at < w->arena[i].used;) {
            const struct warm_rec *r = (const struct warm_rec *)(w->arena[i].base + at);
            at += r->size;
            if (r->gone)
                continue;
            total += r->size;
            if (o)
                put(o, r);
        }
    return total;
}

/* What stays of the file's present records. They are the ones we know, unless another VM has written meanwhile: then
 * all of them, but for those that we have newer ones of, which are at the same place. */
struct kept {
    struct warm_index *x;
    uint64_t n, bytes;
};
static void keep(struct bt_warm *w, const struct warm_header *h, struct warm_index *x, struct kept *k)
{
    uint32_t i = 0;
    k->x = x;
    for (uint64_t j = 0; j < h->n_records; j++) {
        if (h->epoch == w->epoch && w->index) {
            while (i < w->n_index && w->index[i].at < x[j].at)
                i++;
            if (i < w->n_index && w->index[i].at == x[j].at && w->marks[i] & WARM_GONE)
                continue;
        }
        k->x[k->n++] = x[j];
        k->bytes += x[j].units * 8ull;
    }
}

/* Those that this VM has not used go: the file is full. */
static void keep_used(struct bt_warm *w, struct kept *k)
{
    uint64_t n = 0;
    uint32_t i = 0;
    k->bytes = 0;
    for (uint64_t j = 0; j < k->n; j++) {
        while (i < w->n_index && w->index[i].at < k->x[j].at)
            i++;
        if (i == w->n_index || w->index[i].at != k->x[j].at || !(w->marks[i] & WARM_USED))
            continue;
        k->bytes += k->x[j].units * 8ull;
        k->x[n++] = k->x[j];
    }
    k->n = n;
}

static void copy_kept(struct bt_warm *w, struct out *o, const struct kept *k)
{
    struct warm_rec *r = (struct warm_rec *)w->arena[0].read;
    for (uint64_t i = 0; i < k->n && !o->error; i++) {
        uint64_t n = k->x[i].units * 8ull;
        if (!read_all(o->fd, r, n, k->x[i].at * 8ull) && r->size == n && r->key == k->x[i].key &&
            r->sum == bt_warm_rec_sum(w->id, r))
            put(o, r);
    }
}

/* Locked. New records go behind those that are there, and a new index behind them; when half of the file is what nobody
 * needs any more, or it is full, all that stay are written anew, where there is room. What the present header names is
 * not touched before the new one is there. */
static int save(struct bt_warm *w, struct out *o)
{
    struct warm_header old, h = {.magic = WARM_MAGIC, .version = WARM_VERSION, .header_bytes = sizeof(h)};
    struct warm_index *x;
    struct kept k = {NULL, 0, 0};
    uint64_t add = new_bytes(w, NULL), end = WARM_HEADER;
    if (read_index(o->fd, w->id, &old, &x)) {
        memset(&old, 0, sizeof(old));
        x = NULL;
    }
    if (x)
        keep(w, &old, x, &k);
    if (old.index)
        end = (old.index + old.n_records * sizeof(*x) + 7) & ~7ull;
    bool anew = !x || old.index - old.start > 2 * k.bytes + (16u << 20) || end + add > WARM_END_MAX - WARM_BYTES_MAX;
    if (k.bytes + add > WARM_BYTES_MAX || k.n + add / sizeof(struct warm_rec) / 4 > WARM_RECORDS_MAX) {
        keep_used(w, &k);
        anew = true;
    }
    memcpy(h.id, w->id, sizeof(h.id));
    h.generation = old.generation + 1;
    h.epoch = anew ? h.generation : old.epoch;
    h.start = anew ? WARM_HEADER : old.start;
    if (anew && x && WARM_HEADER + k.bytes + add + WARM_RECORDS_MAX * sizeof(*x) > old.start)
        h.start = (end + WARM_HEADER - 1) & ~(uint64_t)(WARM_HEADER - 1);
    o->at = anew ? h.start : end;
    o->buf = malloc(WARM_CHUNK);
    o->index = malloc(WARM_RECORDS_MAX * sizeof(*x));
    if (!o->buf || !o->index) {
        free(x);
        return ENOMEM;
    }
    if (anew) {
        copy_kept(w, o, &k);
    } else {
        memcpy(o->index, k.x, k.n * sizeof(*x));
        o->n_records = k.n;
    }
    free(x);
    new_bytes(w, o);
    flush(o);
    h.index = o->at;
    h.n_records = o->n_records;
    h.index_sum = bt_warm_sum(h.generation, o->index, h.n_records * sizeof(*x));
    h.sum = bt_warm_sum(0, &h, offsetof(struct warm_header, sum));
    write_all(o, o->index, h.n_records * sizeof(*x), h.index);
    if (o->error) {
        if (!anew || h.start >= end) /* what is there stays */
            (void)!ftruncate(o->fd, (off_t)(old.index ? end : 0));
        return o->error;
    }
    /* Not synced: what a power failure makes of it shows by the checksums. */
    write_all(o, &h, sizeof(h), 0);
    if (o->error)
        return o->error;
    /* Room that is free now: the old index, or all that was there. */
    if (!anew)
        (void)fallocate(o->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)old.index, (off_t)(end - old.index));
    else if (h.start > WARM_HEADER)
        (void)fallocate(o->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, WARM_HEADER, (off_t)(h.start - WARM_HEADER));
    if (ftruncate(o->fd, (off_t)(h.index + h.n_records * sizeof(*x))))
        return errno;
    return 0;
}

void bt_warm_finish(struct bt_vm *vm)
{
    struct bt_warm *w = vm->warm;
    uint64_t new = 0, loaded = 0, made = 0;
    if (!w)
        return;
    vm->warm = NULL;
    for (unsigned i = 0; i < vm->n_vcpus; i++) {
        loaded += vm->vcpu[i] ? vm->vcpu[i]->st.warm_loaded : 0;
        made += vm->vcpu[i] ? vm->vcpu[i]->st.blocks : 0;
    }
    say(vm, HVX_LOG_INFO, NAME ": %llu blocks were there, %llu translated", (unsigned long long)loaded,
        (unsigned long long)made);
    for (unsigned i = 0; i < HVX_MAX_VCPUS; i++)
        new += w->arena[i].used;
    if (w->fd >= 0 && new) {
        struct out o = {.fd = w->fd, .id = w->id};
        int rc;
        if (!lock(w->fd, LOCK_EX)) {
            say(vm, HVX_LOG_WARN, NAME ": %s is not written: another VM has it for itself", vm->warm_path);
        } else if ((rc = save(w, &o))) {
            say(vm, HVX_LOG_WARN, NAME ": %s cannot be written: %s", vm->warm_path, strerror(rc));
        } else {
            say(vm, HVX_LOG_INFO, NAME ": %s: %llu translations now, %llu KiB of new ones", vm->warm_path,
                (unsigned long long)o.n_records, (unsigned long long)new >> 10);
        }
        free(o.buf);
        free(o.index);
    }
    bt_warm_destroy(w);
}

/* --- for tests ------------------------------------------------------------------------------- */
void bt_warm_differs(struct bt_vcpu *c, const struct warm_rec *r, const struct warm_rec *again, uint64_t rip)
{
    uint32_t at = sizeof(*r);
    if (c->st.warm_differs > 20)
        return;
    for (; again && at < r->size && at < again->size; at++)
        if (((const uint8_t *)r)[at] != ((const uint8_t *)again)[at])
            break;
    say(c->vm, HVX_LOG_WARN,
        NAME ": rip %#llx mode %#x follow %#x len %u class %u: kept %u hot %u cold %u exits %u relocs, "
             "now %u bytes %u hot %u cold %u exits %u relocs; first difference at %u (bytes start at %u)",
        (unsigned long long)rip, r->mode, r->follow, r->len, r->class, r->hot, r->cold, r->n_exits, r->n_relocs,
        again ? again->len : 0, again ? again->hot : 0, again ? again->cold : 0, again ? again->n_exits : 0,
        again ? again->n_relocs : 0, at, (unsigned)(r->size - r->hot - r->cold - r->len));
}
