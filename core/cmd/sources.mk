# SPDX-License-Identifier: Apache-2.0
# Files of core/cmd, included by core/Makefile.am; paths are relative to core/.
core_cmd_sources = cmd/main.c cmd/commands.h cmd/run.c cmd/run.h cmd/run_options.c cmd/cpu_help.c cmd/control_cmds.c cmd/attach.c cmd/balloon.c cmd/plugin.c
core_cmd_sources += cmd/run_save.c cmd/run_save.h cmd/save.c
dist_man_MANS += cmd/hvx-run.1 cmd/hvx-ps.1 cmd/hvx-stop.1 cmd/hvx-kill.1 cmd/hvx-stat.1 cmd/hvx-screendump.1
dist_man_MANS += cmd/hvx-save.1
dist_man_MANS += cmd/hvx.1
dist_man_MANS += cmd/hvx-attach.1 cmd/hvx-detach.1 cmd/hvx-balloon.1
dist_check_SCRIPTS += cmd/test_run.py
