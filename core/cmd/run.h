/* SPDX-License-Identifier: Apache-2.0
 *
 * core/cmd/run.h - the parts of `hvx run`: its options (run_options.c) and
 * its control loop (run.c).
 */
#ifndef HVX_CORE_CMD_RUN_H
#define HVX_CORE_CMD_RUN_H

#include "core/vm/machine.h"

struct hvx_run_options {
    struct hvx_machine_options machine;
    const char *config, *restore;
    char name[64];
    bool name_given, no_reboot, quiet, no_control, no_confinement, gdb_wait;
    const char *gdb; /* NULL: none */
    bool cpu_help; /* --cpu help */
    int log_level;
    char *owned[8]; /* texts built while parsing */
};

/* Returns 0, or the exit status after having printed why (or --help) plus 1000. */
HVX_WUR int hvx_run_parse(int argc, char **argv, struct hvx_run_options *o);
#define HVX_RUN_EXIT 1000

/* cpu_help.c: prints the engine's CPU models; the exit status. config, engine: as given, or NULL */
int hvx_cpu_help(const char *config, const char *engine);

#endif
