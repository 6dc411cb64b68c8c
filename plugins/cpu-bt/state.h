/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/state.h - saved states, for plugin.c.
 */
#ifndef BT_STATE_H
#define BT_STATE_H

#include "bt.h"

/* The CPU model; see hvx_cpu_ops.model_state. */
int bt_model_state(struct bt_vm *vm, struct hvx_stream *st);
/* Pending events and other state without a register, to and from r. */
void bt_events_get(struct bt_vcpu *c, struct hvx_vcpu_regs *r);
void bt_events_set(struct bt_vcpu *c, const struct hvx_vcpu_regs *r);
/* A file may hold anything: refuse what no processor can be in. */
int bt_state_check(const struct bt_vcpu *c, const struct hvx_vcpu_regs *r, struct hvx_error *err);

#endif
