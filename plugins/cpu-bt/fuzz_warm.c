/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/fuzz_warm.c - files of the option translation-cache, with
 * right checksums: header, index, records, and putting records into a vCPU's
 * cache. No code that comes out of it is run.
 *
 * The input is a list of changes to the file that a small VM has just written:
 * two bytes where (little endian, from the first record's start; 0xffff: the
 * byte behind it is one of the header), one byte to be XORed.
 */
#define _GNU_SOURCE
#include "test_warm.h"
#include "trans.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FILE_MAX (1u << 16)
static struct warm_machine m;
static uint8_t file[FILE_MAX];
static uint64_t file_bytes;
static struct warm_layout layout;

static void setup_once(void)
{
    static char path[64];
    if (file_bytes)
        return;
    snprintf(path, sizeof(path), "/tmp/fuzz_warm-%ld", (long)getpid());
    unlink(path);
    if (!warm_start(&m, path))
        abort();
    warm_run(&m, WARM_USER_A, 1);
    warm_run(&m, WARM_KERNEL_A, 1);
    warm_run(&m, WARM_LOW, 1);
    layout = ((struct bt_vm *)m.h.vm)->warm->layout;
    warm_end(&m);
    FILE *f = fopen(path, "r");
    if (!f || (file_bytes = fread(file, 1, sizeof(file), f)) < WARM_HEADER || file_bytes == FILE_MAX)
        abort();
    fclose(f);
    unlink(path);
    if (!warm_start(&m, ""))
        abort();
}

/* The sums of what can be found are put right. */
static void mend(uint8_t *p)
{
    struct warm_header *h = (struct warm_header *)p;
    if (h->index >= WARM_HEADER && h->index % 8 == 0 && h->index < file_bytes &&
        h->n_records <= (file_bytes - h->index) / sizeof(struct warm_index)) {
        const struct warm_index *x = (const struct warm_index *)(p + h->index);
        for (uint64_t i = 0; i < h->n_records; i++) {
            struct warm_rec *r = (struct warm_rec *)(p + x[i].at * 8ull);
            if (x[i].at * 8ull + sizeof(*r) < h->index && r->size >= sizeof(*r) && r->size <= h->index - x[i].at * 8ull)
                r->sum = bt_warm_rec_sum(h->id, r);
        }
        h->index_sum = bt_warm_sum(h->generation, x, h->n_records * sizeof(*x));
    }
    h->sum = bt_warm_sum(0, h, offsetof(struct warm_header, sum));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    setup_once();
    uint8_t *p = malloc(file_bytes);
    struct warm_header *h = (struct warm_header *)p;
    memcpy(p, file, file_bytes);
    uint64_t id[4];
    memcpy(id, h->id, sizeof(id));
    bool changed = n >= 3;
    for (; n >= 3; data += 3, n -= 3) {
        unsigned at = data[0] | (unsigned)data[1] << 8;
        if (at == 0xffff)
            p[data[2] % sizeof(*h)] ^= 0x5a;
        else
            p[WARM_HEADER + at % (file_bytes - WARM_HEADER)] ^= data[2];
    }
    mend(p);
    int fd = memfd_create("fuzz_warm", MFD_CLOEXEC);
    if (fd < 0 || pwrite(fd, p, file_bytes, 0) != (ssize_t)file_bytes)
        abort();
    struct warm_index *x = NULL;
    if (!bt_warm_header_ok(h, file_bytes, id) && h->n_records) {
        x = malloc(h->n_records * sizeof(*x));
        memcpy(x, p + h->index, h->n_records * sizeof(*x));
    }
    if (x && bt_warm_index_ok(h, x)) {
        struct bt_vcpu *c = (struct bt_vcpu *)m.h.vcpu;
        struct bt_warm *w = bt_warm_create();
        struct warm_arena *a = &w->arena[0];
        a->read = malloc(WARM_REC_MAX);
        w->fd = fd;
        w->layout = layout;
        memcpy(w->id, id, sizeof(id));
        if (!bt_warm_take_index(w, h, x))
            abort();
        for (uint32_t i = 0; i < w->n_index; i++) {
            const struct warm_rec *read = bt_warm_fetch(w, a, i);
            if (!read && !changed)
                abort();
            if (!read)
                continue;
            struct warm_rec *r = malloc(read->size); /* ASan knows its end */
            memcpy(r, read, read->size);
            if (!bt_warm_rec_ok(r, r->size, &layout) || r->sum != bt_warm_rec_sum(id, r))
                abort();
            if (!bt_cache_room(c))
                bt_cache_make_room(c);
            uint64_t rip = r->fixed ? r->rip : (r->class == WARM_KERNEL ? WARM_KERNEL_B : WARM_USER_B) + r->page_off;
            struct bt_block *b = bt_warm_install(c, r, rip, 0x200000 + r->page_off);
            struct bt_cache *k = c->cache;
            if (k->hot_p > k->hot_end || k->cold_p > k->cold_end)
                abort();
            bt_unlink_block(c, b);
            bt_relink(c);
            bt_block_drop(c, b);
            free(r);
        }
        bt_cache_make_room(c);
        bt_warm_destroy(w);
    } else {
        free(x);
        close(fd);
    }
    free(p);
    return 0;
}
