/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/run.h - the dispatcher, and what the glue of stubs.c calls.
 */
#ifndef BT_RUN_H
#define BT_RUN_H

#include "op.h"

void bt_vcpu_init(struct bt_vcpu *c, bool init); /* power-on or INIT state */
void bt_load_pdptes(struct bt_vcpu *c);
bool bt_thread_is(const struct bt_vcpu *c); /* signal.c */
int bt_vcpu_run(struct bt_vcpu *c, struct hvx_exit *exit);
/* From the glue. Those that return a host address return stub_leave's to get
 * back to the dispatcher. */
uint64_t bt_next_c(struct bt_vcpu *c);                 /* go on at c->rip */
/* an inline cache with another target in c->rip, or not chained */
uint64_t bt_inline_c(struct bt_vcpu *c, uint32_t exit);
uint64_t bt_exit_c(struct bt_vcpu *c, uint32_t exit);  /* a direct exit that is not chained, or after a kick */
uint64_t bt_op_next_c(struct bt_vcpu *c, const struct bt_op *op); /* 0: go on in the block */
uint64_t bt_op_end_c(struct bt_vcpu *c, const struct bt_op *op);
uint64_t bt_seg_c(struct bt_vcpu *c, uint64_t off, uint32_t desc);
_Noreturn void bt_careful_c(struct bt_vcpu *c);
void bt_unlink_running(struct bt_vcpu *c);
/* signal.c */
int bt_signals_install(struct hvx_error *err);
void bt_signals_thread(struct bt_vcpu *c); /* the calling thread runs c from now on */
#endif
