/* SPDX-License-Identifier: Apache-2.0
 *
 * plugins/cpu-bt/perf_map.h - see perf_map.c.
 */
#ifndef BT_PERF_MAP_H
#define BT_PERF_MAP_H

#include "cache.h"

/* Of a vCPU; c->perf_map is NULL when the option is off. */
struct bt_perf_map {
    int fd;                    /* the VM's */
    _Atomic uint64_t *written; /* the VM's */
    uint32_t n;                /* bytes gathered */
    char text[4096];
};

/* b has been made, here or as a copy. */
void bt_perf_map_block(struct bt_vcpu *c, const struct bt_block *b);
void bt_perf_map_stubs(struct bt_vcpu *c);
void bt_perf_map_flush(struct bt_vcpu *c);

#endif
