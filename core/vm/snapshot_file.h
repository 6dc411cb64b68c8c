/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/snapshot_file.h - what save.c and restore.c share: the section "vm"
 * (snapshot_vm.c) and the shape of the sections "ram".
 */
#ifndef HVX_CORE_SNAPSHOT_FILE_H
#define HVX_CORE_SNAPSHOT_FILE_H

#include "core/vm/internal.h"
#include "core/vm/snapshot.h"
#include "core/vm/stream.h"

#define HVX_SAVED_CHUNK (4u << 20) /* guest memory of one section */
#define HVX_SAVED_CHUNK_PAGES (HVX_SAVED_CHUNK / HVX_PAGE)
#define HVX_SAVED_CHUNK_HEAD (8u + HVX_SAVED_CHUNK_PAGES / 8) /* offset, bits */

/* Fill from a VM that is quiet, VM lock held. */
HVX_WUR int hvx_saved_vm_of(struct hvx_vm *vm, const char *command, struct hvx_saved_vm *out, struct hvx_error *err);
/* May this VM take that state? */
HVX_WUR int hvx_saved_vm_fits(const struct hvx_saved_vm *s, struct hvx_vm *vm, struct hvx_error *err);
/* An hvx_state_fn; opaque is a struct hvx_saved_vm. */
int hvx_saved_vm_state(void *opaque, struct hvx_stream *s);

#endif
