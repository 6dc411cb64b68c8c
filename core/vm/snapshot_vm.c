/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/snapshot_vm.c - the section "vm" of a saved VM: what it was, so that
 * another can be refused with the reason.
 */
#include <config.h>

#include "core/vm/snapshot_file.h"

#include <string.h>
#include <time.h>

static void text_state(struct hvx_stream *s, char *text, size_t size)
{
    uint16_t n = (uint16_t)strnlen(text, size - 1);

    hvx_state_u16(s, &n);
    if (n >= size) {
        hvx_state_fail(s, -EINVAL, "a text is longer than it may be");
        n = 0;
    }
    hvx_state_bytes(s, text, n);
    text[n] = 0;
    /* It may be shown on a terminal. */
    for (unsigned i = 0; i < n; i++)
        if ((uint8_t)text[i] < ' ' || text[i] == 0x7f)
            text[i] = '?';
}

static uint32_t count_state(struct hvx_stream *s, uint32_t n, uint32_t max)
{
    hvx_state_u32(s, &n);
    if (n <= max)
        return n;
    hvx_state_fail(s, -EINVAL, "a count is larger than it may be");
    return 0;
}

static void disk_state(struct hvx_stream *s, struct hvx_saved_disk *d)
{
    text_state(s, d->id, sizeof(d->id));
    text_state(s, d->mark.path, sizeof(d->mark.path));
    hvx_state_u64(s, &d->mark.bytes);
    d->mark.n_files = count_state(s, d->mark.n_files, HVX_BLK_MARK_FILES);
    for (unsigned i = 0; i < d->mark.n_files; i++) {
        hvx_state_u64(s, &d->mark.file[i].bytes);
        hvx_state_u64(s, &d->mark.file[i].changed_ns);
    }
}

int hvx_saved_vm_state(void *opaque, struct hvx_stream *s)
{
    struct hvx_saved_vm *v = opaque;

    text_state(s, v->version, sizeof(v->version));
    text_state(s, v->engine, sizeof(v->engine));
    text_state(s, v->command, sizeof(v->command));
    hvx_state_u64(s, &v->ram_bytes);
    hvx_state_u64(s, &v->tsc_hz);
    hvx_state_u64(s, &v->saved_at_ns);
    hvx_state_u32(s, &v->n_vcpus);
    hvx_state_bytes(s, v->uuid, sizeof(v->uuid));
    v->n_devices = count_state(s, v->n_devices, HVX_VM_MAX_DEVICES);
    for (unsigned i = 0; i < v->n_devices; i++) {
        text_state(s, v->device[i].name, sizeof(v->device[i].name));
        hvx_state_u32(s, &v->device[i].version);
    }
    v->n_disks = count_state(s, v->n_disks, HVX_VM_MAX_BACKENDS);
    for (unsigned i = 0; i < v->n_disks; i++)
        disk_state(s, &v->disk[i]);
    if (v->n_vcpus < 1 || v->n_vcpus > HVX_MAX_VCPUS || v->ram_bytes < HVX_VM_MIN_RAM || v->ram_bytes > HVX_VM_MAX_RAM)
        hvx_state_fail(s, -EINVAL, "it has a number of vCPUs or a memory size that no VM can have");
    return hvx_state_error(s);
}

int hvx_saved_vm_of(struct hvx_vm *vm, const char *command, struct hvx_saved_vm *out, struct hvx_error *err)
{
    struct timespec now;

    memset(out, 0, sizeof(*out));
    clock_gettime(CLOCK_REALTIME, &now);
    out->ram_bytes = vm->ram.bytes;
    out->tsc_hz = vm->tsc_hz;
    out->saved_at_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    out->n_vcpus = vm->params.n_vcpus;
    memcpy(out->uuid, vm->uuid, sizeof(out->uuid));
    snprintf(out->engine, sizeof(out->engine), "%s", vm->engine_name);
    snprintf(out->version, sizeof(out->version), "%s", PACKAGE_VERSION);
    snprintf(out->command, sizeof(out->command), "%s", command ? command : "");
    out->n_devices = vm->n_instances;
    for (unsigned i = 0; i < vm->n_instances; i++) {
        snprintf(out->device[i].name, sizeof(out->device[i].name), "%s", vm->instance[i].name);
        out->device[i].version = vm->instance[i].type->version;
    }
    out->n_disks = vm->n_blk;
    for (unsigned i = 0; i < vm->n_blk; i++) {
        struct hvx_saved_disk *d = &out->disk[i];
        int r = hvx_blk_get_mark(vm->blk[i].p, &d->mark);
        snprintf(d->id, sizeof(d->id), "%s", vm->blk[i].id);
        if (r < 0)
            return hvx_fail(err, r, "%s (%.200s): cannot look at its files: %s", d->id, d->mark.path, strerror(-r));
        if (d->mark.lost_writes)
            return hvx_fail(err, -ENOTSUP,
                            "%s was opened with snapshot=on and the guest has written to it; that ends with this "
                            "process, so the VM cannot be saved. Run it on an overlay: hvx image create -b",
                            d->id);
    }
    return 0;
}

/* --- does it fit? ----------------------------------------------------------------- */

static int devices_fit(const struct hvx_saved_vm *s, struct hvx_vm *vm, struct hvx_error *err)
{
    for (unsigned i = 0; i < s->n_devices || i < vm->n_instances; i++) {
        const char *was = i < s->n_devices ? s->device[i].name : "none";
        const char *is = i < vm->n_instances ? vm->instance[i].name : "none";
        if (strcmp(was, is))
            return hvx_fail(err, -EINVAL,
                            "saved state: device %u of the saved VM was %s, here it is %s; use the options that the VM was "
                            "started with: %.300s",
                            i + 1, was, is, s->command);
        if (s->device[i].version > vm->instance[i].type->version)
            return hvx_fail(err, -EINVAL, "saved state: device %s is of version %u, this program knows up to %u; use a "
                                          "newer HVX",
                            was, s->device[i].version, vm->instance[i].type->version);
    }
    return 0;
}

static int disk_fits(const struct hvx_saved_disk *d, struct hvx_blk *b, struct hvx_error *err)
{
    struct hvx_blk_mark now;
    int r = hvx_blk_get_mark(b, &now);

    if (r < 0)
        return hvx_fail(err, r, "%s (%.200s): cannot look at its files: %s", d->id, d->mark.path, strerror(-r));
    if (now.bytes != d->mark.bytes)
        return hvx_fail(err, -EINVAL, "%s has %llu bytes, the saved VM's had %llu (it was %.300s)", d->id,
                        (unsigned long long)now.bytes, (unsigned long long)d->mark.bytes, d->mark.path);
    if (now.n_files != d->mark.n_files)
        return hvx_fail(err, -EINVAL, "%s has %u image files in its chain, the saved VM's had %u (it was %.300s)",
                        d->id, now.n_files, d->mark.n_files, d->mark.path);
    for (unsigned i = 0; i < now.n_files; i++)
        if (now.file[i].bytes != d->mark.file[i].bytes || now.file[i].changed_ns != d->mark.file[i].changed_ns)
            return hvx_fail(err, -ESTALE,
                            "%s (%.200s)%s has been changed since the VM was saved: going on would destroy the guest's "
                            "file systems. Give it the disk as it was then (cp -p keeps the time), or start the VM "
                            "without the saved state",
                            d->id, now.path, i ? ", or rather what it is based on," : "");
    return 0;
}

int hvx_saved_vm_fits(const struct hvx_saved_vm *s, struct hvx_vm *vm, struct hvx_error *err)
{
    int r;

    if (s->ram_bytes != vm->ram.bytes)
        return hvx_fail(err, -EINVAL,
                        "saved state: the saved VM has %llu MiB of memory, this one %llu; use --memory %lluM",
                        (unsigned long long)(s->ram_bytes >> 20), (unsigned long long)(vm->ram.bytes >> 20),
                        (unsigned long long)(s->ram_bytes >> 20));
    if (s->n_vcpus != vm->params.n_vcpus)
        return hvx_fail(err, -EINVAL, "saved state: the saved VM has %u vCPUs, this one %u; use --cpus %u", s->n_vcpus,
                        vm->params.n_vcpus, s->n_vcpus);
    if (strcmp(s->engine, vm->engine_name))
        return hvx_fail(err, -EINVAL, "saved state: the saved VM ran on engine %s, this one on %s; use --engine %s",
                        s->engine, vm->engine_name, s->engine);
    r = devices_fit(s, vm, err);
    if (r == 0 && s->n_disks != vm->n_blk)
        r = hvx_fail(err, -EINVAL, "saved state: the saved VM has %u disks, this one %u; it was started with: %.300s",
                     s->n_disks, vm->n_blk, s->command);
    for (unsigned i = 0; i < s->n_disks && r == 0; i++) {
        struct hvx_blk *b = hvx_vm_backend(vm->blk, vm->n_blk, s->disk[i].id);
        r = b ? disk_fits(&s->disk[i], b, err)
              : hvx_fail(err, -EINVAL, "saved state: this VM lacks %s (%.300s)", s->disk[i].id, s->disk[i].mark.path);
    }
    return r;
}
