# SPDX-License-Identifier: Apache-2.0
# Included first by each plugins/NAME/Makefile.am:
#
#   include $(top_srcdir)/plugins/plugin.mk
#   plugin_LTLIBRARIES = dev-foo.la
#   noinst_LTLIBRARIES = libdevfoo.la        # the objects, for the module and for the tests
#   libdevfoo_la_SOURCES = plugin.c foo.c foo.h
#   dev_foo_la_SOURCES =
#   dev_foo_la_LIBADD = libdevfoo.la         # and libraries such as $(ZYDIS_LIBS)
#   dev_foo_la_LDFLAGS = $(PLUGIN_LDFLAGS)
#   check_PROGRAMS += test_foo
#   test_foo_SOURCES = test_foo.c
#   test_foo_LDADD = libdevfoo.la $(HVXTEST_LIBS)
include $(top_srcdir)/common.mk

plugindir = $(libdir)/hvx/plugins
# -iquote: a file here named like a system header must not shadow it.
AM_CPPFLAGS = -I$(top_builddir) -iquote $(srcdir) -I$(top_srcdir)/sdk/include
AM_CFLAGS += -fvisibility=hidden
PLUGIN_LDFLAGS = -module -avoid-version -shared $(HVX_LDFLAGS) $(HVX_ZDEFS) -Wl,-z,now \
    -export-symbols-regex '^hvx_plugin_'
