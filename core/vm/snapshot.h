/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/snapshot.h - a whole VM in one file, and back.
 *
 * What is in the file, in this order (stream.h has the frame around it):
 *     vm        memory size, vCPUs, devices, disks with their marks (see below)
 *     cpu       the engine's CPU model, as far as it says one
 *     ram       a piece of guest memory: u64 offset, a bit for each page that
 *               is not zero, those pages compressed by zstd; repeated, in
 *               ascending order; an empty one ends them
 *     irqchip, vcpu.N, lines, pci.DD.F, the name of each instance   (state.c)
 *
 * Disks are not in the file. It holds a mark of each: size and time of the last
 * change of every file of the image's chain. A restored guest goes on with
 * what it has in its memory about its file systems, so a disk on which anybody
 * has written since would be destroyed: such a file is refused.
 *
 * Saving. hvx_save_begin() pauses the VM, waits until all requests are done and
 * flushed, keeps the VM lock, and takes the devices' state; each
 * hvx_save_step() writes some more of the memory; hvx_save_end() lets the VM go
 * on (or leaves it paused), whether saving succeeded or not. All on the control
 * thread, which must do nothing else with the VM meanwhile.
 *
 * Restoring. hvx_restore_open() reads and checks the whole file before a VM
 * even exists; hvx_vm_restore_from() hands it to a VM, which hvx_vm_start()
 * then starts in the saved state.
 *
 * Time. Everything is saved as of one moment and continues from it: counters
 * of the guest do not see the time in between, the clock chip does.
 *
 * The file is foreign input: every count in it is capped.
 */
#ifndef HVX_CORE_SNAPSHOT_H
#define HVX_CORE_SNAPSHOT_H

#include "core/image/blk.h"
#include "core/vm/vm.h"

#include <stdio.h>

#define HVX_SAVED_TEXT 2048u
#define HVX_SAVED_NAME 64u

struct hvx_saved_disk {
    char id[24];
    struct hvx_blk_mark mark;
};

/* The section "vm". */
struct hvx_saved_vm {
    uint64_t ram_bytes, tsc_hz, saved_at_ns; /* ns since 1970 */
    uint32_t n_vcpus, n_devices, n_disks;
    uint8_t uuid[16];
    char engine[HVX_SAVED_NAME], version[HVX_SAVED_NAME];
    char command[HVX_SAVED_TEXT]; /* how the VM was started, for people */
    struct {
        char name[48];
        uint32_t version;
    } device[HVX_VM_MAX_DEVICES];
    struct hvx_saved_disk disk[HVX_VM_MAX_BACKENDS];
};

/* --- saving ---------------------------------------------------------------------- */
struct hvx_save;

/* f is borrowed until hvx_save_end(). On failure the VM runs on. */
HVX_WUR int hvx_save_begin(struct hvx_vm *vm, FILE *f, const char *command, struct hvx_save **out,
                           struct hvx_error *err);
/* Write for some ten milliseconds. 1: there is more to do, 0: the file is complete. */
HVX_WUR int hvx_save_step(struct hvx_save *s, struct hvx_error *err);
/* Of the memory, in bytes. */
void hvx_save_progress(const struct hvx_save *s, uint64_t *done, uint64_t *total);
/* resume: the VM goes on. NULL is fine. */
void hvx_save_end(struct hvx_save *s, bool resume);

/* --- restoring --------------------------------------------------------------------- */
struct hvx_restore;

/* progress may be NULL; done runs from 0 to total in checking and once more in reading. */
HVX_WUR int hvx_restore_open(const char *path, void (*progress)(void *opaque, uint64_t done, uint64_t total),
                             void *opaque, struct hvx_restore **out, struct hvx_error *err);
/* The same over a stream that can seek; taken, also on failure. skip_sums is for fuzzers. */
HVX_WUR int hvx_restore_open_stream(FILE *f, const char *name, bool skip_sums, struct hvx_restore **out,
                                    struct hvx_error *err);
const struct hvx_saved_vm *hvx_restore_info(const struct hvx_restore *r);
void hvx_restore_close(struct hvx_restore *r);
/* Before hvx_vm_start(); borrowed until that has returned. */
void hvx_vm_restore_from(struct hvx_vm *vm, struct hvx_restore *r);

#endif
