# SPDX-License-Identifier: Apache-2.0
# Files of core/conf, included by core/Makefile.am; paths are relative to core/.
core_conf_sources = conf/conf.c conf/conf.h conf/options.c conf/options.h

check_PROGRAMS += conf/test_options
conf_test_options_SOURCES = conf/test_options.c

dist_man_MANS += conf/hvx.conf.5
exampledir = $(docdir)/examples
dist_example_DATA = conf/hvx.conf
