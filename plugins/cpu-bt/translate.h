/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/translate.h - the translator as the dispatcher sees it.
 */
#ifndef BT_TRANSLATE_H
#define BT_TRANSLATE_H
#include "cache.h"
struct trans;
struct trans *bt_trans_create(struct bt_vcpu *c);
void bt_trans_destroy(struct trans *t);
#endif
