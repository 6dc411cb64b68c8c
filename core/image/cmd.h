/* SPDX-License-Identifier: Apache-2.0
 *
 * cmd.h - inside of `hvx image`: cmd_image.c reads the command line and does
 * the small commands, cmd_convert.c copies.
 */
#ifndef HVX_IMAGE_CMD_H
#define HVX_IMAGE_CMD_H

#include "core/image/image.h"

/* Like those of core/cmd/commands.h; `check` adds its verdicts. */
enum { IMAGE_OK = 0, IMAGE_FAILED = 1, IMAGE_USAGE = 2, IMAGE_LEAKS = 3, IMAGE_CORRUPT = 4 };

struct hvx_image_options {
    const char *format, *out_format; /* -f, -O */
    const char *backing, *backing_format;
    const char *options; /* -o */
    bool json, repair, force, allow_backing_outside, quiet;
    const char *args[3];
    unsigned n_args;
};

bool hvx_image_parse_size(const char *text, uint64_t *out);
int hvx_image_parse_create(const char *text, struct hvx_qcow2_create *c, struct hvx_error *err);
int hvx_image_convert(const struct hvx_image_options *o, struct hvx_error *err);
#endif
