/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/balloon.c - memory that the guest gives up, and the figures about it.
 *
 * Guest RAM is a memfd: a hole punched into it frees the pages, whoever has
 * them mapped, and the next access brings a zeroed one. Host addresses stay
 * as they are, so neither slots nor look-aside tables of an engine change;
 * what it translated from the pages it must drop, as for any write to them.
 */
#define _GNU_SOURCE
#include "core/vm/internal.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>

int hvx_vm_mem_discard(struct hvx_vm *vm, uint64_t gpa, uint64_t n)
{
    uint64_t left = n, at = gpa;

    if (!n || (gpa | n) % HVX_PAGE || gpa + n < gpa)
        return -EINVAL;
    if (vm->ram.map) /* pages may be shown in more than one place */
        return -EBUSY;
    while (left) {
        size_t run = left;
        if (!hvx_space_mem_ptr(&vm->mem, at, &run) || run % HVX_PAGE)
            return -EFAULT;
        at += run;
        left -= run;
    }
    while (n) {
        size_t run = n;
        uint8_t *hva = hvx_space_mem_ptr(&vm->mem, gpa, &run);
        if (!hva)
            return -EFAULT;
        if (fallocate(vm->ram.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, hva - vm->ram.hva, (off_t)run) < 0)
            return -errno;
        if (vm->mem.code_written)
            vm->mem.code_written(vm->mem.slot_opaque, gpa, run);
        atomic_fetch_add_explicit(&vm->discarded_bytes, run, memory_order_relaxed);
        gpa += run;
        n -= run;
    }
    return 0;
}

uint64_t hvx_vm_resident(struct hvx_vm *vm)
{
    struct stat st;

    return fstat(vm->ram.fd, &st) < 0 ? 0 : (uint64_t)st.st_blocks * 512;
}

void hvx_vm_balloon_set(struct hvx_vm *vm, const struct hvx_balloon_ops *ops, void *opaque)
{
    vm->balloon = ops;
    vm->balloon_opaque = opaque;
}

int hvx_vm_balloon_target(struct hvx_vm *vm, uint64_t bytes, struct hvx_error *err)
{
    int r = 0;

    if (bytes < HVX_VM_MIN_RAM || bytes > vm->ram.bytes)
        return hvx_fail(err, -EINVAL, "the guest can be left between %llu MiB and all of its %llu MiB, not %llu MiB",
                        HVX_VM_MIN_RAM >> 20, (unsigned long long)(vm->ram.bytes >> 20),
                        (unsigned long long)(bytes >> 20));
    hvx_loop_lock(vm->loop);
    if (vm->balloon)
        vm->balloon->set_target(vm->balloon_opaque, bytes);
    else
        r = hvx_fail(err, -ENOTSUP, "the VM has no balloon; start it without --no-defaults, or with --device "
                                    "virtio-balloon");
    if (r == 0)
        vm->balloon_target = bytes;
    hvx_loop_unlock(vm->loop);
    return r;
}

bool hvx_vm_balloon_info(struct hvx_vm *vm, struct hvx_vm_balloon_info *out)
{
    hvx_loop_lock(vm->loop);
    *out = (struct hvx_vm_balloon_info){
        .ram = vm->ram.bytes,
        .target = vm->balloon_target ? vm->balloon_target : vm->ram.bytes,
        .actual = vm->ram.bytes,
        .resident = hvx_vm_resident(vm),
        .discarded = atomic_load_explicit(&vm->discarded_bytes, memory_order_relaxed),
        .there = vm->balloon != NULL,
    };
    if (vm->balloon)
        out->actual = vm->balloon->actual(vm->balloon_opaque, &out->ready);
    hvx_loop_unlock(vm->loop);
    return out->there;
}

void hvx_vm_balloon_stats(struct hvx_vm *vm, hvx_stat_fn fn, void *opaque)
{
    fn(opaque, "guest RAM", "size", vm->ram.bytes, "bytes");
    fn(opaque, "guest RAM", "resident on the host", hvx_vm_resident(vm), "bytes");
    fn(opaque, "guest RAM", "given back so far", atomic_load_explicit(&vm->discarded_bytes, memory_order_relaxed),
       "bytes");
    if (vm->balloon && vm->balloon->stats)
        vm->balloon->stats(vm->balloon_opaque, fn, opaque);
}
