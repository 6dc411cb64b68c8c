/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/op.c - the table of C ops.
 */
#include "op.h"

const bt_op_fn bt_op_table[BT_OP_COUNT] = {
#define X(name, kind) [BT_OP_##name] = bt_op_##name,
    BT_OPS(X)
#undef X
};
