/* SPDX-License-Identifier: Apache-2.0
 *
 * core/cmd/run_save.h - the VM's side of `hvx save`: commands "save" and
 * "save-end" of the control socket.
 *
 * "save" comes with the descriptor of an empty file. The VM is paused, its
 * state is written in slices from the control loop, so that others are still
 * answered, and then the answer is sent. The VM stays paused until the client
 * says by "save-end" that the file has its name, and whether the VM is to end or
 * to go on. A client that goes away before lets the VM go on.
 */
#ifndef HVX_CORE_CMD_RUN_SAVE_H
#define HVX_CORE_CMD_RUN_SAVE_H

#include "core/vm/control.h"
#include "core/vm/snapshot.h"

struct hvx_run_save {
    struct hvx_vm *vm;
    struct hvx_loop *loop; /* the control loop */
    const char *name, *command;
    void (*resumed)(void *opaque); /* the VM runs again */
    void *opaque;
    /* while saving */
    struct hvx_save *save; /* NULL: not saving */
    FILE *f;
    struct hvx_control_client *client; /* NULL: gone */
    bool written;
    uint64_t said_ns;
};

static inline bool hvx_run_save_busy(const struct hvx_run_save *s)
{
    return s->save != NULL;
}
/* In the control socket's handler. */
HVX_WUR int hvx_run_save_begin(struct hvx_run_save *s, struct hvx_control *control, struct hvx_error *err);
/* 1: the VM is to end, as saved; 0: it goes on. */
HVX_WUR int hvx_run_save_commit(struct hvx_run_save *s, json_t *request, struct hvx_error *err);
/* Give the VM's lock back; resume: and let it run. Nothing when not saving. */
void hvx_run_save_abort(struct hvx_run_save *s, bool resume);

#endif
