/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/kdirect_own.c - the kernel-direct tier's start: is the process
 * confined, and where does it have memory of its own? Ordinary C.
 *
 * Own ranges are what /proc/self/maps says when the first vCPU starts, with
 * room for what is added later: the host puts mappings close to others, from
 * the top down, and lets the heap and the stack grow. The guest's addresses
 * under them must be free of guest memory: kdirect.c looks.
 */
#include "kdirect_window.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <asm/prctl.h>

#define JOIN (64ull << 20)       /* holes up to this are taken to be ours */
#define ROOM_BELOW (2ull << 30)  /* for mappings to come */
#define ROOM_HEAP (1ull << 30)
#define ROOM_STACK (16ull << 20)

struct kdirect *bt_kd_create(struct bt_vm *vm)
{
    if (!vm->direct_kernel)
        return NULL;
    struct kdirect *kd = mmap(NULL, sizeof(*kd), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (kd == MAP_FAILED)
        return NULL;
    kd->n_gibs = kd->n_regions = kd->n_tables = 1;
    kd->maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    return kd;
}

void bt_kd_destroy(struct kdirect *kd)
{
    if (!kd)
        return;
    bt_kd_drop(kd);
    if (kd->started && !kd->why_off)
        munmap((void *)(uintptr_t)KD_BASE, (1ull << 47) - 4096 - KD_BASE);
    if (kd->maps_fd >= 0)
        close(kd->maps_fd);
    munmap(kd, sizeof(*kd));
}

static void own_add(struct kdirect *kd, uint64_t lo, uint64_t hi)
{
    lo &= ~(uint64_t)0x1fffff;
    hi = (hi + 0x1fffff) & ~(uint64_t)0x1fffff;
    if (hi > KD_BASE)
        hi = KD_BASE;
    if (lo >= hi)
        return;
    struct kd_own *last = kd->n_own ? &kd->own[kd->n_own - 1] : NULL;
    if (last && lo <= last->hi + JOIN) {
        if (hi > last->hi)
            last->hi = hi;
        if (lo < last->lo)
            last->lo = lo;
        return;
    }
    if (kd->n_own == KD_MAX_OWN) {
        last->hi = hi;
        return;
    }
    kd->own[kd->n_own++] = (struct kd_own){lo, hi};
}

void bt_kd_slots_changed(struct bt_vm *vm)
{
    pthread_mutex_lock(&vm->lock);
    bt_kd_slots(vm);
    pthread_mutex_unlock(&vm->lock);
}

/* NULL, or what is wrong. */
static const char *own_read(struct kdirect *kd)
{
    size_t n = 0, size = 1u << 20;
    char *buf = kd->maps_fd < 0 ? NULL : malloc(size);
    const char *why = NULL;
    if (!buf)
        return "/proc/self/maps cannot be read";
    for (;;) {
        ssize_t r = pread(kd->maps_fd, buf + n, size - 1 - n, (off_t)n);
        if (r <= 0)
            break;
        n += (size_t)r;
    }
    buf[n] = 0;
    own_add(kd, 0, 4ull << 30); /* all that is below 2 GiB or soon will be */
    uint64_t before = 0;
    for (char *line = buf; *line; line = strchr(line, '\n') + 1) {
        unsigned long long lo, hi;
        char *end = strchr(line, '\n');
        if (!end || sscanf(line, "%llx-%llx", &lo, &hi) != 2) {
            why = "/proc/self/maps cannot be understood";
            break;
        }
        *end = 0;
        bool heap = strstr(line, "[heap]"), stack = strstr(line, "[stack]");
        *end = '\n';
        if (lo >> 47)
            continue; /* vsyscall */
        if (hi > KD_BASE) {
            why = "the process has memory at the very top of its address space";
            break;
        }
        uint64_t room = stack ? ROOM_STACK : lo - before > ROOM_BELOW ? ROOM_BELOW : 0;
        own_add(kd, lo > room ? lo - room : 0, heap ? hi + ROOM_HEAP : hi);
        before = hi;
    }
    free(buf);
    return kd->n_own > 1 ? why : why ? why : "/proc/self/maps is empty";
}

static const char *start(struct bt_vm *vm, struct kdirect *kd)
{
    if (!vm->host->is_confined || !vm->host->is_confined())
        return "this process is not confined";
    const char *why = own_read(kd);
    if (why)
        return why;
    /* The guard; its last page is none that the host gives to programs. */
    size_t n = (1ull << 47) - 4096 - KD_BASE;
    void *p = mmap((void *)(uintptr_t)KD_BASE, n, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (p == MAP_FAILED)
        return "the top of the address space is not free";
    if ((uintptr_t)p != KD_BASE) {
        munmap(p, n);
        return "the host's kernel is older than 4.17";
    }
    return NULL;
}

void bt_kd_start(struct bt_vcpu *c)
{
    struct bt_vm *vm = c->vm;
    struct kdirect *kd = vm->kd;
    if (!kd || (c->kd_started && !atomic_load_explicit(&kd->say, memory_order_relaxed)))
        return;
    pthread_mutex_lock(&vm->lock);
    if (!kd->started) {
        kd->started = true;
        kd->why_off = start(vm, kd);
        bt_kd_slots(vm);
        atomic_store(&kd->say, kd->why_off != NULL);
        atomic_store(&kd->active, !kd->why_off);
    }
    pthread_mutex_unlock(&vm->lock);
    if (!c->kd_started && atomic_load(&kd->active) && syscall(SYS_arch_prctl, ARCH_SET_GS, KD_BASE)) {
        kd->why_off = "the host refuses a GS base";
        atomic_store(&kd->active, false);
        atomic_store(&kd->say, true);
    }
    c->kd_started = 1;
    if (atomic_exchange(&kd->say, false) && vm->host->log)
        vm->host->log(HVX_LOG_INFO, "cpu-bt", "the kernel-direct tier is off: %s", kd->why_off);
}
