/* SPDX-License-Identifier: Apache-2.0
 *
 * hvx COMMAND ...: finds the command and hands it its arguments.
 */
#include <config.h>

#include "core/cmd/commands.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

struct command {
    const char *name;
    int (*main)(int argc, char **argv);
    const char *help;
};

static const struct command commands[] = {
    {"run", hvx_cmd_run, "boot a disk image or a kernel as a virtual machine"},
    {"ps", hvx_cmd_ps, "list running virtual machines"},
    {"stop", hvx_cmd_stop, "ask a guest to power off"},
    {"kill", hvx_cmd_kill, "end a virtual machine at once"},
    {"stat", hvx_cmd_stat, "show the counters of a virtual machine"},
    {"attach", hvx_cmd_attach, "add a disk or a network card to a running virtual machine"},
    {"detach", hvx_cmd_detach, "take a disk or a network card away again"},
    {"balloon", hvx_cmd_balloon, "take memory from a guest, or give it back"},
    {"save", hvx_cmd_save, "save a running virtual machine to a file"},
    {"screendump", hvx_cmd_screendump, "save what the guest's screen shows as PNG"},
    {"image", hvx_image_main, "create, inspect, check and convert disk images"},
    {"plugin", hvx_cmd_plugin, "list plugins, show one with its options"},
};
#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void usage(FILE *f)
{
    fprintf(f, "Usage: hvx COMMAND [ARGUMENT]...\n"
               "Run unmodified virtual machines without hardware virtualization.\n\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(f, "  %-12s %s\n", commands[i].name, commands[i].help);
    fprintf(f, "\nhvx COMMAND --help describes a command, hvx(1) all of them.\n");
}

int main(int argc, char **argv)
{
    /* A peer that goes away is an error code where it is written to. */
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        usage(stderr);
        return HVX_STATUS_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        usage(stdout);
        return HVX_STATUS_OK;
    }
    if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V")) {
        printf("hvx %s\n", PACKAGE_VERSION);
        return HVX_STATUS_OK;
    }
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (!strcmp(commands[i].name, argv[1]))
            return commands[i].main(argc - 1, argv + 1);
    fprintf(stderr, "hvx: no command '%s'; 'hvx --help' lists the commands\n", argv[1]);
    return HVX_STATUS_USAGE;
}
