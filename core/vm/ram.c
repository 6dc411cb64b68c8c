/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/ram.c - guest RAM and its page map.
 */
#define _GNU_SOURCE
#include "core/vm/space.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE (2ull << 20)

int hvx_ram_init(struct hvx_ram *ram, uint64_t bytes, uint64_t below_4g_max, struct hvx_error *err)
{
    uint8_t *area, *hva;

    memset(ram, 0, sizeof(*ram));
    ram->fd = memfd_create("hvx-guest-ram", MFD_CLOEXEC);
    if (ram->fd < 0)
        return hvx_fail(err, -errno, "guest RAM: memfd_create: %s", strerror(errno));
    if (ftruncate(ram->fd, (off_t)bytes) < 0) {
        int e = errno;
        close(ram->fd);
        ram->fd = -1;
        return hvx_fail(err, -e, "guest RAM: cannot size it to %llu MiB: %s; try a smaller --memory",
                        (unsigned long long)(bytes >> 20), strerror(e));
    }
    /* Reserve more, then map inside it, so that huge pages line up. */
    area = mmap(NULL, bytes + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area != MAP_FAILED) {
        hva = (uint8_t *)(((uintptr_t)area + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
        if (hva > area)
            munmap(area, (size_t)(hva - area));
        if (area + HUGE_PAGE > hva)
            munmap(hva + bytes, (size_t)(area + HUGE_PAGE - hva));
        area = mmap(hva, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, ram->fd, 0);
    }
    if (area == MAP_FAILED) {
        int e = errno;
        close(ram->fd);
        ram->fd = -1;
        return hvx_fail(err, -e, "guest RAM: cannot map %llu MiB: %s; try a smaller --memory, or raise `ulimit -v`",
                        (unsigned long long)(bytes >> 20), strerror(e));
    }
    (void)madvise(area, bytes, MADV_HUGEPAGE); /* a wish: shmem may have huge pages switched off */
    (void)madvise(area, bytes, MADV_DONTDUMP);
    (void)madvise(area, bytes, MADV_DONTFORK); /* helper processes have no business with it */
    ram->hva = area;
    ram->bytes = bytes;
    ram->below_4g = bytes < below_4g_max ? bytes : below_4g_max;
    ram->above_4g = bytes - ram->below_4g;
    return 0;
}

void hvx_ram_fini(struct hvx_ram *ram)
{
    if (ram->hva)
        munmap(ram->hva, ram->bytes);
    if (ram->hva && ram->fd >= 0)
        close(ram->fd);
    free(ram->map);
    memset(ram, 0, sizeof(*ram));
    ram->fd = -1;
}

uint64_t hvx_ram_run(const struct hvx_ram *ram, uint64_t offset, uint64_t n, uint8_t **hva, bool *writable)
{
    uint64_t frame = offset / HVX_PAGE, entry, run;

    if (!ram->map) {
        *hva = ram->hva + offset;
        *writable = true;
        return n;
    }
    entry = ram->map[frame];
    *hva = ram->hva + (entry >> 1) * HVX_PAGE + offset % HVX_PAGE;
    *writable = entry & 1;
    run = HVX_PAGE - offset % HVX_PAGE;
    while (run < n && ram->map[++frame] == (entry += 2))
        run += HVX_PAGE;
    return run < n ? run : n;
}

int hvx_ram_remap(struct hvx_ram *ram, uint64_t frame, uint64_t file_page, bool writable)
{
    uint64_t n_frames = ram->bytes / HVX_PAGE;

    if (frame >= n_frames || file_page >= n_frames)
        return -EINVAL;
    if (!ram->map) {
        ram->map = malloc(n_frames * sizeof(*ram->map));
        if (!ram->map)
            return -ENOMEM;
        for (uint64_t i = 0; i < n_frames; i++)
            ram->map[i] = i << 1 | 1;
    }
    ram->map[frame] = file_page << 1 | (writable ? 1 : 0);
    return 0;
}
