/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/gdb.h - the gdb stub: `hvx run --gdb`.
 *
 * gdb.c       sockets, and what the session's orders mean for the VM
 * gdb_proto.c one session of GDB's remote serial protocol ("Debugging with
 *             GDB", appendix E): framing, commands. No VM in it: it is tested
 *             and fuzzed with a made-up one.
 * gdb_regs.c  registers: their order in packets and the description for gdb
 * gdb_mem.c   guest memory by virtual address
 *
 * All run on the control loop. The VM is stopped as a whole: when gdb comes,
 * when a point is met, when it asks. Each vCPU is a thread, numbered from 1.
 */
#ifndef HVX_CORE_GDB_H
#define HVX_CORE_GDB_H

#include "core/vm/loop.h"
#include <hvx/cpu.h>

struct hvx_gdb;
struct hvx_vm;

/* "[HOST:]PORT" (host: 127.0.0.1), "unix:PATH"; then ",arch=i386" or
 * ",arch=x86-64" for what gdb is told of instead of what the guest runs. */
HVX_WUR int hvx_gdb_listen(struct hvx_loop *loop, const char *spec, struct hvx_gdb **out, struct hvx_error *err);
/* Now there is a VM, with its vCPUs made. wait: it is paused until gdb lets it
 * go. on_kill: gdb's `kill`. */
HVX_WUR int hvx_gdb_attach(struct hvx_gdb *g, struct hvx_vm *vm, bool wait, void (*on_kill)(void *opaque), void *opaque,
                           struct hvx_error *err);
/* A vCPU met a point or ended a step: the event HVX_EVENT_DEBUG. */
void hvx_gdb_stopped(struct hvx_gdb *g);
/* Tells gdb that the program is gone. */
void hvx_gdb_destroy(struct hvx_gdb *g);

/* --- gdb_mem.c ---------------------------------------------------------------- */

/* Guest-physical address of lin as these registers translate it, without
 * looking at rights and without touching accessed bits; false: not mapped.
 * *run: so many bytes from there on lie in the same page. */
bool hvx_gdb_translate(const struct hvx_vcpu_regs *r, uint64_t lin, uint64_t *gpa, uint64_t *run,
                       int (*read)(void *opaque, uint64_t gpa, void *buf, size_t n), void *opaque);

#endif
