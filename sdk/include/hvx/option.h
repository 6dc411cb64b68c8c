/* SPDX-License-Identifier: Apache-2.0
 *
 * hvx/option.h - options, declared once.
 *
 * A plugin or a device type declares its options in one table. The table
 * serves the hvx.conf parser, `--device NAME,key=value`, `hvx plugin show`
 * and the check that the manual lists them all. A table ends with an entry
 * whose name is NULL.
 *
 * Values reach the plugin as a struct hvx_config, already checked for type
 * and range and with defaults filled in; a lookup of an undeclared name is a
 * bug of the plugin and asserts.
 */
#ifndef HVX_OPTION_H
#define HVX_OPTION_H

#include <hvx/base.h>

HVX_EXTERN_C_BEGIN

enum hvx_option_type {
    HVX_OPT_BOOL = 1,  /* yes/no/on/off/true/false */
    HVX_OPT_INT = 2,   /* signed 64 bit, min..max */
    HVX_OPT_SIZE = 3,  /* bytes with K M G T suffix, min..max */
    HVX_OPT_STRING = 4,
    HVX_OPT_ENUM = 5,  /* one of `choices`, separated by '|' */
};

struct hvx_option {
    const char *name;     /* NULL ends the table */
    uint32_t type;        /* enum hvx_option_type */
    uint32_t flags;       /* HVX_OPTF_* */
    int64_t min, max;     /* INT and SIZE; both 0: no limit */
    const char *def;      /* default as text; NULL: unset */
    const char *choices;  /* ENUM: "a|b|c" */
    const char *help;     /* one line */
};
#define HVX_OPTF_REQUIRED 1u

HVX_EXTERN_C_END
#endif
