# SPDX-License-Identifier: Apache-2.0
# Files of core/cmd, included by core/Makefile.am; paths are relative to core/.
core_cmd_sources = cmd/main.c cmd/commands.h cmd/run.c cmd/run.h cmd/run_options.c cmd/control_cmds.c cmd/plugin.c
dist_man_MANS += cmd/hvx.1
