/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/disk_spec.h - what --disk and --net say, of `hvx run` and `hvx
 * attach`: a part for the back end, and a part for the device in front of it.
 */
#ifndef HVX_CORE_DISK_SPEC_H
#define HVX_CORE_DISK_SPEC_H

#include "core/image/blk.h"

#define HVX_SPEC_MAX 4096u

struct hvx_disk_spec {
    char *text; /* owned; the strings below point into it */
    struct hvx_blk_open open;
    const char *iface;  /* device type, or what a board calls the place; NULL: the default */
    char device[1024];  /* "queues=2,...": options of the device */
};
/* file=PATH,format=F,...; the first part may be a plain path. free(d->text) in any case. */
HVX_WUR int hvx_disk_spec_parse(const char *text, struct hvx_disk_spec *d, struct hvx_error *err);

struct hvx_net_words {
    char backend[HVX_SPEC_MAX]; /* for hvx_net_open() */
    char model[48];             /* device type; "": the default */
    char device[1024];
};
HVX_WUR int hvx_net_spec_split(const char *text, struct hvx_net_words *out, struct hvx_error *err);

/* Add key=value to a text of options. */
HVX_WUR int hvx_spec_append(char *text, size_t size, const char *key, const char *value, const char *where,
                            struct hvx_error *err);
#endif
