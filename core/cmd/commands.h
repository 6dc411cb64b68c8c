/* SPDX-License-Identifier: Apache-2.0
 *
 * core/cmd/commands.h - entry points of the commands and their exit codes.
 * Each takes its own argv (argv[0] is the command's name).
 */
#ifndef HVX_CORE_COMMANDS_H
#define HVX_CORE_COMMANDS_H

/* Exit codes of every command; hvx(1) documents them. */
enum {
    HVX_STATUS_OK = 0,          /* done; run: the guest powered off */
    HVX_STATUS_FAILED = 1,      /* the host side failed: file, option, resource */
    HVX_STATUS_USAGE = 2,       /* wrong command line */
    HVX_STATUS_PANIC = 3,       /* run: the guest says that it panicked */
    HVX_STATUS_ENGINE = 4,      /* run: the execution engine cannot go on */
    HVX_STATUS_TRIPLE_FAULT = 5, /* run --no-reboot: a vCPU triple-faulted */
    HVX_STATUS_KILLED = 6,      /* run: ended from outside, by hvx kill or a signal */
    HVX_STATUS_SAVED = 7,       /* run: saved to a file by hvx save, and ended */
};

int hvx_cmd_run(int argc, char **argv);
int hvx_cmd_ps(int argc, char **argv);
int hvx_cmd_stop(int argc, char **argv);
int hvx_cmd_kill(int argc, char **argv);
int hvx_cmd_stat(int argc, char **argv);
int hvx_cmd_save(int argc, char **argv);
int hvx_cmd_screendump(int argc, char **argv);
int hvx_cmd_attach(int argc, char **argv);
int hvx_cmd_detach(int argc, char **argv);
int hvx_cmd_balloon(int argc, char **argv);
int hvx_cmd_plugin(int argc, char **argv);
int hvx_image_main(int argc, char **argv);
#endif
