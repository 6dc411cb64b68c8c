/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/gdb_proto.h - one session of GDB's remote serial protocol.
 *
 * Bytes in by hvx_gdb_feed(), bytes out through target.send. The peer is
 * trusted with the guest but not with us: packets are capped and every number
 * in them is checked.
 */
#ifndef HVX_CORE_GDB_PROTO_H
#define HVX_CORE_GDB_PROTO_H

#include <hvx/cpu.h>

#define HVX_GDB_PACKET 16384u /* the longest packet, either way */

enum hvx_gdb_resume { HVX_GDB_HOLD, HVX_GDB_GO, HVX_GDB_STEP };

/* What the session can do to a VM. Threads are vCPU indices, from 0. */
struct hvx_gdb_target {
    unsigned (*n_threads)(void *o);
    bool (*get_regs)(void *o, unsigned thread, struct hvx_vcpu_regs *r);
    bool (*set_regs)(void *o, unsigned thread, const struct hvx_vcpu_regs *r);
    /* All n bytes at a linear address, or false. */
    bool (*read)(void *o, unsigned thread, uint64_t lin, void *buf, size_t n);
    bool (*write)(void *o, unsigned thread, uint64_t lin, const void *buf, size_t n);
    /* Let vCPUs go as `how` (one for each) says, with these points set. */
    bool (*resume)(void *o, const enum hvx_gdb_resume *how, const struct hvx_debug_point *points, unsigned n);
    void (*interrupt)(void *o); /* stop all; hvx_gdb_stop() follows */
    void (*detach)(void *o);    /* the VM goes on by itself */
    void (*kill)(void *o);
    void (*describe)(void *o, unsigned thread, char *buf, size_t n);
    void (*send)(void *o, const void *buf, size_t n);
};

struct hvx_gdb_session;
/* force: 32, 64, or 0 for what vCPU 0 runs when gdb asks. The VM is stopped. */
struct hvx_gdb_session *hvx_gdb_session_new(const struct hvx_gdb_target *t, void *o, unsigned force);
void hvx_gdb_session_free(struct hvx_gdb_session *s);
void hvx_gdb_feed(struct hvx_gdb_session *s, const uint8_t *buf, size_t n);
/* The VM has stopped: because a vCPU met point number `point`, of those given
 * to resume (-1: a step, or -2: because it was told to). */
void hvx_gdb_stop(struct hvx_gdb_session *s, unsigned thread, int point);
void hvx_gdb_exited(struct hvx_gdb_session *s); /* the VM ends */

/* --- gdb_regs.c ------------------------------------------------------------------ */

/* Registers have the numbers of their order in the description. Sizes in bytes; 0: there is none of this number. */
unsigned hvx_gdb_reg_size(bool wide, unsigned number);
unsigned hvx_gdb_n_regs(bool wide);
void hvx_gdb_reg_get(bool wide, unsigned number, const struct hvx_vcpu_regs *r, uint8_t *out);
/* false: this one cannot be written. */
bool hvx_gdb_reg_set(bool wide, unsigned number, struct hvx_vcpu_regs *r, const uint8_t *in);
unsigned hvx_gdb_reg_pc(bool wide);
/* target.xml, NUL-terminated, at most n bytes; returns its length. */
size_t hvx_gdb_description(bool wide, char *buf, size_t n);

#endif
