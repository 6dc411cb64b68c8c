/* SPDX-License-Identifier: Apache-2.0
 *
 * core/conf/options.h - values of the options that a table declares
 * (hvx/option.h). One struct hvx_config is one instance's values: a plugin's
 * section of hvx.conf, or the text after `--device NAME,`.
 *
 * Life: new (defaults filled in) -> set/parse any number of times, later
 * values win -> check (required ones are there) -> lookups -> destroy.
 * Threads: lookups from any thread; nothing else while they run.
 * The table is borrowed and must outlive the config.
 */
#ifndef HVX_CORE_OPTIONS_H
#define HVX_CORE_OPTIONS_H

#include <hvx/option.h>

/* Is this table itself sound (names, types, defaults inside their range)?
 * table may be NULL: no options. `what` names it in the message. */
HVX_WUR int hvx_options_check(const struct hvx_option *table, const char *what, struct hvx_error *err);

HVX_WUR int hvx_config_new(const struct hvx_option *table, struct hvx_config **out);
void hvx_config_destroy(struct hvx_config *c);
const struct hvx_option *hvx_config_table(const struct hvx_config *c); /* never NULL; ends with a NULL name */

/* One value as text. `where` begins the message: "hvx.conf:12: dev-pc",
 * "--device virtio-blk". An unknown name lists the known ones. */
HVX_WUR int hvx_config_set(struct hvx_config *c, const char *name, const char *value, const char *where,
                           struct hvx_error *err);
/* "key=value,key=value"; a comma inside a value is doubled; a bare key of a
 * BOOL option means yes. NULL and "" are fine. On failure c is unchanged. */
HVX_WUR int hvx_config_parse(struct hvx_config *c, const char *text, const char *where, struct hvx_error *err);
/* -EINVAL when a required option has no value. */
HVX_WUR int hvx_config_check(const struct hvx_config *c, const char *where, struct hvx_error *err);

/* Lookups; an undeclared name or the wrong type is a bug and asserts. They
 * are the conf_* functions of hvx/host.h. */
bool hvx_config_bool(const struct hvx_config *c, const char *name);
int64_t hvx_config_int(const struct hvx_config *c, const char *name);
const char *hvx_config_string(const struct hvx_config *c, const char *name);
bool hvx_config_is_set(const struct hvx_config *c, const char *name); /* given, not just its default */

const char *hvx_option_type_name(uint32_t type); /* "bool", "int", "size", "string", "enum" */
/* "1M" for 1048576: the shortest exact text of a size. */
void hvx_format_size(int64_t bytes, char *buf, size_t n);
/* Parse "64M", "4096", "0x1000", "2G"; the whole text must be a number. */
HVX_WUR int hvx_parse_size(const char *text, int64_t *out);
#endif
